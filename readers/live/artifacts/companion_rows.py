"""The events that artifacts belong to: looked up by process and file, or by thread and time."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.model.batch import Batch, concat
from kcap.model.naming import argument
from kcap.readers.live.artifacts.companion_expected import Expected
from kcap.readers.live.artifacts.companion_unwatched import DEV, INODE, MODE

ROWS_MAX: Final = 1 << 18
"""Events of a kind that are remembered; the oldest are forgotten first."""

PIDS_MAX: Final = 1 << 17
"""Processes that are remembered; the one that was quiet longest is forgotten first."""

EXECUTIONS: Final = frozenset({"sched_process_exec"})
OPENS: Final = frozenset({"open", "openat", "openat2", "creat", "open_by_handle_at"})
REGIONS: Final = frozenset({"mprotect", "pkey_mprotect", "mmap"})
MODULES: Final = frozenset({"init_module", "finit_module"})
PROGRAMS: Final = frozenset({"bpf"})
CALLS: Final = REGIONS | MODULES | PROGRAMS

CTIME: Final = argument("ctime")
_FLAGS: Final = argument("flags")
_ACCESS: Final = 3
_TRIED_MAX: Final = 64
_PART_ROWS: Final = 1 << 14
"""Rows that are put together; more are forgotten at a time."""
_CLOCKS_NS: Final = 1_000_000
"""How far the clocks of events and of readers are from each other at most."""
_FIELDS: Final = (
    "origin", "ord", "ts", "pid", "tid", "uid", "process_name", "process_key", "exe",
    "container_id", "cgroup_id", argument("pathname"), argument("flags"), MODE, CTIME,
)  # fmt: skip
_ODD: Final = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)

Keys = npt.NDArray[np.uint64]


def rows_of(batch: Batch, events: Collection[str]) -> npt.NDArray[np.intp]:
    """The rows of some events.

    Args:
        batch: Events.
        events: Their names.

    Returns:
        Row numbers, ascending.
    """
    column = batch.get("event")
    if column is None:
        return np.zeros(0, np.intp)
    entries = column.values.dictionary.to_pylist()
    wanted = np.array([entry in events for entry in entries] or [False])
    found = np.flatnonzero(wanted[column.codes()])
    return found if column.rows is None else column.rows[found].astype(np.intp)


def _mixed(*numbers: npt.NDArray[np.int64]) -> Keys:
    """One number out of several; different ones may meet, so who finds one compares."""
    out = np.zeros(len(numbers[0]), np.uint64)
    for number, odd in zip(numbers, _ODD, strict=False):
        out = (out ^ number.view(np.uint64)) * np.uint64(odd)
        out ^= out >> np.uint64(29)
    return out


class _Part:
    """Events of one batch."""

    def __init__(self, batch: Batch, names: tuple[str, ...]) -> None:
        self.numbers = tuple(batch.numpy(name, -1) for name in names)
        keys = _mixed(*self.numbers)
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]
        self.times = batch.numpy("ts", 0)
        self.batch = batch

    def find(self, key: np.uint64, numbers: tuple[int, ...]) -> npt.NDArray[np.intp]:
        """The rows with these numbers, ascending."""
        first = np.searchsorted(self.keys, key)
        last = np.searchsorted(self.keys, key, side="right")
        rows = self.order[first:last]
        for own, number in zip(self.numbers, numbers, strict=True):
            rows = rows[own[rows] == number]
        return rows


class Table:
    """Events by some of their numbers.

    Args:
        names: The columns of these.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._parts: deque[_Part] = deque()
        self._rows = 0

    def add(self, batch: Batch, rows: npt.NDArray[np.intp]) -> None:
        """Remember events.

        Args:
            batch: Where they are.
            rows: Which.
        """
        if not len(rows):
            return
        kept = batch.select((*_FIELDS, *self._names))
        taken = kept.take(rows.astype(np.int32)).compact()
        added = Batch(taken.rows, taken.columns)
        self._rows += len(rows)
        # Each part is to be more than twice the next one, or a look would go through thousands.
        while self._parts and self._parts[-1].batch.rows <= 2 * added.rows <= _PART_ROWS:
            added = concat((self._parts.pop().batch, added))
        self._parts.append(_Part(added, self._names))
        while self._rows > ROWS_MAX and len(self._parts) > 1:
            self._rows -= self._parts.popleft().batch.rows

    def before(self, time_ns: int, path: str | None, *numbers: int) -> dict[str, Any] | None:
        """The latest event with these numbers before a time, of a path if there is one.

        A number of an inode is used again as soon as nobody has its file open.

        Args:
            time_ns: The time.
            path: The path.
            numbers: One for each column.

        Returns:
            What is known of it by column; None where there is none.
        """
        other: dict[str, Any] | None = None
        tried = 0
        for part, rows in self._found(numbers):
            earlier = rows[part.times[rows] <= time_ns + _CLOCKS_NS]
            for row in earlier[::-1][: max(0, _TRIED_MAX - tried)].tolist():
                found = _row(part.batch, row)
                if path is None or found.get(argument("pathname")) == path:
                    return found
                other = other or found
            tried += len(earlier)
        return other

    def after(self, time_ns: int, number: int) -> Iterator[tuple[Batch, npt.NDArray[np.intp]]]:
        """The events behind a time that have a first number.

        Args:
            time_ns: The time.
            number: In the first column.

        Yields:
            Batches, and rows of each.
        """
        for part in self._parts:
            rows = np.flatnonzero((part.numbers[0] == number) & (part.times > time_ns))
            if len(rows):
                yield part.batch, rows

    def nearest(self, time_ns: int, *numbers: int) -> tuple[int, dict[str, Any]] | None:
        """The event with these numbers that is nearest to a time.

        Args:
            time_ns: The time.
            numbers: One for each column.

        Returns:
            How far it is, in ns, and what is known of it; None where there is none.
        """
        best: tuple[int, _Part, int] | None = None
        for part, rows in self._found(numbers):
            far = np.abs(part.times[rows] - time_ns)
            place = len(far) - 1 - int(np.argmin(far[::-1]))  # the later of two
            if best is None or int(far[place]) < best[0]:
                best = int(far[place]), part, int(rows[place])
        if best is None:
            return None
        far_ns, part, row = best
        return far_ns, _row(part.batch, row)

    def _found(self, numbers: tuple[int, ...]) -> Iterator[tuple[_Part, npt.NDArray[np.intp]]]:
        """The rows with these numbers, the latest part first."""
        arrays = [np.array([number & (1 << 63) - 1], np.int64) for number in numbers]
        key = _mixed(*arrays)[0]
        for part in reversed(self._parts):
            rows = part.find(key, numbers)
            if len(rows):
                yield part, rows


