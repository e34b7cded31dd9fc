"""Blobs (clause 9): what is written comes back, however divided and whatever stands between."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blob_support import BLOCK, PARTS, Parts, blocks_of, content, divided, kinds_of, written
from hypothesis import example, given
from hypothesis import strategies as st
from support import FILE_ID, SOURCE, capture, make_events, opened, read, rows_of

from kcap import limits
from kcap.errors import KcapError, LimitError, OutputError
from kcap.format import scan, writer
from kcap.format.blobs import Block, Gap
from kcap.format.reader import CaptureReader
from kcap.format.record import MAGIC, Kind
from kcap.format.verify import verify
from kcap.format.window import FileWindow
from kcap.format.writer import CaptureWriter

# What comes back


@given(PARTS, st.lists(st.integers(0, 40), max_size=4))
@example([], [])
@example([b"a" * BLOCK, Gap(5), Gap(0, "x"), Gap(6), b"a" * BLOCK], [BLOCK])
def test_any_blob_comes_back_however_it_is_divided(parts: Parts, cuts: list[int]) -> None:
    """One manifest and the same records for any division; content, gaps and hash as they were."""
    with blocks_of(BLOCK):
        data, [said] = written([parts])
        assert written([divided(parts, cuts)])[0] == data

    reader = opened(data)
    [manifest] = reader.manifests()
    assert manifest == said
    assert b"".join(reader.blob(manifest)) == content(parts)
    assert manifest.size == len(content(parts))
    assert sum(e.length for e in manifest.extents()) == manifest.size
    missing = sum(p.length for p in parts if isinstance(p, Gap) and p.reason is not None)
    holes = sum(p.length for p in parts if isinstance(p, Gap) and p.reason is None)
    assert sum(e.length for e in manifest.missing) == missing
    assert sum(e.length for e in manifest.holes) == holes
    assert (manifest.sha256 is None) == (missing > 0) == (not manifest.complete)
    assert verify(opened(data), deep=True).good


@given(st.lists(PARTS, max_size=4))
def test_a_stream_gives_blocks_before_the_manifests_that_name_them(blobs: list[Parts]) -> None:
    """Of a pipe every blob can be put together by who keeps the blocks; each comes once."""
    with blocks_of(BLOCK):
        data, said = written(blobs)
    for pipe in (False, True):
        known: dict[bytes, bytes] = {}
        manifests = []
        for item in opened(data, pipe=pipe).blobs.records():
            if isinstance(item, Block):
                assert item.sha256 not in known
                known[item.sha256] = item.data
                continue
            manifests.append(item)
            extents = item.extents()
            parts = [known[e.sha256] if e.sha256 else bytes(e.length) for e in extents]
            assert b"".join(parts) == content(blobs[len(manifests) - 1])
        assert manifests == said
    assert list(opened(data, pipe=True).manifests()) == said


def test_a_parser_made_of_the_specification_reads_the_same() -> None:
    """spec/kcap.ksy: blocks stored, compressed and under a mask, and every form of range."""
    kaitai = pytest.importorskip("kaitai.reader")
    noise = random.Random(1).randbytes(100)
    parts: Parts = [b"a" * 5000, Gap(7), noise + MAGIC + noise, Gap(9, "EIO"), noise]
    data, _ = written([parts, []])

    found = [(said["size"], data) for said, data in kaitai.blobs(kaitai.parsed(data))]
    assert found == [(len(content(parts)), content(parts)), (0, b"")]


def test_blobs_of_a_stream_are_not_read_by_name() -> None:
    """The error says what to do instead."""
    data, [manifest] = written([[b"content"]])

    with pytest.raises(KcapError, match="can't be read by name") as caught:
        list(opened(data, pipe=True).blob(manifest))
    assert "save it to a file" in (caught.value.hint or "")


def test_what_is_known_of_a_blob_comes_back() -> None:
    """Path, event, details: also a path that is no text."""
    out = io.BytesIO()
    made = CaptureWriter(out, file_id=FILE_ID)
    path = os.fsdecode(b"/tmp/\xff\x00\x89KCP")
    about = {"mode": 0o755, "times": [1, -(1 << 63)], "xattr": {"user.a": None}}
    said = made.blob([b"x"], path=path, origin="ab" * 16, ord=-(1 << 63), details=about)
    made.close()

    [manifest] = opened(out.getvalue()).manifests()
    assert manifest == said
    assert (manifest.path, manifest.origin, manifest.ord) == (path, "ab" * 16, -(1 << 63))
    assert manifest.details == about


@pytest.mark.parametrize("closed", [True, False])
def test_a_large_blob_is_cut_at_1_mib(closed: bool) -> None:
    """Noise is stored, what can be compressed is; in closed and open files."""
    noise = random.Random(1).randbytes((1 << 20) + 5)
    data, [manifest] = written([[noise[:100], noise[100:], b"x" * (1 << 21)]], closed=closed)

    lengths = [e.length for e in manifest.extents()]
    assert lengths == [1 << 20, 1 << 20, 1 << 20, 5]
    assert b"".join(opened(data).blob(manifest)) == noise + b"x" * (1 << 21)
    assert len(noise) < len(data) < len(noise) + 3000


def test_each_block_is_written_once() -> None:
    """Within a blob, between blobs, and between a blob and a piece of another."""
    a, b = b"a" * BLOCK, b"b" * BLOCK
    with blocks_of(BLOCK):
        data, manifests = written([[a, b, a], [b, a], [a[:4]], [a, a, a[:4]], [Gap(9), a]])

    kinds = kinds_of(data)
    assert kinds.count("BLOB_BLOCK") == 3
    assert kinds.count("BLOB_MANIFEST") == 5
    assert [len(list(m.extents())) for m in manifests] == [3, 2, 1, 3, 2]


# Among events


def test_blobs_and_events_alternate() -> None:
    """Two blobs at once, with events, tails and a checkpoint in between; nothing waits for them."""
    events = make_events(120)
    out = io.BytesIO()
    with blocks_of(BLOCK), pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHECKPOINT_BYTES", 4000)
        made = CaptureWriter(out, file_id=FILE_ID, chunk_rows=50)
        first, second = made.blobs.begin(path="/a"), made.blobs.begin(path="/b")
        for i in range(0, 120, 10):
            made.write(events.slice(i, i + 10))
            first.write(bytes([i]) * 40)
            made.commit()
            second.write(bytes([255 - i]) * 40)
        assert second.close() == second.close()
        opened_now = out.getvalue()
        first.close()
        made.close()
    data = out.getvalue()

    kinds = kinds_of(data)
    assert {"TAIL", "CHUNK", "CHECKPOINT", "BLOB_BLOCK"} <= set(kinds)
    assert all(kinds[i + 1] == "CHUNK_INDEX" for i, k in enumerate(kinds) if k == "CHUNK")
    assert kinds.index("BLOB_BLOCK") < kinds.index("CHUNK")
    reader = opened(data)
    manifests = {m.path: b"".join(reader.blob(m)) for m in reader.manifests()}
    assert manifests["/a"] == b"".join(bytes([i]) * 40 for i in range(0, 120, 10))
    assert list(manifests) == ["/b", "/a"]
    assert verify(opened(data), deep=True).good
    for some in (data, opened_now):
        index = opened(some).index()
        assert index is not None
        assert int(index.table["rows"].sum()) == 120
        assert rows_of(read(some)[0]) == rows_of([events])
    assert [m.path for m in opened(opened_now).manifests()] == ["/b"]


def test_a_checkpoint_waits_for_tails() -> None:
    """A large blob makes CHECKPOINTs due, but none hides a TAIL that is in no chunk yet."""
    events = make_events(30)
    out = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHECKPOINT_BYTES", 1000)
        made = CaptureWriter(out, file_id=FILE_ID)
        noise = random.Random(2)
        made.blob([noise.randbytes(3000)])
        made.write(events)
        made.commit()
        made.blob([noise.randbytes(3000)])

    kinds = kinds_of(out.getvalue())
    assert kinds[3:] == [
        *("CHECKPOINT", "BLOB_MANIFEST", "SCHEMA", "TAIL"),
        *("BLOB_BLOCK", "BLOB_MANIFEST"),
    ]
    index = opened(out.getvalue()).index()
    assert index is not None
    assert int(index.table["rows"].sum()) == 30


def test_commit_makes_a_blob_durable() -> None:
    """Also where no event was ever written."""
    synced: list[int] = []
    out = io.BytesIO()
    made = CaptureWriter(out, file_id=FILE_ID, sync=lambda: synced.append(len(out.getvalue())))
    made.blob([b"content"])
    made.commit()

    assert synced[-1] == len(out.getvalue())
    assert [b"".join(opened(out.getvalue()).blob(m)) for m in opened(out.getvalue()).manifests()]


def test_blobs_are_no_part_of_the_content_hash() -> None:
    """A capture with a blob and one without have equal hashes; the hash of the file differs."""
    plain = capture([make_events(50)])
    out = io.BytesIO()
    made = CaptureWriter(out, file_id=FILE_ID)
    made.blob([b"before"])
    made.write(make_events(50))
    made.blob([b"behind"])
    made.close()

    with_blobs = opened(out.getvalue()).footer
    without = opened(plain).footer
    assert with_blobs is not None
    assert without is not None
    for name in ("content_hash", "content_hash_values"):
        assert with_blobs.totals[name] == without.totals[name]
    assert made.file_hash != verify(opened(plain)).file_hash


def test_canonical_mode_gives_equal_bytes_with_blobs() -> None:
    """The same blobs in the same places, in any division and with details in any order."""

    def made(step: int, order: int, text: bytes) -> bytes:
        out = io.BytesIO()
        sink = CaptureWriter(out, canonical=True)
        details = dict(list({"a": 1, "b": 2, "c": 3}.items())[::order])
        parts = [text[i : i + step] for i in range(0, len(text), step)]
        sink.write(make_events(20).with_before([SOURCE]))
        sink.blob(parts, path="/x", details=details)
        sink.close()
        return out.getvalue()

    text = b"some text " * 1000
    assert made(7, 1, text) == made(len(text), -1, text)
    assert made(7, 1, text) != made(7, 1, text[:-1]), "the control"


def test_a_blob_may_come_first_in_canonical_mode() -> None:
    """The file's id, which waits for the first record, is made for it."""
    out = [io.BytesIO(), io.BytesIO()]
    for stream in out:
        sink = CaptureWriter(stream, canonical=True)
        sink.blob([b"first"])
        sink.write(make_events(20))
        sink.close()

    assert out[0].getvalue() == out[1].getvalue()
    assert verify(opened(out[0].getvalue())).good


