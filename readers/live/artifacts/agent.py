"""The process that reads artifacts, and may hang: its supervisor kills it then.

It knows nothing of what it reads: it copies, hashes and sends. There are three of them, so that
what stalls one does not stall the others: for the file systems of this host, for those of servers,
and for memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import socket
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kcap.model.tracee_names import kernel_device
from kcap.readers.live.artifacts import copying, files, marks, protocol
from kcap.readers.live.artifacts.protocol import FETCHING, IDLE, WORKING, HashNote, Shared
from kcap.readers.live.artifacts.spool import Sender
from kcap.readers.live.artifacts.wanted import Wanted

if TYPE_CHECKING:
    from kcap.readers.live.bpf.btf import Btf
    from kcap.readers.live.bpf.ring import Ring

BACKLOG_EVENTS: Final = 1 << 16
"""Files that wait to be looked at, each of which the kernel keeps; beyond, they are let go."""

_LOOK_EVERY: Final = 256
_FIONREAD: Final = 0x541B
_RACY_NS: Final = 100_000_000
"""A file that changed so shortly ago may change again without its times telling."""

_KNOWN_MAX: Final = 1 << 16
_SENT_MAX: Final = 1 << 16
_WAIT_MS: Final = 100
_MOUNTS_S: Final = 1.0
_HIDDEN: Final = {errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ESTALE}
_MOUNTED_PRI: Final = select.POLLPRI | select.POLLERR
_SEND_S: Final = 2.0
_kernel_device = functools.lru_cache(maxsize=256)(kernel_device)


class Task(NamedTuple):
    """What readers work with; all of it was there before they were forked."""

    wanted: Wanted
    shared: Shared
    end: socket.socket
    """Where finished artifacts go."""
    groups: tuple[int, ...]
    """fanotify, by `protocol.LOCAL` and `protocol.REMOTE`; none where no files are watched."""
    finish: int
    """Can be read where the recording ends."""
    mounted: tuple[int, int]
    """Can be read where something may have been mounted: one for each group."""
    regions: tuple[socket.socket, socket.socket]
    """Where memory that is to be read is told, and where that is heard."""
    ring: Ring | None
    """What the kernel's program tells; None without one."""
    types: Btf | None
    """Its structures."""
    left_out: tuple[str, ...]
    """Paths of the recorder's own files and folders."""


def mask_of(wanted: Wanted) -> int:
    """What is heard of each file.

    Args:
        wanted: The artifacts of the recording.

    Returns:
        Bits of fanotify.
    """
    mask = marks.OPEN_EXEC if wanted.exec else 0
    if wanted.write is not None and wanted.write.files:
        mask |= marks.CLOSE_WRITE
    if wanted.read is not None and wanted.read.files:
        mask |= marks.CLOSE_NOWRITE
    return mask


class Marker:
    """Marks what is mounted, and sees what comes up.

    Args:
        task: See there.
        role: `protocol.LOCAL` or `protocol.REMOTE`.
        sender: Where it tells what it did.
        passed: Devices that stalled it before.
    """

    def __init__(self, task: Task, role: int, sender: Sender, passed: Collection[int]) -> None:
        self._group = task.groups[role]
        self._shared = task.shared
        self._role = role
        self._remote = role == protocol.REMOTE
        self._mask = mask_of(task.wanted)
        self._sender = sender
        self._namespaces = marks.Namespaces()
        self._marked: set[int] = set()
        self._told: set[int] = set(passed)
        self.mounted = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._looked_s = 0.0

    def look(self, *, now: bool = False) -> None:
        """Mark what is there and was not, if it is time to look."""
        if not now and time.monotonic() - self._looked_s < _MOUNTS_S:
            return
        refused: dict[int, tuple[marks.Mount, OSError]] = {}
        here, done = set[int](), set[int]()
        for mount in self._namespaces.mounts():
            here.add(mount.dev)
            if mount.remote != self._remote or mount.dev in self._told or mount.dev in done:
                continue
            # A number is used again by the next file system, so what is marked is marked again.
            if mount.dev in self._marked and not now:
                continue
            work = {"kind": "mark", "dev": mount.dev, "path": mount.point.decode("latin-1")}
            self._shared.at(self._role, WORKING, {**work, "file_system": mount.kind})
            try:
                marks.mark(self._group, mount, self._mask)
            except OSError as e:
                refused[mount.dev] = (mount, e)
            else:
                done.add(mount.dev)
                refused.pop(mount.dev, None)
                if mount.dev not in self._marked:
                    self._marked.add(mount.dev)
                    told = {"dev": mount.dev, "role": self._role}
                    self._sender.send(protocol.pack(protocol.MARKED, told))
        self._marked &= here  # a device that comes again is another one
        self._told &= here
        for dev, (mount, error) in refused.items():
            if error.errno in _HIDDEN:
                continue  # nobody finds a file of what is hidden; it may come to light
            self._told.add(dev)
            self._sender.lost(_refused(mount, error), kind="blind")
        self._shared.at(self._role, IDLE)
        self._looked_s = time.monotonic()


