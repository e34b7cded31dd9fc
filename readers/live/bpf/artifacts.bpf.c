/* The programs that see artifacts: content that passes through system calls, and moments at which
 * user space has to look at once. Loaded only where artifacts are asked for, beside the recorder's.
 *
 * As there, calls are looked at as they return: what was written or read is in memory then.
 */
#include "flow.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define X32_NUMBERS 0x40000000
#define ANONYMOUS 0x20
#define WRITABLE 2
#define EXECUTABLE 4
#define FOR_WRITING 2
#define PEEKED 0x2002 /* MSG_PEEK, MSG_ERRQUEUE */
#define DISCARDED 0x20 /* MSG_TRUNC */
#define PROG_LOAD 5
#define NEW_MOUNTS 0x20000 /* CLONE_NEWNS */
#define PATH_BYTES 4096
#define SOCK_STREAM 1
#define SOCK_SEQPACKET 5

struct {
    MAP_TYPE(BPF_MAP_TYPE_ARRAY);
    MAP_ENTRIES(1024); /* the native instruction set's, then those of the 32-bit one */
    u32 *key;
    struct kcap_doing *value;
} doings SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_RINGBUF);
    MAP_ENTRIES(1048576);
} triggers SEC(".maps");

/* Devices whose files are watched as they are executed. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_HASH);
    MAP_ENTRIES(4096);
    u32 *key;
    u8 *value;
} marked SEC(".maps");

/* Processes that had streams. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(16384);
    u32 *key;
    u8 *value;
} parties SEC(".maps");

struct region {
    u64 mm, page;
};

/* How memory that could be written, or became code, is protected. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(32768);
    struct region *key;
    u32 *value;
} regions SEC(".maps");

struct note {
    struct kcap_trigger trigger;
    u8 path[PATH_BYTES];
};

struct {
    MAP_TYPE(BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_ENTRIES(1);
    u32 *key;
    struct note *value;
} notes SEC(".maps");

/* Bits by the type in a file's mode, and by descriptor; no descriptor: any. */
const volatile u32 read_modes = 0, read_fds = 0, write_modes = 0, write_fds = 0;
const volatile u32 alone = 0; /* no other program follows who is tracked */
const volatile u32 tell_exec = 0, tell_failed = 1;

/* ---- triggers ---- */

INLINE struct kcap_trigger *note(struct scratch *s, u16 kind)
{
    u32 zero = 0;
    struct note *made = bpf_map_lookup_elem(&notes, &zero);
    if (!made)
        return 0;
    struct kcap_trigger *t = &made->trigger;
    struct kcap_record *r = &s->record;
    __builtin_memset(t, 0, sizeof(*t));
    t->ts_ns = r->ts_ns;
    t->cgroup_id = r->cgroup_id;
    t->start_ns = r->start_ns;
    t->thread_start_ns = r->thread_start_ns;
    t->pid = r->pid;
    t->tid = r->tid;
    t->mount_ns = r->mount_ns;
    t->nr = r->nr;
    t->retval = r->retval;
    t->kind = kind;
    __builtin_memcpy(t->comm, r->comm, sizeof(t->comm));
    return t;
}

INLINE void note_inode(struct kcap_trigger *t, struct scratch *s, u64 inode)
{
    put_inode(s, inode);
    t->changed_ns = s->record.number[6];
    t->dev = s->record.number[7];
    t->inode = s->record.number[8];
    t->mode = s->record.number[9];
    t->size = word(inode, o_inode__i_size);
    if (!half(inode, o_inode__i_nlink))
        t->flags |= KCAP_UNLINKED;
}

