"""The sink to Kafka, against the cluster that librdkafka brings for tests: the real protocol."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from server_support import Certificates, deliver, made
from sink_support import events, ids

from kcap.errors import KcapError
from kcap.writers.sinks.kafka import Kafka, KafkaOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message

confluent_kafka = pytest.importorskip("confluent_kafka")


def addresses(owner: Any) -> str:
    """Where a client's brokers are."""
    return ",".join(f"{b.host}:{b.port}" for b in owner.list_topics(timeout=10).brokers.values())


class Cluster:
    """Brokers inside this process, or at another place; who speaks to them uses loopback."""

    def __init__(self, brokers: str | None = None) -> None:
        if brokers is None:
            self._owner = confluent_kafka.Producer({"test.mock.num.brokers": 1})
            brokers = addresses(self._owner)
        self.brokers = brokers

    def records(self, topic: str, count: int | None = None) -> list[Any]:
        """What a topic has, in the order of each partition; one more would be seen."""
        consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": self.brokers,
                "group.id": "test",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
            }
        )
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign(
            [
                confluent_kafka.TopicPartition(topic, p, confluent_kafka.OFFSET_BEGINNING)
                for p in partitions
            ]
        )
        found: list[Any] = []
        ended: set[int] = set()
        while len(ended) < len(partitions):
            for one in consumer.consume(1000, timeout=0.1):
                if one.error():
                    ended.add(one.partition())
                else:
                    found.append(one)
        consumer.close()
        assert count is None or len(found) == count
        return found


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


def kafka(cluster: Cluster, topic: str, **settings: Any) -> Kafka:
    return Kafka(KafkaOptions(url=f"kafka://{cluster.brokers}/{topic}", **settings))


def test_every_record_arrives_once_in_order_with_its_id(cluster: Cluster) -> None:
    """With the usual key all are in one partition, in the order in which they were sent."""
    sink = kafka(cluster, "all", headers={"site": "a"})
    messages = made(3000)
    sink.open()
    refused = [*sink.send(messages[:1000]), *sink.send(messages[1000:])]
    sink.close()

    found = cluster.records("all", 3000)
    assert refused == []
    assert len({one.partition() for one in found}) == 1
    assert [one.value() for one in found] == [m.body for m in messages]
    assert [dict(one.headers())["id"].decode() for one in found] == [m.id for m in messages]
    assert dict(found[0].headers())["site"] == b"a"


def test_equal_keys_stay_in_order(cluster: Cluster) -> None:
    """Over several partitions, what has the same key is in the same one, in its order."""
    sink = kafka(cluster, "keyed")
    messages = [
        Message(m.id, m.body, m.ts_ns, {"key": f"host{n % 7}"}) for n, m in enumerate(made(700))
    ]
    sink.open()
    sink.send(messages)
    sink.close()

    found = cluster.records("keyed", 700)
    for n in range(7):
        of_host = [one for one in found if one.key() == f"host{n}".encode()]
        assert len({one.partition() for one in of_host}) == 1
        assert [one.value() for one in of_host] == [m.body for m in messages[n::7]]
    assert len({one.partition() for one in found}) > 1


def test_a_topic_may_be_a_template(cluster: Cluster) -> None:
    """A message that names its topic goes there, another one to that of the URL."""
    sink = kafka(cluster, "usual")
    first, second = made(2)
    sink.open()
    sink.send([Message(first.id, first.body, 0, {"topic": "named"}), second])
    sink.close()
    assert [one.value() for one in cluster.records("named", 1)] == [first.body]
    assert [one.value() for one in cluster.records("usual", 1)] == [second.body]


def test_what_is_too_large_is_refused_alone(cluster: Cluster) -> None:
    """A record that no broker would take is refused; those around it arrive."""
    sink = kafka(cluster, "large", properties={"message.max.bytes": "2000"})
    small, large, last = made(1)[0], made(1, start=1, size=5000)[0], made(1, start=2)[0]
    sink.open()
    refused = sink.send([small, large, last])
    sink.close()
    assert [r.at for r in refused] == [1]
    assert "large" in refused[0].reason.lower()
    assert [one.value() for one in cluster.records("large", 2)] == [small.body, last.body]


