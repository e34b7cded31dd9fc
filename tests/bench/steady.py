"""A steady load, recorded to a file: what each recorder takes while it goes on.

``python tests/bench/steady.py`` prints the table, with ``--write`` it goes into docs/benchmarks.md.
Needs root. The recorders take turns; CPU is that of all their processes over the time of the load,
memory the most that they had together (PSS: pages that processes share count once), each second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import page
import record
from record import WHOLE_OPEN, Watch, bpftrace, cpu_s, kcap, perf

ROOT: Final = record.ROOT
RATE: Final = 5_000
SECONDS: Final = 60
PSS: Final = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)

WATCHES: Final = (
    kcap("kcap", "path, result, identity", "--source", "bpf", "--events", "openat"),
    bpftrace("bpftrace", "path, result, 10 fields", WHOLE_OPEN),
    perf("perf record", "a pointer", record.PERF_OPEN),
)


class Taken(NamedTuple):
    """What a turn took."""

    cpu_percent: float
    """Of one processor."""
    memory_bytes: int
    written_bytes: int
    seen: int
    lost: int


def memory_bytes(pid: int) -> int:
    """The memory of a process and of all that it has started."""
    total = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        found = PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
        total += int(found[1]) * 1024 if found else 0
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += memory_bytes(int(child))
    return total


def turn(watch: Watch, program: str, folder: Path, seconds: int) -> Taken:
    """Let a recorder watch the load once.

    Args:
        watch: The recorder.
        program: The workload's.
        folder: What it opens is not there.
        seconds: How long.

    Returns:
        What it took.
    """
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        process = record.started(watch, out)
        try:
            most, before_s = 0, cpu_s(process.pid)
            with subprocess.Popen(
                [program, folder, str(RATE), str(seconds)], stdout=subprocess.PIPE
            ) as load:
                while load.poll() is None:
                    time.sleep(1)
                    most = max(most, memory_bytes(process.pid))
                said = load.stdout.read() if load.stdout else b""
            used_s = cpu_s(process.pid) - before_s
            time.sleep(record.SETTLED_S)
            process.send_signal(signal.SIGINT)
            process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        written = sum(each.stat().st_size for each in out.iterdir() if each.name != "err")
        seen, lost = counted(watch, out, str(folder), record.facts(said.decode())[0]["pid"])
        return Taken(100 * used_s / seconds, most, written, seen, lost)


def counted(watch: Watch, out: Path, folder: str, pid: int) -> tuple[int, int]:
    """Opens of the load in a recorder's output, and what it says was lost."""
    if watch.name == "kcap":
        import kcap as library

        with library.open(out / "r.kcap") as capture:
            table = capture.to_arrow(["pid"], where=f"ps.pid = {pid}")
            return table.num_rows, sum(
                loss.count or 0 for loss in capture.info.losses if loss.kind == "lost"
            )
    if watch.name == "bpftrace":
        lines = (out / "out").read_text(errors="replace").splitlines()
        lost = [line.split()[1] for line in lines if line.startswith("Lost ")]
        return sum(f" {folder}/" in line for line in lines), sum(map(int, lost))
    found = [{"did": "openat", "pid": pid, "path": ""}]
    return watch.seen(out, found)


def report(turns: int, seconds: int) -> str:
    """The table.

    Args:
        turns: How often each recorder watches.
        seconds: How long each time.

    Returns:
        Markdown.
    """
    lines = [
        (
            f"Linux {platform.release()}, {os.cpu_count()} CPUs; medians of {turns} turns of"
            f" {seconds} s, {RATE:,} opens a second.\n"
        ),
        "| recorder | seen | lost | it has | CPU | memory | written |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        program = record.Workloads(Path(name)).path("steady")
        folder = Path(name, "absent")
        folder.mkdir()
        taken: dict[str, list[Taken]] = {}
        for number in range(turns):
            for watch in WATCHES[:: -1 if number % 2 else 1]:
                taken.setdefault(watch.name, []).append(turn(watch, program, folder, seconds))
                print(watch.name, taken[watch.name][-1], file=sys.stderr, flush=True)
    for watch in WATCHES:
        middle = [statistics.median(values) for values in zip(*taken[watch.name], strict=True)]
        percent, memory, written, seen, lost = middle
        lines.append(
            f"| {watch.name} | {seen:,.0f} | {lost:,.0f} | {watch.tells} | {percent:.1f} %"
            f" | {memory / 2**20:.0f} MiB | {written / 2**20:.1f} MiB |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--turns", type=int, default=3, help="turns of each recorder")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of each turn")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root may record")
    record.apart(sys.argv)
    text = report(options.turns, options.seconds)
    print(text)
    if options.write:
        page.put("steady.py", text)


if __name__ == "__main__":
    main()
