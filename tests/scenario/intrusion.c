/* intrusion FOLDER: a little intrusion, harmless and real: every step truly happens, to processes
 * and files that the program itself has made, over loopback and in namespaces of its own.
 *
 *   host        a reverse shell's plumbing, a debugger check, code written into other processes,
 *               unpacked code, a program that was never a file, a module, a preloaded library
 *   container   a token and a certificate of Kubernetes read, ld.so.preload written, its API
 *               called, a program dropped
 *   host        a shell that a web server starts
 *   container   a device mounted, release_agent written
 *   host again  the steps that mean something in a container alone
 *
 * The container is one to the kernel: own root, mount, pid, network, host name and IPC namespaces,
 * and a control group that is named as runtimes name theirs. Behind it nothing is left but what
 * lies in FOLDER. Needs root. Each step is said with the rule of Tracee's that looks for it.
 */
#include "../workloads/say.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define CONTAINER "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
#define API "10.96.0.1"

#define A_WHILE 300000 /* us for which what is in memory alone runs: who wants to can look at it */

static char *folder, *self;
static char *none[] = {NULL};

static void step(const char *rule, const char *what)
{
    say("step");
    text("rule", rule);
    text("what", what);
    done();
    flush();
}

/* Run a part in a process of its own. */
static void apart(void (*part)(void))
{
    flush();
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        part();
        flush();
        _exit(0);
    }
    must(waitpid(pid, NULL, 0), "waitpid");
}

static void run(const char *path, char *const *words, char *const *environment)
{
    flush();
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        execve(path, words, environment);
        _exit(127);
    }
    must(waitpid(pid, NULL, 0), "waitpid");
}

static void write_file(const char *path, const void *content, size_t size)
{
    int fd = must(open(path, O_CREAT | O_TRUNC | O_WRONLY, 0700), path);
    must(write(fd, content, size), path);
    close(fd);
}

static void read_file(const char *path)
{
    char block[64];
    int fd = must(open(path, O_RDONLY), path);
    must(read(fd, block, sizeof block), path);
    close(fd);
}

static void stdio_over_socket(void)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof there;
    int listener = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    must(bind(listener, (void *)&there, sizeof there), "bind");
    must(listen(listener, 1), "listen");
    must(getsockname(listener, (void *)&there, &length), "getsockname");
    int sock = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    step("TRC-1", "standard input and output over a socket");
    must(connect(sock, (void *)&there, sizeof there), "connect");
    dup2(sock, 0);
    dup2(sock, 1);
}

