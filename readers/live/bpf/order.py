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


class _Part(NamedTuple):
    """Records of one ring that wait, in the order in which they came."""

    stop: int
    """Where what was copied with them ends."""
    offsets: npt.NDArray[np.int64]


class Ordering:
    """Holds records back until they are in order.

    It copies them, into memory that it uses again: fresh memory for every few MiB costs as much
    as the copy.

    Example:
        >>> ordering = Ordering()
        >>> ordering.add(records)
        >>> ordering.until(horizon_ns).times_ns()
        array([1000, 1004, 1005], dtype=uint64)
    """

    def __init__(self) -> None:
        self._data = np.zeros(0, np.uint8)
        self._used = 0
        self._parts: list[_Part] = []
        self._given = False

    def add(self, records: Records) -> None:
        """Take in more records; what `until` gave is gone then.

        Args:
            records: Those of one ring.
        """
        if not len(records.offsets):
            return
        if self._given:
            self._move()
        start, size = self._used, len(records.data)
        self._used += size + -size % ALIGNED
        if self._used > len(self._data):
            grown = np.empty(max(self._used, 2 * len(self._data)), np.uint8)
            grown[:start] = self._data[:start]
            self._data = grown
        self._data[start : start + size] = records.data
        self._parts.append(_Part(start + size, records.offsets + start))

    def _move(self) -> None:
        """Let what is held back begin at the start of the memory."""
        at = 0
        held, self._parts = self._parts, []
        for stop, offsets in held:
            first = int(offsets.min())
            size = stop - first
            self._data[at : at + size] = self._data[first:stop]
            self._parts.append(_Part(at + size, offsets + (at - first)))
            at += size + -size % ALIGNED
        self._used = at
        self._given = False

    def until(self, horizon_ns: int | None) -> Records:
        """Give what is ready.

        Args:
            horizon_ns: Records up to this time; None for all.

        Returns:
            They, in order of time; of one time, in the order in which they came. They may be read
            until `add`.
        """
        data = self._data[: self._used]
        held, self._parts = self._parts, []
        ready, times = [np.zeros(0, np.int64)], [np.zeros(0, TIME)]
        for stop, offsets in held:
            part_ns = Records(data, offsets).times_ns()
            old = np.ones(len(offsets), np.bool_)
            if horizon_ns is not None:
                old = part_ns <= np.uint64(max(horizon_ns, 0))
            ready.append(offsets[old])
            times.append(part_ns[old])
            if not old.all():
                self._parts.append(_Part(stop, offsets[~old]))
        self._given = True
        order = np.argsort(np.concatenate(times), kind="stable")
        return Records(data, np.concatenate(ready)[order])
