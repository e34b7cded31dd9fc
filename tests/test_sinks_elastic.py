"""Elasticsearch and OpenSearch: every document once, under its id, whatever an answer says."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bulk_support import Bulk
from sink_support import ORIGIN, T0, Peer, Request, Response, events, ids, peer, sink

from kcap.errors import KcapError
from kcap.writers.sinks import elastic
from kcap.writers.sinks.elastic import Elastic, ElasticOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused

DAY_NS = 86_400 * 10**9


def made(count: int, start: int = 0, body: bytes = b'{"n":1}') -> list[Message]:
    return [Message(f"{ORIGIN}:{n}", body, T0 + n) for n in range(start, start + count)]


@contextlib.contextmanager
def opened(server: Peer, **options: Any) -> Iterator[Elastic]:
    transport = Elastic(ElasticOptions(url=f"elasticsearch+http://{server.place}", **options))
    with contextlib.closing(transport):
        transport.open()
        yield transport


def sent(
    bulk: Bulk, messages: Sequence[Message], **options: Any
) -> tuple[Sequence[Refused], list[Request]]:
    with peer(bulk.answer) as server, opened(server, **options) as transport:
        refused = transport.send(messages)
    return refused, server.requests


def test_documents_have_index_id_and_time() -> None:
    """A document is created in the index of its day, under the event's id, with its time."""
    bulk = Bulk()
    some = [Message("a:1", b'{"n":1}', T0), Message("a:2", b"{}", T0 + DAY_NS + 5)]

    refused, _ = sent(bulk, some)

    assert refused == []
    assert bulk.documents == {
        ("kcap-2023.11.14", "a:1"): {"@timestamp": "2023-11-14T22:13:20.000000000Z", "n": 1},
        ("kcap-2023.11.15", "a:2"): {"@timestamp": "2023-11-15T22:13:20.000000005Z"},
    }


def test_the_index_is_a_pattern() -> None:
    """Directives stand for the event's time, values for its own; without a time it is 1970."""
    bulk = Bulk()
    some = [
        Message("a:1", b"{}", T0, {"index": "logs-%y%m%d%H-%j-100%%"}),
        Message("a:2", b"{}", None, {"index": "logs-%Y"}),
    ]

    sent(bulk, some, timestamp="")

    assert list(bulk.documents.items()) == [
        (("logs-23111422-318-100%", "a:1"), {}),
        (("logs-1970", "a:2"), {}),
    ]
    with pytest.raises(KcapError, match="'%b' is not known"):
        Elastic(ElasticOptions(url="elasticsearch+http://a", index="kcap-%b"))


@pytest.mark.parametrize("scheme", ["elasticsearch+http", "opensearch+http"])
def test_events_come_once_and_in_order(scheme: str) -> None:
    """Through pipeline and courier every event is a document, in order, under its id."""
    bulk = Bulk()
    with peer(bulk.answer) as server:
        to = sink(f"{scheme}://{server.place}/?gzip=yes&batch=700&index=kcap")
        for start in range(0, 5000, 1000):
            to.write(events(1000, start))
        to.close()

    assert bulk.order == ids(5000)
    assert to.confirmed == 5000
    assert {index for index, _ in bulk.documents} == {"kcap"}
    assert server.requests[0].headers["content-encoding"] == "gzip"
    assert bulk.documents["kcap", ids(2)[1]]["pid"] == 101


def test_busy_documents_are_sent_again() -> None:
    """Where some documents find no room they are sent again; none is there twice or missing."""
    bulk = Bulk(busy=300)
    with peer(bulk.answer) as server:
        to = sink(f"elasticsearch+http://{server.place}/?batch=1000")
        to.write(events(3000))
        to.close()

    assert bulk.rejected == 10
    assert sorted(bulk.order) == sorted(ids(3000))
    assert len(set(bulk.order)) == len(bulk.order)
    assert to.confirmed == 3000
    assert to.losses == []


