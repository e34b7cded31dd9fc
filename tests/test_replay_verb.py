"""kcap replay from the middle: at a time, a row, an event."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cli_support import run
from replay_support import Run, reader
from support import batch_of, capture


def test_the_verb(closed: Path) -> None:
    """Rows, times and events at the command line; what is no bound is wrong usage."""
    lines = run("replay", closed, "--format", "jsonl").stdout.splitlines()

    def part(*words: str) -> list[str]:
        result = run("replay", closed, "--format", "jsonl", *words)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    assert part("--start", "#20") == lines[20:]
    assert part("--start", "#20", "--end", "#30") == lines[20:30]
    assert part("--start", "#20", "-n", "5") == lines[20:25]
    assert part("--start", "#20", "--speed", "1000000") == lines[20:]
    assert part("--start", "2000-01-01") == lines
    assert part("--end", "2000-01-01") == []
    cat = run("cat", closed, "--format", "jsonl", "--start", "1700000000000030000").stdout
    assert part("--start", "1700000000000030000") == cat.splitlines()
    assert run("replay", closed, "--start", "soon").exit_code == 2
    result = run("replay", closed, "--start", f"{'ab' * 16}:1")
    assert result.exit_code == 1
    assert "there is no event" in result.stderr
    assert str(closed) in result.stderr


def test_a_part_that_is_stored_knows_what_was_before(fixtures: Path, tmp_path: Path) -> None:
    """--format kcap of the second half begins with the state there: the tree stays whole."""
    half, whole = tmp_path / "half.kcap", fixtures / "first.kcap"
    assert run("replay", whole, "--start", "#30", "--format", "kcap", "-o", half).exit_code == 0

    whole_run, half_run = Run(reader(whole.read_bytes())), Run(reader(half.read_bytes()))
    assert half_run.tables == whole_run.tables
    assert [line.split(b'"state:')[0] for line in half_run.lines] == [
        line.split(b'"state:')[0] for line in whole_run.lines[30:]
    ]
    assert run("verify", half).exit_code == 0


@pytest.mark.parametrize("view", ["forkstat", "execsnoop -T"])
def test_a_view_from_the_middle(view: str, fixtures: Path) -> None:
    """How long a process ran is known even where it began before the interval."""
    path = fixtures / "first.kcap"
    whole = run("replay", path, "--view", "forkstat -e fork,exec,exit").stdout.splitlines()
    part = run("replay", path, "--view", "forkstat -e fork,exec,exit", "--start", "#40")

    assert part.exit_code == 0
    found = part.stdout.splitlines()
    assert found[-10:] == whole[-10:]
    words = ("--view", view, "--speed", "1000")
    assert run("replay", path, *words, "--start", "#4").exit_code == 2
    assert run("replay", path, *words, "--start", "2026-11-21T01:01:27.9Z").exit_code == 0


def test_speed_and_start_wait_for_what_is_wanted_alone(tmp_path: Path) -> None:
    """A replay that begins in the middle does not wait for what was before."""
    path = tmp_path / "a.kcap"
    second = 10**9
    times = [10**18 + s * second for s in (0, 1000, 1000, 1001)]
    path.write_bytes(capture([batch_of([(t, {"fd": i}) for i, t in enumerate(times)])]))

    begun = time.monotonic()
    result = run("replay", path, "--speed", "10", "--start", "#1", "--format", "jsonl")
    taken = time.monotonic() - begun

    assert len(result.stdout.splitlines()) == 3
    assert 0.09 <= taken < 3


TELLER = '''"""Says of each event who did it, by what is known of its process."""


def on_init():
    interval(1)


def on_next_event(event):
    process = find_process(event["pid"]) if event["pid"] else None
    known = (process.name, process.ppid) if process else None
    parent = find_process(process.ppid) if process else None
    print(event["name"], event["pid"], known, parent.name if parent else None)


def on_interval():
    print("tick", now())
'''


@pytest.fixture
def teller(tmp_path: Path) -> Path:
    """A filament that says what it knows."""
    path = tmp_path / "teller.py"
    path.write_text(TELLER)
    return path


def test_a_filament_from_the_middle(teller: Path, fixtures: Path) -> None:
    """It sees the wanted events alone, and knows what was known before them."""
    words = ("replay", fixtures / "first.kcap", "-f", teller)
    whole = run(*words).stdout.splitlines()
    assert len(whole) == 61
    assert sum("None" not in line for line in whole) > 30

    for row in (5, 33, 60):
        assert run(*words, "--start", f"#{row}").stdout.splitlines() == whole[row:]
    part = run(*words, "--start", "#5", "--end", "#33").stdout.splitlines()
    assert part == whole[5:33]


def test_ticks_come_from_events_whatever_the_speed(teller: Path, tmp_path: Path) -> None:
    """Speed says when, not what: also with a beginning in the middle, ticks are the events' own."""
    path = tmp_path / "a.kcap"
    second = 10**9
    times = [10**18 + int(s * second) for s in (0, 1, 1.5, 2, 5, 5.5, 6)]
    path.write_bytes(capture([batch_of([(t, {"fd": i}) for i, t in enumerate(times)])]))
    words = ("replay", path, "-f", teller)
    for more in ((), ("--start", "#2"), ("--start", "#2", "--end", "#6")):
        plain = run(*words, *more)
        assert plain.exit_code == 0, plain.output
        assert run(*words, *more, "--speed", "40").stdout == plain.stdout
        ticks = [line for line in plain.stdout.splitlines() if line.startswith("tick")]
        assert len(ticks) == (6 if not more else 4)
