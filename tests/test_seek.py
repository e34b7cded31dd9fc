"""Replaying from the middle: the end of what a whole replay gives, to the byte."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fibratus_support import REAL
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_support import Cut, Run, places, reader, with_states
from support import SOURCE, batch_of, capture, make_events, opened, snapshot

from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.format import record
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.batch import EMPTY, concat
from kcap.model.classes import I64_MIN
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.model.stream import Source
from kcap.opening import open_source
from kcap.replay.passing import Passed
from kcap.replay.restoring import planned
from kcap.replay.seek import Seeking
from kcap.replay.span import AtEvent, AtRow, AtTime, Span, parsed
from kcap.replay.stages import Matching
from kcap.state import State

SCAP = "scap/setns.scap"
CAPTURES = ("linux", "windows", "scap")
ROWS = 200
"""Rows that the quick tests read behind each place."""


@pytest.fixture(scope="module")
def made(data: Callable[[str], Path], fixtures: Path) -> Callable[[str], bytes]:
    """Give a capture by its name: events of Linux, a Windows import, sysdig's."""
    found: dict[str, bytes] = {}
    inputs: dict[str, tuple[Callable[[], Path], int, int, Span]] = {
        "linux": (lambda: fixtures / "first.kcap", 4, 2, Span()),
        "windows": (lambda: data(REAL), 100, 4, Span(AtRow(18_000), AtRow(19_500))),
        "scap": (lambda: data(SCAP), 100, 5, Span(None, AtRow(2000))),
    }

    def make(name: str) -> bytes:
        if name not in found:
            path, rows, every, span = inputs[name]
            found[name] = with_states(path(), rows, every, span=span)
        return found[name]

    return make


def rows_in(data: bytes) -> int:
    """Rows of a capture."""
    index = reader(data).index()
    assert index is not None
    return int(index.table["rows"].sum())


def some_rows(data: bytes, count: int, seed: int) -> list[int]:
    """Places in a capture, the ends and those beside a STATE among them."""
    total = rows_in(data)
    rng = random.Random(seed)
    edges = [r + d for r in rng.sample(places(data)[1:], 2) for d in (-1, 0, 1)]
    found = [0, 1, total - 1, total, *edges]
    found += [rng.randrange(total) for _ in range(count)]
    return sorted(set(found[:count] if count < len(found) else found))


# The suffix of the whole


def check_suffix(data: bytes, rows: list[int], length: int | None) -> None:
    whole = Run(reader(data))
    for row in rows:
        end = None if length is None else AtRow(row + length)
        part = Run(reader(data), Span(AtRow(row), end))
        assert part.lines == whole.lines[row : None if length is None else row + length], row
        if length is None:
            assert part.tables == whole.tables, row


@pytest.mark.parametrize("name", CAPTURES)
def test_a_replay_from_the_middle_is_the_end_of_the_whole(
    name: str, made: Callable[[str], bytes]
) -> None:
    """From any row on: the same lines, with names, ancestors and starts of processes."""
    data = made(name)
    assert len(places(data)) > 3

    check_suffix(data, some_rows(data, 4, seed=7), ROWS)


@pytest.mark.long
@pytest.mark.parametrize("name", CAPTURES)
def test_it_is_at_a_hundred_places(name: str, made: Callable[[str], bytes]) -> None:
    """The same at 100 places to the end, where all that is known is the same as well."""
    data = made(name)

    check_suffix(data, some_rows(data, 110, seed=8), None)


@pytest.mark.parametrize(("name", "table"), [("windows", "handles"), ("scap", "fds")])
def test_handles_and_descriptors_are_known_from_the_middle(
    name: str, table: str, made: Callable[[str], bytes]
) -> None:
    """What processes have open at the end does not depend on where the replay began."""
    data = made(name)
    row = places(data)[-1] + 10
    whole, part = Run(reader(data)), Run(reader(data), Span(AtRow(row)))

    assert part.tables == whole.tables
    assert len(whole.tables[table]) > 20


class Forgetting(Passed):
    """Tells what was passed over, and not what was known there."""

    def _sides(self, *, told: bool) -> list[Side]:
        self._state.restore(Snapshot({}))
        return [s for s in super()._sides(told=told) if not isinstance(s, Snapshot)]


