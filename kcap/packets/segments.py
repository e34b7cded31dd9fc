"""Segments of TCP that a device splits or joins on their way within a host.

The kernel hands a device more than fits one packet, and the device splits it: loopback what is
longer than 64 KiB. So what is seen whole as it leaves is seen in parts as it comes, where the
receiver has no such device; of a device that joins what it gets, the other way round. The parts
have the addresses, ports and acknowledgement of the whole, and their bytes are within its own.

Whether a sighting is such a part depends only on what was seen before it, so it does not matter
how a stream is cut into batches.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.packets.frames import I64, NONE, Direction, Frames, Mask
from kcap.packets.headers import Headers, View

U64 = npt.NDArray[np.uint64]

REACH: Final = 1 << 10
"""How many sightings a part comes behind its whole, at most: they follow at once."""

_SEQ: Final = 0xFFFFFFFF
_BITS: Final = 32
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_SHIFT: Final = np.uint64(29)
_RAW_BYTES: Final = {4: (12, 8), 6: (8, 32)}
"""By version: where the addresses stand, and how long both are."""


class _Data(NamedTuple):
    """Segments that carry something, in the order of the stream."""

    number: I64
    """Which sighting of the stream it is."""
    stream: U64
    """Addresses, ports and acknowledgement, as a hash."""
    seq: I64
    size: I64
    """Bytes that it carries."""
    ids: I64
    """The packet's id."""

    def kept(self, which: Mask | I64) -> _Data:
        """Some of them."""
        number, stream, seq, size, ids = self
        return _Data(number[which], stream[which], seq[which], size[which], ids[which])

    def joined(self, other: _Data) -> _Data:
        """These, and others behind them."""
        return _Data(
            np.concatenate([self.number, other.number]),
            np.concatenate([self.stream, other.stream]),
            np.concatenate([self.seq, other.seq]),
            np.concatenate([self.size, other.size]),
            np.concatenate([self.ids, other.ids]),
        )

    @property
    def exact(self) -> U64:
        """A hash of which bytes of which stream it carries."""
        place = self.seq.astype(np.uint64) << np.uint64(_BITS) | self.size.astype(np.uint64)
        return _mixed(self.stream, place)


def _mixed(one: U64, other: U64) -> U64:
    mixed = (one ^ other) * _MULTIPLIER
    return mixed ^ mixed >> _SHIFT


class Segments:
    """Finds the wholes of parts, batch after batch of one stream."""

    def __init__(self) -> None:
        none = np.zeros(0, np.int64)
        self._count = 0
        self._sent = _Data(none, none.astype(np.uint64), none, none, none)
        """The last that went out."""
        self._mine = none
        self._rows = self._of = none

    def parts(self, frames: Frames, headers: Headers, directed: Mask) -> I64:
        """Find parts among the next sightings; then `settle` has to be called.

        Args:
            frames: The next ones of the stream; their directions are known.
            headers: Their headers.
            directed: Which of them to look at.

        Returns:
            The rows of those that belong to one that was seen before them, ascending.
        """
        assert frames.direction is not None
        size = headers.start + headers.total - headers.payload
        data = directed & headers.tcp & (headers.payload >= 0) & (size > 0)
        data &= headers.fragment_offset < 0
        out = np.flatnonzero(data & (frames.direction == Direction.OUT))
        arrived = np.flatnonzero(data & (frames.direction == Direction.IN))
        self._sent = self._sent.kept(self._sent.number >= self._count - REACH)
        self._mine = out
        self._rows = self._of = np.zeros(0, np.int64)
        view = View(frames.data) if len(out) or (len(arrived) and len(self._sent.number)) else None
        if view is not None:
            made = self._data(view, headers, out, size)
            self._sent = self._sent.joined(made)
            if len(arrived):
                came = self._data(view, headers, arrived, size)
                places = _wholes(self._sent, came)
                found = places != NONE
                self._rows, self._of = arrived[found], places[found]
        self._count += len(frames)
        return self._rows

    def settle(self, ids: I64) -> None:
        """Give parts the ids of their wholes.

        Args:
            ids: Those of the sightings that `parts` was given; changed.
        """
        if len(self._mine):
            self._sent.ids[-len(self._mine) :] = ids[self._mine]
        if len(self._rows):
            ids[self._rows] = self._sent.ids[self._of]

    def _data(self, view: View, headers: Headers, rows: I64, size: I64) -> _Data:
        layer4 = headers.layer4[rows]
        stream = _mixed(view.u32(layer4).astype(np.uint64), headers.tcp_ack[rows].astype(np.uint64))
        for version, (place, length) in _RAW_BYTES.items():
            mine = np.flatnonzero(headers.version[rows] == version)
            start = headers.start[rows[mine]] + place
            for at in range(0, length, 4):
                stream[mine] = _mixed(stream[mine], view.u32(start + at).astype(np.uint64))
        none = np.full(len(rows), NONE, np.int64)
        return _Data(self._count + rows, stream, headers.tcp_seq[rows], size[rows], none)


