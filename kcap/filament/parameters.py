"""The parameters of events as filaments see them: by the source's own names, numbers as text.

What a number means depends on the event, its source and the type that the source gave it, so the
different kinds of events in a batch are found first; all else is done once for each kind and each
different value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.filament.dicts import ADDRESSES, ENTRIES, JSON, LIST, NUMBERS, TIMES, Packed
from kcap.filament.streams import Int64s, Stream, complete, entries_of, texts
from kcap.model import catalogue, decode, naming, shape
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.distinct import grouped

_IPS: Final = frozenset({"ip", "ipv4", "ipv6"})
_BARE: Final = frozenset({"address", "hex16", "hex32", "hex64", "hex8", "pointer"})
_WORDS: Final = frozenset({"ansi", "unicode"})
"""Types of Fibratus: these are texts, those numbers that it writes in hexadecimal."""

_INTEGERS: Final = {TypeClass.I64: "q", TypeClass.U64: "Q"}

_PLAIN: Final = "plain"
_STATUS: Final = "status"
_TABLE: Final = "table:"

_MADE: Final[dict[str, Callable[[int], str]]] = {
    "bare": lambda number: f"{number & (1 << 64) - 1:x}",
    "hex": lambda number: decode.text_of(decode.HEX, number),
    "share": lambda number: "".join(
        letter if number & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("d", 4))
    ),
    "disposition": lambda number: decode.text_of("create_disposition", number).lower(),
}
"""How Fibratus 1.x spells numbers that other sources spell in another way."""


class _Kind(NamedTuple):
    """Events whose parameters mean the same."""

    family: str
    event: str
    types: Mapping[str, str]
    """The source's types of the parameters, by their names."""


def streams(batch: Batch, families: Mapping[str, str]) -> Iterator[Stream]:
    """The parameters of a batch, in the order of their names.

    Args:
        batch: Events.
        families: The collector of each source, by its id.

    Yields:
        The values of one name and form; several may have the same name, at different rows.
    """
    kinds, of_row = _kinds(batch, families)
    found = []
    for name in batch.columns:
        base, suffixes = naming.parts(name)
        if base.partition("_")[0] != naming.ARGUMENT:
            continue
        if naming.RAW in suffixes or naming.SIZE in suffixes:
            continue  # it only stands beside a value
        label = naming.source_name(base)
        again = next((suffix for suffix in suffixes if suffix.isdecimal()), None)
        found.append((label if again is None else f"{label}__{again}", name, label))
    for key, name, label in sorted(found):
        column = batch.columns[name]
        if len(column):
            yield from _streams(key, label, column, batch, kinds, of_row)


def _streams(
    key: str, label: str, column: Column, batch: Batch, kinds: list[_Kind], of_row: Int64s
) -> Iterator[Stream]:
    """The values of a column, by the form that they have."""
    integer = column.cls in _INTEGERS
    if not integer and column.cls is not TypeClass.STR:
        yield Stream(key, _packed(column), column.rows)
        return
    forms = [_form(k.family, k.event, label, k.types.get(label, ""), integer) for k in kinds]
    different = sorted(set(forms))
    places = np.array([different.index(form) for form in forms], np.int64)
    of_value = places[of_row if column.rows is None else of_row[column.rows]]
    rows = np.arange(batch.rows, dtype=np.int32) if column.rows is None else column.rows
    for place in np.unique(of_value).tolist():
        at = np.flatnonzero(of_value == place).astype(np.int32)
        part, where = column, column.rows
        if len(at) < len(column):
            part, where = Column(column.cls, column.values.take(pa.array(at))), rows[at]
        form = different[place]
        if form == _STATUS:
            packed = _status(part, batch, rows[at])
        elif integer:
            packed = _number(form, part)
        else:
            packed = _packed(part)._replace(form=form)
        yield Stream(key, packed, where)


def _kinds(batch: Batch, families: Mapping[str, str]) -> tuple[list[_Kind], Int64s]:
    """The kinds of events that a batch has, and the one of each row."""
    if not batch.rows:
        return [], np.zeros(0, np.int64)
    found = [complete(batch, name) for name in ("source", "event", "shape")]
    groups = grouped([codes for _, codes in found], [len(entries) for entries, _ in found])
    kinds = []
    for codes in zip(*(column.tolist() for column in groups.codes), strict=True):
        source, event, text = (
            entries[code] for (entries, _), code in zip(found, codes, strict=True)
        )
        types = {item.name: item.type for item in shape.decode(text).arguments}
        kinds.append(_Kind(families.get(source, ""), event, types))
    return kinds, groups.rows


@lru_cache(maxsize=1 << 14)
def _form(family: str, event: str, name: str, kind: str, integer: bool) -> str:
    """The form of a parameter's values."""
    theirs = _fibratus_form(name, kind, integer) if _may_be_fibratus(family) else None
    if theirs is not None or not integer:
        return theirs or ENTRIES
    # Another program's spelling is a way to write the same numbers: the table has the names.
    table = catalogue.decoder_of(family, event, name).partition(decode.SPELLING)[0]
    return f"{_TABLE}{table}" if decode.known(table) else _PLAIN


def _may_be_fibratus(family: str) -> bool:
    """Whether types may be those of Fibratus; of a table from elsewhere the source is not known."""
    return family == "fibratus" or catalogue.family(family) not in catalogue.families()


def _fibratus_form(name: str, kind: str, integer: bool) -> str | None:
    """The form of values of a type of Fibratus, None where they are as those of any source."""
    if not integer:
        return ADDRESSES if kind in _IPS else None
    if kind == "time":
        return TIMES
    if kind in _BARE:
        return "bare"
    if kind == "status":
        return _STATUS
    if kind in _WORDS:
        return "hex"
    if kind == "enum" and name in {"share_mask", "operation"}:
        return "share" if name == "share_mask" else "disposition"
    return None


def _number(form: str, column: Column) -> Packed:
    """Integers, as they are or as their texts: one look-up for each different one."""
    if form in {_PLAIN, TIMES}:
        packed = _packed(column)
        return packed._replace(form=TIMES) if form == TIMES else packed
    coded = column.values.dictionary_encode()
    if form.startswith(_TABLE):
        table = form.removeprefix(_TABLE)
        entries = [decode.text_of(table, number) for number in coded.dictionary.to_pylist()]
    else:
        entries = [_MADE[form](number) for number in coded.dictionary.to_pylist()]
    return entries_of(entries, np.asarray(coded.indices))


def _status(column: Column, batch: Batch, rows: npt.NDArray[np.int32]) -> Packed:
    """How calls ended, in the words that the batch has for the numbers."""
    entries, codes = texts(batch, ("status",))
    codes = codes[rows]
    missing = np.flatnonzero(codes < 0)
    numbers = np.asarray(column.values)[missing].tolist()
    codes[missing] = len(entries) + np.arange(len(missing))
    return entries_of([*entries, *(f"0x{number & 0xFFFFFFFF:x}" for number in numbers)], codes)


def _packed(column: Column) -> Packed:
    """Values as their class has them."""
    cls = column.cls
    if pa.types.is_dictionary(column.values.type):
        compact = column.compact()
        packed = entries_of(compact.values.dictionary.to_pylist(), compact.codes())
        return packed._replace(form=JSON) if cls is TypeClass.JSON else packed
    code: Any = {**_INTEGERS, TypeClass.F64: "d"}.get(cls)
    if code is None:
        return Packed(LIST, column.values.to_pylist())
    return Packed(NUMBERS, np.ascontiguousarray(column.values).tobytes(), code)
