"""Records with right checksums and wrong content: damage like any other, and at no cost."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import forge
import pytest
import zstandard
from badinput_support import (
    GOOD,
    GOOD_ROWS,
    ROOT,
    VERBS,
    check_damaged,
)
from forge import ChunkParts, Part
from support import opened, read, rows_of, selected
from tracee_support import OPENED

from kcap.errors import KcapError
from kcap.format import body, zstd
from kcap.format.record import HEADER_BYTES, Kind

EVENT = json.dumps(OPENED).encode() + b"\n"


# Lengths and counts beyond the limits


def places(data: bytes, kind: Kind) -> int:
    """Offset of the first record of a kind."""
    return next(
        r.offset  # type: ignore[union-attr]
        for r in opened(data).scanner().records()
        if r.header.kind == kind  # type: ignore[union-attr]
    )


def oversized(kind: Kind) -> bytes:
    """The capture with a header that announces 5 GiB, under a right CRC."""
    at = places(GOOD, kind)
    number = struct.unpack_from("<Q", GOOD, at + 16)[0]
    made = forge.packed(Part(kind, b"", length=5 << 30), number)
    return GOOD[:at] + made[:HEADER_BYTES] + GOOD[at + HEADER_BYTES :]


@pytest.mark.parametrize("verb", VERBS)
def test_a_length_of_5_gib_is_passed_over(verb: str, tmp_path: Path) -> None:
    """The record is damage, the reading goes on with the next one (spec 3.1)."""
    path = tmp_path / "long.kcap"
    path.write_bytes(oversized(Kind.CHUNK))

    check_damaged(verb, path, "5368709120 bytes, more than 64 MiB")

    rows = rows_of(read(path.read_bytes())[0])
    assert rows == GOOD_ROWS[25:]
    assert rows_of(read(path.read_bytes(), pipe=True)[0]) == rows


def test_a_file_header_of_5_gib_is_replaced_by_its_twin() -> None:
    """One bad FILE_HEADER costs nothing, two make the file unreadable."""
    one = oversized(Kind.FILE_HEADER)
    size = forge.packed(forge.parts_of(GOOD)[0], 0)
    both = one[: len(size)] + one[:HEADER_BYTES] + one[len(size) + HEADER_BYTES :]

    batches, losses = read(one)
    assert rows_of(batches) == GOOD_ROWS
    assert [loss.kind for loss in losses] == ["damaged"]
    with pytest.raises(KcapError, match="FILE_HEADER"):
        opened(both)


@cache
def bomb() -> bytes:
    """A zstd frame that says it holds 1 GiB, and does."""
    return zstandard.compress(bytes(1 << 30), 1)


@cache
def lying_bomb() -> bytes:
    """A zstd frame of 100,000 bytes, as it says, that goes on."""
    frame = bytearray(zstandard.compress(bytes(200_000)))
    size = zstandard.frame_content_size(frame)
    at = bytes(frame).index(struct.pack("<I", size))
    frame[at : at + 4] = struct.pack("<I", 100_000)
    return bytes(frame)


def first_frame(frame: bytes, decoded: int) -> Callable[[ChunkParts], None]:
    """An edit that gives the first column of a chunk another frame."""

    def edit(taken: ChunkParts) -> None:
        taken.frames[0] = frame
        taken.entries[0].decoded = decoded

    return edit


def in_body(frame: bytes, length: int, codec: int = 1) -> bytes:
    """The capture with another SOURCE body."""
    made = forge.body(frame, length, codec)
    return forge.with_part(GOOD, Kind.SOURCE, lambda p: replace(p, payload=made))


def schema_of(count: int) -> bytes:
    """The capture with a SCHEMA record of so many columns."""
    entries = [{"class": "i64", "id": 100 + i, "name": f"c{i}", "table": "t"} for i in range(count)]
    return forge.inserted(GOOD, Part(Kind.SCHEMA, body.pack(entries, 1 << 30)))


def long_directory() -> bytes:
    """The capture with a chunk directory of 17 MiB under a right CRC."""
    import zlib

    raw = bytes(17 << 20)
    made = struct.pack("<I", len(raw)) + raw + struct.pack("<I", zlib.crc32(raw))
    return forge.with_part(GOOD, Kind.CHUNK, lambda p: replace(p, payload=made))


def deep(levels: int) -> bytes:
    """The capture with a SOURCE whose body nests."""
    text = b'{"details":' * levels + b"1" + b"}" * levels
    return forge.with_part(GOOD, Kind.SOURCE, lambda p: replace(p, payload=forge.body(text)))


def column_of(name: str) -> tuple[int, Callable[[ChunkParts], bytes]]:
    """Index of a column's entry, and how to get its decoded bytes."""
    at = sorted(read(GOOD)[0][0].columns).index(name)
    return at, lambda taken: zstd.decompress(taken.frames[at], taken.entries[at].decoded)


def with_column(name: str, change: Callable[[bytes], bytes]) -> bytes:
    """The capture with other decoded bytes of a column in its first chunk."""
    at, decoded = column_of(name)

    def edit(taken: ChunkParts) -> None:
        made = change(decoded(taken))
        taken.frames[at] = zstd.compress(made)
        taken.entries[at].decoded = len(made)

    return forge.with_chunk(GOOD, edit)


def with_entry(name: str, **changes: int) -> bytes:
    """The capture with another directory entry of a column in its first chunk."""
    at, _ = column_of(name)
    return forge.with_chunk(GOOD, lambda taken: vars(taken.entries[at]).update(changes))


