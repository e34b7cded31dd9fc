"""A second reader, written from the text of spec/kcap.md alone; numbers are its clauses.

Nothing of kcap is used here: where this reader and kcap disagree, one of them does not do what the
text says. It reads intact captures, and asserts whatever the text says of them.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import zstandard

Row = dict[str, Any]
WIDTHS = {0: "", 1: "B", 2: "H", 3: "I", 4: "Q"}
CLASSES = {1: "i64", 2: "u64", 3: "f64", 4: "bool", 5: "str", 6: "bin", 7: "json", 16: "list",
           17: "list_i64", 18: "list_u64", 19: "list_f64", 20: "list_bool"}  # fmt: skip
NEEDED = {1, 3, 4, 6, 14, 16}
KINDS = range(1, 18)
EMPTY = ((1 << 63) - 1, -(1 << 63))


def numbers(code: str, raw: bytes, at: int, count: int) -> tuple[list[Any], int]:
    """Numbers at a place, and the place behind them."""
    size = struct.calcsize("<" + code) * count if code else 0
    return list(struct.unpack_from(f"<{count}{code}", raw, at)) if code else [0] * count, at + size


def body(raw: bytes) -> Any:
    """4: JSON, perhaps compressed."""
    length, codec, zeros = struct.unpack_from("<IB3s", raw)
    assert not any(zeros)
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
    assert not any(raw[i // 8] >> i % 8 & 1 for i in range(rows, size * 8))
    return [i for i in range(rows) if raw[i // 8] >> i % 8 & 1], size


def integers(encoding: int, base: int, count: int, raw: bytes, at: int, cls: str) -> Any:
    """6.5."""
    code = WIDTHS[encoding & 15]
    first, at = numbers("Q", raw, at, 1 if encoding & 0x10 else 0)
    items = count - len(first)
    if encoding & 0x40:
        size = struct.calcsize(code)
        planes = [raw[at + i * items : at + (i + 1) * items] for i in range(size)]
        offsets = [int.from_bytes(bytes(p[i] for p in planes), "little") for i in range(items)]
        at += size * items
    else:
        offsets, at = numbers(code, raw, at, items)
    values = first
    for offset in offsets:
        step = (base + offset) * (100 if encoding & 0x20 else 1)
        values.append(values[-1] + step if first and encoding & 0x10 else step)
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
    entries_count = count if encoding & 1 else distinct
    lengths, at = numbers("I" if encoding & 2 else "H", raw, at, entries_count)
    entries = []
    for length in lengths:
        entries.append(raw[at : at + length])
        at += length
    if not encoding & 1:
        assert entries == sorted(set(entries))
        assert set(codes) == set(range(distinct))
    values = entries if cls == "bin" else [e.decode() for e in entries]
    return [values[c] for c in codes], at


def values_of(cls: str, entry: tuple[int, int, int], count: int, raw: bytes, at: int) -> Any:
    """6.5 to 6.8: values of any class."""
    encoding, base, distinct = entry
    if cls in ("i64", "u64"):
        return integers(encoding, base, count, raw, at, cls)
    if cls in ("str", "bin", "json"):
        return texts(encoding, distinct, count, raw, at, cls)
    assert encoding == 0
    if cls == "f64":
        return numbers("d", raw, at, count)
    if cls == "bool":
        end = at + (count + 7) // 8
        bits = [bool(raw[at + i // 8] >> i % 8 & 1) for i in range((end - at) * 8)]
        assert not any(bits[count:])
        return bits[:count], end
    child, encoding, zero, items, inner, zeros, low = struct.unpack_from("<BBHIIIQ", raw, at)
    assert (zero, zeros, items) == (0, 0, distinct)
    lengths, at = numbers("I", raw, at + 24, count)
    flat: list[Any] = []
    if items:
        flat, at = values_of(CLASSES[child], (encoding, low, inner), items, raw, at)
    if cls == "list":
        assert base == sum(len(item.encode()) for item in flat)
    lists = []
    for length in lengths:
        lists.append(flat[:length])
        flat = flat[length:]
    assert not flat
    return lists, at


Entry = tuple[int, ...]


def entries_of(raw: bytes, count: int) -> list[Entry]:
    """6.2: the directory's entries, their frames one behind the other."""
    found = [struct.unpack_from("<IBBBBIQIIIII", raw, 40 * i) for i in range(count)]
    at = 0
    for entry in found:
        assert entry[4] == 0
        assert entry[5] > 0
        assert entry[8] == at
        at += entry[9]
    return found


