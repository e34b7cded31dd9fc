"""Running kcap for the tests: in this process, in a shell, on a terminal."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from support import capture, read, rows_of

from kcap.model.batch import concat
from kcap.tools.cli import main

EVENTS = concat(read(capture())[0])
"""The events of the capture that most tests use."""


def run(*words: str | Path, **options: Any) -> Result:
    """Run kcap in this process."""
    return CliRunner().invoke(main, [str(w) for w in words], prog_name="kcap", **options)


def rows_in(path: Path) -> list[str]:
    """The events in a closed capture."""
    batches, losses = read(path.read_bytes())
    assert not losses
    return rows_of(batches)


def lines_of(*words: str | Path, **options: Any) -> list[dict[str, Any]]:
    """The events that a run of kcap prints as JSON lines."""
    result = run(*words, "--format", "jsonl", **options)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def shell(command: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, in which `kcap` is this checkout's."""
    root = Path(__file__).parent.parent
    define = f'kcap() {{ {shlex.quote(sys.executable)} -m kcap.tools "$@"; }}\nset -o pipefail\n'
    return subprocess.run(
        ["bash", "-c", define + command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), **env},
        capture_output=True,
        timeout=60,
        check=False,
    )


def on_a_terminal(*words: str | Path, folder: Path, **env: str) -> tuple[int, bytes]:
    """Run kcap with a terminal as its standard output and error; give code and what it printed."""
    leader, follower = pty.openpty()
    root = Path(__file__).parent.parent
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "kcap.tools", *map(str, words)],
        cwd=folder,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**clean, "PYTHONPATH": str(root), "TERM": "xterm", **env},
    )
    os.close(follower)
    printed = b""
    try:
        while data := os.read(leader, 65536):
            printed += data
    except OSError:
        pass  # how Linux says that the last process closed the terminal
    os.close(leader)
    return process.wait(60), printed
