"""Tables out of events: which columns an export has, and of which types (docs/export.md).

The type of a column depends on its name alone, never on the events, so that exports of different
sources can be read together. Three layouts: ``wide`` has a column for each of the capture's,
``narrow`` a row for each argument, ``map`` all arguments of an event in one column of maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.errors import KcapError
from kcap.model import catalogue, naming
from kcap.model.batch import Batch, Column, Rows
from kcap.model.classes import TypeClass
from kcap.model.text import json_string
from kcap.replay.rebatch import row_bytes
from kcap.writers import blocks, fragments
from kcap.writers.jsonl import json_texts

NARROW_ROWS: Final = 1 << 16
"""Rows of a narrow table made at a time; one event may give more."""

_ARGUMENT: Final = naming.ARGUMENT
_TIME: Final = "ts"
_NS: Final = "ts_ns"
_TEXTS: Final = pa.map_(pa.utf8(), pa.utf8())
_NUMBERS: Final = frozenset({TypeClass.I64, TypeClass.F64})

FIELDS: Final[Mapping[str, tuple[TypeClass, str]]] = {
    "field": (TypeClass.STR, "column of the wide layout that this value is in"),
    "name": (TypeClass.STR, "the source's own name of the field"),
    "class": (TypeClass.STR, "class of the value: i64, u64, f64, bool, str, bin, json, list …"),
    "value": (TypeClass.STR, "the value as exact text; bytes as base64, lists as JSON"),
    "value_i64": (TypeClass.I64, "the value, where its class is i64"),
    "value_f64": (TypeClass.F64, "the value, where its class is f64"),
}
"""Columns of the narrow layout behind the envelope: class and meaning."""

CELL_BYTES: Final = 128
"""What a value takes in a map beside its text: its key, and where both are."""

ARGS: Final = "args"
"""The column of all arguments, where they are one."""

MAPS: Final[Mapping[str, str]] = {
    "args": "the event's arguments: column of the wide layout without arg_, to exact text",
    "extra": "everything else that has no column here: column of the wide layout to exact text",
}
"""Columns of the map layout behind the envelope: meaning."""


class Profile(StrEnum):
    """Which Arrow types an export uses."""

    PORTABLE = "portable"
    """Types that every reader of Parquet has: times in us beside ns as an integer, no unsigned
    integers (they keep their 64 bits as int64)."""
    FULL = "full"
    """Types that hold kcap's values as they are: times in ns, uint64."""


class Layout:
    """One row an event, one column for each of the capture's: the wide layout.

    Args:
        columns: The columns, in order, and their classes.
        profile: Which Arrow types they get.

    Example:
        >>> layout = Layout({"ts": TypeClass.I64, "arg_addr__u64": TypeClass.U64}, Profile.PORTABLE)
        >>> layout.schema
        ts: timestamp[us, tz=UTC]
        ts_ns: int64
        arg_addr__u64: int64
    """

    name = "wide"

    def __init__(self, columns: Mapping[str, TypeClass], profile: Profile) -> None:
        self.columns = dict(columns)
        self.profile = profile
        self.schema = pa.schema(
            [pa.field(*f) for n, c in self.columns.items() for f in _fields(n, c, profile)]
        )
        self._nulls: dict[pa.DataType, pa.Array] = {}

    def weigh(self, batch: Batch) -> npt.NDArray[np.int64]:
        """What the values of each event take in a table of this layout, with text spelled out.

        Args:
            batch: Events.

        Returns:
            Bytes, one figure an event.
        """
        return row_bytes(batch)

    def rows(self, batch: Batch) -> Iterator[Batch]:
        """Events as rows of this layout.

        Args:
            batch: Events.

        Yields:
            Batches whose rows and columns are those of the table.
        """
        yield batch

    def table(self, rows: Batch) -> pa.Table:
        """The table of some rows.

        Args:
            rows: One of the batches that `rows` gave.

        Returns:
            A table of `schema`; text is dictionary-coded, with no entry that no row has.
        """
        return pa.Table.from_arrays(self._arrays(rows), schema=self.schema)

    def _arrays(self, rows: Batch) -> list[pa.Array]:
        arrays = []
        for name, cls in self.columns.items():
            column = rows.get(name)
            if column is None or not len(column):
                kinds = [kind for _, kind in _fields(name, cls, self.profile)]
                arrays += [self._null(kind, rows.rows) for kind in kinds]
            else:
                full = column.compact().full(rows.rows)
                arrays += _converted(name, cls, full, self.profile)
        return arrays

    def _null(self, kind: pa.DataType, count: int) -> pa.Array:
        """A column without values; all of a type share their memory."""
        known = self._nulls.get(kind)
        if known is None or len(known) < count:
            known = self._nulls[kind] = pa.nulls(count, kind)
        return known.slice(0, count)


