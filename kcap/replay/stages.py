"""Stages that need no language: a time range, a choice of columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kcap.model.batch import Batch, without_state
from kcap.model.classes import I64_MAX, I64_MIN


class TimeRange:
    """Keeps the events of a half-open interval; an event without a time is in none."""

    def __init__(self, start_ns: int | None, end_ns: int | None) -> None:
        self._start = I64_MIN if start_ns is None else start_ns
        self._end = end_ns

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        times = batch.get("ts")
        if times is None:
            return batch.take(np.zeros(0, np.int32))
        stamps = np.asarray(times.values)
        inside = stamps >= self._start
        if self._end is not None and self._end <= I64_MAX:
            inside &= stamps < self._end
        kept = np.flatnonzero(inside).astype(np.int32)
        return batch.take(kept if times.rows is None else times.rows[kept])


class EventsOnly:
    """Leaves out the records that only describe what was there."""

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        return without_state(batch)


class Columns:
    """Keeps some of the columns."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        return batch.select(self._names)
