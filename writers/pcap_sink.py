"""What sinks of packets have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.packets import encode
from kcap.packets.frames import Frames


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
        if not batch.rows:
            return
        frames, _ = encode.frames(batch)
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
