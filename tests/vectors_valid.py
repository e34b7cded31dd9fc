"""Vectors that every reader reads in whole."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import forge
from support import SOURCE, batch_of, snapshot
from vectors import EVENTS, GOOD, Vector, base, column, events, made, rows_of

from kcap import limits
from kcap.format import body, payloads, zstd
from kcap.format.record import Kind
from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import I64_MAX, I64_MIN, U64_MAX
from kcap.model.side import Loss, Snapshot, SourceInfo

MODULO = 1 << 64
Forms = dict[str, tuple[int, int, bytes]]
"""Column to encoding, base and decoded bytes."""


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from plain()
    yield from forms()
    yield from sides()
    yield from tails_and_checkpoints()


def valid(
    name: str, says: str, clauses: str, data: bytes, rows: Sequence[dict[str, Any]]
) -> Vector:
    """A vector that is read in whole."""
    return Vector("valid", name, says, tuple(clauses.split()), data, rows, GOOD)


def plain() -> Iterator[Vector]:
    """Captures of few and of ordinary events."""
    yield valid("no-events", "Two FILE_HEADERs and a FOOTER.", "1.1 1.2 1.3 2.1 8.2", made(), [])
    one = events(1)
    yield valid("one-event", "One event in one chunk.", "1.3 6.2 8.2", made(one), rows_of(one))
    yield valid(
        "two-chunks", "Eight events in two chunks.", "2.1 2.3 2.6 6.1 6.2 8.1", base(), EVENTS[:8]
    )
    empty = Batch(3, {"ord": column("i64", [0, 1, 2]), "ts": column("i64", [5], [1])})
    yield valid(
        "rows-without-values", "Rows of which one has a ts.", "6.2 6.4", made(empty), rows_of(empty)
    )
    bare = Batch(5, {})
    yield valid(
        "no-columns", "Five rows in which nothing has a value.", "6.2", made(bare), [{}] * 5
    )
    noise = column("i64", [i**5 * 2_654_435_761 % 999_999_937 for i in range(450)])
    batch = events(450).adding({"arg_noise__i64": noise}).select(["arg_noise__i64", "event", "pid"])
    yield valid(
        "index-with-filter",
        "A CHUNK_INDEX with a set of pids and a bloom filter.",
        "8.1",
        made(batch, rows=450),
        rows_of(batch),
    )
    stored = forge.parts_of(base())
    for i, part in enumerate(stored):
        if part.kind in (Kind.SOURCE, Kind.SCHEMA):
            text = body.unpack(part.payload, "", limits.SCHEMA_BYTES)
            raw = _json(text)
            stored[i] = replace(part, payload=forge.body(raw))
    yield valid(
        "bodies-stored",
        "Bodies of codec 0 where others are compressed.",
        "4",
        forge.assembled(stored),
        EVENTS[:8],
    )


def _json(value: object) -> bytes:
    import json

    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def forms() -> Iterator[Vector]:
    """Every class, presence and encoding."""
    batch = _every_class()
    yield valid(
        "every-class", "A column of each class.", "5.1 5.2 6.2", made(batch), rows_of(batch)
    )
    batch = _presence()
    yield valid(
        "presence-all-bitmap-numbers",
        "Columns of all rows, of a bitmap and of row numbers, on both sides of the border.",
        "6.4",
        made(batch, rows=48),
        rows_of(batch),
    )
    batch, found = _integers()
    data = forge.with_chunk(made(batch, rows=16), partial(_reform, sorted(batch.columns), found))
    yield valid(
        "integers-every-form",
        "Plain, delta and divided delta at every width, the wide ones by planes too; they wrap.",
        "6.5",
        data,
        rows_of(batch),
    )
    batch = _texts()
    yield valid(
        "text-dictionary-plain-wide",
        "Text, bytes and JSON: no codes, codes of 1 and 2 bytes, plain, lengths of 2 and 4 bytes.",
        "6.7 3.1 5.4",
        made(batch, rows=600),
        rows_of(batch),
    )
    batch = _lists()
    yield valid(
        "lists-every-class",
        "Lists of every class: empty ones, only empty ones, items in several forms.",
        "6.8",
        made(batch, rows=40),
        rows_of(batch),
    )
    batch = _floats()
    yield valid(
        "floats-and-bools",
        "Floats keep their bits: NaNs with their payloads, -0, infinities.",
        "6.6 5.1",
        made(batch, rows=10),
        rows_of(batch),
    )
    records = [
        (1, {"a": "x" * 70_000, "b": b"/tmp/\xff", "c": 1 << 70, "d": [], "e": {"k": [1, None]}}),
        (0, {"a": "\udcff", "x2D": "escaped", "é": 1}),
    ]
    batch = batch_of(records)
    yield valid(
        "values-cut-and-raw",
        "A cut value with its __size, text that is not UTF-8 with its __raw, escaped names.",
        "3.2 5.2 5.3 5.4 5.5",
        made(batch),
        rows_of(batch),
    )


def _every_class() -> Batch:
    return Batch(
        4,
        {
            "arg_a__i64": column("i64", [I64_MIN, -1, 0, I64_MAX]),
            "arg_a__u64": column("u64", [1 << 63, U64_MAX], [1, 2]),
            "arg_b__f64": column("f64", [0.5, -0.0, 1e300, 2.0]),
            "arg_c__bool": column("bool", [True, False, False, True]),
            "arg_d__str": column("str", ["", "a", "ü😀", "\x00"]),
            "arg_e__bin": column("bin", [b"", b"\x00\xff", b"kcap", b"\x89KCP"]),
            "arg_f__json": column("json", ["{}", '{"k":[1,null]}', "[[]]", str(1 << 70)]),
            "arg_g__list": column("list", [[], ["a"], ["a", "a"], ["", "ü"]]),
            "arg_h__list_i64": column("list_i64", [[1], [], [-1, I64_MAX], [I64_MIN]]),
            "arg_i__list_u64": column("list_u64", [[U64_MAX], [1 << 63], [], [U64_MAX]]),
            "arg_j__list_f64": column("list_f64", [[0.5], [], [-0.0, 2.0], [1.5]]),
            "arg_k__list_bool": column("list_bool", [[True], [], [False, True], [True]]),
        },
    )


def _presence() -> Batch:
    def some(count: int) -> Any:
        rows = [i * 48 // count for i in range(count)]
        return column("i64", [i * i for i in rows], rows if count < 48 else None)

    return Batch(48, {f"arg_n{n}__i64": some(n) for n in (1, 2, 3, 24, 47, 48)})


def _integers() -> tuple[Batch, Forms]:
    """Columns of every integer form, and how each is to be written."""
    found: Forms = {}
    columns = {}
    for flags, letter in ((0, "p"), (0x10, "d"), (0x30, "h")):
        for width in range(5):
            for planes in (0, 0x40) if width > 1 else (0,):
                cls = "u64" if letter == "p" and width == 1 else "i64"
                name = f"arg_{letter}{width}{'p' if planes else ''}__{cls}"
                values, form = _integer_form(flags | planes | width, signed=cls == "i64")
                columns[name], found[name] = column(cls, values), form
    return Batch(13, columns), found


def _integer_form(encoding: int, *, signed: bool) -> tuple[list[int], tuple[int, int, bytes]]:
    """Thirteen values in a form, worked out from the bytes that it has."""
    width, delta = encoding & 15, encoding & 0x10
    size = (0, 1, 2, 4, 8)[width]
    most = (1 << 8 * size) - 1
    offsets = [0, most, 1 & most, most // 2, *(i * 37 & most for i in range(9))]
    base_value = MODULO - 3 if signed else 1 << 63
    data = b""
    if delta:
        offsets = offsets[1:]
        data = struct.pack("<q", I64_MAX - 5)
        values = [I64_MAX - 5]
        for offset in offsets:
            step = base_value + offset
            values.append(values[-1] + (step * 100 if encoding & 0x20 else step))
    else:
        values = [base_value + offset for offset in offsets]
    raw = [offset.to_bytes(size, "little") for offset in offsets]
    planes = [bytes(o[i] for o in raw) for i in range(size)]
    data += b"".join(planes if encoding & 0x40 else raw)
    values = [v % MODULO for v in values]
    values = [v - MODULO if signed and v >> 63 else v for v in values]
    return values, (encoding, base_value, data)


def _reform(names: list[str], found: Forms, taken: forge.ChunkParts) -> None:
    """Give the columns of a chunk other forms."""
    for i, name in enumerate(names):
        encoding, value, data = found[name]
        taken.entries[i].encoding, taken.entries[i].base = encoding, value
        taken.entries[i].decoded = len(data)
        taken.frames[i] = zstd.compress(data) if data else b""


def _texts() -> Batch:
    def twice(i: int) -> str:
        return f"/usr/lib/{i * 7919 % 300:04}"

    long = "x" * limits.VALUE_BYTES
    return Batch(
        600,
        {
            "arg_all__str": column("str", ["same"] * 600),
            "arg_bytes__bin": column("bin", [bytes([i % 5, 255]) for i in range(600)]),
            "arg_few__str": column("str", [f"{i % 3}" for i in range(600)]),
            "arg_long__str": column("str", [long, "é", long, ""] * 2, list(range(8))),
            "arg_many__str": column("str", [twice(i) for i in range(600)]),
            "arg_plain__json": column("json", [f'{{"k":{i}}}' for i in range(600)]),
            "arg_wide__bin": column("bin", [b"\xff" * limits.VALUE_BYTES, b""], [0, 9]),
        },
    )


def _lists() -> Batch:
    numbers = [[i * i, -i] if i % 4 else [] for i in range(40)]
    return Batch(
        40,
        {
            "arg_empty__list": column("list", [[]] * 40),
            "arg_none__list_i64": column("list_i64", [[], []], [3, 30]),
            "arg_pairs__list_i64": column("list_i64", numbers),
            "arg_real__list_f64": column("list_f64", [[i / 4] * (i % 3) for i in range(40)]),
            "arg_same__list": column("list", [["a", "a"]] * 40),
            "arg_some__list": column("list", [[f"{i}", "x"] for i in range(20)], [*range(20)]),
            "arg_steps__list_i64": column(
                "list_i64", [[i * 900, i * 900 + 450] for i in range(40)]
            ),
            "arg_true__list_bool": column("list_bool", [[True] * (i % 11) for i in range(40)]),
            "arg_vast__list_u64": column("list_u64", [[U64_MAX - i] for i in range(40)]),
            "arg_words__list": column("list", [[f"word {i}", "ü"][: i % 3] for i in range(40)]),
        },
    )


def _floats() -> Batch:
    bits = [0x7FF8_0000_0000_0001, 0x7FF0_0000_0000_0001, 0xFFF8_0000_0000_0000, 1, 1 << 63]
    odd = [struct.unpack("<d", struct.pack("<Q", b))[0] for b in bits]
    return Batch(
        10,
        {
            "arg_b__bool": column("bool", [i % 3 == 1 for i in range(10)]),
            "arg_f__f64": column("f64", [*odd, math.inf, -math.inf, 0.1, 0.0, 1.0]),
        },
    )


def sides() -> Iterator[Vector]:
    """Sources, losses, states, and rows that are no events."""
    other = SourceInfo("other", host="b", clocks=((10, 1),))
    later = replace(other, clocks=((10, 1), (20, 11)), details={"v": 1})
    data = made(
        events(4).with_before([SOURCE, other]), events(4, 4).with_before([later]), edit=None
    )
    yield valid(
        "sources-several",
        "Two sources; one comes again with more clock pairs.",
        "4.2",
        data,
        EVENTS[:8],
    )
    losses = [Loss("lost", 3, "a reason", cpu=1, start_ns=5, end_ns=9), Loss("cut", None, "b")]
    data = made(events(4).with_before(losses), events(4, 4).with_before(losses[:1]))
    yield valid("losses", "LOSS records; equal ones add up in the FOOTER.", "4.4", data, EVENTS[:8])
    table = snapshot(5).tables["processes"]
    states = [Snapshot({"modules": table.slice(0, 2), "processes": table}), snapshot(2)]
    data = made(events(4).with_before(states[:1]), EMPTY.with_before(states[1:]), events(4, 4))
    yield valid("states", "Two STATE records, one of two tables.", "4.5", data, EVENTS[:8])
    batch = events(8).adding({"kind": column("str", ["state", "event"] * 4)})
    yield valid(
        "state-rows", "Rows of kind state among events.", "5.7 8.1", made(batch), rows_of(batch)
    )
    batch = events(8).adding(
        {"ts": column("i64", [9, 7, 8, 8, 3], [0, 2, 3, 5, 7]), "seq": column("i64", [*range(8)])}
    )
    yield valid(
        "times-backward-and-missing",
        "Times that go back, also from chunk to chunk, and rows without one.",
        "5.7 8.1",
        made(batch),
        rows_of(batch),
    )
    sources = [SOURCE, SourceInfo("a")]
    batches = [events(4).with_before(sources), events(4, 4)]
    data = made(*batches, canonical=True)
    yield valid("canonical", "A capture in canonical mode.", "1.5", data, EVENTS[:8])


def tails_and_checkpoints() -> Iterator[Vector]:
    """TAIL and CHECKPOINT records."""
    parts = [events(3, i) for i in range(0, 12, 3)]
    data = made(*parts, rows=100, commit=True)
    yield valid(
        "tails-superseded",
        "Four TAILs and the chunk that supersedes them.",
        "7.1 7.2 7.3 7.4",
        data,
        EVENTS[:12],
    )
    yield valid(
        "tails-live",
        "TAILs that no chunk supersedes, in a closed file: they are in the table.",
        "7.4 7.5 8.2",
        _without_chunk(data),
        EVENTS[:12],
    )
    batches = [events(4, i) for i in range(0, 24, 4)]
    data = made(*batches, checkpoint=2)
    yield valid(
        "checkpoints", "Three CHECKPOINTs, each with what is new.", "8.3 2.6", data, EVENTS[:24]
    )


def _without_chunk(data: bytes) -> bytes:
    """A capture whose one chunk is gone, and whose FOOTER lists the TAILs instead."""
    import numpy as np

    parts = forge.parts_of(data)
    tails = [p for p in parts if p.kind == Kind.TAIL]
    kept = [p for p in parts if p.kind not in (Kind.CHUNK, Kind.CHUNK_INDEX)]
    footer = payloads.Footer.unpack(kept[-1].payload)
    table = np.zeros(len(tails), payloads.TABLE)
    for i, (entry, part) in enumerate(zip(table, tails, strict=True)):
        assert part.was_at is not None
        times = [row["ts"] for row in EVENTS[3 * i : 3 * i + 3]]
        entry["offset"], entry["number"], entry["rows"] = part.was_at, payloads.NO_CHUNK, 3
        entry["ts_min"], entry["ts_max"] = min(times), max(times)
        entry["ord_min"], entry["ord_max"] = 3 * i, 3 * i + 2
    totals = dict(footer.totals)
    totals["records"] = {
        n: c for n, c in totals["records"].items() if n not in ("CHUNK", "CHUNK_INDEX")
    }
    made_anew = payloads.Footer(footer.file_id, footer.chain, table, totals)
    kept[-1] = replace(kept[-1], payload=made_anew.pack(0))
    return forge.assembled(kept)
