"""The files that the parts of a capture become."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Final, NamedTuple, Protocol, Self

import numpy as np

from kcap.errors import LimitError
from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import I64_MIN
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.model.stream import Sink
from kcap.replay.artifacts import Artifacts
from kcap.replay.origins import as_part
from kcap.replay.rebatch import row_bytes
from kcap.replay.survivors import Survivors
from kcap.tools import output

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.tools.parts import Template

PARTS_MAX: Final = 100_000
"""Parts of one capture."""

VALUES_MAX: Final = 10_000
"""Values of a column that have parts."""

OPEN_MAX: Final = 900
"""Parts that are open at a time: of files a process has 1,024 where nobody asked for more."""

_HELD_BYTES: Final = 32 << 20
"""What the parts that are open may hold."""

_BLOCK_BYTES: Final = 16 << 20
"""What the rows of such a block are taken to need at most."""

_WRITER_BYTES: Final = 64 << 10
"""What a writer needs without them."""

_NO_VALUE: Final = "(none)"
"""A part's name for no value; a value never spells a parenthesis."""

_EMPTY: Final = "(empty)"
"""A part's name for an empty text."""


class PartSink(Sink, Protocol):
    """What takes the events of a part."""

    losses: list[Loss]
    """What could not be written, once it is closed."""


class OpenPart(NamedTuple):
    """A part that is being written."""

    name: str
    stack: contextlib.ExitStack
    """Closes its file."""
    sink: PartSink
    writer: CaptureWriter


class OpenParts:
    """Parts that are being written, and what each says of where it begins.

    As a context manager it completes their files.
    """

    def __init__(self) -> None:
        self.losses: list[Loss] = []
        """What could not be written."""
        self.names: list[str] = []
        """The parts in order of their number."""
        self._number = 0
        """Of the part that was opened last."""
        self._open: dict[str | None, OpenPart] = {}
        self._sources: dict[str, SourceInfo] = {}
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
        """Complete the files, or leave them as what opened them leaves what is incomplete."""
        for part in self._open.values():
            part.stack.__exit__(kind, error, trace)

    @property
    def writer(self) -> CaptureWriter | None:
        """The writer of the part, where one follows another; None before there is one."""
        part = self._open.get(None)
        return None if part is None else part.writer

    def _opened(self, number: int, part: OpenPart, value: str | None = None) -> None:
        """Take note of a part, and tell it the sources."""
        self._number = number
        self._before = dict(self._greatest)
        self.names.append(part.name)
        part.sink.write(EMPTY.with_before(list(map(self._described, self._sources.values()))))
        self._open[value] = part

    def _hand_on(self, batch: Batch) -> None:
        """Give the part its events."""
        self._open[None].sink.write(batch.with_before(list(map(self._described, batch.before))))
        self._count(batch)

    def _end(self) -> None:
        """Complete the part before, if there is one."""
        part = self._open.pop(None, None)
        if part is not None:
            self._complete(part)

    def _complete(self, part: OpenPart) -> None:
        part.sink.close()
        self.losses += part.sink.losses
        part.stack.close()

    def _described(self, side: Side) -> Side:
        """A source says, too, where the part begins."""
        if not isinstance(side, SourceInfo):
            return side
        return as_part(side, self._number, self._before.get(side.origin or ""))

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


class Parts(OpenParts):
    """A sink that writes parts that follow one another.

    Args:
        template: Their names.
        make: Makes the writer of one: of a stream and its name.
        artifacts: The blobs of the capture.
        force: Replace existing files.
    """

    states: ClassVar[bool] = True
    """The states between the events of the input pass."""

    def __init__(
        self,
        template: Template,
        make: Callable[[BinaryIO, str], CaptureWriter],
        artifacts: Artifacts,
        *,
        force: bool,
    ) -> None:
        super().__init__()
        self._template = template
        self._make = make
        self._artifacts = artifacts
        self._force = force
        self._start: Snapshot | None = None

    def begin(self, start: Snapshot) -> None:
        """Say that a part begins with the next event.

        Args:
            start: The state there.
        """
        self._start = start

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        self._sources |= {s.id: s for s in batch.before if isinstance(s, SourceInfo)}
        if self._start is not None:
            self._end()
        if None not in self._open:
            self._add(len(self.names) + 1)
        self._hand_on(batch)

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""
        if not self.names:
            self._add(1)
        for part in self._open.values():
            part.sink.close()
            self.losses += part.sink.losses

    def _add(self, number: int, value: str | None = None) -> None:
        """Open the file of a part."""
        if number > PARTS_MAX:
            raise LimitError(f"more than {PARTS_MAX:,} parts", hint="ask for larger ones")
        name = self._template.name(number, spelled(value))
        stack = contextlib.ExitStack()
        stream = stack.enter_context(output.opened(name, force=self._force, whole=True))
        writer = self._make(stream, name)
        start, self._start = self._start, None
        sink = Survivors(
            writer,
            self._artifacts.another(unnamed=number == 1),
            snapshots=() if start is None or not _says(start) else [(0, start)],
            states=self.states,
        )
        self._opened(number, OpenPart(name, stack, sink, writer), value)