def _refused(mount: marks.Mount, error: OSError) -> str:
    where = mount.point.decode("utf-8", "backslashreplace")
    return f"files of {mount.kind} at {where} are not watched: {error.strerror}"


class FileReader:
    """Reads what is executed and closed.

    Args:
        task: See there.
        role: `protocol.LOCAL` or `protocol.REMOTE`.
        sender: Where artifacts go.
        passed: Devices that stalled it before.
    """

    def __init__(self, task: Task, role: int, sender: Sender, passed: Collection[int]) -> None:
        self._task = task
        self._role = role
        self._shared = task.shared
        self._sender = sender
        self._group = task.groups[role]
        self._marker = Marker(task, role, sender, passed)
        self._keeper = Keeper(task, role, sender)
        wanted, out = task.wanted, task.left_out
        self._write = files.Chosen(wanted.write, out) if wanted.write else None
        self._read = files.Chosen(wanted.read, out) if wanted.read else None
        self._taken = 0
        self._left_out = 0

    def run(self) -> None:
        """Until the recording ends and all is read.

        Raises:
            OSError: The worker is gone.
        """
        self._marker.look(now=True)
        self._shared.count(self._role, ready=1)
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._marker.mounted, _MOUNTED_PRI)
        told = self._task.mounted[self._role]
        poll.register(told, select.POLLIN)
        poll.register(self._task.finish, select.POLLIN)
        while True:
            happened = dict(poll.poll(_WAIT_MS))
            if told in happened:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(told)
            self._marker.look(now=not happened.keys().isdisjoint((told, self._marker.mounted)))
            if self._group in happened:
                self._some(_LOOK_EVERY)
            self._shed()
            self._sender.flush()
            if self._task.finish in happened:
                break
        self._some(_backlog(self._group))

    def _some(self, most: int) -> None:
        """Look at files that wait."""
        own = self._shared.own
        for _ in range(most):
            if not self._next(own):
                break
        # Not after each of them: taking the next one is a sign of life, too.
        self._shared.at(self._role, IDLE)

    def _shed(self) -> None:
        """Let go of files where there are more than can be read."""
        beyond = _backlog(self._group) - BACKLOG_EVENTS
        if beyond > 0:
            for _ in range(beyond):
                event = self._event()
                if event is None:
                    break
                os.close(event[1])
            self._shared.at(self._role, IDLE)
            self._sender.lost("files that were executed or closed while too many waited", beyond)

    def _event(self) -> tuple[int, int, int] | None:
        """The next one: what happened, its file, the process; None where there is none."""
        while True:
            self._shared.at(self._role, FETCHING)
            try:
                # One at a time: who is killed must not have others in hand.
                told = os.read(self._group, marks.EVENT.size)
            except BlockingIOError:
                return None
            except OSError as e:
                # The kernel could not open it for us: a server that refuses, a file that is gone.
                if e.errno in {errno.EINTR, errno.EAGAIN}:
                    continue
                self._sender.lost(f"files that could not be opened again: {e.strerror}")
                continue
            _, _, _, _, mask, file, pid = marks.EVENT.unpack(told)
            if mask & marks.OVERFLOW or file < 0:
                self._sender.lost("files that were executed or closed: the kernel's queue is full")
                continue
            self._shared.count(self._role, events=1)
            return mask, file, pid

    def _next(self, own: Collection[int]) -> bool:
        event = self._event()
        if event is None:
            return False
        mask, file, pid = event
        try:
            if pid not in own:
                self._look_at(mask, file, pid)
        except OSError as e:
            self._sender.lost(f"files that could not be read: {e.strerror}")
        finally:
            os.close(file)
        return True

    def _look_at(self, mask: int, file: int, pid: int) -> None:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            # To hear of it again would be to open it again.
            marks.ignore(self._group, file, mask_of(self._task.wanted))
            return
        if mask & marks.OPEN_EXEC and self._task.wanted.exec:
            self._keeper.executed(file, about, pid)
        for bit, chosen, kind in (
            (marks.CLOSE_WRITE, self._write, "write"),
            (marks.CLOSE_NOWRITE, self._read, "read"),
        ):
            if mask & bit and chosen is not None:
                path = files.path_of(file, about)
                seen = files.within_root(path, pid)
                if chosen.takes(file, path, seen):
                    self._keeper.closed(file, about, kind, pid, seen)


