"""Sigma rules, filters and correlations: what they become, and what is wrong with bad ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import sigma_support as support
from hypothesis import given, settings
from hypothesis import strategies as st
from sigma.rule import SigmaRule
from sigma_support import LOGONS, PROCESSES, Sqlite, batch_of_rows, converted, rule

from kcap.detect.feed import feed
from kcap.detect.rule import Rule
from kcap.errors import MissingExtraError
from kcap.filter import Filter
from kcap.filter.many import Filters
from kcap.filter.syntax import text_of
from kcap.readers.rules import sigma_pipelines
from kcap.readers.rules.sigma import SigmaRules
from kcap.readers.rules.sigma_pipelines import Logsource, targets


def one(detection: Mapping[str, Any], **more: Any) -> Rule:
    """A rule that converts."""
    rules, problems = converted({"a.yml": rule(detection, **more)})
    assert not problems
    return rules[0]


def asked(detection: Mapping[str, Any]) -> str:
    """What a rule asks for, without its channel."""
    text = str(one({**detection, "condition": "s"}).selectors[0].filter)
    return text.removeprefix("evt.arg[Channel] in ('Security') and ")


def problem(text: str) -> Any:
    """What is wrong with the only bad rule of a file."""
    _, problems = converted({"bad.yml": text})
    (found,) = problems
    return found


# conditions


DASHES = "evt.arg[A] icontains (' -x', ' /x', ' \N{EN DASH}x', ' \N{EM DASH}x', ' \u2015x')"
"""A dash at the start of a word, as people and programs write it."""


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"A": "x"}, "evt.arg[A] iin ('x')"),
        ({"A": ["x", "y"]}, "evt.arg[A] iin ('x', 'y')"),
        ({"A": "*x"}, "evt.arg[A] iendswith ('x')"),
        ({"A": "x**"}, "evt.arg[A] istartswith ('x')"),
        ({"A": "*x*"}, "evt.arg[A] icontains ('x')"),
        ({"A": "x?y*"}, "evt.arg[A] imatches ('x?y*')"),
        ({"A": "*"}, "exists(evt.arg[A])"),
        ({"A": ""}, "evt.arg[A] iin ('')"),
        ({"A": r"x\*"}, "evt.arg[A] iin ('x*')"),
        ({"A": r"x\**y"}, r"regex(evt.arg[A], '(?is)\\Ax\\*.*y\\z')"),
        ({"A": None}, "not exists(evt.arg[A])"),
        ({"A": 5}, "evt.arg[A] iin (5)"),
        ({"A": True}, "evt.arg[A] iin (true, 'true')"),
        (
            {"A|contains|all": ["x", "y"]},
            "evt.arg[A] icontains ('x') and evt.arg[A] icontains ('y')",
        ),
        ({"A|startswith|cased": "x"}, "evt.arg[A] startswith ('x')"),
        ({"A|cased": "x"}, "evt.arg[A] in ('x')"),
        ({"A|base64offset|contains": "foo"}, "evt.arg[A] icontains ('Zm9v', 'Zvb', 'mb2')"),
        ({"A|windash|contains": " -x"}, DASHES),
        ({"A|fieldref": "B"}, "evt.arg[A] ~= evt.arg[B]"),
        ({"A|fieldref|endswith": "B"}, "evt.arg[A] iendswith evt.arg[B]"),
        ({"A|exists": False}, "not exists(evt.arg[A])"),
        ({"A|cidr": "10.0.0.0/8"}, "evt.arg[A] iin (10.0.0.0/8)"),
        ({"A|cidr": "fe80::/10"}, "evt.arg[A] iin (fe80::/10)"),
        ({"A|re": "a.b"}, "regex(evt.arg[A], 'a.b')"),
        ({"A|re|i|s": "a.b"}, "regex(evt.arg[A], '(?is)a.b')"),
        ({"A|gte": 5}, "evt.arg[A] >= 5"),
        ({"c-uri|contains": "x"}, "evt.arg[c-uri] icontains ('x')"),
    ],
    ids=str,
)
def test_what_stands_in_a_rule_becomes_one_condition(
    item: Mapping[str, Any], expected: str
) -> None:
    """Modifiers and wildcards become the operators of filters."""
    assert asked({"s": item}) == expected


def test_words_without_a_field_are_looked_for_in_all_that_is_known() -> None:
    """A keyword may be part of any field that the pipeline has a name for."""
    asked_of = one({"words": ["evil", 7], "condition": "words"}).selectors[0].filter

    events = [{"ServiceName": "an EVIL one"}, {"CommandLine": "a7"}, {"ServiceName": "good"}]
    rows = batch_of_rows([{"Channel": "Security", **event} for event in events])

    assert asked_of.rows(rows).tolist() == [0, 1]


def test_a_number_is_found_as_a_number_and_as_its_digits() -> None:
    """What one source has as a number another has as text."""
    rows = [{"Channel": "Security", "EventID": value} for value in (4625, "4625", 46250, "x")]

    found = one({"s": {"EventID": 4625}, "condition": "s"}).selectors[0].filter

    assert found.rows(batch_of_rows(rows)).tolist() == [0, 1]
    rows = [{"Channel": "Security", "Share": value} for value in (0.5, "0.5", 5, "0.55")]
    found = one({"s": {"Share": 0.5}, "condition": "s"}).selectors[0].filter
    assert found.rows(batch_of_rows(rows)).tolist() == [0, 1]


# conditions: any of them, beside SQLite

_LETTERS = st.text("aB*?\\.-", max_size=4)
_WORDS = st.one_of(_LETTERS, st.sampled_from(["a", "ab", "A*b", ""]))
_MODIFIERS = ["", "|contains", "|startswith", "|endswith", "|contains|all", "|cased", "|windash"]
_ITEMS = st.dictionaries(
    st.tuples(st.sampled_from("XYZ"), st.sampled_from(_MODIFIERS)).map("".join),
    st.lists(_WORDS, min_size=2, max_size=3, unique=True),
    min_size=1, max_size=2,
)  # fmt: skip
_OTHERS = st.sampled_from(
    [{"X|exists": True}, {"Y|exists": False}, {"Z": None}, {"X|fieldref": "Y"}, {"Y|re": "^a+"}]
)
_CONDITIONS = st.sampled_from(
    [
        "p and not q", "p or q", "not p", "not (p and q)", "1 of them", "all of them",
        "not 1 of them", "p and not (q or not p)",
    ]
)  # fmt: skip
_ROWS = st.lists(
    st.dictionaries(st.sampled_from("XYZ"), st.text("aAbB*?\\.-/", max_size=5), max_size=3),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    p=st.one_of(_ITEMS, _OTHERS), q=st.one_of(_ITEMS, _OTHERS), condition=_CONDITIONS, rows=_ROWS
)
def test_any_condition_finds_what_sqlite_finds(
    p: Mapping[str, Any], q: Mapping[str, Any], condition: str, rows: Sequence[Mapping[str, str]]
) -> None:
    """Wildcards, escapes, missing fields, lists and ``not``, in any mixture."""
    text = rule({"p": p, "q": q, "condition": condition})
    rows = [{"Channel": "Security", **row} for row in rows]
    rules, problems = converted({"a.yml": text})
    assert not problems

    table = Sqlite(rows)
    theirs = table.rows(SigmaRule.from_yaml(text), "plain")

    assert rules[0].selectors[0].filter.rows(batch_of_rows(rows)).tolist() == theirs


# what is said of a rule


def test_an_alert_says_what_its_rule_says() -> None:
    """Level, tags, techniques, date, author and licence come from the rule."""
    about = one(
        {"s": {"A": "x"}, "condition": "s"},
        id="11111111-2222-3333-4444-555555555555", level="critical", author="Ann",
        date="2026-01-02",
        tags=["attack.t1059.001", "attack.execution", "cve.2026-1"], license="DRL-1.1",
    ).about  # fmt: skip

    assert (about.id, about.name) == ("11111111-2222-3333-4444-555555555555", "a rule")
    assert (about.severity, about.version, about.kind) == ("critical", "2026-01-02", "sigma")
    assert about.techniques == ("T1059.001",)
    assert about.tags == ("attack.t1059.001", "attack.execution", "cve.2026-1")
    assert (about.details["author"], about.details["license"]) == ("Ann", "DRL-1.1")


# where events come from


def test_every_row_of_the_tables_can_be_asked() -> None:
    """All conditions and all fields of all pipelines are ones that filters know."""
    checked = 0
    for found in sigma_pipelines.logsources():
        for target in targets(found):
            condition = text_of(target.condition)
            Filter.of(condition, 3)
            for refs in target.fields.values():
                for ref in refs:
                    Filter.of(f"exists({text_of(ref)})", 3)
                    checked += 1
            assert target.anywhere
    assert checked > 1000


def test_an_event_is_of_one_pipeline() -> None:
    """A rule on three pipelines alerts once for an event, and not for events of other channels."""
    text = rule({"s": {"CommandLine|contains": "x"}, "condition": "s"})
    text = text.replace(json.dumps(LOGONS), PROCESSES)
    rules, _ = converted({"a.yml": text})
    assert [one.name for one in rules[0].selectors] == ["sysmon", "security", "fibratus"]
    arguments = [
        {"Channel": support.SYSMON, "EventID": 1, "CommandLine": "x"},
        {"Channel": "Security", "EventID": 4688, "CommandLine": "x"},
        {"Channel": "Security", "EventID": 4689, "CommandLine": "x"},
        {"CommandLine": "x"},
    ]
    events: list[dict[str, Any]] = [{"event": "record", "arguments": each} for each in arguments]
    events.append({"event": "CreateProcess", "arguments": {"cmdline": "x"}})

    alerts = feed(rules[0], events)

    assert [alert.causes[0][1] for alert in alerts] == [0, 1, 4]


def test_a_rule_for_linux_finds_what_kcap_recorded() -> None:
    """A start of a process is one whoever recorded it; Windows's are not those of Linux."""
    text = rule({"s": {"Image|endswith": "/nc", "CommandLine|contains": "-l"}, "condition": "s"})
    text = text.replace(json.dumps(LOGONS), "{product: linux, category: process_creation}")
    rules, _ = converted({"a.yml": text})
    started = {"action": "process_start", "exe": "/usr/bin/nc", "cmdline": "nc -l 1"}

    alerts = feed(
        rules[0],
        [
            {"event": "sched_process_exec", **started},
            {"event": "execve", **started},
            {"event": "CreateProcess", **started},
            {"event": "sched_process_exec", **started, "exe": "/usr/bin/ncat"},
        ],
    )

    assert [alert.causes[0][1] for alert in alerts] == [0, 1]


