"""Vectors of captures that ended early, or that something happened to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import forge
from support import SOURCE, opened, snapshot
from vectors import DAMAGED, EVENTS, Vector, base, events, made

from kcap.format import scan
from kcap.format.record import HEADER_BYTES, Kind
from kcap.model.side import Loss

OPEN = [["torn", None]]
UNFINISHED = {**DAMAGED, "recover": 0}
"""Nothing is damaged, there is only no end."""
CLOSED = {**DAMAGED, "info": 0}
"""``info`` reads the FOOTER alone, and that is intact."""


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from unfinished()
    yield from headers()
    yield from records()
    yield from moved_records()
    yield from endless_number()
    yield from side_records()
    yield from tails()
    yield from checkpoints()
    yield from foreign_bytes()


def recoverable(
    name: str,
    says: str,
    clauses: str,
    data: bytes,
    rows: Sequence[dict[str, Any]],
    *,
    losses: list[list[Any]],
    finding: str,
    exits: dict[str, int] = CLOSED,
    stream: Sequence[dict[str, Any]] | None = None,
) -> Vector:
    """A vector of which something is read."""
    return Vector(
        "recoverable",
        name,
        says,
        tuple(clauses.split()),
        data,
        rows,
        exits,
        losses=losses,
        findings=[finding],
        stream=stream,
    )


def found(data: bytes, kind: Kind, nth: int = 0) -> tuple[int, int]:
    """Where a record starts and ends."""
    places = [
        (r.offset, r.offset + r.header.size)
        for r in opened(data).scanner().records()
        if isinstance(r, scan.Record) and r.header.kind == kind
    ]
    return places[nth]


def flipped(data: bytes, *places: int) -> bytes:
    """The capture with a bit of some bytes turned over."""
    out = bytearray(data)
    for at in places:
        out[at] ^= 4
    return bytes(out)


def hit(data: bytes, kind: Kind, at: int = HEADER_BYTES + 9, nth: int = 0) -> bytes:
    """The capture with a bit of one record turned over; by default in its payload."""
    return flipped(data, found(data, kind, nth)[0] + at)


def full() -> bytes:
    """A capture with SOURCE, STATE and LOSS records."""
    return made(
        events(4).with_before([SOURCE, snapshot()]),
        events(4, 4).with_before([Loss("lost", 3, "a reason")]),
    )


def unfinished() -> Iterator[Vector]:
    """Captures without an end."""
    data = base()
    still = base(close=False)
    open_ = {"losses": OPEN, "finding": "no FOOTER", "exits": UNFINISHED}
    yield recoverable(
        "open-no-events", "Only FILE_HEADERs so far.", "1.3", made(close=False), [], **open_
    )
    yield recoverable(
        "open-chunks", "Two chunks, no FOOTER.", "1.3 8.4", still, EVENTS[:8], **open_
    )
    chunk, footer = found(data, Kind.CHUNK, 1)[0], found(data, Kind.FOOTER)[0]
    torn = {"losses": OPEN, "finding": "the input ends inside"}
    yield recoverable(
        "torn-in-header",
        "The file ends inside the header of the second chunk.",
        "1.3 2.1",
        data[: chunk + 20],
        EVENTS[:4],
        **torn,
        exits=DAMAGED,
    )
    yield recoverable(
        "torn-in-payload",
        "The file ends inside the payload of the second chunk.",
        "1.3 2.1",
        data[: chunk + 200],
        EVENTS[:4],
        **torn,
        exits=DAMAGED,
    )
    padded = _with_padding(data)
    yield recoverable(
        "torn-in-padding",
        "The file ends inside the padding of a chunk, which is not complete then.",
        "1.3 2.1",
        padded[: found(padded, Kind.CHUNK, 1)[1] - 1],
        EVENTS[:4],
        **torn,
        exits=DAMAGED,
    )
    yield recoverable(
        "torn-in-footer",
        "The file ends inside the FOOTER.",
        "1.3 8.4",
        data[: footer + 100],
        EVENTS[:8],
        **torn,
        exits=DAMAGED,
    )
    yield recoverable(
        "torn-in-second-file-header",
        "The file ends inside the second FILE_HEADER.",
        "1.2 1.3",
        data[: found(data, Kind.FILE_HEADER, 1)[0] + 40],
        [],
        **torn,
        exits=DAMAGED,
    )


def _with_padding(data: bytes) -> bytes:
    """The capture, its second chunk with a payload that needs padding."""
    parts = forge.parts_of(data)
    at = [i for i, p in enumerate(parts) if p.kind == Kind.CHUNK][1]
    if len(parts[at].payload) % 8 == 0:
        parts[at] = replace(parts[at], payload=parts[at].payload + b"+")
    return forge.assembled(parts)


def headers() -> Iterator[Vector]:
    """Damage to FILE_HEADER and FOOTER."""
    data = base()
    one = [["damaged", 0]]
    crc = {"losses": one, "finding": "FILE_HEADER record fails its CRC", "exits": CLOSED}
    for nth, name in enumerate(("first", "second")):
        yield recoverable(
            f"file-header-{name}-payload",
            f"The {name} FILE_HEADER is damaged: the other one will do.",
            "1.2",
            hit(data, Kind.FILE_HEADER, HEADER_BYTES + 30, nth),
            EVENTS[:8],
            **crc,
        )
    yield recoverable(
        "file-header-first-header",
        "The header of the first FILE_HEADER record is damaged.",
        "1.2 2.7",
        hit(data, Kind.FILE_HEADER, 9),
        EVENTS[:8],
        losses=one,
        finding="the record's header is damaged",
        exits=CLOSED,
    )
    for name, at in (("payload", 100), ("header", 9)):
        yield recoverable(
            f"footer-{name}",
            f"The FOOTER's {name} is damaged: the records decide.",
            "2.7 8.4",
            hit(data, Kind.FOOTER, at),
            EVENTS[:8],
            losses=[["damaged", 0 if name == "payload" else None], *OPEN],
            finding="FOOTER record fails" if name == "payload" else "header is damaged",
            exits=DAMAGED,
        )
    yield recoverable(
        "footer-end",
        "The last eight bytes are damaged, and the FOOTER's CRC with them.",
        "8.2 8.4",
        flipped(data, len(data) - 3),
        EVENTS[:8],
        losses=[["damaged", 0], *OPEN],
        finding="FOOTER record fails",
        exits=DAMAGED,
    )


def records() -> Iterator[Vector]:
    """Damage to chunks."""
    data = _with_padding(base())
    lost = [["damaged", 4]]
    chunk = {"losses": lost, "finding": "the CHUNK record fails its CRC"}
    yield recoverable(
        "chunk-header",
        "The header of the second chunk is damaged: the next record is searched.",
        "2.1 2.7",
        hit(data, Kind.CHUNK, 20, 1),
        EVENTS[:4],
        losses=lost,
        finding="the record's header is damaged",
    )
    yield recoverable(
        "chunk-directory",
        "A bit of the second chunk's directory is turned.",
        "2.7 6.1",
        hit(data, Kind.CHUNK, 60, 1),
        EVENTS[:4],
        **chunk,
    )
    start, end = found(data, Kind.CHUNK)
    yield recoverable(
        "chunk-frame",
        "A bit of the first chunk's last frame is turned.",
        "2.7 6.1",
        flipped(data, end - 12),
        EVENTS[4:8],
        **chunk,
    )
    yield recoverable(
        "chunk-padding",
        "A byte of the padding is not zero; nothing is lost.",
        "2.1 11",
        flipped(data, found(data, Kind.CHUNK, 1)[1] - 1),
        EVENTS[:8],
        losses=[["damaged", 0]],
        finding="the padding of the CHUNK record is not zero",
        exits=CLOSED,
    )
    zeroed = data[:start] + bytes(end - start) + data[end:]
    yield recoverable(
        "chunk-zeroed",
        "Zeros where the first chunk was.",
        "2.7",
        zeroed,
        EVENTS[4:8],
        losses=lost,
        finding="the record's header is damaged",
    )


def moved_records() -> Iterator[Vector]:
    """Records that are gone, or come again."""
    data = _with_padding(base())
    start, end = found(data, Kind.CHUNK)[0], found(data, Kind.CHUNK_INDEX)[1]
    yield recoverable(
        "records-missing",
        "The first chunk and its CHUNK_INDEX were taken out.",
        "2.3",
        data[:start] + data[end:],
        EVENTS[4:8],
        losses=[["damaged", None]],
        finding="records 4 to 5 are missing",
        exits=DAMAGED,
    )
    yield recoverable(
        "records-twice",
        "The first chunk and its CHUNK_INDEX come twice: the second time they are passed over.",
        "2.3 2.7",
        data[:end] + data[start:],
        EVENTS[:8],
        losses=[["damaged", None]],
        finding="record number 4 comes again",
        exits=DAMAGED,
    )


def endless_number() -> Iterator[Vector]:
    """A record behind which there could be no other."""
    parts = forge.parts_of(_with_padding(base()))
    number = (1 << 64) - 1
    far = [replace(p, number=number) if p.kind == Kind.CHUNK_INDEX else p for p in parts]
    yield recoverable(
        "record-number-2-64-1",
        "CHUNK_INDEX records have the greatest number that fits.",
        "2.3",
        forge.assembled(far),
        EVENTS[:8],
        losses=[["damaged", 0]] * 2,
        finding=f"record number {number} is greater than any can be",
    )


def side_records() -> Iterator[Vector]:
    """Damage to records without rows."""
    data = full()
    for kind in (Kind.SOURCE, Kind.STATE, Kind.LOSS, Kind.CHUNK_INDEX):
        name = kind.name.lower().replace("_", "-")
        yield recoverable(
            f"{name}-payload",
            f"A {kind.name} is damaged; every event is there.",
            "2.7",
            hit(data, kind),
            EVENTS[:8],
            losses=[["damaged", 0]],
            finding=f"the {kind.name} record fails its CRC",
            exits=CLOSED,
        )
    yield recoverable(
        "schema-payload-closed",
        "A SCHEMA is damaged; the FOOTER describes the columns all the same.",
        "2.7 4.3 8.2",
        hit(data, Kind.SCHEMA, nth=1),
        EVENTS[:8],
        stream=[],
        losses=[["damaged", None]],
        finding="the SCHEMA record fails its CRC",
        exits=CLOSED,
    )
    still = base(close=False)
    yield recoverable(
        "schema-payload-open",
        "A SCHEMA is damaged and there is no FOOTER: what its chunks hold can't be read.",
        "2.7 4.3",
        hit(still, Kind.SCHEMA),
        [],
        losses=[["damaged", None]] * 3 + OPEN,
        finding="the SCHEMA record fails its CRC",
        exits=DAMAGED,
    )


def tails() -> Iterator[Vector]:
    """Damage where there are TAILs."""
    parts = [events(3, i) for i in range(0, 12, 3)]
    still = made(*parts, rows=100, commit=True, close=False)
    data = made(*parts, rows=100, commit=True)
    yield recoverable(
        "open-tails",
        "Events that are only in TAILs.",
        "7.1 7.2 7.4 1.3",
        still,
        EVENTS[:12],
        losses=OPEN,
        finding="no FOOTER",
        exits=UNFINISHED,
    )
    yield recoverable(
        "open-tail-damaged",
        "The second of four TAILs is damaged.",
        "7.4 2.7",
        hit(still, Kind.TAIL, nth=1),
        EVENTS[:3] + EVENTS[6:12],
        losses=[["damaged", None], *OPEN],
        finding="the TAIL record fails its CRC",
        exits=DAMAGED,
    )
    yield recoverable(
        "chunk-of-tails",
        "A chunk is damaged; the TAILs that it was to supersede have its rows.",
        "7.3 7.4 2.7",
        hit(data, Kind.CHUNK),
        EVENTS[:12],
        losses=[["damaged", 0]],
        finding="the CHUNK record fails its CRC",
        exits=CLOSED,
    )
    more = made(*parts, rows=100, commit=True, edit=lambda w: w.write(events(2, 12)))
    yield recoverable(
        "chunk-of-tails-and-more",
        "A chunk is damaged; the TAILs have twelve of its fourteen rows.",
        "7.3 7.4 2.7",
        hit(more, Kind.CHUNK),
        EVENTS[:12],
        losses=[["damaged", 2]],
        finding="the CHUNK record fails its CRC",
    )
    yield recoverable(
        "tail-superseded-damaged",
        "A TAIL is damaged; the chunk that supersedes it has its rows.",
        "7.4 2.7",
        hit(data, Kind.TAIL, nth=2),
        EVENTS[:12],
        losses=[["damaged", 0]],
        finding="the TAIL record fails its CRC",
        exits=CLOSED,
    )
    both = flipped(hit(data, Kind.CHUNK), found(data, Kind.TAIL, 1)[0] + 50)
    yield recoverable(
        "chunk-and-tail",
        "A chunk is damaged, and one of its four TAILs.",
        "7.4 2.7",
        both,
        EVENTS[:3] + EVENTS[6:12],
        losses=[["damaged", 0], ["damaged", 3]],
        finding="the TAIL record fails its CRC",
    )


def checkpoints() -> Iterator[Vector]:
    """Damage where there are CHECKPOINTs."""
    batches = [events(4, i) for i in range(0, 24, 4)]
    still = made(*batches, checkpoint=2, close=False)
    data = made(*batches, checkpoint=2)
    yield recoverable(
        "open-checkpoints",
        "Three CHECKPOINTs, no FOOTER.",
        "8.3 8.4",
        still,
        EVENTS[:24],
        losses=OPEN,
        finding="no FOOTER",
        exits=UNFINISHED,
    )
    for nth, name in ((1, "second"), (2, "last")):
        yield recoverable(
            f"open-checkpoint-{name}",
            f"The {name} of three CHECKPOINTs is damaged, and there is no FOOTER.",
            "8.4 2.7",
            hit(still, Kind.CHECKPOINT, nth=nth),
            EVENTS[:24],
            losses=[["damaged", 0], *OPEN],
            finding="the CHECKPOINT record fails its CRC",
            exits=DAMAGED,
        )
    yield recoverable(
        "checkpoint-closed",
        "A CHECKPOINT of a closed capture is damaged.",
        "8.3 2.7",
        hit(data, Kind.CHECKPOINT),
        EVENTS[:24],
        losses=[["damaged", 0]],
        finding="the CHECKPOINT record fails its CRC",
        exits=CLOSED,
    )


def foreign_bytes() -> Iterator[Vector]:
    """Bytes that belong to no record of the capture."""
    data = base()
    at = found(data, Kind.CHUNK, 1)[0]
    junk = b"\x89KCP" + bytes(range(60))
    yield recoverable(
        "bytes-between-records",
        "64 bytes between two records; the FOOTER is not where it says.",
        "1.1 2.7",
        data[:at] + junk + data[at:],
        EVENTS[:8],
        losses=[["damaged", None]],
        finding="the record's header is damaged",
        exits=DAMAGED,
    )
    yield recoverable(
        "bytes-behind-footer",
        "64 bytes behind the FOOTER.",
        "1.1 2.7",
        data + junk,
        EVENTS[:8],
        losses=[["damaged", None]],
        finding="the record's header is damaged",
        exits=DAMAGED,
    )
    other = made(events(4, 8), file_id=bytes(range(16, 32)))
    bad = hit(data, Kind.CHUNK, 9)
    end = found(data, Kind.CHUNK)[1]
    start = found(data, Kind.CHUNK)[0]
    room = (end - start - 72) // 8 * 8
    yield recoverable(
        "capture-inside-damage",
        "Where a chunk was there are records of another capture: none of them is believed.",
        "2.2 2.7",
        bad[: start + 64] + (other * 2)[:room] + bad[start + 64 + room :],
        EVENTS[4:8],
        losses=[["damaged", 4]],
        finding="the record's header is damaged",
    )
    yield recoverable(
        "two-captures-joined",
        "Another capture behind the FOOTER: its records are not this one's.",
        "1.1 2.2 2.7",
        data + other,
        EVENTS[:8],
        losses=[["damaged", None]],
        finding="the record's header is damaged",
        exits=DAMAGED,
    )
