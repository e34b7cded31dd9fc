"""What many conditions on one field say of its values: a row of bits for each value.

Values come again from chunk to chunk, so their bits are remembered by value: only new ones are
asked about. Which conditions are asked for grows, as rare events come up; then all is forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.filter import grams
from kcap.filter.engine import Engine
from kcap.filter.entries import Entries, Texts, Values, Verdicts, key_of
from kcap.filter.syntax import And, Expr, Not, Or

Words = npt.NDArray[np.uint64]
"""Bits of values: one row a value, or one row a word."""

BITS: Final = 64

_FEW: Final = 4
"""Of fewer new texts each is asked about by itself."""

_WORTH: Final = 32
"""To ask fewer conditions takes no longer than to remember what they said."""

_BYTES_MAX: Final = 1 << 23
"""Bits and texts that are remembered for a field, in bytes."""


class Part(NamedTuple):
    """A condition on one field, which some filter must fulfil."""

    number: int
    """The bit of the filter."""
    node: Expr
    engine: Engine
    same: int
    """One number for all that say the same."""


class Table:
    """The bits of the values of a field.

    Args:
        parts: All conditions on it.
        words: Words of bits for all filters. The bits of those without a condition are set.
    """

    def __init__(self, parts: Sequence[Part], words: int) -> None:
        self._words = words
        self._conditions: dict[int, Part] = {part.same: part for part in parts}
        self._numbers: dict[int, list[int]] = defaultdict(list)
        """Of each condition: the bits of filters that make it."""
        for part in parts:
            self._numbers[part.same].append(part.number)
        self._asked: set[int] = set()
        self._missing = np.zeros(0, np.uint64)
        self._known: dict[Hashable, int] = {}
        self._rows = np.zeros((0, words), np.uint64)
        self._bytes = 0

    def of(self, wanted: Sequence[Part], entries: Sequence[Entries]) -> Words:
        """The bits of some values.

        Args:
            wanted: The conditions that matter; bits of others may be set or not.
            entries: The values, in several parts.

        Returns:
            One row a word; the first column is that of a missing value.
        """
        asked = {part.same for part in wanted}
        if not asked <= self._asked:
            self._asked |= asked
            self._forget()
            self._missing = self._bits(None)
        elif self._bytes > _BYTES_MAX:
            self._forget()
        each = [self._missing, *(self._of(some) for some in entries if len(some))]
        return np.ascontiguousarray(np.concatenate(each).T)

    def _forget(self) -> None:
        self._known.clear()
        self._rows = self._rows[:0]
        self._bytes = 0

    def _of(self, entries: Entries) -> Words:
        """The bits of values, one row a value."""
        if len(self._asked) < _WORTH or not isinstance(entries, Texts | Values):
            return self._bits(entries)
        keys: Sequence[Any] = entries.values()
        if isinstance(entries, Values):
            keys = [key_of(value) for value in keys]
        try:
            places = [self._known.get(key, -1) for key in keys]
        except TypeError:  # a mapping
            return self._bits(entries)
        at = np.array(places, np.int64)
        new = np.flatnonzero(at < 0)
        if len(new):
            at[new] = np.arange(len(new)) + len(self._rows)
            self._rows = np.concatenate([self._rows, self._bits(entries.chosen(new))])
            self._bytes += self._words * (BITS // 8) * len(new)
            for place, number in zip(new.tolist(), at[new].tolist(), strict=True):
                key = keys[place]
                self._known[key] = number
                self._bytes += len(key) if isinstance(key, str) else 0
        return np.asarray(self._rows[at])

    def _bits(self, entries: Entries | None) -> Words:
        """The bits of values that are not remembered; None for a missing one."""
        if entries is None:
            return self._packed(1, lambda one: np.array([_of_missing(one.node, one.engine)]))
        found = [self._packed(len(piece), partial(_over, piece)) for piece in _pieces(entries)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _packed(self, count: int, verdicts: Callable[[Part], Verdicts]) -> Words:
        """The bits of some values."""
        unset = np.zeros((self._words * BITS // 8, count), np.uint8)
        for same in sorted(self._asked):
            wrong = np.logical_not(verdicts(self._conditions[same])).view(np.uint8)
            for number in self._numbers[same]:
                unset[number // 8] |= wrong << np.uint8(number % 8)
        return np.ascontiguousarray(~unset.T).view(np.uint64)


def _over(entries: Entries, part: Part) -> Verdicts:
    return over(part.node, part.engine, entries)


def over(node: Expr, engine: Engine, entries: Entries) -> Verdicts:
    """What a condition on one field says of values.

    Args:
        node: The condition.
        engine: The engine of its filter.
        entries: The values.

    Returns:
        One verdict each.
    """
    if isinstance(node, And | Or):
        both: Any = np.logical_and if isinstance(node, And) else np.logical_or
        return np.asarray(both.reduce([over(part, engine, entries) for part in node.parts]))
    if isinstance(node, Not):
        return ~over(node.inner, engine, entries)
    leaf = engine.leaf(node)
    if leaf.presence:
        return np.ones(len(entries), np.bool_)
    return leaf.verdicts(entries, _FEW)


def _of_missing(node: Expr, engine: Engine) -> bool:
    """What a condition on one field says of a missing value."""
    if isinstance(node, And):
        return all(_of_missing(part, engine) for part in node.parts)
    if isinstance(node, Or):
        return any(_of_missing(part, engine) for part in node.parts)
    if isinstance(node, Not):
        return not _of_missing(node.inner, engine)
    return engine.leaf(node).of_missing


def _pieces(entries: Entries) -> Iterator[Entries]:
    """Values in pieces, each of no more text than can be searched for many parts at once."""
    if not isinstance(entries, Texts) or int(entries.offsets[-1]) <= grams.BYTES_MAX:
        yield entries
        return
    start = 0
    while start < len(entries):
        most = int(entries.offsets[start]) + grams.BYTES_MAX
        end = max(start + 1, int(np.searchsorted(entries.offsets, most, "right")) - 1)
        yield Texts(entries.array.slice(start, end - start))
        start = end
