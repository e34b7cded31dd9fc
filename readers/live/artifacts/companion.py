"""Beside a recorder: artifacts, each with the event that it belongs to.

The object is made in the process that has rights: marks, the kernel's programs, the readers and
their supervisor. Then the worker, which has none, takes finished artifacts out of a socket.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kcap.errors import KcapError
from kcap.model import text
from kcap.model.artifact import Parts
from kcap.model.batch import Batch
from kcap.model.side import Heartbeat, Side, SourceInfo
from kcap.model.tracee_names import kernel_device, user_device
from kcap.readers.live.artifacts import marks, protocol, supervisor
from kcap.readers.live.artifacts.agent import Task, mask_of
from kcap.readers.live.artifacts.companion_expected import Expected
from kcap.readers.live.artifacts.companion_hashes import Executions, Hashes
from kcap.readers.live.artifacts.companion_held import Held
from kcap.readers.live.artifacts.companion_kernel import Flow, answer
from kcap.readers.live.artifacts.companion_rows import EXECUTIONS, Rows, rows_of
from kcap.readers.live.artifacts.companion_sides import Pending, Sides
from kcap.readers.live.artifacts.protocol import Shared
from kcap.readers.live.artifacts.spool import Spooled, received
from kcap.readers.live.artifacts.wanted import Wanted
from kcap.readers.live.bpf.asked import Ask
from kcap.readers.live.guard.channel import GoneError

if TYPE_CHECKING:
    from kcap.readers.live.artifacts.kernel import ArtifactKernel
    from kcap.readers.live.bpf.loader import Map
    from kcap.readers.live.bpf.program import Setup

WAIT_S: Final = 0.1
"""For the hashes of a batch; what needs longer is held back, and others come in meanwhile."""

GIVE_S: Final = 0.3
"""For finding the events of artifacts between two batches."""

READY_S: Final = 5.0
"""For the marks of what is mounted, at the beginning."""

FINISH_S: Final = 15.0
"""For what was seen by the end."""

BEHIND_NS: Final = 200_000_000
"""What events that are in order may still be behind."""

_END_S: Final = 3.0
_SIDES_MAX: Final = 128
_TAKE_BYTES: Final = 64 << 20
_TAKE_COUNT: Final = 512
"""At once: what the recorder has to tell meanwhile does not wait for seconds."""

_MARKS_MAX: Final = 4096


class ArtifactsCompanion:
    """A `kcap.readers.live.accompanied.Companion` that keeps artifacts.

    To be made before any thread, as it forks.

    Args:
        wanted: What is to be kept.
        setup: The scope of the recorder, where there is one.
        shared: The maps of its program, where it records with BPF.
        left_out: Paths of files and folders of the recorder's: what it writes is no artifact.

    Raises:
        PrivilegeError: This user may not watch files, or load programs.
        KcapError: This kernel can't.
    """

    name = "artifacts"

    def __init__(
        self,
        wanted: Wanted,
        *,
        setup: Setup | None = None,
        shared: Mapping[str, Map] | None = None,
        left_out: Sequence[str] = (),
    ) -> None:
        self._wanted = wanted
        self._owner = os.getpid()
        self._kernel: ArtifactKernel | None = None
        self._shared = Shared()
        with contextlib.ExitStack() as stack:
            if wanted.kernel:
                self._kernel = _kernel(wanted, setup, shared)
                stack.callback(self._kernel.close)
            readers_only = stack.enter_context(contextlib.ExitStack())
            self._task = self._made(stack, readers_only, left_out)
            self._door, door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(self._door.close)
            self._shared.tell_own([self._owner])
            self._supervisor = os.fork()
            if not self._supervisor:
                supervisor.run(door, self._task)
            door.close()
            # A group that nobody else holds ends with its readers.
            readers_only.close()
            self._held = stack.pop_all()
        self.rights: Collection[str] = ("CAP_BPF", "CAP_PERFMON") if self._kernel else ()
        self._ask: Ask = self.serve
        self._flow: Flow | None = None
        self._watched_ns = 0
        self._round_ns = 0
        self._held_back = Held(self._known)
        self._changes = self._shared.changes
        self._expected = Expected(wanted)
        self._rows = Rows(reads=wanted.read is not None, expected=self._expected)
        self._hashes = Hashes()
        self._sides = Sides(wanted, self._shared, self._rows, scoped=_scoped(setup))
        self._sides.awaited = self._held_back.holds
        self._marked: set[int] = set()
        self._untold: dict[int, bool] = {}
        """Whether these devices are watched; the kernel is not told yet."""
        self._done: set[int] = set()
        self._gone = False
        """Nobody reads artifacts any more."""
        self._closed = False

    def _made(
        self,
        stack: contextlib.ExitStack,
        readers_only: contextlib.ExitStack,
        left_out: Sequence[str],
    ) -> Task:
        """What readers work with."""
        groups = [marks.group() for _ in range(2 if mask_of(self._wanted) else 0)]
        mounted = (os.eventfd(0, _EVENT_FLAGS), os.eventfd(0, _EVENT_FLAGS))
        finished, self._finish = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for descriptor in (*groups, *mounted, finished):
            readers_only.callback(os.close, descriptor)
        stack.callback(os.close, self._finish)
        self._end, theirs = protocol.pair()
        stack.callback(self._end.close)
        told, heard = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (theirs, told, heard):
            readers_only.callback(each.close)
            each.setblocking(False)
        ring, types = (None, None) if self._kernel is None else _told(self._kernel)
        return Task(
            wanted=self._wanted,
            shared=self._shared,
            end=theirs,
            groups=tuple(groups),
            finish=finished,
            mounted=mounted,
            regions=(told, heard),
            ring=ring,
            types=types,
            left_out=tuple(os.path.realpath(path) for path in left_out),
        )

    @property
    def pids(self) -> Collection[int]:
        """The supervisor and the readers, stuck ones last."""
        return (self._supervisor, *self._shared.pids)

    @property
    def wakes(self) -> Sequence[int]:
        """See `Companion`: readers hold up to 256 MiB for us."""
        return ()

    def prepare(self) -> None:
        """Wait until what is mounted is marked; begin to look in the kernel."""
        if self._kernel is not None:
            self._kernel.attach()
        roles = [protocol.LOCAL] if mask_of(self._wanted) else []
        until_s = time.monotonic() + READY_S
        while not (self._shared.changes and all(self._shared.progress(r).ready for r in roles)):
            if time.monotonic() > until_s:
                self._sides.lost("not all file systems were watched at the beginning", kind="blind")
                break
            time.sleep(0.002)
        self._watched_ns = time.time_ns()
        self._changes = self._shared.changes

    def part(self, ask: Ask) -> None:
        """See `Companion`."""
        self._ask = ask
        if self._kernel is not None:
            self._kernel.let_go()

    def serve(self, name: str, argument: bytes) -> bytes:
        """See `Companion`.

        Raises:
            KcapError: There is no such question, or the kernel refused.
        """
        if self._kernel is None:
            raise KcapError(f"there is no answer to {name!r} about artifacts")
        return answer(self._kernel, name, argument)

    def own(self, pids: Sequence[int]) -> None:
        """See `Companion`."""
        # There is room for some: those who only hang, which stand last, may be too many.
        everybody = list(dict.fromkeys([*pids, *self.pids]))
        self._shared.tell_own(everybody)
        if self._kernel is not None:
            self._kernel.own(everybody)

    def begin(self) -> None:
        """See `Companion`."""
        if self._kernel is not None:
            self._flow = Flow(self._kernel, self._wanted, self._ask)
        self._drain()
        self._mark()

    def follow(self, batch: Batch) -> Iterator[Batch]:
        """See `Companion`."""
        for side in batch.before:
            if isinstance(side, SourceInfo):
                self._sides.source = side.id
        batch = self._without_readers(batch)
        if self._held_back:
            # Who waits is alive.
            beats = tuple(side for side in batch.before if isinstance(side, Heartbeat))
            yield Batch(0, {}, beats)
            batch = batch.with_before([s for s in batch.before if not isinstance(s, Heartbeat)])
        if batch.rows or batch.before or not self._held_back:
            executed = rows_of(batch, EXECUTIONS) if self._wanted.exec else np.zeros(0, np.intp)
            self._held_back.add(batch, Executions(batch, executed) if len(executed) else None)
        self._drain()
        self._mark()
        self._await()
        yield from self._released(last=False)
        if self._flow is not None:
            for finished in self._flow.finished():
                self._sides.stream(finished)
            self._count(last=False)
        until_s = time.monotonic() + GIVE_S
        yield from self._given(last=False)
        while time.monotonic() < until_s and self._drain():
            yield from self._given(last=False)

    def forget(self) -> None:
        """Give again what was given before, where it comes again: another file begins."""
        self._shared.begin_era()
        self._sides.forget()

    def end(self) -> Iterator[Batch]:
        """See `Companion`."""
        with contextlib.suppress(BrokenPipeError):  # nobody is there any more
            os.write(self._finish, b"\0")
        until_s = time.monotonic() + FINISH_S
        needed = self._needed()
        while not (needed <= self._done or self._gone) and time.monotonic() < until_s:
            select.select((self._end,), (), (), 0.05)
            self._drain()
            yield from self._released(last=False)
            yield from self._given(last=False)
        yield from self._released(last=True)
        for role in sorted(needed - self._done):
            reason = f"{protocol.ROLES[role]} files: nobody said that all were read"
            self._sides.lost(reason, None)
        self._drain()
        if self._flow is not None:
            with contextlib.suppress(GoneError):
                for finished in self._flow.rest():
                    self._sides.stream(finished)
                self._count(last=True)
        yield from self._given(last=True)

    def _count(self, *, last: bool) -> None:
        assert self._flow is not None
        for reason, count in self._flow.lost(last=last):
            self._sides.lost(reason, count)

    def close(self) -> None:
        """See `Companion`."""
        if self._closed:
            return
        self._closed = True
        if self._supervisor and os.getpid() == self._owner:
            with contextlib.suppress(OSError):
                self._door.shutdown(socket.SHUT_RDWR)
            _ended(self._supervisor)
        self._held.close()

    def _needed(self) -> set[int]:
        """The readers that say when they are done."""
        needed = {protocol.LOCAL, protocol.REMOTE} if mask_of(self._wanted) else set()
        if self._kernel is not None:
            needed |= {protocol.MOMENTS, *([protocol.MEMORY] if self._wanted.mem else [])}
        return needed

    def _without_readers(self, batch: Batch) -> Batch:
        """The batch without what readers did that were started since the kernel was told."""
        if self._shared.changes == self._changes or not batch.rows:
            return batch
        others = ~np.isin(batch.numpy("pid", 0), sorted(self.pids))
        if others.all():
            return batch
        return batch.take(np.flatnonzero(others).astype(np.int32))

    def _drain(self) -> bool:
        """Take what readers have sent; whether there may be more."""
        if self._sides.crowded:
            return False
        taken = count = 0
        for message, memory in received(self._end):
            kind = message[:1]
            if kind == protocol.HASHES:
                notes = protocol.unpack_hashes(message)
                self._hashes.add(notes, self._marked)
                for note in notes:
                    self._expected.came(note.dev, note.inode, time.time_ns())
            elif kind == protocol.ARTIFACT:
                about = protocol.unpack(message)
                if "inode" in about:
                    dev = kernel_device(about["dev"])
                    file = dev, about["inode"]
                    self._expected.came(*file, about.get("time_ns", 0))
                    if about["kind"] in {"write", "read"} and "path" in about:
                        path = text.clean(about["path"].encode("latin-1"))[0]
                        self._expected.unwatched.came(*file, path, about.get("time_ns", 0))
                content = Spooled(memory, about.pop("ranges"), about.pop("reasons"), self._shared)
                taken += content.nbytes
                count += 1
                self._sides.add(Pending(about, content))
                if taken > _TAKE_BYTES or count >= _TAKE_COUNT:
                    return True
            elif kind == protocol.MARKED:
                self._watch(protocol.unpack(message))
            elif kind == protocol.GONE:
                gone = protocol.unpack(message)
                dev = int(gone["dev"])
                self._again(dev, self._expected.unwatched.gone(dev, int(gone["after_ns"])))
                if dev in self._marked:
                    self._marked.remove(dev)
                    self._untold[dev] = False
            elif kind == protocol.HELD:
                held = self._expected.held(int(protocol.unpack(message)["time_ns"]))
                if held is not None:
                    self._sides.add(Pending(held, Parts(())))
            elif kind == protocol.LOST:
                told = protocol.unpack(message)
                self._sides.lost(
                    str(told["reason"]), int(told["count"]), str(told["kind"]), told["time_ns"]
                )
            elif kind == protocol.NAMED:
                told = protocol.unpack(message)
                self._sides.named(int(told["ts_ns"]), int(told["tid"]), str(told["name"]))
            elif kind == protocol.DONE:
                self._done.add(int(protocol.unpack(message)["role"]))
        if not self._gone and _hung_up(self._end):
            self._gone = True
            reason = "artifacts: the processes that read them are gone"
            self._sides.lost(reason, kind="blind")
        return False

    def _watch(self, marked: dict[str, Any]) -> None:
        """A file system is watched."""
        dev = int(marked["dev"])
        unwatched = self._expected.unwatched
        self._again(dev, unwatched.watch(dev, marked["time_ns"], marked.get("after_ns")))
        if marked["role"] is not None:
            self._marked.add(dev)
            self._untold[dev] = True
        if marked["role"] == protocol.REMOTE:
            self._expected.watch(dev)

    def _again(self, dev: int, after_ns: int | None) -> None:
        """Look again at what was opened there: it may be another file system than it seemed."""
        if after_ns is not None:
            for batch, rows in self._rows.any_opens.after(after_ns, dev):
                self._expected.unwatched_too(batch, rows)

    def _mark(self) -> None:
        """Tell the kernel's program what is watched now, and what is not any more."""
        untold, self._untold = self._untold, {}
        if self._flow is None:
            return
        for tell, now in ((self._flow.unmark, False), (self._flow.mark, True)):
            devices = [user_device(dev) for dev, watched in untold.items() if watched is now]
            if devices:
                tell(np.array(devices[:_MARKS_MAX], np.int64))

    def _await(self) -> None:
        """Wait a little for hashes that should come at once."""
        until_s = time.monotonic() + WAIT_S
        while len(self._held_back) == 1 and not self._held_back.ready:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or self._sides.crowded:
                break
            select.select((self._end,), (), (), left_s)
            self._drain()

    def _known(self, found: Executions) -> bool:
        """Whether all hashes are known that come."""
        if not found.look(self._hashes, self._watched_ns) or self._gone:
            return True
        return self._kernel is None and self._marked.isdisjoint(found.devices)

    def _released(self, *, last: bool) -> Iterator[Batch]:
        """Batches that wait for no hashes any more."""
        while self._held_back and (last or self._held_back.ready):
            batch, found, came_ns, _ = self._held_back.pop()
            if batch.rows:
                self._sides.heard_ns = int(batch.numpy("ts", 0).max())
            elif not batch.before:
                # The recorder has come round: what was before the last time has come with this.
                self._sides.heard_ns, self._round_ns = self._round_ns, came_ns - BEHIND_NS
            self._rows.add(batch)
            if found is not None:
                batch = self._hashed(batch, found)
                # Filters ask for what was executed at the execution, as they will in a replay.
                batch = batch.with_before((*batch.before, *self._sides.executed(found)))
            yield batch

    def _hashed(self, batch: Batch, found: Executions) -> Batch:
        """A batch with its hashes; those that did not come are counted."""
        found.look(self._hashes, self._watched_ns)
        lost = found.lost(batch, self._sides.source, self._watched_ns)
        return found.told(batch).with_before((*batch.before, *lost))

    def _given(self, *, last: bool) -> Iterator[Batch]:
        """Artifacts whose event is known, or does not come any more; and what was lost."""
        missed = self._expected.unwatched.missed(last=last)
        if missed:
            reason = "files that were written or read before their file system was watched"
            self._sides.lost(reason, missed)
        sides: list[Side] = []
        for side in self._sides.ready(last=last, most_s=math.inf if last else GIVE_S):
            sides.append(side)
            if len(sides) >= _SIDES_MAX:
                yield Batch(0, {}, tuple(sides))
                sides = []
        if sides:
            yield Batch(0, {}, tuple(sides))


_EVENT_FLAGS: Final = getattr(os, "EFD_CLOEXEC", 0) | getattr(os, "EFD_NONBLOCK", 0)


def _kernel(
    wanted: Wanted, setup: Setup | None, shared: Mapping[str, Map] | None
) -> ArtifactKernel:
    from kcap.readers.live.artifacts.kernel import ArtifactKernel

    return ArtifactKernel(wanted, setup=setup, shared=shared)


def _scoped(setup: Setup | None) -> bool:
    """Whether the recorder leaves processes out."""
    return setup is not None and bool(setup.constants.get("scoped"))


def _told(kernel: ArtifactKernel) -> tuple[Any, Any]:
    return kernel.triggers, kernel.types


def _hung_up(end: socket.socket) -> bool:
    """Whether all who could send are gone."""
    poll = select.poll()
    poll.register(end, 0)
    return any(told & select.POLLHUP for _, told in poll.poll(0))


def _ended(pid: int) -> None:
    """Wait for the supervisor; it ends when its door is closed."""
    until_s = time.monotonic() + _END_S
    while time.monotonic() < until_s:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
                continue
        return
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
