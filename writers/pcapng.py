"""Packets as pcapng: link type RAW, times of ns, and whose each packet is.

The owner is told twice: as option 8 (process and thread id, which Wireshark reads) and as a
comment in lines that people and ptcpdump's readers understand.

All packets of a link type have one interface, that of the first of them, and the others' names
stand in comments: libpcap, so tcpdump, refuses a second interface of type RAW as one of another
type, and whatever else differs between interfaces.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import kcap
from kcap.packets.comments import comment
from kcap.packets.decode import pieces
from kcap.packets.frames import I64, NONE, Direction, Frames, LinkType, Owner
from kcap.writers.pcap import fixed, joined
from kcap.writers.pcap_sink import PacketFile

_SECTION: Final = 0x0A0D0D0A
_MAGIC: Final = 0x1A2B3C4D
_INTERFACE: Final = 1
_ENHANCED: Final = 6
_HEADER_WORDS: Final = 7
_NS: Final = 9
_COMMENT: Final = 1
_FLAGS: Final = 2
_PACKET_ID: Final = 5
_THREAD: Final = 8
_OPTION_BYTES: Final = (1 << 16) - 4
_ID_MAX: Final = (1 << 32) - 1
_NAME_BYTES: Final = 255
_AS_SAID: Final = -2
"""In place of an interface: that of the packet's block."""


def option(code: int, value: bytes) -> bytes:
    """An option of a block.

    Args:
        code: Its number.
        value: Its value; one that is too long is cut where a character ends.

    Returns:
        Its bytes.
    """
    if len(value) > _OPTION_BYTES:
        value = value[:_OPTION_BYTES].decode("utf-8", "ignore").encode()
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def block(kind: int, body: bytes) -> bytes:
    """A block.

    Args:
        kind: Its type.
        body: What is between its lengths.

    Returns:
        Its bytes.
    """
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


class PcapngBytes:
    """Makes the bytes of one capture."""

    def __init__(self) -> None:
        self._interfaces: dict[int, tuple[int, str]] = {}
        """By link type: the number of its interface, and the name that a reader finds there."""
        self.cut = 0
        """Packets with comments that are longer than pcapng can hold."""

    def head(self) -> bytes:
        """What stands before the first packet."""
        application = option(4, f"kcap {kcap.__version__}".encode()) + option(0, b"")
        return block(_SECTION, struct.pack("<IHHq", _MAGIC, 1, 0, -1) + application)

    def body(self, frames: Frames) -> bytes:
        """Packets, and before them the interfaces that are new.

        Args:
            frames: The next ones.

        Returns:
            Their blocks.
        """
        number, elsewhere, described = self._numbers(frames)
        ends = [*list(described)[1:], len(frames)] if described else [len(frames)]
        starts = list(described) if described else [0]
        if starts[0] > 0:
            starts, ends = [0, *starts], [starts[0], *ends]
        parts = []
        # A new interface stands just before its first packet, wherever the stream is cut.
        for start, end in zip(starts, ends, strict=True):
            part = np.arange(start, end)
            parts.append(described.get(start, b""))
            parts.append(self._blocks(frames.take(part), number[part], elsewhere[part]))
        return b"".join(parts)

    def tail(self) -> bytes:
        """What stands behind the last packet; without any an interface: libpcap wants one."""
        return b"" if self._interfaces else _described(LinkType.RAW, b"")

    def _blocks(self, frames: Frames, number: I64, elsewhere: I64) -> bytes:
        """The blocks of packets of interfaces that are known."""
        count = len(frames)
        ts = frames.ts_ns if frames.timed is None else np.where(frames.timed, frames.ts_ns, 0)
        ts = np.maximum(ts, 0)
        options = self._options(frames, elsewhere)
        pads = -frames.captured.astype(np.int64) % 4
        behind = np.array([len(o.as_py()) for o in options.dictionary] or [0], np.int64)
        ids, width = self._ids(frames)
        size = 32 + frames.captured + pads + width + behind[np.asarray(options.indices)]
        header = np.empty((count, _HEADER_WORDS), "<u4")
        header[:, 0], header[:, 1], header[:, 2] = _ENHANCED, size, number
        header[:, 3], header[:, 4] = ts >> 32, ts & 0xFFFFFFFF
        header[:, 5], header[:, 6] = frames.captured, frames.length
        # What differs from packet to packet stands before what many have in common.
        return joined(
            [
                fixed(header),
                pieces(frames.data, frames.offsets, frames.captured.astype(np.int64)),
                pa.array([bytes(n) for n in range(4)], pa.binary()).take(pa.array(pads)),
                ids,
                options.dictionary.take(options.indices),
                fixed(size.astype("<u4").reshape(-1, 1)),
            ]
        )

    def _numbers(self, frames: Frames) -> tuple[I64, I64, dict[int, bytes]]:
        """The interface of each frame, what has to be said of it, and blocks of new ones.

        Second is the frame's own interface where it is not the one of its block, else `_AS_SAID`;
        third the block of a new one by its first frame.
        """
        none = np.full(len(frames), NONE, np.int64)
        which = none if frames.interface is None else frames.interface.astype(np.int64)
        kinds, first = np.unique(frames.link_type, return_index=True)
        described: dict[int, bytes] = {}
        numbers, elsewhere = none.copy(), none.copy()
        for number in np.argsort(first).tolist():
            kind, place = int(kinds[number]), int(first[number])
            if kind not in self._interfaces:
                name = _named(frames, int(which[place])).encode()[:_NAME_BYTES]
                read = name.rstrip(b"\0").decode("utf-8", "backslashreplace")
                self._interfaces[kind] = len(self._interfaces), read
                described[place] = _described(kind, name)
            mine = frames.link_type == kind
            numbers[mine], read = self._interfaces[kind]
            alike = np.array([name == read for name in (*frames.interfaces, "")], np.bool_)[which]
            elsewhere[mine] = np.where(alike, _AS_SAID, which)[mine]
        return numbers, elsewhere, described

    def _ids(self, frames: Frames) -> tuple[pa.Array, I64]:
        """The options with the direction and the packet's id, and how long they are."""
        words = np.zeros((len(frames), 5), "<u4")
        words[:, 0] = _FLAGS | 4 << 16
        words[:, 1] = Direction.UNKNOWN if frames.direction is None else frames.direction
        given = np.full(len(frames), NONE) if frames.packet_id is None else frames.packet_id
        words[:, 2] = _PACKET_ID | 8 << 16
        words[:, 3], words[:, 4] = given & 0xFFFFFFFF, given >> 32 & 0xFFFFFFFF
        known = given >= 0
        if known.all():
            return fixed(words), np.full(len(frames), 20)
        both = pc.if_else(pa.array(known), fixed(words), fixed(words[:, :2]))
        return both, np.where(known, 20, 8)

    def _options(self, frames: Frames, elsewhere: I64) -> pa.DictionaryArray:
        """The options that tell whose packets they are, each different one once."""
        none = np.full(len(frames), NONE, np.int64)
        owner = none if frames.owner is None else frames.owner
        words = none if frames.comment is None else frames.comment
        rows, codes = np.unique(np.stack([owner, words, elsewhere]), axis=1, return_inverse=True)
        told, cut = [], []
        for of, text, where in rows.T.tolist():
            made, whole = _told(
                frames.owners[of] if of >= 0 else None,
                frames.comments[text] if text >= 0 else "",
                None if where == _AS_SAID else _named(frames, where),
            )
            told.append(made)
            cut.append(not whole)
        self.cut += int(np.array(cut, np.bool_)[codes.reshape(-1)].sum())
        entries = pa.array(told, pa.binary())
        indices = pa.array(codes.reshape(-1).astype(np.int32))
        return pa.DictionaryArray.from_arrays(indices, entries, safe=False)


