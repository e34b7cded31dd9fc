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

static u64 (*const bpf_get_socket_cookie)(void *context) = (void *)46;
static long (*const bpf_skb_load_bytes)(const void *skb, u32 offset, void *to, u32 bytes) = (void *)26;
static void *(*const bpf_ringbuf_reserve)(void *ring, u64 bytes, u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *record, u64 flags) = (void *)132;

enum { NO_WAKEUP = 1, FORCE_WAKEUP = 2 };
#define X32_NUMBERS 0x40000000
#define COMPAT_STATUS 2
#define HEADERS_MOST 1024 /* that a packet can make us take for headers */

AT(o_net__ns__inum);
AT(o_net_device__name);
AT(o_sk_buff__dev);
AT(o_sock_common__skc_cookie__counter);
AT(o_sock_common__skc_net__net);
AT(o_socket__file);

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
    struct kcap_holding *value;
} owners SEC(".maps");

/* Those of accepted sockets of which no packet has come, by address: they have no cookie yet. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(16384);
    u64 *key;
    struct kcap_holding *value;
} accepted SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_LRU_HASH);
    MAP_ENTRIES(16384);
    struct kcap_listener *key;
    struct kcap_holding *value;
} listeners SEC(".maps");

struct {
    MAP_TYPE(BPF_MAP_TYPE_PERCPU_ARRAY);
    MAP_ENTRIES(3); /* by direction */
    u32 *key;
    struct kcap_packets *value;
} packet_counts SEC(".maps");

enum { SYN_RECV = 3, CLOSED = 7, LISTEN = 10, INET = 2, INET6 = 10, STREAM = 1, TCP = 6 };

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

/* The process that an entry of a table has; not where the entry was another's while we looked. */
INLINE u8 copied(struct kcap_holding *held, u64 of, struct kcap_owner *to)
{
    if (!held)
        return 0;
    *to = held->owner;
    asm volatile("" ::: "memory");
    return *(volatile u64 *)&held->of == of;
}

/* This process has the socket from now on. */
INLINE int take(void *context)
{
    struct kcap_holding held = {.of = bpf_get_socket_cookie(context)};
    identify(&held.owner, KCAP_SEEN);
    bpf_map_update_elem(&owners, &held.of, &held, 0);
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
    at->address[0] = at->address[1] = 0;
    at->address[2] = 0xffff0000; /* ::ffff:0:0 */
    at->address[3] = half(sock, o_sock_common__skc_rcv_saddr);
    if (quarter(sock, o_sock_common__skc_family) == INET6 && o_sock_common__skc_v6_rcv_saddr != NOWHERE)
        bpf_probe_read_kernel(at->address, 16, (void *)(sock + o_sock_common__skc_v6_rcv_saddr));
}

INLINE u64 port_of(struct kcap_listener *at)
{
    return (u64)at->port << 32 | at->net_ns;
}

SEC("raw_tp/inet_sock_set_state") int on_packet_state(struct bpf_raw_tracepoint_args *context)
{
    u64 sock = context->args[0];
    s32 before = context->args[1], now = context->args[2];
    struct kcap_listener at;
    if (now == LISTEN) { /* in the process that listens */
        struct kcap_holding held = {.sock = sock};
        u64 cookie = word(sock, o_sock_common__skc_cookie__counter);
        where(sock, &at);
        identify(&held.owner, KCAP_SEEN);
        held.of = port_of(&at);
        bpf_map_update_elem(&listeners, &at, &held, 0);
        held.of = cookie;
        if (cookie)
            bpf_map_update_elem(&owners, &cookie, &held, 0);
    } else if (before == LISTEN && now == CLOSED) {
        where(sock, &at);
        struct kcap_holding *held = bpf_map_lookup_elem(&listeners, &at);
        if (held && held->sock == sock)
            bpf_map_delete_elem(&listeners, &at);
    } else if (before == LISTEN && now == SYN_RECV) { /* a new socket, where another may have been */
        bpf_map_delete_elem(&accepted, &sock);
    }
    return 0;
}

/* Whether a call was one that accepts: also of programs of 32 bits, of which `syscalls` tells nobody. */
INLINE u8 accepts(u64 regs)
{
    u64 nr = word(regs, __builtin_offsetof(struct registers, orig_ax)) & ~X32_NUMBERS;
    if (nr != 43 && nr != 288 && nr != 364 && nr != 102)
        return 0;
    u8 narrow = o_task_struct__thread_info__status != NOWHERE &&
                (half(bpf_get_current_task(), o_task_struct__thread_info__status) & COMPAT_STATUS);
    if (!narrow)
        return nr == 43 || nr == 288;
    u32 which = half(regs, __builtin_offsetof(struct registers, bx)); /* of socketcall */
    return nr == 364 || (nr == 102 && (which == 5 || which == 18));
}

