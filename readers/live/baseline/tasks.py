"""Processes, threads and open descriptors, in one pass over /proc.

Everything of a process is read below one descriptor of its folder, so that a process that ends
meanwhile is left out, and one that takes over its id is never mistaken for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from kcap.model import text
from kcap.readers.live import procfs
from kcap.readers.live.baseline.sockets import Sockets
from kcap.readers.live.probe import Item, Op
from kcap.readers.live.probe.folders import Folder
from kcap.readers.live.probe.wire import ELEMENTS_MAX
from kcap.readers.live.procfs import IMAGE, Image, ProcFS
from kcap.state import fds, processes, threads
from kcap.state.fds import Descriptor
from kcap.state.processes import PROCFS
from kcap.state.threads import Thread

_TEXT_BYTES: Final = fds.BYTES_MAX
"""What the descriptors' names and details may take together."""

_NS_TIDS: Final = re.compile(rb"^NSpid:\t(.+)", re.MULTILINE)
_FLAGS: Final = re.compile(rb"^flags:\t([0-7]+)", re.MULTILINE)
_INODE: Final = re.compile(rb"^ino:\t(\d+)", re.MULTILINE)
_NUMBERED: Final = re.compile(r"([a-z_]+):\[(\d+)\]")

_ANONYMOUS: Final = {
    "bpf-map": "bpf",
    "bpf-prog": "bpf",
    "bpf_link": "bpf",
    "eventfd": "event",
    "[eventfd]": "event",
    "[eventpoll]": "eventpoll",
    "[io_uring]": "io_uring",
    "[pidfd]": "pidfd",
    "[signalfd]": "signalfd",
    "[timerfd]": "timerfd",
    "[userfaultfd]": "userfaultfd",
    "inotify": "inotify",
}
"""Types of descriptors by what stands behind ``anon_inode:``; others have that as their type."""

_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")

_STATUS_BYTES: Final = 4096
"""What is read of each: an epoll's says all that it watches, behind what we look for."""

_WANTED: Final = (
    *(Item(Op.LINK, f"ns/{kind}") for kind in _NAMESPACES),
    Item(Op.LINK, "cwd"),
    Item(Op.NUMBERS, "task"),
    Item(Op.CONTENT, "task/*/comm"),
    Item(Op.CONTENT, "task/*/status", _STATUS_BYTES),
    Item(Op.NUMBERS, "fd"),
    Item(Op.LINK, "fd/*"),
    Item(Op.CONTENT, "fdinfo/*", _STATUS_BYTES),
    *IMAGE,
)
"""What is asked of each process."""

_MEMFD: Final = "/memfd:"
_DELETED: Final = " (deleted)"


class Namespace(NamedTuple):
    """A namespace that processes are in."""

    type: str
    """``mnt``, ``net``, ``pid`` …"""
    inode: int
    pid: int
    """The first process in it."""
    name: str | None
    """That process's name."""
    processes: int


