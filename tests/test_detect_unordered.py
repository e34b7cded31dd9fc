"""Sequences whose events were recorded in another order than they happened: their times tell."""

from __future__ import annotations

import random

import pytest
from detect_support import Event, about, batch, event, raised, run
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.detect import sequence
from kcap.detect.engine import Detections
from kcap.detect.rule import Rule
from kcap.detect.sequence import Options, Step
from kcap.readers.rules.fibratus import FibratusRules

SPAN_NS, WINDOW_NS = 1000, 400
COUNTS = st.integers(2, 8)


def rule(count: int, *, unordered_ns: int = WINDOW_NS) -> Rule:
    """A sequence of that many steps, each of the process and the file of the first."""
    steps = [
        Step.of(
            f"evt.name = 's{number}'" + (" and evt.arg[f] = $e1.evt.arg[f]" if number > 1 else ""),
            alias=f"e{number}",
            earlier=[f"e{one}" for one in range(1, number)],
        )
        for number in range(1, count + 1)
    ]
    options = Options(
        maxspan_ns=SPAN_NS,
        by=("pid",),
        later=True,
        ends_with_process=True,
        unordered_ns=unordered_ns,
    )
    return sequence.rule(about(text="%1.pid %2.evt.arg[f]"), steps, options)


def happened(count: int, rng: random.Random) -> list[Event]:
    """The events of one sequence, in the order in which they happened."""
    times = sorted(rng.sample(range(1000, 1000 + WINDOW_NS), count))
    return [event(f"s{n}", ts, 7, f="x") for n, ts in enumerate(times, 1)]


def causes(made: Rule, events: list[Event]) -> list[list[str]]:
    """Of each alert the events, in the order of the steps."""
    return [[events[n]["event"] for _, n in one["causes"]] for _, one in run([made], events)]


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.randoms(use_true_random=False))
def test_any_order_of_recording_is_found_once(count: int, rng: random.Random) -> None:
    """One alert, with the events in the order of the steps, behind the one recorded last."""
    events = happened(count, rng)
    rng.shuffle(events)

    ((rows, one),) = run([rule(count)], events)

    assert rows == count
    assert causes(rule(count), events) == [[f"s{n}" for n in range(1, count + 1)]]
    assert one["text"] == "7 x"


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.randoms(use_true_random=False), st.sampled_from(["step", "key", "file", "time"]))
def test_what_is_no_sequence_is_none_in_any_order(
    count: int, rng: random.Random, lacking: str
) -> None:
    """A step missing, another process or file, two events swapped in time: no alert."""
    events = happened(count, rng)
    number = rng.randrange(count - 1)
    if lacking == "step":
        del events[number]
    elif lacking == "key":
        events[number]["pid"] = 8
    elif lacking == "file":
        events[number]["arguments"] = {"f": "y"}
    else:
        first, second = events[number : number + 2]
        first["ts"], second["ts"] = second["ts"], first["ts"]
    rng.shuffle(events)

    assert not causes(rule(count), events)


@pytest.mark.parametrize(("order", "found"), [((0, 1), 1), ((1, 0), 0)])
def test_without_the_window_the_order_of_the_recording_counts(
    order: tuple[int, int], found: int
) -> None:
    """Control: a sequence that is not told so finds only what was recorded in its order."""
    events = happened(2, random.Random(1))

    assert len(causes(rule(2, unordered_ns=0), [events[n] for n in order])) == found


@pytest.mark.parametrize(("later_ns", "found"), [(0, 1), (1, 0)])
def test_an_early_event_is_remembered_for_the_window(later_ns: int, found: int) -> None:
    """To the nanosecond of the clock, which others move on."""
    first, second = event("s1", 1, 7, f="x"), event("s2", 2, 7, f="x")
    clock = event("s1", 2 + WINDOW_NS + later_ns, 8, f="x")

    assert len(causes(rule(2), [second, clock, first])) == found


@pytest.mark.parametrize(("more_ns", "found"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_maxspan_is_between_the_times_of_events(
    order: tuple[int, int], more_ns: int, found: int
) -> None:
    """Exactly maxspan, and one more, whichever was recorded first."""
    two = [event(f"s{n}", ts, 7, f="x") for n, ts in ((1, 1), (2, 1 + SPAN_NS + more_ns))]

    assert len(causes(rule(2), [two[n] for n in order])) == found


def test_what_is_remembered_is_bounded() -> None:
    """Of one key and step the newest 64."""
    early = [event("s2", 100 + n, 7, f=str(n)) for n in range(65)]
    firsts = [event("s1", 50, 7, f=str(n)) for n in (0, 1)]

    assert causes(rule(2), [*early, firsts[0]]) == []
    assert causes(rule(2), [*early, firsts[1]]) == [["s1", "s2"]]


@pytest.mark.parametrize(("others", "found"), [(2047, 1), (2048, 0)])
def test_what_a_rule_remembers_is_bounded(others: int, found: int) -> None:
    """Of all keys the newest 2,048; that older ones are forgotten is no loss."""
    early = [event("s2", 100, 7, f="x"), *(event("s2", 100, 8 + n, f="x") for n in range(others))]
    events = [*early, event("s1", 50, 7, f="x")]
    detections = Detections([rule(2)])

    assert len(raised(detections, [batch(events)])) == found
    assert not detections.losses


RULE = """\
name: Dropped and run
id: d
min-engine-version: 3.0.0
condition: >
  sequence maxspan 1m
    |evt.name = 'CreateFile'| by file.path
    |evt.name = 'LoadModule'| by module.path
"""


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_sequences_of_fibratus_are_such(order: tuple[int, int]) -> None:
    """Windows's providers fill buffers of their own, so the times of events tell their order."""
    loader = FibratusRules()
    assert not list(loader.load(RULE, "d.yml"))
    (made,) = loader.finish()
    assert isinstance(made, Rule)
    second = 10**9
    two = [
        {**event(name, ts * second, 7, file_path=r"C:\a"), "source": "w", "category": category}
        for name, category, ts in (("CreateFile", "file", 1), ("LoadImage", "module", 2))
    ]

    assert len(causes(made, [two[n] for n in order])) == 1
    two[0]["ts"] = 3 * second
    assert not causes(made, [two[n] for n in order])