class Narrow(Layout):
    """One row an argument: the envelope, repeated, and what the argument is.

    An event without arguments is one row without a ``field``.

    Args:
        envelope: The columns that are repeated, in order.
        profile: Which Arrow types they get.
    """

    name = "narrow"

    def __init__(self, envelope: Mapping[str, TypeClass], profile: Profile) -> None:
        self._envelope = tuple(envelope)
        fields = {name: cls for name, (cls, _) in FIELDS.items()}
        super().__init__({**envelope, **fields}, profile)

    def rows(self, batch: Batch) -> Iterator[Batch]:
        """See `Layout.rows`; at most about `NARROW_ROWS` at a time."""
        ends = np.cumsum(np.maximum(_counts(batch, _others(batch)), 1))
        start = 0
        while start < batch.rows:
            done = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, done + NARROW_ROWS, "right"))
            stop = max(stop, start + 1)
            yield self._exploded(batch.slice(start, stop))
            start = stop

    def _exploded(self, batch: Batch) -> Batch:
        cells = _Cells(batch, _others(batch))
        lines = np.maximum(cells.counts, 1)
        total = int(lines.sum())
        event = np.repeat(np.arange(batch.rows, dtype=np.int32), lines)
        columns = {}
        for name in self._envelope:
            column = batch.get(name)
            taken = column and column.take(event, batch.rows)
            if taken:
                columns[name] = taken
        # A cell moves down by one for each event before it that has no cell of its own.
        gaps = np.cumsum(lines - cells.counts) - (lines - cells.counts)
        at = (np.arange(len(cells.ids)) + np.repeat(gaps, cells.counts)).astype(np.int32)
        where = None if len(at) == total else at
        for name, texts in _described(batch, cells.names).items():
            values = pa.DictionaryArray.from_arrays(pa.array(cells.fields), texts)
            columns[name] = Column(TypeClass.STR, values, where)
        values = pa.DictionaryArray.from_arrays(pa.array(cells.ids), cells.pool)
        columns["value"] = Column(TypeClass.STR, values, where)
        for cls in sorted(_NUMBERS):
            columns[f"value_{cls}"] = _numbers(batch, cells, cls, at)
        return Batch(total, columns, batch.before)


class Map(Layout):
    """One row an event: the envelope, and everything else as maps of text.

    Args:
        envelope: The columns beside the maps, in order.
        profile: Which Arrow types they get.
    """

    name = "map"

    def __init__(self, envelope: Mapping[str, TypeClass], profile: Profile) -> None:
        super().__init__(envelope, profile)
        for name in MAPS:
            self.schema = self.schema.append(pa.field(name, _TEXTS))

    def weigh(self, batch: Batch) -> npt.NDArray[np.int64]:
        """See `Layout.weigh`."""
        return row_bytes(batch) + CELL_BYTES * _counts(batch, _others(batch))

    def _arrays(self, rows: Batch) -> list[pa.Array]:
        others = _others(rows)
        arguments = {n: _key(n) for n in others if naming.parts(n)[0].split("_")[0] == _ARGUMENT}
        rest = {n: n for n in others if n not in arguments}
        return [*super()._arrays(rows), _mapped(rows, arguments), _mapped(rows, rest)]


def _key(column: str) -> str:
    """An argument's key in the map."""
    return column.removeprefix(_ARGUMENT).removeprefix("_")


class Lines(Layout):
    """One row an event, of columns that are known before the first: for what is written at once.

    Args:
        envelope: The columns beside the arguments, in order.
        profile: Which Arrow types they get.
    """

    name = "lines"

    def __init__(self, envelope: Mapping[str, TypeClass], profile: Profile) -> None:
        super().__init__({**envelope, ARGS: TypeClass.STR}, profile)

    def rows(self, batch: Batch) -> Iterator[Batch]:
        """See `Layout.rows`: all arguments of an event are one JSON object in `ARGS`."""
        for block in blocks.of(batch):
            yield block.select(self.columns).adding({ARGS: _as_object(block)})


