"""What was known in the middle of a capture: the STATE records, and what to follow behind one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.format import body, payloads
from kcap.format.chunk_view import ChunkView
from kcap.format.index import Index
from kcap.format.reader import CaptureReader
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.scan import Record
from kcap.format.state_tables import read_state
from kcap.model import catalogue
from kcap.model.batch import EMPTY, Batch, Column
from kcap.model.side import Side, SourceInfo
from kcap.replay.span import AtEvent, AtRow, AtTime, Bound, Span, absent, rows_of
from kcap.state import State, handles
from kcap.state.state import FOLLOWED, HANDLES

Tables = dict[str, Batch]
"""Tables of a snapshot, by name."""

BEYOND: Final = 1 << 62
"""A row that no capture has."""

_NAMES_BYTES: Final = 1 << 12
"""The start of a STATE record, which names its tables."""


class Follow(NamedTuple):
    """What lies between a STATE record and the chunk of the first wanted row."""

    chunks: range
    """Places in the index's table."""
    offset: int
    """Where the records behind them begin."""
    row: int
    """The number of the first row there."""


class Plan(NamedTuple):
    """Where to read a capture."""

    span: Span
    """What is wanted, with rows in place of events."""
    stop: int = BEYOND
    """Behind the last row that can be wanted."""
    state: int | None = None
    """Offset of the STATE record to begin with; None for the first record of all."""
    state_row: int = 0
    """The number of the first row behind it."""
    follow: Follow | None = None
    """None where everything behind the STATE must be read."""


def planned(reader: CaptureReader, index: Index, span: Span) -> Plan:
    """Find where to begin and to end.

    Args:
        reader: The capture.
        index: Its index.
        span: What is wanted.

    Returns:
        The last STATE record before the first wanted row that tells of all machines, and what to
        follow from there.

    Raises:
        KcapError: An event that is named is not there.
    """
    table = index.table
    ends = np.cumsum(table["rows"].astype(np.int64))
    span = Span(_as_row(reader, index, span.start), _as_row(reader, index, span.end), span.behind)
    first = max(span.behind, _first(index, ends, span.start))
    plan = Plan(span, _stop(index, ends, span.end))
    if not first:
        return plan
    chunk = int(np.searchsorted(ends, first, "right"))
    limit = int(table["offset"][chunk]) if chunk < len(ends) else BEYOND
    found = _state_before(reader, index, limit)
    if found is None:
        return plan
    state, length = found
    begun = int((table["offset"] < state).sum())
    row = int(ends[begun - 1]) if begun else 0
    plan = plan._replace(state=state, state_row=row)
    later = any(state < offset < limit for offset, _ in index.totals["states"])
    if later or chunk == len(ends):
        return plan
    last = table[chunk - 1]
    offset = max(state + length, int(last["offset"] + last["length"]) if chunk else 0)
    row = int(ends[chunk - 1]) if chunk else 0
    return plan._replace(follow=Follow(range(begun, chunk), offset, row))


def followed(reader: CaptureReader, state: int, chunks: range) -> Iterator[Batch]:
    """A STATE record and the chunks behind it, for a state to follow.

    Args:
        reader: The capture.
        state: Offset of the record.
        chunks: Places in the index's table.

    Yields:
        An empty batch with the snapshot, then the chunks: of each only the columns are read that
        are asked for.

    Raises:
        KcapError: Something of it is damaged; asking for a column may raise it, too.
    """
    found = read_state(reader.payload_at(state, Kind.STATE), reader.schema)
    yield EMPTY.with_before([found])
    for number in chunks:
        view = reader.view(number)
        yield view if isinstance(view, Batch) else Batch(view.rows, _Columns(view))


class _Columns(Mapping[str, Column]):
    """The columns of a chunk, read when they are asked for."""

    def __init__(self, view: ChunkView) -> None:
        self._view = view

    def __getitem__(self, name: str) -> Column:
        column = self._view.get(name)
        if column is None:
            raise KeyError(name)
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._view.names))

    def __len__(self) -> int:
        return len(self._view.names)


def _as_row(reader: CaptureReader, index: Index, bound: Bound | None) -> Bound | None:
    """An event as the row where it stands."""
    if not isinstance(bound, AtEvent):
        return bound
    row = 0
    damaged = False
    for number, entry in enumerate(index.table):
        if entry["ord_min"] <= bound.ord <= entry["ord_max"]:
            try:
                found = rows_of(reader.chunk(number, ("origin", "ord")), bound)
            except KcapError:
                damaged = True  # tails may hold its rows: who reads everything finds them
            else:
                if len(found):
                    return AtRow(row + int(found[0]))
        row += int(entry["rows"])
    if not damaged:
        raise absent(bound, reader.file)
    return bound


