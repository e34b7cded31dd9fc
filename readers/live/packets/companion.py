"""Packets beside the events of a recorder: each with the process whose socket it passed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.model.batch import Batch, Column, constant
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, Side
from kcap.packets.decode import EVENT
from kcap.readers.live import host
from kcap.readers.live.artifacts.wanted import Network
from kcap.readers.live.beats import Beats
from kcap.readers.live.bpf.asked import Ask
from kcap.readers.live.bpf.decode import Decoded
from kcap.readers.live.bpf.loader import Map
from kcap.readers.live.bpf.order import Ordering, Records
from kcap.readers.live.cgroups import Containers
from kcap.readers.live.guard.channel import GoneError
from kcap.readers.live.packets.listed import Listed
from kcap.readers.live.packets.program import COUNT, RING_BYTES, PacketProgram
from kcap.readers.live.packets.sightings import Sightings
from kcap.readers.live.procfs import ProcFS

COLLECTOR: Final = "kcap-packets"
"""What the packets' source is called."""

BATCH_BYTES: Final = 16 << 20
"""What is taken of the ring at once."""

BATCH_ROWS: Final = 1 << 14
"""Packets of a batch at most."""

DATA_BYTES: Final = 64 << 20
"""Bytes of the packets of a batch, about, at most."""

_SLACK_NS: Final = 2_000_000
"""How much later than its time a packet may come to stand in the ring."""

_WAYS: Final = {1: "in", 2: "out"}


