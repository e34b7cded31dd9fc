"""Merging: several sources as one, a function of their events alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_events, rows_of
from test_state import event, fork, make_batch

from kcap.model.batch import EMPTY, Batch, Column, concat, constant
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import I64_MIN, TypeClass
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.replay import merge
from kcap.replay.merge import Merged, reordered
from kcap.replay.pipeline import Pipeline
from kcap.replay.resolved import Resolved
from kcap.state import State
from kcap.state.state import PROCESSES

ORIGINS = ("0a", "0b", "0c", "0d")
TIMES = st.lists(st.none() | st.integers(0, 6) | st.just(2**62), max_size=14)
STREAMS = st.lists(TIMES, min_size=1, max_size=4)
CUTS = st.lists(st.integers(0, 14), max_size=4)


class Given:
    """A source of these batches, which counts what was taken."""

    def __init__(self, batches: Sequence[Batch], file: str = "given", *sources: SourceInfo) -> None:
        self.info = StreamInfo(file, "test", sources)
        self.closed = False
        self.taken = 0
        self._batches = batches

    def batches(self) -> Iterator[Batch]:
        for batch in self._batches:
            self.taken += 1
            yield batch

    def close(self) -> None:
        self.closed = True


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def write(self, batch: Batch) -> None:
        self.batches.append(batch)

    def close(self) -> None: ...


def stream(times: Sequence[int | None], origin: str) -> Batch:
    """Events of one origin at these times, with sparse, dense, text and list columns."""
    builder = RecordBuilder()
    fields = [
        Field("ts", TypeClass.I64),
        Field("event", TypeClass.STR),
        Field("arg_l"),
        Field("pid"),
    ]
    layout = builder.layout(fields)
    for i, ts in enumerate(times):
        builder.add(layout, [ts, f"{origin} {i % 3}", [origin, str(i)], i if i % 2 else None])
    count = len(times)
    columns = {
        "origin": constant(TypeClass.STR, origin, count),
        "ord": Column(TypeClass.I64, pa.array(np.arange(count))),
    }
    return builder.finish(columns) if count else EMPTY


def divided(batch: Batch, cuts: list[int]) -> list[Batch]:
    places = sorted({0, batch.rows, *(min(c, batch.rows) for c in cuts)})
    return [batch.slice(a, b) for a, b in itertools.pairwise(places)]


def merged(*sources: Given) -> list[Batch]:
    """What a pipeline gets of several sources."""
    state, kept = State(), Kept()
    Pipeline(Merged(sources, state), [kept], state=state).run()
    return kept.batches


def placed(batch: Batch) -> list[tuple[tuple[Any, ...], dict[str, object]]]:
    """Every event and its place, told event by event."""
    greatest: tuple[Any, ...] = (I64_MIN,)
    found = []
    for row in batch.to_pylist():
        greatest = max(greatest, (row.get("ts", I64_MIN), row["origin"], row["ord"]))
        found.append((greatest, row))
    return found


@given(STREAMS, CUTS)
def test_events_come_in_order_of_time_and_each_source_keeps_its_own(
    streams: list[list[int | None]], cuts: list[int]
) -> None:
    """As sorting single events by place says, however the sources are cut into batches."""
    batches = [stream(t, o) for t, o in zip(streams, ORIGINS, strict=False)]
    expected = sorted((p for b in batches for p in placed(b)), key=lambda p: p[0])
    found = merged(*(Given(divided(b, cuts)) for b in batches))

    assert [row for b in found for row in b.to_pylist()] == [row for _, row in expected]
    for origin, batch in zip(ORIGINS, batches, strict=False):
        own = [row for b in found for row in b.to_pylist() if row["origin"] == origin]
        assert own == batch.to_pylist()


def test_joining_alone_does_not_order() -> None:
    """Negative control: the order above is not there without merging."""
    batches = [stream([5, 6], "0a"), stream([1, 2], "0b")]

    assert concat(batches).numpy("ts", 0).tolist() == [5, 6, 1, 2]
    assert concat(merged(*(Given([b]) for b in batches))).numpy("ts", 0).tolist() == [1, 2, 5, 6]


@given(STREAMS, st.randoms(use_true_random=False))
def test_the_order_of_sources_does_not_show(streams: list[list[int | None]], rng: Any) -> None:
    """merge(a, b) is merge(b, a), events of one time included."""
    batches = [stream(t, o) for t, o in zip(streams, ORIGINS, strict=False)]
    expected = rows_of(merged(*(Given([b]) for b in batches)))
    rng.shuffle(batches)

    assert rows_of(merged(*(Given([b]) for b in batches))) == expected


@given(st.lists(TIMES, min_size=3, max_size=3))
def test_merging_what_was_merged_is_merging_all(streams: list[list[int | None]]) -> None:
    """merge(merge(a, b), c) is merge(a, b, c) is merge(a, merge(b, c))."""
    a, b, c = (stream(t, o) for t, o in zip(streams, ORIGINS, strict=False))
    at_once = rows_of(merged(Given([a]), Given([b]), Given([c])))

    assert rows_of(merged(Given(merged(Given([a]), Given([b]))), Given([c]))) == at_once
    assert rows_of(merged(Given([a]), Given(merged(Given([b]), Given([c]))))) == at_once


def test_parts_of_one_recording_come_together_again() -> None:
    """Parts that share their origin are ordered by number where the time is the same."""
    whole = stream([1, 1, 1, 2, 2, 3, 3, 3], "0a")
    odd, even = (whole.take(np.arange(s, 8, 2, dtype=np.int32)) for s in (1, 0))

    assert rows_of(merged(Given([odd]), Given([even]))) == rows_of([whole])


def test_events_without_identity_are_ordered_by_their_file() -> None:
    """Where nothing else tells sources apart their names do, not the order of arguments."""
    one, other = (stream([1, 1], o).select(["ts", "event"]) for o in ORIGINS[:2])
    expected = rows_of(merged(Given([one], "one"), Given([other], "other")))

    assert rows_of(merged(Given([other], "other"), Given([one], "one"))) == expected
    assert expected == rows_of([one, other])


def test_many_equal_times_need_no_memory() -> None:
    """However many events share a time, no more than a batch of each source waits, and of ours."""
    batches = {o: [stream([7] * 1000, o) for _ in range(30)] for o in ORIGINS[:2]}
    for i, parts in enumerate(zip(*batches.values(), strict=True)):
        for origin, part in zip(batches, parts, strict=True):
            shifted = pa.array(np.arange(i * 1000, i * 1000 + 1000))
            batches[origin][i] = part.adding({"ord": Column(TypeClass.I64, shifted)})
    sources = [Given(parts) for parts in batches.values()]
    given_rows, ahead = 0, 0
    for batch in Merged(sources, State(), rows=4096).batches():
        given_rows += batch.rows
        ahead = max(ahead, sum(s.taken for s in sources) * 1000 - given_rows)

    assert given_rows == 60_000
    assert 0 < ahead <= 2 * (merge._ROWS[1] + 1000) + 4096


def test_a_source_is_not_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a source whose events come later, no more is taken than one batch holds."""
    for rows in (10, 50):
        monkeypatch.setattr(merge, "_ROWS", (rows, rows))
        early = Given([stream([1], "0a")] * 5)
        late = Given([stream([100], "0b")] * 300)
        next(iter(Merged([early, late], State(), rows=1).batches()))

        assert late.taken == rows  # the control: it is this bound, not the source's end