def _described(link_type: int, name: bytes) -> bytes:
    """The block of an interface."""
    said = (option(2, name) if name else b"") + option(9, bytes([_NS])) + option(0, b"")
    return block(_INTERFACE, struct.pack("<HHI", link_type, 0, 0) + said)


def _named(frames: Frames, place: int) -> str:
    return frames.interfaces[place] if place >= 0 else ""


def _told(owner: Owner | None, text: str, interface: str | None) -> tuple[bytes, bool]:
    """The last options of a packet, and whether they say everything."""
    found = b""
    if owner is not None:
        pid, tid = owner.pid, owner.tid
        if pid is not None and 0 <= pid <= _ID_MAX:
            thread = tid if tid is not None and 0 < tid <= _ID_MAX else 0
            found += option(_THREAD, struct.pack("<II", pid, thread))
    said, more = comment(owner, interface).encode(), text.encode()
    if said or more:
        # (An empty one says that the next is not ours.)
        found += option(_COMMENT, said)
    if more:
        found += option(_COMMENT, more)
    return found + option(0, b""), max(len(said), len(more)) <= _OPTION_BYTES


UNTIMED: Final = "packets without a time, or of one before 1970, have that of 1970"


def untimed(frames: Frames) -> int:
    """How many frames have no time that pcapng can hold.

    Args:
        frames: The frames.

    Returns:
        The number.
    """
    sound = frames.ts_ns >= 0
    return int((~(sound if frames.timed is None else sound & frames.timed)).sum())


class Pcapng(PacketFile):
    """A sink that writes packets into one capture.

    Args:
        stream: Takes the bytes.
        beside: See `kcap.writers.pcap_sink.PacketFile`.

    Example:
        >>> sink = Pcapng(stream)
        >>> sink.write(batch)
        >>> sink.close()
    """

    UNTIMED = UNTIMED

    def contents(self, link_type: int) -> PcapngBytes:
        """See `PacketFile.contents`."""
        return PcapngBytes()

    def untimed(self, frames: Frames) -> int:
        """See `PacketFile.untimed`."""
        return untimed(frames)
