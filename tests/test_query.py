"""kcap query: SQL over captures gives what the events say, and reaches nothing else."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from cli_support import run, shell
from support import capture, make_events, opened

from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.arrow import from_arrow
from kcap.tools.sql import Session, failure

START = 1_700_000_000_000_000_000


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    """A closed capture of columns."""
    with path.open("wb") as stream:
        writer = CaptureWriter(stream, **options)
        writer.write(from_arrow(pa.table(columns)))
        writer.close()
    return path


def mixed(path: Path) -> Path:
    """A capture of several chunks with every kind of value, and with nulls of each."""
    n = 400
    at = range(n)
    floats = [0.5, -0.0, math.nan, math.inf, -math.inf, None, 3.25, -7.0]
    columns = {
        "ts": pa.array([None if i % 50 == 49 else START + i * 1_000_001 for i in at], pa.int64()),
        "ord": list(at),
        "seq": pa.array([None if i % 3 == 2 else i // 2 for i in at], pa.int64()),
        "pid": pa.array([None if i % 11 == 10 else 100 + i // 40 for i in at], pa.int64()),
        "event": ["open", "close", "exec", None][0:3] * (n // 3) + [None],
        "kind": ["event"] * n,
        "process_name": [None if i % 13 == 0 else f"p{i % 17}" for i in at],
        "arg_pathname": [["", "/etc/passwd", "/tmp/é", None, "/tmp/a'b\n"][i % 5] for i in at],
        "arg_real__f64": [floats[i % 8] for i in at],
        "arg_addr__u64": pa.array([(1 << 63) + i if i % 4 == 0 else None for i in at], pa.uint64()),
        "arg_big__i64": pa.array([(1 << 53) + i for i in at], pa.int64()),
        "arg_ok__bool": [[True, False, None][i % 3] for i in at],
        "arg_raw__bin": [[b"", b"\xff\x00", None][i % 3] for i in at],
        "arg_argv": [[["sh", "-c"], [], None][i % 3] for i in at],
        "arg_ids__list_i64": [[[1, -2], [], None][i % 3] for i in at],
    }
    return write(path, columns, chunk_rows=40)


QUERIES = [
    "SELECT count(*) FROM events",
    "SELECT ord FROM events WHERE pid = 103",
    "SELECT ord, pid FROM events WHERE pid IN (101, 104, NULL)",
    "SELECT ord FROM events WHERE pid NOT IN (101, 104)",
    "SELECT ord FROM events WHERE pid NOT IN (101, NULL)",
    "SELECT ord FROM events WHERE pid <> 103",
    "SELECT ord FROM events WHERE NOT pid > 103",
    "SELECT ord FROM events WHERE pid IS NULL",
    "SELECT ord FROM events WHERE pid IS NOT NULL AND event IS NULL",
    "SELECT ord FROM events WHERE pid BETWEEN 102 AND 103 OR ord < 3",
    "SELECT ord FROM events WHERE pid IS DISTINCT FROM 100",
    "SELECT ord FROM events WHERE pid + 1 = 104",
    "SELECT ord FROM events WHERE event = 'exec' AND arg_pathname = '/etc/passwd'",
    "SELECT ord FROM events WHERE event = 'nothing'",
    "SELECT ord FROM events WHERE event <> 'exec'",
    "SELECT ord FROM events WHERE event IN ('exec', 'close') AND ord % 7 = 0",
    "SELECT ord FROM events WHERE event > 'e'",
    "SELECT ord FROM events WHERE event LIKE 'e%'",
    "SELECT ord FROM events WHERE arg_pathname LIKE '%''%'",
    "SELECT ord FROM events WHERE arg_pathname = ''",
    "SELECT ord FROM events WHERE arg_pathname = '/tmp/é'",
    "SELECT ord FROM events WHERE arg_pathname >= '/tmp' AND arg_pathname < '/tmq'",
    "SELECT ord FROM events WHERE lower(process_name) = 'p3'",
    "SELECT ord FROM events WHERE process_name IS NULL OR process_name = 'p16'",
    "SELECT ord FROM events WHERE coalesce(process_name, 'none') = 'none'",
    "SELECT ord FROM events WHERE arg_real__f64 > 0",
    "SELECT ord FROM events WHERE arg_real__f64 < 0",
    "SELECT ord FROM events WHERE arg_real__f64 = 'nan'::DOUBLE",
    "SELECT ord FROM events WHERE arg_real__f64 <> 0.5",
    "SELECT ord FROM events WHERE arg_real__f64 IN (0.0, 3.25)",
    "SELECT ord FROM events WHERE NOT (arg_real__f64 <= 3.25)",
    "SELECT ord FROM events WHERE arg_addr__u64 > 9223372036854775808",
    "SELECT ord FROM events WHERE arg_addr__u64 = 9223372036854775812",
    "SELECT ord FROM events WHERE arg_big__i64 = 9007199254740993",
    "SELECT ord FROM events WHERE arg_ok__bool",
    "SELECT ord FROM events WHERE NOT arg_ok__bool",
    "SELECT ord FROM events WHERE arg_ok__bool IS NULL AND pid = 105",
    "SELECT ord FROM events WHERE arg_raw__bin = '\\xFF\\x00'::BLOB",
    "SELECT ord FROM events WHERE list_contains(arg_argv, '-c')",
    "SELECT ord, arg_ids__list_i64 FROM events WHERE len(arg_ids__list_i64) = 2 AND ord < 20",
    "SELECT ord FROM events WHERE ts_ns = 1700000000003000003",
    "SELECT ts FROM events WHERE ts > TIMESTAMP '2023-11-14 22:13:20.1' AND ts < '2024-01-01'",
    "SELECT ord FROM events WHERE ts IS NULL",
    "SELECT event, count(*), sum(pid), min(ts), max(ts_ns), avg(ord) FROM events GROUP BY event",
    "SELECT pid, count(DISTINCT process_name) FROM events GROUP BY pid HAVING count(*) > 30",
    "SELECT a.ord, b.ord FROM events a JOIN exec b ON a.ord = b.ord + 1 WHERE a.pid = 104",
    "SELECT ord FROM events WHERE pid IN (SELECT pid FROM events WHERE ord = 77)",
    "SELECT ord, lag(ord) OVER (ORDER BY ord) FROM events WHERE pid = 102",
    "SELECT ord FROM events ORDER BY process_name NULLS LAST, ord DESC LIMIT 9",
    "SELECT DISTINCT arg_pathname FROM events",
    "SELECT unnest(arg_argv) AS word, count(*) FROM events GROUP BY word",
    "SELECT ord FROM events WHERE seq < 5 OR seq IS NULL AND pid = 109",
    "SELECT max(ts) - min(ts) FROM events WHERE event = 'close'",
]


@pytest.fixture(scope="module")
def mixed_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The capture that the queries are run over."""
    return mixed(tmp_path_factory.mktemp("query") / "mixed.kcap")


