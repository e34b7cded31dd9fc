"""What those who read /proc are asked, and how they answer: bytes of limited length.

A request names a process and what to read below its folder, all at once; the answers come in that
order, so that whoever waits knows which one is late.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

CONTENT_BYTES: Final = 8 << 20
"""What is read of a file where nothing else is said: an argument list may take some MiB."""

FILE_BYTES: Final = 64 << 20
"""The most that is read of one file."""

ITEMS_MAX: Final = 64
"""Items of one request."""

NAME_BYTES: Final = 4096
"""The longest name of an item."""

ELEMENTS_MAX: Final = 65_536
ELEMENTS_BYTES: Final = 32 << 20
"""Entries of one folder that are read, and what they may take; who asks learns how many are not."""

LEFT_OUT: Final = struct.Struct("=I")
"""What an item with ``*`` says at its end: entries that were not read."""

REQUEST: Final = struct.Struct("=IIHBx")
"""Length of the rest, process, items, flags."""
CAREFUL: Final = 1
"""Flag: tell of each item before the next one is read."""

_ITEM: Final = struct.Struct("=BxHI")
"""Kind, length of the name, bytes to read; then the name."""

ANSWER: Final = struct.Struct("=HxxiiI")
"""Item, error, element, length; then the bytes."""
END: Final = 0xFFFF
"""In place of an item: the request is done; with an error where there is no such process."""
WHOLE: Final = -1
"""In place of an element: the item itself is done."""

REQUEST_BYTES: Final = ITEMS_MAX * (_ITEM.size + NAME_BYTES)
"""The longest request."""


NOBODY: Final = 0xFFFFFFFF
"""In place of a process id."""


class Op(enum.IntEnum):
    """What is to be done."""

    CONTENT = 1
    """Read a file of a process."""
    LINK = 2
    """Read a link of a process."""
    NUMBERS = 3
    """List the numbers that a folder of a process holds."""
    CGROUP = 4
    """Find the path of a control group: the name is ``NUMBER:CONTROLLERS``."""
    FILE = 5
    """Read a state file of a container runtime: the name is its path."""
    NAMES = 6
    """List a folder of a container runtime: names ended by zeros."""


class Item(NamedTuple):
    """One thing to read."""

    op: Op
    name: str
    """``*`` in it stands for each number that its folder holds: ``fd/*``, ``task/*/comm``; of the
    threads, for all but the first."""
    most: int = CONTENT_BYTES
    """Bytes to read; the rest is left."""

    @property
    def memory(self) -> bool:
        """Whether this reads the memory of the process, which can make the reader wait."""
        return self.op is Op.CONTENT and self.name == "cmdline"

    @property
    def slow(self) -> bool:
        """Whether this reads a disk."""
        return self.op in {Op.FILE, Op.NAMES}


class Request(NamedTuple):
    """What to read of one process, or of none."""

    pid: int
    """`NOBODY` for what belongs to no process."""
    items: Sequence[Item]


_CONTENTS: Final = re.compile(
    r"stat|status|cmdline|comm|cgroup|mountinfo|net/[a-z0-9_]+|fdinfo/(\d+|\*)"
    r"|task/(\d+|\*)/(comm|stat|status)"
)
_LINKS: Final = re.compile(r"exe|cwd|ns/[a-z_]+|fd/(\d+|\*)")
_NUMBERS: Final = re.compile(r"fd|task")
_CGROUP: Final = re.compile(r"\d{1,20}:[a-z_,=0-9]*")
_RUNTIME: Final = re.compile(
    r"/var/lib/docker/containers/[0-9a-f]{64}/config\.v2\.json"
    r"|/run/containerd/io\.containerd\.runtime\.v2\.task(/[^/\0]+/[0-9a-f]{64}/config\.json)?"
    r"|/(var/lib|run)/containers/storage/overlay-containers/"
    r"([0-9a-f]{64}/userdata/config|containers)\.json"
)
_ALLOWED: Final = {
    Op.CONTENT: _CONTENTS,
    Op.LINK: _LINKS,
    Op.NUMBERS: _NUMBERS,
    Op.CGROUP: _CGROUP,
    Op.FILE: _RUNTIME,
    Op.NAMES: _RUNTIME,
}


def allowed(item: Item) -> bool:
    """Whether an item is one of those that may be asked for.

    The reader may see more than who asks it; so it reads nothing else.

    Args:
        item: The item.

    Returns:
        The same.
    """
    return bool(_ALLOWED[item.op].fullmatch(item.name)) and "/../" not in item.name


def packed(request: Request, *, careful: bool = False) -> bytes:
    """A request as it is sent.

    Args:
        request: The request.
        careful: Each answer is to be sent before the next item is read.

    Returns:
        Its bytes.

    Raises:
        ValueError: It has too many items, or too long a name.
    """
    body = _body(tuple(request.items))
    flags = CAREFUL if careful else 0
    return REQUEST.pack(len(body), request.pid, len(request.items), flags) + body


@lru_cache(maxsize=256)
def _body(wanted: tuple[Item, ...]) -> bytes:
    """What stands behind the head: most requests ask for the same."""
    parts = []
    for item in wanted:
        name = item.name.encode("utf-8", "surrogateescape")
        if len(name) > NAME_BYTES:
            raise ValueError(f"a name of {len(name)} bytes")
        parts.append(_ITEM.pack(item.op, len(name), min(item.most, FILE_BYTES)) + name)
    if len(parts) > ITEMS_MAX:
        raise ValueError(f"{len(parts)} items")
    return b"".join(parts)


@lru_cache(maxsize=256)
def items(body: bytes, count: int) -> tuple[Item, ...]:
    """The items of a request.

    Args:
        body: What stands behind its head.
        count: How many there are.

    Returns:
        The items.

    Raises:
        ValueError: This is no request, or one for what may not be asked.
    """
    found, at = [], 0
    for _ in range(count):
        if at + _ITEM.size > len(body):
            raise ValueError("a request ends early")
        kind, length, most = _ITEM.unpack_from(body, at)
        at += _ITEM.size
        name = body[at : at + length].decode("utf-8", "surrogateescape")
        at += length
        item = Item(Op(kind), name, min(most, FILE_BYTES))
        if not allowed(item):
            raise ValueError(f"{item.name!r} may not be asked for")
        found.append(item)
    if at != len(body):
        raise ValueError("a request's length is wrong")
    return tuple(found)


def numbers(content: bytes) -> list[int]:
    """The answer to `Op.NUMBERS`.

    Args:
        content: Its bytes.

    Returns:
        The numbers, ascending.
    """
    return memoryview(content).cast("I").tolist()


def pack_numbers(found: Iterable[int]) -> bytes:
    """The answer to `Op.NUMBERS`.

    Args:
        found: The numbers.

    Returns:
        Its bytes.
    """
    every = sorted(found)
    return struct.pack(f"={len(every)}I", *every)
