"""What waits in a courier: some of it in memory, what is beyond that in a file.

The file has the older messages and memory the newer ones: where memory is full, all of it is
appended to the file. So the order is that in which they came wherever they wait, and what is left
at the end is appended the same way. The file is only ever appended to; where what stood in front
of it has been delivered its head moves on, and it is cut to nothing when all of it has.

A spool file is a page with the head (magic, place of the first record that was not delivered,
CRC-32 of both, length u16 and name of the sink), then records: length, number of messages,
CRC-32 u32 each, and a block (`kcap.writers.sinks.messages`). A record that a crash left incomplete
is cut off when the file is opened again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import threading
import zlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from kcap.errors import DamagedError, KcapError, OutputError
from kcap.writers.sinks import messages

MAGIC: Final = b"KCSPOOL1"

EMPTY_BYTES: Final = 4096
"""Length of a spool file without messages."""

_PAGE: Final = EMPTY_BYTES
_HEAD: Final = struct.Struct("<8sQI")
_NAME: Final = struct.Struct("<H")
_RECORD: Final = struct.Struct("<III")
_NAME_BYTES: Final = 1024
_PUNCHED_BYTES: Final = 4 << 20
_PRIVATE: Final = 0o600
_FLAGS: Final = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_KEEP_SIZE_AND_PUNCH: Final = 0x01 | 0x02


@dataclass(frozen=True, slots=True)
class Block:
    """Messages that wait together."""

    count: int
    payload: bytes


class Spool:
    """The file.

    Args:
        path: Where it is or is made; never a link. One process at a time has it.
        sink: What its messages are for: only the same sink gets what a run left behind.

    Raises:
        OutputError: It can't be opened, or another run has it.
        DamagedError: It is no spool file.
        KcapError: Its messages are for another sink.
    """

    def __init__(self, path: str, *, sink: str) -> None:
        self.path = path
        self._sink = sink.encode()[:_NAME_BYTES].decode("utf-8", "ignore")
        self.left = 0
        """Messages that an earlier run left in it."""
        self.cut_bytes = 0
        """What was cut off its end when it was opened: a record that a crash left incomplete."""
        self._punch = _puncher()
        self._punched = _PAGE
        self.head = self.next = self.tail = _PAGE
        self._lengths: deque[int] = deque()
        self._fd = self._opened()
        try:
            self._lock()
            self._take_over()
        except OSError as e:
            self.close()
            raise OutputError(f"the spool can't be used: {e.strerror}", file=path) from e
        except BaseException:
            self.close()
            raise

    @property
    def nbytes(self) -> int:
        """The bytes of what was not delivered yet."""
        return self.tail - self.head

    def append(self, block: Block) -> bool:
        """Append a record.

        Args:
            block: The messages.

        Returns:
            False where there is no room on the disk; nothing was appended then.

        Raises:
            OutputError: The file can't be written.
        """
        data = memoryview(_record(block))
        at = self.tail
        try:
            while data:
                written = os.pwrite(self._fd, data, at)
                data, at = data[written:], at + written
        except OSError as e:
            os.ftruncate(self._fd, self.tail)
            if e.errno in _NO_ROOM:
                return False
            raise OutputError(f"the spool can't be written: {e.strerror}", file=self.path) from e
        self.tail = at
        return True

    def take(self) -> Block:
        """Read the next record; it stays until `delivered`.

        Returns:
            The messages.

        Raises:
            DamagedError: It is not what was written.
        """
        length, block = self._read(self.next)
        if block is None:
            raise DamagedError("the spool was changed by others", file=self.path, offset=self.next)
        self._lengths.append(length)
        self.next += length
        return block

    def skip(self) -> None:
        """Count the record that was just appended as taken: it was, from memory."""
        self._lengths.append(self.tail - self.next)
        self.next = self.tail

    def delivered(self) -> None:
        """The first record that was taken is done with.

        Raises:
            OutputError: The file can't be written.
        """
        self.head += self._lengths.popleft()
        try:
            if self.head == self.tail:
                # In this order: a head beyond the end of the file is the head of an empty one.
                os.ftruncate(self._fd, _PAGE)
                self.head = self.next = self.tail = self._punched = _PAGE
            self._write_head()
            if self.head - self._punched >= _PUNCHED_BYTES:
                self._punch(self._fd, self._punched, self.head - self._punched)
                self._punched = self.head
        except OSError as e:
            raise OutputError(f"the spool can't be written: {e.strerror}", file=self.path) from e

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _opened(self) -> int:
        try:
            fd = os.open(self.path, _FLAGS, _PRIVATE)
        except OSError as e:
            what = "is a link" if e.errno == errno.ELOOP else f"can't be opened: {e.strerror}"
            raise OutputError(f"the spool {what}", file=self.path) from e
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OutputError("the spool is no regular file", file=self.path)
        return fd

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise OutputError(
                "another run has this spool", file=self.path, hint="give each sink its own"
            ) from e

    def _take_over(self) -> None:
        """Find out what an earlier run left."""
        page = os.pread(self._fd, _PAGE, 0)
        if not page:
            self._begin()
            return
        if page[: len(MAGIC)] != MAGIC or len(page) < _PAGE:
            raise DamagedError("this is no spool of kcap", file=self.path)
        magic, head, crc = _HEAD.unpack_from(page)
        if crc != zlib.crc32(magic + struct.pack("<Q", head)) or head < _PAGE:
            raise DamagedError("the head of the spool is damaged", file=self.path, offset=0)
        (length,) = _NAME.unpack_from(page, _HEAD.size)
        start = _HEAD.size + _NAME.size
        name = page[start : start + length].decode("utf-8", "replace")
        size = os.fstat(self._fd).st_size
        if head >= size:
            self._begin()
            return
        if name != self._sink:
            raise KcapError(
                f"the spool has messages for another sink, {name}",
                file=self.path,
                expected=f"those for {self._sink}",
                hint="name another spool, or deliver these first",
            )
        self.head = self.next = self.tail = self._punched = head
        self._scan(size)

    def _begin(self) -> None:
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, _PAGE)
        name = self._sink.encode()
        os.pwrite(self._fd, _NAME.pack(len(name)) + name, _HEAD.size)
        self._write_head()

    def _scan(self, size: int) -> None:
        """Check every record; cut off a torn end."""
        at = self.head
        while at < size:
            length, block = self._read(at)
            if block is None:
                break
            at += length
            self.left += block.count
        self.tail = at
        if at < size:
            self.cut_bytes = size - at
            os.ftruncate(self._fd, at)

    def _read(self, at: int) -> tuple[int, Block | None]:
        """A record and its length; None where it is incomplete or damaged."""
        head = os.pread(self._fd, _RECORD.size, at)
        if len(head) < _RECORD.size:
            return 0, None
        length, count, crc = _RECORD.unpack(head)
        if length > messages.FRAME_BYTES:
            return 0, None
        payload = os.pread(self._fd, length, at + _RECORD.size)
        if len(payload) < length or crc != _crc(length, count, payload):
            return 0, None
        return _RECORD.size + length, Block(count, payload)

    def _write_head(self) -> None:
        at = struct.pack("<Q", self.head)
        os.pwrite(self._fd, _HEAD.pack(MAGIC, self.head, zlib.crc32(MAGIC + at)), 0)


class Queue:
    """Blocks in the order in which they came; one thread puts them in, another takes them.

    Args:
        spool: Where those go that memory has no room for.
        memory_bytes: How much may wait in memory.
        spool_bytes: How much may wait in the file; where that is full too, `put` waits.
    """

    def __init__(self, spool: Spool, *, memory_bytes: int, spool_bytes: int) -> None:
        self._spool = spool
        self._memory: deque[Block] = deque()
        self._memory_bytes = 0
        self._memory_max = memory_bytes
        self._spool_max = spool_bytes
        self._taken = 0
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False
        self.waiting = spool.left
        """Messages that are not delivered."""
        self.peak_bytes = 0
        """The most that waited in memory."""

    @property
    def spooled_bytes(self) -> int:
        """How much waits in the file."""
        return self._spool.nbytes

    def put(self, block: Block) -> bool:
        """Add a block; waits for room.

        Args:
            block: The messages.

        Returns:
            False where the queue was stopped meanwhile; the block is in the file then.

        Raises:
            OutputError: The spool can't be written.
        """
        with self._changed:
            size = len(block.payload)
            while not self._stopped and not self._has_room(size):
                self._changed.wait()
            self._memory.append(block)
            self._memory_bytes += size
            self.peak_bytes = max(self.peak_bytes, self._memory_bytes)
            self.waiting += block.count
            self._changed.notify_all()
            if self._stopped:
                self._keep()
            return not self._stopped

    def end(self) -> None:
        """Say that no block follows."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def take(self, *, wait: bool) -> Block | None:
        """The next block; it stays in the queue until `delivered`.

        Args:
            wait: For one that is still to come.

        Returns:
            The messages; None where there are none, or the queue was stopped.

        Raises:
            DamagedError: The spool is not what was written.
        """
        with self._changed:
            while not self._stopped:
                if self._spool.next < self._spool.tail:
                    return self._spool.take()
                if self._taken < len(self._memory):
                    self._taken += 1
                    return self._memory[self._taken - 1]
                if self._ended or not wait:
                    return None
                self._changed.wait()
            return None

    def delivered(self, count: int) -> None:
        """The first block that was taken is done with.

        Args:
            count: Its messages.

        Raises:
            OutputError: The spool can't be written.
        """
        with self._changed:
            self.waiting -= count
            if self._spool.nbytes:
                self._spool.delivered()
            else:
                self._taken -= 1
                self._memory_bytes -= len(self._memory.popleft().payload)
            self._changed.notify_all()

    def stop(self) -> None:
        """Keep what is there for another run: all of it goes to the file.

        Raises:
            OutputError: There is no room for it.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            self._keep()

    def _keep(self) -> None:
        if not self._to_file():
            raise OutputError("there is no room for what was not sent", file=self._spool.path)

    def _has_room(self, size: int) -> bool:
        """Whether a block fits; what is in memory goes to the file where that helps."""
        if not self._memory or self._memory_bytes + size <= self._memory_max:
            return True
        if self._spool.nbytes + self._memory_bytes > self._spool_max:
            return False
        return self._to_file()

    def _to_file(self) -> bool:
        """Append what is in memory to the file; False where the disk is full."""
        while self._memory:
            if not self._spool.append(self._memory[0]):
                return False
            self._memory_bytes -= len(self._memory.popleft().payload)
            if self._taken:
                self._taken -= 1
                self._spool.skip()
        return True


def _record(block: Block) -> bytes:
    length = len(block.payload)
    crc = _crc(length, block.count, block.payload)
    return _RECORD.pack(length, block.count, crc) + block.payload


def _crc(length: int, count: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<II", length, count)))


def _puncher() -> Any:  # noqa: ANN401  (a function of the C library)
    """What gives the front of a file back to the disk, where the system can."""
    if sys.platform != "linux":
        return lambda _fd, _start, _length: 0
    library = ctypes.CDLL(None)
    function = library.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def punch(fd: int, start: int, length: int) -> int:
        # Where the file system can't, the file is longer until it is drained: nothing else.
        result: int = function(fd, _KEEP_SIZE_AND_PUNCH, start, length)
        return result

    return punch
