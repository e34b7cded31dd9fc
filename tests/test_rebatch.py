"""Re-cut batches: how events arrived can't be seen in them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import RECORDS, batch_of, make_events, rows_of, snapshot

from kcap.errors import BadInputError
from kcap.model.batch import EMPTY, Batch, Column, concat
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.replay.rebatch import Rebatched, Rebatcher, Reproducible, canonical, row_bytes

CUTS = st.lists(st.integers(0, 20), max_size=6)
SIDES: list[Side] = [Loss("lost", 1, "a"), SourceInfo("test"), snapshot(), Loss("cut", 2, "b")]


class Given:
    """A source of these batches."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.info = StreamInfo("given", "test")
        self.closed = False
        self._batches = batches

    def batches(self) -> Iterator[Batch]:
        yield from self._batches

    def close(self) -> None:
        self.closed = True


def divided(batch: Batch, cuts: list[int], sides: dict[int, list[Side]]) -> list[Batch]:
    """The batch as several, some empty; side records stand before the row of their number."""
    places = sorted({0, batch.rows, *(min(c, batch.rows) for c in cuts), *sides})
    parts = []
    for start, stop in zip(places, [*places[1:], batch.rows], strict=True):
        part = batch.slice(start, stop).with_before(sides.get(start, []))
        parts.append(part.compact() if start % 2 else part)
    return parts


def recut(batches: Sequence[Batch], rows: int, **options: int) -> list[Batch]:
    return list(Rebatched(Given(batches), rows, **options).batches())


def exact(batch: Batch) -> list[Any]:
    """All that can be told of a batch, its dictionaries and their order among it."""
    columns = [
        (
            name,
            column.cls,
            None if column.rows is None else column.rows.tolist(),
            column.values.dictionary.to_pylist() if hasattr(column.values, "dictionary") else None,
            rows_of([Batch(len(column), {name: Column(column.cls, column.values)})]),
        )
        for name, column in batch.columns.items()
    ]
    sides = [id(s) if isinstance(s, Snapshot) else s for s in batch.before]
    return [batch.rows, columns, sides]


@given(
    RECORDS,
    CUTS,
    CUTS,
    st.dictionaries(st.integers(0, 20), st.lists(st.sampled_from(SIDES), max_size=3), max_size=4),
    st.integers(1, 12),
    st.sampled_from([1, 60, 200, 1 << 30]),
)
def test_how_rows_were_divided_does_not_show(
    records: list[tuple[int, dict[str, Any]]],
    one: list[int],
    other: list[int],
    sides: dict[int, list[Side]],
    rows: int,
    bytes_max: int,
) -> None:
    """Any two divisions of rows and side records give equal batches, to the dictionaries' order."""
    batch = batch_of(records) if records else EMPTY
    kept = {min(at, batch.rows): found for at, found in sides.items()}
    expected = recut(divided(batch, one, kept), rows, bytes_max=bytes_max)
    found = recut(divided(batch, other, kept), rows, bytes_max=bytes_max)

    assert list(map(exact, found)) == list(map(exact, expected))
    assert rows_of(found) == rows_of([batch])
    assert all(b.rows <= rows for b in found)


def test_without_recutting_it_shows() -> None:
    """Negative control: the same rows, divided in two ways, are different batches."""
    batch = make_events(40)
    one, other = divided(batch, [7], {}), divided(batch, [20, 31], {})

    assert list(map(exact, one)) != list(map(exact, other))
    assert exact(canonical(concat(one))) == exact(canonical(concat(other)))
    assert exact(concat(one[1:])) != exact(canonical(concat(one[1:])))


def test_batches_have_the_rows_asked_for() -> None:
    """All batches are full but the last, and nothing is lost or moved."""
    batch = make_events(100)
    found = recut([batch.slice(0, 3), batch.slice(3, 90), batch.slice(90, 100)], 32)

    assert [b.rows for b in found] == [32, 32, 32, 4]
    assert rows_of(found) == rows_of([batch])


def test_many_small_batches_become_few() -> None:
    """Batches of one row, as a quiet host gives them, come out full and in order."""
    batch = make_events(1000)
    found = recut([batch.slice(i, i + 1) for i in range(1000)], 600)

    assert [b.rows for b in found] == [600, 400]
    assert rows_of(found) == rows_of([batch])


