"""Distinct values of a column, and quick answers about all of them at once.

A test is asked once for each distinct value, never once an event. What is quick here is quick by
the bytes: a part of a text is looked for in all texts of a dictionary at once. Every short cut
gives what `kcap.filter.values` gives for each value alone; `tests/test_filter_columns.py` holds
them against each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.filter import grams
from kcap.filter.values import fold

Verdicts = npt.NDArray[np.bool_]
"""One for each distinct value."""

_FREQUENT: Final = 4
"""A part that is in more than one text of so many is left to Arrow."""


_OFTEN: Final = 16
"""Of texts that are asked for more parts than this the places of all runs are found."""

_UNKNOWN: Final = object()

_REMEMBERED: Final = 1 << 17
"""Values whose results are remembered."""

_REMEMBERED_CHARS: Final = 1 << 25
"""Characters of such values: command lines and environments are long."""


class Memo(dict[Any, Any]):
    """Results by the keys of values (`key_of`)."""

    def __init__(self) -> None:
        super().__init__()
        self._chars = 0

    def __setitem__(self, key: Any, result: Any) -> None:  # noqa: ANN401 - any value
        """Remember a result."""
        super().__setitem__(key, result)
        for part in key if type(key) is tuple else (key,):
            for text in part if type(part) is tuple else (part,):
                self._chars += len(text) if isinstance(text, str) else 0

    def trim(self) -> None:
        """Forget everything once it has become too much."""
        if len(self) > _REMEMBERED or self._chars > _REMEMBERED_CHARS:
            self.clear()
            self._chars = 0


class Values:
    """Values as Python has them.

    Args:
        values: One each; None where there is none.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> Sequence[Any]:
        """The values."""
        return self._values

    def chosen(self, numbers: npt.NDArray[np.intp]) -> Values:
        """Some of the values.

        Args:
            numbers: Which.

        Returns:
            Them.
        """
        return Values([self._values[number] for number in numbers.tolist()])


class Numbers:
    """Integers or floats, one a value and not distinct.

    Args:
        array: int64, uint64 or float64.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    @cached_property
    def distinct(self) -> tuple[Sequence[Any], npt.NDArray[np.intp]]:
        """The distinct ones, as Python's, and which of them each value is."""
        found = pc.dictionary_encode(pa.array(self.array))  # half the time of sorting
        return found.dictionary.to_pylist(), np.asarray(found.indices)

    def values(self) -> Sequence[Any]:
        """The values, as Python's."""
        found: list[Any] = self.array.tolist()
        return found

    def chosen(self, numbers: npt.NDArray[np.intp]) -> Numbers:
        """Some of the values.

        Args:
            numbers: Which.

        Returns:
            Them.
        """
        return Numbers(self.array[numbers])


class Texts:
    """The texts of a dictionary.

    Args:
        array: Without nulls; slices will do.
    """

    def __init__(self, array: pa.Array) -> None:
        self.array = array
        self._asked = 0

    def __len__(self) -> int:
        return len(self.array)

    @cached_property
    def _list(self) -> list[str]:
        found: list[str] = self.array.to_pylist()
        return found

    def values(self) -> Sequence[str]:
        """The texts, as Python's."""
        return self._list

    @cached_property
    def offsets(self) -> npt.NDArray[np.int32]:
        """Where each text begins in `blob`, and where the last one ends."""
        if not len(self.array):
            return np.zeros(1, np.int32)
        raw = np.frombuffer(self.array.buffers()[1], np.int32)
        at = raw[self.array.offset : self.array.offset + len(self.array) + 1]
        return np.asarray(at - at[0])

    @cached_property
    def blob(self) -> bytes:
        """All texts one after another, in UTF-8."""
        if not len(self.array) or self.array.buffers()[2] is None:
            return b""
        raw = np.frombuffer(self.array.buffers()[1], np.int32)
        first = int(raw[self.array.offset])
        last = int(raw[self.array.offset + len(self.array)])
        found: bytes = self.array.buffers()[2].slice(first, last - first).to_pybytes()
        return found

    @cached_property
    def odd(self) -> npt.NDArray[np.intp]:
        """The texts that are not ASCII, by number."""
        if self.blob.isascii():
            return np.zeros(0, np.intp)
        high = np.flatnonzero(np.frombuffer(self.blob, np.uint8) >= 128)  # noqa: PLR2004
        return np.unique(np.searchsorted(self.offsets, high, "right") - 1)

    @cached_property
    def folded(self) -> Texts:
        """The folds of the texts (`kcap.filter.values.fold`)."""
        found = pc.ascii_lower(self.array)
        if len(self.odd):
            mask = np.zeros(len(self), np.bool_)
            mask[self.odd] = True
            folds = [fold(text) for text in self.chosen(self.odd).values()]
            found = pc.replace_with_mask(found, pa.array(mask), pa.array(folds, pa.utf8()))
        return Texts(found)

    def with_part(self, part: str) -> npt.NDArray[np.intp]:
        """Which texts have a part.

        Args:
            part: Not empty.

        Returns:
            Their numbers, ascending.
        """
        blob, wanted = self.blob, part.encode("utf-8", "surrogatepass")
        self._asked += 1
        if self._asked > _OFTEN and len(wanted) >= grams.RUN and len(blob) <= grams.BYTES_MAX:
            return self._around(self._grams.places(wanted), len(wanted))
        places: list[int] = []
        most = len(self) // _FREQUENT
        at = blob.find(wanted)
        while at >= 0:
            places.append(at)
            if len(places) > most:
                return np.flatnonzero(np.asarray(pc.match_substring(self.array, part)))
            at = blob.find(wanted, at + 1)
        return self._around(np.array(places, np.int32), len(wanted))

    @cached_property
    def _grams(self) -> grams.Grams:
        return grams.Grams(self.blob)

    def _around(self, places: npt.NDArray[np.int32], size: int) -> npt.NDArray[np.intp]:
        """The texts in which something of a size stands, by where it stands."""
        if not len(places):
            return np.zeros(0, np.intp)
        which = np.searchsorted(self.offsets, places, "right") - 1
        which = which[places + size <= self.offsets[which + 1]]  # not across two texts
        if len(which) > 1:
            which = which[np.concatenate([[True], which[1:] != which[:-1]])]
        return which

    def chosen(self, numbers: npt.NDArray[np.intp]) -> Texts:
        """Some of the texts.

        Args:
            numbers: Which.

        Returns:
            Them.
        """
        return Texts(self.array.take(pa.array(numbers)))


