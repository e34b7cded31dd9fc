"""Which rules a verb runs: the options that name them, and reading them."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

import click

from kcap.errors import KcapError
from kcap.tools import common, logs

if TYPE_CHECKING:
    from kcap.detect.engine import Detections
    from kcap.detect.loading import Ruleset
    from kcap.detect.rule import Exempt, Problem, Rule, Selector
    from kcap.replay.stages import Matching

_F = TypeVar("_F", bound=Callable[..., Any])

SETS: Final = ("seed", "v0.15", "v0.24", "all")
"""Sets of Tracee's signatures (`kcap.readers.rules.tracee.SETS`, without reading them)."""

_DEFAULT: Final = "seed"
_EVERY: Final = "all"
_SUFFIXES: Final = (".yaml", ".yml", ".py", ".rego", ".yar", ".yara")
_YARA: Final = "yara"
_NANOSECONDS: Final = 10**9
_NEAR: Final = 3
_TOLD: Final = 100


class RuleOptions(TypedDict):
    """The options that `rule_options` declares."""

    rules: tuple[str, ...]
    signatures: str | None
    rules_dir: tuple[str, ...]
    yara: tuple[str, ...]
    tuning: tuple[str, ...]
    throttle: float | None


def rule_options(function: _F) -> _F:
    """``--rules``, ``--signatures``, ``--rules-dir``, ``--yara``, ``--tuning``, ``--throttle``."""
    for option in (
        click.option(
            "--yara",
            multiple=True,
            metavar="PATH",
            help="A file or folder of YARA rules, which look at artifacts; may be repeated.",
        ),
        click.option(
            "--throttle",
            type=common.Duration(),
            help="After an alert of a rule about a process, no other of the two for so long.",
        ),
        click.option(
            "--tuning",
            multiple=True,
            metavar="FILE",
            help="Alerts that are not wanted: YAML with rule, filter, reason, until.",
        ),
    ):
        function = option(function)
    return selecting_options(function)


def selecting_options(function: _F) -> _F:
    """``--rules``, ``--signatures``, ``--rules-dir``."""
    for option in (
        click.option(
            "--rules-dir",
            multiple=True,
            metavar="DIR",
            help="A folder of rules: all of them, or those whose IDs --rules names.",
        ),
        click.option(
            "--signatures",
            type=click.Choice(SETS),
            help="Tracee's signatures: the 14 that tracee-rules began with, those of a release,"
            " or all.",
        ),
        click.option(
            "--rules",
            multiple=True,
            metavar="PATH|ID",
            help="A file or folder of rules, or the ID of one; may be repeated.",
        ),
    ):
        function = option(function)
    return function


@dataclass
class Chosen:
    """The rules that a verb runs."""

    rules: list[Rule] = field(default_factory=list)
    """Tracee's in its order, then others by id."""
    problems: list[Problem] = field(default_factory=list)
    """Rules that can't run."""
    exceptions: tuple[Exempt, ...] = ()
    """Of tuning files."""
    throttle_ns: int | None = None
    files: list[str] = field(default_factory=list)
    """Files that rules and exceptions are from."""
    binaries: bool = False
    """They are answered from artifacts what they ask of ``pe.*`` and ``elf.*``."""

    def detections(
        self, *, start_ns: int | None = None, where: Matching | None = None
    ) -> Detections:
        """What runs them.

        Args:
            start_ns: Alerts from before this time are not raised.
            where: Events that rules look at; None for all.

        Returns:
            A tap.
        """
        from kcap.detect.engine import Detections

        return Detections(
            self.rules,
            exceptions=self.exceptions,
            throttle_ns=self.throttle_ns,
            start_ns=start_ns,
            where=where,
            binaries=self.binaries,
        )

    def loaded(self) -> str:
        """Which rules there are, as tracee-rules says it; of very many, the first."""
        ids = [rule.about.id for rule in self.rules]
        more = f" … {len(ids) - _TOLD:,} more" if len(ids) > _TOLD else ""
        return f"Loaded {len(ids)} signature(s): [{' '.join(ids[:_TOLD])}{more}]"

    def parts(self) -> list[dict[str, str]]:
        """What the alerts depend on beside options: the content of files.

        Returns:
            For a manifest: kind, name and digest of each.
        """
        return [
            {
                "kind": "rules",
                "name": Path(file).name,
                "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest(),
            }
            for file in self.files
        ]

    def tell_problems(self) -> None:
        """Say on standard error which rules can't run."""
        for problem in self.problems:
            tell_problem(problem)


