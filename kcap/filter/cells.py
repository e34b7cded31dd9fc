"""The values of a field, as columns have them: alternatives, conditions, functions, decoders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.filter import derive
from kcap.filter.check import Resolved
from kcap.filter.entries import (
    Entries,
    Lists,
    Memo,
    Numbers,
    Texts,
    Values,
    mapped,
    of_list,
    unsigned_zero,
)
from kcap.filter.fields import Source, When
from kcap.filter.syntax import FieldRef
from kcap.filter.values import Named
from kcap.model import catalogue, decode, naming
from kcap.model.batch import Column, Rows
from kcap.model.classes import TypeClass
from kcap.model.distinct import grouped
from kcap.model.kinds import DECIDING, Kinds

STATE: Final = "state:"
"""How the names of columns begin that only the state of the machine tells."""

_PREFIXES: Final[Mapping[str, Callable[[str], str]]] = {
    "arg": naming.argument,
    "ext": naming.extension,
}
_SHAPE: Final = "shape"
_EVENT: Final = "event"
_NUMBERS: Final = frozenset({TypeClass.I64, TypeClass.U64, TypeClass.F64, TypeClass.BOOL})
_LOOKED_AT: Final = 1 << 16
"""In so many verdicts true ones are counted before they are spread."""


class View(Protocol):
    """Events whose columns can be asked for, perhaps read only then."""

    @property
    def rows(self) -> int:
        """How many there are."""

    @property
    def names(self) -> Collection[str]:
        """The columns there are; those of the state among them."""

    def get(self, name: str, /) -> Column | None:
        """A column, None where no event has a value."""


@lru_cache(maxsize=1 << 12)
def column_names(column: str) -> tuple[str, ...]:
    """The columns that a source's name may mean.

    Args:
        column: As in a `Source`: ``pid``, ``arg:pathname``, ``state:parent.exe``.

    Returns:
        Their names; of an argument one for each class, its home first.
    """
    prefix, _, name = column.partition(":")
    if prefix not in _PREFIXES or not name:
        return (column,) if column else ()
    base = _PREFIXES[prefix](name)
    home = catalogue.home(base)
    classes = sorted(TypeClass, key=lambda cls: cls is not home)
    return tuple(naming.column_name(base, cls, home) for cls in classes)


@lru_cache(maxsize=1 << 12)
def useful_columns(source: Source) -> tuple[str, ...]:
    """The columns in which a source may have a value.

    Args:
        source: The source.

    Returns:
        Their names; columns of numbers are not among them where its function is one of text.
    """
    names = column_names(source.column) or (_SHAPE,)
    if source.function not in derive.OF_TEXT:
        return names
    return tuple(name for name in names if catalogue.class_of(name) not in _NUMBERS)


def needed(resolved: Resolved) -> set[str]:
    """The columns that the value of a field may depend on.

    Args:
        resolved: The field.

    Returns:
        Their names, those of the state included.
    """
    found: set[str] = set()
    for source in resolved.field.sources:
        found.update(useful_columns(source))
        if source.when is not None:
            found.add(source.when.column)
        if source.column.startswith(tuple(_PREFIXES)):
            found |= DECIDING
    return found


def spread(verdicts: npt.NDArray[np.bool_], codes: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Verdicts on the entries of a dictionary as verdicts on its codes.

    Args:
        verdicts: One an entry.
        codes: The codes.

    Returns:
        One a code.
    """
    if len(verdicts) <= _LOOKED_AT:
        true = np.flatnonzero(verdicts)
        if len(true) == 1:
            # A tenth of the time.
            return np.asarray(np.equal(codes, codes.dtype.type(true[0])))
        if len(true) == len(verdicts) - 1:
            return np.asarray(np.not_equal(codes, codes.dtype.type(verdicts.argmin())))
        if len(true) in (0, len(verdicts)):
            return np.full(len(codes), bool(len(true)), np.bool_)
    return verdicts.take(codes)


