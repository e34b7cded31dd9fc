"""Values of Tracee events: times and arguments in the spellings of its versions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import ROUND_FLOOR, Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

from kcap import limits
from kcap.model import catalogue, decode, jsonshape, text
from kcap.model.builder import Field, classify
from kcap.model.classes import I64_MAX, I64_MIN, U64_MAX, TypeClass

_DECIMAL: Final = re.compile("0|-?[1-9][0-9]{0,19}")
_WIDE: Final = frozenset({"int64", "pointer", "uInt64", "u_int64"})
"""Kinds of ``data`` entries whose integers stand as text."""

_ARRAYS: Final = frozenset(
    {"int32Array", "int32_array", "strArray", "str_array", "uInt64Array", "u_int64_array"}
)
"""Kinds of ``data`` entries that wrap a list in an object."""

_WIDE_ARRAYS: Final = frozenset({"uInt64Array", "u_int64_array"})

_VERSIONS: Final = ("tracee", "tracee_old", "tracee_get")
"""Spellings of a table: by today's releases, by those before v0.20, by ``getsockopt``."""

_SPELLED: Final = 1024
"""Longer texts are no number."""

_NUMBER_BYTES: Final = 8
_CODE_BYTES: Final = 4
"""What a text takes besides its characters."""


class Deep(str):
    """JSON text of a value that nests deeper than a ``json`` column may."""

    __slots__ = ()


def deep(value: object) -> object:
    """Replace a value that nests too deep.

    Args:
        value: What a JSON parser gave.

    Returns:
        The value, or its JSON text.
    """
    if isinstance(value, (dict, list)) and text.depth(value) > limits.JSON_DEPTH:
        return Deep(text.json_text(value))
    return value


def row_bytes(fields: Sequence[Field | None], values: Sequence[Any]) -> int:
    """What the columns of one event take in memory at least; as slow as making them.

    Args:
        fields: The fields of its layout.
        values: Their values.

    Returns:
        Bytes; a capture's way to keep them may take more.
    """
    pairs = zip(fields, values, strict=True)
    return sum(
        _value_bytes(value, field.home)
        for field, value in pairs
        if field is not None and value is not None
    )


def _value_bytes(value: object, home: TypeClass | None) -> int:
    cls, stored, raw, _ = classify(value, home)
    size = len(raw or b"")
    if cls is TypeClass.LIST:
        return size + _CODE_BYTES * len(stored) + sum(len(item.encode()) for item in set(stored))
    if cls.child:
        return size + len(stored) * (1 if cls is TypeClass.LIST_BOOL else _NUMBER_BYTES)
    return size + (_CODE_BYTES + len(stored.encode()) if isinstance(stored, str) else 0)


@lru_cache(maxsize=4096)
def decimal(value: str) -> int | str:
    """The integer that text spells.

    Args:
        value: Any text.

    Returns:
        The integer where it fits 64 bits and its digits are this very text, else the text.
    """
    if _DECIMAL.fullmatch(value):
        number = int(value)
        if I64_MIN <= number <= U64_MAX:
            return number
    return value


def spelled_number(event: str, argument: str, value: str) -> tuple[str, int | str]:
    """The number that Tracee spelled as text, as its option ``parse-arguments`` has it.

    Args:
        event: The event's name.
        argument: The name of an argument that is a number.
        value: Its text.

    Returns:
        The decoder that gives the text back, and the number; an empty name and the text where
        none does.
    """
    return _spelled_number(event, argument, value) if len(value) <= _SPELLED else ("", value)


@lru_cache(maxsize=4096)
def _spelled_number(event: str, argument: str, value: str) -> tuple[str, int | str]:
    return decode.spelled(_spellings(event, argument), value) or ("", value)


@lru_cache(maxsize=4096)
def _spellings(event: str, argument: str) -> tuple[str, ...]:
    """The ways in which Tracee's versions may have written an argument, newest first."""
    table = catalogue.decoder_of("tracee", event, argument).partition(decode.SPELLING)[0]
    if not table:
        return (decode.HEX,)
    spellings = [f"{table}{decode.SPELLING}{name}" for name in _VERSIONS]
    return (*filter(decode.known, [*spellings, table]), decode.DECIMAL, decode.HEX)


