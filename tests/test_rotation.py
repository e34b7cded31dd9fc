"""Recordings in parts: nothing is lost or twice, whatever the cuts, and each part is complete."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import click
import pytest
from cli_support import run
from hypothesis import given, settings
from hypothesis import strategies as st
from rotation_support import MadeSource, cut, parts, record, recorded_events, rotated, start_of
from support import opened, read, rows_of

from kcap.errors import FullError, OutputError
from kcap.model.batch import Batch
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.replay.origins import PART
from kcap.replay.pipeline import Summary
from kcap.state import State
from kcap.tools import series
from kcap.tools.outputs import LocalOutputs
from kcap.tools.parts import Template, with_number
from kcap.tools.recorded import Rotation

EVENTS = recorded_events()


def ords(path: Path) -> list[int]:
    """The number of each event of a capture."""
    return [int(o) for b in opened(path.read_bytes()).batches() for o in b.numpy("ord", -1)]


def content(path: Path) -> object:
    """The content hash of a closed capture."""
    footer = opened(path.read_bytes()).footer
    assert footer is not None
    return footer.totals["content_hash"]


def rotated_at(folder: Path, lengths: list[int], turns: set[int], **options: object) -> Summary:
    """Record batches of these lengths; a part begins behind each of ``turns``."""
    state = State()
    with rotated(folder, state, **options) as sink:  # type: ignore[arg-type]
        count = iter(range(len(lengths) + 3))

        def turn(_: Summary) -> None:
            if next(count) in turns:
                sink.rotate()

        return record(MadeSource(cut(EVENTS, lengths)), sink, state, turn)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.sets(st.integers(0, 12), max_size=6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=8, deadline=None)
def test_parts_together_are_the_recording(
    lengths: list[int], turns: set[int], random: Random
) -> None:
    """Whatever the batches and the cuts: `ord` goes on, and merging gives the unsplit content."""
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        summary = rotated_at(Path(one), lengths, turns)
        rotated_at(Path(other), lengths, set())
        found, (whole,) = parts(Path(one)), parts(Path(other))

        assert summary.exit_code == 0
        assert [o for part in found for o in ords(part)] == ords(whole)
        assert len(ords(whole)) == EVENTS.rows
        assert len(found) == 1 + len([t for t in turns if t <= len(lengths) + 1])
        random.shuffle(found)
        if len(found) > 1:
            merged = Path(other) / "merged.kcap"
            assert run("merge", *found, "-o", merged).exit_code == 0
            assert content(merged) == content(whole)
            assert read(merged.read_bytes())[1] == []
            # Without any of the parts that has events it is another one.
            some = [part for part in found if part != max(found, key=lambda p: len(ords(p)))]
            run("merge", "--force", *some, "-o", merged)
            assert content(merged) != content(whole)


def test_a_part_begins_with_the_state_there(tmp_path: Path) -> None:
    """What a part says of the host at its start is what the events before it have made of it."""
    rotated_at(tmp_path, [30, 30, 30], {1, 2})
    first, *later = parts(tmp_path)
    expected = State()
    expected.update(opened_sides(first))

    for before, part in zip([first, *later], later, strict=False):
        for batch in opened(before.read_bytes()).batches():
            expected.update(batch.with_before(()), resolve=False)
        start = start_of(part)
        names = start.tables.keys() & expected.snapshot().tables.keys()
        assert "processes" in names
        for name in names:
            assert rows_of([start.tables[name]]) == rows_of([expected.snapshot().tables[name]])
        # What nobody follows is as the recording began with it.
        assert start.tables.keys() == start_of(first).tables.keys() | names
        assert run("verify", part).exit_code == 0


def opened_sides(path: Path) -> Batch:
    """What stands before the first event of a capture."""
    sides = []
    for batch in opened(path.read_bytes()).batches():
        sides += [s for s in batch.before if isinstance(s, SourceInfo | Snapshot)]
        if batch.rows:
            break
    return EVENTS.slice(0, 0).with_before(sides)


def test_a_part_says_which_it_is(tmp_path: Path) -> None:
    """Its source has the part's number, and the number of the last event before it."""
    rotated_at(tmp_path, [30, 30], {1, 2})
    last = -1
    for number, part in enumerate(parts(tmp_path), 1):
        (info,) = {
            s.id: s
            for b in opened(part.read_bytes()).batches()
            for s in b.before
            if isinstance(s, SourceInfo)
        }.values()
        assert info.details[PART] == {"after": None if last < 0 else last, "number": number}
        last = max(ords(part), default=last)


