/* The recorder's kernel program.
 *
 * System calls are recorded as they return: the registers still hold the arguments, memory that
 * they point to has been paged in, and what a descriptor stands for is known. The dispatcher looks
 * the call up in a table that user space fills, and hands it to the handler of its class.
 */
#include "scope.h"
#include "sockets.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define TS_COMPAT 2
#define X32_BIT 0x40000000
#define THREAD_BYTES 16384
#define MAP_ANONYMOUS 0x20
#define PROT_WRITE 2
#define PROT_EXEC 4
#define FMODE_WRITE 2
#define SIGNAL_GROUP_EXIT 4
#define PIDTYPE_SID 3
#define EEXIST 17
#define BPF_PROG_LOAD 5
#define ERRORS 4095

struct {
    MAP_TYPE(BPF_MAP_TYPE_ARRAY);
    MAP_ENTRIES(1024); /* the native instruction set's, then those of the 32-bit one */
    u32 *key;
    struct kcap_call *value;
} calls SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_PROG_ARRAY);
    MAP_ENTRIES(16);
    u32 *key;
    u32 *value;
} handlers SEC(".maps");

/* Names that threads had before the execution that is under way. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(8192);
    u32 *key;
    struct name *value;
} renamed SEC(".maps");

struct closing {
    u64 dentry, vfsmount, inode, number;
    u32 dev, mode;
};

/* What threads are closing. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(16384);
    u32 *key;
    struct closing *value;
} closings SEC(".maps");

struct range {
    u32 pid, pad;
    u64 start;
};

/* Memory of processes that had some which could be written and executed: its protection. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(16384);
    struct range *key;
    u32 *value;
} protections SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(8192);
    u32 *key;
    u8 *value;
} writing_code SEC(".maps");

const volatile u32 writes_only = 0;   /* of opened files, only those that may be written */
const volatile u32 environment = 1;   /* 0 none, 1 what the loader and Kubernetes read, 2 all */
const volatile u32 renames = 0;       /* changes of names are recorded */
const volatile u32 states = 0;        /* changes of sockets are recorded */
const volatile u32 event_exec = 1, event_fork = 2, event_exit = 3, event_rename = 4, event_state = 5;

/* ---- system calls ---- */

INLINE u8 is_compat(u64 task)
{
    return o_task_struct__thread_info__status != NOWHERE &&
           (known_half(task, o_task_struct__thread_info__status) & TS_COMPAT);
}

/* socketcall(2): which call of the native table it stands for. */
INLINE u32 socket_call(u32 which)
{
    static const volatile u16 native[21] = {0,  41, 49, 42, 50, 43, 51,  52,  53, 44, 45,
                                            44, 45, 48, 54, 55, 46, 47, 288, 299, 307};
    return which < 21 ? native[which] : 0;
}

INLINE void put_registers(struct scratch *s, struct arguments *regs, u8 compat)
{
    u64 *to = s->record.number;
    if (compat) {
        to[0] = (u32)regs->bx;
        to[1] = (u32)regs->cx;
        to[2] = (u32)regs->dx;
        to[3] = (u32)regs->si;
        to[4] = (u32)regs->di;
        to[5] = (u32)regs->bp;
    } else {
        to[0] = regs->di;
        to[1] = regs->si;
        to[2] = regs->dx;
        to[3] = regs->r10;
        to[4] = regs->r8;
        to[5] = regs->r9;
    }
}

/* Six 32-bit words that stand in memory instead of in registers. */
INLINE void put_words(struct scratch *s, u64 from)
{
    u32 words[6] = {};
    bpf_probe_read_user(words, sizeof(words), (void *)from);
    for (u32 i = 0; i < 6; i++)
        s->record.number[i] = words[i];
}