def _wholes(sent: _Data, came: _Data) -> I64:
    """For each that came the one that went out whose part it is, or that is a part of it."""
    found = np.full(len(came.number), NONE, np.int64)
    left = np.flatnonzero(np.isin(came.stream, sent.stream))
    if len(left):
        left = left[~_twins(sent, came.kept(left))]
    if not len(left):
        return found
    rest = came.kept(left)
    place = _nearest(sent, rest)
    # The nearest may have been sent only later, or long ago: then it is looked for one by one.
    behind = rest.number - sent.number[place]
    for row in np.flatnonzero((behind <= 0) | (behind > REACH)).tolist():
        place[row] = _nearest_before(sent, rest, row)
    there = place != NONE
    ahead = rest.seq - sent.seq[place] & _SEQ
    inside = (ahead + rest.size <= sent.size[place]) & (rest.size < sent.size[place])
    around = (ahead == 0) & (rest.size > sent.size[place])
    found[left] = np.where(there & (inside | around), place, NONE)
    return found


def _twins(sent: _Data, came: _Data) -> Mask:
    """Which of those that came had been sent as they are."""
    known, rank = np.unique(sent.exact, return_inverse=True)
    at = np.searchsorted(known, came.exact)
    same = at < len(known)
    same[same] = known[at[same]] == came.exact[same]
    # (Sightings of equal bytes stand by their number.)
    places = np.sort(rank.reshape(-1) << 40 | sent.number)
    before = np.searchsorted(places, at << 40 | came.number) - 1
    last = places[np.maximum(before, 0)]
    same &= (before >= 0) & (last >> 40 == at)
    twins: Mask = same & (came.number - (last & (1 << 40) - 1) <= REACH)
    return twins


def _nearest(sent: _Data, came: _Data) -> I64:
    """The one of the same stream that begins where each begins, or else next before it."""
    known, rank = np.unique(sent.stream, return_inverse=True)
    mine = np.searchsorted(known, came.stream).astype(np.int64)
    begins = rank.reshape(-1).astype(np.int64) << _BITS | sent.seq
    order = np.lexsort((sent.number, begins))
    begins = begins[order]
    at = np.searchsorted(begins, mine << _BITS | came.seq, "right") - 1
    # Numbers begin anew behind the greatest: what begins before the least does so behind all.
    lower = (at < 0) | (begins[np.maximum(at, 0)] >> _BITS != mine)
    at[lower] = np.searchsorted(begins, mine[lower] + 1 << _BITS) - 1
    return order[at].astype(np.int64)


def _nearest_before(sent: _Data, came: _Data, row: int) -> int:
    """As `_nearest`, of those that were sent before, and not long ago."""
    number = int(came.number[row])
    near = (sent.number < number) & (sent.number >= number - REACH)
    rows = np.flatnonzero(near & (sent.stream == came.stream[row]))
    if not len(rows):
        return NONE
    ahead = came.seq[row] - sent.seq[rows] & _SEQ
    return int(rows[ahead == ahead.min()][-1])
