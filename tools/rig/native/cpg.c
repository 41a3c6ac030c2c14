/* Corosync's closed process groups: totally ordered messages to all members, in memory only.
 *
 * One process joins the group once on every server (the control socket of each corosync is reached through its network
 * namespace), so one poll loop sees every delivery.
 *
 * cpg latency COUNT INTERVAL_MS PLACE...   a sample ends when the five others have delivered the message
 * cpg rate    COUNT WRITERS     PLACE...   WRITERS messages are kept under way; a writer sends its next message when
 *                                          all five others have delivered its last
 */
#include "common.h"

#include <corosync/corotypes.h>
#include <corosync/cpg.h>
#include <poll.h>
#include <sys/uio.h>

#define MOST_PLACES 64
#define PATIENCE_MS 10000

static cpg_handle_t handles[MOST_PLACES];
static struct pollfd waits[MOST_PLACES];
static uint64_t delivered[MOST_PLACES];
static size_t members[MOST_PLACES];
static int places;

static size_t index_of(cpg_handle_t handle) {
    void *context;
    cpg_context_get(handle, &context);
    return (size_t)context;
}

static void on_deliver(cpg_handle_t handle, const struct cpg_name *group, uint32_t node, uint32_t pid, void *message,
                       size_t size) {
    (void)group, (void)node, (void)pid, (void)message;
    if (size == EDIT_BYTES) delivered[index_of(handle)]++;
}

static void on_change(cpg_handle_t handle, const struct cpg_name *group, const struct cpg_address *now, size_t count,
                      const struct cpg_address *left, size_t left_count, const struct cpg_address *joined,
                      size_t joined_count) {
    (void)group, (void)now, (void)left, (void)left_count, (void)joined, (void)joined_count;
    members[index_of(handle)] = count;
}

static void join(const struct place *place, size_t index) {
    cpg_callbacks_t callbacks = {.cpg_deliver_fn = on_deliver, .cpg_confchg_fn = on_change};
    struct cpg_name group = {.length = 5, .value = "bench"};
    enter(place);
    cs_error_t error = cpg_initialize(&handles[index], &callbacks);
    if (error != CS_OK) die("no corosync answers in %s (error %d)", place->namespace, error);
    cpg_context_set(handles[index], (void *)index);
    for (int tries = 0; (error = cpg_join(handles[index], &group)) == CS_ERR_TRY_AGAIN && tries < 1000; tries++)
        usleep(10000);
    if (error != CS_OK) die("cannot join the group in %s (error %d)", place->namespace, error);
    cpg_fd_get(handles[index], &waits[index].fd);
    waits[index].events = POLLIN;
}

static void dispatch(const char *what) {
    if (poll(waits, (nfds_t)places, PATIENCE_MS) <= 0) die("corosync: waited too long for %s", what);
    for (int i = 0; i < places; i++)
        if (waits[i].revents && cpg_dispatch(handles[i], CS_DISPATCH_ALL) != CS_OK) die("corosync went away");
}

static bool send_one(void) {
    static char edit[EDIT_BYTES];
    struct iovec part = {edit, sizeof edit};
    cs_error_t error = cpg_mcast_joined(handles[0], CPG_TYPE_AGREED, &part, 1);
    if (error != CS_OK && error != CS_ERR_TRY_AGAIN) die("corosync refused a message (error %d)", error);
    return error == CS_OK;
}

/* The number of messages every other server has. */
static uint64_t everywhere(void) {
    uint64_t least = UINT64_MAX;
    for (int i = 1; i < places; i++)
        if (delivered[i] < least) least = delivered[i];
    return least;
}

static bool complete(void) {
    for (int i = 0; i < places; i++)
        if (members[i] != (size_t)places) return false;
    return true;
}

static void measure_latency(uint64_t count, uint64_t interval) {
    for (uint64_t i = 1; i <= count + WARM_UP; i++) {
        uint64_t start = now_ns();
        while (!send_one()) dispatch("room for a message");
        while (everywhere() < i) dispatch("a message");
        if (i > WARM_UP) emit_sample(start, now_ns());
        sleep_until(start + interval);
    }
}

static void measure_rate(uint64_t count, uint64_t writers) {
    uint64_t sent = 0, cpu = cpu_ns(), start = now_ns();
    while (everywhere() < count) {
        while (sent < count && sent - everywhere() < writers && send_one()) sent++;
        dispatch("a message");
    }
    emit_rate(count, now_ns() - start, cpu_ns() - cpu);
}

int main(int argc, char **argv) {
    if (argc < 6 || argc > 4 + MOST_PLACES) die("cpg latency|rate COUNT INTERVAL_MS|WRITERS PLACE...");
    uint64_t count = (uint64_t)number(argv[2], 1, 10000000), third = (uint64_t)number(argv[3], 0, 60000);
    places = argc - 4;
    for (int i = 0; i < places; i++) {
        struct place place = parse_place(argv[4 + i]);
        join(&place, (size_t)i);
    }
    while (!complete()) dispatch("all members to join the group");
    if (!strcmp(argv[1], "latency"))
        measure_latency(count, third * MILLISECOND);
    else
        measure_rate(count, third);
    return 0;
}
