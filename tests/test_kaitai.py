"""A parser that Kaitai Struct made of spec/kcap.ksy reads captures as kcap does.

kcap had no part in it: where the two disagree, the description or the code is wrong.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vectors
from kaitai import reader
from kaitai.reader import Kcap, Kind, Reading
from kaitaistruct import KaitaiStructError, ValidationFailedError
from support import opened, read

from kcap.format import body, payloads
from kcap.format.chunk_index import ChunkIndex
from kcap.model.batch import Batch
from kcap.model.side import Snapshot

HERE = Path(__file__).resolve().parent
FIRST = HERE.parent / "fixtures" / "first.kcap"
VALID = sorted((vectors.FOLDER / "valid").glob("*.kcap"))
FILES = [FIRST, *VALID]


def named(path: Path) -> str:
    """A file in the name of a test."""
    return path.stem


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as texts that tell all values apart."""
    return [vectors.row_line(row) for row in rows]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_rows_and_states_are_read_alike(path: Path) -> None:
    """Every row of events and of state tables, in order, value by value."""
    reading = Reading(path.read_bytes())
    batches, _ = read(path.read_bytes())
    states = [s for b in batches for s in b.before if isinstance(s, Snapshot)]

    assert lines(reading.rows) == lines(vectors.rows_of(*batches))
    assert [{n: lines(rows) for n, rows in s.items()} for s in reading.states] == [
        {n: lines(vectors.rows_of(table)) for n, table in s.tables.items()} for s in states
    ]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_records_are_read_alike(path: Path) -> None:
    """Headers, the fixed parts of payloads and bodies say what kcap reads."""
    ours = list(opened(path.read_bytes()).scanner().records())
    theirs = reader.parsed(path.read_bytes())

    assert len(theirs) == len(ours)
    for mine, found in zip(ours, theirs, strict=True):
        head = (found.kind, found.flags, found.version, found.len_payload, found.number)
        assert head == mine.header[:5]  # type: ignore[union-attr]
        assert found.payload_crc == mine.header.payload_crc  # type: ignore[union-attr]
        if found.kind in COMPARED:
            COMPARED[found.kind](mine.payload, found.payload)  # type: ignore[union-attr]


def same_header(raw: memoryview, found: Any) -> None:
    mine = payloads.FileHeader.unpack(raw)
    said = (found.file_id, found.created_ns, reader.body(found.body), found.major, found.minor)
    assert said == (mine.file_id, mine.created_ns, mine.meta, mine.major, mine.minor)


def same_body(raw: memoryview, found: Any) -> None:
    assert reader.body(found) == body.unpack(raw, "", 1 << 24)


def same_index(raw: memoryview, found: Any) -> None:
    mine = ChunkIndex.unpack(raw)
    assert (found.number, found.num_rows) == (mine.number, mine.rows)
    bounds = [
        (getattr(found, f"{n}_min"), getattr(found, f"{n}_max")) for n in ("ts", "seq", "ord")
    ]
    assert bounds == [mine.ts, mine.seq, mine.ord]
    counts = (found.num_backward, found.num_timeless, found.num_state_rows)
    assert counts == (mine.backward, mine.timeless, mine.state_rows)
    assert {t.name.decode(): t.num_events for t in found.types} == mine.types
    sections = {s.tag: s.content for s in found.sections}
    pids = sections.get(Kcap.SectionTag.pids)
    strings = sections.get(Kcap.SectionTag.strings)
    assert (pids is None, strings is None) == (mine.pids is None, mine.strings is None)
    if pids is not None and mine.pids is not None:
        assert reader.pids(pids) == mine.pids.tolist()
    if strings is not None and mine.strings is not None:
        words = [w for block in strings.blocks for w in block.words]
        assert b"".join(w.to_bytes(4, "little") for w in words) == mine.strings.bits


def same_table(found: Any, mine: Any) -> None:
    entries = [
        (e.ofs_record, e.len_record, e.ofs_index, e.number, e.num_rows, *bounds_of(e))
        for e in found.table
    ]
    assert entries == [tuple(e) for e in mine.chunks.tolist()]
    assert (found.file_id, found.chain) == (mine.file_id, mine.chain)
    assert reader.body(found.totals.body) == mine.totals


def bounds_of(entry: Any) -> tuple[int, int, int, int]:
    return entry.ts_min, entry.ts_max, entry.ord_min, entry.ord_max


