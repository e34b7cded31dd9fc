"""Many filters at once: what is remembered, and how parts are found, changes no answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from filter_made import Maker
from filter_rows import SOURCE, batch, column
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.filter import Filter, entries, grams, many, tables
from kcap.filter.entries import Texts
from kcap.filter.grams import Grams
from kcap.filter.many import Filters
from kcap.filter.tables import Table
from kcap.filter.values import fold
from kcap.model.classes import TypeClass

BLOBS = st.lists(st.sampled_from([b"ab", b"ba", b"aab", b"\xc3\xa9", b"abcd"]), max_size=40)


def naive(blob: bytes, part: bytes) -> list[int]:
    """Where a part begins, looked for at every place."""
    return [at for at in range(len(blob)) if blob.startswith(part, at)]


def check_places(blob: bytes, part: bytes) -> None:
    """The places of a part are those at which it stands."""
    assert Grams(blob).places(part).tolist() == naive(blob, part)


@given(BLOBS, st.integers(0, 60), st.integers(grams.RUN, 20))
def test_places(pieces: list[bytes], start: int, size: int) -> None:
    """A part of a text is found at all its places, whether few or many share its runs."""
    blob = b"".join(pieces)
    check_places(blob, (blob[start : start + size] + b"abba")[: max(size, grams.RUN)])


def test_places_end_to_end() -> None:
    """A part at both ends is found, and one that would go beyond them is not."""
    blob = b"abcde" * 50
    check_places(blob, blob)
    check_places(blob, b"cdeabcdea" * 5)
    check_places(b"xxab" + blob, b"eabcdeabcdeabcdeabcd" * 12)
    check_places(b"", b"abcd")


def test_places_of_a_shared_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that share a number are told apart; where they are not, the comparison notices."""
    monkeypatch.setattr(grams, "_MIXER", 0)
    blob = b"abcdefgh" * 9
    check_places(blob, b"cdef")
    monkeypatch.setattr(grams, "_ONE_BY_ONE", 1 << 30)
    check_places(blob, b"cdef")
    monkeypatch.setattr(Grams, "places", lambda self, _part: self._order)
    with pytest.raises(AssertionError):
        check_places(blob, b"cdef")


@pytest.mark.parametrize("often", [0, 1 << 30])
def test_parts_of_texts(often: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are found in the same texts with the places of runs and without, none across two."""
    monkeypatch.setattr(entries, "_OFTEN", often)
    values = ["/usr/bin", "/usr/sbin/é", "", "bin/usr", "/usr", "x/usr/usr"] * 12
    texts = Texts(pa.array(["before", *values]).slice(1))
    for part in ("/usr", "usr/", "binu", "n/usr", "/usr/sbin/é", "é/usr", "usr/usr"):
        expected = [n for n, value in enumerate(values) if part in value]
        assert texts.with_part(part).tolist() == expected, part


def test_folds() -> None:
    """Texts are folded as single ones are, those that are not ASCII among them."""
    values = ["ÄB", "AB", "İ", "ß", "", "Σας"]
    texts = Texts(pa.array(["Ä", *values, "Z"]).slice(1, len(values)))
    assert list(texts.folded.values()) == [fold(value) for value in values]


def agree_over_batches(seed: int, count: int = 60) -> None:
    """One set of filters, over several batches of which values come again, as each alone."""
    maker = Maker(seed)
    pairs = list(maker.filters(count))
    together, alone = ([Filter.of(text, era) for text, era in pairs] for _ in range(2))
    both = Filters(together)
    both.note([SOURCE])
    first, second = maker.events(20), maker.events(30)
    for events in (first, second.slice(0, 12), second, first):
        for one in alone:
            one.note([SOURCE])
        expected = [one.rows(events).tolist() for one in alone]
        assert [rows.tolist() for rows in both.rows(events)] == expected


@settings(max_examples=12)
@given(st.integers(0, 2**63), st.sampled_from([0, 2000, tables._BYTES_MAX]))
def test_remembered(seed: int, most: int) -> None:
    """What is remembered of values is right for the next batch, also where it is forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_WORTH", 0)
        patch.setattr(tables, "_BYTES_MAX", most)
        patch.setattr(grams, "BYTES_MAX", 64)
        agree_over_batches(seed)


def stale(self: Table) -> None:
    """Nothing is forgotten when more is asked."""


def last_only(rows: Sequence[Any]) -> Any:
    """Only the last alternative counts."""
    return rows[-1] if rows else np.zeros(0, np.int32)


@pytest.mark.parametrize(
    ("where", "name", "wrong"), [(Table, "_forget", stale), (many, "_united", last_only)]
)
def test_broken_is_noticed(
    where: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tables are stale or alternatives lost, the filters alone disagree."""
    monkeypatch.setattr(tables, "_WORTH", 0)
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        two_fields()


def two_fields() -> None:
    """Conditions that matter only in the second batch, and an ``or`` over two fields."""
    texts = [
        "event = 'open' and exe = '/b'",
        "event = 'exec' and exe = '/a'",
        "exe = '/c' or event = 'exec'",
    ]
    both = Filters([Filter.of(text) for text in texts])
    for event, exe in ([["open", "open"], ["/c", "/b"]], [["exec", "open"], ["/b", "/c"]]):
        one = batch({"event": column(TypeClass.STR, event), "exe": column(TypeClass.STR, exe)}, 2)
        expected = [Filter.of(text).rows(one).tolist() for text in texts]
        assert [rows.tolist() for rows in both.rows(one)] == expected


def test_two_fields() -> None:
    """So they do where nothing is broken."""
    two_fields()
