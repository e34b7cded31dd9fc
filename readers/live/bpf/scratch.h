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

/* A directory, as numbers: out of memory the verifier gives a pointer no type. */
struct place {
    u64 dentry, vfsmount;
};

/* What a program and those that it calls know of the event in hand; one a processor. Only
 * programs that run in a process's own context use it, so none can interrupt another there. */
struct scratch {
    struct kcap_call call;
    u64 used; /* bytes of data */
    u64 task; /* whose identity the record has */
    u64 variable; /* of the environment: the next to be looked at */
    u64 inside; /* it is the rest of a long one, whatever it looks like */
    u64 parent; /* the task that started it, as the record has it */
    struct place place; /* where a path begins */
    u64 comm[2]; /* its name, as the kernel has it */
    u64 unasked_hot, unasked_rare; /* bytes since it was asked how full that ring is */
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
#define DENTRY_BYTES 72 /* parent, name, inode, and the name itself where it is short */
#define SHORT_NAME (o_dentry__d_shortname != NOWHERE ? o_dentry__d_shortname : o_dentry__d_iname)
#define SHORT_BYTES 32 /* on any kernel, with the NUL */
#define OF_MOUNT(field)                                                                            \
    OUT_OF(u64, word, s->span, MOUNT_BYTES, mount, o_mount__mnt_parent, (field))
#define OF_DENTRY(type, read, field)                                                               \
    OUT_OF(type, read, s->span, DENTRY_BYTES, dentry, o_dentry__d_parent, (field))

/* The name of a dentry whose span was read. */
INLINE void put_name(struct scratch *s, u64 dentry, u64 at)
{
    u64 name = OF_DENTRY(u64, word, o_dentry__d_name__name);
    u32 place = SHORT_NAME - o_dentry__d_parent;
    /* A number of its own: two that are compared the verifier of 6.18 keeps apart in all states. */
    u64 apart = name - dentry;
    u32 length = OF_DENTRY(u32, half, o_dentry__d_name__len);
    if (length - 1 >= SHORT_BYTES - 1)
        apart = 0;
    asm volatile("" : "+r"(apart));
    if (place <= DENTRY_BYTES - SHORT_BYTES && apart == SHORT_NAME) {
        u64 *to = (u64 *)&s->data[at & OFFSET_MASK], *from = (u64 *)&s->span[place];
#pragma clang loop unroll(full)
        for (u32 i = 0; i < SHORT_BYTES / 8; i++)
            to[i] = from[i];
        s->data[(at & OFFSET_MASK) + (length & (SHORT_BYTES - 1))] = 0;
        s->used = at + length + 1;
        return;
    }
    s64 got = bpf_probe_read_kernel_str(&s->data[at & OFFSET_MASK], NAME_BYTES, (void *)name);
    if (got > 1)
        s->used = at + got;
}

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
        u64 up = OF_DENTRY(u64, word, o_dentry__d_parent);
        put_name(s, dentry, at);
        if (dentry == up || !up)
            break;
        dentry = up;
    }
    if (i == PATH_DEPTH)
        s->record.flags |= KCAP_DEEP;
    s->record.piece[piece] = *(volatile u64 *)&s->used - start;
}

/* ---- files ---- */

/* An open file of the thread that runs. */
INLINE u64 file_of(u64 files, u32 fd)
{
    u64 table = known_word(files, o_files_struct__fdt);
    if (!table || fd >= known_half(table, o_fdtable__max_fds))
        return 0;
    return word(known_word(table, o_fdtable__fd) + 8 * (u64)fd, 0);
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

INLINE u64 files_now(void)
{
    return known_word(current_task(), o_task_struct__files);
}

INLINE void find_directory(struct place *to)
{
    u64 fs = known_word(current_task(), o_task_struct__fs);
    to->dentry = known_word(fs, o_fs_struct__pwd__dentry);
    to->vfsmount = known_word(fs, o_fs_struct__pwd__mnt);
}

INLINE void put_place(struct scratch *s, u32 piece, volatile struct place *from)
{
    put_path(s, piece, from->dentry, from->vfsmount);
}

INLINE void put_directory(struct scratch *s, u32 piece)
{
    find_directory(&s->place);
    put_place(s, piece, &s->place);
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
        find_directory(&s->place);
    } else {
        u64 file = file_of(files_now(), fd);
        if (!file)
            return;
        s->place.dentry = word(file, o_file__f_path__dentry);
        s->place.vfsmount = word(file, o_file__f_path__mnt);
    }
    put_place(s, piece, &s->place);
}

