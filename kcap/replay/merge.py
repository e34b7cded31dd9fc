"""Several sources as one, in order of time.

Each source keeps its own order: an event is placed by the greatest time so far of its source, so
one that comes late stays behind those it came behind. Of events at one time, the origin decides,
then the number there. What comes out is thus a function of the events alone, whatever order the
sources are named in and however they are cut into batches; merging what was merged is the same
as merging all at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.errors import KcapError
from kcap.model.batch import EMPTY, Batch, Column, Rows, concat
from kcap.model.classes import I64_MIN
from kcap.model.side import Loss, Side, Snapshot
from kcap.model.stream import Source, StreamInfo
from kcap.replay.rebatch import Rebatched, Rebatcher
from kcap.state import State
from kcap.state.state import FOLLOWED

Int64s = npt.NDArray[np.int64]

_WINDOW_ROWS: Final = 1 << 17
_WINDOW_BYTES: Final = 128 << 20
"""What all sources together hold at a time, beside the batches they are read in."""

_ROWS: Final = (1024, 16_384)
_LEAST_BYTES: Final = 1 << 20


class Place(NamedTuple):
    """Where an event stands in the merged stream."""

    ts: int
    origin: str
    ord: int


_START: Final = Place(I64_MIN, "", I64_MIN)


class _Limit(NamedTuple):
    """A cut through all inputs: what stands before it can go out."""

    place: Place
    rank: int
    inclusive: bool


@dataclass(frozen=True, slots=True)
class _Places:
    """The places of some rows, ascending."""

    ts: Int64s
    origin: Int64s
    """Index into `names`."""
    ord: Int64s
    names: tuple[str, ...]
    """Ascending."""

    def __getitem__(self, row: int) -> Place:
        name = self.names[int(self.origin[row])]
        return Place(int(self.ts[row]), name, int(self.ord[row]))

    def slice(self, start: int, stop: int) -> _Places:
        """A range of rows."""
        at = slice(start, stop)
        return _Places(self.ts[at], self.origin[at], self.ord[at], self.names)

    def below(self, place: Place, *, inclusive: bool) -> int:
        """How many rows stand before a place, or at it too."""
        low, high = (int(np.searchsorted(self.ts, place.ts, side)) for side in ("left", "right"))
        names = np.array([_compared(name, place.origin) for name in self.names], np.int64)
        origin = names[self.origin[low:high]]
        order = self.ord[low:high]
        same = origin == 0
        before = (origin < 0) | (same & ((order < place.ord) | ((order == place.ord) & inclusive)))
        return low + int(before.sum())


def _compared(a: str, b: str) -> int:
    return (a > b) - (a < b)


class _Input:
    """One source of several: a batch of its rows, of which some have gone out."""

    def __init__(self, batches: Iterator[Batch], file: str, rank: int, start: Place | None) -> None:
        self.rank = rank
        self._by_time = start is None
        self.sides: list[Side] = []
        """What stands before the next row, where it must not go out sooner."""
        self._file = file
        self._batches = batches
        self._batch = EMPTY
        self._at = 0
        self._last = start or _START
        self._places = _places(EMPTY, self._last, by_time=self._by_time)

    def load(self) -> list[Side]:
        """Have rows at hand if there are more.

        Returns:
            Side records that may go out at once.
        """
        found: list[Side] = []
        while self._at == self._batch.rows:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._batch, self._at = batch, 0
            sides = [self._named(side) for side in batch.before]
            if batch.rows:
                self._places = _places(batch, self._last, by_time=self._by_time)
                self._last = self._places[batch.rows - 1]
                if any(isinstance(side, Snapshot) for side in sides):
                    self.sides = sides
                    continue
            found += sides
        return found

    @property
    def limit(self) -> _Limit | None:
        """Up to where this input knows its rows; None at its end."""
        if self._at == self._batch.rows:
            return None
        if self.sides:
            return _Limit(self._places[self._at], self.rank, inclusive=False)
        return _Limit(self._last, self.rank, inclusive=True)

    def take(self, limit: _Limit) -> tuple[Batch, _Places]:
        """The rows before a limit; they are this input's no longer."""
        start = self._at
        if self.rank == limit.rank:
            stop = self._batch.rows if limit.inclusive else start
        else:
            stop = self._places.below(limit.place, inclusive=self.rank < limit.rank)
        self._at = max(start, stop)
        rows = self._batch.slice(start, self._at).with_before(())
        whole = rows.rows == self._batch.rows
        return rows if whole else rows.compact(), self._places.slice(start, self._at)

    def _named(self, side: Side) -> Side:
        """A loss of this run says in which input it was."""
        if isinstance(side, Loss) and not side.recorded:
            return replace(side, reason=f"{self._file}: {side.reason}")
        return side


def _places(batch: Batch, least: Place, *, by_time: bool) -> _Places:
    """Where the rows of a batch stand: at the greatest place so far of their source."""
    column = batch.get("origin")
    texts = [] if column is None else column.values.dictionary.to_pylist()
    names = tuple(sorted({"", least.origin, *texts}))
    code = {name: i for i, name in enumerate(names)}
    origin = np.full(batch.rows + 1, code[""], np.int64)
    if column is not None:
        at = np.arange(batch.rows) if column.rows is None else column.rows
        origin[at + 1] = np.array([code[t] for t in texts], np.int64)[column.codes()]
    origin[0] = code[least.origin]
    times = batch.numpy("ts", I64_MIN) if by_time else np.full(batch.rows, I64_MIN)
    ts = np.concatenate([[least.ts], times])
    order = np.concatenate([[least.ord], batch.numpy("ord", I64_MIN)])
    by_place = np.lexsort((order, origin, ts))
    rank = np.empty(len(by_place), np.int64)
    rank[by_place] = np.arange(len(by_place))
    greatest = by_place[np.maximum.accumulate(rank)][1:]
    return _Places(ts[greatest], origin[greatest], order[greatest], names)


