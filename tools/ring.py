"""The last minute of a recording in memory, written when something asks for it."""

from __future__ import annotations

import contextlib
import io
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kcap.errors import FullError
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.artifact import Artifact, Parts
from kcap.model.batch import EMPTY, Batch, without_state
from kcap.model.naming import argument
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.replay.artifacts import Artifacts
from kcap.replay.pipeline import FILTERED, Pipeline
from kcap.tools import durability, logs
from kcap.tools.recorded import Ending, Told, closing, finish, room_of
from kcap.tools.series import HostTables, Series

if TYPE_CHECKING:
    from collections.abc import Callable

    from kcap.format.blobs import Manifest
    from kcap.state import State
    from kcap.tools.durability import Durability

WINDOW: Final = "window"
"""What the details of a source call the time that such a capture is of."""

SEGMENTS: Final = 10
"""Pieces that the time is held in: so much more than asked for is there at most."""

_AFTER_S: Final = 1.0
"""Length of a piece while one is being written: a kill costs that."""

_ROWS: Final = 8192
"""Events that wait in memory as they came; what is behind them is packed."""

_EXECUTED: Final = argument("exe_sha256")
"""The column that says which file was executed."""

_LEVEL: Final = 1
_REASONS: Final = 20


class Asked(NamedTuple):
    """What is held, and written when something asks for it."""

    before_s: float
    after_s: float
    size: int
    """Bytes that are held at most."""
    keep: int | None = None
    """Files that stay, those of former recordings included."""


class _Segment(NamedTuple):
    """A piece of the recording, as a capture in memory."""

    data: bytes
    events: int
    ended_s: float
    artifacts: int = 0
    """Those that are in it."""


class _Held(Artifacts):
    """The artifacts of a piece, whatever they belong to.

    Args:
        reader: The piece.
        executed: Only executed files of these hashes; None for all artifacts.
    """

    def __init__(self, reader: CaptureReader, executed: set[str] | None = None) -> None:
        super().__init__([reader], unnamed=True)
        self._executed = executed

    def _goes_along(self, manifest: Manifest) -> bool:
        return self._executed is None or manifest.sha256 in self._executed


