"""Programs whose doings are known: tests/workloads and tests/scenario, built where needed.

Each prints what it truly did as JSON lines (``tests/workloads/say.h``); tests compare recordings
with that.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

SOURCES: Final = Path(__file__).resolve().parent / "workloads"
SCENARIO: Final = SOURCES.with_name("scenario")

_OPTIONS: Final = {
    "child": ("-nostdlib", "-fno-stack-protector"),
    "compat": ("-m32",),
}
"""Besides those of every program."""

Fact = dict[str, Any]
"""One line: ``did``, ``pid``, ``tid`` and what the program adds."""


def facts(output: str) -> list[Fact]:
    """What a workload said that it did."""
    return [json.loads(line) for line in output.splitlines()]


class Workloads:
    """The programs, built on first use.

    Args:
        folder: Where they are built.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> str:
        """Give the path of a program.

        Args:
            name: Its source's name, without the ending.

        Returns:
            An absolute path.

        Raises:
            SkipTest: There is no compiler for it here.
        """
        path = self._folder / name
        if not path.exists():
            self._build(name, path)
        return str(path)

    @property
    def child(self) -> str:
        """The program of one system call that others run."""
        return self.path("child")

    def run(self, name: str, *words: object, timeout_s: float = 60, code: int = 0) -> list[Fact]:
        """Run a program to its end.

        Args:
            name: Which.
            words: Its arguments.
            timeout_s: How long it may take.
            code: The exit code expected.

        Returns:
            What it did.
        """
        command = [self.path(name), *map(str, words)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
        assert done.returncode == code, (command, done.returncode, done.stderr)
        return facts(done.stdout.decode())

    def start(self, name: str, *words: object) -> subprocess.Popen[str]:
        """Start a program that does things until its standard input ends, or waits for it.

        Args:
            name: Which.
            words: Its arguments.

        Returns:
            The process; its streams are text.
        """
        command = [self.path(name), *map(str, words)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def _build(self, name: str, path: Path) -> None:
        if platform.machine() != "x86_64":
            raise SkipTest("the programs make system calls of x86-64")
        if shutil.which("gcc") is None:
            raise SkipTest("gcc is not installed; `make test` as root on Debian installs it")
        options = ["-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
        options += [*_OPTIONS.get(name, ()), "-o", str(path)]
        [source] = [str(path) for each in (SOURCES, SCENARIO) for path in each.glob(f"{name}.c")]
        done = subprocess.run(["gcc", *options, source], capture_output=True, check=False)
        if done.returncode and name == "compat":
            raise SkipTest("gcc -m32 does not work here: on Debian, gcc-multilib is missing")
        assert done.returncode == 0, done.stderr.decode()
