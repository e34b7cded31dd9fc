"""The rights of a process: what it gives up, for good, once it has what it needs them for.

Rights belong to threads. So a process gives them up before anything starts another one;
`keep` looks, and says so where that came too late.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from kcap.errors import KcapError, PrivilegeError

BITS: Final = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_AUDIT_CONTROL": 30,
    "CAP_SYSLOG": 34,
    "CAP_AUDIT_READ": 37,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""The capabilities that a recorder may use, by their bits (linux/capability.h)."""

COLLECTOR: Final = {
    "CAP_KILL": "stop the processes that work for it under another user",
}
"""What the collector keeps, and what for; what it needed only to begin is gone then."""

FILES: Final = {
    "CAP_DAC_OVERRIDE": "make the files of a recording in parts, remove the oldest",
}
"""What it keeps beside that where it makes further files."""

SOURCES: Final = {
    "CAP_AUDIT_CONTROL": "audit: take its rules away again",
    "CAP_AUDIT_READ": "audit: ask how much was lost",
    "CAP_BPF": "bpf: read the program's counters, take it out of the kernel",
    "CAP_NET_ADMIN": "proc: end the subscription, so that what still comes has an end",
    "CAP_PERFMON": "bpf: look at the kernel's table of system calls",
    "CAP_SYSLOG": "bpf: know whose code an entry of that table leads into",
}
"""What it keeps beside that for some source (`kcap.model.stream.LiveSource.rights`)."""

PROBER: Final = {
    "CAP_DAC_READ_SEARCH": "find the path of a control group, read the state of container runtimes",
    "CAP_SYS_PTRACE": "read the links and descriptors of all processes",
}
"""What those keep who read /proc for the others."""

ARTIFACTS: Final = {
    "CAP_DAC_READ_SEARCH": "read the files that processes execute, write or read",
    "CAP_SYS_ADMIN": "watch the files of a file system that comes up, and no longer at the end",
    "CAP_SYS_PTRACE": "read memory that became code, find what other namespaces have mounted",
}
"""What those keep who read artifacts for the others."""

USERS: Final = ("kcap", "nobody")
"""Who a worker becomes, where nobody says: the first of these that the host has."""

_NOBODY: Final = 65534
_CAPABILITY_VERSION: Final = 0x20080522
_SET_NO_NEW_PRIVS: Final = 38
_CAPBSET_DROP: Final = 24
_CAP_AMBIENT: Final = 47
_AMBIENT_CLEAR_ALL: Final = 4
_SET_PDEATHSIG: Final = 1
_LAST: Final = "/proc/sys/kernel/cap_last_cap"
_LAST_KNOWN: Final = 40
_STATUS_BYTES: Final = 1 << 16


class User(NamedTuple):
    """Who a process can become."""

    name: str
    uid: int
    gid: int


class Held(NamedTuple):
    """The rights of a thread, as /proc tells them."""

    effective: int
    permitted: int
    bounding: int
    no_new_privs: bool
    seccomp: int
    """0 none, 1 strict, 2 a filter."""


def held(task: str = "self", proc: str = "/proc") -> Held:
    """What a process, or a thread of it, may do.

    Args:
        task: A process id, or ``PID/task/TID``.
        proc: Where proc is mounted.

    Returns:
        Its capabilities as bits, and what binds it.

    Raises:
        KcapError: It is gone, or /proc is not mounted.
    """
    path = f"{proc}/{task}/status"
    try:
        with Path(path).open("rb") as file:
            text = file.read(_STATUS_BYTES).decode("ascii", "replace")
    except OSError as e:
        raise KcapError(f"the rights of a process can't be read: {e.strerror}", file=path) from e
    values = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    effective, permitted, bounding = (
        int(values.get(name, "0"), 16) for name in ("CapEff", "CapPrm", "CapBnd")
    )
    no_new_privs, seccomp = values.get("NoNewPrivs") == "1", int(values.get("Seccomp", "0"))
    return Held(effective, permitted, bounding, no_new_privs, seccomp)


def names(mask: int) -> list[str]:
    """The capabilities in a mask.

    Args:
        mask: Bits.

    Returns:
        Their names, by bit; ``bit 17`` for those that kcap never asks for.
    """
    known = {bit: name for name, bit in BITS.items()}
    return [known.get(bit, f"bit {bit}") for bit in range(mask.bit_length()) if mask >> bit & 1]


def privileged() -> bool:
    """Whether this process has rights that an ordinary user's has not."""
    return os.geteuid() == 0 or held().permitted != 0


def may_become() -> bool:
    """Whether this process may become another user."""
    mask = held().effective
    return all(mask >> BITS[name] & 1 for name in ("CAP_SETUID", "CAP_SETGID"))


