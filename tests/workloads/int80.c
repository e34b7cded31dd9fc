/* int80 FOLDER: a 64-bit program that makes calls of the 32-bit instruction set. */
#include "say.h"

/* Of the 64-bit calls, 5 is fstat and 10 is mprotect. */
#define OPEN32 5
#define UNLINK32 10

static long call32(long nr, long a, long b, long c)
{
    long ret;
    __asm__ volatile("int $0x80"
                     : "=a"(ret)
                     : "a"(nr), "b"(a), "c"(b), "d"(c)
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)ret;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    char *path = in(argv[1], "int80");
    make(path, "32 bits from 64", 0644);
    /* The path must lie where 32 bits reach. */
    char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    must(low == MAP_FAILED ? -1 : 0, "mmap");
    strcpy(low, path);
    say("open");
    text("path", path);
    number("ret", call32(OPEN32, (long)low, O_RDONLY, 0));
    done();
    say("unlink");
    text("path", path);
    number("ret", call32(UNLINK32, (long)low, 0, 0));
    done();
    return 0;
}
