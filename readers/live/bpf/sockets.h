/* The two ends of a socket. */
#ifndef KCAP_SOCKETS_H
#define KCAP_SOCKETS_H

#include "scratch.h"

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define S_IFMT 0170000
#define S_IFSOCK 0140000

INLINE void fill_socket(struct kcap_socket *to, u64 sk)
{
    __builtin_memset(to, 0, sizeof(*to));
    to->family = quarter(sk, o_sock_common__skc_family);
    to->type = quarter(sk, o_sock__sk_type);
    to->protocol = quarter(sk, o_sock__sk_protocol);
    to->state = quarter(sk, o_sock_common__skc_state) & 0xff;
    if (to->family == AF_INET || to->family == AF_INET6) {
        u16 port = quarter(sk, o_sock_common__skc_dport);
        to->remote_port = (u16)(port << 8 | port >> 8);
        to->local_port = quarter(sk, o_sock_common__skc_num);
    }
    if (to->family == AF_INET) {
        *(u32 *)to->local = half(sk, o_sock_common__skc_rcv_saddr);
        *(u32 *)to->remote = half(sk, o_sock_common__skc_daddr);
    } else if (to->family == AF_INET6 && o_sock_common__skc_v6_daddr != NOWHERE) {
        bpf_probe_read_kernel(to->local, 16, (void *)(sk + o_sock_common__skc_v6_rcv_saddr));
        bpf_probe_read_kernel(to->remote, 16, (void *)(sk + o_sock_common__skc_v6_daddr));
    }
}

INLINE void put_socket(struct scratch *s, struct kcap_socket *ends)
{
    u64 at = s->used;
    if (at > OFFSET_MASK)
        return;
    __builtin_memcpy(&s->data[at & OFFSET_MASK], ends, sizeof(*ends));
    s->record.piece[3] = sizeof(*ends);
    s->used = at + sizeof(*ends);
}

/* The path of a unix socket; an abstract one begins with a NUL. */
INLINE void put_unix(struct scratch *s, u32 piece, u64 sk)
{
    u64 address = word(sk, o_unix_sock__addr), at = s->used;
    u32 bytes = half(address, o_unix_address__len);
    if (!address || bytes <= 2 || at > OFFSET_MASK)
        return;
    bytes -= 2; /* the family */
    asm volatile("" : "+r"(bytes));
    if (bytes > 108)
        bytes = 108;
    if (bpf_probe_read_kernel(&s->data[at & OFFSET_MASK], bytes,
                              (void *)(address + o_unix_address__name + 2)))
        return;
    s->record.piece[piece] = bytes;
    s->used = at + bytes;
}

/* Both ends of a socket, but for the paths of a unix socket. */
INLINE u16 put_ends(struct scratch *s, u64 sk)
{
    struct kcap_socket ends;
    fill_socket(&ends, sk);
    ends.inode = word(word(sk, o_sock__sk_socket) - o_socket_alloc__socket + o_socket_alloc__vfs_inode,
                      o_inode__i_ino);
    put_socket(s, &ends);
    return ends.family;
}

INLINE void put_unix_ends(struct scratch *s, u64 sk)
{
    put_unix(s, 6, sk);
    u64 peer = word(sk, o_unix_sock__peer);
    if (peer)
        put_unix(s, 7, peer);
}

/* The socket of an open file, 0 where it is none. */
INLINE u64 sock_of(u64 file)
{
    if (!file || (quarter(word(file, o_file__f_inode), o_inode__i_mode) & S_IFMT) != S_IFSOCK)
        return 0;
    return word(word(file, o_file__private_data), o_socket__sk);
}
#endif
