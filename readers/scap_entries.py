"""Entries of the lists in .scap files: machine, interfaces, users, processes, descriptors.

Entries of the newer blocks say how long they are, so that fields may be added: what is behind the
known ones is passed over. Older blocks have no lengths, but one block type for every layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from kcap import limits
from kcap.model import text
from kcap.readers.scap_values import MAPPED, connection, ip_text

_ENTRIES_END: Final = 4
"""Fewer bytes than this behind the last entry fill the block up."""

_MACHINE: Final = struct.Struct("<IQQ128s")
_MACHINE_MORE: Final = struct.Struct("<QQ")
_ARCHITECTURES: Final = {1: "i386", 2: "x86_64", 3: "aarch64"}
_SYSTEMS: Final = {1: "linux", 2: "windows", 3: "macos"}

_NONE: Final = 0xFFFFFFFF
_APPENDED_AT_FIRST: Final = 29
"""Bytes of what entries of processes had behind their root directory before two more fields were
put in front of that."""


class Machine(NamedTuple):
    """What a file says of its machine."""

    hostname: str | None
    cpus: int
    memory_bytes: int
    max_pid: int
    boot_ns: int | None = None
    """When it was started, ns since 1970; older files don't say."""
    architecture: str | None = None
    system: str | None = None


class Interface(NamedTuple):
    """One address of a network interface."""

    name: str
    address: str
    netmask: str
    broadcast: str
    speed: int | None


class User(NamedTuple):
    """One user."""

    uid: int
    gid: int
    name: str
    home: str
    shell: str


class Group(NamedTuple):
    """One group."""

    gid: int
    name: str


class Task(NamedTuple):
    """One thread of the process list; what its version lacks is None."""

    tid: int
    pid: int
    ptid: int
    """The thread that started it."""
    sid: int | None
    comm: str
    exe: str
    """What it was started as, the first of its arguments."""
    exepath: str | None
    args: list[str]
    """The other arguments."""
    cwd: str
    uid: int
    gid: int
    flags: int
    cgroups: list[str] | None
    """``SUBSYSTEM=PATH`` each."""
    details: Mapping[str, Any]
    """All the other fields that its version has, by the names of the format."""


class OpenFile(NamedTuple):
    """One file descriptor of a thread's list."""

    tid: int
    fd: int
    inode: int
    kind: int
    type: str | None
    """As sysdig's ``fd.type``: ``file``, ``ipv4``, ``unix``; None for an unknown kind."""
    name: str | None
    """As sysdig's ``fd.name``."""
    flags: int | None
    """How a file was opened, in the format's own numbers."""
    details: Mapping[str, Any]


class EntryError(Exception):
    """Fields that go beyond their entry, or an entry that goes beyond its list."""


class _Cursor:
    """Reads fields of an entry."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self.at = at
        self.end = end

    def room(self) -> int:
        """Bytes that are left."""
        return self.end - self.at

    def take(self, count: int) -> bytes:
        """So many bytes."""
        if count > self.room():
            raise EntryError
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, size: int, *, signed: bool = False) -> int:
        """An integer."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def raw(self) -> bytes:
        """Bytes with their 16-bit length in front."""
        return self.take(self.number(2))

    def string(self) -> str:
        """Text with its 16-bit length in front; what is not UTF-8 in it is escaped."""
        return _text(self.raw())

    def strings(self) -> list[str]:
        """Texts, a NUL behind each but perhaps the last; of very many the first ones."""
        raw = self.raw()
        if not raw:
            return []
        parts = raw.removesuffix(b"\0").split(b"\0", limits.LIST_VALUE_ITEMS)
        return [_text(part) for part in parts]


def _text(raw: bytes) -> str:
    return text.clean(raw.split(b"\0", 1)[0])[0]


def _entries(body: bytes, at: int, *, has_length: bool) -> Iterator[_Cursor]:
    """A cursor for each entry of a list, behind its length where it has one."""
    while len(body) - at >= _ENTRIES_END:
        cursor = _Cursor(body, at, len(body))
        if has_length:
            size = cursor.number(4)
            if size > len(body) - at or size < _ENTRIES_END:
                raise EntryError
            cursor.end = at + size
        yield cursor
        at = cursor.end if has_length else cursor.at


