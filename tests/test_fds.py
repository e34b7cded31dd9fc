"""The descriptor table: against a plain model, and as a table of a snapshot."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import DamagedError
from kcap.model.batch import Batch
from kcap.state.fds import Descriptor, FdTable, Target, from_batch, to_batch
from kcap.state.threads import Thread
from kcap.state.threads import to_batch as threads_to_batch

_PID = st.integers(1, 4)
_FD = st.integers(0, 3)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), _PID, _FD),
        st.tuples(st.just("close"), _PID, _FD),
        st.tuples(st.just("fork"), _PID, _PID),
        st.tuples(st.just("end"), _PID, st.just(0)),
    ),
    max_size=30,
)
_DESCRIPTORS = st.lists(
    st.builds(
        Descriptor,
        st.integers(0, 1 << 62),
        st.integers(0, 1 << 31),
        st.none() | st.text(max_size=4),
        st.none() | st.text(max_size=4),
        st.none() | st.integers(0, (1 << 64) - 1),
        st.none() | st.integers(0, 1 << 32),
        st.none() | st.text(max_size=4),
    ),
    max_size=8,
    unique_by=lambda d: d[:2],
)

Model = dict[int, dict[int, Target]]


def apply(table: FdTable, model: Model, step: tuple[str, int, int], row: int) -> None:
    """One change of the table and of the model."""
    what, pid, other = step
    if what == "put":
        target = Target("file", f"/{row}")
        table.put(pid, other, target, row)
        model.setdefault(pid, {})[other] = target
    elif what == "close":
        table.close(pid, other, row)
        model.get(pid, {}).pop(other, None)
    elif what == "fork" and pid != other:
        table.fork(pid, other, row)
        model[other] = dict(model.get(pid, {}))
    elif what == "end":
        table.end(pid, row)
        model.pop(pid, None)


def flat(model: Model) -> dict[tuple[int, int], Target]:
    return {(pid, fd): target for pid, fds in model.items() for fd, target in fds.items()}


def as_of(table: FdTable, pid: int, fd: int, row: int) -> Target | None:
    return [target for at, target in table.history(pid, fd) if at <= row][-1]


@given(_STEPS, _STEPS)
def test_history(first: list[Any], second: list[Any]) -> None:
    """After every change each descriptor is what a plain copy of all tables says it was."""
    table, model = FdTable(), dict[int, dict[int, Target]]()
    for row, step in enumerate(first):
        apply(table, model, step, row)
    table.collect()
    was = [flat(model)]
    for row, step in enumerate(second):
        apply(table, model, step, row)
        was.append(flat(model))
    for row, expected in enumerate(was, -1):
        for pid in range(1, 5):
            for fd in range(4):
                assert as_of(table, pid, fd, row) == expected.get((pid, fd))
    table.forget()
    assert {d[:2]: Target(*d[2:]) for d in table.rows()} == was[-1]
    assert len(table) == len(was[-1])
    for pid in range(1, 5):
        assert table.of_process(pid) == [d for d in table.rows() if d.pid == pid]


def test_a_child_has_a_copy() -> None:
    """What parent and child do after the fork does not concern the other."""
    table = FdTable()
    table.put(1, 3, Target("file", "/a"), 0)
    table.fork(1, 2, 1)
    table.put(1, 4, Target("file", "/parent"), 2)
    table.close(2, 3, 3)
    assert [d[:2] for d in table.rows()] == [(1, 3), (1, 4)]
    table.put(2, 5, Target("file", "/child"), 4)
    assert table.get(1, 5) is None


def test_a_full_table_forgets_the_greatest() -> None:
    """Beyond the limit those go that have most, are counted, and the others stay."""
    table = FdTable(entries_max=16)
    table.put(1, 0, Target("file", "/kept"), 0)
    for fd in range(16):
        table.put(2, fd, Target("file", f"/{fd}"), fd)
    assert (len(table), table.evicted) == (1, 16)
    assert table.get(1, 0) == Target("file", "/kept")
    assert table.get(2, 15) is None


def test_bytes_are_bounded() -> None:
    """Long names fill the table as many short ones do; what is left counts right."""
    table = FdTable(bytes_max=10_000)
    table.put(1, 0, Target("file", "/kept"), 0)
    for fd in range(4):
        table.put(2, fd, Target("file", "/" * 3_000), fd)
    assert [d[:2] for d in table.rows()] == [(1, 0)]
    assert table.evicted == 4
    for fd in range(3):
        table.put(2, fd, Target("file", "/" * 2_500), fd)
        table.put(2, fd, Target("file", "/"), fd)
        table.close(2, fd, fd)
    assert table.evicted == 4


def test_forks_count_against_the_limit() -> None:
    """A fork of a table that is full enough makes room first in the greatest."""
    table = FdTable(entries_max=16)
    for fd in range(10):
        table.put(1, fd, Target("pipe"), fd)
    table.fork(1, 2, 10)
    assert len(table) <= 16
    assert table.evicted == 10


@given(_DESCRIPTORS, _DESCRIPTORS)
def test_round_trip(one: list[Descriptor], two: list[Descriptor]) -> None:
    """A snapshot's table gives back every descriptor of every machine."""
    given_ = {machine: list(d) for machine, d in (("a", one), ("b", two)) if d}
    back = from_batch(to_batch([("b", two), ("a", one)]))
    assert {m: sorted(d, key=lambda x: x[:2]) for m, d in back.items()} == {
        m: sorted(d, key=lambda x: x[:2]) for m, d in given_.items()
    }


def test_no_descriptors() -> None:
    """Without descriptors there is no table."""
    assert to_batch([("a", [])]).rows == 0
    assert from_batch(Batch(0, {})) == {}


def test_damaged() -> None:
    """A table of other classes, and a descriptor without a number, are damage."""
    batch = to_batch([("a", [Descriptor(1, 2, "file", "/a")])])
    wrong = batch.adding({"fd": batch.columns["name"]})
    with pytest.raises(DamagedError, match="column fd of the descriptor table"):
        from_batch(wrong)
    columns = {name: c for name, c in batch.columns.items() if name != "fd"}
    with pytest.raises(DamagedError, match="no pid or no fd"):
        from_batch(Batch(1, columns))
    assert from_batch(batch) == {"a": [Descriptor(1, 2, "file", "/a")]}
    with pytest.raises(DamagedError, match="no pid or no fd"):
        from_batch(threads_to_batch([("a", [Thread(1, 1)])]))
