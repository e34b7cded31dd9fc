"""Captures changed by chance, mostly with checksums made right again, so that they get deep."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import forge
import vectors
from forge import ChunkParts, Part
from support import SOURCE, capture, make_events, opened, snapshot

from kcap.errors import KcapError
from kcap.format import body, payloads, zstd
from kcap.format.record import MAGIC, Kind
from kcap.model.side import Loss

_ODD = (0, 1, 2, 7, 8, 255, 256, 0xFFFF, 65_537, 1 << 26, 1 << 31, (1 << 32) - 1)
_HUGE = (1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_JSON: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 63, 1 << 70, 1e300, "", "x", "\ud800", [], {}, [[]], {"a": None},
)  # fmt: skip
_BODIES = (Kind.SOURCE, Kind.SCHEMA, Kind.LOSS, Kind.NOTE, Kind.RECOVERY)


@cache
def bases() -> tuple[bytes, ...]:
    """What is changed: the valid vectors, and captures with a little of everything."""
    valid = [p.read_bytes() for p in sorted((vectors.FOLDER / "valid").glob("*.kcap"))]
    small = [data for data in valid if len(data) < 12_000]
    events = make_events(300)
    sides = [SOURCE, snapshot(40), Loss("lost", 3, "a reason")]
    parts = [events.slice(i, i + 20) for i in range(0, 300, 20)]
    tailed = [parts[0].with_before(sides), *parts[1:]]
    return (
        *small,
        capture([events.with_before(sides)], chunk_rows=70),
        vectors.made(*tailed, rows=110, commit=True, checkpoint=1),
        vectors.made(*tailed, rows=110, commit=True, checkpoint=1, close=False),
        vectors.made(*tailed, rows=100_000, commit=True, close=False),
        vectors.made(events, edit=lambda taker: taker.blob([bytes(9000), b"x" * 300], path="/a")),
    )


def mutated(seed: int) -> bytes:
    """A changed capture; the same for the same number."""
    rng = random.Random(seed)
    base = data = rng.choice(bases())
    ways = rng.choice((1, 1, 1, 2, 3))
    while ways > 0 or data == base:
        data = rng.choice(_WAYS)(rng, data)
        ways -= 1
    return data


def _parts(data: bytes) -> list[Part]:
    """The records; none where the capture is beyond that already."""
    try:
        return forge.parts_of(data)
    except KcapError:
        return []


def _made(data: bytes, parts: list[Part]) -> bytes:
    """A capture of these records: by `forge.assembled`, or as they are where that can't be."""
    try:
        file_id = opened(data).header.file_id
        return forge.assembled(parts, file_id=file_id)
    except (KcapError, struct.error):
        return b"".join(forge.packed(p, i) for i, p in enumerate(parts))


def _of(parts: list[Part], *kinds: int) -> list[int]:
    return [i for i, p in enumerate(parts) if p.kind in kinds]


def _number(rng: random.Random) -> int:
    return rng.choice((*_ODD, *_HUGE, rng.randrange(1 << 64)))


