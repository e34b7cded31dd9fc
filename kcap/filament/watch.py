"""What looks after a filament from inside its process: the time of a call, and what is forbidden.

A timer looks several times in the time that a call may take whether it is still the same call.
Python code is stopped there, which tells the line. Code in C that does not come back is ended by
the fault handler's own thread, which writes the line to standard error.
"""

from __future__ import annotations

import _thread
import faulthandler
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

_LOOKS: Final = 10
"""How often the timer looks in the time that a call may take."""

_STDERR: Final = 2

_PROCESS: Final = "starts a process"
_FORBIDDEN: Final = {
    "os.exec": _PROCESS,
    "os.fork": _PROCESS,
    "os.forkpty": _PROCESS,
    "os.posix_spawn": _PROCESS,
    "os.spawn": _PROCESS,
    "os.system": _PROCESS,
    "pty.spawn": _PROCESS,
    "subprocess.Popen": _PROCESS,
}
"""Audit events of Python, and what they mean."""

_NETWORK: Final = "socket."
_HARMLESS: Final = frozenset({"socket.gethostname"})


def forbid(refuse: Callable[[str], NoReturn]) -> None:
    """Refuse processes, threads and sockets, with more to say than the kernel's refusal has.

    Args:
        refuse: Is told what was tried, and ends the filament.
    """

    def hook(event: str, _: object) -> None:
        if event in _FORBIDDEN:
            refuse(_FORBIDDEN[event])
        if event.startswith(_NETWORK) and event not in _HARMLESS:
            refuse("uses the network")

    def start_new_thread(*_: object) -> NoReturn:
        refuse("starts a thread")

    sys.addaudithook(hook)
    # There is no audit event for these.
    _thread.start_new_thread = start_new_thread
    _thread.start_new = start_new_thread
    threading._start_new_thread = start_new_thread  # type: ignore[attr-defined]  # noqa: SLF001


class Watch:
    """Sees that no call takes longer than it may.

    Args:
        call_s: How long that is.
        cell: Its first word is the position of the call.
        refuse: Is told where the filament is when a call took longer, and ends it.
    """

    def __init__(
        self, call_s: float, cell: memoryview, refuse: Callable[[FrameType | None], NoReturn]
    ) -> None:
        self.requests = 0
        """Requests so far: positions are those of a request."""
        self._call_s = call_s
        self._cell = cell
        self._refuse = refuse
        self._paused = 0
        self._seen = (0, 0)
        self._looks = 0

    def start(self) -> None:
        """Begin."""
        faulthandler.enable(_STDERR, all_threads=False)
        signal.signal(signal.SIGALRM, self._look)
        every_s = self._call_s / _LOOKS
        signal.setitimer(signal.ITIMER_REAL, every_s, every_s)
        self._arm()

    def stop(self) -> None:
        """End."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A time that is not the filament's: it waits for the run.

        Yields:
            Nothing.
        """
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def _look(self, _: int, frame: FrameType | None) -> None:
        self._arm()
        at = self.requests, self._cell[0]
        if self._paused:
            return
        self._looks = self._looks + 1 if at == self._seen else 0
        self._seen = at
        if self._looks >= _LOOKS:
            self._refuse(frame)

    def _arm(self) -> None:
        """Put the end of code in C off, as long as Python code runs in between."""
        faulthandler.dump_traceback_later(self._call_s * (1 + 2 / _LOOKS), exit=True, file=_STDERR)
