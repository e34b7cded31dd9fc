"""The event of an artifact, and the hash of an execution: whatever the order, however many."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.model.artifact import Artifact, Parts
from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.naming import argument
from kcap.model.side import EventLoss
from kcap.model.tracee_names import user_device
from kcap.readers.live.artifacts import companion_rows, protocol
from kcap.readers.live.artifacts.companion_expected import Expected
from kcap.readers.live.artifacts.companion_hashes import Executions, Hashes
from kcap.readers.live.artifacts.companion_rows import DEV, INODE, Rows, Table
from kcap.readers.live.artifacts.companion_sides import Pending, Sides
from kcap.readers.live.artifacts.left_out import LEFT_OUT_BYTES, LeftOut
from kcap.readers.live.artifacts.protocol import HashNote, Shared
from kcap.readers.live.artifacts.wanted import Wanted

_S = 1_000_000_000
_FILE = (8 << 20 | 1, 77)
_OLD, _NEW = b"\1" * 32, b"\2" * 32


def _events(rows: list[tuple[int, int, int]], event: str = "openat") -> Batch:
    """Events of (time, process, inode)."""
    told = {
        "ts": [row[0] for row in rows],
        "pid": [row[1] for row in rows],
        DEV: [_FILE[0]] * len(rows),
        INODE: [row[2] for row in rows],
        "ord": [row[0] for row in rows],
        argument("flags"): [1] * len(rows),
    }
    columns = {n: Column(TypeClass.I64, pa.array(v, pa.int64())) for n, v in told.items()}
    names = pa.array([event] * len(rows), pa.utf8()).dictionary_encode()
    return Batch(len(rows), {**columns, "event": Column(TypeClass.STR, names)})


def _table(batches: list[list[tuple[int, int, int]]], *names: str) -> Table:
    table = Table(*names)
    for rows in batches:
        batch = _events(rows)
        table.add(batch, companion_rows.rows_of(batch, {"openat"}))
    return table


_ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3), st.integers(1, 3)), max_size=6),
    max_size=12,
)


@given(_ROWS, st.integers(0, 40), st.integers(1, 3))
def test_nearest(batches: list[list[tuple[int, int, int]]], time_ns: int, pid: int) -> None:
    """It is the nearest of all, however they came in batches."""
    found = _table(batches, "pid").nearest(time_ns, pid)
    times = [row[0] for rows in batches for row in rows if row[1] == pid]
    assert (found is None) == (not times)
    if found is not None:
        assert found[0] == min(abs(each - time_ns) for each in times)
        assert abs(found[1]["ts"] - time_ns) == found[0]
        assert found[1]["pid"] == pid


@given(_ROWS, st.integers(0, 40), st.integers(1, 3), st.integers(1, 3))
def test_before(batches: list[list[tuple[int, int, int]]], at: int, pid: int, inode: int) -> None:
    """It is the last that came before, with all of the numbers."""
    apart = 10_000_000  # more than clocks are from each other
    spread = [[(row[0] * apart, *row[1:]) for row in rows] for rows in batches]
    found = _table(spread, "pid", DEV, INODE).before(at * apart, None, pid, _FILE[0], inode)
    fit = [r for rows in spread for r in rows if r[0] <= at * apart and r[1:] == (pid, inode)]
    assert (None if found is None else found["ts"]) == (fit[-1][0] if fit else None)


def test_thousands_of_batches_are_few_parts() -> None:
    """A quiet host has five events in a batch: a look does not go through each of them."""
    table = _table([[(n * 10 + k, n, k) for k in range(5)] for n in range(5_000)], "pid")
    assert len(table._parts) < 20
    begun_s = time.perf_counter()
    for n in range(0, 5_000, 50):
        found = table.nearest(n * 10, n)
        assert found is not None
        assert found[1]["ts"] == n * 10
    assert time.perf_counter() - begun_s < 5


def test_one_process_that_executes_all_the_time() -> None:
    """A look costs little where all that is remembered fits."""
    table = _table([[(n * 1000 + k, 7, k) for k in range(1000)] for n in range(200)], "pid")
    begun_s = time.perf_counter()
    for n in range(500):
        found = table.nearest(n * 400, 7)
        assert found is not None
        assert found[0] == 0
    assert time.perf_counter() - begun_s < 10


def test_what_two_readers_saw_is_one_artifact() -> None:
    """Not that of the next dropper, to whose file the inode goes: it has a path of its own."""
    sides = Sides(Wanted(), Shared(), Rows(reads=False, expected=Expected(Wanted())), scoped=False)
    file = {"kind": "exec", "dev": user_device(_FILE[0]), "inode": _FILE[1], "sha256": "ab" * 32}
    seen = [("/a", 5, 5), ("/a", 5, 6), ("/b", 7, 7)]
    for path, mtime_ns, ctime_ns in seen:
        about = {**file, "path": path, "mtime_ns": mtime_ns, "ctime_ns": ctime_ns, "pid": 9}
        sides.add(Pending(about, Parts((b"x",))))
    assert [each.about["path"] for each in sides._pending] == ["/a", "/b"]


@pytest.mark.parametrize("room", [None, 0, LEFT_OUT_BYTES], ids=["nothing before", "none", "room"])
@pytest.mark.parametrize("inode", [_FILE[1], 78], ids=["the file", "a copy of it"])
def test_what_was_executed_out_of_scope_is_given_within(room: int | None, inode: int) -> None:
    """Or counted, once; as of the first execution in scope. The control: nobody executed it."""
    rows = Rows(reads=False, expected=Expected(Wanted()))
    sides = Sides(Wanted(), Shared(), rows, scoped=True)
    file = {"kind": "exec", "dev": user_device(_FILE[0]), "inode": inode, "sha256": _OLD.hex()}
    outside = {**file, "path": "/program", "pid": 500, "tid": 500, "mode": 0o100755, "time_ns": 1}
    if room is not None:
        sides._outside = LeftOut(room)
        sides.add(Pending(outside, Parts((b"x",))))
    assert not list(sides.ready(last=True))
    assert sides.left_out == (room is not None)

    batch = _events([(5 * _S, 9, _FILE[1]), (6 * _S, 9, _FILE[1])], "sched_process_exec")
    batch = batch.adding({"origin": constant(TypeClass.STR, "o", 2)})
    hashes = Hashes()
    hashes.add([HashNote(9, protocol.HASHED, *_FILE, -1, -1, _OLD)], ())
    found = Executions(batch, np.arange(2))
    found.look(hashes, 0)
    rows.add(batch)
    given_ = sides.executed(found)

    assert not sides.executed(found), "each once"
    if room is None:
        assert not given_
        return
    (side,) = given_
    if not room:
        assert isinstance(side, EventLoss)
        assert (side.kind, side.count, side.ords) == ("lost", 1, (5 * _S,))
        return
    assert isinstance(side, Artifact)
    assert (side.origin, side.ord, list(side.content.parts())) == ("o", 5 * _S, [b"x"])
    assert (side.details["pid"], side.details["time_ns"]) == (9, 5 * _S)
    assert "tid" not in side.details, "that was another's"
    same = inode == _FILE[1]
    assert (side.path, "mode" in side.details) == ("/program" if same else None, same)


@pytest.mark.parametrize(("file_type", "waits"), [("regular", True), ("pipe", False)])
def test_stream_of_a_file_waits_for_its_open(file_type: str, *, waits: bool) -> None:
    """A pipe goes with its process at once; of a file the open comes in a later batch."""
    rows = Rows(reads=True, expected=Expected(Wanted()))
    sides = Sides(Wanted(), Shared(), rows, scoped=False)
    rows.add(_events([(5 * _S, 9, 1)], "sched_process_exec"))
    details = {
        "time_ns": 5 * _S + 2000,
        "dev": user_device(_FILE[0]),
        "inode": _FILE[1],
        "file_type": file_type,
    }
    stream = Artifact(kind="write", content=Parts((b"x",)), details=details)
    pending = Pending({**details, "kind": "write", "pid": 9}, stream.content, stream)
    sides._pending.append(pending)
    given_ = list(sides.ready(last=False))
    assert len(given_) == (0 if waits else 1)
    rows.add(_events([(5 * _S + 1000, 9, _FILE[1])]))
    given_ += sides.ready(last=False)
    (artifact,) = given_
    assert isinstance(artifact, Artifact)
    assert artifact.ord == (5 * _S + 1000 if waits else 5 * _S)


def _note(
    sha256: bytes, ctime_ns: int, mtime_ns: int, known: int = protocol.HASHED, pid: int = 9
) -> HashNote:
    return HashNote(pid, known, *_FILE, ctime_ns, mtime_ns, sha256)


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        pytest.param([_note(_OLD, 100, 100)], (True, _OLD), id="as it was"),
        pytest.param([_note(_OLD, 150, 90)], (True, _OLD), id="unlinked since"),
        pytest.param([_note(_OLD, 50, 50)], (True, _OLD), id="unlinked while it is started"),
        pytest.param([_note(_NEW, 150, 150)], (True, None), id="written since"),
        pytest.param([_note(_OLD, 100, 9), _note(_NEW, 100, 9)], (True, None), id="either"),
        pytest.param([_note(_OLD, 100, 9), _note(_OLD, 100, 9)], (True, _OLD), id="twice"),
        pytest.param(
            [_note(_OLD, 100, 9, pid=8), _note(_NEW, 100, 9, pid=7), _note(_OLD, 150, 90)],
            (True, _OLD),
            id="the next file has its inode and its time",
        ),
        pytest.param([_note(_OLD, 100, 9, pid=8)], (True, _OLD), id="of another process"),
        pytest.param([_note(bytes(32), 100, 9, protocol.NO_HASH)], (True, None), id="too large"),
        pytest.param([_note(bytes(32), 100, 0, protocol.TOO_LATE)], (False, None), id="too late"),
    ],
)
def test_hash_is_of_what_was_executed(
    notes: list[HashNote], told: tuple[bool, bytes | None]
) -> None:
    """A hash of what the file was before, or became since, is none of the execution's."""
    hashes = Hashes()
    message = protocol.pack_hashes(notes)
    hashes.add(protocol.unpack_hashes(message), {_FILE[0]})
    known, sha256 = hashes.find(9, *_FILE, 100)
    assert (known, sha256 and bytes.fromhex(sha256)) == told


def test_a_hash_of_an_earlier_execution_is_not_taken_for_that_of_a_later_one() -> None:
    """The process executed the file before; it was changed since, and the readers are late."""
    hashes = Hashes()
    hashes.add(protocol.unpack_hashes(protocol.pack_hashes([_note(_OLD, 50, 50)])), {_FILE[0]})
    assert hashes.find(9, *_FILE, 50) == (True, _OLD.hex())
    assert hashes.find(9, *_FILE, 100) == (False, None)
    hashes.add(protocol.unpack_hashes(protocol.pack_hashes([_note(_NEW, 100, 100)])), {_FILE[0]})
    assert hashes.find(9, *_FILE, 100) == (True, _NEW.hex())
