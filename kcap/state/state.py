"""The state of the machines that a stream comes from: one way in, one way out and back.

`State.update` is the only place where events change the state, `State.snapshot` and
`State.restore` the only ways to take it out and put it back. Nothing here reads a clock, a random
number or anything of the host it runs on: the same batches give the same state everywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from heapq import merge
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap.errors import DamagedError
from kcap.model import catalogue
from kcap.model.batch import EMPTY, Batch, Rows
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.state import calls, fds, follow, handles, identity, named, processes, threads, users
from kcap.state.calls import CallRows
from kcap.state.fds import Descriptor, FdTable, Target
from kcap.state.handles import HandleTable
from kcap.state.processes import Process, ProcessTable
from kcap.state.tables import Tables
from kcap.state.threads import Thread, ThreadTable

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

PROCESSES: Final = "processes"
"""Name of the process table in a snapshot."""

HANDLES: Final = "handles"
"""Name of the handle table in a snapshot."""

THREADS: Final = "threads"
"""Name of the thread table in a snapshot."""

FDS: Final = "fds"
"""Name of the descriptor table in a snapshot."""

USERS: Final = "users"
"""Name of the user table in a snapshot."""

FOLLOWED: Final = frozenset({PROCESSES, HANDLES, THREADS, FDS, USERS})
"""The tables of a snapshot that events change; others describe the host and pass through."""

Watch = Callable[[str, int, Process], None]
"""Is told a machine, the row of the batch that said it (-1 for a snapshot), and the process."""

Look = Callable[[Batch, Sequence[identity.Machine]], Batch]
"""Is given a batch and its machines while their tables hold what it changed; gives the batch."""


class State:
    """What is known of every machine after the last event that was followed.

    Args:
        entries_max: Processes to keep of one machine.
        bytes_max: Bytes that the processes of one machine may take.
        watch: Called for every process that becomes known or another, when a batch was followed.

    Example:
        >>> state = State()
        >>> state.update(Batch(0, {})).rows
        0
    """

    def __init__(
        self,
        *,
        entries_max: int = processes.ENTRIES_MAX,
        bytes_max: int = processes.BYTES_MAX,
        watch: Watch | None = None,
    ) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._watch = watch
        self._machines: dict[str, str] = {}
        self._families: dict[str, str] = {}
        self._tables: dict[str, Tables] = {}
        self._handles: dict[str, HandleTable] = {}

    @staticmethod
    def machine(info: SourceInfo) -> str:
        """What tells machines apart, and is hashed into a `process_key`.

        Args:
            info: A source.

        Returns:
            Its boot id; the host's name where that is not known; else the source's own id, so
            that two unknown machines are not taken for one.
        """
        return info.boot_id or info.host or info.id

    def update(self, batch: Batch, *, resolve: bool = False, look: Look | None = None) -> Batch:
        """Follow the events of a batch, in stream order.

        Side records come first: a source tells its machine, a snapshot replaces what is known of
        the machines in it.

        Args:
            batch: The next events of the stream.
            resolve: Fill identity columns that the source left empty, when recording and
                importing; a replay shows what was recorded.
            look: Called with the batch, once it has been followed, where it has rows.

        Returns:
            The batch, with more identity columns and their ``provenance`` where asked for, then
            as ``look`` gives it; a snapshot that makes no sense is a `Loss` in it, and changes
            nothing.
        """
        batch = self._take_sides(batch)
        if not batch.rows:
            return batch
        families, of_family = self._codes(batch, self._families, "")
        by_calls = np.array([bool(catalogue.calls(family)) for family in families])[of_family]
        self._follow_handles(batch, by_calls)
        machines, of_row = self.machines_of(batch)
        tables = [self._tables_of(machine) for machine in machines]
        found = calls.find(batch, families, of_family)
        rest = _others(batch, follow.ACTIONS, by_calls)
        if not resolve and look is None:
            self._follow(tables, of_row, batch, found, rest)
            return batch
        used = [(mine, np.flatnonzero(of_row == code)) for code, mine in enumerate(tables)]
        for mine, _ in used:
            mine.collect()
        self._follow(tables, of_row, batch, found, rest)
        seen = [identity.Machine(mine.processes, rows) for mine, rows in used if len(rows)]
        if resolve:
            if any(len(mine.threads) for mine, _ in used):
                batch = named.resolve(batch, [named.Machine(*each) for each in used], found)
            batch = identity.resolve(batch, seen)
        if look is not None:
            batch = look(batch, seen)
        for mine, _ in used:
            mine.forget()
        return batch

    def _take_sides(self, batch: Batch) -> Batch:
        """Take in sources and snapshots."""
        before: list[Side] = []
        for side in batch.before:
            kept: Side = side
            if isinstance(side, SourceInfo):
                self._machines[side.id] = self.machine(side)
                self._families[side.id] = side.collector
            elif isinstance(side, Snapshot):
                try:
                    self._replace(side)
                except DamagedError as e:
                    kept = Loss("damaged", 0, f"a state that can't be read: {e}")
            before.append(kept)
        return batch if before == list(batch.before) else batch.with_before(before)

    def process(self, pid: int, machine: str | None = None) -> Process | None:
        """A process as the stream has it now.

        Args:
            pid: Its id.
            machine: Its machine; may be left out where there is only one.

        Returns:
            The process, or the one that had the id last, None where it is not known.
        """
        tables = self._known(machine)
        return None if tables is None else tables.processes.get(pid)

    def thread(self, tid: int, machine: str | None = None) -> Thread | None:
        """A thread as the stream has it now.

        Args:
            tid: Its id.
            machine: Its machine; may be left out where there is only one.

        Returns:
            The thread, or the one that had the id last, None where it is not known.
        """
        tables = self._known(machine)
        return None if tables is None else tables.threads.get(tid)

    def descriptor(self, pid: int, fd: int, machine: str | None = None) -> Target | None:
        """What a descriptor of a process stands for as the stream has it now.

        Args:
            pid: The process.
            fd: The descriptor's number.
            machine: Their machine; may be left out where there is only one.

        Returns:
            The file, socket, pipe …, None where it is not known.
        """
        tables = self._known(machine)
        return None if tables is None else tables.fds.get(pid, fd)

    def descriptors(self, pid: int, machine: str | None = None) -> list[Descriptor]:
        """The descriptors of a process as the stream has them now.

        Args:
            pid: The process.
            machine: Its machine; may be left out where there is only one.

        Returns:
            Those that are known, in order of their numbers.
        """
        tables = self._known(machine)
        return [] if tables is None else tables.fds.of_process(pid)

    def running(self, machine: str | None = None) -> list[Process]:
        """The processes of a machine that have not ended, as the stream has them now.

        Args:
            machine: The machine; may be left out where there is only one.

        Returns:
            Those that are known, in order of process id.
        """
        tables = self._known(machine)
        return [] if tables is None else [p for p in tables.processes.rows() if not p.exited]

    def _known(self, machine: str | None) -> Tables | None:
        if machine is None and len(self._tables) == 1:
            machine = next(iter(self._tables))
        return self._tables.get(machine or "")

    def handles(self, machine: str | None = None) -> HandleTable | None:
        """The handles of a machine as the stream has them now.

        Args:
            machine: The machine; may be left out where there is only one.

        Returns:
            Its table; not to be changed. None where no handle is known.
        """
        if machine is None and len(self._handles) == 1:
            machine = next(iter(self._handles))
        return self._handles.get(machine or "")

    @property
    def evicted(self) -> int:
        """Processes, threads and descriptors that were forgotten because a table was full."""
        return sum(
            tables.processes.evicted + tables.threads.evicted + tables.fds.evicted
            for tables in self._tables.values()
        )

    @property
    def missed(self) -> int:
        """Those of the `evicted` that are still there, as far as the stream has told."""
        return sum(
            tables.processes.missed + tables.threads.missed + tables.fds.evicted
            for tables in self._tables.values()
        )

    def snapshot(self) -> Snapshot:
        """Take the state out.

        Returns:
            Every table, rows in an order that depends on the contents alone. That of the
            processes is always there, others where they have rows.
        """
        of = self._tables.items()
        found = {
            PROCESSES: processes.to_batch((machine, t.processes.rows()) for machine, t in of),
            THREADS: threads.to_batch((machine, t.threads.rows()) for machine, t in of),
            FDS: fds.to_batch((machine, t.fds.rows()) for machine, t in of),
            USERS: users.to_batch((machine, t.users) for machine, t in of),
        }
        found = {name: table for name, table in found.items() if table.rows or name == PROCESSES}
        if self._handles:
            open_ = ((machine, table.rows()) for machine, table in self._handles.items())
            found[HANDLES] = handles.to_batch(open_)
        return Snapshot(found)

    def restore(self, snapshot: Snapshot) -> None:
        """Put a state back, in place of all that was known; known sources stay.

        Args:
            snapshot: What `snapshot` gave.

        Raises:
            DamagedError: A table is not what this version writes.
        """
        self._tables.clear()
        self._handles.clear()
        self._replace(snapshot)

    def _replace(self, snapshot: Snapshot) -> None:
        """Take over the machines in a snapshot."""
        of = snapshot.tables
        told = processes.from_batch(of.get(PROCESSES, EMPTY))
        running = threads.from_batch(of.get(THREADS, EMPTY))
        open_files = fds.from_batch(of.get(FDS, EMPTY))
        names = users.from_batch(of.get(USERS, EMPTY))
        open_ = handles.from_batch(of.get(HANDLES, EMPTY))
        for machine, found in open_.items():
            all_ = self._handles[machine] = HandleTable()
            for handle in found:
                all_.put(handle)
        for machine in sorted({*told, *running, *open_files, *names}):
            into = self._tables_of(machine)
            into.clear()
            into.users.update(names.get(machine, {}))
            for thread in running.get(machine, ()):
                into.threads.put(thread, 0)
            for pid, fd, *target in open_files.get(machine, ()):
                into.fds.put(pid, fd, Target._make(target), 0)
            for process in told.get(machine, ()):
                into.processes.put(process, 0)
                if self._watch is not None:
                    self._watch(machine, -1, process)

    def _tables_of(self, machine: str) -> Tables:
        found = self._tables.get(machine)
        if found is None:
            table = ProcessTable(machine, self._entries_max, self._bytes_max)
            found = self._tables[machine] = Tables(ThreadTable(), FdTable(), table, table.users)
        return found

    def _follow(
        self,
        tables: Sequence[Tables],
        of_row: Int64s,
        batch: Batch,
        found: Sequence[CallRows],
        rest: tuple[Rows, list[str]],
    ) -> None:
        rows, actions = rest
        steps: list[Iterator[int]] = []
        if found:
            steps.append(calls.follow(tables, of_row, batch, found))
        if len(rows):
            of_rows = [tables[code].processes for code in of_row[rows].tolist()]
            steps.append(follow.follow(of_rows, actions, rows, follow.Facts(batch, rows)))
        if not steps:
            return
        watched = [t.processes for t in tables] if self._watch is not None else []
        kept = [table for table in watched if table.changes is None]
        for table in kept:
            table.changes = []
        deque(steps[0] if len(steps) == 1 else merge(*steps), maxlen=0)
        if self._watch is not None:
            for table in watched:
                for _, row, process in table.changes or ():
                    if process is not None:
                        self._watch(table.machine, row, process)
        for table in kept:
            table.changes = None
            table.before = {}

    def _follow_handles(self, batch: Batch, by_calls: Mask) -> None:
        wanted = handles.ACTIONS if self._handles else handles.OPENING
        rows, actions = _others(batch, wanted, by_calls)
        if not len(rows):
            return
        if not self._handles:
            rows, actions = _others(batch, handles.ACTIONS, by_calls)
        machines, codes = self.machines_of(batch)
        tables = [self._handles.setdefault(machine, HandleTable()) for machine in machines]
        handles.follow([tables[code] for code in codes[rows].tolist()], actions, batch, rows)

    def machines_of(self, batch: Batch) -> tuple[list[str], Int64s]:
        """Which machine each event is of.

        Args:
            batch: Events of sources that were followed.

        Returns:
            The machines that the batch concerns, and each row's number in that list.
        """
        return self._codes(batch, self._machines, None)

    @staticmethod
    def _codes(batch: Batch, known: dict[str, str], other: str | None) -> tuple[list[str], Int64s]:
        """What is known of the sources of a batch, and each row's number in that list.

        A source that is not known stands for itself, or for ``other``.
        """
        column = batch.get("source")
        if column is None:
            return [""], np.zeros(batch.rows, np.int64)
        sources = column.values.dictionary.to_pylist()
        number: dict[str, int] = {"": 0}
        names = [known.get(s, s if other is None else other) for s in sources]
        of_source = [number.setdefault(name, len(number)) for name in names]
        codes = np.zeros(batch.rows, np.int64)
        at = slice(None) if column.rows is None else column.rows
        codes[at] = np.array(of_source or [0])[column.codes()]
        used = np.bincount(codes, minlength=len(number)) > 0
        found = [name for name, code in number.items() if used[code]]
        return found, (np.cumsum(used) - 1)[codes]


def _others(batch: Batch, wanted: Container[str], by_calls: Mask) -> tuple[Rows, list[str]]:
    """The rows of some actions that are of no source whose calls are followed."""
    rows, actions = follow.rows_of(batch, wanted)
    if not len(rows) or not by_calls.any():
        return rows, actions
    kept = np.flatnonzero(~by_calls[rows])
    return rows[kept], [actions[i] for i in kept.tolist()]
