"""Blobs in damaged and hostile captures (clause 9): true bytes, or an error that names where."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import forge
import pytest
import zstandard
from blob_support import BLOCK, blocks_of, written
from forge import Part
from hypothesis import given
from hypothesis import strategies as st
from support import FILE_ID, capture, make_events, opened, read, rows_of

from kcap import limits
from kcap.errors import DamagedError, KcapError, LimitError
from kcap.format import blobs, body, zstd
from kcap.format.blobs import Block, Gap, Manifest, masked, pack_block, unpack_block
from kcap.format.record import MAGIC, Kind
from kcap.format.recover import recover
from kcap.format.verify import verify
from kcap.format.writer import CaptureWriter

PARTS: list[list[bytes | Gap]] = [
    [b"a" * BLOCK, b"bcd" * 11, Gap(20)],
    [Gap(5, "EIO"), b"a" * BLOCK, b"last"],
]


def with_blobs(*, closed: bool = True) -> bytes:
    """Events in three chunks, and two blobs that share a block."""
    out = io.BytesIO()
    with blocks_of(BLOCK):
        made = CaptureWriter(out, file_id=FILE_ID)
        events = make_events(30)
        made.write(events.slice(0, 10))
        first = made.blobs.begin(path="/first", details={"mode": 0o644})
        first.write(PARTS[0][0])
        made.flush()
        made.write(events.slice(10, 20))
        made.blob(PARTS[1], path="/second", ord=12)
        made.flush()
        first.write(PARTS[0][1])
        first.gap(20)
        made.write(events.slice(20, 30))
        first.close()
        made.flush()
        if closed:
            made.close()
    return out.getvalue()


GOOD = with_blobs()
MANIFESTS = list(opened(GOOD).manifests())
CONTENTS = {m.path: b"".join(opened(GOOD).blob(m)) for m in MANIFESTS}
OFFSETS = [r.offset for r in opened(GOOD).scanner().records()]


def check(data: bytes, *, whole: bool = False) -> None:
    """What a capture gives of its blobs is true, or said to be damaged; whole: all is there."""
    reader = opened(data)
    found = list(reader.manifests())
    assert [m for m in MANIFESTS if m in found] == found
    lost = bool(reader.blobs.losses)
    assert lost or found == MANIFESTS or not whole
    for manifest in found:
        true = CONTENTS[manifest.path]
        before = len(reader.blobs.losses)
        got = b"".join(reader.blob(manifest, lenient=True))
        damaged = reader.blobs.losses[before:]
        assert len(got) == len(true)
        if got == true and not damaged:
            assert b"".join(reader.blob(manifest)) == true
            continue
        lost = True
        assert damaged
        assert all(loss.kind == "damaged" and manifest.path in loss.reason for loss in damaged)
        wrong = [e for e in manifest.extents() if not same(e, got, true)]
        assert all(not any(got[e.offset : e.offset + e.length]) for e in wrong)
        assert all(f"bytes {e.offset} to" in str(damaged) for e in wrong)
        with pytest.raises(DamagedError, match="can't be read"):
            list(reader.blob(manifest))


def same(extent: blobs.Extent, got: bytes, true: bytes) -> bool:
    """Whether a range came as it was written."""
    part = slice(extent.offset, extent.offset + extent.length)
    return got[part] == true[part]


def flipped(data: bytes, bit: int) -> bytes:
    """Bytes with one bit changed."""
    bad = bytearray(data)
    bad[bit // 8] ^= 1 << bit % 8
    return bytes(bad)


def check_flip(bit: int) -> None:
    """One bit costs one block or one manifest at most, is noticed, and is told of."""
    bad = flipped(GOOD, bit)
    assert not verify(opened(bad)).good
    for data in (bad, bad[: OFFSETS[-1]]):
        check(data, whole=True)


@pytest.mark.parametrize("start", range(4))
def test_any_flipped_bit_gives_true_bytes_or_a_loss(start: int) -> None:
    """Every 41st bit of a closed and of an open file."""
    for bit in range(8 * OFFSETS[2] + 41 * start, 8 * len(GOOD), 164):
        check_flip(bit)


@pytest.mark.long
def test_every_flipped_bit_gives_true_bytes_or_a_loss() -> None:
    """Each single bit behind the FILE_HEADERs, whose damage other tests see to."""
    for bit in range(8 * OFFSETS[2], 8 * len(GOOD)):
        check_flip(bit)


def test_unchecked_blocks_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without checksum and hash a flipped bit passes for content."""
    at = GOOD.index(b"last")
    unchecked = partial(opened, checks=False)
    monkeypatch.setitem(globals(), "opened", unchecked)
    check(flipped(GOOD, 8 * at))  # the hash alone will do
    monkeypatch.setattr(blobs, "unpack_block", lambda raw: Block(raw[12:44], raw[44:]))
    check(GOOD)
    with pytest.raises(AssertionError):
        check(flipped(GOOD, 8 * at))


