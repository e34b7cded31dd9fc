"""Many filters at once: a bit for each of them, a word for each row.

A filter is cut at its outermost ``and``. A part that looks at one field only is asked about the
entries of that field's dictionary, and its answers become a column of bits; rows gather the words
of their entries, field after field, and those in which no filter has a bit left are dropped. What
is left of a filter - parts over several fields, or over numbers - is looked at only where its bit
survived. Each column is read once, however many filters ask for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.filter.cells import Cells, Reader, View
from kcap.filter.engine import Engine, leaf_nodes
from kcap.filter.entries import Texts, Values
from kcap.filter.leaf import Leaf
from kcap.filter.syntax import And, Expr, FieldRef, Not, Or
from kcap.model.batch import Rows

if TYPE_CHECKING:
    from kcap.filter.filter import Filter
    from kcap.model.side import Side

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_BITS: Final = 64


class _Part(NamedTuple):
    """A conjunct of one filter."""

    number: int
    """Of the filter."""
    node: Expr
    engine: Engine
    same: int
    """One number for all that say the same."""


class Filters:
    """Several filters over the same events.

    Args:
        filters: The filters; none of them may need the state.

    Example:
        >>> from kcap.filter import Filter
        >>> both = Filters([Filter.of("pid = 1"), Filter.of("evt.name = 'open'")])
        >>> len(both)
        2
    """

    def __init__(self, filters: Sequence[Filter]) -> None:
        self._filters = tuple(filters)
        self._words = -(-len(self._filters) // _BITS)
        self._coded: dict[tuple[int, FieldRef], list[_Part]] = defaultdict(list)
        """The parts that look at one field only, by era and field."""
        self._same: dict[tuple[int, Expr], int] = {}
        self._rest: dict[int, list[Expr]] = defaultdict(list)
        shared: dict[int, dict[Expr, Leaf]] = defaultdict(dict)
        for number, one in enumerate(self._filters):
            one.engine.leaves_known = shared[one.checked.era]
            expr = one.checked.expr
            for node in expr.parts if isinstance(expr, And) else (expr,):
                self._place(number, node, one.engine, one.checked.era)

    def __len__(self) -> int:
        """How many filters there are."""
        return len(self._filters)

    def _place(self, number: int, node: Expr, engine: Engine, era: int) -> None:
        fields = {ref for leaf in leaf_nodes(node) for ref in engine.leaf(leaf).fields}
        each = [engine.leaf(leaf).fields for leaf in leaf_nodes(node)]
        if len(fields) == 1 and all(len(f) == 1 for f in each):
            same = self._same.setdefault((era, node), len(self._same))
            self._coded[era, fields.pop()].append(_Part(number, node, engine, same))
        else:
            self._rest[number].append(node)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the results may depend on."""
        return frozenset().union(*(one.columns for one in self._filters))

    def note(self, sides: Iterable[Side]) -> None:
        """Take notice of sources, as `Filter.note` does.

        Args:
            sides: What stands beside events.
        """
        kept = list(sides)
        for one in self._filters:
            one.note(kept)

    def rows(self, view: View, types: AbstractSet[str] | None = None) -> list[Rows]:
        """The events for which each filter is true.

        Args:
            view: A batch, or whatever gives columns.
            types: The types of the events, where that is known without reading them.

        Returns:
            For each filter row numbers, ascending.
        """
        if not view.rows or not self._filters:
            return [np.zeros(0, np.int32) for _ in self._filters]
        readers: dict[int, Reader] = {}
        for one in self._filters:
            if one.checked.era not in readers:
                readers[one.checked.era] = one.reader(view, types)
        at, bits, left = self._narrowed(view.rows, readers)
        return [
            self._of(number, one, readers[one.checked.era], at, bits, left[number])
            for number, one in enumerate(self._filters)
        ]

    def _narrowed(
        self, count: int, readers: dict[int, Reader]
    ) -> tuple[Rows, Bytes, dict[int, list[Expr]]]:
        """The rows that some filter may want, bits of those that may, and what is left to ask."""
        left = {number: list(self._rest[number]) for number in range(len(self._filters))}
        at = np.arange(count, dtype=np.int32)
        words = [np.full(count, word, np.uint64) for word in self._all()]
        for (era, ref), parts in sorted(self._coded.items(), key=self._order):
            if not len(at):
                break
            wanted = self._alive(words, parts)
            if not wanted:
                continue
            cells = readers[era].cells(ref, wanted[0].engine.fields[ref])
            if any(not isinstance(part.entries, Texts | Values) for part in cells):
                for part in wanted:
                    left[part.number].append(part.node)
                continue
            table, codes = self._table(wanted, cells, count)
            codes = codes if len(at) == count else codes[at]
            for word, bits in zip(words, table, strict=True):
                word &= bits.take(codes)  # noqa: PLW2901 - in place
            alive = reduce(np.bitwise_or, words) != 0
            if not alive.all():
                at, words = at[alive], [word[alive] for word in words]
        return at, _bytes(words), left

    def _order(self, item: tuple[tuple[int, FieldRef], list[_Part]]) -> tuple[int, int, str]:
        """Cheap fields that many filters ask for first."""
        (_, ref), parts = item
        cost = min(part.engine.cost(part.node) for part in parts)
        return cost, -len(parts), ref.name

    def _all(self) -> Words:
        """A bit for every filter."""
        flags = np.zeros(self._words * _BITS, np.bool_)
        flags[: len(self._filters)] = True
        return np.asarray(np.packbits(flags, bitorder="little").view(np.uint64))

    @staticmethod
    def _alive(words: list[Words], parts: list[_Part]) -> list[_Part]:
        """The parts of filters that may still want a row."""
        some = np.array([np.bitwise_or.reduce(word) for word in words], np.uint64)
        alive = np.unpackbits(some.view(np.uint8), bitorder="little")
        return [part for part in parts if alive[part.number]]

    def _table(
        self, parts: list[_Part], cells: list[Cells], count: int
    ) -> tuple[Words, npt.NDArray[np.int32]]:
        """The words of all entries, a missing value's first, by word; and the entry of each row."""
        codes = np.zeros(count, np.int32)
        size = 1
        for part in cells:
            own = np.arange(len(part.entries)) if part.codes is None else part.codes
            codes[slice(None) if part.rows is None else part.rows] = own + size
            size += len(part.entries)
        flags = np.ones((size, self._words * _BITS), np.bool_)
        known: dict[int, Mask] = {}
        for one in parts:
            if one.same not in known:
                found = [_over(one.node, one.engine, part) for part in cells]
                missing = np.array([_of_missing(one.node, one.engine)], np.bool_)
                known[one.same] = np.concatenate([missing, *found])
            flags[:, one.number] &= known[one.same]
        packed = np.packbits(flags, axis=1, bitorder="little").view(np.uint64)
        return np.ascontiguousarray(packed.T), codes

    @staticmethod
    def _of(
        number: int,
        one: Filter,
        reader: Reader,
        at: Rows,
        bits: Bytes,
        left: list[Expr],
    ) -> Rows:
        """The rows of one filter."""
        rows: Rows = at[bits[number // 8] & np.uint8(1 << number % 8) != 0]
        if not left or not len(rows):
            return rows
        alive = np.zeros(reader.rows, np.bool_)
        alive[rows] = True
        found = np.flatnonzero(one.engine.narrowed(left, reader, alive))
        return np.asarray(found.astype(np.int32))


def _bytes(words: list[Words]) -> Bytes:
    """Words of bits, one array for each word, as bytes, one array for each eight filters."""
    return np.concatenate([np.ascontiguousarray(w.view(np.uint8).reshape(-1, 8).T) for w in words])


def _over(node: Expr, engine: Engine, cells: Cells) -> Mask:
    """What a condition on one field says of the entries of its values."""
    if isinstance(node, And | Or):
        each = [_over(part, engine, cells) for part in node.parts]
        both: Any = np.logical_and if isinstance(node, And) else np.logical_or
        return np.asarray(both.reduce(each))
    if isinstance(node, Not):
        return ~_over(node.inner, engine, cells)
    leaf = engine.leaf(node)
    if leaf.presence:
        return np.ones(len(cells.entries), np.bool_)
    return leaf.verdicts(cells.entries)


def _of_missing(node: Expr, engine: Engine) -> bool:
    """What a condition on one field says of a missing value."""
    if isinstance(node, And):
        return all(_of_missing(part, engine) for part in node.parts)
    if isinstance(node, Or):
        return any(_of_missing(part, engine) for part in node.parts)
    if isinstance(node, Not):
        return not _of_missing(node.inner, engine)
    return engine.leaf(node).of(None)
