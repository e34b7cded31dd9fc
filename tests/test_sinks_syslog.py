"""The sink to syslog daemons, against Debian's rsyslogd on loopback, and CEF."""

from __future__ import annotations

import io
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_support import Certificates, Rsyslog, deliver, free_port, made, wait_for
from sink_support import alerts, events, ids
from support import batch_of

from kcap.errors import KcapError
from kcap.model import alert
from kcap.writers.cef import Cef
from kcap.writers.sinks.syslog import Syslog, SyslogOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[Rsyslog]:
    with Rsyslog(tmp_path_factory.mktemp("rsyslog") / "d", certificates) as one:
        yield one


def url(daemon: Rsyslog, over: str) -> str:
    if over == "unix":
        return f"syslog+unix://{daemon.socket}"
    return f"syslog+{over}://localhost:{getattr(daemon, over)}"


def sent(daemon: Rsyslog, messages: list[Message], over: str, **settings: Any) -> list[Any]:
    """What the daemon has got of messages."""
    before = len(daemon.received())
    sink = Syslog(SyslogOptions(url=url(daemon, over), **settings))
    sink.open()
    assert sink.send(messages) == []
    sink.close()
    wait_for(lambda: len(daemon.received()) >= before + len(messages), "all are received", 10)
    return list(daemon.received()[before:])


@pytest.mark.parametrize("over", ["tcp", "tls", "unix", "udp"])
def test_every_message_arrives_once_in_order_with_its_id(
    daemon: Rsyslog, certificates: Certificates, over: str
) -> None:
    """The daemon understands each message and has its id; datagrams keep their order here, too."""
    messages = made(300 if over != "udp" else 30)  # more might not fit what its kernel keeps

    found = sent(daemon, messages, over, tls_ca=str(certificates.ca))

    ids = [f'[kcap@32473 id="{m.id}"]' for m in messages]
    assert [one["structured-data"] for one in found] == ids
    assert [one["msg"].lstrip() for one in found] == [m.body.decode() for m in messages]
    assert {one["app-name"] for one in found} == {"kcap"}


def test_the_header_says_whose_message_it_is(daemon: Rsyslog) -> None:
    """Facility, severity, time, host, process and type are where RFC 5424 has them."""
    values = {
        "severity": "critical", "hostname": "web 1\n", "process": "42", "message_type": "execve",
    }  # fmt: skip
    message = Message('a:"]\\', b"text\nwith two lines", 1604759097183980999, values)

    (found,) = sent(daemon, [message], "tcp", facility="auth")

    assert found["pri"] == str(4 * 8 + 2)
    assert found["timereported"] == "2020-11-07T14:24:57.183980Z"
    assert found["hostname"] == "web_1_"
    assert found["procid"] == "42"
    assert found["msgid"] == "execve"
    assert found["structured-data"] == r'[kcap@32473 id="a:\"\]\\"]'
    assert found["msg"].lstrip() == "text#012with two lines"  # as rsyslog writes a line end


@pytest.mark.parametrize(
    ("says", "number"),
    [("low", 5), ("HIGH", 3), ("warning", 4), ("0", 0), ("", 6), ("-", 6), ("nonsense", 6)],
)
def test_severities_are_those_of_alerts_or_of_syslog(says: str, number: int) -> None:
    """What is neither is informational."""
    sink = Syslog(SyslogOptions(url="syslog+udp://localhost", facility="local0"))
    line = sink._line(Message("a:1", b"x", None, {"severity": says}))
    assert line.startswith(b"<%d>1 - " % (16 * 8 + number))


@given(st.text(), st.text(), st.binary(max_size=50))
def test_no_value_reaches_beyond_its_field(host: str, id_: str, body: bytes) -> None:
    """Whatever an event says, a header has seven fields and the body is what was given."""
    sink = Syslog(SyslogOptions(url="syslog+udp://localhost"))
    id_ = id_.encode(errors="replace").decode()
    line = sink._line(Message(id_, body, 0, {"hostname": host, "message_type": host}))
    assert line.endswith(body)
    head = line[: len(line) - len(body)].decode()
    fields = head.split(" ", 7)
    assert fields[:2] == ["<134>1", "1970-01-01T00:00:00.000000Z"]
    assert all(field and field.isascii() and field.isprintable() for field in fields[:6])
    quoted = head.split(' id="', 1)[1].removesuffix('"] ')
    assert re.sub(r'\\(["\\\]])', r"\1", quoted) == id_


