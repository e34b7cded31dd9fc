"""Folders of Parquet files: every row in its branch, whatever the values are called."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import BinaryIO

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import support
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import OutputError
from kcap.model.arrow import from_arrow
from kcap.model.batch import Batch, concat
from kcap.model.classes import TypeClass
from kcap.tools import folder
from kcap.writers import partition
from kcap.writers.about import About
from kcap.writers.layout import Layout, Profile
from kcap.writers.partition import MANIFEST, MISSING, PartitionedParquet, segment

HOSTILE = [
    *("a", "../../x", "..", ".", "", MISSING, "a b=c%d", "ü", "123", "NULL", "x/y", "C:\\x"),
    *("a'b", "a\nb", "a\0b", "/etc/passwd", "host=b", "~", "a.", "-", "\u202e"),
]
SAFE = re.compile(r"[a-z_]+=([A-Za-z0-9_.~-]|%[0-9A-F]{2})*")
DAY = 86_400 * 10**9


class Files:
    """A folder in memory."""

    def __init__(self) -> None:
        self.found: dict[str, io.BytesIO] = {}
        self.open = 0
        self.most = 0

    def create(self, name: str) -> BinaryIO:
        """A new file."""
        assert name not in self.found
        files = self

        class Kept(io.BytesIO):
            def close(self) -> None:
                files.open -= not self.closed
                files.found[name] = io.BytesIO(self.getvalue())
                super().close()

        self.open += 1
        self.most = max(self.most, self.open)
        self.found[name] = Kept()
        return self.found[name]

    def rows(self) -> int:
        """Rows of all Parquet files."""
        return sum(
            pq.read_metadata(io.BytesIO(f.getvalue())).num_rows
            for name, f in self.found.items()
            if name.endswith(".parquet")
        )


def partitioned(batches: list[Batch], by: list[str]) -> Files:
    """A folder of some batches."""
    files = Files()
    found = {n: c.cls for b in batches for n, c in b.columns.items() if n not in by}
    layout = Layout(dict(sorted(found.items())), Profile.PORTABLE)

    def about() -> About:
        return About("wide", "portable", {})

    sink = PartitionedParquet(files.create, by, layout, about(), about)
    for batch in batches:
        sink.write(batch)
    sink.close()
    return files


def by_date(capture: Path, lake: Path) -> tuple[str | Path, ...]:
    """The words of an export by date."""
    return ("export", capture, "-f", "parquet", "--partition-by", "date", "-o", lake)


def hosts(values: list[str | None], start_ns: int = DAY) -> Batch:
    """Events of these hosts, one a day."""
    count = len(values)
    return from_arrow(
        pa.table(
            {
                "ts": pa.array([start_ns + i * DAY for i in range(count)]),
                "ord": pa.array(np.arange(count)),
                "host": pa.array(values, pa.utf8()),
            }
        )
    )


@given(st.lists(st.none() | st.text(max_size=300), min_size=1, max_size=20))
def test_names_lead_nowhere(values: list[str | None]) -> None:
    """Any text makes one folder's name of safe characters, and different texts different ones."""
    names = {value: segment("host", value) for value in values}

    assert all(SAFE.fullmatch(name) and len(name) <= 210 for name in names.values())
    assert len(set(names.values())) == len(names)
    assert not any(name.endswith(".") for name in names.values())


def test_hostile_values(tmp_path: Path) -> None:
    """A host called ../../x is a folder in the folder; every reader finds every row under it."""
    values: list[str | None] = [*HOSTILE, None]
    capture = tmp_path / "in" / "hosts.kcap"
    capture.parent.mkdir()
    capture.write_bytes(support.capture([hosts(values)]))
    before = sorted(p.name for p in tmp_path.iterdir())

    result = run(
        *("export", capture, "-o", tmp_path / "lake", "--format", "parquet"),
        *("--partition-by", "host"),
    )

    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, "lake"])
    assert len(list((tmp_path / "lake").iterdir())) == len(values) + 1
    lake = tmp_path / "lake"
    with duckdb.connect() as db:
        query = (
            f"SELECT ord, host FROM read_parquet('{lake}/*/*.parquet', hive_types_autocast=false)"
        )
        assert sorted(db.sql(query).fetchall()) == list(enumerate(values))
    # pyarrow and Polars take the one value that spells Hive's name for none for none.
    expected = [(i, None if v == MISSING else v) for i, v in enumerate(values)]
    schema = pads.HivePartitioning(pa.schema([("host", pa.utf8())]))
    table = pads.dataset(lake, partitioning=schema).to_table(["ord", "host"])
    assert sorted(zip(*table.to_pydict().values(), strict=True)) == expected
    frame = pl.read_parquet(lake / "*/*.parquet", hive_schema={"host": pl.String})
    assert sorted(frame.select("ord", "host").rows()) == expected


