"""Packet captures of the newer kind (``.pcapng``), as Wireshark, Tracee and ptcpdump write them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from kcap.errors import BadInputError, KcapError, LimitError, NotACaptureError, TruncatedError
from kcap.model.side import Loss
from kcap.packets.frames import FRAME_BYTES, I64, NONE, Bytes, Frames, Mask
from kcap.packets.headers import View
from kcap.readers import pcapng_blocks as blocks
from kcap.readers import pcapng_times as times
from kcap.readers.pcap_source import WINDOW_BYTES, PacketSource
from kcap.readers.pcapng_options import Processes, owned, read
from kcap.readers.scap_blocks import is_scap

_PACKETS: Final = (blocks.ENHANCED, blocks.PACKET, blocks.SIMPLE)
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
            yield from self._walk(window.data)
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

    def _walk(self, data: bytes) -> Iterator[Frames]:
        """The frames of whole blocks, up to the first that is bad."""
        starts: list[int] = []
        run = at = 0
        end = len(data)
        pair, one = self._unpackers()
        # Each says where the next begins, so this is the one thing that has to go step by step.
        while at + blocks.EDGE_BYTES <= end:
            kind, size = pair(data, at)
            if kind == blocks.SECTION:
                order = blocks.order(data[at : at + blocks.EDGE_BYTES])
                if order is None:
                    self._bad = "a section without its magic number"
                    break
                size = struct.unpack_from(f"{order}I", data, at + 4)[0]
                one = struct.Struct(f"{order}I").unpack_from
            if size < blocks.EDGE_BYTES or size & 3 or size > blocks.BLOCK_BYTES:
                self._bad = f"a block of {size} bytes"
                break
            following = at + size
            if following > end:
                break
            if one(data, following - 4)[0] != size:
                self._bad = "a block whose two lengths differ"
                break
            if kind != run and starts:
                yield from self._packets(data, run, starts)
                starts = []
            if kind in _PACKETS:
                run = kind
                starts.append(at)
            else:
                run = 0
                self._describe(data, at, kind, size)
                pair, one = self._unpackers()
            at = following
        if starts:
            yield from self._packets(data, run, starts)
        self._stop = at

    def _unpackers(self) -> tuple[Any, Any]:
        order = self._section.order
        return struct.Struct(f"{order}II").unpack_from, struct.Struct(f"{order}I").unpack_from

    def _describe(self, data: bytes, at: int, kind: int, size: int) -> None:
        """Take in what is no packet."""
        section, body = self._section, data[at + 8 : at + size - 4]
        try:
            if kind == blocks.SECTION:
                order = blocks.order(data[at : at + blocks.EDGE_BYTES]) or "<"
                said = blocks.section(body, order)
                self._account()
                self._section = _Section(order, said.get("application", ""))
            elif kind == blocks.INTERFACE:
                if len(section.interfaces) >= blocks.INTERFACES:
                    raise LimitError(
                        "too many interfaces",
                        file=self._file,
                        offset=self._window.offset + at,
                        expected=f"at most {blocks.INTERFACES} in a section",
                    )
                section.interfaces.append(blocks.interface(body, section.order))
            elif kind == blocks.STATISTICS:
                number, dropped = blocks.statistics(body, section.order)
                # Of an interface each says how many there were so far.
                self._dropped[number] = max(self._dropped.get(number, 0), dropped)
            elif kind == blocks.PROCESS:
                section.processes.add(
                    blocks.process(body, section.order, darwin=True), numbered=True
                )
            elif kind in blocks.CUSTOM:
                process = blocks.custom(body, section.order)
                if process is not None:
                    section.processes.add(process, numbered=False)
        except blocks.BadBlockError as error:
            self._skip(str(error), self._window.offset + at)
            if kind == blocks.INTERFACE:
                # Those that follow have their numbers all the same.
                section.interfaces.append(blocks.Interface(0xFFFF, 0, "", 6, 0))

    def _packets(self, data: bytes, kind: int, starts: list[int]) -> Iterator[Frames]:
        """The frames of packets of one kind of block; a bad one ends them, or is left out."""
        section = self._section
        raw = np.frombuffer(data, np.uint8)
        view = View(raw)
        at = np.array(starts, np.int64)
        numbers = {name: view.read(f"{section.order}u4", at + 4 * i) for i, name in _LAYOUT[kind]}
        number = numbers.get("interface", np.zeros(len(at), np.int64))
        if kind == blocks.PACKET:
            number = number & 0xFFFF if section.order == "<" else number >> 16
        room = numbers["size"] - _FIXED[kind] - 4
        captured = numbers.get("captured", np.minimum(numbers["length"], room))
        if kind == blocks.SIMPLE and section.interfaces and section.interfaces[0].snap_bytes:
            captured = np.minimum(captured, section.interfaces[0].snap_bytes)
        sound = (number < len(section.interfaces)) & (captured >= 0)
        sound &= (captured <= room) & (captured <= FRAME_BYTES)
        failure = None
        if not sound.all():
            first = int(np.flatnonzero(~sound)[0])
            place = self._window.offset + starts[first]
            if self._lenient:
                self._skips += int((~sound).sum()) - 1
                self._skip("a packet that does not fit its block, or of no interface", place)
            else:
                failure = self._damage(
                    "a packet that does not fit its block, or of no interface", place
                )
                sound[first:] = False
        if sound.any():
            kept = {name: values[sound] for name, values in numbers.items()}
            yield self._made(raw, kind, at[sound], number[sound], captured[sound], kept)
        if failure is not None:
            raise failure

    def _made(
        self,
        raw: Bytes,
        kind: int,
        at: I64,
        number: I64,
        captured: I64,
        numbers: Mapping[str, I64],
    ) -> Frames:
        section = self._section
        known = section.interfaces
        offsets = at + _FIXED[kind]
        ts_ns, timed = np.zeros(len(at), np.int64), np.zeros(len(at), np.bool_)
        if kind != blocks.SIMPLE:
            ts_ns, timed = self._times(number, numbers)
        columns: dict[str, Any] = {}
        if kind != blocks.SIMPLE:
            behind = offsets + (captured + 3 & ~3)
            said = read(raw, behind, at + numbers["size"] - 4, section.order)
            self._lost += said.dropped
            escaped = section.application.startswith(_OURS)
            found = owned(said, ts_ns, section.processes, escaped=escaped)
            columns = {
                "direction": said.direction,
                "packet_id": said.packet_id,
                **found._asdict(),
            }
        names = [
            self._names.setdefault(i.name, len(self._names)) if i.name else NONE for i in known
        ]
        return Frames(
            data=raw,
            offsets=offsets,
            captured=captured.astype(np.int32),
            length=np.maximum(numbers["length"], captured),
            ts_ns=ts_ns,
            link_type=np.array([i.link_type for i in known], np.uint16)[number],
            timed=None if timed.all() else timed,
            interface=np.array(names, np.int32)[number] if self._names else None,
            interfaces=list(self._names),
            **columns,
        )

    def _times(self, number: I64, numbers: Mapping[str, I64]) -> tuple[I64, Mask]:
        """When packets were seen, by the clocks of their interfaces."""
        ts_ns, timed = np.zeros(len(number), np.int64), np.zeros(len(number), np.bool_)
        for which in np.unique(number).tolist():
            rows = number == which
            interface = self._section.interfaces[which]
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
        lost = max(dropped, self._lost)
        self._lost = 0
        if lost:
            self.losses.append(Loss("lost", lost, "packets that the capture says it dropped"))
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

    def _found(self) -> bool:
        """Find a block behind the first byte of the window, and begin there."""
        window = self._window
        at = blocks.seek(window.data, self._section.order)
        if not at:
            return False
        self.losses.append(
            Loss("damaged", None, f"{at} bytes at byte {window.offset} are no blocks")
        )
        window.drop(at)
        return True


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
