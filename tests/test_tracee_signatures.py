"""Tracee's signatures against what its own tests say of them, through the real import."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tracee_signatures_support import rules, told

from kcap.detect.feed import feed
from kcap.detect.rule import Rule


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
