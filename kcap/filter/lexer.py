"""Cutting a filter into tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from enum import Enum, auto
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

from kcap.filter.errors import FilterError
from kcap.filter.syntax import UNITS, Duration
from kcap.model.classes import I64_MIN, U64_MAX

TEXT_MAX: Final = 1 << 20
"""Longest filter, in characters."""


class Kind(Enum):
    """What a token is."""

    TEXT = auto()
    NUMBER = auto()
    ADDRESS = auto()
    DURATION = auto()
    NAME = auto()
    QUOTED = auto()
    """A name in double quotes."""
    ARGUMENT = auto()
    """What stands in brackets behind a name."""
    VARIABLE = auto()
    SIGN = auto()
    END = auto()


class Token(NamedTuple):
    """A piece of a filter."""

    kind: Kind
    value: object
    start: int
    end: int

    def shown(self, text: str) -> str:
        """The token as an error names it."""
        return "the end" if self.kind is Kind.END else repr(text[self.start : self.end])


_SURROGATE: Final = re.compile("[\ud800-\udfff]+")
_SPACE: Final = re.compile(r"[ \t\r\n]+")
_V4: Final = re.compile(r"\d+\.\d+\.\d+\.\d+(?:/\d+)?(?![\w.])")
_V6: Final = re.compile(
    r"(?=[0-9A-Fa-f]*:[0-9A-Fa-f:]*:|::)[0-9A-Fa-f:]+(?:\.\d+\.\d+\.\d+)?(?:/\d+)?(?![\w.:])"
)
_NUMBER: Final = re.compile(r"-?(?:0[xX][0-9A-Fa-f]+|\d+(?:\.\d+)?)")
_SPAN: Final = rf"(\d+)({'|'.join(sorted(UNITS, key=len, reverse=True))})"
_DURATION: Final = re.compile(rf"(?:{_SPAN.replace('(', '(?:')})+(?![\w.])")
_NAME: Final = re.compile(r"[^\W\d][\w.]*")
_VARIABLE: Final = re.compile(r"\$([^\W\d]\w*)")
_BRACKETS: Final = re.compile(r"\[([^\[\]\n]*)\]")
_SIGN: Final = re.compile(r"!=|~=|<=|>=|<>|==|&&|\|\||[=<>(),|.]")
_WORD: Final = re.compile(r"\S+?(?=[\s(),|]|$)")
_ESCAPED: Final = {"\\": "\\", "n": "\n", "'": "'", '"': '"'}
_OTHERS: Final = {"==": "=", "&&": "and"}


def tokens(text: str) -> list[Token]:
    """Cut a filter into tokens.

    Args:
        text: The filter.

    Returns:
        Its tokens, the last one of kind END.

    Raises:
        FilterError: Something in it is no token.
    """
    if len(text) > TEXT_MAX:
        raise FilterError(
            f"it has {len(text):,} characters", text, TEXT_MAX, TEXT_MAX + 1, expected="1,048,576"
        )
    bad = _SURROGATE.search(text)
    if bad:
        raise FilterError("it is not valid UTF-8", text, bad.start(), bad.end())
    found: list[Token] = []
    at = 0
    while at < len(text):
        space = _SPACE.match(text, at)
        if space:
            at = space.end()
            continue
        token = _next(text, at, found)
        found.append(token)
        at = token.end
    found.append(Token(Kind.END, None, len(text), len(text)))
    return found


def _next(text: str, at: int, before: list[Token]) -> Token:
    char = text[at]
    if char in "'\"":
        return _quoted(text, at)
    follows = before and before[-1].end == at and before[-1].kind in (Kind.NAME, Kind.QUOTED)
    if char == "[" and follows:
        return _argument(text, at)
    for pattern, make in _TOKENS:
        match = pattern.match(text, at)
        if match:
            return make(text, match)
    _refuse(text, at)
    raise AssertionError


def _refuse(text: str, at: int) -> None:
    """Say what stands where no token begins."""
    if text[at] in "\u2018\u2019\u201c\u201d`":
        hint = "text stands in straight single quotes: 'cmd.exe'"
        raise FilterError("a quotation mark of another kind", text, at, at + 1, hint=hint)
    if text[at] == "!":
        raise FilterError("'!' is no operator", text, at, at + 1, expected="'!=' or 'not'")
    word = _WORD.match(text, at)
    end = word.end() if word else at + 1
    hint = "text stands in single quotes"
    if text[at] in "/\\%*?~":
        hint = f"{hint}: '{text[at:end]}'; {SHELL}"
    raise FilterError(f"{text[at:end]!r} is not understood here", text, at, end, hint=hint)


SHELL: Final = (
    "a shell takes single quotes away: put the whole filter into double quotes, "
    """-w "ps.name = 'cmd.exe'\""""
)
"""What to do where quotes seem to be lost."""


