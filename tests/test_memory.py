"""Memory: a capture is written, read and replayed in less than 300 MiB, however long it is.

Each case runs in a process of its own and says at the end how much it had resident at most.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import pytest
from memory_cases import EVENTS

BOUND_MIB = 300
TEXTS = 1_000_000
SAMPLE = 100_000

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc"
)


class Run(NamedTuple):
    """What a case gave."""

    result: int
    peak_mib: int


def run(*words: str | Path, stdin: IO[bytes] | None = None) -> Run:
    """Run a case of `memory_cases`."""
    script = Path(__file__).with_name("memory_cases.py")
    done = subprocess.run(
        [sys.executable, script, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(script.parent.parent)},
        stdin=stdin,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    result, peak_kib = done.stdout.split()[-2:]
    return Run(int(result), int(peak_kib) >> 10)


@pytest.fixture(scope="module")
def captures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the captures of this module, which are large."""
    folder = tmp_path_factory.mktemp("memory")
    yield folder
    shutil.rmtree(folder)


@cache
def written(folder: Path, events: str, count: int) -> tuple[Path, Run]:
    """A capture of some events, and what writing it took."""
    path = folder / f"{events}-{count}.kcap"
    return path, run("write", path, events, count)


@pytest.mark.parametrize("texts", [TEXTS // 4, pytest.param(TEXTS, marks=pytest.mark.long)])
def test_unique_texts(texts: int, captures: Path) -> None:
    """A million texts of 4 KiB take no more memory than a tenth of them, to write and to read."""
    peaks = {}
    for count in (SAMPLE, texts):
        path, wrote = written(captures, "texts", count)
        got = run("read", path)
        assert (wrote.result, got.result) == (count, count)
        peaks[count] = (wrote.peak_mib, got.peak_mib)

    assert max(peaks[texts]) < BOUND_MIB
    assert max(peaks[SAMPLE]) < BOUND_MIB
    assert all(full < part + 50 for full, part in zip(peaks[texts], peaks[SAMPLE], strict=True))


def test_all_batches_at_once_break_the_bound(captures: Path) -> None:
    """Negative control: who keeps every batch of the sample has more than the bound."""
    path, _ = written(captures, "texts", SAMPLE)

    held = run("hold", path)

    assert held.result == SAMPLE
    assert held.peak_mib > BOUND_MIB


@pytest.mark.parametrize("events", ["dense", "sparse"])
def test_a_thousand_columns(captures: Path, events: str) -> None:
    """A capture of 1,000 argument columns, each in every event or in few, keeps the bound."""
    count = 1 << 17 if events == "sparse" else 1 << 16
    assert len(next(EVENTS[events](count)).columns) > 1000

    path, wrote = written(captures, events, count)
    got = run("read", path)

    assert (wrote.result, got.result) == (count, count)
    assert wrote.peak_mib < BOUND_MIB
    assert got.peak_mib < BOUND_MIB


@pytest.mark.parametrize("form", ["jsonl", "line", "kcap"])
def test_replay_of_two_million_events(captures: Path, tmp_path: Path, form: str) -> None:
    """A long capture replays within the bound into each form."""
    path, _ = written(captures, "small", 2_000_000)
    output = tmp_path / "out.kcap" if form == "kcap" else Path("/dev/null")

    done = run("kcap", "replay", path, "--format", form, "-o", output)

    assert done.result == 0
    assert done.peak_mib < BOUND_MIB


def test_replay_from_a_pipe(captures: Path) -> None:
    """A stream is let go of as it is read: more than the bound passes through."""
    path, _ = written(captures, "dense", 1 << 16)
    assert path.stat().st_size > BOUND_MIB << 20

    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        done = run("kcap", "replay", "-", "--format", "kcap", "-o", "/dev/null", stdin=cat.stdout)

    assert done.result == 0
    assert done.peak_mib < BOUND_MIB


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [
        ["filter", "-w", "evt.name = 'open' or not ps.pid > 0"],
        ["filter", "--state", "none", "-w", "ps.pid < 20000 or not ps.pid > 0"],
        ["split", "--events", "150000"],
        ["split", "--bytes", "2M"],
        ["split", "--by", "exe"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(("events", "count"), [("small", 2_000_000), ("sparse", 1 << 17)])
def test_copies_and_parts(
    captures: Path, tmp_path: Path, words: list[str], events: str, count: int
) -> None:
    """A long capture is filtered, and divided into many files, within the bound."""
    path, _ = written(captures, events, count)
    verb, *rest = words
    name = "out.kcap" if verb == "filter" else "part-{n}.kcap"

    done = run("kcap", verb, *rest, path, "-o", tmp_path / name)

    assert done.result == 0
    assert any(tmp_path.iterdir())
    assert done.peak_mib < BOUND_MIB
