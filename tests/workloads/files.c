/* files FOLDER: every call on files once, with what it was about and what it returned. */
#include "say.h"
#include <linux/openat2.h>
#include <sys/mount.h>
#include <sys/uio.h>

static const char *folder;

static long fact(const char *call, const char *path, long ret)
{
    say(call);
    if (path)
        text("path", path);
    number("ret", ret);
    done();
    return ret;
}

static void fact2(const char *call, const char *old, const char *new, long ret)
{
    say(call);
    text("old", old);
    text("new", new);
    number("ret", ret);
    done();
}

static void onfd(const char *call, long fd, const char *path, long ret)
{
    say(call);
    number("fd", fd);
    text("path", path);
    number("ret", ret);
    done();
}

static void opens(int dir)
{
    struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};
    char *path = in(folder, "opened"), *missing = in(folder, "missing");
    close(fact("creat", path, kernel(syscall(SYS_creat, path, 0640))));
    close(fact("open", path, kernel(syscall(SYS_open, path, O_RDWR | O_APPEND, 0))));
    close(fact("openat", path, kernel(syscall(SYS_openat, AT_FDCWD, path, O_WRONLY, 0))));
    close(fact("openat", path, kernel(syscall(SYS_openat, dir, "opened", O_RDONLY, 0))));
    close(fact("openat2", path, kernel(syscall(SYS_openat2, dir, "opened", &how, sizeof how))));
    fact("open", missing, kernel(syscall(SYS_open, missing, O_RDONLY, 0)));
    fact("openat", missing, kernel(syscall(SYS_openat, dir, "missing", O_RDONLY, 0)));
    fact("openat2", missing, kernel(syscall(SYS_openat2, dir, "missing", &how, sizeof how)));
}

static void transfers(void)
{
    char buffer[64], *path = in(folder, "transferred");
    struct iovec two[] = {{"first vector ", 13}, {"and the second", 14}};
    struct iovec back[] = {{buffer, 10}, {buffer + 10, 20}};
    int fd = must(open(path, O_RDWR | O_CREAT, 0600), path);
    onfd("write", fd, path, kernel(syscall(SYS_write, fd, "the first twenty bytes and more", 31L)));
    onfd("pwrite64", fd, path, kernel(syscall(SYS_pwrite64, fd, "at zero", 7L, 0L)));
    onfd("writev", fd, path, kernel(syscall(SYS_writev, fd, two, 2L)));
    onfd("pwritev", fd, path, kernel(syscall(SYS_pwritev, fd, two, 2L, 100L, 0L)));
    onfd("pwritev2", fd, path, kernel(syscall(SYS_pwritev2, fd, two, 2L, 200L, 0L, 0L)));
    lseek(fd, 0, SEEK_SET);
    onfd("read", fd, path, kernel(syscall(SYS_read, fd, buffer, 16L)));
    onfd("pread64", fd, path, kernel(syscall(SYS_pread64, fd, buffer, 16L, 4L)));
    onfd("readv", fd, path, kernel(syscall(SYS_readv, fd, back, 2L)));
    onfd("preadv", fd, path, kernel(syscall(SYS_preadv, fd, back, 2L, 0L, 0L)));
    onfd("preadv2", fd, path, kernel(syscall(SYS_preadv2, fd, back, 2L, 0L, 0L, 0L)));
    onfd("dup", fd, path, kernel(syscall(SYS_dup, fd)));
    onfd("dup2", fd, path, kernel(syscall(SYS_dup2, fd, 40)));
    onfd("dup3", fd, path, kernel(syscall(SYS_dup3, fd, 41, O_CLOEXEC)));
    onfd("fcntl", fd, path, kernel(syscall(SYS_fcntl, fd, F_DUPFD, 50L)));
    onfd("fchmod", fd, path, kernel(syscall(SYS_fchmod, fd, 0644)));
    onfd("fchown", fd, path, kernel(syscall(SYS_fchown, fd, getuid(), getgid())));
    onfd("ftruncate", fd, path, kernel(syscall(SYS_ftruncate, fd, 5L)));
    onfd("close", fd, path, kernel(syscall(SYS_close, fd)));
    onfd("close", fd, path, kernel(syscall(SYS_close, fd)));
    onfd("read", fd, path, kernel(syscall(SYS_read, fd, buffer, 1L)));
}

