"""Dividing a capture: where a part begins, and the files that the parts become."""

from __future__ import annotations

import contextlib
import re
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Final, NamedTuple, Protocol, Self

import click
import numpy as np
import numpy.typing as npt

from kcap.errors import LimitError
from kcap.model.batch import EMPTY, Batch, without_state
from kcap.model.classes import I64_MIN
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.replay.artifacts import Artifacts
from kcap.replay.needed import ROW, numbered
from kcap.replay.origins import as_part
from kcap.replay.survivors import Survivors
from kcap.tools import output

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Source, StreamInfo
    from kcap.state import State

Int64s = npt.NDArray[np.int64]

PARTS_MAX: Final = 100_000
"""Parts of one capture."""

OPEN_MAX: Final = 900
"""Parts that are open at a time: of files a process has 1,024 where nobody asked for more."""

_HELD_BYTES: Final = 64 << 20
"""What waits for its chunk in all parts together."""

_PIECE_ROWS: Final = 1024
"""Rows after which a part's size is looked at."""

_ROW_BYTES: Final = 32
"""What an event is taken to need before one was written."""

_NEARLY: Final = 0.9
"""What a part must have of the size asked for."""

_NO_VALUE: Final = "(none)"
"""A part's name for no value; a value never spells a parenthesis."""


class Template:
    """The names of the parts: ``part-{n}.kcap``, ``part-{n:03}.kcap``, ``{value}.kcap``.

    Args:
        text: As the user gave it.
        by: The parts are told apart by a value.

    Raises:
        click.UsageError: It would give several parts one name.
    """

    def __init__(self, text: str, *, by: bool) -> None:
        self.text = text if Path(text).suffix else f"{text}.kcap"
        fields = self._fields()
        allowed = {"n", "value"} if by else {"n"}
        for name, form in fields:
            if name not in allowed or not re.fullmatch(
                r"(0?\d{1,2})?" if name == "n" else "", form
            ):
                known = " and ".join(f"{{{a}}}" for a in sorted(allowed))
                raise click.UsageError(f"{text!r}: a part's name can have {known}, as in {{n:03}}")
        if not fields:
            example = "part-{value}.kcap" if by else "part-{n}.kcap"
            raise click.UsageError(f"{text!r} is one name for all parts; give one like {example}")
        if "/" in text and any("{" in above for above in text.split("/")[:-1]):
            raise click.UsageError(f"{text!r}: only the last part of a path can have {{n}}")

    def name(self, number: int, value: str) -> str:
        """The name of a part.

        Args:
            number: Its number, from 1.
            value: What its events have in common.

        Returns:
            The path.
        """
        return self.text.format(n=number, value=value)

    def existing(self) -> list[Path]:
        """The files that have a name like that of a part, in order of name."""
        folder = Path(self.text).parent
        pattern = ""
        for literal, name, _, _ in string.Formatter().parse(Path(self.text).name):
            pattern += re.escape(literal)
            if name is not None:
                pattern += r"\d+" if name == "n" else r"[^/]+"
        if not folder.is_dir():
            return []
        return sorted(p for p in folder.iterdir() if re.fullmatch(pattern, p.name))

    def _fields(self) -> list[tuple[str, str]]:
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as e:
            raise click.UsageError(f"{self.text!r} is no name for parts: {e}") from e
        return [(n, f"!{c}" if c else f or "") for _, n, f, c in parsed if n is not None]


class Rule(Protocol):
    """Says where parts begin."""

    rows_max: ClassVar[int | None]
    """Rows of a batch that it looks at at once; None for all."""

    def starts(self, batch: Batch) -> Sequence[int]:
        """The rows at which a part begins, other than the first one of all.

        Args:
            batch: The next events.

        Returns:
            Row numbers, ascending.
        """


class EveryEvents:
    """A part has a number of events.

    Args:
        ends: How many events stand before each part but the first: ascending, without end.
    """

    rows_max: ClassVar[int | None] = None

    def __init__(self, ends: Iterator[int]) -> None:
        self._ends = ends
        self._next = next(ends, None)
        self._count = 0

    def starts(self, batch: Batch) -> Sequence[int]:
        """See `Rule.starts`."""
        rows = without_state(numbered(batch)).numpy(ROW, 0)
        found: list[int] = []
        while self._next is not None and self._next < self._count + len(rows):
            found.append(int(rows[self._next - self._count]))
            self._next = next(self._ends, None)
        self._count += len(rows)
        return found


