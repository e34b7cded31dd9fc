"""Streams out of pieces: order, gaps, ends and bounds, without a kernel."""

from __future__ import annotations

from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kcap.model.artifact import Gap
from kcap.readers.live.artifacts import pieces
from kcap.readers.live.artifacts import stream as stream_module
from kcap.readers.live.artifacts.kernel import OBJECT
from kcap.readers.live.artifacts.stream import LOST
from kcap.readers.live.artifacts.streams import NO_ROOM, REASONS, Finished, Streams
from kcap.readers.live.artifacts.triggers import Decoder
from kcap.readers.live.artifacts.wanted import Caps, FileFilter, Wanted
from kcap.readers.live.bpf.elf import ElfObject

TYPES = ElfObject(
    resources.files("kcap.readers.live.bpf").joinpath(OBJECT).read_bytes(), file=OBJECT
).btf
LAYOUTS = pieces.layouts(TYPES)
PIPE, REGULAR = 0o010600, 0o100644
S = 1_000_000_000
WANTED = Wanted(read=FileFilter(), write=FileFilter())


class Held(NamedTuple):
    """Records in memory, as a ring gives them."""

    data: memoryview
    offsets: npt.NDArray[np.int64]


def piece(content: bytes = b"", **fields: Any) -> bytes:
    """A record."""
    head = np.zeros(1, LAYOUTS.piece)
    usual = {"inode": 7, "mode": PIPE, "direction": pieces.READ, "pid": 10, "tid": 10, "ts_ns": S}
    for name, value in (usual | fields).items():
        head[name] = value
    if content and "what" not in fields:
        head["length"] = len(content)
    head["bytes"] = len(content)
    return head.tobytes() + content


def block(*records: bytes) -> Held:
    """Records one behind the other, each at a multiple of 8."""
    data, offsets = b"", []
    for record in records:
        offsets.append(len(data))
        data += record + bytes(-len(record) % 8)
    return Held(memoryview(data), np.array(offsets, np.int64))


def taken(*records: bytes, streams: Streams | None = None) -> Streams:
    """Streams that got some records."""
    streams = streams or Streams(TYPES, WANTED)
    streams.take(block(*records))
    return streams


def parts(one: Finished) -> list[bytes | tuple[int, str | None]]:
    """What an artifact consists of, bytes that follow each other as one."""
    found: list[bytes | tuple[int, str | None]] = []
    for part in one.artifact.content.parts():
        if isinstance(part, Gap):
            found.append((part.length, part.reason))
        elif found and isinstance(found[-1], bytes):
            found[-1] += part
        else:
            found.append(part)
    return found


def total(next_byte: int, born_ns: int = 0, **key: int) -> bytes:
    """What the kernel says of a stream."""
    name, value = np.zeros(1, LAYOUTS.key), np.zeros(1, LAYOUTS.stream)
    for field, number in ({"inode": 7, "direction": pieces.READ} | key).items():
        name[field] = number
    value["next"], value["born_ns"] = next_byte, born_ns
    return name.tobytes() + value.tobytes()


@given(st.data())
def test_captured_and_missing_are_what_passed(data: st.DataObject) -> None:
    """Whatever is lost, in whatever order the rest comes: each byte in its place, none missing."""
    sizes = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=40))
    whole = bytes(i * 7 & 255 for i in range(sum(sizes)))
    lost, kept = -1, pieces.DATA
    fates = st.sampled_from([kept, lost, pieces.UNREADABLE, pieces.BEYOND, pieces.UNSEEN])
    records: list[bytes] = []
    expected: dict[str | None, int] = {}
    at = 0
    for size in sizes:
        fate = data.draw(fates)
        if fate == kept:
            records.append(piece(whole[at : at + size], offset=at, total=at + size))
        elif fate == lost:
            expected[LOST] = expected.get(LOST, 0) + size
        else:
            records.append(piece(offset=at, length=size, what=fate))
            expected[REASONS[fate]] = expected.get(REASONS[fate], 0) + size
        at += size
    streams = Streams(TYPES, WANTED)
    records = data.draw(st.permutations(records))
    cut = data.draw(st.integers(0, len(records)))
    streams.take(block(*records[:cut]))
    streams.take(block(*records[cut:]))
    streams.settle(total(at))
    [one] = streams.rest()
    place = 0
    missing: dict[str | None, int] = {}
    for part in one.artifact.content.parts():
        if isinstance(part, Gap):
            missing[part.reason] = missing.get(part.reason, 0) + part.length
            place += part.length
        else:
            assert part == whole[place : place + len(part)]
            place += len(part)
    assert place == at
    assert missing == expected
    assert streams.held_bytes == 0


