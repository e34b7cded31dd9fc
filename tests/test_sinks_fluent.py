"""The sink that speaks the Forward protocol, against a peer that holds it to its specification.

No Debian package has a server for it. The peer is written from the published Forward Protocol
Specification v1 alone; KCAP_TEST_FLUENT_URL names a real one to try, too.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_support import Certificates, deliver, free_port, made
from sink_support import NAMES, events, ids

from kcap.errors import KcapError
from kcap.writers.sinks.fluent import Fluent, FluentOptions, Forward, ForwardOptions
from kcap.writers.sinks.spec import parse
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message

msgpack = pytest.importorskip("msgpack")


class Peer:
    """A Forward input: what it gets is in ``events``; what breaks a rule is in ``broken``."""

    def __init__(
        self,
        *,
        key: bytes | None = None,
        users: dict[str, str] | None = None,
        tls: Certificates | None = None,
        path: Path | None = None,
        acks: int | None = None,  # answers before it hangs up, each time
        answer: Any = None,
        trusting: bool = False,
        mutual: bool = False,
        port: int = 0,
    ) -> None:
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        self.chunks: list[str] = []
        self.broken: list[str] = []
        self._key, self._users, self._answer = key, users, answer
        self._acks = self._every = acks
        self._trusting = trusting
        self._tls = None
        if tls is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(tls.cert, tls.key)
            if mutual:
                self._tls.verify_mode = ssl.CERT_REQUIRED
                self._tls.load_verify_locations(tls.ca)
        if path is None:
            self._listening = socket.create_server(("127.0.0.1", port))
            self.port = self._listening.getsockname()[1]
        else:
            self._listening = socket.socket(socket.AF_UNIX)
            self._listening.bind(str(path))
            self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._tls is not None:
                    one = self._tls.wrap_socket(one, server_side=True)
                with one:
                    self._talk(one)
            except (OSError, AssertionError) as e:
                if isinstance(e, AssertionError):
                    self.broken.append(str(e))

    def _talk(self, one: socket.socket) -> None:
        unpacker = msgpack.Unpacker(strict_map_key=True)

        def read() -> Any:
            while True:
                try:
                    return unpacker.unpack()
                except msgpack.OutOfData:
                    data = one.recv(1 << 16)
                    if not data:
                        raise ConnectionError from None
                    unpacker.feed(data)

        if self._key is not None and not self._greet(one, read):
            return
        while True:
            chunk = self._take(read())
            if chunk is None:
                continue
            if self._acks is not None:
                self._acks -= 1
                if self._acks < 0:
                    self._acks = self._every
                    return
            one.sendall(msgpack.packb(self._answer or {"ack": chunk}))

    def _greet(self, one: socket.socket, read: Any) -> bool:
        nonce, auth = os.urandom(16), os.urandom(16) if self._users else b""
        one.sendall(msgpack.packb(["HELO", {"nonce": nonce, "auth": auth, "keepalive": True}]))
        kind, hostname, salt, digest, user, password = read()
        assert kind == "PING"
        assert isinstance(salt, bytes)

        def hashed(*parts: bytes) -> str:
            return hashlib.sha512(b"".join(parts)).hexdigest()

        right = self._trusting or digest == hashed(salt, hostname.encode(), nonce, self._key or b"")
        if self._users:
            known = self._users.get(user, "")
            right &= password == hashed(auth, user.encode(), known.encode())
        else:
            assert (user, password) == ("", "")
        proof = hashed(salt, b"peer", nonce, self._key or b"") if right else ""
        one.sendall(msgpack.packb(["PONG", right, "" if right else "mismatch", "peer", proof]))
        return bool(right)

    def _take(self, message: Any) -> str | None:
        assert isinstance(message, list), "a message is an array"
        assert len(message) == 3, "tag, entries, option"
        tag, packed, option = message
        assert isinstance(tag, str), "a tag is a string"
        assert isinstance(packed, bytes), "packed entries are binary"
        assert set(option) <= {"size", "chunk"}, "options that it knows"
        unpacker = msgpack.Unpacker()
        unpacker.feed(packed)
        entries = list(unpacker)
        assert option["size"] == len(entries), "the size is the number of entries"
        for entry in entries:
            assert len(entry) == 2, "an entry is a time and a record"
            time, record = entry
            if isinstance(time, msgpack.ExtType):
                assert (time.code, len(time.data)) == (0, 8), "an EventTime is of type 0, 8 bytes"
                second, rest = (int.from_bytes(time.data[n : n + 4], "big") for n in (0, 4))
                assert rest < 10**9, "nanoseconds are less than a second"
                time = second * 10**9 + rest
            assert isinstance(time, int), "a time is an EventTime or an integer"
            assert isinstance(record, dict), "a record is a map"
            self.events.append((tag, time, record))
        if "chunk" in option:
            self.chunks.append(option["chunk"])
        return option.get("chunk")

    def close(self) -> None:
        """Listen no more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def peers() -> Iterator[Any]:
    running: list[Peer] = []

    def start(**settings: Any) -> Peer:
        running.append(Peer(**settings))
        return running[-1]

    yield start
    for one in running:
        one.close()
        assert one.broken == []


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def fluent(peer: Peer, **settings: Any) -> Fluent:
    return Fluent(FluentOptions(**{"url": f"fluent://localhost:{peer.port}"} | settings))


