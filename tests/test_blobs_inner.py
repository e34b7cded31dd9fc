"""Records inside blobs: a captured file may be a capture, even the one that is being written (9.3).

Whoever is recorded may read the capture and so know its `file_id`: the checksums of the records
that he puts into his files hold.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import forge
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FILE_ID, capture, make_events, opened, read, rows_of

from kcap.errors import KcapError
from kcap.format import blobs, scan, writer
from kcap.format.blobs import Block, least_mask, masked, pack_block, unpack_block
from kcap.format.record import MAGIC, Kind
from kcap.format.verify import verify
from kcap.format.writer import CaptureWriter


def own_records() -> bytes:
    """Records of this very file with rows that it never had, and numbers yet to come."""
    parts = forge.parts_of(capture([make_events(9, seed=9)], file_id=FILE_ID))
    inner = [p for p in parts if p.kind in (Kind.SCHEMA, Kind.CHUNK, Kind.CHUNK_INDEX)]
    return b"".join(forge.packed(p, 40 + i) for i, p in enumerate(inner))


def with_inner(inner: Callable[[bytes], bytes], *, closed: bool) -> tuple[bytes, list[int], int]:
    """A capture with a blob that is made of the capture's bytes so far.

    Returns:
        It, the offsets of its records, and which of them is the block.
    """
    out = io.BytesIO()
    made = CaptureWriter(out, file_id=FILE_ID, chunk_rows=10)
    events = make_events(38)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "CHECKPOINT_CHUNKS", 2)
        made.write(events.slice(0, 25))
    made.commit()
    made.write(events.slice(25, 28))
    with pytest.MonkeyPatch.context() as patch:
        # What an attacker gets with noise between the records: stored as it is.
        stored = SimpleNamespace(compress=lambda data, _: data + b"\0", LEVEL=3)
        patch.setattr(blobs, "zstd", stored)
        made.blob([inner(out.getvalue())], path="/inner")
    made.write(events.slice(28, 38))
    if closed:
        made.close()
    else:
        made.commit()
    data = out.getvalue()
    records = [r for r in opened(data).scanner().records() if isinstance(r, scan.Record)]
    [block] = [i for i, r in enumerate(records) if r.header.kind == Kind.BLOB_BLOCK]
    return data, [r.offset for r in records], block


def damages(data: bytes, offsets: Sequence[int], block: int) -> Iterator[bytes]:
    """The capture with damage to any record, and to any run of them up to the block."""
    for first in range(len(offsets)):
        for last in {first, block} if first <= block else {first}:
            bad = bytearray(data)
            for at in offsets[first : last + 1]:
                bad[at + 8 : at + 32] = bytes(24)
            yield bytes(bad)
            del bad[offsets[first] + 5 : offsets[first] + 8]  # all that follows moves
            yield bytes(bad)
            bad[offsets[first] + 5 : offsets[first] + 5] = bytes(5)
            yield bytes(bad)


def outcome(data: bytes, window: tuple[int, int]) -> list[Any]:
    """What is believed inside a range, and what comes of it."""
    try:
        reader = opened(data)
        inside = [
            r.header.name
            for r in reader.scanner().records()
            if isinstance(r, scan.Record) and window[0] < r.offset < window[1]
        ]
        index = reader.index()
        assert index is not None
        return [inside, rows_of(read(data)[0]), int(index.table["rows"].sum())]
    except KcapError as e:
        return [type(e), e.what]


INNER: dict[str, Callable[[bytes], bytes]] = {
    "an earlier copy of itself": lambda so_far: so_far,
    "a copy whose records are aligned": lambda so_far: b"four" + so_far,
    "records to come": lambda _: own_records(),
    "both": lambda so_far: own_records() + so_far + own_records(),
}


def compared(inner: Callable[[bytes], bytes], *, closed: bool) -> int:
    """How often damage has another outcome than it has where the blob holds noise instead."""
    noise = random.Random(1)
    data, offsets, block = with_inner(inner, closed=closed)
    plain, same_offsets, _ = with_inner(lambda b: noise.randbytes(len(inner(b))), closed=closed)
    assert offsets == same_offsets
    window = offsets[block], offsets[block + 1] - 32
    others = 0
    for bad, good in zip(
        damages(data, offsets, block), damages(plain, offsets, block), strict=True
    ):
        others += outcome(bad, window) != outcome(good, window)
    return others


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("inner", INNER)
def test_nothing_inside_a_block_is_ever_believed(inner: str, closed: bool) -> None:
    """9.3: a captured capture, this one too, adds nothing wherever the damage is."""
    assert compared(INNER[inner], closed=closed) == 0


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("inner", INNER)
def test_without_a_mask_it_would_be(
    inner: str, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with the bytes as they are, damage brings inner records to light."""
    monkeypatch.setattr(blobs, "least_mask", lambda _: 0)

    assert compared(INNER[inner], closed=closed) > 0


def test_an_open_file_is_not_indexed_by_the_copy_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last CHECKPOINT is the file's own; without a mask the copy's is taken for it."""

    def indexed() -> list[int]:
        data, _, _ = with_inner(INNER["a copy whose records are aligned"], closed=False)
        index = opened(data).index()
        assert index is not None
        return [int(index.table["rows"].sum()), len([s for s in index.losses if s.kind != "torn"])]

    assert indexed() == [38, 0]
    monkeypatch.setattr(blobs, "least_mask", lambda _: 0)
    assert indexed() != [38, 0], "the control"


def test_a_captured_capture_comes_back() -> None:
    """The copy, too, reads and verifies."""
    data, _, _ = with_inner(INNER["an earlier copy of itself"], closed=True)
    reader = opened(data)
    [manifest] = reader.manifests()
    inner = b"".join(reader.blob(manifest))

    assert data.startswith(inner)
    assert len(rows_of(read(inner)[0])) == 25
    assert verify(opened(data), deep=True).good


@given(st.binary(max_size=40), st.integers(0, 200), st.integers(0, 3), st.binary(max_size=9))
def test_a_mask_leaves_no_magic_and_is_the_least(
    before: bytes, words: int, shift: int, behind: bytes
) -> None:
    """9.3: also where the bytes rule out the first ones, at every phase; 0 where none is needed."""
    magic = int.from_bytes(MAGIC, "little")
    bad = b"".join((magic ^ m).to_bytes(4, "little") for m in range(words))
    raw = before + bad[shift:] + MAGIC[:shift] + behind
    mask = least_mask(raw)

    assert MAGIC not in masked(raw, mask)
    assert masked(masked(raw, mask), mask) == raw
    assert all(MAGIC in masked(raw, m) for m in range(mask))


def test_a_block_full_of_what_masks_must_avoid_is_written() -> None:
    """1 MiB of the magic under every mask that fits in it."""
    magic = int.from_bytes(MAGIC, "little")
    raw = b"".join((magic ^ m).to_bytes(4, "little") for m in range(1 << 18))
    payload = pack_block(Block.of(raw))

    assert unpack_block(payload).data == raw
    assert MAGIC not in payload
