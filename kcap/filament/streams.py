"""The values of a filament's keys, made of a batch's columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.filament.dicts import ENTRIES, LIST, NUMBERS, Packed
from kcap.model.batch import Batch, Rows
from kcap.model.classes import TypeClass

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_NONE: Final = -1


class Stream(NamedTuple):
    """The values of one key."""

    key: str
    packed: Packed
    rows: Rows | None = None
    """The rows that have a value; None when all have."""


def numbers(batch: Batch, columns: Iterable[str]) -> tuple[Int64s, Mask]:
    """Find the first number that each row has among some columns.

    Args:
        batch: Events.
        columns: The columns, the best first.

    Returns:
        The numbers, one a row, and which rows have one.
    """
    values = np.zeros(batch.rows, np.int64)
    has = np.zeros(batch.rows, np.bool_)
    for name in columns:
        column = batch.get(name)
        if column is None or column.cls is not TypeClass.I64:
            continue
        rows = np.arange(batch.rows) if column.rows is None else column.rows
        free = ~has[rows]
        values[rows[free]] = np.asarray(column.values)[free]
        has[rows] = True
    return values, has


def texts(batch: Batch, columns: Iterable[str]) -> tuple[list[str], Int64s]:
    """Find the first text that each row has among some columns.

    Args:
        batch: Events.
        columns: The columns, the best first.

    Returns:
        Texts, and which of them each row has; -1 for none.
    """
    entries: list[str] = []
    codes = np.full(batch.rows, _NONE, np.int64)
    for name in columns:
        column = batch.get(name)
        if column is None or column.cls is not TypeClass.STR:
            continue
        rows = np.arange(batch.rows) if column.rows is None else column.rows
        free = codes[rows] == _NONE
        if free.any():
            compact = column.compact()
            codes[rows[free]] = compact.codes()[free] + len(entries)
            entries += compact.values.dictionary.to_pylist()
    return entries, codes


def complete(batch: Batch, *columns: str) -> tuple[list[str], Int64s]:
    """Find a text for every row.

    Args:
        batch: Events.
        columns: The columns that may have it, the best first.

    Returns:
        Texts, and which of them each row has; the last, which is empty, stands for none.
    """
    entries, codes = texts(batch, columns)
    codes[codes == _NONE] = len(entries)
    return [*entries, ""], codes


def entries_of(entries: Sequence[Any], codes: npt.NDArray[np.integer[Any]]) -> Packed:
    """Pack a few different values.

    Args:
        entries: The values.
        codes: Which of them stands at each place.

    Returns:
        The column.
    """
    return Packed(ENTRIES, list(entries), codes.astype(np.int32).tobytes())


def numbers_of(values: Int64s, has: Mask) -> Packed:
    """Pack numbers.

    Args:
        values: The numbers.
        has: Where there is one; None stands elsewhere.

    Returns:
        The column.
    """
    if has.all():
        return Packed(NUMBERS, values.tobytes(), "q")
    found = values.astype(object)
    found[~has] = None
    return Packed(LIST, found.tolist())


def rows_of(has: Mask) -> Rows | None:
    """Write down which rows have a value.

    Args:
        has: One entry a row.

    Returns:
        Their numbers, None for all.
    """
    return None if has.all() else np.flatnonzero(has).astype(np.int32)
