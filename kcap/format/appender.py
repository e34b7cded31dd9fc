"""Appending records to a stream: numbers, checksums, padding, chain (spec/kcap.md, clause 2)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final

from kcap import limits
from kcap.errors import OutputError
from kcap.format import record
from kcap.format.record import Kind

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
    ) -> None:
        """Begin at the start of a file.

        Args:
            stream: Where the bytes go; stays open.
            file_id: The file's 16 bytes.
            file: The stream's name, for errors.
            sync: Makes durable what was written; None where nobody asks for that.
        """
        self._stream = stream
        self._file_id = file_id
        self._file = file
        self._sync = sync
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

    def append(self, kind: Kind, payload: bytes | bytearray) -> int:
        """Append a record.

        Args:
            kind: What it holds.
            payload: Its payload.

        Returns:
            Its offset.

        Raises:
            OutputError: The stream does not take it.
        """
        assert len(payload) <= limits.RECORD_PAYLOAD_BYTES, kind
        header = record.pack(kind, self.number, payload, self._file_id)
        padding = bytes(record.padded(len(payload)) - len(payload))
        if len(payload) <= _JOINED_BYTES:
            return self._append((b"".join((header, payload, padding)),), self.number)
        return self._append((header, payload, padding), self.number)

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

    def _append(self, parts: Sequence[bytes | bytearray | memoryview], number: int) -> int:
        """Write a record in one part or several."""
        if self.failed:
            raise OutputError("writing failed before", file=self._file, offset=self.offset)
        with self._failing():
            for part in parts:
                self._write(part)
        self._chain.add(*parts)
        offset = self.offset
        for part in parts:
            self._hash.update(part)
            self.offset += len(part)
        self.number = number + 1
        return offset

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