class Forgetful(Seeking):
    """One that begins in the middle, and knows nothing of what was before."""

    def __init__(self, source: Source, span: Span, state: State) -> None:
        super().__init__(source, span, state)
        self._passed = Forgetting(state)


@pytest.mark.parametrize("name", CAPTURES)
def test_without_the_state_it_differs(name: str, made: Callable[[str], bytes]) -> None:
    """The control: the comparison sees names, ancestors and handles that are not restored."""
    data = made(name)
    row = rows_in(data) // 2
    whole = Run(reader(data))
    blind = Run(reader(data), Span(AtRow(row)), seeking=Forgetful)

    assert blind.lines != whole.lines[row:]
    assert Run(reader(data), Span(AtRow(row))).lines == whole.lines[row:]


@pytest.mark.parametrize("name", ["windows", "scap"])
def test_a_foreign_file_begins_in_the_middle(name: str, data: Callable[[str], Path]) -> None:
    """It has no STATE records: everything before the start is followed, and resolved the same."""
    path = data({"windows": "fibratus/v2.0.0-cap.kcap", "scap": "scap/sample.scap"}[name])
    whole = Run(open_source(path, resolve=False))
    row = len(whole.lines) // 2

    part = Run(open_source(path, resolve=False), Span(AtRow(row)))

    assert part.lines == whole.lines[row:]
    assert part.tables == whole.tables
    assert len(part.lines) > 20


@pytest.mark.parametrize(
    "text", ["ps.parent.cmdline contains 'session.sh'", "ps.ancestor in ('session.sh')"]
)
def test_filters_that_ask_for_ancestors_are_right_from_the_middle(
    text: str, made: Callable[[str], bytes]
) -> None:
    """What only the state tells is the same for a filter; without the state it finds less."""
    data = made("linux")
    wanted = Filter.of(text)
    assert wanted.needs_state
    whole = Run(reader(data), stages=[Matching(wanted)])
    found = {row: Run(reader(data), Span(AtRow(row)), stages=[Matching(wanted)]) for row in (9, 30)}
    blind = Run(reader(data), Span(AtRow(30)), seeking=Forgetful, stages=[Matching(wanted)])

    for part in found.values():
        assert part.lines
        assert part.lines == whole.lines[-len(part.lines) :]
    assert len(found[9].lines) > len(found[30].lines) > len(blind.lines)


# Where it begins and ends


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60),
    st.integers(0, 40),
    st.integers(0, 45),
    st.sampled_from([1, 3, 8, 100]),
    st.integers(1, 20),
)
def test_an_interval_has_the_events_whose_times_lie_in_it(
    times: list[int], start: int, end: int, chunk: int, cut: int
) -> None:
    """Also where times go back, however the events are cut; everybody learns what was between."""
    events = batch_of([(ts, {"fd": 1}) for ts in times], [SOURCE])
    data = capture([events], chunk_rows=chunk)
    span = Span(AtTime(start), AtTime(end))
    for source in (reader(data), Cut(reader(data), [cut]), opened(data, pipe=True)):
        run_ = Run(source, span)
        assert run_.lines == [
            line
            for line, ts in zip(Run(reader(data)).lines, times, strict=True)
            if start <= ts < end
        ]


def test_rows_that_are_left_out_between_are_followed(made: Callable[[str], bytes]) -> None:
    """What stands between two events of the interval, but is not of its time, changes the state."""
    data = made("linux")
    whole = Run(reader(data))
    batches = list(reader(data).batches())
    times = np.concatenate([b.numpy("ts", I64_MIN) for b in batches])
    late = times.copy()
    late[20:40] = 1  # of 1970: an execution among them names a process
    at = iter(np.split(late, np.cumsum([b.rows for b in batches])[:-1]))

    class Shifted:
        info = reader(data).info

        def batches(self) -> Any:
            import pyarrow as pa

            from kcap.model.batch import Column
            from kcap.model.classes import TypeClass

            for batch in batches:
                yield batch.adding({"ts": Column(TypeClass.I64, pa.array(next(at)))})

        def close(self) -> None: ...

    part = Run(Shifted(), Span(AtTime(2)))

    assert part.lines == [*whole.lines[:20], *whole.lines[40:]]
    assert part.tables["processes"]
    assert {r["pid"]: r["name"] for r in part.tables["processes"] if "name" in r} == {
        r["pid"]: r["name"] for r in whole.tables["processes"] if "name" in r
    }


