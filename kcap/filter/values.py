"""What operators mean: plain Python on single values, the reference for everything faster.

A value is None (missing), a bool, int, float, str, `Named`, a sequence of values, or a mapping.
Every function here is pure; nothing depends on locale, and text is compared code point by code
point. **A comparison with a missing value, or of kinds that can't be compared, is false, != too.**
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple

from kcap.filter.syntax import ORDERED, Address, Constant, Duration, Network, Op

_ADDRESSES: Final = (IPv4Address, IPv6Address)
_NETWORKS: Final = (IPv4Network, IPv6Network)
_MAPPED_BITS: Final = 96


class Named(NamedTuple):
    """A number that has text, as a flag word: it is compared as either."""

    number: int
    text: str


def constant(value: Constant) -> Any:  # noqa: ANN401 - any value
    """A constant of the syntax tree as a value.

    Args:
        value: What stands in the tree.

    Returns:
        A fraction as the nearest float, a duration as nanoseconds, a network of IPv4 inside IPv6
        as that of IPv4, as addresses are; others as they are.
    """
    if isinstance(value, IPv6Network):
        return unmapped(value)
    if isinstance(value, Decimal):
        return float(value)
    return value.ns if isinstance(value, Duration) else value


def unmapped(network: Network) -> Network:
    """A network of IPv4 inside IPv6 (``::ffff:10.0.0.0/104``) as that of IPv4.

    Args:
        network: Any network.

    Returns:
        The IPv4 one, others as they are.
    """
    if network.version == 4 or network.prefixlen < _MAPPED_BITS:  # noqa: PLR2004
        return network
    inner = getattr(network.network_address, "ipv4_mapped", None)
    return network if inner is None else IPv4Network((inner, network.prefixlen - _MAPPED_BITS))


@lru_cache(maxsize=1 << 14)
def fold(text: str) -> str:
    """The one definition of "upper and lower case count as one": equal when this is.

    Each character by itself becomes its lower case, where that is one character, so that the fold
    of a part is a part of the fold: no context (final sigma), no growing (dotted I, sharp s).

    Args:
        text: Any text.

    Returns:
        Text of the same length.
    """
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := c.lower()) == 1 else c for c in text)


@lru_cache(maxsize=1 << 14)
def address(text: str) -> Address | None:
    """Read an address.

    Args:
        text: Any text.

    Returns:
        The address; of an IPv4 one inside IPv6 (``::ffff:10.0.0.1``) the IPv4 one. None for
        other text.
    """
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped


def compare(op: Op, left: Any, right: Any) -> bool:  # noqa: ANN401 - any values
    """Apply an operator.

    Args:
        op: The operator.
        left: Its left operand.
        right: Its right one.

    Returns:
        Whether it holds.
    """
    if left is None or right is None:
        return False
    if op.is_word:
        return bool(_WORDS[op.base](left, right, op.folds))
    if op in ORDERED:
        return _ordered(op, left, right)
    same = equal(left, right, folds=op.folds)
    return False if same is None else same != (op is Op.NE)


def equal(left: Any, right: Any, *, folds: bool = False) -> bool | None:  # noqa: ANN401
    """Whether two values are one.

    Args:
        left: A value.
        right: Another one.
        folds: Texts: upper and lower case count as one.

    Returns:
        None where they are of kinds that can't be compared.
    """
    if isinstance(left, Named) or isinstance(right, Named):
        return _named_equal(left, right, folds=folds)
    if isinstance(left, str) and isinstance(right, str):
        return left == right or (folds and fold(left) == fold(right))
    if isinstance(left, bool) or isinstance(right, bool):
        both = isinstance(left, bool) and isinstance(right, bool)
        return left == right if both else None
    if isinstance(left, int | float) and isinstance(right, int | float):
        return bool(left == right)  # exact in Python, whatever the size
    return _address_equal(left, right)


def _named_equal(left: Any, right: Any, *, folds: bool) -> bool | None:  # noqa: ANN401
    if not isinstance(left, Named):
        left, right = right, left
    if isinstance(right, Named):
        return bool(left.number == right.number)
    if not isinstance(right, str):
        return equal(left.number, right)
    ours, theirs = left.text, right
    if folds:
        ours, theirs = fold(ours), fold(theirs)
    return ours == theirs or ("|" in theirs and set(ours.split("|")) == set(theirs.split("|")))


def _address_equal(left: Any, right: Any) -> bool | None:  # noqa: ANN401 - any values
    if isinstance(left, (*_ADDRESSES, *_NETWORKS)):
        left, right = right, left
    ours = address(left) if isinstance(left, str) else left
    if not isinstance(ours, _ADDRESSES):
        return None
    if isinstance(right, _NETWORKS):
        return ours.version == right.version and ours in right
    if isinstance(right, _ADDRESSES):
        return ours == (getattr(right, "ipv4_mapped", None) or right)
    return None


def within(left: Any, network: Network) -> bool:  # noqa: ANN401 - any value
    """Whether an address lies in a network.

    Args:
        left: An address or its text.
        network: The network.

    Returns:
        False for what is no address.
    """
    return _address_equal(left, network) is True


def _ordered(op: Op, left: Any, right: Any) -> bool:  # noqa: ANN401 - any values
    left, right = (v.number if isinstance(v, Named) else v for v in (left, right))
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in (left, right)):
        return False
    if op is Op.LT:
        return bool(left < right)
    if op is Op.LE:
        return bool(left <= right)
    return bool(left > right if op is Op.GT else left >= right)


# word operators


def items(value: Any) -> Sequence[Any]:  # noqa: ANN401 - any value
    """A value as several: the elements of a list, the names of flags, or itself.

    Args:
        value: Any value.

    Returns:
        The values.
    """
    if isinstance(value, str | Named) or not isinstance(value, Sequence):
        return (value,)
    return value


def texts(value: Any) -> list[str]:  # noqa: ANN401 - any value
    """The texts in a value; numbers have none, elements of a list do.

    Args:
        value: Any value.

    Returns:
        The texts.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Named):
        return [value.text]
    if isinstance(value, _ADDRESSES):
        return [str(value)]
    if isinstance(value, Sequence):
        return [v if isinstance(v, str) else _text(v) for v in value if v is not None]
    return []


