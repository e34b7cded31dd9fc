"""Mail: an alert a message, or what comes together in one."""

from __future__ import annotations

import email.errors
import email.policy
import hashlib
import json
import re
import smtplib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address as Mailbox
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any, ClassVar, Final

from kcap.errors import KcapError
from kcap.writers.sinks import server
from kcap.writers.sinks.server import ServerOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused, option

_PORT: Final = 25
_PORT_TLS: Final = 465
_TLS_KINDS: Final = ("auto", "yes", "no")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SUBJECT_MAX: Final = 200
_ID_MAX: Final = 200
_PLAIN: Final = re.compile(r"[0-9A-Za-z]{1,64}")
_PERMANENT: Final = 500
"""Replies from here on mean never, those below later."""


@dataclass(frozen=True, kw_only=True)
class SmtpOptions(ServerOptions):
    """The settings of `Smtp`."""

    sender: str = option("whom mail is from", default="kcap@localhost")
    to: tuple[str, ...] = option("whom it goes to; may be given several times", default=())
    subject: str = option("subject", default="{{ arg_severity }}: {{ arg_title }}", template=True)
    digest: bool = option("one mail for all that comes together", default=False)
    starttls: str = option("yes, no, or auto: if the server offers it", default="auto")
    helo: str = option("what we call ourselves", default="[127.0.0.1]")


