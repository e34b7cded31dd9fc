"""Packet captures of the newer kind (``.pcapng``), as Wireshark, Tracee and ptcpdump write them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from kcap.errors import BadInputError, KcapError, LimitError, NotACaptureError, TruncatedError
from kcap.model.classes import I64_MAX
from kcap.model.side import Loss
from kcap.packets.frames import FRAME_BYTES, I64, NONE, Frames, Mask
from kcap.packets.headers import View
from kcap.readers import pcapng_blocks as blocks
from kcap.readers import pcapng_times as times
from kcap.readers.pcap_source import WINDOW_BYTES, PacketSource
from kcap.readers.pcapng_options import LOST_MAX, Owned, Processes, owned, read
from kcap.readers.pcapng_parts import Part, Parts
from kcap.readers.scap_blocks import is_scap

_PACKETS: Final = (blocks.ENHANCED, blocks.PACKET, blocks.SIMPLE)
_TELLING: Final = (
    *(blocks.SECTION, blocks.INTERFACE, blocks.STATISTICS, blocks.PROCESS),
    *blocks.CUSTOM,
)
"""What says something of packets."""

_FIXED: Final = {blocks.ENHANCED: 28, blocks.PACKET: 28, blocks.SIMPLE: 12}
"""Where in a block the packet begins."""

_FIRST_BYTES: Final = 1 << 20
_SECTION_BYTES: Final = 28
_NAMED: Final = 3
_OURS: Final = "kcap "
"""What the name of kcap's own exports begins with."""


@dataclass(slots=True)
class _Section:
    """What a section has said of itself so far."""

    order: str = "<"
    application: str = ""
    interfaces: list[blocks.Interface] = field(default_factory=list)
    processes: Processes = field(default_factory=Processes)


