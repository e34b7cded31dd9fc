"""The host that is recorded: its name, its boot, its clocks."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Final, NamedTuple

from kcap.model.side import SourceInfo

DRIFT_NS: Final = 1_000_000
"""Clocks that moved less against each other keep their offset.

The clocks are slewed all the time; following that would make the times of events depend on
when somebody looked.
"""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Clocks(NamedTuple):
    """What to add to CLOCK_MONOTONIC."""

    realtime_ns: int
    """To get CLOCK_REALTIME, ns since 1970 UTC."""
    boottime_ns: int
    """To get CLOCK_BOOTTIME, which goes on while the machine sleeps."""

    @classmethod
    def measure(cls) -> Clocks:
        """Read the clocks together, as near to each other as five tries allow."""
        tries = []
        for _ in range(5):
            before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            realtime_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
            boottime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            middle_ns = (before_ns + after_ns) // 2
            offsets = cls(realtime_ns - middle_ns, boottime_ns - middle_ns)
            tries.append((after_ns - before_ns, offsets))
        return min(tries)[1]

    def drifted(self, other: Clocks) -> bool:
        """Whether the clocks moved against each other by more than `DRIFT_NS`."""
        return any(abs(a - b) > DRIFT_NS for a, b in zip(self, other, strict=True))

    def pair(self) -> tuple[int, int]:
        """Realtime and boot time of now, for `SourceInfo.clocks`."""
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return now_ns + self.realtime_ns, now_ns + self.boottime_ns


def source(collector: str, clocks: Clocks) -> SourceInfo:
    """Describe this host as the source of a new recording.

    Args:
        collector: What produces the events.
        clocks: The clocks now.

    Returns:
        The entry, with a random origin.
    """
    uname = os.uname()
    try:
        boot_id = _BOOT_ID.read_text("ascii").strip()
    except OSError:
        boot_id = None
    return SourceInfo(
        collector=collector,
        host=uname.nodename,
        boot_id=boot_id,
        origin=secrets.token_hex(16),
        clocks=(clocks.pair(),),
        details={"kernel": uname.release, "machine": uname.machine, "system": uname.sysname},
    )
