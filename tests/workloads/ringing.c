/* Passes 5,000 bytes through a pipe by io_uring. Exits 3 where that is off. */
#define _GNU_SOURCE
#include <linux/io_uring.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AT(type, base, offset) ((type *)((char *)(base) + (offset)))

static struct io_uring_params params;
static void *ring;
static struct io_uring_sqe *entries;
static char block[5000];

/* One request, and its result. */
static int ask(int uring, int code, int fd)
{
    unsigned tail = *AT(unsigned, ring, params.sq_off.tail);
    unsigned slot = tail & *AT(unsigned, ring, params.sq_off.ring_mask);
    entries[slot] = (struct io_uring_sqe){
        .opcode = code, .fd = fd, .addr = (unsigned long)block, .len = sizeof(block), .off = -1};
    AT(unsigned, ring, params.sq_off.array)[slot] = slot;
    atomic_store((_Atomic unsigned *)AT(unsigned, ring, params.sq_off.tail), tail + 1);
    if (syscall(SYS_io_uring_enter, uring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0L) < 0)
        return -1;
    unsigned head = *AT(unsigned, ring, params.cq_off.head);
    unsigned mask = *AT(unsigned, ring, params.cq_off.ring_mask);
    int result = AT(struct io_uring_cqe, ring, params.cq_off.cqes)[head & mask].res;
    atomic_store((_Atomic unsigned *)AT(unsigned, ring, params.cq_off.head), head + 1);
    return result;
}

int main(void)
{
    int p[2], uring = syscall(SYS_io_uring_setup, 8, &params);
    if (uring < 0)
        return 3;
    size_t asked = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    size_t answered = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    size_t bytes = asked > answered ? asked : answered, all = params.sq_entries * sizeof(*entries);
    ring = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, uring, IORING_OFF_SQ_RING);
    entries = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_SHARED, uring, IORING_OFF_SQES);
    if (ring == MAP_FAILED || entries == MAP_FAILED || pipe(p))
        return 1;
    memset(block, 'u', sizeof(block));
    if (ask(uring, IORING_OP_WRITE, p[1]) != sizeof(block))
        return 1;
    if (ask(uring, IORING_OP_READ, p[0]) != sizeof(block))
        return 1;
    return write(p[1], "seen", 4) == 4 && read(p[0], block, 4) == 4 ? 0 : 1;
}
