"""content_hash: the same for the same rows, however they are stored; another for any other row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st
from support import RECORDS, batch_of, capture, make_events, opened, rows_of
from tracee_support import OPENED

from kcap.format import content
from kcap.format.content import ContentHash
from kcap.format.verify import verify
from kcap.model.arrow import from_arrow
from kcap.model.batch import Batch, Column, concat
from kcap.model.classes import TypeClass

EVENTS = make_events(400)


def hashes(data: bytes) -> tuple[str, str]:
    """The two hashes in a capture's FOOTER."""
    footer = opened(data).footer
    assert footer is not None
    return footer.totals["content_hash"], footer.totals["content_hash_values"]


def digest(*batches: Batch) -> str:
    """The content hash of rows in some division."""
    found = ContentHash()
    for batch in batches:
        found.add(batch)
    return found.digests()["content_hash"]


@pytest.mark.parametrize("options", [{"chunk_rows": 7}, {"chunk_rows": 1}, {"level": 19}])
def test_chunks_and_levels_do_not_count(options: dict[str, int]) -> None:
    """Chunks of other sizes and another compression keep both hashes."""
    assert hashes(capture([EVENTS], **options)) == hashes(capture([EVENTS]))


@given(RECORDS, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 7))
def test_any_division_gives_one_hash(
    records: list[tuple[int, dict[str, Any]]], cuts: list[int], block: int
) -> None:
    """Rows of every class, divided anyhow, with blocks of a few rows."""
    events = batch_of(records)
    parts, start = [], 0
    while start < events.rows:
        stop = start + cuts[len(parts) % len(cuts)]
        parts.append(events.slice(start, stop))
        start = stop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "BLOCK_ROWS", block)
        assert digest(*parts) == digest(events)
        patch.setattr(content, "BLOCK_ROWS", 1 << 16)
        patch.setattr(content, "BLOCK_BYTES", 40 * block)
        patch.setattr(content, "BLOCK_TEXT_BYTES", 4 * block)
        assert digest(*parts) == digest(events)


def test_a_block_ends_where_its_rows_say() -> None:
    """The places where blocks of few bytes end, against a count of each row in plain Python."""
    ends: list[int] = []
    most, most_texts = 3000, 500
    size = texts = count = 0
    seen: set[tuple[str, object]] = set()
    rows = EVENTS.to_pylist()
    at = 0
    while at < len(rows):
        row_size = row_texts = 0
        fresh = set()
        for name, value in rows[at].items():
            text = isinstance(value, (str, bytes))
            if text and (name, value) not in seen:
                fresh.add((name, value))
                row_texts += len(value.encode() if isinstance(value, str) else value)  # type: ignore[union-attr]
            row_size += _counted(value)
            if isinstance(value, list):
                row_texts += sum(len(v.encode()) for v in value if isinstance(v, str))
        over = size + texts + row_size + row_texts > most or texts + row_texts > most_texts
        if count and over:
            ends.append(count)
            size = texts = count = 0
            seen = set()
            continue
        size, texts, count, at = size + row_size, texts + row_texts, count + 1, at + 1
        seen |= fresh
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "BLOCK_BYTES", most)
        patch.setattr(content, "BLOCK_TEXT_BYTES", most_texts)
        end = ContentHash._end
        patch.setattr(ContentHash, "_end", lambda self: (found.append(self._rows), end(self)))
        digest(EVENTS)

    assert found == ends
    assert len(ends) > 10


def _counted(value: object) -> int:
    """What a value counts besides its text (spec 12.1)."""
    if isinstance(value, list):
        return 4 + sum(4 if isinstance(v, str) else 1 if isinstance(v, bool) else 8 for v in value)
    if isinstance(value, (str, bytes)):
        return 4
    return 1 if isinstance(value, bool) else 8


def test_what_encoding_worked_out_changes_nothing() -> None:
    """A writer that hands its chunks' digests on gets the hash of the rows all the same."""
    whole = capture([EVENTS])
    parts = capture([EVENTS.slice(0, 100), EVENTS.slice(100, 400)], chunk_rows=100)

    assert hashes(whole)[0] == digest(EVENTS) == hashes(parts)[0]


def test_arrow_and_back_keeps_the_hash() -> None:
    """Through an Arrow table with columns in another order, plain texts and other chunks."""
    names = sorted(EVENTS.columns, reverse=True)
    table = pa.Table.from_batches([EVENTS.to_arrow(names)])
    plain = pa.table(
        {
            n: table[n].cast(t.value_type) if pa.types.is_dictionary(t) else table[n]
            for n, t in zip(table.schema.names, table.schema.types, strict=True)
        }
    )
    back = [from_arrow(plain.slice(at, 90)) for at in range(0, 400, 90)]

    assert digest(*back) == digest(EVENTS)


def changed(name: str, row: int) -> Batch:
    """The events with another value in one cell."""
    column = EVENTS.columns[name]
    values = column.values.to_pylist()
    value = values[row]
    other: Any = {
        bool: lambda: not value,
        int: lambda: value ^ 1,
        float: lambda: value + 1.0,
        str: lambda: value + "x",
        bytes: lambda: value + b"x",
        list: lambda: value[:-1] if value else value,
    }[type(value)]()
    values[row] = other
    array = pa.array(values, column.cls.arrow)
    return EVENTS.adding({name: Column(column.cls, array, column.rows)})


