"""Threads and descriptors as system calls change them, and what every row then shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kcap.model import catalogue
from kcap.model.batch import EMPTY, Batch, concat
from kcap.model.builder import Field, RecordBuilder
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.readers.scap import ScapReader
from kcap.state import State, fds, processes, threads, users
from kcap.state.effects import EFFECTS, kind_of
from kcap.state.fds import Descriptor, Target
from kcap.state.processes import Process
from kcap.state.state import FDS, PROCESSES, THREADS, USERS
from kcap.state.threads import Thread

HOST = SourceInfo("scap", host="box", origin="0" * 32)
OTHER = SourceInfo("other", host="box", origin="1" * 32)
O_CLOEXEC, O_DIRECTORY, CLONE_THREAD = 0x1000, 0x400, 0x2000
AT_CWD = -100

Row = dict[str, Any]


def call(event: str, tid: int = 10, retval: int | None = 0, **arguments: Any) -> Row:
    """A call that has returned."""
    named = {f"arg_{name}": value for name, value in arguments.items()}
    return {"source": HOST.id, "event": event, "tid": tid, "retval": retval, "ts": 5, **named}


def batch_of(rows: Sequence[Row], *before: Any) -> Batch:
    builder = RecordBuilder()
    for row in rows:
        known = {name: value for name, value in row.items() if value is not None}
        layout = builder.layout([Field(name, catalogue.home(name)) for name in known])
        builder.add(layout, list(known.values()))
    return builder.finish(before=before)


def begun() -> State:
    """A machine with a shell of two threads that has a file open."""
    state = State()
    procfs = tuple("procfs" if fact != "start_ns" else None for fact in processes.FACTS)
    shell = Process(
        10, ppid=1, name="sh", exe="/bin/sh", cmdline="sh -i", cwd="/home", user="root", uid=0,
        gid=0, session=10, container_id="c", provenance=procfs,
    )  # fmt: skip
    tables = {
        PROCESSES: processes.to_batch([("box", [shell])]),
        THREADS: threads.to_batch(
            [("box", [Thread(10, 10, "sh", 1, provenance="procfs"), Thread(11, 10, "worker", 10)])]
        ),
        FDS: fds.to_batch([("box", [Descriptor(10, 3, "file", "/etc/hosts", 7, 1)])]),
        USERS: users.to_batch([("box", {0: "root", 5: "games"})]),
    }
    state.update(EMPTY.with_before([HOST, Snapshot(tables)]))
    return state


def shown(state: State, *rows: Row) -> list[Row]:
    return state.update(batch_of(rows), resolve=True).to_pylist()


def names(state: State, *rows: Row) -> list[tuple[object, object]]:
    return [(row.get("fd_type"), row.get("fd_name")) for row in shown(state, *rows)]


# Descriptors


def test_every_effect_is_known() -> None:
    """What the catalogue says an event does is done by a handler or is nothing."""
    effects = {c.effect for calls in catalogue.calls("scap").values() for c in calls}
    assert effects - {"use"} <= set(EFFECTS)
    assert set(EFFECTS) <= effects
    assert set(catalogue.calls("scap")) <= set(catalogue.events("scap"))


def test_open_read_close() -> None:
    """An opening shows the new name, a closing still the old one, what comes after none."""
    assert names(
        begun(),
        call("read", fd=4),
        call("open", retval=4, name="/a/b"),
        call("read", fd=4),
        call("read", tid=11, fd=4),
        call("close", fd=4),
        call("read", fd=4),
    ) == [
        (None, None),
        ("file", "/a/b"),
        ("file", "/a/b"),
        ("file", "/a/b"),
        ("file", "/a/b"),
        (None, None),
    ]


def test_failed_calls_change_nothing() -> None:
    """A failed opening shows what it would have opened; a failed closing closes nothing."""
    state = begun()
    found = names(
        state, call("open", retval=-2, name="x"), call("close", retval=-9, fd=3), call("read", fd=3)
    )
    assert found == [(None, "/home/x"), ("file", "/etc/hosts"), ("file", "/etc/hosts")]
    assert state.descriptor(10, 4) is None


@pytest.mark.parametrize(
    ("name", "dirfd", "expected"),
    [
        ("x", AT_CWD, "/home/x"),
        ("../x/./y//z", AT_CWD, "/x/y/z"),
        ("/x/../y", 8, "/y"),
        ("x", 8, "/srv/x"),
        ("x", 9, "x"),
        ("./x", 9, "x"),
        ("/", AT_CWD, "/"),
        ("//x", AT_CWD, "/x"),
    ],
)
def test_paths(name: str, dirfd: int, expected: str) -> None:
    """A path begins in the working directory or in the descriptor's; an unknown one stays."""
    state = begun()
    opened = call("open", retval=8, name="/srv", flags=O_DIRECTORY)
    found = names(state, opened, call("openat", retval=5, dirfd=dirfd, name=name))
    assert found == [("directory", "/srv"), ("file", expected)]


