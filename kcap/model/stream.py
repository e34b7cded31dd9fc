"""The two ends of every pipeline: where batches come from, and where they go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, ClassVar, Protocol

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


class Reader(Source, Protocol):
    """A source of the events of a foreign file: what an entry point of ``kcap.readers`` names.

    Two attributes of the class may be left out. ``needs`` maps each extra that reading takes to
    the module it installs (``{"evtx": "evtx"}``); such a module is imported where it is used, so
    that inputs are told apart without it. ``joins`` is true where the constructor takes
    ``raw_pairs``.
    """

    reads: ClassVar[str]
    """What it reads, as ``kcap import --list`` says it: products, suffixes, versions."""

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        """Read a file.

        Args:
            stream: The bytes from their start; need not be seekable. Closed with the reader.
            file: Its name, as the user gave it.
            lenient: Go on past bad input.
        """

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input is this reader's.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where it is.
        """


class LiveSource(Source, Protocol):
    """A source that goes on until it is told to stop.

    What needs rights happens when it is made, in `prepare`, `serve` and `close`.
    Between `prepare` and `close`, another process may call `batches`: one that was forked, so that
    it has the descriptors and mappings, and then gave up its rights.
    """

    rights: Collection[str]
    """The capabilities that `serve` and `close` take, by name."""

    def part(self, ask: Callable[[str, bytes], bytes]) -> None:
        """Go on in such a process.

        Args:
            ask: Calls `serve` in the process that has kept its rights, as this object does with its
                own until then.
        """

    def prepare(self) -> None:
        """Do what must be done with rights before `batches`: look at the host as it is."""

    def serve(self, name: str, argument: bytes) -> bytes:
        """Answer what `batches` asks of whoever has the rights.

        Args:
            name: The question.
            argument: What stands with it.

        Returns:
            The answer.

        Raises:
            KcapError: There is no such question, or no answer.
        """

    def own(self, pids: Sequence[int]) -> None:
        """Say which processes are the recorder's: what they do is left out, where a source can.

        Args:
            pids: All of them.
        """

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
