"""Tracee's table: an event a row, columns of fixed width, the arguments behind them.

Widths, headings, where names are cut, and the two lines at the end are Tracee's, so that what
reads its table reads this one. Other than there, times are UTC and control characters are escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model import jsonshape, naming, shape, text
from kcap.model.batch import Batch, Column, Rows, without_state
from kcap.model.classes import TypeClass
from kcap.model.kinds import DECIDING, Kinds
from kcap.model.side import Loss, SourceInfo
from kcap.writers import arguments, blocks, fragments
from kcap.writers.fragments import LineBuilder, Texts

_SECOND_NS: Final = 10**9
_DAY_S: Final = 86_400
_NULL: Final = "<nil>"
_UNKNOWN: Final = "-"


class _Field(NamedTuple):
    """A column of the table."""

    heading: str
    width: int
    """Of its text; shorter text is filled up with blanks."""
    names: tuple[str, ...]
    """Columns of the capture, the best first."""
    missing: str = _UNKNOWN
    longest: int | None = None
    """Longer text is cut."""


_TIME: Final = _Field("TIME", 16, ("ts",))
_NODE: Final = _Field("UTS_NAME", 17, ("host",), "")
_CONTAINER: Final = _Field("CONTAINER_ID", 13, ("container_id",), "", 12)
_MOUNT: Final = _Field("MNT_NS", 12, ("mount_ns",))
_PIDS: Final = _Field("PID_NS", 12, ("pid_ns",))
_UID: Final = _Field("UID", 6, ("uid",))
_COMM: Final = _Field("COMM", 16, ("process_name",), "")
_PID: Final = _Field("PID", 7, ("ns_pid", "pid"))
_TID: Final = _Field("TID", 7, ("ns_tid", "tid"))
_PPID: Final = _Field("PPID", 7, ("ns_ppid", "ppid"))
_RET: Final = _Field("RET", 16, ("retval",))
_EVENT: Final = _Field("EVENT", 25, ("event",), "")
_IN_HOST: Final = {_PID: ("pid",), _TID: ("tid",), _PPID: ("ppid",)}
_DOTS: Final = "..."
_EVENT_KEPT: Final = 22


def _fields(*, verbose: bool, containers: bool) -> list[_Field]:
    """The columns before the arguments."""
    if verbose:
        names = [_TIME, _NODE, _CONTAINER, _MOUNT, _PIDS, _UID, _COMM, _PID, _TID, _PPID]
    else:
        names = [_TIME, *([_CONTAINER] if containers else []), _UID, _COMM, _PID, _TID]
    return [*names, _RET, _EVENT]


class Table:
    """A sink that writes Tracee's table.

    Arguments stand in the order of their source; of events whose order is not known, by name. The
    numbers of other sources' flags and enums are shown as text.

    Args:
        stream: Where the rows go; stays open.
        verbose: More columns: host, container, namespaces, parent.
        containers: The container, and process ids within it beside those of the host.
        state: Whether rows that only describe what was there (``kind`` is ``state``) are written.

    Raises:
        OutputError: The stream takes no more.

    Example:
        >>> sink = Table(sys.stdout.buffer)
        TIME             UID    COMM             PID     TID     RET              EVENT  …
        >>> sink.write(batch)
        20:32:47:356748  1000   bash             2578238 2578238 0                security_file_o…
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        verbose: bool = False,
        containers: bool = False,
        state: bool = False,
    ) -> None:
        self._stream = stream
        self._state = state
        self._fields = _fields(verbose=verbose, containers=containers)
        self._containers = containers
        self._families: dict[str, str] = {}
        self._events = self._lost = 0
        self._closed = False
        cells = [self._heading(field) for field in self._fields]
        fragments.write_all(stream, memoryview(f"{' '.join(cells)} ARGS\n".encode()))

    def write(self, batch: Batch) -> None:
        """Write the events of a batch.

        Args:
            batch: Events, and what the stream says before them.

        Raises:
            OutputError: The stream takes no more.
        """
        for side in batch.before:
            if isinstance(side, SourceInfo):
                self._families[side.id] = side.collector
            elif isinstance(side, Loss) and side.kind == "lost":
                self._lost += side.count or 0
        if not self._state:
            batch = without_state(batch)
        self._events += batch.rows
        shown = {name for field in self._fields for name in (*field.names, *self._in_host(field))}
        shown |= {a.column for a in arguments.found(batch)} | DECIDING | {"shape"}
        for block in blocks.of(batch.select(shown)):
            fragments.write_all(self._stream, self._lines(block))
        fragments.flush(self._stream)  # Who watches a live source sees each batch as it comes.

    def close(self) -> None:
        """Write the end of the table and flush the stream, which stays open.

        Raises:
            OutputError: The stream takes no more.
        """
        if self._closed:
            return
        self._closed = True
        stats = f"{{EventCount:{self._events} LostEvCount:{self._lost}}}"
        end = f"\nEnd of events stream\nStats: {stats}\n"
        fragments.write_all(self._stream, memoryview(end.encode()))
        fragments.flush(self._stream)

    def _in_host(self, field: _Field) -> tuple[str, ...]:
        """The columns of the number that stands behind a slash, if any."""
        return _IN_HOST.get(field, ()) if self._containers else ()

    def _heading(self, field: _Field) -> str:
        if self._in_host(field):
            return f"{field.heading}/host".ljust(2 * field.width + 1)
        return field.heading.ljust(field.width)

    def _lines(self, block: Batch) -> memoryview:
        constants = fragments.Constants()
        blank, end, slash = constants.number(" "), constants.number("\n"), constants.number("/")
        missing = {f: constants.number(f.missing.ljust(f.width)) for f in self._fields}
        plans = list(_plans(block))
        heads = {
            entry: (constants.number(f"{entry.label}: "), constants.number(f", {entry.label}: "))
            for _, entries in plans
            for entry in entries
        }
        null = constants.number(_NULL)
        lines = LineBuilder(block.rows, constants.texts())
        for field in self._fields:
            self._append(lines, block, field, field.names, missing[field])
            if host := self._in_host(field):
                lines.append(slash)
                self._append(lines, block, field, host, missing[field])
            lines.append(blank)
        cells = _Cells(block, Kinds(block, self._families))
        seen = np.zeros(block.rows, np.bool_)
        for rows, entries in plans:
            for entry in entries:
                _append_entry(lines, cells, entry, rows, heads[entry], null, seen)
        lines.append(end)
        return lines.finish()

    @staticmethod
    def _append(
        lines: LineBuilder, block: Batch, field: _Field, names: tuple[str, ...], missing: int
    ) -> None:
        """Append a column of the table."""
        columns = [column for name in names if (column := block.get(name))]
        made = ((column, _padded(field, column)) for column in columns)
        arguments.append_first(lines, block.rows, made, missing)


