"""What the headers of frames say, for all frames of a batch at once.

Nothing here believes a length: a field is read only where its bytes were captured and lie inside
what the header before it claims, and is marked as absent otherwise. A port is never guessed from
a fragment that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.packets.frames import I64, Bytes, Frames, LinkType, Mask

TCP: Final = 6
UDP: Final = 17
ICMP: Final = 1
ICMPV6: Final = 58

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_IPV6: Final = 0x86DD
_TAGS: Final = (0x8100, 0x88A8, 0x9100, 0x9200)
"""Of VLANs: four bytes stand between, the last two of them the type of what follows."""
_TAGS_MAX: Final = 4

_FAMILY_IPV4: Final = 2
_FAMILIES_IPV6: Final = (10, 23, 24, 28, 30)
"""AF_INET6 of Linux, Windows, NetBSD, FreeBSD and Darwin."""

_EXTENSIONS: Final = (0, 43, 51, 60, 135, 139, 140)
"""IPv6 headers that say how long they are; 44, the fragment's, is always 8 bytes."""
_FRAGMENT: Final = 44
_AUTHENTICATION: Final = 51
_EXTENSIONS_MAX: Final = 16

_RAW: Final = (LinkType.RAW, LinkType.RAW_BSD, LinkType.RAW_OPENBSD)
_NULL: Final = (LinkType.NULL, LinkType.LOOP)
_MARGIN: Final = 8
_MOST: Final = 1 << 62


class View:
    """Numbers at any place of a buffer, for many frames at once.

    Args:
        data: The buffer.
    """

    def __init__(self, data: Bytes) -> None:
        # Places beyond the end are read from zeros; who asks looks only at what is there.
        self._bytes = data
        self._end = np.concatenate([data[-_MARGIN:], np.zeros(2 * _MARGIN, np.uint8)])
        self._end_at = len(data) - min(len(data), _MARGIN)

    def read(self, dtype: str, at: I64) -> I64:
        """Numbers of one type.

        Args:
            dtype: The type: ``>u2``.
            at: Where each starts; anywhere.

        Returns:
            The numbers; of a place that is not in the buffer any.
        """
        kind = np.dtype(dtype)
        return self._some(kind, at).astype(np.int64)

    def _some(self, kind: np.dtype[Any], at: I64) -> npt.NDArray[Any]:
        if not len(at):
            return np.zeros(0, kind)
        count = len(self._bytes) - kind.itemsize + 1
        over = at >= count
        # (The buffer may be large: it is not copied for what is behind its end.)
        if over.any():
            found = np.zeros(len(at), kind)
            inside = np.flatnonzero(~over)
            found[inside] = _every(self._bytes, kind, count)[at[inside]] if count > 0 else 0
            most = len(self._end) - kind.itemsize
            rest = np.minimum(at[over] - self._end_at, most)
            found[over] = _every(self._end, kind, most + 1)[rest]
            return found
        # (`take` would first make a copy of every number that there could be.)
        return _every(self._bytes, kind, count)[at]

    def parts(self, at: I64, size: int) -> Bytes:
        """Parts of the buffer one after another.

        Args:
            at: Where each starts, so that all of it is in the buffer.
            size: How long each is.

        Returns:
            Their bytes.
        """
        if not len(at):
            return np.zeros(0, np.uint8)
        last = max(len(self._bytes) - size, 0)
        every = _every(self._bytes, np.dtype(f"V{size}"), last + 1)
        found: Bytes = every[np.minimum(at, last)].view(np.uint8)
        return found

    def u8(self, at: I64) -> I64:
        """Bytes."""
        return self._some(np.dtype(np.uint8), at).astype(np.int64)

    def u16(self, at: I64) -> I64:
        """Numbers of two bytes in network order."""
        return self.read(">u2", at)

    def u32(self, at: I64) -> I64:
        """Numbers of four bytes in network order."""
        return self.read(">u4", at)


