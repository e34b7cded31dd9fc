"""kcap export beside pyarrow alone: from a capture, and from the same columns in memory.

``python tests/bench/export.py`` prints a table. Both write the same Parquet file profile with one
thread; pyarrow has its columns decoded in memory, kcap reads them from a capture in the page cache,
and checks, cuts and describes them.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.arrow import from_arrow
from kcap.replay.pipeline import Pipeline
from kcap.writers import parquet
from kcap.writers.about import About
from kcap.writers.layout import Layout, Profile, in_order, plain

TURNS = 5
GROUP_ROWS = 65_536


class Times(NamedTuple):
    """What one capture took, in seconds, and how large its files are."""

    rows: int
    columns: int
    kcap_s: float
    text_s: float
    """pyarrow, from plain text, as most programs have it."""
    coded_s: float
    """pyarrow, from dictionary-coded text, as kcap has it: the harder comparison."""
    kcap_bytes: int
    text_bytes: int
    coded_bytes: int


def layout_of(path: Path) -> Layout:
    """The wide, portable layout of a capture."""
    with path.open("rb") as stream:
        found = CaptureReader(stream, str(path)).columns()
    return Layout({name: found[name] for name in in_order(found)}, Profile.PORTABLE)


def kcap_export(path: Path, layout: Layout) -> bytes:
    """The export of a capture, in memory."""
    out = io.BytesIO()
    with path.open("rb") as stream:
        reader = CaptureReader(stream, str(path))
        sink = parquet.Parquet(out, layout, About("wide", "portable", {}))
        Pipeline(reader, [sink]).run()
    return out.getvalue()


def arrow_write(table: pa.Table, layout: Layout) -> bytes:
    """The same file profile by pyarrow alone."""
    out = io.BytesIO()
    with pq.ParquetWriter(
        out,
        table.schema,
        compression="zstd",
        compression_level=parquet.LEVEL,
        use_dictionary=parquet.coded_leaves(layout),
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        writer.write_table(table, GROUP_ROWS)
    return out.getvalue()


def measure(path: Path, turns: int = TURNS) -> Times:
    """Measure one capture, the three ways taking turns; the best of all turns counts.

    Args:
        path: A closed capture.
        turns: How often each is run.

    Returns:
        The figures.
    """
    layout = layout_of(path)
    exported = kcap_export(path, layout)
    text = pq.read_table(io.BytesIO(exported)).cast(plain(layout.schema)).combine_chunks()
    coded = pa.table(
        [
            column.combine_chunks().dictionary_encode() if column.type in _CODED else column
            for column in text.columns
        ],
        names=text.schema.names,
    )
    ways = [
        lambda: kcap_export(path, layout),
        lambda: arrow_write(text, layout),
        lambda: arrow_write(coded, layout),
    ]
    best = [float("inf")] * len(ways)
    sizes = [0] * len(ways)
    for _ in range(turns):
        for i, way in enumerate(ways):
            begun = time.perf_counter()
            sizes[i] = len(way())
            best[i] = min(best[i], time.perf_counter() - begun)
    return Times(text.num_rows, text.num_columns, *best, *sizes)


_CODED = (pa.utf8(), pa.binary())


HEADING = """\
### To Parquet: kcap export, whole command's work, beside pyarrow with the same columns in memory

| input | events | columns | M events/s | of plain text | of coded text | B/event | text | coded |
|---|---|---|---|---|---|---|---|---|"""


def report(name: str, found: Times) -> str:
    """A line of the table.

    Args:
        name: What was exported.
        found: Its figures.

    Returns:
        Markdown.
    """
    rate = found.rows / found.kcap_s / 1e6
    return (
        f"| {name} | {found.rows:,} | {found.columns} | {rate:.2f} | "
        f"{found.kcap_s / found.text_s:.2f} x | {found.kcap_s / found.coded_s:.2f} x | "
        f"{found.kcap_bytes / found.rows:.1f} | {found.text_bytes / found.rows:.1f} | "
        f"{found.coded_bytes / found.rows:.1f} |"
    )


def main() -> None:
    """Measure the benchmark's workloads and print the table."""
    from workloads import workloads

    pa.set_cpu_count(1)
    print(HEADING)
    with tempfile.TemporaryDirectory() as folder:
        for name, table in workloads(Path(folder)):
            path = Path(folder, "export.kcap")
            with path.open("wb") as stream:
                writer = CaptureWriter(stream)
                for part in table.to_batches(GROUP_ROWS):
                    writer.write(from_arrow(part))
                writer.close()
            print(report(name, measure(path)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
