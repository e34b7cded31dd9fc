"""How fast Sigma's rules are, beside SQLite with pySigma's own backend.

    tests/bench/detect_sigma.py [--events N] [--rules N] [--beside N] [--copies N] [--write]

The rules are SigmaHQ's for starts of processes on Windows. The events are made by one seed: starts
of processes in the shape of Sysmon's log, of which each rule hits one, and others with a program, a
command line and a parent out of pools; each is there twenty times (--copies), as programs are that
run again and again. Both sides have the events in memory and the rules converted. Cold is an engine
that is made and runs for the first time, with every table to be made; warm is another run over the
same events. SQLite, which has no such difference, is asked some of the rules, one after another,
and takes in proportion for all. Times are those of the processor. Both find the same, or it fails.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any, Final

import page
from detect import alerts
from workloads import ROOT

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sigma_support as support
from sigma.rule import SigmaRule
from sigma_support import Fields

from kcap.detect.engine import Detections
from kcap.model.batch import Batch

EVENTS: Final = 150_000
RULES: Final = 1000
BESIDE: Final = 20
COPIES: Final = 20
_LINES: Final = 20_000
_BATCH: Final = 50_000
_DATA: Final = ROOT.parent / "shared" / "data"
_FOLDERS: Final = ("Windows\\System32", "Program Files\\Acme", "Users\\ann\\AppData\\Local")
_WORDS: Final = (
    "start", "run", "sync", "report", "cache", "index", "user", "temp", "build", "update", "scan",
    "plan", "host",
)  # fmt: skip


def made(texts: dict[str, str], count: int, copies: int) -> list[Fields]:
    """The events, each as often as asked."""
    rng = random.Random(9)
    hits = [row for text in texts.values() if (row := support.row_for(text, "sysmon", rng))]
    programs = [
        f"C:\\{rng.choice(_FOLDERS)}\\{a}{b}.exe" for a in _WORDS for b in ("", "er", "svc", "64")
    ]
    lines = []
    for _ in range(_LINES):
        words = " ".join(f"--{w}={rng.randrange(10**6):x}" for w in rng.sample(_WORDS, 4))
        lines.append((rng.choice(programs), words))
    rows: list[Fields] = list(hits)
    while len(rows) * copies < count:
        image, words = rng.choice(lines)
        rows.append(
            {
                "Channel": support.SYSMON,
                "EventID": 1,
                "Image": image,
                "OriginalFileName": image.rpartition("\\")[2],
                "CommandLine": f'"{image}" {words}',
                "ParentImage": rng.choice(programs),
                "ParentCommandLine": rng.choice(lines)[1],
                "User": rng.choice(("ACME\\ann", "NT AUTHORITY\\SYSTEM")),
                "IntegrityLevel": rng.choice(("Medium", "High", "System")),
            }
        )
    rows *= copies
    rng.shuffle(rows)
    return rows


def found_by(detections: Detections, events: list[Batch]) -> tuple[float, list[tuple[int, str]]]:
    """Seconds of a run, and the number of the event and the rule of each alert."""
    begun = time.process_time()
    found = alerts(detections, events)
    return time.process_time() - begun, found


def report(count: int, number: int, beside: int, copies: int) -> str:
    """The table."""
    every = support.texts(_DATA)
    names = [name for name in every if "/windows/process_creation/" in name][:number]
    texts = {name: every[name] for name in names}
    rows = made(texts, count, copies)
    events = [support.batch_of_rows(rows[at : at + _BATCH]) for at in range(0, len(rows), _BATCH)]
    begun = time.process_time()
    rules, problems = support.converted(texts, ["sysmon"])
    convert_s = time.process_time() - begun
    assert not problems
    begun = time.process_time()
    detections = Detections(rules)
    made_s = time.process_time() - begun
    cold_s, found = found_by(detections, events)
    cold_s += made_s
    warm_s, again = found_by(detections, events)
    assert again == found

    table = support.Sqlite(rows)
    few = rules[:: max(1, len(rules) // beside)]
    parsed: list[Any] = [SigmaRule.from_yaml(texts[rule.about.file]) for rule in few]
    asked = [table.queries(one, "sysmon") for one in parsed]
    begun = time.process_time()
    theirs = {
        (row + 1, rule.about.id)
        for rule, queries in zip(few, asked, strict=True)
        for row in table.found(queries)
    }
    sqlite_s = (time.process_time() - begun) * len(rules) / len(few)
    chosen = {rule.about.id for rule in few}
    assert theirs == {pair for pair in found if pair[1] in chosen}
    each_ms = convert_s / len(rules) * 1000
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    said = (
        f"\n{len(found):,} alerts. Reading and converting the rules takes {convert_s:.1f} s,"
        f" {each_ms:.1f} ms each. Of the rules SQLite was asked {len(few)}. The whole program, with"
        f" the events twice, takes {memory} MiB."
    )
    lines = [
        f"### Sigma: {len(rules):,} rules over {len(rows):,} events, each {copies} times\n",
        "| | processor time | events/s | of SQLite's |",
        "|---|---|---|---|",
        f"| SQLite | {sqlite_s:.1f} s | {len(rows) / sqlite_s:,.0f} | 1 x |",
        f"| kcap, cold | {cold_s:.2f} s | {len(rows) / cold_s:,.0f} | {sqlite_s / cold_s:.0f} x |",
        f"| kcap, warm | {warm_s:.2f} s | {len(rows) / warm_s:,.0f} | {sqlite_s / warm_s:.0f} x |",
        said,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the page where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--events", type=int, default=EVENTS, help="how many events")
    parser.add_argument("--rules", type=int, default=RULES, help="how many rules")
    parser.add_argument("--beside", type=int, default=BESIDE, help="rules that SQLite is asked")
    parser.add_argument("--copies", type=int, default=COPIES, help="how often each event comes")
    options = parser.parse_args()
    if not _DATA.exists():
        print("no samples: Sigma's rules are not measured")
        return
    text = report(options.events, options.rules, options.beside, options.copies)
    print(text)
    if options.write:
        page.put("detect_sigma.py", text)


if __name__ == "__main__":
    main()
