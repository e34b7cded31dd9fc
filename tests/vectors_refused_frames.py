"""Vectors of chunks whose checksums hold and whose directory or frames lie: no row of them comes.

Each is the capture of two chunks in which the first one was changed; the second is delivered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import cache

import forge
import zstandard
from forge import ChunkParts
from vectors import DAMAGED, EVENTS, Row, Vector, base, events

from kcap.format import zstd

Edit = Callable[[ChunkParts], object]
EXITS = {**DAMAGED, "info": 0}
BATCH = events(8)
NAMES = sorted(events(4).columns)
FEW, FLAG, WORDS, EVENT, ORD, PID, TS = NAMES
"""In the order of the directory."""


def vectors() -> Iterator[Vector]:
    """All of them."""
    for name, (clauses, says, edit, finding) in {**directories(), **lengths()}.items():
        yield refused(name, says, clauses, forge.with_chunk(base(), edit), finding)
    for name, (clauses, says, edit, finding) in {
        **frames(),
        **presences(),
        **values(),
        **texts(),
    }.items():
        yield refused(name, says, clauses, forge.with_chunk(base(), edit), finding)
    for name, (clauses, says, edit, finding) in lists().items():
        yield refused(name, says, clauses, forge.with_chunk(base(), edit), finding)


def refused(
    name: str,
    says: str,
    clauses: str,
    data: bytes,
    finding: str,
    rows: list[Row] = EVENTS[4:8],
    lost: int = 4,
) -> Vector:
    """A vector whose first chunk is refused."""
    return Vector(
        "must_reject",
        name,
        says,
        tuple(clauses.split()),
        data,
        rows,
        EXITS,
        refused="record",
        losses=[["damaged", lost]],
        findings=[finding],
    )


Cases = dict[str, tuple[str, str, Edit, str]]
"""Name to clauses, sentence, edit and finding."""


def entry(name: str, **changes: int) -> Edit:
    """Other values in a column's directory entry."""

    def edit(taken: ChunkParts) -> None:
        vars(taken.entries[NAMES.index(name)]).update(changes)

    return edit


def head(**changes: int) -> Edit:
    """Other values in the directory's head."""
    return lambda taken: taken.head.update(changes)


def content(name: str, change: Callable[[bytes], bytes], **changes: int) -> Edit:
    """Other decoded bytes of a column, and what the directory says of them."""

    def edit(taken: ChunkParts) -> None:
        at = NAMES.index(name)
        found = taken.entries[at]
        raw = zstd.decompress(taken.frames[at], found.decoded) if found.decoded else b""
        raw = change(raw)
        taken.frames[at] = zstd.compress(raw) if raw else b""
        found.decoded = len(raw)
        vars(found).update(changes)

    return edit


def frame(name: str, change: Callable[[bytes, int], bytes], **changes: int) -> Edit:
    """Another frame of a column, made of its decoded bytes and their length."""

    def edit(taken: ChunkParts) -> None:
        at = NAMES.index(name)
        found = taken.entries[at]
        raw = zstd.decompress(taken.frames[at], found.decoded)
        taken.frames[at] = change(raw, found.decoded)
        vars(found).update(changes)

    return edit


def directories() -> Cases:
    """Directories that contradict themselves or the columns."""

    def swapped(taken: ChunkParts) -> None:
        for part in (taken.entries, taken.frames):
            part[1], part[2] = part[2], part[1]

    def doubled(taken: ChunkParts) -> None:
        taken.entries.insert(1, type(taken.entries[0])(**vars(taken.entries[0])))
        taken.frames.insert(1, taken.frames[0])

    place = "is not in its place in the directory"
    return {
        "directory-names-unsorted": ("6.2", "Two columns have changed places.", swapped, place),
        "directory-column-twice": ("6.2", "A column comes twice.", doubled, place),
        "directory-class-of-another": (
            "6.2 4.3",
            "A text column is said to be of class i64.",
            entry(EVENT, cls=1),
            "does not fit column",
        ),
        "directory-class-unknown": (
            "5.1 6.2",
            "A column of class 99.",
            entry(EVENT, cls=99),
            "does not fit column",
        ),
        "directory-column-unknown": (
            "4.3",
            "A column that no SCHEMA describes.",
            entry(EVENT, id=12345),
            "describes column 12345",
        ),
        "directory-zero-set": (
            "6.2",
            "The byte that must be zero is not.",
            entry(EVENT, zero=1),
            "does not fit column",
        ),
        "directory-no-value": (
            "6.2",
            "A column without a value.",
            entry(EVENT, present=0),
            "does not fit column",
        ),
        "rows-none": ("3.1 6.9", "A chunk of no rows.", head(rows=0), "a chunk of 0 rows"),
        "rows-65537": (
            "3.1",
            "A row more than a chunk may have.",
            head(rows=65_537),
            "a chunk of 65537 rows",
        ),
        "rows-more-than-values": (
            "6.4",
            "More rows than there are values of a column of all rows.",
            head(rows=5),
            "the rows of a column do not fit",
        ),
    }