def _first(index: Index, ends: npt.NDArray[np.int64], start: Bound | None) -> int:
    """The first row of a chunk that may be wanted."""
    if isinstance(start, AtRow):
        return start.number
    if not isinstance(start, AtTime):
        return 0
    low, high = index.table["ts_min"], index.table["ts_max"]
    chunks = np.flatnonzero((low <= high) & (high >= start.ns))
    at = int(chunks[0]) if len(chunks) else len(ends)
    return int(ends[at - 1]) if at else 0


def _stop(index: Index, ends: npt.NDArray[np.int64], end: Bound | None) -> int:
    """Behind the last row of a chunk that may be wanted."""
    if isinstance(end, AtRow):
        return end.number
    if not isinstance(end, AtTime):
        return BEYOND
    low, high = index.table["ts_min"], index.table["ts_max"]
    chunks = np.flatnonzero((low <= high) & (low < end.ns))
    return int(ends[chunks[-1]]) if len(chunks) else 0


def sources_at(reader: CaptureReader, index: Index, offset: int) -> list[Side]:
    """The sources as they are described before a place.

    Args:
        reader: The capture.
        index: Its index.
        offset: The place.

    Returns:
        The last description of each.
    """
    last = {info.id: info for info in map(SourceInfo.from_json, index.totals["sources"])}
    if index.totals["records"].get(Kind.SOURCE.name) != len(last):
        # The index has the last description of each. Of all other records the headers are read.
        for item in reader.scanner(end=offset, kinds={Kind.SOURCE}).records():
            if isinstance(item, Record) and item.header.kind == Kind.SOURCE:
                info = SourceInfo.from_json(body.unpack_object(item.payload, "SOURCE"))
                last[info.id] = info
    return list(last.values())


def _state_before(reader: CaptureReader, index: Index, limit: int) -> tuple[int, int] | None:
    """The last STATE record before a place that tells of everything that was known there."""
    if Kind.RECOVERY.name in index.totals["records"]:
        return None  # it explains what is missing, if only to who has read it
    sources = list(map(SourceInfo.from_json, index.totals["sources"]))
    machines = {State.machine(source) for source in sources} or {""}
    holders = _holders(reader, index, sources)
    for offset, length in reversed(index.totals["states"]):
        if offset < limit and _tells(reader, offset, machines, holders):
            return int(offset), int(length)
    return None


def _tells(reader: CaptureReader, offset: int, machines: set[str], holders: set[str]) -> bool:
    """Whether a STATE replaces all that was known before it."""
    try:
        tables = read_state(reader.payload_at(offset, Kind.STATE), reader.schema).tables
    except KcapError:
        return False  # an earlier one and what follows it say the same
    followed = FOLLOWED - {HANDLES}
    told = {m for name in followed & tables.keys() for m in _machines(tables[name])}
    held = _machines(tables[HANDLES]) if HANDLES in tables else set()
    return machines <= told and holders <= held


def _machines(table: Batch) -> set[str]:
    return {machine or "" for machine in table.array("machine").unique().to_pylist()}


def _holders(reader: CaptureReader, index: Index, sources: list[SourceInfo]) -> set[str]:
    """The machines of which handles may be known."""
    able: set[str] = set()
    opened = False
    for source in sources:
        events = catalogue.events(catalogue.family(source.collector))
        opening = [name for name, e in events.items() if e.action in handles.OPENING]
        if opening:
            able.add(State.machine(source))
            opened |= not index.totals["types"].keys().isdisjoint(opening)
    if able and not opened:
        opened = any(_names_handles(reader, *state) for state in index.totals["states"])
    return able if opened else set()


def _names_handles(reader: CaptureReader, offset: int, length: int) -> bool:
    """Whether a STATE has a table of handles, by its first bytes; one that is damaged may."""
    head = reader.window.read_at(offset + HEADER_BYTES, min(length, _NAMES_BYTES))
    try:
        return HANDLES in payloads.state_names(head)
    except KcapError:
        return True


def host_tables(reader: CaptureReader, index: Index) -> Tables:
    """What the first STATE record says of the host, which no event changes.

    Args:
        reader: The capture.
        index: Its index.

    Returns:
        The tables that the state does not follow.
    """
    for offset, _ in index.totals["states"][:1]:
        try:
            found = read_state(reader.payload_at(offset, Kind.STATE), reader.schema).tables
        except KcapError:
            return {}  # `kcap verify` says so; what follows has losses of its own
        return {name: table for name, table in found.items() if name not in FOLLOWED}
    return {}
