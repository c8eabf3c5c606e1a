/* TCP's state machine: connections that were opened, accepted, or failed with an errno, and how long the handshake took. */
struct connect_key {
    u32 netns;
    u32 error;
    u16 family;
    u16 kind; /* 0 opened, 1 failed, 2 accepted */
};
struct latency_key {
    u32 netns;
    u32 slot; /* log2 of microseconds */
};
BPF_TABLE("percpu_hash", struct connect_key, u64, connects, 4096);
BPF_TABLE("percpu_hash", struct latency_key, struct count, handshakes, 4096);
BPF_TABLE("lru_hash", u64, u64, connecting, 16384);

int on_set_state(struct bpf_raw_tracepoint_args *ctx) {
    u64 sk = ctx->args[0], now, nothing = 0, *found, *begun;
    int from = (int)ctx->args[1], to = (int)ctx->args[2];
    struct connect_key key = {};
    if (!((from == 7 && to == 2) || from == 2 || (from == 3 && to == 1)))
        return 0;
    key.netns = sock_inode(sk);
    if (outside(key.netns))
        return 0;
    now = bpf_ktime_get_ns();
    if (from == 7) {
        connecting.update(&sk, &now);
        return 0;
    }
    READ(key.family, sk, O_SK_FAMILY);
    if (from == 2) {
        begun = connecting.lookup(&sk);
        if (begun && to == 1) {
            struct latency_key slot = {};
            struct count none = {}, *sum;
            u64 took = (now - *begun) / 1000;
            slot.netns = key.netns;
            slot.slot = bpf_log2l(took);
            sum = handshakes.lookup_or_try_init(&slot, &none);
            if (sum) {
                lock_xadd(&sum->packets, 1);
                lock_xadd(&sum->bytes, took);
            }
        }
        if (begun)
            connecting.delete(&sk);
        if (to == 7) {
            key.kind = 1;
            READ(key.error, sk, O_SK_ERR);
        } else if (to != 1) {
            return 0;
        }
    } else {
        key.kind = 2;
    }
    found = connects.lookup_or_try_init(&key, &nothing);
    if (found)
        lock_xadd(found, 1);
    else
        lose();
    return 0;
}
