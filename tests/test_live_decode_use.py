"""What recordings of the kernel program are to the process table, to filters and to captures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.filter.filter import Filter
from kcap.model import catalogue
from kcap.model.batch import Batch, constant
from kcap.model.classes import TypeClass
from kcap.model.decode import text_of
from kcap.model.side import SourceInfo
from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.decode import FAMILY, Decoder
from kcap.readers.live.host import Clocks
from kcap.state import State
from tests.recorder_strategies import records
from tests.recorder_support import LAYOUTS, components, made, record
from tests.support import capture, read, rows_of
from tests.test_live_decode import a_socket

CLOCKS = Clocks(1_700_000_000_000_000_000, 1_000_000_000)
SOURCE = SourceInfo(FAMILY, "host", "boot", "00" * 16)
START_NS = 3_000_000_000


def batch(*items: bytes) -> Batch:
    """A batch as the recorder gives it."""
    result = Decoder(LAYOUTS, CLOCKS).batch(made(items))
    constants = {
        "kind": constant(TypeClass.STR, "event", result.rows),
        "origin": constant(TypeClass.STR, SOURCE.origin, result.rows),
        "source": constant(TypeClass.STR, SOURCE.id, result.rows),
    }
    columns = {**result.columns, **constants, "ord": result.numbers(np.arange(result.rows))}
    return Batch(result.rows, columns, (SOURCE,))


def execution(path: str, *argv: str, **fields: Any) -> bytes:
    """A program that begins."""
    block = "".join(item + "\0" for item in argv).encode()
    pieces = {2: components(path), 3: components("/work"), 4: block}
    numbers = {1: len(block), 9: 0o100755}
    return record("sched_process_exec", pieces=pieces, numbers=numbers, **fields)


def fork(child: int, *, start_ns: int = START_NS + 50_000_000, thread: bool = False) -> bytes:
    """A process, or a thread of it, is made."""
    process = 100 if thread else child
    return record("sched_process_fork", numbers={0: child, 1: process, 4: start_ns, 5: 100})


# ---- captures ----


@settings(max_examples=60)
@given(st.lists(records(), min_size=1, max_size=8))
def test_captures_hold_what_was_recorded(items: list[bytes]) -> None:
    """Every row can be written into a capture, and is read from it as it was."""
    made_batch = batch(*items)
    batches, losses = read(capture([made_batch]))
    assert rows_of([b for b in batches if b.rows]) == rows_of([made_batch])
    assert losses == []


# ---- the process table ----


def test_lives_of_processes() -> None:
    """Births, programs and deaths make the same process for all that it does."""
    state = State()
    mine = {"pid": 200, "tid": 200, "start_ns": START_NS + 50_000_000}
    state.update(
        batch(
            record("close"),
            fork(200),
            execution("/usr/bin/id", "id", "-u", **mine),
            record("sched_process_exit", numbers={0: 7 << 8, 1: 1}, **mine),
        )
    )
    process = state.process(200)
    assert process is not None
    assert (process.exe, process.cmdline, process.cwd) == ("/usr/bin/id", "id -u", "/work")
    assert (process.ppid, process.start_ns) == (99, START_NS + 50_000_000)
    assert (process.exited, process.exit_code, process.signal_code) == (True, 7, 0)


def test_threads_are_no_processes() -> None:
    """A new thread makes no process, and its end does not end one."""
    state = State()
    told = batch(
        execution("/bin/x", "x", tid=100),
        fork(300, thread=True),
        record("sched_process_exit", numbers={1: 0}, tid=300),
    )
    state.update(told)
    assert state.process(300) is None
    process = state.process(100)
    assert process is not None
    assert not process.exited


@pytest.mark.parametrize(
    ("event", "numbers", "uid", "gid"),
    [
        ("setuid", {0: 5, 6: 5 | 5 << 32}, 5, 1001),
        ("setuid", {0: 5, 6: 1000 | 5 << 32}, 1000, 1001),
        ("setgid", {0: 6, 7: 6 | 6 << 32}, 1000, 6),
        ("setreuid", {0: 7, 1: 7}, 7, 1001),
        ("setresuid", {0: 0xFFFFFFFF, 1: 7, 2: 7}, 1000, 1001),
    ],
)
def test_credentials(event: str, numbers: dict[int, int], uid: int, gid: int) -> None:
    """A change of ids is the process's from then on; of the real ones alone, as everywhere."""
    state = State()
    start = execution("/bin/x", "x", tid=100, ts_ns=1)
    state.update(batch(start, record(event, numbers=numbers, tid=100, ts_ns=2)))
    process = state.process(100)
    assert process is not None
    assert (process.uid, process.gid) == (uid, gid)