def lengths() -> Cases:
    """Lengths and counts that no chunk can have."""
    most = (1 << 32) - 1
    memory = "bytes in memory"
    return {
        "decoded-length-1-gib": (
            "3.1 3.3 6.3",
            "A column is said to decode to 1 GiB.",
            entry(EVENT, decoded=1 << 30),
            memory,
        ),
        "present-2-32": (
            "3.1 3.3",
            "A column of 2^32-1 values.",
            entry(TS, present=most),
            memory,
        ),
        "distinct-2-32": (
            "6.7",
            "A dictionary of 2^32-1 entries.",
            entry(EVENT, distinct=most),
            "a dictionary has 4294967295 entries",
        ),
        "list-items-2-32": (
            "3.1 3.3",
            "Lists of 2^32-1 items.",
            entry(WORDS, distinct=most),
            memory,
        ),
        "list-text-16-eib": (
            "3.1 3.3",
            "The texts of lists are said to have 2^64-1 bytes.",
            entry(WORDS, base=(1 << 64) - 1),
            memory,
        ),
        "frame-bomb": (
            "3.1 6.3",
            "A frame of 6 KB that holds 64 MiB, under a directory that says 1,000 bytes.",
            frame(EVENT, lambda _, __: bomb(), decoded=1000),
            "a zstd frame announces 67108864 bytes",
        ),
        "frame-bomb-that-says-so": (
            "3.1 3.3",
            "A frame of 6 KB that holds 64 MiB, and a directory that says so.",
            frame(EVENT, lambda _, __: bomb(), decoded=1 << 26),
            memory,
        ),
        "frame-content-size-lies": (
            "6.3",
            "A frame that says it holds 100,000 bytes, and goes on.",
            frame(EVENT, lambda _, __: lying(), decoded=100_000),
            "a zstd frame is damaged",
        ),
    }


@cache
def bomb() -> bytes:
    """A zstd frame of very many zeros."""
    return zstandard.compress(bytes(1 << 26), 3)


@cache
def lying() -> bytes:
    """A zstd frame that is longer than it says."""
    raw = bytearray(zstandard.compress(bytes(200_000)))
    size = zstandard.frame_content_size(bytes(raw))
    at = bytes(raw).index(struct.pack("<I", size))
    raw[at : at + 4] = struct.pack("<I", 100_000)
    return bytes(raw)


def frames() -> Cases:
    """Frames that are not one zstd frame of the right length."""

    def sizeless(raw: bytes, _: int) -> bytes:
        return zstandard.ZstdCompressor(write_content_size=False).compress(raw)

    announces = "a zstd frame announces"
    return {
        "frame-without-content-size": (
            "6.3",
            "A frame that does not say how long its content is.",
            frame(EVENT, sizeless),
            announces,
        ),
        "frame-longer-than-said": (
            "6.3",
            "The content is a byte longer than the directory says.",
            frame(EVENT, lambda raw, _: zstd.compress(raw + b"x")),
            announces,
        ),
        "frame-followed-by-bytes": (
            "6.3",
            "Bytes behind the frame, inside its stored length.",
            frame(EVENT, lambda raw, _: zstd.compress(raw) + b"more"),
            "a zstd frame is damaged",
        ),
        "frames-two": (
            "6.3",
            "Two frames in place of one.",
            frame(EVENT, lambda raw, _: zstd.compress(raw) + zstd.compress(b"more")),
            "a zstd frame is damaged",
        ),
        "frame-no-zstd": (
            "6.3",
            "Stored bytes that are no zstd frame.",
            frame(EVENT, lambda raw, _: raw),
            "a zstd frame",
        ),
        "frame-none-for-bytes": (
            "6.3",
            "No frame where there are decoded bytes.",
            frame(EVENT, lambda _, __: b""),
            "a zstd frame",
        ),
        "frame-for-no-bytes": (
            "6.3",
            "A frame where the decoded length is 0.",
            entry(EVENT, decoded=0),
            "has a frame that holds nothing",
        ),
    }


def presences() -> Cases:
    """Which rows have a value."""
    rows = "the rows of a column do not fit"
    return {
        "presence-unknown": (
            "6.4",
            "Presence of form 3.",
            entry(FEW, presence=3),
            "there is no presence 3",
        ),
        "presence-bitmap-count": (
            "6.4",
            "A bitmap of three rows for two values.",
            content(FEW, lambda raw: b"\x07" + raw[1:]),
            rows,
        ),
        "presence-bitmap-trailing": (
            "6.4",
            "A bitmap with a bit behind the last row.",
            content(FEW, lambda raw: b"\x81" + raw[1:]),
            rows,
        ),
        "presence-numbers-descending": (
            "6.4",
            "Row numbers that descend.",
            content(FEW, lambda raw: struct.pack("<HH", 2, 0) + raw[1:], presence=2),
            rows,
        ),
        "presence-numbers-beyond": (
            "6.4",
            "A row number that no row has.",
            content(FEW, lambda raw: struct.pack("<HH", 0, 4) + raw[1:], presence=2),
            rows,
        ),
        "presence-all-of-fewer": (
            "6.4",
            "Every row is said to have a value, and there are two.",
            content(FEW, lambda raw: raw[1:], presence=0),
            rows,
        ),
    }


