"""Artifacts go along with their events into whatever capture is made of another input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from artifact_support import tracee_event, tracee_folder
from binaries_support import BLACKWATER, TEXT, Blob, capture, event
from cli_support import run, shell

FORMS = {
    "cat": ("cat", "--format", "kcap"),
    "replay": ("replay", "--format", "kcap"),
    "filter": ("filter",),
}


def folder(path: Path) -> Path:
    """Tracee's: two artifacts with an event each, one of no event."""
    events = [
        tracee_event("sched_process_exec", 1000, {"pathname": "/tmp/evil"}),
        tracee_event("sched_process_exec", 2000, {"pathname": "/tmp/x"}),
        tracee_event("openat", 3000, {"pathname": "/x"}),
    ]
    files = {"exec.1000.evil": BLACKWATER, "exec.2000.x": TEXT, "exec.5.alone": b"alone"}
    return tracee_folder(path, {f"host/{name}": data for name, data in files.items()}, events)


def saved(path: Path) -> Path:
    """The same as a capture."""
    path.mkdir()
    made = path / "a.kcap"
    events = [event("sched_process_exec", 1, "/bin/sh", pathname=p) for p in ("/tmp/evil", "/x")]
    blobs = [Blob(BLACKWATER, "/tmp/evil", 0), Blob(TEXT, "/tmp/x", 1)]
    alone = Blob(b"alone", "alone", 0)._replace(ord=None, origin=None)
    made.write_bytes(
        capture([*events, event("openat", 3, "/bin/sh", pathname="/x")], [*blobs, alone])
    )
    return made


def names(path: Path, *words: str) -> list[str]:
    """What artifacts a capture has, by where they were."""
    result = run("artifacts", "list", path, "--json", *words)
    assert result.exit_code == 0, result.output
    said = [json.loads(line) for line in result.stdout.splitlines()]
    return sorted(str(one["path"] or one["details"]["name"]).rsplit("/", 1)[-1] for one in said)


@pytest.mark.parametrize("verb", ["cat", "replay", "filter"])
@pytest.mark.parametrize("made", [folder, saved])
def test_artifacts_of_the_events_that_stay(verb: str, made: object, tmp_path: Path) -> None:
    source = made(tmp_path / "in")  # type: ignore[operator]
    assert names(source) == ["alone", "evil", "x"]
    out = tmp_path / "out.kcap"
    for where, expected in (
        ("args.pathname = '/tmp/evil'", ["evil"]),
        ("evt.name = 'openat'", []),
        ("evt.name != 'openat'", ["evil", "x"]),
    ):
        result = run(*FORMS[verb], source, "-w", where, "-o", out, "--force")
        assert result.exit_code == 0, result.output
        assert names(out) == expected, where


@pytest.mark.parametrize("verb", ["cat", "replay"])
@pytest.mark.parametrize("made", [folder, saved])
def test_all_of_them_with_all_events(verb: str, made: object, tmp_path: Path) -> None:
    """Those of no event, too; the first events take theirs."""
    source = made(tmp_path / "in")  # type: ignore[operator]
    out, first = tmp_path / "out.kcap", tmp_path / "first.kcap"
    assert run(*FORMS[verb], source, "-o", out).exit_code == 0
    assert names(out) == ["alone", "evil", "x"]
    assert run(*FORMS[verb], source, "-n", "1", "-o", first).exit_code == 0
    assert names(first) == ["evil"]


def test_a_part_of_a_replay_takes_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out.kcap"
    result = run(*FORMS["replay"], "--start", "#1", saved(tmp_path / "in"), "-o", out)
    assert (result.exit_code, names(out)) == (0, ["x"])


@pytest.mark.parametrize("verb", ["cat", "replay"])
def test_what_a_pipe_has_stays_behind_and_is_counted(verb: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "in")
    done = shell(f"cat {source} | kcap {verb} --format kcap -o out.kcap -", tmp_path)
    assert done.returncode == 3
    assert b"blobs of a pipe stayed behind" in done.stderr
    assert names(tmp_path / "out.kcap") == []


def test_a_copy_is_verified_with_its_artifacts(tmp_path: Path) -> None:
    """Of a run with a manifest; another content is noticed."""
    source, says = saved(tmp_path / "in"), tmp_path / "run.json"
    words = ["--format", "kcap", "-o", tmp_path / "out.kcap", "--manifest", says]
    assert run("replay", source, *words).exit_code == 0
    assert run("replay", "--verify", says).exit_code == 0


def test_artifacts_of_an_argument_of_whatever_type(tmp_path: Path) -> None:
    """Its column carries the class of a value that is none of its name's home (spec 5.3)."""
    path = tmp_path / "a.kcap"
    given = ({"fd": 5}, {"fd": "five"}, {"unheard": 5}, {"unheard": "six"})
    events = [event("openat", n, "/bin/sh", **said) for n, said in enumerate(given)]
    path.write_bytes(capture(events, [Blob(TEXT, f"/{n}", n) for n in range(len(given))]))
    for where, expected in (
        ("evt.arg[fd] = 5", ["0"]),
        ("evt.arg[fd] = 'five'", ["1"]),
        ("evt.arg[unheard] = 5", ["2"]),
        ("arg_unheard__str = 'six'", ["3"]),
        ("exists(evt.arg[unheard])", ["2", "3"]),
        ("evt.arg[unheard] = 6", []),
    ):
        assert names(path, "-w", where) == expected, where
        printed = run("cat", path, "-w", where, "--format", "jsonl").stdout.splitlines()
        assert [str(json.loads(line)["ord"]) for line in printed] == expected, where
