"""The ticks of a filament: when its ``on_interval`` is called, in the time of the events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.model.batch import Batch, state_rows
from kcap.model.classes import I64_MIN
from kcap.model.side import Heartbeat

Int64s = npt.NDArray[np.int64]

SECOND_NS: Final = 10**9


class Clock:
    """The logical clock of every event: the greatest event time so far.

    Events that a filter drops move it, too; records that only describe what was there do not.
    Where nothing happens, the heartbeats of a live source do.
    """

    def __init__(self) -> None:
        self.now_ns = I64_MIN
        """The clock behind the last event; the least number before the first with a time."""

    def times(self, batch: Batch) -> Int64s:
        """The clock at each event of a batch.

        Args:
            batch: The next events.

        Returns:
            The clock before the first event, then that of each.
        """
        if not batch.rows:
            beats = [side.ts_ns for side in batch.before if isinstance(side, Heartbeat)]
            self.now_ns = max([self.now_ns, *beats])
            return np.array([self.now_ns], np.int64)
        times = np.empty(batch.rows + 1, np.int64)
        times[0] = self.now_ns
        times[1:] = batch.numpy("ts", I64_MIN)
        times[1 + state_rows(batch)] = I64_MIN
        found: Int64s = np.maximum.accumulate(times)
        self.now_ns = int(found[-1])
        return found


class Due(NamedTuple):
    """The ticks that are due in a batch."""

    rows: Sequence[int]
    """Each comes before that row; those behind the last row are before one that follows."""
    times_ns: Sequence[int]
    overrun: tuple[int, int] | None = None
    """A row before which too many are due, and how many; ticks from there on are left out."""


class Ticks:
    """Says when ticks are due: at the first time that is known, plus 1, 2, 3 … intervals.

    A tick at time t comes before the events stamped t.

    Args:
        interval_s: Seconds from one to the next.
        catchup_max: How many may be due between two events.
    """

    def __init__(self, interval_s: int, catchup_max: int) -> None:
        self._step_ns = interval_s * SECOND_NS
        self._catchup_max = catchup_max
        self._start_ns: int | None = None
        self._count = 0

    def due(self, times: Int64s) -> Due:
        """The ticks of a batch.

        Args:
            times: See `Clock.times`.

        Returns:
            Them, in order.
        """
        known = np.flatnonzero(times > I64_MIN)
        if not len(known):
            return Due((), ())
        first = int(known[0])
        if self._start_ns is None:
            self._start_ns = int(times[first])
        if (int(times[-1]) - self._start_ns) // self._step_ns == self._count:
            return Due((), ())
        # The difference of two times may need 64 bits without a sign.
        elapsed = times[first:].view(np.uint64) - np.int64(self._start_ns).view(np.uint64)
        total = elapsed // np.uint64(self._step_ns)
        due = np.diff(total, prepend=np.uint64(self._count))
        over = np.flatnonzero(due > self._catchup_max)
        overrun = None
        if len(over):
            overrun = max(first + int(over[0]) - 1, 0), int(due[over[0]])
            due = due[: over[0]]
        counts = due.astype(np.int64)
        at = np.maximum(first - 1 + np.repeat(np.arange(len(counts)), counts), 0)
        numbers = range(self._count + 1, self._count + 1 + len(at))
        self._count += len(at)
        return Due(at.tolist(), [self._start_ns + n * self._step_ns for n in numbers], overrun)