def streamed(fields: Sequence[str] | None) -> Layout:
    """The columns of a table that is written as events come.

    Args:
        fields: The columns, in order; None for those of all events, and the arguments in `ARGS`.

    Returns:
        The layout.

    Raises:
        KcapError: A column is none.
    """
    if not fields:
        return Lines(envelope(), Profile.PORTABLE)
    classes = {name: catalogue.class_of(name) for name in fields}
    known = {name: cls for name, cls in classes.items() if cls is not None}
    if unknown := classes.keys() - known.keys():
        raise KcapError(
            f"fields: no column is called {min(unknown)!r}", hint="'kcap docs columns' lists them"
        )
    return Layout(known, Profile.PORTABLE)


def _as_object(block: Batch) -> Column:
    """The arguments of each event as a JSON object, from column without ``arg_`` to value."""
    constants = fragments.Constants()
    names = [n for n in _others(block) if naming.parts(n)[0].split("_")[0] == _ARGUMENT]
    literals = {name: json_string(_key(name)) for name in names}
    heads = {
        name: (constants.number(f"{{{literal}:"), constants.number(f",{literal}:"))
        for name, literal in literals.items()
    }
    empty, end = constants.number("{}"), constants.number("}")
    lines = fragments.LineBuilder(block.rows, constants.texts())
    seen = np.zeros(block.rows, np.bool_)
    for name, head in heads.items():
        column = block.columns[name]
        made = fragments.render(column, json_texts, ",")
        fragments.append_item(lines, column, made, head, seen)
    lines.append(np.where(seen, end, empty).astype(np.int32))
    codes = pa.array(np.arange(block.rows, dtype=np.int32))
    return Column(TypeClass.STR, pa.DictionaryArray.from_arrays(codes, lines.texts()))


LAYOUTS: Final[Mapping[str, type[Layout]]] = {c.name: c for c in (Layout, Narrow, Map)}
"""The layouts by name."""


def in_order(names: Iterable[str]) -> list[str]:
    """Columns as people read them: the envelope first, the rest by name.

    Args:
        names: Columns.

    Returns:
        The same columns.
    """
    known = set(names)
    envelope = [name for name in catalogue.envelope() if name in known]
    return envelope + sorted(known.difference(envelope))


def envelope() -> dict[str, TypeClass]:
    """The columns that every capture may have, in order, and their classes."""
    return {name: info.cls for name, info in catalogue.envelope().items()}


def plain(schema: pa.Schema) -> pa.Schema:
    """A schema without dictionaries, as readers see it.

    Args:
        schema: A layout's schema.

    Returns:
        The schema with plain text and bytes.
    """
    return pa.schema([f.with_type(_plain_type(f.type)) for f in schema], schema.metadata)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return kind


def texts(column: Column) -> fragments.Texts:
    """The values of a column as exact text: what ``map`` and ``narrow`` hold.

    Args:
        column: The column.

    Returns:
        Text as it is, numbers so that they read back as the same number, bytes as base64, lists
        as JSON.
    """
    return fragments.render(column, json_texts if column.cls.child else _exact, ",")


def _exact(cls: TypeClass, values: pa.Array) -> pa.Array:
    if cls in {TypeClass.STR, TypeClass.JSON}:
        return values
    if cls is TypeClass.BIN:
        return fragments.base64_texts(values)
    return fragments.number_texts(values)


def _fields(name: str, cls: TypeClass, profile: Profile) -> list[tuple[str, pa.DataType]]:
    """Name and type of the columns that a column becomes."""
    if profile is Profile.FULL:
        return [(name, pa.timestamp("ns", "UTC") if name == _TIME else cls.arrow)]
    if name == _TIME:
        return [(name, pa.timestamp("us", "UTC")), (_NS, pa.int64())]
    if cls is TypeClass.U64:
        return [(name, pa.int64())]
    return [(name, pa.list_(pa.int64()) if cls is TypeClass.LIST_U64 else cls.arrow)]


