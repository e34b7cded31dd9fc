"""What is read when the kernel's program says so: the file that a process runs, its memory."""

from __future__ import annotations

import errno
import json
import os
import select
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kcap.model.tracee_names import kernel_device
from kcap.readers.live.artifacts import files, memory, protocol, triggers
from kcap.readers.live.artifacts.agent import Task
from kcap.readers.live.artifacts.copying import Copied, Range
from kcap.readers.live.artifacts.keeping import Keeper, limit
from kcap.readers.live.artifacts.protocol import IDLE, MISSING, WORKING
from kcap.readers.live.artifacts.spool import Sender

_WAIT_MS: Final = 100
_TICK_NS: Final = 10_000_000
_REGION_BYTES: Final = 4096
_RINGFUL: Final = 1 << 16
_PROTECTIONS: Final = ((1, "r"), (2, "w"), (4, "x"))
_TURNS: Final = {triggers.EXEC: 1, triggers.MODULE_FILE: 2}
"""First what is only passed on: with a reader that hangs at a file, all it has in hand is lost. A
process that was executed may end soon, one that loads a module waits for that."""


def about_trigger(trigger: triggers.Trigger, kind: str) -> dict[str, Any]:
    """What a trigger says of an artifact.

    Args:
        trigger: The trigger.
        kind: Of the artifact.

    Returns:
        Plain JSON values.
    """
    return {
        "kind": kind,
        "pid": trigger.pid,
        "tid": trigger.tid,
        "nr": trigger.nr,
        "ts_boot_ns": trigger.ts_ns,
        "cgroup_id": trigger.cgroup_id,
        "process_name": trigger.process_name,
        "process_start_boot_ns": trigger.start_ns,
    }