@pytest.fixture(scope="module")
def table(mixed_capture: Path) -> duckdb.DuckDBPyConnection:
    """The same events as a table of DuckDB's own, by way of Python values."""
    rows = [
        row for batch in opened(mixed_capture.read_bytes()).batches() for row in batch.to_pylist()
    ]
    return as_table(rows)


def as_table(rows: list[dict[str, Any]]) -> duckdb.DuckDBPyConnection:
    """A connection with events as a table, made value by value."""
    kinds: dict[str, pa.DataType] = {"ts": pa.timestamp("us"), "ts_ns": pa.int64()}
    for row in rows:
        if "ts" in row:
            row["ts_ns"], row["ts"] = row["ts"], row["ts"] // 1000  # type: ignore[operator]
    kinds |= {"arg_addr__u64": pa.uint64(), "arg_argv": pa.list_(pa.utf8())}
    names = sorted({name for row in rows for name in row})
    arrays = {n: pa.array([row.get(n) for row in rows], kinds.get(n)) for n in names}
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("given", pa.table(arrays))
    connection.execute("CREATE TABLE events AS SELECT * FROM given")
    connection.unregister("given")
    connection.execute("CREATE VIEW exec AS FROM events WHERE event = 'exec'")
    return connection


def answers(sql: str, path: Path) -> list[str]:
    """What kcap query says, a text a row; the order counts where the query says so."""
    result = run("query", sql, path, "--json")
    assert result.exit_code == 0, result.output
    rows = [json.dumps(row) for row in json.loads(result.stdout)["rows"]]
    return rows if "ORDER BY" in sql else sorted(rows)


def expected_answers(sql: str, table: duckdb.DuckDBPyConnection) -> list[str]:
    """What DuckDB says over its own table, in the same form."""
    from kcap.tools.results import Rows

    out = io.BytesIO()
    Rows(table.sql(sql).to_arrow_reader(1000)).write("json", out)
    rows = [json.dumps(row) for row in json.loads(out.getvalue())["rows"]]
    return rows if "ORDER BY" in sql else sorted(rows)


