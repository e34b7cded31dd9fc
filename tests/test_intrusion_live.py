"""Tracee's signatures while things happen: the same alerts as from the recording, byte for byte."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from cli_support import run
from intrusion import WAITS, events
from live_support import BTF, COMMAND, ROOT, attached
from test_intrusion import ALERTS, ASKED, first_of
from workload_support import Workloads

from kcap.readers.live import choosing
from kcap.readers.live.bpf import events as catalogue
from kcap.readers.live.scopes import Choice
from kcap.readers.rules.tracee import signatures

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

EXPECTED: Final = [line.split()[0] for line in ALERTS.splitlines()]
_LIMIT: Final = ("--duration", "2m")


class Intrusion:
    """The intrusion, which waits until it is watched.

    Args:
        folder: Where it happens.
        workloads: The programs.
    """

    def __init__(self, folder: Path, workloads: Workloads) -> None:
        folder.mkdir()
        self._process = subprocess.Popen(
            [*WAITS, workloads.path("intrusion"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
        )
        self.scope = ("--scope", f"tree={self._process.pid}")

    def happens(self, watcher: subprocess.Popen[bytes], last: str = "sys_exit") -> None:
        """Let it happen to its end, once its watcher is attached; then end that."""
        try:
            until_s = time.monotonic() + 60
            while not attached(watcher.pid, last):
                assert watcher.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.02)
            self._process.communicate(b"go\n", timeout=60)
            assert self._process.returncode == 0
            watcher.send_signal(2)
            watcher.wait(60)
        finally:
            for each in (self._process, watcher):
                if each.poll() is None:
                    each.kill()
                    each.communicate()


def started(*words: str | Path, **streams: Any) -> subprocess.Popen[bytes]:
    """Start kcap."""
    command = [*COMMAND, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, **streams)


def ids(text: str) -> list[str]:
    """The rules of alerts in text."""
    start = "Signature ID: "
    return [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]


def piped(folder: Path, workloads: Workloads, rules: Sequence[str] = ()) -> tuple[str, Path]:
    """Record into a pipe that rules read; keep what went through it.

    Args:
        folder: An empty one.
        workloads: The programs.
        rules: Options of `kcap detect`.

    Returns:
        The alerts of the time, and the recording.
    """
    kept = folder / "kept.kcap"
    intrusion = Intrusion(folder / "intrusion", workloads)
    names = events(*rules)
    chosen = choosing.choose(map(Choice, names.split(","))).events
    last = "sys_exit" if any(catalogue.events()[one].is_call for one in chosen) else "task_rename"
    words = ("record", "-o", "-", *_LIMIT, "--events", names, *intrusion.scope)
    pipe = subprocess.PIPE
    with (
        started(*words, stdin=subprocess.DEVNULL, stdout=pipe) as recorder,
        subprocess.Popen(["tee", kept], stdin=recorder.stdout, stdout=pipe) as tee,
        started("detect", *rules, "-", stdin=tee.stdout, stdout=pipe) as detect,
    ):
        intrusion.happens(recorder, last)
        found = detect.communicate(timeout=60)[0].decode()
    assert (recorder.returncode, tee.returncode, detect.returncode) == (0, 0, 0)
    return found, kept


def test_in_order_live_and_later(tmp_path: Path, workloads: Workloads) -> None:
    """All of them are raised while it happens, in order; the recording gives the same bytes."""
    found, kept = piped(tmp_path, workloads)
    later = run("detect", kept)
    replayed = run("replay", "--signatures", "seed", kept)

    assert ids(found) == EXPECTED
    assert [name for name in first_of(ids(found)) if name in ASKED] == ASKED
    assert (later.exit_code, later.stdout) == (0, found)
    assert (replayed.exit_code, replayed.stdout) == (0, found)


@pytest.mark.long
@pytest.mark.parametrize("rule", [one.about.id for one in signatures("seed")])
def test_one_rule_over_a_pipe(rule: str, tmp_path: Path, workloads: Workloads) -> None:
    """What one rule needs is recorded for it; all of its alerts come, and others are missing."""
    found, kept = piped(tmp_path, workloads, ("--rules", rule))

    assert ids(found) == [one for one in EXPECTED if one == rule]
    assert ids(run("detect", kept).stdout) != EXPECTED


@pytest.mark.long
def test_run(tmp_path: Path, workloads: Workloads) -> None:
    """`kcap run` with the signatures prints the alerts of the same steps; nothing is stored."""
    intrusion = Intrusion(tmp_path / "intrusion", workloads)
    words = ("run", "--signatures", "seed", *_LIMIT, *intrusion.scope)
    with (tmp_path / "alerts").open("wb") as out:
        watcher = started(*words, stdin=subprocess.DEVNULL, stdout=out)
        intrusion.happens(watcher)

    assert watcher.returncode == 0
    assert ids((tmp_path / "alerts").read_text()) == EXPECTED