def test_a_daemon_that_hangs_up_interrupts() -> None:
    """What was written to a closed connection is not taken: the control for waiting at all."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sink = Syslog(SyslogOptions(url=f"syslog+tcp://127.0.0.1:{listening.getsockname()[1]}"))
        sink.open()
        peer, _ = listening.accept()
        peer.close()

        with pytest.raises(InterruptedDeliveryError, match=r"hung up|reset|Broken") as caught:
            sink.send(made(3))
        assert caught.value.taken == 0

        sink.open()  # and again, it works
        peer, _ = listening.accept()
        with peer:
            assert sink.send(made(1)) == []
            assert b'id="' in peer.recv(1000)
        sink.close()


def test_who_does_not_read_is_waited_for() -> None:
    """Messages that the other kernel has no room for are not taken."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        sink = Syslog(SyslogOptions(url=f"syslog+tcp://127.0.0.1:{port}", timeout=0.5))
        sink.open()
        peer, _ = listening.accept()
        with peer, pytest.raises(InterruptedDeliveryError, match="no answer in time"):
            sink.send(made(500, size=60_000))
        sink.close()


def test_a_message_longer_than_a_datagram_is_refused_alone(daemon: Rsyslog) -> None:
    """Those before and behind it arrive."""
    before = len(daemon.received())
    sink = Syslog(SyslogOptions(url=url(daemon, "udp")))
    sink.open()
    first, last = made(2)
    refused = sink.send([first, made(1, size=70_000)[0], last])
    sink.close()
    assert [r.at for r in refused] == [1]
    wait_for(lambda: len(daemon.received()) >= before + 2, "both are received", 10)


def test_no_daemon_is_an_interruption() -> None:
    """Where nobody listens, somebody may yet."""
    sink = Syslog(SyslogOptions(url=f"syslog+tcp://127.0.0.1:{free_port()}"))
    with pytest.raises(InterruptedDeliveryError, match="refused"):
        sink.open()


def test_tls_checks_who_answers(daemon: Rsyslog) -> None:
    """Without the authority's certificate nothing is sent, ever."""
    sink = Syslog(SyslogOptions(url=url(daemon, "tls")))
    with pytest.raises(KcapError, match="not trusted") as caught:
        sink.open()
    assert not isinstance(caught.value, InterruptedDeliveryError)


@pytest.mark.parametrize(
    ("address", "settings", "says"),
    [
        ("syslog+relp://localhost", {}, "syslog"),
        ("syslog+udp://", {}, "host"),
        ("syslog+udp://localhost:x", {}, "port"),
        ("syslog+udp://localhost", {"facility": "other"}, "facility"),
        ("syslog+udp://localhost", {"sd_id": 'a b="'}, "sd-id"),
        ("syslog+tls://localhost", {"tls_ca": "/nowhere"}, "TLS"),
        ("syslog+tls://localhost", {"tls_key": "/nowhere"}, "tls-cert"),
    ],
)
def test_wrong_settings_are_errors_at_once(
    address: str, settings: dict[str, Any], says: str
) -> None:
    """What can be seen to be wrong is said before anything is sent."""
    with pytest.raises(KcapError, match=says):
        Syslog(SyslogOptions(url=address, **settings))


def cef(batch: Any) -> list[str]:
    out = io.BytesIO()
    sink = Cef(out)
    sink.write(batch)
    sink.close()
    return out.getvalue().decode().splitlines()


def read_cef(line: str) -> tuple[list[str], dict[str, str]]:
    """A line of CEF, as one who only knows the format's description reads it."""
    header, at = [""], 0
    while len(header) < 8:
        if line[at] == "\\":
            header[-1] += line[at + 1]
            at += 1
        elif line[at] == "|":
            header.append("")
        else:
            header[-1] += line[at]
        at += 1
    rest = line[at:]
    values = {}
    starts = list(re.finditer(r"(?:^| )([0-9A-Za-z]+)=", rest))
    for one, following in zip(starts, [*starts[1:], None], strict=True):
        text = rest[one.end() : following.start() if following else len(rest)]
        values[one[1]] = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), text)
    return header[:7], values


WORDS = st.text(
    st.sampled_from("ab=|\\ \n\r") | st.characters(min_codepoint=0xA1, max_codepoint=0x5FF)
).filter(lambda text: text == text.encode(errors="ignore").decode())


