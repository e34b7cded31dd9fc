"""The parts of a filter that are about values: everything below ``and``, ``or`` and ``not``.

A leaf of one field is asked about the distinct values of a column; what has no quick way is asked
of the row interpreter, value by value, and remembered by value, so that the next chunk with the
same texts costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.filter.entries import Entries, Lists, Memo, Numbers, Texts, Verdicts, key_of
from kcap.filter.interpret import holds
from kcap.filter.members import Members
from kcap.filter.syntax import (
    ORDERED,
    Binary,
    Call,
    Expr,
    FieldRef,
    ListOf,
    Literal,
    Op,
    children,
)
from kcap.filter.values import Named, constant, fold, wildcard

_FEW: Final = 48
"""Fewer texts than this are asked for one by one: Arrow takes longer to start. Among more constants
numbers are looked up: to compare all numbers with each takes longer."""

_INTEGER: Final = re.compile("0|-?[1-9][0-9]{0,19}")
"""The digits of integers that fit 64 bits, and of some more."""

_EXACT: Final = 1 << 53
"""Integers up to here are exact as floats."""

_ANY_ITEM: Final = frozenset(
    {
        Op.IN,
        Op.CONTAINS,
        Op.STARTSWITH,
        Op.ENDSWITH,
        Op.MATCHES,
        Op.FUZZY,
        Op.FUZZYNORM,
    }
)
"""Operators that hold for a list where they hold for one item of it."""


class Leaf:
    """A part of a filter that one look at the values of its fields decides.

    Args:
        node: The part.
    """

    def __init__(self, node: Expr) -> None:
        self.node = node
        self.fields = tuple(dict.fromkeys(_fields(node)))
        """The fields that it needs, each once."""
        self._memo = Memo()
        self.op, self.constants = _constants(node)
        self._members: Members | None = None
        if self.op is not None and self.op.base is Op.IN and self.constants is not None:
            self._members = Members(self.op, self.constants)
        self._regex = _patterns(node)
        self.presence = isinstance(node, Call) and node.name == "exists"
        """Whether just the presence of a value counts."""

    def of(self, *values: Any) -> bool:  # noqa: ANN401 - any values
        """What it says of an event.

        Args:
            values: One for each of `fields`, None where the event has none.

        Returns:
            Whether it holds.
        """
        if self._members is not None:
            return self._members.has(*values)
        by_field = dict(zip(self.fields, values, strict=True))
        return holds(self.node, by_field.__getitem__)

    @cached_property
    def of_missing(self) -> bool:
        """What it says of a missing value of its only field."""
        return self.of(None)

    def verdicts(self, entries: Entries, few: int = _FEW) -> Verdicts:
        """What it says of values of its only field.

        Args:
            entries: The values; None among them is a missing one.
            few: Fewer texts are asked for one by one.

        Returns:
            One verdict each.
        """
        if isinstance(entries, Texts) and len(entries) >= few:
            found = self._of_texts(entries)
            if found is not None:
                return found
        if isinstance(entries, Numbers):
            return self._of_numbers(entries)
        if isinstance(entries, Lists) and self.op is not None and self.op.base in _ANY_ITEM:
            if isinstance(entries.items, Texts):
                return entries.any(self.verdicts(entries.items, few))
            # Numbers in a list are texts to some operators, so each is asked as a list of one.
            return entries.any(self.each([(v,) for v in entries.items.values()]))
        return self.each(entries.values())

    def each(self, values: Sequence[Any]) -> Verdicts:
        """What it says of values, one by one; what it said before is remembered.

        Args:
            values: The values.

        Returns:
            One verdict each.
        """
        memo = self._memo
        memo.trim()
        found = np.empty(len(values), np.bool_)
        for i, value in enumerate(values):
            try:
                key = key_of(value)
                known = memo.get(key)
            except TypeError:  # a mapping
                found[i] = self.of(value)
                continue
            if known is None:
                known = memo[key] = self.of(value)
            found[i] = known
        return found

    # numbers

    def _of_numbers(self, entries: Numbers) -> Verdicts:
        constants = self.constants
        if constants is not None and self.op is not None:
            if self.op in ORDERED or self.op in (Op.EQ, Op.NE):
                found = _compared(entries.array, self.op, constants[0])
                if found is not None:
                    return found
            if self.op.base is Op.IN and len(constants) <= _FEW:
                if entries.array.dtype.kind != "f":
                    constants = [_digits(c) for c in constants]
                each = [_compared(entries.array, Op.EQ, c) for c in constants]
                known = [e for e in each if e is not None]
                if len(known) == len(each):
                    return np.asarray(np.logical_or.reduce(known))
        values, codes = entries.distinct
        return self.each(values)[codes]

    # texts

    def _of_texts(self, entries: Texts) -> Verdicts | None:
        if self._regex is not None:
            each = [pc.match_substring_regex(entries.array, p) for p in self._regex]
            return np.asarray(np.logical_or.reduce([np.asarray(found) for found in each]))
        op, constants = self.op, self.constants
        if op is None or constants is None:
            return None
        words = [c for c in constants if isinstance(c, str)]
        if len(words) != len(constants):
            return None
        if not op.folds:
            return _text_test(op, entries, words)
        return _text_test(op.base, entries.folded, [fold(w) for w in words])


def _fields(node: Expr) -> Iterator[FieldRef]:
    if isinstance(node, FieldRef):
        yield node
    for part in children(node):
        yield from _fields(part)


def _constants(node: Expr) -> tuple[Op | None, list[Any] | None]:
    """Operator and right side of ``field OP constants``."""
    if not isinstance(node, Binary) or not isinstance(node.left, FieldRef):
        return None, None
    right = node.right
    if isinstance(right, Literal):
        return node.op, [constant(right.value)]
    if isinstance(right, ListOf) and node.op.is_word:
        return node.op, [constant(item.value) for item in right.items]
    return None, None


def _patterns(node: Expr) -> list[str] | None:
    """The expressions of ``regex(field, ...)``."""
    if not isinstance(node, Call) or node.name != "regex":
        return None
    first, *rest = node.arguments
    texts = [part.value for part in rest if isinstance(part, Literal)]
    if not isinstance(first, FieldRef) or len(texts) != len(rest):
        return None
    return [text for text in texts if isinstance(text, str)]


def _digits(value: Any) -> Any:  # noqa: ANN401 - a constant
    """A member of a list as the number that it stands for among integers."""
    return int(value) if isinstance(value, str) and _INTEGER.fullmatch(value) else value


def _compared(array: Any, op: Op, value: Any) -> Verdicts | None:  # noqa: ANN401 - numpy arrays
    """Numbers against a constant, exactly; None where that needs more thought."""
    if isinstance(value, bool | str | Named) or not isinstance(value, int | float):
        # No number equals it, or differs from it: it is of another kind.
        return np.zeros(len(array), np.bool_) if isinstance(value, bool | str) else None
    if array.dtype.kind == "f":
        return _OPERATORS[op](array, value) if abs(value) <= _EXACT else None
    if isinstance(value, float):
        if value != value or abs(value) > _EXACT or not value.is_integer():  # noqa: PLR0124
            return None
        value = int(value)
    limits = np.iinfo(array.dtype)
    if limits.min <= value <= limits.max:
        return _OPERATORS[op](array, array.dtype.type(value))
    greater = value > limits.max
    always = {Op.NE: True, Op.LT: greater, Op.LE: greater, Op.GT: not greater, Op.GE: not greater}
    return np.full(len(array), always.get(op, False), np.bool_)


_OPERATORS: Final[dict[Op, Callable[[Any, Any], Verdicts]]] = {
    Op.EQ: np.equal,
    Op.NE: np.not_equal,
    Op.LT: np.less,
    Op.LE: np.less_equal,
    Op.GT: np.greater,
    Op.GE: np.greater_equal,
}


def _text_test(op: Op, entries: Texts, words: list[str]) -> Verdicts | None:
    """Texts against constants, case by case of an operator; None where there is no quick way."""
    if len(words) == 1 and op in (Op.EQ, Op.IN):
        return np.asarray(pc.equal(entries.array, words[0]))
    if op is Op.IN:
        return np.asarray(pc.is_in(entries.array, value_set=pa.array(words, pa.utf8())))
    if op is Op.NE:
        return np.asarray(pc.not_equal(entries.array, words[0]))
    test = {
        Op.CONTAINS: _with_part,
        Op.STARTSWITH: _with_start,
        Op.ENDSWITH: _with_end,
        Op.MATCHES: _with_form,
    }.get(op)
    if test is None:
        return None
    found = np.zeros(len(entries), np.bool_)
    for word in words:
        test(entries, word, found)
    return found


def _with_part(entries: Texts, word: str, found: Verdicts) -> None:
    if word:
        found[entries.with_part(word)] = True
    else:
        found[:] = True


def _with_start(entries: Texts, word: str, found: Verdicts) -> None:
    found |= np.asarray(pc.starts_with(entries.array, word))


def _with_end(entries: Texts, word: str, found: Verdicts) -> None:
    found |= np.asarray(pc.ends_with(entries.array, word))


def _with_form(entries: Texts, word: str, found: Verdicts) -> None:
    """Wildcards: only texts with the longest part between them are looked at."""
    longest = max(word.replace("?", "*").split("*"), key=len)
    if not longest:
        form = [wildcard(text, word) for text in entries.values()]
        found |= np.array(form, np.bool_)
        return
    first, *rest = word.split("*")
    if not first and rest == [longest]:
        _with_end(entries, longest, found)
    elif first == longest and rest == [""]:
        _with_start(entries, longest, found)
    elif word == f"*{longest}*":
        _with_part(entries, longest, found)
    else:
        numbers = entries.with_part(longest)
        form = [wildcard(text, word) for text in entries.chosen(numbers).values()]
        found[numbers[np.array(form, np.bool_)]] = True
