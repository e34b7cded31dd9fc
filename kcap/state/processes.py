"""The process table: who a process id was, at the row of the stream that was followed last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.errors import DamagedError
from kcap.model.batch import EMPTY, Batch, Column, dictionary
from kcap.model.classes import TypeClass

ENTRIES_MAX: Final = 65_536
"""Processes of one machine that are kept; beyond, the oldest exited ones are forgotten."""

BYTES_MAX: Final = 64 << 20
"""Bytes that the processes of one machine may take."""

SAME_START_NS: Final = 20_000_000
"""Start times of one process id nearer than this are one process.

/proc has centiseconds, an event of a fork comes some microseconds after the kernel's own start
time, and no process id comes round again within two centiseconds.
"""

CENTISECOND_NS: Final = 10_000_000

EVENT: Final = "event"
"""Provenance of what an earlier event of the process said."""

INHERITED: Final = "inherited"
"""Provenance of what a process took over from its parent."""

PROCFS: Final = "procfs"
"""Provenance of what /proc said, now or when a foreign capture was started."""

TIMEOUT: Final = "timeout"
"""Provenance of what is not known, as reading it hung and was given up."""

PASSWD: Final = "passwd"  # noqa: S105 - the name of a file
"""Provenance of a user name looked up in the passwd file by its number."""

FACTS: Final = (
    "ppid",
    "name",
    "exe",
    "cmdline",
    "cwd",
    "user",
    "uid",
    "gid",
    "session",
    "container_id",
    "start_ns",
)
"""The fields of a process that have a provenance, in the order of `Process.provenance`."""

Provenance = tuple[str | None, ...]

UNKNOWN: Final[Provenance] = (None,) * len(FACTS)


class Process(NamedTuple):
    """One process, as far as it is known."""

    pid: int
    process_key: str | None = None
    parent_key: str | None = None
    ppid: int | None = None
    name: str | None = None
    exe: str | None = None
    cmdline: str | None = None
    cwd: str | None = None
    user: str | None = None
    uid: int | None = None
    gid: int | None = None
    session: int | None = None
    container_id: str | None = None
    start_ns: int | None = None
    """As the source gives it: since boot, or since 1970."""
    exited: bool = False
    end_ns: int | None = None
    """Event time of the exit."""
    exit_code: int | None = None
    signal_code: int | None = None
    provenance: Provenance = UNKNOWN
    """Where each of `FACTS` comes from; None for an unknown one."""


_facts: Final = attrgetter(*FACTS)

COLUMNS: Final = {
    "machine": TypeClass.STR,
    **dict.fromkeys(Process._fields, TypeClass.STR),
    **dict.fromkeys(("pid", "ppid", "uid", "gid", "session", "start_ns"), TypeClass.I64),
    **dict.fromkeys(("end_ns", "exit_code", "signal_code"), TypeClass.I64),
    "exited": TypeClass.BOOL,
}
"""The columns of the table in a snapshot: a machine, then the fields of `Process`."""


def process_key(machine: str, pid: int, start_ns: int | None) -> str | None:
    r"""Name a process for good.

    Args:
        machine: Boot id, or host name where there is none (`kcap.state.State.machine`).
        pid: Its process id.
        start_ns: Its start time as the source gives it.

    Returns:
        The first 16 hex digits of SHA-256 over the UTF-8 text ``machine\npid\nstart``, the
        numbers in decimal, the start in whole centiseconds (rounded down), which is what every
        Linux source can tell. None when the start is not known: it is never guessed.
    """
    if start_ns is None:
        return None
    text = f"{machine}\n{pid}\n{start_ns // CENTISECOND_NS}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def provenance_text(provenance: Provenance) -> str:
    """The provenance of a process as it stands in a snapshot.

    Args:
        provenance: One entry for each of `FACTS`.

    Returns:
        ``fact:provenance`` pairs, sorted, joined by commas.
    """
    return ",".join(sorted(f"{f}:{p}" for f, p in zip(FACTS, provenance, strict=True) if p))


@lru_cache(maxsize=256)
def pairs(text: str | None) -> dict[str, str]:
    """Read ``name:provenance`` pairs.

    Args:
        text: Pairs joined by commas.

    Returns:
        Name to provenance; do not change it, it is shared.
    """
    found = (item.partition(":") for item in (text or "").split(",") if item)
    return {name: tag for name, _, tag in found}


@lru_cache(maxsize=256)
def _provenance(text: str | None) -> Provenance:
    known = pairs(text)
    return tuple(known.get(fact) for fact in FACTS)


def size(process: Process) -> int:
    """What an entry counts against the table's limit.

    Args:
        process: The entry.

    Returns:
        Bytes, roughly: a fixed part and the length of its texts.
    """
    texts = (process.name, process.exe, process.cmdline, process.cwd, process.user)
    return 512 + sum(map(len, filter(None, texts)))


class ProcessTable:
    """The processes of one machine, by process id.

    An exited process stays until its id is used again or the table is full. What is forgotten
    then depends on nothing but the table's contents, so that a restored table goes on exactly
    like the one it was taken from.
    """

    def __init__(self, machine: str, entries_max: int, bytes_max: int) -> None:
        self.machine = machine
        self.users: dict[int, str] = {}
        """Names of the machine's users by id."""
        self.evicted = 0
        """Processes that were forgotten for want of room."""
        self.missed = 0
        """Those of them that had not ended: what they do next lacks what was known of them."""
        self.changes: list[tuple[int, int, Process | None]] | None = None
        """Where not None, every change as (pid, row, process) is added here."""
        self.before: dict[int, Process | None] = {}
        """While changes are collected, what the changed process ids were at first."""
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._entries: dict[int, Process] = {}
        self._children: dict[int, set[int]] = {}
        """Process ids of the entries with each ``ppid``."""
        self._bytes = 0

    def __len__(self) -> int:
        """Processes in the table."""
        return len(self._entries)

    def get(self, pid: int) -> Process | None:
        """A process.

        Args:
            pid: Its id.

        Returns:
            The one that has the id, or had it last.
        """
        return self._entries.get(pid)

    def children(self, pid: int) -> list[Process]:
        """The processes that have a process id for their ``ppid``.

        Args:
            pid: The id.

        Returns:
            They, in order of process id.
        """
        return [self._entries[child] for child in sorted(self._children.get(pid, ()))]

    def put(self, process: Process, row: int) -> None:
        """Enter a process, in place of the one of the same id.

        Args:
            process: The process.
            row: The row of the batch that said so.
        """
        self._set(process.pid, process, row)
        if len(self._entries) > self._entries_max or self._bytes > self._bytes_max:
            self._evict(row)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._children.clear()
        self._bytes = 0

    def rows(self) -> list[Process]:
        """The processes, in order of process id."""
        return sorted(self._entries.values(), key=lambda p: p.pid)

    def _set(self, pid: int, process: Process | None, row: int) -> None:
        old = self._entries.get(pid)
        if self.changes is not None:
            self.before.setdefault(pid, old)
            self.changes.append((pid, row, process))
        if old is not None:
            self._bytes -= size(old)
        if process is None:
            del self._entries[pid]
        else:
            self._entries[pid] = process
            self._bytes += size(process)
        before, now = (None if p is None else p.ppid for p in (old, process))
        if before != now:
            self._move(pid, before, now)

    def _move(self, pid: int, before: int | None, now: int | None) -> None:
        """Note that a process has another parent."""
        if before is not None:
            siblings = self._children[before]
            siblings.remove(pid)
            if not siblings:
                del self._children[before]
        if now is not None:
            self._children.setdefault(now, set()).add(pid)

    def _evict(self, row: int) -> None:
        """Make room: an eighth at once, so that a full table does not sort at every event."""
        oldest_first = sorted(self._entries.values(), key=_age)
        entries = self._entries_max * 7 // 8
        room = self._bytes_max * 7 // 8
        for process in oldest_first:
            if len(self._entries) <= entries and self._bytes <= room:
                break
            self._set(process.pid, None, row)
            self.evicted += 1
            self.missed += not process.exited


