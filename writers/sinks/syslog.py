"""Syslog by RFC 5424: over UDP, TCP, TLS, or the socket of the daemon here.

Syslog has no answers. Over TCP a message counts as taken when the other machine's kernel has it,
and what the daemon there had not read when it died is lost. Each message carries its id.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final, NoReturn

from kcap.errors import KcapError
from kcap.writers.sinks import server
from kcap.writers.sinks.server import ServerOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused, option

if sys.platform != "win32":  # here, for later nothing can be read
    import fcntl
    import termios

FACILITIES: Final = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", *(f"local{n}" for n in range(8)),
)  # fmt: skip
"""The names of facilities, by number."""

SEVERITIES: Final = {
    "emerg": 0, "emergency": 0, "panic": 0, "alert": 1, "crit": 2, "critical": 2, "err": 3,
    "error": 3, "high": 3, "warning": 4, "warn": 4, "medium": 4, "notice": 5, "low": 5, "info": 6,
    "informational": 6, "normal": 6, "debug": 7, **{str(n): n for n in range(8)},
}  # fmt: skip
"""What syslog and rules call severities, to syslog's number."""
INFORMATIONAL: Final = 6
"""The severity of what says none."""

_PORTS: Final = {"udp": 514, "tcp": 601, "tls": 6514, "unix": 0}
_DEV_LOG: Final = "/dev/log"
_BOM: Final = b"\xef\xbb\xbf"
_UNPRINTABLE: Final = re.compile(r"[^!-~]+")
_SD_NAME: Final = re.compile(r"[!#-<>-\\^-~]{1,32}")
_SD_SPECIAL: Final = re.compile(r'(["\\\]])')
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LOOK_BYTES: Final = 1 << 12
_LOOK_S: Final = 0.001


@dataclass(frozen=True, kw_only=True)
class SyslogOptions(ServerOptions):
    """The settings of `Syslog`."""

    facility: str = option("facility, by name or number", default="local0")
    severity: str = option(
        "severity: a name or number of syslog's, or that of an alert",
        default="{{ arg_severity }}",
        template=True,
    )
    hostname: str = option("whose event it is", default="{{ host }}", template=True)
    app_name: str = option("the program that reports", default="kcap")
    process: str = option("its PROCID field", default="{{ pid }}", template=True)
    message_type: str = option("its MSGID field", default="{{ event }}", template=True)
    sd_id: str = option("the structured data that has the id", default="kcap@32473")
    bom: bool = option("begin UTF-8 text with a byte order mark, by the letter", default=False)


