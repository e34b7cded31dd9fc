/* What the kernel program needs of the kernel: types, helpers, and where structures have fields.
 *
 * No kernel header is needed. Every `o_TYPE__FIELD` is a number that the loader looks up in the
 * running kernel's BTF; NOWHERE stands for a field that this kernel does not have.
 */
#ifndef KCAP_KERNEL_H
#define KCAP_KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define NOWHERE 0xffffffffU

enum {
    BPF_MAP_TYPE_HASH = 1,
    BPF_MAP_TYPE_ARRAY = 2,
    BPF_MAP_TYPE_PROG_ARRAY = 3,
    BPF_MAP_TYPE_PERCPU_ARRAY = 6,
    BPF_MAP_TYPE_LRU_HASH = 9,
    BPF_MAP_TYPE_RINGBUF = 27,
};

#define MAP_TYPE(kind) int (*type)[kind]
#define MAP_ENTRIES(count) int (*max_entries)[count]

struct bpf_raw_tracepoint_args {
    u64 args[0];
};

/* x86-64: how the kernel saves a process's registers. */
struct registers {
    u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

/* The part of them with all arguments, whatever the instruction set. */
struct arguments {
    u64 bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
};

#define ARGUMENTS_AT __builtin_offsetof(struct registers, bp)

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u32 (*const bpf_get_smp_processor_id)(void) = (void *)8;
static long (*const bpf_tail_call)(void *context, void *map, u32 index) = (void *)12;
static u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static u64 (*const bpf_get_current_uid_gid)(void) = (void *)15;
static long (*const bpf_get_current_comm)(void *to, u32 size) = (void *)16;
static u64 (*const bpf_get_current_task)(void) = (void *)35;
static long (*const bpf_get_stack)(void *context, void *to, u32 size, u64 flags) = (void *)67;
static u64 (*const bpf_get_current_cgroup_id)(void) = (void *)80;
static long (*const bpf_probe_read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*const bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*const bpf_probe_read_user_str)(void *to, u32 size, const void *from) = (void *)114;
static long (*const bpf_probe_read_kernel_str)(void *to, u32 size, const void *from) = (void *)115;
static u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;
static u64 (*const bpf_get_current_task_btf)(void) = (void *)158;
static u64 (*const bpf_task_pt_regs)(u64 task) = (void *)175;
static long (*const bpf_ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static u64 (*const bpf_ringbuf_query)(void *ring, u64 flags) = (void *)134;

/* The name of the thread that runs. Some kernels (6.1) leave what stood behind its end before in
 * the buffer, and a name would not be found in a map. */
#define put_current_comm(to)                                                                       \
    ({                                                                                             \
        __builtin_memset((to), 0, sizeof(to));                                                     \
        bpf_get_current_comm((to), sizeof(to));                                                    \
    })

#define AT(field) const volatile u32 field = NOWHERE

AT(o_task_struct__cgroups);
AT(o_task_struct__cred);
AT(o_task_struct__exit_code);
AT(o_task_struct__files);
AT(o_task_struct__fs);
AT(o_task_struct__group_leader);
AT(o_task_struct__loginuid);
AT(o_task_struct__mm);
AT(o_task_struct__nsproxy);
AT(o_task_struct__pid);
AT(o_task_struct__real_parent);
AT(o_task_struct__signal);
AT(o_task_struct__stack);
AT(o_task_struct__start_boottime);
AT(o_task_struct__comm);
AT(o_task_struct__tgid);
AT(o_task_struct__thread_info__status);
AT(o_task_struct__thread_pid);
AT(o_signal_struct__flags);
AT(o_signal_struct__group_exit_code);
AT(o_signal_struct__live__counter);
AT(o_signal_struct__pids);
AT(o_pid__level);
AT(o_pid__numbers);
AT(o_upid__ns);
AT(o_pid_namespace__ns__inum);
AT(o_nsproxy__mnt_ns);
AT(o_mnt_namespace__ns__inum);
AT(o_css_set__dfl_cgrp);
AT(o_css_set__subsys);
AT(o_cgroup_subsys_state__cgroup);
AT(o_cgroup__kn);
AT(o_kernfs_node__id);
AT(o_cred__uid);
AT(o_cred__gid);
AT(o_cred__euid);
AT(o_cred__egid);
AT(o_cred__cap_effective);
AT(o_cred__cap_permitted);
AT(o_cred__cap_inheritable);
AT(o_mm_struct__arg_start);
AT(o_mm_struct__arg_end);
AT(o_mm_struct__env_start);
AT(o_mm_struct__env_end);
AT(o_linux_binprm__file);
AT(o_linux_binprm__filename);
AT(o_linux_binprm__interp);
AT(o_files_struct__fdt);
AT(o_fdtable__fd);
AT(o_fdtable__max_fds);
AT(o_fs_struct__pwd__dentry);
AT(o_fs_struct__pwd__mnt);
AT(o_file__f_inode);
AT(o_file__f_mode);
AT(o_file__f_path__dentry);
AT(o_file__f_path__mnt);
AT(o_file__f_pos);
AT(o_file__private_data);
AT(o_inode__i_ctime__tv_sec);
AT(o_inode__i_ctime__tv_nsec);
AT(o_inode____i_ctime__tv_sec);
AT(o_inode____i_ctime__tv_nsec);
AT(o_inode__i_ctime_sec);
AT(o_inode__i_ctime_nsec);
AT(o_inode__i_ino);
AT(o_inode__i_mode);
AT(o_inode__i_nlink);
AT(o_inode__i_sb);
AT(o_super_block__s_dev);
AT(o_dentry__d_iname);
AT(o_dentry__d_name__len);
AT(o_dentry__d_name__name);
AT(o_dentry__d_parent);
AT(o_dentry__d_shortname);
AT(o_vfsmount__mnt_root);
AT(o_mount__mnt);
AT(o_mount__mnt_mountpoint);
AT(o_mount__mnt_parent);
AT(o_socket__sk);
AT(o_sock__sk_protocol);
AT(o_sock__sk_socket);
AT(o_sock__sk_type);
AT(o_sock_common__skc_daddr);
AT(o_sock_common__skc_dport);
AT(o_sock_common__skc_family);
AT(o_sock_common__skc_num);
AT(o_sock_common__skc_rcv_saddr);
AT(o_sock_common__skc_state);
AT(o_sock_common__skc_v6_daddr);
AT(o_sock_common__skc_v6_rcv_saddr);
AT(o_socket_alloc__vfs_inode);
AT(o_socket_alloc__socket);
AT(o_unix_sock__addr);
AT(o_unix_sock__peer);
AT(o_unix_address__len);
AT(o_unix_address__name);

/* A field of a kernel structure; zero where it can't be read. */
INLINE u64 word(u64 base, u32 offset)
{
    u64 value = 0;
    if (offset != NOWHERE)
        bpf_probe_read_kernel(&value, 8, (void *)(base + offset));
    return value;
}

INLINE u32 half(u64 base, u32 offset)
{
    u32 value = 0;
    if (offset != NOWHERE)
        bpf_probe_read_kernel(&value, 4, (void *)(base + offset));
    return value;
}

INLINE u16 quarter(u64 base, u32 offset)
{
    u16 value = 0;
    if (offset != NOWHERE)
        bpf_probe_read_kernel(&value, 2, (void *)(base + offset));
    return value;
}

/* ---- what is reached from the thread that runs, whose types the verifier knows ---- */

/* This kernel gives the thread that runs with its type (Linux 5.15): fields of it, and of what its
 * pointers lead to, are read by an instruction instead of a call. */
const volatile u32 typed = 0;

INLINE u64 current_task(void)
{
    return typed ? bpf_get_current_task_btf() : bpf_get_current_task();
}

/* The barrier: a place must not be computed of what may be no pointer. */
#define KNOWN(type, read, base, offset)                                                            \
    ({                                                                                             \
        u64 from = (base);                                                                         \
        type value = 0;                                                                            \
        if (!typed) {                                                                              \
            value = read(from, (offset));                                                          \
        } else if (from && (offset) != NOWHERE) {                                                  \
            asm volatile("" : "+r"(from));                                                         \
            value = *(volatile type *)(from + (offset));                                           \
        }                                                                                          \
        value;                                                                                     \
    })

INLINE u64 known_word(u64 base, u32 offset)
{
    return KNOWN(u64, word, base, offset);
}

INLINE u32 known_half(u64 base, u32 offset)
{
    return KNOWN(u32, half, base, offset);
}

/* Of the thread that runs: its process, and behind that itself. */
INLINE u64 pid_tgid(u64 task)
{
    if (!typed)
        return bpf_get_current_pid_tgid();
    return (u64)known_half(task, o_task_struct__tgid) << 32 | known_half(task, o_task_struct__pid);
}
#endif