/* Tell user space, with the path that was put last. */
INLINE void tell(struct scratch *s, struct kcap_trigger *t)
{
    struct note *made = (struct note *)t;
    u64 path = s->record.piece[2];
    asm volatile("" : "+r"(path));
    if (path > PATH_BYTES)
        path = PATH_BYTES;
    if (path)
        bpf_probe_read_kernel(made->path, path, s->data);
    t->path = path;
    u64 size = sizeof(*t) + path;
    sum(bpf_ringbuf_output(&triggers, made, size, 2) ? KCAP_SUM_TRIGGERS_LOST : KCAP_SUM_TRIGGERS, 1);
}

/* ---- system calls ---- */

INLINE u32 narrow_socket_call(u32 which)
{
    static const volatile u16 native[21] = {0,  41, 49, 42, 50, 43, 51,  52,  53, 44, 45,
                                            44, 45, 48, 54, 55, 46, 47, 288, 299, 307};
    return which < 21 ? native[which] : 0;
}

INLINE void take_registers(struct flow *f, u64 at, u8 narrow, u8 packed)
{
    struct arguments regs = {};
    bpf_probe_read_kernel(&regs, sizeof(regs), (void *)(at + ARGUMENTS_AT));
    if (packed) {
        u32 words[6] = {};
        bpf_probe_read_user(words, sizeof(words), (void *)(u64)(u32)(packed == 1 ? regs.bx : regs.cx));
        for (u32 i = 0; i < 6; i++)
            f->call[i] = words[i];
    } else if (narrow) {
        f->call[0] = (u32)regs.bx;
        f->call[1] = (u32)regs.cx;
        f->call[2] = (u32)regs.dx;
        f->call[3] = (u32)regs.si;
        f->call[4] = (u32)regs.di;
        f->call[5] = (u32)regs.bp;
    } else {
        f->call[0] = regs.di;
        f->call[1] = regs.si;
        f->call[2] = regs.dx;
        f->call[3] = regs.r10;
        f->call[4] = regs.r8;
        f->call[5] = regs.r9;
    }
}

SEC("raw_tp/sys_exit")
int on_sys_exit(struct bpf_raw_tracepoint_args *context)
{
    u64 regs_at = context->args[0];
    s64 retval = context->args[1];
    u64 nr = word(regs_at, __builtin_offsetof(struct registers, orig_ax));
    u8 packed = 0, narrow = o_task_struct__thread_info__status != NOWHERE &&
                            (known_half(current_task(), o_task_struct__thread_info__status) &
                             COMPAT_STATUS);
    u32 key = nr & ~X32_NUMBERS;
    if (narrow) {
        if ((u32)nr >= KCAP_CALLS)
            return 0;
        retval = (u32)retval > (u32)-4096 ? (s64)(s32)retval : (s64)(u32)retval;
        key = (u32)nr + KCAP_CALLS;
        if (nr == 102) { /* socketcall */
            key = narrow_socket_call(half(regs_at, __builtin_offsetof(struct registers, bx)));
            packed = 2;
        } else if (nr == 90) { /* the old mmap */
            key = 192 + KCAP_CALLS;
            packed = 1;
        }
    } else if (key >= KCAP_CALLS) {
        return 0;
    }
    struct kcap_doing *doing = bpf_map_lookup_elem(&doings, &key);
    if (!doing || !doing->class || is_own(bpf_get_current_pid_tgid() >> 32))
        return 0;
    struct flow *f = the_flow();
    struct scratch *s = the_scratch();
    if (!f || !s)
        return 0;
    f->doing = *doing;
    f->compat = narrow;
    f->retval = retval;
    s->record.nr = key;
    s->record.retval = retval;
    take_registers(f, regs_at, narrow, packed);
    bpf_tail_call(context, &steps, doing->class);
    return 0;
}

/* ---- streams ---- */

