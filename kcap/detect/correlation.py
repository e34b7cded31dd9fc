"""Correlations: how many events, or how many different values, or which events, in one time.

Counts that only grow are looked at with each event, over the time up to it (the window slides, and
its oldest event may be exactly ``timespan`` old); after an alert a group begins anew. Whether there
were *few* is not known before a time is over: then the window begins with the group's first event
and ends ``timespan`` later, at a deadline.
"""

from __future__ import annotations

import operator
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from kcap.detect import event as events
from kcap.detect.keys import Key, causes_size, key_of, plain, size_of, within_host
from kcap.detect.room import Table
from kcap.detect.rule import About, Context, Event, Identity, Rule, Selector
from kcap.detect.text import Place, Text

EVENT_COUNT: Final = "event_count"
VALUE_COUNT: Final = "value_count"
TEMPORAL: Final = "temporal"
TEMPORAL_ORDERED: Final = "temporal_ordered"
TYPES: Final = (EVENT_COUNT, VALUE_COUNT, TEMPORAL, TEMPORAL_ORDERED)

CONDITIONS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "eq": operator.eq,
    "neq": operator.ne,
}

EVENTS_MAX: Final = 10_000
"""Events that one group remembers; the oldest are forgotten, and that is said."""

CAUSES_MAX: Final = 1_000
"""Events that one alert names: the last of them."""

_SEEN_BYTES: Final = 250

_GROWING: Final = frozenset({"gt", "gte"})


@dataclass(frozen=True, slots=True)
class Correlation:
    """What is counted."""

    type: str
    """One of `TYPES`."""
    timespan_ns: int
    by: tuple[str, ...] = ()
    """Fields whose values make groups."""
    by_selector: Mapping[int, tuple[str, ...]] | None = None
    """Other fields for some selectors, as many as ``by``."""
    condition: str = "gte"
    """One of `CONDITIONS`."""
    count: int | None = None
    """What it is compared with; None, for a temporal one, for the number of its steps."""
    values: tuple[str, ...] = ()
    """The fields whose different values are counted."""
    values_by_selector: Mapping[int, tuple[str, ...]] | None = None
    """Other ones for some selectors, as many as ``values``."""
    steps: Mapping[int, int] | None = None
    """Which of the things that must happen, from 0, some selectors find: what one source calls
    otherwise than another is still one thing. None where each selector finds its own."""
    era: int | None = None
    """Of the fields."""


def rule(about: About, selectors: Sequence[Selector], what: Correlation) -> Rule:
    """A correlation as a rule.

    Args:
        about: What is said of it; its text may name fields of the last event, or of the first as
            ``%1.ps.name``.
        selectors: Which events are counted; for a temporal one what must happen, for an ordered
            one in this order.
        what: What is counted.

    Returns:
        The rule.

    Raises:
        ValueError: It makes no sense.
        FilterError: It names a field that there is not.
    """
    _check(selectors, what)
    text = None if about.text is None else Text(about.text, era=what.era)
    for name in (*what.by, *what.values):
        events.field(name, what.era)  # it must be one
    groups = [what.by, *(what.by_selector or {}).values()]
    hosts = any(within_host(names, what.era) for names in groups)
    asked = {*what.by, *what.values, *(text.fields if text else ())}
    for others in (what.by_selector, what.values_by_selector):
        for names in (others or {}).values():
            asked.update(names)
    steps = {(what.steps or {}).get(number, number) for number in range(len(selectors))}
    plan = _Plan(what, len(steps), text, about.description, hosts)
    shown = replace(about, text=None)
    return Rule(shown, tuple(selectors), lambda: _Counting(plan), fields=frozenset(asked))


def _check(selectors: Sequence[Selector], what: Correlation) -> None:
    if what.type not in TYPES:
        raise ValueError(f"{what.type!r} is no type of correlation: expected {', '.join(TYPES)}")
    if what.condition not in CONDITIONS:
        expected = ", ".join(CONDITIONS)
        raise ValueError(f"{what.condition!r} is no condition: expected {expected}")
    if not selectors or what.timespan_ns <= 0:
        raise ValueError("a correlation needs events and a time")
    if (what.type == VALUE_COUNT) != bool(what.values):
        raise ValueError(f"fields of values are for {VALUE_COUNT}, which needs some")
    if what.count is not None and not 0 <= what.count < EVENTS_MAX:
        raise ValueError(f"a correlation counts to less than {EVENTS_MAX:,}, not to {what.count:,}")
    temporal = what.type in (TEMPORAL, TEMPORAL_ORDERED)
    if what.count is None and not temporal:
        raise ValueError("a correlation needs a number to compare with")
    if temporal and what.condition not in _GROWING:
        raise ValueError(f"{what.type} asks how much happened: expected gt or gte")
    if any(len(names) != len(what.by) for names in (what.by_selector or {}).values()):
        raise ValueError("its events are grouped by different numbers of fields")
    if any(len(names) != len(what.values) for names in (what.values_by_selector or {}).values()):
        raise ValueError("different numbers of fields are counted in its events")


@dataclass(frozen=True, slots=True)
class _Plan:
    what: Correlation
    steps: int
    text: Text | None
    description: str
    each_host: bool
    """Events of different hosts are of different groups."""

    @property
    def count(self) -> int:
        """What is compared with."""
        return self.steps if self.what.count is None else self.what.count


