"""Rules as they stand in Fibratus's files, made into rules that run.

**Eras.** What ``ps.*`` means in ``CreateProcess`` tells the eras apart: the creator before 3.0, the
new process since. A rule is of 3.x where its ``min-engine-version`` says so, of 1.x where that says
less or where it stands in a group; of other rules the names in their conditions tell.

**Groups** of 1.x: an event that a group with ``policy: exclude`` is true of is seen by no other
group. With ``relation: and`` all rules of a group must be true of an event, and then all alert.

**Sequences** follow event time: each event is later than the one before, the last is at most
``maxspan`` after the first (four hours where none is given), and the end of a process ends what it
has begun. Texts join whatever their case, and events of different hosts never do.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from kcap.detect import sequence
from kcap.detect.rule import About, Context, Event, Problem, Rule, Selector
from kcap.detect.text import Text
from kcap.documents import Node
from kcap.errors import BadInputError, KcapError, VersionError
from kcap.filter import Filter, FilterError
from kcap.filter.check import check, era_of
from kcap.filter.parser import SPAN_MAX_NS, MacroTable, parse
from kcap.filter.pushdown import EVENT, necessary
from kcap.filter.syntax import And, Binary, Call, Expr, FieldRef, Literal, Not, Op, Or, text_of
from kcap.filter.syntax import Sequence as Steps
from kcap.model import alert
from kcap.readers.rules.fibratus_action import Action
from kcap.readers.rules.fibratus_action import of as action_of

UNORDERED_NS: Final = 10 * 10**9
"""How long Windows may hold events in the buffers of one provider or processor: 2.6 s were measured
in a capture of a minute, in which two fifths of the events are behind a later one."""

NEWEST: Final = 3
"""The newest major version of Fibratus whose rules are understood."""

_VERSION: Final = re.compile(r"v?(\d{1,6})(?:\.\d+){0,3}")
_SPACE: Final = re.compile(r"\s+")


class Macro(NamedTuple):
    """A macro as it stands in a file."""

    path: str
    node: Node
    """Its expression, with its lines; of a list the whole entry."""
    expr: str | None
    """None of a list."""
    items: tuple[str, ...]


class Written(NamedTuple):
    """A rule as it stands in a file."""

    path: str
    entry: Node
    keys: Mapping[str, Node]
    condition: Node


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that belong together; a rule of 2.x and 3.x is alone."""

    name: str
    """Empty where there is no group."""
    path: str
    rules: tuple[Written, ...]
    keys: Mapping[str, Node] = field(default_factory=dict)
    excludes: bool = False
    together: bool = False
    """All its rules must be true of an event."""


def rules(
    groups: Sequence[Group], table: MacroTable, macros: Mapping[str, Macro]
) -> Iterator[Rule | Problem]:
    """Make rules.

    Args:
        groups: What was read.
        table: The macros.
        macros: Where they stand.

    Yields:
        Rules in their order, and what is wrong with others.
    """
    parsed: list[tuple[Group, list[_Parsed]]] = []
    for group in groups:
        found = []
        for written in group.rules:
            one = _Parsed(group, written)
            try:
                one.parse(table)
            except KcapError as error:
                yield Problem(_placed(error, one, macros), one.id)
            else:
                found.append(one)
        if group.together and len(found) < len(group.rules):
            continue  # what is left would be true of more than the group is
        parsed.append((group, found))
    excluded = [_condition(group, found) for group, found in parsed if group.excludes and found]
    for group, found in parsed:
        for one in () if group.excludes else found:
            try:
                others = found if group.together else [one]
                yield one.rule(others, excluded)
            except KcapError as error:
                yield Problem(_placed(error, one, macros), one.id)


def _condition(group: Group, found: Sequence[_Parsed]) -> Expr:
    """What all rules of a group say together."""
    parts = tuple(one.condition for one in found)
    return parts[0] if len(parts) == 1 else And(parts) if group.together else Or(parts)


