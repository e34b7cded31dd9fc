"""A Batch: events as columns, the one currency between readers, stages and writers.

A column holds only the values there are, and which rows have one. Most argument columns are
sparse, so this costs what the values cost however many columns there are; a full-length Arrow
array, with nulls, is made when somebody asks for one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.model.classes import TypeClass
from kcap.model.entries import unified
from kcap.model.side import Side

Rows = npt.NDArray[np.int32]
"""Ascending row numbers."""

_ZEROS: Final = np.zeros(limits.CHUNK_ROWS, np.int32)
"""The codes of text that never changes: a third of all columns share them."""
_ZEROS.flags.writeable = False

_RANGE_ROWS: Final = 2048
"""From so many rows on, on the average, ranges are copied as such instead of row by row."""

_NUMBERS: Final = frozenset({TypeClass.I64, TypeClass.U64, TypeClass.F64})
_NUMBER_BYTES, _CODE_BYTES = 8, 4


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one column."""

    cls: TypeClass
    values: pa.Array
    """The values there are, in row order, of the class's Arrow type, without nulls."""
    rows: Rows | None = None
    """The rows that have a value; None when all have."""

    def __len__(self) -> int:
        """The number of values."""
        return len(self.values)

    def full(self, count: int) -> pa.Array:
        """The column at full length.

        Args:
            count: Rows of the batch.

        Returns:
            An array of ``count`` rows, null where the row has no value.
        """
        if self.rows is None:
            return self.values
        if len(self.values) == 0:
            return pa.nulls(count, self.cls.arrow)
        present = np.zeros(count, np.bool_)
        present[self.rows] = True
        if pa.types.is_dictionary(self.cls.arrow):
            codes = _scattered(pa.array(self.codes()), self.rows, present)
            return pa.DictionaryArray.from_arrays(codes, self.values.dictionary, safe=False)
        if self.cls in _NUMBERS:
            return _scattered(self.values, self.rows, present)
        at = np.zeros(count, np.int32)
        at[self.rows] = np.arange(len(self.rows), dtype=np.int32)
        return self.values.take(pa.array(at, mask=~present))

    def take(self, wanted: Rows, count: int) -> Column | None:
        """The column for some of the rows.

        Args:
            wanted: Ascending row numbers to keep.
            count: Rows of the batch.

        Returns:
            The column over the kept rows, None where none of them has a value.
        """
        if self.rows is None:
            if not len(wanted):
                return None
            if pa.types.is_dictionary(self.values.type) and len(self.values.dictionary) == 1:
                codes, entries = _zeros(len(wanted)), self.values.dictionary
                values = pa.DictionaryArray.from_arrays(codes, entries, safe=False)
                return Column(self.cls, values)
            return Column(self.cls, self.values.take(pa.array(wanted)))
        position = np.full(count, -1, np.int32)
        position[self.rows] = np.arange(len(self.rows), dtype=np.int32)
        found = position[wanted]
        kept = np.flatnonzero(found >= 0).astype(np.int32)
        if not len(kept):
            return None
        rows = None if len(kept) == len(wanted) else kept
        return Column(self.cls, self.values.take(pa.array(found[kept])), rows)

    def slice(self, start: int, stop: int) -> Column | None:
        """The column for a range of rows, without a copy.

        Args:
            start: First row.
            stop: Row after the last.

        Returns:
            The column over the range, None where no row of it has a value.
        """
        if start == stop:
            return None
        if self.rows is None:
            return Column(self.cls, self.values.slice(start, stop - start))
        low, high = (int(i) for i in np.searchsorted(self.rows, [start, stop]))
        if low == high:
            return None
        rows = self.rows[low:high] - np.int32(start)
        values = self.values.slice(low, high - low)
        return Column(self.cls, values, None if len(rows) == stop - start else rows)

    def codes(self) -> npt.NDArray[np.int32]:
        """Dictionary codes of a text or binary column, one a value."""
        return np.asarray(self.values.indices)

    def compact(self) -> Column:
        """The column with a dictionary of just the entries it uses, if it has one."""
        if not pa.types.is_dictionary(self.values.type):
            return self
        codes = self.codes()
        used = np.zeros(len(self.values.dictionary), np.bool_)
        used[codes] = True
        if used.all():
            return self
        entries = self.values.dictionary.filter(pa.array(used))
        renumbered = (np.cumsum(used) - 1).astype(np.int32)
        codes32 = pa.array(renumbered[codes])
        return Column(self.cls, pa.DictionaryArray.from_arrays(codes32, entries), self.rows)


