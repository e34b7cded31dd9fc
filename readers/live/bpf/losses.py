"""What the kernel program could not hand over: counted there, told here.

The kernel counts every event that it keeps, loses and leaves out, on each processor, and whose
events were lost. So received and lost together are what happened, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from kcap.model.side import Loss
from kcap.readers.live.bpf import events

FULL: Final = "the ring was full"
OUT_OF_SCOPE: Final = "not in the scope of the recording"

NAMED: Final = 16
"""Processes that are named in one look; the rest of their losses is told together."""

Victims = dict[tuple[int, int, int], int]
"""Events lost so far, by cgroup, process and event number."""


class Losses:
    """Turns the kernel's counters into losses.

    Args:
        source: Id of the source.
        name_of: The name of a process, None where it is not known.
    """

    def __init__(self, source: str, name_of: Callable[[int], str | None]) -> None:
        self._source = source
        self._name_of = name_of
        self._lost = np.zeros(events.EVENTS, np.int64)
        self._victims: Victims = {}
        self._missed: dict[str, int] = {}

    def look(
        self,
        counts: npt.NDArray[np.void],
        victims: Callable[[], Victims],
        missed: Mapping[str, int],
        interval_ns: tuple[int, int],
    ) -> list[Loss]:
        """Tell what was lost since the last look.

        Args:
            counts: The counters by event number (`KernelProgram.counts`).
            victims: Gives `KernelProgram.victims`; only asked where something was lost.
            missed: `KernelProgram.passed_over`.
            interval_ns: Event time of the last look and of this one.

        Returns:
            One loss for an event type of a process, and one for what belongs to no process that
            is told apart; their counts add up to what the counters say.
        """
        found = []
        lost = counts["lost"].astype(np.int64)
        fresh = lost - self._lost
        self._lost = lost
        if fresh.any():
            found = self._by_process(fresh, victims(), interval_ns)
        for part, count in sorted(missed.items()):
            more = count - self._missed.get(part, 0)
            if more > 0:
                reason = f"{part} was interrupted by itself"
                found.append(self._loss(more, reason, None, interval_ns))
            self._missed[part] = count
        return found

    def _by_process(
        self, fresh: npt.NDArray[np.int64], victims: Victims, interval_ns: tuple[int, int]
    ) -> list[Loss]:
        more = {key: count - self._victims.get(key, 0) for key, count in victims.items()}
        self._victims = victims
        rest = fresh.copy()
        found = []
        largest = sorted((key for key, n in more.items() if n > 0), key=lambda k: (-more[k], k))
        for key in largest[:NAMED]:
            cgroup_id, pid, number = key
            # Counted one after the other: a victim may be ahead of the sum by an event in hand.
            count = min(more[key], int(rest[number]))
            if count > 0:
                rest[number] -= count
                who = self._name_of(pid) or "a process"
                reason = f"{FULL}: {who}, pid {pid}, cgroup {cgroup_id}"
                found.append(self._loss(count, reason, number, interval_ns))
            self._victims[key] = victims[key] - more[key] + count
        for number in np.flatnonzero(rest).tolist():
            reason = f"{FULL}: other processes"
            found.append(self._loss(int(rest[number]), reason, number, interval_ns))
        return found

    def _loss(
        self, count: int, reason: str, number: int | None, interval_ns: tuple[int, int]
    ) -> Loss:
        event = None if number is None else events.by_number()[number].name
        return Loss("lost", count, reason, self._source, event, None, *interval_ns)


def filtered(counts: npt.NDArray[np.void], source: str) -> list[Loss]:
    """What was left out on purpose.

    Args:
        counts: The counters by event number.
        source: Id of the source.

    Returns:
        One entry for an event type.
    """
    return [
        Loss("filtered", int(counts[number]["filtered"]), OUT_OF_SCOPE, source, event.name)
        for number, event in events.by_number().items()
        if counts[number]["filtered"]
    ]
