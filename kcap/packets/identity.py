"""``packet_id``: which sightings are of one packet.

A packet over loopback, or between two containers, is seen as it leaves and as it arrives, by
observers that know nothing of each other. What they saw is equal byte for byte, so sightings of
equal content pair: the n-th that goes out with the n-th that comes in. The id comes from the
content and the time of the first of them, and from nothing else; so the same frames get the same
ids whatever file or recorder they come from, and however they are cut into batches.

Who makes packets knows how their content becomes a number, and can make two of the same one. So
that nobody hides a packet behind another, sightings pair only where a second number is equal, too,
into which goes a key that was not known to whoever made them; for true pairs any key does.

What a device splits on its way is one packet, too: its parts have the id of the whole
(`kcap.packets.segments`).
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.packets.frames import I64, Bytes, Direction, Frames, Mask
from kcap.packets.headers import Headers
from kcap.packets.segments import Segments

U64 = npt.NDArray[np.uint64]

SEGMENT: Final = 1 << 14
"""Sightings that are looked at together."""

WAITING: Final = 4
"""For how many segments a sighting waits for its twin; loopback's comes within a few frames."""

WINDOW: Final = SEGMENT * WAITING
"""How many sightings back the next of equal content and time is told from."""

_POSITIVE: Final = np.uint64((1 << 63) - 1)
_WORD: Final = 8
_PORTION: Final = 1 << 14
"""Words that are looked at together."""

_LONG: Final = 512
"""Words of a frame from which on it is copied as one."""

_MULTIPLIER: Final = 0x9E3779B97F4A7C15
_MIX: Final = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


class _Waiting(NamedTuple):
    """Sightings without a twin so far, oldest first."""

    content: U64
    direction: npt.NDArray[np.uint8]
    ids: I64
    segment: I64

    def kept(self, which: Mask) -> _Waiting:
        """Some of them."""
        content, direction, ids, segment = self
        return _Waiting(content[which], direction[which], ids[which], segment[which])


