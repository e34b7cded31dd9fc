"""Absence: what did not follow, at the time when it is known."""

from __future__ import annotations

import random

import pytest
from detect_support import Event, about, batch, cut, event, raised, run, selector
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.detect import absence
from kcap.detect.absence import Absence
from kcap.detect.engine import Detections
from kcap.detect.rule import Rule

WITHIN_NS = 10


def rule(follows: str = "b", text: str | None = None) -> Rule:
    """Each ``a`` should be followed."""
    first, second = selector("evt.name = 'a'"), selector(f"evt.name = '{follows}'")
    return absence.rule(about(text=text), first, second, Absence(WITHIN_NS, ("pid",)))


def missed(events: list[Event]) -> list[tuple[int, int, int]]:
    """Place, time and event of each alert, found by looking at all that follows."""
    found = []
    for number, one in enumerate(events):
        if one["event"] != "a":
            continue
        over = one["ts"] + WITHIN_NS
        later = [e for e in events[number + 1 :] if e["pid"] == one["pid"] and e["ts"] <= over]
        if any(e["event"] == "b" for e in later) or events[-1]["ts"] < over:
            continue
        beyond = [place for place, e in enumerate(events) if e["ts"] > over]
        found.append((min(beyond, default=len(events)), over, number))
    return sorted(found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.lists(st.integers(1, 39), max_size=3))
def test_what_is_missed_is_what_is_not_found_later(seed: int, places: list[int]) -> None:
    """However the stream is cut, each alert at the time when it is known."""
    rng = random.Random(seed)
    times = sorted(rng.choices(range(200), k=40))
    events = [event(rng.choice("abcd"), ts, rng.choice([1, 2])) for ts in times]

    found = raised(Detections([rule()]), cut(batch(events), places))

    shown = [(rows, one["ts_ns"], one["causes"][0][1]) for rows, one in found]
    assert shown == missed(events)


def test_the_time_is_exact() -> None:
    """What follows at its end is not too late; one nanosecond more is."""
    assert run([rule()], [event("a", 0), event("b", WITHIN_NS), event("x", 99)]) == []
    assert len(run([rule()], [event("a", 0), event("b", WITHIN_NS + 1), event("x", 99)])) == 1


@pytest.mark.parametrize(("last", "count"), [(WITHIN_NS - 1, 0), (WITHIN_NS, 1)])
def test_the_end_of_a_recording_is_no_absence(last: int, count: int) -> None:
    """Unless the time was over by then."""
    assert len(run([rule()], [event("a", 0), event("x", last)])) == count


def test_another_process_follows_nothing() -> None:
    """The fields that join must be the same."""
    assert len(run([rule()], [event("a", 0, 1), event("b", 1, 2), event("x", 99)])) == 1


def test_an_event_that_should_come_again() -> None:
    """A sign of life: each ends the wait for it and begins another."""
    found = run([rule("a")], [event("a", n) for n in (0, 5, 15, 16, 99)])

    assert [one["causes"][0][1] for _, one in found] == [3]


def test_the_alert_is_the_event_s() -> None:
    """Its text and process are those of the event, though that is long past."""
    found = run([rule(text="%ps.name %evt.arg[f]")], [event("a", 0, 7, f="x"), event("z", 99, 8)])

    ((rows, one),) = found
    assert (rows, one["text"], one["who"]["pid"], one["data"]) == (1, "a x", 7, '{"pid":7}')


def test_no_time_is_refused() -> None:
    """Nothing follows at once."""
    with pytest.raises(ValueError, match="time"):
        absence.rule(about(), selector("pid = 1"), selector("pid = 2"), Absence(0))