def _converted(name: str, cls: TypeClass, full: pa.Array, profile: Profile) -> list[pa.Array]:
    """The columns that a column becomes."""
    if profile is Profile.FULL:
        return [full.view(pa.timestamp("ns", "UTC")) if name == _TIME else full]
    if name == _TIME:
        return [_microseconds(full), full]
    if cls is TypeClass.U64:
        return [full.view(pa.int64())]
    if cls is TypeClass.LIST_U64:
        return [full.cast(pa.list_(pa.int64()), safe=False)]
    return [full]


def _microseconds(times: pa.Array) -> pa.Array:
    """Times in ns as us, always rounded down, as the start of a time range is."""
    valid, values = times.buffers()
    ns = np.frombuffer(values, np.int64)[times.offset : times.offset + len(times)]
    us = pa.py_buffer(ns // 1000)
    if times.null_count:
        valid = pa.py_buffer(np.packbits(times.is_valid().to_numpy(False), bitorder="little"))
    kind = pa.timestamp("us", "UTC")
    return pa.Array.from_buffers(kind, len(times), [valid if times.null_count else None, us])


def _others(batch: Batch) -> list[str]:
    """The columns outside the envelope, by name."""
    return sorted(n for n, c in batch.columns.items() if n not in catalogue.envelope() and len(c))


def _counts(batch: Batch, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """How many of some columns each event has."""
    counts = np.zeros(batch.rows, np.int64)
    for name in names:
        rows = batch.columns[name].rows
        counts[slice(None) if rows is None else rows] += 1
    return counts


class _Cells:
    """The values of some columns, event by event: all of the first event, then of the second."""

    def __init__(self, batch: Batch, names: Sequence[str]) -> None:
        self.names = names
        self.counts = _counts(batch, names)
        """How many values each event has."""
        ends = np.cumsum(self.counts)
        place = ends - self.counts
        total = int(ends[-1]) if len(ends) else 0
        self.fields = np.empty(total, np.int32)
        """Which column each value is of."""
        self.ids = np.empty(total, np.int32)
        """Which text of the pool each value is."""
        self.places: list[npt.NDArray[np.int64]] = []
        """Where the values of each column are."""
        pool = [pa.array([], pa.utf8())]
        first = 0
        for number, name in enumerate(names):
            events = batch.columns[name].rows
            at = place.copy() if events is None else place[events]
            place[slice(None) if events is None else events] += 1
            entries, codes = texts(batch.columns[name])
            self.fields[at] = number
            self.ids[at] = first + (np.arange(len(entries)) if codes is None else codes)
            self.places.append(at)
            pool.append(entries)
            first += len(entries)
        self.pool = pa.concat_arrays(pool)
        """All texts."""


def _mapped(batch: Batch, keys: Mapping[str, str]) -> pa.MapArray:
    """One map an event, from the key of each column to its value; empty where there is none."""
    cells = _Cells(batch, list(keys))
    offsets = np.concatenate([[0], np.cumsum(cells.counts)]).astype(np.int32)
    spelled = pa.array(keys.values(), pa.utf8()).take(pa.array(cells.fields))
    return pa.MapArray.from_arrays(pa.array(offsets), spelled, cells.pool.take(pa.array(cells.ids)))


def _described(batch: Batch, names: Sequence[str]) -> dict[str, pa.Array]:
    """What the narrow layout says of columns: one text a column."""
    texts = {
        "field": names,
        "name": [_own_name(name) for name in names],
        "class": [str(batch.columns[name].cls) for name in names],
    }
    return {key: pa.array(values, pa.utf8()) for key, values in texts.items()}


def _own_name(column: str) -> str:
    """The source's own name of a field, with the suffix of a companion."""
    base, suffixes = naming.parts(column)
    prefixed = base.split("_")[0] in {_ARGUMENT, naming.EXTENSION}
    name = naming.source_name(base) if prefixed else base
    return "__".join([name, *(s for s in suffixes if s in {naming.RAW, naming.SIZE})])


def _numbers(batch: Batch, cells: _Cells, cls: TypeClass, at: Rows) -> Column:
    """The values of one class of numbers, each at its row."""
    rows, values = [np.empty(0, np.int32)], [np.empty(0, cls.arrow.to_pandas_dtype())]
    for name, places in zip(cells.names, cells.places, strict=True):
        column = batch.columns[name]
        if column.cls is cls:
            rows.append(at[places])
            values.append(np.asarray(column.values))
    joined = np.concatenate(rows)
    order = np.argsort(joined)
    return Column(cls, pa.array(np.concatenate(values)[order]), joined[order])
