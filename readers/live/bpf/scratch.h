/* How an event is put together: whose it is, its pieces, and its way into a ring. */
#ifndef KCAP_SCRATCH_H
#define KCAP_SCRATCH_H

#include "kernel.h"
#include "record.h"

#define OFFSET_MASK 0x7fff
#define DATA_BYTES (OFFSET_MASK + 1 + KCAP_STRING)
#define PATH_DEPTH 64
#define NAME_BYTES 256
#define SPAN 136

/* What a program and those that it calls know of the event in hand; one a processor. Only
 * programs that run in a process's own context use it, so none can interrupt another there. */
struct scratch {
    struct kcap_call call;
    u64 used; /* bytes of data */
    u64 task; /* whose identity the record has */
    u64 variable; /* of the environment: the next to be looked at */
    u64 inside; /* it is the rest of a long one, whatever it looks like */
    u64 parent; /* the task that started it, as the record has it */
    u8 thread[SPAN]; /* of its task_struct, from `cred` on */
    u8 span[SPAN]; /* of the structure that is looked at */
    struct kcap_record record;
    u8 data[DATA_BYTES];
};

struct {
    MAP_TYPE(BPF_MAP_TYPE_ARRAY); /* a value of a map by processor may have 32 KiB only */
    MAP_ENTRIES(1); /* the loader makes it one a processor */
    u32 *key;
    struct scratch *value;
} scratches SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_RINGBUF);
    MAP_ENTRIES(8388608);
} rare SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_RINGBUF);
    MAP_ENTRIES(33554432);
} hot SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_ENTRIES(KCAP_EVENTS);
    u32 *key;
    struct kcap_count *value;
} counts SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_HASH);
    MAP_ENTRIES(16384);
    struct kcap_victim *key;
    u64 *value;
} victims SEC(".maps");

struct own {
    u32 tgid[KCAP_OWN];
};

/* The recorder's processes, whose calls are left out; 0: no process. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_ARRAY);
    MAP_ENTRIES(1);
    u32 *key;
    struct own *value;
} own SEC(".maps");

/* How many calls of theirs were left out: who makes one can see that the program still runs. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_ENTRIES(1);
    u32 *key;
    u64 *value;
} alive SEC(".maps");

const volatile u32 wake_rare = 65536, wake_hot = 65536; /* fill of a ring that is worth waking for */
const volatile u32 cgroup_controller = NOWHERE; /* whose hierarchy tells containers apart; else v2 */

INLINE struct scratch *the_scratch(void)
{
    u32 cpu = bpf_get_smp_processor_id();
    return bpf_map_lookup_elem(&scratches, &cpu);
}

INLINE u8 is_own(u32 tgid)
{
    u32 zero = 0;
    struct own *ours = bpf_map_lookup_elem(&own, &zero);
    if (!ours)
        return 0;
    u8 found = 0;
#pragma clang loop unroll(full)
    for (u32 i = 0; i < KCAP_OWN; i++)
        found |= ours->tgid[i] == tgid;
    return found;
}

/* ---- several fields of a structure with one read, which costs about as much as one of a field ---- */

INLINE void read_span(u8 *span, u64 base, u32 bytes)
{
    bpf_probe_read_kernel(span, bytes, (void *)base);
}

/* A field out of such a part of a structure; from the structure itself where it lies beyond. */
#define OUT_OF(type, read, span, bytes, base, first, field)                                        \
    ((field) - (first) <= (bytes) - sizeof(type) ? *(type *)((span) + ((field) - (first)))         \
                                                 : read((base), (field)))

/* ---- pieces ---- */

INLINE void put_user_string(struct scratch *s, u32 piece, u64 from)
{
    u64 at = s->used;
    if (!from)
        return;
    if (at > OFFSET_MASK) {
        s->record.flags |= KCAP_CUT;
        return;
    }
    s64 got = bpf_probe_read_user_str(&s->data[at & OFFSET_MASK], KCAP_STRING, (void *)from);
    if (got <= 0) {
        s->record.flags |= KCAP_FAULT;
        return;
    }
    if (got == KCAP_STRING)
        s->record.flags |= KCAP_CUT;
    s->record.piece[piece] = got - 1;
    s->used = at + got - 1;
}

INLINE void put_kernel_string(struct scratch *s, u32 piece, u64 from)
{
    u64 at = s->used;
    if (!from)
        return;
    if (at > OFFSET_MASK) {
        s->record.flags |= KCAP_CUT;
        return;
    }
    s64 got = bpf_probe_read_kernel_str(&s->data[at & OFFSET_MASK], KCAP_STRING, (void *)from);
    if (got <= 0)
        return;
    s->record.piece[piece] = got - 1;
    s->used = at + got - 1;
}

