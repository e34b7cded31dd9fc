"""Blocks of .scap files: found as by a plain walk, whatever the pieces and the damage."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import scap_support as scap
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import DamagedError, NotACaptureError, TruncatedError, VersionError
from kcap.readers import scap_blocks, scap_links
from kcap.readers.scap_blocks import Blocks, Events, Item, Section, Table, is_scap

KNOWN = (0x202, 0x205, 0x206, 0x218, 0x219)
FOREIGN = (0x1, 0x6, 0x240, 0x8005ABCD, 0xBAD)
EVENTS = sorted(scap_blocks.EVENTS)

LOOKALIKES = [
    b"",
    b"\x16\x02\0\0",
    scap.block(0x216, b"inner"),
    scap.block(0x216, b"") * 3,
    struct.pack("<II", 0x216, 24),
    scap.section(),
]
"""Payloads that hold what looks like blocks, some of them sound ones."""

bodies = st.one_of(st.sampled_from(LOOKALIKES), st.binary(max_size=40))
kinds = st.one_of(
    st.sampled_from(EVENTS),
    st.sampled_from(KNOWN),
    st.sampled_from(FOREIGN),
    st.sampled_from(sorted(scap.ALIASES.values())),
)
blocks_of_files = st.lists(st.tuples(kinds, bodies), max_size=30)

Plain = list[tuple[int, bytes]]


def walked(data: bytes) -> Plain:
    """The blocks of a sound file, found one by one."""
    found = []
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        found.append((RELEASED.get(kind, kind), data[at + 8 : at + size - 4]))
        at += size
    return found


RELEASED = {old: new for new, old in scap.ALIASES.items()}


def plain(items: Sequence[Item]) -> Plain:
    """What the items hold, one by one."""
    found: Plain = []
    for item in items:
        if isinstance(item, Table):
            found.append((item.type, item.body))
        elif isinstance(item, Section):
            found.append((scap_links.SECTION, b""))
        elif isinstance(item, Events):
            for start, end, kind in zip(item.starts, item.ends, item.types, strict=True):
                found.append((int(kind), item.data[start + 8 : end]))
    return found


def expected(data: bytes) -> Plain:
    """What `plain` should give for a sound file."""
    return [(k, b"" if k == scap_links.SECTION else body) for k, body in walked(data)]


@given(blocks_of_files, st.integers(1, 200))
def test_blocks_are_those_of_a_plain_walk(made: list[tuple[int, bytes]], step: int) -> None:
    """Any blocks come back, in order, in whatever pieces they are read."""
    data = scap.section() + b"".join(scap.block(kind, body) for kind, body in made)

    items, error, damage = scap.items(data, step=step)

    assert (error, damage) == (None, 0)
    assert plain(items) == expected(data)


def test_a_swapped_block_is_noticed() -> None:
    """Negative control: the comparison of the test above sees two blocks in another order."""
    one, other = scap.block(0x216, b"1"), scap.block(0x216, b"2")
    items, _, _ = scap.items(scap.section() + one + other)

    assert plain(items) != expected(scap.section() + other + one)


def test_events_are_numbered_and_placed() -> None:
    """Runs say the number of their first event, and where in the input they are."""
    event = scap.event(scap.SWITCH)
    data = scap.section() + event * 3 + scap.machine() + event * 2

    items, _, _ = scap.items(data)
    runs = scap.runs(items)

    assert [(run.first, len(run.starts)) for run in runs] == [(1, 3), (4, 2)]
    for run in runs:
        assert data[run.offset :].startswith(run.data[: -scap_blocks.PADDING])


def test_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends after so many events or bytes, and the shorter ones are only the last."""
    monkeypatch.setattr(scap_blocks, "RUN_EVENTS", 10)
    event = scap.event(scap.SWITCH)
    many, _, _ = scap.items(scap.section() + event * 25, step=64)
    monkeypatch.setattr(scap_blocks, "RUN_BYTES", 4 * len(event))
    less, _, _ = scap.items(scap.section() + event * 10)

    assert [len(run.starts) for run in scap.runs(many)] == [10, 10, 5]
    assert [len(run.starts) for run in scap.runs(less)] == [4, 4, 2]


