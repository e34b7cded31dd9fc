"""kcap recover on captures with all there is in them, and on large ones.

What runs for minutes is marked; a smaller part of each runs always.
"""

from __future__ import annotations

import io
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import forge
import pytest
from memory_cases import small
from recover_support import NAMES, bases, check_cut, check_flip, checked, flips, records
from support import FILE_ID, SOURCE, batch_of, capture, make_events, opened, rows_of, snapshot
from test_memory import BOUND_MIB, run

from kcap.format import scan
from kcap.format.chunk import Chunk
from kcap.format.content import ContentHash
from kcap.format.reader import CaptureReader
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.schema import unpack
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch
from kcap.model.side import Loss

REGIONS = 10
WITHIN = b"another capture!"


def within() -> bytes:
    """A small capture of another file id."""
    return capture([make_events(30)], file_id=WITHIN)


def recording(rows: int, chunk_rows: int, *, closed: bool = True) -> bytes:
    """A capture with states, losses, tails, checkpoints, and a capture within it as an artifact."""
    artifact = random.Random(1).randbytes(60_001) + within()
    out = io.BytesIO()
    writer = CaptureWriter(out, file_id=FILE_ID, chunk_rows=chunk_rows)
    for i, batch in enumerate(small(rows)):
        sides = [SOURCE, snapshot(50)] if i == 0 else [Loss("lost", i, "a reason", cpu=i)]
        step = max(1, batch.rows // 16)
        for start in range(0, batch.rows, step):
            part = batch.slice(start, start + step).compact()
            writer.write(part.with_before(sides if start == 0 else []))
            if start % (3 * step) == 0:
                writer.commit()
        if i % 4 == 0:
            writer.blob([artifact], path=f"/tmp/{i}.kcap")
    if closed:
        writer.close()
    else:
        writer.flush()
    return out.getvalue()


def damaged(data: bytes, seed: int) -> bytes:
    """The capture with ten regions of bit flips, of zeros, of noise, or that are gone."""
    rng = random.Random(seed)
    made = bytearray(data)
    for i in range(REGIONS):
        size = rng.choice([1, 64, 4096, rng.randrange(1, max(2, len(data) // 100))])
        start = rng.randrange(400, len(made) - size - 400)
        if i % 4 == 0:
            for _ in range(min(size, 100)):
                made[start + rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif i % 4 == 1:
            made[start : start + size] = bytes(size)
        elif i % 4 == 2:
            made[start : start + size] = rng.randbytes(size)
        else:
            del made[start : start + size]
    return bytes(made)


def check_regions(data: bytes, seed: int, tmp_path: Path) -> None:
    """Every record outside the damaged ones comes back, in order, and every row of a chunk."""
    bad = damaged(data, seed)
    out, report = checked(bad)
    intact = [r for r in records(data) if bytes(r.raw[: HEADER_BYTES + r.header.length]) in bad]
    kept = {bytes(r.raw) for r in records(out)}
    dropped = [r for r in intact if bytes(r.raw) not in kept]
    # Only what says where things were is not what it was any more.
    assert {r.header.kind for r in dropped} <= {Kind.CHECKPOINT, Kind.FOOTER}
    numbers = [r.header.number for r in records(out)]
    assert numbers == sorted(numbers)

    wanted, found = ContentHash(), ContentHash()
    chunks = {r.header.number for r in intact if r.header.kind == Kind.CHUNK}
    rows = lost = 0
    for item, batch in chunks_of(data):
        rows += batch.rows
        if item.header.number in chunks:
            wanted.add(batch)
        else:
            lost += batch.rows
    for _, batch in chunks_of(out):
        found.add(batch)
    assert found.digests() == wanted.digests()
    path = tmp_path / "out.kcap"
    path.write_bytes(out)
    with path.open("rb") as stream:
        delivered = sum(b.rows for b in CaptureReader(stream, str(path)).batches())
    rescued = delivered - (rows - lost)
    assert 0 <= rescued <= lost
    assert report.rows == delivered
    assert report.lost()[1] in (lost - rescued, None)
    assert len(chunks) > 3
    assert lost, "the control: the damage hit rows"


def chunks_of(data: bytes) -> Iterator[tuple[scan.Record, Batch]]:
    """The chunks of a capture and their rows."""
    reader = opened(data)
    for item in records(data):
        if item.header.kind == Kind.SCHEMA:
            reader.schema.read(unpack(item.payload))
        elif item.header.kind == Kind.CHUNK:
            yield item, Chunk(item.payload, reader.schema).batch()


@pytest.mark.parametrize("seed", range(4))
def test_ten_damaged_regions(seed: int, tmp_path: Path) -> None:
    """In a small recording: every row outside the damaged records comes back, in order."""
    check_regions(recording(65_536, 1000), seed, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_ten_damaged_regions_of_100_megabytes(seed: int, tmp_path: Path) -> None:
    """The same in a large one."""
    data = recording(11_000_000, 16_384)
    assert len(data) > 100_000_000
    check_regions(data, seed, tmp_path)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("as_value", [False, True])
def test_a_capture_within_adds_nothing(closed: bool, as_value: bool) -> None:
    """A file that was taken along, as a value or an artifact, behind damage at any place."""
    events = make_events(40)
    holder = batch_of([(1, {"data": b"x" * pad + within()}) for pad in range(8)])
    out = io.BytesIO()
    with mock.patch("kcap.format.zstd.compress", lambda data, _=3: forge.raw_frame(bytes(data))):
        writer = CaptureWriter(out, file_id=FILE_ID)
        for part in (events.slice(0, 20), holder if as_value else None, events.slice(20, 40)):
            if part is None:
                writer.blob([within()], path="/tmp/x.kcap")
            else:
                writer.write(part)
            writer.flush()
        if closed:
            writer.close()
    data = out.getvalue()
    assert (data.count(within()) == 8) == as_value, "stored as it is, but for blobs"
    kind = Kind.CHUNK if as_value else Kind.BLOB_BLOCK
    item = [r for r in records(data) if r.header.kind == kind][as_value]
    inner = data.index(WITHIN, item.offset) - 32 if as_value else item.offset + 100
    for at in [*range(item.offset, item.offset + 48), inner - 1, inner + 33, inner + 200]:
        bad = bytearray(data)
        bad[at] ^= 1

        out_bytes, _ = checked(bytes(bad))

        assert rows_of(list(opened(out_bytes).batches())) == rows_of([events])
        assert WITHIN not in out_bytes


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit(name: str) -> None:
    """A flipped bit, wherever it is, costs no more than its record."""
    truth = bases()[name]
    step = 1 if len(truth.data) < 8000 else 7
    for at, bad in flips(truth.data, step):
        check_flip(truth, at, bad)


@pytest.mark.long
@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("name", ["plain", "open", "tails", "canonical"])
def test_every_cut(name: str, pipe: bool) -> None:
    """A capture that ends early, wherever, gives its complete records."""
    truth = bases()[name]
    for cut in range(len(truth.data)):
        check_cut(truth, cut, pipe=pipe)


@pytest.mark.long
def test_memory(tmp_path: Path) -> None:
    """A gigabyte is recovered within the bound, from a file and from a pipe."""
    path, out = tmp_path / "in.kcap", tmp_path / "out.kcap"
    run("write", path, "dense", 13 << 14)
    size = path.stat().st_size
    assert size > 1_000_000_000
    with path.open("r+b") as stream:
        for at in range(1, REGIONS):
            stream.seek(size * at // REGIONS)
            stream.write(bytes(5000))

    done = run("kcap", "recover", path, "-o", out)
    assert done.result == 3
    assert done.peak_mib < BOUND_MIB
    out.unlink()

    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        done = run("kcap", "recover", "-", "-o", out, stdin=cat.stdout)
    assert done.result == 3
    assert done.peak_mib < BOUND_MIB
