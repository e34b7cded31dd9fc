/* execs FOLDER CHILD: every way to execute a file, the ones that fail too. Needs root. */
#include "say.h"
#include <sys/mount.h>

static char *folder, *child;
static char *none[] = {NULL};

static void fact(const char *did, const char *path, char *const *words, pid_t pid)
{
    ended(did, pid);
    text("path", path);
    texts("argv", words);
    done();
    flush();
}

/* The first argument is the exit code. */
static void runs(const char *did, const char *path, char *order)
{
    /* Copies: a literal that nobody has touched is in no memory where a recorder could find it
     * after an execution that failed before the kernel had looked at its arguments. */
    char *words[] = {(char *)path, strdup(order), strdup(did), NULL};
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        execve(path, words, none);
        _exit(errno);
    }
    fact(did, path, words, pid);
}

static void by_descriptor(const char *did, int fd, const char *path, char *order)
{
    char *words[] = {"by descriptor", order, NULL};
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        syscall(SYS_execveat, fd, "", words, none, AT_EMPTY_PATH);
        _exit(errno);
    }
    fact(did, path, words, pid);
}

static void in_memory(void)
{
    int fd = must(syscall(SYS_memfd_create, "kcap code", MFD_CLOEXEC), "memfd_create");
    copy(child, fd);
    by_descriptor("memfd", fd, "memfd:kcap code", "11");
    close(fd);
}

static void below_directory(void)
{
    char *words[] = {"below a directory", "12", NULL};
    int dir = must(open(folder, O_PATH | O_DIRECTORY), folder);
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        syscall(SYS_execveat, dir, "program", words, none, 0);
        _exit(errno);
    }
    fact("execveat", in(folder, "program"), words, pid);
    close(dir);
}

/* A file system that did not exist when the recorder started. */
static void from_new_mount(void)
{
    char *at = in(folder, "later");
    must(mkdir(at, 0700), at);
    pid_t outer = must(fork(), "fork");
    if (!outer) {
        must(unshare(CLONE_NEWNS), "unshare");
        must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
        must(mount("none", at, "tmpfs", 0, "size=4m"), at);
        char *path = in(at, "program");
        int out = must(open(path, O_CREAT | O_WRONLY, 0755), path);
        copy(child, out);
        close(out);
        runs("new mount", path, "13");
        umount2(at, MNT_DETACH);
        _exit(0);
    }
    must(waitpid(outer, NULL, 0), "waitpid");
    rmdir(at);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    folder = argv[1], child = argv[2];
    char *program = in(folder, "program"), *script = in(folder, "script"), *line;
    int out = must(open(program, O_CREAT | O_WRONLY, 0755), program);
    copy(child, out);
    close(out);
    runs("execve", program, "10");

    must(symlink("program", in(folder, "link")), "symlink");
    runs("symlink", in(folder, "link"), "14");

    must(asprintf(&line, "#!%s 15\n", program), "asprintf");
    make(script, line, 0755);
    runs("script", script, "99"); /* the interpreter's first argument is of the first line */

    char *setuid_program = in(folder, "setuid");
    out = must(open(setuid_program, O_CREAT | O_WRONLY, 0755), setuid_program);
    copy(child, out);
    must(fchown(out, 6016, 6016), "fchown");
    must(fchmod(out, 04755), "fchmod");
    close(out);
    runs("setuid", setuid_program, "16");

    int fd = must(open(program, O_PATH | O_CLOEXEC), program);
    by_descriptor("fexecve", fd, program, "17");
    close(fd);
    below_directory();
    in_memory();
    from_new_mount();

    /* The file is gone when it runs. */
    char *gone = in(folder, "gone");
    must(rename(setuid_program, gone), gone);
    fd = must(open(gone, O_PATH | O_CLOEXEC), gone);
    must(unlink(gone), gone);
    by_descriptor("deleted", fd, gone, "18");
    close(fd);

    /* The exit code of these is the error. */
    runs("missing", in(folder, "missing"), "0");
    make(in(folder, "text"), "no program", 0755);
    runs("no format", in(folder, "text"), "0");
    make(in(folder, "refused"), "no program", 0644);
    runs("refused", in(folder, "refused"), "0");
    runs("not a folder", in(program, "below"), "0");
    return 0;
}
