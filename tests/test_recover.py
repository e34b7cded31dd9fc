"""kcap recover: what is intact comes back, what is lost is told, nothing is made up."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import forge
import pytest
from badinput_support import EDITS, ROOT, edited
from forge import ChunkParts
from hypothesis import given
from hypothesis import strategies as st
from recover_support import (
    NAMES,
    Truth,
    bases,
    check_cut,
    check_flip,
    check_left,
    checked,
    flips,
    recovered,
    with_checkpoints,
)
from support import (
    FILE_ID,
    RECORDS,
    SOURCE,
    batch_of,
    capture,
    make_events,
    opened,
    rows_of,
)
from test_tampered import second_chunk, with_inner_record

from kcap.errors import KcapError, NotACaptureError, TruncatedError, VersionError
from kcap.format import headerless, record, scan
from kcap.format.record import HEADER_BYTES, Kind

CLOSED = [name for name in NAMES if not name.startswith("open")]


def test_every_base_is_tried() -> None:
    """The names that the tests take are all there are."""
    assert list(bases()) == NAMES


# What is not damaged


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("name", CLOSED)
def test_an_undamaged_capture_is_copied_byte_for_byte(name: str, pipe: bool) -> None:
    """Clause 2.8: whatever it holds, from a file and from a pipe, and the report says lossless."""
    data = bases()[name].data

    out, report = checked(data, pipe=pipe)

    assert out == data
    assert report.identical
    assert report.lossless
    assert report.lost() == ({}, 0)


@given(RECORDS, st.integers(1, 7))
def test_any_undamaged_capture_is_copied(
    records: list[tuple[int, dict[str, object]]], rows: int
) -> None:
    """Whatever the events are."""
    data = capture([batch_of(records, [SOURCE])], chunk_rows=rows)

    out, report = checked(data)

    assert out == data
    assert report.identical


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("name", ["open", "open checkpoints", "open tails"])
def test_an_open_capture_gets_its_footer(name: str, pipe: bool) -> None:
    """Nothing is lost, and what was there stays as it was."""
    truth = bases()[name]

    out, report = check_left(truth, truth.data, pipe=pipe)

    assert out.startswith(truth.data)
    assert report.clean
    assert report.lossless
    assert not report.identical
    assert opened(out).footer is not None


def test_the_footer_is_the_one_that_the_writer_would_have_written() -> None:
    """Where no TAIL waits, an open capture becomes the very file that closing it makes."""
    for closed, data in (
        (capture(), capture(closed=False)),
        (with_checkpoints(), with_checkpoints(closed=False)),
    ):
        assert recovered(data)[0] == closed


# Cut at any place


@pytest.mark.parametrize("pipe", [False, True])
def test_every_cut_gives_the_complete_records(pipe: bool) -> None:
    """Wherever a capture ends: its complete chunks come back, and the report says what it was."""
    truth = Truth(capture([batch_of([(i, {"fd": i}) for i in range(6)], [SOURCE])], chunk_rows=2))
    for cut in range(0, len(truth.data), 13 if pipe else 3):
        check_cut(truth, cut, pipe=pipe)


def test_a_cut_footer_or_index_is_made_anew() -> None:
    """What can be made from the records alone comes back bit for bit."""
    truth = bases()["plain"]
    footer = truth.records[-1].offset
    for cut in range(footer + HEADER_BYTES, len(truth.data), 11):
        assert recovered(truth.data[:cut])[0] == truth.data

    index = truth.records[-2]
    assert index.header.kind == Kind.CHUNK_INDEX
    for cut in range(index.offset + 1, index.offset + index.header.size, 3):
        out, report = recovered(truth.data[:cut])
        assert out == truth.data
        assert report.lossless


# Flipped bits


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_costs_no_more_than_its_record(name: str, pipe: bool) -> None:
    """Rows of all other records come back; in a closed file what can be made anew is."""
    truth = bases()[name]
    for at, damaged in flips(truth.data, max(41, 8 * len(truth.data) // 20 | 1)):
        check_flip(truth, at, damaged, pipe=pipe)


def test_every_41st_bit() -> None:
    """The same, closer, where every kind of record that a plain recording has is hit often."""
    truth = Truth(capture([batch_of([(i, {"fd": i}) for i in range(6)], [SOURCE])], chunk_rows=2))
    for at, damaged in flips(truth.data, 41):
        check_flip(truth, at, damaged)


def test_every_lost_row_is_counted() -> None:
    """Of a closed file, of which chunk whatever is damaged: rows, times and positions are true."""
    truth = Truth(with_checkpoints())
    rows = {n: r for n, r in truth.rows.items() if n not in truth.tails[-1]}
    for item in truth.records:
        if item.header.kind != Kind.CHUNK:
            continue
        for at in (
            item.offset + 3,
            item.offset + HEADER_BYTES + 10,
            item.offset + item.header.size - 90,
        ):
            damaged = bytearray(truth.data)
            damaged[at] ^= 16
            out, report = checked(bytes(damaged))
            assert report.lost() == ({"CHUNK": 1}, 10)
            (region,) = report.regions
            lost = [eval(r) for r in rows[item.header.number]]
            ords, times = [r["ord"] for r in lost], [r["ts"] for r in lost]
            assert region.bounds("ord") == (min(ords), max(ords))
            assert region.bounds("ts") == (min(times), max(times))
            totals = opened(out).footer.totals  # type: ignore[union-attr]
            told = [e for e in totals["loss"] if e["kind"] == "damaged"]
            assert [(e["count"], e["start_ns"], e["end_ns"]) for e in told] == [
                (10, min(times), max(times))
            ]


@pytest.mark.parametrize("name", ["checkpoints", "open checkpoints"])
def test_rows_outlive_the_schema(name: str) -> None:
    """A FOOTER or CHECKPOINT describes the columns, too; without one the rows are told as lost."""
    truth = bases()[name]
    schemas = [r for r in truth.records if r.header.kind == Kind.SCHEMA]
    for item in schemas:
        damaged = bytearray(truth.data)
        damaged[item.offset + HEADER_BYTES + 9] ^= 1
        out, report = checked(bytes(damaged))
        assert report.rows == 120
        assert report.lossless
        assert out.startswith(truth.data[: truth.records[-2].offset])

    bare = bases()["open"]
    damaged = bytearray(bare.data)
    damaged[schemas[1].offset + HEADER_BYTES + 9] ^= 1
    out, report = checked(bytes(damaged))
    assert report.rows == 0
    assert report.lost()[1] == 60


@pytest.mark.parametrize("pipe", [False, True])
def test_vectors(pipe: bool) -> None:
    """Valid ones are copied; of the others recover makes a valid one, or says why it can't."""
    results = Counter[str]()
    for path in sorted((ROOT / "fixtures" / "vectors").rglob("*.kcap")):
        data = path.read_bytes()
        try:
            out, report = checked(data, pipe=pipe)
        except KcapError:
            assert path.parent.name == "must_reject", path
            results["refused"] += 1
            continue
        results[path.parent.name] += 1
        if path.parent.name == "valid":
            assert out == data, path
            assert report.clean, path
        else:
            assert out != data, path
            assert not report.clean or report.state == "open", path
    assert min(results[n] for n in ("refused", "valid", "recoverable", "must_reject")) > 10, results


