"""What a process makes up, or a race makes of it, is never recorded as what the kernel told."""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from live_support import BTF, Recording, Row, recording, rows
from workload_support import Fact, Workloads

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not BTF.exists(), reason=f"this kernel has no {BTF}"),
]

EVENTS = "process,setuid,connect,recvfrom,recvmsg,sendmsg,bind,mmap"
PART_BYTES = 4095
"""What is taken of a variable or an argument at once."""
MADE_UP = "198.51.100.7"
NOBODY = 65534
PROCESSES, THREADS = 600, 8


class Seen(NamedTuple):
    """One recording, and what was done meanwhile."""

    rows: list[Row]
    high: list[Fact]
    together: list[Fact]
    arguments: dict[str, list[str]]

    def execution(self, name: str) -> Row:
        """The execution whose first argument this is, failed or not."""
        [row] = [r for r in self.rows if (r.get("arg_argv") or [None])[0] == name]
        return row


def execute(program: str, arguments: list[str], variables: dict[str, str], uid: int = 0) -> None:
    """Execute a program, or try to, in a process of its own."""
    pid = os.fork()
    if not pid:
        try:
            if uid:
                os.setuid(uid)
            os.execve(program, arguments, variables)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)


def receive_nothing() -> None:
    """Ask for data that is not there, with an address lying where the kernel would put one."""
    import ctypes

    address = b"\x02\x00" + (4444).to_bytes(2) + socket.inet_aton(MADE_UP) + bytes(8)
    place, size = ctypes.create_string_buffer(address, 16), ctypes.c_int(16)
    data = ctypes.create_string_buffer(16)
    libc = ctypes.CDLL(None)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(data), 16)
    message = (ctypes.c_void_p * 7)(
        ctypes.addressof(place), 16, ctypes.addressof(vector), 1, None, 0, 0
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        own.setblocking(False)
        assert libc.recvfrom(own.fileno(), data, 16, 0, place, ctypes.byref(size)) == -1
        assert libc.recvmsg(own.fileno(), ctypes.byref(message), 0) == -1
        assert libc.sendmsg(own.fileno(), ctypes.byref(message), socket.MSG_OOB) == -1


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, workloads: Workloads) -> Seen:
    """All of it under one recording."""
    folder = tmp_path_factory.mktemp("untrue")
    child = workloads.child
    for name in ("high", "together"):
        workloads.path(name)
    arguments = {
        "many": ["many", *(f"a{i}" for i in range(300))],
        "long": ["long", *("z" * 3000 for _ in range(3)), "last"],
        "huge": [
            "huge",
            *(f"{n:04}" for n in range(400)),
            *("z" * 4000 for _ in range(5)),
            *map(str, range(40)),
        ],
        "longer": ["longer", "y" * 6000, "last"],
    }
    running = Recording(folder / "r.kcap", "--source", "bpf", "--events", EVENTS)
    try:
        hidden = {f"V{i:04}": "x" for i in range(3000)} | {"LD_PRELOAD": "/hidden.so"}
        execute(child, ["hidden"], hidden)
        start = "x" * (PART_BYTES - len("A="))
        for shift in (-1, 0, 1):
            inside = start[: len(start) + shift] if shift <= 0 else start + "x"
            execute(child, [f"inside{shift}"], {"A": f"{inside}LD_PRELOAD=/made/up.so"})
            execute(child, [f"behind{shift}"], {"A": inside, "LD_PRELOAD": "/true.so"})
        for words in arguments.values():
            execute(str(folder / "nothing"), words, {})
        execute(child, ["nobody"], {}, NOBODY)
        receive_nothing()
        high = workloads.run("high")
        together = workloads.run("together", PROCESSES, THREADS)
        running.stop(3)  # what was cut is told
    finally:
        running.process.kill()
        running.process.wait()
    return Seen(rows(folder / "r.kcap"), high, together, arguments)