@pytest.mark.parametrize("sql", QUERIES)
def test_answers_are_those_of_a_table(
    sql: str, mixed_capture: Path, table: duckdb.DuckDBPyConnection
) -> None:
    """A query over a capture gives the rows that it gives over DuckDB's own table of the events."""
    assert answers(sql, mixed_capture) == expected_answers(sql, table)


def test_the_queries_are_worth_asking(table: duckdb.DuckDBPyConnection) -> None:
    """Negative control: nearly all queries have an answer, and nearly no two have the same."""
    found = ["".join(expected_answers(sql, table)) for sql in QUERIES]

    assert len(QUERIES) >= 50
    assert sum(not answer for answer in found) <= 2
    assert len(set(found)) >= len(QUERIES) - 4


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT count(*) FROM events WHERE pid = 103", lambda r: r.get("pid") == 103),
        ("SELECT count(*) FROM events WHERE pid <> 103", lambda r: r.get("pid", 103) != 103),
        (
            "SELECT count(*) FROM events WHERE event = 'exec' AND ts_ns > 1700000000100000000",
            lambda r: r.get("event") == "exec" and r.get("ts", 0) > 1700000000100000000,
        ),
        ("SELECT count(*) FROM exec", lambda r: r.get("event") == "exec"),
    ],
)
def test_answers_are_those_of_python(
    sql: str, expected: Callable[[dict[str, Any]], bool], mixed_capture: Path
) -> None:
    """Counts are what a loop over the events counts."""
    reader = opened(mixed_capture.read_bytes())
    rows = [row for batch in reader.batches() for row in batch.to_pylist()]

    assert answers(sql, mixed_capture) == [json.dumps([sum(map(expected, rows))])]


def test_foreign_files_and_streams(foreign: Path, data: Callable[[str], Path]) -> None:
    """A foreign file, plain, compressed or as a stream, answers as an imported one does."""
    sample = data("tracee/tracee_event_dump_2022-10.jsonl.gz")
    sql = "SELECT event, count(*), count(DISTINCT pid) FROM events GROUP BY ALL ORDER BY ALL"
    imported = foreign.with_name("imported.kcap")
    assert run("import", sample, "-o", imported).exit_code == 0

    expected = answers(sql, imported)

    assert len(expected) > 15
    assert answers(sql, sample) == expected
    result = run("query", sql, "-", "--json", input=sample.read_bytes())
    assert [json.dumps(row) for row in json.loads(result.stdout)["rows"]] == expected
    result = run("query", sql, "-", "--json", input=imported.read_bytes())
    assert [json.dumps(row) for row in json.loads(result.stdout)["rows"]] == expected
    assert answers("SELECT count(*) FROM events", foreign) == ["[2]"]


def test_several_captures_are_one_table(tmp_path: Path) -> None:
    """Captures are united by name, in the order in which they are given."""
    one = write(tmp_path / "1.kcap", {"ord": [0, 1], "pid": [1, 2], "event": ["a", "b"]})
    two = write(tmp_path / "2.kcap", {"ord": [0], "user": ["me"], "event": ["b"]})

    result = run("query", "SELECT event, pid, user FROM events", two, one, "-f", "csv")

    assert result.stdout_bytes == b"event,pid,user\r\nb,,me\r\na,1,\r\nb,2,\r\n"
    result = run("query", "DESCRIBE b", two, one, "-f", "csv")
    assert [row[0] for row in csv.reader(io.StringIO(result.stdout))][1:] == [
        *("ord", "event", "pid", "user")
    ]


def test_a_type_has_its_own_columns(tmp_path: Path) -> None:
    """The table of an event type has the envelope and the arguments that its events have."""
    path = write(
        tmp_path / "c.kcap",
        {
            "event": ["open", "open", "exit"],
            "pid": [1, None, 2],
            "arg_pathname": ["/a", None, None],
            "arg_flags__i64": pa.array([None, 2, None], pa.int64()),
            "arg_exit_code": pa.array([None, None, 7], pa.int64()),
            "ext_note__str": pa.array([None, None, "x"]),
        },
    )

    def columns(name: str) -> list[str]:
        rows = json.loads(run("query", f"DESCRIBE {name}", path, "--json").stdout)["rows"]
        return [row[0] for row in rows]

    assert columns("open") == ["event", "pid", "arg_flags__i64", "arg_pathname"]
    assert columns("exit") == ["event", "pid", "arg_exit_code", "ext_note__str"]
    assert answers("SELECT count(*), max(pid) FROM open", path) == ["[2, 1]"]
    names = [
        row[0] for row in json.loads(run("query", "SHOW TABLES", path, "--json").stdout)["rows"]
    ]
    assert names == ["all_rows", "events", "exit", "open"]


