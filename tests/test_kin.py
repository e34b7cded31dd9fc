"""Columns of what the state knows of processes and their ancestors; scap's parents."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scap_oracle import FILES, numbers, sysdig_of
from scap_rows import rows as scap_rows

from kcap.filter import Filter
from kcap.model import catalogue
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.side import Side, SourceInfo
from kcap.opening import open_source
from kcap.replay.stages import Matching
from kcap.state.kin import ANCESTORS_MAX, Kin
from kcap.state.processes import SAME_START_NS, Process
from kcap.state.state import State

HOST = SourceInfo("test", host="alpha", boot_id="b005", origin="0" * 32)
OTHER = SourceInfo("test", host="beta", origin="1" * 32)
SCAP = SourceInfo("scap", host="box", origin="2" * 32)
SECOND_NS = 1_000_000_000

NAMES = [
    f"state:{relation}.{fact}"
    for relation in ("process", "parent", "ancestors", "lineage", "named")
    for fact in ("name", "exe", "pid", "ppid", "process_key", "exited")
]

Row = dict[str, Any]


def make_batch(rows: Sequence[Row], *before: Side) -> Batch:
    """Rows as values by column; a None is no value."""
    builder = RecordBuilder()
    for row in rows:
        known = {name: value for name, value in row.items() if value is not None}
        layout = builder.layout([Field(name, catalogue.home(name)) for name in known])
        builder.add(layout, list(known.values()))
    return builder.finish(before=before)


def event(action: str, pid: int | None, source: SourceInfo = HOST, **more: Any) -> Row:
    return {"action": action, "pid": pid, "tid": pid, "source": source.id, "ts": 1, **more}


def there(
    pid: int,
    ppid: int | None,
    name: str | None,
    start_ns: int | None = None,
    source: SourceInfo = HOST,
) -> Row:
    """A process that is described by a row of its own."""
    said = {"ppid": ppid, "process_name": name, "process_start_ns": start_ns}
    return event("process_rundown", pid, source, **said)


def fork(pid: int, child: int, start_ns: int | None, source: SourceInfo = HOST) -> Row:
    said = {"arg_child_pid": child, "arg_child_tid": child, "arg_start_time": start_ns}
    return event("process_fork", pid, source, **said)


def execute(pid: int, path: str, source: SourceInfo = HOST, **more: Any) -> Row:
    name = path.rpartition("/")[2]
    return event("process_start", pid, source, process_name=name, arg_pathname=path, **more)


def stop(pid: int, source: SourceInfo = HOST) -> Row:
    return event("process_stop", pid, source, arg_process_group_exit=True)


def clone(tid: int, child: int) -> Row:
    """The return of a fork in the parent, as .scap files have it."""
    return {"source": SCAP.id, "event": "clone", "tid": tid, "retval": child, "arg_flags": 0}


def columns(batch: Batch, names: Iterable[str] = NAMES) -> list[Row]:
    """The added columns of each row."""
    return batch.select(names).to_pylist()


def shown(*rows: Row, names: Sequence[str] = NAMES) -> list[Row]:
    return columns(Kin(names).update(make_batch(rows, HOST, OTHER)), names)


# The reference: one row at a time, in plain Python


def reference(
    batches: Iterable[Batch],
    first: Iterable[Batch] = (),
    *,
    later_too: bool = False,
    early: bool = False,
) -> list[Row]:
    """What each row shall show.

    Args:
        batches: The stream.
        first: What comes before it.
        later_too: Negative control: take whoever has the parent's id.
        early: Negative control: show the state as it was before the row.
    """
    state, found = State(), []
    for batch in first:
        state.update(batch)
    for batch in batches:
        if not batch.rows:
            state.update(batch)
        for i in range(batch.rows):
            one = batch.slice(i, i + 1)
            row = one.to_pylist()[0]
            if not early:
                state.update(one)
            (machine,), _ = state.machines_of(one)
            found.append(_row(state, machine, row, later_too=later_too))
            if early:
                state.update(one)
    return found


def _row(state: State, machine: str, row: Row, *, later_too: bool) -> Row:
    own = None if row.get("pid") is None else state.process(row["pid"], machine)
    start_ns = row.get("process_start_ns")
    if own and None not in (own.start_ns, start_ns):
        own = own if abs(own.start_ns - start_ns) < SAME_START_NS else None
    ancestors: list[Process] = []
    child, ppid = own, row.get("ppid")
    while len(ancestors) < ANCESTORS_MAX:
        if child is not None:
            ppid, start_ns = ppid if child.ppid is None else child.ppid, child.start_ns
        parent = None if ppid is None else state.process(ppid, machine)
        if parent is None or parent in (own, *ancestors):
            break
        if not later_too and not _may_be(parent, child, start_ns):
            break
        ancestors.append(parent)
        child, ppid = parent, None
    lists = {
        "ancestors": ancestors,
        "lineage": [own, *ancestors] if own else [],
    }
    out: Row = {}
    for name in NAMES:
        relation, _, fact = name.removeprefix("state:").partition(".")
        if relation in lists:
            value: Any = [getattr(process, fact) for process in lists[relation]]
            value = value if any(v is not None for v in value) else None
        else:
            pid = row.get("arg_pid")
            one_of = {
                "process": own,
                "parent": next(iter(ancestors), None),
                "named": None if pid is None else state.process(pid, machine),
            }
            process = one_of[relation]
            value = getattr(process, fact, None)
        if value is not None:
            out[name] = value
    return out


def _may_be(parent: Process, child: Process | None, start_ns: int | None) -> bool:
    if child is not None and child.parent_key is not None:
        return parent.process_key == child.parent_key
    if parent.start_ns is None or start_ns is None:
        return True
    return parent.start_ns - start_ns < SAME_START_NS


PIDS = st.integers(1, 6)
STARTS = st.none() | st.integers(0, 8).map(lambda s: s * SECOND_NS)
SOURCES = st.sampled_from([HOST, HOST, OTHER])
NAME = st.none() | st.sampled_from(["sh", "cron", "ssh"])
ROWS = st.one_of(
    st.builds(fork, PIDS, PIDS, STARTS, SOURCES),
    st.builds(execute, PIDS, st.sampled_from(["/bin/ls", "/bin/cat"]), SOURCES),
    st.builds(stop, PIDS, SOURCES),
    st.builds(there, PIDS, st.none() | PIDS, NAME, STARTS, SOURCES),
    st.builds(
        event,
        st.just("file_open"),
        st.none() | PIDS,
        SOURCES,
        ppid=st.none() | PIDS,
        process_start_ns=STARTS,
    ),
)


@settings(max_examples=200)
@given(st.lists(ROWS, min_size=1, max_size=30), st.lists(st.integers(0, 30), max_size=4))
def test_rows_show_the_state_of_their_moment(rows: list[Row], cuts: list[int]) -> None:
    """However a stream is cut into batches, each row shows what a look at the state tells."""
    batch = make_batch(rows, HOST, OTHER)
    kin = Kin(NAMES)
    borders = [0, *sorted(min(c, batch.rows) for c in cuts), batch.rows]
    parts = [batch.slice(a, b) for a, b in pairwise(borders)]
    parts = [batch.slice(0, 0).with_before(batch.before), *(p.with_before(()) for p in parts)]

    found = [row for part in parts for row in columns(kin.update(part))]

    assert found == reference([batch])


SAMPLES = [
    ("scap/full_capture.scap", 0, 2_500),
    ("scap/nginx.scap", 21_000, 22_500),
    ("fibratus/v1.6.0-test.kcap", 51_400, 53_000),
    ("tracee/tracee_event_dump_2022-10.gob", 0, 2_500),
]
"""Parts in which processes begin and end: first row, and the one after the last."""


@pytest.mark.parametrize(("name", "start", "stop"), SAMPLES)
def test_samples_show_the_state_of_their_moment(
    name: str, start: int, stop: int, data: Callable[[str], Path]
) -> None:
    """Real streams show it in batches of any size, too; the moment before is told apart."""
    _agree(data(name), start, stop)


def test_a_capture_shows_the_state_of_its_moment(fixtures: Path) -> None:
    """So does a capture with its own states."""
    _agree(fixtures / "first.kcap", 0, 2_500)


def _agree(path: Path, start: int, stop: int) -> None:
    first, part = _parts(path, start, stop)
    expected = reference(part, first)
    for size in (7, 1 << 20):
        kin = Kin(NAMES)
        for batch in first:
            kin.update(batch)
        cut = [b.slice(i, i + size) for b in part for i in range(0, max(b.rows, 1), size)]
        assert [row for batch in cut for row in columns(kin.update(batch))] == expected
    assert any(NAMES[0] in row for row in expected)
    assert reference(part, first, early=True) != expected, "negative control: the row before"


def _parts(path: Path, start: int, stop: int) -> tuple[list[Batch], list[Batch]]:
    """The batches before a part of a file, and those of the part."""
    first, part, count = [], [], 0
    source = open_source(path)
    for batch in source.batches():
        at = max(start - count, 0)
        first.append(batch.slice(0, at))
        part.append(batch.slice(at, max(stop - count, at)))
        if at:
            part[-1] = part[-1].with_before(())
        count += batch.rows
    source.close()
    return first, part


# Examples


def test_an_exec_shows_the_new_program_and_an_exit_still_the_process() -> None:
    rows = shown(there(1, 0, "init"), there(5, 1, "sh"), execute(5, "/bin/ls"), stop(5))

    assert [row["state:process.name"] for row in rows] == ["init", "sh", "ls", "ls"]
    assert "state:process.exe" not in rows[1]
    assert rows[3]["state:process.exe"] == "/bin/ls"
    assert rows[3]["state:process.exited"] is True
    assert rows[3]["state:lineage.name"] == ["ls", "init"]


def test_a_process_that_an_argument_names() -> None:
    """The start of a process on Windows is an event of its creator, and names the new process."""
    made = event("process_start", 5) | {"arg_pid": 9, "arg_ppid": 5, "arg_name": "new"}
    rows = shown(there(5, 1, "sh"), made | {"arg_start_time": SECOND_NS}, event("file_open", 9))

    assert rows[1]["state:process.name"] == "sh"
    assert rows[1]["state:named.name"] == "new"
    assert rows[1]["state:named.process_key"] == rows[2]["state:process.process_key"]
    assert "state:named.name" not in rows[0]


def test_ancestors_are_those_of_the_moment() -> None:
    """An ancestor that runs another program shows it from then on, in its descendants' rows."""
    asks = event("file_open", 7)
    tree = [there(1, 0, "init"), there(5, 1, "sh"), there(7, 5, "cat")]
    rows = shown(*tree, asks, execute(1, "/sbin/upstart"), asks)

    assert rows[3]["state:ancestors.name"] == ["sh", "init"]
    assert rows[5]["state:ancestors.name"] == ["sh", "upstart"]
    assert rows[5]["state:ancestors.pid"] == [5, 1]
    assert rows[5]["state:ancestors.ppid"] == [1, 0]
    assert "state:ancestors.name" not in rows[0]


