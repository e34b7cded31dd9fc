"""Settings as they are shown: where each comes from, and no secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kcap.model.text import UNSAFE
from kcap.tools.settings import outputs, secrets, verbs
from kcap.tools.settings.document import Reference
from kcap.tools.settings.merged import (
    FILAMENT,
    LOGGING,
    SINKS,
    TRANSFORMERS,
    Entry,
    Merged,
    filament_keys,
    logging_keys,
)
from kcap.tools.settings.schema import Key

DEFAULT: Final = "default"
"""The source of what nobody has set."""

_PLAIN: Final = re.compile(
    r"[A-Za-z0-9_/.$][A-Za-z0-9_/.@%+=$()*~-]*(?::[A-Za-z0-9_/.@%+=$()*~-]+)*"
)
_NONE: Final = {"null", "~", ""}
_UNSAFE: Final = re.compile(f"{UNSAFE}|[\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Row:
    """A setting as it is shown."""

    path: tuple[str | int, ...]
    """Its section and name; a number for a place in a list."""
    value: Any
    """As it is written, without secrets."""
    source: str
    """Where it comes from."""
    typed: bool = False
    """What is written means a number or a truth value, not the text of an option."""


def rows(found: Merged, *, every: bool = False) -> Iterator[Row]:
    """All settings.

    Args:
        found: What file and environment say.
        every: With what nobody has set.

    Yields:
        One after the other: verbs in the order of the help, then the other sections.

    Raises:
        KcapError: The settings are wrong.
    """
    for name in verbs.sections():
        for path, command in verbs.commands((name,)) if _is_asked(found, name, every) else ():
            entries = found.entries(path, command)
            yield from _section(path, entries, verbs.keys(command) if every else {})
    yield from _sinks(found)
    for at, one in enumerate(found.transformers()):
        value = secrets.masked_value(one.name, one.arguments)
        yield Row((TRANSFORMERS, at, one.name), value, one.source, typed=True)
    for name, keys in ((FILAMENT, filament_keys()), (LOGGING, logging_keys())):
        yield from _section((name,), found.own(name), keys if every else {})


def as_yaml(found: list[Row], file: str | None) -> Iterator[str]:
    """Settings as a file that could be one of settings.

    Args:
        found: The settings.
        file: The file that was read.

    Yields:
        Lines, without their ends.
    """
    yield f"# {'no file of settings' if file is None else _safe(f'settings of {file}')}"
    above: tuple[str | int, ...] = ()
    for row in found:
        *parents, name = row.path
        inside = tuple(parents)
        indent = "  " * len(inside)
        for depth, word in enumerate(inside):
            if inside[: depth + 1] != above[: depth + 1] and isinstance(word, str):
                yield f"{'  ' * depth}{_key(word)}:"
        if inside != above and isinstance(inside[-1], int):
            indent = f"{indent[:-2]}- "
        above = inside
        if row.value is None:
            yield f"#{indent[1:]}{_key(str(name))}:"
        else:
            value = _typed(row.value) if row.typed else _text(row.value)
            yield f"{indent}{_key(str(name))}: {value}  # {_safe(row.source)}"


def as_json(found: list[Row], file: str | None) -> str:
    """Settings as JSON.

    Args:
        found: The settings.
        file: The file that was read.

    Returns:
        One object.
    """
    listed = [
        {
            "setting": ".".join(str(part) for part in row.path),
            "value": _jsonable(row.value),
            "source": row.source,
        }
        for row in found
    ]
    return json.dumps({"file": file, "settings": listed}, indent=2)


def _is_asked(found: Merged, name: str, every: bool) -> bool:
    """Whether a verb has to be imported: else settings say nothing of it."""
    prefix = verbs.variable_of(name)
    return every or name in found.sections or any(v.startswith(prefix) for v in found.variables())


def _section(
    path: tuple[str, ...], entries: dict[str, Entry], keys: dict[str, Key]
) -> Iterator[Row]:
    """The settings of a section, with those of ``keys`` that nobody has set."""
    for name, entry in entries.items():
        if name not in keys:
            yield _row(path, entry)
    for name, key in keys.items():
        if name in entries:
            yield _row(path, entries[name])
        else:
            yield Row((*path, name), _default(key), DEFAULT)


def _row(path: tuple[str, ...], entry: Entry) -> Row:
    name = entry.key.name
    return Row((*path, name), secrets.masked_value(name, entry.value), entry.source)


def _sinks(found: Merged) -> Iterator[Row]:
    for at, (source, url, options) in enumerate(found.sinks(resolve=False)):
        secret: tuple[str, ...] = ()
        if isinstance(url, str):
            secret = tuple(name for name, key in outputs.sink_keys(url).items() if key.secret)
        yield Row((SINKS, at, "url"), secrets.masked_value("url", url, secret=secret), source)
        for name, entry in options.items():
            value = secrets.masked_value(name, entry.value, secret=secret)
            yield Row((SINKS, at, name), value, entry.source)


def _default(key: Key) -> Any:  # noqa: ANN401
    """A default as it would be written."""
    if isinstance(key.default, (list, tuple)):
        return [str(item) for item in key.default] or None
    if isinstance(key.default, bool):
        return str(key.default).lower()
    if key.default is None or isinstance(key.default, dict):
        return key.default or None
    return str(key.default)


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else _quoted(name)


def _text(value: Any) -> str:  # noqa: ANN401
    """A value whose text is what counts, as YAML on one line."""
    if isinstance(value, Reference):
        return f"!{value.kind} {_quoted(value.name)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_quoted_item(item) for item in value)}]"
    if isinstance(value, dict):
        inner = (f"{_quoted(name)}: {_quoted_item(item)}" for name, item in value.items())
        return f"{{{', '.join(inner)}}}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.lower() not in _NONE else _quoted(text)


def _quoted_item(value: Any) -> str:  # noqa: ANN401
    return _text(value) if isinstance(value, Reference) else _quoted(str(value))


def _typed(value: Any) -> str:  # noqa: ANN401
    """A value of YAML's own types, on one line."""
    if isinstance(value, Reference):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_typed(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(k)}: {_typed(v)}' for k, v in value.items())}}}"
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):  # noqa: PLR0124
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(value)]
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """Text in double quotes, which JSON and YAML have in common."""
    quoted = json.dumps(text, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)


def _safe(text: str) -> str:
    """Text for a comment."""
    from kcap.model.text import printable

    return printable(text)


def _jsonable(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Reference):
        return {value.kind: value.name}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    return value
