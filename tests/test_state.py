"""The process table, and the identity columns that come out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import DamagedError
from kcap.model import catalogue
from kcap.model.batch import Batch, Column, concat
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import TypeClass
from kcap.model.side import Side, Snapshot, SourceInfo
from kcap.state import State, process_key
from kcap.state.follow import ACTIONS

HOST = SourceInfo("test", host="alpha", boot_id="b005", origin="0" * 32)
OTHER = SourceInfo("test", host="beta", origin="1" * 32)
START_NS = 5_000_000_000

Row = Mapping[str, Any]


def make_batch(rows: Sequence[Row], *before: Side) -> Batch:
    """Rows, as values by column base, to a batch; rows may have different columns."""
    builder = RecordBuilder()
    layouts = {}
    for row in rows:
        names = tuple(row)
        if names not in layouts:
            layouts[names] = builder.layout([Field(n, catalogue.home(n)) for n in names])
        builder.add(layouts[names], list(row.values()))
    return builder.finish(before=before)


def event(action: str, pid: int, **more: Any) -> dict[str, Any]:
    return {"action": action, "pid": pid, "tid": pid, "source": HOST.id, "ts": 1, **more}


def fork(pid: int, child: int, start_ns: int, **more: Any) -> dict[str, Any]:
    said = {"arg_child_pid": child, "arg_child_tid": child, "arg_start_time": start_ns}
    return event("process_fork", pid, **said, **more)


SHELL = event(
    "process_rundown",
    10,
    ppid=1,
    process_name="sh",
    exe="/bin/sh",
    cmdline="sh -i",
    user="ann",
    uid=1000,
    process_start_ns=START_NS,
    provenance="cmdline:procfs,exe:procfs",
)
SHELL_KEY = process_key("b005", 10, START_NS)


def resolved(state: State, *rows: Row) -> list[dict[str, object]]:
    return state.update(make_batch(rows, HOST), resolve=True).to_pylist()


# What the events do


def test_process_key_is_a_hash_of_machine_pid_and_centiseconds() -> None:
    """The hashed text is as documented; the rest of the start time below 10 ms does not count."""
    expected = hashlib.sha256(b"b005\n10\n512").hexdigest()[:16]

    assert process_key("b005", 10, 5_120_000_000) == expected
    assert process_key("b005", 10, 5_129_999_999) == expected
    assert process_key("b005", 10, 5_130_000_000) != expected
    assert process_key("b005", 10, None) is None


def test_machine_is_the_boot_then_the_host_then_the_source() -> None:
    unknown = SourceInfo("test")

    assert State.machine(HOST) == "b005"
    assert State.machine(OTHER) == "beta"
    assert State.machine(unknown) == unknown.id


def test_a_child_is_its_parent_until_it_executes() -> None:
    """A fork inherits, with that provenance; an exec has the new identity in its own row."""
    execute = event(
        "process_start", 11, process_name="ls", arg_pathname="/bin/ls", arg_argv=["ls", "-l"]
    )
    rows = resolved(State(), SHELL, fork(10, 11, START_NS + 10**9), event("file_open", 11), execute)

    child, started = rows[2], rows[3]
    assert child["exe"] == "/bin/sh"
    assert child["ppid"] == 10
    assert child["parent_name"] == "sh"
    assert child["process_key"] == process_key("b005", 11, START_NS + 10**9)
    assert child["provenance"] == (
        "cmdline:inherited,exe:inherited,parent_name:event,ppid:event,process_key:event,"
        "process_name:inherited,uid:inherited,user:inherited"
    )
    assert (started["exe"], started["cmdline"]) == ("/bin/ls", "ls -l")
    assert started["process_key"] == child["process_key"]
    assert started["uid"] == 1000


def test_an_exec_of_which_nothing_is_known_leaves_no_old_identity() -> None:
    rows = resolved(State(), SHELL, event("process_start", 10), event("file_open", 10))

    for row in rows[1:]:
        assert {"exe", "cmdline", "process_name"}.isdisjoint(row)
        assert row["process_key"] == SHELL_KEY


def test_an_exit_row_and_later_ones_still_have_the_identity() -> None:
    """An exited process stays known until its pid is used again; then it is gone."""
    state = State()
    stop = event("process_stop", 10, arg_exit_code=7, arg_signal_code=0, ts=99)
    reused = START_NS + 10**10
    rows = resolved(
        state, SHELL, stop, event("file_close", 10), fork(1, 10, reused), event("file_open", 10)
    )

    assert [row.get("exe") for row in rows] == ["/bin/sh"] * 3 + [None] * 2
    assert rows[4]["process_key"] == process_key("b005", 10, reused)
    resolved(state, stop)
    gone = state.process(10)
    assert gone is not None
    assert (gone.exited, gone.end_ns, gone.exit_code) == (True, 99, 7)


def test_threads_do_not_fork_stop_or_rename_processes() -> None:
    """Rows of a thread that is not the first leave the process as it is."""
    state = State()
    thread = {"tid": 12}
    resolved(
        state,
        SHELL,
        event("process_fork", 10, arg_child_pid=10, arg_child_tid=12),
        event("process_rename", 10, arg_comm="worker") | thread,
        event("process_stop", 10) | thread,
        event("process_setuid", 10, arg_ruid=5) | thread,
        event("process_stop", 10, arg_process_group_exit=False),
    )

    shell = state.process(10)
    assert shell is not None
    assert (shell.name, shell.exited, shell.uid) == ("sh", False, 1000)
    resolved(state, event("process_stop", 10, arg_process_group_exit=True) | thread)
    shell = state.process(10)
    assert shell is not None
    assert shell.exited


def test_renames_and_other_users() -> None:
    """A new user id takes the old user's name away; a call that failed changes nothing."""
    state = State()
    rows = resolved(
        state,
        SHELL,
        event("process_rename", 10, arg_comm="bash"),
        event("process_setuid", 10, arg_ruid=0),
        event("process_setuid", 10, arg_new_cred={"Uid": 33, "Gid": 34}),
        event("process_setuid", 10, arg_new_cred={"Uid": "no number"}),
        event("process_setuid", 10, arg_ruid=99, retval=-1),
        event("process_setuid", 10, arg_ruid=-1, arg_rgid=0xFFFFFFFF, retval=0),
        event("process_setuid", 10, arg_ruid=7, uid=7, user="eve", provenance="user:passwd"),
    )

    assert [r["process_name"] for r in rows] == ["sh"] + ["bash"] * 7
    assert [r["uid"] for r in rows] == [1000, 1000, 0, 33, 33, 33, 33, 7]
    assert [r.get("user") for r in rows] == ["ann", "ann", *[None] * 5, "eve"]
    last = state.process(10)
    assert last is not None
    assert last.gid == 34
    assert last.provenance[5] == "passwd"