SEC("raw_tp/sys_exit")
int on_sys_exit(struct bpf_raw_tracepoint_args *context)
{
    s64 retval = context->args[1];
    u64 task = current_task();
    u64 regs_at = typed ? bpf_task_pt_regs(task) : context->args[0];
    u64 nr = known_word(regs_at, __builtin_offsetof(struct registers, orig_ax));
    u8 compat = is_compat(task), multiplexed = 0;
    u32 key = nr;
    struct arguments regs;
    if (compat) {
        /* An address in the upper half is no error. */
        retval = (u32)retval > (u32)-4096 ? (s64)(s32)retval : (s64)(u32)retval;
        if (nr == 102) { /* socketcall */
            key = socket_call((u32)known_word(regs_at, __builtin_offsetof(struct registers, bx)));
            multiplexed = 1;
        } else {
            key = (nr == 90 ? 192 : (u32)nr) + KCAP_CALLS; /* the old mmap has a block of words */
            multiplexed = nr == 90;
        }
        if (key >= 2 * KCAP_CALLS)
            return 0;
    } else {
        key &= ~X32_BIT;
        if (key >= KCAP_CALLS)
            return 0;
    }
    struct kcap_call *call = bpf_map_lookup_elem(&calls, &key);
    if (!call || !call->event)
        return 0;
    if (retval < 0 ? call->flags & KCAP_ONLY_OK : call->flags & KCAP_ONLY_FAILED)
        return 0;
    if (is_own(pid_tgid(task) >> 32)) {
        u32 zero = 0;
        u64 *left_out = bpf_map_lookup_elem(&alive, &zero);
        if (left_out)
            ++*left_out;
        return 0;
    }
    if (call->event >= KCAP_EVENTS)
        return 0;
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    s->call = *call;
    begin(s, task, call->event);
    s->record.nr = nr;
    s->record.retval = retval;
    s->record.error = retval < 0 && retval >= -ERRORS ? -retval : 0;
    if (compat)
        s->record.flags |= KCAP_COMPAT;
    if (!in_scope(s)) {
        struct kcap_count *count = count_of(call->event);
        if (count)
            count->filtered++;
        return 0;
    }
    if (typed) {
        u64 *each = (u64 *)&regs;
#pragma clang loop unroll(full)
        for (u32 i = 0; i < sizeof(regs) / 8; i++)
            each[i] = known_word(regs_at, ARGUMENTS_AT + 8 * i);
    } else if (bpf_probe_read_kernel(&regs, sizeof(regs), (void *)(regs_at + ARGUMENTS_AT))) {
        return 0;
    }
    if (!multiplexed) {
        put_registers(s, &regs, compat);
    } else {
        put_words(s, (u32)(nr == 102 ? regs.cx : regs.bx));
        if (nr == 102 && ((u32)regs.bx == 9 || (u32)regs.bx == 10))
            s->record.number[4] = s->record.number[5] = 0; /* send and recv: no address */
    }
    bpf_tail_call(context, &handlers, call->handler);
    emit(context, s, call->ring); /* a handler that this kernel refused: the registers alone */
    return 0;
}

INLINE u64 argument(struct scratch *s, u8 place)
{
    return place ? s->record.number[(place - 1) & 7] : 0;
}

SEC("raw_tp/call_plain")
int call_plain(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    put_user_string(s, 0, argument(s, s->call.string[0]));
    put_user_string(s, 1, argument(s, s->call.string[1]));
    put_user_string(s, 2, argument(s, s->call.string[2]));
    if (s->call.flags & KCAP_CREDENTIALS) {
        u64 cred = word(s->task, o_task_struct__cred);
        s->record.number[6] = half(cred, o_cred__uid) | (u64)half(cred, o_cred__euid) << 32;
        s->record.number[7] = half(cred, o_cred__gid) | (u64)half(cred, o_cred__egid) << 32;
        s->record.number[8] = word(cred, o_cred__cap_effective);
        s->record.number[9] = word(cred, o_cred__cap_permitted);
        s->record.number[10] = word(cred, o_cred__cap_inheritable);
    }
    emit(context, s, s->call.ring);
    return 0;
}

