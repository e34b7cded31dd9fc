"""Puts the records of several rings in order of time.

A processor takes an event's time, then fetches what belongs to it, then asks the ring for room:
another one may come first, and each ring has an order of its own. So what is young is held back
until nothing older can follow.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

TIME: Final = np.dtype("<u8")
"""The first field of every record: its time since boot, ns."""

ALIGNED: Final = 8
"""Records begin at multiples of it."""


class Records(NamedTuple):
    """Records in memory."""

    data: npt.NDArray[np.uint8]
    """The bytes; other things may stand between the records."""
    offsets: npt.NDArray[np.int64]
    """Where the records begin."""

    def times_ns(self) -> npt.NDArray[np.uint64]:
        """The time of each."""
        words = self.data[: len(self.data) & -ALIGNED].view(TIME)
        return words[self.offsets // ALIGNED]


EMPTY: Final = Records(np.zeros(0, np.uint8), np.zeros(0, np.int64))


class Ordering:
    """Holds records back until they are in order.

    Example:
        >>> ordering = Ordering()
        >>> ordering.add(records)
        >>> ordering.until(horizon_ns).times_ns()
        array([1000, 1004, 1005], dtype=uint64)
    """

    def __init__(self) -> None:
        self._held: list[Records] = []

    def add(self, records: Records) -> None:
        """Take in more records.

        Args:
            records: Those of one ring.
        """
        if len(records.offsets):
            self._held.append(records)

    def until(self, horizon_ns: int | None) -> Records:
        """Give what is ready.

        Args:
            horizon_ns: Records up to this time; None for all.

        Returns:
            They, in order of time; of one time, in the order in which they came.
        """
        data, offsets, times, rest = [], [], [], []
        start = 0
        for held in self._held:
            held_ns = held.times_ns()
            ready = np.ones(len(held_ns), np.bool_)
            if horizon_ns is not None:
                ready = held_ns <= np.uint64(max(horizon_ns, 0))
            if ready.any():
                data.append(held.data)
                offsets.append(held.offsets[ready] + start)
                times.append(held_ns[ready])
                start += len(held.data)
            if not ready.all():
                rest.append(_cut(held.data, held.offsets[~ready]))
        self._held = rest
        if not data:
            return EMPTY
        order = np.argsort(np.concatenate(times), kind="stable")
        joined = data[0] if len(data) == 1 else np.concatenate(data)
        return Records(joined, np.concatenate(offsets)[order])


def _cut(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Records:
    """Some records without what stands before the first of them."""
    first = int(offsets.min())
    return Records(data[first:].copy(), offsets - first)
