"""Mail, against a real mail server in this process: aiosmtpd, over loopback."""

from __future__ import annotations

import email
import email.policy
import ssl
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_support import Certificates, deliver, free_port, wait_for
from sink_support import alerts as alert_events
from sink_support import events

from kcap.errors import KcapError
from kcap.writers.sinks.smtp import Smtp, SmtpOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message

controller = pytest.importorskip("aiosmtpd.controller")
smtp_server = pytest.importorskip("aiosmtpd.smtp")

TO = ("team@example.org", "boss@example.org")


class Box:
    """Takes mail, and says about some what a test wants it to."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], bytes]] = []
        self.answer: Callable[[bytes], str] = lambda _: "250 OK"
        self.answer_to: Callable[[str], str] = lambda _: "250 OK"

    async def handle_RCPT(  # noqa: N802  (its name)
        self, _: Any, __: Any, envelope: Any, address: str, ___: Any
    ) -> str:
        said = self.answer_to(address)
        if said.startswith("250"):
            envelope.rcpt_tos.append(address)
        return said

    async def handle_DATA(self, _: Any, __: Any, envelope: Any) -> str:  # noqa: N802
        said = self.answer(envelope.content)
        if said.startswith("250"):
            self.mails.append((envelope.rcpt_tos, envelope.content))
        return said

    def read(self) -> list[EmailMessage]:
        """The mails as a mail program reads them."""
        parse = email.message_from_bytes
        return [parse(data, policy=email.policy.default) for _, data in self.mails]  # type: ignore[misc]


class Serving:
    """The server with its box."""

    def __init__(self, **settings: Any) -> None:
        self.box = Box()
        self.port = free_port()
        self._settings = settings
        self._running = False
        self.start()

    def start(self) -> None:
        """Start it, again if it was stopped."""
        self._controller = controller.Controller(
            self.box, hostname="127.0.0.1", port=self.port, **self._settings
        )
        self._controller.start()
        self._running = True

    def sink(self, **settings: Any) -> Smtp:
        """What writes to it."""
        given = {"url": f"smtp://localhost:{self.port}", "to": TO} | settings
        return Smtp(SmtpOptions(**given))

    def stop(self) -> None:
        """End it."""
        if self._running:
            self._running = False
            self._controller.stop()


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    running: list[Serving] = []

    def start(**settings: Any) -> Serving:
        running.append(Serving(**settings))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


def tls(certificates: Certificates) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificates.cert, certificates.key)
    return made


def alerts(count: int) -> list[Message]:
    return [
        Message(f"{n:064x}", b'{"arg_title":"T%d \xc3\xa4","pid":%d}' % (n, n), n * 10**9,
                {"subject": f"high: T{n} ä"})
        for n in range(count)
    ]  # fmt: skip


def test_every_alert_is_a_mail_with_its_id(serve: Callable[..., Serving]) -> None:
    """Each goes to all, in order, with subject, time, id and a body that people can read."""
    server = serve()
    sink = server.sink(sender="kcap@example.org")
    sink.open()
    assert sink.send(alerts(3)) == []
    sink.close()

    mails = server.box.read()
    assert [mail["Subject"] for mail in mails] == [f"high: T{n} ä" for n in range(3)]
    assert [mail["X-Kcap-Id"] for mail in mails] == [a.id for a in alerts(3)]
    assert [mail["Message-ID"] for mail in mails] == [f"<{a.id}@example.org>" for a in alerts(3)]
    assert mails[2]["Date"] == "Thu, 01 Jan 1970 00:00:02 +0000"
    assert mails[2].get_content().splitlines() == ["arg_title: T2 ä", "pid: 2"]
    assert [recipients for recipients, _ in server.box.mails] == [list(TO)] * 3
    assert mails[0]["To"] == ", ".join(TO)


def test_the_same_alert_is_the_same_mail(serve: Callable[..., Serving]) -> None:
    """Sent again it has the same bytes: nothing in it is of the moment."""
    server = serve()
    for _ in range(2):
        sink = server.sink()
        sink.open()
        sink.send(alerts(1))
        sink.close()
    (_, first), (_, second) = server.box.mails
    assert first == second


def test_a_digest_is_one_mail(serve: Callable[..., Serving]) -> None:
    """What comes together is in one mail, with the ids of all."""
    server = serve()
    sink = server.sink(digest=True)
    sink.open()
    sink.send(alerts(3))
    sink.close()
    (mail,) = server.box.read()
    assert mail["Subject"] == "high: T0 ä and 2 more"
    assert mail.get_content().count("arg_title: ") == 3
    assert mail["X-Kcap-Id"].split() == [a.id for a in alerts(3)]


HEADERS = {"From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "X-Kcap-Id",
           "Content-Type", "Content-Transfer-Encoding", "MIME-Version"}  # fmt: skip


WRITER = Smtp(SmtpOptions(url="smtp://localhost", to=TO))


@given(st.text(), st.text(max_size=200))
def test_no_value_makes_a_header(subject: str, id_: str) -> None:
    """Whatever an event says, a mail has the headers that we gave it, one line each."""
    written = WRITER._written([Message(id_, b"body", 0, {"subject": subject})])
    mail = email.message_from_bytes(written, policy=email.policy.default)
    assert set(mail.keys()) == HEADERS
    assert len(mail.keys()) == len(HEADERS)
    assert mail["To"] == ", ".join(TO)
    assert mail.get_payload().strip() == "body"


def test_an_injected_header_stays_in_the_subject(serve: Callable[..., Serving]) -> None:
    """The attack itself, by way of a server."""
    server = serve()
    sink = server.sink()
    sink.open()
    sink.send(
        [Message("a", b".\r\nQUIT\r\n.\r\n", 0, {"subject": "x\r\nBcc: evil@example.org\r\n\r\ny"})]
    )
    sink.close()
    (mail,) = server.box.read()
    assert mail["Subject"] == "x Bcc: evil@example.org y"
    assert mail["Bcc"] is None
    assert server.box.mails[0][0] == list(TO)


def test_what_the_server_never_takes_is_refused_alone(serve: Callable[..., Serving]) -> None:
    """A reply of 5xx to one mail refuses that one."""
    server = serve()
    server.box.answer = lambda data: "554 spam" if b"T1" in data else "250 OK"
    sink = server.sink()
    sink.open()
    assert [tuple(r) for r in sink.send(alerts(3))] == [(1, "554 spam")]
    sink.close()
    assert len(server.box.mails) == 2


def test_a_server_that_asks_to_wait_interrupts(serve: Callable[..., Serving]) -> None:
    """A reply of 4xx means later; what went before it is taken, a refusal among it told."""
    server = serve()
    server.box.answer = lambda data: (
        "554 spam" if b"T0" in data else "451 later" if b"T2" in data else "250 OK"
    )
    sink = server.sink()
    sink.open()
    with pytest.raises(InterruptedDeliveryError, match="451 later") as caught:
        sink.send(alerts(4))
    assert caught.value.taken == 2
    assert [r.at for r in caught.value.refused] == [0]

    server.box.answer = lambda _: "250 OK"
    sink.open()
    assert sink.send(alerts(4)[2:]) == []
    sink.close()


def test_recipients_nobody_knows_refuse_a_mail(serve: Callable[..., Serving]) -> None:
    """If there is none left to write to, never; if some may come back, later."""
    server = serve()
    server.box.answer_to = lambda _: "550 unknown"
    sink = server.sink()
    sink.open()
    assert [r.at for r in sink.send(alerts(1))] == [0]
    server.box.answer_to = lambda _: "450 busy"
    with pytest.raises(InterruptedDeliveryError):
        sink.send(alerts(1))
    sink.close()


def test_a_server_that_went_away_interrupts(serve: Callable[..., Serving]) -> None:
    """A connection that broke is one to open again."""
    server = serve()
    sink = server.sink()
    sink.open()
    server.stop()
    with pytest.raises(InterruptedDeliveryError) as caught:
        sink.send(alerts(2))
    assert caught.value.taken == 0
    with pytest.raises(InterruptedDeliveryError, match="refused"):
        sink.open()
    sink.close()


def test_no_connection_is_kept(serve: Callable[..., Serving]) -> None:
    """Alerts are rare: between them the server is left alone, and nothing breaks off meanwhile."""
    server = serve()
    sink = server.sink()
    sink.open()
    for alert in alerts(2):
        sink.send([alert])
        assert sink._server is None
    assert len(server.box.mails) == 2


def test_tls_and_login(serve: Callable[..., Serving], certificates: Certificates) -> None:
    """STARTTLS by itself, a user and a password; a wrong one, or a stranger's server, ends it."""

    def check(_: Any, __: Any, ___: Any, ____: str, given: Any) -> Any:
        right = given == smtp_server.LoginPassword(b"kcap", b"right")
        return smtp_server.AuthResult(success=right, handled=False)

    server = serve(tls_context=tls(certificates), authenticator=check, auth_required=True)
    good = {"user": "kcap", "password": "right", "tls_ca": str(certificates.ca)}
    sink = server.sink(**good)
    sink.open()
    assert sink.send(alerts(1)) == []
    sink.close()
    assert len(server.box.mails) == 1

    with pytest.raises(KcapError, match="login is refused") as caught:
        server.sink(**good | {"password": "wrong"}).open()
    assert not isinstance(caught.value, InterruptedDeliveryError)
    with pytest.raises(KcapError, match="not trusted") as caught:
        server.sink(**good | {"tls_ca": None}).open()
    assert not isinstance(caught.value, InterruptedDeliveryError)