def test_an_interruption_counts_from_the_first_busy_one() -> None:
    """What is behind a busy document is sent again, though some of it is there already."""
    bulk = Bulk(busy=4)

    with pytest.raises(InterruptedDeliveryError, match="429 es_rejected") as caught:
        sent(bulk, [*made(1), *made(1, 1, b"no json"), *made(6, 2)])

    assert caught.value.taken == 4
    assert [r.at for r in caught.value.refused] == [1]
    refused, _ = sent(bulk, made(5, 3))
    assert refused == []
    assert bulk.conflicts == 4
    assert sorted(id_ for _, id_ in bulk.documents) == [m.id for m in made(8) if m.id[-1] != "1"]


def test_what_is_there_already_is_taken() -> None:
    """A document that was created before counts as taken: nothing is replaced."""
    bulk = Bulk()
    sent(bulk, made(3))

    refused, _ = sent(bulk, made(5, body=b'{"n":2}'))

    assert refused == []
    assert bulk.conflicts == 3
    assert [d["n"] for d in bulk.documents.values()] == [1, 1, 1, 2, 2]


def test_refused_documents_are_told_with_reason() -> None:
    """A document that never fits is refused alone, with the server's reason."""
    bulk = Bulk()
    some = [*made(2), *made(1, 2, b'{"n":"text"}'), *made(1, 3, b"[]"), *made(2, 4)]

    refused, _ = sent(bulk, some)

    assert [r.at for r in refused] == [2, 3]
    assert "400 document_parsing_exception: failed to parse field [n]" in refused[0].reason
    assert len(bulk.documents) == 4


def test_an_index_name_that_is_none_is_refused() -> None:
    """A value that can't be a part of an index name costs that event alone."""
    bulk = Bulk()
    some = [Message("a:1", b"{}", T0, {"index": "Up per"}), *made(1)]

    refused, _ = sent(bulk, some)

    assert [r.at for r in refused] == [0]
    assert "invalid_index_name" in refused[0].reason


def test_a_request_is_as_long_as_the_server_takes() -> None:
    """Requests stay below the bytes that are asked for, and are divided where that is too much."""
    some = made(100, body=b'{"text":"' + b"x" * 1000 + b'"}')
    for bulk, options in [
        (Bulk(longest=15_000), {"bulk_bytes": 10_000}),
        (Bulk(longest=15_000), {}),
    ]:
        refused, requests = sent(bulk, some, **options)

        assert refused == []
        assert bulk.order == [m.id for m in some]
        assert len(requests) >= 7
    one = made(1, body=b'{"text":"' + b"x" * 20_000 + b'"}')
    refused, _ = sent(Bulk(longest=15_000), [*made(1), *one[:0], Message("b:1", one[0].body)])
    assert [(r.at, "413" in r.reason) for r in refused] == [(1, True)]


def test_the_template_is_put_first(tmp_path: Path) -> None:
    """Where an index template is given it is there before the first document."""
    path = tmp_path / "template.json"
    path.write_text('{"index_patterns": ["kcap-*"]}')
    bulk = Bulk()

    _, requests = sent(bulk, made(1), index_template=str(path), index_template_name="ours")

    assert bulk.templates == {"ours": {"index_patterns": ["kcap-*"]}}
    assert [r.path for r in requests] == ["/_index_template/ours", "/_bulk"]
    path.write_text("{}")
    with pytest.raises(KcapError, match=r"index template is refused.*missing"):
        sent(bulk, made(1), index_template=str(path))
    path.write_text("{")
    with pytest.raises(KcapError, match="no JSON"):
        sent(bulk, made(1), index_template=str(path))


def test_we_say_who_we_are() -> None:
    """User and password, an API key and a pipeline are sent with each request."""
    bulk = Bulk()

    _, (first,) = sent(bulk, made(1), api_key="a2V5", pipeline="geo ip")
    _, (second,) = sent(bulk, made(1, 1), user="me", password="secret")

    assert first.headers["authorization"] == "ApiKey a2V5"
    assert first.path == "/_bulk?pipeline=geo%20ip"
    assert second.headers["authorization"] == "Basic bWU6c2VjcmV0"
    with pytest.raises(KcapError, match="more than one"):
        Elastic(ElasticOptions(url="elasticsearch+http://a", api_key="a", token="b"))


