"""Pruning is never wrong: what is left unread holds no row that is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.capture import Capture
from kcap.expression import FieldStep, fields, program
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.arrow import from_arrow
from kcap.where import Hashed, Integers, Interval, Nothing, Sides, Texts, Values, Where

START = 1_700_000_000_000_000_000
F = pc.field

# Few values, so that conditions are true, false and null of many chunks.
TIMES = st.none() | st.integers(0, 12).map(lambda i: START + i * 700)
PIDS = st.none() | st.integers(-2, 6)
WORDS = st.none() | st.sampled_from(["", "a", "b", "é", "zz", "open"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "ts": TIMES,
            "pid": PIDS,
            "seq": st.none() | st.integers(0, 9),
            "event": WORDS,
            "user": WORDS,
            "arg_pathname": WORDS,
            "arg_real__f64": st.none() | st.floats(),
            "is_compat": st.none() | st.booleans(),
        }
    ),
    min_size=1,
    max_size=24,
)
SCHEMA = pa.schema(
    {
        "ts": pa.int64(),
        "pid": pa.int64(),
        "seq": pa.int64(),
        "event": pa.utf8(),
        "user": pa.utf8(),
        "arg_pathname": pa.utf8(),
        "arg_real__f64": pa.float64(),
        "is_compat": pa.bool_(),
    }
)


def capture_of(rows: list[dict[str, Any]], chunk_rows: int = 4) -> Capture:
    """A closed capture of rows, in small chunks; each row has filling.

    A chunk's filter of its text takes a fortieth of the chunk, and one too small has none.
    """
    out = io.BytesIO()
    table = pa.Table.from_pylist(rows, SCHEMA)
    table = table.append_column("ord", pa.array(range(len(rows)), pa.int64()))
    filling = np.random.default_rng(1)
    data = pa.array([filling.bytes(1024) for _ in rows], pa.binary())
    writer = CaptureWriter(out, chunk_rows=chunk_rows)
    writer.write(from_arrow(table.append_column("arg_filling__bin", data)))
    writer.close()
    return Capture(CaptureReader(out, "test.kcap"))


def literals(name: str) -> st.SearchStrategy[Any]:
    """Constants that a column may be compared with."""
    if name == "ts":
        units = st.sampled_from(["us", "ns"])
        stamps = st.integers(-1, 13).map(lambda i: START + i * 700)
        return st.builds(
            lambda t, u: pa.scalar(t // (1 if u == "ns" else 1000), pa.timestamp(u)), stamps, units
        )
    if name == "ts_ns":
        return st.integers(-1, 13).map(lambda i: START + i * 700)
    if name in ("pid", "seq", "ord"):
        kinds = st.sampled_from([pa.int64(), pa.int32(), pa.int8(), pa.float64()])
        return st.builds(pa.scalar, st.integers(-3, 10), kinds) | st.builds(
            pa.scalar, st.none(), kinds
        )
    # Arrow itself crashes over a missing large_utf8 beside a utf8 column.
    texts = st.builds(pa.scalar, WORDS, st.just(pa.utf8()))
    return texts | st.builds(pa.scalar, st.sampled_from(["a", "none"]), st.just(pa.large_utf8()))


def members(name: str) -> st.SearchStrategy[Any]:
    """Sets that a column may be looked up in."""
    if name in ("pid", "seq", "ord", "ts_ns"):
        base = START if name == "ts_ns" else 0
        values = st.none() | st.integers(-3, 10).map(lambda i: base + i * (700 if base else 1))
        return st.lists(values, max_size=3).map(lambda v: pa.array(v, pa.int64()))
    return st.lists(WORDS, max_size=3).map(lambda v: pa.array(v, pa.utf8()))


COMPARED = ["ts", "ts_ns", "pid", "seq", "ord", "event", "user", "arg_pathname", "container_id"]
COMPARISONS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a == b,
    lambda a, b: a != b,
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a > b,
    lambda a, b: a >= b,
]


@st.composite
def leaves(draw: Any) -> Any:
    """A condition on one column."""
    name = draw(st.sampled_from(COMPARED))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return F(name).is_null()
    if kind == 1:
        return F(name).is_valid()
    if kind in (2, 3) and name != "ts":
        return F(name).isin(draw(members(name)))
    if kind == 4 and name != "ts":  # how DuckDB asks for IN
        found = F(name).isin(draw(members(name)))
        return pc.if_else(F(name).is_valid(), found, pa.scalar(None, pa.bool_()))
    if kind == 5:
        return draw(
            st.sampled_from(
                [
                    F("is_compat"),
                    F("arg_real__f64") > 0.5,
                    pc.match_substring(F("event"), "e"),
                    F("pid").cast(pa.float64()) < 2.5,
                    pc.scalar(draw(st.booleans() | st.none())).cast(pa.bool_()),
                    F("pid") == F("seq"),
                ]
            )
        )
    compare = draw(st.sampled_from(COMPARISONS))
    constant = pc.scalar(draw(literals(name)))
    return compare(F(name), constant) if draw(st.booleans()) else compare(constant, F(name))


CONDITIONS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        inner.map(lambda a: ~a),
        st.builds(pc.if_else, inner, inner, inner),
    ),
    max_leaves=5,
)


def expected_rows(capture: Capture, condition: Any) -> list[int]:
    """What Arrow alone gives, over a plain table of all events."""
    table = capture.to_arrow()
    names = table.schema.names
    arrays = [
        c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in table.columns
    ]
    plain = pa.table(dict(zip(names, arrays, strict=True)))
    for name in COMPARED:
        if name not in names:
            kind = (
                pa.timestamp("us")
                if name == "ts"
                else pa.int64()
                if name in ("ts_ns", "pid", "seq")
                else pa.utf8()
            )
            plain = plain.append_column(name, pa.nulls(plain.num_rows, kind))
    for name, kind in (("is_compat", pa.bool_()), ("arg_real__f64", pa.float64())):
        if name not in names:
            plain = plain.append_column(name, pa.nulls(plain.num_rows, kind))
    return sorted(plain.filter(condition)["ord"].to_pylist())


def found_rows(capture: Capture, condition: Any) -> list[int]:
    """What kcap gives."""
    batches = capture.batches(["ord"], where=condition)
    return [row["ord"] for batch in batches for row in batch.to_pylist()]


@given(ROWS, CONDITIONS)
def test_pruned_and_unpruned_answers_are_the_same(rows: list[Any], condition: Any) -> None:
    """Any condition selects the rows that Arrow selects from a table of all, in order."""
    capture = capture_of(rows)

    assert found_rows(capture, condition) == expected_rows(capture, condition)
    assert capture.losses == []


@pytest.mark.parametrize(
    ("values", "condition"),
    [
        (Interval, F("ts_ns") > START + 100),
        (Integers, F("pid") == 3),
        (Texts, F("event") == "b"),
        (Hashed, F("user") == "b"),
    ],
)
def test_a_chunk_dropped_wrongly_is_noticed(
    values: type, condition: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: an index that denies what a chunk holds changes the answer."""
    rows = [{"ts": START + i * 100, "pid": i, "event": "ab"[i % 2], "user": "b"} for i in range(8)]
    capture = capture_of(rows)
    assert found_rows(capture, condition) == expected_rows(capture, condition) != []

    monkeypatch.setattr(values, "sides", lambda *_: Sides(less=True, equal=False, greater=False))

    assert found_rows(capture, condition) != expected_rows(capture, condition)


