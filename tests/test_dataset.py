"""A capture is a table to DuckDB, Polars, pandas and pyarrow; only what they ask for is read."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from support import capture as capture_bytes
from support import make_events

import kcap
from kcap.capture import Capture
from kcap.dataset import CaptureDataset
from kcap.errors import KcapError, LossWarning
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.arrow import from_arrow

START = 1_700_000_000_000_000_000
WANTED = 7
"""A pid that only the second of three chunks has."""


def three_chunks(rows: int = 100) -> bytes:
    """Three chunks of some columns; pids 0-4, 5-9 and 10-14."""
    out = io.BytesIO()
    writer = CaptureWriter(out, chunk_rows=rows)
    for chunk in range(3):
        at = np.arange(chunk * rows, (chunk + 1) * rows)
        table = {
            "ts": START + at * 1001,
            "ord": at,
            "pid": at % 5 + 5 * chunk,
            "event": [f"e{i % 3}" for i in at],
            "process_name": [f"p{i % 7}" for i in at],
            "arg_pathname": [f"/tmp/{i}" if i % 4 else None for i in at],
            "arg_addr__u64": pa.array(
                [(1 << 63) + int(i) if i % 9 == 0 else None for i in at], pa.uint64()
            ),
        }
        writer.write(from_arrow(pa.table(table)))
    writer.close()
    return out.getvalue()


def opened(data: bytes) -> Capture:
    """A capture over bytes."""
    return Capture(CaptureReader(io.BytesIO(data), "test.kcap"))


@pytest.fixture
def capture() -> Capture:
    """The capture of three chunks."""
    return opened(three_chunks())


@pytest.fixture
def costs(capture: Capture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[set[int], int]]:
    """Tell the chunks of which something was decompressed since the last call, and the frames."""
    assert isinstance(capture.source, CaptureReader)
    work = capture.source.work
    seen: set[int] = set()

    def spied(read: Callable[..., Any], number: int, *columns: Any) -> Any:
        seen.add(number)
        return read(number, *columns)

    for name in ("chunk", "view"):
        monkeypatch.setattr(capture.source, name, partial(spied, getattr(capture.source, name)))
    before = [work.frames]

    def since() -> tuple[set[int], int]:
        chunks, frames = set(seen), work.frames - before[0]
        seen.clear()
        before[0] = work.frames
        return chunks, frames

    return since


def by_duckdb(dataset: CaptureDataset) -> list[tuple[Any, ...]]:
    connection = duckdb.connect()
    connection.register("events", dataset)
    sql = f"SELECT process_name, ts_ns FROM events WHERE pid = {WANTED}"
    return connection.execute(sql).fetchall()


def by_polars(dataset: CaptureDataset) -> list[tuple[Any, ...]]:
    frame = pl.scan_pyarrow_dataset(dataset).filter(pl.col("pid") == WANTED)
    return frame.select("process_name", "ts_ns").collect().rows()


def by_pyarrow(dataset: CaptureDataset) -> list[tuple[Any, ...]]:
    table = dataset.to_table(columns=["process_name", "ts_ns"], filter=pc.field("pid") == WANTED)
    return [tuple(row.values()) for row in table.to_pylist()]


def by_pandas(dataset: CaptureDataset) -> list[tuple[Any, ...]]:
    frame = dataset.to_table(["process_name", "ts_ns"], pc.field("pid") == WANTED).to_pandas()
    return list(frame.itertuples(index=False, name=None))


EXPECTED = [(f"p{i % 7}", START + i * 1001) for i in range(100, 200) if i % 5 + 5 == WANTED]


@pytest.mark.parametrize("read", [by_duckdb, by_polars, by_pyarrow, by_pandas])
def test_a_projection_with_a_filter_reads_what_it_needs(
    read: Callable[[CaptureDataset], list[tuple[Any, ...]]],
    capture: Capture,
    costs: Callable[[], tuple[set[int], int]],
) -> None:
    """Two columns of one pid: one chunk of three, three frames of its seven."""
    assert read(capture.dataset()) == EXPECTED

    assert costs() == ({1}, 3)


def test_without_a_filter_all_chunks_are_read(
    capture: Capture, costs: Callable[[], tuple[set[int], int]]
) -> None:
    """Negative control: the counters see three chunks and every frame where all is asked for."""
    table = capture.to_arrow()

    assert table.num_rows == 300
    assert costs() == ({0, 1, 2}, 3 * 7)


def test_a_filter_that_is_not_understood_is_still_true_to_its_word(
    capture: Capture, costs: Callable[[], tuple[set[int], int]]
) -> None:
    """A condition that no index knows costs its column everywhere, the rest where it is true."""
    found = capture.to_arrow(["process_name"], pc.match_substring(pc.field("arg_pathname"), "/152"))

    assert found.num_rows == 0  # 152 is one of those without a path
    assert costs() == ({0, 1, 2}, 3)
    assert (
        capture.to_arrow(
            ["process_name"], pc.match_substring(pc.field("arg_pathname"), "/151")
        ).num_rows
        == 1
    )
    assert costs() == ({0, 1, 2}, 4)


def test_times_prune_in_sql(capture: Capture, costs: Callable[[], tuple[set[int], int]]) -> None:
    """DuckDB hands on conditions on ts and on ts_ns, so that other chunks are not read."""
    connection = duckdb.connect()
    connection.register("events", capture.dataset())
    last = START + 250 * 1001
    stamp = f"make_timestamp({last // 1000})"

    exact = connection.execute(f"SELECT count(*) FROM events WHERE ts_ns >= {last}").fetchall()
    assert exact == [(50,)]
    assert costs()[0] == {2}
    assert connection.execute(f"SELECT count(*) FROM events WHERE ts >= {stamp}").fetchall() == [
        (50,)
    ]
    assert costs()[0] == {2}
    assert connection.execute("SELECT count(*) FROM events WHERE ts < '1971-01-01'").fetchall() == [
        (0,)
    ]
    assert costs() == (set(), 0)


class Counted(io.BytesIO):
    """Bytes that count how many were read."""

    total = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.total += len(data)
        return data


def test_the_last_percent_by_time_reads_little() -> None:
    """Of 200 chunks, the last 1 % by time costs less than 5 % of the bytes, footer included."""
    out = io.BytesIO()
    writer = CaptureWriter(out, chunk_rows=1000)
    rng = np.random.default_rng(1)
    words = pa.array([f"/usr/lib/{i}" for i in range(5000)])
    for chunk in range(200):
        at = np.arange(chunk * 1000, (chunk + 1) * 1000)
        codes = pa.array(rng.integers(0, 5000, 1000), pa.int32())
        table = {"ts": START + at * 1000, "ord": at, "pid": rng.integers(0, 40_000, 1000)}
        path = pa.DictionaryArray.from_arrays(codes, words)
        writer.write(from_arrow(pa.table({**table, "arg_pathname": path})))
    writer.close()
    stream = Counted(out.getvalue())
    capture = Capture(CaptureReader(stream, "test.kcap"))

    found = capture.to_arrow(start=START + 198_000 * 1000)

    assert found.num_rows == 2000
    assert found["ts_ns"][0].as_py() == START + 198_000 * 1000
    share = stream.total / len(out.getvalue())
    assert 0.01 < share < 0.05
    capture.to_arrow()
    assert stream.total > len(out.getvalue()) * 0.8  # negative control: the counter counts


@pytest.mark.parametrize("source", ["closed", "foreign", "open"])
def test_every_way_gives_the_same_table(
    source: str, closed: Path, foreign: Path, tmp_path: Path
) -> None:
    """pyarrow, Polars, pandas, DuckDB and the Arrow stream agree on columns, types and values."""
    path = {"closed": closed, "foreign": foreign, "open": tmp_path / "open.kcap"}[source]
    if source == "open":
        path.write_bytes(capture_bytes([make_events(60)], closed=False, chunk_rows=25))
    lossy = pytest.warns(LossWarning) if source == "open" else contextlib.nullcontext()
    with kcap.open(path) as capture, lossy:
        table = capture.to_arrow()
        frame = capture.to_pandas()
        stream = pa.RecordBatchReader.from_stream(capture).read_all()

        assert table.num_rows > 0
        assert table.schema == capture.schema == stream.schema == capture.dataset().schema
        expected = table.to_pylist()
        assert stream.to_pylist() == expected
        assert capture.to_polars().to_dicts() == pl.DataFrame(table).to_dicts()
        assert [s.to_pylist() for s in pa.table(pl.DataFrame(capture)).columns] == [
            c.to_pylist() for c in table.columns
        ]
        assert list(frame.columns) == table.schema.names
        for name in table.schema.names:
            given = [None if v is pd.NA or v is pd.NaT else v for v in frame[name].astype(object)]
            for value, wanted in zip(given, table[name].to_pylist(), strict=True):
                same = wanted is None and (value is None or pd.isna(value))
                assert same or _listed(value) == _listed(wanted), name
        rows = duckdb.sql("SELECT * FROM capture").to_arrow_table().to_pylist()
        assert [_keyed(row) for row in rows] == [_keyed(row) for row in expected]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, np.ndarray) else value


def _keyed(row: dict[str, Any]) -> list[str]:
    return [repr(value) for value in row.values()]


def test_types_are_those_of_analysts(capture: Capture) -> None:
    """Times are timestamps with the exact ns beside them, text is dictionary-coded, u64 stays."""
    text = pa.dictionary(pa.int32(), pa.utf8())

    assert capture.schema == pa.schema(
        {
            "ts": pa.timestamp("us"),
            "ts_ns": pa.int64(),
            "ord": pa.int64(),
            "event": text,
            "pid": pa.int64(),
            "process_name": text,
            "arg_addr__u64": pa.uint64(),
            "arg_pathname": text,
        }
    )
    row = capture.to_arrow(["arg_addr__u64", "ts_ns", "ts"]).slice(9, 1).to_pylist()[0]
    assert row["arg_addr__u64"] == (1 << 63) + 9
    assert row["ts_ns"] == START + 9 * 1001
    assert row["ts"].microsecond == 9


def test_times_before_1970_are_rounded_down() -> None:
    """A time between two microseconds belongs to the earlier one, also before 1970."""
    out = io.BytesIO()
    writer = CaptureWriter(out)
    writer.write(from_arrow(pa.table({"ts": [-1, -1000, -1001, 999]})))
    writer.close()

    table = opened(out.getvalue()).to_arrow()

    assert table["ts"].cast(pa.int64()).to_pylist() == [-1, -1, -2, 0]
    assert table["ts_ns"].to_pylist() == [-1, -1000, -1001, 999]


def test_frames_keep_integers_whole(capture: Capture) -> None:
    """pandas gets nullable integers, never floats; Polars has its own."""
    frame = capture.to_pandas(["arg_addr__u64", "pid", "event"])

    assert [str(t) for t in frame.dtypes] == ["UInt64", "Int64", "category"]
    assert frame["arg_addr__u64"].dropna().iloc[1] == (1 << 63) + 9
    polars = capture.to_polars(["arg_addr__u64", "event"])
    assert [str(t) for t in polars.dtypes] == ["UInt64", "Categorical"]
    assert polars.filter(pl.col("event").cast(pl.String).str.starts_with("e1")).height == 100


def test_nothing_is_read_ahead(capture: Capture, costs: Callable[[], tuple[set[int], int]]) -> None:
    """A reader that is left after the first rows has read one chunk, in the caller's thread."""
    reader = capture.dataset().scanner(columns=["pid"]).to_reader()
    assert costs() == (set(), 0)

    reader.read_next_batch()

    assert costs() == ({0}, 1)
    assert capture.dataset().head(5).num_rows == 5
    assert costs()[0] == {0}
    connection = duckdb.connect()
    connection.register("events", capture.dataset())
    assert len(connection.execute("SELECT pid FROM events LIMIT 2").fetchall()) == 2
    assert 2 not in costs()[0]