def _quoted(text: str, at: int) -> Token:
    """Text in single quotes, or a name in double ones."""
    mark = text[at]
    parts: list[str] = []
    i = at + 1
    while True:
        if i >= len(text) or text[i] == "\n":
            what = "text" if mark == "'" else "name"
            hint = f"close it with {mark}; a {mark} inside it is written \\{mark}"
            raise FilterError(f"unterminated {what}", text, at, i, hint=hint)
        char = text[i]
        if char == mark:
            break
        if char == "\\":
            following = text[i + 1 : i + 2]
            if following not in _ESCAPED or not following:
                hint = "a backslash in text is written twice: 'C:\\\\Windows'"
                what = f"bad escape {text[i : i + 2]!r}"
                raise FilterError(
                    what, text, i, i + 2, expected="\\\\, \\n, \\' or \\\"", hint=hint
                )
            parts.append(_ESCAPED[following])
            i += 2
            continue
        parts.append(char)
        i += 1
    kind = Kind.TEXT if mark == "'" else Kind.QUOTED
    return Token(kind, "".join(parts), at, i + 1)


def _argument(text: str, at: int) -> Token:
    match = _BRACKETS.match(text, at)
    if match is None:
        raise FilterError("'[' is not closed", text, at, at + 1, expected="a name and ']'")
    if not match[1].strip():
        raise FilterError("nothing stands in the brackets", text, at, match.end())
    return Token(Kind.ARGUMENT, match[1].strip(), at, match.end())


def _address(text: str, match: re.Match[str]) -> Token:
    word = match[0]
    six = ":" in word
    value: object
    try:
        if "/" in word:
            value = (IPv6Network if six else IPv4Network)(word, strict=False)
        else:
            value = (IPv6Address if six else IPv4Address)(word)
    except ValueError:
        what = "network" if "/" in word else "IP address"
        expected = "0 to 128 behind the slash" if six else "four numbers up to 255"
        if "/" in word and not six:
            expected += ", and 0 to 32 behind the slash"
        raise FilterError(
            f"invalid {what} {word!r}", text, match.start(), match.end(), expected=expected
        ) from None
    return Token(Kind.ADDRESS, value, match.start(), match.end())


def _number(text: str, match: re.Match[str]) -> Token:
    word, end = match[0], match.end()
    tail = re.compile(r"[\w.]+").match(text, end)
    if tail:
        end = tail.end()
        what = f"{text[match.start() : end]!r} is no number"
        hint = f"text stands in single quotes: '{text[match.start() : end]}'"
        raise FilterError(what, text, match.start(), end, hint=hint)
    if len(word.partition(".")[0]) > 25:  # noqa: PLR2004 - no 64-bit number is longer
        raise FilterError("a number of more than 64 bits", text, match.start(), end)
    value: int | Decimal
    value = int(word, 16) if "x" in word.lower() else Decimal(word) if "." in word else int(word)
    if not I64_MIN <= value <= U64_MAX:
        raise FilterError("a number of more than 64 bits", text, match.start(), end)
    return Token(Kind.NUMBER, value, match.start(), end)


def _duration(text: str, match: re.Match[str]) -> Token:
    ns = sum(int(n[:25]) * UNITS[unit] for n, unit in re.findall(_SPAN, match[0][:200]))
    if len(match[0]) > 40 or ns > U64_MAX:  # noqa: PLR2004 - no shorter than needed
        raise FilterError("a duration of more than 500 years", text, match.start(), match.end())
    return Token(Kind.DURATION, Duration(ns), match.start(), match.end())


def _name(_: str, match: re.Match[str]) -> Token:
    name = match[0].rstrip(".")
    return Token(Kind.NAME, name, match.start(), match.start() + len(name))


def _variable(_: str, match: re.Match[str]) -> Token:
    return Token(Kind.VARIABLE, match[1], match.start(), match.end())


def _sign(text: str, match: re.Match[str]) -> Token:
    sign = match[0]
    if sign in _OTHERS:
        what = f"{sign!r} is no operator"
        raise FilterError(what, text, match.start(), match.end(), expected=repr(_OTHERS[sign]))
    if sign == "||":  # two steps of a sequence: |a||b|
        return Token(Kind.SIGN, "|", match.start(), match.start() + 1)
    return Token(Kind.SIGN, "!=" if sign == "<>" else sign, match.start(), match.end())


_TOKENS: Final[tuple[tuple[re.Pattern[str], Callable[[str, re.Match[str]], Token]], ...]] = (
    (_V4, _address),
    (_V6, _address),
    (_DURATION, _duration),
    (_NUMBER, _number),
    (_NAME, _name),
    (_VARIABLE, _variable),
    (_SIGN, _sign),
)
