"""The syntax tree of a filter, and its text.

Every node is immutable and can be compared and hashed by what it says: where it stood in the text
does not count. ``parse(text_of(node)) == node``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Op(StrEnum):
    """An operator with two operands."""

    EQ = "="
    NE = "!="
    IEQ = "~="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    IN = "in"
    IIN = "iin"
    CONTAINS = "contains"
    ICONTAINS = "icontains"
    STARTSWITH = "startswith"
    ISTARTSWITH = "istartswith"
    ENDSWITH = "endswith"
    IENDSWITH = "iendswith"
    MATCHES = "matches"
    IMATCHES = "imatches"
    FUZZY = "fuzzy"
    IFUZZY = "ifuzzy"
    FUZZYNORM = "fuzzynorm"
    IFUZZYNORM = "ifuzzynorm"
    INTERSECTS = "intersects"
    IINTERSECTS = "iintersects"

    @property
    def is_word(self) -> bool:
        """Whether it is spelled in letters; such operators bind closest."""
        return self.value.isalpha()

    @property
    def folds(self) -> bool:
        """Whether upper and lower case count as one."""
        return self is Op.IEQ or (self.is_word and self.value[0] == "i" and self.base is not self)

    @property
    def base(self) -> Op:
        """The operator that tells upper from lower case."""
        if self is Op.IEQ:
            return Op.EQ
        return _BASES.get(self.value, self)


_BASES: Final = {f"i{op.value}": op for op in Op if op.value.isalpha() and f"i{op}" in set(Op)}
ORDERED: Final = frozenset({Op.LT, Op.LE, Op.GT, Op.GE})
"""Operators that need an order of their operands."""

KEYWORDS: Final = frozenset(
    {"and", "or", "not", "true", "false", "sequence", "maxspan", "by", "as"}
    | {op.value for op in Op if op.is_word}
)
"""Words that are no names, in any case of letters."""


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a filter."""

    start: int = field(default=0, compare=False, kw_only=True)
    """Its first character in the text."""
    end: int = field(default=0, compare=False, kw_only=True)
    """The character behind it."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A span of time."""

    ns: int


Constant = str | int | Decimal | bool | Address | Network | Duration