def filled(rows: list[Row], entry: Entry, raw: bytes, name: str) -> None:
    """Put the values of a column into its rows."""
    _, cls, form, encoding, _, present, base, distinct, *_ = entry
    at_rows, at = presence(form, raw, present, len(rows))
    values, end = values_of(CLASSES[cls], (encoding, base, distinct), present, raw, at)
    assert end == len(raw)
    for row, value in zip(at_rows, values, strict=True):
        rows[row][name] = value


@dataclass
class Chunk:
    """6: a chunk's rows and what its directory says."""

    number: int
    rows: list[Row]
    ords: tuple[int, int]
    times: tuple[int, int]
    tails: tuple[int, int]
    classes: dict[str, int]
    forms: dict[str, Entry]


def chunk(payload: bytes, names: dict[int, str]) -> Chunk:
    """6.1 to 6.3."""
    (size,) = struct.unpack_from("<I", payload)
    directory = payload[4 : 4 + size]
    assert struct.unpack_from("<I", payload, 4 + size) == (zlib.crc32(directory),)
    head = struct.unpack_from("<IIqqqqIIQII", directory)
    number, rows, ord_min, ord_max, ts_min, ts_max, _, columns, first, count, zero = head
    assert zero == 0
    assert 0 < rows <= 65_536
    assert size == 64 + 40 * columns
    out: list[Row] = [{} for _ in range(rows)]
    entries = entries_of(directory[64:], columns)
    assert [names[e[0]] for e in entries] == sorted({names[e[0]] for e in entries})
    for entry in entries:
        stored, decoded, crc = entry[9:]
        start = 8 + size + entry[8]
        frame = payload[start : start + stored]
        assert zlib.crc32(frame) == crc
        assert bool(stored) == bool(decoded)
        raw = zstandard.decompress(frame) if decoded else b""
        assert len(raw) == decoded
        filled(out, entry, raw, names[entry[0]])
    for name, said in (("ord", (ord_min, ord_max)), ("ts", (ts_min, ts_max))):
        assert bounds(out, name) == said
    classes = {names[e[0]]: e[1] for e in entries}
    forms = {names[e[0]]: e for e in entries}
    return Chunk(number, out, (ord_min, ord_max), (ts_min, ts_max), (first, count), classes, forms)


def bounds(rows: list[Row], name: str) -> tuple[int, int]:
    """Least and greatest value of a column."""
    found = [row[name] for row in rows if name in row]
    return (min(found), max(found)) if found else EMPTY


def tail(payload: bytes, names: dict[int, str]) -> list[Row]:
    """7.2: the rows of a TAIL."""
    first, rows, columns, decoded, zero = struct.unpack_from("<qIIII", payload)
    assert zero == 0
    raw = zstandard.decompress(payload[24:])
    assert len(raw) == decoded
    out: list[Row] = [{} for _ in range(rows)]
    entries = entries_of(raw, columns)
    at = 40 * columns
    for entry in entries:
        assert entry[9] == entry[10]
        assert entry[11] == 0
        filled(out, entry, raw[at : at + entry[10]], names[entry[0]])
        at += entry[10]
    assert at == len(raw)
    assert first == bounds(out, "ord")[0]
    return out