def values() -> Cases:
    """Numbers."""
    no_integer = "there is no integer encoding"
    short = "a frame ends after"
    return {
        "integers-width-5": ("6.5", "Width 5.", entry(PID, encoding=5), no_integer),
        "integers-divided-plain": (
            "6.5",
            "Bit 5 without bit 4.",
            entry(PID, encoding=0x21),
            no_integer,
        ),
        "integers-bit-7": ("6.5", "Bit 7.", entry(PID, encoding=0x81), no_integer),
        "integers-planes-of-one-byte": (
            "6.5",
            "Planes of width 1.",
            entry(PID, encoding=0x41),
            no_integer,
        ),
        "integers-cut": ("6.5", "A value too few.", content(PID, lambda raw: raw[:-1]), short),
        "integers-left-over": (
            "6.3",
            "A byte behind the last value.",
            content(PID, lambda raw: raw + b"x"),
            "a frame has 5 bytes",
        ),
        "bool-encoding": ("6.6", "Bools of encoding 1.", entry(FLAG, encoding=1), "no encoding 1"),
        "bool-trailing": (
            "6.6",
            "A bitmap of bools with a bit behind the last value.",
            content(FLAG, lambda raw: bytes([raw[0] | 0x80])),
            "bits behind the last value",
        ),
    }


def texts() -> Cases:
    """Dictionaries and plain text."""
    none = "there is no text encoding"
    five = struct.pack("<4I", 65_537, 0, 0, 0) + bytes(65_537)
    return {
        "text-encoding-4": ("6.7", "Bit 2 of the encoding.", entry(EVENT, encoding=4), none),
        "text-plain-with-dictionary": (
            "6.7",
            "Plain text with three entries in its dictionary.",
            entry(EVENT, encoding=1),
            none,
        ),
        "text-dictionary-empty": (
            "6.7",
            "A dictionary without an entry.",
            entry(EVENT, distinct=0),
            "a dictionary has 0 entries",
        ),
        "text-dictionary-of-more-entries-than-values": (
            "6.7",
            "Five entries for four values.",
            entry(EVENT, distinct=5),
            "a dictionary has 5 entries",
        ),
        "text-code-without-entry": (
            "6.7",
            "A code that no entry has.",
            content(EVENT, lambda raw: b"\x03" + raw[1:]),
            "a dictionary code has no entry",
        ),
        "text-lengths-beyond": (
            "6.7",
            "Lengths that the bytes do not have.",
            content(EVENT, lambda raw: raw[:4] + b"\xff\xff" + raw[6:]),
            "a frame ends after",
        ),
        "text-not-utf-8": (
            "5.4 6.7",
            "Bytes that are not UTF-8 in a text column.",
            content(EVENT, lambda raw: raw.replace(b"exec", b"ex\xffc")),
            "text is not valid",
        ),
        "text-character-cut": (
            "5.4 6.7",
            "A character of two bytes, of which one belongs to each of two values.",
            content(EVENT, lambda raw: raw.replace(b"execexit", b"exe\xc3\xa9xit")),
            "text is not valid",
        ),
        "value-65537-bytes": (
            "3.1",
            "A text of 64 KiB and a byte.",
            content(EVENT, lambda _: five, encoding=3, distinct=0),
            "a value of 65537 bytes",
        ),
    }


def lists() -> Cases:
    """Lists."""

    def child(offset: int, raw_value: bytes) -> Callable[[bytes], bytes]:
        return lambda raw: raw[:offset] + raw_value + raw[offset + len(raw_value) :]

    def many(_: bytes) -> bytes:
        lengths_of = struct.pack("<4I", 8193, 0, 0, 0)
        return struct.pack("<BBHIIIQ", 5, 0, 0, 8193, 1, 0, 0) + lengths_of + b"\x01\x00x"

    items = "lists have 3 items"
    return {
        "list-encoding": ("6.8", "Lists of encoding 1.", entry(WORDS, encoding=1), "no encoding 1"),
        "list-of-another-class": (
            "6.8",
            "A list of text whose items are of class i64.",
            content(WORDS, child(0, b"\x01")),
            "a list has items of class 1",
        ),
        "list-of-lists": (
            "6.8",
            "A list whose items are lists.",
            content(WORDS, child(0, b"\x10")),
            "a list has items of class 16",
        ),
        "list-items-more-than-lengths": (
            "6.8",
            "More items than the lists take.",
            content(WORDS, child(4, b"\x04")),
            items,
        ),
        "list-items-not-as-the-directory-says": (
            "6.2 6.8",
            "The directory counts four items, the frame three.",
            entry(WORDS, distinct=4),
            items,
        ),
        "list-text-not-as-the-directory-says": (
            "6.2 6.8",
            "The directory says that the items have no bytes.",
            entry(WORDS, base=0),
            "the items of lists have",
        ),
        "list-8193-items": (
            "3.1",
            "A list of an item more than it may have.",
            content(WORDS, many, distinct=8193, base=8193),
            "a list of 8193 items",
        ),
    }
