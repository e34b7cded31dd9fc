/* opens FOLDER N: opens and closes 16 files in turn, every 17th open is of one that is not there.
 * The files are made by mknod, which opens nothing.
 *
 * Open number i (from 0) is of path i % 17.
 */
#include "say.h"

#define PATHS 17

int main(int argc, char **argv)
{
    char *paths[PATHS], name[32];
    long results[PATHS] = {0}, counts[PATHS] = {0}, strange = 0;
    if (argc != 3)
        return 2;
    for (int i = 0; i < PATHS; i++) {
        snprintf(name, sizeof name, i < PATHS - 1 ? "file-%02d" : "missing", i);
        paths[i] = in(argv[1], name);
        if (i < PATHS - 1)
            must(mknod(paths[i], S_IFREG | 0644, 0) && errno != EEXIST ? -1 : 0, paths[i]);
    }
    long count = atol(argv[2]);
    for (long i = 0; i < count; i++) {
        long fd = kernel(syscall(SYS_openat, AT_FDCWD, paths[i % PATHS], O_RDONLY | O_CLOEXEC, 0));
        strange += counts[i % PATHS]++ && results[i % PATHS] != fd;
        results[i % PATHS] = fd;
        if (fd >= 0)
            syscall(SYS_close, (int)fd);
    }
    for (int i = 0; i < PATHS; i++) {
        say("openat");
        text("path", paths[i]);
        number("count", counts[i]);
        number("ret", results[i]);
        done();
    }
    return strange ? 1 : 0; /* the same path always had the same result */
}
