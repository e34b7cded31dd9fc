"""Fibratus captures that are cut, damaged or none: what is whole is delivered, the rest told."""

from __future__ import annotations

import contextlib
import io
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fibratus_support as fs
import pytest
import zstandard
from cli_support import run
from fibratus_support import OLD, Form, record
from hypothesis import given
from hypothesis import strategies as st
from support import Pipe

from kcap.errors import (
    BadInputError,
    DamagedError,
    KcapError,
    LimitError,
    NotACaptureError,
    TruncatedError,
    VersionError,
)
from kcap.model.batch import Batch
from kcap.readers.fibratus import FibratusReader

RECORDS = [
    record(
        [("file_name", "unicode", f"C:\\{i}"), ("irp", "hex64", 1 << 63), ("n", "enum", i)],
        seq=i,
        process=fs.state(handles=[fs.handle()]) if i == 2 else None,
        metadata=[("k", "v")] if i == 3 else [],
    )
    for i in range(8)
]
HEAD = fs.header(OLD, [fs.handle(number=4 * i) for i in range(3)])
PARTS = [HEAD, *(fs.section(raw) for raw in RECORDS)]
PLAIN = b"".join(PARTS)
PACKED = fs.packed(PARTS)
ROWS = fs.rows(fs.read(PLAIN))
STARTS = [sum(map(len, PARTS[: i + 1])) for i in range(len(PARTS))]
"""Where each event's section starts in `PLAIN`, and its end."""

NO_HEADER = (NotACaptureError, TruncatedError)


def delivered(data: bytes, *, lenient: bool = False) -> tuple[list[Batch], KcapError | None]:
    """What comes before a reader fails, and how it fails."""
    found: list[Batch] = []
    try:
        for batch in fs.source(data, lenient=lenient).batches():
            found.append(batch)  # noqa: PERF402  (what came before a failure counts)
    except KcapError as error:
        return found, error
    return found, None


def values(batches: list[Batch]) -> list[dict[str, Any]]:
    """The rows but for what names the input."""
    return [
        {n: v for n, v in row.items() if n not in {"origin", "source"}} for row in fs.rows(batches)
    ]


WANT = [{n: v for n, v in row.items() if n not in {"origin", "source"}} for row in ROWS]


def flushed(data: bytes) -> bytes:
    """What the library decompresses of data that may end early."""
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


# Cut


def test_a_compressed_capture_cut_anywhere() -> None:
    """At every byte: all flushed events, and one loss that says it is torn."""
    for size in range(len(PACKED)):
        found, error = delivered(PACKED[:size])
        have = len(flushed(PACKED[:size])) if size >= 5 else 0
        if have < 18:
            assert isinstance(error, NO_HEADER), size
            continue
        assert error is None
        whole = sum(end <= have for end in STARTS[1:])
        assert values(found) == WANT[:whole], size
        assert [loss.kind for loss in fs.losses(found)] == ["torn"], size


def test_a_plain_capture_cut_anywhere() -> None:
    """At every byte: all whole events; between two sections there is nothing to be missed."""
    for size in range(18, len(PLAIN)):
        found, error = delivered(PLAIN[:size])
        assert error is None
        assert values(found) == WANT[: sum(end <= size for end in STARTS[1:])], size
        kinds = [loss.kind for loss in fs.losses(found)]
        assert kinds == ([] if size in STARTS or size == 18 else ["torn"]), size


def test_a_real_capture_cut_anywhere(data: Callable[[str], Path]) -> None:
    """A capture that Fibratus wrote: never another error, never a row that is not in it."""
    raw = data(fs.SMALL[4]).read_bytes()
    want = values(fs.read(raw))
    most = 0
    for size in range(0, len(raw), 7):
        found, error = delivered(raw[:size])
        rows = values(found)
        assert error is None or isinstance(error, NO_HEADER)
        assert rows == want[: len(rows)]
        most = max(most, len(rows))
    assert most == 100


@pytest.mark.parametrize("verb", ["cat", "info", "tree", "timeline", "replay"])
def test_verbs_end_with_3_on_a_cut_capture(verb: str, tmp_path: Path) -> None:
    """A capture that only ends early is read to its end."""
    path = tmp_path / "cut.kcap"
    path.write_bytes(PACKED[:-20])

    assert run(verb, path).exit_code == 3


# Damaged


