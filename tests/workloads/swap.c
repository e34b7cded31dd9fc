/* swap FOLDER N: opens a path that another thread changes all the while, N times at least, and more
 * where the thread has not run yet.
 *
 * What each open truly reached is read from the file itself: it holds its own name.
 */
#include "say.h"
#include <pthread.h>
#include <stdatomic.h>

static char shared[4096];
static char *names[2];
static atomic_bool stop;

static void *change(void *unused)
{
    for (unsigned i = 0; !atomic_load_explicit(&stop, memory_order_relaxed); i++)
        shared[strlen(names[0]) - 1] = i & 1 ? 'a' : 'b';
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t other;
    long counts[2] = {0};
    if (argc != 3)
        return 2;
    names[0] = in(argv[1], "file-a"), names[1] = in(argv[1], "file-b");
    make(names[0], "a", 0644);
    make(names[1], "b", 0644);
    strcpy(shared, names[0]);
    pthread_create(&other, NULL, change, NULL);
    long count = atol(argv[2]);
    for (long i = 0; i < count || (i < 100 * count && !(counts[0] && counts[1])); i++) {
        char letter;
        int fd = must(syscall(SYS_openat, AT_FDCWD, shared, O_RDONLY, 0), "openat");
        must(pread(fd, &letter, 1, 0), "pread");
        counts[letter == 'b']++;
        say("openat");
        text("path", names[letter == 'b']);
        number("ret", fd);
        done();
        close(fd);
    }
    atomic_store(&stop, 1);
    pthread_join(other, NULL);
    return counts[0] && counts[1] ? 0 : 3; /* 3: the thread never won, nothing was shown */
}