def test_a_later_user_of_the_number_is_no_parent() -> None:
    """Start times and keys tell it; the control takes whoever has the number."""
    asks = event("file_open", 7)
    rows = [there(5, 1, "sh", 10), fork(5, 7, 2 * SECOND_NS), asks, stop(5)]
    rows += [there(5, 1, "cron", 5 * SECOND_NS), asks]
    batch = make_batch(rows, HOST)

    found = shown(*rows)

    assert found[2]["state:parent.name"] == found[3 - 1]["state:ancestors.name"][0] == "sh"
    assert "state:parent.name" not in found[5]
    assert found == reference([batch])
    assert reference([batch], later_too=True)[5]["state:parent.name"] == "cron"


def test_a_row_that_ends_an_ancestor_shows_it_ended() -> None:
    """The row's own change of somebody else counts for it, and not for the row before."""
    rows = [there(5, 1, "sh", SECOND_NS), fork(5, 7, 2 * SECOND_NS), event("file_open", 7)]

    found = shown(*rows, fork(7, 5, 5 * SECOND_NS))

    assert found[2]["state:parent.name"] == "sh"
    assert "state:parent.name" not in found[3]


def test_the_parent_of_an_unknown_process_is_told_by_its_row() -> None:
    """Where the state does not know the process itself, its lineage is missing."""
    asks = event("file_open", 9, ppid=5, process_start_ns=3 * SECOND_NS)
    rows = shown(there(5, 1, "sh", SECOND_NS), asks, there(5, 1, "cron", 4 * SECOND_NS), asks)

    assert rows[1]["state:parent.name"] == "sh"
    assert rows[1]["state:ancestors.name"] == ["sh"]
    assert "state:lineage.name" not in rows[1]
    assert "state:process.name" not in rows[1]
    assert "state:parent.name" not in rows[3]


