"""Which strings a chunk holds: a split-block bloom filter (spec/kcap.md, clause 8.1).

The blocks are Parquet's; the hash is one that numpy computes over many strings in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap import limits
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass

BLOCK_BYTES: Final = 32
BITS_A_STRING: Final = 10
_LEAST_BITS: Final = 4
"""Below this a filter says "perhaps" too often to be worth its bytes."""

_FACTOR: Final = 0x9E3779B97F4A7C15
_MIX: Final = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_SALTS: Final = np.array(
    [
        *(0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D),
        *(0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31),
    ],
    np.uint32,
)
_PORTION: Final = 1 << 20
"""Bytes hashed at once: they take eight times that in memory."""

Hashes = npt.NDArray[np.uint64]


@cache
def _powers() -> Hashes:
    """Powers of the factor, one for each place in the longest value, modulo 2**64."""
    with np.errstate(over="ignore"):
        factors = np.full(limits.VALUE_BYTES, _FACTOR, np.uint64)
        factors[0] = 1
        powers: Hashes = np.multiply.accumulate(factors)
        return powers


def hashes(entries: pa.Array) -> Hashes:
    """Hash strings.

    Args:
        entries: utf8, without nulls, none longer than a value may be.

    Returns:
        A number for each: the sum of (byte + 1) x factor^place, mixed.
    """
    offsets = np.frombuffer(entries.buffers()[1], np.int32)[
        entries.offset : entries.offset + len(entries) + 1
    ].astype(np.int64)
    data = entries.buffers()[2]
    raw = np.frombuffer(b"" if data is None else data, np.uint8)
    sums = np.empty(len(entries), np.uint64)
    first = 0
    while first < len(entries):
        reach = np.searchsorted(offsets, offsets[first] + _PORTION, "right") - 1
        last = max(first + 1, min(int(reach), len(entries)))
        sums[first:last] = _sums(raw, offsets[first : last + 1])
        first = last
    return _mixed(sums)


def _sums(raw: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Hashes:
    lengths = np.diff(offsets)
    places = np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], lengths)
    terms = _powers()[places] * (raw[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1))
    running = np.zeros(len(terms) + 1, np.uint64)
    np.cumsum(terms, out=running[1:])
    ends = running[offsets - offsets[0]]
    sums: Hashes = ends[1:] - ends[:-1]
    return sums


def _mixed(values: Hashes) -> Hashes:
    for factor in _MIX:
        values = (values ^ (values >> np.uint64(33))) * np.uint64(factor)
    return values ^ (values >> np.uint64(33))


def is_searched(name: str, cls: TypeClass) -> bool:
    """Whether a column's strings are in the filter.

    Args:
        name: The column.
        cls: Its class.

    Returns:
        True for text and lists of text. The keys of processes are left out: in a recording of
        processes they are two thirds of all strings, and the set of pids prunes by them.
    """
    return cls in (TypeClass.STR, TypeClass.LIST) and name != "process_key"


def strings_of(batch: Batch) -> Hashes:
    """Hash every distinct string of a chunk's text columns and lists of text.

    Args:
        batch: The chunk's rows.

    Returns:
        Distinct hashes, ascending.
    """
    found = []
    for name, column in batch.columns.items():
        if not is_searched(name, column.cls) or not len(column):
            continue
        if column.cls is TypeClass.STR:
            found.append(column.compact().values.dictionary)
        else:
            found.append(column.values.flatten().dictionary_encode().dictionary)
    return distinct(found)


def distinct(entries: Sequence[pa.Array]) -> Hashes:
    """Hash the strings of several arrays.

    Args:
        entries: utf8 arrays as for `hashes`.

    Returns:
        Distinct hashes, ascending.
    """
    found = [hashes(part) for part in entries if len(part)]
    values = np.sort(np.concatenate(found)) if found else np.zeros(0, np.uint64)
    fresh = np.ones(len(values), np.bool_)  # a third of the time that np.unique takes
    np.not_equal(values[1:], values[:-1], out=fresh[1:])
    return values[fresh]


@lru_cache(maxsize=1024)
def _hash(text: str) -> Hashes | None:
    """The hash of a string that chunk after chunk is asked for; None of what no value can be."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        return None  # a lone surrogate
    if len(raw) > limits.VALUE_BYTES:
        return None
    # Not `hashes(pa.array([text]))`: given a list, pyarrow imports pandas where it is installed.
    return _mixed(_sums(np.frombuffer(raw, np.uint8), np.array([0, len(raw)])))


class Bloom:
    """Tells which strings are not among some; of one that is, it never says so."""

    def __init__(self, bits: bytes) -> None:
        """Take the filter's bytes.

        Args:
            bits: A multiple of 32 bytes; none where there is no string at all.
        """
        self.bits = bits
        self._words = np.frombuffer(bits, "<u4").reshape(-1, len(_SALTS))

    @classmethod
    def of(cls, strings: Hashes, most_bytes: int) -> Bloom | None:
        """Make a filter.

        Args:
            strings: Distinct hashes.
            most_bytes: What it may take; with less than it would like, it errs more often.

        Returns:
            The filter; None where so little room is not worth it.
        """
        wanted = -(-len(strings) * BITS_A_STRING // (8 * BLOCK_BYTES))
        blocks = min(wanted, most_bytes // BLOCK_BYTES)
        if blocks * BLOCK_BYTES * 8 < len(strings) * _LEAST_BITS:
            return None
        words = np.zeros((blocks, len(_SALTS)), np.uint32)
        if blocks:
            block, masks = _places(strings, blocks)
            for i in range(len(_SALTS)):
                np.bitwise_or.at(words[:, i], block, masks[:, i])
        return cls(words.astype("<u4").tobytes())

    def may_hold(self, text: str) -> bool:
        """Whether a string may be among those of the chunk.

        Args:
            text: The string.

        Returns:
            False where it certainly is not.
        """
        found = _hash(text)
        return found is not None and self.may_hold_all(found)

    def may_hold_all(self, strings: Hashes) -> bool:
        """Whether all of some strings may be among those of the chunk.

        Args:
            strings: Their hashes.

        Returns:
            False where one certainly is not.
        """
        return bool(self._may_hold_each(strings).all())

    def may_hold_any(self, strings: Hashes) -> bool:
        """Whether one of some strings may be among those of the chunk.

        Args:
            strings: Their hashes.

        Returns:
            False where certainly none is.
        """
        return bool(self._may_hold_each(strings).any())

    def _may_hold_each(self, strings: Hashes) -> npt.NDArray[np.bool_]:
        if not len(self._words):
            return np.zeros(len(strings), np.bool_)
        block, masks = _places(strings, len(self._words))
        found: npt.NDArray[np.bool_] = ((self._words[block] & masks) == masks).all(axis=1)
        return found


def _places(strings: Hashes, blocks: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
    """The block of each hash, and the bit it sets in each of the block's eight words."""
    block = ((strings >> np.uint64(32)) * np.uint64(blocks)) >> np.uint64(32)
    keys = strings.astype(np.uint32)[:, None] * _SALTS[None, :]
    return block.astype(np.int64), np.uint32(1) << (keys >> np.uint32(27))
