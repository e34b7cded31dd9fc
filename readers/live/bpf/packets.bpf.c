/* kcap's program for packets: what sockets send and get, with the process that has the socket.
 *
 * Each packet that a socket of any control group sends or gets passes here at layer 3. Whose it is
 * comes from a map by the socket's cookie, which other parts fill when a process makes, connects
 * or accepts a socket, or names an address to send to. Programs on packets run in the context of
 * whoever runs just then, may be interrupted, and by themselves: they have no memory but the stack
 * and the ring.
 */
#include "scope.h"
#include "packets.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct __sk_buff {
    u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
    u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id;
    u32 family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port;
    u32 data_meta;
    u64 flow_keys, tstamp;
    u32 wire_len, gso_segs;
    void *sk;
};

struct exit_arguments {
    u64 common;
    u64 nr;
    s64 result;
};

static u64 (*const bpf_get_socket_cookie)(void *context) = (void *)46;
static long (*const bpf_skb_load_bytes)(const void *skb, u32 offset, void *to, u32 bytes) = (void *)26;
static void *(*const bpf_ringbuf_reserve)(void *ring, u64 bytes, u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *record, u64 flags) = (void *)132;

enum { NO_WAKEUP = 1, FORCE_WAKEUP = 2 };
#define WAKE_SLACK 8192

AT(o_net__ns__inum);
AT(o_net_device__name);
AT(o_sk_buff__dev);
AT(o_sock_common__skc_cookie__counter);
AT(o_sock_common__skc_net__net);

/* Here for its type alone: user space learns from it how records look. */
const volatile struct kcap_sighting shape = {};

const volatile u32 payload_bytes = 96; /* what is copied behind the header of layer 4 */
const volatile u32 wake_packets = 4194304; /* where so much more is in the ring, user space looks */
const volatile u32 only_scoped = 0;    /* only packets of processes that are recorded */

struct {
    MAP_TYPE(BPF_MAP_TYPE_RINGBUF);
    MAP_ENTRIES(33554432);
} packets SEC(".maps");

/* The processes of sockets, by cookie. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(131072);
    u64 *key;
    struct kcap_owner *value;
} owners SEC(".maps");

/* Those of accepted sockets of which no packet has come, by address: they have no cookie yet. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(16384);
    u64 *key;
    struct kcap_owner *value;
} accepted SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(16384);
    struct kcap_listener *key;
    struct kcap_owner *value;
} listeners SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_ENTRIES(3); /* by direction */
    u32 *key;
    struct kcap_packets *value;
} packet_counts SEC(".maps");

enum { ESTABLISHED = 1, SYN_RECV = 3, LISTEN = 10, STREAM = 1, TCP = 6 };

/* ---- whose sockets are ---- */

INLINE void identify(struct kcap_owner *owner, u32 mark)
{
    u64 task = bpf_get_current_task();
    u64 leader = word(task, o_task_struct__group_leader);
    u64 parent = word(task, o_task_struct__real_parent);
    u64 cred = word(task, o_task_struct__cred);
    u64 pid = word(task, o_task_struct__thread_pid);
    u32 level = half(pid, o_pid__level);
    u64 number = pid + o_pid__numbers + 16 * (u64)level;
    owner->start_ns = word(leader, o_task_struct__start_boottime);
    owner->thread_start_ns = word(task, o_task_struct__start_boottime);
    owner->cgroup_id = cgroup_now(task);
    owner->pid = half(task, o_task_struct__tgid);
    owner->tid = half(task, o_task_struct__pid);
    owner->ppid = half(parent, o_task_struct__tgid);
    owner->ns_pid = ns_number(word(leader, o_task_struct__thread_pid));
    owner->ns_tid = half(number, 0);
    owner->ns_ppid =
        ns_number(word(word(parent, o_task_struct__group_leader), o_task_struct__thread_pid));
    owner->uid = half(cred, o_cred__uid);
    owner->gid = half(cred, o_cred__gid);
    owner->mount_ns =
        half(word(word(task, o_task_struct__nsproxy), o_nsproxy__mnt_ns), o_mnt_namespace__ns__inum);
    owner->pid_ns = half(word(number, o_upid__ns), o_pid_namespace__ns__inum);
    owner->mark = mark;
    owner->pad = 0;
    __builtin_memset(owner->comm, 0, sizeof(owner->comm));
    bpf_probe_read_kernel_str(owner->comm, sizeof(owner->comm), (void *)(task + o_task_struct__comm));
}

/* This process has the socket from now on. */
INLINE int take(void *context)
{
    struct kcap_owner owner;
    u64 cookie = bpf_get_socket_cookie(context);
    identify(&owner, KCAP_SEEN);
    bpf_map_update_elem(&owners, &cookie, &owner, 0);
    return 1;
}

SEC("cgroup/sock_create") int on_create(void *context)
{
    return take(context);
}

SEC("cgroup/connect4") int on_connect4(void *context)
{
    return take(context);
}

SEC("cgroup/connect6") int on_connect6(void *context)
{
    return take(context);
}

