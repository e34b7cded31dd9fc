"""Events of later steps of a sequence that were recorded before those of earlier steps.

Where several providers fill buffers of their own, an event may be recorded seconds after one that
happened later. What could be a later step is remembered for that long, by what joins it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kcap.detect.keys import Key, causes_size, size_of
from kcap.detect.room import Table
from kcap.detect.rule import Context, Event, Identity
from kcap.detect.text import Place
from kcap.filter import interpret
from kcap.filter.check import Checked
from kcap.filter.syntax import Expr, FieldRef, children, text_of

_MOST: Final = 64
"""Events of one key that are remembered for one step; the oldest go first."""

_IN_ALL: Final = 2048
"""Events of one rule that are remembered. Like the time for which they are, that bounds how much
out of order a recording may be, and is no loss: else a flood in good order would be told as one."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a sequence remembers of an event."""

    ts_ns: int | None
    causes: tuple[Identity, ...]
    captured: Mapping[str, Any]
    """What later steps ask for, by field."""
    shown: Mapping[Place, Any]
    """What the text asks for."""
    process: Hashable
    """Whose it is, where that matters."""

    @property
    def size(self) -> int:
        """Its bytes, about."""
        values = (*self.captured.values(), *self.shown.values(), 0)
        return size_of(values) + causes_size(self.causes)


def fields_of(node: Expr) -> list[FieldRef]:
    """The fields that an expression asks for.

    Args:
        node: The expression.

    Returns:
        They, each as often as it is there.
    """
    if isinstance(node, FieldRef):
        return [node]
    return [found for part in children(node) for found in fields_of(part)]


@dataclass(frozen=True, slots=True)
class _Kept:
    taken: Taken
    kept_ns: int
    """The time of the clock."""
    place: tuple[int, Key]
    rest: Checked | None
    values: Mapping[FieldRef, Any]
    """What `rest` asks of it."""

    def holds(self, variables: Mapping[str, Any]) -> bool:
        """Whether it is the step, by what earlier steps have."""
        return self.rest is None or interpret.holds(self.rest.expr, self.values.get, variables)


class Early:
    """What may be a later step of a sequence that has yet to begin.

    Args:
        within_ns: How long it is remembered.
    """

    def __init__(self, within_ns: int) -> None:
        self._within_ns = within_ns
        self._kept: Table[int, _Kept] = Table(self._forget)
        self._places: dict[tuple[int, Key], list[int]] = {}
        self._number = 0

    def keep(
        self,
        context: Context,
        place: tuple[int, Key],
        event: Event,
        taken: Taken,
        rest: Checked | None,
    ) -> None:
        """Remember an event.

        Args:
            context: The rule's.
            place: The step that it may be, and its key.
            event: It.
            taken: What the sequence wants of it.
            rest: What of the step's condition is about earlier events, too.
        """
        values = {}
        if rest is not None:
            values = {ref: event.field(text_of(ref), rest.era) for ref in fields_of(rest.expr)}
        self._number += 1
        numbers = self._places.setdefault(place, [])
        numbers.append(self._number)
        kept = _Kept(taken, context.now_ns, place, rest, values)
        size = taken.size + size_of((*place[1], *values.values()))
        self._kept.put(context, self._number, kept, size)
        if len(numbers) > _MOST:
            self._remove(context, numbers[0])
        if len(self._kept) > _IN_ALL and (oldest := self._kept.oldest()) is not None:
            self._remove(context, oldest[0])

    def take(
        self,
        context: Context,
        place: tuple[int, Key],
        variables: Mapping[str, Any],
        fits: Callable[[Taken], bool],
    ) -> Taken | None:
        """Find the event that is the next step of a sequence.

        Args:
            context: The rule's.
            place: The step, and its key.
            variables: What the steps before it have, by alias.
            fits: Whether its time does.

        Returns:
            The earliest, which is forgotten; None where there is none.
        """
        found = []
        for number in self._places.get(place, ()):
            kept = self._kept.get(number)
            if kept is not None and fits(kept.taken) and kept.holds(variables):
                found.append((kept.taken.ts_ns or 0, number, kept.taken))
        if not found:
            return None
        _, number, taken = min(found, key=lambda one: one[:2])
        self._remove(context, number)
        return taken

    def expire(self, context: Context) -> None:
        """Forget what has been remembered for long enough; that is no loss.

        Args:
            context: The rule's.
        """
        while (oldest := self._kept.oldest()) is not None:
            if context.now_ns - oldest[1].kept_ns <= self._within_ns:
                break
            self._remove(context, oldest[0])

    def _remove(self, context: Context, number: int) -> None:
        kept = self._kept.pop(context, number)
        if kept is not None:
            self._forget(number, kept)

    def _forget(self, number: int, kept: _Kept) -> None:
        numbers = self._places.get(kept.place, [])
        if number in numbers:
            numbers.remove(number)
            if not numbers:
                del self._places[kept.place]
