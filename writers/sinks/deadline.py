"""A limit to a whole exchange with a server, where its library knows only one for each wait."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

_ANSWERING = ".receive_response_headers.started"
_CONNECTED = (".connect_tcp.complete", ".start_tls.complete")


class Deadline:
    """Ends connections of httpx's when a request took too long altogether.

    A server that gives a byte now and then is never silent for long enough to be left; that ends
    it. What to send has its time, and the answer has one of its own.

    Who waits can't look at the clock: another thread calls `check`. There is none in here, for a
    thread that begins in the middle of a recording is an event of its own.

    Args:
        answer_s: How long the answer may take, from the end of the request to its last byte.
    """

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._lock = threading.Lock()
        self._due_s: float | None = None
        self._sockets: list[socket.socket] = []
        self.passed = False
        """Whether the last request took too long."""

    def begin(self, send_s: float) -> None:
        """A request begins.

        Args:
            send_s: How long it may take until it is sent, with connecting.
        """
        with self._lock:
            self.passed = False
            self._due_s = time.monotonic() + send_s

    def finish(self) -> None:
        """The request has been answered, or has failed."""
        with self._lock:
            self._due_s = None

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """What httpx calls at each step of a request: its ``trace``.

        Args:
            event: The step.
            info: What it is about.
        """
        if event.endswith(_ANSWERING):
            with self._lock:
                if self._due_s is not None:
                    self._due_s = time.monotonic() + self._answer_s
        elif event.endswith(_CONNECTED):
            opened = info["return_value"].get_extra_info("socket")
            with self._lock:
                # The socket under TLS was given up for the one above it.
                self._sockets = [s for s in self._sockets if s.fileno() >= 0]
                self._sockets.append(opened)

    def check(self) -> None:
        """Hang up if it is time: whoever waits for the server wakes up."""
        with self._lock:
            if self._due_s is None or time.monotonic() < self._due_s:
                return
            self.passed, self._due_s = True, None
            for opened in self._sockets:
                # The method of a socket with TLS would first take its TLS away.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(opened, socket.SHUT_RDWR)