class Lists:
    """Lists, of which each item can be asked about.

    Args:
        items: The items of all lists.
        codes: Which of ``items`` each item is; None where they stand in order.
        ends: Where each list ends; the first begins at 0.
    """

    def __init__(
        self,
        items: Texts | Numbers | Values,
        codes: npt.NDArray[np.int32] | None,
        ends: npt.NDArray[np.int64],
    ) -> None:
        self.items = items
        self._codes = codes
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def any(self, verdicts: Verdicts) -> Verdicts:
        """Which lists have an item of which something holds.

        Args:
            verdicts: One for each of `items`.

        Returns:
            One a list.
        """
        each = verdicts if self._codes is None else verdicts[self._codes]
        total = np.concatenate([[0], np.cumsum(each)])
        return np.diff(np.concatenate([[0], total[self._ends]])) > 0

    def values(self) -> Sequence[Any]:
        """The lists, as tuples."""
        found = self.items.values()
        each = found if self._codes is None else [found[c] for c in self._codes.tolist()]
        starts = np.concatenate([[0], self._ends[:-1]]).tolist()
        return [tuple(each[a:b]) for a, b in zip(starts, self._ends.tolist(), strict=True)]


def key_of(value: Any) -> tuple[Any, ...]:  # noqa: ANN401 - any value
    """What to remember a value by: True == 1 == 1.0 in Python, and so are lists of them.

    Args:
        value: Any value.

    Returns:
        What only like values share; not hashable where the value is not.
    """
    if type(value) is tuple:
        return tuple, value, tuple(map(type, value))
    return type(value), value


def unsigned_zero(floats: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floats without a negative zero: equal values then have one text.

    Args:
        floats: Any floats.

    Returns:
        Floats equal to them.
    """
    return np.asarray(floats + 0.0)


Entries = Values | Numbers | Texts | Lists


def of_list(array: pa.ListArray) -> Lists:
    """The lists of a column.

    Args:
        array: Without nulls; their items may be null, as facts of ancestors are that the state
            does not know.

    Returns:
        Them.
    """
    offsets = np.asarray(array.offsets).astype(np.int64)
    flat = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    ends = offsets[1:] - offsets[0]
    if flat.null_count:
        coded = pc.dictionary_encode(flat, null_encoding="encode")
        return Lists(Values(coded.dictionary.to_pylist()), np.asarray(coded.indices), ends)
    if pa.types.is_string(flat.type):
        coded = pc.dictionary_encode(flat)
        return Lists(Texts(coded.dictionary), np.asarray(coded.indices), ends)
    if pa.types.is_boolean(flat.type):
        return Lists(Values(flat.to_pylist()), None, ends)
    numbers = np.asarray(flat)
    if pa.types.is_floating(flat.type):
        numbers = unsigned_zero(numbers)
    return Lists(Numbers(numbers), None, ends)


def mapped(entries: Entries, function: Callable[[Any], Any], memo: Memo) -> Values:
    """The results of a function of one value.

    Args:
        entries: The values.
        function: The function; None for no result.
        memo: What is known of it already.

    Returns:
        One result for each value.
    """
    found = []
    for value in entries.values():
        key = key_of(value)
        try:
            result = memo.get(key, _UNKNOWN)
        except TypeError:  # a mapping
            found.append(function(value))
            continue
        if result is _UNKNOWN:
            result = memo[key] = function(value)
        found.append(result)
    return Values(found)


def structure(text: str) -> Any:  # noqa: ANN401 - whatever stands in it
    """What a JSON text holds.

    Args:
        text: The text.

    Returns:
        Mappings, lists and scalars; None where it is not valid, or nested too deep.
    """
    try:
        return json.loads(text, parse_float=lambda digits: float(digits) + 0.0)
    except (ValueError, RecursionError):
        return None