/* Bytes of the process; at most KCAP_STRING of them. */
INLINE void put_user_bytes(struct scratch *s, u32 piece, u64 from, u64 bytes)
{
    u64 at = s->used;
    if (!from || !bytes)
        return;
    if (at > OFFSET_MASK) {
        s->record.flags |= KCAP_CUT;
        return;
    }
    /* clang would drop the check as needless for a variable that it knows, the verifier needs it */
    asm volatile("" : "+r"(bytes));
    if (bytes > KCAP_STRING)
        bytes = KCAP_STRING;
    if (bpf_probe_read_user(&s->data[at & OFFSET_MASK], bytes, (void *)from)) {
        s->record.flags |= KCAP_FAULT;
        return;
    }
    s->record.piece[piece] += bytes;
    s->used = at + bytes;
}

#define MOUNT_BYTES 24
#define DENTRY_BYTES 24
#define OF_MOUNT(field)                                                                            \
    OUT_OF(u64, word, s->span, MOUNT_BYTES, mount, o_mount__mnt_parent, (field))
#define OF_DENTRY(field)                                                                           \
    OUT_OF(u64, word, s->span, DENTRY_BYTES, dentry, o_dentry__d_parent, (field))

/* Components of a path, the last one first, each with a NUL; an empty one stands for the root.
 * Where that is missing, the path hangs on nothing, as that of a memfd does, or is too deep. */
INLINE void put_path(struct scratch *s, u32 piece, u64 dentry, u64 vfsmount)
{
    u64 start = s->used;
    if (!dentry)
        return;
    if (start > OFFSET_MASK) {
        s->record.flags |= KCAP_CUT;
        return;
    }
    u32 i;
    u64 mount = vfsmount - o_mount__mnt;
    read_span(s->span, mount + o_mount__mnt_parent, MOUNT_BYTES);
    u64 above = OF_MOUNT(o_mount__mnt_parent), point = OF_MOUNT(o_mount__mnt_mountpoint);
    u64 root = OF_MOUNT(o_mount__mnt + o_vfsmount__mnt_root);
#pragma clang loop unroll(disable)
    for (i = 0; i < PATH_DEPTH; i++) {
        /* Read anew, of a length that it has followed the verifier would try every value. */
        u64 at = *(volatile u64 *)&s->used;
        if (at > OFFSET_MASK) {
            s->record.flags |= KCAP_CUT | KCAP_DEEP;
            break;
        }
        if (dentry == root) {
            if (above == mount || !above) {
                s->data[at & OFFSET_MASK] = 0;
                s->used = at + 1;
                break;
            }
            dentry = point;
            mount = above;
            read_span(s->span, mount + o_mount__mnt_parent, MOUNT_BYTES);
            above = OF_MOUNT(o_mount__mnt_parent);
            point = OF_MOUNT(o_mount__mnt_mountpoint);
            root = OF_MOUNT(o_mount__mnt + o_vfsmount__mnt_root);
            continue;
        }
        read_span(s->span, dentry + o_dentry__d_parent, DENTRY_BYTES);
        u64 up = OF_DENTRY(o_dentry__d_parent);
        s64 got = bpf_probe_read_kernel_str(&s->data[at & OFFSET_MASK], NAME_BYTES,
                                            (void *)OF_DENTRY(o_dentry__d_name__name));
        if (got > 1)
            s->used = at + got;
        if (dentry == up || !up)
            break;
        dentry = up;
    }
    if (i == PATH_DEPTH)
        s->record.flags |= KCAP_DEEP;
    s->record.piece[piece] = *(volatile u64 *)&s->used - start;
}

/* ---- files ---- */

INLINE u64 file_of(u64 files, u32 fd)
{
    u64 table[2] = {}; /* max_fds, fd: the first fields on every kernel */
    u64 at = word(files, o_files_struct__fdt);
    if (!at)
        return 0;
    if (o_fdtable__max_fds == 0 && o_fdtable__fd == 8) {
        bpf_probe_read_kernel(table, sizeof(table), (void *)at);
    } else {
        table[0] = half(at, o_fdtable__max_fds);
        table[1] = word(at, o_fdtable__fd);
    }
    return fd < (u32)table[0] ? word(table[1] + 8 * (u64)fd, 0) : 0;
}

#define INODE_BYTES 136
#define OF_INODE(type, read, field)                                                                \
    OUT_OF(type, read, s->span, INODE_BYTES, inode, 0, (field))

