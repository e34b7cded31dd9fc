"""Sigma's filters and correlations: they speak of other rules, in whatever file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from sigma_support import LOGONS, SYSMON, converted, rule

from kcap.detect.engine import Detections
from kcap.detect.feed import source

SECOND = 10**9

FAILED = rule({"s": {"EventID": 4625}, "condition": "s"}, "Failed", name="failed")
LOGON = rule({"s": {"EventID": 4624}, "condition": "s"}, "Logon", name="logon")


def correlation(what: str, title: str = "together") -> str:
    """A correlation."""
    return f"title: {title}\nname: {title}\ncorrelation: {{{what}}}\n"


def logon(second: int, number: int, user: str, address: str = "10.0.0.1") -> dict[str, Any]:
    """An event of the Security log."""
    fields = {"EventID": number, "TargetUserName": user, "IpAddress": address}
    arguments = {"Channel": "Security", **fields}
    return {"event": "record", "ts": second * SECOND, "arguments": arguments}


def raised(
    texts: Sequence[str], events: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[int]]]:
    """Alerts of rules: which rule, and which events."""
    rules, problems = converted({f"{n}.yml": text for n, text in enumerate(texts)})
    assert not problems
    detections = Detections(rules)
    found = [alert for b in source(events).batches() for _, alert in detections.alerts(b)]
    found += detections.last()
    assert not detections.problems
    return [(alert.rule, [number for _, number in alert.causes]) for alert in found]


def test_a_filter_takes_events_from_the_rules_that_it_names() -> None:
    """It may stand in any file, before the rule or after it; other rules keep their events."""
    filtering = (
        f"title: f\nlogsource: {json.dumps(LOGONS)}\n"
        "filter: {rules: [failed], t: {TargetUserName|startswith: svc_}, condition: not t}\n"
    )
    other = FAILED.replace("Failed", "Other").replace("failed", "other")
    events = [logon(1, 4625, "bob"), logon(2, 4625, "SVC_x")]

    assert raised([FAILED], events) == [("failed", [0]), ("failed", [1])]
    for texts in ([FAILED, filtering], [filtering, FAILED]):
        assert raised(texts, events) == [("failed", [0])]
    assert raised([filtering, other], events) == [("other", [0]), ("other", [1])]


def test_events_are_counted_by_group_and_time() -> None:
    """Three of one user within a minute; two of each are not, nor three in more than a minute."""
    counted = correlation(
        "type: event_count, rules: [failed], group-by: [TargetUserName], timespan: 1m,"
        " condition: {gte: 3}"
    )
    mixed = [logon(n, 4625, user) for n, user in enumerate(["bob", "ann", "bob", "ann", "bob"])]
    slow = [logon(31 * n, 4625, "bob") for n in range(3)]

    assert raised([FAILED, counted], mixed) == [("together", [0, 2, 4])]
    assert raised([FAILED, counted], mixed[:4]) == []
    assert raised([FAILED, counted], slow) == []


def test_values_are_counted() -> None:
    """Different users from one address, not one user often."""
    counted = correlation(
        "type: value_count, rules: [failed], group-by: [IpAddress], timespan: 1m,"
        " condition: {gt: 1, field: TargetUserName}"
    )

    assert raised([FAILED, counted], [logon(1, 4625, "a"), logon(2, 4625, "a")]) == []
    assert raised([FAILED, counted], [logon(1, 4625, "a"), logon(2, 4625, "b")]) != []


@pytest.mark.parametrize(("kind", "expected"), [("temporal", 2), ("temporal_ordered", 1)])
def test_rules_come_together_in_any_order_or_in_theirs(kind: str, expected: int) -> None:
    """Without a condition all rules must match; the order counts where the type says so."""
    together = correlation(
        f"type: {kind}, rules: [failed, logon], group-by: [TargetUserName], timespan: 1m"
    )
    there = [logon(1, 4625, "a"), logon(2, 4624, "a")]
    back = [logon(200, 4624, "a"), logon(201, 4625, "a")]
    apart = [logon(400, 4625, "a"), logon(401, 4624, "b")]

    found = raised([FAILED, LOGON, together], [*there, *back, *apart])

    assert len(found) == expected
    assert found[0] == ("together", [0, 1])


def test_a_thing_that_two_pipelines_find_is_one() -> None:
    """A start in Sysmon's log and in the Security log is no match of two rules."""
    started = rule({"s": {"Image|endswith": "x.exe"}, "condition": "s"}, "S", name="started")
    started = started.replace(json.dumps(LOGONS), "{product: windows, category: process_creation}")
    both = correlation("type: temporal, rules: [started, failed], group-by: [Host], timespan: 1m")
    arguments = [
        {"Channel": SYSMON, "EventID": 1, "Image": "x.exe", "Host": "h"},
        {"Channel": "Security", "EventID": 4688, "NewProcessName": "x.exe", "Host": "h"},
        {"Channel": "Security", "EventID": 4625, "Host": "h"},
    ]
    events = [{"event": "record", "ts": n, "arguments": a} for n, a in enumerate(arguments)]

    assert raised([started, FAILED, both], events[:2]) == []
    assert raised([started, FAILED, both], events) == [("together", [0, 1, 2])]


def test_an_alias_has_a_name_of_its_own_in_each_rule() -> None:
    """Group-by of an alias takes of each rule's events the field that it names."""
    what = (
        "type: temporal, rules: [failed, logon], group-by: [who], timespan: 1m,"
        " aliases: {who: {failed: TargetUserName, logon: IpAddress}}"
    )
    events = [logon(1, 4625, "a"), logon(2, 4624, "b", "a")]

    assert raised([FAILED, LOGON, correlation(what)], events) == [("together", [0, 1])]
    plain = correlation(what.replace("logon: IpAddress", "logon: TargetUserName"))
    assert raised([FAILED, LOGON, plain], events) == []


