"""Packets by our program in the kernel: each with the process that the kernel says."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from kcap.model.batch import Column
from kcap.readers.live.artifacts.wanted import Network
from kcap.readers.live.bpf.loader import Map
from kcap.readers.live.bpf.order import Ordering, Records
from kcap.readers.live.cgroups import Containers
from kcap.readers.live.host import Clocks
from kcap.readers.live.packets.listed import Listed
from kcap.readers.live.packets.program import PacketProgram
from kcap.readers.live.packets.sightings import Sightings
from kcap.readers.live.procfs import ProcFS

BATCH_BYTES: Final = 16 << 20
"""What is taken of the ring at once."""

TAKES_MAX: Final = 2
"""How often it is taken before others have their turn: as fast as packets can come, they would wait
for ever, and so would what says that we live."""

BATCH_ROWS: Final = 1 << 14
"""Packets of a batch at most."""

DATA_BYTES: Final = 64 << 20
"""Bytes of the packets of a batch, about, at most."""

_SLACK_NS: Final = 2_000_000
"""How much later than its time a packet may come to stand in the ring."""

Made = tuple[int, dict[str, Column]]
"""How many packets, and their columns without those of the source."""


class Packets(Protocol):
    """A way to hear packets.

    What needs rights happens when it is made, in `prepare`, `attach`, `detach`, `counts`, `broken`
    and `own`; the rest is called where the events are worked on.
    """

    clocks: Clocks
    """The clocks; may be replaced."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Parts that this kernel did not take, and why."""

    @property
    def damaged(self) -> int:
        """Records that were none, so far."""

    def prepare(self, proc: ProcFS, controller: str | None) -> list[str]:
        """Get ready: whose sockets are is known before the first packet.

        Args:
            proc: Who reads /proc.
            controller: The hierarchy of version 1 whose ids of control groups are used.

        Returns:
            What can't be seen.
        """

    def attach(self) -> None:
        """Begin to hear packets."""

    def detach(self) -> None:
        """Hear nothing more; what came can still be taken."""

    def counts(self) -> npt.NDArray[np.void]:
        """What was kept, lost, left out and of nobody so far, by direction."""

    def broken(self) -> list[str]:
        """Parts that should run, and that somebody else has detached."""

    def own(self, pids: Sequence[int]) -> None:
        """Leave packets of these processes out."""

    @property
    def wakes(self) -> Sequence[int]:
        """Descriptors that can be read where much has come."""

    @property
    def waiting_bytes(self) -> int:
        """What has come and was not taken."""

    def take(self, *, last: bool, until_ns: int | None = None) -> Iterator[Made]:
        """What has come, in order of time.

        Args:
            last: Nothing comes any more.
            until_ns: What is later may wait, CLOCK_BOOTTIME; None where it need not.

        Yields:
            Packets, many at a time.
        """

    def let_go(self) -> None:
        """Close what only the process with the rights needs."""

    def close(self) -> None:
        """Give everything back."""


class KernelPackets:
    """Packets by our program in the kernel; a `Packets`.

    Args:
        network: Which packets are kept, and how much of each.
        containers: Names the containers of processes.
        clocks: The clocks now.
        constants: Constants of the recorder's scope.
        shared: The recorder's maps of the scope.
        controller: See `Packets.prepare`.
        ring_bytes: Of the ring; a power of two.

    Raises:
        PrivilegeError: This user may not load the program.
        KcapError: This kernel can't run it.
    """

    def __init__(
        self,
        network: Network,
        containers: Containers,
        clocks: Clocks,
        *,
        constants: Mapping[str, int] | None,
        shared: Mapping[str, Map] | None,
        controller: str | None,
        ring_bytes: int,
    ) -> None:
        self._program = PacketProgram(
            network,
            constants=constants,
            shared=shared,
            controller=controller,
            ring_bytes=ring_bytes,
        )
        self._sightings = Sightings(self._program.layouts, clocks, containers)
        self._ordering = Ordering()
        self.clocks = clocks

    @property
    def refused(self) -> Mapping[str, str]:
        """See `Packets`."""
        return self._program.refused

    @property
    def attached(self) -> Collection[str]:
        """The parts that run."""
        return self._program.attached

    @property
    def damaged(self) -> int:
        """See `Packets`."""
        return self._sightings.damaged

    def prepare(self, proc: ProcFS, controller: str | None) -> list[str]:
        """See `Packets`."""
        self._program.attach_sockets()
        listed = Listed(proc, controller)
        listed.look()
        self._program.know(listed)
        blind = []
        if listed.blind:
            spaces = f"{listed.blind} network namespaces"
            blind.append(f"whose sockets were that were open before, in {spaces}")
        if not self._program.whole:
            blind.append("sockets outside of the control group that this container sees")
        return blind

    def attach(self) -> None:
        """See `Packets`."""
        self._program.attach_packets()

    def detach(self) -> None:
        """See `Packets`."""
        self._program.detach()

    def counts(self) -> npt.NDArray[np.void]:
        """See `Packets`."""
        return self._program.counts()

    def broken(self) -> list[str]:
        """See `Packets`."""
        return self._program.broken()

    def own(self, pids: Sequence[int]) -> None:
        """See `Packets`."""
        self._program.own(pids)

    def let_go(self) -> None:
        """See `Packets`."""
        self._program.let_go()

    def close(self) -> None:
        """See `Packets`."""
        self._program.close()

    @property
    def wakes(self) -> Sequence[int]:
        """See `Packets`."""
        return (self._program.ring.fd,)

    @property
    def waiting_bytes(self) -> int:
        """See `Packets`."""
        return self._program.ring.waiting_bytes

    def take(self, *, last: bool, until_ns: int | None = None) -> Iterator[Made]:
        """See `Packets`; what is young waits."""
        self._sightings.clocks = self.clocks
        ring = self._program.ring
        more, takes = True, 0
        while more and (last or takes < TAKES_MAX):
            takes += 1
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            block = ring.take(BATCH_BYTES)
            offsets = np.asarray(block.offsets, np.int64)
            records = Records(np.frombuffer(block.data, np.uint8), offsets)
            self._ordering.add(records)
            del records
            block.data.release()
            ring.release()
            more = len(offsets) > 0 and ring.waiting_bytes > (0 if last else BATCH_BYTES)
            settled_ns = (
                now_ns - _SLACK_NS if until_ns is None else min(now_ns - _SLACK_NS, until_ns)
            )
            ready = self._ordering.until(None if last and not more else settled_ns)
            for part in _parts(ready):
                count, columns = self._sightings.columns(part)
                if count:
                    yield count, columns


def _parts(ready: Records) -> Iterator[Records]:
    """Records in portions: of so many rows, and of not too many bytes."""
    rows = BATCH_ROWS
    if len(ready.offsets):
        each = max(len(ready.data) // len(ready.offsets), 1)
        rows = max(1, min(BATCH_ROWS, DATA_BYTES // each))
    for start in range(0, len(ready.offsets), rows):
        yield Records(ready.data, ready.offsets[start : start + rows])
