"""The entries of dictionaries: each once, also where most of a long one need not be looked at."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from kcap.model.entries import unified


def value(seed: int, size: int) -> bytes:
    """Bytes that begin alike where the seeds are alike modulo 4."""
    return (bytes([seed % 4]) * 80 + bytes([seed]) * size)[:size]


@given(
    st.lists(
        st.builds(value, st.integers(0, 9), st.sampled_from([0, 1, 63, 90, 600, 2000])), max_size=40
    )
)
def test_entries_are_unified_as_arrow_does(values: list[bytes]) -> None:
    """Long and short ones, that begin alike and that are alike."""
    entries = pa.array(values, pa.binary())
    wanted: Any = pc.dictionary_encode(entries)

    found, places = unified(entries)

    assert found.equals(wanted.dictionary)
    assert places.tolist() == wanted.indices.to_pylist()


def test_text_that_begins_in_the_middle_of_a_sign() -> None:
    """The heads of long text need not be text: 64 bytes end within a sign of three."""
    values = ["\u20ac" * 200 + end for end in ("a", "b", "a")]

    found, places = unified(pa.array(values))

    assert found.to_pylist() == values[:2]
    assert places.tolist() == [0, 1, 0]