# Damage of other kinds


@given(st.sampled_from(NAMES), EDITS, st.booleans())
def test_any_damage_leaves_the_rest(
    name: str, edits: list[tuple[str, int, int, bytes]], pipe: bool
) -> None:
    """Clauses 2.7, 2.8: zeroed, cut out, doubled; what is intact comes back, nothing else does."""
    truth = bases()[name]
    damaged = edited(truth.data, edits)
    simple = all(what in ("flip", "zero", "cut") for what, *_ in edits)
    try:
        out, report = checked(damaged, pipe=pipe)
    except (NotACaptureError, TruncatedError):
        headers = [bytes(r.raw) for r in truth.records[:2]]
        assert not any(0 <= damaged.find(raw) <= scan.VALUES_START for raw in headers)
        return
    found = rows_of(list(opened(out).batches()))
    every = iter(rows_of(list(opened(truth.data).batches())))
    assert all(row in every for row in found)
    if simple and truth.readable(damaged, pipe=pipe):
        assert found == truth.left(damaged)
    assert report.clean <= (out[: len(damaged)] == damaged)


def test_bytes_that_are_gone_take_no_neighbour_along() -> None:
    """However many bytes are cut out of a chunk, the chunks behind it are found at any place."""
    truth = Truth(with_checkpoints())
    chunk = [r for r in truth.records if r.header.kind == Kind.CHUNK][4]
    for size in (1, 2, 3, 4, 5, 6, 7, 8, 9, 100, 333, chunk.header.size):
        for at in (chunk.offset + 1, chunk.offset + 40):
            damaged = truth.data[:at] + truth.data[at + size :]
            _, report = check_left(truth, damaged)
            assert report.damaged == 1
            assert report.lost()[1] is not None


