"""System calls that a process gives up: what a recorder's worker never does.

A filter of refused calls and not of permitted ones: what an interpreter, a C library and Arrow
call differs by their versions, and a recording that dies on a call nobody thought of would be
worse than one that may call it. What is refused is what would get somebody out of the worker
who had got into it: another program, another process's memory, new namespaces, mounts, modules,
the kernel's other doors. The lists follow the groups that systemd.exec(5) names.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection
from typing import Final

from kcap.errors import KcapError

EXECUTING: Final = {"execve": 59, "execveat": 322}
FORKING: Final = {"fork": 57, "vfork": 58}
DEBUGGING: Final = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "process_madvise": 440,
    "kcmp": 312, "perf_event_open": 298, "pidfd_getfd": 438, "pidfd_open": 434,
    "lookup_dcookie": 212, "bpf": 321, "userfaultfd": 323,
}  # fmt: skip
MOUNTING: Final = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "name_to_handle_at": 303, "open_by_handle_at": 304, "quotactl": 179,
    "quotactl_fd": 443, "fanotify_init": 300, "swapon": 167, "swapoff": 168, "acct": 163,
}  # fmt: skip
NAMESPACES: Final = {"unshare": 272, "setns": 308}
KERNEL: Final = {
    "init_module": 175, "finit_module": 313, "delete_module": 176, "create_module": 174,
    "kexec_load": 246, "kexec_file_load": 320, "reboot": 169, "syslog": 103, "iopl": 172,
    "ioperm": 173, "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305,
    "adjtimex": 159, "sethostname": 170, "setdomainname": 171, "modify_ldt": 154,
    "personality": 135, "vhangup": 153, "add_key": 248, "request_key": 249, "keyctl": 250,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
}  # fmt: skip
BECOMING: Final = {
    "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116,
    "setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capset": 126,
}  # fmt: skip
SIGNALLING: Final = {
    "kill": 62, "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "pidfd_send_signal": 424, "process_mrelease": 448,
}  # fmt: skip
SCHEDULING: Final = {
    "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144,
    "sched_setaffinity": 203, "sched_setattr": 314, "ioprio_set": 251, "migrate_pages": 256,
    "move_pages": 279,
}  # fmt: skip
"""Calls that change how other processes of the same user run."""

NETWORK: Final = {"socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50}

REFUSED: Final = (
    EXECUTING
    | FORKING
    | DEBUGGING
    | MOUNTING
    | NAMESPACES
    | KERNEL
    | BECOMING
    | SIGNALLING
    | SCHEDULING
)
"""Calls on x86-64 that fail with EPERM, by name."""

_TGKILL: Final = 234
_PRLIMIT: Final = 302
_FCNTL: Final = 72
_OWNING: Final = (8, 10, 15)
"""F_SETOWN, F_SETSIG and F_SETOWN_EX, by which a pipe sends any signal to anybody."""

_IOCTL: Final = 16
_TYPING: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX, by which one types into the terminal of somebody else."""

_CLONE: Final = 56
_CLONE3: Final = 435
_CLONE_THREAD: Final = 0x10000
_X32: Final = 0x40000000
_AUDIT_ARCH_X86_64: Final = 0xC000003E

_LOAD, _EQUAL, _AT_LEAST, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_AT, _SECOND_AT = 0, 4, 16, 24
_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000
_FAIL: Final = 0x00050000
_EPERM, _ENOSYS = 1, 38

_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_NO_NEW_PRIVS: Final = 38


MACHINE: Final = "x86_64"
"""The one whose numbers these are."""


