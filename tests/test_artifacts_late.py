"""Where events, hashes or artifacts are late: each waits for the others, and none too long."""

from __future__ import annotations

import time
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pytest

from kcap.model.artifact import Artifact, Parts
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.tracee_names import user_device
from kcap.readers.live.artifacts import companion_held, companion_sides, spool
from kcap.readers.live.artifacts.companion_expected import Expected
from kcap.readers.live.artifacts.companion_hashes import Executions, Hashes
from kcap.readers.live.artifacts.companion_held import Held
from kcap.readers.live.artifacts.companion_rows import CTIME, Rows
from kcap.readers.live.artifacts.companion_sides import PENDING_MAX, Pending, Sides
from kcap.readers.live.artifacts.companion_unwatched import DEV, INODE
from kcap.readers.live.artifacts.protocol import HASHED, NO_HASH, HashNote, Shared, pair
from kcap.readers.live.artifacts.wanted import Wanted


def sides() -> Sides:
    """Artifacts of a recording without events."""
    wanted = Wanted()
    rows = Rows(reads=False, expected=Expected(wanted))
    return Sides(wanted, Shared(), rows, scoped=False)


def pending(inode: int, time_ns: int = 1000) -> Pending:
    """A written file."""
    about = {"kind": "write", "pid": 9, "time_ns": time_ns, "dev": 5, "inode": inode, "path": "/a"}
    return Pending(about, Parts((b"x",)))


def test_an_artifact_waits_until_its_time_is_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the events are behind; but not for ever, as where a clock was set."""
    monkeypatch.setattr(companion_sides, "WAITING_S", 0.0)
    made = sides()
    made.add(pending(1))
    made.heard_ns = 999
    for _ in range(10):
        assert list(made.ready(last=False)) == []
    made.heard_ns = 1001
    (given,) = made.ready(last=False)
    assert isinstance(given, Artifact)

    made.heard_ns = 0
    made.add(pending(2))
    monkeypatch.setattr(companion_sides, "WAITING_MAX_S", 0.0)
    assert sum(len(list(made.ready(last=False))) for _ in range(3)) == 1


@pytest.mark.parametrize(("mtime_ns", "changed"), [(500, None), (501, True)])
def test_what_was_written_to_since_is_not_what_was_executed(
    monkeypatch: pytest.MonkeyPatch, mtime_ns: int, *, changed: bool | None
) -> None:
    """The execution says when the file was changed last; what was read is marked where later."""
    made = sides()
    row = {"origin": "00" * 16, "ord": 1, "arg_ctime": 500}
    monkeypatch.setattr(made._rows.executions, "nearest", lambda *_: (0, row))
    each = pending(1)
    each.about |= {"kind": "exec", "mtime_ns": mtime_ns}
    made.add(each)
    (given,) = made.ready(last=False)
    assert cast("Artifact", given).details.get("changed") is changed


FILE: Final = (8 << 20 | 1, 77)


def executions(*pids: int) -> Batch:
    """Executions of one file, a millisecond apart."""
    count = len(pids)
    told = {
        "ts": [10**6 * number for number in range(count)],
        "ord": list(range(count)),
        "pid": list(pids),
        DEV: [FILE[0]] * count,
        INODE: [FILE[1]] * count,
        CTIME: [5] * count,
    }
    columns = {n: Column(TypeClass.I64, pa.array(v, pa.int64())) for n, v in told.items()}
    names = pa.array(["sched_process_exec"] * count, pa.utf8()).dictionary_encode()
    return Batch(count, {**columns, "event": Column(TypeClass.STR, names)})


def known(batch: Batch, sha256: str | None) -> Executions:
    """What was executed in a batch, and its hash."""
    found = Executions(batch, np.arange(batch.rows))
    hashes = Hashes()
    digest = bytes(32) if sha256 is None else bytes.fromhex(sha256)
    how = NO_HASH if sha256 is None else HASHED
    hashes.add([HashNote(pid, how, *FILE, 5, 4, digest) for pid, *_ in found.files], set())
    assert not found.look(hashes, 0)
    return found


def executed(pid: int, sha256: str | None, inode: int = FILE[1]) -> Pending:
    """What was executed."""
    about = {"kind": "exec", "pid": pid, "time_ns": 500, "dev": user_device(FILE[0])}
    return Pending(about | {"inode": inode, "path": "/a", "sha256": sha256}, Parts((b"x",)))


@pytest.mark.parametrize("sha256", ["ab" * 32, None])
def test_what_was_executed_is_given_with_its_execution(sha256: str | None) -> None:
    """And once; what others executed or wrote waits for theirs."""
    made, batch = sides(), executions(7)
    for each in (executed(8, "cd" * 32, 99), pending(FILE[1]), executed(7, sha256)):
        made.add(each)
    found = known(batch, sha256)
    assert made.executed(found) == [], "its event is not there yet"
    made._rows.add(batch)
    (given,) = made.executed(found)
    assert (cast("Artifact", given).ord, cast("Artifact", given).details["role"]) == (
        0,
        "executable",
    )
    assert made.executed(found) == []
    assert len(made._pending) == 2


def test_what_two_executed_at_once_is_that_of_the_first() -> None:
    """The execution by whom a reader names may come in a later batch than the other one."""
    made, batch = sides(), executions(8)
    made._rows.add(batch)
    made.add(executed(7, "ab" * 32))
    assert made.executed(known(batch, "cd" * 32)) == [], "the control: of another content"
    (given,) = made.executed(known(batch, "ab" * 32))
    assert (cast("Artifact", given).ord, cast("Artifact", given).details["pid"]) == (0, 8)


@pytest.mark.parametrize("awaited", [True, False])
def test_a_program_is_no_loader_of_the_one_before(*, awaited: bool) -> None:
    """Who starts one through another: the second's execution may be in a batch that waits."""
    made, batch = sides(), executions(7)
    made._rows.add(batch)
    made.awaited = lambda pid, dev, inode: awaited and (pid, dev, inode) == (7, FILE[0], 99)
    made.add(executed(7, "cd" * 32, 99))
    assert len(made.executed(known(batch, "ab" * 32))) == int(not awaited)
    assert len(made._pending) == int(awaited)
    held = Held(lambda _: False)
    held.add(batch, known(batch, None))
    assert held.holds(7, *FILE)
    assert not held.holds(7, FILE[0], 99)


