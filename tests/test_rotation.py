"""Recordings in parts: nothing is lost or twice, whatever the cuts, and each part is complete."""

from __future__ import annotations

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from cli_support import run
from hypothesis import given, settings
from hypothesis import strategies as st
from rotation_support import MadeSource, cut, parts, record, recorded_events, rotated, start_of
from support import opened, read, rows_of

from kcap.model.batch import Batch
from kcap.model.side import Snapshot, SourceInfo
from kcap.replay.origins import PART
from kcap.replay.pipeline import Summary
from kcap.state import State

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
    st.lists(st.integers(0, 60), min_size=1, max_size=12),
    st.sets(st.integers(0, 12), max_size=6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=15, deadline=None)
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
    rotated_at(tmp_path, [100, 100, 50], {1, 2})
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
    rotated_at(tmp_path, [100, 100], {1, 2})
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
