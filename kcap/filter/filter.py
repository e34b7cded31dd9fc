"""Filters: an expression, and everything that may be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from kcap.filter import prune
from kcap.filter.cells import STATE, Reader, View
from kcap.filter.check import Checked, check
from kcap.filter.engine import Engine, columns
from kcap.filter.entries import Memo
from kcap.filter.errors import FilterError
from kcap.filter.parser import Macros, parse
from kcap.filter.syntax import Sequence, text_of
from kcap.model.batch import Batch, Rows
from kcap.model.side import Loss, Side, SourceInfo

if TYPE_CHECKING:
    from kcap.binaries.inspector import Inspector
    from kcap.model.stream import Source
    from kcap.where import Values


class Filter:
    """A filter over events, in Fibratus's language.

    A comparison with a missing value is false, ``!=`` included; ``not`` of it is true.

    Example:
        >>> chosen = Filter.of("evt.name = 'execve' and ps.name in ('sh', 'bash')")
        >>> chosen.needs_state
        False
    """

    def __init__(self, checked: Checked, text: str, macros: Macros | None = None) -> None:
        self.text = text
        """As it was given."""
        self._macros = macros
        self.checked = checked
        self.engine = Engine(checked)
        self.inspector: Inspector | None = None
        """What adds to events the columns of artifacts that it asks for; None where nobody does."""
        self._families: dict[str, str] = {}
        self._memo: dict[str, Memo] = {}

    @classmethod
    def of(cls, text: str, era: int | None = None, macros: Macros | None = None) -> Filter:
        """Parse and check a filter.

        Args:
            text: The expression.
            era: 1 or 3: what names mean that Fibratus gave another meaning; None for what the
                names in the expression tell.
            macros: Names that stand for expressions or lists.

        Returns:
            The filter.

        Raises:
            FilterError: It can't be understood, or asks for what is not possible.
        """
        node = parse(text, macros)
        if isinstance(node, Sequence):
            hint = "a sequence is for rules; a filter looks at one event"
            raise FilterError("this is a sequence", text, node.start, node.start + 8, hint=hint)
        return cls(check(node, text, era), text, macros)

    def __str__(self) -> str:
        """The expression in its plainest form."""
        return text_of(parse(self.text, self._macros))

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that the result may depend on, those of the state left out."""
        return frozenset(name for name in self._needed if not name.startswith(STATE))

    @cached_property
    def state_columns(self) -> frozenset[str]:
        """The columns that it needs of the state (`kcap.state.kin`)."""
        return frozenset(name for name in self._needed if name.startswith(STATE))

    def inspect(self, *, binaries: bool) -> None:
        """Let it be answered from artifacts, where it asks for them.

        Args:
            binaries: ``pe.*`` and ``elf.*``, too: those are dear, and may be recorded.

        Raises:
            KcapError: YARA rules in it are wrong.
            MissingExtraError: It has YARA rules, and yara-x is not installed.
        """
        from kcap.binaries import inspector

        wanted = self.columns & (inspector.COLUMNS if binaries else inspector.ASKED)
        if wanted:
            texts = inspector.texts(self.checked.fields)
            scanners = {text: inspector.scanner(text) for text in texts}
            self.inspector = inspector.Inspector(wanted, scanners)

    @cached_property
    def _needed(self) -> set[str]:
        return columns(self.checked.fields.values())

    @property
    def needs_state(self) -> bool:
        """Whether all events must be followed to know what it asks for."""
        return bool(self.state_columns)

    @property
    def follows(self) -> bool:
        """Whether it must be shown all events of a capture: no index tells what it asks for."""
        return self.needs_state or self.inspector is not None

    def bind(self, sources: Iterable[Source]) -> None:
        """Let it know the captures that have the artifacts it asks for, if it asks for any.

        Args:
            sources: Those captures, open as long as it is asked; those it knows already stay known.
        """
        if self.inspector is not None:
            self.inspector.bind(sources)

    @property
    def losses(self) -> list[Loss]:
        """Artifacts that it asks for and that could not be looked at, so far."""
        return [] if self.inspector is None else self.inspector.losses

    def release(self) -> None:
        """Let it forget all captures: those that come next are looked at by themselves."""
        if self.inspector is not None:
            self.inspector = self.inspector.anew()

    @property
    def sourceless(self) -> list[str]:
        """The fields in it that no capture has a value for yet, by name."""
        found = (r.field for r in self.checked.fields.values())
        return sorted({field.name for field in found if not field.sources})

    def note(self, sides: Iterable[Side]) -> None:
        """Take notice of sources: what numbers mean depends on the program that recorded them.

        Args:
            sides: What stands beside events; sources come before their events.
        """
        for side in sides:
            if isinstance(side, SourceInfo):
                self._families[side.id] = side.collector

    def rows(self, view: View, types: AbstractSet[str] | None = None) -> Rows:
        """The events for which the filter is true.

        Args:
            view: A batch, or whatever gives columns.
            types: The types of the events, where that is known without reading them.

        Returns:
            Their row numbers, ascending.
        """
        if not view.rows:
            return np.zeros(0, np.int32)
        return np.flatnonzero(self.engine.mask(self.reader(view, types))).astype(np.int32)

    def reader(self, view: View, types: AbstractSet[str] | None = None) -> Reader:
        """What reads the fields of events.

        Args:
            view: As for `rows`.
            types: As for `rows`.

        Returns:
            The reader.
        """
        return Reader(view, self._families, self._memo, types)

    def matching(self, batch: Batch) -> Batch:
        """The events of a batch for which the filter is true; what stands beside them stays.

        Args:
            batch: The events.

        Returns:
            Some of them.
        """
        self.note(batch.before)
        rows = self.rows(batch)
        return batch if len(rows) == batch.rows else batch.take(rows)

    def may_match(self, values_of: Callable[[str], Values], known: Collection[str]) -> bool:
        """Whether some event of a chunk may be one of these.

        Args:
            values_of: What a column may hold there.
            known: All columns of the capture.

        Returns:
            False where certainly none is.
        """
        return prune.may_match(self.engine, values_of, known)


__all__ = ["Filter"]
