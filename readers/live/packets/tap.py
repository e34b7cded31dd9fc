"""Packets by a packet socket: where the kernel does not take our program.

It hears what passes the interfaces of the recorder's own network namespace, and not whose it is:
that is looked up by addresses and ports, in the kernel's list of sockets and the descriptors in
/proc, at most once a second. What begins and ends in between belongs to nobody.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.errors import KcapError, PrivilegeError
from kcap.packets.frames import I32, NONE, Direction, Frames, LinkType
from kcap.packets.headers import Headers, View, parse
from kcap.packets.identity import PacketIds
from kcap.readers.live.artifacts.wanted import Network
from kcap.readers.live.bpf.elf import ElfObject
from kcap.readers.live.cgroups import Containers
from kcap.readers.live.host import Clocks
from kcap.readers.live.packets.kernel import Made
from kcap.readers.live.packets.listed import Flow, Holder, Listed, diagnosis
from kcap.readers.live.packets.program import COUNT, DIRECTIONS, OBJECT
from kcap.readers.live.packets.sightings import Owners, columns_of, layouts
from kcap.readers.live.procfs import ProcFS

WEAKER: Final = (
    "packets of other network namespaces than the recorder's; and whose a packet is comes from"
    " looks at /proc once a second"
)
"""What is told where packets are heard so."""

BLOCK_BYTES: Final = 1 << 20
"""The kernel gives packets by such blocks."""

RETIRE_MS: Final = 50
"""A block that is not full is given so late."""

LOOK_S: Final = 1.0
"""Whose sockets are is looked up no more often."""

_HEADERS_BYTES: Final = 200
"""Headers up to layer 4 have no more, but in packets made to have it."""

_SOL_PACKET: Final = 263
_RX_RING, _STATISTICS, _VERSION = 5, 6, 10
_V3: Final = 2
_ALL: Final = 3
_ATTACH_FILTER: Final = 26
_RETURN: Final = 6
_STATUS_AT, _COUNT_AT, _FIRST_AT = 8, 12, 16
_USER: Final = 1
_HEAD: Final = np.dtype(
    [
        ("next", "<u4"), ("sec", "<u4"), ("nsec", "<u4"), ("captured", "<u4"), ("length", "<u4"),
        ("status", "<u4"), ("mac", "<u2"), ("net", "<u2"), ("rest", "V20"), ("family", "<u2"),
        ("protocol", ">u2"), ("interface", "<i4"), ("hardware", "<u2"), ("kind", "u1"),
    ]
)  # fmt: skip
"""``struct tpacket3_hdr`` and behind it ``struct sockaddr_ll``."""

_OUTGOING: Final = 4
_IPV4, _IPV6 = 0x0800, 0x86DD
_FLOW: Final = np.dtype(
    [
        ("protocol", "u1"),
        ("local", "u1", 16),
        ("port", "u1", 2),
        ("far", "u1", 16),
        ("far_port", "u1", 2),
    ]
)
"""A `Flow`, packed."""


class Tap:
    """Packets by a packet socket; a `kcap.readers.live.packets.kernel.Packets`.

    Args:
        network: How much is kept of each packet.
        containers: Names the containers of processes.
        ring_bytes: Of the ring.

    Raises:
        PrivilegeError: This user may not listen.
        KcapError: The kernel has no such sockets.
    """

    def __init__(self, network: Network, containers: Containers, *, ring_bytes: int) -> None:
        self.refused: Mapping[str, str] = {}
        self.clocks = Clocks.measure()
        self.damaged = 0
        self._payload_bytes = network.payload_bytes
        self._containers = containers
        self._ids = PacketIds(os.urandom(16))
        content = resources.files("kcap.readers.live.bpf").joinpath(OBJECT).read_bytes()
        self._kind = layouts(ElfObject(content, file=OBJECT).btf).owner
        self._own: frozenset[int] = frozenset()
        self._counts = np.zeros(DIRECTIONS, COUNT)
        self._holders: dict[Flow, Holder] = {}
        self._looked_s = -LOOK_S
        self._listed: Listed | None = None
        self._names: dict[int, str] = {}
        self._block = 0
        self._blocks = max(2, ring_bytes // BLOCK_BYTES)
        with contextlib.ExitStack() as stack:
            self._socket = stack.enter_context(opened())
            self._diagnosis = stack.enter_context(diagnosis())
            size = self._blocks * BLOCK_BYTES
            ring = struct.pack(
                "=7I", BLOCK_BYTES, self._blocks, 2048, size // 2048, RETIRE_MS, 0, 0
            )
            try:
                self._filter(0)
                self._socket.setsockopt(_SOL_PACKET, _VERSION, _V3)
                self._socket.setsockopt(_SOL_PACKET, _RX_RING, ring)
                self._map = memoryview(mmap.mmap(self._socket.fileno(), size))
            except OSError as error:
                raise KcapError(f"a packet socket with a ring of {size} bytes: {error}") from error
            self._held = stack.pop_all()

    def _filter(self, most: int) -> None:
        """Let the kernel copy so many bytes of a packet; with none it passes packets over."""
        self._code = np.array([(_RETURN, 0, 0, most)], "<u2,u1,u1,<u4")
        program = struct.pack("@HP", 1, self._code.ctypes.data)
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)

    def prepare(self, proc: ProcFS, controller: str | None) -> list[str]:
        """See `Packets`."""
        self._listed = Listed(proc, controller)
        self._holders = self._listed.flows(self._diagnosis)
        return []

    def attach(self) -> None:
        """See `Packets`."""
        self._filter(min(self._payload_bytes + _HEADERS_BYTES, BLOCK_BYTES // 2))

    def detach(self) -> None:
        """See `Packets`."""
        self._filter(0)

    def counts(self) -> npt.NDArray[np.void]:
        """See `Packets`; what the kernel could not keep it does not tell by direction."""
        _, drops, _ = struct.unpack("=3I", self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 12))
        self._counts["lost"][Direction.UNKNOWN] += drops
        return self._counts.copy()

    def broken(self) -> list[str]:
        """See `Packets`."""
        return []

    def own(self, pids: Sequence[int]) -> None:
        """See `Packets`."""
        self._own = frozenset(pids)

    @property
    def wakes(self) -> Sequence[int]:
        """See `Packets`: none, as a packet socket would wake with each block."""
        return ()

    @property
    def waiting_bytes(self) -> int:
        """See `Packets`."""
        return BLOCK_BYTES * sum(self._status(n) & _USER for n in range(self._blocks))

    def take(self, *, last: bool, until_ns: int | None = None) -> Iterator[Made]:
        """See `Packets`; nothing waits: whose a packet is comes from /proc."""
        del until_ns
        if last:
            time.sleep(2 * RETIRE_MS / 1000)  # the last block is given then
        while self._status(self._block) & _USER:
            at = self._block * BLOCK_BYTES
            data = np.frombuffer(bytes(self._map[at : at + BLOCK_BYTES]), np.uint8)
            self._map[at + _STATUS_AT : at + _STATUS_AT + 4] = bytes(4)
            self._block = (self._block + 1) % self._blocks
            made = self._made(self._frames(data))
            if made[0]:
                yield made

    def let_go(self) -> None:
        """See `Packets`: the socket is what the packets come through."""

    def close(self) -> None:
        """See `Packets`."""
        self._map = memoryview(bytes(BLOCK_BYTES))
        self._blocks = 1
        self._held.close()

    def _status(self, block: int) -> int:
        at = block * BLOCK_BYTES + _STATUS_AT
        return int.from_bytes(self._map[at : at + 4], "little")

    def _frames(self, data: npt.NDArray[np.uint8]) -> Frames:
        """The packets of IP of a block, as far as they were asked for."""
        heads, places = _heads(data)
        starts = places + heads["net"]
        known = np.isin(heads["protocol"], (_IPV4, _IPV6)) & (
            starts + heads["captured"] <= len(data)
        )
        heads, starts = heads[known], starts[known]
        out = heads["kind"] == _OUTGOING
        names, codes = self._interfaces(heads["interface"])
        frames = Frames(
            data=data,
            offsets=starts.astype(np.int64),
            captured=heads["captured"].astype(np.int32),
            length=np.maximum(heads["length"], heads["captured"]).astype(np.int64),
            ts_ns=heads["sec"].astype(np.int64) * 10**9 + heads["nsec"],
            link_type=np.full(len(heads), int(LinkType.RAW), np.uint16),
            direction=np.where(out, int(Direction.OUT), int(Direction.IN)).astype(np.uint8),
            interface=codes,
            interfaces=names,
        )
        return frames.take(np.argsort(frames.ts_ns, kind="stable"))

    def _interfaces(self, numbers: npt.NDArray[np.int32]) -> tuple[list[str], I32]:
        found, codes = np.unique(numbers, return_inverse=True)
        for number in found.tolist():
            if number not in self._names:
                try:
                    self._names[number] = socket.if_indextoname(number)
                except OSError:  # it is gone by now
                    self._names[number] = str(number)
        return [self._names[number] for number in found.tolist()], codes.astype(np.int32)

    def _made(self, frames: Frames) -> Made:
        """Columns of packets, each with its process where that was found."""
        headers = parse(frames)
        behind = np.where(headers.payload >= 0, headers.payload - headers.start, _HEADERS_BYTES)
        kept = np.minimum(frames.captured, behind + self._payload_bytes).astype(np.int32)
        owners, codes = self._owners(frames, headers)
        ours = np.isin(np.append(owners["pid"], 0)[codes], sorted(self._own)) & (codes != NONE)
        rows = np.flatnonzero(~ours)
        cut = replace(frames, captured=kept).take(rows)
        codes = codes[rows]
        for way in (Direction.IN, Direction.OUT):
            mine = cut.direction == way
            self._counts["kept"][way] += np.count_nonzero(mine)
            self._counts["unowned"][way] += np.count_nonzero(mine & (codes == NONE))
        return len(cut), columns_of(cut, owners, codes, self._ids, self._containers)

    def _owners(self, frames: Frames, headers: Headers) -> tuple[Owners, I32]:
        """Whose packets are, by what the two ends are called."""
        flows = _flows(frames, headers)
        held = pa.Array.from_buffers(
            pa.binary(_FLOW.itemsize), len(flows), [None, pa.py_buffer(flows)]
        ).dictionary_encode()
        different = [_flow(raw) for raw in held.dictionary.to_pylist()]
        if any(self._holder(flow) is None for flow in different):
            self._look()
        known: dict[Holder, int] = {}
        places = [
            NONE if (one := self._holder(flow)) is None else known.setdefault(one, len(known))
            for flow in different
        ]
        owners = np.frombuffer(b"".join(one.encode(self._kind) for one in known), self._kind)
        codes = np.array(places or [NONE], np.int32)[np.asarray(held.indices)]
        return owners, codes.astype(np.int32)

    def _holder(self, flow: Flow) -> Holder | None:
        return next((found for f in flow.wider() if (found := self._holders.get(f))), None)

    def _look(self) -> None:
        now_s = time.monotonic()
        if self._listed is None or now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        # What is gone by now may still have packets that wait.
        self._holders |= self._listed.flows(self._diagnosis)


def opened() -> socket.socket:
    """Open a packet socket; it hears nothing that is taken from it yet.

    Returns:
        The socket; whoever gets it closes it.

    Raises:
        PrivilegeError: This user may not listen.
        KcapError: The kernel has no such sockets.
    """
    try:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        return socket.socket(socket.AF_PACKET, kind, socket.htons(_ALL))
    except PermissionError as error:
        raise PrivilegeError("a packet socket: it takes root or CAP_NET_RAW") from error
    except (OSError, AttributeError) as error:
        raise KcapError(f"no packet sockets here: {error}", expected="Linux") from error


def _heads(data: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """What stands before each packet of a block, and where."""
    held = memoryview(data.data)
    count, at = struct.unpack_from("=II", held, _COUNT_AT)
    places = []
    step = struct.Struct("=I").unpack_from
    for _ in range(count):  # a chain; only its links are followed one by one
        if at + _HEAD.itemsize > len(data):
            break
        places.append(at)
        at += step(held, at)[0]
    found = np.array(places, np.int64)
    every: npt.NDArray[np.void] = np.ndarray(
        (len(data) - _HEAD.itemsize + 1,), f"V{_HEAD.itemsize}", data, 0, (1,)
    )
    return every[found].view(_HEAD), found


def _flows(frames: Frames, headers: Headers) -> npt.NDArray[np.void]:
    """The two ends of packets, from here; IPv4 as it stands in IPv6."""
    view, count = View(frames.data), len(frames)
    ends = np.zeros((count, 2, 16), np.uint8)
    for version, size, source in ((4, 4, 12), (6, 16, 8)):
        rows = np.flatnonzero(headers.version == version)
        if len(rows):
            ends[rows, :, 10:12] = 0xFF if version == 4 else 0  # noqa: PLR2004
            for n in range(2):
                raw = view.parts(headers.start[rows] + source + n * size, size)
                ends[rows, n, 16 - size :] = raw.reshape(len(rows), size)
    ports = np.stack([headers.src_port, headers.dst_port], axis=1)
    ports = np.where(headers.ported[:, None], ports, 0).astype(">u2").view(np.uint8)
    ports = ports.reshape(count, 2, 2)
    out = frames.direction == Direction.OUT
    rows, local = np.arange(count), np.where(out, 0, 1)
    flows = np.zeros(count, _FLOW)
    flows["protocol"] = np.maximum(headers.protocol, 0)
    flows["local"], flows["port"] = ends[rows, local], ports[rows, local]
    flows["far"], flows["far_port"] = ends[rows, 1 - local], ports[rows, 1 - local]
    return flows


def _flow(raw: bytes) -> Flow:
    return Flow(raw[0], raw[1:17], raw[17:19], raw[19:35], raw[35:37])
