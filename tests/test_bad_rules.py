"""Bad rules of each kind: told with file, line and rule, and the others run."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_support import run
from rules_support import event, lines

from kcap.detect.loading import load

YAML = "id: {id}\nname: a rule\ncondition: {condition}\n"
PYTHON = """\
from kcap.detect.python_rules import Signature


class Found(Signature):
    id = {id}
    selectors = {{'start': {condition}}}

    def on_match(self, ctx, selector, event):
        {body}
"""
FIBRATUS = """\
name: {id}
id: {id}
min-engine-version: 3.0.0
condition: >
  evt.name = 'execve'

  and {condition}
"""
SIGMA = """\
title: {id}
id: {uuid}
logsource: {{product: linux, category: process_creation}}
detection:
  s:
    {field}: {value}
  condition: {condition}
"""


def own(name: str, condition: str = "evt.name = 'execve'") -> str:
    """A rule of kcap's."""
    return YAML.format(id=name, condition=condition)


def python(name: object, condition: str = "evt.name = 'execve'", body: str = "ctx.alert()") -> str:
    """A signature."""
    return PYTHON.format(id=repr(name), condition=repr(condition), body=body)


def fibratus(name: str, condition: str = "ps.name = 'x'") -> str:
    """A rule of Fibratus's."""
    return FIBRATUS.format(id=name, condition=condition)


def sigma(name: str, field: str = "Image|endswith", value: str = "x", condition: str = "s") -> str:
    """A rule of Sigma's."""
    return SIGMA.format(id=name, uuid=named(name), field=field, value=value, condition=condition)


def named(name: str) -> str:
    """The id of a Sigma rule, which has to be a UUID."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


class Bad(NamedTuple):
    """Files in which something is wrong."""

    files: dict[str, str]
    file: str
    """The one at fault."""
    line: int
    rule: str | None
    """What is named as the rule; None where a file can't be read as far as that."""
    what: str
    """What is said."""
    running: int = 0
    """Rules of these that run."""


def one(text: str, line: int, rule: str | None, what: str, suffix: str = "yml") -> Bad:
    """A file with one bad rule."""
    return Bad({f"bad.{suffix}": text}, f"bad.{suffix}", line, rule, what)


def twice(text: str, line: int, rule: str, suffix: str = "yml") -> Bad:
    """Two files with rules of one id: the first runs."""
    files = {f"a.{suffix}": text, f"b.{suffix}": text}
    return Bad(files, f"b.{suffix}", line, rule, f"already: .*a.{suffix}", running=1)


