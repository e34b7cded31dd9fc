r"""How a shape spells a JSON record, so that the record can be given back exactly.

The items of the record section stand in source order. An item's name is a path: keys joined by
``.``, in a key ``\.`` for a dot and ``\\`` for a backslash. An item's type is one of the words
below. An object whose keys are known is an item of its own, its fields follow it; any other
object, and any list, is one value. The list of arguments is an item, too, whose type gives the
*form* of its entries; the entries themselves are the shape's argument section.

============== ==================================================================
``int``        a number without fraction or exponent
``float``      any other number
``bool``       true or false
``string``     text; where its column holds an integer, the integer's decimal digits
``time``       RFC 3339 text, UTC, fraction without trailing zeros; its column holds ns
``time3``      the same with a fraction of 0, 3, 6 or 9 digits
``list``       a list that is a value
``json``       an object that is a value
``object``     an object whose fields follow
``entries F``  a list of arguments; F is the form of all of them, or one form each
============== ==================================================================

A form is the keys of an entry in order, ``n`` for its name, ``t`` for its type, ``v`` for its
value, ``k`` for a value whose key is its type; ``v`` alone is a bare value, named by its position,
and ``e`` says that the value is the whole entry. Marks follow, inner ones first: ``j`` the column
holds the value's JSON text, ``s`` the value is text, its column the integer (or the list of them)
that it spells, ``w`` the value is ``{"value": [...]}``, its column the list, ``o`` it is ``{}`` and
its column an empty list. ``=`` and the name of a decoder stand last: the value is the text that
`kcap.model.decode.text_of` gives with it for the number in the column.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from kcap.model import catalogue, naming
from kcap.model.builder import Field
from kcap.model.shape import Item

OBJECT: Final = "object"
ENTRIES: Final = "entries"
TIME: Final = "time"
TIME3: Final = "time3"
STRING: Final = "string"

WORDS: Final[Mapping[type, str]] = {
    bool: "bool",
    dict: "json",
    float: "float",
    int: "int",
    list: "list",
    str: STRING,
    type(None): "",
}
"""The type word of a parsed JSON value."""

_MARKS: Final = "jsow"
_SPELLED: Final = "="
_SPECIAL: Final = re.compile(r"[\\.]")
_PART: Final = re.compile(r"((?:\\.|[^\\.])*)(\.?)", re.DOTALL)
_TIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def join(parent: str | None, key: str) -> str:
    """The path of a field.

    Args:
        parent: Path of the object it is in, None for the record itself.
        key: Its key there.

    Returns:
        The path.
    """
    key = _SPECIAL.sub(r"\\\g<0>", key)
    return key if parent is None else f"{parent}.{key}"


def split(path: str) -> list[str]:
    """The keys that lead to a field.

    Args:
        path: What `join` made.

    Returns:
        One key a level.
    """
    keys = []
    for match in _PART.finditer(path):
        keys.append(re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL))
        if not match[2]:
            break
    return keys


def entries(forms: Sequence[str]) -> str:
    """The type of a list of arguments.

    Args:
        forms: The form of each entry.

    Returns:
        The word and the forms.
    """
    distinct = sorted(set(forms))
    return " ".join([ENTRIES, *(distinct if len(distinct) == 1 else forms)])


def forms(word: str, count: int) -> list[str]:
    """Read what `entries` wrote.

    Args:
        word: The type of the item.
        count: Entries of the list.

    Returns:
        One form an entry.
    """
    found = word.split(" ")[1:]
    return found * count if len(found) == 1 else found


def spelled(decoder: str) -> str:
    """What stands at the end of the form of a number that the source spelled as text.

    Args:
        decoder: How it was spelled; empty for a value that is what its column holds.

    Returns:
        The mark.
    """
    return f"{_SPELLED}{decoder}" if decoder else ""


def form_parts(form: str) -> tuple[str, str, str]:
    """Take the form of an entry apart.

    Args:
        form: The form.

    Returns:
        Its keys, its marks, and the decoder of a number that is text, empty for none.
    """
    rest, _, decoder = form.partition(_SPELLED)
    keys = rest.rstrip(_MARKS)
    return keys, rest[len(keys) :], decoder


def time_ns(value: str) -> int | None:
    """Read RFC 3339 text.

    Args:
        value: Any text.

    Returns:
        The ns since 1970 UTC, digits beyond ns dropped; None where it is no such text.
    """
    match = _TIME.fullmatch(value)
    if match is None:
        return None
    try:
        whole = datetime.fromisoformat(f"{match[1]}{match[3].upper()}")
    except ValueError:
        return None
    seconds = (whole - _EPOCH) // timedelta(seconds=1)
    return seconds * 10**9 + int((match[2] or "").ljust(9, "0")[:9])


def time_text(ns: int, word: str) -> str:
    """Write what `time_ns` reads.

    Args:
        ns: A time within int64.
        word: `TIME` or `TIME3`.

    Returns:
        The text.
    """
    seconds, fraction = divmod(ns, 10**9)
    whole = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f"{fraction:09d}".rstrip("0")
    if word == TIME3:
        digits = digits.ljust(-(-len(digits) // 3) * 3, "0")
    return f"{whole}.{digits}Z" if digits else f"{whole}Z"


def record_fields(items: Sequence[Item], aliases: Mapping[str, str]) -> list[Field | None]:
    """The columns that hold a record's fields.

    Args:
        items: The record section of a shape.
        aliases: Path to the envelope's column, from `kcap.model.catalogue.aliases`.

    Returns:
        One field an item, None for an item without a value of its own.
    """
    return _fields(
        None if _hollow(item) else aliases.get(item.name) or naming.extension(item.name)
        for item in items
    )


def argument_fields(items: Sequence[Item], forms: Sequence[str]) -> list[Field | None]:
    """The columns that hold a record's arguments.

    Args:
        items: The argument section of a shape.
        forms: The form of each.

    Returns:
        One field an item, None for a null or an entry without a value.
    """
    pairs = zip(items, forms, strict=False)
    return _fields(
        None if item.null or form == "n" else naming.argument(item.name) for item, form in pairs
    )


def _hollow(item: Item) -> bool:
    return item.null or item.type == OBJECT or item.type.startswith(ENTRIES)


def _fields(bases: Iterable[str | None]) -> list[Field | None]:
    seen: Counter[str] = Counter()
    out: list[Field | None] = []
    for base in bases:
        if base is None:
            out.append(None)
            continue
        seen[base] += 1
        out.append(Field(base, catalogue.home(base), seen[base]))
    return out