def test_chdir() -> None:
    """The working directory moves with the process, and with it what paths mean."""
    state = begun()
    shown(
        state,
        call("chdir", path="user"),
        call("open", retval=4, name="a"),
        call("chdir", retval=-2, path="/gone"),
        call("open", retval=5, name="a"),
        call("open", retval=6, name="/srv", flags=O_DIRECTORY),
        call("fchdir", tid=11, fd=6),
        call("open", retval=7, name="a"),
    )
    found = [state.descriptor(10, fd) for fd in (4, 5, 7)]
    assert [t and t.name for t in found] == ["/home/user/a", "/home/user/a", "/srv/a"]


def test_duplicates() -> None:
    """A duplicate stands for the same until one of the two is closed."""
    state = begun()
    found = names(
        state,
        call("dup", retval=4, fd=3),
        call("dup2", retval=5, oldfd=4, newfd=5),
        call("fcntl", retval=6, fd=3, cmd=1),
        call("fcntl", retval=0, fd=3, cmd=3),
        call("close", fd=3),
        call("read", fd=6),
        call("dup2", retval=6, oldfd=77, newfd=6),
        call("read", fd=6),
    )
    assert found == [("file", "/etc/hosts")] * 6 + [(None, None)] * 2
    assert state.descriptor(10, 0) is None  # the result of F_SETFD is no descriptor


def test_sockets() -> None:
    """A socket has its own address once bound, both once connected; UDP that of the last data."""
    both = "10.0.0.1:4000->10.0.0.2:80"
    found = names(
        begun(),
        call("socket", retval=4, domain=2, type=1, proto=0),
        call("bind", fd=4, addr="10.0.0.1:4000"),
        call("connect", retval=-111, fd=4, tuple=both),
        call("read", fd=4),
        call("connect", retval=-115, fd=4, tuple=both),
        call("sendto", retval=3, fd=4, tuple="10.0.0.1:4000->10.0.0.9:9"),
        call("accept", retval=5, tuple="::1:1->::1:2"),
        call("socket", retval=6, domain=2, type=2, proto=0),
        call("sendto", retval=3, fd=6, tuple="10.0.0.1:5->10.0.0.2:53"),
        call("recvfrom", retval=3, fd=6, tuple="10.0.0.2:53->10.0.0.1:5"),
        call("recvfrom", retval=3, fd=6, tuple="10.0.0.3:53->10.0.0.1:5"),
    )
    assert found == [
        ("ipv4", None),
        ("ipv4", "10.0.0.1:4000"),
        ("ipv4", both),
        ("ipv4", "10.0.0.1:4000"),
        ("ipv4", both),
        ("ipv4", both),
        ("ipv6", "::1:1->::1:2"),
        ("ipv4", None),
        ("ipv4", "10.0.0.1:5->10.0.0.2:53"),
        ("ipv4", "10.0.0.1:5->10.0.0.2:53"),
        ("ipv4", "10.0.0.3:53->10.0.0.1:5"),
    ]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1.2.3.4:5->6.7.8.9:1", "ipv4"),
        ("0.0.0.0:80", "ipv4"),
        ("::1:80", "ipv6"),
        ("::1:1->2001:db8::1:2", "ipv6"),
        ("0->ffff88003aeb6000 /run/x", "unix"),
        ("/run/x", "unix"),
    ],
)
def test_kind_of(text: str, kind: str) -> None:
    """What a socket is shows in its addresses."""
    assert kind_of(text) == kind


