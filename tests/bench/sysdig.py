"""kcap beside sysdig on the same captures: import, JSON lines, Parquet, filter scans.

``python tests/bench/sysdig.py`` prints the tables, with ``--write`` they go into
docs/benchmarks.md. Whole commands are timed, in turns; the best of
all turns counts. The capture is a real one, and the same repeated with other times, so that what a
command costs before its first event can be told from what each event costs. Hits are compared, so
both sides answered the same question.
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

import duckdb
import numpy as np
import page
from workloads import DATA, ROOT

import kcap as api
from kcap.readers.scap_blocks import Blocks, Events

SAMPLE = DATA / "scap" / "full_capture.scap"
MANY = 28
"""Copies of the sample in the capture that is converted, and in the smaller one that is scanned."""
MOST = 112
"""Copies in the larger one that is scanned."""

TURNS = 3
_TS_AT = 10
"""Where in an event block its time stands."""

_FIELDS = "seq,ts,cpu,process_name,tid,direction,event,retval"
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

FILTERS = {
    "one type of event": ("evt.type=execve", "event = 'execve'"),
    "a process and a type": (
        "proc.name=httpd and evt.type=open",
        "process_name = 'httpd' AND event = 'open'",
    ),
    "text in a file's name": ("fd.name contains urandom", "contains(fd_name, 'urandom')"),
    "nothing": ("evt.type=quotactl and proc.name=httpd", "event = 'quotactl'"),
}
"""Name to sysdig's filter and the condition in SQL."""


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


def repeated(source: Path, target: Path, copies: int) -> int:
    """Write a capture several times behind itself, each copy later than the one before.

    Args:
        source: A capture of event blocks of the second version.
        target: The file to write.
        copies: How many.

    Returns:
        Its events.
    """
    with source.open("rb") as stream:
        runs = [item for item in Blocks(stream, str(source)).read() if isinstance(item, Events)]
    raw = source.read_bytes()
    end = runs[0].offset
    starts = np.concatenate([run.starts + run.offset - end for run in runs])
    body = np.frombuffer(raw[end:], np.uint8).copy()
    place = starts[:, None] + _TS_AT + np.arange(8)
    times = body[place].copy().view("<u8")[:, 0]
    timed = times > 0
    span = int(times.max() - times[timed].min()) + 1
    with target.open("wb") as out:
        out.write(raw[:end])
        for turn in range(copies):
            moved = np.where(timed, times + np.uint64(turn * span), times).astype("<u8")
            body[place] = moved[:, None].view(np.uint8)
            out.write(body.tobytes())
    return len(starts) * copies


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
    """The sample itself and both repeated captures.

    Args:
        folder: Where they go.

    Returns:
        The captures, the smallest first.
    """
    found = []
    for copies in (1, MANY, MOST):
        scap = folder / f"x{copies}.scap"
        count = repeated(SAMPLE, scap, copies)
        pairs = scap.with_suffix(".pairs.kcap")
        kcap("import", scap, "--raw-pairs", "-o", pairs)
        found.append(Capture(scap, pairs, count))
    return found


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
        "JSON lines, the columns of -j": partial(kcap, "cat", capture.kcap, *lines, "-F", _FIELDS),
        "the same, enter and exit apart": partial(
            kcap, "cat", capture.pairs, *lines, "-F", _FIELDS
        ),
        "JSON lines, all columns": partial(kcap, "cat", capture.kcap, *lines),
        "Parquet, the columns of -j": partial(
            kcap, "export", capture.kcap, "-F", _FIELDS, "-o", table, "--force"
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


def scan_table(small: Capture, large: Capture) -> str:
    """Filter scans: whole commands, and the slope between two sizes."""
    lines = [
        f"### Filter scans beside sysdig: {small.events:,} and {large.events:,} events\n",
        "| question | hits | sysdig | kcap query | whole command | sysdig, slope | kcap, slope | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (theirs, ours) in FILTERS.items():
        works: dict[str, Callable[[], object]] = {}
        for size, capture in (("small", small), ("large", large)):
            works[f"sysdig {size}"] = partial(run, "sysdig", "-r", capture.scap, theirs)
            count = f"SELECT count(*) FROM events WHERE {ours}"
            works[f"kcap {size}"] = partial(kcap, "query", count, capture.pairs)
        seconds = best(works)
        slopes = [
            (large.events - small.events) / max(seconds[f"{w} large"] - seconds[f"{w} small"], 1e-3)
            for w in ("sysdig", "kcap")
        ]
        whole = seconds["sysdig large"] / seconds["kcap large"]
        lines.append(
            f"| {name} | {hits(large, theirs, ours):,} | {seconds['sysdig large']:.2f} s | "
            f"{seconds['kcap large']:.2f} s | {whole:.1f} x | {slopes[0] / 1e6:.1f} M/s | "
            f"{slopes[1] / 1e6:.1f} M/s | {slopes[1] / slopes[0]:.1f} x |"
        )
    return "\n".join(lines) + "\n"


def hits(capture: Capture, theirs: str, ours: str) -> int:
    """How many events both sides find.

    Raises:
        AssertionError: They do not find as many.
    """
    # With -D events about events come whatever the filter says.
    command = ["sysdig", "-r", str(capture.scap), "-p", "*%evt.num", theirs]
    found = subprocess.run(command, capture_output=True, check=True).stdout.count(b"\n")
    with api.open(capture.pairs) as opened:
        events = opened.dataset()  # DuckDB finds it by its name
        own = duckdb.sql(f"SELECT count(*) FROM events WHERE {ours}").fetchall()[0][0]
        del events
    assert own == found, (theirs, found, own)
    return int(found)


def report(folder: Path) -> str:
    """All tables; empty where sysdig or the sample is not at hand."""
    if shutil.which("sysdig") is None or not SAMPLE.exists():
        print("no sysdig, or no sample: kcap is not measured beside it", file=sys.stderr)
        return ""
    single, many, most = captures(folder)
    parts = [f"{WHOLE}\n"]
    parts += [
        conversion_table(capture, best(conversions(capture, folder))) for capture in (single, many)
    ]
    parts += [sizes(single, folder), scan_table(many, most)]
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
