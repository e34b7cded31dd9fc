"""kcap beside sysdig on the same captures: import, JSON lines, Parquet.

``python tests/bench/sysdig.py`` prints the tables, with ``--write`` they go into
docs/benchmarks.md. Whole commands are timed, in turns; the best of all turns counts. The capture is
a real one, and copies of it with other times, processes and paths, so that what a command costs
before its first event can be told from what each event costs. Filters are in filters.py.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import page
from scapcopies import Copies
from workloads import DATA, ROOT

SAMPLE = DATA / "scap" / "full_capture.scap"
MANY = 28
"""Copies of the sample in the capture that is converted."""

TURNS = 3
FIELDS_OF_J = "seq,ts,cpu,process_name,tid,direction,event,retval"
"""About what ``sysdig -j`` prints, which puts all arguments into one text."""

_RESOLVED = (
    "*%evt.num %evt.rawtime %evt.cpu %thread.tid %proc.pid %proc.ppid %evt.dir %evt.type"
    " %proc.name %proc.exe %proc.cmdline %user.name %user.uid %container.id %fd.name"
    " %fd.typechar %evt.args %evt.res"
)
"""Of what kcap stores with each event, what sysdig can print."""

INTO_PARQUET = """
import sys, duckdb
duckdb.sql("SET threads = 1")
duckdb.sql("COPY (FROM read_json('/dev/stdin', format = 'newline_delimited'))"
    f" TO '{sys.argv[1]}' (FORMAT parquet, COMPRESSION zstd)")
"""

WHOLE = "Whole commands, Python's start included; the best of three turns."


class Capture(NamedTuple):
    """One capture in all its forms."""

    scap: Path
    pairs: Path
    """As a capture with enter and exit apart, for equal hits."""
    events: int
    """Events as sysdig counts them: enter and exit are two."""

    @property
    def kcap(self) -> Path:
        """As a capture with enter and exit joined, which the conversions make."""
        return self.scap.with_suffix(".kcap")


def run(*words: object, into: Path | None = None) -> None:
    """Run a command to its end, with its output in a file or nowhere."""
    with Path(into or "/dev/null").open("wb") as out:
        command = list(map(str, words))
        subprocess.run(command, check=True, cwd=ROOT, stdout=out, stderr=subprocess.DEVNULL)


def kcap(*words: object, into: Path | None = None) -> None:
    """Run a kcap command."""
    run(sys.executable, "-m", "kcap.tools", *words, into=into)


def piped(first: Sequence[object], second: Sequence[object]) -> None:
    """Run two commands, the first one's output being the other's input."""
    with subprocess.Popen(
        list(map(str, first)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as left:
        subprocess.run(list(map(str, second)), stdin=left.stdout, check=True)


def best(works: dict[str, Callable[[], object]], turns: int = TURNS) -> dict[str, float]:
    """The least time that each work takes, in turns.

    Args:
        works: Name to work.
        turns: How often each is done.

    Returns:
        Name to seconds.
    """
    found = dict.fromkeys(works, float("inf"))
    for _ in range(turns):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            found[name] = min(found[name], time.perf_counter() - begun)
    return found


def captures(folder: Path) -> list[Capture]:
    """The sample itself and its copies.

    Args:
        folder: Where they go.

    Returns:
        The captures, the smallest first.
    """
    return [copied(folder, copies) for copies in (1, MANY)]


def copied(folder: Path, copies: int) -> Capture:
    """The sample and its copies behind each other.

    Args:
        folder: Where they go.
        copies: How many.

    Returns:
        The capture.
    """
    scap = folder / f"x{copies}.scap"
    count = Copies(SAMPLE).write(scap, copies)
    pairs = scap.with_suffix(".pairs.kcap")
    kcap("import", scap, "--raw-pairs", "-o", pairs)
    return Capture(scap, pairs, count)


def conversions(capture: Capture, folder: Path) -> dict[str, Callable[[], object]]:
    """Everything that is made out of a capture; the first of kcap's makes what others read."""
    table = folder / "out.parquet"
    sysdig = ["sysdig", "-D", "-r", capture.scap]
    into = [sys.executable, "-c", INTO_PARQUET, table]
    lines = ("--format", "jsonl")
    return {
        "sysdig, text": partial(run, *sysdig),
        "sysdig -j": partial(run, *sysdig, "-j"),
        "sysdig -j, 18 fields": partial(run, *sysdig, "-j", "-p", _RESOLVED),
        "sysdig -j into DuckDB": partial(piped, [*sysdig, "-j"], into),
        "sysdig -j, 18 fields, into DuckDB": partial(piped, [*sysdig, "-j", "-p", _RESOLVED], into),
        "kcap import": partial(kcap, "import", capture.scap, "-o", capture.kcap, "--force"),
        "JSON lines, the columns of -j": partial(
            kcap, "cat", capture.kcap, *lines, "-F", FIELDS_OF_J
        ),
        "the same, enter and exit apart": partial(
            kcap, "cat", capture.pairs, *lines, "-F", FIELDS_OF_J
        ),
        "JSON lines, all columns": partial(kcap, "cat", capture.kcap, *lines),
        "Parquet, the columns of -j": partial(
            kcap, "export", capture.kcap, "-F", FIELDS_OF_J, "-o", table, "--force"
        ),
        "Parquet, all columns": partial(kcap, "export", capture.kcap, "-o", table, "--force"),
        ".scap to Parquet, all columns": partial(
            kcap, "export", capture.scap, "-o", table, "--force"
        ),
    }