# What goes wrong while a blob is taken


def failing(parts: Parts, error: Exception) -> Iterator[bytes | Gap]:
    """Parts whose reading fails."""
    yield from parts
    raise error


def test_what_was_read_before_a_failure_is_kept() -> None:
    """The caller gets the failure, the capture a blob that says why it ends."""
    out = io.BytesIO()
    made = CaptureWriter(out, file_id=FILE_ID)
    with pytest.raises(OSError, match="Input/output"):
        made.blob(failing([b"a" * 100, Gap(7)], OSError(5, "Input/output error")), path="/x")
    made.write(make_events(3))
    made.close()

    reader = opened(out.getvalue())
    [manifest] = reader.manifests()
    assert b"".join(reader.blob(manifest)) == b"a" * 100 + bytes(7)
    assert manifest.truncated == "reading it failed: [Errno 5] Input/output error"
    assert (manifest.sha256, manifest.complete) == (None, False)
    assert verify(opened(out.getvalue()), deep=True).good


class _Full(io.BytesIO):
    """A disk that is full after some bytes."""

    room = 5000

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_full_disk_is_an_output_error() -> None:
    """Nothing goes behind the record that did not fit; close says nothing more."""
    out = _Full()
    made = CaptureWriter(out, file_id=FILE_ID)
    with pytest.raises(OutputError, match="No space left"):
        made.blob([random.Random(1).randbytes(9000)])
    made.close()

    assert verify(opened(out.getvalue())).state == "open"