def test_rules_of_a_correlation_are_silent_unless_it_says_generate() -> None:
    """What a correlation counts is no alert by itself."""
    what = "type: event_count, rules: [failed], timespan: 1m, condition: {gte: 2}"
    events = [logon(1, 4625, "a"), logon(2, 4625, "a")]

    silent = raised([FAILED, correlation(what)], events)
    loud = raised([FAILED, correlation(f"{what}, generate: true")], events)

    assert silent == [("together", [0, 1])]
    assert loud == [("failed", [0]), ("failed", [1]), ("together", [0, 1])]


def test_a_correlation_may_count_another() -> None:
    """Its alerts are events for the next."""
    inner = correlation("type: event_count, rules: [failed], timespan: 1m, condition: {gte: 2}")
    outer = correlation(
        "type: event_count, rules: [together], timespan: 1h, condition: {gte: 2}", "outer"
    )
    events = [logon(n, 4625, "a") for n in range(4)]

    names = [name for name, _ in raised([FAILED, inner, outer], events)]

    assert names == ["together", "together", "outer"]


@pytest.mark.parametrize(
    ("by", "user", "address"),
    [
        ("group-by: [TargetUserName]", "a", "10.0.0.9"),
        ("group-by: [who], aliases: {who: {many: TargetUserName, logon: IpAddress}}", "b", "a"),
    ],
)
def test_alerts_of_a_correlation_have_the_fields_of_its_group(
    by: str, user: str, address: str
) -> None:
    """A user who logs on after many failures is one of those who failed, and no other."""
    many = correlation(
        "type: event_count, rules: [failed], group-by: [TargetUserName], timespan: 1m,"
        " condition: {gte: 3}",
        "many",
    )
    then = correlation(f"type: temporal_ordered, rules: [many, logon], timespan: 10m, {by}", "in")
    failures = [logon(n, 4625, "a") for n in range(3)]

    def names(*events: Mapping[str, Any]) -> list[str]:
        return [name for name, _ in raised([FAILED, LOGON, many, then], events)]

    assert names(*failures, logon(9, 4624, user, address)) == ["many", "in"]
    found = raised([FAILED, LOGON, many, then], [*failures, logon(9, 4624, user, address)])
    assert found[-1] == ("in", [0, 1, 2, 3])
    assert names(*failures, logon(9, 4624, "c", "c")) == ["many"]
    assert names(*failures[1:], logon(9, 4624, user, address)) == []
    assert names(logon(-9, 4624, user, address), *failures) == ["many"]


def test_alerts_of_a_correlation_have_no_other_fields() -> None:
    """What alerts are not grouped by can't group them, and the error says what can."""
    inner = correlation(
        "type: event_count, rules: [failed], group-by: [TargetUserName], timespan: 1m,"
        " condition: {gte: 2}"
    )
    outer = (
        "type: event_count, rules: [together], group-by: [{}], timespan: 1h, condition: {{gt: 1}}"
    )
    texts = {"0.yml": FAILED, "1.yml": inner, "2.yml": correlation(outer.format("Ip"), "outer")}

    _, (problem,) = converted(texts)

    assert problem.id == "outer"
    assert "alerts of together don't have 'Ip'" in str(problem.error)
    assert "expected TargetUserName" in str(problem.error)
    fitting = {**texts, "2.yml": correlation(outer.format("TargetUserName"), "outer")}
    assert converted(fitting)[1] == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("group-by: ['a]'],\n condition: {field: b, gte: 2}", 4),
        ("group-by: [a],\n condition: {field: 'b]', gte: 2}", 5),
    ],
)
def test_a_name_that_no_field_has_is_told_with_its_place(what: str, line: int) -> None:
    """Group-by and the field that is counted: file, line and rule are named."""
    counted = correlation(f"type: value_count, rules: [failed], timespan: 1m,\n {what}")

    _, (problem,) = converted({"0.yml": FAILED, "1.yml": counted})

    assert (problem.id, problem.error.file, problem.error.line) == ("together", "1.yml", line)
    assert "can be no field" in str(problem.error)
    assert converted({"0.yml": FAILED, "1.yml": counted.replace("]'", "'")})[1] == []


def test_a_correlation_that_counts_itself_is_refused() -> None:
    """Of a circle no member can run, and the error shows the circle."""
    what = "type: event_count, rules: [{}], timespan: 1m, condition: {{gte: 2}}"
    circle = [correlation(what.format("b"), "a"), correlation(what.format("a"), "b")]

    rules, problems = converted({f"{n}.yml": text for n, text in enumerate(circle)})

    assert not rules
    assert [found.id for found in problems] == ["a", "b"]
    assert "a -> b -> a" in str(problems[0].error)


def test_a_rule_says_what_must_be_recorded_for_it() -> None:
    """kcap's recorder is told by rules of Linux, through correlations too; the log's need none."""
    started = rule({"s": {"Image|endswith": "x"}, "condition": "s"}, "S", name="started")
    started = started.replace(json.dumps(LOGONS), "{product: linux, category: process_creation}")
    counted = correlation("type: event_count, rules: [started], timespan: 1m, condition: {gte: 2}")

    for text, expected in ((started, {"sched_process_exec"}), (FAILED, None)):
        rules, _ = converted({"a.yml": text})
        assert rules[0].events == expected
    rules, _ = converted({"a.yml": started, "b.yml": counted})
    assert [sorted(found.events or ()) for found in rules] == [["sched_process_exec"]]
