"""The blocks of a pcapng file: what describes sections, interfaces and processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import construct
import numpy as np

from kcap.packets.headers import View

SECTION: Final = 0x0A0D0D0A
INTERFACE: Final = 1
PACKET: Final = 2
"""The obsolete kind."""
SIMPLE: Final = 3
NAMES: Final = 4
STATISTICS: Final = 5
ENHANCED: Final = 6
PROCESS: Final = 0x80000001
"""Darwin's description of a process."""
CUSTOM: Final = (0x00000BAD, 0x40000BAD)

KNOWN: Final = (SECTION, INTERFACE, PACKET, SIMPLE, NAMES, STATISTICS, ENHANCED, PROCESS, *CUSTOM)
"""Types that blocks are told by where they are sought behind damage."""

EDGE_BYTES: Final = 12
"""Type and both lengths of a block."""

BLOCK_BYTES: Final = 16 << 20
"""Longest block that is read."""

INTERFACES: Final = 1 << 16
"""Interfaces of a section."""

MAGIC: Final = 0x1A2B3C4D

_WIRESHARK: Final = 32622
"""Wireshark's number among private enterprises; its entries are little-endian in any section."""
_ENTRY_PROCESS: Final = 3
_OPTIONS_MAX: Final = 256
_TEXT_BYTES: Final = 64 << 10
_SOUGHT: Final = 512
"""Places where a block is sought at first."""
_NAME_BYTES: Final = 1024
"""Longest name of an interface."""
_PROCESS_BYTES: Final = 512
_DECIMAL_MAX: Final = 30
_BINARY_MAX: Final = 63


_MAGICS: Final = {MAGIC.to_bytes(4, "little"): "<", MAGIC.to_bytes(4, "big"): ">"}


def order(head: bytes) -> str | None:
    """The byte order of a section.

    Args:
        head: How its block starts.

    Returns:
        ``<`` or ``>``; None for what is no section.
    """
    return _MAGICS.get(head[8:12]) if begins(head) else None


def begins(head: bytes) -> bool:
    """Whether something begins as a section does.

    Args:
        head: Its first bytes, the byte order of the section among them.

    Returns:
        True where it does.
    """
    return head[:4] == SECTION.to_bytes(4, "big") and head[8:12] in _MAGICS


def seek(data: bytes, view: View, after: int, order: str) -> int:
    """Find a block behind damage.

    Args:
        data: The bytes.
        view: The same, to read numbers from.
        after: Where the damage begins.
        order: ``<`` or ``>``, of the section before.

    Returns:
        Where the next one begins, behind the first byte of the damage; 0 where there is none.
    """
    stop = len(data) - EDGE_BYTES + 1
    start, step = after + 1, _SOUGHT
    while start < stop:
        # Damage is mostly short, and there may be much of it.
        found = _block(data, view, start, min(start + step, stop), order)
        if found:
            return found
        start, step = start + step, step * 8
    return 0


def _block(data: bytes, view: View, start: int, stop: int, order: str) -> int:
    """The first block that begins between two places; 0 for none."""
    places = np.arange(start, stop, dtype=np.int64)
    here = places[np.isin(view.read(f"{order}u4", places), KNOWN)]
    sections = here[view.read(f"{order}u4", here) == SECTION]
    size = view.read(f"{order}u4", here + 4)
    sound = (size >= EDGE_BYTES) & (size & 3 == 0) & (here + size <= len(data))
    here, size = here[sound], size[sound]
    whole = here[view.read(f"{order}u4", here + size - 4) == size].tolist()
    found = (at for at in sections.tolist() if data[at + 8 : at + 12] in _MAGICS)
    return int(min([*whole[:1], *itertools.islice(found, 1)], default=0))


class BadBlockError(ValueError):
    """A block cannot be understood."""


class Interface(NamedTuple):
    """What a section says of an interface."""

    link_type: int
    snap_bytes: int
    name: str
    """Empty where none is said."""
    resolution: int
    """As ``if_tsresol`` has it: a negative power of ten, or with bit 7 of two; -1 for not known."""
    offset_s: int


UNKNOWN: Final = Interface(0xFFFF, 0, "", -1, 0)
"""An interface whose description can't be understood."""


class Process(NamedTuple):
    """What a file says of a process."""

    pid: int
    texts: dict[str, str]
    numbers: dict[str, int]

    @property
    def size(self) -> int:
        """What it takes to be kept, roughly, in characters."""
        return _PROCESS_BYTES + sum(map(len, self.texts.values()))


def _structs(order: str) -> dict[str, construct.Struct]:
    big = order == ">"
    u16, u32 = (
        (construct.Int16ub, construct.Int32ub) if big else (construct.Int16ul, construct.Int32ul)
    )
    option = construct.Struct(
        "code" / u16,
        "size" / u16,
        "value" / construct.Bytes(construct.this.size),
        "pad" / construct.Bytes(-construct.this.size % 4),
    )
    return {
        "option": option,
        "section": construct.Struct(
            "magic" / u32, "major" / u16, "minor" / u16, "length" / construct.Bytes(8)
        ),
        "interface": construct.Struct("link_type" / u16, "reserved" / u16, "snap_bytes" / u32),
        "statistics": construct.Struct("interface" / u32, "high" / u32, "low" / u32),
        "process": construct.Struct("pid" / u32),
        "custom": construct.Struct("enterprise" / u32),
        "entry": construct.Struct("kind" / u32, "size" / u32),
    }


_STRUCTS: Final = {order: _structs(order) for order in "<>"}


