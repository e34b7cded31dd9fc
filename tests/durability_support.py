"""Writers that are cut off: what they did, what became durable, and what must be there after."""

from __future__ import annotations

import hashlib
import io
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
from badinput_support import ROOT
from support import FILE_ID, make_events, opened, rows_of, selected

from kcap.format import scan, tail
from kcap.format.chunk import Chunk
from kcap.format.reader import CaptureReader
from kcap.format.record import Kind
from kcap.format.schema import Schema
from kcap.format.verify import verify
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch, Column, concat
from kcap.model.classes import TypeClass
from kcap.model.side import Loss
from kcap.state import State

EVENTS = make_events(400)
"""Events of every class, with ord from 0."""

ROWS = rows_of([EVENTS])

Step = tuple[str, int]
"""What a writer does: ``write`` with a number of events, ``commit``, ``flush`` or ``close``."""


@dataclass
class Written:
    """What a writer did."""

    data: bytes
    marks: list[tuple[int, int]]
    """After each step that makes everything durable: length of the file, events so far."""

    def promised(self, length: int) -> int:
        """Events that must be in the first bytes of the file."""
        return max((rows for size, rows in self.marks if size <= length), default=0)


def written(steps: Sequence[Step], **options: object) -> Written:
    """Let a writer take events in the order of `EVENTS`."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID, **options)  # type: ignore[arg-type]
    marks = []
    taken = 0
    for name, count in steps:
        if name == "write":
            last = min(taken + count, EVENTS.rows)
            writer.write(EVENTS.slice(taken, last))
            taken = last
            continue
        getattr(writer, name)()
        marks.append((out.tell(), taken))
        if name == "close":
            break
    return Written(out.getvalue(), marks)


def records(data: bytes) -> list[scan.Record]:
    """The records of an intact capture."""
    found = opened(data).scanner().records()
    return [r for r in found if isinstance(r, scan.Record)]


def ords(batch: Batch) -> list[int]:
    """The ord of each event."""
    column = batch.get("ord")
    return [] if column is None else column.values.to_pylist()


def held(data: bytes) -> dict[int, tuple[Kind, list[int]]]:
    """Offset of every CHUNK and TAIL of an intact capture: which it is, and its events' ords."""
    reader = opened(data)
    list(reader.batches())
    found = {}
    for item in records(data):
        if item.header.kind == Kind.CHUNK:
            rows = ords(Chunk(item.payload, reader.schema).batch())
        elif item.header.kind == Kind.TAIL:
            rows = ords(tail.decode(item.payload, reader.schema))
        else:
            continue
        found[item.offset] = Kind(item.header.kind), rows
    return found


def in_order(data: bytes) -> dict[str, list[int]]:
    """The ords of all events, read from start to end."""
    return {
        "file": [o for b in opened(data).batches() for o in ords(b)],
        "pipe": [o for b in opened(data, pipe=True).batches() for o in ords(b)],
    }


def every_way(data: bytes) -> dict[str, list[int]]:
    """The ords of all events, by each of the ways to read them."""
    found = in_order(data)
    reader = opened(data)
    found["selection"] = [o for b in selected(reader) for o in ords(b)]
    reader = opened(data)
    index = reader.index()
    assert index is not None
    found["chunks"] = [
        o for i in range(len(index.table)) for b, _ in reader.rescued(i) for o in ords(b)
    ]
    return found


def check_once(data: bytes, expected: list[int]) -> None:
    """Exactly these events, each once and in order, whichever way they are read."""
    for way, found in every_way(data).items():
        assert found == expected, (way, found, expected)


def check_prefix(data: bytes, promised: int) -> int:
    """The first events, at least those promised, each equal, once, and in order.

    Returns:
        How many there are.
    """
    batches = list(opened(data).batches())
    rows = rows_of([b for b in batches if b.rows])
    assert rows == ROWS[: len(rows)]
    assert promised <= len(rows)
    check_once(data, list(range(len(rows))))
    return len(rows)


def check_ends_early(data: bytes) -> None:
    """Nothing is wrong with an open capture but that it ends."""
    report = verify(opened(data), deep=True)
    assert report.state in ("open", "torn")
    assert [f.what for f in report.findings if "ends inside" not in f.what] in (
        [],
        ["the capture has no FOOTER"],
    ), report.findings


# A host with few events


