"""What a rule is, whatever it was written in: selectors that find its events, and a machine.

A *selector* is a filter. The engine looks for the events of all selectors of all rules at once,
column by column, and calls a rule's *machine* for those alone: candidates. A machine has state, and
speaks through a `Context`: it raises alerts, and asks to be called at a time of its own. Time is
that of the events; a machine never looks at a clock, and never at what was not handed to it.

One order holds everywhere: event, then rule by id, then emission. For one event and one rule, the
selector with the highest number comes first, so that an event can't be two steps of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from kcap.errors import KcapError
from kcap.filter import Filter

if TYPE_CHECKING:
    from kcap.detect.room import Room
    from kcap.filter.check import Checked


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is said of a rule."""

    id: str
    name: str
    version: str = "1"
    description: str = ""
    severity: str = "medium"
    """One of `kcap.model.alert.SEVERITIES`."""
    tags: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    """MITRE ATT&CK, as ``T1055.001``; or what the source says of it."""
    references: tuple[str, ...] = ()
    kind: str = "kcap"
    """What it was written in: ``kcap``, ``python``, ``tracee``, ``fibratus``, ``sigma``,
    ``yara``."""
    file: str = ""
    line: int | None = None
    text: str | None = None
    """What its alerts say, a template over the event (`%ps.exe`); None for the description."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else its source says, plain JSON."""


class Selector(NamedTuple):
    """Events that a rule is about."""

    name: str
    filter: Filter
    events: frozenset[str] | None = None
    """The events that it can be true of, by name; None where that is not known."""
    anywhere: Filter | None = None
    """The same wherever the event comes from: without what the filter asks of containers and the
    host; None where it asks nothing of the kind."""


class Identity(NamedTuple):
    """Which event it was."""

    origin: str
    ord: int


class Event(Protocol):
    """One event, looked at when asked; good until the machine returns: keep values, not this."""

    @property
    def identity(self) -> Identity | None:
        """Which event it is; None for one that was never recorded."""

    @property
    def causes(self) -> tuple[Identity, ...]:
        """What an alert about it is about: itself; of an alert, what that is about."""

    @property
    def ts_ns(self) -> int | None:
        """Its own time, ns UTC."""

    @property
    def name(self) -> str:
        """The source's name of it."""

    def column(self, name: str) -> Any:  # noqa: ANN401
        """The value of a column, None where it has none."""

    def field(self, name: str, era: int | None = None) -> Any:  # noqa: ANN401
        """The value of a field of the filter language (``ps.name``), None where it has none."""

    def holds(self, condition: Checked, variables: Mapping[str, Any]) -> bool:
        """Whether an expression is true of it, where ``$names`` stand for these values."""

    def arguments(self) -> Mapping[str, Any]:
        """Its arguments by the source's names, in the source's order; numbers as numbers."""


class Context(Protocol):
    """What a machine may do; the engine's."""

    @property
    def now_ns(self) -> int:
        """The logical clock: the greatest time so far."""

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
        """Raise an alert.

        Args:
            causes: The events it is about, in order; empty for the one that is looked at.
            data: What was found, plain JSON values; in the rule's order.
            title: In place of the rule's name.
            text: In place of the rule's text.
            severity: In place of the rule's.
            who: Whose it is, in place of the process of the event that is looked at: what `who`
                gave for an earlier one.
        """

    def who(self) -> Mapping[str, Any]:
        """Whose event it is that is looked at (`kcap.model.alert.who`); empty for none."""

    @property
    def room(self) -> Room:
        """What keeps the state of all rules within bounds (`kcap.detect.room`)."""

    def at(self, time_ns: int, key: object) -> None:
        """Ask for a call of `Machine.deadline`, before any event with a greater time.

        Args:
            time_ns: When.
            key: Comes back with the call.
        """

    def dropped(self, count: int = 1) -> None:
        """Say that state was forgotten because there was too much of it: counted and reported."""


class Machine(Protocol):
    """The state of one rule in one run."""

    def match(self, context: Context, selector: int, event: Event) -> None:
        """Look at an event of a selector."""

    def deadline(self, context: Context, key: object) -> None:
        """A time has come that was asked for."""

    def end(self, context: Context) -> None:
        """No event follows."""


class Exempt(NamedTuple):
    """Alerts that are not wanted; they are counted."""

    filter: Filter
    """Asked of the event that the alert is raised at; at a deadline, of the alert itself."""
    reason: str
    rule: str | None = None
    """Of which rule; None for any."""
    until_ns: int | None = None
    """From this event time on they are wanted again."""


class Scanner(Protocol):
    """Looks at the contents of artifacts, for several rules at once."""

    def scan(self, content: bytes) -> Mapping[str, Mapping[str, Any]]:
        """Look at a content.

        Args:
            content: Its bytes.

        Returns:
            By the names of rules (`Contents.name`) what each of those has found that match: plain
            JSON values.

        Raises:
            KcapError: It takes too long, or can't be done.
        """


class Contents(NamedTuple):
    """What a rule is about that looks at artifacts rather than at events."""

    scanner: Scanner
    """Shared with the other rules of its kind."""
    name: str
    """What the scanner calls the rule."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that can run."""

    about: About
    selectors: tuple[Selector, ...]
    machine: Callable[[], Machine] | None = None
    """Makes its state; None for a rule that alerts on every event of its only selector."""
    events: frozenset[str] | None = None
    """The events that must be recorded for it, by name; None where that is not known."""
    fields: frozenset[str] = frozenset()
    """Fields that its machine asks for beyond those of its selectors: what only the state of the
    machine tells (``ps.parent.exe``) has a value only where some rule said so before."""
    exceptions: tuple[Exempt, ...] = ()
    """Of this rule's alerts."""
    contents: Contents | None = None
    """Where it looks at artifacts: it alerts on the event of each one that it matches."""
    includes: tuple[str, ...] = ()
    """Files that it is made of beside its own."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A rule that can't run; the others do."""

    error: KcapError
    """Names file, line and rule, says why and what was expected."""
    id: str | None = None


class Loader(Protocol):
    """Reads rules of one kind; what an entry point of ``kcap.rules`` names."""

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @staticmethod
    def sniff(text: str, path: str) -> bool:
        """Whether a file is of this kind, by its content."""

    def load(self, text: str, path: str) -> Iterable[Rule | Problem]:
        """Read a file.

        Args:
            text: Its content.
            path: Its name, for errors.

        Returns:
            Its rules in their order, and what is wrong with others.
        """

    def finish(self) -> Iterable[Rule | Problem]:
        """Give what only makes sense once all files are read: macros, correlations."""