@pytest.mark.parametrize(
    ("kind", "status", "interrupts"),
    [("cluster_block_exception", 403, True), ("security_exception", 403, False)],
)
def test_a_block_passes_and_a_ban_does_not(kind: str, status: int, interrupts: bool) -> None:
    """A full disk is waited for; that we may not write there at all ends the run."""
    item = {"create": {"status": status, "error": {"type": kind, "reason": "no"}}}
    body = json.dumps({"errors": True, "items": [item]}).encode()

    with (
        peer(lambda _: Response(200, body)) as server,
        opened(server) as transport,
        pytest.raises(KcapError, match=kind) as caught,
    ):
        transport.send(made(1))
    assert isinstance(caught.value, InterruptedDeliveryError) is interrupts


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"items":[]}', b'{"items":[{}]}', b"<html>", b"[" * 100_000]
)
def test_another_answer_is_an_error(body: bytes) -> None:
    """What does not answer as this API does is not taken for it."""
    with (
        peer(lambda _: Response(200, body)) as server,
        opened(server) as transport,
        pytest.raises(KcapError, match=r"bulk request|documents"),
    ):
        transport.send(made(1))


BROKEN = [
    (lambda body: body.rstrip(b"\n"), "terminated by a newline"),
    (lambda body: body.replace(b'"create"', b'"insert"'), "expected field"),
    (lambda body: body.replace(b'"create"', b'"index"'), "created, not index"),
    (lambda body: body.replace(b'"_id"', b'"id"'), "unknown parameter"),
    (lambda body: body.partition(b"\n")[0] + b"\n", "no source"),
    (lambda body: body.replace(ORIGIN.encode(), b"x" * 600), "longer than 512"),
    (lambda _: b"", "body is required"),
]


@pytest.mark.parametrize(("spoil", "said"), BROKEN)
def test_the_endpoint_is_strict(spoil: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: an endpoint of the published API refuses what is not quite right."""
    lines = Elastic._lines
    monkeypatch.setattr(Elastic, "_lines", lambda *args: spoil(lines(*args)))

    refused, _ = sent(Bulk(), made(1))

    assert [said in r.reason for r in refused] == [True]


def test_the_endpoint_wants_its_content_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: another content type is refused."""
    monkeypatch.setattr(elastic, "_NDJSON", "text/plain")

    refused, _ = sent(Bulk(), made(1))

    assert ["406" in r.reason for r in refused] == [True]


def test_a_real_server_has_every_document() -> None:
    """Where KCAP_TEST_ELASTIC_URL names a server, it has every event once under its id."""
    url = os.environ.get("KCAP_TEST_ELASTIC_URL")
    if not url:
        pytest.skip("KCAP_TEST_ELASTIC_URL names no server: elasticsearch+http://localhost:9200")
    index = f"kcap-test-{time.time_ns()}"
    for _ in range(2):  # the second time all of them are there already
        to = sink(url, index=index)
        to.write(events(2000))
        to.close()
        assert to.confirmed == 2000
    assert to.losses == []

    options = to_options(url)
    transport = Elastic(options)
    with contextlib.closing(transport):
        transport.open()
        ask = transport._client.ask
        ask("POST", f"/{index}/_refresh", b"", "application/json")
        answer = ask("POST", f"/{index}/_count", b"{}", "application/json")
        assert json.loads(answer.body)["count"] == 2000
        transport._client._asked("DELETE", f"{options.url.partition('+')[2]}/{index}", b"", {})


def to_options(url: str) -> ElasticOptions:
    """The options of a URL."""
    from kcap.writers.sinks import spec

    found = spec.parse(url).options
    assert isinstance(found, ElasticOptions)
    return found
