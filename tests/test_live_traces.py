"""A recording leaves the host as it was: the kernel's settings, tracefs, audit, its programs."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from live_support import BTF, recording
from workload_support import Workloads

from kcap.readers.live.bpf import system

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

CHANGING = re.compile(r"/random/|/ns_last_pid|/pty/nr|/sched_domain/|/dentry-state|/inode-")
"""Settings that are none: they count."""

TRACING = (
    "current_tracer", "tracing_on", "set_event", "kprobe_events", "uprobe_events", "buffer_size_kb",
    "trace_clock", "set_event_pid",
)  # fmt: skip
NETLINK_AUDIT, AUDIT_GET, NLM_F_REQUEST = 9, 1000, 1


def settings() -> dict[str, str]:
    """What is set in the kernel: below /proc/sys/kernel and .../net/core."""
    found = {}
    for top in ("kernel", "net/core"):
        for path in Path("/proc/sys", top).rglob("*"):
            if path.is_file() and not CHANGING.search(str(path)):
                with suppress(OSError):  # some can only be written
                    found[str(path)] = path.read_text(errors="replace")
    return found


def tracing() -> str:
    """What is set in tracefs, which is mounted for that out of everybody's sight."""
    files = " ".join(TRACING)
    script = (
        "mount -t tracefs tracefs /mnt && cd /mnt && ls instances events 2>/dev/null;"
        f" for f in {files} events/enable; do echo $f; cat $f 2>/dev/null; done; true"
    )
    command = ["unshare", "--mount", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


def mounts() -> set[str]:
    """Where something of the kernel's is mounted."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    kinds = ("tracefs", "debugfs", "bpf", "securityfs")
    return {line for line in lines if line.split()[2] in kinds}


def audit() -> tuple[int, ...]:
    """Whether audit is on, and for whom; empty where the kernel has none."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_AUDIT) as sock:
            sock.settimeout(5)
            sock.send(struct.pack("=IHHII", 16, AUDIT_GET, NLM_F_REQUEST, 1, 0))
            answer = sock.recv(8192)
    except OSError:
        return ()
    _, enabled, failure, pid, rate, backlog = struct.unpack_from("=6I", answer, 16)
    return enabled, failure, pid, rate, backlog


def programs(pid: int) -> set[int]:
    """The ids of the programs that a process holds in the kernel."""
    found = set()
    for described in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            found |= {
                int(n) for n in re.findall(r"^prog_id:\t(\d+)", described.read_text(), re.MULTILINE)
            }
    return found


def test_the_host_is_as_before(tmp_path: Path, workloads: Workloads) -> None:
    """What can be set, what is mounted and whether audit is on: all as it was."""
    workloads.path("burst")
    before = (settings(), tracing(), mounts(), audit())
    with recording(tmp_path / "r.kcap", "--source", "bpf", "--events", "all"):
        workloads.run("burst", workloads.child, 20)
        during = (settings(), mounts(), audit())
    after = (settings(), tracing(), mounts(), audit())

    assert (before[0], *before[2:]) == during
    assert after == before
    assert len(before[0]) > 50


def test_no_program_stays(tmp_path: Path) -> None:
    """The programs that a recording had in the kernel are gone with it, however it ends."""
    for kill in (False, True):
        with recording(tmp_path / f"{kill}.kcap", "--source", "bpf", codes=(0, -9)) as running:
            held = programs(running.process.pid)
            assert held
            assert held <= set(system.program_ids())
            if kill:
                running.process.kill()
                running.process.wait()
        assert not _still(held)


def _still(held: set[int]) -> set[int]:
    """Which of them are there; the kernel lets go a moment after the last descriptor."""
    end = time.monotonic() + 10
    while held & set(system.program_ids()) and time.monotonic() < end:
        time.sleep(0.05)
    return held & set(system.program_ids())


@pytest.fixture
def changed() -> Iterator[None]:
    """A setting that counts for nobody is changed for a while."""
    path = Path("/proc/sys/kernel/printk_ratelimit_burst")
    before = path.read_text()
    path.write_text(f"{int(before) + 1}\n")
    yield
    path.write_text(before)


def test_a_change_is_noticed(request: pytest.FixtureRequest) -> None:
    """Negative control: one setting more or less is seen."""
    before = settings()
    request.getfixturevalue("changed")

    assert settings() != before
