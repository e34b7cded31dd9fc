/* flood FOLDER THREADS: threads that open, write, read and close as fast as they can until
 * standard input ends; then the exact number of each call by thread.
 */
#include "say.h"
#include <pthread.h>
#include <stdatomic.h>

static atomic_bool stop;

struct worker {
    pthread_t thread;
    const char *path;
    long tid, opened, written, got, closed;
};

static void *work(void *given)
{
    struct worker *me = given;
    char byte = 'x';
    me->tid = syscall(SYS_gettid);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        int fd = syscall(SYS_openat, AT_FDCWD, me->path, O_RDWR | O_CREAT, 0600);
        me->opened++;
        for (int i = 0; i < 8; i++) {
            syscall(SYS_write, fd, &byte, 1L);
            me->written++;
            syscall(SYS_pread64, fd, &byte, 1L, 0L);
            me->got++;
        }
        syscall(SYS_ftruncate, fd, 0L);
        syscall(SYS_close, fd);
        me->closed++;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    char byte, name[32];
    if (argc != 3)
        return 2;
    int count = atoi(argv[2]);
    struct worker *workers = calloc(count, sizeof *workers);
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "flood-%d", i);
        workers[i].path = in(argv[1], name);
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
            return 1;
    }
    while (read(0, &byte, 1) > 0)
        ;
    atomic_store(&stop, 1);
    for (int i = 0; i < count; i++) {
        pthread_join(workers[i].thread, NULL);
        say("flood");
        number("thread", workers[i].tid);
        text("path", workers[i].path);
        number("openat", workers[i].opened);
        number("write", workers[i].written);
        number("pread64", workers[i].got);
        number("close", workers[i].closed);
        done();
    }
    return 0;
}
