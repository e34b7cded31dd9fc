"""The functions that the field catalogue names: pure, of one value, none for what has no result.

`kcap.filter.fields` says what each of them gives.
"""

from __future__ import annotations

import ntpath
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.filter.entries import structure
from kcap.filter.functions import backslashed
from kcap.filter.values import Named, fold
from kcap.model import decode

Int64s = npt.NDArray[np.int64]

_SECOND: Final = 10**9
_DAY: Final = 86_400 * _SECOND
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SYSTEM: Final = {"system": "S-1-5-18", "local service": "S-1-5-19", "network service": "S-1-5-20"}
_TUPLE: Final = re.compile(r"(.+):(\d{1,5})->(.+):(\d{1,5})")
_ENDPOINT: Final = re.compile(r"(.+):(\d{1,5})")
_NUMBER: Final = re.compile(r"\d{1,5}")
_ARGUMENT: Final = re.compile(r'(?:[^\s"\\]|\\.|\\$|"(?:[^"\\]|\\.)*"?)+', re.DOTALL)
_NUMBERED: Final = re.compile(r"(\w+)\[(\w+)\]")


# paths


def _basename(path: str) -> str | None:
    mark = max(path.rfind("/"), path.rfind("\\") if backslashed(path) else -1)
    return path[mark + 1 :] or None


def _dirname(path: str) -> str | None:
    return (ntpath if backslashed(path) else posixpath).dirname(path) or None


def _folder(path: str) -> str | None:
    found = _dirname(path)
    return None if found is None else _basename(found)


def _extension(path: str) -> str | None:
    name = _basename(path) or ""
    dot = name.rfind(".")
    return name[dot:] if dot > 0 else None


def _stem(path: str) -> str | None:
    return path.removesuffix(_extension(path) or "") or None


# accounts and command lines


def _account(user: str) -> str | None:
    return user.partition("\\")[2] if "\\" in user else user


def _domain(user: str) -> str | None:
    return user.partition("\\")[0] if "\\" in user else None


def _sid(user: str) -> str | None:
    domain, _, name = user.partition("\\")
    return _SYSTEM.get(fold(name), user) if fold(domain) == "nt authority" else user


def _split(command: str) -> list[str]:
    found = []
    for part in _ARGUMENT.findall(command):
        bare = part.replace('\\"', "\0").replace('"', "").replace("\0", '"')
        found.append(bare)
    return found


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:] if len(text[:1].upper()) == 1 else text


# numbers and their text


def _text(value: Any) -> str | None:  # noqa: ANN401 - any value
    if isinstance(value, Named):
        return str(value.number)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float | str) else None


def _hex(value: Any) -> str | None:  # noqa: ANN401 - any value
    number = value.number if isinstance(value, Named) else value
    return f"0x{number:x}" if isinstance(number, int) else _text(value)


def _decoded(value: Any) -> str | None:  # noqa: ANN401 - any value
    return value.text if isinstance(value, Named) else _text(value)


def _decoded_list(value: Any) -> Any:  # noqa: ANN401 - any value
    if isinstance(value, list | tuple) and not isinstance(value, Named):
        return value
    found = _decoded(value)
    return None if found is None else tuple(found.split("|"))


def _create_disposition(value: Any) -> str | None:  # noqa: ANN401 - any value
    number = value.number if isinstance(value, Named) else value
    if isinstance(number, int):
        return decode.text_of("create_disposition", number)
    return _text(value)


def _share_letters(value: Any) -> str | None:  # noqa: ANN401 - any value
    number = value.number if isinstance(value, Named) else value
    if not isinstance(number, int):
        return _text(value)
    return "".join(c if number & bit else "-" for c, bit in (("r", 1), ("w", 2), ("d", 4)))


def _protocol(value: Any) -> str | None:  # noqa: ANN401 - any value
    number = value.number if isinstance(value, Named) else value
    return {1: "TCP", 2: "UDP"}.get(number, _text(value)) if isinstance(number, int) else number


def _count_args(shape: str) -> int:
    """How many fields the last group of a shape has: the arguments."""
    group = shape.rpartition("|")[2]
    return group.count(",") + 1 if group else 0


# times


def _time(unit: int, of: int) -> Callable[[Any], int | None]:
    return lambda ns: ns // unit % of if isinstance(ns, int) else None


