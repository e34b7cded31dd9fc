"""Which events rules look at: all selectors of all rules in one pass over the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.detect.contents import Found
from kcap.detect.event import Looked, Row, field
from kcap.detect.rule import Identity, Rule
from kcap.filter import Filter
from kcap.filter.cells import STATE, needed
from kcap.filter.entries import Memo
from kcap.filter.many import Filters
from kcap.filter.syntax import FieldRef
from kcap.model import alert
from kcap.model.batch import Batch, Rows, concat, state_rows
from kcap.model.side import Side, SourceInfo
from kcap.replay import derived
from kcap.state.kin import Kin

Int64s = npt.NDArray[np.int64]

_NAMING: Final = frozenset({"category", "event", "kind"})
"""Columns that are ``alert`` of an alert."""

_NOT_NAMING: Final = frozenset({"!=", "<", "<=", ">", ">="})


class Candidate(NamedTuple):
    """An event that a selector of a rule wants."""

    row: int
    """Of the stream's batch: its own, or that of the event it is a view of."""
    rule: int
    selector: int
    event: Row
    found: Found | None = None
    """What a rule that looks at artifacts has found in one of the event's; the selector is none."""


class Candidates:
    """Finds the events of all selectors.

    Args:
        rules: The rules, in the order of their ids.
        fields: Further fields that are asked of events.
    """

    def __init__(self, rules: Sequence[Rule], fields: frozenset[str] = frozenset()) -> None:
        pairs = [(r, n) for r, rule in enumerate(rules) for n in range(len(rule.selectors))]
        selectors = [rules[r].selectors[n] for r, n in pairs]
        filters = [selector.filter for selector in selectors]
        self._rules = np.array([r for r, _ in pairs], np.int64)
        self._numbers = np.array([n for _, n in pairs], np.int64)
        self._chosen = filters
        self._filters = Filters(filters)
        self._families: dict[str, str] = {}
        self._memo: dict[str, Memo] = {}
        state = frozenset[str]().union(*(one.state_columns for one in filters))
        found = [needed(field(name)[1]) for name in sorted(fields)]
        state |= {name for names in found for name in names if name.startswith(STATE)}
        self._kin = Kin(state) if state else None
        every = derived.names()
        views = [
            derived.named([one.filter]) | ((one.events or frozenset()) & every) for one in selectors
        ]
        wanted = frozenset[str]().union(*views)
        self._derivation = derived.Derivation(wanted) if wanted else None
        self._names = sorted(wanted)
        # A rule sees the views that it asks for, whatever others ask for.
        self._sees = np.array([[n in v for n in self._names] for v in views], np.bool_).reshape(
            len(views), len(self._names)
        )
        self._viewing, self._view_filters = self._some([bool(view) for view in views])
        told = [alert.KIND in (one.events or ()) or names_alerts(one.filter) for one in selectors]
        self._wants_alerts = np.array(told, np.bool_)
        self._of_alerts, self._alert_filters = self._some(told)

    def _some(self, wanted: Sequence[bool]) -> tuple[Int64s, Filters]:
        """Some of the selectors, and their filters."""
        at = np.flatnonzero(np.array(wanted, np.bool_))
        return at, Filters([self._chosen[n] for n in at.tolist()])

    @property
    def of_alerts(self) -> bool:
        """Whether a selector wants alerts."""
        return bool(len(self._of_alerts))

    @property
    def fields(self) -> frozenset[FieldRef]:
        """The fields that selectors name."""
        return frozenset(ref for one in self._chosen for ref in one.checked.fields)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that selectors may depend on."""
        return frozenset[str]().union(*(one.columns for one in self._chosen))

    @property
    def needs_state(self) -> bool:
        """Whether all events must be followed."""
        return self._kin is not None

    def note(self, sides: Sequence[Side]) -> None:
        """Take notice of sources.

        Args:
            sides: What stands beside events.
        """
        for side in sides:
            if isinstance(side, SourceInfo):
                self._families[side.id] = side.collector
        for filters in (self._filters, self._view_filters, self._alert_filters):
            filters.note(sides)
        if self._derivation is not None:
            self._derivation.note(sides)

    def of(self, batch: Batch) -> list[Candidate]:
        """The candidates among the next events of the stream.

        Args:
            batch: The events.

        Returns:
            Them by event, then rule; of one event and rule the last selector first.
        """
        self.note(batch.before)
        if self._kin is not None:
            batch = self._kin.update(batch)
        if not batch.rows:
            return []
        rows, selectors = _pairs(self._filters.rows(batch))
        hidden, alerts = np.zeros((2, batch.rows), np.bool_)
        hidden[state_rows(batch)] = True
        alerts[_alert_rows(batch)] = True
        kept = ~hidden[rows] & (~alerts[rows] | self._wants_alerts[selectors])
        own, selectors = rows[kept], selectors[kept]
        base = Looked(batch, self._families, self._memo)
        order = self._order(own, np.zeros(len(own), np.int64), selectors)
        found = [own, np.zeros(len(own), np.int64), own, selectors]
        looked = [base]
        seen = self._views(batch)
        if seen is not None:
            views, more = seen
            looked.append(views)
            found = [np.concatenate(pair) for pair in zip(found, more, strict=True)]
            order = self._order(found[0], found[1] * (1 + found[2]), found[3])
        return self._candidates(looked, [column[order] for column in found])

    def finding(self, batch: Batch, found: Sequence[tuple[int, Found]]) -> list[Candidate]:
        """What was found in artifacts of events, as candidates.

        Args:
            batch: The events.
            found: What was found, each with the row.

        Returns:
            One each.
        """
        looked = Looked(batch, self._families, self._memo)
        return [Candidate(row, one.rule, 0, Row(looked, row), one) for row, one in found]

    def of_raised(self, batch: Batch, causes: Sequence[tuple[Identity, ...]]) -> list[Candidate]:
        """The candidates among alerts that were just raised.

        Args:
            batch: The alerts as events.
            causes: What each is about.

        Returns:
            As `of`.
        """
        rows, places = _pairs(self._alert_filters.rows(batch))
        selectors = self._of_alerts[places]
        none = np.zeros(len(rows), np.int64)
        order = self._order(rows, none, selectors)
        looked = Looked(batch, self._families, self._memo, causes)
        return self._candidates([looked], [c[order] for c in (rows, none, rows, selectors)])

    def _views(self, batch: Batch) -> tuple[Looked, list[Int64s]] | None:
        """Views of the batch's events, and which of them selectors want; None for none."""
        if self._derivation is None:
            return None
        parts = [(part, at) for part, at in self._derivation.parts(batch)[1:] if part.rows]
        if not parts:
            return None
        merged = concat([part for part, _ in parts])
        base = np.concatenate([at for _, at in parts])
        names = [self._names.index(part.array("event")[0].as_py()) for part, _ in parts]
        name = np.repeat(names, [part.rows for part, _ in parts])
        rows, places = _pairs(self._view_filters.rows(merged))
        selectors = self._viewing[places]
        kept = self._sees[selectors, name[rows]]
        rows, selectors = rows[kept], selectors[kept]
        looked = Looked(merged, self._families, self._memo)
        return looked, [base[rows], np.ones(len(rows), np.int64), rows, selectors]

    def _order(self, rows: Int64s, parts: Int64s, selectors: Int64s) -> Int64s:
        last = -self._numbers[selectors]
        return np.asarray(np.lexsort((last, self._rules[selectors], parts, rows)))

    def _candidates(self, looked: Sequence[Looked], found: Sequence[Int64s]) -> list[Candidate]:
        rows, parts, places = (column.tolist() for column in found[:3])
        rules = self._rules[found[3]].tolist()
        numbers = self._numbers[found[3]].tolist()
        for part, each in enumerate(looked):
            each.expected = np.unique(found[2][found[1] == part])
        return [
            Candidate(row, rule, number, Row(looked[part], place))
            for row, part, place, rule, number in zip(
                rows, parts, places, rules, numbers, strict=True
            )
        ]


