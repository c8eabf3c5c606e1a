/* Segments that TCP sends again, and resets. A retransmission of a large skb is as many segments as the wire sees. */
enum { DATA = 0, SYN = 1, SYNACK = 2, REFUSED = 3, RST_SENT = 4, RST_RECEIVED = 5 };
struct again_key {
    u32 netns;
    u32 reason;
    u8 kind;
    u8 state;
    u16 family;
    u16 local_port;
    u16 remote_port; /* big-endian */
    u32 local[4];
    u32 remote[4];
};
struct again_total {
    u32 netns;
    u32 reason;
    u32 kind;
    u32 state;
};
BPF_TABLE("lru_hash", struct again_key, u64, again_flows, FLOW_ENTRIES);
BPF_TABLE("percpu_hash", struct again_total, u64, again, 4096);

static __always_inline void sock_key(u64 sk, struct again_key *key) {
    READ(key->family, sk, O_SK_FAMILY);
    READ(key->state, sk, O_SK_STATE);
    READ(key->local_port, sk, O_SK_NUM);
    READ(key->remote_port, sk, O_SK_DPORT);
    if (key->family == 10) {
        READ(key->local, sk, O_SK_V6_LOCAL);
        READ(key->remote, sk, O_SK_V6_REMOTE);
    } else {
        READ(key->local[0], sk, O_SK_LOCAL);
        READ(key->remote[0], sk, O_SK_REMOTE);
    }
}

static __always_inline void note(struct again_key *key, u64 segments) {
    struct again_total total = {};
    u64 nothing = 0, *found;
    total.netns = key->netns;
    total.reason = key->reason;
    total.kind = key->kind;
    total.state = key->state;
    found = again.lookup_or_try_init(&total, &nothing);
    if (found)
        lock_xadd(found, segments);
    else
        lose();
    if (!key->family)
        return;
    found = again_flows.lookup_or_try_init(key, &nothing);
    if (found)
        lock_xadd(found, segments);
}

int on_retransmit(struct bpf_raw_tracepoint_args *ctx) {
    u64 sk = ctx->args[0], skb = ctx->args[1];
    struct again_key key = {};
    u16 segments = 0;
    u8 flags = 0;
    key.netns = sock_inode(sk);
    if (outside(key.netns))
        return 0;
    sock_key(sk, &key);
    READ(flags, skb, O_SKB_CB + O_TCB_FLAGS);
    READ(segments, skb, O_SKB_CB + O_TCB_SEGMENTS);
    key.kind = flags & 2 ? SYN : DATA;
#if TP_ARGS_tcp_retransmit_skb >= 3
    if ((int)ctx->args[2])
        key.kind = REFUSED; /* by this machine itself: a rule, no route, no memory */
#endif
    note(&key, segments ? segments : 1);
    return 0;
}

int on_retransmit_synack(struct bpf_raw_tracepoint_args *ctx) {
    u64 request = ctx->args[1];
    struct again_key key = {};
    key.netns = sock_inode(request);
    if (outside(key.netns))
        return 0;
    sock_key(request, &key);
    key.kind = SYNACK;
    note(&key, 1);
    return 0;
}

int on_send_reset(struct bpf_raw_tracepoint_args *ctx) {
    u64 sk = ctx->args[0], skb = ctx->args[1];
    struct again_key key = {};
    key.netns = sk ? sock_inode(sk) : skb ? skb_inode(skb, 0) : 0;
    if (outside(key.netns))
        return 0;
    if (sk)
        sock_key(sk, &key);
    key.kind = RST_SENT;
#if TP_ARGS_tcp_send_reset >= 3
    key.reason = (u32)ctx->args[2];
#endif
    note(&key, 1);
    return 0;
}

int on_receive_reset(struct bpf_raw_tracepoint_args *ctx) {
    u64 sk = ctx->args[0];
    struct again_key key = {};
    key.netns = sock_inode(sk);
    if (outside(key.netns))
        return 0;
    sock_key(sk, &key);
    key.kind = RST_RECEIVED;
    note(&key, 1);
    return 0;
}
