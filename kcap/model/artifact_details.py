"""What the details of an artifact say: the names that have one meaning (spec/kcap.md, 9.7)."""

from __future__ import annotations

from typing import Final

KINDS: Final = {
    "exec": "a file that was executed",
    "write": "what was written to a file, pipe or socket",
    "read": "what was read from one",
    "mem": "memory of a process",
    "module": "a kernel module that was loaded",
    "bpf": "a BPF program that was loaded: its instructions as bpf(2) got them",
}
"""Kinds of artifacts to what each is; there may be others."""

DETAILS: Final = {
    "kind": "what the artifact is: `exec`, `write`, `read`, `mem`, `module`, `bpf`",
    "time_ns": "when it was taken, ns since 1970",
    "end_ns": "when the last of a stream passed, ns since 1970",
    "pid": "process, as the host numbers it",
    "tid": "thread, as the host numbers it",
    "ppid": "parent process",
    "uid": "user",
    "process_name": "name of the process",
    "process_key": "the event column of that name",
    "exe": "the file that the process runs",
    "container_id": "container, absent for the host itself",
    "cgroup_id": "control group",
    "host": "machine",
    "dev": "device of the file, `st_dev` of stat(2)",
    "inode": "inode of the file",
    "mode": "mode of the file, type and permissions",
    "nlink": "names that the file has",
    "link_count": "the same when the artifact was taken, where that was later",
    "mtime_ns": "last change of its content, ns since 1970",
    "ctime_ns": "last change of the inode, ns since 1970",
    "file_type": "`regular`, `pipe`, `socket`, `char` or `memory`",
    "fd": "descriptor",
    "presumed": "true: which file it was is concluded from events, as nobody could open it",
    "syscall": "the system call with which a stream began",
    "processes": "`pid` and `process_name` of each that read or wrote, where they are several",
    "address": "where the memory begins",
    "protection": "what the memory may be used for, `rwx`",
    "name": "of a BPF program, a module, an executed file without a path",
    "md5": "of the content, hex",
    "sha1": "of the content, hex",
    "mount_ns": "mount namespace, where no container is known",
    "file": "where it was in a directory that it was imported from",
    "other_paths": "paths that the same file had before",
    "joined_by": "by what the event was found that an imported artifact belongs to",
}
"""Names to meanings. Numbers are integers; what is not known is absent."""
