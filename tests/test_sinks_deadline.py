"""Servers that are never silent and never done: an exchange has an end of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from server_support import Certificates
from sink_support import ORIGIN, Response, events, peer, sink

from kcap.writers.sinks import http
from kcap.writers.sinks.elastic import Elastic, ElasticOptions
from kcap.writers.sinks.http import Http, HttpOptions
from kcap.writers.sinks.slack import Slack, SlackOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message

PAUSE_S = 0.02
TIMEOUT_S = 0.2
"""Each wait is far shorter; a whole dripping answer is longer."""

OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "headers": (b"", OK + b"content-length: 0\r\n\r\n"),
    "body": (OK + b"content-length: 20\r\n\r\n", b"." * 20),
    "until it hangs up": (OK + b"\r\n", b"." * 20),
    "chunks": (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n.\r\n" * 7 + b"0\r\n\r\n"),
}
MESSAGE = Message(f"{ORIGIN}:0", b'{"n":0}', 0)


def drip(connection: socket.socket, at_once: bytes, slowly: bytes) -> None:
    """Answer a request, from some point on a byte at a time."""
    with connection, contextlib.suppress(OSError):
        connection.recv(1 << 16)
        connection.sendall(at_once)
        for byte in slowly:
            time.sleep(PAUSE_S)
            connection.sendall(bytes([byte]))


@contextlib.contextmanager
def served(
    serve: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server for the time of a test: its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    if tls is not None:
                        connection = tls.wrap_socket(connection, server_side=True)
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        yield f"localhost:{listening.getsockname()[1]}"
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def watched(transport: Any) -> Iterator[Any]:
    """An open transport whose `watch` is called, as a courier does."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            transport.watch()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with contextlib.closing(transport):
            transport.open()
            yield transport
    finally:
        ended.set()
        thread.join()


def left(made: Any, options: Any, message: Message = MESSAGE, **settings: Any) -> None:
    """Send an event to a server that is left before it has answered."""
    with (
        watched(made(options(timeout=TIMEOUT_S, **settings))) as transport,
        pytest.raises(InterruptedDeliveryError, match="no answer in time"),
    ):
        transport.send([message])


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_dripping_answer_is_left(answer: str) -> None:
    """A byte now and then holds nobody, wherever it drips."""
    with served(lambda c: drip(c, *ANSWERS[answer])) as place:
        left(Http, HttpOptions, url=f"http://{place}/")


def test_without_the_deadline_it_would_hold() -> None:
    """Where nobody looks at it no single wait is too long: such an answer is taken to its end."""
    with served(lambda c: drip(c, *ANSWERS["body"])) as place:
        transport = Http(HttpOptions(url=f"http://{place}/", timeout=TIMEOUT_S))
        with contextlib.closing(transport):
            transport.open()
            assert transport.send([MESSAGE]) == []


def test_a_courier_looks_at_it(tmp_path: Path) -> None:
    """In a run the events go on to the next server, however long the first one drips."""
    endless = OK + b"content-length: 9999\r\n\r\n"
    with served(lambda c: drip(c, endless, b"." * 9999)) as place, peer() as right:
        url = f"http://{place}/?timeout={TIMEOUT_S}&endpoints=http://{right.place}/&batch=50"
        to = sink(url, live=True, body="array", spool=str(tmp_path))
        to.write(events(100))
        to.close()

    found = [json.loads(r.plain) for r in right.requests]
    assert [e["ord"] for part in found for e in part] == list(range(100))
    assert to.confirmed == 100


@pytest.mark.parametrize(("made", "options"), [(Elastic, ElasticOptions), (Slack, SlackOptions)])
def test_the_others_that_speak_http_leave_too(made: Any, options: Any) -> None:
    """So do those that are built on it."""
    with served(lambda c: drip(c, *ANSWERS["body"])) as place:
        left(made, options, url=f"http://{place}/")


def test_tls_is_no_shelter(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The socket under TLS is the one that is ended."""
    certificates = Certificates(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.cert, certificates.key)
    with served(lambda c: drip(c, *ANSWERS["body"]), context) as place:
        url, ca = f"https://{place}/", str(certificates.ca)

        left(Http, HttpOptions, url=url, tls_ca=ca)


def test_a_server_that_hardly_reads_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does it hold anybody that takes a little of a long request now and then."""

    def sip(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        with connection, contextlib.suppress(OSError):
            while connection.recv(1 << 14):
                time.sleep(PAUSE_S)

    monkeypatch.setattr(http, "_SLOWEST", 1 << 30)
    long = replace(MESSAGE, body=b"." * (16 << 20))
    with served(sip) as place:
        left(Http, HttpOptions, long, url=f"http://{place}/")


def test_the_next_server_is_asked_instead() -> None:
    """A dripping server is one that fails: another one gets the event."""
    with served(lambda c: drip(c, *ANSWERS["headers"])) as place, peer() as right:
        more = (f"http://{right.place}/",)
        options = HttpOptions(url=f"http://{place}/", endpoints=more, timeout=TIMEOUT_S)
        with watched(Http(options)) as transport:
            assert transport.send([MESSAGE]) == []

    assert [r.body for r in right.requests] == [MESSAGE.body]


def test_slow_answers_in_time_are_answers() -> None:
    """Each request has its own time: many that take most of theirs succeed on one connection."""

    def late(_: object) -> Response:
        time.sleep(TIMEOUT_S / 2)
        return Response()

    with peer(late) as server:
        options = HttpOptions(url=f"http://{server.place}/", timeout=TIMEOUT_S)
        with watched(Http(options)) as transport:
            for _ in range(3):
                assert transport.send([MESSAGE]) == []

    assert len(server.requests) == 3
