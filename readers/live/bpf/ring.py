"""A BPF ring buffer, read through memory that is shared with the kernel.

The kernel maps the data twice, one after the other, so that a record never has to be put together
from two ends. A record begins with a header of 8 bytes: its length with two flags, and where its
page stands. Positions only grow; what lies between ours and the kernel's is to be read.

A read of a position by Python is one load of 8 bytes. On x86-64 loads are not moved before
earlier ones, so a record whose flag says that it is complete is complete.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

from kcap.errors import KcapError
from kcap.readers.live.bpf import system

HEADER_BYTES: Final = 8
"""Before each record; `Block.offsets` point behind it."""

BUSY: Final = 1 << 31
"""A flag of the length: the record is still being written."""

DISCARD: Final = 1 << 30
"""A flag of the length: the record was given up."""

LENGTH: Final = DISCARD - 1
"""The rest: bytes of the record without its header."""


class Block(NamedTuple):
    """Records in memory that the kernel leaves alone until `Ring.release`."""

    data: memoryview
    """The bytes, headers included; each header and each record begin at a multiple of 8."""
    offsets: Sequence[int]
    """Where each record begins in it, without its header."""


def scan(data: memoryview) -> tuple[list[int], int]:
    """Find the records of a block.

    Args:
        data: From the header of a record to the kernel's position.

    Returns:
        Where the records begin, without those given up; and how many bytes they take, up to one
        that is still being written.
    """
    words = data.cast("I")
    offsets: list[int] = []
    append = offsets.append
    at, end = 0, len(data)
    while at < end:
        length = words[at >> 2]
        if length & BUSY:
            break
        if not length & DISCARD:
            append(at + HEADER_BYTES)
        at += (length & LENGTH) + HEADER_BYTES + 7 & ~7
    return offsets, at


class Ring:
    """The reading end of a ring buffer.

    Args:
        fd: The map; it can be waited for with epoll.
        size: Its number of entries, which for this kind of map are bytes.

    Raises:
        KcapError: It cannot be mapped into memory.
    """

    def __init__(self, fd: int, size: int) -> None:
        system.check_machine()
        page = mmap.PAGESIZE
        self.fd = fd
        self.size = size
        try:
            ours = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            theirs = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except (OSError, ValueError, OverflowError) as error:
            raise KcapError(f"a ring buffer of {size} bytes cannot be mapped: {error}") from error
        self._begin(memoryview(ours), memoryview(theirs)[:page], memoryview(theirs)[page:])

    def _begin(self, ours: memoryview, theirs: memoryview, data: memoryview) -> None:
        self._consumer = ours[:8].cast("Q")
        self._producer = theirs[:8].cast("Q")
        self._data = data
        self._taken = 0

    @property
    def waiting_bytes(self) -> int:
        """What the kernel has written and nobody has released."""
        return self._producer[0] - self._consumer[0]

    def take(self, limit_bytes: int | None = None) -> Block:
        """What can be read now. The same again, and maybe more, until `release`.

        Args:
            limit_bytes: Begin no record beyond so many bytes.

        Returns:
            The records; empty where there are none. They may be read until `release`.
        """
        position = self._consumer[0]
        waiting = self._producer[0] - position
        limit = waiting if limit_bytes is None else min(waiting, limit_bytes + 7 & ~7)
        begin = position & self.size - 1
        offsets, self._taken = scan(self._data[begin : begin + limit])
        return Block(self._data[begin : begin + self._taken], offsets)

    def release(self) -> None:
        """Give the memory of what was taken back to the kernel."""
        self._consumer[0] += self._taken
        self._taken = 0

    def close(self) -> None:
        """Let the memory go, as soon as no block of it is in use. The descriptor stays open."""
        self._consumer = self._producer = self._data = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
