"""A file of settings as a tree that knows its lines: YAML, JSON (which is YAML) or TOML.

What the file says is data: no tag makes an object, no alias multiplies what is there, a key stands
once. A value may say where it is to be found instead of standing in the file (`Reference`).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any, Final

from kcap.documents import Count, Dialect, Node, documents
from kcap.errors import BadInputError, KcapError, LimitError

FILE_BYTES: Final = 256 << 10
"""The largest file."""

YAML: Final = (".yaml", ".yml", ".json")
TOML: Final = ".toml"

_AT: Final = re.compile(r" \(at line (\d+), column \d+\)$")
_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"""\s*((?:[A-Za-z0-9_.\-]+|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=""")


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a value is to be found that does not stand in the file."""

    kind: str
    """``env`` or ``file``."""
    name: str
    """The variable, or the path."""


SETTINGS: Final = Dialect(
    "settings",
    characters=FILE_BYTES,
    depth=16,
    values=20_000,
    merges=False,
    tags={f"!{kind}": partial(Reference, kind) for kind in ("env", "file")},
)
"""What files of settings may be; ``<<`` is not known there: name what is meant."""


def parse(content: bytes, file: str) -> Node:
    """Read a file of settings.

    Args:
        content: The file.
        file: Its name; the suffix says what it is written in.

    Returns:
        Its mapping; empty where the file says nothing.

    Raises:
        LimitError: It is too large, too deep, or has too many values.
        BadInputError: It is not well-formed.
    """
    if len(content) > FILE_BYTES:
        raise LimitError(
            "the file is too large for settings",
            file=file,
            expected=f"at most {FILE_BYTES:,} bytes",
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(
            "this is not UTF-8", file=file, offset=error.start, expected="text"
        ) from error
    suffix = PurePath(file).suffix.lower()
    if suffix not in (TOML, *YAML):
        raise BadInputError(
            "its name does not say what it is written in",
            file=file,
            expected="a name that ends with .yaml, .yml, .json or .toml",
        )
    try:
        found = _Toml(text, file).node() if suffix == TOML else _yaml(text, file)
    except KcapError as error:
        # As each mistake in a file of settings: the line first.
        if error.line is not None:
            error.what, error.line = f"line {error.line}: {error.what}", None
        raise
    if found.value is None:
        return Node({}, 1)
    if not isinstance(found.value, dict):
        raise BadInputError(
            f"{found.place}: this is no section", file=file, expected="sections, as 'record:'"
        )
    return found


def reference(node: Node) -> Reference | None:
    """What a value refers to, where one value is expected.

    Args:
        node: ``!env NAME``, ``!file PATH``, or a mapping ``{env: NAME}`` or ``{file: PATH}``.

    Returns:
        Where the value is to be found; None of any other node.
    """
    value = node.value
    if isinstance(value, Reference):
        return value
    if isinstance(value, dict) and len(value) == 1:
        (kind, inner), *_ = value.items()
        if kind in {"env", "file"} and isinstance(inner.value, str):
            return Reference(kind, inner.value)
    return None


def _yaml(text: str, file: str) -> Node:
    """The document of a file, which has one."""
    found = Node(None, 1)
    for number, document in enumerate(documents(text, file, SETTINGS)):
        if number:
            what = "this is another document"
            raise BadInputError(what, file=file, line=document.line, expected="one")
        found = document
    return found


class _Toml:
    """Makes nodes of TOML, whose parser tells no lines: they are looked for by the keys.

    Args:
        text: What the file says.
        file: Its name.
    """

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._count = Count(SETTINGS, file)
        self._lines = _toml_lines(text)

    def node(self) -> Node:
        """The document.

        Returns:
            Its node.

        Raises:
            BadInputError: It is no TOML.
            LimitError: It is too much.
        """
        try:
            content = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            found = _AT.search(str(error))
            line = int(found[1]) if found else self._text.count("\n") + 1
            what = _AT.sub("", str(error)).removesuffix(" (at end of document)")
            raise BadInputError(f"line {line}: this is no TOML: {what}", file=self._file) from error
        except RecursionError as error:
            raise LimitError(
                "this is nested too deep",
                file=self._file,
                expected=f"at most {SETTINGS.depth} levels",
            ) from error
        return self._node(content, (), 1)

    def _node(self, value: Any, path: tuple[str, ...], above: int) -> Node:  # noqa: ANN401
        line = self._lines.get(path, above)
        self._count.add(len(path) + 1, line)
        if isinstance(value, dict):
            made = {key: self._node(item, (*path, key), line) for key, item in value.items()}
            return Node(made, line, near=True)
        if isinstance(value, list):
            items = [self._node(item, (*path, str(at)), line) for at, item in enumerate(value)]
            return Node(tuple(items), line, near=True)
        if isinstance(value, bool):
            return Node(value, line, str(value).lower(), near=True)
        if isinstance(value, (int, float)):
            return Node(value, line, str(value), near=True)
        text = value if isinstance(value, str) else value.isoformat()
        return Node(text, line, text, near=True)


def _toml_lines(text: str) -> dict[tuple[str, ...], int]:
    """The lines on which the keys of a TOML document seem to stand; the first of each."""
    lines: dict[tuple[str, ...], int] = {}
    tables: dict[tuple[str, ...], int] = {}
    base: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            base = _with_places(_words(header[2]), tables)
            if header[1] == "[[":
                at = tables[base] = tables.get(base, -1) + 1
                lines.setdefault(base, number)
                base = (*base, str(at))
            lines.setdefault(base, number)
        elif key := _KEY.match(line):
            lines.setdefault((*base, *_words(key[1])), number)
    return lines


def _with_places(words: tuple[str, ...], tables: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    """The path of a table, with its place in each list of tables that it is in."""
    path: tuple[str, ...] = ()
    for word in words[:-1]:
        path = (*path, word)
        if path in tables:
            path = (*path, str(tables[path]))
    return (*path, *words[-1:])


def _words(key: str) -> tuple[str, ...]:
    """The parts of a dotted key."""
    return tuple(part.strip("\"' \t") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+", key))