class PcapngReader(PacketSource):
    """A source of the packets in a pcapng capture.

    Args:
        stream: The bytes from their start, plain or compressed; need not be seekable.
        file: Its name, as the user gave it.
        lenient: Go on past damage with the next block that can be found.

    Example:
        >>> with open("dns.pcapng", "rb") as stream:  # doctest: +SKIP
        ...     print(sum(batch.rows for batch in PcapngReader(stream, "dns.pcapng").batches()))
        2
    """

    name = "pcapng"
    reads = "packet captures of Wireshark, Tracee, ptcpdump (.pcapng); also gzip or zstd"

    @staticmethod
    def sniff(head: bytes) -> bool:
        """Whether an input looks like pcapng.

        Args:
            head: Its first bytes, decompressed.

        Returns:
            True where it starts with a section, and not one of sysdig's, which is framed alike.
        """
        return blocks.begins(head) and not is_scap(head)

    def _begin(self) -> Mapping[str, Any]:
        window = self._window
        self._section = _Section()
        self._names: dict[str, int] = {}
        self._dropped: dict[int, int] = {}
        self._skipped: list[str] = []
        self._skips = self._lost = 0
        while not window.fill(_SECTION_BYTES) and not window.ended:
            pass
        data = window.data
        if len(data) < _SECTION_BYTES:
            return {}
        order = blocks.order(data)
        if order is None:
            raise NotACaptureError("no packet capture", file=self._file, offset=0)
        size = int.from_bytes(data[4:8], "big" if order == ">" else "little")
        window.fill(min(size, _FIRST_BYTES))
        try:
            return blocks.section(window.data[8 : max(size - 4, 8)], order)
        except blocks.BadBlockError as error:
            raise NotACaptureError(str(error), file=self._file, offset=0) from error

    def _frames(self) -> Iterator[Frames]:
        window = self._window
        wanted = WINDOW_BYTES
        while True:
            window.fill(wanted)
            self._stop = 0
            self._bad = ""
            self._raw = np.frombuffer(window.data, np.uint8)
            self._view = View(self._raw)
            self._parts = Parts(self._raw)
            failure: KcapError | None = None
            try:
                self._walk(window.data)
            except KcapError as error:
                failure = error
            frames = self._parts.joined([*self._names])
            if frames is not None:
                yield frames
            if failure is not None:
                self._account()
                raise failure
            start, wanted = window.offset + self._stop, WINDOW_BYTES
            window.drop(self._stop)
            if self._bad:
                self._past(self._bad, start)
            elif window.ended:
                if not window.data:
                    break
                self._end()
            elif len(window.data) >= WINDOW_BYTES:
                wanted = len(window.data) + WINDOW_BYTES
        self._account()

    def _walk(self, data: bytes) -> None:
        """Take whole blocks, up to the first that is bad."""
        self._run: list[tuple[int, int]] = []
        at, end = 0, len(data)
        pair, one = self._unpackers()
        # Each says where the next begins, so this is the one thing that has to go step by step.
        while at + blocks.EDGE_BYTES <= end:
            kind, size = pair(data, at)
            bad = ""
            if kind == blocks.SECTION:
                order = blocks.order(data[at : at + blocks.EDGE_BYTES])
                if order is None:
                    bad = "a section without its magic number"
                else:
                    size = struct.unpack_from(f"{order}I", data, at + 4)[0]
                    one = struct.Struct(f"{order}I").unpack_from
            following = at + size
            if bad:
                pass
            elif size < blocks.EDGE_BYTES or size & 3 or size > blocks.BLOCK_BYTES:
                bad = f"a block of {size} bytes"
            elif following > end:
                break
            elif one(data, following - 4)[0] != size:
                bad = "a block whose two lengths differ"
            if bad:
                # What is behind it is sought here first: to begin a window anew takes long.
                following = self._next(at) if self._lenient else 0
                pair, one = self._unpackers()
                if not following:
                    self._bad = bad
                    break
            elif kind in _PACKETS:
                self._run.append((kind, at))
            elif kind in _TELLING:
                self._describe(data, at, kind, size)
                pair, one = self._unpackers()
            at = following
        self._flush()
        self._stop = at

    def _unpackers(self) -> tuple[Any, Any]:
        order = self._section.order
        return struct.Struct(f"{order}II").unpack_from, struct.Struct(f"{order}I").unpack_from

    def _describe(self, data: bytes, at: int, kind: int, size: int) -> None:
        """Take in what is no packet; the packets before it don't know of it."""
        section, body = self._section, data[at + 8 : at + size - 4]
        try:
            if kind == blocks.SECTION:
                order = blocks.order(data[at : at + blocks.EDGE_BYTES]) or "<"
                said = blocks.section(body, order)
                self._flush()
                self._account()
                self._section = _Section(order, said.get("application", ""))
            elif kind == blocks.INTERFACE:
                self._interface(blocks.interface(body, section.order), at)
            elif kind == blocks.STATISTICS:
                number, dropped = blocks.statistics(body, section.order)
                # Of an interface each says how many there were so far.
                if number < len(section.interfaces) and dropped < LOST_MAX:
                    self._dropped[number] = max(self._dropped.get(number, 0), dropped)
            elif kind == blocks.PROCESS:
                process = blocks.process(body, section.order, darwin=True)
                self._flush()
                section.processes.add(process, numbered=True)
            else:
                wireshark = blocks.custom(body, section.order)
                if wireshark is not None:
                    self._flush()
                    section.processes.add(wireshark, numbered=False)
        except blocks.BadBlockError as error:
            self._flush()
            self._skip(str(error), self._window.offset + at)
            # Those that follow have their numbers all the same.
            if kind == blocks.INTERFACE:
                self._interface(blocks.UNKNOWN, at)
            elif kind == blocks.PROCESS:
                section.processes.add(blocks.Process(NONE, {}, {}), numbered=True)

    def _interface(self, interface: blocks.Interface, at: int) -> None:
        """Take down an interface of the section."""
        self._flush()
        known = self._section.interfaces
        fresh = interface.name != "" and interface.name not in self._names
        if len(known) >= blocks.INTERFACES or (fresh and len(self._names) >= blocks.INTERFACES):
            raise LimitError(
                "too many interfaces",
                file=self._file,
                offset=self._window.offset + at,
                expected=f"at most {blocks.INTERFACES} in a section, and of so many names",
            )
        known.append(interface)
        if fresh:
            self._names[interface.name] = len(self._names)

    def _flush(self) -> None:
        """Read the packets since the last description; a bad one ends them, or is left out."""
        if not self._run:
            return
        run, self._run = np.array(self._run, np.int64), []
        every = []
        wrong: list[int] = []
        for kind in np.unique(run[:, 0]).tolist():
            at = run[run[:, 0] == kind, 1]
            numbers = self._numbers(kind, at)
            sound = self._sound(kind, numbers)
            every.append((kind, at, numbers, sound))
            wrong += at[~sound].tolist()
        first = min(wrong, default=0)
        for kind, at, numbers, sound in every:
            kept = sound & (at < first) if wrong and not self._lenient else sound
            if kept.any():
                part = self._part(kind, at[kept], {n: c[kept] for n, c in numbers.items()})
                self._parts.add(part)
        if wrong:
            why = "a packet that does not fit its block, or of no interface"
            self._skip(why, self._window.offset + first)
            self._skips += len(wrong) - 1

    def _numbers(self, kind: int, at: I64) -> dict[str, I64]:
        """The numbers of packets of one kind of block."""
        section, view = self._section, self._view
        numbers = {name: view.read(f"{section.order}u4", at + 4 * i) for i, name in _LAYOUT[kind]}
        number = numbers.setdefault("interface", np.zeros(len(at), np.int64))
        if kind == blocks.PACKET:
            numbers["interface"] = number & 0xFFFF if section.order == "<" else number >> 16
        room = numbers["size"] - _FIXED[kind] - 4
        captured = numbers.setdefault("captured", np.minimum(numbers["length"], room))
        if kind == blocks.SIMPLE and section.interfaces and section.interfaces[0].snap_bytes:
            numbers["captured"] = np.minimum(captured, section.interfaces[0].snap_bytes)
        return numbers

    def _sound(self, kind: int, numbers: Mapping[str, I64]) -> Mask:
        """Which packets are of an interface, and fit their blocks."""
        captured, room = numbers["captured"], numbers["size"] - _FIXED[kind] - 4
        sound = (numbers["interface"] < len(self._section.interfaces)) & (captured >= 0)
        sound &= (captured <= room) & (captured <= FRAME_BYTES)
        return sound

    def _part(self, kind: int, at: I64, numbers: Mapping[str, I64]) -> Part:
        section = self._section
        captured = numbers["captured"]
        offsets = at + _FIXED[kind]
        ts_ns, timed = np.zeros(len(at), np.int64), np.zeros(len(at), np.bool_)
        direction = packet_id = None
        owners = Owned(None, [], None, [])
        if kind != blocks.SIMPLE:
            ts_ns, timed = self._times(numbers["interface"], numbers)
            behind = offsets + (captured + 3 & ~3)
            stops = at + numbers["size"] - 4
            said = read(self._raw, self._view, behind, stops, section.order)
            self._lost += said.dropped
            escaped = section.application.startswith(_OURS)
            owners = owned(said, ts_ns, section.processes, escaped=escaped)
            direction, packet_id = said.direction, said.packet_id
        used, place = np.unique(numbers["interface"], return_inverse=True)
        known = [section.interfaces[number] for number in used.tolist()]
        names = [self._names[one.name] if one.name else NONE for one in known]
        interface = np.array(names, np.int32)[place.reshape(-1)]
        if owners.seen_at is not None:
            at_it = np.array([self._parts.place(name, self._names) for name in owners.places])
            interface = np.where(owners.seen_at >= 0, at_it[owners.seen_at], interface)
        return Part(
            offsets=offsets,
            captured=captured,
            length=np.maximum(numbers["length"], captured),
            link_type=np.array([one.link_type for one in known], np.uint16)[place.reshape(-1)],
            ts_ns=ts_ns,
            timed=timed,
            interface=interface.astype(np.int32),
            direction=direction,
            packet_id=packet_id,
            owned=owners,
        )

    def _times(self, number: I64, numbers: Mapping[str, I64]) -> tuple[I64, Mask]:
        """When packets were seen, by the clocks of their interfaces."""
        ts_ns, timed = np.zeros(len(number), np.int64), np.zeros(len(number), np.bool_)
        for which in np.unique(number).tolist():
            rows = number == which
            interface = self._section.interfaces[which]
            if interface.resolution < 0:
                continue
            units = numbers["high"][rows].astype(np.uint64) << np.uint64(32)
            units |= numbers["low"][rows].astype(np.uint64)
            ts_ns[rows], timed[rows] = times.to_ns(units, interface.resolution, interface.offset_s)
        return ts_ns, timed

    def _skip(self, why: str, place: int) -> None:
        """Count a block that can't be used, or refuse to go on."""
        if not self._lenient:
            raise self._damage(why, place)
        self._skips += 1
        if len(self._skipped) < _NAMED:
            self._skipped.append(f"{why} at byte {place}")

    def _damage(self, why: str, place: int) -> KcapError:
        return BadInputError(
            f"{why}: this is damaged",
            file=self._file,
            offset=place,
            hint="--lenient goes on with the next packet that can be found",
        )

    def _account(self) -> None:
        """Take down what was lost up to here."""
        dropped, self._dropped = sum(self._dropped.values()), {}
        lost = min(max(dropped, self._lost), I64_MAX)
        self._lost = 0
        if lost:
            self.losses.append(Loss("lost", lost, "packets that the capture says it dropped"))
        if unkept := self._section.processes.unkept:
            self._section.processes.unkept = 0
            reason = "descriptions of processes that are too many, or too long"
            self.losses.append(Loss("skipped", unkept, reason))
        if self._skips:
            self.losses.append(Loss("skipped", self._skips, "; ".join(self._skipped)))
        self._skips, self._skipped = 0, []

    def _end(self) -> None:
        """Deal with what is left at the end: less than a block, or damage that looks so."""
        window = self._window
        if self._lenient and self._found():
            return
        self._account()
        raise TruncatedError(
            "the last block is not complete", file=self._file, offset=window.offset
        )

    def _past(self, what: str, start: int) -> None:
        """Go on behind damage, or refuse to."""
        window = self._window
        if not self._lenient:
            raise self._damage(what, start)
        while not self._found():
            if window.ended:
                self.losses.append(
                    Loss("damaged", None, f"{what} at byte {start}, and no block behind it")
                )
                window.drop(len(window.data))
                return
            window.drop(max(len(window.data) - blocks.EDGE_BYTES, 1))
            window.fill(WINDOW_BYTES)

    def _next(self, at: int) -> int:
        """Where in the window a block begins behind damage; 0 where none does."""
        found = blocks.seek(self._window.data, self._view, at, self._section.order)
        if found:
            self._gap(at, found, "blocks")
        return found

    def _found(self) -> bool:
        """Find a block behind the first byte of the window, and begin there."""
        window = self._window
        self._view = View(np.frombuffer(window.data, np.uint8))
        at = self._next(0)
        window.drop(at)
        return at > 0


_LAYOUT: Final = {
    blocks.ENHANCED: [
        *enumerate(("size", "interface", "high", "low", "captured", "length"), start=1)
    ],
    blocks.PACKET: [
        *enumerate(("size", "interface", "high", "low", "captured", "length"), start=1)
    ],
    blocks.SIMPLE: [*enumerate(("size", "length"), start=1)],
}
"""The words of a block, by their number."""
