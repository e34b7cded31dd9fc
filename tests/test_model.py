"""Shapes, texts, records and batches give back exactly what went in."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kcap import limits
from kcap.model import batch as batches
from kcap.model import naming, shape, text
from kcap.model.batch import Batch, Column
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import I64_MAX, I64_MIN, U64_MAX, TypeClass
from kcap.model.side import Loss, SourceInfo

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)  # lone surrogates too
SAFE_TEXT = st.text(max_size=8)
I64 = st.integers(I64_MIN, I64_MAX)
INTEGERS = st.one_of(I64, st.integers(1 << 63, U64_MAX), st.integers(-(1 << 200), 1 << 200))
NAN_BITS = st.integers(1, (1 << 52) - 1).map(lambda bits: bits | 0x7FF0_0000_0000_0000)
FLOATS = st.one_of(
    st.floats(allow_nan=False),
    NAN_BITS.map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]),
)
SCALARS = st.one_of(INTEGERS, FLOATS, st.booleans(), ANY_TEXT, st.binary(max_size=8))
LISTS = st.one_of(
    *(st.lists(items, max_size=4) for items in (INTEGERS, FLOATS, st.booleans(), ANY_TEXT)),
    st.lists(st.one_of(INTEGERS, SAFE_TEXT, st.none()), max_size=4),
)
STRUCTURES = st.recursive(
    st.one_of(st.none(), INTEGERS, st.booleans(), ANY_TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
).filter(lambda value: isinstance(value, (list, dict)))
VALUES = st.one_of(st.none(), SCALARS, LISTS, STRUCTURES)
HOMES = st.none() | st.sampled_from(TypeClass)
ITEMS = st.builds(shape.Item, ANY_TEXT, ANY_TEXT, st.booleans())


def bits(value: Any) -> Any:
    """A value that compares equal only to itself: floats by their bits, types told apart."""
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    return (type(value).__name__, value)


def one_row(value: Any, home: TypeClass | None = None) -> tuple[dict[str, object], Batch]:
    """The columns that one value needs."""
    builder = RecordBuilder()
    builder.add(builder.layout([Field("arg_x", home)]), [value])
    made = builder.finish()
    return made.to_pylist()[0], made


def given_back(row: dict[str, Any], base: str, home: TypeClass | None) -> Any:
    """The value that the columns of one field hold, as a writer of a foreign form would do it."""
    names = [n for n in row if naming.parts(n)[0] == base and not n.endswith(("__raw", "__size"))]
    if not names:
        return None
    (name,) = names
    cls, value = naming.class_of(name, home), row[name]
    if f"{name}__raw" in row:
        return row[f"{name}__raw"]
    return json.loads(value) if cls is TypeClass.JSON else value


# Shapes


@given(st.lists(ITEMS, max_size=6), st.none() | st.lists(ITEMS, max_size=3))
@example([shape.Item("", ""), shape.Item("", "", null=True)], [])
@example([shape.Item("!a\\", ",|:\\"), shape.Item("\udc80", "\\udc80")], None)
def test_a_shape_comes_back_from_its_text(
    arguments: list[shape.Item], record: list[shape.Item] | None
) -> None:
    """Names, types, order and nulls of any record survive as valid text."""
    written = shape.encode(arguments, record)

    written.encode("utf-8")
    assert shape.decode(written) == shape.Shape(tuple(record or ()), tuple(arguments))


@given(st.lists(ITEMS, max_size=3), st.lists(ITEMS, max_size=3))
def test_two_shapes_have_two_texts(one: list[shape.Item], other: list[shape.Item]) -> None:
    """Different fields never have the same shape."""
    assert (shape.encode(one) == shape.encode(other)) == (one == other)


@given(st.text(st.sampled_from("ab\\,:!|u0"), max_size=20))
def test_any_text_decodes_as_a_shape(hostile: str) -> None:
    """A hostile shape is read as far as it goes, and what was read can be written."""
    read = shape.decode(hostile)

    assert shape.decode(shape.encode(read.arguments, read.record)) == read


# Texts


@given(st.one_of(ANY_TEXT, st.binary(max_size=12)))
@example(b"\\xff")
@example(b"\xff")
def test_clean_text_keeps_the_exact_bytes(value: str | bytes) -> None:
    """Cleaned text is valid, and what was escaped is kept as it was (spec 5.4)."""
    cleaned, raw = text.clean(value)

    cleaned.encode("utf-8")
    exact = cleaned.encode() if raw is None else raw
    assert exact == (value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))


@given(st.text(st.sampled_from("aé€😀"), min_size=1), st.integers(0, 3))
def test_a_cut_falls_between_characters(pattern: str, extra: int) -> None:
    """Over-long text keeps its longest prefix of whole characters within the limit."""
    size = len(pattern.encode())
    long = pattern * (limits.VALUE_BYTES // size + 1) + "a" * extra

    kept, length = text.cut(long)

    assert length == len(long.encode()) > limits.VALUE_BYTES
    assert long.startswith(kept)
    following = long[len(kept)].encode()
    assert limits.VALUE_BYTES - len(following) < len(kept.encode()) <= limits.VALUE_BYTES
    assert text.cut(kept) == (kept, None)


@given(STRUCTURES)
def test_json_text_is_valid_and_exact(value: object) -> None:
    """The text of a structure is valid UTF-8 and parses to the same structure, in its order."""
    written = text.json_text(value)

    written.encode("utf-8")
    assert bits(json.loads(written)) == bits(value)


def test_json_text_has_no_depth_limit_of_its_own() -> None:
    """A structure nested deeper than Python can call is written as a shallow one would be."""
    value: object = {"é": [1, None]}
    for _ in range(3000):
        value = [{"a": 1, "b": value, "c": []}, "x"]

    written = text.json_text(value)

    level = '[{"a":1,"b":', ',"c":[]},"x"]'
    assert written == level[0] * 3000 + '{"é":[1,null]}' + level[1] * 3000
    assert text.depth(value) == 6002


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_printed_steers_a_terminal(value: str) -> None:
    """Escaped text and JSON literals hold no control character; the literal reads back."""
    for shown in (text.printable(value), text.json_string(value)):
        assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066" for c in shown)
    assert json.loads(text.json_string(value)) == value


# Records


@given(VALUES, HOMES)
@example(1 << 63, None)
@example(I64_MIN, TypeClass.U64)
@example(U64_MAX + 1, TypeClass.I64)
@example(-0.0, None)
@example([], None)
@example([], TypeClass.LIST_I64)
@example("", None)
@example(b"", TypeClass.BIN)
@example([1 << 63, -1], None)
@example({"a": 1 << 80}, None)
def test_every_value_comes_back(value: Any, home: TypeClass | None) -> None:
    """A value of any kind, of any home class, is given back exactly."""
    row, made = one_row(value, home)

    got = given_back(row, "arg_x", home)
    if isinstance(value, str) and isinstance(got, bytes):
        got = got.decode("utf-8", "surrogatepass")
    if isinstance(value, bytes) and isinstance(got, str):
        got = got.encode()
    assert bits(got) == bits(value)
    assert made.before == ()


@given(st.lists(st.lists(VALUES, min_size=2, max_size=2), max_size=8))
def test_the_class_of_a_value_depends_on_it_alone(rows: list[list[Any]]) -> None:
    """Many records together get the columns that each gets by itself, in any company (spec 5.2)."""
    fields = [Field("arg_x"), Field("arg_y", TypeClass.I64)]
    builder = RecordBuilder()
    layout = builder.layout(fields)
    for row in rows:
        builder.add(layout, row)

    together = builder.finish().to_pylist()

    alone = []
    for row in rows:
        builder.add(layout, row)
        alone += builder.finish().to_pylist()
    assert bits(together) == bits(alone)


@given(st.lists(st.integers(0, 2), max_size=12))
def test_layouts_keep_row_order(order: list[int]) -> None:
    """Records of several layouts come out in the order they were added, absent fields absent."""
    builder = RecordBuilder()
    layouts = [
        builder.layout([Field("pid", TypeClass.I64)], "pid:int"),
        builder.layout([None, Field("pid", TypeClass.I64)], "x:int,pid:int"),
        builder.layout([Field("comm", TypeClass.STR)]),
    ]
    values: list[Sequence[object]] = [[1], [0, 2], ["a"]]
    expected = [{"pid": 1, "shape": "pid:int"}, {"pid": 2, "shape": "x:int,pid:int"}, {"comm": "a"}]
    for kind in order:
        builder.add(layouts[kind], values[kind])

    assert len(builder) == len(order)
    assert builder.finish().to_pylist() == [expected[kind] for kind in order]
    assert len(builder) == 0


@pytest.mark.parametrize(
    ("value", "home", "column", "kept", "size"),
    [
        ("é" * 40_000, None, "arg_x__str", "é" * 32_768, 80_000),
        ("a" + "€" * 30_000, None, "arg_x__str", "a" + "€" * 21_845, 90_001),
        (b"\x00" * 70_000, None, "arg_x__bin", b"\x00" * 65_536, 70_000),
        (["a" * 70_000], None, "arg_x__json", '["' + "a" * 65_534, 70_004),
    ],
)
def test_an_over_long_value_is_cut_and_says_so(
    value: object, home: TypeClass | None, column: str, kept: object, size: int
) -> None:
    """A value over the limit keeps its start, its true length stands beside it, the loss counts.

    (spec 3.2)
    """
    row, made = one_row(value, home)

    assert row == {column: kept, f"{column}__size": size}
    (loss,) = made.before
    assert isinstance(loss, Loss)
    assert (loss.kind, loss.count) == ("cut", 1)


def test_a_value_at_the_limit_is_whole() -> None:
    """Negative control: exactly 64 KiB is not cut."""
    row, made = one_row("a" * limits.VALUE_BYTES)

    assert row == {"arg_x__str": "a" * limits.VALUE_BYTES}
    assert made.before == ()


@pytest.mark.parametrize("count", [20_000, 70_000])
def test_over_long_invalid_text_tells_its_true_length(count: int) -> None:
    """Of bytes that are no text the escaped form is cut, the exact bytes as far as they fit.

    (spec 3.2)
    """
    row, made = one_row(b"\xff" * count, TypeClass.STR)

    assert row["arg_x"] == ("\\xff" * count)[: limits.VALUE_BYTES]
    assert row["arg_x__raw"] == b"\xff" * min(count, limits.VALUE_BYTES)
    assert row["arg_x__size"] == count
    assert [side.count for side in made.before if isinstance(side, Loss)] == [1]


def test_an_over_long_shape_is_cut_and_says_so() -> None:
    """A shape has the limit of any value; rows with a short one are not touched."""
    builder = RecordBuilder()
    long = builder.layout([Field("pid", TypeClass.I64)], "n" * 70_000)
    same_start = builder.layout([Field("pid", TypeClass.I64)], "n" * 70_001)
    short = builder.layout([Field("pid", TypeClass.I64)], "pid:int")
    for layout in (long, short, same_start):
        builder.add(layout, [1])

    made = builder.finish()

    start = "n" * limits.VALUE_BYTES
    assert made.to_pylist() == [
        {"pid": 1, "shape": start, "shape__size": 70_000},
        {"pid": 1, "shape": "pid:int"},
        {"pid": 1, "shape": start, "shape__size": 70_001},
    ]
    assert made.columns["shape"].values.dictionary.to_pylist() == [start, "pid:int"]
    assert [side.count for side in made.before if isinstance(side, Loss)] == [2]


@pytest.mark.parametrize("depth", [limits.JSON_DEPTH, limits.JSON_DEPTH + 1, 5000])
def test_deep_structures_become_text(depth: int) -> None:
    """What nests deeper than a reader of JSON need go is kept as text."""
    value: object = 1
    for _ in range(depth):
        value = {"a": value}

    row, _ = one_row(value)

    name = "arg_x__json" if depth <= limits.JSON_DEPTH else "arg_x__str"
    assert row == {name: '{"a":' * depth + "1" + "}" * depth}


@pytest.mark.parametrize(
    ("value", "column"),
    [
        ([""] * limits.LIST_VALUE_ITEMS, "arg_x__list"),
        ([""] * (limits.LIST_VALUE_ITEMS + 1), "arg_x__json"),
        ([0] * (limits.LIST_VALUE_ITEMS + 1), "arg_x__json"),
        (["a" * 32_768] * 2, "arg_x__list"),
        ([True, 1], "arg_x__json"),
        (["\ud800"], "arg_x__json"),
        ([1, 1 << 63], "arg_x__list_u64"),
    ],
)
def test_lists_have_limits(value: list[object], column: str) -> None:
    """A list within the limits and of one class is a list, any other is json."""
    row, _ = one_row(value)

    assert column in row


def test_a_thousand_names() -> None:
    """Sparse columns cost nothing where they are absent, however many there are."""
    builder = RecordBuilder()
    for i in range(1000):
        builder.add(builder.layout([Field(naming.argument(f"n{i}"))]), [i])

    made = builder.finish()

    assert len(made.columns) == 1000
    assert made.to_pylist() == [{f"arg_n{i}__i64": i} for i in range(1000)]
    assert sum(len(column) for column in made.columns.values()) == 1000


def test_no_events() -> None:
    """A builder without records gives an empty batch, side records and all."""
    side = SourceInfo("test")

    made = RecordBuilder().finish(before=[side])

    assert (made.rows, dict(made.columns), made.before) == (0, {}, (side,))
    assert made.to_arrow().num_rows == 0
    assert made.to_pylist() == batches.EMPTY.to_pylist() == []


# Batches


@st.composite
def any_batch(draw: st.DrawFn) -> Batch:
    """A batch of every class, dense and sparse columns."""
    kinds = [I64, SAFE_TEXT, st.binary(max_size=4), st.booleans(), FLOATS, st.lists(I64), SAFE_TEXT]
    builder = RecordBuilder()
    layout = builder.layout([Field(f"arg_{i}", TypeClass.I64) for i in range(len(kinds))])
    dense = draw(st.booleans())
    for _ in range(draw(st.integers(0, 8))):
        values = [
            draw(kind if dense or i == 0 else st.none() | kind) for i, kind in enumerate(kinds)
        ]
        builder.add(layout, values)
    return builder.finish(before=[SourceInfo("test")])


def check(made: Batch) -> None:
    """The invariants of every batch."""
    for column in made.columns.values():
        assert column.values.type == column.cls.arrow
        assert column.values.null_count == 0
        assert len(column) > 0
        if column.rows is None:
            assert len(column) == made.rows
        else:
            assert column.rows.dtype == np.int32
            assert len(column.rows) == len(column) < made.rows
            assert (np.diff(column.rows) > 0).all()
            assert 0 <= column.rows[0] <= column.rows[-1] < made.rows


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches hold the same events."""
    return one.rows == other.rows and bits(one.to_pylist()) == bits(other.to_pylist())


