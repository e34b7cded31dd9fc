"""What readers of packet captures have in common: frames in, batches of events out."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, ClassVar, Final

import numpy as np
import pyarrow as pa

from kcap import limits
from kcap.errors import KcapError, TruncatedError
from kcap.model.batch import EMPTY, Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, SourceInfo
from kcap.model.stream import StreamInfo
from kcap.packets import decode
from kcap.packets.frames import Frames
from kcap.packets.identity import PacketIds
from kcap.readers.pcap_window import Window

ORIGIN_BYTES: Final = 1 << 20
GAPS: Final = 100
"""Places of damage that are named, each by itself."""
WINDOW_BYTES: Final = 2 << 20
"""What is looked at together."""


class PacketSource(ABC):
    """A source of the packets in a file.

    Args:
        stream: The bytes from their start, plain or compressed; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past damage.
    """

    name: ClassVar[str]
    """Of the reader, and of the collector in its sources."""

    def __init__(self, stream: BinaryIO, file: str, *, lenient: bool = False) -> None:
        self._stream = stream
        self._file = file
        self._lenient = lenient
        self._window = Window(stream, file)
        self._ord = 0
        self.losses: list[Loss] = []
        """What has to be said before the next batch."""
        self._gaps = self._gap_bytes = 0
        """Places of damage that were passed over, and the bytes of those that are not named."""

    @abstractmethod
    def _begin(self) -> Mapping[str, Any]:
        """Read what stands before the first packet.

        Returns:
            Details of the source.
        """

    @abstractmethod
    def _frames(self) -> Iterator[Frames]:
        """The frames, once.

        Yields:
            Frames in the order of the file.

        Raises:
            TruncatedError: The input ends inside a record.
            BadInputError: There is damage, unless lenient.
        """

    @functools.cached_property
    def info(self) -> StreamInfo:
        """What is known before the first packet; reads the first MiB."""
        head = self._window.input.head(ORIGIN_BYTES)
        origin = hashlib.sha256(self.name.encode() + head).digest()[:16].hex()
        details = {"file": self._file, **self._begin()}
        source = SourceInfo(self.name, origin=origin, details=details)
        return StreamInfo(self._file, self.name, (source,))

    def batches(self) -> Iterator[Batch]:
        """The packets as events, once.

        Yields:
            Batches in the order of the file.

        Raises:
            NotACaptureError: It is no such capture.
            BadInputError: There is damage, unless lenient.
            DamagedError: Compressed data is damaged, unless lenient.
            KcapError: The stream cannot be read.
        """
        failure: KcapError | None = None
        source = self.info.sources[0]
        self._ids = PacketIds((source.origin or "").encode())
        yield EMPTY.with_before([source])
        try:
            for frames in self._frames():
                for at in range(0, len(frames), limits.CHUNK_ROWS):
                    yield self._batch(
                        frames.take(np.arange(at, min(len(frames), at + limits.CHUNK_ROWS))), source
                    )
        except TruncatedError as error:
            self._torn(error)
        except KcapError as error:
            failure = error
        ended = self._window.failure
        if ended is not None and failure is None:
            if isinstance(ended, TruncatedError):
                self._torn(ended)
            elif self._lenient:
                self.losses.append(Loss("damaged", None, _reason(ended)))
            else:
                failure = ended
        if self._gap_bytes:
            places = self._gaps - GAPS
            reason = f"{self._gap_bytes} bytes in {places} more places are no packets"
            self.losses.append(Loss("damaged", None, reason))
        yield EMPTY.with_before(self._sides(source))
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close the stream; may be called twice."""
        self._stream.close()

    def _gap(self, start: int, stop: int, what: str) -> None:
        """Take down damage that was passed over; where there is much of it, how much.

        Args:
            start: Where in the window it begins.
            stop: Where it ends.
            what: What was sought.
        """
        self._gaps += 1
        if self._gaps > GAPS:
            self._gap_bytes += stop - start
            return
        place = self._window.offset + start
        reason = f"{stop - start} bytes at byte {place} are no {what}"
        self.losses.append(Loss("damaged", None, reason))

    def _torn(self, error: TruncatedError) -> None:
        if not any(loss.kind == "torn" for loss in self.losses):
            self.losses.append(Loss("torn", None, _reason(error)))

    def _sides(self, source: SourceInfo) -> list[Loss]:
        sides = [
            Loss(
                loss.kind,
                loss.count,
                loss.reason,
                source.id,
                decode.EVENT if loss.kind == "lost" else None,
            )
            for loss in self.losses
        ]
        self.losses = []
        return sides

    def _batch(self, frames: Frames, source: SourceInfo) -> Batch:
        count = len(frames)
        columns = decode.columns(frames, self._ids)
        numbers = np.arange(self._ord, self._ord + count)
        columns["ord"] = Column(TypeClass.I64, pa.array(numbers))
        # As Wireshark numbers them.
        columns["seq"] = Column(TypeClass.I64, pa.array(numbers + 1))
        columns["origin"] = constant(TypeClass.STR, source.origin, count)
        columns["source"] = constant(TypeClass.STR, source.id, count)
        self._ord += count
        return Batch(count, columns, tuple(self._sides(source)))


def _reason(error: KcapError) -> str:
    return f"{error.what} at {error.place}" if error.place else error.what
