/* The records of packets: whose they are, and their bytes. See record.h for the rules. */
#ifndef KCAP_PACKETS_H
#define KCAP_PACKETS_H

#define KCAP_PACKET_BYTES 66048 /* what is copied of one packet at most: 65,535 behind its headers */

enum kcap_direction { KCAP_IN = 1, KCAP_OUT = 2 }; /* the numbers of pcapng */

/* How it is known whose a socket is. */
enum kcap_mark {
    KCAP_UNOWNED = 0,   /* no process has it */
    KCAP_SEEN = 1,      /* seen as the process made, connected, accepted or used it */
    KCAP_INHERITED = 2, /* that of the socket which listened; nobody has accepted it yet */
    KCAP_LISTED = 3,    /* open before: user space found it in /proc */
    KCAP_UNKNOWN = 4,   /* a process has it, and nobody knows which: it is forgotten, or was open before */
};

/* The process of a socket. */
struct kcap_owner {
    u64 start_ns, thread_start_ns; /* CLOCK_BOOTTIME; of the process and of the thread */
    u64 cgroup_id;
    u32 pid, tid, ppid, ns_pid;
    u32 ns_tid, ns_ppid, uid, gid;
    u32 mount_ns, pid_ns;
    u32 mark; /* enum kcap_mark */
    u32 pad;
    char comm[16];
};

/* As it stands in the tables. Their memory goes to another entry as soon as one is put out: whoever
 * has copied a process looks at `of` afterwards, which is written before all else. */
struct kcap_holding {
    u64 of;   /* what it is found by: a cookie, a socket's address, a port and a network namespace */
    u64 sock; /* of what listens: the socket's address, 0 where it was open before */
    struct kcap_owner owner;
};

/* One sighting of a packet, from layer 3 on. */
struct kcap_packet {
    u64 ts_ns;  /* CLOCK_BOOTTIME */
    u64 cookie; /* of the socket; 0 where there is none */
    u32 length, captured;
    u32 interface; /* its number in its network namespace */
    u32 direction; /* enum kcap_direction */
    char name[16]; /* of the interface */
};

/* As it stands in the ring, its bytes behind it. */
struct kcap_sighting {
    struct kcap_packet packet;
    struct kcap_owner owner;
};

/* What was done with the packets of one direction, on one processor. */
struct kcap_packets {
    u64 kept, lost, filtered, unowned, unknown;
};

/* Where connections come in. */
struct kcap_listener {
    u32 net_ns, port;
    u32 address[4]; /* as in packets; of IPv4 within IPv6 */
};
#endif
