"""Where events, hashes or artifacts are late: each waits for the others, and none too long."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from kcap.model.artifact import Artifact, Parts
from kcap.model.batch import Batch
from kcap.readers.live.artifacts import companion_held, companion_sides, spool
from kcap.readers.live.artifacts.companion_expected import Expected
from kcap.readers.live.artifacts.companion_hashes import Executions
from kcap.readers.live.artifacts.companion_held import Held
from kcap.readers.live.artifacts.companion_rows import Rows
from kcap.readers.live.artifacts.companion_sides import PENDING_MAX, Pending, Sides
from kcap.readers.live.artifacts.protocol import Shared, pair
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
