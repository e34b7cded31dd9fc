"""Which file it was that a server held back, as the events have it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.tracee_names import user_device
from kcap.readers.live.artifacts.companion_expected import FILES_MAX, Expected
from kcap.readers.live.artifacts.companion_unwatched import FILES_MAX as UNWATCHED_MAX
from kcap.readers.live.artifacts.companion_unwatched import Unwatched
from kcap.readers.live.artifacts.wanted import FileFilter, Wanted

SERVER, HOST = 45, 8 << 20 | 1
WRITES = Wanted(write=FileFilter())


def opened(*rows: tuple[int, int, int, str, int | None], mode: int = 0o100644) -> Batch:
    """Opens, by time, device, inode, path and flags."""
    times, devices, inodes, paths, flags = zip(*rows, strict=True)
    count = len(rows)
    held = np.array([at for at, each in enumerate(flags) if each is not None], np.int32)
    numbers = {
        "ts": (TypeClass.U64, times),
        "pid": (TypeClass.U64, [7] * count),
        "arg_dev": (TypeClass.U64, devices),
        "arg_inode": (TypeClass.U64, inodes),
        "arg_inode_mode": (TypeClass.U64, [mode] * count),
    }
    columns = {
        name: Column(cls, pa.array(list(each), pa.uint64()))
        for name, (cls, each) in numbers.items()
    }
    texts = pa.array(list(paths), pa.utf8()).dictionary_encode()
    columns["arg_pathname"] = Column(TypeClass.STR, texts)
    told = pa.array([each for each in flags if each is not None], pa.uint64())
    columns["arg_flags"] = Column(TypeClass.U64, told, held)
    return Batch(count, columns)


def expecting(wanted: Wanted, batch: Batch, *, executions: bool = False) -> Expected:
    """Who has heard of these opens."""
    made = Expected(wanted)
    made.watch(SERVER)
    rows, none = np.arange(batch.rows), np.zeros(0, np.intp)
    made.add(batch, *((rows, none) if executions else (none, rows)))
    return made


def test_it_is_the_last_that_did_not_come() -> None:
    """Not one that came, nor one on this host, nor one of later; each once."""
    batch = opened(
        (10, SERVER, 1, "/s/first", 1), (20, SERVER, 2, "/s/second", 1),
        (30, SERVER, 3, "/s/came", 1), (40, HOST, 4, "/h/here", 1), (90, SERVER, 5, "/s/late", 1),
    )  # fmt: skip
    made = expecting(WRITES, batch)
    made.came(SERVER, 3, 35)

    found = made.held(50)
    assert found is not None
    assert found == {
        "kind": "write", "pid": 7, "time_ns": 20, "path": "/s/second",
        "dev": user_device(SERVER), "inode": 2, "truncated": "timeout", "presumed": True,
    }  # fmt: skip
    assert (made.held(50) or {})["path"] == "/s/first"
    assert made.held(50) is None


def test_an_event_that_is_later_than_its_file() -> None:
    """What was read after it was opened has come, whichever is heard of first."""
    made = Expected(WRITES)
    made.watch(SERVER)
    made.came(SERVER, 1, 15)
    batch = opened((10, SERVER, 1, "/s/a", 1), (20, SERVER, 1, "/s/a", 1))
    none = np.zeros(0, np.intp)
    made.add(batch, none, np.array([0]))
    assert made.held(50) is None
    made.add(batch, none, np.array([1]))
    assert made.held(50) is not None


def test_only_what_is_kept() -> None:
    """What was not asked for is not missing; of what was, the kind is that of the event."""
    batch = opened((10, SERVER, 1, "/s/a", 0))
    assert expecting(WRITES, batch).held(50) is None
    reads = Wanted(read=FileFilter(prefixes=("/s/",)))
    assert (expecting(reads, batch).held(50) or {})["kind"] == "read"
    other = Wanted(read=FileFilter(prefixes=("/t/",)))
    assert expecting(other, batch).held(50) is None
    made = opened((10, SERVER, 1, "/s/a", None))
    assert (expecting(WRITES, made).held(50) or {})["kind"] == "write", "creat(2) has no flags"
    assert (expecting(Wanted(exec=True), made, executions=True).held(50) or {})["kind"] == "exec"
    assert expecting(WRITES, made, executions=True).held(50) is None


def test_it_is_bounded() -> None:
    """Of many files those that were opened last are known."""
    many = FILES_MAX + 100
    batch = opened(*((at, SERVER, at, "/s/a", 1) for at in range(many)))
    made = expecting(WRITES, batch)
    for at in range(many):
        made.came(SERVER, at + many, 1)

    assert len(made._files) == FILES_MAX
    assert len(made._came) == FILES_MAX
    assert (made.held(many) or {})["inode"] == many - 1


def test_what_was_opened_before_anybody_watched() -> None:
    """It is missed where it does not come: not what is watched, no FIFO, nothing unasked for."""
    none, rows = np.zeros(0, np.intp), np.arange(3)
    batch = opened(
        (10, HOST, 1, "/h/a", 1), (20, HOST, 2, "/h/b", 1), (30, HOST, 3, "/h/c", 0),
    )  # fmt: skip
    made = Expected(WRITES)
    made.add(batch, none, rows)
    made.unwatched.came(HOST, 2, "/h/b", 99)
    assert made.unwatched.missed(last=False) == 0, "it may still come"
    assert made.unwatched.missed(last=True) == 1
    assert made.unwatched.missed(last=True) == 0

    made.unwatched.watch(HOST, 15)
    made.add(batch, none, rows)
    assert made.unwatched.missed(last=True) == 1, "the one before"
    assert made.unwatched.gone(HOST, 99) == 99
    made.unwatched.watch(HOST, 5)
    made.add(batch, none, rows)
    assert made.unwatched.missed(last=True) == 0
    made = Expected(WRITES)
    made.add(opened((10, HOST, 1, "/h/fifo", 1), mode=0o010644), none, np.array([0]))
    assert made.unwatched.missed(last=True) == 0


def test_a_device_that_has_the_number_of_one_before() -> None:
    """What was opened since the one before was seen is missed, but for what came."""
    none = np.zeros(0, np.intp)
    batch = opened(
        (10, HOST, 1, "/h/before", 1), (20, HOST, 2, "/h/a", 1), (30, HOST, 3, "/h/b", 1),
    )  # fmt: skip
    for gone in (False, True):
        made = Expected(WRITES)
        assert made.unwatched.watch(HOST, 5) is None
        if gone:
            assert made.unwatched.gone(HOST, 2) == 5
        made.add(batch, none, np.arange(1, 3))
        made.unwatched.came(HOST, 3, "/h/b", 35)
        made.unwatched.came(HOST, 2, "/h/of-the-next", 35)
        made.came(HOST, 2, 35)
        assert made.unwatched.watch(HOST, 40, 15) == (None if gone else 15)
        if not gone:
            assert made.unwatched.missed(last=True) == 0, "who had looked at what it is?"
            made.unwatched_too(batch, np.arange(1, 3))
        assert made.unwatched.missed(last=True) == 1, "that it was executed is another matter"
    assert made.unwatched.watch(HOST, 90) is None, "another reader says the same"
    made.add(batch, none, np.arange(3))
    assert made.unwatched.missed(last=True) == 2

    made.add(opened((11, HOST, 1, "/h/other", 1), (12, HOST, 1, "/h/other", 1)), none, np.arange(2))
    made.add(batch, none, np.arange(1))
    assert made.unwatched.missed(last=True) == 2, "files of one number, one behind the other"


def test_what_may_be_missed_is_bounded() -> None:
    """What is forgotten of it counts as missed."""
    made = Unwatched()
    for at in range(UNWATCHED_MAX + 10):
        made.add(HOST, at, "/h/a", at)
    assert len(made._files) == UNWATCHED_MAX
    assert made.missed(last=True) == UNWATCHED_MAX + 10
