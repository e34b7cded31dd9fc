"""TAIL records: every row comes once and in order, wherever the file ends and whatever is hit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import durability_support
import forge
import pytest
from durability_support import (
    EVENTS,
    ROWS,
    Step,
    check_ends_early,
    check_once,
    check_prefix,
    every_way,
    held,
    in_order,
    losses_of,
    ords,
    records,
    schema_of,
    written,
)
from hypothesis import given
from hypothesis import strategies as st
from support import RECORDS, Pipe, batch_of, capture, opened, read, rows_of

from kcap.errors import KcapError, LimitError
from kcap.format import cadence, chunk, tail
from kcap.format import writer as writing
from kcap.format.chunk import Superseded
from kcap.format.reader import CaptureReader
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.schema import EVENTS as TABLE
from kcap.format.schema import Schema
from kcap.format.tail import Tails, Waiting
from kcap.format.verify import verify
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, concat

STEPS = st.lists(
    st.tuples(st.just("write"), st.integers(0, 12))
    | st.sampled_from([("commit", 0), ("commit", 0), ("flush", 0)]),
    max_size=25,
)
SMALL: list[Step] = [
    *(("write", 4), ("commit", 0), ("write", 3), ("commit", 0), ("flush", 0)),
    *(("write", 2), ("commit", 0), ("commit", 0), ("write", 5), ("flush", 0)),
    *(("write", 3), ("commit", 0), ("write", 1)),
]


# Cuts


@given(STEPS, st.booleans(), st.sampled_from([3, 10, 1000]), st.floats(0, 1))
def test_what_was_committed_is_there_once_wherever_the_file_ends(
    steps: list[Step], closed: bool, chunk_rows: int, at: float
) -> None:
    """Clauses 1.3, 7.3, 7.4: file, pipe, selection and chunk by chunk agree at any cut."""
    done = written([*steps, *([("close", 0)] if closed else [])], chunk_rows=chunk_rows)
    header = 256
    cut = header + int(at * (len(done.data) - header))

    for data in (done.data[:cut], done.data):
        check_prefix(data, done.promised(len(data)))


def test_a_small_capture_is_cut_at_every_byte() -> None:
    """Clause 1.3: at each place what was committed before it is read, and nothing else is wrong."""
    done = written(SMALL)
    ends = {r.offset + len(r.raw): r.offset for r in records(done.data)}
    places = held(done.data)
    seen = set()
    complete: set[int] = set()
    for cut in range(256, len(done.data) + 1):
        data = done.data[:cut]
        complete.update(places.get(ends.get(cut, 0), (None, ()))[1])
        if {cut - 1, cut, cut + 1} & ends.keys():
            seen.add(check_prefix(data, done.promised(cut)))
            check_ends_early(data)
        for found in in_order(data).values() if cut % 2 else ():
            assert found == sorted(complete)
    assert seen == {0, 4, 7, 9, 14, 17}


def test_a_pipe_gives_the_rows_of_a_tail_before_their_chunk_comes() -> None:
    """Clause 7.4: a stream need not wait for the chunk; its rows don't come again with it."""
    done = written([("write", 5), ("commit", 0), ("write", 2), ("flush", 0)])
    counts = [b.rows for b in opened(done.data, pipe=True).batches() if b.rows]

    assert counts == [5, 2]
    assert [b.rows for b in opened(done.data).batches() if b.rows] == [7]


class _Halting(Pipe):
    """A pipe that must not be read any further than what has been written."""

    def readinto(self, buffer: object) -> int:
        count = super().readinto(buffer)
        assert count, "the reader waits for more than it needs"
        return count


def test_a_pipe_is_not_read_ahead_of_a_tail() -> None:
    """A commit into a pipe is seen at once, though nothing follows it yet."""
    done = written([("write", 5), ("commit", 0)])
    batches = CaptureReader(_Halting(done.data, 40), "-").batches()  # type: ignore[arg-type]

    assert next(b for b in batches if b.rows).rows == 5


# What a commit writes


def test_a_commit_writes_what_is_new_and_no_more() -> None:
    """Clause 7.1: one TAIL a commit, none for nothing, a chunk where a TAIL would cost more."""
    done = written(SMALL)
    kinds = [r.header.kind for r in records(done.data) if r.header.kind in (Kind.TAIL, Kind.CHUNK)]
    assert kinds == [*[Kind.TAIL] * 2, Kind.CHUNK, Kind.TAIL, Kind.CHUNK, Kind.TAIL]
    held_rows = [rows for _, rows in held(done.data).values()]
    assert held_rows == [
        *(list(range(4)), list(range(4, 7)), list(range(7))),
        *(list(range(7, 9)), list(range(7, 14)), list(range(14, 17))),
    ]

    many = concat([EVENTS] * 6)
    assert many.rows > writing.TAIL_ROWS
    data = capture([many], closed=False)
    with_commit = _Committed().taking(many)
    assert [r.header.kind for r in records(with_commit)] == [r.header.kind for r in records(data)]


