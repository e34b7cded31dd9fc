"""What runs in the machine of another kernel: a shell loads a module, ``kcap record`` keeps it.

``python3 artifacts_modules_guest.py OUT PROGRAMS`` writes the captures, what Tracee's folder holds
and, as JSON, what was loaded. The options are those of Tracee's introduction to artifacts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from live_support import COMMAND, ROOT

_OPTIONS = ("--output", "none", "--scope", "comm=bash", "--scope", "follow")
_INSMOD, _RMMOD = "busybox insmod", "busybox rmmod"
_FROM_MEMORY = """\
import ctypes, pathlib, sys
image = pathlib.Path(sys.argv[1]).read_bytes()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(175, image, len(image), b"") == 0, ctypes.get_errno()
"""


class Recorded:
    """A recording that has ended."""

    said = ""


@contextmanager
def recording(path: Path, *words: object) -> Iterator[Recorded]:
    """Record while something is done, from when the recorder says that it sees calls."""
    made, told = Recorded(), path.with_suffix(".said")
    command = [*COMMAND, "record", "-o", path, "--duration", "15m", *words]
    with told.open("wb") as stream:
        process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stderr=stream)
    while "recording with" not in told.read_text():
        assert process.poll() is None, told.read_text()
        time.sleep(0.2)
    yield made
    process.send_signal(signal.SIGINT)
    process.wait()
    made.said = told.read_text()
    # Emulated, a start may take so long that the recording rightly calls the time blind.
    assert process.returncode in {0, 3}, made.said


class Shell:
    """The shell that is followed.

    Args:
        programs: The folder with it, what it is linked with, and the module.
    """

    def __init__(self, programs: Path) -> None:
        self._bash = programs / "bash"
        self._env = {**os.environ, "LD_LIBRARY_PATH": str(programs)}

    def __call__(self, script: str) -> dict[str, Any]:
        """Let it run a script: its process, and those modules that are loaded behind it."""
        command = [self._bash, "-c", f"{script}; exit $?"]
        with subprocess.Popen(command, env=self._env) as process:
            assert process.wait() == 0, script
        time.sleep(3)  # emulated, what keeps artifacts is slow to come to its turn
        return {"pid": process.pid, "loaded": loaded()}


def loaded() -> list[str]:
    """The modules that the kernel has."""
    return [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]


def kcap(*words: object) -> str:
    """Run kcap."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)], cwd=ROOT, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> None:
    """Load, unload, take out, load again."""
    out, programs = Path(sys.argv[1]), Path(sys.argv[2])
    del os.environ["PYTHONPATH"]  # these tests' own: as root, kcap wants none
    module, foreign = programs / "dummy.ko", programs / "foreign.ko"
    other = programs / "other.ko"
    # Kernels of Debian take them without the signature at their end, too.
    foreign.write_bytes(module.read_bytes() + bytes(5000))
    other.write_bytes(module.read_bytes() + bytes(3000))
    script = programs / "from_memory.py"
    script.write_text(_FROM_MEMORY)
    tracee, taken = Path("/tmp/tracee"), Path("/tmp/taken")
    stale = tracee / "out/host/module.dev-1.inode-2.pid-3"
    stale.parent.mkdir(parents=True)
    stale.touch()
    bash, about = Shell(programs), module.stat()
    device = os.major(about.st_dev) << 20 | os.minor(about.st_dev)
    said: dict[str, Any] = {"dev": device, "inode": about.st_ino, "before": loaded()}
    capture = ("--capture", "clear-dir", "--capture", "module")
    with recording(out / "file.kcap", *_OPTIONS, *capture) as first:
        subprocess.run(["busybox", "insmod", foreign], check=True)  # of nobody who is followed
        subprocess.run(["busybox", "rmmod", "dummy"], check=True)
        said["file"] = bash(f"{_INSMOD} {module}")
        said["removed"] = bash(f"{_RMMOD} dummy")
    words = (*_OPTIONS, "--capture", f"dir:{tracee}", *capture)
    with recording(out / "both.kcap", *words) as made:
        bash(f"{_INSMOD} {module} && {_RMMOD} dummy")
        bash(f"{sys.executable} -S {script} {module} && {_RMMOD} dummy")
        said["memory"] = bash(f"{sys.executable} -S {script} {other}")
        bash(f"{_RMMOD} dummy")
    said["told"] = made.said
    said["first"] = first.said
    (out / "said.json").write_text(json.dumps(said))
    shutil.copytree(tracee, out / "tracee")
    kcap("artifacts", "extract", out / "file.kcap", "--kind", "module", "-o", taken)
    said["again"] = []
    for folder, pattern in ((taken, "module.*"), (tracee / "out/host", "module.*.inode-*")):
        found = list(folder.glob(pattern))
        assert len(found) == 1, (pattern, sorted(folder.iterdir()), said)
        [file] = found
        again = bash(f"{_INSMOD} {file}")
        said["again"].append([again["loaded"], bash(f"{_RMMOD} dummy")["loaded"]])
    (out / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
