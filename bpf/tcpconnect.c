/* TCP's state machine: connections that were opened, accepted, or failed with an errno; how long handshakes took on both
 * sides, and where a kernel has kprobes how long what was established waited for accept(2). */
enum { OPENED = 0, FAILED = 1, ACCEPTED = 2, WAITED = 3 };
struct connect_key {
    u32 netns;
    u32 error;
    u16 family;
    u16 kind;
};
struct latency_key {
    u32 netns;
    u16 slot; /* log2 of microseconds */
    u16 kind;
};
struct half_open {
    u32 netns;
    u32 hash; /* the kernel's own, of both addresses and ports: a request and the socket that it becomes have the same */
    u16 local_port;
    u16 remote_port;
};
BPF_TABLE("percpu_hash", struct connect_key, u64, connects, 4096);
BPF_TABLE("percpu_hash", struct latency_key, struct count, handshakes, 4096);
BPF_TABLE("lru_hash", u64, u64, connecting, 16384);
BPF_TABLE("lru_hash", struct half_open, u64, repeated, 4096);
BPF_TABLE("lru_hash", u64, u64, accepting, 16384);

static __always_inline void lasted(u32 netns, u16 kind, u64 microseconds) {
    struct latency_key slot = {};
    struct count none = {}, *sum;
    slot.netns = netns;
    slot.kind = kind;
    slot.slot = bpf_log2l(microseconds);
    sum = handshakes.lookup_or_try_init(&slot, &none);
    if (sum) {
        lock_xadd(&sum->packets, 1);
        lock_xadd(&sum->bytes, microseconds);
    } else {
        lose();
    }
}

static __always_inline void half_open_key(u64 sk, u32 netns, struct half_open *key) {
    key->netns = netns;
    READ(key->hash, sk, O_SK_HASH);
    READ(key->local_port, sk, O_SK_NUM);
    READ(key->remote_port, sk, O_SK_DPORT);
}

/* From the first SYN-ACK on: if it had to be sent again, the request has said when that was; the kernel itself measures from the
 * last one then. Else the kernel has just measured it. */
static __always_inline void handshake_accepted(u64 sk, u32 netns, u64 now) {
    struct half_open key = {};
    u64 *begun;
    u32 srtt = 0; /* in eighths of a microsecond; one sample so far, and at least 1 */
    half_open_key(sk, netns, &key);
    begun = repeated.lookup(&key);
    if (begun) {
        lasted(netns, ACCEPTED, now / 1000 - *begun);
        repeated.delete(&key);
        return;
    }
    READ(srtt, sk, O_TCP_SRTT);
    if (srtt)
        lasted(netns, ACCEPTED, srtt >> 3);
}

static __always_inline int set_state(struct bpf_raw_tracepoint_args *ctx, int queued) {
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
        if (begun && to == 1)
            lasted(key.netns, OPENED, (now - *begun) / 1000);
        if (begun)
            connecting.delete(&sk);
        if (to == 7) {
            key.kind = FAILED;
            READ(key.error, sk, O_SK_ERR);
        } else if (to != 1) {
            return 0;
        }
    } else {
        key.kind = ACCEPTED;
        handshake_accepted(sk, key.netns, now);
        if (queued)
            accepting.update(&sk, &now);
    }
    found = connects.lookup_or_try_init(&key, &nothing);
    if (found)
        lock_xadd(found, 1);
    else
        lose();
    return 0;
}

int on_set_state(struct bpf_raw_tracepoint_args *ctx) {
    return set_state(ctx, 0);
}

int on_set_state_queued(struct bpf_raw_tracepoint_args *ctx) {
    return set_state(ctx, 1);
}

/* A SYN-ACK is sent again: since when, the request says. */
int on_synack_again(struct bpf_raw_tracepoint_args *ctx) {
    u64 request = ctx->args[1], first = 0;
    struct half_open key = {};
    u32 netns = sock_inode(request);
    if (outside(netns))
        return 0;
    READ(first, request, O_REQUEST_SYNACK);
    half_open_key(request, netns, &key);
    if (first)
        repeated.update(&key, &first);
    return 0;
}

/* security_sock_graft(sk, socket): accept(2) gives an established connection to a program. Never waits, as accept itself does. */
int on_graft(void *ctx) {
    u64 sk = ARG1(ctx), *begun = accepting.lookup(&sk);
    if (!begun)
        return 0;
    lasted(sock_inode(sk), WAITED, (bpf_ktime_get_ns() - *begun) / 1000);
    accepting.delete(&sk);
    return 0;
}
