// What the tests of the loader load: a little of everything that it does.
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, number) int (*name)[number]
#define __type(name, kind) kind *name

static void *(*const lookup)(void *, const void *) = (void *)1;
static long (*const update)(void *, const void *, const void *, u64) = (void *)2;
static void (*const tail_call)(void *, void *, u32) = (void *)12;
static u64 (*const pid_tgid)(void) = (void *)14;
static u64 (*const current_task)(void) = (void *)35;
static long (*const read_kernel)(void *, u32, const void *) = (void *)113;
static long (*const output)(void *, void *, u64, u64) = (void *)130;

char terms[] SEC("license") = "Dual MIT/GPL";

struct record {
    u32 pid;
    u32 parent;
    u64 call;
    u8 text[3][8];
};
struct count {
    u64 hits;
    u32 last;
};

struct { __uint(type, 27); __uint(max_entries, 65536); } events SEC(".maps");
struct { __uint(type, 6); __uint(max_entries, 4); __type(key, u32); __type(value, struct count); } counts SEC(".maps");
struct { __uint(type, 1); __uint(max_entries, 5000); __type(key, u32); __type(value, struct record); } seen SEC(".maps");
struct { __uint(type, 3); __uint(max_entries, 2); __uint(key_size, 4); __uint(value_size, 4); } next SEC(".maps");

const volatile u32 watched_pid = 0;
const volatile u64 watched_call = 110;
const volatile u32 o_task_struct__real_parent = 0;
const volatile u32 o_task_struct__tgid = 0;
const volatile u32 o_task_struct____no_such_field = 0;

struct args { u64 of[2]; };

// sys_enter has (struct pt_regs *, long number).
SEC("raw_tp/sys_enter") int on_enter(struct args *ctx) {
    u32 zero = 0;
    if (pid_tgid() >> 32 != watched_pid || ctx->of[1] != watched_call) return 0;
    struct count *count = lookup(&counts, &zero);
    if (count) {
        count->hits++;
        count->last = ctx->of[1];
    }
    tail_call(ctx, &next, 1);
    return 0;
}

SEC("raw_tp/call_report") int report(struct args *ctx) {
    struct record record = {};
    void *task = (void *)current_task(), *parent = 0;
    record.pid = pid_tgid() >> 32;
    record.call = ctx->of[1];
    read_kernel(&parent, 8, task + o_task_struct__real_parent);
    read_kernel(&record.parent, 4, parent + o_task_struct__tgid);
    if (o_task_struct____no_such_field == 0xffffffff) record.text[0][0] = 'x';
    output(&events, &record, sizeof(record), 0);
    update(&seen, &record.pid, &record, 0);
    return 0;
}

SEC("raw_tp/no_such_tracepoint") int nowhere(void *ctx) { return 0; }

// The verifier refuses this: it reads what nobody has written.
SEC("raw_tp/sched_process_exit") int unsound(struct args *ctx) { return *(volatile int *)0; }

SEC("tp/sched/sched_process_exit") int on_tracepoint(void *ctx) {
    u32 one = 1;
    struct count *count = lookup(&counts, &one);
    if (count) count->hits++;
    return 0;
}
