"""Records out of the rings of several processors, and their order."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.readers.live.bpf.records import different

Int64s = npt.NDArray[np.int64]

ALIGNED: Final = 4
"""Records begin at multiples of it."""

UNKNOWN: Final = -1
"""The process of a record that only says which thread it is of."""

_SPARE: Final = 256
"""Bytes behind the last record, so that fields that it has not may be looked for without harm."""


class Samples(NamedTuple):
    """Records in memory, and what stands beside them."""

    data: npt.NDArray[np.uint8]
    """The bytes, with some to spare; other things may stand between the records."""
    starts: Int64s
    """Where each record begins in it."""
    sizes: Int64s
    """Their bytes."""
    times_ns: Int64s
    """Since the start of the machine."""
    cpus: Int64s
    pids: Int64s
    """The process of each, or `UNKNOWN`."""

    @classmethod
    def none(cls) -> Samples:
        """No records."""
        nothing = np.zeros(0, np.int64)
        return cls(np.zeros(_SPARE, np.uint8), nothing, nothing, nothing, nothing, nothing)

    def take(self, which: npt.NDArray[np.bool_] | Int64s) -> Samples:
        """Some of the records.

        Args:
            which: Their numbers, or one truth value a record.

        Returns:
            They, in the same memory.
        """
        return Samples(self.data, *(column[which] for column in self[1:]))

    def field(
        self, layout: np.dtype[np.void], name: str, rows: Int64s | slice = slice(None)
    ) -> npt.NDArray[np.generic]:
        """A field of records.

        Args:
            layout: How they lie in memory.
            name: The field.
            rows: Which of them.

        Returns:
            One value each, or one array each.
        """
        # Items that overlap: each record is one, however long those before it are.
        items = (len(self.data) - layout.itemsize) // ALIGNED + 1
        every = np.ndarray((items,), layout, self.data, 0, (ALIGNED,))
        found: npt.NDArray[np.generic] = every[name][self.starts[rows] // ALIGNED]
        return found

    def encode(self, starts: Int64s, sizes: Int64s) -> tuple[Int64s, pa.BinaryArray]:
        """Find the different values among parts of the memory.

        Args:
            starts: Where each part begins.
            sizes: Its bytes.

        Returns:
            Which of the values each part is, and the values, each once.
        """
        return different(self.data, starts, sizes)


class Ordering:
    """Holds records back until nothing older can follow.

    Each processor has a ring of its own, in order; what is younger than another one's next record
    has to wait. (`kcap.readers.live.bpf.order` does this for records that begin with their time.)
    """

    def __init__(self) -> None:
        self._held: list[Samples] = []

    def add(self, samples: Samples) -> None:
        """Take in records of one processor.

        Args:
            samples: They.
        """
        if len(samples.starts):
            self._held.append(samples)

    def until(self, horizon_ns: int | None) -> Samples:
        """Give what is ready.

        Args:
            horizon_ns: Records up to this time; None for all.

        Returns:
            They, in order of time; of one time, in the order in which they came.
        """
        ready, self._held, held = [], [], self._held
        for part in held:
            if horizon_ns is None:
                ready.append(part)
                continue
            old = part.times_ns <= horizon_ns
            if old.any():
                ready.append(part if old.all() else part.take(old))
            if not old.all():
                self._held.append(_compact(part.take(~old)))
        joined = _joined(ready)
        return joined.take(np.argsort(joined.times_ns, kind="stable"))


def _compact(part: Samples) -> Samples:
    """Records without the memory of those that are gone."""
    first = int(part.starts.min())
    last = int((part.starts + part.sizes).max())
    data = np.zeros(last - first + _SPARE, np.uint8)
    data[: last - first] = part.data[first:last]
    return part._replace(data=data, starts=part.starts - first)


def _joined(parts: list[Samples]) -> Samples:
    """Records of several memories in one."""
    if len(parts) < 2:  # noqa: PLR2004
        return parts[0] if parts else Samples.none()
    at, starts = 0, []
    for part in parts:
        starts.append(part.starts + at)
        at += len(part.data) & -ALIGNED
    data = np.concatenate([part.data[: len(part.data) & -ALIGNED] for part in parts])
    columns = [np.concatenate([part[i] for part in parts]) for i in range(2, 6)]
    return Samples(data, np.concatenate(starts), *columns)


def spared(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Memory with some bytes to spare behind it.

    Args:
        data: What it holds.

    Returns:
        A copy.
    """
    made = np.zeros(len(data) + -len(data) % ALIGNED + _SPARE, np.uint8)
    made[: len(data)] = data
    return made
