"""Arrow IPC files and streams whose columns carry kcap's names: what ``kcap export`` wrote.

Both forms are read from their start, message by message, so that a pipe will do and what ends
early is read up to there. Nothing is given to Arrow before its sizes were judged.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa

from kcap import limits
from kcap.errors import BadInputError, DamagedError, KcapError, TruncatedError
from kcap.model import arrow_sides
from kcap.model.arrow import from_arrow
from kcap.model.batch import EMPTY, Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.readers import arrow_messages as messages

_ORIGIN_BYTES: Final = 1 << 20


class ArrowReader:
    """A source of the events in an Arrow IPC file or stream.

    The columns' names say their classes, as in `kcap.model.arrow.from_arrow`. Events without
    ``origin`` and ``ord`` get both: they are another program's.

    Args:
        stream: The bytes from their start; need not be seekable.
        file: Its name, as the user gave it.
        lenient: End at damage as if the input ended there, and count it.

    Example:
        >>> with open("events.arrow", "rb") as stream:
        ...     print(sum(batch.rows for batch in ArrowReader(stream, "events.arrow").batches()))
        10534
    """

    name = "arrow"
    reads = "Arrow IPC files and streams with kcap's column names, as kcap export writes them"

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        self._stream = stream
        self._file = file
        self._lenient = lenient
        self._messages = messages.Messages(stream, file)
        self._ord = 0

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like Arrow IPC.

        Args:
            head: Its first bytes.

        Returns:
            True for both forms.
        """
        return messages.sniff(head)

    @functools.cached_property
    def info(self) -> StreamInfo:
        """What is known before the first event; reads the first MiB."""
        head = self._messages.head(_ORIGIN_BYTES)
        origin = hashlib.sha256(self.name.encode() + head).digest()[:16].hex()
        source = SourceInfo(self.name, origin=origin, details={"file": self._file})
        return StreamInfo(self._file, self.name, (source,))

    def batches(self) -> Iterator[Batch]:
        """The events, once.

        Yields:
            Batches as they were written, cut to at most 65,536 rows.

        Raises:
            BadInputError: A column or value is none of kcap's, unless lenient.
            DamagedError: The input is damaged, unless lenient.
            LimitError: A batch would take too much memory.
        """
        _ = self.info  # the first MiB, before the messages are read away
        try:
            yield from self._batches()
        except TruncatedError as error:
            yield EMPTY.with_before([Loss("torn", None, _reason(error))])
        except (BadInputError, DamagedError) as error:
            if not self._lenient:
                raise
            yield EMPTY.with_before([Loss("damaged", None, _reason(error))])

    def close(self) -> None:
        """Close the stream; may be called twice."""
        self._stream.close()

    def _batches(self) -> Iterator[Batch]:
        feed = _Feed(self._messages)
        reader = self._checked(lambda: pa.ipc.open_stream(feed))
        while True:
            try:
                found = self._checked(reader.read_next_batch_with_custom_metadata)
            except StopIteration:
                return
            table, metadata = found.batch, found.custom_metadata
            said = (metadata or {}).get(arrow_sides.KEY)
            before = self._checked(lambda said=said: arrow_sides.unpack(said)) if said else []
            self._checked(lambda table=table: table.validate(full=True))
            if not table.num_rows and before:
                yield EMPTY.with_before(before)
            for start in range(0, table.num_rows, limits.CHUNK_ROWS):
                part = table.slice(start, limits.CHUNK_ROWS)
                yield self._checked(
                    lambda part=part, before=before: self._identified(from_arrow(part, before))
                )
                before = []

    def _checked(self, step: Any) -> Any:  # noqa: ANN401  (what the step gives)
        """Run a step; its errors get the input's name and place."""
        try:
            return step()
        except KcapError as e:
            e.file = e.file or self._file
            e.offset = self._messages.offset if e.offset is None else e.offset
            raise
        except MemoryError as e:
            raise self._damaged("the batch needs too much memory") from e
        except (pa.ArrowException, OSError, ValueError, KeyError) as e:
            raise self._damaged(f"Arrow can't read it: {str(e).splitlines()[0]}") from e

    def _damaged(self, what: str) -> DamagedError:
        return DamagedError(what, file=self._file, offset=self._messages.offset)

    def _identified(self, batch: Batch) -> Batch:
        """The batch with an origin and positions, where it has neither."""
        first, self._ord = self._ord, self._ord + batch.rows
        if "origin" in batch.columns or "ord" in batch.columns:
            return batch
        source = self.info.sources[0]
        before: list[Side] = list(batch.before)
        made = {
            "ord": Column(TypeClass.I64, pa.array(np.arange(first, first + batch.rows))),
            "origin": constant(TypeClass.STR, source.origin, batch.rows),
        }
        if "source" not in batch.columns:
            made["source"] = constant(TypeClass.STR, source.id, batch.rows)
            before += [source] if not first else []
        return batch.adding(made).with_before(before)


class _Feed(io.RawIOBase):
    """Messages that were judged, as the stream that Arrow reads them from."""

    def __init__(self, found: messages.Messages) -> None:
        super().__init__()
        self._found = found
        self._message = b""
        self._at = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._at == len(self._message):
            self._message, self._at = self._found.next(), 0
        stop = len(self._message) if size < 0 else self._at + size
        part = self._message[self._at : stop]
        self._at += len(part)
        return part


def _reason(error: KcapError) -> str:
    return f"{error.what} at {error.place}" if error.place else error.what
