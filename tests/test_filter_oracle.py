"""The columnar engine against the row interpreter, over values that could tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from filter_made import Maker, quoted
from filter_rows import SOURCE, batch, column, cut, field, in_pieces, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.filter import Filter, leaf
from kcap.filter.cells import Cells, Reader
from kcap.filter.entries import Lists, Texts
from kcap.filter.fields import all_fields
from kcap.filter.many import Filters
from kcap.filter.syntax import Op
from kcap.model.batch import Batch
from kcap.model.classes import I64_MAX, I64_MIN, TypeClass

SEEDS = st.integers(0, 2**63)


def compiled(text: str, era: int | None = None) -> Filter:
    """A filter that knows what collector made the events."""
    chosen = Filter.of(text, era)
    chosen.note([SOURCE])
    return chosen


def agree(text: str, era: int | None, whole: Batch, places: Sequence[int] = ()) -> list[int]:
    """Engine and interpreter give the same rows, in one piece and in several."""
    chosen = compiled(text, era)
    expected = rows(chosen, whole)
    assert chosen.rows(whole).tolist() == expected, text
    if places:
        pieces = cut(whole, places)
        assert in_pieces(chosen, pieces) == expected, text  # with what it remembers
        assert in_pieces(compiled(text, era), pieces) == expected, text
    return expected


def agree_on(seed: int, each: int = 12, depth: int = 2, cuts: int = 3) -> list[float]:
    """Many made filters over made events; gives the share of rows that each keeps."""
    maker, count = Maker(seed), 40
    whole = maker.events(count)
    places = [maker.rng.randrange(count) for _ in range(cuts)]
    return [len(agree(t, era, whole, places)) / count for t, era in maker.filters(each, depth)]


@settings(max_examples=120)
@given(SEEDS)
def test_oracle(seed: int) -> None:
    """The engine gives what the row interpreter gives, however the events are cut."""
    agree_on(seed)


@pytest.mark.long
@settings(max_examples=1200)
@given(SEEDS)
def test_oracle_long(seed: int) -> None:
    """So it does for many more."""
    agree_on(seed)


def test_oracle_is_asked_something() -> None:
    """Of the made filters many keep some events and leave out others."""
    shares = [share for seed in range(25) for share in agree_on(seed, depth=0)]
    assert sum(0 < share < 1 for share in shares) > len(shares) / 8


@settings(max_examples=25)
@given(SEEDS)
def test_many(seed: int) -> None:
    """Many filters in one pass give what each gives alone."""
    maker = Maker(seed)
    whole = maker.events(30)
    chosen = [compiled(text, era) for text, era in maker.filters(70)]
    found = Filters(chosen).rows(whole)
    assert [f.tolist() for f in found] == [rows(one, whole) for one in chosen]


OF_TIME = [f.name for f in all_fields() if any(s.column == "ts" for s in f.sources)]
TIMES = [I64_MIN, I64_MIN + 86_400 * 10**9, -(10**9) - 1, -1, 0, 86_400 * 10**9 - 1, I64_MAX]


@pytest.mark.parametrize("name", OF_TIME)
def test_parts_of_time(name: str) -> None:
    """Parts of a time are right for many at once, those at the limits of 64 bits among them."""
    whole = batch({"ts": column(TypeClass.I64, TIMES)}, len(TIMES))
    ((_, resolved),) = Filter.of(f"{name} exists").checked.fields.items()
    values = [field(row, resolved, {}) for row in whole.to_pylist()]
    for value in values:
        constant = quoted(value) if isinstance(value, str) else value
        expected = [number for number, other in enumerate(values) if other == value]
        assert agree(f"{name} = {constant}", None, whole, [2, 4]) == expected


# what the oracle notices


def across(self: Texts, part: str) -> Any:
    """Parts that begin in one text and end in the next count, too."""
    places = [i for i in range(len(self.blob)) if self.blob.startswith(part.encode(), i)]
    return np.unique(np.searchsorted(self.offsets, np.array(places, np.intp), "right") - 1)


def as_floats(array: Any, op: Op, value: Any) -> Any:
    """Numbers are compared as floats, as numpy does with unlike types."""
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return np.zeros(len(array), np.bool_)
    return leaf._OPERATORS[op](array.astype(np.float64), float(value))


def ended(self: Lists, verdicts: Any) -> Any:
    """The first item of a list does not count."""
    each = verdicts if self._codes is None else verdicts[self._codes]
    total = np.concatenate([[0], np.cumsum(each)])
    starts = np.concatenate([[0], self._ends[:-1]])
    return total[self._ends] - total[np.minimum(starts + 1, self._ends)] > 0


BROKEN = {
    "part across texts": (Texts, "with_part", across),
    "folding as ASCII": (Texts, "odd", np.zeros(0, np.intp)),
    "integers as floats": (leaf, "_compared", as_floats),
    "digits in lists": (leaf, "_digits", lambda value: value),
    "first item": (Lists, "any", ended),
    "order of sources": (Cells, "kept", lambda self, *_: self),
    "conditions": (Reader, "_holds", lambda *_: True),
    "names of flags": (Reader, "_named", lambda *_: None),
    "types in lists": (leaf, "key_of", lambda value: value),
}


def agree_on_many(seeds: int) -> None:
    """Simple filters over many made batches."""
    for seed in range(seeds):
        agree_on(seed, each=30, depth=0, cuts=0)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a short cut of the engine is wrong, the oracle disagrees soon."""
    where, attribute, wrong = BROKEN[name]
    monkeypatch.setattr(where, attribute, wrong)
    with pytest.raises(AssertionError):
        agree_on_many(200)
