"""Damaged captures, and what must be left of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from support import FILE_ID, SOURCE, Pipe, capture, make_events, opened, rows_of, snapshot

from kcap.errors import NotACaptureError, TruncatedError
from kcap.format import scan, tail, writer
from kcap.format.chunk import Chunk
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.recover import recover
from kcap.format.regions import Report
from kcap.format.schema import Schema, unpack
from kcap.format.verify import verify
from kcap.model.side import Loss

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "first.kcap"


NAMES = [
    *("plain", "open", "empty", "checkpoints", "open checkpoints"),
    *("tails", "open tails", "canonical", "first version"),
]


def recovered(data: bytes, *, pipe: bool = False) -> tuple[bytes, Report]:
    """What recover makes of a capture."""
    stream = io.BufferedReader(Pipe(data)) if pipe else io.BytesIO(data)
    out = io.BytesIO()
    report = recover(stream, out, file="test.kcap")  # type: ignore[arg-type]
    return out.getvalue(), report


def checked(data: bytes, *, pipe: bool = False) -> tuple[bytes, Report]:
    """The same; the output verifies, counts its rows right, and is its own recovery."""
    out, report = recovered(data, pipe=pipe)
    found = verify(opened(out), deep=True)
    assert found.good, found.findings
    assert found.rows == report.rows
    assert found.file_hash == report.file_hash
    again, second = recovered(out)
    assert again == out
    assert second.identical
    assert second.clean
    assert report.clean == (not report.damaged)
    assert len(second.known) >= len(report.known)
    return out, report


def records(data: bytes) -> list[scan.Record]:
    """The records of an undamaged capture."""
    found = list(opened(data).scanner().records())
    assert all(isinstance(r, scan.Record) for r in found)
    return [r for r in found if isinstance(r, scan.Record)]


class Truth:
    """What an undamaged capture holds, record by record."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.records = records(data)
        self._schema = Schema()
        self.rows: dict[int, list[str]] = {}
        """The rows of each CHUNK and TAIL, by record number."""
        self.tails: dict[int, list[int]] = {}
        """The TAILs that each CHUNK supersedes; those that none does under -1."""
        waiting: list[int] = []
        for item in self.records:
            number = item.header.number
            if item.header.kind == Kind.SCHEMA:
                self._schema.read(unpack(item.payload))
            elif item.header.kind == Kind.CHUNK:
                self.rows[number] = rows_of([Chunk(item.payload, self._schema).batch()])
                self.tails[number], waiting = waiting, []
            elif item.header.kind == Kind.TAIL:
                self.rows[number] = rows_of([tail.decode(item.payload, self._schema)])
                waiting.append(number)
        self.tails[-1] = waiting

    def intact(self, damaged: bytes) -> set[int]:
        """Numbers of the records that are still there, wherever they are."""
        found = set()
        for item in self.records:
            at = damaged.find(bytes(item.raw[: HEADER_BYTES + item.header.length]))
            if 0 <= at <= len(damaged) - item.header.size:  # whatever its padding is
                found.add(item.header.number)
        return found

    def readable(self, damaged: bytes, *, pipe: bool = False) -> bool:
        """Whether the columns of every record are still known."""
        there = self.intact(damaged)
        schemas = {r.header.number for r in self.records if r.header.kind == Kind.SCHEMA}
        last = self.records[-1]
        footer = last.header.kind == Kind.FOOTER and damaged.endswith(bytes(last.raw))
        return schemas <= there or (footer and not pipe)

    def left(self, damaged: bytes) -> list[str]:
        """The rows outside the damaged records, in order."""
        there = self.intact(damaged)
        rows: list[str] = []
        for number, tails in self.tails.items():
            if number in there:
                rows += self.rows[number]
            else:
                for tail_number in tails:
                    rows += self.rows[tail_number] if tail_number in there else []
        return rows


