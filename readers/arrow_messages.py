"""The messages of Arrow IPC, taken apart far enough to judge their sizes before Arrow reads them.

An encapsulated message is a marker, the length of its metadata, the metadata (a FlatBuffers table)
and a body. A file has a magic number in front of the same messages, and a table of them behind.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, Final

from kcap.errors import DamagedError, KcapError, LimitError, TruncatedError

MAGIC: Final = b"ARROW1\0\0"
"""How a file begins."""

MARKER: Final = b"\xff\xff\xff\xff"
"""How a message begins."""

METADATA_BYTES: Final = 128 << 20
"""Longest metadata of a message: a snapshot may be in it."""

BATCH_BYTES: Final = 512 << 20
"""What the buffers of a batch may take, stored or decompressed."""

_HEADERS: Final = {1: "schema", 2: "dictionary", 3: "batch"}
_U16: Final = struct.Struct("<H")
_I32: Final = struct.Struct("<i")
_U32: Final = struct.Struct("<I")
_I64: Final = struct.Struct("<q")
_BUFFER: Final = struct.Struct("<qq")


def sniff(head: bytes) -> bool:
    """Whether an input begins as Arrow IPC does.

    Args:
        head: Its first bytes.

    Returns:
        True for a file, and for a stream whose first message is a schema.
    """
    if head.startswith(MAGIC):
        return True
    if not head.startswith(MARKER) or len(head) < 8:  # noqa: PLR2004
        return False
    try:
        return _Message(head[8:]).kind == "schema"
    except (DamagedError, struct.error):
        return False


class Messages:
    """Reads the messages of a file or stream, one after another.

    Args:
        stream: The bytes, from their start; need not be seekable.
        file: Its name, for errors.
    """

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self._stream = stream
        self._file = file
        self._ahead = b""
        self._began = False
        self._next = 0
        self.offset = 0
        """Where the message that was read last begins."""

    def head(self, count: int) -> bytes:
        """The start of the input, which `next` gives again.

        Args:
            count: Bytes wanted.

        Returns:
            So many bytes, or less where the input is shorter.
        """
        self._ahead += self._read_raw(count - len(self._ahead))
        return self._ahead[:count]

    def next(self) -> bytes:
        """The next message.

        Returns:
            Its bytes with marker and body; empty at the end.

        Raises:
            TruncatedError: The input ends inside it.
            DamagedError: It makes no sense.
            LimitError: It would take too much memory.
        """
        if not self._began:
            self._began = True
            if self.head(len(MAGIC)).startswith(MAGIC):
                self._take(len(MAGIC))
        self.offset = self._next
        begin = self._take(8)
        if not begin:
            raise self._error(TruncatedError, "the input ends without the end of its messages")
        if len(begin) < 8:  # noqa: PLR2004
            raise self._error(TruncatedError, "the input ends inside a message")
        if not begin.startswith(MARKER):
            hint = "a stream is read of any program, a file only where it has a stream in it"
            raise self._error(DamagedError, "no Arrow message begins here", hint=hint)
        length = _I32.unpack_from(begin, 4)[0]
        if length == 0:
            return b""
        if not 0 < length <= METADATA_BYTES:
            raise self._error(LimitError, f"{length} bytes of metadata", METADATA_BYTES)
        metadata = self._exactly(length)
        try:
            message = _Message(metadata)
            body_bytes = message.body_bytes
            if not 0 <= body_bytes <= BATCH_BYTES:
                raise self._error(LimitError, f"a body of {body_bytes} bytes", BATCH_BYTES)
            body = self._exactly(body_bytes)
            if message.kind == "dictionary":
                raise self._error(
                    DamagedError,
                    "dictionary-coded columns are not read",
                    hint="write plain text columns, or Parquet and 'kcap query'",
                )
            size = message.decompressed_bytes(body)
        except (struct.error, IndexError) as e:
            raise self._error(DamagedError, "the message's metadata makes no sense") from e
        if size > BATCH_BYTES:
            raise self._error(LimitError, f"buffers of {size} bytes", BATCH_BYTES)
        return begin + metadata + body

    def _exactly(self, count: int) -> bytes:
        data = self._take(count)
        if len(data) < count:
            raise self._error(TruncatedError, "the input ends inside a message")
        return data

    def _take(self, count: int) -> bytes:
        data, self._ahead = self._ahead[:count], self._ahead[count:]
        if len(data) < count:
            data += self._read_raw(count - len(data))
        self._next += len(data)
        return data

    def _read_raw(self, count: int) -> bytes:
        """So many bytes, in steps: a length that lies must not cost memory."""
        parts = []
        while count > 0:
            try:
                part = self._stream.read(min(count, 1 << 20))
            except (OSError, ValueError) as e:
                raise KcapError(f"can't be read: {e}", file=self._file, offset=self._next) from e
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _error(
        self,
        kind: type[KcapError],
        what: str,
        most: int | None = None,
        hint: str | None = None,
    ) -> KcapError:
        expected = None if most is None else f"at most {most}"
        return kind(what, file=self._file, offset=self.offset, expected=expected, hint=hint)


class _Message:
    """The metadata of a message: a FlatBuffers table (Arrow's Message.fbs)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._table = _U32.unpack_from(data)[0]
        self.kind = _HEADERS.get(self._data[self._field(self._table, 1)])
        if self.kind is None:
            raise DamagedError("an Arrow message of unknown kind")

    @property
    def body_bytes(self) -> int:
        """Length of the body."""
        at = self._field(self._table, 3)
        return int(_I64.unpack_from(self._data, at)[0]) if at else 0

    def decompressed_bytes(self, body: bytes) -> int:
        """What a batch's buffers take when Arrow has read them."""
        if self.kind != "batch":
            return 0
        header = self._follow(self._field(self._table, 2))
        buffers = self._follow(self._field(header, 2))
        compressed = self._field(header, 3) > 0
        total = 0
        for i in range(_U32.unpack_from(self._data, buffers)[0]):
            start, length = _BUFFER.unpack_from(self._data, buffers + 4 + i * _BUFFER.size)
            if start < 0 or length < 0 or start + length > len(body):
                raise DamagedError("a buffer lies outside its message")
            if compressed and length >= _I64.size:
                # A buffer says how long it will be; -1 where it is stored as it is.
                said = _I64.unpack_from(body, start)[0]
                total += length if said < 0 else said
            else:
                total += length
        return total

    def _field(self, table: int, number: int) -> int:
        """Where a field of a table is; 0 where it is not there."""
        vtable = table - _I32.unpack_from(self._data, table)[0]
        if vtable < 0:
            raise DamagedError("the message's metadata makes no sense")
        place = 4 + 2 * number
        if place >= _U16.unpack_from(self._data, vtable)[0]:
            return 0
        offset = _U16.unpack_from(self._data, vtable + place)[0]
        return table + offset if offset else 0

    def _follow(self, at: int) -> int:
        """Where a reference leads."""
        if not at:
            raise DamagedError("the message's metadata makes no sense")
        return at + int(_U32.unpack_from(self._data, at)[0])
