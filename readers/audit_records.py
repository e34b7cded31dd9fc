"""Records of the Linux audit system: their text, and the values in it.

A record is what the kernel sends to its listeners, ``audit(TIME:SERIAL): FIELDS``, and what
auditd writes behind ``type=TYPE msg=``. Fields are ``name=value`` with a space between. What a
process could choose stands in quotes, or in hexadecimal where it holds a space, a quote or
anything that is no visible ASCII: so it can never look like another field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib import resources
from typing import Final, NamedTuple

RECORD_BYTES: Final = 8970
"""Longest record that the kernel's own tools take (MAX_AUDIT_MESSAGE_LENGTH)."""

LINE_BYTES: Final = 4 * RECORD_BYTES
"""Longest line of a log: with the names that auditd may add to a record (``log_format``)."""

_LINE: Final = re.compile(rb"(?:node=(\S{1,256}) )?type=([A-Z0-9_\[\]]{1,64}) msg=")
_STAMP: Final = re.compile(rb"audit\((\d{1,10})\.(\d{3}):(\d{1,10})\): ?")
_FIELDS: Final = re.compile(rb"(?:(?<= )|^)([A-Za-z0-9_-]{1,64})=([^ ]*)")
_UNKNOWN_TYPE: Final = re.compile(r"UNKNOWN\[(\d{1,5})\]")
_HEX: Final = re.compile(rb"(?:[0-9A-F]{2})+")
_DIGITS: Final = 20
_NUMBER: Final = re.compile(rb"-?\d{1,20}")
_BITS: Final = re.compile(rb"[0-9a-f]{1,16}")

_SECONDS_MAX: Final = (1 << 63) // 10**9 - 1
_ENRICHED: Final = b"\x1d"
"""Behind it stands what auditd has added: the same values once more, as names."""

_NOTHING: Final = frozenset({b"(null)", b"(none)", b"?"})
"""Values that say that there is none; what a process chose stands in quotes."""

_UNTOLD: Final = frozenset({b"<no_memory>", b"<too_long>"})
"""What the kernel says in place of a path that it cannot tell; a whole path begins otherwise."""

_QUOTED: Final = 60


class BadRecordError(Exception):
    """What is said to be an audit record is none, or lacks a field."""


class Record(NamedTuple):
    """One record: a part of an event."""

    type: str
    """``SYSCALL``, ``PATH`` …; ``UNKNOWN[1399]`` for a type that has no name here."""
    ms: int
    """When the event was, ms since 1970 UTC."""
    serial: int
    """What the records of an event have in common, beside the time."""
    text: bytes
    """The fields."""
    node: bytes = b""
    """The machine, where the log of several is one."""
    names: bytes = b""
    """What auditd has added: some of the values once more, as names."""

    def fields(self) -> dict[bytes, bytes]:
        """The fields, as they are spelled.

        Returns:
            Name to value. Words that are no fields are left out, as ``avc:  denied`` begins with;
            of several fields of a name the first counts.
        """
        return dict(reversed(_FIELDS.findall(self.text)))