def process_events(count: int, rate_hz: float, seed: int = 1) -> Batch:
    """Events as `kcap record` makes them: those of a recording, again and again.

    Times, pids, keys and a third of the command lines are others each time.
    """
    with (ROOT / "fixtures" / "first.kcap").open("rb") as stream:
        some = concat(list(CaptureReader(stream, "first.kcap").batches())).with_before(())
    rounds = -(-count // some.rows)
    every = concat([some] * rounds).slice(0, count)
    random = np.random.default_rng(seed)
    turn = np.arange(count) // some.rows
    changed = {}
    for name, column in every.columns.items():
        rows = np.arange(count) if column.rows is None else column.rows
        if column.cls is TypeClass.I64 and name.endswith(("pid", "tid")):
            values = np.asarray(column.values) + turn[rows] * 40
            changed[name] = Column(column.cls, pa.array(values), column.rows)
        elif name in ("process_key", "cmdline"):
            texts = column.values.to_pylist()
            for i, row in enumerate(rows.tolist()):
                if name == "process_key":
                    key = f"{texts[i]}{turn[row]}"
                    texts[i] = hashlib.sha256(key.encode()).hexdigest()[:16]
                elif random.random() < 1 / 3:
                    texts[i] += f" --id {random.integers(1 << 20)}"
            values = pa.array(texts).dictionary_encode()
            changed[name] = Column(column.cls, values, column.rows)
    gaps = random.exponential(1e9 / rate_hz, count).astype(np.int64)
    for name, values in (
        ("ts", 1_790_000_000_000_000_000 + np.cumsum(gaps)),
        ("seq", np.arange(count) + 100_000),
        ("ord", np.arange(count)),
    ):
        changed[name] = Column(TypeClass.I64, pa.array(values))
    return every.adding(changed)


# Power cuts


@dataclass
class Disk:
    """A stream that remembers what was written, and which of it is durable."""

    writes: list[bytes] = field(default_factory=list)
    durable: int = 0
    """Writes that are."""

    def write(self, data: bytes | memoryview) -> int:
        """Take bytes, which may yet get lost."""
        self.writes.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """To the system, which is not the disk."""

    def sync(self) -> None:
        """Make it durable."""
        self.durable = len(self.writes)

    def after_a_cut(self, random: Random) -> bytes:
        """The file as the next start may find it: any part of what was not durable is zeros.

        What lies behind the last byte that was written is not there at all.
        """
        out = b"".join(self.writes[: self.durable])
        kept = len(out)
        for data in self.writes[self.durable :]:
            part = random.choice((0, 0, len(data), len(data), random.randrange(len(data) + 1)))
            out += data[:part] + bytes(len(data) - part)
            kept = len(out) - len(data) + part if part else kept
        return out[:kept]


def power_cut(random: Random, *, syncs: bool = True, early: bool = False) -> tuple[bytes, int, int]:
    """Write until the power goes.

    Args:
        random: Decides.
        syncs: The writer syncs.
        early: A commit is acknowledged before it has happened.

    Returns:
        What is on the disk, how many events were acknowledged, how many were written.
    """
    disk = Disk()
    writer = CaptureWriter(
        disk,  # type: ignore[arg-type]
        file_id=FILE_ID,
        chunk_rows=random.choice((7, 30, 1000)),
        sync=disk.sync if syncs else None,
    )
    acknowledged = taken = 0
    for _ in range(random.randrange(1, 40)):
        count = random.randrange(9)
        writer.write(EVENTS.slice(taken, taken + count))
        taken += count
        step = random.randrange(10)
        if early:
            acknowledged = taken
        if step < 5:
            writer.commit()
            acknowledged = taken
        elif step == 5:
            writer.flush()
            acknowledged = taken
    if random.randrange(8) == 0:
        writer.close()
        acknowledged = taken
    return disk.after_a_cut(random), acknowledged, taken


def check_power_cut(data: bytes, acknowledged: int, taken: int) -> None:
    """Everything acknowledged is there, in order, once; and nothing that was not written."""
    for way, found in every_way(data).items():
        assert found[:acknowledged] == list(range(acknowledged)), way
        assert found == sorted(set(found)), way
        assert not found or found[-1] < taken


# kill -9

_CHILD = """
import sys
from durability_support import process_events
from kcap.format.writer import CaptureWriter

path, seed = sys.argv[1], int(sys.argv[2])
events = process_events(20_000, 1000.0, seed)
steps = [1 + (seed * 7 + i * 13) % 97 for i in range(events.rows)]
with open(path, "wb") as stream:
    writer = CaptureWriter(stream, chunk_rows=500 + seed % 3 * 4000)
    at = 0
    for step in steps:
        writer.write(events.slice(at, at + step))
        at += step
        writer.commit()
        print(min(at, events.rows), flush=True)
        if at >= events.rows:
            break
    sys.stdin.read()
"""


def killed(path: Path, seed: int, after: int) -> int:
    """Let a process write a capture, and kill it.

    Args:
        path: The capture.
        seed: Of what it writes.
        after: Commits to wait for.

    Returns:
        How many events it said it had committed.
    """
    command = [sys.executable, "-c", _CHILD, str(path), str(seed)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"}
    committed = 0
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        for _ in range(after):
            line = child.stdout.readline()
            if not line:
                break
            committed = int(line)
            if committed == 20_000:
                break
        child.send_signal(signal.SIGKILL)
        for line in child.stdout:
            # A line that was cut off tells of no commit.
            committed = int(line) if line.endswith(b"\n") else committed
    return committed


def check_killed(path: Path, committed: int) -> None:
    """The capture opens, has every committed event, once and in order, and only its end misses."""
    data = path.read_bytes()
    found = [o for b in opened(data).batches() for o in ords(b)]
    assert found == list(range(len(found)))
    assert len(found) >= committed
    reader = opened(data)
    index = reader.index()
    assert index is not None
    assert index.totals["events"] == len(found)
    check_ends_early(data)


def losses_of(data: bytes) -> list[Loss]:
    """What reading a capture says is lost."""
    return [
        s
        for b in opened(data).batches()
        for s in b.before
        if isinstance(s, Loss) and not s.recorded
    ]


def counting(data: bytes) -> tuple[CaptureReader, Callable[[], int]]:
    """A reader, and how many bytes it has read since it was opened."""
    stream = _Counting(data)
    reader = CaptureReader(stream, "test.kcap")
    before = stream.taken
    return reader, lambda: stream.taken - before


class _Counting(io.BytesIO):
    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        """Read, and count it."""
        data = super().read(size)
        self.taken += len(data)
        return data


def schema_of(data: bytes) -> Schema:
    """The columns of a capture."""
    reader = opened(data)
    list(reader.batches())
    return reader.schema


def quiet_hour(minutes: int = 60) -> tuple[bytes, list[tuple[int, int]], int]:
    """A host with 10 events a second, as `kcap record` writes it.

    Returns:
        The capture, closed; length of the file and events so far after each second; all events.
    """
    events = process_events(minutes * 600, 10.0)
    seconds = (events.numpy("ts", 0) - events.numpy("ts", 0)[0]) // 10**9
    state = State()
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID, snapshot=state.snapshot)
    promises = []
    taken = 0
    for second in range(int(seconds[-1]) + 1):
        last = int(np.searchsorted(seconds, second, "right"))
        writer.write(state.update(events.slice(taken, last)))
        taken = last
        (writer.commit if second % 60 else writer.flush)()
        promises.append((out.tell(), taken))
    writer.close()
    return out.getvalue(), promises, taken


def check_quiet_hour(data: bytes, promises: list[tuple[int, int]], cuts: int, seed: int) -> None:
    """Wherever the recording ends, what a second before it was there is there."""
    random = Random(seed)
    for cut in [random.randrange(256, len(data)) for _ in range(cuts)]:
        found = [o for b in opened(data[:cut]).batches() for o in ords(b)]
        assert found == list(range(len(found)))
        assert len(found) >= max((n for size, n in promises if size <= cut), default=0)
        if cut % 5 == 0:
            check_once(data[:cut], found)


def small_chunks(count: int) -> bytes:
    """A capture of many chunks of two events each, as a recorder that is killed leaves it."""
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID)
    pair = process_events(2, 10.0)
    for _ in range(count):
        writer.write(pair)
        writer.flush()
    return out.getvalue()


def index_bytes(data: bytes) -> int:
    """Bytes of the records that only help to find others."""
    kinds = (Kind.CHUNK_INDEX, Kind.CHECKPOINT, Kind.FOOTER)
    return sum(len(r.raw) for r in records(data) if r.header.kind in kinds)


def check_small_chunks(counts: list[int]) -> dict[int, int]:
    """The index of a capture grows with the chunks, not with their square.

    Returns:
        Index bytes by number of chunks.
    """
    cost = {n: index_bytes(small_chunks(n)) for n in counts}
    each = [cost[n] / n for n in counts]
    assert max(each) < 1.15 * min(each), cost
    return cost
