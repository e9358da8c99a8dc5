/*
 * * A vhost-user vsock device on QEMU's libvhost-user, as a peer for the driver of `vsock.Guest`: every port of CID 2 accepts
 * connections and echoes. Virtqueues, memory and messages are handled by the library; the packets are those of virtio 1.2,
 * section 5.10. It is for tests only: one front end, a few connections, and no protection from a hostile guest.
 *
 *     echo_device SOCKET CID
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "libvhost-user.h"
#include "standard-headers/linux/virtio_config.h"

enum { RX, TX, EVENT, QUEUES };
enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };

struct header {
    uint64_t src_cid, dst_cid;
    uint32_t src_port, dst_port, len;
    uint16_t type, op;
    uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

#define BUFFER (256 * 1024)
#define CONNECTIONS 64
#define ANSWERS 256

struct connection {
    int is_open;
    uint32_t ours, theirs;             /* ports */
    uint32_t sent, echoed;             /* bytes, free-running; echoed is our fwd_cnt */
    uint32_t peer_alloc, peer_fwd;
    int ends;                          /* they send no more: RST when all is echoed */
    size_t start, held;
    char data[BUFFER];
};

static VuDev dev;
static uint64_t guest_cid;
static struct connection connections[CONNECTIONS];
static struct header answers[ANSWERS];  /* packets without data that wait for a buffer */
static unsigned first_answer, last_answer;
static struct { int fd; vu_watch_cb call; void *data; } watches[64];
static int watch_count, is_over;

static size_t copy(struct iovec *iov, unsigned count, size_t skip, void *bytes, size_t len, int to_iov)
{
    size_t done = 0;
    for (unsigned i = 0; i < count && done < len; i++) {
        size_t room = iov[i].iov_len;
        if (skip >= room) {
            skip -= room;
            continue;
        }
        size_t part = room - skip < len - done ? room - skip : len - done;
        char *place = (char *)iov[i].iov_base + skip;
        if (to_iov)
            memcpy(place, (char *)bytes + done, part);
        else
            memcpy((char *)bytes + done, place, part);
        done += part;
        skip = 0;
    }
    return done;
}

static size_t total(struct iovec *iov, unsigned count)
{
    size_t sum = 0;
    for (unsigned i = 0; i < count; i++)
        sum += iov[i].iov_len;
    return sum;
}

static struct connection *find(uint32_t ours, uint32_t theirs, int add)
{
    struct connection *empty = NULL;
    for (int i = 0; i < CONNECTIONS; i++) {
        struct connection *c = &connections[i];
        if (c->is_open && c->ours == ours && c->theirs == theirs)
            return c;
        if (!c->is_open)
            empty = c;
    }
    if (!add || !empty)
        return NULL;
    memset(empty, 0, sizeof *empty);
    empty->is_open = 1;
    empty->ours = ours;
    empty->theirs = theirs;
    return empty;
}

static struct header packet(uint32_t ours, uint32_t theirs, uint16_t op, struct connection *c)
{
    return (struct header){
        .src_cid = 2, .dst_cid = guest_cid, .src_port = ours, .dst_port = theirs, .type = 1, .op = op,
        .buf_alloc = c ? BUFFER : 0, .fwd_cnt = c ? c->echoed : 0,
    };
}

static void answer(struct header h)
{
    if (last_answer - first_answer == ANSWERS) {
        fprintf(stderr, "echo_device: too many answers wait\n");
        exit(1);
    }
    answers[last_answer++ % ANSWERS] = h;
}

static void take(struct header *h, struct iovec *iov, unsigned count)
{
    struct connection *c = find(h->dst_port, h->src_port, h->op == REQUEST);
    if (!c || h->dst_cid != 2 || h->type != 1) {
        if (h->op != RST)
            answer(packet(h->dst_port, h->src_port, RST, NULL));
        return;
    }
    c->peer_alloc = h->buf_alloc;
    c->peer_fwd = h->fwd_cnt;
    switch (h->op) {
    case REQUEST:
        answer(packet(c->ours, c->theirs, RESPONSE, c));
        break;
    case RST:
        c->is_open = 0;
        break;
    case SHUTDOWN:
        c->ends |= h->flags & 2;
        break;
    case RW:
        if (c->held + h->len > BUFFER) {
            fprintf(stderr, "echo_device: more data than credit\n");
            exit(1);
        }
        for (size_t done = 0; done < h->len;) {
            size_t at = (c->start + c->held) % BUFFER;
            size_t part = h->len - done < BUFFER - at ? h->len - done : BUFFER - at;
            if (copy(iov, count, sizeof *h + done, c->data + at, part, 0) != part) {
                fprintf(stderr, "echo_device: packet shorter than its header says\n");
                exit(1);
            }
            c->held += part;
            done += part;
        }
        break;
    case CREDIT_REQUEST:
        answer(packet(c->ours, c->theirs, CREDIT_UPDATE, c));
        break;
    }
}

/* Gives one packet to the driver; 0 when it offers no buffer. */
static int give(struct header *h, const char *data)
{
    VuVirtq *vq = vu_get_queue(&dev, RX);
    VuVirtqElement *element = vu_queue_pop(&dev, vq, sizeof *element);
    if (!element)
        return 0;
    copy(element->in_sg, element->in_num, 0, h, sizeof *h, 1);
    copy(element->in_sg, element->in_num, sizeof *h, (void *)data, h->len, 1);
    vu_queue_push(&dev, vq, element, sizeof *h + h->len);
    free(element);
    return 1;
}

/* The room for data in the next buffer; 0 when there is none. */
static size_t room(void)
{
    VuVirtq *vq = vu_get_queue(&dev, RX);
    VuVirtqElement *element = vu_queue_pop(&dev, vq, sizeof *element);
    if (!element)
        return 0;
    size_t len = total(element->in_sg, element->in_num);
    vu_queue_unpop(&dev, vq, element, 0);
    free(element);
    return len > sizeof(struct header) ? len - sizeof(struct header) : 0;
}

