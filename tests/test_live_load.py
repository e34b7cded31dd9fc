"""Under load: nothing lost where the rings hold it, and exact counts where they do not."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from live_support import BTF, info, lost, recording, rows
from workload_support import Fact, Workloads, facts

import kcap

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

READY_S = 4
CLOSED_S = 10
MANY = 5000
FLOODED = ("openat", "write", "pread64", "close")


@pytest.mark.parametrize("count", [500, pytest.param(MANY, marks=pytest.mark.long)])
def test_short_lived_processes(count: int, tmp_path: Path, workloads: Workloads) -> None:
    """By default: every execution with path and arguments, every exit matched, none lost."""
    path = tmp_path / "r.kcap"
    workloads.path("burst")
    with recording(path, "--source", "bpf") as running:
        said = workloads.run("burst", workloads.child, count)

    columns = ("event", "pid", "exe", "arg_argv", "arg_wait_status", "process_key")
    found = rows(path, columns=columns)
    ran = {r["pid"]: r for r in found if r["event"] == "sched_process_exec"}
    ended = {r["pid"]: r for r in found if r["event"] == "sched_process_exit"}
    for fact in said:
        start, end = ran[fact["child"]], ended[fact["child"]]
        assert (start["exe"], start["arg_argv"]) == (workloads.child, fact["argv"])
        assert end["arg_wait_status"] == fact["status"]
        assert end["process_key"] == start["process_key"]
    assert len({row["process_key"] for row in ran.values()}) == len(ran)
    assert lost(path) == 0
    if count >= MANY:  # beside other tests a start may take its time
        assert running.ready_s < READY_S
        assert running.closed_s < CLOSED_S


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_opens(count: int, tmp_path: Path, workloads: Workloads) -> None:
    """Every open with its path and its result, those that fail too, none lost."""
    path = tmp_path / "r.kcap"
    workloads.path("opens")
    with recording(path, "--source", "bpf", "--events", "openat"):
        said = workloads.run("opens", tmp_path, count)

    pid = said[0]["pid"]
    found = rows(path, f"ps.pid = {pid}", ("event", "arg_pathname", "fd_name", "retval"))
    opens = [row for row in found if row["event"] == "openat"]
    told = Counter((row["arg_pathname"], row["retval"]) for row in opens)
    assert told == {(fact["path"], fact["ret"]): fact["count"] for fact in said}
    assert all(row["fd_name"] == row["arg_pathname"] for row in opens if row["retval"] >= 0)
    assert lost(path) == 0


def flooded(path: Path, pid: int) -> tuple[Counter[str], Counter[str]]:
    """Calls of a process that a capture has, and that it says were lost."""
    with kcap.open(path) as capture:
        losses = capture.info.losses
    found = rows(path, f"ps.pid = {pid}", ("event", "pid", "process_name"))
    # Before it was executed the process was ours: Popen closes what the child shall not have.
    there = Counter(row["event"] for row in found if row["process_name"] == "flood")
    gone: Counter[str] = Counter()
    for loss in losses:
        if loss.kind == "lost" and f"pid {pid}," in loss.reason:
            gone[str(loss.event)] += loss.count or 0
    return there, gone


def totals(said: list[Fact]) -> Counter[str]:
    """What all threads of a flood did."""
    return Counter({call: sum(fact[call] for fact in said) for call in FLOODED})


def flood(
    path: Path, folder: Path, workloads: Workloads, *, pairs: int, stopped_s: float
) -> tuple[list[Fact], list[Fact]]:
    """Record while sixteen threads do what they can, and one process starts and connects others.

    Args:
        path: The capture.
        folder: Where the threads write.
        workloads: The programs.
        pairs: Executions and connections.
        stopped_s: So long the recorder may not run, that its rings fill.

    Returns:
        What the threads did, and what the other process did.
    """
    for name in ("flood", "pairs", "child"):
        workloads.path(name)
    events = ",".join(("sched_process_exec", "sched_process_exit", "connect", *FLOODED))
    with recording(path, "--source", "bpf", "--events", events, codes=(3,)) as running:
        flooding = workloads.start("flood", folder, 16)
        time.sleep(0.2)
        running.process.send_signal(signal.SIGSTOP)
        said = workloads.run("pairs", workloads.child, pairs)
        time.sleep(stopped_s)
        running.process.send_signal(signal.SIGCONT)
        output, _ = flooding.communicate("", timeout=60)
    return facts(output), said


@pytest.mark.parametrize(
    ("pairs", "stopped_s"), [(100, 1.0), pytest.param(1000, 10.0, marks=pytest.mark.long)]
)
def test_overload(pairs: int, stopped_s: float, tmp_path: Path, workloads: Workloads) -> None:
    """Received and lost together are what was done, exactly; what is rare is not lost at all."""
    path = tmp_path / "r.kcap"
    done, paired = flood(path, tmp_path, workloads, pairs=pairs, stopped_s=stopped_s)

    pid = done[0]["pid"]
    there, gone = flooded(path, pid)
    for call in FLOODED:
        own = 1 if call == "write" else 0  # at the end it says what it did
        assert totals(done)[call] <= there[call] + gone[call] <= totals(done)[call] + own
    assert sum(gone.values()) > 0, "nothing was lost: this shows nothing of losses"

    ran = {r["pid"]: r["arg_argv"] for r in rows(path, "evt.name = 'sched_process_exec'")}
    connected = [
        (row["retval"], row["fd_name"])
        for row in rows(path, f"ps.pid = {paired[0]['pid']}")
        if row["event"] == "connect"
    ]
    assert [ran.get(fact["child"]) for fact in paired] == [fact["argv"] for fact in paired]
    assert connected == [
        (fact["ret"], f"127.0.0.1:{fact['local_port']}->127.0.0.1:{fact['remote_port']}")
        for fact in paired
    ]
    reasons = [entry["reason"] for entry in info(path)["loss"]]
    assert any("flood" in reason and str(pid) in reason for reason in reasons)
