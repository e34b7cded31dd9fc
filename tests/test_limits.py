"""Whatever the writer takes, the reader gives back; what can't be written is counted."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import forge
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SOURCE, batch_of, capture, make_events, opened, read, rows_of, snapshot

from kcap import limits
from kcap.errors import KcapError, LimitError
from kcap.format import body, chunk, schema
from kcap.format.record import Kind
from kcap.format.verify import verify
from kcap.format.writer import CaptureWriter
from kcap.model.batch import EMPTY, Batch, Column, dictionary
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Snapshot
from kcap.model.stream import StreamInfo
from kcap.replay.pipeline import Pipeline
from kcap.state import State


def text_column(values: list[str]) -> Column:
    """A text column."""
    return Column(TypeClass.STR, dictionary(pa.array(values, pa.utf8())))


def skipped(losses: list[Loss]) -> list[int | None]:
    """The counts of what was left out."""
    return [loss.count for loss in losses if loss.kind == "skipped"]


@settings(max_examples=25)
@given(st.integers(1, 60_000), st.integers(1, 2000), st.integers(0, 100))
def test_skewed_text_comes_back(length: int, count: int, unique: int) -> None:
    """One long value many times among short ones never makes a chunk that can't be read."""
    rng = random.Random(length)
    values = [str(i) if rng.randrange(100) < unique else "x" * length for i in range(count)]
    batch = Batch(count, {"exe": text_column(values)})

    data = capture([batch])

    batches, losses = read(data)
    assert rows_of(batches) == rows_of([batch])
    assert not losses
    assert len(data) < 200_000 + 20 * count


def test_a_long_value_that_half_of_the_rows_have() -> None:
    """65,536 rows, every second one with the same 64 KiB, are one dictionary and not 2 GiB."""
    long = "x" * limits.VALUE_BYTES
    codes = [0 if i % 2 else 1 + i // 2 for i in range(65_536)]
    entries = pa.array([long, *(f"{i:05}" for i in range(32_768))])
    values = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), entries)
    batch = Batch(65_536, {"exe": Column(TypeClass.STR, values)})

    batches, losses = read(capture([batch]))

    assert not losses
    assert sum(b.rows for b in batches) == 65_536
    assert batches[0].array("exe")[1].as_py() == long


def test_rows_that_no_chunk_holds_are_left_out_and_counted() -> None:
    """A row over its limit, a value over its limit: the others are written, the loss is told.

    (spec 3.1, 3.2)
    """
    wide = {f"exe__{i}": text_column([f"{i:04}" * 16_000]) for i in range(2, 600)}
    batches = [
        make_events(10),
        Batch(1, wide),
        Batch(2, {"exe": text_column(["y" * 100_000, "good"])}),
        make_events(10, seed=2),
    ]
    out = io.BytesIO()
    writer = CaptureWriter(out)
    for batch in batches:
        writer.write(batch)
    writer.close()

    found, losses = read(out.getvalue())
    recorded = [s for b in found for s in b.before if isinstance(s, Loss)]

    assert sum(b.rows for b in found) == 21
    assert not losses
    assert (
        sum(n or 0 for n in skipped(recorded)) == sum(n or 0 for n in skipped(writer.losses)) == 2
    )
    assert verify(opened(out.getvalue())).good


def test_columns_beyond_the_limit_cost_only_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that need more columns than there may be are left out; all others stay.

    (spec 3.1, 3.2)
    """
    monkeypatch.setattr(limits, "COLUMNS", 20)
    records: list[tuple[int, dict[str, Any]]] = [(i, {"a": i}) for i in range(50)]
    records.insert(25, (99, {f"n{i}": i for i in range(30)}))

    batches, _ = read(capture([batch_of(records)]))

    rows = [row for b in batches for row in b.to_pylist()]
    assert [row["arg_a__i64"] for row in rows] == list(range(50))
    assert [s.count for b in batches for s in b.before if isinstance(s, Loss)] == [1]


def test_very_many_losses_are_all_written() -> None:
    """300,000 losses at once take many records, none is dropped."""
    losses = [Loss("lost", 1, f"reason {i % 7}", cpu=i) for i in range(30_000)]

    batches, _ = read(capture([make_events(5), EMPTY.with_before(losses)]))

    assert sum(isinstance(s, Loss) for b in batches for s in b.before) == 30_000


def test_long_names_and_reasons_never_keep_a_capture_open() -> None:
    """Event names of 60 KB each and reasons of any length: the footer is written all the same."""
    names = [f"{i:03}" + "é" * 30_000 for i in range(200)]
    reasons = [Loss("lost", 1, "x\x00" * 4000 + str(i)) for i in range(1000)]

    data = capture([Batch(200, {"event": text_column(names)}), EMPTY.with_before(reasons)])

    reader = opened(data)
    assert reader.footer is not None
    types = reader.footer.totals["types"]
    assert 0 < len(types) < 200
    assert sum(types.values()) == 200
    assert sum(entry["count"] for entry in reader.footer.totals["loss"]) == 1000
    assert verify(opened(data)).good


def test_slices_of_one_batch_fill_a_chunk() -> None:
    """Slices share their dictionaries; that must not close chunks early."""
    values = [f"/usr/bin/{i}" * 10 for i in range(20_000)]
    batch = Batch(20_000, {"exe": text_column(values)})
    slices = [batch.slice(i, i + 20) for i in range(0, 20_000, 20)]

    reader = opened(capture(slices))

    assert reader.footer is not None
    assert len(reader.footer.chunks) == 1


def test_a_capture_has_a_last_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of chunks the writer refuses more, and what it has is closed and valid."""
    monkeypatch.setattr(limits, "CHUNKS", 3)
    out = io.BytesIO()
    writer = CaptureWriter(out, chunk_rows=5)
    with pytest.raises(KcapError, match="chunks, the most it can"):
        writer.write(make_events(100))
    writer.close()

    assert verify(opened(out.getvalue())).good
    assert sum(b.rows for b in read(out.getvalue())[0]) == 15


