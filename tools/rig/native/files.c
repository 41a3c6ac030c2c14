/* Saves a plain file in one folder and waits until all other folders hold the same line.
 *
 * The folders of all servers are on this machine, so one process saves and watches. It sleeps in inotify, or, for
 * folders inotify cannot see into (NFS), looks every POLL_US microseconds.
 *
 * files COUNT GAP_MS POLL_US FILE FOLDER...   POLL_US 0 means inotify; the edit happens in the first folder; the
 *                                             next edit follows one to two GAP_MS after all folders have the
 *                                             last (by chance, so that no timer of the system is kept in step)
 * A save is: open for append, one line, close. The line is a record with a key of its own. The first save is for warming
 * up and is not reported.
 */
#include "common.h"

#include <limits.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#define MOST_FOLDERS 64
#define PATIENCE (120 * SECOND)
#define TAIL 4096

static char paths[MOST_FOLDERS][4096];
static bool seen[MOST_FOLDERS];
static int folders, notifier = -1;

static void save(const char *line) {
    int file = open(paths[0], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    size_t size = strlen(line);
    if (file < 0 || write(file, line, size) != (ssize_t)size || close(file) != 0) die("cannot save %s", paths[0]);
}

/* Records may be kept in any order, so the whole file is searched; only what a first look at its end does not find. */
static bool holds(const char *path, const char *line) {
    static char content[1 << 20];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return false;
    off_t size = lseek(file, 0, SEEK_END);
    off_t from = size > TAIL ? size - TAIL : 0;
    ssize_t got = pread(file, content, TAIL, from);
    bool found = got > 0 && memmem(content, (size_t)got, line, strlen(line));
    if (!found && from > 0) {
        got = pread(file, content, sizeof content, 0);
        found = got > 0 && memmem(content, (size_t)got, line, strlen(line));
    }
    close(file);
    return found;
}

static bool all_hold(const char *line) {
    bool all = true;
    for (int i = 1; i < folders; i++) {
        if (!seen[i]) seen[i] = holds(paths[i], line);
        all = all && seen[i];
    }
    return all;
}

static void wait_for_change(uint64_t pause) {
    if (pause) {
        sleep_until(now_ns() + pause);
        return;
    }
    char events[65536];
    struct pollfd wait = {.fd = notifier, .events = POLLIN};
    /* The bound repairs a change that happened between two watches. */
    if (poll(&wait, 1, 100) > 0 && read(notifier, events, sizeof events) < 0 && errno != EAGAIN) die("inotify");
}

static void watch_folders(char **names) {
    notifier = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    for (int i = 1; i < folders; i++)
        if (inotify_add_watch(notifier, names[i], IN_CLOSE_WRITE | IN_MODIFY | IN_MOVED_TO) < 0)
            die("cannot watch %s", names[i]);
}

int main(int argc, char **argv) {
    if (argc < 7 || argc > 5 + MOST_FOLDERS) die("files COUNT GAP_MS POLL_US FILE FOLDER...");
    long count = number(argv[1], 1, 100000);
    uint64_t gap = (uint64_t)number(argv[2], 0, 60000) * MILLISECOND;
    uint64_t pause = (uint64_t)number(argv[3], 0, 1000000) * 1000, run = now_ns();
    folders = argc - 5;
    for (int i = 0; i < folders; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", argv[5 + i], argv[4]);
    if (!pause) watch_folders(argv + 5);

    for (long i = 0; i <= count; i++) {
        char line[128];
        snprintf(line, sizeof line, "k%" PRIu64 "-%ld, a line of a management file\n", run, i);
        memset(seen, 0, sizeof seen);
        uint64_t start = now_ns();
        save(line);
        while (!all_hold(line)) {
            if (now_ns() - start > PATIENCE) die("edit %ld of %s did not reach all folders within 120 s", i, paths[0]);
            wait_for_change(pause);
        }
        uint64_t done = now_ns();
        if (i > 0) emit_sample(start, done);
        sleep_until(done + gap + gap * ((uint64_t)random() % 1000) / 1000);
    }
    return 0;
}
