"""Signatures that do what they should not: they end, are told of, and the others go on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detect_support import batch, briefly, event, plain, raised

from kcap.detect.engine import Detections
from kcap.detect.python_rules import PythonRules, Signature, rule_of
from kcap.detect.rule import Problem
from kcap.detect.run import ALERTS_MAX


def rule_that(does: Callable[[Any], object], late: Callable[[Any], object] | None = None) -> Any:
    """A rule of a signature that does something at each event a, and at deadlines."""

    class Does(Signature):
        id = "does"
        selectors = {"a": "evt.name = 'a'"}  # noqa: RUF012

        def on_match(self, ctx: Any, selector: str, event: Any) -> None:
            does(ctx)

        def on_deadline(self, ctx: Any, key: object) -> None:
            if late is not None:
                late(ctx)

    return rule_of(Does)


def outcome(rule: Any) -> tuple[list[tuple[int, str]], list[str]]:
    """Alerts over a few events beside another rule, and what was wrong."""
    detections = Detections([rule, plain("other", "evt.name = 'b'")])
    found = raised(detections, [batch([event("a", 5), event("b", 9)])])
    return briefly(found), [problem.error.what for problem in detections.problems]


def many(count: int) -> Callable[[Any], None]:
    """Raises so many alerts."""

    def alerts(ctx: Any) -> None:
        for _ in range(count):
            ctx.alert()

    return alerts


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (lambda _: sys.exit(7), "SystemExit: 7"),
        (lambda ctx: ctx.alert(causes=["x"]), "ValueError"),
        (lambda ctx: ctx.alert(causes=[("o", "1")]), "TypeError"),
        (lambda ctx: ctx.alert(title=5), "int as title of an alert: expected text"),
        (lambda ctx: ctx.alert(text=b"x"), "bytes as text of an alert"),
        (lambda ctx: ctx.alert(severity=4), "int as severity of an alert"),
        (lambda ctx: ctx.alert(data=[1]), "list as data of an alert: expected a mapping"),
        (lambda ctx: ctx.alert(data={"a": object()}), "not JSON serializable"),
        (lambda ctx: ctx.alert(data={"a": float("nan")}), "not JSON compliant"),
        (lambda ctx: ctx.alert(who=7), "int as who of an alert"),
        (lambda ctx: ctx.at("soon", 1), "TypeError"),
        (lambda ctx: ctx.at(1.5, 1), "TypeError"),
    ],
)
def test_nonsense_ends_its_rule_alone(does: Callable[[Any], object], why: str) -> None:
    """What a signature says wrongly is its own problem, not that of the run."""
    found, (wrong,) = outcome(rule_that(does))

    assert found == [(2, "other")]
    assert why in wrong


def test_sense_ends_nothing() -> None:
    """The same with values that an alert can have."""
    found, wrong = outcome(
        rule_that(
            lambda ctx: ctx.alert(
                causes=[("o", 1)], title="t", text="x", severity="high", data={"a": 1}, who={}
            )
        )
    )

    assert (found, wrong) == ([(1, "does"), (2, "other")], [])


def test_the_users_own_interrupt_ends_all() -> None:
    """Ctrl-C is not about the rule in which it comes."""

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcome(rule_that(interrupted))


@pytest.mark.parametrize(("more", "ended"), [(0, False), (1, True)])
def test_alerts_without_end_end_the_rule(more: int, ended: bool) -> None:
    """As many as the bound are raised, and one more is a loop."""
    found, wrong = outcome(rule_that(many(ALERTS_MAX + more)))

    assert len(found) == ALERTS_MAX + 1
    assert [f"more than {ALERTS_MAX:,} alerts" in one for one in wrong] == [True] * ended


def test_the_bound_is_for_one_event() -> None:
    """A rule that alerts on event after event is no loop, with a machine or without."""
    half = ALERTS_MAX // 2 + 1
    for rule in (plain("r", "evt.name = 'a'"), rule_that(lambda ctx: ctx.alert())):
        detections = Detections([rule])
        events = batch([event("a", 1)]).take([0] * half)
        assert sum(len(detections.alerts(events)) for _ in range(2)) == 2 * half
        assert detections.problems == []


@pytest.mark.parametrize("time_ns", [-(2**70), 0, 5])
def test_a_deadline_in_the_past_comes_at_once(time_ns: int) -> None:
    """Its alert has the time of the clock, which does not go back."""
    detections = Detections([rule_that(lambda ctx: ctx.at(time_ns, 1), many(1))])

    found = raised(detections, [batch([event("a", 5), event("b", 9)])])

    assert [(rows, one["ts_ns"]) for rows, one in found] == [(1, 5)]


def test_a_deadline_that_no_clock_reaches_never_comes() -> None:
    """However late it is asked for."""
    assert outcome(rule_that(lambda ctx: ctx.at(2**70, 1), many(1))) == ([(2, "other")], [])


def test_a_file_that_leaves_is_told_of(tmp_path: Path) -> None:
    """A script that calls `sys.exit` is a file that can't be loaded, not the end of the run."""
    file = tmp_path / "leaves.py"

    file.write_text("import sys\nselectors = sys.exit(3)\n")

    (problem,) = PythonRules().load(file.read_text(), str(file))

    assert isinstance(problem, Problem)
    assert problem.error.line == 2
    assert "SystemExit: 3" in problem.error.what
