"""Which part of a stream is wanted: from a time, a row or an event on, up to one."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.model.batch import Batch
from kcap.model.classes import I64_MAX, I64_MIN

Mask = npt.NDArray[np.bool_]

_ROW: Final = re.compile(r"#(\d{1,18})")
_EVENT: Final = re.compile(r"([0-9a-f]{32}):(-?\d{1,19})", re.IGNORECASE)


class AtTime(NamedTuple):
    """The events of a time, wherever they stand."""

    ns: int
    """ns since 1970 UTC."""

    def __str__(self) -> str:
        return str(self.ns)


class AtRow(NamedTuple):
    """A row of the input."""

    number: int
    """Counted from 0, in file order; rows that only describe what was there count, too."""

    def __str__(self) -> str:
        return f"#{self.number}"


class AtEvent(NamedTuple):
    """An event by what it is called in alerts and messages."""

    origin: str
    ord: int

    def __str__(self) -> str:
        return f"{self.origin}:{self.ord}"


Bound = AtTime | AtRow | AtEvent
"""Where something begins, or what it ends before."""


def parsed(text: str) -> AtRow | AtEvent | None:
    """Read a bound that is no time.

    Args:
        text: ``#12345``, or ``ORIGIN:ORD``.

    Returns:
        The bound; None where it is neither.
    """
    if match := _ROW.fullmatch(text):
        return AtRow(int(match[1]))
    if (match := _EVENT.fullmatch(text)) and I64_MIN <= int(match[2]) <= I64_MAX:
        return AtEvent(match[1].lower(), int(match[2]))
    return None


class Span(NamedTuple):
    """A half-open part of a stream."""

    start: Bound | None = None
    """None for its beginning."""
    end: Bound | None = None
    """What is no longer wanted; None for its end."""
    behind: int = 0
    """Rows of the input that are not wanted anyway: a run before has dealt with them."""

    @property
    def whole(self) -> bool:
        """Everything is wanted."""
        return self == Span()


class Within:
    """Tells which rows of a stream are wanted.

    Of an interval of time these are the events whose own times lie in it, an event without a time
    is in none. Rows and events are places: all rows behind the one and before the other.

    Args:
        span: What is wanted.
        row: Number of the stream's first row.
    """

    def __init__(self, span: Span, row: int = 0) -> None:
        self._span = span
        self.row = row
        """Number of the next batch's first row."""
        self._begun = not isinstance(span.start, AtEvent)
        self.ended = False
        """No row that follows is wanted."""

    def mask(self, batch: Batch) -> Mask:
        """Which rows of the next batch are wanted.

        Args:
            batch: The batch.

        Returns:
            A boolean array of its rows.
        """
        numbers = self.row + np.arange(batch.rows)
        self.row += batch.rows
        wanted = numbers >= self._span.behind
        wanted &= self._from(batch, numbers)
        wanted &= self._until(batch, numbers)
        return wanted

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        kept = np.flatnonzero(self.mask(batch)).astype(np.int32)
        return batch if len(kept) == batch.rows else batch.take(kept)

    def check(self) -> None:
        """Say that a stream has ended.

        Raises:
            KcapError: An event that was named did not come.
        """
        if isinstance(self._span.start, AtEvent) and not self._begun:
            raise absent(self._span.start)
        if isinstance(self._span.end, AtEvent) and not self.ended:
            raise absent(self._span.end)

    def _from(self, batch: Batch, numbers: npt.NDArray[np.int64]) -> Mask:
        start = self._span.start
        if isinstance(start, AtTime):
            return batch.mask("ts") & (batch.numpy("ts", I64_MIN) >= start.ns)
        if isinstance(start, AtRow):
            return numbers >= start.number
        found = np.full(batch.rows, self._begun)
        if isinstance(start, AtEvent) and not self._begun and len(at := rows_of(batch, start)):
            self._begun = True
            found[at[0] :] = True
        return found

    def _until(self, batch: Batch, numbers: npt.NDArray[np.int64]) -> Mask:
        end = self._span.end
        if isinstance(end, AtTime):
            return batch.mask("ts") & (batch.numpy("ts", I64_MAX) < end.ns)
        if isinstance(end, AtRow):
            self.ended = self.row >= end.number
            return numbers < end.number
        found = np.full(batch.rows, not self.ended)
        if isinstance(end, AtEvent) and not self.ended and len(at := rows_of(batch, end)):
            self.ended = True
            found[at[0] :] = False
        return found


def rows_of(batch: Batch, event: AtEvent) -> npt.NDArray[np.int64]:
    """Where an event stands.

    Args:
        batch: Some events.
        event: The event.

    Returns:
        Its row numbers: one, or none.
    """
    column = batch.get("origin")
    if column is None or batch.get("ord") is None:
        return np.zeros(0, np.int64)
    same = np.array([o == event.origin for o in column.values.dictionary.to_pylist()], np.bool_)
    mine = np.zeros(batch.rows, np.bool_)
    mine[slice(None) if column.rows is None else column.rows] = same[column.codes()]
    mine &= batch.mask("ord") & (batch.numpy("ord", I64_MIN) == event.ord)
    return np.flatnonzero(mine)


def absent(event: AtEvent, file: str | None = None) -> KcapError:
    """The error for an event that a capture does not have.

    Args:
        event: The event.
        file: The capture.

    Returns:
        The error.
    """
    hint = "kcap cat --format jsonl shows each event's origin and ord"
    return KcapError(f"there is no event {event}", file=file, hint=hint)