/* ---- whose event it is ---- */

INLINE u32 ns_number(u64 pid)
{
    u32 level = half(pid, o_pid__level);
    return half(pid + o_pid__numbers + 16 * (u64)level, 0);
}

INLINE u64 cgroup_now(u64 task)
{
    if (cgroup_controller == NOWHERE && !(typed && o_css_set__dfl_cgrp != NOWHERE))
        return bpf_get_current_cgroup_id();
    u64 set = known_word(task, o_task_struct__cgroups), cgroup;
    if (cgroup_controller == NOWHERE)
        cgroup = known_word(set, o_css_set__dfl_cgrp);
    else
        cgroup = known_word(known_word(set, o_css_set__subsys + 8 * cgroup_controller),
                            o_cgroup_subsys_state__cgroup);
    return known_word(known_word(cgroup, o_cgroup__kn), o_kernfs_node__id);
}

/* Who it is by the initial namespace, and what it is called. */
INLINE void put_user(struct scratch *s, u64 task)
{
    struct kcap_record *r = &s->record;
    if (!typed || o_task_struct__comm == NOWHERE) {
        u64 users = bpf_get_current_uid_gid();
        r->uid = users;
        r->gid = users >> 32;
        put_current_comm(r->comm);
        return;
    }
    u64 cred = known_word(task, o_task_struct__cred);
    r->uid = known_half(cred, o_cred__uid);
    r->gid = known_half(cred, o_cred__gid);
    u64 first = known_word(task, o_task_struct__comm);
    u64 second = known_word(task, o_task_struct__comm + 8);
    if (s->comm[0] != first || s->comm[1] != second) {
        s->comm[0] = first;
        s->comm[1] = second;
        put_current_comm(r->comm); /* without what stands behind its end */
    }
}

/* The identity of the thread that runs. What no call changes stays from its last event here. */
INLINE void put_identity(struct scratch *s, u64 task)
{
    struct kcap_record *r = &s->record;
    u64 ids = pid_tgid(task);
    u64 started_ns = known_word(task, o_task_struct__start_boottime);
    u64 parent = known_word(task, o_task_struct__real_parent);
    /* Compared as numbers: what equals a pointer would be taken for it, and has no type. */
    u64 task_at = task, parent_at = parent;
    asm volatile("" : "+r"(task_at), "+r"(parent_at));
    u8 same = s->task == task_at && r->thread_start_ns == started_ns && r->tid == (u32)ids &&
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
    if (!same || s->parent != parent_at) {
        r->ppid = half(parent, o_task_struct__tgid);
        r->ns_ppid =
            ns_number(word(word(parent, o_task_struct__group_leader), o_task_struct__thread_pid));
    }
    s->task = task_at;
    s->parent = parent_at;
    u64 mounts = known_word(known_word(task, o_task_struct__nsproxy), o_nsproxy__mnt_ns);
    r->mount_ns = known_half(mounts, o_mnt_namespace__ns__inum);
    r->thread_start_ns = started_ns;
    r->pid = ids >> 32;
    r->tid = ids;
    r->cgroup_id = cgroup_now(task);
    r->cpu = bpf_get_smp_processor_id();
    put_user(s, task);
}

/* Begin an event of this thread, `task`. */
INLINE void begin(struct scratch *s, u64 task, u16 event)
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
    put_identity(s, task);
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

#define WAKE_SLACK 8192
#define UNASKED 4096

/* Whether a record of so many bytes wakes user space: where it fills another `part` of the ring, a
 * power of two. To do so with each record while it is busy would take several times what the record
 * does. Nor is it asked with each how full the ring is, and other processors add records meanwhile:
 * so those that come just behind do, too. */
INLINE u64 wake(void *ring, u32 part, u32 bytes, u64 *unasked)
{
    *unasked += bytes;
    if (*unasked < UNASKED)
        return 1;
    *unasked = 0;
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
    s64 full = to_hot ? bpf_ringbuf_output(&hot, &s->record, bytes, wake(&hot, wake_hot, size, &s->unasked_hot))
                      : bpf_ringbuf_output(&rare, &s->record, bytes, wake(&rare, wake_rare, size, &s->unasked_rare));
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
