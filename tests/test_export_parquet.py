"""Parquet exports: every value is in them, of types that the columns' names say."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import support
from export_support import (
    layout_for,
    metadata_in,
    parquet,
    same_texts,
    table_in,
    texts_of,
    undone,
)
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import OutputError
from kcap.model import catalogue, naming
from kcap.model.arrow import from_arrow
from kcap.model.batch import EMPTY, Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss
from kcap.writers import parquet as parquet_writer
from kcap.writers.groups import Groups, rows_of_group
from kcap.writers.layout import Layout, Profile

EVENTS = support.make_events(600)
CHUNKS = st.integers(1, 30)


def cut(batch: Batch, rows: int) -> list[Batch]:
    """A batch in pieces."""
    return [batch.slice(i, i + rows) for i in range(0, batch.rows, rows)]


@given(support.RECORDS, CHUNKS)
def test_full_round_trip(records: list[Any], rows: int) -> None:
    """Events of every class come back exactly, floats by their bits, however they were cut."""
    batch = support.batch_of(records)
    data = parquet(cut(batch, rows), profile=Profile.FULL)

    assert support.rows_of([from_arrow(table_in(data))]) == support.rows_of([batch])


@given(support.RECORDS, CHUNKS)
def test_portable_round_trip(records: list[Any], rows: int) -> None:
    """The portable types lose nothing either: ts_ns is the time, int64 has the bits of uint64."""
    batch = support.batch_of(records)
    data = parquet(cut(batch, rows))

    assert support.rows_of([from_arrow(undone(table_in(data)))]) == support.rows_of([batch])


@given(support.RECORDS, CHUNKS)
def test_map_round_trip(records: list[Any], rows: int) -> None:
    """Every value outside the envelope is in a map, under its column's name, as exact text."""
    batch = support.batch_of(records)
    table = table_in(parquet(cut(batch, rows), "map"))

    found = [
        {f"arg_{k}" if k else "arg": v for k, v in args} | dict(extra)
        for args, extra in zip(table["args"].to_pylist(), table["extra"].to_pylist(), strict=True)
    ]
    expected = texts_of(batch)
    assert [_respelled(row) for row in found] == [_respelled(row) for row in expected] or all(
        same_texts(_respelled(a), _respelled(b)) for a, b in zip(found, expected, strict=True)
    )
    assert table["ts_ns"].to_pylist() == batch.array("ts").to_pylist()


def _respelled(row: dict[str, str]) -> dict[str, str]:
    """Columns of an argument without a name and with a class: arg__str is the key _str."""
    return {
        k.replace("arg__", "arg_", 1) if k.startswith("arg__") else k: v for k, v in row.items()
    }


@given(support.RECORDS, CHUNKS)
def test_narrow_round_trip(records: list[Any], rows: int) -> None:
    """Every value outside the envelope is a row, and an event without one is a row all the same."""
    batch = support.batch_of(records)
    table = table_in(parquet(cut(batch, rows), "narrow"))

    found: dict[int, dict[str, str]] = {}
    for row in table.to_pylist():
        fields = found.setdefault(row["ord"], {})
        if row["field"] is None:
            assert not fields
            continue
        cls = catalogue.class_of(row["field"])
        assert row["class"] == str(cls)
        fields[row["field"]] = row["value"]
        assert (row["value_i64"] is not None) == (cls is TypeClass.I64)
        assert (row["value_f64"] is not None) == (cls is TypeClass.F64)
        if cls is TypeClass.I64:
            assert str(row["value_i64"]) == row["value"]
    expected = texts_of(batch)
    assert sorted(found) == list(range(batch.rows))
    assert all(same_texts(found[i], expected[i]) for i in range(batch.rows))


def test_names_of_the_narrow_layout() -> None:
    """A row says the source's own name of its field, companions apart."""
    batch = support.batch_of([(1, {"é-é": 1, "pathname": b"\xff", "": True})])

    rows = table_in(parquet([batch], "narrow")).select(["field", "name"]).to_pylist()

    assert {r["field"]: r["name"] for r in rows} == {
        "arg__bool": "",
        "arg_pathname__bin": "pathname",
        f"{naming.argument('é-é')}__i64": "é-é",
    }
    cut = Batch(1, {"arg_x__str__raw": constant(TypeClass.BIN, b"\xff", 1)})
    assert table_in(parquet([cut], "narrow"))["name"].to_pylist() == ["x__raw"]