SEC("raw_tp/call_path")
int call_path(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    put_user_string(s, 0, argument(s, s->call.string[0]));
    u64 second = s->used;
    put_user_string(s, 1, argument(s, s->call.string[1]));
    put_base(s, 3, s->call.at[0], 0, s->record.piece[0]);
    put_base(s, 4, s->call.at[1], second, s->record.piece[1]);
    emit(context, s, s->call.ring);
    return 0;
}

SEC("raw_tp/call_open")
int call_open(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    struct kcap_record *r = &s->record;
    u64 flags = argument(s, s->call.length);
    if (s->call.flags & KCAP_LENGTH_POINTER) { /* openat2: flags, mode, resolve */
        u64 how[3] = {};
        bpf_probe_read_user(how, sizeof(how), (void *)flags);
        flags = r->number[2] = how[0];
        r->number[3] = how[1];
        r->number[4] = how[2];
    }
    u64 file = r->retval >= 0 ? file_of(files_now(), r->retval) : 0;
    if (writes_only && s->call.length) {
        u32 writes = file ? half(file, o_file__f_mode) & FMODE_WRITE : (flags & 3) != 0;
        if (!writes) {
            struct kcap_count *count = count_of(r->event);
            if (count)
                count->filtered++;
            return 0;
        }
    }
    put_user_string(s, 0, argument(s, s->call.string[0]));
    if (file)
        put_file(s, 2, file);
    else
        put_base(s, 3, s->call.at[0], 0, r->piece[0]);
    emit(context, s, s->call.ring);
    return 0;
}

/* The first bytes of what is written to the beginning of a file. */
INLINE void put_magic(struct scratch *s, u64 file)
{
    struct kcap_record *r = &s->record;
    u64 block = r->number[1], bytes = r->retval;
    if (r->retval <= 0)
        return;
    if (s->call.flags & KCAP_POSITION ? r->number[3] != 0
                                      : word(file, o_file__f_pos) != (u64)r->retval)
        return;
    if (s->call.flags & KCAP_VECTOR) {
        u64 native[2] = {};
        u32 compat[2] = {};
        if (r->flags & KCAP_COMPAT) {
            bpf_probe_read_user(compat, sizeof(compat), (void *)block);
            native[0] = compat[0];
            native[1] = compat[1];
        } else {
            bpf_probe_read_user(native, sizeof(native), (void *)block);
        }
        block = native[0];
        if (native[1] < bytes)
            bytes = native[1];
    }
    put_user_bytes(s, 4, block, bytes < 20 ? bytes : 20);
}

SEC("raw_tp/call_file")
int call_file(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    u64 file = file_of(files_now(), argument(s, s->call.fd));
    put_user_string(s, 0, argument(s, s->call.string[0]));
    if (file) {
        put_file(s, 2, file);
        u64 sk = sock_of(file);
        if (sk) {
            if (put_ends(s, sk) == AF_UNIX)
                put_unix_ends(s, sk);
        } else if (s->call.flags & KCAP_WRITES) {
            put_magic(s, file);
        }
    }
    emit(context, s, s->call.ring);
    return 0;
}

SEC("raw_tp/sys_enter")
int on_sys_enter(struct bpf_raw_tracepoint_args *context)
{
    u64 task = current_task();
    u64 nr = context->args[1];
    u8 compat = is_compat(task);
    if (nr != (compat ? 6 : 3) && nr != (3 | X32_BIT))
        return 0;
    u64 ids = pid_tgid(task);
    if (is_own(ids >> 32))
        return 0;
    u64 fd = word(context->args[0], compat ? __builtin_offsetof(struct registers, bx)
                                           : __builtin_offsetof(struct registers, di));
    u64 file = file_of(known_word(task, o_task_struct__files), fd);
    if (!file)
        return 0;
    struct closing what = {};
    what.inode = word(file, o_file__f_inode);
    what.dentry = word(file, o_file__f_path__dentry);
    what.vfsmount = word(file, o_file__f_path__mnt);
    what.number = word(what.inode, o_inode__i_ino);
    what.dev = half(word(what.inode, o_inode__i_sb), o_super_block__s_dev);
    what.mode = quarter(what.inode, o_inode__i_mode);
    u32 tid = ids;
    bpf_map_update_elem(&closings, &tid, &what, 0);
    return 0;
}

