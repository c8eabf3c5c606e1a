/* What the plugins of the one socket program share: a packet that is parsed once. */
struct flow_key {
    u32 interface;
    union {
        u32 addresses[8];
        struct {
            u32 source[4];
            u32 destination[4];
        };
    };
    u16 source_port; /* big-endian */
    u16 destination_port;
    u8 protocol;
    u8 family; /* 4 or 6 */
    u8 direction;
    u8 pad;
};
