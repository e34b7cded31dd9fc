"""Fluentd, Fluent Bit and what else speaks the Forward protocol, over TCP, TLS or a Unix socket.

Events of the same tag travel in one chunk, and the server says which chunks it has. A chunk is
named by what is in it, so one that is sent again has the same name.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import os
import socket
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from kcap.errors import KcapError
from kcap.writers.sinks import server
from kcap.writers.sinks.server import ServerOptions
from kcap.writers.sinks.transport import Message, Refused, option

_PORT: Final = 24224
_EVENT_TIME: Final = 0
"""The extension type of a time with nanoseconds."""
_SECONDS_MAX: Final = (1 << 32) - 1
_ANSWER_BYTES_MAX: Final = 1 << 16
_RECV_BYTES: Final = 1 << 14
_SALT_BYTES: Final = 16
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class FluentOptions(ServerOptions):
    """The settings of `Fluent`."""

    tag: str = option("tag of an event", default="kcap", template=True)
    require_ack: bool = option("wait until the server says that it has a chunk", default=True)
    shared_key: str | None = option("the secret that both ends know", default=None, secret=True)
    hostname: str = option("what we call ourselves at the login", default="kcap")
    id_key: str = option("where the id of an event is in its record", default="kcap_id")


class Fluent:
    """A connection to a Forward input.

    Args:
        settings: Where it is, and what to tell it.

    Raises:
        KcapError: An option is wrong, or a certificate can't be read.
    """

    options: ClassVar[type[FluentOptions]] = FluentOptions
    batch: ClassVar = 500
    formats: ClassVar = ("jsonl", "template")
    needs: ClassVar = {"fluent": "msgpack"}

    def __init__(self, settings: FluentOptions) -> None:
        import msgpack

        self._library: Any = msgpack
        self._settings = settings
        unix = settings.url.startswith("fluent+unix:")
        self._to = server.address(settings, 0 if unix else _PORT)
        self._tls = server.context(settings) if settings.url.startswith("fluent+tls:") else None
        if unix and not self._to.path:
            raise KcapError(f"{self._to}: no path", hint="fluent+unix:///run/fluent/fluent.sock")
        self._socket: socket.socket | None = None
        self._answers: Any = None

    def open(self) -> None:
        """Connect, and log in where there is a shared key.

        Raises:
            InterruptedDeliveryError: Nobody answers.
            KcapError: The login is refused, or the server's own proof is wrong.
        """
        self.close()
        if self._to.host:
            self._socket = server.connect(self._to, self._settings.timeout, self._tls)
        else:
            self._socket = server.connect_unix(self._to, self._settings.timeout)
        self._answers = self._library.Unpacker(max_buffer_size=_ANSWER_BYTES_MAX)
        if self._settings.shared_key is not None:
            try:
                self._log_in(self._settings.shared_key.encode())
            except BaseException:
                self.close()
                raise

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Send events and wait until the server has their chunks.

        Args:
            messages: What to send.

        Returns:
            Those with a number that the protocol has no room for.

        Raises:
            InterruptedDeliveryError: The connection broke, or a chunk was not acknowledged.
            KcapError: The server acknowledged something else.
        """
        refused: list[Refused] = []
        chunks: list[tuple[int, str]] = []
        taken = 0
        try:
            # All go out before the first answer is waited for.
            for tag, start, some in _runs(messages, self._settings.tag):
                entries, bad = self._entries(some, start)
                refused += bad
                if not entries:
                    continue
                name = _name(tag, some)
                chunks.append((start + len(some), name))
                head: dict[str, Any] = {"size": len(entries)}
                if self._settings.require_ack:
                    head["chunk"] = name
                self._write([tag, b"".join(entries), head])
            for end, name in chunks if self._settings.require_ack else ():
                answer = self._read()
                if not isinstance(answer, dict) or answer.get("ack") != name:
                    said = server.said_short(repr(answer))
                    raise KcapError(f"{self._to}: {said}", expected=f"an ack of chunk {name}")
                taken = end
        except OSError as e:
            self.close()
            known = [one for one in refused if one.at < taken]
            raise server.failure(self._to, e, taken, known) from e
        return refused

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _entries(self, some: Sequence[Message], start: int) -> tuple[list[bytes], list[Refused]]:
        entries, refused = [], []
        for at, message in enumerate(some, start):
            record = _record(message)
            record[self._settings.id_key] = message.id
            try:
                entries.append(self._library.packb([self._time(message.ts_ns or 0), record]))
            except (OverflowError, ValueError) as e:
                refused.append(Refused(at, f"it does not fit the Forward protocol: {e}"))
        return entries, refused

    def _time(self, ts_ns: int) -> Any:  # noqa: ANN401  (an extra)
        seconds, rest_ns = divmod(ts_ns, 1_000_000_000)
        if not 0 <= seconds <= _SECONDS_MAX:  # Its clock ends in 2106; the record has the time.
            return max(seconds, 0)
        packed = seconds.to_bytes(4, "big") + rest_ns.to_bytes(4, "big")
        return self._library.ExtType(_EVENT_TIME, packed)

    def _write(self, value: Any) -> None:  # noqa: ANN401
        if self._socket is None:
            raise ConnectionError("not connected")
        self._socket.sendall(self._library.packb(value))

    def _read(self) -> Any:  # noqa: ANN401
        if self._socket is None:
            raise ConnectionError("not connected")
        while True:
            try:
                return self._answers.unpack()
            except self._library.OutOfData:
                data = self._socket.recv(_RECV_BYTES)
                if not data:
                    raise ConnectionError("the server hung up") from None
                try:
                    self._answers.feed(data)
                except self._library.BufferFull as e:
                    raise KcapError(f"{self._to}: an answer without end") from e
            except (ValueError, self._library.UnpackException) as e:
                raise KcapError(f"{self._to}: what it says is no MessagePack: {e}") from e

    def _log_in(self, key: bytes) -> None:
        try:
            nonce, auth = self._hello()
            salt = os.urandom(_SALT_BYTES)
            name = self._settings.hostname.encode()
            user, password = (self._to.user or ""), (self._to.password or "")
            proof = _digest(auth, user.encode(), password.encode()) if auth else ""
            ours = _digest(salt, name, nonce, key)
            ping = ["PING", self._settings.hostname, salt, ours, user if auth else "", proof]
            self._write(ping)
            pong = self._read()
        except OSError as e:
            raise server.failure(self._to, e) from e
        if not isinstance(pong, list) or len(pong) < 5 or pong[0] != "PONG":  # noqa: PLR2004
            raise KcapError(f"{self._to}: {server.said_short(repr(pong))}", expected="a PONG")
        if pong[1] is not True:
            raise KcapError(
                f"{self._to}: the login is refused: {server.said_short(str(pong[2]))}",
                hint="check shared-key, user and password",
            )
        theirs = _digest(salt, _bytes(pong[3]), nonce, key)
        if not hmac.compare_digest(theirs.encode(), _bytes(pong[4])):
            raise KcapError(f"{self._to}: the server does not know the shared key")

    def _hello(self) -> tuple[bytes, bytes]:
        hello = self._read()
        if not isinstance(hello, list) or len(hello) < 2 or hello[0] != "HELO":  # noqa: PLR2004
            raise KcapError(f"{self._to}: {server.said_short(repr(hello))}", expected="a HELO")
        said = hello[1] if isinstance(hello[1], dict) else {}
        return _bytes(said.get("nonce", b"")), _bytes(said.get("auth", b""))


