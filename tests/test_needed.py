"""The processes that a selection of events refers to, and the states of a copy."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cli_support import run
from filter_support import HASHED, NS, planted, saved, told
from hypothesis import given, settings
from hypothesis import strategies as st
from support import read
from test_merge import Given, divided
from test_state import HOST, event, fork, make_batch

from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Side
from kcap.replay import needed
from kcap.replay.needed import Needed
from kcap.replay.pipeline import Pipeline, Stage
from kcap.state import State, processes
from kcap.state.processes import Process


def test_needed_state_is_the_processes_of_the_events_and_their_ancestors(tmp_path: Path) -> None:
    """Process 1 and its parent 7, not 2, and one snapshot at the start."""
    source = planted(tmp_path / "in.kcap")

    run("filter", "-w", "ps.pid = 1", source, "-o", tmp_path / "out.kcap")

    assert told(tmp_path / "out.kcap") == [{1: "mine", 7: "parent"}]


def lives(rows: list[dict[str, Any]], *before: Side) -> Batch:
    """Events of processes."""
    numbered = [{**row, "ts": NS + i, "event": row["action"]} for i, row in enumerate(rows)]
    batch = make_batch(numbered, *before)
    ords = Column(TypeClass.I64, pa.array(np.arange(batch.rows)))
    return batch.adding({"ord": ords, "origin": constant(TypeClass.STR, HASHED, batch.rows)})


def starts(pid: int, name: str, start_ns: int, **more: Any) -> dict[str, Any]:
    """A process is seen, with what is known of it."""
    more = {"process_name": name, "process_start_ns": start_ns, **more}
    return event("process_rundown", pid, **more)


AGAIN = [
    starts(10, "first", 10**9),
    event("file_open", 10),
    event("process_stop", 10),
    starts(10, "second", 6 * 10**9),
    event("file_open", 10),
]
"""A process id that comes again."""


def test_a_process_id_that_comes_again_has_a_snapshot_of_its_own(tmp_path: Path) -> None:
    """The state at the second use is that of the second process."""
    source = saved(tmp_path / "in.kcap", [lives(AGAIN, HOST)])

    result = run("filter", "-w", "evt.name = 'file_open'", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 0, result.output
    assert told(tmp_path / "out.kcap") == [{10: "first"}, {10: "second"}]
    batches, _ = read((tmp_path / "out.kcap").read_bytes())
    assert [b.rows for b in batches if b.rows] == [1, 1]


def test_a_process_that_an_event_of_the_copy_brings_up_is_not_there_before(tmp_path: Path) -> None:
    """Nothing is in the start's state that the copy's own events tell."""
    source = saved(tmp_path / "in.kcap", [lives(AGAIN[:2], HOST)])

    run("filter", "-w", "ps.pid = 10", source, "-o", tmp_path / "out.kcap")

    assert told(tmp_path / "out.kcap") == []


def test_processes_that_find_no_room_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that would be too large lacks processes; that is said, and leads to exit code 3."""
    monkeypatch.setattr(needed, "BYTES_MAX", 600)
    source = planted(tmp_path / "in.kcap")

    result = run("filter", "-w", "ps.pid = 1", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 3
    assert "1 process found no room in the state" in result.stderr
    assert told(tmp_path / "out.kcap") == [{1: "mine"}]
    assert "found no room" in run("info", tmp_path / "out.kcap").stdout


def test_snapshots_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process id comes again too often, the last snapshot stays, and that is said."""
    monkeypatch.setattr(needed, "SNAPSHOTS_MAX", 1)
    again = [*AGAIN, event("process_stop", 10), starts(10, "third", 12 * 10**9)]
    source = saved(tmp_path / "in.kcap", [lives([*again, event("file_open", 10)], HOST)])

    result = run("filter", "-w", "evt.name = 'file_open'", source, "-o", tmp_path / "out.kcap")

    assert result.exit_code == 3
    assert told(tmp_path / "out.kcap") == [{10: "first"}, {10: "second"}]


PIDS = st.integers(10, 13)
STEPS = st.lists(
    st.one_of(
        st.builds(starts, PIDS, st.sampled_from("abc"), st.integers(1, 3).map(lambda n: n * 10**9)),
        st.builds(starts, PIDS, st.just("child"), st.just(4 * 10**9), ppid=PIDS),
        st.builds(fork, PIDS, PIDS, st.integers(5, 9).map(lambda n: n * 10**9)),
        st.builds(lambda pid: event("process_stop", pid), PIDS),
        st.builds(lambda pid: event("file_open", pid), PIDS),
        st.builds(lambda pid, ppid: event("file_open", pid, ppid=ppid), PIDS, PIDS),
    ),
    max_size=25,
)


class _Chosen:
    """A stage that keeps the events of some actions."""

    def __init__(self, actions: Collection[str]) -> None:
        self._actions = actions

    def process(self, batch: Batch) -> Batch:
        actions = batch.array("action").to_pylist()
        return batch.take(np.flatnonzero([a in self._actions for a in actions]).astype(np.int32))


def gathered(batches: list[Batch], *actions: str) -> list[tuple[int, dict[int, Process]]]:
    """The snapshots for the events of some actions in a stream."""
    found = Needed()
    stages: list[Stage] = [found, _Chosen(actions)]
    Pipeline(Given(batches), [found], state=found.state, stages=stages).run()
    tables = [(at, processes.from_batch(s.tables["processes"])) for at, s in found.snapshots()]
    return [(at, {p.pid: p for all_ in table.values() for p in all_}) for at, table in tables]


def cut(steps: list[dict[str, Any]], cuts: list[int]) -> tuple[list[Batch], list[Batch]]:
    """A stream that is cut somewhere, and one event by event."""
    whole = lives(steps, HOST) if steps else Batch(0, {}, (HOST,))
    return divided(whole, cuts), divided(whole, list(range(25)))


CUTS = st.lists(st.integers(0, 25), max_size=5)
ACTIONS = st.sets(
    st.sampled_from(["file_open", "process_rundown", "process_fork", "process_stop"]), min_size=1
)


@given(STEPS, CUTS, ACTIONS)
@settings(max_examples=100, deadline=None)
def test_who_is_needed_does_not_depend_on_batches(
    steps: list[dict[str, Any]], cuts: list[int], actions: set[str]
) -> None:
    """However the stream is cut, the snapshots are the same."""
    batches, singly = cut(steps, cuts)

    assert gathered(batches, *actions) == gathered(singly, *actions)


@given(STEPS, CUTS)
@settings(max_examples=60, deadline=None)
def test_a_process_is_as_it_was_before_the_first_event_that_means_it(
    steps: list[dict[str, Any]], cuts: list[int]
) -> None:
    """The snapshots are what following single events tells."""
    batches, singly = cut(steps, cuts)
    state = State()
    held: dict[int, Process] = {}
    expected: dict[int, Process] = {}
    for batch in singly:
        state.update(batch)
        for row in batch.to_pylist():
            for pid in (row["pid"], row.get("ppid")) if row["action"] == "file_open" else ():
                for known in _line(state, pid, held):
                    expected.setdefault(known.pid, known)

    first: dict[int, Process] = {}
    for _, table in gathered(batches, "file_open"):
        first = {**table, **first}

    assert first == expected


def _line(state: State, pid: Any, held: dict[int, Process]) -> Iterator[Process]:
    """A process and its ancestors, up to one that is known already."""
    wanted = None
    while (known := None if pid is None else state.process(pid)) is not None:
        mine = held.get(known.pid)
        if wanted not in {None, known.process_key}:
            return
        if mine is not None and mine.process_key == known.process_key:
            return
        held[known.pid] = known
        yield known
        pid, wanted = known.ppid, known.parent_key