SEC("cgroup/sendmsg4") int on_sendmsg4(void *context)
{
    return take(context);
}

SEC("cgroup/sendmsg6") int on_sendmsg6(void *context)
{
    return take(context);
}

INLINE void where(u64 sock, struct kcap_listener *at)
{
    at->net_ns = half(word(sock, o_sock_common__skc_net__net), o_net__ns__inum);
    at->port = quarter(sock, o_sock_common__skc_num);
}

SEC("raw_tp/inet_sock_set_state") int on_packet_state(struct bpf_raw_tracepoint_args *context)
{
    u64 sock = context->args[0];
    s32 before = context->args[1], now = context->args[2];
    if (now == LISTEN) { /* in the process that listens */
        struct kcap_listener at;
        struct kcap_owner owner;
        identify(&owner, KCAP_SEEN);
        where(sock, &at);
        bpf_map_update_elem(&listeners, &at, &owner, 0);
    } else if (before == LISTEN && now == SYN_RECV) { /* a new socket, where another may have been */
        bpf_map_delete_elem(&accepted, &sock);
    }
    return 0;
}

INLINE int accept(struct exit_arguments *context)
{
    struct kcap_owner owner;
    if (context->result < 0)
        return 0;
    u64 file = file_of(word(bpf_get_current_task(), o_task_struct__files), context->result);
    if (!file || (quarter(word(file, o_file__f_inode), o_inode__i_mode) & 0xf000) != 0xc000)
        return 0;
    u64 sock = word(word(file, o_file__private_data), o_socket__sk);
    u16 family = quarter(sock, o_sock_common__skc_family);
    if (!sock || (family != 2 && family != 10))
        return 0;
    u64 cookie = word(sock, o_sock_common__skc_cookie__counter);
    identify(&owner, KCAP_SEEN);
    if (cookie)
        bpf_map_update_elem(&owners, &cookie, &owner, 0);
    else
        bpf_map_update_elem(&accepted, &sock, &owner, 0);
    return 0;
}

SEC("tp/syscalls/sys_exit_accept4") int on_accept4(struct exit_arguments *context)
{
    return accept(context);
}

SEC("tp/syscalls/sys_exit_accept") int on_accept(struct exit_arguments *context)
{
    return accept(context);
}

/* ---- packets ---- */

/* Where something is in memory whose type the verifier keeps to itself. */
INLINE u64 address(void *of)
{
    void *volatile held = of;
    u64 found = 0;
    bpf_probe_read_kernel(&found, 8, (void *)&held);
    return found;
}

/* Whose socket it is of which nobody said so: that of whoever accepted it, or has it listen. */
INLINE struct kcap_owner *adopt(struct __sk_buff *skb, u64 cookie)
{
    void *typed_sock = skb->sk;
    if (!typed_sock || !cookie)
        return 0;
    u64 sock = address(typed_sock);
    struct kcap_owner *found = bpf_map_lookup_elem(&accepted, &sock);
    if (found) {
        bpf_map_update_elem(&owners, &cookie, found, 0);
        bpf_map_delete_elem(&accepted, &sock);
    } else {
        struct kcap_listener at;
        if (quarter(sock, o_sock__sk_type) != STREAM || quarter(sock, o_sock__sk_protocol) != TCP)
            return 0;
        where(sock, &at);
        found = bpf_map_lookup_elem(&listeners, &at);
        if (!found)
            return 0;
        struct kcap_owner copy = *found;
        copy.mark = KCAP_INHERITED;
        bpf_map_update_elem(&owners, &cookie, &copy, 0);
    }
    return bpf_map_lookup_elem(&owners, &cookie);
}

/* Whether a process is not recorded: what scope.h tests of an event, of a socket's process. */
INLINE u8 is_outside(struct kcap_owner *owner)
{
    struct kcap_owner o = *owner;
    struct name name;
    if (!scoped || is_tracked(o.pid))
        return 0;
    if (want_tracked || o.uid < uid_min || o.uid > uid_max || o.pid < pid_min || o.pid > pid_max)
        return 1;
    __builtin_memcpy(name.text, o.comm, sizeof(name.text));
    return OUTSIDE(uid, &o.uid) || OUTSIDE(pid, &o.pid) || OUTSIDE(comm, &name) ||
           OUTSIDE(mount_ns, &o.mount_ns) || OUTSIDE(pid_ns, &o.pid_ns) ||
           OUTSIDE(cgroup, &o.cgroup_id);
}

#define EXTENSIONS 8

/* Bytes of the header of layer 4, of which the packet's protocol tells. */
INLINE u32 transport_bytes(struct __sk_buff *skb, u32 at, u8 protocol)
{
    u8 offset = 0;
    switch (protocol) {
    case TCP:
        if (bpf_skb_load_bytes(skb, at + 12, &offset, 1))
            return 0;
        return (offset >> 4) * 4;
    case 1:   /* ICMP */
    case 17:  /* UDP */
    case 58:  /* ICMPv6 */
    case 136: /* UDP-Lite */
        return 8;
    case 132: /* SCTP */
        return 12;
    default:
        return 0;
    }
}

