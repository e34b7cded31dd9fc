"""What a filter demands of an event in the few columns that a recorder can test by itself.

A recorder that drops early what a filter would drop later saves the work in between. It may drop
too little, never too much: what `necessary` gives holds for **every** event for which the filter
is true. Only columns that come from the kernel as they are count, none that the state of the
machine fills in: ``ps.name`` is the thread's own name, but ``user`` would be looked up.

Of each part of a filter two things are known: what holds of a column where the part is true, and
what holds where it is not. ``not`` swaps the two; ``and`` meets the first and joins the second,
``or`` the other way round. A missing value is a value like others, so that ``not pid = 5`` lets
it pass, as the filter does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

from kcap.filter.syntax import ORDERED, And, Expr, Not, Op, Or

if TYPE_CHECKING:
    from kcap.filter.check import Resolved
    from kcap.filter.fields import Source
    from kcap.filter.filter import Filter
    from kcap.filter.leaf import Leaf

EVENT: Final = "event"
NAME: Final = "process_name"
NUMBERS: Final = ("pid", "uid", "cgroup_id", "mount_ns", "pid_ns")
"""Columns of integers that count."""

COLUMNS: Final = (EVENT, NAME, *NUMBERS)
"""The columns that count."""

_INTEGER: Final = re.compile("0|-?[1-9][0-9]{0,19}")


@dataclass(frozen=True, slots=True)
class Demand:
    """Values of a column: some of them, or all but some; numbers maybe in a range only.

    None among the values is a missing one.
    """

    values: frozenset[Any] = frozenset()
    others: bool = True
    """All but `values` are meant."""
    low: float = -math.inf
    """Numbers below are not meant; either end is an integer or endless."""
    high: float = math.inf

    def __contains__(self, value: object) -> bool:
        """Whether a value, None for a missing one, is meant."""
        if (value in self.values) is self.others:
            return False
        return not isinstance(value, int) or self.low <= value <= self.high

    def __and__(self, other: Demand) -> Demand:
        """What both mean."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        if self.others and other.others:
            return Demand(self.values | other.values, True, low, high)
        if not self.others and not other.others:
            return Demand(self.values & other.values, False, low, high)
        some, rest = (other, self) if self.others else (self, other)
        return Demand(some.values - rest.values, False, low, high)

    def __or__(self, other: Demand) -> Demand:
        """What one of them means, and maybe some more."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        if self.others and other.others:
            return Demand(self.values & other.values, True, low, high)
        if not self.others and not other.others:
            return Demand(self.values | other.values, False, low, high)
        some, rest = (other, self) if self.others else (self, other)
        return Demand(rest.values - some.values, True, low, high)


_Demands = Mapping[str, Demand]
"""By column; a column that is not in it may hold anything."""

_NOTHING_KNOWN: Final[_Demands] = {}


@dataclass(frozen=True, slots=True)
class Necessary:
    """What every event has for which a filter is true."""

    demands: _Demands

    def of(self, column: str) -> Demand:
        """What a column must hold.

        Args:
            column: One of `COLUMNS`.

        Returns:
            The demand; that of any value where there is none.
        """
        return self.demands.get(column, Demand())

    def __and__(self, other: Necessary) -> Necessary:
        """What every event has for which both filters are true."""
        return Necessary(_meet(self.demands, other.demands))

    def admits(self, row: Mapping[str, object]) -> bool:
        """Whether an event meets it.

        Args:
            row: The columns in which the event has a value.

        Returns:
            False only where the filter is not true of it.
        """
        return all(row.get(column) in demand for column, demand in self.demands.items())


def necessary(chosen: Filter, possible: Collection[str] | None = None) -> Necessary:
    """What a filter demands of an event.

    Args:
        chosen: The filter.
        possible: Names of all events that there can be; None where they are not known. What a
            field means may depend on them, and of these names any test is understood.

    Returns:
        A condition that each event, if its name is possible, meets for which the filter is true.
    """
    names = None if possible is None else frozenset(possible)
    engine = chosen.engine

    def both(node: Expr) -> tuple[_Demands, _Demands]:
        if isinstance(node, Not):
            true, false = both(node.inner)
            return false, true
        if isinstance(node, And | Or):
            trues, falses = zip(*map(both, node.parts), strict=True)
            if isinstance(node, And):
                return reduce(_meet, trues), reduce(_join, falses)
            return reduce(_join, trues), reduce(_meet, falses)
        return _of_leaf(engine.leaf(node), engine.fields, names)

    return Necessary(both(engine.expr)[0])


def _meet(one: _Demands, other: _Demands) -> _Demands:
    shared = {name: one[name] & other[name] for name in one.keys() & other.keys()}
    return {**one, **other, **shared}


def _join(one: _Demands, other: _Demands) -> _Demands:
    return {name: one[name] | other[name] for name in one.keys() & other.keys()}


def _of_leaf(
    leaf: Leaf, fields: Mapping[Any, Resolved], names: frozenset[str] | None
) -> tuple[_Demands, _Demands]:
    """What holds where a leaf is true, and where it is not."""
    column = _column(fields[leaf.fields[0]], names) if len(leaf.fields) == 1 else None
    if column is None:
        return _NOTHING_KNOWN, _NOTHING_KNOWN
    if column == EVENT and names is not None:
        found = {name: leaf.of(name) for name in (*sorted(names), None)}
        sides = [Demand(frozenset(n for n in found if found[n] is s), False) for s in (True, False)]
        return {column: sides[0]}, {column: sides[1]}
    made = _compared(leaf, number=column in NUMBERS)
    return ({column: made[0]}, {column: made[1]}) if made else (_NOTHING_KNOWN, _NOTHING_KNOWN)


def _column(resolved: Resolved, names: frozenset[str] | None) -> str | None:
    """The column that a field is, no more and no less; None where it is not one of ours."""
    if resolved.key:
        return None
    sources = [each for each in resolved.field.sources if _may_apply(each, names)]
    if len(sources) != 1 or sources[0].function or sources[0].column not in COLUMNS:
        return None
    return sources[0].column if _applies(sources[0], names) else None


def _may_apply(source: Source, names: frozenset[str] | None) -> bool:
    """Whether the condition of a source may be met."""
    when = source.when
    if when is None or when.unless or when.column != EVENT or names is None:
        return True
    return not names.isdisjoint(when.values)


def _applies(source: Source, names: frozenset[str] | None) -> bool:
    """Whether the condition of a source is always met."""
    when = source.when
    if when is None:
        return True
    if when.column != EVENT or names is None:
        return False
    return when.unless and names.isdisjoint(when.values)


def _compared(leaf: Leaf, *, number: bool) -> tuple[Demand, Demand] | None:
    """Demands of ``column OP constants``, exactly; None where more than they can say is meant."""
    if leaf.presence:
        missing = frozenset([None])
        return Demand(missing), Demand(missing, False)
    op, constants = leaf.op, leaf.constants
    if op is None or constants is None:
        return None
    if op in ORDERED:
        return _ordered(op, constants[0]) if number else None
    if op not in (Op.EQ, Op.NE, Op.IN):
        return None
    # Booleans are integers to Python, but equal to none here; and of 5.0 it is the integer.
    if any(isinstance(c, bool) or not isinstance(c, int | float | str) for c in constants):
        return None
    if not number and not all(isinstance(c, str) for c in constants):
        return None
    if op is Op.NE:
        if number and isinstance(constants[0], str):
            return None
        differing = frozenset([*_candidates(constants, number=number), None])
        return Demand(differing), Demand(differing, False)
    equal = frozenset(c for c in _candidates(constants, number=number) if leaf.of(c))
    return Demand(equal, False), Demand(equal)


def _candidates(constants: Iterable[int | float | str], *, number: bool) -> Iterable[Any]:
    """The values of a column that may be equal to constants."""
    for constant in constants:
        if not number:
            yield constant
        elif isinstance(constant, str):
            if _INTEGER.fullmatch(constant):
                yield int(constant)
        elif isinstance(constant, int) or constant.is_integer():
            yield int(constant)


def _ordered(op: Op, constant: object) -> tuple[Demand, Demand] | None:
    """Demands of a comparison with a number."""
    if isinstance(constant, bool) or not isinstance(constant, int | float):
        return None
    if not math.isfinite(constant):
        return None
    missing = frozenset([None])
    below = math.ceil(constant) - 1 if op in (Op.LT, Op.GE) else math.floor(constant)
    down, up = (-math.inf, below), (below + 1, math.inf)
    inside, outside = (down, up) if op in (Op.LT, Op.LE) else (up, down)
    return Demand(missing, True, *inside), Demand(frozenset(), True, *outside)


__all__ = ["COLUMNS", "EVENT", "NAME", "NUMBERS", "Demand", "Necessary", "necessary"]
