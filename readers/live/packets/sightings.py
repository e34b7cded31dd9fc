"""Packets as the kernel program hands them over, made into frames and columns."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model.batch import Column
from kcap.model.classes import TypeClass
from kcap.packets import decode
from kcap.packets.frames import I32, NOBODY, NONE, Frames, LinkType, Owner
from kcap.packets.identity import PacketIds
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.order import ALIGNED, Records
from kcap.readers.live.bpf.records import layout
from kcap.readers.live.cgroups import Containers, column_of
from kcap.readers.live.host import Clocks
from kcap.readers.live.probe.folders import plain

SEEN, INHERITED, LISTED = 1, 2, 3
"""``enum kcap_mark``: how it is known whose a socket is; 0 where nobody has it."""

UNKNOWN: Final = 4
"""``KCAP_UNKNOWN``: a process has it, and nobody knows which."""

UNOWNED: Final = -2
"""What stands for the owner of a packet that no process has."""

PROVENANCE: Final = {SEEN: None, INHERITED: "inherited", LISTED: "procfs"}
"""The provenance of ``pid`` by mark; None for what the kernel saw."""

_NAMESPACES: Final = ("mount_ns", "pid_ns", "ns_pid", "ns_tid", "ns_ppid")
"""Columns that an `Owner` does not have; 0 stands for what is not known."""

Owners = npt.NDArray[np.void]
"""Processes, ``struct kcap_owner`` each."""


class Layouts(NamedTuple):
    """How records lie in memory: a packet, its owner, its bytes."""

    packet: np.dtype[np.void]
    owner: np.dtype[np.void]
    head_bytes: int
    """Of the first two, where the packet's own bytes begin."""


def layouts(types: Btf) -> Layouts:
    """Look the structures up.

    Args:
        types: The types of the object.

    Returns:
        Their layouts.

    Raises:
        KcapError: It has none of these.
    """
    packet, owner = layout(types, "kcap_packet"), layout(types, "kcap_owner")
    head_bytes = packet.itemsize + owner.itemsize
    assert types.size("kcap_sighting") == head_bytes
    return Layouts(packet, owner, head_bytes)


class Sightings:
    """Records of packets as columns.

    Args:
        kinds: How they lie in memory.
        clocks: The clocks when they were made; may be replaced between batches.
        containers: Names the containers of processes.
    """

    def __init__(self, kinds: Layouts, clocks: Clocks, containers: Containers) -> None:
        self.clocks = clocks
        self.damaged = 0
        """Records that are none."""
        self._kinds = kinds
        self._containers = containers
        self._ids = PacketIds(os.urandom(16))

    def columns(self, records: Records) -> tuple[int, dict[str, Column]]:
        """Make the columns of some records.

        Args:
            records: Those of the ring, in order of time.

        Returns:
            How many packets they are, and their columns; what the source is, is for the caller.
        """
        frames, owners, codes = self.frames(records)
        found = columns_of(frames, owners, codes, self._ids, self._containers)
        return len(frames), found

    def frames(self, records: Records) -> tuple[Frames, Owners, I32]:
        """Make frames of some records.

        Args:
            records: Those of the ring, in order of time.

        Returns:
            The frames, the different owners of their sockets, and which of them each frame has:
            `UNOWNED` for none, `kcap.packets.frames.NONE` where that is not known.
        """
        heads, offsets = self._heads(records)
        starts = offsets + self._kinds.head_bytes
        captured = heads["captured"].astype(np.int32)
        owners, codes = self._owners(records, offsets)
        names, interface = _interfaces(heads["name"])
        offset_ns = self.clocks.realtime_ns - self.clocks.boottime_ns
        frames = Frames(
            data=records.data,
            offsets=starts,
            captured=captured,
            length=np.maximum(heads["length"].astype(np.int64), captured),
            ts_ns=heads["ts_ns"].astype(np.int64) + offset_ns,
            link_type=np.full(len(offsets), int(LinkType.RAW), np.uint16),
            direction=heads["direction"].astype(np.uint8),
            interface=interface,
            interfaces=names,
        )
        return frames, owners, codes

    def _heads(self, records: Records) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
        """The first parts of records, and where those begin whose bytes are all there."""
        data, offsets = records
        fits = offsets + self._kinds.head_bytes <= len(data)
        heads = _parts(data, offsets[fits], self._kinds.packet)
        ends = offsets[fits] + self._kinds.head_bytes + heads["captured"]
        whole = ends <= len(data)
        self.damaged += len(offsets) - int(np.count_nonzero(whole))
        return heads[whole], offsets[fits][whole]

    def _owners(self, records: Records, offsets: npt.NDArray[np.int64]) -> tuple[Owners, I32]:
        """The different owners of records, and whose each is."""
        kind = self._kinds.owner
        raw = _parts(records.data, offsets + self._kinds.packet.itemsize, kind)
        held = pa.Array.from_buffers(
            pa.binary(kind.itemsize), len(raw), [None, pa.py_buffer(raw)]
        ).dictionary_encode()
        found = np.frombuffer(b"".join(held.dictionary.to_pylist()), kind)
        codes = np.asarray(held.indices).astype(np.int32)
        if len(found):
            ways = np.where(found["mark"] == UNKNOWN, NONE, UNOWNED)
            codes = np.where((found["pid"] == 0)[codes], ways[codes], codes).astype(np.int32)
        return found, codes


