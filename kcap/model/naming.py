"""Column names: a pure function of a field's name and the class of its value.

Never a function of order, chunk or file, so that two captures of the same events, whatever
their order, have the same columns (spec/kcap.md, clause 5.3).
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Final

from kcap.model.classes import TypeClass

ARGUMENT: Final = "arg"
"""Prefix of an event's own arguments; an underscore follows."""

EXTENSION: Final = "ext"
"""Prefix of fields outside the arguments that the envelope has no column for."""

RAW: Final = "raw"
"""Suffix of the column with the exact bytes of text that is not valid UTF-8."""

SIZE: Final = "size"
"""Suffix of the column with the true length of a value that was cut."""

BASE_BYTES: Final = 900
"""Longest base that spells a name in full; its suffixes then fit a column name's limit."""

_CLASSES: Final = frozenset(TypeClass)
_ENDINGS: Final = {RAW: TypeClass.BIN, SIZE: TypeClass.I64}
_OCCURRENCE: Final = re.compile(r"[2-9]|[1-9][0-9]+", re.ASCII)
_KEEP: Final = re.compile(rb"[A-Za-z0-9]")
_BETWEEN: Final = re.compile(rb"[A-Za-z0-9]_[A-Za-z0-9]")
_ESCAPED: Final = re.compile(rb"_x[0-9A-F]{2}")
_HEX: Final = re.compile(r"_x([0-9A-F]{2})")


@lru_cache(maxsize=4096)
def argument(name: str) -> str:
    """The column base of an event's own argument.

    Args:
        name: The source's own name; may hold anything.

    Returns:
        ``arg_NAME``, escaped.
    """
    return _base(ARGUMENT, name)


def extension(name: str) -> str:
    """The column base of a field outside the arguments that the envelope does not know.

    Args:
        name: The source's own name or path.

    Returns:
        ``ext_NAME``, escaped.
    """
    return _base(EXTENSION, name)


def _base(prefix: str, name: str) -> str:
    """Prefix and escaped name; of a very long one the start and a hash of the whole."""
    if not name:
        return prefix
    base = prefix + _escape(name)
    if len(base) <= BASE_BYTES:
        return base
    return base[:BASE_BYTES] + hashlib.sha256(base.encode()).hexdigest()


def source_name(base: str) -> str:
    """Give back the name that `argument` or `extension` spelled.

    Args:
        base: A column base.

    Returns:
        The source's own name. A base of more than `BASE_BYTES` does not hold all of it (the
        ``shape`` does), and of a base that kcap did not make it is what could be read.
    """
    text = base[len(ARGUMENT) :]
    if not text:
        return ""
    raw = bytearray()
    at = 1
    for match in _HEX.finditer(text):
        raw += text[at : match.start()].encode("utf-8", "surrogatepass")
        raw.append(int(match[1], 16))
        at = match.end()
    raw += text[at:].encode("utf-8", "surrogatepass")
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")


def _escape(name: str) -> str:
    """Letters, digits and single underscores, any other byte of the UTF-8 form as ``_xHH``.

    The text starts with the underscore that ends the prefix: an escape at the start shares it.
    """
    raw = b"_" + name.encode("utf-8", "surrogatepass")
    out = ["_"]
    for i in range(1, len(raw)):
        char = raw[i : i + 1]
        plain = _KEEP.match(char) and not (i == 1 and _ESCAPED.match(raw))
        if plain or (char == b"_" and _plain_underscore(raw, i)):
            out.append(char.decode())
        else:
            out.append(f"_x{raw[i]:02X}")
    text = "".join(out)
    return text[1:] if text.startswith("__") else text


def _plain_underscore(raw: bytes, i: int) -> bool:
    """Whether the underscore at ``i`` may stand: between two kept characters, not as an escape."""
    return bool(_BETWEEN.match(raw, i - 1)) and not _ESCAPED.match(raw, i)


def column_name(base: str, cls: TypeClass, home: TypeClass | None, occurrence: int = 1) -> str:
    """The column where a value of a class lives.

    Args:
        base: Prefix and escaped name, as ``arg_pathname`` or ``pid``.
        cls: The class of the value.
        home: The home class of the name, None for an unknown name.
        occurrence: 2 for the second field of that name in one record, and so on.

    Returns:
        ``base`` at home, else ``base__CLASS``; later occurrences carry ``__N`` behind that.
    """
    name = base if cls is home else f"{base}__{cls}"
    return name if occurrence == 1 else f"{name}__{occurrence}"


def parts(column: str) -> tuple[str, list[str]]:
    """Split a column's name into base and suffixes.

    Args:
        column: A column's name.

    Returns:
        The base and the list of suffixes, e.g. ``("arg_flags", ["str", "raw"])``.
    """
    base, *suffixes = column.split("__")
    return base, suffixes


def class_of(column: str, home: TypeClass | None) -> TypeClass | None:
    """The class that a column's name says.

    Args:
        column: A column's name.
        home: The home class of its base, None for an unknown name.

    Returns:
        The class, or None where the name is not well formed.
    """
    _, suffixes = parts(column)
    cls = home
    if suffixes and suffixes[0] in _CLASSES:
        cls = TypeClass(suffixes.pop(0))
    if suffixes and _OCCURRENCE.fullmatch(suffixes[0]):
        suffixes.pop(0)
    if suffixes and suffixes[0] in _ENDINGS:
        cls = _ENDINGS[suffixes.pop(0)]
    return None if suffixes else cls
