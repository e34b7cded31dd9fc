"""What a service manager is told: systemd's notification protocol (sd_notify), in Python alone.

A service of ``Type=notify`` counts as started when it says so, and one with ``WatchdogSec=`` as
hung when it no longer does. Where no manager listens, every method does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Self

from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.readers.live.guard.channel import Answer, Channel, Serve

QUESTION: Final = "notify"
"""What a worker asks the main process for."""

_TEXT_CHARS: Final = 1024
_ALLOWED: Final = ("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=")
"""What is sent for a worker: nothing of it names another main process, or keeps a descriptor."""

_STATUS_S: Final = 5.0


class Notifier:
    """Tells the service manager how the service is.

    The socket is opened here, so that whoever gives up rights afterwards can still use it. Only
    the service's main process is listened to (``NotifyAccess=main``).

    Args:
        environment: Where the manager has put its address, and how often it wants a sign of life.

    Raises:
        KcapError: There is an address that is none, or that cannot be reached.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        told = os.environ if environment is None else environment
        address = told.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(told) if address else None
        """Seconds within which the manager wants a sign of life; None where it wants none."""
        self._due_s: float | None = None
        self._status: str | None = None
        self._channel: Channel | None = None
        self._socket = _connected(address) if address else None

    @property
    def listened(self) -> bool:
        """Whether a service manager listens."""
        return self._socket is not None

    def ready(self, status: str = "") -> bool:
        """Say that the service has started.

        Args:
            status: What it does now, in a line.

        Returns:
            See `send`.
        """
        return self.send("READY=1", *self._told(status))

    def stopping(self, status: str = "") -> bool:
        """Say that the service is ending; what it still has to write may take a while.

        Args:
            status: What it does now, in a line.

        Returns:
            See `send`.
        """
        return self.send("STOPPING=1", *self._told(status))

    def status(self, text: str) -> bool:
        """Say what the service does; ``systemctl status`` shows it.

        Args:
            text: A line. The same as before is not sent again.

        Returns:
            See `send`.
        """
        told = self._told(text) if text != self._status else ()
        return self.send(*told) if told else False

    def watchdog(self, now_s: float) -> bool:
        """Give a sign of life, twice within the time in which the manager wants one.

        Args:
            now_s: The monotonic clock; call this as often as is convenient.

        Returns:
            See `send`; False also where none is due.
        """
        if self.watchdog_s is None or (self._due_s is not None and now_s < self._due_s):
            return False
        self._due_s = now_s + self.watchdog_s / 2
        return self.send("WATCHDOG=1")

    def send(self, *assignments: str) -> bool:
        """Send assignments as sd_notify(3) has them.

        Args:
            assignments: Each ``NAME=VALUE``.

        Returns:
            Whether it went out. A manager that starts anew or does not read is no reason to stop
            recording, and never waited for.
        """
        if self._socket is None:
            return False
        datagram = "\n".join(assignments).encode(errors="replace")
        try:
            if self._channel is not None:
                return bool(self._channel.ask(QUESTION, datagram))
            self._socket.send(datagram, socket.MSG_DONTWAIT)
        except (OSError, KcapError):
            return False
        return True

    def through(self, channel: Channel) -> None:
        """Have the main process send everything from now on: in a worker, to which nobody listens.

        Args:
            channel: Leads to the main process, which answers as `answers` says.
        """
        self._channel = channel

    def answers(self) -> dict[str, Serve]:
        """What the main process answers to a worker that was sent `through` a channel to it."""
        from kcap.readers.live.guard.channel import Answer

        def serve(datagram: bytes) -> Answer:
            lines = datagram.decode(errors="replace").split("\n")
            if len(lines) > len(_ALLOWED) or not all(map(_allowed, lines)):
                raise KcapError(
                    "this is not told to a service manager", expected="; ".join(_ALLOWED)
                )
            return Answer(b"1" if self.send(*lines) else b"")

        return {QUESTION: serve}

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        """Use it in a ``with`` statement."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the socket."""
        self.close()

    def _told(self, status: str) -> tuple[str, ...]:
        """The assignment of a status line; no line feed in it can begin another one."""
        if not status:
            return ()
        self._status = status
        return ("STATUS=" + " ".join(status[:_TEXT_CHARS].split()),)


class Signs:
    """What the service manager hears of a recording: that it has begun, how it does, that it lives.

    Args:
        notifier: Tells it.
        status: Says in a line how the recording does; asked a few times a minute.
    """

    def __init__(self, notifier: Notifier, status: Callable[[], str]) -> None:
        self._notifier = notifier
        self._status = status
        self._due_s: float | None = None

    def check(self, now_s: float) -> None:
        """After each batch: say what there is to say. The first one says that it has begun.

        Args:
            now_s: The monotonic clock.
        """
        if not self._notifier.listened:
            return
        if self._due_s is None or now_s >= self._due_s:
            tell = self._notifier.ready if self._due_s is None else self._notifier.status
            tell(self._status())
            self._due_s = now_s + _STATUS_S
        self._notifier.watchdog(now_s)


def _allowed(line: str) -> bool:
    """Whether a worker may have a line sent."""
    if line.startswith("STATUS="):
        return len(line) <= len("STATUS=") + _TEXT_CHARS and line.isprintable()
    return line in _ALLOWED


def _watchdog_s(told: Mapping[str, str]) -> float | None:
    """How often a sign of life is wanted of this process."""
    wanted, pid = told.get("WATCHDOG_USEC", ""), told.get("WATCHDOG_PID", "")
    if not wanted or (pid and pid != str(os.getpid())):
        return None
    if not wanted.isdecimal() or not int(wanted):
        raise KcapError(
            f"WATCHDOG_USEC is {wanted[:_TEXT_CHARS]!r}", expected="microseconds above 0"
        )
    return int(wanted) / 10**6


def _connected(address: str) -> socket.socket:
    """A socket of the manager's address: a path, or with @ an abstract name."""
    if address[0] not in "/@" or len(address) == 1:
        raise KcapError(
            f"NOTIFY_SOCKET is {address[:_TEXT_CHARS]!r}",
            expected="a path, or @ and an abstract name, as systemd gives",
        )
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        # In Python a name that begins with NUL is an abstract one.
        made.connect("\0" + address[1:] if address[0] == "@" else address)
    except (OSError, ValueError) as e:
        made.close()
        why = getattr(e, "strerror", None) or e
        raise KcapError(
            f"the service manager cannot be told: {why}",
            file=address[:_TEXT_CHARS],
            hint="start kcap without NOTIFY_SOCKET where no service manager listens",
        ) from e
    return made
