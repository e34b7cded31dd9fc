"""A filter over columns: masks of rows, cheapest parts first, and no more than is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.filter import cells as cells_
from kcap.filter.cells import Cells, Reader
from kcap.filter.check import Checked, Resolved
from kcap.filter.leaf import Leaf
from kcap.filter.syntax import And, Call, Expr, FieldRef, Not, Or
from kcap.model.batch import Rows

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.integer[Any]]

_SPARSE: Final = 8
"""Only the values of rows that matter are looked at where those are less than one in so many."""

_CHEAP: Final = frozenset({"event", "action", "category", "kind", "source", "host"})


class Engine:
    """Evaluates one expression.

    Args:
        checked: The expression.
    """

    def __init__(self, checked: Checked) -> None:
        self.fields: Mapping[FieldRef, Resolved] = checked.fields
        self.expr = checked.expr
        self.leaves_known: dict[Expr, Leaf] = {}
        """Leaves by what they say; engines of one era may share them."""
        # By identity: the nodes of the expression live as long as this, and hashing walks them.
        self._leaves: dict[int, Leaf] = {}
        self._costs: dict[int, int] = {}

    def mask(self, reader: Reader) -> Mask:
        """The rows for which the expression is true.

        Args:
            reader: The events.

        Returns:
            One a row.
        """
        return self._mask(self.expr, reader, None)

    def kept(self, parts: Iterable[Expr], reader: Reader, at: Rows) -> Rows:
        """Of some rows those for which parts of the expression are true.

        Args:
            parts: The parts; all must be.
            reader: The events.
            at: The rows, ascending.

        Returns:
            Some of them.
        """
        for part in sorted(parts, key=self.cost):
            if not len(at):
                break
            at = at[self._at(part, reader, at)]
        return at

    def leaf(self, node: Expr) -> Leaf:
        """The leaf of a part of the expression."""
        found = self._leaves.get(id(node))
        if found is None:
            found = self._leaves[id(node)] = self.leaves_known.setdefault(node, Leaf(node))
        return found

    def leaves(self) -> Iterator[tuple[Expr, Leaf]]:
        """Every leaf, in the order of the text."""
        for node in leaf_nodes(self.expr):
            yield node, self.leaf(node)

    def _mask(self, node: Expr, reader: Reader, alive: Mask | None) -> Mask:
        """True at most where ``alive`` is."""
        if isinstance(node, And):
            for part in sorted(node.parts, key=self.cost):
                alive = self._mask(part, reader, alive)
                if not alive.any():
                    break
            assert alive is not None
            return alive
        if isinstance(node, Or):
            found = np.zeros(reader.rows, np.bool_)
            for part in sorted(node.parts, key=self.cost):
                todo = ~found if alive is None else alive & ~found
                if not todo.any():
                    break
                found |= self._mask(part, reader, todo)
            return found
        if isinstance(node, Not):
            inner = self._mask(node.inner, reader, alive)
            return ~inner if alive is None else alive & ~inner
        return self._leaf_mask(self.leaf(node), reader, alive)

    def _leaf_mask(self, leaf: Leaf, reader: Reader, alive: Mask | None) -> Mask:
        if alive is not None or len(leaf.fields) != 1:
            at = np.arange(reader.rows) if alive is None else np.flatnonzero(alive)
            if len(leaf.fields) != 1 or len(at) * _SPARSE < reader.rows:
                found = np.zeros(reader.rows, np.bool_)
                found[at] = self._leaf_at(leaf, reader, at)
                return found
        ref = leaf.fields[0]
        parts = reader.cells(ref, self.fields[ref])
        if len(parts) == 1 and parts[0].rows is None:
            found = _verdicts(leaf, parts[0])
        else:
            found = np.full(reader.rows, leaf.of_missing, np.bool_)
            for part in parts:
                found[slice(None) if part.rows is None else part.rows] = _verdicts(leaf, part)
        return found if alive is None else found & alive

    # some rows

    def _at(self, node: Expr, reader: Reader, at: Places) -> Mask:
        """What a part of the expression says of some rows, one verdict each."""
        if isinstance(node, Not):
            return ~self._at(node.inner, reader, at)
        if not isinstance(node, And | Or):
            return self._leaf_at(self.leaf(node), reader, at)
        settled = isinstance(node, Or)
        """The verdict of a part that settles that of all."""
        found = np.full(len(at), not settled, np.bool_)
        left = np.arange(len(at))
        for part in sorted(node.parts, key=self.cost):
            said = self._at(part, reader, at[left])
            found[left[said if settled else ~said]] = settled
            left = left[~said if settled else said]
            if not len(left):
                break
        return found

    def _leaf_at(self, leaf: Leaf, reader: Reader, at: Places) -> Mask:
        if len(leaf.fields) != 1:
            return self._joint(leaf, reader, at)
        if len(at) * _SPARSE >= reader.rows:
            return self._leaf_mask(leaf, reader, None)[at]
        ref = leaf.fields[0]
        found = np.full(len(at), leaf.of_missing, np.bool_)
        for part in reader.cells(ref, self.fields[ref]):
            which, places = part.sought(at)
            if len(places):
                found[which] = _verdicts_at(leaf, part, places)
        return found

    def _joint(self, leaf: Leaf, reader: Reader, at: Places) -> Mask:
        """A leaf of no field, or of several: each distinct combination is looked at once."""
        if not leaf.fields:
            return np.full(len(at), leaf.of(), np.bool_)
        keys = np.zeros(len(at), np.int64)
        columns: list[tuple[npt.NDArray[np.int64], list[Any]]] = []
        for ref in leaf.fields:
            codes, values = self._coded(ref, reader, at)
            # Numbered anew each time, so that the product of the sizes stays in 64 bits.
            _, keys = np.unique(keys, return_inverse=True)
            keys = keys.reshape(-1) * len(values) + codes
            columns.append((codes, values))
        _, first, codes = np.unique(keys, return_index=True, return_inverse=True)
        each = [[values[c] for c in found[first].tolist()] for found, values in columns]
        verdicts = [leaf.of(*combination) for combination in zip(*each, strict=True)]
        return np.array(verdicts, np.bool_)[codes.reshape(-1)]

    def _coded(
        self, ref: FieldRef, reader: Reader, at: Places
    ) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """The values of a field in some rows: codes, and the values, the first of them None."""
        codes = np.zeros(len(at), np.int64)
        values: list[Any] = [None]
        for part in reader.cells(ref, self.fields[ref]):
            which, places = part.sought(at)
            if len(places):
                found, more = cells_.values_of(part.few(places))
                codes[which] = found + len(values)
                values += more
        return codes, values

    def cost(self, node: Expr) -> int:
        """How dear a part is: by what it reads, and how.

        Args:
            node: The part.

        Returns:
            Points; only their order means something.
        """
        found = self._costs.get(id(node))
        if found is None:
            found = self._costs[id(node)] = self._estimate(node)
        return found

    def _estimate(self, node: Expr) -> int:
        if isinstance(node, And | Or):
            return sum(self.cost(part) for part in node.parts)
        if isinstance(node, Not):
            return self.cost(node.inner)
        leaf = self.leaf(node)
        cost = 10 * max(0, len(leaf.fields) - 1) + (5 if isinstance(node, Call) else 0)
        for ref in leaf.fields:
            for source in self.fields[ref].field.sources:
                cost += 1 if source.column in _CHEAP else 4
                cost += 6 if source.function else 0
                cost += 4 if ":" in source.column else 0
        return cost


def leaf_nodes(node: Expr) -> Iterator[Expr]:
    """What lies below ``and``, ``or`` and ``not``.

    Args:
        node: An expression.

    Yields:
        Its leaves, in the order of the text.
    """
    if isinstance(node, And | Or):
        for part in node.parts:
            yield from leaf_nodes(part)
    elif isinstance(node, Not):
        yield from leaf_nodes(node.inner)
    else:
        yield node


def _verdicts(leaf: Leaf, part: Cells) -> Mask:
    if leaf.presence:
        size = len(part.entries) if part.codes is None else len(part.codes)
        return np.ones(size, np.bool_)
    return part.spread(leaf.verdicts(part.entries))


def _verdicts_at(leaf: Leaf, part: Cells, places: Places) -> Mask:
    """Verdicts on some of the cells."""
    if leaf.presence:
        return np.ones(len(places), np.bool_)
    few = part.few(places)
    return few.spread(leaf.verdicts(few.entries))


def columns(fields: Iterable[Resolved]) -> set[str]:
    """The columns that fields may depend on.

    Args:
        fields: The fields.

    Returns:
        Their names.
    """
    found: set[str] = set()
    for resolved in fields:
        found |= cells_.needed(resolved)
    return found