def time_reader(word: str) -> Callable[[Any], tuple[int | None, str | None]]:
    """How an event's time that is no text is read.

    Args:
        word: The type word of the time.

    Returns:
        A function that makes of a value the ns for ``ts``, and the text for ``ts_raw`` where
        the ns cannot give the value back.
    """
    return {"int": _int_time, "float": _float_time}.get(word, _no_time)


def text_time(value: str) -> tuple[int | None, str | None]:
    """Read a time that is text.

    Args:
        value: The text.

    Returns:
        The ns, None where int64 does not hold them; and the type word by which they give the
        text back, None where none does.
    """
    ns = jsonshape.time_ns(value)
    if ns is None or not I64_MIN <= ns <= I64_MAX:
        return None, None
    words = (jsonshape.TIME, jsonshape.TIME3)
    return ns, next((w for w in words if jsonshape.time_text(ns, w) == value), None)


def _int_time(value: int) -> tuple[int | None, str | None]:
    return (value, None) if value and I64_MIN <= value <= I64_MAX else (None, str(value))


def _float_time(value: float) -> tuple[int | None, str | None]:
    ns = 0
    if math.isfinite(value) and abs(value) < I64_MAX / 10**9:
        ns = int(Decimal(repr(value)).scaleb(9).to_integral_value(ROUND_FLOOR))
    return ns or None, None if ns and ns / 10**9 == value else repr(value)


def _no_time(value: object) -> tuple[int | None, str | None]:
    return None, value if isinstance(value, Deep) else text.json_text(value)


class Entry(NamedTuple):
    """An argument."""

    form: str
    name: str
    type: str
    value: Any


def event_entry(position: int, raw: object) -> Entry:
    """Read an argument of a ``trace.Event``.

    Args:
        position: Its place in the list.
        raw: The entry of ``args``.

    Returns:
        The argument; of an entry of another form the whole as its value.
    """
    if not isinstance(raw, dict):
        return Entry("v", str(position), "", raw)
    name, kind = raw.get("name"), raw.get("type", "")
    form = "".join(key[:1] for key in raw)
    usual = raw.keys() <= {"name", "type", "value"} and "value" in raw
    if usual and type(name) is str and type(kind) is str:
        return Entry(form, name, kind, raw["value"])
    return _whole(position, raw)


def data_entry(position: int, raw: object) -> Entry:
    """Read an entry of a ``v1beta1.Event``'s data.

    Args:
        position: Its place in the list.
        raw: The entry of ``data``.

    Returns:
        The argument; of an entry of another form the whole as its value.
    """
    name = raw.get("name") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or type(name) is not str or len(raw) > 2:  # noqa: PLR2004
        return _whole(position, raw)
    if len(raw) == 1:
        return Entry("n", name, "", None)
    form = "nk" if next(iter(raw)) == "name" else "kn"
    kind = next(key for key in raw if key != "name")
    marks, value = _unwrap(kind, raw[kind])
    return Entry(form + marks, name, kind, value)


def _whole(position: int, raw: object) -> Entry:
    name = raw.get("name") if isinstance(raw, dict) else None
    return Entry("e", name if type(name) is str else str(position), "", raw)


def _unwrap(kind: str, value: Any) -> tuple[str, Any]:  # noqa: ANN401
    """The value that a column holds, and the marks that lead back."""
    if kind in _WIDE and type(value) is str:
        number = decimal(value)
        return ("", value) if number is value else ("s", number)
    if kind not in _ARRAYS or not isinstance(value, dict):
        return "", value
    if not value:
        return "o", []
    inner = value.get("value")
    if len(value) > 1 or not isinstance(inner, list):
        return "", value
    if kind in _WIDE_ARRAYS and inner and all(type(v) is str for v in inner):
        numbers: Sequence[int | str] = [decimal(v) for v in inner]
        if all(type(n) is int for n in numbers):
            return "sw", numbers
    return "w", inner
