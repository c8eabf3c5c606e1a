"""Which member of which structure each O_* of the shipped programs stands for; where it lies, this kernel's BTF says."""

from __future__ import annotations

from typing import Dict

OFFSETS: Dict[str, str] = {
    "O_SKB_LEN": "sk_buff.len",
    "O_SKB_HEAD": "sk_buff.head",
    "O_SKB_NETWORK": "sk_buff.network_header",
    "O_SKB_TRANSPORT": "sk_buff.transport_header",
    "O_SKB_PROTOCOL": "sk_buff.protocol",
    "O_SKB_DEV": "sk_buff.dev",
    "O_SKB_SK": "sk_buff.sk",
    "O_SKB_IIF": "sk_buff.skb_iif",
    "O_SKB_CB": "sk_buff.cb",
    "O_DEV_INDEX": "net_device.ifindex",
    "O_DEV_NET": "net_device.nd_net.net",
    "O_NET_INODE": "net.ns.inum",
    "O_SK_FAMILY": "sock_common.skc_family",
    "O_SK_STATE": "sock_common.skc_state",
    "O_SK_NUM": "sock_common.skc_num",
    "O_SK_DPORT": "sock_common.skc_dport",
    "O_SK_LOCAL": "sock_common.skc_rcv_saddr",
    "O_SK_REMOTE": "sock_common.skc_daddr",
    "O_SK_V6_LOCAL": "sock_common.skc_v6_rcv_saddr",
    "O_SK_V6_REMOTE": "sock_common.skc_v6_daddr",
    "O_SK_NET": "sock_common.skc_net.net",
    "O_SK_ERR": "sock.sk_err",
    "O_SK_HASH": "sock_common.skc_hash",
    "O_TCP_SRTT": "tcp_sock.srtt_us",
    "O_REQUEST_SYNACK": "tcp_request_sock.snt_synack",
    "O_STATE_HOOK": "nf_hook_state.hook",
    "O_STATE_FAMILY": "nf_hook_state.pf",
    "O_REGS_DI": "pt_regs.di",
    "O_REGS_SI": "pt_regs.si",
    "O_REGS_AX": "pt_regs.ax",
    "O_REGS_SP": "pt_regs.sp",
    "O_TCB_FLAGS": "tcp_skb_cb.tcp_flags",
    "O_TCB_SEGMENTS": "tcp_skb_cb.tcp_gso_segs",
}
