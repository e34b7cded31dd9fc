/* steady FOLDER RATE SECONDS: so many opens a second, evenly, of a file that is not there.
 *
 * A hundred times a second a bundle of them. The first of each bundle has the wall clock in its
 * name, in ns, so that whoever records can be held to it.
 */
#include "say.h"
#include <time.h>

#define BUNDLES 100

static long long clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    long rate = atol(argv[2]), bundles = atol(argv[3]) * BUNDLES, count = 0;
    char *path = in(argv[1], "absent"), marked[4096];
    long long begun = clock_ns(CLOCK_MONOTONIC);
    for (long bundle = 0; bundle < bundles; bundle++) {
        long long due = begun + bundle * (1000000000LL / BUNDLES);
        struct timespec until = {due / 1000000000LL, due % 1000000000LL};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        for (long i = 0; i < rate / BUNDLES; i++) {
            if (!i)
                snprintf(marked, sizeof marked, "%s/at-%lld", argv[1], clock_ns(CLOCK_REALTIME));
            syscall(SYS_openat, AT_FDCWD, i ? path : marked, O_RDONLY, 0);
            count++;
        }
    }
    say("openat");
    number("count", count);
    done();
    return 0;
}
