"""Sequences: events that follow one another within a time, joined by values.

There is one state machine a join key. An event is tried on later steps first, so that it is never
two steps of one sequence, and moves the newest partial sequence on that it fits: of older ones that
it fits too, which a newer one has outlived, nothing more can come. Times are those of the clock
(`kcap.detect.engine`): the last event may come exactly ``maxspan`` after the first, and no later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kcap.detect import event as events
from kcap.detect.early import Early, Taken, fields_of
from kcap.detect.keys import Key, folded, key_of, plain, size_of, within_host
from kcap.detect.room import Table
from kcap.detect.rule import About, Context, Event, Identity, Rule, Selector
from kcap.detect.text import Place, Text
from kcap.filter import Filter
from kcap.filter.check import Checked, check
from kcap.filter.errors import FilterError
from kcap.filter.parser import Macros, parse
from kcap.filter.syntax import And, Bound, Expr, Literal, children, text_of
from kcap.filter.syntax import Sequence as Steps
from kcap.model.classes import I64_MAX

STEPS_MAX: Final = 64
"""Steps of a sequence."""

_WAITING: Final = 64
"""Partial sequences of one key that wait for one step, where more than the newest may matter."""

_ENDED: Final = "action = 'process_stop' and (exists(args.pid) or not (pid != tid))"
"""A process ended: it is named, as on Windows, or its first thread ended."""

_END: Final = frozenset({"sched_process_exit"})
"""What a recorder must be asked for to see that; other sources have names of their own."""


def process_of(event: Event) -> Hashable:
    """Whose event it is.

    Args:
        event: The event.

    Returns:
        What tells the process from others, as far as that is known.
    """
    key: Hashable = event.column("process_key")
    return (event.column("source"), event.column("pid")) if key is None else key


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a sequence."""

    condition: Checked
    """May ask for fields of earlier steps, as ``$alias.file.path``."""
    by: tuple[str, ...] = ()
    """Fields whose values join it with the other steps, in place of those of the sequence."""
    alias: str = ""
    """How later steps call its event."""
    events: frozenset[str] | None = None
    """The events that it can be, by name; None where that is not known."""

    @classmethod
    def of(
        cls,
        text: str,
        *,
        by: Sequence[str] = (),
        alias: str = "",
        earlier: Sequence[str] = (),
        era: int | None = None,
        macros: Macros | None = None,
    ) -> Step:
        """Parse and check a step.

        Args:
            text: Its condition.
            by: See `by`.
            alias: See `alias`.
            earlier: The aliases of the steps before it.
            era: As for `kcap.filter.Filter.of`.
            macros: As for `kcap.filter.Filter.of`.

        Returns:
            The step.

        Raises:
            FilterError: It can't be understood.
        """
        node = parse(text, macros)
        if isinstance(node, Steps):
            raise FilterError("a step is no sequence", text, node.start, node.end or len(text))
        return cls(check(node, text, era, earlier), tuple(by), alias)


@dataclass(frozen=True, slots=True)
class Options:
    """What a sequence means where sources differ."""

    maxspan_ns: int | None = None
    """The longest time from the first event to the last; None for any."""
    by: tuple[str, ...] = ()
    """Fields whose values join all steps that have none of their own."""
    later: bool = False
    """Each event must have a later time than the one before; else it must only be recorded later,
    as the order of events with one time is known."""
    unordered_ns: int = 0
    """With `later`: an event may be recorded so long before one that happened earlier."""
    ends_with_process: bool = False
    """The end of a process ends what it has begun."""
    whose: Callable[[Event], Hashable] = process_of
    """The process whose end ends what an event has begun."""
    folded: bool = False
    """Texts that differ only in case join, as paths of Windows do."""
    each_host: bool = False
    """Events of different hosts never join; those joined by a process id never do."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What all alerts have among their data."""
    first: bool = False
    """In the text of alerts, fields without a number are of the first event, not of the last."""


