"""Tracee's events as JSON lines, in the spellings of all its versions.

``trace.Event`` as every release so far prints it, ``v1beta1.Event`` as its own marshaller prints
it, and the same message as gRPC clients print it. The spelling is found line by line.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from kcap import limits
from kcap.errors import BadInputError, DamagedError, KcapError, TruncatedError
from kcap.model import catalogue
from kcap.model.batch import Batch, Column, coded, constant
from kcap.model.builder import RecordBuilder
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.model.text import depth, printable
from kcap.readers.textinput import TOO_LONG, Block, TextInput
from kcap.readers.tracee_records import BadRecordError, Records

BATCH_ROWS: Final = 8192
"""Events of a batch."""

BATCH_BYTES: Final = 8 << 20
"""Bytes of lines of a batch; the last line may go beyond."""

KEPT_FIELDS: Final = 1 << 16
"""Fields of all layouts kept, two thousand usual events; an input with more starts anew."""

_ORIGIN_BYTES: Final = 1 << 20
_LARGE_BYTES: Final = 1 << 20
"""Shorter lines never make a row that is too large: a digit and a comma make 8 bytes."""

_QUOTED: Final = 40
_NAMED: Final = 3
_decode: Final = json.JSONDecoder().raw_decode
_BOM: Final = "\ufeff"
_EVENT: Final = re.compile(rb'"eventName"\s*:')
_V1BETA1: Final = re.compile(rb'"(?:workload|context)"\s*:\s*\{.*"process"\s*:', re.DOTALL)


class TraceeReader:
    """A source of the events in a file or stream of Tracee's JSON lines.

    Events of a pipe come as they arrive. Only its first MiB is waited for: it names the origin,
    which must be known before the first event and the same for a pipe, a file and gzip.
    An event of more than `limits.EVENT_FIELDS` fields (8,192, arguments included), or of values
    that take more than a row may (`limits.ROW_BYTES`), is a bad line.

    Args:
        stream: The bytes from their start, plain or compressed; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past lines that are no Tracee events, and past damage as far as possible.

    Example:
        >>> with open("events.jsonl", "rb") as stream:
        ...     print(sum(batch.rows for batch in TraceeReader(stream, "events.jsonl").batches()))
        10534
    """

    name = "tracee"
    collector = "tracee"
    reads = "Tracee JSON lines of all versions (trace.Event, v1beta1, gRPC), also gzip or zstd"

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        self._stream = stream
        self._file = file
        self._lenient = lenient
        self._input = TextInput(stream, file, skip_long=lenient)
        self._builder = RecordBuilder()
        self._records = Records(self._builder)
        self._bytes = 0
        self._ord = 0
        self._skipped = 0
        self._first_skipped: list[str] = []
        self._losses: list[Side] = []
        self._torn: TruncatedError | None = None
        self._announced = False

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like Tracee's events.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where one of the first lines is a Tracee event.
        """
        *lines, last = head.decode("utf-8", "replace").lstrip(_BOM).split("\n")
        if any(map(_is_event, lines)):
            return True
        start = last.lstrip().encode()
        found = _EVENT.search(start) or _V1BETA1.search(start)
        return _is_event(last) or (start.startswith(b"{") and found is not None)

    @functools.cached_property
    def info(self) -> StreamInfo:
        """What is known before the first event; reads the first MiB."""
        head = self._input.head(_ORIGIN_BYTES)
        origin = hashlib.sha256(self.name.encode() + head).digest()[:16].hex()
        host = next(filter(None, map(_host, self._events_in(head))), None)
        source = SourceInfo(self.collector, host, origin=origin, details={"file": self._file})
        return StreamInfo(self._file, self.name, (source,))

    def _events_in(self, head: bytes) -> Iterator[Any]:
        """The events that the start of the input holds, as far as it is good."""
        for line in head.split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                yield _parse(line.decode())

    def batches(self) -> Iterator[Batch]:
        """The events, once.

        Yields:
            Batches in the order of the lines.

        Raises:
            BadInputError: A line is no Tracee event, unless lenient.
            DamagedError: The compressed data is damaged, unless lenient.
            LimitError: A line is longer than any event; when lenient, than can be skipped.
            KcapError: The stream cannot be read.
        """
        _ = self.info  # the first MiB, before the lines are read away
        failure: KcapError | None = None
        try:
            for waits in self._taken():
                if len(self._builder) and (waits or self._is_full()):
                    yield self._finish()
                if len(self._records) > KEPT_FIELDS:
                    self._builder = RecordBuilder()
                    self._records = Records(self._builder)
        except TruncatedError as error:
            self._torn = error
        except DamagedError as error:
            self._torn = None  # the damage says why
            if self._lenient:
                self._losses.append(Loss("damaged", None, _reason(error)))
            else:
                failure = error
        except KcapError as error:
            failure = error
        if len(self._builder):
            yield self._finish()
        if self._torn is not None:
            self._losses.append(Loss("torn", None, _reason(self._torn)))
        if self._losses or self._skipped:
            yield Batch(0, {}, tuple(self._sides()))
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the stream; may be called twice."""
        self._stream.close()

    def _is_full(self) -> bool:
        rows, fields = len(self._builder), len(self._records)
        return rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES or fields > KEPT_FIELDS

    def _taken(self) -> Iterator[bool]:
        """Add the events; after each False, True where what follows has to be waited for."""
        for block in self._input.blocks():
            for index, line in enumerate(block.lines):
                self._take(line, block, index)
                yield False
            if not block.lines:
                yield True

    def _take(self, line: bytes, block: Block, index: int) -> None:
        """Add the event of a line."""
        try:
            text = line.decode()
            event = _parse(text)
            if type(event) is not dict:
                raise BadRecordError("no JSON object")
            levels = text.count("{") + text.count("[")  # at most so many, and cheap to count
            careful = levels > limits.JSON_DEPTH and depth(event) > limits.JSON_DEPTH
            self._records.add(event, careful=careful, large=len(line) > _LARGE_BYTES)
            self._bytes += len(line)
        except (ValueError, RecursionError, BadRecordError) as error:
            self._refuse(error, line, block, index)

    def _refuse(self, why: Exception, line: bytes, block: Block, index: int) -> None:
        """Deal with a line that is no event: empty, unfinished or bad."""
        if not line.strip() and line is not TOO_LONG:
            return
        if line.startswith(codecs.BOM_UTF8) and block.number + index == 1:
            self._take(line.removeprefix(codecs.BOM_UTF8), block, index)
            return
        unfinished = not block.ended and not isinstance(why, BadRecordError)
        if self._lenient and not unfinished:
            self._skipped += 1
            if len(self._first_skipped) >= _NAMED:
                return  # its place would have to be counted out
        number, offset = block.number + index, block.offset_of(index)
        if unfinished:
            self._torn = TruncatedError("the last line is not complete", line=number, offset=offset)
            return
        problem = _problem(why, line)
        if not self._lenient:
            raise BadInputError(
                problem,
                file=self._file,
                line=number,
                offset=offset,
                hint="--lenient skips and counts such lines",
            ) from why
        self._first_skipped.append(f"{problem} at line {number}, byte {offset}")

    def _sides(self) -> list[Side]:
        """What is to be said since the last call: at first the source, then what was lost."""
        sides: list[Side] = [] if self._announced else [*self.info.sources]
        self._announced = True
        losses, self._losses = self._losses, []
        if not self._skipped:
            return [*sides, *losses]
        more = ["…"] if self._skipped > len(self._first_skipped) else []
        loss = Loss("skipped", self._skipped, "; ".join(self._first_skipped + more))
        self._skipped, self._first_skipped = 0, []
        return [*sides, loss, *losses]

    def _finish(self) -> Batch:
        """Make a batch of the events since the last one."""
        count = len(self._builder)
        source = self.info.sources[0]
        constants = {
            "kind": constant(TypeClass.STR, "event", count),
            "ord": Column(TypeClass.I64, pa.array(np.arange(self._ord, self._ord + count))),
            "origin": constant(TypeClass.STR, source.origin, count),
            "source": constant(TypeClass.STR, source.id, count),
        }
        batch = self._builder.finish(constants, self._sides())
        self._ord += count
        self._bytes = 0
        return batch.adding({**_classified(batch), **_process_start(batch)})


def _host(event: object) -> str | None:
    """The host that an event names; one inside a container names the container."""
    if not isinstance(event, dict) or event.get("containerId"):
        return None
    container, name = event.get("container"), event.get("hostName")
    if isinstance(container, dict) and container.get("id"):
        return None
    inside = event.get("processId") != event.get("hostProcessId", event.get("processId"))
    return name if isinstance(name, str) and printable(name) == name and not inside else None


def _parse(text: str) -> Any:  # noqa: ANN401
    """`json.loads`, quicker where nothing stands around the value."""
    try:
        value, end = _decode(text)
    except json.JSONDecodeError:
        end = -1
    return value if end == len(text) else json.loads(text)


def _problem(why: Exception, line: bytes) -> str:
    """Why a line is no event, and how it starts; never more of it, it may hold secrets."""
    if line is TOO_LONG:
        return f"longer than {limits.LINE_BYTES} bytes"
    if isinstance(why, BadRecordError):
        problem = str(why)
    elif isinstance(why, json.JSONDecodeError):
        problem = f"no JSON ({why.msg}, character {why.pos + 1})"
    elif isinstance(why, UnicodeDecodeError):
        problem = f"no UTF-8 (byte {why.start + 1} of the line)"
    elif isinstance(why, RecursionError):
        problem = "nested too deep"
    else:
        problem = "a number is too long"
    start = line[:_QUOTED].decode("utf-8", "replace")
    return f"{problem} in {printable(start)!r}{'…' if len(line) > _QUOTED else ''}"


def _reason(error: KcapError) -> str:
    return f"{error.what} at {error.place}"


def _classified(batch: Batch) -> dict[str, Column]:
    """The action and category of each event: one look-up a distinct name."""
    column = batch.columns["event"]
    known = catalogue.events("tracee")
    infos = [known.get(name) for name in column.values.dictionary.to_pylist()]
    found = {
        "action": [info and info.action for info in infos],
        "category": [info and info.category for info in infos],
    }
    columns = {name: coded(texts, column.codes()) for name, texts in found.items()}
    return {name: made for name, made in columns.items() if made is not None}


def _process_start(batch: Batch) -> dict[str, Column]:
    """The start of the process, which a thread's start is where it is the first thread."""
    pid, tid = batch.numpy("pid", -1), batch.numpy("tid", -2)
    start = batch.numpy("thread_start_ns", 0)
    rows = np.flatnonzero((pid == tid) & (start > 0)).astype(np.int32)
    if not len(rows):
        return {}
    all_rows = len(rows) == batch.rows
    column = Column(TypeClass.I64, pa.array(start[rows]), None if all_rows else rows)
    return {"process_start_ns": column}


def _is_event(line: str) -> bool:
    """Whether a complete line is a Tracee event, as sniffing has it: stricter than reading."""
    try:
        event = _parse(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict):
        return False
    if type(event.get("eventName")) is str:
        return True
    telling = "workload" in event or "context" in event or {"id", "timestamp"} <= event.keys()
    return type(event.get("name")) is str and telling