@pytest.mark.parametrize("over", ["tcp", "tls", "unix"])
def test_every_event_arrives_once_in_order_with_its_id(
    peers: Any, certificates: Certificates, tmp_path: Path, over: str
) -> None:
    """Each event is a record with its id, at its time to the nanosecond."""
    settings: dict[str, Any] = {}
    if over == "unix":
        peer = peers(path=tmp_path / "s")
        settings["url"] = f"fluent+unix://{tmp_path}/s"
    elif over == "tls":
        peer = peers(tls=certificates)
        settings |= {
            "url": f"fluent+tls://localhost:{peer.port}", "tls_ca": str(certificates.ca),
        }  # fmt: skip
    else:
        peer = peers()
        settings["url"] = f"fluent://localhost:{peer.port}"
    messages = made(1200)
    sink = Fluent(FluentOptions(**settings))
    sink.open()
    for start in range(0, 1200, 500):
        assert sink.send(messages[start : start + 500]) == []
    sink.close()

    assert [record["kcap_id"] for _, _, record in peer.events] == [m.id for m in messages]
    assert [time for _, time, _ in peer.events] == [m.ts_ns for m in messages]
    assert [record["n"] for _, _, record in peer.events] == list(range(1200))
    assert {tag for tag, _, _ in peer.events} == {"kcap"}
    assert len(peer.chunks) == 3