def test_what_the_source_gave_is_never_overwritten() -> None:
    """Filled values stand only where there was none, and provenance names just those."""
    given_row = event(
        "file_open", 10, exe="/given", process_key="k", provenance="exe:runtime", uid=5
    )
    row = resolved(State(), SHELL, given_row)[1]

    assert (row["exe"], row["process_key"], row["uid"]) == ("/given", "k", 5)
    assert "user" not in row, "ann is user 1000, not 5"
    assert row["cmdline"] == "sh -i"
    assert row["provenance"] == "cmdline:procfs,exe:runtime,ppid:event,process_name:event"


def test_a_start_time_in_the_row_decides() -> None:
    """Another start time is another process; the key then comes from the row."""
    other_ns = START_NS + 10**9
    rows = resolved(
        State(),
        SHELL,
        event("file_open", 10, process_start_ns=START_NS),
        event("file_open", 10, process_start_ns=other_ns),
        event("file_open", 77, process_start_ns=other_ns),
    )

    assert [r.get("exe") for r in rows] == ["/bin/sh", "/bin/sh", None, None]
    assert rows[1]["process_key"] == SHELL_KEY
    assert rows[2]["process_key"] == process_key("b005", 10, other_ns)
    assert rows[3]["process_key"] == process_key("b005", 77, other_ns)