class Smtp:
    """A mail server: connected to while there is something to send, for alerts are rare.

    Args:
        settings: Where it is, from whom and to whom mail goes.

    Raises:
        KcapError: An option is wrong, or a certificate can't be read.
    """

    options: ClassVar = SmtpOptions
    batch: ClassVar = 50
    formats: ClassVar = ("jsonl", "template")
    what: ClassVar = "alerts"
    """What goes there unless it is said: a mail an event is nobody's wish."""

    def __init__(self, settings: SmtpOptions) -> None:
        self._direct = settings.url.startswith("smtps:")
        self._to = server.address(settings, _PORT_TLS if self._direct else _PORT)
        if settings.starttls not in _TLS_KINDS:
            raise KcapError(f"starttls {settings.starttls!r}", expected=", ".join(_TLS_KINDS))
        if not settings.to:
            raise KcapError(f"{self._to}: nobody to write to", hint="add to=NAME@DOMAIN")
        self._settings = settings
        self._tls = server.context(settings)
        self._sender = _mailbox(settings.sender)
        self._recipients = [_mailbox(one) for one in settings.to]
        self._server: smtplib.SMTP | None = None
        # Made once for what the library loads only when it is used: nothing can be read later.
        self._written([Message("0:0", "{}ä".encode(), 0, {"subject": "ä\n"})])

    def open(self) -> None:
        """See that it is there: connect, encrypt where it can, log in where there is a user.

        Raises:
            InterruptedDeliveryError: The server is not there.
            KcapError: It does not know us, or can't encrypt where it must.
        """
        self.close()
        try:
            self._server = self._connected()
            self._begin(self._server)
        except smtplib.SMTPNotSupportedError as e:
            self.close()
            raise KcapError(f"{self._to}: {server.reason(e)}") from e
        except (OSError, smtplib.SMTPException) as e:
            self.close()
            raise self._meaning(e) from e

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Send a mail for each message, or one for all.

        Args:
            messages: What to write about.

        Returns:
            Those that the server would not take.

        Raises:
            InterruptedDeliveryError: The connection broke, or the server asks to wait.
        """
        if self._server is None:
            self.open()
        assert self._server is not None
        refused: list[Refused] = []
        size = len(messages) if self._settings.digest else 1
        for start in range(0, len(messages), size):
            some = messages[start : start + size]
            try:
                self._server.sendmail(
                    self._sender.addr_spec,
                    [one.addr_spec for one in self._recipients],
                    self._written(some),
                )
            except (OSError, smtplib.SMTPException) as e:
                why = _refusal(e)
                if why is None:
                    self.close()
                    raise self._meaning(e, start, refused) from e
                refused += [Refused(at, why) for at in range(start, start + len(some))]
        self.close()
        return refused

    def close(self) -> None:
        """Say goodbye and hang up."""
        if self._server is not None:
            try:
                self._server.quit()
            except (OSError, smtplib.SMTPException):  # It is gone already.
                self._server.close()
            self._server = None

    def _connected(self) -> smtplib.SMTP:
        to, settings = self._to, self._settings
        made: Callable[..., smtplib.SMTP] = smtplib.SMTP
        more: dict[str, Any] = {}
        if self._direct:
            made, more = smtplib.SMTP_SSL, {"context": self._tls}
        return made(
            to.host, to.port, local_hostname=settings.helo, timeout=settings.timeout, **more
        )

    def _begin(self, to: smtplib.SMTP) -> None:
        to.ehlo_or_helo_if_needed()
        wish = self._settings.starttls
        if not self._direct and (wish == "yes" or (wish == "auto" and to.has_extn("starttls"))):
            to.starttls(context=self._tls)
            to.ehlo_or_helo_if_needed()
        if self._to.user is not None:
            to.login(self._to.user, self._to.password or "")

    def _written(self, some: Sequence[Message]) -> bytes:
        """A mail; what is about the same messages is the same mail."""
        first = some[0]
        mail = EmailMessage(policy=email.policy.SMTP)
        mail["From"] = self._sender
        mail["To"] = self._recipients
        mail["Subject"] = self._subject(some)
        mail["Date"] = format_datetime(_moment(first.ts_ns))
        mail["Message-ID"] = f"<{_name(some)}@{self._sender.domain or 'localhost'}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail["X-Kcap-Id"] = " ".join(_line(m.id, _ID_MAX) for m in some)
        mail.set_content("\n\n".join(_readable(message.body) for message in some) + "\n")
        return mail.as_bytes()

    def _subject(self, some: Sequence[Message]) -> str:
        one = _line(some[0].values.get("subject", self._settings.subject), _SUBJECT_MAX)
        return one if len(some) == 1 else f"{one} and {len(some) - 1} more"

    def _meaning(
        self, error: Exception, taken: int = 0, refused: Sequence[Refused] = ()
    ) -> KcapError:
        if isinstance(error, smtplib.SMTPResponseException):
            said = server.said_short(_decoded(error.smtp_error))
            if isinstance(error, smtplib.SMTPAuthenticationError) and (
                error.smtp_code >= _PERMANENT
            ):
                return KcapError(
                    f"{self._to}: the login is refused: {said}", hint="check user and password"
                )
            return InterruptedDeliveryError(
                f"{self._to}: {error.smtp_code} {said}", taken=taken, refused=refused
            )
        return server.failure(self._to, error, taken, refused)


def _refusal(error: Exception) -> str | None:
    """Why a mail is refused for good; None if that is not so."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        replies = list(error.recipients.items())
        if all(code >= _PERMANENT for _, (code, _) in replies):
            who, (code, said) = replies[0]
            return server.said_short(f"{who}: {code} {_decoded(said)}")
        return None
    if isinstance(error, (smtplib.SMTPDataError, smtplib.SMTPSenderRefused)) and (
        error.smtp_code >= _PERMANENT
    ):
        return server.said_short(f"{error.smtp_code} {_decoded(error.smtp_error)}")
    return None


def _decoded(said: bytes | str) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else said


def _mailbox(text: str) -> Mailbox:
    try:
        return Mailbox(addr_spec=text)
    except (ValueError, IndexError, email.errors.MessageError) as e:
        raise KcapError(f"{text!r} is no mail address", expected="NAME@DOMAIN") from e


def _moment(ts_ns: int | None) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=(ts_ns or 0) // 1000)
    except OverflowError:
        return _EPOCH


def _name(some: Sequence[Message]) -> str:
    """The same for the same messages; of an alert its id."""
    if len(some) == 1 and _PLAIN.fullmatch(some[0].id):
        return some[0].id
    return hashlib.sha256("\n".join(m.id for m in some).encode(errors="replace")).hexdigest()


def _line(text: str, length: int) -> str:
    """Text for a header: one line, so that it can't begin another header."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:length]


def _readable(body: bytes) -> str:
    """A body for people: a line for each value of an object, the text itself otherwise."""
    found = server.record(body)
    if found is None:
        return body.decode(errors="replace")
    return "\n".join(f"{name}: {_shown(value)}" for name, value in found.items())


def _shown(value: Any) -> str:  # noqa: ANN401
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