@cache
def types() -> Mapping[int, str]:
    """The names of the types of records, by number."""
    text = resources.files("kcap.readers.data").joinpath("audit_types.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return {int(number): name for number, name in rows}


@cache
def _numbers() -> Mapping[str, int]:
    return {name: number for number, name in types().items()}


@lru_cache(maxsize=4096)
def type_name(number: int) -> str:
    """The name of a type of records.

    Args:
        number: Its number.

    Returns:
        The name, as auditd spells it.
    """
    return types().get(number, f"UNKNOWN[{number}]")


@lru_cache(maxsize=4096)
def type_number(name: str) -> int | None:
    """The number of a type of records.

    Args:
        name: Its name, as auditd spells it.

    Returns:
        The number, None for a name that is not known here.
    """
    unknown = _UNKNOWN_TYPE.fullmatch(name)
    if unknown:
        return int(unknown[1])
    return _numbers().get(name)


def parse(kind: str, message: bytes, node: bytes = b"") -> Record:
    """Read a record as the kernel sends it.

    Args:
        kind: The name of its type.
        message: ``audit(TIME:SERIAL): FIELDS``.
        node: The machine that it came from, where it says so.

    Returns:
        The record.

    Raises:
        BadRecordError: It is none.
    """
    stamp = _STAMP.match(message)
    if stamp is None:
        raise BadRecordError(f"no audit(SECONDS.MS:SERIAL): in {quoted(message)}")
    if len(message) > LINE_BYTES:
        raise BadRecordError(f"a record of {len(message)} bytes, more than {LINE_BYTES}")
    seconds, ms, serial = map(int, stamp.groups())
    if seconds > _SECONDS_MAX:
        raise BadRecordError(f"a time beyond the year 2262: {seconds} s")
    text, _, names = message[stamp.end() :].partition(_ENRICHED)
    return Record(kind, seconds * 1000 + ms, serial, text.rstrip(b"\n\0 "), node, names)


def parse_line(line: bytes) -> Record:
    """Read a line of audit.log, or of what ``ausearch --raw`` prints.

    Args:
        line: The line, without its newline.

    Returns:
        The record.

    Raises:
        BadRecordError: It is none.
    """
    start = _LINE.match(line)
    if start is None:
        raise BadRecordError(f"no type=TYPE msg= in {quoted(line)}")
    node, kind = start.groups()
    return parse(kind.decode("ascii"), line[start.end() :], node or b"")


def quoted(raw: bytes) -> str:
    """The beginning of something, for a message; never all, it may hold secrets.

    Args:
        raw: Any bytes.

    Returns:
        Printable text in quotes.
    """
    return repr(raw[:_QUOTED].decode("latin-1")) + ("…" if len(raw) > _QUOTED else "")


def untrusted(value: bytes | None) -> bytes | None:
    """What a process has chosen: a path, a name, an argument.

    Args:
        value: The field's value, in quotes or in hexadecimal; None where the record has no such
            field.

    Returns:
        The exact bytes, None where the kernel says that there are none.
    """
    if value is None or value in _NOTHING:
        return None
    if value.startswith(b'"'):
        return value[1:].removesuffix(b'"')
    if _HEX.fullmatch(value):
        return bytes.fromhex(value.decode("ascii"))
    return value


def whole_path(value: bytes | None) -> bytes | None:
    """A path that the kernel has put together: of a program, of the working directory.

    Args:
        value: The field's value, as of `untrusted`.

    Returns:
        The path, None where the kernel could not tell it.
    """
    path = untrusted(value)
    return None if path in _UNTOLD else path


def number(fields: Mapping[bytes, bytes], name: bytes) -> int:
    """A number that must be there.

    Args:
        fields: The fields of a record.
        name: The field's name.

    Returns:
        The number.

    Raises:
        BadRecordError: It is missing, or no number.
    """
    found = optional(fields, name)
    if found is None:
        raise BadRecordError(f"no field {name.decode('ascii')}")
    return found


def optional(fields: Mapping[bytes, bytes], name: bytes) -> int | None:
    """A number that may be there.

    Args:
        fields: The fields of a record.
        name: The field's name.

    Returns:
        The number, None where it is missing.

    Raises:
        BadRecordError: It is no number.
    """
    value = fields.get(name)
    if value is None:
        return None
    if value.isdigit() and len(value) <= _DIGITS:  # the most by far
        return int(value)
    if value in _NOTHING:
        return None
    if value == b"unset":
        return _UNSET
    if not _NUMBER.fullmatch(value):
        raise BadRecordError(f"{name.decode('ascii')} is no number: {quoted(value)}")
    return int(value)


_UNSET: Final = (1 << 32) - 1
"""The id of nobody."""


def bits(fields: Mapping[bytes, bytes], name: bytes, base: int = 16) -> int | None:
    """A word of the kernel, spelled without a prefix.

    Args:
        fields: The fields of a record.
        name: The field's name.
        base: 16, or 8 for what is octal.

    Returns:
        The number, None where it is missing.

    Raises:
        BadRecordError: It is no number.
    """
    value = fields.get(name)
    if value is None:
        return None
    value = value.removeprefix(b"0x")
    if not _BITS.fullmatch(value):
        raise BadRecordError(f"{name.decode('ascii')} is no word: {quoted(value)}")
    try:
        return int(value, base)
    except ValueError as error:
        raise BadRecordError(f"{name.decode('ascii')}: {error}") from error