# Captures that say too much


def columns_of_constants(count: int) -> bytes:
    """A chunk of so many constant columns: no frame, 8 bytes a value in memory."""
    known = schema.Schema()
    names = [f"arg_c{i}__i64" for i in range(count)]
    column = Column(TypeClass.I64, pa.array(np.zeros(1, np.int64)))
    known.learn(schema.EVENTS, [(n, TypeClass.I64) for n in names])
    taken = forge.ChunkParts(chunk.encode(Batch(1, dict.fromkeys(names, column)), known, 0))
    taken.head.rows = 65_536
    for entry in taken.entries:
        entry.present = 65_536
    return taken.packed()


def test_constant_columns_are_no_bomb() -> None:
    """Columns without frames count with what they take in memory."""
    known = schema.Schema()
    known.learn(schema.EVENTS, [(f"arg_c{i}__i64", TypeClass.I64) for i in range(1500)])

    with pytest.raises(LimitError, match="bytes in memory"):
        chunk.Chunk(columns_of_constants(1500), known)
    assert chunk.Chunk(columns_of_constants(3), known).batch().rows == 65_536


def test_a_json_body_of_brackets_is_no_bomb() -> None:
    """Very many empty lists are refused before they are made."""
    raw = body.pack("[" * 10)
    bomb = b"[" + b"[]," * 1_100_000 + b"[]]"

    assert body.unpack(raw, "X") == "[" * 10
    with pytest.raises(LimitError, match="too many lists"):
        body.unpack(len(bomb).to_bytes(4, "little") + bytes(4) + bomb, "X", 1 << 24)


@pytest.mark.parametrize(("name", "cls"), [("ts", "str"), ("event", "i64"), ("arg_fd__str", "i64")])
def test_a_column_has_the_class_that_its_name_says(name: str, cls: str) -> None:
    """A SCHEMA that gives a known name another class is damage, in any reader."""
    with pytest.raises(KcapError, match="is of class"):
        schema.Schema().read([{"class": cls, "id": 0, "name": name, "table": "events"}])


@pytest.mark.parametrize("kind", [Kind.LOSS, Kind.SOURCE, Kind.STATE])
def test_a_footer_must_name_what_the_records_hold(kind: Kind) -> None:
    """A footer without a loss, a source or a state that the file has is a finding (spec 8.2)."""
    data = capture([make_events(5).with_before([SOURCE, snapshot(), Loss("lost", 1, "r")])])
    key = {Kind.LOSS: "loss", Kind.SOURCE: "sources", Kind.STATE: "states"}[kind]

    forged = forge.assembled(forge.parts_of(data), edit=lambda _, totals: {**totals, key: []})
    report = verify(opened(forged))

    assert [f.what for f in report.findings] == [f"the FOOTER's {key} is not what the records say"]


def test_records_of_another_version_are_not_guessed_at() -> None:
    """A needed kind in an unknown version is refused, an ancillary one passed over (spec 2.4)."""
    data = capture()

    chunks = forge.with_part(data, Kind.CHUNK, lambda p: replace(p, version=2))
    states = forge.with_part(data, Kind.STATE, lambda p: replace(p, version=2))

    with pytest.raises(KcapError, match="version 2"):
        read(chunks)
    assert rows_of(read(states)[0]) == rows_of(read(data)[0])
    assert not verify(opened(states)).good


def test_a_state_that_makes_no_sense_is_damage_in_a_replay() -> None:
    """A process table with texts for ids is told and passed over; every event is delivered."""
    table = Batch(1, {"pid": text_column(["one"])})
    batch = make_events(5).with_before([Snapshot({"processes": table})])
    source = opened(capture([batch]))

    summary = Pipeline(source, [CaptureWriter(io.BytesIO())], state=State()).run()

    assert summary.events_out == 5
    assert [loss.kind for loss in summary.losses] == ["damaged"]
    assert summary.exit_code == 3


# Runs that end early


class Failing:
    """A source that fails after its first batch."""

    info = StreamInfo("x", "test")

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def batches(self) -> Iterator[Batch]:
        yield make_events(10)
        raise self._error

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("error", [KcapError("bad"), KeyboardInterrupt(), MemoryError()])
def test_a_run_that_is_cut_short_says_so_in_its_output(error: BaseException) -> None:
    """Closed, with what came before, and a loss that tells where it stopped."""
    out = io.BytesIO()
    with pytest.raises(type(error)):
        Pipeline(Failing(error), [CaptureWriter(out)]).run()

    reader = opened(out.getvalue())
    assert reader.footer is not None
    assert reader.footer.totals["events"] == 10
    assert [entry["kind"] for entry in reader.footer.totals["loss"]] == ["torn"]


def test_what_a_sink_leaves_out_is_in_the_exit_code() -> None:
    """A writer's own losses make the run's exit code 3."""
    good = Pipeline(_Given([make_events(3)]), [CaptureWriter(io.BytesIO())]).run()
    bad = Batch(1, {"exe": text_column(["y" * 100_000])})
    lossy = Pipeline(_Given([bad]), [CaptureWriter(io.BytesIO())]).run()

    assert (good.exit_code, lossy.exit_code) == (0, 3)


class _Given:
    info = StreamInfo("x", "test")

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def batches(self) -> Iterator[Batch]:
        yield from self._batches

    def close(self) -> None:
        """Nothing to close."""
