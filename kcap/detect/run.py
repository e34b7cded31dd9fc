"""One rule in one run: its state, what it may do, and what becomes of it where it fails."""

from __future__ import annotations

import json
import operator
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from kcap.detect.contents import Found
from kcap.detect.event import Row, field
from kcap.detect.rule import Identity, Machine, Problem, Rule
from kcap.detect.text import Place, Text
from kcap.errors import KcapError
from kcap.model import alert
from kcap.model.alert import Alert
from kcap.model.classes import I64_MAX, I64_MIN

if TYPE_CHECKING:
    from kcap.detect.room import Room

ALERTS_MAX: Final = 10_000
"""Alerts of a rule at one event or deadline: more are a loop."""

_NOTHING: Final = (None,) * 5

_FAILURES: Final = (Exception, SystemExit)
"""However a rule ends, the others go on; only the user's own interrupt is none of its business."""


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert, and the event that it was raised at."""

    alert: Alert
    at: Row | None


class Engine(Protocol):
    """What a run asks of the engine that it is part of."""

    now_ns: int
    event: Row | None
    raised: list[Raised]
    room: Room

    def number(self, rule: Rule, causes: tuple[Identity, ...], /) -> int:
        """The how manieth alert of a rule about some events it is."""

    def ask(self, rule: int, time_ns: int, key: object, /) -> None:
        """Ask for a deadline of a rule."""

    def failed(self, problem: Problem, /) -> None:
        """Take notice that a rule ended."""


class Run:
    """A rule that runs (`kcap.detect.rule.Context`).

    Args:
        engine: What it is part of.
        number: Of the rule.
        rule: The rule.
    """

    def __init__(self, engine: Engine, number: int, rule: Rule) -> None:
        about = rule.about
        self.rule = rule
        self.ended = False
        """It failed, and sees nothing any more."""
        self.dropped_count = 0
        """How much it had to forget."""
        self.fields: frozenset[str] = frozenset()
        """What it asks of events beyond its selectors."""
        self._engine = engine
        self._number = number
        self._machine: Machine | None = None
        self._text: Text | None = None
        self._severity = about.severity
        self._raised_count = 0
        """Alerts since it was called."""
        try:
            self._severity = alert.severity(about.severity)
            self._machine = None if rule.machine is None else rule.machine()
            self._text = None if rule.about.text is None else Text(rule.about.text)
            for name in sorted(rule.fields):
                field(name)  # it must be one
            self.fields = rule.fields | (self._text.fields if self._text else frozenset())
        except _FAILURES as error:
            self._caught(error)

    # what the engine calls

    def match(self, selector: int, event: Row) -> None:
        """Let it look at an event.

        Args:
            selector: Which of its selectors wants the event.
            event: The event.
        """
        if self.ended:
            return
        self._raised_count = 0
        if self.rule.machine is None:
            self.alert()
            return
        assert self._machine is not None
        try:
            self._machine.match(self, selector, event)
        except _FAILURES as error:
            self._caught(error)

    def found(self, found: Found) -> None:
        """Alert on an artifact that it has matched.

        Args:
            found: What was found.
        """
        if self.ended:
            return
        self._raised_count = 0
        try:
            self.alert(causes=() if found.cause is None else (found.cause,), data=found.data)
        except _FAILURES as error:
            self._caught(error)

    def deadline(self, key: object) -> None:
        """Tell it that a time has come.

        Args:
            key: What it gave with the time.
        """
        if self.ended or self._machine is None:
            return
        self._raised_count = 0
        try:
            self._machine.deadline(self, key)
        except _FAILURES as error:
            self._caught(error)

    def end(self) -> None:
        """Tell it that no event follows."""
        if self.ended or self._machine is None:
            return
        self._raised_count = 0
        try:
            self._machine.end(self)
        except _FAILURES as error:
            self._caught(error)

    def fail(self, what: str, *, line: int | None = None, hint: str | None = None) -> None:
        """End the rule; it is said, and the others go on.

        Args:
            what: Why.
            line: The line at fault; None for that where the rule begins.
            hint: What helps.
        """
        about = self.rule.about
        self.ended = True
        self._machine = None
        error = KcapError(
            f"the rule {about.id} ended: {what}{self._at()}",
            file=about.file or None,
            line=about.line if line is None else line,
            hint=hint,
        )
        self._engine.failed(Problem(error, about.id))

    def _caught(self, error: BaseException) -> None:
        """End the rule because of an exception, which names the rule's own line."""
        file = self.rule.about.file
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if file and frame.filename == file]
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self.fail(what, line=lines[-1] if lines else None)

    def _at(self) -> str:
        """The event that is looked at, as a user can find it."""
        event = self._engine.event
        if event is None:
            return ""
        causes = " ".join(f"{origin}:{number}" for origin, number in event.causes)
        return f", at event {causes} ({event.name})" if causes else f", at {event.name}"

    # what the machine may do

    @property
    def now_ns(self) -> int:
        """See `kcap.detect.rule.Context`."""
        return self._engine.now_ns

    @property
    def room(self) -> Room:
        """See `kcap.detect.rule.Context`."""
        return self._engine.room

    def who(self) -> Mapping[str, Any]:
        """See `kcap.detect.rule.Context`."""
        event = self._engine.event
        return {} if event is None else event.who()

    def alert(
        self,
        *,
        causes: Sequence[Identity] = (),
        data: Mapping[str, Any] | None = None,
        title: str | None = None,
        text: str | None = None,
        severity: str | None = None,
        who: Mapping[str, Any] | None = None,
    ) -> None:
        """See `kcap.detect.rule.Context`."""
        event, about = self._engine.event, self.rule.about
        given = title, text, severity, data, who
        if given != _NOTHING:
            _check(title=title, text=text, severity=severity, data=data, who=who)
        self._raised_count += 1
        if self._raised_count > ALERTS_MAX:
            raise KcapError(f"it raised more than {ALERTS_MAX:,} alerts at once")
        of = tuple([Identity(origin, operator.index(number)) for origin, number in causes])
        of = of or (() if event is None else event.causes)
        now_ns = self._engine.now_ns
        raised = Alert(
            rule=about.id,
            version=about.version,
            title=about.name if title is None else title,
            text=self._said(event) if text is None else text,
            severity=self._severity if severity is None else alert.severity(severity),
            tags=about.tags,
            techniques=about.techniques,
            ts_ns=None if now_ns == I64_MIN else now_ns,
            causes=of,
            number=self._engine.number(self.rule, of),
            data=None if data is None else _json(data),
            who=self.who() if who is None else who,
        )
        self._engine.raised.append(Raised(raised, event))

    def at(self, time_ns: int, key: object) -> None:
        """See `kcap.detect.rule.Context`."""
        # Never in the past: the clock of an alert does not go back.
        time_ns = max(operator.index(time_ns), self._engine.now_ns)
        self._engine.ask(self._number, min(time_ns, I64_MAX), key)

    def dropped(self, count: int = 1) -> None:
        """See `kcap.detect.rule.Context`."""
        self.dropped_count += count

    def _said(self, event: Row | None) -> str:
        """The rule's text, or its description."""
        if self._text is None:
            return self.rule.about.description

        def value(place: Place) -> Any:  # noqa: ANN401 - any value
            return None if event is None else event.field(place.name)

        return self._text.of(value)


def _check(**given: object) -> None:
    """Refuse what no alert can have; it would fail only once the rule is out of sight."""
    for name, value in given.items():
        kind = Mapping if name in ("data", "who") else str
        if value is not None and not isinstance(value, kind):
            expected = "a mapping" if kind is Mapping else "text"
            raise KcapError(f"{type(value).__name__} as {name} of an alert", expected=expected)


def _json(data: Mapping[str, Any]) -> str:
    """A JSON object, its keys in the order that the rule gave."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