def _every(data: Bytes, kind: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """What stands at each place of a buffer, whether it is a multiple of its size or not."""
    first = data[: kind.itemsize].view(kind)
    return np.lib.stride_tricks.as_strided(first, (count,), (1,), writeable=False)


@dataclass(frozen=True, slots=True)
class Headers:
    """What was found, one entry a frame; a number is meant only where its mask says so."""

    start: I64
    """Where layer 3 begins in `Frames.data`; of a frame that is not IP, where the frame does."""
    skipped: I64
    """Bytes of the frame before that."""
    version: I64
    """4 or 6; 0 where it is not IP."""
    vlan: I64
    """Number of the outermost VLAN, -1 for none."""
    header_bytes: I64
    """Of the IP header, for IPv6 with its extensions."""
    stop: I64
    """Where the packet ends in `Frames.data`, as far as captured: what pads it is not of it."""
    total: I64
    """How long the packet says it is; what the frame had where it does not say."""
    protocol: I64
    """What follows the IP header; -1 where that is not known."""
    ttl: I64
    ip_id: I64
    """Identification of an IPv4 packet or a fragment, -1 for none."""
    fragment_offset: I64
    """Where a fragment belongs, in bytes; -1 for what is none."""
    more_fragments: Mask
    layer4: I64
    """Where layer 4 begins; -1 where it is not there."""
    ported: Mask
    """Whether `src_port` and `dst_port` are."""
    src_port: I64
    dst_port: I64
    tcp: Mask
    """Whether the numbers of TCP are."""
    tcp_flags: I64
    tcp_seq: I64
    tcp_ack: I64
    tcp_window: I64
    icmp: Mask
    """Whether `icmp_type` and `icmp_code` are."""
    icmp_type: I64
    icmp_code: I64
    payload: I64
    """Where what TCP or UDP carry begins; -1 where it is not there."""


def parse(frames: Frames) -> Headers:
    """Look at the headers of frames.

    Args:
        frames: The frames.

    Returns:
        What they say.
    """
    view = View(frames.data)
    end = frames.offsets + frames.captured
    start, vlan, wanted = _network(frames, view, end)
    version = _version(view, start, end, wanted)
    known = version > 0
    start = np.where(known, start, frames.offsets)
    packet = _Packets(view, start, end, start - frames.offsets, frames.length)
    packet.ipv4(np.flatnonzero(version == 4))  # noqa: PLR2004
    packet.ipv6(np.flatnonzero(version == 6))  # noqa: PLR2004
    return packet.found(version, vlan)


def _network(frames: Frames, view: View, end: I64) -> tuple[I64, I64, I64]:
    """Where layer 3 begins, the VLAN, and the version that the link layer announces.

    The version is -1 for whatever the first byte says and 0 for no IP.
    """
    start = frames.offsets.copy()
    vlan = np.full(len(frames), -1, np.int64)
    wanted = np.zeros(len(frames), np.int64)
    kinds = frames.link_type
    present = np.unique(kinds).tolist()
    for kind in present:
        rows = np.flatnonzero(kinds == kind)
        at, limit = start[rows], end[rows]
        if kind in _RAW:
            wanted[rows] = -1
        elif kind in (LinkType.IPV4, LinkType.IPV6):
            wanted[rows] = 4 if kind == LinkType.IPV4 else 6
        elif kind in _NULL:
            start[rows] = at + 4
            wanted[rows] = _family(view, at, limit)
        elif kind in _TYPED:
            place, after = _TYPED[kind]
            kind_of = np.where(at + after <= limit, view.u16(at + place), 0)
            at = at + after
            if kind == LinkType.ETHERNET:
                at, kind_of, vlan[rows] = _untagged(view, at, limit, kind_of)
            start[rows] = at
            wanted[rows] = np.select(
                [kind_of == ETHERTYPE_IPV4, kind_of == ETHERTYPE_IPV6], [4, 6], 0
            )
    return start, vlan, wanted


_TYPED: Final[dict[int, tuple[int, int]]] = {
    LinkType.ETHERNET: (12, 14),
    LinkType.SLL: (14, 16),
    LinkType.SLL2: (0, 20),
}
"""Where the type of what follows stands, and how long the header is."""


def _family(view: View, at: I64, limit: I64) -> I64:
    """The version that an address family in either byte order means."""
    big, little = view.u32(at), view.read("<u4", at)
    family = np.minimum(big, little)
    found = np.where(np.isin(family, _FAMILIES_IPV6), 6, np.where(family == _FAMILY_IPV4, 4, 0))
    return np.where(at + 4 <= limit, found, 0)


def _untagged(view: View, at: I64, limit: I64, kind: I64) -> tuple[I64, I64, I64]:
    """Go past VLAN tags."""
    vlan = np.full(len(at), -1, np.int64)
    at, kind = at.copy(), kind.copy()
    for _ in range(_TAGS_MAX):
        rows = np.flatnonzero(np.isin(kind, _TAGS))
        if not len(rows):
            break
        here = at[rows]
        whole = here + 4 <= limit[rows]
        tag = view.u16(here) & 0xFFF
        vlan[rows] = np.where(whole & (vlan[rows] < 0), tag, vlan[rows])
        kind[rows] = np.where(whole, view.u16(here + 2), 0)
        at[rows] = here + 4
    return at, kind, vlan


def _version(view: View, start: I64, end: I64, wanted: I64) -> I64:
    """The version of each packet that has the least header of it, 0 for the others."""
    said = view.u8(start) >> 4
    fits = (wanted == -1) | (wanted == said)
    four = fits & (said == 4) & (start + 20 <= end)  # noqa: PLR2004
    six = fits & (said == 6) & (start + 40 <= end)  # noqa: PLR2004
    return np.where(four, 4, np.where(six, 6, 0))


class _Packets:
    """The columns of `Headers` while they are filled.

    Args:
        view: The bytes.
        start: Where each packet begins.
        end: Where what was captured of it ends.
        skipped: Bytes of its frame before it.
        length: True length of the frame.
    """

    def __init__(self, view: View, start: I64, end: I64, skipped: I64, length: I64) -> None:
        count = len(start)
        self._view = view
        self._start = start
        self._end = end
        self._skipped = skipped
        self._wire = np.maximum(length - skipped, 0)
        self._stop = end.copy()
        self._total = self._wire.copy()
        self._columns = {
            name: np.full(count, -1, np.int64)
            for name in ("protocol", "ttl", "ip_id", "fragment_offset", "layer4")
        }
        self._more = np.zeros(count, np.bool_)
        self._headers = np.zeros(count, np.int64)

    def ipv4(self, rows: I64) -> None:
        """Read the headers of IPv4."""
        if not len(rows):
            return
        view, at = self._view, self._start[rows]
        size = (view.u8(at) & 0xF) << 2
        sound = (size >= 20) & (at + size <= self._end[rows])  # noqa: PLR2004
        self._end_packet(rows, view.u16(at + 2), size, sound)
        fragment = view.u16(at + 6)
        offset, more = (fragment & 0x1FFF) << 3, (fragment & 0x2000) != 0
        part = (offset > 0) | more
        self._set(rows, "fragment_offset", np.where(part, offset, -1))
        self._more[rows] = more
        self._set(rows, "ip_id", view.u16(at + 4))
        self._set(rows, "ttl", view.u8(at + 8))
        self._set(rows, "protocol", view.u8(at + 9))
        self._headers[rows] = np.where(sound, size, 0)
        self._set(rows, "layer4", np.where(sound & (offset == 0), at + size, -1))

    def ipv6(self, rows: I64) -> None:
        """Read the headers of IPv6, extensions included."""
        if not len(rows):
            return
        view, start = self._view, self._start[rows]
        length = view.u16(start + 4)
        # 0 is that of a jumbogram, or of a packet that the hardware was to cut.
        total = np.where(length > 0, length + 40, 0)
        self._end_packet(rows, total, np.full(len(rows), 40), np.ones(len(rows), np.bool_))
        self._set(rows, "ttl", view.u8(start + 7))
        at, protocol = start + 40, view.u8(start + 6)
        lost = np.zeros(len(rows), np.bool_)
        for _ in range(_EXTENSIONS_MAX):
            here = np.flatnonzero(
                ~lost & (np.isin(protocol, _EXTENSIONS) | (protocol == _FRAGMENT))
            )
            if not len(here):
                break
            self._extension(rows, here, at, protocol, lost)
        left = np.isin(protocol, _EXTENSIONS) | (protocol == _FRAGMENT)
        self._set(rows, "protocol", np.where(left & ~lost, -1, protocol))
        self._headers[rows] = at - start
        self._set(rows, "layer4", np.where(lost | left, -1, at))

    def _extension(self, rows: I64, here: I64, at: I64, protocol: I64, lost: Mask) -> None:
        """Go past one extension of some packets; `lost` are those where no layer 4 is known."""
        view, place, kind = self._view, at[here], protocol[here]
        units = view.u8(place + 1)
        size = np.where(kind == _AUTHENTICATION, (units + 2) << 2, (units + 1) << 3)
        size = np.where(kind == _FRAGMENT, 8, size)
        whole = place + size <= self._stop[rows[here]]
        lost[here[~whole]] = True
        protocol[here[~whole]] = -1
        here, place, kind, size = here[whole], place[whole], kind[whole], size[whole]
        protocol[here] = view.u8(place)
        at[here] = place + size
        cut = kind == _FRAGMENT
        if cut.any():
            field = view.u16(place[cut] + 2)
            which = rows[here[cut]]
            self._columns["fragment_offset"][which] = field & 0xFFF8
            self._more[which] = (field & 1) != 0
            self._columns["ip_id"][which] = view.u32(place[cut] + 4)
            lost[here[cut][(field & 0xFFF8) > 0]] = True

    def _end_packet(self, rows: I64, total: I64, least: I64, sound: Mask) -> None:
        """Take down how long packets say they are, where that can be."""
        wire = self._wire[rows]
        # A packet that is longer than its frame was cut by who wrote the frame's length.
        said = sound & (total >= least)
        self._total[rows] = np.where(said, total, wire)
        inside = self._start[rows] + np.where(said, total, _MOST >> 1)
        stop = np.where(sound & (total > 0) & ~said, self._start[rows] + least, inside)
        self._stop[rows] = np.minimum(self._end[rows], stop)

    def _set(self, rows: I64, name: str, values: npt.NDArray[Any]) -> None:
        self._columns[name][rows] = values

    def found(self, version: I64, vlan: I64) -> Headers:
        """Read layer 4, and give all columns."""
        view, stop, own = self._view, self._stop, self._columns
        at, protocol = own["layer4"], own["protocol"]
        there = at >= 0
        room = np.where(there, stop - at, 0)
        claimed = np.where(there, self._start + self._total - at, 0)

        def reach(number: int, least: int, header: int) -> Mask:
            """Of a protocol, what has so many bytes and does not say that it is too short."""
            mask: Mask = (protocol == number) & (room >= least) & (claimed >= header)
            return mask

        tcp_ports, udp_ports = reach(TCP, 4, 20), reach(UDP, 4, 8)
        ported = tcp_ports | udp_ports
        tcp = reach(TCP, 20, 20)
        offset = np.where(tcp, (_some(view.u8, at + 12, tcp) >> 4) << 2, 0)
        payload = np.full(len(at), -1, np.int64)
        payload = np.where(tcp & (offset >= 20) & (offset <= room), at + offset, payload)  # noqa: PLR2004
        payload = np.where(reach(UDP, 8, 8), at + 8, payload)
        icmp = reach(ICMP, 2, 4) & (version == 4) | reach(ICMPV6, 2, 4) & (version == 6)  # noqa: PLR2004
        return Headers(
            start=self._start,
            skipped=self._skipped,
            version=version,
            vlan=vlan,
            header_bytes=self._headers,
            stop=stop,
            total=self._total,
            more_fragments=self._more,
            ported=ported,
            src_port=_some(view.u16, at, ported),
            dst_port=_some(view.u16, at + 2, ported),
            tcp=tcp,
            tcp_flags=_some(view.u16, at + 12, tcp) & 0x1FF,
            tcp_seq=_some(view.u32, at + 4, tcp),
            tcp_ack=_some(view.u32, at + 8, tcp),
            tcp_window=_some(view.u16, at + 14, tcp),
            icmp=icmp,
            icmp_type=_some(view.u8, at, icmp),
            icmp_code=_some(view.u8, at + 1, icmp),
            payload=payload,
            **own,
        )


def _some(read: Callable[[I64], I64], at: I64, wanted: Mask) -> I64:
    """Read for some frames, 0 for the others; where none is wanted nothing is read."""
    if wanted.all():
        return read(at)
    out = np.zeros(len(at), np.int64)
    if wanted.any():
        out[wanted] = read(at[wanted])
    return out