def test_any_cut_leaves_what_is_before_it() -> None:
    """A manifest that is there has all of its blocks: they stand before it."""
    for end in range(OFFSETS[2], len(GOOD), 3):
        reader = opened(GOOD[:end])
        for manifest in reader.manifests():
            assert b"".join(reader.blob(manifest)) == CONTENTS[manifest.path]
        check(GOOD[:end])


def test_damage_of_a_block_is_told_by_verify_and_reading() -> None:
    """Which range of which blob is lost; a stream tells it too, and gives the rest."""
    at = next(i for i, k in enumerate(forge.parts_of(GOOD)) if k.kind == Kind.BLOB_BLOCK)
    bad = flipped(GOOD, 8 * (OFFSETS[at] + 60))

    report = verify(opened(bad), deep=True)
    told = [f.what for f in report.findings if "no intact block" in f.what]
    assert told == [
        "no intact block before it holds bytes 5 to 20 of the blob '/second'",
        "no intact block before it holds bytes 0 to 15 of the blob '/first'",
    ]
    stream = opened(bad, pipe=True)
    assert len(list(stream.blobs.records())) == len(list(opened(GOOD).blobs.records())) - 1
    [loss] = stream.blobs.losses
    assert "BLOB_BLOCK record fails its CRC" in loss.reason
    assert rows_of(read(bad)[0]) == rows_of(read(GOOD)[0])


# Recovery


def recovered(data: bytes) -> tuple[bytes, Any]:
    """A capture that kcap recover made."""
    out = io.BytesIO()
    report = recover(io.BytesIO(data), out)
    return out.getvalue(), report


def test_recover_keeps_blobs() -> None:
    """Of an open file all, closed or not; of a damaged one what is intact; the result verifies."""
    again, report = recovered(with_blobs(closed=False))
    assert report.clean
    assert list(opened(again).manifests()) == MANIFESTS
    assert verify(opened(again), deep=True).good

    for at in range(2, len(OFFSETS) - 1):
        bad = flipped(GOOD, 8 * (OFFSETS[at] + 40))
        again, report = recovered(bad)
        assert verify(opened(again), deep=True).good, at
        check(again)


def test_a_recording_that_ended_inside_a_blob_can_be_recovered() -> None:
    """Blocks without a manifest are counted and are no damage (9.6)."""
    first = next(i for i, p in enumerate(forge.parts_of(GOOD)) if p.kind == Kind.BLOB_BLOCK)
    again, report = recovered(GOOD[: OFFSETS[first + 1]])

    assert report.clean
    found = verify(opened(again), deep=True)
    assert found.good
    assert found.unnamed_blocks == 1


# Hostile records


def block_payload(
    data: bytes, *, length: int | None = None, codec: int = 0, mask: int = 0, of: bytes = b""
) -> bytes:
    """A block's payload that says anything."""
    digest = Block.of(of or data).sha256
    head = struct.pack("<IBxxxI", len(data) if length is None else length, codec, mask)
    return head + masked(digest + data, mask)


def frame(content: bytes) -> bytes:
    """A zstd frame."""
    return zstd.compress(content)


BOMB = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 28))
BAD_BLOCKS: dict[str, tuple[bytes, type[KcapError]]] = {
    "nothing": (b"", DamagedError),
    "a head alone": (block_payload(b"x")[:43], DamagedError),
    "no bytes": (block_payload(b"x", length=0), LimitError),
    "too long": (block_payload(b"x", length=(1 << 20) + 1), LimitError),
    "too many stored bytes": (block_payload(b"x") + bytes(1 << 20), LimitError),
    "another length": (block_payload(b"xy", length=1), DamagedError),
    "another codec": (block_payload(b"x", codec=2), DamagedError),
    "not zero": (block_payload(b"x")[:5] + b"\1" + block_payload(b"x")[6:], DamagedError),
    "another hash": (block_payload(b"x", of=b"y"), DamagedError),
    "no frame": (block_payload(b"x", codec=1), DamagedError),
    "a frame of more": (block_payload(frame(b"xy"), length=1, codec=1, of=b"xy"), DamagedError),
    "a frame and more": (
        block_payload(frame(b"xy") + b"z", length=2, codec=1, of=b"xy"),
        DamagedError,
    ),
    "a bomb": (block_payload(BOMB, length=1 << 20, codec=1), DamagedError),
    "the magic": (block_payload(b"x" + MAGIC), DamagedError),
    "another mask": (block_payload(b"abcd", mask=7)[:8] + bytes(40), DamagedError),
}


