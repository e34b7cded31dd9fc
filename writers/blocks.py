"""Batches in pieces whose text stays small: what bounds the memory of a text writer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap import limits
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass

BLOCK_BYTES: Final = 8 << 20
"""About how much text is made at a time: what bounds the memory of a text writer."""

_NUMBER_BYTES: Final = 24


def of(batch: Batch) -> Iterator[Batch]:
    """Cut a batch so that the text of each piece stays small.

    Args:
        batch: Any batch.

    Yields:
        The pieces in order, each of at least one row.
    """
    if _is_small(batch):
        yield batch
        return
    ends = np.cumsum(_text_bytes(batch))
    start = 0
    while start < batch.rows:
        done = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, done + BLOCK_BYTES, "right"))
        stop = max(stop, start + 1)
        yield batch.slice(start, stop)
        start = stop


def _is_small(batch: Batch) -> bool:
    """Whether a batch, as a live one has them, is certainly one piece: a look that costs little."""
    if not batch.rows:
        return False
    most = batch.rows * _NUMBER_BYTES
    for name, column in batch.columns.items():
        values = column.values
        if pa.types.is_dictionary(values.type):
            entry = min(values.dictionary.nbytes, limits.VALUE_BYTES)
        elif pa.types.is_list(values.type):
            return False
        else:
            entry = _NUMBER_BYTES
        most += len(values) * (entry + len(name) + 4)
        if most > BLOCK_BYTES:
            return False
    return True


def _text_bytes(batch: Batch) -> npt.NDArray[np.int64]:
    """About how long the text of each row is, before anything is escaped."""
    out = np.full(batch.rows, _NUMBER_BYTES, np.int64)
    for name, column in batch.columns.items():
        where = slice(None) if column.rows is None else column.rows
        out[where] += _value_bytes(column) + len(name) + 4
    return out


def _value_bytes(column: Column) -> npt.NDArray[np.int64] | int:
    """About how long the text of each value is."""
    values = column.values
    if pa.types.is_dictionary(values.type):
        lengths = np.asarray(pc.binary_length(values.dictionary), np.int64)
        return np.take(lengths, column.codes())
    if not pa.types.is_list(values.type):
        return _NUMBER_BYTES
    items = np.asarray(pc.list_value_length(values), np.int64)
    if column.cls.child is not TypeClass.STR:
        return items * _NUMBER_BYTES
    lengths = np.asarray(pc.binary_length(values.flatten()), np.int64)
    totals = np.concatenate([[0], np.cumsum(lengths + 4)])
    stops = np.cumsum(items)
    sizes: npt.NDArray[np.int64] = totals[stops] - totals[stops - items]
    return sizes
