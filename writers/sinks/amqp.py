"""RabbitMQ and other AMQP 0-9-1 brokers: each event a message that the broker confirms."""

from __future__ import annotations

import logging
import queue
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

from kcap.errors import KcapError
from kcap.writers.sinks import server
from kcap.writers.sinks.server import ServerOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused, option

_PORT: Final = 5672
_PORT_TLS: Final = 5671
_KEY_BYTES_MAX: Final = 255
"""What AMQP has room for."""
_PERSISTENCE: Final = {"transient": 1, "persistent": 2, "1": 1, "2": 2}
_NEVER: Final = {
    403: "check user and password, and what this user may do (rabbitmqctl list_permissions)",
    404: "declare it there first, or leave passive out",
    406: "say the exchange-type, durable and the like that it was declared with, or passive=yes",
    530: "name a virtual host that is there (rabbitmqctl list_vhosts)",
}
"""Reply codes that mean the same however often one tries, and what helps."""
_NOT_FOUND: Final = 404
"""Of what was there a moment ago: opened anew, it is declared again."""
_REPLY: Final = re.compile(r"ClosedByBroker: \((\d{3})\) ['\"](.*?)['\"]")
_CLOSE_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class AmqpOptions(ServerOptions):
    """The settings of `Amqp`."""

    exchange: str = option("the exchange; empty for the default one", default="kcap")
    exchange_type: str = option("topic, direct, fanout or headers", default="topic")
    routing_key: str = option("routing key", default="kcap", template=True)
    vhost: str | None = option("virtual host; also the path of the URL", default=None)
    durable: bool = option("whether the exchange outlives the broker's restart", default=True)
    passive: bool = option("take the exchange as it is there, never declare it", default=False)
    delivery_mode: str = option("persistent or transient", default="persistent")
    mandatory: bool = option("refuse what the exchange routes to no queue", default=True)
    headers: dict[str, str] = option("headers of each message", default={})  # noqa: RUF009  (a field)
    content_type: str = option("content type of each message", default="application/json")
    heartbeat: int = option("seconds between signs of life; 0 for none", default=60)


