"""What a hunt costs: a hundred captures and a thousand indicators.

``python tests/bench/hunt.py CAPTURE...`` makes the captures of those it is given, in turn, each
with names and addresses of its own, and prints a Markdown table.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from click.testing import CliRunner

from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.opening import open_source
from kcap.tools.cli import main

CAPTURES = 100
INDICATORS = 1000
_DIGITS = re.compile(r"\d+")


def varied(batch: Batch, seed: int) -> Batch:
    """A batch in which three of ten texts are the capture's own.

    Args:
        batch: Events.
        seed: The capture's number.

    Returns:
        The same events with other numbers in their texts.
    """
    made = {}
    for name, column in batch.columns.items():
        if column.cls is TypeClass.STR and (name.startswith("arg_") or name == "fd_name"):
            entries = [
                _DIGITS.sub(lambda m: str((int(m[0]) + seed) % 256), text)
                if hash_of(text) % 10 < 3
                else text
                for text in column.values.dictionary.to_pylist()
            ]
            values = pa.DictionaryArray.from_arrays(
                pa.array(column.codes()), pa.array(entries, pa.utf8())
            )
            made[name] = Column(column.cls, values, column.rows)
    return batch.adding(made)


def hash_of(text: str) -> int:
    """A number that is the same in every run."""
    return hashlib.sha256(text.encode()).digest()[0]


def write(source: Path, target: Path, seed: int) -> int:
    """Write a capture of another one's events.

    Args:
        source: The other one.
        target: The capture.
        seed: Its number.

    Returns:
        Events.
    """
    rows = 0
    with contextlib.closing(open_source(source)) as events, target.open("wb") as stream:
        writer = CaptureWriter(stream, file_id=seed.to_bytes(16, "big"))
        for batch in events.batches():
            writer.write(varied(batch, seed))
            rows += batch.rows
        writer.close()
    return rows


def indicators(count: int, kinds: str) -> Iterator[str]:
    """Indicators that are nowhere, of some kinds in turn.

    Args:
        count: How many.
        kinds: Letters: hash, address, network, domain, path.

    Yields:
        A line each.
    """
    rng = random.Random(count)
    for place in range(count):
        kind = kinds[place % len(kinds)]
        if kind == "h":
            yield rng.randbytes(rng.choice([16, 20, 32])).hex()
        elif kind == "a":
            group = f"{place >> 16:x}::{place & 0xFFFF:x}"
            yield f"203.0.113.{rng.randrange(256)}" if place % 2 else f"2001:db8:{group}"
        elif kind == "n":
            yield f"198.{18 + place % 2}.{place % 256}.0/24"
        elif kind == "d":
            yield f"c{place}.malware-{rng.randrange(9999)}.example"
        else:
            yield f"/opt/.cache-{place}/x{rng.randrange(9999)}"


def hunted(
    captures: list[Path], lines: list[str], folder: Path, *options: str
) -> tuple[float, float]:
    """Hunt once.

    Args:
        captures: Where.
        lines: For what.
        folder: Where the file of indicators may be put.
        options: More words for the command line.

    Returns:
        Seconds by the clock, and of a processor.
    """
    file = folder / "indicators.txt"
    file.write_text("\n".join(lines))
    words = ["hunt", "--ioc", str(file), *options, *map(str, captures)]
    start = time.perf_counter(), time.process_time()
    result = CliRunner().invoke(main, words)
    took = time.perf_counter() - start[0], time.process_time() - start[1]
    assert result.exit_code == 0, result.output
    return took


def bytes_in(captures: list[Path]) -> int:
    """The size of some files."""
    return sum(path.stat().st_size for path in captures)


def main_program() -> None:
    """Make the captures and print the table."""
    given = [Path(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captures = [folder / f"{i:03}.kcap" for i in range(CAPTURES)]
        rows = sum(write(given[i % len(given)], path, i) for i, path in enumerate(captures))
        chunks = sum(_chunks(path) for path in captures)
        print(f"{CAPTURES} captures, {rows:,} events, {chunks} chunks, {bytes_in(captures):,} B\n")
        print("| indicators | options | time | processor |\n|---|---|---|---|")
        for what, kinds, count, options in (
            ("of all kinds", "handp", INDICATORS, ()),
            ("of all kinds", "handp", 100_000, ()),
            ("hashes", "h", INDICATORS, ()),
            ("domains", "d", INDICATORS, ()),
            ("paths", "p", INDICATORS, ()),
            ("paths", "p", 10, ()),
            ("hashes", "h", 10, ()),
            ("hashes", "h", 10, ("--exact",)),
            ("hashes", "h", INDICATORS, ("--exact",)),
        ):
            lines = list(indicators(count, kinds))
            took = min(hunted(captures, lines, folder, *options) for _ in range(3))
            cells = [f"{count:,} {what}", " ".join(options), *(f"{t:.2f} s" for t in took)]
            print(f"| {' | '.join(cells)} |", flush=True)


def _chunks(path: Path) -> int:
    index = CaptureReader(io.BytesIO(path.read_bytes()), path.name).index()
    assert index is not None
    return len(index.table)


if __name__ == "__main__":
    main_program()
