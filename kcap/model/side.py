"""What travels beside the events: where they come from, what was lost, what the state was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from kcap.errors import DamagedError
from kcap.model.artifact import Artifact
from kcap.model.classes import I64_MAX, I64_MIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kcap.model.batch import Batch


_TEXT: Final = (str, NoneType)
_NUMBER: Final = (int, NoneType)

_SOURCE_TYPES: Final = {
    "boot_id": _TEXT,
    "clocks": list,
    "collector": str,
    "details": dict,
    "host": _TEXT,
    "origin": _TEXT,
}

_LOSS_TYPES: Final = {
    "count": _NUMBER,
    "cpu": _NUMBER,
    "end_ns": _NUMBER,
    "event": _TEXT,
    "kind": str,
    "reason": str,
    "source": _TEXT,
    "start_ns": _NUMBER,
}


def _check(value: object, what: str, types: Mapping[str, Any]) -> None:
    """Refuse a JSON value that is not an object with members of these types."""
    if not isinstance(value, dict):
        raise DamagedError(f"a {what} is no JSON object")
    for name, expected in types.items():
        if name in value and not isinstance(value[name], expected):
            raise DamagedError(f"the {name} of a {what} is of the wrong type")
        if isinstance(value.get(name), int) and not I64_MIN <= value[name] <= I64_MAX:
            raise DamagedError(f"the {name} of a {what} is beyond 64 bits")


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """One entry of the SOURCE table: a host and the collector that saw its events."""

    collector: str
    """What produced the events: ``netlink-proc``, ``tracee``."""
    host: str | None = None
    boot_id: str | None = None
    origin: str | None = None
    """The recording's or import's 128-bit id, 32 hex digits."""
    clocks: tuple[tuple[int, int], ...] = ()
    """Pairs of realtime ns and boot-time ns, read together."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping: versions, options, the input's name."""

    def to_json(self) -> dict[str, Any]:
        """The entry as plain JSON values, without its id."""
        return {
            "boot_id": self.boot_id,
            "clocks": [list(pair) for pair in self.clocks],
            "collector": self.collector,
            "details": dict(self.details),
            "host": self.host,
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SourceInfo:
        """Read what `to_json` wrote.

        Args:
            value: The JSON object.

        Returns:
            The entry.

        Raises:
            DamagedError: It is no such object.
        """
        _check(value, "source", _SOURCE_TYPES)
        if not all(
            isinstance(p, list)
            and [type(v) for v in p] == [int, int]
            and all(I64_MIN <= v <= I64_MAX for v in p)
            for p in value.get("clocks", ())
        ):
            raise DamagedError("a source's clocks are no pairs of integers")
        return cls(
            collector=value.get("collector", ""),
            host=value.get("host"),
            boot_id=value.get("boot_id"),
            origin=value.get("origin"),
            clocks=tuple((a, b) for a, b in value.get("clocks", ())),
            details=value.get("details", {}),
        )

    @property
    def id(self) -> str:
        """16 hex digits over host, boot, collector and origin: the value of the ``source`` column.

        Clock pairs and details may be added while a recording goes on, so they do not count.
        """
        key = json.dumps([self.collector, self.host, self.boot_id, self.origin])
        return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that is not in the events: lost, cut, skipped, damaged or torn away."""

    kind: str
    """``lost`` (by the source), ``cut`` (a value over its limit), ``skipped`` (bad foreign input),
    ``damaged`` (a record of a capture), ``torn`` (the input ends early), ``filtered`` (left out on
    purpose of a copy), ``blind`` (nobody looked, or could look: a time without a heartbeat, a way
    around the recorder), ``evicted`` (what a rule remembered, of this run alone)."""
    count: int | None = None
    """Events, or values for ``cut``; None when the number is not known."""
    reason: str = ""
    source: str | None = None
    """Id of the source, where it is one source's loss."""
    event: str | None = None
    cpu: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    """The interval of event time it fell into."""
    recorded: bool = False
    """Read from a capture's LOSS record: an old loss, not one of this run."""

    @property
    def like(self) -> Loss:
        """What it has in common with losses that it can be added to: all but size and time."""
        return replace(self, count=None, start_ns=None, end_ns=None)

    def plus(self, other: Loss) -> Loss:
        """Two losses as one.

        Args:
            other: A loss of the same `like`.

        Returns:
            One of both counts, unknown where either is, and of an interval that holds both.
        """
        unknown = self.count is None or other.count is None
        starts = [t for t in (self.start_ns, other.start_ns) if t is not None]
        ends = [t for t in (self.end_ns, other.end_ns) if t is not None]
        return replace(
            self,
            count=None if unknown else (self.count or 0) + (other.count or 0),
            start_ns=min(starts, default=None),
            end_ns=max(ends, default=None),
        )

    def to_json(self) -> dict[str, Any]:
        """The loss as plain JSON values."""
        return {
            "count": self.count,
            "cpu": self.cpu,
            "end_ns": self.end_ns,
            "event": self.event,
            "kind": self.kind,
            "reason": self.reason,
            "source": self.source,
            "start_ns": self.start_ns,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Loss:
        """Read what `to_json` wrote; the loss is an old one then.

        Args:
            value: The JSON object.

        Returns:
            The loss.

        Raises:
            DamagedError: It is no such object.
        """
        _check(value, "loss", _LOSS_TYPES)
        return cls(
            kind=value.get("kind", ""),
            count=value.get("count"),
            reason=value.get("reason", ""),
            source=value.get("source"),
            event=value.get("event"),
            cpu=value.get("cpu"),
            start_ns=value.get("start_ns"),
            end_ns=value.get("end_ns"),
            recorded=True,
        )


@dataclass(frozen=True, slots=True)
class EventLoss(Loss):
    """Something that certain events lack: whoever leaves such an event out has not lost it."""

    origin: str | None = None
    ords: tuple[int, ...] = ()
    """The events, one for each that counts."""

    @property
    def like(self) -> Loss:
        """See `Loss`: which events they are is a part of its size."""
        return self.plain.like

    def plus(self, other: Loss) -> Loss:
        """See `Loss`."""
        return self.plain.plus(other)

    @property
    def plain(self) -> Loss:
        """The loss, which no longer says which events they are."""
        return Loss(
            self.kind, self.count, self.reason, self.source, self.event, self.cpu,
            self.start_ns, self.end_ns,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at one place of the stream, before the events that follow it."""

    tables: Mapping[str, Batch]
    """Table name (``processes``) to its rows."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A recorder was alive. Only live sources give them: what a gap means, a `Loss` says."""

    ts_ns: int
    """ns since 1970 UTC."""
    boot_ns: int
    """Since boot, time asleep included: no one sets this clock."""
    events: int = 0
    """Events that the source gave so far."""
    source: str | None = None
    """Id of the source."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Counters of what was received and lost, programs that are attached, clocks."""


Side = SourceInfo | Loss | Snapshot | Heartbeat | Artifact
"""What a batch may carry in `Batch.before`."""