def keep(capabilities: Collection[str]) -> int:
    """Give up all other rights, for good, and the right to gain any by executing something.

    Args:
        capabilities: Names out of `BITS`. Those that this process does not have are not gained.

    Returns:
        How many other threads of this process still have rights that it gave up.

    Raises:
        KcapError: The kernel did not take them away.
    """
    wanted = sum(1 << BITS[name] for name in capabilities)
    _prctl("PR_SET_NO_NEW_PRIVS", _SET_NO_NEW_PRIVS, 1)
    # Before Linux 4.3 there are no ambient capabilities.
    with contextlib.suppress(KcapError):
        _prctl("PR_CAP_AMBIENT", _CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    _never_again(wanted)
    _capset(held().permitted & wanted)
    after = held()
    if (after.effective | after.permitted) & ~wanted or not after.no_new_privs:
        raise KcapError(
            "this process could not give up its rights: it still has "
            f"{', '.join(names((after.effective | after.permitted) & ~wanted))}"
        )
    return _others(wanted)


def _never_again(wanted: int) -> None:
    """Let nothing that this process executes gain more than is wanted."""
    if held().effective >> BITS["CAP_SETPCAP"] & 1:
        for bit in range(_last() + 1):
            if not wanted >> bit & 1:
                _prctl("PR_CAPBSET_DROP", _CAPBSET_DROP, bit)


def _others(wanted: int) -> int:
    """How many threads have more than is wanted."""
    tasks = os.listdir("/proc/self/task")  # noqa: PTH208
    return sum(1 for task in tasks if held(f"self/task/{task}").permitted & ~wanted)


def chosen(name: str | None, users: str = "/etc/passwd") -> User:
    """Who a worker is to become.

    Read from the passwd file alone: a name service may ask the network.

    Args:
        name: A user's name or number; None for the first of `USERS` that there is.
        users: The file that names them.

    Returns:
        The user; a number that the file does not have is a user with a group of that number.

    Raises:
        PrivilegeError: It is root.
        KcapError: There is no such user.
    """
    known = _users(users)
    if name is None:
        found = next((known[user] for user in USERS if user in known), None)
        user = found or User("nobody", _NOBODY, _NOBODY)
    elif name in known:
        user = known[name]
    elif name.isdecimal() and int(name) < 1 << 32:
        number = int(name)
        by_number = {user.uid: user for user in known.values()}
        user = by_number.get(number, User(name, number, number))
    else:
        raise KcapError(
            f"there is no user {name!r}",
            file=users,
            expected="a name in that file, or a number",
            hint="adduser --system --group kcap, or --user nobody",
        )
    if user.uid == 0:
        raise PrivilegeError("events are not worked on as root", hint="--user nobody")
    return user


def become(user: User) -> None:
    """Become an ordinary user: of no other group, without rights, for good.

    Args:
        user: Who.

    Raises:
        PrivilegeError: This process may not.
        KcapError: The kernel left it some of its rights.
    """
    _never_again(0)
    try:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as e:
        raise PrivilegeError(f"this process can't become {user.name}: {e.strerror}") from e
    keep(())


def end_with_parent(number: int) -> None:
    """Get a signal when the process that forked this one ends; set after `become`, which undoes it.

    Args:
        number: The signal.

    Raises:
        KcapError: The kernel refused.
    """
    _prctl("PR_SET_PDEATHSIG", _SET_PDEATHSIG, number)


def _users(path: str) -> dict[str, User]:
    try:
        lines = Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}  # a container image without users; numbers do
    found: dict[str, User] = {}
    for line in lines:
        name, *rest = line.split(":")
        if len(rest) > 2 and rest[1].isdecimal() and rest[2].isdecimal():  # noqa: PLR2004
            found.setdefault(name, User(name, int(rest[1]), int(rest[2])))
    return found


def _last() -> int:
    """The greatest capability that this kernel knows."""
    try:
        return min(int(Path(_LAST).read_text("ascii")), 63)
    except (OSError, ValueError):
        return _LAST_KNOWN


def _prctl(what: str, *arguments: int) -> None:
    words = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:5]]
    if _libc().prctl(*words) < 0:
        number = ctypes.get_errno()
        if what == "PR_CAPBSET_DROP" and number == errno.EINVAL:
            return  # no such capability
        raise KcapError(f"prctl({what}): {os.strerror(number)}")


def _libc() -> ctypes.CDLL:
    """The C library of this Python; these calls of it are the same on every machine."""
    return ctypes.CDLL(None, use_errno=True)


def _capset(mask: int) -> None:
    """Have these capabilities, permitted and effective, and no others."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if _libc().capset(header, data) < 0:
        raise KcapError(f"capset: {os.strerror(ctypes.get_errno())}")