class PacketIds:
    """Gives sightings their packet's id, batch after batch of one stream.

    Args:
        key: What makers of packets can't know: random in a recorder, the origin of a file.

    Example:
        >>> from kcap.packets.headers import parse
        >>> frame = bytes.fromhex("450000140000000040010000") + bytes(8)
        >>> seen = Frames.of([frame, frame], [7, 9], 101, direction=np.array([2, 1], np.uint8))
        >>> ids = PacketIds().give(seen, parse(seen))
        >>> bool(ids[0] == ids[1])
        True
    """

    def __init__(self, key: bytes = b"") -> None:
        digest = hashlib.sha256(key).digest()
        self._key = np.frombuffer(digest[:_WORD], "<u8").astype(np.uint64)
        self._count = 0
        """Sightings so far."""
        none = np.zeros(0, np.int64)
        self._waiting = _Waiting(none.astype(np.uint64), none.astype(np.uint8), none, none)
        self._keys = none.astype(np.uint64)
        """Content and time of the last `WINDOW` sightings."""
        self._segments = Segments()
        self._repeats = none
        """How many of the same came before each of them."""

    def give(self, frames: Frames, headers: Headers) -> I64:
        """The ids of the next frames of the stream.

        Args:
            frames: The frames.
            headers: Their headers.

        Returns:
            A positive number each; that of the source where it gave one.
        """
        content, check = contents(frames, headers, self._key)
        keys = _mixed(content ^ _mixed(frames.ts_ns.astype(np.uint64)))
        repeats = self._repeated(keys)
        ids = (_mixed(keys + repeats.astype(np.uint64)) & _POSITIVE).astype(np.int64)
        given = frames.packet_id
        own = np.ones(len(frames), np.bool_) if given is None else given < 0
        if given is not None:
            ids = np.where(own, ids, given)
        if frames.direction is not None:
            directed = own & (frames.direction != Direction.UNKNOWN)
            directed[self._segments.parts(frames, headers, directed)] = False
            self._pair(content ^ _mixed(check), frames.direction, ids, directed)
            self._segments.settle(ids)
        self._count += len(frames)
        return ids

    def _repeated(self, keys: U64) -> I64:
        """How many sightings of equal content and time came before each, one after another."""
        before = len(self._keys)
        every = np.concatenate([self._keys, keys])
        repeats = np.concatenate([self._repeats, np.zeros(len(keys), np.int64)])
        ordered = np.sort(every)
        if (ordered[1:] == ordered[:-1]).any():
            order = np.argsort(every, kind="stable")
            same = every[order[1:]] == every[order[:-1]]
            # Few are equal, and each counts from the one before it.
            for at in np.flatnonzero(same).tolist():
                last, this = int(order[at]), int(order[at + 1])
                if this >= before and this - last <= WINDOW:
                    repeats[this] = repeats[last] + 1
        self._keys, self._repeats = every[-WINDOW:], repeats[-WINDOW:]
        return repeats[before:]

    def _pair(
        self, content: U64, direction: npt.NDArray[np.uint8], ids: I64, directed: Mask
    ) -> None:
        """Give the second sighting of each pair the id of the first."""
        at = 0
        while at < len(ids):
            # Segments begin where they would in any other cut of the stream.
            segment = (self._count + at) // SEGMENT
            stop = min(len(ids), (segment + 1) * SEGMENT - self._count)
            rows = at + np.flatnonzero(directed[at:stop])
            waiting = self._waiting
            old = waiting.kept(waiting.segment + WAITING > segment)
            joined = _Waiting(
                np.concatenate([old.content, content[rows]]),
                np.concatenate([old.direction, direction[rows]]),
                np.concatenate([old.ids, ids[rows]]),
                np.concatenate([old.segment, np.full(len(rows), segment)]),
            )
            first, second = _pairs(joined.content, joined.direction)
            found = joined.ids
            found[second] = found[first]
            ids[rows] = found[len(found) - len(rows) :]
            left = np.ones(len(found), np.bool_)
            left[first] = left[second] = False
            self._waiting = joined.kept(left)
            at = stop


