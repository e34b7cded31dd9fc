"""kcap export: what it writes, what it refuses, and how it ends."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import support
from cli_support import EVENTS, run, shell
from export_support import metadata_in, table_in, undone
from tracee_support import DNS, DOCS, DUMP, OPENED

from kcap.model.arrow import from_arrow
from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss
from kcap.writers.partition import MANIFEST

FORMATS = ("parquet", "arrow", "csv", "jsonl", "tracee-json")


@pytest.fixture
def capture_of(tmp_path: Path) -> Callable[..., Path]:
    """Write a capture of some batches."""

    def write(*batches: Batch, name: str = "in.kcap", **options: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(support.capture(batches, **options))
        return path

    return write


def export(*words: str | Path) -> bytes:
    """What an export that succeeds writes to standard output."""
    result = run("export", *words)
    assert result.exit_code == 0, result.stderr
    return result.stdout_bytes


def parquet_of(*words: str | Path) -> pa.Table:
    """The table of an export to standard output."""
    return table_in(export(*words, "--format", "parquet"))


def test_all_events_are_exported(closed: Path) -> None:
    """A closed capture, its chunks and columns, exactly."""
    table = parquet_of(closed)

    assert support.rows_of([from_arrow(undone(table))]) == support.rows_of([EVENTS])


@pytest.mark.parametrize("schema", ["wide", "narrow", "map"])
@pytest.mark.parametrize("form", ["parquet", "arrow", "csv"])
def test_one_input_one_output(closed: Path, form: str, schema: str) -> None:
    """A file, a pipe, and a second run give the same bytes; only the input's hash is a file's."""
    if (form, schema) == ("csv", "map"):
        return
    words = ("--format", form, "--schema", schema)
    one = export(closed, *words)

    assert export(closed, *words) == one
    piped = run("export", "-", *words, input=closed.read_bytes())
    assert piped.exit_code == 0
    if form == "csv":
        assert piped.stdout_bytes == one
    elif form == "parquet":
        assert table_in(piped.stdout_bytes).equals(table_in(one))
        found = metadata_in(one)["kcap.input"]
        assert found["sha256"] == hashlib.sha256(closed.read_bytes()).hexdigest()
        assert "sha256" not in metadata_in(piped.stdout_bytes)["kcap.input"]


def test_arrival_does_not_show(foreign: Path, tmp_path: Path) -> None:
    """Events that come slowly through a pipe give the bytes of events that come at once."""
    for schema in ("wide", "map"):
        command = f"kcap export - --format parquet --schema {schema}"
        slow = shell(f"(head -n 1 {foreign}; sleep 0.3; tail -n 1 {foreign}) | {command}", tmp_path)
        fast = shell(f"cat {foreign} | {command}", tmp_path)
        assert slow.returncode == fast.returncode == 0, slow.stderr
        assert slow.stdout == fast.stdout


@pytest.fixture(scope="module")
def three_sources(
    data: Callable[[str], Path], fixtures: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Captures of two Tracee versions and of our own recorder."""
    folder = tmp_path_factory.mktemp("sources")
    made = [folder / "dump.kcap", folder / "dns.kcap"]
    for name, path in zip((DUMP, DNS), made, strict=True):
        assert run("import", data(name), "-o", path).exit_code == 0
    return [*made, fixtures / "first.kcap"]


@pytest.mark.parametrize("schema", ["wide", "narrow", "map"])
def test_sources_are_read_together(three_sources: list[Path], tmp_path: Path, schema: str) -> None:
    """Two Tracee versions and an own recording in one query, without a cast."""
    for i, path in enumerate(three_sources):
        out = tmp_path / f"{i}.parquet"
        assert run("export", path, "-o", out, "--schema", schema).exit_code == 0

    with duckdb.connect() as db:
        db.execute("SET timezone = 'UTC'")
        source = f"read_parquet('{tmp_path}/*.parquet', union_by_name = true)"
        distinct = "count(DISTINCT (origin, ord))"
        (found,) = db.sql(
            f"SELECT {distinct}, count(DISTINCT event), max(ts_ns) - min(ts_ns) FROM {source}"
            " WHERE ts > TIMESTAMPTZ '2000-01-01 00:00:00Z' AND pid >= 0"
        ).fetchall()
        (processes,) = db.sql(
            f"SELECT count(*) FROM {source} WHERE process_name LIKE '%' OR uid = 0 AND category"
            " IN ('process', 'network')"
        ).fetchall()

    assert found[0] == 10_534 + 24_010 + 61
    assert found[1] > 20
    assert processes[0] > 0