class _Parsed:
    """A rule and its condition."""

    def __init__(self, group: Group, written: Written) -> None:
        self.group = group
        self.written = written
        self.name = _one_line(written.keys["name"].text)
        own = written.keys.get("id")
        self.id = f"{group.name}/{self.name}" if own is None else own.text.strip()
        self.era: int | None = 1 if group.name else None
        self.tree: Expr | Steps | None = None

    @property
    def condition(self) -> Expr:
        """Its condition, where that is about one event."""
        assert self.tree is not None
        assert not isinstance(self.tree, Steps)
        return self.tree

    def parse(self, table: MacroTable) -> None:
        """Parse and check the condition.

        Raises:
            KcapError: It can't be understood.
        """
        node = self.written.keys.get("min-engine-version")
        if node is not None:
            self.era = _era(node)
        text = self.written.condition.text
        try:
            tree = parse(text, table, unopened=True)
            exprs = [step.expr for step in tree.steps] if isinstance(tree, Steps) else [tree]
            self.era = self.era or min(map(era_of, exprs))
            if isinstance(tree, Steps):
                self._check_steps(tree, text)
            else:
                check(tree, text, self.era)
        except FilterError as error:
            if error.what.startswith("no field is called") and error.text is text:
                more = "if it is a macro, give the file that has it as well"
                error.hint = f"{error.hint}; {more}" if error.hint else more
            raise
        self.tree = tree if isinstance(tree, Steps) else _and(*self._selector(), tree)

    def _check_steps(self, tree: Steps, text: str) -> None:
        if self.group.excludes or self.group.together:
            what = "a sequence can't be asked of one event, as its group does"
            raise FilterError(what, text, tree.start, tree.start + len("sequence"))
        for number, step in enumerate(tree.steps):
            check(step.expr, text, self.era, _aliases(tree, number))
            for ref in step.by or tree.by:
                check(Call("exists", (ref,), start=ref.start, end=ref.end), text, self.era)

    def _selector(self) -> Iterator[Expr]:
        """What the selector of its group asks for, which groups had before 1.8."""
        selector = self.group.keys.get("selector")
        for key, name in (("type", "kevt.name"), ("category", "kevt.category")):
            node = None if selector is None else selector.get(key)
            if node is not None and node.text:
                made = Binary(Op.EQ, FieldRef(name), Literal(node.text))
                check(made, text_of(made), 1)
                yield made

    def rule(self, together: Sequence[_Parsed], excluded: Sequence[Expr]) -> Rule:
        """The rule.

        Args:
            together: The rules that must be true of an event together, itself among them.
            excluded: Conditions that must not be.

        Returns:
            It.

        Raises:
            KcapError: It says what it must not.
        """
        action = action_of(self.written.keys.get("action"), self._names())
        about = self._about(action)
        data = {"actions": [dict(one) for one in action.others]} if action.others else {}
        without = tuple(map(Not, excluded)) if self.group.name else ()
        if isinstance(self.tree, Steps):
            return self._sequence(about, self.tree, without, data)
        made = _filter(_and(*(one.condition for one in together), *without), self.era)
        text = None if about.text is None else Text(about.text, era=self.era)
        selector = Selector("condition", made, _events(made))
        return Rule(
            about, (selector,), lambda: _Alerts(text, self.era, data), events=selector.events
        )

    def _sequence(
        self, about: About, tree: Steps, without: Sequence[Expr], data: Mapping[str, Any]
    ) -> Rule:
        steps = []
        for number, step in enumerate(tree.steps):
            expr = _and(step.expr, *without)
            checked = check(expr, text_of(expr), self.era, _aliases(tree, number))
            by = tuple(map(text_of, step.by or tree.by))
            steps.append(sequence.Step(checked, by, step.alias))
        options = sequence.Options(
            maxspan_ns=SPAN_MAX_NS if tree.maxspan is None else tree.maxspan.ns,
            later=True,
            unordered_ns=UNORDERED_NS,
            ends_with_process=True,
            whose=_whose,
            folded=True,
            each_host=True,
            data=data,
            first=True,
        )
        try:
            made = sequence.rule(about, steps, options)
        except ValueError as error:
            raise BadInputError(str(error), line=self.written.condition.line) from error
        selectors = tuple(one._replace(events=_events(one.filter)) for one in made.selectors)
        return replace(made, selectors=selectors, events=_union(selectors[-len(steps) :]))

    def _names(self) -> Mapping[str, str]:
        """Texts that the template of an action may ask for."""
        keys, group = self.written.keys, self.group.keys
        return {
            "Filter.Name": self.name,
            "Filter.Description": _one_line(
                keys["description"].text if "description" in keys else ""
            ),
            "Group.Name": self.group.name,
            "Group.Description": _one_line(
                group["description"].text if "description" in group else ""
            ),
        }

    def _check_text(self, text: str, node: Node) -> None:
        """See to it that what alerts say can be said."""
        steps = len(self.tree.steps) if isinstance(self.tree, Steps) else 1
        try:
            places = Text(text, era=self.era).places
        except FilterError as error:
            raise BadInputError(
                f"what alerts say: {error.what}", line=node.line, hint=error.hint
            ) from error
        for place in places:
            if (place.number or 1) > steps:
                what = f"what alerts say: %{place.number}.{place.name} of {steps}"
                raise BadInputError(what, line=node.line, expected="the number of a step")

    def _about(self, action: Action) -> About:
        """What is said of the rule."""
        if len(action.emits) > 1:
            line = self.written.keys["action"].line
            raise BadInputError("the action emits more than one alert", line=line, expected="one")
        keys = {**self.group.keys, **self.written.keys}
        labels = {
            name: node.text
            for each in (self.group.keys, self.written.keys)
            for name, node in _mapping(each.get("labels"))
        }
        said = self.written.keys.get("output")
        name, text = self.name, _said(said)
        severity, tags = _severity(keys.get("severity")), _words(keys.get("tags"))
        for emit in action.emits:
            severity = emit.severity or severity
            tags = tuple(dict.fromkeys((*tags, *emit.tags)))
            text = emit.text
            if Text(emit.title, era=self.era).places:
                text = f"{emit.title}: {emit.text}"
            else:
                name = emit.title.replace("%%", "%")
        if text is not None:
            self._check_text(text, said or self.written.keys["action"])
        technique = labels.get("subtechnique.id") or labels.get("technique.id")
        details: dict[str, Any] = {
            "group": self.group.name or None,
            "labels": labels,
            "actions": [dict(one) for one in action.others],
            "authors": list(_words(keys.get("authors"))),
            "notes": _said(keys.get("notes")),
            "min_engine_version": _said(keys.get("min-engine-version")),
        }
        return About(
            id=self.id,
            name=name,
            version=_said(self.written.keys.get("version")) or "1",
            description=_one_line(_said(keys.get("description")) or ""),
            severity=severity,
            tags=tags,
            techniques=() if technique is None else (technique,),
            references=_words(keys.get("references")),
            kind="fibratus",
            file=self.written.path,
            line=self.written.entry.line,
            text=text,
            details={key: value for key, value in details.items() if value},
        )


