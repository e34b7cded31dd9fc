"""Captures of sysdig and Falco: ``.scap``.

A call is one event, made of its enter and its exit; what the file says of the machine as the
recording began (processes, threads, open files, users) comes before the events as a `Snapshot`.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, BinaryIO, Final

import numpy as np

from kcap.errors import DamagedError, KcapError, TruncatedError
from kcap.model.batch import Batch
from kcap.model.side import Loss, Side, Snapshot, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.readers import scap_table
from kcap.readers.scap_blocks import Blocks, Events, Item, Section, Table, is_scap
from kcap.readers.scap_decode import Decoder, RawEvents
from kcap.readers.scap_join import Joiner
from kcap.readers.scap_tables import Tables, is_table
from kcap.state import State, fds, processes, threads, users
from kcap.state.state import FDS, PROCESSES, THREADS, USERS

_ORIGIN_BYTES: Final = 1 << 20
_UNKNOWN_TYPES: Final = 1000
"""Unknown event types that are counted one by one."""


class ScapReader:
    """A source of the events in a capture of sysdig or Falco.

    Events stand in the order of the file, a call where it ended. ``seq`` is the number that sysdig
    shows as ``evt.num``, where it knows all event types of the file.

    Args:
        stream: The bytes from their start, compressed or not; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past events that can't be read, and past damage as far as possible.
        raw_pairs: Keep the enter and the exit of a call as two events.

    Example:
        >>> with open("x.scap", "rb") as stream:
        ...     print(sum(batch.rows for batch in ScapReader(stream, "x.scap").batches()))
        18987
    """

    name = "scap"
    joins = True
    """It knows `raw_pairs`."""
    reads = "sysdig and Falco captures (.scap) of all versions, also gzip or zstd"

    def __init__(
        self, stream: BinaryIO, file: str, *, lenient: bool = False, raw_pairs: bool = False
    ) -> None:
        self._stream = stream
        self._file = file
        self._lenient = lenient
        self._blocks = Blocks(stream, file, lenient=lenient)
        self._joiner = Joiner(raw_pairs=raw_pairs)
        self._tables = Tables(file)
        self._version = ""
        self._first: list[Item] = []
        self._failure: KcapError | None = None
        self._damage: list[Loss] = []
        self._unknown: Counter[int] = Counter()

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like a capture of sysdig.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where one starts so.
        """
        return is_scap(head)

    @functools.cached_property
    def info(self) -> StreamInfo:
        """What is known before the first event; reads the tables before it."""
        head = self._blocks.head(_ORIGIN_BYTES)
        self._origin = hashlib.sha256(self.name.encode() + head).digest()[:16].hex()
        self._rest = self._blocks.read()
        try:
            for item in self._rest:
                if isinstance(item, Events):
                    self._first.append(item)
                    break
                self._take(item)
        except (TruncatedError, DamagedError) as error:
            self._failure = error
        return StreamInfo(self._file, self.name, (self._source(),))

    def batches(self) -> Iterator[Batch]:
        """The events, once.

        Yields:
            Batches in the order of the file.

        Raises:
            NotACaptureError: It is no such capture.
            VersionError: It is of a version or byte order that is not known.
            BadInputError: An event can't be read, unless lenient.
            DamagedError: The data is damaged, unless lenient.
            KcapError: The stream can't be read.
        """
        source = self.info.sources[0]
        failure: KcapError | None = None
        sides = self._begin(source)
        try:
            yield from self._read(source, sides)
        except TruncatedError as error:
            self._damage.append(Loss("torn", None, f"{error.what} at {error.place}"))
        except KcapError as error:
            failure = error
        rest = self._joiner.rest()
        sides = [*self._losses(), *self._described(source)]
        yield rest.with_before((*rest.before, *sides))
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the stream; may be called twice."""
        self._stream.close()

    def _read(self, source: SourceInfo, sides: list[Side]) -> Iterator[Batch]:
        decoder = Decoder(source, self._file, lenient=self._lenient)
        fresh = False
        for item in chain(self._first, self._rest):
            if not isinstance(item, Events):
                if not fresh and _starts_section(item):
                    rest = self._joiner.rest()
                    if rest.rows:
                        yield rest
                    self._tables = Tables(self._file)
                    fresh = True
                self._take(item)
                continue
            if fresh:
                source = self._source()
                decoder = Decoder(source, self._file, lenient=self._lenient)
                sides = self._begin(source)
                fresh = False
            raw = decoder.decode(item)
            self._count(raw)
            batch = self._joiner.add(raw)
            before = (*sides, *self._losses(), *batch.before)
            sides = []
            if batch.rows or before:
                yield batch.with_before(before)
            if raw.failure is not None:
                raise raw.failure
        if sides:
            yield Batch(0, {}, tuple(sides))
        if self._failure is not None:
            raise self._failure

    def _take(self, item: Item) -> None:
        """Take in what is no event."""
        if isinstance(item, Section):
            self._version = item.version
        elif isinstance(item, Table):
            try:
                self._tables.take(item)
            except DamagedError as error:
                if not self._lenient:
                    raise
                self._damage.append(Loss("damaged", None, f"{error.what} at {error.place}"))

    def _source(self) -> SourceInfo:
        """The source that the tables describe."""
        details: dict[str, Any] = {"file": self._file, "version": self._version}
        machine = self._tables.machine
        if machine is not None:
            said = machine._asdict()
            del said["hostname"]
            details |= {name: value for name, value in said.items() if value is not None}
        if self._tables.interfaces:
            details["interfaces"] = [
                {n: v for n, v in one._asdict().items() if v not in (None, "")}
                for one in self._tables.interfaces
            ]
        host = machine.hostname if machine else None
        return SourceInfo(self.name, host=host, origin=self._origin, details=details)

    def _begin(self, source: SourceInfo) -> list[Side]:
        """What stands before the events of a section: the source, and what was there."""
        machine = State.machine(source)
        names = {user.uid: user.name for user in self._tables.users.values()}
        tables = {
            PROCESSES: processes.to_batch([(machine, self._tables.processes())]),
            THREADS: threads.to_batch([(machine, self._tables.threads())]),
            FDS: fds.to_batch([(machine, self._tables.descriptors())]),
            USERS: users.to_batch([(machine, names)]),
        }
        known = {name: table for name, table in tables.items() if table.rows}
        sides: list[Side] = [source, Snapshot(known)]
        if self._tables.left_out:
            reason = "entries of the lists of processes, descriptors and users beyond the limit"
            sides.append(Loss("skipped", self._tables.left_out, reason, source.id))
        return sides

    def _count(self, raw: RawEvents) -> None:
        """Count the events of types that are not known."""
        of = scap_table.traits()
        types = raw.type_id
        unknown = types[~of.known[np.minimum(types, of.size)]]
        for number, count in zip(*np.unique(unknown, return_counts=True), strict=True):
            known = number in self._unknown or len(self._unknown) < _UNKNOWN_TYPES
            self._unknown[int(number) if known else -1] += int(count)

    def _losses(self) -> list[Loss]:
        """Damage that was passed over since the last call."""
        found = [
            Loss("damaged", None, f"{error.what} at {error.place}") for error in self._blocks.damage
        ]
        self._blocks.damage.clear()
        found, self._damage = self._damage + found, []
        return found

    def _described(self, source: SourceInfo) -> list[Side]:
        """The source with the types of events and blocks that nobody knows, if there are any."""
        found: dict[str, Any] = {}
        if self._unknown:
            found["unknown_types"] = {
                str(number) if number >= 0 else "others": count
                for number, count in sorted(self._unknown.items())
            }
        if self._tables.unknown:
            found["unknown_blocks"] = {
                f"{kind:#x}" if kind else "others": count
                for kind, count in sorted(self._tables.unknown.items())
            }
        return [replace(source, details={**source.details, **found})] if found else []


def _starts_section(item: Item) -> bool:
    """Whether a block behind events says that another recording begins: unknown ones don't."""
    return isinstance(item, Section) or (isinstance(item, Table) and is_table(item.type))
