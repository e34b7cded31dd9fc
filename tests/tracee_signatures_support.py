"""What the tests of Tracee's signatures share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from kcap.detect.rule import Rule
from kcap.model.alert import Alert
from kcap.readers.rules.tracee import signatures


@cache
def rules(chosen: str) -> Mapping[str, Rule]:
    """The signatures of a set, by their ids."""
    return {rule.about.id: rule for rule in signatures(chosen)}


def told(alerts: Sequence[Alert]) -> list[Any]:
    """What alerts found: their data, None without."""
    return [None if alert.data is None else json.loads(alert.data) for alert in alerts]


def event(name: str, of: Mapping[str, Any] | None = None, /, **arguments: Any) -> dict[str, Any]:
    """An event as Tracee's JSON lines have it: its name, more of its record, its arguments."""
    listed = [{"name": key, "value": value} for key, value in arguments.items()]
    return {"eventName": name, **(of or {}), "args": listed}