/* Whether what passes through a descriptor is kept; begins a piece of it then. */
INLINE u8 choose(struct flow *f, struct scratch *s, u64 file, u32 fd, u32 direction)
{
    u64 inode = word(file, o_file__f_inode);
    u16 mode = quarter(inode, o_inode__i_mode);
    u32 type = mode >> 12;
    u32 modes = direction == KCAP_READ ? read_modes : write_modes;
    u32 fds = direction == KCAP_READ ? read_fds : write_fds;
    if (!(modes >> type & 1) || (fds && (fd > 2 || !(fds >> fd & 1))))
        return 0;
    put_self(s);
    if (!in_scope(s))
        return 0;
    struct kcap_piece *p = &f->piece;
    struct kcap_record *r = &s->record;
    __builtin_memset(p, 0, sizeof(*p));
    p->ts_ns = r->ts_ns;
    p->inode = word(inode, o_inode__i_ino);
    p->dev = half(word(inode, o_inode__i_sb), o_super_block__s_dev);
    p->mode = mode;
    p->direction = direction;
    if (type == S_IFIFO_TYPE || type == S_IFSOCK_TYPE)
        p->generation = word(file, o_file__private_data);
    else if (type == S_IFREG_TYPE)
        p->generation = half(inode, o_inode__i_generation);
    else
        p->generation = r->start_ns;
    if (type == S_IFSOCK_TYPE)
        p->family = quarter(word(p->generation, o_socket__sk), o_sock_common__skc_family);
    if (type == S_IFCHR_TYPE)
        p->owner = r->pid;
    p->cgroup_id = r->cgroup_id;
    p->start_ns = r->start_ns;
    p->pid = r->pid;
    p->tid = r->tid;
    p->fd = fd;
    p->mount_ns = r->mount_ns;
    p->nr = r->nr;
    __builtin_memcpy(p->comm, r->comm, sizeof(p->comm));
    f->key.generation = p->generation;
    f->key.inode = p->inode;
    f->key.dev = p->dev;
    f->key.owner = p->owner;
    f->key.direction = direction;
    f->key.pad = 0;
    f->kept = 1;
    f->small = f->jumps = 0;
    f->messages = f->vectors = f->block_left = f->left = 0;
    return 1;
}

/* The stream of the piece in hand, made where there is none. */
INLINE struct kcap_stream *stream_of(struct flow *f)
{
    struct kcap_stream *held = bpf_map_lookup_elem(&streams, &f->key);
    if (!held) {
        struct kcap_stream fresh = {.born_ns = f->piece.ts_ns};
        bpf_map_update_elem(&streams, &f->key, &fresh, 1 /* BPF_NOEXIST */);
        held = bpf_map_lookup_elem(&streams, &f->key);
        if (!held)
            return 0;
    }
    f->piece.born_ns = held->born_ns;
    return held;
}

/* Nothing more comes: a pipe or a connection is at its end. */
INLINE void end_stream(struct flow *f)
{
    struct kcap_stream *held = bpf_map_lookup_elem(&streams, &f->key);
    u32 type = f->piece.mode >> 12;
    if (!held || (type != S_IFIFO_TYPE && type != S_IFSOCK_TYPE))
        return;
    if (type == S_IFSOCK_TYPE) {
        u16 kind = quarter(word(f->piece.generation, o_socket__sk), o_sock__sk_type);
        if (kind != SOCK_STREAM && kind != SOCK_SEQPACKET)
            return; /* a message without content */
    }
    f->piece.born_ns = held->born_ns;
    f->piece.total = f->piece.offset = held->next;
    f->piece.what = KCAP_ENDED;
    put_piece(f, 0);
}

/* Bytes that went from descriptor to descriptor. */
INLINE void pass_by(struct flow *f, struct scratch *s, u8 place, u32 direction)
{
    if (!place)
        return;
    u32 fd = f->call[(place - 1) & 7 & 3];
    u64 file = descriptor(fd);
    if (!file || !choose(f, s, file, fd, direction))
        return;
    if (!stream_of(f)) {
        sum(KCAP_SUM_STREAMS_LOST, f->retval);
        return;
    }
    reserve(f, f->retval);
    put_missing(f, KCAP_UNSEEN);
}

