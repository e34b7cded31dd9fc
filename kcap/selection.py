"""Which events are wanted, and the chunks of a capture that can hold them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from kcap.errors import KcapError
from kcap.filter.cells import View
from kcap.format.bloom import is_searched
from kcap.format.chunk_index import ChunkIndex
from kcap.format.index import Index
from kcap.format.reader import CaptureReader
from kcap.model import catalogue, logical
from kcap.model.batch import EMPTY, Batch, Rows
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.replay.derived import Derivation
from kcap.replay.stages import Matching
from kcap.where import Anything, Hashed, Integers, Interval, Nothing, Texts, Values, Where

if TYPE_CHECKING:
    from kcap.capture import Capture
    from kcap.filter.filter import Filter
    from kcap.model.stream import StreamInfo

_CUT_BYTES: Final = 0xFFFF
"""A CHUNK_INDEX keeps so much of an event's name."""

_US: Final = 1000


@dataclass(frozen=True, slots=True)
class Wanted:
    """A choice of columns and of rows."""

    types: Mapping[str, TypeClass]
    """The columns of the events as far as they are known; a name's class is the same everywhere."""
    columns: tuple[str, ...] | None = None
    """Columns of a batch; None for all."""
    where: Where | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    """Half open; an event without a time is in no interval."""
    filter: Filter | None = None
    """Of filter and `where` both must be true."""
    derived: Derivation | None = None
    """Adds the derived events that are wanted, too."""

    def check(self) -> None:
        """Refuse what can't be asked of any events.

        Raises:
            KcapError: There is no such column, or Arrow can't evaluate the filter over them.
        """
        for name in (*(self.columns or ()), *self._fields()):
            self.class_of(name)
        self.rows(EMPTY)

    def class_of(self, name: str) -> TypeClass:
        """The class of a column.

        Args:
            name: A logical column.

        Returns:
            Its class.

        Raises:
            KcapError: There is none of that name.
        """
        cls = TypeClass.I64 if name == logical.TIME_NS else self.types.get(name)
        cls = cls or catalogue.class_of(name)
        if cls is None:
            near = difflib.get_close_matches(name, {*self.types, *catalogue.envelope()}, 1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            hint = f"{meant}kcap docs columns lists the columns"
            raise KcapError(f"no column is called {name!r}", hint=hint)
        return cls

    @property
    def all_rows(self) -> bool:
        """Whether every row is wanted."""
        times = self.start_ns is None and self.end_ns is None
        return times and self.where is None and self.filter is None

    @property
    def everything(self) -> bool:
        """Whether all columns of all rows are wanted, and all that stands beside them."""
        return self.all_rows and self.columns is None and self.derived is None

    def deciding(self) -> list[str]:
        """The columns of a batch that tell which rows are wanted."""
        timed = [logical.TIME] if self.start_ns is not None or self.end_ns is not None else []
        found = logical.physical([*timed, *self._fields()])
        if self.filter is not None:
            found += sorted(self.filter.columns.intersection(self.types).difference(found))
        return found

    def _fields(self) -> list[str]:
        if self.where is None:
            return []
        if self.where.fields is None:
            return list(logical.schema(self.types).names)
        return sorted(self.where.fields)

    def needing(self) -> set[str] | None:
        """The columns of events as they were recorded that matter; None for all."""
        if self.columns is None:
            return None
        found = {*self.columns, *self.deciding()}
        if self.derived is not None:
            found |= self.filter.columns if self.filter is not None else set()
            found |= self.derived.columns(found)
        return found

    def rows(self, batch: View, types: AbstractSet[str] | None = None) -> Rows:
        """The rows that are wanted.

        Args:
            batch: Events; only columns of `deciding` are asked for, and only while they matter.
            types: The types of the events, where that is known without reading them.

        Returns:
            Their numbers, ascending.

        Raises:
            KcapError: Arrow can't evaluate the filter over them.
        """
        kept = self._in_time(batch)
        if self.filter is not None and (kept is None or len(kept)):
            found = self.filter.rows(batch, types)
            kept = found if kept is None else np.intersect1d(kept, found, assume_unique=True)
        if self.where is None:
            return np.arange(batch.rows, dtype=np.int32) if kept is None else kept
        return self._where_rows(self.where, batch, kept)

    def _where_rows(self, where: Where, batch: View, kept: Rows | None) -> Rows:
        """Of these rows those for which the expression is true."""
        names = self._fields() or [logical.TIME]  # a table's length is that of its columns
        fields = [pa.field(n, logical.arrow_type(n, self.class_of(n))) for n in names]
        columns = {n: c for n in logical.physical(names) if (c := batch.get(n)) is not None}
        part = Batch(batch.rows, columns)
        part = part if kept is None else part.take(kept)
        try:
            found = where.rows(logical.table(part, fields))
        except pa.ArrowException as e:
            hint = "compare a column with a constant of its own type; capture.schema names them"
            raise KcapError(f"the filter can't be evaluated: {e}", hint=hint) from e
        return found if kept is None else kept[found]

    def _in_time(self, batch: View) -> Rows | None:
        """The rows of the interval, None where all times are wanted."""
        if self.start_ns is None and self.end_ns is None:
            return None
        times = batch.get(logical.TIME)
        if times is None:
            return np.zeros(0, np.int32)
        stamps = np.asarray(times.values)
        inside = np.ones(len(stamps), np.bool_)
        if self.start_ns is not None:
            inside &= stamps >= self.start_ns
        if self.end_ns is not None:
            inside &= stamps < self.end_ns
        kept = np.flatnonzero(inside).astype(np.int32)
        return kept if times.rows is None else times.rows[kept]

    def may_match(self, values_of: Callable[[str], Values]) -> bool:
        """Whether a chunk may have a row that is wanted.

        Args:
            values_of: What a column may hold there.

        Returns:
            False where it certainly has none.
        """
        if self.where is not None and not self.where.may_match(values_of):
            return False
        known = self.types.keys() if self.derived is None else self.types.keys() | self.derived.made
        return self.filter is None or self.filter.may_match(values_of, known)

    def matching(self, batch: Batch) -> Batch:
        """What is wanted of a batch.

        Args:
            batch: Events with all that is wanted and all of `deciding`; side records stay.

        Returns:
            The rows and columns wanted.
        """
        if self.derived is not None:
            batch, _ = self.derived.matching(batch, self.rows)
        elif not self.all_rows:
            rows = self.rows(batch)
            batch = batch if len(rows) == batch.rows else batch.take(rows)
        return batch if self.columns is None else batch.select(self.columns)


class ChunkScan:
    """Reads the chunks of a capture in a file that can hold what is wanted, and no others."""

    def __init__(self, reader: CaptureReader, index: Index, wanted: Wanted) -> None:
        """Prepare a scan.

        Args:
            reader: The capture.
            index: Its index.
            wanted: What is wanted of it.
        """
        self._reader = reader
        self._table = index.table
        self._wanted = wanted
        self._columns = reader.columns()
        self._types: AbstractSet[str] | None = None
        """Of the events in the chunk that `_may_match` was asked of last."""
        self.losses = [*(Loss.from_json(e) for e in index.totals["loss"]), *index.losses]
        """What the capture says was lost, and what is wrong with its end."""
        names = (wanted.where and wanted.where.fields) or frozenset()
        if wanted.filter is not None:
            wanted.filter.note(map(SourceInfo.from_json, index.totals["sources"]))
            names |= wanted.filter.columns
        if wanted.derived is not None:
            wanted.derived.note(map(SourceInfo.from_json, index.totals["sources"]))
        self._uses_index = any(
            name in {"pid", "event", "seq"} or self._columns.get(name) is TypeClass.STR
            for name in names
        )

    def in_time(self) -> list[int]:
        """The chunks that may have an event in the interval, by their place in the table."""
        low, high = self._table["ts_min"], self._table["ts_max"]
        kept = np.ones(len(self._table), np.bool_)
        if self._wanted.start_ns is not None:
            kept &= (low <= high) & (high >= self._wanted.start_ns)
        if self._wanted.end_ns is not None:
            kept &= (low <= high) & (low < self._wanted.end_ns)
        found: list[int] = np.flatnonzero(kept).tolist()
        return found

    def _may_match(self, number: int) -> bool:
        self._types = None
        entry = self._table[number]
        if not self._may_hold(chunk_values(entry, None, self._columns)):
            return False
        if not self._uses_index:
            return True
        found = self._reader.chunk_index(number)
        if found is not None and _says_all(found):
            self._types = frozenset(found.types)
        return found is None or self._may_hold(chunk_values(entry, found, self._columns))

    def _may_hold(self, values_of: Callable[[str], Values]) -> bool:
        """Whether events with such values, or views of them, may be wanted."""
        if self._wanted.may_match(values_of):
            return True
        derived = self._wanted.derived
        return derived is not None and self._wanted.may_match(derived_values(derived, values_of))

    def read(self, number: int) -> list[tuple[Batch, Loss | None]]:
        """What is wanted of a chunk; nothing is read of one that can't hold it.

        Args:
            number: Its place in the table.

        Returns:
            Rows, perhaps none; behind those that could be rescued of a damaged chunk, what was
            lost with it.
        """
        if not self._may_match(number):
            return []
        try:
            return [(self._chunk(number), None)]
        except KcapError:
            names = self._wanted.needing()
            parts = self._reader.rescued(number, None if names is None else tuple(names))
            return [(self._wanted.matching(batch), loss) for batch, loss in parts]

    def _chunk(self, number: int) -> Batch:
        """The rows wanted: first the columns that tell which, then of these rows the others."""
        wanted = self._wanted
        if wanted.all_rows and wanted.derived is None:
            return self._reader.chunk(number, wanted.columns)
        if wanted.derived is not None and (
            self._types is None or wanted.derived.events(self._types)
        ):
            return self._viewed(number, wanted, wanted.derived)
        view = self._reader.view(number)
        rows = wanted.rows(view, self._types)
        if not len(rows):
            return EMPTY
        names = self._columns if wanted.columns is None else wanted.columns
        batch = Batch(view.rows, {n: c for n in names if (c := view.get(n)) is not None})
        return batch if len(rows) == batch.rows else batch.take(rows)

    def _viewed(self, number: int, wanted: Wanted, derived: Derivation) -> Batch:
        """The rows and derived rows wanted: as `_chunk`, first what tells which."""
        deciding = {*wanted.deciding(), *(wanted.filter.columns if wanted.filter else ())}
        part = self._reader.chunk(number, sorted(deciding | derived.columns(deciding)))
        rows = np.unique(derived.matching(part, wanted.rows)[1])
        if not len(rows):
            return EMPTY
        needed = wanted.needing()
        whole = self._reader.chunk(number, None if needed is None else sorted(needed))
        return wanted.matching(whole.take(rows))


class Pass:
    """One reading of a capture."""

    def __init__(self, capture: Capture, wanted: Wanted) -> None:
        """Say what to read.

        Args:
            capture: The capture.
            wanted: What is wanted of it.
        """
        self._capture = capture
        self._wanted = wanted
        if wanted.filter is not None:
            wanted.filter.bind([capture.source])

    @property
    def info(self) -> StreamInfo:
        """See `kcap.model.stream.Source.info`."""
        return self._capture.source.info

    def batches(self) -> Iterator[Batch]:
        """The events wanted; losses that this reading meets are kept in `Capture.losses`.

        Yields:
            Batches in file order.
        """
        wanted = self._wanted
        follows = wanted.filter is not None and wanted.filter.follows
        scan = None if wanted.everything or follows else self._capture.scan(wanted)
        if scan is not None:
            yield from self._noted(self._chunks(scan))
            return
        with self._capture.opened() as source:
            found = source.batches()
            if not wanted.everything:
                found = _filtered(found, wanted)
            yield from self._noted(self._locked(found))
        if wanted.filter is not None:
            self._note(wanted.filter.losses)

    __iter__ = batches

    def _locked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Each batch, made while nobody else reads the file."""
        while True:
            with self._capture.lock:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _chunks(self, scan: ChunkScan) -> Iterator[Batch]:
        before: list[Side] = [*self._capture.info.sources, *scan.losses]
        for number in scan.in_time():
            with self._capture.lock:
                parts = scan.read(number)
            for batch, loss in parts:
                if loss is not None:
                    before.append(loss)
                if batch.rows:
                    yield batch.with_before(before)
                    before = []
        if before:
            yield EMPTY.with_before(before)

    def _noted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._note(s for s in batch.before if isinstance(s, Loss) and not s.recorded)
            yield batch

    def _note(self, losses: Iterable[Loss]) -> None:
        known = self._capture.losses
        known += [loss for loss in dict.fromkeys(losses) if loss not in known]


def _filtered(batches: Iterator[Batch], wanted: Wanted) -> Iterator[Batch]:
    """What is wanted of all batches; a state means nothing among some of its events."""
    names = wanted.derived.names if wanted.derived else ()
    stage = None if wanted.filter is None else Matching(wanted.filter, derived=names)
    wanted = replace(wanted, filter=None, derived=None if stage else wanted.derived)
    for batch in batches:
        found = batch if stage is None else stage.process(batch)
        found = wanted.matching(found)
        sides = [side for side in batch.before if not isinstance(side, Snapshot)]
        if found.rows or sides:
            yield found.with_before(sides)


def chunk_values(
    entry: Any,  # noqa: ANN401  (numpy's type of one entry is no better)
    index: ChunkIndex | None,
    types: Mapping[str, TypeClass],
) -> Callable[[str], Values]:
    """What the columns may hold in a chunk.

    Args:
        entry: The chunk's entry in the table.
        index: Its CHUNK_INDEX; None where that was not read, or is not there.
        types: All columns of the capture.

    Returns:
        A function of a logical column's name.
    """

    def values_of(name: str) -> Values:
        if name in (logical.TIME, logical.TIME_NS):
            low, high = int(entry["ts_min"]), int(entry["ts_max"])
            if low > high or name == logical.TIME_NS:
                return _interval(low, high)
            return Interval(low // _US * _US, high // _US * _US, "time")
        if name not in types:
            return Nothing()
        if name == "ord":
            return _interval(int(entry["ord_min"]), int(entry["ord_max"]))
        return Anything() if index is None else _indexed(name, index, types[name])

    return values_of


def derived_values(
    derived: Derivation, values_of: Callable[[str], Values]
) -> Callable[[str], Values]:
    """What the columns of derived events may hold in a chunk.

    Args:
        derived: What adds the events.
        values_of: What the columns of recorded events may hold there.

    Returns:
        A function of a logical column's name.
    """

    def made(name: str) -> Values:
        if name != "event":
            return Anything() if name in derived.made else values_of(name)
        found = values_of(name)
        return Texts(derived.events(found.values)) if isinstance(found, Texts) else found

    return made


def _indexed(name: str, index: ChunkIndex, cls: TypeClass) -> Values:
    """What a CHUNK_INDEX says of a column."""
    if name == "seq":
        return _interval(*index.seq)
    if name == "pid" and index.pids is not None:
        return Integers(index.pids)
    if name == "event" and _says_all(index):
        return Texts(frozenset(index.types))
    if cls is TypeClass.STR and is_searched(name, cls) and index.strings is not None:
        return Hashed(index.strings.may_hold)
    return Anything()


def _says_all(index: ChunkIndex) -> bool:
    """Whether the types of events in it are in full."""
    return all(len(n) < _CUT_BYTES // 4 for n in index.types)


def _interval(low: int, high: int) -> Values:
    return Nothing() if low > high else Interval(low, high)
