"""The index: an unfinished capture is read like a closed one, and costs no more than it must."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import forge
import numpy as np
import pyarrow as pa
import pytest
from durability_support import (
    EVENTS,
    FILE_ID,
    Step,
    check_small_chunks,
    counting,
    every_way,
    held,
    index_bytes,
    process_events,
    records,
    written,
)
from hypothesis import given
from hypothesis import strategies as st
from support import RECORDS, SOURCE, batch_of, capture, make_events, opened, snapshot

from kcap.format import bloom, index, payloads, scan
from kcap.format import writer as writing
from kcap.format.bloom import Bloom
from kcap.format.chunk_index import ChunkIndex, pids_of
from kcap.format.index import Index
from kcap.format.reader import CaptureReader
from kcap.format.record import Kind
from kcap.format.recover import recover
from kcap.format.totals import Running, Totals
from kcap.format.verify import verify
from kcap.format.writer import CaptureWriter
from kcap.model.side import Loss
from kcap.replay.pipeline import Pipeline
from kcap.tools.tally import Tally

CLOSED_ONLY = {"content_hash", "content_hash_values"}
STEPS = st.lists(
    st.tuples(st.just("write"), st.integers(0, 12))
    | st.sampled_from([("commit", 0), ("commit", 0), ("flush", 0)]),
    max_size=25,
)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CHECKPOINT after every third chunk."""
    monkeypatch.setattr(writing, "CHECKPOINT_CHUNKS", 3)


@pytest.fixture(scope="module")
def many() -> bytes:
    """A capture of 30 chunks with tails, states, losses, and a CHECKPOINT every third chunk."""
    before, writing.CHECKPOINT_CHUNKS = writing.CHECKPOINT_CHUNKS, 3
    try:
        return _many()
    finally:
        writing.CHECKPOINT_CHUNKS = before


def _many() -> bytes:
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID, snapshot=snapshot)
    for at in range(0, 300, 5):
        sides = [SOURCE, Loss("lost", at, "a reason", cpu=at % 3)] if at % 50 == 0 else []
        writer.write(EVENTS.slice(at, at + 5).with_before(sides))
        (writer.commit, writer.flush)[at % 10 == 0]()
    writer.write(EVENTS.slice(300, 303))
    writer.commit()
    writer.close()
    return out.getvalue()


def index_of(data: bytes) -> Index:
    """The index of a capture."""
    found = opened(data).index()
    assert found is not None
    return found


def told(found: Index) -> dict[str, Any]:
    """What an index says, without what only a FOOTER can."""
    totals = {k: v for k, v in found.totals.items() if k not in CLOSED_ONLY}
    return {"table": found.table.tolist(), **totals}


def counted(data: bytes) -> dict[str, Any]:
    """What reading a capture from start to end counts."""
    tally = Tally()
    Pipeline(opened(data), [tally]).run()
    found = tally.to_json()
    # That the capture ends here is no loss that it records.
    return found | {"loss": [entry for entry in found["loss"] if entry["kind"] != "torn"]}


def without(data: bytes, kind: Kind) -> bytes:
    """The capture with the payload of every record of a kind damaged."""
    broken = bytearray(data)
    for record in records(data):
        if record.header.kind == kind:
            broken[record.offset + 40] ^= 1
    return bytes(broken)


# Open like closed


@pytest.mark.usefixtures("often")
@given(STEPS, st.sampled_from([4, 1000]))
def test_an_open_capture_says_what_its_footer_would(steps: list[Step], chunk_rows: int) -> None:
    """Clause 8.4: cut in front of the FOOTER, table and totals are those of the FOOTER."""
    data = written([*steps, ("close", 0)], chunk_rows=chunk_rows).data
    footer = records(data)[-1]
    assert told(index_of(data[: footer.offset])) == told(index_of(data))


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
def test_at_every_record_the_index_counts_what_is_there(many: bytes, step: int) -> None:
    """Clause 8.4: wherever an open file ends, it agrees with reading it from the start."""
    for record in records(many)[2::step]:
        data = many[: record.offset]
        found, seen = index_of(data), counted(data)
        assert {n: found.totals[n] for n in seen if n != "columns"} == {
            n: v for n, v in seen.items() if n != "columns"
        }
        columns = {s["name"]: s["class"] for s in found.totals["schema"] if s["table"] == "events"}
        assert columns.items() >= seen["columns"].items()
        assert found.totals["states"] == [
            [r.offset, len(r.raw)] for r in records(data) if r.header.kind == Kind.STATE
        ]
        assert sum(found.totals["records"].values()) == len(records(data))
        assert int(found.table["rows"].sum()) == seen["events"] + seen["state_rows"]
        ways = {tuple(rows) for rows in every_way(data).values()}
        assert len(ways) == 1
        assert [loss.kind for loss in found.losses] == ["torn"]


