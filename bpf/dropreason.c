/* kfree_skb: every packet that the kernel throws away; what it merely has done with goes through consume_skb. */
struct drop_key {
    u64 location;
    u32 reason;
    u32 netns;
    u16 ethernet;
    u8 direction;
    u8 protocol;
    u32 empty;
};
BPF_TABLE("percpu_hash", struct drop_key, struct count, drops, 8192);

int on_kfree_skb(struct bpf_raw_tracepoint_args *ctx) {
    u64 skb = ctx->args[0], receiver = 0, sk = 0, head = 0;
    u32 length = 0, input = 0;
    u16 network = 0;
    struct drop_key key = {};
#if TP_ARGS_kfree_skb >= 3
    key.reason = (u32)ctx->args[2];
#endif
#if TP_ARGS_kfree_skb >= 4
    receiver = ctx->args[3];
#endif
    key.netns = skb_inode(skb, receiver);
    if (outside(key.netns))
        return 0;
    key.location = ctx->args[1];
    READ(length, skb, O_SKB_LEN);
    READ(input, skb, O_SKB_IIF);
    READ(sk, skb, O_SKB_SK);
    READ(key.ethernet, skb, O_SKB_PROTOCOL);
    key.direction = input ? INGRESS : sk ? EGRESS : UNKNOWN;
    key.empty = length == 0;
    READ(head, skb, O_SKB_HEAD);
    READ(network, skb, O_SKB_NETWORK);
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
