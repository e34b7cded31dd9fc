"""What every view is: a stage that gives some events a line of text, and the sink that prints it.

A view looks at what events did, not at what their source calls them, so it shows the same of a
live host, of a recording and of any other tool's capture.

Measured (Python 3.11, one core): forkstat takes 22 µs of CPU and execsnoop 15 for an event that is
shown, 11 of them to follow the state; other events cost what following the state does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, BinaryIO, Final, Protocol

import numpy as np

from kcap.model import catalogue
from kcap.model.batch import Batch, Rows, coded, state_rows
from kcap.model.classes import TypeClass
from kcap.model.naming import argument, column_name
from kcap.model.side import SourceInfo
from kcap.state.follow import values_at
from kcap.writers import fragments

LINES: Final = "view:lines"
"""The column with the text of an event: its lines, joined by line feeds."""

UNKNOWN: Final = "<unknown>"
"""What stands for the name of a process that nothing names."""


class View(Protocol):
    """A form of output."""

    @property
    def recorded(self) -> list[str]:
        """The events of kcap's Linux recorder that it shows: all that has to be recorded for it."""

    def process(self, batch: Batch) -> Batch:
        """Keep the events that are shown, with a column `LINES`.

        Args:
            batch: The next events, with what `Lifetimes` added.

        Returns:
            The events that have lines.
        """

    def header(self) -> list[str]:
        """The lines before all others."""

    def footer(self) -> list[str]:
        """The lines behind all others."""


class Families:
    """The family of each source: which table names the numbers in its events."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def note(self, batch: Batch) -> None:
        """Take in the sources that a batch tells of.

        Args:
            batch: The next batch of the stream.
        """
        for side in batch.before:
            if isinstance(side, SourceInfo):
                self._found[side.id] = side.collector

    def name(self, event: str, name: str, value: Any, other: str) -> str:  # noqa: ANN401
        """What the number of an argument is called.

        Args:
            event: The event's own name, behind its source's id and a slash.
            name: The argument's own name.
            value: Its value; a text stands for itself.
            other: The table where the event's source has none for it.

        Returns:
            The text, empty for no value.
        """
        from kcap.model import decode

        if not isinstance(value, int):
            return str(value or "")
        source, _, own = event.partition("/")
        table = catalogue.decoder_of(self._found.get(source, ""), own, name)
        return decode.text_of(table if decode.known(table) else other, value)


class Told:
    """What some rows of a batch say, a list a column, read when it is asked for.

    Args:
        batch: The batch.
        rows: The rows, ascending.
    """

    def __init__(self, batch: Batch, rows: Rows) -> None:
        self._batch = batch
        self._rows = rows
        self._lists: dict[str, Sequence[Any]] = {}

    def column(self, name: str) -> Sequence[Any]:
        """The values of a column.

        Args:
            name: Its name.

        Returns:
            One value a row, None where there is none.
        """
        found = self._lists.get(name)
        if found is None:
            found = self._lists[name] = values_at(self._batch, name, self._rows)
        return found

    def argument(self, i: int, name: str, *classes: TypeClass) -> Any:  # noqa: ANN401
        """The value of an argument.

        Args:
            i: Which of the rows.
            name: The argument's own name.
            classes: The classes that it may have, the best first.

        Returns:
            The first value there is, None for none.
        """
        for cls in classes:
            value = self.column(_column_of(name, cls))[i]
            if value is not None:
                return value
        return None

    def number(self, i: int, *names: str) -> int | None:
        """The first of some numeric arguments that a row has.

        Args:
            i: Which of the rows.
            names: The arguments' own names.

        Returns:
            Its value, None where there is none.
        """
        for name in names:
            value = self.argument(i, name, TypeClass.I64)
            if value is not None:
                return int(value)
        return None

    def text(self, i: int, *names: str) -> str | None:
        """The first of some text arguments that a row has and that is not empty.

        Args:
            i: Which of the rows.
            names: The arguments' own names.

        Returns:
            Its value, None where there is none.
        """
        for name in names:
            value = self.argument(i, name, TypeClass.STR)
            if value:
                return str(value)
        return None


@cache
def _column_of(name: str, cls: TypeClass) -> str:
    """The column of an argument's values of a class."""
    base = argument(name)
    return column_name(base, cls, catalogue.home(base))


def candidates(batch: Batch, actions: frozenset[str], events: frozenset[str]) -> Rows:
    """The rows that a view may show.

    Args:
        batch: The batch.
        actions: The actions it shows.
        events: Names of events without an action that it shows as well.

    Returns:
        Their numbers, ascending; neither descriptions of what was there, nor calls that begin.
    """
    wanted = _having(batch, "action", actions) | _having(batch, "event", events)
    wanted &= ~_having(batch, "direction", frozenset({"enter"}))
    wanted[state_rows(batch)] = False
    return np.flatnonzero(wanted).astype(np.int32)


def _having(batch: Batch, name: str, texts: frozenset[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows have one of some texts in a column."""
    out = np.zeros(batch.rows, np.bool_)
    column = batch.get(name)
    if column is not None and len(column):
        entries = column.values.dictionary.to_pylist()
        wanted = np.array([entry in texts for entry in entries], np.bool_)
        out[slice(None) if column.rows is None else column.rows] = wanted[column.codes()]
    return out


def with_lines(batch: Batch, lines: Mapping[int, str]) -> Batch:
    """Keep the rows that have lines.

    Args:
        batch: The batch.
        lines: The text of each row that has one, in ascending order of rows.

    Returns:
        Those rows, with the column `LINES`.
    """
    if not lines:
        return batch.take(np.zeros(0, np.int32))
    kept = batch.take(np.fromiter(lines, np.int32, len(lines)))
    column = coded(list(lines.values()), np.arange(len(lines)))
    assert column is not None
    return kept.adding({LINES: column})


def time_of_day(ts: int | None) -> str:
    """A time as the tools write it, but in UTC.

    Args:
        ts: ns since 1970, None where it is not known.

    Returns:
        ``12:51:26``; a dash and spaces for None.
    """
    if ts is None:
        return f"{'-':<8}"
    minutes, seconds = divmod(ts // 10**9 % 86_400, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


class Lines:
    """A sink that prints what a view says of events.

    The header goes out at once, so that whoever watches a quiet host sees that it works.

    Args:
        stream: Where the lines go; stays open.
        view: The view, one of the stages before.
    """

    def __init__(self, stream: BinaryIO, view: View) -> None:
        self._stream = stream
        self._view = view
        self._closed = False
        self._put(view.header())

    def write(self, batch: Batch) -> None:
        """Print the lines of a batch.

        Args:
            batch: Events that the view has kept.

        Raises:
            OutputError: The stream takes no more.
        """
        column = batch.get(LINES)
        if column is not None:
            self._put(column.values.to_pylist())

    def close(self) -> None:
        """Print what stands at the end.

        Raises:
            OutputError: The stream takes no more.
        """
        if not self._closed:
            self._closed = True
            self._put(self._view.footer())

    def _put(self, lines: Sequence[str]) -> None:
        if lines:
            text = "\n".join(lines) + "\n"
            fragments.write_all(self._stream, memoryview(text.encode()))
        fragments.flush(self._stream)
