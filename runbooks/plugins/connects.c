/* Who opens TCP connections, and to which port: counted when connect(2) sends its SYN, in the caller's own context. */
struct call {
    char program[16];
    u16 port; /* big-endian */
    u16 family;
};
BPF_TABLE("percpu_hash", struct call, u64, calls, 4096);

int on_set_state(struct bpf_raw_tracepoint_args *ctx) {
    u64 sk = ctx->args[0], nothing = 0, *number;
    struct call key = {};
    if ((int)ctx->args[1] != 7 || (int)ctx->args[2] != 2) /* from TCP_CLOSE to TCP_SYN_SENT */
        return 0;
    if (outside(sock_inode(sk))) /* another network namespace than the runbook asks for */
        return 0;
    bpf_get_current_comm(&key.program, sizeof(key.program));
    READ(key.port, sk, O_SK_DPORT);
    READ(key.family, sk, O_SK_FAMILY);
    number = calls.lookup_or_try_init(&key, &nothing);
    if (number)
        lock_xadd(number, 1);
    else
        lose(); /* the table is full: told in the archive, and part of its verdict */
    return 0;
}