def names_alerts(chosen: Filter) -> bool:
    """Whether a filter asks for alerts: what was recorded is meant otherwise.

    Args:
        chosen: The filter.

    Returns:
        True where it compares the name, category or kind of an event with something that ``alert``
        is, in full or as a pattern.
    """
    for _, leaf in chosen.engine.leaves():
        if len(leaf.fields) != 1 or leaf.presence or str(leaf.op) in _NOT_NAMING:
            continue
        for source in chosen.engine.fields[leaf.fields[0]].field.sources:
            if source.column in _NAMING and not source.function and leaf.of(alert.KIND):
                return True
    return False


def _pairs(rows: Sequence[Rows]) -> tuple[Int64s, Int64s]:
    """Rows, and which of the lists each is from."""
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    counts = [len(each) for each in rows]
    return np.concatenate(rows).astype(np.int64), np.repeat(np.arange(len(rows)), counts)


def _alert_rows(batch: Batch) -> Rows:
    """The events of a batch that are alerts."""
    kind = batch.get("kind")
    if kind is None or not alert.alerts_in(batch):
        return np.zeros(0, np.int32)
    code = kind.values.dictionary.to_pylist().index(alert.KIND)
    at = np.flatnonzero(kind.codes() == code).astype(np.int32)
    return at if kind.rows is None else kind.rows[at]
