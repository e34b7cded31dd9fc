"""Stages that need no language: a time range, a choice of columns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from kcap.filter.filter import Filter
from kcap.model import alert
from kcap.model.batch import Batch, Rows, state_rows, without_state
from kcap.model.classes import I64_MAX, I64_MIN
from kcap.model.side import Loss
from kcap.model.stream import Sink
from kcap.replay.derived import derivation
from kcap.state.kin import Kin


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


class Matching:
    """Keeps the events for which a filter is true.

    Args:
        chosen: The filter. Where it asks for what only the state of the machine tells, the stage
            follows all events, and must see all of them.
        state: Keep the rows that only describe what was there, whatever the filter says of them.
        derived: Derived events that the filter is asked about, too, beside those that it names.
        storing: Give no derived events, but the events that they are views of.
    """

    def __init__(
        self,
        chosen: Filter,
        *,
        state: bool = False,
        derived: Collection[str] = (),
        storing: bool = False,
    ) -> None:
        self._filter = chosen
        self._keeps_state = state
        self._derived = derivation([chosen], derived)
        self._storing = storing
        self._kin = Kin(chosen.state_columns) if chosen.needs_state else None

    @property
    def losses(self) -> Sequence[Loss]:
        """Artifacts that the filter asks for and that could not be looked at."""
        return self._filter.losses

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        if self._derived is not None and not self._storing:
            known = self._known(batch)
            chosen, _ = self._derived.matching(known, self._matching)
            # What only the filter wanted to know goes no further.
            return chosen.select(
                [n for n in chosen.columns if n in batch.columns or n not in known.columns]
            )
        rows = self.rows(batch)
        return batch if len(rows) == batch.rows else batch.take(rows)

    def rows(self, batch: Batch) -> Rows:
        """The events that are kept.

        Args:
            batch: The next events of the stream.

        Returns:
            Their row numbers, ascending; those of events that have a view which is wanted, too.
        """
        known = self._known(batch)
        if self._derived is None:
            return self._matching(known)
        return np.unique(self._derived.matching(known, self._matching)[1])

    def _known(self, batch: Batch) -> Batch:
        """The events with all that the filter may ask for."""
        self._filter.note(batch.before)
        if self._filter.inspector is not None:
            batch = self._filter.inspector.update(batch)
        return batch if self._kin is None else self._kin.update(batch)

    def _matching(self, batch: Batch) -> Rows:
        rows = self._filter.rows(batch)
        state = state_rows(batch) if self._keeps_state else ()
        return np.union1d(rows, state) if len(state) else rows


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


class WithoutAlerts:
    """A sink before one that takes what was recorded, and no alerts.

    Args:
        sink: That one; closed with this.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    @property
    def losses(self) -> Sequence[Loss]:
        """What the sink could not take."""
        return getattr(self._sink, "losses", ())

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        if not alert.alerts_in(batch):
            self._sink.write(batch)

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        self._sink.close()