def test_a_side_record_stands_before_the_batch_of_its_place() -> None:
    """A loss goes to the front of the batch that holds the row behind it, or the last row."""
    batch = make_events(10)
    losses = [Loss("lost", i) for i in range(4)]
    sides: dict[int, list[Side]] = dict(zip((0, 3, 4, 10), ([x] for x in losses), strict=True))
    found = recut(divided(batch, [], sides), 4)

    assert [list(b.before) for b in found] == [losses[:2], losses[2:3], losses[3:]]
    only = recut([EMPTY.with_before(losses)], 4)
    assert [(b.rows, list(b.before)) for b in only] == [(0, losses)]
    full = recut([batch.slice(0, 4), EMPTY.with_before(losses)], 4)
    assert [(b.rows, len(b.before)) for b in full] == [(4, 0), (0, 4)]


def test_a_snapshot_ends_a_batch() -> None:
    """What stands before a snapshot is never behind it, and what follows never before it."""
    batch, state, loss = make_events(10), snapshot(), Loss("lost", 1)
    found = recut([batch.slice(0, 3), batch.slice(3, 10).with_before([loss, state])], 4)

    assert [(b.rows, list(b.before)) for b in found] == [(3, []), (4, [loss, state]), (3, [])]


def test_a_batch_ends_where_its_values_are_too_much() -> None:
    """Texts count in every row that has them, however their dictionary is shared."""
    text = Column(
        TypeClass.STR, pa.DictionaryArray.from_arrays(pa.array([0] * 9, pa.int32()), ["x" * 96])
    )
    batch = Batch(9, {"cmdline": text})

    assert row_bytes(batch).tolist() == [100] * 9
    assert [b.rows for b in recut([batch], 100, bytes_max=400)] == [4, 4, 1]
    assert [b.rows for b in recut([batch], 3, bytes_max=400)] == [3, 3, 3]
    assert [b.rows for b in recut([batch.slice(0, 2)], 100, bytes_max=50)] == [1, 1]


def test_the_size_of_a_row_is_that_of_its_values() -> None:
    """Every class counts what its values take, and a missing value nothing."""
    batch = batch_of(
        [
            (1, {}),
            (1, {"n": 5}),
            (1, {"s": "abc"}),
            (1, {"b": True}),
            (1, {"l": ["ab", "c"]}),
            (1, {"i": [1, 2, 3]}),
            (1, {"o": [True]}),
            (1, {"d": b"12345"}),
        ]
    ).select(["ts", *(f"arg_{n}" for n in "n"), *batch_names()])
    base = 8

    assert row_bytes(batch).tolist() == [
        base,
        base + 8,
        base + 7,
        base + 1,
        base + 3 + 2 * 4 + 4,
        base + 3 * 8 + 4,
        base + 1 + 4,
        base + 9,
    ]
    sliced = [int(row_bytes(batch.slice(i, i + 1))[0]) for i in range(batch.rows)]
    assert sliced == row_bytes(batch).tolist()


def batch_names() -> list[str]:
    """The argument columns that the classes above get."""
    from kcap.model.naming import argument, column_name

    classes = {
        "n": TypeClass.I64,
        "s": TypeClass.STR,
        "b": TypeClass.BOOL,
        "l": TypeClass.LIST,
        "i": TypeClass.LIST_I64,
        "o": TypeClass.LIST_BOOL,
        "d": TypeClass.BIN,
    }
    return [column_name(argument(name), cls, None) for name, cls in classes.items()]


def test_dictionaries_hold_what_is_used_once() -> None:
    """Entries of other rows go, and one that is there twice is one, in the order of use."""
    values = pa.DictionaryArray.from_arrays(
        pa.array([3, 1, 2, 3], pa.int32()), ["a", "b", "c", "b"]
    )
    found = canonical(Batch(4, {"event": Column(TypeClass.STR, values)})).columns["event"]

    assert found.values.dictionary.to_pylist() == ["b", "c"]
    assert found.codes().tolist() == [0, 0, 1, 0]