def test_pairs_and_others() -> None:
    """Both ends of a pipe, and what has a type but no name."""
    state = begun()
    found = names(
        state,
        call("pipe", fd1=4, fd2=5, ino=9),
        call("socketpair", fd1=6, fd2=7, domain=1),
        call("eventfd", retval=8),
        call("epoll_create1", retval=9),
        call("timerfd_create", retval=10),
        call("memfd_create", retval=11, name="shm"),
        call("inotify_init", retval=-24),
    )
    kinds = ["pipe", "unix", "event", "eventpoll", "timerfd"]
    assert found == [*((k, None) for k in kinds), ("memfd", "shm"), (None, None)]
    assert state.descriptor(10, 5) == Target("pipe", None, 9)


def test_close_range() -> None:
    """Those between the two numbers end, the last of which may be the greatest."""
    state = begun()
    opened = [call("open", retval=fd, name=f"/{fd}") for fd in range(4, 9)]
    shown(state, *opened, call("close_range", first=5, last=6))
    shown(state, call("close_range", first=8, last=0xFFFFFFFF))
    assert [fd for fd in range(3, 9) if state.descriptor(10, fd)] == [3, 4, 7]


# Threads and processes


def test_thread_names() -> None:
    """A row has the name of its thread, and of its process what belongs to that."""
    rows = shown(begun(), call("read", tid=11, fd=3), call("read", tid=99, fd=3))
    assert rows[0]["process_name"] == "worker"
    assert (rows[0]["pid"], rows[0]["cmdline"], rows[0]["user"]) == (10, "sh -i", "root")
    assert rows[0]["provenance"].startswith("cmdline:procfs,")
    assert "pid:event" in rows[0]["provenance"]
    assert not {"pid", "process_name", "fd_name"} & set(rows[1])


def forked(child_first: bool) -> list[Row]:
    """A fork, seen from both sides."""
    both = [
        call("clone", retval=20, comm="sh", pid=10, exe="sh", vtid=10),
        call("clone", tid=20, retval=0, comm="kid", pid=20, ptid=10, exe="sh"),
    ]
    return both[::-1] if child_first else both


@pytest.mark.parametrize("child_first", [False, True])
def test_fork(child_first: bool) -> None:
    """A child has what its parent had, whichever of the two returns first."""
    state = begun()
    shown(state, call("open", retval=4, name="/mine"), *forked(child_first))
    assert state.descriptor(20, 4) == Target("file", "/mine")
    child = state.process(20)
    assert child is not None
    assert (child.ppid, child.exe, child.cwd, child.user, child.session) == (
        10, "/bin/sh", "/home", "root", 10,
    )  # fmt: skip
    found = names(state, call("close", fd=4), call("read", tid=20, fd=4), call("read", fd=4))
    assert found == [("file", "/mine"), ("file", "/mine"), (None, None)]
    thread = state.thread(20)
    assert thread is not None
    assert (thread.name, thread.pid) == ("kid", 20)


@pytest.mark.parametrize("child_first", [False, True])
def test_a_process_id_that_comes_again(child_first: bool) -> None:
    """The second child of a number has nothing of the first one's."""
    state = begun()
    shown(state, *forked(False), call("open", tid=20, retval=9, name="/first"))
    shown(state, call("procexit", tid=20, retval=None, status=0), *forked(child_first))
    assert state.descriptor(20, 9) is None
    assert state.descriptor(20, 3) == state.descriptor(10, 3)


