"""``kcap tree``: who started whom, told from events alone."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_support import on_a_terminal, run, shell
from hypothesis import given
from hypothesis import strategies as st
from support import capture
from test_state import HOST, OTHER, event, fork, make_batch
from tracee_support import DUMP

from kcap.model.batch import EMPTY
from kcap.model.side import Side, SourceInfo
from kcap.state import State
from kcap.tools import lineage
from kcap.tools.lineage import Lineage
from kcap.tools.tree import DEPTH_MAX, LABEL_CHARS

S = 10**9
Rows = Sequence[dict[str, Any]]


def executed(pid: int, ts: int, command: str, **more: Any) -> dict[str, Any]:
    argv = command.split(" ")
    name = argv[0].rpartition("/")[2]
    said = {"arg_argv": argv, "arg_pathname": argv[0], "process_name": name}
    return event("process_start", pid, ts=ts, **said, **more)


def ended(pid: int, ts: int, code: int = 0, killed_by: int = 0, **more: Any) -> dict[str, Any]:
    codes = {"arg_exit_code": code, "arg_signal_code": killed_by}
    return event("process_stop", pid, ts=ts, **codes, **more)


def there(pid: int, ppid: int, name: str, **more: Any) -> dict[str, Any]:
    said = {"ppid": ppid, "process_name": name, "cmdline": name, "kind": "state"}
    return event("process_rundown", pid, ts=0, **said, **more)


STORY = [
    there(1, 0, "init", process_start_ns=1),
    there(10, 1, "sh", process_start_ns=5 * S, user="ann", uid=1000),
    fork(10, 20, 6 * S, ts=6 * S),
    executed(20, 6 * S + 1, "env A=1 ls"),
    executed(20, 6 * S + 2, "ls"),
    ended(20, 7 * S, code=2),
    fork(10, 21, 8 * S, ts=8 * S),
    executed(21, 8 * S + 1000, "sleep 60"),
    ended(21, 9 * S, killed_by=9),
    fork(10, 22, 9 * S, ts=9 * S),
    fork(10, 20, 10 * S, ts=10 * S),
    executed(20, 10 * S + 1, "again"),
]


def write(path: Path, rows: Rows, *sides: Side, cuts: Sequence[int] = ()) -> Path:
    """A capture of these rows, in as many batches."""
    batch = make_batch(rows)
    places = [0, *cuts, batch.rows]
    parts = [batch.slice(a, b) for a, b in itertools.pairwise(places)]
    path.write_bytes(capture([EMPTY.with_before(sides or [HOST]), *parts]))
    return path


def tree_of(path: Path, *words: str | Path, code: int = 0) -> list[dict[str, Any]]:
    """The processes that kcap tree --json gives."""
    result = run("tree", "--json", path, *words)
    assert result.exit_code == code, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["processes"]
    return found


def text_of(path: Path, *words: str | Path) -> list[str]:
    result = run("tree", path, *words)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.fixture
def story(tmp_path: Path) -> Path:
    return write(tmp_path / "story.kcap", STORY)


# What is shown


def test_the_tree_of_a_story(story: Path) -> None:
    """Parents, images, users, times, ends, and one id used twice, in so many lines."""
    assert text_of(story) == [
        "alpha, boot b005, 1970-01-01 UTC",
        "1 init  [running throughout]",
        "└─ 10 sh  [ann, running throughout]",
        "   ├─ 20 env A=1 ls → ls  [ann, 00:00:06.000, 1.000 s, exit 2]",
        "   ├─ 21 sleep 60  [ann, 00:00:08.000, 1.000 s, killed by SIGKILL]",
        "   ├─ 22 sh  [ann, 00:00:09.000, still running, no exec]",
        "   └─ 20 again  [ann, 00:00:10.000, still running]",
    ]


def test_branches_without_unicode(story: Path, tmp_path: Path) -> None:
    """--ascii, or an output that has no such characters."""
    lines = text_of(story, "--ascii")
    assert lines[3].startswith("   |- 20 env A=1 ls -> ls  [ann, ")
    assert lines[6].startswith("   `- 20 again")

    result = shell("kcap tree story.kcap", tmp_path, PYTHONIOENCODING="ascii")
    assert result.stdout.decode("ascii").splitlines() == lines


def test_json_says_all_of_it(story: Path) -> None:
    """A process an object, in the tree's order, with its parent's place in the list."""
    found = tree_of(story)

    assert [(p["pid"], p["parent"], p["depth"]) for p in found] == [
        (1, None, 0),
        (10, 0, 1),
        (20, 1, 2),
        (21, 1, 2),
        (22, 1, 2),
        (20, 1, 2),
    ]
    first = found[2]
    assert [e["cmdline"] for e in first["execs"]] == ["env A=1 ls", "ls"]
    assert (first["start_ns"], first["end_ns"], first["duration_ns"]) == (6 * S, 7 * S, S)
    assert first["start"] == "1970-01-01T00:00:06.000000000Z"
    assert (first["exit_code"], first["signal"], first["running"]) == (2, None, False)
    assert (found[3]["signal"], found[4]["execs"], found[4]["forked"]) == (9, [], True)
    assert found[2]["process_key"] != found[5]["process_key"]
    assert [p["already_running"] for p in found] == [True, True, False, False, False, False]
    assert [p["events"] for p in found] == [0, 4, 3, 2, 0, 1]


@given(st.lists(st.integers(0, len(STORY)), max_size=4))
def test_how_events_are_cut_into_batches_does_not_show(cuts: list[int]) -> None:
    """Whatever the batches, the same lives."""
    batch = make_batch(STORY, HOST)
    lives = []
    for places in ([0, batch.rows], sorted([0, *cuts, batch.rows])):
        found = Lineage()
        state = State(watch=found.watch)
        for a, b in itertools.pairwise(places):
            found.write(state.update(batch.slice(a, b), resolve=True))
        found.close()
        lives.append(
            [
                (one.pid, one.key, one.parent and one.parent.number, one.images, one.events)
                for one in found.lives
            ]
        )

    assert lives[0] == lives[1]


def test_hosts_are_apart(tmp_path: Path) -> None:
    """One process id on two machines is two processes, each under its own host."""
    theirs = [row | {"source": OTHER.id} for row in STORY[:3]]
    path = write(tmp_path / "two.kcap", [*STORY[:3], *theirs], HOST, OTHER)
    lines = text_of(path)

    assert lines[0].startswith("alpha, boot b005")
    assert lines[4:6] == ["", "beta, 1970-01-01 UTC"]
    assert lines[1:4] == lines[6:9]
    assert {p["machine"] for p in tree_of(path)} == {"b005", "beta"}


def test_what_nothing_describes_is_there_too(tmp_path: Path) -> None:
    """A process that only opens a file, with the parent that is not seen; none without an id."""
    opened = event("file_open", 50, ts=S, ppid=49, process_name="sshd", uid=0)
    nobody = {k: v for k, v in opened.items() if k not in {"pid", "tid"}}
    path = write(tmp_path / "seen.kcap", [opened, opened, nobody])

    assert text_of(path)[1:] == ["50 sshd  [uid 0, parent 49 not seen, first seen 00:00:01.000]"]
    (process,) = tree_of(path)
    assert (process["events"], process["running"], process["already_running"]) == (2, None, False)


def test_one_id_used_again_without_start_times(tmp_path: Path) -> None:
    """A fork makes another process of an id, also where no start time tells them apart."""
    rows = []
    for ts in (10, 20, 30):
        child = {k: v for k, v in fork(1, 5, 0, ts=ts).items() if k != "arg_start_time"}
        rows += [child, event("file_open", 5, ts=ts + 1), ended(5, ts + 2)]
    found = tree_of(write(tmp_path / "reused.kcap", rows))
    again = [p for p in found if p["pid"] == 5]

    assert [p["start_ns"] for p in again] == [10, 20, 30]
    assert [p["events"] for p in again] == [2, 2, 2]
    assert all(p["process_key"] is None for p in again)


def test_a_change_of_user_is_shown(tmp_path: Path) -> None:
    """Who becomes root is seen at once; a name that becomes known later is no change."""
    rows = [
        *STORY[:2],
        fork(10, 30, 6 * S, ts=6 * S),
        event("process_setuid", 30, ts=6 * S + 1, arg_ruid=0),
        executed(30, 6 * S + 2, "id", user="root", uid=0),
    ]
    assert text_of(write(tmp_path / "sudo.kcap", rows))[-1].startswith("   └─ 30 id  [ann → root,")


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    """Nothing that a process calls itself can steer the terminal."""
    rows = [there(1, 0, "evil\x1b[2J\n\u202e"), event("file_open", 1, ts=1)]
    path = write(tmp_path / "evil.kcap", rows)

    (line,) = text_of(path)[1:]
    assert line.startswith("1 evil\\x1b[2J\\x0a\\u202e")
    assert "\x1b" not in run("tree", "--json", path).stdout


def test_long_command_lines_are_cut(tmp_path: Path) -> None:
    """Unless --full asks for them; --json has them too."""
    command = "python3 " + "x" * 500
    path = write(tmp_path / "long.kcap", [executed(5, 1, command)])

    assert f"5 {command[:LABEL_CHARS]}…  [" in text_of(path)[1]
    assert f"5 {command}  [" in text_of(path, "--full")[1]
    assert tree_of(path)[0]["cmdline"] == command


def test_many_images_are_summed_up(tmp_path: Path) -> None:
    """The first and the last ones are shown, and how many there were."""
    rows = [executed(5, i + 1, f"step {i}") for i in range(200)]
    path = write(tmp_path / "chain.kcap", rows)

    assert text_of(path)[1].startswith("5 step 0 → (197 more) → step 198 → step 199  [")
    (process,) = tree_of(path)
    assert process["exec_count"] == 200
    assert len(process["execs"]) == lineage.IMAGES_MAX


# Which are shown


def test_a_process_with_what_is_above_and_below(story: Path) -> None:
    """--pid keeps ancestors and descendants; all processes that had the id."""
    assert [p["pid"] for p in tree_of(story, "--pid", "20")] == [1, 10, 20, 20]
    assert [p["pid"] for p in tree_of(story, "--pid", "10")] == [1, 10, 20, 21, 22, 20]
    assert [p["parent"] for p in tree_of(story, "--pid", "21")] == [None, 0, 1]
    result = run("tree", "--pid", "99", story)
    assert result.exit_code == 1
    assert "no process has the id 99" in result.stderr


def test_a_time_range(story: Path) -> None:
    """Who had ended before it is not shown; what comes after it has not happened."""

    def within(*words: str) -> list[tuple[int, bool]]:
        return [(p["pid"], p["exited"]) for p in tree_of(story, *words)]

    sevens = "1970-01-01T00:00:07.5Z"
    assert within("--start", sevens) == [
        (1, False),
        (10, False),
        (21, True),
        (22, False),
        (20, False),
    ]
    assert within("--end", "1970-01-01T00:00:06.5Z") == [(1, False), (10, False), (20, False)]
    assert within("--start", sevens, "--end", "1970-01-01T00:00:08.5Z") == [
        (1, False),
        (10, False),
        (21, False),
    ]


# Hostile and large


def test_cycles_are_cut(tmp_path: Path) -> None:
    """Processes that claim to be each other's parents are shown once each."""
    rows = [there(pid, ppid, f"p{pid}") for pid, ppid in ((1, 3), (2, 1), (3, 2), (7, 7), (9, 7))]
    found = tree_of(write(tmp_path / "cycle.kcap", rows))

    assert sorted(p["pid"] for p in found) == [1, 2, 3, 7, 9]
    assert [p["pid"] for p in found if p["parent"] is None] == [1, 7]


