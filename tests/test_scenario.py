"""A little intrusion (tests/scenario), recorded: every event that its signatures need is there."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from live_support import BTF, Row, info, lost, recording, rows
from workload_support import Fact, Workloads

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

EVENTS = (
    "close,dup,dup2,dup3,execve,init_module,magic_write,mem_prot_alert,process_vm_writev,ptrace,"
    "sched_process_exec,sched_process_exit,security_bprm_check,security_file_open,"
    "security_kernel_read_file,security_sb_mount,security_socket_connect,sched_process_fork"
)
"""What the default signatures ask for, and the forks."""

CONTAINER = "c0ffee00" * 8
DERIVED = sorted(name for name in EVENTS.split(",") if name.startswith(("security_", "m")))


class Seen(NamedTuple):
    """The recording, and what was done."""

    path: Path
    rows: list[Row]
    said: list[Fact]
    folder: Path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, workloads: Workloads) -> Seen:
    """The intrusion under a recording of what the default signatures ask for."""
    folder = tmp_path_factory.mktemp("scenario")
    path = folder / "r.kcap"
    workloads.path("intrusion")
    with recording(path, "--source", "bpf", "--events", EVENTS):
        said = workloads.run("intrusion", folder)
    named = ", ".join(f"'{name}'" for name in DERIVED)
    return Seen(path, rows(path) + rows(path, f"evt.name in ({named})"), said, folder)


def is_path(name: str, row: Row) -> bool:
    """Whether an event is about a path that ends so."""
    return str(row.get("arg_pathname", "")).endswith(name)


def in_container(row: Row) -> bool:
    """Whether an event is of the container that the intrusion makes."""
    return row.get("container_id") == CONTAINER


EVIDENCE: dict[str, Callable[[Row], bool]] = {
    "TRC-1 connects": lambda r: (
        r["event"] == "security_socket_connect" and "127.0.0.1" in r["arg_remote_addr"]
    ),
    "TRC-1 copies": lambda r: r["event"] == "dup2" and r["arg_newfd"] == 0,
    "TRC-2": lambda r: r["event"] == "ptrace" and r["arg_request"] == 0,
    "TRC-3 pokes": lambda r: r["event"] == "ptrace" and r["arg_request"] == 4,
    "TRC-3 writes": lambda r: r["event"] == "process_vm_writev" and r["arg_pid"] != r["pid"],
    "TRC-3 opens": lambda r: r["event"] == "security_file_open" and is_path("/mem", r),
    "TRC-4": lambda r: r["event"] == "mem_prot_alert" and r["arg_alert"] == 4,
    "TRC-5": lambda r: (
        r["event"] == "sched_process_exec" and r["arg_pathname"].startswith("memfd:")
    ),
    "TRC-6": lambda r: r["event"] == "init_module",
    "TRC-7": lambda r: (
        r["event"] == "sched_process_exec"
        and any(v.startswith("LD_PRELOAD=") for v in r.get("arg_env", ()))
    ),
    "TRC-7 writes": lambda r: (
        r["event"] == "security_file_open" and is_path("/etc/ld.so.preload", r)
    ),
    "TRC-8": lambda r: (
        r["event"] == "security_file_open"
        and is_path("serviceaccount/token", r)
        and in_container(r)
    ),
    "TRC-9": lambda r: (
        r["event"] == "magic_write"
        and base64.b64decode(r["arg_bytes"])[1:4] == b"ELF"
        and in_container(r)
    ),
    "TRC-10": lambda r: (
        r["event"] == "security_file_open"
        and r["arg_pathname"] == "/etc/kubernetes/pki/ca.key"
        and in_container(r)
    ),
    "TRC-11": lambda r: (
        r["event"] == "security_sb_mount"
        and r.get("arg_dev_name", "").startswith("/dev/")
        and in_container(r)
    ),
    "TRC-12": lambda r: (
        r["event"] == "security_bprm_check"
        and r["arg_pathname"].endswith("sh")
        and r["process_name"] == "nginx"
    ),
    "TRC-13 runs": lambda r: (
        r["event"] == "sched_process_exec"
        and any(v.startswith("KUBERNETES_SERVICE_HOST=") for v in r.get("arg_env", ()))
    ),
    "TRC-13 connects": lambda r: (
        r["event"] == "security_socket_connect"
        and "10.96.0.1" in r["arg_remote_addr"]
        and in_container(r)
    ),
    "TRC-14": lambda r: (
        r["event"] == "security_file_open" and is_path("/release_agent", r) and in_container(r)
    ),
    "TRC-14 on the host": lambda r: (
        r["event"] == "security_file_open" and is_path("/release_agent", r) and not in_container(r)
    ),
}


@pytest.mark.parametrize("rule", EVIDENCE)
def test_evidence(seen: Seen, rule: str) -> None:
    """The recording has the event that the rule looks for."""
    assert any(EVIDENCE[rule](row) for row in seen.rows)


def test_every_step_has_evidence(seen: Seen) -> None:
    """No step is done that these tests do not look for."""
    assert {f["rule"] for f in seen.said if f["did"] == "step"} == {r.split()[0] for r in EVIDENCE}


def test_nothing_is_lost_and_nothing_stays(seen: Seen) -> None:
    """The recording is whole; the container's control groups are gone again."""
    assert lost(seen.path) == 0
    assert info(seen.path)["blind"] == []
    assert not list(Path("/sys/fs/cgroup").glob(f"**/*{CONTAINER}*"))


def test_the_container_has_its_own_ids(seen: Seen) -> None:
    """Within it, processes have low ids of their own, and other namespaces."""
    [container] = [fact for fact in seen.said if fact["did"] == "container"]
    [first] = [r for r in seen.rows if r["event"] == "sched_process_exit" and r["ns_pid"] == 1]

    assert first["pid"] == container["child"]
    assert first["container_id"] == CONTAINER
    outside = [r for r in seen.rows if r["pid"] == container["pid"]]
    assert first["mount_ns"] not in {row["mount_ns"] for row in outside}
