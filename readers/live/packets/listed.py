"""Sockets that were open before anybody looked: their cookies, and whose they are.

The kernel's socket diagnosis gives the cookie and the inode of every socket of TCP and UDP in a
network namespace; descriptors in /proc say who has that inode open.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.readers.live.bpf.syscalls import libc
from kcap.readers.live.probe import Item, Op
from kcap.readers.live.probe.folders import Folder
from kcap.readers.live.probe.hierarchies import Mounted, hierarchies
from kcap.readers.live.procfs import IMAGE, ProcFS

SOCKETS_MAX: Final = 131_072
"""As many as the kernel program remembers."""

NAMESPACES_MAX: Final = 4096
"""Network namespaces that are looked into."""

LISTED_MARK: Final = 3
"""``KCAP_LISTED``."""

_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_DONE, _ERROR = 3, 2
_DUMP: Final = 0x301
_LISTEN: Final = 10
_ANSWER_BYTES: Final = 1 << 18
_ANSWER_S: Final = 2.0
_HEAD: Final = struct.Struct("=IHHII")
_QUESTION: Final = struct.Struct("=BBBxI48x")
_ASKED: Final = [(f, p) for f in (socket.AF_INET, socket.AF_INET6) for p in (6, 17)]
_MESSAGE: Final = struct.Struct("=BBxx2s2s16s16s4xQ16xI")
"""``struct inet_diag_msg``: family, state, ports, addresses, cookie, inode."""

_MAPPED: Final = bytes(10) + b"\xff\xff"
_NEW_NETWORK: Final = 0x40000000
_INODE: Final = re.compile(r"[a-z]+:\[(\d+)\]")
_INNER: Final = re.compile(rb"^NSpid:\t.*?(\d+)$", re.MULTILINE)

_WANTED: Final = (
    *(Item(Op.LINK, f"ns/{kind}") for kind in ("net", "mnt", "pid")),
    Item(Op.NUMBERS, "fd"),
    Item(Op.LINK, "fd/*"),
    *IMAGE,
)


class Holder(NamedTuple):
    """A process that has sockets."""

    pid: int
    ppid: int
    start_ns: int
    comm: bytes
    uid: int
    gid: int
    cgroup_id: int
    mount_ns: int
    pid_ns: int
    ns_pid: int

    def encode(self, kind: np.dtype[np.void]) -> bytes:
        """What the kernel program is told of it.

        Args:
            kind: ``struct kcap_owner`` as the program has it.

        Returns:
            That structure.
        """
        one = np.zeros(1, kind)
        facts: dict[str, Any] = self._asdict()
        facts |= {"tid": self.pid, "ns_tid": self.ns_pid, "thread_start_ns": self.start_ns}
        facts |= {"mark": LISTED_MARK}
        comm = facts.pop("comm")[:15]
        for name, value in facts.items():
            one[name] = value
        one["comm"][0, : len(comm)] = np.frombuffer(comm, np.int8)
        return one.tobytes()


class Flow(NamedTuple):
    """What a socket is called: its ends, as they stand in packets; IPv4 within IPv6."""

    protocol: int
    local: bytes
    port: bytes
    far: bytes = bytes(16)
    far_port: bytes = bytes(2)

    def wider(self) -> Iterator[Flow]:
        """What sockets may be called that get packets of this flow, the nearest first."""
        yield self
        yield Flow(self.protocol, self.local, self.port)
        yield Flow(self.protocol, _MAPPED + bytes(4), self.port)
        yield Flow(self.protocol, bytes(16), self.port)


class _Socket(NamedTuple):
    cookie: int
    inode: int
    listens: bool
    flow: Flow


class Listed:
    """The sockets of all network namespaces, and who has them open.

    Args:
        proc: The proc file system.
        controller: The hierarchy of version 1 whose ids of control groups are used, None for 2.
    """

    def __init__(self, proc: ProcFS, controller: str | None = None) -> None:
        self.sockets: dict[bytes | int, Holder] = {}
        """By cookie."""
        self.listeners: dict[bytes | int, Holder] = {}
        """Those that take connections: by ``struct kcap_listener``."""
        self.blind = 0
        """Network namespaces whose sockets could not be asked for."""
        self._proc = proc
        self._mounted = next((m for m in hierarchies(proc.root) if _is(m, controller)), None)
        self._holders: dict[int, Holder] = {}
        self._namespaces: dict[int, int] = {}

    def look(self) -> None:
        """Look for them: first at processes, then at sockets."""
        self._processes()
        own = _inode(str(Path("/proc/self/ns/net").readlink()))
        for net_ns, pid in self._namespaces.items():
            path = None if net_ns == own else f"{self._proc.root}/{pid}/ns/net"
            found = _sockets(path)
            if found is None:
                self.blind += 1
                continue
            for one in found:
                self._socket(net_ns, one)

    def flows(self, asked: socket.socket) -> dict[Flow, Holder]:
        """Look for those of our own network namespace.

        Args:
            asked: What `diagnosis` gave.

        Returns:
            Who has them, by what they are called.
        """
        found = [each for what in _ASKED for each in _dump(asked, *what)]
        self._processes()
        return {o.flow: self._holders[o.inode] for o in found if o.inode in self._holders}

    def _processes(self) -> None:
        self._holders.clear()
        for pid, folder in self._proc.folders(self._proc.pids(), _WANTED):
            self._process(pid, folder)

    def _process(self, pid: int, folder: Folder) -> None:
        inodes = [n for fd in folder.numbers("fd") or () if (n := _socket_of(folder, fd))]
        net_ns = _inode(folder.link("ns/net"))
        if net_ns and len(self._namespaces) < NAMESPACES_MAX:
            self._namespaces.setdefault(net_ns, pid)
        if not inodes:
            return
        image = self._proc.image_in(folder, pid)
        if image is None:
            return
        inner = _INNER.search(folder.content("status") or b"")
        name = (
            image.name.encode("utf-8", "surrogateescape")
            if isinstance(image.name, str)
            else image.name
        )
        holder = Holder(
            pid,
            image.ppid,
            image.start_ns,
            name,
            image.uid or 0,
            image.gid or 0,
            self._group(folder.content("cgroup") or b""),
            _inode(folder.link("ns/mnt")),
            _inode(folder.link("ns/pid")),
            int(inner[1]) if inner else pid,
        )
        for inode in inodes:
            # Of several that share a socket the one that came last is likeliest to use it: a
            # server's child, a service that got it from who listened for it.
            known = self._holders.get(inode)
            if known is None or known.start_ns <= holder.start_ns:
                self._holders[inode] = holder

    def _socket(self, net_ns: int, one: _Socket) -> None:
        holder = self._holders.get(one.inode)
        if holder is None or len(self.sockets) >= SOCKETS_MAX:
            return
        self.sockets[one.cookie] = holder
        if one.listens:
            port = int.from_bytes(one.flow.port, "big")
            self.listeners[struct.pack("=II", net_ns, port) + one.flow.local] = holder

    def _group(self, lines: bytes) -> int:
        """The id of a control group: the inode of its folder."""
        if self._mounted is None:
            return 0
        for line in lines.decode("utf-8", "surrogateescape").splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if controllers == self._mounted.controllers:
                with contextlib.suppress(OSError):
                    return os.stat(self._mounted.path + path).st_ino  # noqa: PTH116
        return 0


def _is(mounted: Mounted, controller: str | None) -> bool:
    if controller is None:
        return not mounted.controllers
    return controller in mounted.controllers.split(",")


def _inode(target: str | bytes | None) -> int:
    """Of a namespace or a socket, out of a link like ``net:[4026531840]``."""
    found = _INODE.fullmatch(target) if isinstance(target, str) else None
    return int(found[1]) if found else 0


def _socket_of(folder: Folder, fd: int) -> int:
    target = folder.link(f"fd/{fd}")
    return _inode(target) if isinstance(target, str) and target.startswith("socket:") else 0


def _sockets(namespace: str | None) -> list[_Socket] | None:
    """The sockets of a network namespace; None where it can't be asked.

    A thread of its own asks of another namespace: only that thread goes there, and ends.
    """
    if namespace is None:
        return _asked()
    found: list[list[_Socket] | None] = []
    thread = threading.Thread(target=lambda: found.append(_within(namespace)))
    thread.start()
    thread.join()
    return found[0] if found else None


def _within(namespace: str) -> list[_Socket] | None:
    try:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if libc().setns(ctypes.c_int(descriptor), ctypes.c_int(_NEW_NETWORK)) < 0:
            return None
    finally:
        os.close(descriptor)
    return _asked()


def diagnosis() -> socket.socket:
    """Open what the kernel is asked through for the sockets of a network namespace: this thread's.

    Returns:
        The socket; whoever gets it closes it.

    Raises:
        OSError: The kernel has no such thing.
    """
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)
    made.settimeout(_ANSWER_S)
    return made


def _asked() -> list[_Socket] | None:
    try:
        with diagnosis() as one:
            return [each for asked in _ASKED for each in _dump(one, *asked)]
    except OSError:
        return None


def _dump(one: socket.socket, family: int, protocol: int) -> Iterator[_Socket]:
    """The sockets of one family and protocol; none where the kernel lacks it."""
    body = _QUESTION.pack(family, protocol, 0, 0xFFFFFFFF)
    one.send(_HEAD.pack(_HEAD.size + len(body), _BY_FAMILY, _DUMP, 1, 0) + body)
    while True:
        answer = one.recv(_ANSWER_BYTES)
        at = 0
        while at + _HEAD.size <= len(answer):
            size, kind, *_ = _HEAD.unpack_from(answer, at)
            if kind in (_DONE, _ERROR) or size < _HEAD.size:
                return
            if size >= _HEAD.size + _MESSAGE.size:
                found = _MESSAGE.unpack_from(answer, at + _HEAD.size)
                state, port, far_port, local, far, cookie, inode = found[1:]
                if family == socket.AF_INET:
                    local, far = (_MAPPED + each[:4] for each in (local, far))
                far = bytes(16) if far == _MAPPED + bytes(4) else far
                flow = Flow(protocol, local, port, far, far_port)
                if cookie and inode:
                    yield _Socket(cookie, inode, state == _LISTEN, flow)
            at += size + 3 & ~3
