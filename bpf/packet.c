/* One AF_PACKET socket program for all plugins that look at every packet: one clone, one parse. It keeps nothing: it
 * returns 0, so that no packet is ever queued to the socket.
 */
int on_packet(struct __sk_buff *skb) {
    u32 direction = skb->pkt_type == 4 ? EGRESS : INGRESS, l4 = 0, segments = 1;
    u32 ip_words[6] = {}, l4_words[4] = {};
    u8 *ip = (u8 *)ip_words + 2, *transport = (u8 *)l4_words; /* the addresses lie on a multiple of four */
    struct flow_key key = {};
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 1, 0)
    if (skb->gso_segs)
        segments = skb->gso_segs;
#endif
#ifdef WITH_packetforward
    packetforward(skb, direction, segments);
#endif
#if defined(WITH_packetparser) || defined(WITH_dns)
    if (bpf_skb_load_bytes(skb, 12, ip, 22))
        return 0;
    u16 ethernet = *(u16 *)ip;
    if (ethernet == IPV4) {
        l4 = 14 + (ip[2] & 15) * 4;
        key.protocol = ip[11];
        key.source[0] = *(u32 *)(ip + 14);
        key.destination[0] = *(u32 *)(ip + 18);
        key.family = 4;
        if ((ip[8] & 0x1f) | ip[9])
            l4 = 0; /* a later fragment has no ports */
    } else if (ethernet == IPV6) {
        l4 = 54;
        key.protocol = ip[8];
        key.family = 6;
        bpf_skb_load_bytes(skb, 22, key.source, 16);
        bpf_skb_load_bytes(skb, 38, key.destination, 16);
    } else {
        return 0;
    }
    if (l4 && key.protocol == 6) {
        if (bpf_skb_load_bytes(skb, l4, transport, 14))
            l4 = 0;
    } else if (l4 && key.protocol == 17) {
        if (bpf_skb_load_bytes(skb, l4, transport, 4))
            l4 = 0;
    } else {
        l4 = 0;
    }
    if (l4) {
        key.source_port = *(u16 *)transport;
        key.destination_port = *(u16 *)(transport + 2);
    }
    key.interface = skb->ifindex;
    key.direction = direction;
#ifdef WITH_dns
    if (l4 && (IS_DNS(key.source_port) || IS_DNS(key.destination_port)))
        dns(skb, &key, l4, transport[12]);
#endif
#ifdef WITH_packetparser
    packetparser(&key, segments, skb->len, transport[13]);
#endif
#endif
    return 0;
}
