"""What a crash may cost: nothing that was committed, whatever happens to writer, disk or power."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from badinput_support import ROOT
from cli_support import run
from durability_support import (
    EVENTS,
    Disk,
    check_ends_early,
    check_killed,
    check_power_cut,
    check_quiet_hour,
    counting,
    every_way,
    killed,
    ords,
    power_cut,
    quiet_hour,
    records,
)
from hypothesis import given
from hypothesis import strategies as st
from live_support import kill_all
from support import FILE_ID, opened

from kcap.errors import NotACaptureError, OutputError
from kcap.format import index
from kcap.format.record import Kind
from kcap.format.writer import CaptureWriter
from kcap.tools import durability
from kcap.tools.durability import Committer, Durability

COMMAND = (sys.executable, "-m", "kcap.tools", "record")
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


# A quiet host


def test_a_quiet_hour_costs_little_and_no_cut_costs_more_than_a_second() -> None:
    """10 events/s, one commit a second, a chunk a minute: under 200 bytes an event."""
    data, promises, taken = quiet_hour(minutes=5)
    cost = len(data) / taken
    print(f"{taken} events, {cost:.1f} bytes each")
    assert cost < 200
    check_quiet_hour(data, promises, cuts=20, seed=1)


def test_a_commit_of_nothing_costs_nothing() -> None:
    """A host on which nothing happens writes and syncs nothing."""
    disk = Disk()
    writer = CaptureWriter(disk, sync=disk.sync)  # type: ignore[arg-type]
    writer.write(EVENTS.slice(0, 5))
    writer.commit()
    calls: list[int] = []
    disk.sync = lambda: calls.append(1)  # type: ignore[method-assign]
    before = len(disk.writes)
    for _ in range(10):
        writer.commit()
    writer.flush()
    writer.flush()
    assert len(disk.writes) == before + 2  # CHUNK and CHUNK_INDEX
    assert not calls or len(calls) <= 1


# When a recording commits


class _Recorder:
    """Stands for a writer, and keeps what was asked of it."""

    def __init__(self) -> None:
        self.chunks = 0
        self.calls: list[tuple[str, float]] = []
        self.now = 0.0

    def commit(self) -> None:
        self.calls.append(("commit", self.now))

    def flush(self) -> None:
        self.calls.append(("flush", self.now))
        self.chunks += 1

    def during(self, asked: Durability, seconds: float, jitter: float = 0.0) -> list[float]:
        """When everything became durable, with a look after each tick."""
        committer = Committer(self, asked, 0.0)  # type: ignore[arg-type]
        random = Random(3)
        while self.now < seconds:
            self.now += asked.tick_s + random.random() * jitter
            committer.check(self.now)
        return sorted({at for _, at in self.calls})


@given(st.floats(0.01, 5))
def test_no_two_commits_are_further_apart_than_the_interval(interval_s: float) -> None:
    """The next look is never too late; and there are not many more commits than needed."""
    times = _Recorder().during(Durability(interval_s), 20 * interval_s, jitter=interval_s / 100)
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert max(gaps) <= interval_s * 1.011
    assert len(times) <= 20 / 0.7


def test_chunks_are_closed_after_a_minute() -> None:
    """Also where only chunks are durable, or nothing is; and not sooner after one that was full."""
    for asked in (Durability(1.0), Durability(), Durability(synced=False)):
        recorder = _Recorder()
        recorder.during(asked, 200)
        flushes = [at for name, at in recorder.calls if name == "flush"]
        assert [round(at) for at in flushes] == [60, 120, 180]
        commits = any(name == "commit" for name, _ in recorder.calls)
        assert commits == (asked.interval_s is not None)

    recorder = _Recorder()
    committer = Committer(recorder, Durability(), 0.0)  # type: ignore[arg-type]
    recorder.chunks = 1  # it was full
    committer.check(50.0)
    committer.check(109.0)
    assert not recorder.calls
    committer.check(110.0)
    assert recorder.calls


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("1s", Durability(1.0)),
        ("250ms", Durability(0.25)),
        ("2", Durability(2.0)),
        ("chunk", Durability()),
        ("none", Durability(synced=False)),
    ],
)
def test_what_durability_means(words: str, expected: Durability) -> None:
    """An interval, or a word."""
    assert durability.DurabilityType().convert(words, None, None) == expected


@pytest.mark.parametrize(
    "words",
    [
        *(("--durability", "soon"), ("--durability", "0"), ("--durability", "1ms")),
        *(("--chunk-events", "0"), ("--chunk-events", "65537"), ("--level", "0")),
    ],
)
def test_wrong_options_are_usage_errors(words: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 2, before anything is opened."""
    assert run("record", "-o", tmp_path / "r.kcap", *words).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_only_files_are_synced(tmp_path: Path) -> None:
    """A pipe, or memory, has nothing to sync; a file is, with the folder that has its name."""
    read, write = os.pipe()
    try:
        with os.fdopen(write, "wb", closefd=False) as pipe:
            assert durability.syncing(pipe, Durability(1.0), "-") is None
    finally:
        os.close(read)
        os.close(write)
    assert durability.syncing(io.BytesIO(), Durability(1.0), "-") is None
    with (tmp_path / "r").open("wb") as file:
        assert durability.syncing(file, Durability(synced=False), file.name) is None
        sync = durability.syncing(file, Durability(), file.name)
        assert sync is not None
        sync()
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync()
    with pytest.raises(OutputError, match="its folder can't be made durable"):
        durability.sync_folder(str(tmp_path / "gone" / "r"))


