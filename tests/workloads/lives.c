/* lives CHILD FOLDER: lives and deaths of processes and threads.
 *
 * A core is dumped into the folder; where the host sends cores elsewhere, none is.
 */
#include "say.h"
#include <linux/sched.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static long thread_tid;

static void *thread(void *name)
{
    thread_tid = syscall(SYS_gettid);
    prctl(PR_SET_NAME, name);
    return NULL;
}

static void *execs(void *path)
{
    char *words[] = {path, "7", "from a thread", NULL};
    execv(path, words);
    return NULL;
}

/* Allow a core, if it would be a file in the working folder. */
static void cores(void)
{
    char pattern[2] = "|";
    struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY}, none = {0, 0};
    int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY);
    int local = fd >= 0 && read(fd, pattern, 1) == 1 && pattern[0] != '|' && pattern[0] != '/';
    setrlimit(RLIMIT_CORE, local ? &all : &none);
}

int main(int argc, char **argv)
{
    pid_t pid;
    pthread_t other;
    if (argc != 3)
        return 2;

    if (!(pid = must(fork(), "fork")))
        _exit(3);
    ended("fork", pid), done();

    if (!(pid = must(vfork(), "vfork")))
        _exit(4);
    ended("vfork", pid), done();

    if (!(pid = must(syscall(SYS_clone, SIGCHLD, 0L, 0L, 0L, 0L), "clone")))
        _exit(5);
    ended("clone", pid), done();

    struct clone_args how = {.exit_signal = SIGCHLD};
    if (!(pid = must(syscall(SYS_clone3, &how, sizeof how), "clone3")))
        _exit(6);
    ended("clone3", pid), done();

    pthread_create(&other, NULL, thread, "renamed thread");
    pthread_join(other, NULL);
    say("thread");
    number("thread", thread_tid);
    text("name", "renamed thread");
    done();

    prctl(PR_SET_NAME, "renamed \"main\"");
    say("rename");
    text("name", "renamed \"main\"");
    done();

    /* The new image keeps the process id, the thread's own id is gone. */
    if (!(pid = must(fork(), "fork"))) {
        pthread_create(&other, NULL, execs, argv[1]);
        pthread_join(other, NULL);
        _exit(127);
    }
    ended("exec from a thread", pid), done();

    flush();
    if (!(pid = must(fork(), "fork"))) {
        pid_t session = setsid();
        say("setsid");
        number("ret", session);
        done();
        flush();
        _exit(0);
    }
    ended("session", pid), done();
    flush();

    if (!(pid = must(fork(), "fork")))
        kill(getpid(), SIGKILL);
    ended("killed", pid), done();

    if (!(pid = must(fork(), "fork"))) {
        must(chdir(argv[2]), argv[2]);
        cores();
        abort();
    }
    ended("aborted", pid), done();
    return 0;
}