def test_a_record_between_two_damaged_ones_comes_back() -> None:
    """Clause 2.7: though nothing intact stands behind it when it is found."""
    truth = Truth(with_checkpoints())
    chunks = [r for r in truth.records if r.header.kind == Kind.CHUNK]
    damaged = bytearray(truth.data)
    for item in (chunks[3], chunks[4]):
        damaged[item.offset + 1] ^= 1
        damaged[item.offset + item.header.size + 1] ^= 1
    index = next(r for r in truth.records if r.offset > chunks[3].offset)
    damaged[index.offset + 1] ^= 1  # whole again

    _, report = check_left(truth, bytes(damaged))

    assert report.lost() == ({"CHUNK": 2, "CHUNK_INDEX": 1}, 20)


# Both FILE_HEADERs lost


def without_headers(data: bytes) -> bytes:
    """The capture with a bit flipped in each copy of its FILE_HEADER."""
    damaged = bytearray(data)
    size = record.unchecked(data).size
    damaged[40] ^= 1
    damaged[size + 40] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("name", ["plain", "checkpoints", "open checkpoints"])
def test_without_a_file_header_another_record_tells_the_id(name: str, pipe: bool) -> None:
    """A FOOTER or CHECKPOINT does; the FILE_HEADER is made anew and says so."""
    truth = bases()[name]

    out, report = check_left(truth, without_headers(truth.data), pipe=pipe)

    header = opened(out).header
    assert header.file_id == FILE_ID
    assert header.created_ns == 0
    assert header.meta["rebuilt"] is True
    assert report.header == "rebuilt"
    assert not report.lossless
    assert report.rows == sum(map(len, truth.rows.values()))


def test_without_any_record_that_tells_the_id_there_is_an_error() -> None:
    """An open capture without CHECKPOINTs; the negative control has one."""
    with pytest.raises(NotACaptureError, match="no FOOTER or CHECKPOINT"):
        recovered(without_headers(bases()["open"].data))


def test_the_id_of_a_capture_within_is_not_taken() -> None:
    """Clause 2.8: neither from its FILE_HEADER nor CHECKPOINTs nor FOOTER, wherever it lies."""
    inner = with_checkpoints(60)
    other = inner.replace(FILE_ID, bytes(16))
    events = batch_of([(1, {"data": other[at : at + 5000]}) for at in range(0, len(other), 5000)])
    outer = bytearray(without_headers(capture([events], closed=False)))
    with pytest.raises(NotACaptureError):
        recovered(bytes(outer))
    assert headerless.find_id(opened(inner).window) == FILE_ID

    shifted = io.BytesIO(bytes(1000) + _with_id(inner, b"y" * 16))
    window = opened(bytes(inner)).window
    window._stream = shifted  # type: ignore[attr-defined]
    found = list(scan.candidates(shifted.getvalue(), 0))
    assert len(found) > 10
    assert headerless._id_at(window, 1000) is None
    assert all(headerless._id_at(window, p) is None for p in found)


