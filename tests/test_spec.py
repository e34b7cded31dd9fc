"""The specification is enough to read a capture: a second reader, from its text alone, agrees."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import spec_content
import vectors
from spec_reader import CLASSES, EMPTY, Reading, bounds, may_hold, records
from support import SOURCE, capture, make_events, opened, rows_of, snapshot

import kcap
from kcap.model.batch import Batch
from kcap.model.side import Loss

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "first.kcap"
VALID = sorted((vectors.FOLDER / "valid").glob("*.kcap"))
SIDES = [SOURCE, snapshot(300), Loss("lost", 1, "r")]


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as texts, members by name."""
    return [repr({k: row[k] for k in sorted(row)}) for row in rows]


def classes_of(reading: Reading) -> dict[str, str]:
    """Column name to class, of a closed capture."""
    return {c["name"]: c["class"] for c in reading.totals["schema"] if c["table"] == "events"}


def test_the_fixture_is_read_alike() -> None:
    """A recording of a real machine: the text's reader and kcap give the same events."""
    source = kcap.open(FIXTURE)
    batches = list(source.batches())
    source.close()

    reading = Reading(FIXTURE.read_bytes())

    assert len(reading.rows) == reading.totals["events"] == 61
    assert in_order(reading.rows) == [repr(r) for b in batches for r in b.to_pylist()]


@pytest.mark.parametrize("rows", [7, 65_536])
def test_every_class_is_read_alike(rows: int) -> None:
    """All classes, forms of presence and side records."""
    events = make_events(700)

    reading = Reading(capture([events.with_before(SIDES)], chunk_rows=rows))

    assert reading.totals["events"] == 700
    assert in_order(reading.rows) == [repr(r) for r in events.to_pylist()]
    assert len(rows_of([events])) == 700


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid_vectors_are_read_alike(path: Path) -> None:
    """Rows, losses in numbers, tables and blobs of every valid vector."""
    reading = Reading(path.read_bytes())
    said = json.loads(path.with_suffix(".json").read_text("utf-8"))

    lines = [vectors.row_line(row) for row in reading.rows]
    assert vectors.rows_digest(lines) == said["rows"]["sha256"]
    blobs = [(b["path"], len(raw), hashlib.sha256(raw).hexdigest()) for b, raw in reading.blobs]
    assert blobs == [(b["path"], b["size"], b["sha256"]) for b in said["blobs"]]


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_the_footer_says_what_the_text_says(path: Path) -> None:
    """Totals of clause 8.2, counted anew (spec 8.2)."""
    reading = Reading(path.read_bytes())
    rows, totals = reading.rows, reading.totals
    times = [row["ts"] for row in rows if "ts" in row]
    states = sum(row.get("kind") == "state" for row in rows)

    assert totals["events"] == len(rows) - states
    assert totals["state_rows"] == states
    assert totals["timeless"] == len(rows) - len(times)
    assert totals["backward_steps"] == sum(b < a for a, b in pairwise(times))
    assert totals["types"] == Counter(row["event"] for row in rows if "event" in row)
    for name in ("ts", "seq"):
        found = bounds(rows, name)
        assert totals[name] == (None if found == EMPTY else list(found))


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_the_index_says_what_the_text_says(path: Path) -> None:
    """Counts, sets of pids and bloom filters of clause 8.1, from the rows (spec 8.1)."""
    data = path.read_bytes()
    last: int | None = None
    version_1_0 = opened(data).header.minor == 0
    for chunk, index in Reading(data).chunks:
        times = [last, *(row.get("ts") for row in chunk.rows)]
        known = [t for t in times if t is not None]
        last = known[-1] if known else None
        if index is None:
            continue
        rows = chunk.rows
        assert index.counts["rows"] == len(rows)
        for name in ("ts", "seq", "ord"):
            said = (index.counts[f"{name}_min"], index.counts[f"{name}_max"])
            assert said == bounds(rows, name)
        steps = sum(b < a for a, b in pairwise(known))
        # A RECOVERY may have taken away the chunk before (4.6).
        assert index.counts["backward"] == steps or path.stem.startswith("recovery-")
        assert index.counts["timeless"] == sum("ts" not in row for row in rows)
        states = sum(row.get("kind") == "state" for row in rows)
        assert index.counts["state_rows"] == (0 if version_1_0 else states)
        assert index.types == Counter(row["event"] for row in rows if "event" in row)
        if index.pids is not None:
            assert index.pids == sorted({row["pid"] for row in rows if "pid" in row})
        if index.strings is not None:
            assert all(may_hold(index.strings, text) for text in strings_of(chunk))


def strings_of(chunk: Any) -> set[str]:
    """Every value of class str and every item of class list."""
    names = {n: CLASSES[code] for n, code in chunk.classes.items() if n != "process_key"}
    texts = {row[n] for row in chunk.rows for n in row if names.get(n) == "str"}
    return texts | {
        item for row in chunk.rows for n in row if names.get(n) == "list" for item in row[n]
    }


