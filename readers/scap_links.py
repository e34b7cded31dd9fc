"""Where blocks of a .scap file are in some data.

Blocks are found many at a time: every 32-bit word that could be a type is looked at, those whose
two lengths agree are kept, and where each one's end is the next one's start the row is complete.
What does not link up is walked one by one, so the result is that of a plain walk.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

SECTION: Final = 0x0A0D0D0A
"""Type of the block that starts a section."""

ALIASES: Final = {
    0x8000ABCD: 0x202,
    0x8001ABCD: 0x203,
    0x8002ABCD: 0x201,
    0x8010ABCD: 0x204,
    0x8011ABCD: 0x205,
    0x8012ABCD: 0x206,
    0x8013ABCD: 0x207,
    0x8014ABCD: 0x209,
}
"""Types from before the first release, and what they became."""

LOWEST: Final = 0x201
HIGHEST: Final = 0x222
"""The types of all other blocks lie between."""

BLOCK_BYTES: Final = 64 << 20
"""Longest block; a process list of a big host takes a few MB."""

HEAD_BYTES: Final = 8
EDGE_BYTES: Final = 12
"""Bytes of type and both lengths."""

BROKEN: Final = -1
"""Instead of a number of bytes: no block is there."""

_LOWEST_ALIAS: Final = 0x8000ABCD
_ALIAS_MASK: Final = 0xFFE0FFFF

_words = struct.Struct("<II").unpack_from
_word = struct.Struct("<I").unpack_from


class Links:
    """The sound blocks of known types in some data, and which of them follow each other.

    Args:
        data: The data; blocks start at multiples of four bytes in it.
    """

    def __init__(self, data: bytes) -> None:
        words = np.frombuffer(data, "<u4", len(data) // 4)
        at = np.flatnonzero(_is_known(words[: max(len(words) - 2, 0)]))
        sizes = words[at + 1].astype(np.int64)
        fits = (sizes % 4 == 0) & (sizes >= EDGE_BYTES) & (sizes <= BLOCK_BYTES)
        fits &= at * 4 + sizes <= len(data)
        at, sizes = at[fits], sizes[fits]
        sound = words[at + sizes // 4 - 1] == sizes
        at, sizes = at[sound], sizes[sound]
        self.starts: Int64s = at * 4
        """Where they start, ascending; some lie inside others."""
        self.ends: Int64s = self.starts + sizes
        self.types: Int64s = words[at].astype(np.int64)
        """Their types, released numbers."""
        for alias in np.unique(self.types[self.types >= _LOWEST_ALIAS]).tolist():
            self.types[self.types == alias] = ALIASES.get(alias, alias)
        self._turns = np.append(np.flatnonzero(self.starts[1:] != self.ends[:-1]), len(at) - 1)

    def run(self, start: int) -> Int64s:
        """The blocks that follow each other from a place on.

        Args:
            start: Where the first one starts.

        Returns:
            Their indices; none where no sound block of a known type starts there.
        """
        parts = [np.empty(0, np.int64)]
        at = int(np.searchsorted(self.starts, start))
        while at < len(self.starts) and self.starts[at] == start:
            last = int(self._turns[np.searchsorted(self._turns, at)])
            parts.append(np.arange(at, last + 1))
            start = int(self.ends[last])
            at = int(np.searchsorted(self.starts, start))
        return np.concatenate(parts)


def _is_known(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Which words may be the type of a block."""
    known = (words - np.uint32(LOWEST)) <= HIGHEST - LOWEST
    known |= words == SECTION
    known |= (words & np.uint32(_ALIAS_MASK)) == _LOWEST_ALIAS
    return known


def needed(data: bytes, start: int) -> int:
    """What the block at a place needs.

    Args:
        data: The data.
        start: The place.

    Returns:
        Its length, or as much as is needed to know that; 0 where the block is whole, `BROKEN`
        where there is none.
    """
    if len(data) - start < HEAD_BYTES:
        return EDGE_BYTES
    size: int = _words(data, start)[1]
    if size % 4 or not EDGE_BYTES <= size <= BLOCK_BYTES:
        return BROKEN
    if start + size > len(data):
        return size
    return 0 if _word(data, start + size - 4)[0] == size else BROKEN


def plausible(data: bytes, begin: int) -> Int64s:
    """Places where a block of a known type and a possible length may start.

    Args:
        data: The data.
        begin: The first place to look at.

    Returns:
        The places, ascending.
    """
    count = len(data) - begin - HEAD_BYTES + 1
    if count <= 0:
        return np.empty(0, np.int64)
    words = np.ndarray((count + 4,), "<u4", data, begin, (1,))
    at = np.flatnonzero(_is_known(words[:count]))
    sizes = words[at + 4]
    fits = (sizes % 4 == 0) & (sizes >= EDGE_BYTES) & (sizes <= BLOCK_BYTES)
    found: Int64s = at[fits] + begin
    return found