def test_a_server_that_can_not_encrypt_is_refused_where_it_must(
    serve: Callable[..., Serving],
) -> None:
    """With starttls=yes nothing goes over an open line."""
    server = serve()
    with pytest.raises(KcapError, match="STARTTLS") as caught:
        server.sink(starttls="yes").open()
    assert not isinstance(caught.value, InterruptedDeliveryError)


def test_tls_from_the_start(serve: Callable[..., Serving], certificates: Certificates) -> None:
    """``smtps`` encrypts before anything is said."""
    server = serve(ssl_context=tls(certificates))
    sink = server.sink(url=f"smtps://localhost:{server.port}", tls_ca=str(certificates.ca))
    sink.open()
    assert sink.send(alerts(1)) == []
    sink.close()
    assert len(server.box.mails) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"to": ()}, "nobody"),
        ({"to": ("no address",)}, "no mail address"),
        ({"to": ("a@b.c\r\nBcc: d@e.f",)}, "no mail address"),
        ({"sender": "@"}, "no mail address"),
        ({"starttls": "maybe"}, "starttls"),
        ({"url": "smtp://"}, "no host"),
    ],
)
def test_wrong_settings_are_errors_at_once(settings: dict[str, Any], says: str) -> None:
    """What can be seen to be wrong is said before anything is sent."""
    with pytest.raises(KcapError, match=says):
        Smtp(SmtpOptions(**{"url": "smtp://localhost", "to": TO} | settings))