INLINE u64 changed_ns(struct scratch *s, u64 inode)
{
    u64 second = 0, ns = 0;
    if (o_inode__i_ctime_sec != NOWHERE) {
        second = OF_INODE(u64, word, o_inode__i_ctime_sec);
        ns = OF_INODE(u32, half, o_inode__i_ctime_nsec) & 0x7fffffff; /* the top bit: somebody asked */
    } else if (o_inode____i_ctime__tv_sec != NOWHERE) {
        second = OF_INODE(u64, word, o_inode____i_ctime__tv_sec);
        ns = OF_INODE(u64, word, o_inode____i_ctime__tv_nsec);
    } else {
        second = OF_INODE(u64, word, o_inode__i_ctime__tv_sec);
        ns = OF_INODE(u64, word, o_inode__i_ctime__tv_nsec);
    }
    return second * 1000000000ULL + ns;
}

/* Numbers 6 to 9: change time, device, inode, mode. */
INLINE void put_inode(struct scratch *s, u64 inode)
{
    read_span(s->span, inode, INODE_BYTES);
    s->record.number[6] = changed_ns(s, inode);
    s->record.number[7] = half(OF_INODE(u64, word, o_inode__i_sb), o_super_block__s_dev);
    s->record.number[8] = OF_INODE(u64, word, o_inode__i_ino);
    s->record.number[9] = OF_INODE(u16, quarter, o_inode__i_mode);
}

#define FILE_BYTES 80
#define OF_FILE(field) OUT_OF(u64, word, s->span, FILE_BYTES, file, 0, (field))

INLINE void put_file(struct scratch *s, u32 piece, u64 file)
{
    read_span(s->span, file, FILE_BYTES);
    u64 dentry = OF_FILE(o_file__f_path__dentry), vfsmount = OF_FILE(o_file__f_path__mnt);
    put_inode(s, OF_FILE(o_file__f_inode));
    put_path(s, piece, dentry, vfsmount);
}

/* ---- the thread that runs ---- */

#define THREAD_SPAN 128
#define OF_THREAD(field)                                                                           \
    OUT_OF(u64, word, s->thread, THREAD_SPAN, s->task, o_task_struct__cred, (field))

INLINE u64 files_of(struct scratch *s)
{
    return OF_THREAD(o_task_struct__files);
}

INLINE void put_directory(struct scratch *s, u32 piece)
{
    u64 fs = OF_THREAD(o_task_struct__fs);
    put_path(s, piece, word(fs, o_fs_struct__pwd__dentry), word(fs, o_fs_struct__pwd__mnt));
}

/* Where a relative path begins. */
INLINE void put_base(struct scratch *s, u32 piece, u8 at, u64 text, u32 text_bytes)
{
    if (!at || !text_bytes || s->data[text & OFFSET_MASK] == '/')
        return;
    u32 fd = (u32)-100;
    if (at != 255)
        fd = s->record.number[(at - 1) & 7];
    if (fd == (u32)-100) {
        put_directory(s, piece);
    } else {
        u64 file = file_of(files_of(s), fd);
        if (file)
            put_path(s, piece, word(file, o_file__f_path__dentry), word(file, o_file__f_path__mnt));
    }
}

/* ---- whose event it is ---- */

INLINE u32 ns_number(u64 pid)
{
    u32 level = half(pid, o_pid__level);
    return half(pid + o_pid__numbers + 16 * (u64)level, 0);
}

INLINE u64 cgroup_of(u64 task)
{
    if (cgroup_controller == NOWHERE)
        return bpf_get_current_cgroup_id();
    u64 subsys = word(task, o_task_struct__cgroups) + o_css_set__subsys + 8 * (u64)cgroup_controller;
    u64 cgroup = word(word(subsys, 0), o_cgroup_subsys_state__cgroup);
    return word(word(cgroup, o_cgroup__kn), o_kernfs_node__id);
}

