"""What a writer remembers of a file: what waits for a chunk, and when what is due."""

from __future__ import annotations

from typing import NamedTuple

from kcap import limits
from kcap.format.chunk import Superseded


class WrittenTails(NamedTuple):
    """The TAILs of rows that wait for their chunk."""

    names: Superseded = Superseded()
    rows: int = 0
    size: int = 0
    """What the rows take in memory (clause 3.3)."""

    def with_one(self, number: int, rows: int, size: int) -> WrittenTails:
        """These and one more."""
        first, count = self.names
        names = Superseded(first if count else number, count + 1)
        return WrittenTails(names, self.rows + rows, self.size + size)


class LastCheckpoint(NamedTuple):
    """The last CHECKPOINT, or the start of the file."""

    offset: int = 0
    digest: bytes = bytes(32)
    columns: int = 0
    """Columns described by then."""
    end: int = 0


class StateCadence:
    """When the next STATE record is due (clause 4.5)."""

    def __init__(self) -> None:
        self.chunks = 0
        self._last_ns: int | None = None
        self._bytes = 0
        self._last_bytes = 0

    def due(self, file_bytes: int, now_ns: int) -> bool:
        """Whether one is due.

        Args:
            file_bytes: Length of the file so far.
            now_ns: Greatest event time so far.
        """
        if not self.chunks:
            return False
        late = self._last_ns is not None and now_ns - self._last_ns >= limits.STATE_NS
        if self.chunks < limits.STATE_CHUNKS and not late:
            return False
        return self._bytes + self._last_bytes <= limits.STATE_SHARE * file_bytes

    def written(self, length: int, now_ns: int) -> None:
        """Take note of a STATE record.

        Args:
            length: Its length.
            now_ns: Greatest event time so far.
        """
        self._bytes += length
        self._last_bytes = length
        self._last_ns = now_ns if now_ns > 0 else None
        self.chunks = 0
