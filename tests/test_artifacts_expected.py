"""Which file it was that a server held back, as the events have it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.tracee_names import user_device
from kcap.readers.live.artifacts.companion_expected import FILES_MAX, Expected
from kcap.readers.live.artifacts.wanted import FileFilter, Wanted

SERVER, HOST = 45, 8 << 20 | 1
WRITES = Wanted(write=FileFilter())


def opened(*rows: tuple[int, int, int, str, int | None]) -> Batch:
    """Opens, by time, device, inode, path and flags."""
    times, devices, inodes, paths, flags = zip(*rows, strict=True)
    count = len(rows)
    held = np.array([at for at, each in enumerate(flags) if each is not None], np.int32)
    numbers = {
        "ts": (TypeClass.U64, times),
        "pid": (TypeClass.U64, [7] * count),
        "arg_dev": (TypeClass.U64, devices),
        "arg_inode": (TypeClass.U64, inodes),
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
