"""A recorder that stood still, and why: a signal, the freezer, a host asleep, no processor."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

GAP_NS: Final = 3 * 10**9
"""A longer time without a look is a standstill."""

STOPPED_NS: Final = 10**9
"""So is this one, where the process was told to continue meanwhile."""

_TICK_S: Final = 0.5
_SLACK_NS: Final = 10**9
_CGROUP2: Final = "cgroup2"


class _Clocks(NamedTuple):
    """What tells apart the ways not to run."""

    boot_ns: int
    awake_ns: int
    used_ns: int
    """Processor time of the process."""
    waited_ns: int
    """Time in which this thread could have run, and got no processor."""

    @classmethod
    def read(cls) -> _Clocks:
        return cls(
            time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            time.process_time_ns(),
            _run_delay_ns(),
        )


class Standstill:
    """Notices that time passed in which the recorder did nothing.

    Made by the main thread of the process that is to be watched: a signal handler belongs to it.
    """

    def __init__(self) -> None:
        self._last: _Clocks | None = None
        self._continued = 0
        self._continued_before = False
        self._group, folder = _own_group()
        self._events = None if folder is None else _opened(folder / "cgroup.events")
        self._poll = select.poll()
        if self._events is not None:
            self._poll.register(self._events, select.POLLPRI)
            self._reread()
        self._before = signal.signal(signal.SIGCONT, self._note)
        self._pulse = _Pulse()

    def look(self) -> list[str]:
        """Look at the clocks.

        Returns:
            A reason where the last look is too long ago.
        """
        now, last = _Clocks.read(), self._last
        # Who is stopped within a look is told to continue in that one, and has the gap in the next.
        continued = self._continued > 0 or self._continued_before
        self._continued_before, self._continued = self._continued > 0, 0
        longest_ns = self._pulse.longest_ns()
        self._last = now
        if last is None:
            return []
        gap_ns = now.boot_ns - last.boot_ns
        if gap_ns <= (STOPPED_NS if continued else GAP_NS):
            return []
        why = "stopped by a signal" if continued else self._why(last, now, longest_ns)
        return [f"the recorder did not run for {gap_ns / 10**9:.3f} s: {why}"]

    def close(self) -> None:
        """Notice nothing more; as before for whoever continues the process."""
        self._pulse.close()
        signal.signal(signal.SIGCONT, self._before)
        if self._events is not None:
            os.close(self._events)
            self._events = None

    def _note(self, _number: int, _frame: object) -> None:
        self._continued += 1

    def _why(self, last: _Clocks, now: _Clocks, longest_ns: int) -> str:
        """The likeliest reason, those first that leave no doubt."""
        gap_ns = now.boot_ns - last.boot_ns
        half_ns = gap_ns // 2
        if gap_ns - (now.awake_ns - last.awake_ns) > half_ns:
            return "the host was asleep"
        if self._froze():
            return f"frozen with its control group {self._group}"
        used_ns, waited_ns = now.used_ns - last.used_ns, now.waited_ns - last.waited_ns
        if used_ns + waited_ns > half_ns:
            return "it got no processor" if waited_ns > used_ns else "it was busy with what it had"
        if longest_ns > gap_ns - _SLACK_NS:
            return "frozen, by its control group or with the whole machine"
        return "it waited for its output, a device, or another process of the recorder"

    def _froze(self) -> bool:
        """Whether the control group was frozen or thawed since the last time it was asked for."""
        if self._events is None or not self._poll.poll(0):
            return False
        self._reread()
        return True

    def _reread(self) -> None:
        """Read what the kernel said: it then tells of the next change."""
        with contextlib.suppress(OSError):  # the group is gone with all in it, but not this process
            assert self._events is not None
            os.pread(self._events, 4096, 0)


class _Pulse:
    """A thread that does nothing but run: it stands still only where the whole process does."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._last_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._longest_ns = 0
        self._thread = threading.Thread(target=self._run, name="kcap-pulse", daemon=True)
        self._thread.start()

    def longest_ns(self) -> int:
        """The longest time without a beat since this was asked last, one that lasts included."""
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        longest_ns, self._longest_ns = max(self._longest_ns, now_ns - self._last_ns), 0
        return longest_ns

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(_TICK_S):
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self._longest_ns = max(self._longest_ns, now_ns - self._last_ns)
            self._last_ns = now_ns


def _run_delay_ns() -> int:
    """How long this thread waited for a processor so far; 0 where the kernel does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _own_group() -> tuple[str, Path | None]:
    """This process's control group of version 2, and its folder; None where none is mounted."""
    try:
        groups = Path("/proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return "", None
    own = next((line[3:] for line in groups if line.startswith("0::")), "")
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        if own and rest.split(" ", 1)[0] == _CGROUP2:
            root, point = fields.split(" ")[3:5]
            return own, Path(point + own.removeprefix(root.rstrip("/")))
    return own, None


def _opened(path: Path) -> int | None:
    """A descriptor; None for the root group, which has no such file, and where it is hidden."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