def test_a_very_deep_chain(tmp_path: Path) -> None:
    """Thousands of levels take no recursion, and no line grows without end."""
    count = 5000
    rows = [fork(i, i + 1, i * S, ts=i * S) for i in range(1, count)]
    path = write(tmp_path / "deep.kcap", rows)
    lines = text_of(path)

    assert len(lines) == count + 1
    assert f"({count - 1}) {count} ?" in lines[-1]
    assert max(map(len, lines)) < 3 * DEPTH_MAX + 100
    assert tree_of(path)[-1]["depth"] == count - 1


def test_processes_beyond_the_limit_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory stays bounded; what is left out is said, exit code 3."""
    monkeypatch.setattr(lineage, "PROCESSES_MAX", 10)
    rows = [fork(1, 100 + i, i * S, ts=i * S) for i in range(15)]
    path = write(tmp_path / "many.kcap", rows)

    assert len(tree_of(path, code=3)) == 10
    assert "skipped" in run("tree", path).stderr


def test_a_torn_capture_shows_what_there_is(story: Path, tmp_path: Path) -> None:
    """Exit code 3, and the tree of all that can be read."""
    torn = tmp_path / "torn.kcap"
    torn.write_bytes(story.read_bytes()[:-400])

    assert len(tree_of(torn, code=3)) == 6


def test_nothing_gives_no_tree(tmp_path: Path) -> None:
    """A capture without events is no error."""
    path = tmp_path / "empty.kcap"
    path.write_bytes(capture([EMPTY.with_before([HOST])]))

    assert text_of(path) == []
    assert tree_of(path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_colour_is_for_terminals(story: Path, tmp_path: Path) -> None:
    """None in a pipe, red for what was killed on a terminal; NO_COLOR is obeyed."""
    code, printed = on_a_terminal("tree", story, folder=tmp_path)
    assert code == 0
    assert b"\x1b[31m[ann, 00:00:08.000" in printed
    assert b"\x1b" not in on_a_terminal("tree", story, folder=tmp_path, NO_COLOR="1")[1]
    assert "\x1b[31m" in run("tree", "--color", "always", story).stdout


# Real events


def test_a_real_tracee_dump(data: Callable[[str], Path], tmp_path: Path) -> None:
    """56 processes of an Ubuntu host, the same before and after an import."""
    dump, imported = data(DUMP), tmp_path / "dump.kcap"
    assert run("import", dump, "-o", imported).exit_code == 0
    found = tree_of(dump)

    assert tree_of(imported) == found
    assert len(found) == 56
    shell_of = {p["pid"]: p for p in found}
    which = shell_of[705550]
    assert which["cmdline"] == "/bin/sh /usr/bin/which ps"
    assert found[which["parent"]]["cmdline"] == "/bin/sh -c which ps"
    assert shell_of[705567]["exit_code"] == 1  # a wait status of 256
    assert sum(p["events"] for p in found) == 10_534


def test_the_shipped_capture(fixtures: Path) -> None:
    """A format 1.0 file: the session's processes below the shell that ran it."""
    found = tree_of(fixtures / "first.kcap")
    session = next(p for p in found if p["cmdline"] == "/bin/sh ./session.sh")
    killed = next(p for p in found if p["signal"])

    assert len(found) == 23
    assert (killed["cmdline"], killed["signal"]) == ("sleep 30", 9)
    assert found[killed["parent"]] == session
    assert sum(p["already_running"] for p in found) == 3