def test_types_that_differ_need_a_cast(tmp_path: Path) -> None:
    """Negative control: where a name had two types, such a query would fail or change values."""
    pq.write_table(pa.table({"x": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "2.parquet")
    with duckdb.connect() as db, pytest.raises(duckdb.Error):
        db.sql(
            f"SELECT x + 1 FROM read_parquet('{tmp_path}/*.parquet', union_by_name = true)"
        ).fetchall()


def test_tracee_events_are_given_back(data: Callable[[str], Path], tmp_path: Path) -> None:
    """Through a capture and out again each line is the object that it was."""
    for name in (DUMP, DOCS):
        path = data(name)
        raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        capture = tmp_path / "c.kcap"
        assert run("import", path, "-o", capture, "--force").exit_code == 0

        lines = export(capture, "--format", "tracee-json").splitlines()

        assert [json.loads(line) for line in lines] == [
            json.loads(line) for line in raw.splitlines()
        ]


@pytest.mark.parametrize("form", FORMATS)
def test_formats_by_name(closed: Path, tmp_path: Path, form: str) -> None:
    """The suffix of the output says the format; --format wins over it."""
    out = tmp_path / "x.csv"
    assert run("export", closed, "--format", form, "-o", out).exit_code == 0
    assert out.read_bytes() == export(closed, "--format", form) or form == "arrow"
    if form != "tracee-json":
        named = tmp_path / f"y.{form}"
        assert run("export", closed, "-o", named).exit_code == 0
        assert named.read_bytes() == out.read_bytes()
    assert out.stat().st_mode & 0o777 == 0o600


def test_what_is_chosen(closed: Path) -> None:
    """Columns in the order given, a time range, a limit: as cat has them."""
    everything = parquet_of(closed)
    start = everything["ts_ns"][10].as_py()
    words = ("--fields", "ord,ts", "--start", str(start), "-n", "5")
    expected = [
        row
        for row in everything.select(["ord", "ts", "ts_ns"]).to_pylist()
        if row["ts_ns"] >= start
    ][:5]

    table = parquet_of(closed, *words)

    assert table.schema.names == ["ord", "ts", "ts_ns"]
    assert table.to_pylist() == expected
    listed = export(closed, *words, "--format", "csv").decode().splitlines()
    assert [line.split(",")[0] for line in listed] == ["ord", *(str(r["ord"]) for r in expected)]
    said = metadata_in(export(closed, *words, "--format", "parquet"))
    assert said["kcap.export"]["limit"] == 5
    assert "sha256" not in said["kcap.input"]


def test_old_losses_are_told(closed: Path) -> None:
    """The recording's losses are in the metadata, once, also where a choice skips their records."""
    for words in ((), ("--fields", "ts")):
        found = metadata_in(export(closed, *words, "--format", "parquet"))
        assert [(loss["kind"], loss["count"]) for loss in found["kcap.losses"]] == [("lost", 3)]


def test_a_column_that_is_nowhere(closed: Path) -> None:
    """A column asked for is in the table, of its type, also where no event has it."""
    table = parquet_of(closed, "--fields", "ord,pid,arg_flags__list")

    assert [str(f.type) for f in table.schema] == ["int64", "int64", "list<element: string>"]
    assert table["pid"].null_count == 60


def test_state_records(capture_of: Callable[..., Path]) -> None:
    """They are left out of tables unless asked for; Arrow keeps them."""
    kinds = pa.array(["state", "event", "event"]).dictionary_encode()
    ords = Column(TypeClass.I64, pa.array(np.arange(3)))
    path = capture_of(Batch(3, {"kind": Column(TypeClass.STR, kinds), "ord": ords}))

    assert parquet_of(path)["ord"].to_pylist() == [1, 2]
    assert parquet_of(path, "--state")["ord"].to_pylist() == [0, 1, 2]
    assert parquet_of(path, "--schema", "map")["ord"].to_pylist() == [1, 2]
    with pa.ipc.open_stream(export(path, "--format", "arrow")) as reader:
        assert reader.read_all()["ord"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("form", FORMATS[:4])
def test_a_torn_capture(closed: Path, tmp_path: Path, form: str) -> None:
    """What there is is exported, exit code 3, and the output is there under its name."""
    torn = tmp_path / "torn.kcap"
    torn.write_bytes(closed.read_bytes()[:-3000])
    expected = [b for b in support.opened(torn.read_bytes()).batches() if b.rows]
    count = sum(b.rows for b in expected)
    assert 0 < count < 60

    out = tmp_path / f"out.{form}"
    result = run("export", torn, "-o", out)

    assert result.exit_code == 3, result.stderr
    assert "torn" in result.stderr
    if form == "parquet":
        assert support.rows_of([from_arrow(undone(table_in(out.read_bytes())))]) == (
            support.rows_of(expected)
        )
        losses = metadata_in(out.read_bytes())["kcap.losses"]
        assert "torn" in {loss["kind"] for loss in losses}
    elif form != "arrow":
        assert len(out.read_text().splitlines()) == count + (form == "csv")


@pytest.mark.parametrize("words", [(), ("--schema", "map"), ("--fields", "event,pid")])
def test_bad_input(foreign: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A bad line ends the export; what came before is in NAME.partial, which says so."""
    good = foreign.read_bytes()
    foreign.write_bytes(good + b"no event\n" + good)
    out = tmp_path / "out.parquet"

    result = run("export", foreign, "-o", out, *words)

    assert result.exit_code == 1
    assert "line 3" in result.stderr
    assert not out.exists()
    partial = tmp_path / "out.parquet.partial"
    assert table_in(partial.read_bytes()).num_rows == 2
    losses = metadata_in(partial.read_bytes())["kcap.losses"]
    assert any(loss["reason"].startswith("stopped:") for loss in losses)

    lenient = run("export", foreign, "-o", out, *words, "--lenient")
    assert lenient.exit_code == 3
    assert table_in(out.read_bytes()).num_rows == 4
    assert not partial.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_written_over(closed: Path, tmp_path: Path, form: str) -> None:
    """An existing file stays; with --force there is the new one or the old, never a part."""
    out = tmp_path / "out"
    out.write_text("precious")
    words = ("export", closed, "--format", form, "-o", out)

    refused = run(*words)
    assert refused.exit_code == 1
    assert "exists already" in refused.stderr
    assert out.read_text() == "precious"
    empty = run("export", "/dev/null", "--format", form, "-o", out, "--force")
    assert empty.exit_code == 1
    assert out.read_text() == "precious"
    assert run(*words, "--force").exit_code == 0
    assert out.read_bytes() != b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed.kcap", "out"]


@pytest.mark.parametrize(
    "words",
    [
        ("--format", "parquet"),
        ("--format", "csv"),
        ("--format", "arrow", "--schema", "map"),
        ("--format", "parquet", "--partition-by", "event"),
    ],
)
def test_a_killed_export_leaves_nothing_that_looks_whole(
    capture_of: Callable[..., Path], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Whatever moment it is killed at, no output has its name."""
    rows = 60_000
    ords = Column(TypeClass.I64, pa.array(np.arange(rows)))
    one = {"ord": ords, "event": constant(TypeClass.STR, "open", rows)}
    path = capture_of(*[Batch(rows, one)] * 20)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "kcap.tools", "export", path, "-o", out, *words]
    root = Path(__file__).parent.parent
    killed = 0
    for delay_s in (0.0, 0.05, 0.15):
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}) as process:
            partial = tmp_path / "out.partial"
            until = time.monotonic() + 30
            while not partial.exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
            time.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        assert out.exists() == (process.returncode == 0)
        if out.exists():
            break
    assert killed
    # What a kill left is no obstacle to the next run.
    assert run("export", path, "-o", out, *words, "--force").exit_code == 0
    assert not partial.exists()


@pytest.mark.parametrize("form", FORMATS)
def test_an_output_that_takes_no_more(closed: Path, form: str) -> None:
    """A full disk is one line that names the output, not a traceback."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")

    result = run("export", closed, "--format", form, "-o", "/dev/full")

    assert result.exit_code == 1
    assert result.stderr.startswith("kcap: /dev/full: writing failed: No space left")


def test_a_reader_that_leaves(capture_of: Callable[..., Path], tmp_path: Path) -> None:
    """A part of a table is none, so that is a failure; of text it may be all that is wanted."""
    texts = [(i, {"pathname": f"{i * 7919:x}" * 20}) for i in range(20_000)]
    path = capture_of(support.batch_of(texts))
    for form, code in (("parquet", b"1"), ("arrow", b"1"), ("csv", b"0"), ("jsonl", b"0")):
        words = f"export {path} --format {form} 2>err | head -c 1 >/dev/null"
        done = shell(f"kcap {words}; echo ${{PIPESTATUS[0]}}", tmp_path)

        assert done.stdout.strip() == code
        assert b"Traceback" not in (tmp_path / "err").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --format"),
        (("--format", "xml"), "xml"),
        (("--format", "jsonl", "--schema", "wide"), "--schema is for"),
        (("--format", "csv", "--profile", "full"), "--profile is for"),
        (("--format", "csv", "--schema", "map"), "no maps"),
        (("--format", "arrow", "--partition-by", "date"), "--partition-by is for"),
        (("--format", "parquet", "--partition-by", "date"), "needs a folder"),
        (("--format", "parquet", "--guard"), "--guard is for"),
        (("--format", "parquet", "--fields", "pif"), "Did you mean 'pid'"),
    ],
)
def test_usage(closed: Path, words: tuple[str, ...], said: str) -> None:
    """What makes no sense is refused before anything is read or written."""
    result = run("export", closed, *words)

    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_names_that_differ_in_case(capture_of: Callable[..., Path]) -> None:
    """Databases take them for one: that is said, and the map keeps them apart."""
    one = constant(TypeClass.I64, 1, 1)
    path = capture_of(Batch(1, {"arg_Pid__i64": one, "arg_pid__i64": one}))

    result = run("export", path, "--format", "parquet")

    assert result.exit_code == 0
    assert "arg_Pid__i64 and arg_pid__i64 differ in case alone" in result.stderr
    args = parquet_of(path, "--schema", "map")["args"].to_pylist()
    assert args == [[("Pid__i64", "1"), ("pid__i64", "1")]]


def test_an_empty_capture(capture_of: Callable[..., Path]) -> None:
    """No event is no error: a table without rows, whose columns can be asked for."""
    path = capture_of()
    path.write_bytes(support.capture([Batch(0, {}, (Loss("lost", 1),))]))
    for form in FORMATS:
        assert run("export", path, "--format", form).exit_code == 0
    with duckdb.connect():
        assert parquet_of(path).num_rows == 0
        assert "event" in parquet_of(path).schema.names


def test_a_terminal_gets_no_table(kcap: Callable[..., Any], closed: Path) -> None:
    """The summary goes to standard error, the data alone to standard output."""
    done = kcap("export", closed, "--format", "csv", "--fields", "ord")

    assert done.stdout.count(b"\r\n") == 61
    assert done.stderr == b""
    named = kcap("export", closed, "-o", "x.parquet")
    assert named.stdout == b""
    assert named.stderr.startswith(b"kcap: 60 events, ")


def test_opened_tracee_lines(foreign: Path) -> None:
    """A foreign file is exported without an import, twice read or not."""
    table = parquet_of(foreign)
    assert table["pid"].to_pylist() == [OPENED["hostProcessId"]] * 2
    assert table["arg_pathname"].to_pylist() == ["/etc/passwd"] * 2
    back = io.BytesIO(export(foreign, "--format", "tracee-json"))
    assert [json.loads(line) for line in back] == [OPENED] * 2


@pytest.mark.parametrize("left", [(), (MANIFEST,), ("mine.txt",)])
def test_a_run_that_was_killed_between_two_steps_is_no_obstacle(
    capture_of: Callable[..., Path], tmp_path: Path, left: tuple[str, ...]
) -> None:
    """Before its folder has a mark, or when that is gone again; anybody else's is refused."""
    path, partial = capture_of(EVENTS), tmp_path / "out.partial"
    partial.mkdir()
    for name in left:
        (partial / name).write_text("{}")
    words = ("--format", "parquet", "--partition-by", "event", "--force")

    result = run("export", path, "-o", tmp_path / "out", *words)

    assert result.exit_code == (1 if "mine.txt" in left else 0), result.output
    assert partial.exists() == ("mine.txt" in left)
