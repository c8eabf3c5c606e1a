/* DNS requests and responses; part of the one socket program, bpf/packet.c. A message that is seen on several interfaces,
 * or going out and coming in, is one: the same ids, addresses and ports within DEDUP_NS. A resolver that asks again does
 * so after a second or more.
 */
#define DEDUP_NS 900000000ULL
struct dns_key {
    u16 qtype;
    u8 response;
    u8 rcode;
    u8 protocol;
    u8 pad[3];
};
struct dns_message {
    u32 asker[4];
    u32 server[4];
    u16 asker_port;
    u16 server_port;
    u16 id;
    u8 response;
    u8 protocol;
};
struct dns_slot {
    u32 slot; /* log2 of microseconds */
};
BPF_TABLE("percpu_hash", struct dns_key, struct count, dns_messages, 4096);
BPF_TABLE("lru_hash", struct dns_message, u64, dns_seen, 16384);
BPF_TABLE("lru_hash", struct dns_message, u64, dns_open, 16384);
BPF_TABLE("percpu_hash", struct dns_slot, struct count, dns_latency, 64);

static __always_inline void dns(struct __sk_buff *skb, struct flow_key *key, u32 l4, u8 data_offset) {
    u8 header[12] = {}, byte = 0;
    u32 at, whole = 0;
    u16 word = 0;
    struct dns_key found = {};
    struct dns_message message = {};
    u64 now, *seen;
    at = key->protocol == 17 ? l4 + 8 : l4 + (data_offset >> 4) * 4 + 2;
    if (skb->len <= at || bpf_skb_load_bytes(skb, at, header, 12))
        return;
    found.response = header[2] >> 7;
    found.rcode = found.response ? header[3] & 15 : 0;
    found.protocol = key->protocol;
    message.id = (u16)header[0] << 8 | header[1];
    message.response = found.response;
    message.protocol = key->protocol;
    if (found.response) {
        __builtin_memcpy(message.asker, key->destination, 16);
        __builtin_memcpy(message.server, key->source, 16);
        message.asker_port = key->destination_port;
        message.server_port = key->source_port;
    } else {
        __builtin_memcpy(message.asker, key->source, 16);
        __builtin_memcpy(message.server, key->destination, 16);
        message.asker_port = key->source_port;
        message.server_port = key->destination_port;
    }
    at += 12;
    if (header[4] | header[5]) {
#pragma unroll
        for (int label = 0; label < 40; label++) {
            if (bpf_skb_load_bytes(skb, at, &byte, 1))
                break;
            if (!byte) {
                whole = 1;
                break;
            }
            if (byte > 63)
                break;
            at += byte + 1;
        }
        if (whole && !bpf_skb_load_bytes(skb, at + 1, &word, 2))
            found.qtype = BIG16(word);
    }
    now = bpf_ktime_get_ns();
    seen = dns_seen.lookup(&message);
    if (seen && now - *seen <= DEDUP_NS) {
        *seen = now;
        return;
    }
    dns_seen.update(&message, &now);
    struct count nothing = {}, *sum = dns_messages.lookup_or_try_init(&found, &nothing);
    if (sum) {
        lock_xadd(&sum->packets, 1);
        lock_xadd(&sum->bytes, (u64)skb->len);
    } else {
        lose();
    }
    message.response = 0;
    if (!found.response) {
        dns_open.insert(&message, &now);
        return;
    }
    seen = dns_open.lookup(&message);
    if (seen) {
        u64 took = (now - *seen) / 1000;
        struct dns_slot slot = {};
        struct count none = {};
        slot.slot = bpf_log2l(took);
        sum = dns_latency.lookup_or_try_init(&slot, &none);
        if (sum) {
            lock_xadd(&sum->packets, 1);
            lock_xadd(&sum->bytes, took);
        }
        dns_open.delete(&message);
    }
}
