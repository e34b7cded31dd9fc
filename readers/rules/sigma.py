"""Sigma rules: pySigma reads them, and kcap looks for them in whatever it reads.

A rule says of which kind its events are (its logsource), and each pipeline that knows such events
(`kcap.readers.rules.sigma_pipelines`) makes a selector of it. Filters may change any rule and
correlations speak of any, so rules are made when all files are read.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from kcap.detect.rule import Context, Event, Identity, Problem, Rule, Selector
from kcap.documents import Node, documents
from kcap.errors import BadInputError, KcapError, MissingExtraError
from kcap.filter import Filter
from kcap.filter.errors import FilterError
from kcap.filter.syntax import text_of
from kcap.readers.rules.sigma_pipelines import Logsource, Target, logsources, parts, targets
from kcap.readers.rules.sigma_rule import (
    KIND,
    Document,
    Wanted,
    Written,
    about_of,
    id_of,
    place_of,
    recorded,
    refused,
)

_TITLE: Final = re.compile(r"^title\s*:", re.MULTILINE)
_KINDS: Final = re.compile(r"^(?:detection|correlation|filter)\s*:", re.MULTILINE)

_UNREADABLE: Final = (AttributeError, KeyError, TypeError, ValueError, NotImplementedError)
"""What pySigma raises of rules that make no sense; its own errors are among them."""


class _Once:
    """The machine of a rule with selectors for several pipelines: it alerts once an event."""

    def __init__(self) -> None:
        self._last: Identity | None = None

    def match(self, context: Context, _selector: int, event: Event) -> None:
        """See `kcap.detect.rule.Machine`."""
        identity = event.identity
        if identity is None or identity != self._last:
            context.alert()
        self._last = identity

    def deadline(self, _context: Context, _key: object) -> None:
        """See `kcap.detect.rule.Machine`; it never asks for one."""

    def end(self, _context: Context) -> None:
        """See `kcap.detect.rule.Machine`."""


@dataclass
class SigmaRules:
    r"""Reads Sigma rules, correlations and filters (`kcap.detect.rule.Loader`).

    Args:
        pipelines: The pipelines to make selectors for; None for all.

    Example:
        >>> loader = SigmaRules()
        >>> source = "title: nc\nlogsource: {product: linux, category: process_creation}\n"
        >>> rule = source + "detection: {s: {Image|endswith: /nc}, condition: s}"
        >>> list(loader.load(rule, "nc.yml"))
        []
        >>> [str(one.filter) for rule in loader.finish() for one in rule.selectors][-1]
        "action = 'process_start' and evt.name != 'CreateProcess' and ps.exe iendswith ('/nc')"
    """

    kind: ClassVar[str] = KIND
    suffixes: ClassVar[tuple[str, ...]] = (".yml", ".yaml")

    pipelines: frozenset[str] | None = None
    _rules: list[Written] = field(default_factory=list)
    _correlations: list[Written] = field(default_factory=list)
    _filters: list[Written] = field(default_factory=list)

    @staticmethod
    def sniff(text: str, path: str) -> bool:  # noqa: ARG004 - the contract of loaders
        """See `kcap.detect.rule.Loader`."""
        return bool(_TITLE.search(text) and _KINDS.search(text))

    def load(self, text: str, path: str) -> Iterator[Problem]:
        """Read a file; its rules come from `finish`.

        Args:
            text: Its content.
            path: Its name, for errors.

        Yields:
            What is wrong in it.

        Raises:
            MissingExtraError: pySigma is not installed.
        """
        if importlib.util.find_spec("sigma") is None:
            raise MissingExtraError(
                "Sigma rules need pySigma, which is not installed",
                file=path,
                hint="pip install 'kcap[sigma]'",
            )
        try:
            for node in documents(text, path):
                yield from self._document(path, node)
        except KcapError as error:
            yield Problem(error)

    def _document(self, path: str, node: Node) -> Iterator[Problem]:
        """Read a document; that it makes no sense is no obstacle to the next."""
        try:
            document = Document.of(path, node)
        except KcapError as error:
            yield Problem(error)
            return
        try:
            self._take(document)
        except KcapError as error:
            yield Problem(error, id_of(document))

    def _take(self, document: Document) -> None:
        """Let pySigma read a document."""
        from sigma.correlations import SigmaCorrelationRule
        from sigma.filters import SigmaFilter
        from sigma.rule import SigmaRule

        value = document.value
        if "action" in value:
            raise BadInputError(
                "a document with an action, as old Sigma had them",
                file=document.path,
                line=document.line_of("action"),
                expected="a rule, a correlation or a filter",
                hint="write each rule in whole",
            )
        kind, kept = SigmaRule, self._rules
        if "correlation" in value:
            kind, kept = SigmaCorrelationRule, self._correlations
        elif "filter" in value:
            kind, kept = SigmaFilter, self._filters
        try:
            parsed = kind.from_dict(dict(value), **_policy(kind))
        except _UNREADABLE as error:
            raise refused(document, error) from error
        kept.append(Written(document, parsed, id_of(document)))

    def finish(self) -> Iterator[Rule | Problem]:
        """Make rules of what was read.

        Yields:
            The rules of all files in their order, then correlations; what is wrong with others.
        """
        from kcap.readers.rules.sigma_correlation import Correlations

        if not (self._rules or self._correlations or self._filters):
            return
        yield from self._filtered()
        known = Correlations(self._rules, self._correlations, self.wanted)
        for written in self._rules:
            if not known.is_silent(written):
                yield self._made(written, self._rule)
        for written in self._correlations:
            yield self._made(written, known.rule)
        self._rules, self._correlations, self._filters = [], [], []

    def _filtered(self) -> Iterator[Problem]:
        """Apply the filters."""
        for written in self._filters:
            try:
                for one in self._rules:
                    one.parsed = written.parsed.apply_on_rule(one.parsed)
            except _UNREADABLE as error:
                yield Problem(refused(written.document, error), written.id)

    @staticmethod
    def _made(written: Written, make: Callable[[Written], Rule]) -> Rule | Problem:
        try:
            return make(written)
        except KcapError as error:
            return Problem(error, written.id)
        except _UNREADABLE as error:  # conditions are parsed only now
            return Problem(refused(written.document, error), written.id)

    def _rule(self, written: Written) -> Rule:
        wanted, missed = self.wanted(written)
        about = about_of(written, {"unavailable": missed} if missed else {})
        selectors = tuple(one.selector for one in wanted)
        machine = None if len(selectors) == 1 else _Once
        return Rule(about, selectors, machine, recorded(wanted))

    def wanted(self, written: Written) -> tuple[list[Wanted], dict[str, str]]:
        """The events that a rule wants.

        Args:
            written: The rule.

        Returns:
            They, one or more; and by pipeline why it can't be asked there.

        Raises:
            BadInputError: No pipeline can be asked.
            SigmaError: Its condition can't be understood.
        """
        source = written.parsed.logsource
        source = Logsource(source.product, source.category, source.service)
        found = [
            one
            for one in targets(source)
            if self.pipelines is None or one.pipeline in self.pipelines
        ]
        if not found:
            near = difflib.get_close_matches(str(source), map(str, logsources()), 1)
            raise written.error(
                f"nothing that kcap reads has events of the logsource {source}",
                "logsource",
                expected=f"{near[0]}, say" if near else "one of those in kcap docs sigma",
            )
        parsed = [condition.parsed for condition in written.parsed.detection.parsed_condition]
        wanted, missed = [], {}
        error: KcapError | None = None
        for target in found:
            try:
                wanted.append(Wanted(target, _selector(target, parsed)))
            except (BadInputError, FilterError) as e:
                missed[target.pipeline] = e.what
                error = error or e
        if error is not None and not wanted:
            place = place_of(written.document, error.what)
            raise written.error(error.what, *place, hint=error.hint) from error
        return wanted, missed


def _policy(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - a class of pySigma's
    """What rules may do to pySigma.

    pySigma 2 tries patterns in RE2, which complains on standard error. What can't run is told by
    kcap's filters, and in one way with each release of pySigma.
    """
    if "policy" not in inspect.signature(kind.from_dict).parameters:  # pySigma 1
        return {}
    from sigma.policy import SigmaPolicy
    from sigma.policy.regex_engine import PythonRegexEngine

    return {"policy": SigmaPolicy(regex_engine=PythonRegexEngine())}


def _selector(target: Target, parsed: Iterable[Any]) -> Selector:
    """The events of one pipeline for which one of some conditions holds."""
    from kcap.readers.rules.sigma_condition import Conversion, conjunction, disjunction

    conversion = Conversion(target.names, target.anywhere)
    condition = disjunction(conversion.of(one) for one in parsed)
    whole = conjunction([*parts(target.condition), condition])
    return Selector(target.pipeline, Filter.of(text_of(whole), 3))