SEC("raw_tp/sys_exit") int on_accept(struct bpf_raw_tracepoint_args *context)
{
    s32 fd = context->args[1];
    if (fd < 0 || !accepts(context->args[0]))
        return 0;
    u64 file = file_of(word(bpf_get_current_task(), o_task_struct__files), fd);
    if (!file || (quarter(word(file, o_file__f_inode), o_inode__i_mode) & 0xf000) != 0xc000)
        return 0;
    u64 sock = word(word(file, o_file__private_data), o_socket__sk);
    u16 family = quarter(sock, o_sock_common__skc_family);
    if (!sock || (family != INET && family != INET6))
        return 0;
    struct kcap_holding held = {.of = sock};
    identify(&held.owner, KCAP_SEEN);
    u64 cookie = word(sock, o_sock_common__skc_cookie__counter);
    if (!cookie) {
        bpf_map_update_elem(&accepted, &sock, &held, 0);
        /* Its first packet may have looked there just before; then it has a cookie by now. */
        cookie = word(sock, o_sock_common__skc_cookie__counter);
        if (!cookie)
            return 0;
        bpf_map_delete_elem(&accepted, &sock);
    }
    held.of = cookie;
    bpf_map_update_elem(&owners, &cookie, &held, 0);
    return 0;
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

#define ONLY_NEW 1 /* BPF_NOEXIST: what another processor learned meanwhile is better */

INLINE void keep(u64 cookie, struct kcap_owner *owner, u64 flags)
{
    struct kcap_holding held = {.of = cookie, .owner = *owner};
    bpf_map_update_elem(&owners, &cookie, &held, flags);
}

/* Whoever has it listen where a connection came in: at its address, or at any. */
INLINE u8 find_listener(u64 sock, struct kcap_owner *owner)
{
    struct kcap_listener at;
    where(sock, &at);
    if (copied(bpf_map_lookup_elem(&listeners, &at), port_of(&at), owner))
        return 1;
    at.address[3] = 0;
    if (quarter(sock, o_sock_common__skc_family) == INET &&
        copied(bpf_map_lookup_elem(&listeners, &at), port_of(&at), owner))
        return 1;
    at.address[0] = at.address[1] = at.address[2] = 0;
    return copied(bpf_map_lookup_elem(&listeners, &at), port_of(&at), owner);
}

/* Whose socket it is of which nobody said so: that of whoever accepted it, or has it listen. */
INLINE void adopt(struct __sk_buff *skb, u64 cookie, struct kcap_owner *owner)
{
    void *typed_sock = skb->sk;
    __builtin_memset(owner, 0, sizeof(*owner));
    if (!typed_sock || !cookie)
        return;
    u64 sock = address(typed_sock);
    if (copied(bpf_map_lookup_elem(&accepted, &sock), sock, owner)) {
        keep(cookie, owner, 0);
        bpf_map_delete_elem(&accepted, &sock);
        return;
    }
    if (quarter(sock, o_sock__sk_type) == STREAM && quarter(sock, o_sock__sk_protocol) == TCP &&
        find_listener(sock, owner)) {
        owner->mark = KCAP_INHERITED;
        keep(cookie, owner, ONLY_NEW);
        return;
    }
    /* Sockets of the kernel itself are no file of anybody. */
    u64 socket = word(sock, o_sock__sk_socket);
    __builtin_memset(owner, 0, sizeof(*owner));
    if (!socket || word(socket, o_socket__file))
        owner->mark = KCAP_UNKNOWN;
}

/* Whether a process is not recorded: what scope.h tests of an event, of a socket's process. */
INLINE u8 is_outside(struct kcap_owner *o)
{
    struct name name;
    if (!scoped || is_tracked(o->pid))
        return 0;
    if (want_tracked || o->uid < uid_min || o->uid > uid_max || o->pid < pid_min || o->pid > pid_max)
        return 1;
    __builtin_memcpy(name.text, o->comm, sizeof(name.text));
    return OUTSIDE(uid, &o->uid) || OUTSIDE(pid, &o->pid) || OUTSIDE(comm, &name) ||
           OUTSIDE(mount_ns, &o->mount_ns) || OUTSIDE(pid_ns, &o->pid_ns) ||
           OUTSIDE(cgroup, &o->cgroup_id);
}

#define EXTENSIONS 8

/* Bytes of the header of layer 4, of which the packet's protocol tells. */
INLINE u32 transport_bytes(struct __sk_buff *skb, u32 at, u8 protocol)
{
    u8 offset = 0;
    switch (protocol) {
    case TCP:
        if (bpf_skb_load_bytes(skb, at + 12, &offset, 1) || offset >> 4 < 5)
            return 20;
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

/* Whether a record fills another part of the ring; else user space looks by itself, now and then. */
INLINE u64 wakes(u64 record_bytes)
{
    u64 filled = bpf_ringbuf_query(&packets, 0);
    return filled >= wake_packets && (filled & (wake_packets - 1)) < record_bytes ? FORCE_WAKEUP
                                                                                  : NO_WAKEUP;
}

INLINE void put_facts(struct kcap_sighting *s, struct __sk_buff *skb, u32 direction)
{
    struct kcap_packet *p = &s->packet;
    u64 device = word(address(skb), o_sk_buff__dev);
    p->length = skb->len;
    p->interface = skb->ifindex;
    p->direction = direction;
    __builtin_memset(p->name, 0, sizeof(p->name));
    if (device)
        bpf_probe_read_kernel_str(p->name, sizeof(p->name), (void *)(device + o_net_device__name));
}

/* Copies of a packet are put straight into the ring, which gives out memory of a size that the
 * verifier knows: the smallest of these that is enough. (Where it knows the number it follows
 * each; clang must not make one expression of them.) */
#define ROOM(size) else if (bytes <= (size)) asm volatile("%0 = %1" : "=r"(room) : "i"(size))

INLINE u64 room_for(u64 bytes)
{
    u64 room;
    if (bytes <= 64)
        asm volatile("%0 = 64" : "=r"(room));
    ROOM(128);
    ROOM(192);
    ROOM(256);
    ROOM(512);
    ROOM(1024);
    ROOM(1600);
    ROOM(4096);
    ROOM(9216);
    ROOM(16384);
    ROOM(24576);
    ROOM(32768);
    ROOM(49152);
    else asm volatile("%0 = %1" : "=r"(room) : "i"(KCAP_PACKET_BYTES));
    return room;
}

INLINE int see(struct __sk_buff *skb, u32 direction)
{
    u64 ts_ns = bpf_ktime_get_boot_ns(), cookie = bpf_get_socket_cookie(skb);
    struct kcap_packets *count = bpf_map_lookup_elem(&packet_counts, &direction);
    struct kcap_owner owner;
    if (!count)
        return 1;
    if (!copied(bpf_map_lookup_elem(&owners, &cookie), cookie, &owner))
        adopt(skb, cookie, &owner);
    if (owner.pid && is_own(owner.pid))
        return 1;
    if (only_scoped && (!owner.pid || is_outside(&owner))) {
        __sync_fetch_and_add(&count->filtered, 1);
        return 1;
    }
    u64 bytes = header_bytes(skb);
    if (bytes > HEADERS_MOST)
        bytes = HEADERS_MOST;
    bytes += payload_bytes;
    if (bytes > skb->len)
        bytes = skb->len;
    if (bytes > KCAP_PACKET_BYTES)
        bytes = KCAP_PACKET_BYTES;
    u64 room = room_for(bytes);
    struct kcap_sighting *s = bpf_ringbuf_reserve(&packets, sizeof(*s) + room, 0);
    if (!s) {
        __sync_fetch_and_add(&count->lost, 1);
        return 1;
    }
    put_facts(s, skb, direction);
    s->owner = owner;
    s->packet.ts_ns = ts_ns;
    s->packet.cookie = cookie;
    u64 n = bytes - 1;
    asm volatile("" : "+r"(n)); /* the verifier wants to see both limits, clang neither */
    if (n > room - 1)
        n = room - 1;
    asm volatile("" : "+r"(n));
    n += 1;
    s->packet.captured = bytes && !bpf_skb_load_bytes(skb, 0, s + 1, n) ? n : 0;
    bpf_ringbuf_submit(s, wakes(sizeof(*s) + room + 8));
    __sync_fetch_and_add(&count->kept, 1);
    if (!owner.pid)
        __sync_fetch_and_add(owner.mark == KCAP_UNKNOWN ? &count->unknown : &count->unowned, 1);
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
