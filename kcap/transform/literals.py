"""Finding many known texts inside others, at the speed of a few array operations a byte."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Span = tuple[int, int]
"""Where something stands in a value: its first byte and the one behind its last."""

SHORT_BYTES: Final = 4
"""A shorter text is only found as a whole word: as a part of others it would be everywhere."""

_WIDE: Final = 8
_TABLE_BITS: Final = 20
_FACTOR: Final[dict[int, Any]] = {4: np.uint32(0x9E3779B1), 8: np.uint64(0x9E3779B97F4A7C15)}
_WORD: Final = rb"[A-Za-z0-9_\x80-\xff]"
_BLOCK_BYTES: Final = 8 << 20
_LENGTHS: Final = 8
"""Lengths of literals that end alike which are tried one by one."""


class Literals:
    """Known texts.

    Each is found by its last eight bytes, or four: ends differ where beginnings, as of paths, are
    alike.

    Args:
        values: The texts, as bytes.

    Example:
        >>> list(Literals([b"hunter2"]).spans([b"-p hunter2", b"hunter"]))
        [(0, (3, 10))]
    """

    def __init__(self, values: Collection[bytes]) -> None:
        self.whole = frozenset(v for v in values if v)
        self._anchors = [
            _Anchors(_WIDE, [v for v in self.whole if len(v) >= _WIDE]),
            _Anchors(SHORT_BYTES, [v for v in self.whole if SHORT_BYTES <= len(v) < _WIDE]),
        ]
        words = sorted(v for v in self.whole if len(v) < SHORT_BYTES)
        either = b"|".join(re.escape(w) for w in reversed(words))
        made = rb"(?<!%s)(?:%s)(?!%s)" % (_WORD, either, _WORD)
        self._words = re.compile(made) if words else None

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.whole)

    def spans(self, values: Sequence[bytes]) -> Iterator[tuple[int, Span]]:
        """Find them.

        Args:
            values: Where to look.

        Yields:
            The number of a value, and a place in it where one of them stands; the longest of those
            that end there.
        """
        start = 0
        while start < len(values):
            stop, size = start, 0
            while stop < len(values) and (stop == start or size < _BLOCK_BYTES):
                size += len(values[stop])
                stop += 1
            yield from self._in_block(start, values[start:stop])
            start = stop

    def _in_block(self, first: int, values: Sequence[bytes]) -> Iterator[tuple[int, Span]]:
        data = b"".join(values)
        starts = np.cumsum([0, *(len(v) for v in values)])
        for anchors in self._anchors:
            ends = anchors.candidates(data)
            owners = np.searchsorted(starts, ends - 1, "right") - 1
            for end, owner in zip(ends.tolist(), owners.tolist(), strict=True):
                begin = int(starts[owner])
                length = anchors.longest(data, begin, end)
                if length:
                    yield first + owner, (end - length - begin, end - begin)
        if self._words is not None:
            for number, value in enumerate(values, first):
                for match in self._words.finditer(value):
                    yield number, match.span()


class _Alike:
    """Literals of many lengths that end alike, which nobody has by accident."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._longest = max(map(len, values))
        self._turned = sorted(value[::-1] for value in values)

    def longest(self, data: bytes, begin: int, end: int) -> int:
        """See `_Anchors.longest`."""
        turned = data[max(begin, end - self._longest) : end][::-1]
        while True:
            # Each that it begins with comes before it in order, and begins the one found here too.
            at = bisect_right(self._turned, turned) - 1
            if at < 0:
                return 0
            if turned.startswith(self._turned[at]):
                return len(self._turned[at])
            turned = turned[: _common(turned, self._turned[at])]


def _common(first: bytes, second: bytes) -> int:
    """How many bytes two texts have in common at their beginning."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class _Anchors:
    """Literals that are found by so many of their last bytes."""

    def __init__(self, width: int, values: Sequence[bytes]) -> None:
        self._width = width
        self._type = np.dtype(f"<u{width}")
        self._shift = self._type.type(8 * width - _TABLE_BITS)
        self._values = frozenset(values)
        lengths: dict[bytes, tuple[int, ...]] = {}
        for value in values:
            end, length = value[-width:], len(value)
            known = lengths.get(end, ())
            if len(known) <= _LENGTHS and length not in known:
                lengths[end] = (*known, length)
        self._lengths = {e: tuple(sorted(n, reverse=True)) for e, n in lengths.items()}
        many: dict[bytes, list[bytes]] = {e: [] for e, n in lengths.items() if len(n) > _LENGTHS}
        for value in values if many else ():
            if value[-width:] in many:
                many[value[-width:]].append(value)
        self._many = {end: _Alike(found) for end, found in many.items()}
        ends = np.frombuffer(b"".join(lengths), self._type)
        self._ends = np.sort(ends)
        self._table = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._table[self._slots(ends)] = True

    def _slots(self, words: npt.NDArray[Any]) -> npt.NDArray[Any]:
        slots: npt.NDArray[Any] = (words * _FACTOR[self._width]) >> self._shift
        return slots

    def candidates(self, data: bytes) -> npt.NDArray[np.int64]:
        """The places behind which one of them may end, ascending."""
        found = [np.zeros(0, np.int64)]
        for phase in range(self._width if len(self._ends) else 0):
            count = (len(data) - phase) // self._width
            if count <= 0:
                continue
            words = np.frombuffer(data, self._type, count, phase)
            at = np.flatnonzero(self._table[self._slots(words)])
            # Few places are left: whether the bytes are really those, a search in order says.
            near = np.minimum(np.searchsorted(self._ends, words[at]), len(self._ends) - 1)
            at = at[self._ends[near] == words[at]]
            found.append(at * self._width + phase + self._width)
        return np.sort(np.concatenate(found))

    def longest(self, data: bytes, begin: int, end: int) -> int:
        """The length of the longest that ends there and does not begin earlier, 0 for none."""
        last = data[end - self._width : end]
        if last in self._many:
            return self._many[last].longest(data, begin, end)
        for length in self._lengths[last]:
            if end - length >= begin and data[end - length : end] in self._values:
                return length
        return 0
