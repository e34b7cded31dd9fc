"""Vectors of index sections, FOOTERs, CHECKPOINTs and blobs that lie under checksums that hold."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import forge
import numpy as np
from forge import Part
from support import FILE_ID
from vectors import DAMAGED, EVENTS, Vector, base, events, made
from vectors_damaged import OPEN, found
from vectors_refused import edited, record

from kcap.format import payloads, zstd
from kcap.format.blobs import Gap
from kcap.format.chunk_index import ChunkIndex
from kcap.format.record import Kind
from kcap.model.side import Loss

SILENT: dict[str, Any] = {
    "exits": {"cat": 0, "info": 0, "recover": 3, "verify": 3},
    "losses": [],
}
"""What only verify and recover look at."""


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from indexes()
    yield from footers()
    yield from checkpoints()
    yield from artifacts()


def indexes() -> Iterator[Vector]:
    """CHUNK_INDEX records; their chunks are read all the same."""

    def with_index(change: Callable[[bytes], bytes]) -> bytes:
        return edited(Kind.CHUNK_INDEX, change)

    def section(tag: int, content: bytes) -> bytes:
        raw = struct.pack("<HHI", tag, 0, len(content)) + content
        return raw + bytes(-len(raw) % 8)

    def pids(values: list[int], count: int | None = None) -> bytes:
        raw = b"".join(struct.pack("<H", v) for v in values)
        count = len(values) if count is None else count
        return struct.pack("<IBBHQII", count, 2, 0, 0, 0, len(raw), 0) + zstd.compress(raw)

    def sections(*parts: bytes) -> bytes:
        def change(raw: bytes) -> bytes:
            bare = replace(ChunkIndex.unpack(raw), pids=None, strings=None)
            return bare.pack() + b"".join(parts)

        return with_index(change)

    def counted(**changes: Any) -> bytes:
        return with_index(lambda raw: replace(ChunkIndex.unpack(raw), **changes).pack())

    says_other = "does not say what its chunk holds"
    cases = [
        ("cut", "8.1", "It ends in its fixed part.", with_index(lambda r: r[:50]), "not valid"),
        ("types-2-32", "8.1", "2^32-1 event names.", _types_of(with_index), "not valid"),
        ("rows", "8.1", "It counts another number of rows.", counted(rows=5), says_other),
        ("times", "8.1", "Other times.", counted(backward=3), says_other),
        ("names", "8.1", "Another event name.", counted(types={"x": 4}), says_other),
        ("section-cut", "8.1", "A section cut.", sections(b"\1\0\0\0"), "is cut"),
        (
            "section-beyond",
            "8.1 3.1",
            "A section of 4 GiB.",
            sections(struct.pack("<HHI", 1, 0, (1 << 32) - 1)),
            "does not fit its CHUNK_INDEX",
        ),
        (
            "section-twice",
            "8.1",
            "Tag 1 twice.",
            sections(section(1, pids([100])), section(1, pids([100]))),
            "comes twice",
        ),
        ("pids-unsorted", "8.1", "Pids descend.", sections(section(1, pids([7, 5]))), "sorted"),
        ("pids-twice", "8.1", "A pid twice.", sections(section(1, pids([7, 7]))), "sorted"),
        (
            "pids-2-32",
            "3.1 8.1",
            "2^32-1 pids.",
            sections(section(1, pids([7], (1 << 32) - 1))),
            "a set of 4294967295 pids",
        ),
        ("bloom-33-bytes", "8.1", "33 bytes.", sections(section(2, bytes(33))), "33 bytes"),
    ]
    for name, clauses, says, data, finding in cases:
        yield record(f"index-{name}", says, clauses, data, finding, **SILENT)
    for name, says, part, finding in (
        ("pids-lacking", "A pid is not in the set.", section(1, pids([100])), "set of pids is not"),
        ("bloom-denies", "A filter without a bit.", section(2, bytes(32)), "denies a string"),
    ):
        exits = {**SILENT["exits"], "verify": 0}
        yield record(
            f"index-{name}", says, "8.1", sections(part), finding, losses=[], exits=exits, deep=True
        )


def _types_of(with_index: Callable[[Callable[[bytes], bytes]], bytes]) -> bytes:
    return with_index(lambda raw: raw[:64] + b"\xff\xff\xff\xff" + raw[68:])


def footers() -> Iterator[Vector]:
    """FOOTERs that lie, under checksums and a chain that hold."""

    def lying(edit: Callable[[Any, dict[str, Any]], object]) -> bytes:
        def apply(table: Any, totals: dict[str, Any]) -> dict[str, Any]:
            edit(table, totals)
            return totals

        return forge.assembled(forge.parts_of(base()), edit=apply)

    def saying(**totals: Any) -> bytes:
        return lying(lambda _, found_totals: found_totals.update(totals))

    def placing(**entry: int) -> bytes:
        def edit(table: np.ndarray[Any, Any], _: object) -> None:
            for name, value in entry.items():
                table[0][name] = value

        return lying(edit)

    fits_not = "chunk table does not fit"
    believed = [
        ("rows", "8.2", "Another number of rows.", placing(rows=5), fits_not),
        ("times", "8.2", "Other times of a chunk.", placing(ts_min=5), fits_not),
        ("index-beyond", "8.2", "A CHUNK_INDEX far away.", placing(index=1 << 63), fits_not),
        ("events", "8.2", "More events.", saying(events=9), "the FOOTER's events"),
        ("types", "8.2", "Other event names.", saying(types={"x": 8}), "the FOOTER's types"),
        ("sources", "8.2", "No source.", saying(sources=[]), "the FOOTER's sources"),
        ("records", "8.2", "Other records.", saying(records={"CHUNK": 2}), "count of records"),
        ("loss", "8.2", "A loss.", saying(loss=[Loss("lost", 1, "r").to_json()]), "FOOTER's loss"),
        ("hash", "12.1", "Another hash.", saying(content_hash="00" * 32), "FOOTER's content_hash"),
    ]
    for name, clauses, says, data, finding in believed:
        yield record(f"footer-{name}", says, clauses, data, finding, **SILENT)
    unbelievable = [
        ("entry-beyond", "A chunk behind the FOOTER.", placing(offset=1 << 62), fits_not),
        ("entry-short", "A chunk of 8 bytes.", placing(length=8), fits_not),
        ("entry-twice", "The second chunk in place of the first.", _twice(lying), fits_not),
        ("entry-16-eib", "A chunk of 2^64-1 bytes.", placing(length=(1 << 64) - 1), fits_not),
        ("events-text", "The events are a text.", saying(events="many"), "the FOOTER's events"),
        ("times-huge", "Times beyond int64.", saying(ts=[0, 1 << 70]), "the FOOTER's ts"),
    ]
    yield from _footers_not_believed(unbelievable)
    chained = forge.parts_of(base())
    footer = payloads.Footer.unpack(chained[-1].payload)
    raw = _with_footer(replace(footer, chain=bytes(32)))
    yield record("footer-chain", "Another chain.", "2.6 8.2", raw, "hash chain does not", **SILENT)
    raw = _with_footer(replace(footer, file_id=bytes(16)))
    yield record("footer-id", "Another file's id.", "8.2", raw, "of another file", **SILENT)


def _twice(lying: Callable[[Callable[[Any, dict[str, Any]], object]], bytes]) -> bytes:
    """A table that leads to one chunk two times."""

    def edit(table: np.ndarray[Any, Any], _: object) -> None:
        table[0] = table[1]

    return lying(edit)


def _footers_not_believed(cases: list[tuple[str, str, bytes, str]]) -> Iterator[Vector]:
    """FOOTERs that can't be true are as none: the records decide, and the end is known."""
    exits = SILENT["exits"]
    for name, says, data, finding in cases:
        yield record(f"footer-{name}", says, "8.2", data, finding, losses=[], exits=exits)
    start, _ = found(base(), Kind.FOOTER)
    lies = edited_footer(lambda raw: raw[:-24] + struct.pack("<Q", start + 8) + raw[-16:])
    what = "last bytes do not say where it is"
    yield record("footer-own-place", "Another place.", "8.2", lies, what, losses=[], exits=exits)
    lies = edited_footer(lambda raw: raw[:48] + struct.pack("<Q", 1 << 40) + raw[56:])
    what = "does not fit its record"
    yield record(
        "footer-2-40-entries", "A table of 2^40.", "3.1 8.2", lies, what, losses=[], exits=exits
    )