@dataclass(frozen=True, slots=True)
class Cells:
    """Values of a field in some rows."""

    rows: Rows | None
    """The rows; None where all have a value."""
    codes: npt.NDArray[Any] | None
    """Which entry the value of each row is; None where the entries are one a row."""
    entries: Entries

    def spread(self, verdicts: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Verdicts on the entries as verdicts on the rows."""
        if self.codes is None:
            return verdicts
        return spread(verdicts, self.codes)

    def sought(self, at: npt.NDArray[Any]) -> tuple[Any, npt.NDArray[Any]]:
        """Find rows.

        Args:
            at: Rows, ascending.

        Returns:
            Which of them have a value here, and the places of those values.
        """
        if self.rows is None:
            return slice(None), at
        places = self.rows.searchsorted(at.astype(self.rows.dtype, copy=False))
        which = np.flatnonzero(self.rows.take(places, mode="clip") == at)
        return which, places[which]

    def few(self, places: npt.NDArray[Any]) -> Cells:
        """The values in some places, without entries that none of them is.

        Args:
            places: The places.

        Returns:
            The values in those places, in that order; the rows are not told.
        """
        entries, codes = self.entries, self.codes
        if isinstance(entries, Lists) or (codes is not None and len(entries) <= len(places)):
            return Cells(None, places if codes is None else codes[places], entries)
        if codes is None:
            return Cells(None, None, entries.chosen(places))
        used, codes = np.unique(codes[places], return_inverse=True)
        return Cells(None, codes.reshape(-1), entries.chosen(used))

    def kept(self, keep: npt.NDArray[np.bool_], count: int) -> Cells:
        """The cells of some of the rows.

        Args:
            keep: One a row of these cells.
            count: Rows of the view.

        Returns:
            Them.
        """
        if keep.all():
            return self
        at = np.flatnonzero(keep).astype(np.int32)
        rows = at if self.rows is None else self.rows[at]
        codes = at if self.codes is None else self.codes[at]
        return Cells(None if len(rows) == count else rows, codes, self.entries)


class Reader:
    """Reads fields of events; what it found out stays for the next filter.

    Args:
        view: The events.
        families: The family of each source, by its id.
        memo: What functions gave for values before, kept from view to view.
        types: The types of the events, where that is known without reading them.
    """

    def __init__(
        self,
        view: View,
        families: Mapping[str, str],
        memo: dict[str, Memo],
        types: AbstractSet[str] | None = None,
    ) -> None:
        self._types = types
        self.rows = view.rows
        self._names = view.names
        self._view = view
        self._kinds = Kinds(view, families)
        self._memo = memo
        self._columns: dict[tuple[str, bool], Cells | None] = {}
        self._fields: dict[FieldRef, list[Cells]] = {}
        self._conditions: dict[When, npt.NDArray[np.bool_] | bool] = {}

    def cells(self, ref: FieldRef, resolved: Resolved) -> list[Cells]:
        """The values of a field.

        Args:
            ref: The field as it is named.
            resolved: What it leads to.

        Returns:
            Parts that have no row in common; rows in none of them have no value.
        """
        if ref not in self._fields:
            self._fields[ref] = self._read(resolved)
        return self._fields[ref]

    def _read(self, resolved: Resolved) -> list[Cells]:
        found: list[Cells] = []
        free: npt.NDArray[np.bool_] | None = None
        for source in resolved.field.sources:
            if source.when is not None and self._holds(source.when) is False:
                continue  # its column is not even read
            for name in self._present(source):
                if found:
                    free = self._free(free, found[-1])
                    if not free.any():
                        return found
                cells = self._source(source, name, resolved)
                if cells is not None and free is not None:
                    cells = cells.kept(free if cells.rows is None else free[cells.rows], self.rows)
                if cells is None or (cells.rows is not None and not len(cells.rows)):
                    continue
                found.append(cells)
                if cells.rows is None:
                    return found
        return found

    def _free(self, free: npt.NDArray[np.bool_] | None, cells: Cells) -> npt.NDArray[np.bool_]:
        """The rows that have no value yet."""
        left = np.ones(self.rows, np.bool_) if free is None else free.copy()
        left[slice(None) if cells.rows is None else cells.rows] = False
        return left

    def _present(self, source: Source) -> list[str]:
        """The columns that a source may mean and that some event has."""
        return [name for name in useful_columns(source) if name in self._names]

    def _source(self, source: Source, name: str, resolved: Resolved) -> Cells | None:
        """One alternative."""
        cells = self._column(name, source)
        if cells is None:
            return None
        if source.when is not None:
            holds = self._holds(source.when)
            if not isinstance(holds, bool):
                cells = cells.kept(holds if cells.rows is None else holds[cells.rows], self.rows)
        if source.function:
            cells = self._through(cells, source.function)
        if resolved.key:
            pick = partial(derive.picked, resolved.key, resolved.field.name, resolved.field.era)
            cells = self._mapped(cells, f"[{resolved.field.name}.{resolved.key}", pick)
        elif resolved.field.type == "map":
            cells = self._mapped(cells, "{}", derive.listed)
        return cells

    def _column(self, name: str, source: Source) -> Cells | None:
        decoded = source.column.startswith("arg:") and source.function in derive.OF_NAMED
        key = name, decoded
        if key not in self._columns:
            column = self._view.get(name)
            self._columns[key] = None if column is None else self._cells(column, name, decoded)
        return self._columns[key]

    def _cells(self, column: Column, name: str, decoded: bool) -> Cells:
        values, cls = column.values, column.cls
        if cls in (TypeClass.STR, TypeClass.JSON):
            return Cells(column.rows, column.codes(), Texts(values.dictionary))
        if cls is TypeClass.BIN:
            texts = [raw.hex() for raw in values.dictionary.to_pylist()]
            return Cells(column.rows, column.codes(), Texts(pa.array(texts, pa.utf8())))
        if cls is TypeClass.BOOL:
            flags = np.asarray(values.cast(pa.int8()))
            return Cells(column.rows, flags, Values([False, True]))
        if cls.child:
            return Cells(column.rows, None, of_list(values))
        numbers = np.asarray(values)
        if cls is TypeClass.F64:
            return Cells(column.rows, None, Numbers(unsigned_zero(numbers)))
        if decoded:
            found = self._named(column, name, numbers)
            if found is not None:
                return found
        return Cells(column.rows, None, Numbers(numbers))

    def _named(self, column: Column, name: str, numbers: npt.NDArray[Any]) -> Cells | None:
        """Numbers with the text that their events give them; None where they have none."""
        argument = naming.source_name(naming.parts(name)[0])
        tables, places = self._kinds.decoders(argument, column)
        if not any(decode.known(table) for table in tables):
            return None
        values, codes = Numbers(numbers).distinct
        kinds = grouped([places, codes], [len(tables), len(values)])
        made: list[Any] = []
        for place, code in zip(*(each.tolist() for each in kinds.codes), strict=True):
            number, table = values[code], tables[place]
            known = decode.known(table)
            made.append(Named(number, decode.text_of(table, number)) if known else number)
        return Cells(column.rows, kinds.rows, Values(made))

    def _holds(self, when: When) -> npt.NDArray[np.bool_] | bool:
        """Where a condition on another column holds; False or True where nowhere or anywhere."""
        if when not in self._conditions:
            known = self._types if when.column == _EVENT else None
            if known is not None and known.isdisjoint(when.values):
                self._conditions[when] = when.unless
            else:
                self._conditions[when] = self._held(when)
        return self._conditions[when]

    def _held(self, when: When) -> npt.NDArray[np.bool_] | bool:
        column = self._view.get(when.column)
        if column is None:
            return when.unless
        entries = column.values.dictionary.to_pylist()
        chosen = np.array([entry in when.values for entry in entries], np.bool_)
        if not chosen.any():
            return when.unless
        holds = spread(chosen, column.codes())
        if column.rows is not None:
            full = np.zeros(self.rows, np.bool_)
            full[column.rows] = holds
            holds = full
        return ~holds if when.unless else holds

    def _through(self, cells: Cells, name: str) -> Cells:
        """A function of the values."""
        many = derive.MANY.get(name)
        if many is not None and isinstance(cells.entries, Numbers):
            array = cells.entries.array if cells.codes is None else cells.entries.array[cells.codes]
            return Cells(cells.rows, None, Numbers(many(array)))
        if name in derive.COARSE and isinstance(cells.entries, Numbers):
            array = cells.entries.array
            floors = array - array % array.dtype.type(derive.COARSE[name])
            # The first day that 64 bits can hold began before it: its floor has wrapped around.
            floors = np.minimum(floors, array)
            cells = replace(cells, entries=Numbers(floors))
        return self._mapped(cells, name, derive.function(name))

    def _mapped(self, cells: Cells, name: str, function: Callable[[Any], Any]) -> Cells:
        memo = self._memo.setdefault(name, Memo())
        memo.trim()
        entries, codes = cells.entries, cells.codes
        if isinstance(entries, Numbers):
            values, at = entries.distinct
            entries, codes = Values(values), at if codes is None else at[codes]
        results = mapped(entries, function, memo).values()
        codes = np.arange(len(results)) if codes is None else codes
        present = np.array([result is not None for result in results], np.bool_)
        made: Entries = Values(results)
        if isinstance(entries, Texts) and all(r is None or type(r) is str for r in results):
            made = Texts(pa.array([r or "" for r in results], pa.utf8()))
        kept = Cells(cells.rows, codes, made)
        return kept if present.all() else kept.kept(present[codes], self.rows)


def values_of(cells: Cells) -> tuple[npt.NDArray[Any], list[Any]]:
    """Cells as codes, one a row, into Python's values.

    Args:
        cells: The cells.

    Returns:
        Both.
    """
    entries, codes = cells.entries, cells.codes
    if isinstance(entries, Numbers):
        found, at = entries.distinct
        return (at if codes is None else at[codes]), list(found)
    found = entries.values()
    return (np.arange(len(found)) if codes is None else codes), list(found)


__all__ = ["STATE", "Cells", "Lists", "Reader", "View", "column_names", "needed", "values_of"]