def test_failed_changes_of_credentials_change_nothing() -> None:
    """Negative control: the ids stay where the call failed."""
    state = State()
    start = execution("/bin/x", "x", tid=100, ts_ns=1)
    failed = record("setreuid", numbers={0: 7, 1: 7}, tid=100, ts_ns=2, retval=-1)
    state.update(batch(start, failed))
    process = state.process(100)
    assert process is not None
    assert process.uid == 1000


def test_identity_reaches_later_rows() -> None:
    """Rows of a process carry its program and its key, as told by its own events."""
    state = State()
    first = batch(execution("/usr/bin/nc", "nc", "-l", tid=100))
    later = batch(record("close", tid=101), record("close", pid=555, tid=555))
    state.update(first, resolve=True)
    mine, other = state.update(later, resolve=True).to_pylist()
    assert (mine["exe"], mine["cmdline"]) == ("/usr/bin/nc", "nc -l")
    assert mine["process_key"]
    assert "exe" not in other


# ---- filters ----

ROWS = {
    "opened": record(
        "openat",
        pieces={0: b"x", 2: components("/etc/shadow")},
        numbers={2: 0o1, 9: 0o100640},
        retval=3,
    ),
    "refused": record("openat", pieces={0: b"/etc/sudoers"}, retval=-13),
    "removed": record("unlink", pieces={0: b"shadow", 3: components("/etc")}),
    "connected": record("connect", pieces={3: a_socket()}),
    "accepted": record("accept4", pieces={3: a_socket(local_port=22, inode=5)}, retval=4),
    "received": record("recvfrom", pieces={3: a_socket(local_port=22, inode=5)}, ts_ns=1 << 40),
    "started": execution("/usr/bin/curl", "curl", "http://x"),
    "pipe": record("read", numbers={0: 3, 8: 9, 9: 0o10600}),
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("file.path = '/etc/shadow'", {"opened", "removed"}),
        ("file.path startswith '/etc/' and retval < 0", {"refused"}),
        ("file.name = 'sudoers' and evt.arg[pathname] = '/etc/sudoers'", {"refused"}),
        ("evt.arg[flags] contains 'O_WRONLY'", {"opened"}),
        ("action = 'file_delete'", {"removed"}),
        ("status = 'EACCES'", {"refused"}),
        ("net.dip = 10.0.0.2 and net.dport = 80", {"connected"}),
        ("net.sip = 10.0.0.1 and net.sport = 4000", {"connected"}),
        ("net.dip = 10.0.0.1 and net.dport = 22", {"accepted", "received"}),
        ("net.sip = 10.0.0.2 and net.sport = 80", {"accepted", "received"}),
        ("fd_type = 'pipe' and fd_name = 'pipe:[9]'", {"pipe"}),
        ("ps.exe = '/usr/bin/curl' and ps.args contains 'http'", {"started"}),
    ],
)
def test_filters(text: str, wanted: set[str]) -> None:
    """Fields of files, connections and programs find the recorder's events."""
    names, items = zip(*ROWS.items(), strict=True)
    rows = Filter.of(text).matching(batch(*items)).to_pylist()
    kept = Batch(len(items), batch(*items).columns).to_pylist()
    order = sorted(range(len(items)), key=lambda i: names[i] == "received")
    by_row = {str(kept[at]): names[i] for at, i in enumerate(order)}
    assert {by_row[str(row)] for row in rows} == wanted


# ---- the catalogue ----


def test_events_have_a_place_in_the_catalogue() -> None:
    """Every recorded event is known there, and so is every argument, with a class that fits."""
    known = catalogue.events(FAMILY)
    assert set(events.events()) <= set(known)
    for event in events.events().values():
        for argument in event.arguments:
            assert argument.name in catalogue.arguments(), (event.name, argument)


@pytest.mark.parametrize(
    ("event", "numbers", "argument", "text"),
    [
        ("openat", {2: 0o101}, "flags", "O_WRONLY|O_CREAT"),
        ("mmap", {2: 7}, "prot", "PROT_READ|PROT_WRITE|PROT_EXEC"),
        ("ptrace", {0: 16}, "request", "PTRACE_ATTACH"),
        ("kill", {1: 9}, "sig", "SIGKILL"),
        ("inet_sock_set_state", {0: 7}, "old_state", "TCP_CLOSE"),
        ("fcntl", {1: 1030}, "cmd", "F_DUPFD_CLOEXEC"),
        ("unshare", {0: 0x10000000}, "flags", "CLONE_NEWUSER"),
        ("read", {1: 0x7FFF0000}, "buf", "0x7fff0000"),
    ],
)
def test_numbers_have_names(event: str, numbers: dict[int, int], argument: str, text: str) -> None:
    """Flags and constants read as the kernel's headers call them."""
    row = batch(record(event, numbers=numbers)).to_pylist()[0]
    table = catalogue.decoder_of(FAMILY, event, argument)
    value = row[f"arg_{argument}"]
    assert isinstance(value, int)
    assert text_of(table, value) == text