def test_a_dataset_has_what_pyarrow_has(capture: Capture) -> None:
    """Counting, filtering, heads, computed columns and batches work as of any dataset."""
    dataset = capture.dataset()
    busy = dataset.filter(pc.field("pid") < 5).filter(pc.field("event") == "e1")

    assert isinstance(dataset, ds.Dataset)
    assert dataset.count_rows() == 300
    assert busy.count_rows() == sum(i % 3 == 1 for i in range(100))
    assert busy.to_table(columns=[], filter=pc.field("pid") == 1).num_rows == sum(
        i % 3 == 1 and i % 5 == 1 for i in range(100)
    )
    assert dataset.head(250)["ord"].to_pylist() == list(range(250))
    assert dataset.take([3, 1])["ord"].to_pylist() == [3, 1]
    twice = dataset.to_table(columns={"twice": pc.field("pid") * 2, "one": pc.scalar(1)})
    assert twice["twice"].to_pylist() == [2 * pid for pid in dataset.to_table()["pid"].to_pylist()]
    assert dataset.scanner(columns={"x": pc.field("pid") * 2}).projected_schema.names == ["x"]
    assert [b.num_rows for b in dataset.to_batches(columns=["pid"], batch_size=64)] == [64, 36] * 3
    assert dataset.partition_expression.equals(pc.scalar(True))


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.get_fragments(),
        lambda d: d.replace_schema(d.schema),
        lambda d: d.join(d, "pid"),
        lambda d: d.join_asof(d, "ts", "pid", 1),
        lambda d: d.sort_by("pid"),
        lambda d: d.scanner().scan_batches(),
        lambda d: __import__("pickle").dumps(d),
    ],
)
def test_what_would_read_around_us_is_refused(
    call: Callable[[CaptureDataset], object], capture: Capture
) -> None:
    """What pyarrow does in C++ with its own datasets is an error here, and never a crash."""
    with pytest.raises(KcapError, match="has no"):
        call(capture.dataset())


