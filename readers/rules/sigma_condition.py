"""From the conditions that pySigma has parsed to expressions of the filter language.

Sigma compares text without telling upper from lower case, and so do these expressions, except where
a rule says ``cased``. A missing field is not equal to anything, and ``not`` of that is true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

from sigma import conditions, types

from kcap.errors import BadInputError
from kcap.filter.syntax import And, Binary, Call, Expr, FieldRef, ListOf, Literal, Not, Op, Or

Names = Callable[[str], Sequence[FieldRef]]
"""The fields that a field of Sigma's may be found in; a comparison holds where it does for one."""

_CASED: Final = {
    Op.IIN: Op.IN,
    Op.ICONTAINS: Op.CONTAINS,
    Op.ISTARTSWITH: Op.STARTSWITH,
    Op.IENDSWITH: Op.ENDSWITH,
    Op.IMATCHES: Op.MATCHES,
}
_ORDERED: Final = {"LT": Op.LT, "LTE": Op.LE, "GT": Op.GT, "GTE": Op.GE, "NEQ": Op.NE}
_FLAGS: Final = {"IGNORECASE": "i", "MULTILINE": "m", "DOTALL": "s"}


class Conversion:
    """Makes expressions for one kind of events.

    Args:
        names: Where fields are found.
        anywhere: The fields that words without a field are looked for in.
    """

    def __init__(self, names: Names, anywhere: Sequence[FieldRef]) -> None:
        self._names = names
        self._anywhere = anywhere

    def of(self, condition: Any) -> Expr:  # noqa: ANN401 - pySigma may not be installed
        """Convert a condition.

        Args:
            condition: As pySigma has parsed it.

        Returns:
            The expression.

        Raises:
            BadInputError: It asks for what filters can't tell.
        """
        if isinstance(condition, conditions.ConditionAND):
            return conjunction(self.of(part) for part in condition.args)
        if isinstance(condition, conditions.ConditionOR):
            return disjunction(self.of(part) for part in condition.args)
        if isinstance(condition, conditions.ConditionNOT):
            return Not(self.of(condition.args[0]))
        if isinstance(condition, conditions.ConditionFieldEqualsValueExpression):
            return self._compared(self._names(condition.field), condition.value)
        if isinstance(condition, conditions.ConditionValueExpression):
            return self._word(condition.value)
        raise BadInputError("its condition is empty", expected="a condition on some field")

    def _compared(self, refs: Sequence[FieldRef], value: Any) -> Expr:  # noqa: ANN401
        """A comparison of a field that may be in one of several."""
        if isinstance(value, types.SigmaExpansion):
            return disjunction(self._compared(refs, each) for each in value.values)
        if isinstance(value, types.SigmaNull) or (
            isinstance(value, types.SigmaExists) and not value
        ):
            return Not(disjunction(_exists(ref) for ref in refs))
        if isinstance(value, types.SigmaFieldReference):
            return disjunction(
                Binary(_of_reference(value), ref, other)
                for ref in refs
                for other in self._names(value.field)
            )
        return disjunction(_comparison(ref, value) for ref in refs)

    def _word(self, value: Any) -> Expr:  # noqa: ANN401 - any of Sigma's types
        """A value without a field: it may be anywhere, and part of a text."""
        if isinstance(value, types.SigmaExpansion):
            return disjunction(self._word(each) for each in value.values)
        if isinstance(value, types.SigmaString):
            star = types.SpecialChars.WILDCARD_MULTI
            return disjunction(_text(ref, value, [star, *value.s, star]) for ref in self._anywhere)
        if isinstance(value, types.SigmaNumber):
            digits = Literal(str(value.number))
            return disjunction(
                made
                for ref in self._anywhere
                for made in (Binary(Op.ICONTAINS, ref, digits), Binary(Op.IIN, ref, _list(digits)))
            )
        return self._compared(self._anywhere, value)


def conjunction(parts: Iterable[Expr]) -> Expr:
    """All of some expressions, those of nested ones too.

    Args:
        parts: One or more.

    Returns:
        The expression.
    """
    flat = list(_flat(parts, And))
    return flat[0] if len(flat) == 1 else And(tuple(flat))


def disjunction(parts: Iterable[Expr]) -> Expr:
    """One of some expressions; comparisons of one field with one operator become a list.

    Args:
        parts: One or more.

    Returns:
        The expression.
    """
    merged: dict[object, list[Expr]] = {}
    for number, part in enumerate(_flat(parts, Or)):
        items = _items(part)
        alike = (part.op, part.left) if items and isinstance(part, Binary) else number
        merged.setdefault(alike, []).extend(items or (part,))
    found = tuple(
        Binary(alike[0], alike[1], _list(*dict.fromkeys(items)))
        if isinstance(alike, tuple)
        else items[0]
        for alike, items in merged.items()
    )
    return found[0] if len(found) == 1 else Or(found)


def _flat(parts: Iterable[Expr], kind: type[And | Or]) -> Iterable[Expr]:
    for part in parts:
        if isinstance(part, And | Or) and isinstance(part, kind):
            yield from part.parts
        else:
            yield part


def _items(part: Expr) -> tuple[Expr, ...]:
    """The constants of ``field word constants``; nothing of anything else."""
    if not isinstance(part, Binary) or not part.op.is_word:
        return ()
    right = part.right
    if isinstance(right, ListOf):
        return right.items
    return (right,) if isinstance(right, Literal) else ()


