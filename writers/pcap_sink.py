"""What sinks of packets have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import BinaryIO, ClassVar, Final, Protocol

import numpy as np

from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.packets import encode
from kcap.packets.frames import Frames, LinkType

CUT: Final = "what is said of a packet is longer than pcapng can hold"
"""Why something is cut."""

KINDS_MAX: Final = 32
"""Link types that have captures beside that of IP packets; all are open at once."""


class PacketSink(ABC):
    """A sink that takes the packets among events; other events are none of its business."""

    def __init__(self) -> None:
        self.losses: list[Loss] = []
        """Packets that could not be written as they are."""
        self.packets = 0
        """Packets so far, every sighting counted."""

    def write(self, batch: Batch) -> None:
        """Take events.

        Args:
            batch: The events.
        """
        for part in encode.portions(batch) if batch.rows else ():
            frames, _ = encode.frames(part)
            if len(frames):
                self.packets += len(frames)
                self.take(frames)

    @abstractmethod
    def take(self, frames: Frames) -> None:
        """Take packets.

        Args:
            frames: The next ones, at least one.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish; may be called twice."""


class Contents(Protocol):
    """Makes the bytes of one capture."""

    cut: int
    """Packets so far of which not all that is said of them has a place in it."""

    def head(self) -> bytes:
        """What stands before the first packet."""

    def body(self, frames: Frames) -> bytes:
        """Packets.

        Args:
            frames: The next ones.

        Returns:
            Their bytes.
        """

    def tail(self) -> bytes:
        """What stands behind the last packet."""


class PacketFile(PacketSink):
    """A sink that writes one capture, with frames of link type RAW: IP packets.

    Frames of others have a capture of their own for each link type: tcpdump reads no file that
    has two.

    Args:
        stream: Takes the bytes.
        beside: Opens the capture for another link type; None where there is no place for it, and
            such frames are left out and told.
    """

    UNTIMED: ClassVar[str]
    """What becomes of times that can't be written."""

    def __init__(self, stream: BinaryIO, beside: Callable[[int], BinaryIO] | None = None) -> None:
        super().__init__()
        self._beside = beside
        self._others = self._untimed = 0
        self._files: dict[int, tuple[BinaryIO, Contents]] = {}
        self._begin(LinkType.RAW, stream)

    @abstractmethod
    def contents(self, link_type: int) -> Contents:
        """What makes the bytes.

        Args:
            link_type: That of all frames.

        Returns:
            It.
        """

    @abstractmethod
    def untimed(self, frames: Frames) -> int:
        """How many frames have a time that can't be written.

        Args:
            frames: The frames.

        Returns:
            The number.
        """

    def take(self, frames: Frames) -> None:
        """See `PacketSink.take`."""
        for kind in np.unique(frames.link_type).tolist():
            mine = frames.link_type == kind
            part = frames if mine.all() else frames.take(np.flatnonzero(mine))
            if kind not in self._files:
                if self._beside is None or len(self._files) > KINDS_MAX:
                    self._others += len(part)
                    continue
                self._begin(kind, self._beside(kind))
            stream, contents = self._files[kind]
            self._untimed += self.untimed(part)
            stream.write(contents.body(part))

    def _begin(self, link_type: int, stream: BinaryIO) -> None:
        contents = self.contents(link_type)
        stream.write(contents.head())
        self._files[link_type] = stream, contents

    def close(self) -> None:
        """See `kcap.model.stream.Sink`."""
        others, self._others = self._others, 0
        if others:
            reason = "frames that are no IP packets: they would need a file of their own"
            self.losses.append(Loss("skipped", others, reason))
        untimed, self._untimed = self._untimed, 0
        if untimed:
            self.losses.append(Loss("cut", untimed, self.UNTIMED))
        for stream, contents in self._files.values():
            stream.write(contents.tail())
        cut = sum(contents.cut for _, contents in self._files.values())
        self._files.clear()
        if cut:
            self.losses.append(Loss("cut", cut, CUT))
