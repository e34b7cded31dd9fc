"""The line reader: plain, gzip and zstd, whole, cut, damaged and hostile."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kcap import limits
from kcap.errors import DamagedError, KcapError, LimitError, TruncatedError
from kcap.readers import textinput
from kcap.readers.textinput import TOO_LONG, TextInput

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
TEXT = b"".join(b'{"line":%d,"text":"%d"}\n' % (i, i * i) for i in range(300))


class Pipe:
    """A stream that gives a few bytes at a time and cannot seek."""

    def __init__(self, data: bytes, size: int) -> None:
        self._parts = iter([data[i : i + size] for i in range(0, len(data), size)])

    def read(self, count: int) -> bytes:
        return next(self._parts, b"")


def zstd(data: bytes, *, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(data)


def frames(data: bytes) -> bytes:
    """Three frames and a skippable one between them."""
    third = len(data) // 3
    skipped = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
    compress = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress
    return zstd(data[:third]) + skipped + compress(data[third:-third]) + zstd(data[-third:])


def members(data: bytes) -> bytes:
    """Three gzip members, one of them empty, with zeros after the last."""
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(b"") + gzip.compress(data[half:]) + bytes(9)


PACKERS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "members": members,
    "zstd": zstd,
    "unchecked": lambda data: zstd(data, checksum=False),
    "frames": frames,
}


def read(source: TextInput) -> tuple[list[bytes], bytes, KcapError | None]:
    """Complete lines, the unfinished one, and how it ended."""
    lines: list[bytes] = []
    rest = b""
    try:
        for block in source.blocks():
            assert block.number == len(lines) + 1
            if block.ended:
                lines += block.lines
            else:
                (rest,) = block.lines
    except KcapError as error:
        return lines, rest, error
    return lines, rest, None


def read_bytes(data: bytes) -> tuple[list[bytes], bytes, KcapError | None]:
    return read(TextInput(io.BytesIO(data), "in"))


@given(
    st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ")), max_size=30),
    st.booleans(),
    st.sampled_from(sorted(PACKERS)),
    st.integers(1, 70),
)
def test_lines_are_the_same_however_they_come(
    lines: list[bytes], ended: bool, packer: str, size: int
) -> None:
    """Every packing and every size of read gives the lines, their numbers and their places."""
    lines = [b"first", *lines]
    data = b"\n".join(lines) + (b"\n" if ended else b"")
    source = TextInput(Pipe(PACKERS[packer](data), size), "in")  # type: ignore[arg-type]
    got = [
        (block.number + i, block.offset_of(i), line)
        for block in source.blocks()
        for i, line in enumerate(block.lines)
    ]

    expected = lines if ended or lines[-1] else lines[:-1]
    starts = itertools.accumulate((len(line) + 1 for line in lines), initial=0)
    pairs = zip(starts, expected, strict=False)
    assert got == [(i, s, line) for i, (s, line) in enumerate(pairs, 1)]


@pytest.mark.parametrize("packer", ["gzip", "members", "zstd", "unchecked", "frames"])
def test_a_cut_is_noticed_and_gives_what_was_complete(packer: str) -> None:
    """Cut anywhere, the text is a prefix, and the end is either whole or `TruncatedError`."""
    packed = PACKERS[packer](TEXT)
    whole = 0
    for end in range(4, len(packed)):
        lines, rest, error = read_bytes(packed[:end])
        got = b"".join(line + b"\n" for line in lines) + rest
        assert TEXT.startswith(got)
        assert type(error) in {TruncatedError, type(None)}
        if error is None:
            whole += 1
            assert packer in {"members", "frames"}

    # Between members or frames, and in the padding, a cut cannot be seen.
    assert whole == {"members": 11, "frames": 3}.get(packer, 0)
    assert read_bytes(packed)[2] is None


@pytest.mark.parametrize("packer", ["gzip", "zstd", "frames"])
def test_a_flipped_bit_never_raises_anything_foreign(packer: str) -> None:
    """One flipped bit: only `KcapError`; and with a checksum the text is never another."""
    packed = PACKERS[packer](TEXT)
    noticed = 0
    for at in range(len(packed)):
        broken = bytearray(packed)
        broken[at] ^= 1 << at % 8
        lines, rest, error = read_bytes(bytes(broken))
        noticed += error is not None
        if error is None and packer != "frames" and at > 10:
            assert b"".join(line + b"\n" for line in lines) + rest == TEXT

    assert noticed > len(packed) * 0.9


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_a_wrong_checksum_is_damage_after_all_lines(packer: str) -> None:
    """What came before the checksum is delivered, the error says where."""
    packed = bytearray(PACKERS[packer](TEXT))
    packed[-6 if packer == "gzip" else -1] ^= 1
    lines, _, error = read_bytes(bytes(packed))

    assert lines == TEXT.splitlines()
    assert isinstance(error, DamagedError)
    assert error.offset is not None
    assert "damaged" in str(error)


@pytest.mark.parametrize("tail", [b"garbage", b"\x1f\x8c", b"\0\0x"])
def test_what_follows_gzip_must_be_gzip(tail: bytes) -> None:
    lines, _, error = read_bytes(gzip.compress(TEXT) + tail)

    assert lines == TEXT.splitlines()
    assert isinstance(error, DamagedError)


def endless_zstd(total: int) -> bytes:
    """A small frame of run-length blocks that gives ``total`` bytes of one line."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"x"
    last = (1 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"x"
    return ZSTD_MAGIC + b"\x00\x58" + block * (total >> 17) + last


def endless_gzip(total: int) -> bytes:
    packer = zlib.compressobj(wbits=31)
    step = b"x" * (1 << 20)
    return b"".join(packer.compress(step) for _ in range(total >> 20)) + packer.flush()


@pytest.mark.parametrize("bomb", [endless_zstd, endless_gzip])
@pytest.mark.parametrize("skip_long", [False, True])
def test_an_endless_line_ends_in_limit_error_and_little_memory(
    bomb: object, skip_long: bool
) -> None:
    """A bomb costs neither memory nor, unless long lines are skipped, time."""
    packed = bomb(2 * textinput.SKIPPED_BYTES if skip_long else 1 << 28)  # type: ignore[operator]
    assert len(packed) < 4 << 20
    tracemalloc.start()
    source = TextInput(io.BytesIO(b"".join([packed])), "in", skip_long=skip_long)
    _, _, error = read(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert isinstance(error, LimitError)
    assert peak < 40 << 20
    assert (error.line, error.offset) == (1, 0)


def test_the_longest_line_is_read_and_a_longer_one_refused() -> None:
    """The limit is exact; a line that is skipped leaves the others' numbers and places right."""
    longest = b"y" * limits.LINE_BYTES
    lines, rest, error = read_bytes(b"a\n" + longest + b"\nb\n")
    assert (lines, rest, error) == ([b"a", longest, b"b"], b"", None)

    data = b"a\n" + longest + b"y\nb\nc\n"
    lines, _, error = read_bytes(data)
    assert lines == [b"a"]
    assert isinstance(error, LimitError)
    assert (error.line, error.offset) == (2, 2)

    blocks = list(TextInput(io.BytesIO(data), "in", skip_long=True).blocks())
    found = [
        (b.number + i, b.offset_of(i), b.lines[i]) for b in blocks for i in range(len(b.lines))
    ]
    after = 2 + len(longest) + 2
    assert found[0] == (1, 0, b"a")
    assert found[1][2] is TOO_LONG
    assert found[2:] == [(3, after, b"b"), (4, after + 2, b"c")]


def test_a_window_beyond_the_limit_is_refused_before_it_is_allocated() -> None:
    """A frame may ask for 2 GiB; it gets an error that says so."""
    _, _, error = read_bytes(ZSTD_MAGIC + b"\x00" + bytes([21 << 3]) + b"\x09\x00\x00a")

    assert isinstance(error, LimitError)
    assert "memory" in str(error)


def test_the_head_is_read_ahead_and_comes_again() -> None:
    """The head is the start of the decompressed input; damage in it waits for `blocks`."""
    packed = gzip.compress(TEXT)[:-20]
    source = TextInput(io.BytesIO(packed), "in")

    assert source.head(10) == TEXT[:10]
    head = source.head(1 << 20)
    assert TEXT.startswith(head)
    lines, rest, error = read(source)
    assert b"".join(line + b"\n" for line in lines) + rest == head
    assert isinstance(error, TruncatedError)


def test_an_empty_input_has_no_lines() -> None:
    assert read_bytes(b"") == ([], b"", None)
    assert read_bytes(gzip.compress(b"")) == ([], b"", None)
    assert read_bytes(zstd(b"")) == ([], b"", None)


def test_a_stream_that_cannot_be_read_is_a_kcap_error() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    def drained() -> Iterator[object]:
        yield from TextInput(Broken(), "disk").blocks()  # type: ignore[arg-type]

    with pytest.raises(KcapError, match=r"disk: cannot be read: .*Input/output error"):
        list(drained())


def packers() -> dict[str, Callable[[bytes], bytes]]:
    """What writes a stream in each form, and flushes it after each write."""
    gzipper = zlib.compressobj(wbits=31)
    zstder = zstandard.ZstdCompressor().compressobj()
    flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return {
        "plain": bytes,
        "gzip": lambda data: gzipper.compress(data) + gzipper.flush(zlib.Z_SYNC_FLUSH),
        "zstd": lambda data: zstder.compress(data) + zstder.flush(flush),
        "members": gzip.compress,
        "frames": zstd,
    }


@pytest.mark.parametrize("packer", sorted(packers()))
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_an_empty_block_comes_before_each_wait(packer: str, step: int) -> None:
    """All complete lines that a pipe got are given before the next are waited for."""
    pack = packers()[packer]
    ends = os.pipe()
    with os.fdopen(ends[0], "rb") as pipe, os.fdopen(ends[1], "wb", buffering=0) as writer:
        blocks = TextInput(pipe, "in").blocks()
        for round_number in range(4):
            packed = pack(b"line %d\nanother\nunfinished" % round_number)
            got: list[bytes] = []
            for at in range(0, len(packed), step):
                writer.write(packed[at : at + step])
                # With the writer still open, reading on for ever would never end.
                for block in itertools.takewhile(lambda b: b.lines, blocks):
                    assert block.ended
                    got += block.lines
            before = b"unfinished" if round_number else b""
            assert got == [before + b"line %d" % round_number, b"another"]


def test_a_pipe_that_is_full_is_not_waited_for() -> None:
    """A fast writer's lines come in large pieces, with few empty blocks between them."""
    data = TEXT * 2000
    ends = os.pipe()
    os.write(ends[1], data[: 32 << 10])
    with os.fdopen(ends[0], "rb") as pipe, os.fdopen(ends[1], "wb") as writer:
        blocks = TextInput(pipe, "in").blocks()
        assert next(blocks).lines  # what is there comes without an empty block before it
        thread = threading.Thread(target=lambda: (writer.write(data[32 << 10 :]), writer.close()))
        thread.start()
        rest = list(blocks)
        thread.join()

    assert sum(len(block.lines) for block in rest) > data.count(b"\n") - 3000
    assert sum(1 for block in rest if block.lines) < 2 * len(data) / (4 << 10)


def test_a_file_is_never_waited_for(tmp_path: Path) -> None:
    """No empty block comes of what is no pipe."""
    path = tmp_path / "lines"
    path.write_bytes(TEXT * 100)
    with path.open("rb") as file:
        assert all(block.lines for block in TextInput(file, "in").blocks())
    assert all(block.lines for block in TextInput(io.BytesIO(TEXT), "in").blocks())