SEC("raw_tp/call_close")
int call_close(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    u32 tid = s->record.tid;
    struct closing *what = bpf_map_lookup_elem(&closings, &tid);
    if (what && !s->record.retval) {
        s->record.number[7] = what->dev;
        s->record.number[8] = what->number;
        s->record.number[9] = what->mode;
        /* Closed last, an unlinked file is gone: its memory may be another's by now. */
        if (word(what->inode, o_inode__i_ino) == what->number)
            put_path(s, 2, what->dentry, what->vfsmount);
    }
    bpf_map_delete_elem(&closings, &tid);
    emit(context, s, s->call.ring);
    return 0;
}

SEC("raw_tp/call_socket")
int call_socket(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    struct kcap_record *r = &s->record;
    u64 sk = 0;
    if (s->call.fd == 255)
        sk = r->retval >= 0 ? sock_of(file_of(files_now(), r->retval)) : 0;
    else
        sk = sock_of(file_of(files_now(), argument(s, s->call.fd)));
    u16 family = 0;
    if (sk)
        family = put_ends(s, sk);
    u64 address = argument(s, s->call.address), bytes = argument(s, s->call.length);
    if (s->call.flags & KCAP_MESSAGE && address) {
        u64 native[2] = {};
        u32 compat[2] = {};
        if (r->flags & KCAP_COMPAT) {
            bpf_probe_read_user(compat, sizeof(compat), (void *)address);
            native[0] = compat[0];
            native[1] = compat[1];
        } else {
            bpf_probe_read_user(native, sizeof(native), (void *)address);
        }
        address = native[0];
        bytes = (u32)native[1];
    } else if (s->call.flags & KCAP_LENGTH_POINTER && bytes) {
        u32 told = 0;
        bpf_probe_read_user(&told, sizeof(told), (void *)bytes);
        bytes = told;
    }
    /* Of a call that failed the kernel has told no address: what stands there is the process's. */
    if (r->retval < 0 && !(s->call.flags & KCAP_WRITES) &&
        s->call.flags & (KCAP_MESSAGE | KCAP_LENGTH_POINTER))
        address = 0;
    bytes = (u32)bytes;
    put_user_bytes(s, 5, address, bytes < 128 ? bytes : 128);
    if (family == AF_UNIX)
        put_unix_ends(s, sk);
    emit(context, s, s->call.ring);
    return 0;
}

SEC("raw_tp/call_memory")
int call_memory(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    struct kcap_record *r = &s->record;
    u32 pid = r->pid, prot = r->number[2], mapped = s->call.fd;
    u8 one = 1, *before = bpf_map_lookup_elem(&writing_code, &pid);
    if (!(prot & PROT_EXEC) && !before)
        return 0;
    if (r->retval >= 0 || (u64)r->retval < (u64)-4095) {
        if ((prot & PROT_EXEC) && (prot & PROT_WRITE))
            bpf_map_update_elem(&writing_code, &pid, &one, 0);
        struct range range = {.pid = pid, .start = (mapped ? (u64)r->retval : r->number[0]) >> 12};
        u32 *known = bpf_map_lookup_elem(&protections, &range);
        if (known && !mapped)
            r->number[10] = *known;
        if (before || (prot & PROT_WRITE))
            bpf_map_update_elem(&protections, &range, &prot, 0);
    }
    if (!(prot & PROT_EXEC))
        return 0;
    if (mapped && !(r->number[3] & MAP_ANONYMOUS)) {
        u64 file = file_of(files_now(), r->number[4]);
        if (file)
            put_file(s, 2, file);
    }
    emit(context, s, s->call.ring);
    return 0;
}

