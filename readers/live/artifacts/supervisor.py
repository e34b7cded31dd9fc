"""The process that starts readers of artifacts, and kills those that hang.

It never touches a file, so it never hangs. What a reader was at when it hung it tells the worker
in the reader's place. When the door is closed everywhere, also by ``kill -9``, all of this ends,
and no mark stays behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from kcap.errors import KcapError
from kcap.guard import rights, seccomp
from kcap.readers.live.artifacts import marks, protocol
from kcap.readers.live.artifacts.agent import FileReader, Task, finish, mask_of
from kcap.readers.live.artifacts.agent_moments import MemoryReader, MomentReader, missing
from kcap.readers.live.artifacts.protocol import FETCHING, IDLE
from kcap.readers.live.artifacts.spool import Sender, content
from kcap.readers.live.guard import apart

STALL_S: Final = 2.0
"""A reader that made no step for so long is killed."""

BUSY_S: Final = 10.0
"""One that gets no processor has so long."""

STUCK_MAX: Final = 8
"""Readers of one kind that were killed and do not end, from which on no more are started."""

CAREFUL_FROM: Final = 2
"""Readers of moments that hang, from which on the next opens only what can't make it wait."""

_LOOK_MS: Final = 100


def run(door: socket.socket, task: Task) -> NoReturn:
    """Be the supervisor; of a process that was just forked.

    Args:
        door: Closed where all is to end.
        task: What readers work with.
    """
    status = 1
    try:
        apart.let_go({door.fileno(), *_held(task)})
        rights.keep(rights.ARTIFACTS)
        seccomp.forbid(forks=True, but={"kill"})
        _Supervisor(door, task).work()
        status = 0
    except (OSError, KcapError):
        # The worker sees that nobody says anything any more.
        status = 2
    finally:
        os._exit(status)


def _held(task: Task) -> set[int]:
    """The descriptors that readers work with."""
    ring = () if task.ring is None else (task.ring.fd,)
    sockets = (task.end.fileno(), *(each.fileno() for each in task.regions))
    return {task.finish, *task.mounted, *task.groups, *sockets, *ring}


class _Watched:
    """A reader."""

    def __init__(self, pid: int, now_s: float) -> None:
        self.pid = pid
        self.steps = -1
        self.moved_s = now_s
        self.killed = False