class Tasks:
    """What the processes of a host have and share.

    Args:
        proc: The proc file system.
        sockets: Told of each network namespace that is met.

    Example:
        >>> tasks = Tasks(ProcFS(), Sockets())
        >>> tasks.collect()
        >>> len(tasks.images) > 0
        True
    """

    def __init__(self, proc: ProcFS, sockets: Sockets) -> None:
        self._proc = proc
        self._sockets = sockets
        self.images: list[Image] = []
        self.threads: list[Thread] = []
        self.namespaces: dict[tuple[str, int], Namespace] = {}
        self.mounts: dict[int, bytes] = {}
        """The mountinfo of each mount namespace, by inode."""
        self.cgroups: set[bytes] = set()
        """The lines of all cgroup files."""
        self.left_out = 0
        """Processes, threads and descriptors that found no room."""
        self.refused = 0
        """Processes whose descriptors this user may not see."""
        self._files: list[Descriptor] = []
        self._text_bytes = 0

    def collect(self) -> None:
        """Read all processes that are there."""
        pids = self._proc.pids()
        self.left_out += max(0, len(pids) - processes.ENTRIES_MAX)
        for pid, folder in self._proc.folders(pids[: processes.ENTRIES_MAX], _WANTED):
            self._process(folder, pid)

    def _process(self, folder: Folder, pid: int) -> None:
        image = self._proc.image_in(folder, pid, cwd=True)
        if image is None:
            return
        self.images.append(image)
        for kind, inode in self._namespaces_of(folder):
            known = self.namespaces.get((kind, inode))
            if known is None:
                known = Namespace(kind, inode, pid, procfs.stored(image.name), 0)
            self.namespaces[kind, inode] = known._replace(processes=known.processes + 1)
            if kind == "net":
                self._sockets.look(inode, folder)
            elif kind == "mnt" and inode not in self.mounts:
                self.mounts[inode] = folder.content("mountinfo") or b""
        self.cgroups.update((folder.content("cgroup") or b"").split(b"\n"))
        self._threads_of(folder, image)
        for file in self._files_of(folder, pid):
            size = len(file.name or "") + len(file.details or "")
            if len(
                self._files
            ) >= fds.ENTRIES_MAX or self._text_bytes + size > _TEXT_BYTES - 128 * len(self._files):
                self.left_out += 1
                continue
            self._text_bytes += size
            self._files.append(file)

    @staticmethod
    def _namespaces_of(folder: Folder) -> Iterator[tuple[str, int]]:
        for kind in _NAMESPACES:
            target = folder.link(f"ns/{kind}")
            found = isinstance(target, str) and _NUMBERED.fullmatch(target)
            if found:
                yield kind, int(found[2])

    def _threads_of(self, folder: Folder, image: Image) -> None:
        self.left_out += folder.left_out("task/*/comm")
        for tid in (folder.numbers("task") or ())[:ELEMENTS_MAX]:
            if len(self.threads) >= threads.ENTRIES_MAX:
                self.left_out += 1
                continue
            first = tid == image.pid
            name = image.name if first else folder.content(f"task/{tid}/comm")
            if name is None:
                continue  # the thread has ended
            if isinstance(name, bytes):
                name = name.removesuffix(b"\n")
            status = folder.content("status" if first else f"task/{tid}/status")
            inner = _NS_TIDS.search(status or b"")
            ids = [] if inner is None else inner[1].split()
            details = {"ns_tid": int(ids[-1])} if len(ids) > 1 else None
            self.threads.append(
                Thread(
                    tid,
                    image.pid,
                    procfs.stored(name),
                    image.ppid if first else None,
                    provenance=PROCFS,
                    details=None if details is None else text.json_text(details),
                )
            )

    def _files_of(self, folder: Folder, pid: int) -> Iterator[Descriptor]:
        numbers = folder.numbers("fd")
        if numbers is None:
            self.refused += 1
        self.left_out += folder.left_out("fd/*")
        for fd in (numbers or ())[:ELEMENTS_MAX]:
            target = folder.link(f"fd/{fd}")
            if target is None:
                continue  # closed meanwhile
            info = folder.content(f"fdinfo/{fd}") or b""
            flags, inode = _FLAGS.search(info), _INODE.search(info)
            file = described(procfs.stored(target) or "")
            number = None if flags is None else int(flags[1], 8)
            if file.type == "file" and number is not None and number & os.O_DIRECTORY:
                file = file._replace(type="directory")
            if file.inode is None and inode is not None:
                file = file._replace(inode=int(inode[1]))
            yield file._replace(pid=pid, fd=fd, flags=number)

    def sockets(self) -> Iterator[tuple[int, int]]:
        """Who has which socket open.

        Yields:
            Inode of a socket and the process, by process.
        """
        for file in self._files:
            if file.type == "socket" and file.inode is not None:
                yield file.inode, file.pid

    def descriptors(self) -> list[Descriptor]:
        """The open descriptors, by process and number, sockets with their addresses."""
        return [self._with_socket(file) for file in self._files]

    def _with_socket(self, file: Descriptor) -> Descriptor:
        found = None
        if file.type == "socket" and file.inode is not None:
            found = self._sockets.by_inode.get(file.inode)
        if found is None:
            return file
        # The names that replay follows sockets by: state/effects.py.
        details = {"l4_proto": found.protocol, "state": found.state, "net_ns": found.net_ns}
        known = {name: value for name, value in details.items() if value is not None}
        return file._replace(type=found.family, name=found.name, details=text.json_text(known))


def described(target: str) -> Descriptor:
    """What the link of a descriptor says.

    Args:
        target: Where it leads: a path, ``socket:[123]``, ``anon_inode:[eventpoll]``.

    Returns:
        A descriptor of no process and number yet.
    """
    numbered = _NUMBERED.fullmatch(target)
    if numbered is not None:
        kind = numbered[1]
        return Descriptor(
            0,
            0,
            kind if kind in {"pipe", "socket"} else "file",
            None if kind in {"pipe", "socket"} else target,
            int(numbered[2]),
        )
    if target.startswith("anon_inode:"):
        name = target.removeprefix("anon_inode:")
        return Descriptor(0, 0, _ANONYMOUS.get(name, name.strip("[]")), None)
    if target.startswith(_MEMFD):
        return Descriptor(0, 0, "memfd", target.removeprefix("/").removesuffix(_DELETED))
    return Descriptor(0, 0, "file", target)