def rule(about: About, steps: Sequence[Step], options: Options | None = None) -> Rule:
    """A sequence as a rule.

    Args:
        about: What is said of it; its text may name fields of each step: ``%2.file.path``.
        steps: The steps.
        options: What else it means.

    Returns:
        The rule.

    Raises:
        ValueError: There are too few or too many steps, or joins that do not fit one another.
        FilterError: It names a field that there is not.
    """
    options = options or Options()
    if not 1 < len(steps) <= STEPS_MAX:
        raise ValueError(f"a sequence of {len(steps)} steps: expected 2 to {STEPS_MAX}")
    plan = _plan(about, steps, options)
    aliases = _aliases(steps)
    selectors = [
        Selector(f"step {n}", _alone(step.condition, aliases), step.events)
        for n, step in enumerate(steps, 1)
    ]
    if options.ends_with_process:
        # The lowest number: the end of a process may be the last step, which comes first then.
        selectors.insert(0, Selector("process ended", Filter.of(_ENDED), _END))
    asked = {name for step in plan.steps for name in step.by}
    asked |= {path for step in plan.steps for path in step.captured}
    asked |= {place.name for step in plan.steps for place in step.places}
    if options.unordered_ns:
        rests = [step.rest for step in plan.steps if step.rest is not None]
        asked |= {text_of(ref) for rest in rests for ref in fields_of(rest.expr)}
    shown = replace(about, text=None)
    return Rule(shown, tuple(selectors), lambda: _Sequence(plan), fields=frozenset(asked))


@dataclass(frozen=True, slots=True)
class _Stage:
    """A step, ready to run."""

    by: tuple[str, ...]
    era: int
    alias: str
    rest: Checked | None
    """What of its condition asks for earlier steps."""
    captured: tuple[str, ...]
    """The fields of its event that later steps ask for."""
    places: tuple[Place, ...]
    """Those that the text asks for."""


@dataclass(frozen=True, slots=True)
class _Plan:
    steps: tuple[_Stage, ...]
    options: Options
    text: Text | None
    description: str
    most: int
    """Partial sequences of one key that may wait for one step."""


def _plan(about: About, steps: Sequence[Step], options: Options) -> _Plan:
    era = max(step.condition.era for step in steps)
    text = None if about.text is None else Text(about.text, first=options.first, era=era)
    joins = {len(step.by or options.by) for step in steps}
    if len(joins) > 1:
        raise ValueError("the steps are joined by different numbers of fields")
    aliases = _aliases(steps)
    if len(aliases) < sum(bool(step.alias) for step in steps):
        raise ValueError("two steps have one alias")
    asked: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        for bound in _bounds(step.condition.expr, aliases):
            if not bound.path:
                raise ValueError(f"${bound.name} is an event: expected ${bound.name}.FIELD")
            events.field(bound.path, step.condition.era)  # it must be one
            asked[bound.name].append(bound.path)
    places: dict[int, list[Place]] = defaultdict(list)
    for place in () if text is None else text.places:
        number = len(steps) if place.number is None else place.number
        if number > len(steps):
            raise ValueError(f"the text asks for step {number} of {len(steps)}")
        places[number].append(place)
    made = tuple(
        _Stage(
            by=step.by or options.by,
            era=step.condition.era,
            alias=step.alias,
            rest=_rest(step.condition, aliases),
            captured=tuple(dict.fromkeys(asked[step.alias] if step.alias else ())),
            places=tuple(places[number]),
        )
        for number, step in enumerate(steps, 1)
    )
    many = options.later or any(stage.rest is not None for stage in made)
    if any(within_host(stage.by, stage.era) for stage in made):
        options = replace(options, each_host=True)
    return _Plan(made, options, text, about.description, _WAITING if many else 1)


def _aliases(steps: Sequence[Step]) -> frozenset[str]:
    return frozenset(step.alias for step in steps if step.alias)


def _bounds(node: Expr, aliases: frozenset[str]) -> list[Bound]:
    """The parts of an expression that ask for earlier events."""
    if isinstance(node, Bound):
        return [node] if node.name in aliases else []
    return [found for part in children(node) for found in _bounds(part, aliases)]


def _parts(condition: Checked, aliases: frozenset[str]) -> tuple[list[Expr], list[Expr]]:
    """What of a condition is about its own event alone, and what is not."""
    expr = condition.expr
    parts = expr.parts if isinstance(expr, And) else (expr,)
    asking = [bool(_bounds(part, aliases)) for part in parts]
    alone = [part for part, asks in zip(parts, asking, strict=True) if not asks]
    return alone, [part for part, asks in zip(parts, asking, strict=True) if asks]