class MomentReader:
    """Takes what the kernel's program tells, and reads what must be read at once.

    Args:
        task: See there.
        sender: Where artifacts go.
        careful: Of executed files open only those in memory: servers of others held readers back.
    """

    def __init__(self, task: Task, sender: Sender, *, careful: bool = False) -> None:
        assert task.ring is not None
        assert task.types is not None
        self._task = task
        self._ring = task.ring
        self._shared = task.shared
        self._sender = sender
        self._keeper = Keeper(task, protocol.MOMENTS, sender)
        self._decoder = triggers.Decoder(task.types)
        self._only = _memory_device() if careful else None
        if careful:
            reason = "files on file systems that are not watched yet: readers of them hang"
            sender.lost(reason, kind="blind")

    def run(self) -> None:
        """Until the recording ends and all is read.

        Raises:
            OSError: The worker is gone.
        """
        self._shared.count(protocol.MOMENTS, ready=1)
        poll = select.poll()
        poll.register(self._ring.fd, select.POLLIN)
        poll.register(self._task.finish, select.POLLIN)
        while True:
            happened = dict(poll.poll(_WAIT_MS))
            while self._ring.waiting_bytes and self._drained():
                pass
            self._sender.flush()
            if self._task.finish in happened:
                return

    def _drained(self) -> int:
        """Take what the ring holds; how many."""
        block = self._ring.take(_RINGFUL)
        found = list(self._decoder.decode(block))
        # Given back first: what stalls us must not come again.
        block.data.release()
        self._ring.release()
        found.sort(key=lambda each: _TURNS.get(each.kind, 0))
        own = self._shared.own
        for trigger in found:
            self._shared.count(protocol.MOMENTS, events=1)
            if trigger.pid not in own:
                self._one(trigger)
        self._shared.at(protocol.MOMENTS, IDLE)
        return len(found)

    def _one(self, trigger: triggers.Trigger) -> None:
        wanted = self._task.wanted
        match trigger.kind:
            case triggers.EXEC if trigger.unwatched and wanted.exec:
                self._executed(trigger)
            case triggers.MEMORY if wanted.mem:
                self._forward(trigger)
            case triggers.MODULE_FILE if wanted.module:
                self._module(trigger)
            case triggers.PROGRAM if wanted.bpf and trigger.name:
                # Its instructions come by themselves, and don't say what it is called.
                named = {"ts_ns": trigger.ts_ns, "tid": trigger.tid, "name": trigger.name}
                self._sender.send(protocol.pack(protocol.NAMED, named))
            case triggers.MOUNT:
                for told in self._task.mounted:
                    os.eventfd_write(told, 1)

    def _executed(self, trigger: triggers.Trigger) -> None:
        more = about_trigger(trigger, "exec")
        self._shared.at(protocol.MOMENTS, WORKING, more)
        dev = kernel_device(trigger.dev)
        if self._only not in (None, trigger.dev):
            self._keeper.unknown(trigger.pid, dev, trigger.inode, trigger.changed_ns)
            return
        try:
            file = os.open(f"/proc/{trigger.pid}/exe", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._keeper.unknown(trigger.pid, dev, trigger.inode, trigger.changed_ns)
            return
        try:
            about = os.fstat(file)
            if about.st_ino != trigger.inode:  # it has executed something else meanwhile
                self._keeper.unknown(trigger.pid, dev, trigger.inode, trigger.changed_ns)
                return
            self._keeper.executed(file, about, trigger.pid, more)
        except OSError:
            self._keeper.unknown(trigger.pid, dev, trigger.inode, trigger.changed_ns)
        finally:
            os.close(file)

    def _module(self, trigger: triggers.Trigger) -> None:
        """A module's file: by the descriptor, while the process has it; else by its path."""
        more = about_trigger(trigger, "module")
        self._shared.at(protocol.MOMENTS, WORKING, more)
        for file in self._candidates(trigger):
            try:
                about = os.fstat(file)
                if about.st_ino == trigger.inode and about.st_dev == trigger.dev:
                    path = trigger.path or files.path_of(file, about)
                    self._keeper.closed(file, about, "module", trigger.pid, path, more)
                    return
            finally:
                os.close(file)
        gone = "its file could not be had any more"
        self._sender.artifact(
            {**more, "time_ns": time.time_ns(), "dev": trigger.dev, "inode": trigger.inode}
            | ({} if trigger.path is None else {"path": trigger.path.decode("latin-1")}),
            missing(trigger.size, gone),
        )
        self._sender.lost(f"modules: {gone}")

    def _candidates(self, trigger: triggers.Trigger) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        places = [f"/proc/{trigger.pid}/fd/{trigger.fd}".encode()]
        if trigger.path is not None and trigger.path.startswith(b"/"):
            places += [b"/proc/%d/root%s" % (trigger.pid, trigger.path), trigger.path]
        for place, follow in zip(places, (0, os.O_NOFOLLOW, os.O_NOFOLLOW), strict=False):
            try:
                # What it is is looked at before it is opened: a FIFO would make us wait.
                found = os.open(place, _O_PATH | os.O_CLOEXEC | follow)
            except OSError:
                continue
            try:
                if not stat.S_ISREG(os.fstat(found).st_mode):
                    continue
                opened = os.open(f"/proc/self/fd/{found}", flags)
            except OSError:
                continue
            finally:
                os.close(found)
            yield opened

    def _forward(self, trigger: triggers.Trigger) -> None:
        told = about_trigger(trigger, "mem") | {
            "address": trigger.address,
            "length": trigger.length,
            "protection": _protection(trigger.protection),
            "former": _protection(trigger.former),
            "was_executable": bool(trigger.flags & triggers.WAS_CODE),
            "former_unknown": bool(trigger.flags & triggers.FORMER_UNKNOWN),
        }
        try:
            self._task.regions[0].send(json.dumps(told).encode())
        except BlockingIOError:
            self._sender.lost("memory that became code while too much waited")


_O_PATH: Final = 0o10000000


def _memory_device() -> int:
    """``st_dev`` of files that memfd_create(2) makes."""
    made = os.memfd_create("kcap", os.MFD_CLOEXEC)
    try:
        return os.fstat(made).st_dev
    finally:
        os.close(made)


def _protection(bits: int) -> str:
    return "".join(letter if bits & bit else "-" for bit, letter in _PROTECTIONS)


def missing(length: int, reason: str) -> Copied:
    """Content that is not there.

    Args:
        length: Bytes; 0 where that is not known.
        reason: Why.

    Returns:
        The content.
    """
    ranges = (Range(length, MISSING, reason),) if length else ()
    return Copied(None, 0, ranges, {}, None if length else reason, changed=False)


class MemoryReader:
    """Reads memory that became code, and all that such a process has.

    Args:
        task: See there.
        sender: Where artifacts go.
        stalled: What the one before hung at.
    """

    def __init__(self, task: Task, sender: Sender, stalled: Mapping[str, Any]) -> None:
        self._task = task
        self._shared = task.shared
        self._sender = sender
        self._stalled = stalled

    def run(self) -> None:
        """Until the recording ends and all is read.

        Raises:
            OSError: The worker is gone.
        """
        self._shared.count(protocol.MEMORY, ready=1)
        if self._task.wanted.maps and self._stalled.get("kind") == "mem":
            self._maps(self._stalled["of"], int(self._stalled["address"]) + 1)
            self._sender.flush()
        heard = self._task.regions[1]
        poll = select.poll()
        poll.register(heard, select.POLLIN)
        poll.register(self._task.finish, select.POLLIN)
        while True:
            happened = dict(poll.poll(_WAIT_MS))
            while self._next():
                self._sender.flush()
            self._sender.flush()
            if self._task.finish in happened and heard.fileno() not in happened:
                return

    def _next(self) -> bool:
        try:
            told = json.loads(self._task.regions[1].recv(_REGION_BYTES) or b"null")
        except BlockingIOError:
            return False
        if told is None:
            return False
        self._shared.count(protocol.MEMORY, events=1)
        if self._same(told):
            self._region(told, told["address"], told["length"], told)
            if self._task.wanted.maps:
                self._maps(told, 0)
        else:
            gone = missing(told["length"], memory.ENDED)
            self._sender.artifact({**told, "time_ns": time.time_ns()}, gone)
            self._sender.lost(f"memory that became code: {memory.ENDED}")
        self._shared.at(protocol.MEMORY, IDLE)
        return True

    def _same(self, told: Mapping[str, Any]) -> bool:
        """Whether the process is still the one that was told of."""
        ticks = memory.start_ticks(told["pid"])
        return ticks is not None and abs(ticks - told["process_start_boot_ns"] // _TICK_NS) <= 1

    def _region(
        self, told: Mapping[str, Any], address: int, length: int, more: Mapping[str, Any]
    ) -> None:
        about = {**told, **more, "address": address, "length": length, "time_ns": time.time_ns()}
        self._shared.at(protocol.MEMORY, WORKING, {**about, "of": dict(told)})
        most, reason = limit(self._task.wanted, self._shared, self._sender)
        try:
            copied = memory.copy(
                told["pid"],
                (address, length),
                most_bytes=most,
                hashes=self._task.wanted.hashes,
                step=lambda: self._shared.step(protocol.MEMORY),
                reason=reason,
            )
        except OSError as e:
            gone = e.errno in {errno.ENOENT, errno.ESRCH}
            why = memory.ENDED if gone else os.strerror(e.errno or 0)
            copied = missing(length, why)
        self._sender.artifact(about, copied)

    def _maps(self, told: Mapping[str, Any], after: int) -> None:
        """All that can be read, from an address on, but the region itself."""
        own = range(told["address"], told["address"] + told["length"])
        try:
            found = list(memory.regions(told["pid"]))
        except OSError:
            return  # it has ended: what became code was read before
        for region in found:
            if region.start < after or (region.start in own and region.end - 1 in own):
                continue
            name = {"name": region.name.decode("latin-1")} if region.name else {}
            more = {"protection": region.protection, "map": True, **name}
            self._region(told, region.start, region.end - region.start, more)