def _age(process: Process) -> tuple[bool, int, int]:
    """Exited processes first, then by age."""
    at = process.end_ns if process.exited else process.start_ns
    return not process.exited, -1 if at is None else at, process.pid


def to_batch(tables: Iterable[tuple[str, Sequence[Process]]]) -> Batch:
    """Processes as the ``processes`` table of a snapshot.

    Args:
        tables: Machines and their processes.

    Returns:
        One row a process, ordered by machine, process id and start.
    """
    rows = [
        (machine, *process[:-1], provenance_text(process.provenance) or None)
        for machine, processes in sorted(tables, key=lambda t: t[0])
        for process in sorted(processes, key=lambda p: (p.pid, p.start_ns or -1))
    ]
    if not rows:
        return EMPTY
    columns = {}
    for (name, cls), values in zip(COLUMNS.items(), zip(*rows, strict=True), strict=True):
        at = np.array([i for i, v in enumerate(values) if v is not None], np.int32)
        if len(at):
            columns[name] = _column(cls, [values[i] for i in at.tolist()], at, len(rows))
    return Batch(len(rows), columns)


def _column(cls: TypeClass, values: list[object], at: npt.NDArray[np.int32], count: int) -> Column:
    text = cls is TypeClass.STR
    array = dictionary(pa.array(values, pa.utf8())) if text else pa.array(values, cls.arrow)
    return Column(cls, array, None if len(at) == count else at)


def from_batch(batch: Batch) -> dict[str, list[Process]]:
    """Read the ``processes`` table of a snapshot.

    Args:
        batch: What `to_batch` made; columns it does not know are ignored.

    Returns:
        Machine to processes.

    Raises:
        DamagedError: A column has another class than it must, or a process has no id.
    """
    lists: list[list[Any]] = []
    for name, cls in COLUMNS.items():
        column = batch.get(name)
        if column is not None and column.cls is not cls:
            raise DamagedError(
                f"column {name} of the process table is of class {column.cls}", expected=cls
            )
        lists.append(batch.array(name).to_pylist())
    found: dict[str, list[Process]] = {}
    for machine, *fields, provenance in zip(*lists, strict=True):
        process = Process._make([*fields, _provenance(provenance)])
        if process.pid is None:
            raise DamagedError("a row of the process table has no process id")
        process = process._replace(exited=bool(process.exited))
        found.setdefault(machine or "", []).append(process)
    return found


@lru_cache(maxsize=1024)
def inherited(known: tuple[bool, ...]) -> Provenance:
    """The provenance of a forked child.

    Args:
        known: Which of `FACTS` the child has.

    Returns:
        ``event`` for what the fork itself says, ``inherited`` for the rest.
    """
    said = {"ppid", "start_ns"}
    return tuple(
        (EVENT if fact in said else INHERITED) if has else None
        for fact, has in zip(FACTS, known, strict=True)
    )


def known_facts(process: Process) -> tuple[bool, ...]:
    """Which of `FACTS` a process has.

    Args:
        process: The process.

    Returns:
        One entry for each.
    """
    return tuple([fact is not None for fact in _facts(process)])