def test_a_fork_of_a_process_that_was_just_seeded_keeps_it() -> None:
    """/proc was read after the fork and before its event: same process, centiseconds apart."""
    state = State()
    resolved(state, SHELL, fork(1, 10, START_NS + 19_000_000))
    kept = state.process(10)
    resolved(state, fork(1, 10, START_NS + 21_000_000))
    replaced = state.process(10)

    assert kept is not None
    assert (kept.exe, kept.process_key) == ("/bin/sh", SHELL_KEY)
    assert replaced is not None
    assert replaced.exe is None


def test_the_name_of_a_later_user_of_the_parent_pid_is_not_the_parents() -> None:
    late = START_NS + 10**10
    rows = resolved(
        State(),
        SHELL,
        fork(10, 11, START_NS + 10**9),
        event("process_stop", 10),
        event("file_open", 11),
        fork(1, 10, late),
        event("process_start", 10, process_name="evil"),
        event("file_open", 11),
    )

    assert rows[3]["parent_name"] == "sh"
    assert rows[6]["ppid"] == 10
    assert "parent_name" not in rows[6]


def test_machines_are_kept_apart() -> None:
    """The same pid on two hosts is two processes; a snapshot replaces only its own machine."""
    state = State()
    there = {"source": OTHER.id, "process_name": "init", "exe": "/sbin/init"}
    both = [SHELL, event("process_rundown", 10) | there]
    asked = [event("file_open", 10), event("file_open", 10, source=OTHER.id)]
    rows = state.update(make_batch(both + asked, HOST, OTHER), resolve=True).to_pylist()

    assert [r["exe"] for r in rows[2:]] == ["/bin/sh", "/sbin/init"]
    only_here = State()
    only_here.update(make_batch([SHELL | {"exe": "/bin/dash"}], HOST))
    state.update(Batch(0, {}, (only_here.snapshot(),)))
    here, other = state.process(10, "b005"), state.process(10, "beta")
    assert here is not None
    assert other is not None
    assert (here.exe, other.exe) == ("/bin/dash", "/sbin/init")


def test_a_full_table_forgets_the_oldest_exited_processes_first() -> None:
    """Evictions are counted, entries and bytes are both limited, living processes go last."""
    state = State(entries_max=8)
    rows = [fork(1, pid, pid * 10**9) for pid in range(2, 8)]
    rows += [event("process_stop", pid, ts=100 - pid) for pid in (3, 4, 5)]
    resolved(state, *rows, *(fork(1, pid, pid * 10**9) for pid in (20, 21, 22)))

    assert state.evicted == 2
    assert state.process(4) is None, "5 ended first, 4 next"
    assert state.process(5) is None
    assert all(state.process(pid) for pid in (2, 3, 6, 7, 20, 21, 22))
    small = State(bytes_max=100_000)
    resolved(small, *(event("process_start", p, cmdline="x" * 1000) for p in range(2000)))
    assert small.evicted > 1800
    assert small.process(0) is None
    assert small.process(1999) is not None


def test_a_process_table_that_is_damaged_is_refused() -> None:
    """Only a KcapError comes out of a snapshot of wrong classes or without ids."""
    number = Column(TypeClass.I64, pa.array([1]))
    flag = Column(TypeClass.BOOL, pa.array([True]))

    for columns in ({"name": number}, {"pid": number, "exited": number}, {"exited": flag}):
        with pytest.raises(DamagedError):
            State().restore(Snapshot({"processes": Batch(1, columns)}))
    State().restore(Snapshot({"processes": Batch(1, {"pid": number})}))


# Properties of any stream

