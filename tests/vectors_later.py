"""Vectors that every reader reads in whole: other versions, repaired captures, blobs."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import forge
import vectors_damaged
from forge import Part
from support import SOURCE, snapshot
from vectors import EVENTS, GOOD, Vector, base, events, made, settled
from vectors_valid import valid

from kcap.format import body, payloads
from kcap.format.blobs import Gap
from kcap.format.chunk_index import ChunkIndex
from kcap.format.record import Kind
from kcap.format.recover import recover
from kcap.format.writer import CaptureWriter
from kcap.model.side import Heartbeat, Loss


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from other_versions()
    yield from heartbeats()
    yield from repaired_and_blobs()


def other_versions() -> Iterator[Vector]:
    """What an older writer left out, and what a newer one may add."""
    full = made(
        events(4).with_before([SOURCE, snapshot(), Loss("lost", 1, "r")]),
        events(4, 4),
        checkpoint=1,
    )
    unknown = Part(99, b"what a later version knows", flags=1)
    parts = forge.parts_of(full)
    yield valid(
        "unknown-kind-ancillary",
        "A record of kind 99 with the ancillary flag is skipped.",
        "2.4",
        forge.assembled([*parts[:4], unknown, *parts[4:]]),
        EVENTS[:8],
    )
    yield valid(
        "section-unknown",
        "A CHUNK_INDEX with a section of tag 77.",
        "8.1",
        forge.with_part(
            full, Kind.CHUNK_INDEX, lambda p: _longer(p, struct.pack("<HHI", 77, 0, 0))
        ),
        EVENTS[:8],
    )
    yield valid(
        "index-without-sections",
        "A CHUNK_INDEX without set of pids and bloom filter.",
        "8.1",
        forge.with_part(full, Kind.CHUNK_INDEX, _bare_index),
        EVENTS[:8],
    )
    yield valid(
        "version-1.0",
        "As version 1.0 wrote it: no sections, no content hashes, state rows 0.",
        "1.4",
        _of_version_1_0(base()),
        EVENTS[:8],
    )
    yield valid(
        "required-features-none",
        "Version 1.1 that needs no feature.",
        "1.4 4.1",
        forge.assembled(_with_header(parts, requires=[])),
        EVENTS[:8],
    )
    yield valid(
        "minor-1.9",
        "A later minor version: more keys in every body, longer payloads, a new section.",
        "1.4 2.4 4",
        _of_version_1_9(full),
        EVENTS[:8],
    )


def heartbeats() -> Iterator[Vector]:
    """Signs of life of the recorder."""
    full = made(
        events(4).with_before([SOURCE, snapshot(), Loss("lost", 1, "r")]),
        events(4, 4),
        checkpoint=1,
    )
    parts = forge.parts_of(full)
    records = [Part(Kind.HEARTBEAT, struct.pack("<qQ", 5, 8)), _note()]
    yield valid(
        "heartbeat-and-note",
        "A HEARTBEAT and a NOTE.",
        "4.6",
        counted([*parts[:4], *records, *parts[4:]]),
        EVENTS[:8],
    )
    told = Heartbeat(2 * 10**9, 10**9, 4, SOURCE.id, {"lost": 0, "attached": ["on_exec"]})
    first = replace(told, ts_ns=10**9, boot_ns=0, events=0)
    yield valid(
        "heartbeats-with-bodies",
        "HEARTBEATs that say what the recorder had counted, a second apart.",
        "4.6",
        made(events(4).with_before([SOURCE, first]), events(4, 4).with_before([told])),
        EVENTS[:8],
    )


def counted(parts: list[Part]) -> bytes:
    """A capture of these records whose CHECKPOINT and FOOTER count the new ones, too."""
    names = [Kind(p.kind).name for p in parts if p.was_at is None and p.kind in list(Kind)]
    for i, part in enumerate(parts):
        if part.kind == Kind.CHECKPOINT:
            point = payloads.Checkpoint.unpack(part.payload)
            totals = {**point.totals}
            totals["records"] = {**totals["records"], **dict.fromkeys(names, 1)}
            parts[i] = replace(part, payload=replace(point, totals=totals).pack())
            break

    def edit(_table: object, totals: dict[str, Any]) -> None:
        totals["records"] = {**totals["records"], **dict.fromkeys(names, 1)}

    return forge.assembled(parts, edit=edit)


def _note() -> Part:
    return Part(Kind.NOTE, body.pack({"what": "looked at", "who": "a test"}))


def _longer(part: Part, more: bytes) -> Part:
    return replace(part, payload=part.payload + more)


def _bare_index(part: Part, state_rows: int | None = None) -> Part:
    found = ChunkIndex.unpack(part.payload)
    rows = found.state_rows if state_rows is None else state_rows
    bare = replace(found, pids=None, strings=None, state_rows=rows)
    return replace(part, payload=bare.pack())


def _with_header(parts: list[Part], *, minor: int | None = None, **keys: Any) -> list[Part]:
    """The records with other FILE_HEADERs."""
    header = payloads.FileHeader.unpack(parts[0].payload)
    fresh = replace(
        header,
        minor=header.minor if minor is None else minor,
        meta={**header.meta, **keys},
    )
    return [replace(p, payload=fresh.pack()) if p.kind == Kind.FILE_HEADER else p for p in parts]


def _of_version_1_0(data: bytes) -> bytes:
    parts = _with_header(forge.parts_of(data), minor=0, requires=[])
    parts = [_bare_index(p, 0) if p.kind == Kind.CHUNK_INDEX else p for p in parts]

    def edit(_table: object, totals: dict[str, Any]) -> None:
        del totals["content_hash"], totals["content_hash_values"]

    return forge.assembled(parts, edit=edit)


def _of_version_1_9(data: bytes) -> bytes:
    """What a later minor version may be like."""
    parts = _with_header(forge.parts_of(data), minor=9, mood={"new": True})
    for i, part in enumerate(parts):
        if part.kind == Kind.SOURCE:
            value = body.unpack_object(part.payload, "") | {"colour": "blue"}
            parts[i] = replace(part, payload=body.pack(value))
        elif part.kind in (Kind.LOSS, Kind.SCHEMA):
            values = [v | {"colour": "blue"} for v in body.unpack_objects(part.payload, "")]
            parts[i] = replace(part, payload=body.pack(values))
        elif part.kind in (Kind.CHUNK, Kind.STATE):
            parts[i] = _longer(part, b"what a later version knows")
        elif part.kind == Kind.CHUNK_INDEX:
            parts[i] = _longer(part, struct.pack("<HHI8s", 77, 0, 8, b"whatever"))
        elif part.kind == Kind.CHECKPOINT:
            point = payloads.Checkpoint.unpack(part.payload)
            sources = [s | {"colour": "blue"} for s in point.totals["sources"]]
            more = {**point.totals, "colour": {"blue": 1}, "sources": sources}
            grown = replace(point, totals=more)
            parts[i] = replace(part, payload=grown.pack())

    def edit(_table: object, totals: dict[str, Any]) -> None:
        totals["colour"] = {"blue": 1}
        totals["sources"] = [s | {"colour": "blue"} for s in totals["sources"]]
        totals["loss"] = [s | {"colour": "blue"} for s in totals["loss"]]
        totals["schema"] = [s | {"colour": "blue"} for s in totals["schema"]]

    return forge.assembled(parts, edit=edit)


def repaired_and_blobs() -> Iterator[Vector]:
    """RECOVERY records and artifacts."""
    data = made(*(events(4, i) for i in range(0, 12, 4)))
    for name, says, damaged, rows in (
        (
            "recovery-of-a-chunk",
            "A repaired capture: a RECOVERY stands for the second chunk.",
            vectors_damaged.hit(data, Kind.CHUNK, nth=1),
            EVENTS[:4] + EVENTS[8:12],
        ),
        (
            "recovery-of-an-open-capture",
            "A repaired capture: FOOTER and all are made anew, TAILs are kept.",
            made(*(events(3, i) for i in range(0, 12, 3)), commit=True, close=False, rows=100),
            EVENTS[:12],
        ),
    ):
        out = io.BytesIO()
        with settled():
            recover(io.BytesIO(damaged), out)
        yield valid(name, says, "2.3 4.6 7.5", out.getvalue(), rows)

    yield Vector(
        "valid",
        "blobs",
        "Five artifacts: blocks that two of them share, a hole, a missing range, no end, "
        "and bytes that need a mask.",
        ("9.1", "9.2", "9.3", "9.4", "9.5", "9.6"),
        made(events(4), edit=_artifacts),
        EVENTS[:4],
        GOOD,
    )


def _artifacts(taker: CaptureWriter) -> None:
    shared = bytes(range(256)) * 8
    taker.blob([shared], path="/bin/one", origin="00" * 16, ord=1)
    taker.blob([shared, b"and more"], path="/bin/two")
    taker.blob([b"start", Gap(1000), b"end"], path="/hole")
    taker.blob([b"start", Gap(7, "not readable")], path="/missing", details={"pid": 7})
    taker.blob([b"\x89KCP" * 20], path="/capture.kcap")
