"""RECOVERY records: what they explain, what they do not, and what of them is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import forge
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recover_support import Truth, bases, check_left, checked, recovered, with_checkpoints
from support import opened, read

from kcap.format import scan
from kcap.format.body import pack
from kcap.format.record import HEADER_BYTES, Kind
from kcap.format.recovery import Missing, Recovery
from kcap.format.verify import verify


def damaged_at(truth: Truth, *kinds_at: tuple[Kind, int]) -> bytes:
    """The capture with some records' payloads damaged."""
    data = bytearray(truth.data)
    for kind, nth in kinds_at:
        item = [r for r in truth.records if r.header.kind == kind][nth]
        data[item.offset + HEADER_BYTES + 8] ^= 1
    return bytes(data)


def recoveries(data: bytes) -> list[tuple[int, Recovery]]:
    """Number and content of the RECOVERY records."""
    return [
        (r.header.number, Recovery.unpack(r.payload))
        for r in opened(data).scanner().records()
        if isinstance(r, scan.Record) and r.header.kind == Kind.RECOVERY
    ]


def test_the_numbers_stay_and_the_gap_is_explained() -> None:
    """Clauses 2.3, 2.8, 4.6: numbers stay, a RECOVERY has the first missing one and explains it."""
    truth = Truth(with_checkpoints())
    out, _ = checked(damaged_at(truth, (Kind.CHUNK, 5), (Kind.STATE, 1)))

    numbers = {r.header.number: bytes(r.raw) for r in truth.records}
    kept = [r for r in opened(out).scanner().records() if isinstance(r, scan.Record)]
    assert all(
        numbers[r.header.number] == bytes(r.raw)
        for r in kept
        if r.header.kind not in (Kind.RECOVERY, Kind.FOOTER)
    )
    found = recoveries(out)
    assert all(number == content.missing[0][0] for number, content in found)
    for pipe in (False, True):
        assert read(out, pipe=pipe)[1] == []

    # The control: without the RECOVERY records the same gaps are damage.
    silent = [p for p in forge.parts_of(out) if p.kind != Kind.RECOVERY]
    bare = b"".join(
        forge.packed(p, r.header.number)
        for p, r in zip(silent, [r for r in kept if r.header.kind != Kind.RECOVERY], strict=True)
    )
    assert len(read(bare)[1]) >= 2


def test_a_long_gap_is_one_record() -> None:
    """Many records in a row are missing: one RECOVERY lists them, in a stream and in a file."""
    truth = Truth(with_checkpoints())
    chunks = [r for r in truth.records if r.header.kind == Kind.CHUNK]
    data = truth.data[: chunks[2].offset] + truth.data[chunks[6].offset :]

    out, report = checked(data)

    (number, content), *rest = recoveries(out)
    assert number == chunks[2].header.number
    assert content.missing == ((number, chunks[6].header.number - 1),)
    assert content.lost["chunks"] == [2, 5]
    assert content.lost["rows"] == 40
    assert all(not c.lost["records"] for _, c in rest), "CHECKPOINTs that no longer hold"
    assert read(out, pipe=True)[1] == []
    assert report.lost()[1] == 40


def test_a_recovered_capture_can_be_damaged_again() -> None:
    """Next to the first damage, on it, and behind it: both are told, nothing is counted twice."""
    truth = Truth(with_checkpoints())
    once, _ = checked(damaged_at(truth, (Kind.CHUNK, 5)))
    again = Truth(once)
    kinds = Counter(r.header.kind for r in again.records)
    for kind in (Kind.CHUNK, Kind.CHUNK_INDEX, Kind.RECOVERY):
        for nth in range(kinds[kind]):
            out, report = check_left(again, damaged_at(again, (kind, nth)))
            lost = [e for e in opened(out).footer.totals["loss"] if e["kind"] == "damaged"]  # type: ignore[union-attr]
            rows = sum(e["count"] or 0 for e in lost)
            assert report.rows == 110 - 10 * (kind == Kind.CHUNK)
            if kind != Kind.RECOVERY:
                assert rows == 120 - report.rows


def test_checkpoints_stay_until_the_first_change() -> None:
    """Clause 2.8: before it they hold, behind it they would not."""
    truth = Truth(with_checkpoints())
    points = [r.header.number for r in truth.records if r.header.kind == Kind.CHECKPOINT]
    for nth in range(12):
        out, _ = checked(damaged_at(truth, (Kind.CHUNK, nth)))
        kept = [r.header.number for r in Truth(out).records if r.header.kind == Kind.CHECKPOINT]
        assert kept == points[: nth // 3]


RANGES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda p: (p[0], sum(p))), max_size=6
)


@given(RANGES, st.integers(0, 60), st.integers(0, 12))
def test_missing_numbers_are_told_from_explained_ones(
    ranges: list[tuple[int, int]], first: int, count: int
) -> None:
    """As a set of numbers would tell them."""
    missing = Missing()
    missing.add(ranges, 0)
    known = {n for a, b in ranges for n in range(a, b + 1)}
    wanted = [n for n in range(first, first + count) if n not in known]

    found = missing.unexplained(first, first + count - 1)

    assert [n for a, b in found for n in range(a, b + 1)] == wanted
    assert missing.next(first) == next(n for n in range(first, 200) if n not in known)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"missing": 7},
        {"missing": [[2, 1]]},
        {"missing": [[1, 2], [2, 3]]},
        {"missing": [[-1, 2]]},
        {"missing": [[1, 1 << 64]]},
        {"missing": [[1, True]]},
        {"missing": [[i, i] for i in range(0, 4096, 2)]},
        {"missing": [[9, 9]], "lost": []},
        {"missing": [[9, 9]], "lost": {"rows": -1}},
        {"missing": [[9, 9]], "lost": {"rows": 1, "ts": [2, 1]}},
        {"missing": [[9, 9]], "lost": {"records": 1}},
        {"missing": [[9, 9]], "lost": {"chunks": [1]}},
    ],
)
def test_a_recovery_that_makes_no_sense_explains_nothing(body: dict[str, object]) -> None:
    """It is damage itself, the gap stays damage, and recover replaces it."""
    out, _ = recovered(damaged_at(bases()["plain"], (Kind.CHUNK, 1)))
    bad = forge.with_part(out, Kind.RECOVERY, lambda p: replace(p, payload=pack(body)))
    numbers = [r.header.number for r in Truth(out).records]
    data = b"".join(forge.packed(p, n) for p, n in zip(forge.parts_of(bad), numbers, strict=True))

    assert not verify(opened(data)).good
    assert read(data)[1]
    fixed, report = checked(data)
    assert report.rows == 35
    assert verify(opened(fixed)).good
