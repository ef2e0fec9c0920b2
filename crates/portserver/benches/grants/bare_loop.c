/*
 * A server that does for each request what no port server can do without, and nothing else: accept,
 * read, take the lock of the next port, probe it by one TCP and one UDP bind, answer, close.
 * One epoll loop, no error handling to speak of, no owners, no state. The floor for the benchmark.
 *
 * Usage: bare_loop NAME FIRST LAST, for the abstract socket NAME; prints "ready" when it listens.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int named(const char *name, int type) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    memcpy(address.sun_path + 1, name, length);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&address, sizeof address.sun_family + 1 + length) == 0)
        return fd;
    close(fd);
    return -1;
}

static int is_free(int port, int type) {
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0), off = 0;
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    int result = bind(fd, (struct sockaddr *)&address, sizeof address);
    close(fd);
    return result == 0;
}

int main(int count, char **arguments) {
    if (count != 4)
        return 2;
    int first = atoi(arguments[2]), last = atoi(arguments[3]), next = first;
    int *locks = malloc((last + 1) * sizeof *locks);
    memset(locks, -1, (last + 1) * sizeof *locks);

    int listener = named(arguments[1], SOCK_STREAM | SOCK_NONBLOCK), epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[64];
    if (listener < 0 || listen(listener, 4096) != 0)
        return 1;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    event.data.fd = fd;
                    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
                }
                continue;
            }
            char text[64];
            if (read(fd, text, sizeof text) > 0) {
                for (;;) {
                    int port = next;
                    next = next == last ? first : next + 1;
                    /* Once around, the former lease has ended. */
                    if (locks[port] >= 0)
                        close(locks[port]);
                    snprintf(text, sizeof text, "portpicker/%d/%llx", port, 1LL * port * port * port);
                    locks[port] = named(text, SOCK_STREAM);
                    if (locks[port] >= 0 && is_free(port, SOCK_STREAM) && is_free(port, SOCK_DGRAM)) {
                        write(fd, text, snprintf(text, sizeof text, "%d\n", port));
                        break;
                    }
                }
            }
            close(fd);
        }
    }
}
