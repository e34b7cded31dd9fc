"""The sink to the journal, against the host's own systemd-journald with a /run of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_support import Journald, deliver, made, wait_for
from sink_support import alerts, events, ids

from kcap.errors import KcapError
from kcap.writers.sinks.journal import Journal, JournalOptions
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message


@pytest.fixture(scope="module")
def journald(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journald]:
    with Journald(tmp_path_factory.mktemp("journald") / "d") as one:
        yield one


def logged(journald: Journald, messages: list[Message], identifier: str) -> list[dict[str, str]]:
    """What the journal has of messages."""
    sink = Journal(JournalOptions(url=f"journal:{journald.socket}", identifier=identifier))
    sink.open()
    assert sink.send(messages) == []
    sink.close()
    found = wait_for(
        lambda: (e := journald.entries(identifier)) and len(e) >= len(messages) and e, "logged", 10
    )
    return list(found)


@pytest.mark.root
def test_every_entry_is_logged_once_in_order_with_its_id(journald: Journald) -> None:
    """The journal has each event as its message, and its values as fields."""
    messages = made(300)
    found = logged(journald, messages, "kcap-order")
    assert [entry["KCAP_ID"] for entry in found] == [m.id for m in messages]
    assert [entry["MESSAGE"] for entry in found] == [m.body.decode() for m in messages]
    assert [entry["KCAP_N"] for entry in found] == [str(n) for n in range(300)]
    assert found[7]["KCAP_EVENT"] == "e7"
    assert found[7]["KCAP_TIME_NS"] == "7"
    assert {entry["PRIORITY"] for entry in found} == {"6"}


@pytest.mark.root
def test_an_entry_of_any_size_and_with_lines_is_logged(journald: Journald) -> None:
    """What is no datagram goes in memory; line ends, equals signs and zeros stay what they are."""
    body = "first\nKCAP_ID=forged\n\x00ä=" + "x" * 600_000
    large = Message("a:1", body.encode(), None, {"severity": "critical"})
    small = Message("a:2", b'{"MESSAGE":"forged","text":"l1\\nPRIORITY=0","list":[1,"b"]}', None)

    first, second = logged(journald, [large, small], "kcap-large")

    text = first["MESSAGE"]
    text = bytes(text).decode() if isinstance(text, list) else text  # as it shows what is no text
    assert text == body
    assert (first["KCAP_ID"], first["PRIORITY"]) == ("a:1", "2")
    assert second["PRIORITY"] == "6"
    assert second["KCAP_TEXT"] == "l1\nPRIORITY=0"
    assert second["KCAP_LIST"] == '[1, "b"]'
    assert second["KCAP_MESSAGE"] == "forged"


@pytest.mark.root
def test_a_journal_that_went_away_interrupts(tmp_path: Path) -> None:
    """What it had before counts, the rest does not."""
    with Journald(tmp_path / "j") as journald:
        sink = Journal(JournalOptions(url=f"journal:{journald.socket}"))
        sink.open()
        sink.send(made(3))
        journald.kill()
        with pytest.raises(InterruptedDeliveryError) as caught:
            sink.send(made(3))
        assert caught.value.taken == 0


def read_entry(data: bytes) -> list[tuple[str, bytes]]:
    """The fields of an entry, by the published description of the protocol."""
    fields = []
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        name, equals, value = data[at:end].partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", data, end + 1)
            value = data[end + 9 : end + 9 + length]
            end += 9 + length
            assert data[end : end + 1] == b"\n"
        fields.append((name.decode(), value))
        at = end + 1
    return fields


VALUES = st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.lists(st.text()))


@given(st.text(), VALUES, st.text())
def test_no_value_makes_a_field(id_: str, values: dict[str, object], severity: str) -> None:
    """Whatever an event says, an entry has its fields, each named as the journal takes names."""
    sink = Journal(JournalOptions(url="journal:"))
    body = json.dumps(values).encode()
    id_ = id_.encode(errors="replace").decode()
    fields = read_entry(b"".join(sink._entry(Message(id_, body, 5, {"severity": severity}))))
    head = [name for name, _ in fields[:5]]
    assert head == ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "KCAP_ID", "KCAP_TIME_NS"]
    assert dict(fields[:5])["MESSAGE"] == body
    assert dict(fields[:5])["KCAP_ID"] == id_.encode()
    for name, _ in fields[5:]:
        assert name.startswith("KCAP_")
        assert len(name) <= 64
        assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
        assert name not in head


def test_a_peer_gets_datagrams_and_sealed_memory(tmp_path: Path) -> None:
    """By the published description: an entry a datagram, a large one as a descriptor."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(path))
        sink = Journal(JournalOptions(url=f"journal://{path}"))
        sink.open()
        small, large = made(1)[0], made(1, start=1, size=500_000)[0]
        sink.send([small, large])
        sink.close()

        assert dict(read_entry(peer.recv(1 << 16)))["MESSAGE"] == small.body
        data, (memory,), _, _ = socket.recv_fds(peer, 10, 1)
        assert data == b""
        with os.fdopen(memory, "rb") as file:
            file.seek(0)
            assert dict(read_entry(file.read()))["MESSAGE"] == large.body
            with pytest.raises(OSError, match="not permitted"):
                os.pwrite(memory, b"x", 0)


def test_no_journal_is_an_interruption(tmp_path: Path) -> None:
    """Where nothing listens, it may come yet."""
    sink = Journal(JournalOptions(url=f"journal:{tmp_path}/none"))
    with pytest.raises(InterruptedDeliveryError, match="No such file"):
        sink.open()


def test_the_journal_is_on_this_host() -> None:
    """A URL that names another one is refused."""
    with pytest.raises(KcapError, match="this host"):
        Journal(JournalOptions(url="journal://elsewhere/socket"))


def test_a_courier_without_rights_delivers() -> None:
    """Events and an alert, large ones too: all that it takes is loaded in time."""
    folder = Path(tempfile.mkdtemp(prefix="kcap-journal-"))
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(path))
        for one in (folder, path):
            one.chmod(0o777)  # its courier is not always root
        made_of_it = deliver(f"journal:{path}", events(2), events(1, 2, text="x" * 300_000))
        made_of_it.write(alerts(1))
        found = [read_entry(peer.recv(1 << 16)) for _ in range(2)]
        _, (memory,), _, _ = socket.recv_fds(peer, 10, 1)
        with os.fdopen(memory, "rb") as file:
            file.seek(0)
            found.append(read_entry(file.read()))
        found.append(read_entry(peer.recv(1 << 16)))
        made_of_it.close()
    shutil.rmtree(folder)
    assert [dict(fields)["KCAP_ID"].decode() for fields in found[:3]] == ids(3)
    assert dict(found[1])["KCAP_EVENT"] == b"execve"
    assert (dict(found[3])["PRIORITY"], dict(found[3])["KCAP_ARG_TITLE"]) == (b"3", b"A <shell>")
