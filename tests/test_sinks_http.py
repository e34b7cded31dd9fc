"""HTTP as a transport: what a request looks like, what answers mean, which server is asked."""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from server_support import Certificates
from sink_support import ORIGIN, Peer, Request, Response, free_port, peer

from kcap.errors import KcapError
from kcap.writers.sinks.http import Http, HttpOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused

BAD = b'{"n":7}'


def made(count: int, start: int = 0) -> list[Message]:
    return [Message(f"{ORIGIN}:{n}", b'{"n":%d}' % n, n) for n in range(start, start + count)]


@contextlib.contextmanager
def opened(server: Peer | str, **options: Any) -> Iterator[Http]:
    url = server if isinstance(server, str) else f"http://{server.place}/in"
    transport = Http(HttpOptions(url=url, **options))
    with contextlib.closing(transport):
        transport.open()
        yield transport


def sent(count: int = 1, answer: Any = None, **options: Any) -> tuple[list[Request], Any]:
    """Send messages to a server of their own; its requests, and what was refused."""
    with peer(answer) as server, opened(server, **options) as transport:
        refused = transport.send(made(count))
    return server.requests, refused


def test_an_event_is_a_request() -> None:
    """As a webhook: one event a request, with its id and content type."""
    requests, refused = sent(3)

    assert refused == []
    assert [r.body for r in requests] == [m.body for m in made(3)]
    assert [r.headers["idempotency-key"] for r in requests] == [m.id for m in made(3)]
    assert {(r.method, r.path) for r in requests} == {("POST", "/in")}
    assert {r.headers["content-type"] for r in requests} == {"application/json"}
    assert {r.headers["user-agent"].split("/")[0] for r in requests} == {"kcap"}


def test_many_events_are_an_array_or_lines() -> None:
    """With ``body`` a request carries many, as a JSON array or a line each."""
    (array,), _ = sent(3, body="array")
    (lines,), _ = sent(3, body="ndjson")

    assert json.loads(array.body) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert array.headers["content-type"] == "application/json"
    assert lines.body == b'{"n":0}\n{"n":1}\n{"n":2}\n'
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert array.headers["idempotency-key"] == f"{ORIGIN}:0+3"


def test_text_is_not_called_json() -> None:
    """A body that is no JSON has another content type, unless one is named."""
    with peer() as server:
        for options in ({}, {"content_type": "text/x-cef"}):
            with opened(server, **options) as transport:
                transport.send([Message("a b:0", b"some text")])

    kinds = [r.headers["content-type"] for r in server.requests]
    assert kinds == ["text/plain; charset=utf-8", "text/x-cef"]
    assert server.requests[0].headers["idempotency-key"] == "a%20b:0"


def test_what_is_sent_can_be_compressed() -> None:
    """With gzip the same bytes come out of fewer, and the same events give the same bytes."""
    requests = [sent(500, body="ndjson", gzip=True)[0][0] for _ in range(2)]

    assert requests[0].headers["content-encoding"] == "gzip"
    assert requests[0].plain == b"".join(m.body + b"\n" for m in made(500))
    assert len(requests[0].body) < len(requests[0].plain) / 3
    assert requests[0].body == requests[1].body


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"user": "me", "password": "secret"}, "Basic bWU6c2VjcmV0"),
        ({"token": "abc"}, "Bearer abc"),
        ({}, None),
    ],
)
def test_we_say_who_we_are(options: dict[str, Any], expected: str | None) -> None:
    """User and password, or a token, stand in each request."""
    (request,), _ = sent(1, **options)

    assert request.headers.get("authorization") == expected


def test_a_password_may_be_in_the_url() -> None:
    """User and password of the URL are sent as a header, not as a part of the host."""
    with peer() as server, opened(f"http://me:s%40cret@{server.place}/in") as transport:
        transport.send(made(1))

    assert server.requests[0].headers["authorization"] == "Basic bWU6c0BjcmV0"
    assert server.requests[0].headers["host"] == server.place