class Syslog:
    """A connection to a syslog daemon.

    Args:
        settings: Where it is, and what to tell it.

    Raises:
        KcapError: An option is wrong, or a certificate can't be read.
    """

    options: ClassVar = SyslogOptions
    batch: ClassVar = 500
    formats: ClassVar = ("jsonl", "template", "cef", "line", "tracee-json")

    def __init__(self, settings: SyslogOptions) -> None:
        scheme = settings.url.partition(":")[0]
        self._over = scheme.removeprefix("syslog+")
        if self._over not in _PORTS:
            raise KcapError(
                f"{scheme} is no way to a syslog daemon",
                expected=", ".join(f"syslog+{over}" for over in _PORTS),
            )
        self._to = server.address(settings, _PORTS[self._over])
        if self._over == "unix" and not self._to.path:
            self._to = self._to._replace(path=_DEV_LOG)
        self._tls = server.context(settings) if self._over == "tls" else None
        if not _SD_NAME.fullmatch(settings.sd_id):
            raise KcapError(f"sd-id {settings.sd_id!r}", expected="NAME@NUMBER")
        self._settings = settings
        self._facility = _facility(settings.facility)
        self._app = _word(settings.app_name, 48)
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect; over UDP that only finds out where to.

        Raises:
            InterruptedDeliveryError: Nobody is there.
            KcapError: The certificate is not one to trust.
        """
        self.close()
        to, timeout_s = self._to, self._settings.timeout
        if self._over == "udp":
            self._socket = server.connect_udp(to, timeout_s)
        elif self._over == "unix":
            self._socket = server.connect_unix(to, timeout_s, socket.SOCK_DGRAM)
        else:
            self._socket = server.connect(to, timeout_s, self._tls)

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Send messages, and over TCP wait until the other kernel has them.

        Args:
            messages: What to send.

        Returns:
            Those that are longer than a datagram, if it goes by datagrams.

        Raises:
            InterruptedDeliveryError: The connection broke.
        """
        if self._socket is None:
            raise InterruptedDeliveryError(f"{self._to}: not connected")
        lines = [self._line(message) for message in messages]
        if self._socket.type == socket.SOCK_DGRAM:
            return self._send_datagrams(self._socket, lines)
        try:
            _look(self._socket)
            self._socket.sendall(b"".join(b"%d %s" % (len(line), line) for line in lines))
            _await_acknowledged(self._socket, self._settings.timeout)
        except OSError as e:
            self._fail(e)
        return []

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_datagrams(self, to: socket.socket, lines: Sequence[bytes]) -> list[Refused]:
        refused: list[Refused] = []
        for at, line in enumerate(lines):
            try:
                to.send(line)
            except OSError as e:
                if e.errno == errno.EMSGSIZE:
                    refused.append(Refused(at, f"{len(line)} bytes are too many for a datagram"))
                    continue
                self._fail(e, at, refused)
        return refused

    def _fail(self, error: OSError, taken: int = 0, refused: Sequence[Refused] = ()) -> NoReturn:
        self.close()
        raise server.failure(self._to, error, taken, refused) from error

    def _line(self, message: Message) -> bytes:
        given = message.values
        severity = SEVERITIES.get(given.get("severity", "").strip().lower(), INFORMATIONAL)
        id_ = _SD_SPECIAL.sub(r"\\\1", message.id)
        head = (
            f"<{self._facility * 8 + severity}>1 {_timestamp(message.ts_ns)}"
            f" {_word(given.get('hostname', ''), 255)} {self._app}"
            f" {_word(given.get('process', ''), 128)} {_word(given.get('message_type', ''), 32)}"
            f' [{self._settings.sd_id} id="{id_}"] '
        )
        return head.encode() + (_BOM if self._settings.bom else b"") + message.body


def _facility(given: str) -> int:
    if given in FACILITIES:
        return FACILITIES.index(given)
    if given.isdecimal() and int(given) < len(FACILITIES):
        return int(given)
    raise KcapError(f"facility {given!r}", expected=f"one of {', '.join(FACILITIES)}")


def _word(text: str, length: int) -> str:
    """A field of the header: printable ASCII without blanks, ``-`` for none."""
    return _UNPRINTABLE.sub("_", text)[:length] or "-"


def _timestamp(ts_ns: int | None) -> str:
    """A time with the six digits that RFC 5424 has room for; ``-`` for none."""
    if ts_ns is None:
        return "-"
    try:
        moment = _EPOCH + timedelta(microseconds=ts_ns // 1000)
    except OverflowError:  # Years beyond 9999; the message itself has the time.
        return "-"
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _look(to: socket.socket) -> None:
    """See whether the other end is still there: who has hung up takes one more write."""
    failed = to.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed:
        raise OSError(failed, os.strerror(failed))
    timeout_s = to.gettimeout()
    to.settimeout(0)
    try:
        while to.recv(_LOOK_BYTES):  # Nobody reads what a syslog daemon says.
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return
    finally:
        to.settimeout(timeout_s)
    raise ConnectionResetError(errno.ECONNRESET, "the server hung up")


def _await_acknowledged(to: socket.socket, timeout_s: float) -> None:
    """Wait until the other kernel has all that was written."""
    if sys.platform != "linux":
        return
    for _ in range(int(timeout_s / _LOOK_S)):
        left = fcntl.ioctl(to.fileno(), termios.TIOCOUTQ, bytes(4))
        _look(to)  # behind it: a connection that was reset has nothing left either
        if not any(left):
            return
        select.select([to], [], [], _LOOK_S)
    raise TimeoutError