class _Seen(NamedTuple):
    """An event that counts."""

    time_ns: int
    step: int
    causes: tuple[Identity, ...]
    value: Hashable
    shown: Mapping[Place, Any]
    size: int


@dataclass(slots=True)
class _Group:
    """The events of one group."""

    number: int
    events: deque[_Seen]
    alike: Counter[Hashable]
    """How many of them there are of each value, or of each step: none is counted anew."""
    size: int = 0
    """Bytes of them."""
    last_row: object = None
    """Which event came last: one counts once, whichever of the selectors want it."""
    who: Mapping[str, Any] | None = None
    """Whose the last event is, where the alert comes later."""


class _Counting:
    """The machine."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._groups: Table[Key, _Group] = Table()
        self._begun = 0
        what = plan.what
        self._slides = what.condition in _GROWING
        self._once = what.type in (EVENT_COUNT, VALUE_COUNT)
        self._holds = CONDITIONS[what.condition]

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        what = self._plan.what
        names = (what.by_selector or {}).get(selector, what.by)
        key = key_of(event, names, what.era)
        value: Hashable = None
        if what.values:
            counted = what.values_by_selector or {}
            value = key_of(event, counted.get(selector, what.values), what.era)
        if key is None or (what.values and value is None):
            return
        key = event.column("host") if self._plan.each_host else None, *key
        self._expire(context)
        group = self._groups.get(key)
        # An alert is no recorded event, and has an id of its own.
        same = event.identity or event.column("arg_alert_id")
        if group is not None and self._once and same and group.last_row == (same, event.name):
            return
        places = () if self._plan.text is None else self._plan.text.places
        shown = {place: event.field(place.name, what.era) for place in places}
        size = _SEEN_BYTES + size_of((value, *shown.values())) + causes_size(event.causes)
        step = (what.steps or {}).get(selector, selector)
        seen = _Seen(context.now_ns, step, event.causes, value, shown, size)
        group = self._with(context, key, group, seen)
        if group is None:
            return
        group.last_row = same, event.name
        if self._slides:
            if self._holds(self._counted(group), self._plan.count):
                self._groups.pop(context, key)
                self._alert(context, key, group)
        else:
            group.who = context.who()

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""
        number, group_key = key if isinstance(key, tuple) else (0, ())
        group = self._groups.get(group_key)
        if group is None or group.number != number:
            return  # it was forgotten
        self._groups.pop(context, group_key)
        if self._holds(self._counted(group), self._plan.count):
            self._alert(context, group_key, group)

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`; a window that is not over says nothing."""

    def _with(self, context: Context, key: Key, group: _Group | None, seen: _Seen) -> _Group | None:
        """The group with one more event; None where there was no room for it."""
        span_ns = self._plan.what.timespan_ns
        if group is None:
            self._begun += 1
            group = _Group(self._begun, deque(), Counter())
            if not self._slides:
                context.at(seen.time_ns + span_ns, (group.number, key))
        group.events.append(seen)
        group.alike[self._kind(seen)] += 1
        group.size += seen.size
        old = self._slides and seen.time_ns - group.events[0].time_ns > span_ns
        while old or len(group.events) > EVENTS_MAX:
            gone = group.events.popleft()
            group.size -= gone.size
            group.alike[self._kind(gone)] -= 1
            if not group.alike[self._kind(gone)]:
                del group.alike[self._kind(gone)]
            if not old:
                context.dropped()
            old = self._slides and seen.time_ns - group.events[0].time_ns > span_ns
        # Put anew: what was heard of last is forgotten last.
        self._groups.put(context, key, group, group.size + size_of(key))
        return self._groups.get(key)

    def _expire(self, context: Context) -> None:
        """Forget groups of which nothing was heard for too long; that is no loss."""
        while self._slides and (oldest := self._groups.oldest()) is not None:
            key, group = oldest
            if context.now_ns - group.events[-1].time_ns <= self._plan.what.timespan_ns:
                break
            self._groups.pop(context, key)

    def _counted(self, group: _Group) -> int:
        """What the condition is asked about."""
        what = self._plan.what
        if what.type == EVENT_COUNT:
            return len(group.events)
        # There can't be more in order than there are at all.
        if what.type == TEMPORAL_ORDERED and self._holds(len(group.alike), self._plan.count):
            return _ordered(group.events)
        return len(group.alike)

    def _kind(self, seen: _Seen) -> Hashable:
        """What is counted once."""
        return seen.value if self._plan.what.type == VALUE_COUNT else seen.step

    def _alert(self, context: Context, key: Key, group: _Group) -> None:
        what, text = self._plan.what, self._plan.text
        first, last = group.events[0].shown, group.events[-1].shown
        causes = list(dict.fromkeys(cause for seen in group.events for cause in seen.causes))
        data = dict(zip(what.by, map(plain, key[1:]), strict=True))
        context.alert(
            causes=causes[-CAUSES_MAX:],
            data={"count": self._counted(group), **data},
            text=self._plan.description
            if text is None
            else text.of(lambda place: (first if place.number == 1 else last).get(place)),
            who=group.who,
        )


def _ordered(seen: Sequence[_Seen] | deque[_Seen]) -> int:
    """How many of the selectors there are one after another, from the first on."""
    found = 0
    for one in seen:
        found += one.step == found
    return found