def same_checkpoint(raw: memoryview, found: Any) -> None:
    mine = payloads.Checkpoint.unpack(raw)
    same_table(found, mine)
    assert (found.ofs_previous, found.previous_hash) == (mine.previous, mine.previous_hash)


def same_footer(raw: memoryview, found: Any) -> None:
    same_table(found, payloads.Footer.unpack(raw))
    place = (found.ofs_footer, found.len_payload)
    assert place == payloads.footer_place(bytes(raw[-24:]))


COMPARED: dict[int, Callable[[memoryview, Any], None]] = {
    Kind.file_header: same_header,
    Kind.source: same_body,
    Kind.schema: same_body,
    Kind.loss: same_body,
    Kind.note: same_body,
    Kind.recovery: same_body,
    Kind.chunk_index: same_index,
    Kind.checkpoint: same_checkpoint,
    Kind.footer: same_footer,
}


@pytest.mark.parametrize("path", VALID, ids=named)
def test_blobs_are_read_alike(path: Path) -> None:
    """Manifests, and the bytes of every artifact with zeros for what is not there."""
    source = opened(path.read_bytes())

    found = list(reader.blobs(reader.parsed(path.read_bytes())))
    mine = list(source.manifests())

    for (said, _), manifest in zip(found, mine, strict=True):
        assert said == {**{n: getattr(manifest, n) for n in said}, "reasons": [*manifest.reasons]}
    assert [raw for _, raw in found] == [b"".join(source.blob(m, lenient=True)) for m in mine]
    for said, raw in found:
        assert said["sha256"] in (None, hashlib.sha256(raw).hexdigest())


def test_the_vectors_reach_every_type() -> None:
    """What the files above hold is every kind and structure that the description has."""
    seen: set[str] = set()
    types = {n: t for n, t in vars(Kcap).items() if isinstance(t, type) and hasattr(t, "_read")}
    with pytest.MonkeyPatch.context() as patch:
        for name, made in types.items():
            patch.setattr(made, "_read", _noted(name, made._read, seen))
        for path in FILES:
            Reading(path.read_bytes())
            list(reader.blobs(reader.parsed(path.read_bytes())))

    assert set(types) - seen == set()


def _noted(name: str, read_it: Callable[[Any], None], seen: set[str]) -> Callable[[Any], None]:
    def noting(self: Any) -> None:
        seen.add(name)
        read_it(self)

    return noting


# Negative controls


def test_a_changed_value_is_seen() -> None:
    """The comparison is of values: one row less, or another batch, is no agreement."""
    (path,) = [p for p in VALID if p.stem == "every-class"]
    reading = Reading(path.read_bytes())
    batches, _ = read(path.read_bytes())
    other = [
        Batch(b.rows, {n: c for n, c in b.columns.items() if n != "arg_b__f64"}) for b in batches
    ]

    assert lines(reading.rows) == lines(vectors.rows_of(*batches))
    assert lines(reading.rows) != lines(vectors.rows_of(*other))
    assert lines(reading.rows[1:]) != lines(vectors.rows_of(*batches))


def test_zeros_that_are_not_zero_are_refused() -> None:
    """The description says where zeros must stand."""
    (path,) = [p for p in VALID if p.stem == "one-event"]
    data = bytearray(path.read_bytes())
    data[32 + 20] = 1  # behind file_id, major and minor

    with pytest.raises((KaitaiStructError, ValidationFailedError)):
        reader.parsed(bytes(data))


# The compiler


def test_the_parser_is_what_the_compiler_makes(tmp_path: Path) -> None:
    """tests/kaitai/kcap.py is spec/kcap.ksy compiled; compile.js says how to get the compiler."""
    node = shutil.which("node")
    where = os.environ.get("NODE_PATH", "")
    needed = "require('kaitai-struct-compiler'); require('js-yaml')"
    if (
        node is None
        or subprocess.run([node, "-e", needed], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"no kaitai-struct-compiler and js-yaml for node in NODE_PATH={where!r}")

    subprocess.run([node, HERE / "kaitai" / "compile.js", tmp_path], check=True)

    made = (tmp_path / "kcap.py").read_text("utf-8")
    assert made == (HERE / "kaitai" / "kcap.py").read_text("utf-8")
