"""Alerts: what a filament or a rule says of events, as events that every sink can take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from kcap.errors import KcapError
from kcap.model import catalogue, naming
from kcap.model.batch import Batch
from kcap.model.builder import Field, RecordBuilder
from kcap.model.classes import TypeClass

KIND: Final = "alert"
"""The ``kind`` of such a row, its ``event`` and its ``category``."""

SEVERITIES: Final = ("low", "medium", "high", "critical")
"""From the least to the most severe."""

_SPELLED: Final = {"normal": "low", "info": "low", "informational": "low", "warning": "medium"}

WHO: Final = (
    "source", "host", "pid", "tid", "ppid", "process_key", "process_name", "exe", "cmdline",
    "parent_name", "user", "uid", "session", "container_id",
)  # fmt: skip
"""What an alert has of the event that raised it."""

_ABOUT: Final = (
    "alert_id", "rule", "rule_version", "severity", "title", "text", "tags", "techniques",
    "causes", "alert_data",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert."""

    rule: str
    """What raised it: ``filament:NAME``, or the id of a rule."""
    version: str
    """The version of that."""
    title: str
    text: str = ""
    severity: str = "low"
    """One of `SEVERITIES`; see `severity`."""
    tags: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    """MITRE ATT&CK techniques."""
    ts_ns: int | None = None
    """The logical clock when it was raised, ns UTC."""
    causes: tuple[tuple[str, int], ...] = ()
    """``origin`` and ``ord`` of the events it is about."""
    number: int = 0
    """Of alerts with the same rule, version and causes, the how manieth."""
    data: str | None = None
    """What a rule found, a JSON object."""
    who: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the envelope that say who caused it (`who`)."""

    @property
    def id(self) -> str:
        """The same for the same rule and events, in every run."""
        causes = [f"{origin}:{ord_}" for origin, ord_ in self.causes]
        named = "\0".join(
            [self.rule, self.version, *causes, *([str(self.number)] * bool(self.number))]
        )
        return hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()


def severity(text: str) -> str:
    """How severe an alert is, in the words that alerts have.

    Args:
        text: A word of any source: ``normal``, ``Critical``.

    Returns:
        One of `SEVERITIES`.

    Raises:
        KcapError: It is none.
    """
    word = text.strip().lower()
    word = _SPELLED.get(word, word)
    if word not in SEVERITIES:
        raise KcapError(f"{text!r} is no severity", expected=", ".join((*SEVERITIES, *_SPELLED)))
    return word


def who(batch: Batch, row: int) -> dict[str, Any]:
    """What an alert tells of an event.

    Args:
        batch: Events.
        row: Which of them.

    Returns:
        Names and values of envelope columns, without those that it does not have.
    """
    one = batch.slice(row, row + 1)
    found = {name: one.array(name)[0].as_py() for name in WHO if name in one.columns}
    return {name: value for name, value in found.items() if value is not None}


def batch(alerts: Sequence[Alert]) -> Batch:
    """Alerts as events.

    Args:
        alerts: The alerts.

    Returns:
        A row each, in their order. They have no ``origin`` and ``ord``: those are of what was
        recorded.
    """
    builder = RecordBuilder()
    layout = builder.layout(_fields(), None)
    for alert in alerts:
        causes = [f"{origin}:{ord_}" for origin, ord_ in alert.causes]
        about = (
            alert.id, alert.rule, alert.version, alert.severity, alert.title, alert.text,
            list(alert.tags) or None, list(alert.techniques) or None, causes or None,
            None if alert.data is None else json.loads(alert.data),
        )  # fmt: skip
        values = [alert.ts_ns, KIND, KIND, KIND, *(alert.who.get(name) for name in WHO), *about]
        builder.add(layout, values)
    return builder.finish()


def alerts_in(rows: Batch) -> bool:
    """Whether some rows are alerts.

    Args:
        rows: Events.

    Returns:
        True where one is.
    """
    column = rows.get("kind")
    if column is None or column.cls is not TypeClass.STR:
        return False
    return KIND in column.values.dictionary.to_pylist()


@cache
def _fields() -> tuple[Field, ...]:
    names: Iterable[str] = (
        "ts", "event", "kind", "category", *WHO, *(naming.argument(name) for name in _ABOUT)
    )  # fmt: skip
    return tuple(Field(name, catalogue.home(name)) for name in names)
