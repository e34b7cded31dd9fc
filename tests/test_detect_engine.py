"""The engine of detections: what rules see, in which order, and what becomes of it."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import filter_rows
import pytest
from derived_support import recording
from detect_support import (
    about,
    batch,
    briefly,
    cut,
    event,
    plain,
    raised,
    run,
    selector,
    stateful,
    stream,
)
from filter_made import Maker
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.detect import absence, correlation, sequence
from kcap.detect.engine import DEADLINES_MAX, DEPTH_MAX, Detections
from kcap.detect.python_rules import Signature, rule_of
from kcap.detect.rule import Rule, Selector
from kcap.filter import Filter
from kcap.model.stream import StreamInfo
from kcap.replay.pipeline import EXIT_DONE, EXIT_LOSSY, Pipeline

# what rules see


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 30), st.lists(st.integers(1, 40), max_size=4))
def test_alerts_are_those_of_the_row_by_row_oracle(seed: int, places: list[int]) -> None:
    """Each rule alerts on the rows that the interpreter finds, rows first, then rules by id."""
    maker = Maker(seed)
    events = maker.events(40)
    filters = [Filter.of(text, era) for text, era in maker.filters(6)]
    filters = [one for one in filters if not one.needs_state]
    ids = [f"R{number}" for number in range(len(filters))]
    rules = [
        Rule(about(name), (Selector("x", one),)) for name, one in zip(ids, filters, strict=True)
    ]

    found = raised(Detections(reversed(rules)), cut(events, places))

    kinds = [row.get("kind") for row in events.to_pylist()]
    expected = [
        (row + 1, name)
        for name, one in zip(ids, filters, strict=True)
        for row in filter_rows.rows(one, events)
        if kinds[row] not in ("state", "alert")
    ]
    assert briefly(found) == sorted(expected)


def test_records_of_what_was_there_are_no_events() -> None:
    """A rule does not see rows of kind state, and they do not move the clock."""
    events = [event("a", 5, kind="state"), event("a", 1)]

    found = run([plain("R", "evt.name = 'a'")], events)

    assert [(rows, one["ts_ns"]) for rows, one in found] == [(2, 1)]


def test_a_rule_sees_the_views_that_it_names_and_no_others() -> None:
    """What other rules name adds no events to a rule's."""
    events = recording([("execve", {"$process_name": "cat", "pathname": "/bin/cat"})])
    named = plain("named", "evt.name = 'sched_process_exec'")
    broad = plain("broad", "ps.name = 'cat'")

    both = briefly(raised(Detections([named, broad]), [events]))
    alone = briefly(raised(Detections([broad]), [events]))

    assert [one for one in both if one[1] == "broad"] == alone == [(1, "broad")]


def test_a_rule_may_ask_for_what_only_the_state_tells() -> None:
    """The parent's name is known to a condition, a text and a machine that said so."""

    class Asks(Signature):
        id = "asks"
        selectors: ClassVar = {"a": "evt.name = 'a'"}
        fields = ("ps.parent.cmdline",)

        def on_match(self, ctx: Any, selector: str, event: Any) -> None:
            ctx.alert(data={"parent": event.field("ps.parent.cmdline")})

    events = [
        event("p", 1, 7, kind="state", action="process_rundown", tid=7, cmdline="p"),
        event("a", 2, 8, ppid=7),
    ]
    rules = [
        plain("filter", "evt.name = 'a' and ps.parent.cmdline = 'p'"),
        plain("text", "evt.name = 'a'", text="of %ps.parent.cmdline"),
        rule_of(Asks),
    ]

    found = run(rules, events)

    assert briefly(found) == [(2, "asks"), (2, "filter"), (2, "text")]
    assert json.loads(found[0][1]["data"]) == {"parent": "p"}
    assert found[2][1]["text"] == "of p"


# order


class Several(Signature):
    """Says which selector it was called for, twice."""

    id = "m"
    selectors: ClassVar = {"first": "evt.name in ('a', 'b')", "second": "evt.name = 'b'"}

    def on_match(self, ctx: Any, selector: str, event: Any) -> None:
        """See `Signature`."""
        ctx.alert(title=f"{selector} 1")
        ctx.alert(title=f"{selector} 2")


def test_alerts_come_by_event_then_rule_then_emission() -> None:
    """For one event and rule the last selector comes first."""
    rules = [plain("z", "pid = 1"), rule_of(Several), plain("a", "pid = 1")]

    found = run(rules, [event("b", 1), event("a", 2)])

    assert [(rows, one["rule"], one["title"]) for rows, one in found] == [
        (1, "a", "a"), (1, "m", "second 1"), (1, "m", "second 2"), (1, "m", "first 1"),
        (1, "m", "first 2"), (1, "z", "z"),
        (2, "a", "a"), (2, "m", "first 1"), (2, "m", "first 2"), (2, "z", "z"),
    ]  # fmt: skip


