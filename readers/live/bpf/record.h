/* The records that the kernel program hands to user space, and what user space tells it.
 *
 * Structures only: user space makes its own types from the BTF of the object, so that this file
 * is the one place which says how a record looks. Everything is little-endian and aligned.
 */
#ifndef KCAP_RECORD_H
#define KCAP_RECORD_H

#define KCAP_NUMBERS 12
#define KCAP_PIECES 11
#define KCAP_STACK 8 /* the piece with the addresses of the call stack, where asked for */
#define KCAP_STRING 4096 /* longest string or block of bytes that is copied */
#define KCAP_EVENTS 256 /* event numbers are below */
#define KCAP_OWN 16     /* processes of the recorder at most */
#define KCAP_CALLS 512  /* system call numbers of one instruction set are below */

enum kcap_flag {
    KCAP_COMPAT = 1,    /* a call of the 32-bit instruction set */
    KCAP_FAULT = 2,     /* memory of the process could not be read; that piece is empty */
    KCAP_CUT = 4,       /* a string was longer than what was copied */
    KCAP_ELSEWHERE = 8, /* not the doing of the process that ran then: a timer's, a packet's */
    KCAP_DEEP = 16,     /* a path has more components than were walked */
};

/* One event; its pieces follow, one behind the other, in order, without padding.
 *
 * What events have in common that do the same to the same stands at the end, from number 7 on: with
 * the pieces it is one run of bytes, of which user space looks at each different one once. */
struct kcap_record {
    u64 ts_ns; /* CLOCK_BOOTTIME */
    u32 bytes; /* of the record with its pieces */
    u32 cpu;
    u64 cgroup_id;
    u64 start_ns, thread_start_ns; /* CLOCK_BOOTTIME; of the process and of the thread */
    u32 pid, tid, ppid, ns_pid;
    u32 ns_tid, ns_ppid, uid, gid;
    u32 mount_ns, pid_ns;
    s64 retval;
    u64 number[KCAP_NUMBERS]; /* 0 to 5: the call's registers; 6 to 11: see linux_events.tsv */
    char comm[16];
    u32 nr;    /* of the system call, ~0 outside of one */
    u16 event; /* row of linux_events.tsv */
    u16 flags;
    u16 error; /* of a call that failed */
    u16 piece[KCAP_PIECES]; /* bytes of each piece */
};

/* A socket's ends: a piece. */
struct kcap_socket {
    u16 family, type, protocol, state;
    u16 local_port, remote_port; /* host byte order */
    u32 pad;
    u8 local[16], remote[16]; /* IPv4 in the first four bytes */
    u64 inode;
};

/* How a system call is recorded. Places of arguments count from 1; 0 is none, 255 the result. */
struct kcap_call {
    u16 event;   /* 0: not recorded; KCAP_EVENTS: not either, but counted if it is the recorder's */
    u8 handler;  /* enum kcap_handler */
    u8 ring;     /* 0 rare, 1 hot */
    u8 string[3]; /* strings of the process: pieces 0 to 2 of paths */
    u8 at[2];    /* descriptor of the directory that string 0, 1 begins in; 255: working directory */
    u8 fd;       /* a descriptor: its file or socket is looked up */
    u8 address;  /* a socket address */
    u8 length;   /* its length, or that of a block; of a call that opens a file, its flags */
    u8 flags;    /* enum kcap_call_flag */
    u8 pad[3];
};

enum kcap_call_flag {
    KCAP_ONLY_OK = 1,       /* only calls that succeed */
    KCAP_ONLY_FAILED = 2,   /* only calls that fail */
    KCAP_LENGTH_POINTER = 4, /* the length stands in memory */
    KCAP_MESSAGE = 8,       /* the address is that of a msghdr */
    KCAP_VECTOR = 16,       /* the block is a vector of blocks */
    KCAP_POSITION = 32,     /* a call with a position of its own: pread, pwritev */
    KCAP_WRITES = 64,       /* what goes into a file, or out of a socket */
    KCAP_CREDENTIALS = 128, /* the credentials afterwards are of interest */
};

enum kcap_handler {
    KCAP_PLAIN = 0, /* registers only, and strings */
    KCAP_PATH,      /* strings that are paths, with where they begin */
    KCAP_OPEN,      /* a path, and the file behind the result */
    KCAP_FILE,      /* the file behind a descriptor */
    KCAP_SOCKET,    /* the socket behind a descriptor, an address */
    KCAP_EXEC,      /* an execution that failed */
    KCAP_MEMORY,    /* mmap, mprotect and their kin */
    KCAP_BPF,       /* what bpf(2) is asked for */
    KCAP_REMOTE,    /* process_vm_readv and process_vm_writev */
    KCAP_CLOSE,     /* what a descriptor stood for */
    KCAP_EXECUTED,  /* the rest of an execution; of no call */
    KCAP_VARIABLES, /* its environment; of no call */
    KCAP_HANDLERS,
};

/* What was done with the events of one kind, on one processor. */
struct kcap_count {
    u64 kept, lost, filtered;
};

/* Whose events were lost. */
struct kcap_victim {
    u64 cgroup_id;
    u32 pid, event;
};
#endif