/* The identity of the thread that runs. What no call changes stays from its last event here. */
INLINE void put_identity(struct scratch *s)
{
    struct kcap_record *r = &s->record;
    u64 task = bpf_get_current_task();
    u64 started_ns = word(task, o_task_struct__start_boottime);
    u64 ids = bpf_get_current_pid_tgid(), users = bpf_get_current_uid_gid();
    u64 parent = word(task, o_task_struct__real_parent);
    u8 same = s->task == task && r->thread_start_ns == started_ns && r->tid == (u32)ids &&
              r->pid == ids >> 32;
    if (!same) {
        u64 leader = word(task, o_task_struct__group_leader);
        u64 pid = word(task, o_task_struct__thread_pid);
        u32 level = half(pid, o_pid__level);
        u64 number = pid + o_pid__numbers + 16 * (u64)level;
        r->ns_tid = half(number, 0);
        r->pid_ns = half(word(number, o_upid__ns), o_pid_namespace__ns__inum);
        r->ns_pid = ns_number(word(leader, o_task_struct__thread_pid));
        r->start_ns = word(leader, o_task_struct__start_boottime);
    }
    /* While it is the parent of a task that lives, no other task can have its place in memory. */
    if (!same || s->parent != parent) {
        r->ppid = half(parent, o_task_struct__tgid);
        r->ns_ppid =
            ns_number(word(word(parent, o_task_struct__group_leader), o_task_struct__thread_pid));
    }
    s->task = task;
    s->parent = parent;
    read_span(s->thread, task + o_task_struct__cred, THREAD_SPAN);
    u64 mounts = word(OF_THREAD(o_task_struct__nsproxy), o_nsproxy__mnt_ns);
    r->mount_ns = half(mounts, o_mnt_namespace__ns__inum);
    r->thread_start_ns = started_ns;
    r->pid = ids >> 32;
    r->tid = ids;
    r->uid = users;
    r->gid = users >> 32;
    r->cgroup_id = cgroup_of(task);
    r->cpu = bpf_get_smp_processor_id();
    bpf_get_current_comm(r->comm, sizeof(r->comm));
}

/* Begin an event of this thread. */
INLINE void begin(struct scratch *s, u16 event)
{
    struct kcap_record *r = &s->record;
    r->ts_ns = bpf_ktime_get_boot_ns();
    r->event = event;
    r->flags = 0;
    r->nr = NOWHERE;
    r->retval = 0;
    r->error = 0;
    __builtin_memset(r->number, 0, sizeof(r->number));
    __builtin_memset(r->piece, 0, sizeof(r->piece));
    s->used = 0;
    put_identity(s);
}

/* ---- out ---- */

INLINE void count_loss(struct kcap_record *r)
{
    struct kcap_victim victim = {.cgroup_id = r->cgroup_id, .pid = r->pid, .event = r->event};
    u64 one = 1, *known = bpf_map_lookup_elem(&victims, &victim);
    if (known)
        __sync_fetch_and_add(known, 1);
    else if (bpf_map_update_elem(&victims, &victim, &one, 1 /* BPF_NOEXIST */) &&
             (known = bpf_map_lookup_elem(&victims, &victim))) /* another processor's was first */
        __sync_fetch_and_add(known, 1);
}

#define WAKE_SLACK 1024

/* Whether a record of so many bytes wakes user space: where it fills another `part` of the ring, a
 * power of two. To do so with each record while it is busy would take several times what the record
 * does. Other processors add records meanwhile: so do those that come just behind. */
INLINE u64 wake(void *ring, u32 part, u32 bytes)
{
    u64 filled = bpf_ringbuf_query(ring, 0) + bytes;
    return filled >= part && (filled & (part - 1)) < bytes + WAKE_SLACK ? 2 /* FORCE_WAKEUP */
                                                                        : 1 /* NO_WAKEUP */;
}

INLINE struct kcap_count *count_of(u32 event)
{
    return bpf_map_lookup_elem(&counts, &event);
}

const volatile u32 stacks = 0; /* call stacks are recorded */

#define STACK_BYTES 256 /* of 32 calls */
#define USER_STACK 256  /* BPF_F_USER_STACK */

INLINE void put_stack(void *context, struct scratch *s)
{
    u64 at = s->used;
    if (at > OFFSET_MASK)
        return;
    s64 got = bpf_get_stack(context, &s->data[at & OFFSET_MASK], STACK_BYTES, USER_STACK);
    if (got <= 0 || got > STACK_BYTES)
        return;
    s->record.piece[KCAP_STACK] = got;
    s->used = at + got;
}

INLINE void emit(void *context, struct scratch *s, u32 to_hot)
{
    if (stacks)
        put_stack(context, s);
    u64 bytes = *(volatile u64 *)&s->used;
    asm volatile("" : "+r"(bytes));
    if (bytes > DATA_BYTES)
        bytes = DATA_BYTES;
    bytes += sizeof(s->record);
    s->record.bytes = bytes;
    /* Read anew: of a copy in another register the verifier of 6.12 does not know the bounds. */
    u32 size = *(volatile u32 *)&s->record.bytes;
    s64 full = to_hot ? bpf_ringbuf_output(&hot, &s->record, bytes, wake(&hot, wake_hot, size))
                      : bpf_ringbuf_output(&rare, &s->record, bytes, wake(&rare, wake_rare, size));
    struct kcap_count *count = count_of(s->record.event);
    if (full)
        count_loss(&s->record);
    if (count) {
        if (full)
            count->lost++;
        else
            count->kept++;
    }
}
#endif