class EveryNs:
    """A part has the events of a time, by the greatest time so far.

    Args:
        length_ns: The time, from the first event on.
    """

    rows_max: ClassVar[int | None] = None

    def __init__(self, length_ns: int) -> None:
        self._length = np.uint64(length_ns)
        self._first: int | None = None
        self._greatest = I64_MIN
        self._number = 0

    def starts(self, batch: Batch) -> Sequence[int]:
        """See `Rule.starts`."""
        times = batch.numpy("ts", I64_MIN)
        if self._first is None:
            timed = np.flatnonzero(batch.mask("ts"))
            if not len(timed):
                return []
            self._first = self._greatest = int(times[timed[0]])
        clock = np.maximum.accumulate(np.maximum(times, self._greatest))
        # Up to 2^64 - 1: as unsigned numbers the difference is exact.
        passed = clock.view(np.uint64) - np.int64(self._first).view(np.uint64)
        numbers = passed // self._length
        before = np.concatenate([[np.uint64(self._number)], numbers[:-1]])
        self._greatest, self._number = int(clock[-1]), int(numbers[-1])
        return np.flatnonzero(numbers != before).tolist()


class EveryBytes:
    """A part is nearly as large as was asked for, or a little larger.

    What events take shows when their chunk is closed; by the ones before, those that wait are
    estimated. So a part has two chunks or three where one would do, and not one of each piece.

    Args:
        size: Bytes.
        writer: Gives the writer of the part, None before there is one.
    """

    rows_max: ClassVar[int | None] = _PIECE_ROWS

    def __init__(self, size: int, writer: Callable[[], CaptureWriter | None]) -> None:
        self._size = size
        self._writer = writer
        self._row_bytes = 0.0

    def starts(self, batch: Batch) -> Sequence[int]:
        """See `Rule.starts`."""
        writer = self._writer()
        if writer is None:
            return []
        written, rows = writer.bytes_written, writer.waiting_rows
        if written < self._size and rows:
            if written + rows * (self._row_bytes or _ROW_BYTES) < self._size:
                return []
            writer.flush()
            self._row_bytes = (writer.bytes_written - written) / rows
        return [0] if writer.bytes_written >= self._size * _NEARLY else []


class EachValue:
    """A part begins with the first event of a value.

    Args:
        key: The column.
    """

    rows_max: ClassVar[int | None] = None

    def __init__(self, key: str) -> None:
        self._key = key
        self._seen: set[str | None] = set()

    def starts(self, batch: Batch) -> Sequence[int]:
        """See `Rule.starts`."""
        from kcap.writers.partition import values_of

        codes, values = values_of(batch, self._key)
        found, first = np.unique(codes, return_index=True)
        new = [
            int(row)
            for code, row in zip(found.tolist(), first, strict=True)
            if values[code] not in self._seen
        ]
        self._seen.update(values[code] for code in found.tolist())
        return sorted(new)


class Divided:
    """Another source's events in batches that belong to one part, or to those that are open.

    Before a part begins, the state is that after all events before it: the pipeline has followed
    every batch when it asks for the next one.

    Args:
        source: The source.
        state: The pipeline's state.
        rule: Where parts begin.
        begin: Is told that one begins, and the state there.
    """

    def __init__(
        self, source: Source, state: State, rule: Rule, begin: Callable[[Snapshot], None]
    ) -> None:
        self._source = source
        self._state = state
        self._rule = rule
        self._begin = begin

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for batch in self._source.batches():
            step = self._rule.rows_max or max(batch.rows, 1)
            for at in range(0, max(batch.rows, 1), step):
                yield from self._pieces(batch.slice(at, at + step))

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        if not batch.rows:
            yield batch
            return
        start = 0
        for row in self._rule.starts(batch):
            if row > start:
                yield batch.slice(start, row)
            self._begin(self._state.snapshot())
            start = row
        yield batch.slice(start, batch.rows)


class _Part(NamedTuple):
    """A part that is being written."""

    name: str
    stack: contextlib.ExitStack
    sink: Survivors
    writer: CaptureWriter