@pytest.mark.parametrize("name", BAD_BLOCKS)
def test_a_block_that_lies_is_refused(name: str) -> None:
    """9.2, 9.3: by an error of kcap; in a file it is a finding, a loss, and no byte of a blob."""
    payload, error = BAD_BLOCKS[name]
    with pytest.raises(error):
        unpack_block(payload)

    data = forge.with_part(GOOD, Kind.BLOB_BLOCK, lambda part: replace(part, payload=payload))
    assert not verify(opened(data)).good
    check(data)
    assert opened(data).blobs.losses == []
    reader = opened(data, pipe=True)
    list(reader.blobs.records())
    assert reader.blobs.losses


def test_blocks_that_are_good_are_taken() -> None:
    """The control: the same forge makes blocks that are read, also under a mask nobody needs."""
    for payload in (block_payload(b"xy"), block_payload(b"xy", mask=0xFFFFFFFF)):
        assert unpack_block(payload).data == b"xy"
    made = block_payload(frame(b"x" * 99), length=99, codec=1, of=b"x" * 99)
    assert unpack_block(made).data == b"x" * 99


BODY: dict[str, Any] = {
    "details": {},
    "ord": None,
    "origin": None,
    "path": "/first",
    "reasons": [],
    "sha256": None,
    "size": 0,
    "truncated": None,
}
EMPTY_HASH = Manifest.unpack(
    next(p for p in forge.parts_of(written([[]])[0]) if p.kind == Kind.BLOB_MANIFEST).payload
).sha256
RANGE = struct.Struct("<QII32s")
H = bytes(range(32))
Z = bytes(32)


def manifest_payload(
    ranges: Sequence[tuple[int, int, int, bytes]] = (), count: int | None = None, **members: Any
) -> bytes:
    """A manifest's payload that says anything."""
    text = body.pack(BODY | members)
    packed = b"".join(RANGE.pack(*r) for r in ranges)
    return struct.pack("<II", len(text), len(ranges) if count is None else count) + packed + text


