"""What rules need of a recording: events, and the options that these depend on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kcap.errors import KcapError
from kcap.tools import logs, ruleset

if TYPE_CHECKING:
    from kcap.detect.rule import Rule
    from kcap.filter import Filter
    from kcap.filter.leaf import Leaf
    from kcap.readers.live.selection import Environment, Selection
    from kcap.tools.artifact_options import Asked
    from kcap.tools.live_select import SelectOptions

_NAMED: Final = 3
"""So many rules are named that need the same; of more, how many."""

_STACK: Final = "stack_addresses"
_VARIABLES: Final = frozenset({"arg:env", "arg:envp"})
"""Where a field is the environment of an execution."""

_OPENED: Final = frozenset({"arg_pathname", "arg_flags", "fd_name"})
"""Columns that tell of an opened file which one it is, and what for."""

_HOOKS: Final = "hooked_syscalls"
"""The event that a kernel tells nothing of where it hides its symbols."""

_EXEC: Final = "exec"
"""The artifacts that rules look at unless more is asked for."""

_OPENS: Final = ("open", "openat", "openat2")


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be recorded for some rules."""

    events: Mapping[str, tuple[str, ...]]
    """The rules that need each event."""
    unknown: tuple[str, ...]
    """Rules of which it is not known what events they need."""
    variables: frozenset[str] | None
    """Variables of the environment; names that end with a ``*`` are patterns. None for all."""
    stack: tuple[str, ...]
    """Rules that look at the addresses of the call stack."""
    opens: tuple[str, ...]
    """Rules that look at files opened for reading, too, though not by the name of an event."""

    @property
    def environment(self) -> str | None:
        """The value of ``--env``; None for what is recorded anyway."""
        from kcap.readers.live.selection import Environment

        if self.variables is None:
            return "all"
        anyway = Environment().patterns
        more = [name for name in sorted(self.variables) if not _is_kept(name, anyway)]
        return ",".join([*anyway, *more]) if more else None


def needs(rules: Iterable[Rule]) -> Needs:
    """What must be recorded for some rules.

    Args:
        rules: The rules.

    Returns:
        It.
    """
    events: dict[str, list[str]] = defaultdict(list)
    unknown, stack, opens = [], [], []
    variables: set[str] | None = set()
    for rule in rules:
        name, filters = rule.about.id, _filters(rule)
        own = ruleset.events_of(rule)
        for event in own or ():
            events[event].append(name)
        if own is None:
            unknown.append(name)
            opens += [name] * any(map(_is_of_opens, filters))
        stack += [name] * any(_STACK in each.columns for each in filters)
        for asked in map(_variables, filters):
            variables = None if variables is None or asked is None else variables | asked
    found = {event: tuple(events[event]) for event in sorted(events)}
    some = None if variables is None else frozenset(variables)
    return Needs(found, tuple(unknown), some, tuple(stack), tuple(opens))


def turn_on(options: SelectOptions, rules: ruleset.Chosen | None) -> Needs | None:
    """Let a recorder be asked for what rules need, and say so on standard error.

    What a user asks for decides: events and options that are given stay as they are.

    Args:
        options: The verb's options; changed.
        rules: The rules, None for none.

    Returns:
        What they need; None for no rules.
    """
    if rules is None:
        return None
    needed = needs(rules.rules)
    turned = []
    if not (options["wanted"] or options["sets"]):
        options["wanted"] = ("default", *_seen(needed))
        turned.append(f"--events {','.join(options['wanted'])}")
        if needed.unknown:
            names = ", ".join(needed.unknown)
            logs.tell(f"kcap: the rules: which events these need is not known: {names}")
    if needed.environment and options["env"] is None:
        options["env"] = needed.environment
        turned.append(f"--env {options['env']}")
    if needed.stack and not options["stack"]:
        options["stack"] = True
        turned.append("--stack")
    if needed.opens and options["opens"] is None:
        options["opens"] = "all"
        turned.append("--opens all")
    if turned:
        logs.tell(f"kcap: the rules: {' '.join(turned)}")
    return needed


def artifacts(
    rules: ruleset.Chosen | None,
    asked: Asked | None,
    options: SelectOptions,
    where: Filter | None = None,
) -> Asked | None:
    """Let executed files be kept where rules or a filter look at artifacts, and say so.

    What a user asks for decides. Where artifacts can't be kept at all, that is said, too.

    Args:
        rules: The rules, None for none.
        asked: The artifacts that the user asks for, None for none.
        options: The verb's options; which events there are changes.
        where: The filter, None for none.

    Returns:
        What is to be kept; None for nothing.
    """
    if asked is not None:
        return asked
    names = [] if rules is None else _looking(rules)
    who = "the rules" if names else "the filter"
    if not names and (where is None or where.inspector is None or not where.inspector.wanted):
        return None
    from kcap.readers.live.artifacts import spelling
    from kcap.tools import artifact_options, companions

    made = artifact_options.Asked(spelling.read((_EXEC,)).wanted, text=_EXEC)
    try:
        companions.check(options["source"], made)
    except KcapError as e:
        what = f"--artifacts {_EXEC}" + (f" ({_rules(names)})" if names else "")
        logs.tell(f"kcap: {who}: not recorded: {what}: {e.what}", level="warning")
        return None
    logs.tell(f"kcap: {who}: --artifacts {_EXEC}")
    artifact_options.turn_on(options, made)
    return made


