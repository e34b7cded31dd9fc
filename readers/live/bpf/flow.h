/* Content on its way out of a process: where the next of it stands, piece by piece into the ring. */
#ifndef KCAP_FLOW_H
#define KCAP_FLOW_H

#include "scope.h"
#include "artifacts.h"

#define S_IFREG_TYPE 010
#define S_IFIFO_TYPE 01
#define S_IFCHR_TYPE 02
#define S_IFSOCK_TYPE 014
#define COMPAT_STATUS 2
#define JUMPS 31       /* of at most 33 from program to program, one each to begin and to name */
#define LOOKS 24       /* in one program, each at a chunk, a block or a message */
#define PAGE 4096

AT(o_inode__i_generation);
AT(o_inode__i_size);
AT(o_bpf_prog__aux);
AT(o_bpf_prog_aux__id);
AT(o_io_kiocb__file);
AT(o_io_kiocb__opcode);
AT(o_io_uring_cqe__res);

/* What the programs know of the call in hand; one a processor. */
struct flow {
    struct kcap_doing doing;
    u64 call[6]; /* the arguments */
    s64 retval;
    u64 message, vector, block; /* where they stand in the memory of the process */
    u64 messages, vectors, block_left, left, budget;
    u64 next;  /* offset of the next byte in the stream */
    u32 small; /* so many chunks end with their page: one of them can't be read */
    u32 jumps;
    u32 compat, kept; /* kept: the stream is in the map */
    struct kcap_stream_key key;
    struct kcap_piece piece;
    u8 data[KCAP_CHUNK];
};

struct {
    MAP_TYPE(BPF_MAP_TYPE_ARRAY);
    MAP_ENTRIES(1); /* the loader makes it one a processor */
    u32 *key;
    struct flow *value;
} flows SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_RINGBUF);
    MAP_ENTRIES(16777216);
} bytes SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_HASH);
    MAP_ENTRIES(65536);
    struct kcap_stream_key *key;
    struct kcap_stream *value;
} streams SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_ARRAY);
    MAP_ENTRIES(KCAP_SUMS);
    u32 *key;
    u64 *value;
} sums SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_PROG_ARRAY);
    MAP_ENTRIES(8);
    u32 *key;
    u32 *value;
} steps SEC(".maps");

const volatile u32 wake_bytes = 65536; /* fill of the ring that is worth waking for */
const volatile u64 call_bytes = 8388608; /* copied of one call at most */

INLINE struct flow *the_flow(void)
{
    u32 cpu = bpf_get_smp_processor_id();
    return bpf_map_lookup_elem(&flows, &cpu);
}

INLINE void sum(u32 which, u64 more)
{
    u64 *held = bpf_map_lookup_elem(&sums, &which);
    if (held)
        __sync_fetch_and_add(held, more);
}

/* Who runs, by the initial namespace, and whose it is. */
INLINE void put_self(struct scratch *s)
{
    struct kcap_record *r = &s->record;
    u64 task = bpf_get_current_task(), ids = bpf_get_current_pid_tgid();
    u64 spaces = word(task, o_task_struct__nsproxy);
    r->ts_ns = bpf_ktime_get_boot_ns();
    r->pid = ids >> 32;
    r->tid = ids;
    r->uid = bpf_get_current_uid_gid();
    r->start_ns = word(word(task, o_task_struct__group_leader), o_task_struct__start_boottime);
    r->thread_start_ns = word(task, o_task_struct__start_boottime);
    r->mount_ns = half(word(spaces, o_nsproxy__mnt_ns), o_mnt_namespace__ns__inum);
    if (scoped) {
        u64 pid = word(task, o_task_struct__thread_pid);
        u64 number = pid + o_pid__numbers + 16 * (u64)half(pid, o_pid__level);
        r->pid_ns = half(word(number, o_upid__ns), o_pid_namespace__ns__inum);
    }
    if (cgroup_controller == NOWHERE) {
        r->cgroup_id = bpf_get_current_cgroup_id();
    } else {
        u64 subsystems = word(task, o_task_struct__cgroups) + o_css_set__subsys;
        u64 subsystem = word(subsystems + 8 * (u64)cgroup_controller, 0);
        u64 cgroup = word(subsystem, o_cgroup_subsys_state__cgroup);
        r->cgroup_id = word(word(cgroup, o_cgroup__kn), o_kernfs_node__id);
    }
    put_current_comm(r->comm);
    r->flags = 0;
    __builtin_memset(r->piece, 0, sizeof(r->piece));
    s->used = 0;
}

INLINE u64 descriptor(u32 fd)
{
    return file_of(files_now(), fd);
}

/* ---- into the ring ---- */

/* To wake with each record while it is busy would cost more than the record. */
INLINE u64 waking(u32 added)
{
    u64 filled = bpf_ringbuf_query(&bytes, 0) + added;
    return filled >= wake_bytes && (filled & (wake_bytes - 1)) < added + 1024 ? 2 : 1;
}

INLINE void put_piece(struct flow *f, u64 following)
{
    asm volatile("" : "+r"(following));
    if (following > KCAP_CHUNK)
        following = KCAP_CHUNK;
    u64 size = sizeof(f->piece) + following;
    f->piece.bytes = following;
    u64 wake = waking(size);
    s64 full = bpf_ringbuf_output(&bytes, &f->piece, size, wake);
    sum(full ? KCAP_SUM_PIECES_LOST : KCAP_SUM_PIECES, 1);
    if (full)
        sum(KCAP_SUM_BYTES_LOST, f->piece.length);
    if (!f->kept || f->piece.what > KCAP_UNSEEN)
        return;
    struct kcap_stream *stream = bpf_map_lookup_elem(&streams, &f->key);
    if (!stream)
        return;
    if (full)
        __sync_fetch_and_add(&stream->missing[0], f->piece.length);
    else if (f->piece.what == KCAP_DATA)
        __sync_fetch_and_add(&stream->copied, f->piece.length);
    else
        __sync_fetch_and_add(&stream->missing[f->piece.what & 3], f->piece.length);
}

