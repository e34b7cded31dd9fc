"""Tracee's signatures that the intrusion does not meet, each on this host as it is.

What is read and written are copies: in a mount namespace of its own a new file system lies over
``/etc``, ``/proc/sys/kernel`` and wherever else something happens, so this host is never changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from cli_support import run
from live_support import BTF, attached
from test_intrusion import found as intrusion
from test_intrusion_live import started

from kcap.detect.engine import Detections
from kcap.detect.rule import Rule
from kcap.format.reader import CaptureReader
from kcap.readers.rules import tracee
from kcap.replay.pipeline import Pipeline
from kcap.writers.jsonl import JsonLines

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
    pytest.mark.skipif(not Path("/usr/lib64").is_dir(), reason="there is no /usr/lib64 to cover"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare(1)"),
]


class Step(NamedTuple):
    """What a signature looks for, and what is next to it."""

    rule: str
    does: str
    """Shell: what is found."""
    but_not: str
    """Shell: what is not."""
    found: int = 1
    """How many alerts there are."""


_ELF: Final = r"printf '\177ELF\2\1\1 no program'"

STEPS: Final = (
    Step("TRC-109", ": < $SYS/randomize_va_space", ": >> $SYS/randomize_va_space; : < $SYS/sysrq"),
    Step(
        "TRC-1012",
        ": > /usr/lib64/ld-a.so.2; mv /usr/lib64/ld-a.so.2 /usr/lib64/ld-b.so.2",
        ": < /usr/lib64/ld-b.so.2; : > /usr/lib64/a.so; : > ld-a.so",
        found=2,
    ),
    Step("TRC-1015", f"{_ELF} > .hidden", f"{_ELF} > shown; echo '#!/bin/sh' > .script"),
    Step("TRC-1023", ": < /proc/$$/mem", ": >> /proc/$$/mem; : < /proc/$$/maps"),
    Step(
        "TRC-1026",
        ": > /etc/rc.local; mv rc /etc/init.d/rc; ./update-rc.d",
        ": < /etc/rc.local; : > /etc/rc; : > rc.local",
        found=3,
    ),
    Step(
        "TRC-1027",
        ": > /etc/crontab; mv job /etc/cron.d/job; ./crontab",
        ": < /etc/crontab; : > crontabs",
        found=3,
    ),
    Step(
        "TRC-1028",
        ": > /etc/sudoers; mv more /etc/sudoers.d/more",
        ": < /etc/sudoers; : > /etc/sudoer; : > sudoers",
        found=2,
    ),
)
"""Signatures of what is found anywhere."""

INSIDE_STEPS: Final = (
    Step("TRC-106", ": > notify_on_release", ": < notify_on_release; : > on_release"),
    Step("TRC-1011", ": >> $SYS/core_pattern", ": < $SYS/core_pattern; : > core_pattern"),
    Step("TRC-1019", "$CALL docker.sock", "$CALL other.sock; : < docker.sock.txt"),
    Step("TRC-1021", ": < proc/kcore", ": >> proc/kcore; : < kcore"),
    Step("TRC-1029", ": < /sys/kernel/debug/sched/debug", ": >> /sys/kernel/debug/sched/debug"),
    Step("TRC-1031", ": >> $SYS/sysrq", ": < $SYS/sysrq; : > sysrq"),
)
"""Signatures of what means something in a container alone."""

IMPOSSIBLE: Final = {
    "TRC-15": "no table of system calls is overwritten here",
    "TRC-16": "hooked_proc_fops is not recorded",
    "TRC-1017": "no module is loaded into this kernel",
    "TRC-1020": "hooked_proc_fops is not recorded",
    "TRC-1030": "no table of system calls is overwritten here",
}
"""Signatures that are not seen live, and why: they are about what changes the kernel itself."""

CONTAINER: Final = "5197a7e5" * 8

_COVERS: Final = """
for covered in /etc /proc/sys/kernel /sys/kernel/debug; do mount -t tmpfs none $covered; done
mount --bind lib64 /usr/lib64
mkdir /etc/init.d /etc/cron.d /etc/sudoers.d /sys/kernel/debug/sched
for name in randomize_va_space core_pattern sysrq; do echo 0 > $SYS/$name; done
echo > /sys/kernel/debug/sched/debug
touch /etc/crontab /etc/rc.local /etc/sudoers /usr/lib64/ld-b.so.2
echo ready
read -r go
"""
_ENTER: Final = """
for group in $GROUPS_OF_IT; do
    echo $$ > $group/cgroup.procs || rmdir $group  # cpuset wants more to be said first
