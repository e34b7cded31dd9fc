"""The descriptor table: which files, sockets and pipes the processes of a machine have open.

A descriptor is known by process id and number. The threads of a process share its descriptors; a
child starts with those of its parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.state import rows

ENTRIES_MAX: Final = 262_144
"""Descriptors of one machine that are kept; beyond, the processes with most lose theirs."""


BYTES_MAX: Final = 32 << 20
"""Bytes that the descriptors of one machine may take: half of what a STATE record may."""


class Target(NamedTuple):
    """What a descriptor stands for."""

    type: str | None = None
    """``file``, ``directory``, ``ipv4``, ``ipv6``, ``unix``, ``pipe``, ``eventpoll`` …"""
    name: str | None = None
    """Absolute path, ``ADDRESS:PORT->ADDRESS:PORT``, name; None where it has none."""
    inode: int | None = None
    flags: int | None = None
    """How it was opened, in the source's own numbers."""
    details: str | None = None
    """What else is known, as JSON."""


class Descriptor(NamedTuple):
    """One descriptor of a process."""

    pid: int
    fd: int
    type: str | None = None
    name: str | None = None
    inode: int | None = None
    flags: int | None = None
    details: str | None = None


_CLASSES: Final = {
    "pid": TypeClass.I64,
    "fd": TypeClass.I64,
    "type": TypeClass.STR,
    "name": TypeClass.STR,
    "inode": TypeClass.I64,
    "flags": TypeClass.I64,
    "details": TypeClass.STR,
}
"""Columns of the table in a snapshot."""


class _Files(dict[int, Target]):
    """The descriptors of a process, by number."""

    __slots__ = ("size",)

    size: int
    """Bytes, roughly."""


def _size(target: Target) -> int:
    """What an entry counts against the table's limit: a fixed part and its texts."""
    return 128 + len(target.name or "") + len(target.details or "")


def _no_files() -> _Files:
    files = _Files()
    files.size = 0
    return files


_Change = tuple[int, Target | None]
"""From which row on a descriptor is what."""


