"""Transformers that take away, rename or change what events say: remove, rename, replace, trim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from kcap.errors import KcapError
from kcap.model import catalogue, naming
from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.naming import RAW
from kcap.model.side import SourceInfo
from kcap.transform import names, shapes, texts
from kcap.transform.names import Names
from kcap.transform.sides import Sides, Untouched

_HOST = "host"


class Remove(Untouched):
    """A stage that takes columns away, also from the tables of the state.

    Args:
        columns: Names of parameters or columns.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._names = Names(columns, "remove")
        self._sides = Sides(self)

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        before = self._sides.changed(batch.before)
        batch = self._sides.events(batch)
        kept = [n for n in batch.columns if not self._names.has(n)]
        out = batch if len(kept) == len(batch.columns) else batch.select(kept)
        gone = self._names.bases
        if gone:
            out = shapes.edited(out, lambda text: shapes.without(text, gone.__contains__))
        return out.with_before(before)

    def source(self, info: SourceInfo) -> SourceInfo:
        """See `kcap.transform.sides.Change.source`."""
        return replace(info, host=None) if self._names.has(_HOST) else info

    def table(self, name: str, rows: Batch) -> tuple[str, Batch]:
        """See `kcap.transform.sides.Change.table`."""
        kept = [n for n in rows.columns if not self._names.has_in(name, n)]
        return name, rows.select(kept)


class Rename:
    """A stage that gives arguments other names.

    Args:
        to: Old name to new name, of parameters. An argument that has the new name already gives
            way.

    Raises:
        KcapError: A name is that of a column of the envelope, which all sinks rely on, or two
            arguments would get the same name.
    """

    def __init__(self, to: Mapping[str, str]) -> None:
        self._names = {_argument(old): _argument(new) for old, new in to.items()}
        self._bases = {naming.argument(a): naming.argument(b) for a, b in self._names.items()}
        if len(set(self._names.values())) < len(to):
            what = f"rename: two parameters would have the same name: {', '.join(to.values())}"
            raise KcapError(what, expected="another new name for each")

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        mine = {n: c for n, c in batch.columns.items() if naming.parts(n)[0] in self._bases}
        batch = shapes.edited(batch, lambda text: shapes.renamed(text, self._names))
        if not mine:
            return batch
        out = {n: c for n, c in batch.columns.items() if n not in mine}
        for old, new in self._bases.items():
            out = self._without_values(out, mine, old, new, batch.rows)
        for name, column in mine.items():
            made = self._renamed(name, column.cls)
            if made in out:
                column = texts.merged(out[made], column, batch.rows)  # noqa: PLW2901
            out[made] = column
        return Batch(batch.rows, out, batch.before)

    @staticmethod
    def _without_values(
        columns: dict[str, Column], mine: dict[str, Column], old: str, new: str, count: int
    ) -> dict[str, Column]:
        """Columns without what an argument said that another one's new name is now."""
        given = np.zeros(count, np.bool_)
        for name, column in mine.items():
            if naming.parts(name)[0] == old:
                given[slice(None) if column.rows is None else column.rows] = True
        rows = np.flatnonzero(given).astype(np.int32)
        kept: dict[str, Column] = {}
        for name, column in columns.items():
            is_new = len(rows) and naming.parts(name)[0] == new
            found = texts.without(column, rows, count) if is_new else column
            if found is not None:
                kept[name] = found
        return kept

    def _renamed(self, column: str, cls: TypeClass) -> str:
        """The name of a column: where it is at home may differ."""
        base, suffixes = naming.parts(column)
        to = self._bases[base]
        endings = [s for s in suffixes if s not in frozenset(TypeClass)]
        if endings[-1:] and endings[-1] in {RAW, naming.SIZE}:
            found = catalogue.class_of("__".join((base, *suffixes[:-1])))
            cls = cls if found is None else found
        return "__".join((naming.column_name(to, cls, catalogue.home(to)), *endings))


def _argument(name: str) -> str:
    """The source's own name of a parameter, however it was given."""
    names.check(name, "rename")
    base = names.base_of(name)
    if not base.startswith(f"{naming.ARGUMENT}_"):
        what = f"rename: {name!r} is a column that every event has under this name"
        hint = f"a parameter of that name is {naming.argument(name)!r}; templates show any name"
        raise KcapError(what, expected="the name of a parameter", hint=hint)
    return naming.source_name(base)


class Replacement(NamedTuple):
    """What is put in place of what, in one column."""

    name: str
    old: str
    new: str


class Trimming(NamedTuple):
    """What is taken off the ends of a column's texts."""

    name: str
    prefix: str = ""
    suffix: str = ""


class Edit(Untouched):
    """A stage that changes texts: those of events, and the same in the tables of the state.

    Args:
        edits: What is done, in this order.
    """

    def __init__(self, edits: Sequence[Replacement | Trimming]) -> None:
        self._edits = [
            (edit, Names([edit.name], "replace" if isinstance(edit, Replacement) else "trim"))
            for edit in edits
        ]
        self._sides = Sides(self)

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        before = self._sides.changed(batch.before)
        out = self._sides.events(batch)
        for edit, columns in self._edits:
            out = _edited(out, edit, [n for n in out.columns if columns.has(n)])
        return out.with_before(before)

    def source(self, info: SourceInfo) -> SourceInfo:
        """See `kcap.transform.sides.Change.source`."""
        host = info.host
        for edit, columns in self._edits:
            if host is not None and columns.has(_HOST):
                host = _text(host, edit)
        return replace(info, host=host)

    def table(self, name: str, rows: Batch) -> tuple[str, Batch]:
        """See `kcap.transform.sides.Change.table`."""
        for edit, columns in self._edits:
            rows = _edited(rows, edit, [n for n in rows.columns if columns.has_in(name, n)])
        return name, rows


def _edited(batch: Batch, edit: Replacement | Trimming, columns: Sequence[str]) -> Batch:
    out = batch
    for name in columns:
        column = batch.columns[name]
        exact = naming.parts(name)[1][-1:] == [RAW]
        if column.cls in texts.TEXTUAL and (exact or column.cls is not TypeClass.BIN):
            changed = texts.mapped(
                column,
                lambda found: [_text(v, edit) for v in found],
                lambda found: [_data(v, edit) for v in found],
            )
            out = texts.put(out, name, changed)
    return out


def _text(value: str, edit: Replacement | Trimming) -> str:
    if isinstance(edit, Replacement):
        return value.replace(edit.old, edit.new)
    value = value.removeprefix(edit.prefix)
    return value.removesuffix(edit.suffix)


def _data(value: bytes, edit: Replacement | Trimming) -> bytes:
    if isinstance(edit, Replacement):
        return value.replace(edit.old.encode(), edit.new.encode())
    value = value.removeprefix(edit.prefix.encode())
    return value.removesuffix(edit.suffix.encode())


class Tags:
    """A stage that puts the same texts on every event.

    Args:
        tags: Name to text: the columns ``ext_tag_NAME``.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = {tag_column(name): value for name, value in tags.items()}

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        if not batch.rows:
            return batch
        made = {n: constant(TypeClass.STR, v, batch.rows) for n, v in self._tags.items()}
        return batch.adding(made)


def tag_column(name: str) -> str:
    """The column of a tag.

    Args:
        name: The tag's name.

    Returns:
        ``ext_tag_NAME__str``.
    """
    base = naming.extension(f"tag_{name}")
    return naming.column_name(base, TypeClass.STR, catalogue.home(base))