def _padded(field: _Field, column: Column) -> Texts:
    """The values of a column of the table, cut and filled up."""
    texts = _times(column) if field is _TIME else arguments.decoded("", column)
    entries = texts.entries
    if field.longest is not None:
        entries = pc.utf8_slice_codeunits(entries, 0, field.longest)
    if field is _EVENT:
        long = pc.greater(pc.utf8_length(entries), field.width)
        short = fragments.around("", pc.utf8_slice_codeunits(entries, 0, _EVENT_KEPT), _DOTS)
        entries = pc.if_else(long, short, entries)
    return Texts(pc.utf8_rpad(entries, field.width), texts.codes)


def _times(column: Column) -> Texts:
    """Times of a day, in us behind a colon."""
    seconds, ns = np.divmod(np.asarray(column.values), _SECOND_NS)
    of_day, codes = np.unique(seconds % _DAY_S, return_inverse=True)
    clocks = [f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}:" for s in of_day.tolist()]
    digits = pc.ascii_lpad(pa.array(ns // 1000).cast(pa.utf8()), width=6, padding="0")
    whole = pa.array(clocks, pa.utf8()).take(pa.array(codes))
    return Texts(fragments.joined(whole, digits), None)


class _Entry(NamedTuple):
    """An argument of events of one shape."""

    label: str
    field: tuple[str, int] | None
    """Base of its column and which of several; None for null."""
    argument: str | None
    """Its name, where its kind of event says what its numbers mean."""
    decoder: str = ""
    marks: str = ""


def _plans(block: Batch) -> Iterator[tuple[Rows, tuple[_Entry, ...]]]:
    """Rows whose arguments stand in one order, and these."""
    by_name = tuple(
        _Entry(text.printable(a.name), (arguments.value_base(a.column) or "", a.occurrence), a.name)
        for a in dict.fromkeys(a._replace(column=_plain(a.column)) for a in arguments.found(block))
    )
    codes = np.full(block.rows, -1, np.int64)
    column = block.get("shape")
    spelled: list[str] = []
    if column is not None and len(column):
        entries, found = fragments.distinct(column)
        codes[slice(None) if column.rows is None else column.rows] = found
        spelled = entries.to_pylist()
    order = np.argsort(codes, kind="stable").astype(np.int32)
    starts = np.flatnonzero(np.diff(codes[order], prepend=-2))
    for rows in np.split(order, starts[1:]) if len(order) else ():
        code = int(codes[rows[0]])
        yield rows, (_entries(spelled[code]) if code >= 0 else ()) or by_name


def _plain(column: str) -> str:
    """A column's name without its class: all classes of an argument are one."""
    base, suffixes = naming.parts(column)
    return "__".join([base, *(s for s in suffixes if s.isdecimal())])


@lru_cache(maxsize=1024)
def _entries(spelled: str) -> tuple[_Entry, ...]:
    """The arguments of a shape in their order."""
    found = shape.decode(spelled)
    lists = [i.type for i in found.record if i.type.startswith(jsonshape.ENTRIES)]
    forms = jsonshape.forms(lists[0], len(found.arguments)) if lists else []
    forms += [""] * (len(found.arguments) - len(forms))
    fields = jsonshape.argument_fields(found.arguments, forms)
    out = []
    for item, field, form in zip(found.arguments, fields, forms, strict=False):
        _, marks, decoder = jsonshape.form_parts(form)
        name = text.clean(item.name)[0]
        place = None if field is None else (field.base, field.occurrence)
        # What Tracee had as text, its form says; the numbers of other sources are named for people.
        out.append(_Entry(text.printable(name), place, None if lists else name, decoder, marks))
    return tuple(out)


class _Cells:
    """The texts of arguments, made once for each way they are shown in a block."""

    def __init__(self, block: Batch, kinds: Kinds) -> None:
        self._kinds = kinds
        self._made: dict[tuple[str, str | None, str, str], Texts] = {}
        self._columns: dict[tuple[str, int], list[tuple[str, Column]]] = {}
        for a in arguments.found(block):
            key = (arguments.value_base(a.column) or "", a.occurrence)
            self._columns.setdefault(key, []).append((a.column, block.columns[a.column]))

    def of(self, entry: _Entry) -> Iterator[tuple[Column, Texts]]:
        """The columns that hold an argument, and their texts."""
        for name, column in self._columns.get(entry.field or ("", 0), ()):
            key = (name, entry.argument, entry.decoder, entry.marks)
            if key not in self._made:
                self._made[key] = self._texts(entry, column)
            yield column, self._made[key]

    def _texts(self, entry: _Entry, column: Column) -> Texts:
        if column.cls is TypeClass.JSON or ("j" in entry.marks and column.cls is TypeClass.STR):
            entries, codes = fragments.distinct(column)
            return Texts(pa.array(map(_go_text, entries.to_pylist()), pa.utf8()), codes)
        if entry.argument is not None and not column.cls.child:
            return arguments.texts(entry.argument, self._kinds, column)
        texts = arguments.decoded(entry.decoder, column, " ")
        if "w" in entry.marks:
            return Texts(fragments.around("map[value:", texts.entries, "]"), texts.codes)
        if "o" in entry.marks:
            return Texts(pa.array(["map[]"] * len(texts.entries), pa.utf8()), texts.codes)
        return texts


def _append_entry(
    lines: LineBuilder,
    cells: _Cells,
    entry: _Entry,
    rows: Rows,
    heads: tuple[int, int],
    null: int,
    seen: npt.NDArray[np.bool_],
) -> None:
    """Append an argument to those of the rows that have it."""
    first, other = heads

    def head(some: Rows) -> None:
        before = seen[some]
        seen[some] = True
        lines.append(np.where(before, other, first).astype(np.int32), some)

    if entry.field is None:
        head(rows)
        lines.append(null, rows)
        return
    for column, texts in cells.of(entry):
        if column.rows is None:
            places, some = rows, rows
        else:
            places = np.minimum(np.searchsorted(column.rows, rows), len(column.rows) - 1)
            here = column.rows[places] == rows
            places, some = places[here], rows[here]
        if len(some):
            head(some)
            codes = places if texts.codes is None else texts.codes[places]
            lines.append_texts(Texts(texts.entries, codes.astype(np.int32)), some)


def _go_text(value: str) -> str:
    """A JSON value as Go prints it."""
    try:
        return text.printable(text.clean(_go(json.loads(value)))[0])  # JSON may name a surrogate
    except (ValueError, RecursionError):
        return text.printable(value)


def _go(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{' '.join(map(_go, value))}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{k}:{_go(v)}' for k, v in sorted(value.items()))}]"
    return str(value)
