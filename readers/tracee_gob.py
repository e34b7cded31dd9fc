"""Tracee's events as ``--output gob`` wrote them, until release 0.21.

Each event becomes what Tracee's JSON of the same event is, and is read like it: rows, columns and
shapes are the same. So text that is not UTF-8 has replacement characters, and a list that gob left
out because it was empty is null, as Go has it after reading it back.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, BinaryIO, Final

from kcap import limits
from kcap.errors import BadInputError, DamagedError, KcapError, TruncatedError
from kcap.model.side import Loss
from kcap.model.text import depth
from kcap.readers.gob import JOINTS, VALUE_BYTES, ContinuesError, Decoder, Spelling
from kcap.readers.gob_messages import Message, Messages
from kcap.readers.gob_values import GobError, uint
from kcap.readers.tracee import TraceeReader
from kcap.readers.tracee_records import BadRecordError

_LARGE_BYTES: Final = 1 << 20
_NAMED: Final = 3
_NAME: Final = "EventName"
_START: Final = re.compile(rb"\xff.\x03\x01\x01\x05Event\x01", re.DOTALL)
"""How the definition of ``Event`` starts: its id, a struct's type, its name."""


class TraceeGobReader(TraceeReader):
    """A source of the events in a file or stream of Tracee's gob output.

    Args:
        stream: The bytes from their start, plain or compressed; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past messages that are no Tracee events, and past damage.

    Example:
        >>> with open("events.gob", "rb") as stream:
        ...     print(sum(batch.rows for batch in TraceeGobReader(stream, "events.gob").batches()))
        10534
    """

    name = "tracee-gob"
    reads = "Tracee gob output (--output gob, up to 0.21), also gzip or zstd"

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        super().__init__(stream, file, lenient=lenient)
        self._messages = Messages(self._input.pieces(), file)
        self._decoder = Decoder(_spellings())
        self._parts: list[Message] = []
        self._marker = b""
        self._bad: Message | None = None

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like Tracee's gob output.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where it starts with the definition of Tracee's event.
        """
        try:
            size, at = uint(head, 0)
        except (GobError, IndexError):
            return False
        definition = head[at : at + size]
        if len(definition) < size:
            return _START.match(definition) is not None
        decoder = Decoder()
        try:
            value = decoder.message(definition)
        except (GobError, ContinuesError):
            return False
        fields = {name for found in decoder.types.values() for name, _ in found.fields}
        return value is None and {_NAME, "Args"} <= fields

    def _events_in(self, head: bytes) -> Iterator[Any]:
        decoder = Decoder(_spellings())
        with contextlib.suppress(GobError, ContinuesError, KcapError):
            for message in Messages(iter([head, b""]), self._file).read():
                if message is not None:
                    yield decoder.message(message.data)

    def _taken(self) -> Iterator[bool]:
        while True:
            try:
                for message in self._messages.read():
                    if message is None:
                        yield True
                        continue
                    self._take_message(message)
                    yield False
                    if self._bad is not None:
                        yield from self._past(self._bad)
                        self._bad = None
            except DamagedError as error:
                if not self._lenient or error.hint is None:  # the compression's damage has none
                    raise
                for _ in self._sought(error.offset or 0, error.what):
                    yield True
                continue
            break
        if self._parts:
            raise TruncatedError(
                "the last event is not complete", file=self._file, offset=self._parts[0].offset
            )

    def _take_message(self, message: Message) -> None:
        """Add the event of a message, of several where types are defined inside it."""
        self._parts.append(message)
        data = message.data if len(self._parts) == 1 else b"".join(p.data for p in self._parts)
        try:
            if len(self._parts) > JOINTS or len(data) > VALUE_BYTES:
                raise GobError("it goes on in too many messages")
            event = self._decoder.message(data, self._joints())
            if event is not None:
                self._add(event, data)
        except ContinuesError:
            return
        except (GobError, BadRecordError) as error:
            self._pass_over(error)
        self._parts = []

    def _joints(self) -> set[int]:
        """Where the second and further parts start in all of them together."""
        joints, at = set(), 0
        for part in self._parts[:-1]:
            at += len(part.data)
            joints.add(at)
        return joints

    def _add(self, event: Any, data: bytes) -> None:  # noqa: ANN401
        if type(event) is not dict or "eventName" not in event:
            raise BadRecordError("no Tracee event")
        flags = event.get("contextFlags")
        if type(flags) is dict:
            flags.setdefault("isCompat", False)  # printed by every release that knows flags
        size = len(data) + self._decoder.size
        careful = self._decoder.deep and depth(event) > limits.JSON_DEPTH
        self._records.add(event, careful=careful, large=size > _LARGE_BYTES)
        self._bytes += size
        if not self._marker:
            self._marker = data[: uint(data, 0)[1]]

    def _pass_over(self, why: Exception) -> None:
        """Deal with a message that is none."""
        offset = self._parts[0].offset
        problem = f"no event: {why}" if isinstance(why, GobError) else str(why)
        if not self._lenient:
            raise BadInputError(
                problem,
                file=self._file,
                offset=offset,
                hint="--lenient skips and counts such messages",
            ) from why
        self._skipped += 1
        if len(self._first_skipped) < _NAMED:
            self._first_skipped.append(f"{problem} at byte {offset}")
        self._bad = self._parts[-1]

    def _past(self, bad: Message) -> Iterator[bool]:
        """Seek the next event where the bad one's length may have been the damage."""
        if not self._marker:
            return
        good: bool | None = True
        for good in self._messages.continues(self._marker):
            if good is None:
                yield True
        if not good:
            for _ in self._sought(bad.offset, "no message follows"):
                yield True

    def _sought(self, start: int, what: str) -> Iterator[None]:
        """Go on with the next event after a place, and tell of what lies between."""
        self._parts = []
        end = start
        marker = self._marker or self._known_marker()
        for found in self._messages.resume(start, marker, self._is_event):
            if found is None:
                yield None
            else:
                end = found
        self._losses.append(
            Loss("damaged", None, f"{what} at byte {start}, the next event is at byte {end}")
        )

    def _known_marker(self) -> bytes:
        """The id of the events' type, by its definition."""
        for type_id, found in self._decoder.types.items():
            if any(name == _NAME for name, _ in found.fields):
                number = type_id << 1
                size = (number.bit_length() + 7) // 8
                prefix = bytes([256 - size]) if number > 127 else b""  # noqa: PLR2004
                return prefix + number.to_bytes(size, "big")
        return b"\xff\x82"

    def _is_event(self, data: bytes) -> bool:
        try:
            event = self._decoder.message(data)
        except (GobError, ContinuesError):
            return False
        return type(event) is dict and event.get("eventName", "") != ""


@cache
def _spellings() -> Mapping[str, Mapping[str, Spelling]]:
    """How Tracee's JSON prints the fields of its structs."""
    text = resources.files("kcap.readers.data").joinpath("tracee_gob.tsv").read_text("utf-8")
    found: dict[str, dict[str, Spelling]] = {}
    for line in text.splitlines()[1:]:
        name, field, key, how = line.split("\t")
        found.setdefault(name, {})[field] = Spelling(
            key or None,
            omitted=how == "omitted",
            text=how == "text",
            inlined=how == "inlined",
            empty=[] if how == "list" else None,
        )
    return found