@given(st.permutations(range(9)))
def test_rows_move_with_all_their_values(order: list[int]) -> None:
    """Another order of rows is that of the events, whatever columns they have."""
    batch = make_events(9)
    found = reordered(batch, np.array(order, np.int32))

    rows = rows_of([batch])
    assert rows_of([found]) == [rows[i] for i in order]
    for column in found.columns.values():
        assert column.rows is None or (np.diff(column.rows) > 0).all()


# Side records


HOSTS = [
    SourceInfo("test", host=f"host {i}", boot_id=f"boot {i}", origin=o)
    for i, o in enumerate(ORIGINS)
]


def machine(number: int, *rows: Any, first: Sequence[Any] = ()) -> Batch:
    """Process events of one of the hosts."""
    source = HOSTS[number]
    own = [
        {**row, "source": source.id, "origin": source.origin, "ord": i}
        for i, row in enumerate(rows)
    ]
    return make_batch(own, source, *first)


def table(number: int, *pids: int) -> Snapshot:
    """A snapshot of one of the hosts."""
    state = State()
    rows = [event("process_rundown", pid, process_name=f"p{pid}") for pid in pids]
    state.update(machine(number, *rows))
    return state.snapshot()


def described(side: Any) -> list[tuple[Any, Any]]:
    """Machine and process id of the processes in a snapshot."""
    return [(row["machine"], row["pid"]) for row in side.tables[PROCESSES].to_pylist()]