class _Supervisor:
    """Starts readers, and ends them."""

    def __init__(self, door: socket.socket, task: Task) -> None:
        self._door = door
        self._task = task
        self._shared = task.shared
        self._readers: dict[int, _Watched] = {}
        self._stuck: dict[int, int] = {}
        """Readers that were killed and have not ended, and their role."""
        self._passed: set[int] = set()
        self._finished: set[int] = set()
        self._parent = apart.Parent()
        self._sender = Sender(task.end, task.shared, protocol.LOCAL)
        self._roles = [role for role in range(len(protocol.ROLES)) if self._needed(role)]

    def _needed(self, role: int) -> bool:
        if role in (protocol.LOCAL, protocol.REMOTE):
            return bool(mask_of(self._task.wanted))
        return self._task.ring is not None and (role == protocol.MOMENTS or self._task.wanted.mem)

    def work(self) -> None:
        """Until the door is closed."""
        for role in self._roles:
            self._start(role, {})
        self._say()
        poll = select.poll()
        poll.register(self._door, select.POLLIN)
        try:
            while not self._parent.long_gone:
                if poll.poll(_LOOK_MS):
                    return
                self._reap()
                now_s = time.monotonic()
                for role, reader in list(self._readers.items()):
                    self._look(role, reader, now_s)
                # A worker that is gone has closed the door, or will.
                with contextlib.suppress(OSError):
                    self._sender.flush()
        finally:
            # Also for those who hold a group open and can't end.
            for group in self._task.groups:
                marks.flush(group)
            for reader in self._readers.values():
                os.kill(reader.pid, signal.SIGKILL)

    def _start(self, role: int, stalled: Mapping[str, Any]) -> None:
        self._shared.at(role, IDLE)
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._readers[role] = _Watched(pid, time.monotonic())
            return
        status = 1
        try:
            rights.end_with_parent(signal.SIGKILL)
            seccomp.forbid()
            if os.getppid() == parent:
                self._read(role, stalled)
            status = 0
        except (OSError, KcapError):
            status = 2
        finally:
            os._exit(status)

    def _read(self, role: int, stalled: Mapping[str, Any]) -> None:
        """Be a reader."""
        task, sender = self._task, Sender(self._task.end, self._shared, role)
        reader: FileReader | MomentReader | MemoryReader
        if role == protocol.MOMENTS:
            hung = sum(1 for each in self._stuck.values() if each == role)
            reader = MomentReader(task, sender, careful=hung > CAREFUL_FROM)
        elif role == protocol.MEMORY:
            reader = MemoryReader(task, sender, stalled)
        else:
            reader = FileReader(task, role, sender, self._passed)
        reader.run()
        finish(sender, task.end, role)

    def _look(self, role: int, reader: _Watched, now_s: float) -> None:
        """Kill a reader that hangs."""
        progress = self._shared.progress(role)
        if progress.steps != reader.steps or progress.doing == IDLE:
            reader.steps, reader.moved_s = progress.steps, now_s
            return
        late_s = now_s - reader.moved_s
        if late_s < STALL_S or (late_s < BUSY_S and apart.runs(reader.pid)):
            return
        os.kill(reader.pid, signal.SIGKILL)
        del self._readers[role]
        self._stuck[reader.pid] = role
        work = self._shared.work(role)
        self._tell(role, progress.doing, work)
        self._again(role, work)

    def _tell(self, role: int, doing: int, work: dict[str, Any]) -> None:
        """Say what could not be read."""
        if work.get("kind") == "mark":
            self._passed.add(int(work["dev"]))
            kind, where = work.get("file_system"), str(work.get("path"))
            self._sender.lost(f"timeout: files of {kind} at {where} are not watched", kind="blind")
        elif doing == FETCHING or not work.get("kind"):
            what = "a file of a server" if role == protocol.REMOTE else "a file"
            self._sender.lost(f"timeout: {what} held back who opened it")
            if role == protocol.REMOTE:
                self._sender.send(protocol.pack(protocol.HELD, {"time_ns": time.time_ns()}))
        else:
            of = work.pop("of", None)
            length = int(work.get("length", 0) if of else work.get("size", 0))
            content_ = missing(length, "timeout")
            self._sender.send(protocol.pack(protocol.ARTIFACT, {**work, **content(content_)}))
            self._sender.lost(f"timeout: reading {work['kind']} of pid {work.get('pid')} hung")

    def _again(self, role: int, work: Mapping[str, Any]) -> None:
        if sum(1 for each in self._stuck.values() if each == role) > STUCK_MAX:
            what = protocol.ROLES[role]
            reason = f"{STUCK_MAX} readers of artifacts hang: nobody reads {what} any more"
            self._sender.lost(reason, kind="blind")
            self._sender.send(protocol.pack(protocol.DONE, {"role": role}))
            if role < len(self._task.groups):
                # What is told to nobody would fill the kernel's memory.
                marks.flush(self._task.groups[role])
            return
        self._start(role, work)
        self._say()

    def _reap(self) -> None:
        changed = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if not pid:
                break
            changed = True
            self._stuck.pop(pid, None)
            for role, reader in list(self._readers.items()):
                if reader.pid == pid:
                    del self._readers[role]
                    if status:
                        self._crashed(role)
        if changed:
            self._say()

    def _crashed(self, role: int) -> None:
        """A reader ended that should not have."""
        work = self._shared.work(role)
        self._sender.lost(f"a reader of artifacts ended at {work.get('kind', 'nothing')}")
        # Whoever kills readers as fast as they start gets no more than these.
        self._stuck[-len(self._stuck) - 1] = role
        self._again(role, work)

    def _say(self) -> None:
        alive = [reader.pid for reader in self._readers.values()]
        stuck = [pid for pid in self._stuck if pid > 0]
        self._shared.tell([*sorted(alive), *sorted(stuck)], len(stuck))