class FdTable:
    """The descriptors of one machine.

    A child's table is its parent's until one of them changes, so that a fork costs nothing; what a
    table was before a batch is kept the same way.

    Args:
        entries_max: Descriptors to keep.
        bytes_max: Bytes that they may take.
    """

    def __init__(self, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.evicted = 0
        """Descriptors that were forgotten for want of room."""
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._of_process: dict[int, _Files] = {}
        self._own: dict[int, _Files] = {}
        """The tables that may be changed: the others are a relative's too, or what was before."""
        self._count = 0
        self._bytes = 0
        self._before: dict[int, _Files] | None = None
        self._changes: dict[tuple[int, int], list[_Change]] = {}
        self._replaced: dict[int, list[tuple[int, _Files]]] = {}

    def __len__(self) -> int:
        """Descriptors in the table."""
        return self._count

    def get(self, pid: int, fd: int) -> Target | None:
        """What a descriptor stands for.

        Args:
            pid: The process that has it.
            fd: Its number.

        Returns:
            The target, None where it is not known.
        """
        files = self._of_process.get(pid)
        return None if files is None else files.get(fd)

    def put(self, pid: int, fd: int, target: Target, row: int) -> None:
        """Enter a descriptor, in place of the one with its number.

        Args:
            pid: The process that has it.
            fd: Its number.
            target: What it stands for.
            row: The row of the batch that said so.
        """
        files = self._own.get(pid)
        if files is None:
            files = self._copy(pid)
        size = _size(target)
        old = files.get(fd)
        if old is None:
            self._count += 1
        else:
            size -= _size(old)
        files[fd] = target
        files.size += size
        self._bytes += size
        if self._before is not None:
            self._changes.setdefault((pid, fd), []).append((row, target))
        if self._count > self._entries_max or self._bytes > self._bytes_max:
            self._evict(row)

    def close(self, pid: int, fd: int, row: int) -> None:
        """Take a descriptor out.

        Args:
            pid: The process that has it.
            fd: Its number; one that is not known is no error.
            row: The row of the batch that said so.
        """
        files = self._own.get(pid)
        if files is None:
            if fd not in self._of_process.get(pid, ()):
                return
            files = self._copy(pid)
        old = files.pop(fd, None)
        if old is None:
            return
        size = _size(old)
        files.size -= size
        self._bytes -= size
        if not files:
            del self._of_process[pid], self._own[pid]
        self._count -= 1
        if self._before is not None:
            self._changes.setdefault((pid, fd), []).append((row, None))

    def close_where(self, pid: int, wanted: Sequence[int], row: int) -> None:
        """Take several descriptors of a process out.

        Args:
            pid: The process.
            wanted: Their numbers.
            row: The row of the batch that said so.
        """
        for fd in wanted:
            self.close(pid, fd, row)

    def numbers(self, pid: int) -> list[int]:
        """The numbers of the descriptors that a process has.

        Args:
            pid: The process.

        Returns:
            The numbers that are known.
        """
        return list(self._of_process.get(pid, ()))

    def fork(self, parent: int, child: int, row: int) -> None:
        """A child starts with the descriptors of its parent.

        Args:
            parent: The parent's process id.
            child: The child's.
            row: The row of the batch that said so.
        """
        self._replace(child, self._of_process.get(parent), row)
        self._own.pop(parent, None)
        if self._count > self._entries_max or self._bytes > self._bytes_max:
            self._evict(row)

    def end(self, pid: int, row: int) -> None:
        """Take all descriptors of a process out.

        Args:
            pid: The process.
            row: The row of the batch that said so.
        """
        self._replace(pid, None, row)

    def clear(self) -> None:
        """Forget all."""
        self._of_process.clear()
        self._own.clear()
        self._count = self._bytes = 0

    def of_process(self, pid: int) -> list[Descriptor]:
        """The descriptors of a process.

        Args:
            pid: The process.

        Returns:
            Those that are known, in order of their numbers.
        """
        files = self._of_process.get(pid) or _no_files()
        return [Descriptor(pid, fd, *target) for fd, target in sorted(files.items())]

    def rows(self) -> list[Descriptor]:
        """The descriptors, in order of process id and number."""
        return [row for pid in sorted(self._of_process) for row in self.of_process(pid)]

    def collect(self) -> None:
        """Begin to keep what the descriptors were, for `history`."""
        self._before = {}
        self._own = {}

    def history(self, pid: int, fd: int) -> list[_Change]:
        """What a descriptor was since `collect`.

        Args:
            pid: The process.
            fd: The number.

        Returns:
            What it was at first, as of row -1, and every change, ascending.
        """
        files = (self._before or {}).get(pid)
        if files is None:
            return [(-1, self.get(pid, fd))]
        found = [(-1, files.get(fd))]
        replaced = self._replaced.get(pid)
        if replaced is not None:
            found += [(row, table.get(fd)) for row, table in replaced]
        found += self._changes.get((pid, fd), ())
        if replaced is not None:
            found.sort(key=_row)
        return found

    def forget(self) -> None:
        """End what `collect` began."""
        self._before = None
        self._changes = {}
        self._replaced = {}

    def _copy(self, pid: int) -> _Files:
        """The table of a process, to be changed."""
        old = self._of_process.get(pid)
        if old is None:
            old = _no_files()
        if self._before is not None:
            self._before.setdefault(pid, old)
        files = self._own[pid] = self._of_process[pid] = _Files(old)
        files.size = old.size
        return files

    def _replace(self, pid: int, files: _Files | None, row: int) -> None:
        """Give a process a table that others may have as well."""
        old = self._of_process.pop(pid, None) or _no_files()
        self._own.pop(pid, None)
        self._count -= len(old)
        self._bytes -= old.size
        if files:
            self._of_process[pid] = files
            self._count += len(files)
            self._bytes += files.size
        if self._before is not None and (old or files):
            self._before.setdefault(pid, old)
            self._replaced.setdefault(pid, []).append((row, files or _no_files()))

    def _evict(self, row: int) -> None:
        """Make room: the greatest tables are most likely those whose closings are not seen.

        An eighth at once, so that a full table does not sort at every event.
        """
        entries, room = self._entries_max * 7 // 8, self._bytes_max * 7 // 8
        for _, pid in sorted((-files.size, pid) for pid, files in self._of_process.items()):
            if self._count <= entries and self._bytes <= room:
                break
            self.evicted += len(self._of_process[pid])
            self._replace(pid, None, row)


def _row(change: _Change) -> int:
    return change[0]


def to_batch(tables: Iterable[tuple[str, Sequence[Descriptor]]]) -> Batch:
    """Descriptors as the ``fds`` table of a snapshot.

    Args:
        tables: Machines and their descriptors.

    Returns:
        One row a descriptor, ordered by machine, process id and number.
    """
    ordered = ((machine, sorted(found, key=lambda d: d[:2])) for machine, found in tables)
    return rows.to_batch(_CLASSES, ordered)


def from_batch(batch: Batch) -> dict[str, list[Descriptor]]:
    """Read the ``fds`` table of a snapshot.

    Args:
        batch: What `to_batch` made; columns it does not know are ignored.

    Returns:
        Machine to descriptors.

    Raises:
        DamagedError: A column has another class than it must, or a descriptor has no process or
            number.
    """
    read = rows.from_batch(_CLASSES, batch, "descriptor", 2)
    return {machine: [Descriptor._make(f) for f in found] for machine, found in read.items()}
