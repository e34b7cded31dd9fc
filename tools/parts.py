"""Dividing a capture: where a part begins, and what it is called."""

from __future__ import annotations

import re
import string
import time
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import click
import numpy as np
import numpy.typing as npt

from kcap.errors import OutputError
from kcap.model.batch import Batch, without_state
from kcap.model.classes import I64_MIN
from kcap.model.side import Snapshot
from kcap.replay.needed import ROW, numbered

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Source, StreamInfo
    from kcap.state import State

Int64s = npt.NDArray[np.int64]

_PIECE_ROWS: Final = 1024
"""Rows after which a part's size is looked at."""

_ROW_BYTES: Final = 32
"""What an event is taken to need before one was written."""

_NEARLY: Final = 0.9
"""What a part must have of the size asked for."""


class Template:
    """The names of the parts: ``part-{n}.kcap``, ``part-{n:03}.kcap``, ``{value}.kcap``.

    Args:
        text: As the user gave it.
        by: The parts are told apart by a value.
        timed: A name may have the ``{time}`` at which its part begins.

    Raises:
        click.UsageError: It would give several parts one name.
    """

    def __init__(self, text: str, *, by: bool, timed: bool = False) -> None:
        self.text = text if Path(text).suffix else f"{text}.kcap"
        fields = _fields(self.text)
        allowed = {"n"} | ({"value"} if by else set()) | ({"time"} if timed else set())
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

    def name(self, number: int, value: str, begun_s: float = 0) -> str:
        """The name of a part.

        Args:
            number: Its number, from 1.
            value: What its events have in common.
            begun_s: When it begins, seconds since 1970 UTC.

        Returns:
            The path.
        """
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(begun_s))
        return self.text.format(n=number, value=value, time=moment)

    def existing(self) -> list[Path]:
        """The files that have a name like that of a part with a number, in order of name."""
        return sorted(path for _, path in self.numbered())

    def numbered(self) -> list[tuple[int, Path]]:
        """The files that have a name like that of a part with a number, in order of number.

        Returns:
            The number of each, and the file.

        Raises:
            OutputError: Their folder can't be read.
        """
        folder = Path(self.text).parent
        pattern = self._pattern()
        try:
            found = [(re.fullmatch(pattern, p.name), p) for p in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as e:
            raise OutputError(f"can't be read: {e.strerror}", file=str(folder)) from e
        return sorted((int(of.group(of.lastindex or 0)), path) for of, path in found if of)

    def names(self, path: str) -> bool:
        """Whether a file can be a part with a number.

        Args:
            path: The file, named as this names parts.

        Returns:
            True where it is in that folder, under such a name.
        """
        folder, given = Path(self.text).parent, Path(path)
        return given.parent == folder and bool(re.fullmatch(self._pattern(), given.name))

    def _pattern(self) -> str:
        """What the names of parts with a number match."""
        pattern = ""
        for literal, name, _, _ in string.Formatter().parse(Path(self.text).name):
            pattern += re.escape(literal) + ("" if name is None else _PATTERNS.get(name, "[0-9]+"))
        return pattern


_PATTERNS: Final = {"n": "([0-9]{1,18})", "time": "[0-9]{8}T[0-9]{6}Z"}
"""What stands for the fields of a template in the names of parts."""


def with_number(text: str) -> str:
    """A name as a template of parts: ``host.kcap`` means ``host-{n:06}.kcap``.

    Args:
        text: As the user gave it.

    Returns:
        The same where it has a number.

    Raises:
        click.UsageError: Its braces can't be understood.
    """
    if any(name == "n" for name, _ in _fields(text)):
        return text
    path = Path(text)
    return str(path.with_name(f"{path.stem}-{{n:06}}{path.suffix}"))


def _fields(text: str) -> list[tuple[str, str]]:
    """The names and formats that stand in braces."""
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as e:
        raise click.UsageError(f"{text!r} is no name for parts: {e}") from e
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
        values: The values whose parts are written.
    """

    rows_max: ClassVar[int | None] = None

    def __init__(self, key: str, values: Container[str | None]) -> None:
        self._key = key
        self._values = values
        self._seen: set[str | None] = set()

    def starts(self, batch: Batch) -> Sequence[int]:
        """See `Rule.starts`."""
        from kcap.writers.partition import values_of

        codes, values = values_of(batch, self._key)
        found, first = np.unique(codes, return_index=True)
        new = [
            int(row)
            for code, row in zip(found.tolist(), first, strict=True)
            if values[code] not in self._seen and values[code] in self._values
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
