"""The sink to RabbitMQ, against the broker of Debian's package on loopback."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from server_support import Certificates, RabbitMq, deliver, free_port, made
from sink_support import NAMES, events, ids

from kcap.errors import KcapError
from kcap.writers.sinks.amqp import Amqp, AmqpOptions, _Flight
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message

pika = pytest.importorskip("pika")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def broker(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[RabbitMq]:
    with RabbitMq(tmp_path_factory.mktemp("rabbitmq") / "node", certificates) as one:
        yield one


def amqp(broker: RabbitMq, **settings: Any) -> Amqp:
    given = {"url": f"amqp://guest:guest@localhost:{broker.port}/%2f"} | settings
    return Amqp(AmqpOptions(**given))


def test_every_message_arrives_once_in_order_with_its_id(broker: RabbitMq) -> None:
    """What the broker has is what was sent, each message durable and with what identifies it."""
    broker.queue("all", "ex-all")
    sink = amqp(broker, exchange="ex-all", headers={"site": "a"})
    messages = made(1200)

    sink.open()
    refused = [
        *sink.send(messages[:500]),
        *sink.send(messages[500:1000]),
        *sink.send(messages[1000:]),
    ]
    sink.close()

    found = broker.drain("all")
    assert refused == []
    assert [properties.message_id for _, properties, _ in found] == [m.id for m in messages]
    assert [body for _, _, body in found] == [m.body for m in messages]
    method, properties, _ = found[0]
    assert method.routing_key == "kcap"
    assert properties.delivery_mode == 2
    assert properties.app_id == "kcap"
    assert properties.content_type == "application/json"
    assert properties.headers == {"site": "a"}
    assert properties.timestamp == 0


def test_the_exchange_is_declared_as_asked(broker: RabbitMq) -> None:
    """An exchange that is not there is made; the same with another type is refused."""
    sink = amqp(broker, exchange="ex-new", exchange_type="fanout", mandatory=False)
    sink.open()
    assert sink.send(made(1)) == []
    sink.close()

    other = amqp(broker, exchange="ex-new", exchange_type="direct")
    with pytest.raises(KcapError, match="PRECONDITION_FAILED") as caught:
        other.open()
    assert not isinstance(caught.value, InterruptedDeliveryError)


def test_what_no_queue_gets_is_refused_alone(broker: RabbitMq) -> None:
    """Only unroutable messages, and those with too long a key, are refused, by their places."""
    broker.queue("some", "ex-some", "good.*")
    sink = amqp(broker, exchange="ex-some")
    keys = ["good.a", "bad", "good.b", "k" * 256, "good.c", "bad"]
    messages = [
        Message(m.id, m.body, m.ts_ns, {"routing_key": k})
        for m, k in zip(made(6), keys, strict=True)
    ]

    sink.open()
    refused = sink.send(messages)
    sink.close()

    assert [r.at for r in refused] == [1, 3, 5]
    assert "NO_ROUTE" in refused[0].reason
    assert "255 bytes" in refused[1].reason
    assert [p.message_id for _, p, _ in broker.drain("some")] == [messages[n].id for n in (0, 2, 4)]


def test_without_mandatory_such_messages_go_nowhere(broker: RabbitMq) -> None:
    """The control of the test before: the broker says nothing of them by itself."""
    sink = amqp(broker, exchange="ex-nowhere", mandatory=False)
    sink.open()
    assert sink.send(made(3)) == []
    sink.close()


def test_a_full_queue_interrupts(broker: RabbitMq) -> None:
    """What the broker could not store counts as not taken, nothing behind it as taken either."""
    broker.queue("full", "ex-full", **{"x-max-length": 5, "x-overflow": "reject-publish"})
    sink = amqp(broker, exchange="ex-full")
    sink.open()
    sink.send(made(5))
    messages = made(10, start=5)

    with pytest.raises(InterruptedDeliveryError, match="nack") as caught:
        sink.send(messages)

    stored = [p.message_id for _, p, _ in broker.drain("full")]
    sink.close()
    assert caught.value.taken < len(messages)
    assert stored[5:][: caught.value.taken] == [m.id for m in messages[: caught.value.taken]]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"password": "wrong"}, "ACCESS_REFUSED"),
        ({"passive": True, "exchange": "ex-missing"}, "NOT_FOUND"),
        ({"vhost": "nowhere"}, "nowhere"),
    ],
)
def test_what_trying_again_does_not_help_is_an_error(
    broker: RabbitMq, settings: dict[str, Any], says: str
) -> None:
    """A wrong password, exchange or virtual host ends it, with the broker's reason and a hint."""
    sink = amqp(broker, **settings)

    with pytest.raises(KcapError, match=says) as caught:
        sink.open()

    assert not isinstance(caught.value, InterruptedDeliveryError)
    assert caught.value.hint
    assert "wrong" not in str(caught.value)