class Parts:
    """A sink that writes the parts; a context manager, which completes their files.

    Args:
        template: Their names.
        make: Makes the writer of one: of a stream and its name.
        artifacts: The blobs of the capture.
        key: The column whose value a part has; None where one part follows another.
        force: Replace existing files.
    """

    def __init__(
        self,
        template: Template,
        make: Callable[[BinaryIO, str], CaptureWriter],
        artifacts: Artifacts,
        *,
        key: str | None,
        force: bool,
    ) -> None:
        self.losses: list[Loss] = []
        """What could not be written."""
        self.names: list[str] = []
        """The parts in order of their number."""
        self._template = template
        self._make = make
        self._artifacts = artifacts
        self._key = key
        self._force = force
        self._start: Snapshot | None = None
        self._open: dict[str | None, _Part] = {}
        self._waiting: dict[str | None, int] = {}
        self._sources: dict[str, SourceInfo] = {}
        self._early: list[Side] = []
        self._greatest: dict[str, int] = {}
        """The greatest number of an event so far, by origin."""
        self._before: dict[str, int] = {}
        """The same before the part."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the files, or leave them as `output.opened` leaves what is incomplete."""
        for part in self._open.values():
            part.stack.__exit__(kind, error, trace)
        if kind is not None and self._key is not None:
            # Hundreds of beginnings help nobody; parts that follow one another are kept.
            for name in self.names:
                Path(f"{name}.partial").unlink(missing_ok=True)

    @property
    def writer(self) -> CaptureWriter | None:
        """The writer of the part, where one follows another; None before there is one."""
        part = self._open.get(None)
        return None if part is None else part.writer

    def begin(self, start: Snapshot) -> None:
        """Say that a part begins with the next event.

        Args:
            start: The state there.
        """
        self._start = start

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        self._sources |= {s.id: s for s in batch.before if isinstance(s, SourceInfo)}
        if self._key is not None:
            self._write_by(batch, self._key)
            return
        if self._start is not None:
            self._end(None)
        if None not in self._open:
            self._add(None)
        self._open[None].sink.write(batch.with_before(list(map(self._described, batch.before))))
        self._count(batch)

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        if not self.names:
            self._add(None)
        for part in self._open.values():
            if self._early:
                part.sink.write(EMPTY.with_before(self._early))
                self._early = []
            part.sink.close()
            self.losses += part.sink.losses

    def _write_by(self, batch: Batch, key: str) -> None:
        """Hand each part its events; what was lost is said in the part that goes on."""
        from kcap.writers.partition import values_of

        self._early += [s for s in batch.before if isinstance(s, Loss)]
        codes, values = values_of(batch, key)
        for code in np.unique(codes).tolist():
            value = values[code]
            if value not in self._open:
                self._add(value)
            rows = np.flatnonzero(codes == code).astype(np.int32)
            piece = batch.take(rows).compact().with_before(self._early)
            self._early = []
            self._open[value].sink.write(piece)
            self._waiting[value] = self._waiting.get(value, 0) + piece.nbytes
        while sum(self._waiting.values()) > _HELD_BYTES:
            # The largest first: not each event that comes may cost a chunk.
            largest = max(self._waiting, key=lambda v: self._waiting[v])
            self._open[largest].writer.flush()
            del self._waiting[largest]

    def _add(self, value: str | None) -> None:
        """Open the file of a part."""
        if self._key is not None and len(self._open) >= OPEN_MAX:
            what = f"{self._key} has more than {OPEN_MAX} values"
            raise LimitError(what, hint="split by a column with fewer values")
        if len(self.names) >= PARTS_MAX:
            raise LimitError(f"more than {PARTS_MAX:,} parts", hint="ask for larger ones")
        number = len(self.names) + 1
        name = self._template.name(number, self._spelled(value))
        stack = contextlib.ExitStack()
        stream = stack.enter_context(output.opened(name, force=self._force, whole=True))
        writer = self._make(stream, name)
        start, self._start = self._start, None
        self._before = dict(self._greatest)
        sink = Survivors(
            writer,
            self._artifacts.another(unnamed=number == 1),
            snapshots=() if start is None or not _says(start) else [(0, start)],
            states=self._key is None,
        )
        self.names.append(name)
        sink.write(EMPTY.with_before(list(map(self._described, self._sources.values()))))
        self._open[value] = _Part(name, stack, sink, writer)

    def _end(self, value: str | None) -> None:
        """Complete a part."""
        part = self._open.pop(value, None)
        if part is not None:
            part.sink.close()
            self.losses += part.sink.losses
            part.stack.close()

    def _described(self, side: Side) -> Side:
        """A source says, too, where the part begins."""
        if self._key is not None or not isinstance(side, SourceInfo):
            return side
        return as_part(side, len(self.names), self._before.get(side.origin or ""))

    def _count(self, batch: Batch) -> None:
        """Take note of the events' numbers."""
        column = batch.get("origin")
        if column is None:
            return
        ords = batch.numpy("ord", I64_MIN)
        codes = np.full(batch.rows, -1, np.int64)
        codes[slice(None) if column.rows is None else column.rows] = column.codes()
        for code in np.unique(codes[codes >= 0]).tolist():
            origin = column.values.dictionary[code].as_py()
            greatest = int(ords[codes == code].max())
            self._greatest[origin] = max(greatest, self._greatest.get(origin, I64_MIN))

    def _spelled(self, value: str | None) -> str:
        """A value as a part of a file's name."""
        from kcap.writers.partition import segment

        if value is None:
            return _NO_VALUE
        return segment("", value).removeprefix("=")


def _says(snapshot: Snapshot) -> bool:
    return any(table.rows for table in snapshot.tables.values())