def test_an_event_can_be_named(made: Callable[[str], bytes]) -> None:
    """ORIGIN:ORD begins there or ends before it, of a file and of a stream; else it is an error."""
    data = made("linux")
    first, *_ = reader(data).batches()
    while not first.rows:
        first = next(b for b in reader(data).batches() if b.rows)
    origin = first.array("origin")[0].as_py()
    ords = [o for b in reader(data).batches() for o in b.array("ord").to_pylist()]
    whole = Run(reader(data)).lines
    span = Span(AtEvent(origin, ords[20]), AtEvent(origin, ords[50]))

    assert Run(reader(data), span).lines == whole[20:50]
    assert Run(opened(data, pipe=True), span).lines == whole[20:50]
    for absent in (AtEvent(origin, 10**9), AtEvent("f" * 32, ords[20])):
        for source in (reader(data), opened(data, pipe=True)):
            with pytest.raises(KcapError, match="there is no event"):
                Run(source, Span(absent))
        with pytest.raises(KcapError, match="there is no event"):
            Run(opened(data, pipe=True), Span(None, absent))


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("#0", AtRow(0)),
        ("#12345", AtRow(12345)),
        (f"{'0a' * 16}:7", AtEvent("0a" * 16, 7)),
        (f"{'0A' * 16}:-7", AtEvent("0a" * 16, -7)),
        ("#-1", None),
        ("#", None),
        ("12345", None),
        ("2026-11-20T12:00:00Z", None),
        (f"{'0a' * 16}:99999999999999999999", None),
        (f"{'0a' * 15}:7", None),
    ],
)
def test_bounds_are_read(text: str, bound: object) -> None:
    """Rows and events have spellings of their own; anything else may be a time."""
    assert parsed(text) == bound
    if bound is not None:
        assert parsed(str(bound)) == bound


def test_rows_behind_a_place_alone() -> None:
    """What a run before has dealt with is passed over, whatever the interval says."""
    data = capture([make_events(60)], chunk_rows=7)
    whole = Run(reader(data)).lines

    assert Run(reader(data), Span(behind=25)).lines == whole[25:]
    assert Run(reader(data), Span(AtRow(10), AtRow(40), 25)).lines == whole[25:40]
    assert Run(reader(data), Span(AtRow(30), None, 25)).lines == whole[30:]


def test_the_source_knows_the_row_behind_each_batch() -> None:
    """While batches are asked for, the rows delivered so far have a place in the input."""
    data = capture([make_events(60)], chunk_rows=7)
    source = Seeking(reader(data), Span(AtRow(10), AtRow(40)), State())
    count = 0
    for batch in source.batches():
        assert source.row_behind(count) == 10 + count or not batch.rows
        count += batch.rows
        assert source.row_behind(count) == 10 + count
    assert count == 30
    assert Seeking(reader(data), Span(behind=25), State()).row_behind(0) == 25


# What is read of a file


