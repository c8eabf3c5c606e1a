/* Packets, bytes and TCP flags of each flow on each interface; part of the one socket program, bpf/packet.c. */
struct flow_value {
    u64 packets;
    u64 bytes;
    u64 first; /* CLOCK_MONOTONIC, ns */
    u64 last;
    u32 flags[8]; /* FIN SYN RST PSH ACK URG ECE CWR */
};
BPF_TABLE("lru_hash", struct flow_key, struct flow_value, flows, FLOW_ENTRIES);
BPF_PERCPU_ARRAY(flows_inserted, u64, 1);

static __always_inline void packetparser(struct flow_key *key, u32 segments, u32 length, u8 flags) {
    u64 now = bpf_ktime_get_ns();
    struct flow_value *found = flows.lookup(key);
    if (!found) {
        struct flow_value fresh = {};
        fresh.first = now;
        if (!flows.insert(key, &fresh)) {
            int zero = 0;
            u64 *number = flows_inserted.lookup(&zero);
            if (number)
                lock_xadd(number, 1);
        }
        found = flows.lookup(key);
    }
    if (!found) {
        lose();
        return;
    }
    lock_xadd(&found->packets, (u64)segments);
    lock_xadd(&found->bytes, (u64)length);
    found->last = now;
    if (key->protocol != 6)
        return;
    if (flags & 1)
        lock_xadd(&found->flags[0], 1);
    if (flags & 2)
        lock_xadd(&found->flags[1], 1);
    if (flags & 4)
        lock_xadd(&found->flags[2], 1);
    if (flags & 8)
        lock_xadd(&found->flags[3], 1);
    if (flags & 16)
        lock_xadd(&found->flags[4], 1);
    if (flags & 32)
        lock_xadd(&found->flags[5], 1);
    if (flags & 64)
        lock_xadd(&found->flags[6], 1);
    if (flags & 128)
        lock_xadd(&found->flags[7], 1);
}
