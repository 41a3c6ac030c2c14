/* The floor: what any system must at least do to make an edit durable on six servers.
 *
 * Server 1 appends 200 bytes to a file and calls fdatasync, then sends the bytes by UDP to the five others; each appends
 * them to a file of its own, calls fdatasync and answers. The sample ends when all five have answered.
 *
 * floor MODE COUNT INTERVAL_MS DIR PLACE...     the first place is server 1
 *   MODE chain    the whole of it, files grow by appending
 *        tell     the whole of it, but server 1 sends before it appends, so that all six sync at the same time
 *        ahead    the whole of it, files allocated and zero-filled ahead of time
 *        disk     only the append and fdatasync on server 1
 *        network  only the five round trips
 */
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define PORT 7700
#define MOST_PLACES 64

static bool use_disk, use_network, fill_ahead, tell_first;
static pid_t responders[MOST_PLACES];
static int responder_count;

static void end_responders(void) {
    for (int i = 0; i < responder_count; i++) {
        kill(responders[i], SIGKILL);
        waitpid(responders[i], NULL, 0);
    }
}

static int open_log(const char *directory, int server, long count) {
    char path[4096];
    snprintf(path, sizeof path, "%s/floor-%d", directory, server);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) die("cannot create %s", path);
    if (fill_ahead) {
        char zeros[EDIT_BYTES] = {0};
        for (long i = 0; i < count + WARM_UP; i++)
            if (write(file, zeros, sizeof zeros) != sizeof zeros) die("cannot fill %s", path);
        if (lseek(file, 0, SEEK_SET) != 0) die("cannot rewind %s", path);
    }
    if (fsync(file) != 0) die("fsync of %s", path);
    return file;
}

static void append(int file, const char *edit) {
    if (!use_disk) return;
    if (write(file, edit, EDIT_BYTES) != EDIT_BYTES || fdatasync(file) != 0) die("append and fdatasync failed");
}

static int open_socket(const struct place *place) {
    enter(place);
    int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    struct timeval limit = {.tv_sec = 10};
    if (inet_pton(AF_INET, place->address, &own.sin_addr) != 1) die("'%s' is not an address", place->address);
    if (descriptor < 0 || bind(descriptor, (struct sockaddr *)&own, sizeof own) != 0) die("bind %s", place->address);
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return descriptor;
}

static void respond(int descriptor, int file) {
    char edit[EDIT_BYTES];
    struct sockaddr_in from;
    for (;;) {
        socklen_t size = sizeof from;
        if (recvfrom(descriptor, edit, sizeof edit, 0, (struct sockaddr *)&from, &size) != EDIT_BYTES) continue;
        append(file, edit);
        sendto(descriptor, edit, 1, 0, (struct sockaddr *)&from, size);
    }
}

int main(int argc, char **argv) {
    if (argc < 7 || argc > 5 + MOST_PLACES) die("floor MODE COUNT INTERVAL_MS DIR PLACE...");
    const char *mode = argv[1];
    fill_ahead = !strcmp(mode, "ahead");
    tell_first = !strcmp(mode, "tell");
    use_disk = strcmp(mode, "network") != 0;
    use_network = strcmp(mode, "disk") != 0;
    long count = number(argv[2], 1, 1000000);
    uint64_t interval = (uint64_t)number(argv[3], 0, 60000) * MILLISECOND;
    int others = argc - 6;
    struct sockaddr_in peers[MOST_PLACES] = {0};
    atexit(end_responders);

    for (int i = 0; i < others; i++) {
        struct place place = parse_place(argv[6 + i]);
        peers[i].sin_family = AF_INET;
        peers[i].sin_port = htons(PORT);
        inet_pton(AF_INET, place.address, &peers[i].sin_addr);
        int descriptor = open_socket(&place), file = open_log(argv[4], i + 2, count);
        pid_t child = fork();
        if (child < 0) die("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            responder_count = 0;
            respond(descriptor, file);
        }
        close(descriptor);
        close(file);
        responders[responder_count++] = child;
    }

    struct place first = parse_place(argv[5]);
    int descriptor = open_socket(&first), file = open_log(argv[4], 1, count);
    char edit[EDIT_BYTES], answer;
    memset(edit, 'x', sizeof edit);
    for (long i = 0; i < count + WARM_UP; i++) {
        uint64_t start = now_ns();
        if (!tell_first) append(file, edit);
        if (use_network) {
            for (int p = 0; p < others; p++)
                sendto(descriptor, edit, sizeof edit, 0, (struct sockaddr *)&peers[p], sizeof peers[p]);
            if (tell_first) append(file, edit);
            for (int p = 0; p < others; p++)
                if (recv(descriptor, &answer, 1, 0) != 1) die("a server did not answer within 10 s");
        }
        uint64_t done = now_ns();
        if (i >= WARM_UP) emit_sample(start, done);
        sleep_until(start + interval);
    }
    return 0;
}