def machine(body: bytes) -> Machine:
    """The machine.

    Args:
        body: The body of the block.

    Returns:
        What it says.

    Raises:
        EntryError: It is too short.
    """
    if len(body) < _MACHINE.size:
        raise EntryError
    cpus, memory, max_pid, name = _MACHINE.unpack_from(body)
    machine = Machine(_text(name) or None, cpus, memory, max_pid)
    if len(body) < _MACHINE.size + _MACHINE_MORE.size:
        return machine
    boot_ns, flags = _MACHINE_MORE.unpack_from(body, _MACHINE.size)
    return machine._replace(
        boot_ns=boot_ns or None,
        architecture=_ARCHITECTURES.get(flags >> 56),
        system=_SYSTEMS.get(flags >> 48 & 0xFF),
    )


def users(body: bytes, version: int) -> Iterator[User | Group]:
    """The entries of a user list.

    Args:
        body: The body of the block.
        version: The version of its layout.

    Yields:
        Users and groups.

    Raises:
        EntryError: An entry does not fit.
    """
    for cursor in _entries(body, 0, has_length=version > 1):
        if cursor.number(1) == 0:
            uid, gid = cursor.number(4), cursor.number(4)
            yield User(uid, gid, cursor.string(), cursor.string(), cursor.string())
        else:
            gid = cursor.number(4)
            yield Group(gid, cursor.string())


def interfaces(body: bytes, version: int) -> Iterator[Interface]:
    """The entries of an interface list.

    Args:
        body: The body of the block.
        version: The version of its layout.

    Yields:
        The addresses; interfaces of other kinds are passed over.

    Raises:
        EntryError: An entry does not fit, or is of a kind whose length is not known.
    """
    at = 0
    while len(body) - at >= _ENTRIES_END:
        cursor = _Cursor(body, at, len(body))
        if version > 1:
            size = cursor.number(4)  # without itself, unlike in the other lists
            if size > cursor.room():
                raise EntryError
            cursor.end = cursor.at + size
        kind, name_bytes = cursor.number(2), cursor.number(2)
        if kind in _ADDRESS_BYTES:
            count, has_speed = _ADDRESS_BYTES[kind]
            address, netmask, broadcast = (ip_text(cursor.take(count)) for _ in range(3))
            speed = cursor.number(8) if has_speed else 0
            name = _text(cursor.take(name_bytes))
            yield Interface(name, address, netmask, broadcast, speed or None)
        elif version == 1:
            raise EntryError
        at = cursor.end if version > 1 else cursor.at


_ADDRESS_BYTES: Final = {1: (4, True), 2: (16, True), 3: (4, False), 4: (16, False)}
"""Bytes of an address, and whether the speed of the link is there, by type of an interface."""


def tasks(body: bytes, version: int) -> Iterator[Task]:
    """The entries of a process list; each version has what the ones before it have.

    Args:
        body: The body of the block.
        version: The version of its layout.

    Yields:
        The threads.

    Raises:
        EntryError: An entry does not fit.
    """
    for cursor in _entries(body, 0, has_length=version >= 9):  # noqa: PLR2004
        more: dict[str, Any] = {}
        tid, pid, ptid = (cursor.number(8, signed=True) for _ in range(3))
        sid = cursor.number(8, signed=True) if version >= 6 else None  # noqa: PLR2004
        if version >= 8:  # noqa: PLR2004
            more["vpgid"] = cursor.number(8, signed=True)
        comm, exe = cursor.string(), cursor.string()
        exepath = cursor.string() if version >= 7 else None  # noqa: PLR2004
        args, cwd = cursor.strings(), cursor.string()
        more["fdlimit"] = cursor.number(8)
        flags, uid, gid = (cursor.number(4) for _ in range(3))
        cgroups = None
        if version >= 2:  # noqa: PLR2004
            more |= {name: cursor.number(size) for name, size in _MEMORY}
        if version >= 3:  # noqa: PLR2004
            cursor.raw()  # the environment: long, full of secrets, and no fact of the state
        if version >= 4:  # noqa: PLR2004
            more |= {name: cursor.number(8, signed=True) for name in ("vtid", "vpid")}
            cgroups = cursor.strings()
        if version >= 5:  # noqa: PLR2004
            more["root"] = cursor.string()
        if version >= 9:  # noqa: PLR2004
            more |= _appended(cursor)
        yield Task(
            tid, pid, ptid, sid, comm, exe, exepath, args, cwd, uid, gid, flags, cgroups, more
        )


