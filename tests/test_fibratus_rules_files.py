"""What stands in files of Fibratus's rules: both eras, macros, actions, and what is wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kcap.detect.feed import feed
from kcap.detect.rule import Problem, Rule
from kcap.model.alert import Alert
from kcap.readers.rules.fibratus import FibratusRules
from kcap.tools.rule_looks import sourceless

MACROS = """
- macro: spawn_process
  expr: evt.name = 'CreateProcess'
- macro: shells
  list: [cmd.exe, powershell.exe]
- macro: spawn_shell
  expr: spawn_process and ps.name iin shells
"""

DROPPED = """
name: A dropped file runs
id: 6b0c
version: 1.0.2
description: |
  A file was written
  and runs.
labels:
  tactic.id: TA0002
  technique.id: T1204
  subtechnique.id: T1204.002
tags: [dropper]
condition: >
  sequence
  maxspan 2m
    |evt.name = 'CreateFile' and file.extension = '.exe'| by file.path as e1
    |spawn_process and
     ps.name != $e1.ps.name| by ps.exe
action:
  - name: kill
  - name: isolate
    whitelist: [127.0.0.1]
output: >
  %1.ps.name wrote %file.path, which runs as %2.ps.pid at 100%
severity: high
min-engine-version: 3.0.0
"""

SECOND_NS = 10**9


def wrote(path: str, ts: int = 1, pid: int = 7, **more: Any) -> dict[str, Any]:
    """A file was written."""
    arguments = {"file_path": path, "create_disposition": "CREATE"}
    return {
        "event": "CreateFile", "category": "file", "ts": ts, "pid": pid, "process_name": "word.exe",
        "host": "box", "arguments": arguments, **more,
    }  # fmt: skip


def runs(path: str, ts: int = 2, pid: int = 8, **more: Any) -> dict[str, Any]:
    """A process was made."""
    arguments = {"exe": path, "name": path.rpartition("\\")[2], "pid": 99, "ppid": pid}
    return {
        "event": "CreateProcess", "category": "process", "action": "process_start", "ts": ts,
        "pid": pid, "process_name": "explorer.exe", "host": "box", "arguments": arguments, **more,
    }  # fmt: skip


def loaded(*texts: str) -> list[Rule | Problem]:
    """What the loader makes of some files."""
    loader = FibratusRules()
    found: list[Rule | Problem] = []
    for number, text in enumerate(texts):
        assert FibratusRules.sniff(text, "")
        found += loader.load(text, f"{number}.yml")
    return [*found, *loader.finish()]


def rules(*texts: str) -> list[Rule]:
    """The rules of some files, of which nothing is wrong."""
    found = loaded(*texts)
    problems = [one for one in found if isinstance(one, Problem)]
    assert not problems, problems[0].error
    return [one for one in found if isinstance(one, Rule)]


def alerts(rule: Rule, *events: dict[str, Any]) -> list[Alert]:
    """What a rule says of events."""
    return feed(rule, events)


def test_a_rule_of_3() -> None:
    """What a rule says of itself is in it, and in its alerts: text with values, and its actions."""
    (rule,) = rules(DROPPED, MACROS)
    about = rule.about
    assert (about.id, about.name, about.version) == ("6b0c", "A dropped file runs", "1.0.2")
    assert about.description == "A file was written and runs."
    assert (about.severity, about.tags, about.techniques) == ("high", ("dropper",), ("T1204.002",))
    assert about.details["labels"]["tactic.id"] == "TA0002"
    assert rule.events == frozenset({"CreateFile", "CreateProcess"})
    (alert,) = alerts(rule, wrote("C:\\a.exe"), runs("c:\\A.EXE"))
    assert alert.title == about.name
    assert alert.text == "word.exe wrote C:\\a.exe, which runs as 99 at 100%"
    assert json.loads(alert.data or "") == {
        "file.path": "C:\\a.exe",
        "actions": [{"name": "kill"}, {"name": "isolate", "whitelist": ["127.0.0.1"]}],
    }
    assert [number for _, number in alert.causes] == [0, 1]
    assert not alerts(rule, wrote("C:\\a.exe"), runs("C:\\b.exe"))
    assert not alerts(rule, wrote("C:\\a.exe", process_name="a.exe"), runs("C:\\a.exe"))


def test_four_hours_without_maxspan() -> None:
    """A sequence without a maxspan takes four hours at most."""
    (rule,) = rules(DROPPED.replace("maxspan 2m", ""), MACROS)
    last_ns = 1 + 4 * 3600 * SECOND_NS
    assert alerts(rule, wrote("C:\\a.exe"), runs("C:\\a.exe", last_ns))
    assert not alerts(rule, wrote("C:\\a.exe"), runs("C:\\a.exe", last_ns + 1))


def test_a_thread_in_another_process() -> None:
    """A thread made in another process is of that one: its creator may end, it must not."""
    (rule,) = rules(
        "name: a\nid: b\nmin-engine-version: 3.0.0\ncondition: >\n"
        "  sequence |evt.name = 'CreateThread' and evt.pid != thread.pid| by thread.pid"
        " |evt.name = 'LoadModule'| by ps.pid"
    )
    thread = {"event": "CreateThread", "category": "thread", "ts": 1, "pid": 7,
              "arguments": {"pid": 9}}  # fmt: skip
    module = {"event": "LoadModule", "category": "module", "ts": 3, "pid": 9}

    def ends(pid: int) -> dict[str, Any]:
        arguments = {"pid": pid, "ppid": 1}
        return {"event": "TerminateProcess", "category": "process", "action": "process_stop",
                "ts": 2, "pid": pid, "tid": 1234, "arguments": arguments}  # fmt: skip

    assert alerts(rule, thread, ends(7), module)
    assert not alerts(rule, thread, ends(9), module)


def test_a_process_whose_key_becomes_known() -> None:
    """What a process began ends with it, though its key is only known by then."""
    (rule,) = rules(
        "name: a\nid: b\nmin-engine-version: 3.0.0\ncondition: >\n"
        "  sequence |evt.name = 'CreateFile'| |evt.name = 'LoadModule'|"
    )
    module = {"event": "LoadModule", "category": "module", "ts": 3, "pid": 9, "host": "box"}
    end = {
        "event": "TerminateProcess", "category": "process", "action": "process_stop", "ts": 2,
        "pid": 7, "tid": 12, "arguments": {"pid": 7, "ppid": 1}, "process_key": "aa" * 8,
    }  # fmt: skip
    assert not alerts(rule, wrote("C:\\a"), end, module)
    assert alerts(rule, wrote("C:\\a", pid=8), end, module)
    assert alerts(rule, wrote("C:\\a", process_key="bb" * 8), end, module)


@pytest.mark.parametrize(("version", "named"), [("2.4.0", "explorer.exe"), ("3.0.0", "new.exe")])
def test_eras(version: str, named: str) -> None:
    """The process of CreateProcess is its creator before 3.0, and the new one since."""
    text = (
        "name: a\nid: b\noutput: '%ps.name'\ncondition: evt.name = 'CreateProcess' and "
        f"ps.name = '{named}'\nmin-engine-version: {version}"
    )
    (alert,) = alerts(rules(text)[0], runs("C:\\new.exe"))
    assert alert.text == named
    other = text.replace(named, {"explorer.exe": "new.exe"}.get(named, "explorer.exe"))
    assert not alerts(rules(other)[0], runs("C:\\new.exe"))


GROUPS = """
- group: Quiet ones
  policy: exclude
  rules:
    - name: the installer
      condition: ps.name = 'setup.exe'
