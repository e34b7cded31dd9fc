"""Values by which events belong together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from kcap.detect.event import field
from kcap.detect.rule import Event, Identity
from kcap.filter.values import Named, fold

Key = tuple[Hashable, ...]

_CAUSE_BYTES: Final = 100

_OF_A_HOST: Final = frozenset({"pid", "tid", "ppid", "session", "arg:pid", "arg:ppid", "arg:tid"})
"""Columns whose numbers each host gives anew: equal ones of two hosts are not the same thing."""


def key_of(event: Event, fields: Sequence[str], era: int | None = None) -> Key | None:
    """The values of some fields.

    Args:
        event: The event.
        fields: The fields.
        era: Of the fields.

    Returns:
        The values; None where one of them is missing: such an event belongs to no other.
    """
    found = []
    for name in fields:
        value = event.field(name, era)
        if value is None:
            return None
        found.append(_hashable(value))
    return tuple(found)


def within_host(fields: Iterable[str], era: int | None = None) -> bool:
    """Whether values of some fields are the same thing only on one host.

    Args:
        fields: The fields.
        era: Of the fields.

    Returns:
        True where one is the number of a process, a thread or a session.

    Raises:
        FilterError: One is no field.
    """
    found = [field(name, era)[1].field.sources for name in fields]
    return any(source.column in _OF_A_HOST for sources in found for source in sources)


def folded(key: Key) -> Key:
    """A key that is the same for texts that differ only in case.

    Args:
        key: Any.

    Returns:
        It, its texts as `kcap.filter.values.fold` has them.
    """
    return tuple(fold(value) if isinstance(value, str) else value for value in key)


def _hashable(value: Any) -> Hashable:  # noqa: ANN401 - any value
    """What equal values share: True is not 1."""
    if isinstance(value, Named):
        return value.number
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, bool):
        return "true" if value else "false", bool
    if isinstance(value, Mapping):
        return tuple((name, _hashable(value[name])) for name in sorted(value))
    return value if isinstance(value, Hashable) else str(value)


def plain(value: Any) -> Any:  # noqa: ANN401 - any value
    """A value of the filter language as JSON can have it.

    Args:
        value: Any.

    Returns:
        Numbers as numbers, addresses and names of numbers as text.
    """
    if isinstance(value, Named):
        return value.text
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def causes_size(causes: Sequence[Identity]) -> int:
    """About how many bytes the events that another is about take: an alert may have many.

    Args:
        causes: The events.

    Returns:
        Bytes beyond those of a single one.
    """
    return _CAUSE_BYTES * max(len(causes) - 1, 0)


def size_of(values: Iterable[Any]) -> int:
    """About how many bytes values take.

    Args:
        values: Any.

    Returns:
        Bytes, the same for the same values everywhere.
    """
    total = 0
    for value in values:
        if isinstance(value, str):
            total += 50 + len(value)
        elif isinstance(value, list | tuple):
            total += 56 + size_of(value)
        else:
            total += 32
    return total