def _row(batch: Batch, row: int) -> dict[str, Any]:
    """What an event has; a slice and its list take five times as long."""
    found: dict[str, Any] = {}
    for name, column in batch.columns.items():
        at = row
        if column.rows is not None:
            at = int(np.searchsorted(column.rows, row))
            if at == len(column.rows) or column.rows[at] != row:
                continue
        found[name] = column.values[at].as_py()
    return found


class Rows:
    """What is remembered of the events.

    Args:
        reads: Files that were read are kept, too.
        expected: What is to come from servers' file systems.
    """

    def __init__(self, *, reads: bool, expected: Expected) -> None:
        self._reads = reads
        self._expected = expected
        self.executions = Table("pid", DEV, INODE)
        self.processes = Table("pid")
        """Executions, by process alone."""
        self.opens = Table("pid", DEV, INODE)
        self.any_opens = Table(DEV, INODE)
        self.calls = {name: Table("tid") for name in sorted(CALLS)}
        """System calls, by their name."""
        self._pids: OrderedDict[int, None] = OrderedDict()

    def add(self, batch: Batch) -> npt.NDArray[np.intp]:
        """Remember what artifacts may belong to.

        Args:
            batch: Events, with their place in the recording.

        Returns:
            The rows of executions.
        """
        if not batch.rows:
            return np.zeros(0, np.intp)
        for pid in np.unique(batch.numpy("pid", 0)).tolist():
            self._pids[pid] = None
            self._pids.move_to_end(pid)
        while len(self._pids) > PIDS_MAX:
            self._pids.popitem(last=False)
        executions = rows_of(batch, EXECUTIONS)
        self.executions.add(batch, executions)
        self.processes.add(batch, executions)
        opens = self._opens(batch)
        self.opens.add(batch, opens)
        self.any_opens.add(batch, opens)
        self._expected.add(batch, executions, opens)
        for name, table in self.calls.items():
            table.add(batch, rows_of(batch, {name}))
        return executions

    def knows(self, pid: int) -> bool:
        """Whether there was an event of a process, not too long ago.

        Args:
            pid: The process.

        Returns:
            The same.
        """
        return pid in self._pids

    def _opens(self, batch: Batch) -> npt.NDArray[np.intp]:
        rows = rows_of(batch, OPENS)
        if not len(rows):
            return rows
        rows = rows[batch.numpy(INODE, -1)[rows] >= 0]
        if not self._reads:
            # creat(2) has no flags, and writes.
            rows = rows[batch.numpy(_FLAGS, 1)[rows] & _ACCESS != 0]
        return rows
