"""Servers and events for the tests of sinks over a network."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from kcap.model.alert import Alert
from kcap.model.alert import batch as alert_batch
from kcap.model.batch import Batch, Column, coded, constant
from kcap.model.classes import TypeClass
from kcap.model.stream import Sink
from kcap.writers.sinks import spec
from kcap.writers.sinks.delivery import Delivery

ORIGIN = "0123456789abcdef" * 2
T0 = 1_700_000_000_000_000_000
NAMES = ("openat", "execve", "connect")


def events(count: int, start: int = 0, *, text: str = "") -> Batch:
    """Events with an identity: ``openat``, ``execve``, ``connect`` in turn, a millisecond apart."""
    ords = np.arange(start, start + count)
    names = coded(NAMES, ords % len(NAMES))
    assert names is not None
    columns = {
        "ts": Column(TypeClass.I64, pa.array(T0 + ords * 1_000_000)),
        "event": names,
        "kind": constant(TypeClass.STR, "event", count),
        "pid": Column(TypeClass.I64, pa.array(ords + 100)),
        "origin": constant(TypeClass.STR, ORIGIN, count),
        "ord": Column(TypeClass.I64, pa.array(ords)),
    }
    if text:
        columns["arg_pathname"] = constant(TypeClass.STR, text, count)
    return Batch(count, columns)


def ids(count: int, start: int = 0) -> list[str]:
    """The ids of such events."""
    return [f"{ORIGIN}:{n}" for n in range(start, start + count)]


def alerts(count: int, severity: str = "high") -> Batch:
    """Alerts of one rule, each about an event."""
    return alert_batch(
        [
            Alert("T1059", "1", "A <shell>", "bash & co", severity, ts_ns=T0, causes=((ORIGIN, n),))
            for n in range(count)
        ]
    )


def sink(url: str, *, live: bool = False, **options: Any) -> Delivery:
    """A sink over a network."""
    made: Sink = spec.opened(spec.parse(url, options), live=live)
    assert isinstance(made, Delivery)
    return made


def rss_bytes(pid: int) -> int:
    """The memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def until(holds: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def free_port() -> int:
    """A port of the loopback that nobody has."""
    # Below those that the kernel gives to whoever asks for any: it stays free, or ours.
    for port in range(15_000 + os.getpid() % 10_000, 32_768):
        with socket.socket() as made, contextlib.suppress(OSError):
            made.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Request(NamedTuple):
    """What a peer got."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def plain(self) -> bytes:
        """The body as it was before it was compressed."""
        return gzip.decompress(self.body) if self.headers.get("content-encoding") else self.body


class Response(NamedTuple):
    """What a peer says."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = {}


@dataclass
class Peer:
    """An HTTP server on the loopback that keeps what it gets."""

    answer: Callable[[Request], Response] = lambda _: Response()
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    tls: Any = None
    _server: http.server.ThreadingHTTPServer | None = None

    @property
    def place(self) -> str:
        """Its host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def taken(self) -> list[dict[str, Any]]:
        """The JSON objects of bodies, in order."""
        return [json.loads(request.plain) for request in self.requests]

    def start(self) -> Peer:
        """Begin to listen."""
        peer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def _do(self) -> None:
                length = int(self.headers["content-length"])
                headers = {k.lower(): v for k, v in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length))
                said = peer.answer(request)
                if said.status < 300:
                    peer.requests.append(request)
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(said.body)))
                self.end_headers()
                self.wfile.write(said.body)

            do_POST = do_PUT = do_PATCH = _do  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                """A client that went away is none."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextlib.contextmanager
def peer(answer: Callable[[Request], Response] | None = None, **options: Any) -> Iterator[Peer]:
    """An HTTP server for the time of a test."""
    made = Peer(**options) if answer is None else Peer(answer, **options)
    try:
        yield made.start()
    finally:
        made.stop()


class OwnProcess:
    """A server as a process of its own, which can be killed; it notes ids in a file.

    Args:
        folder: Where the file is.
        program: The script of Python that it is, with its arguments; it gets port and file behind
            them, and says ``ready``. Else one over HTTP that takes JSON lines.
    """

    def __init__(self, folder: Path, *program: str) -> None:
        self._program = program or (__file__,)
        self.port = free_port()
        self._file = folder / "taken"
        self._file.touch()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def ids(self) -> list[str]:
        """The ids that it took, in order."""
        return self._file.read_text("ascii").split()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, *self._program, str(self.port), str(self._file)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """Kill it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


def _main(port: int, path: str) -> None:
    """What `OwnProcess` runs: takes JSON lines, notes the id of each before it answers."""
    out = os.open(path, os.O_WRONLY | os.O_APPEND)

    def answer(request: Request) -> Response:
        lines = [json.loads(line) for line in request.plain.splitlines()]
        os.write(out, "".join(f"{e['origin']}:{e['ord']}\n" for e in lines).encode())
        return Response()

    Peer(answer, port).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
