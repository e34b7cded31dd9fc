"""Parsing filters: operator precedence by binding power (Pratt), written by hand for its errors.

From loose to close: ``or``, ``and``, ``not``, comparisons, word operators. ``not`` before an
operand negates the comparison behind it and no more; ``x not in (...)`` is ``not (x in (...))``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Protocol

from kcap.filter.errors import FilterError
from kcap.filter.lexer import SHELL, Kind, Token, tokens
from kcap.filter.syntax import (
    KEYWORDS,
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
    Not,
    Op,
    Or,
    Sequence,
    Step,
    children,
    relocated,
)

DEPTH_MAX: Final = 64
"""Deepest nesting of parentheses, functions and ``not``, and deepest tree.

Whatever goes through a tree recurses. The text of a tree nests no deeper than the tree.
"""
_TOO_DEEP: Final = f"it is nested more than {DEPTH_MAX} deep"

STEPS: Final = (2, 5)
"""Least and most steps of a sequence."""

SPAN_MAX_NS: Final = 4 * 3_600 * 10**9
"""Longest ``maxspan`` of a sequence."""

_OR, _AND, _NOT, _COMPARISON, _WORD = range(5)
_OPS: Final = {op.value: op for op in Op}
_BETWEEN: Final = ("and", "or", "not", "exists", *(op.value for op in Op if op.is_word))
"""Words that may follow an operand."""

_CONSTANTS: Final = frozenset({Kind.TEXT, Kind.NUMBER, Kind.ADDRESS, Kind.DURATION})


class Macros(Protocol):
    """Where names of macros lead."""

    def get(self, name: str, depth: int, /) -> Expr | None:
        """What a macro stands for, None where there is none of the name.

        ``depth`` is how deep the name is nested.
        """

    def names(self) -> list[str]:
        """The names there are."""


class NoMacros:
    """No macros."""

    def get(self, _name: str, _depth: int, /) -> Expr | None:
        """See `Macros`."""
        return None

    def names(self) -> list[str]:
        """See `Macros`."""
        return []


class MacroTable:
    """Macros given as texts; one may use others.

    Args:
        expressions: Name to the text of an expression.
        lists: Name to the items of a list.
    """

    def __init__(
        self,
        expressions: Mapping[str, str] | None = None,
        lists: Mapping[str, list[str]] | None = None,
    ) -> None:
        self._texts = dict(expressions or {})
        self._known: dict[str, Expr] = {
            name: ListOf(tuple(map(Literal, items))) for name, items in (lists or {}).items()
        }
        self._open: list[str] = []

    def get(self, name: str, depth: int, /) -> Expr | None:
        """See `Macros`."""
        if name in self._known:
            return self._known[name]
        text = self._texts.get(name)
        if text is None:
            return None
        if name in self._open:
            chain = " -> ".join([*self._open, name])
            raise FilterError(f"the macro {name!r} uses itself: {chain}", text, 0, len(text))
        self._open.append(name)
        try:
            found = _Parser(text, self, depth=depth).whole()
        finally:
            self._open.pop()
        if isinstance(found, Sequence):
            raise FilterError(f"the macro {name!r} is a sequence", text, 0, len(text))
        self._known[name] = found
        return found

    def names(self) -> list[str]:
        """See `Macros`."""
        return sorted({*self._texts, *self._known})


def parse(text: str, macros: Macros | None = None, *, unopened: bool = False) -> Expr | Sequence:
    """Parse an expression or a sequence.

    Args:
        text: The filter.
        macros: Names that stand for expressions or lists.
        unopened: Pass over parentheses at the end that nothing opened, as Fibratus does: some of
            its rules have them.

    Returns:
        Its syntax tree; macros are put in place of their names.

    Raises:
        FilterError: It can't be understood.
    """
    return _Parser(text, macros or NoMacros(), unopened=unopened).whole()


class _Parser:
    """One parse."""

    def __init__(
        self, text: str, macros: Macros, *, unopened: bool = False, depth: int = 0
    ) -> None:
        self._text = text
        self._unopened = unopened
        self._macros = macros
        self._tokens = tokens(text)
        self._at = 0
        self._depth = depth

    def whole(self) -> Expr | Sequence:
        """Everything up to the end."""
        if self._now.kind is Kind.END:
            raise FilterError("it is empty", self._text, 0, 1, expected="a condition")
        if self._is_word("sequence"):
            found: Expr | Sequence = self._sequence()
        else:
            found = self._expression(_OR)
            while self._unopened and self._accept(")"):
                pass
            self._ends()
        self._look_down(found)
        return found

    def _look_down(self, found: Expr | Sequence) -> None:
        """Refuse a tree that is too deep: ``a = b = c ...`` and macros nest without a sign."""
        level = [step.expr for step in found.steps] if isinstance(found, Sequence) else [found]
        depth = 0
        while level:
            depth += 1
            if depth > DEPTH_MAX:
                raise FilterError(_TOO_DEEP, self._text, level[0].start, level[0].end)
            level = [part for node in level for part in children(node)]

    # tokens

    @property
    def _now(self) -> Token:
        return self._tokens[self._at]

    def _is(self, kind: Kind) -> bool:
        return self._now.kind is kind

    def _name_after(self, before: str) -> Token:
        self._advance()
        if not self._is(Kind.NAME):
            raise self._error(f"expected a name after {before!r}")
        return self._advance()

    def _is_word(self, *words: str) -> bool:
        now = self._now
        return now.kind is Kind.NAME and str(now.value).lower() in words

    def _is_sign(self, sign: str) -> bool:
        return self._now.kind is Kind.SIGN and self._now.value == sign

    def _advance(self) -> Token:
        token = self._now
        self._at += 1
        return token

    def _accept(self, sign: str) -> bool:
        if self._is_sign(sign):
            self._at += 1
            return True
        return False

    def _expect(self, sign: str, after: str) -> Token:
        if not self._is_sign(sign):
            raise self._error(f"expected {sign!r} {after}, not {self._now.shown(self._text)}")
        return self._advance()

    def _error(self, what: str, *, hint: str | None = None) -> FilterError:
        now = self._now
        return FilterError(what, self._text, now.start, now.end, hint=hint)

    def _ends(self) -> None:
        now = self._now
        if now.kind is Kind.END:
            return
        shown = now.shown(self._text)
        if self._is_sign(")"):
            raise self._error("a ')' that nothing opened")
        if self._is_sign("|"):
            raise self._error("'|' stands between the steps of a sequence", hint="write 'or'")
        hint = None
        if now.kind in (Kind.NAME, Kind.NUMBER):
            near = difflib.get_close_matches(str(now.value).lower(), _BETWEEN, 1, 0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"text stands in quotes; {SHELL}"
        raise self._error(f"expected an operator, 'and', 'or' or the end, not {shown}", hint=hint)

    # expressions

    def _expression(self, power: int) -> Expr:
        left = self._prefix()
        while True:
            found = self._infix()
            if found is None or found[0] < power:
                return left
            at, word, negated = found
            if at in (_OR, _AND):
                left = self._joined(left, at, word)
                continue
            if word == "exists":
                end = self._advance().end
                left = Call("exists", (left,), start=left.start, end=end)
                continue
            if negated:
                self._advance()
            self._advance()
            op = _OPS[word]
            right = self._right(op) if op.is_word else self._expression(_WORD)
            left = Binary(op, left, right, start=left.start, end=right.end)
            if negated:
                left = Not(left, start=left.start, end=left.end)

    def _infix(self) -> tuple[int, str, bool] | None:
        """The binding power of the operator that stands here, itself, whether it is negated."""
        now = self._now
        if now.kind is Kind.SIGN:
            word = str(now.value)
            return (_COMPARISON, word, False) if word in _OPS else None
        if now.kind is not Kind.NAME:
            return None
        word = str(now.value).lower()
        if word in ("or", "and"):
            return (_OR if word == "or" else _AND), word, False
        if word == "exists":
            return _WORD, word, False
        if word == "not":
            following = self._tokens[self._at + 1]
            other = str(following.value).lower()
            if following.kind is Kind.NAME and other in _OPS:
                return _WORD, other, True
            return None
        return (_WORD, word, False) if word in _OPS else None

    def _joined(self, left: Expr, power: int, word: str) -> Expr:
        parts = [left]
        while self._is_word(word):
            self._advance()
            parts.append(self._expression(power + 1))
        make = Or if power == _OR else And
        return make(tuple(parts), start=left.start, end=parts[-1].end)

    def _right(self, op: Op) -> Expr:
        """The right side of a word operator: a list or one value."""
        if op.base is Op.IN and self._now.kind in (*_CONSTANTS, Kind.END):
            raise self._error(f"expected '(' after {op.value!r}, not {self._now.shown(self._text)}")
        if self._is_sign("("):
            found = self._list()
            if found is not None:
                return found
        return self._prefix()

    def _list(self) -> ListOf | None:
        """A list in parentheses; None where they hold something else."""
        start = self._at
        opening = self._advance()
        items: list[Literal] = []
        while True:
            if self._is_sign(")") and not items:
                raise self._error("an empty list", hint="give at least one value")
            if self._now.kind not in _CONSTANTS and not self._is_word("true", "false"):
                if items:
                    raise self._no_value("expected a value in the list")
                self._at = start
                return None
            items.append(self._constant())
            if self._accept(","):
                continue
            if self._is_sign(")"):
                end = self._advance().end
                return ListOf(tuple(items), start=opening.start, end=end)
            if len(items) == 1 and self._infix() is not None:
                self._at = start
                return None
            raise self._no_value("expected ',' or ')' in the list")

    def _no_value(self, what: str) -> FilterError:
        shown = self._now.shown(self._text)
        hint = f"text stands in quotes; {SHELL}" if self._now.kind is Kind.NAME else None
        return self._error(f"{what}, not {shown}", hint=hint)

    def _prefix(self) -> Expr:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(_TOO_DEEP)
        try:
            return self._operand()
        finally:
            self._depth -= 1

    def _operand(self) -> Expr:
        now = self._now
        if now.kind in _CONSTANTS or self._is_word("true", "false"):
            return self._constant()
        if self._is_sign("("):
            found = self._list()
            if found is not None and len(found.items) > 1:
                return found
            if found is not None:
                return replace(found.items[0], start=found.start, end=found.end)
            self._advance()
            inner = self._expression(_OR)
            if self._is_sign(","):
                what = f"{self._text[inner.start : inner.end]!r} is no constant, as a list has"
                hint = f"text stands in quotes; {SHELL}"
                raise FilterError(what, self._text, inner.start, inner.end, hint=hint)
            end = self._expect(")", "to close '('").end
            return replace(inner, start=now.start, end=end)
        if self._is_word("not"):
            self._advance()
            inner = self._expression(_COMPARISON)
            return Not(inner, start=now.start, end=inner.end)
        if now.kind is Kind.VARIABLE:
            return self._variable()
        named = now.kind is Kind.NAME and str(now.value).lower() not in KEYWORDS
        if named or now.kind is Kind.QUOTED:
            return self._named()
        what = "a field, a value, a function or '('"
        before = self._tokens[self._at - 1].shown(self._text) if self._at else ""
        after = f" after {before}" if before else ""
        raise self._error(f"expected {what}{after}, not {now.shown(self._text)}")

    def _constant(self) -> Literal:
        token = self._advance()
        value: object = token.value
        if token.kind is Kind.NAME:
            value = str(value).lower() == "true"
        assert isinstance(value, Constant)
        return Literal(value, start=token.start, end=token.end)

    def _variable(self) -> Bound:
        token = self._advance()
        end, path = token.end, ""
        if self._is_sign(".") and self._now.start == end:
            name = self._name_after(f"${token.value}.")
            path, end = str(name.value), name.end
            if self._is(Kind.ARGUMENT):
                argument = self._advance()
                path, end = f"{path}[{argument.value}]", argument.end
        return Bound(str(token.value), path, start=token.start, end=end)

    def _named(self) -> Expr:
        """A field, a function or a macro; in double quotes a field."""
        token = self._advance()
        name, end = str(token.value), token.end
        plain = token.kind is Kind.NAME
        if plain and self._is_sign("("):
            return self._call(token)
        argument, segment = None, ""
        if self._is(Kind.ARGUMENT):
            bracket = self._advance()
            argument, end = str(bracket.value), bracket.end
            if self._is_sign(".") and self._now.start == end:
                last = self._name_after("].")
                segment, end = str(last.value), last.end
        elif plain and (macro := self._macros.get(name, self._depth)) is not None:
            return relocated(macro, token.start, end)
        return FieldRef(name, argument, segment, start=token.start, end=end)

    def _call(self, name: Token) -> Call:
        self._advance()
        arguments: list[Expr] = []
        while not self._is_sign(")"):
            if arguments:
                self._expect(",", f"or ')' among the arguments of {name.value}")
            arguments.append(self._expression(_OR))
        end = self._advance().end
        return Call(str(name.value).lower(), tuple(arguments), start=name.start, end=end)

    # sequences

    def _sequence(self) -> Sequence:
        start = self._advance().start
        maxspan: Duration | None = None
        if self._is_word("maxspan"):
            self._advance()
            if self._now.kind is not Kind.DURATION:
                raise self._error("expected a duration after 'maxspan', as 5m")
            span = self._now.value
            assert isinstance(span, Duration)
            if span.ns > SPAN_MAX_NS:
                raise self._error("a maxspan of more than 4h")
            self._advance()
            maxspan = span
        by = self._by()
        steps: list[Step] = []
        while self._is_sign("|"):
            steps.append(self._step())
        if self._now.kind is not Kind.END:
            raise self._error(f"expected '|' or the end, not {self._now.shown(self._text)}")
        least, most = STEPS
        if not least <= len(steps) <= most:
            raise self._error(f"a sequence of {len(steps)} steps", hint="it has two to five")
        if by and any(step.by for step in steps):
            raise self._error("'by' stands before the steps or behind each of them, not both")
        if any(step.by for step in steps) and not all(step.by for step in steps):
            raise self._error("where one step has 'by', all must")
        return Sequence(tuple(steps), maxspan, by, start=start, end=self._now.end)

    def _step(self) -> Step:
        start = self._advance().start
        expr = self._expression(_OR)
        end = self._expect("|", "behind a step").end
        by = self._by()
        alias = ""
        if self._is_word("as"):
            alias = str(self._name_after("as").value)
        return Step(expr, by, alias, start=start, end=end)

    def _by(self) -> tuple[FieldRef, ...]:
        if not self._is_word("by"):
            return ()
        self._advance()
        found = []
        while True:
            if self._now.kind not in (Kind.NAME, Kind.QUOTED):
                raise self._error("expected a field after 'by'")
            node = self._operand()
            if not isinstance(node, FieldRef):
                raise self._error("expected a field after 'by'")
            found.append(node)
            if not self._accept(","):
                return tuple(found)