def tell_problem(problem: Problem) -> None:
    """Say on standard error why a rule can't run.

    Args:
        problem: Why.
    """
    error = problem.error
    named = "" if problem.id is None or problem.id in str(error) else f"the rule {problem.id}: "
    logs.tell(f"kcap: {named}{error}", level="warning")
    for note in getattr(error, "__notes__", ()):
        logs.tell(note)
    if error.hint:
        logs.tell(f"hint: {error.hint}")


def given(options: RuleOptions) -> bool:
    """Whether a verb that needs no rules is given some.

    Args:
        options: Its options.

    Returns:
        True where rules are to run.

    Raises:
        click.UsageError: It is said how, but not which.
    """
    named = options["rules"], options["signatures"], options["rules_dir"], options["yara"]
    found = any(named)
    if not found and (options["tuning"] or options["throttle"] is not None):
        raise click.UsageError("--tuning and --throttle belong to --rules or --signatures")
    return found


def asked(options: RuleOptions) -> Chosen | None:
    """Read the rules of a verb that needs none, and say which there are.

    Args:
        options: The verb's options.

    Returns:
        The rules; None where none are named.

    Raises:
        KcapError: A file can't be read, or no rule has an ID that is named.
        click.UsageError: It is said how rules run, but not which.
    """
    if not given(options):
        return None
    found = chosen(options)
    logs.tell(found.loaded())
    found.tell_problems()
    return found


def chosen(options: RuleOptions) -> Chosen:
    """Read the rules that options name.

    Args:
        options: The verb's options; without any rules, Tracee's first 14 signatures.

    Returns:
        The rules, and what is wrong with others.

    Raises:
        KcapError: A file can't be read, or no rule has an ID that is named.
    """
    found = selected(options["rules"], options["signatures"], options["rules_dir"], options["yara"])
    context = click.get_current_context(silent=True)
    found.binaries = context is not None and common.looks_into_binaries(context)
    throttle_s = options["throttle"]
    if throttle_s is not None:
        found.throttle_ns = round(throttle_s * _NANOSECONDS)
    for name in options["tuning"]:
        found.exceptions += _tuning(name)
        found.files.append(name)
    known = {rule.about.id for rule in found.rules}
    for one in found.exceptions:
        if one.rule is not None and one.rule not in known:
            logs.tell(f"kcap: the tuning: no rule {one.rule} runs", level="warning")
    return found


def selected(
    names: Sequence[str],
    signatures: str | None = None,
    folders: Sequence[str] = (),
    yara: Sequence[str] = (),
) -> Chosen:
    """Read rules.

    Args:
        names: Files and folders of rules, all of which run, and IDs of rules.
        signatures: One of `SETS`; None for the seed's where nothing else is named.
        folders: Folders of rules: those that IDs name, or all.
        yara: Files and folders of YARA rules, all of which run.

    Returns:
        The rules.

    Raises:
        KcapError: A file can't be read, or no rule has an ID that is named.
    """
    from kcap.detect import loading
    from kcap.detect.engine import unique

    every = _Known()
    words = [word for name in names for word in _words(name)]
    ids = list(dict.fromkeys(word for word in words if _is_id(word, every)))
    paths = [Path(word) for word in words if word not in ids]
    named = loading.load(paths) if paths else loading.Ruleset()
    below = loading.load([Path(folder) for folder in folders]) if folders else loading.Ruleset()
    looking = loading.load([Path(one) for one in yara], _YARA) if yara else loading.Ruleset()
    rules: list[Rule] = []
    if ids:
        rules += _by_id(ids, below, named, signatures, every)
    else:
        if signatures is not None or not (paths or folders or yara):
            rules += every.of(signatures or _DEFAULT)
        rules += below.rules
    problems = [p for p in below.problems if not ids or p.id is None or p.id in ids]
    rules += [r for r in named.rules if r not in rules]
    kept, doubled = unique([*rules, *looking.rules])
    files = {rule.about.file for rule in kept if rule.about.file and rule.about.kind != "tracee"}
    files.update(file for rule in kept for file in rule.includes)
    problems += looking.problems
    return Chosen(kept, [*named.problems, *problems, *doubled], files=sorted(files))