def with_head(**changes: int) -> bytes:
    """The capture with another directory head in its first chunk."""
    return forge.with_chunk(GOOD, lambda taken: taken.head.update(changes))


TEXT = "shape"
"""A column in its dictionary form that every row has."""
FORGED: dict[str, tuple[Callable[[], bytes], str, bool]] = {
    # name: (content, what is said, a chunk's rows are gone)
    "body bomb": (lambda: in_body(bomb(), 1 << 30), "SOURCE announces 1073741824 bytes", False),
    "body bomb that lies": (
        lambda: in_body(bomb(), 1000),
        "a zstd frame announces 1073741824 bytes: expected 1000",
        False,
    ),
    "body frame that lies": (lambda: in_body(lying_bomb(), 100_000), "zstd frame", False),
    "body of another codec": (lambda: in_body(b"{}", 2, 7), "no valid body", False),
    "body cut": (lambda: in_body(b"{}", 3, 0), "no valid body", False),
    "body no object": (lambda: in_body(b"[]", 2, 0), "no JSON object", False),
    "body no JSON": (lambda: in_body(b"{\xff", 2, 0), "no JSON", False),
    "deep body": (lambda: deep(40), "nests too deep: expected at most 32", False),
    "very deep body": (lambda: deep(50_000), "no JSON|nests too deep", False),
    "number too long": (lambda: in_body(b"9" * 5000, 5000, 0), "no JSON", False),
    "frame bomb": (
        lambda: forge.with_chunk(GOOD, first_frame(bomb(), 1 << 30)),
        "bytes in memory",
        True,
    ),
    "frame bomb that lies": (
        lambda: forge.with_chunk(GOOD, first_frame(bomb(), 1000)),
        "announces 1073741824 bytes",
        True,
    ),
    "frame that lies": (
        lambda: forge.with_chunk(GOOD, first_frame(lying_bomb(), 100_000)),
        "zstd frame",
        True,
    ),
    "65,537 columns": (lambda: schema_of(65_537), "more than 65536 columns", False),
    "long name": (
        lambda: forge.inserted(
            GOOD,
            Part(
                Kind.SCHEMA,
                body.pack([{"class": "i64", "id": 99, "name": "n" * 1025, "table": "t"}]),
            ),
        ),
        "column name of 1025 bytes",
        False,
    ),
    "directory of 17 MiB": (long_directory, "directory of 17825792 bytes", True),
    "invalid UTF-8": (
        lambda: with_column(TEXT, lambda raw: raw.replace(b"path", b"\xff\xfe\xfd\xfc")),
        "UTF-8",
        True,
    ),
    "codes out of range": (
        lambda: with_column(TEXT, lambda raw: b"\xff" * 4 + raw[4:]),
        "code|dictionary",
        True,
    ),
    "values cut": (
        lambda: with_column(TEXT, lambda raw: raw[:-1]),
        "a frame ends|lengths",
        True,
    ),
    "values left over": (lambda: with_column(TEXT, lambda raw: raw + b"x"), "", True),
    "no rows": (lambda: with_head(rows=0), "chunk of 0 rows", True),
    "rows beyond the limit": (lambda: with_head(rows=70_000), "chunk of 70000 rows", True),
    "more rows than values": (lambda: with_head(rows=60_000), "", True),
    "another class": (lambda: with_entry(TEXT, cls=1), "does not fit column", True),
    "an unknown class": (lambda: with_entry(TEXT, cls=99), "does not fit column", True),
    "an unknown column": (lambda: with_entry(TEXT, id=12345), "describes column 12345", True),
    "an unknown presence": (
        lambda: with_entry(TEXT, presence=9),
        "presence|rows of a column",
        True,
    ),
    "an unknown encoding": (lambda: with_entry("ts", encoding=0xFF), "encoding", True),
    "too many values": (lambda: with_entry(TEXT, present=1 << 31), "", True),
    "too many entries": (lambda: with_entry(TEXT, distinct=1 << 31), "", True),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_record_is_damage_like_any_other(name: str, tmp_path: Path) -> None:
    """Right checksums around wrong content: told, passed over, and the other rows come whole."""
    make, what, rows_gone = FORGED[name]
    path = tmp_path / "forged.kcap"
    path.write_bytes(make())

    for verb in VERBS:
        check_damaged(verb, path, what)

    batches, losses = read(path.read_bytes())
    assert rows_of(batches) == (GOOD_ROWS[25:] if rows_gone else GOOD_ROWS)
    assert [(loss.kind, loss.count) for loss in losses][:1] in (
        [("damaged", 25 if rows_gone else 0)],
        [("damaged", 70_000)],
        [("damaged", 60_000)],
    )
    assert rows_of(read(path.read_bytes(), pipe=True)[0]) == rows_of(batches)
    assert rows_of(selected(opened(path.read_bytes()))) == rows_of(batches)


def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    """A frame of 1 GiB is refused before anything of its size is allocated (spec 3.1)."""
    path = tmp_path / "bomb.kcap"
    peaks = []
    contents = [
        GOOD,
        in_body(bomb(), 1000),
        forge.with_chunk(GOOD, first_frame(bomb(), 1000)),
        forge.with_chunk(GOOD, first_frame(bomb(), 1 << 30)),
        oversized(Kind.CHUNK),
        zstandard.compress(EVENT + bytes(1 << 28)),
    ]
    for content in contents:
        path.write_bytes(content)
        process = subprocess.Popen(
            [sys.executable, "-m", "kcap.tools", "cat", path],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peaks.append(usage.ru_maxrss >> 10)
    assert max(peaks) < peaks[0] + 130, peaks
