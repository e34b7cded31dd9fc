"""A recording has what programs truly did: each call, with its path or address and its result.

The programs of tests/workloads say what they did; everything runs under one recording.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import kernel_support
import pytest
from live_support import BTF, Row, lost, missing, of, record_calls, rows
from workload_support import Fact, Workloads

from kcap.readers.live.bpf import events

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

KERNEL = (pytest.mark.kernels, pytest.mark.long)


class Seen(NamedTuple):
    """One recording, and what was done meanwhile."""

    path: Path
    rows: list[Row]
    said: dict[str, list[Fact]]
    folder: Path
    """Where it was done."""
    child: str
    """The short-lived program."""

    def of(self, name: str) -> list[Row]:
        """The events of a program's own process."""
        return of(self.rows, self.said[name][0])


@pytest.fixture(
    scope="module",
    params=["running", *(pytest.param(series, marks=KERNEL) for series in ("6.1", "6.12"))],
)
def seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, workloads: Workloads
) -> Seen:
    """All programs under one recording: by the running kernel, and by others under QEMU."""
    folder = tmp_path_factory.mktemp("calls")
    path = folder / "r.kcap"
    if request.param == "running":
        said = record_calls(path, folder, workloads)
        return Seen(path, rows(path), said, folder, workloads.child)
    path, said = kernel_support.record_calls(request.param, folder, workloads)
    there = kernel_support.THERE
    return Seen(path, rows(path), said, there / "done", str(there / "child"))


def test_nothing_is_lost(seen: Seen) -> None:
    """The rings held all of it."""
    assert lost(seen.path) == 0


def test_each_execution_has_its_arguments(seen: Seen) -> None:
    """Short-lived processes: path, every argument and the exit status, each under its process."""
    ran = {r["pid"]: r for r in seen.rows if r["event"] == "sched_process_exec"}
    ended = {r["pid"]: r for r in seen.rows if r["event"] == "sched_process_exit"}
    for fact in seen.said["burst"]:
        row = ran[fact["child"]]
        assert row["arg_argv"] == fact["argv"]
        assert row["arg_pathname"] == row["exe"] == seen.child
        assert row["ppid"] == fact["pid"]
        assert row["arg_env"] == ["LD_KCAP=1"]
        assert ended[fact["child"]]["arg_wait_status"] == fact["status"]
        assert ended[fact["child"]]["process_start_ns"] == row["process_start_ns"]
        assert ended[fact["child"]]["process_key"] == row["process_key"]


def _path(row: Row) -> str | None:
    """What a row is about: the file behind a descriptor, else the path that was meant."""
    names = ("fd_name", "arg_pathname", "arg_path", "arg_target")
    return next((row[name] for name in names if name in row), None)


def test_calls_on_paths(seen: Seen) -> None:
    """Every open, and every call that names one path: the full path, and the kernel's result."""
    said = [
        (fact["did"], fact["path"], fact["ret"])
        for fact in seen.said["files"]
        if "path" in fact and "fd" not in fact
    ]
    pids = {fact["pid"] for fact in seen.said["files"]}
    found = [(r["event"], _path(r), r.get("retval")) for r in seen.rows if r["pid"] in pids]
    assert len(said) > 20
    known = events.events()
    assert missing([deed for deed in said if deed[0] in known], found) == []


def test_calls_on_descriptors(seen: Seen) -> None:
    """Reads, writes, copies and closes: the descriptor, the file behind it, the result."""
    said = [
        (fact["did"], fact["fd"], fact["path"] if fact["ret"] >= 0 else None, fact["ret"])
        for fact in seen.said["files"]
        if "fd" in fact
    ]
    found = [
        (r["event"], _descriptor(r), r.get("fd_name"), r.get("retval")) for r in seen.of("files")
    ]
    assert len(said) > 15
    assert missing(said, found) == []


def _descriptor(row: Row) -> int | None:
    return next((row[n] for n in ("arg_fd", "arg_oldfd", "arg_fildes") if n in row), None)


def test_calls_on_two_paths(seen: Seen) -> None:
    """Renames and links: the old name and the new one, whichever way they were given."""
    said = [(f["did"], f["old"], f["new"], f["ret"]) for f in seen.said["files"] if "old" in f]
    pids = {fact["pid"] for fact in seen.said["files"]}
    found = [(r["event"], *_two(r), r.get("retval")) for r in seen.rows if r["pid"] in pids]

    assert len(said) == 8
    assert missing(said, found) == []


def _two(row: Row) -> tuple[Any, Any]:
    if row["event"] in ("symlink", "symlinkat"):
        return row.get("arg_target_arg", row.get("arg_target")), row.get("arg_linkpath")
    if row["event"] == "mount":
        return row.get("arg_source"), row.get("arg_target")
    return row.get("arg_oldpath"), row.get("arg_newpath")