def test_close_ends_what_nobody_ended() -> None:
    """A blob that is still open when the capture ends is kept as far as it came."""
    out = io.BytesIO()
    made = CaptureWriter(out, file_id=FILE_ID)
    made.blobs.begin(path="/a").write(b"abc")
    made.close()

    reader = opened(out.getvalue())
    [manifest] = reader.manifests()
    assert b"".join(reader.blob(manifest)) == b"abc"
    assert manifest.truncated == "the capture ended before"
    assert verify(opened(out.getvalue())).good


@pytest.mark.parametrize(
    ("name", "limit", "kept"),
    [("BLOB_RANGES", 3, 3 * BLOCK), ("BLOB_BYTES", 50, 3 * BLOCK), ("BLOB_BLOCKS", 2, 2 * BLOCK)],
)
def test_what_the_format_cannot_hold_is_cut_off_and_said(name: str, limit: int, kept: int) -> None:
    """3.1: at each limit the blob ends and says which; the capture goes on."""
    parts: Parts = [bytes([i]) * BLOCK for i in range(6)]
    with blocks_of(BLOCK), pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, name, limit)
        data, [manifest] = written([parts])

    assert b"".join(opened(data).blob(manifest)) == content(parts)[:kept]
    assert f"{limit} " in (manifest.truncated or "")
    assert verify(opened(data)).good


def test_too_many_blobs_or_too_long_a_description_is_refused_before_any_block() -> None:
    """3.1: nothing is left in the capture that no manifest names."""
    out = io.BytesIO()
    made = CaptureWriter(out, file_id=FILE_ID)
    before = out.getvalue()
    nested: Any = []
    for _ in range(40):
        nested = [nested]
    with pytest.raises(LimitError):
        made.blob([b"x"], path="/" * (1 << 20))
    with pytest.raises(LimitError):
        made.blob([b"x"], details={"a": nested})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "BLOBS", 0)
        with pytest.raises(LimitError):
            made.blob([b"x"])
    assert out.getvalue() == before