def test_many_take_their_share_of_time() -> None:
    """What does not fit comes the next time, in its order; at the end all of it."""
    made = sides()
    for inode in range(PENDING_MAX):
        assert not made.crowded
        made.add(pending(inode))
    assert made.crowded
    for each in made._pending:
        each.calls, each.since_s = 9, 0.0
    made.heard_ns = 2000
    first = list(made.ready(last=False, most_s=0.01))
    assert 0 < len(first) < PENDING_MAX
    rest = list(made.ready(last=True))
    inodes = [cast("Artifact", each).details["inode"] for each in first + rest]
    assert inodes == list(range(PENDING_MAX))


def test_batches_wait_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the hashes of the first; not longer than some time, and not too many of them."""
    known: set[Any] = set()
    held = Held(lambda found: found in known)
    first, second = cast("Executions", "first"), cast("Executions", "second")
    held.add(Batch(1, {}), first)
    held.add(Batch(2, {}), None)
    held.add(Batch(3, {}), second)
    known.add(second)
    assert not held.ready
    known.add(first)
    assert [held.pop().batch.rows for _ in iter(lambda: held.ready, False)] == [1, 2, 3]
    assert not held.ready

    known.clear()
    held.add(Batch(companion_held.HOLD_ROWS, {}), first)
    assert not held.ready
    held.add(Batch(1, {}), second)
    assert held.ready, "too many"
    held.pop()
    assert not held.ready
    monkeypatch.setattr(companion_held, "HOLD_S", 0.0)
    time.sleep(0.001)
    assert held.ready, "too long"


def test_a_reader_stops_before_it_lets_go() -> None:
    """Files that nobody takes stay in the kernel, as long as there is room for them."""
    reading, writing = pair()
    sender = spool.Sender(writing, Shared(), 0)
    sent = 0
    while not sender.crowded:
        sender.send(b"A" * 1000)
        sent += 1
    assert sender.waiting
    assert sent < 100_000
    assert not sender.flush()
    assert sender._dropped == 0
    reading.close()
    writing.close()
