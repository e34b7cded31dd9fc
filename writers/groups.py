"""Cutting a stream of batches into pieces of a useful and bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap import limits
from kcap.model.batch import Batch, concat
from kcap.model.side import Snapshot
from kcap.replay.rebatch import row_bytes

GROUP_BYTES: Final = 64 << 20
"""What the table of a group may take: every column at full length, every text where it stands."""

Weigh = Callable[[Batch], npt.NDArray[np.int64] | None]
"""Says what each row takes; None where that is nothing worth counting."""

ROWS_MIN: Final = 1024
"""Rows of a group, where it is not text that makes it large."""

_LARGE: Final = 4
"""A piece of a quarter of a group is a group of its own: joining it would copy its texts."""


def rows_of_group(columns: int) -> int:
    """How many rows a group may have.

    Args:
        columns: Columns of the table.

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
        rows: Rows of a group.
        bytes_max: What its values may take.
        weigh: Says what they take.
    """

    def __init__(self, rows: int, bytes_max: int = GROUP_BYTES, weigh: Weigh = row_bytes) -> None:
        self._rows = rows
        self._weigh = weigh
        self._bytes_max = bytes_max
        self._pending: list[Batch] = []
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
        if not batch.rows and batch.before:
            self._pending.append(batch)
        for piece, size in cut(batch, self._rows, self._bytes_max, self._weigh):
            large = max(piece.rows * _LARGE / self._rows, size * _LARGE / self._bytes_max) >= 1
            full = self._count + piece.rows > self._rows or self._weight + size > self._bytes_max
            if self._count and (large or full or self.nbytes > self._bytes_max // 2):
                yield from self.end()
            # Waiting batches must not hold the texts of the rows that a filter took away.
            kept = piece if large else piece.compact()
            self._pending.append(kept)
            self._count += piece.rows
            self._weight += size
            if large:
                yield from self.end()
            else:
                self.nbytes += kept.nbytes

    def end(self) -> Iterator[Batch]:
        """Say that nothing more belongs to the group.

        Yields:
            What waits, if anything does.
        """
        if not self._pending:
            return
        group = concat(self._pending)
        joined = len(self._pending) > 1 and group.rows
        self._pending, self._count, self._weight, self.nbytes = [], 0, 0, 0
        if not joined:
            yield group
            return
        # Dictionaries that were small may be large together.
        for piece, _ in cut(group, self._rows, self._bytes_max, self._weigh):
            yield piece