/* Bytes of all headers up to that of layer 4, which all but the first of some fragments lack. */
INLINE u32 header_bytes(struct __sk_buff *skb)
{
    u8 head[10] = {};
    if (bpf_skb_load_bytes(skb, 0, head, sizeof(head)))
        return 0;
    if (head[0] >> 4 == 4) {
        u32 at = (head[0] & 15) * 4;
        if ((head[6] & 0x1f) || head[7])
            return at;
        return at + transport_bytes(skb, at, head[9]);
    }
    if (head[0] >> 4 != 6)
        return 0;
    u32 at = 40;
    u8 next = head[6];
#pragma clang loop unroll(full)
    for (u32 i = 0; i < EXTENSIONS; i++) {
        u8 extension[4] = {};
        if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60 && next != 135 &&
            next != 139 && next != 140)
            return at + transport_bytes(skb, at, next);
        if (bpf_skb_load_bytes(skb, at, extension, sizeof(extension)))
            return at;
        if (next == 44) {
            at += 8;
            if (extension[2] || extension[3] & 0xf8)
                return at;
        } else {
            at += next == 51 ? (extension[1] + 2) * 4 : (extension[1] + 1) * 8;
        }
        next = extension[0];
    }
    return at;
}

/* Whether a packet fills another part of the ring; else user space looks by itself, now and then. */
INLINE u64 wakes(u64 bytes)
{
    u64 filled = bpf_ringbuf_query(&packets, 0);
    return filled >= wake_packets && (filled & (wake_packets - 1)) < bytes + WAKE_SLACK
               ? FORCE_WAKEUP
               : NO_WAKEUP;
}

/* Copies of a packet are put straight into the ring, which gives out memory of a size that the
 * verifier knows: the smallest of a few sizes that is enough. */
#define PUT(size)                                                                                  \
    if (bytes <= (size)) {                                                                         \
        struct kcap_sighting *s = bpf_ringbuf_reserve(&packets, sizeof(*s) + (size), 0);           \
        if (!s)                                                                                    \
            goto full;                                                                             \
        put_facts(s, skb, owner, direction);                                                       \
        s->packet.ts_ns = ts_ns;                                                                   \
        s->packet.cookie = cookie;                                                                 \
        u64 n = bytes - 1;                                                                         \
        asm volatile("" : "+r"(n)); /* the verifier wants to see both limits, clang neither */     \
        if (n > (size) - 1)                                                                        \
            n = (size) - 1;                                                                        \
        asm volatile("" : "+r"(n));                                                                \
        n += 1;                                                                                    \
        s->packet.captured = bpf_skb_load_bytes(skb, 0, s + 1, n) ? 0 : n;                         \
        bpf_ringbuf_submit(s, wakes(bytes));                                                       \
        goto kept;                                                                                 \
    }

INLINE void put_facts(struct kcap_sighting *s, struct __sk_buff *skb, struct kcap_owner *owner,
                      u32 direction)
{
    struct kcap_packet *p = &s->packet;
    u64 device = word(address(skb), o_sk_buff__dev);
    p->length = skb->len;
    p->interface = skb->ifindex;
    p->direction = direction;
    __builtin_memset(p->name, 0, sizeof(p->name));
    if (device)
        bpf_probe_read_kernel_str(p->name, sizeof(p->name), (void *)(device + o_net_device__name));
    if (owner)
        s->owner = *owner;
    else
        __builtin_memset(&s->owner, 0, sizeof(s->owner));
}

INLINE int see(struct __sk_buff *skb, u32 direction)
{
    u64 ts_ns = bpf_ktime_get_boot_ns(), cookie = bpf_get_socket_cookie(skb);
    struct kcap_packets *count = bpf_map_lookup_elem(&packet_counts, &direction);
    struct kcap_owner *owner = bpf_map_lookup_elem(&owners, &cookie);
    if (!count)
        return 1;
    if (!owner)
        owner = adopt(skb, cookie);
    if (owner && is_own(owner->pid))
        return 1;
    if (only_scoped && (!owner || is_outside(owner))) {
        __sync_fetch_and_add(&count->filtered, 1);
        return 1;
    }
    u64 bytes = header_bytes(skb) + payload_bytes;
    if (bytes > skb->len)
        bytes = skb->len;
    if (bytes > KCAP_PACKET_BYTES)
        bytes = KCAP_PACKET_BYTES;
    PUT(64)
    PUT(256)
    PUT(1024)
    PUT(4096)
    PUT(16384)
    PUT(KCAP_PACKET_BYTES)
full:
    __sync_fetch_and_add(&count->lost, 1);
    return 1;
kept:
    __sync_fetch_and_add(&count->kept, 1);
    if (!owner)
        __sync_fetch_and_add(&count->unowned, 1);
    return 1;
}

SEC("cgroup_skb/egress") int on_egress(struct __sk_buff *skb)
{
    return see(skb, KCAP_OUT);
}

SEC("cgroup_skb/ingress") int on_ingress(struct __sk_buff *skb)
{
    return see(skb, KCAP_IN);
}
