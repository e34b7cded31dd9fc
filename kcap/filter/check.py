"""From a syntax tree to one that can be evaluated: fields are found, constants are fitted to them.

What makes no sense is refused here, with its place, before a single event is read: unknown fields
and functions, operands of kinds that can never be equal, addresses that are none, functions that
would look at the machine that replays.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from kcap.filter import fields
from kcap.filter.errors import FilterError
from kcap.filter.fields import Field, Source
from kcap.filter.functions import ARTIFACTS, FUNCTIONS, ITEMS, REFUSED, network
from kcap.filter.lexer import SHELL
from kcap.filter.syntax import (
    ORDERED,
    And,
    Binary,
    Bound,
    Call,
    Constant,
    Duration,
    Expr,
    FieldRef,
    ListOf,
    Literal,
    Node,
    Not,
    Op,
    Or,
    children,
)
from kcap.filter.values import address

ERA_1: Final = ("kevt.", "ps.sibling.", "ps.child.")
"""How names begin that only Fibratus 1.x has: they tell the era of an expression."""

_ARGUMENT: Final = ("evt.arg", "kevt.arg")
_ARGS: Final = "args."
_TEXTUAL: Final = frozenset({"text", "ip", "list", "any", "time"})
_COMPARABLE: Final = frozenset({"any"})
_TIME: Final = re.compile(r"(.*?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?", re.DOTALL)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a field of an expression leads to."""

    field: Field
    key: str = ""
    """What stands in brackets, to look up in its value."""


@dataclass(frozen=True, slots=True)
class Checked:
    """An expression that can be evaluated."""

    expr: Expr
    fields: Mapping[FieldRef, Resolved]
    era: int


def era_of(node: Expr) -> int:
    """The era that the names in an expression tell.

    Args:
        node: The expression.

    Returns:
        1 where one of them exists in Fibratus 1.x only, else 3.
    """
    if isinstance(node, FieldRef):
        return 1 if node.name.lower().startswith(ERA_1) else 3
    return min((era_of(part) for part in children(node)), default=3)


def check(node: Expr, text: str, era: int | None = None, variables: Iterable[str] = ()) -> Checked:
    """Check an expression.

    Args:
        node: The expression.
        text: What it was parsed from, to be shown in errors.
        era: Its era; None for that which its names tell.
        variables: Names of earlier steps, where it is one of a sequence.

    Returns:
        It, with what its fields are.

    Raises:
        FilterError: It makes no sense.
    """
    checker = _Checker(text, era or era_of(node), variables)
    return Checked(checker.condition(node), checker.fields, checker.era)


