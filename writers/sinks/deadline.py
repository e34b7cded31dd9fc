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
    it. What to send has its time, and the answer has one of its own: that of sending is longer for
    more to send.

    Args:
        answer_s: How long the answer may take, from the end of the request to its last byte.
    """

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._changed = threading.Condition()
        self._due_s: float | None = None
        self._wakes_s: float | None = None
        """When the thread looks again; None: when it is told to."""
        self._sockets: list[socket.socket] = []
        self._thread: threading.Thread | None = None
        self._ended = False
        self.passed = False
        """Whether the last request took too long."""

    def begin(self, send_s: float) -> None:
        """A request begins.

        Args:
            send_s: How long it may take until it is sent, with connecting.
        """
        self.passed = False
        self._set(time.monotonic() + send_s)
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """The request has been answered, or has failed."""
        self._set(None)

    def close(self) -> None:
        """There are no further requests."""
        with self._changed:
            self._ended = True
            self._due_s = None
            self._sockets.clear()
            self._changed.notify()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """What httpx calls at each step of a request: its ``trace``.

        Args:
            event: The step.
            info: What it is about.
        """
        if event.endswith(_ANSWERING):
            self._set(time.monotonic() + self._answer_s)
        elif event.endswith(_CONNECTED):
            opened = info["return_value"].get_extra_info("socket")
            with self._changed:
                # The socket under TLS was given up for the one above it.
                self._sockets = [s for s in self._sockets if s.fileno() >= 0]
                self._sockets.append(opened)

    def _set(self, due_s: float | None) -> None:
        with self._changed:
            if self.passed and due_s is not None:
                return
            self._due_s = due_s
            # Most requests end long before they are due: they wake nobody.
            if due_s is not None and (self._wakes_s is None or due_s < self._wakes_s):
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                if self._due_s is None or now < self._due_s:
                    self._wakes_s = self._due_s
                    self._changed.wait(None if self._due_s is None else self._due_s - now)
                    continue
                self.passed, self._due_s = True, None
                for opened in self._sockets:
                    # Whoever waits for it wakes up. That of TLS would first take its TLS away.
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(opened, socket.SHUT_RDWR)
