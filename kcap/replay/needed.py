"""Which processes a selection of events refers to, and who they were then.

A copy of some of the events has to say who did them and who had started those, and of nobody
else. So the whole stream is followed once beforehand, and each process that an event of the
selection names is noted as it was just before that event, with its ancestors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap import limits
from kcap.model import catalogue
from kcap.model.batch import Batch, Column
from kcap.model.classes import I64_MIN, TypeClass
from kcap.model.naming import argument, column_name
from kcap.model.side import Snapshot
from kcap.state import State, processes
from kcap.state.processes import Process
from kcap.state.state import PROCESSES

Int64s = npt.NDArray[np.int64]

ROW: Final = "\0row"
"""A column that no capture has: the row's number before the stages (`Numbered`)."""

DEPTH_MAX: Final = 1000
"""Ancestors of one process; more are a ring, which only a forged state has."""

SNAPSHOTS_MAX: Final = 100
"""Snapshots beside the first one, each for a process id that came again."""

BYTES_MAX: Final = limits.STATE_BYTES // 2
"""What the processes may take: a STATE record holds no more than twice that."""

_FORGET: Final = 4 * processes.ENTRIES_MAX
"""Entries of `Needed._known` after which those that the state has forgotten go."""

_ARGUMENTS: Final = ("child_pid", "dpid", "parent_pid", "pid", "target_host_pid", "target_pid")
"""Arguments of process events that name a process as its host sees it."""


def numbered(batch: Batch) -> Batch:
    """A batch whose rows know their number, whatever a stage leaves out.

    Args:
        batch: The batch.

    Returns:
        The same with a column `ROW`.
    """
    return batch.adding({ROW: Column(TypeClass.I64, pa.array(np.arange(batch.rows)))})


class _Slot(NamedTuple):
    """What a process is known by at one time."""

    machine: str
    pid: int


class _Reference(NamedTuple):
    """An event that refers to a process."""

    position: int
    """The event's number among those selected."""
    row: int
    slot: _Slot
    process: Process
    """As it was before the event; where `told`, after it."""
    told: bool
    """The event itself brings the process up."""
    ended: bool
    """A process with that id ended in the batch before the event."""