def test_every_row_is_in_its_branch() -> None:
    """By date and a column: each file holds just the rows of its folder, in their order."""
    rng = np.random.default_rng(1)
    count = 5000
    days = rng.integers(0, 3, count)
    columns = {
        "ts": pa.array(days * DAY + rng.integers(0, DAY, count)),
        "ord": pa.array(np.arange(count)),
        "category": pa.array(rng.choice(["file", "process", None], count), pa.utf8()),
    }
    batch = from_arrow(pa.table(columns))
    files = partitioned(
        [batch.slice(i, i + 333) for i in range(0, count, 333)], ["date", "category"]
    )

    seen = []
    for name, file in files.found.items():
        if not name.endswith(".parquet"):
            continue
        day, category, _ = name.split("/")
        table = pq.read_table(io.BytesIO(file.getvalue()))
        assert table.schema.names == ["ord", "ts", "ts_ns"]
        assert set(table["ts"].cast(pa.date32()).to_pylist()) == {
            np.datetime64(day.removeprefix("date=")).astype(object)
        }
        at = table["ord"].to_pylist()
        assert at == sorted(at)
        value = category.removeprefix("category=")
        kept = {v or MISSING for v in batch.array("category").take(pa.array(at)).to_pylist()}
        assert kept == {value}
        seen += at
    assert sorted(seen) == list(range(count))


def test_events_without_a_time_or_value() -> None:
    """They are in the branch of rows that have none."""
    files = partitioned([Batch(2, {"pid": hosts(["a", "b"]).columns["ord"]})], ["date", "host"])

    assert f"date={MISSING}/host={MISSING}/part-0.parquet" in files.found


def test_few_files_are_open() -> None:
    """A thousand hosts take 64 files at a time, and lose no row."""
    values: list[str | None] = [f"h{i % 1000}" for i in range(4000)]
    batch = hosts(values)

    files = partitioned([batch.slice(i, i + 500) for i in range(0, 4000, 500)], ["host"])

    assert files.most <= partition.OPEN_MAX
    assert files.open == 0
    assert files.rows() == 4000


def test_a_branch_goes_on_in_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What had to be closed is not written over, and the manifest counts every file."""
    monkeypatch.setattr(partition, "OPEN_MAX", 1)
    monkeypatch.setattr(partition.groups, "GROUP_BYTES", 1)
    files = partitioned([hosts(["a", "a", "b"]), hosts(["a"])], ["host"])

    manifest = json.loads(files.found[MANIFEST].getvalue())
    assert files.rows() == 4
    assert {"host=a/part-0.parquet", "host=b/part-0.parquet", "host=a/part-1.parquet"} <= set(
        files.found
    )
    assert sum(file["rows"] for file in manifest["files"]) == manifest["events"] == 4
    assert manifest["partition_by"] == ["host"]


def test_too_many_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A column with a value an event is refused, with its reason."""
    monkeypatch.setattr(partition, "PARTITIONS_MAX", 3)

    with pytest.raises(OutputError, match="more than 3 partitions"):
        partitioned([hosts([str(i) for i in range(9)])], ["host"])


def test_a_value_too_long_for_a_name() -> None:
    """It is cut, told apart by its hash, and counted."""
    values: list[str | None] = ["x" * 5000, "x" * 5001, "x" * 5000, "short"]
    files = Files()
    layout = Layout({"ord": TypeClass.I64}, Profile.PORTABLE)

    def about() -> About:
        return About("wide", "portable", {})

    sink = PartitionedParquet(files.create, ["host"], layout, about(), about)
    sink.write(hosts(values))
    sink.close()

    assert [(loss.kind, loss.count) for loss in sink.losses] == [("cut", 2), ("cut", 1)]
    assert len([f for f in files.found if f.endswith(".parquet")]) == 3


