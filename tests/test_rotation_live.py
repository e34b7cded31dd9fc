"""Recordings of this host in parts, and of its last seconds: signals, kills, new starts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from cli_support import run
from durability_support import ords
from live_support import COMMAND, ROOT, kill_all
from rotation_support import parts
from support import opened

from kcap.tools.ring import WINDOW

pytestmark = pytest.mark.root

PROC = ("--source", "proc")


@contextmanager
def recording(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A recording into ``p-N.kcap`` that has begun; killed where it is not ended."""
    command = [*COMMAND, "record", *PROC, "-o", str(folder / "p-{n}.kcap"), "--duration", "2m"]
    process = subprocess.Popen(
        [*command, *words], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("kcap: recording with netlink-proc: "), line
        yield process
    finally:
        if process.poll() is None:
            kill_all(process.pid)
        process.communicate(timeout=30)


def ended(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> str:
    """End a recording; what it said."""
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 3), said
    return said


def until(holds: Callable[[], bool], limit_s: float = 30) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def make_processes(seconds: float) -> None:
    """Let processes start and end for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        subprocess.run(["true"], check=True)


def numbers(path: Path) -> list[int]:
    """The number of each event of a capture."""
    return [o for batch in opened(path.read_bytes()).batches() for o in ords(batch)]


def state(path: Path) -> str:
    """What ``kcap info`` calls a capture: closed, open or torn; nothing where it has no header."""
    said = run("info", "--json", path).stdout
    return str(json.loads(said)["state"]) if said else ""


def test_hangups_begin_new_parts(tmp_path: Path) -> None:
    """Each a complete capture, at once and under load; together they are all events."""
    with recording(tmp_path, "--keep", "9") as process:
        for count in (2, 3):
            make_processes(0.5)
            process.send_signal(signal.SIGHUP)
            until(lambda count=count: len(parts(tmp_path)) == count)  # type: ignore[misc]
        make_processes(0.5)
        said = ended(process, signal.SIGTERM)
    found = parts(tmp_path)
    all_ = [o for part in found for o in numbers(part)]

    assert len(found) == 3
    assert all_ == list(range(len(all_)))
    assert [state(part) for part in found] == ["closed"] * 3
    assert all(run("verify", part).exit_code == 0 for part in found)
    for part in found:
        assert part.stat().st_mode & 0o777 == 0o600
        assert re.search(rf"sha256 [0-9a-f]{{64}}, [^\n]+: {part}\n", said)
        (host,) = json.loads(run("info", "--host", "--json", part).stdout)["hosts"]
        assert {"processes", "users", "mounts"} <= host["tables"].keys()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_kill_at_any_moment_costs_the_last_part_at_most(kills: int, tmp_path: Path) -> None:
    """All parts but the last are closed, that one can be read, and what starts next goes on."""
    random = Random(kills)
    before: list[Path] = []
    for _ in range(kills):
        with recording(tmp_path, "--split-time", "1s", "--durability", "100ms") as process:
            make_processes(1.5 + random.random() * 1.5)
            kill_all(process.pid)
        found = [part for part in parts(tmp_path) if part not in before]
        before += found
        all_ = [o for part in found for o in numbers(part)]

        assert all_ == list(range(len(all_)))
        assert len(found) >= 2
        assert [state(part) for part in found[:-1]] == ["closed"] * (len(found) - 1)
        assert state(found[-1]) in ("open", "torn", "closed")
    assert [part.name for part in before] == [f"p-{i + 1}.kcap" for i in range(len(before))]


def test_only_so_many_stay(tmp_path: Path) -> None:
    """A new start counts the parts of the one before, and removes the oldest."""
    for number in range(3):
        (tmp_path / f"p-{number}.kcap").write_bytes(b"of another time")
    with recording(tmp_path, "--keep", "2", "--split-time", "1s") as process:
        until(lambda: len(parts(tmp_path)) == 2 and parts(tmp_path)[-1].name >= "p-4.kcap")
        ended(process)
    assert parts(tmp_path)[0].name >= "p-3.kcap"
    assert len(parts(tmp_path)) == 2


def test_a_signal_writes_the_last_seconds(tmp_path: Path) -> None:
    """Nothing is written before it, and all of the time when it comes; the recording goes on."""
    ring = ("--ring", "2s", "--on-signal", "--after", "0.5s")
    with recording(tmp_path, *ring) as process:
        make_processes(2.5)
        assert parts(tmp_path) == []
        for count in (1, 2):
            # What runs before the signal is in the file, and what does behind it.
            early = subprocess.Popen(["true"])
            early.wait()
            time.sleep(0.3)
            process.send_signal(signal.SIGUSR1)
            until(lambda count=count: len(parts(tmp_path)) == count)  # type: ignore[misc]
            until(lambda count=count: state(parts(tmp_path)[count - 1]) == "closed")  # type: ignore[misc]
            found = numbers(parts(tmp_path)[-1])
            assert found == list(range(found[0], found[-1] + 1))
            assert found[0] > 0
            words = ("--format", "jsonl", "-w", f"ps.pid = {early.pid}")
            rows = run("cat", *words, parts(tmp_path)[-1]).stdout
            assert rows.count("\n") >= 2
        ended(process)
    source = json.loads(run("info", "--json", parts(tmp_path)[0]).stdout)["sources"][0]
    assert source["details"][WINDOW]["asked_by"] == ["SIGUSR1"]


def test_without_a_signal_there_is_no_file(tmp_path: Path) -> None:
    """And that is said."""
    with recording(tmp_path, "--ring", "60s", "--on-signal") as process:
        said = ended(process)
    assert "nothing was asked for, so nothing was written" in said
    assert list(tmp_path.iterdir()) == []