def _parse(order: str, name: str, body: bytes) -> tuple[Any, bytes]:
    """A structure, and what is behind it."""
    form = _STRUCTS[order][name]
    size = form.sizeof()
    if len(body) < size:
        raise BadBlockError(f"a block of {name} that is too short")
    return form.parse(body[:size]), body[size:]


def options(raw: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The options of a block, up to where they end or make no sense.

    Args:
        raw: Their bytes.
        order: ``<`` or ``>``.

    Yields:
        Code and value of each.
    """
    big = "big" if order == ">" else "little"
    at = 0
    for _ in range(_OPTIONS_MAX):
        if at + 4 > len(raw):
            return
        code = int.from_bytes(raw[at : at + 2], big)  # type: ignore[arg-type]
        size = int.from_bytes(raw[at + 2 : at + 4], big)  # type: ignore[arg-type]
        value = raw[at + 4 : at + 4 + size]
        if not code or len(value) < size:
            return
        yield code, value
        at += 4 + size + -size % 4


def text(value: bytes) -> str:
    """Text of an option, undecodable bytes escaped.

    Args:
        value: Its bytes.

    Returns:
        The text, at most 64 KiB of it.
    """
    return value[:_TEXT_BYTES].rstrip(b"\0").decode("utf-8", "backslashreplace")


def section(body: bytes, order: str) -> dict[str, str]:
    """Read what a section says of itself.

    Args:
        body: The block's, from the magic on.
        order: ``<`` or ``>``.

    Returns:
        ``hardware``, ``os``, ``application`` and ``version``, as far as there.

    Raises:
        BadBlockError: It is too short, or of a version that nobody has written yet.
    """
    header, rest = _parse(order, "section", body)
    if header.major != 1:
        raise BadBlockError(f"a section of version {header.major}.{header.minor}")
    names = {2: "hardware", 3: "os", 4: "application"}
    found = {names[code]: text(v) for code, v in options(rest, order) if code in names}
    return {**found, "version": f"{header.major}.{header.minor}"}


def interface(body: bytes, order: str) -> Interface:
    """Read what a section says of an interface.

    Args:
        body: The block's.
        order: ``<`` or ``>``.

    Returns:
        The interface.

    Raises:
        BadBlockError: It is too short, or its clock is finer than any.
    """
    header, rest = _parse(order, "interface", body)
    name, resolution, offset_s = "", 6, 0
    big = order == ">"
    for code, value in options(rest, order):
        if code == 2:  # noqa: PLR2004
            name = text(value[:_NAME_BYTES])
        elif code == 9 and len(value) == 1:  # noqa: PLR2004
            resolution = value[0]
        elif code == 14 and len(value) == 8:  # noqa: PLR2004
            offset_s = int.from_bytes(value, "big" if big else "little", signed=True)
    limit = _BINARY_MAX if resolution & 0x80 else _DECIMAL_MAX
    if resolution & 0x7F > limit:
        raise BadBlockError("a clock of an impossible resolution")
    return Interface(header.link_type, header.snap_bytes, name, resolution, offset_s)


def statistics(body: bytes, order: str) -> tuple[int, int]:
    """Read how many packets were dropped on an interface.

    Args:
        body: The block's.
        order: ``<`` or ``>``.

    Returns:
        Number of the interface, and of packets.

    Raises:
        BadBlockError: It is too short.
    """
    header, rest = _parse(order, "statistics", body)
    big = order == ">"
    dropped = 0
    for code, value in options(rest, order):
        if code in (5, 7) and len(value) == 8:  # noqa: PLR2004
            dropped += int.from_bytes(value, "big" if big else "little")
    return header.interface, dropped


_TEXTS: Final = {2: "name", 3: "exe", 4: "cmdline", 7: "user"}
_NUMBERS: Final = {5: ("ppid", 4), 6: ("uid", 4), 9: ("start_ns", 8)}


def process(body: bytes, order: str, *, darwin: bool) -> Process:
    """Read what describes a process.

    Args:
        body: The block's, or of Wireshark's entry in a custom block.
        order: ``<`` or ``>``.
        darwin: Whether it is the older kind, which has a name and an id of its binary only.

    Returns:
        The process.

    Raises:
        BadBlockError: It is too short.
    """
    header, rest = _parse(order, "process", body)
    texts: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for code, value in options(rest, order):
        if code == 2 or (code in _TEXTS and not darwin):  # noqa: PLR2004
            spelled = text(value.rstrip(b"\0").replace(b"\0", b" ")) if code == 4 else text(value)  # noqa: PLR2004
            texts.setdefault(_TEXTS[code], spelled)
        elif not darwin and code in _NUMBERS and len(value) == _NUMBERS[code][1]:
            number = int.from_bytes(value, "little" if order == "<" else "big")
            if number >> 63 == 0:
                numbers.setdefault(_NUMBERS[code][0], number)
    return Process(header.pid, texts, numbers)


def custom(body: bytes, order: str) -> Process | None:
    """Read Wireshark's description of a process out of a custom block.

    Args:
        body: The block's.
        order: ``<`` or ``>``, of the section.

    Returns:
        The process; None for a custom block of something else.

    Raises:
        BadBlockError: It is too short.
    """
    header, rest = _parse(order, "custom", body)
    if header.enterprise != _WIRESHARK:
        return None
    entry, rest = _parse("<", "entry", rest)
    if entry.kind != _ENTRY_PROCESS:
        return None
    if entry.size > len(rest):
        raise BadBlockError("an entry that is longer than its block")
    return process(rest[: entry.size], "<", darwin=False)
