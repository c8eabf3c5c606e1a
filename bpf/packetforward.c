/* Packets and bytes by interface and direction; part of the one socket program, bpf/packet.c. */
struct forward_key {
    u32 interface;
    u32 direction;
};
struct forward_count {
    u64 packets; /* as interfaces count them: a large skb is one */
    u64 segments; /* as the wire sees them */
    u64 bytes;
};
BPF_TABLE("percpu_hash", struct forward_key, struct forward_count, forwards, 4096);

static __always_inline void packetforward(struct __sk_buff *skb, u32 direction, u32 segments) {
    struct forward_key key = {};
    struct forward_count nothing = {}, *found;
    key.interface = skb->ifindex;
    key.direction = direction;
    found = forwards.lookup_or_try_init(&key, &nothing);
    if (!found) {
        lose();
        return;
    }
    lock_xadd(&found->packets, 1);
    lock_xadd(&found->segments, (u64)segments);
    lock_xadd(&found->bytes, (u64)skb->len);
}
