"""Correlations, held against counts that are made anew for each event."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from detect_support import Event, about, batch, briefly, cut, event, raised, run, selector
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.detect import correlation
from kcap.detect.correlation import Correlation
from kcap.detect.engine import Detections
from kcap.detect.rule import Rule

SPAN_NS = 10


def rule(kind: str, *names: str, by: tuple[str, ...] = ("pid",), **more: Any) -> Rule:
    """A correlation over events of these names."""
    selectors = [selector(f"evt.name = '{name}'") for name in names or ("a",)]
    text = more.pop("text", None)
    return correlation.rule(about(text=text), selectors, Correlation(kind, SPAN_NS, by, **more))


def events_of(seed: int, names: str = "ab") -> list[Event]:
    """Events of two processes at growing times."""
    rng = random.Random(seed)
    times = sorted(rng.sample(range(150), 50))
    return [event(rng.choice(names), ts, rng.choice([1, 2]), f=rng.choice("xyz")) for ts in times]


def counted(events: list[Event], measure: Any, least: int) -> list[int]:
    """Where a sliding count is reached: each window is made anew, and begins anew by an alert."""
    since = {1: 0, 2: 0}
    found = []
    for place, one in enumerate(events, 1):
        window = [
            each
            for each in events[since[one["pid"]] : place]
            if each["pid"] == one["pid"] and one["ts"] - each["ts"] <= SPAN_NS
        ]
        if measure(window, one) >= least:
            found.append(place)
            since[one["pid"]] = place
    return found


def of_events(window: list[Event], last: Event) -> int:
    """How many there are, the last among them."""
    return sum(e["event"] == "a" for e in window) if last["event"] == "a" else 0


def of_values(window: list[Event], last: Event) -> int:
    """How many different values there are."""
    if last["event"] != "a":
        return 0
    return len({e["arguments"]["f"] for e in window if e["event"] == "a"})


def of_kinds(window: list[Event], last: Event) -> int:
    """How many of a, b and c there are."""
    return len({e["event"] for e in window}) if last["event"] in "abc" else 0


def in_order(window: list[Event], _last: Event) -> int:
    """How far a, b and c follow one another."""
    found = 0
    for each in window:
        found += found < 3 and each["event"] == "abc"[found]
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 30), st.lists(st.integers(1, 49), max_size=3))
def test_counts_are_those_of_windows_made_anew(seed: int, places: list[int]) -> None:
    """Of every type, however the stream is cut."""
    two, three = events_of(seed), events_of(seed, "abc")
    values: dict[str, Any] = {"values": ("evt.arg[f]",), "count": 2}
    for made, events, measure, least in (
        (rule("event_count", count=3), two, of_events, 3),
        (rule("event_count", count=2, condition="gt"), two, of_events, 3),
        (rule("value_count", **values), two, of_values, 2),
        (rule("temporal", "a", "b", "c"), three, of_kinds, 3),
        (rule("temporal", "a", "b", "c", count=2), three, of_kinds, 2),
        (rule("temporal_ordered", "a", "b", "c"), three, in_order, 3),
    ):
        found = raised(Detections([made]), cut(batch(events), places))

        assert [rows for rows, _ in found] == counted(events, measure, least)


def test_the_windows_made_anew_find_some() -> None:
    """The comparison above is not one of nothing with nothing."""
    assert counted(events_of(1), of_events, 3)
    assert counted(events_of(1), of_values, 2)
    assert counted(events_of(1, "abc"), of_kinds, 3)
    assert counted(events_of(2, "abc"), in_order, 3)


def test_the_timespan_is_exact() -> None:
    """The first of a window is at most so old; one nanosecond more is too old."""
    made = rule("event_count", count=2)

    assert len(run([made], [event("a", 0), event("a", SPAN_NS)])) == 1
    assert run([made], [event("a", 0), event("a", SPAN_NS + 1)]) == []


def test_an_alert_tells_what_was_counted() -> None:
    """The number, the group, all events, the first and the last in the text."""
    made = rule("event_count", count=2, text="%1.evt.arg[f] to %evt.arg[f]")

    ((_, one),) = run([made], [event("a", 0, f="x"), event("a", 1, f="y")])

    assert json.loads(one["data"]) == {"count": 2, "pid": 1}
    assert one["text"] == "x to y"
    assert [number for _, number in one["causes"]] == [0, 1]


@pytest.mark.parametrize(
    ("condition", "count", "holds"),
    [("lt", 3, True), ("lt", 2, False), ("lte", 2, True), ("eq", 2, True), ("neq", 2, False)],
)
def test_few_are_known_when_the_time_is_over(condition: str, count: int, holds: bool) -> None:
    """The window begins with the first event; the alert has its time, and its group's process."""
    made = rule("event_count", condition=condition, count=count)
    events = [event("a", 1), event("a", 11), event("x", 12), event("x", 13)]

    found = run([made], events)

    assert [(rows, one["ts_ns"], one["who"]["pid"]) for rows, one in found] == [(2, 11, 1)] * holds


def test_a_window_that_is_not_over_says_nothing() -> None:
    """Perhaps more events would have come."""
    made = rule("event_count", condition="lt", count=3)

    assert run([made], [event("a", 1), event("x", 10)]) == []
    assert briefly(run([made], [event("a", 1), event("x", 11)])) == [(2, "R")]


def test_an_event_that_several_selectors_want_counts_once() -> None:
    """Two views of one event are no two events."""
    made = correlation.rule(
        about(),
        [selector("evt.name = 'a'"), selector("pid = 1")],
        Correlation("event_count", SPAN_NS, count=2),
    )

    assert [rows for rows, _ in run([made], [event("a", 1), event("a", 2)])] == [2]


def test_groups_may_have_other_fields_in_other_events() -> None:
    """As a child is the process of one event and an argument of another."""
    what = Correlation(
        "temporal", SPAN_NS, ("pid",), by_selector={0: ("evt.arg[child]",), 1: ("pid",)}
    )
    made = correlation.rule(about(), [selector("evt.name = 'f'"), selector("evt.name = 'x'")], what)

    assert len(run([made], [event("f", 1, 7, child=8), event("x", 2, 8)])) == 1
    assert run([made], [event("f", 1, 7, child=8), event("x", 2, 7)]) == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"kind": "event_sum", "count": 1}, "no type"),
        ({"kind": "event_count", "count": 1, "condition": "ge"}, "no condition"),
        ({"kind": "event_count"}, "number"),
        ({"kind": "event_count", "count": 10**6}, "less than"),
        ({"kind": "value_count", "count": 1}, "fields of values"),
        ({"kind": "temporal", "condition": "lt"}, "gt or gte"),
    ],
)
def test_what_makes_no_sense_is_refused(more: dict[str, Any], why: str) -> None:
    """With what is wrong."""
    with pytest.raises(ValueError, match=why):
        rule(more.pop("kind"), **more)
