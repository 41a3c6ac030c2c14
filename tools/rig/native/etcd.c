/* A gRPC client for etcd, small enough not to show in the measurement: HTTP/2 by nghttp2, the few protobuf fields by hand.
 *
 * It holds the connections of all servers in one process and one epoll loop: puts go out from the first place, each
 * watcher's connection is made in its own namespace.
 *
 * etcd latency COUNT INTERVAL_MS PUTTER WATCHER...    one put at a time; a sample ends when every watcher has the event,
 *                                                     or with the answer when no watcher is named
 * etcd rate    COUNT WRITERS     PUTTER WATCHER...    WRITERS puts are kept under way, each writer waits for its answer;
 *                                                     the time ends when every watcher has the last event
 * PUTTER and WATCHER are PLACE=ENDPOINT: the namespace to connect from and the member's address to connect to.
 */
#include "common.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define PORT 2379
#define MOST_CONNECTIONS 64
#define GRPC_PREFIX 5
#define PATIENCE (20 * SECOND)
#define MOST_MESSAGE (1 << 20)

struct connection {
    int descriptor;
    bool watch_created;
    nghttp2_session *session;
    char *endpoint;
    uint64_t events;               /* watch events seen here */
    uint8_t message[MOST_MESSAGE]; /* the gRPC message being received on the watch stream */
    size_t message_size;
};

struct request {
    uint8_t body[512];
    size_t size, sent;
    bool keep_open;
    bool refused;
};

static struct connection *putter, *watchers[MOST_CONNECTIONS];
static int watcher_count, poller;
static uint64_t puts_started, puts_answered;
static long writers_wanted, puts_wanted;

/* --- protobuf, as much as is needed --- */

static uint64_t varint(const uint8_t **at, const uint8_t *end) {
    uint64_t value = 0;
    for (int shift = 0; *at < end && shift < 64; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return value;
    }
    die("etcd sent a malformed number");
}

static size_t put_bytes(uint8_t *to, int field, const void *bytes, size_t size) {
    size_t at = 0;
    to[at++] = (uint8_t)(field << 3 | 2);
    if (size >= 128) to[at++] = (uint8_t)(size & 0x7f) | 0x80;
    to[at++] = (uint8_t)(size >= 128 ? size >> 7 : size);
    memcpy(to + at, bytes, size);
    return at + size;
}

/* WatchResponse: created = 3, canceled = 4, events = 11 */
static void read_watch_response(struct connection *c, const uint8_t *at, size_t size) {
    const uint8_t *end = at + size;
    while (at < end) {
        uint64_t tag = varint(&at, end), value = varint(&at, end);
        if ((tag & 7) == 2) {
            if (value > (uint64_t)(end - at)) die("etcd sent a malformed watch response");
            at += value;
        }
        if (tag >> 3 == 11) c->events++;
        if (tag >> 3 == 3 && value) c->watch_created = true;
        if (tag >> 3 == 4 && value) die("etcd cancelled a watch");
    }
}

static void grpc_prefix(uint8_t *to, size_t size) {
    to[0] = 0;
    uint32_t network = htonl((uint32_t)size);
    memcpy(to + 1, &network, 4);
}

static void receive_messages(struct connection *c, const uint8_t *data, size_t size) {
    if (c->message_size + size > MOST_MESSAGE) die("etcd sent a message that is too long");
    memcpy(c->message + c->message_size, data, size);
    c->message_size += size;
    size_t used = 0;
    while (c->message_size - used >= GRPC_PREFIX) {
        uint32_t length;
        memcpy(&length, c->message + used + 1, 4);
        length = ntohl(length);
        if (c->message_size - used < GRPC_PREFIX + length) break;
        read_watch_response(c, c->message + used + GRPC_PREFIX, length);
        used += GRPC_PREFIX + length;
    }
    c->message_size -= used;
    memmove(c->message, c->message + used, c->message_size);
}

/* --- HTTP/2 --- */

static ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *to, size_t room, uint32_t *flags,
                         nghttp2_data_source *source, void *user) {
    (void)session, (void)stream, (void)user;
    struct request *request = source->ptr;
    size_t left = request->size - request->sent;
    if (left == 0 && request->keep_open) return NGHTTP2_ERR_DEFERRED;
    size_t size = left < room ? left : room;
    memcpy(to, request->body + request->sent, size);
    request->sent += size;
    if (request->sent == request->size && !request->keep_open) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)size;
}

#define HEADER(name, value) {(uint8_t *)(name), (uint8_t *)(value), strlen(name), strlen(value), 0}

static void submit(struct connection *c, const char *path, struct request *request) {
    nghttp2_nv headers[] = {
        HEADER(":method", "POST"),     HEADER(":scheme", "http"),
        HEADER(":path", path),         HEADER(":authority", c->endpoint),
        HEADER("te", "trailers"),      HEADER("content-type", "application/grpc"),
    };
    nghttp2_data_provider body = {.source.ptr = request, .read_callback = read_body};
    int32_t stream = nghttp2_submit_request(c->session, NULL, headers, 6, &body, request);
    if (stream < 0) die("cannot send to etcd: %s", nghttp2_strerror(stream));
}

static void flush(struct connection *c) {
    const uint8_t *data;
    ssize_t size;
    while ((size = nghttp2_session_mem_send(c->session, &data)) > 0) {
        for (ssize_t sent = 0; sent < size;) {
            ssize_t n = send(c->descriptor, data + sent, (size_t)(size - sent), MSG_NOSIGNAL);
            if (n <= 0) die("the connection to etcd at %s broke", c->endpoint);
            sent += n;
        }
    }
    if (size < 0) die("nghttp2: %s", nghttp2_strerror((int)size));
}

static void start_put(void) {
    struct request *request = calloc(1, sizeof *request);
    uint8_t value[EDIT_BYTES];
    char key[32];
    memset(value, 'x', sizeof value);
    int key_size = snprintf(key, sizeof key, "bench/%08" PRIu64, puts_started++ % 1000);
    size_t at = GRPC_PREFIX;
    at += put_bytes(request->body + at, 1, key, (size_t)key_size);
    at += put_bytes(request->body + at, 2, value, sizeof value);
    grpc_prefix(request->body, at - GRPC_PREFIX);
    request->size = at;
    submit(putter, "/etcdserverpb.KV/Put", request);
}

static void start_watch(struct connection *c) {
    struct request *request = calloc(1, sizeof *request);
    uint8_t create[64];
    size_t inner = put_bytes(create, 1, "bench/", 6);
    inner += put_bytes(create + inner, 2, "bench0", 6);
    size_t at = GRPC_PREFIX + put_bytes(request->body + GRPC_PREFIX, 1, create, inner);
    grpc_prefix(request->body, at - GRPC_PREFIX);
    request->size = at;
    request->keep_open = true;
    submit(c, "/etcdserverpb.Watch/Watch", request);
    flush(c);
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t size, void *user) {
    (void)session, (void)flags, (void)stream;
    if (user != putter) receive_messages(user, data, size);
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t value_size, uint8_t flags, void *user) {
    (void)flags, (void)user;
    bool is_status = name_size == 11 && !memcmp(name, "grpc-status", 11);
    struct request *request = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (is_status && !(value_size == 1 && *value == '0') && request) request->refused = true;
    return 0;
}

static int on_close(nghttp2_session *session, int32_t stream, uint32_t error, void *user) {
    struct request *request = nghttp2_session_get_stream_user_data(session, stream);
    if (user != putter) die("etcd ended a watch");
    if (error || !request || request->refused) die("etcd refused a put");
    free(request);
    puts_answered++;
    if (writers_wanted && (long)puts_started < puts_wanted) start_put();
    return 0;
}

