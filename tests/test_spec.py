"""The specification is enough to read a capture: a second reader, from its text alone.

Nothing of kcap.format is used here: where this reader and kcap disagree, one of them does not do
what spec/kcap.md says. The numbers in comments are its clauses.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from support import SOURCE, capture, make_events, rows_of, snapshot

import kcap
from kcap.model.side import Loss

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "first.kcap"
WIDTHS = {0: "", 1: "B", 2: "H", 3: "I", 4: "Q"}
CLASSES = {1: "i64", 2: "u64", 3: "f64", 4: "bool", 5: "str", 6: "bin", 7: "json", 16: "list",
           17: "list_i64", 18: "list_u64", 19: "list_f64", 20: "list_bool"}  # fmt: skip


def numbers(code: str, raw: bytes, at: int, count: int) -> tuple[list[Any], int]:
    """Numbers at a place, and the place behind them."""
    size = struct.calcsize("<" + code) * count if code else 0
    return list(struct.unpack_from(f"<{count}{code}", raw, at)) if code else [0] * count, at + size


def records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """2: offset, kind and payload of each record, every checksum compared."""
    file_id = data[32:48]  # 4.1
    at = number = 0
    chain = hashlib.sha256(file_id).digest()
    while at < len(data):
        head = data[at : at + 32]
        magic, kind, _, version, length, found, payload_crc, header_crc = struct.unpack(
            "<4sBBHQQII", head
        )
        payload = data[at + 32 : at + 32 + length]
        end = at + 32 + (length + 7) // 8 * 8
        assert (magic, version, found) == (b"\x89KCP", 1, number)
        assert zlib.crc32(payload) == payload_crc
        assert zlib.crc32(file_id + head[:28]) == header_crc
        assert not any(data[at + 32 + length : end])
        if kind == 14:  # 8.2
            assert payload[:16] == file_id
            assert payload[16:48] == chain
            assert struct.unpack("<QQ8s", payload[-24:]) == (at, length, b"KCAPEND\n")
        chain = hashlib.sha256(chain + hashlib.sha256(data[at:end]).digest()).digest()  # 2.6
        yield at, kind, payload
        at, number = end, number + 1


def body(raw: bytes) -> Any:
    """4: JSON, perhaps compressed."""
    length, codec = struct.unpack_from("<IB3x", raw)
    text = zstandard.decompress(raw[8:]) if codec else raw[8:]
    assert len(text) == length
    return json.loads(text)


def presence(form: int, raw: bytes, present: int, rows: int) -> tuple[list[int], int]:
    """6.4: rows that have a value, and where the values begin."""
    if form == 0:
        return list(range(rows)), 0
    if form == 2:
        return numbers("H", raw, 0, present)
    size = (rows + 7) // 8
    return [i for i in range(rows) if raw[i // 8] >> i % 8 & 1], size


def integers(encoding: int, base: int, count: int, raw: bytes, at: int, cls: str) -> Any:
    """6.5."""
    code = WIDTHS[encoding & 15]
    if encoding & 0x40:
        first = 8 if encoding & 0x10 else 0
        size, items = struct.calcsize(code), count - (first > 0)
        wide = raw[at + first : at + first + size * items]
        bytes_of = [wide[i::items] for i in range(items)]
        raw = raw[: at + first] + b"".join(bytes_of) + raw[at + first + len(wide) :]
    if encoding & 0x10:
        (first,), at = numbers("Q", raw, at, 1)
        steps, at = numbers(code, raw, at, count - 1)
        values = [first]
        for step in steps:
            wide = (base + step) * (100 if encoding & 0x20 else 1)
            values.append(values[-1] + wide)
    else:
        steps, at = numbers(code, raw, at, count)
        values = [base + step for step in steps]
    values = [v % (1 << 64) for v in values]
    if cls == "i64":
        values = [v - (1 << 64) if v >> 63 else v for v in values]
    return values, at


def texts(encoding: int, distinct: int, count: int, raw: bytes, at: int, cls: str) -> Any:
    """6.7."""
    codes = list(range(count))
    if not encoding & 1:
        code = (
            "" if distinct == 1 else "B" if distinct <= 256 else "H" if distinct <= 65536 else "I"
        )
        codes, at = numbers(code, raw, at, count)
    lengths, at = numbers(
        "I" if encoding & 2 else "H", raw, at, count if encoding & 1 else distinct
    )
    entries = []
    for length in lengths:
        part = raw[at : at + length]
        entries.append(part if cls == "bin" else part.decode())
        at += length
    return [entries[c] for c in codes], at


def values_of(cls: str, entry: tuple[int, int, int], count: int, raw: bytes, at: int) -> Any:
    """6.5 to 6.8: values of any class."""
    encoding, base, distinct = entry
    if cls in ("i64", "u64"):
        return integers(encoding, base, count, raw, at, cls)
    if cls in ("str", "bin", "json"):
        return texts(encoding, distinct, count, raw, at, cls)
    if cls == "f64":
        return numbers("d", raw, at, count)
    if cls == "bool":
        return [bool(raw[at + i // 8] >> i % 8 & 1) for i in range(count)], at + (count + 7) // 8
    child, encoding, items, distinct, base = struct.unpack_from("<BBxxII4xQ", raw, at)
    lengths, at = numbers("I", raw, at + 24, count)
    flat, at = (
        values_of(CLASSES[child], (encoding, base, distinct), items, raw, at) if items else ([], at)
    )
    lists = []
    for length in lengths:
        lists.append(flat[:length])
        flat = flat[length:]
    return lists, at


def chunk(payload: bytes, names: dict[int, str]) -> list[dict[str, Any]]:
    """6: the rows of a chunk."""
    (size,) = struct.unpack_from("<I", payload)
    directory = payload[4 : 4 + size]
    assert struct.unpack_from("<I", payload, 4 + size) == (zlib.crc32(directory),)
    _, rows, *_, columns = struct.unpack_from("<IIqqqqII", directory)
    out: list[dict[str, Any]] = [{} for _ in range(rows)]
    for i in range(columns):
        fields = struct.unpack_from("<IBBBxIQIIIII", directory, 64 + 40 * i)
        column, cls, form, encoding, present, base, distinct, offset, stored, decoded, crc = fields
        start = 8 + size + offset
        frame = payload[start : start + stored]
        assert zlib.crc32(frame) == crc
        raw = zstandard.decompress(frame) if decoded else b""
        assert len(raw) == decoded
        at_rows, at = presence(form, raw, present, rows)
        values, end = values_of(CLASSES[cls], (encoding, base, distinct), present, raw, at)
        assert end == len(raw)
        for row, value in zip(at_rows, values, strict=True):
            out[row][names[column]] = value
    return out


def read(data: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events and the footer's body of a capture."""
    names: dict[int, str] = {}
    events: list[dict[str, Any]] = []
    totals = {}
    for _, kind, payload in records(data):
        if kind == 3:
            names |= {c["id"]: c["name"] for c in body(payload)}
        elif kind == 4:
            events += chunk(payload, names)
        elif kind == 7:  # 4.5
            (size,) = struct.unpack_from("<Q", payload)
            tables = body(payload[8 : 8 + size])
            at = 8 + size
            for table in tables:
                assert chunk(payload[at : at + table["bytes"]], names)
                at += table["bytes"]
            assert at == len(payload)
        elif kind == 14:
            (count,) = struct.unpack_from("<Q", payload, 48)
            (size,) = struct.unpack_from("<Q", payload, 56 + 64 * count)
            totals = body(payload[64 + 64 * count :][:size])
    return events, totals


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as texts, members by name."""
    return [repr({k: row[k] for k in sorted(row)}) for row in rows]


def test_the_fixture_is_read_alike() -> None:
    """A recording of a real machine: the text's reader and kcap give the same events."""
    source = kcap.open(FIXTURE)
    batches = list(source.batches())
    source.close()

    events, totals = read(FIXTURE.read_bytes())

    assert len(events) == totals["events"] == 61
    assert in_order(events) == [repr(r) for b in batches for r in b.to_pylist()]


@pytest.mark.parametrize("rows", [7, 65_536])
def test_every_class_is_read_alike(rows: int) -> None:
    """All classes, forms of presence and side records."""
    events = make_events(700)
    sides = [SOURCE, snapshot(300), Loss("lost", 1, "r")]

    found, totals = read(capture([events.with_before(sides)], chunk_rows=rows))

    assert totals["events"] == 700
    assert in_order(found) == [repr(r) for r in events.to_pylist()]
    assert len(rows_of([events])) == 700