class PartsByValue(Parts):
    """A sink that writes the parts of some values of a column, and nothing of the others.

    Args:
        template: Their names.
        make: Makes the writer of one: of a stream and its name.
        artifacts: The blobs of the capture.
        key: The column.
        numbers: The number of each value's part.
        force: Replace existing files.
    """

    states: ClassVar[bool] = False

    def __init__(
        self,
        template: Template,
        make: Callable[[BinaryIO, str], CaptureWriter],
        artifacts: Artifacts,
        *,
        key: str,
        numbers: Mapping[str | None, int],
        force: bool,
    ) -> None:
        super().__init__(template, make, artifacts, force=force)
        self._key = key
        self._numbers = numbers
        self._lost: list[Side] = []
        """What the part of number 1 has to say."""

    def write(self, batch: Batch) -> None:
        """Hand each part its events."""
        from kcap.writers.partition import values_of

        self._sources |= {s.id: s for s in batch.before if isinstance(s, SourceInfo)}
        self._lost += [s for s in batch.before if isinstance(s, Loss)]
        codes, values = values_of(batch, self._key)
        for code in np.unique(codes).tolist() if batch.rows else ():
            value = values[code]
            if value not in self._numbers:
                continue
            rows = np.flatnonzero(codes == code).astype(np.int32)
            if value not in self._open:
                self._add(self._numbers[value], value)
            self._open[value].sink.write(batch.take(rows).compact().with_before(()))

    def close(self) -> None:
        """Tell the losses in one part, complete all."""
        for value, part in self._open.items():
            if self._numbers[value] == 1:
                part.sink.write(EMPTY.with_before(self._lost))
            part.sink.close()
            self.losses += part.sink.losses

    def _described(self, side: Side) -> Side:
        return side


class Survey:
    """A sink: which values a column has, and how much is to be held for the part of each.

    Args:
        key: The column.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._bytes: dict[str | None, float] = {}

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        from kcap.writers.partition import values_of

        if not batch.rows:
            return
        codes, values = values_of(batch, self._key)
        sizes = np.bincount(codes, row_bytes(batch), len(values)).tolist()
        found, first = np.unique(codes, return_index=True)
        for code in found[np.argsort(first)].tolist():
            self._bytes[values[code]] = self._bytes.get(values[code], 0) + sizes[code]
        if len(self._bytes) > VALUES_MAX:
            what = f"{self._key} has more than {VALUES_MAX:,} values"
            raise LimitError(what, hint="split by a column with fewer values")

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""

    def groups(self) -> list[dict[str | None, int]]:
        """The values in groups whose parts can be written at a time.

        Returns:
            For each group the values, and their numbers from 1, by first appearance.
        """
        made: list[dict[str | None, int]] = [{}]
        held = 0.0
        for number, (value, size) in enumerate(self._bytes.items(), 1):
            # A writer keeps the rows of a chunk, and those of a block of its content hash.
            needs = _WRITER_BYTES + 2 * min(size, _BLOCK_BYTES)
            if made[-1] and (held + needs > _HELD_BYTES or len(made[-1]) == OPEN_MAX):
                made.append({})
                held = 0.0
            made[-1][value] = number
            held += needs
        return made


def spelled(value: str | None) -> str:
    """A value as a part of a file's name.

    Args:
        value: The value, None for no value.

    Returns:
        Letters, digits and ``_.-%~``; ``(none)`` and ``(empty)`` for what has none of them.
    """
    from kcap.writers.partition import segment

    if not value:
        return _NO_VALUE if value is None else _EMPTY
    return segment("", value).removeprefix("=")


def _says(snapshot: Snapshot) -> bool:
    return any(table.rows for table in snapshot.tables.values())
