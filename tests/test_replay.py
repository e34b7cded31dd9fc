"""Replaying: the same capture and options give the same bytes, wherever and however they run."""

from __future__ import annotations

import gzip
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from cli_support import EVENTS, lines_of, run
from hypothesis import given
from hypothesis import strategies as st
from support import RECORDS, SOURCE, batch_of, capture, make_events, opened, read, rows_of, snapshot
from tracee_support import DUMP, OPENED

from kcap.errors import KcapError, OutputError
from kcap.format.writer import CaptureWriter
from kcap.model.batch import EMPTY, Batch, Column, dictionary
from kcap.model.classes import I64_MAX, I64_MIN, TypeClass
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.replay.pipeline import Pipeline
from kcap.state import State
from kcap.tools import pace
from kcap.tools.pace import Paced
from kcap.writers.jsonl import JsonLines

FORMS = ("line", "jsonl")
ODD = {"PYTHONHASHSEED": "12345", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR"}
PLAIN = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C"}


class Given:
    """A source of these batches."""

    def __init__(self, batches: list[Batch], error: Exception | None = None) -> None:
        self.info = StreamInfo("given", "test")
        self._batches = batches
        self._error = error
        self.taken = 0

    def batches(self) -> Iterator[Batch]:
        for batch in self._batches:
            self.taken += 1
            yield batch
        if self._error is not None:
            raise self._error

    def close(self) -> None: ...


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.closed = 0

    def write(self, batch: Batch) -> None:
        self.batches.append(batch)

    def close(self) -> None:
        self.closed += 1


def text_of(batches: list[Batch]) -> bytes:
    """The events as JSON lines."""
    out = io.BytesIO()
    Pipeline(Given(batches), [JsonLines(out)]).run()
    return out.getvalue()


# The same bytes


@pytest.mark.parametrize("form", FORMS)
def test_output_depends_on_the_capture_alone(
    form: str, kcap: Callable[..., Any], tmp_path: Path
) -> None:
    """Hash seed, time zone, locale, pipe or file, chunk size: the same bytes; replay as cat."""
    events = make_events(2000)
    for rows in (7, 65_536):
        (tmp_path / f"{rows}.kcap").write_bytes(capture([events], chunk_rows=rows))
    small, large = tmp_path / "7.kcap", tmp_path / "65536.kcap"
    words = ("replay", "--format", form)

    expected = kcap(*words, large, **PLAIN)
    assert expected.returncode == 0
    assert expected.stdout.count(b"\n") == 2000
    assert kcap(*words, large, **ODD).stdout == expected.stdout
    assert kcap(*words, small, **PLAIN).stdout == expected.stdout
    assert kcap(*words, "-", stdin=small.read_bytes(), **ODD).stdout == expected.stdout
    assert kcap("cat", "--format", form, small).stdout == expected.stdout
    kcap(*words, small, "-o", "out.txt", **ODD)
    assert (tmp_path / "out.txt").read_bytes() == expected.stdout


def test_other_events_give_other_bytes(tmp_path: Path) -> None:
    """The control: what is compared above does tell captures apart."""
    one, other = tmp_path / "1.kcap", tmp_path / "2.kcap"
    one.write_bytes(capture([make_events(2000)]))
    other.write_bytes(capture([make_events(2000, seed=2)]))

    assert run("replay", one).stdout != run("replay", other).stdout


@given(RECORDS, st.lists(st.integers(0, 20), max_size=4))
def test_how_events_are_cut_into_batches_does_not_show(
    records: list[tuple[int, dict[str, Any]]], cuts: list[int]
) -> None:
    """Any events, any batches: the same lines."""
    whole = batch_of(records)
    edges = sorted({0, whole.rows, *(min(c, whole.rows) for c in cuts)})
    parts = [whole.slice(a, b) for a, b in pairwise(edges)]

    assert text_of(parts) == text_of([whole])


@pytest.mark.parametrize("form", FORMS)
def test_an_import_replays_as_its_source(form: str, tmp_path: Path, data: Any) -> None:
    """Foreign file, its gzip, its import, the import's rewriting: one output."""
    plain = tmp_path / "events.jsonl"
    with gzip.open(data(DUMP)) as lines:
        plain.write_bytes(b"".join(islice(lines, 1500)))
    first, second = tmp_path / "a.kcap", tmp_path / "b.kcap"
    assert run("import", plain, "-o", first).exit_code == 0
    assert run("replay", first, "--format", "kcap", "-o", second).exit_code == 0

    expected = run("replay", first, "--format", form)
    assert expected.stdout.count("\n") == 1500
    assert run("replay", second, "--format", form).stdout == expected.stdout
    assert run("cat", "-", "--format", form, input=first.read_bytes()).stdout == expected.stdout
    again = tmp_path / "c.kcap"
    assert run("import", "-", "-o", again, input=gzip.compress(plain.read_bytes())).exit_code == 0
    assert run("replay", again, "--format", form).stdout == expected.stdout


@given(RECORDS, st.sampled_from([1, 5, 65_536]))
def test_a_rewritten_capture_has_the_same_rows(
    records: list[tuple[int, dict[str, Any]]], rows: int
) -> None:
    """--format kcap keeps every value, bit for bit (spec 5.6)."""
    data = capture([batch_of(records)], chunk_rows=rows)
    result = run("replay", "-", "--format", "kcap", input=data)

    assert result.exit_code == 0
    assert rows_of(read(result.stdout_bytes)[0]) == rows_of([batch_of(records)])


def test_a_rewritten_capture_keeps_what_stands_beside_the_events(tmp_path: Path) -> None:
    """Sources, recorded losses and state snapshots come along, in their places."""
    path, copy = tmp_path / "a.kcap", tmp_path / "b.kcap"
    path.write_bytes(capture())
    result = run("replay", path, "--format", "kcap", "-o", copy)
    assert (result.exit_code, run("verify", copy).exit_code) == (0, 0)

    old, new = (json.loads(run("info", "--json", p).stdout) for p in (path, copy))
    for name in ("sources", "loss", "events", "backward_steps", "types", "ts", "columns"):
        assert new[name] == old[name], name
    places = [_snapshots(read(p.read_bytes())[0]) for p in (path, copy)]
    assert places[0]
    assert places[1][: len(places[0])] == places[0]


def _snapshots(batches: list[Batch]) -> list[tuple[int, list[str]]]:
    """Where the snapshots stand, in events before them, and what they hold."""
    found: list[tuple[int, list[str]]] = []
    count = 0
    for batch in batches:
        tables = [s.tables["processes"] for s in batch.before if isinstance(s, Snapshot)]
        found += [(count, rows_of([table])) for table in tables]
        count += batch.rows
    return found


# Speed


class Wall:
    """A wall clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now_s += seconds


def timed(*ts: int | None) -> Batch:
    """Events of these times."""
    values = np.array([0 if t is None else t for t in ts], np.int64)
    known = np.array([t is not None for t in ts])
    rows = np.flatnonzero(known).astype(np.int32)
    stamps = Column(TypeClass.I64, pa.array(values[known]), None if known.all() else rows)
    ords = Column(TypeClass.I64, pa.array(np.arange(len(ts))))
    return Batch(len(ts), {"ts": stamps, "ord": ords} if known.any() else {"ord": ords})


class Stamped(Kept):
    """A sink that notes when each event came."""

    def __init__(self, wall: Wall) -> None:
        super().__init__()
        self._wall = wall
        self.times: list[float] = []

    def write(self, batch: Batch) -> None:
        super().write(batch)
        self.times += [self._wall.now_s - 1000.0] * batch.rows


def paced(batches: list[Batch], speed: float) -> tuple[Stamped, Wall]:
    """Replay at a speed on a clock of our own, which needs no waiting in parts."""
    wall = Wall()
    sink = Stamped(wall)
    source = Paced(Given(batches), speed, monotonic=wall.monotonic, sleep=wall.sleep)
    with mock.patch.object(pace, "_SLEEP_S", math.inf):
        Pipeline(source, [sink]).run()
    return sink, wall


@pytest.mark.parametrize("speed", [0.5, 1, 10])
def test_events_come_at_their_time(speed: float) -> None:
    """Each event goes out when its distance to the first asks for, within a tenth of a second."""
    seconds = [0, 0.5, 0.501, 2, 2, 60]
    batch = timed(*(10**18 + int(s * 1e9) for s in seconds))

    for batches in ([batch], [batch.slice(0, 3), batch.slice(3, 6)]):
        sink, _ = paced(batches, speed)
        for came, due in zip(sink.times, seconds, strict=True):
            assert due / speed - 1e-6 <= came <= due / speed + 0.101


def test_time_that_runs_backwards_is_not_waited_for() -> None:
    """Dirty times: the clock only goes forward, an event without a time goes at once."""
    second = 10**9
    sink, wall = paced([timed(5 * second, 3 * second, None, 6 * second, -(10**17), 6 * second)], 1)

    assert sink.times == pytest.approx([0, 0, 0, 1, 1, 1], abs=0.021)
    assert sum(wall.slept) == pytest.approx(1, abs=0.021)


@given(
    st.lists(
        st.none() | st.integers(I64_MIN, I64_MAX) | st.integers(0, 10**10), min_size=1, max_size=12
    ),
    st.floats(1e-9, 1e9),
)
def test_any_times_at_any_speed_keep_every_event(ts: list[int | None], speed: float) -> None:
    """Speed changes when, never what: order, rows and values are those without it."""
    batch = timed(*ts).with_before((Loss("lost", 1, "x"),))
    sink, _ = paced([batch, EMPTY.with_before((SOURCE,))], speed)

    assert rows_of([b for b in sink.batches if b.rows]) == rows_of([batch])
    assert [s for b in sink.batches for s in b.before] == [Loss("lost", 1, "x"), SOURCE]


def test_speed_never_changes_the_bytes(tmp_path: Path) -> None:
    """The command: a second of events at 4 x takes a quarter, and prints the same."""
    path = tmp_path / "a.kcap"
    step = 25_000_000
    events = batch_of([(10**18 + i * step, {"fd": i}) for i in range(41)])
    path.write_bytes(capture([events], chunk_rows=10))

    plain = run("replay", path)
    begun = time.monotonic()
    slow = run("replay", path, "--speed", "4")
    taken = time.monotonic() - begun

    assert slow.stdout == plain.stdout
    assert 0.24 <= taken < 3
    assert lines_of("replay", path, "--speed", "1000") == lines_of("cat", path)
    assert run("replay", path, "--speed", "0").exit_code == 2


# The pipeline's ends


def test_a_slow_sink_slows_its_source() -> None:
    """Batches are pulled: the source is never ahead of the sink by more than one, none is lost."""
    parts = [make_events(10, seed=i) for i in range(20)]
    source = Given(parts)
    ahead: list[int] = []

    class Slow(Kept):
        def write(self, batch: Batch) -> None:
            super().write(batch)
            ahead.append(source.taken - len(self.batches))
            time.sleep(0.002)

    sink = Slow()
    summary = Pipeline(source, [sink]).run()

    assert set(ahead) == {0}
    assert summary.events_in == summary.events_out == 200
    assert rows_of(sink.batches) == rows_of(parts)
    assert (summary.exit_code, sink.closed) == (0, 1)


def test_a_sink_that_fails_ends_the_run_and_closes_all() -> None:
    """The error comes out as it is; every sink is closed, what the others got is whole."""

    class Full(Kept):
        def write(self, batch: Batch) -> None:
            super().write(batch)
            if len(self.batches) == 2:
                raise OutputError("full")

    kept, full, last = Kept(), Full(), Kept()
    with pytest.raises(OutputError, match="full"):
        Pipeline(Given([make_events(3)] * 5), [kept, full, last]).run()

    assert (kept.closed, full.closed, last.closed) == (1, 1, 1)
    assert sum(b.rows for b in kept.batches) == 6


def test_a_source_that_fails_marks_what_it_leaves() -> None:
    """The capture is closed, holds what came before, and says why it ends."""
    out = io.BytesIO()
    error = KcapError("the disk is gone", offset=7)
    with pytest.raises(KcapError, match="the disk is gone"):
        Pipeline(Given([EVENTS], error), [CaptureWriter(out)]).run()

    reader = opened(out.getvalue())
    assert reader.footer is not None
    *_, loss = reader.footer.totals["loss"]
    assert (loss["kind"], loss["reason"]) == ("torn", "stopped: the disk is gone at byte 7")
    assert rows_of(read(out.getvalue())[0]) == rows_of([EVENTS])


@pytest.mark.parametrize("lenient", [False, True])
def test_a_bad_line_stops_a_strict_import_only(lenient: bool, tmp_path: Path) -> None:
    """Strict: exit code 1, line and byte, a closed output that says so. Lenient: exit code 3."""
    line = json.dumps(OPENED)
    path, target = tmp_path / "events.jsonl", tmp_path / "out.kcap"
    path.write_text(f"{line}\n{line}\nnonsense\n{line}\n")
    place = f"line 3, byte {2 * len(line) + 2}"

    result = run("import", path, "-o", target, *(["--lenient"] if lenient else []))

    assert result.exit_code == (3 if lenient else 1)
    assert result.stderr.count(place) == 1
    found = json.loads(run("info", "--json", target).stdout)
    assert found["state"] == "closed"
    assert found["events"] == (3 if lenient else 2)
    (loss,) = found["loss"]
    assert (loss["kind"], loss["count"]) == (("skipped", 1) if lenient else ("torn", None))
    assert place in loss["reason"]
    assert place in run("info", target).stdout
    assert run("verify", target).exit_code == 0
    if not lenient:
        assert result.stderr.startswith(f"kcap: {path}: ")
        assert "\nhint: --lenient" in result.stderr
        assert run("cat", path).exit_code == 1
    assert run("cat", target).exit_code == 0  # an old loss is no loss of this run


def test_recorded_losses_are_not_losses_of_the_run() -> None:
    """Exit code 3 is for what this run lost; what the capture tells of stands beside it."""
    old = Loss("lost", 5, "then", recorded=True)
    new = Loss("skipped", 2, "now")

    summary = Pipeline(Given([EMPTY.with_before((old,))]), [Kept()]).run()
    assert (summary.exit_code, summary.recorded_losses, summary.lost()) == (0, [old], {})
    summary = Pipeline(Given([EMPTY.with_before((old, new))]), [Kept()]).run()
    assert (summary.exit_code, summary.lost()) == (3, {"skipped": 2})


@pytest.mark.parametrize("limit", [0, 1, 9, 10, 11, 25, 100])
def test_a_limit_is_exact(limit: int) -> None:
    """A run of N events takes no batch more than it needs."""
    parts = [make_events(10, seed=i) for i in range(3)]
    source, sink = Given(parts), Kept()
    summary = Pipeline(source, [sink], limit=limit).run()

    assert summary.events_out == sum(b.rows for b in sink.batches) == min(limit, 30)
    assert source.taken == max(1, min(3, -(-limit // 10)))


def test_the_clock_is_the_greatest_time_so_far() -> None:
    """Event time alone moves it, never back; also events that a filter drops move it."""
    seen: list[int | None] = []

    class Nothing:
        def process(self, batch: Batch) -> Batch:
            seen.append(pipeline.clock.now_ns)
            return batch.slice(0, 0)

    source = Given([timed(None), timed(5, 3), timed(2), timed(9, 1), EMPTY])
    pipeline = Pipeline(source, [Kept()], stages=[Nothing()])
    summary = pipeline.run()

    assert seen == [None, 5, 5, 9, 9]
    assert (summary.events_in, summary.events_out) == (6, 0)


# State


def test_state_is_restored_from_a_snapshot() -> None:
    """What a source's snapshot says is in the table behind the events, and can be handed on."""
    machine = SourceInfo("test", host="h", boot_id="b", origin="00" * 16)
    seed = snapshot(2)
    state = State()
    sink = Kept()
    Pipeline(Given([EMPTY.with_before((machine, seed)), EVENTS]), [sink], state=state).run()

    table = state.snapshot().tables["processes"].to_pylist()
    assert {(r["pid"], r.get("name")) for r in table} >= {(0, "process 0"), (1, "process 1")}

    again = State()
    Pipeline(Given([EMPTY.with_before((machine, state.snapshot()))]), [Kept()], state=again).run()
    assert again.snapshot().tables["processes"].to_pylist() == table


def test_state_of_a_recording_survives_its_rewriting(fixtures: Path, tmp_path: Path) -> None:
    """The fixture's processes: the state after its events is the same from the copy."""
    path, copy = fixtures / "first.kcap", tmp_path / "copy.kcap"
    assert run("replay", path, "--format", "kcap", "-o", copy).exit_code == 0

    tables = []
    for source in (path, copy):
        state = State()
        summary = Pipeline(opened(source.read_bytes()), [Kept()], state=state).run()
        assert summary.events_in > 50
        tables.append(rows_of([state.snapshot().tables["processes"]]))
    assert tables[0] == tables[1]
    assert len(tables[0]) > 1


def test_state_follows_the_events(fixtures: Path, tmp_path: Path) -> None:
    """A rewriting holds a process table; what events add to it shows in the identity they carry."""
    path, copy = fixtures / "first.kcap", tmp_path / "copy.kcap"
    assert run("import", path, "-o", copy).exit_code == 0
    batches = read(copy.read_bytes())[0]
    ((at, rows),) = _snapshots(batches)
    assert at == 0
    assert len(rows) > 1

    before = State()
    Pipeline(Given([b.slice(0, 0) for b in batches[:1]]), [Kept()], state=before).run()
    after = State()
    Pipeline(Given(batches), [Kept()], state=after).run()
    known, now = (
        {row["pid"]: row for row in s.snapshot().tables["processes"].to_pylist()}
        for s in (before, after)
    )
    events = lines_of("cat", copy)
    forked = {e["arg_child_pid"] for e in events if e["event"] == "fork"}
    ended = {e["pid"]: e["arg_exit_code"] for e in events if e["event"] == "exit"}
    assert now.keys() == known.keys() | forked
    assert forked - known.keys()
    assert {p: r["exit_code"] for p, r in now.items() if r.get("exited")} == ended
    assert not any(r.get("exited") for r in known.values())


def test_a_limit_counts_what_is_printed(tmp_path: Path) -> None:
    """State records that are left out do not count for --limit; with --state they do."""
    path = tmp_path / "a.kcap"
    events = make_events(12)
    kinds = dictionary(pa.array(["state", "event"] * 6, pa.utf8()))
    path.write_bytes(capture([events.adding({"kind": Column(TypeClass.STR, kinds)})]))

    assert [e["kind"] for e in lines_of("cat", path, "-n", "4")] == ["event"] * 4
    assert [e["kind"] for e in lines_of("cat", path, "-n", "3", "--state")] == [
        "state",
        "event",
        "state",
    ]
    assert len(lines_of("cat", path, "-n", "4", "--fields", "ts")) == 4
