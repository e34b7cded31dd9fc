"""Enter and exit of a call as one event.

An exit belongs to the enter of the same type that is the last call of its thread; what is no call
(a task switch, a signal) may stand between. What comes out, and in which order, depends on the
file alone and not on how it was cut into batches: a joined event stands where its exit stands, an
enter without an exit where its thread goes on without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model import catalogue, naming, shape
from kcap.model.batch import EMPTY, Batch, Column, coded, concat
from kcap.model.classes import TypeClass
from kcap.readers import scap_table
from kcap.readers.scap_decode import RawEvents

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

HELD: Final = 1 << 18
"""Most enters that wait for their exits; beyond, the oldest are taken to be without one."""

_ENDING: Final = "procexit"
_NO_TIME: Final = -1
_AT_END: Final = 1 << 61


class _Halves(NamedTuple):
    """Events with their places: what waited, and what came."""

    batch: Batch
    number: Int64s
    tid: Int64s
    type_id: Int64s

    def take(self, rows: Int64s) -> _Halves:
        """Some of them."""
        return _Halves(
            self.batch.take(rows.astype(np.int32)).with_before(()),
            self.number[rows],
            self.tid[rows],
            self.type_id[rows],
        )


_NONE: Final = _Halves(EMPTY, *[np.empty(0, np.int64)] * 3)


class _Pairs(NamedTuple):
    """What became of the rows."""

    enter: Int64s
    exit: Int64s
    """The row of the exit that belongs to each of `enter`."""
    lone: Int64s
    """Enters whose thread went on without their exit."""
    follower: Int64s
    """The row that it went on with, for each of `lone`."""
    waiting: Int64s
    """Enters whose exit may still come."""


class Joiner:
    """Joins the halves of calls.

    Args:
        raw_pairs: Keep both halves as rows; an exit then has its enter's arguments as well, but
            not in its shape.
    """

    def __init__(self, *, raw_pairs: bool = False) -> None:
        self._raw_pairs = raw_pairs
        self._held = _NONE

    def add(self, raw: RawEvents) -> Batch:
        """Take in raw events.

        Args:
            raw: The next ones of the file.

        Returns:
            The events that are complete by now.
        """
        return self._joined(_Halves(raw.batch, raw.number, raw.tid, raw.type_id), ends=False)

    def rest(self) -> Batch:
        """End a section: what still waits for an exit is alone.

        Returns:
            Those enters, in order of their numbers.
        """
        return self._joined(_NONE, ends=True)

    def _joined(self, new: _Halves, *, ends: bool) -> Batch:
        held = len(self._held.number)
        halves = new
        if held:
            batch = concat([self._held.batch, new.batch]) if new.batch.rows else self._held.batch
            before = new.batch.before
            merged = (np.concatenate(both) for both in zip(self._held[1:], new[1:], strict=True))
            halves = _Halves(batch.with_before(before), *merged)
        pairs = _pairs(halves, ends=ends)
        place = 2 * halves.number
        out = np.ones(len(place), np.bool_)
        if self._raw_pairs:
            out[:held] = False
        else:
            out[pairs.enter] = out[pairs.waiting] = False
            place[pairs.lone] = np.where(
                pairs.follower < 0,
                _AT_END + place[pairs.lone],
                2 * halves.number[pairs.follower] - 1,
            )
        self._held = halves.take(np.sort(pairs.waiting)) if len(pairs.waiting) else _NONE
        rows = np.flatnonzero(out)
        return _Output(halves, pairs, rows[np.argsort(place[rows])], self._raw_pairs).batch()


def _pairs(halves: _Halves, *, ends: bool) -> _Pairs:
    """Find what belongs together."""
    of = scap_table.traits()
    types = np.minimum(halves.type_id, of.size)
    call = of.has_both[types]
    marks = np.flatnonzero(call | _ends_thread()[types])
    marks = marks[np.argsort(halves.tid[marks], kind="stable")]
    enters = np.flatnonzero(call[marks] & ~of.is_exit[types[marks]])
    following = np.append(marks, -1)[enters + 1]
    enter = marks[enters]
    goes_on = (following >= 0) & (halves.tid[following] == halves.tid[enter])
    paired = goes_on & (halves.type_id[following] == halves.type_id[enter] + 1)
    last = ~goes_on
    alone = goes_on & ~paired
    following = np.where(goes_on, following, -1)
    if ends:
        alone, last = alone | last, np.zeros_like(last)
    elif last.sum() > HELD:
        oldest = np.sort(enter[last])[:-HELD]
        given_up = last & np.isin(enter, oldest)
        alone, last = alone | given_up, last & ~given_up
    return _Pairs(enter[paired], following[paired], enter[alone], following[alone], enter[last])


@lru_cache(maxsize=1)
def _ends_thread() -> Mask:
    """Which event types are the last of their thread."""
    found = np.zeros(scap_table.traits().size + 1, np.bool_)
    found[[n for n, t in scap_table.event_types().items() if t.name == _ENDING]] = True
    return found


class _Output:
    """The batch that comes out.

    Args:
        halves: All rows at hand.
        pairs: What belongs together.
        rows: The rows that come out, in their order.
        raw_pairs: Enters come out as well.
    """

    def __init__(self, halves: _Halves, pairs: _Pairs, rows: Int64s, raw_pairs: bool) -> None:
        self._halves = halves
        self._raw_pairs = raw_pairs
        self._rows = rows
        count = halves.batch.rows
        self._own = np.full(count, -1, np.int64)
        """Where a row of the halves comes out."""
        self._own[rows] = np.arange(len(rows))
        self._exit = np.full(count, -1, np.int64)
        """Where an enter's exit comes out."""
        self._exit[pairs.enter] = self._own[pairs.exit]
        self._enter = np.full(len(rows), -1, np.int64)
        """The enter of a row that comes out."""
        self._enter[self._own[pairs.exit]] = pairs.enter
        self._differing: dict[str, Mask] = {}

    def batch(self) -> Batch:
        """Make it."""
        halves = self._halves.batch
        if not len(self._rows):
            return Batch(0, {}, halves.before)
        columns: dict[str, Column] = {}
        arguments: dict[str, list[str]] = {}
        for name, column in halves.columns.items():
            base, _ = naming.parts(name)
            if base == naming.ARGUMENT or base.startswith(f"{naming.ARGUMENT}_"):
                arguments.setdefault(base, []).append(name)
            else:
                self._put(columns, name, column, self._places(column, self._own))
        for names in arguments.values():
            self._join(columns, names)
        columns |= self._duration()
        if not self._raw_pairs:
            self._narrow_direction(columns)
            columns |= self._shapes(columns)
        columns |= self._classified()
        return Batch(len(self._rows), columns, halves.before)

    def _places(self, column: Column, at: Int64s) -> Int64s:
        """For each row that comes out the number of the value it gets, -1 for none."""
        rows = at if column.rows is None else at[column.rows]
        found = np.full(len(self._rows), -1, np.int64)
        to = np.flatnonzero(rows >= 0)
        found[rows[to]] = to
        return found

    def _put(self, columns: dict[str, Column], name: str, column: Column, places: Int64s) -> None:
        rows = np.flatnonzero(places >= 0)
        if len(rows):
            values = column.values.take(pa.array(places[rows]))
            every = len(rows) == len(places)
            columns[name] = Column(column.cls, values, None if every else rows.astype(np.int32))

    def _join(self, columns: dict[str, Column], names: Sequence[str]) -> None:
        """Put an argument of both halves into its columns."""
        found = [self._halves.batch.columns[name] for name in names]
        own = [self._places(column, self._own) for column in found]
        enter = [self._places(column, self._exit) for column in found]
        has_own = np.logical_or.reduce([places >= 0 for places in own])
        has_enter = np.logical_or.reduce([places >= 0 for places in enter])
        both = np.flatnonzero(has_own & has_enter)
        differs = np.zeros(len(self._rows), np.bool_)
        if len(both) and not self._raw_pairs:
            for column, mine, other in zip(found, own, enter, strict=True):
                differs[both] |= _differ(column, mine[both], other[both])
            if differs.any():
                self._differing[naming.source_name(naming.parts(names[0])[0])] = differs
        for name, column, mine, other in zip(names, found, own, enter, strict=True):
            self._put(columns, name, column, np.where(has_own, mine, other))
            if differs.any():
                self._put(columns, _second(name), column, np.where(differs, other, -1))

    def _duration(self) -> dict[str, Column]:
        """How long the calls took."""
        ts = self._halves.batch.numpy("ts", _NO_TIME)
        start = np.where(self._enter >= 0, ts[self._enter], _NO_TIME)
        end = ts[self._rows]
        rows = np.flatnonzero((start != _NO_TIME) & (end != _NO_TIME)).astype(np.int32)
        if not len(rows):
            return {}
        every = len(rows) == len(end)
        values = pa.array(end[rows] - start[rows])
        return {"duration_ns": Column(TypeClass.I64, values, None if every else rows)}

    def _types(self) -> Int64s:
        """The event type of each row, the number behind the last one for unknown ones."""
        return np.minimum(self._halves.type_id[self._rows], scap_table.traits().size)

    def _narrow_direction(self, columns: dict[str, Column]) -> None:
        """Only a half of a call has a direction."""
        alone = (self._enter < 0) & scap_table.traits().has_both[self._types()]
        column = columns.pop("direction", None)
        kept = column and column.take(np.flatnonzero(alone).astype(np.int32), len(self._rows))
        if kept:
            rows = np.flatnonzero(alone).astype(np.int32)
            at = rows if kept.rows is None else rows[kept.rows]
            columns["direction"] = Column(kept.cls, kept.values, at)

    def _shapes(self, columns: dict[str, Column]) -> dict[str, Column]:
        """The shapes of joined events: the exit's parameters, then what the enter adds."""
        column = self._halves.batch.get("shape")
        pairs = np.flatnonzero(self._enter >= 0)
        if column is None or not len(pairs):
            return {}
        entries = [*column.values.dictionary.to_pylist(), None]
        none = len(entries) - 1
        codes = np.full(self._halves.batch.rows, none, np.int64)
        codes[slice(None) if column.rows is None else column.rows] = column.codes()
        exits = codes[self._rows]
        enters = np.where(self._enter >= 0, codes[self._enter], none)
        # One number a combination: np.unique over rows of several was 0.2 us a raw event.
        key = exits * len(entries) + enters
        for differs in self._differing.values():
            key = 2 * np.unique(key, return_inverse=True)[1] + differs
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        texts = []
        for row in first.tolist():
            differing = frozenset(n for n, differs in self._differing.items() if differs[row])
            texts.append(_merged(entries[exits[row]], entries[enters[row]], differing))
        made = coded(texts, which)
        return {} if made is None else {"shape": made}

    def _classified(self) -> dict[str, Column]:
        """What happened, in kcap's words; of an enter alone only what it is about."""
        known = catalogue.events("scap")
        types, which = np.unique(self._types(), return_inverse=True)
        infos = [known.get(scap_table.name_of(number)) for number in types.tolist()]
        of = scap_table.traits()
        begins = of.has_both[types] & ~of.is_exit[types]
        actions = [
            None if info is None or begin else info.action
            for info, begin in zip(infos, begins.tolist(), strict=True)
        ]
        found = {
            "action": coded(actions, which),
            "category": coded([info and info.category for info in infos], which),
        }
        return {name: column for name, column in found.items() if column is not None}