def test_a_parent_in_another_namespace() -> None:
    """The result is a number there and names nobody here: the child says who it is."""
    state = begun()
    shown(state, call("clone", retval=2, comm="sh", pid=10, exe="sh", vtid=1))
    assert state.thread(2) is None
    shown(state, call("clone", tid=20, retval=0, comm="sh", pid=20, ptid=10, exe="sh", vtid=2))
    assert state.descriptor(20, 3) == Target("file", "/etc/hosts", 7, 1)


def test_threads_share() -> None:
    """A new thread is of its process: descriptors are common, the end of one ends nothing."""
    state = begun()
    made = call("clone", retval=12, comm="sh", pid=10, exe="sh", vtid=10, flags=CLONE_THREAD)
    shown(state, made, call("open", tid=12, retval=4, name="/t"))
    assert state.descriptor(10, 4) == Target("file", "/t")
    shown(state, call("procexit", tid=12, retval=None, status=0))
    assert state.descriptor(10, 4) == Target("file", "/t")
    ends = [call("procexit", tid=tid, retval=None, status=0x0300) for tid in (10, 11)]
    rows = shown(state, *ends, call("read", fd=4))
    assert [row.get("process_name") for row in rows] == ["sh", "worker", "sh"]
    assert "fd_name" not in rows[2]
    process = state.process(10)
    assert process is not None
    assert (process.exited, process.exit_code, process.signal_code) == (True, 3, None)


def test_exec() -> None:
    """Another program: its name and command line; descriptors that end with one are gone."""
    state = begun()
    rows = shown(
        state,
        call("open", retval=4, name="/kept"),
        call("open", retval=5, name="/gone", flags=O_CLOEXEC),
        call("open", retval=6, name="/undone", flags=O_CLOEXEC),
        call("fcntl", retval=0, fd=6, cmd=3, arg=0),
        call("execve", retval=-2, exe="nope", comm="sh", pid=10, filename="nope"),
        call("execve", exe="ls", args=["-l"], comm="ls", pid=10, filename="ls", uid=5, cwd="/tmp"),
        call("read", tid=10, fd=4),
    )
    assert [row["process_name"] for row in rows] == ["sh"] * 5 + ["ls"] * 2
    assert (rows[6]["exe"], rows[6]["cmdline"], rows[6]["user"]) == ("/home/ls", "ls -l", "games")
    assert [fd for fd in range(3, 7) if state.descriptor(10, fd)] == [3, 4, 6]


def test_users() -> None:
    """Who a process becomes has a name where the machine's users are known."""
    state = begun()
    rows = shown(
        state,
        call("getuid"),
        call("setresuid", ruid=0xFFFFFFFF, euid=5, suid=0xFFFFFFFF),
        call("setuid", retval=-1, uid=0),
        call("setuid", uid=77),
    )
    told = [(row["uid"], row.get("user")) for row in rows]
    assert told == [(0, "root"), (5, "games"), (5, "games"), (77, None)]


def test_renamed_thread() -> None:
    """prctl gives the calling thread another name, not with another option."""
    state = begun()
    rows = shown(
        state,
        call("prctl", tid=11, option=15, arg2_str="new"),
        call("prctl", tid=11, option=16, arg2_str="other"),
        call("read", fd=3),
    )
    assert [row["process_name"] for row in rows] == ["new", "new", "sh"]


# The two halves of a call


def test_halves() -> None:
    """An enter changes nothing and shows what was before; the exit counts."""
    state = begun()
    found = names(
        state,
        call("close", fd=3, retval=None) | {"direction": "enter"},
        call("close", fd=3) | {"direction": "exit"},
        call("read", fd=3, retval=None) | {"direction": "enter"},
        call("open", name="/x", retval=4) | {"direction": "exit"},
        call("procexit", tid=11, retval=None, status=0) | {"direction": "enter"},
    )
    assert found == [
        ("file", "/etc/hosts"), ("file", "/etc/hosts"), (None, None), ("file", "/x"), (None, None),
    ]  # fmt: skip
    thread = state.thread(11)
    assert thread is not None
    assert thread.exited