static struct connection *connect_to(const char *text) {
    struct connection *c = calloc(1, sizeof *c);
    char *copy = strdup(text), *equals = strchr(copy, '=');
    if (!equals) die("'%s' is not PLACE=ENDPOINT", text);
    *equals = 0;
    struct place place = parse_place(copy);
    c->endpoint = equals + 1;
    enter(&place);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (inet_pton(AF_INET, c->endpoint, &to.sin_addr) != 1) die("'%s' is not an address", c->endpoint);
    int yes = 1;
    c->descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(c->descriptor, (struct sockaddr *)&to, sizeof to) != 0) die("cannot connect to etcd at %s", c->endpoint);
    setsockopt(c->descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);

    nghttp2_session_callbacks *callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_session_client_new(&c->session, callbacks, c);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_settings_entry window = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 24};
    nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, &window, 1);
    nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, 1 << 24);
    flush(c);

    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->descriptor, &event);
    return c;
}

static void receive(struct connection *c) {
    uint8_t buffer[65536];
    ssize_t size = recv(c->descriptor, buffer, sizeof buffer, 0);
    if (size <= 0) die("etcd at %s closed the connection", c->endpoint);
    ssize_t used = nghttp2_session_mem_recv(c->session, buffer, (size_t)size);
    if (used < 0) die("nghttp2: %s", nghttp2_strerror((int)used));
    flush(c);
}

/* --- the measurement --- */

static bool all_watching(void) {
    for (int i = 0; i < watcher_count; i++)
        if (!watchers[i]->watch_created) return false;
    return true;
}

static bool all_watchers_have_everything(void) {
    for (int i = 0; i < watcher_count; i++)
        if (watchers[i]->events < puts_started) return false;
    return true;
}

static bool everything_answered(void) { return puts_answered == puts_started; }

static void wait_for(bool (*reached)(void), const char *what) {
    struct epoll_event events[MOST_CONNECTIONS];
    for (uint64_t last = now_ns(); !reached();) {
        int count = epoll_wait(poller, events, MOST_CONNECTIONS, 1000);
        if (count > 0) last = now_ns();
        if (now_ns() - last > PATIENCE) die("etcd: waited too long for %s", what);
        for (int i = 0; i < count; i++) receive(events[i].data.ptr);
    }
}

static void measure_latency(long count, uint64_t interval) {
    for (long i = 0; i < count + WARM_UP; i++) {
        uint64_t start = now_ns();
        start_put();
        flush(putter);
        wait_for(watcher_count ? all_watchers_have_everything : everything_answered, "an event or answer");
        if (i >= WARM_UP) emit_sample(start, now_ns());
        wait_for(everything_answered, "an answer to a put");
        sleep_until(start + interval);
    }
}

static bool all_puts_everywhere(void) {
    return (long)puts_started == puts_wanted && everything_answered() && all_watchers_have_everything();
}

static void measure_rate(long count, long writers) {
    puts_wanted = count;
    writers_wanted = writers;
    uint64_t cpu = cpu_ns(), start = now_ns();
    for (long i = 0; i < writers && i < count; i++) start_put();
    flush(putter);
    wait_for(all_puts_everywhere, "the last event");
    emit_rate((uint64_t)count, now_ns() - start, cpu_ns() - cpu);
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 5 + MOST_CONNECTIONS) die("etcd latency|rate COUNT INTERVAL_MS|WRITERS PUTTER WATCHER...");
    long count = number(argv[2], 1, 10000000), third = number(argv[3], 0, 60000);
    poller = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 5; i < argc; i++) watchers[watcher_count++] = connect_to(argv[i]);
    putter = connect_to(argv[4]);
    for (int i = 0; i < watcher_count; i++) start_watch(watchers[i]);
    wait_for(all_watching, "the watches to be created");
    if (!strcmp(argv[1], "latency"))
        measure_latency(count, (uint64_t)third * MILLISECOND);
    else
        measure_rate(count, third);
    return 0;
}
