"""The frame of a Fibratus capture: one stream of sections behind a header.

The whole file is compressed as one stream that is flushed once a second and has no index, no
checksum and no end mark: a stream that ends between two sections is whole as far as it can tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from struct import Struct
from typing import BinaryIO, Final, NamedTuple

from kcap import limits
from kcap.errors import DamagedError, KcapError, NotACaptureError, TruncatedError, VersionError
from kcap.readers.fibratus_state import HANDLES
from kcap.readers.fibratus_values import Order, order
from kcap.readers.textinput import TextInput

MAGICS: Final = {b"sutarbif": "<", b"fibratus": ">"}
"""First bytes of a capture to its byte order."""

EVENT: Final = 3
"""Section type of an event."""

EVENT_BYTES: Final = 8 << 20
"""Longest event that is believed; the writer's own lengths allow no useful one of that size."""

HANDLES_MAX: Final = 1 << 20
"""Most handles of a snapshot that are believed."""

_HEADER_BYTES: Final = 18
_SECTION_BYTES: Final = 10
_MAJORS: Final = range(1, 4)
_VERSIONS: Final = range(1, 3)
_OLD_HANDLE_BYTES: Final = 20
_EVENT_START: Final = re.compile(rb"\x03[\x01\x02]\x00{4}")


class Section(NamedTuple):
    """An event's section, or one handle of the handle section."""

    kind: int
    version: int
    offset: int
    """Where its content starts in the decompressed stream."""
    data: bytes


class Sections:
    """The sections of a capture.

    Args:
        stream: The capture from its start; need not be seekable.
        file: Its name, for errors.
    """

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self._input = TextInput(stream, file)
        self._file = file
        self._pieces = self._input.pieces()
        self._buffer = b""
        self._at = 0
        self._start = 0
        self._handles = 0
        self._handle_version = 1
        self._began = False
        self.major = 0
        self.minor = 0
        self.order: Order = order("<")

    def head(self, count: int) -> bytes:
        """The start of the decompressed stream; to be asked for before anything is read.

        Args:
            count: Bytes wanted.

        Returns:
            So many bytes, or less where there are no more.
        """
        return self._input.head(count)

    @property
    def offset(self) -> int:
        """Position in the decompressed stream."""
        return self._start + self._at

    def read_header(self) -> None:
        """Read the header.

        Raises:
            NotACaptureError: There is none.
            VersionError: It is of a version that is not known.
            KcapError: The stream can't be read.
        """
        for _ in self._fill(_HEADER_BYTES):
            pass
        raw = self._take(_HEADER_BYTES)
        sign = MAGICS.get(raw[:8])
        if sign is None or len(raw) < _HEADER_BYTES:
            raise NotACaptureError("no Fibratus capture", file=self._file, offset=0)
        self.order = order(sign)
        self.major, self.minor = raw[8], raw[9]
        if self.major not in _MAJORS:
            raise VersionError(
                f"a Fibratus capture of version {self.major}.{self.minor}",
                file=self._file,
                offset=8,
                expected="version 1 to 3",
            )

    def read(self) -> Iterator[Section | None]:
        """The sections that follow; may be asked for again after an error.

        Yields:
            Sections in order; None before each wait for a pipe.

        Raises:
            TruncatedError: The stream ends inside one.
            DamagedError: What stands there is none.
            KcapError: The stream can't be read.
        """
        head = Struct(f"{self.order.sign}BBII")
        while True:
            while self._handles:
                yield from self._handle()
            yield from self._fill(_SECTION_BYTES)
            if self._at == len(self._buffer):
                return
            if len(self._buffer) - self._at < _SECTION_BYTES:
                raise self._truncated()
            kind, version, count, size = head.unpack_from(self._buffer, self._at)
            known = version in _VERSIONS or not self._began
            if kind == EVENT and known and not count and size <= EVENT_BYTES:
                if version not in _VERSIONS and not self._began:
                    raise VersionError(
                        f"events of version {version}, which no released Fibratus writes",
                        file=self._file,
                        offset=self.offset,
                        expected="version 1 or 2",
                    )
                yield from self._fill(_SECTION_BYTES + size)
                if len(self._buffer) - self._at < _SECTION_BYTES + size:
                    raise self._truncated()
                start = self._at + _SECTION_BYTES
                self._at = start + size
                self._began = True
                yield Section(kind, version, self._start + start, self._buffer[start : self._at])
            elif kind == HANDLES and not size and count <= HANDLES_MAX:
                self._at += _SECTION_BYTES
                self._handles, self._handle_version = count, version
            else:
                raise DamagedError(
                    f"no section starts here (type {kind}, {count} items, {size} bytes)",
                    file=self._file,
                    offset=self.offset,
                )

    def _handle(self) -> Iterator[Section | None]:
        yield from self._fill(2)
        if len(self._buffer) - self._at < 2:  # noqa: PLR2004
            raise self._truncated()
        (size,) = self.order.u16(self._buffer, self._at)
        yield from self._fill(2 + size)
        start = self._at + 2
        data = self._buffer[start : start + size]
        if len(data) < size:
            raise self._truncated()
        if size == _OLD_HANDLE_BYTES and not self._began:
            raise NotACaptureError(
                "a Fibratus capture of before version 1.0, whose layout was never released",
                file=self._file,
                offset=self.offset,
                expected="a capture of Fibratus 1.0 or later",
            )
        self._handles -= 1
        self._at = start + size
        self._began = True
        yield Section(HANDLES, self._handle_version, self._start + start, data)

    def resume(self, is_event: Callable[[Section], bool]) -> Iterator[None]:
        """After damage, go to the next event: where one starts can be told by decoding it.

        Args:
            is_event: Whether an event is whole and well formed.

        Yields:
            Before each wait for a pipe.

        Raises:
            TruncatedError: There is none up to the end.
            KcapError: The stream can't be read.
        """
        self._handles = 0
        head = Struct(f"{self.order.sign}BBII")
        self._at = min(self._at + 1, len(self._buffer))
        while True:
            found = _EVENT_START.search(self._buffer, self._at)
            if found is None:
                # The last bytes may be the start of one.
                self._at = max(self._at, len(self._buffer) - _SECTION_BYTES)
                before = len(self._buffer) - self._at
                yield from self._fill(before + 1)
                if len(self._buffer) - self._at == before:
                    raise self._truncated()
                continue
            self._at = found.start()
            yield from self._fill(_SECTION_BYTES)
            if len(self._buffer) - self._at < _SECTION_BYTES:
                raise self._truncated()
            kind, version, _, size = head.unpack_from(self._buffer, self._at)
            if size <= limits.VALUE_BYTES:
                yield from self._fill(_SECTION_BYTES + size)
                start = self._at + _SECTION_BYTES
                data = self._buffer[start : start + size]
                if is_event(Section(kind, version, self._start + start, data)):
                    return
            self._at += 1

    def _fill(self, count: int) -> Iterator[None]:
        """Have so many bytes from the position on, less only at the end."""
        while len(self._buffer) - self._at < count:
            piece = next(self._pieces, b"")
            if piece is None:
                yield None
                continue
            if not piece:
                return
            self._start += self._at
            self._buffer = self._buffer[self._at :] + piece
            self._at = 0

    def _take(self, count: int) -> bytes:
        data = self._buffer[self._at : self._at + count]
        self._at += len(data)
        return data

    def _truncated(self) -> KcapError:
        return TruncatedError(
            "the capture ends inside a section", file=self._file, offset=self.offset
        )
