/* NFS clients without a cache, in user space (libnfs): the best that NFS can do.
 *
 * Server 1 writes the number of the edit into a file and commits it to disk; five clients, each in its own namespace,
 * read the file over NFS every POLL_US microseconds. A sample ends when all five have read the number and the
 * writer has the server's word that it is on disk.
 *
 * nfs COUNT INTERVAL_MS POLL_US EXPORT NFS_VERSION PLACE...   the first place is the writer and the file server
 */
#include "common.h"

#include <nfsc/libnfs.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MOST_PLACES 64
#define PATIENCE (10 * SECOND)

struct sight {
    _Atomic uint64_t number, when;
};

static pid_t readers[MOST_PLACES];
static int reader_count;

static void end_readers(void) {
    for (int i = 0; i < reader_count; i++) {
        kill(readers[i], SIGKILL);
        waitpid(readers[i], NULL, 0);
    }
}

static struct nfs_context *mount_export(const struct place *place, const char *server, const char *export, int version) {
    enter(place);
    struct nfs_context *nfs = nfs_init_context();
    if (!nfs) die("libnfs does not start");
    nfs_set_version(nfs, version);
    nfs_set_autoreconnect(nfs, 0);
    nfs_set_timeout(nfs, 10000);
    errno = 0;
    if (nfs_mount(nfs, server, export) != 0) die("cannot mount %s:%s: %s", server, export, nfs_get_error(nfs));
    return nfs;
}

static void read_for_ever(struct nfs_context *nfs, uint64_t pause, struct sight *sight) {
    struct nfsfh *file;
    if (nfs_open(nfs, "/edit", O_RDONLY, &file) != 0) die("nfs open: %s", nfs_get_error(nfs));
    for (uint64_t next = now_ns();; next += pause) {
        uint64_t number = 0;
        if (nfs_pread(nfs, file, 0, sizeof number, &number) < 0) die("nfs read: %s", nfs_get_error(nfs));
        uint64_t now = now_ns();
        if (number != sight->number) {
            sight->when = now;
            sight->number = number;
        }
        if (next + pause < now) next = now;
        sleep_until(next + pause);
    }
}

static uint64_t wait_for_all(const struct sight *sights, int count, uint64_t number) {
    uint64_t last = 0, limit = now_ns() + PATIENCE;
    for (int i = 0; i < count; i++) {
        while (sights[i].number != number) {
            if (now_ns() > limit) die("a client did not see the edit within 10 s");
            usleep(200);
        }
        if (sights[i].when > last) last = sights[i].when;
    }
    return last;
}

int main(int argc, char **argv) {
    if (argc < 8 || argc > 6 + MOST_PLACES) die("nfs COUNT INTERVAL_MS POLL_US EXPORT NFS_VERSION PLACE...");
    uint64_t count = (uint64_t)number(argv[1], 1, 1000000), interval = (uint64_t)number(argv[2], 0, 60000) * MILLISECOND;
    uint64_t pause = (uint64_t)number(argv[3], 1, 1000000) * 1000;
    int version = (int)number(argv[5], 3, 4), others = argc - 7;
    struct place first = parse_place(argv[6]);
    struct sight *sights = mmap(NULL, sizeof *sights * MOST_PLACES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (sights == MAP_FAILED) die("mmap");

    struct nfs_context *nfs = mount_export(&first, first.address, argv[4], version);
    struct nfsfh *file;
    uint8_t edit[EDIT_BYTES] = {0};
    if (nfs_creat(nfs, "/edit", 0644, &file) != 0 || nfs_close(nfs, file) != 0 ||
        nfs_open(nfs, "/edit", O_RDWR, &file) != 0)
        die("nfs create: %s", nfs_get_error(nfs));
    if (nfs_pwrite(nfs, file, 0, sizeof edit, edit) != sizeof edit) die("nfs write: %s", nfs_get_error(nfs));
    atexit(end_readers);
    for (int i = 0; i < others; i++) {
        struct place place = parse_place(argv[7 + i]);
        pid_t child = fork();
        if (child < 0) die("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            reader_count = 0;
            read_for_ever(mount_export(&place, first.address, argv[4], version), pause, &sights[i]);
        }
        readers[reader_count++] = child;
    }

    for (uint64_t i = 1; i <= count + WARM_UP; i++) {
        memcpy(edit, &i, sizeof i);
        uint64_t start = now_ns();
        if (nfs_pwrite(nfs, file, 0, sizeof edit, edit) != sizeof edit || nfs_fsync(nfs, file) != 0)
            die("nfs write: %s", nfs_get_error(nfs));
        uint64_t committed = now_ns(), seen = wait_for_all(sights, others, i);
        uint64_t done = seen > committed ? seen : committed;
        if (i > WARM_UP) emit_sample(start, done); /* the first waits for the clients to mount */
        sleep_until(start + interval);
    }
    return 0;
}
