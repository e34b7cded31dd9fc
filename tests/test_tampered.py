"""Captures that someone changed: records inside values, records gone, footers that lie."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import forge
import pytest
from badinput_support import (
    EDITS,
    GOOD,
    GOOD_ROWS,
    edited,
)
from cli_support import run
from forge import ChunkParts, Part
from hypothesis import example, given
from hypothesis import strategies as st
from support import FILE_ID, batch_of, capture, make_events, opened, read, rows_of, selected

import kcap
from kcap.errors import KcapError
from kcap.format import body, zstd
from kcap.format.record import Kind
from kcap.format.verify import verify

# Records that lie inside captured values


def with_inner_record(file_id: bytes) -> bytes:
    """A capture whose second chunk holds, aligned and stored as it is, two complete records."""
    other = forge.parts_of(capture([make_events(7, seed=9)]))
    inner = next(p for p in other if p.kind == Kind.CHUNK)
    records = b"".join(forge.packed(inner, number, file_id) for number in (50, 51))
    events = make_events(40)
    for pad in range(8):
        holder = batch_of([(1, {"data": b"x" * pad + records})])
        parts = forge.parts_of(
            _with_own_chunks([events.slice(0, 20), holder, events.slice(20, 40)])
        )
        at = [i for i, p in enumerate(parts) if p.kind == Kind.CHUNK][1]
        taken = ChunkParts(parts[at].payload)
        for i, (entry, frame) in enumerate(zip(taken.entries, taken.frames, strict=True)):
            if entry.decoded > len(records):
                taken.frames[i] = forge.raw_frame(zstd.decompress(frame, entry.decoded))
        parts[at] = replace(parts[at], payload=taken.packed())
        data = forge.assembled(parts)
        if data.index(records) % 8 == 0:
            return data
    raise AssertionError


def _with_own_chunks(batches: list[kcap.Batch]) -> bytes:
    """A capture with one chunk a batch."""
    from kcap.format.writer import CaptureWriter

    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID)
    for batch in batches:
        writer.write(batch)
        writer.flush()
    writer.close()
    return out.getvalue()


def second_chunk(data: bytes) -> tuple[int, int]:
    """Offset of a capture's second CHUNK record, and of its FOOTER."""
    reader = opened(data)
    assert reader.footer is not None
    assert reader.footer_offset is not None
    return int(reader.footer.chunks["offset"][1]), reader.footer_offset


@pytest.mark.parametrize("own", [False, True])
def test_a_record_inside_a_value_is_never_believed(own: bool) -> None:
    """After damage in front of it: another file's id, or in a closed file even this file's.

    (spec 2.2)
    """
    data = with_inner_record(FILE_ID if own else bytes(16))
    events = rows_of([make_events(40)])
    assert len(rows_of(read(data)[0])) == 41
    start, footer = second_chunk(data)
    bad = bytearray(data)
    bad[start + 9] ^= 1

    batches, losses = read(bytes(bad))
    assert rows_of(batches) == events
    assert [(loss.kind, loss.count) for loss in losses] == [("damaged", 1)]
    assert not verify(opened(bytes(bad))).good
    open_too = bytes(bad[:footer])
    found = rows_of(read(open_too)[0])
    if own:
        assert len(found) > len(events) - 20, "the control: without a footer it is believed"
        assert set(found) - set(events)
    else:
        assert found == events


# Records that were taken away, moved or replaced


def test_a_record_that_was_removed_is_missed() -> None:
    """By its number where the others kept theirs, by the chain where they were numbered anew.

    (spec 2.3, 2.6)
    """
    parts = forge.parts_of(GOOD)
    for at in range(2, len(parts) - 1):
        numbered = [replace(p, number=i) for i, p in enumerate(parts)]
        gone = [*numbered[:at], *numbered[at + 1 :]]
        data = forge.assembled(gone)
        report = verify(opened(data))
        assert any(f"record {at} is missing" in f.what for f in report.findings), at
        assert read(data)[1], at

        renumbered = [*parts[:at], *parts[at + 1 :]]
        report = verify(opened(_with_old_chain(renumbered)))
        assert any("hash chain" in f.what for f in report.findings), at


def test_records_that_were_swapped_are_noticed() -> None:
    """By their numbers, or by the chain; rows that come are unaltered (spec 2.6)."""
    parts = forge.parts_of(GOOD)
    known = set(GOOD_ROWS)
    for at in range(2, len(parts) - 2):
        numbered = [replace(p, number=i) for i, p in enumerate(parts)]
        numbered[at], numbered[at + 1] = numbered[at + 1], numbered[at]
        data = forge.assembled(numbered)
        assert not verify(opened(data)).good, at
        batches, losses = read(data)
        assert losses, at
        assert set(rows_of(batches)) <= known, at

        moved = list(parts)
        moved[at], moved[at + 1] = moved[at + 1], moved[at]
        assert not verify(opened(_with_old_chain(moved))).good, at


def _with_old_chain(parts: list[Part]) -> bytes:
    """A capture as someone would leave it who cannot change the FOOTER."""
    return b"".join(forge.packed(p, i) for i, p in enumerate(parts))