def test_nobody_there_is_an_interruption() -> None:
    """Where no broker listens, it may come yet."""
    sink = Amqp(AmqpOptions(url=f"amqp://localhost:{free_port()}"))

    with pytest.raises(InterruptedDeliveryError, match="refused"):
        sink.open()


@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_a_connection_that_broke_interrupts_at_once(broker: RabbitMq, pause_s: float) -> None:
    """Whether it breaks while nothing is sent or just then, nobody waits in vain."""
    broker.queue("broken", "ex-broken")
    sink = amqp(broker, exchange="ex-broken")
    for _ in range(5):
        sink.open()
        assert sink._session is not None
        sink._session._connection._transport._sock.shutdown(socket.SHUT_RDWR)
        time.sleep(pause_s)
        begun = time.monotonic()
        with pytest.raises(InterruptedDeliveryError) as caught:
            sink.send(made(3))
        assert caught.value.taken == 0
        assert time.monotonic() - begun < 5
    sink.close()


def test_tls_checks_who_answers(broker: RabbitMq, certificates: Certificates) -> None:
    """With the authority's certificate it works, without it never."""
    url = f"amqps://guest:guest@localhost:{broker.port_tls}"
    broker.queue("tls", "ex-tls")
    good = amqp(broker, url=url, exchange="ex-tls", tls_ca=str(certificates.ca))
    good.open()
    assert good.send(made(3)) == []
    good.close()
    assert len(broker.drain("tls")) == 3

    bad = amqp(broker, url=url)
    with pytest.raises(KcapError, match="not trusted") as caught:
        bad.open()
    assert not isinstance(caught.value, InterruptedDeliveryError)


@pytest.mark.parametrize("order", [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3]])
def test_confirms_come_in_any_order(order: list[int]) -> None:
    """Only when all before it are confirmed does a message count as taken."""
    flight = _Flight(made(4), ["k"] * 4)
    flight.first = 11
    confirmed: set[int] = set()
    for tag in order:
        assert not flight.over
        flight.answer(10 + tag, multiple=False, ack=True)
        confirmed.add(tag)
        assert flight.taken == next(n for n in range(5) if n + 1 not in confirmed)
    assert flight.over


def test_one_confirm_may_be_for_all_before_it() -> None:
    """``multiple`` confirms what was not yet, nothing behind it."""
    flight = _Flight(made(4), ["k"] * 4)
    flight.first = 1
    flight.answer(2, multiple=False, ack=True)
    assert flight.taken == 0
    flight.answer(3, multiple=True, ack=True)
    assert flight.taken == 3
    flight.answer(4, multiple=True, ack=False)
    assert flight.over
    assert (flight.taken, flight.nacked) == (3, 3)


def first_seen(found: list[str]) -> list[str]:
    """Ids in the order in which each came first."""
    return list(dict.fromkeys(found))


def test_a_courier_without_rights_delivers(broker: RabbitMq, certificates: Certificates) -> None:
    """By TLS, to a name, with a key for each event: all that it takes is loaded in time."""
    broker.queue("confined", "ex-confined")
    url = (
        f"amqps://guest:guest@localhost:{broker.port_tls}/%2f?exchange=ex-confined"
        f"&routing-key=e.{{{{ event }}}}&tls-ca={certificates.ca}"
    )
    made = deliver(url, events(300), events(300, 300))
    made.close()

    found = broker.drain("confined")
    assert [p.message_id for _, p, _ in found] == ids(600)
    assert [m.routing_key for m, _, _ in found[:3]] == [f"e.{name}" for name in NAMES]
    assert json.loads(found[5][2])["ord"] == 5
    assert (made.confirmed, made.losses) == (600, [])


