"""What belongs to events of a recording stays where they do: artifacts, and what they lack."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st

from kcap.format.writer import CaptureWriter
from kcap.model.artifact import Artifact, Parts
from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.naming import argument
from kcap.model.side import EventLoss, Loss
from kcap.model.stream import StreamInfo
from kcap.readers.live.artifacts.companion_hashes import Executions, Hashes
from kcap.readers.live.artifacts.protocol import HASHED, HashNote
from kcap.replay.pipeline import Pipeline, Summary
from kcap.tools.artifact_stage import WithArtifacts

_WATCHED_NS = 3
_INODE = argument("inode")


def executions(rows: int, first: int = 0) -> Batch:
    """Executions, each at the time, in the process and of the inode of its place."""
    places = pa.array(range(first, first + rows), pa.int64())
    ones = pa.array([1] * rows, pa.int64())
    numbers = dict.fromkeys(("ord", "ts", "pid", _INODE), places)
    numbers |= dict.fromkeys((argument("dev"), argument("ctime")), ones)
    columns = {name: Column(TypeClass.I64, values) for name, values in numbers.items()}
    columns["origin"] = constant(TypeClass.STR, "o", rows)
    columns["event"] = constant(TypeClass.STR, "sched_process_exec", rows)
    return Batch(rows, columns)


class Choosing:
    """A stage that keeps some places."""

    def __init__(self, kept: Collection[int]) -> None:
        self._kept = sorted(kept)

    def process(self, batch: Batch) -> Batch:
        """Keep these."""
        kept = np.isin(batch.numpy("ord", -1), self._kept)
        return batch.take(np.flatnonzero(kept).astype(np.int32))


class Recording:
    """A live source, and a sink of what becomes of it."""

    info = StreamInfo("test", "test", (), live=True)

    def __init__(self, *batches: Batch) -> None:
        self._batches = batches
        self.sides: list[object] = []

    def batches(self) -> Iterator[Batch]:
        """Give what there is."""
        yield from self._batches

    def write(self, batch: Batch) -> None:
        """Keep what stands beside events."""
        self.sides += batch.before

    def close(self) -> None:
        """Nothing is open."""


class Alerting:
    """A rule that fires at some rows: events and alerts are in order, so batches are cut there."""

    losses = ()

    def __init__(self, rows: Collection[int]) -> None:
        self._rows = rows

    def see(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """Fire."""
        return ((row, Batch(0, {})) for row in self._rows if row <= batch.rows)

    def end(self) -> Iterator[Batch]:
        """Say nothing more."""
        return iter(())

    def close(self) -> None:
        """Nothing is open."""


def recorded(
    batch: Batch, kept: Collection[int] | None, *cuts: int
) -> tuple[Summary, list[object]]:
    """What a recording tells where it keeps some places; None for all."""
    recording = Recording(batch)
    stages = [] if kept is None else [Choosing(kept)]
    stage = WithArtifacts(stages, None, alone=False)
    summary = Pipeline(recording, [recording], taps=[Alerting(cuts)], stages=[stage]).run()
    return summary, recording.sides


def without_hash(rows: int, known: Collection[int] = ()) -> Batch:
    """Executions, and what is lost as their hashes are not known."""
    batch, hashes = executions(rows), Hashes()
    for at in known:
        hashes.add([HashNote(at, HASHED, 1, at, 1, 0, b"\1" * 32)], ())
    found = Executions(batch, np.arange(rows))
    found.look(hashes, _WATCHED_NS)
    return found.told(batch).with_before(found.lost(batch, "source", _WATCHED_NS))


@given(
    kept=st.none() | st.sets(st.integers(0, 9)),
    known=st.sets(st.integers(0, 9)),
    cuts=st.sets(st.integers(0, 10)),
)
def test_only_of_what_is_kept_a_hash_is_lost(
    kept: set[int] | None, known: set[int], cuts: set[int]
) -> None:
    """Whatever a scope leaves out, and wherever alerts cut the batch."""
    summary, sides = recorded(without_hash(10, known), kept, *sorted(cuts))

    lacking = (set(range(10)) if kept is None else kept) - known
    early = {place for place in lacking if place < _WATCHED_NS}
    expected = {"blind": len(early), "lost": len(lacking - early)}
    assert summary.lost() == {kind: count for kind, count in expected.items() if count}
    assert summary.exit_code == (3 if lacking else 0)
    told = [side for side in sides if isinstance(side, Loss)]
    assert {loss.kind: loss.count for loss in told} == summary.lost(), "as the capture has it"


@pytest.mark.parametrize("cut", range(6))
def test_an_artifact_stays_with_its_event_wherever_alerts_cut(cut: int) -> None:
    """It may stand before the batch that its event is in; the control is of what is left out."""
    found = [Artifact("exec", Parts(()), path, "o", at) for path, at in (("kept", 4), ("not", 3))]

    _, sides = recorded(executions(5).with_before(found), {0, 4}, cut)

    assert [side.path for side in sides if isinstance(side, Artifact)] == ["kept"]


def test_losses_of_many_batches_are_one(tmp_path: Path) -> None:
    """A recording of weeks tells of each reason and source once, and so does what it wrote."""
    recording = Recording(
        *(
            executions(3, first).with_before([EventLoss("lost", 1, "r", origin="o", ords=(first,))])
            for first in range(0, 30, 3)
        )
    )
    stage = WithArtifacts([], None, alone=False)

    summary = Pipeline(recording, [recording], stages=[stage]).run()

    assert summary.losses == [Loss("lost", 10, "r")]
    with (tmp_path / "r.kcap").open("wb") as stream:
        writer = CaptureWriter(stream)
        for side in recording.sides:
            assert isinstance(side, EventLoss)
            writer.write(executions(1, side.ords[0]).with_before([side]))
        writer.write(executions(1, 30).with_before([Loss("lost", 2, "r", "another source")]))
        writer.close()
    told = json.loads(run("info", "--json", tmp_path / "r.kcap").stdout)["loss"]
    assert {(each["source"], each["count"]) for each in told} == {(None, 10), ("another source", 2)}
    assert len(told) == 2, "the control: of two sources they are two"
    text = run("info", tmp_path / "r.kcap").stdout
    assert text.count("lost 10 events: r") == 1