class _Committed:
    """Commits after each batch."""

    def taking(self, *batches: object) -> bytes:
        import io

        out = io.BytesIO()
        writer = CaptureWriter(out)
        for batch in batches:
            writer.write(batch)  # type: ignore[arg-type]
            writer.commit()
        return out.getvalue()


@given(RECORDS, st.integers(1, 20))
def test_a_tail_holds_what_a_chunk_would(found: list[object], portion: int) -> None:
    """Clause 7.2: values of every class come back from a TAIL equal to the bit."""
    batch = batch_of(found)  # type: ignore[arg-type]
    parts = [batch.slice(at, at + portion) for at in range(0, batch.rows, portion)]
    data = _Committed().taking(*parts)

    batches, _ = read(data)
    assert rows_of([b for b in batches if b.rows]) == rows_of([b for b in [batch] if b.rows])
    assert {r.header.kind for r in records(data)} <= {
        *(Kind.FILE_HEADER, Kind.SCHEMA, Kind.TAIL, Kind.LOSS)
    }


@given(RECORDS, st.integers(1, 20))
def test_rows_of_tails_fit_one_chunk(found: list[object], portion: int) -> None:
    """Clauses 3.3, 7.4: together they take at most twice what they took one by one."""
    batch = batch_of(found)  # type: ignore[arg-type]
    schema = Schema()
    schema.learn(TABLE, [(n, c.cls) for n, c in batch.columns.items()])
    if not batch.rows:
        return
    parts = [batch.slice(at, at + portion).compact() for at in range(0, batch.rows, portion)]
    alone = sum(tail.encode(p, schema)[1] for p in parts)
    # The fixed part of a list column, and of a text entry, is nothing beside 16 MiB.
    assert tail.encode(batch, schema)[1] <= 2 * alone + 64 * len(batch.columns)


# Damage


def _hit(data: bytes, offset: int, at: int) -> bytes:
    broken = bytearray(data)
    broken[offset + at] ^= 0x10
    return bytes(broken)


def _left(data: bytes, hits: set[int]) -> list[int]:
    """The ords that intact CHUNKs and TAILs hold."""
    left = {o for offset, (_, rows) in held(data).items() if offset not in hits for o in rows}
    return sorted(left)


@given(STEPS, st.booleans(), st.sampled_from([5, 1000]), st.integers(0, 1 << 30))
def test_damage_costs_the_rows_that_stand_nowhere_else(
    steps: list[Step], closed: bool, chunk_rows: int, seed: int
) -> None:
    """Clauses 2.7, 7.4: TAILs stand in for a damaged CHUNK, a CHUNK for damaged TAILs."""
    done = written([*steps, ("close" if closed else "commit", 0)], chunk_rows=chunk_rows)
    random = Random(seed)
    sizes = {r.offset: len(r.raw) for r in records(done.data)}
    hits = {offset for offset in held(done.data) if random.randrange(3) == 0}
    data = done.data
    for offset in hits:
        payload = random.randrange(HEADER_BYTES, sizes[offset] - 8)
        data = _hit(data, offset, random.choice((payload, random.randrange(HEADER_BYTES))))

    check_once(data, _left(done.data, hits))
    if set(_left(done.data, hits)) < set(_left(done.data, set())):
        assert losses_of(data)


