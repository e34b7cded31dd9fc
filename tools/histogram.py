"""Events over time, counted without knowing beforehand when they happened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model.batch import Batch
from kcap.model.classes import I64_MAX, I64_MIN
from kcap.model.side import Loss

Int64s = npt.NDArray[np.int64]

CELLS_MAX: Final = 1 << 20
"""Pairs of a value and an interval that are counted; beyond, intervals become twice as long."""

VALUES_MAX: Final = 1 << 16
"""Different values that are counted one by one."""

VALUE_CHARS: Final = 256
"""Characters by which texts are told apart."""

LOSSES_MAX: Final = 10_000
"""Losses that are placed in time one by one."""

MISSING: Final = "(none)"
"""Stands for events without a value."""

OTHERS: Final = "(others)"
"""Stands for values that there was no room to count, or no row to show."""

_SHIFT_MAX: Final = 63
"""Where all of time is two intervals; values alone never fill the room."""

_PENDING: Final = 1 << 16
_FAR: Final = 10_000
_TAIL: Final = 100


@dataclass(frozen=True, slots=True)
class Placed:
    """A loss and when it was, as far as that is known."""

    loss: Loss
    start_ns: int | None
    end_ns: int | None


@dataclass(frozen=True, slots=True)
class Bins:
    """Events over time, in intervals of one length."""

    start_ns: int
    """Where the first interval begins."""
    width_ns: int
    counts: dict[str, list[int]]
    """Value to its events in each interval; values by their sum, the largest first."""
    before: int
    """Events earlier than the first interval."""
    after: int
    """Events later than the last interval."""

    @property
    def totals(self) -> list[int]:
        """All events in each interval."""
        return [sum(column) for column in zip(*self.counts.values(), strict=True)]

    @property
    def count(self) -> int:
        """Number of intervals."""
        return len(next(iter(self.counts.values()), []))

    def place(self, placed: Placed) -> range:
        """The intervals that a loss falls into.

        Args:
            placed: The loss.

        Returns:
            Their numbers; none where its time is not known or not within.
        """
        if placed.start_ns is None or placed.end_ns is None:
            return range(0)
        first = (placed.start_ns - self.start_ns) // self.width_ns
        last = (placed.end_ns - self.start_ns) // self.width_ns
        return range(max(first, 0), min(last, self.count - 1) + 1)


class Histogram:
    """A sink that counts events by time, and by the values of a column.

    Intervals are a power of two long and as short as the memory allows, so whatever is asked for
    later can be made of them exactly, and how events came does not show.

    Args:
        by: The column; None to count all together.
        start_ns: Earlier events don't count.
        end_ns: Neither do events at or after it.

    Example:
        >>> histogram = Histogram()
        >>> Pipeline(source, [histogram]).run()  # doctest: +SKIP
        >>> histogram.bins(64)  # doctest: +SKIP
    """

    def __init__(
        self, by: str | None = None, start_ns: int | None = None, end_ns: int | None = None
    ) -> None:
        self.timeless = 0
        """Events without a time, where no range is asked for; none of them is in a range."""
        self.events = 0
        """Events with a time."""
        self.placed: list[Placed] = []
        """What was lost."""
        self._by = by
        self._start_ns = I64_MIN if start_ns is None else start_ns
        self._end_ns = I64_MAX if end_ns is None else end_ns - 1
        self._restricted = start_ns is not None or end_ns is not None
        self._values: dict[str, int] = {}
        self._shift = 0
        self._cells = np.zeros((3, 0), np.int64)
        self._waiting: list[Int64s] = []
        self._waiting_cells = 0
        self._now_ns: int | None = None

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        for side in batch.before:
            # A cut value's event is there; one that was filtered was not wanted.
            if isinstance(side, Loss) and side.kind not in {"cut", "filtered"}:
                self._lose(side)
        times = batch.get("ts")
        if not self._restricted:
            self.timeless += batch.rows - (0 if times is None else len(times))
        if times is None:
            return
        stamps = np.asarray(times.values)
        latest = int(stamps.max())
        self._now_ns = latest if self._now_ns is None else max(self._now_ns, latest)
        inside = (stamps >= self._start_ns) & (stamps <= self._end_ns)
        at = np.arange(batch.rows) if times.rows is None else times.rows
        stamps, rows = stamps[inside], at[inside]
        if len(rows):
            self.events += len(rows)
            ones = np.ones(len(rows), np.int64)
            self._add(np.stack([self._codes(batch)[rows], stamps >> self._shift, ones]))

    def close(self) -> None:
        """See `Sink.close`."""
        self._compact()

    def bins(self, most: int, top: int | None = None, *, everything: bool = False) -> Bins | None:
        """The events in intervals of one length.

        Args:
            most: Intervals at most.
            top: Values to tell apart at most, the rest is `OTHERS`; None for all.
            everything: Also a few events that are very far from all others.

        Returns:
            The intervals, None where there are no events.
        """
        code, at, count = self._cells
        if not len(at):
            return None
        first, last = (int(at.min()), int(at.max())) if everything else _near(at, count)
        step = -(-(last - first + 1) // most)
        number = (last - first) // step + 1
        inside = (at >= first) & (at <= last)
        # As unsigned numbers, for the whole range of times is more than int64 can tell.
        places = (at[inside] - np.int64(first)).view(np.uint64) // np.uint64(step)
        rows, names = self._ranked(code[inside], count[inside], top)
        cells = rows[code[inside]] * number + places.astype(np.int64)
        sums = np.zeros(len(names) * number, np.int64)
        np.add.at(sums, cells, count[inside])
        return Bins(
            start_ns=first << self._shift,
            width_ns=step << self._shift,
            counts=dict(zip(names, sums.reshape(len(names), number).tolist(), strict=True)),
            before=int(count[at < first].sum()),
            after=int(count[at > last].sum()),
        )

    def _ranked(self, code: Int64s, count: Int64s, top: int | None) -> tuple[Int64s, list[str]]:
        """The row of each value, the most frequent first and the rest as one; the rows' names."""
        known = list(self._values) or [""]
        sums = np.zeros(len(known), np.int64)
        np.add.at(sums, code, count)
        order = sorted(
            np.flatnonzero(sums).tolist(),
            key=lambda i: (known[i] == OTHERS, -int(sums[i]), known[i]),
        )
        alone = [i for i in (order if top is None else order[:top]) if known[i] != OTHERS]
        rows = np.full(len(known), len(alone), np.int64)
        rows[alone] = np.arange(len(alone))
        rest = [OTHERS] if len(alone) < len(order) else []
        return rows, [known[i] for i in alone] + rest

    def _lose(self, loss: Loss) -> None:
        """Note a loss: where it says no time, it was when the events around it were."""
        start = self._now_ns if loss.start_ns is None else loss.start_ns
        end = start if loss.end_ns is None else loss.end_ns
        placed = Placed(loss, start, end)
        if len(self.placed) < LOSSES_MAX:
            self.placed.append(placed)
            return
        last = self.placed[-1]
        rest = replace(last.loss.plus(loss), reason="and others")
        times = [t for t in (last.start_ns, last.end_ns, start, end) if t is not None]
        self.placed[-1] = Placed(rest, min(times, default=None), max(times, default=None))

    def _codes(self, batch: Batch) -> Int64s:
        """The number of each row's value."""
        if self._by is None:
            return np.zeros(batch.rows, np.int64)
        column = batch.get(self._by)
        if column is None or len(column) < batch.rows:
            codes = np.full(batch.rows, self._number(MISSING), np.int64)
        else:
            codes = np.zeros(batch.rows, np.int64)
        if column is not None:
            values = column.values
            if not pa.types.is_dictionary(values.type):
                values = pc.dictionary_encode(values)
            used, which = np.unique(np.asarray(values.indices), return_inverse=True)
            texts = map(_text, values.dictionary.take(pa.array(used)).to_pylist())
            numbers = np.array([self._number(text) for text in texts], np.int64)
            codes[slice(None) if column.rows is None else column.rows] = numbers[which]
        return codes

    def _number(self, text: str) -> int:
        if text not in self._values and len(self._values) >= VALUES_MAX:
            text = OTHERS
        return self._values.setdefault(text, len(self._values))

    def _add(self, cells: Int64s) -> None:
        self._waiting.append(_summed(cells))
        self._waiting_cells += self._waiting[-1].shape[1]
        if self._waiting_cells >= max(_PENDING, self._cells.shape[1]):
            self._compact()

    def _compact(self) -> None:
        """Add up what waits; make intervals longer until there is room."""
        cells = _summed(np.concatenate([self._cells, *self._waiting], axis=1))
        while cells.shape[1] > CELLS_MAX and self._shift < _SHIFT_MAX:
            self._shift += 1
            cells[1] >>= 1
            cells = _summed(cells)
        self._cells, self._waiting, self._waiting_cells = cells, [], 0


