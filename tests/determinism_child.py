"""One cell of the matrix: every output of some captures, hashed, in a world without a clock.

``determinism_child.py FOLDER CUTS OUTPUTS FILE...`` cuts each capture anew in several ways, prints
what kcap makes of each of them, and gives the digests as JSON; then also those of a kcap that was
broken on purpose. Once all modules are loaded, nothing may read the clock, /proc, /etc or /sys, or
make a socket: whoever does ends the run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner
from replay_support import Cut

from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch
from kcap.replay.pipeline import Pipeline
from kcap.state import State
from kcap.tools.cli import main
from kcap.writers import jsonl
from kcap.writers.jsonl import JsonLines

CUTS: dict[str, Callable[[random.Random], Sequence[int]]] = {
    "single": lambda _: [1],
    "997": lambda _: [997],
    "whole": lambda _: [65_536],
    "random": lambda rng: [rng.randrange(1, 30) for _ in range(50)],
}

COUNTER = '''"""Counts events by name; an alert for every tenth."""

counts = {}


def on_init():
    columns(["Event", "Count"])
    sort_by("Count")


def on_next_event(event):
    name = event["name"]
    counts[name] = counts.get(name, 0) + 1
    if counts[name] % 10 == 0:
        emit_alert("tenth", f"{name} {counts[name]}", severity="medium", tags=["a", "b"])


def on_stop():
    for name in {name for name in counts}:
        add_row([name, counts[name]])
    render_table()
'''

STATEFUL = "ps.ancestor in ('session.sh', 'sh') or ps.parent.cmdline contains 'e'"

OUTPUTS: dict[str, tuple[str, ...]] = {
    **{
        form: ("replay", "--format", form)
        for form in ("line", "jsonl", "table", "table-verbose", "csv", "tracee-json", "null")
    },
    "template": ("replay", "--template", "{{ .Timestamp }} {{ .Process }} {{ .Kparams }}"),
    "jinja": ("replay", "--format", "template", "--template", "{{ ts }} {{ event }} {{ pid }}\n"),
    "state": ("replay", "--format", "jsonl", "--state"),
    "kin": ("replay", "--format", "jsonl", "-w", STATEFUL),
    "middle": ("replay", "--format", "jsonl", "--start", "#17", "-w", STATEFUL),
    "forkstat": ("replay", "--view", "forkstat"),
    "execsnoop": ("replay", "--view", "execsnoop -T"),
    "filament": ("replay", "-f", "counter.py", *["--format", "jsonl", "--force", "-o", "out"]),
    "table of a filament": ("replay", "-f", "counter.py"),
    "export": ("export", "--format", "csv"),
    "tree": ("tree",),
    "timeline": ("timeline", "--by", "event"),
    "stats": ("stats", "--by", "event"),
}


MORE = ("line", "jsonl", "kin", "middle", "filament")
"""Outputs of all captures but the first."""


class BlockedError(Exception):
    """Something looked at the world."""


class Guard:
    """Refuses what a replay has no business with."""

    def __init__(self) -> None:
        self.armed = False
        self.allowed: frozenset[str] = frozenset()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if not self.armed:
            return
        if event.startswith("socket.") or event in ("time.sleep", "os.listdir"):
            raise BlockedError(event)
        path = str(arguments[0]) if event == "open" else ""
        if path.startswith(("/proc", "/etc", "/sys")) and path not in self.allowed:
            raise BlockedError(f"open {path}")

    def clock(self, name: str) -> Callable[..., Any]:
        """A clock that may not be read while a replay runs."""
        inner = getattr(time, name)

        def read(*arguments: Any) -> Any:
            if self.armed and not arguments:
                raise BlockedError(f"time.{name}")
            return inner(*arguments)

        return read


GUARD = Guard()
STARTING = frozenset({"/proc/self/status", "/etc/passwd"})
"""Whether this is root, and who a filament becomes then: read before it starts."""
WARM: set[str] = set()
"""Outputs whose modules are loaded."""


def cut_anew(path: Path, target: Path, sizes: Sequence[int]) -> None:
    """Write a capture again, in chunks of these sizes."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=bytes(16))

    class Flushed:
        def write(self, batch: Batch) -> None:
            writer.write(batch)
            writer.flush()

        def close(self) -> None:
            writer.close()

    with path.open("rb") as stream:
        Pipeline(Cut(CaptureReader(stream, path.name), sizes), [Flushed()]).run()
    target.write_bytes(out.getvalue())


def digest(name: str, output: str) -> str:
    """What an output makes of a capture; the first time twice, as that may load modules."""
    words = OUTPUTS[output]
    for armed in (False, True) if output not in WARM else (True,):
        GUARD.armed, GUARD.allowed = armed, STARTING if "-f" in words else frozenset()
        try:
            result = CliRunner().invoke(main, [words[0], name, *words[1:]], prog_name="kcap")
        finally:
            GUARD.armed = False
    WARM.add(output)
    if result.exit_code:
        return f"failed: {result.stderr[:300]}"
    made = result.stdout_bytes + (Path("out").read_bytes() if "-o" in words else b"")
    return f"{hashlib.sha256(made).hexdigest()[:16]} {len(made)}"


def _shuffled(batch: Batch) -> list[str]:
    return list({*batch.columns})


def _forgetful(self: State, batch: Batch, **options: Any) -> Batch:
    self._tables.clear()
    return UPDATE(self, batch, **options)


def _stamped(self: JsonLines, batch: Batch) -> None:
    self._stream.write(f"{time.time()}\n".encode())
    WRITE(self, batch)


def _named(self: JsonLines, batch: Batch) -> None:
    Path("/etc/hostname").read_text()
    WRITE(self, batch)


UPDATE, WRITE = State.update, JsonLines.write
CONTROLS: dict[str, tuple[Any, str, Any, str]] = {
    "set": (jsonl, "_in_order", _shuffled, "jsonl"),
    "state": (State, "update", _forgetful, "kin"),
    "clock": (JsonLines, "write", _stamped, "jsonl"),
    "host": (JsonLines, "write", _named, "jsonl"),
}
"""What is broken, and the output that shows it."""


def run(
    folder: Path, cuts: Sequence[str], outputs: Sequence[str], files: Sequence[str]
) -> dict[str, str]:
    """All digests, by capture, cut and output."""
    rng = random.Random()  # other cuts in each cell: any must do
    for cut in cuts:
        place = folder / cut
        place.mkdir()
        for file in files:
            cut_anew(Path(file), place / Path(file).name, CUTS[cut](rng))
        (place / "counter.py").write_text(COUNTER)
    sys.addaudithook(GUARD.audit)
    for name in ("time", "time_ns", "localtime", "gmtime"):
        setattr(time, name, GUARD.clock(name))
    found: dict[str, str] = {}
    for cut in cuts:
        os.chdir(folder / cut)
        for file in files:
            for output in outputs if file == files[0] else MORE:
                found[f"{Path(file).stem}|{cut}|{output}"] = digest(Path(file).name, output)
        for control, (where, name, broken, output) in CONTROLS.items():
            with mock.patch.object(where, name, broken):
                found[f"{control}|{cut}|{output}"] = digest(Path(files[0]).name, output)
    return found


if __name__ == "__main__":
    _, where_to, which_cuts, which_outputs, *which_files = sys.argv
    made = run(Path(where_to), which_cuts.split(","), which_outputs.split(","), which_files)
    print(json.dumps(made))