BAD_MANIFESTS: dict[str, bytes] = {
    "nothing": b"",
    "half a head": bytes(7),
    "no body": struct.pack("<II", 0, 0),
    "more ranges than there are": manifest_payload(count=3, sha256=EMPTY_HASH),
    "too many ranges": manifest_payload(count=(1 << 32) - 1, sha256=EMPTY_HASH),
    "another size": manifest_payload([(5, 0, 0, H)], size=6, sha256="00" * 32),
    "a negative size": manifest_payload(size=-1, sha256="00" * 32),
    "a size of no number": manifest_payload(size="5", sha256="00" * 32),
    "a block too long": manifest_payload([((1 << 20) + 1, 0, 0, H)], size=(1 << 20) + 1),
    "an empty range": manifest_payload([(0, 1, 0, Z)], sha256="00" * 32),
    "a hole too long": manifest_payload([((1 << 43) + 1, 1, 0, Z)], size=(1 << 43) + 1),
    "a sum that wraps": manifest_payload([(1 << 63, 1, 0, Z)] * 2, size=0),
    "a blob too long": manifest_payload([(1 << 43, 1, 0, Z)] * 2, size=1 << 44),
    "another form": manifest_payload([(5, 3, 0, Z)], size=5, sha256="00" * 32),
    "a block with a reason": manifest_payload([(5, 0, 1, H)], size=5, sha256="00" * 32),
    "a block without a hash": manifest_payload([(5, 0, 0, Z)], size=5, sha256="00" * 32),
    "a hole with a hash": manifest_payload([(5, 1, 0, H)], size=5, sha256="00" * 32),
    "a reason that is not there": manifest_payload([(5, 2, 0, Z)], size=5),
    "a reason that nothing has": manifest_payload(reasons=["a"]),
    "too many reasons": manifest_payload(
        [(1, 2, i, Z) for i in range(101)], size=101, reasons=[str(i) for i in range(101)]
    ),
    "reasons that are no texts": manifest_payload([(5, 2, 0, Z)], size=5, reasons=[1]),
    "reasons that are no list": manifest_payload(reasons="a"),
    "a hash of what is missing": manifest_payload(
        [(5, 2, 0, Z)], size=5, reasons=["a"], sha256="00" * 32
    ),
    "a hash of what is cut off": manifest_payload(truncated="a", sha256="00" * 32),
    "a hash of huge holes": manifest_payload([(1 << 40, 1, 0, Z)], size=1 << 40, sha256="0" * 64),
    "no hash": manifest_payload([(5, 0, 0, H)], size=5),
    "a hash in capitals": manifest_payload([(5, 0, 0, H)], size=5, sha256="AB" * 32),
    "a short hash": manifest_payload([(5, 0, 0, H)], size=5, sha256="ab"),
    "a path that is no text": manifest_payload(path=5, sha256=EMPTY_HASH),
    "details that are a list": manifest_payload(details=[], sha256=EMPTY_HASH),
    "an ord that is no integer": manifest_payload(ord=1.5, sha256=EMPTY_HASH),
    "an ord beyond 64 bits": manifest_payload(ord=1 << 63, sha256=EMPTY_HASH),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_manifest_that_lies_is_refused(name: str) -> None:
    """9.4, 9.5: by an error of kcap; in a file it is a finding and a loss, and others are read."""
    payload = BAD_MANIFESTS[name]
    with pytest.raises((DamagedError, LimitError)):
        Manifest.unpack(payload)

    data = forge.with_part(GOOD, Kind.BLOB_MANIFEST, lambda part: replace(part, payload=payload))
    assert not verify(opened(data)).good
    for pipe in (False, True):
        reader = opened(data, pipe=pipe)
        assert list(reader.manifests()) == MANIFESTS[1:]
        assert len(reader.blobs.losses) == 1


ANY_RANGE = st.tuples(
    st.sampled_from([0, 1, 5, 1 << 20, (1 << 20) + 1, 1 << 43, (1 << 43) + 1, 1 << 63]),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([H, Z]),
)


@given(
    st.lists(st.one_of(st.sampled_from([(5, 0, 0, H), (7, 1, 0, Z), (9, 2, 0, Z)]), ANY_RANGE)),
    st.sampled_from([0, 0, 0, 1]),
    st.booleans(),
    st.sampled_from([[], ["a"], ["a", "b"]]),
)
def test_few_ranges_are_checked_as_many_are(
    ranges: list[tuple[int, int, int, bytes]], more: int, hashed: bool, reasons: list[str]
) -> None:
    """By two ways that say the same: a range at a time, and by numpy."""
    size = sum(one[0] for one in ranges) + more
    sha256 = "00" * 32 if hashed else None
    payload = manifest_payload(ranges, size=size, sha256=sha256, reasons=reasons)
    said = []
    for few in (0, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blobs, "_FEW", few)
            try:
                said.append(repr(Manifest.unpack(payload)))
            except KcapError as e:
                said.append(repr(e))
    assert said[0] == said[1]


def test_manifests_that_are_good_are_taken() -> None:
    """The control: the same forge makes manifests that are read."""
    for payload in (
        manifest_payload(sha256=EMPTY_HASH),
        manifest_payload([(5, 0, 0, H)], size=5, sha256="ab" * 32),
        manifest_payload([(1 << 43, 1, 0, Z)], size=1 << 43),
        manifest_payload([(5, 2, 0, Z)], size=5, reasons=["a"], new_in_1_2=True) + b"more",
    ):
        assert Manifest.unpack(payload).path == "/first"


def test_verify_compares_blocks_and_manifests() -> None:
    """9.1, 9.6: what stands twice, is not there, comes too late, or makes another whole."""
    block = Part(Kind.BLOB_BLOCK, pack_block(Block.of(b"block")))
    digest = Block.of(b"block").sha256

    def found(*parts: Part, deep: bool = True) -> list[str]:
        data = capture([make_events(5)])
        for part in parts:
            data = forge.inserted(data, part)
        report = verify(opened(data), deep=deep)
        return [f.what for f in report.findings if "FOOTER" not in f.what]

    def manifest(length: int, sha256: str = "ab" * 32) -> Part:
        ranges = [(length, 0, 0, digest)]
        return Part(
            Kind.BLOB_MANIFEST, manifest_payload(ranges, size=length, sha256=sha256, path="/p")
        )

    right = manifest(5, Block.of(b"block").sha256.hex())
    assert found(block, right) == []
    assert found(block) == []
    assert "stands at byte" in found(block, block, right)[0]
    absent = ["no intact block before it holds bytes 0 to 4 of the blob '/p'"]
    assert found(right) == absent
    assert found(right, block) == absent
    assert "not as long as their block" in found(block, manifest(4))[0]
    assert "SHA-256 of the blob '/p'" in found(block, manifest(5))[0]
    assert found(block, manifest(5), deep=False) == []


def test_a_reader_takes_no_more_blocks_than_a_capture_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3.1: more are an error, not memory."""
    monkeypatch.setattr(limits, "BLOB_BLOCKS", 2)

    with pytest.raises(LimitError, match="more blobs than a capture can hold"):
        list(opened(GOOD).manifests())
