"""Events and rules for the tests of detections, and runs of them over batches cut anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from kcap.detect import absence, correlation, sequence
from kcap.detect.engine import Detections
from kcap.detect.feed import source
from kcap.detect.rule import About, Rule, Selector
from kcap.filter import Filter
from kcap.model.alert import Alert
from kcap.model.batch import Batch

Event = dict[str, Any]
Raised = tuple[int, dict[str, Any]]
"""Rows of the whole stream that an alert comes behind, and the alert."""


COLUMNS = ("action", "cmdline", "host", "kind", "ord", "ppid", "tid")


def event(name: str, ts: int | None, pid: int = 1, **more: Any) -> Event:
    """An event; what is no column is an argument."""
    columns = {n: more.pop(n) for n in COLUMNS if n in more}
    found: Event = {"event": name, "pid": pid, "process_name": name, **columns, "arguments": more}
    return found if ts is None else {**found, "ts": ts}


def batch(events: Iterable[Event]) -> Batch:
    """Events as one batch."""
    (found,) = source(list(events)).batches()
    return found


def about(name: str = "R", **more: Any) -> About:
    """What is said of a rule."""
    return About(id=name, name=name.lower(), **more)


def selector(text: str) -> Selector:
    """A selector of a filter."""
    return Selector(text, Filter.of(text))


def plain(name: str, condition: str, /, **more: Any) -> Rule:
    """A rule of one condition."""
    return Rule(about(name, **more), (selector(condition),))


def stateful() -> list[Rule]:
    """A rule of each kind, over events a, b and c."""
    steps = [
        sequence.Step.of("evt.name = 'a'", alias="e1"),
        sequence.Step.of("evt.name = 'b' and evt.arg[f] = $e1.evt.arg[f]", earlier=["e1"]),
    ]
    by = ("pid",)
    counted = correlation.Correlation("event_count", 8, by, count=3)
    few = correlation.Correlation("event_count", 8, by, condition="lt", count=3)
    missed = absence.Absence(7, by)
    options = sequence.Options(maxspan_ns=10, by=by, ends_with_process=True)
    a, c = selector("evt.name = 'a'"), selector("evt.name = 'c'")
    return [
        plain("plain", "evt.name in ('b', 'c')", text="%ps.name %evt.arg[f]"),
        sequence.rule(about("sequence", text="%1.ps.name %2.evt.arg[f]"), steps, options),
        correlation.rule(about("count"), [a], counted),
        correlation.rule(about("few"), [c], few),
        absence.rule(about("absence"), a, c, missed),
        plain("alerts", "evt.name = 'alert' and evt.arg[rule] = 'absence'"),
    ]


def stream(seed: int, count: int) -> list[Event]:
    """Events of two processes, some out of order, some without a time, some that end one."""
    rng = random.Random(seed)
    now, found = 1_000, []
    for _ in range(count):
        now += rng.choice([0, 0, 1, 1, 2, 5])
        ts = rng.choice([now, now, now, now - 3, None])
        more: Event = {"action": "process_stop"} if rng.random() < 0.05 else {}
        name = rng.choice("abcde")
        found.append(event(name, ts, rng.choice([1, 2]), f=rng.choice("xy"), **more))
    return found


def cut(whole: Batch, places: Iterable[int]) -> list[Batch]:
    """A batch in pieces."""
    at = [0, *sorted({p for p in places if 0 < p < whole.rows}), whole.rows]
    return [whole.slice(a, b) for a, b in pairwise(at)]


def raised(detections: Detections, pieces: Sequence[Batch]) -> list[Raised]:
    """All alerts of a stream, by the rows of the whole that they come behind."""
    found: list[Raised] = []
    rows = 0
    for piece in pieces:
        found += [(rows + at, shown(one)) for at, one in detections.alerts(piece)]
        rows += piece.rows
    return found + [(rows, shown(one)) for one in detections.last()]


def shown(one: Alert) -> dict[str, Any]:
    """All of an alert, its id too."""
    return {**asdict(one), "alert_id": one.id}


def run(rules: Iterable[Rule], events: Iterable[Event], **more: Any) -> list[Raised]:
    """All alerts of some rules for some events."""
    return raised(Detections(rules, **more), [batch(events)])


def briefly(found: Iterable[Raised]) -> list[tuple[int, str]]:
    """Places and rules of alerts."""
    return [(rows, one["rule"]) for rows, one in found]
