"""Logs of the Linux audit system: what auditd writes, and what ``ausearch --raw`` prints of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from kcap.errors import BadInputError, DamagedError, KcapError, TruncatedError
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Loss, Side, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.readers.audit_batches import Batches
from kcap.readers.audit_groups import PROCTITLE, Event, Groups
from kcap.readers.audit_records import LINE_BYTES, BadRecordError, Record, parse_line
from kcap.readers.textinput import TOO_LONG, Block, TextInput

BATCH_ROWS: Final = 8192
"""Events of a batch."""

_ORIGIN_BYTES: Final = 1 << 20
_BETWEEN: Final = (b"----", b"time->")
"""What ausearch puts between events, where nobody asks it for --raw."""


class AuditLogReader:
    """A source of the events in an audit log.

    Args:
        stream: The bytes from their start, plain or compressed; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past lines that are no audit records, and past damage as far as possible.

    Example:
        >>> with open("/var/log/audit/audit.log", "rb") as stream:
        ...     print(sum(batch.rows for batch in AuditLogReader(stream, "audit.log").batches()))
        1803
    """

    name = "audit-log"
    collector = "audit"
    reads = "Linux audit logs: audit.log, ausearch --raw, RAW and ENRICHED; also gzip or zstd"

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        self._stream = stream
        self._file = file
        self._lenient = lenient
        self._input = TextInput(stream, file, skip_long=lenient)
        self._groups = Groups(PROCTITLE)
        self._newest_ms = 0
        self._torn: TruncatedError | None = None

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like an audit log.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where its first record is one of the audit system.
        """
        for line in head.split(b"\n"):
            if line.strip() and not line.startswith(_BETWEEN):
                return _record(line) is not None
        return False

    @functools.cached_property
    def info(self) -> StreamInfo:
        """What is known before the first event; reads the first MiB."""
        head = self._input.head(_ORIGIN_BYTES)
        origin = hashlib.sha256(self.name.encode() + head).digest()[:16].hex()
        found = (_record(line) for line in head.split(b"\n"))
        first = next((record for record in found if record is not None), None)
        host = first.node.decode("utf-8", "replace") if first and first.node else None
        source = SourceInfo(self.collector, host, origin=origin, details={"file": self._file})
        return StreamInfo(self._file, self.name, (source,))

    def batches(self) -> Iterator[Batch]:
        """The events, once.

        Yields:
            Batches in the order in which events end.

        Raises:
            BadInputError: A line is no audit record, unless lenient.
            DamagedError: The compressed data is damaged, unless lenient.
            LimitError: A line is longer than any record; when lenient, than can be skipped.
            KcapError: The stream cannot be read.
        """
        source = self.info.sources[0]  # reads the first MiB, before the lines are read away
        made = Batches(source)
        yield EMPTY.with_before([source])
        failure: KcapError | None = None
        losses: list[Side] = []
        try:
            for block in self._input.blocks():
                for event in self._events(block, made):
                    made.add(event)
                    if len(made) >= BATCH_ROWS:
                        yield made.finish()
                if not block.lines and len(made):
                    yield made.finish()
        except TruncatedError as error:
            self._torn = error
        except DamagedError as error:
            self._torn = None  # the damage says why
            if self._lenient:
                losses.append(Loss("damaged", None, _reason(error), source.id))
            else:
                failure = error
        except KcapError as error:
            failure = error
        for event in self._groups.rest():
            made.add(event)
        if self._torn is not None:
            losses.append(Loss("torn", None, _reason(self._torn), source.id))
        if made.headless:
            reason = "events of which the log has parts, but not what they were"
            losses.append(Loss("lost", len(made.headless), reason, source.id))
        yield made.finish(losses)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the stream; may be called twice."""
        self._stream.close()

    def _events(self, block: Block, made: Batches) -> Iterator[Event]:
        """The events that end in a block."""
        for index, line in enumerate(block.lines):
            record = self._parsed(line, block, index, made)
            if record is not None:
                self._newest_ms = max(self._newest_ms, record.ms)
                yield from self._groups.add(record, self._newest_ms)
        yield from self._groups.older(self._newest_ms)

    def _parsed(self, line: bytes, block: Block, index: int, made: Batches) -> Record | None:
        try:
            if line is not TOO_LONG and len(line) <= LINE_BYTES:
                return parse_line(line)
            problem = f"longer than {LINE_BYTES} bytes"
        except BadRecordError as error:
            if not line.strip() or line.startswith(_BETWEEN):
                return None
            problem = str(error)
        number, offset = block.number + index, block.offset_of(index)
        if not block.ended:
            self._torn = TruncatedError("the last line is not complete", line=number, offset=offset)
        elif self._lenient:
            made.refuse(f"{problem} at line {number}, byte {offset}")
        else:
            raise BadInputError(
                problem,
                file=self._file,
                line=number,
                offset=offset,
                hint="--lenient skips and counts such lines",
            )
        return None


def _record(line: bytes) -> Record | None:
    try:
        return parse_line(line)
    except BadRecordError:
        return None


def _reason(error: KcapError) -> str:
    return f"{error.what} at {error.place}"