class _Checker:
    """One check."""

    def __init__(self, text: str, era: int, variables: Iterable[str]) -> None:
        self.era = era
        self.fields: dict[FieldRef, Resolved] = {}
        self._text = text
        self._variables = list(variables)

    def _error(
        self, what: str, node: Node, *, expected: str | None = None, hint: str | None = None
    ) -> FilterError:
        return FilterError(what, self._text, node.start, node.end, expected=expected, hint=hint)

    # conditions

    def condition(self, node: Expr) -> Expr:
        """Check what must be true or false."""
        if isinstance(node, And | Or):
            return replace(node, parts=tuple(self.condition(part) for part in node.parts))
        if isinstance(node, Not):
            return replace(node, inner=self.condition(node.inner))
        if isinstance(node, Binary):
            return self._binary(node)
        made, kind = self.operand(node)
        if kind not in ("bool", "any"):
            what = f"{self._shown(node)} is {_article(kind)}, not a condition"
            raise self._error(what, node, hint="compare it with something, or ask exists(...)")
        return made

    def _shown(self, node: Node) -> str:
        return repr(self._text[node.start : node.end])

    # operands

    def operand(self, node: Expr, *, right: bool = False) -> tuple[Expr, str]:
        """Check what gives a value; also gives its kind."""
        if isinstance(node, FieldRef):
            found = self._field(node, right=right)
            known = found.field.type if not found.key or found.field.type == "any" else "any"
            return node, known
        if isinstance(node, Literal):
            return node, _kind_of(node.value)
        if isinstance(node, ListOf):
            return node, "list"
        if isinstance(node, Bound):
            if node.name not in self._variables:
                what = f"nothing is called ${node.name} here"
                raise self._error(what, node, hint="foreach(list, $x, ...) gives $x a value")
            return node, "any"
        if isinstance(node, Call):
            return self._call(node)
        return self.condition(node), "bool"

    def _field(self, node: FieldRef, *, right: bool) -> Resolved:
        if node in self.fields:
            return self.fields[node]
        found = self._found(node)
        if found is None:
            raise self._unknown(node, right=right)
        self.fields[node] = found
        return found

    def _found(self, node: FieldRef) -> Resolved | None:
        name, argument = node.name, node.argument
        if name.lower() in _ARGUMENT:
            if argument is None:
                hint = f"{name}[pathname], say"
                raise self._error(f"{name!r} needs a name in brackets", node, hint=hint)
            if node.segment:
                return None
            return Resolved(_argument(f"{name}[{argument}]", argument))
        if name.startswith(_ARGS) and len(name) > len(_ARGS) and argument is None:
            return Resolved(_argument(name, name.removeprefix(_ARGS)))
        known = fields.lookup(name, self.era)
        if node.segment:
            # As `ps.modules[kernel32.dll].size` of 1.x: known, but no capture has such details.
            if known is None:
                return None
            whole = f"{name}[].{node.segment}"
            return Resolved(
                fields.lookup(whole, self.era) or replace(known, sources=(), type="any"),
                argument or "",
            )
        if known is None or argument is None:
            return None if known is None else Resolved(known)
        if not known.argument and known.type not in ("list", "map", "any"):
            raise self._error(f"{name!r} takes nothing in brackets", node)
        return Resolved(known, argument)

    def _unknown(self, node: FieldRef, *, right: bool) -> FilterError:
        near = fields.near(node.name)
        hints = []
        if right:
            hints.append(f"text stands in quotes: '{node.name}'; {SHELL}")
        elif near:
            hints.append(f"did you mean {' or '.join(map(repr, near))}?")
        else:
            hints.append("kcap fields lists the fields")
        what = f"no field is called {node.name!r}"
        return self._error(what, node, hint="; ".join(hints))

    # functions

    def _call(self, node: Call) -> tuple[Expr, str]:
        if node.name in REFUSED:
            raise self._error(f"{node.name}() can't be replayed: {REFUSED[node.name]}", node)
        known = FUNCTIONS.get(node.name)
        if known is None:
            near = difflib.get_close_matches(node.name, FUNCTIONS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FUNCTIONS)}"
            raise self._error(f"no function is called {node.name!r}", node, hint=hint)
        if not known.least <= len(node.arguments) <= known.most:
            count = len(node.arguments)
            what = f"{node.name}() with {count} argument{'' if count == 1 else 's'}"
            raise self._error(what, node, expected=known.usage)
        if node.name == "foreach":
            return self._foreach(node), known.result
        if node.name in ARTIFACTS and len(node.arguments) < known.most:
            asked = self._rules(node) if node.name == "yara" else None
            answers = FieldRef(ARTIFACTS[node.name], asked, start=node.start, end=node.end)
            node = replace(node, arguments=(*node.arguments, answers))
        made = [self.operand(part) for part in node.arguments]
        if node.name == "regex":
            self._patterns(node)
        if node.name == "cidr_contains":
            self._networks(node)
        if node.name == "exists" and not isinstance(node.arguments[0], FieldRef):
            raise self._error("exists() asks for a field", node, expected=known.usage)
        return replace(node, arguments=tuple(part for part, _ in made)), known.result

    def _rules(self, node: Call) -> str:
        """The text of YARA rules."""
        part = node.arguments[1]
        if not isinstance(part, Literal) or not isinstance(part.value, str) or not part.value:
            raise self._error("YARA rules are text in quotes", part)
        return part.value

    def _foreach(self, node: Call) -> Expr:
        over, variable, predicate, *outer = node.arguments
        if not isinstance(variable, Bound) or variable.path:
            raise self._error("expected a variable, as $x", variable)
        made, kind = self.operand(over)
        if kind not in ("list", "any"):
            raise self._error(f"{self._shown(over)} is {_article(kind)}, not a list", over)
        self._variables.append(variable.name)
        inner = self.condition(predicate)
        self._variables.pop()
        rest = [self.operand(part)[0] for part in outer]
        if isinstance(over, FieldRef):
            made = self._items(over, variable, inner)
        return replace(node, arguments=(made, variable, inner, *rest))

    def _items(self, over: FieldRef, variable: Bound, predicate: Expr) -> Expr:
        """What ``foreach`` goes through: the list, or of each item what the predicate asks for."""
        paths = dict.fromkeys(b.path for b in _bounds(predicate) if b.name == variable.name)
        if paths.keys() > {""}:
            what = f"${variable.name} stands here both alone and with a part of it"
            raise self._error(what, variable, expected=f"${variable.name} or ${variable.name}.NAME")
        named = [path for path in paths if path and fields.lookup(f"{over.name}[].{path}", 3)]
        parts: list[Expr] = []
        for path in named:
            ref = FieldRef(f"{over.name}[].{path}", start=over.start, end=over.end)
            self._field(ref, right=False)
            parts += [Literal(path), ref]
        return Call(ITEMS, tuple(parts), start=over.start, end=over.end) if parts else over

    def _patterns(self, node: Call) -> None:
        for part in node.arguments[1:]:
            if not isinstance(part, Literal) or not isinstance(part.value, str):
                raise self._error("a pattern is text in quotes", part)
            try:
                pc.match_substring_regex(pa.array([""]), part.value)
            except pa.ArrowInvalid as e:
                hint = "the dialect is RE2: no look-around, no back-references"
                why = str(e).partition(": ")[2] or str(e)
                raise self._error(f"a bad pattern: {why}", part, hint=hint) from None

    def _networks(self, node: Call) -> None:
        for part in node.arguments[1:]:
            for each in part.items if isinstance(part, ListOf) else (part,):
                wrong = isinstance(each, Literal) and (
                    isinstance(each.value, bool | int)
                    or (isinstance(each.value, str) and network(each.value) is None)
                )
                if wrong:
                    what = f"{self._shown(each)} is no network"
                    raise self._error(what, each, expected="'10.0.0.0/8' or 'fe80::/10'")

    # operators

    def _binary(self, node: Binary) -> Expr:
        left, kind = self.operand(node.left)
        right, other = self.operand(node.right, right=True)
        alike = node.op in (Op.EQ, Op.NE, Op.IEQ)
        if isinstance(left, Literal) and alike and not isinstance(right, ListOf):
            # Constants stand on the right, where one may stand for several.
            node = replace(node, left=node.right, right=node.left)
            left, right, kind, other = right, left, other, kind
        if isinstance(right, ListOf):
            if not node.op.is_word:
                what = f"{node.op.value!r} takes one value, not a list"
                raise self._error(what, right, expected="'in' before a list")
            items = tuple(self._fitted(i, node.left, kind, node.op) for i in right.items)
            right = replace(right, items=tuple(each for more in items for each in more))
        elif isinstance(right, Literal):
            found = self._fitted(right, node.left, kind, node.op)
            if len(found) > 1:
                return self._synonymous(replace(node, left=left), found)
            right = found[0]
        elif isinstance(left, Literal):
            left = self._fitted(left, node.right, other, node.op)[0]
        else:
            self._fields(node, kind, other)
        if kind == "list" and (node.op in ORDERED or alike):
            what = f"{self._shown(node.left)} is a list"
            raise self._error(what, node, expected="'in', 'contains', 'matches' or 'intersects'")
        if node.op.base is Op.INTERSECTS and kind not in ("list", "any"):
            raise self._error(
                f"{self._shown(node.left)} is {_article(kind)}, not a list", node.left
            )
        return replace(node, left=left, right=right)

    def _synonymous(self, node: Binary, words: tuple[Literal, ...]) -> Expr:
        """One constant that stands for several."""
        if node.op is Op.NE:
            parts = tuple(replace(node, right=word) for word in words)
            return And(parts, start=node.start, end=node.end)
        op = {Op.EQ: Op.IN, Op.IEQ: Op.IIN}.get(node.op, node.op)
        right = ListOf(words, start=node.right.start, end=node.right.end)
        return replace(node, op=op, right=right)

    def _fitted(self, constant: Literal, beside: Expr, kind: str, op: Op) -> tuple[Literal, ...]:
        """A constant as it is compared with what stands on the other side."""
        value = constant.value
        if op in ORDERED and kind not in ("time", "number", "any"):
            what = f"{op.value!r} is for numbers; {self._shown(beside)} is {_article(kind)}"
            raise self._error(what, constant, expected="'=', 'startswith' ...")
        if op in ORDERED and isinstance(value, str) and kind != "time":
            what = f"{op.value!r} is for numbers, and this is text"
            raise self._error(what, constant, hint="leave the quotes out")
        if op.is_word and op.base is not Op.IN and op.base is not Op.INTERSECTS:
            return self._word(constant, beside, kind, op)
        if kind == "ip" and isinstance(value, str):
            return (replace(constant, value=self._ip(constant, value)),)
        if kind == "time" and isinstance(value, str):
            return (replace(constant, value=self._time(constant, value)),)
        if isinstance(value, str) and isinstance(beside, FieldRef):
            others = fields.synonyms(beside.name, value)
            if len(others) > 1:
                return tuple(replace(constant, value=other) for other in others)
        loose = op.is_word or self._named(beside)
        if not _fits(kind, value, loose=loose):
            what = f"{self._shown(beside)} is {_article(kind)}, and this is {_named(value)}"
            raise self._error(what, constant, hint=_advice(kind, value))
        return (constant,)

    def _word(self, constant: Literal, beside: Expr, kind: str, op: Op) -> tuple[Literal, ...]:
        """A text to look for."""
        if kind not in _TEXTUAL and not self._named(beside):
            what = f"{op.value!r} is for text; {self._shown(beside)} is {_article(kind)}"
            raise self._error(what, beside)
        if isinstance(constant.value, bool | Duration):
            raise self._error(f"{op.value!r} takes text", constant)
        if not isinstance(constant.value, str):
            return (replace(constant, value=str(constant.value)),)
        return (constant,)

    def _named(self, node: Expr) -> bool:
        """Whether a number may have text, too: that of an argument may."""
        if not isinstance(node, FieldRef):
            return False
        sources = self.fields[node].field.sources
        return not sources or any(s.column.startswith(("arg", "ext")) for s in sources)

    def _fields(self, node: Binary, kind: str, other: str) -> None:
        """Two things that are no constants."""
        if node.op.is_word or "any" in (kind, other) or "list" in (kind, other):
            return
        alike = {"ip": "text", "time": "number"}
        if alike.get(kind, kind) != alike.get(other, other):
            what = f"{_article(kind)} is never equal to {_article(other)}"
            if not self._named(node.left) and not self._named(node.right):
                raise self._error(what, node)

    def _ip(self, constant: Literal, text: str) -> Constant:
        found = address(text)
        if found is None and "/" in text:
            made = network(text)
            if made is not None:
                return made
        if found is None:
            what = f"{self._shown(constant)} is no IP address"
            raise self._error(what, constant, expected="172.17.2.3, fe80::1 or 10.0.0.0/8")
        return found

    def _time(self, constant: Literal, text: str) -> int:
        match = _TIME.fullmatch(text)
        assert match is not None
        try:
            base = datetime.fromisoformat(match[1] + (match[3] or "").replace("Z", "+00:00"))
        except ValueError:
            what = f"{self._shown(constant)} is no time"
            raise self._error(what, constant, expected="'2026-11-20T12:00:00Z'") from None
        base = base if base.tzinfo else base.replace(tzinfo=UTC)
        delta = base - _EPOCH
        whole = delta.days * 86_400 + delta.seconds
        return whole * 10**9 + int((match[2] or "").ljust(9, "0"))


