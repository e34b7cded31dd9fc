"""Bytes of a capture by position: from a file in any order, from a stream going forward."""

from __future__ import annotations

import os
from typing import BinaryIO, Final, Protocol

from kcap.errors import KcapError

_STEP: Final = 1 << 20
_LAST: Final = (1 << 63) - 1
"""The last place that a file can have."""


class Window(Protocol):
    """What the scanner reads from."""

    seekable: bool

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes at a position.

        Args:
            offset: The position; for a stream not before the last `release`.
            length: How many.

        Returns:
            The bytes; fewer only where the input ends.
        """

    def release(self, offset: int) -> None:
        """Say that nothing before a position is needed any more.

        Args:
            offset: The position.
        """


class FileWindow:
    """A file; read, never mapped, so that a file cut while it is read is an error and no crash."""

    seekable = True

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    @property
    def size(self) -> int:
        """Length of the file now."""
        return self._stream.seek(0, os.SEEK_END)

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Window.read_at`."""
        if offset > _LAST:
            return b""  # what a file says of itself need not be a place in any file
        try:
            if length > _STEP:  # what is announced need not be there
                length = max(0, min(length, self.size - offset))
            self._stream.seek(offset)
            return self._stream.read(length)
        except OSError as e:
            raise KcapError(f"can't be read: {e.strerror}", offset=offset) from e

    def release(self, offset: int) -> None:
        """See `Window.release`."""


class StreamWindow:
    """A pipe; keeps what lies between the last release and the farthest read."""

    seekable = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._start = 0
        self._held = bytearray()

    def read_at(self, offset: int, length: int) -> bytes:
        """See `Window.read_at`."""
        assert offset >= self._start
        end = offset + length - self._start
        while len(self._held) < end:
            # A pipe gives what it has: small reads keep a live stream flowing.
            try:
                more = self._stream.read(min(_STEP, end - len(self._held)))
            except OSError as e:
                raise KcapError(f"can't be read: {e.strerror}", offset=offset) from e
            if not more:
                break
            self._held += more
        return bytes(memoryview(self._held)[offset - self._start : end])

    def release(self, offset: int) -> None:
        """See `Window.release`."""
        if offset > self._start:
            del self._held[: offset - self._start]
            self._start = offset
