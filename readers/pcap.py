"""Packet captures of the classic kind (``.pcap``), as tcpdump and libpcap write them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import construct
import numpy as np

from kcap.errors import BadInputError, NotACaptureError, TruncatedError
from kcap.model.side import Loss
from kcap.packets.frames import FRAME_BYTES, I64, Bytes, Frames, Mask
from kcap.readers.pcap_source import WINDOW_BYTES, PacketSource

HEADER_BYTES: Final = 24
RECORD_BYTES: Final = 16

_ORDERS: Final = {
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
"""By magic: the byte order, and ns of a fraction's unit."""

_SECOND_NS: Final = 10**9
_NEAR_S: Final = 30 * 86400
"""How far apart neighbours may be, where records are sought behind damage."""

_SOUGHT: Final = 512
"""Places where a record is sought there at first."""

_CHAIN: Final = 3
"""Records that must follow one another there, or reach the end."""


def _header(order: str) -> construct.Struct:
    u16, u32 = (
        (construct.Int16ub, construct.Int32ub)
        if order == ">"
        else (construct.Int16ul, construct.Int32ul)
    )
    return construct.Struct(
        "magic" / construct.Bytes(4),
        "version_major" / u16,
        "version_minor" / u16,
        "thiszone" / u32,
        "sigfigs" / u32,
        "snaplen" / u32,
        "linktype" / u32,
    )


_HEADERS: Final = {order: _header(order) for order in "<>"}