def test_headers_method_and_query_are_given() -> None:
    """Headers, method and query are those that were asked for."""
    (request,), _ = sent(1, headers={"X-Team": "blue"}, method="PUT", query="key=a%20b&x=1")

    assert (request.method, request.path) == ("PUT", "/in?key=a%20b&x=1")
    assert request.headers["x-team"] == "blue"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"body": "xml"}, "body 'xml'"),
        ({"method": "GET"}, "method 'GET'"),
        ({"headers": {"X": "a\r\nY: b"}}, "header 'X'"),
        ({"token": "a\nb"}, "header 'Authorization'"),
        ({"user": "a", "token": "b"}, "both given"),
        ({"endpoints": ("ftp://a/",)}, "no URL of an HTTP server"),
        ({"tls_ca": "/nowhere/ca.pem", "endpoints": ("https://a/",)}, "not usable for TLS"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    """What can be seen to be wrong is refused before anything is sent."""
    with pytest.raises(KcapError, match=said):
        Http(HttpOptions(url="http://127.0.0.1/", **options))


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_success_is_one(status: int) -> None:
    """Any 2xx means that the server has it."""
    body = b"" if status == 204 else b"{}"

    assert sent(2, lambda _: Response(status, body))[1] == []


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    """What passes is no refusal: the same messages will do later."""
    with pytest.raises(InterruptedDeliveryError, match=str(status)) as caught:
        sent(2, lambda r: Response(status) if b"1" in r.body else Response())

    assert caught.value.taken == 1
    assert caught.value.wait_s is None


def test_a_server_may_ask_to_wait() -> None:
    """``Retry-After`` is understood as seconds and as a time; nonsense is not."""
    for text, low, high in [
        ("17", 17, 17),
        (formatdate(time.time() + 30, usegmt=True), 25, 31),
        (formatdate(time.time() - 30, usegmt=True), 0, 0),
    ]:
        with pytest.raises(InterruptedDeliveryError) as caught:
            sent(1, lambda _, text=text: Response(429, headers={"Retry-After": text}))
        assert caught.value.wait_s is not None
        assert low <= caught.value.wait_s <= high
    with pytest.raises(InterruptedDeliveryError) as caught:
        sent(1, lambda _: Response(429, headers={"Retry-After": "soon"}))
    assert caught.value.wait_s is None


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 405, 407, 410])
def test_what_will_never_do_is_an_error(status: int) -> None:
    """A wrong password, path or method ends the run, with what helps; redirects lead nowhere."""
    with peer() as other:
        away = {"Location": f"http://{other.place}/"}
        with pytest.raises(KcapError, match=str(status)) as caught:
            sent(1, lambda _: Response(status, headers=away))

    assert not isinstance(caught.value, InterruptedDeliveryError)
    assert caught.value.hint
    assert other.requests == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_divided(status: int) -> None:
    """Of many in a request, the one that the server can't take is found; it gets the others."""

    def answer(request: Request) -> Response:
        return Response(status, b"no") if BAD in request.body else Response()

    requests, refused = sent(100, answer, body="ndjson")

    assert refused == [Refused(7, refused[0].reason)]
    assert str(status) in refused[0].reason
    lines = [line for request in requests for line in request.body.splitlines()]
    assert lines == [m.body for m in made(100) if m.body != BAD]
    assert len(requests) < 20


def test_a_request_that_is_too_long_is_divided() -> None:
    """A server that takes a few at a time gets all, a few at a time."""

    def answer(request: Request) -> Response:
        return Response(413) if len(request.body) > 90 else Response()

    requests, refused = sent(200, answer, body="array")

    assert refused == []
    found = [event["n"] for request in requests for event in json.loads(request.body)]
    assert found == list(range(200))


def test_what_was_refused_before_an_interruption_is_told() -> None:
    """An interruption says how many are done with, and which of those were refused."""

    def answer(request: Request) -> Response:
        number = json.loads(request.body)["n"]
        return Response({2: 400, 5: 503}.get(number, 200))

    with pytest.raises(InterruptedDeliveryError) as caught:
        sent(9, answer)

    assert caught.value.taken == 5
    assert [r.at for r in caught.value.refused] == [2]