def test_a_rule_without_a_product_is_one_for_all() -> None:
    """``category: process_creation`` alone means the starts of processes everywhere."""
    names = [target.pipeline for target in targets(Logsource(category="process_creation"))]

    assert names == ["sysmon", "sysmon", "security", "fibratus", "linux"]


# bad rules


WHERE = "title: a\nlogsource: {service: security}\ndetection:\n"
SUM = "title: a\ncorrelation:\n  type: value_sum\n  rules: [b]\n  timespan: 1m\n  condition: "
BAD = {
    "syntax": ("title: a\ndetection: [", 2, "no YAML"),
    "twice": ("title: a\ndetection: {}\ntitle: b", 3, "again"),
    "modifier": (rule({"s": {"A": "x", "B|foo": "y"}, "condition": "s"}), 3, "foo"),
    "condition": (f"{WHERE}  s: {{A: x}}\n  condition: s and t\n", 5, "'t' not defined"),
    "no condition": (rule({"s": {"A": "x"}}), 3, "condition"),
    "logsource": (f"{WHERE.replace('security', 'mars')}  condition: s\n  s: {{A: x}}", 2, "mars"),
    "look-around": (f"{WHERE}  s:\n    B|re: a(?!b)\n  condition: s", 5, "perl operator"),
    "bad pattern": (rule({"s": {"A|re": "("}, "condition": "s"}), 3, "("),
    "placeholder": (rule({"s": {"A|expand": "%x%"}, "condition": "s"}), 3, "placeholder"),
    "field": (rule({"s": {"a[b]": "x"}, "condition": "s"}), 3, "a[b]"),
    "action": ("action: global\ntitle: a\ndetection: {}\n", 1, "action"),
    "no mapping": ("---\n# a list\n- title", 3, "no mapping"),
    "correlation": (f"{SUM}{{gte: 1, field: x}}\n", 3, "value_sum"),
    "reference": (SUM.replace("value_sum", "event_count") + "{gte: 1}\n", 4, "'b'"),
}
"""A file, the line at fault, and what is said of it."""