class Amqp:
    """A connection to a broker.

    Messages of a batch go out one behind the other and their confirms come back while they do.
    The connection has a thread of its own, so that it lives on while there is nothing to send.

    Args:
        settings: Where the broker is, and what to tell it.

    Raises:
        KcapError: An option is wrong, or a certificate can't be read.
    """

    options: ClassVar = AmqpOptions
    batch: ClassVar = 500
    formats: ClassVar = ("jsonl", "template", "line", "tracee-json", "cef")
    needs: ClassVar = {"amqp": "pika"}

    def __init__(self, settings: AmqpOptions) -> None:
        import pika  # with all that it takes: nothing can be read later

        tls = settings.url.startswith("amqps:")
        self._address = server.address(settings, _PORT_TLS if tls else _PORT)
        if settings.delivery_mode not in _PERSISTENCE:
            raise KcapError(
                f"delivery-mode {settings.delivery_mode!r}", expected="persistent or transient"
            )
        self._settings = settings
        self._parameters = self._described(pika, server.context(settings) if tls else None)
        self._session: _Session | None = None
        logger = logging.getLogger("pika")  # What matters of it is in our errors.
        logger.addHandler(logging.NullHandler())
        logger.propagate = False

    def _described(self, pika: Any, tls: Any) -> Any:  # noqa: ANN401  (an extra)
        to, settings = self._address, self._settings
        return pika.ConnectionParameters(
            host=to.host,
            port=to.port,
            virtual_host=settings.vhost or to.path.removeprefix("/") or "/",
            credentials=pika.PlainCredentials(to.user or "guest", to.password or "guest"),
            heartbeat=settings.heartbeat,
            ssl_options=None if tls is None else pika.SSLOptions(tls, to.host),
            socket_timeout=settings.timeout,
            stack_timeout=settings.timeout,
            connection_attempts=1,
            client_properties={"product": "kcap", "connection_name": "kcap"},
        )

    def open(self) -> None:
        """Connect, declare the exchange and ask for confirms.

        Raises:
            InterruptedDeliveryError: The broker is not there.
            KcapError: It knows neither us nor the exchange, or another one of that name.
        """
        self.close()
        self._session = _Session(str(self._address), self._parameters, self._settings)
        self._session.open()

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Publish messages and wait until all are confirmed.

        Args:
            messages: What to publish.

        Returns:
            Those that no queue would get, or whose routing key is too long.

        Raises:
            InterruptedDeliveryError: The connection broke, or the broker had no room for one.
            KcapError: It closed the channel for what we do.
        """
        if self._session is None:
            raise InterruptedDeliveryError(f"{self._address}: not connected")
        fixed = self._settings.routing_key
        keys = [message.values.get("routing_key", fixed) for message in messages]
        return self._session.send(messages, keys)

    def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            self._session.close()
            self._session = None


class _Flight:
    """Messages on their way, and what the broker has said of them."""

    def __init__(self, messages: Sequence[Message], keys: Sequence[str]) -> None:
        self.messages = messages
        self.keys = keys
        self.refused: dict[int, str] = {
            at: f"the routing key has more than {_KEY_BYTES_MAX} bytes: {server.said_short(key)}"
            for at, key in enumerate(keys)
            if len(key.encode()) > _KEY_BYTES_MAX
        }
        self.sent = [at for at in range(len(messages)) if at not in self.refused]
        self.first = 0
        """The delivery tag of the first that is sent."""
        self._answers = bytearray(len(self.sent))
        self._waiting = len(self.sent)
        self._low = 0
        self.nacked: int | None = None
        """The first that the broker could not store."""

    @property
    def over(self) -> bool:
        """Whether all are answered."""
        return self._waiting == 0

    @property
    def taken(self) -> int:
        """How many, from the first on, the broker has or refused."""
        for at, answered in zip(self.sent, self._answers, strict=True):
            if not answered or at == self.nacked:
                return at
        return len(self.messages)

    def refusals(self, end: int) -> list[Refused]:
        """Those of the first ``end`` that it refused."""
        return [Refused(at, why) for at, why in sorted(self.refused.items()) if at < end]

    def answer(self, tag: int, *, multiple: bool, ack: bool) -> None:
        """Note a confirm; one that counts for all before it, too, if ``multiple``."""
        end = tag - self.first + 1
        start = self._low if multiple else end - 1
        for at in range(start, end):
            if not self._answers[at]:
                self._answers[at] = 1
                self._waiting -= 1
                if not ack and (self.nacked is None or self.sent[at] < self.nacked):
                    self.nacked = self.sent[at]
        if start <= self._low:
            self._low = max(self._low, end)

    def returned(self, id_: str, why: str) -> None:
        """Note a message that no queue got; its confirm follows."""
        at = next((at for at in self.sent if self.messages[at].id == id_), None)
        if at is not None:
            self.refused[at] = why


class _Session:
    """One connection with its channel, served by a thread.

    What runs in the thread is called by pika; the caller waits on ``_outcome`` for it.
    """

    def __init__(self, to: str, parameters: Any, settings: AmqpOptions) -> None:  # noqa: ANN401
        self._to = to
        self._settings = settings
        self._parameters = parameters
        self._outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._lost: BaseException | None = None
        self._blocked = ""
        self._flight: _Flight | None = None
        self._published = 0
        self._connection: Any = None
        self._channel: Any = None
        self._opened = False
        self._thread = threading.Thread(target=self._serve, name="amqp", daemon=True)

    def open(self) -> None:
        """Connect."""
        from pika.adapters.select_connection import SelectConnection

        self._connection = SelectConnection(
            self._parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
        )
        self._thread.start()
        error = self._waited("no answer to the login")
        if error is not None:
            self.close()
            raise self._meaning(error)
        self._opened = True

    def send(self, messages: Sequence[Message], keys: Sequence[str]) -> list[Refused]:
        """Publish messages and wait for the confirms of all."""
        flight = _Flight(messages, keys)
        if flight.sent:
            if self._lost is not None:
                raise self._meaning(self._lost)
            self._connection.ioloop.add_callback_threadsafe(partial(self._publish, flight))
            error = self._waited("no confirms")
            if error is not None:
                raise self._meaning(error, flight)
        if flight.nacked is not None:
            raise InterruptedDeliveryError(
                f"{self._to}: the broker did not store a message (basic.nack): is a queue full?",
                taken=flight.taken,
                refused=flight.refusals(flight.taken),
            )
        return flight.refusals(len(messages))

    def close(self) -> None:
        """Hang up and wait until the thread has ended."""
        if self._connection is None:
            return
        if self._thread.is_alive():
            self._connection.ioloop.add_callback_threadsafe(self._hang_up)
            self._thread.join(_CLOSE_S)
            if self._thread.is_alive():  # A broker that does not say goodbye is not waited for.
                self._connection.ioloop.add_callback_threadsafe(self._connection.ioloop.stop)
                self._thread.join(_CLOSE_S)
        self._connection = None

    def _waited(self, what: str) -> BaseException | None:
        try:
            return self._outcome.get(timeout=self._settings.timeout)
        except queue.Empty:
            stopped = f", which takes nothing now: {self._blocked}" if self._blocked else ""
            late = TimeoutError(f"{what} within {self._settings.timeout:g} s{stopped}")
            self._lost = self._lost or late  # An answer that comes now would be taken for another.
            return late

    def _meaning(self, error: BaseException, flight: _Flight | None = None) -> KcapError:
        taken = 0 if flight is None else flight.taken
        refused = [] if flight is None else flight.refusals(taken)
        for cause in _causes(error):
            code, said = _reply(cause)
            if code in _NEVER and not (self._opened and code == _NOT_FOUND):
                return KcapError(f"{self._to}: {server.said_short(said)}", hint=_NEVER[code])
            if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
                return server.failure(self._to, cause, taken, refused)
        said = server.said_short(str(error) or repr(error))
        return InterruptedDeliveryError(f"{self._to}: {said}", taken=taken, refused=refused)

    # What follows runs in the thread.

    def _serve(self) -> None:
        try:
            self._connection.ioloop.start()
        except Exception as e:  # noqa: BLE001  (whatever a library raises, the caller waits)
            self._on_lost(self._connection, e)
        self._connection.ioloop.close()

    def _hang_up(self) -> None:
        if self._connection.is_open:
            self._connection.close()
        elif self._connection.is_closed:
            self._connection.ioloop.stop()

    def _on_open(self, connection: Any) -> None:  # noqa: ANN401
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:  # noqa: ANN401
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        settings = self._settings
        if not settings.exchange:
            self._on_declared(None)
            return
        channel.exchange_declare(
            exchange=settings.exchange,
            exchange_type=settings.exchange_type,
            durable=settings.durable,
            passive=settings.passive,
            callback=self._on_declared,
        )

    def _on_declared(self, _: Any) -> None:  # noqa: ANN401
        self._channel.confirm_delivery(
            ack_nack_callback=self._on_confirm, callback=lambda _: self._outcome.put(None)
        )

    def _publish(self, flight: _Flight) -> None:
        if self._lost is not None:
            self._outcome.put(self._lost)
            return
        from pika.spec import BasicProperties

        self._flight = flight
        flight.first = self._published + 1
        settings, publish = self._settings, self._channel.basic_publish
        mode, headers = _PERSISTENCE[settings.delivery_mode], _headers(settings.headers)
        for at in flight.sent:
            message = flight.messages[at]
            publish(
                settings.exchange,
                flight.keys[at],
                message.body,
                BasicProperties(
                    content_type=settings.content_type,
                    headers=headers,
                    delivery_mode=mode,
                    message_id=message.id,
                    timestamp=None if message.ts_ns is None else message.ts_ns // 1_000_000_000,
                    app_id="kcap",
                ),
                mandatory=settings.mandatory,
            )
            self._published += 1

    def _on_confirm(self, frame: Any) -> None:  # noqa: ANN401
        flight, method = self._flight, frame.method
        if flight is None:
            return
        flight.answer(method.delivery_tag, multiple=method.multiple, ack="Ack" in method.NAME)
        if flight.over:
            self._flight = None
            self._outcome.put(None)

    def _on_return(self, _: Any, method: Any, properties: Any, __: bytes) -> None:  # noqa: ANN401
        if self._flight is not None:
            why = f"{server.said_short(method.reply_text)}: no queue is bound for its routing key"
            self._flight.returned(properties.message_id, why)

    def _on_blocked(self, _: Any, frame: Any) -> None:  # noqa: ANN401
        self._blocked = server.said_short(str(frame.method.reason))

    def _on_unblocked(self, _: Any, __: Any) -> None:  # noqa: ANN401
        self._blocked = ""

    def _on_channel_closed(self, _: Any, why: BaseException) -> None:  # noqa: ANN401
        self._fail(why)
        if self._connection.is_open:
            self._connection.close()

    def _on_lost(self, _: Any, why: BaseException) -> None:  # noqa: ANN401
        self._fail(why)
        self._connection.ioloop.stop()

    def _fail(self, why: BaseException) -> None:
        # Told also where nobody waits yet: who is about to would wait for a loop that has ended.
        if self._lost is None:
            self._lost = why
            self._flight = None
            self._outcome.put(why)


def _reply(error: BaseException) -> tuple[int, str]:
    """Why a broker closed a connection or channel, by its code and words; 0 if it is not that."""
    code = getattr(error, "reply_code", None)
    if code is not None:
        return int(code), str(getattr(error, "reply_text", ""))
    found = _REPLY.search(str(error))  # Of a refused login pika keeps only the text.
    return (int(found[1]), found[2]) if found else (0, "")


def _headers(given: Mapping[str, str]) -> dict[str, str] | None:
    return dict(given) or None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those in it, the innermost first: pika packs one into another."""
    if error is None:
        return
    inside = [getattr(error, "exception", None), *getattr(error, "exceptions", ())]
    inside += [arg for arg in error.args if isinstance(arg, BaseException)]
    for one in inside:
        yield from _causes(one)
    yield error