def test_brokers_that_are_not_there_are_waited_for() -> None:
    """Where nobody listens it may be tried again, soon."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    sink = Kafka(KafkaOptions(url=f"kafka://127.0.0.1:{port}/t", timeout=0.5))
    with pytest.raises(InterruptedDeliveryError):
        sink.open()
    sink.close()


def test_brokers_that_go_away_interrupt() -> None:
    """What was not acknowledged when the brokers went away does not count as taken."""
    cluster = Cluster()
    sink = kafka(cluster, "gone", timeout=1)
    sink.open()
    assert sink.send(made(10)) == []
    del cluster

    with pytest.raises(InterruptedDeliveryError) as caught:
        sink.send(made(10, start=10))
    assert caught.value.taken == 0


def test_certificates_are_read_before_rights_go(tmp_path: Path) -> None:
    """Authority, certificate and key are given by content; what is none is said at once."""
    found = Certificates(tmp_path)
    files = {"tls_ca": str(found.ca), "tls_cert": str(found.cert), "tls_key": str(found.key)}
    sink = Kafka(KafkaOptions(url="kafkas://localhost/t", user="u", password="p", **files))
    told = sink._configuration
    assert told["security.protocol"] == "SASL_SSL"
    assert told["ssl.key.pem"] == found.key.read_text()
    assert not any(name.endswith(".location") for name in told)
    with pytest.raises(KcapError, match=r"ssl\.ca\.pem"):
        Kafka(KafkaOptions(url="kafkas://localhost/t", tls_ca=str(found.key)))


@pytest.mark.parametrize(
    ("url", "settings", "says"),
    [
        ("kafka://a:b/t", {}, "no broker"),
        ("kafka:///t", {}, "no broker"),
        ("kafka://u:p@h/t", {"mechanism": "GUESS"}, "mechanism"),
        ("kafka://h/t", {"compression": "zip"}, "compression"),
        ("kafka://h/t", {"properties": {"no.such": "1"}}, "no.such"),
        ("kafkas://h/t", {"tls_ca": "/nowhere/ca.pem"}, "TLS"),
    ],
)
def test_wrong_settings_are_errors_at_once(url: str, settings: dict[str, Any], says: str) -> None:
    """What can be seen to be wrong is said before anything is sent."""
    with pytest.raises(KcapError, match=says):
        Kafka(KafkaOptions(url=url, **settings))


def test_a_courier_without_rights_delivers(cluster: Cluster) -> None:
    """All that it takes is loaded in time; each event has its key."""
    made_of_it = deliver(
        f"kafka://{cluster.brokers}/confined?key={{{{ event }}}}", events(300), events(300, 300)
    )
    made_of_it.close()
    found = cluster.records("confined", 600)
    assert {dict(one.headers())["id"].decode() for one in found} == set(ids(600))
    assert {one.key() for one in found} == {b"openat", b"execve", b"connect"}
    assert (made_of_it.confirmed, made_of_it.losses) == (600, [])


OWN_PROCESS = """
import sys
from confluent_kafka import Producer
owner = Producer({"test.mock.num.brokers": 1})
print(*(f"{b.host}:{b.port}" for b in owner.list_topics(timeout=10).brokers.values()), flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_brokers_that_hang_in_the_middle_lose_nothing() -> None:
    """Stopped for longer than we wait, twice: every record is there, in order, doubles known."""
    count = 20_000
    command = [sys.executable, "-c", OWN_PROCESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as brokers:
        assert brokers.stdout is not None
        cluster = Cluster(brokers.stdout.readline().decode().strip())
        made_of_it = deliver(f"kafka://{cluster.brokers}/hang?timeout=1s")
        for start in range(0, count, 500):
            made_of_it.write(events(500, start))
            if start in {5000, 12_000}:
                brokers.send_signal(signal.SIGSTOP)
                time.sleep(3)
                brokers.send_signal(signal.SIGCONT)
        made_of_it.close()
        found = [dict(one.headers())["id"].decode() for one in cluster.records("hang")]
        brokers.communicate()
    assert made_of_it.confirmed == count
    assert made_of_it._said["tries"] > 0  # it did give up now and then
    assert list(dict.fromkeys(found)) == ids(count)