static void names(int dir)
{
    char *a = in(folder, "a"), *b = in(folder, "b"), *c = in(folder, "c"), *d = in(folder, "d");
    char *below = in(folder, "below");
    make(a, "a", 0644);
    fact2("rename", a, b, kernel(syscall(SYS_rename, a, b)));
    fact2("renameat", b, c, kernel(syscall(SYS_renameat, dir, "b", dir, "c")));
    fact2("renameat2", c, a, kernel(syscall(SYS_renameat2, dir, "c", AT_FDCWD, a, 0)));
    fact2("link", a, b, kernel(syscall(SYS_link, a, b)));
    fact2("linkat", a, c, kernel(syscall(SYS_linkat, dir, "a", dir, "c", 0)));
    fact2("symlink", "a", d, kernel(syscall(SYS_symlink, "a", d)));
    fact("unlink", d, kernel(syscall(SYS_unlink, d)));
    fact2("symlinkat", "c", d, kernel(syscall(SYS_symlinkat, "c", dir, "d")));
    fact("chmod", a, kernel(syscall(SYS_chmod, a, 0600)));
    fact("fchmodat", a, kernel(syscall(SYS_fchmodat, dir, "a", 0640)));
    fact("chown", a, kernel(syscall(SYS_chown, a, getuid(), getgid())));
    fact("lchown", d, kernel(syscall(SYS_lchown, d, getuid(), getgid())));
    fact("fchownat", a, kernel(syscall(SYS_fchownat, dir, "a", getuid(), getgid(), 0)));
    fact("truncate", a, kernel(syscall(SYS_truncate, a, 0L)));
    fact("unlink", b, kernel(syscall(SYS_unlink, b)));
    fact("unlinkat", c, kernel(syscall(SYS_unlinkat, dir, "c", 0)));
    fact("unlink", c, kernel(syscall(SYS_unlink, c)));
    fact("mkdir", below, kernel(syscall(SYS_mkdir, below, 0700)));
    fact("rmdir", below, kernel(syscall(SYS_rmdir, below)));
    fact("mkdirat", below, kernel(syscall(SYS_mkdirat, dir, "below", 0700)));
    fact("mknod", in(folder, "fifo"), kernel(syscall(SYS_mknod, in(folder, "fifo"), S_IFIFO | 0600, 0)));
    fact("chdir", below, kernel(syscall(SYS_chdir, below)));
    fact("openat", in(folder, "a"), kernel(syscall(SYS_openat, AT_FDCWD, "../a", O_RDONLY, 0)));
}

/* In a mount namespace of its own: nothing is left behind. */
static void mounts(void)
{
    char *at = in(folder, "mounted");
    flush();
    pid_t child = must(fork(), "fork");
    if (!child) {
        must(mkdir(at, 0700), at);
        long ret = kernel(unshare(CLONE_NEWNS));
        fact("unshare", NULL, ret);
        if (ret < 0) {
            flush();
            _exit(0);
        }
        must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
        fact2("mount", "none", at, kernel(mount("none", at, "tmpfs", 0, "size=1m")));
        char *path = in(at, "inside");
        close(fact("open", path, kernel(syscall(SYS_open, path, O_CREAT | O_WRONLY, 0600))));
        fact("umount2", at, kernel(umount2(at, MNT_DETACH)));
        flush();
        _exit(0);
    }
    must(waitpid(child, NULL, 0), "waitpid");
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    folder = argv[1];
    int dir = must(open(folder, O_RDONLY | O_DIRECTORY), folder);
    opens(dir);
    transfers();
    mounts();
    names(dir);
    return 0;
}
