"""Many filters at once: a bit for each of them, a word for each row.

A filter is cut at its outermost ``and``. A part that looks at one field only is asked about the
entries of that field's dictionary, and its answers become a column of bits; rows gather the words
of their entries, field after field, and those in which no filter has a bit left are dropped. What
is left of a filter - parts over several fields, or over numbers - is looked at only where its bit
survived. Each column is read once, however many filters ask for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import reduce
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kcap.filter.cells import Cells, Reader, View
from kcap.filter.engine import Engine, leaf_nodes
from kcap.filter.entries import Lists, Numbers
from kcap.filter.leaf import Leaf
from kcap.filter.syntax import And, Expr, FieldRef, Or
from kcap.filter.tables import BITS, Part, Table, Words
from kcap.model.batch import Rows

if TYPE_CHECKING:
    from kcap.filter.filter import Filter
    from kcap.model.side import Side

Bytes = npt.NDArray[np.uint8]

_ALL: Final = np.uint64(2**64 - 1)

_ALTERNATIVES: Final = 8
"""So many bits a filter may have."""

_OFTEN: Final = 8
"""Numbers of which each comes so often are looked at as texts are, each once."""


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
        self._owners: list[int] = []
        """The filter of each bit."""
        self._rest: list[list[Expr]] = []
        """What the filter of each bit asks besides."""
        self._same: dict[tuple[int, Expr], int] = {}
        shared: dict[int, dict[Expr, Leaf]] = defaultdict(dict)
        coded: dict[tuple[int, FieldRef], list[Part]] = defaultdict(list)
        for number, one in enumerate(self._filters):
            one.engine.leaves_known = shared[one.checked.era]
            for parts in _alternatives(one.checked.expr, one.engine):
                self._place(number, parts, one, coded)
        self._words = -(-len(self._owners) // BITS)
        self._coded = [
            (era, ref, parts, Table(parts, self._words))
            for (era, ref), parts in sorted(coded.items(), key=_order)
        ]
        """The parts that look at one field only, by era and field."""

    def __len__(self) -> int:
        """How many filters there are."""
        return len(self._filters)

    def _place(
        self,
        number: int,
        parts: Sequence[Expr],
        one: Filter,
        coded: dict[tuple[int, FieldRef], list[Part]],
    ) -> None:
        """Give a bit to parts that must all be true."""
        era, bit = one.checked.era, len(self._owners)
        self._owners.append(number)
        self._rest.append([])
        for node in parts:
            ref = _only_field(node, one.engine)
            if ref is None:
                self._rest[bit].append(node)
            else:
                same = self._same.setdefault((era, node), len(self._same))
                coded[era, ref].append(Part(bit, node, one.engine, same))

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
        found: list[list[Rows]] = [[] for _ in self._filters]
        for bit, number in enumerate(self._owners):
            one = self._filters[number]
            rows: Rows = at[bits[bit // 8] & np.uint8(1 << bit % 8) != 0]
            if left[bit] and len(rows):
                rows = one.engine.kept(left[bit], readers[one.checked.era], rows)
            if len(rows):
                found[number].append(rows)
        return [_united(each) for each in found]

    def _narrowed(
        self, count: int, readers: dict[int, Reader]
    ) -> tuple[Rows, Bytes, list[list[Expr]]]:
        """The rows that some filter may want, bits of those that may, and what is left to ask."""
        left = [list(rest) for rest in self._rest]
        at = np.arange(count, dtype=np.int32)
        words = [np.full(count, word, np.uint64) for word in self._all()]
        for era, ref, parts, table in self._coded:
            if not len(at):
                break
            wanted = self._alive(words, parts)
            if not wanted:
                continue
            cells = [_coded(p) for p in readers[era].cells(ref, wanted[0].engine.fields[ref])]
            known = [part for part in cells if part is not None]
            if len(known) < len(cells):
                for one in wanted:
                    left[one.number].append(one.node)
                continue
            codes = _codes(known, count)
            codes = codes if len(at) == count else codes[at]
            bits = table.of(wanted, [part.entries for part in known])
            for word, each in zip(words, bits, strict=True):
                if not (each == _ALL).all():
                    word &= each.take(codes)  # noqa: PLW2901 - in place
            alive = reduce(np.bitwise_or, words) != 0
            if not alive.all():
                at, words = at[alive], [word[alive] for word in words]
        return at, _bytes(words), left

    def _all(self) -> Words:
        """A bit for every filter."""
        flags = np.zeros(self._words * BITS, np.bool_)
        flags[: len(self._owners)] = True
        return np.asarray(np.packbits(flags, bitorder="little").view(np.uint64))

    @staticmethod
    def _alive(words: list[Words], parts: list[Part]) -> list[Part]:
        """The parts of filters that may still want a row."""
        some = np.array([np.bitwise_or.reduce(word) for word in words], np.uint64)
        alive = np.unpackbits(some.view(np.uint8), bitorder="little")
        return [part for part in parts if alive[part.number]]


def _bytes(words: list[Words]) -> Bytes:
    """Words of bits, one array for each word, as bytes, one array for each eight filters."""
    return np.concatenate([np.ascontiguousarray(w.view(np.uint8).reshape(-1, 8).T) for w in words])


def _alternatives(expr: Expr, engine: Engine) -> list[list[Expr]]:
    """Lists of parts: an expression is true where all parts of one of the lists are.

    An ``or`` over several fields says nothing of one field, and would be looked at row by row. Its
    parts mostly do, so each of them gets a bit of its own.
    """
    found: list[list[Expr]] = [[]]
    for part in _conjuncts(expr):
        each = [part]
        if isinstance(part, Or) and _only_field(part, engine) is None:
            each = _by_field(part, engine)
        if len(each) * len(found) > _ALTERNATIVES or not all(_tells(p, engine) for p in each):
            each = [part]
        found = [[*before, *_conjuncts(one)] for one in each for before in found]
    return found


def _conjuncts(expr: Expr) -> Iterator[Expr]:
    if isinstance(expr, And):
        for part in expr.parts:
            yield from _conjuncts(part)
    else:
        yield expr


def _by_field(expr: Or, engine: Engine) -> list[Expr]:
    """The parts of an ``or``; those that look at the same field only are one."""
    together: dict[FieldRef, list[Expr]] = defaultdict(list)
    found: list[Expr] = []
    for part in _disjuncts(expr):
        ref = _only_field(part, engine)
        if ref is None:
            found.append(part)
        else:
            together[ref].append(part)
    one = [parts[0] if len(parts) == 1 else Or(tuple(parts)) for parts in together.values()]
    return found + one


def _disjuncts(expr: Expr) -> Iterator[Expr]:
    if isinstance(expr, Or):
        for part in expr.parts:
            yield from _disjuncts(part)
    else:
        yield expr


def _only_field(node: Expr, engine: Engine) -> FieldRef | None:
    """The field that a part looks at, where it looks at one only."""
    each = [engine.leaf(leaf).fields for leaf in leaf_nodes(node)]
    fields = {ref for refs in each for ref in refs}
    return fields.pop() if len(fields) == 1 and all(each) else None


def _tells(node: Expr, engine: Engine) -> bool:
    """Whether a part can be true only where one field has some values."""
    return any(_only_field(part, engine) is not None for part in _conjuncts(node))


def _order(item: tuple[tuple[int, FieldRef], list[Part]]) -> tuple[int, int, str]:
    """Cheap fields that many filters ask for first."""
    (_, ref), parts = item
    cost = min(part.engine.cost(part.node) for part in parts)
    return cost, -len(parts), ref.name


def _coded(cells: Cells) -> Cells | None:
    """Cells whose values each come often; None where there is no telling."""
    entries, codes = cells.entries, cells.codes
    if isinstance(entries, Numbers):
        values, at = entries.distinct
        if len(values) * _OFTEN > len(at):
            return None
        distinct = np.array(values, entries.array.dtype)
        return Cells(cells.rows, at if codes is None else at[codes], Numbers(distinct))
    return None if isinstance(entries, Lists) else cells


def _codes(cells: Sequence[Cells], count: int) -> npt.NDArray[np.int32]:
    """Which entry of all cells each row has; 0 for none, the first is 1."""
    codes = np.zeros(count, np.int32)
    before = 1
    for part in cells:
        own = np.arange(len(part.entries)) if part.codes is None else part.codes
        codes[slice(None) if part.rows is None else part.rows] = own + before
        before += len(part.entries)
    return codes


def _united(rows: Sequence[Rows]) -> Rows:
    """Row numbers of several lists, ascending, each once."""
    if not rows:
        return np.zeros(0, np.int32)
    return rows[0] if len(rows) == 1 else np.unique(np.concatenate(rows))