def test_every_cut_gives_what_is_before_it() -> None:
    """Of a file cut anywhere all whole blocks come, then an error unless the cut is between two."""
    data = scap.scap(scap.process_list(9, scap.process(9)), *[scap.opened("/a")] * 5)
    ends = {len(data) - len(rest) for rest in _rests(data)}

    for length in range(1, len(data)):
        items, error, _ = scap.items(data[:length])
        whole = max((end for end in ends if end <= length), default=0)
        assert plain(items) == expected(data[:whole]), length
        assert isinstance(error, TruncatedError) == (length not in ends), length


def _rests(data: bytes) -> list[bytes]:
    rests = []
    while data:
        data = data[struct.unpack_from("<I", data, 4)[0] :]
        rests.append(data)
    return rests


@pytest.mark.parametrize(
    ("at", "value", "word"),
    [
        (4, 40_000_000, "beyond the end"),
        (4, 13, "13 bytes"),
        (4, 8, "8 bytes"),
        (4, 0xFFFFFFF0, "bytes"),
        (4, 20, "another length"),
        (-4, 77, "another length, 77"),
    ],
)
def test_damaged_lengths(at: int, value: int, word: str) -> None:
    """A wrong length is an error with its place, behind what is before; lenient goes on behind."""
    blocks = [scap.opened(f"/{i}", tid=i) for i in range(9)]
    front = scap.section() + b"".join(blocks[:4])
    bad = bytearray(blocks[4])
    struct.pack_into("<I", bad, at % len(bad), value)
    for rest in (b"".join(blocks[5:]), b"".join(blocks[5:]) + scap.block(0x202, bytes(5 << 20))):
        data = front + bytes(bad) + rest
        items, error, _ = scap.items(data)
        lenient, no_error, damage = scap.items(data, lenient=True)

        assert isinstance(error, DamagedError)
        assert word in error.what
        assert error.offset == len(front)
        assert plain(items) == expected(front)
        assert (no_error, damage) == (None, 1)
        assert plain(lenient) == expected(front + rest)


def test_lenient_goes_on_behind_missing_bytes() -> None:
    """Where bytes are gone or too many, the next block is found wherever it starts."""
    blocks = [scap.opened(f"/{i}") for i in range(6)]
    for hole in (blocks[2][:-3], blocks[2] + b"x", b"\xff" * 1001):
        data = scap.section() + blocks[0] + hole + b"".join(blocks[3:])
        for step in (7, 1 << 20):
            items, error, damage = scap.items(data, lenient=True, step=step)
            assert (error, damage) == (None, 1)
            found = [body for _, body in plain(items)]
            assert [scap.block(0x216, body) for body in found[-3:]] == blocks[3:]


def test_much_damage_takes_no_time() -> None:
    """Each of 20,000 damaged blocks is passed over at its own cost, not that of what follows."""
    good, bad = scap.opened("/a"), bytearray(scap.opened("/b"))
    bad[-1] = 1
    _, error, damage = scap.items(scap.section() + (good + bytes(bad)) * 20_000, lenient=True)

    assert (error, damage) == (None, 20_000)


@given(st.data())
def test_lenient_never_fails_on_flips(data: st.DataObject) -> None:
    """Bytes flipped anywhere behind the first header end lenient reading in no error but a cut."""
    raw = bytearray(scap.scap(*[scap.opened(f"/{i}") for i in range(8)]))
    for at in data.draw(st.lists(st.integers(12, len(raw) - 1), min_size=1, max_size=8)):
        raw[at] ^= data.draw(st.integers(1, 255))

    _, error, damage = scap.items(bytes(raw), lenient=True)

    assert error is None or isinstance(error, (TruncatedError, VersionError))
    assert damage <= 8


def test_a_damaged_start_is_no_capture() -> None:
    """What does not start with a section header is no .scap file, nor is an empty one."""
    for data in (b"", b"{}", b"\0" * 4096, scap.machine(), b"\n\n"):
        items, error, _ = scap.items(data)
        assert items == []
        assert isinstance(error, NotACaptureError)


