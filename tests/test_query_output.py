"""What kcap query writes: tables for people, CSV and JSON for programs, Arrow and Parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from cli_support import run

VALUES = (
    "SELECT 1 AS i, 1.50 AS d, NULL AS n, 'a' || chr(27) || ',\"' AS t, '' AS e, '=1+1' AS f,"
    " TIMESTAMP '2026-01-02 03:04:05.6' AS ts, make_timestamp_ns(7) AS ns, 'nan'::DOUBLE AS nan,"
    " [1, NULL] AS l, {'k': TIMESTAMP_NS '1970-01-01'} AS s, MAP {'x': 1} AS m, 'z'::BLOB AS b,"
    " INTERVAL '1 day 2 seconds' AS v, true AS y, DATE '2026-01-02' AS dd, 2::HUGEINT AS h"
)


def test_results_as_text(closed: Path) -> None:
    """Every type of DuckDB's has a text; nothing in it steers a terminal or a spreadsheet."""
    row = json.loads(run("query", VALUES, closed, "-f", "jsonl").stdout)
    assert row == {
        "i": 1,
        "d": 1.5,
        "n": None,
        "t": 'a\x1b,"',
        "e": "",
        "f": "=1+1",
        "ts": "2026-01-02T03:04:05.600000Z",
        "ns": "1970-01-01T00:00:00.000000007Z",
        "nan": "NaN",
        "l": [1, None],
        "s": {"k": "1970-01-01T00:00:00.000000000Z"},
        "m": {"x": 1},
        "b": "eg==",
        "v": "1 days 00:00:02.000000000",
        "y": True,
        "dd": "2026-01-02",
        "h": 2,
    }
    document = json.loads(run("query", VALUES, closed, "--json").stdout)
    assert [c["name"] for c in document["columns"]] == list(row)
    assert document["rows"] == [list(row.values())]
    text = run("query", VALUES, closed, "-f", "csv").stdout
    cells = list(csv.reader(io.StringIO(text)))[1]
    assert cells[:7] == ["1", "1.50", "", 'a\\x1b,"', "", "'=1+1", "2026-01-02T03:04:05.600000Z"]
    assert ',,"a\\x1b,""","",' in text  # null and empty are told apart
    for form in ("table", "csv", "jsonl"):
        assert "\x1b" not in run("query", VALUES, closed, "-f", form).stdout


def test_tables_for_people(closed: Path) -> None:
    """Columns are aligned, numbers to the right; null is a dash, and long cells are cut."""
    sql = "SELECT * FROM (VALUES (5, 'a', NULL), (12345, repeat('x', 200), 'b')) t(n, text, z)"

    result = run("query", sql, closed)

    x = "x" * 79 + "…"
    assert result.stdout.splitlines() == [
        f"    n  {'text':<80}  z",
        f"-----  {'-' * 80}  -",
        f"    5  {'a':<80}  -",
        f"12345  {x}  b",
    ]
    assert result.stderr == "kcap: 2 rows\n"
    assert run("query", "SELECT 1 AS a WHERE false", closed).stdout == "a\n-\n"
    assert run("query", "SELECT 1 AS a WHERE false", closed, "--json").stdout.endswith(
        '"rows":[\n]}\n'
    )


def test_results_as_files(closed: Path, tmp_path: Path) -> None:
    """Arrow and Parquet hold the rows with their types; a type they lack is an error."""
    sql = "SELECT ts, ts_ns, arg_pathname__str, arg_argv__list FROM events"
    for form, read in (("arrow", _arrow), ("parquet", pq.read_table)):
        target = tmp_path / f"out.{form}"
        assert run("query", sql, closed, "-f", form, "-o", target).exit_code == 0
        table = read(target)
        assert table.num_rows == 60
        assert table.schema.field("ts").type == pa.timestamp("us")
        assert target.stat().st_mode & 0o777 == 0o600
        assert run("query", sql, closed, "-f", form, "-o", target).exit_code == 1  # it exists
        assert run("query", sql, closed, "-f", form, "-o", target, "--force").exit_code == 0
    result = run("query", "SELECT INTERVAL 1 DAY", closed, "-f", "parquet", "-o", tmp_path / "i")
    assert result.exit_code == 1
    assert "hint: cast the column" in result.stderr
    result = run(
        "query", "SELECT error('x') FROM events", closed, "-f", "arrow", "-o", tmp_path / "e"
    )
    assert (result.exit_code, "the query failed" in result.stderr) == (1, True)


def _arrow(path: Path) -> pa.Table:
    with pa.ipc.open_file(path.read_bytes()) as file:
        return file.read_all()


def test_a_limit_ends_the_result(closed: Path) -> None:
    """--limit gives the first rows, of a result of any length."""
    result = run("query", "SELECT ord FROM events", closed, "-n", 3, "-f", "jsonl")
    assert result.stdout == '{"ord":0}\n{"ord":1}\n{"ord":2}\n'
    result = run("query", "SELECT ord FROM events", closed, "-n", 0, "-f", "jsonl")
    assert result.stdout == ""
    result = run("query", "FROM range(25000)", closed, "-n", 24_999, "-f", "jsonl")
    assert result.stdout.count("\n") == 24_999
