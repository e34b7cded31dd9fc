"""The state of the machines that a stream comes from: one way in, one way out and back.

`State.update` is the only place where events change the state, `State.snapshot` and
`State.restore` the only ways to take it out and put it back. More tables (threads, open files,
sockets, modules) join those of processes and handles there. Nothing here reads a clock, a random
number or anything of the host it runs on: the same batches give the same state everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap.errors import DamagedError
from kcap.model.batch import EMPTY, Batch, Rows
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.state import handles, processes
from kcap.state.follow import ACTIONS, Facts, follow, rows_of
from kcap.state.handles import HandleTable
from kcap.state.identity import Machine, resolve
from kcap.state.processes import Process, ProcessTable

PROCESSES: Final = "processes"
"""Name of the process table in a snapshot."""

HANDLES: Final = "handles"
"""Name of the handle table in a snapshot."""

Watch = Callable[[str, int, Process], None]
"""Is told a machine, the row of the batch that said it (-1 for a snapshot), and the process."""


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
        self._processes: dict[str, ProcessTable] = {}
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

    def update(self, batch: Batch, *, resolve: bool = False) -> Batch:
        """Follow the events of a batch, in stream order.

        Side records come first: a source tells its machine, a snapshot replaces what is known of
        the machines in it.

        Args:
            batch: The next events of the stream.
            resolve: Fill identity columns that the source left empty, when recording and
                importing; a replay shows what was recorded.

        Returns:
            The batch, with more identity columns and their ``provenance`` where asked for; a
            snapshot that makes no sense is a `Loss` in it, and changes nothing.
        """
        batch = self._take_sides(batch)
        if not batch.rows:
            return batch
        self._follow_handles(batch)
        rows, actions = rows_of(batch, ACTIONS)
        if not resolve:
            self._follow(batch, rows, actions)
            return batch
        return self._resolve(batch, rows, actions)

    def _take_sides(self, batch: Batch) -> Batch:
        """Take in sources and snapshots."""
        before: list[Side] = []
        for side in batch.before:
            kept: Side = side
            if isinstance(side, SourceInfo):
                self._machines[side.id] = self.machine(side)
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
        if machine is None and len(self._processes) == 1:
            machine = next(iter(self._processes))
        table = self._processes.get(machine or "")
        return None if table is None else table.get(pid)

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
        """Processes that were forgotten because a table was full."""
        return sum(table.evicted for table in self._processes.values())

    def snapshot(self) -> Snapshot:
        """Take the state out.

        Returns:
            Every table, rows in an order that depends on the contents alone.
        """
        tables = ((machine, table.rows()) for machine, table in self._processes.items())
        found = {PROCESSES: processes.to_batch(tables)}
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
        self._processes.clear()
        self._handles.clear()
        self._replace(snapshot)

    def _replace(self, snapshot: Snapshot) -> None:
        """Take over the machines in a snapshot."""
        told = processes.from_batch(snapshot.tables.get(PROCESSES, EMPTY))
        open_ = handles.from_batch(snapshot.tables.get(HANDLES, EMPTY))
        for machine, found in open_.items():
            all_ = self._handles[machine] = HandleTable()
            for handle in found:
                all_.put(handle)
        for machine, rows in told.items():
            into = self._table(machine)
            into.clear()
            for process in rows:
                into.put(process, 0)
                if self._watch is not None:
                    self._watch(machine, -1, process)

    def _table(self, machine: str) -> ProcessTable:
        table = self._processes.get(machine)
        if table is None:
            table = ProcessTable(machine, self._entries_max, self._bytes_max)
            self._processes[machine] = table
        return table

    def _follow(self, batch: Batch, rows: Rows, actions: list[str]) -> None:
        if not len(rows):
            return
        tables, codes = self._tables(batch)
        kept = [] if self._watch is None else [t for t in tables if t.changes is None]
        for table in kept:
            table.changes = []
        of_rows = [tables[code] for code in codes[rows].tolist()]
        follow(of_rows, actions, rows, Facts(batch, rows))
        if self._watch is not None:
            for table in tables:
                for _, row, process in table.changes or ():
                    if process is not None:
                        self._watch(table.machine, row, process)
        for table in kept:
            table.changes = None
            table.before = {}

    def _resolve(self, batch: Batch, rows: Rows, actions: list[str]) -> Batch:
        tables, codes = self._tables(batch)
        used = [(table, np.flatnonzero(codes == code)) for code, table in enumerate(tables)]
        machines = [Machine(table, at) for table, at in used if len(at)]
        for table, _ in machines:
            table.changes = []
        self._follow(batch, rows, actions)
        resolved = resolve(batch, machines)
        for table, _ in machines:
            table.changes = None
            table.before = {}
        return resolved

    def _follow_handles(self, batch: Batch) -> None:
        rows, actions = rows_of(batch, handles.ACTIONS if self._handles else handles.OPENING)
        if not len(rows):
            return
        if not self._handles:
            rows, actions = rows_of(batch, handles.ACTIONS)
        machines, codes = self._machines_of(batch)
        tables = [self._handles.setdefault(machine, HandleTable()) for machine in machines]
        handles.follow([tables[code] for code in codes[rows].tolist()], actions, batch, rows)

    def _tables(self, batch: Batch) -> tuple[list[ProcessTable], npt.NDArray[np.int64]]:
        """The process tables that a batch concerns, and each row's number in that list."""
        machines, codes = self._machines_of(batch)
        return [self._table(machine) for machine in machines], codes

    def _machines_of(self, batch: Batch) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The machines that a batch concerns, and each row's number in that list."""
        column = batch.get("source")
        if column is None:
            return [""], np.zeros(batch.rows, np.int64)
        sources = column.values.dictionary.to_pylist()
        number: dict[str, int] = {"": 0}
        of_source = [number.setdefault(self._machines.get(s, s), len(number)) for s in sources]
        codes = np.zeros(batch.rows, np.int64)
        at = slice(None) if column.rows is None else column.rows
        codes[at] = np.array(of_source or [0])[column.codes()]
        used = np.bincount(codes, minlength=len(number)) > 0
        machines = [machine for machine, code in number.items() if used[code]]
        return machines, (np.cumsum(used) - 1)[codes]