class PacketsCompanion:
    """Listens to packets; a `kcap.readers.live.accompanied.Companion`.

    Args:
        network: Which packets are kept, and how much of each.
        constants: Constants of the recorder's scope, for ``network.filtered``.
        shared: The recorder's maps of the scope, by name.
        controller: The hierarchy of version 1 that the recorder's cgroup ids are of.
        proc: Who reads /proc; made, and closed, where None.
        ring_bytes: Of the ring; a power of two.

    Raises:
        PrivilegeError: This user may not listen.
        KcapError: This kernel can't run the program.
    """

    name = "packets"
    rights: Collection[str] = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")

    def __init__(
        self,
        network: Network,
        *,
        constants: Mapping[str, int] | None = None,
        shared: Mapping[str, Map] | None = None,
        controller: str | None = None,
        proc: ProcFS | None = None,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        with contextlib.ExitStack() as stack:
            if proc is None:
                proc = ProcFS.probed()
                stack.callback(proc.close)
            self._proc = proc
            self._program = PacketProgram(
                network,
                constants=constants,
                shared=shared,
                controller=controller,
                ring_bytes=ring_bytes,
            )
            stack.callback(self._program.close)
            self._containers = Containers(proc, controller=controller)
            stack.callback(self._containers.close)
            self._held = stack.pop_all()
        self._controller = controller
        self._clocks = host.Clocks.measure()
        details = {"refused": self._program.refused, "payload_bytes": network.payload_bytes}
        self.source = host.source(COLLECTOR, self._clocks)
        """What the packets are said to come from."""
        self.source = replace(self.source, details={**self.source.details, **details})
        self._sightings = Sightings(self._program.layouts, self._clocks, self._containers)
        self._ordering = Ordering()
        self._beats = Beats(self.source.id)
        self._told = np.zeros(3, COUNT)
        self._looked_ns = time.time_ns()
        self._broken: list[str] = []
        self._ord = 0
        self._ask: Ask = self.serve
        self._first: list[Side] = [self.source]

    @property
    def pids(self) -> Collection[int]:
        """See `Companion`."""
        return () if self._proc.prober is None else self._proc.prober.pids

    def prepare(self) -> None:
        """See `Companion`: whose sockets are is known before the first packet."""
        self._program.attach_sockets()
        listed = Listed(self._proc, self._controller)
        listed.look()
        self._program.know(listed)
        self._first += listed.losses(self.source.id)
        if not self._program.whole:
            reason = "sockets outside of the control group that this container sees"
            self._first.append(Loss("blind", None, reason, self.source.id))

    def part(self, ask: Ask) -> None:
        """See `Companion`."""
        self._ask = ask
        self._program.let_go()

    def serve(self, name: str, argument: bytes) -> bytes:
        """See `Companion`."""
        del argument
        if name == "attach":
            self._program.attach_packets()
        elif name == "detach":
            self._program.detach()
        elif name == "counts":
            return self._program.counts().tobytes()
        elif name == "broken":
            return json.dumps(self._program.broken()).encode()
        else:
            raise KcapError(f"the program for packets has no answer to {name!r}")
        return b""

    def own(self, pids: Sequence[int]) -> None:
        """See `Companion`."""
        self._program.own(pids)

    def begin(self) -> None:
        """See `Companion`."""
        self._ask("attach", b"")

    def follow(self, batch: Batch) -> Iterator[Batch]:
        """See `Companion`: packets stand behind what happened before they came."""
        yield batch
        first, self._first = self._first, []
        if first:
            yield Batch(0, {}, tuple(first))
        yield from self._drained()
        beat = self._beats.due(self._ord, self._counters)
        if beat:
            yield Batch(0, {}, (*self._looked(), *beat))

    def end(self) -> Iterator[Batch]:
        """See `Companion`."""
        sides: list[Side] = [*self._first]
        with contextlib.suppress(GoneError):  # with it, the program is out of the kernel
            self._ask("detach", b"")
        yield from self._drained(last=True)
        try:
            sides += [*self._looked(last=True)]
            sides += self._beats.due(self._ord, self._counters, last=True)
        except GoneError as error:
            reason = f"{error.what}: nobody can say what was lost at last"
            sides.append(Loss("lost", None, reason, self.source.id, start_ns=self._looked_ns))
        yield Batch(0, {}, tuple(sides))

    def close(self) -> None:
        """See `Companion`."""
        self._held.close()

    def _drained(self, *, last: bool = False) -> Iterator[Batch]:
        """Batches of what the ring holds, in order of time; what is young waits."""
        ring = self._program.ring
        more = True
        while more:
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            block = ring.take(BATCH_BYTES)
            offsets = np.asarray(block.offsets, np.int64)
            records = Records(np.frombuffer(block.data, np.uint8), offsets)
            self._ordering.add(records)
            del records
            block.data.release()
            ring.release()
            more = len(offsets) > 0 and ring.waiting_bytes > (0 if last else BATCH_BYTES)
            ready = self._ordering.until(None if last and not more else now_ns - _SLACK_NS)
            for part in _parts(ready):
                count, columns = self._sightings.columns(part)
                if count:
                    yield Batch(count, self._placed(columns, count))

    def _placed(self, columns: dict[str, Column], count: int) -> dict[str, Column]:
        """Packets with their place in the recording."""
        source = self.source
        texts = {"origin": source.origin, "source": source.id, "host": source.host}
        for name, value in texts.items():
            if value is not None:
                columns[name] = constant(TypeClass.STR, value, count)
        columns["ord"] = Decoded.numbers(np.arange(self._ord, self._ord + count, dtype=np.int64))
        self._ord += count
        return columns

    def _counts(self) -> npt.NDArray[np.void]:
        return np.frombuffer(self._ask("counts", b""), COUNT)

    def _counters(self) -> dict[str, Any]:
        """What a heartbeat says beside that we live."""
        counts = self._counts()
        return {
            **{name: int(counts[name].sum()) for name in COUNT.names or ()},
            "waiting_bytes": self._program.ring.waiting_bytes,
        }

    def _looked(self, *, last: bool = False) -> list[Side]:
        """What was lost since the last look; before it, the clocks where they have moved."""
        sides: list[Side] = []
        clocks = host.Clocks.measure()
        if clocks.drifted(self._clocks):
            self._clocks = self._sightings.clocks = clocks
            self.source = replace(self.source, clocks=(*self.source.clocks, clocks.pair()))
            sides.append(self.source)
        now_ns = time.time_ns()
        interval = (self._looked_ns, now_ns)
        self._looked_ns = now_ns
        counts = self._counts()
        for number, way in _WAYS.items():
            lost = int(counts["lost"][number] - self._told["lost"][number])
            if lost:
                reason = f"the ring of packets was full, of those that go {way}"
                sides.append(Loss("lost", lost, reason, self.source.id, EVENT, None, *interval))
        self._told = counts
        damaged, self._sightings.damaged = self._sightings.damaged, 0
        if damaged:
            reason = "records of the kernel program for packets that are none"
            sides.append(Loss("damaged", damaged, reason, self.source.id))
        if not last:
            return [*sides, *self._detached(interval)]
        filtered = int(counts["filtered"].sum())
        reason = "packets of processes that are not in the scope of the recording"
        return [*sides, *([Loss("filtered", filtered, reason, self.source.id)] * (filtered > 0))]

    def _detached(self, interval: tuple[int, int]) -> list[Loss]:
        """Parts of the program that somebody has taken out of the kernel since the last time."""
        found: list[str] = json.loads(self._ask("broken", b""))
        fresh = [part for part in found if part not in self._broken]
        self._broken = found
        reason = "of the program for packets does not run any more: somebody detached it"
        return [
            Loss("blind", None, f"{part} {reason}", self.source.id, EVENT, None, *interval)
            for part in fresh
        ]


def _parts(ready: Records) -> Iterator[Records]:
    """Records in portions: of so many rows, and of not too many bytes."""
    rows = BATCH_ROWS
    if len(ready.offsets):
        each = max(len(ready.data) // len(ready.offsets), 1)
        rows = max(1, min(BATCH_ROWS, DATA_BYTES // each))
    for start in range(0, len(ready.offsets), rows):
        yield Records(ready.data, ready.offsets[start : start + rows])
