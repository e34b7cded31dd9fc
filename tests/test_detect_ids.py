"""Ids of alerts are those of their events: in a stream, a filtered copy, a merged, a saved one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rules_support
from cli_support import run, shell
from determinism_child import cut_anew
from every_rule import Alert, alerts_in, ids, printed

PIDS = (22677, 22678, 22679, 22682, 22683, 22694)
"""Some of the processes of the intrusion."""


@pytest.fixture(scope="module")
def whole(words: tuple[str, ...], intrusion: Path) -> list[Alert]:
    """All its alerts."""
    return detected(intrusion, *words)


def detected(*more: str | Path) -> list[Alert]:
    """Alerts of events: what rules say at the end is of none."""
    found = alerts_in(printed("detect", "--format", "jsonl", *more))
    return [one for one in found if one["arg_title"] != "They are left"]


def of_rules(alerts: list[Alert], names: set[str]) -> list[str]:
    """Ids of the alerts of some rules."""
    return ids(one for one in alerts if one["arg_rule"] in names)


def test_no_two_alerts_have_one_id(whole: list[Alert]) -> None:
    """Else comparing ids would say little."""
    assert len(set(ids(whole))) == len(whole) > 100


@pytest.mark.long
def test_ids_are_the_same_in_a_stream(
    words: tuple[str, ...], intrusion: Path, whole: list[Alert], tmp_path: Path
) -> None:
    """A pipe that kcap reads as it comes, as live, gives the ids of the file."""
    named = " ".join(words)
    done = shell(f"cat {intrusion} | kcap detect --format jsonl {named} -", tmp_path)

    assert done.returncode == 0, done.stderr
    found = [one for one in alerts_in(done.stdout) if one["arg_title"] != "They are left"]
    assert ids(found) == ids(whole)


def test_ids_are_the_same_in_a_filtered_copy(
    words: tuple[str, ...], intrusion: Path, whole: list[Alert], tmp_path: Path
) -> None:
    """Where the events behind alerts are kept; without them there are none."""
    copy = tmp_path / "copy.kcap"
    kept = "evt.name not in ('write', 'writev', 'mount', 'sched_process_exit')"
    printed("replay", intrusion, "--format", "kcap", "-w", kept, "-o", copy)
    found = detected(copy, *words)

    needing = {"STEPS", "MANY", "WRITERS", "5a3e1a3c-3a3c-4f0e-9a3e-000000000001"}
    needing |= {"TRC-9", "TRC-11", "TRC-1014", "TRC-1022"}
    others = {one["arg_rule"] for one in whole} - needing
    assert of_rules(found, others) == of_rules(whole, others)
    assert len(of_rules(found, others)) > 60
    assert of_rules(found, needing) == []
    assert of_rules(whole, needing) != []


def elsewhere(intrusion: Path, folder: Path) -> Path:
    """What another host did at the same time, in processes of the same numbers."""
    events: list[dict[str, Any]] = []
    times = [one["ts"] for one in _events(intrusion)]
    for number, ts in enumerate(times[5:-5:3]):
        pid = PIDS[number % len(PIDS)]
        name = ("openat", "ptrace", "write", "close")[number % 4]
        one = rules_support.event(0, name, "strace", request="PTRACE_TRACEME")
        one |= {"timestamp": ts + 1, "processId": pid, "hostProcessId": pid}
        one |= {"threadId": pid, "hostThreadId": pid}
        events.append(one)
    path = folder / "elsewhere.json"
    path.write_bytes(rules_support.lines(events))
    return path


def _events(capture: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed("cat", "--format", "jsonl", capture).splitlines()]


def test_ids_are_the_same_merged_with_another_host(
    words: tuple[str, ...], intrusion: Path, whole: list[Alert], tmp_path: Path
) -> None:
    """Of two hosts, whose processes have the same numbers, merged or read as one: those of both."""
    other = elsewhere(intrusion, tmp_path)
    alone = detected(other, *words)
    merged = tmp_path / "merged.kcap"
    assert run("merge", intrusion, other, "-o", merged).exit_code == 0
    expected = sorted([*ids(whole), *ids(alone)])

    assert len(alone) > 10
    assert sorted(ids(detected(merged, *words))) == expected
    assert sorted(ids(detected(intrusion, other, *words))) == expected


@pytest.mark.long
def test_ids_are_the_same_in_what_is_recovered(
    words: tuple[str, ...], intrusion: Path, whole: list[Alert], tmp_path: Path
) -> None:
    """Of a capture whose end is gone: the alerts up to there, and not those behind it."""
    cut_anew(intrusion, tmp_path / "whole.kcap", [20])
    torn, saved = tmp_path / "torn.kcap", tmp_path / "saved.kcap"
    data = (tmp_path / "whole.kcap").read_bytes()
    torn.write_bytes(data[: len(data) * 6 // 10])
    result = run("recover", torn, "-o", saved)
    assert result.exit_code in (0, 3), result.stderr

    found = run("detect", "--format", "jsonl", saved, *words)

    kept = [one for one in alerts_in(found.stdout_bytes) if one["arg_title"] != "They are left"]
    assert 40 < len(kept) < len(whole)
    assert ids(kept) == ids(whole)[: len(kept)]


def test_ids_are_others_of_other_events(
    words: tuple[str, ...], intrusion: Path, whole: list[Alert], tmp_path: Path
) -> None:
    """The control: the same alerts about events of another recording have no id in common."""
    copy = tmp_path / "copy.json"
    copy.write_bytes(printed("export", intrusion, "--format", "tracee-json"))
    found = detected(copy, *words)

    common = {one["arg_rule"] for one in found} & {one["arg_rule"] for one in whole}
    assert common >= {"PLAIN", "STEPS", "TRC-2"}
    assert not set(ids(found)) & set(ids(whole))