def needed_events(rules: Iterable[Rule]) -> tuple[frozenset[str], list[Rule]]:
    """The events that must be recorded for some rules.

    Args:
        rules: The rules.

    Returns:
        The names of the events; and the rules of which that is not known.
    """
    found: set[str] = set()
    unknown = []
    for rule in rules:
        events = events_of(rule)
        if events is None:
            unknown.append(rule)
        else:
            found |= events
    return frozenset(found), unknown


def events_of(rule: Rule) -> frozenset[str] | None:
    """The events that must be recorded for a rule.

    Args:
        rule: The rule.

    Returns:
        Their names; None where that is not known.
    """
    if rule.events is not None:
        return rule.events
    each = [_selected(selector) for selector in rule.selectors]
    known = [events for events in each if events is not None]
    return frozenset[str]().union(*known) if len(known) == len(each) else None


def _selected(selector: Selector) -> frozenset[str] | None:
    """The events that a selector can be true of, those apart that are made of alerts."""
    from kcap.filter.pushdown import EVENT, necessary
    from kcap.model import alert
    from kcap.readers.live.selection import named_in

    if selector.events is not None:
        return selector.events
    demand = necessary(selector.filter).of(EVENT)
    if demand.others:
        return named_in(selector.filter)  # a pattern of names, maybe
    return frozenset(map(str, demand.values - {None, alert.KIND}))


class _Known:
    """Tracee's signatures, read once."""

    def __init__(self) -> None:
        self._sets: dict[str, list[Rule]] = {}

    def of(self, name: str) -> list[Rule]:
        """Those of a set."""
        from kcap.readers.rules import tracee

        if name not in self._sets:
            self._sets[name] = tracee.signatures(name)
        return self._sets[name]


def _words(name: str) -> list[str]:
    """The IDs in a list of IDs; what is a path stays whole."""
    if Path(name).exists() or os.sep in name:
        return [name]
    return [word.strip() for word in name.split(",") if word.strip()]


def _is_id(word: str, every: _Known) -> bool:
    """Whether it is the ID of a rule rather than a path: a file may be called like a signature."""
    if os.sep in word or word.endswith(_SUFFIXES):
        return False
    return not Path(word).exists() or word in {rule.about.id for rule in every.of(_EVERY)}


def _by_id(
    ids: Sequence[str], below: Ruleset, named: Ruleset, signatures: str | None, every: _Known
) -> list[Rule]:
    """The rules of some IDs: of the set and the folders that are named, else of all signatures."""
    own = below.rules or named.rules
    first = {rule.about.id: rule for rule in reversed([*every.of(signatures or _DEFAULT), *own])}
    later = {} if signatures else {rule.about.id: rule for rule in every.of(_EVERY)}
    broken = {problem.id for problem in (*below.problems, *named.problems)}
    for name in ids:
        if name not in first and name not in later and name not in broken:
            known = list(dict.fromkeys([*first, *later]))
            near = difflib.get_close_matches(name, known, _NEAR)
            raise KcapError(
                f"no rule has the ID {name!r}, and there is no such file",
                expected=" or ".join(near) or None,
                hint="kcap rules list --signatures all",
            )
    order = {name: number for number, name in enumerate([*first, *later])}
    wanted = sorted((name for name in ids if name in order), key=lambda name: order[name])
    return [first.get(name) or later[name] for name in wanted]


def _tuning(name: str) -> tuple[Exempt, ...]:
    from kcap import trust
    from kcap.detect.yaml_rules import tuning

    trust.check(name)
    try:
        text = Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "no UTF-8"
        raise KcapError(f"it can't be read: {what}", file=name) from error
    return tuning(text, name)