@given(any_batch(), st.lists(st.integers(0, 10), max_size=4))
def test_slices_put_together_are_the_whole(made: Batch, cuts: list[int]) -> None:
    """Cutting anywhere and concatenating changes nothing, side records included."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < made.rows}), made.rows]
    parts = [made.slice(start, stop) for start, stop in pairwise(edges)]

    for part in parts:
        check(part)
    whole = batches.concat(parts)
    check(whole)
    assert same(whole, made)
    assert whole.before == made.before


@given(any_batch(), st.data())
def test_take_copies_ranges_as_it_copies_rows(made: Batch, data: st.DataObject) -> None:
    """Rows that are taken range by range are those that are taken one by one, in any order."""
    most = 2 * made.rows
    wanted = data.draw(st.lists(st.integers(0, max(made.rows - 1, 0)), max_size=most))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_RANGE_ROWS", 1)
        taken = made.take(np.array(wanted, np.int32))

    check(taken)
    rows = made.to_pylist()
    assert bits(taken.to_pylist()) == bits([rows[i] for i in wanted])
    assert taken.before == made.before


@given(any_batch(), st.data())
def test_take_is_picking_rows(made: Batch, data: st.DataObject) -> None:
    """Taking rows gives those rows, and equals slicing where they are a range."""
    wanted = sorted(data.draw(st.sets(st.integers(0, max(made.rows - 1, 0)), max_size=made.rows)))
    rows = made.to_pylist()

    taken = made.take(np.array(wanted, np.int32))

    check(taken)
    assert bits(taken.to_pylist()) == bits([rows[i] for i in wanted])
    assert taken.before == made.before
    low, high = sorted(data.draw(st.tuples(st.integers(0, made.rows), st.integers(0, made.rows))))
    assert same(made.take(np.arange(low, high, dtype=np.int32)), made.slice(low, high))


@given(any_batch(), st.integers(0, 8))
def test_compact_keeps_values_and_drops_entries(made: Batch, start: int) -> None:
    """A compacted part has the same events and no dictionary entry that nobody uses."""
    part = made.slice(min(start, made.rows), made.rows)

    small = part.compact()

    check(small)
    assert same(small, part)
    assert small.nbytes <= part.nbytes
    for column in small.columns.values():
        if column.cls in (TypeClass.STR, TypeClass.BIN):
            assert sorted(set(column.codes().tolist())) == list(
                range(len(column.values.dictionary))
            )


@given(any_batch())
def test_the_logical_table_is_the_events(made: Batch) -> None:
    """The Arrow table has a null exactly where an event has no value."""
    table = made.to_arrow().to_pylist()

    assert bits(table) == bits(
        [{n: row.get(n) for n in sorted(made.columns)} for row in made.to_pylist()]
    )
    for name in made.columns:
        has = [name in row for row in made.to_pylist()]
        assert made.mask(name).tolist() == has
    numbers = made.numpy("arg_0", -1).tolist()
    assert numbers == [row.get("arg_0", -1) for row in made.to_pylist()]
    assert made.array("nothing").null_count == made.rows


def test_a_slice_beyond_the_end_is_empty() -> None:
    """Asking for rows that are not there gives none."""
    made = Batch(3, {"pid": batches.constant(TypeClass.I64, 7, 3)})

    assert made.slice(5, 9).rows == 0
    assert made.slice(2, 9).to_pylist() == [{"pid": 7}]


def test_negative_zero_and_nan_are_told_apart() -> None:
    """Negative control: the comparison these tests rest on sees bits, types and order."""
    assert bits(0.0) != bits(-0.0)
    assert bits(1) != bits(True)
    assert bits(1) != bits(1.0)
    assert bits(math.nan) != bits(-math.nan)
    assert bits({"a": 1, "b": 2}) != bits({"b": 2, "a": 1})


def test_rows_may_be_taken_in_another_order() -> None:
    """Rows whose first and last fit are no slice where they change places between."""
    batch = Batch(4, {"ord": Column(TypeClass.I64, pa.array([10, 11, 12, 13]))})
    taken = batch.take(np.array([0, 2, 1, 3], np.int32))
    assert taken.numpy("ord", 0).tolist() == [10, 12, 11, 13]
    assert batch.take(np.array([1, 2, 3], np.int32)).numpy("ord", 0).tolist() == [11, 12, 13]
