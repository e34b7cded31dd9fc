"""Taps that tell of rules: what is there for them, what they cost, why they match."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.detect.engine import Detections
from kcap.detect.rule import Context, Event, Machine, Rule, Selector
from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.filter.check import Checked
from kcap.filter.syntax import And, Expr, FieldRef, Not, Or, children, text_of
from kcap.filter.values import Named
from kcap.model.batch import Batch, Rows, without_state
from kcap.replay import derived
from kcap.replay.span import AtEvent, parsed, rows_of
from kcap.tools import common, ruleset

_VALUE_CHARS: Final = 120


def told(rule: Rule) -> dict[str, Any]:
    """A rule as plain JSON.

    Args:
        rule: The rule.

    Returns:
        What is said of it, and what it looks for.
    """
    about = rule.about
    events = ruleset.events_of(rule)
    return {
        "id": about.id,
        "name": about.name,
        "kind": about.kind,
        "version": about.version,
        "severity": about.severity,
        "description": about.description,
        "tags": list(about.tags),
        "techniques": list(about.techniques),
        "references": list(about.references),
        "file": about.file or None,
        "line": about.line,
        "details": dict(about.details),
        "events": None if events is None else sorted(events),
        "sourceless": sourceless(rule),
        "selectors": [{"name": s.name, "filter": s.filter.text} for s in rule.selectors],
    }


def sourceless(rule: Rule) -> list[str]:
    """The fields that a rule asks for and no capture has a value for yet.

    Args:
        rule: The rule.

    Returns:
        Their names.
    """
    return sorted({name for one in rule.selectors for name in one.filter.sourceless})


class _Tap(ABC):
    """A tap that raises nothing."""

    def see(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        """See `kcap.replay.tap.Tap`."""
        self.look(batch)
        return ()

    @abstractmethod
    def look(self, batch: Batch) -> None:
        """Look at events."""

    def end(self) -> Iterable[Batch]:
        """See `kcap.replay.tap.Tap`."""
        return ()

    def close(self) -> None:  # noqa: B027  (there is nothing to let go of)
        """See `kcap.replay.tap.Tap`."""


class Counting(_Tap):
    """Counts events by name, derived ones too.

    Args:
        names: The names that matter.
    """

    def __init__(self, names: Collection[str]) -> None:
        views = derived.names().intersection(names)
        self._derivation = derived.Derivation(views) if views else None
        self.counts: Counter[str] = Counter()
        """Events so far."""

    def look(self, batch: Batch) -> None:
        """Look at events."""
        if self._derivation is not None:
            self._derivation.note(batch.before)
            batch = self._derivation.process(batch)
        batch = without_state(batch)
        column = batch.get("event")
        if column is None:
            return
        names = column.values.dictionary.to_pylist()
        for code, count in enumerate(np.bincount(column.codes(), minlength=len(names)).tolist()):
            self.counts[names[code]] += count


class Cost(NamedTuple):
    """What a rule costs."""

    rule: str
    candidates: int
    """Events that it looked at one by one."""
    alerts: int
    taken_s: float
    """For that."""


class Profiling(_Tap):
    """Runs rules and measures what each costs.

    Args:
        rules: The rules.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._meters = {rule.about.id: _Meter() for rule in rules}
        self._detections = Detections([_metered(r, self._meters[r.about.id]) for r in rules])
        self._alerts: Counter[str] = Counter()
        self.taken_s = 0.0
        """All of it, looking at columns included."""

    @property
    def losses(self) -> Sequence[Any]:
        """What was not looked at."""
        return self._detections.losses

    @property
    def costs(self) -> dict[str, Cost]:
        """By rule."""
        return {
            name: Cost(name, meter.count, self._alerts[name], meter.taken_s)
            for name, meter in self._meters.items()
        }

    def look(self, batch: Batch) -> None:
        """Look at events."""
        begun_s = time.perf_counter()
        found = self._detections.alerts(batch)
        self.taken_s += time.perf_counter() - begun_s
        self._alerts.update(alert.rule for _, alert in found)

    def end(self) -> Iterable[Batch]:
        """See `kcap.replay.tap.Tap`."""
        self._alerts.update(alert.rule for alert in self._detections.last())
        return ()


class _Meter:
    """What is measured of a rule."""

    def __init__(self) -> None:
        self.count = 0
        self.taken_s = 0.0


