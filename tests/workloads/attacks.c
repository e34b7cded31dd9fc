/* attacks: calls that change other processes or the kernel, each as harmless as it can be. */
#include "say.h"
#include <linux/bpf.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static char memory[16] = "before";

static void fact(const char *call, long ret)
{
    say(call);
    number("ret", ret);
    done();
}

static void about(const char *call, long target, long ret)
{
    say(call);
    number("target", target);
    number("ret", ret);
    done();
}

/* A traced child whose memory is changed. */
static void injection(void)
{
    char got[16], now[16] = "written";
    struct iovec mine = {got, 16}, ours = {now, 16}, theirs = {memory, 16};
    int status;
    flush();
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        _exit(strcmp(memory, "written") ? 1 : 0);
    }
    must(waitpid(pid, &status, 0), "waitpid");
    about("process_vm_readv", pid, kernel(process_vm_readv(pid, &mine, 1, &theirs, 1, 0)));
    about("ptrace POKETEXT", pid, kernel(ptrace(PTRACE_POKETEXT, pid, memory, (void *)0L)));
    about("process_vm_writev", pid, kernel(process_vm_writev(pid, &ours, 1, &theirs, 1, 0)));
    about("ptrace DETACH", pid, kernel(ptrace(PTRACE_DETACH, pid, NULL, NULL)));
    ended("traced", pid), done();

    if (!(pid = must(fork(), "fork"))) {
        pause();
        _exit(0);
    }
    about("ptrace SEIZE", pid, kernel(ptrace(PTRACE_SEIZE, pid, NULL, NULL)));
    about("kill", pid, kernel(syscall(SYS_kill, pid, SIGTERM)));
    while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status))
        ptrace(PTRACE_CONT, pid, NULL, (void *)(long)WSTOPSIG(status));
    about("tgkill", getpid(), kernel(syscall(SYS_tgkill, getpid(), getpid(), 0)));
}

static void modules(void)
{
    int fd = must(syscall(SYS_memfd_create, "no module", 0), "memfd_create");
    must(write(fd, "garbage", 7), "write");
    fact("init_module", kernel(syscall(SYS_init_module, "garbage", 7L, "option=1")));
    fact("finit_module", kernel(syscall(SYS_finit_module, fd, "option=2", 0)));
    fact("delete_module", kernel(syscall(SYS_delete_module, "kcap_no_module", O_NONBLOCK)));
    close(fd);
}

static void programs(void)
{
    struct bpf_insn none[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr array = {
        .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1,
        .map_name = "kcap_test_map",
    };
    union bpf_attr load = {
        .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insns = (uintptr_t)none, .insn_cnt = 2,
        .license = (uintptr_t) "GPL", .prog_name = "kcap_test_prog",
    };
    long map = kernel(syscall(SYS_bpf, BPF_MAP_CREATE, &array, sizeof array));
    fact("bpf MAP_CREATE", map);
    long program = kernel(syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load));
    fact("bpf PROG_LOAD", program);
    close(map);
    close(program);
}

static void namespaces(void)
{
    flush();
    pid_t pid = must(fork(), "fork");
    if (pid) {
        ended("namespaces", pid), done();
        return;
    }
    int own = open("/proc/self/ns/uts", O_RDONLY);
    fact("unshare", kernel(unshare(CLONE_NEWUTS | CLONE_NEWPID)));
    fact("setns", kernel(setns(own, CLONE_NEWUTS)));
    flush();
    if (!(pid = must(fork(), "fork"))) {
        say("inside");
        number("ns_pid", getpid());
        done();
        flush();
        _exit(0);
    }
    ended("child in a namespace", pid), done();
    flush();
    _exit(0);
}

int main(void)
{
    char name[16];
    injection();
    modules();
    programs();
    namespaces();
    fact("prctl SET_DUMPABLE", kernel(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)));
    fact("prctl GET_NAME", kernel(prctl(PR_GET_NAME, name, 0, 0, 0)));
    return 0;
}
