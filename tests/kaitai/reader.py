"""Rows of a capture from what the parser that Kaitai Struct made of spec/kcap.ksy reads.

Nothing of kcap is used here. The parser knows the structures; this adds zstd, JSON and arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import zstandard
from kaitai.kcap import Kcap
from kaitaistruct import KaitaiStream

Row = dict[str, Any]
Kind = Kcap.Kind
MODULO = 1 << 64


def stream(raw: bytes) -> KaitaiStream:
    """Bytes as the parser takes them."""
    return KaitaiStream(BytesIO(raw))


def parsed(data: bytes) -> list[Any]:
    """The records of an intact capture."""
    records: list[Any] = Kcap(stream(data)).records
    return records


def unpacked(frame: bytes, length: int) -> bytes:
    """What a frame holds; nothing where there is none."""
    raw = zstandard.ZstdDecompressor().decompress(frame) if frame else b""
    assert len(raw) == length
    return raw


def body(found: Any) -> Any:
    """The JSON value of a body."""
    plain = found.codec == Kcap.Codec.stored
    return json.loads(found.data if plain else unpacked(found.data, found.len_decoded))


def column(entry: Any, num_rows: int, raw: bytes) -> tuple[list[int], list[Any]]:
    """Row numbers and values of a column."""
    found = Kcap.Column(entry, num_rows, stream(raw))
    assert found._io.is_eof()
    return column_rows(found, num_rows), column_values(found)


def column_rows(found: Any, num_rows: int) -> list[int]:
    """The rows in which a column has a value."""
    if found.entry.presence == Kcap.Presence.bitmap:
        return [i for i in range(num_rows) if bit(found.bitmap, i)]
    if found.entry.presence == Kcap.Presence.numbers:
        return list(found.row_numbers)
    assert found.entry.presence == Kcap.Presence.all
    return list(range(num_rows))


def column_values(found: Any) -> list[Any]:
    """The values of a column."""
    if not found.is_list:
        return values(found.values, found.entry.base)
    lists = found.lists
    items = values(lists.items, lists.base) if lists.num_items else []
    out = []
    for length in lists.lengths:
        out.append(items[:length])
        items = items[length:]
    assert not items
    return out


def bit(bitmap: bytes, i: int) -> bool:
    """A bit, least first."""
    return bool(bitmap[i // 8] >> i % 8 & 1)


def values(found: Any, base: int) -> list[Any]:
    """The values that a `values` describes."""
    cls, content = Kcap.TypeClass(found.type_class), found.content
    if cls == Kcap.TypeClass.f64:
        return list(content.values)
    if cls == Kcap.TypeClass.bool:
        return [bit(content.bitmap, i) for i in range(found.num_values)]
    if cls in (Kcap.TypeClass.i64, Kcap.TypeClass.u64):
        return integers(content, base, signed=cls == Kcap.TypeClass.i64)
    entries = content.entries
    if cls != Kcap.TypeClass.bin:
        entries = [e.decode() for e in entries]
    if content.is_plain:
        return list(entries)
    codes = content.codes if content.num_distinct > 1 else [0] * found.num_values
    return [entries[c] for c in codes]


def integers(found: Any, base: int, *, signed: bool) -> list[int]:
    """The integers that an `integers` describes."""
    if found.is_planes:
        offsets = [int.from_bytes(o, "little") for o in zip(*found.planes, strict=True)]
    else:
        offsets = found.offsets if found.width else [0] * found.num_offsets
    steps = [base + offset for offset in offsets]
    if found.is_divided:
        steps = [s * 100 for s in steps]
    if found.is_delta:
        out = [found.first]
        for step in steps:
            out.append(out[-1] + step)
    else:
        out = steps
    out = [v % MODULO for v in out]
    return [v - MODULO if signed and v >> 63 else v for v in out]


def chunk_columns(chunk: Any) -> Iterator[tuple[int, list[int], list[Any]]]:
    """Column id, row numbers and values of each column of a chunk."""
    directory = chunk.directory
    for entry, frame in zip(directory.entries, chunk.frames, strict=True):
        yield (
            entry.column_id,
            *column(entry, directory.num_rows, unpacked(frame, entry.len_decoded)),
        )


def tail_columns(tail: Any) -> Iterator[tuple[int, list[int], list[Any]]]:
    """Column id, row numbers and values of each column of a tail."""
    raw = unpacked(tail.frame, tail.len_decoded)
    content = Kcap.TailContent(tail.num_rows, tail.num_columns, stream(raw))
    assert content._io.is_eof()
    for found in content.columns:
        rows = column_rows(found, tail.num_rows)
        yield found.entry.column_id, rows, column_values(found)


def rows_of(columns: Iterator[tuple[int, list[int], list[Any]]], count: int) -> list[Row]:
    """Columns as rows, by column id."""
    out: list[Row] = [{} for _ in range(count)]
    for column_id, at, found in columns:
        for row, value in zip(at, found, strict=True):
            out[row][column_id] = value
    return out


def state_tables(state: Any) -> Iterator[tuple[str, list[Row]]]:
    """Name and rows, by column id, of each table of a STATE."""
    at = 0
    for table in body(state.tables.body):
        chunk = Kcap.Chunk(stream(state.chunks[at : at + table["bytes"]]))
        yield table["name"], rows_of(chunk_columns(chunk), chunk.directory.num_rows)
        at += table["bytes"]


def blobs(records: list[Any]) -> Iterator[tuple[Any, bytes]]:
    """Body and content, with zeros for what is not there, of each blob."""
    blocks: dict[bytes, bytes] = {}
    for record in records:
        payload = record.payload
        if record.kind == Kind.blob_block:
            plain = payload.codec == Kcap.Codec.stored
            data = payload.content.data
            data = data if plain else unpacked(data, payload.len_decoded)
            blocks[payload.content.sha256] = data
        elif record.kind == Kind.blob_manifest:
            parts = [
                blocks[r.sha256] if r.form == Kcap.RangeForm.block else bytes(r.length)
                for r in payload.ranges
            ]
            assert [len(p) for p in parts] == [r.length for r in payload.ranges]
            yield body(payload.body), b"".join(parts)


def pids(section: Any) -> list[int]:
    """The values of a section of pids."""
    raw = unpacked(section.frame, section.len_decoded)
    found = Kcap.Integers(section.encoding, section.num_pids, stream(raw))
    return integers(found, section.base, signed=True)


class Reading:
    """What a capture holds."""

    def __init__(self, data: bytes) -> None:
        self.records = parsed(data)
        self.names: dict[int, str] = {}
        self.rows: list[Row] = []
        self.states: list[dict[str, list[Row]]] = []
        self.totals: dict[str, Any] | None = None
        self._waiting: list[Any] = []
        for record in self.records:
            self._take(record)
        self._let_go(0, 0)

    def _take(self, record: Any) -> None:
        payload = record.payload
        if isinstance(payload, bytes):
            return  # a kind or a version that the specification does not know
        if record.kind == Kind.schema:
            self.names |= {c["id"]: c["name"] for c in body(payload)}
        elif record.kind == Kind.tail:
            self._waiting.append(record)
        elif record.kind == Kind.chunk:
            head = payload.directory
            self._let_go(head.tail_first, head.num_tails)
            self.rows += self._named(rows_of(chunk_columns(payload), head.num_rows))
        elif record.kind == Kind.state:
            tables = {n: self._named(rows) for n, rows in state_tables(payload)}
            self.states.append(tables)
        elif record.kind == Kind.footer:
            self.totals = body(payload.totals.body)

    def _let_go(self, first: int, count: int) -> None:
        """7.4: the tails that the chunk at hand does not supersede are live."""
        for record in self._waiting:
            if not count or record.number < first:
                tail = record.payload
                self.rows += self._named(rows_of(tail_columns(tail), tail.num_rows))
        self._waiting = []

    def _named(self, rows: list[Row]) -> list[Row]:
        by_name = [{self.names[i]: v for i, v in row.items()} for row in rows]
        return [{n: row[n] for n in sorted(row)} for row in by_name]

    @staticmethod
    def item_form(entry: Any, num_rows: int, frame: bytes) -> list[int]:
        """Class and encoding of the items of a column of lists."""
        found = Kcap.Column(entry, num_rows, stream(unpacked(frame, entry.len_decoded)))
        return [int(found.lists.type_class), found.lists.encoding]
