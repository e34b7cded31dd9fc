/* A process whose arguments can't be read: stuck memory|file|lock LONG [PATH]
 *
 * LONG is some pages of anything, and the page in the middle of it is replaced. `memory`: by one
 * that userfaultfd holds back and nobody ever fills. `file`: by a mapping of PATH, whose server may
 * have stopped answering. Kernels of today read neither, and give what is before it.
 * `lock`: after a line on standard input a thread reads such a mapping through /proc/self/mem,
 * which holds the lock of the memory until the server answers, and another one maps something, which
 * waits for that lock and makes all wait that come later: who reads the arguments, too.
 * Needs no rights. Waits until it is killed.
 */
#include "say.h"

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>

#define PAGE 4096UL

static long held_back(char *page)
{
    /* Not UFFD_USER_MODE_ONLY: it is the kernel that is to wait, on behalf of a reader. */
    long fd = kernel(syscall(SYS_userfaultfd, O_CLOEXEC));
    if (fd < 0)
        return fd;
    struct uffdio_api api = {.api = UFFD_API};
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(page, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
        return -errno;
    struct uffdio_register wanted = {
        .range = {(unsigned long)page, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl((int)fd, UFFDIO_API, &api) < 0)
        return -errno;
    return kernel(ioctl((int)fd, UFFDIO_REGISTER, &wanted));
}

static long mapped(char *page, const char *path)
{
    int fd = open(path, O_RDONLY);
    if (fd < 0 || mmap(page, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        return -errno;
    return 0;
}

static void *reads(void *page)
{
    char byte;
    int fd = must(open("/proc/self/mem", O_RDONLY), "/proc/self/mem");
    return (void *)pread(fd, &byte, 1, (off_t)page);
}

static void *maps(void *unused)
{
    (void)unused;
    return mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* The stack of a thread is mapped, too: before anything is locked. */
static int second[2];

static void *maps_when_told(void *unused)
{
    char byte;
    must(read(second[0], &byte, 1), "read");
    usleep(100000);
    return maps(unused);
}

static long locked(const char *path)
{
    pthread_t one, two;
    int fd = open(path, O_RDONLY);
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        return -errno;
    must(pipe(second), "pipe");
    say("prepared");
    done();
    flush();
    pthread_create(&two, NULL, maps_when_told, NULL);
    char line[2];
    must(read(0, line, 1), "read");
    pthread_create(&one, NULL, reads, page);
    must(write(second[1], line, 1), "write");
    pthread_join(two, NULL);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 3 || strlen(argv[2]) < 3 * PAGE)
        return 2;
    if (argc == 4 && strcmp(argv[1], "lock") == 0)
        return locked(argv[3]) < 0;
    char *page = (char *)(((unsigned long)argv[2] + PAGE) & ~(PAGE - 1));
    long ret = argc == 4 ? mapped(page, argv[3]) : held_back(page);
    say("stuck");
    number("ret", ret);
    done();
    flush();
    while (ret == 0)
        pause();
    return 1;
}
