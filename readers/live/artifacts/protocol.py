"""What the processes that read artifacts say to each other, and to the worker.

Finished artifacts go over a socket that keeps messages apart: a header of JSON, and with it the
descriptor of a sealed memory file that has the bytes. Every length has a limit. What a reader is
at stands in a page that its supervisor can look into without touching a file.
"""

from __future__ import annotations

import json
import mmap
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from kcap.errors import KcapError

MESSAGE_BYTES: Final = 1 << 17
PATH_BYTES: Final = 4096
RANGES_MAX: Final = 1024
"""Ranges of one artifact; beyond, holes are read like data."""

SPOOL_BYTES: Final = 256 << 20
"""Content that waits for the worker at most; beyond, only hashes go over."""

ARTIFACT, HASHES, LOST, MARKED, GONE, HELD, DONE, NAMED = (bytes([c]) for c in b"AHLMGODN")
"""The first byte of a message."""

LOCAL, REMOTE, MOMENTS, MEMORY = range(4)
ROLES: Final = ("local", "remote", "moments", "memory")
"""The readers: of this host's file systems, of those that a server may stall, of what the kernel's
program tells, of memory."""

DATA, HOLE, MISSING = 0, 1, 2
"""Forms of a range."""

HASH: Final = struct.Struct("=IIQQqq32s")
"""A file that was executed: process, whether the hash is known, device, inode, ctime, mtime,
SHA-256."""
HASHES_MAX: Final = 512
TOO_LATE, HASHED, NO_HASH = range(3)
"""What is known of it: nothing, as the process had ended; its hash; that none is made of it."""

IDLE, FETCHING, WORKING = range(3)
"""What a reader does: wait, take an event (which opens its file), read."""

_PAGE_BYTES: Final = 1 << 17
_PIDS: Final = struct.Struct("=III")
_PIDS_MAX: Final = 64
_OWN_AT: Final = 512
_FLAGS_AT: Final = 1024
_TAKEN_AT: Final = 1032
_ERA_AT: Final = 1040
_ROLE_AT: Final = 4096
_ROLE_BYTES: Final = 1 << 14
_ROLE: Final = struct.Struct("=QQQQIII")
_SENT_AT, _EVENTS_AT, _KEPT_AT, _DOING_AT, _READY_AT, _LENGTH_AT = 8, 16, 24, 32, 36, 40
"""Its parts; the steps are the first."""
_WORK_AT: Final = 64
_WORK_BYTES: Final = _ROLE_BYTES - _WORK_AT


class HashNote(NamedTuple):
    """The hash of a file that was executed."""

    pid: int
    known: int
    """`TOO_LATE`, `HASHED` or `NO_HASH`."""
    dev: int
    """As the kernel has it: the major number times 2^20, and the minor one."""
    inode: int
    ctime_ns: int
    mtime_ns: int
    sha256: bytes


def pack(kind: bytes, content: Mapping[str, Any]) -> bytes:
    """A message of JSON.

    Args:
        kind: Its first byte.
        content: Plain JSON values.

    Returns:
        The message.
    """
    return kind + json.dumps(content, separators=(",", ":")).encode()


def unpack(message: bytes) -> dict[str, Any]:
    """Read what `pack` wrote.

    Args:
        message: The message.

    Returns:
        Its content.

    Raises:
        KcapError: It is no such message.
    """
    try:
        content = json.loads(message[1:])
    except ValueError as e:
        raise KcapError("a reader of artifacts said what is no JSON") from e
    if not isinstance(content, dict):
        raise KcapError("a reader of artifacts said what is no JSON object")
    return content


def pack_hashes(notes: Iterable[HashNote]) -> bytes:
    """A message of hashes.

    Args:
        notes: At most `HASHES_MAX`.

    Returns:
        The message.
    """
    return HASHES + b"".join(HASH.pack(*note) for note in notes)


def unpack_hashes(message: bytes) -> list[HashNote]:
    """Read what `pack_hashes` wrote.

    Args:
        message: The message.

    Returns:
        The hashes; an incomplete one at the end is left out.
    """
    end = (len(message) - 1) // HASH.size * HASH.size + 1
    return [HashNote._make(each) for each in HASH.iter_unpack(message[1:end])]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that keeps messages apart, with room for thousands."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    forced = 32  # SO_SNDBUFFORCE, which Python does not name
    try:
        writing.setsockopt(socket.SOL_SOCKET, forced, _ROOM_BYTES)
    except OSError:
        writing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM_BYTES)
    writing.setblocking(False)
    reading.setblocking(False)
    return reading, writing


_ROOM_BYTES: Final = 4 << 20


class Progress(NamedTuple):
    """What a reader is at."""

    steps: int
    sent_bytes: int
    """Content that it has sent to the worker, ever."""
    events: int
    kept: int
    doing: int
    ready: int
    """It has marked what there was when it began."""
    work_bytes: int


