"""The README is true: its commands are run, and print what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_WORLD = Path(__file__).resolve().parent.parent


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    text = (_WORLD / "README.md").read_text("utf-8")
    return [body for found, body in _FENCE.findall(text) if found == language]


def steps(block: str) -> list[tuple[str, list[str]]]:
    """Commands and the output shown below each."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def fits(shown: list[str], printed: list[str]) -> bool:
    """Whether printed lines are those shown, where ``...`` stands for any number of lines."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(fits(shown[1:], printed[i:]) for i in range(len(printed) + 1))
    return bool(printed) and shown[0] == printed[0] and fits(shown[1:], printed[1:])


def test_fitting_tells_lines_apart() -> None:
    """Negative control: a changed, missing or additional line does not fit."""
    assert fits(["a", "...", "c"], ["a", "b", "b", "c"])
    assert not fits(["a", "c"], ["a", "b"])
    assert not fits(["a"], ["a", "b"])
    assert not fits(["a", "..."], [])


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a command line as the README's reader does, with ``kcap`` on the path."""
    shutil.copytree(_WORLD / "fixtures", tmp_path / "fixtures")
    command = tmp_path / "bin" / "kcap"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kcap.tools "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(_WORLD)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.skipif(sys.platform == "win32", reason="the README's commands are for a POSIX shell")
def test_the_transcript_is_what_happens(
    shell: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    """Every command of every console block prints what stands below it."""
    ran = 0
    for block in blocks("console"):
        for line, shown in steps(block):
            printed = shell(line).stdout.splitlines()
            assert fits(shown, printed), f"$ {line}\n" + "\n".join(printed)
            ran += 1
    assert ran >= 5


def test_the_python_example_runs() -> None:
    """The library example works as it stands."""
    for block in blocks("python"):
        result = subprocess.run(
            [sys.executable, "-c", block],
            cwd=_WORLD,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("61 ")


def test_every_verb_and_option_shown_exists() -> None:
    """Command lines that are not run, because they record or need a host, at least parse."""
    import click

    from kcap.tools.cli import main

    lines = [line for block in blocks("sh") for line in block.splitlines()]
    calls = [c.split() for line in lines for c in re.findall(r"kcap ([a-z][^|#]*)", line)]
    assert len(calls) > 5
    for verb, *words in calls:
        command = main.get_command(click.Context(main), verb)
        assert command is not None, verb
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words[0])
            assert command is not None, words
        known = {o for p in command.params for o in p.opts}
        assert {w for w in words if w.startswith("-") and w != "-"} <= known


def test_links_lead_somewhere() -> None:
    """Every relative link of the README names a file of the project."""
    text = (_WORLD / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (_WORLD / target).exists(), target
