"""The arguments of events for text writers: whose column is whose, and what its numbers say."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from kcap.model import catalogue, decode, naming, text
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.kinds import Kinds
from kcap.writers import fragments
from kcap.writers.fragments import Texts

INTEGERS: Final = frozenset({TypeClass.I64, TypeClass.U64})
"""Classes whose numbers may stand for names."""


class Argument(NamedTuple):
    """A column that holds an argument."""

    name: str
    """The source's own name, as valid text."""
    occurrence: int
    """Which of several arguments of that name."""
    column: str
    """The column."""


def value_base(column: str) -> str | None:
    """The base of a column with values of its own.

    Args:
        column: A column's name.

    Returns:
        Its name without class; None for what only stands beside a value.
    """
    base, suffixes = naming.parts(column)
    return None if naming.RAW in suffixes or naming.SIZE in suffixes else base


def is_column(name: str) -> bool:
    """Whether a capture may have such a column.

    Args:
        name: A name, without class for columns of any class.

    Returns:
        True for those of all events, for arguments and for what sources have beside them.
    """
    base, _ = naming.parts(name)
    prefix = base.partition("_")[0]
    known = base in catalogue.envelope() or prefix in (naming.ARGUMENT, naming.EXTENSION)
    return known and naming.class_of(name, TypeClass.STR) is not None


def spellings(batch: Batch, name: str) -> list[str]:
    """The columns that a name may stand for.

    Args:
        batch: Events.
        name: A column's name; without a class it stands for columns of any class.

    Returns:
        Those that the batch has, by name.
    """
    if "__" in name:
        return [name] if name in batch.columns else []
    return sorted(n for n in batch.columns if n == name or value_base(n) == name)


def found(batch: Batch) -> list[Argument]:
    """The arguments that events have.

    Args:
        batch: The events.

    Returns:
        A column each, by name.
    """
    out = []
    for column in batch.columns:
        base = value_base(column)
        if base is None or base.partition("_")[0] != naming.ARGUMENT:
            continue
        occurrence = next((int(s) for s in naming.parts(column)[1] if s.isdecimal()), 1)
        out.append(Argument(source_name(base), occurrence, column))
    return sorted(out)


@cache
def source_name(base: str) -> str:
    """The source's own name of an argument.

    Args:
        base: The column's name without class.

    Returns:
        The name as valid text.
    """
    return text.clean(naming.source_name(base))[0]


def argument_of(column: str) -> str | None:
    """The argument that a column holds.

    Args:
        column: The column's name.

    Returns:
        The source's own name, None for another column.
    """
    base, _ = naming.parts(column)
    return source_name(base) if base.startswith(f"{naming.ARGUMENT}_") else None


def texts(argument: str | None, kinds: Kinds, column: Column) -> Texts:
    """Render a column for people, an argument's numbers as their events have it.

    Args:
        argument: The argument's name, None for a column that holds none.
        kinds: Of the events.
        column: The column.

    Returns:
        Its texts, safe on a terminal.
    """
    if argument is None or (column.cls.child or column.cls) not in INTEGERS or not len(column):
        return decoded("", column)
    decoders, codes = kinds.decoders(argument, column)
    if len(decoders) == 1:
        return decoded(decoders[0], column)
    entries, ids = [], np.empty(len(column), np.int32)
    first = 0
    for place, decoder in enumerate(decoders):
        at = np.flatnonzero(codes == place)
        part = Column(column.cls, column.values.take(pa.array(at)))
        made = decoded(decoder, part)
        entries.append(made.entries)
        ids[at] = first + (np.arange(len(at)) if made.codes is None else made.codes)
        first += len(made.entries)
    return Texts(pa.concat_arrays(entries), ids)


def decoded(decoder: str, column: Column, separator: str = ", ") -> Texts:
    """Render a column for people, its numbers with one decoder.

    Args:
        decoder: The decoder, empty for none.
        column: The column.
        separator: What stands between the items of a list.

    Returns:
        Its texts, safe on a terminal.
    """
    return fragments.render(column, partial(_plain, decoder), separator)


def _plain(decoder: str, cls: TypeClass, values: pa.Array) -> pa.Array:
    """Render values of a class as plain text."""
    if cls in (TypeClass.STR, TypeClass.JSON):
        return fragments.escape_unsafe(values, values, text.printable)
    if cls is TypeClass.BIN:
        return fragments.base64_texts(values)
    if cls in INTEGERS and decode.known(decoder):
        return decode.texts_of(decoder, values)
    return fragments.number_texts(values)


def append_first(
    lines: fragments.LineBuilder,
    rows: int,
    columns: Iterable[tuple[Column, Texts]],
    placeholder: int,
) -> None:
    """Append to each line the first value that it has.

    Args:
        lines: The lines.
        rows: How many there are.
        columns: Columns and their texts, the best first.
        placeholder: The constant for lines that none of them has a value for.
    """
    missing = np.ones(rows, np.bool_)
    for column, rendered in columns:
        at = np.arange(rows, dtype=np.int32) if column.rows is None else column.rows
        wanted = missing[at]
        if wanted.all():
            lines.append_texts(rendered, column.rows)
        elif wanted.any():
            lines.append_texts(rendered.select(wanted), at[wanted])
        missing[at] = False
        if not missing.any():
            return
    lines.append(placeholder, np.flatnonzero(missing).astype(np.int32))