static void debugger_check(void)
{
    step("TRC-2", "is a debugger there");
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static void injection(void)
{
    static long target = 1;
    long code = 0xcccccccc;
    char name[64];
    struct iovec ours = {&code, sizeof code}, theirs = {&target, sizeof target};
    flush();
    pid_t pid = must(fork(), "fork");
    if (!pid) {
        pause();
        _exit(0);
    }
    step("TRC-3", "code written into another process");
    must(ptrace(PTRACE_ATTACH, pid, NULL, NULL), "ptrace");
    must(waitpid(pid, NULL, 0), "waitpid");
    must(ptrace(PTRACE_POKETEXT, pid, &target, code), "poke");
    must(process_vm_writev(pid, &ours, 1, &theirs, 1, 0), "process_vm_writev");
    snprintf(name, sizeof name, "/proc/%d/mem", pid);
    int memory = must(open(name, O_WRONLY), name);
    must(pwrite(memory, &code, sizeof code, (off_t)&target), name);
    close(memory);
    kill(pid, SIGKILL);
    must(waitpid(pid, NULL, 0), "waitpid");
}

static void unpacked_code(void)
{
    static const unsigned char answer[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
    int all = PROT_READ | PROT_WRITE | PROT_EXEC;
    void *at = mmap(NULL, 4096, all, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(at == MAP_FAILED ? -1 : 0, "mmap");
    memcpy(at, answer, sizeof answer);
    step("TRC-4", "memory that was written is executed");
    must(mprotect(at, 4096, PROT_READ | PROT_EXEC), "mprotect");
#ifdef __x86_64__
    must(((int (*)(void))at)() == 42 ? 0 : -1, "unpacked");
#endif
    usleep(A_WHILE);
}

static void without_a_file(void)
{
    char *words[] = {"kworker", "--nothing", NULL};
    int fd = must(syscall(SYS_memfd_create, "payload", MFD_CLOEXEC), "memfd_create");
    copy(self, fd);
    step("TRC-5", "a program that is no file");
    flush();
    syscall(SYS_execveat, fd, "", words, none, AT_EMPTY_PATH);
    _exit(127);
}

static void module(void)
{
    char *path = in(folder, "rootkit.ko");
    write_file(path, "\x7f" "ELF no module", 14);
    int fd = must(open(path, O_RDONLY), path);
    step("TRC-6", "a kernel module");
    syscall(SYS_init_module, "garbage", 7L, "");
    syscall(SYS_finit_module, fd, "", 0);
    close(fd);
}

static void preloaded(void)
{
    char *words[] = {self, "--nothing", NULL}, *variable;
    must(asprintf(&variable, "LD_PRELOAD=%s/hook.so", folder), "asprintf");
    char *environment[] = {variable, NULL};
    step("TRC-7", "a preloaded library");
    run(self, words, environment);
}

static void shell_of_a_server(void)
{
    char *server = in(folder, "nginx"), *words[] = {server, "--shell", NULL};
    int out = must(open(server, O_CREAT | O_WRONLY, 0755), server);
    copy(self, out);
    close(out);
    step("TRC-12", "a shell that a web server starts");
    run(server, words, none);
}

static void dropped(void)
{
    char head[64] = "\x7f" "ELF\2\1\1 dropped";
    char *path = in(folder, "dropped");
    step("TRC-9", "a program is written");
    write_file(path, head, sizeof head);
}

static void release_agent(void)
{
    char *group = in(folder, "group");
    mkdir(group, 0700);
    step("TRC-14", "release_agent is written");
    write_file(in(group, "release_agent"), "/cmd\n", 5);
}

static void device(void)
{
    char *at = in(folder, "device");
    mkdir(at, 0700);
    step("TRC-11", "a device is mounted");
    must(mount("/dev/kcap0", at, "tmpfs", 0, "size=64k"), at);
    must(umount2(at, MNT_DETACH), at);
}

static void secrets(void)
{
    char *token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    char *key = "/etc/kubernetes/pki/ca.key";
    step("TRC-8", "the token of the pod's account is read");
    read_file(token);
    step("TRC-10", "a certificate's key is read");
    read_file(key);
    step("TRC-7", "ld.so.preload is written");
    write_file("/etc/ld.so.preload", "/hook.so\n", 9);
}

/* In a network namespace without a way out: the connection is refused by the kernel itself. */
static void calls_api(void)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(443)};
    inet_pton(AF_INET, API, &there.sin_addr);
    int sock = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    connect(sock, (void *)&there, sizeof there);
    close(sock);
}

static void api(void)
{
    char *words[] = {self, "--api", NULL};
    char *environment[] = {"KUBERNETES_SERVICE_HOST=" API, "KUBERNETES_SERVICE_PORT=443", NULL};
    step("TRC-13", "the API of the cluster is called");
    run(self, words, environment);
}

static void folders(const char *path)
{
    char *made = strdup(path);
    for (char *at = made + 1; *at; at++)
        if (*at == '/') {
            *at = 0;
            mkdir(made, 0755);
            *at = '/';
        }
    mkdir(made, 0755);
}

/* A root of its own with what a pod has. */
static void enter_root(void)
{
    char *root = in(folder, "root"), *program = in(root, "app");
    mkdir(root, 0755);
    must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
    must(mount("none", root, "tmpfs", 0, "size=32m"), root);
    int out = must(open(program, O_CREAT | O_WRONLY, 0755), program);
    copy(self, out);
    close(out);
    must(chdir(root), root);
    folders("./old");
    folders("./proc");
    folders("./tmp");
    must(syscall(SYS_pivot_root, ".", "old"), "pivot_root");
    must(chdir("/"), "chdir");
    must(umount2("/old", MNT_DETACH), "umount");
    must(mount("proc", "/proc", "proc", 0, NULL), "proc");
    folders("/etc/kubernetes/pki");
    folders("/var/run/secrets/kubernetes.io/serviceaccount");
    write_file("/etc/kubernetes/pki/ca.key", "no key\n", 7);
    write_file("/var/run/secrets/kubernetes.io/serviceaccount/token", "no token\n", 9);
    folder = "/tmp", self = "/app";
}

static void container(void)
{
    char go;
    int gate[2];
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, gate), "socketpair");
    flush();
    int spaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC;
    pid_t pid = must(syscall(SYS_clone, spaces | SIGCHLD, 0L, 0L, 0L, 0L), "clone");
    if (!pid) {
        close(gate[1]);
        must(recv(gate[0], &go, 1, 0), "gate"); /* until it is in its control group */
        sethostname("web-0", 5);
        enter_root();
        apart(secrets);
        apart(api);
        apart(dropped);
        must(send(gate[0], "x", 1, 0), "gate");
        must(recv(gate[0], &go, 1, 0), "gate"); /* until the host has gone on */
        apart(device);
        apart(release_agent);
        flush();
        sleep(2); /* as containers do: long enough for a recorder to ask which one it is */
        _exit(0);
    }
    say("container");
    text("id", CONTAINER);
    number("child", pid);
    done();
    flush();

    /* In every hierarchy: which of them a recorder looks at is its affair. */
    char *groups[64], name[32], line[512], type[32], at[256];
    int count = 0;
    FILE *mounts = fopen("/proc/self/mounts", "r");
    while (mounts && fgets(line, sizeof line, mounts) && count < 64) {
        if (sscanf(line, "%*s %255s %31s", at, type) != 2 || strncmp(type, "cgroup", 6))
            continue;
        char *group = in(at, "docker-" CONTAINER ".scope"), *tasks = in(group, "cgroup.procs");
        snprintf(name, sizeof name, "%d", pid);
        if (mkdir(group, 0755))
            continue;
        groups[count++] = group;
        int fd = open(tasks, O_WRONLY);
        if (fd >= 0 && write(fd, name, strlen(name)) < 0) /* cpuset wants more to be said first */
            rmdir(groups[--count]);
        close(fd);
    }
    if (mounts)
        fclose(mounts);
    close(gate[0]);
    must(send(gate[1], "x", 1, 0), "gate");
    must(recv(gate[1], &go, 1, 0), "gate");
    apart(shell_of_a_server);
    must(send(gate[1], "x", 1, MSG_NOSIGNAL), "gate");
    close(gate[1]);
    must(waitpid(pid, NULL, 0), "waitpid");
    for (int tries = 0; tries < 100; tries++) {
        int left = 0;
        for (int i = 0; i < count; i++)
            left += rmdir(groups[i]) && errno != ENOENT;
        if (!left)
            break;
        usleep(20000); /* a group is empty a moment after its last process has gone */
    }
}

int main(int argc, char **argv)
{
    char *shell[] = {"sh", "-c", "true", NULL}, path[4096] = {0};
    if (argc != 2)
        return 2;
    if (!strcmp(argv[1], "--nothing")) {
        usleep(A_WHILE);
        return 0;
    }
    if (!strcmp(argv[1], "--api")) {
        calls_api();
        usleep(A_WHILE);
        return 0;
    }
    if (!strcmp(argv[1], "--shell")) {
        execve("/bin/sh", shell, none);
        return 127;
    }
    must(readlink("/proc/self/exe", path, sizeof path - 1), "readlink");
    folder = argv[1], self = path;
    apart(stdio_over_socket);
    apart(debugger_check);
    apart(injection);
    apart(unpacked_code);
    apart(without_a_file);
    apart(module);
    apart(preloaded);
    container();
    say("host");
    done();
    apart(dropped);
    apart(release_agent);
    return 0;
}
