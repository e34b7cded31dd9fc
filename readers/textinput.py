"""Lines of a text input: a file or a pipe, plain, gzip or zstd.

The compression is found by content, several members or frames may follow each other. Memory stays
bounded whatever comes: everything is decompressed in small steps, and a line has a longest length.
An input that only ends early raises `TruncatedError`, damage before the end `DamagedError`, both
after all lines before it. Where more of a pipe has to be waited for, an empty block says so first.
"""

from __future__ import annotations

import select
import zlib
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

import zstandard

from kcap import limits
from kcap.errors import DamagedError, KcapError, LimitError, TruncatedError
from kcap.opening import GZIP_MAGIC, ZSTD_MAGIC

STEP_BYTES: Final = 256 << 10
"""Bytes read or decompressed at a time."""

ZSTD_WINDOW_BYTES: Final = 128 << 20
"""Largest window of a zstd frame, what ``zstd -d`` takes without being told."""

SKIPPED_BYTES: Final = 64 * limits.LINE_BYTES
"""Where a line that is too long stops being skipped."""

TOO_LONG: Final = b"\n"
"""Stands in a block for a line beyond the limit that was skipped; no line is like it."""

_GZIP_STEP_BYTES: Final = 16 << 10
_ZSTD_BLOCK_BYTES: Final = 128 << 10
_ZSTD_HEADER: Final = 5
_ZSTD_RLE, _ZSTD_RESERVED = 1, 3


class Block(NamedTuple):
    """Consecutive lines."""

    lines: list[bytes]
    """The lines without their newlines; none where what has arrived is used up, so that what
    follows has to be waited for."""
    number: int
    """Number of the first line, from 1."""
    offset: int
    """Where the first line starts, in bytes of decompressed input."""
    ended: bool
    """False for the input's last line where no newline ends it; it is a block of its own."""

    def offset_of(self, index: int) -> int:
        """Where a line starts; adds up the lines before it, so not for every line.

        Args:
            index: Its index in ``lines``.

        Returns:
            The position in bytes of decompressed input.
        """
        return self.offset + index + sum(map(len, self.lines[:index]))


class TextInput:
    """Lines of a stream, decompressed.

    Args:
        stream: The bytes, from their start; need not be seekable.
        file: Its name, for errors.
        skip_long: Give `TOO_LONG` for a line beyond the limit, instead of raising.

    Example:
        >>> for block in TextInput(sys.stdin.buffer, "-").blocks():
        ...     print(block.number, len(block.lines))
        1 2048
    """

    def __init__(self, stream: BinaryIO, file: str, *, skip_long: bool = False) -> None:
        self._file = file
        self._skip_long = skip_long
        self._pieces = _pieces(_Raw(stream, file))
        self._ahead: deque[bytes] = deque()
        self._failure: KcapError | None = None

    def head(self, count: int) -> bytes:
        """The start of the decompressed input, which `blocks` gives again.

        Args:
            count: Bytes wanted.

        Returns:
            So many bytes, or less where the input is shorter or damaged.
        """
        size = sum(map(len, self._ahead))
        try:
            while size < count and (piece := next(self._pieces, b"")) != b"":
                if piece is not None:
                    self._ahead.append(piece)
                    size += len(piece)
        except KcapError as error:
            self._failure = error
        return b"".join(self._ahead)[:count]

    def blocks(self) -> Iterator[Block]:
        """The lines, once.

        Yields:
            Blocks in order, an empty one before each wait for a pipe.

        Raises:
            TruncatedError: The compressed input ends early.
            DamagedError: It is damaged.
            LimitError: A line is too long, or a frame needs too much memory.
            KcapError: The stream cannot be read.
        """
        line = _Line(self._file, skip_long=self._skip_long)
        failure = None
        try:
            for piece in self.pieces():
                if piece is None:
                    yield Block([], line.number, line.offset, ended=True)
                    continue
                cut = piece.rfind(b"\n")
                if cut >= 0:
                    yield from line.complete(piece[:cut])
                line.extend(piece[cut + 1 :])
        except (TruncatedError, DamagedError) as error:
            failure = error
        if line.parts:
            yield Block([b"".join(line.parts)], line.number, line.offset, ended=False)
        if failure is not None:
            raise failure

    def pieces(self) -> Iterator[bytes | None]:
        """The decompressed input, once, for a reader of something else than lines.

        Yields:
            Pieces of bounded size, none of them empty; None before each wait for a pipe.

        Raises:
            TruncatedError: The compressed input ends early.
            DamagedError: It is damaged.
            LimitError: A frame needs too much memory.
            KcapError: The stream cannot be read.
        """
        while self._ahead:
            yield self._ahead.popleft()
        if self._failure is not None:
            raise self._failure
        yield from self._pieces


