"""First figures: size and speed of a capture beside Parquet and JSON lines.

``make bench`` prints them; ``python tests/bench/run.py --write`` puts them into docs/benchmarks.md
as well. Every figure of a table comes from one run of this program, with the formats taking turns,
so that a change in the machine's speed meets all of them; the best of all turns counts.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import export
import filters
import outputs
import page
import sysdig
from formats import Format, Kcap, all_formats
from scans import last_percent, scans
from workloads import REPEATED, Workload, workloads

READS: dict[str, list[str] | None] = {
    "pid": ["pid"],
    "pid, ts": ["pid", "ts"],
    "event, pid": ["event", "pid"],
    "all columns": None,
}
SIZE, CHUNKS, WRITE = "B/event", "chunk records", "write"
TURN_S = 0.1
"""How long a turn repeats what is quick."""

GOALS = {"Parquet default": 0.58, "Parquet tuned": 0.95, "JSON lines zstd": 0.48}
"""Chunk records against a whole file of another format: the first step."""

Figures = dict[str, dict[str, float]]
"""Format to measure to figure: bytes an event, or million events a second."""


def best_of_turn(work: Callable[[], object]) -> float:
    """The least time that some work takes.

    Args:
        work: The work; repeated while the turn lasts, done once at least.

    Returns:
        Seconds.
    """
    best = float("inf")
    begun = time.perf_counter()
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now - begun > TURN_S:
            return best


def measure(workload: Workload, folder: Path, rounds: int) -> Figures:
    """Measure every format on one workload.

    Args:
        workload: The events.
        folder: Where the files go.
        rounds: Turns of each format.

    Returns:
        The figures.
    """
    formats = all_formats()
    seconds: dict[tuple[str, str], float] = {}
    for _ in range(rounds):
        for form in formats:
            for name, work in works(form, workload, folder / "events"):
                key = (form.name, name)
                seconds[key] = min(seconds.get(key, float("inf")), best_of_turn(work))
    count = len(workload.table)
    figures: Figures = {}
    for form in formats:
        path = folder / "events"
        form.write(workload.table, path)
        figures[form.name] = {SIZE: path.stat().st_size / count}
        chunks = form.chunk_bytes(path)
        if chunks is not None:
            figures[form.name][CHUNKS] = chunks / count
    for (form_name, name), best in seconds.items():
        figures[form_name][name] = count / best / 1e6
    return figures


def works(form: Format, workload: Workload, path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is timed, in order: the file that is written first is read then."""

    def read(columns: list[str] | None) -> None:
        rows = form.read(path, columns)
        assert rows == len(workload.table), (form.name, rows)

    yield WRITE, partial(form.write, workload.table, path)
    for name, columns in READS.items():
        yield name, partial(read, columns)


def table(workload: Workload, figures: Figures) -> str:
    """The figures of a workload as a Markdown table."""
    own = figures["kcap"]
    columns = [CHUNKS, SIZE, WRITE, *READS]
    count, width = len(workload.table), len(workload.table.schema)
    lines = [
        f"### {workload.name}: {count:,} events, {width} columns\n",
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, found in figures.items():
        cells = []
        for column in columns:
            value = found.get(column, found[SIZE])
            ratio = "" if name == "kcap" else f" ({own[column] / value:.2f} x)"
            cells.append(f"{value:.2f}{ratio}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def goals(measured: dict[str, Figures]) -> str:
    """Where kcap stands against the first step, as a Markdown table.

    How small copies of the same events become says nothing, so their sizes are left out.
    """
    lines = [
        "### Against the first step\n",
        "| | "
        + " | ".join(f"{name}: {goal} x" for name, goal in GOALS.items())
        + " | write: 1 M |",
        "|---" * (len(GOALS) + 2) + "|",
    ]
    for workload, figures in measured.items():
        own = figures["kcap"]
        cells = [_verdict(own[CHUNKS] / figures[n][SIZE], g) for n, g in GOALS.items()]
        if workload == REPEATED:
            cells = ["copies"] * len(GOALS)
        written = f"{own[WRITE]:.2f}" + (" M" if own[WRITE] >= 1 else " M, **short**")
        lines.append(f"| {workload} | " + " | ".join([*cells, written]) + " |")
    return "\n".join(lines) + "\n"


def _verdict(ratio: float, goal: float) -> str:
    return f"{ratio:.2f} x" + ("" if ratio <= goal else ", **short**")


def surroundings(rounds: int) -> str:
    """What the figures depend on."""
    names = ("pyarrow", "numpy", "zstandard", "duckdb")
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    machine = f"{_processor()}, {platform.system()}"
    python = platform.python_version()
    return f"Python {python}, {libraries}; {machine}; best of {rounds} turns, one thread.\n"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each format")
    options = parser.parse_args()
    measured = {}
    exports = []
    parts = [surroundings(options.rounds)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for workload in workloads(folder):
            print(f"measuring {workload.name} …", file=sys.stderr)
            measured[workload.name] = measure(workload, folder, options.rounds)
            parts.append(table(workload, measured[workload.name]))
            Kcap().write(workload.table, folder / "export.kcap")
            exports.append(export.report(workload.name, export.measure(folder / "export.kcap")))
            if len(measured) == 1 or workload.name == REPEATED:
                parts.append(scans(workload, folder, best_of_turn))
                parts.append(last_percent(workload, folder, best_of_turn))
        print("measuring beside sysdig …", file=sys.stderr)
        beside = sysdig.report(folder)
        print("measuring filters beside sysdig …", file=sys.stderr)
        filtered = filters.report(folder)
        print("measuring forms and a filament …", file=sys.stderr)
        formed = outputs.report(folder)
    parts.insert(1, goals(measured))
    parts.append("\n".join([export.HEADING, *exports]) + "\n")
    text = "\n".join(parts)
    print(text, beside, filtered, formed, sep="\n")
    if options.write:
        page.put("run.py", text)
        if beside:
            page.put("sysdig.py", beside)
        if filtered:
            page.put("filters.py", filtered)
        if formed:
            page.put("outputs.py", formed)


if __name__ == "__main__":
    main()
