/* compat FOLDER CHILD: calls of the 32-bit instruction set; compiled with -m32. */
#include "say.h"

int main(int argc, char **argv)
{
    char *none[] = {NULL};
    if (argc != 3)
        return 2;
    char *path = in(argv[1], "compat"), *missing = in(argv[1], "missing");
    make(path, "32 bits", 0644);
    say("open");
    text("path", path);
    number("ret", kernel(syscall(SYS_open, path, O_RDONLY, 0)));
    done();
    say("openat");
    text("path", path);
    number("ret", kernel(syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND, 0)));
    done();
    say("open");
    text("path", missing);
    number("ret", kernel(syscall(SYS_open, missing, O_RDONLY, 0)));
    done();
    say("unlink");
    text("path", path);
    number("ret", kernel(syscall(SYS_unlink, path)));
    done();
    char *words[] = {argv[2], "32", "from 32 bits", NULL};
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        execve(argv[2], words, none);
        _exit(127);
    }
    ended("execve", pid);
    text("path", argv[2]);
    texts("argv", words);
    done();
    return 0;
}