# Names


@pytest.mark.parametrize(
    ("given_", "name"),
    [
        ("host.kcap", "host-000007.kcap"),
        ("a.b/host", "a.b/host-000007.kcap"),
        ("host-{n:03}.kcap", "host-007.kcap"),
        ("host-{n}-{time}.kcap", "host-7-19700101T000000Z.kcap"),
        ("host-{time}.kcap", "host-19700101T000000Z-000007.kcap"),
    ],
)
def test_names(given_: str, name: str) -> None:
    """A name without a number gets one; a template says where number and time stand."""
    assert Template(with_number(given_), by=False, timed=True).name(7, "") == name


@pytest.mark.parametrize("given_", ["{", "{x}.kcap", "{n!r}.kcap", "{n}/a.kcap", "{time:x}.kcap"])
def test_names_that_can_not_be(given_: str) -> None:
    """Braces that mean nothing are refused."""
    with pytest.raises(click.UsageError):
        Template(with_number(given_), by=False, timed=True)


def test_a_recording_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    """By number, not by name; what has another name does not count."""
    for name in ("p-2.kcap", "p-10.kcap", "p-x.kcap", "q-99.kcap", "p-11.kcap.partial"):
        (tmp_path / name).write_bytes(b"old")
    rotated_at(tmp_path, [9], {0})
    assert [path.name for path in parts(tmp_path)] == [
        "p-2.kcap",
        "p-10.kcap",
        "p-11.kcap",
        "p-12.kcap",
    ]
    assert (tmp_path / "p-10.kcap").read_bytes() == b"old"


def test_times_stand_before_numbers_or_behind(tmp_path: Path) -> None:
    """The number tells which part is the last, wherever the time stands."""
    for text in ("p-{time}-{n}.kcap", "q-{n}-{time}.kcap"):
        template = Template(str(tmp_path / text), by=False, timed=True)
        for number, seconds in ((1, 9), (10, 3), (2, 50)):
            Path(template.name(number, "", seconds)).touch()
        assert [number for number, _ in template.numbered()] == [1, 2, 10]


def test_a_name_that_others_took_is_passed_over(tmp_path: Path) -> None:
    """A file or a link that appears meanwhile is never written to."""
    state = State()
    with rotated(tmp_path, state) as sink:
        (tmp_path / "p-2.kcap").symlink_to(tmp_path / "elsewhere")
        sink.rotate()
        record(MadeSource(cut(EVENTS, [5])), sink, state)
    assert [Path(name).name for name in sink.names] == ["p-1.kcap", "p-3.kcap"]
    assert not (tmp_path / "elsewhere").exists()


def test_too_many_names_that_others_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes all names ends the recording with an error, not a loop."""
    monkeypatch.setattr(series, "_TRIES", 3)

    def taken(name: str) -> object:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)

    made = LocalOutputs(synced=False)
    monkeypatch.setattr(made, "create", taken)
    with pytest.raises(OutputError, match="exists already"):
        rotated(tmp_path, State(), outputs=made)


def test_files_are_private_and_new(tmp_path: Path) -> None:
    """What is created is nobody else's, and was not there."""
    made = LocalOutputs(synced=True)
    with made.create(str(tmp_path / "a")):
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        made.create(str(tmp_path / "a"))
    with pytest.raises(OutputError, match="can't be written"):
        made.create(str(tmp_path / "no" / "a"))
    made.remove(str(tmp_path / "a"))
    made.remove(str(tmp_path / "a"))
    with pytest.raises(OutputError, match="can't be removed"):
        made.remove(str(tmp_path))


# How many stay


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_only_the_newest_stay(keep: int, tmp_path: Path) -> None:
    """Those of former recordings go first; what a part says of its place stays true."""
    for number in (1, 2):
        (tmp_path / f"p-{number}.kcap").write_bytes(b"old")
    rotated_at(tmp_path, [20, 20, 20], {0, 1, 2}, rotation=Rotation(keep=keep))
    found = [path.name for path in parts(tmp_path)]
    assert found == [f"p-{number}.kcap" for number in range(1, 7)][-keep:]
    assert ords(parts(tmp_path)[-1])[-1] == EVENTS.rows - 1


