/* What the measuring clients share: the clock, a place (namespace and address), bounded waits, the output lines.
 *
 * Output, read by measure.py:
 *   sample START_NS DONE_NS        one edit, CLOCK_MONOTONIC
 *   rate COUNT NANOSECONDS         so many edits in so much time
 *   cpu NANOSECONDS                processor time this client used during the rate
 */
#ifndef RIG_COMMON_H
#define RIG_COMMON_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ULL
#define MILLISECOND 1000000ULL
#define EDIT_BYTES 200
#define WARM_UP 10 /* edits at the start of a latency measurement that are not reported */

struct place {
    char *namespace;
    char *address;
};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (error) fprintf(stderr, " (last system error: %s)", strerror(error));
    fputc('\n', stderr);
    exit(2);
}

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static inline void sleep_until(uint64_t when) {
    struct timespec t = {(time_t)(when / SECOND), (long)(when % SECOND)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {}
}

static inline uint64_t cpu_ns(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * SECOND +
           (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000;
}

static inline void emit_sample(uint64_t start, uint64_t done) {
    printf("sample %" PRIu64 " %" PRIu64 "\n", start, done);
    fflush(stdout);
}

static inline void emit_rate(uint64_t count, uint64_t elapsed, uint64_t cpu) {
    printf("rate %" PRIu64 " %" PRIu64 "\ncpu %" PRIu64 "\n", count, elapsed, cpu);
    fflush(stdout);
}

/* "p2pdb-1@10.77.0.1" */
static inline struct place parse_place(const char *text) {
    struct place place;
    place.namespace = strdup(text);
    char *at = strchr(place.namespace, '@');
    if (!at) die("'%s' is not NAMESPACE@ADDRESS", text);
    *at = 0;
    place.address = at + 1;
    return place;
}

/* Sockets made from now on belong to this namespace. */
static inline void enter(const struct place *place) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", place->namespace);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || setns(descriptor, CLONE_NEWNET) != 0) die("cannot enter network namespace %s", path);
    close(descriptor);
}

static inline long number(const char *text, long low, long high) {
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || value < low || value > high) die("'%s' is not a number from %ld to %ld", text, low, high);
    return value;
}

#endif
