"""Each packet once: what stands in the file ``single``.

Of several sightings of a packet it is the first that counts. A packet that a device split on its
way was seen whole and in parts (`kcap.packets.segments`): its parts stand in the file, as tcpdump
sees them on the device, and the whole does not. That turns out only when the parts come, so what
may be split waits for them, and with it what comes behind it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.packets.decode import pieces
from kcap.packets.frames import I64, Direction, Frames, Mask
from kcap.packets.headers import parse
from kcap.packets.segments import REACH

U64 = npt.NDArray[np.uint64]

LEAST_BYTES: Final = 536
"""No device splits segments that carry less: every path takes so much in one packet."""

_REMEMBERED: Final = 1 << 18
_SEQ: Final = 0xFFFFFFFF
_PART: Final = np.uint64(0x9E3779B97F4A7C15)


class Remembered:
    """Numbers that came lately."""

    def __init__(self) -> None:
        self._known = np.zeros(0, np.uint64)

    def fresh(self, numbers: U64) -> Mask:
        """Which numbers come for the first time; they are remembered.

        Args:
            numbers: The numbers.

        Returns:
            One verdict each.
        """
        new = np.zeros(len(numbers), np.bool_)
        _, first = np.unique(numbers, return_index=True)
        new[first] = True
        new &= ~np.isin(numbers, self._known)
        self._known = np.concatenate([self._known, numbers[new]])[-_REMEMBERED:]
        return new

    def has(self, numbers: U64) -> Mask:
        """Which numbers are remembered.

        Args:
            numbers: The numbers.

        Returns:
            One verdict each.
        """
        found: Mask = np.isin(numbers, self._known)
        return found


class _Segment(NamedTuple):
    """What of frames tells wholes and parts."""

    may: Mask
    """Whether it leaves, and carries so much that a device may split it."""
    seq: I64
    size: I64
    """Bytes that it carries, -1 for what is no segment of TCP."""


class _Waiting:
    """Frames of which it is not known yet whether all of them stay.

    Args:
        frames: They.
        number: Which sightings of the stream they are.
        ids: Their packets.
        segment: What else is known.
        first: Which of them are the first of their packets.
    """

    def __init__(
        self, frames: Frames, number: I64, ids: U64, segment: _Segment, first: Mask
    ) -> None:
        self.frames, self.number, self.ids, self.segment = frames, number, ids, segment
        self.keep = first
        self.open = segment.may & first
        """Whether a part may still come."""

    def narrow(self, rows: I64) -> None:
        """Forget the others, and where their bytes stand."""
        self.frames = copied(self.frames.take(rows))
        may, seq, size = self.segment
        self.segment = _Segment(may[rows], seq[rows], size[rows])
        self.number, self.ids = self.number[rows], self.ids[rows]
        self.keep, self.open = self.keep[rows], self.open[rows]


class Singles:
    """Each packet of a stream once, in its order."""

    def __init__(self) -> None:
        self._count = 0
        self._seen = Remembered()
        self._split = Remembered()
        """Packets that came in parts."""
        self._parts = Remembered()
        self._done = 0
        """The first sighting that waits."""
        self._queue: deque[_Waiting] = deque()

    def put(self, frames: Frames, ids: U64) -> list[Frames]:
        """Take the next sightings.

        Args:
            frames: They.
            ids: The packet that each is a sighting of.

        Returns:
            Packets that are decided on, in order.
        """
        number = np.arange(self._count, self._count + len(frames))
        self._count += len(frames)
        if not len(frames):
            return self._ready()
        segment = _segment(frames)
        new = _Waiting(frames, number, ids, segment, self._seen.fresh(ids))
        self._queue.append(new)
        self._decide(new)
        part = np.flatnonzero(self._split.has(ids) & (segment.size >= 0))
        if len(part):
            new.keep[part] = self._parts.fresh(_parts(ids, segment, part))
        found = self._ready()
        if self._queue and self._queue[-1] is new:
            new.narrow(np.flatnonzero(new.keep & (new.number >= self._done)))
        return found

    def end(self) -> list[Frames]:
        """There are no more.

        Returns:
            The rest.
        """
        self._count += 2 * REACH
        return self._ready()

    def _decide(self, new: _Waiting) -> None:
        """See what comes behind those that may be split."""
        order = np.argsort(new.ids, kind="stable")
        known = new.ids[order]
        for old in self._queue:
            rows = np.flatnonzero(old.open)
            if not len(rows):
                continue
            at = np.searchsorted(known, old.ids[rows])
            if old is new:
                place = np.empty(len(order), np.int64)
                place[order] = np.arange(len(order))
                at = place[rows] + 1
            there = at < len(known)
            there[there] = known[at[there]] == old.ids[rows[there]]
            rows, other = rows[there], order[at[there]]
            there = new.number[other] - old.number[rows] <= REACH
            rows, other = rows[there], other[there]
            old.open[rows] = False
            ahead = new.segment.seq[other] - old.segment.seq[rows] & _SEQ
            size = new.segment.size[other]
            whole = (size >= 0) & (size < old.segment.size[rows])
            whole &= ahead + size <= old.segment.size[rows]
            rows = rows[whole]
            old.keep[rows] = False
            self._split.fresh(old.ids[rows])
            # So that it does not pass for one of its parts.
            self._parts.fresh(_parts(old.ids, old.segment, rows))

    def _ready(self) -> list[Frames]:
        """Take what is decided on from the beginning."""
        found = []
        while self._queue:
            head = self._queue[0]
            waits = np.flatnonzero(head.open & (head.number >= self._count - REACH))
            stop = int(waits[0]) if len(waits) else len(head.number)
            rows = np.flatnonzero(head.keep[:stop] & (head.number[:stop] >= self._done))
            if len(rows):
                found.append(head.frames.take(rows))
            if stop < len(head.number):
                self._done = int(head.number[stop])
                return found
            self._queue.popleft()
        self._done = self._count
        return found


def _parts(ids: U64, segment: _Segment, rows: I64) -> U64:
    """What tells the parts of packets."""
    place = segment.seq[rows] << 32 | segment.size[rows]
    return ids[rows] ^ place.astype(np.uint64) * _PART


def _segment(frames: Frames) -> _Segment:
    headers = parse(frames)
    size = headers.start + headers.total - headers.payload
    carries = headers.tcp & (headers.payload >= 0) & (size > 0)
    size = np.where(carries, size, -1)
    may = size > LEAST_BYTES
    may &= False if frames.direction is None else frames.direction == Direction.OUT
    return _Segment(may, headers.tcp_seq, size)


def copied(frames: Frames) -> Frames:
    """Frames that hold nothing but their own bytes.

    Args:
        frames: Some frames.

    Returns:
        The same.
    """
    held = pieces(frames.data, frames.offsets, frames.captured.astype(np.int64))
    _, edges, data = held.buffers()
    offsets = np.frombuffer(edges, np.int32)[held.offset : held.offset + len(held)]
    raw = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return replace(frames, data=raw, offsets=offsets.astype(np.int64))