def with_checkpoints(rows: int = 120, chunk_rows: int = 10, *, closed: bool = True) -> bytes:
    """A capture with a CHECKPOINT every three chunks, a state and a loss amid them."""
    events = make_events(rows)
    half = rows // 2
    with mock.patch.object(writer, "CHECKPOINT_CHUNKS", 3):
        return capture(
            [
                events.slice(0, half).with_before([SOURCE, snapshot(), Loss("lost", 2, "a")]),
                events.slice(half, rows).with_before([snapshot(5), Loss("lost", 3, "b")]),
            ],
            closed=closed,
            chunk_rows=chunk_rows,
        )


def with_tails(rows: int = 60, *, closed: bool = True) -> bytes:
    """A capture whose rows were committed a few at a time."""
    events = make_events(rows)
    out = io.BytesIO()
    made = writer.CaptureWriter(out, file_id=FILE_ID, chunk_rows=20)
    for start in range(0, rows, 5):
        sides = [SOURCE, snapshot()] if start == 0 else []
        made.write(events.slice(start, start + 5).with_before(sides))
        made.commit()
    if closed:
        made.close()
    return out.getvalue()


@cache
def bases() -> dict[str, Truth]:
    """Captures of every make."""
    captures = {
        "plain": capture(),
        "open": capture(closed=False),
        "empty": capture([]),
        "checkpoints": with_checkpoints(),
        "open checkpoints": with_checkpoints(closed=False),
        "tails": with_tails(),
        "open tails": with_tails(55, closed=False),
        "canonical": capture([make_events(30).with_before([SOURCE])], canonical=True, file_id=None),
        "first version": FIXTURE.read_bytes(),
    }
    return {name: Truth(data) for name, data in captures.items()}


def flips(data: bytes, step: int) -> Iterator[tuple[int, bytes]]:
    """The capture with one bit flipped, for every so many bits."""
    for bit in range(0, 8 * len(data), step):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bit // 8, bytes(damaged)


REBUILT = (Kind.FILE_HEADER, Kind.SOURCE, Kind.SCHEMA, Kind.CHUNK_INDEX, Kind.FOOTER)
"""Kinds that are made anew where a file's FOOTER tells how, or the records do."""


def check_flip(truth: Truth, at: int, damaged: bytes, *, pipe: bool = False) -> None:
    """A flipped bit costs no more than its record, and none that can be made anew."""
    out, report = check_left(truth, damaged, pipe=pipe)
    closed = truth.records[-1].header.kind == Kind.FOOTER
    hit = next(r for r in truth.records if r.offset <= at < r.offset + r.header.size)
    assert report.damaged == 1 or (hit.header.kind == Kind.SCHEMA and (pipe or not closed))
    first_version = opened(truth.data).header.minor == 0  # whose FOOTER and index said less
    if closed and not pipe and hit.header.kind in REBUILT and not first_version:
        assert out == truth.data, at
        assert report.lossless
    elif hit.header.kind == Kind.CHUNK and at < hit.offset + HEADER_BYTES + hit.header.length:
        assert sum(report.lost()[0].values()) == 1, at


def check_cut(truth: Truth, cut: int, *, pipe: bool = False) -> None:
    """A capture that ends early gives its complete records."""
    ends = {r.offset + r.header.size for r in truth.records}
    damaged = truth.data[:cut]
    if cut < truth.records[0].header.size:
        with pytest.raises((NotACaptureError, TruncatedError)):
            recovered(damaged, pipe=pipe)
        return
    out, report = check_left(truth, damaged, pipe=pipe)
    assert report.state == ("open" if cut in ends else "torn")
    assert report.clean == (cut in ends)
    assert out.startswith(damaged[: max(e for e in ends if e <= cut)])


def check_left(truth: Truth, damaged: bytes, *, pipe: bool = False) -> tuple[bytes, Report]:
    """Recover a damaged capture; every row outside the damaged records comes back, in order."""
    out, report = checked(damaged, pipe=pipe)
    found = rows_of(list(opened(out).batches()))
    if truth.readable(damaged, pipe=pipe):
        assert found == truth.left(damaged)
    else:
        every = iter(truth.left(damaged))
        assert all(row in every for row in found)
    return out, report
