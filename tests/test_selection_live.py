"""Recordings of this host with a scope: all of what is meant is there, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_support import run
from live_support import BTF, recording, rows

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

PROGRAM = "kcap_scoped"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A shell of a name of its own, which starts other programs under theirs."""
    path = tmp_path / PROGRAM
    shutil.copy("/bin/sh", path)
    path.chmod(0o755)
    return path


def touching(program: Path) -> None:
    """The shell writes files; a child of it and another shell write others."""
    folder = program.parent
    script = (
        f"echo > {folder}/mine; /usr/bin/touch {folder}/childs; exec /usr/bin/touch {folder}/last"
    )
    subprocess.run([program, "-c", script], check=True)
    subprocess.run(["/bin/sh", "-c", f"echo > {folder}/strange"], check=True)


def opened(path: Path) -> set[str]:
    """The names of the files that a recording has opens of, among those of `touching`."""
    known = {"mine", "childs", "last", "strange"}
    return {Path(r["arg_pathname"]).name for r in rows(path) if r.get("arg_pathname")} & known


def long(*case: object) -> object:
    """A case that a quick run leaves out."""
    return pytest.param(*case, marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["--scope", f"comm={PROGRAM}"], {"mine"}),
        (["--scope", f"comm={PROGRAM}", "--scope", "follow"], {"mine", "childs", "last"}),
        long(["--scope", "binary={program}"], {"mine"}),
        long(["-w", f"ps.name = '{PROGRAM}'"], {"mine"}),
        long(["--trace", "pid=new", "--trace", "comm=touch"], {"childs", "last"}),
        (["--scope", "tree={pid}"], {"mine", "childs", "last", "strange"}),
        long(["--scope", "tree!={pid}"], set()),
        (["--events", "openat.args.pathname={folder}/m*,*/last"], {"mine", "last"}),
    ],
)
def test_a_recording_has_what_is_meant(
    words: list[str], files: set[str], program: Path, tmp_path: Path
) -> None:
    """Opens of the processes that a scope means, and of no others."""
    path = tmp_path / "r.kcap"
    known = {"program": program, "pid": os.getpid(), "folder": tmp_path}
    with recording(path, *(word.format(**known) for word in words)):
        touching(program)
    assert opened(path) == files


def test_events_that_were_not_asked_for_are_not_there(program: Path, tmp_path: Path) -> None:
    """Executions come for the state alone where only opens are asked for."""
    path = tmp_path / "r.kcap"
    with recording(path, "--events", "openat", "--scope", f"tree={os.getpid()}"):
        touching(program)
    assert {row["event"] for row in rows(path)} == {"openat"}
    told = run("info", path).stdout
    assert "left out while recording, not: events openat; scope tree=" in told