def _with_footer(footer: payloads.Footer) -> bytes:
    """The capture with this FOOTER, as it is."""
    start, _ = found(base(), Kind.FOOTER)
    return edited_footer(lambda _: footer.pack(start))


def edited_footer(change: Callable[[bytes], bytes]) -> bytes:
    """The capture with other bytes in its FOOTER's payload, which are not made right again."""
    data = base()
    start, _ = found(data, Kind.FOOTER)
    parts = forge.parts_of(data)
    return data[:start] + forge.packed(
        replace(parts[-1], payload=change(parts[-1].payload)), len(parts) - 1
    )


def checkpoints() -> Iterator[Vector]:
    """CHECKPOINTs that lie, in open captures: nothing of them is believed."""
    still = made(*(events(4, i) for i in range(0, 16, 4)), checkpoint=2, close=False)
    parts = forge.parts_of(still)
    places = [i for i, p in enumerate(parts) if p.kind == Kind.CHECKPOINT]
    last = places[-1]
    point = payloads.Checkpoint.unpack(parts[last].payload)
    offset = found(still, Kind.CHECKPOINT, 1)[0]
    beyond = point.chunks.copy()
    beyond["offset"] = offset + 800
    loop = replace(point, previous=offset)
    cases = [
        ("chain", "2.6 8.3", "Another chain.", replace(point, chain=bytes(32)), "hash chain"),
        ("digest", "8.4", "Not its digest.", replace(point, previous_hash=bytes(32)), "lead to"),
        ("itself", "8.3 8.4", "It leads to itself.", loop, "does not lead to"),
        ("entries", "8.3", "Chunks behind it.", replace(point, chunks=beyond), "chunk table"),
        ("totals", "8.3", "No totals.", replace(point, totals={}), "totals are not"),
    ]
    for name, clauses, says, bad, finding in cases:
        raw = forge.packed(Part(Kind.CHECKPOINT, bad.pack()), last, FILE_ID)
        yield record(
            f"checkpoint-{name}",
            says,
            clauses,
            still[:offset] + raw + still[found(still, Kind.CHECKPOINT, 1)[1] :],
            finding,
            rows=EVENTS[:16],
            losses=OPEN,
            exits=DAMAGED,
        )