@pytest.mark.parametrize(
    "name",
    [
        "events",
        "EVENTS",
        "all_rows",
        'a"b',
        "a'b",
        "select",
        "ü x",
        "a;DROP VIEW events",
        "pg_class",
        "\x1b[2J",
        "",
    ],
)
def test_a_type_may_be_called_anything(name: str, tmp_path: Path) -> None:
    """The name of an event type, whatever it is, breaks neither its table nor the others."""
    path = write(tmp_path / "c.kcap", {"event": [name, "other"], "pid": [1, 2], "ord": [0, 1]})

    assert answers("SELECT count(*) FROM events", path) == ["[2]"]
    assert answers("SELECT pid FROM other", path) == ["[2]"]
    if name.lower() not in ("events", "all_rows", ""):
        quoted = name.replace('"', '""')
        assert answers(f'SELECT pid FROM "{quoted}"', path) == ["[1]"]
    assert run("query", "SHOW TABLES", path).exit_code == 0


def test_names_that_are_one_to_sql(tmp_path: Path) -> None:
    """Types that differ in case are one table; columns that do are two, of different names."""
    path = write(
        tmp_path / "c.kcap",
        {
            "event": ["Open", "open", "x"],
            "arg_Path__str": ["A", None, None],
            "arg_path__str": [None, "b", None],
        },
    )

    assert answers("SELECT event FROM open", path) == ['["Open"]', '["open"]']
    found = json.loads(run("query", "SELECT * FROM OPEN", path, "--json").stdout)
    assert [c["name"] for c in found["columns"]] == ["event", "arg_Path__str", "arg_path__str_1"]
    assert found["rows"] == [["Open", "A", None], ["open", None, "b"]]


def test_state_rows_are_no_events(tmp_path: Path) -> None:
    """Records that only describe what was there are in all_rows, and not in events."""
    path = write(
        tmp_path / "c.kcap",
        {"ord": [0, 1, 2], "event": ["a", "a", "a"], "kind": ["event", "state", None]},
    )

    assert answers("SELECT ord FROM events", path) == ["[0]", "[2]"]
    assert answers("SELECT ord FROM a", path) == ["[0]", "[2]"]
    assert answers("SELECT ord FROM all_rows WHERE kind = 'state'", path) == ["[1]"]


