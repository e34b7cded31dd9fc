"""Re-cutting a stream of batches, so that nothing behind can see how its events arrived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.errors import KcapError
from kcap.model.batch import EMPTY, Batch, Column, concat
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.model.stream import Source, StreamInfo

BATCH_BYTES: Final = 64 << 20
"""What the values of a batch may take; a single row may take more."""

_SMALL_PARTS: Final = 256
"""Parts that are joined while more are awaited: one event a part would cost kilobytes each."""

_LOSSES: Final = 1000
"""Different losses that are kept apart."""

_VALUE_BYTES: Final = {TypeClass.BOOL: 1}
_NUMBER_BYTES: Final = 8
_ENTRY_BYTES: Final = 4
"""What the code of a text, or the offset of a list's item, counts."""


class Rebatcher:
    """Cuts batches anew; what it gives depends on rows and side records alone.

    A batch has as many rows as were asked for, less where the values of the next row would not
    fit, where a snapshot stands, and at the end. Other side records stand before the batch that
    holds their place. Dictionaries hold what is used, once, in the order of first use.

    Args:
        rows: Rows of a batch.
        bytes_max: What the values of a batch of several rows may take, each text counted where
            it stands and not once a dictionary.

    Example:
        >>> rebatcher = Rebatcher(2)
        >>> [b.rows for b in (*rebatcher.add(Batch(5, {})), *rebatcher.end())]
        [2, 2, 1]
    """

    def __init__(self, rows: int = limits.CHUNK_ROWS, bytes_max: int = BATCH_BYTES) -> None:
        assert rows > 0
        self._rows = rows
        self._bytes_max = bytes_max
        self._parts: list[Batch] = []
        self._small: list[Batch] = []
        self._count = 0
        self._bytes = 0
        self._sides: list[tuple[int, Side]] = []

    def add(self, batch: Batch) -> Iterator[Batch]:
        """Take the next batch of the stream.

        Args:
            batch: Events and side records.

        Yields:
            The batches that are complete with it; take them all.
        """
        for side in batch.before:
            if isinstance(side, Snapshot):
                yield from self.cut()
            self._sides.append((self._count, side))
        ends = np.cumsum(row_bytes(batch))
        start = 0
        while start < batch.rows:
            taken = int(ends[start - 1]) if start else 0
            room = self._bytes_max - self._bytes
            fitting = int(np.searchsorted(ends, taken + room, "right")) - start
            if not self._count:
                fitting = max(fitting, 1)
            stop = min(start + min(fitting, self._rows - self._count), batch.rows)
            if stop <= start:
                yield from self.cut()
                continue
            self._append(batch.slice(start, stop), int(ends[stop - 1]) - taken)
            start = stop
            if self._count == self._rows:
                yield from self.cut()

    def cut(self) -> Iterator[Batch]:
        """End the batch here.

        Yields:
            The rows so far, if there are any.
        """
        if not self._count:
            return
        self._join()
        batch = canonical(concat(self._parts))
        before = [side for at, side in self._sides if at < self._count]
        self._sides = [(0, side) for at, side in self._sides if at >= self._count]
        self._parts, self._count, self._bytes = [], 0, 0
        yield batch.with_before(before)

    def end(self) -> Iterator[Batch]:
        """Say that nothing follows.

        Yields:
            The last batch, empty where only side records are left.
        """
        self._sides = [(-1, side) for _, side in self._sides]
        yield from self.cut()
        sides, self._sides = self._sides, []
        if sides:
            yield EMPTY.with_before([side for _, side in sides])

    def _append(self, part: Batch, size: int) -> None:
        self._small.append(part.with_before(()))
        self._count += part.rows
        self._bytes += size
        if len(self._small) == _SMALL_PARTS:
            self._join()

    def _join(self) -> None:
        if self._small:
            self._parts.append(concat(self._small))
            self._small = []


class Rebatched:
    """Another source's events in batches of a given number of rows.

    Args:
        source: The source.
        rows: Rows of a batch.
        bytes_max: As for `Rebatcher`.
    """

    def __init__(
        self, source: Source, rows: int = limits.CHUNK_ROWS, bytes_max: int = BATCH_BYTES
    ) -> None:
        self._source = source
        self._rebatcher = Rebatcher(rows, bytes_max)

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        try:
            for batch in self._source.batches():
                yield from self._rebatcher.add(batch)
        except KcapError:
            # What came before the error is delivered, as without re-cutting.
            yield from self._rebatcher.end()
            raise
        yield from self._rebatcher.end()

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()


