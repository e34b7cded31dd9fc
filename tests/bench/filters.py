"""Filters: kcap beside ``sysdig -r`` on the same events, and 100 filters in one pass.

``python tests/bench/filters.py`` prints the tables, with ``--write`` they go into
docs/benchmarks.md; ``--small`` and ``--large`` say how many events. Whole commands are timed, in
turns, on copies of a real capture whose times, processes and paths differ from copy to copy
(scapcopies.py); both programs know every process by name. The hits are compared one by one in the
smaller capture, by their number in the larger.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from unittest import mock

import manyfilters
import page
from click.testing import CliRunner
from scapcopies import Copies
from workloads import DATA, ROOT

from kcap.format.reader import CaptureReader
from kcap.tools.cli import main as main_command

SAMPLE = DATA / "scap" / "full_capture.scap"
SMALL: Final = 1_000_000
LARGE: Final = 10_000_000
HOSTS: Final = 28
"""Copies after which the same process ids come again: both captures begin with equal lists of
processes, so that the slope between them has no share in reading those. sysdig's rate depends on it
(docs/benchmarks.md)."""

BARE: Final = Path(__file__).with_name("bare")
"""On the path of the commands: without the extras, as most installations are."""

NOTHING: Final = "({}) and evt.num=0"
"""Around one of sysdig's filters: evaluated like it, and nothing is printed."""


class Question(NamedTuple):
    """The same filter in both languages."""

    name: str
    sysdig: str
    kcap: str
    counting: tuple[str, ...] = ()
    """More words for kcap's count."""


BY_TYPE: Final = Question("event type", "evt.type=open", "evt.name = 'open'", ("--times",))
"""How many events of a type there are the index knows; with ``--times`` they have to be read."""

QUESTIONS: Final = (
    BY_TYPE,
    # sysdig never shows its own events (procinfo), kcap has to leave them out.
    Question("process name", "proc.name=httpd", "ps.name = 'httpd' and evt.name != 'procinfo'"),
    Question("path substring", "fd.name contains urandom", "fd_name contains 'urandom'"),
    Question(
        "CIDR",
        "fd.net=172.17.0.0/16",
        "net.sip = 172.17.0.0/16 or net.dip = 172.17.0.0/16",
    ),
    Question(
        "six clauses",
        "(evt.type=open or evt.type=read) and proc.name=httpd and user.name=root"
        " and evt.dir=< and evt.res=SUCCESS and not fd.name contains urandom",
        "(evt.name = 'open' or evt.name = 'read') and ps.name = 'httpd' and user = 'root'"
        " and direction = 'exit' and status = 'SUCCESS' and not fd_name contains 'urandom'",
    ),
)


class Capture(NamedTuple):
    """The same events in both formats."""

    scap: Path
    kcap: Path
    events: int


class Cost(NamedTuple):
    """What a command took; sorts by the clock."""

    wall_s: float
    cpu_s: float


def sysdig(capture: Capture, filter_: str) -> list[str]:
    """The command that prints the numbers of the hits with sysdig."""
    return ["sysdig", "-r", str(capture.scap), "-p", "%evt.num", filter_]


def kcap(*words: object) -> list[str]:
    """A kcap command."""
    return [sys.executable, "-m", "kcap.tools", *map(str, words)]


def counting(capture: Capture, question: Question) -> list[str]:
    """The command that counts the hits with kcap, by event."""
    words = ("stats", "--by", "event", *question.counting, "-w", question.kcap, "--json")
    return kcap(*words, capture.kcap)


def printing(capture: Capture, filter_: str) -> list[str]:
    """The command that prints the numbers of the hits with kcap."""
    return kcap("cat", "-w", filter_, "--format", "jsonl", "-F", "seq", capture.kcap)