def _joined(parts: Sequence[Expr]) -> Expr:
    if not parts:
        return Literal(value=True)
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _alone(condition: Checked, aliases: frozenset[str]) -> Filter:
    """What a condition asks of its own event alone."""
    expr = _joined(_parts(condition, aliases)[0])
    return Filter(replace(condition, expr=expr), text_of(expr))


def _rest(condition: Checked, aliases: frozenset[str]) -> Checked | None:
    """What a condition asks of earlier events, too."""
    parts = _parts(condition, aliases)[1]
    return replace(condition, expr=_joined(parts)) if parts else None


@dataclass(slots=True)
class _Partial:
    """A sequence that has begun."""

    key: Key
    shown: Key
    """The key as the first event has it."""
    start_ns: int
    step: int = 0
    """The step that it waits for, from 0."""
    first_ns: int | None = None
    last_ns: int | None = None
    """The times of its first and its last event."""
    causes: list[Identity] = field(default_factory=list)
    variables: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """What later steps ask for, by alias."""
    values: dict[Place, Any] = field(default_factory=dict)
    """What the text asks for."""
    processes: list[Hashable] = field(default_factory=list)
    """Whose events it has, where that matters."""


class _Sequence:
    """The machine."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._first = int(plan.options.ends_with_process)
        """The selector of the first step."""
        self._partials: Table[int, _Partial] = Table(self._forget)
        """By number, the one that began first, first."""
        self._begun = 0
        self._early = Early(plan.options.unordered_ns)
        self._waiting: dict[tuple[int, Key], list[int]] = {}
        """Those that wait for a step, the oldest first."""
        self._of_process: dict[Hashable, dict[int, None]] = {}

    def match(self, context: Context, selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        self._expire(context)
        number = selector - self._first
        if number < 0:
            for process in _ended(event):
                for partial in list(self._of_process.get(process, ())):
                    self._remove(context, partial)
            return
        shown = key_of(event, self._plan.steps[number].by, self._plan.steps[number].era)
        if shown is None:
            return
        key = folded(shown) if self._plan.options.folded else shown
        if self._plan.options.each_host:
            key = event.column("host"), *key
        if number == 0:
            self._begin(context, key, shown, event)
            return
        fitting = [
            partial
            for partial in self._waiting.get((number, key), ())
            if self._fits(partial, number, event)
        ]
        for partial in fitting[:-1]:
            self._remove(context, partial)
        if fitting:
            self._advance(context, fitting[-1], self._taken(number, event))
        elif self._plan.options.unordered_ns:
            rest = self._plan.steps[number].rest
            self._early.keep(context, (number, key), event, self._taken(number, event), rest)

    def deadline(self, context: Context, key: object) -> None:
        """See `kcap.detect.rule.Machine`."""

    def end(self, context: Context) -> None:
        """See `kcap.detect.rule.Machine`."""

    def _fits(self, number: int, step: int, event: Event) -> bool:
        partial = self._partials.get(number)
        assert partial is not None
        if not self._in_time(partial, event.ts_ns):
            return False
        rest = self._plan.steps[step].rest
        return rest is None or event.holds(rest, partial.variables)

    def _in_time(self, partial: _Partial, time_ns: int | None) -> bool:
        """Whether an event of that time may be the next one, where the times tell."""
        options = self._plan.options
        if not options.later:
            return True
        if time_ns is None or partial.last_ns is None or partial.first_ns is None:
            return False
        span_ns = I64_MAX if options.maxspan_ns is None else options.maxspan_ns
        return time_ns > partial.last_ns and time_ns - partial.first_ns <= span_ns

    def _begin(self, context: Context, key: Key, shown: Key, event: Event) -> None:
        self._begun += 1
        partial = _Partial(key, shown, context.now_ns)
        self._partials.put(context, self._begun, partial, size_of(key))
        self._advance(context, self._begun, self._taken(0, event))

    def _taken(self, number: int, event: Event) -> Taken:
        """What is remembered of the event of a step."""
        stage, options = self._plan.steps[number], self._plan.options
        return Taken(
            event.ts_ns,
            event.causes,
            {path: event.field(path, stage.era) for path in stage.captured},
            {place: event.field(place.name, stage.era) for place in stage.places},
            options.whose(event) if options.ends_with_process else None,
        )

    def _advance(self, context: Context, number: int, taken: Taken) -> None:
        """Take in the event that a partial sequence waits for."""
        partial = self._partials.get(number)
        if partial is None:
            return  # there was no room for a single one
        self._forget(number, partial)
        self._add(partial, taken)
        if partial.step == len(self._plan.steps):
            self._partials.pop(context, number)
            self._alert(context, partial)
            return
        self._wait(context, number, partial, taken)
        if self._partials.get(number) is None:
            return
        self._partials.grow(context, number, taken.size)
        if self._plan.options.unordered_ns and self._partials.get(number) is not None:
            self._catch_up(context, number, partial)

    def _catch_up(self, context: Context, number: int, partial: _Partial) -> None:
        """Look for the next step among what was recorded before it."""
        taken = self._early.take(
            context,
            (partial.step, partial.key),
            partial.variables,
            lambda one: self._in_time(partial, one.ts_ns),
        )
        if taken is not None:
            self._advance(context, number, taken)

    def _wait(self, context: Context, number: int, partial: _Partial, taken: Taken) -> None:
        """Let a partial sequence wait for its next step."""
        waiting = self._waiting.setdefault((partial.step, partial.key), [])
        waiting.append(number)
        if self._plan.options.ends_with_process:
            partial.processes.append(taken.process)
            for process in partial.processes:
                self._of_process.setdefault(process, {})[number] = None
        if len(waiting) > self._plan.most:
            if self._plan.most > 1:
                context.dropped()
            self._remove(context, waiting[0])

    def _add(self, partial: _Partial, taken: Taken) -> None:
        """Take in the event of a step."""
        stage = self._plan.steps[partial.step]
        if partial.step == 0:
            partial.first_ns = taken.ts_ns
        partial.step += 1
        partial.last_ns = taken.ts_ns
        partial.causes += taken.causes
        if taken.captured:
            partial.variables[stage.alias] = taken.captured
        partial.values |= taken.shown

    def _alert(self, context: Context, partial: _Partial) -> None:
        text = self._plan.text
        joined = zip(self._plan.steps[0].by, map(plain, partial.shown), strict=True)
        context.alert(
            causes=tuple(dict.fromkeys(partial.causes)),
            data={**dict(joined), **self._plan.options.data} or None,
            text=self._plan.description if text is None else text.of(partial.values.get),
        )

    def _expire(self, context: Context) -> None:
        """Forget what took too long; that is no loss."""
        self._early.expire(context)
        span_ns = self._plan.options.maxspan_ns
        if span_ns is not None:
            span_ns += self._plan.options.unordered_ns  # what is late is looked at by its own time
        while span_ns is not None and (oldest := self._partials.oldest()) is not None:
            if context.now_ns - oldest[1].start_ns <= span_ns:
                break
            self._remove(context, oldest[0])

    def _remove(self, context: Context, number: int) -> _Partial:
        partial = self._partials.pop(context, number)
        assert partial is not None
        self._forget(number, partial)
        return partial

    def _forget(self, number: int, partial: _Partial) -> None:
        """Let go of whatever leads to a partial sequence."""
        place = partial.step, partial.key
        waiting = self._waiting.get(place, [])
        if number in waiting:
            waiting.remove(number)
            if not waiting:
                del self._waiting[place]
        for process in partial.processes:
            numbers = self._of_process.get(process, {})
            numbers.pop(number, None)
            if not numbers:
                self._of_process.pop(process, None)


def _ended(event: Event) -> tuple[Hashable, ...]:
    """The process that ended, as what it began may know it.

    On Windows it need not be the one whose event it is; and its key may have become known since.
    """
    pid = event.column("pid")
    named = event.field("args.pid")
    if named is None or named == pid:
        return process_of(event), (event.column("source"), pid)
    return ((event.column("source"), named),)
