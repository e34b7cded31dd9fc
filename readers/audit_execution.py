"""Executions of programs in audit records: the arguments, which may take many records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kcap import limits
from kcap.readers.audit_paths import Paths, file_of
from kcap.readers.audit_records import BadRecordError, Record, untrusted

ARGUMENTS_BYTES: Final = limits.VALUE_BYTES - 4096
"""Bytes of a program's arguments that are kept, a byte for the end of each among them."""

_WORD: Final = re.compile(rb"a(\d{1,10})(_len|\[\d{1,10}\])?=(.*)", re.DOTALL)
_COUNT: Final = re.compile(rb"argc=(\d{1,10})")


class Execution(NamedTuple):
    """What is known of a program that was executed."""

    arguments: dict[str, Any]
    """Arguments of the event, by name."""
    command_line: bytes | None
    missing: list[str]
    """Types of records that should be there."""


class Arguments(NamedTuple):
    """A program's arguments."""

    items: list[bytes]
    """As many as fit; a place says how many are, or how much is, missing there."""
    total_bytes: int
    """Bytes of all that are known, with a byte for the end of each."""
    complete: bool
    """Whether all of them were told."""


def read(records: Mapping[str, Sequence[Record]], paths: Paths, exe: bytes | None) -> Execution:
    """Make the values of an execution.

    Args:
        records: The records of the event by type.
        paths: The files of the event.
        exe: The file that runs now: of a script, its interpreter.

    Returns:
        The values.

    Raises:
        BadRecordError: A record is none of the kernel's.
    """
    found: dict[str, Any] = {"pathname": exe, "pwd": paths.directory}
    if paths.named:
        found["cmdpath"] = paths.named[0].name
    found |= file_of(paths, exe)
    missing = [] if "CWD" in records else ["CWD"]
    told = arguments(records.get("EXECVE", ()))
    line = None
    if told.items:
        found |= {"argv": told.items, "argv_bytes": told.total_bytes}
        line = b" ".join(told.items)
    if not told.complete:
        missing.append("EXECVE")
    return Execution(found, line, missing)


def arguments(records: Sequence[Record]) -> Arguments:
    """Read the arguments of a program.

    A long one stands in pieces, each in quotes or in hexadecimal by itself, in records that follow
    each other.

    Args:
        records: Records of type EXECVE, in their order.

    Returns:
        The arguments.

    Raises:
        BadRecordError: A record is none of the kernel's.
    """
    count = 0
    pieces: dict[int, list[bytes]] = {}
    lengths: dict[int, int] = {}
    for word in (word for record in records for word in record.text.split(b" ") if word):
        if found := _COUNT.fullmatch(word):
            count = int(found[1])
            continue
        field = _WORD.fullmatch(word)
        if field is None:
            raise BadRecordError(f"no argument: {word[:40]!r}")
        place, part, value = int(field[1]), field[2], field[3]
        if part == b"_len":
            lengths[place] = int(value)
        else:
            pieces.setdefault(place, []).append(untrusted(value) or b"")
    whole = {place: b"".join(parts) for place, parts in pieces.items()}
    complete = count == len(whole) > 0 and all(
        # The length is that of the text in the record: of hexadecimal twice as much.
        size in (len(whole[place]), 2 * len(whole[place]))
        for place, size in lengths.items()
        if place in whole
    )
    total = sum(map(len, whole.values())) + len(whole)
    return Arguments(_fitting(whole, total, count), total, complete)


def _fitting(whole: Mapping[int, bytes], total: int, count: int) -> list[bytes]:
    """The arguments, as far as they fit, with a word where something is missing."""
    items: list[bytes] = []
    expected = used = 0
    for place in sorted(whole):
        if place > expected:
            items.append(f"…[{place - expected} arguments]…".encode())
        item = whole[place]
        left = ARGUMENTS_BYTES - used
        if len(item) >= left or len(items) >= limits.LIST_VALUE_ITEMS - 3:
            kept = item[: max(0, left - 1)]
            dropped = total - used - len(kept)
            items.append(kept + f"…[{dropped} bytes]…".encode())
            return items
        items.append(item)
        used += len(item) + 1
        expected = place + 1
    if count > expected:
        items.append(f"…[{count - expected} arguments]…".encode())
    return items
