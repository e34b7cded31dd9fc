"""Rules in a run of events: what they are told, what becomes of their alerts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

import click
import numpy as np

from kcap.tools import common, logs, ruleset

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.model.batch import Batch
    from kcap.model.side import Loss
    from kcap.model.stream import Sink, Source
    from kcap.replay.span import Span
    from kcap.tools.outlets import Outlets


ANY: Final = "any"
"""What ``--on-alert`` calls all rules."""


class Rules:
    """A tap that runs rules, and gives their alerts of a part of the stream.

    Rules see all events, so what they say of the part does not depend on where it begins.

    Args:
        rules: The rules.
        span: The part; None for all. Alerts of a run before, behind whose rows this one goes on,
            are not raised again.
    """

    def __init__(self, rules: ruleset.Chosen, span: Span | None = None) -> None:
        from kcap.replay.span import AtTime, Within

        self._chosen = rules
        self._detections = rules.detections()
        self._behind = 0 if span is None else span.behind
        span = None if span is None else span._replace(behind=0)
        self._within = None if span is None or span.whole else Within(span)
        self._open_end = span is None or span.end is None
        start, end = (None, None) if span is None else (span.start, span.end)
        self._times = (
            start.ns if isinstance(start, AtTime) else None,
            end.ns if isinstance(end, AtTime) else None,
        )
        self._last = self._within is None
        self._count = 0

    def bind(self, sources: Sequence[Source]) -> None:
        """Take notice of the artifacts of captures.

        Args:
            sources: The sources of the run, as they were opened.
        """
        self._detections.bind(sources)

    @property
    def losses(self) -> list[Loss]:
        """What rules did not look at, or forgot."""
        from kcap.model.side import Loss

        bad = len(self._chosen.problems)
        found = [Loss("blind", None, f"rules that can't run: {bad}")] if bad else []
        return [*found, *self._detections.losses]

    def see(self, batch: Batch) -> list[tuple[int, Batch]]:
        """See `kcap.replay.tap.Tap`."""
        rows = min(self._behind, batch.rows)
        if not rows:
            return self._seen(batch)
        # As the run before has seen it: a deadline between the two parts belongs to this one.
        self._behind -= rows
        done = batch.slice(0, rows)
        self._detections.warm(done)
        if self._within is not None:
            self._last = bool(self._within.mask(done)[-1])
        if rows == batch.rows:
            return []
        return [(rows + row, one) for row, one in self._seen(batch.slice(rows, batch.rows))]

    def _seen(self, batch: Batch) -> list[tuple[int, Batch]]:
        if self._within is None:
            return self._counted(self._detections.see(batch))
        mask = self._within.mask(batch)
        # What is behind a row belongs to that row; before the first, to the batch before.
        begun = np.concatenate(([self._last], mask))
        self._last = bool(begun[-1])
        found = self._detections.see(batch)
        return self._counted([(row, one) for row, one in found if self._is_timed or begun[row]])

    def end(self) -> list[Batch]:
        """See `kcap.replay.tap.Tap`."""
        found = [(0, one) for one in self._detections.end()]
        if not (self._is_timed or (self._open_end and self._last)):
            return []
        return [one for _, one in self._counted(found)]

    def close(self) -> None:
        """See `kcap.replay.tap.Tap`."""
        self._detections.close()

    def report(self) -> None:
        """Say how many alerts there were, and how many were suppressed."""
        suppressed(self._detections.suppressed)
        logs.tell(f"kcap: {common.counted(self._count, 'alert')}")

    @property
    def _is_timed(self) -> bool:
        return self._times != (None, None)

    def _counted(self, found: list[tuple[int, Batch]]) -> list[tuple[int, Batch]]:
        from kcap.replay.stages import TimeRange

        if self._is_timed:
            found = [(row, TimeRange(*self._times).process(one)) for row, one in found]
        self._count += sum(one.rows for _, one in found)
        return [(row, one) for row, one in found if one.rows]


def bind(also: Outlets, where: Filter | None, sources: Sequence[Source]) -> None:
    """Let the rules and the filter of a run know the captures that have artifacts.

    Args:
        also: What takes part in the run.
        where: The filter.
        sources: The sources, as they were opened.
    """
    for tap in also.taps:
        getattr(tap, "bind", lambda _: None)(sources)
    if where is not None:
        where.bind(sources)


class OnAlert:
    """A sink that asks a ring for a file when an alert comes.

    Args:
        rules: Of which rules; ``any`` for all.
        trigger: Asks, and is told why.
    """

    def __init__(self, rules: Collection[str], trigger: Callable[[str], None]) -> None:
        self._rules = frozenset(rules)
        self._trigger = trigger

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        from kcap.model import alert, naming

        if not batch.rows or not alert.alerts_in(batch):
            return
        names = dict.fromkeys(batch.array(naming.argument("rule")).to_pylist())
        for name in names:
            if name is not None and (ANY in self._rules or name in self._rules):
                self._trigger(f"alert {name}")

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""


def triggers(named: Sequence[str], rules: ruleset.Chosen) -> tuple[str, ...]:
    """The rules whose alerts ask for a file.

    Args:
        named: The values of ``--on-alert``.
        rules: The rules that run.

    Returns:
        Their IDs, or ``any``.

    Raises:
        click.UsageError: One of them does not run.
    """
    known = {rule.about.id for rule in rules.rules}
    for name in named:
        if name != ANY and name not in known:
            raise click.UsageError(f"--on-alert {name}: no such rule runs; see --rules")
    return tuple(named)


def suppressed(counts: dict[tuple[str, str], int]) -> None:
    """Say which alerts were not raised.

    Args:
        counts: How many, by rule and reason.
    """
    for (rule, reason), count in sorted(counts.items()):
        logs.tell(f"kcap: {rule}: {common.counted(count, 'alert')} suppressed: {reason}")


def text(rules: ruleset.Chosen, stream: BinaryIO) -> Sink:
    """What prints alerts for people.

    Args:
        rules: The rules.
        stream: Where it prints.

    Returns:
        The sink.
    """
    from kcap.writers.detections import Detections

    return Detections(stream, {one.about.id for one in rules.rules if one.about.text is not None})
