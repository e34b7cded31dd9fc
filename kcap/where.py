"""Predicates over events: which rows they are true for, and which chunks can't have such a row.

Arrow decides about rows. About chunks an interpreter decides that knows three truth values and is
never sure without reason: what it does not understand may be anything, and only a chunk for which
"true" is impossible is left unread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.expression import CallStep, FieldStep, LiteralStep, fields, program

if TYPE_CHECKING:
    from kcap.model.batch import Rows

_NS: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_LOOKED_UP: Final = 1000
"""Members of an ``is_in`` that are looked for in a chunk's index one by one."""


class Truth(IntFlag):
    """What a predicate may be, in some row of a chunk."""

    FALSE = 1
    TRUE = 2
    NULL = 4
    ANY = 7


class Sides(NamedTuple):
    """Whether some value may be less than, equal to, greater than a given one."""

    less: bool
    equal: bool
    greater: bool


class Values(Protocol):
    """The values that a column may have in a chunk; its rows may lack one besides, always."""

    @property
    def kind(self) -> str | None:
        """``integer``, ``time`` (in ns) or ``text``: what a constant must be to be compared."""

    def sides(self, value: Any) -> Sides:  # noqa: ANN401
        """Where the values may lie.

        Args:
            value: A constant of the same kind.

        Returns:
            On which sides of it.
        """


@dataclass(frozen=True, slots=True)
class Anything:
    """Nothing is known of the values."""

    kind: str | None = None

    def sides(self, _: Any) -> Sides:  # noqa: ANN401
        """See `Values`."""
        return Sides(less=True, equal=True, greater=True)


@dataclass(frozen=True, slots=True)
class Nothing:
    """No row has a value."""

    kind: str | None = None

    def sides(self, _: Any) -> Sides:  # noqa: ANN401
        """See `Values`."""
        return Sides(less=False, equal=False, greater=False)


@dataclass(frozen=True, slots=True)
class Interval:
    """Integers or times between two, both possible."""

    low: int
    high: int
    kind: str | None = "integer"

    def sides(self, value: int) -> Sides:
        """See `Values`."""
        return Sides(self.low < value, self.low <= value <= self.high, self.high > value)


@dataclass(frozen=True, slots=True)
class Integers:
    """Exactly these, ascending."""

    values: npt.NDArray[np.int64]
    kind: str | None = "integer"

    def sides(self, value: int) -> Sides:
        """See `Values`."""
        if not len(self.values):
            return Sides(less=False, equal=False, greater=False)
        low, high = int(self.values[0]), int(self.values[-1])
        inside = low <= value <= high
        equal = inside and int(self.values[np.searchsorted(self.values, value)]) == value
        return Sides(low < value, equal, high > value)


@dataclass(frozen=True, slots=True)
class Texts:
    """Exactly these."""

    values: frozenset[str]
    kind: str | None = "text"

    def sides(self, value: str) -> Sides:
        """See `Values`."""
        # Code points order as the bytes of UTF-8 do, by which Arrow compares.
        less = any(v < value for v in self.values)
        return Sides(less, value in self.values, any(v > value for v in self.values))


@dataclass(frozen=True, slots=True)
class Hashed:
    """Texts of which a filter says whether one is possible."""

    may_hold: Callable[[str], bool]
    kind: str | None = "text"

    def sides(self, value: str) -> Sides:
        """See `Values`."""
        return Sides(less=True, equal=self.may_hold(value), greater=True)


_COMPARISONS: Final[Mapping[str, Sides]] = {
    "equal": Sides(less=False, equal=True, greater=False),
    "not_equal": Sides(less=True, equal=False, greater=True),
    "less": Sides(less=True, equal=False, greater=False),
    "less_equal": Sides(less=True, equal=True, greater=False),
    "greater": Sides(less=False, equal=False, greater=True),
    "greater_equal": Sides(less=False, equal=True, greater=True),
}
"""On which side of the right operand the left one is when a comparison is true."""

_OPERANDS: Final = 2

_STEPS: Final = 10_000
"""Longest program that is tried on every chunk."""

Operand = Values | LiteralStep | Truth