def mixed(text: bytes) -> int:
    """8.1: the hash of a string."""
    value = power = 0
    for i, byte in enumerate(text):
        power = power * 0x9E3779B97F4A7C15 % (1 << 64) if i else 1
        value = (value + (byte + 1) * power) % (1 << 64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor % (1 << 64)
    return value ^ value >> 33


SALTS = (0x47B6137B, 0x44974D91, 0x8824AD5B, 0xA2B7289D,
         0x705495C7, 0x2DF1424B, 0x9EFC4947, 0x5C6BFB31)  # fmt: skip


def may_hold(blocks: bytes, text: str) -> bool:
    """8.1: whether a filter says that a string may be in the chunk."""
    if not blocks:
        return False
    value = mixed(text.encode())
    block = ((value >> 32) * (len(blocks) // 32)) >> 32
    words = struct.unpack_from("<8I", blocks, 32 * block)
    low = value % (1 << 32)
    return all(w >> (low * s % (1 << 32) >> 27) & 1 for w, s in zip(words, SALTS, strict=True))


@dataclass
class Index:
    """8.1: what a CHUNK_INDEX says."""

    counts: dict[str, int]
    types: dict[str, int]
    pids: list[int] | None = None
    strings: bytes | None = None


def chunk_index(payload: bytes) -> Index:
    """8.1."""
    names = ("number", "rows", "ts_min", "ts_max", "seq_min", "seq_max", "ord_min", "ord_max",
             "backward", "timeless", "types", "state_rows")  # fmt: skip
    counts = dict(zip(names, struct.unpack_from("<IIqqqqqqIIII", payload), strict=True))
    at = 72
    types = {}
    for _ in range(counts["types"]):
        count, length = struct.unpack_from("<IH", payload, at)
        types[payload[at + 6 : at + 6 + length].decode()] = count
        at += 6 + length
    assert list(types) == sorted(types)
    found = Index(counts, types)
    at = (at + 7) // 8 * 8
    seen = set()
    while at < len(payload):
        tag, zero, length = struct.unpack_from("<HHI", payload, at)
        content = payload[at + 8 : at + 8 + length]
        at += (8 + length + 7) // 8 * 8
        assert zero == 0
        assert tag not in seen
        seen.add(tag)
        if tag == 1:
            count, encoding, base, decoded = struct.unpack_from("<IB3xQI", content)
            raw = zstandard.decompress(content[24:]) if decoded else b""
            assert len(raw) == decoded
            found.pids = integers(encoding, base, count, raw, 0, "i64")[0]
        elif tag == 2:
            found.strings = content
    return found


def table(payload: bytes, at: int) -> tuple[list[tuple[int, ...]], Any, int]:
    """8.2: the table, the body, and the place behind them."""
    (count,) = struct.unpack_from("<Q", payload, at)
    entries = [struct.unpack_from("<QQQIIqqqq", payload, at + 8 + 64 * i) for i in range(count)]
    at += 8 + 64 * count
    (size,) = struct.unpack_from("<Q", payload, at)
    return entries, body(payload[at + 8 : at + 8 + size]), at + 8 + size


def blob_block(payload: bytes) -> tuple[bytes, bytes]:
    """9.2, 9.3: digest and bytes of a block."""
    assert b"\x89KCP" not in payload
    length, codec, zeros, mask = struct.unpack_from("<IB3s4s", payload)
    assert not any(zeros)
    raw = bytes(b ^ mask[i % 4] for i, b in enumerate(payload[12:]))
    data = zstandard.decompress(raw[32:]) if codec else raw[32:]
    assert len(data) == length
    assert hashlib.sha256(data).digest() == raw[:32]
    return raw[:32], data


@dataclass
class Record:
    """2.1."""

    at: int
    kind: int
    number: int
    payload: bytes
    raw: bytes
    chain: bytes
    """2.6: the value before it."""
    known: bool


def records(data: bytes) -> Iterator[Record]:
    """2: each record, every checksum compared."""
    file_id = data[32:48]  # 4.1
    at, number = 0, 0
    missing: list[list[int]] = []
    chain = hashlib.sha256(file_id).digest()
    while at < len(data):
        head = data[at : at + 32]
        magic, kind, flags, version, length, found, payload_crc, header_crc = struct.unpack(
            "<4sBBHQQII", head
        )
        payload = data[at + 32 : at + 32 + length]
        end = at + 32 + (length + 7) // 8 * 8
        known = kind in KINDS and version == 1
        assert magic == b"\x89KCP"
        assert flags in ((0 if kind in NEEDED else 1,) if known else (1,))
        assert zlib.crc32(payload) == payload_crc
        assert zlib.crc32(file_id + head[:28]) == header_crc
        assert not any(data[at + 32 + length : end])
        for first, last in missing:  # 2.3
            number = last + 1 if first <= number <= last and found != first else number
        assert found == number
        yield Record(at, kind, found, payload, data[at:end], chain, known)
        chain = hashlib.sha256(chain + hashlib.sha256(data[at:end]).digest()).digest()  # 2.6
        at, number = end, found + 1
        if kind == 15:
            missing += body(payload)["missing"]
            assert found in [first for first, _ in missing]


class Reading:
    """What a capture holds."""

    def __init__(self, data: bytes) -> None:
        self.rows: list[Row] = []
        self.classes: dict[str, int] = {}
        self.totals: dict[str, Any] = {}
        self.chunks: list[tuple[Chunk, Index | None]] = []
        self.states: list[dict[str, list[Row]]] = []
        self.blobs: list[tuple[Any, bytes]] = []
        self.table: list[tuple[int, ...]] = []
        """What the tables of the CHECKPOINTs so far, and the FOOTER, must say."""
        self._names: dict[int, str] = {}
        self._classes: dict[int, str] = {}
        self._data = data
        self._waiting: list[tuple[Record, list[Row]]] = []
        self._blocks: dict[bytes, bytes] = {}
        self._checkpoint: tuple[int, bytes] = (0, bytes(32))
        self._told = 0
        self._repaired = False
        take = {3: self._schema, 4: self._chunk, 5: self._index, 6: self._tail, 7: self._state,
                10: self._block, 11: self._manifest, 13: self._point, 14: self._footer}  # fmt: skip
        for record in records(data):
            self._repaired = self._repaired or record.kind == 15
            if record.known and record.kind in take:
                take[record.kind](record)
        self._live(self._waiting)

    def _schema(self, record: Record) -> None:
        for column in body(record.payload):
            assert self._names.setdefault(column["id"], column["name"]) == column["name"]
            self._classes[column["id"]] = column["class"]

    def _tail(self, record: Record) -> None:
        rows = tail(record.payload, self._names)
        if sum(len(r) for _, r in self._waiting) + len(rows) > 65_536:  # 7.4
            self._live(self._waiting)
            self._waiting = []
        self._waiting.append((record, rows))

    def _chunk(self, record: Record) -> None:
        found = chunk(record.payload, self._names)
        assert found.number == len(self.chunks) or self._repaired
        for name, code in found.classes.items():
            spelled = next(i for i, n in self._names.items() if n == name)
            assert CLASSES[code] == self._classes[spelled]
        first, count = found.tails
        named = [t for t in self._waiting if count and first <= t[0].number < record.number]
        self._live([t for t in self._waiting if t not in named])
        self._waiting = []
        rows = [row for _, part in named for row in part]  # 7.3
        assert len(named) == count
        assert [repr(r) for r in found.rows[: len(rows)]] == [repr(r) for r in rows]
        self.chunks.append((found, None))
        self._place(record, found.number, found.rows)

    def _live(self, waiting: list[tuple[Record, list[Row]]]) -> None:
        """7.4."""
        for record, rows in waiting:
            self._place(record, (1 << 32) - 1, rows)

    def _place(self, record: Record, number: int, rows: list[Row]) -> None:
        """8.2: rows, and the entry of the record that they come from."""
        self.rows += [{n: row[n] for n in sorted(row)} for row in rows]
        spans = (*bounds(rows, "ts"), *bounds(rows, "ord"))
        self.table.append((record.at, len(record.raw), 0, number, len(rows), *spans))

    def _index(self, record: Record) -> None:
        found = chunk_index(record.payload)
        at, length, _, *rest = self.table[-1] if self.table else (0, 0, 0)
        if record.at != at + length:
            assert self._repaired  # 4.6: its chunk is gone
            return
        self.chunks[-1] = (self.chunks[-1][0], found)
        self.table[-1] = (at, length, record.at, *rest)

    def _state(self, record: Record) -> None:
        """4.5."""
        (size,) = struct.unpack_from("<Q", record.payload)
        at = 8 + size
        tables: dict[str, list[Row]] = {}
        for part in body(record.payload[8:at]):
            rows = chunk(record.payload[at : at + part["bytes"]], self._names).rows
            tables.setdefault(part["name"], []).extend(rows)
            at += part["bytes"]
        self.states.append(tables)

    def _block(self, record: Record) -> None:
        digest, data = blob_block(record.payload)
        assert digest not in self._blocks  # 9.1
        self._blocks[digest] = data

    def _manifest(self, record: Record) -> None:
        """9.4, 9.5."""
        size, count = struct.unpack_from("<II", record.payload)
        ranges = [struct.unpack_from("<QII32s", record.payload, 8 + 48 * i) for i in range(count)]
        end = 8 + 48 * count
        said = body(record.payload[end : end + size])
        content = b""
        reasons = set()
        for length, form, reason, digest in ranges:
            part = self._blocks[digest] if form == 0 else bytes(length)
            assert len(part) == length > 0
            reasons |= {reason} if form == 2 else set()
            content += part
        assert reasons == set(range(len(said["reasons"])))
        assert len(content) == said["size"]
        if said["sha256"] is not None:
            assert hashlib.sha256(content).hexdigest() == said["sha256"]
        self.blobs.append((said, content))

    def _point(self, record: Record) -> None:
        """8.3."""
        payload = record.payload
        previous, digest = struct.unpack_from("<Q32s", payload, 48)
        assert payload[:48] == self._data[32:48] + record.chain
        assert (previous, digest) == self._checkpoint
        entries, said, _ = table(payload, 88)
        assert entries == self.table[self._told :]
        assert "content_hash" not in said
        self._told = len(self.table)
        self._checkpoint = (record.at, hashlib.sha256(record.raw).digest())

    def _footer(self, record: Record) -> None:
        """8.2."""
        self._live(self._waiting)
        self._waiting = []
        payload = record.payload
        assert payload[:48] == self._data[32:48] + record.chain
        entries, self.totals, _ = table(payload, 48)
        assert entries == self.table
        end = struct.unpack("<QQ8s", payload[-24:])
        assert end == (record.at, len(payload), b"KCAPEND\n")
        assert record.at + len(record.raw) == len(self._data)
