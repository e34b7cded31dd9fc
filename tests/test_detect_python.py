"""Signatures in Python: classes that rules are made of, and events that are fed to one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from detect_support import event

from kcap.detect.feed import feed
from kcap.detect.python_rules import PythonRules, Signature, rule_of
from kcap.detect.rule import Problem, Rule, Selector
from kcap.errors import BadInputError, KcapError
from kcap.filter import Filter

TWO = '''\
import dataclasses

from kcap.detect.python_rules import Signature


@dataclasses.dataclass
class Helper:
    """No signature."""

    value: int = 0


class First(Signature):
    id = "F-1"
    name = "first"
    severity = "critical"
    techniques = ("T1055",)
    selectors = {"a": "evt.name = 'a'", "b": "evt.name = 'b'"}

    def __init__(self):
        self.seen = []

    def on_match(self, ctx, selector, event):
        self.seen.append((selector, Helper(1).value, event.arguments()["n"]))

    def on_end(self, ctx):
        ctx.alert(data={"seen": self.seen})


class Second:
    id = "F-2"
    selectors = {"a": "evt.nme = 'a'"}

    def on_match(self, ctx, selector, event):
        ctx.alert()
'''


class Opens(Signature):
    """Alerts on an open of a path."""

    id = "O-1"
    selectors: ClassVar = {"open": "evt.name = 'openat'"}

    def on_match(self, ctx: Any, selector: str, event: Any) -> None:
        """See `Signature`."""
        ctx.alert(data={"path": event.arguments()["pathname"], "flags": event.arguments()["flags"]})


def loaded(text: str, path: str = "sig.py") -> list[Rule | Problem]:
    """What a file of signatures gives."""
    return list(PythonRules().load(text, path))


@pytest.fixture
def file(tmp_path: Any) -> str:
    """A place for a file of signatures."""
    path = tmp_path / "sig.py"
    path.write_text(TWO)
    return str(path)


def test_a_file_of_signatures_gives_a_rule_for_each(file: str) -> None:
    """In their order; one that can't run says why, with its line, and is the only one."""
    first, second = loaded(TWO, file)

    assert isinstance(first, Rule)
    assert isinstance(second, Problem)
    assert (first.about.id, first.about.severity, first.about.line) == ("F-1", "critical", 13)
    assert [one.name for one in first.selectors] == ["a", "b"]
    assert (second.id, second.error.file, second.error.line) == ("F-2", file, 30)
    assert "evt.nme" in second.error.what


def test_each_run_has_a_signature_of_its_own(file: str) -> None:
    """What one run remembers is not there in the next."""
    first, _ = loaded(TWO, file)
    assert isinstance(first, Rule)

    for _ in range(2):
        (one,) = feed(first, [event("a", 1, n=1), event("x", 2, n=2), event("b", 3, n=3)])
        assert json.loads(one.data or "") == {"seen": [["a", 1, 1], ["b", 1, 3]]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class A:\n    id = 'A'\n    selectors = {}\n", True),
        ("class A:\n    selectors: dict[str, str] = {}\n", True),
        ("import selectors\nselectors.DefaultSelector()\n", False),
        ("def test():\n    assert found.selectors == []\n", False),
    ],
)
def test_only_files_that_have_selectors_are_run(text: str, expected: bool) -> None:
    """Other code that lies beside rules is left alone."""
    assert PythonRules.sniff(text, "a.py") is expected


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [("x = (\n", 1, "no Python"), ("import os\nselectors = 1 / 0\n", 2, "ZeroDivisionError")],
)
def test_a_file_that_can_not_be_run_says_why(file: str, text: str, line: int, why: str) -> None:
    """By its line."""
    (problem,) = loaded(text, file)

    assert isinstance(problem, Problem)
    assert (problem.error.file, problem.error.line) == (file, line)
    assert why in problem.error.what


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("id", 5, "its id"),
        ("name", 5, "its name is int"),
        ("severity", "huge", "severity"),
        ("tags", "one", "its tags"),
        ("selectors", {}, "no selectors"),
        ("selectors", {"a": 5}, "int in place of a filter"),
        ("on_match", None, "no on_match"),
    ],
)
def test_what_is_no_signature_is_refused(name: str, value: object, why: str) -> None:
    """With what it lacks."""
    made = type("Wrong", (Opens,), {name: value})

    with pytest.raises(KcapError, match=why):
        rule_of(made)


# feeding events


def test_tracee_events_can_be_fed() -> None:
    """As its JSON lines have them; numbers stay numbers."""
    events = [
        {
            "timestamp": 5,
            "eventName": "openat",
            "processId": 3,
            "processName": "sh",
            "args": [
                {"name": "pathname", "type": "const char*", "value": "/x"},
                {"name": "flags", "type": "int", "value": 2},
            ],
        }
    ]

    (one,) = feed(Opens, events)

    assert (one.ts_ns, one.who["process_name"]) == (5, "sh")
    assert one.data == '{"path":"/x","flags":2}'


def test_events_can_be_fed_without_asking_where_they_are_from() -> None:
    """A selector may be for containers alone; then events of the host do only without."""
    inside = Selector(
        "inside",
        Filter.of("evt.name = 'openat' and container_id exists"),
        anywhere=Filter.of("evt.name = 'openat'"),
    )
    rule = replace(rule_of(Opens), selectors=(inside,))
    on_host = [event("openat", 1, pathname="/x", flags=0)]
    contained = [{**on_host[0], "container_id": "c0ffee"}]

    assert len(feed(rule, on_host)) == 0
    assert len(feed(rule, contained)) == 1
    assert len(feed(rule, on_host, origin=False)) == 1
    assert len(feed(rule, [event("close", 1)], origin=False)) == 0


def test_arguments_are_in_the_order_of_the_source() -> None:
    """With their types: lists, structures, null."""

    class All(Opens):
        def on_match(self, ctx: Any, selector: str, event: Any) -> None:
            ctx.alert(data=dict(event.arguments()))

    given: dict[str, Any] = {
        "z": 1,
        "pathname": "/x",
        "a": [1, 2],
        "s": {"b": [{"c": None}]},
        "n": None,
        "f": 0.5,
    }
    (one,) = feed(All, [event("openat", 1, **given)])

    assert list(json.loads(one.data or "").items()) == list(given.items())


def test_what_goes_wrong_is_raised() -> None:
    """A signature that fails, and events that are none."""

    class Fails(Opens):
        def on_match(self, ctx: Any, selector: str, event: Any) -> None:
            raise RuntimeError("no")

    with pytest.raises(KcapError, match=r"RuntimeError: no, at event 0+:0"):
        feed(Fails, [event("openat", 1)])
    with pytest.raises(BadInputError, match="no name"):
        feed(Opens, [{"event": 5}])
    for wrong in ({"arguments": [1]}, {"ts": "2026-01-01T00:00:00Z"}, {"ts": 1.5}):
        with pytest.raises(BadInputError, match=f"event 1: its {next(iter(wrong))}.* by name"):
            feed(Opens, [event("openat", 1), {"event": "openat", **wrong}])
    with pytest.raises(BadInputError, match="JSON"):
        feed(Opens, [{"eventName": {1}}])
    assert feed(Opens, []) == []
