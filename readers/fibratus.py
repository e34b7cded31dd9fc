"""Captures of Fibratus: ``.kcap`` of the releases 1.x, ``.cap`` of 2.x and 3.x.

Events come in the order of the file, which is neither that of their times nor of their numbers.
What the file holds of the machine's state comes along: handles as a `Snapshot`, descriptions of
processes, threads, images, files and keys as state records under the names that Fibratus has for
them, the state of a process beside the record that it came with.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, Final

from kcap.errors import BadInputError, DamagedError, KcapError, TruncatedError
from kcap.model.batch import Batch
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.readers.fibratus_batches import Batches
from kcap.readers.fibratus_records import TRIED, Decoder, EventType, candidates, choose
from kcap.readers.fibratus_sections import EVENT, MAGICS, Section, Sections
from kcap.readers.fibratus_state import StateReader
from kcap.readers.fibratus_values import BadRecordError
from kcap.state import State
from kcap.state.handles import Handle
from kcap.state.handles import to_batch as handle_table
from kcap.state.state import HANDLES

BATCH_ROWS: Final = 8192
"""Events of a batch."""

BATCH_BYTES: Final = 8 << 20
"""Bytes of records of a batch; the last one may go beyond."""

_ORIGIN_BYTES: Final = 1 << 20
_NAMED: Final = 3
_TYPES: Final = 256


class FibratusReader:
    """A source of the events in a Fibratus capture.

    Args:
        stream: The bytes from their start, compressed or not; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past records that are none, and past damage as far as possible.

    Example:
        >>> with open("events.kcap", "rb") as stream:
        ...     print(sum(batch.rows for batch in FibratusReader(stream, "events.kcap").batches()))
        73084
    """

    name = "fibratus"
    reads = "Fibratus captures: .kcap of 1.x, .cap of 2.x and 3.x"

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        self._stream = stream
        self._file = file
        self._lenient = lenient
        self._sections = Sections(stream, file)
        self._decoders: list[Decoder] = []
        self._failure: KcapError | None = None
        self._first: list[Section] = []
        self._handles: list[Handle] = []
        self._skipped: list[str] = []
        self._skipped_count = 0
        self._damage: list[Loss] = []
        self._seen: dict[str, EventType] = {}
        self._announced = False
        self._bytes = 0

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like a Fibratus capture.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where one starts so.
        """
        return head[:8] in MAGICS

    @functools.cached_property
    def info(self) -> StreamInfo:
        """What is known before the first event; reads the handles and the first events."""
        head = self._sections.head(_ORIGIN_BYTES)
        origin = hashlib.sha256(self.name.encode() + head).digest()[:16].hex()
        self._sections.read_header()
        self._rest = self._read()
        try:
            for section in self._rest:
                if section is not None:
                    self._first.append(section)
                if len(self._first) >= TRIED:
                    break
        except (TruncatedError, DamagedError) as error:
            self._failure = error
        if self._first:
            self._decoders = [choose(self._decoders, [s.data for s in self._first])]
        found = self._sections
        details: dict[str, Any] = {"file": self._file, "version": f"{found.major}.{found.minor}"}
        source = SourceInfo(self.name, host=self._host(), origin=origin, details=details)
        return StreamInfo(self._file, self.name, (source,))

    def _host(self) -> str | None:
        """The host of the first event."""
        for section in self._first:
            try:
                return self._decoders[0].event(section.data).type.host or None
            except BadRecordError:
                continue
        return None

    def _read(self) -> Iterator[Section | None]:
        """The events' sections; handles are kept on the way."""
        handles = StateReader(self._sections.order)
        while True:
            try:
                for section in self._sections.read():
                    if section is None or section.kind == EVENT:
                        if section is not None and not self._decoders:
                            self._decoders = self._candidates(section.version)
                        yield section
                    else:
                        self._take_handle(handles, section)
            except DamagedError as error:
                if not self._lenient:
                    raise
                self._damage.append(Loss("damaged", None, f"{error.what} at {error.place}"))
            else:
                return
            try:
                for _ in self._sections.resume(self._is_event):
                    yield None
            except TruncatedError:
                return

    def _candidates(self, version: int) -> list[Decoder]:
        return candidates(self._sections.order, self._sections.major, version)

    def _is_event(self, section: Section) -> bool:
        for decoder in self._decoders or self._candidates(section.version):
            try:
                decoder.event(section.data)
            except BadRecordError:
                continue
            return True
        return False

    def _take_handle(self, reader: StateReader, section: Section) -> None:
        try:
            self._handles.append(reader.handle(section.data))
        except (BadRecordError, struct.error, IndexError) as error:
            self._refuse(error, section, "handle")

    def batches(self) -> Iterator[Batch]:
        """The events, once.

        Yields:
            Batches in the order of the file.

        Raises:
            NotACaptureError: It is no such capture, or one of before version 1.0.
            VersionError: It is of a version that is not known.
            BadInputError: A record is none, unless lenient.
            DamagedError: The data is damaged, unless lenient.
            KcapError: The stream can't be read.
        """
        source = self.info.sources[0]
        failure: KcapError | None = None
        batches: Batches | None = None
        losses: list[Loss] = []
        try:
            for section in chain(self._first, self._rest):
                if batches is None and section is not None:
                    batches = Batches(self._decoders[0], source)
                if batches is None:
                    continue
                if section is not None:
                    self._take(batches, section)
                full = len(batches) >= BATCH_ROWS or self._bytes >= BATCH_BYTES
                if len(batches) and (full or section is None or self._handles):
                    yield self._finish(batches)
            if self._failure is not None:
                raise self._failure
        except TruncatedError as error:
            losses.append(Loss("torn", None, f"{error.what} at {error.place}"))
        except KcapError as error:
            failure = error
            if self._lenient and isinstance(error, DamagedError):
                losses.append(Loss("damaged", None, f"{error.what} at {error.place}"))
                failure = None
        if batches is not None and len(batches):
            yield self._finish(batches)
        yield Batch(0, {}, (*self._sides(), self._described(source), *losses))
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the stream; may be called twice."""
        self._stream.close()

    def _take(self, batches: Batches, section: Section) -> None:
        try:
            event = self._decoders[0].event(section.data)
        except BadRecordError as error:
            self._refuse(error, section, "event")
            return
        batches.add(event)
        self._bytes += len(section.data)
        kind = event.type
        if kind.name not in self._seen and len(self._seen) < _TYPES:
            self._seen[kind.name] = kind

    def _refuse(self, why: Exception, section: Section, what: str) -> None:
        problem = str(why) if isinstance(why, BadRecordError) else "it ends inside a field"
        if not self._lenient:
            raise BadInputError(
                f"no {what} that Fibratus writes: {problem}",
                file=self._file,
                offset=section.offset,
                hint="--lenient skips and counts such records",
            ) from why
        self._skipped_count += 1
        if len(self._skipped) < _NAMED:
            self._skipped.append(f"{what}: {problem} at byte {section.offset}")

    def _finish(self, batches: Batches) -> Batch:
        self._bytes = 0
        return batches.finish(self._sides())

    def _sides(self) -> list[Side]:
        """What is to be said since the last call: at first the source, handles, what was lost."""
        sides: list[Side] = [] if self._announced else [*self.info.sources]
        self._announced = True
        if self._handles:
            machine = State.machine(self.info.sources[0])
            sides.append(Snapshot({HANDLES: handle_table([(machine, self._handles)])}))
            self._handles = []
        if self._skipped_count:
            more = ["…"] if self._skipped_count > len(self._skipped) else []
            reason = "; ".join(self._skipped + more)
            sides.append(Loss("skipped", self._skipped_count, reason))
            self._skipped, self._skipped_count = [], 0
        sides += self._damage
        self._damage = []
        return sides

    def _described(self, source: SourceInfo) -> SourceInfo:
        """The source with what its events are called, which no event repeats."""
        types = {
            name: {
                "category": kind.category,
                "description": kind.description,
                "id": kind.number,
                "provider": kind.provider,
            }
            for name, kind in sorted(self._seen.items())
        }
        details = {**source.details, "events": types}
        return SourceInfo(source.collector, source.host, source.boot_id, source.origin, (), details)
