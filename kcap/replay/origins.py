"""Captures that hold parts of one recording or import, put together as that was.

An event's origin and number there stay with it for good, so the parts of what was split or
filtered tell in which order their events were, whatever their times say. Events of different
origins are still placed by time (`kcap.replay.merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from kcap.format.reader import CaptureReader
from kcap.model.batch import EMPTY, Batch, Rows, concat
from kcap.model.classes import I64_MAX, I64_MIN
from kcap.model.side import Side, Snapshot, SourceInfo
from kcap.model.stream import Source, StreamInfo
from kcap.replay.merge import Merged, Place
from kcap.state import State
from kcap.state.state import PROCESSES

PART: Final = "part"
"""What the details of a source call the part of a capture that was split."""


def joined(
    sources: Sequence[Source],
    again: Callable[[Source], Source],
    wrap: Callable[[Source], Source] = lambda source: source,
) -> list[Source]:
    """Put the parts of one origin together.

    Args:
        sources: The inputs.
        again: Opens an input once more: one with parts of several origins is read for each.
        wrap: Is put around each input.

    Returns:
        Sources that have no origin in common: those of ``sources`` that have none with another,
        and for each origin of the others one of its events, in order of their number.
    """
    made: list[Source] = []
    for members in _related(sources):
        if len(members) == 1:
            made.append(wrap(members[0]))
            continue
        of = [(source, _origins(source)) for source in members]
        origins = sorted({origin for _, found in of for origin in found})
        for origin in origins:
            parts: list[tuple[_Beginning, Source]] = []
            for source, found in of:
                if origin not in found:
                    continue
                first = origin == found[0]
                others = frozenset(found) - {origin}
                part = wrap(source if first else again(source))
                part = _OfOrigin(part, others, first=first) if others else part
                parts.append((_beginning(source, origin), part))
            made.append(ByNumber(parts, origin) if len(parts) > 1 else parts[0][1])
    return made


def _related(sources: Sequence[Source]) -> list[list[Source]]:
    """The sources, those together that share an origin, if through others."""
    groups: list[tuple[set[str], list[Source]]] = []
    for source in sources:
        origins, members = set(_origins(source)), [source]
        apart = []
        for group in groups:
            if origins.isdisjoint(group[0]):
                apart.append(group)
            else:
                origins |= group[0]
                members = [*group[1], *members]
        groups = [*apart, (origins, members)]
    return [members for _, members in groups]


def _origins(source: Source) -> list[str]:
    """The origins that a file says it has; none where it may have others too."""
    found = {info.origin for info in _described(source)}
    return sorted(o for o in found if o is not None) if None not in found else []


def _described(source: Source) -> list[SourceInfo]:
    """The sources that a file says it has."""
    if not isinstance(source, CaptureReader) or not source.window.seekable:
        return []
    index = source.index()
    return [] if index is None else list(map(SourceInfo.from_json, index.totals["sources"]))


class _Beginning(NamedTuple):
    """Where a part of an origin begins."""

    part: int = 0
    """Its number, 0 where it is not known."""
    after: int = I64_MIN
    """Greatest number of an event before it."""


def _beginning(source: Source, origin: str) -> _Beginning:
    """Where a part says it begins; one that was not split off says nothing."""
    for info in _described(source):
        said = info.details.get(PART)
        if info.origin != origin or not isinstance(said, dict):
            continue
        part, after = said.get("number"), said.get("after")
        if type(part) is int and (after is None or type(after) is int):
            after = I64_MIN if after is None else min(max(after, I64_MIN), I64_MAX)
            return _Beginning(part, after)
    return _Beginning()


def as_part(info: SourceInfo, number: int, after: int | None) -> SourceInfo:
    """What a part says of a source, so that it can be put behind the part before.

    A reader may give an event with a lower number behind one with a higher, so the numbers in the
    parts don't tell.

    Args:
        info: The source.
        number: The part's number.
        after: The greatest number of an event of the source's origin before it, None for none.

    Returns:
        The source with this in its details.
    """
    return replace(info, details={**info.details, PART: {"after": after, "number": number}})


def _whole(side: Side) -> Side:
    if not isinstance(side, SourceInfo) or PART not in side.details:
        return side
    return replace(side, details={n: v for n, v in side.details.items() if n != PART})


class _OfOrigin:
    """One origin's events of a capture.

    Args:
        source: The capture; closed with this one.
        others: Its other origins; an event that has none stays with the first.
        first: This is the first: what stands beside the events goes with it.
    """

    def __init__(self, source: Source, others: frozenset[str], *, first: bool) -> None:
        self._source = source
        self._others = others
        self._first = first

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for batch in self._source.batches():
            kept = [s for s in batch.before if self._first or isinstance(s, SourceInfo)]
            yield batch.take(self._rows(batch)).with_before(kept)

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()

    def _rows(self, batch: Batch) -> Rows:
        mine = np.full(batch.rows, self._first)
        column = batch.get("origin")
        if column is not None:
            texts = column.values.dictionary.to_pylist()
            wanted = np.array([text not in self._others for text in texts], np.bool_)
            mine[slice(None) if column.rows is None else column.rows] = wanted[column.codes()]
        return np.flatnonzero(mine).astype(np.int32)


class ByNumber(Merged):
    """A source of the events of several parts of one origin, in order of their number.

    The state at the start of a part adds the processes that are not known from the others; a part
    that was split off adds none.

    Args:
        parts: Where each begins, and the parts; closed with this one.
        origin: Their origin.
    """

    def __init__(self, parts: Sequence[tuple[_Beginning, Source]], origin: str) -> None:
        super().__init__([source for _, source in parts], State())
        ranks = {id(source): rank for rank, source in enumerate(self._sources)}
        ordered = sorted(parts, key=lambda p: (p[0], ranks[id(p[1])]))
        self._sources = [source for _, source in ordered]
        self._starts = [Place(I64_MIN, origin, beginning.after) for beginning, _ in ordered]
        self._begun: set[int] = set()

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for batch in super().batches():
            yield self._state.update(batch.with_before(list(map(_whole, batch.before))))

    def _start(self, rank: int) -> Place:
        """Where a part begins."""
        return self._starts[rank]

    def _tell(self, sides: list[Side], rank: int) -> Iterator[Batch]:
        """Hand on what a part says between its events."""
        for side in sides:
            told: Side | None = side
            if isinstance(side, Snapshot):
                # Now the state has all that came so far: `batches` has followed it.
                yield from self._out.cut()
                if rank not in self._begun and self._begun:
                    told = _added(self._state.snapshot(), side)
                self._begun.add(rank)
            if told is not None:
                yield from self._out.add(EMPTY.with_before([told]))


def _added(known: Snapshot, start: Snapshot) -> Snapshot | None:
    """What is known and the processes that only the start of a part knows; None where none is."""
    new = _processes(start) - _processes(known)
    if not new:
        return None
    table = start.tables[PROCESSES]
    at = [i for i, key in enumerate(_keys(table)) if key in new]
    more = table.take(np.array(at, np.int32)).compact()
    old = known.tables.get(PROCESSES, EMPTY)
    if any(old.columns[n].cls is not c.cls for n, c in more.columns.items() if n in old.columns):
        return None  # no table that kcap wrote: the pipeline's state says so
    return Snapshot({**known.tables, PROCESSES: concat([old, more])})


def _processes(snapshot: Snapshot) -> set[tuple[object, object]]:
    return set(_keys(snapshot.tables.get(PROCESSES, EMPTY)))


def _keys(table: Batch) -> list[tuple[object, object]]:
    """Machine and process id of each row."""
    machines, pids = table.array("machine").to_pylist(), table.array("pid").to_pylist()
    return list(zip(machines, pids, strict=True))