def test_other_sources_are_left_alone() -> None:
    """Events of the same names of a source that the catalogue says nothing of change nothing."""
    state = begun()
    state.update(EMPTY.with_before([OTHER]))
    rows = [call("open", retval=4, name="/a"), call("close", fd=3)]
    shown(state, *({**row, "source": OTHER.id} for row in rows))
    assert state.descriptor(10, 4) is None
    assert state.descriptor(10, 3) is not None


def test_what_the_source_says_stays() -> None:
    """Values that a row has are not replaced."""
    row = {**call("read", fd=3), "pid": 77, "process_name": "said"}
    (found,) = shown(begun(), row)
    assert (found["pid"], found["process_name"]) == (77, "said")


# Snapshots


def test_a_snapshot_without_threads_has_no_such_tables() -> None:
    """Tables without rows are not there, but that of the processes."""
    assert set(State().snapshot().tables) == {PROCESSES}
    assert set(begun().snapshot().tables) == {PROCESSES, THREADS, FDS, USERS}


def test_a_damaged_table_changes_nothing() -> None:
    """A snapshot that makes no sense is a loss."""
    state = begun()
    before = state.snapshot().tables[FDS].to_pylist()
    threads_table = threads.to_batch([("box", [Thread(1, 1)])])
    told = state.update(EMPTY.with_before([Snapshot({FDS: threads_table})])).before
    assert [type(side) for side in told] == [Loss]
    assert state.snapshot().tables[FDS].to_pylist() == before


def batches_of(path: Path, *, raw_pairs: bool) -> Batch:
    with path.open("rb") as stream:
        reader = ScapReader(stream, path.name, raw_pairs=raw_pairs)
        found = list(reader.batches())
    return concat([batch for batch in found if batch.rows or batch.before])


SHOWN = ("pid", "process_name", "fd_type", "fd_name", "exe", "cmdline", "user", "provenance")


@pytest.mark.parametrize("raw_pairs", [False, True])
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_cuts(data: Any, raw_pairs: bool, cuts: list[float]) -> None:
    """How a stream is cut into batches, and a restart from a snapshot, change no row."""
    whole = batches_of(data("scap/setns.scap"), raw_pairs=raw_pairs)
    state = State()
    expected = state.update(whole, resolve=True).select(SHOWN).with_before(()).to_pylist()
    places = sorted({0, whole.rows, *(int(cut * whole.rows) for cut in cuts)})
    other = State()
    found: list[Row] = []
    for start, stop in pairwise(places):
        part = whole.slice(start, stop)
        found += other.update(part, resolve=True).select(SHOWN).with_before(()).to_pylist()
        again = State()
        again.update(EMPTY.with_before([s for s in whole.before if isinstance(s, SourceInfo)]))
        again.restore(other.snapshot())
        other = again
    assert found == expected
    ours, theirs = state.snapshot().tables, other.snapshot().tables
    assert {n: t.to_pylist() for n, t in ours.items()} == {
        n: t.to_pylist() for n, t in theirs.items()
    }


def test_following_without_columns(data: Any) -> None:
    """A replay, which fills no columns, follows to the same state as an import."""
    whole = batches_of(data("scap/full_capture.scap"), raw_pairs=False)
    one, two = State(), State()
    one.update(whole, resolve=True)
    two.update(whole)
    ours, theirs = one.snapshot().tables, two.snapshot().tables
    assert {n: t.to_pylist() for n, t in ours.items()} == {
        n: t.to_pylist() for n, t in theirs.items()
    }
    assert int(np.sum([t.rows for t in ours.values()])) > 1000
