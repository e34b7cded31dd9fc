/* padding CHILD BYTES: executes with so many bytes of arguments before the one that matters. */
#include "say.h"

#define PART 100000 /* one argument may have 128 KiB */

int main(int argc, char **argv)
{
    char *words[64] = {argv[1], "21"};
    char *none[] = {NULL};
    if (argc != 3)
        return 2;
    int used = 2;
    for (long rest = atol(argv[2]); rest > 0 && used < 60; rest -= PART) {
        long size = rest < PART ? rest : PART;
        words[used] = malloc(size + 1);
        memset(words[used], 'A', size);
        words[used++][size] = 0;
    }
    words[used++] = "--payload";
    words[used++] = "rm -rf /important";
    pid_t pid = vfork();
    if (!pid) {
        execve(argv[1], words, none);
        _exit(127);
    }
    must(pid, "vfork");
    long total = 0;
    for (int i = 0; i < used; i++)
        total += strlen(words[i]) + 1;
    ended("padding", pid);
    text("path", argv[1]);
    number("argc", used);
    number("argv_bytes", total);
    texts("last", words + used - 2);
    done();
    return 0;
}
