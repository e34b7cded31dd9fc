"""Which events a recording holds, by names, sets, patterns, and events derived from them.

A name that stands for an event made of others when a capture is read (``security_file_open`` of
opens) chooses those others. An event may so be chosen in several ways, by its own name (its way is
then itself) and by such names; a condition that was said of one name holds of events chosen that
way alone.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from kcap.errors import KcapError
from kcap.filter.syntax import And, Binary, Expr, FieldRef, ListOf, Literal, Not, Op, Or
from kcap.filter.syntax import Call as Function
from kcap.model import catalogue as model
from kcap.readers.live.bpf import events as catalogue
from kcap.readers.live.scopes import Choice

DEFAULT: Final = "default"
"""The set that is recorded unless others are named."""

FAMILY: Final = "kcap-bpf"
_EVERYTHING: Final = "all"
_CALLS: Final = "syscalls"
_OPENS: Final = "open"
_ARGS: Final = "args."
_LISTED: Final = "--list-events prints those there are"


class ChoiceError(KcapError):
    """What is to be recorded can't be understood, or is nothing."""

    exit_code = 2


class Way(NamedTuple):
    """An event, and the name by which it was chosen."""

    name: str
    event: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """The events of a recording."""

    events: frozenset[str]
    conditions: tuple[Expr, ...] = ()
    """What events must meet that are recorded only under conditions."""
    opens: bool = False
    """Opening of files was asked for, not only what is recorded of it by default."""
    text: str = DEFAULT
    """As it was asked for."""
    asked: frozenset[str] = frozenset()
    """Those of the events that were asked for otherwise than as the default."""
    unseen: tuple[str, ...] = ()
    """Events that were asked for, too, and that no recorder sees: they are others' only."""