def _summed(cells: Int64s) -> Int64s:
    """Cells of one value and interval as one, in order."""
    if not cells.shape[1]:
        return cells
    cells = cells[:, np.lexsort((cells[1], cells[0]))]
    new = (cells[0, 1:] != cells[0, :-1]) | (cells[1, 1:] != cells[1, :-1])
    begins = np.concatenate([[0], np.flatnonzero(new) + 1])
    return np.stack([cells[0, begins], cells[1, begins], np.add.reduceat(cells[2], begins)])


def _near(at: Int64s, count: Int64s) -> tuple[int, int]:
    """First and last interval, without the few events that are ages away from all others.

    Real captures have some events of 1970 or 2077. They are left out where 98 % of the events
    took less than a ten-thousandth of the time from the first one to the last.
    """
    order = np.argsort(at, kind="stable")
    places, sums = at[order], np.cumsum(count[order])
    first, last = int(places[0]), int(places[-1])
    tail = int(sums[-1]) // _TAIL
    low = int(places[np.searchsorted(sums, tail, "right")])
    high = int(places[np.searchsorted(sums, int(sums[-1]) - tail, "left")])
    core = high - low + 1
    if last - first < _FAR * core:
        return first, last
    inside = places[(places >= low - core) & (places <= high + core)]
    return int(inside[0]), int(inside[-1])


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value[:VALUE_CHARS].hex()
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}…"