class Known(NamedTuple):
    """What was read of a file before."""

    sha256: str | None
    settled: bool
    """A change since would show in its times."""


class Keeper:
    """Copies files, each content of each of them once.

    Args:
        task: See there.
        role: Which reader.
        sender: Where artifacts go.
    """

    def __init__(self, task: Task, role: int, sender: Sender) -> None:
        self._wanted = task.wanted
        self._shared = task.shared
        self._role = role
        self._sender = sender
        self._known: OrderedDict[tuple[object, ...], Known] = OrderedDict()
        self._was_known = False
        self._era = task.shared.era

    def executed(
        self, file: int, about: os.stat_result, pid: int, more: Mapping[str, Any] | None = None
    ) -> None:
        """A file was executed, or helped with that: a script's interpreter, a loader.

        Args:
            file: Its descriptor.
            about: What is known of it.
            pid: The process.
            more: What else is known.
        """
        found = self._once(file, about, "exec", pid, None, more)
        self._note(about, pid, found)
        if not self._was_known:
            self._sender.flush()  # somebody waits for it

    def unknown(self, pid: int, dev: int, inode: int, ctime_ns: int) -> None:
        """A file was executed that can't be read any more."""
        self._sender.note(HashNote(pid, protocol.TOO_LATE, dev, inode, ctime_ns, 0, bytes(32)))

    def closed(
        self,
        file: int,
        about: os.stat_result,
        kind: str,
        pid: int,
        path: bytes,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """A file was closed, or loaded as a module.

        Args:
            file: Its descriptor.
            about: What is known of it.
            kind: ``write``, ``read`` or ``module``.
            pid: The process.
            path: As that has it.
            more: What else is known.
        """
        self._once(file, about, kind, pid, path, more)

    def _note(self, about: os.stat_result, pid: int, sha256: str | None) -> None:
        told = b"" if sha256 is None else bytes.fromhex(sha256)
        dev = _kernel_device(about.st_dev)
        known = protocol.NO_HASH if sha256 is None else protocol.HASHED
        times = (about.st_ctime_ns, about.st_mtime_ns)
        note = HashNote(pid, known, dev, about.st_ino, *times, told.ljust(32, b"\0"))
        self._sender.note(note)

    def _once(
        self,
        file: int,
        about: os.stat_result,
        kind: str,
        pid: int,
        path: bytes | None,
        more: Mapping[str, Any] | None,
    ) -> str | None:
        """Copy a file, unless it is as it was; its hash, if it was one content all the time."""
        times = (about.st_ctime_ns, about.st_mtime_ns)
        key = (kind, about.st_dev, about.st_ino, *times, about.st_size)
        if self._era != self._shared.era:
            self._era = self._shared.era
            self._known.clear()
        known = self._known.get(key)
        self._was_known = known is not None and known.settled
        if known is not None and known.settled:
            self._known.move_to_end(key)
            return known.sha256
        settled = time.time_ns() - max(times) > _RACY_NS
        told = described(file, about, kind, pid, path)
        told |= more or {}
        self._shared.at(self._role, WORKING, told)
        copied = self._copy(file, kind)
        sha256 = copied.hashes.get("sha256")
        self._known[key] = Known(sha256, settled and not copied.changed)
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
        if known is not None and sha256 is not None and known.sha256 == sha256:
            if copied.memory is not None:
                os.close(copied.memory)
            return sha256
        self._sender.artifact(told, copied)
        return None if copied.changed else sha256

    def _copy(self, file: int, kind: str) -> copying.Copied:
        wanted = self._wanted
        most, reason = limit(wanted, self._shared, self._sender)
        if kind == "exec" and wanted.hash_only:
            most, reason = 0, "only its hash was asked for"
        return copying.copy(
            file,
            most_bytes=most,
            hashes=wanted.hashes,
            step=lambda: self._shared.step(self._role),
            reason=reason,
        )


def limit(wanted: Wanted, shared: Shared, sender: Sender) -> tuple[int, str | None]:
    """How much of an artifact is kept, and why no more, where that is not its own limit.

    Args:
        wanted: The artifacts of the recording.
        shared: Where the worker says what it takes.
        sender: Where content waits.

    Returns:
        Bytes, and the reason.
    """
    most = wanted.caps.artifact_bytes
    if shared.hash_only:
        return 0, "the artifacts of the capture are as large as they may be"
    if sender.room_bytes < most:
        return sender.room_bytes, "the recorder had no time to take it"
    return most, None


def described(
    file: int, about: os.stat_result, kind: str, pid: int, path: bytes | None = None
) -> dict[str, Any]:
    """What is known of a file beside its content.

    Args:
        file: Its descriptor.
        about: What stat(2) says.
        kind: Of the artifact.
        pid: The process.
        path: As that has it, where that is known.

    Returns:
        Plain JSON values.
    """
    if path is None:
        path = files.within_root(files.path_of(file, about), pid)
    return {
        "kind": kind,
        "time_ns": time.time_ns(),
        "pid": pid,
        "path": path[: protocol.PATH_BYTES].decode("latin-1"),
        "dev": about.st_dev,
        "inode": about.st_ino,
        "mode": about.st_mode,
        "size": about.st_size,
        "mtime_ns": about.st_mtime_ns,
        "ctime_ns": about.st_ctime_ns,
        "deleted": not about.st_nlink,
        "script": kind == "exec" and files.begins(file, b"#!"),
        "process_name": name_of(pid),
    }


def name_of(pid: int) -> str | None:
    """What a process is called.

    Args:
        pid: The process.

    Returns:
        Its name; None where it has ended.
    """
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()[:-1].decode("utf-8", "backslashreplace")
    except OSError:
        return None


def _backlog(group: int) -> int:
    """Events that wait."""
    told = fcntl.ioctl(group, _FIONREAD, struct.pack("=i", 0))
    return int(struct.unpack("=i", told)[0]) // marks.EVENT.size


def finish(sender: Sender, end: socket.socket, role: int) -> None:
    """Say that all is read, once everything was sent.

    Args:
        sender: What may still wait.
        end: The socket.
        role: Which reader.

    Raises:
        OSError: The worker is gone.
    """
    sender.send(protocol.pack(protocol.DONE, {"role": role}))
    until_s = time.monotonic() + _SEND_S
    while not sender.flush() and time.monotonic() < until_s:
        select.select((), (end,), (), _WAIT_MS / 1000)
