/* In front of the system's functions on files and sockets: delays them, lets them fail, or kills the process
 * before, within or after one of them, as the file says that the variable ORDERS names. A line of it:
 *
 *   FUNCTION FILE ACTION NUMBER
 *
 * FUNCTION: write, sync, cut, rename, send. FILE: a part of the path, or "socket". ACTION and NUMBER: "delay"
 * milliseconds, "fail" errno; "kill-before", "kill-half" (of what is written), "kill-after" the call with this
 * number, counted from 1; "clock" seconds, for the function "time" and the file "-".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MOST_LINES = 4 };
static atomic_int calls[MOST_LINES];

struct order {
    char function[16], file[64], action[16];
    int number;
};

/* The kernel's functions are needed at any time, the first one too. */
#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static FILE *orders(void) {
    const char *path = getenv("ORDERS");
    return path ? fopen(path, "re") : NULL;
}

/* The order for this function on this path; its call is counted. */
static int found(const char *function, const char *path, struct order *order) {
    FILE *file = orders();
    if (!file) return 0;
    int is_found = 0;
    for (int line = 0; line < MOST_LINES && !is_found; line++) {
        if (fscanf(file, "%15s %63s %15s %d", order->function, order->file, order->action, &order->number) != 4) break;
        if (strcmp(order->function, function) || !strstr(path, order->file)) continue;
        is_found = strncmp(order->action, "kill", 4) || atomic_fetch_add(&calls[line], 1) + 1 == order->number;
    }
    fclose(file);
    return is_found;
}

static int is(const struct order *order, const char *action) { return !strcmp(order->action, action); }

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What lies behind a descriptor. */
static const char *path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return path;
}

/* As long as the file says it: an order that is taken back ends it. */
static void wait_as_ordered(const char *function, const char *path) {
    struct order order;
    for (int waited = 0; found(function, path, &order) && is(&order, "delay") && waited < order.number; waited += 10)
        usleep(10000);
}

/* Before the call: whether it fails. */
static int fails(const char *function, const char *path, struct order *order) {
    if (is(order, "kill-before")) die();
    if (is(order, "delay")) wait_as_ordered(function, path);
    if (!is(order, "fail")) return 0;
    errno = order->number;
    return 1;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    char path[PATH_MAX];
    struct order order;
    if (!found("write", path_of(fd, path), &order)) return real(fd, bytes, length);
    if (fails("write", path, &order)) return -1;
    if (is(&order, "kill-half")) {
        if (real(fd, bytes, length / 2) < 0) abort();
        die();
    }
    ssize_t written = real(fd, bytes, length);
    if (is(&order, "kill-after")) die();
    return written;
}

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        char path[PATH_MAX]; \
        struct order order; \
        if (!found("sync", path_of(fd, path), &order)) return real(fd); \
        if (fails("sync", path, &order)) return -1; \
        int done = real(fd); \
        if (is(&order, "kill-after")) die(); \
        return done; \
    }
SYNC(fdatasync)
SYNC(fsync)

#define CUT(name, offset) \
    int name(int fd, offset length) { \
        REAL(name); \
        char path[PATH_MAX]; \
        struct order order; \
        if (!found("cut", path_of(fd, path), &order)) return real(fd, length); \
        if (fails("cut", path, &order)) return -1; \
        int done = real(fd, length); \
        if (is(&order, "kill-after")) die(); \
        return done; \
    }
CUT(ftruncate, off_t)
CUT(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
    REAL(rename);
    struct order order;
    if (!found("rename", to, &order)) return real(from, to);
    if (fails("rename", to, &order)) return -1;
    int done = real(from, to);
    if (is(&order, "kill-after")) die();
    return done;
}

#define SEND(name, parameters, arguments) \
    ssize_t name parameters { \
        REAL(name); \
        char path[PATH_MAX]; \
        struct order order; \
        if (!found("send", path_of(fd, path), &order)) return real arguments; \
        if (fails("send", path, &order)) return -1; \
        ssize_t sent = real arguments; \
        if (is(&order, "kill-after")) die(); \
        return sent; \
    }
SEND(send, (int fd, const void *bytes, size_t length, int flags), (fd, bytes, length, flags))
SEND(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int done = real(clock, now);
    struct order order;
    if (!done && clock == CLOCK_REALTIME && found("time", "-", &order)) now->tv_sec += order.number;
    return done;
}
