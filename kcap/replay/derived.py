"""Derived events: views of recorded ones, under the names that rules ask for.

A recording of kcap's own holds what the kernel told: ``openat``, ``mprotect``. Other tools see the
same through other hooks (``security_file_open``, ``mem_prot_alert``), and rules are written for
those names. So ``derived.tsv`` says for each such event what it is a view of, under which
condition, and which of its arguments hold what.

A view's event stands behind its base event and shares its identity (``origin``, ``ord``), its time
and its process; ``event`` and ``derived_from`` tell it apart. None is ever stored: what is kept
of it is the base event. Where a source says (``events`` among its details) that it recorded an
event itself, there is no view of that name; but where an event is recorded only when it fails
(``execve``), the view has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kcap.model import catalogue, naming
from kcap.model.batch import Batch, Rows, concat, constant, state_rows
from kcap.model.classes import TypeClass
from kcap.model.side import Side, SourceInfo
from kcap.replay.derivation import View

if TYPE_CHECKING:
    from kcap.filter.filter import Filter

FROM: Final = "derived_from"
"""The column with the name of the base event."""

FAMILY: Final = "kcap-bpf"
"""The sources whose events have views."""

_ADDED_TO: Final = frozenset({"execve", "execveat"})
"""Recorded where they fail, and views where they do not."""

_REPLACED: Final = frozenset(
    {"action", "args_count", "category", "event", "event_id", FROM, "shape"}
)
_DECIDING: Final = frozenset({"event", "kind", "source"})
_NOT_NAMING: Final = frozenset({"!=", "<", "<=", ">", ">="})
"""Operators that hold for names which nobody had in mind."""


def names() -> frozenset[str]:
    """The names of all derived events."""
    return frozenset(entry.event for entry in catalogue.derived(FAMILY))


def named(filters: Iterable[Filter]) -> frozenset[str]:
    """The derived events that filters ask for by name.

    Args:
        filters: The filters.

    Returns:
        Those whose names, or whose base events in `FROM`, they compare with, in full or as a
        pattern; what they say with ``!=`` or an order asks for none.
    """
    found: set[str] = set()
    for chosen in filters:
        for _, leaf in chosen.engine.leaves():
            if len(leaf.fields) != 1 or leaf.presence or str(leaf.op) in _NOT_NAMING:
                continue
            for source in chosen.engine.fields[leaf.fields[0]].field.sources:
                if source.column in ("event", FROM) and not source.function:
                    entries = catalogue.derived(FAMILY)
                    texts = [e.event if source.column == "event" else e.base for e in entries]
                    verdicts = leaf.each(texts).tolist()
                    found.update(e.event for e, s in zip(entries, verdicts, strict=True) if s)
    return frozenset(found)


def derivation(filters: Iterable[Filter], more: Collection[str] = ()) -> Derivation | None:
    """What adds the derived events that somebody asks for.

    Args:
        filters: Filters that may name some.
        more: Others that are wanted.

    Returns:
        The stage; None where there are none.
    """
    wanted = named(filters).union(more)
    return Derivation(wanted) if wanted else None


class Derivation:
    """A stage that adds derived events.

    Example:
        >>> stages = [Derivation(named([chosen]))]  # doctest: +SKIP

    Args:
        wanted: Their names.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        self.names = frozenset(wanted)
        entries = catalogue.derived(FAMILY)
        self.views = tuple(View(entry) for entry in entries if entry.event in wanted)
        self._conditions = self.columns(())
        self._native: dict[str, frozenset[str]] = {}
        """The events that each source of the family recorded itself."""

    def columns(self, wanted: Collection[str] | None = None) -> frozenset[str]:
        """The columns of base events that are needed.

        Args:
            wanted: The columns of derived events that matter; None for all.

        Returns:
            Their names; of an argument the columns of all classes.
        """
        return _DECIDING.union(*(view.columns(wanted) for view in self.views))

    @cached_property
    def made(self) -> frozenset[str]:
        """The columns in which a derived event may hold what its base event does not there."""
        return _REPLACED.union(*(view.made() for view in self.views))

    def types(self, known: Mapping[str, TypeClass]) -> dict[str, TypeClass]:
        """The columns that derived events add to those of recorded ones.

        Args:
            known: The columns of the recorded events.

        Returns:
            Their names and classes.
        """
        found = {FROM: TypeClass.STR, "action": TypeClass.STR, "category": TypeClass.STR}
        found["shape"] = TypeClass.STR
        for view in self.views:
            found |= view.types(known)
        return {name: cls for name, cls in found.items() if name not in known}

    def note(self, sides: Iterable[Side]) -> None:
        """Take notice of sources, which stand before their events.

        Args:
            sides: What stands beside events.
        """
        for side in sides:
            if isinstance(side, SourceInfo) and catalogue.family(side.collector) == FAMILY:
                events = side.details.get("events")
                held = frozenset(events) if isinstance(events, list) else frozenset()
                self._native[side.id] = held - _ADDED_TO

    def events(self, recorded: Collection[str]) -> frozenset[str]:
        """The derived events that there may be.

        Args:
            recorded: The events that were recorded.

        Returns:
            Their names.
        """
        return frozenset(view.event for view in self.views if view.base in recorded)

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        return _merged(self.parts(batch))[0]

    def matching(self, batch: Batch, rows_of: Callable[[Batch], Rows]) -> tuple[Batch, Rows]:
        """The events and derived events that are wanted.

        Args:
            batch: The next events of the stream.
            rows_of: Gives the rows that are wanted of some events.

        Returns:
            Those events, and for each the row that it was, or is a view of.
        """
        found = []
        for part, at in self.parts(batch):
            rows = rows_of(part)
            found.append((part.take(rows), at[rows]))
        return _merged(found)

    def parts(self, batch: Batch) -> list[tuple[Batch, Rows]]:
        """A batch, then the events that each view makes of it.

        Args:
            batch: The next events of the stream.

        Returns:
            The batches, and with each for its rows the row that it was, or is a view of.
        """
        self.note(batch.before)
        made = [(_derived(batch.take(rows), view), rows) for view, rows in self._viewed(batch)]
        return [(batch, np.arange(batch.rows, dtype=np.int32)), *made]

    def _viewed(self, batch: Batch) -> Iterable[tuple[View, Rows]]:
        """The views of the batch's events, and the rows of each."""
        event = batch.get("event")
        if event is None or not self._native:
            return
        entries = event.values.dictionary.to_pylist()
        codes = np.full(batch.rows, len(entries), np.int64)
        codes[slice(None) if event.rows is None else event.rows] = event.codes()
        codes[state_rows(batch)] = len(entries)
        present = np.zeros(len(entries) + 1, np.bool_)
        present[codes] = True
        there = {name for name, kept in zip(entries, present.tolist(), strict=False) if kept}
        bases: dict[str, tuple[Rows, Batch]] = {}
        for view in self.views:
            if view.base not in there:
                continue
            if view.base not in bases:
                own = np.array([*(entry == view.base for entry in entries), False])[codes]
                rows = np.flatnonzero(own).astype(np.int32)
                bases[view.base] = rows, batch.select(self._conditions).take(rows)
            rows, part = bases[view.base]
            rows = rows[view.holds(part) & self._has_views(part, view.event)]
            if len(rows):
                yield view, rows

    def _has_views(self, batch: Batch, name: str) -> npt.NDArray[np.bool_]:
        """The events whose source has a view of that name."""
        found = np.zeros(batch.rows, np.bool_)
        source = batch.get("source")
        if source is not None:
            ids = source.values.dictionary.to_pylist()
            said = [i in self._native and name not in self._native[i] for i in ids]
            at = slice(None) if source.rows is None else source.rows
            found[at] = np.array(said, np.bool_)[source.codes()]
        return found


def _merged(parts: Sequence[tuple[Batch, Rows]]) -> tuple[Batch, Rows]:
    """Events and views of them in the order of the stream."""
    batch, rows = parts[0]
    if not any(part.rows for part, _ in parts[1:]):
        return batch, rows
    at = np.concatenate([rows for _, rows in parts])
    order = np.argsort(at, kind="stable").astype(np.int32)
    return concat([part for part, _ in parts]).take(order), at[order]


def _derived(base: Batch, view: View) -> Batch:
    """The derived events of some base events."""
    own = view.made()
    kept = {
        name: column
        for name, column in base.columns.items()
        if not (name in _REPLACED or name in own or name.startswith(f"{naming.ARGUMENT}_"))
    }
    texts = {
        "event": view.event,
        FROM: view.base,
        "action": view.entry.action,
        "category": view.entry.category,
    }
    for name, text in texts.items():
        if text is not None:
            kept[name] = constant(TypeClass.STR, text, base.rows)
    made = Batch(base.rows, {**kept, **view.values(base)})
    return made.adding({"shape": view.shape(made)})
