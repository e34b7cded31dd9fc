"""Event records of a Fibratus capture: how to read one, and in which of the dialects.

Neither the header nor a section's version tells how wide an event type is and what the type codes
of its parameters mean: releases changed both without saying so. What tells is that a record is
used up to its last byte by the right reading, and hardly ever by a wrong one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from struct import Struct
from typing import Any, Final, NamedTuple

from kcap import limits
from kcap.readers.fibratus_names import INTERNAL, STATE_TYPES, UNNAMED
from kcap.readers.fibratus_state import State, StateReader
from kcap.readers.fibratus_values import DIALECTS, BadRecordError, Order, parameters

TRIED: Final = 100
"""Records that decide on a dialect; some hold only types that all dialects share."""

_WIDTHS: Final = (17, 18)
_PROCESS: Final = 1
_TEXTS: Final = 4
_TAIL_BYTES: Final = 12
_KEPT_TYPES: Final = 4096
_GUID_BYTES: Final = 16


class Dialect(NamedTuple):
    """One way to read records."""

    width: int
    """Bytes of an event type: 16 of the provider, and one or two of its number."""
    types: str
    """One of `DIALECTS`."""


class EventType(NamedTuple):
    """What all events of a type on a host have in common."""

    raw: bytes
    """Name, category, description and host as they are stored."""
    name: str
    category: str
    """As it is stored: ``net``, ``image``."""
    description: str
    host: str
    provider: str
    """GUID of the ETW provider."""
    number: int
    """Opcode, or id of the event."""
    state: bool
    """Whether it describes what was there, or only the recorder needs it."""


class Event(NamedTuple):
    """A record, taken apart."""

    type: EventType
    seq: int
    pid: int
    tid: int
    cpu: int
    time: bytes
    parameters: tuple[Any, ...]
    """Name, still encoded, and type code of each, one after the other."""
    values: list[Any]
    metadata: Sequence[tuple[str, str]]
    state: State | None


class Decoder:
    """Reads records of one dialect.

    Args:
        order: The byte order.
        dialect: The dialect.
    """

    def __init__(self, order: Order, dialect: Dialect) -> None:
        self.dialect = dialect
        self._order = order
        self._readers = parameters(order.sign, dialect.types)
        self._states = StateReader(order)
        self._head = Struct(f"{order.sign}QII{dialect.width}sB")
        self._parameter = Struct(f"{order.sign}HH")
        self._section = Struct(f"{order.sign}BBII")
        self._no_metadata = b"\0\0" + bytes([_PROCESS])
        self._types: dict[bytes, EventType] = {}

    def event(self, data: bytes) -> Event:
        """Take a record apart.

        Args:
            data: The record.

        Returns:
            The event.

        Raises:
            BadRecordError: It is none, or not of this dialect.
        """
        try:
            return self._event(data)
        except (struct.error, IndexError) as error:
            raise BadRecordError("it ends inside a field") from error

    def _event(self, data: bytes) -> Event:
        u16 = self._order.u16
        seq, pid, tid, kind, cpu = self._head.unpack_from(data)
        at = self._head.size
        found = self._types.get(kind)
        if found is None or not data.startswith(found.raw, at):
            if len(self._types) >= _KEPT_TYPES:
                self._types.clear()
            found = self._types[kind] = self._type(kind, data, at)
        at += len(found.raw)
        end = at + 2 + u16(data, at)[0]
        time = data[at + 2 : end]
        (count,) = u16(data, end)
        if count > limits.EVENT_FIELDS:
            raise BadRecordError(f"more than {limits.EVENT_FIELDS} parameters")
        at = end + 2
        key: list[Any] = []
        values = []
        readers, unpack = self._readers, self._parameter.unpack_from
        for _ in range(count):
            code, size = unpack(data, at)
            end = at + 4 + size
            key += data[at + 4 : end], code
            value, at = readers[code](data, end)
            values.append(value)
        metadata: Sequence[tuple[str, str]] = ()
        state = None
        if len(data) != at + _TAIL_BYTES or not data.startswith(self._no_metadata, at):
            metadata, at = self._order.pairs(data, at)
            state, at = self._state(data, at)
        elif data[-4:] != b"\0\0\0\0":
            raise BadRecordError("the process state is missing")
        else:
            at += _TAIL_BYTES
        if at != len(data):
            raise BadRecordError(f"{abs(len(data) - at)} bytes are left over or missing")
        return Event(found, seq, pid, tid, cpu, time, tuple(key), values, metadata, state)

    def _state(self, data: bytes, at: int) -> tuple[State | None, int]:
        kind, version, _, size = self._section.unpack_from(data, at)
        at += self._section.size
        if kind != _PROCESS:
            raise BadRecordError(f"a section of type {kind} where the process state belongs")
        if not size:
            return None, at
        if at + size > len(data):
            raise BadRecordError("it ends inside the process state")
        return self._states.process(data[at : at + size], version), at + size

    def _type(self, kind: bytes, data: bytes, at: int) -> EventType:
        start = at
        texts = []
        for _ in range(_TEXTS):
            text, at = self._order.text(data, at)
            if isinstance(text, bytes):
                raise BadRecordError("its name, category or host is no text")
            texts.append(text)
        if at > len(data):
            raise BadRecordError("it ends inside a field")
        name, category, description, host = texts
        provider = _guid(kind)
        number = int.from_bytes(kind[_GUID_BYTES:], "big")
        known = STATE_TYPES.get((provider, number))
        if known is not None and (name in UNNAMED or provider in INTERNAL):
            name = known.old if self.dialect.types == "1" else known.new
        state = known is not None or name in UNNAMED
        return EventType(data[start:at], name, category, description, host, provider, number, state)


def _guid(raw: bytes) -> str:
    """The text of a GUID that is stored in the order of its text."""
    digits = raw[:_GUID_BYTES].hex()
    return "-".join(digits[a:b] for a, b in pairwise((0, 8, 12, 16, 20, 32)))


def candidates(order: Order, major: int, version: int) -> list[Decoder]:
    """The decoders that may fit a capture, the likeliest first.

    Args:
        order: Its byte order.
        major: The major version in its header.
        version: The version of its first event section.

    Returns:
        One for each way to read records.
    """
    types = list(DIALECTS) if major == 1 else list(DIALECTS)[::-1]
    widths = _WIDTHS if version == 1 else tuple(reversed(_WIDTHS))
    return [Decoder(order, Dialect(width, name)) for width in widths for name in types]


def choose(decoders: Sequence[Decoder], records: Iterable[bytes]) -> Decoder:
    """Find the dialect of a capture.

    Args:
        decoders: Those to choose from, the likeliest first.
        records: Its first records.

    Returns:
        The first of those that can read most of them.
    """
    read = [0] * len(decoders)
    for data in records:
        for i, decoder in enumerate(decoders):
            try:
                decoder.event(data)
            except BadRecordError:
                continue
            read[i] += 1
    return decoders[read.index(max(read))]