FORBIDDEN = [
    "SELECT * FROM read_text('{file}')",
    "SELECT * FROM read_csv('{file}')",
    "SELECT * FROM '{file}'",
    "SELECT * FROM glob('/*')",
    "COPY events TO '{file}.csv'",
    "EXPORT DATABASE '{file}.d'",
    "ATTACH '{file}.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET memory_limit = '9GB'",
    "RESET lock_configuration",
    "SELECT * FROM captures",
    "SELECT * FROM self",
    "SELECT 1; COPY (SELECT 1) TO '{file}.csv'",
    "SELECT getenv('HOME')",
    "CALL enable_logging()",
    "CREATE PERSISTENT SECRET s (TYPE s3)",
    "PREPARE p AS SELECT 1",
    "EXPLAIN ANALYZE COPY events TO '{file}.csv'",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_a_query_reaches_nothing_else(sql: str, tmp_path: Path, closed: Path) -> None:
    """Files, network, extensions, settings and Python's variables are out of a query's reach."""
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret\n")
    before = sorted(tmp_path.iterdir())

    result = run("query", sql.format(file=secret), closed)

    assert result.exit_code == 1
    assert result.stderr.startswith(("kcap: the query failed: ", "kcap: a statement of type "))
    assert "a secret" not in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_an_open_door_is_noticed(tmp_path: Path) -> None:
    """Negative control: DuckDB without the lock reads the file."""
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret\n")

    rows = duckdb.sql(f"SELECT content FROM read_text('{secret}')").fetchall()

    assert "a secret" in str(rows)


@pytest.mark.parametrize(
    ("sql", "message", "hint"),
    [
        ("SELECT nope FROM events", 'column "nope" not found', "DESCRIBE events"),
        ("SELECT * FROM nope", "nope does not exist", "SHOW TABLES"),
        ("SELEC 1", "syntax error", "DuckDB's"),
        ("", "the query is empty", "FROM events"),
        ("/* nothing */", "the query is empty", "FROM events"),
        ("SELECT ?", "the query failed", None),
        ("SELECT 1 / 'x' FROM events", "Could not convert", None),
    ],
)
def test_what_is_wrong_is_said(sql: str, message: str, hint: str | None, closed: Path) -> None:
    """An error of DuckDB's is one line, with a hint where one helps, and exit code 1."""
    result = run("query", sql, closed)

    assert result.exit_code == 1
    first, *rest = result.stderr.splitlines()
    assert message in first
    assert "Traceback" not in result.stderr
    assert (hint is None) == (not rest)
    assert hint is None or hint in rest[0]


def test_a_query_too_large_says_what_to_do(closed: Path) -> None:
    """Out of memory is an error that names --memory; the same on disk is none."""
    sql = "SELECT list(a.ord || b.ord || c.ord) FROM events a, events b, events c"
    result = run("query", sql, closed, "--memory", "8M")
    assert result.exit_code == 1
    assert "--memory" in result.stderr

    sql = "SELECT count(*) FROM (SELECT random() AS r FROM range(2000000) ORDER BY r)"
    result = run("query", sql, closed, "--memory", "40M", "-f", "csv")
    assert result.stdout_bytes == b"count_star()\r\n2000000\r\n"


def test_an_interval_of_time(mixed_capture: Path) -> None:
    """--start and --end are half open, as everywhere."""
    words = ("--start", str(START + 5 * 1_000_001), "--end", str(START + 9 * 1_000_001))
    result = run("query", "SELECT ord FROM events", mixed_capture, *words, "-f", "csv")

    assert result.stdout.split() == ["ord", "5", "6", "7", "8"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Of a cut capture, what there is answers, and the exit code is 3."""
    data = capture([make_events(200)], chunk_rows=50)
    path = tmp_path / "cut.kcap"
    path.write_bytes(data[: len(data) * 2 // 3])

    result = run("query", "SELECT count(*) > 0 AS some FROM events", path, "-f", "csv")

    assert (result.exit_code, result.stdout.split()) == (3, ["some", "true"])
    assert f"kcap: {path}: torn" in result.stderr
    assert "Warning" not in result.stderr
    foreign = tmp_path / "cut.jsonl"
    foreign.write_text('{"bad": \n')
    assert run("query", "SELECT 1", foreign).exit_code == 1
    lenient = run("query", "FROM events", foreign, "--lenient")
    assert lenient.exit_code in (1, 3)


def test_the_same_every_time(mixed_capture: Path, tmp_path: Path) -> None:
    """A result is the same bytes in another process, time zone and hash order."""
    sql = "SELECT process_name, count(*), list(ord), min(ts) FROM events GROUP BY process_name"
    command = f'kcap query "{sql}" {mixed_capture} -f jsonl'

    found = {
        shell(command, tmp_path, PYTHONHASHSEED=seed, TZ=zone).stdout
        for seed, zone in (("1", "UTC"), ("2", "America/New_York"))
    }

    assert len(found) == 1
    assert found.pop().count(b"\n") == 18


def test_standard_input_is_read_once() -> None:
    """Naming standard input twice is wrong usage, as is no capture at all."""
    assert run("query", "SELECT 1", "-", "-").exit_code == 2
    assert run("query", "SELECT 1").exit_code == 2


def test_a_missing_duckdb_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DuckDB the error says what to install."""

    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", refuse)

    with pytest.raises(Exception, match="DuckDB is not installed") as e:
        Session([], start=None, end=None, memory=1 << 30)
    assert getattr(e.value, "hint", "") == "pip install 'kcap[sql]'"


def test_messages_are_one_line() -> None:
    """What DuckDB says in several lines, with a drawing, becomes one."""
    text = 'Binder Error: no "x"\nCandidate bindings: "y"\n\nLINE 1: SELECT x\n               ^'

    assert str(failure(ValueError(text))) == 'the query failed: no "x" Candidate bindings: "y"'


def test_chunks_that_do_not_matter_are_not_read(
    mixed_capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conditions of a query, on an event type's table too, leave chunks unread."""
    read: Counter[int] = Counter()
    for name in ("chunk", "view"):
        real = getattr(CaptureReader, name)

        def spied(reader: Any, number: int, *rest: Any, real: Any = real) -> Any:
            read[number] += 1
            return real(reader, number, *rest)

        monkeypatch.setattr(CaptureReader, name, spied)

    assert answers("SELECT count(*) FROM events WHERE pid = 103", mixed_capture) == ["[36]"]
    assert set(read) == {3}
    read.clear()
    early = "SELECT count(*) FROM events WHERE ts < TIMESTAMP '2023-11-14 22:13:20.03'"
    assert answers(early, mixed_capture) == ["[30]"]
    assert set(read) == {0}
    read.clear()
    assert answers("SELECT count(*) FROM events", mixed_capture) == ["[400]"]
    assert set(read) == set(range(10))  # negative control