def test_ancestors_end_at_a_loop_and_at_a_limit() -> None:
    loop = [there(pid, pid % 3 + 1, f"p{pid}") for pid in (1, 2, 3)]
    long = [there(pid, pid - 1, f"p{pid}") for pid in range(1, 101)]

    assert shown(*loop)[2]["state:lineage.pid"] == [3, 1, 2]
    assert shown(there(4, 4, "self"))[0]["state:lineage.pid"] == [4]
    assert shown(*long)[99]["state:ancestors.pid"] == list(range(99, 99 - ANCESTORS_MAX, -1))
    assert len(shown(*long)[50]["state:ancestors.pid"]) == 50


def test_machines_are_not_mixed() -> None:
    rows = shown(there(5, 1, "sh"), event("file_open", 5, OTHER), event("file_open", 5))

    assert [row.get("state:process.name") for row in rows] == ["sh", None, "sh"]

    both = [there(5, 1, "sh"), there(5, 1, "cron", None, OTHER)]
    asking = [event("file_open", 9, source, ppid=5) for source in (HOST, OTHER)]
    names = [row.get("state:parent.name") for row in shown(*both, *asking)]
    assert names == [None, None, "sh", "cron"]


def test_an_unknown_fact_keeps_the_place_of_its_ancestor() -> None:
    """So the number in brackets means the same ancestor for each fact; comparing it is false."""
    rows = [there(1, 0, "init"), there(5, 1, None), there(7, 5, "cat"), event("file_open", 7)]
    batch = make_batch(rows, HOST)

    assert shown(*rows)[3]["state:ancestors.name"] == [None, "init"]
    for text, count in [
        ("ps.ancestor[1].name = 'init'", 1),
        ("ps.ancestor[2].name = 'init'", 2),
        ("ps.ancestor[1].name != 'x'", 1),
        ("not ps.ancestor[1].name != 'x'", 3),
        ("ps.ancestor[2].name != 'x'", 2),
    ]:
        assert Matching(Filter.of(text, era=1)).process(batch).rows == count, text


