"""Text rules: columns hold valid UTF-8, the exact bytes of anything else stay beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final

from kcap import limits

UNSAFE: Final = "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\u200e\u200f\u061c]"
"""A pattern, for re and RE2, of what could steer a terminal: controls, text direction marks."""

_UNSAFE: Final = re.compile(rf"{UNSAFE[:-1]}\ud800-\udfff]")
"""With lone surrogates, which JSON may hold, and no output takes."""


def clean(value: str | bytes) -> tuple[str, bytes | None]:
    r"""Make text of what a source gave.

    Args:
        value: Bytes as they were read, or a str that may hold lone surrogates (JSON can).

    Returns:
        Valid text, undecodable bytes escaped as ``\xHH``; and the exact bytes where something
        was escaped (a lone surrogate in its three-byte form), else None.
    """
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8"), None
        value.encode("utf-8")
    except UnicodeError:
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        return raw.decode("utf-8", "backslashreplace"), raw
    return value, None


def cut(text: str) -> tuple[str, int | None]:
    """Keep a value within the limit.

    Args:
        text: Valid text.

    Returns:
        The text, or its longest prefix that fits; and the true length in bytes where it was cut.
    """
    if len(text) * 4 <= limits.VALUE_BYTES:
        return text, None
    raw = text.encode()
    if len(raw) <= limits.VALUE_BYTES:
        return text, None
    return raw[: limits.VALUE_BYTES].decode("utf-8", "ignore"), len(raw)


def printable(text: str) -> str:
    r"""Escape what could steer a terminal: control characters and text direction marks.

    Args:
        text: Any text.

    Returns:
        The text with ``\xHH`` or ``\uHHHH`` in their place.
    """
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"  # noqa: PLR2004


def json_safe(literal: str) -> str:
    """JSON on one line that says the same and is safe on a terminal.

    Args:
        literal: Compact JSON: all that is unsafe stands in its strings.

    Returns:
        The same with escapes in their place.
    """
    return _UNSAFE.sub(lambda m: f"\\u{ord(m[0]):04x}", literal)


def json_string(text: str) -> str:
    """A JSON string literal that is safe on a terminal.

    Args:
        text: Valid text.

    Returns:
        The literal with its quotes.
    """
    return json_safe(json.dumps(text, ensure_ascii=False))


def json_text(value: object) -> str:
    """The text of a ``json`` value, in the source's own key order, integers exact.

    Args:
        value: What a JSON parser gave.

    Returns:
        Compact JSON; lone surrogates stay escaped so that the text is valid UTF-8.
    """
    text = _dumps(value, ascii_only=False)
    try:
        text.encode("utf-8")
    except UnicodeError:
        return _dumps(value, ascii_only=True)
    return text


def _dumps(value: object, *, ascii_only: bool) -> str:
    encoder = json.JSONEncoder(ensure_ascii=ascii_only, separators=(",", ":"))
    try:
        return encoder.encode(value)
    except RecursionError:
        return "".join(_deep_json(value, encoder.encode))


def _deep_json(value: object, encode: Callable[[object], str]) -> Iterator[str]:
    """What ``encode`` would give, without recursion: JSON may nest deeper than Python calls."""
    open_parts: list[tuple[Iterator[tuple[str, object]], str]] = [(iter([("", value)]), "")]
    while open_parts:
        parts, end = open_parts[-1]
        for before, item in parts:
            yield before
            if isinstance(item, dict):
                yield "{"
                inner = (
                    (f"{',' * bool(i)}{encode(k)}:", v) for i, (k, v) in enumerate(item.items())
                )
                open_parts.append((inner, "}"))
            elif isinstance(item, (list, tuple)):
                yield "["
                open_parts.append(((("," * bool(i), v) for i, v in enumerate(item)), "]"))
            else:
                yield encode(item)
                continue
            break
        else:
            open_parts.pop()
            yield end


def depth(value: object) -> int:
    """How deep a JSON value nests.

    Args:
        value: What a JSON parser gave.

    Returns:
        0 for a scalar, 1 for a flat list or object, and so on.
    """
    level = 0
    layer = [value] if isinstance(value, (dict, list, tuple)) else []
    while layer:
        level += 1
        layer = [
            part
            for item in layer
            for part in (item.values() if isinstance(item, dict) else item)
            if isinstance(part, (dict, list, tuple))
        ]
    return level