def test_what_can_not_be_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning, and the recording goes on."""
    made = LocalOutputs(synced=False)

    def refused(name: str) -> None:
        raise OutputError("can't be removed: no", file=name)

    monkeypatch.setattr(made, "remove", refused)
    rotated_at(tmp_path, [50], {0, 1}, rotation=Rotation(keep=1), outputs=made)
    assert len(parts(tmp_path)) == 3
    assert capsys.readouterr().err.count("warning") == 2


# When


def test_time_and_size_end_a_part(tmp_path: Path) -> None:
    """By the clock, events or not; by the bytes that are written."""
    clock = iter(range(100))
    state = State()
    (tmp_path / "t").mkdir()
    with rotated(tmp_path / "t", state, Rotation(every_s=3.0)) as sink:
        record(MadeSource(cut(EVENTS, [2] * 9)), sink, state, now_s=lambda: float(next(clock)))
    assert len(parts(tmp_path / "t")) == 4

    state, size = State(), 30_000
    with rotated(tmp_path, state, Rotation(size=size)) as sink:
        record(MadeSource([b for _ in range(9) for b in cut(EVENTS, [99])]), sink, state)
    *full, _ = [path.stat().st_size for path in parts(tmp_path)]
    assert full
    assert all(size * 0.8 < each < size * 2 for each in full)


def test_each_part_says_what_it_lacks(tmp_path: Path) -> None:
    """What was left out is told by the part of whose time it is."""
    counts = iter(range(1, 10))
    left: list[Loss] = []

    def ending() -> list[Loss]:
        left.append(Loss("filtered", next(counts), "left out"))
        return left[-1:]

    rotated_at(tmp_path, [50, 50], {0, 1}, ending=ending)
    for count, part in enumerate(parts(tmp_path), 1):
        (loss,) = read(part.read_bytes())[1] or [
            s for b in opened(part.read_bytes()).batches() for s in b.before if isinstance(s, Loss)
        ]
        assert loss.count == count


def test_an_error_between_parts_is_told(tmp_path: Path) -> None:
    """What is there is closed, and the recording ends with the error, not with another."""
    state = State()

    def fail(name: str, _: object) -> None:
        raise OutputError("no more", file=name)

    with rotated(tmp_path, state, told=fail) as sink:
        sink.rotate()
        with pytest.raises(OutputError, match="no more"):
            record(MadeSource(cut(EVENTS, [50])), sink, state)
    (only,) = parts(tmp_path)
    assert run("verify", only).exit_code == 0


def test_where_another_part_can_not_be_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the room goes between two parts the recording ends, and what it loses is counted."""
    made = LocalOutputs(synced=False)
    state = State()
    with rotated(tmp_path, state, outputs=made) as sink:

        def full(name: str) -> object:
            raise FullError("no room", file=name)

        monkeypatch.setattr(made, "create", full)
        sink.rotate()
        source = MadeSource(cut(EVENTS, [20, 20]))
        source.stop = lambda: None  # type: ignore[method-assign]
        summary = record(source, sink, state)
    (only,) = parts(tmp_path)
    assert run("verify", only).exit_code == 0
    assert summary.exit_code == 3
    assert summary.lost()["lost"] == EVENTS.rows - len(ords(only)) > 0
    assert "there is no room left" in capsys.readouterr().err


# What the command line takes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--split-size", "10K"), "1M or more"),
        (("--split-time", "0.5"), "1s or more"),
        (("--keep", "0"), "x>=1"),
        (("--split-size", "1M", "--force"), "--force"),
        (("--keep", "2", "-o", "-"), "needs files"),
        (("--ring", "60s"), "--on-signal"),
        (("--ring", "60s", "--on-signal", "--split-time", "1h"), "--split"),
        (("--ring", "0.1", "--on-signal"), "1s or more"),
        (("--ring", "60s", "--on-signal", "--ring-size", "1M"), "4M or more"),
        (("--ring", "60s", "--on-signal", "-o", "-"), "needs files"),
        (("--on-signal",), "belong to --ring"),
        (("--after", "5s"), "belong to --ring"),
        (("--split-size", "1M", "-o", "a-{x}.kcap"), "{n}"),
    ],
)
def test_what_makes_no_sense(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Wrong usage is told before anything is recorded, exit code 2."""
    given_ = ("-o", tmp_path / "a.kcap") if "-o" not in words else ()
    result = run("record", "--source", "proc", "--duration", "1", *given_, *words)
    assert result.exit_code == 2
    assert said in re.sub(r"\s+", " ", result.stderr)
    assert list(tmp_path.iterdir()) == []