def _with_id(data: bytes, file_id: bytes) -> bytes:
    """The capture under another id."""
    parts = []
    for number, part in enumerate(forge.parts_of(data)):
        payload = part.payload.replace(FILE_ID, file_id)
        parts.append(forge.packed(replace(part, payload=payload), number, file_id))
    return b"".join(parts)


# Records that must not be believed


@pytest.mark.parametrize("own", [False, True])
def test_a_record_within_a_value_adds_nothing(own: bool) -> None:
    """Behind damage in front of it: with another id, and in a closed file with the file's own."""
    data = with_inner_record(FILE_ID if own else bytes(16))
    start, footer = second_chunk(data)
    damaged = bytearray(data)
    damaged[start + 9] ^= 1

    out, _ = checked(bytes(damaged))

    assert rows_of(list(opened(out).batches())) == rows_of([make_events(40)])
    torn = bytes(damaged[:footer])
    out, report = checked(torn)
    if own:
        assert report.rows < 40, "the control: without a FOOTER a record of this id is believed"
    else:
        assert rows_of(list(opened(out).batches())) == rows_of([make_events(40)])


def forged(edit: Callable[[ChunkParts], object]) -> bytes:
    """The capture with its second chunk changed, every checksum right."""
    return forge.with_chunk(bases()["plain"].data, edit, 1)


def _lie(parts: ChunkParts) -> None:
    parts.head.ts_min -= 1


def _nonsense(parts: ChunkParts) -> None:
    parts.entries[0].present += 1


@pytest.mark.parametrize("edit", [_lie, _nonsense])
def test_a_record_that_makes_no_sense_is_left_out(edit: Callable[[ChunkParts], object]) -> None:
    """Though its checksums hold; its rows are told as lost, the others come back."""
    truth = bases()["plain"]

    out, report = checked(forged(edit))

    second = [n for n, r in truth.rows.items()][1]
    assert rows_of(list(opened(out).batches())) == [
        row for n, rows in truth.rows.items() if n != second for row in rows
    ]
    assert report.lost() == ({"CHUNK": 1}, 25)


def test_a_changed_capture_keeps_the_mark_of_the_change() -> None:
    """Records changed with every CRC right: the chain tells, and what it tells is kept."""
    parts = forge.parts_of(bases()["plain"].data)
    at = next(i for i, p in enumerate(parts) if p.kind == Kind.LOSS)
    del parts[at]
    data = b"".join(forge.packed(p, i) for i, p in enumerate(parts))

    out, report = checked(data)

    assert not report.clean
    losses = opened(out).footer.totals["loss"]  # type: ignore[union-attr]
    assert any("records were changed" in e["reason"] for e in losses)


def test_a_footer_that_lies_is_made_anew() -> None:
    """The records decide."""
    data = bases()["plain"].data
    lies = forge.assembled(forge.parts_of(data), edit=lambda _, totals: {**totals, "events": 7})

    out, report = checked(lies)

    assert out.startswith(data[: bases()["plain"].records[-1].offset])
    assert opened(out).footer.totals["events"] == 60  # type: ignore[union-attr]
    assert report.lost() == ({"FOOTER": 1}, 0)


def test_a_newer_capture_is_refused() -> None:
    """A record that must be understood and is not: nobody knows what is to be kept of it."""
    data = forge.inserted(bases()["plain"].data, forge.Part(99, b"what?", flags=0))

    with pytest.raises(VersionError, match="can't read"):
        recovered(data)
