"""Replaying at the speed of the events' own times."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from kcap.model.batch import Batch
from kcap.model.classes import I64_MIN
from kcap.model.stream import Source, StreamInfo

_STEP_S: Final = 0.1
"""Events that would go out so close together go out together: a batch of few costs as much as one
of some hundred, and nobody sees the difference."""

_STEP_MAX_NS: Final = 1 << 62

_SLEEP_S: Final = 86_400.0
"""Longest single sleep; far more overflows the system call."""


class Paced:
    """A source that gives events no sooner than their times ask for.

    The wall clock decides only when an event goes out, never what goes out. Time that runs
    backwards is not waited for.
    """

    def __init__(
        self,
        source: Source,
        speed: float,
        *,
        since_ns: int | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wrap a source.

        Args:
            source: Where the events come from.
            speed: Seconds of event time that pass in a second.
            since_ns: Events before this time are not waited for; the first one behind it goes out
                at once.
            monotonic: The wall clock.
            sleep: Waits on it.
        """
        self._source = source
        self._speed = speed
        self._since_ns = I64_MIN if since_ns is None else since_ns
        self._monotonic = monotonic
        self._sleep = sleep

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        first_ns: int | None = None
        latest_ns = I64_MIN
        step_ns = min(max(int(_STEP_S * 1e9 * self._speed), 1), _STEP_MAX_NS)
        begun = self._monotonic()
        for batch in self._source.batches():
            times = np.maximum.accumulate(np.maximum(batch.numpy("ts", I64_MIN), latest_ns))
            if not batch.rows:
                yield batch
                continue
            latest_ns = int(times[-1])
            for start, stop in _steps(times, step_ns):
                due_ns = int(times[stop - 1])
                if due_ns > I64_MIN and due_ns >= self._since_ns:
                    if first_ns is None:
                        least_ns = max(self._since_ns, I64_MIN + 1)
                        first_ns = int(times[start + np.searchsorted(times[start:stop], least_ns)])
                    self._wait_until(begun + (due_ns - first_ns) / 1e9 / self._speed)
                yield batch.slice(start, stop)

    def _wait_until(self, due_s: float) -> None:
        while (wait_s := due_s - self._monotonic()) > 0:
            self._sleep(min(wait_s, _SLEEP_S))


def _steps(
    times: np.ndarray[tuple[int], np.dtype[np.int64]], step_ns: int
) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose times, which never fall, lie in one step."""
    # Unsigned, because the distance of two int64 times may not fit an int64.
    steps = (times.view(np.uint64) - times[:1].view(np.uint64)) // np.uint64(step_ns)
    cuts = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(times)]
    yield from itertools.pairwise(cuts)
