"""Where a recording goes: one file, or parts of it one after another."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, Protocol

from kcap.errors import FullError, OutputError
from kcap.format.room import Room
from kcap.format.writer import CaptureWriter
from kcap.model.batch import EMPTY, Batch, without_state
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.model.stream import Sink
from kcap.model.text import printable
from kcap.tools import durability, logs
from kcap.tools.part_files import OpenPart, OpenParts
from kcap.tools.parts import EveryBytes
from kcap.tools.series import HostTables

if TYPE_CHECKING:
    from kcap.state import State
    from kcap.tools.durability import Durability
    from kcap.tools.series import Series

Ending = Callable[[], Sequence[Loss]]
"""Gives what a file is to say at its end, of the time since it was asked last."""

Told = Callable[[str, CaptureWriter], None]
"""Is told that a file is complete: its name, and its writer."""

_AGAIN_S: Final = 1.0
"""After that time a part is begun for which there was no room."""


class Recorded(Sink, Protocol):
    """A sink of a recording."""

    losses: list[Loss]
    """What could not be written, once it is closed."""
    names: list[str]
    """The files."""

    @property
    def place(self) -> str:
        """Where it goes now, for messages."""

    @property
    def writer(self) -> CaptureWriter | None:
        """The writer of the file that is open; None before the first one and after the last."""

    @property
    def bytes_written(self) -> int:
        """Length of the files so far."""

    @property
    def expected_bytes(self) -> int:
        """Length of the files were they closed now, roughly."""

    @property
    def full(self) -> bool:
        """There is no room for more: the recording should end."""

    def check(self, now_s: float) -> None:
        """After each batch: commit, or begin another file, where it is time.

        Args:
            now_s: The time, by a clock that never goes back.
        """


class Rotation(NamedTuple):
    """When a recording goes on in another file."""

    size: int | None = None
    """Bytes of a part, roughly."""
    every_s: float | None = None
    """Seconds of a part."""
    keep: int | None = None
    """Files that stay, that of now and those of former recordings included."""


def room_of(stream: BinaryIO, path: str, free: Callable[[], bool] = lambda: False) -> Room | None:
    """The room of an output, and what its end needs reserved.

    Args:
        stream: The output.
        path: Its name.
        free: See `Room`.

    Returns:
        None of what has no such thing, as a pipe.

    Raises:
        FullError: There is not even room for an empty capture.
    """
    room = Room.of(stream, free)
    if room is not None and not room.claim(LEAST_BYTES):
        room.release(0)
        raise FullError(
            "there is no room for a capture",
            file=path,
            expected=f"{LEAST_BYTES >> 10} KiB at least",
        )
    return room


LEAST_BYTES: Final = 256 << 10
"""Room that a file must have at its start: its end needs some of it."""


class _Warning:
    """Says once that a disk is full: the recording ends then."""

    def __init__(self) -> None:
        self._told = False

    def check(self, sink: Recorded) -> None:
        """Look whether it is."""
        if sink.full and not self._told:
            self._told = True
            what = f"kcap: warning: there is no room left: the recording ends: {sink.place}"
            logs.tell(printable(what))


class OneFile:
    """A recording in one file, or in a pipe.

    Args:
        writer: Writes it.
        path: Its name.
        durable: When it is to be committed.
        now_s: The time, by a clock that never goes back.
        ending: What it says at its end.
    """

    def __init__(
        self,
        writer: CaptureWriter,
        path: str,
        durable: Durability,
        now_s: float,
        ending: Ending = tuple,
    ) -> None:
        self.losses: list[Loss] = []
        """What could not be written."""
        self.names = [path]
        """The file."""
        self._writer = writer
        self._ending = ending
        self._committer = durability.Committer(writer, durable, now_s)
        self._closed = False
        self._warning = _Warning()

    @property
    def place(self) -> str:
        """See `Recorded.place`."""
        return self.names[0]

    @property
    def writer(self) -> CaptureWriter:
        """See `Recorded.writer`."""
        return self._writer

    @property
    def bytes_written(self) -> int:
        """See `Recorded.bytes_written`."""
        return self._writer.bytes_written

    @property
    def expected_bytes(self) -> int:
        """See `Recorded.expected_bytes`."""
        return self._writer.expected_bytes

    @property
    def full(self) -> bool:
        """See `Recorded.full`."""
        return self._writer.full

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        self._writer.write(batch)

    def check(self, now_s: float) -> None:
        """See `Recorded.check`."""
        self._committer.check(now_s)
        self._warning.check(self)

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        if self._closed:
            return
        self._closed = True
        finish(self._writer, self._ending)
        self.losses += self._writer.losses


class Rotated(OpenParts):
    """A recording in parts that follow one another, each a complete capture.

    A part begins with its sources, which say what the part is, and the state at its start. Names
    are final from the start, so that a kill leaves the parts that are complete and an open one.

    Args:
        series: The files.
        state: The pipeline's state.
        rotation: When a part ends.
        durable: When what came is to be committed.
        now_s: The time, by a clock that never goes back.
        writing: More options for the writer of a part.
        ending: What a part says at its end.
        told: Is told that a part is complete.
        again: Asks for artifacts that were given before, when they come again: each part has them.
    """

    def __init__(
        self,
        series: Series,
        state: State,
        rotation: Rotation,
        durable: Durability,
        now_s: float,
        *,
        writing: Mapping[str, Any],
        ending: Ending = tuple,
        told: Told | None = None,
        again: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__()
        self._series = series
        self._state = state
        self._rotation = rotation
        self._durable = durable
        self._writing = writing
        self._ending = ending
        self._told = told
        self._again = again
        self._size = EveryBytes(rotation.size, lambda: self.writer) if rotation.size else None
        self._host = HostTables()
        self._complete_bytes = self._refused = 0
        self._closed = False
        self._room: Room | None = None
        self._warning = _Warning()
        self._asked = False
        self._begun_s = self._not_before_s = now_s
        self._begin()

    @property
    def place(self) -> str:
        """See `Recorded.place`."""
        return self.names[-1]

    @property
    def bytes_written(self) -> int:
        """See `Recorded.bytes_written`."""
        return self._complete_bytes + (0 if self.writer is None else self.writer.bytes_written)

    @property
    def expected_bytes(self) -> int:
        """See `Recorded.expected_bytes`."""
        return self._complete_bytes + (0 if self.writer is None else self.writer.expected_bytes)

    @property
    def full(self) -> bool:
        """See `Recorded.full`."""
        return self.writer is None or self.writer.full

    def rotate(self) -> None:
        """Ask for another part, from the next batch on. Safe in a signal handler."""
        self._asked = True

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        self._sources |= {s.id: s for s in batch.before if isinstance(s, SourceInfo)}
        self._host.take(batch)
        if self._open:
            self._hand_on(batch)
        else:
            self._refused += without_state(batch).rows

    def check(self, now_s: float) -> None:
        """See `Recorded.check`."""
        self._committer.check(now_s)
        self._warning.check(self)
        if not self.full and now_s >= self._not_before_s and self._due(now_s):
            self._asked = False
            self._begun_s = now_s
            try:
                self._begin(self._host.start(self._state))
                self._again()
            except FullError:
                # A part that is open has the room for its end: it goes on while there is more.
                self._asked = True
                self._not_before_s = now_s + _AGAIN_S

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        if not self._closed and not self._open:
            self.losses.append(Loss("lost", self._refused, "there was no room for another part"))
        self._closed = True
        self._end()

    def _due(self, now_s: float) -> bool:
        if self._asked:
            return True
        every_s = self._rotation.every_s
        if every_s is not None and now_s - self._begun_s >= every_s:
            return True
        return self._size is not None and bool(self._size.starts(EMPTY))

    def _begin(self, start: Snapshot | None = None) -> None:
        """Complete the part before, if there is room for another, and begin that.

        In this order, so that a kill leaves one part at most that has no end.
        """
        if self.writer is not None:
            room, needs = self._room, self.writer.expected_bytes + 2 * LEAST_BYTES
            if room is not None and not room.claim(needs):
                raise FullError("there is no room for another part")
            self._end()
        number, name, stream = self._series.create()
        stack = contextlib.ExitStack()
        stack.enter_context(closing(stream, name))
        try:
            writer = self._writer(stream, name)
        except BaseException:
            stack.close()
            self._series.drop(name)
            raise
        self._opened(number, OpenPart(name, stack, writer, writer))
        if start is not None:
            writer.write(EMPTY.with_before((start,)))
        writer.flush()
        self._committer = durability.Committer(writer, self._durable, self._begun_s)
        self._series.add(number, name)

    def _writer(self, stream: BinaryIO, name: str) -> CaptureWriter:
        self._room = room_of(stream, name, self._series.free)
        return CaptureWriter(
            stream,
            file=name,
            snapshot=self._state.snapshot,
            created_ns=time.time_ns(),
            sync=durability.syncing_file(stream, self._durable),
            room=self._room,
            **self._writing,
        )

    def _complete(self, part: OpenPart) -> None:
        finish(part.writer, self._ending)
        super()._complete(part)
        self._complete_bytes += part.writer.bytes_written
        if self._told is not None:
            self._told(part.name, part.writer)


def finish(writer: CaptureWriter, ending: Ending) -> None:
    """Say what is to be said at the end, and close a writer.

    Args:
        writer: The writer.
        ending: Gives what it says.
    """
    said = ending()
    try:
        if said and not writer.failed:
            writer.write(EMPTY.with_before(said))
    finally:
        writer.close()
        # A writer and what it holds refer to each other: some MiB that Python's collector, which
        # goes by the number of new objects, would leave for hours.
        gc.collect()


@contextlib.contextmanager
def closing(stream: BinaryIO, name: str) -> Iterator[None]:
    """Close a file behind what is written to it.

    Args:
        stream: The file.
        name: Its name.

    Yields:
        Nothing.

    Raises:
        OutputError: The system says only now that something was not written.
    """
    try:
        yield
    finally:
        try:
            stream.close()
        except OSError as e:
            raise OutputError(f"writing failed: {e.strerror}", file=name) from e
