/* A node whose clock is wrong: all nodes of a fleet share one kernel, so what reads its clock is told another time.
 *
 * Named by /etc/ld.so.preload on one node. Shifts clock_gettime(2), gettimeofday(2) and time(2) for every program there, and the
 * time stamps that tcpdump writes, which come from the kernel, on their way through libpcap's pcap_dump(3).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

struct pcap_pkthdr_start {
    struct timeval ts;
};

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = next("clock_gettime");
    int failed = real(which, now);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += OFFSET_S;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = next("gettimeofday");
    int failed = real(now, zone);
    if (!failed && now) now->tv_sec += OFFSET_S;
    return failed;
}

time_t time(time_t *out) {
    static time_t (*real)(time_t *);
    if (!real) real = next("time");
    time_t now = real(0) + OFFSET_S;
    if (out) *out = now;
    return now;
}

void pcap_dump(unsigned char *file, const void *header, const unsigned char *packet) {
    static void (*real)(unsigned char *, const void *, const unsigned char *);
    if (!real) real = next("pcap_dump");
    unsigned char copy[64];
    /* struct pcap_pkthdr: a timeval, two 32-bit lengths (and, on some systems, a comment). */
    __builtin_memcpy(copy, header, sizeof(struct timeval) + 8);
    ((struct pcap_pkthdr_start *)copy)->ts.tv_sec += OFFSET_S;
    real(file, copy, packet);
}