class _Line:
    """The line that is not complete yet."""

    def __init__(self, file: str, *, skip_long: bool) -> None:
        self.parts: list[bytes] = []
        self.number = 1
        self.offset = 0
        self._size = 0
        self._file = file
        self._skip_long = skip_long

    def extend(self, data: bytes) -> None:
        """Add to the line what has no newline; drop it where it gets too long."""
        if not data:
            return
        self._size += len(data)
        if self._size <= limits.LINE_BYTES:
            self.parts.append(data)
            return
        self.parts = []
        if not self._skip_long or self._size > SKIPPED_BYTES:
            raise LimitError(
                "the line is too long",
                file=self._file,
                line=self.number,
                offset=self.offset,
                expected=f"at most {limits.LINE_BYTES} bytes",
                hint="is this really a file of JSON lines?",
            )

    def complete(self, data: bytes) -> Iterator[Block]:
        """End the line; ``data`` is the rest of it and further lines, without the last newline."""
        first, newline, more = data.partition(b"\n")
        self.extend(first)
        long = self._size > limits.LINE_BYTES
        lines = [TOO_LONG if long else b"".join(self.parts)]
        if not long and newline:
            lines += more.split(b"\n")
        yield self._block(lines, self._size + 1)
        if long and newline:
            yield self._block(more.split(b"\n"), 0)
        self.offset += len(more) + 1 if newline else 0
        self.parts, self._size = [], 0

    def _block(self, lines: list[bytes], size: int) -> Block:
        block = Block(lines, self.number, self.offset, ended=True)
        self.number += len(lines)
        self.offset += size
        return block


class _Raw:
    """The stream's own bytes, with a look ahead."""

    def __init__(self, stream: BinaryIO, file: str) -> None:
        # read1 gives what a pipe has; read would wait until the whole step is there.
        self._read = getattr(stream, "read1", stream.read)
        self._poll = _poll(stream)
        self._buffer = b""
        self._at = 0
        self._read_total = 0
        self.file = file

    @property
    def offset(self) -> int:
        """Position of the next byte."""
        return self._read_total - len(self._buffer) + self._at

    def fill(self, count: int = 1) -> Iterator[None]:
        """Have so many bytes at hand, less only at the end; stops before each read that waits."""
        while len(self._buffer) - self._at < count:
            if self._poll is not None and not self._poll.poll(0):
                yield None
            if not self._more():
                return

    def some(self, count: int = STEP_BYTES) -> bytes:
        """Take the bytes at hand, but at most ``count``."""
        data = self._buffer[self._at : self._at + count]
        self._at += len(data)
        return data

    def give_back(self, count: int) -> None:
        """Put the last bytes that `some` gave back in front."""
        self._at -= count

    def peek(self, count: int) -> bytes:
        """Bytes at hand, which stay."""
        return self._buffer[self._at : self._at + count]

    def exactly(self, count: int, kind: str) -> bytes:
        """Take so many bytes."""
        data = self.peek(count)
        self._at += len(data)
        if len(data) < count:
            raise self.truncated(kind)
        return data

    def truncated(self, kind: str) -> TruncatedError:
        """The error for data that ends early."""
        return TruncatedError(
            f"the {kind} data ends early", file=self.file, offset=self._read_total
        )

    def damaged(self, kind: str, why: object) -> DamagedError:
        """The error for data that is damaged before here."""
        return DamagedError(f"damaged {kind} data ({why})", file=self.file, offset=self.offset)

    def _more(self) -> bool:
        try:
            data: bytes = self._read(STEP_BYTES) or b""
        except (OSError, ValueError) as error:
            raise KcapError(
                f"cannot be read: {error}", file=self.file, offset=self._read_total
            ) from error
        self._read_total += len(data)
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        return bool(data)


_Pieces = Iterator[bytes | None]
"""Decompressed input of bounded size each; None before each wait for a pipe."""


def _poll(stream: BinaryIO) -> select.poll | None:
    """What tells whether a stream has something to read; None where nothing does."""
    try:
        number = stream.fileno()
        poll = select.poll()
    except (AttributeError, OSError, ValueError):  # no file, or no such call on this system
        return None
    poll.register(number, select.POLLIN)
    return poll


def _pieces(raw: _Raw) -> _Pieces:
    """The decompressed input in pieces, none of them empty."""
    yield from raw.fill(4)
    head = raw.peek(4)
    if head.startswith(GZIP_MAGIC):
        pieces = _gunzip(raw)
    elif head == ZSTD_MAGIC or _is_skippable(head):
        pieces = _unzstd(raw)
    else:
        pieces = _plain(raw)
    for piece in pieces:
        if piece != b"":
            yield piece


