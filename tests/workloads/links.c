/* links FOLDER: the same file opened by names that are not its own. */
#include "say.h"
#include <linux/openat2.h>

static char *target;

static int fact(const char *how, const char *given, long ret)
{
    say("open");
    text("how", how);
    text("given", given);
    text("path", target);
    number("ret", ret);
    done();
    return ret;
}

static int pass(int fd)
{
    int two[2];
    char control[CMSG_SPACE(sizeof fd)] = {0}, byte = 'x';
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control,
    };
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd),
    };
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, two), "socketpair");
    must(sendmsg(two[0], &message, 0), "sendmsg");
    must(recvmsg(two[1], &message, 0), "recvmsg");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    close(two[0]);
    close(two[1]);
    return fd;
}

static void reads(const char *how, int fd)
{
    char byte;
    say("read");
    text("how", how);
    text("path", target);
    number("fd", fd);
    number("ret", kernel(syscall(SYS_pread64, fd, &byte, 1L, 0L)));
    done();
}

int main(int argc, char **argv)
{
    char self[64];
    if (argc != 2)
        return 2;
    char *folder = argv[1], *deep = in(folder, "deep"), *link = in(folder, "link");
    must(mkdir(deep, 0700), deep);
    target = in(deep, "target");
    make(target, "the file behind", 0644);
    must(symlink("deep/target", link), link);
    must(symlink("deep", in(folder, "side")), "side");
    int dir = must(open(folder, O_PATH | O_DIRECTORY), folder);
    int there = must(open(deep, O_RDONLY | O_DIRECTORY), deep);
    struct open_how root = {.flags = O_RDONLY, .resolve = RESOLVE_IN_ROOT};
    struct open_how beneath = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};

    fact("symlink", link, kernel(syscall(SYS_openat, AT_FDCWD, link, O_RDONLY, 0)));
    char *side = in(folder, "side/../side/target");
    fact("symlinked folder", side, kernel(syscall(SYS_openat, AT_FDCWD, side, O_RDONLY, 0)));
    fact("below a folder", "target", kernel(syscall(SYS_openat, there, "target", O_RDONLY, 0)));
    fact("another root", "/deep/target",
         kernel(syscall(SYS_openat2, dir, "/deep/target", &root, sizeof root)));
    fact("beneath", "deep/./target",
         kernel(syscall(SYS_openat2, dir, "deep/./target", &beneath, sizeof beneath)));
    int bare = fact("path only", "link", kernel(syscall(SYS_openat, dir, "link", O_PATH, 0)));
    snprintf(self, sizeof self, "/proc/self/fd/%d", bare);
    int again = fact("reopened", self, kernel(syscall(SYS_openat, AT_FDCWD, self, O_RDONLY, 0)));
    must(chdir(deep), deep);
    fact("working folder", "./target", kernel(syscall(SYS_openat, AT_FDCWD, "./target", O_RDONLY, 0)));
    char *hard = in(folder, "hard");
    int passed = pass(again);
    reads("passed", passed);
    int copied = dup(passed);
    reads("copied", copied);
    must(dup2(copied, 70), "dup2");
    reads("copied onto", 70);
    must(syscall(SYS_link, target, hard), "link");
    target = hard; /* a hard link is a name of its own */
    fact("hard link", hard, kernel(syscall(SYS_openat, AT_FDCWD, hard, O_RDONLY, 0)));
    return 0;
}