CYCLE = "- macro: a\n  expr: b and ps.pid = 1\n- macro: b\n  expr: a or ps.pid = 2\n"
BAD = {
    "kcap syntax": one(own("K") + "  x: [\n", 4, None, "no YAML"),
    "kcap condition": one(own("K", "pid = (and"), 3, "K", "expected a field"),
    "kcap folded": one(own("K", ">\n  pid = 1\n  and\n  ps.nam = 'x'"), 6, "K", "'ps.nam'"),
    "kcap field": one(own("K", "ps.nam = 'x'"), 3, "K", "no field is called 'ps.nam'"),
    "kcap operand": one(own("K", "pid = 'abc'"), 3, "K", "'pid' is a number"),
    "kcap type": one(own("K") + "severity: [a]\n", 4, "K", "'severity' is no text"),
    "kcap key": one("id: K\nconditon: pid = 1\n", 2, "K", "'conditon', which nobody knows"),
    "kcap twice": twice(own("K"), 1, "K"),
    "kcap cycle": one(
        "macros:\n  a: b and pid = 1\n  b: a\nrules:\n- id: K\n  condition: a\n",
        6, "K", "a -> b -> a",
    ),
    "python syntax": one(python("P") + "    def x(:\n", 10, None, "no Python", "py"),
    "python condition": one(python("P", "pid = (and"), 4, "P", "expected a field", "py"),
    "python field": one(python("P", "ps.nam = 'x'"), 4, "P", "'ps.nam'", "py"),
    "python operand": one(python("P", "pid = 'abc'"), 4, "P", "'pid' is a number", "py"),
    "python type": one(python(5), 4, "Found", "its id is no text", "py"),
    "python twice": twice(python("P"), 4, "P", "py"),
    "python import": one("import no_such\n" + python("P"), 1, None, "no_such", "py"),
    "python exception": one(
        python("P") + "\nraise ValueError('at load')\n", 11, None, "ValueError: at load", "py"
    ),
    "fibratus syntax": one(fibratus("F") + "x: [\n", 9, None, "no YAML"),
    "fibratus condition": one(fibratus("F", "(and"), 7, "F", "expected a field"),
    "fibratus field": one(fibratus("F", "ps.nam = 'x'"), 7, "F", "'ps.nam'"),
    "fibratus operand": one(fibratus("F", "evt.pid = 'abc'"), 7, "F", "is a number"),
    "fibratus type": one(fibratus("F") + "severity: [a]\n", 8, "F", "'severity' is no text"),
    "fibratus key": one(fibratus("F") + "severty: high\n", 8, "F", "no rule has 'severty'"),
    "fibratus twice": twice(fibratus("F"), 1, "F"),
    "fibratus cycle": Bad(
        {"bad.yml": fibratus("F", "a"), "macros.yml": CYCLE}, "macros.yml", 2, "F", "a -> b -> a"
    ),
    "sigma syntax": one(sigma("S") + "  x: [\n", 9, None, "no YAML"),
    "sigma condition": one(sigma("S", condition="s and ("), 7, named("S"), "expected names of"),
    "sigma name": one(sigma("S", condition="t"), 7, named("S"), "'t' not defined"),
    "sigma field": one(sigma("S", field="a[b]"), 6, named("S"), r"'a\[b\]' can be no field"),
    "sigma modifier": one(sigma("S", field="Image|foo"), 6, named("S"), "'foo'"),
    "sigma type": one(
        sigma("S", field="ProcessId|gt", value="x"), 6, named("S"), "'gt' incompatible"
    ),
    "sigma level": one(sigma("S") + "level: enormous\n", 8, named("S"), "'enormous'"),
    "sigma date": one(sigma("S") + "date: 2026-13-45\n", 8, named("S"), "'2026-13-45'"),
    "sigma id": one(sigma("S").replace(named("S"), "S-1"), 2, "S-1", "UUID"),
    "sigma twice": twice(sigma("S"), 1, named("S")),
    "sigma cycle": one(
        "\n---\n".join(
            f"title: {name}\nname: {name}\ncorrelation:\n  type: temporal\n"
            f"  rules: [{other}]\n  timespan: 1m\n  group-by: [User]"
            for name, other in (("a", "b"), ("b", "a"))
        ),
        5, "a", "it counts itself"
    ),
    "sigma correlation": one(
        "title: c\ncorrelation:\n  type: event_count\n  rules: [nobody]\n  timespan: 1m\n"
        "  group-by: [User]\n  condition: {gte: 2}\n",
        4, "c", "nobody",
    ),
}  # fmt: skip
"""What may be wrong with a rule, by kind. Sigma's fields have any names, its macros none."""

GOOD = {
    "good.yaml": own("GOOD-K"),
    "good.py": python("GOOD-P"),
    "good-f.yml": fibratus("GOOD-F"),
    "good-s.yml": sigma("GOOD-S"),
}
IDS = ["GOOD-F", "GOOD-K", "GOOD-P", named("GOOD-S")]
"""The ids of the good ones, each of which alerts once."""

FAILING = {
    "init": "\n    def __init__(self):\n        raise ValueError('no')\n",
    "match": "ctx.nothing()",
    "end": "\n    def on_end(self, ctx):\n        raise ValueError('no')\n",
    "endless": "self.on_match(ctx, selector, event)",
}
"""Signatures that load, and fail when they run: a body, or another method. A replay tells of five
losses, and counts the rest."""


def written(folder: Path, files: dict[str, str]) -> Path:
    """A folder of rules, the good ones among them."""
    rules = folder / "rules"
    rules.mkdir()
    for name, text in {**GOOD, **files}.items():
        (rules / name).write_text(text)
    return rules