@pytest.mark.parametrize("name", sorted(EVENTS.columns))
def test_any_changed_cell_shows(name: str) -> None:
    """One changed value of any column, first, last or between, gives another content hash."""
    for row in (0, len(EVENTS.columns[name]) // 2, len(EVENTS.columns[name]) - 1):
        assert digest(changed(name, row)) != digest(EVENTS), (name, row)


def test_a_missing_moved_or_renamed_column_shows() -> None:
    """A column dropped, under another name, or with its values in other rows; rows swapped."""
    seen = {digest(EVENTS)}
    columns = dict(EVENTS.columns)
    sparse = next(n for n, c in columns.items() if c.rows is not None and n.endswith("__f64"))
    values = columns.pop(sparse)
    rows = values.rows
    assert rows is not None
    seen.add(digest(Batch(400, columns)))
    seen.add(digest(Batch(400, {**columns, "arg_other__f64": values})))
    moved = Column(TypeClass.F64, values.values, rows + np.int32(1))
    seen.add(digest(Batch(400, {**columns, sparse: moved})))
    order = np.arange(400, dtype=np.int32)
    order[:2] = [1, 0]
    swapped = concat([EVENTS.slice(1, 2), EVENTS.slice(0, 1), EVENTS.slice(2, 400)])
    seen.add(digest(swapped))
    seen.add(digest(EVENTS.slice(0, 399)))

    assert len(seen) == 6


def test_values_hash_leaves_identity_out() -> None:
    """Other positions and shapes keep `content_hash_values` and change `content_hash`."""
    count = EVENTS.rows
    other = EVENTS.adding({"ord": Column(TypeClass.I64, pa.array(np.arange(count) + 5))})
    shapeless = Batch(count, {n: c for n, c in EVENTS.columns.items() if n != "shape"})

    found = [hashes(capture([b])) for b in (EVENTS, other, shapeless)]

    assert len({values for _, values in found}) == 1
    assert len({every for every, _ in found}) == 3


def test_a_wrong_hash_in_the_footer_is_found() -> None:
    """The control: verify compares the hash with the rows."""
    data = capture([EVENTS])
    assert verify(opened(data)).good
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "_BEGIN", b"another\n")
        report = verify(opened(data))
    assert {f.what for f in report.findings} == {
        f"the FOOTER's {n} is not that of the events"
        for n in ("content_hash", "content_hash_values")
    }


def lines(count: int, pid: int, start: int) -> bytes:
    """Tracee events as JSON lines."""
    events = [
        {**OPENED, "timestamp": start + i * 10, "processId": pid + i % 5, "hostProcessId": pid}
        for i in range(count)
    ]
    return b"".join(json.dumps(e).encode() + b"\n" for e in events)


def footer_hash(path: Path) -> str:
    footer = opened(path.read_bytes()).footer
    assert footer is not None
    return str(footer.totals["content_hash"])


def test_one_import_of_two_files_equals_two_that_are_joined(tmp_path: Path) -> None:
    """Importing two files at once, in any order, or each alone and then both captures."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(lines(90, 100, 10**18))
    second.write_bytes(lines(90, 900, 10**18 + 5))
    whole, turned, a, b, joined = (tmp_path / f"{n}.kcap" for n in ("w", "t", "a", "b", "j"))
    for words in (
        (first, second, "-o", whole),
        (second, first, "-o", turned, "--chunk-events", "11"),
        (first, "-o", a, "--level", "1"),
        (second, "-o", b),
        (a, b, "-o", joined),
    ):
        result = run("import", *words)
        assert result.exit_code == 0, result.stderr

    assert footer_hash(whole) == footer_hash(turned) == footer_hash(joined) != footer_hash(a)
    assert len(rows_of(list(opened(whole.read_bytes()).batches()))) == 180


SURROUNDINGS: list[dict[str, str]] = [
    {"PYTHONHASHSEED": "0", "TZ": "UTC"},
    {"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "ARROW_IO_THREADS": "1"},
    {"PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "1", "TZ": "America/St_Johns"},
]


def imported(data: bytes, out: Path, step: int, env: dict[str, str], *words: str) -> bytes:
    """Import from a pipe that gives some bytes at a time."""
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-m", "kcap.tools", "import", "-", "-o", str(out), *words],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root), **env},
    ) as process:
        assert process.stdin is not None
        for at in range(0, len(data), step):
            process.stdin.write(data[at : at + step])
            process.stdin.flush()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    return out.read_bytes()


def test_canonical_mode_gives_equal_bytes(tmp_path: Path) -> None:
    """Other hash seeds, time zones, locales, threads and arrival give the same file (spec 1.5)."""
    data = lines(1500, 100, 10**18)
    options = ("--canonical", "--chunk-events", "400")
    found = {
        imported(data, tmp_path / f"{i}.kcap", step, env, *options)
        for i, (env, step) in enumerate(zip(SURROUNDINGS, (1 << 20, 777, 9000), strict=True))
    }

    assert len(found) == 1
    assert verify(opened(found.pop())).good


def test_without_canonical_mode_no_two_files_are_equal(tmp_path: Path) -> None:
    """The control: each file has an id of its own, and options count in canonical mode."""
    data = lines(30, 100, 10**18)
    env = SURROUNDINGS[0]
    plain = {imported(data, tmp_path / f"{i}.kcap", 1 << 20, env) for i in range(2)}
    options = {
        imported(data, tmp_path / f"c{n}.kcap", 1 << 20, env, "--canonical", "--chunk-events", n)
        for n in ("10", "20")
    }

    assert len(plain) == 2
    assert len({d[32:48] for d in options}) == 2


def test_import_says_the_hash_of_the_file(
    foreign: Path, tmp_path: Path, kcap: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    """What import prints is what sha256sum says."""
    import hashlib

    done = kcap("import", foreign, "-o", "x.kcap")
    digest = hashlib.sha256((tmp_path / "x.kcap").read_bytes()).hexdigest()

    assert done.returncode == 0
    assert digest.encode() in done.stderr
