"""The way of finished artifacts from a reader to the worker: never in the way of the reader."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from kcap.errors import KcapError
from kcap.model.artifact import Gap
from kcap.readers.live.artifacts import protocol
from kcap.readers.live.artifacts.copying import Copied
from kcap.readers.live.artifacts.protocol import DATA, HOLE, HashNote, Shared

WAITING_MAX: Final = 8192
"""Messages that a reader holds for a worker who does not read."""

_PART_BYTES: Final = 1 << 20
_SMALL_BYTES: Final = 1 << 16
_FILES_MAX: Final = 256
"""Smaller content is taken into memory at once, and larger where so many files are open."""


class Sender:
    """A reader's end.

    Args:
        end: The socket.
        shared: Where it counts what it sent.
        role: Which reader.
    """

    def __init__(self, end: socket.socket, shared: Shared, role: int) -> None:
        self._end = end
        self._shared = shared
        self._role = role
        self._waiting: deque[tuple[bytes, int | None]] = deque()
        self._notes: list[HashNote] = []
        self._dropped = 0

    @property
    def room_bytes(self) -> int:
        """Content that may be sent now."""
        return max(0, protocol.SPOOL_BYTES - self._shared.spooled_bytes)

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._waiting or self._notes or self._dropped)

    @property
    def crowded(self) -> bool:
        """Whether a reader had better leave what comes next in the kernel."""
        return len(self._waiting) >= WAITING_MAX // 2

    def note(self, note: HashNote) -> None:
        """Tell a hash, soon."""
        self._notes.append(note)
        if len(self._notes) >= protocol.HASHES_MAX:
            self._send_notes()

    def artifact(self, about: Mapping[str, Any], copied: Copied) -> None:
        """Send an artifact.

        Args:
            about: What is known of it.
            copied: Its content, whose memory is closed here.
        """
        told = {**about, **content(copied)}
        self._shared.count(self._role, sent_bytes=copied.kept_bytes, kept=1)
        self._send_notes()
        self.send(protocol.pack(protocol.ARTIFACT, told), copied.memory)

    def lost(self, reason: str, count: int = 1, kind: str = "lost") -> None:
        """Say that something is not there."""
        told = {"reason": reason, "count": count, "kind": kind, "time_ns": time.time_ns()}
        self.send(protocol.pack(protocol.LOST, told))

    def send(self, message: bytes, memory: int | None = None) -> None:
        """Send a message, now or later.

        Args:
            message: The message.
            memory: A descriptor that goes with it, and is closed here.
        """
        if len(self._waiting) >= WAITING_MAX or len(message) > protocol.MESSAGE_BYTES:
            self._dropped += 1
            if memory is not None:
                os.close(memory)
            return
        self._waiting.append((message, memory))
        self.flush()

    def flush(self) -> bool:
        """Send what waits, as far as the worker takes it.

        Returns:
            Whether all was sent.

        Raises:
            OSError: The worker is gone.
        """
        self._send_notes()
        while self._waiting:
            message, memory = self._waiting[0]
            try:
                socket.send_fds(self._end, [message], [] if memory is None else [memory])
            except BlockingIOError:
                return False
            self._waiting.popleft()
            if memory is not None:
                os.close(memory)
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.lost("artifacts that the recorder had no time to take", dropped)
        return not self._waiting

    def _send_notes(self) -> None:
        if self._notes:
            notes, self._notes = self._notes, []
            self._waiting.append((protocol.pack_hashes(notes), None))


def content(copied: Copied) -> dict[str, Any]:
    """What a header says of the content of an artifact.

    Args:
        copied: The content.

    Returns:
        Plain JSON values.
    """
    reasons = sorted({part.reason for part in copied.ranges if part.reason is not None})
    place = {reason: at for at, reason in enumerate(reasons)}
    return {
        **copied.hashes,
        "ranges": [
            [part.length, part.form, 0 if part.reason is None else place[part.reason]]
            for part in copied.ranges
        ],
        "reasons": reasons,
        "truncated": copied.truncated,
        "changed": copied.changed,
    }


class Spooled:
    """The content of an artifact in a sealed memory file; see `kcap.model.artifact.Content`.

    Args:
        memory: The descriptor, which becomes ours; None where there are no bytes.
        ranges: Length, form and reason of each part.
        reasons: The reasons.
        shared: Where it is said that the bytes are let go of.

    Raises:
        KcapError: The ranges are not those of the memory file.
    """

    _files = 0

    def __init__(
        self,
        memory: int | None,
        ranges: Sequence[Sequence[int]],
        reasons: Sequence[str],
        shared: Shared,
    ) -> None:
        self._memory: int | None = memory
        self._held: bytes | None = None
        self._shared = shared
        self._ranges: list[int | Gap] = []
        self._bytes = 0
        self._open = memory is not None
        Spooled._files += self._open
        try:
            for length, form, reason in ranges:
                if length <= 0:
                    raise ValueError(length)
                if form == DATA:
                    self._ranges.append(int(length))
                    self._bytes += length
                else:
                    self._ranges.append(Gap(length, None if form == HOLE else reasons[reason]))
            held = 0 if memory is None else os.fstat(memory).st_size
            if held != self._bytes:
                raise ValueError(held)
        except (ValueError, IndexError, TypeError) as e:
            self.close()
            raise KcapError(f"a reader of artifacts said ranges that are none: {e}") from e
        if self._memory is not None and (
            self._bytes <= _SMALL_BYTES or Spooled._files > _FILES_MAX
        ):
            self._held = b"".join(self._read(0, self._bytes))
            os.close(self._memory)
            self._memory = None
            Spooled._files -= 1

    @property
    def nbytes(self) -> int:
        """See `Content`."""
        return self._bytes

    @property
    def gaps(self) -> list[Gap]:
        """The ranges that have no bytes."""
        return [part for part in self._ranges if isinstance(part, Gap)]

    def parts(self) -> Iterator[bytes | Gap]:
        """See `Content`."""
        at = 0
        for part in self._ranges:
            if isinstance(part, Gap):
                yield part
                continue
            yield from self._read(at, at + part)
            at += part

    def _read(self, at: int, end: int) -> Iterator[bytes]:
        if self._held is not None:
            yield self._held[at:end]
            return
        while at < end:
            if self._memory is None:
                raise OSError("the content of an artifact was let go of")
            read = os.pread(self._memory, min(_PART_BYTES, end - at), at)
            if not read:
                raise OSError("the content of an artifact ends early")
            yield read
            at += len(read)

    def close(self) -> None:
        """Let go of the bytes."""
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None
            Spooled._files -= 1
        if self._open:
            self._open = False
            self._held = None
            self._shared.take(self._bytes)

    def __del__(self) -> None:
        """Let go of the bytes where nobody has them any more."""
        self.close()


def received(end: socket.socket) -> Iterable[tuple[bytes, int | None]]:
    """The messages that are there.

    Args:
        end: The worker's end.

    Yields:
        Message and descriptor, which is the caller's. None more where nothing is there now.
    """
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(end, protocol.MESSAGE_BYTES, 1, flags)
        except (BlockingIOError, InterruptedError, ConnectionResetError):
            return
        for more in descriptors[1:]:
            os.close(more)
        if not message:
            return
        yield message, descriptors[0] if descriptors else None