def test_a_bloom_filter_of_a_full_chunk_denies_no_string_and_most_others() -> None:
    """kcap's filter and the text's hash agree, also where a filter says no (spec 8.1)."""
    reading = Reading(capture([make_events(3000)]))
    ((chunk, index),) = reading.chunks
    assert index is not None
    assert index.strings is not None

    others = [f"not there {i}" for i in range(2000)]
    wrong = sum(may_hold(index.strings, text) for text in others)

    assert all(may_hold(index.strings, text) for text in strings_of(chunk))
    assert wrong < 0.05 * len(others)


# Hashes


@pytest.mark.parametrize(
    "path", [p for p in VALID if p.stem != "version-1.0"], ids=lambda p: p.stem
)
def test_content_hashes_are_those_of_the_text(path: Path) -> None:
    """content_hash and content_hash_values, worked out from the rows alone (spec 12.1 to 12.4)."""
    reading = Reading(path.read_bytes())
    classes = classes_of(reading)

    assert reading.totals["content_hash"] == spec_content.content_hash(reading.rows, classes)
    assert reading.totals["content_hash_values"] == spec_content.content_hash(
        reading.rows, classes, values=True
    )


@pytest.mark.parametrize("rows", [60, 1000])
def test_content_hashes_of_every_class(rows: int) -> None:
    """Sparse columns, all classes, dictionaries of both code widths, several chunks in a block."""
    events = make_events(1700)
    reading = Reading(capture([events], chunk_rows=rows))

    found = spec_content.content_hash(reading.rows, classes_of(reading))

    assert reading.totals["content_hash"] == found


def test_a_hash_of_several_blocks() -> None:
    """Blocks of 65,536 rows, whatever the chunks are (spec 12.1)."""
    import pyarrow as pa

    from kcap.model.batch import Column
    from kcap.model.classes import TypeClass

    rng = random.Random(5)
    values = [rng.randrange(1 << 20) for _ in range(70_000)]
    batch = Batch(70_000, {"ord": Column(TypeClass.I64, pa.array(values))})
    reading = Reading(capture([batch], chunk_rows=30_000))

    assert len(reading.chunks) == 3
    found = spec_content.content_hash([{"ord": v} for v in values], {"ord": "i64"})
    assert reading.totals["content_hash"] == found


@pytest.mark.parametrize("cls", ["str", "bin", "list", "list_i64"])
def test_blocks_end_with_their_size(cls: str) -> None:
    """Long values, and lists of many items, end blocks before 65,536 rows do (spec 12.1)."""
    rng = random.Random(7)
    same = "y" * 60_000
    long = {
        "str": [same if i % 2 else rng.randbytes(30_000).hex() for i in range(330)],
        "bin": [rng.randbytes(60_000) if i % 3 else b"" for i in range(300)],
        "list": [[same] * (i % 3) for i in range(300)],
        "list_i64": [[7] * 8000] * 600,
    }[cls]
    name = f"arg_a__{cls}"
    batch = Batch(len(long), {name: vectors.column(cls, long)})
    footer = opened(capture([batch], chunk_rows=100)).footer
    rows = [{name: value} for value in long]

    assert len(list(spec_content.blocks(rows, {name: cls}))) > 1
    assert footer is not None
    assert footer.totals["content_hash"] == spec_content.content_hash(rows, {name: cls})


def test_a_changed_cell_changes_the_hash() -> None:
    """Negative control: the hash is of these rows and of no others."""
    reading = Reading(capture([make_events(50)]))
    classes = classes_of(reading)
    rows = [dict(row) for row in reading.rows]

    rows[7]["arg_fd__i64"] += 1

    assert spec_content.content_hash(reading.rows, classes) == reading.totals["content_hash"]
    assert spec_content.content_hash(rows, classes) != reading.totals["content_hash"]


def test_the_writer_takes_the_forms_of_the_text() -> None:
    """Presence, and the forms of text, are the ones that the text tells a writer to take."""
    reading = Reading(capture([make_events(900)]))
    ((chunk, _),) = reading.chunks

    for name, entry in chunk.forms.items():
        cls = CLASSES[chunk.classes[name]]
        at = [i for i, row in enumerate(chunk.rows) if name in row]
        kind, bits = spec_content.presence(at, len(chunk.rows))
        assert entry[2] == kind
        if cls not in ("i64", "u64"):
            found = spec_content.form(cls, [chunk.rows[i][name] for i in at])
            assert (entry[3], entry[6], entry[7]) == found[:3]
            if cls != "list_i64":
                assert entry[10] == len(bits) + len(found[3])


def test_numbers_of_records_rise_by_one() -> None:
    """Negative control: the reader here notices what the text forbids."""
    data = capture([make_events(20)])
    all_records = list(records(data))
    assert [r.number for r in all_records] == list(range(len(all_records)))

    first, second = all_records[3], all_records[4]
    with pytest.raises(AssertionError):
        list(
            records(data[: first.at] + second.raw + first.raw + data[second.at + len(second.raw) :])
        )
