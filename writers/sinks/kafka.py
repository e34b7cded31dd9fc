"""Kafka: each event a record that all in-sync replicas have, in the order of its key."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import unquote

from kcap.errors import KcapError
from kcap.writers.sinks import server
from kcap.writers.sinks.server import ServerOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused, option

_PORT: Final = 9092
_TOPIC: Final = "kcap"
_POLL_S: Final = 0.5
_MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, kw_only=True)
class KafkaOptions(ServerOptions):
    """The settings of `Kafka`."""

    topic: str | None = option(
        "the topic; also the path of the URL, else kcap", default=None, template=True
    )
    key: str = option("key of a record: equal keys stay in order", default="kcap", template=True)
    headers: dict[str, str] = option("headers of each record beside its id", default={})  # noqa: RUF009  (a field)
    compression: str = option("none, gzip, snappy, lz4 or zstd", default="lz4")
    mechanism: str = option("how a user logs in: PLAIN, SCRAM-SHA-256 or -512", default="PLAIN")
    properties: dict[str, str] = option("further settings of librdkafka", default={})  # noqa: RUF009  (a field)


class Kafka:
    """A producer of records, idempotent: a retry of its own makes no duplicates.

    Args:
        settings: Where the brokers are, and what to tell them.

    Raises:
        KcapError: An option is wrong, or a certificate can't be read.
    """

    options: ClassVar = KafkaOptions
    batch: ClassVar = 1000
    formats: ClassVar = ("jsonl", "template", "line", "tracee-json", "cef")
    needs: ClassVar = {"kafka": "confluent_kafka"}

    def __init__(self, settings: KafkaOptions) -> None:
        import confluent_kafka

        self._library: Any = confluent_kafka
        self._settings = settings
        self._brokers, self._topic = _cluster(settings)
        self._shown = f"kafka://{self._brokers}"
        self._configuration = _configured(settings, self._brokers)
        self._trouble: Any = None
        self._producer: Any = None
        self._logger = logging.getLogger("kcap.kafka")  # What matters of it is in our errors.
        self._logger.addHandler(logging.NullHandler())
        self._logger.propagate = False
        try:  # It says now what it does not understand.
            confluent_kafka.Producer(
                {**self._configuration, "bootstrap.servers": "", "log_level": 0}
            )
        except confluent_kafka.KafkaException as e:
            raise KcapError(f"{self._shown}: {_said(e.args[0])}") from e

    def open(self) -> None:
        """Make a producer and ask the brokers who they are.

        Raises:
            InterruptedDeliveryError: None of them answers.
            KcapError: They do not know us.
        """
        self.close()
        self._trouble = None
        producer = self._library.Producer(
            {**self._configuration, "error_cb": self._on_error, "logger": self._logger}
        )
        self._producer = producer
        try:
            producer.list_topics(timeout=self._settings.timeout)
        except self._library.KafkaException as e:
            producer.poll(0)  # for the reason, which comes to _on_error
            self.close()
            raise self._meaning(self._trouble or e.args[0]) from e

    def send(self, messages: Sequence[Message]) -> Sequence[Refused]:
        """Produce records and wait until all are acknowledged.

        Args:
            messages: What to produce.

        Returns:
            Those that are too large, or that the brokers call invalid.

        Raises:
            InterruptedDeliveryError: Not all were acknowledged in time.
            KcapError: They will take none from us.
        """
        if self._producer is None:
            raise InterruptedDeliveryError(f"{self._shown}: not connected")
        answers = _Answers(len(messages))
        for at, message in enumerate(messages):
            self._produce(message, answers.noting(at))
        self._await(answers)
        codes = self._library.KafkaError
        invalid = {codes.MSG_SIZE_TOO_LARGE, codes.INVALID_MSG, codes.INVALID_RECORD}
        refused: list[Refused] = []
        for at, (answered, error) in enumerate(answers.found):
            if answered and error is None:
                continue
            if answered and error.code() in invalid:
                refused.append(Refused(at, _said(error)))
                continue
            self.close()
            raise self._meaning(error or self._trouble, at, refused)
        return refused

    def close(self) -> None:
        """Hang up; what was not acknowledged is forgotten here, and still known to the caller."""
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(_POLL_S)
            self._producer = None

    def _produce(self, message: Message, note: Callable[[Any, Any], None]) -> None:
        values = message.values
        headers = [("id", message.id.encode())]
        headers += [(name, text.encode()) for name, text in self._settings.headers.items()]
        timestamp = {} if message.ts_ns is None else {"timestamp": message.ts_ns // 1_000_000}
        while True:
            try:
                self._producer.produce(
                    values.get("topic") or self._topic,
                    message.body,
                    values.get("key", self._settings.key).encode(),
                    headers=headers,
                    on_delivery=note,
                    **timestamp,
                )
            except BufferError:  # Its queue is full: some have to be acknowledged first.
                self._producer.poll(_POLL_S)
                if self._trouble is not None:
                    return
            except self._library.KafkaException as e:  # too large, or a topic no topic can have
                note(e.args[0], None)
                return
            else:
                return

    def _await(self, answers: _Answers) -> None:
        # The producer itself gives each record up after message.timeout.ms, then all are answered;
        # what it can't go on after comes to _on_error.
        while answers.left and self._trouble is None:
            self._producer.poll(_POLL_S)
        self._producer.poll(0)

    def _on_error(self, error: Any) -> None:  # noqa: ANN401  (an extra)
        if error.fatal() or self._is_final(error):
            self._trouble = error

    def _is_final(self, error: Any) -> bool:  # noqa: ANN401
        codes = self._library.KafkaError
        return error.code() in {
            codes._AUTHENTICATION,  # noqa: SLF001  (librdkafka's own codes begin so)
            codes.SASL_AUTHENTICATION_FAILED,
            codes.TOPIC_AUTHORIZATION_FAILED,
            codes.CLUSTER_AUTHORIZATION_FAILED,
            codes.TOPIC_EXCEPTION,
            codes._UNKNOWN_TOPIC,  # noqa: SLF001
            codes._INVALID_ARG,  # noqa: SLF001
        }

    def _meaning(
        self,
        error: Any,  # noqa: ANN401
        taken: int = 0,
        refused: Sequence[Refused] = (),
    ) -> KcapError:
        said = "no answer in time" if error is None else _said(error)
        if error is not None and self._is_final(error):
            return KcapError(
                f"{self._shown}: {said}", hint="check the topic, the user and what it may do"
            )
        return InterruptedDeliveryError(f"{self._shown}: {said}", taken=taken, refused=refused)


class _Answers:
    """What the brokers say of each record."""

    def __init__(self, count: int) -> None:
        self.found: list[tuple[bool, Any]] = [(False, None)] * count
        """Whether there is an answer, and the error that it is, if it is one."""
        self.left = count

    def noting(self, at: int) -> Callable[[Any, Any], None]:
        """What the producer calls with the answer to one of them."""

        def note(error: Any, _: Any) -> None:  # noqa: ANN401  (an extra)
            self.found[at] = (True, error)
            self.left -= 1

        return note


def _said(error: Any) -> str:  # noqa: ANN401
    return server.said_short(error.str() or error.name())


def _cluster(settings: KafkaOptions) -> tuple[str, str]:
    """The brokers of a URL, with their ports, and its topic."""
    place, _, topic = settings.url.partition("://")[2].partition("/")
    brokers = []
    for one in place.rpartition("@")[2].split(","):
        host, colon, port = one.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = one, str(_PORT)
        if not host or not port.isdecimal():
            raise KcapError(
                f"{one!r} is no broker",
                expected="HOST or HOST:PORT",
                hint="kafka://HOST:9092/TOPIC",
            )
        brokers.append(f"{host}:{port}")
    fixed = settings.topic if settings.topic and "{" not in settings.topic else None
    return ",".join(brokers), fixed or unquote(topic) or _TOPIC


def _configured(settings: KafkaOptions, brokers: str) -> dict[str, Any]:
    """What librdkafka is told."""
    tls = settings.url.startswith("kafkas:")
    user, password = server.login(settings)
    made: dict[str, Any] = {
        "bootstrap.servers": brokers,
        "client.id": "kcap",
        "enable.idempotence": True,
        "acks": "all",
        "enable.gapless.guarantee": True,  # rather nothing behind a record that was not taken
        "message.timeout.ms": int(settings.timeout * 1000),
        "socket.timeout.ms": max(10, int(settings.timeout * 1000)),
        "compression.type": settings.compression,
        "partitioner": "murmur2_random",  # where the clients in Java would put it
        "linger.ms": 5,
        "security.protocol": ("SASL_" if user else "") + ("SSL" if tls else "PLAINTEXT"),
    }
    if user:
        if settings.mechanism not in _MECHANISMS:
            raise KcapError(
                f"mechanism {settings.mechanism!r}", expected=f"one of {', '.join(_MECHANISMS)}"
            )
        made |= {
            "sasl.mechanism": settings.mechanism,
            "sasl.username": user,
            "sasl.password": password or "",
        }
    if tls:
        made |= _certified(settings)
    return made | settings.properties


def _certified(settings: KafkaOptions) -> Mapping[str, Any]:
    # By content: when librdkafka would open the files, nothing can be read any more.
    made: dict[str, Any] = {"enable.ssl.certificate.verification": settings.tls_verify}
    key = settings.tls_key or settings.tls_cert
    files = {"ssl.ca.pem": settings.tls_ca, "ssl.certificate.pem": settings.tls_cert}
    for name, file in {**files, "ssl.key.pem": key}.items():
        if file:
            try:
                made[name] = Path(file).read_text()
            except (OSError, ValueError) as e:
                raise KcapError(f"not usable for TLS: {server.reason(e)}", file=file) from e
    return made
