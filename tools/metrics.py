"""``kcap stats --live --listen``: a recorder's numbers for a Prometheus that comes for them."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer
from typing import Any, Final, NamedTuple

import click

import kcap
from kcap.errors import KcapError
from kcap.model.text import printable
from kcap.tools import logs, prometheus

PATH: Final = "/metrics"
"""Where the numbers are."""

_LOOPBACK: Final = "127.0.0.1"
_PATIENCE_S: Final = 5.0
"""How long a client may take; others wait for it."""


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


class ListenAddress(click.ParamType[Address]):
    """A port of this host's loopback, or an address and a port."""

    name = "address"

    def convert(
        self,
        value: Any,  # noqa: ANN401  (as click declares it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Address:
        """Parse ``9099``, ``:9099``, ``127.0.0.1:9099``, ``[::1]:9099``."""
        if isinstance(value, Address):
            return value
        host, _, port = value.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") or _LOOPBACK
        try:
            address = str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
        except ValueError:
            self.fail(f"{value!r}: give 127.0.0.1:9099, [::1]:9099 or 9099", param, ctx)
        if not port.isdecimal() or int(port) > 0xFFFF:  # noqa: PLR2004
            self.fail(f"{value!r} has no port between 0 and 65535", param, ctx)
        return Address(address, int(port))


def serve(address: Address, read: Callable[[], dict[str, Any]]) -> None:
    """Answer requests until Ctrl-C.

    Args:
        address: Where to listen; port 0 for any.
        read: Asks the recorder, each time that somebody asks for its numbers.

    Raises:
        KcapError: The port can't be had.
    """
    made = partial(_Handler, read)
    kind = _Server6 if ":" in address.host else _Server
    try:
        server = kind((address.host, address.port), made)
    except OSError as e:
        raise KcapError(
            f"can't listen at {address.host}:{address.port}: {e.strerror or e}",
            hint="another port, or 0 for any that is free",
        ) from e
    with server:
        host = f"[{address.host}]" if ":" in address.host else address.host
        logs.tell(f"kcap: listening at http://{host}:{server.server_port}{PATH}")
        if not ipaddress.ip_address(address.host).is_loopback:
            logs.tell("kcap: whoever reaches this address can read the numbers", level="warning")
        sys.stderr.flush()
        server.serve_forever()


class _Server(HTTPServer):
    """A server that asks nobody for its name."""

    def server_bind(self) -> None:
        """See `HTTPServer.server_bind`."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]


class _Server6(_Server):
    """The same at an address of version 6."""

    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of one path."""

    timeout = _PATIENCE_S
    server_version = f"kcap/{kcap.__version__}"
    sys_version = ""

    def __init__(self, read: Callable[[], dict[str, Any]], *of_base: Any) -> None:  # noqa: ANN401
        self._read = read
        super().__init__(*of_base)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """What the base class looks for by the name of a method: GET and HEAD alone."""
        if name in {"do_GET", "do_HEAD"}:
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        """Give the numbers."""
        if not self._is_meant():
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "ask by address, not by a name\n")
        elif self.path.partition("?")[0] != PATH:
            self._say(HTTPStatus.NOT_FOUND, f"the numbers are at {PATH}\n")
        else:
            try:
                text = prometheus.exposition(self._read())
            except KcapError as e:
                self._say(HTTPStatus.SERVICE_UNAVAILABLE, f"{printable(str(e))}\n")
            else:
                self._say(HTTPStatus.OK, text, prometheus.CONTENT_TYPE)

    def log_message(self, *_: Any) -> None:  # noqa: ANN401
        """Say nothing: a line every few seconds would help nobody."""

    def _is_meant(self) -> bool:
        """Whether the request names this address, and no name that a web page made point here."""
        host = self.headers.get("Host", _LOOPBACK)
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.removeprefix("[").removesuffix("]")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost"
        return True

    def _say(self, code: HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