def test_first_bytes_of_a_file(seen: Seen) -> None:
    """The first write at offset 0 brings what was written: twenty bytes of it."""
    wrote = [r for r in seen.of("files") if r["event"] == "write" and r.get("retval") == 31]
    [row] = wrote
    assert row["arg_magic__bin"] == b"the first twenty byt"


def test_calls_on_sockets(seen: Seen) -> None:
    """Each call on a socket, over TCP, UDP and UNIX sockets, with its descriptor and result."""
    said = [(f["did"], f["fd"], f["ret"]) for f in seen.said["sockets"] if f["fd"] >= 0]
    found = [
        (r["event"], r.get("arg_sockfd", r.get("arg_fd")), r.get("retval"))
        for r in seen.of("sockets")
    ]
    assert len(said) > 60
    assert missing(said, found) == []


def test_connections(seen: Seen) -> None:
    """Connects over TCP, UDP and UNIX sockets, refused ones too: where to, and from where."""
    said = [
        (fact["fd"], _address(fact["address"]), fact["ret"])
        for fact in seen.said["sockets"]
        if fact["did"] == "connect"
    ]
    connects = [row for row in seen.of("sockets") if row["event"] == "connect"]
    found = [(r["arg_sockfd"], _told(r["arg_addr__json"]), r["retval"]) for r in connects]
    assert len(said) >= 7
    assert missing(said, found) == []
    for row in connects:
        if row.get("fd_type") in ("ipv4", "ipv6") and row["retval"] == 0:
            host, port = _told(row["arg_remote_addr"])
            assert row["fd_name"].endswith(f"->{host}:{port}")


def _address(said: Any) -> tuple[str, str]:
    """Host and port; of a UNIX socket its name."""
    return (said[0], str(said[1])) if isinstance(said, list) else (said, "")


def _told(text: str) -> tuple[str, str]:
    address = json.loads(text)
    if address["sa_family"] == "AF_UNIX":
        return address["sun_path"].removeprefix("@"), ""
    prefix = "sin6" if address["sa_family"] == "AF_INET6" else "sin"
    return address[f"{prefix}_addr"], address[f"{prefix}_port"]


def test_credentials(seen: Seen) -> None:
    """Each change of credentials by the process that made it, with what it asked for."""
    rows_of = Counter((r["event"], r["pid"], r.get("retval")) for r in seen.rows)
    for fact in seen.said["creds"]:
        assert rows_of[fact["did"], fact["pid"], fact["ret"]], fact
    changed = {r["pid"]: r for r in seen.rows if r["event"] == "setresuid"}
    [fact] = [f for f in seen.said["creds"] if f["did"] == "setresuid"]
    row = changed[fact["pid"]]
    assert (row["arg_ruid"], row["arg_euid"], row["arg_suid"]) == (6007, 6008, 6009)


def test_executable_memory(seen: Seen) -> None:
    """Memory that becomes executable is told, and what merely may be written is not made up."""
    said = [
        (fact["did"], fact.get("addr"), fact["prot"], fact["ret"])
        for fact in seen.said["memory"]
        if fact["did"] in ("mmap", "mprotect") and fact["prot"] & 4
    ]
    found = [
        (
            r["event"],
            r.get("arg_addr") if r["event"] == "mprotect" else None,
            r.get("arg_prot"),
            r.get("retval"),
        )
        for r in seen.of("memory")
    ]
    assert len(said) >= 5
    assert missing(said, found) == []


def test_ways_to_execute(seen: Seen) -> None:
    """By link, script, descriptor, from memory, from a new mount, deleted: each is told truly."""
    ran = {r["pid"]: r for r in seen.rows if r["event"] == "sched_process_exec"}
    told = {fact["did"]: ran[fact["child"]] for fact in seen.said["execs"] if fact["child"] in ran}
    folder = seen.folder / "execs"
    program = str(folder / "program")
    paths = {name: row["arg_pathname"] for name, row in told.items()}
    assert paths == {
        "execve": program,
        "symlink": program,
        "script": program,
        "setuid": str(folder / "setuid"),
        "fexecve": program,
        "execveat": program,
        "memfd": "memfd:kcap code",
        "new mount": str(folder / "later/program"),
        "deleted": paths["deleted"],
    }
    assert paths["deleted"].startswith(str(folder / "gone"))
    assert told["symlink"]["arg_cmdpath"] == str(folder / "link")
    assert told["script"]["arg_cmdpath"] == str(folder / "script")
    assert told["setuid"]["arg_euid"] == 6016
    assert told["deleted"]["arg_nlink"] == 0
    for fact in seen.said["execs"]:
        if fact["child"] in ran and fact["did"] != "script":
            assert ran[fact["child"]]["arg_argv"] == fact["argv"]


