"""What rules may remember, a start in the middle, and alerts that are not wanted."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from detect_support import batch, briefly, event, plain, raised, run, stateful, stream

from kcap.detect.engine import Detections
from kcap.detect.python_rules import Signature, rule_of
from kcap.detect.room import Bounds
from kcap.detect.rule import Exempt
from kcap.filter import Filter


class Several(Signature):
    """Says which selector it was called for, twice."""

    id = "m"
    selectors: ClassVar = {"first": "evt.name in ('a', 'b')", "second": "evt.name = 'b'"}

    def on_match(self, ctx: Any, selector: str, event: Any) -> None:
        """See `Signature`."""
        ctx.alert(title=f"{selector} 1")
        ctx.alert(title=f"{selector} 2")


# bounds


def absences(rule_entries: int, **more: int) -> Detections:
    """Rules that wait, with little room."""
    return Detections(
        [one for one in stateful() if one.about.id in ("absence", "count")],
        bounds=Bounds(rule_entries=rule_entries, **more),
    )


@pytest.mark.parametrize(
    ("detections", "kept"),
    [
        (absences(2), {3, 4}),
        (absences(100, entries=4), {3, 4}),
        (absences(100), {1, 2, 3, 4}),
    ],
    ids=["of a rule", "of all", "enough"],
)
def test_the_oldest_is_forgotten_first(detections: Detections, kept: set[int]) -> None:
    """Beyond the bounds state goes, the oldest first, and each one counts."""
    events = [event("a", pid, pid) for pid in (1, 2, 3, 4)] + [event("x", 100)]

    found = raised(detections, [batch(events)])

    pids = {one["who"]["pid"] for _, one in found if one["rule"] == "absence"}
    assert pids == kept
    lost = {loss.reason.split()[2]: loss.count for loss in detections.losses}
    assert lost == ({} if len(kept) == 4 else {"absence": 2, "count": 2})
    assert {loss.kind for loss in detections.losses} <= {"evicted"}


def test_bytes_are_bounded_too() -> None:
    """Long texts take the room of many short ones."""
    rule = [one for one in stateful() if one.about.id == "sequence"]
    bounds = Bounds(rule_bytes=4_000)
    long, short = "x" * 3_000, "x"

    def matched(text: str) -> list[int]:
        events = [event("a", 1, pid, f=text) for pid in (1, 2)]
        events += [event("b", 2, pid, f=text) for pid in (1, 2)]
        return [one["who"]["pid"] for _, one in run(rule, events, bounds=bounds)]

    assert matched(short) == [1, 2]
    assert matched(long) == [2]


def test_what_is_over_takes_no_room() -> None:
    """Sequences that took too long, groups and waits that ended are gone without being counted."""
    rules = [one for one in stateful() if one.about.id not in ("few", "alerts")]
    detections = Detections(rules)
    events = [event("a", 100 * n, n, f="x") for n in range(1, 500)]

    raised(detections, [batch(events)])

    assert len(detections.room) < 10
    assert detections.losses == []


# a start in the middle, and alerts that are not wanted


@pytest.mark.parametrize("way", ["start_ns", "warm"])
def test_a_start_in_the_middle_gives_the_tail(way: str) -> None:
    """Rules know what was before the start; alerts from there on are those of a full run."""
    events = [one for one in stream(6, 90) if one.get("ts")]
    events = sorted(events, key=lambda one: one["ts"])
    places = [n for n in range(1, len(events)) if events[n]["ts"] > events[n - 1]["ts"]]
    middle = min(places, key=lambda n: abs(n - 40))
    start_ns = events[middle]["ts"]
    whole = batch(events)
    full = raised(Detections(stateful()), [whole])

    if way == "warm":
        detections = Detections(stateful(), start_ns=start_ns)
        detections.warm(whole.slice(0, middle))
        found = raised(detections, [whole.slice(middle, whole.rows)])
        found = [(rows + middle, one) for rows, one in found]
    else:
        found = raised(Detections(stateful(), start_ns=start_ns), [whole])

    tail = [one for one in full if one[1]["ts_ns"] >= start_ns]
    cold = raised(Detections(stateful()), [whole.slice(middle, whole.rows)])
    assert found == tail
    assert [one for _, one in cold] != [one for _, one in tail]


def test_exceptions_hold_back_alerts_until_their_time_and_count_them() -> None:
    """An exception of another rule, or one whose time is over, holds nothing back."""
    of_rule = Exempt(Filter.of("evt.arg[f] = 'ours'"), "ours", "R", until_ns=10)
    rules = [plain("R", "evt.name = 'a'"), plain("S", "evt.name = 'a'")]
    events = [event("a", 1, f="ours"), event("a", 2, f="x"), event("a", 10, f="ours")]
    detections = Detections(rules, exceptions=[of_rule])

    found = briefly(raised(detections, [batch(events)]))

    assert found == [(1, "S"), (2, "R"), (2, "S"), (3, "R"), (3, "S")]
    assert detections.suppressed == {("R", "ours"): 1}


def test_an_exception_may_ask_for_what_only_the_state_tells() -> None:
    """Also where no rule does."""
    known = Exempt(Filter.of("ps.parent.cmdline = 'p'"), "parent")
    detections = Detections([plain("R", "evt.name = 'a'")], exceptions=[known])

    found = raised(
        detections,
        [
            batch(
                [
                    event("p", 1, 7, kind="state", action="process_rundown", tid=7, cmdline="p"),
                    event("a", 2, 8, ppid=7),
                    event("a", 3),
                ]
            )
        ],
    )

    assert [rows for rows, _ in found] == [3]


def test_an_exception_of_a_deadline_is_asked_of_the_alert() -> None:
    """There is no event then; the alert says whose it is."""
    rule = [one for one in stateful() if one.about.id == "absence"]
    ours = Exempt(Filter.of("pid = 2"), "ours")

    found = run(rule, [event("a", 1, 1), event("a", 1, 2), event("x", 50)], exceptions=[ours])

    assert [one["who"]["pid"] for _, one in found] == [1]


def test_a_throttle_holds_back_alerts_of_a_rule_about_a_process() -> None:
    """Another process, another rule and another time are not held back."""
    rules = [plain("R", "evt.name = 'a'"), plain("S", "evt.arg[f] = 's'")]
    events = [event("a", 1), event("a", 2, 2), event("a", 5, f="s"), event("a", 11)]
    detections = Detections(rules, throttle_ns=10)

    found = briefly(raised(detections, [batch(events)]))

    assert found == [(1, "R"), (2, "R"), (3, "S"), (4, "R")]
    assert detections.suppressed == {("R", "throttled"): 1}


def test_what_is_held_back_changes_no_id() -> None:
    """Ids are the same with and without exceptions."""
    rule = rule_of(Several)
    held = Exempt(Filter.of("evt.name = 'b'"), "b")
    events = [event("b", 1), event("a", 2)]

    with_held = {one["alert_id"] for _, one in run([rule], events, exceptions=[held])}
    every = {one["alert_id"]: rows for rows, one in run([rule], events)}

    assert with_held == {name for name, rows in every.items() if rows == 2}
