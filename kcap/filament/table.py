"""What filaments print and draw: text in a pipe, tables that stay in their place on a terminal.

All of it may come from events, so what could steer a terminal is escaped, everywhere alike: the
bytes are the same wherever they go.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

from kcap.errors import DamagedError
from kcap.model.text import printable

_GAP: Final = "  "
_UP: Final = "\x1b[{}F"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"
_WIDE: Final = frozenset("WF")
_NO_WIDTH: Final = frozenset({"Mn", "Me", "Cf"})
_CUT: Final = "…"


@dataclass(frozen=True, slots=True)
class Table:
    """A table that a filament drew: rows sorted and cut already."""

    title: str
    columns: Sequence[str]
    numeric: Sequence[bool]
    """Which columns are numbers alone: those stand at the right."""
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        """The table as text.

        Returns:
            Its lines: the title where there is one, the names of the columns, the rows.
        """
        cells = [[printable(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
        lines = [_GAP.join(map(_padded, row, widths, self.numeric)).rstrip() for row in cells]
        return [printable(self.title), *lines] if self.title else lines


def table(values: Sequence[Any]) -> Table:
    """A table out of what a filament's process said.

    Args:
        values: Title, columns, which of them are numeric, rows.

    Returns:
        The table.

    Raises:
        DamagedError: It is none.
    """
    try:
        title, columns, numeric, rows = values
        texts = [*columns, *(cell for row in rows for cell in row), title]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a cell that is no text")
        if any(len(row) != len(columns) for row in (numeric, *rows)) or not columns:
            raise ValueError("a row of another length")
        return Table(title, columns, [bool(n) for n in numeric], rows)
    except (TypeError, ValueError) as e:
        raise DamagedError(f"what a filament drew is no table: {e}") from e


def width(text: str) -> int:
    """The columns of a terminal that a text takes.

    Args:
        text: Without control characters.

    Returns:
        How many.
    """
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in _NO_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in _WIDE else 1


def _padded(cell: str, columns: int, numeric: bool) -> str:
    space = " " * (columns - width(cell))
    return f"{space}{cell}" if numeric else f"{cell}{space}"


class Display(Protocol):
    """Where filaments print and draw."""

    def text(self, text: str) -> None:
        """Show what was printed.

        Args:
            text: The text, line ends included.
        """

    def error(self, text: str) -> None:
        """Show what was printed to standard error.

        Args:
            text: The text.
        """

    def draw(self, filament: int, drawn: Table) -> None:
        """Show a table.

        Args:
            filament: Number of the filament in this run.
            drawn: The table.
        """

    def flush(self) -> None:
        """Hand on what the stream has gathered."""

    def close(self) -> None:
        """Show what is still to be shown; the stream stays open."""


class Plain:
    """One table after another, as text: for files and pipes.

    Args:
        stream: Where it goes, as UTF-8.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._any = False
        self._line_open = False

    def text(self, text: str) -> None:
        """See `Display`."""
        if text:
            self._stream.write(_encoded(safe(text)))
            self._any = True
            self._line_open = not text.endswith("\n")

    def error(self, text: str) -> None:
        """See `Display`."""
        sys.stderr.write(safe(text))

    def draw(self, filament: int, drawn: Table) -> None:
        """See `Display`."""
        before = "\n" * (self._any + self._line_open)
        text = "\n".join(drawn.lines())
        self._stream.write(_encoded(f"{before}{text}\n"))
        self._any, self._line_open = True, False

    def flush(self) -> None:
        """See `Display`."""
        self._stream.flush()

    def close(self) -> None:
        """See `Display`."""
        self._stream.flush()


class Screen:
    """The latest table of each filament, redrawn in its place; what is printed scrolls above.

    Everything that changes is written at once and over what was there, so nothing flickers.

    Args:
        stream: The terminal.
        size: Gives its columns and lines.
    """

    def __init__(self, stream: BinaryIO, size: Callable[[], tuple[int, int]]) -> None:
        self._stream = stream
        self._size = size
        self._tables: dict[int, Table] = {}
        self._shown = 0
        """Lines that the tables take on the screen."""
        self._rest = ""
        """What was printed without the end of its line yet."""

    def text(self, text: str) -> None:
        """See `Display`."""
        whole, end, rest = f"{self._rest}{safe(text)}".rpartition("\n")
        self._rest = rest
        if end:
            self._put(whole.split("\n"))

    def error(self, text: str) -> None:
        """See `Display`."""
        self.text(text)

    def draw(self, filament: int, drawn: Table) -> None:
        """See `Display`."""
        self._tables[filament] = drawn
        self._put(())

    def flush(self) -> None:
        """See `Display`."""
        self._stream.flush()

    def close(self) -> None:
        """See `Display`; the last tables stay, in full."""
        if self._rest:
            self._put([self._rest])
            self._rest = ""
        if self._tables:
            self._put(self._lines())
            self._tables.clear()
            self._put(())
        self._stream.flush()

    def _put(self, above: Sequence[str]) -> None:
        """Write lines that stay, and the tables below them."""
        columns, lines = self._size()
        tables = [_fitting(line, columns) for line in self._lines()]
        if len(tables) >= lines:
            tables = [*tables[: max(lines - 2, 0)], _fitting(f"{_CUT} more rows", columns)]
        out = io.StringIO()
        if self._shown:
            out.write(_UP.format(self._shown))
        for line in above:
            out.write(f"{line}{_REST_OF_LINE}\n")
        for line in tables:
            out.write(f"{line}{_REST_OF_LINE}\n")
        if self._shown:
            out.write(_REST_OF_SCREEN)
        self._shown = len(tables)
        self._stream.write(_encoded(out.getvalue()))
        self._stream.flush()

    def _lines(self) -> list[str]:
        found: list[str] = []
        for number in sorted(self._tables):
            found += [""] * bool(found) + self._tables[number].lines()
        return found


def _fitting(line: str, columns: int) -> str:
    """A line cut to a terminal's width."""
    if width(line) <= columns:
        return line
    kept, room = [], columns - 1
    for character in line:
        room -= _width(character)
        if room < 0:
            break
        kept.append(character)
    return "".join([*kept, _CUT])


def safe(text: str) -> str:
    """Escape what could steer a terminal, but not line ends and tabs.

    Args:
        text: Any text.

    Returns:
        The text as it may be shown.
    """
    if text.isprintable():
        return printable(text)
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
