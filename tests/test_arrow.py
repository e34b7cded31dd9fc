"""Tables from elsewhere become events exactly, or are refused."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import support
from hypothesis import given

from kcap import limits
from kcap.errors import BadInputError, KcapError, LimitError
from kcap.format.writer import CaptureWriter
from kcap.model.arrow import from_arrow
from kcap.model.classes import TypeClass
from kcap.model.side import Loss


def plain(table: pa.RecordBatch) -> pa.RecordBatch:
    """A table as another program would have it: no dictionary."""
    arrays = [a.dictionary_decode() if pa.types.is_dictionary(a.type) else a for a in table.columns]
    return pa.RecordBatch.from_arrays(arrays, names=table.schema.names)


@given(support.RECORDS)
def test_to_arrow_undone(records: list[Any]) -> None:
    """Any events as a table, with or without dictionaries, are the same events again."""
    batch = support.batch_of(records)
    expected = support.rows_of([batch])
    table = batch.to_arrow()

    for given_table in (table, plain(table), pa.Table.from_batches([table, table.slice(0, 0)])):
        assert support.rows_of([from_arrow(given_table)]) == expected


def test_a_written_table_reads_back() -> None:
    """A table in several pieces, each with dictionaries of its own, goes through a capture."""
    events = support.make_events(300)
    pieces = [from_arrow(events.slice(i, i + 100).to_arrow()).to_arrow() for i in (0, 100, 200)]
    names = sorted(set.intersection(*(set(p.schema.names) for p in pieces)))
    table = pa.Table.from_batches([p.select(names) for p in pieces])
    out = io.BytesIO()
    writer = CaptureWriter(out)

    writer.write(from_arrow(table, [Loss("lost", 1)]))
    writer.close()

    batches, _ = support.read(out.getvalue())
    assert support.rows_of(batches) == support.rows_of([events.select(names)])
    assert [s.count for b in batches for s in b.before if isinstance(s, Loss)] == [1]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("pid", pa.array([1, None, 3], pa.uint8()), [1, None, 3]),
        ("pid", pa.array([1, None], pa.uint64()), [1, None]),
        ("pid", pa.array([7, None, 7]).dictionary_encode(), [7, None, 7]),
        ("ts", pa.array([datetime(2026, 1, 1, tzinfo=UTC)]), [1767225600 * 10**9]),
        ("ts", pa.array([5, None], pa.timestamp("us", "Europe/Berlin")), [5000, None]),
        ("event", pa.array(["open", None], pa.large_utf8()), ["open", None]),
        (
            "event",
            pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), ["open", None]),
            ["open", None, None],
        ),
        ("arg_x__bin", pa.array([b"\xff", None], pa.large_binary()), [b"\xff", None]),
        ("arg_x__f64", pa.array([0.5, None], pa.float32()), [0.5, None]),
        (
            "arg_x__list",
            pa.array([["a"], [], None], pa.large_list(pa.large_utf8())),
            [["a"], [], None],
        ),
        ("arg_x__u64__2", pa.array([1 << 63], pa.uint64()), [1 << 63]),
        ("arg_x__str__size", pa.array([70_000]), [70_000]),
    ],
)
def test_other_arrow_types(name: str, values: pa.Array, expected: list[Any]) -> None:
    """What a class holds exactly is taken, whatever Arrow calls it."""
    batch = from_arrow(pa.table({name: values}))

    assert batch.array(name).to_pylist() == expected
    assert batch.columns[name].values.null_count == 0


def test_a_column_of_nulls_is_absent() -> None:
    """No value, no column; also of Arrow's null type."""
    batch = from_arrow(pa.table({"pid": pa.array([None], pa.int64()), "tid": pa.nulls(1)}))

    assert (len(batch), dict(batch.columns)) == (1, {})


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("path", pa.array(["a"]), "path is no column's name"),
        ("arg_no_home", pa.array(["a"]), "arg_no_home__str"),
        ("pid", pa.array([1.0]), "double"),
        ("pid", pa.array(["1"]), "string"),
        ("pid", pa.array([1 << 63], pa.uint64()), "column pid"),
        ("event", pa.array([1]), "int64"),
        ("event", pa.array([b"a"]), "binary"),
        ("event", pa.array([b"\xff"]).view(pa.utf8()), "UTF"),
        ("ts", pa.array([1 << 62], pa.timestamp("s")), "column ts"),
        ("arg_x__u64", pa.array([5], pa.uint64()), "63 bits"),
        ("arg_x__list", pa.array(["a"]), "string"),
        ("arg_x__list", pa.array([[1]]), "int64"),
        ("arg_x__list", pa.array([["a", None]]), "missing item"),
        ("arg_x__list_i64", pa.array([["a"]]), "string"),
        ("arg_x__bool__bool", pa.array([True]), "no column's name"),
    ],
)
def test_what_would_change_is_refused(name: str, values: pa.Array, said: str) -> None:
    """A name that says no class, or a value the class cannot hold, ends in one clear error."""
    with pytest.raises(BadInputError) as caught:
        from_arrow(pa.table({name: values}))

    assert said in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event", "a" * (limits.VALUE_BYTES + 1)),
        ("arg_x__bin", bytes(limits.VALUE_BYTES + 1)),
        ("arg_x__list_i64", [1] * (limits.LIST_VALUE_ITEMS + 1)),
        ("arg_x__list", ["a" * (limits.VALUE_BYTES // 2)] * 2 + ["a"]),
    ],
)
def test_limits(name: str, value: Any) -> None:
    """What the format does not take is refused here, and one byte or item less is taken."""
    with pytest.raises(LimitError):
        from_arrow(pa.table({name: [value]}))

    assert len(from_arrow(pa.table({name: [value[:-1]]}))) == 1


def test_two_columns_of_a_name() -> None:
    """Arrow allows it, events do not."""
    twice = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["pid", "pid"])

    with pytest.raises(KcapError, match="two columns pid"):
        from_arrow(twice)


def test_rows_are_kept() -> None:
    """The rows of a sparse column are those that are not null."""
    values = np.array([5, 6, 7, 8])
    batch = from_arrow(pa.table({"pid": pa.array(values, mask=values % 2 == 0)}))
    column = batch.columns["pid"]

    assert column.cls is TypeClass.I64
    assert column.rows is not None
    assert column.rows.tolist() == [0, 2]