class _Dump:
    """A file that is being written."""

    def __init__(self, number: int, name: str, writer: CaptureWriter, until_s: float) -> None:
        self.number = number
        self.name = name
        self.writer = writer
        self.until_s = until_s
        self.waiting: deque[_Segment] = deque()
        self.stack = contextlib.ExitStack()
        self.begun = False
        self.ending = False
        self.window: dict[str, Any] = {}
        self.losses: list[Loss] = []
        """What a segment can't say of what was before it."""
        self.late: tuple[_Segment, ...] = ()
        """Segments before those, of which only artifacts count."""
        self._executed: set[str] = set()

    def take(self, segment: _Segment) -> None:
        """Write a segment, with its artifacts."""
        reader = CaptureReader(io.BytesIO(segment.data), self.name)
        Pipeline(reader, [self]).run()
        if segment.artifacts:
            _Held(reader).carry(self.writer)
            self._executed -= {each.sha256 or "" for each in reader.manifests()}

    def take_late(self) -> None:
        """Write the executed files that are known from before, and were executed again."""
        for segment in reversed(self.late):
            reader = CaptureReader(io.BytesIO(segment.data), self.name)
            found = {each.sha256 for each in reader.manifests()} & self._executed
            _Held(reader, {each for each in found if each}).carry(self.writer)
            self._executed -= found

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`: one segment after another comes in."""
        column = batch.get(_EXECUTED)
        if column is not None:
            self._executed |= set(column.values.unique().to_pylist())
        sides = [self._told(side) for side in batch.before if self._wanted(side)]
        if batch.rows or sides:
            self.writer.write(batch.with_before(sides))
        if not self.begun and any(isinstance(side, Snapshot) for side in sides):
            self.begun = True
            self.writer.write(EMPTY.with_before(self.losses))

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`: another segment may follow."""

    def _wanted(self, side: Side) -> bool:
        """All but the states of later segments; and a gap was told when it was recorded."""
        if isinstance(side, Loss):
            return side.recorded
        return not isinstance(side, Snapshot) or not self.begun

    def _told(self, side: Side) -> Side:
        if not isinstance(side, SourceInfo):
            return side
        asked_by = list(self.window["asked_by"])  # it may still grow
        window = {**self.window, "asked_by": asked_by}
        return replace(side, details={**side.details, WINDOW: window})


class Ring:
    """A recording of which the last time is held, and written when it is asked for.

    It is held in pieces, each a capture in memory that begins with the state at its start; the
    oldest go when they are too old, or when all are too large.

    Args:
        series: The files.
        state: The pipeline's state.
        asked: What is held and written.
        durable: Whether what is written is to be on the disk.
        now_s: The time, by a clock that never goes back.
        writing: More options for the writer of a file.
        ending: What a piece says at its end.
        told: Is told that a file is complete.
        again: Asks for artifacts that were given before, when they come again.
    """

    def __init__(
        self,
        series: Series,
        state: State,
        asked: Asked,
        durable: Durability,
        now_s: float,
        *,
        writing: Mapping[str, Any],
        ending: Ending = tuple,
        told: Told | None = None,
        again: Callable[[], object] = lambda: None,
    ) -> None:
        self.losses: list[Loss] = []
        """What could not be written."""
        self.names: list[str] = []
        """The files."""
        self.full = False
        """Never: what can't be written now may be later."""
        self._series = series
        self._state = state
        self._asked = asked
        self._durable = durable
        self._writing = writing
        self._ending = ending
        self._told = told
        self._again = again
        self._again_s = now_s
        self._host = HostTables()
        self._sources: dict[str, SourceInfo] = {}
        self._reasons: list[str] = []
        self._segments: deque[_Segment] = deque()
        self._bytes = 0
        self._evicted: deque[_Segment] = deque()
        """Of those that were too much, within the time that is held: without their bytes."""
        self._late: deque[_Segment] = deque()
        """Those that are too old, with artifacts that may have come again since."""
        self._events = self._written_bytes = 0
        self._dump: _Dump | None = None
        self._closed = False
        self._open(now_s, EMPTY)

    @property
    def writer(self) -> CaptureWriter | None:
        """See `Recorded.writer`."""
        return None if self._dump is None else self._dump.writer

    @property
    def place(self) -> str:
        """See `Recorded.place`."""
        return self._dump.name if self._dump else f"the last {self._asked.before_s:g} s, in memory"

    @property
    def bytes_written(self) -> int:
        """See `Recorded.bytes_written`."""
        return self._written_bytes + (0 if self.writer is None else self.writer.bytes_written)

    @property
    def expected_bytes(self) -> int:
        """See `Recorded.expected_bytes`."""
        return self.bytes_written

    @property
    def held_bytes(self) -> int:
        """What is held in memory, roughly."""
        return self._bytes + self._current.expected_bytes

    def trigger(self, reason: str) -> None:
        """Ask for what is held and what comes next. Safe in a signal handler.

        While a file is being written, it is made to go on for as long again, and no other is begun.

        Args:
            reason: What asks; the file says so.
        """
        if len(self._reasons) < _REASONS:
            self._reasons.append(reason)

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        self._sources |= {s.id: s for s in batch.before if isinstance(s, SourceInfo)}
        self._host.take(batch)
        batch = self._bounded(batch)
        self._artifacts += sum(isinstance(side, Artifact) for side in batch.before)
        self._current.write(batch)
        self._current_events += without_state(batch).rows

    def check(self, now_s: float) -> None:
        """See `Recorded.check`."""
        length_s = self._asked.before_s / SEGMENTS
        if self._dump is not None:
            length_s = min(length_s, _AFTER_S)
        large = self._current.expected_bytes * SEGMENTS > self._asked.size
        if self._reasons or large or now_s - self._begun_s >= length_s:
            self._cut(now_s)
        if now_s - self._again_s >= self._asked.before_s / 2:
            self._again_s = now_s
            self._again()
        self._answer(now_s)
        if self._dump is not None:
            self._go_on(self._dump, now_s)

    def close(self) -> None:
        """Complete the file that is being written, if there is one."""
        if self._closed:
            return
        self._closed = True
        now_s = time.monotonic()
        self._cut(now_s)
        while self._reasons or self._dump is not None:
            self._answer(now_s)
            if self._dump is not None:
                self._dump.ending = True
                self._go_on(self._dump, now_s)
        if not self.names:
            logs.tell("kcap: nothing was asked for, so nothing was written")

    def _open(self, now_s: float, start: Batch) -> None:
        """Begin a piece."""
        self._begun_s = now_s
        self._current_events = self._artifacts = 0
        self._buffer = io.BytesIO()
        self._current = CaptureWriter(self._buffer, file="(memory)", chunk_rows=_ROWS, level=_LEVEL)
        self._current.write(start)

    def _cut(self, now_s: float) -> None:
        """Complete a piece, and begin the next one with the state of now."""
        finish(self._current, self._ending)
        self.losses += self._current.losses
        data = self._buffer.getvalue()
        segment = _Segment(data, self._current_events, now_s, self._artifacts)
        self._segments.append(segment)
        self._bytes += len(segment.data)
        self._events += segment.events
        if self._dump is not None and not self._dump.ending:
            self._dump.waiting.append(segment)
        self._open(
            now_s, EMPTY.with_before((*self._sources.values(), self._host.start(self._state)))
        )
        self._evict(now_s)

    def _evict(self, now_s: float) -> None:
        """Let go of what is too old, or too much."""
        oldest_s = now_s - self._asked.before_s
        while self._segments and self._segments[0].ended_s < oldest_s:
            segment = self._segments.popleft()
            if segment.artifacts:
                self._late.append(segment)
            else:
                self._bytes -= len(segment.data)
        # What was executed within the time was given at most half of the time before it.
        while self._late and not (
            self._late[0].ended_s >= oldest_s - self._asked.before_s / 2
            and self.held_bytes <= self._asked.size
        ):
            self._bytes -= len(self._late.popleft().data)
        while self._evicted and self._evicted[0].ended_s < oldest_s:
            self._evicted.popleft()
        while len(self._segments) > 1 and self.held_bytes > self._asked.size:
            segment = self._segments.popleft()
            self._bytes -= len(segment.data)
            self._evicted.append(segment._replace(data=b""))

    def _answer(self, now_s: float) -> None:
        """Begin a file where something asks for it, or let the one that is being written go on."""
        if not self._reasons or (self._dump is not None and self._dump.ending):
            return
        reasons, self._reasons = self._reasons, []
        until_s = now_s + self._asked.after_s
        if self._dump is None:
            self._begin(reasons, until_s)
        else:
            self._dump.until_s = until_s
            self._dump.window["asked_by"] += reasons

    def _begin(self, reasons: list[str], until_s: float) -> None:
        """Begin a file with all that is held."""
        try:
            number, name, stream = self._series.create()
            stack = contextlib.ExitStack()
            stack.enter_context(closing(stream, name))
            try:
                room = room_of(stream, name, self._series.free)
            except FullError:
                stack.close()
                self._series.drop(name)
                raise
        except FullError as e:
            # The recording goes on: when it is asked again, there may be room.
            self._lose(Loss("lost", None, f"what was asked for could not be written: {e.what}"))
            return
        writer = CaptureWriter(
            stream,
            file=name,
            created_ns=time.time_ns(),
            sync=durability.syncing_file(stream, self._durable),
            room=room,
            **self._writing,
        )
        dump = self._dump = _Dump(number, name, writer, until_s)
        dump.stack = stack
        dump.waiting.extend(self._segments)
        dump.late = tuple(self._late)
        dump.window |= {
            "after_s": self._asked.after_s,
            "asked_by": reasons,
            "before_s": self._asked.before_s,
        }
        dump.losses = self._before()
        self._series.add(number, name)
        self.names.append(name)

    def _before(self) -> list[Loss]:
        """What is not in a file that begins with the pieces that there are."""
        evicted = sum(segment.events for segment in self._evicted)
        held = sum(segment.events for segment in self._segments)
        found = []
        if self._events > held + evicted:
            why = "recorded before the time that was asked for"
            found.append(Loss(FILTERED, self._events - held - evicted, why))
        if evicted:
            found.append(Loss("lost", evicted, "more than may be held in memory"))
            self.losses.append(found[-1])
        return found

    def _go_on(self, dump: _Dump, now_s: float) -> None:
        """Write a piece: one at a time, so that what the kernel holds is not kept waiting."""
        if now_s >= dump.until_s and not dump.ending:
            self._cut(now_s)
            dump.ending = True
        if dump.waiting:
            dump.take(dump.waiting.popleft())
            dump.writer.flush()
        if dump.ending and not dump.waiting:
            self._dump = None
            dump.take_late()
            dump.writer.close()
            dump.stack.close()
            self.losses += dump.writer.losses
            self._written_bytes += dump.writer.bytes_written
            if self._told is not None:
                self._told(dump.name, dump.writer)

    def _bounded(self, batch: Batch) -> Batch:
        """A batch without the content of what is larger than all that may be held."""
        sides: list[Side] = []
        for side in batch.before:
            if isinstance(side, Artifact) and side.content.nbytes > self._asked.size // 2:
                why = f"more than half of the {self._asked.size:,} bytes that are held"
                sides.append(Loss("lost", None, f"an artifact of {side.content.nbytes:,}: {why}"))
                side = replace(side, content=Parts(()), truncated=why)  # noqa: PLW2901
            sides.append(side)
        return batch.with_before(sides) if len(sides) > len(batch.before) else batch

    def _lose(self, loss: Loss) -> None:
        logs.tell(f"kcap: warning: {loss.reason}", level="warning")
        self.losses.append(loss)
