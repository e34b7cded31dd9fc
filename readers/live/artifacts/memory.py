"""Memory of other processes: a region, or all that can be read.

Read through /proc/PID/mem, which tells a hole from its neighbours. A page may hold back whoever
reads it, for ever; whoever calls this must be one that can be killed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from kcap.readers.live.artifacts.copying import Copied, Spool

PAGE_BYTES: Final = 4096
_STEP_BYTES: Final = 1 << 18
_MAPS_BYTES: Final = 16 << 20
_REGIONS_MAX: Final = 16384
_NOT_MEMORY: Final = {b"[vvar]", b"[vvar_vclock]", b"[vsyscall]"}
UNREADABLE: Final = "unreadable memory"
HELD_BACK: Final = "timeout: userfaultfd holds the page back"
"""The kernel does not let readers of /proc wait for it."""
ENDED: Final = "the process ended before"


class Region(NamedTuple):
    """A mapping."""

    start: int
    end: int
    protection: str
    """As in /proc: ``r-xp``."""
    name: bytes


def regions(pid: int) -> Iterator[Region]:
    """The readable memory of a process, by address.

    Args:
        pid: The process.

    Yields:
        The mappings; at most `_REGIONS_MAX`.

    Raises:
        OSError: It has ended, or is not ours to read.
    """
    with Path(f"/proc/{pid}/maps").open("rb") as file:
        lines = file.read(_MAPS_BYTES).splitlines()
    for line in lines[:_REGIONS_MAX]:
        fields = line.split(None, 5)
        first, _, last = fields[0].partition(b"-")
        name = fields[5] if len(fields) > 5 else b""  # noqa: PLR2004
        if fields[1][:1] == b"r" and name not in _NOT_MEMORY:
            yield Region(int(first, 16), int(last, 16), fields[1].decode("ascii"), name)


def start_ticks(pid: int) -> int | None:
    """When a process began, in ticks since boot; None where it has ended.

    Args:
        pid: The process.

    Returns:
        The ticks.
    """
    try:
        about = Path(f"/proc/{pid}/stat").read_bytes()
        return int(about[about.rindex(b")") + 2 :].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def copy(
    pid: int,
    region: tuple[int, int],
    *,
    most_bytes: int,
    hashes: Collection[str] = (),
    step: Callable[[], None] = lambda: None,
    reason: str | None = None,
) -> Copied:
    """Copy memory.

    Args:
        pid: The process.
        region: Where it starts, and how many bytes.
        most_bytes: Bytes to keep; the rest is missing.
        hashes: Beside SHA-256: ``md5``, ``sha1``.
        step: Called each time something was read.
        reason: Why no more than that is kept.

    Returns:
        The copy; what can't be read is missing in it.

    Raises:
        OSError: The process has ended, or is not ours to read.
    """
    start, length = region
    end = start + length
    spool = Spool(most_bytes, reason or f"over {most_bytes} bytes")
    hashers: list[Any] = [hashlib.sha256()]
    hashers += [hashlib.new(each, usedforsecurity=False) for each in sorted(hashes)]
    whole = True
    held_back: list[tuple[int, int]] | None = None
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        at = start
        while at < end:
            if spool.full:
                spool.missing(end - at, spool.reason)
                whole = False
                break
            part, why = _read(memory, at, end)
            step()
            if part:
                spool.data(part)
                for each in hashers:
                    each.update(part)
                at += len(part)
            else:
                if why == UNREADABLE and held_back is None:
                    held_back = _held_back(pid, region)
                if why == UNREADABLE and any(a <= at < b for a, b in held_back or ()):
                    why = HELD_BACK
                beyond = end if spool.crowded or why == ENDED else _next_page(at)
                spool.missing(min(beyond, end) - at, why)
                whole, at = False, min(beyond, end)
    except BaseException:
        spool.drop()
        raise
    finally:
        os.close(memory)
    kept, ranges = spool.finish()
    told = {each.name: each.hexdigest() for each in hashers} if whole else {}
    return Copied(kept, spool.kept_bytes, ranges, told, None, changed=False)


def _held_back(pid: int, region: tuple[int, int]) -> list[tuple[int, int]]:
    """Mappings whose missing pages somebody else has to give."""
    found, last = [], (0, 0)
    try:
        with Path(f"/proc/{pid}/smaps").open("rb") as file:
            for line in file.read(_MAPS_BYTES).splitlines():
                name, _, rest = line.partition(b" ")
                if name == b"VmFlags:" and b"um" in rest.split():
                    found.append(last)
                elif b"-" in name:
                    first, _, end = name.partition(b"-")
                    last = (int(first, 16), int(end, 16))
                    if last[0] >= sum(region):
                        break
    except (OSError, ValueError):
        return []
    return found


def _next_page(at: int) -> int:
    return (at // PAGE_BYTES + 1) * PAGE_BYTES


def _read(memory: int, at: int, end: int) -> tuple[bytes, str]:
    """What comes next; else why it can't be read."""
    # A step that fails may have a readable beginning: the kernel then gives that alone.
    try:
        part = os.pread(memory, min(_STEP_BYTES, end - at), at)
    except OSError as e:
        return b"", UNREADABLE if e.errno in {errno.EIO, errno.EFAULT} else str(e.strerror)
    except OverflowError:
        return b"", UNREADABLE  # the kernel's half of the addresses
    return part, "" if part else ENDED
