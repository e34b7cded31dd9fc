"""A disk that is full leaves a closed capture, which says what was lost; the exit code is 3."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import pytest
from cli_support import run
from durability_support import ords as numbers
from durability_support import process_events
from hypothesis import example, given, settings
from hypothesis import strategies as st
from live_support import BTF, Recording
from rotation_support import MadeSource, cut, parts, record, rotated
from support import opened

import kcap
from kcap.errors import FullError, OutputError
from kcap.format import room as rooms
from kcap.format.room import Room
from kcap.format.writer import CaptureWriter
from kcap.model.artifact import Artifact, Parts
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.replay.pipeline import Summary
from kcap.state import State
from kcap.tools.durability import Durability
from kcap.tools.outputs import LocalOutputs
from kcap.tools.recorded import LEAST_BYTES, OneFile, Rotation, room_of

EVENTS = process_events(16_000, 1000.0)
KIB, MIB = 1 << 10, 1 << 20
REASON = "the disk was full"
DURABLE = Durability(0.01, synced=False)


def ords(path: Path) -> list[int]:
    """The number of each event of a capture."""
    return [o for batch in opened(path.read_bytes()).batches() for o in numbers(batch)]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may be larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of this size."""
    folder.mkdir()
    options = f"size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def into_file(
    path: Path,
    events: Batch = EVENTS,
    lengths: int = 500,
    commits: bool = True,
    wrap: Callable[[BinaryIO], BinaryIO] = lambda stream: stream,
    stops: bool = True,
    **options: int,
) -> tuple[Summary, int]:
    """Record events into a file with little room.

    Returns:
        What was done, and how many events the source gave.
    """
    state = State()
    source = MadeSource(cut(events, [lengths] * (events.rows // lengths)))
    stream = wrap(LocalOutputs(synced=False).create(str(path)))
    with stream:
        room = room_of(stream, str(path))
        writer = CaptureWriter(
            stream, file=str(path), snapshot=state.snapshot, room=room, **options
        )
        durable = Durability(0.01 if commits else None, synced=False)
        sink = OneFile(writer, str(path), durable, 0.0)
        seconds = iter(range(1 << 30))
        if not stops:
            source.stop = lambda: None  # type: ignore[method-assign]
        summary = record(source, sink, state, now_s=lambda: float(next(seconds)))
    return summary, source.given


def check_full(path: Path, summary: Summary, given_: int) -> int:
    """A closed capture of the first events; what is not there is counted in it and in the summary.

    Returns:
        How many events it has.
    """
    report = run("verify", path)
    assert report.exit_code == 0, report.output
    reader = opened(path.read_bytes())
    batches = list(reader.batches())
    ords = [int(o) for b in batches for o in b.numpy("ord", -1)]
    assert reader.footer is not None
    assert ords == list(range(len(ords)))
    told = [s for b in batches for s in b.before if isinstance(s, Loss) and s.reason == REASON]
    assert told
    assert sum(loss.count or 0 for loss in told) == given_ - len(ords)
    assert summary.lost()["lost"] == given_ - len(ords)
    assert summary.exit_code == 3
    return len(ords)


@given(
    st.integers(LEAST_BYTES, 400 * KIB),
    st.integers(300, 3000),
    st.booleans(),
    st.sampled_from([1000, 5000, 65_536]),
    st.booleans(),
)
@example(LEAST_BYTES, 3000, False, 65_536, False)
@settings(max_examples=3, deadline=None)
def test_wherever_a_file_may_not_grow_it_is_closed(
    size: int, lengths: int, commits: bool, chunk_rows: int, stops: bool
) -> None:
    """Nothing but its last events is missing, and they are counted."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.kcap"
        with largest_file(size):
            summary, given_ = into_file(
                path, lengths=lengths, commits=commits, stops=stops, chunk_rows=chunk_rows
            )
        if summary.losses:
            check_full(path, summary, given_)
            assert path.stat().st_size > size - LEAST_BYTES
        else:
            assert given_ == EVENTS.rows
        assert path.stat().st_size <= size


@pytest.mark.timeout(60)  # it went on for ever
@pytest.mark.parametrize("kib", [260, 280, 300])
def test_a_disk_that_fills_within_a_batch(kib: int, tmp_path: Path) -> None:
    """What of a batch of many chunks has no room is counted."""
    path = tmp_path / "r.kcap"
    with largest_file(kib * KIB):
        summary, given_ = into_file(path, lengths=EVENTS.rows, chunk_rows=1000, commits=False)
    assert check_full(path, summary, given_) < EVENTS.rows


def test_without_room_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """What the others show is not there by itself: exit code 1, and an open capture."""
    path = tmp_path / "r.kcap"
    with largest_file(128 * KIB), path.open("wb", buffering=0) as stream:
        writer = CaptureWriter(stream)  # type: ignore[arg-type]
        with pytest.raises(OutputError, match="writing failed"):
            record(
                MadeSource(cut(EVENTS, [3000] * 20)), OneFile(writer, "-", DURABLE, 0.0), State()
            )
        writer.close()
    assert run("verify", path).exit_code == 3


@pytest.mark.root
@pytest.mark.parametrize("reserves", [True, False])
def test_a_full_disk(reserves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed capture on a file system that can reserve room, and on one that can't."""
    if not reserves:
        monkeypatch.setattr(rooms, "_system_call", lambda: None)
    with disk(tmp_path / "disk", 400 * KIB) as folder:
        summary, given_ = into_file(folder / "r.kcap")
        used = os.statvfs(folder)
        if reserves:
            assert check_full(folder / "r.kcap", summary, given_) > 3000
        else:
            # There may be no room for the end then; what came before it is there.
            assert summary.exit_code == 3
            assert REASON in {loss.reason for loss in summary.losses}
            assert run("info", folder / "r.kcap").exit_code in (0, 3)
    assert used.f_bavail * used.f_frsize < LEAST_BYTES


@pytest.mark.root
def test_what_was_reserved_is_given_back(tmp_path: Path) -> None:
    """A closed capture takes what it has and no more."""
    path = tmp_path / "r.kcap"
    with path.open("wb", buffering=0) as stream:
        room = Room.of(stream)  # type: ignore[arg-type]
        assert room is not None
        assert room.claim(MIB)
        assert path.stat().st_size == 0
        assert path.stat().st_blocks * 512 >= MIB
        stream.write(b"x")
        room.release(1)
    assert path.stat().st_size == 1
    assert path.stat().st_blocks * 512 < MIB // 8


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_kind_of_no_room(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk, the user's share of it, the largest file that the file system can have."""
    limit = 400 * KIB

    def reserve(_: int, __: int, start: int, length: int) -> int:
        return number if start + length > limit else 0

    monkeypatch.setattr(rooms, "_system_call", lambda: reserve)
    path = tmp_path / "r.kcap"
    summary, given_ = into_file(path, stops=False)
    assert check_full(path, summary, given_) < given_ == EVENTS.rows
    assert limit - LEAST_BYTES < path.stat().st_size <= limit


def test_another_error_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk that fails is no full one: exit code 1, and no end."""

    def write(_: object, __: bytes) -> int:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "r.kcap"
    stream = LocalOutputs(synced=False).create(str(path))
    writer = CaptureWriter(stream, room=room_of(stream, str(path)))
    monkeypatch.setattr(type(writer._out), "_write", write)
    writer.write(EVENTS.slice(0, 100))
    with pytest.raises(OutputError, match="Input/output error") as caught:
        writer.flush()
    stream.close()
    assert not isinstance(caught.value, FullError)
    assert writer.failed


def test_a_disk_that_is_full_at_the_start(tmp_path: Path) -> None:
    """Nothing is begun that could not be ended."""
    with largest_file(LEAST_BYTES - 1):
        stream = LocalOutputs(synced=False).create(str(tmp_path / "r.kcap"))
        with stream, pytest.raises(FullError, match="no room for a capture"):
            room_of(stream, "r.kcap")


def test_a_pipe_has_no_room() -> None:
    """What was written there can't be taken back."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb", buffering=0) as stream:
        assert Room.of(stream) is None  # type: ignore[arg-type]


@pytest.mark.root
def test_with_keep_the_oldest_part_goes_first(tmp_path: Path) -> None:
    """A full disk is none as long as there are parts that may go."""
    with disk(tmp_path / "disk", 2 * MIB) as folder:
        state = State()
        (folder / "p-1.kcap").write_bytes(bytes(MIB))
        (folder / "p-2.kcap").write_bytes(bytes(MIB // 2))
        rotation = Rotation(size=100 * KIB, keep=9)
        with rotated(folder, state, rotation) as sink:
            source = MadeSource(cut(EVENTS, [500] * 40))
            summary = record(source, sink, state, now_s=float)
        old, *found = parts(folder)

        assert summary.exit_code == 0
        assert old.name == "p-2.kcap"
        assert len(found) > 2
        assert [o for part in found for o in ords(part)] == list(range(EVENTS.rows))
        assert all(run("verify", part).exit_code == 0 for part in found)


@pytest.mark.root
def test_without_keep_the_last_part_says_so(tmp_path: Path) -> None:
    """No part is removed unasked: the recording ends, and all parts are closed."""
    with disk(tmp_path / "disk", 2 * MIB) as folder:
        state = State()
        (folder / "p-1.kcap").write_bytes(bytes(MIB + 740 * KIB))
        with rotated(folder, state, Rotation(size=100 * KIB), durable=DURABLE) as sink:
            source = MadeSource(cut(EVENTS, [500] * 40))
            seconds = iter(range(1 << 30))
            summary = record(source, sink, state, now_s=lambda: float(next(seconds)))
        found = parts(folder)

        assert found[0].stat().st_size == MIB + 740 * KIB
        assert summary.exit_code == 3
        assert all(run("verify", part).exit_code == 0 for part in found[1:])
        assert len([o for part in found[1:] for o in ords(part)]) == source.given
        assert run("info", found[-1]).exit_code == 0
        assert REASON in run("info", found[-1]).stdout


def test_a_slow_disk_slows_the_source(tmp_path: Path) -> None:
    """However slow, nothing waits but what a chunk holds: no batch is asked for meanwhile."""
    taken: list[int] = []

    class Slow(io.FileIO):
        """A file whose disk takes its time; it looks at what the source has given meanwhile."""

        def write(self, raw: Any) -> int:
            before = source.given
            time.sleep(0.002)
            taken.append(source.given - before)
            return super().write(raw)

    source = MadeSource(cut(EVENTS, [100] * 40))
    state = State()
    with Slow(tmp_path / "r.kcap", "wb") as stream:
        writer = CaptureWriter(stream, snapshot=state.snapshot, chunk_rows=1000)
        waiting: list[int] = []

        def look(_: Summary) -> None:
            waiting.append(writer.waiting_rows)

        seconds = iter(range(1 << 30))
        record(
            source,
            OneFile(writer, "r.kcap", DURABLE, 0.0),
            state,
            look,
            lambda: float(next(seconds)),
        )
    assert len(taken) > 40
    assert set(taken) == {0}
    assert 0 < max(waiting) <= 1000
    assert ords(tmp_path / "r.kcap") == list(range(EVENTS.rows))


@pytest.mark.long
@pytest.mark.root
@pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}")
def test_sixteen_mebibytes(tmp_path: Path) -> None:
    """A recorder whose disk fills under load ends by itself: closed, counted, exit code 3."""
    with disk(tmp_path / "disk", 16 * MIB) as folder:
        path = folder / "r.kcap"
        recorder = Recording(path, "--events", "all")
        end = time.monotonic() + 400
        while recorder.process.poll() is None and time.monotonic() < end:
            subprocess.run(
                ["find", "/usr", "-xdev", "-size", "+1k"], capture_output=True, check=True
            )
        _, said = recorder.process.communicate(timeout=60)
        assert recorder.process.returncode == 3, said
        assert "there is no room left: the recording ends" in said
        assert run("verify", path).exit_code == 0
        assert path.stat().st_size > 14 * MIB
        with kcap.open(path) as capture:
            (lost,) = [loss for loss in capture.info.losses if loss.reason == REASON]
        assert lost.kind == "lost"
        assert lost.count is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_artifacts_without_room_are_one_loss(tmp_path: Path) -> None:
    """However many there are: what is said of them takes no more room with each."""
    many = 500
    sides = [
        Artifact("write", Parts((os.urandom(40_000),)), path=f"/tmp/file{n}") for n in range(many)
    ]
    with disk(tmp_path / "disk", 1 << 20) as folder:
        path = folder / "r.kcap"
        stream = LocalOutputs(synced=False).create(str(path))
        with stream:
            writer = CaptureWriter(stream, file=str(path), room=room_of(stream, str(path)))
            sink = OneFile(writer, str(path), Durability(0.01, synced=False), 0.0)
            source = MadeSource([Batch(0, {}, (side,)) for side in sides])
            source.stop = lambda: None  # type: ignore[method-assign]
            record(source, sink, State())
        reader = opened(path.read_bytes())
        kept = [each for each in reader.manifests() if each.complete]
        losses = [s for b in reader.batches() for s in b.before if isinstance(s, Loss)]
        assert run("verify", path).exit_code == 0

    assert 0 < len(kept) < many
    told = [loss for loss in writer.losses if "no room" in loss.reason]
    assert [loss.count for loss in told] == [many - len(kept)], writer.losses
    assert sum(loss.count or 0 for loss in losses if "no room" in loss.reason) == many - len(kept)
