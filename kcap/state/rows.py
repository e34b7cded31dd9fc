"""Tables of the state as they stand in a snapshot: named tuples to columns and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from kcap.errors import DamagedError
from kcap.model.batch import EMPTY, Batch, Column
from kcap.model.builder import Field, columns_of
from kcap.model.classes import TypeClass

MACHINE: Final = "machine"
"""The first column of every table: the machine that the row belongs to."""

_OTHER: Final = {TypeClass.I64: TypeClass.U64, TypeClass.U64: TypeClass.I64}
"""Integers from 2**63 on are of class u64, others of i64: the class of those not at home."""


def to_batch(
    classes: Mapping[str, TypeClass], tables: Iterable[tuple[str, Sequence[Sequence[Any]]]]
) -> Batch:
    """Rows of a table as columns.

    Args:
        classes: The table's columns behind `MACHINE`, in the order of a row's fields.
        tables: Machines and their rows, these in the order that they shall have.

    Returns:
        One row for each, ordered by machine.
    """
    rows = [
        (machine, *fields)
        for machine, found in sorted(tables, key=lambda t: t[0])
        for fields in found
    ]
    if not rows:
        return EMPTY
    every = np.arange(len(rows), dtype=np.int32)
    columns: dict[str, Column] = {}
    named = {MACHINE: TypeClass.STR, **classes}
    for (name, cls), values in zip(named.items(), zip(*rows, strict=True), strict=True):
        made, _ = columns_of(Field(name, cls), every, values, len(rows))
        columns |= made
    return Batch(len(rows), columns)


def from_batch(
    classes: Mapping[str, TypeClass], batch: Batch, what: str, key: int
) -> dict[str, list[list[Any]]]:
    """Read what `to_batch` made.

    Args:
        classes: The table's columns, as there.
        batch: The columns; those that the table does not have are ignored.
        what: What a row is, for errors: ``handle``.
        key: How many of the first fields name a row: each must have a value.

    Returns:
        Machine to the fields of its rows.

    Raises:
        DamagedError: A column has another class than it must, or a row lacks what names it.
    """
    lists: list[list[Any]] = []
    for name, cls in {MACHINE: TypeClass.STR, **classes}.items():
        column = batch.get(name)
        if column is not None and column.cls is not cls:
            raise DamagedError(
                f"column {name} of the {what} table is of class {column.cls}", expected=cls
            )
        values = batch.array(name).to_pylist()
        other = batch.get(f"{name}__{_OTHER[cls]}") if cls in _OTHER else None
        if other is not None:
            more = other.full(batch.rows).to_pylist()
            values = [a if b is None else b for a, b in zip(values, more, strict=True)]
        lists.append(values)
    found: dict[str, list[list[Any]]] = {}
    for machine, *fields in zip(*lists, strict=True):
        if None in fields[:key]:
            names = " or no ".join(name.replace("_", " ") for name in list(classes)[:key])
            raise DamagedError(f"a row of the {what} table has no {names}")
        found.setdefault(machine or "", []).append(fields)
    return found
