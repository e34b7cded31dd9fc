"""What a filament can call: the functions that are in its module before it runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from types import MethodType
from typing import Any, Final, Protocol

from kcap.filament.dotdict import DotDict

COLUMNS_MAX: Final = 100
"""Columns of a table."""

_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?")
_NS: Final = 10**9


class Run(Protocol):
    """What the functions need of the run they are called in."""

    @property
    def now_ns(self) -> int | None:
        """The logical clock."""

    def add(self, kind: str, *values: Any) -> None:  # noqa: ANN401  (plain JSON values)
        """Hand something on to the run: a table, an alert."""

    def ask(self, what: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401
        """Ask the run what it knows."""


class Api:
    """The functions, and what they set.

    Args:
        run: The run that they are called in.
        severities: The words that `emit_alert` takes.
        rows_max: Rows that a table may have.
    """

    def __init__(self, run: Run, severities: Sequence[str], rows_max: int) -> None:
        self.filter: str | None = None
        """What `kfilter` set."""
        self.filter_line: int | None = None
        """Where it was called."""
        self.interval_s = 1
        """What `interval` set."""
        self.begun = False
        """Events come: filter and interval stay as they are."""
        self._run = run
        self._severities = severities
        self._rows_max = rows_max
        self._columns: list[str] = []
        self._sort: str | None = None
        self._title = ""
        self._rows_shown: int | None = None
        self._rows: list[list[Any]] = []

    @classmethod
    def functions_of(cls) -> dict[str, Callable[..., Any]]:
        """The functions by the names that filaments call them by."""
        own = (
            cls.interval, cls.columns, cls.sort_by, cls.title, cls.max_rows, cls.add_row,
            cls.render_table, cls.emit_alert, cls.find_process, cls.find_processes,
            cls.find_handle, cls.find_handles, cls.kfilter, cls.now,
        )  # fmt: skip
        found: dict[str, Callable[..., Any]] = {"set_filter": cls.kfilter}
        return found | {function.__name__: function for function in own}

    def functions(self) -> dict[str, Callable[..., Any]]:
        """The same, of this run."""
        return {name: MethodType(each, self) for name, each in self.functions_of().items()}

    def kfilter(self, expression: str) -> None:
        """Get only the events for which a filter is true.

        Args:
            expression: The filter; it takes the place of that of the command line.

        Raises:
            RuntimeError: Events come already.
            TypeError: It is no text.
        """
        self._only_before("the filter")
        self.filter = _filter(expression)
        self.filter_line = sys._getframe(1).f_lineno  # noqa: SLF001

    def interval(self, seconds: int) -> None:
        """Have ``on_interval`` called as often.

        Args:
            seconds: Whole seconds of event time, at least 1.

        Raises:
            RuntimeError: Events come already.
            ValueError: It is no such number.
        """
        self._only_before("the interval")
        if not _whole(seconds):
            raise ValueError(f"interval({seconds!r}): expected whole seconds, at least 1")
        self.interval_s = seconds

    def columns(self, names: Sequence[str]) -> None:
        """Set the columns of the table.

        Args:
            names: Their names.

        Raises:
            ValueError: These can't be columns, or rows were added for other ones.
        """
        given = [names] if isinstance(names, str) else [str(name) for name in names]
        if not 0 < len(given) <= COLUMNS_MAX or len({*given}) < len(given):
            raise ValueError(f"columns({given}): expected 1 to {COLUMNS_MAX} different names")
        if self._rows and len(given) != len(self._columns):
            raise ValueError("columns() between add_row() and render_table()")
        self._columns = given

    def sort_by(self, column: str) -> None:
        """Sort the table: numbers first, from the greatest down, then text from A to Z.

        Args:
            column: The name of a column; rows that are equal there stay in their order.

        Raises:
            ValueError: No column is called so.
        """
        self._sort = column
        if self._columns:
            self.check()

    def title(self, text: str) -> None:
        """Set what stands above the table.

        Args:
            text: One line.
        """
        self._title = str(text)

    def max_rows(self, count: int) -> None:
        """Show no more rows of the table.

        Args:
            count: How many; those that come first when it is sorted.

        Raises:
            ValueError: It is no number above 0.
        """
        if not _whole(count):
            raise ValueError(f"max_rows({count!r}): expected a whole number, at least 1")
        self._rows_shown = count

    def add_row(self, values: Sequence[Any]) -> int:
        """Add a row to the table.

        Args:
            values: A value for each column.

        Returns:
            How many values that were.

        Raises:
            ValueError: The columns are others, or there are too many rows.
        """
        row = list(values)
        if not self._columns:
            raise ValueError("add_row() before columns()")
        if len(row) != len(self._columns):
            raise ValueError(
                f"add_row() with {len(row)} values: expected {len(self._columns)}, by columns()"
            )
        if len(self._rows) >= self._rows_max:
            raise ValueError(
                f"more than {self._rows_max:,} rows: render_table() draws and clears them"
            )
        self._rows.append(row)
        return len(row)

    def render_table(self) -> None:
        """Draw the table, and clear its rows.

        Raises:
            ValueError: There is no table.
        """
        if not self._columns:
            raise ValueError("render_table() before columns()")
        self.check()
        rows, self._rows = self._rows, []
        if self._sort is not None:
            at = self._columns.index(self._sort)
            rows.sort(key=lambda row: _order(row[at]))
        rows = rows[: self._rows_shown]
        numeric = [all(_number(row[at]) for row in rows) for at in range(len(self._columns))]
        cells = [[_text(value) for value in row] for row in rows]
        self._run.add("table", self._title, self._columns, numeric, cells)

    def emit_alert(
        self, title: str, text: str, severity: str = "normal", tags: Sequence[str] = ()
    ) -> None:
        """Raise an alert.

        Args:
            title: What happened, in a few words.
            text: The whole story.
            severity: ``normal``, ``medium``, ``high``, ``critical`` …
            tags: Words to find it by.

        Raises:
            ValueError: The severity is none.
        """
        if str(severity).strip().lower() not in self._severities:
            raise ValueError(f"severity {severity!r}: expected {', '.join(self._severities)}")
        words = [tags] if isinstance(tags, str) else [str(tag) for tag in tags]
        self._run.add("alert", str(title), str(text), severity, words)

    def find_process(self, pid: int) -> DotDict | None:
        """A process, as the events up to this one tell.

        Args:
            pid: Its id.

        Returns:
            ``pid ppid name comm cmdline exe cwd sid …``; None where it is not known.
        """
        found = self._run.ask("process", [int(pid)])
        return None if found is None else DotDict(found)

    def find_processes(self, name: str | None = None) -> list[DotDict]:
        """The processes that run, as the events up to this one tell.

        Args:
            name: Only those of that name; upper and lower case are the same.

        Returns:
            See `find_process`; ordered by process id.
        """
        return [DotDict(found) for found in self._run.ask("processes", [name])]

    def find_handle(self, pid: int, handle: int) -> DotDict | None:
        """A handle, or on Linux a descriptor, of a process.

        Args:
            pid: The process.
            handle: The number of the handle.

        Returns:
            ``pid handle type name object``; None where it is not known.
        """
        found = self._run.ask("handle", [int(pid), int(handle)])
        return None if found is None else DotDict(found)

    def find_handles(self, pid: int) -> list[DotDict]:
        """The handles, or on Linux the descriptors, of a process.

        Args:
            pid: The process.

        Returns:
            See `find_handle`; ordered by number.
        """
        return [DotDict(found) for found in self._run.ask("handles", [int(pid)])]

    def now(self) -> float | None:
        """The time of the run: what ``time.time()`` would be in another program.

        Returns:
            The greatest event time so far, in an interval that of its end: seconds since 1970 UTC;
            None before the first event.
        """
        return None if self._run.now_ns is None else self._run.now_ns / _NS

    def check(self) -> None:
        """See that the table is sorted by a column of it.

        Raises:
            ValueError: No column is called so.
        """
        if self._sort is not None and self._sort not in self._columns:
            names = ", ".join(self._columns) or "columns() to be called"
            raise ValueError(f"sort_by({self._sort!r}): expected one of {names}")

    def _only_before(self, what: str) -> None:
        if self.begun:
            raise RuntimeError(f"{what} is set in on_init() or outside of all functions")


def _filter(expression: object) -> str:
    if not isinstance(expression, str):
        raise TypeError(f"a filter is text, not {type(expression).__name__}")
    return expression


def _whole(value: object) -> bool:
    """Whether a value is a whole number from 1 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: object) -> bool:
    """Whether a value of a table is a number, or the text of one."""
    if isinstance(value, Real):
        return bool(value == value)  # noqa: PLR0124  (not a number is none)
    return isinstance(value, str) and _NUMBER.fullmatch(value) is not None


def _order(value: Any) -> tuple[int, Any]:  # noqa: ANN401
    if not _number(value):
        return 1, _text(value)
    if isinstance(value, str):
        return 0, -(float(value) if "." in value else int(value))
    return 0, -value


def _text(value: object) -> str:
    return "" if value is None else str(value)
