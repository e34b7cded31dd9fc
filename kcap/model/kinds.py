"""The kinds of events in a batch: an argument's number means what its event and source say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from kcap.model import catalogue, decode
from kcap.model.batch import Column
from kcap.model.distinct import grouped

Int64s = npt.NDArray[np.int64]

DECIDING: Final = frozenset({"event", "source"})
"""Columns that tell the kind of an event."""


class Rows(Protocol):
    """Events whose columns can be asked for."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def get(self, name: str, /) -> Column | None:
        """A column, None where no event has a value."""


class Kinds:
    """Which kinds of events a block has: what an argument's number means depends on them.

    Args:
        block: The events.
        families: The family of each source, by its id.
    """

    def __init__(self, block: Rows, families: Mapping[str, str]) -> None:
        self._block = block
        self._families = families

    @cached_property
    def _found(self) -> tuple[list[tuple[str, str]], Int64s]:
        """Family and event of each kind, and the kind of each row."""
        sources, source = _codes(self._block, "source")
        events, event = _codes(self._block, "event")
        found = grouped([source, event], [len(sources), len(events)])
        pairs = zip(*(codes.tolist() for codes in found.codes), strict=True)
        named = [(self._families.get(sources[s], ""), events[e]) for s, e in pairs]
        return named, found.rows

    def decoders(self, argument: str, column: Column) -> tuple[list[str], Int64s]:
        """The decoders of an argument.

        Args:
            argument: Its own name.
            column: Its values.

        Returns:
            The different ones, and which of them is that of each value.
        """
        kinds, codes = self._found
        tables = [catalogue.decoder_of(family, event, argument) for family, event in kinds]
        # Other programs' spellings are for their own texts, not for people.
        tables = ["" if decode.SPELLING in table else table for table in tables]
        different = sorted(set(tables))
        places = np.array([different.index(table) for table in tables], np.int64)
        return different, places[codes if column.rows is None else codes[column.rows]]


def _codes(block: Rows, name: str) -> tuple[list[str], Int64s]:
    """The texts of a column and which of them each row has; the last is none."""
    codes = np.zeros(block.rows, np.int64)
    column = block.get(name)
    if column is None or not len(column):
        return [""], codes
    column = column if len(column.values.dictionary) <= len(column) else column.compact()
    entries = column.values.dictionary.to_pylist()
    codes[:] = len(entries)
    codes[slice(None) if column.rows is None else column.rows] = column.codes()
    return [*entries, ""], codes