def test_damage_at_every_byte_of_a_small_capture() -> None:
    """Clause 2.7: rows come once and in order whatever byte of TAILs and CHUNKs is hit."""
    done = written(SMALL)
    places = held(done.data)
    for record in records(done.data):
        if record.offset not in places:
            continue
        padding = record.header.size - HEADER_BYTES - record.header.length
        for at in range(0, len(record.raw), 5):
            hits = set() if at >= len(record.raw) - padding else {record.offset}
            left = _left(done.data, hits)
            broken = _hit(done.data, record.offset, at)
            assert list(in_order(broken).values()) == [left, left]
            if at % 40 == 0:
                check_once(broken, left)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bytes]:
    """Make captures in which the rows of a chunk must be divided into several."""
    encode = chunk.encode

    def limited(batch: Batch, *others: object) -> bytes:
        if batch.rows > 30:
            raise LimitError("more than a chunk may hold")
        return encode(batch, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(chunk, "encode", limited)

    def make() -> bytes:
        steps: list[Step] = [("write", 6), ("commit", 0), ("write", 5), ("commit", 0)]
        return written([*steps, ("write", 90), ("flush", 0), ("write", 2), ("commit", 0)]).data

    return make


def _chunks(data: bytes) -> list[chunk.Chunk]:
    schema = schema_of(data)
    return [chunk.Chunk(r.payload, schema) for r in records(data) if r.header.kind == Kind.CHUNK]


def test_of_several_chunks_the_first_has_the_rows_of_tails(narrow: Callable[[], bytes]) -> None:
    """Clause 7.3: the first one supersedes, and damage to any of them brings no row twice."""
    data = narrow()
    found = _chunks(data)
    assert len(found) > 2
    assert [bool(c.tails.records) for c in found] == [True, *[False] * (len(found) - 1)]
    assert found[0].rows == 11

    check_once(data, list(range(103)))
    places = held(data)
    for offset, (kind, _) in places.items():
        broken = _hit(data, offset, 60)
        check_once(broken, _left(data, {offset}))
        if kind == Kind.CHUNK:
            assert losses_of(broken)


@pytest.mark.usefixtures("narrow")
def test_control_tails_of_several_chunks_bring_rows_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a writer that divides the rows of TAILs is caught by the check above."""

    def unlimited(self: cadence.WrittenTails, *one: int) -> cadence.WrittenTails:
        return cadence.WrittenTails(Superseded(self.names.first or one[0], self.names.records + 1))

    monkeypatch.setattr(cadence.WrittenTails, "with_one", unlimited)
    commits: list[Step] = [("write", 25), ("commit", 0)]
    data = written([*commits, *commits, ("flush", 0)]).data
    with pytest.raises(AssertionError, match="pipe"):
        check_once(data, list(range(50)))
    first = next(offset for offset, (kind, _) in held(data).items() if kind == Kind.CHUNK)
    with pytest.raises(AssertionError, match="file"):
        check_once(_hit(data, first, 60), _left(data, {first}))


# Negative controls


def test_control_a_reader_that_believes_every_tail_shows_rows_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: without supersession the rows of SMALL come again."""

    def never(self: Tails, *_: object) -> list[Waiting]:
        return self.rest()

    monkeypatch.setattr(Tails, "chunk", never)
    with pytest.raises(AssertionError):
        check_prefix(written(SMALL).data, 17)


def test_control_a_reader_without_tails_loses_what_was_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: the promise is checked."""
    monkeypatch.setattr(Tails, "rest", lambda _: [])
    with pytest.raises(AssertionError):
        check_prefix(written(SMALL).data, 17)


# A TAIL that contradicts its chunk


def _other_rows(data: bytes) -> bytes:
    """The capture with other events in its first TAIL, and all checksums right."""
    schema = schema_of(data)

    def change(part: forge.Part) -> forge.Part:
        rows = tail.decode(part.payload, schema).rows
        payload, _ = tail.encode(EVENTS.slice(20, 20 + rows), schema)
        return replace(part, payload=payload)

    return forge.with_part(data, Kind.TAIL, change)


def test_verify_deep_compares_tails_with_their_chunk() -> None:
    """Clause 7.3: rows that are not those of the chunk are found, also without a FOOTER."""
    done = written([("write", 40), ("flush", 0), *SMALL[:5]])
    assert not [
        f for f in verify(opened(done.data), deep=True).findings if "no FOOTER" not in f.what
    ]

    forged = _other_rows(done.data)
    found = [f.what for f in verify(opened(forged), deep=True).findings]
    assert "the chunk's rows are not those of the tails that it supersedes" in found
    ways = every_way(forged)
    assert ways.pop("pipe") == [*range(40), 20, 21, 22, 23, *range(44, 47)]
    assert set(map(tuple, ways.values())) == {tuple(range(47))}


def test_a_damaged_tail_accuses_no_chunk() -> None:
    """What is left of the TAILs says nothing of a chunk that is intact."""
    done = written([*SMALL[:5], ("close", 0)])
    first = next(offset for offset, (kind, _) in held(done.data).items() if kind == Kind.TAIL)
    found = [f.what for f in verify(opened(_hit(done.data, first, 50)), deep=True).findings]
    assert found == ["the TAIL record fails its CRC"]


def test_a_tail_that_makes_no_sense_costs_its_rows_alone() -> None:
    """Clause 2.7: an intact record with a payload of nonsense is damage, told with its place."""
    done = written([("write", 4), ("commit", 0), ("write", 3), ("commit", 0)])

    def nonsense(part: forge.Part) -> forge.Part:
        return replace(part, payload=part.payload[:24] + b"\0" * (len(part.payload) - 24))

    data = forge.with_part(done.data, Kind.TAIL, nonsense)
    check_once(data, [4, 5, 6])
    assert any(loss.kind == "damaged" and loss.count == 4 for loss in losses_of(data))
    with pytest.raises(KcapError):
        tail.decode(records(data)[-2].payload, schema_of(data))


def test_every_way_reads_the_same() -> None:
    """The helper looks at four ways to read, and each of them gives the events."""
    data = written(SMALL).data
    ways = every_way(data)
    assert len(ways) == 4
    assert all(found == list(range(17)) for found in ways.values())
    assert [ords(b) for b in [EVENTS]] == [list(range(len(ROWS)))]
    assert durability_support.EVENTS.rows == len(ROWS)
