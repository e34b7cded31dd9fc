"""The messages of a gob stream: each a length and so many bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kcap.errors import DamagedError, TruncatedError
from kcap.readers.gob import VALUE_BYTES
from kcap.readers.gob_values import GobError, uint

SOUGHT_BYTES: Final = 1 << 20
"""Longest message that `Messages.resume` finds."""

_HEADER_BYTES: Final = 20
"""A length and a type's id take no more."""

_DEFINES: Final = b"\xff"
"""A definition's id starts so, and is odd; ids are small numbers."""


class Message(NamedTuple):
    """One message."""

    data: bytes
    """Its bytes without their length."""
    offset: int
    """Where its length stands, in bytes of decompressed input."""


class Messages:
    """The messages of a stream.

    Args:
        pieces: The decompressed input; None before each wait for a pipe.
        file: Its name, for errors.
    """

    def __init__(self, pieces: Iterator[bytes | None], file: str) -> None:
        self._pieces = pieces
        self._file = file
        self._data = bytearray()
        self._at = 0
        self._base = 0
        self._ended = False

    def read(self) -> Iterator[Message | None]:
        """The messages from here on.

        Yields:
            One after the other; None before each wait for a pipe.

        Raises:
            TruncatedError: The input ends inside a message.
            DamagedError: No message starts here.
            KcapError: The input can't be read.
        """
        while True:
            message = self._next()
            if message is not None:
                yield message
            elif self._ended:
                if self._at < len(self._data):
                    raise TruncatedError(
                        "the last message is not complete",
                        file=self._file,
                        offset=self._base + self._at,
                    )
                return
            else:
                yield from self._fill()

    def _next(self) -> Message | None:
        """The next message; None where more of the input is needed."""
        start = self._at
        if start >= len(self._data):
            return None
        try:
            size, at = uint(self._data, start)
        except GobError:
            size, at = 0, start
        if at > len(self._data):
            return None
        if not 0 < size <= VALUE_BYTES:
            raise DamagedError(
                "no message of a gob stream",
                file=self._file,
                offset=self._base + start,
                expected=f"a length of 1 to {VALUE_BYTES}",
                hint="--lenient seeks the next event",
            )
        if at + size > len(self._data):
            return None
        self._at = at + size
        return Message(bytes(self._data[at : self._at]), self._base + start)

    def _fill(self) -> Iterator[None]:
        """Have more of the input at hand; forgets what was read."""
        while (piece := next(self._pieces, b"")) is None:
            yield None
        self._ended = not piece
        if self._at:
            del self._data[: self._at]
            self._base += self._at
            self._at = 0
        self._data += piece

    def continues(self, marker: bytes) -> Iterator[bool | None]:
        """Whether what stands here may be a message.

        Args:
            marker: How messages start that are wanted: the id of their type.

        Yields:
            None before each wait for a pipe, then the answer.
        """
        while len(self._data) - self._at < _HEADER_BYTES and not self._ended:
            yield from self._fill()
        head = self._data[self._at : self._at + _HEADER_BYTES]
        if not head:
            yield True
            return
        try:
            size, at = uint(head, 0)
        except GobError:
            size, at = 0, 0
        is_definition = head[at : at + 1] >= _DEFINES and head[at + 1 : at + 2] > b"\x7f"
        named = head.startswith(marker, at) or (is_definition and head[at + 1] & 1)
        yield bool(0 < size <= VALUE_BYTES and named)

    def resume(
        self, after: int, marker: bytes, accept: Callable[[bytes], bool]
    ) -> Iterator[int | None]:
        """Go on with the next message that is one.

        Args:
            after: Where the bad one stands; what was read since may be read again.
            marker: How messages start that are wanted: the id of their type.
            accept: Whether the bytes of a message make sense.

        Yields:
            None before each wait for a pipe, then where it goes on; the end where nowhere.
        """
        self._at = max(0, after + 1 - self._base)
        sought = self._at
        while True:
            hit = self._data.find(marker, sought)
            if hit < 0:
                kept = max(self._at, len(self._data) - _HEADER_BYTES)
                sought = 0 if self._ended else max(0, sought - kept)
                self._at = len(self._data) if self._ended else kept
                if self._ended:
                    yield self._base + self._at
                    return
                yield from self._fill()
                continue
            start, size = self._length_before(hit)
            if size and hit + size > len(self._data) and not self._ended:
                before = self._at
                yield from self._fill()
                sought = hit - before
                continue
            if size and accept(bytes(self._data[hit : hit + size])):
                self._at = start
                yield self._base + start
                return
            sought = hit + 1

    def _length_before(self, hit: int) -> tuple[int, int]:
        """Where the length of a message stands that starts here, and the length; 0 for none."""
        for start in range(hit - 1, max(hit - 5, self._at - 1), -1):
            try:
                size, end = uint(self._data, start)
            except GobError:
                continue
            if end == hit and 0 < size <= SOUGHT_BYTES:
                return start, size
        return hit, 0