def _looking(rules: ruleset.Chosen) -> list[str]:
    """The rules that look at artifacts."""
    from kcap.binaries import inspector

    columns = inspector.COLUMNS if rules.binaries else inspector.ASKED
    return [
        rule.about.id
        for rule in rules.rules
        if rule.contents is not None
        or any(not columns.isdisjoint(each.columns) for each in _filters(rule))
    ]


def tell_lacking(needed: Needs | None, selection: Selection) -> None:
    """Say on standard error what rules need, and a recording will not have.

    Args:
        needed: What they need; None for no rules.
        selection: What is recorded.
    """
    if needed is None:
        return
    from kcap.readers.live import choosing
    from kcap.readers.live.bpf import hooks
    from kcap.readers.live.scopes import Choice
    from kcap.readers.live.selection import WRITES

    lacking = {}
    for name in _seen(needed, tell=True):
        if choosing.choose([Choice(name)]).events - selection.events:
            lacking[name] = needed.events[name]
    if lacking:
        logs.tell(f"kcap: the rules: not recorded: {_with_rules(lacking)}", level="warning")
    if _HOOKS in needed.events and _HOOKS not in lacking and hooks.symbols() is None:
        what = f"{_HOOKS} ({_rules(needed.events[_HOOKS])})"
        logs.tell(f"kcap: the rules: this kernel hides what tells of {what}", level="warning")
    environment = _left_out(needed, selection.environment)
    if environment:
        names = ", ".join(environment)
        logs.tell(f"kcap: the rules: --env leaves out the variables {names}", level="warning")
    if needed.opens and selection.opens == WRITES:
        what = f"files opened for reading ({_rules(needed.opens)})"
        logs.tell(f"kcap: the rules: --opens writes leaves out {what}", level="warning")


def _seen(needed: Needs, *, tell: bool = False) -> list[str]:
    """The events that a recorder sees; what none sees is told."""
    from kcap.readers.live import choosing

    known = choosing.arguments()
    unseen = {name: rules for name, rules in needed.events.items() if name not in known}
    if unseen and tell:
        logs.tell(f"kcap: the rules: no recorder sees {_with_rules(unseen)}", level="warning")
    return [name for name in needed.events if name in known]


def _with_rules(events: Mapping[str, Sequence[str]]) -> str:
    """Events, and which rules need them."""
    return ", ".join(f"{name} ({_rules(rules)})" for name, rules in events.items())


def _rules(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _filters(rule: Rule) -> list[Filter]:
    """What a rule asks of events, and what its machine asks beyond that."""
    from kcap.filter import Filter

    fields = [Filter.of(f"exists({name})") for name in sorted(rule.fields)]
    return [*(selector.filter for selector in rule.selectors), *fields]


def _is_of_opens(chosen: Filter) -> bool:
    """Whether it may be true of an opened file, and asks which one it is."""
    from kcap.filter.pushdown import EVENT, necessary

    demand = necessary(chosen).of(EVENT)
    return not chosen.columns.isdisjoint(_OPENED) and any(name in demand for name in _OPENS)


def _left_out(needed: Needs, environment: Environment) -> list[str]:
    """Variables that rules look at, and that are not recorded."""
    kept = environment.patterns
    wanted = ["*"] if needed.variables is None else sorted(needed.variables)
    return [name for name in wanted if not _is_kept(name, kept)]


def _is_kept(name: str, patterns: Iterable[str]) -> bool:
    """Whether a variable, or all that a pattern means, are among what patterns mean."""
    plain = name.removesuffix("*")
    return any(
        plain.startswith(each[:-1]) if each.endswith("*") else name == each for each in patterns
    )


def _variables(chosen: Filter) -> frozenset[str] | None:
    """The variables that a filter asks for; None where it may be any."""
    found: set[str] = set()
    for _, leaf in chosen.engine.leaves():
        for reference in leaf.fields:
            resolved = chosen.engine.fields[reference]
            if _VARIABLES.isdisjoint(source.column for source in resolved.field.sources):
                continue
            names = {resolved.key} if resolved.key else _named(leaf)
            if names is None:
                return None
            found |= names
    return frozenset(found)


def _named(leaf: Leaf) -> set[str] | None:
    """The variables that a list of ``NAME=value`` is asked for; None where it may be any."""
    from kcap.filter.syntax import Op

    if leaf.constants is None or leaf.op not in (Op.EQ, Op.IN, Op.STARTSWITH, Op.CONTAINS):
        return None
    found = set()
    for text in leaf.constants:
        # "contains 'NAME='" is true of other variables that end so, too, but never means them.
        name, equals, _ = str(text).partition("=")
        if not name.isidentifier() or not (equals or leaf.op is Op.STARTSWITH):
            return None
        found.add(name if equals else f"{name}*")
    return found
