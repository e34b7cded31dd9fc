"""The row interpreter: what a filter says of one event, in plain Python.

It is the meaning of the language. The columnar engine calls it for every distinct value that it
has no quicker way for, and is tested against it row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from kcap.filter import functions
from kcap.filter.syntax import (
    And,
    Binary,
    Bound,
    Call,
    Expr,
    FieldRef,
    ListOf,
    Literal,
    Not,
    Or,
)
from kcap.filter.values import compare, constant

Lookup = Callable[[FieldRef], Any]
"""The value of a field of an event, None where it has none."""

_NONE: Final[Mapping[str, Any]] = {}


def holds(node: Expr, lookup: Lookup, variables: Mapping[str, Any] = _NONE) -> bool:
    """Whether an expression is true of an event; what is no boolean is not.

    Args:
        node: The expression.
        lookup: The event's fields.
        variables: Values of ``$names``.

    Returns:
        True or false, never "unknown".
    """
    if isinstance(node, And):
        return all(holds(part, lookup, variables) for part in node.parts)
    if isinstance(node, Or):
        return any(holds(part, lookup, variables) for part in node.parts)
    if isinstance(node, Not):
        return not holds(node.inner, lookup, variables)
    if isinstance(node, Binary):
        left = value(node.left, lookup, variables)
        return compare(node.op, left, value(node.right, lookup, variables))
    return value(node, lookup, variables) is True


def value(node: Expr, lookup: Lookup, variables: Mapping[str, Any] = _NONE) -> Any:  # noqa: ANN401
    """What an expression is for an event.

    Args:
        node: The expression.
        lookup: The event's fields.
        variables: Values of ``$names``.

    Returns:
        A value (`kcap.filter.values`), None where it is missing.
    """
    if isinstance(node, Literal):
        return constant(node.value)
    if isinstance(node, ListOf):
        return tuple(constant(item.value) for item in node.items)
    if isinstance(node, FieldRef):
        return lookup(node)
    if isinstance(node, Bound):
        return _variable(node, variables)
    if isinstance(node, Call):
        if node.name == "foreach":
            return _foreach(node, lookup, variables)
        if node.name == functions.ITEMS:
            return functions.items(*(value(a, lookup, variables) for a in node.arguments))
        arguments = [value(a, lookup, variables) for a in node.arguments]
        return functions.FUNCTIONS[node.name].apply(*arguments)
    return holds(node, lookup, variables)


def _variable(node: Bound, variables: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any value
    found = variables.get(node.name)
    if not node.path:
        return found
    return found.get(node.path) if isinstance(found, Mapping) else None


def _foreach(node: Call, lookup: Lookup, variables: Mapping[str, Any]) -> bool:
    """Whether a predicate holds for some item."""
    over, variable, predicate = node.arguments[:3]
    assert isinstance(variable, Bound)
    found = value(over, lookup, variables)
    if not isinstance(found, list | tuple):
        return False
    return any(holds(predicate, lookup, {**variables, variable.name: item}) for item in found)