def test_sources_losses_and_files_are_told() -> None:
    """Every source is announced before its events; a loss says whose it is, an old one stays."""
    new, old = Loss("torn", None, "it ends"), Loss("lost", 3, "old", recorded=True)
    one = Given([machine(0, event("file_open", 1, ts=5)).with_before([HOSTS[0], old])], "a")
    two = Given([machine(1, event("file_open", 1, ts=1)), EMPTY.with_before([new])], "b")
    batches = merged(one, two)
    sides = [side for b in batches for side in b.before]

    assert [s for s in sides if isinstance(s, SourceInfo)] == HOSTS[:2]
    assert [s for s in sides if isinstance(s, Loss)] == [old, Loss("torn", None, "b: it ends")]
    announced: set[str] = set()
    for batch in batches:
        announced |= {s.id for s in batch.before if isinstance(s, SourceInfo)}
        assert {row["source"] for row in batch.to_pylist()} <= announced


def test_info_unites_the_source_tables() -> None:
    """Files, and every source once, in an order of its own."""
    one, two = Given([], "a", HOSTS[0], HOSTS[2]), Given([], "b", HOSTS[1], HOSTS[0])
    info = Merged([one, two], State()).info

    assert list(info.sources) == sorted(HOSTS[:3], key=lambda s: s.id)
    assert set(info.file.split(", ")) == {"a", "b"}


def test_a_snapshot_stands_at_its_place_and_describes_all_machines() -> None:
    """It comes after what precedes it in time, before what follows, with every host's processes."""
    opened = event("file_open", 1)
    one = Given([machine(0, opened | {"ts": 1}, opened | {"ts": 9}, first=[table(0, 10, 11)])])
    two = Given([machine(1, opened | {"ts": 5}, opened | {"ts": 6}, first=[table(1, 20)])])
    batches = merged(one, two)
    flow: list[Any] = []
    for batch in batches:
        flow += [described(s) for s in batch.before if isinstance(s, Snapshot)]
        flow += batch.numpy("ts", 0).tolist()

    assert flow == [
        [("boot 0", 10), ("boot 0", 11)],
        1,
        [("boot 0", 10), ("boot 0", 11), ("boot 1", 20)],
        5,
        6,
        9,
    ]


def test_later_snapshots_of_a_machine_only_correct_the_state() -> None:
    """A second snapshot goes into the state, not to the output, which has a cadence of its own."""
    opened = event("file_open", 1, ts=1)
    again = machine(0, opened, first=[table(0, 12)])
    one = Given(
        [machine(0, opened, first=[table(0, 10)]), again, EMPTY.with_before([table(0, 13)])]
    )
    state, kept = State(), Kept()
    Pipeline(Merged([one, Given([])], state), [kept], state=state).run()
    found = [s for b in kept.batches for s in b.before if isinstance(s, Snapshot)]

    assert list(map(described, found)) == [[("boot 0", 10)]]
    assert described(state.snapshot()) == [("boot 0", 13)]


