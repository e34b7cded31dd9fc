"""What the processes that start readers have in common: they hold nothing, and end in time."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

ORPHAN_S: Final = 30.0
"""What those that such a process works for have to end in when the one that made it has ended."""

_IGNORED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
)


def let_go(kept: Collection[int]) -> None:
    """Let go of what was inherited: a descriptor held here keeps a pipe open for its reader.

    Args:
        kept: Descriptors that are needed; the standard ones lead nowhere then.

    Raises:
        OSError: A descriptor or a folder can't be opened.
    """
    # It ends when its clients end. A signal to the group of processes, by the terminal or by
    # systemd, asks them to end, and until they have they need it.
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    close_all_but({0, 1, 2, *kept})
    os.chdir("/")
    gc.disable()


def close_all_but(kept: Collection[int]) -> None:
    """Close descriptors.

    Args:
        kept: Those that stay open.
    """
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # that of this list itself
                os.close(int(name))


class Parent:
    """Who made this process, and how long it has been gone."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._gone_s: float | None = None

    @property
    def long_gone(self) -> bool:
        """Whether it ended so long ago that those it made with us should have ended, too.

        Else whoever has taken over one of them, and kills the rest, would keep our rights for ever.
        """
        if os.getppid() == self._pid:
            return False
        now_s = time.monotonic()
        if self._gone_s is None:
            self._gone_s = now_s
        return now_s - self._gone_s > ORPHAN_S


def runs(pid: int) -> bool:
    """Whether a process waits for nothing but a processor.

    Args:
        pid: The process.

    Returns:
        The same; False where it is gone.
    """
    try:
        about = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return about[about.rfind(b")") + 2 :][:1] == b"R"


def await_end(pid: int, limit_s: float) -> None:
    """Wait for a child that is about to end; one that others hold on to is killed.

    Args:
        pid: The child.
        limit_s: How long it has.
    """
    until_s = time.monotonic() + limit_s
    # Whoever waits for all children may have seen its end.
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        while time.monotonic() < until_s:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
