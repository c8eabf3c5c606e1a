/* kfree_skb: every packet that the kernel throws away; what it merely has done with goes through consume_skb. */
struct drop_key {
    u64 location;
    u32 reason;
    u32 netns;
    u16 ethernet;
    u8 direction;
    u8 protocol;
    u8 empty;
    u8 detail; /* CONNTRACK, netfilter's family and hook; 0 where nothing is known */
    u16 unused;
};
BPF_TABLE("percpu_hash", struct drop_key, struct count, drops, 8192);

/* What netfilter was doing with an skb when it was seen last: its address but for the uppermost byte, which is the same for
 * all, and the detail. A few are in its hands at a time, so a place by address is as good as a hash, and a store is one write. */
#define HOOKED 16384
#define CONNTRACK 0x80
BPF_TABLE("array", u32, u64, hooked, HOOKED);
BPF_TABLE("hash", u64, u64, confirming, 1024);

static __always_inline u64 *place_of(u64 skb) {
    u32 at = (u32)(skb >> 6) & (HOOKED - 1);
    return hooked.lookup(&at);
}

static __always_inline void remember(u64 skb, u64 detail) {
    u64 *place = place_of(skb);
    if (place)
        *place = skb << 8 | detail;
}

static __always_inline u8 recall(u64 skb) {
    u64 *place = place_of(skb), known;
    if (!place)
        return 0;
    known = *place;
    if (known >> 8 != skb << 8 >> 8)
        return 0;
    *place = 0;
    return (u8)known;
}

static __always_inline u64 hook_of(u64 state) {
    u8 hook = 0, family = 0;
#ifdef O_STATE_HOOK
    READ(hook, state, O_STATE_HOOK);
    READ(family, state, O_STATE_FAMILY);
#endif
    return (family & 15) << 3 | (hook & 7);
}

/* nf_hook_slow(skb, state, ...), for every packet at every hook that has rules. */
int on_hook(void *ctx) {
    remember(ARG1(ctx), hook_of(ARG2(ctx)));
    return 0;
}

/* nf_hook_slow_list(head, state, ...): the compiler may have put nf_hook_slow into it. */
int on_hook_list(void *ctx) {
    u64 head = ARG1(ctx), at = head, detail = hook_of(ARG2(ctx));
    for (int n = 0; n < 64; n++) {
        u64 next = 0;
        READ(next, at, 0); /* sk_buff.list is its first member */
        if (!next || next == head)
            break;
        remember(next, detail);
        at = next;
    }
    return 0;
}

/* __nf_conntrack_confirm(skb), once a connection: NF_DROP when it couldn't be entered, which insert_failed counts. */
int on_confirm(void *ctx) {
    u64 stack = STACK(ctx), skb = ARG1(ctx);
    confirming.update(&stack, &skb);
    return 0;
}

int on_confirmed(void *ctx) {
    u64 stack = STACK(ctx) - 8, *skb = confirming.lookup(&stack);
    if (!skb) {
        stack += 8; /* whether the return address is still on the stack differs between kernels */
        skb = confirming.lookup(&stack);
    }
    if (!skb)
        return 0;
    if (((u32)RESULT(ctx) & 0xff) == 0)
        remember(*skb, recall(*skb) | CONNTRACK);
    confirming.delete(&stack);
    return 0;
}

/* What is asked of an skb, read at once: each read is a call, and they cost more than what they copy. */
#define LEAST(a, b) ((a) < (b) ? (a) : (b))
#define MOST(a, b) ((a) > (b) ? (a) : (b))
#define OF_SKB(what) what(O_SKB_SK, what(O_SKB_LEN, what(O_SKB_IIF, what(O_SKB_PROTOCOL, what(O_SKB_HEAD, O_SKB_NETWORK)))))
#define SKB_FROM (OF_SKB(LEAST) & ~7)
#define SKB_WORDS ((OF_SKB(MOST) + 8 - SKB_FROM + 7) / 8)
#define OF(words, type, offset) (*(type *)((u8 *)(words) + (offset)-SKB_FROM))

static __always_inline int count_drop(struct bpf_raw_tracepoint_args *ctx, u8 detail) {
    u64 receiver = 0, sk, head, words[SKB_WORDS];
    u32 length;
    u16 network;
    struct drop_key key = {};
#if TP_ARGS_kfree_skb >= 3
    key.reason = (u32)ctx->args[2];
#endif
#if TP_ARGS_kfree_skb >= 4
    receiver = ctx->args[3];
#endif
    key.netns = skb_inode(ctx->args[0], receiver);
    if (outside(key.netns))
        return 0;
    bpf_probe_read_kernel(words, sizeof(words), (void *)(ctx->args[0] + SKB_FROM));
    sk = OF(words, u64, O_SKB_SK);
    key.location = ctx->args[1];
    length = OF(words, u32, O_SKB_LEN);
    key.ethernet = OF(words, u16, O_SKB_PROTOCOL);
    key.direction = OF(words, u32, O_SKB_IIF) ? INGRESS : sk ? EGRESS : UNKNOWN;
    key.empty = length == 0;
    key.detail = detail;
    head = OF(words, u64, O_SKB_HEAD);
    network = OF(words, u16, O_SKB_NETWORK);
    if (network && network != 0xffff) {
        if (key.ethernet == IPV4)
            READ(key.protocol, head + network, 9);
        else if (key.ethernet == IPV6)
            READ(key.protocol, head + network, 6);
    }
    struct count nothing = {}, *found = drops.lookup_or_try_init(&key, &nothing);
    if (!found) {
        lose();
        return 0;
    }
    lock_xadd(&found->packets, 1);
    lock_xadd(&found->bytes, (u64)length);
    return 0;
}

int on_kfree_skb(struct bpf_raw_tracepoint_args *ctx) {
    return count_drop(ctx, 0);
}

/* In its place where a probe tells more. */
int on_kfree_skb_detailed(struct bpf_raw_tracepoint_args *ctx) {
    return count_drop(ctx, recall(ctx->args[0]));
}