# Failing outputs


class _Failing(io.RawIOBase):
    """A file that takes some bytes, and then fails; writes are short where asked for."""

    def __init__(self, room: int, error: int, *, short: int = 0) -> None:
        super().__init__()
        self.data = bytearray()
        self._room = room
        self._error = error
        self._short = short

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        part = bytes(data)[: self._short or None]
        room = self._room - len(self.data)
        if room <= 0:
            raise OSError(self._error, os.strerror(self._error))
        self.data += part[:room]
        return min(len(part), room)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("short", [0, 7])
@pytest.mark.parametrize("buffered", [False, True])
def test_what_was_committed_before_an_error_is_readable(
    error: int, short: int, buffered: bool
) -> None:
    """A full disk, a bad one, short writes: an OutputError, and every committed event."""
    random = Random(error + short)
    for _ in range(12):
        raw = _Failing(random.randrange(300, 9000), error, short=short)
        stream = io.BufferedWriter(raw, 512) if buffered else raw
        committed = taken = 0
        writer = CaptureWriter(stream, file="r.kcap", file_id=FILE_ID)  # type: ignore[arg-type]
        with pytest.raises(OutputError, match=os.strerror(error)) as caught:  # noqa: PT012
            for at in range(0, EVENTS.rows, 4):
                taken = at + 4
                writer.write(EVENTS.slice(at, taken))
                (writer.commit, writer.flush)[random.randrange(4) == 0]()
                committed = taken
        assert caught.value.file == "r.kcap"
        raw.close()
        data = bytes(raw.data)
        for way, found in every_way(data).items():
            assert found == list(range(len(found))), way
            assert committed <= len(found) <= taken, way
        check_ends_early(data)


def test_after_an_error_nothing_more_is_written() -> None:
    """What failed once is not tried again: a later record behind a gap would be damage."""
    raw = _Failing(3000, errno.ENOSPC)
    writer = CaptureWriter(raw, file_id=FILE_ID)  # type: ignore[arg-type]
    with pytest.raises(OutputError):  # noqa: PT012
        for at in range(0, 400, 4):
            writer.write(EVENTS.slice(at, at + 4))
            writer.commit()
    raw._room = 1 << 30
    before = bytes(raw.data)
    with pytest.raises(OutputError, match="failed before"):
        writer.flush()
    writer.close()
    assert bytes(raw.data) == before


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_a_sync_that_fails_is_an_error(error: int) -> None:
    """No commit returns whose sync failed; and what came before is readable."""
    out = io.BytesIO()
    broken = False

    def sync() -> None:
        if broken:
            raise OSError(error, os.strerror(error))

    writer = CaptureWriter(out, file_id=FILE_ID, sync=sync)
    writer.write(EVENTS.slice(0, 5))
    writer.commit()
    broken = True
    writer.write(EVENTS.slice(5, 9))
    with pytest.raises(OutputError, match=os.strerror(error)):
        writer.commit()
    broken = False
    writer.write(EVENTS.slice(9, 12))
    with pytest.raises(OutputError):
        writer.commit()
    assert [o for b in opened(out.getvalue()).batches() for o in ords(b)][:5] == list(range(5))


