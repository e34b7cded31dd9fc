"""Sequences: what is one, to the nanosecond, held against a machine that tries everything."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from detect_support import Event, about, batch, briefly, cut, event, raised, run
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.detect import sequence
from kcap.detect.engine import Detections
from kcap.detect.rule import Rule
from kcap.detect.sequence import Options, Step
from kcap.filter.errors import FilterError

SPAN_NS = 100


def steps(count: int) -> list[Step]:
    """Steps ``s1``, ``s2`` …"""
    return [Step.of(f"evt.name = 's{number}'") for number in range(1, count + 1)]


def rule(count: int, **more: object) -> Rule:
    """A sequence of that many steps of one process."""
    options = {"maxspan_ns": SPAN_NS, "by": ("pid",), **more}
    return sequence.rule(about(), steps(count), Options(**options))  # type: ignore[arg-type]


def hit(count: int, seed: int) -> list[Event]:
    """The events of one sequence, exactly ``maxspan`` from first to last, others between."""
    rng = random.Random(seed)
    times = sorted(rng.sample(range(1, SPAN_NS), count - 2))
    found = []
    for number, ts in enumerate([0, *times, SPAN_NS], 1):
        found.append(event(f"s{number}", ts, 7))
        if number < count and rng.random() < 0.5:
            found.append(event("other", ts, 7))
    return found


def count_of(sequence_rule: Rule, events: list[Event]) -> int:
    """How many alerts some events raise."""
    return len(run([sequence_rule], events))


COUNTS = pytest.mark.parametrize("count", [2, 3, 5, 8])


@COUNTS
def test_a_sequence_is_found_once(count: int) -> None:
    """Its alert names all its events, in order, and comes behind the last."""
    events = hit(count, count)

    ((rows, one),) = run([rule(count)], events)

    assert rows == len(events)
    assert [events[number]["event"] for _, number in one["causes"]] == [
        f"s{number}" for number in range(1, count + 1)
    ]
    assert (one["ts_ns"], one["data"], one["who"]["pid"]) == (SPAN_NS, '{"pid":7}', 7)


@COUNTS
def test_without_a_step_there_is_none(count: int) -> None:
    """Whichever step is missing."""
    events = hit(count, count)
    for number in range(1, count + 1):
        left = [one for one in events if one["event"] != f"s{number}"]

        assert count_of(rule(count), left) == 0


@COUNTS
def test_steps_in_another_order_are_none(count: int) -> None:
    """Whichever two neighbours change places."""
    events = [one for one in hit(count, count) if one["event"] != "other"]
    for at in range(count - 1):
        first, second = events[at]["event"], events[at + 1]["event"]
        changed = [
            *events[:at],
            {**events[at], "event": second},
            {**events[at + 1], "event": first},
            *events[at + 2 :],
        ]

        assert count_of(rule(count), changed) == 0


@COUNTS
def test_a_step_of_another_key_is_none(count: int) -> None:
    """Whichever step is another process's; without a key it would be one."""
    events = hit(count, count)
    for number in range(1, count + 1):
        changed = [{**e, "pid": 8} if e["event"] == f"s{number}" else e for e in events]

        assert count_of(rule(count), changed) == 0
        assert count_of(rule(count, by=()), changed) == 1


@COUNTS
def test_the_span_is_exact(count: int) -> None:
    """One nanosecond more is too long; without a longest time it is not."""
    events = hit(count, count)
    late = [*events[:-1], {**events[-1], "ts": SPAN_NS + 1}]

    assert count_of(rule(count), events) == 1
    assert count_of(rule(count), late) == 0
    assert count_of(rule(count, maxspan_ns=None), late) == 1


@COUNTS
def test_the_end_of_the_process_ends_what_it_began(count: int) -> None:
    """Only where the rule says so, of that process, and between the steps."""
    events = hit(count, count)
    ended = {"event": "exit", "ts": 0, "pid": 7, "tid": 7, "action": "process_stop"}
    between = [events[0], ended, *events[1:]]
    other = [events[0], {**ended, "pid": 9, "tid": 9}, *events[1:]]
    thread = [events[0], {**ended, "tid": 8}, *events[1:]]
    ends = rule(count, ends_with_process=True)

    assert count_of(ends, between) == 0
    assert count_of(rule(count), between) == 1
    assert [count_of(ends, each) for each in (other, thread, [ended, *events])] == [1, 1, 1]


def test_the_end_of_a_process_may_be_the_last_step() -> None:
    """It completes the sequence before it ends it."""
    made = sequence.rule(
        about(),
        [Step.of("evt.name = 'a'"), Step.of("action = 'process_stop'")],
        Options(by=("pid",), ends_with_process=True),
    )

    assert count_of(made, [event("a", 1), event("exit", 2, action="process_stop")]) == 1


def test_an_event_is_never_two_steps() -> None:
    """Where both steps want the same events, two are needed."""
    made = sequence.rule(about(), [Step.of("evt.name = 'a'")] * 2, Options())

    assert [rows for rows, _ in run([made], [event("a", n) for n in range(4)])] == [2, 3, 4]


# joins and aliases


def test_steps_may_have_keys_of_their_own() -> None:
    """A child's process id joins a parent's event with the child's own."""
    made = sequence.rule(
        about(),
        [
            Step.of("evt.name = 'fork'", by=("evt.arg[child]",)),
            Step.of("evt.name = 'x'", by=["pid"]),
        ],
        Options(),
    )

    assert count_of(made, [event("fork", 1, 7, child=8), event("x", 2, 8)]) == 1
    assert count_of(made, [event("fork", 1, 7, child=9), event("x", 2, 8)]) == 0