def test_a_full_column_says_so() -> None:
    """Row numbers that name every row are left out, and a column of no values too."""
    array = pa.array(np.arange(3))
    batch = Batch(
        3,
        {
            "pid": Column(TypeClass.I64, array, np.arange(3, dtype=np.int32)),
            "tid": Column(TypeClass.I64, array.slice(0, 0), np.zeros(0, np.int32)),
        },
    )
    found = canonical(batch)

    assert list(found.columns) == ["pid"]
    assert found.columns["pid"].rows is None


def test_the_source_is_handed_on() -> None:
    """Name and end of the source behind are its own."""
    source = Given([])
    rebatched = Rebatched(source)
    rebatched.close()

    assert rebatched.info is source.info
    assert source.closed


@pytest.mark.parametrize("seed", range(3))
def test_what_is_given_goes_on_growing(seed: int) -> None:
    """Batches come as soon as they are full, not at the end."""
    rng = random.Random(seed)
    rebatcher, given_rows, got_rows = Rebatcher(50), 0, 0
    for _ in range(40):
        batch = make_events(rng.randrange(30), seed)
        given_rows += batch.rows
        got_rows += sum(b.rows for b in rebatcher.add(batch))
        assert given_rows - 50 < got_rows <= given_rows


# Captures that are to be equal


def cut_of(count: int | None, **more: Any) -> Loss:
    return Loss("cut", count, "too long", **more)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_how_losses_were_told_does_not_show(counts: list[int], rng: random.Random) -> None:
    """Whatever a reader says batch by batch is said once, at the end, with the sums."""
    batch = make_events(10)
    found = []
    for _ in range(2):
        losses = [Loss("torn"), *map(cut_of, counts)]
        rng.shuffle(losses)
        parts = [batch.slice(i, i + 1).with_before(losses[i : i + 1]) for i in range(10)]
        found.append(list(map(exact, Rebatched(Reproducible(Given(parts)), 4).batches())))

    assert found[0] == found[1]
    assert found[0][-1][2] == [cut_of(sum(counts)), Loss("torn")]


def test_losses_add_up_with_what_is_known_of_them() -> None:
    """Intervals become one that holds both, an unknown count stays unknown, others stay apart."""
    sides: list[Side] = [
        cut_of(1, start_ns=5, end_ns=6),
        cut_of(2, start_ns=1),
        cut_of(3, cpu=1),
        cut_of(None, cpu=1),
        cut_of(4, recorded=True),
    ]
    *_, found = Reproducible(Given([EMPTY.with_before(sides)])).batches()

    assert set(found.before) == {
        cut_of(3, start_ns=1, end_ns=6),
        cut_of(None, cpu=1),
        cut_of(4, recorded=True),
    }


def test_very_many_losses_are_told_of_as_others() -> None:
    """Memory stays bounded however different they are; every one is counted."""
    sides: list[Side] = [Loss("lost", 1, f"reason {i}") for i in range(1500)]
    *_, found = Reproducible(Given([EMPTY.with_before(sides)])).batches()
    losses = [s for s in found.before if isinstance(s, Loss)]

    assert sum(loss.count or 0 for loss in losses) == 1500
    assert len(losses) == 1001


def test_where_a_file_lay_does_not_show() -> None:
    """What describes a source says no file name, its other details stay."""
    named = SourceInfo("test", details={"file": "/home/x", "version": 3})
    source = Given([EMPTY.with_before([named])])
    source.info = StreamInfo("x", "test", (named,))
    found = Reproducible(source)

    expected = SourceInfo("test", details={"version": 3})
    assert found.info.sources == (expected,)
    assert [s for b in found.batches() for s in b.before] == [expected]
    assert expected.id == named.id
    found.close()
    assert source.closed


def test_what_came_before_an_error_is_given() -> None:
    """An input that fails in its middle loses no event to the batch that was being filled."""

    class Failing(Given):
        def batches(self) -> Iterator[Batch]:
            yield from super().batches()
            raise BadInputError("a bad line")

    events = make_events(30)
    source = Rebatched(Failing([events]), 20).batches()

    found = [next(source), next(source)]

    assert [b.rows for b in found] == [20, 10]
    assert rows_of(found) == rows_of([events])
    with pytest.raises(BadInputError, match="a bad line"):
        next(source)