def test_a_stream_that_takes_nothing_is_an_error() -> None:
    """A stream that is set not to block does not make a record half."""

    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            return 0

    with pytest.raises(OutputError, match="takes nothing"):
        CaptureWriter(Full())


# Power cuts and kills; test_durability_long.py has more of each


def test_a_power_cut_costs_nothing_that_was_synced() -> None:
    """Any part of what was not synced is gone, in any order: every acknowledged event is there."""
    for seed in range(30):
        check_power_cut(*power_cut(Random(seed)))


@pytest.mark.parametrize("broken", [{"syncs": False}, {"early": True}])
def test_control_a_writer_that_acknowledges_too_early_is_caught(broken: dict[str, bool]) -> None:
    """Negative control: without a sync, or before it, events are missed."""
    caught = 0
    for seed in range(30):
        try:
            check_power_cut(*power_cut(Random(seed), **broken))
        except (AssertionError, NotACaptureError):
            caught += 1
    assert caught > 5


def test_a_kill_costs_nothing_that_was_committed(tmp_path: Path) -> None:
    """kill -9 while it writes: the file opens, all that was committed is there, once, in order."""
    most = 0
    for seed in range(12):
        path = tmp_path / f"{seed}.kcap"
        committed = killed(path, seed, Random(seed).randrange(1, 60))
        check_killed(path, committed)
        most = max(most, committed)
    assert most > 500


def test_control_a_capture_without_its_last_commit_is_caught(tmp_path: Path) -> None:
    """Negative control: bytes that are missing from the end of a killed recording are noticed."""
    path = tmp_path / "r.kcap"
    committed = killed(path, 1, 20)
    data = path.read_bytes()
    tails = [r for r in records(data) if r.header.kind == Kind.TAIL]
    path.write_bytes(data[: tails[-3].offset])
    with pytest.raises(AssertionError):
        check_killed(path, committed)


# The command


def test_info_of_an_open_capture_reads_its_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By bytes counted, and as the command says it: open or torn, exit code 3."""
    monkeypatch.setattr(index, "_STEP", 1 << 16)
    out = io.BytesIO()
    writer = CaptureWriter(out)
    for at in range(200):
        writer.write(EVENTS.slice(at, at + 200))
        writer.flush()
    writer.write(EVENTS.slice(0, 7))
    writer.commit()
    data = out.getvalue()
    reader, taken = counting(data)
    found = reader.index()
    assert found is not None
    assert found.totals["events"] == 40_007
    print(f"{taken()} of {len(data)} bytes")
    assert taken() < len(data) / 2

    for state, content in (("open", data), ("torn", data[:-9])):
        path = tmp_path / "r.kcap"
        path.write_bytes(content)
        result = run("info", "--json", path)
        assert result.exit_code == 3
        told = json.loads(result.stdout)
        assert (told["state"], told["chunks"]) == (state, 200)
        assert (told["events"], told["tail_rows"]) == ((40_007, 7), (40_000, 0))[state == "torn"]
        assert "content_hash" not in told
        assert "torn" in result.stderr
        assert run("info", path).stdout.splitlines()[2].split() == ["state", state]


def test_info_tells_hashes(closed: Path) -> None:
    """Content hashes of a closed capture; the file's own only when asked, as it reads all."""
    import hashlib

    told = json.loads(run("info", "--json", closed).stdout)
    assert len(told["content_hash"]) == len(told["content_hash_values"]) == 64
    assert "sha256" not in told
    told = json.loads(run("info", "--json", "--hash", closed).stdout)
    assert told["sha256"] == hashlib.sha256(closed.read_bytes()).hexdigest()
    assert f"sha256       {told['sha256']}" in run("info", "--hash", closed).stdout
    assert run("info", "--hash", "-").exit_code == 2


