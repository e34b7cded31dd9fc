"""What belongs to events of a recording stays where they do: artifacts, and what they lack."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from cli_support import run
from hypothesis import strategies as st

from kcap.format.writer import CaptureWriter
from kcap.model.artifact import Artifact, Parts
from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.naming import argument
from kcap.model.side import EventLoss, Loss
from kcap.model.stream import StreamInfo
from kcap.readers.live.artifacts.companion_hashes import Executions, Hashes
from kcap.readers.live.artifacts.left_out import LEFT_OUT_BYTES, UNHELD
from kcap.readers.live.artifacts.protocol import HASHED, HashNote
from kcap.replay.pipeline import Pipeline, Summary
from kcap.tools.artifact_stage import WithArtifacts

_WATCHED_NS = 3
_INODE = argument("inode")
_EXECUTED: Final = argument("exe_sha256")


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


@hypothesis.given(
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


def with_programs(programs: Sequence[int], first: int) -> Batch:
    """Executions of programs, which have hashes."""
    hashes = pa.array([sha256(program) for program in programs]).dictionary_encode()
    return executions(len(programs), first).adding({_EXECUTED: Column(TypeClass.STR, hashes)})


def sha256(program: int) -> str:
    """The hash of a program."""
    return f"{program:064x}"


def file_of(program: int, place: int, size: int = 10) -> Artifact:
    """What a reader gives of a program, as of the execution at a place."""
    held = Parts((bytes([program]) * size,))
    details = {"pid": place, "dev": 0, "inode": program, "sha256": sha256(program), "mode": 1}
    return Artifact("exec", held, f"program-{program}", "o", place, details=details)


def given(
    batches: Sequence[Sequence[int]], named: Sequence[int], kept: Collection[int],
    cuts: Collection[int] = (), *, held_bytes: int = LEFT_OUT_BYTES, size: int = 10,
    files: Collection[int] = (),
) -> tuple[list[Artifact], Summary]:  # fmt: skip
    """What is recorded where readers give each program once, with an execution of its first batch.

    Args:
        batches: The programs that are executed.
        named: Which of several executions of a program a reader names.
        kept: Places of events that are kept.
        cuts: Rows at which alerts cut each batch.
        held_bytes: What may be held.
        size: Of each program, in bytes.
        files: Batches with which another file begins: readers give again what comes again.

    Returns:
        Artifacts, and what the run did.
    """
    known: set[int] = set()
    made, first = [], 0
    for number, programs in enumerate(batches):
        sides = []
        known = set() if number in files else known
        for program in sorted(set(programs) - known):
            rows = [row for row, each in enumerate(programs) if each == program]
            sides.append(file_of(program, first + rows[named[program] % len(rows)], size))
        known |= set(programs)
        made.append(with_programs(programs, first).with_before(sides))
        first += len(programs)
    recording = Recording(*made)
    stage = WithArtifacts([Choosing(kept)], None, alone=False, held_bytes=held_bytes)
    summary = Pipeline(recording, [recording], taps=[Alerting(cuts)], stages=[stage]).run()
    return [side for side in recording.sides if isinstance(side, Artifact)], summary


_PROGRAMS: Final = 4
_BATCHES = st.lists(st.lists(st.integers(0, _PROGRAMS - 1), min_size=1, max_size=6), max_size=5)
_NAMED = st.lists(st.integers(0, 5), min_size=_PROGRAMS, max_size=_PROGRAMS)


@hypothesis.given(_BATCHES, _NAMED, st.sets(st.integers(0, 29)), st.sets(st.integers(0, 6)))
def test_what_is_executed_is_kept_with_its_first_execution_that_is(
    batches: list[list[int]], named: list[int], kept: set[int], cuts: set[int]
) -> None:
    """Whoever executed it before, and wherever alerts cut; of what only others execute nothing."""
    artifacts, summary = given(batches, named, kept, sorted(cuts))

    ran = [program for batch in batches for program in batch]
    within = {place: program for place, program in enumerate(ran) if place in kept}
    assert Counter(a.details["sha256"] for a in artifacts) == dict.fromkeys(
        map(sha256, within.values()), 1
    )
    firsts = {}
    for place, program in within.items():
        firsts.setdefault(sha256(program), place)
    own = {a.details["sha256"]: a.ord for a in given(batches, named, range(30))[0]}
    for artifact in artifacts:
        of = artifact.details["sha256"]
        assert artifact.origin == "o"
        assert artifact.ord == (own[of] if own[of] in kept else firsts[of])
        assert artifact.details["pid"] == artifact.ord, "it says of whom it is"
        assert b"".join(artifact.content.parts()) == bytes([int(of, 16)]) * 10  # type: ignore[arg-type]
    assert not summary.losses


@hypothesis.given(_BATCHES, _NAMED, st.sets(st.integers(0, 29)), st.integers(0, _PROGRAMS))
def test_what_there_was_no_room_for_is_counted_when_it_is_asked_for(
    batches: list[list[int]], named: list[int], kept: set[int], room: int
) -> None:
    """Each program that is executed is there or counted, once; the oldest goes first."""
    artifacts, summary = given(batches, named, kept, held_bytes=room * 14_096, size=10_000)

    ran = [program for batch in batches for program in batch]
    within = {program for place, program in enumerate(ran) if place in kept}
    assert len(artifacts) + (summary.lost().get("lost", 0)) == len(within)
    assert {loss.reason for loss in summary.losses} <= {UNHELD[1]}
    assert summary.exit_code == (3 if summary.losses else 0)
    if room == _PROGRAMS:
        assert len(artifacts) == len(within), "the control: there was room"


def test_the_oldest_is_let_go() -> None:
    """Of three that nobody keeps two are held; what is kept of another file says so."""
    artifacts, summary = given([[0, 1, 2], [0, 1, 2]], [0] * 3, range(3, 6), held_bytes=2 * 4106)

    assert [a.ord for a in artifacts] == [4, 5]
    assert summary.losses == [Loss("lost", 1, UNHELD[1], start_ns=3, end_ns=3)]
    assert artifacts[0].path is None, "its event has none; that of another file is not its own"
    assert "mode" not in artifacts[0].details


def test_each_file_has_its_own() -> None:
    """What readers give again is not given twice, and what others execute first is there, too."""
    ran = [[0], [0], [0], [0], [0]]

    assert [a.ord for a in given(ran, [0], {1, 2}, files={1})[0]] == [1]
    assert [a.ord for a in given(ran, [0], {1, 4}, files={3})[0]] == [1, 4]
    assert [a.ord for a in given(ran, [0], {1, 2, 4})[0]] == [1], "the control: one file"


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