class Reproducible:
    """Another source's events, without what tells when and from where they came.

    For captures that are to be equal byte by byte: losses, which a reader tells batch by batch,
    stand at the end, added up; the names of files are left out of what describes the sources.

    Args:
        source: The source.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._losses: dict[Loss, Loss] = {}

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        info = self._source.info
        return replace(info, sources=tuple(map(_without_file, info.sources)))

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for batch in self._source.batches():
            kept: list[Side] = []
            for side in batch.before:
                if isinstance(side, Loss):
                    self._lose(side)
                else:
                    kept.append(_without_file(side) if isinstance(side, SourceInfo) else side)
            yield batch.with_before(kept)
        if self._losses:
            yield EMPTY.with_before([self._losses[key] for key in sorted(self._losses, key=repr)])

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()

    def _lose(self, loss: Loss) -> None:
        if loss.like not in self._losses and len(self._losses) >= _LOSSES:
            loss = replace(loss, event=None, cpu=None, source=None, reason="and others")
        known = self._losses.get(loss.like)
        self._losses[loss.like] = loss if known is None else known.plus(loss)


def _without_file(source: SourceInfo) -> SourceInfo:
    details = {name: value for name, value in source.details.items() if name != "file"}
    return replace(source, details=details)


def row_bytes(batch: Batch) -> npt.NDArray[np.int64]:
    """What the values of each row take, told by the values alone.

    Args:
        batch: The events.

    Returns:
        Bytes, one figure a row: 8 a number, 1 a boolean, a text its length and 4, a list what
        its items take and 4.
    """
    sizes = np.zeros(batch.rows, np.int64)
    for column in batch.columns.values():
        at = slice(None) if column.rows is None else column.rows
        sizes[at] += _value_bytes(column)
    return sizes


def _value_bytes(column: Column) -> npt.NDArray[np.int64] | int:
    """What each value of a column takes."""
    if column.cls.child:
        values = column.values
        ends = np.asarray(values.offsets).astype(np.int64)
        items = values.values
        if column.cls is TypeClass.LIST:
            each = np.asarray(pc.binary_length(items)).astype(np.int64) + _ENTRY_BYTES
            total = np.concatenate([[0], np.cumsum(each)])[ends]
        else:
            total = ends * _VALUE_BYTES.get(column.cls.child, _NUMBER_BYTES)
        return np.asarray(np.diff(total) + _ENTRY_BYTES)
    if pa.types.is_dictionary(column.values.type):
        lengths = np.asarray(pc.binary_length(column.values.dictionary)).astype(np.int64)
        return np.asarray(lengths[column.codes()] + _ENTRY_BYTES)
    return _VALUE_BYTES.get(column.cls, _NUMBER_BYTES)


def canonical(batch: Batch) -> Batch:
    """The batch in a form that depends on its values alone.

    Args:
        batch: Any batch.

    Returns:
        The same rows: columns by name, none without a value, and dictionaries that hold what is
        used, once, in the order of first use.
    """
    columns = {}
    for name in sorted(batch.columns):
        column = batch.columns[name]
        if not len(column):
            continue
        rows = None if len(column) == batch.rows else column.rows
        values = column.values
        if pa.types.is_dictionary(values.type):
            values = _by_first_use(values)
        columns[name] = Column(column.cls, values, rows)
    return Batch(batch.rows, columns, batch.before)


def _by_first_use(values: pa.DictionaryArray) -> pa.DictionaryArray:
    codes = np.asarray(values.indices)
    first = np.full(len(values.dictionary), len(codes), np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # of equal codes the last one stays
    used = np.flatnonzero(first < len(codes))
    used = used[np.argsort(first[used])]
    # A dictionary may hold an entry twice; encoding keeps the first of them.
    entries = pc.dictionary_encode(values.dictionary.take(pa.array(used)))
    rank = np.zeros(len(first), np.int32)
    rank[used] = np.asarray(entries.indices)
    return pa.DictionaryArray.from_arrays(pa.array(rank[codes]), entries.dictionary)