@given(st.lists(st.dictionaries(st.sampled_from("pqxyz"), WORDS), min_size=1, max_size=5))
def test_cef_gives_back_what_an_event_said(events: list[dict[str, str]]) -> None:
    """Whatever is in a value, a reader of the format gets it again, and nothing else."""
    lines = cef(batch_of([(n * 1_000_000, one) for n, one in enumerate(events)]))

    assert len(lines) == len(events)
    for number, (line, one) in enumerate(zip(lines, events, strict=True)):
        header, values = read_cef(line)
        assert header[:3] == ["CEF:0", "kcap", "kcap"]
        assert values.pop("rt") == str(number)
        assert values == {f"kcap{name.upper()}": text for name, text in one.items()}


def test_cef_of_an_alert() -> None:
    """An alert has its rule, title and severity in the header, and what it is about in msg."""
    one = alert.Alert(
        "filament:a|b", "1", "Title | \\ with\nlines", "text=1", "critical", who={"pid": 7}
    )
    (line,) = cef(alert.batch([one]))

    header, values = read_cef(line)
    assert header[4:] == ["filament:a|b", "Title | \\ with lines", "10"]
    assert (values["msg"], values["externalId"], values["spid"]) == ("text=1", one.id, "7")


def test_cef_uses_its_own_words_first() -> None:
    """Of several columns for a key the best is under it, another one under a name of ours."""
    records = [
        (1, {"pathname": "/a", "path": "/b"}),
        (2, {"path": "/c"}),
        (3, {"dip": "192.0.2.1", "dport": 443}),
    ]
    first, second, third = (read_cef(line)[1] for line in cef(batch_of(records)))
    assert (first["filePath"], first["kcapPath"]) == ("/a", "/b")
    assert second["filePath"] == "/c"
    assert "kcapPath" not in second
    assert (third["dst"], third["dpt"]) == ("192.0.2.1", "443")


@given(st.integers(1, 3))
def test_cef_does_not_depend_on_batches(size: int) -> None:
    """However events were cut into batches, the lines are the same."""
    records = [(n, {"pathname": f"/{n}"} if n % 2 else {"path": f"/{n}"}) for n in range(6)]
    pieces = [records[n : n + size] for n in range(0, 6, size)]
    assert [line for piece in pieces for line in cef(batch_of(piece))] == cef(batch_of(records))


def test_a_courier_without_rights_delivers(daemon: Rsyslog, certificates: Certificates) -> None:
    """By TLS, as CEF: events with their ids, and an alert with its severity."""
    before = len(daemon.received())
    made_of_it = deliver(
        f"{url(daemon, 'tls')}?format=cef&tls-ca={certificates.ca}", events(300), alerts(1)
    )
    made_of_it.close()
    wait_for(lambda: len(daemon.received()) >= before + 301, "all are received", 10)

    found = daemon.received()[before:]
    assert [one["structured-data"] for one in found[:300]] == [
        f'[kcap@32473 id="{name}"]' for name in ids(300)
    ]
    assert [one["procid"] for one in found[:3]] == ["100", "101", "102"]
    assert (found[1]["msgid"], found[1]["hostname"]) == ("execve", "-")
    header, values = read_cef(found[1]["msg"].lstrip())
    assert (header[4], values["externalId"], values["spid"]) == ("execve", ids(2)[1], "101")
    assert found[0]["pri"] == str(16 * 8 + 6)
    assert found[300]["pri"] == str(16 * 8 + 3)
    assert read_cef(found[300]["msg"].lstrip())[0][4:] == ["T1059", "A <shell>", "8"]


@pytest.mark.long
def test_a_daemon_that_is_killed_gets_the_rest_in_order(
    tmp_path: Path,
) -> None:
    """Syslog has no answers: what a killed daemon had not read is lost, nothing else is."""
    count = 50_000
    with Rsyslog(tmp_path / "d") as daemon:
        made_of_it = deliver(url(daemon, "tcp"))
        for start in range(0, count, 500):
            made_of_it.write(events(500, start))
            if start == count // 2:
                daemon.kill()
                daemon.start()
        made_of_it.close()
        wait_for(lambda: len(daemon.received()) and quiet(daemon), "it has read all", 30)
        names = [one["structured-data"].split('"')[1] for one in daemon.received()]
    found = list(dict.fromkeys(names))
    assert found == sorted(found, key=lambda name: int(name.split(":")[1]))
    assert found[-1] == ids(count)[-1]
    missing = sorted(set(range(count)) - {int(name.split(":")[1]) for name in found})
    # What is missing is one piece: what was in that daemon's hands.
    assert not missing or missing[-1] - missing[0] == len(missing) - 1


def quiet(daemon: Rsyslog) -> bool:
    """Whether nothing more comes."""
    before = len(daemon.received())
    time.sleep(0.5)
    return len(daemon.received()) == before