static void echo(void)
{
    while (first_answer != last_answer && give(&answers[first_answer % ANSWERS], NULL))
        first_answer++;
    for (int i = 0; i < CONNECTIONS; i++) {
        struct connection *c = &connections[i];
        while (c->is_open && c->held) {
            size_t credit = c->peer_alloc - (c->sent - c->peer_fwd);
            size_t len = room();
            len = len < c->held ? len : c->held;
            len = len < BUFFER - c->start ? len : BUFFER - c->start;
            len = len < credit ? len : credit;
            if (!len)
                break;
            c->echoed += len;
            struct header h = packet(c->ours, c->theirs, RW, c);
            h.len = len;
            if (!give(&h, c->data + c->start))
                break;
            c->sent += len;
            c->start = (c->start + len) % BUFFER;
            c->held -= len;
        }
        if (c->is_open && c->ends && !c->held) {
            answer(packet(c->ours, c->theirs, RST, NULL));
            c->is_open = 0;
        }
    }
    while (first_answer != last_answer && give(&answers[first_answer % ANSWERS], NULL))
        first_answer++;
    vu_queue_notify(&dev, vu_get_queue(&dev, RX));
}

static void serve(VuDev *unused, int queue)
{
    VuVirtq *vq = vu_get_queue(&dev, TX);
    VuVirtqElement *element;
    (void)unused;
    (void)queue;
    if (!vu_queue_started(&dev, vq) || !vu_queue_started(&dev, vu_get_queue(&dev, RX)))
        return;
    while ((element = vu_queue_pop(&dev, vq, sizeof *element))) {
        struct header h;
        if (copy(element->out_sg, element->out_num, 0, &h, sizeof h, 0) == sizeof h)
            take(&h, element->out_sg, element->out_num);
        vu_queue_push(&dev, vq, element, 0);
        free(element);
        echo();
    }
    vu_queue_notify(&dev, vq);
    echo();
}

static uint64_t features(VuDev *unused)
{
    (void)unused;
    return 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_INDIRECT_DESC | 1ull << VIRTIO_RING_F_EVENT_IDX |
           1ull << VHOST_USER_F_PROTOCOL_FEATURES;
}

static uint64_t protocol_features(VuDev *unused)
{
    (void)unused;
    return 1ull << VHOST_USER_PROTOCOL_F_CONFIG | 1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK;
}

static void set_features(VuDev *unused, uint64_t taken)
{
    (void)unused;
    printf("features %#lx\n", (unsigned long)taken);
    fflush(stdout);
}

static int config(VuDev *unused, uint8_t *bytes, uint32_t len)
{
    (void)unused;
    if (len > sizeof guest_cid)
        return -1;
    memcpy(bytes, &guest_cid, len);
    return 0;
}

static void started(VuDev *unused, int queue, bool runs)
{
    (void)unused;
    if (queue != EVENT)
        vu_set_queue_handler(&dev, vu_get_queue(&dev, queue), runs ? serve : NULL);
    if (runs)
        serve(&dev, queue);
}

static bool in_order(VuDev *unused, int queue)
{
    (void)unused;
    (void)queue;
    return true;
}

static void panic(VuDev *unused, const char *words)
{
    (void)unused;
    fprintf(stderr, "echo_device: %s\n", words);
    is_over = 1;
}

static void unwatch(VuDev *unused, int fd)
{
    (void)unused;
    for (int i = 0; i < watch_count; i++)
        if (watches[i].fd == fd)
            watches[i--] = watches[--watch_count];
}

/* The library may ask twice for the same fd. */
static void watch(VuDev *unused, int fd, int condition, vu_watch_cb call, void *data)
{
    (void)condition;
    unwatch(unused, fd);
    watches[watch_count].fd = fd;
    watches[watch_count].call = call;
    watches[watch_count++].data = data;
}

int main(int count, char **arguments)
{
    static const VuDevIface iface = {
        .get_features = features, .set_features = set_features, .get_protocol_features = protocol_features,
        .queue_set_started = started, .queue_is_processed_in_order = in_order, .get_config = config,
    };
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int door = socket(AF_UNIX, SOCK_STREAM, 0);
    if (count != 3 || strlen(arguments[1]) >= sizeof address.sun_path)
        return 2;
    strcpy(address.sun_path, arguments[1]);
    guest_cid = strtoull(arguments[2], NULL, 10);
    if (bind(door, (struct sockaddr *)&address, sizeof address) || listen(door, 1)) {
        perror("echo_device");
        return 1;
    }
    puts("ready");
    fflush(stdout);
    int front_end = accept(door, NULL, NULL);
    if (front_end < 0 || !vu_init(&dev, QUEUES, front_end, panic, NULL, watch, unwatch, &iface))
        return 1;
    while (!is_over) {
        struct pollfd set[65] = {{.fd = front_end, .events = POLLIN}};
        int n = watch_count;
        for (int i = 0; i < n; i++)
            set[1 + i] = (struct pollfd){.fd = watches[i].fd, .events = POLLIN};
        if (poll(set, 1 + n, -1) < 0)
            return 1;
        for (int i = n - 1; i >= 0; i--)
            if (set[1 + i].revents && i < watch_count && watches[i].fd == set[1 + i].fd)
                watches[i].call(&dev, VU_WATCH_IN, watches[i].data);
        /* A front end that hangs up ends us: that is how the test ends. */
        if (set[0].revents & POLLHUP || (set[0].revents && !vu_dispatch(&dev)))
            break;
    }
    puts("over");
    return is_over;
}