SEC("raw_tp/call_bpf")
int call_bpf(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    struct kcap_record *r = &s->record;
    u32 type = 0;
    if ((u32)r->number[0] == BPF_PROG_LOAD) {
        bpf_probe_read_user(&type, sizeof(type), (void *)r->number[1]);
        r->number[6] = type;
        put_user_string(s, 0, r->number[1] + 48); /* prog_name */
    }
    emit(context, s, s->call.ring);
    return 0;
}

SEC("raw_tp/call_remote")
int call_remote(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    struct kcap_record *r = &s->record;
    u64 native[2] = {};
    u32 compat[2] = {};
    if (r->flags & KCAP_COMPAT) {
        bpf_probe_read_user(compat, sizeof(compat), (void *)r->number[3]);
        native[0] = compat[0];
        native[1] = compat[1];
    } else {
        bpf_probe_read_user(native, sizeof(native), (void *)r->number[3]);
    }
    r->number[6] = native[0];
    r->number[7] = native[1];
    emit(context, s, s->call.ring);
    return 0;
}

/* ---- executions ---- */

#define ARGUMENTS_MAX 512

/* Arguments behind pointers, as blocks: what a process that did not come to be was to be given.
 * Piece 4 has the first 4 KiB, to the end of an argument, piece 5 the last 4 KiB of the rest. */
INLINE void put_arguments(struct scratch *s, u64 pointers)
{
    u64 start = s->used;
    volatile u64 *total = &s->record.number[7], *used = &s->used, *rest = &s->variable;
    u32 i, step = s->record.flags & KCAP_COMPAT ? 4 : 8;
    *rest = 0;
#pragma clang loop unroll(disable)
    for (i = 0; i < ARGUMENTS_MAX; i++) {
        u64 from = 0, at = *used, base = *rest;
        bpf_probe_read_user(&from, step, (void *)(pointers + (u64)i * step));
        if (!from || at > OFFSET_MASK)
            break;
        s64 got = bpf_probe_read_user_str(&s->data[at & OFFSET_MASK], KCAP_STRING, (void *)from);
        if (got <= 0) {
            s->record.flags |= KCAP_FAULT;
            break;
        }
        if (got == KCAP_STRING)
            s->record.flags |= KCAP_CUT;
        *total += got;
        at += got;
        if (base && at - base > KCAP_STRING) {
            bpf_probe_read_kernel(&s->data[base & OFFSET_MASK], KCAP_STRING,
                                  &s->data[(at - KCAP_STRING) & OFFSET_MASK]);
            at = base + KCAP_STRING;
        }
        if (!base && at - start >= KCAP_STRING)
            *rest = at;
        *used = at;
    }
    if (i == ARGUMENTS_MAX)
        s->record.flags |= KCAP_CUT;
    u64 end = *used, base = *rest ? *rest : end;
    s->record.piece[4] = base - start;
    s->record.piece[5] = end - base;
}

SEC("raw_tp/call_exec")
int call_exec(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    u8 path = s->call.string[0];
    put_user_string(s, 0, argument(s, path));
    put_base(s, 3, s->call.at[0], 0, s->record.piece[0]);
    put_arguments(s, argument(s, path + 1));
    emit(context, s, s->call.ring);
    return 0;
}

/* The beginning of a block of the process, and its end where it is longer. */
INLINE void put_block(struct scratch *s, u32 piece, u64 start, u64 end)
{
    u64 bytes = end - start, rest = 0;
    if (end <= start)
        return;
    if (bytes > KCAP_STRING)
        rest = bytes - KCAP_STRING;
    put_user_bytes(s, piece, start, bytes);
    if (rest)
        put_user_bytes(s, piece + 1, end - (rest < KCAP_STRING ? rest : KCAP_STRING), rest);
}

