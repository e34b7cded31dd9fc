"""The different values of a column and which of them each row has; groups of several columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model.batch import Column
from kcap.model.classes import TypeClass

Codes = npt.NDArray[np.int64]

_DENSE: Final = 8
"""So many possible groups a row are counted in a table; of more, those there are get sorted."""

_ITEM_BYTES: Final = {TypeClass.LIST: 4, TypeClass.LIST_BOOL: 1}
_NUMBER_BYTES: Final = 8


class Distinct(NamedTuple):
    """A column's values."""

    entries: pa.Array
    """Each value once, with plain text and bytes; floats and lists of them differ by their bits."""
    codes: Codes
    """The entry of each value."""


class Groups(NamedTuple):
    """Rows that are equal in some columns."""

    codes: list[Codes]
    """One array a column: the code that the rows of each group have there."""
    rows: Codes
    """The group of each row."""

    @property
    def number(self) -> int:
        """How many groups there are."""
        return len(self.codes[0])


def integers(values: npt.NDArray[np.int64]) -> tuple[list[int], Codes]:
    """Find the different values among integers.

    Args:
        values: The integers.

    Returns:
        Each of them once, and which of these each one is.
    """
    if len(values) and values.min() == values.max():  # a tenth of the time
        return [int(values[0])], np.zeros(len(values), np.int64)
    found = pa.array(values).dictionary_encode()
    return found.dictionary.to_pylist(), np.asarray(found.indices).astype(np.int64)


def distinct(column: Column) -> Distinct:
    """Find the different values of a column, without looking at its values one by one.

    Args:
        column: The column.

    Returns:
        Its values; every entry is used.
    """
    values = column.values
    if pa.types.is_dictionary(values.type):
        # A dictionary may serve far more rows than these, and hold an entry twice.
        compact = column.compact().values
        entries = pc.dictionary_encode(compact.dictionary)
        codes = np.asarray(entries.indices)[np.asarray(compact.indices)]
        return Distinct(entries.dictionary, codes.astype(np.int64))
    found = pc.dictionary_encode(_comparable(column))
    codes = np.asarray(found.indices).astype(np.int64)
    first = np.empty(len(found.dictionary), np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return Distinct(values.take(pa.array(first)), codes)


def _comparable(column: Column) -> pa.Array:
    """An array of a type that Arrow can encode, with equal values where the column has."""
    values = column.values
    if column.cls.child:
        return _spelled(values, column.cls)
    if column.cls is TypeClass.F64:
        return values.view(pa.int64())
    return values


def _spelled(values: pa.ListArray, cls: TypeClass) -> pa.Array:
    """Each list as the bytes of its items, those of text as the bytes of their codes."""
    items = values.flatten()
    if cls is TypeClass.LIST:
        items = pc.dictionary_encode(items).indices
    elif cls is TypeClass.LIST_BOOL:
        items = items.cast(pa.uint8())
    width = _ITEM_BYTES.get(cls, _NUMBER_BYTES)
    lengths = np.asarray(pc.list_value_length(values)).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)]) * width
    data = np.ascontiguousarray(np.asarray(items)).view(np.uint8)
    return pa.Array.from_buffers(
        pa.large_binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(data)]
    )


def grouped(codes: Sequence[Codes], sizes: Sequence[int]) -> Groups:
    """Find the rows that are equal in all of some columns.

    Args:
        codes: One array a column, at least one: the code of each row, from 0 on.
        sizes: How many codes a column has.

    Returns:
        The groups that have a row.
    """
    tables: list[Codes] = []
    rows = np.zeros(len(codes[0]), np.int64)
    count = 1
    for column, size in zip(codes, sizes, strict=True):
        pairs = rows * size + column
        if count * size <= _DENSE * len(pairs) + 1024:
            present = np.bincount(pairs, minlength=count * size) > 0
            used = np.flatnonzero(present)
            rows = pairs if len(used) == len(present) else (np.cumsum(present) - 1)[pairs]
        else:
            used, rows = np.unique(pairs, return_inverse=True)
        tables = [table[used // size] for table in tables] + [used % size]
        count = len(used)
    return Groups(tables, rows)
