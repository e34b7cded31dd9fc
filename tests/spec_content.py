"""The hashes of clause 12, from its text; nothing of kcap is used here."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
CODES = {"i64": 1, "u64": 2, "f64": 3, "bool": 4, "str": 5, "bin": 6, "json": 7, "list": 16,
         "list_i64": 17, "list_u64": 18, "list_f64": 19, "list_bool": 20}  # fmt: skip
ITEMS = {"list": "str", "list_i64": "i64", "list_u64": "u64", "list_f64": "f64",
         "list_bool": "bool"}  # fmt: skip
IDENTITY = {"ord", "origin", "shape", "source"}
ROWS, SIZE, TEXTS = 65_536, 24 << 20, 8 << 20
Form = tuple[int, int, int, bytes]
"""Encoding, base, distinct, bytes."""


def bitmap(bits: list[bool]) -> bytes:
    """Bits, least first, trailing ones zero."""
    out = bytearray((len(bits) + 7) // 8)
    for i, bit in enumerate(bits):
        out[i // 8] |= bit << i % 8
    return bytes(out)


def presence(at: list[int], rows: int) -> tuple[int, bytes]:
    """6.4."""
    if len(at) == rows:
        return 0, b""
    if len(at) * 16 < rows:
        return 2, struct.pack(f"<{len(at)}H", *at)
    return 1, bitmap([i in set(at) for i in range(rows)])


def integers(values: list[int]) -> Form:
    """6.5, the plain form."""
    low = min(values)
    span = max(values) - low
    width = next(w for w, size in enumerate((0, 1, 2, 4, 8)) if span < 1 << 8 * size or w == 4)
    size = (0, 1, 2, 4, 8)[width]
    data = b"".join((v - low).to_bytes(size, "little") for v in values) if size else b""
    return width, low % (1 << 64), 0, data


def texts(values: list[bytes]) -> Form:
    """6.7."""
    entries = sorted(set(values))
    wide = max(map(len, entries)) > 0xFFFF
    code = "I" if wide else "H"
    size = 4 if wide else 2
    width = (
        0 if len(entries) == 1 else 1 if len(entries) <= 256 else 2 if len(entries) <= 65536 else 4
    )
    plain = len(values) * size + sum(map(len, values))
    shared = len(values) * width + len(entries) * size + sum(map(len, entries))
    if plain < shared:
        lengths = struct.pack(f"<{len(values)}{code}", *map(len, values))
        return 1 | wide << 1, 0, 0, lengths + b"".join(values)
    place = {entry: i for i, entry in enumerate(entries)}
    codes = b"".join(place[v].to_bytes(width, "little") for v in values) if width else b""
    lengths = struct.pack(f"<{len(entries)}{code}", *map(len, entries))
    return wide << 1, 0, len(entries), codes + lengths + b"".join(entries)


def form(cls: str, values: list[Any]) -> Form:
    """6.5 to 6.8: values of any class, integers plain."""
    if cls in ("i64", "u64"):
        return integers(values)
    if cls == "f64":
        return 0, 0, 0, struct.pack(f"<{len(values)}d", *values)
    if cls == "bool":
        return 0, 0, 0, bitmap(values)
    if cls in ("str", "bin", "json"):
        return texts([v if cls == "bin" else v.encode() for v in values])
    items = [item for value in values for item in value]
    inner = form(ITEMS[cls], items) if items else (0, 0, 0, b"")
    head = struct.pack(
        "<BBHIIIQ", CODES[ITEMS[cls]], inner[0], 0, len(items), inner[2], 0, inner[1]
    )
    lengths = struct.pack(f"<{len(values)}I", *map(len, values))
    text = sum(len(item.encode()) for item in items) if cls == "list" else 0
    return 0, text, len(items), head + lengths + inner[3]


def column(name: str, cls: str, at: list[int], values: list[Any], rows: int) -> bytes:
    """12.3."""
    kind, bits = presence(at, rows)
    encoding, base, distinct, data = form(cls, values)
    raw = name.encode()
    head = struct.pack("<I", len(raw)) + raw
    head += struct.pack("<BBBBQII", CODES[cls], kind, encoding, 0, base, distinct, len(bits))
    return hashlib.sha256(head + bits + data).digest()


def blocks(rows: list[Row], classes: dict[str, str]) -> Iterator[list[Row]]:
    """12.1: where a block ends."""
    block: list[Row] = []
    seen: set[tuple[str, Any]] = set()
    size = texts_size = 0
    for row in rows:
        plain, text, new = cost(row, classes, seen)
        over = size + texts_size + plain + text > SIZE or texts_size + text > TEXTS
        if block and (over or len(block) == ROWS):
            yield block
            block, seen, size, texts_size = [], set(), 0, 0
            plain, text, new = cost(row, classes, seen)
        block.append(row)
        size, texts_size = size + plain, texts_size + text
        seen |= new
    if block:
        yield block


def cost(
    row: Row, classes: dict[str, str], seen: set[tuple[str, Any]]
) -> tuple[int, int, set[tuple[str, Any]]]:
    """12.1: what a row adds to size without texts, and to texts; and the values it has first."""
    plain = text = 0
    new = set()
    for name, value in row.items():
        cls = classes[name]
        if cls in ("str", "bin", "json"):
            plain += 4
            if (name, value) not in seen:
                new.add((name, value))
                text += len(value if cls == "bin" else value.encode())
        elif cls in ITEMS:
            each = {"bool": 1, "str": 4}.get(ITEMS[cls], 8)
            plain += 4 + each * len(value)
            text += sum(len(item.encode()) for item in value) if cls == "list" else 0
        else:
            plain += 1 if cls == "bool" else 8
    return plain, text, new


def content_hash(rows: list[Row], classes: dict[str, str], *, values: bool = False) -> str:
    """12.1, 12.2, and 12.4 where only values count."""
    whole = hashlib.sha256(b"kcap content 1\n")
    for block in blocks(rows, classes):
        digest = hashlib.sha256(struct.pack("<I", len(block)))
        names = {n for row in block for n in row} - (IDENTITY if values else set())
        for name in sorted(names, key=str.encode):
            at = [i for i, row in enumerate(block) if name in row]
            found = [block[i][name] for i in at]
            digest.update(column(name, classes[name], at, found, len(block)))
        whole.update(digest.digest())
    return whole.hexdigest()
