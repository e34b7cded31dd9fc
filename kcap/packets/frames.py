"""`Frames`: captured packets as numpy columns, from a live recorder as from a file.

A frame is one *sighting* of a packet: what one observer saw at one time, in one direction. A
packet over loopback has two, one as it leaves and one as it arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U16 = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]

FRAME_BYTES: Final = 1 << 18
"""The most that is captured of one frame: what tcpdump and Wireshark take for the limit, too."""

LENGTH_MAX: Final = (1 << 32) - 1
"""The greatest true length of a frame: files have 32 bits for it."""

NONE: Final = -1
"""What stands in an index (`Frames.interface`, `Frames.owner`, `Frames.comment`) for nothing."""


class LinkType(IntEnum):
    """What a frame begins with: the link types whose inside is looked at (tcpdump's numbers)."""

    NULL = 0
    """Four bytes of address family, in the byte order of either machine."""
    ETHERNET = 1
    RAW_BSD = 12
    """IP without anything before it, as BSDs number it."""
    RAW_OPENBSD = 14
    RAW = 101
    """IP, version 4 or 6, without anything before it."""
    LOOP = 108
    """As `NULL`, always in network order."""
    SLL = 113
    """Linux's cooked header of 16 bytes."""
    IPV4 = 228
    IPV6 = 229
    SLL2 = 276
    """Linux's cooked header of 20 bytes."""


class Direction(IntEnum):
    """Which way a frame went, as the host sees it; the numbers are those of pcapng."""

    UNKNOWN = 0
    IN = 1
    OUT = 2


class Owner(NamedTuple):
    """Whose packets: the process of a socket; None for what is not known.

    Of many frames of one socket all refer to one entry, so that it costs nothing a frame.
    """

    pid: int | None = None
    """Process id, as the host sees it."""
    tid: int | None = None
    """Thread id, as the host sees it."""
    name: str | bytes | None = None
    """Name of the process (comm); bytes where it is not valid UTF-8."""
    start_ns: int | None = None
    """Start time of the process as its source gives it, ns: ``process_start_ns``."""
    thread_start_ns: int | None = None
    uid: int | None = None
    gid: int | None = None
    ppid: int | None = None
    cgroup_id: int | None = None
    container_id: str | None = None
    """The whole id; None or empty for a process of the host."""
    container_name: str | None = None
    exe: str | bytes | None = None
    cmdline: str | bytes | None = None
    parent_name: str | bytes | None = None
    user: str | None = None
    process_key: str | None = None
    provenance: str | None = None
    """Where the identity is from, as ``column:provenance`` pairs; None for the best there is."""

    @property
    def nobody(self) -> bool:
        """Whether a recorder says that no process has the packet: more than not to know whose."""
        return self.pid is None and _NOBODY in (self.provenance or "").split(",")


_NOBODY: Final = "pid:unowned"

NOBODY: Final = Owner(provenance=_NOBODY)
"""Of packets of which a recorder says that no socket has them."""


@dataclass(frozen=True, slots=True)
class Frames:
    r"""A batch of frames; every array has one entry a frame, but `data`.

    Frames need not be adjacent in `data` nor in order there, so a reader can point into the
    block that it read; they never reach beyond its end. What the snap length of a capture cut
    off is the difference of `length` and `captured`.

    Example:
        >>> frames = Frames.of([b"\x45" + bytes(19)], [1_700_000_000_000_000_000], LinkType.RAW)
        >>> len(frames), frames.frame(0)[:1]
        (1, b'E')
    """

    data: Bytes
    """The bytes of all frames."""
    offsets: I64
    """Where in `data` each frame starts."""
    captured: I32
    """How many bytes of the frame are there, 0 to `FRAME_BYTES`."""
    length: I64
    """How many bytes the frame had on the wire, from the same layer on as what was captured."""
    ts_ns: I64
    """When it was seen, ns since 1970 UTC."""
    link_type: U16
    """What it begins with, a `LinkType` or another of tcpdump's numbers."""
    timed: Mask | None = None
    """Whether `ts_ns` is a time at all; None where all are."""
    direction: Bytes | None = None
    """A `Direction`; None where none is known."""
    interface: I32 | None = None
    """Index into `interfaces`, `NONE` for no interface; None where none is known."""
    interfaces: Sequence[str] = ()
    """Names of interfaces."""
    owner: I32 | None = None
    """Index into `owners`, `NONE` for no owner; None where none is known."""
    owners: Sequence[Owner] = ()
    comment: I32 | None = None
    """Index into `comments`, `NONE` for no comment; None where none has one."""
    comments: Sequence[str] = ()
    packet_id: I64 | None = field(default=None)
    """What the source says which packet this is a sighting of, -1 where it does not; positive.
    None where no frame has one: `kcap.packets.identity` gives them."""

    def __post_init__(self) -> None:
        """State what holds of every batch."""
        count = len(self.offsets)
        for name in ("captured", "length", "ts_ns", "link_type"):
            assert len(getattr(self, name)) == count, name
        for name in ("timed", "direction", "interface", "owner", "comment", "packet_id"):
            column = getattr(self, name)
            assert column is None or len(column) == count, name
        if count:
            assert int(self.captured.min()) >= 0
            assert int(self.offsets.min()) >= 0
            assert int((self.offsets + self.captured).max()) <= len(self.data)

    def __len__(self) -> int:
        """The number of frames."""
        return len(self.offsets)

    def frame(self, index: int) -> bytes:
        """What was captured of one frame; for tests and for few frames.

        Args:
            index: Which.

        Returns:
            Its bytes.
        """
        start = int(self.offsets[index])
        return self.data[start : start + int(self.captured[index])].tobytes()

    def take(self, wanted: npt.NDArray[np.integer[Any]]) -> Frames:
        """Some of the frames, without a copy of their bytes.

        Args:
            wanted: Their numbers, in any order.

        Returns:
            Those frames.
        """

        def some(column: Any) -> Any:  # noqa: ANN401
            return None if column is None else column[wanted]

        return Frames(
            self.data,
            self.offsets[wanted],
            self.captured[wanted],
            self.length[wanted],
            self.ts_ns[wanted],
            self.link_type[wanted],
            some(self.timed),
            some(self.direction),
            some(self.interface),
            self.interfaces,
            some(self.owner),
            self.owners,
            some(self.comment),
            self.comments,
            some(self.packet_id),
        )

    @classmethod
    def of(
        cls,
        frames: Sequence[bytes],
        ts_ns: Sequence[int],
        link_type: int,
        **columns: Any,  # noqa: ANN401
    ) -> Frames:
        """Frames out of their bytes; for tests and for few frames.

        Args:
            frames: What was captured of each.
            ts_ns: When each was seen, ns since 1970 UTC.
            link_type: What all begin with.
            **columns: The other columns; ``length`` is that captured unless it is given.

        Returns:
            The frames.
        """
        captured = np.array([len(f) for f in frames], np.int32)
        ends = np.cumsum(captured, dtype=np.int64)
        columns.setdefault("length", captured.astype(np.int64))
        return cls(
            data=np.frombuffer(b"".join(frames), np.uint8),
            offsets=ends - captured,
            captured=captured,
            ts_ns=np.array(ts_ns, np.int64),
            link_type=np.full(len(frames), link_type, np.uint16),
            **columns,
        )
