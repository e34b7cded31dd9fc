"""kcap's forms of events beside sysdig's, and a filament behind its filter.

``python tests/bench/outputs.py`` prints the tables, with ``--write`` they go into
docs/benchmarks.md. Whole commands are timed in turns, the best of all turns counts, the output goes
nowhere. The capture is sysdig's sample with copies of other times, processes and paths
(scapcopies.py), so that what a command costs before its first event does not hide what each costs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import page
import sysdig
from sysdig import FIELDS_OF_J, MANY, SAMPLE, Capture, best, kcap, run

FILAMENT_RATE: Final = 100_000
"""Events a second that a filament is to take after its filter."""

FILAMENT: Final = '''"""Counts events by name and program."""

counts = {}


def on_init():
    set_filter("evt.pid > 0")


def on_next_event(event):
    key = event["name"], event.get("exe")
    counts[key] = counts.get(key, 0) + 1


def on_stop():
    print(sum(counts.values()))
'''

TEMPLATE: Final = "{{ ts | utc }} {{ process_name }}({{ pid }}) {{ event }} {{ params.name }}"
STATEMENTS: Final = "{% if exe %}{{ exe }}{% else %}?{% endif %} {{ event | upper }} {{ pid }}"


class Row(NamedTuple):
    """A line of the table."""

    name: str
    work: Callable[[Path], object]
    """Does it, with the output in a file or nowhere."""
    beside: str | None = None
    """What it is compared with."""
    goal: float | None = None
    """How many times as fast it is to be."""


def rows(capture: Capture) -> list[Row]:
    """What is measured.

    Args:
        capture: The events.

    Returns:
        The commands, sysdig's first.
    """
    ours = ["cat", capture.pairs]

    def cat(*words: str) -> Callable[[Path], object]:
        return lambda into: kcap(*ours, *words, into=into)

    def other(*words: str) -> Callable[[Path], object]:
        return lambda into: run("sysdig", "-D", "-r", capture.scap, *words, into=into)

    template = ("--format", "template", "--template")
    return [
        Row("sysdig, text", other()),
        Row("sysdig -j", other("-j")),
        Row("line", cat(), "sysdig, text", 1),
        Row("table", cat("--format", "table"), "sysdig, text"),
        Row("template of columns", cat(*template, TEMPLATE), "sysdig, text"),
        Row("template of statements", cat(*template, STATEMENTS), "sysdig, text"),
        Row(
            "jsonl, the columns of -j",
            cat("--format", "jsonl", "-F", FIELDS_OF_J),
            "sysdig -j",
            3,
        ),
        Row("jsonl, all columns", cat("--format", "jsonl"), "sysdig -j"),
        Row("csv, the columns of -j", cat("--format", "csv", "-F", FIELDS_OF_J), "sysdig -j"),
        Row("csv, all columns", cat("--format", "csv"), "sysdig -j"),
        Row("null: only read", cat("--format", "null")),
    ]


def forms(capture: Capture, folder: Path) -> str:
    """The forms as a Markdown table.

    Args:
        capture: The events.
        folder: Where files may be put.

    Returns:
        The table.
    """
    measured = rows(capture)
    nowhere = Path("/dev/null")
    seconds = best({row.name: partial(row.work, nowhere) for row in measured})
    lines = [
        f"### Forms: {capture.events:,} events, enter and exit apart\n",
        "| form | s | thousand events/s | bytes an event | times as fast |",
        "|---|---|---|---|---|",
    ]
    for row in measured:
        found = seconds[row.name]
        out = folder / "out"
        row.work(out)
        size = out.stat().st_size / capture.events
        ratio = "" if row.beside is None else f"{seconds[row.beside] / found:.1f} x {row.beside}"
        if row.goal is not None:
            met = seconds[row.beside or ""] / found >= row.goal
            ratio += f" (goal {row.goal:g} x{'' if met else ', **short**'})"
        lines.append(
            f"| {row.name} | {found:.2f} | {capture.events / found / 1e3:,.0f}"
            f" | {size:.0f} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def filament(capture: Capture, folder: Path) -> str:
    """A filament that gets every event, as a Markdown table.

    Args:
        capture: The events.
        folder: Where files may be put.

    Returns:
        The table.
    """
    path = folder / "counting.py"
    path.write_text(FILAMENT)
    replay = ["replay", capture.pairs]
    out = folder / "counted"
    seconds = best(
        {
            "replay --format null": partial(kcap, *replay, "--format", "null"),
            "replay -f": partial(kcap, *replay, "-f", path, into=out),
        }
    )
    taken = int(out.read_text())
    rate = taken / seconds["replay -f"]
    short = "" if rate >= FILAMENT_RATE else ", **short**"
    lines = [
        f"### A filament: {taken:,} events behind its filter\n",
        "| whole command | s | thousand events/s |",
        "|---|---|---|",
        *(f"| {n} | {s:.2f} | {taken / s / 1e3:,.0f} |" for n, s in seconds.items()),
        "",
        f"Goal: {FILAMENT_RATE / 1e3:.0f} thousand events/s{short}.",
    ]
    return "\n".join(lines) + "\n"


def report(folder: Path) -> str:
    """All tables; empty where sysdig or its sample is not at hand.

    Args:
        folder: Where files may be put.

    Returns:
        Markdown.
    """
    if shutil.which("sysdig") is None or not SAMPLE.exists():
        print("no sysdig, or no sample: forms are not measured beside it", file=sys.stderr)
        return ""
    folder = folder / "outputs"
    folder.mkdir()
    capture = sysdig.copied(folder, MANY)
    return "\n".join([f"{sysdig.WHOLE}\n", forms(capture, folder), filament(capture, folder)])


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = report(Path(folder))
    print(text)
    if options.write and text:
        page.put("outputs.py", text)


if __name__ == "__main__":
    main()