def _scattered(values: pa.Array, rows: Rows, present: npt.NDArray[np.bool_]) -> pa.Array:
    """Numbers at their rows, null elsewhere; half the time of Arrow's ``take`` with nulls."""
    dense = np.asarray(values)
    out = np.zeros(len(present), dense.dtype)
    out[rows] = dense
    valid = pa.py_buffer(np.packbits(present, bitorder="little"))
    buffers = [valid, pa.py_buffer(out)]
    return pa.Array.from_buffers(values.type, len(out), buffers, len(out) - len(rows))


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive events of one stream."""

    rows: int
    columns: Mapping[str, Column]
    before: tuple[Side, ...] = field(default=())
    """What the stream says before the first of these events."""

    def __len__(self) -> int:
        """The number of events."""
        return self.rows

    @property
    def names(self) -> Collection[str]:
        """The columns there are."""
        return self.columns.keys()

    def get(self, name: str) -> Column | None:
        """A column, None where no event has a value.

        Args:
            name: The column's name.

        Returns:
            The column.
        """
        return self.columns.get(name)

    def array(self, name: str) -> pa.Array:
        """A column at full length.

        Args:
            name: The column's name.

        Returns:
            An array of ``rows`` values, null where there is none; type null for an absent column.
        """
        column = self.columns.get(name)
        return pa.nulls(self.rows) if column is None else column.full(self.rows)

    def numpy(self, name: str, missing: int) -> npt.NDArray[np.int64]:
        """An integer column at full length as numpy.

        Args:
            name: The column's name.
            missing: What stands for a missing value.

        Returns:
            An int64 array of ``rows`` values.
        """
        out = np.full(self.rows, missing, np.int64)
        column = self.columns.get(name)
        if column is not None:
            values = np.asarray(column.values)
            out[slice(None) if column.rows is None else column.rows] = values
        return out

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """Which rows have a value.

        Args:
            name: The column's name.

        Returns:
            A boolean array of ``rows`` values.
        """
        out = np.zeros(self.rows, np.bool_)
        column = self.columns.get(name)
        if column is not None:
            out[slice(None) if column.rows is None else column.rows] = True
        return out

    def select(self, names: Iterable[str]) -> Batch:
        """The batch with only some columns.

        Args:
            names: The columns to keep; unknown ones are left out.

        Returns:
            A batch of the same rows.
        """
        kept = {n: self.columns[n] for n in names if n in self.columns}
        return Batch(self.rows, kept, self.before)

    def adding(self, columns: Mapping[str, Column]) -> Batch:
        """The batch with more, or other, columns.

        Args:
            columns: Columns to add or to put in place of those of the same name.

        Returns:
            A batch of the same rows.
        """
        return Batch(self.rows, {**self.columns, **columns}, self.before)

    def with_before(self, before: Sequence[Side]) -> Batch:
        """The batch with other side records.

        Args:
            before: The side records.

        Returns:
            A batch of the same rows and columns.
        """
        return Batch(self.rows, self.columns, tuple(before))

    def slice(self, start: int, stop: int) -> Batch:
        """A range of rows, without a copy; side records stay with the first row.

        Args:
            start: First row.
            stop: Row after the last; both may lie beyond the end.

        Returns:
            The batch over the range.
        """
        stop = min(stop, self.rows)
        start = min(start, stop)
        if start == 0 and stop == self.rows:
            return self
        parts = {n: c.slice(start, stop) for n, c in self.columns.items()}
        kept = {n: c for n, c in parts.items() if c is not None}
        return Batch(stop - start, kept, self.before if start == 0 else ())

    def take(self, wanted: Rows) -> Batch:
        """Some of the rows.

        Args:
            wanted: Ascending row numbers to keep.

        Returns:
            The batch over the kept rows, side records included.
        """
        # (Some ask for another order: ends that fit are not enough.)
        breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
        # What begins or ends with other rows needs no copy; of a small part it frees the rest.
        if not len(breaks) and 2 * len(wanted) > self.rows:
            first = int(wanted[0])
            return self.slice(first, first + len(wanted)).with_before(self.before)
        if 0 < len(breaks) <= len(wanted) // _RANGE_ROWS:
            ranges = pairwise([0, *breaks.tolist(), len(wanted)])
            found = [self.slice(int(wanted[a]), int(wanted[b - 1]) + 1) for a, b in ranges]
            return concat(found).with_before(self.before)
        parts = {n: c.take(wanted, self.rows) for n, c in self.columns.items()}
        kept = {n: c for n, c in parts.items() if c is not None}
        return Batch(len(wanted), kept, self.before)

    def compact(self) -> Batch:
        """The batch with dictionaries of just the entries in use."""
        return Batch(self.rows, {n: c.compact() for n, c in self.columns.items()}, self.before)

    @property
    def nbytes(self) -> int:
        """Bytes of values and dictionaries, what a chunk of them would decode to at most."""
        total = 0
        for column in self.columns.values():
            # By its class: to add up the buffers of a column of numbers takes ten times as long.
            if column.cls in _NUMBERS:
                total += _NUMBER_BYTES * len(column.values)
            elif isinstance(column.values, pa.DictionaryArray):
                total += _CODE_BYTES * len(column.values) + 2 * column.values.dictionary.nbytes
            else:
                total += column.values.nbytes
            if column.rows is not None:
                total += column.rows.nbytes
        return total

    def to_arrow(self, names: Sequence[str] | None = None) -> pa.RecordBatch:
        """The logical table.

        Args:
            names: The columns wanted, in order; all, by name, where None.

        Returns:
            A record batch at full length; a column that no event has is of type null.
        """
        names = sorted(self.columns) if names is None else names
        return pa.RecordBatch.from_arrays([self.array(n) for n in names], names=list(names))

    def to_pylist(self) -> list[dict[str, object]]:
        """The events as dicts of the values they have; for tests and small results."""
        out: list[dict[str, object]] = [{} for _ in range(self.rows)]
        for name in sorted(self.columns):
            column = self.columns[name]
            at = range(self.rows) if column.rows is None else column.rows.tolist()
            for row, value in zip(at, column.values.to_pylist(), strict=True):
                out[row][name] = value
        return out


EMPTY: Final = Batch(0, {})
"""A batch of no events."""


def without_state(batch: Batch) -> Batch:
    """Leave out the rows that only describe what was there.

    Args:
        batch: Any batch.

    Returns:
        The rows whose ``kind`` is not ``state``.
    """
    rows = state_rows(batch)
    if not len(rows):
        return batch
    keep = np.ones(batch.rows, np.bool_)
    keep[rows] = False
    return batch.take(np.flatnonzero(keep).astype(np.int32))


def state_rows(batch: Batch) -> Rows:
    """Find the rows that only describe what was there.

    Args:
        batch: Any batch.

    Returns:
        The numbers of those whose ``kind`` is ``state``, ascending.
    """
    kind = batch.get("kind")
    if kind is None or kind.cls is not TypeClass.STR:
        return np.zeros(0, np.int32)
    found = np.asarray(
        pc.equal(kind.values.dictionary, pa.scalar("state", pa.utf8())).to_numpy(
            zero_copy_only=False
        )
    )
    if not found.any():
        return np.zeros(0, np.int32)
    at = np.flatnonzero(found[kind.codes()]).astype(np.int32)
    return at if kind.rows is None else kind.rows[at]


def dictionary(values: pa.Array) -> pa.DictionaryArray:
    """Dictionary-code a plain text or binary array.

    Args:
        values: A utf8 or binary array without nulls.

    Returns:
        The array with int32 codes.
    """
    return pc.dictionary_encode(values)


def constant(cls: TypeClass, value: object, count: int) -> Column:
    """A column that holds one value in every row.

    Args:
        cls: Its class.
        value: The value.
        count: Rows of the batch.

    Returns:
        The column.
    """
    if pa.types.is_dictionary(cls.arrow):
        entries = pa.array([value], cls.arrow.value_type)
        return Column(cls, pa.DictionaryArray.from_arrays(_zeros(count), entries, safe=False))
    if cls in _NUMBERS:
        return Column(cls, pa.array(np.full(count, value, cls.arrow.to_pandas_dtype())))
    return Column(cls, pa.array([value] * count, cls.arrow))


def _zeros(count: int) -> pa.Array:
    return pa.array(_ZEROS[:count] if count <= len(_ZEROS) else np.zeros(count, np.int32))


def coded(texts: Sequence[str | None], codes: npt.NDArray[np.integer[Any]]) -> Column | None:
    """A text column out of a few texts and which of them each row has.

    Args:
        texts: The texts, None for no value; equal ones become one dictionary entry.
        codes: Index into ``texts``, one a row.

    Returns:
        The column, None where no row has a value.
    """
    entries = {text: i for i, text in enumerate(sorted({t for t in texts if t is not None}))}
    entry = np.array([-1 if t is None else entries[t] for t in texts] or [-1], np.int32)[codes]
    rows = np.flatnonzero(entry >= 0).astype(np.int32)
    if not len(rows):
        return None
    found = pa.array(list(entries), pa.utf8())
    values = pa.DictionaryArray.from_arrays(pa.array(entry[rows]), found)
    return Column(TypeClass.STR, values, None if len(rows) == len(entry) else rows)


def concat(batches: Sequence[Batch]) -> Batch:
    """Batches one after another as one.

    Args:
        batches: Batches in stream order.

    Returns:
        One batch; the side records of all stand before it.
    """
    if len(batches) == 1:
        return batches[0]
    starts = np.cumsum([0] + [b.rows for b in batches])
    total = int(starts[-1])
    names = sorted({n for b in batches for n in b.columns})
    columns = {}
    for name in names:
        found = [
            (int(s), b.rows, b.columns[name])
            for s, b in zip(starts, batches, strict=False)
            if name in b.columns
        ]
        columns[name] = _concat_column(found, total)
    before = tuple(side for b in batches for side in b.before)
    return Batch(total, columns, before)


def _concat_coded(parts: Sequence[pa.DictionaryArray]) -> pa.DictionaryArray:
    """Dictionary-coded values one after another; a fifth of the time that Arrow takes."""
    first = parts[0].dictionary
    others = [part.dictionary for part in parts[1:]]
    alike = all(entries is first or entries.equals(first) for entries in others)
    if alike and len(first) == 1:
        return pa.DictionaryArray.from_arrays(_zeros(sum(map(len, parts))), first, safe=False)
    codes = [np.asarray(part.indices) for part in parts]
    if not alike:
        every = [first, *others]
        first, number = unified(pa.concat_arrays(every))
        starts = np.cumsum([0] + [len(entries) for entries in every])
        codes = [number[start:][part] for start, part in zip(starts, codes, strict=False)]
    return pa.DictionaryArray.from_arrays(pa.array(np.concatenate(codes)), first, safe=False)


def _concat_column(found: list[tuple[int, int, Column]], total: int) -> Column:
    """One column out of (first row, rows, column) of the batches that have it."""
    cls = found[0][2].cls
    parts = [column.values for _, _, column in found]
    values = _concat_coded(parts) if pa.types.is_dictionary(cls.arrow) else pa.concat_arrays(parts)
    if len(values) == total:
        return Column(cls, values)
    rows = [
        np.arange(start, start + count, dtype=np.int32)
        if c.rows is None
        else c.rows + np.int32(start)
        for start, count, c in found
    ]
    return Column(cls, values, np.concatenate(rows))
