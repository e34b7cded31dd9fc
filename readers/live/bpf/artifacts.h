/* What the programs that see artifacts hand to user space, and what it tells them.
 *
 * Structures only, as in record.h: user space makes its types from the BTF of the object.
 */
#ifndef KCAP_ARTIFACTS_H
#define KCAP_ARTIFACTS_H

#include "kernel.h"

#define KCAP_CHUNK 16384 /* bytes of content in one record at most */

/* Something that user space, with rights, has to look at at once. The path of the file follows. */
struct kcap_trigger {
    u64 ts_ns; /* CLOCK_BOOTTIME; also what content that follows in the other ring is called by */
    u64 cgroup_id;
    u64 start_ns, thread_start_ns; /* CLOCK_BOOTTIME; of the process and of the thread */
    u32 pid, tid, mount_ns, nr; /* nr: place of the system call in `doings`, ~0 outside of one */
    s64 retval;
    u64 inode, changed_ns, size; /* of a file */
    u64 address, length;         /* of memory; length of content in bytes */
    u32 dev, fd;
    u32 protection, former; /* of memory, now and before; a BPF program's type and number */
    char comm[16];
    char name[16]; /* of a BPF program */
    u16 kind;      /* enum kcap_trigger_kind */
    u16 flags;     /* enum kcap_trigger_flag */
    u16 mode;
    u16 path; /* bytes of the path's components, the last one first */
};

enum kcap_trigger_kind {
    KCAP_ON_EXEC = 1, /* a file without a name, or of a device not `marked`, was executed */
    KCAP_ON_MEMORY,   /* memory became executable */
    KCAP_ON_FILE,     /* a module was loaded from a file: finit_module */
    KCAP_ON_IMAGE,    /* a module was loaded from memory: init_module; its content follows */
    KCAP_ON_PROGRAM,  /* a BPF program was loaded; its instructions follow */
    KCAP_ON_MOUNT,    /* file systems may have come up */
};

enum kcap_trigger_flag {
    KCAP_UNWATCHED = 1,      /* executed: its device is not one of `marked` */
    KCAP_UNLINKED = 2,       /* the file has no name: a memfd, or deleted */
    KCAP_WAS_CODE = 4,       /* memory: could be written and executed before */
    KCAP_WAS_WRITABLE = 8,   /* memory: could be written before */
    KCAP_FORMER_UNKNOWN = 16, /* memory: nobody saw what it was before */
    KCAP_MAPPED = 32,        /* memory: mapped as code from a file without a name */
};

/* A piece of content, or what is told of it. Its bytes follow; or the path's components. */
struct kcap_piece {
    u64 ts_ns;   /* CLOCK_BOOTTIME */
    u64 born_ns; /* CLOCK_BOOTTIME; when the first bytes of the stream were seen */
    u64 generation, inode;
    u32 dev, owner; /* owner: the process, where others have a stream of their own */
    u64 offset;     /* in the stream */
    u64 total;      /* so many bytes went through the stream; of content that ends: its length */
    u64 cgroup_id, start_ns;
    u32 length; /* bytes of the stream that the record stands for */
    u32 bytes;  /* that follow */
    u32 pid, tid, fd, mount_ns, nr;
    char comm[16];
    u16 mode;     /* of the file */
    u16 family;   /* of a socket */
    u8 direction; /* enum kcap_direction */
    u8 what;      /* enum kcap_what */
    u8 pad[6];
};

enum kcap_direction {
    KCAP_READ = 1,
    KCAP_WRITTEN,
    KCAP_PROGRAM,
    KCAP_IMAGE,
};

enum kcap_what {
    KCAP_DATA = 0,
    KCAP_UNREADABLE, /* missing: the memory could not be read */
    KCAP_BEYOND,     /* missing: more than is copied in one call */
    KCAP_UNSEEN,     /* missing: no process had it in its memory */
    KCAP_OPENED,     /* a stream begins; its path */
    KCAP_ENDED,      /* nothing more can be read */
    KCAP_GONE,       /* a process that had streams has exited */
    KCAP_DONE,       /* all of the content was looked at */
    KCAP_WHATS,
};

/* Which stream: user space lets the kernel forget it by this. */
struct kcap_stream_key {
    u64 generation, inode;
    u32 dev, owner;
    u32 direction, pad;
};

/* What went through it. `next` is the sum of all the others. */
struct kcap_stream {
    u64 born_ns;
    u64 next;
    u64 copied;
    u64 missing[4]; /* by enum kcap_what; [0]: the ring was full */
    u32 opened, pad;
};

/* How a system call is looked at. Places of arguments count from 1; 0 is none. */
struct kcap_doing {
    u8 class;     /* enum kcap_class */
    u8 shape;     /* enum kcap_shape */
    u8 direction; /* of `fd`; 0: as it was opened */
    u8 fd;        /* descriptor that is read or written */
    u8 out;       /* descriptor that is written beside */
    u8 peek;      /* flags of recv: what is only peeked at passes later */
    u8 pad[2];
};

enum kcap_class {
    KCAP_STREAMS = 1,
    KCAP_REGIONS,
    KCAP_MODULES,
    KCAP_PROGRAMS,
    KCAP_MOUNTS,
    KCAP_OPENING, /* of no call: the path of a stream */
    KCAP_COPYING, /* of no call */
};

enum kcap_shape {
    KCAP_BLOCK = 1,
    KCAP_BLOCKS,   /* a vector of blocks */
    KCAP_ONE,      /* a msghdr */
    KCAP_SEVERAL,  /* a vector of mmsghdr; the result is their number */
    KCAP_NO_BLOCK, /* from descriptor to descriptor */
};

/* Places of the sums. */
enum kcap_sum {
    KCAP_SUM_TRIGGERS = 0,  /* triggers that were told */
    KCAP_SUM_TRIGGERS_LOST, /* the ring was full */
    KCAP_SUM_PIECES,        /* records of content */
    KCAP_SUM_PIECES_LOST,   /* the ring was full */
    KCAP_SUM_BYTES_LOST,    /* in those */
    KCAP_SUM_STREAMS_LOST,  /* bytes of streams for which there was no room */
    KCAP_SUMS,
};
#endif
