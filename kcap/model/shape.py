r"""The shape of a record: which fields it had, in which order, with which source types.

Text of items ``name:type`` joined by commas, a leading ``!`` for a null; where a source has
fields outside the arguments, they stand first and ``|`` separates them (spec/kcap.md, 5.5). In a
name or type a backslash stands before a separator, and a lone surrogate is ``\uXXXX``.
A shape tells null, absent and empty apart, and lets a foreign record be given back as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

_SPECIAL: Final = re.compile(r"[\\,:!|\ud800-\udfff]")
_ESCAPED: Final = re.compile(r"\\(?:u([0-9a-f]{4})|(.))", re.DOTALL)
_SPLIT: Final = re.compile(r"(?:[^\\,|]|\\.)+|[,|]", re.DOTALL)


class Item(NamedTuple):
    """One field of a record."""

    name: str
    """The source's own name; a path for a field of a nested object."""
    type: str
    """The source's own spelling of the type."""
    null: bool = False
    """The field was there and held null."""


class Shape(NamedTuple):
    """The fields of a record, in source order."""

    record: tuple[Item, ...]
    """Fields outside the arguments."""
    arguments: tuple[Item, ...]
    """The event's own arguments."""


def _quote(text: str) -> str:
    return _SPECIAL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    # A lone surrogate is no text; JSON may hold one in a name all the same.
    char = match[0]
    return f"\\u{ord(char):04x}" if char > "\ud7ff" else f"\\{char}"


def _unquote(text: str) -> str:
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)) if m[1] else m[2], text)


def _section(items: Iterable[Item]) -> str:
    return ",".join(f"{'!' if i.null else ''}{_quote(i.name)}:{_quote(i.type)}" for i in items)


def encode(arguments: Sequence[Item], record: Sequence[Item] | None = None) -> str:
    """Write a shape as text.

    Args:
        arguments: The event's arguments in source order.
        record: The fields outside them, None where the source has none.

    Returns:
        The text for the ``shape`` column.
    """
    text = _section(arguments)
    return text if record is None else f"{_section(record)}|{text}"


def decode(text: str) -> Shape:
    """Read a shape from its text.

    Args:
        text: A value of the ``shape`` column.

    Returns:
        The fields. Of a text that is no shape, what could be read.
    """
    return _recent(text) if len(text) <= _LONGEST_KEPT else _decode(text)


def _decode(text: str) -> Shape:
    sections: list[list[Item]] = [[]]
    for part in _SPLIT.findall(text):
        if part == "|":
            sections.append([])
        elif part != ",":
            sections[-1].append(_item(part))
    record = tuple(sections[0]) if len(sections) > 1 else ()
    return Shape(record, tuple(sections[-1]))


_recent: Final = lru_cache(maxsize=1024)(_decode)
_LONGEST_KEPT: Final = 2048
"""Longer texts are rare, and thousands of them would fill the memory."""


def _item(part: str) -> Item:
    null = part.startswith("!")
    colon = re.search(r"(?<!\\)(?:\\\\)*:", part)
    end = colon.end() - 1 if colon else len(part)
    return Item(_unquote(part[null:end]), _unquote(part[end + 1 :]), null)