#define VARIABLES_MAX 256 /* one look; as many follow as the kernel allows */

/* Those variables of the environment that change what a program is, or where its cluster is. */
SEC("raw_tp/call_variables")
int call_variables(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    u64 end = word(word(s->task, o_task_struct__mm), o_mm_struct__env_end);
    u64 start = s->used, from = s->variable;
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < VARIABLES_MAX; i++) {
        u64 at = *(volatile u64 *)&s->used, head[3] = {};
        if (from >= end || at > OFFSET_MASK)
            break;
        s64 got = bpf_probe_read_user_str(&s->data[at & OFFSET_MASK], KCAP_STRING, (void *)from);
        if (got <= 0)
            break;
        bpf_probe_read_kernel(head, 19, &s->data[at & OFFSET_MASK]);
        if (!s->inside &&
            ((head[0] & 0xffffff) == 0x5f444c || /* LD_ */
             (head[0] == 0x54454e524542554bULL && head[1] == 0x49565245535f5345ULL &&
              head[2] == 0x5f4543))) { /* KUBERNETES_SERVICE_ */
            s->used = at + got;
            if (got == KCAP_STRING)
                s->record.flags |= KCAP_CUT;
        }
        s->inside = got == KCAP_STRING;
        from += got - (got == KCAP_STRING); /* the NUL of a part is not the process's */
    }
    s->record.piece[6] += *(volatile u64 *)&s->used - start;
    if (from < end && from > s->variable) {
        s->variable = from;
        bpf_tail_call(context, &handlers, KCAP_VARIABLES);
    }
    if (from < end)
        s->record.flags |= KCAP_CUT;
    bpf_tail_call(context, &handlers, KCAP_EXECUTED);
    emit(context, s, 0);
    return 0;
}

SEC("raw_tp/sched_process_exec")
int on_exec(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    u64 task = context->args[0], bprm = context->args[2];
    if (!s)
        return 0;
    begin(s, current_task(), event_exec);
    struct kcap_record *r = &s->record;
    if (is_own(r->pid))
        return 0;
    u64 mm = word(task, o_task_struct__mm), file = word(bprm, o_linux_binprm__file);
    u64 start = word(mm, o_mm_struct__arg_start), end = word(mm, o_mm_struct__arg_end);
    u64 cred = word(task, o_task_struct__cred), inode = word(file, o_file__f_inode);
    u64 signal = word(task, o_task_struct__signal);
    r->number[0] = (u32)context->args[1];
    r->number[11] = end - start;
    r->number[3] = half(word(signal + o_signal_struct__pids + 8 * PIDTYPE_SID, 0) + o_pid__numbers, 0);
    r->number[4] = half(task, o_task_struct__loginuid);
    r->number[5] = half(cred, o_cred__euid) | (u64)half(cred, o_cred__egid) << 32;
    r->number[10] = word(cred, o_cred__cap_effective);
    r->number[1] = half(inode, o_inode__i_nlink);
    put_kernel_string(s, 0, word(bprm, o_linux_binprm__filename));
    put_kernel_string(s, 1, word(bprm, o_linux_binprm__interp));
    put_file(s, 2, file);
    put_directory(s, 3);
    put_block(s, 4, start, end);
    s->variable = word(mm, o_mm_struct__env_start);
    s->inside = 0;
    if (environment == 1)
        bpf_tail_call(context, &handlers, KCAP_VARIABLES);
    bpf_tail_call(context, &handlers, KCAP_EXECUTED);
    emit(context, s, 0);
    return 0;
}

#define ENVIRONMENT_PARTS 5 /* of KCAP_STRING bytes: what there is room for */