@pytest.mark.parametrize("which", [0, 3, 7])
def test_a_bad_record_is_named_or_passed_over(which: int, tmp_path: Path) -> None:
    """Strict: what is before it, then exit 1. Lenient: all others, the bad one counted, exit 3."""
    bad = bytearray(PLAIN)
    bad[STARTS[which] + 10 + 37 : STARTS[which] + 10 + 39] = b"\xff\xff"  # length of a name
    path = tmp_path / "bad.cap"
    path.write_bytes(zstandard.compress(bytes(bad)))

    found, error = delivered(bytes(bad))
    assert isinstance(error, BadInputError)
    assert error.offset == STARTS[which] + 10
    assert values(found) == WANT[:which]

    found, error = delivered(bytes(bad), lenient=True)
    assert error is None
    assert [row["seq"] for row in fs.rows(found)] == [i for i in range(8) if i != which]
    (loss,) = fs.losses(found)
    assert (loss.kind, loss.count) == ("skipped", 1)
    assert str(STARTS[which] + 10) in loss.reason

    strict = run("import", path, "-o", tmp_path / "a.kcap")
    assert strict.exit_code == 1
    assert "--lenient" in strict.stderr
    assert run("import", "--lenient", path, "-o", tmp_path / "b.kcap").exit_code == 3
    assert run("cat", path).stdout.count("\n") == which
    assert run("cat", "--lenient", path).stdout.count("\n") == 7


@pytest.mark.parametrize("which", [0, 3, 7])
@pytest.mark.parametrize("field", ["type", "size"])
def test_a_broken_frame_is_passed_over(which: int, field: str) -> None:
    """Lenient: the next event is found by decoding what may be one."""
    bad = bytearray(PLAIN)
    bad[STARTS[which] + (0 if field == "type" else 9)] = 0x55

    found, error = delivered(bytes(bad))
    assert isinstance(error, DamagedError)
    assert error.offset == STARTS[which]
    assert values(found) == WANT[:which]

    found, error = delivered(bytes(bad), lenient=True)
    assert error is None
    assert [row["seq"] for row in fs.rows(found)] == [i for i in range(8) if i != which]
    assert {loss.kind for loss in fs.losses(found)} == {"damaged"}


def test_a_broken_handle_is_passed_over() -> None:
    """Lenient: the others are kept; strict: it is named."""
    good = fs.handle(number=8)
    bad = fs.handle(number=4, tag=9)
    raw = fs.header(OLD, [good, bad]) + PARTS[1]

    found, error = delivered(raw)
    assert isinstance(error, BadInputError)
    assert "handle" in error.what
    assert found == []
    found, error = delivered(raw, lenient=True)
    assert error is None
    assert [s.tables["handles"].array("handle").to_pylist() for s in fs.snapshots(found)] == [[8]]
    assert [loss.count for loss in fs.losses(found)] == [1]


def test_damaged_compression() -> None:
    """Bytes that no block can start with: the blocks before them count, lenient or not."""
    parts = fs.packed(PARTS[:5])[:-3]  # without the last, empty block
    bad = parts + b"\xff" * 100

    found, error = delivered(bad)
    assert isinstance(error, DamagedError)
    assert values(found) == WANT[:4]
    found, error = delivered(bad, lenient=True)
    assert error is None
    assert values(found) == WANT[:4]
    assert [loss.kind for loss in fs.losses(found)] == ["damaged"]


@given(st.integers(0, len(PLAIN) * 8 - 1), st.booleans())
def test_a_flipped_bit(bit: int, lenient: bool) -> None:
    """The format has no checksum: what comes before the bit is as it was, the rest may not be."""
    bad = bytearray(PLAIN)
    bad[bit // 8] ^= 1 << bit % 8
    found, error = delivered(bytes(bad), lenient=lenient)

    before = sum(end <= bit // 8 for end in STARTS[1:])
    if bit // 8 >= len(HEAD):
        assert values(found)[:before] == WANT[:before]
    if lenient and bit // 8 >= len(HEAD):
        first = STARTS[0] + 1 == bit // 8
        assert error is None or (first and isinstance(error, VersionError))


def test_flipped_bits_of_a_real_capture(data: Callable[[str], Path]) -> None:
    """Random flips in compressed data: only errors of ours, at most as many rows as there were."""
    raw = data(fs.SMALL[4]).read_bytes()
    rng = random.Random(4)
    ends = set()
    for _ in range(150):
        bad = bytearray(raw)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        for lenient in (False, True):
            found, error = delivered(bytes(bad), lenient=lenient)
            ends.add(type(error))
            assert len(fs.rows(found)) <= 100
    assert DamagedError in ends or BadInputError in ends
    assert type(None) in ends


@given(st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=30)), max_size=4), st.booleans())
def test_accidents(edits: list[tuple[int, bytes]], lenient: bool) -> None:
    """Bytes written over, anywhere: only errors of ours."""
    bad = bytearray(PLAIN)
    for at, new in edits:
        bad[at : at + len(new)] = new
    delivered(bytes(bad), lenient=lenient)
    delivered(zstandard.compress(bytes(bad)), lenient=lenient)


