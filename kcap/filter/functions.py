"""The functions of the filter language, each pure: a missing argument gives a missing result."""

from __future__ import annotations

import hashlib
import math
import ntpath
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_network
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from kcap.filter.syntax import Network
from kcap.filter.values import Named, fold, texts, unmapped, wildcard, within

_TEXT_MAX: Final = 1 << 20
"""Longest text that a function makes."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function."""

    apply: Callable[..., Any]
    least: int
    most: int
    """Fewest and most arguments."""
    result: str
    """``text``, ``number``, ``bool`` or ``list``."""
    usage: str
    meaning: str


def text(value: Any) -> str | None:  # noqa: ANN401 - any value
    """A value as one text.

    Args:
        value: Any value.

    Returns:
        None for what is missing, a list or a mapping.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return None
    if isinstance(value, Named):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if isinstance(value, Sequence | Mapping) else str(value)


def backslashed(path: str) -> bool:
    """Whether a path is one of Windows.

    Args:
        path: Any path.

    Returns:
        True where it has a drive or backslashes and does not begin with a slash.
    """
    return not path.startswith("/") and ("\\" in path or path[1:2] == ":")


def base(path: Any, extension: Any = True) -> str | None:  # noqa: ANN401
    """The last part of a path.

    Args:
        path: The path.
        extension: Whether to keep the extension.

    Returns:
        The name.
    """
    found = text(path)
    if found is None:
        return None
    name = found.replace("\\", "/").rpartition("/")[2] if backslashed(found) else ""
    name = name or posixpath.basename(found)
    return name if extension is not False else posixpath.splitext(name)[0]


def directory(path: Any) -> str | None:  # noqa: ANN401 - any value
    """A path without its last part.

    Args:
        path: The path.

    Returns:
        The folder.
    """
    found = text(path)
    if found is None:
        return None
    return str((ntpath if backslashed(found) else posixpath).dirname(found))


def suffix(path: Any, dot: Any = True) -> str | None:  # noqa: ANN401
    """The extension of a path.

    Args:
        path: The path.
        dot: Whether it begins with the dot.

    Returns:
        The extension, empty where it has none.
    """
    name = base(path)
    if name is None:
        return None
    found = posixpath.splitext(name)[1]
    return found if dot is not False else found[1:]


def _is_abs(path: Any) -> bool | None:  # noqa: ANN401 - any value
    found = text(path)
    if found is None:
        return None
    if backslashed(found):
        drive, rest = ntpath.splitdrive(found)
        return bool(drive) and rest.startswith("\\")
    return found.startswith("/")


def _volume(path: Any) -> str | None:  # noqa: ANN401 - any value
    found = text(path)
    return None if found is None else ntpath.splitdrive(found)[0] if backslashed(found) else ""


@lru_cache(maxsize=1 << 12)
def network(word: str) -> Network | None:
    """Read a network.

    Args:
        word: ``10.0.0.0/8``; an address is a network of one.

    Returns:
        None for other text.
    """
    try:
        return unmapped(ip_network(word, strict=False))
    except ValueError:
        return None


def _cidr_contains(ip: Any, *networks: Any) -> bool | None:  # noqa: ANN401 - any values
    if ip is None:
        return None
    found = (network(n) if isinstance(n, str) else n for each in networks for n in _items(each))
    return any(n is not None and within(ip, n) for n in found)


def _items(value: Any) -> Sequence[Any]:  # noqa: ANN401 - any value
    return value if isinstance(value, list | tuple) else (value,)


def _concat(*parts: Any) -> str | None:  # noqa: ANN401 - any values
    found = [text(part) for part in parts]
    kept = [part for part in found if part is not None]
    return None if len(kept) != len(found) else "".join(kept)[:_TEXT_MAX]


def _trimmed(cut: Callable[[str, str], str]) -> Callable[[Any, Any], str | None]:
    def trim(value: Any, part: Any) -> str | None:  # noqa: ANN401 - any values
        whole, piece = text(value), text(part)
        return None if whole is None or piece is None else cut(whole, piece)

    return trim


def _upper(value: Any) -> str | None:  # noqa: ANN401 - any value
    found = text(value)
    if found is None:
        return None
    return "".join(up if len(up := c.upper()) == 1 else c for c in found)


def _lower(value: Any) -> str | None:  # noqa: ANN401 - any value
    found = text(value)
    return None if found is None else fold(found)


def _replace(value: Any, *pairs: Any) -> str | None:  # noqa: ANN401 - any values
    found = text(value)
    words = [text(part) for part in pairs]
    if found is None or None in words:
        return None
    for old, new in zip(words[::2], words[1::2], strict=False):
        if old:
            found = found.replace(old, new or "")[:_TEXT_MAX]
    return found


def _split(value: Any, separator: Any) -> list[str] | None:  # noqa: ANN401 - any values
    found, mark = text(value), text(separator)
    if found is None or mark is None:
        return None
    return found.split(mark) if mark else list(found)


def _length(value: Any) -> int | None:  # noqa: ANN401 - any value
    if isinstance(value, list | tuple | Mapping):
        return len(value)
    found = text(value)
    return None if found is None else len(found)


def _indexof(value: Any, part: Any, how: Any = "first") -> int | None:  # noqa: ANN401
    found, piece = text(value), text(part)
    if found is None or piece is None:
        return None
    if how == "last":
        return found.rfind(piece)
    if how in ("any", "lastany"):
        places = [i for i in map(found.find if how == "any" else found.rfind, piece) if i >= 0]
        return (min if how == "any" else max)(places, default=-1)
    return found.find(piece)


def _substr(value: Any, start: Any, end: Any = None) -> str | None:  # noqa: ANN401
    found = text(value)
    if found is None or not isinstance(start, int) or start < 0:
        return None
    if end is None:
        return found[start:]
    return found[start:end] if isinstance(end, int) and end >= start else None


def _entropy(value: Any, algorithm: Any = "shannon") -> float | None:  # noqa: ANN401
    found = text(value)
    if found is None or algorithm != "shannon":
        return None
    # Counts in order, and an exact sum: the same figure everywhere.
    shares = [n / len(found) for n in sorted(Counter(found).values())]
    return math.fsum(-share * math.log2(share) for share in shares) + 0.0


def regex(value: Any, *patterns: Any) -> bool | None:  # noqa: ANN401 - any values
    """Whether one of several regular expressions is found in a text (RE2's dialect).

    Args:
        value: A text or a list of texts.
        patterns: The expressions.

    Returns:
        None where the value is missing.
    """
    if value is None:
        return None
    found = pa.array(texts(value), pa.utf8())
    words = [p for each in patterns for p in _items(each) if isinstance(p, str)]
    return any(pc.any(pc.match_substring_regex(found, p)).as_py() for p in words)


def _md5(value: Any) -> str | None:  # noqa: ANN401 - any value
    found = text(value)
    if found is None:
        return None
    return hashlib.md5(found.encode(), usedforsecurity=False).hexdigest()


def _count(value: Any, pattern: Any, ignoring_case: Any = False) -> int | None:  # noqa: ANN401
    """How many items of a list match a pattern, or how often a text has a part."""
    wanted = text(pattern)
    if value is None or wanted is None:
        return None
    found = texts(value)
    if ignoring_case is True:
        found, wanted = [fold(t) for t in found], fold(wanted)
    if isinstance(value, list | tuple):
        return sum(wildcard(item, wanted) for item in found)
    return sum(item.count(wanted) for item in found) if wanted else 0


def _is_minidump(path: Any, dumps: Any = None) -> bool | None:  # noqa: ANN401 - any values
    """Whether an artifact that was taken at a path is a memory dump of Windows.

    Args:
        path: The path.
        dumps: The paths of all such artifacts (`check` puts them here).
    """
    found = text(path)
    return None if found is None else dumps is not None and found in texts(dumps)


def _yara(path: Any, rules: Any, matched: Any = None) -> bool | None:  # noqa: ANN401 - any values
    """Whether YARA rules match an artifact that was taken at a path.

    Args:
        path: The path.
        rules: Their text.
        matched: The paths of all artifacts that they match (`check` puts them here).
    """
    del rules
    return _is_minidump(path, matched)


def _exists(value: Any) -> bool:  # noqa: ANN401 - any value
    return value is not None


def _foreach(*_: Any) -> bool:  # noqa: ANN401 - any values
    raise AssertionError("the interpreter does this itself")


MANY: Final = 64
"""Most arguments of a function that takes any number."""

FUNCTIONS: Final[Mapping[str, Function]] = {
    "base": Function(base, 1, 2, "text", "base(path[, false])", "file name; without extension"),
    "cidr_contains": Function(
        _cidr_contains, 2, MANY, "bool", "cidr_contains(ip, cidr...)", "address in a network"
    ),
    "concat": Function(_concat, 1, MANY, "text", "concat(a, b...)", "texts one after another"),
    "count": Function(
        _count, 2, 3, "number", "count(list, wildcard[, true])", "items that match; true: any case"
    ),
    "dir": Function(directory, 1, 1, "text", "dir(path)", "folder of a path"),
    "entropy": Function(
        _entropy, 1, 2, "number", "entropy(s)", "Shannon entropy, bits a character"
    ),
    "exists": Function(_exists, 1, 1, "bool", "exists(field)", "the event has a value"),
    "ext": Function(suffix, 1, 2, "text", "ext(path[, false])", "extension; without its dot"),
    "foreach": Function(
        _foreach, 3, MANY, "bool", "foreach(list, $x, condition)", "holds for some item"
    ),
    "indexof": Function(
        _indexof, 2, 3, "number", "indexof(s, part[, 'last'])", "place of a part, -1 for none"
    ),
    "is_abs": Function(_is_abs, 1, 1, "bool", "is_abs(path)", "the path is absolute"),
    "is_minidump": Function(
        _is_minidump, 1, 2, "bool", "is_minidump(path)", "the artifact is a memory dump of Windows"
    ),
    "length": Function(
        _length, 1, 1, "number", "length(x)", "characters of a text, items of a list"
    ),
    "lower": Function(_lower, 1, 1, "text", "lower(s)", "in lower case"),
    "ltrim": Function(
        _trimmed(str.removeprefix), 2, 2, "text", "ltrim(s, prefix)", "without a prefix"
    ),
    "md5": Function(_md5, 1, 1, "text", "md5(s)", "MD5 of the text, in hex"),
    "regex": Function(regex, 2, MANY, "bool", "regex(s, pattern...)", "a regular expression (RE2)"),
    "replace": Function(
        _replace, 3, MANY, "text", "replace(s, old, new...)", "with parts put in place of others"
    ),
    "rtrim": Function(
        _trimmed(str.removesuffix), 2, 2, "text", "rtrim(s, suffix)", "without a suffix"
    ),
    "split": Function(_split, 2, 2, "list", "split(s, separator)", "its parts"),
    "substr": Function(_substr, 2, 3, "text", "substr(s, start[, end])", "a part by its place"),
    "upper": Function(_upper, 1, 1, "text", "upper(s)", "in upper case"),
    "volume": Function(_volume, 1, 1, "text", "volume(path)", "drive or share of a path"),
    "yara": Function(_yara, 2, 3, "bool", "yara(path, rules)", "YARA rules match the artifact"),
}
"""Every function there is, by name."""

ARTIFACTS: Final[Mapping[str, str]] = {
    "is_minidump": "artifact.minidumps",
    "yara": "artifact.yara",
}
"""Functions that ask for artifacts, and the field that has the answers: their last argument."""

ITEMS: Final = "[]"
"""Stands in checked expressions for the items of a list of structures; no one can write it."""


def items(*pairs: Any) -> tuple[Mapping[str, Any], ...] | None:  # noqa: ANN401 - any values
    """Lists of which each has one detail of the same items, as these items.

    Args:
        pairs: The name of a detail, its list, and so on.

    Returns:
        One mapping an item; None where there are no lists.
    """
    lists = {name: found for name, found in zip(pairs[::2], pairs[1::2], strict=True) if found}
    if not lists:
        return None
    return tuple(dict(zip(lists, values, strict=True)) for values in zip(*lists.values()))  # noqa: B905


_MACHINE: Final = "it would look at the machine that replays, not at the one that was recorded"
REFUSED: Final[Mapping[str, str]] = {
    "glob": _MACHINE,
    "symlink": _MACHINE,
    "get_reg_value": _MACHINE,
}
"""Functions that Fibratus has and a replay must not, with the reason."""