PIDS = st.integers(0, 6)
TEXTS = st.sampled_from(["a", "b", "c:d,e"])
TAGS = st.sampled_from(["", "exe:procfs", "exe:procfs,user:passwd", "uid:x,ppid:y"])
STARTS = st.sampled_from([10**9, 2 * 10**9, 3 * 10**9, -1])
MAYBE = {
    "ppid": PIDS,
    "process_name": TEXTS,
    "exe": TEXTS,
    "cmdline": TEXTS,
    "user": TEXTS,
    "uid": PIDS,
    "session": PIDS,
    "container_id": TEXTS,
    "provenance": TAGS,
    "process_start_ns": STARTS,
    "arg_child_pid": PIDS,
    "arg_parent_pid": PIDS,
    "arg_start_time": STARTS,
    "arg_pathname": TEXTS,
    "arg_argv": st.lists(TEXTS, max_size=2),
    "arg_comm": TEXTS,
    "arg_ruid": PIDS,
    "retval": st.sampled_from([0, -1]),
    "arg_exit_code": PIDS,
    "arg_process_group_exit": st.booleans(),
    "tid": PIDS,
    "source": st.sampled_from([HOST.id, OTHER.id, "unknown"]),
}
ROWS = st.lists(
    st.fixed_dictionaries(
        {"action": st.sampled_from([*sorted(ACTIONS), "file_open"]), "pid": PIDS},
        optional={"ts": PIDS, **MAYBE},
    ),
    max_size=24,
)
ENTRIES = st.sampled_from([2, 4, 100])


def contents(state: State) -> list[dict[str, object]]:
    return state.snapshot().tables["processes"].to_pylist()


@given(ROWS, st.lists(st.integers(0, 24), max_size=4), ENTRIES)
def test_batching_does_not_matter(rows: list[Row], cuts: list[int], entries: int) -> None:
    """However the stream is cut into batches, down to single rows: same state, same columns."""
    whole, parts = State(entries_max=entries), State(entries_max=entries)
    batch = make_batch(rows, HOST, OTHER)
    at_once = whole.update(batch, resolve=True)
    edges = sorted({0, len(rows), *(min(c, len(rows)) for c in cuts)})
    pieces = [batch.slice(a, b) for a, b in pairwise(edges)] or [batch]
    in_parts = concat([parts.update(piece, resolve=True) for piece in pieces])

    assert in_parts.to_pylist() == at_once.to_pylist()
    assert contents(parts) == contents(whole)
    assert parts.evicted == whole.evicted


@given(ROWS, st.integers(0, 24), ENTRIES)
def test_snapshot_and_events_since_are_the_state(rows: list[Row], cut: int, entries: int) -> None:
    """A restored snapshot is the state it was taken from, then and after any further events."""
    state, restored = State(entries_max=entries), State(entries_max=entries)
    batch = make_batch(rows, HOST, OTHER)
    cut = min(cut, len(rows))
    first, rest = batch.slice(0, cut), batch.slice(cut, len(rows)).with_before([HOST, OTHER])
    state.update(first)
    restored.restore(state.snapshot())

    assert contents(restored) == contents(state)
    assert (
        restored.update(rest, resolve=True).to_pylist()
        == state.update(rest, resolve=True).to_pylist()
    )
    assert contents(restored) == contents(state)


@given(ROWS, ENTRIES)
def test_a_replay_has_the_state_of_the_recording(rows: list[Row], entries: int) -> None:
    """Following the resolved events gives the state that resolving them gave."""
    recording, replay = State(entries_max=entries), State(entries_max=entries)
    batch = make_batch(rows, HOST, OTHER)
    stored = recording.update(batch, resolve=True)

    assert replay.update(stored) is stored
    assert contents(replay) == contents(recording)
    for before, after in zip(batch.to_pylist(), stored.to_pylist(), strict=True):
        assert {**after, **before, "provenance": 0} == {**after, "provenance": 0}


def test_the_restored_state_matters() -> None:
    """Negative control: without the snapshot, the events since give another state."""
    state, empty = State(), State()
    state.update(make_batch([SHELL], HOST))
    rest = make_batch([fork(10, 11, START_NS + 10**9)], HOST)
    state.update(rest)
    empty.update(rest)

    assert contents(state) != contents(empty)