- group: Shells
  description: Shells that come from nowhere
  labels:
    technique.id: T1059
  rules:
    - name: a shell
      condition: kevt.name = 'CreateProcess' and ps.child.name = 'cmd.exe'
      action: |
        {{ $who := printf "%s (%d)" .Kevt.PS.Name .Kevt.PID }}
        {{ $what := cat $who "started" .Kevt.Kparams.exe "100%" }}
        {{ emit . "A shell was started" $what "critical" "sh" }}
        {{ kill .Kevt.PID }}
    - name: off
      enabled: false
      condition: kevt.name = 'CreateProcess'
- group: Both
  relation: and
  rules:
    - name: one
      condition: kevt.name = 'CreateProcess'
    - name: two
      condition: ps.child.name = 'cmd.exe'
"""


def test_groups_of_1() -> None:
    """Groups: what one excludes no other sees, and where all rules must be true, all alert."""
    shell, one, two = rules(GROUPS)
    assert shell.about.id == "Shells/a shell"
    assert shell.about.techniques == ("T1059",)
    assert shell.about.tags == ("sh",)
    (alert,) = alerts(shell, runs("C:\\cmd.exe"))
    assert (alert.title, alert.severity) == ("A shell was started", "critical")
    assert alert.text == "explorer.exe (8) started C:\\cmd.exe 100%"
    assert json.loads(alert.data or "") == {"actions": [{"name": "kill", "pid": "%kevt.pid"}]}
    assert not alerts(shell, runs("C:\\cmd.exe", process_name="setup.exe"))
    for rule in (one, two):
        assert alerts(rule, runs("C:\\cmd.exe"))
        assert not alerts(rule, runs("C:\\other.exe"))
        assert not alerts(rule, wrote("C:\\cmd.exe"))


RULE = "name: n\nid: i\ncondition: {}\nmin-engine-version: 3.0.0\n"

WRONG: list[tuple[str, str, int, str]] = [
    (RULE.format(">\n  evt.name = 'a' and\n\n  ps.nam = 'b'"), "ps.nam", 6, "n"),
    (RULE.format("evt.name = 'a' and (pid = 1"), "close", 3, "n"),
    (RULE.format("pid = 'text'"), "", 3, "n"),
    (RULE.format("spawn_shell"), "no field is called 'spawn_shell'", 3, "macro"),
    (RULE.format("get_reg_value(registry.path) = 'a'"), "get_reg_value", 3, "n"),
    (RULE.format("a") + "- macro: a\n  expr: b", "this is no YAML", 5, ""),
    (RULE.format("pid = 1") + "outputs: x", "no rule has 'outputs'", 5, "did you mean 'output'"),
    (RULE.format("pid = 1") + "severity: loud", "'loud' is no severity", 5, "low"),
    (RULE.format("pid = 1") + "output: '%no.such'", "no.such", 5, "n"),
    (RULE.format("pid = 1") + "output: '%2.ps.exe'", "%2.ps.exe of 1", 5, "a step"),
    (
        RULE.format("sequence |pid = 1| by pid |pid = 2| by pid, uid"),
        "different numbers of fields", 3, "n",
    ),
    (RULE.format("pid = 1").replace("3.0.0", "4.1.0"), "for Fibratus 4.1.0", 4, "3.x or older"),
    (RULE.format("pid = 1").replace("3.0.0", "new"), "min-engine-version", 4, "3.0.0"),
    (RULE.format("pid = 1") + "action: [kill]", "no action", 5, "a name"),
    (RULE.format("pid = 1") + "enabled: maybe", "'enabled'", 5, "true or false"),
    ("id: i\ncondition: pid = 1\nmin-engine-version: 3.0.0", "without 'name'", 1, "name"),
    ("name: n\nid: i\nmin-engine-version: 3.0.0", "without 'condition'", 1, "condition"),
    (RULE.format("pid = 1") + "name: again", "stands here again", 5, "line 1"),
    ("{{- if eq 1 2 }}\n" + RULE.format("pid = 1") + "{{ end }}", "one word", 1, "template of Go"),
    (RULE.format("pid = 1") + "output: '{{ upper 1 }}'", "template of Go", 5, "host"),
    ("- macro: a\n  expr: pid = 1\n- macro: a\n  expr: pid = 2", "another one", 3, "line 2"),
    ("- macro: a", "the macro 'a'", 1, "either 'expr' or 'list'"),
    ("- macro: a\n  expr: b\n- macro: b\n  expr: a\n---\n" + RULE.format("a"), "itself", 2, ""),
    ("- macro: a\n  expr: >\n    pid = 1 and\n    pid =\n---\n" + RULE.format("a"), "", 4, "n"),
    ("- group: g\n  policy: sequence\n  rules: []", "no policy", 2, "sequence maxspan"),
    ("- group: g\n  description: d", "has no rules", 1, ""),
    (
        ("- group: g\n  rules:\n    - name: n\n      condition: pid = 1\n      action: |\n"
         '        {{ kill .Kevt.PID }}\n        {{ emit . "a" }}'),
        "a title and a text", 7, "emit",
    ),
    (
        ("- group: g\n  rules:\n    - name: n\n      condition: pid = 1\n"
         "      action: '{{ range .Kevts }}{{ end }}'"),
        "'range' is not understood", 5, "printf",
    ),
    (
        ("- group: g\n  relation: and\n  rules:\n    - name: n\n"
         "      condition: sequence |pid = 1| |pid = 2|"),
        "sequence can't", 5, "n",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "what", "line", "more"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong(text: str, what: str, line: int, more: str) -> None:
    """What is wrong is said with its file and line, and the rules of other files run."""
    found = loaded(text, RULE.format("pid = 1").replace("id: i", "id: other"))
    problems = [one for one in found if isinstance(one, Problem)]
    assert len(problems) == 1
    error = problems[0].error
    said = f"{error} {error.hint}"
    assert what in said
    assert more in said
    assert (error.file, error.line) == ("0.yml", line), said
    assert "other" in [one.about.id for one in found if isinstance(one, Rule)]


def test_fields_without_source() -> None:
    """A rule that asks for what no capture has runs, and says what that is, in each step too."""
    (rule,) = rules(
        "name: a\nid: b\nmin-engine-version: 3.0.0\ncondition: >\n"
        "  sequence |evt.name = 'CreateFile'| as e1 |evt.name = 'LoadModule' and"
        " thread.callstack.summary imatches concat('*', $e1.file.name)|"
    )
    assert sourceless(rule) == ["thread.callstack.summary"]
    assert not sourceless(rules(DROPPED, MACROS)[0])


@pytest.mark.long
def test_a_real_capture(
    data: Callable[[str], Path],
    kcap: Callable[..., subprocess.CompletedProcess[bytes]],
    tmp_path: Path,
) -> None:
    """Rules of both eras on a capture of Fibratus: both name the process that they mean."""
    group = (
        "- group: g\n  rules:\n    - name: old\n      condition: kevt.name = 'CreateProcess' and"
        " ps.name = 'provjobd.exe'\n      action: '{{ emit . \"WSL\" .Kevt.Kparams.comm }}'\n"
    )
    sequence = (
        "name: new\nid: s\nmin-engine-version: 3.0.0\ncondition: >\n"
        "  sequence maxspan 1m by ps.uuid |evt.name = 'CreateProcess' and ps.name = 'wsl.exe'|"
        " |evt.name = 'LoadImage'|\n"
        "output: '%ps.name loaded %2.module.path'\n"
    )
    other = sequence.replace("id: s", "id: t").replace("wsl.exe", "provjobd.exe")
    for name, text in {"group": group, "sequence": sequence, "other": other}.items():
        (tmp_path / f"{name}.yml").write_text(text)
    capture = data("fibratus/v1.6.0-test.kcap")
    found = kcap("detect", capture, "--rules", tmp_path, "--format", "jsonl")
    assert found.returncode == 0, found.stderr
    said = [json.loads(line)["arg_text"] for line in found.stdout.splitlines()]
    assert said == ["wsl -u root -e ls", "wsl.exe loaded C:\\Windows\\System32\\wsl.exe"] * 2


def test_sniff() -> None:
    """Rules of others are not taken for Fibratus's."""
    for text in ("title: a\nlogsource: {}\ndetection: {}", "id: a\ncondition: pid = 1", "a: 1"):
        assert not FibratusRules.sniff(text, "a.yml")
