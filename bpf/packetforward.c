/* Packets and bytes by interface and direction; part of the one socket program, bpf/packet.c. */
struct forward_key {
    u32 interface;
    u32 direction;
};
struct forward_count {
    u64 packets; /* as interfaces count them: a large skb is one */
    u64 more;    /* that the wire sees: segments but for the first */
    u64 bytes;
};
BPF_TABLE("percpu_hash", struct forward_key, struct forward_count, forwards, 4096);
/* The same for the first interfaces, by number and direction: most packets are theirs, and a place is found sooner than a key. */
#define FIRST 64
BPF_TABLE("percpu_array", u32, struct forward_count, first_forwards, 2 * FIRST);

static __always_inline void packetforward(struct __sk_buff *skb, u32 direction, u32 segments) {
    struct forward_key key = {};
    struct forward_count nothing = {}, *found;
    key.interface = skb->ifindex;
    key.direction = direction;
    if (key.interface < FIRST) {
        u32 place = key.interface * 2 + (direction == EGRESS);
        found = first_forwards.lookup(&place);
    } else {
        found = forwards.lookup_or_try_init(&key, &nothing);
    }
    if (!found) {
        lose();
        return;
    }
    lock_xadd(&found->packets, 1);
    if (segments > 1)
        lock_xadd(&found->more, (u64)segments - 1);
    lock_xadd(&found->bytes, (u64)skb->len);
}