/* Say that what is left of the call is missing. */
INLINE void put_missing(struct flow *f, u32 what)
{
    if (!f->left)
        return;
    f->piece.what = what;
    f->piece.offset = f->next;
    f->piece.length = f->left;
    f->next += f->left;
    f->left = 0;
    put_piece(f, 0);
}

/* ---- through the memory of the process ---- */

INLINE void read_words(struct flow *f, u64 from, u64 to[2])
{
    u32 narrow[2] = {};
    to[0] = to[1] = 0;
    if (f->compat) {
        bpf_probe_read_user(narrow, sizeof(narrow), (void *)from);
        to[0] = narrow[0];
        to[1] = narrow[1];
    } else {
        bpf_probe_read_user(to, 16, (void *)from);
    }
}

/* The blocks of a msghdr. */
INLINE void read_message(struct flow *f, u64 from)
{
    u64 found[2];
    read_words(f, from + (f->compat ? 8 : 16), found);
    f->vector = found[0];
    f->vectors = found[1];
    f->block_left = 0;
}

/* The offset of the next `length` bytes, in the order in which calls return. */
INLINE void reserve(struct flow *f, u64 length)
{
    f->left = length;
    f->budget = length < call_bytes ? length : call_bytes;
    if (!f->kept) {
        f->next = 0;
        return;
    }
    struct kcap_stream *stream = bpf_map_lookup_elem(&streams, &f->key);
    if (stream) {
        f->next = __sync_fetch_and_add(&stream->next, length);
        f->piece.total = f->next + length;
    } else { /* user space has let go of it just now */
        sum(KCAP_SUM_STREAMS_LOST, length);
        f->left = 0;
    }
}

INLINE void next_message(struct flow *f)
{
    u32 step = f->compat ? 32 : 64, length = 0;
    bpf_probe_read_user(&length, 4, (void *)(f->message + (f->compat ? 28 : 56)));
    read_message(f, f->message);
    f->message += step;
    f->messages--;
    reserve(f, length);
}

INLINE void next_block(struct flow *f)
{
    u64 found[2];
    read_words(f, f->vector, found);
    f->vector += f->compat ? 8 : 16;
    f->vectors--;
    f->block = found[0];
    f->block_left = found[1] < f->left ? found[1] : f->left;
}

INLINE void next_chunk(struct flow *f)
{
    u64 length = f->block_left;
    if (length > f->budget)
        length = f->budget;
    if (f->small) {
        u64 page = PAGE - (f->block & (PAGE - 1));
        if (length > page)
            length = page;
    }
    asm volatile("" : "+r"(length));
    if (length > KCAP_CHUNK)
        length = KCAP_CHUNK;
    if (!length)
        return;
    u32 failed = bpf_probe_read_user(f->data, length, (void *)f->block) != 0;
    if (failed && !f->small && length > PAGE) {
        f->small = KCAP_CHUNK / PAGE + 1; /* maybe only one page of it */
        return;
    }
    if (f->small)
        f->small--;
    f->block += length;
    f->block_left -= length;
    f->left -= length;
    f->budget -= length;
    f->piece.what = failed ? KCAP_UNREADABLE : KCAP_DATA;
    f->piece.offset = f->next;
    f->piece.length = length;
    f->next += length;
    put_piece(f, failed ? 0 : length);
}

#define MESSAGES_MAX 1024 /* of one call: UIO_MAXIOV */

/* Bytes of the messages that are not looked at. */
INLINE u64 message_bytes(struct flow *f)
{
    u64 found = 0, at = f->message, count = f->messages;
    u32 step = f->compat ? 32 : 64, place = f->compat ? 28 : 56, length;
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < MESSAGES_MAX; i++) {
        if (i >= count)
            break;
        length = 0;
        bpf_probe_read_user(&length, 4, (void *)(at + place));
        found += length;
        at += step;
    }
    return found;
}

INLINE void finish(struct flow *f)
{
    put_missing(f, KCAP_BEYOND);
    if (f->messages) {
        reserve(f, message_bytes(f));
        f->messages = 0;
        put_missing(f, KCAP_BEYOND);
    }
    if (!f->kept) {
        f->piece.length = 0;
        f->piece.offset = f->next;
        f->piece.what = KCAP_DONE;
        put_piece(f, 0);
    }
}

SEC("raw_tp/call_copy")
int call_copy(struct bpf_raw_tracepoint_args *context)
{
    struct flow *f = the_flow();
    if (!f)
        return 0;
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < LOOKS; i++) {
        /* Read anew: known values would let the verifier follow each turn by itself. */
        if (*(volatile u64 *)&f->left && *(volatile u64 *)&f->budget) {
            if (*(volatile u64 *)&f->block_left)
                next_chunk(f);
            else if (*(volatile u64 *)&f->vectors)
                next_block(f);
            else
                break;
        } else if (*(volatile u64 *)&f->messages && !*(volatile u64 *)&f->left) {
            next_message(f);
        } else {
            break;
        }
    }
    if (((f->left && f->budget && (f->block_left || f->vectors)) || (!f->left && f->messages)) &&
        f->jumps < JUMPS) {
        f->jumps++;
        bpf_tail_call(context, &steps, KCAP_COPYING);
    }
    finish(f);
    return 0;
}
#endif
