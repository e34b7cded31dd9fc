"""Ways around a recorder: each is recorded truly, or reported as what could not be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from live_support import BTF, Recording, Row, info, missing, recording, rows
from workload_support import Fact, Workloads, facts

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

EVERYTHING = ("--source", "bpf", "--events", "all")
SWAPS = 3000


class Seen(NamedTuple):
    """One recording, and what was done meanwhile."""

    path: Path
    rows: list[Row]
    said: dict[str, list[Fact]]
    folder: Path
    early: list[Fact]
    """What the program did that had opened its files before."""

    def of(self, name: str) -> list[Row]:
        """The events of a program's own process."""
        return [row for row in self.rows if row["pid"] == self.said[name][0]["pid"]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, workloads: Workloads) -> Seen:
    """All programs under one recording."""
    folder = tmp_path_factory.mktemp("evasion")
    path = folder / "r.kcap"
    needs: dict[str, tuple[object, ...]] = {
        "int80": (folder,),
        "links": (folder,),
        "swap": (folder, SWAPS),
        "uring": (folder,),
    }
    for name in (*needs, "padding"):
        workloads.path(name)
    early = workloads.start("early", folder)
    assert early.stdout is not None
    ready = facts(early.stdout.readline())
    said = {}
    running = Recording(path, *EVERYTHING)
    try:
        output, _ = early.communicate("x", timeout=30)
        for name, words in needs.items():
            said[name] = workloads.run(name, *words)
        for size in (5 << 10, 200 << 10):
            said[f"padding {size}"] = workloads.run("padding", workloads.child, size)
        running.stop(3)  # what io_uring did is not seen, and that is reported
    finally:
        running.process.kill()
        running.process.wait()
    return Seen(path, rows(path), said, folder, ready + facts(output))


def opened(found: list[Row]) -> list[tuple[str | None, int]]:
    """Paths and results of opens, in order."""
    names = ("open", "openat", "openat2")
    return [(r.get("fd_name"), r["retval"]) for r in found if r["event"] in names]


def test_32_bit_program(tmp_path: Path, workloads: Workloads) -> None:
    """What a 32-bit program opens, removes and executes is recorded like any other's."""
    workloads.path("compat")
    path = tmp_path / "r.kcap"
    with recording(path, *EVERYTHING):
        said = workloads.run("compat", tmp_path, workloads.child)
    found = [row for row in rows(path) if row["pid"] == said[0]["pid"]]
    names = {fact["did"] for fact in said} - {"execve"}
    calls = [row for row in found if row["event"] in names and row["process_name"] == "compat"]

    done = [(f["did"], f["path"], f["ret"]) for f in said if f["did"] != "execve"]
    told = [(r["event"], r.get("fd_name", r.get("arg_pathname")), r["retval"]) for r in calls]
    assert missing(done, told) == []
    assert all(row["is_compat"] for row in calls)
    ran = [r for r in rows(path) if r["event"] == "sched_process_exec"]
    [execution] = [fact for fact in said if fact["did"] == "execve"]
    assert execution["argv"] in [r["arg_argv"] for r in ran if r["pid"] == execution["child"]]


def test_32_bit_calls_of_a_64_bit_program(seen: Seen) -> None:
    """``int 0x80`` is decoded by the 32-bit table: an open is no fstat, an unlink no mprotect."""
    calls = [row for row in seen.of("int80") if row["is_compat"]]
    told = [(r["event"], r.get("fd_name", r.get("arg_pathname")), r["retval"]) for r in calls]

    assert told == [(f["did"], f["path"], f["ret"]) for f in seen.said["int80"]]
    assert "mprotect" not in {row["event"] for row in calls}


def test_io_uring(seen: Seen) -> None:
    """Files opened through a ring are no calls: that the process has one is reported as blind."""
    setup = seen.said["uring"][0]
    if setup["ret"] < 0:
        pytest.skip("io_uring is switched off here")
    blind = [entry["reason"] for entry in info(seen.path)["blind"]]
    assert any("io_uring" in reason and str(setup["pid"]) in reason for reason in blind)
    assert str(seen.folder / "hidden") not in [name for name, _ in opened(seen.of("uring"))]