def test_a_snapshot_alone_is_not_lost() -> None:
    """A source without events still says what ran."""
    found = merged(Given([EMPTY.with_before([HOSTS[0], table(0, 10)])]), Given([]))

    assert [described(s) for b in found for s in b.before if isinstance(s, Snapshot)] == [
        [("boot 0", 10)]
    ]


def test_a_snapshot_that_makes_no_sense_is_a_loss() -> None:
    """Damage in the state of one source is counted, and the others stay as they are."""
    bad = Snapshot({PROCESSES: Batch(1, {"pid": constant(TypeClass.STR, "x", 1)})})
    state, kept = State(), Kept()
    one = Given([EMPTY.with_before([HOSTS[0], table(0, 10)])])
    source = Merged([one, Given([EMPTY.with_before([bad])])], state)
    summary = Pipeline(source, [kept], state=state).run()

    assert [loss.kind for loss in summary.losses] == ["damaged"]
    assert described(state.snapshot()) == [("boot 0", 10)]


def test_the_state_is_that_of_the_rows_given() -> None:
    """At every batch the state knows what came so far, never what a source read ahead."""
    rows = [fork(1, 50 + i, 10**9 * i, ts=10 * i) for i in range(5)]
    one = Given([machine(0, *rows)])
    two = Given(
        [
            machine(
                1, *[event("file_open", 1, ts=10 * i + 5) for i in range(5)], first=[table(1, 20)]
            )
        ]
    )
    state = State()
    known = []
    for batch in Merged([one, two], state).batches():
        state.update(batch)
        snapshots = [s for s in batch.before if isinstance(s, Snapshot)]
        known += [len([m for m, _ in described(s) if m == "boot 0"]) for s in snapshots]

    assert known == [1]  # the fork at 0, and none of those behind the snapshot at 5


def test_identity_is_resolved_by_the_own_source() -> None:
    """A process id that two machines share is each machine's own process."""
    named = event("process_rundown", 7, process_name="a", ts=1), event("file_open", 7, ts=2)
    others = event("process_rundown", 7, process_name="b", ts=1), event("file_open", 7, ts=3)
    sources = [Resolved(Given([machine(i, *rows)])) for i, rows in enumerate((named, others))]
    state, kept = State(), Kept()
    Pipeline(Merged(sources, state), [kept], state=state).run()
    rows = concat([b for b in kept.batches if b.rows]).to_pylist()

    assert [r["process_name"] for r in rows if r["action"] == "file_open"] == ["a", "b"]


@given(st.lists(TIMES, min_size=2, max_size=2), CUTS, CUTS, st.integers(1, 5))
def test_batches_do_not_show_those_of_the_sources(
    streams: list[list[int | None]], one: list[int], other: list[int], rows: int
) -> None:
    """The cuts of what comes out are by number of rows and by snapshots alone."""
    found = []
    for cuts in (one, other):
        parts = [divided(stream(t, o), cuts) for t, o in zip(streams, ORIGINS, strict=False)]
        if streams[0]:
            parts[0][0] = parts[0][0].with_before([table(0, 10)])
        source = Merged([Given(p) for p in parts], State(), rows=rows)
        batches = list(source.batches())
        found.append([(b.rows, rows_of([b]), [type(s) for s in b.before]) for b in batches])

    assert found[0] == found[1]


def test_all_sources_are_closed() -> None:
    """Closing the merged source closes each."""
    sources = [Given([]), Given([])]
    Merged([Resolved(s) for s in sources], State()).close()

    assert [s.closed for s in sources] == [True, True]


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_and_one_are_merged_too(count: int) -> None:
    """No source gives nothing, one gives itself."""
    batch = stream([3, 1, None, 2], "0a")

    assert rows_of(merged(*[Given([batch])] * count)) == rows_of([batch] * count)