def forbid(
    *, network: bool = False, forks: bool = False, but: Collection[str] = frozenset()
) -> None:
    """Give up the calls of `REFUSED`, for this thread and all that it starts, for good.

    Threads may be started, signals sent to this process, and its own limits set. Calls by the
    numbers of another machine (32 bits) end the process. On machines other than x86-64 nothing is
    given up: the numbers are not theirs.

    Args:
        network: Sockets may be made.
        forks: Processes may be started, which then are under the filter too.
        but: Calls of `REFUSED` that stay allowed.

    Raises:
        KcapError: The kernel refused; kernels have this since Linux 3.5.
    """
    if os.uname().machine != MACHINE:
        return
    code = _program(os.getpid(), network=network, forks=forks, but=but)
    block = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(block))
    held = ctypes.create_string_buffer(filter_, len(filter_))
    library = ctypes.CDLL(None, use_errno=True)
    words = (ctypes.c_ulong(_NO_NEW_PRIVS), ctypes.c_ulong(1), *(ctypes.c_ulong(0),) * 3)
    if library.prctl(*words) < 0 or library.prctl(_SET_SECCOMP, _MODE_FILTER, held) < 0:
        said = os.strerror(ctypes.get_errno())
        raise KcapError(f"system calls can't be given up (seccomp): {said}")


def _program(pid: int, *, network: bool, forks: bool, but: Collection[str]) -> bytes:
    """The filter, in the kernel's classic BPF."""
    refused = {name: number for name, number in REFUSED.items() if name not in but}
    if forks:
        refused = {name: number for name, number in refused.items() if name not in FORKING}
    if not network:
        refused |= NETWORK
    numbers = sorted(refused.values())
    out = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    # Each test jumps to one of the ends behind them all.
    tests = [(_AT_LEAST, "eperm", _X32), *((_EQUAL, "eperm", number) for number in numbers)]
    tests += [(_EQUAL, "tgkill", _TGKILL), (_EQUAL, "ioctl", _IOCTL)]
    tests += [(_EQUAL, "prlimit", _PRLIMIT), (_EQUAL, "fcntl", _FCNTL)]
    if not forks:
        tests += [(_EQUAL, "enosys", _CLONE3), (_EQUAL, "clone", _CLONE)]
    ends = [
        ("allow", (_RETURN, 0, 0, _ALLOW)),
        ("eperm", (_RETURN, 0, 0, _FAIL | _EPERM)),
        # The C library then uses clone, whose flags can be looked at.
        ("enosys", (_RETURN, 0, 0, _FAIL | _ENOSYS)),
        ("clone", (_LOAD, 0, 0, _FIRST_AT)),
        ("", (_SET, 0, 1, _CLONE_THREAD)),
        ("", (_RETURN, 0, 0, _ALLOW)),
        ("", (_RETURN, 0, 0, _FAIL | _EPERM)),
        ("tgkill", (_LOAD, 0, 0, _FIRST_AT)),
        ("", (_EQUAL, 0, 1, pid)),
        ("", (_RETURN, 0, 0, _ALLOW)),
        ("", (_RETURN, 0, 0, _FAIL | _EPERM)),
        ("prlimit", (_LOAD, 0, 0, _FIRST_AT)),
        ("", (_EQUAL, 1, 0, 0)),
        ("", (_EQUAL, 0, 1, pid)),
        ("", (_RETURN, 0, 0, _ALLOW)),
        ("", (_RETURN, 0, 0, _FAIL | _EPERM)),
        *_but("ioctl", _TYPING),
        *_but("fcntl", _OWNING),
    ]
    places = {name: len(tests) + at for at, (name, _) in enumerate(ends)}
    out += [(test, places[end] - at - 1, 0, value) for at, (test, end, value) in enumerate(tests)]
    out += [instruction for _, instruction in ends]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in out)


def _but(name: str, codes: Collection[int]) -> list[tuple[str, tuple[int, int, int, int]]]:
    """An end that fails where a call's second word is one of some."""
    return [
        (name, (_LOAD, 0, 0, _SECOND_AT)),
        *(("", (_EQUAL, len(codes) - at, 0, code)) for at, code in enumerate(codes)),
        ("", (_RETURN, 0, 0, _ALLOW)),
        ("", (_RETURN, 0, 0, _FAIL | _EPERM)),
    ]
