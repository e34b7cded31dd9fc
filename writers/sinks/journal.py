"""The systemd journal here, by its own protocol: each event an entry with its fields.

The journal has no answers either, and takes no more than ``RateLimitBurst=`` of its settings says.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NoReturn

from kcap.errors import KcapError
from kcap.writers.sinks import server
from kcap.writers.sinks.server import Address
from kcap.writers.sinks.syslog import INFORMATIONAL, SEVERITIES
from kcap.writers.sinks.transport import (
    InterruptedDeliveryError,
    Message,
    Options,
    Refused,
    option,
)

if sys.platform != "win32":  # here, for later nothing can be read
    import fcntl

_SOCKET: Final = "/run/systemd/journal/socket"
_TIMEOUT_S: Final = 30.0
_NAME_MAX: Final = 64
_FOREIGN: Final = re.compile(r"[^A-Z0-9_]+")
_PREFIX: Final = "KCAP_"


@dataclass(frozen=True, kw_only=True)
class JournalOptions(Options):
    """The settings of `Journal`."""

    identifier: str = option("the entry's SYSLOG_IDENTIFIER", default="kcap")
    severity: str = option(
        "priority: a name or number of syslog's, or that of an alert",
        default="{{ arg_severity }}",
        template=True,
    )
    fields: bool = option("give each value of an event a field of its own, too", default=True)


class Journal:
    """A way into the journal of this host.

    Args:
        settings: Its socket, if that is not where it always is, and what to tell it.

    Raises:
        KcapError: The URL names a host.
    """

    options: ClassVar = JournalOptions
    batch: ClassVar = 500
    formats: ClassVar = ("jsonl", "template")

    def __init__(self, settings: JournalOptions) -> None:
        place = settings.url.removeprefix("journal:")
        path = place.removeprefix("//")
        if path and not path.startswith("/"):
            raise KcapError(
                f"journal:{place}: the journal is on this host", expected="journal: or journal:PATH"
            )
        self._to = Address("journal", "", 0, None, None, path or _SOCKET)
        self._settings = settings
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect.

        Raises:
            InterruptedDeliveryError: No journal listens here.
        """
        self.close()
        self._socket = server.connect_unix(self._to, _TIMEOUT_S, socket.SOCK_DGRAM)

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Hand entries over; the journal waits for nobody, so neither is it waited for.

        Args:
            messages: What to log.

        Returns:
            None.

        Raises:
            InterruptedDeliveryError: The journal went away.
        """
        if self._socket is None:
            raise InterruptedDeliveryError(f"{self._to}: not connected")
        for at, message in enumerate(messages):
            entry = b"".join(self._entry(message))
            try:
                self._hand_over(self._socket, entry)
            except OSError as e:
                self._fail(e, at)
        return []

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _fail(self, error: OSError, taken: int) -> NoReturn:
        self.close()
        raise server.failure(self._to, error, taken) from error

    def _hand_over(self, to: socket.socket, entry: bytes) -> None:
        try:
            to.send(entry)
        except OSError as e:
            if e.errno not in {errno.EMSGSIZE, errno.ENOBUFS} or sys.platform != "linux":
                raise
            _send_sealed(to, entry)

    def _entry(self, message: Message) -> Iterator[bytes]:
        given = message.values.get("severity", "").strip().lower()
        yield _field("MESSAGE", message.body)
        yield _field("PRIORITY", str(SEVERITIES.get(given, INFORMATIONAL)).encode())
        yield _field("SYSLOG_IDENTIFIER", self._settings.identifier.encode())
        yield _field("KCAP_ID", message.id.encode())
        if message.ts_ns is not None:
            yield _field("KCAP_TIME_NS", str(message.ts_ns).encode())
        if self._settings.fields:
            for name, value in _values(message.body):
                yield _field(name, value)


def _values(body: bytes) -> Iterator[tuple[str, bytes]]:
    """The values of an event that is a JSON object."""
    for name, value in (server.record(body) or {}).items():
        field = (_PREFIX + _FOREIGN.sub("_", name.upper()))[:_NAME_MAX]
        if field not in {"KCAP_ID", "KCAP_TIME_NS"}:
            yield field, _text(value)


def _text(value: Any) -> bytes:  # noqa: ANN401
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="replace")


def _field(name: str, value: bytes) -> bytes:
    """A field; with the length before the value where that has line ends."""
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)
    return b"%s=%s\n" % (name.encode(), value)


def _send_sealed(to: socket.socket, entry: bytes) -> None:
    """Hand over what is too long for a datagram: in memory that nobody can change any more."""
    memory = os.memfd_create("kcap", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        with os.fdopen(memory, "wb", closefd=False) as file:
            file.write(entry)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        socket.send_fds(to, [], [memory])
    finally:
        os.close(memory)
