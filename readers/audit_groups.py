"""Events out of audit records: the records with the same time and serial number.

Records of several processors interleave, but an event's own come in order and an EOE record ends
them; some types always stand alone. Where the end does not come, an event counts as complete
some time after its first record came. (Its own time may be much older: a call has the time at
which it began.)
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from kcap.readers.audit_records import Record, type_number

WAIT_MS: Final = 2000
"""How long the end of an event is waited for: what auditd's own tools wait."""

OPEN_MAX: Final = 16_384
"""Events that are not complete, at most; the oldest is then taken as it is."""

EVENT_BYTES: Final = 1 << 20
"""Bytes of an event's records that are kept: what an execution of the longest arguments has is
more, and is cut."""

OPEN_BYTES: Final = 64 << 20
"""Bytes of all events that are not complete."""

EOE: Final = "EOE"
"""Type of the record behind an event's last one."""

PROCTITLE: Final = "PROCTITLE"
"""Type of an event's last record."""

_USERS: Final = (range(1100, 1300), range(2100, 3000))
"""Types of records that programs make: an event of its own each."""


class Event(NamedTuple):
    """The records of an event."""

    ms: int
    """When it was, ms since 1970 UTC."""
    serial: int
    records: list[Record]
    """In their order, without the one that ends them; none where nothing but the end came."""
    ended: bool
    """The record that ends it came."""
    cut_bytes: int
    """Bytes of records beyond `EVENT_BYTES`, which were left out."""


class _Open:
    """An event that goes on."""

    __slots__ = ("bytes", "cut_bytes", "records", "since_ms")

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.records: list[Record] = []
        self.bytes = 0
        self.cut_bytes = 0


class Groups:
    """Puts records together.

    Args:
        end: Type of the record that ends an event. The kernel's last is EOE, but logs have none:
            there it is the one before, and an EOE means nothing; old kernels' have none at all.

    Example:
        >>> from kcap.readers.audit_records import parse_line
        >>> groups = Groups()
        >>> groups.add(parse_line(b"type=CWD msg=audit(1.000:7): cwd=2F"), 1000)
        []
        >>> [e.ended for e in groups.add(parse_line(b"type=EOE msg=audit(1.000:7): "), 1000)]
        [True]
    """

    def __init__(self, end: str = EOE) -> None:
        self._end = end
        self._open: OrderedDict[tuple[bytes, int, int], _Open] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """Events that are not complete."""
        return len(self._open)

    def add(self, record: Record, now_ms: int) -> list[Event]:
        """Take a record.

        Args:
            record: The record.
            now_ms: When it came, by any clock.

        Returns:
            The events that are complete with it: one or none, others where there are too many.
        """
        key = (record.node, record.ms, record.serial)
        group = self._open.get(key)
        if record.type == EOE:
            if self._end != EOE:
                return []
            if group is None:
                return [Event(record.ms, record.serial, [], ended=True, cut_bytes=0)]
            return [self._take(key, ended=True)]
        if group is None:
            if _stands_alone(record.type):
                return [Event(record.ms, record.serial, [record], ended=True, cut_bytes=0)]
            group = self._open[key] = _Open(now_ms)
        size = len(record.text)
        if group.bytes + size > EVENT_BYTES:
            group.cut_bytes += size
        else:
            group.records.append(record)
            group.bytes += size
            self._bytes += size
        if record.type == self._end:
            return [self._take(key, ended=True)]
        found = []
        while len(self._open) > OPEN_MAX or self._bytes > OPEN_BYTES:
            found.append(self._take(next(iter(self._open)), ended=False))
        return found

    def older(self, now_ms: int) -> list[Event]:
        """Give up waiting for the ends of old events.

        Args:
            now_ms: The time now, by the clock that `add` is told of.

        Returns:
            The events that began to come `WAIT_MS` ago or earlier, oldest first.
        """
        found = []
        while self._open:
            key, group = next(iter(self._open.items()))
            if group.since_ms > now_ms - WAIT_MS:
                break
            found.append(self._take(key, ended=False))
        return found

    def waits_for(self, ms: int) -> bool:
        """Whether an event is not complete that was before a time.

        Args:
            ms: The time, ms since 1970 UTC.
        """
        return any(key[1] <= ms for key in self._open)

    def rest(self) -> list[Event]:
        """Give up waiting: nothing else comes.

        Returns:
            All events there are.
        """
        return [self._take(key, ended=False) for key in list(self._open)]

    def _take(self, key: tuple[bytes, int, int], *, ended: bool) -> Event:
        group = self._open.pop(key)
        self._bytes -= group.bytes
        ended = ended or self._end != EOE
        return Event(key[1], key[2], group.records, ended, group.cut_bytes)


def _stands_alone(kind: str) -> bool:
    known = type_number(kind)
    return known is not None and any(known in users for users in _USERS)
