"""kcap's rules in YAML: what they say, and what is said of those that can't run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from detect_support import briefly, event, run

from kcap import trust
from kcap.detect.feed import feed
from kcap.detect.loading import Ruleset, load
from kcap.detect.python_rules import PythonRules
from kcap.detect.rule import Problem, Rule
from kcap.detect.yaml_rules import YamlRules
from kcap.errors import KcapError

EVERY = """\
macros:
  writes: evt.name = 'w' and from_shell
  from_shell: ps.name in shells
lists:
  shells: [w, sh]
rules:
- id: E-1
  name: A write by a shell
  version: 2
  severity: High
  techniques: [T1059, T1059.004]
  tags: shell
  description: Says nothing.
  references: [https://example.org/e1]
  condition: writes
  output: "%ps.name wrote %evt.arg[f] of 100%"
  exceptions:
  - filter: evt.arg[f] = 'ours'
    reason: our own
    until: 1970-01-01T00:00:01Z
- id: E-2
  sequence:
    maxspan: 10ns
    by: [ps.pid]
    steps:
    - condition: evt.name = 'a'
      as: e1
    - condition: evt.name = 'b' and evt.arg[f] = $e1.evt.arg[f]
    - evt.name = 'c'
- id: E-3
  correlation:
    type: value_count
    timespan: 10ns
    by: pid
    events: evt.name = 'v'
    values: evt.arg[f]
    condition: {gte: 2}
- id: E-4
  absence: {event: evt.name = 'q', follows: evt.name = 'r', within: 5ns, by: pid}
- id: E-5
  enabled: false
  condition: pid = 1
- id: E-6
  sequence:
    ends-with-process: true
    steps: ["evt.name = 's'", "evt.name = 't'"]
- id: E-7
  correlation:
    type: temporal_ordered
    timespan: 1us
    by: pid
    events:
    - {condition: evt.name = 'f', by: "evt.arg[child]"}
    - evt.name = 'x'
"""


def read(*texts: str) -> tuple[list[Rule], list[Problem]]:
    """Rules of some files, and what is wrong with others."""
    loader = YamlRules()
    found = [one for n, text in enumerate(texts) for one in loader.load(text, f"{n}.yaml")]
    found += loader.finish()
    rules = [one for one in found if isinstance(one, Rule)]
    return rules, [one for one in found if isinstance(one, Problem)]


def problems(*texts: str) -> list[tuple[str | None, str | None, int | None, str]]:
    """Rule, file, line and reason of each problem."""
    return [(p.id, p.error.file, p.error.line, p.error.what) for p in read(*texts)[1]]


def test_a_rule_says_what_its_file_says() -> None:
    """Name, version, severity, techniques and the rest."""
    rules, wrong = read(EVERY)

    about = rules[0].about
    assert wrong == []
    assert [rule.about.id for rule in rules] == ["E-1", "E-2", "E-3", "E-4", "E-6", "E-7"]
    assert (about.name, about.version, about.severity) == ("A write by a shell", "2", "high")
    assert (about.techniques, about.tags) == (("T1059", "T1059.004"), ("shell",))
    assert (about.references, about.description) == (("https://example.org/e1",), "Says nothing.")
    assert (about.kind, about.file, about.line) == ("kcap", "0.yaml", 7)
    assert (rules[1].about.name, rules[1].about.severity) == ("E-2", "medium")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event("w", 1, f="x")], [(1, "E-1")]),
        ([event("w", 1, f="ours")], []),
        ([event("w", 10**9, f="ours")], [(1, "E-1")]),
        ([event("a", 1, f="x"), event("b", 2, f="x"), event("c", 11)], [(3, "E-2")]),
        ([event("a", 1, f="x"), event("b", 2, f="x"), event("c", 12)], []),
        ([event("a", 1, f="x"), event("b", 2, f="y"), event("c", 11)], []),
        ([event("v", 1, f="x"), event("v", 2, f="y")], [(2, "E-3")]),
        ([event("v", 1, f="x"), event("v", 2, f="x")], []),
        ([event("q", 1), event("x", 7)], [(1, "E-4")]),
        ([event("q", 1), event("r", 6), event("x", 7)], []),
        ([event("s", 1), event("t", 2)], [(2, "E-6")]),
        ([event("s", 1), event("e", 1, action="process_stop"), event("t", 2)], []),
        ([event("f", 1, 7, child=8), event("x", 2, 8)], [(2, "E-7")]),
        ([event("x", 1, 8), event("f", 2, 7, child=8)], []),
    ],
)
def test_rules_of_every_kind_run(events: list[dict[str, object]], expected: object) -> None:
    """Each alerts on what it describes, and on nothing near it."""
    assert briefly(run(read(EVERY)[0], events)) == expected


def test_the_text_of_an_alert_has_values() -> None:
    """Fields of the event, and a percent sign."""
    ((_, one),) = run(read(EVERY)[0], [event("w", 1, f="x")])

    assert one["text"] == "w wrote x of 100%"


def test_macros_hold_for_all_files() -> None:
    """A file of macros may be read after the rules that use them."""
    rules, wrong = read("id: A\ncondition: later and pid = 1", "macros: {later: evt.name = 'a'}")

    assert wrong == []
    assert briefly(run(rules, [event("a", 1)])) == [(1, "A")]


@pytest.mark.parametrize(
    ("text", "rule", "line", "why"),
    [
        ("rules:\n- id: A\n  condition: ps.nme = 'x'\n", "A", 3, "no field is called 'ps.nme'"),
        ("id: A\ncondition: |\n  pid = 1\n  and\n  ps.nme = 'x'\n", "A", 5, "'ps.nme'"),
        ("id: A\ncondition: pid =\n", "A", 2, "expected a field"),
        ("id: A\ncondition: pid > 'x'\n", "A", 2, "is for numbers"),
        ("id: A\nconditoin: pid = 1\n", "A", 2, "'conditoin', which nobody knows"),
        ("rules:\n- name: x\n  condition: pid = 1\n", None, 2, "no id"),
        ("id: A\nname: x\n", "A", 1, "nothing to look for"),
        ("id: A\ncondition: pid = 1\nabsence: {}\n", "A", 1, "condition and absence"),
        ("id: A\nseverity: bad\ncondition: pid = 1\n", "A", 2, "'bad' is no severity"),
        ("id: A\ncondition: pid = 1\noutput: '%ps.nme'\n", "A", 3, "'ps.nme'"),
        ("id: A\ncondition: pid = 1\nenabled: maybe\n", "A", 3, "enabled"),
        ("id: A\ncondition: [pid]\n", "A", 2, "no text"),
        ("id: A\ntags: [1]\ncondition: pid = 1\n", "A", 2, "'tags' is no text"),
        ("id: A\nsequence:\n  steps: [pid = 1]\n", "A", 2, "a sequence of 1 steps"),
        ("id: A\nsequence:\n  maxspan: 5 weeks\n  steps: [pid = 1, pid = 2]\n", "A", 3, "no time"),
        ("id: A\nsequence:\n  by: pd\n  steps: [pid = 1, pid = 2]\n", "A", 3, "'pd'"),
        ("id: A\nsequence:\n  steps: [pid = 1, $e.pid = 2]\n", "A", 3, "nothing is called $e"),
        (
            "id: A\ncorrelation: {type: x, timespan: 1s, events: pid = 1}\n",
            "A",
            2,
            "'x' is no type",
        ),
        ("id: A\nabsence: {event: pid = 1, within: 1s}\n", "A", 2, "'follows' is not said"),
        ("id: A\nexceptions:\n- filter: pid = 1\ncondition: pid = 1\n", "A", 3, "'reason'"),
        ("id: A\nid: B\ncondition: pid = 1\n", None, 2, "'id' stands here again"),
        ("id: A\ncondition: pid = 1\n  x: [\n", None, 3, "no YAML"),
        ("macros:\n  a: b\n  b: a\nrules: []\n", None, 2, "uses itself: a -> b -> a"),
        ("macros:\n  a: [x]\n", None, 2, "the macro 'a'"),
        ("lists:\n  a: [1]\n", None, 2, "the list 'a'"),
        ("macro: {}\nrules: []\n", None, 1, "'macro', which nobody knows"),
    ],
)
def test_a_rule_that_can_not_run_says_why(text: str, rule: str | None, line: int, why: str) -> None:
    """By file, line and id; the rules beside it run."""
    found = problems(text, "id: good\ncondition: pid = 1\n")
    rules, _ = read(text, "id: good\ncondition: pid = 1\n")

    assert found[0][:3] == (rule, "0.yaml", line)
    assert why in found[0][3]
    assert [one.about.id for one in rules] == ["good"]


def test_what_was_meant_is_suggested() -> None:
    """For a field, and for a key of a rule."""
    _, wrong = read("- id: A\n  condition: ps.nme = 'x'\n- id: B\n  conditoin: pid = 1\n")

    assert ["'ps.name'" in str(p.error.hint) for p in wrong] == [True, False]
    assert wrong[1].error.hint == "did you mean 'condition'?"


@pytest.mark.parametrize("text", ["a: " * 100, "[" * 5_000, "&a [*a]", "? {a: b}\n: c"])
def test_any_yaml_is_refused_with_an_error_of_ours(text: str) -> None:
    """Whatever is in a file, the others are read."""
    _, wrong = read(text, "id: good\ncondition: pid = 1\n")

    assert len(wrong) == 1
    assert wrong[0].error.file == "0.yaml"


# files


def folder(tmp_path: Path) -> Ruleset:
    """A folder of rules of two kinds, and of other things."""
    (tmp_path / "b.yml").write_text("id: B\ncondition: pid = 1\n")
    (tmp_path / "a.yaml").write_text("id: B\ncondition: pid = 2\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/c.py").write_text(
        "class C:\n    id = 'C'\n    selectors = {'a': 'pid = 1'}\n"
        "    def on_match(self, ctx, selector, event):\n        ctx.alert()\n"
    )
    (tmp_path / "README.md").write_text("# nothing\n")
    (tmp_path / "other.yaml").write_text("some: thing\n")
    return load([tmp_path])


def test_a_folder_is_read_by_what_is_in_its_files(tmp_path: Path) -> None:
    """In the order of names, so that the first of two rules with one id is always the same."""
    found = folder(tmp_path)

    assert [(one.about.id, one.about.kind) for one in found.rules] == [
        ("B", "kcap"),
        ("C", "python"),
    ]
    assert found.rules[0].about.file == str(tmp_path / "a.yaml")
    assert [(p.id, p.error.file) for p in found.problems] == [("B", str(tmp_path / "b.yml"))]


def test_a_named_file_must_hold_rules(tmp_path: Path) -> None:
    """What is passed over in a folder is an error where it is named."""
    folder(tmp_path)

    with pytest.raises(KcapError, match="no rules are known"):
        load([tmp_path / "other.yaml"])
    with pytest.raises(KcapError, match="No such file"):
        load([tmp_path / "none.yaml"])
    with pytest.raises(KcapError, match="no kind of rules"):
        load([tmp_path], "perl")


@pytest.mark.skipif(not trust.is_root(), reason="only root has rules that others can change")
def test_root_loads_no_rules_that_others_can_change(tmp_path: Path) -> None:
    """A signature is code, and rules decide what is said."""
    file = tmp_path / "c.py"
    folder(tmp_path)
    file.write_text("selectors = 1\n")
    os.chown(file, 1, 1)

    with pytest.raises(KcapError, match="others can change"):
        load([file])


# the document


def blocks(language: str) -> list[str]:
    """The examples of docs/detections.md."""
    text = (Path(__file__).parent.parent / "docs/detections.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_examples_of_the_document_are_rules() -> None:
    """Each loads, and so does the signature."""
    rules, wrong = read(*blocks("yaml"))
    (signature, *_) = PythonRules().load(blocks("python")[0], __file__)

    assert wrong == []
    assert [one.about.id for one in rules] == ["SHELL-1", "DROP-1", "SCAN-1", "QUIET-1"]
    assert isinstance(signature, Rule)
    at_shadow = {"event": "openat", "ts": 1, "pid": 7, "fd_name": "/etc/shadow"}
    (alert,) = feed(signature, [at_shadow, event("sendto", 2, 7, addr="10.0.0.1")])
    assert alert.data == '{"to":"10.0.0.1"}'


def test_an_example_of_the_document_finds_what_it_says() -> None:
    """A file that is made and run by a child is dropped; one that was there is not."""
    rules = [one for one in read(*blocks("yaml"))[0] if one.about.id == "DROP-1"]
    made = {**event("openat", 1, 7, flags="O_CREAT|O_WRONLY"), "fd_name": "/tmp/x"}
    there = {**made, "arguments": {"flags": "O_RDONLY"}}
    rest = [event("close", 2, 7), event("execve", 3, 8, ppid=7, pathname="/tmp/x")]

    ((_, one),) = run(rules, [made, *rest])

    assert one["text"] == "openat dropped /tmp/x, execve runs it"
    assert run(rules, [there, *rest]) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- {id: P, condition: pid = 1}\n", True),
        ("{id: P, condition: pid = 1}\n", True),
        ('{"rules": [{"id": "P", "condition": "pid = 1"}]}\n', True),
        ('[{"id": "P", "condition": "pid = 1"}]\n', True),
        ("run: a.yml\ncases:\n  - {name: x, events: [], expect: [{id: P}]}\n", False),
        ("cases:\n- expect:\n  - {id: P}\n", False),
        ("- {name: x, id: P}\n", False),
    ],
)
def test_rules_may_be_in_braces(text: str, expected: bool) -> None:
    """They are rules like others, and tests of rules are none."""
    assert YamlRules.sniff(text, "a.yml") is expected
