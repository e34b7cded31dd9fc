"""Tracee's JSON lines: every event as the object it was imported from.

The shape of an event says which fields it had, in which order and spelling, and the columns hold
their values. An event from elsewhere has no such shape; it is written with the keys that Tracee
v0.8 prints, and three of later releases: ``syscall``, ``contextFlags`` and ``executable``. A
number that is not known is null, since 0 would say something: the user root, the call ``read``.
An event whose shape was too long to keep cannot be given back, and is refused.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, BinaryIO, Final

import numpy as np

from kcap import limits
from kcap.errors import LimitError
from kcap.model import catalogue, decode, jsonshape, naming, shape, text
from kcap.model.batch import Batch, Column, without_state
from kcap.model.builder import Field
from kcap.model.classes import TypeClass
from kcap.model.naming import RAW, SIZE
from kcap.model.shape import Item
from kcap.writers import fragments

_LINES: Final = 1024
_TIME: Final = "ts"
_RAW_TIME: Final = "ts_raw"

_TYPES: Final[Mapping[TypeClass, str]] = {
    TypeClass.I64: "long",
    TypeClass.U64: "unsigned long",
    TypeClass.F64: "float64",
    TypeClass.BOOL: "bool",
    TypeClass.STR: "const char*",
    TypeClass.BIN: "bytes",
    TypeClass.LIST: "const char*const*",
    TypeClass.LIST_I64: "long[]",
    TypeClass.LIST_U64: "unsigned long[]",
}
"""How Tracee calls a class; what is not here has no name of its own there."""

_PLAIN: Final = (
    ("timestamp", "ts"),
    ("threadStartTime", "thread_start_ns"),
    ("processorId", "cpu"),
    ("processId", "ns_pid"),
    ("cgroupId", "cgroup_id"),
    ("threadId", "ns_tid"),
    ("parentProcessId", "ns_ppid"),
    ("hostProcessId", "pid"),
    ("hostThreadId", "tid"),
    ("hostParentProcessId", "ppid"),
    ("userId", "uid"),
    ("mountNamespace", "mount_ns"),
    ("pidNamespace", "pid_ns"),
    ("processName", "process_name"),
    ("hostName", "host"),
    ("containerId", "container_id"),
    ("containerImage", "container_image"),
    ("containerName", "container_name"),
    ("podName", "pod_name"),
    ("podNamespace", "pod_namespace"),
    ("podUID", "pod_uid"),
    ("eventId", "event_id"),
    ("eventName", "event"),
    ("argsNum", ""),
    ("returnValue", "retval"),
    ("syscall", "syscall"),
    ("stackAddresses", "stack_addresses"),
)
"""Keys of Tracee up to its context, and our columns."""

_FLAGS: Final = (("containerStarted", "container_started"), ("isCompat", "is_compat"))

_ABSENT: Final = object()
_Getter = Callable[[], Iterable[Any]]


class TraceeJson:
    """A sink that writes one JSON object an event, as Tracee does.

    What could steer a terminal is escaped in strings as JSON has it, and so the same to a program.

    Args:
        stream: Where the lines go; stays open.

    Example:
        >>> sink = TraceeJson(sys.stdout.buffer)
        >>> sink.write(batch)
        {"timestamp":1657321167356748797,"threadStartTime":620311624458929,"processorId":7,…
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._closed = False

    def write(self, batch: Batch) -> None:
        """Write the events of a batch; records that only describe a state are none.

        Args:
            batch: Events; side records have no place here.

        Raises:
            OutputError: The stream takes no more.
            LimitError: The shape of an event was cut; all events before it are written.
        """
        lines: list[str] = []
        try:
            for item in objects(without_state(batch)):
                lines.append(text.json_safe(text.json_text(item)))
                if len(lines) >= _LINES:
                    self._flush(lines)
        except LimitError:
            self._flush(lines)
            raise
        self._flush(lines)

    def close(self) -> None:
        """Flush the stream, which stays open.

        Raises:
            OutputError: The stream takes no more.
        """
        if not self._closed:
            self._closed = True
            fragments.flush(self._stream)

    def _flush(self, lines: list[str]) -> None:
        if lines:
            data = "".join(f"{line}\n" for line in lines).encode()
            fragments.write_all(self._stream, memoryview(data))
            lines.clear()


def objects(batch: Batch) -> Iterator[dict[str, Any]]:
    """Give events back as the JSON objects they were.

    Args:
        batch: Events.

    Yields:
        One object an event, in row order, keys in the source's order.

    Raises:
        LimitError: The shape of an event was cut, so that nothing says which other fields it had,
            in which order; raised after all events before it.
    """
    cut = batch.get(f"shape__{SIZE}")
    if cut is not None and len(cut):
        row = 0 if cut.rows is None else int(cut.rows[0])
        yield from objects(batch.slice(0, row))
        raise _cut_error(batch, row)
    cells = _Cells(batch)
    made: list[dict[str, Any]] = [{}] * batch.rows
    for rows, spelled in _by_shape(batch):
        found = shape.decode(spelled)
        build = _rebuilt if found.record else _plain
        for row, item in zip(rows, build(cells, found, rows), strict=True):
            made[row] = item
    yield from made


def _cut_error(batch: Batch, row: int) -> LimitError:
    size, ord_ = (batch.numpy(name, -1)[row] for name in (f"shape__{SIZE}", "ord"))
    return LimitError(
        f"event {ord_} (column ord) cannot be given back as it was: its shape was cut",
        expected=f"at most {limits.VALUE_BYTES} bytes of shape, not {size}",
        hint="--format jsonl writes all columns of such events, too",
    )


def _by_shape(batch: Batch) -> Iterator[tuple[list[int], str]]:
    """The rows of each shape; an empty text for rows without one."""
    codes = np.full(batch.rows, -1, np.int64)
    column = batch.get("shape")
    entries: list[str] = []
    if column is not None:
        codes[slice(None) if column.rows is None else column.rows] = column.codes()
        entries = column.values.dictionary.to_pylist()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-2))
    for group in np.split(order, starts[1:]) if len(order) else ():
        code = int(codes[group[0]])
        yield group.tolist(), entries[code] if code >= 0 else ""


