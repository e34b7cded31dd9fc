"""What the specification asks of a writer, looked at from outside: the bytes that it writes."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pytest
import spec_reader
import vectors
from kaitai import reader
from kaitaistruct import ValidationFailedError
from support import SOURCE, capture, make_events, opened, snapshot

from kcap.format.writer import CaptureWriter
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Loss, SourceInfo

EVENTS = make_events(200)
SIDES = [SOURCE, snapshot(), Loss("lost", 1, "r")]


class Appended(io.RawIOBase):
    """A stream that can do nothing but take bytes at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(data)


def test_a_capture_is_only_appended_to() -> None:
    """Whole records, one behind the other, and every state of the file begins the next one.

    (spec 1.1, 1.3)
    """
    stream = Appended()
    writer = CaptureWriter(stream, chunk_rows=30)  # type: ignore[arg-type]  # that is the point
    writer.write(EVENTS.with_before(SIDES))
    writer.commit()
    writer.close()

    data = b"".join(stream.parts)
    ends = [r.at + len(r.raw) for r in spec_reader.records(data)]
    written = [len(b"".join(stream.parts[: i + 1])) for i in range(len(stream.parts))]
    assert set(written) <= set(ends)
    assert ends[-1] == len(data)


def test_two_captures_have_two_ids() -> None:
    """Nobody can know the id of a file to come (spec 2.2)."""
    ids = {opened(capture([EVENTS], file_id=None)).header.file_id for _ in range(20)}

    assert len(ids) == 20
    assert all(len(i) == 16 for i in ids)


@pytest.mark.parametrize("rows", [10, 65_536])
def test_only_kinds_marked_so_are_ancillary(rows: int) -> None:
    """Flags follow from the kind (spec 2.1, 2.5)."""
    data = capture([EVENTS.with_before(SIDES)], chunk_rows=rows)

    for record in spec_reader.records(data):
        assert record.raw[5] == (0 if record.kind in (1, 3, 4, 6, 14, 16) else 1)
        assert record.raw[32 + len(record.payload) :] == bytes(-len(record.payload) % 8)


def test_no_chunk_is_empty() -> None:
    """However writing and flushing alternate, every chunk and tail has rows (spec 6.9, 7.1)."""
    out = io.BytesIO()
    writer = CaptureWriter(out, chunk_rows=7)
    for start in range(0, 60, 5):
        writer.write(EMPTY)
        writer.flush()
        writer.commit()
        writer.write(EVENTS.slice(start, start + start % 3))
        writer.commit()
        writer.flush()
    writer.write(EMPTY.with_before([Loss("lost", 1, "r")]))
    writer.close()

    reading = spec_reader.Reading(out.getvalue())

    assert reading.chunks
    assert all(chunk.rows for chunk, _ in reading.chunks)


def test_ids_of_sources_are_worked_out_alike() -> None:
    """The id of a source is what the text says, for any names (spec 4.2)."""
    sources = [SOURCE, SourceInfo("ü", host='"'), SourceInfo("", boot_id="\ud800", origin="0")]
    data = capture([EMPTY.with_before(sources)])

    said = spec_reader.Reading(data).totals["sources"]

    def expected(entry: dict[str, Any]) -> str:
        names = ("collector", "host", "boot_id", "origin")
        text = ", ".join(json.dumps(entry[n]) for n in names)
        return hashlib.sha256(f"[{text}]".encode("ascii")).hexdigest()[:16]

    assert len(said) == 3
    assert [s["id"] for s in said] == [expected(s) for s in said]


def test_a_schema_stands_before_what_uses_it() -> None:
    """Every id is described before its first use, and only once (spec 4.3)."""
    batches = [make_events(20, seed=i).select(list(EVENTS.columns)[i::3]) for i in range(6)]
    known: set[int] = set()

    for record in spec_reader.records(capture(batches, chunk_rows=8)):
        if record.kind == 3:
            new = [column["id"] for column in spec_reader.body(record.payload)]
            assert not known & set(new)
            known |= set(new)
        elif record.kind == 4:
            size = int.from_bytes(record.payload[:4], "little")
            columns = (size - 64) // 40
            used = spec_reader.entries_of(record.payload[68 : 4 + size], columns)
            assert {entry[0] for entry in used} <= known


def test_no_state_repeats_more_than_its_share() -> None:
    """STATE records after the first one take at most 5 % of the file (spec 4.5)."""
    parts = [EVENTS.slice(i, i + 2) for i in range(0, 200, 2)]
    data = capture([*parts, *parts, *parts], chunk_rows=2, snapshot=lambda: snapshot(20))

    sizes = [len(r.raw) for r in spec_reader.records(data) if r.kind == 7]

    assert len(sizes) > 2
    assert sum(sizes[1:]) <= 0.05 * len(data)


def test_zeros_are_zeros() -> None:
    """Every field called zero is; the parser that checks it takes no other (spec 2.1)."""
    batch = Batch(
        4, {f"arg_a__{cls}": vectors.column(cls, [[]] * 4) for cls in ("list", "list_i64")}
    )
    data = capture([EVENTS.with_before(SIDES), batch], chunk_rows=50)
    assert reader.Reading(data).rows

    changed = bytearray(data)
    changed[32 + 20] = 1  # behind file_id and version
    with pytest.raises(ValidationFailedError):
        reader.Reading(bytes(changed))