@pytest.mark.parametrize(
    ("condition", "chunks"),
    [
        (F("ts_ns") >= START + 1400, [7]),
        (F("ts") >= pa.scalar((START + 1400) // 1000, pa.timestamp("us")), [5, 6, 7]),
        (F("pid") == 5, [2]),
        (F("pid").isin([5, 9]), [2, 4]),
        (~(F("pid") != 5), [2]),
        ((F("pid") == 5) | (F("pid") == 9), [2, 4]),
        ((F("pid") == 5) & (F("pid") == 9), []),
        (pc.if_else(F("pid").is_valid(), F("pid").isin([5]), pa.scalar(None, pa.bool_())), [2]),
        (F("event") == "a", [3]),
        (F("event") < "b", [3]),
        (F("event").is_null(), list(range(8))),
        (F("user") == "u6", [6]),
        (pa.scalar("u6") == F("user"), [6]),
        (F("user").isin(["u6", "nobody"]), [6]),
        (F("ord") < 2, [0]),
        (F("seq") == 15, [7]),
        (F("container_id") == "x", []),
        (pc.match_substring(F("user"), "u6"), list(range(8))),
        (F("arg_pathname") == "", []),
    ],
)
def test_chunks_that_cannot_match_are_not_read(condition: Any, chunks: list[int]) -> None:
    """Times, pids, event names, sequences and text tell which chunks are worth reading."""
    rows = [
        {
            "ts": START + i * 100,
            "pid": i,
            "seq": i,
            "event": "b",
            "user": f"u{i // 2}",
        }
        for i in range(16)
    ]
    rows[7]["event"] = "a"
    capture = capture_of(rows, chunk_rows=2)
    scan = capture.scan(capture.wanted(["ord"], where=condition))
    assert scan is not None

    read = [number for number in scan.in_time() if scan.read(number)]

    assert read == chunks


def values_of(name: str) -> Values:
    """A chunk with pids 1 and 3 and a text that is not there."""
    known: dict[str, Values] = {
        "pid": Integers(np.array([1, 3])),
        "event": Texts(frozenset({"a", "c"})),
        "user": Hashed(lambda text: text == "me"),
        "ts_ns": Interval(10, 20),
    }
    return known.get(name, Nothing())


@pytest.mark.parametrize(
    ("condition", "may_match"),
    [
        (F("pid") == 2, False),
        (F("pid") == 3, True),
        (F("pid") == 3.0, True),
        (F("pid") == 2.5, True),  # floats are Arrow's business
        (F("pid") == True, True),  # noqa: E712
        (F("pid") == "2", True),
        (F("pid") < 1, False),
        (pc.scalar(1) > F("pid"), False),
        (pc.scalar(1) >= F("pid"), True),
        (F("pid") != 1, True),
        (F("pid") == pa.scalar(None, pa.int64()), False),
        (~(F("pid") == pa.scalar(None, pa.int64())), False),
        ((F("pid") == pa.scalar(None, pa.int64())).is_null(), True),
        (F("missing") == 1, False),
        (~(F("missing") == 1), False),
        (F("missing").is_null(), True),
        (F("missing").is_valid(), False),
        (F("missing").isin([1]), False),
        (F("missing").isin([1, None]), True),
        (~F("missing").isin([1]), True),
        (F("pid").isin([2, None]), True),
        (F("pid").isin([2]), False),
        (F("pid").isin(list(range(100, 2000))), True),  # not worth the time
        (F("event") > "c", False),
        (F("event") == "b", False),
        (F("user") == "you", False),
        (F("user") == pa.scalar("you", pa.string_view()), True),
        (F("user") == pa.scalar(b"you"), True),
        (F("user") > "you", True),
        (pc.scalar(False), False),
        (pc.scalar(pa.scalar(None, pa.bool_())), False),
        (pc.scalar(True), True),
        ((F("pid") == 2) | pc.match_substring(F("user"), "m"), True),
        ((F("pid") == 2) & pc.match_substring(F("user"), "m"), False),
        (pc.if_else(F("pid") == 2, pc.scalar(True), pc.scalar(False)), False),
        (pc.if_else(F("pid") == 3, pc.scalar(True), pc.scalar(False)), True),
        (F("ts_ns") > 20, False),
        (F("ts_ns") >= 20, True),
        (F(0) == 1, True),  # by number: not looked into
        (F("user", "part") == 1, True),
    ],
)
def test_what_may_match(condition: Any, may_match: bool) -> None:
    """Only what is certainly never true of a chunk is said not to match."""
    assert Where(condition).may_match(values_of) is may_match


@pytest.mark.parametrize(
    "name", ["end'\nend: 'equal", "a\nfield_ref: 'b'\nliteral: '0", "é", "", "a'b"]
)
def test_a_column_name_is_no_program(name: str) -> None:
    """A name that imitates the serialised form of an expression stays a name."""
    steps = program((F(name) == 1) & (F("b") == 2))

    assert steps is not None
    assert fields(steps) == {name, "b"}
    assert [s.name for s in steps if isinstance(s, FieldStep)] == [name, "b"]


def test_long_conditions_need_no_recursion() -> None:
    """A condition of thousands of parts is looked into like any other."""
    condition = F("pid") == 0
    for i in range(3000):
        condition |= F("pid") == 2 * i

    assert Where(condition).fields == {"pid"}
    capture = capture_of([{"pid": 1}, {"pid": 4}])
    assert found_rows(capture, condition) == [1]


def test_constants_of_time_keep_their_digits() -> None:
    """A time in ns is compared as such, also with what lies within one microsecond."""
    steps = program(F("ts") > pa.scalar(START + 1, pa.timestamp("ns")))

    assert steps is not None
    assert [getattr(s, "value", None) for s in steps] == [None, START + 1, None]
    assert program(F("ts") > pc.scalar(datetime(2026, 1, 1))) is not None  # noqa: DTZ001