def columns_of(
    frames: Frames,
    owners: Owners,
    codes: I32,
    ids: PacketIds,
    containers: Containers,
) -> dict[str, Column]:
    """The columns of packets whose processes are known.

    Args:
        frames: The packets.
        owners: The different processes, ``struct kcap_owner`` each.
        codes: Which of them each packet has, `UNOWNED` for none, `kcap.packets.frames.NONE` where
            that is not known.
        ids: What gives the packets their ids.
        containers: Names the containers of processes.

    Returns:
        Columns by name; what the source is, is for the caller.
    """
    if not len(frames):
        return {}
    told = [*(_owner(one) for one in owners), NOBODY]
    of = np.where(codes == UNOWNED, len(owners), codes).astype(np.int32)
    codes = np.maximum(codes, NONE)
    found = decode.columns(replace(frames, owner=of, owners=told), ids)
    for name in _NAMESPACES:
        values = np.append(owners[name].astype(np.int64), 0)[codes]
        rows = np.flatnonzero(values).astype(np.int32)
        if len(rows):
            whole = len(rows) == len(values)
            found[name] = Column(TypeClass.I64, pa.array(values[rows]), None if whole else rows)
    contained = containers.columns(
        owners["cgroup_id"].astype(np.int64),
        owners["pid"].astype(np.int64),
        started_ns=owners["start_ns"].astype(np.int64),
        ppids=owners["ppid"].astype(np.int64),
    )
    for name, texts in contained.items():
        column = column_of([*texts, None], codes)
        if column is not None:
            found[name] = column
    return found


def _parts(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], kind: np.dtype[np.void]
) -> npt.NDArray[np.void]:
    """Structures at places that are multiples of 8."""
    if not len(offsets):
        return np.zeros(0, kind)
    items = (len(data) - kind.itemsize) // ALIGNED + 1
    whole = np.dtype((np.void, kind.itemsize))
    every: npt.NDArray[Any] = np.ndarray((items,), whole, data, 0, (ALIGNED,))
    return every[offsets // ALIGNED].view(kind)


def _interfaces(names: npt.NDArray[np.int8]) -> tuple[list[str], I32]:
    """The different names of interfaces, and which of them each packet has."""
    raw = np.ascontiguousarray(names)
    held = pa.Array.from_buffers(
        pa.binary(raw.shape[1]), len(raw), [None, pa.py_buffer(raw)]
    ).dictionary_encode()
    texts = [
        each.split(b"\0", 1)[0].decode("utf-8", "replace") for each in held.dictionary.to_pylist()
    ]
    codes = np.asarray(held.indices).astype(np.int32)
    if "" in texts:
        codes[codes == texts.index("")] = NONE
    return texts, codes


def _owner(one: np.void) -> Owner:
    mark = PROVENANCE.get(int(one["mark"]))
    name = one["comm"].tobytes().split(b"\0", 1)[0]
    return Owner(
        pid=int(one["pid"]),
        tid=int(one["tid"]),
        ppid=int(one["ppid"]),
        name=plain(name) or None,
        start_ns=int(one["start_ns"]) or None,
        thread_start_ns=int(one["thread_start_ns"]) or None,
        uid=int(one["uid"]),
        gid=int(one["gid"]),
        cgroup_id=int(one["cgroup_id"]) or None,
        provenance=mark and f"pid:{mark}",
    )
