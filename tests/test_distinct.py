"""The different values of a column, and groups of rows that are equal in several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from support import RECORDS, batch_of

from kcap.model.batch import Column
from kcap.model.classes import TypeClass
from kcap.model.distinct import distinct, grouped


@given(RECORDS)
def test_distinct_values_give_the_column_back(records: list[Any]) -> None:
    """Entries at codes are the values of every class; no entry stands there twice or unused."""
    batch = batch_of(records)
    for column in batch.columns.values():
        found = distinct(column)
        values = column.values
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        exact = [repr(v) for v in values.to_pylist()]
        entries = [repr(v) for v in found.entries.to_pylist()]
        assert [entries[code] for code in found.codes] == exact
        assert set(found.codes.tolist()) == set(range(len(entries)))
        if column.cls not in (TypeClass.F64, TypeClass.LIST_F64):  # NaNs of many bits print alike
            assert len(set(entries)) == len(entries)


def test_a_dictionary_may_hold_an_entry_twice() -> None:
    """Equal text is one value, whatever the dictionary; lists are told apart by their items."""
    values = pa.DictionaryArray.from_arrays(pa.array([0, 2, 1, 2], pa.int32()), ["a", "b", "a"])
    assert distinct(Column(TypeClass.STR, values)).codes.tolist() == [0, 0, 1, 0]

    lists = pa.array([["ab", "c"], ["a", "bc"], ["ab", "c"], []], pa.list_(pa.utf8()))
    assert distinct(Column(TypeClass.LIST, lists)).codes.tolist() == [0, 1, 0, 2]
    part = distinct(Column(TypeClass.LIST, lists.slice(1)))
    assert part.entries.to_pylist() == [["a", "bc"], ["ab", "c"], []]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 3)), min_size=1))
def test_groups_are_the_combinations(rows: list[tuple[int, int, int]]) -> None:
    """Each combination that there is is one group, also where the table would be too large."""
    codes = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
    for sizes in ([10, 6, 4], [10, 1 << 30, 1 << 30]):
        groups = grouped(codes, sizes)
        found = list(zip(*(c.tolist() for c in groups.codes), strict=True))
        assert len(set(found)) == len(found) == groups.number
        assert [found[g] for g in groups.rows] == rows