# Footers that lie


def lying(edit: Callable[..., object]) -> bytes:
    """The capture with an edited FOOTER, its checksums and chain right."""
    return forge.assembled(forge.parts_of(GOOD), edit=edit)


def set_table(name: str, value: int) -> Callable[..., None]:
    """An edit of a column of the chunk table."""

    def edit(table: object, _totals: object) -> None:
        table[name] = value  # type: ignore[index]

    return edit


TABLE_LIES = [
    (name, value)
    for name in ("offset", "length", "index", "number", "rows")
    for value in (0, 1, 8, 1 << 20, (1 << 32) - 1, (1 << 64) - 1)
    if value < 1 << 32 or name in ("offset", "length", "index")
]


@pytest.mark.parametrize(("name", "value"), TABLE_LIES)
def test_a_chunk_table_that_lies_is_found(name: str, value: int, tmp_path: Path) -> None:
    """verify tells; a reading by the table gives true rows or a loss, and nothing else."""
    data = lying(set_table(name, value))
    path = tmp_path / "lies.kcap"
    path.write_bytes(data)

    report = verify(opened(data))
    assert any("chunk table does not fit" in f.what for f in report.findings)
    assert rows_of(read(data)[0]) == GOOD_ROWS
    reader = opened(data)
    assert set(rows_of(selected(reader))) <= set(GOOD_ROWS)
    result = run("cat", path, "--start", "1970-01-01T00:00:00Z", "--fields", "ts")
    assert result.exit_code in (0, 3), result.stderr
    assert run("info", path).exit_code in (0, 3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=3), c, max_size=3),
    max_leaves=6,
)
TOTALS = st.sampled_from(
    sorted(opened(GOOD).footer.totals)  # type: ignore[union-attr]
)


@given(TOTALS, JSON)
@example("events", "many")
@example("ts", [1])
@example("ts", [-(10**40), 10**40])
@example("types", [1])
@example("types", {"x": "y"})
@example("sources", 7)
@example("sources", [{"clocks": None}])
@example("loss", [{"count": "x"}])
@example("loss", [[]])
@example("schema", [7])
@example("states", [[1, 2, 3]])
@example("records", [])
def test_totals_of_any_kind_are_told_from_true_ones(name: str, value: object) -> None:
    """A FOOTER may say anything: only KcapError comes out, and every verb ends in order."""
    data = lying(lambda _table, totals: {**totals, name: value})

    for verb in ("info", "cat", "verify"):
        result = run(verb, "-", input=data)
        assert "internal" not in result.stderr, (verb, result.stderr)
    try:
        reader = opened(data)
        _ = reader.info
        report = verify(opened(data))
        rows = rows_of(list(reader.batches()))
    except KcapError:
        return
    assert rows == GOOD_ROWS
    true = reader.footer is not None and reader.footer.totals == opened(GOOD).footer.totals  # type: ignore[union-attr]
    checked = name not in ("loss", "sources", "states")
    assert true or not checked or not report.good


@given(st.sampled_from([Kind.SOURCE, Kind.LOSS, Kind.SCHEMA, Kind.STATE]), JSON)
@example(Kind.SOURCE, {"clocks": None})
@example(Kind.SOURCE, {"clocks": [["a", 1]]})
@example(Kind.SOURCE, {"details": 7, "collector": [], "host": {}})
@example(Kind.LOSS, [{"count": "many"}])
@example(Kind.LOSS, [{"kind": 7, "reason": [], "cpu": "x", "start_ns": "y"}])
def test_records_of_any_json_are_read_or_passed_over(kind: Kind, value: object) -> None:
    """Whatever a JSON record holds, the rows are the same and nothing foreign is raised."""
    made = body.pack(value)
    payload = struct.pack("<Q", len(made)) + made if kind == Kind.STATE else made
    data = forge.inserted(GOOD, Part(kind, payload))

    assert rows_of(read(data)[0]) == GOOD_ROWS
    verify(opened(data))
    for verb in ("info", "cat"):
        result = run(verb, "-", input=data)
        assert "internal" not in result.stderr, (verb, result.stderr)


# Anything at all


BASES = [GOOD, capture(closed=False), capture([make_events(3)]), capture([])]
KNOWN = {row for base in BASES for row in rows_of(read(base)[0])}


@given(st.sampled_from(BASES), EDITS, st.booleans())
def test_an_edited_capture_gives_true_rows_or_an_error(
    base: bytes, edits: list[tuple[str, int, int, bytes]], pipe: bool
) -> None:
    """Whatever happens to the bytes: KcapError or rows as they were written; never in silence."""
    data = edited(base, edits)
    try:
        batches, losses = read(data, pipe=pipe)
        report = verify(opened(data))
    except KcapError:
        assert data != base
        return
    assert set(rows_of(batches)) <= KNOWN
    true = rows_of(batches) == rows_of(read(base)[0])
    assert true or losses
    assert report.good == (data == base and base is not BASES[1]) or data in BASES
