"""Where a recording goes: one file, or parts of it one after another."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, Protocol

import click

from kcap.errors import FullError, KcapError, OutputError
from kcap.format.room import Room
from kcap.format.writer import CaptureWriter
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.model.stream import Sink
from kcap.model.text import printable
from kcap.tools import durability
from kcap.tools.part_files import OpenPart, OpenParts
from kcap.tools.parts import EveryBytes

if TYPE_CHECKING:
    from kcap.state import State
    from kcap.tools.durability import Durability
    from kcap.tools.outputs import Outputs
    from kcap.tools.parts import Template

Ending = Callable[[], Sequence[Loss]]
"""Gives what a file is to say at its end, of the time since it was asked last."""

Told = Callable[[str, CaptureWriter], None]
"""Is told that a file is complete: its name, and its writer."""

_TRIES: Final = 100
"""Names in a row that others may have taken."""

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
            click.echo(printable(what), err=True)


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


class Series:
    """The files of recordings that have a name in common, and a number each.

    Args:
        template: Their names.
        existing: Those that there are, with their numbers: new ones go on behind them.
        outputs: Creates and removes files.
        keep: How many stay; None for all.
    """

    def __init__(
        self,
        template: Template,
        existing: Sequence[tuple[int, str]],
        outputs: Outputs,
        keep: int | None = None,
    ) -> None:
        self._template = template
        self._outputs = outputs
        self._keep = keep
        self._files = deque(name for _, name in existing)
        """The oldest first."""
        self._next = max((number for number, _ in existing), default=0) + 1

    def create(self) -> tuple[int, str, BinaryIO]:
        """Create the next file: who records into the same names at the same time gets others.

        Returns:
            Its number, its name, and a stream without a buffer.

        Raises:
            FullError: There is no room.
            OutputError: It can't be created.
        """
        number = self._next
        while True:
            name = self._template.name(number, "", time.time())
            try:
                return number, name, self._outputs.create(name)
            except FileExistsError as e:
                number += 1
                if number == self._next + _TRIES:
                    raise OutputError("the output exists already", file=name) from e
            except FullError:
                if not self.free():
                    raise

    def drop(self, name: str) -> None:
        """Remove a file that was created and can't be used.

        Args:
            name: The file.
        """
        self._outputs.remove(name)

    def add(self, number: int, name: str) -> None:
        """Take note of a file that is begun, and remove the oldest beyond those that stay.

        Args:
            number: Its number.
            name: Its name.
        """
        self._next = number + 1
        self._files.append(name)
        while self._keep is not None and len(self._files) > self._keep and self.free():
            pass

    def free(self) -> bool:
        """Remove the oldest file, where files may go; never the last, which may be open.

        Returns:
            True where there was one.
        """
        if self._keep is None or len(self._files) < 2:  # noqa: PLR2004
            return False
        try:
            self._outputs.remove(self._files.popleft())
        except KcapError as e:
            click.echo(f"kcap: warning: {e}", err=True)
        return True


class HostTables:
    """What a source says of the host beside what the state follows: each file begins with it."""

    def __init__(self) -> None:
        self._tables: dict[str, Batch] = {}

    def take(self, batch: Batch) -> None:
        """Take note of what comes with a batch.

        Args:
            batch: Events and side records.
        """
        for side in batch.before:
            if isinstance(side, Snapshot):
                self._tables.update(side.tables)

    def start(self, state: State) -> Snapshot:
        """What a file begins with.

        Args:
            state: The state there.

        Returns:
            All tables.
        """
        return Snapshot({**self._tables, **state.snapshot().tables})


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
    ) -> None:
        super().__init__()
        self._series = series
        self._state = state
        self._rotation = rotation
        self._durable = durable
        self._writing = writing
        self._ending = ending
        self._told = told
        self._size = EveryBytes(rotation.size, lambda: self.writer) if rotation.size else None
        self._host = HostTables()
        self._complete_bytes = 0
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
        return self.writer is not None and self.writer.full

    def rotate(self) -> None:
        """Ask for another part, from the next batch on. Safe in a signal handler."""
        self._asked = True

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        self._sources |= {s.id: s for s in batch.before if isinstance(s, SourceInfo)}
        self._host.take(batch)
        self._hand_on(batch)

    def check(self, now_s: float) -> None:
        """See `Recorded.check`."""
        self._committer.check(now_s)
        self._warning.check(self)
        if not self.full and now_s >= self._not_before_s and self._due(now_s):
            self._asked = False
            self._begun_s = now_s
            try:
                self._begin(self._host.start(self._state))
            except FullError:
                # The part that is open has the room for its end: it goes on while there is more.
                self._asked = True
                self._not_before_s = now_s + _AGAIN_S

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        self._end()

    def _due(self, now_s: float) -> bool:
        if self._asked:
            return True
        every_s = self._rotation.every_s
        if every_s is not None and now_s - self._begun_s >= every_s:
            return True
        return self._size is not None and bool(self._size.starts(EMPTY))

    def _begin(self, start: Snapshot | None = None) -> None:
        """Begin a part, then complete the one before: only where there is room for another."""
        number, name, stream = self._series.create()
        stack = contextlib.ExitStack()
        stack.enter_context(closing(stream, name))
        try:
            writer = self._writer(stream, name)
        except BaseException:
            stack.close()
            self._series.drop(name)
            raise
        before = self._open.get(None)
        self._opened(number, OpenPart(name, stack, writer, writer))
        if start is not None:
            writer.write(EMPTY.with_before((start,)))
        writer.flush()
        self._committer = durability.Committer(writer, self._durable, self._begun_s)
        if before is not None:
            self._complete(before)
        self._series.add(number, name)

    def _writer(self, stream: BinaryIO, name: str) -> CaptureWriter:
        return CaptureWriter(
            stream,
            file=name,
            snapshot=self._state.snapshot,
            created_ns=time.time_ns(),
            sync=durability.syncing_file(stream, self._durable),
            room=room_of(stream, name, self._series.free),
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
