"""A BPF ring buffer, read through memory that is shared with the kernel.

The kernel maps the data twice, one after the other, so that a record never has to be put together
from two ends. Positions only grow; what lies between ours and the kernel's is to be read, up to a
record that is still being written (see `kcap.readers.live.bpf.scan`).

A read of a position by Python is one load of 8 bytes. On x86-64 loads are not moved before
earlier ones, so a record whose flag says that it is complete is complete.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from kcap.errors import KcapError
from kcap.readers.live.bpf import scan, syscalls

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NUMPY_RECORDS: Final = 256
"""With fewer records waiting, about, numpy's setting out takes longer than the search."""

NUMPY_BYTES: Final = 512
"""With longer records, on the average, following their chain is quicker than the search."""

_USUAL_BYTES: Final = 256
"""What a record is expected to take before there was any."""


class Block(NamedTuple):
    """Records in memory that the kernel leaves alone until `Ring.release`."""

    data: memoryview
    """The bytes, headers included; each header and each record begin at a multiple of 8."""
    offsets: Sequence[int] | npt.NDArray[np.int64]
    """Where each record begins in it, without its header."""


class Ring:
    """The reading end of a ring buffer.

    Args:
        fd: The map; it can be waited for with epoll.
        size: Its number of entries, which for this kind of map are bytes.

    Raises:
        KcapError: It cannot be mapped into memory.
    """

    def __init__(self, fd: int, size: int) -> None:
        syscalls.check_machine()
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
        self._record_bytes = _USUAL_BYTES

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
        offsets: Sequence[int] | npt.NDArray[np.int64]
        if self._record_bytes < NUMPY_BYTES and limit > NUMPY_RECORDS * self._record_bytes:
            offsets, self._taken = scan.search(self._data, begin, begin + limit)
        else:
            offsets, self._taken = scan.follow(self._data[begin : begin + limit])
        if len(offsets):
            self._record_bytes = self._taken // len(offsets)
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