def test_the_other_byte_order_is_refused() -> None:
    """A file of a big-endian machine is refused in words that say so."""
    header = struct.pack(">IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 2, -1, 28)
    _, error, _ = scap.items(header + header)

    assert isinstance(error, NotACaptureError)
    assert "big-endian" in error.what
    assert is_scap(header + struct.pack(">II", 0x201, 12))


def test_a_later_version_is_refused() -> None:
    """Another major version is refused, at the start and in the middle; a minor one is not."""
    for lenient in (False, True):
        items, error, _ = scap.items(
            scap.section(1, 9) + scap.opened("/a") + scap.section(2, 0), lenient=lenient
        )
        assert isinstance(error, VersionError)
        assert "2.0" in error.what
        assert [type(item) for item in items] == [Section, Events]
        assert isinstance(items[0], Section)
        assert items[0].version == "1.9"


def test_sections_may_have_options_and_repeat() -> None:
    """Comments of a section header are passed over; a second one is an item of its own."""
    data = scap.section(options=b"\1\0\5\0hello\0\0\0\0\0\0\0") + scap.opened("/a")
    items, error, _ = scap.items(data + scap.section() + scap.opened("/b"))

    assert error is None
    assert [type(item) for item in items] == [Section, Events, Section, Events]
    assert [run.first for run in scap.runs(items)] == [1, 2]


def test_sniffing_tells_pcapng_apart() -> None:
    """pcapng files start alike; the block behind the header says which one it is."""
    pcapng = scap.section(1, 0) + scap.block(1, bytes(8))

    assert is_scap(scap.scap())
    assert is_scap(scap.section())
    assert is_scap(scap.section() + scap.block(0x8002ABCD, b""))
    assert not is_scap(pcapng)
    assert not is_scap(scap.section()[:11])
    assert not is_scap(b"\0" * 64)


def test_sniffing_knows_the_samples(data: Callable[[str], Path]) -> None:
    """All samples are sniffed by their first kilobyte, decompressed."""
    files = sorted(data("scap").glob("*.scap"))

    assert len(files) > 1
    for file in files:
        with file.open("rb") as stream:
            assert is_scap(Blocks(stream, file.name).head(1024)), file


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_compressed_files(pack: Callable[[bytes], bytes]) -> None:
    """Compressed files read alike; cut or damaged ones give what comes before, then the error."""
    names = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(3000)]
    data = scap.scap(*map(scap.opened, names))
    packed = pack(data)
    items, error, _ = scap.items(packed)
    cut, cut_error, _ = scap.items(packed[: len(packed) // 2])
    half = plain(cut)

    assert error is None
    assert plain(items) == expected(data)
    assert isinstance(cut_error, TruncatedError)
    assert half == expected(data)[: len(half)]
    assert len(half) > 500


def test_what_a_pipe_has_comes_before_the_wait() -> None:
    """Events that have arrived are given before more of a pipe is waited for."""
    data = scap.section() + scap.opened("/a") * 3
    reading, writing = os.pipe()
    os.write(writing, data + scap.opened("/b")[:9])
    timer = threading.Timer(20, os.close, [writing])
    timer.start()
    with os.fdopen(reading, "rb") as stream:
        found = Blocks(stream, "-").read()
        items = [next(found), next(found), next(found)]
        timer.cancel()
        os.close(writing)
        with pytest.raises(TruncatedError):
            next(found)

    assert plain(items) == expected(data)
    assert items[-1] is None


def test_a_huge_length_takes_no_memory() -> None:
    """A length beyond the limit is damage, before a byte of it is read."""
    body = struct.pack("<II", 0x216, scap_links.BLOCK_BYTES + 4)
    stream = Endless(scap.section() + body)

    with pytest.raises(DamagedError):
        list(Blocks(stream, "x").read())
    assert stream.tell_given() < 4 << 20


class Endless(io.BytesIO):
    """Some data, then zeros without end."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data
        self._given = 0

    def tell_given(self) -> int:
        """Bytes given so far."""
        return self._given

    def read1(self, size: int | None = -1, /) -> bytes:
        """Give as much as asked for."""
        count = size if size and size > 0 else 1 << 16
        found = self._data[self._given : self._given + count]
        self._given += count
        return found + bytes(count - len(found))
