"""Audit records that are an event of their own: logins, changes of rules, crashes, denials.

Programs make many of them, and spell them freely: all that looks like a field becomes an argument.
"""

from __future__ import annotations

import re
from typing import Any, Final

from kcap.readers.audit_records import Record, untrusted

NUMBERS: Final = {b"pid": "pid", b"ppid": "ppid", b"uid": "uid", b"gid": "gid"}
"""Fields with a number, and the columns that they are."""

TEXTS: Final = {b"comm": "process_name", b"exe": "exe"}
"""Fields with a text that a process chose, and the columns that they are."""

RENAMED: Final = {b"auid": "loginuid", b"ses": "sessionid"}
"""Fields and the names of the arguments that say the same elsewhere."""

FIELDS_MAX: Final = 256
"""Fields of a record that become arguments; what follows stands in the last of them."""

_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]{0,17})")
_NAME: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_FIRST: Final = "message"


def read(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a record says.

    Args:
        record: The record.

    Returns:
        Values of columns, and arguments by name. Words before the first field are ``message``;
        others belong to the field before them.
    """
    columns: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for name, raw in _fields(record.text):
        number = int(raw) if _NUMBER.fullmatch(raw) else None
        if name in NUMBERS and number is not None:
            columns.setdefault(NUMBERS[name], number)
        elif name in TEXTS:
            value = untrusted(raw)
            if value is not None:
                columns.setdefault(TEXTS[name], value)
        else:
            plain = RENAMED.get(name, name.decode("ascii"))
            arguments.setdefault(plain, untrusted(raw) if number is None else number)
    return columns, arguments


def _fields(text: bytes) -> list[tuple[bytes, bytes]]:
    """The fields; those in what a program says, ``msg='op=login res=success'``, among them."""
    found: list[tuple[bytes, bytes]] = [(_FIRST.encode(), b"")]
    for word in text.split(b" "):
        plain = word.removeprefix(b"msg='")
        name, equals, value = plain.partition(b"=")
        if equals and _NAME.fullmatch(name) and len(found) <= FIELDS_MAX:
            found.append((name, value))
        elif plain:
            last, before = found[-1]
            found[-1] = (last, before + b" " + plain if before else plain)
    return [(name, _bare(value)) for name, value in found if value or name != _FIRST.encode()]


def _bare(value: bytes) -> bytes:
    """A value without the quote that ends what a program says."""
    return value.removesuffix(b"'") if not value.startswith(b"'") else value
