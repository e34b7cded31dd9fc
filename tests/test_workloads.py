"""The workloads say what they did: without that, the tests of the recorder show nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from workload_support import SOURCES, Workloads, facts

NEEDS: dict[str, list[str]] = {
    "attacks": [],
    "burst": ["CHILD", "20"],
    "compat": ["FOLDER", "CHILD"],
    "creds": [],
    "execs": ["FOLDER", "CHILD"],
    "files": ["FOLDER"],
    "high": [],
    "int80": ["FOLDER"],
    "links": ["FOLDER"],
    "lives": ["CHILD", "FOLDER"],
    "memory": ["CHILD"],
    "opens": ["FOLDER", "1700"],
    "padding": ["CHILD", "200000"],
    "pairs": ["CHILD", "5"],
    "sockets": ["FOLDER"],
    "swap": ["FOLDER", "5000"],
    "together": ["5", "4"],
    "uring": ["FOLDER"],
}
FED = {"early", "flood"}
"""Wait for their standard input."""

ELSEWHERE = {"accepting", "carries", "passing", "ringing", "steady", "stuck"}
"""Run for as long as they are told, or for good: test_soak.py and test_probe_stall.py do. What
`passing` and `ringing` do is known beforehand: test_artifacts_kernel.py. `carries` is for
tests/bench/artifacts.py, `accepting` for test_packets_live_hostile.py."""


def words(name: str, workloads: Workloads, folder: Path) -> list[str]:
    """The arguments of a workload."""
    known = {"CHILD": workloads.child, "FOLDER": str(folder)}
    return [known.get(word, word) for word in NEEDS[name]]


@pytest.mark.root
@pytest.mark.parametrize("name", sorted(NEEDS))
def test_it_says_what_it_did(name: str, workloads: Workloads, tmp_path: Path) -> None:
    """Each workload ends well, and each of its lines names the process, the thread and the deed."""
    if name == "uring" and _uring_is_off():
        pytest.skip("io_uring is switched off here (kernel.io_uring_disabled)")
    said = workloads.run(name, *words(name, workloads, tmp_path))

    assert said
    assert all(fact["pid"] > 0 and fact["tid"] > 0 and fact["did"] for fact in said)


def _uring_is_off() -> bool:
    switch = Path("/proc/sys/kernel/io_uring_disabled")
    return switch.exists() and switch.read_text().strip() == "2"


def test_every_workload_is_tried() -> None:
    """No program lies in the folder that these tests do not run."""
    assert {path.stem for path in SOURCES.glob("*.c")} - {"child"} == set(NEEDS) | FED | ELSEWHERE


def test_the_flood_counts_exactly(workloads: Workloads, tmp_path: Path) -> None:
    """What the threads say they wrote is what arrived."""
    flood = workloads.start("flood", tmp_path, 4)
    output, _ = flood.communicate("", timeout=30)

    said = facts(output)
    assert flood.returncode == 0
    assert len({fact["thread"] for fact in said}) == 4
    assert all(fact["write"] == 8 * fact["openat"] == 8 * fact["close"] for fact in said)


def test_burst_leaves_true_exit_codes(workloads: Workloads) -> None:
    """The child exits with the number it was given: the wait status says so."""
    said = workloads.run("burst", workloads.child, 300)

    assert [fact["status"] for fact in said] == [(i & 255) << 8 for i in range(300)]
    assert len({tuple(fact["argv"]) for fact in said}) == 300


def test_opens_are_as_many_as_asked(workloads: Workloads, tmp_path: Path) -> None:
    """The counts add up, and one path of seventeen is missing."""
    said = workloads.run("opens", tmp_path, 1000)

    assert sum(fact["count"] for fact in said) == 1000
    assert [fact["path"] for fact in said if fact["ret"] == -errno.ENOENT] == [
        str(tmp_path / "missing")
    ]
    assert len(list(tmp_path.iterdir())) == 16


def test_a_workload_that_fails_is_noticed(workloads: Workloads) -> None:
    """Negative control: a wrong call of a program is no silent empty list of facts."""
    with pytest.raises(AssertionError):
        workloads.run("burst")