def test_several_fields_join_together() -> None:
    """All of them must be the same, and an event that lacks one belongs to nothing."""
    made = sequence.rule(about(), steps(2), Options(by=("pid", "evt.arg[f]")))

    assert count_of(made, [event("s1", 1, f="x"), event("s2", 2, f="x")]) == 1
    assert count_of(made, [event("s1", 1, f="x"), event("s2", 2, f="y")]) == 0
    assert count_of(made, [event("s1", 1), event("s2", 2)]) == 0


def test_a_later_step_may_ask_for_an_earlier_event() -> None:
    """Of several that wait, the one that fits goes on, wherever it stands."""
    made = sequence.rule(
        about(text="%1.evt.arg[f] then %2.evt.arg[f], %evt.name"),
        [
            Step.of("evt.name = 'a'", alias="e1"),
            Step.of(
                "evt.name = 'b' and evt.arg[f] startswith $e1.evt.arg[f]",
                earlier=["e1"],
            ),
        ],
        Options(by=("pid",)),
    )
    events = [event("a", 1, f="x"), event("a", 2, f="y"), event("b", 3, f="xx")]

    ((_, one),) = run([made], events)

    assert one["text"] == "x then xx, b"
    assert [number for _, number in one["causes"]] == [0, 2]
    assert count_of(made, [event("a", 1, f="x"), event("b", 3, f="y")]) == 0


def test_a_step_may_ask_for_nothing_but_an_earlier_event() -> None:
    """Then every event is looked at."""
    made = sequence.rule(
        about(),
        [Step.of("evt.name = 'a'", alias="e1"), Step.of("pid = $e1.ppid", earlier=["e1"])],
    )

    assert count_of(made, [event("a", 1, 7, ppid=5), event("x", 2, 6), event("y", 3, 5)]) == 1


def test_events_of_one_time_follow_one_another_unless_they_must_be_later() -> None:
    """What was recorded later is later; some sources ask for a later time."""
    same = [event("s1", 5), event("s2", 5)]

    assert count_of(rule(2), same) == 1
    assert count_of(rule(2, later=True), same) == 0
    assert count_of(rule(2, later=True), [event("s1", 4), *same]) == 1


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: rule(1), "2 to 64"),
        (lambda: rule(65), "2 to 64"),
        (lambda: sequence.rule(about(text="%3.ps.name"), steps(2)), "step 3 of 2"),
        (
            lambda: sequence.rule(about(), [Step.of("pid = 1", by=("pid", "ppid")), *steps(1)]),
            "different numbers",
        ),
        (lambda: sequence.rule(about(), [Step.of("pid = 1", alias="a")] * 2), "one alias"),
    ],
)
def test_what_makes_no_sequence_is_refused(made: object, why: str) -> None:
    """With what is wrong."""
    assert callable(made)
    with pytest.raises(ValueError, match=why):
        made()


def test_unknown_fields_of_aliases_are_refused() -> None:
    """Before an event is read."""
    with pytest.raises(FilterError, match=r"ps\.nme"):
        sequence.rule(
            about(),
            [Step.of("pid = 1", alias="e"), Step.of("ps.name = $e.ps.nme", earlier=["e"])],
        )


# against one that tries everything


def tried(events: list[Event], count: int) -> list[int]:
    """Where sequences end, found without a state machine: newest partial sequences win."""
    waiting: list[list[Event]] = []
    found = []
    for place, one in enumerate(events, 1):
        number = int(one["event"][1:])
        mine = [
            w
            for w in waiting
            if len(w) == number - 1
            and w[0]["pid"] == one["pid"]
            and one["ts"] - w[0]["ts"] <= SPAN_NS
        ]
        waiting = [w for w in waiting if w not in mine]
        if number == 1:
            waiting.append([one])
        elif mine and number == count:
            found.append(place)
        elif mine:
            waiting.append([*max(mine, key=lambda w: events.index(w[0])), one])
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 1 << 30), st.lists(st.integers(1, 39), max_size=3))
def test_sequences_are_those_of_one_that_tries_everything(
    count: int, seed: int, places: list[int]
) -> None:
    """For any events of two processes, however they are cut into batches."""
    rng = random.Random(seed)
    times = sorted(rng.sample(range(1000), 40))
    events = [event(f"s{rng.randint(1, count)}", ts, rng.choice([1, 2])) for ts in times]

    found = raised(Detections([rule(count)]), cut(batch(events), places))

    assert [rows for rows, _ in found] == tried(events, count)


def test_the_one_that_tries_everything_finds_some() -> None:
    """The comparison above is not one of nothing with nothing."""
    events = [event(f"s{1 + n % 2}", n) for n in range(10)]

    assert tried(events, 2) == [rows for rows, _ in run([rule(2)], events)] == [2, 4, 6, 8, 10]
    assert all(a < b for a, b in pairwise(briefly(run([rule(2)], events))))


def test_the_end_of_a_process_is_asked_of_a_recorder() -> None:
    """What a recorder must see for such a sequence is known; without, no end is asked for."""
    for ends in (True, False):
        made = rule(2, ends_with_process=ends)
        asked = {name for one in made.selectors for name in one.events or ()}
        assert asked == ({"sched_process_exit"} if ends else set())
