/* A node whose clock is wrong: all nodes of a fleet share one kernel, so what reads its clock is told another time.
 *
 * Named by /etc/ld.so.preload on one node. Shifts clock_gettime(2), gettimeofday(2) and time(2) for every program there, and the
 * time stamps that tcpdump writes, which come from the kernel, on their way through libpcap's pcap_dump(3). By how much is in
 * CLOCK_FILE, /etc/clock, read each time: "SECONDS RATE SINCE" (real numbers): SECONDS, and RATE for each second since Unix
 * time SINCE.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef CLOCK_FILE
#define CLOCK_FILE "/etc/clock"
#endif

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static double real_now(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static long long shift_ns(double at) {
    char text[128] = "";
    int file = open(CLOCK_FILE, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    if (size <= 0) return 0;
    char *rest = text;
    double seconds = strtod(rest, &rest), rate = strtod(rest, &rest), since = strtod(rest, &rest);
    return llround((seconds + (rate != 0 && at > since ? rate * (at - since) : 0)) * 1e9);
}

static void shift(struct timespec *when) {
    long long ns = when->tv_nsec + shift_ns(when->tv_sec + when->tv_nsec / 1e9);
    long long seconds = ns / 1000000000;
    ns -= seconds * 1000000000;
    if (ns < 0) ns += 1000000000, seconds--;
    when->tv_sec += seconds;
    when->tv_nsec = ns;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = next("clock_gettime");
    int failed = real(which, now);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) shift(now);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = next("gettimeofday");
    int failed = real(now, zone);
    if (!failed) {
        struct timespec when = {now->tv_sec, now->tv_usec * 1000};
        shift(&when);
        now->tv_sec = when.tv_sec;
        now->tv_usec = when.tv_nsec / 1000;
    }
    return failed;
}

time_t time(time_t *out) {
    double now = real_now();
    time_t told = (time_t)floor(now + shift_ns(now) / 1e9);
    if (out) *out = told;
    return told;
}

void pcap_dump(unsigned char *file, const void *header, const unsigned char *packet) {
    static void (*real)(unsigned char *, const void *, const unsigned char *);
    if (!real) real = next("pcap_dump");
    /* struct pcap_pkthdr: a timeval, two 32-bit lengths (and, on some systems, a comment). */
    unsigned char copy[64];
    struct timeval stamp;
    memcpy(copy, header, sizeof stamp + 8);
    memcpy(&stamp, copy, sizeof stamp);
    struct timespec when = {stamp.tv_sec, stamp.tv_usec * 1000};
    shift(&when);
    stamp.tv_sec = when.tv_sec;
    stamp.tv_usec = when.tv_nsec / 1000;
    memcpy(copy, &stamp, sizeof stamp);
    real(file, copy, packet);
}
