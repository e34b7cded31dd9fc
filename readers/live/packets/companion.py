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
from kcap.readers.live.cgroups import Containers
from kcap.readers.live.guard.channel import GoneError
from kcap.readers.live.packets.kernel import KernelPackets, Packets
from kcap.readers.live.packets.program import COUNT, ring_bytes_for
from kcap.readers.live.procfs import ProcFS

COLLECTOR: Final = "kcap-packets"
"""What the packets' source is called."""

_AT_LAST: Final = {
    "filtered": ("filtered", "packets of processes that are not in the scope of the recording"),
    "unknown": (
        "blind",
        "whose packets are: their sockets were open before, or more than are remembered",
    ),
}
"""What is told of some counters at the end."""

_QUIET_NS: Final = 2_000_000_000
"""Where a source tells of nothing for so long, nothing has happened."""

_WAYS: Final = {0: "in or out", 1: "in", 2: "out"}


class PacketsCompanion:
    """Listens to packets; a `kcap.readers.live.accompanied.Companion`.

    Args:
        network: Which packets are kept, and how much of each.
        tap: Hear them as a packet socket does, though the kernel would take our program.
        constants: Constants of the recorder's scope, for ``network.filtered``.
        shared: The recorder's maps of the scope, by name.
        controller: The hierarchy of version 1 that the recorder's cgroup ids are of.
        proc: Who reads /proc; made, and closed, where None.
        ring_bytes: Of the ring; a power of two, chosen by what is kept where None.

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
        tap: bool = False,
        constants: Mapping[str, int] | None = None,
        shared: Mapping[str, Map] | None = None,
        controller: str | None = None,
        proc: ProcFS | None = None,
        ring_bytes: int | None = None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            if proc is None:
                proc = ProcFS.probed()
                stack.callback(proc.close)
            self._proc = proc
            self._containers = Containers(proc, controller=controller)
            stack.callback(self._containers.close)
            clocks = host.Clocks.measure()
            self._packets, self._weaker = _packets(
                network, self._containers, clocks, tap=tap, constants=constants, shared=shared,
                controller=controller, ring_bytes=ring_bytes or ring_bytes_for(network),
            )  # fmt: skip
            stack.callback(self._packets.close)
            self._held = stack.pop_all()
        self._controller = controller
        self._clocks = clocks
        details = {"refused": dict(self._packets.refused), "payload_bytes": network.payload_bytes}
        self.source = host.source(COLLECTOR, clocks)
        """What the packets are said to come from."""
        self.source = replace(self.source, details={**self.source.details, **details})
        self._beats = Beats(self.source.id)
        self._told = np.zeros(3, COUNT)
        self._looked_ns = time.time_ns()
        self._broken: list[str] = []
        self._ord = 0
        self._told_ns = 0
        """When the latest event happened that the source has told of; CLOCK_BOOTTIME."""
        self._damaged = 0
        self._ask: Ask = self.serve
        self._first: list[Side] = [self.source]

    @property
    def pids(self) -> Collection[int]:
        """See `Companion`."""
        return () if self._proc.prober is None else sorted(self._proc.prober.pids)

    @property
    def wakes(self) -> Sequence[int]:
        """See `Companion`."""
        return self._packets.wakes

    def prepare(self) -> None:
        """See `Companion`: whose sockets are is known before the first packet."""
        blind = [*self._weaker, *self._packets.prepare(self._proc, self._controller)]
        self._first += [Loss("blind", None, what, self.source.id) for what in blind]

    def part(self, ask: Ask) -> None:
        """See `Companion`."""
        self._ask = ask
        self._packets.let_go()

    def serve(self, name: str, argument: bytes) -> bytes:
        """See `Companion`."""
        del argument
        if name == "attach":
            self._packets.attach()
        elif name == "detach":
            self._packets.detach()
        elif name == "counts":
            return self._packets.counts().tobytes()
        elif name == "broken":
            return json.dumps(self._packets.broken()).encode()
        else:
            raise KcapError(f"the program for packets has no answer to {name!r}")
        return b""

    def own(self, pids: Sequence[int]) -> None:
        """See `Companion`."""
        self._packets.own(pids)

    def begin(self) -> None:
        """See `Companion`."""
        self._ask("attach", b"")

    def follow(self, batch: Batch) -> Iterator[Batch]:
        """See `Companion`: packets stand behind what happened before they came.

        The source tells of the execution of a process, by which it is in a scope, only in its next
        batch where the process sent something since it gave this one.
        """
        until_ns = self._told_until_ns(batch)
        yield batch
        first, self._first = self._first, []
        if first:
            yield Batch(0, {}, tuple(first))
        yield from self._drained(until_ns=until_ns)
        beat = self._beats.due(self._ord, self._counters)
        if beat:
            yield Batch(0, {}, (*self._looked(), *beat))

    def _told_until_ns(self, batch: Batch) -> int:
        """Up to when the source has told of everything; CLOCK_BOOTTIME."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if batch.rows:
            offset_ns = self._clocks.realtime_ns - self._clocks.boottime_ns
            latest_ns = int(batch.numpy("ts", 0).max()) - offset_ns
            self._told_ns = max(self._told_ns, min(latest_ns, now_ns))
        # An empty batch does not say that nothing happened: it may come without a look.
        return max(self._told_ns, now_ns - _QUIET_NS)

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

    def _drained(self, *, last: bool = False, until_ns: int | None = None) -> Iterator[Batch]:
        for count, columns in self._packets.take(last=last, until_ns=until_ns):
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
            "waiting_bytes": self._packets.waiting_bytes,
        }

    def _looked(self, *, last: bool = False) -> list[Side]:
        """What was lost since the last look; before it, the clocks where they have moved."""
        sides: list[Side] = []
        clocks = host.Clocks.measure()
        if clocks.drifted(self._clocks):
            self._clocks = self._packets.clocks = clocks
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
        damaged = self._packets.damaged - self._damaged
        self._damaged += damaged
        if damaged:
            reason = "records of the kernel program for packets that are none"
            sides.append(Loss("damaged", damaged, reason, self.source.id))
        sides += self._proc.losses(self.source.id)
        if not last:
            return [*sides, *self._detached(interval)]
        for name, (kind, reason) in _AT_LAST.items():
            count = int(counts[name].sum())
            if count:
                sides.append(Loss(kind, count, reason, self.source.id))
        return sides

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


def _packets(
    network: Network,
    containers: Containers,
    clocks: host.Clocks,
    *,
    tap: bool,
    constants: Mapping[str, int] | None,
    shared: Mapping[str, Map] | None,
    controller: str | None,
    ring_bytes: int,
) -> tuple[Packets, list[str]]:
    """The best way to hear packets that this kernel has, and what the others would tell more."""
    refused = "not asked for"
    if not tap:
        try:
            return KernelPackets(
                network, containers, clocks, constants=constants, shared=shared,
                controller=controller, ring_bytes=ring_bytes,
            ), []  # fmt: skip
        except KcapError as error:
            # Whoever asked for some processes' packets must not get those of all.
            if network.filtered:
                raise
            refused = str(error)
    from kcap.readers.live.packets import tap as taps

    made = taps.Tap(network, containers, ring_bytes=ring_bytes)
    return made, [f"{taps.WEAKER} (the program for packets: {refused})"]