class _Simple:
    """The machine of a rule that has none."""

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        del selector, event
        context.alert()

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`."""


class _Metered:
    """A machine, with a meter."""

    def __init__(self, machine: Machine, meter: _Meter) -> None:
        self._machine = machine
        self._meter = meter

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        self._meter.count += 1
        begun_s = time.perf_counter()
        try:
            self._machine.match(context, selector, event)
        finally:
            self._meter.taken_s += time.perf_counter() - begun_s

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""
        begun_s = time.perf_counter()
        try:
            self._machine.deadline(context, key)
        finally:
            self._meter.taken_s += time.perf_counter() - begun_s

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`."""
        self._machine.end(context)


def _metered(rule: Rule, meter: _Meter) -> Rule:
    make = rule.machine or _Simple
    return replace(rule, machine=lambda: _Metered(make(), meter))


class Wanted(NamedTuple):
    """An event that somebody asks about."""

    origin: str | None
    ord: int

    @classmethod
    def of(cls, text: str) -> Wanted:
        """Understand what it is called.

        Args:
            text: Its number, or ``ORIGIN:ORD``.

        Returns:
            The event.

        Raises:
            KcapError: It is neither.
        """
        found = parsed(text)
        if isinstance(found, AtEvent):
            return cls(*found)
        try:
            return cls(None, int(text))
        except ValueError:
            raise KcapError(f"{text!r} is no event", expected="its ord, or ORIGIN:ORD") from None

    def rows(self, batch: Batch) -> Rows:
        """Where it is, as `Detections` asks it.

        Args:
            batch: Some events.

        Returns:
            Row numbers.
        """
        if self.origin is not None:
            found = rows_of(batch, AtEvent(self.origin, self.ord))
        elif batch.get("ord") is None:
            found = np.zeros(0, np.int64)
        else:
            found = np.flatnonzero(batch.mask("ord") & (batch.numpy("ord", -1) == self.ord))
        return found.astype(np.int32)


class Explaining(_Tap):
    """Finds out why a rule matches an event.

    Args:
        rule: The rule.
        wanted: The event.
    """

    def __init__(self, rule: Rule, wanted: Wanted) -> None:
        self._rule = rule
        self._wanted = wanted
        self._runs = Detections([rule])
        self._alerts: list[Any] = []
        self._found: list[str] = []
        refs = [ref for one in rule.selectors for ref in one.filter.checked.fields]
        fields = frozenset(r.name for r in refs if r.argument is None and not r.segment)
        views = derived.names().intersection(ruleset.events_of(rule) or ())
        views |= derived.named([one.filter for one in rule.selectors])
        spy = replace(
            rule,
            selectors=(Selector("", Filter.of("exists(evt.name)"), frozenset(views)),),
            machine=lambda: _Spy(self._rule, self._found),
            fields=rule.fields | fields,
            exceptions=(),
        )
        self._spying = Detections([spy], where=wanted)

    @property
    def seen(self) -> bool:
        """The event was there."""
        return bool(self._found)

    @property
    def losses(self) -> Sequence[Any]:
        """What was not looked at."""
        return [*self._runs.losses, *self._spying.losses]

    def look(self, batch: Batch) -> None:
        """Look at events."""
        self._alerts += [alert for _, alert in self._runs.alerts(batch)]
        self._spying.alerts(batch)

    def end(self) -> Iterable[Batch]:
        """See `kcap.replay.tap.Tap`."""
        self._alerts += self._runs.last()
        return ()

    def lines(self) -> list[str]:
        """What was found out, once all events were seen.

        Returns:
            Lines for people.
        """
        about = self._rule.about
        origin, number = self._wanted
        mine = [
            one
            for one in self._alerts
            if any(n == number and origin in (None, o) for o, n in one.causes)
        ]
        found = [f"{about.id}: {about.name}", *self._found, ""]
        if not mine:
            return [*found, "no alert of the rule is about this event"]
        for one in mine:
            when = "" if one.ts_ns is None else f" at {common.utc(one.ts_ns)}"
            found.append(f"alert {one.id[:16]}{when}: {one.title}: {one.data or one.text}")
        return found


class _Spy:
    """A machine that looks at each part of what a rule asks."""

    def __init__(self, rule: Rule, found: list[str]) -> None:
        self._rule = rule
        self._found = found

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        del context, selector
        when = "" if event.ts_ns is None else f" at {common.utc(event.ts_ns)}"
        name = event.column("process_name") or "?"
        self._found += ["", f"{event.name}{when}, {name} ({event.column('pid')})"]
        for one in self._rule.selectors:
            checked = one.filter.checked
            verdict = "matches" if event.holds(checked, {}) else "does not match"
            self._found.append(f"  {one.name or 'condition'}: {verdict}")
            self._part(event, checked, checked.expr, 2)

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`."""

    def _part(self, event: Event, checked: Checked, node: Expr, depth: int) -> None:
        """A part of an expression: whether it holds, and the values that it asks for."""
        holds = event.holds(replace(checked, expr=node), {})
        sign = f"{'  ' * depth}{'+' if holds else '-'}"
        words = {And: "all of", Or: "one of", Not: "not"}
        if type(node) in words:
            self._found.append(f"{sign} {words[type(node)]}")
            for part in children(node):
                self._part(event, checked, part, depth + 1)
            return
        values = [
            f"{text_of(ref)} = {_short(event.field(text_of(ref), checked.era))}"
            for ref in _fields(node)
        ]
        said = f"   [{'; '.join(values)}]" if values else ""
        self._found.append(f"{sign} {text_of(node)}{said}")


def _fields(node: Expr) -> list[FieldRef]:
    """The fields of an expression, each once."""
    if isinstance(node, FieldRef):
        return [node]
    return list(dict.fromkeys(ref for part in children(node) for ref in _fields(part)))


def _short(value: object) -> str:
    if isinstance(value, Named):
        value = value.text
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"