/* Whether bytes of TCP were thrown away instead of being put where a process said. */
INLINE u8 discarded(struct flow *f)
{
    u8 place = f->doing.peek;
    if (!place || !(f->call[(place - 1) & 3] & DISCARDED))
        return 0;
    return (f->piece.family == 2 || f->piece.family == 10) &&
           quarter(word(f->piece.generation, o_socket__sk), o_sock__sk_type) == SOCK_STREAM;
}

SEC("raw_tp/call_stream")
int call_stream(struct bpf_raw_tracepoint_args *context)
{
    struct flow *f = the_flow();
    struct scratch *s = the_scratch();
    if (!f || !s || f->retval < 0)
        return 0;
    struct kcap_doing *doing = &f->doing;
    if (doing->shape == KCAP_NO_BLOCK) {
        if (f->retval > 0) {
            pass_by(f, s, doing->fd, KCAP_READ);
            pass_by(f, s, doing->out, KCAP_WRITTEN);
        }
        return 0;
    }
    if (doing->peek && f->call[(doing->peek - 1) & 3] & PEEKED)
        return 0;
    u32 fd = f->call[0], direction = doing->direction;
    u64 file = descriptor(fd), base = f->call[1], count = f->call[2];
    if (!file)
        return 0;
    if (!direction)
        direction = half(file, o_file__f_mode) & FOR_WRITING ? KCAP_WRITTEN : KCAP_READ;
    if (!choose(f, s, file, fd, direction))
        return 0;
    u64 passed = f->retval;
    if (doing->shape == KCAP_BLOCK && passed > count)
        passed = count; /* of a message that was longer than the room for it */
    if (!passed) {
        if (direction == KCAP_READ && (count || doing->shape != KCAP_BLOCK))
            end_stream(f);
        return 0;
    }
    struct kcap_stream *held = stream_of(f);
    if (!held) {
        f->message = base;
        f->messages = passed;
        if (doing->shape == KCAP_SEVERAL)
            passed = message_bytes(f);
        sum(KCAP_SUM_STREAMS_LOST, passed);
        return 0;
    }
    u32 pid = s->record.pid;
    u8 one = 1;
    if (!bpf_map_lookup_elem(&parties, &pid))
        bpf_map_update_elem(&parties, &pid, &one, 0);
    if (doing->shape == KCAP_SEVERAL) {
        f->message = base;
        f->messages = passed;
    } else {
        if (doing->shape == KCAP_BLOCK) {
            f->block = base;
            f->block_left = passed;
        } else if (doing->shape == KCAP_BLOCKS) {
            f->vector = base;
            f->vectors = count;
        } else {
            read_message(f, base);
        }
        reserve(f, passed);
        if (discarded(f)) {
            put_missing(f, KCAP_UNSEEN);
            return 0;
        }
    }
    if (!held->opened && (f->piece.mode >> 12) != S_IFSOCK_TYPE)
        bpf_tail_call(context, &steps, KCAP_OPENING);
    bpf_tail_call(context, &steps, KCAP_COPYING);
    finish(f);
    return 0;
}

/* What the file of a stream is called; said again until there was room for it. */
SEC("raw_tp/call_opening")
int call_opening(struct bpf_raw_tracepoint_args *context)
{
    struct flow *f = the_flow();
    struct scratch *s = the_scratch();
    if (!f || !s)
        return 0;
    u64 file = descriptor(f->piece.fd);
    struct kcap_stream *held = bpf_map_lookup_elem(&streams, &f->key);
    if (held && file) {
        put_path(s, 2, word(file, o_file__f_path__dentry), word(file, o_file__f_path__mnt));
        u64 path = s->record.piece[2];
        asm volatile("" : "+r"(path));
        if (path > PATH_BYTES)
            path = PATH_BYTES;
        if (path)
            bpf_probe_read_kernel(f->data, path, s->data);
        f->piece.what = KCAP_OPENED;
        f->piece.offset = f->next;
        f->piece.length = 0;
        f->piece.bytes = path;
        u64 wake = waking(sizeof(f->piece) + path);
        /* Read anew: of a copy in another register the verifier of 6.12 does not know the bounds. */
        u64 size = *(volatile u32 *)&f->piece.bytes;
        asm volatile("" : "+r"(size));
        if (size > PATH_BYTES)
            size = PATH_BYTES;
        if (!bpf_ringbuf_output(&bytes, &f->piece, sizeof(f->piece) + size, wake))
            held->opened = 1;
    }
    bpf_tail_call(context, &steps, KCAP_COPYING);
    finish(f);
    return 0;
}

