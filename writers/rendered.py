"""How templates show values, one at a time and whole columns: both ways give the same text."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from kcap.errors import LimitError
from kcap.model import decode, text
from kcap.model.batch import Column
from kcap.model.classes import TypeClass
from kcap.writers import fragments
from kcap.writers.fragments import Texts
from kcap.writers.jsonl import embedded, json_texts

TEXT_CHARS: Final = 1 << 20
"""Longest text that a template makes of an event, or on the way there."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND_NS: Final = 10**9
_DAY_NS: Final = 86_400 * _SECOND_NS

DIRECTIVES: Final[Mapping[str, tuple[int, Callable[[datetime, int], str]]]] = {
    "Y": (_DAY_NS, lambda at, _: f"{at.year:04d}"),
    "y": (_DAY_NS, lambda at, _: f"{at.year % 100:02d}"),
    "m": (_DAY_NS, lambda at, _: f"{at.month:02d}"),
    "d": (_DAY_NS, lambda at, _: f"{at.day:02d}"),
    "j": (_DAY_NS, lambda at, _: f"{at.timetuple().tm_yday:03d}"),
    "F": (_DAY_NS, lambda at, _: at.date().isoformat()),
    "H": (3600 * _SECOND_NS, lambda at, _: f"{at.hour:02d}"),
    "M": (60 * _SECOND_NS, lambda at, _: f"{at.minute:02d}"),
    "S": (_SECOND_NS, lambda at, _: f"{at.second:02d}"),
    "T": (_SECOND_NS, lambda at, _: f"{at.hour:02d}:{at.minute:02d}:{at.second:02d}"),
    "s": (_SECOND_NS, lambda _, ns: str(ns // _SECOND_NS)),
    "f": (1000, lambda _, ns: f"{ns % _SECOND_NS // 1000:06d}"),
    "N": (1, lambda _, ns: f"{ns % _SECOND_NS:09d}"),
    "%": (_DAY_NS, lambda *_: "%"),
}
"""Directives of a time: how long what they give stays the same, and what it is.

Names of days and months are not among them: they would depend on the locale.
"""


class Absent:
    """A value that is not there."""

    __slots__ = ()

    def _json(self) -> str:
        return "null"


class Document(Mapping[str, Any]):
    """A JSON object of an event.

    Args:
        found: What a parser gave.
        spelled: Its text, where that is known.
    """

    def __init__(self, found: Mapping[str, Any], spelled: str | None = None) -> None:
        self._found = {text.clean(key)[0]: value for key, value in found.items()}
        self._text = spelled

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401
        return _opened(self._found[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __str__(self) -> str:
        return embedded(text.json_text(self._found)) if self._text is None else self._text


class Items(Sequence[Any]):
    """A JSON list of an event.

    Args:
        found: What a parser gave.
        spelled: Its text, where that is known.
    """

    def __init__(self, found: Sequence[Any], spelled: str | None = None) -> None:
        self._found = found
        self._text = spelled

    def __getitem__(self, at: Any) -> Any:  # noqa: ANN401
        return _opened(self._found[at])

    def __len__(self) -> int:
        return len(self._found)

    def __str__(self) -> str:
        return embedded(text.json_text(self._found)) if self._text is None else self._text


def document(value: str) -> Document | Items | str:
    """The text of a ``json`` column as something whose parts can be asked for.

    Args:
        value: The text.

    Returns:
        An object or list; the text itself where it is neither.
    """
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if isinstance(found, dict):
        return Document(found, value)
    return Items(found, value) if isinstance(found, list) else value


def _opened(found: Any) -> Any:  # noqa: ANN401
    if isinstance(found, str):
        return text.clean(found)[0]  # JSON may name half of a surrogate pair, which is no text
    if isinstance(found, dict):
        return Document(found)
    return Items(found) if isinstance(found, list) else found


def check_chars(count: int) -> None:
    """Refuse a text that is too long.

    Args:
        count: Its characters.

    Raises:
        LimitError: There are more than `TEXT_CHARS`.
    """
    if count > TEXT_CHARS:
        raise LimitError(
            f"the template makes a text of {count:,} characters",
            expected=f"at most {TEXT_CHARS:,} for an event",
        )


def joined(separator: str, parts: Sequence[str]) -> str:
    """Join texts, if that is not too long.

    Args:
        separator: What stands between them.
        parts: The texts.

    Returns:
        The text.

    Raises:
        LimitError: It is too long.
    """
    check_chars(sum(map(len, parts)) + len(separator) * max(0, len(parts) - 1))
    return separator.join(parts)


def text_of(value: Any) -> str:  # noqa: ANN401
    """Show a value.

    Args:
        value: A value of a template.

    Returns:
        Text as it is, numbers exact, bytes as base64, lists in brackets, objects as JSON.

    Raises:
        TypeError: It is none that can be shown.
        LimitError: The text is too long.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, (list, tuple)):
        return f"[{joined(', ', [text_of(item) for item in value])}]"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (int, Absent, Document, Items)):
        return str(value)
    if isinstance(value, Mapping):
        return json_of(value)
    raise TypeError(f"a value of type {type(value).__name__} can't be shown")


def json_of(value: Any) -> str:  # noqa: ANN401
    """Write a value as JSON.

    Args:
        value: A value of a template.

    Returns:
        JSON text on one line, safe on a terminal.

    Raises:
        TypeError: JSON has no such value.
        LimitError: The text is too long.
    """
    if isinstance(value, str):
        return text.json_string(value)
    if isinstance(value, float):
        return _float(value) if math.isfinite(value) else text.json_string(_float(value))
    if isinstance(value, (list, tuple)):
        return f"[{joined(',', [json_of(item) for item in value])}]"
    if isinstance(value, (Document, Items)):
        return embedded(str(value))
    if isinstance(value, Mapping):
        pairs = [f"{text.json_string(str(k))}:{json_of(v)}" for k, v in value.items()]
        return f"{{{joined(',', pairs)}}}"
    if isinstance(value, Absent):
        return value._json()  # noqa: SLF001  (no template may name it)
    if value is None:
        return "null"
    if isinstance(value, bytes):
        return text.json_string(text_of(value))
    return text_of(value)


def _float(value: float) -> str:
    spelled: str = fragments.number_texts(pa.array([value], pa.float64()))[0].as_py()
    return spelled


def hex_of(value: Any) -> str:  # noqa: ANN401
    """Write a number or bytes in hexadecimal digits.

    Args:
        value: The value.

    Returns:
        ``0x7ffd0000``, as addresses are shown; of bytes the digits alone.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(value, bytes):
        return value.hex()
    if not isinstance(value, int):
        raise TypeError("hex is for integers and bytes")
    return decode.text_of(decode.HEX, int(value))


def utc_of(ns: Any, pattern: str | None = None) -> str:  # noqa: ANN401
    """Write a time.

    Args:
        ns: ns since 1970.
        pattern: Its form, with directives as ``%Y-%m-%d`` (`DIRECTIVES`); None for RFC 3339.

    Returns:
        The time in UTC.

    Raises:
        TypeError: It is no time.
        ValueError: There is no such directive, or no such time.
    """
    if not isinstance(ns, int):
        raise TypeError("utc is for times in ns, as ts")
    if pattern is None:
        pattern = "%FT%T.%NZ"
    try:
        at = _EPOCH + timedelta(seconds=ns // _SECOND_NS)
    except OverflowError:
        raise ValueError(f"{ns} ns since 1970 is no time") from None
    return "".join(DIRECTIVES[p][1](at, ns) if d else p for d, p in _parts(pattern))


@lru_cache(maxsize=64)
def _parts(pattern: str) -> tuple[tuple[bool, str], ...]:
    """A pattern as text and directives."""
    parts = []
    first, *rest = pattern.replace("%%", "%\0").split("%")
    parts.append((False, first))
    for part in rest:
        name = part[:1].replace("\0", "%")
        if name not in DIRECTIVES:
            known = " ".join(f"%{name}" for name in DIRECTIVES)
            raise ValueError(f"a time has no %{text.printable(name)}: there are {known}")
        parts += [(True, name), (False, part[1:])]
    return tuple(parts)


def plain_texts(column: Column, *, printable: bool = False) -> Texts:
    """`text_of` for a column.

    Args:
        column: The column.
        printable: Escape what could steer a terminal.

    Returns:
        Its texts.
    """
    return fragments.render(column, partial(_plain, printable))


def _plain(printable: bool, cls: TypeClass, values: pa.Array) -> pa.Array:
    if cls in (TypeClass.STR, TypeClass.JSON):
        return fragments.escape_unsafe(values, values, text.printable) if printable else values
    if cls is TypeClass.BIN:
        return fragments.base64_texts(values)
    return fragments.number_texts(values)


def column_json(column: Column) -> Texts:
    """`json_of` for a column.

    Args:
        column: The column.

    Returns:
        Its texts.
    """
    return fragments.render(column, json_texts, ",")


def column_utc(column: Column, pattern: str | None = None) -> Texts:
    """`utc_of` for a column of integers.

    Args:
        column: The column.
        pattern: The form of a time.

    Returns:
        Its texts.

    Raises:
        TypeError: It is a column of something else.
        ValueError: There is no such directive.
    """
    if column.cls is not TypeClass.I64:
        raise TypeError("utc is for times in ns, as ts")
    if pattern is None:
        return Texts(fragments.time_texts(column.values), None)
    # A form that tells the day alone is the same for millions of events.
    units = [DIRECTIVES[part][0] for is_directive, part in _parts(pattern) if is_directive]
    unit_ns = min(units, default=_DAY_NS)
    found, codes = np.unique(np.asarray(column.values) // unit_ns, return_inverse=True)
    spelled = [utc_of(int(at) * unit_ns, pattern) for at in found]
    return Texts(pa.array(spelled, pa.utf8()), codes.astype(np.int32))