def _runs(messages: Sequence[Message], tag: str) -> Iterator[tuple[str, int, list[Message]]]:
    """Neighbours of the same tag, with the place of the first."""
    start = 0
    for one, group in itertools.groupby(messages, lambda m: m.values.get("tag", tag)):
        some = list(group)
        yield one, start, some
        start += len(some)


def _name(tag: str, some: Sequence[Message]) -> str:
    said = hashlib.sha256(json.dumps([tag, *(m.id for m in some)]).encode())
    return b64encode(said.digest()[:16]).decode()


def _record(message: Message) -> dict[str, Any]:
    """A body as a record: its object, or for other text one with a ``message``."""
    found = server.record(message.body)
    return {"message": message.body.decode(errors="replace")} if found is None else found


def _digest(*parts: bytes) -> str:
    return hashlib.sha512(b"".join(parts)).hexdigest()


def _bytes(value: Any) -> bytes:  # noqa: ANN401
    return value if isinstance(value, bytes) else str(value).encode()


@dataclass(frozen=True, kw_only=True)
class ForwardOptions(FluentOptions):
    """The settings of `Forward`: Tracee's names beside ours."""

    requireAck: bool | None = option("as require-ack", default=None)  # noqa: N815  (its spelling)
    connectionTimeout: float | None = option("as timeout", default=None)  # noqa: N815


class Forward(Fluent):
    """`Fluent` as Tracee's users write it: ``forward:tcp://user:pass@host:port?tag=…``.

    Args:
        settings: Where it is, and what to tell it.

    Raises:
        KcapError: As for `Fluent`; or the URL is not one of TCP.
    """

    options: ClassVar[type[FluentOptions]] = ForwardOptions

    def __init__(self, settings: ForwardOptions) -> None:
        url = settings.url.removeprefix("forward:")
        if not url.startswith("tcp://"):
            raise KcapError(
                f"{settings.url.partition('@')[2] or url} is no address to forward to",
                hint="for example forward:tcp://localhost:24224?tag=tracee",
            )
        super().__init__(
            FluentOptions(
                url="fluent" + url.removeprefix("tcp"),
                user=settings.user,
                password=settings.password,
                timeout=_or(settings.connectionTimeout, settings.timeout),
                tag=settings.tag,
                require_ack=_or(settings.requireAck, settings.require_ack),
                shared_key=settings.shared_key,
                hostname=settings.hostname,
                id_key=settings.id_key,
            )
        )


def _or(given: _T | None, default: _T) -> _T:
    return default if given is None else given