def test_reasons_without_number_fit_a_manifest() -> None:
    """The hundredth reason stands for all others, and long ones are cut."""
    parts: Parts = []
    for i in range(200):
        parts += [Gap(1, f"{i} " + "\x01" * 2000), b"x"]
    data, [manifest] = written([parts])

    assert len(manifest.reasons) == limits.BLOB_REASONS
    assert [e.reason for e in manifest.missing][-1] == "and others"
    assert list(opened(data).manifests()) == [manifest]


def test_holes_of_a_terabyte_cost_nothing() -> None:
    """9.5: such a blob has no hash; one of 1 GiB at most has that of its content."""
    data, [manifest] = written([[b"a", Gap(1 << 40), b"b"]])

    assert manifest.sha256 is None
    assert manifest.complete
    assert len(data) < 2000
    assert list(opened(data).manifests()) == [manifest]
    assert verify(opened(data), deep=True).good
    first = next(opened(data).blob(manifest))
    assert first == b"a"


# What finding blobs costs


class _Counted(FileWindow):
    """A file that counts what is read of it."""

    read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        data = super().read_at(offset, length)
        self.read += len(data)
        return data


def counted(data: bytes) -> tuple[CaptureReader, _Counted]:
    """A reader, and what it reads of its file."""
    reader = opened(data)
    window = _Counted(io.BytesIO(data))
    reader.window = window
    return reader, window


def test_finding_a_blob_reads_headers_only() -> None:
    """Less than 200 bytes a record; of a file whose FOOTER counts no blobs nothing."""
    noise = random.Random(3).randbytes(200_000)
    data, [manifest, _] = written([[b"abc"], [noise]], closed=False)
    for some in (data, written([[b"abc"], [noise]])[0]):
        reader, window = counted(some)
        assert b"".join(reader.blob(manifest)) == b"abc"
        assert window.read < 200 * len(kinds_of(some)) + 1000
        before = window.read
        assert list(reader.blob(manifest))
        assert window.read < before + 300, "the table is kept"

    reader, window = counted(capture())
    assert list(reader.manifests()) == []
    assert window.read == 0


def test_a_scan_of_some_kinds_finds_the_same_records() -> None:
    """Past damage of any header too; only the payloads of others come empty."""
    data, _ = written([[b"a" * 50, Gap(3)], [random.Random(4).randbytes(500)]])
    data = capture()[:-300] + data  # two files in one: numbers that come again
    step = 5

    def headers(bad: bytes, kinds: Any) -> list[tuple[int, int]]:
        found = scan.Scanner(FileWindow(io.BytesIO(bad)), FILE_ID, kinds=kinds)
        return [(r.offset, r.header.number) for r in found.records() if isinstance(r, scan.Record)]

    starts = [r[0] for r in headers(data, None)]
    for start in starts:
        for at in range(start, start + 32, step):
            bad = bytearray(data)
            bad[at] ^= 0x10
            every = headers(bytes(bad), None)
            assert headers(bytes(bad), ()) == every
            assert headers(bytes(bad), {Kind.BLOB_BLOCK}) == every


# Memory

_LARGE = """
import io, random, sys
from pathlib import Path
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
def parts():
    noise = random.Random(1)
    for _ in range(1200):
        yield noise.randbytes(1 << 18)
case, path = sys.argv[1:]
if case == "write":
    with open(path, "wb") as stream:
        writer = CaptureWriter(stream)
        print(writer.blob(parts()).size)
        writer.close()
else:
    with open(path, "rb") as stream:
        reader = CaptureReader(stream, path)
        blob = reader.blob(next(reader.manifests()))
        print(sum(map(len, blob if case == "read" else list(blob))))
status = Path("/proc/self/status").read_text("ascii")
print(int(status.split("VmHWM:")[1].split()[0]) >> 10)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_a_blob_of_300_mib_takes_little_memory(tmp_path: Path, root: Path) -> None:
    """To write and to read; whoever keeps its parts needs more than all of it."""
    peaks = {}
    for case in ("write", "read", "hold"):
        done = subprocess.run(
            [sys.executable, "-c", _LARGE, case, tmp_path / "large.kcap"],
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
        )
        size, peaks[case] = map(int, done.stdout.split())
        assert size == 300 << 20

    assert max(peaks["write"], peaks["read"]) < 150
    assert peaks["hold"] > 300, "the control"