def test_a_courier_without_rights_sends_alerts(
    serve: Callable[..., Serving], certificates: Certificates
) -> None:
    """Over STARTTLS, and of what happens only the alerts."""
    server = serve(tls_context=tls(certificates))
    url = f"smtp://localhost:{server.port}?to={','.join(TO)}&tls-ca={certificates.ca}"
    made = deliver(url, events(50), alert_events(2))
    made.close()
    mails = server.box.read()
    assert [mail["Subject"] for mail in mails] == ["high: A <shell>"] * 2
    assert "arg_title: A <shell>" in mails[0].get_content()
    assert (made.confirmed, made.losses) == (2, [])


def test_a_server_that_is_away_for_a_while_gets_every_alert(serve: Callable[..., Serving]) -> None:
    """Stopped and started again in the middle, it has every alert, in order, doubles known."""
    count = 150
    server = serve()
    made = deliver(f"smtp://localhost:{server.port}?to={TO[0]}", alert_events(count))
    wait_for(lambda: len(server.box.mails) > 20, "some mails have come", 20)
    server.stop()
    before = len(server.box.mails)
    server.start()
    made.close()

    expected = alert_events(count).array("arg_alert_id").to_pylist()
    found = [mail["X-Kcap-Id"] for mail in server.box.read()]
    assert before < count
    assert list(dict.fromkeys(found)) == expected
    assert len(found) - count <= 1
    assert (made.confirmed, made.losses) == (count, [])
