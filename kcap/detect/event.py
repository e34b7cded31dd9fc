"""Events one at a time, for what can't be asked of columns: state machines, texts of alerts.

Nothing is made of an event before somebody asks for it: machines see few events, and of those few
fields.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.detect.rule import Identity
from kcap.filter import interpret
from kcap.filter.cells import Cells, Reader
from kcap.filter.check import Checked, Resolved, check
from kcap.filter.entries import Memo, Numbers, Texts
from kcap.filter.errors import FilterError
from kcap.filter.parser import parse
from kcap.filter.syntax import FieldRef
from kcap.filter.syntax import Sequence as Steps
from kcap.model import alert, naming, shape
from kcap.model.batch import Batch, Column, Rows
from kcap.model.classes import TypeClass

_OFTEN: Final = 32
"""Questions to a column after which a table of its rows is made."""

_SHARE: Final = 16
"""All expected rows are told of at once when one in so many was asked for: that takes a tenth of
the time of one after another."""

_NUMBERS: Final = frozenset({TypeClass.I64, TypeClass.U64, TypeClass.F64})
_NONE: Final[Mapping[str, Any]] = {}


@lru_cache(maxsize=1 << 12)
def field(name: str, era: int | None = None) -> tuple[FieldRef, Resolved]:
    """What a field's name leads to.

    Args:
        name: A field of the filter language, with brackets where it has some: ``ps.name``.
        era: 1 or 3, None for what the name tells.

    Returns:
        The field as it is named, and what it is.

    Raises:
        FilterError: There is none of that name.
    """
    text = f"exists({name})"
    node = parse(text)
    assert not isinstance(node, Steps)
    found = list(check(node, text, era).fields.items())
    if len(found) != 1:
        raise FilterError(f"{name!r} is no field", text, 7, 7 + len(name))
    return found[0]


class Looked:
    """A batch whose events are looked at.

    Args:
        batch: The events, with all that rules may ask for.
        families: The collector of each source, by its id.
        memo: What functions gave for values before.
        causes: Of alerts, which are events too: what caused each.
    """

    def __init__(
        self,
        batch: Batch,
        families: Mapping[str, str],
        memo: dict[str, Memo],
        causes: Sequence[tuple[Identity, ...]] | None = None,
    ) -> None:
        self.batch = batch
        self.causes = causes
        self.expected: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        """The rows that may be asked whose they are, ascending."""
        self._asked = 0
        self._told: dict[int, tuple[Identity | None, dict[str, Any]]] = {}
        self._families = families
        self._memo = memo
        self._last: tuple[int, dict[str, Any]] | None = None
        self._looked: dict[str, _Values | None] = {}
        self._readers: dict[str, Reader] = {}
        self._values: dict[tuple[FieldRef, str], list[tuple[Cells, Sequence[Any] | None]]] = {}

    @cached_property
    def _who(self) -> list[tuple[str, _Values]]:
        found = [(name, self.batch.get(name)) for name in alert.WHO]
        return [(name, _Values(column)) for name, column in found if column is not None]

    @cached_property
    def _arguments(self) -> Mapping[str, list[tuple[int, str]]]:
        """The columns that may have an argument of a name: which occurrence, and the column."""
        found: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for column in sorted(self.batch.columns):
            base, suffixes = naming.parts(column)
            if base.partition("_")[0] != naming.ARGUMENT:
                continue
            if naming.RAW in suffixes or naming.SIZE in suffixes:
                continue  # it only stands beside a value
            again = next((int(s) for s in suffixes if s.isdecimal()), 1)
            found[naming.source_name(base)].append((again, column))
        return found

    def value(self, row: int, column: str) -> Any:  # noqa: ANN401 - any value
        """What a column has in a row.

        Args:
            row: The row.
            column: The column's name.

        Returns:
            The value as Python has it, structures of JSON too; None where there is none.
        """
        if column not in self._looked:
            found = self.batch.get(column)
            self._looked[column] = None if found is None else _Values(found)
        values = self._looked[column]
        return None if values is None else values.value(row)

    def of_field(self, row: int, ref: FieldRef, resolved: Resolved) -> Any:  # noqa: ANN401
        """What a field is in a row.

        Args:
            row: The row.
            ref: The field as it is named.
            resolved: What it leads to.

        Returns:
            A value of the filter language (`kcap.filter.values`); None where it is missing.
        """
        for cells, values in self._cells(ref, resolved):
            at = _place(cells.rows, row)
            if at is None:
                continue
            code = at if cells.codes is None else int(cells.codes[at])
            entries = cells.entries
            if values is not None:
                return values[code]
            if isinstance(entries, Numbers | Texts):
                found = entries.array[code]
                return found.as_py() if isinstance(entries, Texts) else found.item()
        return None

    def _cells(self, ref: FieldRef, resolved: Resolved) -> list[tuple[Cells, Sequence[Any] | None]]:
        """The values of a field; as Python has them where looking at one would make all."""
        era = resolved.field.era
        if (ref, era) not in self._values:
            if era not in self._readers:
                # A field of one name is another one in another era.
                self._readers[era] = Reader(self.batch, self._families, self._memo)
            parts = self._readers[era].cells(ref, resolved)
            plain = [isinstance(part.entries, Numbers | Texts) for part in parts]
            self._values[ref, era] = [
                (part, None if quick else part.entries.values())
                for part, quick in zip(parts, plain, strict=True)
            ]
        return self._values[ref, era]

    def who(self, row: int) -> dict[str, Any]:
        """What an alert tells of an event, as `kcap.model.alert.who` has it.

        Args:
            row: Its row.

        Returns:
            Names and values of columns.
        """
        # Several rules may alert on one event.
        if self._last is None or self._last[0] != row:
            if (told := self._known(row)) is not None:
                return told[1]
            found = {name: values.value(row) for name, values in self._who}
            self._last = row, {name: v for name, v in found.items() if v is not None}
        return self._last[1]

    def identity(self, row: int) -> Identity | None:
        """The identity of an event.

        Args:
            row: Its row.

        Returns:
            None where the source tells none.
        """
        if (told := self._known(row)) is not None:
            return told[0]
        number = self.value(row, "ord")
        return None if number is None else Identity(self.value(row, "origin") or "", number)

    def _known(self, row: int) -> tuple[Identity | None, dict[str, Any]] | None:
        """Identity and `who` of an event, where those of all expected ones were looked up."""
        if not self._told:
            self._asked += 1
            if not len(self.expected) or self._asked * _SHARE < len(self.expected):
                return None
            self._told = self._all_told()
        return self._told.get(row)

    def _all_told(self) -> dict[int, tuple[Identity | None, dict[str, Any]]]:
        rows = self.expected
        names = [name for name, _ in self._who]
        whose = zip(*(values.many(rows) for _, values in self._who), strict=True)
        found = [
            {name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in (whose if names else repeat((), len(rows)))
        ]
        columns = [self.batch.get(name) for name in ("origin", "ord")]
        origins, numbers = [
            repeat(None, len(rows)) if column is None else _Values(column).many(rows)
            for column in columns
        ]
        identities = [
            None if number is None else Identity(origin or "", number)
            for origin, number in zip(origins, numbers, strict=True)
        ]
        return dict(zip(rows.tolist(), zip(identities, found, strict=True), strict=True))

    def arguments(self, row: int) -> dict[str, Any]:
        """The arguments of an event.

        Args:
            row: Its row.

        Returns:
            Names and values, in the source's order; one that held null is None.
        """
        text = self.value(row, "shape")
        if text is None:
            names = [(name, 1) for name in self._arguments]
            found = {name: self._argument(row, name, again) for name, again in names}
            return {name: value for name, value in found.items() if value is not None}
        seen: Counter[str] = Counter()
        values: dict[str, Any] = {}
        for item in shape.decode(text).arguments:
            seen[item.name] += 1
            values.setdefault(item.name, self._argument(row, item.name, seen[item.name]))
        return values

    def _argument(self, row: int, name: str, again: int) -> Any:  # noqa: ANN401 - any value
        for occurrence, column in self._arguments.get(name, ()):
            if occurrence == again and (value := self.value(row, column)) is not None:
                return value
        return None


class Row:
    """One event of a batch (`kcap.detect.rule.Event`).

    Args:
        looked: The batch.
        row: Its row.
    """

    __slots__ = ("looked", "row")

    def __init__(self, looked: Looked, row: int) -> None:
        self.looked = looked
        self.row = row

    @property
    def identity(self) -> Identity | None:
        """See `kcap.detect.rule.Event`."""
        return self.looked.identity(self.row)

    @property
    def causes(self) -> tuple[Identity, ...]:
        """What an alert about it is about: itself; of an alert, what that is about."""
        if self.looked.causes is not None:
            return self.looked.causes[self.row]
        identity = self.identity
        return () if identity is None else (identity,)

    @property
    def ts_ns(self) -> int | None:
        """See `kcap.detect.rule.Event`."""
        found: int | None = self.column("ts")
        return found

    @property
    def name(self) -> str:
        """See `kcap.detect.rule.Event`."""
        return self.column("event") or ""

    def column(self, name: str) -> Any:  # noqa: ANN401 - any value
        """See `kcap.detect.rule.Event`."""
        return self.looked.value(self.row, name)

    def field(self, name: str, era: int | None = None) -> Any:  # noqa: ANN401 - any value
        """See `kcap.detect.rule.Event`."""
        return self.looked.of_field(self.row, *field(name, era))

    def holds(self, condition: Checked, variables: Mapping[str, Any] = _NONE) -> bool:
        """See `kcap.detect.rule.Event`."""

        def lookup(ref: FieldRef) -> Any:  # noqa: ANN401 - any value
            return self.looked.of_field(self.row, ref, condition.fields[ref])

        return interpret.holds(condition.expr, lookup, variables)

    def arguments(self) -> Mapping[str, Any]:
        """See `kcap.detect.rule.Event`."""
        return self.looked.arguments(self.row)

    def who(self) -> dict[str, Any]:
        """Whose it is (`kcap.model.alert.who`)."""
        return self.looked.who(self.row)


def _place(rows: Rows | None, row: int) -> int | None:
    """Where the value of a row is; None where it has none."""
    if rows is None:
        return row
    # A number of another type would be looked for in a copy of all rows.
    at = int(rows.searchsorted(rows.dtype.type(row)))
    return at if at < len(rows) and rows[at] == row else None


class _Values:
    """A column whose values are looked at one by one."""

    __slots__ = ("_array", "_asked", "_codes", "_entries", "_is_json", "_places", "rows")

    def __init__(self, column: Column) -> None:
        self.rows = column.rows
        self._asked = 0
        self._places: memoryview | None = None
        self._is_json = column.cls is TypeClass.JSON
        self._codes: npt.NDArray[Any] | None = None
        self._array: Any = column.values
        if pa.types.is_dictionary(column.values.type):
            self._codes, self._array = column.codes(), column.values.dictionary
        elif column.cls in _NUMBERS:
            self._array = np.asarray(column.values)
        self._entries: dict[int, Any] = {}

    def value(self, row: int) -> Any:  # noqa: ANN401 - any value
        """The value of a row, None where it has none."""
        at = row if self.rows is None else self._sought(self.rows, row)
        if at is None:
            return None
        if self._codes is not None:
            at = self._codes.item(at)
            if at in self._entries:
                return self._entries[at]
        found = self._array[at]
        value = found.item() if isinstance(found, np.generic) else found.as_py()
        if self._is_json:
            return _structure(value)  # anew each time: it may be changed by who gets it
        if self._codes is not None:
            self._entries[at] = value
        return value

    def many(self, rows: npt.NDArray[np.int64]) -> list[Any]:
        """The values of several rows, ascending."""
        if self._is_json or not (self._codes is not None or isinstance(self._array, np.ndarray)):
            return [self.value(row) for row in rows.tolist()]
        at, found = rows, np.ones(len(rows), np.bool_)
        if self.rows is not None:
            at = self.rows.searchsorted(rows.astype(self.rows.dtype))
            found = self.rows.take(at, mode="clip") == rows
        values: list[Any] = [None] * len(rows)
        given: list[Any]
        if self._codes is None:
            given = self._array[at[found]].tolist()
        else:
            codes = self._codes[at[found]]
            new = np.unique(codes)
            entries = self._array.take(pa.array(new)).to_pylist()
            known = dict(zip(new.tolist(), entries, strict=True))
            given = [known[code] for code in codes.tolist()]
        if len(given) == len(rows):
            return given
        for place, value in zip(np.flatnonzero(found).tolist(), given, strict=True):
            values[place] = value
        return values

    def _sought(self, rows: Rows, row: int) -> int | None:
        """Where the value of a row is; who asks often is answered from a table."""
        if self._places is not None:
            at = self._places[row] if row < len(self._places) else -1
            return None if at < 0 else at
        self._asked += 1
        if self._asked == _OFTEN:
            places = np.full(int(rows[-1]) + 1, -1, np.int64)
            places[rows] = np.arange(len(rows))
            self._places = places.data
        return _place(rows, row)


def _structure(text: str) -> Any:  # noqa: ANN401 - whatever stands in it
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # it was cut: text is what is left of it