def test_a_torn_capture_is_indexed_up_to_the_tear(many: bytes) -> None:
    """A cut anywhere: the index is that of the complete records, and the state is torn."""
    ends = [r.offset + len(r.raw) for r in records(many)]
    random = Random(4)
    for _ in range(40):
        cut = random.randrange(256, len(many))
        complete = max(e for e in ends if e <= cut)
        reader = opened(many[:cut])
        found = reader.index()
        assert found is not None
        assert told(found) == told(index_of(many[:complete]))
        assert reader.state == ("open" if cut == complete else "torn")


def test_a_stream_has_no_index(many: bytes) -> None:
    """What can't be sought is read from its start."""
    assert opened(many, pipe=True).index() is None


# CHECKPOINTs


def _cut(data: bytes) -> bytes:
    """The capture without its FOOTER."""
    return data[: records(data)[-1].offset]


def test_without_checkpoints_the_answer_is_the_same(
    many: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clause 8.4: a CHECKPOINT only makes it quicker, by bytes counted."""
    data = _cut(many)
    assert sum(r.header.kind == Kind.CHECKPOINT for r in records(data)) >= 10
    reader, taken = counting(data)
    quick = reader.index()
    assert quick is not None
    cost = taken()
    with monkeypatch.context() as patch:
        patch.setattr(index, "newest_checkpoint", lambda *_: None)
        reader, taken = counting(data)
        slow = reader.index()
        assert slow is not None
    assert told(slow) == told(quick)
    # Here the whole file is in the first step of the search; what counts is what follows it.
    assert taken() > len(data)
    assert cost - len(data) < len(data)


def test_a_damaged_checkpoint_changes_nothing(many: bytes) -> None:
    """Clause 8.4: the last, one in the middle, or all of them damaged; only the damage is told."""
    data = _cut(many)
    points = [r for r in records(data) if r.header.kind == Kind.CHECKPOINT]
    for hit in ([points[-1]], [points[3]], [points[0]], points):
        broken = bytearray(data)
        for record in hit:
            broken[record.offset + 100] ^= 1
        found, whole = told(index_of(bytes(broken))), told(index_of(data))
        for names in (found["records"], whole["records"]):
            names.pop("CHECKPOINT", 0)  # a damaged record is not counted where it is passed by
        assert found == whole


def _forged(data: bytes, edit: Callable[[payloads.Checkpoint], payloads.Checkpoint]) -> bytes:
    """The capture with its last CHECKPOINT changed, and its checksums right."""
    nth = sum(r.header.kind == Kind.CHECKPOINT for r in records(data)) - 1

    def change(part: forge.Part) -> forge.Part:
        return replace(part, payload=edit(payloads.Checkpoint.unpack(part.payload)).pack())

    return forge.with_part(data, Kind.CHECKPOINT, change, nth)


@pytest.mark.parametrize(
    "edit",
    [
        lambda point: replace(point, previous_hash=bytes(32)),
        lambda point: replace(point, previous=point.previous + 8),
        lambda point: replace(point, previous=1 << 40),
        lambda point: replace(point, file_id=bytes(16)),
        lambda point: replace(point, totals={**point.totals, "events": "many"}),
        lambda point: replace(point, totals={**point.totals, "sources": [{"collector": 1}]}),
        lambda point: replace(point, totals={**point.totals, "schema": [{"id": "x"}]}),
    ],
)
def test_a_checkpoint_that_can_not_be_is_as_none(
    many: bytes, edit: Callable[[payloads.Checkpoint], payloads.Checkpoint]
) -> None:
    """Clause 8.4: a wrong digest, place, file or type: the records decide."""
    data = _cut(many)
    forged = _forged(data, edit)
    assert len(forged) >= len(data) - 200
    found = index_of(forged)
    assert found.totals["events"] == 303
    assert every_way(forged)["chunks"] == list(range(303))


def test_no_checkpoint_stands_where_tails_wait() -> None:
    """Clause 8.3: behind it nobody would look for their rows; verify and recover tell."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID)
    writer.write(make_events(300))
    writer.commit()
    good = out.getvalue()
    writer._checkpoint()  # as no writer does
    data = out.getvalue()

    what = "the CHECKPOINT stands where TAILs wait for their chunk"
    assert what in {f.what for f in verify(opened(data)).findings}
    assert what not in {f.what for f in verify(opened(good)).findings}
    saved = io.BytesIO()
    recover(io.BytesIO(data), saved)
    assert index_of(saved.getvalue()).totals["events"] == 300


@pytest.mark.parametrize("lie", ["backwards", "twice", "empty"])
def test_a_table_that_leads_back_is_as_none(many: bytes, lie: str) -> None:
    """Entries stand one behind the other: of 10,000 that lead back and forth a reader would search
    the file 10,000 times for what the chunks that are not there have lost.
    """

    def edit(table: Any, _: Any) -> None:
        if lie == "backwards":
            table[:] = table[::-1].copy()
        elif lie == "twice":
            table[1:] = table[0]
        else:
            table["length"] = 0

    good = forge.assembled(forge.parts_of(many))
    assert opened(good).footer is not None
    reader = opened(forge.assembled(forge.parts_of(many), edit=edit))
    assert reader.footer is None
    assert reader.index().totals["events"] == 303  # type: ignore[union-attr]


def test_the_search_for_a_checkpoint_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without any is searched for a limited length, not to its start and then again."""
    monkeypatch.setattr(index, "_SEARCH", 4 << 20)
    monkeypatch.setattr(index, "_STEP", 1 << 18)
    data = capture([make_events(50)], closed=False) + bytes(10 << 20)
    reader, taken = counting(data)
    assert index.newest_checkpoint(reader.window, FILE_ID) is None  # type: ignore[arg-type]
    assert 4 << 20 <= taken() < 5 << 20


def test_false_checkpoints_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers that hold before payloads that don't, each inside the one before, are not all read:
    their number times their length would be the square of the file's.
    """
    size, count = 1 << 20, 2000
    data = capture([make_events(50)], closed=False)
    for i in range(count):
        part = forge.Part(Kind.CHECKPOINT, b"", number=100 + i, length=(size >> 1) & -8)
        data += forge.packed(part, 0)
    data += bytes(size)
    for most in (8 << 20, size * count):  # the control: nothing else ends it sooner
        monkeypatch.setattr(scan, "TRIED_BYTES", most)
        reader, taken = counting(data)
        assert index.newest_checkpoint(reader.window, FILE_ID) is None  # type: ignore[arg-type]
        assert (taken() < 12 << 20) == (most == 8 << 20)
    monkeypatch.undo()
    assert index_of(data).totals["events"] == 50


# What it costs


def test_bytes_written_grow_linearly() -> None:
    """Clause 8.3: ten times the chunks, ten times the bytes of index."""
    print(check_small_chunks([100, 1000]))


def test_control_checkpoints_that_repeat_the_table_grow_quadratically(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: a CHECKPOINT that held all so far would be caught."""

    def remembering(self: Running) -> None:
        every, self.since = self.since, Totals()
        self.since.add_table(every.table())

    monkeypatch.setattr(Running, "checkpoint", remembering)
    with pytest.raises(AssertionError):
        check_small_chunks([100, 1000])


def test_the_index_of_full_chunks_is_small() -> None:
    """Under 4 % of the file where chunks have 16,384 rows, of a recording that is varied.

    Where every process has a key, and many a command line of their own, the texts are too many
    for a filter; without, there is one.
    """
    events = process_events(65_536, 1000.0)
    texts = ("process_key", "cmdline")
    few = events.select([name for name in events.columns if name not in texts])
    for rows, batch in ((16_384, events), (65_536, events), (16_384, few), (65_536, few)):
        data = capture([batch], chunk_rows=rows)
        share = index_bytes(data) / len(data)
        filters = [says.strings is not None for says, _ in _indexes(data)]
        print(f"{rows} rows: {100 * share:.2f} %, with a filter: {all(filters)}")
        assert share < 0.04
    assert all(filters)


# What a chunk holds


def _indexes(data: bytes) -> list[tuple[ChunkIndex, Any]]:
    reader = opened(data)
    found = reader.index()
    assert found is not None
    pairs = []
    for number in range(len(found.table)):
        says = reader.chunk_index(number)
        assert says is not None
        pairs.append((says, reader.chunk(number)))
    return pairs


@given(RECORDS, st.integers(1, 20))
def test_the_pid_set_is_exact_and_the_bloom_filter_denies_nothing(
    found: list[Any], chunk_rows: int
) -> None:
    """Clause 8.1: any text or pid of a chunk is found in its index, other pids are not."""
    batch = batch_of(found)
    pids = pa.array([abs(ts) % 7 for ts, _ in found], pa.int64())
    if batch.rows:
        batch = batch.adding({"pid": replace(batch.columns["ts"], values=pids)})
    for says, rows in _indexes(capture([batch], chunk_rows=chunk_rows)):
        assert says.pids is not None
        assert says.pids.tolist() == sorted(set(rows.columns["pid"].values.to_pylist()))
        texts: set[str] = set()
        for column in rows.columns.values():
            values = column.values.to_pylist()
            if str(column.cls) == "str":
                texts.update(values)
            elif str(column.cls) == "list":
                texts.update(item for value in values for item in value)
        assert says.strings is None or all(says.strings.may_hold(t) for t in texts)


def test_the_index_of_a_recording_knows_its_processes() -> None:
    """With process events the filter fits its share of the chunk, and other pids are denied."""
    events = process_events(20_000, 100.0)
    ((says, rows),) = _indexes(capture([events]))
    assert says.strings is not None
    assert says.strings.may_hold("/usr/bin/sleep")
    assert not all(says.strings.may_hold(f"/usr/bin/{i}") for i in range(50))
    assert says.pids is not None
    assert np.array_equal(says.pids, pids_of(rows))
    assert np.array_equal(says.pids, np.unique(events.numpy("pid", -1)))


def test_the_bloom_filter_errs_in_about_one_of_a_hundred() -> None:
    """10 bits a string: 1 % of other strings are not denied, whatever the number of strings."""
    for count in (300, 5000, 40_000):
        held_texts = pa.array([f"/usr/lib/python3/item-{i}.py" for i in range(count)])
        made = Bloom.of(bloom.distinct([held_texts]), 1 << 20)
        assert made is not None
        assert made.may_hold_all(bloom.hashes(held_texts))
        others = [hashlib.sha256(b"%d" % i).hexdigest()[:12] for i in range(4000)]
        wrong = sum(made.may_hold(text) for text in others) / len(others)
        print(f"{count} strings: {100 * wrong:.2f} % false positives")
        assert 0.001 < wrong < 0.025


def test_control_a_filter_with_a_bit_gone_denies_a_string() -> None:
    """Negative control: the property above sees a filter that lies."""
    events = make_events(300)
    ((says, _),) = _indexes(capture([events]))
    assert says.strings is not None
    assert any(says.strings.bits)
    broken = Bloom(bytes(b & 0xFE for b in says.strings.bits))
    assert not broken.may_hold_all(bloom.strings_of(events))


def test_a_chunk_without_its_index_is_read_itself(many: bytes) -> None:
    """A damaged CHUNK_INDEX costs time, no rows and no count."""
    data = without(_cut(many), Kind.CHUNK_INDEX)
    data = without(data, Kind.CHECKPOINT)
    found = index_of(data)
    whole = index_of(_cut(many))
    assert found.totals["types"] == whole.totals["types"]
    assert found.totals["backward_steps"] == whole.totals["backward_steps"]
    assert not found.table["index"].any()
    reader: CaptureReader = opened(data)
    assert reader.chunk_index(0) is None
    assert set(map(tuple, every_way(data).values())) == {tuple(range(303))}
    assert len(held(many)) > 60
