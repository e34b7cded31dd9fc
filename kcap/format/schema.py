"""Column ids: SCHEMA records give them, chunks use them (spec/kcap.md, clause 4.3)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap import limits
from kcap.errors import DamagedError, KcapError, LimitError
from kcap.format import body
from kcap.model import catalogue, naming
from kcap.model.classes import TypeClass

EVENTS: Final = "events"
"""The table of the events; every other table is one of a state."""


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """One column of a capture."""

    id: int
    table: str
    name: str
    cls: TypeClass
    meaning: str = ""
    decoder: tuple[str, dict[int, str]] | None = None
    """Name and entries of the flag or enum table for its numbers."""

    def to_json(self) -> dict[str, Any]:
        """The column as a member of a SCHEMA record."""
        value: dict[str, Any] = {
            "class": str(self.cls),
            "id": self.id,
            "meaning": self.meaning,
            "name": self.name,
            "table": self.table,
        }
        if self.decoder:
            name, entries = self.decoder
            value["decoder"] = {"name": name, "values": sorted([k, v] for k, v in entries.items())}
        return value


WIDTHS: Final = {TypeClass.I64: 8, TypeClass.U64: 8, TypeClass.F64: 8, TypeClass.BOOL: 1}
"""Bytes of a value in memory, of classes whose values all have one size."""

_CODE_BYTES: Final = 4
_DIRECTORIES_MAX: Final = 64


class Directory(NamedTuple):
    """What is known of the columns that a chunk's directory lists, whatever their values are."""

    places: Mapping[str, int]
    """The place of each name, in order."""
    widths: npt.NDArray[np.int64]
    """Bytes of a value, 0 where they have not one size."""
    item_widths: npt.NDArray[np.int64]
    """Bytes of a list's item, 0 of what is no list."""


