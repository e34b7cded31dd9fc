"""CSV exports: RFC 4180, exact, and nothing that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import support
from export_support import layout_for, same_text, text_of
from hypothesis import given
from hypothesis import strategies as st

from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.writers.csv import Csv
from kcap.writers.layout import Layout, Profile

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "'quoted", "-bash"]
PLAIN = ["bash", "a=b", " =1", "", "1", '"', "(x)", "ü"]


def exported(batches: list[Batch], name: str = "wide", *, guard: bool = True) -> str:
    """The CSV of some batches."""
    out = io.BytesIO()
    sink = Csv(out, layout_for(batches, name), guard=guard)
    for batch in batches:
        sink.write(batch)
    sink.close()
    return out.getvalue().decode()


def rows_in(text: str) -> list[dict[str, str | None]]:
    """What a reader that knows quotes from none sees: None where nothing is."""
    head, *lines = _cells(text)
    return [dict(zip(head, line, strict=True)) for line in lines]  # type: ignore[arg-type]


def _cells(text: str) -> list[list[str | None]]:
    """RFC 4180, character by character."""
    lines: list[list[str | None]] = []
    line: list[str | None] = []
    at = 0
    while at < len(text):
        if text[at] == '"':
            end = at + 1
            while text[end] != '"' or text[end + 1] == '"':
                end += 1 if text[end] != '"' else 2
            line.append(text[at + 1 : end].replace('""', '"'))
            at = end + 1
        else:
            end = min(i for i in (text.find(",", at), text.find("\r\n", at)) if i >= 0)
            assert not set('"\r\n').intersection(text[at:end])
            line.append(text[at:end] or None)
            at = end
        if text[at] == ",":
            at += 1
            continue
        assert text.startswith("\r\n", at)
        lines.append(line)
        line = []
        at += 2
    return lines


@given(support.RECORDS, st.integers(1, 30), st.booleans())
def test_round_trip(records: list[Any], rows: int, guard: bool) -> None:
    """Every cell says its value exactly; nothing and an empty text are told apart."""
    batch = support.batch_of(records)
    if not batch.rows:
        return
    text = exported([batch.slice(i, i + rows) for i in range(0, batch.rows, rows)], guard=guard)
    found = rows_in(text)

    expected = batch.to_pylist()
    assert len(found) == len(expected)
    for cells, row in zip(found, expected, strict=True):
        for name, cell in cells.items():
            if name == "ts":
                assert cell is not None
                assert cell.endswith("Z")
                continue
            if name not in row:
                assert cell is None, name
                continue
            column = batch.columns[name]
            value = text_of(row[name])
            textual = column.cls not in _NUMBERS
            if guard and textual and cell is not None and cell.startswith("'"):
                cell = cell[1:]  # noqa: PLW2901
            assert cell is not None
            assert same_text(cell, value)


_NUMBERS = {TypeClass.I64, TypeClass.U64, TypeClass.F64, TypeClass.BOOL}


@given(support.RECORDS)
def test_pythons_reader_agrees(records: list[Any]) -> None:
    """The standard library's reader finds the same cells."""
    batch = support.batch_of(records)
    if not batch.rows:
        return
    text = exported([batch])

    # It takes a lone CR in a field and NUL; what it cannot tell is nothing from an empty text.
    found = list(csv.reader(io.StringIO(text, newline="")))

    assert found == [[cell or "" for cell in line] for line in _cells(text)]


def test_the_form() -> None:
    """CRLF behind each line, times with nine digits, bytes as base64, lists and objects as JSON."""
    batch = support.batch_of(
        [
            (
                1_604_759_097_183_980_900,
                {"b": b"\xff\x00", "l": ["a", 'b"'], "o": {"k": [1]}, "t": ""},
            )
        ]
    )

    head, line, end = exported([batch]).split("\r\n")

    assert head == "ts,ord,shape,arg_b__bin,arg_l__list,arg_o__json,arg_t__str"
    assert end == ""
    assert line.startswith("2020-11-07T14:24:57.183980900Z,0,")
    assert line.endswith(',/wA=,"[""a"",""b\\""""]","{""k"":[1]}",""')


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_guarded(text: str) -> None:
    """Text that a spreadsheet would run gets a ' in front, which can be taken away again."""
    batch = Batch(1, {"cmdline": constant(TypeClass.STR, text, 1)})

    assert rows_in(exported([batch])) == [{"cmdline": f"'{text}"}]
    # Negative control: it is what it was where that is asked for.
    assert rows_in(exported([batch], guard=False)) == [{"cmdline": text}]


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_is_left_alone(text: str) -> None:
    """Nothing else changes."""
    batch = Batch(1, {"cmdline": constant(TypeClass.STR, text, 1)})

    assert rows_in(exported([batch])) == [{"cmdline": text}]


def test_numbers_are_not_guarded() -> None:
    """A negative number is a number."""
    batch = Batch(1, {"retval": constant(TypeClass.I64, -2, 1)})

    assert exported([batch]) == "retval\r\n-2\r\n"


def test_a_table_of_one_column() -> None:
    """A missing value is no empty line, which readers take for none."""
    values = Column(TypeClass.I64, pa.array([7]), np.array([1], np.int32))
    batch = Batch(3, {"pid": values})

    assert exported([batch]) == 'pid\r\n""\r\n7\r\n""\r\n'


def test_narrow() -> None:
    """One line an argument."""
    batch = support.batch_of([(1, {"a": 1, "b": "x,y"}), (2, {})])

    found = rows_in(exported([batch], "narrow"))

    assert [(r["ord"], r["name"], r["class"], r["value"], r["value_i64"]) for r in found] == [
        ("0", "a", "i64", "1", "1"),
        ("0", "b", "str", "x,y", None),
        ("1", None, None, None, None),
    ]


def test_duckdb_reads_it(tmp_path: Path) -> None:
    """DuckDB finds time, numbers and texts by itself."""
    path = tmp_path / "events.csv"
    events = support.make_events(300)
    path.write_text(exported([events], guard=False), newline="")

    with duckdb.connect() as db:
        db.execute("SET timezone = 'UTC'")
        kinds = dict(db.sql(f"SELECT column_name, column_type FROM (DESCRIBE '{path}')").fetchall())
        found = db.sql(
            f"SELECT arg_pathname__str, arg_fd__i64, arg_argv__list FROM '{path}' ORDER BY ord"
        ).fetchall()

    assert kinds["ts"] == "TIMESTAMP WITH TIME ZONE"
    assert kinds["arg_fd__i64"] == "BIGINT"
    expected = events.to_pylist()
    assert [(r[0], r[1]) for r in found] == [
        (e.get("arg_pathname__str"), e["arg_fd__i64"]) for e in expected
    ]
    assert [json.loads(r[2]) if r[2] else None for r in found] == [
        e.get("arg_argv__list") for e in expected
    ]


def test_many_columns_and_no_event() -> None:
    """Lines of empty cells, a thousand to a line, and a head alone."""
    columns = {f"arg_a{i}__i64": TypeClass.I64 for i in range(1000)}
    out = io.BytesIO()
    sink = Csv(out, Layout(columns, Profile.PORTABLE))
    sink.write(Batch(3, {}))
    sink.close()

    assert out.getvalue().decode().split("\r\n")[1:] == ["," * 999] * 3 + [""]
    assert exported([support.make_events(5).slice(0, 0)], "narrow").count("\r\n") == 1
