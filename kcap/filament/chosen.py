"""The events that a filament gets, and the requests they go over in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from kcap.filament import frames
from kcap.filament.event import STATE_COLUMNS, EventColumns
from kcap.filament.ticks import Due, Int64s
from kcap.filter import Filter
from kcap.model.batch import Batch, Rows, state_rows
from kcap.replay.derived import derivation
from kcap.state.kin import Kin

PART_ROWS: Final = 8192
"""Events of one request: the next one is packed while the filament looks at them."""


class Chosen:
    """Chooses the events of a filament, and completes them with what is known of processes.

    Args:
        where: The filter; None for all events. Records that only describe what was there are no
            events.
    """

    def __init__(self, where: Filter | None) -> None:
        self._filter = where
        self._derived = None if where is None else derivation([where])
        needed = frozenset() if where is None else where.state_columns
        self._kin = Kin(STATE_COLUMNS | needed)

    def of(self, batch: Batch) -> tuple[Batch, Rows]:
        """Choose.

        Args:
            batch: The next events of the stream.

        Returns:
            The events of the filament, and for each the row that it was, or is a view of.
        """
        if self._filter is not None:
            self._filter.note(batch.before)
        complete = self._kin.update(batch)
        if self._derived is not None:
            return self._derived.matching(complete, self._rows)
        rows = self._rows(complete)
        return complete.take(rows), rows

    def _rows(self, batch: Batch) -> Rows:
        if self._filter is None:
            rows = np.arange(batch.rows, dtype=np.int32)
        else:
            rows = self._filter.rows(batch)
        state = state_rows(batch)
        return np.setdiff1d(rows, state, assume_unique=True) if len(state) else rows


class Part(NamedTuple):
    """One request."""

    message: bytes
    rows: Rows
    """The row of the batch that each event of it was, or is a view of."""
    tick_rows: Int64s
    """The row of the batch that each tick of it comes before."""
    tick_times: Int64s


def parts(
    packer: EventColumns, events: Batch, rows: Rows, times: Int64s, due: Due
) -> Iterator[Part]:
    """Make requests of a batch.

    Args:
        packer: Packs the stream.
        events: The events of the filament.
        rows: See `Chosen.of`.
        times: See `kcap.filament.ticks.Clock.times`.
        due: The ticks.

    Yields:
        The requests, each packed when it is asked for.
    """
    if due.overrun is not None:
        rows = rows[: np.searchsorted(rows, due.overrun[0])]
    tick_rows, tick_times = np.array(due.rows, np.int64), np.array(due.times_ns, np.int64)
    places = np.searchsorted(rows, tick_rows)
    first = 0
    for start in range(0, max(len(rows), 1), PART_ROWS):
        stop = min(start + PART_ROWS, len(rows))
        last = len(tick_rows) if stop == len(rows) else int(np.searchsorted(places, stop))
        if stop == start and last == first:
            return
        mine = rows[start:stop]
        packed = packer.pack(events.slice(start, stop)) if stop > start else b""
        body = [
            frames.BATCH.pack(stop - start, last - first, len(packed)),
            packed,
            times[1 + mine].tobytes(),
            (places[first:last] - start).astype(np.int64).tobytes(),
            tick_times[first:last].tobytes(),
        ]
        message = frames.frame(frames.EVENTS, b"".join(body))
        yield Part(message, mine, tick_rows[first:last], tick_times[first:last])
        first = last