@pytest.mark.parametrize("name", BAD)
def test_a_bad_rule_is_told(name: str, tmp_path: Path) -> None:
    """Its file, its line and its name are in the error, and all the good ones can run."""
    bad = BAD[name]
    rules = written(tmp_path, bad.files)

    found = load([rules])

    assert len(found.rules) == len(GOOD) + bad.running
    assert {rule.about.id for rule in found.rules} >= set(IDS)
    told = [
        str(problem.error)
        for problem in found.problems
        if problem.error.file == str(rules / bad.file) and problem.error.line == bad.line
    ]
    assert told, [str(problem.error) for problem in found.problems]
    assert any(re.search(bad.what, text) for text in told), told
    named_there = any(re.search(rf"\b{re.escape(bad.rule)}\b", text) for text in told if bad.rule)
    assert named_there == (bad.rule is not None)


def test_good_rules_are_no_problem(tmp_path: Path) -> None:
    """Control: nothing is told of the good ones, and each file has the rule that is expected."""
    found = load([written(tmp_path, {})])

    assert [rule.about.id for rule in found.rules] == sorted(IDS)
    assert not found.problems


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id: K\nconditon: pid = 1\n", True),
        ("transformations:\n- id: prefix\n  type: field_name_prefix\n", False),
        ("version: 2\nservices: {}\n", False),
    ],
)
def test_what_is_no_rule_is_passed_over(text: str, told: bool, tmp_path: Path) -> None:
    """Files of a folder that hold no rules are no bad ones; one with an id alone is."""
    found = load([written(tmp_path, {"other.yml": text})])

    assert len(found.rules) == len(GOOD)
    assert bool(found.problems) == told


# the verbs


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Of one start of a program, which each good rule wants."""
    path = tmp_path / "events.json"
    started = event(1, "execve", "x", pathname="/bin/x")
    path.write_bytes(lines([started, event(2, "sched_process_exec", "x", pathname="/bin/x")]))
    made = tmp_path / "x.kcap"
    assert run("import", path, "-o", made).exit_code == 0
    return made


def everything(folder: Path, *, fails: bool = True) -> Path:
    """All bad rules of `BAD` in one folder, with files and ids of their own."""
    files: dict[str, str] = {}
    for number, bad in enumerate(BAD.values()):
        files |= {f"{number:02}-{name}": text for name, text in bad.files.items()}
    if fails:
        for name, text in FAILING.items():
            whole = python(f"FAIL-{name}") + text if "def " in text else ""
            files[f"fail-{name}.py"] = whole or python(f"FAIL-{name}", body=text)
    return written(folder, files)


def places(text: str) -> Iterator[str]:
    """Each place in a bad file of `BAD` that a text does not name: file, and line."""
    for number, bad in enumerate(BAD.values()):
        file = re.escape(f"{number:02}-{bad.file}")
        if not re.search(rf"{file}: .*at line {bad.line}\b", text):
            yield f"{file} at {bad.line}"


@pytest.mark.parametrize("verb", ["detect", "replay", "validate"])
def test_verbs_tell_of_bad_rules_and_run_the_others(
    verb: str, tmp_path: Path, capture: Path
) -> None:
    """Each bad rule is on standard error, the good ones alert, and the exit code is 3."""
    rules = everything(tmp_path)
    words = {
        "detect": ("detect", capture, "--rules", rules, "--format", "jsonl"),
        "replay": ("replay", capture, "--rules", rules, "--sink", "console:?format=jsonl"),
        "validate": ("rules", "validate", rules),
    }

    result = run(*words[verb])

    assert result.exit_code == 3, result.output
    assert not list(places(result.stderr + result.stdout))
    if verb == "validate":
        return
    for name in FAILING:
        assert f"the rule FAIL-{name} ended" in result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert set(IDS) <= {row.get("arg_rule") for row in found}


def test_without_bad_rules_the_exit_code_is_0(tmp_path: Path, capture: Path) -> None:
    """Control: the same, of the good ones alone."""
    result = run("detect", capture, "--rules", written(tmp_path, {}), "--format", "jsonl")

    assert result.exit_code == 0, result.output
    raised = [json.loads(line)["arg_rule"] for line in result.stdout.splitlines()]
    assert set(raised) == set(IDS)
    assert len(list(places(result.stderr))) == len(BAD)