def _text(value: Any) -> str:  # noqa: ANN401 - any value
    return value.text if isinstance(value, Named) else str(value)


def _in(left: Any, right: Any, folds: bool) -> bool:  # noqa: ANN401
    wanted = items(right)
    return any(_member(value, item, folds) for value in items(left) for item in wanted)


def _member(value: Any, item: Any, folds: bool) -> bool:  # noqa: ANN401
    """Equal, or a number equal to its digits: lists are often written as texts."""
    same = equal(value, item, folds=folds)
    if same is None and value is not None and item is not None:
        number, text = (item, value) if isinstance(value, str) else (value, item)
        if isinstance(text, str) and isinstance(number, int) and not isinstance(number, bool):
            return str(number) == text
    return same is True


def _any(test: Any, left: Any, right: Any, folds: bool) -> bool:  # noqa: ANN401
    """Whether a test of two texts holds for some pair."""
    ours, theirs = texts(left), texts(right)
    if folds:
        ours, theirs = [fold(t) for t in ours], [fold(t) for t in theirs]
    return any(test(a, b) for a in ours for b in theirs)


@lru_cache(maxsize=1 << 12)
def _segments(pattern: str) -> tuple[str | re.Pattern[str], ...]:
    """The parts of a wildcard pattern between its stars."""
    return tuple(
        re.compile("".join("." if c == "?" else re.escape(c) for c in part), re.DOTALL)
        if "?" in part
        else part
        for part in pattern.split("*")
    )


def wildcard(text: str, pattern: str) -> bool:
    """Whether a pattern with ``*`` (anything) and ``?`` (one character) is the whole text.

    Takes the leftmost place for each part between stars, which is enough, and never goes back:
    the time is bounded by the product of the lengths.

    Args:
        text: The text.
        pattern: The pattern; a backslash is itself.

    Returns:
        Whether it matches.
    """
    parts = _segments(pattern)
    sizes = [len(part) for part in pattern.split("*")]
    if len(parts) == 1:
        return len(text) == sizes[0] and _found(parts[0], text, 0, len(text)) == 0
    end = len(text) - sizes[-1]
    if end < sizes[0] or not _at(parts[0], text, 0) or not _at(parts[-1], text, end):
        return False
    at = sizes[0]
    for part, size in zip(parts[1:-1], sizes[1:-1], strict=True):
        at = _found(part, text, at, end)
        if at < 0:
            return False
        at += size
    return at <= end


def _at(part: str | re.Pattern[str], text: str, at: int) -> bool:
    if isinstance(part, str):
        return text.startswith(part, at)
    return part.match(text, at) is not None


def _found(part: str | re.Pattern[str], text: str, start: int, end: int) -> int:
    if isinstance(part, str):
        return text.find(part, start, end)
    match = part.search(text, start, end)
    return -1 if match is None else match.start()


def subsequence(text: str, letters: str) -> bool:
    """Whether characters appear in a text in their order, whatever stands between them.

    Args:
        text: The text.
        letters: The characters.

    Returns:
        Whether they do.
    """
    at = 0
    for letter in letters:
        at = text.find(letter, at) + 1
        if not at:
            return False
    return True


def plain(text: str) -> str:
    """A text without the marks on its letters, composed.

    Args:
        text: Any text.

    Returns:
        NFC of its NFD without nonspacing marks.
    """
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFD", text)
    kept = "".join(c for c in apart if unicodedata.category(c) != "Mn")
    return unicodedata.normalize("NFC", kept)


def _intersects(left: Any, right: Any, folds: bool) -> bool:  # noqa: ANN401
    """Whether all that stands on the right is on the left."""
    if isinstance(left, Named):
        left = left.text.split("|")
    if not isinstance(left, Sequence) or isinstance(left, str):
        return False
    return all(any(_member(v, item, folds) for v in left) for item in items(right))


def _word(test: Any) -> Any:  # noqa: ANN401 - a function to another
    return lambda left, right, folds: _any(test, left, right, folds)


_WORDS: Final[Mapping[Op, Any]] = {
    Op.IN: _in,
    Op.CONTAINS: _word(lambda a, b: b in a),
    Op.STARTSWITH: _word(str.startswith),
    Op.ENDSWITH: _word(str.endswith),
    Op.MATCHES: _word(wildcard),
    Op.FUZZY: _word(subsequence),
    Op.FUZZYNORM: _word(lambda a, b: subsequence(plain(a), plain(b))),
    Op.INTERSECTS: _intersects,
}