def test_executions_that_fail(seen: Seen) -> None:
    """They are told with the path, the arguments and the error."""
    failed = {
        r["pid"]: (r["arg_pathname"], r["arg_argv"], r["retval"])
        for r in seen.rows
        if r["event"] == "execve" and r["retval"] < 0
    }
    names = ("missing", "no format", "refused", "not a folder")
    for fact in seen.said["execs"]:
        if fact["did"] in names:
            errno = os.waitstatus_to_exitcode(fact["status"])
            assert failed[fact["child"]] == (fact["path"], fact["argv"], -errno)


def test_lives(seen: Seen) -> None:
    """Every fork and every end, with the wait status that the parent got."""
    forked = {r["arg_child_tid"] for r in seen.of("lives") if r["event"] == "sched_process_fork"}
    ended = {
        r["pid"]: r["arg_wait_status"]
        for r in seen.rows
        if r["event"] == "sched_process_exit" and r["pid"] == r["tid"]
    }
    for fact in seen.said["lives"]:
        if "status" in fact:
            assert fact["child"] in forked
            assert ended[fact["child"]] == fact["status"], fact
    [thread] = [f["thread"] for f in seen.said["lives"] if f["did"] == "thread"]
    assert thread in forked
    renamed = [r for r in seen.of("lives") if r["event"] == "task_rename"]
    assert {"renamed thread", 'renamed "main"'} <= {r["arg_new_name"] for r in renamed}
    dumped = {r["pid"]: r for r in seen.rows if r["event"] == "sched_process_exit"}
    [aborted] = [f for f in seen.said["lives"] if f["did"] == "aborted"]
    assert dumped[aborted["child"]]["arg_core_dumped"] == bool(aborted["status"] & 0x80)
    assert dumped[aborted["child"]]["arg_signal_code"] == 6


CALLS: dict[str, Callable[[Fact, Row], bool]] = {
    "process_vm_readv": lambda f, r: r["arg_pid"] == f["target"],
    "process_vm_writev": lambda f, r: r["arg_pid"] == f["target"],
    "kill": lambda f, r: r["arg_pid"] == f["target"],
    "init_module": lambda _, r: r["arg_param_values"] == "option=1",
    "finit_module": lambda _, r: r["arg_param_values"] == "option=2",
    "delete_module": lambda _, r: r["arg_name"] == "kcap_no_module",
    "bpf MAP_CREATE": lambda _, r: r["arg_cmd"] == 0 and "arg_prog_type" not in r,
    "bpf PROG_LOAD": lambda _, r: r["arg_prog_name"] == "kcap_test_prog",
    "unshare": lambda f, r: r["pid"] == f["pid"],
    "setns": lambda f, r: r["pid"] == f["pid"],
    "ptrace POKETEXT": lambda f, r: r["arg_request"] == 4 and r["arg_pid"] == f["target"],
    "ptrace SEIZE": lambda f, r: r["arg_request"] == 0x4206 and r["arg_pid"] == f["target"],
}


@pytest.mark.parametrize("did", CALLS)
def test_attacks(seen: Seen, did: str) -> None:
    """Calls that change other processes or the kernel: what they were about, and the result."""
    facts = [fact for fact in seen.said["attacks"] if fact["did"] == did]
    for fact in facts:
        found = [
            row
            for row in seen.rows
            if row["event"] == did.split(maxsplit=1)[0]
            and row["pid"] == fact["pid"]
            and row["retval"] == fact["ret"]
        ]
        assert any(CALLS[did](fact, row) for row in found), (fact, found)
    assert facts


def test_ids_inside_a_namespace(seen: Seen) -> None:
    """A process in a pid namespace has both its ids: the one outside, and the one inside."""
    [fact] = [f for f in seen.said["attacks"] if f["did"] == "child in a namespace"]
    [ended] = [
        r for r in seen.rows if r["event"] == "sched_process_exit" and r["pid"] == fact["child"]
    ]
    outside = of(seen.rows, fact)[0]

    assert ended["ns_pid"] == ended["ns_tid"] == 1
    assert ended["pid_ns"] != outside["pid_ns"]


def test_a_deed_that_was_not_done_is_missed() -> None:
    """Negative control: what was not recorded, or in another order, is noticed."""
    assert missing(["a", "b"], ["x", "a", "y", "b"]) == []
    assert missing(["a", "b"], ["a"]) == ["b"]
    assert missing(["a", "b"], ["b", "a"]) == ["b"]