class Shared:
    """The page that all of them see. Each part of it has one writer."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _PAGE_BYTES)
        # An entry of these is written at once, whoever looks; one that is packed is zero meanwhile.
        self._counts = memoryview(self._page).cast("Q")
        self._numbers = memoryview(self._page).cast("I")
        self._role = [_ROLE_AT + role * _ROLE_BYTES for role in range(len(ROLES))]

    def close(self) -> None:
        """Let go of it."""
        self._counts.release()
        self._numbers.release()
        self._page.close()

    # The supervisor writes.
    @property
    def changes(self) -> int:
        """How often the readers have changed."""
        return int(_PIDS.unpack_from(self._page)[0])

    @property
    def stuck(self) -> int:
        """Readers that were killed and have not ended."""
        return int(_PIDS.unpack_from(self._page)[1])

    @property
    def pids(self) -> tuple[int, ...]:
        """The readers, stuck ones last."""
        count = min(_PIDS.unpack_from(self._page)[2], _PIDS_MAX)
        return struct.unpack_from(f"={count}I", self._page, _PIDS.size)

    def tell(self, pids: list[int], stuck: int) -> None:
        """Say what readers there are."""
        pids = pids[:_PIDS_MAX]
        struct.pack_into(f"={len(pids)}I", self._page, _PIDS.size, *pids)
        _PIDS.pack_into(self._page, 0, self.changes + 1 & 0xFFFFFFFF, stuck, len(pids))

    # The process with rights writes.
    @property
    def own(self) -> frozenset[int]:
        """The recorder's processes."""
        (count,) = struct.unpack_from("=I", self._page, _OWN_AT)
        count = min(count, _PIDS_MAX)
        return frozenset(struct.unpack_from(f"={count}I", self._page, _OWN_AT + 4))

    def tell_own(self, pids: list[int]) -> None:
        """Say what the recorder's processes are."""
        pids = pids[:_PIDS_MAX]
        struct.pack_into(f"={len(pids)}I", self._page, _OWN_AT + 4, *pids)
        struct.pack_into("=I", self._page, _OWN_AT, len(pids))

    # The worker writes.
    @property
    def hash_only(self) -> bool:
        """Nobody takes content any more."""
        return bool(self._page[_FLAGS_AT])

    @hash_only.setter
    def hash_only(self, value: bool) -> None:
        """Say that nobody takes content any more."""
        self._page[_FLAGS_AT] = int(value)

    @property
    def taken_bytes(self) -> int:
        """Content that the worker is done with, ever."""
        return int(struct.unpack_from("=Q", self._page, _TAKEN_AT)[0])

    def take(self, count: int) -> None:
        """Say that the worker is done with so many bytes more."""
        struct.pack_into("=Q", self._page, _TAKEN_AT, self.taken_bytes + count)

    @property
    def era(self) -> int:
        """How often what was read before was to be read again."""
        return int(struct.unpack_from("=Q", self._page, _ERA_AT)[0])

    def begin_era(self) -> None:
        """Have what was read before read again, where it comes again."""
        struct.pack_into("=Q", self._page, _ERA_AT, self.era + 1)

    # A reader writes.
    def progress(self, role: int) -> Progress:
        """What a reader is at."""
        return Progress._make(_ROLE.unpack_from(self._page, self._role[role]))

    def work(self, role: int) -> dict[str, Any]:
        """What a reader said of what it is at."""
        at = self._role[role]
        length = min(self.progress(role).work_bytes, _WORK_BYTES)
        try:
            found = json.loads(self._page[at + _WORK_AT : at + _WORK_AT + length] or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def spooled_bytes(self) -> int:
        """Content that waits for the worker."""
        sent = sum(self.progress(role).sent_bytes for role in range(len(ROLES)))
        return sent - self.taken_bytes

    def at(self, role: int, doing: int, work: Mapping[str, Any] | None = None) -> None:
        """Say what a reader is at now."""
        at, said = self._role[role], b""
        if work is not None:
            said = json.dumps(work).encode()
            if len(said) > _WORK_BYTES:
                said = b"{}"
            self._page[at + _WORK_AT : at + _WORK_AT + len(said)] = said
        self._numbers[at + _DOING_AT >> 2] = doing
        self._numbers[at + _LENGTH_AT >> 2] = len(said)
        self._counts[at >> 3] += 1

    def step(self, role: int) -> None:
        """Say that a reader goes on."""
        self._counts[self._role[role] >> 3] += 1

    def count(
        self, role: int, *, sent_bytes: int = 0, events: int = 0, kept: int = 0, ready: int = 0
    ) -> None:
        """Add to what a reader counts."""
        at = self._role[role]
        for place, more in ((_SENT_AT, sent_bytes), (_EVENTS_AT, events), (_KEPT_AT, kept)):
            if more:
                self._counts[at + place >> 3] += more
        if ready:
            self._numbers[at + _READY_AT >> 2] = 1
