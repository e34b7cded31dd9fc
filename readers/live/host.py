"""The host that is recorded: its name, its boot, its clocks."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from kcap import __version__
from kcap.model import text
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


_FACT_BYTES: Final = 64 << 10
"""What is read of a file that says something about the host."""

_ZONES: Final = "/zoneinfo/"


def facts(proc: str = "/proc", etc: str = "/etc", sys_: str = "/sys") -> dict[str, Any]:
    """What an analyst must know of this host and of this recorder, beside the events.

    Args:
        proc: Where proc is mounted.
        etc: Where the host's settings are.
        sys_: Where sysfs is mounted.

    Returns:
        Values for `SourceInfo.details`; what the host does not tell is left out.
    """
    release = dict(_os_release(etc))
    found = {
        "command_line": _clean(shlex.join(sys.argv)),
        "cpus": os.cpu_count(),
        "distribution": release.get("PRETTY_NAME") or release.get("NAME"),
        "distribution_id": release.get("ID"),
        "distribution_version": release.get("VERSION_ID"),
        "kcap": __version__,
        "kernel_command_line": _line(f"{proc}/cmdline"),
        "kernel_version": os.uname().version,
        "ld_so_preload": _content(f"{etc}/ld.so.preload"),
        "lockdown": _chosen(_line(f"{sys_}/kernel/security/lockdown")),
        "machine_id": _line(f"{etc}/machine-id"),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "pid": os.getpid(),
        "security_modules": (_line(f"{sys_}/kernel/security/lsm") or "").split(",")[:_LSMS_MAX],
        "tainted": _number(_line(f"{proc}/sys/kernel/tainted")),
        "time_zone": _time_zone(etc),
        "utc_offset_s": time.localtime().tm_gmtoff,
    }
    return {name: value for name, value in found.items() if value not in (None, "", [""])}


_LSMS_MAX: Final = 64


def _content(path: str) -> str | None:
    try:
        with Path(path).open("rb") as file:
            return text.clean(file.read(_FACT_BYTES))[0]
    except OSError:
        return None


def _line(path: str) -> str | None:
    return (_content(path) or "").strip() or None


def _clean(value: str) -> str:
    return text.cut(text.clean(value)[0])[0]


def _number(line: str | None) -> int | None:
    return int(line) if line is not None and line.isdecimal() else None


def _chosen(line: str | None) -> str | None:
    """What stands in brackets: ``none [integrity] confidentiality``."""
    return (line or "").partition("[")[2].partition("]")[0] or None


def _os_release(etc: str) -> Iterator[tuple[str, str]]:
    """The assignments of os-release(5), which are in the syntax of a shell."""
    for line in (_content(f"{etc}/os-release") or "").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            try:
                yield name, "".join(shlex.split(value))
            except ValueError:
                yield name, value  # an open quote; better than nothing


def _time_zone(etc: str) -> str | None:
    """The name of the host's time zone: where localtime leads, else what timezone says."""
    try:
        target = os.readlink(f"{etc}/localtime")  # noqa: PTH115
    except OSError:
        target = ""
    zone = target.partition(_ZONES)[2]
    return _clean(zone) if zone else _line(f"{etc}/timezone")
