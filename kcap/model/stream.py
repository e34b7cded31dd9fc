"""The two ends of every pipeline: where batches come from, and where they go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from kcap.model.batch import Batch
from kcap.model.side import SourceInfo


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is known of a source before its first event."""

    file: str
    """The file's name as the user gave it, ``-`` for a stream, a short name for a live source."""
    format: str
    """``kcap``, ``tracee``, ``netlink-proc`` …"""
    sources: tuple[SourceInfo, ...] = ()
    live: bool = False


class Source(Protocol):
    """Where events come from: a capture, a foreign file, a live recorder."""

    @property
    def info(self) -> StreamInfo:
        """What is known before the first event."""

    def batches(self) -> Iterator[Batch]:
        """The events, once.

        Yields:
            Batches in stream order. What was lost, skipped or damaged, new sources and state
            snapshots stand in `Batch.before`, in an empty batch where no event follows.
        """

    def close(self) -> None:
        """Let go of files and sockets; may be called twice."""


class LiveSource(Source, Protocol):
    """A source that goes on until it is told to stop."""

    def stop(self) -> None:
        """Ask for the end: `batches` delivers what it has and returns. Safe in a signal handler."""


class Sink(Protocol):
    """Where events go: a capture, a text stream, a message queue.

    A sink that can't take every event has an attribute ``losses``, a list of `Loss`.
    """

    def write(self, batch: Batch) -> None:
        """Take a batch; returning late is how a sink slows its source down.

        Args:
            batch: Events and side records.
        """

    def close(self) -> None:
        """Finish and flush; nothing may be written afterwards. May be called twice."""