_BESIDE = {
    "kcap import": ("sysdig -j", "sysdig -j, 18 fields"),
    "JSON lines, the columns of -j": ("sysdig -j",),
    "the same, enter and exit apart": ("sysdig -j",),
    "JSON lines, all columns": ("sysdig -j", "sysdig -j, 18 fields"),
    "Parquet, the columns of -j": ("sysdig -j into DuckDB",),
    "Parquet, all columns": ("sysdig -j into DuckDB", "sysdig -j, 18 fields, into DuckDB"),
    ".scap to Parquet, all columns": (
        "sysdig -j into DuckDB",
        "sysdig -j, 18 fields, into DuckDB",
    ),
}


def conversion_table(capture: Capture, seconds: dict[str, float]) -> str:
    """Rates and ratios as a Markdown table."""
    lines = [
        f"### Beside sysdig: {capture.events:,} events (enter and exit counted apart)\n",
        "| whole command | s | thousand events/s | times as fast |",
        "|---|---|---|---|",
    ]
    for name, found in seconds.items():
        ratio = "; ".join(f"{seconds[o] / found:.1f} x {o}" for o in _BESIDE.get(name, ()))
        lines.append(f"| {name} | {found:.2f} | {capture.events / found / 1e3:,.0f} | {ratio} |")
    return "\n".join(lines) + "\n"


def sizes(capture: Capture, folder: Path) -> str:
    """What the same events take, as a Markdown table."""
    packed, lines_ = folder / "x.scap.gz", folder / "x.json"
    run("gzip", "-6", "-c", capture.scap, into=packed)
    run("sysdig", "-D", "-r", capture.scap, "-j", into=lines_)
    text = folder / "x.txt"
    run("sysdig", "-D", "-r", capture.scap, into=text)
    rows = {
        ".scap": capture.scap,
        ".scap.gz": packed,
        "sysdig, text": text,
        "sysdig -j": lines_,
        "kcap, names resolved": capture.kcap,
    }
    found = ["| | bytes | an event |", "|---|---|---|"]
    for name, path in rows.items():
        size = path.stat().st_size
        found.append(f"| {name} | {size:,} | {size / capture.events:.1f} |")
    return "\n".join(found) + "\n"


def report(folder: Path) -> str:
    """All tables; empty where sysdig or the sample is not at hand."""
    if shutil.which("sysdig") is None or not SAMPLE.exists():
        print("no sysdig, or no sample: kcap is not measured beside it", file=sys.stderr)
        return ""
    single, many = captures(folder)
    parts = [f"{WHOLE}\n"]
    parts += [
        conversion_table(capture, best(conversions(capture, folder))) for capture in (single, many)
    ]
    parts.append(sizes(single, folder))
    return "\n".join(parts)


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = report(Path(folder))
    print(text)
    if options.write and text:
        page.put("sysdig.py", text)


if __name__ == "__main__":
    main()
