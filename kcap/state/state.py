"""The state of the machines that a stream comes from: one way in, one way out and back.

`State.update` is the only place where events change the state, `State.snapshot` and
`State.restore` the only ways to take it out and put it back. More tables (threads, open files,
sockets, modules, handles) join the process table there. Nothing here reads a clock, a random
number or anything of the host it runs on: the same batches give the same state everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap.errors import DamagedError
from kcap.model.batch import Batch, Rows
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.state import processes
from kcap.state.follow import Facts, follow, process_rows
from kcap.state.identity import Machine, resolve
from kcap.state.processes import Process, ProcessTable

PROCESSES: Final = "processes"
"""Name of the process table in a snapshot."""


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
        rows, actions = process_rows(batch)
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
        return Snapshot({PROCESSES: processes.to_batch(tables)})

    def restore(self, snapshot: Snapshot) -> None:
        """Put a state back, in place of all that was known; known sources stay.

        Args:
            snapshot: What `snapshot` gave.

        Raises:
            DamagedError: A table is not what this version writes.
        """
        self._processes.clear()
        self._replace(snapshot)

    def _replace(self, snapshot: Snapshot) -> None:
        """Take over the machines in a snapshot."""
        table = snapshot.tables.get(PROCESSES)
        if table is None:
            return
        for machine, rows in processes.from_batch(table).items():
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

    def _tables(self, batch: Batch) -> tuple[list[ProcessTable], npt.NDArray[np.int64]]:
        """The process tables that a batch concerns, and each row's number in that list."""
        column = batch.get("source")
        if column is None:
            return [self._table("")], np.zeros(batch.rows, np.int64)
        sources = column.values.dictionary.to_pylist()
        number: dict[str, int] = {"": 0}
        of_source = [number.setdefault(self._machines.get(s, s), len(number)) for s in sources]
        codes = np.zeros(batch.rows, np.int64)
        at = slice(None) if column.rows is None else column.rows
        codes[at] = np.array(of_source or [0])[column.codes()]
        used = np.bincount(codes, minlength=len(number)) > 0
        machines = [machine for machine, code in number.items() if used[code]]
        return [self._table(machine) for machine in machines], (np.cumsum(used) - 1)[codes]
