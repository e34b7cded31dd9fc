"""What runs in a Debian system with systemd: the life of the service, each step written down.

``python3 service_guest.py OUT`` writes the captures and, as JSON, what every command said.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CAPTURES = Path("/var/lib/kcap")
OTHER = Path("/data/captures")
UNIT = Path("/etc/systemd/system/kcap.service")
PROGRAM = Path("/opt/kcap/programs")
SHOWN = "ActiveState,SubState,MainPID,NRestarts,ExecMainStatus,ExecMainCode,Result,StatusText"


class Steps:
    """What was done, in order."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}

    def run(self, step: str, *words: str) -> None:
        """Run a command and write down how it ended."""
        begun_s = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
        took_s = time.monotonic() - begun_s
        self.said[step] = {
            "code": done.returncode, "stdout": done.stdout, "stderr": done.stderr, "took_s": took_s
        }  # fmt: skip
        print(f"{step}: code {done.returncode}, {took_s:.1f} s", flush=True)
        if done.returncode:
            print(done.stderr, flush=True)

    def service(self, step: str, *words: str) -> None:
        """Run ``kcap service``."""
        self.run(step, "/bin/python3", "-I", "-m", "kcap.tools", "service", *words)

    def note(self, step: str, value: object) -> None:
        """Write something else down."""
        self.said[step] = value


def shown(name: str = "kcap") -> dict[str, str]:
    """What systemd knows of the service."""
    words = ["systemctl", "show", f"{name}.service", f"--property={SHOWN}"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def until(true: Callable[[], object], limit_s: float = 300) -> None:
    """Wait for something."""
    end_s = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end_s:
            raise TimeoutError(true)
        time.sleep(0.2)


def execute(name: str) -> None:
    """Execute a program that nobody else does, and wait until it must be on the disk."""
    PROGRAM.mkdir(exist_ok=True)
    path = PROGRAM / name
    shutil.copy("/bin/busybox", path)
    subprocess.run(["busybox", "true"], executable=path, check=True)
    time.sleep(8)  # emulated, the recorder may be late


def rights(pid: int) -> dict[str, str]:
    """What a process may do, as /proc tells."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    wanted = ("Name", "Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
    return {k: v.strip() for k, _, v in (li.partition(":") for li in lines) if k in wanted}


def processes() -> list[dict[str, str]]:
    """The rights of each process of the service."""
    text = Path("/sys/fs/cgroup/system.slice/kcap.service/cgroup.procs").read_text()
    return [rights(int(pid)) for pid in text.split()]


def live(steps: Steps) -> None:
    """Install it, record, rotate, restart, be killed, stop."""
    steps.service("status of none", "status")
    steps.service("install", "install", "--now")
    steps.note("running", shown())
    steps.note("processes", processes())
    execute("first")
    steps.service("status", "status", "--json")
    steps.service("status as text", "status")
    steps.service("install again", "install")
    parts = len(list(CAPTURES.iterdir()))
    steps.run("reload", "systemctl", "reload", "kcap.service")
    until(lambda: len(list(CAPTURES.iterdir())) > parts)  # with the next batch, as the signal asks
    execute("reloaded")
    steps.service("restart", "restart")
    execute("second")
    before = shown()
    main = int(before["MainPID"])
    assert main > 0, before
    os.kill(main, signal.SIGKILL)
    until(lambda: shown().items() >= {"ActiveState": "active", "NRestarts": "1"}.items())
    steps.note("after a kill", shown())
    execute("third")
    steps.service("stop", "stop")
    steps.note("stopped", shown())
    steps.service("status when stopped", "status", "--json")


def fail(steps: Steps) -> None:
    """Start-up errors: a folder that is missing, and one that cannot be written."""
    OTHER.parent.mkdir()
    folder = str(OTHER)
    steps.service("install another", "install", "--name", "other", "--output-folder", folder)
    OTHER.rmdir()
    steps.service("start without a folder", "start", "--name", "other")
    steps.run("journal without a folder", "journalctl", "-u", "other.service", "-o", "cat")
    OTHER.mkdir()
    steps.run("make it read-only", "mount", "-t", "tmpfs", "-o", "ro", "captures", folder)
    steps.service("start read-only", "start", "--name", "other")
    steps.run("make it writable", "mount", "-o", "remount,rw", folder)
    steps.service("start at last", "start", "--name", "other")
    steps.service("remove another", "remove", "--name", "other")
    steps.note("other captures", len(list(OTHER.glob("*.kcap"))))


def main() -> None:
    """Do all of it."""
    out, steps = Path(sys.argv[1]), Steps()
    try:
        live(steps)
        fail(steps)
        UNIT.with_name("theirs.service").write_text("[Service]\nExecStart=/bin/busybox true\n")
        steps.service("remove theirs", "remove", "--name", "theirs")
        steps.service("remove", "remove")
        steps.note("unit stays", UNIT.exists())
        steps.run("units", "systemctl", "list-unit-files", "--no-pager", "--no-legend", "kcap*")
        steps.run("failed units", "systemctl", "--failed", "--no-legend", "--plain")
    finally:
        steps.run("journal", "journalctl", "-b", "--no-pager", "-u", "kcap.service")
        (out / "said.json").write_text(json.dumps(steps.said, indent=1))
        shutil.copytree(CAPTURES, out / "captures")


if __name__ == "__main__":
    main()
