/* One AF_PACKET socket program for all plugins that look at every packet: one clone, one parse. It keeps nothing: it
 * returns 0, so that no packet is ever queued to the socket.
 */
#define VLAN BIG16(0x8100)
#define SERVICE_VLAN BIG16(0x88a8)
#define MOST_EXTENSIONS 6

/* Where what IPv6 carries begins, and in `protocol` what it is; 0 for a later fragment, which has no ports. RFC 8200, 4. */
static __always_inline u32 behind_extensions(struct __sk_buff *skb, u32 at, u8 *protocol) {
    u8 head[4] = {}, next = *protocol;
#pragma unroll
    for (int number = 0; number < MOST_EXTENSIONS; number++) {
        if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60 && next != 135)
            break;
        if (bpf_skb_load_bytes(skb, at, head, 4))
            return 0;
        if (next == 44 && (head[2] | (head[3] & 0xf8))) {
            *protocol = head[0];
            return 0;
        }
        at += next == 44 ? 8 : next == 51 ? (head[1] + 2) * 4 : (head[1] + 1) * 8;
        next = head[0];
    }
    *protocol = next;
    return at;
}

/* From the Ethernet type on: an IPv4 header without options and the ports behind it, with TCP's flags where they are asked
 * for. One call for nearly every packet.
 */
#ifdef WITH_packetparser
#define HEAD_BYTES 36
#else
#define HEAD_BYTES 26
#endif

int on_packet(struct __sk_buff *skb) {
    u32 direction = skb->pkt_type == 4 ? EGRESS : INGRESS, l3 = 14, l4 = 0, segments = 1, whole = 0;
    u32 ip_words[10] = {}, l4_words[4] = {};
    u8 *ip = (u8 *)ip_words + 4, *transport = (u8 *)l4_words; /* the addresses lie on a multiple of four */
    struct flow_key key = {};
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 1, 0)
    if (skb->gso_segs)
        segments = skb->gso_segs;
#endif
#ifdef WITH_packetforward
    packetforward(skb, direction, segments);
#endif
#if defined(WITH_packetparser) || defined(WITH_dns)
    u16 protocol = skb->protocol, ethernet = protocol;
    if (!bpf_skb_load_bytes(skb, 12, ip - 2, HEAD_BYTES)) {
        ethernet = *(u16 *)(ip - 2);
        whole = ip[0] == 0x45;
    } else if (!bpf_skb_load_bytes(skb, 12, ip - 2, 22)) {
        ethernet = *(u16 *)(ip - 2);
    } else {
        l3 = 0; /* less than an Ethernet and an IP header: if anything, IP without the former */
    }
    if (protocol == VLAN || protocol == SERVICE_VLAN) { /* what the kernel hasn't taken out of the packet */
        whole = 0;
#pragma unroll
        for (int tag = 0; tag < 2; tag++) {
            if (ethernet != VLAN && ethernet != SERVICE_VLAN)
                break;
            if (bpf_skb_load_bytes(skb, l3 + 2, &ethernet, 2))
                return 0;
            l3 += 4;
        }
        if (bpf_skb_load_bytes(skb, l3, ip, 20))
            return 0;
    } else if (!l3 || ethernet != protocol || (protocol == IPV4 && ip[0] >> 4 != 4)) {
        l3 = whole = 0; /* an interface without Ethernet headers: WireGuard, a tunnel, tun */
        ethernet = protocol;
        if (bpf_skb_load_bytes(skb, 0, ip, 20) || ip[0] >> 4 != (protocol == IPV4 ? 4 : 6))
            return 0;
    }
#ifdef WITH_dns
    /* Through memory, whose content the verifier doesn't follow: it would go through the rest for each way to come here. */
    *(volatile u32 *)&skb->cb[0] = l3;
    l3 = *(volatile u32 *)&skb->cb[0];
#endif
    if (ethernet == IPV4) {
        l4 = l3 + (ip[0] & 15) * 4;
        key.protocol = ip[9];
        key.source[0] = *(u32 *)(ip + 12);
        key.destination[0] = *(u32 *)(ip + 16);
        key.family = 4;
        if ((ip[6] & 0x1f) | ip[7])
            l4 = 0; /* a later fragment has no ports */
    } else if (ethernet == IPV6) {
        key.protocol = ip[6];
        key.family = 6;
        whole = 0;
#ifdef WITH_packetparser
        bpf_skb_load_bytes(skb, l3 + 8, key.addresses, 32);
#endif
        l4 = behind_extensions(skb, l3 + 40, &key.protocol);
    } else {
        return 0;
    }
    if (key.protocol != 6 && key.protocol != 17)
        l4 = 0;
    if (l4 && whole)
        transport = ip + 20;
    else if (l4 && bpf_skb_load_bytes(skb, l4, transport, key.protocol == 6 ? 14 : 4))
        l4 = 0;
    if (l4) {
        key.source_port = *(u16 *)transport;
        key.destination_port = *(u16 *)(transport + 2);
    }
    key.interface = skb->ifindex;
    key.direction = direction;
#ifdef WITH_packetparser
    packetparser(&key, segments, skb->len, transport[13]);
#endif
#ifdef WITH_dns
    if (l4 && (IS_DNS(key.source_port) || IS_DNS(key.destination_port))) {
        skb->cb[0] = l3 << 16 | l4;
        skb->cb[1] = (u32)key.family << 8 | key.protocol;
        dns_programs.call(skb, 0); /* doesn't return */
    }
#endif
#endif
    return 0;
}