@pytest.mark.root
def test_a_live_recording_shows_what_really_ran(tmp_path: Path) -> None:
    """Known processes: who started whom, what they executed, how long, and how they ended."""
    path = tmp_path / "live.kcap"
    recorder = subprocess.Popen(
        [sys.executable, "-m", "kcap.tools", "record", "-o", path],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stderr=subprocess.DEVNULL,
    )
    while not path.exists() or path.stat().st_size < 1000:
        assert recorder.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    # Each lives long enough to be looked up.
    parts = ["sh -c 'sleep 0.2; exit 7'", "bash -c 'sleep 0.15; exec sleep 0.1'"]
    parts += ["sh -c 'sleep 0.15; kill -9 $$'", "(true; sleep 0.05; true)", ":"]
    begun = time.time_ns()
    parent = subprocess.Popen(["bash", "-c", "; ".join(parts)], stderr=subprocess.DEVNULL)
    parent.wait()
    time.sleep(0.3)
    recorder.send_signal(signal.SIGINT)
    assert recorder.wait(30) == 0
    found = tree_of(path)
    at = next(i for i, p in enumerate(found) if p["pid"] == parent.pid and not p["already_running"])
    children = [p for p in found if p["parent"] == at]

    assert [p["cmdline"] for p in children[:3]] == [
        "sh -c sleep 0.2; exit 7",
        "sleep 0.1",
        "sh -c sleep 0.15; kill -9 $$",
    ]
    assert [e["cmdline"] for e in children[1]["execs"]] == [
        "bash -c sleep 0.15; exec sleep 0.1",
        "sleep 0.1",
    ]
    assert [(p["exit_code"], p["signal"]) for p in children[:3]] == [(7, None), (0, None), (0, 9)]
    (slept,) = [p for p in found if p["parent"] == found.index(children[0])]
    assert slept["cmdline"] == "sleep 0.2"
    assert 0.2 * S <= slept["duration_ns"] < 5 * S
    assert begun - S <= found[at]["start_ns"] <= begun + 5 * S
    assert (children[3]["execs"], children[3]["forked"]) == ([], True)  # the subshell
    assert found[found[at]["parent"]]["pid"] == os.getpid()
    assert any(p["pid"] == 1 and p["already_running"] for p in found)


def test_sources_say_when_a_machine_booted(tmp_path: Path) -> None:
    """Start times since boot become times of day where the source's clocks were read."""
    source = SourceInfo(
        "test", host="alpha", boot_id="b005", origin="0" * 32, clocks=((100 * S, 40 * S),)
    )
    path = write(tmp_path / "clock.kcap", STORY[:2], source)

    assert tree_of(path)[1]["start_ns"] == 65 * S