def _bounds(node: Expr) -> Iterator[Bound]:
    if isinstance(node, Bound):
        yield node
    for part in children(node):
        yield from _bounds(part)


def _argument(name: str, argument: str) -> Field:
    source = Source(f"arg:{argument}")
    return Field(name, "any", (source,), "", "", "an argument of the event", "")


def _kind_of(value: Constant) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Duration) or not hasattr(value, "version"):
        return "number"
    return "ip"


def _fits(kind: str, value: Constant, *, loose: bool) -> bool:
    """Whether a constant may be equal to a value of a kind."""
    given = _kind_of(value)
    if kind in ("any", "map", given) or (kind, given) == ("time", "number"):
        return True
    if kind == "text":
        return given == "ip" or (loose and given == "number")
    if kind == "number":
        return loose and given == "text"
    return kind == "list" and given in ("text", "number", "ip")


def _article(kind: str) -> str:
    names = {"ip": "an address", "any": "any value", "bool": "true or false"}
    return names.get(kind, kind if kind == "text" else f"a {kind}")


def _named(value: Constant) -> str:
    return _article(_kind_of(value))


def _advice(kind: str, value: Constant) -> str | None:
    if kind == "text":
        return f"text stands in quotes: '{value}'"
    if kind == "number" and isinstance(value, str):
        return "leave the quotes out"
    return "compare with true or false" if kind == "bool" else None
