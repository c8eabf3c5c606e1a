/* What every program here uses. No kernel header is included: O_* are the offsets of this kernel's own structures, from
 * its BTF; TP_ARGS_<tracepoint> is how many arguments the tracepoint has here. Both are given on the command line.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 5, 0)
#define bpf_probe_read_kernel bpf_probe_read
#endif
#define READ(to, from, offset) bpf_probe_read_kernel(&(to), sizeof(to), (void *)((u64)(from) + (offset)))
#define BIG16(x) ((u16)((((u16)(x)) << 8) | (((u16)(x)) >> 8)))
#define IPV4 BIG16(0x0800)
#define IPV6 BIG16(0x86dd)
enum { UNKNOWN = 0, INGRESS = 1, EGRESS = 2 };

struct count {
    u64 packets;
    u64 bytes;
};

/* A probed function's first arguments, what it returns, and its stack pointer, which tells apart calls that are under way.
 * Nothing where the machine's registers aren't known: no probe is attached there. */
#ifdef O_REGS_DI
#define REGISTER(ctx, offset) (*(u64 *)((char *)(ctx) + (offset)))
#define ARG1(ctx) REGISTER(ctx, O_REGS_DI)
#define ARG2(ctx) REGISTER(ctx, O_REGS_SI)
#define RESULT(ctx) REGISTER(ctx, O_REGS_AX)
#define STACK(ctx) REGISTER(ctx, O_REGS_SP)
#else
#define ARG1(ctx) 0ULL
#define ARG2(ctx) 0ULL
#define RESULT(ctx) 0ULL
#define STACK(ctx) 0ULL
#endif

/* settings[0]: only these namespaces; lost[0]: not counted because a table was full. */
BPF_ARRAY(settings, u32, 1);
BPF_TABLE("hash", u32, u32, scope, 64);
BPF_PERCPU_ARRAY(lost, u64, 1);

static __always_inline void lose(void) {
    int zero = 0;
    u64 *number = lost.lookup(&zero);
    if (number)
        lock_xadd(number, 1);
}

static __always_inline int outside(u32 netns) {
    int zero = 0;
    u32 *only = settings.lookup(&zero);
    return only && *only && !scope.lookup(&netns);
}

/* Inode number of a struct net; 0 for what can't be one (a device pointer shares its place with other things). */
static __always_inline u32 net_inode(u64 net) {
    u32 inode = 0;
    if (net)
        READ(inode, net, O_NET_INODE);
    return inode >= 0xEFFFFFF0U ? inode : 0;
}

static __always_inline u32 sock_inode(u64 sk) {
    u64 net = 0;
    if (sk)
        READ(net, sk, O_SK_NET);
    return net_inode(net);
}

static __always_inline u32 skb_inode(u64 skb, u64 sk) {
    u64 device = 0, net = 0;
    u32 inode = 0;
    READ(device, skb, O_SKB_DEV);
    if (device) {
        READ(net, device, O_DEV_NET);
        inode = net_inode(net);
        if (inode)
            return inode;
    }
    if (!sk)
        READ(sk, skb, O_SKB_SK);
    return sock_inode(sk);
}
