"""What `test_memory` runs, each case in a process of its own that says its peak at the end.

The events are made batch by batch, columns at a time, so that making them costs little memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass

TEXT_BYTES = 4096
TEXT_ROWS = 4096
WIDE_COLUMNS = 1000
WIDE_ROWS = 1024
SMALL_ROWS = 65_536
SPARSE_SHARE = 0.01


def counted(first: int, count: int) -> dict[str, Column]:
    """Time and position of events."""
    ords = np.arange(first, first + count)
    return {
        "ts": Column(TypeClass.I64, pa.array(1_700_000_000_000_000_000 + ords * 1000)),
        "ord": Column(TypeClass.I64, pa.array(ords)),
    }


def texts(first: int, count: int) -> pa.DictionaryArray:
    """Different texts of 4 KiB: a counter in hex, and filling."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    raw = np.full((count, TEXT_BYTES), ord("."), np.uint8)
    numbers = np.arange(first, first + count)
    for place in range(8):
        raw[:, place] = digits[numbers >> 4 * (7 - place) & 15]
    ends = pa.py_buffer(np.arange(count + 1, dtype=np.int32) * np.int32(TEXT_BYTES))
    entries = pa.Array.from_buffers(pa.utf8(), count, [None, ends, pa.py_buffer(raw)])
    return pa.DictionaryArray.from_arrays(pa.array(np.arange(count, dtype=np.int32)), entries)


def unique_texts(count: int) -> Iterator[Batch]:
    """Events with a text that no other has."""
    for first in range(0, count, TEXT_ROWS):
        rows = min(TEXT_ROWS, count - first)
        yield Batch(
            rows, counted(first, rows) | {"cmdline": Column(TypeClass.STR, texts(first, rows))}
        )


def dense(count: int) -> Iterator[Batch]:
    """Events with 1,000 arguments each."""
    rng = np.random.default_rng(1)
    for first in range(0, count, WIDE_ROWS):
        columns = counted(first, WIDE_ROWS)
        for i in range(WIDE_COLUMNS):
            values = pa.array(rng.integers(0, 1 << 40, WIDE_ROWS))
            columns[f"arg_a{i}__i64"] = Column(TypeClass.I64, values)
        yield Batch(WIDE_ROWS, columns)


def sparse(count: int) -> Iterator[Batch]:
    """Events with a few of 1,000 arguments each."""
    rng = np.random.default_rng(1)
    for first in range(0, count, WIDE_ROWS):
        columns = counted(first, WIDE_ROWS)
        for i in range(WIDE_COLUMNS):
            rows = np.flatnonzero(rng.random(WIDE_ROWS) < SPARSE_SHARE).astype(np.int32)
            if len(rows):
                values = pa.array(rng.integers(0, 1 << 40, len(rows)))
                columns[f"arg_a{i}__i64"] = Column(TypeClass.I64, values, rows)
        yield Batch(WIDE_ROWS, columns)


def small(count: int) -> Iterator[Batch]:
    """Ordinary events: a few numbers, names that come again."""
    rng = np.random.default_rng(1)
    names = pa.array([f"/usr/bin/program-{i}" for i in range(1000)])
    events = pa.array(["open", "close", "execve"])
    for first in range(0, count, SMALL_ROWS):
        rows = min(SMALL_ROWS, count - first)
        columns = counted(first, rows)
        for name in ("pid", "tid", "arg_fd__i64"):
            columns[name] = Column(TypeClass.I64, pa.array(rng.integers(1, 30_000, rows)))
        for name, entries in (("event", events), ("exe", names), ("arg_x__str", names)):
            codes = pa.array(rng.integers(0, len(entries), rows).astype(np.int32))
            columns[name] = Column(TypeClass.STR, pa.DictionaryArray.from_arrays(codes, entries))
        yield Batch(rows, columns)


EVENTS: dict[str, Callable[[int], Iterator[Batch]]] = {
    "texts": unique_texts,
    "dense": dense,
    "sparse": sparse,
    "small": small,
}


def write(path: Path, events: str, count: int) -> int:
    """Write a capture."""
    rows = 0
    with path.open("wb") as stream:
        writer = CaptureWriter(stream)
        for batch in EVENTS[events](count):
            writer.write(batch)
            rows += batch.rows
        writer.close()
    return rows


def read(path: Path) -> int:
    """Read a capture batch by batch."""
    with path.open("rb") as stream:
        return sum(batch.rows for batch in CaptureReader(stream, str(path)).batches())


def hold(path: Path) -> int:
    """Read a capture and keep every batch: what the others must not do."""
    with path.open("rb") as stream:
        return sum(map(len, list(CaptureReader(stream, str(path)).batches())))


def run_kcap(words: list[str]) -> int:
    """Run a verb."""
    from kcap.tools.cli import main

    try:
        main(words)
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def peak_kib() -> int:
    """The most memory this process had resident; unlike ru_maxrss not the parent's before exec."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def main(case: str, *words: str) -> None:
    """Run a case; the last line of the output is its result and the peak in KiB."""
    if case == "kcap":
        result = run_kcap(list(words))
    elif case == "write":
        result = write(Path(words[0]), words[1], int(words[2]))
    else:
        result = {"read": read, "hold": hold}[case](Path(words[0]))
    print(f"\n{result} {peak_kib()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
