"""Cutting a stream of batches into pieces of a useful and bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap import limits
from kcap.model.batch import EMPTY, Batch, concat
from kcap.model.side import Side, Snapshot
from kcap.replay.rebatch import row_bytes

GROUP_BYTES: Final = 64 << 20
"""What the table of a group may take: every column at full length, every text where it stands."""

Weigh = Callable[[Batch], npt.NDArray[np.int64] | None]
"""Says what each row takes; None where that is nothing worth counting."""

ROWS_MIN: Final = 1024
"""Rows of a group, where it is not text that makes it large."""

_ROWS_SHARE: Final = 4
_BYTES_SHARE: Final = 16
"""A piece of such a part of a group is one of its own: joining it would copy its texts."""


def rows_of_group(columns: int) -> int:
    """How many rows a group may have.

    Args:
        columns: Columns that have a value in it; the others take no memory.

    Returns:
        Rows, so that the numbers of a table of so many columns take `GROUP_BYTES` at most.
    """
    return max(ROWS_MIN, min(limits.CHUNK_ROWS, GROUP_BYTES // (8 * max(columns, 1))))


def cut(
    batch: Batch, rows: int, bytes_max: int = GROUP_BYTES, weigh: Weigh = row_bytes
) -> Iterator[tuple[Batch, int]]:
    """Cut a batch so that its pieces are of bounded size.

    Args:
        batch: Any batch.
        rows: Rows of a piece.
        bytes_max: What its values may take; one row may take more.
        weigh: Says what they take.

    Yields:
        The pieces in order, each of at least one row, and what its values take.
    """
    sizes = weigh(batch)
    ends = np.zeros(batch.rows, np.int64) if sizes is None else np.cumsum(sizes)
    start = done = 0
    while start < batch.rows:
        stop = int(np.searchsorted(ends, done + bytes_max, "right"))
        stop = max(start + 1, min(stop, start + rows))
        yield batch.slice(start, stop), int(ends[stop - 1]) - done
        start, done = stop, int(ends[stop - 1])


class Groups:
    """Puts small batches together and cuts large ones; depends on the batches alone.

    Args:
        bytes_max: What the values of a group may take.
        weigh: Says what they take.
        width: Columns of a table whose absent ones take memory too; 0 where they don't.
    """

    def __init__(
        self, bytes_max: int = GROUP_BYTES, weigh: Weigh = row_bytes, width: int = 0
    ) -> None:
        self._weigh = weigh
        self._width = width
        self._bytes_max = bytes_max
        self._pending: list[Batch] = []
        self._names: set[str] = set()
        self._sides: tuple[Side, ...] = ()
        self._count = 0
        self._weight = 0
        self.nbytes = 0
        """Memory that the batches that wait take."""

    def add(self, batch: Batch) -> Iterator[Batch]:
        """Take the next batch.

        Args:
            batch: Events and side records.

        Yields:
            The groups that are complete with it. Side records stand before the group in which
            their place is; a snapshot begins a group.
        """
        if any(isinstance(side, Snapshot) for side in batch.before):
            yield from self.end()
        batch = batch.with_before((*self._sides, *batch.before))
        self._sides = () if batch.rows else batch.before
        rows = self._room(batch.columns)
        for piece, size in cut(batch, rows, self._bytes_max, self._weigh):
            large = piece.rows * _ROWS_SHARE >= rows or size * _BYTES_SHARE >= self._bytes_max
            room = self._room(self._names.union(piece.columns)) - self._count
            full = piece.rows > room or self._weight + size > self._bytes_max
            if self._count and (large or full or self.nbytes > self._bytes_max // 2):
                yield from self._group()
            # Waiting batches must not hold the texts of the rows that a filter took away.
            kept = piece if large else piece.compact()
            self._pending.append(kept)
            self._names |= kept.columns.keys()
            self._count += piece.rows
            self._weight += size
            if large:
                yield from self._group()
            else:
                self.nbytes += kept.nbytes

    def end(self) -> Iterator[Batch]:
        """Say that nothing more belongs to the group.

        Yields:
            What waits, if anything does.
        """
        sides, self._sides = self._sides, ()
        if self._pending:
            yield from self._group()
        if sides:
            yield EMPTY.with_before(sides)

    def _group(self) -> Iterator[Batch]:
        """What waits as a group; dictionaries that were small may be large together."""
        group = concat(self._pending)
        joined = len(self._pending) > 1
        rows = self._room(self._names)
        self._pending, self._names = [], set()
        self._count = self._weight = self.nbytes = 0
        if not joined:
            yield group
            return
        for piece, _ in cut(group, rows, self._bytes_max, self._weigh):
            yield piece

    def _room(self, names: Sized) -> int:
        return rows_of_group(max(len(names), self._width))