class Schema:
    """The columns known so far, by id and by name."""

    def __init__(self) -> None:
        self._by_id: dict[int, ColumnSpec] = {}
        self._by_name: dict[tuple[str, str], ColumnSpec] = {}
        self._bytes = 0
        self._directories: dict[tuple[bytes, bytes, str], Directory] = {}

    def __len__(self) -> int:
        """The number of columns."""
        return len(self._by_id)

    def columns(self, table: str = EVENTS) -> dict[str, TypeClass]:
        """The columns of a table.

        Args:
            table: Its name.

        Returns:
            Name to class, by name.
        """
        found = {n: s.cls for (t, n), s in self._by_name.items() if t == table}
        return dict(sorted(found.items()))

    def get(self, column_id: int) -> ColumnSpec:
        """A column by id.

        Args:
            column_id: The id.

        Returns:
            The column.

        Raises:
            DamagedError: No SCHEMA record gave that id.
        """
        spec = self._by_id.get(column_id)
        if spec is None:
            raise DamagedError(f"no SCHEMA record describes column {column_id}")
        return spec

    def directory(self, ids: bytes, classes: bytes, table: str) -> Directory | None:
        """What is known of the columns in a directory.

        Args:
            ids: Their ids, u32 each.
            classes: Their classes' codes, u8 each.
            table: The table that they must belong to.

        Returns:
            It; None where they are not columns of the table in order, or of another class.
        """
        key = ids, classes, table
        found = self._directories.get(key)
        if found is not None:
            return found
        specs = [self._by_id.get(number) for number in np.frombuffer(ids, "<u4").tolist()]
        known = [s for s in specs if s is not None and s.table == table]
        names = [s.name for s in known]
        if len(known) != len(specs) or bytes(s.cls.code for s in known) != classes:
            return None
        if any(a >= b for a, b in pairwise(names)):
            return None
        children = [s.cls.child for s in known]
        found = Directory(
            {name: place for place, name in enumerate(names)},
            np.array([WIDTHS.get(s.cls, 0) for s in known], np.int64),
            np.array([0 if c is None else WIDTHS.get(c, _CODE_BYTES) for c in children], np.int64),
        )
        if len(self._directories) >= _DIRECTORIES_MAX:
            self._directories.clear()
        self._directories[key] = found
        return found

    def id_of(self, table: str, name: str) -> int:
        """The id of a column that `learn` gave one.

        Args:
            table: Its table.
            name: Its name.

        Returns:
            The id.
        """
        return self._by_name[table, name].id

    def refused(self, table: str, columns: Iterable[tuple[str, TypeClass]]) -> set[str]:
        """The columns that would be more than a capture can have.

        Args:
            table: Their table.
            columns: Name and class, those wanted most first.

        Returns:
            Names that `learn` must not be given.
        """
        count, size = len(self._by_id), self._bytes
        refused = set()
        for name, cls in columns:
            if (table, name) in self._by_name:
                continue
            cost = _cost(_spec(0, table, name, cls))
            fits = count < limits.COLUMNS and size + cost <= limits.SCHEMA_BYTES // 2
            if not fits or len(name.encode()) > limits.NAME_BYTES:
                refused.add(name)
                continue
            count, size = count + 1, size + cost
        return refused

    def learn(self, table: str, columns: Iterable[tuple[str, TypeClass]]) -> list[ColumnSpec]:
        """Give ids to the columns that have none yet.

        Args:
            table: Their table.
            columns: Name and class.

        Returns:
            The new columns, which a SCHEMA record must now describe.

        Raises:
            LimitError: There are too many columns, or a name is too long.
        """
        new = []
        for name, cls in sorted(columns):
            known = self._by_name.get((table, name))
            if known is None:
                new.append(self._add(_spec(len(self._by_id), table, name, cls)))
            elif known.cls is not cls:
                raise DamagedError(f"column {name} is of class {cls}", expected=str(known.cls))
        return new

    def specs(self, first: int = 0) -> list[ColumnSpec]:
        """The columns by id.

        Args:
            first: The least id wanted.

        Returns:
            Those with this id or a greater one.
        """
        return [self._by_id[i] for i in sorted(self._by_id) if i >= first]

    def read(self, values: Iterable[dict[str, Any]]) -> None:
        """Take in the columns of a SCHEMA record or a footer, all of them or none.

        Args:
            values: The members as parsed.

        Raises:
            DamagedError: They are not well formed, or contradict what is known.
        """
        before = dict(self._by_id), dict(self._by_name)
        try:
            self._read(values)
        except KcapError:
            self._by_id, self._by_name = before
            raise

    def _read(self, values: Iterable[dict[str, Any]]) -> None:
        for value in values:
            try:
                decoder = value.get("decoder")
                spec = ColumnSpec(
                    _integer(value["id"]),
                    _text(value["table"]),
                    _text(value["name"]),
                    TypeClass(value["class"]),
                    _text(value.get("meaning", "")),
                    decoder
                    and (str(decoder["name"]), {int(k): str(v) for k, v in decoder["values"]}),
                )
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as e:
                what = "a SCHEMA entry is not well formed"
                raise DamagedError(what, expected="an id, a table, a name and a class") from e
            known = self._by_id.get(spec.id)
            if known is None:
                self._add(spec)
            elif (known.table, known.name, known.cls) != (spec.table, spec.name, spec.cls):
                raise DamagedError(f"column {spec.id} is {spec.name}", expected=known.name)

    def _add(self, spec: ColumnSpec) -> ColumnSpec:
        if len(self._by_id) >= limits.COLUMNS or not 0 <= spec.id < 1 << 32:
            what = f"more than {limits.COLUMNS} columns"
            raise LimitError(what, hint="split the capture, or leave out events of many kinds")
        if len(spec.name.encode()) > limits.NAME_BYTES:
            what = f"a column name of {len(spec.name.encode())} bytes"
            raise LimitError(what, expected=f"at most {limits.NAME_BYTES}")
        if (spec.table, spec.name) in self._by_name:
            raise DamagedError(f"column {spec.name} has two ids")
        if spec.table == EVENTS and catalogue.class_of(spec.name) not in (spec.cls, None):
            known_class = str(catalogue.class_of(spec.name))
            raise DamagedError(f"column {spec.name} is of class {spec.cls}", expected=known_class)
        self._bytes += _cost(spec)
        self._by_id[spec.id] = spec
        self._by_name[spec.table, spec.name] = spec
        return spec


def _integer(value: object) -> int:
    if type(value) is not int:
        raise TypeError(value)
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    value.encode()  # a lone surrogate is no text
    return value


def _cost(spec: ColumnSpec) -> int:
    """Bytes of a column's description, roughly."""
    return len(json.dumps(spec.to_json(), ensure_ascii=False).encode("utf-8", "replace")) + 8


def _spec(column_id: int, table: str, name: str, cls: TypeClass) -> ColumnSpec:
    """A column with what the catalogue knows of it."""
    base, _ = naming.parts(name)
    info = catalogue.info(base) if table == EVENTS else None
    if info is None:
        return ColumnSpec(column_id, table, name, cls)
    decoder = (info.decoder, catalogue.decoder(info.decoder)) if info.decoder else None
    return ColumnSpec(column_id, table, name, cls, info.meaning, decoder)


def pack(specs: Iterable[ColumnSpec]) -> bytes:
    """The payload of a SCHEMA record.

    Args:
        specs: The columns to describe.

    Returns:
        The payload.
    """
    return body.pack([s.to_json() for s in specs], limits.SCHEMA_BYTES)


def unpack(payload: bytes | memoryview) -> list[dict[str, Any]]:
    """The entries of a SCHEMA record, for `Schema.read`.

    Args:
        payload: The record's payload.

    Returns:
        The entries.
    """
    return body.unpack_objects(payload, "SCHEMA", limits.SCHEMA_BYTES)
