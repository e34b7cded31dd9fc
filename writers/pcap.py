"""Packets as a classic capture (``.pcap``): link type RAW and times of ns; no owners."""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kcap.packets.decode import pieces
from kcap.packets.frames import FRAME_BYTES, Bytes, Frames, LinkType
from kcap.writers.pcap_sink import PacketFile

_MAGIC_NS: Final = 0xA1B23C4D
_SECOND_NS: Final = 10**9
_SECONDS_MAX: Final = (1 << 32) - 1


class PcapBytes:
    """Makes the bytes of one capture.

    Args:
        link_type: That of every frame in it.
    """

    def __init__(self, link_type: int = LinkType.RAW) -> None:
        self._link_type = link_type
        self.cut = 0
        """See `kcap.writers.pcap_sink.Contents.cut`."""

    def head(self) -> bytes:
        """What stands before the first packet."""
        return struct.pack("<IHHiIII", _MAGIC_NS, 2, 4, 0, 0, FRAME_BYTES, self._link_type)

    def body(self, frames: Frames) -> bytes:
        """Packets.

        Args:
            frames: The next ones.

        Returns:
            Their records.
        """
        count = len(frames)
        header = np.empty((count, 4), "<u4")
        seconds = frames.ts_ns // _SECOND_NS
        sound = timed(frames)
        header[:, 0] = np.where(sound, seconds, 0)
        header[:, 1] = np.where(sound, frames.ts_ns - seconds * _SECOND_NS, 0)
        header[:, 2] = frames.captured
        header[:, 3] = frames.length
        return joined(
            [fixed(header), pieces(frames.data, frames.offsets, frames.captured.astype(np.int64))]
        )

    def tail(self) -> bytes:
        """What stands behind the last packet."""
        return b""


def timed(frames: Frames) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which frames have a time that a classic capture can hold.

    Args:
        frames: The frames.

    Returns:
        One verdict a frame.
    """
    sound = (frames.ts_ns >= 0) & (frames.ts_ns // _SECOND_NS <= _SECONDS_MAX)
    return sound if frames.timed is None else sound & frames.timed


def fixed(rows: np.ndarray[tuple[int, int], np.dtype[np.generic]]) -> pa.Array:
    """Rows of a table of numbers as binary values.

    Args:
        rows: The table.

    Returns:
        A binary array.
    """
    width = rows.itemsize * rows.shape[1]
    edges = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(width)
    data = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
    buffers = [None, pa.py_buffer(edges), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(rows), buffers)


def joined(columns: list[pa.Array]) -> bytes:
    """Binary columns, row after row, as one run of bytes.

    Args:
        columns: The columns, of equal length.

    Returns:
        The bytes.
    """
    if not len(columns[0]):
        return b""
    rows = pc.binary_join_element_wise(*columns, b"")
    _, edges, data = rows.buffers()
    ends = np.frombuffer(edges, np.int32)[rows.offset : rows.offset + len(rows) + 1]
    held: Bytes = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return held[int(ends[0]) : int(ends[-1])].tobytes()


class Pcap(PacketFile):
    """A sink that writes packets into one capture, without directions and owners.

    Args:
        stream: Takes the bytes.
        beside: See `kcap.writers.pcap_sink.PacketFile`.

    Example:
        >>> sink = Pcap(stream)
        >>> sink.write(batch)
        >>> sink.close()
    """

    UNTIMED = "times that a pcap can't hold are those of 1970"

    def contents(self, link_type: int) -> PcapBytes:
        """See `PacketFile.contents`."""
        return PcapBytes(link_type)

    def untimed(self, frames: Frames) -> int:
        """See `PacketFile.untimed`."""
        return int((~timed(frames)).sum())