def test_alerts_of_one_rule_and_event_have_numbers_and_ids_of_their_own() -> None:
    """Alerts that say the same of the same events can be told apart."""
    found = run([rule_of(Several)], [event("b", 1)])

    assert [one["number"] for _, one in found] == [0, 1, 2, 3]
    assert len({one["alert_id"] for _, one in found}) == 4


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1 << 30), st.lists(st.integers(1, 60), max_size=8))
def test_batches_do_not_matter(seed: int, places: list[int]) -> None:
    """Rules of every kind give the same alerts at the same places however a stream is cut."""
    whole = batch(stream(seed, 60))

    found = raised(Detections(stateful()), cut(whole, places))

    assert found == raised(Detections(stateful()), [whole])


def test_batches_would_matter_with_state_of_one_batch_or_rule_after_rule() -> None:
    """The comparison above fails for engines that do what it is there to find."""
    whole = batch(stream(7, 60))
    pieces = cut(whole, [20, 40])
    right = raised(Detections(stateful()), [whole])
    forgetful, rows = [], 0
    for piece in pieces:
        forgetful += [(rows + at, one) for at, one in raised(Detections(stateful()), [piece])]
        rows += piece.rows
    by_rule = [
        one
        for low, high in ((0, 20), (20, 40), (40, 61))
        for one in sorted(
            [one for one in right if low < one[0] <= high], key=lambda one: one[1]["rule"]
        )
    ]

    assert len({one["rule"] for _, one in right}) == len(stateful())
    assert [one for _, one in forgetful] != [one for _, one in right]
    assert by_rule != right


# time


class Timer(Signature):
    """Asks for a time three after each ``a``."""

    id = "t"
    selectors: ClassVar = {"a": "evt.name = 'a'"}

    def on_match(self, ctx: Any, selector: str, event: Any) -> None:
        """See `Signature`."""
        ctx.at(ctx.now_ns + 3, event.ts_ns)

    def on_deadline(self, ctx: Any, key: object) -> None:
        """See `Signature`."""
        ctx.alert(data={"of": key, "now": ctx.now_ns})

    def on_end(self, ctx: Any) -> None:
        """See `Signature`."""
        ctx.alert(title="end")


def test_a_deadline_comes_before_the_first_event_with_a_greater_time() -> None:
    """Also among events that no selector wants, and one at the time itself comes before it."""
    found = run([rule_of(Timer)], [event("a", 1), event("x", 4), event("x", 5), event("a", 9)])

    assert [(rows, one["ts_ns"], one["title"]) for rows, one in found] == [
        (2, 4, "t"),
        (4, 9, "end"),
    ]
    assert json.loads(found[0][1]["data"]) == {"of": 1, "now": 4}


def test_a_deadline_at_the_last_time_comes_with_the_end() -> None:
    """One in the future does not come: nobody knows what will have been by then."""
    at_the_end = run([rule_of(Timer)], [event("a", 1), event("x", 4)])
    beyond = run([rule_of(Timer)], [event("a", 1), event("x", 3)])

    assert [one["title"] for _, one in at_the_end] == ["t", "end"]
    assert [one["title"] for _, one in beyond] == ["end"]


def test_a_rule_that_asks_for_deadlines_without_end_is_ended() -> None:
    """A loop ends with a problem, and the run goes on."""

    class Loop(Timer):
        id = "loop"

        def on_deadline(self, ctx: Any, key: object) -> None:
            ctx.at(0, key)

    detections = Detections([rule_of(Loop), plain("z", "evt.name = 'z'")])

    found = raised(detections, [batch([event("a", 1), event("z", 9)])])

    assert briefly(found) == [(2, "z")]
    assert [f"{DEADLINES_MAX:,}" in problem.error.what for problem in detections.problems] == [True]


def test_the_clock_does_not_go_back() -> None:
    """An event that was recorded late has the time of those before it."""
    found = run([plain("R", "evt.name = 'a'")], [event("x", 9), event("a", 4), event("a", None)])

    assert [one["ts_ns"] for _, one in found] == [9, 9]


# alerts of alerts


def test_an_alert_is_an_event_for_rules_that_ask_for_alerts() -> None:
    """A rule of alerts tells what its alert is about by the events behind the other."""
    rules = [
        plain("low", "evt.name = 'a'"),
        plain("of alerts", "evt.name = 'alert' and evt.arg[rule] = 'low'"),
        plain("broad", "pid = 1"),
    ]

    found = run(rules, [event("a", 1)])

    assert briefly(found) == [(1, "broad"), (1, "low"), (1, "of alerts")]
    assert found[2][1]["causes"] == found[1][1]["causes"]
    assert found[2][1]["who"] == found[1][1]["who"]


def test_recorded_alerts_are_for_rules_of_alerts_alone() -> None:
    """A broad condition does not alert on what another run said."""
    recorded = event("alert", 1, kind="alert", rule="x")

    found = run(
        [plain("broad", "pid = 1"), plain("asks", "kind = 'alert' and args.rule = 'x'")], [recorded]
    )

    assert briefly(found) == [(1, "asks")]


def test_alerts_of_alerts_end_at_a_depth_and_it_is_said() -> None:
    """A rule of all alerts does not run for ever."""
    detections = Detections([plain("a", "evt.name = 'a'"), plain("loop", "evt.name = 'alert'")])

    found = raised(detections, [batch([event("a", 1)])])

    assert briefly(found) == [(1, "a")] + [(1, "loop")] * (DEPTH_MAX - 1)
    assert [(loss.kind, loss.count) for loss in detections.losses] == [("blind", 1)]