/* ---- io_uring: what is asked for there comes by no call, and is not in reach when it is done ---- */

#define RING_READS (1ULL << 1 | 1ULL << 4 | 1ULL << 10 | 1ULL << 22 | 1ULL << 27 | 1ULL << 49)
#define RING_WRITES                                                                                \
    (1ULL << 2 | 1ULL << 5 | 1ULL << 9 | 1ULL << 23 | 1ULL << 26 | 1ULL << 30 | 1ULL << 47 |       \
     1ULL << 48)

INLINE int ring_done(u64 request, s32 result)
{
    struct flow *f = the_flow();
    struct scratch *s = the_scratch();
    if (result <= 0 || !f || !s || is_own(bpf_get_current_pid_tgid() >> 32))
        return 0;
    u64 code = quarter(request, o_io_kiocb__opcode) & 63, file = word(request, o_io_kiocb__file);
    u32 direction = RING_READS >> code & 1 ? KCAP_READ : RING_WRITES >> code & 1 ? KCAP_WRITTEN : 0;
    s->record.nr = NOWHERE;
    if (!direction || !file || !choose(f, s, file, NOWHERE, direction))
        return 0;
    if (!stream_of(f)) {
        sum(KCAP_SUM_STREAMS_LOST, result);
        return 0;
    }
    reserve(f, result);
    put_missing(f, KCAP_UNSEEN);
    return 0;
}

/* Kernels before 6.16 give the result itself, among more. */
SEC("raw_tp/io_uring_complete")
int on_ring_result(struct bpf_raw_tracepoint_args *context)
{
    return ring_done(context->args[1], context->args[3]);
}

SEC("raw_tp/io_uring_complete")
int on_ring_entry(struct bpf_raw_tracepoint_args *context)
{
    return ring_done(context->args[1], half(context->args[2], o_io_uring_cqe__res));
}

/* ---- content that is taken with one call ---- */

INLINE void begin_content(struct flow *f, struct kcap_trigger *t, u32 direction)
{
    struct kcap_piece *p = &f->piece;
    __builtin_memset(p, 0, sizeof(*p));
    p->ts_ns = p->born_ns = p->generation = t->ts_ns;
    p->cgroup_id = t->cgroup_id;
    p->start_ns = t->start_ns;
    p->pid = t->pid;
    p->tid = p->owner = t->tid;
    p->mount_ns = t->mount_ns;
    p->nr = t->nr;
    p->fd = t->fd;
    p->direction = direction;
    p->total = t->length;
    __builtin_memcpy(p->comm, t->comm, sizeof(p->comm));
    f->kept = 0;
    f->small = f->jumps = 0;
    f->messages = f->vectors = 0;
    f->block = t->address;
    f->block_left = t->length;
    reserve(f, t->length);
}