class Counted(io.BytesIO):
    """A file that counts the bytes read from it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.count += len(found)
        return found


def test_the_last_hundredth_is_read_alone(fixtures: Path) -> None:
    """Of 200 chunks the last two, and what is needed to know who was who, are few bytes."""
    first = [b for b in reader((fixtures / "first.kcap").read_bytes()).batches() if b.rows]
    rows = concat([*first, make_events(939)])
    state = State()
    out = io.BytesIO()
    writer = CaptureWriter(out, chunk_rows=1000, snapshot=state.snapshot)
    for number in range(200):
        writer.write(state.update(rows.with_before(() if number else first[0].before)))
    writer.close()
    index = reader(out.getvalue()).index()
    assert index is not None
    assert (len(index.table), len(index.totals["states"]) > 5) == (200, True)
    stream = Counted(out.getvalue())
    part = Run(CaptureReader(stream, "counted.kcap"), Span(AtRow(198_000)))

    whole = Run(reader(out.getvalue()), Span(AtRow(196_000)))
    assert part.lines == whole.lines[2000:]
    assert stream.count < len(out.getvalue()) * 0.05, f"{stream.count:,}"


def test_the_end_is_not_read(made: Callable[[str], bytes]) -> None:
    """Nothing behind the interval is read either."""
    data = made("scap")
    stream = Counted(data)
    Run(CaptureReader(stream, "counted.kcap"), Span(None, AtRow(300)))

    assert stream.count < len(data) / 5


# Damage


def test_an_open_capture_begins_in_the_middle(fixtures: Path) -> None:
    """One that was never closed has no footer: its records tell where to begin."""
    data = with_states(fixtures / "first.kcap", 4, closed=False)
    assert reader(data).footer is None
    whole = Run(reader(data))
    assert whole.summary.exit_code == 3

    for row in (5, 33, 60):
        part = Run(reader(data), Span(AtRow(row)))
        assert part.lines == whole.lines[row:]
        assert part.tables == whole.tables
        assert part.summary.exit_code == 3


@pytest.mark.parametrize("kind", ["STATE", "CHUNK"])
def test_damage_before_the_place_costs_no_more_than_it_must(
    kind: str, made: Callable[[str], bytes]
) -> None:
    """A STATE that is damaged is done without; rows keep their numbers behind a lost chunk."""
    data = bytearray(made("linux"))
    index = reader(bytes(data)).index()
    assert index is not None
    row = 41
    plan = planned(reader(bytes(data)), index, Span(AtRow(row)))
    assert plan.state is not None
    at = plan.state
    if kind == "CHUNK":
        assert plan.follow is not None
        number = plan.follow.chunks[0] if plan.follow.chunks else len(index.table) // 2
        at = int(index.table["offset"][number])
    data[at + record.HEADER_BYTES + 40] ^= 0xFF
    whole = Run(reader(bytes(data)))
    lost = sum(loss.count or 0 for loss in whole.summary.losses)

    part = Run(reader(bytes(data)), Span(AtRow(row)))

    assert part.lines == whole.lines[row - lost :]
    if kind == "STATE":
        assert lost == 0
        earlier = planned(reader(bytes(data)), index, Span(AtRow(row)))
        assert earlier.state is not None
        assert earlier.state < plan.state


def test_a_state_that_tells_of_one_machine_is_not_all() -> None:
    """Where a capture has events of two machines, a STATE of one of them is no place to begin."""
    other = SourceInfo("test", host="other", boot_id="other", origin="11" * 16)
    one = Snapshot({"processes": snapshot().tables["processes"]})
    events = make_events(40)
    data = capture(
        [events.slice(0, 20).with_before([SOURCE, other, one]), events.slice(20, 40)], chunk_rows=5
    )
    found = reader(data)
    index = found.index()
    assert index is not None

    assert planned(found, index, Span(AtRow(30))).state is None


def test_what_stands_before_the_first_row_comes_along() -> None:
    """Sources, and what was known, for whoever stores the part; old losses of the rest do not."""
    before: list[Side] = [SOURCE, snapshot(), Loss("lost", 3, "early")]
    events = make_events(60)
    data = capture([events.slice(0, 30).with_before(before), events.slice(30, 60)], chunk_rows=10)
    first, *_ = Seeking(reader(data), Span(AtRow(45)), State()).batches()

    assert SOURCE in first.before
    assert any(isinstance(side, Snapshot) for side in first.before)
    start, *_ = Seeking(reader(data), Span(AtTime(0)), State()).batches()
    assert [type(side) for side in start.before] == [SourceInfo, Snapshot, Loss]


def test_empty_batches_and_no_rows_at_all() -> None:
    """A capture without rows has none behind any place."""
    data = capture([EMPTY.with_before([SOURCE])])
    for span in (
        Span(),
        Span(AtRow(0)),
        Span(AtRow(5)),
        Span(AtTime(5), AtTime(6)),
        Span(behind=3),
    ):
        assert Run(reader(data), span).lines == []
