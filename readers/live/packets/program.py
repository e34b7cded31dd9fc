"""The kernel program for packets: loaded, told whose sockets are open, attached, its counters."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Mapping
from importlib import resources
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap.readers.live.artifacts.wanted import Network
from kcap.readers.live.bpf import cgroup, loader, offsets
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.loader import Map
from kcap.readers.live.bpf.ring import Ring
from kcap.readers.live.bpf.running import Running
from kcap.readers.live.packets.listed import Listed
from kcap.readers.live.packets.sightings import Layouts, layouts

OBJECT: Final = "packets.bpf.o"

RING_BYTES: Final = 32 << 20
"""Enough for some 100,000 packets of the usual length in the quarter of a second between looks."""

LARGE_RING_BYTES: Final = 128 << 20
"""Where more of a packet is kept than its beginning: what comes in a burst is soon that much."""

LARGE_PAYLOAD_BYTES: Final = 1024

_WAKE_PART: Final = 8
"""Of the ring: where so much has come, nobody waits for the end of the interval."""

_OF_SOCKETS: Final = (
    "on_create",
    "on_connect4",
    "on_connect6",
    "on_sendmsg4",
    "on_sendmsg6",
    "on_packet_state",
    "on_accept",
)
"""Programs that tell whose sockets are."""

_OPTIONAL: Final = ("on_packet_state", "on_accept")
"""Without these, accepted sockets belong to who listened, or to nobody."""

_OF_PACKETS: Final = ("on_egress", "on_ingress")

COUNT: Final = np.dtype(
    [(name, "<u8") for name in ("kept", "lost", "filtered", "unowned", "unknown")]
)
"""What `PacketProgram.counts` has for each direction."""

_HOLDING: Final = struct.Struct("=QQ")
_PORT: Final = struct.Struct("=Q")

DIRECTIONS: Final = 3
"""0 is none, 1 in, 2 out."""


class PacketProgram(Running):
    """The program while it is loaded.

    Args:
        network: Which packets are kept, and how much of each.
        constants: Constants of the recorder's scope.
        shared: The recorder's maps, for the scope.
        controller: The hierarchy of version 1 that ids of control groups are of; None for 2.
        ring_bytes: Of the ring; a power of two.

    Raises:
        PrivilegeError: This user may not load it.
        KcapError: This kernel can't run it.
    """

    def __init__(
        self,
        network: Network,
        *,
        constants: Mapping[str, int] | None = None,
        shared: Mapping[str, Map] | None = None,
        controller: str | None = None,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        types = Btf.of_kernel()
        content = resources.files("kcap.readers.live.bpf").joinpath(OBJECT).read_bytes()
        loaded = loader.load(
            content,
            types,
            constants={
                "wake_packets": ring_bytes // _WAKE_PART,
                "cgroup_controller": _number(types, controller),
                "payload_bytes": network.payload_bytes,
                "only_scoped": int(network.filtered),
                **(constants or {}),
            },
            sizes={"packets": ring_bytes},
            optional=_OPTIONAL,
            shared=shared,
            file=OBJECT,
        )
        super().__init__(loaded)
        try:
            self._loaded.group = group = cgroup.open_root()
            self.whole = cgroup.whole(group)
            """Whether the sockets of the whole host are seen, not those of one container."""
            self.layouts: Layouts = layouts(self._loaded.object.btf)
            self.ring = Ring(self._loaded.maps["packets"].fd, ring_bytes)
        except BaseException:
            self.close()
            raise

    def attach_sockets(self) -> None:
        """Begin to see whose new sockets are.

        Raises:
            PrivilegeError: This user may not.
            KcapError: The kernel refused.
        """
        for name in _OF_SOCKETS:
            self._loaded.attach(name)

    def attach_packets(self) -> None:
        """Begin to see packets.

        Raises:
            PrivilegeError: This user may not.
            KcapError: The kernel refused.
        """
        for name in _OF_PACKETS:
            self._loaded.attach(name)

    def know(self, listed: Listed) -> None:
        """Say whose the sockets are that were there before; what the kernel saw itself stays.

        Args:
            listed: The sockets.

        Raises:
            KcapError: The kernel refused.
        """
        kind = self.layouts.owner
        for name, found in (("owners", listed.sockets), ("listeners", listed.listeners)):
            table = self._loaded.maps[name]
            for key, owner in found.items():
                if table.get(key) is None:
                    # Found by: see `struct kcap_holding`.
                    of = key if isinstance(key, int) else _PORT.unpack_from(key)[0]
                    table.set(key, _HOLDING.pack(of, 0) + owner.encode(kind))

    def counts(self) -> npt.NDArray[np.void]:
        """What was kept, lost, left out and of nobody so far, by direction."""
        table = self._loaded.maps["packet_counts"]
        out = np.zeros(DIRECTIONS, COUNT)
        for direction in range(DIRECTIONS):
            each = np.frombuffer(table.get(direction) or b"", COUNT)
            for name in COUNT.names or ():
                out[name][direction] = each[name].sum()
        return out

    def let_go(self) -> None:
        """Close all but the ring in a process that was forked and goes on without rights."""
        self._close(but=("packets",))

    def close(self) -> None:
        """Give everything back."""
        if hasattr(self, "ring"):
            self.ring.close()
        self._close()

    def _close(self, but: Collection[str] = ()) -> None:
        if self._loaded.group is not None:
            os.close(self._loaded.group)
            self._loaded.group = None
        self._loaded.close(but=but)


def _number(types: Btf, controller: str | None) -> int:
    """The number of a controller in this kernel."""
    if controller is None:
        return offsets.NOWHERE
    return types.enum("cgroup_subsys_id").get(f"{controller}_cgrp_id", offsets.NOWHERE)


def ring_bytes_for(network: Network) -> int:
    """How large a ring should be.

    Args:
        network: Which packets are kept, and how much of each.

    Returns:
        Bytes, a power of two.
    """
    return LARGE_RING_BYTES if network.payload_bytes > LARGE_PAYLOAD_BYTES else RING_BYTES