class _Cells:
    """The values of a batch by column base and row, as a JSON parser gave them."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._by_field: dict[tuple[str, int], list[str]] = {}
        for name in batch.columns:
            base, suffixes = naming.parts(name)
            if RAW not in suffixes and SIZE not in suffixes:
                occurrence = int(suffixes[-1]) if suffixes and suffixes[-1].isdigit() else 1
                self._by_field.setdefault((base, occurrence), []).append(name)
        self._values: dict[tuple[str, int], dict[int, Any]] = {}

    def column(self, field: Field, rows: Sequence[int]) -> list[Any]:
        """The values of a field.

        Args:
            field: The field.
            rows: The rows wanted.

        Returns:
            One value a row, `_ABSENT` where it has none.
        """
        key = (field.base, field.occurrence)
        values = self._values.get(key)
        if values is None:
            values = self._values[key] = {}
            for name in self._by_field.get(key, ()):
                values.update(self._read(name, self.batch.columns[name]))
        return [values.get(row, _ABSENT) for row in rows]

    def bases(self) -> list[str]:
        """The bases of all argument columns."""
        first = [base for base, occurrence in self._by_field if occurrence == 1]
        return [base for base in sorted(first) if base.split("_")[0] == naming.ARGUMENT]

    def class_of(self, base: str) -> TypeClass:
        """The class of an argument, that of its first column where it has several."""
        return self.batch.columns[self._by_field[base, 1][0]].cls

    def _read(self, name: str, column: Column) -> Iterator[tuple[int, Any]]:
        rows = range(self.batch.rows) if column.rows is None else column.rows.tolist()
        values = column.values.to_pylist()
        if column.cls is TypeClass.JSON:
            values = [_parsed(value) for value in values]
        elif column.cls is TypeClass.BIN:
            values = [base64.b64encode(value).decode() for value in values]
        yield from zip(rows, values, strict=True)
        raw = self.batch.get(f"{name}__{RAW}")
        if raw is not None:
            at = range(self.batch.rows) if raw.rows is None else raw.rows.tolist()
            for row, value in zip(at, raw.values.to_pylist(), strict=True):
                # Bytes that are no text, or were cut, stay escaped.
                with contextlib.suppress(UnicodeDecodeError):
                    yield row, value.decode("utf-8", "surrogatepass")


def _parsed(value: str) -> Any:  # noqa: ANN401
    """The JSON value of a text; the text itself where it was cut and is no JSON any more."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _rebuilt(cells: _Cells, found: shape.Shape, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The objects of rows that have one shape."""
    native = any(item.name == "eventName" for item in found.record)
    families = ("tracee",) if native else ("tracee-v1beta1", "tracee-grpc")
    aliases = {p: c for family in families for p, c in catalogue.aliases(family).items()}
    fields = jsonshape.record_fields(found.record, aliases)
    pairs = zip(found.record, fields, strict=True)
    sources = [_values(cells, found, item, field, rows) for item, field in pairs]
    places = [jsonshape.split(item.name) for item in found.record]
    for cut in zip(*sources, strict=True):
        made: dict[str, Any] = {}
        inside: dict[tuple[str, ...], dict[str, Any]] = {(): made}
        for keys, value in zip(places, cut, strict=True):
            if value is not _ABSENT:
                *parent, key = keys
                inside.get(tuple(parent), made)[key] = value
                if type(value) is dict:
                    inside[tuple(keys)] = value
        yield made


