"""The blocks of a .scap file: sections, tables and runs of event blocks.

A file is a row of blocks, each with its type and length in front and its length again behind.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Generator, Iterator
from typing import BinaryIO, Final, NamedTuple

import numpy as np

from kcap.errors import DamagedError, KcapError, NotACaptureError, TruncatedError, VersionError
from kcap.readers.scap_links import (
    ALIASES,
    BLOCK_BYTES,
    BROKEN,
    EDGE_BYTES,
    HEAD_BYTES,
    HIGHEST,
    LOWEST,
    SECTION,
    Int64s,
    Links,
    needed,
    plausible,
)
from kcap.readers.textinput import TextInput

MACHINE: Final = 0x201
PROCESSES: Final = {
    0x202: 1,
    0x207: 2,
    0x209: 3,
    0x210: 4,
    0x211: 5,
    0x212: 6,
    0x213: 7,
    0x214: 8,
    0x215: 9,
}
"""Block types of process lists, with their versions."""

FDS: Final = {0x203: 1, 0x218: 2}
"""Block types of lists of file descriptors, with their versions."""

INTERFACES: Final = {0x205: 1, 0x219: 2}
USERS: Final = {0x206: 1, 0x220: 2}

EVENTS: Final = frozenset({0x204, 0x208, 0x216, 0x217, 0x221, 0x222})
"""Block types of events."""

WITH_FLAGS: Final = frozenset({0x208, 0x217, 0x222})
"""Those with 32 bits of flags between processor and event."""

FIRST_VERSION: Final = frozenset({0x204, 0x208})
"""Those whose events do not say how many parameters they have."""

LARGE: Final = frozenset({0x221, 0x222})
"""Those whose parameters have 32-bit lengths."""

RUN_EVENTS: Final = 16_384
"""Longest run of event blocks."""

RUN_BYTES: Final = 4 << 20
"""Where a run of event blocks ends; one block may go beyond."""

PADDING: Final = 32
"""Zero bytes behind the data of a run, so that a header may be read beyond its end."""

_STEP_BYTES: Final = 2 << 20
_EVENT_TYPES: Final = np.array(sorted(EVENTS))
_MAGIC: Final = 0x1A2B3C4D
_MAGIC_SWAPPED: Final = 0x4D3C2B1A
_MAJOR: Final = 1
_SECTION_BYTES: Final = 28
_words = struct.Struct("<II").unpack_from
_word = struct.Struct("<I").unpack_from
_section = struct.Struct("<IHHQ")


class Section(NamedTuple):
    """The start of a section; tables and events of another one do not count any more."""

    version: str
    offset: int


class Table(NamedTuple):
    """Any block without events."""

    type: int
    """Its type, the released number where there is an older one."""
    body: bytes
    offset: int
    """Where the block starts, in bytes of decompressed input."""


class Events(NamedTuple):
    """Consecutive event blocks."""

    data: bytes
    """The blocks, and `PADDING` zero bytes."""
    starts: Int64s
    """Where each block starts in ``data``."""
    ends: Int64s
    """Where its body ends."""
    types: Int64s
    """The block types, released numbers."""
    first: int
    """Number of the first event in the file, from 1."""
    offset: int
    """Where the first block starts, in bytes of decompressed input."""


Item = Section | Table | Events | None


def is_scap(head: bytes) -> bool:
    """Whether an input looks like a .scap file: like pcapng, but with other blocks.

    Args:
        head: Its first bytes, decompressed.

    Returns:
        True where one starts so.
    """
    if len(head) < EDGE_BYTES or _word(head, 0)[0] != SECTION:
        return False
    magic = _word(head, 8)[0]
    if magic == _MAGIC_SWAPPED:
        size, order = struct.unpack_from(">I", head, 4)[0], ">I"
    elif magic == _MAGIC:
        size, order = _word(head, 4)[0], "<I"
    else:
        return False
    if size + 4 > len(head):
        return bool(size == _SECTION_BYTES)
    kind = struct.unpack_from(order, head, size)[0]
    return kind in ALIASES or LOWEST <= kind <= HIGHEST


class _Window:
    """The part of the decompressed input that is at hand."""

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self.input = TextInput(stream, file)
        self.offset = 0
        """Where it starts, in bytes."""
        self.size = 0
        self.ended = False
        self.failure: KcapError | None = None
        """Why compressed input has no more."""
        self._pieces = self.input.pieces()
        self._parts: list[bytes] = []

    def fill(self, count: int) -> bool:
        """Have so many bytes at hand, less at the end; True where more would have to wait."""
        while self.size < count and not self.ended:
            try:
                piece = next(self._pieces, b"")
            except (TruncatedError, DamagedError) as error:
                self.failure = error
                piece = b""
            if piece is None:
                return True
            self.ended = not piece
            self._parts.append(piece)
            self.size += len(piece)
        return False

    @property
    def data(self) -> bytes:
        """The bytes at hand."""
        if len(self._parts) != 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0]

    def drop(self, count: int) -> None:
        """Let go of the first bytes."""
        self._parts = [self.data[count:]]
        self.offset += count
        self.size -= count


class Blocks:
    """The blocks of an input.

    Args:
        stream: The bytes from their start, compressed or not; need not be seekable.
        file: Its name, for errors.
        lenient: Go on behind damage, at the next place that looks like a block.

    Example:
        >>> with open("x.scap", "rb") as stream:
        ...     for item in Blocks(stream, "x.scap").read():
        ...         print(type(item).__name__)
    """

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        self._file = file
        self._lenient = lenient
        self._window = _Window(stream, file)
        self._number = 1
        self.damage: list[DamagedError] = []
        """Damage that was passed over, where lenient; who reads it may empty the list."""

    def head(self, count: int) -> bytes:
        """The start of the decompressed input; to be called before `read`.

        Args:
            count: Bytes wanted.

        Returns:
            So many bytes, or less where the input is shorter.
        """
        return self._window.input.head(count)

    def read(self) -> Iterator[Item]:
        """The blocks, once.

        Yields:
            Sections, tables and runs of events in the order of the file; None before each wait
            for a pipe.

        Raises:
            NotACaptureError: It is no such file, or one of the other byte order.
            VersionError: It is of a later major version.
            TruncatedError: It ends inside a block; everything before was given.
            DamagedError: A block is damaged; everything before was given. Where lenient only
                damage of compressed data is an error: nothing behind it can be had.
            LimitError: The compressed data needs too much memory.
            KcapError: The stream can't be read.
        """
        window = self._window
        self._check_start(self.head(EDGE_BYTES))
        need = _STEP_BYTES
        while True:
            waiting = window.fill(need)
            last = window.ended
            try:
                missing = yield from self._sound(hold=not (waiting or last))
                if last:
                    self._check_rest()
                    break
            except DamagedError as error:
                if not self._lenient:
                    raise
                self.damage.append(error)
                yield from self._resync()
                missing = 0
            need = max(missing, window.size + _STEP_BYTES)
            if waiting:
                yield None
        if window.failure is not None:
            raise window.failure
        if not window.offset:
            raise NotACaptureError("the file is empty", file=self._file, expected="a .scap file")

    def _check_start(self, head: bytes) -> None:
        """Refuse what is no such file, in words that say what it is instead."""
        if len(head) >= EDGE_BYTES and _words(head)[0] == SECTION:
            if _word(head, HEAD_BYTES)[0] == _MAGIC_SWAPPED:
                raise NotACaptureError(
                    "a .scap file of a big-endian machine",
                    file=self._file,
                    expected="one in little-endian order",
                    hint="no tool converts it: print it where it was recorded, with sysdig -j",
                )
            return
        start = SECTION.to_bytes(4, "little")
        if head[:4] != start[: len(head)]:
            raise NotACaptureError(
                "no .scap file", file=self._file, expected="a section header at its start"
            )

    def _sound(self, *, hold: bool) -> Generator[Item, None, int]:
        """Give the whole blocks at hand, up to one that is not; how many bytes that one needs.

        Where ``hold`` is set, a run of events that may become longer stays at hand.
        """
        data = self._window.data
        links = Links(data)
        at = 0
        try:
            while True:
                linked = links.run(at)
                end = int(links.ends[linked[-1]]) if len(linked) else at
                missing = needed(data, end)
                longer = hold and missing > 0
                for item, end_of_item in self._items(data, links, linked, hold=longer):
                    yield item
                    at = end_of_item
                if missing == BROKEN:
                    at = self._behind(data, links, end)
                elif missing:
                    break
                else:
                    kind, size = _words(data, end)
                    body = data[end + HEAD_BYTES : end + size - 4]
                    yield Table(kind, body, self._window.offset + end)
                    at = end + size
        finally:
            self._window.drop(at)
        return missing

    def _behind(self, data: bytes, links: Links, at: int) -> int:
        """Pass a block over that is none, where lenient: where the next one at hand starts."""
        error = self._broken(data, at)
        index = int(np.searchsorted(links.starts, at, "right"))
        if not self._lenient or index == len(links.starts):
            raise error
        self.damage.append(error)
        return int(links.starts[index])

    def _items(
        self, data: bytes, links: Links, linked: Int64s, *, hold: bool
    ) -> Iterator[tuple[Item, int]]:
        """Sections, tables and runs out of linked blocks, each with where it ends in the data."""
        offset = self._window.offset
        starts, ends, types = links.starts[linked], links.ends[linked], links.types[linked]
        is_event = np.isin(types, _EVENT_TYPES)
        turns = np.append(np.flatnonzero(is_event[1:] != is_event[:-1]) + 1, len(linked)).tolist()
        at = 0
        while at < len(linked):
            if is_event[at]:
                turn = turns[bisect_right(turns, at)]
                bytes_end = int(np.searchsorted(ends, starts[at] + RUN_BYTES)) + 1
                stop = min(turn, at + RUN_EVENTS, bytes_end)
                if hold and stop == len(linked) and stop < min(at + RUN_EVENTS, bytes_end):
                    return
                yield self._events(data, starts[at:stop], ends[at:stop], types[at:stop])
                at = stop
            else:
                start, end = int(starts[at]), int(ends[at])
                body = data[start + HEAD_BYTES : end - 4]
                if types[at] == SECTION:
                    yield self._section(body, offset + start), end
                else:
                    yield Table(int(types[at]), body, offset + start), end
                at += 1

    def _events(
        self, data: bytes, starts: Int64s, ends: Int64s, types: Int64s
    ) -> tuple[Events, int]:
        start, end = int(starts[0]), int(ends[-1])
        events = Events(
            data[start:end] + bytes(PADDING),
            starts - start,
            ends - (start + 4),
            types,
            self._number,
            self._window.offset + start,
        )
        self._number += len(starts)
        return events, end

    def _section(self, body: bytes, offset: int) -> Section:
        if len(body) < _section.size or _word(body)[0] != _MAGIC:
            raise DamagedError("no section header", file=self._file, offset=offset)
        _, major, minor, _ = _section.unpack_from(body)
        if major > _MAJOR:
            raise VersionError(
                f"a .scap file of version {major}.{minor}",
                file=self._file,
                offset=offset,
                expected=f"version {_MAJOR}",
                hint="a newer kcap may read it",
            )
        return Section(f"{major}.{minor}", offset)

    def _broken(self, data: bytes, at: int) -> DamagedError:
        """What is wrong with the block at a place."""
        kind, size = _words(data, at)
        if size % 4 or not EDGE_BYTES <= size <= BLOCK_BYTES:
            what = f"a block of type {kind:#x} of {size} bytes"
            expected = f"{EDGE_BYTES} to {BLOCK_BYTES} bytes, a multiple of 4"
        else:
            behind = _word(data, at + size - 4)[0]
            what = f"a block of type {kind:#x} that ends with another length, {behind}"
            expected = str(size)
        offset = self._window.offset + at
        return DamagedError(what, file=self._file, offset=offset, expected=expected)

    def _check_rest(self) -> None:
        """Say what is left at the end: a block that was cut, or one whose length is damaged."""
        window = self._window
        if not window.size or window.failure is not None:
            return
        for start in plausible(window.data, 4).tolist():
            if needed(window.data, start) == 0:
                raise DamagedError(
                    "a block that would go beyond the end of the file",
                    file=self._file,
                    offset=window.offset,
                )
        raise TruncatedError("the file ends inside a block", file=self._file, offset=window.offset)

    def _resync(self) -> Iterator[None]:
        """Go to the next place behind a damaged block that a block starts at."""
        window = self._window
        begin = 1
        while True:
            data = window.data
            for start in plausible(data, begin).tolist():
                while window.fill(start + _words(data, start)[1]):
                    yield None
                if needed(window.data, start) == 0:
                    window.drop(start)
                    return
            # A block may start in the last bytes that were looked at.
            window.drop(max(len(data) - HEAD_BYTES + 1, 0))
            begin = 0
            if window.ended and window.size < EDGE_BYTES:
                window.drop(window.size)
                return
            while window.fill(_STEP_BYTES):
                yield None
