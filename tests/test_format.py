"""The .kcap format: what is written comes back, and damage never passes for data."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import (
    FILE_ID,
    RECORDS,
    SOURCE,
    batch_of,
    capture,
    make_events,
    opened,
    read,
    rows_of,
    selected,
    snapshot,
)

from kcap import limits
from kcap.errors import (
    KcapError,
    NotACaptureError,
    TruncatedError,
)
from kcap.format import frames, record, scan
from kcap.format.cursor import Cursor
from kcap.format.integers import decode_integers, encode_integers
from kcap.format.record import Kind
from kcap.format.verify import verify
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, constant, dictionary
from kcap.model.classes import I64_MAX, I64_MIN, U64_MAX, TypeClass
from kcap.model.side import Loss, Snapshot

SMALL = capture()
SMALL_ROWS = rows_of(read(SMALL)[0])


def boundaries(data: bytes) -> list[scan.Record]:
    """The records of an intact capture."""
    return [r for r in opened(data).scanner().records() if isinstance(r, scan.Record)]


# Round trips


@settings(max_examples=150)
@given(RECORDS, st.sampled_from([1, 7, 65_536]), st.booleans())
@example([], 65_536, False)
@example([(I64_MIN, {"a": U64_MAX}), (I64_MAX, {"a": 1 << 63}), (0, {"a": -(1 << 80)})], 1, True)
def test_any_events_come_back_exactly(records: list[object], rows: int, pipe: bool) -> None:
    """Whatever the values, the chunking and the transport, every value and bit returns."""
    batch = batch_of(records)  # type: ignore[arg-type]
    data = capture([batch], chunk_rows=rows)

    batches, losses = read(data, pipe=pipe)

    assert rows_of(batches) == rows_of([batch])
    assert not losses
    assert verify(opened(data)).good


def test_a_thousand_columns_come_back() -> None:
    """Sparse columns in any number are one frame each."""
    batch = batch_of([(i, {f"name {i}": i, "all": str(i)}) for i in range(1000)])

    batches, losses = read(capture([batch]))

    assert rows_of(batches) == rows_of([batch])
    assert not losses


@settings(max_examples=200)
@given(
    st.one_of(
        st.lists(st.integers(I64_MIN, I64_MAX), min_size=1, max_size=50),
        st.lists(st.integers(0, 3), min_size=1, max_size=50),
        st.lists(st.integers(-9, 9).map(lambda i: i * 100), min_size=2, max_size=50),
        st.tuples(st.integers(I64_MIN, I64_MAX - 10**6), st.integers(1, 1000)).map(
            lambda t: [t[0] + i * t[1] for i in range(40)]
        ),
    )
)
def test_integers_of_every_form_come_back(values: list[int]) -> None:
    """Plain, delta and divided forms are exact over the whole range, also where they wrap."""
    encoded = encode_integers(np.array(values, np.int64))

    cursor = Cursor(encoded.data)
    back = decode_integers(encoded.encoding, encoded.base, len(values), cursor, signed=True)
    cursor.end()

    assert back.tolist() == values


def test_integers_take_the_narrowest_form() -> None:
    """Clause 6.5: constants cost nothing, steady times one frame of narrow steps (spec 6.5)."""
    constant_form = encode_integers(np.full(100, 7))
    steps = encode_integers(np.arange(100) * 12_300 + 10**18)
    far = encode_integers(np.array([0, 10**15, 5] * 10))

    assert (constant_form.encoding, constant_form.data) == (0, b"")
    assert (steps.encoding & 0x0F, len(steps.data)) == (0, 8)
    assert far.encoding == 4


@pytest.mark.parametrize("distinct", [1, 2, 256, 257, 65_536])
def test_dictionaries_of_every_width_come_back(distinct: int) -> None:
    """Codes are none, one, two or four bytes wide; entries sorted, each once, each used.

    (spec 6.7)
    """
    count = max(3 * distinct, 2) if distinct < limits.CHUNK_ROWS else distinct
    values = [f"{i * 7919 % distinct:06}" for i in range(count)]
    encoded = frames.encode_text(dictionary(pa.array([*values, "unused"])).slice(0, count))

    back = frames.decode_text(
        encoded.encoding, encoded.distinct, count, Cursor(encoded.data), pa.utf8()
    )

    assert back.to_pylist() == values
    if not encoded.encoding & frames.PLAIN:
        entries = back.dictionary.to_pylist()
        assert entries == sorted(set(values))


def test_a_foreign_dictionary_with_repeats_is_written_once() -> None:
    """Two codes for one text become one."""
    codes = pa.array([0, 1, 2, 0, 1, 2], pa.int32())
    values = pa.DictionaryArray.from_arrays(codes, pa.array(["b", "a", "b"]))

    encoded = frames.encode_text(values)

    assert encoded.distinct == 2


# What stands beside the events


def test_side_records_come_back_in_place() -> None:
    """Sources, losses and snapshots are read before the events that they precede."""
    events = make_events(10)
    loss = Loss("lost", 3, "why", SOURCE.id, "exec", 1, 10, 20)
    data = capture(
        [
            events.slice(0, 5).with_before([SOURCE, snapshot()]),
            events.slice(5, 10).with_before([loss, snapshot(9)]),
        ]
    )

    batches, _ = read(data)

    first, second = (b for b in batches if b.rows)
    assert first.before[0] == SOURCE
    assert isinstance(first.before[1], Snapshot)
    assert [s for s in second.before if isinstance(s, Loss)] == [
        Loss("lost", 3, "why", SOURCE.id, "exec", 1, 10, 20, recorded=True)
    ]
    (state,) = [s for s in second.before if isinstance(s, Snapshot)]
    assert rows_of([state.tables["processes"]]) == rows_of([snapshot(9).tables["processes"]])


def test_the_footer_counts() -> None:
    """Events, backward steps, times and losses are in the footer, and equal losses are added up."""
    ts = [5, 3, 9, 2, 2, 8]
    batch = batch_of([(t, {"a": i}) for i, t in enumerate(ts)])
    kinds = {"kind": constant(TypeClass.STR, "state", 2), "event": constant(TypeClass.STR, "x", 2)}
    parts = [
        batch.slice(0, 4).with_before([Loss("lost", 1, "r", start_ns=4), Loss("lost", 2, "r")]),
        batch.slice(4, 6).adding(kinds),
    ]
    footer = opened(capture(parts, chunk_rows=3)).footer

    assert footer is not None
    totals = footer.totals
    assert (totals["events"], totals["state_rows"]) == (4, 2)
    assert totals["backward_steps"] == sum(b < a for a, b in pairwise(ts)) == 2
    assert totals["ts"] == [2, 9]
    assert totals["types"] == {"x": 2}
    assert [(entry["kind"], entry["count"]) for entry in totals["loss"]] == [("lost", 3)]


def test_state_records_keep_within_their_share() -> None:
    """Snapshots come every 16 chunks as long as they take at most 5 % of the file (spec 4.5)."""
    events = make_events(6000)
    parts = [events.slice(i, i + 50) for i in range(0, 6000, 50)]
    data = capture(parts, chunk_rows=50, snapshot=snapshot)
    states = [r for r in boundaries(data) if r.header.kind == Kind.STATE]
    assert len(states) == 120 // 16

    data = capture(parts, chunk_rows=50, snapshot=lambda: snapshot(5000))
    states = [r for r in boundaries(data) if r.header.kind == Kind.STATE]
    assert sum(r.header.size for r in states[1:]) <= 0.05 * len(data)


def test_state_follows_the_events_it_tells_of() -> None:
    """A snapshot of the writer stands after every event that was taken before it was made.

    (spec 4.5)
    """
    seen = 0

    def now() -> Snapshot:
        return Snapshot({"processes": Batch(1, {"pid": constant(TypeClass.I64, seen, 1)})})

    out = io.BytesIO()
    writer = CaptureWriter(out, snapshot=now, chunk_rows=10)
    events = make_events(1000)
    for start in range(0, 1000, 7):
        part = events.slice(start, start + 7)
        seen += part.rows
        writer.write(part)
    writer.close()

    count = 0
    found = 0
    for batch in read(out.getvalue())[0]:
        for side in batch.before:
            if isinstance(side, Snapshot):
                assert side.tables["processes"].to_pylist() == [{"pid": count}]
                found += 1
        count += batch.rows
    assert found > 3


# Access by chunk, column and time


def test_one_column_of_one_chunk_is_read_alone() -> None:
    """Reading a column touches the directory and its frame, not the rest of the chunk."""
    data = capture([make_events(5000)])
    reader = opened(data)
    counted = _Counting(data)
    reader.window._stream = counted  # type: ignore[union-attr]

    part = reader.chunk(0, ["ts"])

    whole = opened(data).chunk(0)
    assert part.to_pylist() == [{"ts": row["ts"]} for row in whole.to_pylist()]
    assert counted.bytes_read < len(data) / 4


class _Counting(io.BytesIO):
    bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self.bytes_read += len(part)
        return part


def test_a_time_range_leaves_other_chunks_unread() -> None:
    """Chunks outside the interval are not read."""
    batch = batch_of([(i * 1000, {"a": i}) for i in range(1000)])
    data = capture([batch], chunk_rows=100)
    reader = opened(data)

    rows = [r for b in selected(reader, None, 250_000, 400_000) for r in b.to_pylist()]

    assert [r["ts"] for r in rows] == [i * 1000 for i in range(250, 400)]
    assert reader.work.chunks == 2


def test_names_not_places_make_columns() -> None:
    """Two orders of the same events have one schema."""
    records = [(i, {"a": i, "b": str(i)} if i % 2 else {"c": [1], "a": 2.5}) for i in range(50)]
    one = opened(capture([batch_of(records)], chunk_rows=7)).columns()
    other = opened(capture([batch_of(records[::-1])], chunk_rows=11)).columns()

    assert one == other
    assert list(one) == sorted(one)


# States of a file


def test_an_open_capture_is_readable() -> None:
    """Without a footer every complete record is read, and the end is reported as unknown."""
    batches, losses = read(capture(closed=False))

    assert rows_of(batches) == SMALL_ROWS
    assert [loss.kind for loss in losses] == ["torn"]


def test_nothing_is_sought_and_a_closed_writer_is_silent() -> None:
    """A writer needs `write` and `flush` only."""

    class Bare:
        data = b""

        def write(self, part: bytes) -> int:
            self.data += part
            return len(part)

        def flush(self) -> None: ...

    out = Bare()
    writer = CaptureWriter(out, file_id=FILE_ID)  # type: ignore[arg-type]
    writer.write(make_events(10))
    writer.close()
    writer.close()

    assert verify(opened(out.data)).good


def test_zero_events_are_a_capture() -> None:
    """A recording of nothing is closed, valid and empty."""
    data = capture([])

    assert read(data) == ([], [])
    assert verify(opened(data)).good


# Damage


@pytest.mark.parametrize("pipe", [False, True])
def test_every_cut_gives_exactly_the_complete_chunks(pipe: bool) -> None:
    """Cut at every byte: all complete chunks, nothing else; before the FILE_HEADER an error.

    Of a pipe, at every seventh: it is read by the same code.
    """
    first = boundaries(SMALL)[0].header.size
    ends = []
    rows = 0
    for item in boundaries(SMALL):
        if item.header.kind == Kind.CHUNK:
            rows += struct.unpack_from("<I", item.payload, 8)[0]
            ends.append((item.offset + item.header.size, rows))
    for cut in range(0, len(SMALL), 7 if pipe else 1):
        part = SMALL[:cut]
        if cut < first:
            with pytest.raises((TruncatedError, NotACaptureError)):
                opened(part, pipe=pipe)
            continue
        batches, losses = read(part, pipe=pipe)
        expected = max((r for end, r in ends if end <= cut), default=0)
        assert rows_of(batches) == SMALL_ROWS[:expected], cut
        assert [loss.kind for loss in losses] == ["torn"], cut


def altered(rows: list[str], known: list[str]) -> bool:
    """Whether rows are anything but some of the known ones, in their order, each once."""
    rest = iter(known)
    return not all(row in rest for row in rows)


def flip_sweep(small: bytes, step: int, *, checks: bool = True) -> tuple[int, int]:
    """Flip bits one at a time; give how many flips went unnoticed and how many altered a row.

    Every capture is verified, read from start to end, and read by the footer's table.
    """
    unnoticed = changed = 0
    known = rows_of(read(small)[0])
    records = boundaries(small)
    for bit in range(0, len(small) * 8, step):
        bad = bytearray(small)
        bad[bit // 8] ^= 1 << bit % 8
        data = bytes(bad)
        try:
            report = verify(opened(data, checks=checks))
            batches, losses = read(data, checks=checks)
            reader = opened(data, checks=checks)
            by_index = selected(reader)
        except KcapError:
            assert checks is False, bit
            continue
        damaged = next(r for r in reversed(records) if r.offset * 8 <= bit)
        first = report.findings[0] if report.findings else None
        if first is None or not losses:
            unnoticed += 1
        elif checks:
            assert (first.offset, first.record) == (damaged.offset, damaged.header.number), bit
        changed += altered(rows_of(batches), known) or altered(rows_of(by_index), known)
    return unnoticed, changed


def test_a_flipped_bit_is_found_at_its_record() -> None:
    """verify names the record, every reader notices, and no altered row is returned (sample)."""
    assert flip_sweep(SMALL, step=83) == (0, 0)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_flipped_bit_is_found_at_its_record() -> None:
    """The same for every single bit."""
    assert flip_sweep(SMALL, step=1) == (0, 0)


def test_without_checks_flips_alter_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with CRC and chain checks off the sweep lets damage through."""
    monkeypatch.setattr(zlib, "crc32", lambda *_: 0)
    monkeypatch.setattr(record.Chain, "add", lambda *_: None)

    unnoticed, changed = flip_sweep(capture(), step=251, checks=False)

    assert unnoticed > 10
    assert changed > 10
    assert altered(["a", "c", "b"], ["a", "b", "c"])
    assert altered(["a", "a"], ["a", "b"])
    assert not altered(["a", "c"], ["a", "b", "c"])