def _differ(column: Column, mine: Int64s, other: Int64s) -> Mask:
    """Where two values of a column differ; none differs from one."""
    found: Mask = (mine >= 0) != (other >= 0)
    both = np.flatnonzero((mine >= 0) & (other >= 0))
    a, b = (column.values.take(pa.array(places[both])) for places in (mine, other))
    if pa.types.is_dictionary(a.type):
        a, b = a.dictionary_decode(), b.dictionary_decode()
    if pa.types.is_list(a.type):
        unequal = [x != y for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)]
    else:
        unequal = pc.not_equal(a, b).to_pylist()
    found[both] = unequal
    return found


def _second(name: str) -> str:
    """The column of a field that comes the second time."""
    base, suffixes = naming.parts(name)
    ending = suffixes[-1:] if suffixes[-1:] in ([naming.RAW], [naming.SIZE]) else []
    return "__".join([base, *suffixes[: len(suffixes) - len(ending)], "2", *ending])


@lru_cache(maxsize=4096)
def _merged(exit_: str | None, enter: str | None, differing: frozenset[str]) -> str | None:
    """The shape of a joined event."""
    if exit_ is None or enter is None:
        return exit_
    found = {item.name: item for item in shape.decode(exit_).arguments}
    more = []
    for item in shape.decode(enter).arguments:
        known = found.get(item.name)
        if known is None or item.name in differing:
            more.append(item)
        elif known.null and not item.null:
            found[item.name] = item
    return shape.encode([*found.values(), *more])