/* The rest of an execution: one program may not be as long as both. */
SEC("raw_tp/call_executed")
int call_executed(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    if (!s)
        return 0;
    struct kcap_record *r = &s->record;
    u64 mm = word(s->task, o_task_struct__mm);
    u64 variables = word(mm, o_mm_struct__env_start), last = word(mm, o_mm_struct__env_end);
    r->number[2] = last - variables;
    if (environment == 2) {
        for (u32 i = 0; i < ENVIRONMENT_PARTS; i++, variables += KCAP_STRING)
            if (variables < last)
                put_user_bytes(s, 6, variables, last - variables);
        if (variables < last)
            s->record.flags |= KCAP_CUT;
    }
    u32 tid = r->tid;
    struct name *before = bpf_map_lookup_elem(&renamed, &tid);
    if (before && s->used <= OFFSET_MASK) {
        __builtin_memcpy(&s->data[s->used & OFFSET_MASK], before, sizeof(*before));
        r->piece[7] = sizeof(*before);
        s->used += sizeof(*before);
    }
    bpf_map_delete_elem(&renamed, &tid);
    if (equals_binary) {
        struct binary binary = {.dev = r->number[7], .inode = r->number[8]};
        u8 *wanted = bpf_map_lookup_elem(&scope_binary, &binary);
        if (wanted && *wanted == EQUAL)
            track(r->pid);
    }
    if (track_matches)
        in_scope(s);
    emit(context, s, 0);
    return 0;
}

SEC("raw_tp/task_rename")
int on_rename(struct bpf_raw_tracepoint_args *context)
{
    u64 task = context->args[0], now = current_task();
    struct name name = {};
    if (o_task_struct__comm != NOWHERE)
        bpf_probe_read_kernel(&name, sizeof(name), (void *)(task + o_task_struct__comm));
    u64 stack = word(now, o_task_struct__stack);
    u64 nr = word(stack + THREAD_BYTES - sizeof(struct registers),
                  __builtin_offsetof(struct registers, orig_ax));
    u8 compat = is_compat(now);
    if (task == now && (compat ? nr == 11 || nr == 358 : nr == 59 || nr == 322)) {
        u32 tid = bpf_get_current_pid_tgid();
        bpf_map_update_elem(&renamed, &tid, &name, 0);
        return 0;
    }
    struct scratch *s = the_scratch();
    if (!renames || !s)
        return 0;
    begin(s, now, event_rename);
    s->record.number[0] = half(task, o_task_struct__pid);
    s->record.number[1] = half(task, o_task_struct__tgid);
    put_kernel_string(s, 0, context->args[1]);
    put_kernel_string(s, 1, (u64)task + o_task_struct__comm);
    emit(context, s, 0);
    return 0;
}

/* ---- births and deaths ---- */

SEC("raw_tp/sched_process_fork")
int on_fork(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    u64 child = context->args[1];
    if (!s)
        return 0;
    begin(s, current_task(), event_fork);
    struct kcap_record *r = &s->record;
    u64 leader = word(child, o_task_struct__group_leader);
    r->number[0] = half(child, o_task_struct__pid);
    r->number[1] = half(child, o_task_struct__tgid);
    r->number[2] = ns_number(word(child, o_task_struct__thread_pid));
    r->number[3] = ns_number(word(leader, o_task_struct__thread_pid));
    r->number[4] = word(child, o_task_struct__start_boottime);
    r->number[5] = half(word(child, o_task_struct__real_parent), o_task_struct__tgid);
    if (track_matches)
        in_scope(s);
    if (scoped && r->number[0] == r->number[1] && (track_new || is_tracked(r->pid)))
        track(r->number[1]);
    emit(context, s, 0);
    return 0;
}