def artifacts() -> Iterator[Vector]:
    """Blobs; events are read all the same."""
    parts = [b"start", Gap(1000), b"a block of some length"]
    data = made(events(8), edit=lambda taker: taker.blob(parts, path="/a"))

    def block(change: Callable[[bytes], bytes]) -> bytes:
        return edited(Kind.BLOB_BLOCK, change, data)

    def manifest(change: Callable[[bytes], bytes]) -> bytes:
        return edited(Kind.BLOB_MANIFEST, change, data)

    def ranged(at: int, form: str, value: int) -> bytes:
        return manifest(
            lambda raw: raw[:at] + struct.pack(form, value) + raw[at + struct.calcsize(form) :]
        )

    records = forge.parts_of(data)
    at = [i for i, p in enumerate(records) if p.kind == Kind.BLOB_BLOCK][-1]
    swapped = [*records[:at], records[at + 1], records[at], *records[at + 2 :]]
    magic = b"\x89KCP"
    cases = [
        (
            "block-hash",
            "9.2",
            "Other bytes.",
            block(lambda r: r[:-1] + b"?"),
            "do not have its hash",
        ),
        ("block-none", "9.2 3.1", "No byte.", block(lambda r: bytes(4) + r[4:]), "announces 0"),
        (
            "block-2-mib",
            "9.2 3.1",
            "It announces 2 MiB.",
            block(lambda r: struct.pack("<I", 2 << 20) + r[4:]),
            "announces 2097152 bytes",
        ),
        (
            "block-codec-2",
            "9.2",
            "Codec 2.",
            block(lambda r: r[:4] + b"\2" + r[5:]),
            "no valid form",
        ),
        (
            "block-zero-set",
            "9.2",
            "No zero.",
            block(lambda r: r[:5] + b"\1" + r[6:]),
            "no valid form",
        ),
        (
            "block-magic",
            "9.3",
            "It holds the bytes that begin a record.",
            block(lambda _: blob_block(magic * 3)),
            "holds what begins a record",
        ),
        ("manifest-first", "9.6", "It stands before a block.", forge.assembled(swapped), "block"),
        ("manifest-sum", "9.4", "Ranges too short.", ranged(8, "<Q", 4), "do not make its size"),
        ("manifest-empty-range", "9.4", "An empty range.", _empty_range(manifest), "no sense"),
        ("manifest-form-3", "9.4", "A range of form 3.", ranged(16, "<I", 3), "no sense"),
        ("manifest-reason", "9.4 9.5", "A reason of a block.", ranged(20, "<I", 1), "no sense"),
        ("manifest-2-32", "9.4 3.1", "2^32-1 ranges.", ranged(4, "<I", (1 << 32) - 1), "ranges"),
        ("manifest-16-eib", "9.4 3.1", "2^64-1 bytes.", ranged(8, "<Q", (1 << 64) - 1), "too long"),
    ]
    for name, clauses, says, bad, finding in cases:
        yield record(f"blob-{name}", says, clauses, bad, finding, **SILENT)


def blob_block(data: bytes) -> bytes:
    """A block of stored bytes without a mask, whatever it holds."""
    digest = hashlib.sha256(data).digest()
    return struct.pack("<IB3xI", len(data), 0, 0) + digest + data


def _empty_range(manifest: Callable[[Callable[[bytes], bytes]], bytes]) -> bytes:
    """A hole of no byte, the others untouched."""

    def change(raw: bytes) -> bytes:
        length, count = struct.unpack_from("<II", raw)
        table, text = raw[8 : 8 + 48 * count], raw[8 + 48 * count :]
        return struct.pack("<II", length, count + 1) + table + struct.pack("<QI36x", 0, 1) + text

    return manifest(change)