def test_the_next_server_is_asked() -> None:
    """Where one of several servers fails another one gets the same, and is asked from then on."""
    with peer(lambda _: Response(500)) as broken, peer() as right:
        silent = f"http://127.0.0.1:{free_port()}/in"
        with opened(broken, endpoints=(silent, f"http://{right.place}/in")) as transport:
            transport.send(made(3))

        assert [r.body for r in right.requests] == [m.body for m in made(3)]

        with (
            opened(broken, endpoints=(silent,)) as transport,
            pytest.raises(InterruptedDeliveryError, match=r"500.*refused"),
        ):
            transport.send(made(1))


def test_a_server_that_does_not_answer_is_left() -> None:
    """Nobody there, nonsense, and silence are all interruptions."""

    def late(_: Request) -> Response:
        time.sleep(0.5)
        return Response()

    with (
        peer(late) as server,
        opened(server, timeout=0.1) as transport,
        pytest.raises(InterruptedDeliveryError, match="no answer in time"),
    ):
        transport.send(made(1))
    with opened(server) as transport, pytest.raises(InterruptedDeliveryError, match="refused"):
        transport.send(made(1))
    with pytest.raises(InterruptedDeliveryError, match="not connected"):
        transport.send(made(1))


def test_secrets_are_not_told() -> None:
    """No error repeats a password, a token, or the path, which may be one."""
    url = f"http://me:topsecret@127.0.0.1:{free_port()}/topsecret"
    with (
        opened(url, query="k=topsecret") as transport,
        pytest.raises(InterruptedDeliveryError) as caught,
    ):
        transport.send(made(1))

    assert "topsecret" not in str(caught.value)
    with (
        peer(lambda _: Response(404)) as server,
        opened(f"http://a:topsecret@{server.place}/topsecret") as transport,
        pytest.raises(KcapError) as refused,
    ):
        transport.send(made(1))
    assert "topsecret" not in str(refused.value)


def test_a_long_answer_is_not_kept() -> None:
    """What a server says is repeated in one short line."""
    (_, refused) = sent(1, lambda _: Response(400, b"very\r\n long \x1b" * 100_000))

    assert len(refused[0].reason) < 400
    assert refused[0].reason.isprintable()


def test_a_proxy_is_used_where_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names no proxy; an option does."""
    with peer() as proxy, peer() as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.place}")
        monkeypatch.setenv("ALL_PROXY", f"http://{proxy.place}")
        for named in (None, f"http://{proxy.place}"):
            with opened(server, proxy=named) as transport:
                transport.send(made(1))

    assert len(server.requests) == 1
    assert [r.path for r in proxy.requests] == [f"http://{server.place}/in"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Keys and certificates for localhost."""
    return Certificates(tmp_path_factory.mktemp("tls"))


def served(certificates: Certificates, *, ours: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.cert, certificates.key)
    if ours:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates.ca)
    return context


def over_tls(server: Peer, **options: Any) -> Any:
    with opened(f"https://localhost:{server.port}/in", **options) as transport:
        return transport.send(made(1))


def test_tls_checks_who_answers(certificates: Certificates) -> None:
    """A certificate of an authority that is not known is refused for good, not tried again."""
    with peer(tls=served(certificates)) as server:
        assert over_tls(server, tls_ca=str(certificates.ca)) == []
        with pytest.raises(KcapError, match="not trusted") as caught:
            over_tls(server)
        assert not isinstance(caught.value, InterruptedDeliveryError)
        assert len(server.requests) == 1
        assert over_tls(server, tls_verify=False) == []


def test_tls_shows_who_we_are(certificates: Certificates) -> None:
    """A server that wants a certificate of ours gets it."""
    with peer(tls=served(certificates, ours=True)) as server:
        ours = {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
        assert over_tls(server, tls_ca=str(certificates.ca), **ours) == []
        with pytest.raises(InterruptedDeliveryError):
            over_tls(server, tls_ca=str(certificates.ca))

        assert len(server.requests) == 1


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    """A file without a certificate is named in the error."""
    (tmp_path / "ca.pem").write_text("nothing")

    with pytest.raises(KcapError) as caught:
        Http(HttpOptions(url="https://localhost/", tls_ca=str(tmp_path / "ca.pem")))
    assert caught.value.file == str(tmp_path / "ca.pem")
