"""Tables and text of filaments: plain in a pipe, in their place on a terminal, harmless in both."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from filament_support import events, filament, play
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import DamagedError, KcapError
from kcap.filament.table import Plain, Screen, Table, safe, table, width

ROWS: list[tuple[str, object]] = [
    ("b", 2),
    ("a", 10),
    ("c", 2),
    ("d", "9"),
    ("e", 2.5),
    ("f", "text"),
    ("g", "A"),
    ("h", None),
]


def drawn(tmp_path: Path, calls: str) -> list[str]:
    """The lines that a filament draws at its end."""
    body = f"def on_next_event(event):\n    pass\ndef on_stop():\n{calls}    render_table()\n"
    return play(filament(tmp_path, body), events([0.0])).lines


def adding(rows: object) -> str:
    return f"    for row in {rows!r}:\n        add_row(row)\n"


def test_rows_are_sorted_by_a_column(tmp_path: Path) -> None:
    """Numbers, text or not, come first from the greatest down, ties in their order; then text."""
    setup = "    columns(['Name', 'Count'])\n    sort_by('Count')\n"
    lines = drawn(tmp_path, setup + adding(ROWS))

    assert [line.split()[0] for line in lines[1:]] == ["a", "d", "e", "b", "c", "h", "g", "f"]


def test_without_sort_by_rows_stay(tmp_path: Path) -> None:
    """Negative control: rows that nothing sorts stand as they were added."""
    lines = drawn(tmp_path, "    columns(['Name', 'Count'])\n" + adding(ROWS))

    assert [line.split()[0] for line in lines[1:]] == [name for name, _ in ROWS]


def test_title_width_and_the_first_rows(tmp_path: Path) -> None:
    """A title stands above, numbers at the right, and `max_rows` keeps the first of the sorted."""
    setup = "    title('Most')\n    max_rows(2)\n    columns(['Name', 'N'])\n    sort_by('N')\n"

    assert drawn(tmp_path, setup + adding([("x", 1), ("long name", 12345), ("y", 20)])) == [
        "Most",
        "Name           N",
        "long name  12345",
        "y             20",
    ]


def test_drawing_clears_the_rows(tmp_path: Path) -> None:
    """A table that was drawn begins anew; tables are apart by an empty line."""
    setup = "    columns(['a'])\n    add_row([1])\n    render_table()\n    add_row([2])\n"

    assert drawn(tmp_path, setup) == ["a", "1", "", "a", "2"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("columns(['a'])\n    add_row([1, 2])", r"add_row\(\) with 2 values: expected 1"),
        ("columns([])", "expected 1 to 100 different names"),
        ("columns(['a', 'a'])", "different names"),
        ("columns(['a'])\n    sort_by('b')", r"sort_by\('b'\): expected one of a"),
        ("sort_by('b')\n    columns(['a'])", r"sort_by\('b'\): expected one of a"),
        ("columns(['a'])\n    max_rows(0)", r"max_rows\(0\): expected a whole number"),
        ("columns(['a'])\n    add_row([1])\n    columns(['a', 'b'])", "between add_row"),
        ("pass", r"render_table\(\) before columns\(\)"),
    ],
)
def test_mistakes_are_told(call: str, said: str, tmp_path: Path) -> None:
    """What makes no table is an error of the line that says so."""
    with pytest.raises(KcapError, match=said):
        drawn(tmp_path, f"    {call}\n")


@given(st.text(), st.lists(st.text(), min_size=1, max_size=3))
def test_nothing_steers_a_terminal(text: str, cells: list[str]) -> None:
    """Whatever events hold, no control character but line ends and tabs comes out."""
    out = io.BytesIO()
    display = Plain(out)
    display.text(text)
    display.draw(0, Table(text, cells, [False] * len(cells), [cells]))
    display.close()
    shown = out.getvalue().decode()

    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    assert safe(text).count("\n") == text.count("\n")


def test_wide_characters_are_aligned() -> None:
    """Characters that take two columns, or none, are counted as a terminal does."""
    lines = Table("", ["a", "b"], [False, True], [["日本", "1"], ["e\u0301", "22"]]).lines()

    assert [width(line) for line in lines] == [8, 8, 8]
    assert [len(line) for line in lines] == [8, 6, 9]


@pytest.mark.parametrize(
    "values",
    [
        [],
        ["t", ["a"], [True], [["1", "2"]]],
        ["t", ["a"], [], [["1"]]],
        ["t", ["a"], [True], [[1]]],
        ["t", [], [], []],
        [7, ["a"], [True], [["1"]]],
        ["t", 5, 5, 5],
    ],
)
def test_what_is_no_table_is_refused(values: list[object]) -> None:
    """A process that is not what it should be can't make a table of anything."""
    with pytest.raises(DamagedError):
        table(values)
    assert table(["t", ["a"], [True], [["1"]]]).rows == [["1"]]