def _values(
    cells: _Cells, found: shape.Shape, item: Item, field: Field | None, rows: Sequence[int]
) -> Iterable[Any]:
    """The values of one item of the record section, one a row."""
    if item.null:
        return repeat(None, len(rows))
    if item.type == jsonshape.OBJECT:
        return ({} for _ in rows)
    if field is None:
        return _entries(cells, found.arguments, item.type, rows)
    values = cells.column(field, rows)
    if field.base == _TIME:
        raws = cells.column(Field(_RAW_TIME), rows)
        pairs = zip(values, raws, strict=True)
        return [_time(value, raw, item.type) for value, raw in pairs]
    if item.type == jsonshape.STRING:
        return [str(v) if type(v) is int else v for v in values]
    if item.type in {jsonshape.TIME, jsonshape.TIME3}:
        return [jsonshape.time_text(v, item.type) if type(v) is int else v for v in values]
    if item.type in {"json", "list"}:
        return [_parsed(v) if type(v) is str else v for v in values]
    return values


def _time(value: Any, raw: Any, word: str) -> Any:  # noqa: ANN401
    """The event's time as the source spelt it."""
    if raw is not _ABSENT:
        if word in {jsonshape.TIME, jsonshape.TIME3}:
            return raw
        return float(raw) if word == "float" else _parsed(raw)
    if value is _ABSENT or word == "int":
        return value
    return value / 10**9 if word == "float" else jsonshape.time_text(value, word)


def _entries(
    cells: _Cells, arguments: Sequence[Item], word: str, rows: Sequence[int]
) -> Iterator[list[Any]]:
    """The list of arguments of each row."""
    forms = jsonshape.forms(word, len(arguments))
    fields = jsonshape.argument_fields(arguments, forms)
    columns: list[Iterable[Any]] = [
        repeat(None, len(rows)) if field is None else cells.column(field, rows) for field in fields
    ]
    spellers = [_speller(item, form) for item, form in zip(arguments, forms, strict=False)]
    if not spellers:
        yield from ([] for _ in rows)
        return
    for values in zip(*columns, strict=True):
        yield [spell(value) for spell, value in zip(spellers, values, strict=False)]


def _speller(item: Item, form: str) -> Callable[[Any], Any]:
    """How an argument's value becomes its entry."""
    keys, marks, decoder = jsonshape.form_parts(form)
    parts = [{"n": ("name", item.name), "t": ("type", item.type)}.get(k) for k in keys]
    key = item.type if "k" in keys else "value"

    def spell(value: Any) -> Any:  # noqa: ANN401
        value = None if value is _ABSENT else value
        if decoder and type(value) is int:
            value = decode.text_of(decoder, value)
        for mark in marks:
            value = _undo(mark, value)
        if keys in {"v", "e"}:
            return value
        return dict(part or (key, value) for part in parts)

    return spell


def _undo(mark: str, value: Any) -> Any:  # noqa: ANN401
    if mark == "j":
        return _parsed(value)
    if mark == "s":
        return [str(v) for v in value] if isinstance(value, list) else str(value)
    return {} if mark == "o" else {"value": value}


def _plain(cells: _Cells, found: shape.Shape, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Objects in Tracee's form for rows that have no shape of its."""
    known = [(key, name) for key, name in _PLAIN if name]
    columns = [_filled(cells, name, rows) for _, name in known]
    flags = [_filled(cells, name, rows) for _, name in _FLAGS]
    paths = cells.column(Field("exe"), rows)
    lists = _plain_entries(cells, found.arguments, rows)
    cuts = zip(*columns, strict=True)
    for values, context, path, entries in zip(
        cuts, zip(*flags, strict=True), paths, lists, strict=True
    ):
        made = dict.fromkeys(key for key, _ in _PLAIN)
        made |= zip((key for key, _ in known), values, strict=True)
        if made["eventId"] is not None:
            made["eventId"] = str(made["eventId"])
        made["argsNum"] = len(entries)
        made["contextFlags"] = dict(zip((key for key, _ in _FLAGS), context, strict=True))
        if path is not _ABSENT:
            made["executable"] = {"path": path}
        made["args"] = entries
        yield made


def _filled(cells: _Cells, name: str, rows: Sequence[int]) -> list[Any]:
    """The values of a column; as Tracee has it, no text is empty and no flag is false."""
    empty = {TypeClass.STR: "", TypeClass.BOOL: False}.get(catalogue.envelope()[name].cls)
    return [empty if value is _ABSENT else value for value in cells.column(Field(name), rows)]


def _plain_entries(
    cells: _Cells, arguments: Sequence[Item], rows: Sequence[int]
) -> Iterator[list[Any]]:
    """Arguments in the order of the shape, by name where there is none."""
    if arguments:
        forms = ["ntv"] * len(arguments)
        yield from _entries(cells, arguments, jsonshape.entries(forms), rows)
        return
    bases = cells.bases()
    columns = [cells.column(Field(base), rows) for base in bases]
    names = [naming.source_name(base) for base in bases]
    types = [_TYPES.get(cells.class_of(base), "json") for base in bases]
    for i in range(len(rows)):
        found = zip(names, types, (column[i] for column in columns), strict=True)
        yield [
            {"name": name, "type": kind, "value": value}
            for name, kind, value in found
            if value is not _ABSENT
        ]