@given(st.binary(max_size=300), st.booleans())
def test_anything_behind_a_header(raw: bytes, lenient: bool) -> None:
    """Any bytes where sections belong: only errors of ours."""
    delivered(HEAD + raw, lenient=lenient)
    delivered(fs.header() + raw, lenient=lenient)


# None at all


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(100_000),
        b"{}\n",
        b"sutarbi",
        b"sutarbif",
        b"sutarbif" + bytes(9),
        zstandard.compress(bytes(5000)),
        zstandard.compress(b""),
    ],
)
def test_what_is_no_capture_is_refused(raw: bytes, tmp_path: Path) -> None:
    """Empty, of another format, all zeros, or not even a header."""
    assert not FibratusReader.sniff(raw) or raw.startswith(b"sutarbif")
    _, error = delivered(raw)
    assert isinstance(error, NotACaptureError)
    path = tmp_path / "none.kcap"
    path.write_bytes(raw)
    assert run("cat", path).exit_code == 1


def test_other_versions_are_refused() -> None:
    """A major version, or events, that no release writes: a line that says which."""
    for raw, what in (
        (fs.header(Form(major=9)) + PARTS[1], "version 9.0"),
        (fs.header(Form(major=0)) + PARTS[1], "version 0.0"),
        (fs.header() + fs.section(RECORDS[0], Form(version=3)), "events of version 3"),
    ):
        _, error = delivered(raw)
        assert isinstance(error, VersionError)
        assert what in str(error)


def test_a_header_alone_is_an_empty_capture(tmp_path: Path) -> None:
    """A recording that saw nothing has its handles and no event."""
    found, error = delivered(HEAD)
    assert error is None
    assert fs.rows(found) == []
    assert fs.snapshots(found)[0].tables["handles"].rows == 3
    path = tmp_path / "empty.cap"
    path.write_bytes(HEAD)
    assert run("import", path, "-o", tmp_path / "out.kcap").exit_code == 0


def test_lengths_are_not_believed() -> None:
    """Huge counts and sizes take no memory before the bytes are there."""
    tracemalloc.start()
    for raw in (
        fs.header() + OLD.section(3, 1, 0, 0xFFFFFFFF),
        fs.header() + OLD.section(2, 1, 0xFFFFFFFF, 0),
        HEAD[:18] + OLD.section(2, 1, 1 << 20, 0),
        fs.header() + fs.section(RECORDS[0][:-12] + OLD.pack("H", 0xFFFF)),
    ):
        for lenient in (False, True):
            delivered(raw, lenient=lenient)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert most < 16 << 20


def test_a_frame_that_needs_much_memory_is_refused() -> None:
    """A window beyond what zstd itself takes unasked is no damage but a limit."""
    giant = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + bytes(20)

    _, error = delivered(giant)

    assert isinstance(error, LimitError | NotACaptureError)


# Streams


def test_a_pipe_is_like_a_file() -> None:
    """From a stream that gives little at a time, the same rows and the same origin."""
    stream = io.BufferedReader(Pipe(PACKED, step=7))
    batches = list(FibratusReader(stream, "in").batches())  # type: ignore[arg-type]

    assert fs.rows(batches) == ROWS


def test_a_second_handle_section_stands_where_it_was() -> None:
    """Handles between events are a snapshot between batches."""
    raw = PARTS[0] + PARTS[1] + OLD.section(2, 1, 1, 0) + fs.handle(number=99) + PARTS[2]
    found = fs.read(raw)

    assert len(fs.snapshots(found)) >= 1
    handles = [
        n for s in fs.snapshots(found) for n in s.tables["handles"].array("handle").to_pylist()
    ]
    assert sorted(handles) == [0, 4, 8, 99]
    assert [row["seq"] for row in fs.rows(found)] == [0, 1]


def test_closing_twice_is_fine() -> None:
    """As every source."""
    reader = fs.source(PLAIN)
    with contextlib.closing(reader):
        assert sum(batch.rows for batch in reader.batches()) == 8
    reader.close()