def _plain(raw: _Raw) -> _Pieces:
    while piece := raw.some():
        yield piece
        yield from raw.fill()


def _gunzip(raw: _Raw) -> _Pieces:
    while True:
        yield from raw.fill(2)
        head = raw.peek(2)
        if not head:
            return
        if head == GZIP_MAGIC:
            yield from _gzip_member(raw)
        elif head[0] == 0:
            data = raw.some()  # zeros may pad a member
            raw.give_back(len(data.lstrip(b"\0")))
        elif GZIP_MAGIC.startswith(head):
            raise raw.truncated("gzip")
        else:
            raise raw.damaged("gzip", "something else follows it")


def _gzip_member(raw: _Raw) -> _Pieces:
    member = zlib.decompressobj(wbits=31)
    data = b""
    full = False
    while not member.eof:
        if not data and not full:
            yield from raw.fill()
            data = raw.some(_GZIP_STEP_BYTES)
            if not data:
                raise raw.truncated("gzip")
        before = member.copy()
        try:
            piece = member.decompress(data, STEP_BYTES)
        except zlib.error as error:
            yield from _before_damage(before, data)
            raise raw.damaged("gzip", error) from error
        data = member.unconsumed_tail
        full = len(piece) == STEP_BYTES
        yield piece
    raw.give_back(len(member.unused_data))


def _before_damage(member: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What a call that failed would have given; a failing call gives nothing of it."""
    for i in range(len(data)):
        try:
            yield member.decompress(data[i : i + 1])
        except zlib.error:
            return


def _is_skippable(head: bytes) -> bool:
    return head[1:] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50  # noqa: PLR2004


def _unzstd(raw: _Raw) -> _Pieces:
    while True:
        yield from raw.fill(4)
        head = raw.peek(4)
        if not head:
            return
        if head == ZSTD_MAGIC:
            yield from _zstd_frame(raw)
        elif _is_skippable(head):
            yield from raw.fill(8)
            size = int.from_bytes(raw.exactly(8, "zstd")[4:], "little")
            while size:
                yield from raw.fill(step := min(size, STEP_BYTES))
                size -= len(raw.exactly(step, "zstd"))
        elif ZSTD_MAGIC.startswith(head) or (len(head) < 4 and head[0] & 0xF0 == 0x50):  # noqa: PLR2004
            raise raw.truncated("zstd")
        else:
            raise raw.damaged("zstd", "something else follows it")


def _zstd_frame(raw: _Raw) -> _Pieces:
    """One frame, block by block (RFC 8878, 3.1.1).

    The library neither says that a frame is cut nor bounds what one call gives; a block gives
    at most 128 KiB, and the frame's end is in its last block.
    """
    yield from raw.fill(_ZSTD_HEADER)
    descriptor = raw.peek(_ZSTD_HEADER)[-1]
    single = descriptor >> 5 & 1
    content = (1, 2, 4, 8)[descriptor >> 6] if single or descriptor >> 6 else 0
    header_bytes = _ZSTD_HEADER + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + content
    frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()

    def feed(data: bytes) -> bytes:
        try:
            return frame.decompress(data)
        except zstandard.ZstdError as error:
            if "too much memory" in str(error):
                raise LimitError(
                    "the zstd frame needs too much memory",
                    file=raw.file,
                    offset=raw.offset,
                    expected=f"a window of at most {ZSTD_WINDOW_BYTES} bytes",
                    hint="decompress it with zstd --long=31 first",
                ) from error
            raise raw.damaged("zstd", error) from error

    yield from raw.fill(header_bytes)
    yield feed(raw.exactly(header_bytes, "zstd"))
    last = 0
    while not last:
        yield from raw.fill(3)
        header = raw.exactly(3, "zstd")
        number = int.from_bytes(header, "little")
        last, kind, size = number & 1, number >> 1 & 3, number >> 3
        if kind == _ZSTD_RESERVED or size > _ZSTD_BLOCK_BYTES:
            raise raw.damaged("zstd", "no block starts here")
        stored = 1 if kind == _ZSTD_RLE else size
        yield from raw.fill(stored)
        yield feed(header + raw.exactly(stored, "zstd"))
    if descriptor & 4:
        yield from raw.fill(4)
        yield feed(raw.exactly(4, "zstd"))
    if not frame.eof:
        raise raw.damaged("zstd", "the frame does not end where it says")
