"""The live source that sees most: our program in the kernel, and what it tells.

Two rings bring the records: one of what is rare and must not be lost (executions, connections,
credentials, modules …), one of what may come by the million (opens, reads, writes), so that no
flood of the second kind costs an event of the first. What a ring could not take was counted in
the kernel, by event and by process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from kcap.model.batch import EMPTY, Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.naming import argument
from kcap.model.side import Loss, Side
from kcap.model.stream import StreamInfo
from kcap.readers.live import host
from kcap.readers.live.baseline import Baseline, take
from kcap.readers.live.beats import Beats
from kcap.readers.live.bpf import events, hooks, losses
from kcap.readers.live.bpf.asked import Answers, Ask, Asked
from kcap.readers.live.bpf.columns import Columns, Texts
from kcap.readers.live.bpf.decode import Decoded, Decoder, layouts, syscalls
from kcap.readers.live.bpf.losses import Losses
from kcap.readers.live.bpf.order import Ordering, Records
from kcap.readers.live.bpf.program import HOT_BYTES, RARE_BYTES, KernelProgram, Setup
from kcap.readers.live.bpf.ring import Ring
from kcap.readers.live.cache import Cache
from kcap.readers.live.cgroups import Containers, column_of
from kcap.readers.live.guard.channel import GoneError
from kcap.readers.live.probe import Prober
from kcap.readers.live.procfs import ProcFS
from kcap.state.state import FDS

BATCH_BYTES: Final = 16 << 20
"""What is taken of a ring at once."""

BATCH_ROWS: Final = 1 << 15
"""Events of a batch at most."""

ACCOMPANIED_ROWS: Final = 1 << 13
"""The same where others listen beside us: what they do with a batch delays our signs of life."""

_SLACK_NS: Final = 2_000_000
"""How much later than its time an event may come to stand in its ring."""

_HOOKED: Final = "hooked_syscalls"
_NAMING: Final = ("pid", "process_name")
_RECENT: Final = 16
"""Batches in which the names of processes are looked for that are gone."""

_URING: Final = "io_uring_setup"
_URING_MAX: Final = 65_536
"""Processes of which it is remembered that they were told as blind spots."""

_OF_GROUP: Final = ("pid", "process_start_ns", "ppid")


class BpfRecorder:
    """Records this host with a program in the kernel; a `kcap.model.stream.LiveSource`.

    Args:
        interval_s: Longest time that events wait for their batch.
        setup: What to record; None for the default events of everybody.
        variables: Variables of the environment that are kept; None for all that come.
        details: What else is to be known of the recording: filter, case, operator, note.
        rare_bytes: Ring of rare events; a power of two.
        hot_bytes: Ring of frequent ones; a power of two.
        accompanied: Others listen beside it (`kcap.readers.live.accompanied`): they begin first,
            and get a batch, an empty one too, in each interval.

    Raises:
        PrivilegeError: This user may not load the program.
        KcapError: Not Linux, no types of this kernel, or it refuses the program.
    """

    name = "kcap-bpf"
    reads = "processes, files, sockets and security events of this host (Linux 5.8+, root)"
    rights = ("CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG")

    def __init__(
        self,
        *,
        interval_s: float = 0.25,
        setup: Setup | None = None,
        variables: Collection[str] | None = None,
        details: Mapping[str, Any] | None = None,
        rare_bytes: int = RARE_BYTES,
        hot_bytes: int = HOT_BYTES,
        accompanied: bool = False,
    ) -> None:
        self._accompanied = accompanied
        self._looked_ns = 0
        self._beside: tuple[int, ...] = ()
        self._interval_s = interval_s
        self._setup = setup or Setup(events.sets()["default"])
        self._stopping = False
        with contextlib.ExitStack() as stack:
            self._prober = Prober()
            stack.callback(self._prober.close)
            self._proc = ProcFS(prober=self._prober)
            self._program = KernelProgram(self._setup, rare_bytes=rare_bytes, hot_bytes=hot_bytes)
            stack.callback(self._program.close)
            self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, self._stop_read)
            stack.callback(os.close, self._stop_write)
            self._layouts = layouts(self._program.types)
            if not accompanied:
                self._program.attach_processes()
            self._containers = Containers(self._proc, controller=self._program.controller)
            stack.callback(self._containers.close)
            self._held = stack.pop_all()
        self._clocks = host.Clocks.measure()
        self._variables = variables
        self._details = {
            **(details or {}),
            "events": sorted(self._setup.events),
            "unavailable": list(self._program.unavailable),
            "refused": self._program.refused,
        }
        self._source = host.source(self.name, self._clocks)
        self._ordering = Ordering()
        self._ord = 0
        self._uring: Cache[int, None] = Cache(_URING_MAX)
        self._recent: deque[dict[str, Column]] = deque(maxlen=_RECENT)
        self._hooks: list[hooks.Hook] = []
        self._broken: list[str] = []
        symbols = hooks.symbols()
        if symbols is None:
            self._details["unavailable"] = [*self._program.unavailable, hooks.TABLE]
        self._answers = Answers(
            self._program, self._layouts.call, symbols, lambda: self._prober.pids
        )
        self._readers_changed = self._prober.changes
        self._asked = Asked(self.serve)
        self._baseline: Baseline | None = None

    @property
    def info(self) -> StreamInfo:
        """What is known before the first event."""
        return StreamInfo(self.name, self.name, (self._source,), live=True)

    def stop(self) -> None:
        """Ask for the end. Safe in a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):  # closed, or full of earlier calls: both will do
            os.write(self._stop_write, b"\0")

    def listen(self, descriptors: Sequence[int]) -> None:
        """Give a batch at once, too, where one of these can be read; before `batches`.

        Args:
            descriptors: Of those who listen beside it.
        """
        self._beside = tuple(descriptors)

    @property
    def program(self) -> KernelProgram:
        """The program in the kernel: who listens beside it shares its scope."""
        return self._program

    @property
    def setup(self) -> Setup:
        """What it was told."""
        return self._setup

    def close(self) -> None:
        """Take the program out of the kernel."""
        self._held.close()

    def prepare(self) -> None:
        """Look at the host as it is."""
        if self._accompanied:
            self._program.attach_processes()
        self._baseline = take(self._source, self._proc, recording=self._details)
        self._source = self._baseline.source

    def part(self, ask: Ask) -> None:
        """See `kcap.model.stream.LiveSource`."""
        self._asked = Asked(ask)
        self._program.let_go()

    def serve(self, name: str, argument: bytes) -> bytes:
        """See `kcap.model.stream.LiveSource`."""
        return self._answers.serve(name, argument)

    def own(self, pids: Sequence[int]) -> None:
        """See `kcap.model.stream.LiveSource`."""
        self._answers.own(pids)

    def batches(self) -> Iterator[Batch]:
        """Record until `stop`.

        Yields:
            The state of the host, then the events: a batch an interval, also when nothing
            happened, or more where a ring fills.
        """
        if self._baseline is None:
            self.prepare()
        baseline, self._baseline = self._baseline, None
        assert baseline is not None
        # Before the first batch: who sees that takes us for recording.
        self._asked.attach()
        yield Batch(0, {}, (*baseline.sides(), *self._blind_at_first(baseline)))
        decoder = Decoder(
            self._layouts, self._clocks, source=self._source.id, variables=self._variables
        )
        told = Losses(self._source.id, self._name_of)
        beats = Beats(self._source.id)
        self._looked_ns = time.time_ns()
        with select.epoll() as poll:
            # Edges only: a ring with any record counts as readable, and under load always has one.
            rings = (self._program.rare.fd, self._program.hot.fd)
            for fd in (*rings, *self._beside, self._stop_read):
                poll.register(fd, select.EPOLLIN | select.EPOLLET)
            with contextlib.suppress(GoneError):  # then the end comes anyway, and says so
                while not self._stopping:
                    self._wait(poll)
                    # What listens beside us may take its time with each batch.
                    for batch in self._drained(decoder):
                        yield batch
                        yield from self._beat(beats, decoder, told)
                    yield from self._beat(beats, decoder, told)
                    if self._accompanied:
                        yield EMPTY
        with contextlib.suppress(GoneError):  # with it, the program is out of the kernel
            self._asked.detach()
        for batch in self._drained(decoder, last=True):
            yield batch
            yield Batch(0, {}, tuple(beats.due(self._ord, dict)))
        yield Batch(0, {}, tuple(self._last_sides(decoder, told, self._looked_ns)))

    def _beat(self, beats: Beats, decoder: Decoder, told: Losses) -> Iterator[Batch]:
        """A sign of life where one is due, with what was lost since the last."""
        beat = beats.due(self._ord, self._counters)
        if beat:
            now_ns = time.time_ns()
            lost = self._lost(decoder, told, (self._looked_ns, now_ns))
            self._looked_ns = now_ns
            yield self._hooks_now(now_ns, (*lost, *beat))

    def _last_sides(self, decoder: Decoder, told: Losses, looked_ns: int) -> list[Side]:
        """What is to be said when nothing comes any more."""
        beats = Beats(self._source.id)
        try:
            lost = self._lost(decoder, told, (looked_ns, time.time_ns()))
            left_out = losses.filtered(self._asked.counts(), self._source.id)
            return [*lost, *left_out, *beats.due(self._ord, self._counters, last=True)]
        except GoneError as e:
            reason = f"{e.what}: nobody can say what was lost at last"
            return [Loss("lost", None, reason, self._source.id, start_ns=looked_ns)]

    def _blind_at_first(self, baseline: Baseline) -> list[Loss]:
        """What processes had open before, and do unseen."""
        fds = baseline.tables.get(FDS)
        names = None if fds is None else fds.get("name")
        pids = None if fds is None else fds.get("pid")
        if fds is None or names is None or pids is None:
            return []
        own = dict(zip(_rows_of(pids, fds.rows), pids.values.to_pylist(), strict=True))
        found = zip(_rows_of(names, fds.rows), names.values.to_pylist(), strict=True)
        users = sorted({own[row] for row, name in found if name and "io_uring" in name})
        return [self._blind(pid) for pid in users]

    def _blind(self, pid: int) -> Loss:
        self._uring.put(pid, None)
        who = self._name_of(pid) or "a process"
        reason = f"io_uring of {who}, pid {pid}: what it asks for there is not seen"
        return Loss("blind", None, reason, self._source.id)

    def _name_of(self, pid: int) -> str | None:
        """What a process was called when it was last seen, or is called now."""
        for columns in reversed(self._recent):
            pids, names = columns.get("pid"), columns.get("process_name")
            if pids is None or names is None or pids.rows is not None or names.rows is not None:
                continue
            rows = np.flatnonzero(np.asarray(pids.values) == pid)
            if len(rows):
                return str(names.values[int(rows[-1])].as_py())
        return self._proc.name(pid)

    def _wait(self, poll: select.epoll) -> None:
        """Until the interval is over, a ring fills, or the end is asked for."""
        with contextlib.suppress(InterruptedError):
            poll.poll(self._interval_s)

    def _drained(self, decoder: Decoder, *, last: bool = False) -> Iterator[Batch]:
        """Batches of what the rings hold, in order of time.

        What is younger than now may still be followed by something older out of the other ring,
        and waits for the next time; at the end nothing does.
        """
        more = True
        while more:
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            horizons = [] if last else [now_ns - _SLACK_NS]
            more = False
            for ring in (self._program.rare, self._program.hot):
                last_ns = self._taken(ring)
                if last_ns is not None and ring.waiting_bytes > (0 if last else BATCH_BYTES):
                    more = True
                    horizons.append(last_ns - _SLACK_NS)
            ready = self._ordering.until(min(horizons, default=None))
            most = ACCOMPANIED_ROWS if self._accompanied else BATCH_ROWS
            for start in range(0, len(ready.offsets), most):
                part = ready.offsets[start : start + most]
                yield self._batch(decoder, Records(ready.data, part))

    def _taken(self, ring: Ring) -> int | None:
        """Copy what a ring holds, and give it back at once; the time of the last record of it."""
        block = ring.take(BATCH_BYTES)
        offsets = np.asarray(block.offsets, np.int64)
        records = Records(np.frombuffer(block.data, np.uint8), offsets)
        self._ordering.add(records)
        last_ns = records._replace(offsets=offsets[-1:]).times_ns().tolist()
        del records
        block.data.release()
        ring.release()
        return last_ns[0] if last_ns else None

    def _batch(self, decoder: Decoder, records: Records) -> Batch:
        made = decoder.batch(records)
        columns = self._placed(dict(made.columns), made.rows)
        self._add_containers(columns, made.rows)
        self._recent.append({name: columns[name] for name in _NAMING if name in columns})
        return Batch(made.rows, columns, (*made.before, *self._blind_now(columns)))

    def _placed(self, columns: dict[str, Column], count: int) -> dict[str, Column]:
        """Events with their place in the recording."""
        source = self._source
        texts = {"origin": source.origin, "source": source.id, "host": source.host, "kind": "event"}
        for name, value in texts.items():
            if value is not None:
                columns[name] = constant(TypeClass.STR, value, count)
        ords = np.arange(self._ord, self._ord + count, dtype=np.int64)
        columns["ord"] = Decoded.numbers(ords)
        self._ord += count
        return columns

    def _add_containers(self, columns: dict[str, Column], count: int) -> None:
        """The containers of the events' control groups, each looked up once."""
        groups = columns.get("cgroup_id")
        if groups is None or groups.rows is not None:
            return
        batch = Batch(count, columns)
        fields = {name: batch.numpy(name, 0) for name in _OF_GROUP}
        ids, first, codes = np.unique(
            np.asarray(groups.values), return_index=True, return_inverse=True
        )
        found = self._containers.columns(
            ids,
            fields["pid"][first],
            started_ns=fields["process_start_ns"][first],
            ppids=fields["ppid"][first],
        )
        for name, values in found.items():
            column = column_of(values, codes)
            if column is not None:
                columns[name] = column

    def _blind_now(self, columns: Mapping[str, Column]) -> list[Loss]:
        """Processes that began to ask the kernel in a way that brings no events."""
        column = columns["event"]
        entries = column.values.dictionary.to_pylist()
        if _URING not in entries:
            return []
        rows = np.flatnonzero(column.codes() == entries.index(_URING))
        batch = Batch(len(column.codes()), dict(columns))
        pids, results = batch.numpy("pid", 0), batch.numpy("retval", 0)
        found = set(pids[rows][results[rows] >= 0].tolist())
        return [self._blind(pid) for pid in sorted(found) if pid not in self._uring]

    def _lost(self, decoder: Decoder, told: Losses, interval_ns: tuple[int, int]) -> list[Side]:
        """What was lost since the last time; before it, the clocks where they have moved."""
        clocks = host.Clocks.measure()
        sides: list[Side] = []
        if clocks.drifted(self._clocks):
            self._clocks = decoder.clocks = clocks
            self._source = replace(self._source, clocks=(*self._source.clocks, clocks.pair()))
            sides.append(self._source)
        asked = self._asked
        if self._prober.changes != self._readers_changed:
            self._readers_changed = self._prober.changes
            asked.own()
        missed = asked.passed_over()
        lost = told.look(asked.counts(), asked.victims, missed, interval_ns)
        late = self._proc.losses(self._source.id)
        return [*sides, *lost, *late, *self._attached_losses(interval_ns)]

    def _attached_losses(self, interval_ns: tuple[int, int]) -> list[Loss]:
        """Parts of the program that somebody has taken out of the kernel since the last time."""
        found = self._asked.broken()
        fresh = [part for part in found if part not in self._broken]
        self._broken = found
        reason = "of the recorder does not run any more: somebody detached it"
        return [
            Loss("blind", None, f"{part} {reason}", self._source.id, None, None, *interval_ns)
            for part in fresh
        ]

    def _counters(self) -> dict[str, Any]:
        """What a heartbeat says beside that we live."""
        counts = self._asked.counts()
        return {
            **{name: int(counts[name].sum()) for name in ("kept", "lost", "filtered")},
            "waiting_bytes": self._program.rare.waiting_bytes + self._program.hot.waiting_bytes,
            "attached": self._asked.attached(),
            "late": self._proc.late,
            "evicted": self._containers.evicted + self._uring.evicted,
        }

    def _hooks_now(self, now_ns: int, before: Sequence[Side]) -> Batch:
        """An event where system calls were redirected since the last look."""
        found = self._asked.hooks()
        if not found or found == self._hooks:
            self._hooks = found or []
            return Batch(0, {}, tuple(before))
        self._hooks = found
        columns = Columns(1)
        names = syscalls()[0]
        told = [
            {"SymbolName": names.get(h.number, str(h.number)), "ModuleOwner": h.owner or "hidden"}
            for h in found
        ]
        entries = pa.array([json.dumps(told).encode()], pa.binary())
        one = np.zeros(1, np.int64)
        columns.texts(argument(_HOOKED), Texts(one, one, entries), TypeClass.JSON)
        columns.numbers("ts", np.array([now_ns]))
        columns.words("event", [_HOOKED], one)
        made = columns.finish()
        return Batch(1, self._placed(made, 1), tuple(before))


def _rows_of(column: Column, count: int) -> list[int]:
    return list(range(count)) if column.rows is None else column.rows.tolist()
