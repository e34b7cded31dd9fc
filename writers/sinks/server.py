"""Where a server is, and how to reach it: what transports over TCP, TLS and Unix sockets share."""

from __future__ import annotations

import encodings.idna  # noqa: F401  (looked for when a name is resolved, when nothing can be read)
import json
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from kcap.errors import KcapError
from kcap.writers.sinks.transport import InterruptedDeliveryError, Options, Refused, option

TEXT_MAX: Final = 300
"""Characters of what a server says that an error repeats."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions(Options):
    """What the transports to a server have in common."""

    user: str | None = option("who logs in; also USER@ in the URL", default=None)
    password: str | None = option("the password", default=None, secret=True)
    timeout: float = option("seconds to wait for the server", default=30.0)
    tls_ca: str | None = option("certificates to trust (PEM) instead of the system's", default=None)
    tls_cert: str | None = option("our certificate (PEM)", default=None)
    tls_key: str | None = option("its key (PEM), if not in the same file", default=None)
    tls_verify: bool = option("whether the server's certificate is checked", default=True)


class Address(NamedTuple):
    """Where a server is and who we are to it."""

    scheme: str
    host: str
    port: int
    user: str | None
    password: str | None
    path: str
    """As in the URL, percent signs decoded, with its first slash."""

    def __str__(self) -> str:
        """The place as it may be shown: without a password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}" if host else f"{self.scheme}:{self.path}"


def address(settings: ServerOptions, port: int) -> Address:
    """Take a URL apart.

    Args:
        settings: With the URL; ``user`` and ``password`` go before what it says.
        port: Where the server is if the URL names no port; 0 where there are none.

    Returns:
        Where the server is.

    Raises:
        KcapError: The URL names no host, or no number for a port.
    """
    parts = urlsplit(settings.url)
    host, port = _place(parts, port)
    user, password = login(settings)
    return Address(parts.scheme, host, port, user, password, unquote(parts.path))


def login(settings: ServerOptions) -> tuple[str | None, str | None]:
    """Who we are to the server.

    Args:
        settings: ``user`` and ``password`` go before what the URL says.

    Returns:
        User and password, None where there are none.
    """
    parts = urlsplit(settings.url)
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return (
        user if settings.user is None else settings.user,
        password if settings.password is None else settings.password,
    )


def _place(parts: SplitResult, port: int) -> tuple[str, int]:
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    try:
        named = parts.port
    except ValueError as e:
        raise KcapError(f"{shown}: the port is no number up to 65535") from e
    if port and not parts.hostname:
        raise KcapError(
            f"{shown}: no host",
            hint=f"for example {parts.scheme}://localhost:{port}",
        )
    return parts.hostname or "", named or port


def context(settings: ServerOptions) -> ssl.SSLContext:
    """What TLS goes by, with all its files read.

    Args:
        settings: The certificates, and whether to check.

    Returns:
        A context for connections to the server.

    Raises:
        KcapError: A file can't be read or is no certificate or key.
    """
    if settings.tls_key and not settings.tls_cert:
        raise KcapError("tls-key is given without tls-cert", hint="name the certificate, too")
    file = settings.tls_ca
    try:
        made = ssl.create_default_context(cafile=file)
        if settings.tls_cert:
            file = settings.tls_cert
            made.load_cert_chain(file, settings.tls_key)
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        raise KcapError(f"not usable for TLS: {reason(e)}", file=file) from e
    if not settings.tls_verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def connect(to: Address, timeout_s: float, tls: ssl.SSLContext | None = None) -> socket.socket:
    """Connect over TCP.

    Args:
        to: Where the server is.
        timeout_s: How long to wait, now and in each later call.
        tls: Encrypt, and check who answers.

    Returns:
        The connected socket.

    Raises:
        InterruptedDeliveryError: Nobody answers.
        KcapError: The certificate is not one to trust.
    """
    plain: socket.socket | None = None
    try:
        plain = socket.create_connection((to.host, to.port), timeout_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # through quiet hours
        return plain if tls is None else tls.wrap_socket(plain, server_hostname=to.host)
    except OSError as e:
        if plain is not None:
            plain.close()
        raise failure(to, e) from e


def connect_unix(to: Address, timeout_s: float, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Connect to a Unix socket.

    Args:
        to: Where it is.
        timeout_s: How long to wait, now and in each later call.
        kind: Of a stream, or of datagrams.

    Returns:
        The connected socket.

    Raises:
        InterruptedDeliveryError: Nobody listens there.
        KcapError: There are none on this system.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise KcapError(f"{to}: this system has no Unix sockets")
    made = socket.socket(socket.AF_UNIX, kind)
    try:
        made.settimeout(timeout_s)
        made.connect(to.path)
    except (OSError, ValueError) as e:
        made.close()
        raise failure(to, e) from e
    return made


def connect_udp(to: Address, timeout_s: float) -> socket.socket:
    """Make a socket for datagrams to a server, which need not be there.

    Args:
        to: Where it is.
        timeout_s: How long to wait in each later call.

    Returns:
        The socket.

    Raises:
        InterruptedDeliveryError: Its name is not known.
    """
    try:
        found = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_DGRAM)[0]
        made = socket.socket(found[0], socket.SOCK_DGRAM)
        made.settimeout(timeout_s)
        made.connect(found[4])
    except OSError as e:
        raise failure(to, e) from e
    return made


def failure(
    to: Address | str,
    error: BaseException,
    taken: int = 0,
    refused: Sequence[Refused] = (),
) -> KcapError:
    """What a failed connection means.

    Args:
        to: Where the server is.
        error: What happened.
        taken: How many messages are done with for certain.
        refused: Those among them that it will never take.

    Returns:
        An `InterruptedDeliveryError`; a plain one if it would only happen again.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return KcapError(
            f"{to}: its certificate is not trusted: {error.verify_message}",
            hint="name the authority that signed it with tls-ca",
        )
    return InterruptedDeliveryError(f"{to}: {reason(error)}", taken=taken, refused=refused)


def record(body: bytes) -> dict[str, Any] | None:
    """The values of an event that is on its way as a JSON object.

    Args:
        body: A message's body.

    Returns:
        Its members; None for other text.
    """
    if not body.startswith(b"{"):
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # A template may begin so; JSON may be deeper than Python.
        return None
    return found if isinstance(found, dict) else None


def reason(error: BaseException) -> str:
    """What an exception of a library says, short.

    Args:
        error: The exception.

    Returns:
        One line.
    """
    if isinstance(error, TimeoutError):
        return "no answer in time"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said_short(said or type(error).__name__)


def said_short(text: str) -> str:
    """What a server said, as one line that is not too long.

    Args:
        text: Its words.

    Returns:
        The same without control characters, cut where it is too long.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - 3] + "..."