def _pairs(content: U64, direction: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
    """The n-th that goes out and the n-th that comes in of equal content: earlier and later."""
    order = np.argsort(content, kind="stable")
    sides = []
    for way in (Direction.OUT, Direction.IN):
        rows = order[direction[order] == way]
        of = content[rows]
        begins = np.ones(len(rows), np.bool_)
        begins[1:] = of[1:] != of[:-1]
        starts = np.flatnonzero(begins)
        rank = np.arange(len(rows)) - np.repeat(starts, np.diff([*starts, len(rows)]))
        sides.append((rows, _mixed(of + rank.astype(np.uint64) * np.uint64(_MULTIPLIER))))
    (out_rows, out), (in_rows, arrived) = sides
    _, i, j = np.intersect1d(out, arrived, return_indices=True)
    pairs = np.stack([out_rows[i], in_rows[j]]).astype(np.int64)
    return pairs.min(axis=0), pairs.max(axis=0)


def contents(frames: Frames, headers: Headers, key: U64) -> tuple[U64, U64]:
    """Hashes of what each frame holds from layer 3 on, without what pads it.

    Args:
        frames: The frames.
        headers: Their headers.
        key: One number, of the second hash.

    Returns:
        Numbers of 64 bits; how long the packet was counts too. And numbers that are equal for
        different packets by chance only (1 in 2^32), where their maker does not know the key.
    """
    start = headers.start
    sizes = np.maximum(headers.stop - start, 0)
    words = -(-sizes // _WORD)
    sums, checks = np.zeros((2, len(frames)), np.uint64)
    there = np.flatnonzero(words)
    if len(there):
        places = _places(int(words.max()))
        keyed = _mixed(places ^ key)
        # In portions that stay in the processor's cache: each is gone through a dozen times.
        ends = np.cumsum(words[there])
        cuts = np.searchsorted(ends, np.arange(_PORTION, int(ends[-1]), _PORTION))
        for rows in np.split(there, np.unique(cuts)):
            if len(rows):
                part = (frames.data, start[rows], sizes[rows], words[rows])
                sums[rows], checks[rows] = _sums(*part, places, keyed)
    size = headers.total.astype(np.uint64) << np.uint64(20) ^ sizes.astype(np.uint64)
    return _mixed(sums ^ _mixed(size)), checks


def _words(data: Bytes) -> U64:
    """The word at each place of a buffer; at the last few those that end with zeros are made so."""
    if len(data) < _WORD:
        data = np.concatenate([data, np.zeros(_WORD - len(data), np.uint8)])
    return np.lib.stride_tricks.as_strided(
        data[:_WORD].view("<u8"), (len(data) - _WORD + 1,), (1,), writeable=False
    )


def _sums(
    data: Bytes, start: I64, sizes: I64, words: I64, places: U64, keyed: U64
) -> tuple[U64, U64]:
    """What is made of the words of some frames: each multiplied with a number of its place.

    Second the products of their halves, to which parts of a key were added (NH, as in UMAC).
    """
    ends = np.cumsum(words)
    begins, total = ends - words, int(ends[-1])
    alike = bool((words == words[0]).all())
    if total >= _LONG * len(words):
        values = _copied(data, start, sizes, begins, total)
    else:
        values = _gathered(data, start, sizes, words, begins, alike=alike)
    if alike:
        values = values.reshape(len(words), -1)
        place, key = places[: words[0]], keyed[: words[0]]
    else:
        which = np.arange(total) - np.repeat(begins, words)
        place, key = places[which], keyed[which]
    halves = values.view(np.uint32) + key.view(np.uint32)
    products = halves[..., ::2].astype(np.uint64)
    products *= halves[..., 1::2]
    values += place
    _mix(values)
    values *= place
    if alike:
        return values.sum(axis=1), products.sum(axis=1)
    return np.add.reduceat(values, begins), np.add.reduceat(products, begins)


def _copied(data: Bytes, start: I64, sizes: I64, begins: I64, total: int) -> U64:
    """The words of a few long frames."""
    values = np.zeros(total, np.uint64)
    held = values.view(np.uint8)
    for to, at, size in np.stack([begins << 3, start, sizes], axis=1).tolist():
        held[to : to + size] = data[at : at + size]
    return values


def _gathered(data: Bytes, start: I64, sizes: I64, words: I64, begins: I64, *, alike: bool) -> U64:
    """The words of many short frames."""
    every = _words(data)
    if alike:
        at = (start[:, None] + (np.arange(words[0]) << 3)).ravel()
    else:
        at = np.repeat(start - (begins << 3), words) + (np.arange(int(words.sum())) << 3)
    last = begins + words - 1
    # A last word that ends beyond the buffer is read from before, and moved.
    beyond = np.maximum(at[last] - (len(every) - 1), 0)
    at[last] -= beyond
    values = every[at].astype(np.uint64)
    values[last] >>= (beyond << 3).astype(np.uint64)
    over = (words * _WORD - sizes) << 3
    values[last] &= np.uint64(0xFFFFFFFFFFFFFFFF) >> over.astype(np.uint64)
    return values


def _places(count: int) -> U64:
    """An odd number for each place of a word."""
    numbers = np.arange(1, count + 1, dtype=np.uint64)
    return _mixed(numbers * np.uint64(_MULTIPLIER)) | np.uint64(1)


def _mixed(values: U64) -> U64:
    """Numbers in which every bit depends on every bit of what it comes from."""
    found = values.astype(np.uint64)
    _mix(found)
    return found


def _mix(values: U64) -> None:
    """The same, in their place."""
    moved = np.empty_like(values)
    for shift, factor in _MIX:
        np.right_shift(values, np.uint64(shift), out=moved)
        values ^= moved
        if factor > 1:
            values *= np.uint64(factor)
