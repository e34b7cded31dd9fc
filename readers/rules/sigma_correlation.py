"""Sigma's correlations: how many events of other rules, or which of them, in one time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, cast

from kcap.detect import correlation
from kcap.detect.correlation import Correlation
from kcap.detect.event import field
from kcap.detect.rule import Context, Event, Machine, Rule, Selector
from kcap.errors import BadInputError
from kcap.filter import Filter
from kcap.filter.syntax import Binary, FieldRef, Literal, Op, text_of
from kcap.readers.rules.sigma_condition import conjunction
from kcap.readers.rules.sigma_rule import Wanted, Written, about_of, recorded

Wants = Callable[[Written], tuple[list[Wanted], dict[str, str]]]

_NS: Final = 10**9
_ERA: Final = 3
_DATA: Final = "alert_data"
"""Where alerts have what they found, the fields among it that their events are grouped by."""


class _Events(NamedTuple):
    """The events of one thing that a correlation is about."""

    found: list[tuple[Selector, Callable[[str], str]]]
    """Selectors, and what names the fields of each by those of Sigma's."""
    recorded: frozenset[str] = frozenset()
    """Which events must be recorded for them."""
    missed: Mapping[str, str] = {}
    """By pipeline, why they can't be asked."""
    are_alerts: bool = False


class Correlations:
    """Makes rules of correlations.

    Args:
        rules: The rules that they may speak of.
        correlations: All correlations, which may speak of each other too.
        wanted: Tells the events of a rule.
    """

    def __init__(
        self, rules: Sequence[Written], correlations: Sequence[Written], wanted: Wants
    ) -> None:
        self._wanted = wanted
        self._open: list[str] = []
        self._known: dict[str, Written] = {}
        for written in (*rules, *correlations):
            for name in (written.parsed.id, written.parsed.name):
                if name:
                    self._known.setdefault(str(name), written)
        self._correlations = {id(written) for written in correlations}
        self._silent = {
            id(self._known[reference])
            for written in correlations
            if not written.parsed.generate
            for reference in _references(written)
            if reference in self._known
        } - self._correlations

    def is_silent(self, written: Written) -> bool:
        """Whether a rule only says which events others speak of: it alerts of none itself.

        Args:
            written: The rule.

        Returns:
            False where ``generate`` is true of all correlations that name it.
        """
        return id(written) in self._silent

    def rule(self, written: Written) -> Rule:
        """Make a rule.

        Args:
            written: The correlation.

        Returns:
            It.

        Raises:
            BadInputError: It can't be told.
        """
        self._open.append(written.id)
        try:
            return self._rule(written)
        finally:
            self._open.pop()

    def _rule(self, written: Written) -> Rule:
        condition = written.parsed.condition
        if isinstance(getattr(condition, "expression", None), str):
            raise _unknown(written, "a condition with 'and', 'or' and 'not' of rules", "condition")
        kind = written.parsed.type.name.lower()
        if kind not in correlation.TYPES:
            raise _unknown(written, f"{kind!r}", "type")
        by = _grouped(written)
        counted = getattr(condition, "fieldref", None) if kind == correlation.VALUE_COUNT else None
        values = [counted] if isinstance(counted, str) else list(counted or ())
        selectors: list[Selector] = []
        steps: list[int] = []
        keys: list[tuple[str, ...]] = []
        shown: list[tuple[str, ...]] = []
        alerts: set[int] = set()
        missed: dict[str, str] = {}
        needed: frozenset[str] = frozenset()
        references = _references(written)
        if not references:
            raise written.error("it names no rules", "correlation")
        for step, reference in enumerate(references):
            events = self._events(written, reference)
            needed |= events.recorded
            missed.update(events.missed)
            for selector, fields in events.found:
                if events.are_alerts:
                    alerts.add(len(selectors))
                selectors.append(selector)
                steps.append(step)
                keys.append(_found(written, fields, by, "group-by"))
                shown.append(_found(written, fields, values, "condition"))
        what = Correlation(
            type=kind,
            timespan_ns=written.parsed.timespan.seconds * _NS,
            by=keys[0],
            by_selector=dict(enumerate(keys)),
            condition=condition.op.name.lower(),
            count=self._count(written, kind),
            values=shown[0],
            values_by_selector=dict(enumerate(shown)),
            steps=dict(enumerate(steps)),
            era=_ERA,
        )
        about = about_of(written, {"unavailable": missed} if missed else {})
        try:
            made = correlation.rule(about, selectors, what)
        except ValueError as error:
            raise written.error(str(error), "correlation") from error
        made = replace(made, events=needed or None)
        inner = made.machine
        if not alerts or inner is None:
            return made
        return replace(made, machine=lambda: _OfAlerts(inner(), alerts))

    def _count(self, written: Written, kind: str) -> int | None:
        """What is compared with; a temporal one without a condition wants all of its rules."""
        temporal = kind in (correlation.TEMPORAL, correlation.TEMPORAL_ORDERED)
        if temporal and "condition" not in written.document.value["correlation"]:
            return None
        count = written.parsed.condition.count
        if not isinstance(count, int):
            raise written.error(f"{count} is no number of events", "correlation", "condition")
        return count

    def _events(self, written: Written, reference: str) -> _Events:
        """The events of a rule that a correlation names."""
        known = self._known.get(reference)
        if known is None:
            what = f"no rule is called {reference!r}"
            hint = "give the file of that rule too"
            raise written.error(what, "correlation", "rules", hint=hint)
        aliases: dict[str, str] = {}
        for alias in written.parsed.aliases:
            for other, name in alias.mapping.items():
                if self._known.get(other.reference) is known:
                    aliases[alias.alias] = name
        if id(known) in self._correlations:
            if known.id in self._open:
                chain = " -> ".join([*self._open, known.id])
                raise written.error(f"it counts itself: {chain}", "correlation", "rules")
            recorded_ = self.rule(known).events or frozenset()
            named = self._fields(known)

            def found_in(name: str) -> str:
                name = aliases.get(name, name)
                if name not in named:
                    what = f"alerts of {known.id} don't have {name!r}"
                    expected = " or ".join(named) or "nothing: they are of all events together"
                    raise written.error(what, "correlation", expected=expected)
                return named[name]

            return _Events([(_alerts_of(known.id), found_in)], recorded_, are_alerts=True)
        found, missed = self._wanted(known)
        fields = [(one.selector, _names(one, aliases)) for one in found]
        return _Events(fields, recorded(found) or frozenset(), missed)

    def _fields(self, written: Written) -> Mapping[str, str]:
        """The fields that alerts of a correlation have: those that its events are grouped by."""
        _, of = self._events(written, _references(written)[0]).found[0]
        return {name: of(name) for name in _grouped(written)}