class Terminal:
    """A terminal of a few lines: what is on it after the bytes that were written."""

    def __init__(self, columns: int = 20, lines: int = 6) -> None:
        self.columns, self.lines = columns, lines
        self.rows: list[str] = [""]
        self.row = 0
        self.column = 0

    def write(self, data: bytes) -> int:
        for part in re.findall(r"\x1b\[\d*[A-Z]|\n|[^\x1b\n]+", data.decode()):
            if part == "\n":
                self.row += 1
                if self.row == len(self.rows):
                    self.rows.append("")
                self.column = 0
            elif part.endswith("F") and part[0] == "\x1b":
                self.row, self.column = self.row - int(part[2:-1]), 0
                assert self.row >= 0
            elif part == "\x1b[K":
                self.rows[self.row] = self.rows[self.row][: self.column]
            elif part == "\x1b[J":
                del self.rows[self.row :]
                self.rows.append("")
            else:
                rest = self.rows[self.row][self.column + len(part) :]
                self.rows[self.row] = self.rows[self.row][: self.column] + part + rest
                self.column += len(part)
        return len(data)

    def flush(self) -> None:
        self.writes = getattr(self, "writes", 0) + 1


def test_a_screen_redraws_in_its_place() -> None:
    """Tables of several filaments stay where they are; text scrolls above; the last ones remain."""
    terminal = Terminal()
    screen = Screen(terminal, lambda: (20, 10))  # type: ignore[arg-type]
    for number in range(5):
        screen.draw(0, Table("one", ["n"], [True], [[str(number)]]))
        screen.draw(1, Table("", ["m"], [True], [[str(-number)]] * (5 - number)))
    screen.text("hello\nwor")
    screen.text("ld\n")
    assert terminal.rows == ["hello", "world", "one", "n", "4", "", " m", "-4", ""]
    screen.text("rest")
    screen.close()

    assert terminal.rows == ["hello", "world", "rest", "one", "n", "4", "", " m", "-4", ""]


def test_a_screen_fits_the_terminal() -> None:
    """Lines are cut to the width, tables to the height, so that nothing scrolls away."""
    terminal = Terminal()
    screen = Screen(terminal, lambda: (8, 4))  # type: ignore[arg-type]
    many = Table("a long title", ["n"], [False], [[str(n)] for n in range(20)])
    for _ in range(3):
        screen.draw(0, many)
    assert terminal.rows == ["a long …", "n", "… more …", ""]
    screen.close()

    assert terminal.rows[:2] == ["a long title", "n"]
    assert len(terminal.rows) == 23


def test_one_write_a_change() -> None:
    """Nothing flickers: all of a change is one write, which wipes nothing before it is redrawn."""
    writes: list[bytes] = []

    class Stream(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            writes.append(bytes(data))
            return len(data)

    screen = Screen(Stream(), lambda: (80, 24))
    for number in range(3):
        screen.draw(0, Table("t", ["n"], [True], [[str(number)]]))

    assert len(writes) == 3
    assert writes[1] == b"\x1b[3Ft\x1b[K\nn\x1b[K\n1\x1b[K\n\x1b[J"


def test_text_and_errors_have_their_own_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a filament prints to standard error is not part of the output."""
    body = """
import sys
def on_next_event(event):
    print("a\\x1b[31m")
    print("b", file=sys.stderr)
"""
    found = play(filament(tmp_path, body), events([0.0, 0.1]))

    assert found.text == "a\\x1b[31m\n" * 2
    assert capsys.readouterr().err == "b\nb\n"
