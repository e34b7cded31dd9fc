"""The worker's half of `kcap.filament.event`: dictionaries out of packed columns.

Nothing but the standard library is imported: a worker starts in a tenth of the time that it would
take to load Arrow, and has less that could be turned against it.
"""

from __future__ import annotations

import ipaddress
import json
import marshal
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

NUMBERS: Final = "numbers"
"""Form of numbers of a fixed width; ``more`` is their type code (``q``, ``Q``, ``d``)."""

LIST: Final = "list"
"""Form of values as they are."""

ENTRIES: Final = "entries"
"""Form of the different values, and in ``more`` the number of each value's entry."""

JSON: Final = "json"
"""As `ENTRIES`, of JSON texts; each event gets a structure of its own."""

ADDRESSES: Final = "addresses"
"""As `ENTRIES`, of IP addresses, which become objects."""

TIMES: Final = "times"
"""As `NUMBERS`, of ns since 1970, which become times."""


class Packed(NamedTuple):
    """The values of a column, of builtin types only."""

    form: str
    """`NUMBERS`, `LIST` …"""
    values: Any
    more: bytes | str = b""


Key = tuple[str, int]
"""A name, and the number of the column with its values."""

_VIEWS: Final[dict[str, Callable[[memoryview], Iterable[Any]]]] = {
    "q": lambda view: view.cast("q"),
    "Q": lambda view: view.cast("Q"),
    "d": lambda view: view.cast("d"),
}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def dicts(packed: bytes) -> Iterator[dict[str, Any]]:
    """Make the dictionaries of a batch, each when it is asked for.

    Args:
        packed: What `kcap.filament.event.EventColumns.pack` gave.

    Yields:
        One dictionary an event, all its own: a filament may change it.
    """
    # Only the parent writes what is read here, so marshal reads nothing that a stranger wrote.
    of_row, table, keys, names, columns = marshal.loads(packed)  # noqa: S302
    own = [values(Packed(*columns[number])) for _, number in keys]
    parameters = [values(Packed(*columns[number])) for _, number in names]
    plans = [
        (
            _named(keys, own, plan_keys),
            _named(names, parameters, plan_names),
        )
        for plan_keys, plan_names in table
    ]
    # Every column stands in the order of the rows that have a value in it, so the next value is
    # that of the next row which has one. A Python loop over events is what filaments are.
    for plan in memoryview(of_row).cast("i"):
        (mine, sources), (theirs, arguments) = plans[plan]
        event = dict(zip(mine, map(next, sources), strict=True))
        event["params"] = event["kparams"] = dict(zip(theirs, map(next, arguments), strict=True))
        yield event


def _named(
    keys: Sequence[Key], columns: Sequence[Iterator[Any]], plan: Iterable[int]
) -> tuple[tuple[str, ...], tuple[Iterator[Any], ...]]:
    """The names of a plan's values, and where the values come from."""
    return tuple(keys[n][0] for n in plan), tuple(columns[n] for n in plan)


def values(packed: Packed) -> Iterator[Any]:
    """Unpack a column.

    Args:
        packed: The column.

    Returns:
        Its values, one after another.
    """
    form, data, more = packed
    if form == LIST:
        return iter(data)
    if form in {NUMBERS, TIMES}:
        numbers = _VIEWS[str(more)](memoryview(data))
        return iter(numbers) if form == NUMBERS else map(_time, numbers)
    codes = memoryview(bytes(more)).cast("i") if isinstance(more, bytes) else ()
    if form == JSON:
        return map(_structure, map(data.__getitem__, codes))
    entries = [_address(text) for text in data] if form == ADDRESSES else data
    return map(entries.__getitem__, codes)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | str:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return text


def _time(ns: int) -> datetime | int:
    try:
        return _EPOCH + timedelta(microseconds=ns // 1000)
    except OverflowError:
        return ns


def _structure(text: str) -> Any:  # noqa: ANN401  (any JSON)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