def _at(ns: int) -> datetime:
    return _EPOCH + timedelta(days=ns // _DAY)


def _calendar(part: Callable[[datetime], Any]) -> Callable[[Any], Any]:
    def found(ns: Any) -> Any:  # noqa: ANN401 - any value
        return part(_at(ns)) if isinstance(ns, int) else None

    return found


def _clock(ns: Any) -> str | None:  # noqa: ANN401 - any value
    if not isinstance(ns, int):
        return None
    seconds = ns % _DAY // _SECOND
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _dates(part: Callable[[datetime], int]) -> Callable[[Int64s], Int64s]:
    """A part of the date for many times: once for each day."""

    def found(times: Int64s) -> Int64s:
        days, codes = np.unique(times // _DAY, return_inverse=True)
        parts = [part(_EPOCH + timedelta(days=day)) for day in days.tolist()]
        return np.array(parts, np.int64)[codes.reshape(-1)]

    return found


_PARTS: Final[dict[str, Callable[[datetime], int]]] = {
    "year": lambda at: at.year,
    "month": lambda at: at.month,
    "day": lambda at: at.day,
    "week": lambda at: at.isocalendar().week,
}
_UNITS: Final = {
    "hour": (3600 * _SECOND, 24),
    "minute": (60 * _SECOND, 60),
    "second": (_SECOND, 60),
}

MANY: Final[Mapping[str, Callable[[Int64s], Int64s]]] = {
    **{name: _dates(part) for name, part in _PARTS.items()},
    **{name: partial(lambda u, o, t: t // u % o, unit, of) for name, (unit, of) in _UNITS.items()},
}
"""Functions of times for many at once: times seldom repeat."""


# addresses


def _side(group: int, text: str) -> str | None:
    match = _TUPLE.fullmatch(text)
    if match is not None:
        return match[group]
    alone = _ENDPOINT.fullmatch(text) if "->" not in text and group > 2 else None  # noqa: PLR2004
    return None if alone is None else alone[group - 2]


def _port(group: int, text: str) -> int | None:
    found = _side(group, text)
    return None if found is None else int(found)


def _socket(names: Sequence[str], value: Any) -> Any:  # noqa: ANN401 - any value
    found = _mapping(value)
    return next((found[n] for n in names if n in found), None)


def _socket_port(value: Any) -> int | None:  # noqa: ANN401 - any value
    found = _socket(("sin_port", "sin6_port"), value)
    if isinstance(found, str) and _NUMBER.fullmatch(found):
        return int(found)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


# structures


def _parsed(value: Any) -> Any:  # noqa: ANN401 - any value
    """A JSON text as what it holds, other values as they are."""
    return structure(value) if isinstance(value, str) else value


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 - any value
    found = _parsed(value)
    return found if isinstance(found, Mapping) else {}


def _maps(value: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401 - any value
    found = _parsed(value)
    return [item for item in found if isinstance(item, Mapping)] if _is_list(found) else []


def _is_list(value: Any) -> bool:  # noqa: ANN401 - any value
    return isinstance(value, list | tuple) and not isinstance(value, Named)


def _frozen(value: Any) -> Any:  # noqa: ANN401 - any value
    return tuple(value) if isinstance(value, list) else value


def _query(key: str, other: str, value: Any) -> str | None:  # noqa: ANN401 - any value
    found = _parsed(value)
    if isinstance(found, Mapping):
        questions = found.get("questions")
        first = questions[0] if _is_list(questions) and questions else None
        name = first.get(key) if isinstance(first, Mapping) else None
    else:
        items = _maps(found)
        first = items[0].get("query_data", items[0]) if items else None
        name = first.get(other) if isinstance(first, Mapping) else None
    return name if isinstance(name, str) else None


def _answers(value: Any) -> tuple[str, ...] | None:  # noqa: ANN401 - any value
    found = _parsed(value)
    if isinstance(found, Mapping):
        texts = [
            next((a[k] for k in ("IP", "CNAME", "PTR", "NS", "data") if a.get(k)), None)
            for a in _maps(found.get("answers"))
        ]
    else:
        texts = [a.get("answer") for item in _maps(found) for a in _maps(item.get("dns_answer"))]
    kept = tuple(text for text in texts if isinstance(text, str))
    return kept or None


def _value(key: str, value: Any) -> Any:  # noqa: ANN401 - any value
    found = _parsed(value)
    if isinstance(found, Mapping):
        return _frozen(found.get(key))
    kept = tuple(item[key] for item in _maps(found) if item.get(key) is not None)
    return kept or None


def _by_name(key: str, value: Any) -> Any:  # noqa: ANN401 - any value
    maps = [item for item in _maps(value) if isinstance(item.get("name"), str)]
    return {item["name"]: item[key] for item in maps if item.get(key) is not None} or None


def _names(value: Any) -> tuple[str, ...] | None:  # noqa: ANN401 - any value
    found = _parsed(value)
    if isinstance(found, Mapping):
        return tuple(found)
    return tuple(i["name"] for i in _maps(found) if isinstance(i.get("name"), str)) or None


def _variables(value: Any) -> Any:  # noqa: ANN401 - any value
    found = _parsed(value)
    if isinstance(found, Mapping):
        return found
    if not _is_list(found):
        return None
    pairs = [item.partition("=") for item in found if isinstance(item, str)]
    return {name: text for name, _, text in pairs}


def picked(key: str, field: str, era: str, value: Any) -> Any:  # noqa: ANN401 - any values
    """What brackets pick of a value.

    Args:
        key: What stands in them.
        field: The field's name.
        era: Its era.
        value: A list, a map, or its JSON text.

    Returns:
        The item, None where there is none.
    """
    found = _parsed(value)
    if isinstance(found, Mapping):
        if key in found:
            return _frozen(found[key])
        return next((_frozen(v) for name, v in found.items() if name.startswith(key)), None)
    if not _is_list(found):
        return None
    if key == "any":
        return tuple(found)
    if key == "root":
        return found[-1] if found else None
    if key.isdecimal() and len(key) < 10:  # noqa: PLR2004 - no list is longer
        at = int(key) - (field.startswith("ps.ancestor") and era == "1")
        return _frozen(found[at]) if 0 <= at < len(found) else None
    return next((_frozen(item) for item in _maps(found) if item.get("name") == key), None)


def listed(value: Any) -> Any:  # noqa: ANN401 - any value
    """A map as the list of its names and of its ``NAME:value`` texts; other values stay.

    Args:
        value: A map or its JSON text.

    Returns:
        The list.
    """
    found = _parsed(value)
    if not isinstance(found, Mapping):
        return _frozen(value)
    return (*found, *(f"{name}:{text}" for name, text in found.items()))


COUNT_ARGS: Final = "count_args"
"""The function that counts arguments: of no column of its own, but of ``shape``."""

_TEXTS: Final[dict[str, Callable[[str], Any]]] = {
    "account": _account,
    "basename": _basename,
    "capitalized": _capitalized,
    "client_ip": partial(_side, 1),
    "client_port": partial(_port, 2),
    COUNT_ARGS: _count_args,
    "dirname": _dirname,
    "domain": _domain,
    "extension": _extension,
    "folder": _folder,
    "server_ip": partial(_side, 3),
    "server_port": partial(_port, 4),
    "sid": _sid,
    "split": lambda command: tuple(_split(command)),
    "stem": _stem,
}
"""Functions of text; a list goes in item by item."""

_OTHERS: Final[dict[str, Callable[[Any], Any]]] = {
    "answers": _answers,
    "clock": _clock,
    "create_disposition": _create_disposition,
    "date": _calendar(lambda at: f"{at:%Y-%m-%d}"),
    "decoded": _decoded,
    "decoded_list": _decoded_list,
    "hex": _hex,
    "names": _names,
    "protocol": _protocol,
    "query_name": partial(_query, "name", "query"),
    "query_type": partial(_query, "type", "query_type"),
    "response_code": partial(_value, "responseCode"),
    "share_letters": _share_letters,
    "socket_ip": partial(_socket, ("sin_addr", "sin6_addr")),
    "socket_path": partial(_socket, ("sun_path",)),
    "socket_port": _socket_port,
    "text": _text,
    "variables": _variables,
    "weekday": _calendar(lambda at: _DAYS[at.weekday()]),
    "zone": lambda ns: "UTC" if isinstance(ns, int) else None,
    **{name: _calendar(part) for name, part in _PARTS.items()},
    **{name: _time(unit, of) for name, (unit, of) in _UNITS.items()},
}

COARSE: Final[Mapping[str, int]] = {"clock": _SECOND, "date": _DAY, "weekday": _DAY, "zone": _DAY}
"""Functions of times that are the same for all times within so many ns: times seldom repeat."""

OF_NAMED: Final = frozenset({"", "decoded", "decoded_list", *_TEXTS})
"""Functions to which the text of a number says something; the empty name is no function."""

OF_TEXT: Final = frozenset(
    {
        *_TEXTS,
        "answers",
        "names",
        "query_name",
        "query_type",
        "response_code",
        "socket_ip",
        "socket_path",
        "socket_port",
        "variables",
    }
) - {COUNT_ARGS}
"""Functions that give nothing of a number."""


@lru_cache(maxsize=256)
def function(name: str) -> Callable[[Any], Any]:
    """A function by its name in the catalogue.

    Args:
        name: Its name; ``value[KEY]`` and ``by_name[KEY]`` with the key.

    Returns:
        The function.

    Raises:
        KeyError: There is none; a test sees to it that the catalogue names no such.
    """
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        return partial({"value": _value, "by_name": _by_name}[numbered[1]], numbered[2])
    return partial(_of_texts, _TEXTS[name]) if name in _TEXTS else _OTHERS[name]


def _of_texts(one: Callable[[str], Any], value: Any) -> Any:  # noqa: ANN401 - any values
    if isinstance(value, str):
        return one(value)
    if isinstance(value, Named):
        return one(value.text)
    if _is_list(value):
        # Items keep their places: those tell which ancestor one is.
        found = tuple(one(item) if isinstance(item, str) else None for item in value)
        return found if any(item is not None for item in found) else None
    return None
