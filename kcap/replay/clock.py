"""The logical clock: time in a replay is what the events say, never what the wall says."""

from __future__ import annotations

from kcap.format.chunk import bounds
from kcap.model.batch import Batch


class LogicalClock:
    """The greatest event time so far; advanced by every event, also those a filter drops."""

    def __init__(self) -> None:
        self.now_ns: int | None = None
        """None before the first event with a time."""

    def advance(self, batch: Batch) -> None:
        """Take in the times of a batch.

        Args:
            batch: The events.
        """
        times = bounds(batch, "ts")
        if times.low <= times.high:
            self.now_ns = times.high if self.now_ns is None else max(self.now_ns, times.high)
