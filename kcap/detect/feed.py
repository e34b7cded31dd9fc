"""Feeding a list of events to one rule: for tests of rules, without a capture.

Events are dicts: Tracee's, as its JSON lines have them, or kcap's, by columns, with the event's own
arguments under ``arguments``::

    {"event": "openat", "ts": 1, "pid": 7, "arguments": {"pathname": "/etc/shadow"}}
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from kcap import plugins
from kcap.detect.engine import Detections
from kcap.detect.python_rules import rule_of
from kcap.detect.rule import Rule
from kcap.errors import BadInputError
from kcap.model import catalogue, naming, shape
from kcap.model.alert import Alert
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.side import SourceInfo
from kcap.model.stream import Source, StreamInfo
from kcap.replay.pipeline import Pipeline

_SOURCE: Final = SourceInfo("kcap-bpf", host="host", origin="0" * 32)
_ARGUMENTS: Final = "arguments"
_NAME: Final = "events"


def feed(
    signature: Rule | type, events: Iterable[Mapping[str, Any]], *, origin: bool = True
) -> list[Alert]:
    """Let one rule look at some events.

    Args:
        signature: The rule, or the class of a signature in Python.
        events: The events, in order: Tracee's or kcap's.
        origin: Ask where events come from (container or host), as the rule's selectors do; False
            to give it events from anywhere.

    Returns:
        Its alerts, in order.

    Raises:
        BadInputError: An event can't be understood.
        KcapError: The rule fails.

    Example:
        >>> from kcap.detect.rule import About, Selector
        >>> from kcap.filter import Filter
        >>> one = Rule(About(id="X", name="x"), (Selector("a", Filter.of("pid = 1")),))
        >>> [alert.rule for alert in feed(one, [{"event": "open", "pid": 1}])]
        ['X']
    """
    rule = signature if isinstance(signature, Rule) else rule_of(signature)
    if not origin:
        chosen = [one._replace(filter=one.anywhere or one.filter) for one in rule.selectors]
        rule = replace(rule, selectors=tuple(chosen))
    tap = _Collecting(Detections([rule]))
    Pipeline(source(list(events)), (), taps=[tap]).run()
    for problem in tap.detections.problems:
        raise problem.error
    return tap.alerts


def source(events: Sequence[Mapping[str, Any]]) -> Source:
    """Dicts as a source of events.

    Args:
        events: The events: all Tracee's, or all kcap's.

    Returns:
        The source.

    Raises:
        BadInputError: An event can't be understood.
    """
    if events and "event" not in events[0]:
        try:
            lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        except (TypeError, ValueError) as error:
            raise BadInputError(f"an event is no plain JSON: {error}", file=_NAME) from error
        reader: Source = plugins.load(plugins.READERS, "tracee")(io.BytesIO(lines), _NAME)
        return reader
    return _Listed(_own(events))


class _Collecting:
    """A tap that keeps the alerts as they are."""

    def __init__(self, detections: Detections) -> None:
        self.detections = detections
        self.alerts: list[Alert] = []

    def see(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        """See `kcap.replay.tap.Tap`."""
        self.alerts += [alert for _, alert in self.detections.alerts(batch)]
        return ()

    def end(self) -> Iterable[Batch]:
        """See `kcap.replay.tap.Tap`."""
        self.alerts += self.detections.last()
        return ()

    def close(self) -> None:
        """See `kcap.replay.tap.Tap`."""


class _Listed:
    """A source of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.info = StreamInfo(_NAME, "dicts", (_SOURCE,))
        self._batch = batch

    def batches(self) -> Iterator[Batch]:
        """See `kcap.model.stream.Source`."""
        yield self._batch

    def close(self) -> None:
        """See `kcap.model.stream.Source`."""


def _own(events: Sequence[Mapping[str, Any]]) -> Batch:
    """Events of columns."""
    builder = RecordBuilder()
    for number, event in enumerate(events):
        if not isinstance(event.get("event"), str):
            raise BadInputError(
                f"event {number} has no name",
                file=_NAME,
                expected="'event' in each, or 'eventName' in each as Tracee has it",
            )
        arguments = event.get(_ARGUMENTS, {})
        ts_ns = event.get("ts", 0)
        if not isinstance(arguments, Mapping) or not isinstance(ts_ns, int):
            raise BadInputError(
                f"event {number}: its {'ts' if isinstance(arguments, Mapping) else _ARGUMENTS}",
                file=_NAME,
                expected="arguments by name, and a ts that is a whole number: ns since 1970",
            )
        given = {
            "kind": "event",
            "origin": _SOURCE.origin,
            "source": _SOURCE.id,
            "ord": number,
            **{name: value for name, value in event.items() if name != _ARGUMENTS},
        }
        bases = [*given, *map(naming.argument, arguments)]
        fields = [Field(base, catalogue.home(base)) for base in bases]
        items = [shape.Item(name, "any", value is None) for name, value in arguments.items()]
        layout = builder.layout(fields, shape.encode(items))
        builder.add(layout, [*given.values(), *arguments.values()])
    return builder.finish(before=(_SOURCE,))
