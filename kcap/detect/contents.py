"""Rules that look at artifacts: which events those belong to, and each content only once.

An artifact is looked at when its event comes. A recorder gives it later than that: then it is
looked at when it comes. What belongs to no event, and what belongs to one that is not in the
capture, is looked at when all events have come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.binaries.library import Entry, Library
from kcap.detect.rule import Identity, Rule, Scanner
from kcap.errors import KcapError
from kcap.model.batch import Batch
from kcap.model.classes import I64_MIN, TypeClass
from kcap.model.side import Loss

_CONTENTS: Final = 1 << 16
"""Different contents of which it is remembered what was found in them."""


class Found(NamedTuple):
    """A rule has matched an artifact."""

    rule: int
    """Its number."""
    data: Mapping[str, Any]
    """What the alert says of it."""
    cause: Identity | None
    """The event; None where the artifact belongs to none."""


class Scans:
    """Lets rules look at the artifacts of a run.

    Args:
        rules: All rules, in the order of their ids.
        library: The artifacts.
    """

    def __init__(self, rules: Sequence[Rule], library: Library) -> None:
        self._library = library
        self._scanners: dict[int, Scanner] = {}
        self._rules: dict[tuple[int, str], int] = {}
        for number, rule in enumerate(rules):
            if rule.contents is not None:
                self._scanners[id(rule.contents.scanner)] = rule.contents.scanner
                self._rules[id(rule.contents.scanner), rule.contents.name] = number
        self._known: OrderedDict[object, tuple[tuple[int, Mapping[str, Any]], ...]] = OrderedDict()
        self._passed: dict[str, int] = {}
        self._done: set[int] = set()
        self._failed: dict[str, int] = {}

    @property
    def wanted(self) -> bool:
        """Whether some rule looks at artifacts."""
        return bool(self._scanners)

    @property
    def losses(self) -> list[Loss]:
        """Artifacts that could not be looked at."""
        return [Loss("blind", n, f"an artifact: {why}") for why, n in self._failed.items()]

    def of(self, batch: Batch) -> list[tuple[int, Found]]:
        """Look at the artifacts of the next events, and at those that came with them.

        Args:
            batch: The events; the library has taken notice of what stands beside them.

        Returns:
            What was found, with the row; -1 for what belongs to an event that went by before.
            By row, then rule.
        """
        found: list[tuple[int, Found]] = []
        for entry in self._library.added:
            if entry.ord is not None and entry.ord <= self._passed.get(entry.origin or "", -1):
                found += [(-1, one) for one in self._look(entry)]
        column = batch.get("origin")
        if column is not None and column.cls is TypeClass.STR:
            ords = batch.numpy("ord", I64_MIN)
            codes = np.full(batch.rows, -1, np.int32)
            codes[slice(None) if column.rows is None else column.rows] = column.codes()
            for code, origin in enumerate(column.values.dictionary.to_pylist()):
                rows = np.flatnonzero(codes == code)
                if not len(rows):
                    continue
                own = self._library.events(origin)
                known = np.fromiter(own, np.int64, len(own))
                for row in rows[np.isin(ords[rows], known)].tolist():
                    for entry in own[int(ords[row])]:
                        found += [(row, one) for one in self._look(entry)]
                last = int(ords[rows].max())
                self._passed[origin] = max(last, self._passed.get(origin, last))
        return sorted(found, key=lambda pair: (pair[0], pair[1].rule))

    def left(self) -> Iterator[Found]:
        """Look at the artifacts of no event, and of events that did not come.

        Yields:
            What was found.
        """
        for entry in self._library:
            gone = entry.ord is None or entry.ord <= self._passed.get(entry.origin or "", -1)
            if gone and entry.number not in self._done:
                yield from self._look(entry)

    def _look(self, entry: Entry) -> Iterator[Found]:
        """What rules find in an artifact; of each once."""
        if entry.number in self._done:
            return
        self._done.add(entry.number)
        cause = None
        if entry.origin is not None and entry.ord is not None:
            cause = Identity(entry.origin, entry.ord)
        about = {"kind": entry.kind or None, "path": entry.path, "sha256": entry.sha256}
        known = {name: value for name, value in about.items() if value is not None}
        said: dict[str, Any] = {**known, "size": entry.size}
        for rule, data in self._matches(entry):
            yield Found(rule, {**data, "artifact": said}, cause)

    def _matches(self, entry: Entry) -> tuple[tuple[int, Mapping[str, Any]], ...]:
        known = self._known.get(entry.key)
        if known is None:
            known = self._known[entry.key] = tuple(sorted(self._scanned(entry), key=lambda m: m[0]))
            if len(self._known) > _CONTENTS:
                self._known.popitem(last=False)
        return known

    def _scanned(self, entry: Entry) -> Iterator[tuple[int, Mapping[str, Any]]]:
        try:
            content = entry.content()
        except KcapError as e:
            self._fail(e)
            return
        if entry.size > len(content):
            self._fail(KcapError(f"only its first {len(content):,} bytes were looked at"))
        for key, scanner in self._scanners.items():
            try:
                found = scanner.scan(content)
            except KcapError as e:
                self._fail(e)
                continue
            for name, data in found.items():
                if (number := self._rules.get((key, name))) is not None:
                    yield number, data

    def _fail(self, error: KcapError) -> None:
        self._failed[error.what] = self._failed.get(error.what, 0) + 1