_MEMORY: Final = (
    ("vmsize_kb", 4),
    ("vmrss_kb", 4),
    ("vmswap_kb", 4),
    ("pfmajor", 8),
    ("pfminor", 8),
)
_PUT_IN_FRONT: Final = (("pidns_init_start_ns", 8), ("tty", 4))
_APPENDED: Final = (
    ("loginuid", 4),
    ("exe_writable", 1),
    ("cap_inheritable", 8),
    ("cap_permitted", 8),
    ("cap_effective", 8),
    ("exe_upper_layer", 1),
    ("exe_ino", 8),
    ("exe_ino_ctime_ns", 8),
    ("exe_ino_mtime_ns", 8),
    ("exe_from_memfd", 1),
    ("exe_lower_layer", 1),
    ("pgid", 8),
)
"""What was appended to the entries of processes over time, with its bytes."""


def _appended(cursor: _Cursor) -> Iterator[tuple[str, int]]:
    """The fields that were added to entries of processes, as many as there are."""
    has_both = cursor.room() > _APPENDED_AT_FIRST
    for name, size in (_PUT_IN_FRONT if has_both else ()) + _APPENDED:
        if cursor.room() < size:
            return
        yield name, cursor.number(size, signed=name == "pgid")


def files(body: bytes, version: int) -> Iterator[OpenFile]:
    """The entries of a thread's descriptor list.

    Args:
        body: The body of the block.
        version: The version of its layout.

    Yields:
        The descriptors.

    Raises:
        EntryError: An entry does not fit, or is of a kind whose length is not known.
    """
    tid = int.from_bytes(body[:8], "little", signed=True)
    if len(body) < 8:  # noqa: PLR2004
        raise EntryError
    for cursor in _entries(body, 8, has_length=version > 1):
        fd, inode = cursor.number(8, signed=True), cursor.number(8)
        kind = cursor.number(1)
        file = OpenFile(tid, fd, inode, kind, _TYPES.get(kind), None, None, {})
        if kind in _SOCKETS:
            file = _socket(cursor, file, *_SOCKETS[kind])
        elif kind == _UNIX:
            ends = {"source": cursor.number(8), "peer": cursor.number(8)}
            details = {end: f"{at:x}" for end, at in ends.items() if at}
            # What /proc says ends with its line.
            file = file._replace(name=cursor.string().removesuffix("\n"), details=details)
        elif kind == _FILE_V2:
            flags, name = cursor.number(4), cursor.string()
            more = {"dev": cursor.number(4)} if version > 1 and cursor.room() >= 4 else {}  # noqa: PLR2004
            file = file._replace(name=name, flags=flags, details=more)
        elif kind in _TYPES or kind == _UNSUPPORTED:
            file = file._replace(name=cursor.string())
        elif kind != _UNKNOWN:
            if version == 1:
                raise EntryError  # its length can't be known
            file = file._replace(details={"kind": kind})
        yield file


_UNKNOWN, _UNIX, _UNSUPPORTED, _FILE_V2 = 0, 8, 10, 16
_TYPES: Final = {
    1: "file",
    2: "directory",
    3: "ipv4",
    4: "ipv6",
    5: "ipv4",
    6: "ipv6",
    7: "pipe",
    8: "unix",
    9: "event",
    11: "signalfd",
    12: "eventpoll",
    13: "inotify",
    14: "timerfd",
    15: "netlink",
    16: "file",
    17: "bpf",
    18: "userfaultfd",
    19: "io_uring",
    20: "memfd",
    21: "pidfd",
}
_SOCKETS: Final = {3: (4, True), 4: (16, True), 5: (4, False), 6: (16, False)}
"""Bytes of an address, and whether the kind has two ends."""

_PROTOCOLS: Final = {1: "tcp", 2: "udp", 3: "icmp", 4: "raw"}


def _socket(cursor: _Cursor, file: OpenFile, count: int, both: bool) -> OpenFile:
    """The ends of a socket; IPv4 that goes through an IPv6 socket is IPv4."""
    addresses = [cursor.take(count) for _ in range(2 if both else 1)]
    ports = [cursor.number(2) for _ in addresses]
    protocol = _PROTOCOLS.get(cursor.number(1))
    mapped = both and all(address.startswith(MAPPED) for address in addresses)
    ends = list(zip(addresses, ports, strict=True))
    name = connection(ends) if both else f"{ip_text(addresses[0])}:{ports[0]}"
    details = {"l4_proto": protocol} if protocol else {}
    return file._replace(type="ipv4" if mapped else file.type, name=name, details=details)
