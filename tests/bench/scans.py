"""What a query costs: a capture through its index beside Parquet, by the same questions."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from formats import Kcap, Parquet
from workloads import Workload

import kcap
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.arrow import from_arrow

CHUNKS = 200
"""Chunks of the capture for the last 1 % of time."""

Timer = Callable[[Callable[[], object]], float]
"""Gives the least time, in seconds, that some work takes."""


def questions(table: pa.Table) -> dict[str, tuple[list[str], pc.Expression, str]]:
    """What is asked, of values that are there.

    Args:
        table: The events.

    Returns:
        Name to columns, filter for pyarrow, and filter in SQL.
    """
    pids = _by_count(table, "pid")
    pid = pids[len(pids) // 2]
    event = _by_count(table, "event")[-3:][0]
    name = _by_count(table, "process_name")[0]
    return {
        "one pid": (["ts", "event"], pc.field("pid") == pid, f"pid = {pid}"),
        "a common event": (["ts", "pid"], pc.field("event") == event, f"event = '{event}'"),
        "a rare name": (
            ["ts", "pid"],
            pc.field("process_name") == name,
            f"process_name = '{name}'",
        ),
        "text within text": (
            ["ts", "pid"],
            pc.match_substring(pc.field("cmdline"), "lib"),
            "contains(cmdline, 'lib')",
        ),
    }


def _by_count(table: pa.Table, name: str) -> list[Any]:
    """The values of a column, the rarest first."""
    found = table[name].drop_null().value_counts()
    order = pc.sort_indices(found.field("counts"))
    values: list[Any] = found.field("values").take(order).to_pylist()
    return values


def scans(workload: Workload, folder: Path, best_of: Timer) -> str:
    """The questions to kcap, to pyarrow over Parquet and to DuckDB over Parquet.

    Args:
        workload: The events.
        folder: Where files may be put.
        best_of: Measures.

    Returns:
        A Markdown table.
    """
    capture, parquet = folder / "scan.kcap", folder / "scan.parquet"
    Kcap().write(workload.table, capture)
    Parquet(tuned=True).write(workload.table, parquet)
    size = capture.stat().st_size
    lines = [
        f"### Filters: {workload.name}, {len(workload.table):,} events\n",
        "| question | hits | kcap | bytes read | pyarrow on Parquet | DuckDB on Parquet |",
        "|---|---|---|---|---|---|",
    ]
    for name, (columns, where, sql) in questions(workload.table).items():
        asked = [
            lambda c=columns, w=where: _kcap(capture, c, w),
            lambda c=columns, w=where: _pyarrow(parquet, c, w),
            lambda c=columns, w=sql: _duckdb(parquet, c, w),
        ]
        hits = {int(a()) for a in asked}
        assert len(hits) == 1, (name, hits)
        times = [best_of(a) for a in asked]
        read = _bytes_read(capture, columns, where)
        cells = [f"{times[0] * 1e3:.1f} ms", f"{read / size:.1%}"]
        cells += [f"{t * 1e3:.1f} ms ({t / times[0]:.1f} x)" for t in times[1:]]
        lines.append(f"| {name} | {hits.pop():,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def last_percent(workload: Workload, folder: Path, best_of: Timer) -> str:
    """The last 1 % by time of a capture of 200 chunks, beside reading all of it.

    Args:
        workload: The events.
        folder: Where files may be put.
        best_of: Measures.

    Returns:
        A Markdown table.
    """
    path = folder / "chunks.kcap"
    table = workload.table.sort_by("ts")
    rows = -(-len(table) // CHUNKS)
    with path.open("wb") as stream:
        writer = CaptureWriter(stream, chunk_rows=rows)
        for part in table.to_batches(rows):
            writer.write(from_arrow(part))
        writer.close()
    low, high = (pc.min_max(table["ts"])[n].as_py() for n in ("min", "max"))
    start = high - (high - low) // 100
    size = path.stat().st_size
    lines = [
        f"### The last 1 % by time: {workload.name}, {-(-len(table) // rows)} chunks\n",
        "| | events | bytes read | of the file | time |",
        "|---|---|---|---|---|",
    ]
    for name, first in (("last 1 %", start), ("all", None)):
        read = _bytes_read(path, None, None, first)
        hits = _kcap(path, None, None, first)
        took = best_of(lambda f=first: _kcap(path, None, None, f))
        lines.append(f"| {name} | {hits:,} | {read:,} | {read / size:.2%} | {took * 1e3:.1f} ms |")
    return "\n".join(lines) + "\n"


def _kcap(path: Path, columns: list[str] | None, where: Any, start: int | None = None) -> int:
    with kcap.open(path) as capture:
        found = capture.batches(columns, where, start)
        return sum(b.to_arrow(columns).num_rows for b in found)


def _bytes_read(path: Path, columns: list[str] | None, where: Any, start: int | None = None) -> int:
    """Bytes that the question takes from the file, counted where they are read."""
    stream = _Counting(path)
    reader = CaptureReader(stream, str(path))  # type: ignore[arg-type]
    with kcap.Capture(reader) as capture:
        for _ in capture.batches(columns, where, start):
            pass
    return stream.taken


class _Counting:
    """A file that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.taken = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        raw = self._file.read(size)
        self.taken += len(raw)
        return raw

    def close(self) -> None:
        self._file.close()


def _pyarrow(path: Path, columns: list[str], where: pc.Expression) -> int:
    found = ds.dataset(path).to_table(columns=columns, filter=where, use_threads=False)
    return int(found.num_rows)


def _duckdb(path: Path, columns: list[str], where: str) -> int:
    wanted = ", ".join(f'"{c}"' for c in columns)
    query = f"SELECT {wanted} FROM read_parquet(?) WHERE {where}"
    with duckdb.connect(config={"threads": 1}) as connection:
        return int(connection.sql(query, params=[str(path)]).to_arrow_table().num_rows)
