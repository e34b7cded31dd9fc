"""Tracee's signatures, as rules.

The 16 that Tracee 0.8 had and the 31 that came after them, each with the logic of its release:
what they find is theirs, the words and the code are not. Two tables say all that is no code:
``tracee_signatures.tsv`` what a signature is, ``tracee_selectors.tsv`` the events that it is about.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache, partial
from importlib import resources
from typing import ClassVar, Final, NamedTuple

from kcap.detect.rule import About, Problem, Rule, Selector
from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.filter.parser import MacroTable
from kcap.model.alert import SEVERITIES
from kcap.readers.rules.tracee_machines import STATEFUL, Findings, look

SETS: Final = ("seed", "v0.15", "v0.24", "all")
"""Sets of signatures: the 14 that tracee-rules 0.8 ran by itself, the later ones with the logic of
0.15 (and down to 0.10) and of 0.24, and all 47, the later ones as in 0.24."""

_PATTERN: Final = re.compile(r'"id"\s*:\s*"([A-Za-z0-9_-]{1,40})"')
_PACKAGE: Final = re.compile(r"^\s*package\s+tracee\b", re.MULTILINE)
_TESTS: Final = "_test.rego"
_OPTIONAL: Final = "?"
"""Behind an event that is looked at where it was recorded, but not needed."""

_SHELLS: Final = ("ash", "bash", "csh", "ksh", "sh", "tcsh", "zsh", "dash")

_MACROS: Final = {
    # How an event came to be here tells how to read it (its shape has the keys of its record):
    # trace.Event, v1beta1.Event, or no event of Tracee's.
    "classic": "shape contains 'eventName:'",
    "modern": "shape contains 'name:string' and not (shape contains 'eventName:')",
    "tracee": "classic or modern",
    # Where a container has started is said from 0.8.1 on; v1beta1 leaves out what is false.
    "flagged": "exists(container_started) or shape contains 'contextFlags'",
    "silent": "not (flagged) and not modern",
    "runc_init": "process_name startswith 'runc:' and ns_tid = 1",
    "inside": "container_id != '' or (classic and pid != ns_pid)",
    "starting": "not tracee and process_name startswith 'runc:'",
    "container": "container_started or (silent and (inside) and not (starting))",
    "container_init": "container_id != '' and not container",
    "host": "not (container_id != '') and not container",
    "writes": "args.flags icontains ('o_wronly', 'o_rdwr')",
    "reads": "args.flags icontains ('o_rdonly', 'o_rdwr')",
    "unpacked": "args.alert = 4",
    "other_process": "exists(args.pid) and not (args.pid = ns_pid)",
    "executes_shell": "args.pathname endswith (" + ", ".join(f"'/{s}'" for s in _SHELLS) + ")",
    "process_memory": (
        r"(not modern and regex(args.pathname, '/proc/(?:\\d.+)/mem$'))"
        r" or (modern and regex(args.pathname, '/proc/(?:\\d+|self)/mem$'))"
    ),
}
"""What the conditions of the table are made of, in their words."""

_ORIGINS: Final = {"*": "", "container": "container", "container-init": "container_init"} | {
    "host": "host"
}


class _Row(NamedTuple):
    """A signature, as the table has it."""

    id: str
    sets: str
    name: str
    event_name: str
    version: str
    severity: str
    category: str
    technique: str
    mitre_id: str
    tags: str
    machine: str
    description: str


class _On(NamedTuple):
    """Events of a signature, as the table has it."""

    id: str
    sets: str
    event: str
    origin: str
    condition: str
    check: str
    found: str

    @property
    def event_name(self) -> str:
        return self.event.rstrip(_OPTIONAL)


@cache
def _table(name: str) -> list[list[str]]:
    text = resources.files("kcap.readers.rules.data").joinpath(name).read_text("utf-8")
    return [line.split("\t") for line in text.splitlines()[1:]]


def _signatures() -> list[_Row]:
    return [_Row(*fields) for fields in _table("tracee_signatures.tsv")]


def _selectors() -> list[_On]:
    return [_On(*fields) for fields in _table("tracee_selectors.tsv")]


def signatures(chosen: str = "seed", ids: Collection[str] | None = None) -> list[Rule]:
    """Tracee's signatures, as rules.

    Args:
        chosen: One of `SETS`.
        ids: Only these of them; None for all. What is not in the set is left out.

    Returns:
        The rules, in the order in which tracee-rules lists them.

    Raises:
        KcapError: There is no such set.
    """
    if chosen not in SETS:
        raise KcapError(f"no set of signatures is called {chosen!r}", expected=", ".join(SETS))
    macros = MacroTable(_MACROS)
    rows = [row for row in _signatures() if chosen in row.sets.split(",")]
    return [_rule(row, _of(row.id, chosen), macros) for row in rows if ids is None or row.id in ids]


def described() -> list[tuple[str, ...]]:
    """What there is, for people.

    Returns:
        Of each signature its id, severity, sets, where its events come from, these events, and
        its name; a heading first.
    """
    found: list[tuple[str, ...]] = [("id", "severity", "sets", "origin", "events", "name")]
    for row in _signatures():
        ons = _of(row.id, "all")
        origins = sorted({one.origin for one in ons})
        events = dict.fromkeys(one.event for one in ons if not one.event.endswith(_OPTIONAL))
        told = (_severity(row), row.sets.replace(",", " "), " ".join(origins), " ".join(events))
        found.append((row.id, *told, row.name))
    return found


def _severity(row: _Row) -> str:
    return SEVERITIES[max(int(row.severity) - 1, 0)]  # 0 is information, 4 critical


def _of(name: str, chosen: str) -> list[_On]:
    found = [one for one in _selectors() if one.id == name]
    return [one for one in found if not one.sets or chosen in one.sets.split(",")]


def _rule(row: _Row, ons: Sequence[_On], macros: MacroTable) -> Rule:
    machine = STATEFUL.get(row.machine)
    if machine is None:
        machine = partial(Findings, tuple(look(one.check, one.found) for one in ons))
    return Rule(
        _about(row),
        tuple(_selector(one, macros) for one in ons),
        machine,
        frozenset(one.event for one in ons if not one.event.endswith(_OPTIONAL)),
    )


def _about(row: _Row) -> About:
    details: dict[str, object] = {"Severity": int(row.severity)}
    if row.mitre_id:
        details |= {"Category": row.category, "Technique": row.technique}
        details["external_id"] = row.mitre_id
    else:
        details["MITRE ATT&CK"] = f"{row.category}: {row.technique}"
    if row.event_name:
        details["event_name"] = row.event_name
    return About(
        id=row.id,
        name=row.name,
        version=row.version,
        description=row.description,
        severity=_severity(row),
        tags=tuple(filter(None, row.tags.split(","))),
        techniques=(row.mitre_id or f"{row.category}: {row.technique}",),
        kind="tracee",
        details=details,
    )


def _selector(one: _On, macros: MacroTable) -> Selector:
    name = one.event_name
    parts = [f"evt.name = '{name}'", *([f"({one.condition})"] * bool(one.condition))]
    anywhere = Filter.of(" and ".join(parts), macros=macros)
    origin = _ORIGINS[one.origin]
    chosen = Filter.of(" and ".join([*parts, origin]), macros=macros) if origin else anywhere
    return Selector(name, chosen, frozenset({name}), anywhere if origin else None)


class TraceeRules:
    """Says of signatures in files why they are not run (`kcap.detect.rule.Loader`)."""

    kind: ClassVar[str] = "tracee"
    suffixes: ClassVar[tuple[str, ...]] = (".rego",)

    @staticmethod
    def sniff(text: str, path: str) -> bool:
        """Whether a file is a signature of Tracee's in Rego.

        Args:
            text: Its content.
            path: Its name.

        Returns:
            True where it is of a package of Tracee's, and holds no tests.
        """
        return _PACKAGE.search(text) is not None and not path.endswith(_TESTS)

    def load(self, text: str, path: str) -> Iterator[Rule | Problem]:
        """Say why a file is not run.

        Args:
            text: Its content.
            path: Its name.

        Yields:
            One problem.
        """
        found = _PATTERN.search(text)
        name = found[1] if found else None
        built_in = name is not None and any(row.id == name for row in _signatures())
        hint = "write it as a rule of kcap's: docs/detections.md"
        if built_in:
            hint = f"kcap has {name} of its own: --rules {name}"
        line = None if found is None else text.count("\n", 0, found.start()) + 1
        error = KcapError("Rego is not run", file=path, line=line, hint=hint)
        yield Problem(error, name)

    def finish(self) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`; nothing is left."""
        return ()
