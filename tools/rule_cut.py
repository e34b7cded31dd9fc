"""The smallest capture of which an alert still comes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from kcap.detect.engine import Detections
from kcap.detect.rule import Rule
from kcap.errors import KcapError, LimitError
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.alert import Alert
from kcap.model.batch import Batch, Rows, concat
from kcap.model.side import Side, Snapshot, SourceInfo
from kcap.model.stream import Source
from kcap.opening import open_source

ROWS_MAX: Final = 2_000_000
"""Events that are held at once."""

TRIES_MAX: Final = 3_000
"""Runs of the rule to find what can go: then what is left is small enough."""

_LEAST: Final = 8


class Cut(NamedTuple):
    """A capture that was cut."""

    data: bytes
    """The capture."""
    events: int
    alert: Alert


class _Input(NamedTuple):
    """All of a capture."""

    batch: Batch
    sides: tuple[Side, ...]

    def part(self, rows: Rows, *, states: bool) -> Batch:
        """Some of it."""
        kept = [side for side in self.sides if states or not isinstance(side, Snapshot)]
        return self.batch.take(rows).with_before(kept)


def cut(path: Path, rules: Sequence[Rule], alert_id: str) -> Cut:
    """Leave out all events that an alert does not need.

    Args:
        path: A capture.
        rules: The rules, one of which raises the alert.
        alert_id: The alert's id, or how it begins.

    Returns:
        What is left, as a capture; the alert's id is the same there.

    Raises:
        KcapError: No such alert comes of it, or several do.
        LimitError: It has too many events.
    """
    whole = _read(path)
    alert = _chosen(_alerts(rules, whole.batch.with_before(whole.sides)), alert_id, path)
    alone = [rule for rule in rules if rule.about.id == alert.rule]
    rules = alone if alert.id in _ids(alone, whole.batch.with_before(whole.sides)) else rules
    states = True

    def holds(rows: Rows) -> bool:
        return alert.id in _ids(rules, whole.part(rows, states=states))

    states = not _still(rules, whole, alert)
    rows = _smallest(np.arange(whole.batch.rows, dtype=np.int32), _causes(whole, alert), holds)
    stream = io.BytesIO()
    writer = CaptureWriter(stream, file=str(path), canonical=True)
    writer.write(whole.part(rows, states=states))
    writer.close()
    data = stream.getvalue()
    with closing(CaptureReader(io.BytesIO(data), str(path))) as again:
        batches = list(_held(again))
    if alert.id not in _ids(rules, concat(batches).with_before(_sides(batches))):
        raise KcapError("what was cut does not raise the alert any more", file=str(path))
    return Cut(data, len(rows), alert)


def _read(path: Path) -> _Input:
    with closing(open_source(path)) as source:
        batches = list(_held(source))
    return _Input(concat([b.with_before(()) for b in batches]), _sides(batches))


def _held(source: Source) -> list[Batch]:
    """All batches of a source, as many rows as are held."""
    from kcap.replay.pipeline import Pipeline

    kept = _Kept()
    Pipeline(source, [kept]).run()
    return kept.parts


class _Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.parts: list[Batch] = []
        self._rows = 0

    def write(self, batch: Batch) -> None:
        """See `kcap.model.stream.Sink.write`."""
        self._rows += batch.rows
        if self._rows > ROWS_MAX:
            raise LimitError(
                f"more than {ROWS_MAX:,} events", hint="cut it first: kcap filter --start --end"
            )
        self.parts.append(batch)

    def close(self) -> None:
        """See `kcap.model.stream.Sink.close`."""


def _sides(batches: Sequence[Batch]) -> tuple[Side, ...]:
    """Whose the events are, and what was known before the first."""
    found: list[Side] = []
    known: set[str] = set()
    begun = False
    for batch in batches:
        for side in batch.before:
            if isinstance(side, SourceInfo) and side.id not in known:
                known.add(side.id)
                found.append(side)
            elif isinstance(side, Snapshot) and not begun:
                begun = True
                found.append(side)
    return tuple(found)


def _alerts(rules: Sequence[Rule], batch: Batch) -> list[Alert]:
    detections = Detections(rules)
    return [*(alert for _, alert in detections.alerts(batch)), *detections.last()]


def _ids(rules: Sequence[Rule], batch: Batch) -> set[str]:
    return {alert.id for alert in _alerts(rules, batch)}


def _still(rules: Sequence[Rule], whole: _Input, alert: Alert) -> bool:
    """Whether the alert comes without what was known before."""
    rows = np.arange(whole.batch.rows, dtype=np.int32)
    return alert.id in _ids(rules, whole.part(rows, states=False))


def _chosen(alerts: Sequence[Alert], alert_id: str, path: Path) -> Alert:
    found = {alert.id: alert for alert in alerts if alert.id.startswith(alert_id)}
    if len(found) == 1:
        return next(iter(found.values()))
    some = ", ".join(sorted(found) if found else [alert.id for alert in alerts][:_LEAST])
    raise KcapError(
        f"{len(found) or 'no'} alerts have an id that begins with {alert_id!r}",
        file=str(path),
        expected=f"one of {some}" if some else "rules that raise one",
        hint="kcap detect --format jsonl shows each alert's arg_alert_id",
    )


def _causes(whole: _Input, alert: Alert) -> Rows:
    """The rows that the alert is about."""
    from kcap.replay.span import AtEvent, rows_of

    each = [rows_of(whole.batch, AtEvent(origin, number)) for origin, number in alert.causes]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *each])).astype(np.int32)


def _smallest(rows: Rows, causes: Rows, holds: Callable[[Rows], bool]) -> Rows:
    """Rows of which none can go, or nearly: delta debugging, the causes first."""
    if len(causes) and holds(causes):
        return causes
    tries = 0
    size = max(len(rows) // 2, 1)
    while tries < TRIES_MAX:
        at, gone = 0, False
        while at < len(rows) and tries < TRIES_MAX:
            less = np.concatenate([rows[:at], rows[at + size :]])
            tries += 1
            if len(less) and holds(less):
                rows, gone = less, True
            else:
                at += size
        if size == 1 and not gone:
            break
        size = max(size // 2, 1)
    return rows