@dataclass(frozen=True, slots=True)
class Literal(Node):
    """A constant."""

    value: Constant
    kind: str = field(init=False, repr=False)
    """Its type: True == 1 in Python, and 1 == Decimal(1), but not here."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", type(self.value).__name__)


@dataclass(frozen=True, slots=True)
class ListOf(Node):
    """A list of constants."""

    items: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class FieldRef(Node):
    """A field of the event, with its argument in brackets where it has one."""

    name: str
    argument: str | None = None
    segment: str = ""
    """What follows the brackets: ``size`` of ``pe.sections[.text].size``."""


@dataclass(frozen=True, slots=True)
class Bound(Node):
    """A variable: an event of a sequence, or what ``foreach`` goes through."""

    name: str
    path: str = ""
    """The field or segment of it; empty for itself."""


@dataclass(frozen=True, slots=True)
class Call(Node):
    """A function."""

    name: str
    arguments: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Not(Node):
    """True where the inner expression is not."""

    inner: Expr


@dataclass(frozen=True, slots=True)
class And(Node):
    """True where all parts are; two or more."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Or(Node):
    """True where one part is; two or more."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """An operator between two operands."""

    op: Op
    left: Expr
    right: Expr


Expr = Literal | ListOf | FieldRef | Bound | Call | Not | And | Or | Binary


@dataclass(frozen=True, slots=True)
class Step(Node):
    """One step of a sequence."""

    expr: Expr
    by: tuple[FieldRef, ...] = ()
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Sequence(Node):
    """Events that follow one another."""

    steps: tuple[Step, ...]
    maxspan: Duration | None = None
    by: tuple[FieldRef, ...] = ()


_PLAIN: Final = re.compile(r"[A-Za-z_](?:[A-Za-z0-9_.]*[A-Za-z0-9_])?")
_UNITS: Final = (
    ("w", 7 * 86_400 * 10**9),
    ("d", 86_400 * 10**9),
    ("h", 3_600 * 10**9),
    ("m", 60 * 10**9),
    ("s", 10**9),
    ("ms", 10**6),
    ("us", 10**3),
    ("ns", 1),
)
UNITS: Final = dict(_UNITS)
"""Nanoseconds of a unit of time."""

_ESCAPES: Final = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n"})


def children(node: Expr) -> tuple[Expr, ...]:
    """The expressions that an expression consists of.

    Args:
        node: Any expression.

    Returns:
        Its parts, in the order of the text.
    """
    if isinstance(node, And | Or):
        return node.parts
    if isinstance(node, Not):
        return (node.inner,)
    if isinstance(node, Binary):
        return (node.left, node.right)
    if isinstance(node, Call):
        return node.arguments
    if isinstance(node, ListOf):
        return node.items
    return ()


def relocated(node: Expr, start: int, end: int) -> Expr:
    """An expression as if all of it stood in one place.

    Args:
        node: Any expression, as a macro's.
        start: First character of the place.
        end: Character behind it.

    Returns:
        An equal expression.
    """

    def there(part: Expr) -> Expr:
        return relocated(part, start, end)

    if isinstance(node, And | Or):
        return replace(node, parts=tuple(map(there, node.parts)), start=start, end=end)
    if isinstance(node, Not):
        return replace(node, inner=there(node.inner), start=start, end=end)
    if isinstance(node, Binary):
        left, right = there(node.left), there(node.right)
        return replace(node, left=left, right=right, start=start, end=end)
    if isinstance(node, Call):
        return replace(node, arguments=tuple(map(there, node.arguments)), start=start, end=end)
    if isinstance(node, ListOf):
        items = tuple(replace(item, start=start, end=end) for item in node.items)
        return replace(node, items=items, start=start, end=end)
    return replace(node, start=start, end=end)


def text_of(node: Expr | Sequence) -> str:
    """Write a filter.

    Args:
        node: A syntax tree.

    Returns:
        Text that parses to an equal tree.
    """
    if isinstance(node, Sequence):
        return _sequence_text(node)
    if isinstance(node, And | Or):
        word = " and " if isinstance(node, And) else " or "
        return word.join(_inside(part, And if word == " or " else Not) for part in node.parts)
    if isinstance(node, Not):
        return f"not {_inside(node.inner, Not)}"
    if isinstance(node, Binary):
        # Closer ones would need no parentheses, but word operators and signs mix badly to read.
        return f"{_operand(node.left)} {node.op.value} {_operand(node.right)}"
    if isinstance(node, Call):
        return f"{node.name}({', '.join(text_of(a) for a in node.arguments)})"
    if isinstance(node, ListOf):
        return f"({', '.join(text_of(item) for item in node.items)})"
    if isinstance(node, Bound):
        return f"${node.name}.{node.path}" if node.path else f"${node.name}"
    if isinstance(node, FieldRef):
        return _field_text(node)
    return _constant_text(node.value)


def _inside(part: Expr, loosest: type) -> str:
    """A part, in parentheses where it binds looser than it may there."""
    rank = {Or: 0, And: 1, Not: 2, Binary: 3}
    text = text_of(part)
    return f"({text})" if rank.get(type(part), 4) < rank[loosest] else text


def _operand(part: Expr) -> str:
    text = text_of(part)
    return f"({text})" if isinstance(part, Or | And | Not | Binary) else text


def _field_text(node: FieldRef) -> str:
    plain = _PLAIN.fullmatch(node.name) and node.name.lower() not in KEYWORDS
    text = node.name if plain else f'"{node.name.translate(_ESCAPES_QUOTED)}"'
    if node.argument is not None:
        text += f"[{node.argument}]"
    return f"{text}.{node.segment}" if node.segment else text


_ESCAPES_QUOTED: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def _constant_text(value: Constant) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value.translate(_ESCAPES)}'"
    if isinstance(value, Duration):
        unit = next((u, ns) for u, ns in _UNITS if value.ns % ns == 0)
        return f"{value.ns // unit[1]}{unit[0]}"
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text if "." in text else f"{text}.0"
    return str(value)


def _sequence_text(node: Sequence) -> str:
    parts = ["sequence"]
    if node.maxspan is not None:
        parts.append(f"maxspan {_constant_text(node.maxspan)}")
    if node.by:
        parts.append(f"by {', '.join(map(_field_text, node.by))}")
    for step in node.steps:
        parts.append(f"|{text_of(step.expr)}|")
        if step.by:
            parts.append(f"by {', '.join(map(_field_text, step.by))}")
        if step.alias:
            parts.append(f"as {step.alias}")
    return " ".join(parts)
