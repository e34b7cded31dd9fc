"""What a filter says of events, row by row: written from what `kcap.filter.fields` promises.

Nothing of the columnar engine is used: no dictionaries, no masks, no pruning. A row is a dict of
the columns in which it has a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pyarrow as pa

from kcap.filter import Filter, derive
from kcap.filter.check import Resolved
from kcap.filter.fields import Source
from kcap.filter.interpret import holds
from kcap.filter.syntax import FieldRef
from kcap.filter.values import Named
from kcap.model import catalogue, decode, naming
from kcap.model.batch import Batch, Column, dictionary
from kcap.model.classes import TypeClass
from kcap.model.side import SourceInfo

Row = Mapping[str, Any]

FAMILY = "tracee"
SOURCE = SourceInfo(FAMILY, host="host", boot_id="boot", origin="0c" * 16)


def families_of(batch: Batch) -> dict[str, str]:
    """The programs that recorded a batch, by source."""
    return {s.id: s.collector for s in batch.before if isinstance(s, SourceInfo)}


def rows(chosen: Filter, batch: Batch) -> list[int]:
    """The events for which a filter is true."""
    families = families_of(batch)
    found = []
    fields = chosen.checked.fields
    for number, row in enumerate(batch.to_pylist()):
        if holds(chosen.checked.expr, _lookup(row, fields, families)):
            found.append(number)
    return found


def _lookup(
    row: Row, fields: Mapping[FieldRef, Resolved], families: Mapping[str, str]
) -> Callable[[FieldRef], Any]:
    return lambda ref: field(row, fields[ref], families)


def field(row: Row, resolved: Resolved, families: Mapping[str, str]) -> Any:
    """The value of a field: that of the first source that has one."""
    for source in resolved.field.sources:
        value = _through(_value(row, source, families), source, row)
        if value is None:
            continue
        if resolved.key:
            value = derive.picked(resolved.key, resolved.field.name, resolved.field.era, value)
        elif resolved.field.type == "map":
            value = derive.listed(value)
        if value is not None:
            return value
    return None


def _value(row: Row, source: Source, families: Mapping[str, str]) -> Any:
    if source.when is not None:
        met = row.get(source.when.column) in source.when.values
        if met == source.when.unless:
            return None
    prefix, _, name = source.column.partition(":")
    if prefix not in ("arg", "ext"):
        return _plain(row.get(source.column))
    base = (naming.argument if prefix == "arg" else naming.extension)(name)
    for column, value in row.items():
        if _base(column) != base:
            continue
        number = type(value) is int and prefix == "arg"
        if number and source.function in derive.OF_NAMED:
            return _named(row, name, value, families)
        return _plain(value)
    return None


@cache
def _base(column: str) -> str:
    return naming.parts(column)[0]


def _named(row: Row, argument: str, number: int, families: Mapping[str, str]) -> Any:
    family = families.get(str(row.get("source", "")), "")
    decoder = catalogue.decoder_of(family, str(row.get("event", "")), argument)
    if decode.SPELLING in decoder or not decode.known(decoder):
        return number
    return Named(number, decode.text_of(decoder, number))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return tuple(map(_plain, value))
    return 0.0 if type(value) is float and value == 0 else value  # -0.0 is 0.0


def _through(value: Any, source: Source, row: Row) -> Any:
    if source.function == derive.COUNT_ARGS:
        value = row.get("shape")
    if value is None or not source.function:
        return value
    return derive.function(source.function)(value)


# batches


def column(cls: TypeClass, values: Sequence[Any], fill: Sequence[Any] = ()) -> Column | None:
    """A column of values, None for none; its dictionary begins with more than is used."""
    at = [i for i, value in enumerate(values) if value is not None]
    if not at:
        return None
    rows = None if len(at) == len(values) else pa.array(at, pa.int32()).to_numpy()
    kept = [values[i] for i in at]
    if not pa.types.is_dictionary(cls.arrow):
        return Column(cls, pa.array(kept, cls.arrow), rows)
    coded = dictionary(pa.array([*fill, *kept], cls.arrow.value_type))
    return Column(cls, coded.slice(len(fill)), rows)


def batch(columns: Mapping[str, Column | None], count: int) -> Batch:
    """A batch of columns, of those that have values."""
    kept = {name: found for name, found in columns.items() if found is not None}
    return Batch(count, kept, (SOURCE,))


def cut(whole: Batch, places: Sequence[int]) -> list[Batch]:
    """A batch in pieces."""
    at = [0, *sorted({p for p in places if 0 < p < whole.rows}), whole.rows]
    return [whole.slice(a, b) for a, b in pairwise(at)]


def in_pieces(chosen: Filter, pieces: Sequence[Batch]) -> list[int]:
    """The rows of a filter over pieces, numbered as in the whole."""
    found: list[int] = []
    start = 0
    for piece in pieces:
        found += [start + row for row in chosen.rows(piece).tolist()]
        start += piece.rows
    return found