def _until(holds: object, limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.root
def test_a_recording_that_is_killed_loses_at_most_the_interval(tmp_path: Path) -> None:
    """Under load: what started more than the interval before the kill is in the capture."""
    path = tmp_path / "r.kcap"
    with subprocess.Popen(
        [*COMMAND, "-o", path, "--durability", "500ms"], env=ENV, stderr=subprocess.DEVNULL
    ) as process:
        _until(lambda: path.exists() and path.stat().st_size > 4000)
        started: list[tuple[float, int]] = []
        end = time.monotonic() + 3
        while time.monotonic() < end:
            with subprocess.Popen(["/bin/true"]) as child:
                started.append((time.monotonic(), child.pid))
        kill_all(process.pid)
        at = time.monotonic()
    assert len(started) > 50

    told = json.loads(run("info", "--json", path).stdout)
    result = run("cat", "--format", "jsonl", path)
    assert result.exit_code == 3
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == told["events"]
    seen = {line["pid"] for line in lines if line.get("action") == "process_start"}
    # A busy machine may be late for a batch; it may not be late by another interval.
    due = [pid for then, pid in started if then < at - 0.5 - 0.25]
    assert len(due) > 30
    assert not set(due) - seen, (len(due), len(set(due) - seen))
    assert any(pid in seen for then, pid in started[-len(started) // 3 :])
    check_ends_early(path.read_bytes())
    assert run("verify", path).exit_code == 3


@pytest.mark.root
def test_a_pipe_shows_events_within_the_interval() -> None:
    """`kcap record -o - | …`: a reader sees an event long before its chunk is closed."""
    command = f"{sys.executable} -m kcap.tools record -o - --durability 300ms"
    reader = f"{sys.executable} -u -m kcap.tools cat - --format jsonl"
    with subprocess.Popen(
        ["bash", "-c", f"exec 2>/dev/null; {command} | {reader}"],
        env=ENV,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as shell:
        assert shell.stdout is not None
        try:
            ticker = subprocess.Popen(["bash", "-c", "while sleep 0.1; do /bin/true; done"])
            os.set_blocking(shell.stdout.fileno(), True)
            begun = time.monotonic()
            line = json.loads(shell.stdout.readline())
            waited = time.monotonic() - begun
        finally:
            ticker.kill()
            ticker.wait()
            os.killpg(shell.pid, signal.SIGKILL)
    print(f"the first event after {waited:.2f} s, start of both included")
    assert line["kind"] == "event"
    assert waited < 15  # a chunk would take 60


@pytest.mark.root
@pytest.mark.parametrize(("words", "tails"), [(("1s",), True), (("chunk",), False)])
def test_only_an_interval_writes_tails(words: tuple[str], tails: bool, tmp_path: Path) -> None:
    """`chunk` and `none` write none; --chunk-events and --level are obeyed."""
    path = tmp_path / "r.kcap"
    process = subprocess.Popen(
        [*COMMAND, "-o", path, "--durability", *words, "--chunk-events", "25", "--duration", "3"],
        env=ENV,
        stderr=subprocess.PIPE,
    )
    _until(lambda: path.exists() and path.stat().st_size > 4000)
    for _ in range(40):
        subprocess.run(["/bin/true"], check=True)
        time.sleep(0.03)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    found = records(path.read_bytes())
    assert any(r.header.kind == Kind.TAIL for r in found) == tails
    table = opened(path.read_bytes()).index()
    assert table is not None
    assert table.table["rows"].max() == 25
    assert run("verify", "--deep", path).exit_code == 0