SEC("raw_tp/call_program")
int call_program(struct bpf_raw_tracepoint_args *context)
{
    struct flow *f = the_flow();
    struct scratch *s = the_scratch();
    if (!f || !s || f->retval < 0 || (u32)f->call[0] != PROG_LOAD)
        return 0;
    put_self(s);
    if (!in_scope(s))
        return 0;
    struct kcap_trigger *t = note(s, KCAP_ON_PROGRAM);
    u64 attributes = f->call[1], size = (u32)f->call[2], instructions = 0;
    u32 head[2] = {};
    if (!t)
        return 0;
    bpf_probe_read_user(head, sizeof(head), (void *)attributes);
    bpf_probe_read_user(&instructions, 8, (void *)(attributes + 8));
    if (size >= 64)
        bpf_probe_read_user(t->name, sizeof(t->name), (void *)(attributes + 48));
    t->protection = head[0];
    t->address = instructions;
    t->length = 8 * (u64)head[1];
    t->fd = f->retval;
    u64 program = word(descriptor(f->retval), o_file__private_data);
    t->former = half(word(program, o_bpf_prog__aux), o_bpf_prog_aux__id);
    tell(s, t);
    begin_content(f, t, KCAP_PROGRAM);
    bpf_tail_call(context, &steps, KCAP_COPYING);
    finish(f);
    return 0;
}

SEC("raw_tp/call_module")
int call_module(struct bpf_raw_tracepoint_args *context)
{
    struct flow *f = the_flow();
    struct scratch *s = the_scratch();
    if (!f || !s)
        return 0;
    put_self(s);
    if (!in_scope(s))
        return 0;
    u8 from_file = f->doing.shape == KCAP_NO_BLOCK;
    struct kcap_trigger *t = note(s, from_file ? KCAP_ON_FILE : KCAP_ON_IMAGE);
    if (!t)
        return 0;
    if (from_file) {
        u64 file = descriptor(f->call[0]);
        t->fd = f->call[0];
        if (file) {
            note_inode(t, s, word(file, o_file__f_inode));
            put_path(s, 2, word(file, o_file__f_path__dentry), word(file, o_file__f_path__mnt));
        }
        tell(s, t);
        return 0;
    }
    t->address = f->call[0];
    t->length = f->call[1];
    if (t->length > 0x7fffffff)
        return 0; /* no kernel takes it */
    tell(s, t);
    begin_content(f, t, KCAP_IMAGE);
    bpf_tail_call(context, &steps, KCAP_COPYING);
    finish(f);
    return 0;
}

/* ---- memory ---- */

SEC("raw_tp/call_region")
int call_region(struct bpf_raw_tracepoint_args *context)
{
    struct flow *f = the_flow();
    struct scratch *s = the_scratch();
    if (!f || !s || (f->retval < 0 && (u64)f->retval >= (u64)-4095))
        return 0;
    u8 mapped = f->doing.shape == KCAP_NO_BLOCK;
    u32 protection = f->call[2], code = (protection & (EXECUTABLE | WRITABLE)) == EXECUTABLE;
    u64 start = mapped ? (u64)f->retval : f->call[0];
    struct region region = {.mm = word(bpf_get_current_task(), o_task_struct__mm), .page = start >> 12};
    u32 *known = bpf_map_lookup_elem(&regions, &region);
    u32 former = known ? *known : 0;
    if ((protection & WRITABLE) || (code && !mapped))
        bpf_map_update_elem(&regions, &region, &protection, 0);
    else if (known)
        bpf_map_delete_elem(&regions, &region);
    if (!code)
        return 0;
    u64 file = 0;
    if (mapped) {
        if (f->call[3] & ANONYMOUS)
            return 0;
        file = descriptor(f->call[4]);
        if (!file || half(word(file, o_file__f_inode), o_inode__i_nlink))
            return 0;
    }
    put_self(s);
    if (!in_scope(s))
        return 0;
    struct kcap_trigger *t = note(s, KCAP_ON_MEMORY);
    if (!t)
        return 0;
    if (mapped)
        t->flags = KCAP_MAPPED;
    else if (!(former & WRITABLE)) /* also of what was code where it begins: the rest may be new */
        t->flags = KCAP_FORMER_UNKNOWN;
    else
        t->flags = former & EXECUTABLE ? KCAP_WAS_CODE | KCAP_WAS_WRITABLE : KCAP_WAS_WRITABLE;
    t->address = start;
    t->length = f->call[1];
    t->protection = protection;
    t->former = former;
    t->fd = mapped ? f->call[4] : NOWHERE;
    if (file) {
        note_inode(t, s, word(file, o_file__f_inode));
        put_path(s, 2, word(file, o_file__f_path__dentry), word(file, o_file__f_path__mnt));
    }
    tell(s, t);
    return 0;
}