class Where:
    """A predicate, as a `pyarrow.compute.Expression`."""

    def __init__(self, expression: pc.Expression) -> None:
        """Look into an expression.

        Args:
            expression: It may refer to any column by name.
        """
        self.expression = expression
        self._steps = program(expression)
        self.fields = None if self._steps is None else fields(self._steps)
        """The columns it needs; None where that can't be told: then all."""

    def may_match(self, values_of: Callable[[str], Values]) -> bool:
        """Whether the predicate may be true for some row of a chunk.

        Args:
            values_of: What the column of a name may hold there.

        Returns:
            False where it certainly is for none.
        """
        if self._steps is None or len(self._steps) > _STEPS:
            return True
        stack: list[Operand] = []
        for step in self._steps:
            if isinstance(step, FieldStep):
                stack.append(values_of(step.name))
            elif isinstance(step, LiteralStep):
                stack.append(step)
            else:
                at = len(stack) - step.arguments
                stack[at:] = [_call(step, stack[at:])]
        return Truth.TRUE in _truth(stack[0])

    def rows(self, table: pa.RecordBatch) -> Rows:
        """The rows for which the predicate is true.

        Args:
            table: The events, with all `fields`.

        Returns:
            Their numbers, ascending.

        Raises:
            pyarrow.ArrowException: Arrow can't evaluate it over such columns.
        """
        coded = [f.name for f in table.schema if pa.types.is_dictionary(f.type)]
        if coded and self.fields == frozenset(table.schema.names) == {coded[0]}:
            return self._coded_rows(table, coded[0])
        plain = pa.RecordBatch.from_arrays(
            [_plain(column) for column in table.columns], names=table.schema.names
        )
        return np.flatnonzero(self._evaluate(plain)).astype(np.int32)

    def _coded_rows(self, table: pa.RecordBatch, name: str) -> Rows:
        """The same where one text decides: each entry of its dictionary is looked at once."""
        column = table.column(name)
        entries = pa.concat_arrays([column.dictionary, pa.nulls(1, column.type.value_type)])
        verdicts = self._evaluate(pa.RecordBatch.from_arrays([entries], names=[name]))
        missing = len(entries) - 1
        codes = np.asarray(column.indices.fill_null(missing))
        return np.flatnonzero(verdicts[codes]).astype(np.int32)

    def _evaluate(self, table: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        found = evaluated(table, [self.expression], ["is"]).column("is")
        if not pa.types.is_boolean(found.type):
            raise pa.ArrowInvalid(f"the filter gives {found.type}, not true or false")
        return np.asarray(pc.fill_null(found, fill_value=False))


def evaluated(
    table: pa.RecordBatch, expressions: Sequence[pc.Expression], names: Sequence[str]
) -> pa.Table:
    """Compute columns, in the calling thread.

    Args:
        table: Rows.
        expressions: What to compute of each.
        names: The results' names.

    Returns:
        A table of the same rows, in the same order.

    Raises:
        pyarrow.ArrowException: Arrow can't evaluate it over such columns.
    """
    from pyarrow import acero

    given = acero.TableSourceNodeOptions(pa.Table.from_batches([table]))
    steps = [
        acero.Declaration("table_source", given),
        acero.Declaration("project", acero.ProjectNodeOptions(expressions, names)),
    ]
    return acero.Declaration.from_sequence(steps).to_table(use_threads=False)


def _plain(column: pa.Array) -> pa.Array:
    """A column as Arrow's functions take it: few know dictionaries."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _call(step: CallStep, arguments: Sequence[Operand]) -> Operand:
    """What a function may give; of an unknown one anything."""
    name = step.function
    if name in _COMPARISONS and len(arguments) == _OPERANDS:
        return _compared(name, *arguments)
    if name in ("and_kleene", "or_kleene") and len(arguments) == _OPERANDS:
        return _joined(name, *map(_truth, arguments))
    if name == "invert" and len(arguments) == 1:
        return _inverted(_truth(arguments[0]))
    if name == "if_else" and len(arguments) == 3:  # noqa: PLR2004
        return _chosen(*map(_truth, arguments))
    if name == "is_in" and step.values is not None:
        return _among(arguments[0], step)
    if name in ("is_valid", "is_null") and len(arguments) == 1:
        return _present(arguments[0], found=name == "is_valid")
    return Truth.ANY


def _truth(operand: Operand) -> Truth:
    """An operand as the predicate it is used as."""
    if isinstance(operand, Truth):
        return operand
    if isinstance(operand, Nothing):
        return Truth.NULL
    if isinstance(operand, LiteralStep):
        if operand.value is None:
            return Truth.NULL
        if isinstance(operand.value, bool):
            return Truth.TRUE if operand.value else Truth.FALSE
    return Truth.ANY


def _is_null(operand: Operand) -> bool:
    """Whether an operand is certainly null, so that a comparison with it is."""
    return isinstance(operand, Nothing) or (
        isinstance(operand, LiteralStep) and operand.value is None
    )


def _compared(name: str, left: Operand, right: Operand) -> Truth:
    """A comparison; anything unless it is one of a column with a constant of its kind."""
    if _is_null(left) or _is_null(right):
        return Truth.NULL
    wanted = _COMPARISONS[name]
    if isinstance(left, LiteralStep):
        left, right = right, left
        wanted = Sides(wanted.greater, wanted.equal, wanted.less)
    if isinstance(left, (Truth, LiteralStep)) or not isinstance(right, LiteralStep):
        return Truth.ANY
    constant = _constant(right.type, right.value, left.kind)
    if constant is None:
        return Truth.ANY
    found = left.sides(constant)
    outcome = Truth.NULL
    for holds, possible in zip(wanted, found, strict=True):
        if possible:
            outcome |= Truth.TRUE if holds else Truth.FALSE
    return outcome


def _among(operand: Operand, step: CallStep) -> Truth:
    """``is_in`` over a column; a null is in a set that holds null, and in no other."""
    values = step.values or frozenset()
    if isinstance(operand, Nothing):
        return Truth.TRUE if None in values else Truth.FALSE
    unknown = isinstance(operand, (Truth, LiteralStep)) or len(values) > _LOOKED_UP
    if unknown or None in values:
        return Truth.ANY
    assert not isinstance(operand, (Truth, LiteralStep))
    for value in values:
        constant = _constant(step.type, value, operand.kind)
        if constant is None or operand.sides(constant).equal:
            return Truth.ANY
    return Truth.FALSE


def _present(operand: Operand, *, found: bool) -> Truth:
    if isinstance(operand, Nothing):
        return Truth.FALSE if found else Truth.TRUE
    return Truth.TRUE | Truth.FALSE


def _constant(kind: pa.DataType | None, value: object, wanted: str | None) -> Any:  # noqa: ANN401
    """A constant to compare with values of a kind; None where it is of another one."""
    if kind is None or value is None:
        return None
    if wanted == "integer" and pa.types.is_integer(kind):
        return value
    if wanted == "text" and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return value
    if wanted == "time" and pa.types.is_timestamp(kind) and kind.tz is None:
        assert isinstance(value, int)
        return value * _NS[kind.unit]
    return None


def _combined(rule: Callable[..., Truth], *parts: Truth) -> Truth:
    """What a function of single truth values may give over all that its arguments may be."""
    outcome = Truth(0)
    for single in product(*(_single(part) for part in parts)):
        outcome |= rule(*single)
    return outcome


def _single(truth: Truth) -> Iterable[Truth]:
    return [t for t in (Truth.FALSE, Truth.TRUE, Truth.NULL) if t in truth]


def _inverted(part: Truth) -> Truth:
    return _combined(
        lambda t: {Truth.TRUE: Truth.FALSE, Truth.FALSE: Truth.TRUE}.get(t, Truth.NULL), part
    )


def _joined(name: str, left: Truth, right: Truth) -> Truth:
    decides = Truth.FALSE if name == "and_kleene" else Truth.TRUE

    def rule(a: Truth, b: Truth) -> Truth:
        if decides in (a, b):
            return decides
        return Truth.NULL if Truth.NULL in (a, b) else a

    return _combined(rule, left, right)


def _chosen(condition: Truth, then: Truth, otherwise: Truth) -> Truth:
    def rule(c: Truth, a: Truth, b: Truth) -> Truth:
        return {Truth.TRUE: a, Truth.FALSE: b}.get(c, Truth.NULL)

    return _combined(rule, condition, then, otherwise)
