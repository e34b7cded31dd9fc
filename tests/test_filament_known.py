"""What filaments are told of processes and handles: the same as the state, for less."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from kcap.filament.known import Known
from kcap.model.batch import EMPTY, Batch, concat
from kcap.model.side import Snapshot, SourceInfo
from kcap.opening import open_source
from kcap.state import State, fds, handles, processes
from kcap.state.fds import Descriptor
from kcap.state.handles import Handle
from kcap.state.processes import Process
from kcap.state.state import FDS, HANDLES, PROCESSES

FIRST = Path(__file__).parent.parent / "fixtures" / "first.kcap"
HOST = SourceInfo("netlink-proc", host="host", boot_id="boot", origin="0f" * 16)


def known(batch: Batch) -> Known:
    """What is known at the end of a batch."""
    made = Known()
    made.begin(batch)
    made.answer(batch.rows, "process", [0])
    return made


def crowd(count: int, files: int) -> Known:
    """Processes 1, 2 … with so many descriptors each; process 1 has one."""
    open_ = [Descriptor(pid, fd, "file", "/f") for pid in range(2, count) for fd in range(files)]
    tables = {
        PROCESSES: processes.to_batch([("boot", [Process(pid) for pid in range(1, count)])]),
        FDS: fds.to_batch([("boot", [Descriptor(1, 0, "file", "/one"), *open_])]),
        HANDLES: handles.to_batch([("boot", [Handle(1, 0, name="H"), Handle(1, 4), Handle(2, 8)])]),
    }
    return known(EMPTY.with_before((HOST, Snapshot(tables))))


def steps(of: Known, what: str, arguments: list[Any]) -> int:
    """How many functions of Python and of C are called for an answer."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        of.answer(0, what, arguments)
    finally:
        sys.setprofile(before)
    return calls


def test_answers_are_what_a_snapshot_says() -> None:
    """The processes that run are those of the whole state, at every place of a capture."""
    with closing(open_source(str(FIRST))) as capture:
        whole = concat(list(capture.batches()))
    counts = set()
    for rows in range(1, whole.rows + 1, 6):
        part = whole.slice(0, rows)
        state = State()
        state.update(part)
        machine = state.machines_of(part)[0][-1]
        told = processes.from_batch(state.snapshot().tables[PROCESSES])[machine]
        running = [p.pid for p in told if not p.exited]
        counts.add((len(running), len(told)))

        assert [p["pid"] for p in known(part).answer(rows, "processes", [None])] == running
    assert len(counts) > 3


def test_handles_and_descriptors_are_told_together() -> None:
    """A process may have both; where a number is both it is the handle, and others' stay out."""
    of = crowd(4, 3)

    assert [(h["handle"], h["name"]) for h in of.answer(0, "handles", [1])] == [(0, "H"), (4, "")]
    assert [h["handle"] for h in of.answer(0, "handles", [2])] == [0, 1, 2, 8]
    assert of.answer(0, "handles", [99]) == []


def test_asking_for_a_process_costs_one_process() -> None:
    """What others have open costs nothing: an answer takes as many steps beside few as many."""
    few, many = crowd(4, 3), crowd(400, 30)

    assert steps(many, "handles", [1]) == steps(few, "handles", [1])
    # What costs more is seen: this process has more itself.
    assert steps(many, "handles", [2]) > steps(few, "handles", [2])


def test_asking_for_processes_reads_no_descriptors() -> None:
    """The same processes cost the same, however much they have open."""
    assert steps(crowd(40, 100), "processes", [None]) == steps(crowd(40, 1), "processes", [None])
    assert steps(crowd(80, 1), "processes", [None]) > steps(crowd(40, 1), "processes", [None])