@pytest.mark.parametrize("by", ["nope", "ts", "policies", "arg_pathname", "", "host,host"])
def test_what_is_no_key(closed: Path, tmp_path: Path, by: str) -> None:
    """Only date and columns that every event may have are keys."""
    result = run("export", closed, "-f", "parquet", "--partition-by", by, "-o", tmp_path / "x")

    assert result.exit_code == 1
    assert "partition" in result.stderr
    assert not (tmp_path / "x").exists()


def test_the_folder_appears_whole(closed: Path, tmp_path: Path) -> None:
    """It has its name when everything is in it; what is there is not written over."""
    lake = tmp_path / "lake"
    words = by_date(closed, lake)
    assert run(*words).exit_code == 0
    first = {p: p.read_bytes() for p in lake.rglob("*") if p.is_file()}

    again = run(*words)
    forced = run(*words, "--force")

    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert forced.exit_code == 0, forced.stderr
    assert {p: p.read_bytes() for p in lake.rglob("*") if p.is_file()} == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed.kcap", "lake"]
    assert (lake.stat().st_mode & 0o777) == 0o700
    assert {p.stat().st_mode & 0o777 for p in first} == {0o600}


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_force_spares_what_is_not_ours(closed: Path, tmp_path: Path, there: str) -> None:
    """Only a folder that kcap exported is ever replaced."""
    lake, other = tmp_path / "lake", tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    if there == "folder":
        other.rename(lake)
    elif there == "file":
        lake.write_text("a file")
    else:
        lake.symlink_to(other)
    words = by_date(closed, lake)

    result = run(*words, "--force")

    assert result.exit_code == 1
    assert "hint:" in result.stderr
    kept = lake if there == "folder" else other
    assert (kept / "thesis.txt").read_text() == "years of work"


def test_an_error_leaves_a_partial_folder(foreign: Path, tmp_path: Path) -> None:
    """What there is so far is NAME.partial, and the next run takes its place."""
    good = foreign.read_bytes()
    foreign.write_bytes(good + b"no event\n" + good)
    lake = tmp_path / "lake"
    words = by_date(foreign, lake)

    failed = run(*words)

    assert failed.exit_code == 1
    assert "line 3" in failed.stderr
    assert not lake.exists()
    partial = tmp_path / "lake.partial"
    assert (partial / f"{MANIFEST}.partial").exists()
    assert sum(pq.read_metadata(p).num_rows for p in partial.rglob("*.parquet")) == 2
    assert run(*words, "--lenient").exit_code == 3
    assert lake.exists()
    assert not partial.exists()


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//b", "", ".", "a/\0"])
def test_no_name_leads_out_of_a_folder(tmp_path: Path, name: str) -> None:
    """The folder refuses them, whoever asks."""
    with (
        contextlib.suppress(KeyError),
        folder.written(str(tmp_path / "x"), force=False, mark="m") as made,
        pytest.raises(OutputError),
    ):
        made.create(name)

    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_parts_are_what_the_whole_is() -> None:
    """All branches together hold the rows of one file."""
    batch = support.make_events(400).adding(hosts(["a", "b", "c", None] * 100).columns)
    files = partitioned([batch], ["host"])
    tables = [
        pq.read_table(io.BytesIO(f.getvalue()))
        for name, f in files.found.items()
        if name.endswith(".parquet")
    ]
    whole = concat(
        [from_arrow(t.drop_columns(["ts", "ts_ns"]).drop_columns(["arg_big__u64"])) for t in tables]
    )

    order = np.argsort(whole.numpy("ord", -1))
    found = [whole.take(np.array([i], np.int32)) for i in order]
    names = sorted(set(batch.columns) - {"ts", "host", "arg_big__u64"})
    assert support.rows_of(found) == support.rows_of([batch.select(names)])