def test_what_the_broker_refuses_is_a_loss(broker: RabbitMq) -> None:
    """What no queue gets is counted; everything else arrives."""
    broker.queue("two", "ex-two", "openat")
    url = f"amqp://localhost:{broker.port}?exchange=ex-two&routing-key={{{{ event }}}}"
    made = deliver(url, events(30))
    made.close()
    assert [p.message_id for _, p, _ in broker.drain("two")] == ids(30)[::3]
    assert made.confirmed == 10
    assert sum(loss.count or 0 for loss in made.losses) == 20
    assert {loss.kind for loss in made.losses} == {"skipped"}


def killed(broker: RabbitMq, name: str, count: int, kills: int) -> list[str]:
    """The ids that a queue has, of events that were sent while the broker was killed."""
    broker.queue(name, f"ex-{name}")
    made = deliver(f"amqp://localhost:{broker.port}?exchange=ex-{name}")
    step = count // (2 * kills)
    for part in range(kills):
        for start in range(2 * part * step, (2 * part + 1) * step, 500):
            made.write(events(min(500, (2 * part + 1) * step - start), start))
        time.sleep(0.05)
        broker.kill()  # with some on their way
        made.write(events(step, (2 * part + 1) * step))  # and while it is not there
        broker.start()
    made.close()
    assert made.confirmed == count
    assert made._said["tries"] > 0  # it was on its way
    assert made.losses == []
    return [p.message_id for _, p, _ in broker.drain(name)]


def check_killed(found: list[str], count: int, kills: int) -> None:
    assert first_seen(found) == ids(count)
    # What was stored without a confirm came again: known by its id, no more than one batch a kill.
    assert len(found) - count <= kills * Amqp.batch


def test_a_broker_that_is_killed_loses_nothing(broker: RabbitMq) -> None:
    """Killed and started again in the middle, it has every event, in order, doubles known."""
    check_killed(killed(broker, "killed", 5000, 1), 5000, 1)


@pytest.mark.long
def test_a_broker_that_is_killed_often_loses_nothing(broker: RabbitMq) -> None:
    """The same for 100,000 events and four kills."""
    check_killed(killed(broker, "killed-often", 100_000, 4), 100_000, 4)


@pytest.mark.long
def test_a_broker_without_memory_is_waited_for(broker: RabbitMq) -> None:
    """It blocks who publishes: that is told, and goes on when it can."""
    broker.queue("blocked", "ex-blocked")
    sink = amqp(broker, exchange="ex-blocked", timeout=3)
    sink.open()
    broker.control("set_vm_memory_high_watermark", "0")
    try:
        with pytest.raises(InterruptedDeliveryError, match="low on memory"):
            sink.send(made(10))
    finally:
        broker.control("set_vm_memory_high_watermark", "0.4")
    sink.close()
    sink.open()
    assert sink.send(made(10)) == []
    sink.close()
    found = [p.message_id for _, p, _ in broker.drain("blocked")]
    assert first_seen(found) == [m.id for m in made(10)]


@pytest.mark.long
def test_without_confirms_a_kill_loses_messages(broker: RabbitMq) -> None:
    """The control: a client that takes what it wrote for delivered fails the same check."""
    broker.queue("unconfirmed", "ex-unconfirmed")
    sent = 0
    with contextlib.suppress(pika.exceptions.AMQPError, OSError), broker.channel() as channel:
        for at, name in enumerate(ids(50_000)):
            if at == 10_000:
                broker.kill()
            properties = pika.BasicProperties(message_id=name, delivery_mode=2)
            channel.basic_publish("ex-unconfirmed", "k", b"x", properties)
            sent += 1
    broker.start()
    found = [p.message_id for _, p, _ in broker.drain("unconfirmed")]
    with pytest.raises(AssertionError):
        check_killed(found, sent, 1)


@pytest.mark.parametrize(
    "spoil", [lambda found: found[1:], lambda found: [found[1], found[0], *found[2:]]]
)
def test_the_check_notices_what_is_lost_or_turned_round(spoil: Any) -> None:
    """One event less, or two in another order, and it fails."""
    check_killed([*ids(10), ids(10)[3]], 10, 1)
    with pytest.raises(AssertionError):
        check_killed(spoil(ids(10)), 10, 1)
