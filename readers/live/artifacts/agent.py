"""The process that reads artifacts, and may hang: its supervisor kills it then.

It knows nothing of what it reads: it copies, hashes and sends. There are three of them, so that
what stalls one does not stall the others: for the file systems of this host, for those of servers,
and for memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from kcap.readers.live.artifacts import files, marks, protocol
from kcap.readers.live.artifacts.keeping import Keeper
from kcap.readers.live.artifacts.protocol import FETCHING, IDLE, WORKING, Shared
from kcap.readers.live.artifacts.spool import Sender
from kcap.readers.live.artifacts.wanted import Wanted

if TYPE_CHECKING:
    from kcap.readers.live.bpf.btf import Btf
    from kcap.readers.live.bpf.ring import Ring

BACKLOG_EVENTS: Final = 1 << 16
"""Files that wait to be looked at, each of which the kernel keeps; beyond, they are let go."""

REST_S: Final = 6.0
"""For files that wait at the end."""

_LOOK_EVERY: Final = 256
_CROWDED_S: Final = 0.01
_FIONREAD: Final = 0x541B
_WAIT_MS: Final = 100
_MOUNTS_S: Final = 1.0
_SHARE: Final = 3.0
"""How much longer than a look at what is mounted nobody looks at it."""

_HIDDEN: Final = {errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ESTALE}
_MOUNTED_PRI: Final = select.POLLPRI | select.POLLERR
_SEND_S: Final = 5.0


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
        self._marked: dict[int, int] = {}
        """And when these were last found to be."""
        self._special: set[int] = set()
        self._told: set[int] = set(passed)
        self.mounted = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._looked_s = self._took_s = 0.0
        self._asked = False

    def look(self, *, now: bool = False) -> None:
        """Mark what is there and was not, if it is time to look."""
        self._asked = self._asked or now
        pause_s = _SHARE * self._took_s
        begun_s = time.monotonic()
        # Who mounts without end gets no more than a part of our time.
        if begun_s - self._looked_s < (pause_s if self._asked else max(pause_s, _MOUNTS_S)):
            return
        self._asked = False
        refused: dict[int, tuple[marks.Mount, OSError]] = {}
        here, done = set[int](), set[int]()
        for mount in self._namespaces.mounts():
            here.add(mount.dev)
            if mount.special:
                if not self._remote and mount.dev not in self._special:
                    self._special.add(mount.dev)
                    self._watched(mount.dev, None)
                continue
            if mount.remote != self._remote or mount.dev in self._told or mount.dev in done:
                continue
            # A number is used again by the next file system, so what is marked is marked again.
            work = {"kind": "mark", "dev": mount.dev, "path": mount.point.decode("latin-1")}
            self._shared.at(self._role, WORKING, {**work, "file_system": mount.kind})
            try:
                fresh = marks.mark(self._group, mount, self._mask)
            except OSError as e:
                refused[mount.dev] = (mount, e)
            else:
                done.add(mount.dev)
                refused.pop(mount.dev, None)
                if fresh or mount.dev not in self._marked:
                    self._watched(mount.dev, self._role, fresh=fresh)
                self._marked[mount.dev] = time.time_ns()
        # What can't be reached any more may be another one than that which was marked.
        here -= {dev for dev, (_, error) in refused.items() if error.errno in _HIDDEN}
        for dev in sorted((self._marked.keys() | self._special) - here):
            gone = {"dev": dev, "after_ns": self._marked.pop(dev, 0)}
            self._sender.send(protocol.pack(protocol.GONE, gone))
        self._told &= here
        self._special &= here
        for dev, (mount, error) in refused.items():
            if error.errno in _HIDDEN:
                continue  # nobody finds a file of what is hidden; it may come to light
            self._told.add(dev)
            self._watched(dev, None)
            self._sender.lost(_refused(mount, error), kind="blind")
        self._shared.at(self._role, IDLE)
        self._looked_s = time.monotonic()
        self._took_s = self._looked_s - begun_s

    def _watched(self, dev: int, role: int | None, *, fresh: bool = False) -> None:
        """Say that a file system is watched; no role where it has nothing that is kept."""
        told = {"dev": dev, "role": role, "time_ns": time.time_ns()}
        if fresh:  # whatever had its number before: when was that still there?
            told["after_ns"] = self._marked.get(dev, 0)
        self._sender.send(protocol.pack(protocol.MARKED, told))


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
            if self._sender.crowded:
                time.sleep(_CROWDED_S)
            elif self._group in happened:
                self._some(_LOOK_EVERY)
            self._shed()
            self._sender.flush()
            if self._task.finish in happened:
                break
        self._rest()

    def _rest(self) -> None:
        """What waits at the end, as far as there is time."""
        left, until_s = _backlog(self._group), time.monotonic() + REST_S
        while left > 0 and time.monotonic() < until_s:
            if self._sender.crowded:
                time.sleep(_CROWDED_S)
            else:
                left -= self._some(min(left, _LOOK_EVERY)) or left
            self._sender.flush()
        if left:
            self._sender.lost(
                "files that were executed or closed, and still waited at the end", left
            )

    def _some(self, most: int) -> int:
        """Look at files that wait; how many there were."""
        own = self._shared.own
        count = 0
        while count < most and not self._sender.crowded and self._next(own):
            count += 1
        # Not after each of them: taking the next one is a sign of life, too.
        self._shared.at(self._role, IDLE)
        return count

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