/* Processes whose last thread has exited: of threads that exit together, one is the last. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(8192);
    struct range *key;
    u8 *value;
} exited SEC(".maps");

SEC("raw_tp/sched_process_exit")
int on_exit(struct bpf_raw_tracepoint_args *context)
{
    struct scratch *s = the_scratch();
    u64 task = context->args[0];
    if (!s)
        return 0;
    begin(s, current_task(), event_exit);
    struct kcap_record *r = &s->record;
    u64 signal = word(task, o_task_struct__signal);
    u32 status = half(task, o_task_struct__exit_code);
    u8 last = half(signal, o_signal_struct__live__counter) == 0, one = 1;
    struct range process = {.pid = r->pid, .start = r->start_ns};
    if (last && bpf_map_update_elem(&exited, &process, &one, 1 /* BPF_NOEXIST */) == -EEXIST)
        last = 0;
    r->number[2] = status;
    if (last) {
        if (half(signal, o_signal_struct__flags) & SIGNAL_GROUP_EXIT)
            status = half(signal, o_signal_struct__group_exit_code);
        else
            status = half(word(task, o_task_struct__group_leader), o_task_struct__exit_code);
    }
    r->number[0] = status;
    r->number[1] = last;
    u32 pid = r->pid, tid = r->tid;
    if (last) {
        bpf_map_delete_elem(&writing_code, &pid);
        if (scoped)
            bpf_map_delete_elem(&tracked, &pid);
    }
    bpf_map_delete_elem(&closings, &tid);
    emit(context, s, 0);
    return 0;
}

/* ---- sockets ---- */

struct change {
    struct kcap_record record;
    struct kcap_socket ends;
};

struct {
    MAP_TYPE(BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_ENTRIES(1);
    u32 *key;
    struct change *value;
} changes SEC(".maps");

/* May run for a packet, in the middle of anything: nothing of the scratch is touched. */
SEC("raw_tp/inet_sock_set_state")
int on_state(struct bpf_raw_tracepoint_args *context)
{
    u32 zero = 0;
    u64 sk = context->args[0], task = current_task(), ids = pid_tgid(task), unasked = UNASKED;
    struct change *change = bpf_map_lookup_elem(&changes, &zero);
    if (!states || !change)
        return 0;
    struct kcap_record *r = &change->record;
    __builtin_memset(r, 0, sizeof(*r));
    r->ts_ns = bpf_ktime_get_boot_ns();
    r->event = event_state;
    r->bytes = sizeof(*change);
    r->nr = NOWHERE;
    r->cpu = bpf_get_smp_processor_id();
    r->pid = ids >> 32;
    r->tid = ids;
    r->cgroup_id = cgroup_now(task);
    r->start_ns = word(word(task, o_task_struct__group_leader), o_task_struct__start_boottime);
    put_current_comm(r->comm);
    r->number[0] = (u32)context->args[1];
    r->number[1] = (u32)context->args[2];
    /* Only beginning to connect or to listen is surely the doing of who runs. */
    if (!(r->number[1] == 2 || r->number[1] == 10))
        r->flags = KCAP_ELSEWHERE;
    fill_socket(&change->ends, sk);
    r->piece[3] = sizeof(change->ends);
    s64 full = bpf_ringbuf_output(&rare, change, sizeof(*change),
                                  wake(&rare, wake_rare, sizeof(*change), &unasked));
    struct kcap_count *count = count_of(event_state);
    if (full)
        count_loss(r);
    if (count) {
        if (full)
            count->lost++;
        else
            count->kept++;
    }
    return 0;
}

/* ---- the kernel's own memory ---- */

struct page {
    u8 bytes[KCAP_STRING];
};

struct {
    MAP_TYPE(BPF_MAP_TYPE_ARRAY);
    MAP_ENTRIES(1);
    u32 *key;
    struct page *value;
} peeked SEC(".maps");

/* Run by user space itself, to see the table of system calls as it is. */
SEC("raw_tp/call_peek")
int call_peek(struct bpf_raw_tracepoint_args *context)
{
    u32 zero = 0;
    struct page *page = bpf_map_lookup_elem(&peeked, &zero);
    if (!page)
        return 1;
    return bpf_probe_read_kernel(page->bytes, sizeof(page->bytes), (void *)context->args[0]) != 0;
}
