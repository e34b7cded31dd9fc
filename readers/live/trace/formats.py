"""How the records of tracepoints lie in memory: what the kernel says in their ``format`` files.

Fields move from one kernel to the next, so nothing about a record is known before its file was
read. Strings stand in a record in two ways: in an array of bytes of fixed length, or anywhere
behind the fields, where a word of 32 bits says from where and how many (``__data_loc``).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import numpy as np

from kcap.errors import KcapError, LimitError

TYPE: Final = "common_type"
FLAGS: Final = "common_flags"
TID: Final = "common_pid"
"""The kernel calls a thread a process, here as elsewhere."""

COMMON: Final = (TYPE, FLAGS, TID)
"""Fields of every record: which tracepoint, in what surroundings, which thread."""

FILE_BYTES: Final = 64 << 10
"""A longer file is none of the kernel's."""

FIELDS: Final = 128
"""Fields of a tracepoint at most."""

RECORD_BYTES: Final = 4096
"""The fields of a tracepoint lie below; the kernel's rings have no longer records."""

_FIELD: Final = re.compile(
    r"\tfield(?: special)?:(?P<declaration>[^;]+);\toffset:(?P<offset>\d+);\tsize:(?P<size>\d+);"
    r"(?:\tsigned:(?P<signed>[01]);)?"
)
_HEAD: Final = re.compile(r"name: (?P<name>\w+)\nID: (?P<number>\d+)\nformat:\n")
_NAME: Final = re.compile(r"(?P<name>\w+)(?P<array>\[[^]]*\])?$")
_LOCATED: Final = "__data_loc "
_WORDS: Final = (1, 2, 4, 8)


class Format(NamedTuple):
    """How the records of one tracepoint lie in memory."""

    name: str
    """The group's and its own, as ``sched/sched_process_exec``."""
    number: int
    """What its records are known by."""
    layout: np.dtype[np.void]
    """Its fields, by the kernel's names."""
    located: frozenset[str]
    """Fields that say where a string is: from where in their lower half, how long in the upper."""

    def has(self, *names: str) -> bool:
        """Whether there are all of some fields."""
        return all(name in (self.layout.names or ()) for name in names)


def parse(text: str, name: str, file: str) -> Format:
    """Read a ``format`` file.

    Args:
        text: What it says.
        name: The tracepoint, group and name.
        file: The path, for errors.

    Returns:
        The layout.

    Raises:
        KcapError: It is not in the kernel's syntax, or describes what no record can be.
        LimitError: It is far longer than the kernel's are.
    """
    if len(text) > FILE_BYTES:
        raise LimitError(f"a format of {len(text)} bytes", file=file, expected=f"<= {FILE_BYTES}")
    head = _HEAD.match(text)
    if head is None or head["name"] != name.rpartition("/")[2]:
        raise KcapError(
            f"no description of the tracepoint {name}",
            file=file,
            expected="its name, its ID and its fields",
        )
    names: list[str] = []
    formats: list[object] = []
    offsets: list[int] = []
    located: set[str] = set()
    for found in _FIELD.finditer(text):
        field = _field(found["declaration"], int(found["size"]), found["signed"] == "1")
        offset, size = int(found["offset"]), int(found["size"])
        if field is None or field[0] in names:
            continue
        if offset + size > RECORD_BYTES or len(names) >= FIELDS:
            raise LimitError(f"fields of {name} beyond any record", file=file)
        names.append(field[0])
        formats.append(field[1])
        offsets.append(offset)
        if found["declaration"].startswith(_LOCATED):
            located.add(field[0])
    missing = sorted(set(COMMON) - set(names))
    if missing:
        raise KcapError(f"records of {name} have no {', '.join(missing)}", file=file)
    layout = np.dtype({"names": names, "formats": formats, "offsets": offsets})
    return Format(name, int(head["number"]), layout, frozenset(located))


def _field(declaration: str, size: int, signed: bool) -> tuple[str, object] | None:
    """Name and type of a field; None where it is of no fixed size, or nothing we can read."""
    match = _NAME.search(declaration)
    if match is None or not size:
        return None
    name = match["name"]
    if declaration.startswith(_LOCATED):
        return (name, "<u4") if size == 4 else None  # noqa: PLR2004
    if match["array"] is None:
        return (name, f"<{'i' if signed else 'u'}{size}") if size in _WORDS else None
    count = match["array"][1:-1]
    item = size // int(count) if count.isdigit() and int(count) else 1
    if item not in _WORDS:
        return None
    if item == 1:
        return name, (np.uint8, (size,))
    return name, (f"<{'i' if signed else 'u'}{item}", (size // item,))