def test_a_peer_may_ask_for_our_certificate(peers: Any, certificates: Certificates) -> None:
    """With one it is taken; without one nothing is."""
    peer = peers(tls=certificates, mutual=True)
    tls = {"url": f"fluent+tls://localhost:{peer.port}", "tls_ca": str(certificates.ca)}
    ours = {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
    sink = fluent(peer, **tls, **ours)
    sink.open()
    assert sink.send(made(2)) == []
    sink.close()

    sink = fluent(peer, **tls)
    with pytest.raises(InterruptedDeliveryError):  # noqa: PT012  (TLS 1.3 says so at the first answer)
        sink.open()
        sink.send(made(2))
    sink.close()
    assert len(peer.events) == 2


def test_tags_change_without_changing_the_order(peers: Any) -> None:
    """Neighbours of a tag are a chunk; events stay in their order."""
    peer = peers()
    tags = ["a", "a", "b", "a", "b", "b"]
    messages = [
        Message(m.id, m.body, m.ts_ns, {"tag": t}) for m, t in zip(made(6), tags, strict=True)
    ]
    sink = fluent(peer)
    sink.open()
    sink.send(messages)
    sink.close()
    assert [tag for tag, _, _ in peer.events] == tags
    assert [record["n"] for _, _, record in peer.events] == list(range(6))
    assert len(peer.chunks) == 4


def test_a_chunk_sent_again_has_the_same_name(peers: Any) -> None:
    """So that a server can tell; other events have another."""
    peer = peers()
    sink = fluent(peer)
    sink.open()
    for messages in (made(3), made(3), made(3, start=1)):
        sink.send(messages)
    sink.close()
    first, again, other = peer.chunks
    assert first == again != other


def test_what_was_not_acknowledged_is_not_taken(peers: Any) -> None:
    """Of four chunks with two answers, the events of two count."""
    peer = peers(acks=2)
    messages = [Message(m.id, m.body, 0, {"tag": f"t{n // 3}"}) for n, m in enumerate(made(12))]
    sink = fluent(peer)
    sink.open()
    with pytest.raises(InterruptedDeliveryError, match=r"hung up|reset") as caught:
        sink.send(messages)
    assert caught.value.taken == 6
    sink.close()


def test_without_acks_nothing_is_waited_for(peers: Any) -> None:
    """The control of the test before: then a server that hangs up takes what it did not read."""
    peer = peers(acks=0)
    sink = fluent(peer, require_ack=False)
    sink.open()
    assert sink.send(made(3)) == []
    sink.close()
    assert peer.chunks == []


def test_an_answer_to_something_else_is_an_error(peers: Any) -> None:
    """A peer that acknowledges what was not sent speaks another protocol."""
    sink = fluent(peers(answer={"ack": "other"}))
    sink.open()
    with pytest.raises(KcapError, match="other"):
        sink.send(made(1))
    sink.close()


def test_text_is_a_record_with_a_message(peers: Any) -> None:
    """What is no JSON object goes as text; numbers beyond 64 bits have no room in the protocol."""
    peer = peers()
    sink = fluent(peer)
    sink.open()
    refused = sink.send([
        Message("a", b"plain \xc3\xa4", 1),
        Message("b", b"{not json", None),
        Message("c", b'{"n":%d}' % (1 << 64), 1),
        Message("d", b'{"n":%d}' % ((1 << 64) - 1), -5),
    ])  # fmt: skip
    sink.close()
    assert [r.at for r in refused] == [2]
    assert [record for _, _, record in peer.events] == [
        {"message": "plain ä", "kcap_id": "a"},
        {"message": "{not json", "kcap_id": "b"},
        {"n": (1 << 64) - 1, "kcap_id": "d"},
    ]
    assert [time for _, time, _ in peer.events] == [1, 0, 0]


def test_logins(peers: Any) -> None:
    """With the shared key, and a user where the peer asks for one, and never without."""
    peer = peers(key=b"secret", users={"kcap": "right"})
    good = {"shared_key": "secret", "user": "kcap", "password": "right"}
    sink = fluent(peer, **good)
    sink.open()
    assert sink.send(made(2)) == []
    sink.close()
    assert len(peer.events) == 2
    for wrong in ({"shared_key": "other"}, {"password": "wrong"}, {"user": "nobody"}):
        with pytest.raises(KcapError, match="login is refused") as caught:
            fluent(peer, **good | wrong).open()
        assert not isinstance(caught.value, InterruptedDeliveryError)


def test_a_peer_that_does_not_know_the_key_is_found_out(peers: Any) -> None:
    """The proof is mutual: who only says yes gets no events."""
    sink = fluent(peers(key=b"other", trusting=True), shared_key="secret")
    with pytest.raises(KcapError, match="does not know the shared key"):
        sink.open()


def test_tracees_spelling() -> None:
    """``forward:`` with Tracee's option names is the same sink."""
    spec = parse(
        "forward:tcp://user:pass@localhost:24225?tag=tracee&requireAck=true&connectionTimeout=10s"
    )
    assert spec.transport is Forward
    made_of_it = Forward(spec.options)
    settings = made_of_it._settings
    assert (settings.tag, settings.require_ack, settings.timeout) == ("tracee", True, 10.0)
    assert made_of_it._to[:5] == ("fluent", "localhost", 24225, "user", "pass")
    assert "pass" not in spec.shown
    off = Forward(ForwardOptions(url="forward:tcp://localhost", requireAck=False))
    assert not off._settings.require_ack
    with pytest.raises(KcapError, match="address"):
        Forward(ForwardOptions(url="forward:udp://localhost"))


def test_nobody_there_is_an_interruption(tmp_path: Path) -> None:
    """Where nobody listens, somebody may yet."""
    for url in (f"fluent://127.0.0.1:{free_port()}", f"fluent+unix://{tmp_path}/none"):
        with pytest.raises(InterruptedDeliveryError):
            Fluent(FluentOptions(url=url)).open()


def test_a_courier_without_rights_delivers(peers: Any, certificates: Certificates) -> None:
    """By TLS, with a login and a tag for each event: all that it takes is loaded in time."""
    peer = peers(tls=certificates, key=b"secret")
    made_of_it = deliver(
        f"fluent+tls://localhost:{peer.port}?tag=kcap.{{{{ event }}}}&tls-ca={certificates.ca}",
        events(300),
        events(300, 300),
        shared_key="secret",
    )
    made_of_it.close()
    assert [record["kcap_id"] for _, _, record in peer.events] == ids(600)
    assert [tag for tag, _, _ in peer.events[:3]] == [f"kcap.{name}" for name in NAMES]
    assert (made_of_it.confirmed, made_of_it.losses) == (600, [])


def test_a_peer_that_hangs_up_now_and_then_gets_everything(peers: Any) -> None:
    """After three answers each time: every event is there, in order, doubles known."""
    peer = peers(acks=3)
    made_of_it = deliver(f"fluent://localhost:{peer.port}?batch=100")
    for start in range(0, 3000, 500):
        made_of_it.write(events(500, start))
    made_of_it.close()
    found = [record["kcap_id"] for _, _, record in peer.events]
    assert len(found) > 3000
    assert list(dict.fromkeys(found)) == ids(3000)
    assert made_of_it.confirmed == 3000
    assert len(set(peer.chunks)) == 30  # one that came twice had its name twice


def test_a_real_server() -> None:
    """The server that KCAP_TEST_FLUENT_URL names acknowledges what it is sent."""
    url = os.environ.get("KCAP_TEST_FLUENT_URL")
    if url is None:
        pytest.skip("needs KCAP_TEST_FLUENT_URL, as fluent://localhost:24224")
    spec = parse(url)
    sink = Fluent(spec.options)
    sink.open()
    assert sink.send(made(1000)) == []
    sink.close()
