"""kcap's own rules, in YAML: a condition, a sequence, a correlation or an absence each.

docs/detections.md describes the format. Macros and lists hold for all files that are read together,
so a rule is made when all of them are known.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from kcap.detect import absence, correlation, sequence
from kcap.detect.event import field
from kcap.detect.rule import About, Exempt, Problem, Rule, Selector
from kcap.detect.text import Text
from kcap.documents import Node, documents
from kcap.errors import KcapError
from kcap.filter import Filter
from kcap.filter.errors import FilterError
from kcap.filter.parser import MacroTable
from kcap.filter.syntax import UNITS
from kcap.model import alert

RULES_MAX: Final = 10_000
"""Rules of one file."""

_WHAT: Final = ("condition", "sequence", "correlation", "absence")
_TEXTS: Final = ("description", "output")
_LISTS: Final = ("tags", "techniques", "references")
_RULE: Final = frozenset({
    "id", "name", "version", "severity", "enabled", "exceptions", "era", *_WHAT, *_TEXTS, *_LISTS,
})  # fmt: skip
_FILE: Final = frozenset({"macros", "lists", "rules"})
_SEQUENCE: Final = frozenset({"maxspan", "by", "steps", "ends-with-process"})
_STEP: Final = frozenset({"condition", "by", "as"})
_CORRELATION: Final = frozenset({"type", "timespan", "by", "events", "values", "condition"})
_ABSENCE: Final = frozenset({"event", "follows", "within", "by"})
_EXCEPTION: Final = frozenset({"filter", "reason", "until"})
KEYS: Final = {
    "file": _FILE,
    "rule": _RULE,
    "sequence": _SEQUENCE,
    "step": _STEP,
    "correlation": _CORRELATION,
    "condition": frozenset(correlation.CONDITIONS),
    "absence": _ABSENCE,
    "exception": _EXCEPTION,
}
"""The keys of each part of a file of rules."""

_FOREIGN: Final = re.compile(
    r"^(title|min-engine-version|logsource|detection|kevt)\s*:", re.MULTILINE
)
_OURS: Final = re.compile(
    r"^(?:id|(?:- )?\s*(?:rules|macros|lists|condition|sequence|correlation|absence))\s*:"
    r"|^(?:-\s*)?\[?\{\s*[\"']?(?:id|rules|macros|lists)[\"']?\s*:",
    re.MULTILINE,
)
"""A file with an id is of rules, too: one whose condition is spelled wrong is to be told. Rules may
be in braces; what is in braces further in is not at the beginning of a rule."""
_DURATION: Final = re.compile(r"(\d{1,12})\s*([a-z]+)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Macro:
    """A macro or a list, and where it is from."""

    node: Node
    file: str


class YamlRules:
    """Reads kcap's rules (`kcap.detect.rule.Loader`)."""

    kind: ClassVar[str] = "kcap"
    suffixes: ClassVar[tuple[str, ...]] = (".yaml", ".yml")

    def __init__(self) -> None:
        self._rules: list[tuple[Node, str]] = []
        self._expressions: dict[str, _Macro] = {}
        self._lists: dict[str, _Macro] = {}

    @staticmethod
    def sniff(text: str, path: str) -> bool:
        """See `kcap.detect.rule.Loader`."""
        del path
        return bool(_OURS.search(text)) and not _FOREIGN.search(text)

    def load(self, text: str, path: str) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`.

        Args:
            text: The content of a file.
            path: Its name.

        Returns:
            What is wrong with the file; its rules come with `finish`, when all macros are known.
        """
        problems: list[Problem] = []
        try:
            for document in documents(text, path):
                problems += self._document(document, path)
        except KcapError as error:
            problems.append(Problem(error))
        return problems

    def finish(self) -> Iterable[Rule | Problem]:
        """See `kcap.detect.rule.Loader`."""
        macros = MacroTable(
            {name: macro.node.value for name, macro in self._expressions.items()},
            {name: macro.node.plain() for name, macro in self._lists.items()},
        )
        yield from self._wrong_macros(macros)
        rules, self._rules = self._rules, []
        self._expressions, self._lists = {}, {}
        for node, file in rules:
            made = _Reading(node, file, macros)
            try:
                rule = made.rule()
            except KcapError as error:
                yield Problem(error, made.id or None)
            else:
                if rule is not None:
                    yield rule

    def _document(self, document: Node, path: str) -> Iterator[Problem]:
        if isinstance(document.value, dict) and "id" not in document.value:
            try:
                _check_keys(document, _FILE, "a file of rules", path)
                for name, kept in (("macros", self._expressions), ("lists", self._lists)):
                    self._take_macros(document, name, kept, path)
            except KcapError as error:
                yield Problem(error)
            rules = document.value.get("rules")
        else:
            rules = document
        if rules is None:
            return
        each = rules.value if isinstance(rules.value, tuple) else (rules,)
        if len(each) > RULES_MAX:
            yield Problem(KcapError(f"more than {RULES_MAX:,} rules in one file", file=path))
            return
        self._rules += [(node, path) for node in each]

    def _take_macros(self, document: Node, name: str, kept: dict[str, _Macro], path: str) -> None:
        found = document.value.get(name)
        if found is None:
            return
        for macro, node in _mapping(found, name, path).items():
            if macro in self._expressions or macro in self._lists:
                raise KcapError(f"{macro!r} is there already", file=path, line=node.line)
            if name == "macros" and not isinstance(node.value, str):
                raise _expected(node, f"the macro {macro!r}", "a filter", path)
            if name == "lists" and not (
                isinstance(node.value, tuple) and all(isinstance(v.value, str) for v in node.value)
            ):
                raise _expected(node, f"the list {macro!r}", "a list of texts", path)
            kept[macro] = _Macro(node, path)

    def _wrong_macros(self, macros: MacroTable) -> Iterator[Problem]:
        """Macros that can't be understood, also those that no rule uses."""
        for name, macro in self._expressions.items():
            try:
                macros.get(name, 0)
            except FilterError as error:
                yield Problem(_located(error, macro.node, macro.file, f"the macro {name!r}"))


def tuning(text: str, path: str) -> tuple[Exempt, ...]:
    """Read a tuning file: a list of exceptions, each with the rule that it is for.

    Args:
        text: Its content.
        path: Its name, for errors.

    Returns:
        The exceptions, in their order.

    Raises:
        KcapError: It can't be understood; a broken one must not pass for none.
    """
    found: tuple[Exempt, ...] = ()
    for document in documents(text, path):
        found += _Reading(document, path, MacroTable({})).tuning()
    return found


class _Reading:
    """One rule that is read."""

    def __init__(self, node: Node, file: str, macros: MacroTable) -> None:
        self._node = node
        self._file = file
        self._macros = macros
        self._era: int | None = None
        own = node.value.get("id") if isinstance(node.value, dict) else None
        self.id = own.value if own is not None and isinstance(own.value, str) else ""
        """Its id, as soon as it is known."""

    def rule(self) -> Rule | None:
        """The rule; None for one that is not enabled."""
        said = self._said(self._node, _RULE, "it" if self.id else "a rule")
        if not self.id:
            raise self._wrong(self._node, "a rule has no id", "id: and a text")
        enabled = said.get("enabled")
        if enabled is not None and not isinstance(enabled.value, bool):
            raise self._wrong(enabled, "enabled is neither", "true or false")
        if enabled is not None and not enabled.value:
            return None
        self._era = self._number(said.get("era"), "era")
        if self._era not in (None, 1, 3):
            raise self._wrong(said["era"], f"there is no era {self._era}", "1 or 3")
        what = [name for name in _WHAT if name in said]
        if len(what) != 1:
            found = " and ".join(what) if what else "nothing to look for"
            raise self._wrong(self._node, f"it has {found}", f"one of {', '.join(_WHAT)}")
        about = self._about(said)
        make = getattr(self, f"_{what[0]}")
        node = said[what[0]]
        try:
            made: Rule = make(node, about)
        except ValueError as error:
            raise self._wrong(node, str(error), None) from error
        return replace(made, exceptions=self._exceptions(said.get("exceptions")))

    def _about(self, said: Mapping[str, Node]) -> About:
        severity = said.get("severity")
        word = "medium" if severity is None else self._text(severity, "severity")
        try:
            word = alert.severity(word)
        except KcapError as error:
            assert severity is not None
            raise self._wrong(severity, error.what, error.expected) from error
        version = said.get("version")
        output = self._text(said["output"], "output") if "output" in said else None
        if output is not None:
            try:
                Text(output, era=self._era)
            except FilterError as error:
                raise _located(error, said["output"], self._file, f"the rule {self.id}") from error
        name, description = said.get("name"), said.get("description")
        return About(
            id=self.id,
            name=self.id if name is None else self._text(name, "name"),
            version="1" if version is None else str(version.value),
            description="" if description is None else self._text(description, "description"),
            severity=word,
            kind="kcap",
            file=self._file,
            line=self._node.line,
            text=output,
            tags=self._texts(said.get("tags"), "tags"),
            techniques=self._texts(said.get("techniques"), "techniques"),
            references=self._texts(said.get("references"), "references"),
        )

    # what it looks for

    def _condition(self, node: Node, about: About) -> Rule:
        return Rule(about, (Selector("condition", self._filter(node)),))

    def _sequence(self, node: Node, about: About) -> Rule:
        said = self._said(node, _SEQUENCE, "a sequence")
        steps, earlier = [], list[str]()
        for step in self._list(said.get("steps"), node, "steps"):
            parts = self._said(step, _STEP, "a step") if isinstance(step.value, dict) else {}
            condition = parts.get("condition", step)
            alias = self._text(parts["as"], "as") if "as" in parts else ""
            text = self._text(condition, "condition")
            try:
                made = sequence.Step.of(
                    text,
                    by=self._fields(parts.get("by")),
                    alias=alias,
                    earlier=earlier,
                    era=self._era,
                    macros=self._macros,
                )
            except FilterError as error:
                raise _located(error, condition, self._file, f"the rule {self.id}") from error
            steps.append(made)
            earlier += [alias] if alias else []
        ends = said.get("ends-with-process")
        if ends is not None and not isinstance(ends.value, bool):
            raise self._wrong(ends, "ends-with-process is neither", "true or false")
        options = sequence.Options(
            maxspan_ns=self._duration(said["maxspan"]) if "maxspan" in said else None,
            by=self._fields(said.get("by")),
            ends_with_process=ends is not None and ends.value,
        )
        try:
            return sequence.rule(about, steps, options)
        except FilterError as error:
            raise _located(error, node, self._file, f"the rule {self.id}") from error

    def _correlation(self, node: Node, about: About) -> Rule:
        said = self._said(node, _CORRELATION, "a correlation")
        kind = self._text(self._needed(said, node, "type"), "type")
        selectors = []
        by: dict[int, tuple[str, ...]] = {}
        given = self._needed(said, node, "events")
        each = given.value if isinstance(given.value, tuple) else (given,)
        for number, one in enumerate(each):
            parts = self._said(one, _STEP, "an event") if isinstance(one.value, dict) else {}
            condition = parts.get("condition", one)
            selectors.append(Selector(f"event {number + 1}", self._filter(condition)))
            if "by" in parts:
                by[number] = self._fields(parts["by"])
        condition, count = self._compared(said.get("condition"))
        what = correlation.Correlation(
            type=kind,
            timespan_ns=self._duration(self._needed(said, node, "timespan")),
            by=self._fields(said.get("by")),
            by_selector=by or None,
            condition=condition,
            count=count,
            values=self._fields(said.get("values")),
            era=self._era,
        )
        return correlation.rule(about, selectors, what)

    def _absence(self, node: Node, about: About) -> Rule:
        said = self._said(node, _ABSENCE, "an absence")
        first, second = (
            Selector(name, self._filter(self._needed(said, node, name)))
            for name in ("event", "follows")
        )
        within_ns = self._duration(self._needed(said, node, "within"))
        what = absence.Absence(within_ns, self._fields(said.get("by")), self._era)
        return absence.rule(about, first, second, what)

    def _exceptions(self, node: Node | None) -> tuple[Exempt, ...]:
        if node is None:
            return ()
        each = self._list(node, node, "exceptions")
        return tuple(self._exception(one)._replace(rule=self.id) for one in each)

    def _exception(self, node: Node, more: Collection[str] = ()) -> Exempt:
        said = self._said(node, _EXCEPTION.union(more), "an exception")
        reason = self._text(self._needed(said, node, "reason"), "reason")
        until_ns = self._time(said["until"]) if "until" in said else None
        chosen = self._filter(self._needed(said, node, "filter"))
        rule = self._text(said["rule"], "rule") if "rule" in said else None
        return Exempt(chosen, reason, rule, until_ns)

    def tuning(self) -> tuple[Exempt, ...]:
        """The exceptions of a file that has nothing else."""
        each = self._list(self._node, self._node, "a tuning file")
        return tuple(self._exception(one, ("rule",)) for one in each)

    # values

    def _wrong(self, node: Node, what: str, expected: str | None) -> KcapError:
        place = f"the rule {self.id}: " if self.id else ""
        return KcapError(f"{place}{what}", file=self._file, line=node.line, expected=expected)

    def _said(self, node: Node, known: Collection[str], what: str) -> Mapping[str, Node]:
        if not isinstance(node.value, dict):
            raise self._wrong(node, f"{what} is no mapping", f"some of {', '.join(sorted(known))}")
        _check_keys(node, known, f"the rule {self.id}: {what}" if self.id else what, self._file)
        return node.value

    def _needed(self, said: Mapping[str, Node], node: Node, name: str) -> Node:
        if name not in said:
            raise self._wrong(node, f"{name!r} is not said", f"{name}: and what it is")
        return said[name]

    def _text(self, node: Node, name: str) -> str:
        if not isinstance(node.value, str) or not node.value.strip():
            raise self._wrong(
                node, f"{name!r} is no text", f"{name}: and a text, in quotes perhaps"
            )
        return node.value

    def _number(self, node: Node | None, name: str) -> int | None:
        if node is None:
            return None
        if isinstance(node.value, bool) or not isinstance(node.value, int):
            raise self._wrong(node, f"{name!r} is no number", f"{name}: 5, say")
        return node.value

    def _list(self, node: Node | None, parent: Node, name: str) -> tuple[Node, ...]:
        if node is None or not isinstance(node.value, tuple) or not node.value:
            raise self._wrong(node or parent, f"{name!r} is no list", f"{name}: and a list")
        each: tuple[Node, ...] = node.value
        return each

    def _texts(self, node: Node | None, name: str) -> tuple[str, ...]:
        if node is None:
            return ()
        each = node.value if isinstance(node.value, tuple) else (node,)
        return tuple(self._text(one, name) for one in each)

    def _fields(self, node: Node | None) -> tuple[str, ...]:
        names = self._texts(node, "by")
        for name in names:
            try:
                field(name, self._era)
            except FilterError as error:
                assert node is not None
                raise self._wrong(node, error.what, error.expected or error.hint) from error
        return names

    def _filter(self, node: Node) -> Filter:
        text = self._text(node, "condition")
        try:
            return Filter.of(text, self._era, self._macros)
        except FilterError as error:
            what = f"the rule {self.id}" if self.id else "the filter"
            raise _located(error, node, self._file, what) from error

    def _duration(self, node: Node) -> int:
        match = _DURATION.fullmatch(node.value.strip()) if isinstance(node.value, str) else None
        if match is None or match[2] not in UNITS:
            units = ", ".join(UNITS)
            raise self._wrong(node, f"{node.value!r} is no time", f"30s, say; units are {units}")
        return int(match[1]) * UNITS[match[2]]

    def _time(self, node: Node) -> int:
        try:
            at = datetime.fromisoformat(self._text(node, "until"))
        except ValueError as error:
            raise self._wrong(node, f"{node.value!r} is no time", "2027-01-31T00:00:00Z") from error
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
        since = at - _EPOCH
        return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000

    def _compared(self, node: Node | None) -> tuple[str, int | None]:
        if node is None:
            return "gte", None
        said = self._said(node, correlation.CONDITIONS, "a condition")
        if len(said) != 1:
            raise self._wrong(node, "a condition compares once", "gte: 5, say")
        name, value = next(iter(said.items()))
        return name, self._number(value, name)


def _mapping(node: Node, name: str, path: str) -> Mapping[str, Node]:
    if not isinstance(node.value, dict):
        raise _expected(node, name, "a mapping", path)
    return node.value


def _expected(node: Node, name: str, expected: str, path: str) -> KcapError:
    return KcapError(f"{name} is none", file=path, line=node.line, expected=expected)


def _check_keys(node: Node, known: Collection[str], what: str, path: str) -> None:
    """Refuse what nobody knows: a word that is spelled wrong would be passed over in silence."""
    for name in node.value:
        if name in known:
            continue
        near = difflib.get_close_matches(name, sorted(known), 1)
        raise KcapError(
            f"{what} has {name!r}, which nobody knows",
            file=path,
            line=node.value[name].line,
            expected=f"some of {', '.join(sorted(known))}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )


def _located(error: FilterError, node: Node, file: str, what: str) -> KcapError:
    """What is wrong with a filter, by its line in the file."""
    found: Any = KcapError(
        f"{what}: {error.what}",
        file=file,
        line=node.line_at(error.start) if error.text == node.value else node.line,
        expected=error.expected,
        hint=error.hint,
    )
    for note in error.caret():
        found.add_note(f"  {note}")
    assert isinstance(found, KcapError)
    return found
