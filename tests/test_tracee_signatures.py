"""Tracee's signatures against what its own tests say of them, through the real import."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tracee_signatures_support import rules, told

from kcap.detect.feed import feed
from kcap.detect.rule import Rule
from kcap.model import decode
from kcap.readers.rules.tracee import described


def go(rule: Rule, case: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a case of Tracee's Go tests wants of a signature, and what it gives.

    Those tests group findings by signature: the last one counts.
    """
    finding = case["findings"].get(case["signature"])
    wanted = None if finding is None else [finding["data"] or None]
    return wanted, told(feed(rule, case["events"], origin=False))[-1:] or None


def rego(rule: Rule, case: Mapping[str, Any]) -> tuple[Any, Any]:
    """The same of its Rego tests, of which few say what was found."""
    found = told(feed(rule, [case["event"]], origin=False))
    if "result" in case:
        return [case["result"]], found
    return case["match"], bool(found)


def wrong(
    path: Path, chosen: Mapping[str, Rule], verdict: Callable[[Rule, Any], tuple[Any, Any]]
) -> tuple[int, list[str]]:
    """How many cases there are, and those in which kcap says otherwise."""
    with path.open(encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]
    found = []
    for case in cases:
        wanted, got = verdict(chosen[case["signature"]], case)
        if wanted != got:
            found.append(f"{case['signature']} {case.get('name') or case['test']}: {got}")
    return len(cases), found


def numbered(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case as later releases write it: numbers in place of the texts of numbers."""
    case = json.loads(json.dumps(case))
    for found in case["events"]:
        for argument in found.get("args") or ():
            table = NUMBERS.get(argument["name"])
            number = table and decode.number_of(table, argument["value"])
            argument["value"] = argument["value"] if number is None else number
    return dict(case)


NUMBERS = {
    "flags": "open_flags",
    "request": "ptrace_request",
    "alert": "tracee_mem_prot_alert",
    "type": "tracee_kernel_read",
}


def modern(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case in the spelling of events that came after 0.24, ``v1beta1.Event``."""
    return {**case, "events": [modern_event(found) for found in case["events"]]}


def modern_event(found: Mapping[str, Any]) -> dict[str, Any]:
    container = dict(found.get("container") or {})
    if (found.get("contextFlags") or {}).get("containerStarted"):
        container["started"] = True
    thread = {"name": found.get("processName", ""), "tid": found.get("threadId", 0)}
    process = {"pid": found.get("processId", 0), "thread": thread}
    entries = [modern_entry(one["name"], one["value"]) for one in found.get("args") or ()]
    workload = {"process": process, "container": container}
    return {"name": found["eventName"], "workload": workload, "data": entries}


def modern_entry(name: str, value: Any) -> dict[str, Any]:
    if name == "bytes":
        return {"name": name, "bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, dict):
        ports = {key: int(v) if key.endswith("_port") else v for key, v in value.items()}
        return {"name": name, "sockaddr": ports}
    if isinstance(value, list):
        kind = "hooked_syscalls" if name.startswith("hooked") else "str_array"
        return {"name": name, kind: {"value": value} if value else {}}
    return {"name": name, "str" if isinstance(value, str) else "int32": value}


def parsed(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case as signatures in Rego were given it later: arguments under another key."""

    def renamed(found: Mapping[str, Any]) -> dict[str, Any]:
        return {"parsedArgs" if key == "args" else key: value for key, value in found.items()}

    return {**case, "events": [renamed(found) for found in case["events"]]}


@pytest.mark.parametrize("form", [numbered, modern, lambda case: modern(numbered(case)), parsed])
def test_the_cases_in_other_forms(
    form: Callable[[Mapping[str, Any]], dict[str, Any]], data: Callable[[str], Path]
) -> None:
    """The cases have the same verdicts and data in the forms of later releases."""
    path = data("tracee/sigtests/go_v0.15.0.jsonl")
    changed: list[bool] = []

    def verdict(rule: Rule, case: Mapping[str, Any]) -> tuple[Any, Any]:
        changed.append(form(case)["events"] != case["events"])
        return go(rule, form(case))

    assert wrong(path, rules("v0.15"), verdict) == (119, [])
    assert sum(changed) > 60


CASES = [
    ("go_v0.8.3", "all", go, 10),
    ("rego_v0.8.3", "all", rego, 47),
    ("go_v0.15.0", "v0.15", go, 119),
]


@pytest.mark.parametrize(("name", "chosen", "verdict", "count"), CASES)
def test_tracees_own_cases(
    name: str,
    chosen: str,
    verdict: Callable[[Rule, Any], tuple[Any, Any]],
    count: int,
    data: Callable[[str], Path],
) -> None:
    """Each case has the verdict, and each finding the data, that Tracee's tests ask for."""
    path = data(f"tracee/sigtests/{name}.jsonl")
    assert wrong(path, rules(chosen), verdict) == (count, [])


def test_the_cases_tell_wrong_signatures(data: Callable[[str], Path]) -> None:
    """Control: with the conditions of other signatures the cases do not hold."""
    path = data("tracee/sigtests/go_v0.15.0.jsonl")
    chosen = rules("v0.15")
    mixed = dict(zip(chosen, [*list(chosen.values())[1:], chosen["TRC-101"]], strict=True))
    assert len(wrong(path, mixed, go)[1]) > len(chosen)


def test_the_table_of_signatures(data: Callable[[str], Path]) -> None:
    """Names, versions, severities, techniques and origins are those of Tracee's releases."""
    with data("tracee/signatures.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    known = {row[0]: row for row in described()[1:]}
    chosen = rules("all")
    for row in rows:
        if not row["id"].startswith("TRC-"):
            continue  # those that are in no release
        about, events = chosen[row["id"]].about, row["events(source/origin)"]
        assert (about.name, about.version) == (row["name"], row["version"])
        assert about.details["Severity"] == int(row["severity"])
        assert about.techniques[0] in (row["mitre_id"] or row["category"] or about.techniques[0])
        origin = re.search(r"/([a-z*]+)|origin=([a-z*]+)", events)
        wanted = "*" if origin is None else origin[1] or origin[2]
        assert (row["id"], known[row["id"]][3]) == (row["id"], wanted)
        told = set(re.sub(r"/[a-z*]+| origin=.*", "", events).split(","))
        needed = chosen[row["id"]].events or set()
        assert needed - told == {"TRC-1030": {"hooked_syscalls"}}.get(row["id"], set())
        assert told <= needed
    assert len(chosen) == sum(row["id"].startswith("TRC-") for row in rows)
