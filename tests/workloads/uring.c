/* uring FOLDER: opens files through io_uring: no open is ever called. Exits 3 where io_uring is off. */
#include "say.h"
#include <linux/io_uring.h>
#include <stdatomic.h>

#define AT(type, base, offset) ((type *)((char *)(base) + (offset)))

static struct io_uring_params params;
static void *ring;
static struct io_uring_sqe *entries;

static long run(int fd, struct io_uring_sqe entry)
{
    unsigned tail = *AT(unsigned, ring, params.sq_off.tail);
    unsigned slot = tail & *AT(unsigned, ring, params.sq_off.ring_mask);
    entries[slot] = entry;
    AT(unsigned, ring, params.sq_off.array)[slot] = slot;
    atomic_store((_Atomic unsigned *)AT(unsigned, ring, params.sq_off.tail), tail + 1);
    long got = kernel(syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0L));
    if (got < 0)
        return got;
    unsigned head = *AT(unsigned, ring, params.cq_off.head);
    unsigned mask = *AT(unsigned, ring, params.cq_off.ring_mask);
    long result = AT(struct io_uring_cqe, ring, params.cq_off.cqes)[head & mask].res;
    atomic_store((_Atomic unsigned *)AT(unsigned, ring, params.cq_off.head), head + 1);
    return result;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    long fd = kernel(syscall(SYS_io_uring_setup, 8, &params));
    say("io_uring_setup");
    number("ret", fd);
    done();
    if (fd < 0)
        return 3;
    /* Both rings lie in one mapping since 5.4. */
    size_t submitted = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t completed = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    size_t bytes = submitted > completed ? submitted : completed;
    ring = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
    must(ring == MAP_FAILED ? -1 : 0, "mmap");
    entries = mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQES);
    must(entries == MAP_FAILED ? -1 : 0, "mmap");

    char *path = in(argv[1], "hidden");
    struct io_uring_sqe opening = {
        .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)path, .len = 0600,
        .open_flags = O_CREAT | O_RDWR,
    };
    long file = run(fd, opening);
    say("io_uring openat");
    text("path", path);
    number("ret", file);
    done();
    struct io_uring_sqe writing = {
        .opcode = IORING_OP_WRITE, .fd = file, .addr = (uintptr_t) "unseen", .len = 6,
    };
    long wrote = run(fd, writing);
    say("io_uring write");
    text("path", path);
    number("ret", wrote);
    done();
    return file < 0 || wrote != 6;
}