def run(command: Sequence[str]) -> Cost:
    """Run a command to its end, its output going nowhere.

    Args:
        command: Its words.

    Returns:
        What it took.

    Raises:
        RuntimeError: It failed.
    """
    begun = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(BARE)}
    with Path(os.devnull).open("wb") as nowhere, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=nowhere, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)}: exit code {child.returncode}: {said}")
    return Cost(wall_s, usage.ru_utime + usage.ru_stime)


def best(commands: dict[str, list[str]], turns: int) -> dict[str, Cost]:
    """What each command takes at its quickest, all of them in turns."""
    found: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(turns):
        for name, command in commands.items():
            found[name].append(run(command))
    return {name: min(costs) for name, costs in found.items()}


def made(folder: Path, events: int, hosts: int = HOSTS) -> Capture:
    """Copies of the sample in both formats; what it took is said on standard error.

    Args:
        folder: Where they go.
        events: About how many are wanted.
        hosts: Copies after which the same process ids come again.

    Returns:
        The capture, enter and exit apart, as sysdig counts.
    """
    copies = Copies(SAMPLE)
    begun = time.perf_counter()
    turns = -(-events // copies.events)
    scap, own = folder / f"x{turns}.scap", folder / f"x{turns}.kcap"
    written = copies.write(scap, turns, hosts)
    took = run(kcap("import", scap, "--raw-pairs", "-o", own))
    whole = time.perf_counter() - begun
    print(
        f"made {written:,} events in {whole:.1f} s, {took.wall_s:.1f} s of it kcap import",
        file=sys.stderr,
    )
    return Capture(scap, own, written)


def _output(command: Sequence[str]) -> bytes:
    """What a command prints."""
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return done.stdout


def check_hits(small: Capture, large: Capture, question: Question) -> int:
    """See that both programs find the same events.

    Args:
        small: Where their numbers are compared.
        large: Where they are counted.
        question: What for.

    Returns:
        Hits in the larger capture.

    Raises:
        AssertionError: They do not, or there are none.
    """
    theirs = _output(sysdig(small, question.sysdig)).split()
    ours = _output(printing(small, question.kcap)).splitlines()
    assert [int(line) for line in theirs] == [_seq(line) for line in ours], question
    found = _output(sysdig(large, question.sysdig)).count(b"\n")
    own = _output(printing(large, question.kcap)).count(b"\n")
    assert found == own > 0, (question, found, own)
    for command in (counting(small, question), printing(small, question.kcap)):
        _check_scan(small, command[3:])
    return found


def _check_scan(capture: Capture, words: Sequence[str]) -> None:
    """See that a command looks at the events of every chunk; an answer of the index is no scan."""
    with capture.kcap.open("rb") as stream:
        index = CaptureReader(stream, str(capture.kcap)).index()
    assert index is not None
    view = CaptureReader.view
    with mock.patch.object(CaptureReader, "view", autospec=True, side_effect=view) as seen:
        done = CliRunner().invoke(main_command, list(words))
    assert done.exit_code == 0, done.output
    assert seen.call_count == len(index.table), (words, seen.call_count, len(index.table))


def _seq(line: bytes) -> int:
    return int(line.removeprefix(b'{"seq":').removesuffix(b"}"))


_HEADING = (
    "| filter | hits | sysdig | kcap | | CPU, sysdig / kcap | slope, sysdig | kcap | |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def tables(small: Capture, large: Capture, turns: int) -> str:
    """All questions as Markdown: counting, then printing.

    Args:
        small: The smaller capture.
        large: The larger one.
        turns: How often each command is run; two times more on the smaller one.

    Returns:
        Two tables; their rows go to standard error as they come.
    """
    events = f"{small.events:,} and {large.events:,} events"
    counted = [f"### Filters beside sysdig, counting: {events}\n", _HEADING]
    printed = [f"### Filters beside sysdig, printing: {events}\n", _HEADING]
    for question in QUESTIONS:
        hits = check_hits(small, large, question)
        few = best(_commands(small, question), turns + 2)
        many = best(_commands(large, question), turns)
        more = large.events - small.events
        for lines, pair in ((counted, ("silent", "counts")), (printed, ("sysdig", "prints"))):
            costs = [(few[name], many[name]) for name in pair]
            lines.append(_row(question.name, hits, more, *costs))
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join([*counted, "", _indexed(large, turns), "", *printed, ""])


def _commands(capture: Capture, question: Question) -> dict[str, list[str]]:
    return {
        "sysdig": sysdig(capture, question.sysdig),
        "prints": printing(capture, question.kcap),
        "silent": sysdig(capture, NOTHING.format(question.sysdig)),
        "counts": counting(capture, question),
    }


def _row(
    name: str, hits: int, more: int, theirs: tuple[Cost, Cost], ours: tuple[Cost, Cost]
) -> str:
    """One question; every ratio is sysdig's time over kcap's."""
    slopes = [more / max(many.wall_s - few.wall_s, 1e-3) for few, many in (theirs, ours)]
    sysdig_s, kcap_s = theirs[1], ours[1]
    cells = [
        name,
        f"{hits:,}",
        f"{sysdig_s.wall_s:.2f} s",
        f"{kcap_s.wall_s:.2f} s",
        f"{sysdig_s.wall_s / kcap_s.wall_s:.1f} x",
        f"{sysdig_s.cpu_s:.2f} / {kcap_s.cpu_s:.2f} s",
        f"{slopes[0] / 1e6:.1f} M/s",
        f"{slopes[1] / 1e6:.0f} M/s",
        f"{slopes[1] / slopes[0]:.1f} x",
    ]
    return f"| {' | '.join(cells)} |"


def _indexed(large: Capture, turns: int) -> str:
    """What the count of one type takes where the index may answer: no scan, and no slope."""
    command = counting(large, BY_TYPE._replace(counting=()))
    cost = best({"index": command}, turns)["index"]
    return f"The count of one event type out of the index, no event read: {cost.wall_s:.2f} s."


def version() -> str:
    """What sysdig calls itself."""
    return _output(["sysdig", "--version"]).decode().strip()


def report(
    folder: Path,
    small: int = SMALL,
    large: int = LARGE,
    turns: int = 3,
    hosts: int = HOSTS,
    *,
    beside: bool = True,
) -> str:
    """All tables; empty where sysdig or the sample is not at hand.

    Args:
        folder: Where captures go; the larger one takes 80 bytes an event.
        small: Events of the smaller capture.
        large: Events of the larger one.
        turns: How often each command is run.
        hosts: Copies after which the same process ids come again.
        beside: Whether to measure beside sysdig, too.

    Returns:
        Markdown.
    """
    if not SAMPLE.exists() or (beside and shutil.which("sysdig") is None):
        print("no sysdig, or no sample: filters are not measured", file=sys.stderr)
        return ""
    parts = []
    first = made(folder, small, hosts)
    if beside:
        best_of = f"the best of {turns} turns, Python's start included"
        parts.append(f"{version()}; processes of {hosts} hosts; {best_of}.\n")
        parts.append(tables(first, made(folder, large, hosts), turns))
    parts.append(manyfilters.report(first.kcap, turns))
    return "\n".join(parts)


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    parser.add_argument("--small", type=int, default=SMALL, help="events of the smaller capture")
    parser.add_argument("--large", type=int, default=LARGE, help="events of the larger capture")
    parser.add_argument("--turns", type=int, default=3, help="runs of each command")
    parser.add_argument("--hosts", type=int, default=HOSTS, help="after so many copies ids recur")
    parser.add_argument("--many-only", action="store_true", help="only the 100 filters")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = report(
            Path(name),
            options.small,
            options.large,
            options.turns,
            options.hosts,
            beside=not options.many_only,
        )
    print(text)
    if options.write and text:
        page.put("filters.py", text)


if __name__ == "__main__":
    main()