def _bytes(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, put in or taken out."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    way = rng.randrange(6)
    if way == 0 and at < len(out):
        out[at] ^= 1 << rng.randrange(8)
    elif way == 1:
        del out[at:]
    elif way == 2:
        del out[at : at + rng.choice((1, 8, 32, 100, 1000))]
    elif way == 3:
        out[at:at] = rng.choice((b"\0" * 8, MAGIC, rng.randbytes(64), data[: rng.randrange(900)]))
    elif way == 4:
        out[at : at + 16] = rng.randbytes(16)
    else:
        out[at : at + 200] = bytes(len(out[at : at + 200]))
    return bytes(out)


def _spliced(rng: random.Random, data: bytes) -> bytes:
    """The start of one capture and the end of another."""
    other = rng.choice(bases())
    at, to = (rng.randrange(0, len(d) + 1, rng.choice((1, 8))) for d in (data, other))
    return data[:at] + other[to:]


def _records(rng: random.Random, data: bytes) -> bytes:
    """Records left out, doubled, moved, taken from elsewhere, or numbered otherwise."""
    parts = _parts(data)
    if not parts:
        return data
    at, to = rng.randrange(len(parts)), rng.randrange(len(parts))
    way = rng.randrange(6)
    if way == 0:
        del parts[at]
    elif way == 1:
        parts.insert(to, parts[at])
    elif way == 2:
        parts.insert(to, parts.pop(at))
    elif way == 3:
        other = _parts(rng.choice(bases()))
        parts.insert(at, replace(rng.choice(other), was_at=None))
    elif way == 4:
        parts[at] = replace(parts[at], number=_number(rng) % (1 << 64))
    else:
        parts = [replace(p, number=i + (i > at)) for i, p in enumerate(parts)]
    return _made(data, parts)


def _header(rng: random.Random, data: bytes) -> bytes:
    """Another kind, version, length or flags, under a CRC that holds."""
    parts = _parts(data)
    if not parts:
        return data
    at = rng.randrange(len(parts))
    change: dict[str, int] = rng.choice(
        (
            {"kind": rng.randrange(20)},
            {"version": rng.randrange(3)},
            {"flags": rng.randrange(4)},
            {"length": _number(rng)},
        )
    )
    parts[at] = replace(parts[at], **change)  # type: ignore[arg-type]
    return _made(data, parts)


def _payload(rng: random.Random, data: bytes) -> bytes:
    """A number, or some bytes, in any payload."""
    parts = _parts(data)
    if not parts:
        return data
    at = rng.randrange(len(parts))
    raw = bytearray(parts[at].payload)
    place = rng.randrange(max(1, len(raw)))
    way = rng.randrange(4)
    if way == 0:
        raw[place : place + 8] = struct.pack("<Q", _number(rng))
    elif way == 1:
        raw[place : place + 4] = struct.pack("<I", _number(rng) % (1 << 32))
    elif way == 2 and raw:
        raw[place % len(raw)] ^= 1 << rng.randrange(8)
    else:
        del raw[place:]
    parts[at] = replace(parts[at], payload=bytes(raw))
    return _made(data, parts)


def _odd(rng: random.Random, value: Any) -> Any:
    """A JSON value with one of its parts replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(sorted(value))
        return {**value, name: _odd(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], _odd(rng, value[at]), *value[at + 1 :]]
    return rng.choice(_JSON)


def _packed(value: Any) -> bytes:
    """A body of any JSON value, surrogates included."""
    return forge.body(json.dumps(value).encode())


def _json(rng: random.Random, data: bytes) -> bytes:
    """A value somewhere in the JSON of a record."""
    parts = _parts(data)
    places = _of(parts, *_BODIES)
    if not places:
        return data
    at = rng.choice(places)
    try:
        value = body.unpack(parts[at].payload, "", 1 << 24)
    except KcapError:
        return data
    parts[at] = replace(parts[at], payload=_packed(_odd(rng, value)))
    return _made(data, parts)


def _totals(rng: random.Random, data: bytes) -> bytes:
    """A value in the body, or the table, of a FOOTER or CHECKPOINT."""
    parts = _parts(data)
    places = _of(parts, Kind.FOOTER, Kind.CHECKPOINT)
    if not places:
        return data
    at = rng.choice(places)
    made: type[payloads.Footer | payloads.Checkpoint]
    made = payloads.Footer if parts[at].kind == Kind.FOOTER else payloads.Checkpoint
    try:
        found = made.unpack(parts[at].payload)
    except KcapError:
        return data
    table, totals = found.chunks.copy(), dict(found.totals)
    if len(table) and rng.random() < 0.5:
        name = rng.choice(payloads.TABLE.names or ())
        kind = payloads.TABLE[name]
        raw = struct.pack("<Q", _number(rng))[: kind.itemsize]
        table[rng.randrange(len(table))][name] = int.from_bytes(
            raw, "little", signed=kind.kind == "i"
        )
    else:
        name = rng.choice(sorted(totals))
        totals[name] = _odd(rng, totals[name])
    # Places are as they were: what changed stays, and the chain is made right.
    try:
        fresh = replace(found, chunks=table, totals=totals)
        payload = fresh.pack(0) if isinstance(fresh, payloads.Footer) else fresh.pack()
    except (KcapError, ValueError):
        return data
    parts[at] = replace(parts[at], payload=payload)
    return _made(data, parts)


def _chunk(rng: random.Random, data: bytes) -> bytes:
    """A field of a chunk's directory, or bytes of a column before compression."""
    parts = _parts(data)
    places = _of(parts, Kind.CHUNK)
    if not places:
        return data
    at = rng.choice(places)
    try:
        taken = ChunkParts(parts[at].payload)
    except (KcapError, struct.error):
        return data
    _change_chunk(rng, taken)
    try:
        payload = taken.packed()
    except struct.error:
        return data
    parts[at] = replace(parts[at], payload=payload)
    return _made(data, parts)


def _change_chunk(rng: random.Random, taken: ChunkParts) -> None:
    if not taken.entries or rng.random() < 0.2:
        name = rng.choice(("number", "rows", "schema", "tail_count"))
        taken.head[name] = _number(rng) % (1 << 32)
        return
    at = rng.randrange(len(taken.entries))
    entry = taken.entries[at]
    if rng.random() < 0.5:
        name = rng.choice(("id", "cls", "presence", "encoding", "present", "base", "distinct"))
        bits = {"cls": 8, "presence": 8, "encoding": 8, "base": 64}.get(name, 32)
        value = rng.choice((getattr(entry, name) ^ 1 << rng.randrange(bits), _number(rng)))
        setattr(entry, name, value % (1 << bits))
        return
    try:
        raw = bytearray(zstd.decompress(taken.frames[at], entry.decoded) if entry.decoded else b"")
    except KcapError:
        return
    raw = _scratched(rng, raw)
    taken.frames[at] = zstd.compress(bytes(raw)) if raw else b""
    entry.decoded = len(raw)


def _scratched(rng: random.Random, raw: bytearray) -> bytearray:
    place = rng.randrange(max(1, len(raw)))
    way = rng.randrange(4)
    if way == 0 and raw:
        raw[place] ^= 1 << rng.randrange(8)
    elif way == 1:
        raw[place : place + 4] = struct.pack("<I", _number(rng) % (1 << 32))
    elif way == 2:
        del raw[place:]
    else:
        raw[place:place] = rng.randbytes(rng.randrange(9))
    return raw


def _tail(rng: random.Random, data: bytes) -> bytes:
    """The content of a TAIL before compression."""
    parts = _parts(data)
    places = _of(parts, Kind.TAIL)
    if not places:
        return data
    at = rng.choice(places)
    payload = parts[at].payload
    try:
        first, rows, columns, decoded = struct.unpack_from("<qIII", payload)
        raw = bytearray(zstd.decompress(payload[24:], decoded))
    except (KcapError, struct.error):
        return data
    raw = _scratched(rng, raw)
    if rng.random() < 0.2:
        rows = _number(rng) % (1 << 32)
    head = struct.pack("<qIII4x", first, rows, columns, len(raw))
    parts[at] = replace(parts[at], payload=head + zstd.compress(bytes(raw)))
    return _made(data, parts)


_WAYS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _bytes, _spliced, _records, _header, _payload, _payload, _json, _json, _totals, _totals,
    _chunk, _chunk, _chunk, _tail,
)  # fmt: skip