class Needed:
    """Gathers the processes that events refer to: a stage before those that select, and a sink.

    Each process is noted as it was just before the first event that refers to it, or as soon as
    it was known; one that a selected event itself brings up is not, since that event is in the
    copy. All of them stand in one snapshot, for the start of the copy. Where a process id comes
    again as another process, there is a further snapshot before the first event that refers to
    that one.

    Example:
        >>> needed = Needed()
        >>> stages = [needed, TimeRange(start_ns, None)]  # doctest: +SKIP
        >>> Pipeline(source, [needed], state=needed.state, stages=stages).run()  # doctest: +SKIP
        >>> [position for position, _ in needed.snapshots()]
        []
    """

    def __init__(self) -> None:
        self.state = State(watch=self._watch)
        """To be given to the pipeline."""
        self._fresh: list[tuple[_Slot, int, Process]] = []
        self._changes: dict[_Slot, list[tuple[int, Process]]] = {}
        """What the batch changed, by row."""
        self._known: dict[_Slot, Process] = {}
        """The processes before the batch."""
        self._held: dict[_Slot, Process] = {}
        """The processes that the copy's own state has at this place."""
        self._noted: list[tuple[int, dict[_Slot, Process]]] = [(0, {})]
        self._refused: set[_Slot] = set()
        self._bytes = 0
        self._count = 0

    @property
    def left_out(self) -> int:
        """Processes that found no room."""
        return len(self._refused)

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        for slot, changes in self._changes.items():
            self._known[slot] = changes[-1][1]
            if any(process.exited for _, process in changes):
                self._end(slot)
        self._changes = {}
        for slot, row, process in self._fresh:
            self._changes.setdefault(slot, []).append((row, process))
        self._fresh = []
        if len(self._known) > _FORGET:
            self._known = {s: p for s, p in self._known.items() if self.state.process(s.pid, s[0])}
        return numbered(batch)

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        for reference in sorted(self._references(batch), key=lambda r: r[:3]):
            if reference.ended:
                self._end(reference.slot)
            if reference.told:
                self._held[reference.slot] = reference.process
            else:
                self._need(reference)
        self._count += batch.rows

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""

    def snapshots(self) -> Iterator[tuple[int, Snapshot]]:
        """The snapshots.

        Yields:
            How many of the selected events stand before it, and the snapshot; none where no
            process is needed.
        """
        table: dict[_Slot, Process] = {}
        for position, found in self._noted:
            table |= found
            of: dict[str, list[Process]] = {}
            for slot, process in table.items():
                of.setdefault(slot.machine, []).append(process)
            if of:
                yield position, Snapshot({PROCESSES: processes.to_batch(of.items())})

    def _watch(self, machine: str, row: int, process: Process) -> None:
        self._fresh.append((_Slot(machine, process.pid), row, process))

    def _end(self, slot: _Slot) -> None:
        """What has an id after a process that ended is another one, also without a key."""
        held = self._held.get(slot)
        if held is not None:
            self._held[slot] = held._replace(exited=True)

    def _references(self, batch: Batch) -> Iterator[_Reference]:
        """Whom the rows mean: one row for each process and version of it."""
        if not batch.rows:
            return
        machines, of_row = self.state.machines_of(batch)
        rows = batch.numpy(ROW, 0)
        named = [(at, pids) for at, pids in _named(batch) if len(at)]
        if not named:
            return
        at = np.concatenate([places for places, _ in named])
        pids = np.concatenate([numbers for _, numbers in named])
        order = np.lexsort((at, pids, of_row[at]))
        at, pids = at[order], pids[order]
        new = np.flatnonzero((np.diff(pids) != 0) | (np.diff(of_row[at]) != 0)) + 1
        starts = np.concatenate([[0], new])
        heads = zip(
            starts.tolist(),
            [*new.tolist(), len(at)],
            of_row[at[starts]].tolist(),
            pids[starts].tolist(),
            strict=True,
        )
        # A turn for each process that the batch names, not for each row: 0.4 us where it is
        # neither known nor changed.
        for start, stop, machine, pid in heads:
            slot = _Slot(machines[machine], pid)
            if slot in self._changes:
                yield from self._versions(slot, at[start:stop], rows)
            elif (process := self._known.get(slot)) is not None:
                place = int(at[start])
                where = (self._count + place, int(rows[place]), slot)
                yield _Reference(*where, process, told=False, ended=False)

    def _versions(self, slot: _Slot, places: Int64s, rows: Int64s) -> Iterator[_Reference]:
        """The versions of one process that some rows mean."""
        changes = self._changes[slot]
        own = dict(changes)
        at = [row for row, _ in changes]
        left, right = (np.searchsorted(at, rows[places], side) for side in ("left", "right"))
        # Rows that change the process stand alone between those before and after.
        for _, first in zip(*np.unique(left + right, return_index=True), strict=True):
            place, version = int(places[first]), int(left[first])
            row = int(rows[place])
            before = changes[version - 1][1] if version else self._known.get(slot)
            ended = any(process.exited for _, process in changes[:version])
            where = (self._count + place, row, slot)
            after = own.get(row)
            if after is not None and (before is None or not _same(before, after)):
                yield _Reference(*where, after, told=True, ended=ended)
            elif before is not None:
                yield _Reference(*where, before, told=False, ended=ended)

    def _need(self, reference: _Reference) -> None:
        """Note a process and its ancestors."""
        position, row, slot, process, *_ = reference
        for _ in range(DEPTH_MAX):
            held = self._held.get(slot)
            if held is not None and _same(held, process):
                return
            self._note(position, slot, process, again=held is not None)
            if process.ppid is None:
                return
            slot = _Slot(slot.machine, process.ppid)
            parent = self._at(slot, row)
            wanted = process.parent_key
            if parent is None or (wanted and parent.process_key not in {None, wanted}):
                return
            process = parent

    def _at(self, slot: _Slot, row: int) -> Process | None:
        """A process as it was before a row."""
        found = self._known.get(slot)
        for at, process in self._changes.get(slot, ()):
            if at >= row:
                break
            found = process
        return found

    def _note(self, position: int, slot: _Slot, process: Process, *, again: bool) -> None:
        size = processes.size(process)
        full = self._bytes + size > BYTES_MAX or len(self._noted) > SNAPSHOTS_MAX
        if full and (again or self._bytes + size > BYTES_MAX):
            self._refused.add(slot)
            return
        if again and self._noted[-1][0] != position:
            self._noted.append((position, {}))
        self._bytes += size
        self._held[slot] = process
        self._noted[-1][1][slot] = process


def _named(batch: Batch) -> Iterator[tuple[Int64s, Int64s]]:
    """The rows that name a process, and the ids they name."""
    for name in ("pid", "ppid"):
        yield _ids(batch, name)
    category = batch.get("category")
    if category is None or category.cls is not TypeClass.STR:
        return
    texts = category.values.dictionary.to_pylist()
    of_processes = np.array([text == "process" for text in texts], np.bool_)[category.codes()]
    chosen = np.zeros(batch.rows, np.bool_)
    chosen[slice(None) if category.rows is None else category.rows] = of_processes
    for name in _ARGUMENTS:
        base = argument(name)
        at, ids = _ids(batch, column_name(base, TypeClass.I64, catalogue.home(base)))
        yield at[chosen[at]], ids[chosen[at]]


def _ids(batch: Batch, name: str) -> tuple[Int64s, Int64s]:
    column = batch.get(name)
    if column is None or column.cls is not TypeClass.I64:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    ids = batch.numpy(name, I64_MIN)
    at = np.flatnonzero(batch.mask(name))
    return at, ids[at]


def _same(a: Process, b: Process) -> bool:
    """Whether two versions with one id are of one process."""
    if a.process_key and b.process_key:
        return a.process_key == b.process_key
    if a.start_ns is not None and b.start_ns is not None:
        return abs(a.start_ns - b.start_ns) < processes.SAME_START_NS
    return b.exited or not a.exited