def test_the_portable_profile() -> None:
    """No unsigned integer, no ns, no dictionary: what Spark, Delta and Iceberg refuse."""
    for name in ("wide", "narrow", "map"):
        schema = table_in(parquet([EVENTS], name)).schema
        kinds = {leaf for field in schema for leaf in _leaves(field.type)}
        assert kinds <= {
            *(pa.int64(), pa.float64(), pa.bool_(), pa.utf8(), pa.binary()),
            pa.timestamp("us", "UTC"),
        }
    full = table_in(parquet([EVENTS], profile=Profile.FULL)).schema
    assert full.field("arg_big__u64").type == pa.uint64()
    assert full.field("ts").type == pa.timestamp("ns", "UTC")


def _leaves(kind: pa.DataType) -> set[pa.DataType]:
    if pa.types.is_map(kind):
        return _leaves(kind.key_type) | _leaves(kind.item_type)
    return _leaves(kind.value_type) if pa.types.is_list(kind) else {kind}


@pytest.mark.parametrize("ns", [-1, 0, -999, -1000, 1999, 2**63 - 1, -(2**63)])
def test_microseconds_are_rounded_down(ns: int) -> None:
    """So that an event stays in the time range it was in; ts_ns has it exactly."""
    batch = support.batch_of([(ns, {})])
    table = table_in(parquet([batch]))

    assert table["ts"].cast(pa.int64()).to_pylist() == [ns // 1000]
    assert table["ts_ns"].to_pylist() == [ns]


@given(support.RECORDS, support.RECORDS)
def test_types_depend_on_names(one: list[Any], other: list[Any]) -> None:
    """Whatever two exports hold, columns of one name have one type."""
    schemas = [
        {f.name: f.type for f in layout_for([support.batch_of(records)]).schema}
        for records in (one, other)
    ]

    assert all(schemas[0][name] == schemas[1][name] for name in schemas[0].keys() & schemas[1])


def test_other_programs_read_it(tmp_path: Path) -> None:
    """DuckDB and Polars see the rows and values that pyarrow sees, in every layout."""
    for name in ("wide", "narrow", "map"):
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(parquet(cut(EVENTS, 250), name))
        expected = pq.read_table(path)
        with duckdb.connect() as db:
            db.execute("SET timezone = 'UTC'")
            found = db.sql(f"SELECT * FROM '{path}'").to_arrow_table()
        assert found.select(["ord", "ts_ns"]).to_pylist() == (
            expected.select(["ord", "ts_ns"]).to_pylist()
        )
        texts = [f.name for f in expected.schema if f.type == pa.utf8()]
        assert found.select(texts).to_pylist() == expected.select(texts).to_pylist()
        assert pl.read_parquet(path).select(texts).rows() == [
            tuple(row.values()) for row in expected.select(texts).to_pylist()
        ]


def test_what_the_documents_say_of_sql(tmp_path: Path) -> None:
    """The expressions of docs/export.md for maps, unsigned integers and time work in DuckDB."""
    columns = {
        "ts": constant(TypeClass.I64, 1_700_000_000_000_000_001, 1),
        "arg_pathname": constant(TypeClass.STR, "/etc/passwd", 1),
        "arg_addr__u64": constant(TypeClass.U64, 2**64 - 4096, 1),
    }
    batch = Batch(1, columns)
    for name in ("wide", "map"):
        (tmp_path / f"{name}.parquet").write_bytes(parquet([batch], name))
    with duckdb.connect() as db:
        wide, maps = f"'{tmp_path}/wide.parquet'", f"'{tmp_path}/map.parquet'"
        assert db.sql(f"SELECT args['pathname'] FROM {maps}").fetchall() == [("/etc/passwd",)]
        assert db.sql(f"SELECT hex(arg_addr__u64) FROM {wide}").fetchall() == [
            ("FFFFFFFFFFFFF000",)
        ]
        assert db.sql(
            f"SELECT arg_addr__u64::HUGEINT + 18446744073709551616 FROM {wide}"
        ).fetchall() == [(2**64 - 4096,)]
        assert db.sql(
            f"SELECT count(*) FROM {wide} WHERE ts >= TIMESTAMPTZ '2023-11-14 00:00:00Z'"
        ).fetchall() == [(1,)]
        assert db.sql(f"SELECT epoch_ns(max(ts)) - min(ts_ns) FROM {wide}").fetchall() == [(-1,)]


@pytest.mark.parametrize("name", ["wide", "map", "narrow"])
def test_checksums_find_every_flip(name: str) -> None:
    """A flipped bit of any page is an error where checksums are compared, and only with them."""
    caught = silent = 0
    for checksums in (True, False):
        data = parquet([support.make_events(300)], name, checksums=checksums)
        expected = table_in(data)
        for at in _page_bytes(data, 60):
            damaged = bytearray(data)
            damaged[at] ^= 1 << at % 8
            try:
                found = table_in(bytes(damaged))
            except (pa.ArrowException, OSError):
                caught += checksums
                continue
            if checksums:
                assert found.equals(expected), "a flip went unseen"
            silent += not checksums and not found.equals(expected)

    assert caught >= 50
    # Negative control: without checksums some flips change values in silence.
    assert silent > 0


def _page_bytes(data: bytes, count: int) -> list[int]:
    """Places in the compressed content of pages, spread over all columns."""
    rng = random.Random(5)
    group = pq.read_metadata(io.BytesIO(data)).row_group(0)
    places = []
    for _ in range(count):
        column = group.column(rng.randrange(group.num_columns))
        start = column.dictionary_page_offset or column.data_page_offset
        size = column.total_compressed_size
        places.append(start + rng.randrange(size // 2, size))
    return places


def test_deterministic() -> None:
    """The same events give the same bytes, in every layout and profile."""
    for name in ("wide", "narrow", "map"):
        for profile in Profile:
            one = parquet(cut(EVENTS, 100), name, profile)
            assert parquet(cut(EVENTS, 100), name, profile) == one
    assert parquet([EVENTS.slice(0, 599)]) != parquet([EVENTS])


def test_metadata() -> None:
    """The file says what its columns mean, where events come from and what was lost."""
    loss = Loss("lost", 7, "why", recorded=True)
    columns = {name: constant(TypeClass.I64, 9, 1) for name in ("ts", "arg_sig")}
    batch = Batch(1, columns, (support.SOURCE, loss))
    data = parquet([batch, EMPTY.with_before([Loss("torn", None, "the end")])])
    found = metadata_in(data)

    assert found["kcap.events"] == 1
    assert found["kcap.export"]["layout"] == "wide"
    assert [s["collector"] for s in found["kcap.sources"]] == ["test"]
    assert [(entry["kind"], entry["count"]) for entry in found["kcap.losses"]] == [
        ("lost", 7),
        ("torn", None),
    ]
    assert found["kcap.columns"]["ts"]["meaning"].startswith("event time")
    decoder = found["kcap.columns"]["arg_sig"]["decoder"]
    assert dict(found["kcap.decoders"][decoder])[9] == "SIGKILL"
    assert pq.read_metadata(io.BytesIO(data)).metadata[b"kcap.version"]


def test_metadata_is_bounded() -> None:
    """A million losses are counted, a thousand listed."""
    losses = [Loss("lost", 1, str(i)) for i in range(1200)]

    found = metadata_in(parquet([EVENTS.with_before(losses)]))["kcap.losses"]

    assert len(found) == 1001
    assert found[-1]["count"] == 200


def test_text_that_a_filter_took_away_is_not_in_the_file() -> None:
    """A dictionary holds only what the rows have: what was cut out must not leak."""
    records = [(i, {"pathname": f"/secret/{i}" if i % 2 else "/open"}) for i in range(100)]
    batch = support.batch_of(records)
    kept = batch.take(np.arange(0, 100, 2, dtype=np.int32))
    assert b"secret" in bytes(kept.columns["arg_pathname__str"].values.dictionary.buffers()[2])

    for name, column in (("wide", "arg_pathname__str"), ("narrow", "value")):
        data = parquet([kept], name)
        with pq.ParquetFile(io.BytesIO(data), read_dictionary=[column]) as file:
            found = file.read(columns=[column])[column].chunk(0)
        assert found.dictionary.to_pylist() == ["/open"]


def test_a_dictionary_may_hold_an_entry_twice() -> None:
    """Arrow's writer leaves memory in the file then; nothing of that reaches ours."""
    entries = pa.array(["a" * 50, "b" * 50, "a" * 50, "c" * 50])
    codes = pa.array(np.arange(400, dtype=np.int32) % 4)
    values = pa.DictionaryArray.from_arrays(codes, entries)
    data = parquet([Batch(400, {"cmdline": Column(TypeClass.STR, values)})])
    arrows = io.BytesIO()
    pq.write_table(pa.table({"cmdline": values}), arrows)

    def encodings(file: bytes) -> set[str]:
        return set(pq.read_metadata(io.BytesIO(file)).row_group(0).column(0).encodings)

    assert table_in(data)["cmdline"].to_pylist() == entries.to_pylist() * 100
    assert "RLE_DICTIONARY" in encodings(data)
    # Negative control: such a dictionary makes Arrow give up, which is when it happens.
    assert "RLE_DICTIONARY" not in encodings(arrows.getvalue())


def test_large_dictionaries_are_written_once() -> None:
    """Text that hardly repeats is in the file once, not in a dictionary and behind it."""
    rng = random.Random(1)
    records = [(i, {"pathname": rng.randbytes(60).hex()}) for i in range(20_000)]
    batch = support.batch_of(records)
    plain = batch.columns["arg_pathname__str"].values.dictionary.nbytes
    assert plain > parquet_writer.DICTIONARY_BYTES
    data = parquet([batch])

    column = next(
        c
        for c in map(pq.read_metadata(io.BytesIO(data)).row_group(0).column, range(5))
        if c.path_in_schema == "arg_pathname__str"
    )
    assert column.total_uncompressed_size < 1.1 * plain
    assert table_in(data)["arg_pathname__str"].to_pylist() == [r[1]["pathname"] for r in records]


def test_floats_keep_their_bits() -> None:
    """NaNs of different bits and the two zeros stay apart."""
    bits = [0x7FF8000000000001, 0x7FF8000000000002, 0, 1 << 63, 0xFFF8000000000003]
    values = [struct.unpack("<d", struct.pack("<Q", b))[0] for b in bits] * 50
    batch = support.batch_of([(i, {"x": v, "l": [v, v]}) for i, v in enumerate(values)])

    found = np.asarray(table_in(parquet([batch]))["arg_x__f64"]).view(np.uint64)

    assert found.tolist() == bits * 50


def test_small_batches_become_one_row_group() -> None:
    """A slow recording's many chunks are no many row groups, and full chunks stay as they are."""
    data = parquet(cut(EVENTS, 10))
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups == 1

    groups = Groups()
    rows = rows_of_group(len(EVENTS.columns))
    big = Batch(rows, {"pid": Column(TypeClass.I64, pa.array(np.arange(rows)))})
    assert [b.rows for b in (*groups.add(big), *groups.add(big), *groups.end())] == [rows, rows]


def test_hostile_text_is_written_within_bounds() -> None:
    """One text of 64 KiB in every row is cut into groups that fit, not spelled out in one piece."""
    entries = pa.array([chr(65 + i) * 65_000 for i in range(20)])
    codes = pa.array(np.arange(20_000, dtype=np.int32) % 20)
    column = Column(TypeClass.STR, pa.DictionaryArray.from_arrays(codes, entries))
    batch = Batch(20_000, {"cmdline": column})
    for name in ("wide", "map"):
        assert len(list(Groups(weigh=layout_for([batch], name).weigh).add(batch))) > 10

    data = parquet([batch])

    assert pq.read_metadata(io.BytesIO(data)).num_row_groups > 10
    assert table_in(data).num_rows == 20_000


def test_too_many_columns() -> None:
    """A table wider than anything reads well is refused, with the layout that holds it."""
    columns = {f"arg_a{i}__i64": TypeClass.I64 for i in range(3000)}

    with pytest.raises(OutputError) as caught:
        parquet_writer.Parquet(io.BytesIO(), Layout(columns, Profile.PORTABLE), None)  # type: ignore[arg-type]

    assert "--schema map" in str(caught.value.hint)


def test_no_events() -> None:
    """A table of no rows has its columns."""
    for name in ("wide", "narrow", "map"):
        layout = layout_for([EVENTS], name)
        table = table_in(parquet([EVENTS.slice(0, 0), EMPTY], name))
        assert table.num_rows == 0
        if name != "wide":
            assert table.schema.names == layout.schema.names
