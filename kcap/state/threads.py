"""The thread table: which process a thread belongs to, and what it is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.state import rows

ENTRIES_MAX: Final = 131_072
"""Threads of one machine that are kept; beyond, the exited ones are forgotten first."""


class Thread(NamedTuple):
    """One thread."""

    tid: int
    pid: int
    """The process that it belongs to."""
    name: str | None = None
    """Linux: comm, which each thread has for itself."""
    ptid: int | None = None
    """The thread that started it."""
    exited: bool = False
    provenance: str | None = None
    """Where the name and the process come from: ``procfs``, ``event``, ``inherited``."""
    details: str | None = None
    """What else a snapshot says, as JSON."""


_CLASSES: Final = {
    "tid": TypeClass.I64,
    "pid": TypeClass.I64,
    "name": TypeClass.STR,
    "ptid": TypeClass.I64,
    "exited": TypeClass.BOOL,
    "provenance": TypeClass.STR,
    "details": TypeClass.STR,
}
"""Columns of the table in a snapshot."""


class ThreadTable:
    """The threads of one machine, by thread id.

    An exited thread stays until its id is used again or the table is full.

    Args:
        entries_max: Threads to keep.
    """

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self.evicted = 0
        """Threads that were forgotten for want of room."""
        self.missed = 0
        """Those of them that had not ended: what they do next lacks what was known of them."""
        self.changes: list[tuple[int, int, Thread | None]] | None = None
        """Where not None, every change as (tid, row, thread) is added here."""
        self.before: dict[int, Thread | None] = {}
        """While changes are collected, what the changed thread ids were at first."""
        self._entries_max = entries_max
        self._entries: dict[int, Thread] = {}
        self._alive: dict[int, int] = {}
        """Threads of each process that have not exited."""

    def __len__(self) -> int:
        """Threads in the table."""
        return len(self._entries)

    def get(self, tid: int) -> Thread | None:
        """A thread.

        Args:
            tid: Its id.

        Returns:
            The one that has the id, or had it last.
        """
        return self._entries.get(tid)

    def owner(self, tid: int) -> int:
        """The process of a thread.

        Args:
            tid: Its id.

        Returns:
            The process id; an unknown thread stands for its own process.
        """
        thread = self._entries.get(tid)
        return tid if thread is None else thread.pid

    def alive(self, pid: int) -> int:
        """How many threads of a process are known that have not exited.

        Args:
            pid: The process.

        Returns:
            The number.
        """
        return self._alive.get(pid, 0)

    def put(self, thread: Thread, row: int) -> None:
        """Enter a thread, in place of the one of the same id.

        Args:
            thread: The thread.
            row: The row of the batch that said so.
        """
        self._set(thread.tid, thread, row)
        if len(self._entries) > self._entries_max:
            self._evict(row)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._alive.clear()

    def rows(self) -> list[Thread]:
        """The threads, in order of thread id."""
        return sorted(self._entries.values(), key=_tid)

    def _set(self, tid: int, thread: Thread | None, row: int) -> None:
        old = self._entries.get(tid)
        if self.changes is not None:
            self.before.setdefault(tid, old)
            self.changes.append((tid, row, thread))
        if old is not None and not old.exited:
            left = self._alive[old.pid] - 1
            if left:
                self._alive[old.pid] = left
            else:
                del self._alive[old.pid]
        if thread is None:
            del self._entries[tid]
            return
        self._entries[tid] = thread
        if not thread.exited:
            self._alive[thread.pid] = self._alive.get(thread.pid, 0) + 1

    def _evict(self, row: int) -> None:
        """Make room: an eighth at once, so that a full table does not sort at every event."""
        first = sorted(self._entries.values(), key=lambda t: (not t.exited, t.tid))
        for thread in first[: len(first) - self._entries_max * 7 // 8]:
            self._set(thread.tid, None, row)
            self.evicted += 1
            self.missed += not thread.exited


def _tid(thread: Thread) -> int:
    return thread.tid


def to_batch(tables: Iterable[tuple[str, Sequence[Thread]]]) -> Batch:
    """Threads as the ``threads`` table of a snapshot.

    Args:
        tables: Machines and their threads.

    Returns:
        One row a thread, ordered by machine and thread id.
    """
    ordered = ((machine, sorted(found, key=_tid)) for machine, found in tables)
    return rows.to_batch(_CLASSES, ordered)


def from_batch(batch: Batch) -> dict[str, list[Thread]]:
    """Read the ``threads`` table of a snapshot.

    Args:
        batch: What `to_batch` made; columns it does not know are ignored.

    Returns:
        Machine to threads.

    Raises:
        DamagedError: A column has another class than it must, or a thread has no id or process.
    """
    read = rows.from_batch(_CLASSES, batch, "thread", 2)
    threads = {machine: [Thread._make(f) for f in found] for machine, found in read.items()}
    return {
        machine: [thread._replace(exited=bool(thread.exited)) for thread in found]
        for machine, found in threads.items()
    }