@pytest.mark.parametrize("name", ["process.exe", "state:uncle.exe", "state:parent.age", "state:"])
def test_what_the_state_does_not_know_can_not_be_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match="nothing that the state knows"):
        Kin([name])


# Names of parents, at import


def test_nobody_is_his_own_parent() -> None:
    rows = [there(4, 4, "self"), there(5, 4, "other"), event("file_open", 5)]
    resolved = State().update(make_batch(rows, HOST), resolve=True).to_pylist()

    assert [row.get("parent_name") for row in resolved] == [None, "self", "self"]


def test_parents_in_scap_files_have_names_until_their_number_is_used_again() -> None:
    """Without start times nothing else tells whose child it is; of the control nobody takes it."""
    asks: Row = {"source": SCAP.id, "event": "getpid", "tid": 12}
    named = {"source": SCAP.id, "event": "prctl", "retval": 0}
    rename = {"arg_option": 15, "arg_arg2_str": "daemon", "tid": 11}
    ends = {"source": SCAP.id, "event": "procexit", "tid": 11}
    story = [clone(10, 11), {**named, **rename}, clone(11, 12), asks, ends, asks]
    resolved = State().update(make_batch([*story, clone(10, 11), asks], SCAP), resolve=True)
    control = State().update(make_batch([*story, clone(10, 13), asks], SCAP), resolve=True)

    rows, others = resolved.to_pylist(), control.to_pylist()

    assert [row.get("ppid") for row in rows if row["tid"] == 12] == [11, 11, None]
    assert "parent_name" not in rows[-1]
    assert others[-1]["ppid"] == 11
    assert "process_key" not in rows[3]
    names = [row.get("parent_name") for row in others if row["tid"] == 12]
    assert names == ["daemon"] * 3


@pytest.mark.parametrize("name", FILES)
def test_parents_are_those_of_sysdig(
    name: str, data: Callable[[str], Path], program: Callable[[str], str]
) -> None:
    """Names of parents in .scap files are what sysdig prints, where it means the same.

    It takes the thread that started a thread for that one's parent, forgets a parent when it
    ends, and shows a process as its own parent that it sees first when it is forked.
    """
    path = data(f"scap/{name}.scap")
    wanted = "*\x1e%evt.num\x1f%proc.pid\x1f%proc.ppid\x1f%proc.pname\x1f%proc.name"
    command = [sysdig_of(program), "-D", "-r", str(path), "-p", wanted]
    printed = subprocess.run(command, capture_output=True, check=False, timeout=60).stdout
    records = printed.decode("utf-8", "surrogateescape").split("\x1e")[1:]
    theirs = {int(n): rest for n, *rest in (r.removesuffix("\n").split("\x1f") for r in records)}
    ended: set[int] = set()
    same = 0
    rows = scap_rows(path)
    for number, row in zip(numbers(rows), rows, strict=True):
        if row["event"] == "procexit":
            ended.add(row["tid"])
        if number == 0 or "pid" not in row:
            continue
        pid, ppid, parent, process = theirs[number]
        assert (str(row["pid"]), str(row["ppid"])) == (pid, ppid)
        ours = row.get("parent_name", "<NA>")
        if ours == parent:
            same += parent != "<NA>"
            continue
        is_thread = row["tid"] != row["pid"]
        is_first = parent == process and "parent_name" not in row
        is_gone = parent == "<NA>" and row["ppid"] in ended
        assert is_thread or is_first or is_gone, (number, ours, parent)
    assert same == SAME[name]


SAME = {
    "alpine": 6_235,
    "curl_google": 1_252,
    "files": 1_968,
    "full_capture": 5_254,
    "nginx": 25_159,
    "rename": 2_285,
    "sample": 322,
    "setns": 9_717,
    "setuid": 1_641,
    "single_ipv6_conn": 1_278,
    "tcp-client-server": 1_838,
}
"""Events of which sysdig and we print the same name of a parent."""