@cache
def derived() -> dict[str, dict[str, dict[str, str]]]:
    """Events that are views of others.

    Returns:
        By name: the events that each is a view of; for each the arguments of the one that are an
        argument of the other.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for entry in model.derived(FAMILY):
        if entry.base not in catalogue.events():
            continue  # packets come from who listens beside a recorder
        known = found.setdefault(entry.event, {}).setdefault(entry.base, {})
        known |= {name: source for name, _, source in entry.arguments if source.isidentifier()}
    return found


@cache
def arguments() -> dict[str, tuple[str, ...]]:
    """All names that choose an event, and the arguments that can be asked about.

    Returns:
        The arguments by name.
    """
    found = {
        name: tuple(each.name for each in event.arguments)
        for name, event in catalogue.events().items()
    }
    for name, bases in derived().items():
        of_all = [*found.get(name, ()), *(a for each in bases.values() for a in each)]
        found[name] = tuple(dict.fromkeys(of_all))
    return found


@cache
def sets() -> dict[str, frozenset[str]]:
    """The names for several events.

    Returns:
        Each set's events, kcap's own sets first, then those that Tracee has beside them.
    """
    found = {name: frozenset(events) for name, events in catalogue.sets().items()}
    found[_EVERYTHING] = frozenset(catalogue.events())
    found[_CALLS] = frozenset(n for n, e in catalogue.events().items() if e.is_call)
    text = resources.files("kcap.readers.data").joinpath("tracee_sets.tsv").read_text("utf-8")
    for line in text.splitlines()[1:]:
        name, members = line.split("\t")
        if name not in found:
            each = (found.get(m) or frozenset(_pattern(m) or [m]) for m in members.split(","))
            found[name] = frozenset().union(*each)
    return found


@cache
def others() -> frozenset[str]:
    """Events that other sources have, and no recorder of kcap's.

    Returns:
        Their names.
    """
    found = (name for family in model.families() for name in model.events(family))
    return frozenset(found) - arguments().keys()


def choose(choices: Iterable[Choice], conditions: Sequence[tuple[str, Expr]] = ()) -> Chosen:
    """Find the events that were asked for.

    Args:
        choices: What was asked for; where nothing but what to leave out, the default is meant.
        conditions: What events must meet that were chosen by a name.

    Returns:
        The events.

    Raises:
        ChoiceError: There is no such event or set; or all were left out again, or can't be seen.
    """
    choices = tuple(choices)
    if all(choice.drop for choice in choices):
        choices = (Choice(DEFAULT), *choices)
    ways: dict[Way, None] = {}
    asked = set()
    unseen = dict.fromkeys(c.name for c in choices if _is_unseen(c))
    for choice in choices:
        if choice.name in unseen:
            continue
        names = _named(choice)
        if choice.drop:
            ways = {w: None for w in ways if not names & {w.name, w.event}}
            continue
        for name in sorted(names):
            for base in (*([name] if name in catalogue.events() else ()), *derived().get(name, ())):
                ways[Way(name, base)] = None
                asked.update([base] * (choice.name != DEFAULT))
    if unseen and not ways:
        raise ChoiceError(f"no recorder sees {', '.join(unseen)}", hint=_LISTED)
    if not ways:
        raise ChoiceError("no event is left to record", hint="leave fewer of them out")
    events = frozenset(way.event for way in ways)
    text = ",".join(f"{'-' if c.drop else ''}{c.name}" for c in choices if c.name not in unseen)
    told = tuple(c for c in unseen if Choice(c) in choices)
    opens = any(catalogue.events()[name].handler == _OPENS for name in asked)
    conditioned = tuple(_conditions(ways, conditions))
    return Chosen(events, conditioned, opens, text, events & asked, told)


def _is_unseen(choice: Choice) -> bool:
    """Whether it is an event that only others have: not a mistake, but nothing to record."""
    name = choice.name
    return not choice.sets_only and name in others() and name not in sets()


def _named(choice: Choice) -> frozenset[str]:
    """The events and derived events of a choice."""
    name = choice.name
    if not choice.sets_only:
        if name in arguments():
            return frozenset([name])
        found = _pattern(name)
        if found:
            return frozenset(found)
    if name in sets():
        return sets()[name]
    known = [*sets(), *(() if choice.sets_only else arguments())]
    near = difflib.get_close_matches(name, known, 1)
    kind = "set" if choice.sets_only else "event or set"
    hint = f"did you mean {near[0]!r}?" if near else _LISTED
    raise ChoiceError(f"no {kind} is called {name!r}", hint=hint)


def _pattern(text: str) -> list[str]:
    if not set(text) & set("*?["):
        return []
    return [name for name in arguments() if fnmatchcase(name, text)]


def _conditions(ways: Iterable[Way], conditions: Sequence[tuple[str, Expr]]) -> list[Expr]:
    """For each event that is recorded under conditions only: it is another one, or meets them."""
    by_event: dict[str, list[Expr | None]] = defaultdict(list)
    for way in ways:
        parts = [_translated(expr, way) for name, expr in conditions if name == way.name]
        by_event[way.event].append(_joined(And, parts) if parts else None)
    grouped: dict[Expr, list[str]] = defaultdict(list)
    for event, alternatives in sorted(by_event.items()):
        known = [each for each in dict.fromkeys(alternatives) if each is not None]
        if known and None not in alternatives:
            grouped[_joined(Or, known)].append(event)
    return [Or((Not(event_in(events)), what)) for what, events in grouped.items()]


def event_in(names: Sequence[str]) -> Expr:
    """A condition: an event of one of these names.

    Args:
        names: The names.

    Returns:
        The condition.
    """
    if len(names) == 1:
        return Binary(Op.EQ, FieldRef("evt.name"), Literal(names[0]))
    return Binary(Op.IN, FieldRef("evt.name"), ListOf(tuple(map(Literal, names))))


def _joined(kind: type[And | Or], parts: Sequence[Expr]) -> Expr:
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def _translated(node: Expr, way: Way) -> Expr:
    """A condition on the arguments of a derived event as one on those of what it is made of."""
    if isinstance(node, And | Or):
        return replace(node, parts=tuple(_translated(part, way) for part in node.parts))
    if isinstance(node, Not):
        return replace(node, inner=_translated(node.inner, way))
    if isinstance(node, Binary):
        return replace(node, left=_translated(node.left, way))
    if isinstance(node, Function):
        return replace(node, arguments=tuple(_translated(part, way) for part in node.arguments))
    if isinstance(node, FieldRef) and node.name.startswith(_ARGS):
        argument = node.name.removeprefix(_ARGS)
        if way.name == way.event:
            own = {each.name for each in catalogue.events()[way.event].arguments}
            # Of a call that failed nothing but the path that was asked for is known.
            renamed = argument == "pathname" and argument not in own and "path_arg" in own
            return replace(node, name=f"{_ARGS}path_arg") if renamed else node
        source = derived()[way.name][way.event].get(argument)
        if source is None:
            what = f"{argument!r} of {way.name} is made up when the capture is read"
            raise ChoiceError(what, hint="record it without this condition, and filter then")
        return replace(node, name=_ARGS + source)
    return node
