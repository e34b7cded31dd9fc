"""Vectors whose checksums hold and whose records or headers say what no capture can say."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import forge
import zstandard
from forge import Part
from support import SOURCE, snapshot
from vectors import DAMAGED, EVENTS, REFUSED, Row, Vector, base, column, events, made
from vectors_damaged import OPEN, found
from vectors_later import counted

from kcap.format import body, payloads, tail, zstd
from kcap.format.record import HEADER_BYTES, Kind
from kcap.model.batch import Batch
from kcap.model.side import Loss, Snapshot

CLOSED = {**DAMAGED, "info": 0}
HARMLESS = [["damaged", 0]]
SILENT: dict[str, Any] = {"exits": {"cat": 0, "info": 0, "recover": 3, "verify": 3}, "losses": []}
"""What only verify looks at."""


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from files()
    yield from kinds()
    yield from record_lengths()
    yield from bodies()
    yield from schemas()
    yield from states()
    yield from tails()


def whole(name: str, says: str, clauses: str, data: bytes, error: str, **exits: int) -> Vector:
    """A vector of which nothing is read."""
    cited = tuple(clauses.split())
    codes = {**REFUSED, **exits}
    return Vector("must_reject", name, says, cited, data, [], codes, refused="file", error=error)


def record(
    name: str,
    says: str,
    clauses: str,
    data: bytes,
    finding: str,
    *,
    rows: list[Row] = EVENTS[:8],
    losses: list[list[Any]] = HARMLESS,
    exits: Mapping[str, int] = CLOSED,
    deep: bool = False,
) -> Vector:
    """A vector of which one record is refused."""
    return Vector(
        "must_reject",
        name,
        says,
        tuple(clauses.split()),
        data,
        rows,
        dict(exits),
        refused="record",
        losses=losses,
        findings=[] if deep else [finding],
        deep_findings=[finding] if deep else [],
    )


def edited(kind: Kind, change: Callable[[bytes], bytes], data: bytes | None = None) -> bytes:
    """The capture with another payload in the first record of a kind."""
    return forge.with_part(
        base() if data is None else data, kind, lambda p: replace(p, payload=change(p.payload))
    )


def files() -> Iterator[Vector]:
    """Files that are no capture, or one of another time."""
    yield whole("empty", "No byte.", "1.1 1.2", b"", "is empty")
    text = b"This is no capture.\n" * 10
    yield whole("text", "A text file.", "1.1 1.2", text, "no capture that kcap can read")
    yield whole("magic-only", "The magic and nothing behind it.", "1.2", b"\x89KCP", "ends before")
    data = base()
    start = found(data, Kind.FILE_HEADER, 1)[0]
    both = bytearray(data)
    both[HEADER_BYTES + 2] ^= 1
    both[start + HEADER_BYTES + 2] ^= 1
    cut = bytes(both[: found(data, Kind.FOOTER)[0]])
    yield whole(
        "file-headers-damaged",
        "Both FILE_HEADERs are damaged, and no FOOTER tells the file's id.",
        "1.2 2.2",
        cut,
        "no intact FILE_HEADER",
    )

    def with_header(**changes: Any) -> bytes:
        header = payloads.FileHeader.unpack(forge.parts_of(data)[0].payload)
        meta = {**header.meta, **changes.pop("meta", {})}
        made_anew = replace(header, meta=meta, **changes).pack()
        parts = [
            replace(p, payload=made_anew) if p.kind == Kind.FILE_HEADER else p
            for p in forge.parts_of(data)
        ]
        return forge.assembled(parts)

    yield whole(
        "major-2", "Format version 2.0.", "1.4", with_header(major=2, minor=0), "format version 2.0"
    )
    yield whole(
        "required-feature-unknown",
        "A required feature that no version 1.1 has.",
        "1.4 4.1",
        with_header(meta={"requires": ["time travel"]}),
        "needs the features ['time travel']",
    )
    yield whole(
        "required-features-no-list",
        "The required features are a number.",
        "4.1",
        with_header(meta={"requires": 7}),
        "needs the features [7]",
    )


def kinds() -> Iterator[Vector]:
    """Records that a reader does not know and may not skip."""
    data = base()
    parts = forge.parts_of(data)
    unknown = "this kcap can't read"
    for name, says, part in (
        ("kind-99-needed", "A record of kind 99, not ancillary.", Part(99, b"new", flags=0)),
        ("flags-2", "A HEARTBEAT with bit 1 of its flags set.", Part(9, bytes(16), flags=3)),
        ("kind-99-flags-2", "An ancillary record of kind 99 and bit 1.", Part(99, b"", flags=3)),
        ("segment", "A SEGMENT: encryption, which version 1.1 reserves.", Part(16, bytes(64))),
        ("schema-version-2", "A SCHEMA whose layout is of version 2.", Part(3, b"", version=2)),
    ):
        clauses = "2.4 2.5 10" if name == "segment" else "2.4 2.5"
        made_anew = forge.assembled([*parts[:3], part, *parts[3:]])
        # The FOOTER is intact, and all that info reads.
        yield whole(name, says, clauses, made_anew, unknown, info=0)
    odd = [replace(p, flags=0) if p.kind == Kind.SOURCE else p for p in parts]
    yield record(
        "flags-of-a-source-needed",
        "A SOURCE without the ancillary flag; a reader that knows the kind needs none.",
        "2.5",
        forge.assembled(odd),
        "flags 0, which this kind does not have",
        losses=[],
        exits={"cat": 0, "info": 0, "recover": 3, "verify": 3},
    )
    beyond = Part(Kind.HEARTBEAT, struct.pack("<qQQ", 5, 8, 99) + body.pack({}))
    yield record(
        "heartbeat-body-too-long",
        "A HEARTBEAT whose body goes beyond its end; who reads events need not look.",
        "4.6",
        counted([*parts[:3], beyond, *parts[3:]]),
        "the HEARTBEAT's body goes beyond its end",
        losses=[],
        exits={"cat": 0, "info": 0, "recover": 3, "verify": 3},
    )
    still = forge.assembled([*parts[:3], Part(99, b"new", flags=0), *parts[3:-1]])
    yield whole("kind-99-needed-open", "Kind 99 in an open capture.", "2.4", still, unknown)


def record_lengths() -> Iterator[Vector]:
    """Record headers that announce what no record can have."""
    data = base()
    for name, length in (("5-gib", 5 << 30), ("1-tib", 1 << 40), ("16-eib", (1 << 64) - 1)):
        start = found(data, Kind.CHUNK)[0]
        (number,) = struct.unpack_from("<Q", data, start + 16)
        head = forge.packed(Part(Kind.CHUNK, b"", length=length), number)[:HEADER_BYTES]
        yield record(
            f"record-{name}",
            f"A record that announces {length:,} bytes, under a CRC that holds.",
            "3.1 2.7",
            data[:start] + head + data[start + HEADER_BYTES :],
            "more than 64 MiB",
            rows=EVENTS[4:8],
            losses=[["damaged", 4]],
        )


def bodies() -> Iterator[Vector]:
    """Bodies of JSON, here that of the SOURCE."""

    def source(made_anew: bytes) -> bytes:
        return edited(Kind.SOURCE, lambda _: made_anew)

    nested = b'{"details":' * 33 + b"1" + b"}" * 33
    bomb = zstandard.compress(b'{"a":"' + bytes(1 << 26) + b'"}')
    cases = [
        ("empty", "No byte.", b"", "is too short"),
        ("codec-2", "Codec 2.", forge.body(b"{}", codec=2), "no valid body"),
        ("cut", "A byte less than it says.", forge.body(b"{}", 3), "no valid body"),
        ("no-json", "No JSON.", forge.body(b"{]"), "holds no JSON"),
        ("not-utf-8", "Text that is not UTF-8.", forge.body(b'{"host":"\xff"}'), "holds no JSON"),
        ("no-object", "A list where an object must be.", forge.body(b"[]"), "no JSON object"),
        ("nested-33", "33 levels.", forge.body(nested), "nests too deep"),
        (
            "nested-50000",
            "50,000 levels.",
            body_of(b"[" * 50_000),
            "holds no JSON",
        ),
        (
            "number-of-5000-digits",
            "An integer of 5,000 digits.",
            body_of(b'{"a":' + b"9" * 5000 + b"}"),
            "holds no JSON",
        ),
        ("2-mib", "It announces 2 MiB.", forge.body(b"{}", 2 << 20, 1), "announces 2097152 bytes"),
        ("bomb", "A frame of 64 MiB that says so.", forge.body(bomb, 1 << 26, 1), "announces"),
        ("bomb-that-lies", "A frame of 64 MiB, 9 bytes announced.", forge.body(bomb, 9, 1), "zstd"),
        (
            "of-wrong-types",
            "A SOURCE whose collector is a number.",
            forge.body(b'{"collector":7}'),
            "is of the wrong type",
        ),
    ]
    for name, says, made_anew, finding in cases:
        yield record(f"body-{name}", says, "4 3.1", source(made_anew), finding)
    many = b"[" + b"[]," * (1 << 20) + b"[]]"
    yield record(
        "body-million-lists",
        "A SCHEMA of 1,048,578 lists in 300 bytes.",
        "3.1",
        forge.inserted(base(), Part(Kind.SCHEMA, body_of(many))),
        "too many lists",
    )
    losing = made(events(8).with_before([Loss("lost", 1, "r")]))
    for name, says, entry, finding in (
        ("of-wrong-types", "count is a text", {"count": "many"}, "is of the wrong type"),
        ("beyond-64-bits", "time is 2^70", {"start_ns": 1 << 70}, "is beyond 64 bits"),
    ):
        made_anew = body.pack([{"kind": "lost", **entry}])
        bad = edited(Kind.LOSS, lambda _, raw=made_anew: raw, losing)
        yield record(f"loss-{name}", f"A LOSS whose {says}.", "4.4", bad, finding)


def body_of(text: bytes) -> bytes:
    """A compressed body of any text."""
    return forge.body(zstd.compress(text), len(text), 1)


def schemas() -> Iterator[Vector]:
    """SCHEMA records that contradict themselves, the limits or the frozen tables."""

    def entry(**changes: Any) -> dict[str, Any]:
        return {"class": "i64", "id": 77, "name": "arg_new__i64", "table": "events", **changes}

    def with_schema(*entries: dict[str, Any]) -> bytes:
        text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
        parts = forge.parts_of(base())
        return forge.assembled([*parts[:6], Part(Kind.SCHEMA, forge.body(text)), *parts[6:]])

    cases = [
        ("id-again", "Id 0 is given to another column.", "4.3", entry(id=0), "column 0 is"),
        ("name-two-ids", "A column gets a second id.", "4.3", entry(name="ts"), "has two ids"),
        ("class-unknown", "A class of no name.", "4.3 5.1", entry(**{"class": "i128"}), "SCHEMA"),
        ("name-1025-bytes", "A name too long.", "3.1", entry(name="n" * 1025), "of 1025 bytes"),
        ("id-2-32", "An id of 33 bits.", "4.3", entry(id=1 << 32), "columns"),
        ("id-negative", "An id below 0.", "4.3", entry(id=-1), "columns"),
        ("no-name", "An entry without name.", "4.3", {"id": 1}, "not well formed"),
        (
            "class-not-at-home",
            "A base of the frozen tables in another class.",
            "5.3",
            entry(name="exe"),
            "is of class i64",
        ),
        (
            "name-surrogate",
            "A name with a lone surrogate.",
            "4.3",
            entry(name="arg_\ud800__i64"),
            "not well formed",
        ),
    ]
    for name, says, clauses, bad, finding in cases:
        yield record(f"schema-{name}", says, clauses, with_schema(bad), finding)


def states() -> Iterator[Vector]:
    """STATE records."""
    data = made(events(8).with_before([SOURCE, snapshot()]))

    def tables(raw: bytes, change: Callable[[list[dict[str, Any]]], object]) -> bytes:
        (size,) = struct.unpack_from("<Q", raw)
        entries = body.unpack_objects(raw[8 : 8 + size], "STATE")
        change(entries)
        text = body.pack(entries)
        return struct.pack("<Q", len(text)) + text + raw[8 + size :]

    def longer(entries: list[dict[str, Any]]) -> None:
        entries[0]["bytes"] += 1

    def renamed(entries: list[dict[str, Any]]) -> None:
        entries[0]["name"] = "modules"

    def huge(raw: bytes) -> bytes:
        (size,) = struct.unpack_from("<Q", raw)
        taken = forge.ChunkParts(raw[8 + size :])
        lengths = struct.pack("<I", 64) * 65_536
        child = struct.pack("<BBHIIIQ", 1, 0, 0, 64 * 65_536, 0, 0, 7)
        entry = taken.entries[0]
        taken.head.rows = entry.present = 65_536
        entry.distinct, entry.decoded = 64 * 65_536, len(child + lengths)
        taken.frames[0] = zstd.compress(child + lengths)
        return payloads.pack_state([("processes", taken.packed())] * 3)

    one = Batch(1, {"arg_l__list_i64": column("list_i64", [[7]])})
    constants = made(events(8).with_before([Snapshot({"processes": one})]))
    cases = [
        ("short", "Four bytes.", lambda _: b"\0\0\0\0", "a STATE is too short"),
        (
            "body-beyond",
            "A body longer than the payload.",
            lambda raw: struct.pack("<Q", 1 << 40) + raw[8:],
            "does not fit its record",
        ),
        ("table-beyond", "A table too long.", lambda raw: tables(raw, longer), "does not fit"),
        (
            "columns-of-another-table",
            "A table with the columns of another one.",
            lambda raw: tables(raw, renamed),
            "does not fit column",
        ),
    ]
    for name, says, change, finding in cases:
        bad = edited(Kind.STATE, change, data)
        yield record(f"state-{name}", says, "4.5", bad, finding)
    yield record(
        "state-98-mib",
        "Three tables of lists of equal numbers, which take 33 MiB each.",
        "3.1 3.3",
        edited(Kind.STATE, huge, constants),
        "a state of more than",
    )


def tails() -> Iterator[Vector]:
    """TAIL records in a capture that has no chunk of their rows."""
    parts = [events(3, i) for i in range(0, 9, 3)]
    data = made(*parts, rows=100, commit=True, close=False)
    head = struct.Struct("<qIII4x")

    def headed(at: int, value: int) -> Callable[[bytes], bytes]:
        def change(raw: bytes) -> bytes:
            fields = list(head.unpack_from(raw))
            fields[at] = value
            return head.pack(*fields) + raw[head.size :]

        return change

    def content(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def edit(raw: bytes) -> bytes:
            first, rows, columns, decoded = head.unpack_from(raw)
            inner = change(zstd.decompress(raw[head.size :], decoded))
            return head.pack(first, rows, columns, len(inner)) + zstd.compress(inner)

        return edit

    def at(offset: int, value: int) -> Callable[[bytes], bytes]:
        return lambda raw: raw[:offset] + bytes([value]) + raw[offset + 1 :]

    place = "is not in its place in the directory"
    cases = [
        ("short", "Ten bytes.", "7.2", lambda raw: raw[:10], "too short", None),
        ("rows-none", "No rows.", "3.1 7.2", headed(1, 0), "a TAIL of 0 rows", 0),
        ("rows-65537", "A row too many.", "3.1", headed(1, 65_537), "of 65537 rows", 65_537),
        ("columns-2-32", "2^32-1 columns.", "3.1", headed(2, (1 << 32) - 1), "columns", 3),
        ("decoded-1-gib", "A content of 1 GiB.", "3.1", headed(3, 1 << 30), "columns in", 3),
        ("frame-size", "Not the frame's content size.", "7.2", headed(3, 4000), "announces", 3),
        ("entry-crc", "A CRC in an entry.", "7.2", content(at(36, 1)), "not as it must be", 3),
        ("entry-place", "Not its place.", "7.2", content(at(24, 1)), place, 3),
        ("left-over", "Bytes left over.", "7.2", content(lambda raw: raw + b"x"), "a TAIL has", 3),
        ("zero-bytes", "A frame of no content.", "7.2", content(lambda _: b""), "columns in", 3),
    ]
    for name, says, clauses, change, finding, lost in cases:
        # Of one row more than a chunk can have, those before it can wait for none either.
        yield record(
            f"tail-{name}",
            says,
            clauses,
            edited(Kind.TAIL, change, data),
            finding,
            rows=EVENTS[3:9],
            losses=[["damaged", lost], *OPEN],
            exits=DAMAGED,
        )
    assert tail.rows_in(forge.parts_of(data)[-1].payload) == 3