class _Alerts:
    """The machine of a rule about single events."""

    def __init__(self, text: Text | None, era: int | None, data: Mapping[str, Any]) -> None:
        self._text = text
        self._era = era
        self._data = data

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        del selector
        text = None
        if self._text is not None:
            text = self._text.of(lambda place: event.field(place.name, self._era))
        context.alert(text=text, data=self._data or None)

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`."""


def _and(*parts: Expr) -> Expr:
    """All of some expressions, with no ``and`` inside of another."""
    flat = [each for part in parts for each in (part.parts if isinstance(part, And) else (part,))]
    return flat[0] if len(flat) == 1 else And(tuple(flat))


def _filter(expr: Expr, era: int | None) -> Filter:
    """A filter of an expression, which need not be written anywhere."""
    text = text_of(expr)
    return Filter(check(expr, text, era), text)


def _events(chosen: Filter) -> frozenset[str] | None:
    """The events that a filter can be true of."""
    demand = necessary(chosen).of(EVENT)
    return None if demand.others else frozenset(map(str, demand.values - {None}))


def _union(selectors: Iterable[Selector]) -> frozenset[str] | None:
    """The events of some selectors."""
    found: frozenset[str] = frozenset()
    for one in selectors:
        if one.events is None:
            return None
        found |= one.events
    return found


def _whose(event: Event) -> Hashable:
    """Whose event it is: a thread that is made in another process is of that one."""
    inside = event.field("thread.pid") if event.name == "CreateThread" else None
    if inside is None or inside == event.column("pid"):
        return sequence.process_of(event)
    return event.column("source"), inside


def _aliases(tree: Steps, number: int) -> list[str]:
    """The names of the steps before one."""
    return [step.alias for step in tree.steps[:number] if step.alias]


def _era(node: Node) -> int:
    match = _VERSION.fullmatch(node.text.strip())
    if match is None:
        raise BadInputError("'min-engine-version'", line=node.line, expected="3.0.0, say")
    major = int(match[1])
    if major > NEWEST:
        what = f"it is for Fibratus {node.text.strip()}"
        expected = f"{NEWEST}.x or older"
        raise VersionError(what, line=node.line, expected=expected)
    return NEWEST if major == NEWEST else 1


def _severity(node: Node | None) -> str:
    if node is None:
        return "medium"
    if not node.text:
        raise BadInputError("'severity' is no text", line=node.line, expected="high, say")
    try:
        return alert.severity(node.text)
    except KcapError as error:
        error.line = node.line
        raise


def _said(node: Node | None) -> str | None:
    text = "" if node is None else node.text.strip()
    return text or None


def _words(node: Node | None) -> tuple[str, ...]:
    return () if node is None else tuple(item.text.strip() for item in node.items)


def _mapping(node: Node | None) -> Iterable[tuple[str, Node]]:
    if node is None or not node.value:
        return ()
    if not isinstance(node.value, dict):
        raise BadInputError("'labels'", line=node.line, expected="names and texts")
    return node.value.items()


def _one_line(text: str) -> str:
    return _SPACE.sub(" ", text).strip()


def _placed(error: KcapError, one: _Parsed, macros: Mapping[str, Macro]) -> KcapError:
    """An error with file, line and rule."""
    path, line = one.written.path, error.line
    if isinstance(error, FilterError):
        condition = one.written.condition
        line = condition.line
        if error.text == condition.text:
            line = condition.line_at(error.start)
        for macro in macros.values():
            if macro.expr is not None and error.text == macro.expr:
                path, line = macro.path, macro.node.line_at(error.start)
    made = type(error) if not isinstance(error, FilterError) else BadInputError
    found = made(
        f"the rule {one.name!r}: {error.what}",
        file=path,
        line=line or one.written.entry.line,
        expected=error.expected,
        hint=error.hint,
    )
    for note in getattr(error, "__notes__", ()):
        found.add_note(note)
    return found