class _OfAlerts:
    """The machine of a correlation that is about alerts of others (`kcap.detect.rule.Machine`).

    Args:
        inner: The machine of the correlation.
        alerts: The selectors that want alerts.
    """

    def __init__(self, inner: Machine, alerts: Collection[int]) -> None:
        self._inner = inner
        self._alerts = alerts

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        seen = cast("Event", _Alert(event)) if selector in self._alerts else event
        self._inner.match(context, selector, seen)

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""
        self._inner.deadline(context, key)

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`."""
        self._inner.end(context)


class _Alert:
    """An alert as an event that has the fields of its group."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the event has
        return getattr(self._event, name)

    def field(self, name: str, era: int | None = None) -> Any:  # noqa: ANN401 - any value
        """See `kcap.detect.rule.Event`."""
        found = self._event.arguments().get(_DATA)
        if not isinstance(found, dict) or name not in found:
            return None
        value = found[name]
        # Addresses are text in what alerts have found.
        is_address = isinstance(value, str) and field(name, era)[1].field.type == "ip"
        return ip_address(value) if is_address else value


def _names(one: Wanted, aliases: Mapping[str, str]) -> Callable[[str], str]:
    """The fields of the filter language by those of Sigma's."""
    return lambda name: text_of(one.target.names(aliases.get(name, name))[0])


def _alerts_of(rule: str) -> Selector:
    """The alerts of a rule, which are events too."""
    named = Binary(Op.EQ, FieldRef("evt.name"), Literal("alert"))
    ours = Binary(Op.EQ, FieldRef("evt.arg", "rule"), Literal(rule))
    return Selector("alerts", Filter.of(text_of(conjunction([named, ours])), _ERA))


def _references(written: Written) -> list[str]:
    """The rules that a correlation is about, by id or name."""
    return [str(one.reference) for one in written.parsed.rules or ()]


def _found(
    written: Written, fields: Callable[[str], str], names: Sequence[str], key: str
) -> tuple[str, ...]:
    """The fields of the filter language for those that stand under a key."""
    try:
        return tuple(map(fields, names))
    except BadInputError as error:
        if error.file is not None:
            raise
        raise written.error(error.what, "correlation", key, expected=error.expected) from error


def _grouped(written: Written) -> list[str]:
    """Sigma's names of the fields that the events of a correlation are grouped by."""
    return [str(name) for name in written.parsed.group_by or ()]


def _unknown(written: Written, what: str, key: str) -> BadInputError:
    expected = ", ".join(correlation.TYPES)
    what = f"{what} is no correlation that kcap knows"
    return written.error(what, "correlation", key, expected=expected)