done 2> /dev/null
exec unshare --pid --fork sh -e inside
"""
_CALL: Final = """
import socket, sys
with socket.socket(socket.AF_UNIX) as one:
    one.connect_ex(sys.argv[1])
"""


class Steps:
    """The steps, which wait until they are watched.

    Args:
        folder: Where they happen; an empty one.
        rules: Of these signatures.
        groups: Control groups that are named as a container's.
    """

    def __init__(self, folder: Path, rules: Sequence[str], groups: Sequence[Path]) -> None:
        outside = [step for step in STEPS if step.rule in rules]
        inside = [step for step in INSIDE_STEPS if step.rule in rules]
        for name in ("proc", "lib64"):
            (folder / name).mkdir()
        for name in ("rc", "job", "more", "proc/kcore", "kcore", "docker.sock.txt"):
            (folder / name).touch()
        for name in ("update-rc.d", "crontab"):  # of a script Tracee tells the interpreter's path
            shutil.copy("/bin/true", folder / name)
        for path in Path("/usr/lib64").iterdir():
            (folder / "lib64" / path.name).symlink_to(path.resolve())
        (folder / "call.py").write_text(_CALL)
        deeds = [step.does for step in outside]
        near = [step.but_not for step in outside] + [step.does for step in inside]
        (folder / "enter").write_text(_ENTER)
        (folder / "inside").write_text(_lines(s for i in inside for s in (i.does, i.but_not)))
        (folder / "all").write_text(_lines([_COVERS, *deeds, *near, "sh -e enter"]))
        words = ("unshare", "--mount", "--propagation", "private", "sh", "-e", "all")
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "SYS": "/proc/sys/kernel",
                "GROUPS_OF_IT": " ".join(map(str, groups)),
                "CALL": f"{sys.executable} -S call.py",
            },
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        self.scope = ("--scope", f"tree={self._process.pid}")

    def happen(self, watcher: subprocess.Popen[bytes]) -> None:
        """Let them happen to their end, once their watcher is attached; then end that."""
        try:
            until_s = time.monotonic() + 60
            while not attached(watcher.pid):
                assert watcher.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.02)
            self._process.communicate(b"go\n", timeout=60)
            assert self._process.returncode == 0
            watcher.send_signal(signal.SIGINT)
            watcher.wait(60)
        finally:
            for each in (self._process, watcher):
                if each.poll() is None:
                    each.kill()
                    each.communicate()


def _lines(parts: Iterable[str]) -> str:
    return "".join(f"{part}\n" for part in parts)


@contextlib.contextmanager
def control_groups() -> Iterator[list[Path]]:
    """Control groups that are named as runtimes name a container's, one in each hierarchy.

    Yields:
        Their folders.
    """
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    groups = [
        Path(at, f"docker-{CONTAINER}.scope")
        for _, at, kind, *_ in mounts
        if kind in ("cgroup", "cgroup2")
    ]
    for group in groups:
        group.mkdir()
    try:
        yield groups
    finally:
        for group in groups:
            _removed(group)


def _removed(group: Path) -> None:
    """Remove a control group: it is empty a moment after its last process has gone."""
    until_s = time.monotonic() + 5
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            assert time.monotonic() < until_s
            time.sleep(0.02)


def piped(folder: Path, rules: Sequence[str]) -> tuple[bytes, Path]:
    """Record for some rules into a pipe that they read; keep what went through it.

    Args:
        folder: An empty one.
        rules: Their IDs.

    Returns:
        The alerts of the time, and the recording.
    """
    kept, deeds = folder / "kept.kcap", folder / "deeds"
    deeds.mkdir()
    named, pipe = ("--rules", ",".join(rules)), subprocess.PIPE
    with control_groups() as groups:
        steps = Steps(deeds, rules, groups)
        words = ("record", "-o", "-", *named, "--duration", "2m", *steps.scope)
        with (
            started(*words, stdin=subprocess.DEVNULL, stdout=pipe) as recorder,
            subprocess.Popen(["tee", kept], stdin=recorder.stdout, stdout=pipe) as tee,
            started("detect", *named, "--format", "jsonl", "-", stdin=tee.stdout, stdout=pipe) as d,
        ):
            steps.happen(recorder)
            found, _ = d.communicate(timeout=60)
    assert (recorder.returncode, tee.returncode, d.returncode) == (0, 0, 0)
    return found, kept


def expected(rules: Sequence[str]) -> list[str]:
    """The alerts that must come of some signatures, and no others."""
    steps = [step for step in (*STEPS, *INSIDE_STEPS) if step.rule in rules]
    return [step.rule for step in steps for _ in range(step.found)]


def check(found: bytes, kept: Path, rules: Sequence[str]) -> None:
    """The alerts are those expected, of where they must be, and the same when replayed."""
    alerts = [json.loads(line) for line in found.splitlines()]
    assert [one["arg_rule"] for one in alerts] == expected(rules)
    inside = {step.rule for step in INSIDE_STEPS}
    for one in alerts:
        assert (one.get("container_id") == CONTAINER) == (one["arg_rule"] in inside)
    named = ("--rules", ",".join(rules))
    for verb in ("detect", "replay"):
        later = run(verb, *named, "--format", "jsonl", kept)
        lines = [line for line in later.stdout.splitlines() if json.loads(line)["kind"] == "alert"]
        assert later.exit_code == 0
        assert _lines(lines).encode() == found
    for rule in inside & set(rules):
        # The same was done outside: only where it comes from keeps the signature quiet there.
        [one] = tracee.signatures("all", {rule})
        anywhere = [each._replace(filter=each.anywhere or each.filter) for each in one.selectors]
        assert len(raised(replace(one, selectors=tuple(anywhere)), kept)) == 2
        assert len(raised(one, kept)) == 1


def raised(rule: Rule, kept: Path) -> list[bytes]:
    """The alerts of a rule, in JSON."""
    out = io.BytesIO()
    with kept.open("rb") as stream:
        Pipeline(
            CaptureReader(stream, str(kept)), [JsonLines(out)], taps=[Detections([rule])]
        ).run()
    return [line for line in out.getvalue().splitlines() if json.loads(line)["kind"] == "alert"]


def test_they_are_raised_and_nothing_else(tmp_path: Path) -> None:
    """Each is raised of what it looks for, live and later alike, and of nothing beside it."""
    rules = [step.rule for step in (*STEPS, *INSIDE_STEPS)]
    check(*piped(tmp_path, rules), rules)


@pytest.mark.long
@pytest.mark.parametrize("rule", [step.rule for step in (*STEPS, *INSIDE_STEPS)])
def test_each_by_itself(rule: str, tmp_path: Path) -> None:
    """What is recorded for one signature alone is enough for it."""
    check(*piped(tmp_path, [rule]), [rule])


def test_all_are_seen_or_impossible() -> None:
    """Every signature is raised of these steps or of the intrusion, or it is said why not."""
    seen = {one["arg_rule"] for one in intrusion("--signatures", "all")}
    here = {step.rule for step in (*STEPS, *INSIDE_STEPS)}
    assert not seen & here
    assert not (seen | here) & IMPOSSIBLE.keys()
    every = {rule.about.id for rule in tracee.signatures("all")}
    assert seen | here | IMPOSSIBLE.keys() == every