@given(st.binary(max_size=600), st.lists(st.integers(-8, 700), max_size=8))
def test_no_bytes_are_a_reason_to_fail(raw: bytes, offsets: list[int]) -> None:
    """Records that are none are counted; nothing leaves but artifacts."""
    streams = Streams(TYPES, WANTED)
    streams.take(Held(memoryview(raw), np.array(offsets, np.int64)))
    list(streams.rest())
    decoder = Decoder(TYPES)
    list(decoder.decode(Held(memoryview(raw), np.array(offsets, np.int64))))
    inside = sum(at >= 0 and at + LAYOUTS.piece.itemsize <= len(raw) for at in offsets)
    assert streams.damaged >= len(offsets) - inside


@given(st.integers(0, 8 * LAYOUTS.piece.itemsize - 1))
@example(8 * LAYOUTS.piece.fields["direction"][1])  # type: ignore[index]
def test_a_flipped_bit(bit: int) -> None:
    """A record with one wrong bit is another record or none; content stays within its bounds."""
    raw = bytearray(piece(b"content!", total=8))
    raw[bit // 8] ^= 1 << bit % 8
    streams = taken(bytes(raw))
    for one in streams.rest():
        for part in one.artifact.content.parts():
            assert isinstance(part, Gap) or len(part) <= 8


def test_the_end_of_a_pipe() -> None:
    """Read to its end it is given out, what was written to it too; not before."""
    streams = taken(piece(b"abc"), piece(b"abc", direction=pieces.WRITTEN, pid=11))
    assert not list(streams.finished(S))
    streams.take(block(piece(what=pieces.ENDED, offset=3, total=3)))
    found = list(streams.finished(S))
    assert sorted(one.artifact.kind for one in found) == ["read", "write"]
    assert all(parts(one) == [b"abc"] for one in found)
    assert not list(streams.rest())


def test_an_end_waits_for_what_is_under_way() -> None:
    """The end may come before the last piece: another processor's is not yet there."""
    streams = taken(piece(what=pieces.ENDED, offset=3, total=3))
    assert not list(streams.finished(S))
    streams.take(block(piece(b"abc")))
    [one] = streams.finished(S)
    assert parts(one) == [b"abc"]
    streams = taken(piece(what=pieces.ENDED, offset=3, total=3))
    [one] = streams.finished(4 * S)
    assert parts(one) == [(3, LOST)]


def test_processes_that_are_gone() -> None:
    """A stream ends when all who used it are gone, after a while: a child may go on with it."""
    gone = [piece(what=pieces.GONE, pid=pid, inode=0) for pid in (10, 11)]
    streams = taken(piece(b"a"), piece(b"b", offset=1, pid=11), gone[0])
    assert not list(streams.finished(10 * S))
    streams.take(block(gone[1]))
    assert not list(streams.finished(2 * S))
    [one] = streams.finished(4 * S)
    assert parts(one) == [b"ab"]
    assert [each["pid"] for each in one.artifact.details["processes"]] == [10, 11]


def test_a_stream_that_goes_on() -> None:
    """After its end was given out, what follows is another artifact that begins there."""
    streams = Streams(TYPES, WANTED, idle_ns=S)
    streams.take(block(piece(b"abc")))
    [one] = streams.finished(3 * S)
    assert streams.forgettable() != b""
    assert streams.forgettable() == b""
    streams.take(block(piece(b"def", offset=3, ts_ns=5 * S), piece(b"abc")))
    assert streams.forgettable() == b""
    [other] = streams.finished(9 * S)
    assert (parts(one), parts(other)) == ([b"abc"], [b"def"])


def test_what_comes_too_late() -> None:
    """Its place was given out as a gap: it is counted, and in no artifact."""
    streams = taken(piece(b"def", offset=3))
    [one] = streams.rest()
    assert parts(one) == [(3, LOST), b"def"]
    streams.take(block(piece(b"abc")))
    assert not list(streams.rest())
    assert streams.late_bytes == 3


def test_a_tail_that_was_lost_shows_when_the_kernel_forgets() -> None:
    """Of a stream that has ended, what was lost at its end is an artifact of a gap."""
    streams = taken(piece(b"abc"))
    assert [parts(one) for one in streams.rest()] == [[b"abc"]]
    streams.settle(total(10))
    assert [parts(one) for one in streams.rest()] == [[(7, LOST)]]
    streams.settle(total(10))
    assert not list(streams.rest())


def test_a_stream_of_which_nothing_came() -> None:
    """It is there, as long as it was, with nothing in it."""
    streams = Streams(TYPES, WANTED)
    streams.settle(total(99, inode=3, born_ns=5))
    [one] = streams.rest()
    assert parts(one) == [(99, LOST)]
    assert one.artifact.details["inode"] == 3
    assert "pid" not in one.artifact.details


def test_streams_of_one_name() -> None:
    """What the kernel had forgotten and saw again are two streams."""
    streams = taken(piece(b"new", born_ns=2), piece(b"old", born_ns=1))
    assert [parts(one) for one in streams.rest()] == [[b"old"], [b"new"]]


def test_memory_is_bounded() -> None:
    """What there is no room for is missing, with the reason; nothing is held after the end."""
    streams = Streams(TYPES, WANTED, memory_bytes=1000)
    for n in range(4):
        streams.take(block(piece(bytes(400), offset=400 * n)))
        assert streams.held_bytes <= 1000
    [one] = streams.rest()
    assert parts(one) == [bytes(400), (1200, NO_ROOM)]
    assert streams.held_bytes == 0


def test_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now copied, now passed by: beyond so many pieces all is missing, of the same length.

    Without the bound, and without gaps in what is held, memory grows for as long as somebody does
    that.
    """
    monkeypatch.setattr(stream_module, "PIECES_MAX", 100)
    streams = Streams(TYPES, WANTED)
    for start in range(0, 4000, 20):
        streams.take(
            block(
                *(
                    piece(b"x", offset=at)
                    if at % 2
                    else piece(offset=at, length=1, what=pieces.UNSEEN)
                    for at in range(start, start + 20)
                )
            )
        )
        assert streams.held_bytes <= 100 * 129
    streams.take(block(piece(b"", what=pieces.ENDED, offset=4000, total=4000)))
    [one] = streams.finished(2 * S)
    found = parts(one)
    assert len(found) == 101
    assert found[-1] == (3900, "in too many pieces")
    assert streams.held_bytes == 0


def test_gaps_take_memory_too() -> None:
    """Gaps alone fill what there is for all streams, and no more."""
    streams = Streams(TYPES, WANTED, memory_bytes=1000)
    for at in range(0, 100, 2):
        streams.take(
            block(
                piece(offset=at, length=1, what=pieces.UNSEEN),
                piece(offset=at + 1, length=1, what=pieces.BEYOND),
            )
        )
        assert streams.held_bytes <= 1000
    [one] = streams.rest()
    found = parts(one)
    assert len(found) < 10
    assert sum(length for length, _ in found) == 100  # type: ignore[misc]


def test_a_cap_in_the_middle_of_a_piece() -> None:
    """An artifact has so many bytes and no more; its length is known."""
    streams = Streams(TYPES, Wanted(read=FileFilter(), caps=Caps(artifact_bytes=5)))
    streams.take(block(piece(b"abc"), piece(b"def", offset=3), piece(b"ghi", offset=6)))
    [one] = streams.rest()
    assert parts(one) == [b"abcde", (4, "over 5 bytes of one artifact")]


def test_only_wanted_paths_and_types() -> None:
    """By path as soon as that is known; by type, where only executables are wanted, at the end."""
    path = b"b\0a\0\0"
    opened = piece(path, what=pieces.OPENED, mode=REGULAR)
    for prefix, count in (("/a/", 1), ("/b", 0)):
        wanted = Wanted(read=FileFilter((prefix,), fds=frozenset({0})))
        streams = Streams(TYPES, wanted)
        streams.take(block(piece(b"x", mode=REGULAR), opened))
        found = list(streams.rest())
        assert [one.artifact.path for one in found] == ["/a/b"] * count
        assert streams.left_out == 1 - count
        assert streams.held_bytes == 0
    wanted = Wanted(read=FileFilter(types=frozenset({"elf"}), fds=frozenset({0})))
    for content, count in ((b"\x7fELF...", 1), (b"text", 0)):
        streams = Streams(TYPES, wanted)
        streams.take(block(piece(content[:2], mode=REGULAR), piece(content[2:], offset=2)))
        assert len(list(streams.rest())) == count


def test_content_that_ends() -> None:
    """Instructions and images are given out with their last record, as what they are."""
    streams = Streams(TYPES, Wanted(bpf=True), offset_ns=100)
    same: dict[str, Any] = {
        "direction": pieces.PROGRAM,
        "generation": S,
        "owner": 10,
        "inode": 0,
        "total": 16,
    }
    streams.take(block(piece(b"12345678", **same), piece(b"9abcdefg", offset=8, **same)))
    assert not list(streams.finished(S))
    streams.take(block(piece(what=pieces.DONE, offset=16, **same)))
    [one] = streams.finished(S)
    assert parts(one) == [b"123456789abcdefg"]
    assert (one.artifact.kind, one.ts_ns, one.tid) == ("bpf", S, 10)
    assert one.artifact.details["time_ns"] == S + 100
    assert streams.forgettable() == b""