class PcapReader(PacketSource):
    """A source of the packets in a classic capture.

    Args:
        stream: The bytes from their start, plain or compressed; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past damage with the next record that can be found.

    Example:
        >>> with open("lo.pcap", "rb") as stream:  # doctest: +SKIP
        ...     print(sum(batch.rows for batch in PcapReader(stream, "lo.pcap").batches()))
        100
    """

    name = "pcap"
    reads = "packet captures of tcpdump and libpcap (.pcap), us and ns; also gzip or zstd"

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like a classic capture.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where it starts with one of the magic numbers.
        """
        return head[:4] in _ORDERS

    def _begin(self) -> Mapping[str, Any]:
        window = self._window
        while not window.fill(HEADER_BYTES) and not window.ended:
            pass
        if len(window.data) < HEADER_BYTES:
            self._order, self._unit_ns, self._link = "<", 1, 0
            return {}
        magic = window.data[:4]
        if magic not in _ORDERS:
            raise NotACaptureError("no packet capture", file=self._file, offset=0)
        self._order, self._unit_ns = _ORDERS[magic]
        header = _HEADERS[self._order].parse(window.data[:HEADER_BYTES])
        if header.version_major != 2:  # noqa: PLR2004
            raise NotACaptureError(
                f"a packet capture of version {header.version_major}.{header.version_minor}",
                file=self._file,
                offset=4,
                expected="version 2.4",
            )
        # What stands above says how long checksums at the end of frames are.
        self._link = header.linktype & 0xFFFF
        window.drop(HEADER_BYTES)
        self._walk = struct.Struct(f"{self._order}I").unpack_from
        self._last_s = -1
        return {
            "link_type": self._link,
            "snap_bytes": header.snaplen,
            "resolution_ns": self._unit_ns,
            "version": f"{header.version_major}.{header.version_minor}",
        }

    def _frames(self) -> Iterator[Frames]:
        window = self._window
        if window.offset < HEADER_BYTES:
            raise TruncatedError("the header is not complete", file=self._file, offset=0)
        while True:
            window.fill(WINDOW_BYTES)
            starts, stop, bad = self._records(window.data)
            if starts:
                yield self._made(window.data, np.array(starts, np.int64))
            window.drop(stop)
            if bad:
                self._past(f"a record of {bad} captured bytes")
            elif window.ended:
                if not window.data:
                    return
                self._end()

    def _records(self, data: bytes) -> tuple[list[int], int, int]:
        """Where records start; where the last one ends; and the size of one that can't be."""
        starts: list[int] = []
        at, end, unpack = 0, len(data), self._walk
        # Each says where the next begins, so this is the one thing that has to go step by step.
        while at + RECORD_BYTES <= end:
            (size,) = unpack(data, at + 8)
            following = at + RECORD_BYTES + size
            if size > FRAME_BYTES:
                if starts:
                    (self._last_s,) = unpack(data, starts[-1])
                # What is behind it is sought here first: to begin a window anew takes long.
                following = self._next(at) if self._lenient else 0
                if not following:
                    return starts, at, size
            elif following > end:
                break
            else:
                starts.append(at)
            at = following
        return starts, at, 0

    def _made(self, data: bytes, starts: I64) -> Frames:
        raw = np.frombuffer(data, np.uint8)
        header = _fields(raw, starts, self._order)
        seconds, fraction = header[:, 0].astype(np.int64), header[:, 1].astype(np.int64)
        captured = header[:, 2].astype(np.int32)
        self._last_s = int(seconds[-1])
        return Frames(
            data=raw,
            offsets=starts + RECORD_BYTES,
            captured=captured,
            length=np.maximum(header[:, 3].astype(np.int64), captured),
            ts_ns=seconds * _SECOND_NS + fraction * self._unit_ns,
            link_type=np.full(len(starts), self._link, np.uint16),
        )

    def _end(self) -> None:
        """Deal with what is left at the end: less than a record, or damage that looks so."""
        window = self._window
        if self._lenient and len(window.data) > RECORD_BYTES and self._found():
            return
        raise TruncatedError(
            "the last packet is not complete", file=self._file, offset=window.offset
        )

    def _past(self, what: str) -> None:
        """Go on behind damage, or refuse to."""
        window = self._window
        if not self._lenient:
            raise BadInputError(
                f"{what}: this is damaged",
                file=self._file,
                offset=window.offset,
                expected=f"at most {FRAME_BYTES}",
                hint="--lenient goes on with the next packet that can be found",
            )
        start = window.offset
        while not self._found():
            if window.ended:
                self.losses.append(
                    Loss("damaged", None, f"{what} at byte {start}, and no packet behind it")
                )
                window.drop(len(window.data))
                return
            window.drop(max(len(window.data) - FRAME_BYTES, 1))
            window.fill(WINDOW_BYTES)

    def _found(self) -> bool:
        """Find a record behind the first byte of the window, and begin there."""
        window = self._window
        window.fill(WINDOW_BYTES)
        at = self._next(0)
        window.drop(at)
        return at > 0

    def _next(self, after: int) -> int:
        """Where in the window a record begins behind damage; 0 where none does."""
        raw = np.frombuffer(self._window.data, np.uint8)
        stop = len(raw) - RECORD_BYTES + 1
        start, step = after + 1, _SOUGHT
        while start < stop:
            # Damage is mostly short, and there may be much of it.
            places = np.arange(start, min(start + step, stop), dtype=np.int64)
            found = places[self._holds(raw, places)]
            if len(found):
                self._gap(after, int(found[0]), "packets")
                return int(found[0])
            start, step = start + step, step * 8
        return 0

    def _holds(self, raw: Bytes, places: I64) -> Mask:
        """From which places records follow one another."""
        sound = np.ones(len(places), np.bool_)
        at = places.copy()
        for _ in range(_CHAIN):
            # What is cut off here may go on behind the window.
            inside = at + RECORD_BYTES <= len(raw)
            sound &= inside | (at == len(raw)) | (not self._window.ended)
            rows = np.flatnonzero(sound & inside)
            header = _fields(raw, at[rows], self._order).astype(np.int64)
            sound[rows] &= self._plausible(header)
            at[rows] += RECORD_BYTES + header[:, 2]
        return sound

    def _plausible(self, header: I64) -> Mask:
        """Whether headers may be those of records."""
        sound: Mask = (header[:, 2] <= FRAME_BYTES) & (header[:, 3] >= header[:, 2])
        sound &= (header[:, 1] * self._unit_ns < _SECOND_NS) & (header[:, 3] <= FRAME_BYTES)
        sound &= header[:, 3] > 0
        if self._last_s >= 0:
            sound &= np.abs(header[:, 0] - self._last_s) <= _NEAR_S
        return sound


def _fields(raw: Bytes, starts: I64, order: str) -> Any:  # noqa: ANN401
    """The four numbers of record headers, a row each."""
    every = np.lib.stride_tricks.as_strided(
        raw[:RECORD_BYTES].view(f"V{RECORD_BYTES}"),
        (len(raw) - RECORD_BYTES + 1,),
        (1,),
        writeable=False,
    )
    return every[starts].view(f"{order}u4").reshape(-1, 4)
