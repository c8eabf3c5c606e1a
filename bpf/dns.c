/* DNS requests and responses. The one socket program, bpf/packet.c, tail-calls on_dns with what has a port of DNS: one
 * packet in many, so that its size costs the others nothing. A datagram that is seen on several interfaces, or going out
 * and coming in, is one: the same id, addresses and ports within DEDUP_NS. A resolver that asks again does so after a
 * second or more.
 *
 * Over TCP each message follows its length (RFC 7766, 8). Where the next one begins is kept by connection and direction, as
 * a sequence number: so messages are found wherever they begin in a segment, and none twice, however often it is seen or
 * sent again. What can't be read in one piece is counted by why, and the messages behind it are found all the same.
 */
#define DEDUP_NS 900000000ULL
#define MOST_LABELS 128   /* a name has 255 bytes at most */
#define FARTHEST (1 << 24) /* from a sequence number of the same connection */
#define HEADER 12
enum { SPLIT = 1, GAP = 2, UNFRAMED = 3, MALFORMED = 4, CROWDED = 5 };
enum { PREFIX = 0, PREFIX_END = 1, BODY = 2 };
struct dns_key {
    u16 qtype;
    u8 response;
    u8 rcode;
    u8 protocol;
    u8 asked; /* whether it has a question */
    u8 pad[2];
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
struct dns_unread {
    u8 why;
    u8 protocol;
    u8 pad[6];
};
struct dns_ends {
    u32 source[4];
    u32 destination[4];
    u16 source_port;
    u16 destination_port;
};
struct dns_stream {
    u32 begun; /* sequence number of the first byte; 0 for a connection that was there before */
    u32 next;  /* that of the next length, of its second byte, or of what follows it, by `at` */
    u16 length;
    u8 at;
    u8 unsure; /* whether a message begins at `next` isn't known */
};
BPF_TABLE("percpu_hash", struct dns_key, struct count, dns_messages, 4096);
BPF_TABLE("lru_hash", struct dns_message, u64, dns_seen, 16384);
BPF_TABLE("lru_hash", struct dns_message, u64, dns_open, 16384);
BPF_TABLE("percpu_hash", struct dns_slot, struct count, dns_latency, 64);
BPF_TABLE("percpu_hash", struct dns_unread, u64, dns_undecoded, 64);
BPF_TABLE("lru_hash", struct dns_ends, struct dns_stream, dns_streams, 16384);
BPF_TABLE("prog", u32, u32, dns_programs, 1);

static __always_inline void undecoded(u8 why, u8 protocol) {
    struct dns_unread key = {};
    u64 nothing = 0, *number;
    key.why = why;
    key.protocol = protocol;
    number = dns_undecoded.lookup_or_try_init(&key, &nothing);
    if (number)
        lock_xadd(number, 1);
    else
        lose();
}

/* Where the next message of this segment begins, or 0; how long it is, and where the segment ends. */
static __always_inline u32 next_message(struct __sk_buff *skb, struct dns_ends *ends, u32 l3, u32 l4, u32 family, u32 *length, u32 *end) {
    u32 words[4] = {}, at, sequence;
    u8 *tcp = (u8 *)words, bytes[2] = {};
    u16 total = 0;
    s32 ahead;
    struct dns_stream *stream, fresh = {};
    if (bpf_skb_load_bytes(skb, l4, tcp, 14))
        return 0;
    /* Not skb->len: a small frame is padded. A length of 0 is a jumbogram's. */
    bpf_skb_load_bytes(skb, l3 + (family == 6 ? 4 : 2), &total, 2);
    *end = total ? l3 + BIG16(total) + (family == 6 ? 40 : 0) : skb->len;
    if (*end > skb->len)
        *end = skb->len;
    at = l4 + (tcp[12] >> 4) * 4;
    sequence = __builtin_bswap32(words[1]);
    stream = dns_streams.lookup(ends);
    if (tcp[13] & 2) {
        sequence++;
        if (!stream || stream->begun != sequence) {
            fresh.begun = fresh.next = sequence;
            dns_streams.update(ends, &fresh);
            stream = dns_streams.lookup(ends);
        }
    }
    if (at >= *end)
        return 0;
    if (!stream) {
        fresh.next = sequence;
        fresh.unsure = 1;
        dns_streams.update(ends, &fresh);
        stream = dns_streams.lookup(ends);
    }
    if (!stream) {
        lose();
        return 0;
    }
    ahead = (s32)(stream->next - sequence);
    if (ahead < 0 || ahead > FARTHEST) {
        if (!stream->unsure)
            undecoded(GAP, 6);
        stream->next = sequence;
        stream->unsure = 1;
        stream->at = PREFIX;
        ahead = 0;
    }
    at += ahead;
    if (at >= *end)
        return 0;
    if (stream->at == BODY) {
        *length = stream->length;
    } else if (stream->at == PREFIX && at + 1 == *end) {
        if (bpf_skb_load_bytes(skb, at, bytes, 1))
            return 0;
        stream->length = (u16)bytes[0] << 8;
        stream->at = PREFIX_END;
        stream->next++;
        return 0;
    } else if (stream->at == PREFIX) {
        if (bpf_skb_load_bytes(skb, at, bytes, 2))
            return 0;
        *length = (u32)bytes[0] << 8 | bytes[1];
        at += 2;
        stream->next += 2;
    } else {
        if (bpf_skb_load_bytes(skb, at, bytes, 1))
            return 0;
        *length = stream->length | bytes[0];
        at += 1;
        stream->next += 1;
    }
    if (at == *end) {
        stream->length = *length;
        stream->at = BODY;
        return 0;
    }
    stream->at = PREFIX;
    if (stream->unsure) {
        /* A message's header has few questions, a known opcode, and a bit that is zero. */
        if (*length < HEADER || at + HEADER > *end || bpf_skb_load_bytes(skb, at, words, 8) ||
            (tcp[2] >> 3 & 15) > 6 || tcp[3] & 0x40 || tcp[4] || tcp[5] > 1) {
            undecoded(UNFRAMED, 6);
            stream->next += *end - at;
            return 0;
        }
        stream->unsure = 0;
    }
    stream->next += *length;
    return at;
}

/* Count a message that begins at `at` and has that length, as far as `end`. */
static __always_inline void decode(struct __sk_buff *skb, struct dns_ends *ends, u8 protocol, u32 at, u32 length, u32 end) {
    u8 header[HEADER] = {}, byte = 0;
    u32 stop = at + length, split = stop > end;
    u16 word = 0;
    struct dns_key found = {};
    struct dns_message message = {};
    struct dns_slot slot = {};
    struct count nothing = {}, *sum;
    u64 now, *seen;
    if (split)
        stop = end;
    if (at + HEADER > stop || bpf_skb_load_bytes(skb, at, header, HEADER)) {
        undecoded(split ? SPLIT : MALFORMED, protocol);
        return;
    }
    at += HEADER;
    if (header[4] | header[5]) {
        u32 label = 0;
#pragma clang loop unroll(disable)
        for (; label < MOST_LABELS; label++) {
            if (at + 5 > stop || bpf_skb_load_bytes(skb, at, &byte, 1) || byte > 63)
                break;
            at++;
            if (!byte) {
                found.asked = 1;
                break;
            }
            at += byte;
        }
        if (!found.asked || bpf_skb_load_bytes(skb, at, &word, 2)) {
            undecoded(split && byte <= 63 && label < MOST_LABELS ? SPLIT : MALFORMED, protocol);
            return;
        }
        found.qtype = BIG16(word);
    }
    found.response = header[2] >> 7;
    found.rcode = found.response ? header[3] & 15 : 0;
    found.protocol = protocol;
    message.id = (u16)header[0] << 8 | header[1];
    message.response = found.response;
    message.protocol = protocol;
    if (found.response) {
        __builtin_memcpy(message.asker, ends->destination, 16);
        __builtin_memcpy(message.server, ends->source, 16);
        message.asker_port = ends->destination_port;
        message.server_port = ends->source_port;
    } else {
        __builtin_memcpy(message.asker, ends->source, 16);
        __builtin_memcpy(message.server, ends->destination, 16);
        message.asker_port = ends->source_port;
        message.server_port = ends->destination_port;
    }
    now = bpf_ktime_get_ns();
    if (protocol == 17) {
        seen = dns_seen.lookup(&message);
        if (seen && now - *seen <= DEDUP_NS) {
            *seen = now;
            return;
        }
        dns_seen.update(&message, &now);
    }
    sum = dns_messages.lookup_or_try_init(&found, &nothing);
    if (sum) {
        lock_xadd(&sum->packets, 1);
        lock_xadd(&sum->bytes, (u64)length);
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
        slot.slot = bpf_log2l(took);
        sum = dns_latency.lookup_or_try_init(&slot, &nothing);
        if (sum) {
            lock_xadd(&sum->packets, 1);
            lock_xadd(&sum->bytes, took);
        }
        dns_open.delete(&message);
    }
}

/* skb->cb[0] says where the IP header (upper half) and what it carries begin, cb[1] the IP version and the protocol. Calls
 * itself for each further message of a segment.
 */
int on_dns(struct __sk_buff *skb) {
    u32 l3 = skb->cb[0] >> 16, l4 = skb->cb[0] & 0xffff, family = skb->cb[1] >> 8, at, end = 0, length = 0;
    u8 protocol = skb->cb[1];
    u16 size = 0;
    struct dns_ends ends = {};
    struct dns_stream *stream;
    if (family == 6) {
        bpf_skb_load_bytes(skb, l3 + 8, ends.source, 32);
    } else {
        bpf_skb_load_bytes(skb, l3 + 12, ends.source, 4);
        bpf_skb_load_bytes(skb, l3 + 16, ends.destination, 4);
    }
    if (bpf_skb_load_bytes(skb, l4, &ends.source_port, 4))
        return 0;
    if (protocol == 17) {
        if (bpf_skb_load_bytes(skb, l4 + 4, &size, 2))
            return 0;
        at = l4 + 8;
        length = BIG16(size) < 8 ? 0 : BIG16(size) - 8;
        end = skb->len;
    } else {
        at = next_message(skb, &ends, l3, l4, family, &length, &end);
    }
    if (!at)
        return 0;
    decode(skb, &ends, protocol, at, length, end);
    if (protocol == 17 || at + length >= end)
        return 0;
    dns_programs.call(skb, 0);
    /* Refused: so many messages that the kernel allows no further call. */
    undecoded(CROWDED, protocol);
    stream = dns_streams.lookup(&ends);
    if (stream) {
        stream->next += end - at - length;
        stream->unsure = 1;
    }
    return 0;
}
