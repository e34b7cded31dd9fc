"""Corners of filters in which faster ways could part from the plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from filter_support import NS, events, written
from support import opened

from kcap.filter import Filter
from kcap.filter.derive import function
from kcap.filter.entries import Values, mapped
from kcap.filter.errors import FilterError
from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.replay.chosen import chosen


def found(batch: Batch, text: str) -> tuple[int, int]:
    """How many events a filter finds in a batch, and in a capture that holds it."""
    one = Filter.of(text)
    out, writer = written([batch])
    writer.close()
    source, stages = chosen(opened(out.getvalue()), where=one)
    assert not stages  # chunks are pruned
    return len(one.rows(batch)), sum(part.rows for part in source.batches())


@pytest.fixture
def three() -> Batch:
    """Events with two, one and no argument, half a microsecond behind full ones."""
    batch = events([{"x": 1, "y": 2}, {"x": 3}, {}], event="open", pid=7, category="network")
    times = np.asarray(batch.columns["ts"].values) + 500
    return batch.adding({"ts": Column(TypeClass.I64, pa.array(times))})


def test_a_field_without_a_column_of_its_own_prunes_nothing(three: Batch) -> None:
    """Arguments are counted in captures, too."""
    assert found(three, "evt.nparams = 2") == (1, 1)
    assert found(three, "evt.nparams = 4") == (0, 0)


def test_times_prune_by_the_ns(three: Batch) -> None:
    """The last event of a chunk is found although its microsecond began before."""
    assert found(three, f"evt.time.ns = {NS + 2500}") == (1, 1)
    assert found(three, f"evt.time.ns > {NS + 2100}") == (1, 1)
    assert found(three, f"evt.time.ns > {NS + 2500}") == (0, 0)


def test_a_map_kept_as_text_prunes_nothing() -> None:
    """The names in a map are found where the map is a column of text."""
    batch = events([{}], event="open")
    tags = pa.array(['{"a":"b"}']).dictionary_encode()
    batch = batch.adding({"ext_meta__str": Column(TypeClass.STR, tags)})
    assert found(batch, "kevt.meta in ('a')") == (1, 1)
    assert found(batch, "kevt.meta in ('b')") == (0, 0)


@pytest.mark.parametrize("word", ["--5", "-", "", "9" * 5000, "٣"])
def test_texts_that_are_no_integers(three: Batch, word: str) -> None:
    """Texts in a list of numbers that stand for no integer find nothing, and are no error."""
    assert found(three, f"pid in ('{word}')") == (0, 0)
    assert found(three, f"pid in ('{word}', '7')") == (3, 3)


@pytest.mark.parametrize("digits", ["1" * 400, "18446744073709551616", "-9223372036854775809"])
def test_fractions_keep_the_limits_of_integers(digits: str) -> None:
    """A number beyond 64 bits is refused with and without a point."""
    for text in (f"pid < {digits}", f"pid < {digits}.0"):
        with pytest.raises(FilterError, match="more than 64 bits"):
            Filter.of(text)
    assert Filter.of("pid < 18446744073709551615.0")


def test_a_time_over_two_lines_is_no_time() -> None:
    """A line break in a time is an error with its place."""
    with pytest.raises(FilterError, match="no time"):
        Filter.of(r"ts > '2026-11-21\n'")


@pytest.mark.parametrize("op", ["=", "!=", "~="])
def test_a_constant_on_the_left_means_the_same(three: Batch, op: str) -> None:
    """Constants stand for their synonyms on either side."""
    assert found(three, f"'net' {op} evt.category") == found(three, f"evt.category {op} 'net'")
    assert found(three, "'net' = evt.category") == (3, 3)


def test_items_of_a_list_keep_their_places() -> None:
    """The arguments of an ancestor are found by its number though those of another are unknown."""
    split = function("split")
    assert split(["sh -c x", None, "init"]) == (("sh", "-c", "x"), None, ("init",))
    assert split([None]) is None


def test_another_thread_may_forget() -> None:
    """Results do not depend on what is remembered staying so while they are made."""

    class Forgetful(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            """As if another thread had cleared it at once."""

    double: Callable[[str], str] = lambda text: text * 2  # noqa: E731
    assert list(mapped(Values(["a", "a"]), double, Forgetful()).values()) == ["aa", "aa"]