def _list(*items: Expr) -> ListOf:
    return ListOf(tuple(item for item in items if isinstance(item, Literal)))


def _exists(ref: FieldRef) -> Expr:
    return Call("exists", (ref,))


def _comparison(ref: FieldRef, value: Any) -> Expr:  # noqa: ANN401 - any of Sigma's types
    if isinstance(value, types.SigmaString):
        return _text(ref, value, list(value.s))
    if isinstance(value, types.SigmaTimestampPart):
        raise BadInputError(
            "a part of a time in text is asked for", expected="evt.time.h and the like"
        )
    if isinstance(value, types.SigmaNumber):
        # As text too: what one source has as a number another has as its digits. Of whole numbers
        # a list finds both.
        number = _number(value)
        digits = [] if isinstance(number, int) else [Literal(str(number))]
        return Binary(Op.IIN, ref, _list(Literal(number), *digits))
    if isinstance(value, types.SigmaBool):
        word = "true" if value else "false"
        return Binary(Op.IIN, ref, _list(Literal(bool(value)), Literal(word)))
    if isinstance(value, types.SigmaRegularExpression):
        return _regex(ref, value)
    if isinstance(value, types.SigmaCIDRExpression):
        network: IPv4Network | IPv6Network = value.network
        return Binary(Op.IIN, ref, _list(Literal(network)))
    if isinstance(value, types.SigmaCompareExpression):
        op = _ORDERED[value.op.name]
        number = Literal(_number(value.number))
        if op is Op.NE:
            return Not(Binary(Op.IIN, ref, _list(number)))
        return Binary(op, ref, number)
    if isinstance(value, types.SigmaExists):
        return _exists(ref)
    what = f"filters know nothing like {type(value).__name__}"
    raise BadInputError(what, hint="a placeholder (expand) needs a pipeline that gives it a value")


def _number(value: Any) -> Any:  # noqa: ANN401 - pySigma's number
    from decimal import Decimal

    number = value.number
    return Decimal(str(number)) if isinstance(number, float) else number


def _of_reference(value: Any) -> Op:  # noqa: ANN401 - pySigma's reference to a field
    starts, ends = value.starts_with, value.ends_with
    if starts and ends:
        return Op.ICONTAINS
    return Op.ISTARTSWITH if starts else Op.IENDSWITH if ends else Op.IEQ


def _text(ref: FieldRef, value: Any, parts: list[Any]) -> Expr:  # noqa: ANN401
    """A comparison with text: the parts between wildcards, and the wildcards."""
    if any(isinstance(part, types.Placeholder) for part in parts):
        what = f"the placeholder in {str(value)!r} has no value"
        raise BadInputError(what, hint="write the values into the rule")
    star = types.SpecialChars.WILDCARD_MULTI
    parts = reduce(_joined, (part for part in parts if part != ""), [])
    texts = [part for part in parts if isinstance(part, str)]
    if parts == [star]:
        return _exists(ref)
    inner = parts[parts[0] is star : len(parts) - (parts[-1] is star)] if parts else [""]
    if (len(inner) == 1 and texts == inner) or not parts:
        ends = (bool(parts) and parts[0] is star, bool(parts) and parts[-1] is star)
        op = {
            (False, False): Op.IIN,
            (True, True): Op.ICONTAINS,
            (False, True): Op.ISTARTSWITH,
            (True, False): Op.IENDSWITH,
        }[ends]
        constant = Literal(inner[0])
    elif any(mark in text for text in texts for mark in "*?"):
        return _pattern(ref, value, parts)
    else:
        op = Op.IMATCHES
        constant = Literal("".join(_spelled(part) for part in parts))
    if isinstance(value, types.SigmaCasedString):
        op = _CASED[op]
    return Binary(op, ref, _list(constant))


def _joined(before: list[Any], part: Any) -> list[Any]:  # noqa: ANN401
    """Parts in which no two texts, and no two stars, stand beside each other."""
    last = before[-1] if before else None
    if isinstance(part, str) and isinstance(last, str):
        return [*before[:-1], last + part]
    same = part is types.SpecialChars.WILDCARD_MULTI and last is part
    return before if same else [*before, part]


def _spelled(part: Any) -> str:  # noqa: ANN401 - text or a wildcard
    if isinstance(part, str):
        return part
    return "*" if part is types.SpecialChars.WILDCARD_MULTI else "?"


def _pattern(ref: FieldRef, value: Any, parts: list[Any]) -> Expr:  # noqa: ANN401
    """Wildcards beside a star or a question mark that is none, which no wildcard text can have."""
    wild = {"*": ".*", "?": "."}
    inner = "".join(
        re.escape(part) if isinstance(part, str) else wild[_spelled(part)] for part in parts
    )
    flags = "s" if isinstance(value, types.SigmaCasedString) else "is"
    return Call("regex", (ref, Literal(rf"(?{flags})\A{inner}\z")))


def _regex(ref: FieldRef, value: Any) -> Expr:  # noqa: ANN401 - pySigma's expression
    flags = "".join(sorted(_FLAGS[flag.name] for flag in value.flags))
    text = str(value.regexp)
    return Call("regex", (ref, Literal(f"(?{flags}){text}" if flags else text)))


__all__ = ["Conversion", "Names", "conjunction", "disjunction"]
