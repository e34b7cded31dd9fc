"""The state of a Windows machine: processes that other processes' events describe, and handles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import capture, opened

from kcap.errors import DamagedError
from kcap.model import catalogue, naming
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Snapshot, SourceInfo
from kcap.replay.merge import Merged
from kcap.state import State
from kcap.state.handles import Handle, HandleTable, from_batch, to_batch
from kcap.state.processes import Process

HOST = SourceInfo("test", host="WIN", origin="0" * 32)
OTHER = SourceInfo("test", host="TWO", origin="1" * 32)
START_NS = 1_660_599_337_000_000_000

Row = Mapping[str, Any]


def batch_of(rows: Sequence[Row], *before: Any) -> Batch:
    """Rows as values by name: envelope, ``arg_``, or ``ps.`` for an attached state."""
    builder = RecordBuilder()
    for row in rows:
        bases = [naming.extension(n) if n.startswith("ps.") else n for n in row]
        layout = builder.layout([Field(base, catalogue.home(base)) for base in bases])
        builder.add(layout, list(row.values()))
    return builder.finish(before=before or (HOST,))


def row(action: str, actor: int | None = 1, /, **more: Any) -> dict[str, Any]:
    arguments = {f"arg_{name}": value for name, value in more.items()}
    return {"action": action, "pid": actor, "source": HOST.id, "ts": 5, **arguments}


def described(
    action: str, pid: int, ppid: int = 4, *, by: int | None = None, **more: Any
) -> dict[str, Any]:
    return row(action, by, pid=pid, ppid=ppid, **more)


def after(*rows: Row) -> State:
    state = State()
    state.update(batch_of(rows))
    return state


def process(state: State, pid: int) -> Process:
    found = state.process(pid)
    assert found is not None
    return found


# Processes


def test_a_start_describes_the_new_process() -> None:
    """The creator stays who it was; the new process is what the arguments say."""
    state = after(
        described("process_rundown", 10, name="shell.exe", start_time=START_NS),
        described(
            "process_start",
            20,
            10,
            by=10,
            name="a.exe",
            comm="a -x",
            session_id=1,
            start_time=START_NS,
        ),
    )
    new = process(state, 20)

    assert process(state, 10).name == "shell.exe"
    assert (new.name, new.cmdline, new.ppid, new.session) == ("a.exe", "a -x", 10, 1)
    assert new.parent_key == process(state, 10).process_key is not None


def test_the_row_itself_is_its_creators() -> None:
    """Identity columns are those of the process that the event happened in."""
    rows = [
        described("process_rundown", 10, name="shell.exe"),
        described("process_start", 20, 10, by=10, name="a.exe"),
        row("file_open", 20),
    ]
    resolved = State().update(batch_of(rows), resolve=True)

    assert resolved.array("process_name").to_pylist() == [None, "shell.exe", "a.exe"]
    assert resolved.array("parent_name").to_pylist()[2] in {None, "shell.exe"}


def test_a_later_description_only_adds() -> None:
    """What is known is not replaced, what was not known comes in; empty text says nothing."""
    state = after(
        described(
            "process_rundown", 10, name="a.exe", exe="C:\\a.exe", start_time=START_NS, sid="X"
        ),
        described(
            "process_rundown", 10, name=".", exe="", comm="a -x", start_time=START_NS, sid="Y"
        ),
    )
    found = process(state, 10)

    assert (found.name, found.exe, found.user, found.cmdline) == ("a.exe", "C:\\a.exe", "X", "a -x")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"start_time": START_NS}, {"start_time": START_NS + 10**9}, False),
        ({"start_time": START_NS}, {"start_time": START_NS}, True),
        ({"start_time": START_NS}, {}, True),
        ({}, {}, True),
        ({}, {"name": "b.exe"}, False),
    ],
)
def test_an_id_that_is_used_again_is_another_process(
    first: dict[str, Any], second: dict[str, Any], same: bool
) -> None:
    """Another start time, or another name where that is not known."""
    state = after(
        described("process_rundown", 10, **{"name": "a.exe", "comm": "old", **first}),
        described("process_rundown", 10, **{"name": "a.exe", **second}),
    )

    assert (process(state, 10).cmdline == "old") == same


def test_a_new_process_takes_nothing_over() -> None:
    """A start is another process than one whose end was missed."""
    state = after(
        described("process_rundown", 10, name="a.exe", comm="old"),
        described("process_start", 10, 4, by=4, name="a.exe"),
    )

    assert process(state, 10).cmdline is None


def test_the_attached_state_must_be_the_processs_own() -> None:
    """A working directory out of the creator's state, or of none, is not the process's."""
    own = described("process_rundown", 10, name="a.exe") | {"ps.pid": 10, "ps.cwd": "C:\\own\\"}
    foreign = described("process_start", 20, 10, by=10) | {"ps.pid": 10, "ps.cwd": "C:\\own\\"}
    bogus = described("process_rundown", 30) | {"ps.pid": 0xFFFFFFFF, "ps.cwd": "."}
    state = after(own, foreign, bogus)

    assert process(state, 10).cwd == "C:\\own\\"
    assert process(state, 20).cwd is None
    assert process(state, 30).cwd is None


def test_the_end_of_a_process_is_the_described_ones() -> None:
    """Who ends another process stays; exit status and time are those of the one that ended."""
    state = after(
        described("process_rundown", 10, name="a.exe"),
        described("process_rundown", 11, name="killer.exe"),
        described("process_stop", 10, by=11, exit_status=-1),
    )

    assert not process(state, 11).exited
    ended = process(state, 10)
    assert (ended.exited, ended.exit_code, ended.end_ns, ended.name) == (True, -1, 5, "a.exe")


def test_the_end_may_be_the_first_that_is_heard() -> None:
    """Later events of it have its name."""
    ended = process(after(described("process_stop", 10, by=10, name="a.exe", exit_status=0)), 10)

    assert (ended.name, ended.exited, ended.exit_code) == ("a.exe", True, 0)


def test_users_and_sessions() -> None:
    """Domain and user where both are there, else the identifier; no session is none."""
    state = after(
        described("process_rundown", 10, username="ann", domain="HOST", sid="S-1-5-21"),
        described("process_rundown", 11, username="ann"),
        described("process_rundown", 12, sid="S-1-5-18", session_id=0xFFFFFFFF),
    )

    assert [process(state, pid).user for pid in (10, 11, 12)] == ["HOST\\ann", "ann", "S-1-5-18"]
    assert process(state, 12).session is None


def test_a_number_called_pid_alone_describes_nobody() -> None:
    """Linux events have such arguments, too: a namespace, a target."""
    state = after(row("process_rundown", 10, pid=4_026_531_836))

    assert state.process(4_026_531_836) is None


# Handles


def create(pid: int, number: int, name: str = "n", **more: Any) -> dict[str, Any]:
    facts = {"handle_id": number, "handle_object": 1 << 63, "handle_type": "File", **more}
    return row("handle_create", pid, handle_name=name, **facts)


def table(state: State) -> list[Handle]:
    found = state.handles()
    return [] if found is None else found.rows()


def test_handles_are_followed() -> None:
    """Opened, closed, opened again under the same number, duplicated into another process."""
    state = after(
        create(10, 4),
        create(10, 8, "two"),
        row("handle_close", 10, handle_id=4),
        row("handle_close", 10, handle_id=99),
        create(10, 8, "three"),
        row("handle_duplicate", 10, handle_id=12, target_pid=20, type_id="Key", handle_name="k"),
    )

    assert table(state) == [
        Handle(10, 8, 1 << 63, "File", "three"),
        Handle(20, 12, None, "Key", "k"),
    ]


def test_handles_end_with_their_process() -> None:
    """Whoever ends it; other processes keep theirs."""
    state = after(create(10, 4), create(11, 4), described("process_stop", 10, by=11))

    assert [h.pid for h in table(state)] == [11]


def test_a_snapshot_replaces_the_handles_of_its_machine() -> None:
    """Of no other machine, and the processes stay."""
    state = after(create(10, 4), described("process_rundown", 10, name="a.exe"))
    given = to_batch([("WIN", [Handle(7, 8)]), ("TWO", [Handle(1, 1)])])
    state.update(Batch(0, {}, (Snapshot({"handles": given}),)))

    win, two = state.handles("WIN"), state.handles("TWO")
    assert win is not None
    assert two is not None
    assert (win.rows(), two.rows()) == ([Handle(7, 8)], [Handle(1, 1)])
    assert state.process(10, "WIN") is not None


def test_linux_has_no_handle_table() -> None:
    """A process that ends opens none, and no snapshot has an empty table."""
    state = after(row("process_stop", 10))

    assert state.handles() is None
    assert set(state.snapshot().tables) == {"processes"}


NUMBERS = st.integers(0, 3) | st.integers(0, (1 << 64) - 1)
HANDLES = st.builds(
    Handle,
    st.integers(0, 5),
    NUMBERS,
    st.none() | NUMBERS,
    st.none() | st.sampled_from(["File", ""]),
    st.none() | st.text(max_size=5),
    st.none() | st.just("{}"),
)


@given(st.dictionaries(st.sampled_from(["", "WIN", "TWO"]), st.lists(HANDLES, max_size=8)))
def test_the_table_survives_a_capture(tables: dict[str, list[Handle]]) -> None:
    """Written as a STATE record and read back, every handle is what it was."""
    wanted = {m: sorted(hs, key=lambda h: (h.pid, h.handle)) for m, hs in tables.items() if hs}
    batch = to_batch(tables.items())
    stored = capture([Batch(0, {}, (Snapshot({"handles": batch}),))])
    found = [
        side for b in opened(stored).batches() for side in b.before if isinstance(side, Snapshot)
    ]

    assert from_batch(batch) == wanted
    if wanted:
        assert from_batch(found[0].tables["handles"]) == wanted


ACTS = st.sampled_from(["handle_create", "handle_close", "handle_duplicate", "process_stop"])
EVENTS = st.lists(st.tuples(ACTS, st.integers(1, 3), st.integers(0, 4)), max_size=30)


@given(EVENTS, EVENTS)
def test_restored_state_goes_on_the_same(
    before: list[tuple[str, int, int]], later: list[tuple[str, int, int]]
) -> None:
    """Taken out and put back, and however the events are cut, the state ends the same."""
    first, second = (
        [row(a, p, handle_id=n, target_pid=2, handle_name=f"{n}") for a, p, n in events]
        for events in (before, later)
    )
    whole, parts, restored = State(), State(), State()
    whole.update(batch_of([*first, *second]))
    for one in [*first, *second]:
        parts.update(batch_of([one]))
    half = State()
    half.update(batch_of(first))
    restored.update(batch_of([]))
    restored.restore(half.snapshot())
    restored.update(batch_of(second))

    assert table(parts) == table(whole) == table(restored)


def test_a_full_table_takes_no_more() -> None:
    """What is known stays, what finds no room is counted; a close makes room."""
    small = HandleTable(entries_max=2)
    for number in (4, 8, 12):
        small.put(Handle(1, number))
    small.put(Handle(1, 8, name="new"))

    assert [h.handle for h in small.rows()] == [4, 8]
    assert (small.refused, len(small)) == (1, 2)
    assert small.get(1, 8) == Handle(1, 8, name="new")
    small.close(1, 4)
    small.put(Handle(1, 16))
    assert [h.handle for h in small.rows()] == [8, 16]
    assert (small.of_process(1), small.of_process(2)) == (small.rows(), [])
    small.end(1)
    assert len(small) == 0


@pytest.mark.parametrize("bad", ["class", "null"])
def test_a_table_that_makes_no_sense_changes_nothing(bad: str) -> None:
    """It is told as a loss; handles and processes stay as they were."""
    builder = RecordBuilder()
    pid: Any = "ten" if bad == "class" else None
    home = TypeClass.STR if bad == "class" else TypeClass.I64
    layout = builder.layout([Field("machine", TypeClass.STR), Field("pid", home)])
    builder.add(layout, ["WIN", pid])
    with pytest.raises(DamagedError):
        from_batch(builder.finish())
    builder.add(layout, ["WIN", pid])
    state = after(create(10, 4))
    result = state.update(Batch(0, {}, (Snapshot({"handles": builder.finish()}),)))

    assert [type(side) for side in result.before] == [Loss]
    assert [h.handle for h in table(state)] == [4]


class _Given:
    """A source of given batches."""

    def __init__(self, info: Any, batches: list[Batch]) -> None:
        self.info = info
        self._batches = batches

    def batches(self) -> Any:
        yield from self._batches

    def close(self) -> None:
        """Nothing to close."""


def test_merging_keeps_the_handles_of_all() -> None:
    """A snapshot of handles alone names a machine, too: the merged stream tells all of them."""
    from kcap.model.stream import StreamInfo

    inputs = []
    for info in (HOST, OTHER):
        known = to_batch([(info.host or "", [Handle(1, 4)])])
        batch = batch_of(
            [row("file_open") | {"source": info.id}], info, Snapshot({"handles": known})
        )
        inputs.append(_Given(StreamInfo(info.host or "", "test", (info,)), [batch]))
    state, told = State(), []
    for batch in Merged(inputs, state).batches():
        told += [side for side in batch.before if isinstance(side, Snapshot)]
        state.update(batch)

    assert set(from_batch(told[-1].tables["handles"])) == {"WIN", "TWO"}