def _joined(parts: Sequence[tuple[Batch, _Places]]) -> Batch:
    """Rows of several inputs, those of the input of least rank first, as one batch in order."""
    if len(parts) == 1:
        return parts[0][0]
    names = sorted({name for _, places in parts for name in places.names})
    code = {name: i for i, name in enumerate(names)}
    origins = [np.array([code[n] for n in p.names], np.int64)[p.origin] for _, p in parts]
    ts = np.concatenate([p.ts for _, p in parts])
    order = np.concatenate([p.ord for _, p in parts])
    return reordered(
        concat([batch for batch, _ in parts]),
        np.lexsort((order, np.concatenate(origins), ts)).astype(np.int32),
    )


def reordered(batch: Batch, order: Rows) -> Batch:
    """The rows of a batch in another order.

    Args:
        batch: The rows.
        order: For each new row, which it was.

    Returns:
        The same rows and side records.
    """
    place = np.empty(batch.rows, np.int32)
    place[order] = np.arange(batch.rows, dtype=np.int32)
    if (place[1:] > place[:-1]).all():
        return batch
    columns = {}
    for name, column in batch.columns.items():
        if column.rows is None:
            columns[name] = Column(column.cls, column.values.take(pa.array(order)))
            continue
        rows = place[column.rows]
        ascending = np.argsort(rows, kind="stable")  # runs of few sources: it merges them
        values = column.values.take(pa.array(ascending))
        columns[name] = Column(column.cls, values, rows[ascending])
    return Batch(batch.rows, columns, batch.before)


class Merged:
    """A source of the events of several, in order of time.

    At any moment it holds one batch of each source, smaller the more there are, and one of its
    own. Times stay as they are. A loss of one source names its file; snapshots become those of
    all machines.

    Args:
        sources: The sources; closed with this one.
        state: The state that follows what this source gives (the pipeline's). A snapshot in a
            source is put into it. One that is a source's first of a machine also goes on, as a
            snapshot of all machines; a writer takes those between from the state.
        rows: Rows of the batches that it gives (`Rebatcher`).

    Example:
        >>> Pipeline(Merged(sources, state), [sink], state=state).run()  # doctest: +SKIP
    """

    def __init__(self, sources: Sequence[Source], state: State, *, rows: int = _ROWS[1]) -> None:
        self._sources = sorted(sources, key=_by_content)
        self._state = state
        self._out = Rebatcher(rows)
        self._described: dict[int, set[str]] = defaultdict(set)

    @property
    def info(self) -> StreamInfo:
        """The sources' files, and their hosts and collectors in one table."""
        infos = [source.info for source in self._sources]
        found = {source.id: source for info in infos for source in info.sources}
        files = ", ".join(info.file for info in infos)
        return StreamInfo(files, "merged", tuple(found[i] for i in sorted(found)))

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        count = max(1, len(self._sources))
        rows = min(max(_WINDOW_ROWS // count, _ROWS[0]), _ROWS[1])
        size = max(_WINDOW_BYTES // count, _LEAST_BYTES)
        inputs = [
            _Input(
                Rebatched(source, rows, size).batches(),
                source.info.file,
                rank,
                self._start(rank),
            )
            for rank, source in enumerate(self._sources)
        ]
        try:
            yield from self._merge(inputs)
        except KcapError:
            # What comes before the error in time is given, as by a source alone.
            yield from self._out.end()
            raise
        yield from self._out.end()

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources:
            source.close()

    def _start(self, rank: int) -> Place | None:
        """Where an input begins, if its events stand in order of their number; None for time."""
        return None

    def _merge(self, inputs: Sequence[_Input]) -> Iterator[Batch]:
        while True:
            for one in inputs:
                yield from self._tell(one.load(), one.rank)
            ends = [limit for one in inputs if (limit := one.limit) is not None]
            if not ends:
                return
            limit = min(ends, key=lambda at: (at.place, at.rank))
            parts = [one.take(limit) for one in inputs]
            filled = [(batch, places) for batch, places in parts if batch.rows]
            if filled:
                yield from self._out.add(_joined(filled))
            if not limit.inclusive:
                yield from self._tell(inputs[limit.rank].sides, limit.rank)
                inputs[limit.rank].sides = []

    def _tell(self, sides: list[Side], rank: int) -> Iterator[Batch]:
        """Hand on what a source says between its events."""
        for side in sides:
            told: Sequence[Side] = [side]
            if isinstance(side, Snapshot):
                # Now the state has all that came so far: who asks for more has followed it.
                yield from self._out.cut()
                told = self._state.update(EMPTY.with_before([side])).before
                if tuple(told) == (side,):
                    new = _machines(side) - self._described[rank]
                    self._described[rank] |= new
                    told = [_with_host(self._state.snapshot(), side)] if new else []
            yield from self._out.add(EMPTY.with_before(told))


def _with_host(snapshot: Snapshot, told: Snapshot) -> Snapshot:
    """A state with the tables that no event changes, of the machine that is new in it."""
    rest = {name: t for name, t in told.tables.items() if name not in FOLLOWED}
    return Snapshot({**rest, **snapshot.tables})


def _machines(snapshot: Snapshot) -> set[str]:
    """The machines that a snapshot describes."""
    columns = [table.get("machine") for table in snapshot.tables.values()]
    return {m for c in columns if c is not None for m in c.values.unique().to_pylist()}


def _by_content(source: Source) -> tuple[list[str], str]:
    """Orders sources by what they are; decides only where events have no identity of their own."""
    info = source.info
    return sorted(s.id for s in info.sources), info.file
