"""The thread table: who is alive, what a full table forgets, and as a table of a snapshot."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import DamagedError
from kcap.model.batch import Batch
from kcap.state.threads import Thread, ThreadTable, from_batch, to_batch

_THREADS = st.lists(
    st.builds(
        Thread,
        st.integers(0, 9),
        st.integers(0, 3),
        st.none() | st.text(max_size=3),
        st.none() | st.integers(0, 9),
        st.booleans(),
        st.sampled_from([None, "procfs", "event"]),
        st.none() | st.text(max_size=3),
    ),
    max_size=20,
)


@given(_THREADS)
def test_alive(threads: list[Thread]) -> None:
    """The last thread of each id counts for its process until it has exited."""
    table = ThreadTable()
    for row, thread in enumerate(threads):
        table.put(thread, row)
    last = {thread.tid: thread for thread in threads}
    alive = Counter(thread.pid for thread in last.values() if not thread.exited)
    assert {pid: table.alive(pid) for pid in range(4)} == {pid: alive[pid] for pid in range(4)}
    assert table.rows() == sorted(last.values(), key=lambda t: t.tid)
    assert all(table.owner(tid) == (last[tid].pid if tid in last else tid) for tid in range(10))


def test_a_full_table_forgets_the_exited_first() -> None:
    """Beyond the limit exited threads go, an eighth of the table at once."""
    table = ThreadTable(entries_max=16)
    for tid in range(16):
        table.put(Thread(tid, tid, exited=tid in {5, 9, 11}), tid)
    table.put(Thread(16, 16), 16)
    assert (len(table), table.evicted) == (14, 3)
    assert not {t.tid for t in table.rows()} & {5, 9, 11}


@given(_THREADS)
def test_round_trip(threads: list[Thread]) -> None:
    """A snapshot's table gives back every thread."""
    unique = sorted({t.tid: t for t in threads}.values(), key=lambda t: t.tid)
    assert from_batch(to_batch([("m", unique)])).get("m", []) == unique


def test_damaged() -> None:
    """A table of other classes, and a thread without a process, are damage."""
    batch = to_batch([("m", [Thread(1, 1, "a")])])
    with pytest.raises(DamagedError, match="column tid of the thread table"):
        from_batch(batch.adding({"tid": batch.columns["name"]}))
    columns = {name: c for name, c in batch.columns.items() if name != "pid"}
    with pytest.raises(DamagedError, match="no tid or no pid"):
        from_batch(Batch(1, columns))