def test_captures_are_united_by_name() -> None:
    """A dataset of several captures has the columns of all, and their rows one after another."""
    one = opened(three_chunks())
    other = opened(capture_bytes())

    table = CaptureDataset([one, other]).to_table()

    assert set(table.schema.names) == {*one.schema.names, *other.schema.names}
    assert table.num_rows == 360
    assert table["pid"].null_count == 60
    assert table.slice(300).select(other.schema.names).to_pylist() == other.to_arrow().to_pylist()


def test_the_interval_is_half_open(capture: Capture) -> None:
    """A dataset of a time interval has the events from its start on, without its end."""
    dataset = capture.dataset(start=START + 10 * 1001, end=START + 20 * 1001)

    assert dataset.to_table()["ord"].to_pylist() == list(range(10, 20))
    assert dataset.filter(pc.field("ord") != 15).count_rows() == 9


def test_wide_events_come_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record batches have few rows where there are many columns: most of them are null."""
    out = io.BytesIO()
    writer = CaptureWriter(out)
    for start in range(0, 2000, 10):
        columns = {f"arg_c{i}__i64": pa.array([i] * 8) for i in range(start, start + 10)}
        writer.write(from_arrow(pa.table(columns)))
    writer.close()
    capture = opened(out.getvalue())
    assert max(b.num_rows for b in capture.dataset().to_batches()) == 1600
    monkeypatch.setattr("kcap.dataset._CELLS", 100_000)

    batches = list(capture.dataset().to_batches())

    assert max(b.num_rows for b in batches) == 50
    assert sum(b.num_rows for b in batches) == 1600


def test_what_is_damaged_is_told() -> None:
    """A table that lacks the rows of a damaged chunk comes with a warning that says so."""
    data = bytearray(three_chunks())
    reader = CaptureReader(io.BytesIO(bytes(data)), "test.kcap")
    index = reader.index()
    assert index is not None
    entry = index.table[1]
    data[int(entry["offset"] + entry["length"]) - 20] ^= 1
    capture = opened(bytes(data))

    with pytest.warns(LossWarning, match=r"test\.kcap: damaged 100 events: "):
        table = capture.to_arrow()

    assert table.num_rows == 200
    assert [(loss.kind, loss.count) for loss in capture.losses] == [("damaged", 100)]
    assert capture.to_arrow(["ord"], pc.field("pid") == 1).num_rows == 20  # told once, and unhurt


def test_an_error_on_the_way_comes_out_as_it_is(foreign: Path) -> None:
    """What ends the reading of a foreign file is the same error through any of the ways."""
    foreign.write_text(foreign.read_text() + '{"no": "event"\n' + foreign.read_text())

    for read in (lambda c: c.to_arrow(), pl.DataFrame, lambda c: list(c.batches())):
        with kcap.open(foreign) as capture, pytest.raises(KcapError, match="line 3"):
            read(capture)
    with kcap.open(foreign, lenient=True) as capture, pytest.warns(LossWarning, match="skipped"):
        assert capture.to_arrow().num_rows == 4


def test_two_scans_at_once_agree(capture: Capture) -> None:
    """DuckDB may read a capture twice in one query, and from several threads."""
    connection = duckdb.connect(config={"threads": 4})
    connection.register("events", capture.dataset())
    sql = "SELECT count(*) FROM events a JOIN events b ON a.ord = b.ord + 1 WHERE a.pid = b.pid + 1"

    expected = sum(
        i % 5 + i // 100 * 5 == (i - 1) % 5 + (i - 1) // 100 * 5 + 1 for i in range(1, 300)
    )
    for _ in range(5):
        assert connection.execute(sql).fetchall() == [(expected,)]


def test_the_stream_of_a_foreign_file_has_one_schema(foreign: Path) -> None:
    """Columns that only a later line has are in the stream's schema from the start."""
    first = json.loads(foreign.read_text().splitlines()[0])
    late = {**first, "args": [{"name": "late", "type": "int", "value": 5}]}
    foreign.write_text(f"{json.dumps(first)}\n" * 3 + json.dumps(late) + "\n")

    with kcap.open(foreign) as capture:
        table = pa.table(capture)

    assert "arg_late__i64" in table.schema.names
    assert table["arg_late__i64"].to_pylist() == [None, None, None, 5]
