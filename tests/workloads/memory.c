/* memory CHILD: memory that is writable and executable, in each way that it can come to be. */
#include "say.h"

#define PAGE 4096L

static void *map(int prot)
{
    long got = kernel(syscall(SYS_mmap, NULL, PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L));
    say("mmap");
    number("ret", got);
    number("length", PAGE);
    number("prot", prot);
    done();
    return (void *)got;
}

static void protect(void *at, int before, int prot)
{
    long got = kernel(syscall(SYS_mprotect, at, PAGE, prot));
    say("mprotect");
    number("addr", (long)at);
    number("before", before);
    number("prot", prot);
    number("ret", got);
    done();
}

int main(int argc, char **argv)
{
    static const int W = PROT_READ | PROT_WRITE, X = PROT_READ | PROT_EXEC;
    if (argc != 2)
        return 2;
    map(W); /* nothing executable: negative control */
    void *both = map(W | PROT_EXEC);
    protect(both, W | PROT_EXEC, X); /* written, then sealed: how unpackers do it */
    void *late = map(W);
    protect(late, W, X);
    protect(late, X, W);
    protect(late, W, W | PROT_EXEC);
    protect((void *)1, 0, X); /* refused */

    int fd = must(syscall(SYS_memfd_create, "kcap code", MFD_CLOEXEC), "memfd_create");
    say("memfd_create");
    text("name", "kcap code");
    number("ret", fd);
    done();
    copy(argv[1], fd);
    long got = kernel(syscall(SYS_mmap, NULL, PAGE, X, MAP_PRIVATE, fd, 0L));
    say("mmap");
    number("ret", got);
    number("length", PAGE);
    number("prot", X);
    number("fd", fd);
    done();
    return 0;
}