@pytest.mark.parametrize("name", BAD)
def test_a_bad_rule_is_told_with_its_line(name: str) -> None:
    """The file, the line, the rule and the reason are in the error."""
    text, line, reason = BAD[name]

    error = problem(text).error

    assert (error.file, error.line) == ("bad.yml", line)
    assert reason in str(error)


def test_the_others_run() -> None:
    """A bad document takes nothing from those beside it."""
    bad, good = BAD["modifier"][0], rule({"s": {"A": "x"}, "condition": "s"}, title="good")

    rules, problems = converted({"a.yml": f"{bad}---\n{good}", "b.yml": BAD["syntax"][0]})

    assert [found.about.name for found in rules] == ["good"]
    assert [found.id for found in problems] == ["a rule", None]


@pytest.mark.parametrize(
    "text",
    [
        "title: a\ndetection: " + "[" * 3000,
        "title: a\ndetection: &a [x]\nb: &b [" + "*a," * 999 + "]\nc: [" + "*b," * 999 + "]",
        "title: a\n" + "#" * (4 << 20),
    ],
    ids=["deep", "bomb", "long"],
)
def test_hostile_files_are_refused(text: str) -> None:
    """Nesting, aliases and length have limits."""
    assert problem(text).error.file == "bad.yml"


def test_without_pysigma_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named that is missing."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(MissingExtraError, match="pySigma") as caught:
        list(SigmaRules().load("title: a", "a.yml"))

    assert "kcap[sigma]" in str(caught.value.hint)


def test_sigma_is_told_by_its_keys() -> None:
    """A title and a detection, a correlation or a filter; nothing else is Sigma."""
    assert SigmaRules.sniff(rule({}), "a.yml")
    assert SigmaRules.sniff("title: a\ncorrelation: {}", "a.yml")
    assert not SigmaRules.sniff("name: a\ncondition: b", "a.yml")
    assert "sigma.rule" in sys.modules  # a negative control: it was not needed for that


def test_the_filter_of_a_selector_is_one_of_many() -> None:
    """Asked together with others it gives what it gives alone."""
    rules = [one({"s": {"A|contains": word}, "condition": "not s"}) for word in ("x", "y")]
    filters = [each.selectors[0].filter for each in rules]
    rows = batch_of_rows([{"Channel": "Security", "A": a} for a in ("x", "y", "xy", "z")])

    together = [found.tolist() for found in Filters(filters).rows(rows)]

    assert together == [each.rows(rows).tolist() for each in filters] == [[1, 3], [0, 3]]
