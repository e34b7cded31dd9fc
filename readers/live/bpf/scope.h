/* What is recorded of what happens: tested before anything is copied. */
#ifndef KCAP_SCOPE_H
#define KCAP_SCOPE_H

#include "scratch.h"

enum { EQUAL = 1, UNEQUAL = 2 };

#define SCOPE(dimension, type)                                                                     \
    struct {                                                                                       \
        MAP_TYPE(BPF_MAP_TYPE_HASH);                                                               \
        MAP_ENTRIES(4096);                                                                         \
        type *key;                                                                                 \
        u8 *value;                                                                                 \
    } scope_##dimension SEC(".maps");                                                              \
    const volatile u32 equals_##dimension = 0, unequal_##dimension = 0;

struct name {
    char text[16];
};

struct binary {
    u32 dev, pad;
    u64 inode;
};

SCOPE(uid, u32)
SCOPE(pid, u32)
SCOPE(comm, struct name)
SCOPE(mount_ns, u32)
SCOPE(pid_ns, u32)
SCOPE(cgroup, u64)
SCOPE(binary, struct binary)

/* Processes that are recorded with all their descendants. */
struct {
    MAP_TYPE(BPF_MAP_TYPE_HASH);
    MAP_ENTRIES(65536);
    u32 *key;
    u8 *value;
} tracked SEC(".maps");

const volatile u32 scoped = 0; /* there is a scope at all */
const volatile u32 uid_min = 0, uid_max = 0xffffffff, pid_min = 0, pid_max = 0xffffffff;
const volatile u32 want_tracked = 0;  /* only tracked processes */
const volatile u32 track_new = 0;     /* each process that starts is tracked */
const volatile u32 track_matches = 0; /* who is in scope is tracked */

#define OUTSIDE(dimension, key)                                                                    \
    ({                                                                                             \
        u8 out = 0;                                                                                \
        if (equals_##dimension || unequal_##dimension) {                                           \
            u8 *value = bpf_map_lookup_elem(&scope_##dimension, key);                              \
            out = (equals_##dimension && (!value || *value != EQUAL)) ||                           \
                  (unequal_##dimension && value && *value == UNEQUAL);                             \
        }                                                                                          \
        out;                                                                                       \
    })

INLINE u8 is_tracked(u32 pid)
{
    return bpf_map_lookup_elem(&tracked, &pid) != 0;
}

INLINE void track(u32 pid)
{
    u8 one = 1;
    bpf_map_update_elem(&tracked, &pid, &one, 0);
}

/* Whether the event in hand is of interest, by whose it is. */
INLINE u8 in_scope(struct scratch *s)
{
    struct kcap_record *r = &s->record;
    if (!scoped)
        return 1;
    if (is_tracked(r->pid))
        return 1;
    if (want_tracked)
        return 0;
    if (r->uid < uid_min || r->uid > uid_max || r->pid < pid_min || r->pid > pid_max)
        return 0;
    struct name name = {};
    __builtin_memcpy(name.text, r->comm, sizeof(name.text));
    if (OUTSIDE(uid, &r->uid) || OUTSIDE(pid, &r->pid) || OUTSIDE(comm, &name) ||
        OUTSIDE(mount_ns, &r->mount_ns) || OUTSIDE(pid_ns, &r->pid_ns) ||
        OUTSIDE(cgroup, &r->cgroup_id))
        return 0;
    if (track_matches)
        track(r->pid);
    return 1;
}
#endif