def test_a_variable_behind_many(seen: Seen) -> None:
    """However many variables come before it, LD_PRELOAD is seen."""
    assert seen.execution("hidden")["arg_env"] == ["LD_PRELOAD=/hidden.so"]


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_variable_inside_another(seen: Seen, shift: int) -> None:
    """The rest of a long value is no variable, wherever it is cut; what stands behind it is one."""
    assert not seen.execution(f"inside{shift}").get("arg_env")
    assert seen.execution(f"behind{shift}")["arg_env"] == ["LD_PRELOAD=/true.so"]


@pytest.mark.parametrize("name", ["many", "long", "huge"])
def test_what_a_failed_execution_was_given(seen: Seen, name: str) -> None:
    """Of arguments beyond 8 KiB the first and the last 4 KiB are told, and how much is between."""
    row = seen.execution(name)
    words = seen.arguments[name]
    whole = "\0".join(words) + "\0"
    assert row["arg_argv_bytes"] == len(whole)
    told = row["arg_argv"]
    if name != "huge":  # the first part ends with an argument, so it may be longer
        assert told == words
        return
    first, missing, last = re.split(r"…\[(\d+) bytes\]…", "\0".join(told) + "\0")
    assert len(first) >= PART_BYTES
    assert len(last) == PART_BYTES + 1
    assert len(first) + int(missing) + len(last) == len(whole)
    assert whole.startswith(first)
    assert whole.endswith(last)


def test_an_argument_that_is_too_long(seen: Seen) -> None:
    """An argument that is longer than what is taken of a string is cut, and that is counted."""
    told = seen.execution("longer")["arg_argv"]
    assert told[1:] == ["y" * PART_BYTES, "last"]


def test_an_address_that_the_kernel_did_not_tell(seen: Seen) -> None:
    """Where nothing came, nothing came from anywhere; what a process asks to send to is told."""
    calls = [r for r in seen.rows if r["pid"] == os.getpid() and r["event"] != "bind"]
    failed = {r["event"]: r for r in calls if r.get("retval", 0) < 0}
    for name in ("recvfrom", "recvmsg"):
        assert MADE_UP not in str(failed[name])
    assert MADE_UP in str(failed["sendmsg"])


def test_an_address_in_the_upper_half(seen: Seen) -> None:
    """The result of a 32-bit mmap is the address, not a negative number."""
    [fact] = seen.high
    assert fact["ret"] >= 1 << 31
    found = [r["retval"] for r in seen.rows if r["pid"] == fact["pid"] and r["event"] == "mmap"]
    assert fact["ret"] in found


def test_threads_that_end_together(seen: Seen) -> None:
    """Of threads that end at the same moment exactly one is the last of its process."""
    ends = [r for r in seen.rows if r["event"] == "sched_process_exit"]
    last = Counter(r["pid"] for r in ends if r["arg_process_group_exit"])
    every = Counter(r["pid"] for r in ends)
    children = [fact["child"] for fact in seen.together]
    assert {every[pid] for pid in children} == {THREADS + 1}
    assert [pid for pid in children if last[pid] != 1] == []


def test_another_user(seen: Seen) -> None:
    """A process that became another user has that one's name, from the call on."""
    row = seen.execution("nobody")
    later = [r for r in seen.rows if r["pid"] == row["pid"] and r["ord"] > row["ord"]]
    assert later
    told = {(r["uid"], r.get("user")) for r in [row, *later]}
    assert told == {(NOBODY, pwd.getpwuid(NOBODY).pw_name)}


@pytest.mark.parametrize(("count", "code"), [(100, 0), (300, 3)])
def test_a_variable_that_was_asked_for(
    count: int, code: int, tmp_path: Path, workloads: Workloads
) -> None:
    """A variable is found behind 10 KiB of others; where no room is left, that is told."""
    path = tmp_path / "r.kcap"
    variables = {f"B{i:03}": "v" * 100 for i in range(count)} | {"WANTED": "yes"}
    words = ("--source", "bpf", "--events", "process", "--env", "WANTED")
    with recording(path, *words, "--scope", f"tree={os.getpid()}", codes=(code,)):
        execute(workloads.child, ["behind"], variables)
    [row] = [r for r in rows(path) if (r.get("arg_argv") or [None])[0] == "behind"]
    assert row.get("arg_env") == (["WANTED=yes"] if not code else [])
