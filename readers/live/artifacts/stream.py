"""One stream while it is put together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap.model.artifact import Gap
from kcap.readers.live.artifacts.triggers import text

LOST: Final = "the ring between kernel and recorder was full"
_TYPES: Final = {0o01: "pipe", 0o02: "char", 0o06: "block", 0o10: "regular", 0o14: "socket"}
SCATTERED: Final = "in too many pieces"
PIECES_MAX: Final = 1 << 14
"""Pieces of one stream, those that follow each other put together: who passes a byte now in this
way, now in that, is not to fill our memory."""

PROCESSES_MAX: Final = 64
"""Processes that are named with a stream."""


class Stream:
    """One stream, from some offset on.

    Args:
        base: The offset of its first byte: not 0 where what came before was given out already.
        cap_bytes: So many bytes are kept at most.
    """

    def __init__(self, base: int, cap_bytes: int) -> None:
        self.base = base
        self.total = base
        """Where it ends, as far as is known."""
        self.first: np.void | None = None
        """The record that told of it first."""
        self.first_ns = self.last_ns = 0
        self.path: bytes | None = None
        self.dev = self.inode = self.mode = self.direction = 0
        self.pids: set[int] = set()
        """Processes that read or wrote, and live as far as is known."""
        self.processes: dict[int, str] = {}
        self.ended = self.ignored = False
        self.cost = 0
        """Bytes of memory that it holds, about."""
        self._cap = base + cap_bytes
        self._cap_bytes = cap_bytes
        self._runs: list[tuple[int, bytes | Gap]] = []
        self._known = 0
        self._unnamed = LOST
        """Why there is nothing where no piece is."""

    @property
    def crowded(self) -> bool:
        """Whether it has as many pieces as it can."""
        return len(self._runs) >= PIECES_MAX

    @property
    def complete(self) -> bool:
        """Whether of each byte that passed it is known where it is."""
        return self._known >= self.total - self.base

    @property
    def file_type(self) -> str | None:
        """What it passed through, as details of artifacts call it."""
        return _TYPES.get(self.mode >> 12)

    def identify(self, key: np.void, born_ns: int) -> None:
        """Say which it is where no record of it came.

        Args:
            key: What the kernel names it by.
            born_ns: When its first bytes passed; CLOCK_BOOTTIME.
        """
        self.dev, self.inode = int(key["dev"]), int(key["inode"])
        self.direction = int(key["direction"])
        self.first_ns = self.last_ns = born_ns

    def see(self, heads: npt.NDArray[np.void]) -> list[int]:
        """Learn what records say beside their content.

        Args:
            heads: The records, by their offsets.

        Returns:
            Processes that have not been seen with it before.
        """
        times = heads["ts_ns"]
        early = int(times.argmin())
        if self.first is None or int(times[early]) < self.first_ns:
            first = self.first = heads[early]
            self.first_ns = int(times[early])
            self.dev, self.inode = int(first["dev"]), int(first["inode"])
            self.mode, self.direction = int(first["mode"]), int(first["direction"])
        self.last_ns = max(self.last_ns, int(times.max()))
        self.total = max(
            self.total, int(heads["total"].max()), int((heads["offset"] + heads["length"]).max())
        )
        pids, places = np.unique(heads["pid"], return_index=True)
        fresh = []
        for pid, at in zip(pids.tolist(), places.tolist(), strict=True):
            if pid not in self.processes and len(self.processes) < PROCESSES_MAX:
                self.processes[pid] = text(heads["comm"][at].tobytes())
            if pid not in self.pids:
                self.pids.add(pid)
                fresh.append(pid)
        return fresh

    def put(self, offset: int, content: bytes) -> tuple[int, int]:
        """Add content.

        Args:
            offset: Where it stands in the stream.
            content: Its bytes.

        Returns:
            How many bytes are held of it, and how many came too late.
        """
        late = min(max(self.base - offset, 0), len(content))
        content, offset = content[late:], offset + late
        room = max(self._cap - offset, 0)
        if len(content) > room:
            self.miss(offset + room, len(content) - room, self._over())
            content = content[:room]
        if content:
            self._runs.append((offset, content))
            self._known += len(content)
        return len(content), late

    def miss(self, offset: int, length: int, reason: str) -> int:
        """Add a gap.

        Args:
            offset: Where it begins in the stream.
            length: Its bytes.
            reason: Why.

        Returns:
            How many pieces it has more now.
        """
        late = min(max(self.base - offset, 0), length)
        if length <= late:
            return 0
        offset, length = offset + late, length - late
        self._known += length
        if self._runs:
            start, last = self._runs[-1]
            if isinstance(last, Gap) and last.reason == reason and start + last.length == offset:
                self._runs[-1] = start, Gap(last.length + length, reason)
                return 0
        self._runs.append((offset, Gap(length, reason)))
        return 1

    def skip(self, length: int, reason: str) -> None:
        """Have bytes somewhere of which no piece is remembered.

        Args:
            length: How many.
            reason: Why.
        """
        self._known += length
        self._unnamed = reason

    def ignore(self) -> int:
        """Keep nothing of it, now and later.

        Returns:
            What it held.
        """
        self.ignored = True
        self._runs.clear()
        freed, self.cost = self.cost, 0
        return freed

    def starts_with(self, magic: bytes) -> bool:
        """Whether it begins with some bytes.

        Args:
            magic: The bytes.

        Returns:
            Whether they are there, at the very beginning of the stream.
        """
        start = b""
        for part in self.parts():
            if isinstance(part, Gap) or len(start) >= len(magic):
                break
            start += part[: len(magic)]
        return self.base == 0 and start.startswith(magic)

    def parts(self) -> Iterator[bytes | Gap]:
        """All of it, in order.

        Yields:
            Bytes, and gaps: together as long as what passed.
        """
        at = self.base
        waiting: Gap | None = None
        for offset, part in sorted(self._runs, key=lambda run: run[0]):
            length = part.length if isinstance(part, Gap) else len(part)
            if offset + length <= at:
                continue
            if offset > at:
                waiting, given = _joined(waiting, Gap(offset - at, self._unnamed))
                yield from given
            begin = max(at - offset, 0)
            at = offset + length
            if isinstance(part, Gap):
                waiting, given = _joined(waiting, Gap(length - begin, part.reason))
                yield from given
                continue
            if waiting is not None:
                yield waiting
                waiting = None
            yield part[begin:]
        if at < self.total:
            waiting, given = _joined(waiting, Gap(self.total - at, self._unnamed))
            yield from given
        if waiting is not None:
            yield waiting

    def _over(self) -> str:
        return f"over {self._cap_bytes} bytes of one artifact"


def _joined(waiting: Gap | None, gap: Gap) -> tuple[Gap, tuple[Gap, ...]]:
    """Two gaps as one where the reason is the same."""
    if waiting is None:
        return gap, ()
    if waiting.reason == gap.reason:
        return Gap(waiting.length + gap.length, gap.reason), ()
    return gap, (waiting,)
