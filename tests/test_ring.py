"""The last minute in memory: what is written is all of that time, from the state at its start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import run
from durability_support import ords, process_events
from hypothesis import given, settings
from hypothesis import strategies as st
from rotation_support import (
    UNSYNCED,
    MadeSource,
    cut,
    parts,
    record,
    recorded_events,
    series,
    start_of,
)
from support import opened, rows_of

from kcap.errors import FullError
from kcap.model.batch import Batch
from kcap.model.side import Loss, SourceInfo
from kcap.replay.pipeline import FILTERED, Summary
from kcap.state import State
from kcap.tools.ring import WINDOW, Asked, Ring
from kcap.tools.series import Series

EVENTS = process_events(600, 100.0).with_before(recorded_events().before)
BATCH = 10
ASKED = Asked(before_s=20.0, after_s=3.0, size=64 << 20)


def ring(
    folder: Path,
    triggers: dict[int, str],
    asked: Asked = ASKED,
    events: Batch = EVENTS,
    found: Series | None = None,
) -> tuple[Summary, Ring]:
    """Record a batch of 10 events a second; ``triggers`` says what asks, by second."""
    state = State()
    sink = Ring(found or series(folder), state, asked, UNSYNCED, 0.0, writing={})
    seconds: Iterator[int] = iter(range(1 << 30))
    now = 0.0

    def tick(_: Summary) -> None:
        nonlocal now
        now = float(next(seconds))
        if int(now) in triggers:
            sink.trigger(triggers[int(now)])

    batches = cut(events, [BATCH] * (events.rows // BATCH - 1))
    summary = record(MadeSource(batches), sink, state, tick, lambda: now)
    return summary, sink


def numbers(path: Path) -> list[int]:
    """The number of each event of a capture."""
    return [o for batch in opened(path.read_bytes()).batches() for o in ords(batch)]


def sides(path: Path, kind: type) -> list[object]:
    """What stands beside the events."""
    return [s for b in opened(path.read_bytes()).batches() for s in b.before if isinstance(s, kind)]


def at(second: int) -> int:
    """Events until the end of a second: the first batch has none."""
    return BATCH * second


@given(st.integers(1, 50), st.integers(0, 8), st.integers(10, 40))
@settings(max_examples=2, deadline=None)
def test_what_is_written_is_all_of_the_time(second: int, after_s: int, before_s: int) -> None:
    """From at least the time asked for, a tenth more at most, to what comes after; each once."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = ASKED._replace(before_s=float(before_s), after_s=float(after_s))
        summary, sink = ring(folder, {second: "test"}, asked)
        (path,) = parts(folder)
        found = numbers(path)

        assert found == list(range(found[0], found[-1] + 1))
        assert found[0] <= at(max(0, second - before_s))
        assert found[0] >= at(max(0, second - before_s - before_s // 10 - 2))
        assert found[-1] + 1 == min(at(second + after_s), EVENTS.rows)
        assert sink.names == [str(path)]
        assert summary.exit_code == 0
        assert run("verify", path).exit_code == 0
        left = [s for s in sides(path, Loss) if s.kind == FILTERED]  # type: ignore[attr-defined]
        assert sum(s.count for s in left) == found[0]  # type: ignore[attr-defined]


def test_the_state_is_that_before_the_first_event(tmp_path: Path) -> None:
    """As if all events before had been followed; and not that of when it was asked for."""
    ring(tmp_path, {45: "test"})
    (path,) = parts(tmp_path)
    first = numbers(path)[0]
    state = State()
    state.update(EVENTS.slice(0, first), resolve=True)

    start = start_of(path).tables["processes"]

    assert first > 200
    assert rows_of([start]) == rows_of([state.snapshot().tables["processes"]])
    state.update(EVENTS.slice(first, at(45)).with_before(()), resolve=True)
    assert rows_of([start]) != rows_of([state.snapshot().tables["processes"]])


def test_each_time_it_is_asked_there_is_another_file(tmp_path: Path) -> None:
    """While one is written it goes on instead; the file says how often, and what asked."""
    ring(tmp_path, {28: "one", 30: "two", 45: "three"})
    first, second = parts(tmp_path)

    assert (numbers(first)[-1] + 1, numbers(second)[-1] + 1) == (at(33), at(48))
    *_, info = sides(first, SourceInfo)
    assert isinstance(info, SourceInfo)
    assert info.details[WINDOW] == {"after_s": 3.0, "asked_by": ["one", "two"], "before_s": 20.0}


def test_asked_for_while_a_file_ends(tmp_path: Path) -> None:
    """With nothing to come after, each time there is a file; none is forgotten."""
    ring(tmp_path, {s: str(s) for s in (40, 41, 42, 43)}, ASKED._replace(after_s=0.0))
    told = [
        s.details[WINDOW]["asked_by"] for p in parts(tmp_path) for s in sides(p, SourceInfo)[-1:]
    ]  # type: ignore[attr-defined]
    assert sorted(reason for one in told for reason in one) == ["40", "41", "42", "43"]


def test_the_end_completes_the_file(tmp_path: Path) -> None:
    """Asked for just before the end: what there is of the time after is in it."""
    last = EVENTS.rows // BATCH
    ring(tmp_path, {last - 3: "test"})
    (path,) = parts(tmp_path)
    assert numbers(path)[-1] == EVENTS.rows - 1
    assert run("verify", path).exit_code == 0


def test_what_nobody_asks_for_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And that is said."""
    summary, sink = ring(tmp_path, {})
    assert parts(tmp_path) == []
    assert sink.names == []
    assert summary.exit_code == 0
    assert "nothing was written" in capsys.readouterr().err


def test_memory_is_bounded_and_what_it_costs_is_counted(tmp_path: Path) -> None:
    """The oldest go where all is too much; the file says how many are missing of its time."""
    asked = ASKED._replace(size=60_000)
    summary, sink = ring(tmp_path, {45: "test"}, asked)
    (path,) = parts(tmp_path)
    found = numbers(path)

    assert found[0] > at(27)
    (lost,) = [s for s in sides(path, Loss) if s.kind == "lost"]  # type: ignore[attr-defined]
    assert at(17) <= lost.count + at(45) - found[0] <= at(24)  # type: ignore[attr-defined]
    assert summary.exit_code == 3
    assert sink.held_bytes <= asked.size


def test_without_room_the_recording_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can't be written is said, exit code 3; what is asked for later is written."""
    found = series(tmp_path)
    create, asked = found.create, []

    def full() -> object:
        asked.append(1)
        if len(asked) == 1:
            raise FullError("no room")
        return create()

    found.create = full  # type: ignore[method-assign, assignment]
    summary, _ = ring(tmp_path, {20: "one", 45: "two"}, found=found)
    assert summary.exit_code == 3
    assert "could not be written: no room" in capsys.readouterr().err
    (path,) = parts(tmp_path)
    assert numbers(path)[-1] + 1 == at(48)
