"""Appending records to a stream: numbers, checksums, padding, chain (spec/kcap.md, clause 2)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final

from kcap import limits
from kcap.errors import FullError, OutputError
from kcap.format import record
from kcap.format.record import Kind
from kcap.format.room import Room, is_full

_JOINED_BYTES: Final = 1 << 20
"""Payloads up to this go out in one piece with their header; larger ones are not copied."""


class Appender:
    """Writes whole records, the smaller ones with one call; the stream is never sought."""

    def __init__(
        self,
        stream: BinaryIO,
        file_id: bytes,
        *,
        file: str = "-",
        sync: Callable[[], None] | None = None,
        room: Room | None = None,
    ) -> None:
        """Begin at the start of a file.

        Args:
            stream: Where the bytes go; stays open.
            file_id: The file's 16 bytes.
            file: The stream's name, for errors.
            sync: Makes durable what was written; None where nobody asks for that.
            room: The room that the file has; None where a full disk is an error like others.
        """
        self._stream = stream
        self._file_id = file_id
        self._file = file
        self._sync = sync
        self._room = room
        self._chain = record.Chain(file_id)
        self._hash = hashlib.sha256()
        self.number = 0
        """Of the next record."""
        self.offset = 0
        """Of the next record: the length of the file so far."""
        self._flushed = 0
        self.failed = False
        """The stream took no more: nothing may be written any more."""

    @property
    def chain(self) -> bytes:
        """The hash chain over all records so far (clause 2.6)."""
        return self._chain.value

    @property
    def file_hash(self) -> str:
        """SHA-256 of all bytes so far, in hex."""
        return self._hash.hexdigest()

    def append(self, kind: Kind, payload: bytes | bytearray, *, reserve: int = 0) -> int:
        """Append a record.

        Args:
            kind: What it holds.
            payload: Its payload.
            reserve: Bytes for which there must be room behind it, where the room is known.

        Returns:
            Its offset.

        Raises:
            FullError: There is no room for it, and nothing of it was written.
            OutputError: The stream does not take it.
        """
        assert len(payload) <= limits.RECORD_PAYLOAD_BYTES, kind
        header = record.pack(kind, self.number, payload, self._file_id)
        padding = bytes(record.padded(len(payload)) - len(payload))
        if len(payload) <= _JOINED_BYTES:
            return self._append((b"".join((header, payload, padding)),), self.number, reserve)
        return self._append((header, payload, padding), self.number, reserve)

    def claim(self, size: int) -> bool:
        """Make sure that there is room behind the last record.

        Args:
            size: How much.

        Returns:
            False where there is not.
        """
        return self._room is None or self.failed or self._room.claim(self.offset + size)

    def release(self) -> None:
        """Give back room that is not needed any more: the file has its end."""
        if self._room is not None:
            self._room.release(self.offset)

    def copy(self, raw: bytes | bytearray | memoryview) -> int:
        """Append a record as it is.

        Args:
            raw: All of its bytes; the next record has the number behind its own.

        Returns:
            Its offset.

        Raises:
            OutputError: The stream does not take it.
        """
        return self._append((raw,), record.unchecked(raw).number)

    def _append(
        self, parts: Sequence[bytes | bytearray | memoryview], number: int, reserve: int = 0
    ) -> int:
        """Write a record in one part or several."""
        if self.failed:
            raise OutputError("writing failed before", file=self._file, offset=self.offset)
        if not self.claim(sum(map(len, parts)) + reserve):
            raise self._full()
        with self._failing():
            self._put(parts)
        self._chain.add(*parts)
        offset = self.offset
        for part in parts:
            self._hash.update(part)
            self.offset += len(part)
        self.number = number + 1
        return offset

    def _put(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write all of a record, or nothing where there is no room for it."""
        while True:
            try:
                for part in parts:
                    self._write(part)
            except OSError as e:
                if self._room is None or not is_full(e):
                    raise
                if not self._room.take_back(self.offset):
                    raise self._full() from e
            else:
                return

    def _full(self) -> FullError:
        what = "there is no room left on the disk, or in the file"
        return FullError(what, file=self._file, offset=self.offset)

    def flush(self) -> None:
        """Hand everything to the system, and to the disk where that was asked for.

        Raises:
            OutputError: The stream does not take it.
        """
        if self.failed or self._flushed == self.offset:
            return
        with self._failing():
            self._stream.flush()
            if self._sync is not None:
                self._sync()
        self._flushed = self.offset

    def _write(self, raw: bytes | bytearray | memoryview) -> None:
        """Write all of a record; a stream without a buffer may take a part at a time."""
        left = memoryview(raw)
        while left:
            taken = self._stream.write(left)
            if not taken:
                raise OSError(errno.EAGAIN, "the stream takes nothing")
            left = left[taken:]

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            # Nothing goes behind a record that may be half written: what is before stays readable.
            self.failed = True
            # A reader that went away is no success either: the capture was what was wanted.
            raise OutputError(
                f"writing failed: {e.strerror or e}",
                file=self._file,
                offset=self.offset,
                hint="the complete records before are readable: the capture is torn, not lost",
            ) from e
