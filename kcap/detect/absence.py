"""Absence: something happened, and what should follow did not, within a time.

The time is over when an event with a greater time comes, or when the events end at or behind it. A
recording that ends earlier says nothing of what did not follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from kcap.detect import event as events
from kcap.detect.keys import Key, causes_size, key_of, plain, size_of, within_host
from kcap.detect.room import Table
from kcap.detect.rule import About, Context, Event, Identity, Rule, Selector
from kcap.detect.text import Text

_FOLLOWS: Final = 1
"""The selector of what should follow; looked at first, so that an event may be both."""


@dataclass(frozen=True, slots=True)
class Absence:
    """What is missed."""

    within_ns: int
    by: tuple[str, ...] = ()
    """Fields whose values join both events."""
    era: int | None = None
    """Of the fields."""


def rule(about: About, event: Selector, follows: Selector, what: Absence) -> Rule:
    """An absence as a rule.

    Args:
        about: What is said of it; its text may name fields of the event.
        event: What happened.
        follows: What should follow; exactly at the end of the time is not too late. The same as
            ``event`` where an event should come again and again.
        what: When, and for whom.

    Returns:
        The rule: an alert for each event that nothing followed, at the end of its time.

    Raises:
        ValueError: The time is none.
        FilterError: It names a field that there is not.
    """
    if what.within_ns <= 0:
        raise ValueError("what should follow needs a time")
    text = None if about.text is None else Text(about.text, era=what.era)
    for name in what.by:
        events.field(name, what.era)  # it must be one
    asked = frozenset(what.by) | (text.fields if text else frozenset())
    shown = replace(about, text=None)
    hosts = within_host(what.by, what.era)
    return Rule(
        shown,
        (event, follows),
        lambda: _Missing(what, text, about.description, each_host=hosts),
        fields=asked,
    )


@dataclass(frozen=True, slots=True)
class _Pending:
    """An event that something should follow."""

    key: Key
    """The host, where it matters, and the values."""
    causes: tuple[Identity, ...]
    who: Mapping[str, Any]
    text: str


class _Missing:
    """The machine."""

    def __init__(
        self, what: Absence, text: Text | None, description: str, *, each_host: bool
    ) -> None:
        self._what = what
        self._text = text
        self._description = description
        self._each_host = each_host
        self._pending: Table[int, _Pending] = Table(self._forget)
        self._of_key: dict[Key, dict[int, None]] = {}
        self._seen = 0

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        shown = key_of(event, self._what.by, self._what.era)
        if shown is None:
            return
        key = event.column("host") if self._each_host else None, *shown
        if selector == _FOLLOWS:
            for number in list(self._of_key.get(key, ())):
                pending = self._pending.pop(context, number)
                assert pending is not None
                self._forget(number, pending)
            return
        text = self._description
        if self._text is not None:
            text = self._text.of(lambda place: event.field(place.name, self._what.era))
        pending = _Pending(key, event.causes, context.who(), text)
        self._seen += 1
        self._of_key.setdefault(key, {})[self._seen] = None
        size = size_of((*key, text, *pending.who.values())) + causes_size(pending.causes)
        self._pending.put(context, self._seen, pending, size)
        context.at(context.now_ns + self._what.within_ns, self._seen)

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""
        assert isinstance(key, int)
        pending = self._pending.pop(context, key)
        if pending is None:
            return  # it was followed, or forgotten
        self._forget(key, pending)
        context.alert(
            causes=pending.causes,
            data=dict(zip(self._what.by, map(plain, pending.key[1:]), strict=True)) or None,
            text=pending.text,
            who=pending.who,
        )

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`; a time that is not over says nothing."""

    def _forget(self, number: int, pending: _Pending) -> None:
        numbers = self._of_key.get(pending.key, {})
        numbers.pop(number, None)
        if not numbers:
            self._of_key.pop(pending.key, None)