/* ---- mounts ---- */

SEC("raw_tp/call_mount")
int call_mount(struct bpf_raw_tracepoint_args *context)
{
    struct flow *f = the_flow();
    struct scratch *s = the_scratch();
    if (!f || !s || f->retval < 0)
        return 0;
    if (f->doing.shape && !(f->call[0] & NEW_MOUNTS)) /* unshare: also of other things */
        return 0;
    put_self(s); /* whoever did it: others execute what is mounted */
    struct kcap_trigger *t = note(s, KCAP_ON_MOUNT);
    if (t)
        tell(s, t);
    return 0;
}

/* ---- processes ---- */

SEC("raw_tp/sched_process_exec")
int on_exec(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    u64 file = word(context->args[2], o_linux_binprm__file), inode = word(file, o_file__f_inode);
    if (!s || is_own(bpf_get_current_pid_tgid() >> 32))
        return 0;
    put_self(s);
    if (alone && equals_binary) {
        put_inode(s, inode);
        struct binary binary = {.dev = s->record.number[7], .inode = s->record.number[8]};
        u8 *wanted = bpf_map_lookup_elem(&scope_binary, &binary);
        if (wanted && *wanted == EQUAL)
            track(s->record.pid);
    }
    if (!in_scope(s) || !tell_exec)
        return 0;
    s->record.nr = NOWHERE;
    s->record.retval = 0;
    struct kcap_trigger *t = note(s, KCAP_ON_EXEC);
    if (!t)
        return 0;
    note_inode(t, s, inode);
    u32 dev = t->dev;
    if (!bpf_map_lookup_elem(&marked, &dev))
        t->flags |= KCAP_UNWATCHED;
    if (!t->flags) /* who watches the device has it */
        return 0;
    t->fd = NOWHERE;
    put_path(s, 2, word(file, o_file__f_path__dentry), word(file, o_file__f_path__mnt));
    tell(s, t);
    return 0;
}

SEC("raw_tp/sched_process_fork")
int on_fork(struct bpf_raw_tracepoint_args *context)
{
    u64 child = context->args[1];
    u32 pid = bpf_get_current_pid_tgid() >> 32, born = half(child, o_task_struct__tgid);
    struct scratch *s = the_scratch();
    if (!alone || !scoped || !s || half(child, o_task_struct__pid) != born)
        return 0;
    if (track_matches) {
        put_self(s);
        in_scope(s);
    }
    if (track_new || is_tracked(pid))
        track(born);
    return 0;
}

SEC("raw_tp/sched_process_exit")
int on_exit(struct bpf_raw_tracepoint_args *context)
{
    u64 task = context->args[0];
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    if (half(word(task, o_task_struct__signal), o_signal_struct__live__counter))
        return 0;
    if (alone && scoped)
        bpf_map_delete_elem(&tracked, &pid);
    struct flow *f = the_flow();
    if (!f || bpf_map_delete_elem(&parties, &pid))
        return 0;
    __builtin_memset(&f->piece, 0, sizeof(f->piece));
    f->piece.ts_ns = bpf_ktime_get_boot_ns();
    f->piece.pid = pid;
    f->piece.start_ns = word(word(task, o_task_struct__group_leader), o_task_struct__start_boottime);
    f->piece.what = KCAP_GONE;
    f->kept = 0;
    put_piece(f, 0);
    return 0;
}
