"""kcap rules: lists, what is wrong with rules, what they need, why they match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_support import run
from rules_support import OWN_RULES, T0_NS, event, events, lines, written


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A file of two rules."""
    path = tmp_path / "own.yml"
    path.write_text(OWN_RULES)
    return path


def objects(*words: str | Path) -> list[dict[str, Any]]:
    """What a verb prints as JSON."""
    result = run("rules", *words, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_list(rules: Path) -> None:
    """Rules of all kinds are listed, for people and as JSON."""
    found = run("rules", "list", rules, "--signatures", "seed").stdout.splitlines()
    assert len(found) == 1 + 14 + 2
    found = run("rules", "list").stdout.splitlines()
    assert [line.split()[:3] for line in found[:2]] == [
        ["ID", "KIND", "SEVERITY"],
        ["TRC-1", "tracee", "high"],
    ]
    assert len(objects("list", "--signatures", "all")) == 47
    assert [(one["id"], one["kind"]) for one in objects("list", rules)] == [
        ("OPENS", "kcap"),
        ("TWICE", "kcap"),
    ]


def test_names_stay_in_their_lines(rules: Path) -> None:
    """A rule can't pass for two, or for another, by what it is called."""
    rules.write_text('rules:\n- {id: X, name: "a\\nTRC-1  \\e[31mb", condition: pid = 1}\n')
    found = run("rules", "list", rules).stdout.splitlines()
    assert found[1:] == [r"X   kcap  medium    a\x0aTRC-1  \x1b[31mb"]
    assert r"name:      a\x0aTRC-1  \x1b[31mb" in run("rules", "show", rules).stdout.splitlines()
    assert not any("\x1b" in run("rules", verb, rules).stdout for verb in ("coverage", "show"))


def test_very_many_rules_are_not_all_named(rules: Path) -> None:
    """A hundred are named, of more the first: the line stays one that can be read."""
    each = [f"- id: R{number:03}\n  condition: pid = 1\n" for number in range(101)]
    for count, end in ((100, " R099]"), (101, " R099 … 1 more]")):
        rules.write_text("".join(each[:count]))
        words = run("detect", "--rules", rules, "--list").stderr.splitlines()
        assert words[0].startswith(f"Loaded {count} signature(s): [R000 R001 ")
        assert words[0].endswith(end)


def test_validate(rules: Path) -> None:
    """What is wrong with a rule is said with file, line and rule, and makes the exit code 3."""
    result = run("rules", "validate", rules)
    assert (result.exit_code, result.stderr) == (0, "kcap: 2 rules can run, 0 can't\n")
    rules.write_text(OWN_RULES + "  - id: OPENS\n    name: again\n    condition: pid = 1\n")
    result = run("rules", "validate", rules)
    assert result.exit_code == 3
    assert f"{rules}: a rule has the id 'OPENS' already" in result.stderr
    assert "kcap: 2 rules can run, 1 can't\n" in result.stderr
    assert run("rules", "validate").exit_code == 2
    assert run("rules", "validate", rules.with_name("none.yml")).exit_code == 1


def test_show(rules: Path) -> None:
    """A rule is shown with what it looks for and the events that it needs."""
    found = run("rules", "show", "TRC-3").stdout
    assert "events:        process_vm_writev, ptrace, security_file_open\n" in found
    assert "evt.name = 'ptrace' and (args.request = 'PTRACE_POKETEXT')" in found
    (one,) = (one for one in objects("show", rules) if one["id"] == "OPENS")
    assert one["line"] == 2
    assert one["selectors"][0]["filter"] == "evt.name = 'security_file_open'"
    assert run("rules", "show").exit_code == 2


def test_coverage(tmp_path: Path) -> None:
    """Coverage is by technique, or says for each rule whether a capture has its events."""
    found = {one["technique"]: one["rules"] for one in objects("coverage")}
    assert found["Defense Evasion: Process Injection"] == ["TRC-3"]
    path = written(tmp_path)
    seen = {one["rule"]: one for one in objects("coverage", "--capture", path)}
    assert seen["TRC-3"]["can_match"] is True
    assert seen["TRC-3"]["events"] == {
        "process_vm_writev": 0, "ptrace": 3, "security_file_open": 1,
    }  # fmt: skip
    assert seen["TRC-1"]["can_match"] is False
    words = run("rules", "coverage", "TRC-6", "--capture", path).stdout.splitlines()[1].split()
    assert words == ["TRC-6", "yes", "init_module=1", "security_kernel_read_file=0"]


def test_explain(tmp_path: Path) -> None:
    """Each part of what a rule asks is said to hold or not, with the event's values."""
    path = written(tmp_path)
    result = run("rules", "explain", "TRC-3", path, "--event", "4")
    assert result.exit_code == 0, result.output
    assert "  security_file_open: matches\n" in result.stdout
    assert "  ptrace: does not match\n" in result.stdout
    assert "+ args.flags icontains ('o_wronly', 'o_rdwr')   [args.flags = 'O_WRONLY']" in (
        result.stdout
    )
    assert "- args.request = 'PTRACE_POKETEXT'   [args.request = nothing]" in result.stdout
    assert 'Code injection: {"file flags":"O_WRONLY","file path":"/proc/12/mem"}' in result.stdout
    result = run("rules", "explain", "TRC-3", path, "--event", "1")
    assert "no alert of the rule is about this event" in result.stdout
    alert = json.loads(run("detect", "--format", "jsonl", "-n", "1", path).stdout)
    result = run("rules", "explain", alert["arg_rule"], path, "--event", alert["arg_causes"][0])
    assert f"alert {alert['arg_alert_id'][:16]} at 2022-07-09T21:42:45" in result.stdout
    assert run("rules", "explain", "TRC-3", path, "--event", "99").exit_code == 1
    assert run("rules", "explain", "TRC-3", path, "--event", "x").exit_code == 1


def test_what_is_explained_stays_in_its_lines(rules: Path) -> None:
    """A process can't add lines by what it is called or started with."""
    name = "cat\nalert 0123456789abcdef at noon: X"
    path = rules.with_name("named.json")
    path.write_bytes(lines([event(1, "openat", name, pathname="/x")]))
    rules.write_text("- id: X\n  condition: evt.name = 'openat'\n  output: '%ps.name'\n")
    (alert,) = run("detect", "--rules", rules, "--format", "jsonl", path).stdout.splitlines()
    words = ["explain", rules, path, "--event", json.loads(alert)["arg_causes"][0]]
    found = run("rules", *words).stdout
    assert r"cat\x0aalert 0123456789abcdef" in found
    assert [line[:6] for line in found.splitlines() if line.startswith("alert")] == ["alert "]


def test_profile(rules: Path) -> None:
    """Of each rule it is told how many events it looked at one by one, and its alerts."""
    path = rules.with_name("many.json")
    path.write_bytes(lines([one for _ in range(20) for one in events()]))
    found = {one["rule"]: one for one in objects("profile", rules, "--capture", path)}
    assert (found["OPENS"]["candidates"], found["OPENS"]["alerts"]) == (20, 20)
    assert found["TWICE"]["candidates"] == 40
    assert found["TWICE"]["taken_s"] > 0


def test_replay_takes_rules(tmp_path: Path) -> None:
    """A replay prints alerts alone, or among the events behind which they come."""
    path = written(tmp_path)
    first = run("detect", "--rules", "TRC-2", path).stdout
    assert run("replay", "--rules", "TRC-2", path).stdout == first
    result = run("replay", "--rules", "TRC-2", "--format", "jsonl", path)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [one["kind"] for one in found]
    assert kinds == ["event", "alert", "event", "event", "alert", "event", "event"]
    alone = run("detect", "--rules", "TRC-2", "--format", "jsonl", path).stdout
    assert [x for x in result.stdout.splitlines() if '"kind":"alert"' in x] == alone.splitlines()
    assert run("replay", "--throttle", "1m", path).exit_code == 2


@pytest.mark.parametrize("start", ["#1", f"{T0_NS + 10**9}"])
def test_replay_of_a_part(rules: Path, start: str) -> None:
    """Rules have seen what was before the part: a sequence that began there ends in it."""
    path = written(rules.parent)
    result = run("replay", "--rules", rules, "--start", start, "--format", "jsonl", path)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one.get("arg_rule", one["event"]) for one in found] == [
        "ptrace", "ptrace", "TWICE", "init_module", "security_file_open", "OPENS",
    ]  # fmt: skip
    result = run("replay", "--rules", rules, "--start", "#3", "--format", "jsonl", path)
    assert "TWICE" not in result.stdout


def test_manifest_of_rules(rules: Path) -> None:
    """A manifest knows the rules: other ones are told."""
    path, manifest = written(rules.parent), rules.with_name("run.json")
    out = rules.with_name("out.jsonl")
    words = ["--rules", str(rules), "--format", "jsonl", "-o", str(out)]
    assert run("replay", *words, "--manifest", manifest, path).exit_code == 0
    assert run("replay", "--verify", manifest).exit_code == 0
    rules.write_text(OWN_RULES.replace("severity: low", "severity: high"))
    assert run("replay", "--verify", manifest).exit_code == 1
