"""System calls that somebody has redirected: the kernel's table of them, as it is.

The kernel tells where its table and its own code are (/proc/kallsyms, where it is built with all
symbols). An entry that leads out of that code is a hook. From Linux 6.9 on x86-64 no longer calls
through the table; a kernel that hides its symbols from us can't be looked at, which is said.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

TABLE: Final = "sys_call_table"
_TEXT: Final = ("_stext", "_etext")
_CALLS_MAX: Final = 512
_WIDTH: Final = 8
_MODULES_MAX: Final = 4096

Peek = Callable[[int], bytes | None]
"""Gives 4,096 bytes of the kernel's memory."""


class Hook(NamedTuple):
    """An entry of the table that leads elsewhere."""

    number: int
    address: int
    owner: str | None
    """The module that it leads into, None where it belongs to none."""


class Symbols(NamedTuple):
    """What is to be known of the kernel's layout."""

    table: int
    start: int
    end: int
    """The kernel's own code, half open."""


def symbols(path: str = "/proc/kallsyms") -> Symbols | None:
    """Find the table and the kernel's code.

    Args:
        path: The kernel's symbols.

    Returns:
        Their addresses; None where the kernel does not tell.
    """
    wanted = {TABLE, *_TEXT}
    found: dict[str, int] = {}
    try:
        with Path(path).open(encoding="ascii", errors="replace") as file:
            for line in file:
                address, _, name = line.rstrip("\n").split(" ", 2)
                if name in wanted:
                    found[name] = int(address, 16)
    except (OSError, ValueError):
        return None
    if not all(found.get(name) for name in wanted):  # zero: hidden from this user
        return None
    return Symbols(found[TABLE], found[_TEXT[0]], found[_TEXT[1]])


def hooks(peek: Peek, known: Symbols, modules: str = "/proc/modules") -> list[Hook] | None:
    """Look at the table.

    Args:
        peek: Reads the kernel's memory.
        known: Where the table and the kernel's code are.
        modules: The loaded modules.

    Returns:
        The entries that lead elsewhere; None where the table can't be read.
    """
    page = peek(known.table)
    if page is None:
        return None
    return [
        Hook(number, address, _owner(address, modules))
        for number, address in enumerate(_entries(page))
        if not known.start <= address < known.end
    ]


def _entries(page: bytes) -> Iterator[int]:
    """The entries; what follows the table are no addresses of the kernel."""
    for (address,) in struct.iter_unpack("<Q", page[: _CALLS_MAX * _WIDTH]):
        if address < 1 << 63:
            return
        yield address


def _owner(address: int, modules: str) -> str | None:
    try:
        with Path(modules).open(encoding="ascii", errors="replace") as file:
            for line, _ in zip(file, range(_MODULES_MAX), strict=False):
                name, size, *_, base = line.split()[:6]
                if int(base, 16) <= address < int(base, 16) + int(size):
                    return name
    except (OSError, ValueError):
        return None
    return None
