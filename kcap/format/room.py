"""Room for the end of a file: what a full disk leaves is a capture that could still be closed.

A capture says at its end what is in it and what was lost. Where a disk fills, that end has no room
unless it was reserved before. Linux can reserve room behind the end of a file that does not count
as part of it (``fallocate`` with ``FALLOC_FL_KEEP_SIZE``); on file systems that can't, a record
that was half written is taken back, and the end is written into the room of that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import stat
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from kcap.format.record import Kind

_FULL: Final = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""No room on the disk, of the user's share of it, or in the largest file that there can be."""

_KEEP_SIZE: Final = 1
_AHEAD_BYTES: Final = 1 << 20
"""What is reserved at a time."""


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no room.

    Args:
        error: What the system said.

    Returns:
        True where removing other files, or a larger share, would help.
    """
    return error.errno in _FULL


class Room:
    """The room that a file has, and makes sure of before it grows.

    Args:
        stream: The file: a stream without a buffer, at its end.
        free: Makes room, by removing what is needed least; False where there is nothing.
    """

    def __init__(self, stream: BinaryIO, free: Callable[[], bool] = lambda: False) -> None:
        self._stream = stream
        self._free = free
        self._reserve = _system_call()
        self._end = os.fstat(stream.fileno()).st_size
        self._most = _largest_file()

    @classmethod
    def of(cls, stream: BinaryIO, free: Callable[[], bool] = lambda: False) -> Room | None:
        """The room of a stream.

        Args:
            stream: A stream.
            free: As for the class.

        Returns:
            None of a pipe, a device, or a stream with a buffer: what that holds can't be taken
            back.
        """
        if not isinstance(stream, io.RawIOBase):
            return None
        try:
            mode = os.fstat(stream.fileno()).st_mode
        except io.UnsupportedOperation:
            return None
        return cls(stream, free) if stat.S_ISREG(mode) else None

    def claim(self, end: int) -> bool:
        """Make sure that the file can grow.

        Args:
            end: To which length.

        Returns:
            False where it can't, whatever else is removed. True where it can, or where the file
            system does not tell: writing will.
        """
        while not self._claim(end):
            if end > self._most or not self._free():
                return False
        return True

    def take_back(self, end: int) -> bool:
        """Take back what was written behind a place, and make room where that is possible.

        Args:
            end: The length that the file gets.

        Returns:
            True where something was removed: writing again may succeed.

        Raises:
            OSError: The file can't be cut.
        """
        os.ftruncate(self._stream.fileno(), end)
        os.lseek(self._stream.fileno(), end, os.SEEK_SET)
        self._end = end
        return end < self._most and self._free()

    def release(self, end: int) -> None:
        """Give back what is not needed any more.

        Args:
            end: The file's length.
        """
        # Who can't give back keeps a little too much: no reason to fail.
        with contextlib.suppress(OSError):
            if self._end > end:
                os.ftruncate(self._stream.fileno(), end)

    def _claim(self, end: int) -> bool:
        """Reserve some, and a little ahead of it where there is so much."""
        if end > self._most:
            return False
        if end <= self._end:
            return True
        for goal in (end + _AHEAD_BYTES, end):
            if self._reserve is None:
                return True
            number = self._reserve(self._stream.fileno(), _KEEP_SIZE, self._end, goal - self._end)
            if not number:
                self._end = goal
                return True
            error = OSError(number, os.strerror(number))
            if not is_full(error):
                self._reserve = None  # this file system can't
        return self._reserve is None


def _system_call() -> Callable[[int, int, int, int], int] | None:
    """``fallocate``: a function that gives the error's number, 0 for none."""
    call: Any = getattr(_library(), "fallocate64", None) or getattr(_library(), "fallocate", None)
    if call is None or not sys.platform.startswith("linux"):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def reserve(fd: int, mode: int, start: int, length: int) -> int:
        while call(fd, mode, start, length):
            number = ctypes.get_errno()
            if number != errno.EINTR:
                return number
        return 0

    return reserve


def _library() -> Any:  # noqa: ANN401  (functions by name)
    return ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def _largest_file() -> int:
    """The largest file that this process may write."""
    try:
        import resource
    except ImportError:
        return sys.maxsize
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return sys.maxsize if most == resource.RLIM_INFINITY else most


REPEATED: Final = frozenset({Kind.SOURCE, Kind.SCHEMA, Kind.LOSS})
"""Kinds of records that the footer says again."""

_SLACK_BYTES: Final = 64 << 10
"""Descriptions of columns, an index and losses of the last moment, and errors of estimates."""


class End:
    """What the end of a capture needs: the chunk of the rows that wait, and the footer."""

    def __init__(self) -> None:
        self.short = False
        """Something could not be written for want of room."""
        self._footer = 4 << 10
        self._tails = 0
        self._share = 0.25

    def size(self, waiting: int) -> int:
        """Bytes that the end needs.

        Args:
            waiting: What the rows that wait for their chunk take in memory.

        Returns:
            An estimate, rather too large.
        """
        chunk = max(self._tails, int(waiting * self._share)) if waiting else 0
        return _SLACK_BYTES + self._footer + chunk

    def tail(self, size: int) -> None:
        """Take note of a TAIL: its rows take no more in a chunk.

        Args:
            size: Of its payload.
        """
        self._tails += size

    def chunk(self, memory: int, size: int, footer: int) -> None:
        """Take note of a chunk: the next one takes about as much.

        Args:
            memory: What its rows took in memory.
            size: Of its payload.
            footer: What a footer would take now.
        """
        self._share = 1.5 * size / max(memory, 1)
        self._footer = footer
        self._tails = 0

    def repeats(self, size: int) -> None:
        """Take note of a record that the footer says again.

        Args:
            size: Of its payload.
        """
        self._footer += 2 * size
