"""How fast rules are: a hundred and a thousand in one pass, and one by one, in CPU time.

    tests/bench/detect.py [--events N] [--turns N] [--write]

The events are a real capture of sysdig's, copied with other times, processes and paths
(scapcopies.py), and held in memory. The rules are conditions of ten kinds over values that the
capture has, drawn by one seed (manyfilters.py); those that more than one in a thousand events fits
are left out, as rules are for what is rare. Cold is the first run of an engine, with every table to
be made; warm is another run over the same events. Both ways give the same alerts, or it fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import filters
import manyfilters
import page
from scapcopies import Copies

from kcap.detect.engine import Detections
from kcap.detect.rule import About, Rule, Selector
from kcap.filter import Filter
from kcap.filter.many import Filters
from kcap.model.batch import Batch
from kcap.opening import open_source
from kcap.replay.pipeline import Pipeline

EVENTS: Final = 300_000
COUNTS: Final = (10, 100, 1000)
MEMORY_MIB: Final = 300
"""What `kcap detect` may take, whatever the capture."""

_SHARE: Final = 1000
_TRIED: Final = 4000


class Took(NamedTuple):
    """Seconds of a number of rules."""

    rules: int
    alone_s: float
    cold_s: float
    warm_s: float
    alerts: int


class _Kept:
    """A sink that keeps the events in memory."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink`."""
        self.batches.append(batch)

    def close(self) -> None:
        """See `kcap.model.stream.Sink`."""


def batches(path: Path) -> list[Batch]:
    """All events of a capture."""
    kept = _Kept()
    Pipeline(open_source(path), [kept]).run()
    return kept.batches


def made(folder: Path, events: int) -> Path:
    """A capture of about so many events."""
    copies = Copies(filters.SAMPLE)
    scap, own = folder / "x.scap", folder / "x.kcap"
    copies.write(scap, -(-events // copies.events), filters.HOSTS)
    command = [
        sys.executable,
        "-m",
        "kcap.tools",
        "import",
        str(scap),
        "--raw-pairs",
        "-o",
        str(own),
    ]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return own


def rules(path: Path, events: list[Batch], count: int) -> list[Rule]:
    """Rules over values of a capture, that few of its events fit."""
    tried = [Filter.of(text) for text in manyfilters.filters(path, rare=True, count=_TRIED)]
    together = Filters(tried)
    hits = [0] * len(tried)
    total = 0
    for batch in events:
        together.note(batch.before)
        total += batch.rows
        for number, rows in enumerate(together.rows(batch)):
            hits[number] += len(rows)
    kept = [one.text for one, found in zip(tried, hits, strict=True) if found <= total / _SHARE]
    assert len(kept) >= count, len(kept)
    return [
        Rule(About(id=f"B-{n:04}", name="bench"), (Selector("x", Filter.of(text)),))
        for n, text in enumerate(kept[:count])
    ]


def alerts(detections: Detections, events: list[Batch]) -> list[tuple[int, str]]:
    """The place and rule of each alert."""
    found, rows = [], 0
    for batch in events:
        found += [(rows + at, one.rule) for at, one in detections.alerts(batch)]
        rows += batch.rows
    return found


def clocked(each: list[Detections], events: list[Batch]) -> tuple[float, list[tuple[int, str]]]:
    """CPU seconds and alerts of engines, one after another."""
    begun = time.process_time()
    found = [one for detections in each for one in alerts(detections, events)]
    return time.process_time() - begun, found


def measured(chosen: list[Rule], events: list[Batch], turns: int) -> Took:
    """Both ways, the best of some turns each."""
    times: list[list[float]] = [[], [], []]
    found: list[tuple[int, str]] = []
    # A thousand one by one take their time: what they take grows with their number.
    few = chosen[:: max(1, len(chosen) // 100)]
    names = {rule.about.id for rule in few}
    for _ in range(turns):
        together = Detections(chosen)
        cold_s, found = clocked([together], events)
        warm_s, again = clocked([together], events)
        alone_s, apart = clocked([Detections([rule]) for rule in few], events)
        assert again == found
        assert sorted(apart) == [one for one in found if one[1] in names]
        alone_s *= len(chosen) / len(few)
        for kept, seconds in zip(times, (alone_s, cold_s, warm_s), strict=True):
            kept.append(seconds)
    alone_s, cold_s, warm_s = (min(kept) for kept in times)
    return Took(len(chosen), alone_s, cold_s, warm_s, len(found))


def peak_mib(path: Path, chosen: list[Rule], folder: Path) -> int:
    """The most memory that `kcap detect` takes with rules over a capture."""
    texts = [json.dumps(rule.selectors[0].filter.text) for rule in chosen]
    lines = [f"- id: B-{n:04}\n  name: bench\n  condition: {t}\n" for n, t in enumerate(texts)]
    own = folder / "rules.yaml"
    own.write_text("rules:\n" + "".join(lines))
    command = [sys.executable, "-m", "kcap.tools", "detect", "--rules", str(own), str(path)]
    # Started from a small process: what the starter takes counts until the program begins.
    peak = "import resource as r, subprocess as s, sys; s.run(sys.argv[1:], check=True,"
    peak += " stdout=-3, stderr=-3); print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss >> 10)"
    small = [sys.executable, "-c", peak, *command]
    return int(subprocess.run(small, check=True, stdout=subprocess.PIPE).stdout)


def report(path: Path, turns: int) -> str:
    """The table."""
    events = batches(path)
    total = sum(batch.rows for batch in events)
    every = rules(path, events, COUNTS[-1])
    lines = [
        f"### Rules over {total:,} events\n",
        "| rules | one by one | one pass, cold | | warm | | events/s, warm | alerts |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for count in COUNTS:
        took = measured(every[:count], events, turns)
        lines.append(
            f"| {count:,} | {took.alone_s:.2f} s | {took.cold_s:.2f} s |"
            f" {took.alone_s / took.cold_s:.1f} x | {took.warm_s:.2f} s |"
            f" {took.alone_s / took.warm_s:.1f} x | {total / took.warm_s:,.0f} |"
            f" {took.alerts:,} |"
        )
    lines.append("\nCPU time, the best of the turns. Of a thousand one by one every tenth is run,")
    lines.append("and the time is ten times that.")
    with tempfile.TemporaryDirectory() as name:
        more = made(Path(name), 4 * total)
        peaks = [peak_mib(each, every, path.parent) for each in (path, more)]
    assert max(peaks) < MEMORY_MIB, peaks
    lines.append(f"`kcap detect` with the {len(every):,} rules takes at most {peaks[0]} MiB, over")
    lines.append(f"four times as many events {peaks[1]} MiB.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--events", type=int, default=EVENTS, help="events of the capture")
    parser.add_argument("--turns", type=int, default=3, help="runs of each way")
    options = parser.parse_args()
    if not filters.SAMPLE.exists():
        print("no sample: rules are not measured")
        return
    with tempfile.TemporaryDirectory() as name:
        text = report(made(Path(name), options.events), options.turns)
    print(text)
    if options.write:
        page.put("detect.py", text)


if __name__ == "__main__":
    main()