# what goes wrong


class Broken(Signature):
    """Divides by zero at each ``b``."""

    id = "broken"
    selectors: ClassVar = {"any": "pid = 1"}

    def on_match(self, ctx: Any, selector: str, event: Any) -> None:
        """See `Signature`."""
        ctx.alert(data={"n": 1 // (event.name != "b")})


class _Listed:
    info = StreamInfo("test", "test")

    def __init__(self, events: Any) -> None:
        self._events = events

    def batches(self) -> Any:
        yield self._events

    def close(self) -> None: ...


def test_an_exception_ends_its_rule_and_the_others_go_on() -> None:
    """The problem names file, line, rule and event; the run ends with exit code 3."""
    rule = rule_of(Broken, __file__, 1)
    detections = Detections([rule, plain("z", "pid = 1")])
    events = batch([event("a", 1), event("b", 2), event("a", 3)])

    summary = Pipeline(_Listed(events), (), taps=[detections]).run()

    (problem,) = detections.problems
    assert summary.alerts == 4
    assert summary.exit_code == EXIT_LOSSY
    assert (problem.id, problem.error.file) == ("broken", __file__)
    assert problem.error.line == Broken.on_match.__code__.co_firstlineno + 2
    assert "ZeroDivisionError" in problem.error.what
    assert ":1 (b)" in problem.error.what


def test_a_run_without_problems_is_no_lossy_one() -> None:
    """The exit code above is not always so."""
    events = batch([event("a", 1)])

    summary = Pipeline(_Listed(events), (), taps=[Detections([rule_of(Broken)])]).run()

    assert (summary.alerts, summary.exit_code) == (1, EXIT_DONE)


def test_of_two_rules_with_one_id_the_first_runs() -> None:
    """The other is a problem that names both places."""
    first = plain("R", "pid = 1", file="a.yaml", line=3)
    second = plain("R", "pid = 2", file="b.yaml", line=7)

    detections = Detections([first, second])

    assert briefly(raised(detections, [batch([event("a", 1, 1), event("a", 2, 2)])])) == [(1, "R")]
    assert "a.yaml, line 3" in str(detections.problems[0].error)
    assert str(detections.problems[0].error).startswith("b.yaml")


def test_selectors_need_no_machine_of_their_own() -> None:
    """A text shows fields of the event, and a percent sign stays what it is."""
    rule = plain("R", "evt.name = 'a'", text="%ps.name: %evt.arg[f] is 100% of %evt.arg[g]; %%ok")

    ((_, one),) = run([rule], [event("a", 1, f=3)])

    assert one["text"] == "a: 3 is 100% of N/A; %ok"
    assert selector("pid = 1").anywhere is None


def test_machines_tell_of_the_events_behind_alerts() -> None:
    """A sequence, a count and an absence of alerts name all the events that those are about."""
    low = "evt.name = 'alert' and evt.arg[rule] = 'low'"
    given = selector(low)
    count = correlation.Correlation("event_count", 9, count=2)
    rules = [
        plain("low", "evt.name = 'a'"),
        correlation.rule(about("count"), [given, given], count),
        sequence.rule(about("steps"), [sequence.Step.of(low), sequence.Step.of(low)]),
        absence.rule(about("then none"), given, selector("evt.name = 'b'"), absence.Absence(5)),
    ]

    found = run(rules, [event("a", 1), event("x", 2), event("a", 3), event("x", 50)])

    causes = [(one["rule"], [number for _, number in one["causes"]]) for _, one in found]
    assert causes == [
        ("low", [0]),
        ("low", [2]),
        ("count", [0, 2]),
        ("steps", [0, 2]),
        ("then none", [0]),
        ("then none", [2]),
    ]


@pytest.mark.parametrize(("by", "alone"), [("ps.pid", True), ("ps.name", False)])
def test_a_process_id_is_of_its_host(by: str, alone: bool) -> None:
    """Two hosts have processes of one id, which have nothing in common; names may have."""
    a, b = selector("evt.name = 'a'"), selector("evt.name = 'b'")
    steps = [sequence.Step.of("evt.name = 'a'"), sequence.Step.of("evt.name = 'b'")]
    rules = [
        absence.rule(about("absence"), a, b, absence.Absence(5, (by,))),
        correlation.rule(about("count"), [a, b], correlation.Correlation("temporal", 5, (by,))),
        sequence.rule(about("sequence"), steps, sequence.Options(by=(by,))),
    ]
    joined = [event("a", 1, host="x"), event("b", 2, host="x"), event("z", 20)]
    apart = [event("a", 1, host="x"), event("b", 2, host="y"), event("z", 20)]
    for one in (*joined, *apart):
        one["process_name"] = "same"

    found = {one["rule"] for _, one in run(rules, apart)}

    assert {one["rule"] for _, one in run(rules, joined)} == {"count", "sequence"}
    assert found == ({"absence"} if alone else {"count", "sequence"})