def test_nobody_else_is_called_blind(seen: Seen) -> None:
    """Negative control: programs that used no ring are in no such report."""
    blind = json.dumps(info(seen.path)["blind"])
    for name, said in seen.said.items():
        assert name == "uring" or f"{said[0]['pid']}" not in blind


def test_a_path_that_changes_meanwhile(seen: Seen) -> None:
    """While a thread changes the string, each open is recorded with the file that it reached."""
    said = [(fact["path"], fact["ret"]) for fact in seen.said["swap"]]
    names = {path for path, _ in said}
    found = [(path, ret) for path, ret in opened(seen.of("swap")) if path in names]

    assert len(said) >= SWAPS
    assert found[-len(said) :] == said
    given = [r.get("arg_path_arg") for r in seen.of("swap") if r.get("fd_name") in names]
    assert len(set(given)) > 1


def test_the_string_alone_would_have_lied(seen: Seen) -> None:
    """Negative control: there are opens whose string, read afterwards, names another file."""
    names = {fact["path"] for fact in seen.said["swap"]}
    lies = [
        row
        for row in seen.of("swap")
        if row.get("fd_name") in names and row.get("arg_path_arg") not in (None, row["fd_name"])
    ]
    if not lies:
        pytest.skip("the thread was never quick enough to change what was already opened")
    assert all(row["fd_name"] != row["arg_path_arg"] for row in lies)


def test_names_that_are_not_its_own(seen: Seen) -> None:
    """By symbolic link, directory descriptor, other root, /proc or O_PATH: the file's own path."""
    said = [(f["path"], f["ret"]) for f in seen.said["links"] if f["did"] == "open"]
    given = [f["given"] for f in seen.said["links"] if f["did"] == "open"]
    found = [
        (row.get("fd_name"), row["retval"], row.get("arg_path_arg"))
        for row in seen.of("links")
        if row["event"] in ("openat", "openat2")
    ]
    deeds = [(*fact, user) for fact, user in zip(said, given, strict=True)]
    assert missing(deeds, found) == []


def test_descriptors_that_were_passed_on(seen: Seen) -> None:
    """A file that came over a socket, or was copied, is known by its path when it is read."""
    said = [(f["fd"], f["path"], f["ret"]) for f in seen.said["links"] if f["did"] == "read"]
    found = [
        (row["arg_fd"], row.get("fd_name"), row["retval"])
        for row in seen.of("links")
        if row["event"] == "pread64"
    ]
    assert len(said) == 3
    assert missing(said, found) == []


@pytest.mark.parametrize("size", [5 << 10, 200 << 10])
def test_padding_before_the_payload(seen: Seen, size: int) -> None:
    """Behind ever so much padding the last arguments are there, and how long it all was."""
    [fact] = seen.said[f"padding {size}"]
    [row] = [
        row
        for row in seen.rows
        if row["event"] == "sched_process_exec" and row["pid"] == fact["child"]
    ]
    assert row["arg_argv_bytes"] == fact["argv_bytes"]
    assert row["arg_argv"][0] == fact["path"]
    assert row.get("arg_argv_tail", row["arg_argv"])[-2:] == fact["last"]


def test_opened_before_the_recording(seen: Seen) -> None:
    """A read of a file opened before has its path; a socket connected before both its ends."""
    [ready, *said] = seen.early
    found = [row for row in seen.rows if row["pid"] == ready["pid"]]
    [read] = [fact for fact in said if fact["did"] == "read"]
    assert (read["fd"], read["path"], read["ret"]) in [
        (r["arg_fd"], r.get("fd_name"), r["retval"]) for r in found if r["event"] == "read"
    ]
    for fact in said:
        if fact["did"] != "read":
            tuple_ = f"127.0.0.1:{fact['local_port']}->127.0.0.1:{fact['remote_port']}"
            told = [(r.get("fd_name"), r["retval"]) for r in found if r["event"] == fact["did"]]
            assert (tuple_, fact["ret"]) in told
