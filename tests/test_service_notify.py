"""What the service manager hears: systemd's notification protocol."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kcap.errors import KcapError
from kcap.readers.live.guard.channel import Channel
from kcap.tools.notify import QUESTION, Notifier, Signs

if not hasattr(socket, "AF_UNIX") or not hasattr(socket, "SOCK_CLOEXEC"):
    pytest.skip("systemd's sockets are Linux's", allow_module_level=True)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and its address as NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@kcap-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        listener.settimeout(5)
        yield listener, name


def test_the_manager_hears_each_step(manager: tuple[socket.socket, str]) -> None:
    """Each call is one datagram of lines NAME=VALUE, to a path and to an abstract name alike."""
    listener, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})

    assert notifier.listened
    assert notifier.ready("recording with bpf")
    assert notifier.status("12 events")
    assert not notifier.status("12 events"), "the same line was sent twice"
    assert notifier.stopping()
    heard = [listener.recv(4096) for _ in range(3)]
    notifier.close()
    assert not notifier.stopping(), "a closed one still sends"

    assert heard == [b"READY=1\nSTATUS=recording with bpf", b"STATUS=12 events", b"STOPPING=1"]


def test_a_status_cannot_say_anything_else(manager: tuple[socket.socket, str]) -> None:
    """A line feed in a text, as from a file's name, begins no assignment of its own."""
    listener, address = manager

    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        notifier.status("x\nMAINPID=1\r\nREADY=1 \udcff")

    assert listener.recv(4096) == b"STATUS=x MAINPID=1 READY=1 ?"


def test_signs_of_life_come_twice_in_the_time_wanted(manager: tuple[socket.socket, str]) -> None:
    """However often it is called; none is sent to a manager that wants none, or of another."""
    listener, address = manager
    told = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000"}

    with Notifier({**told, "WATCHDOG_PID": str(os.getpid())}) as wanted:
        sent = [now_s for now_s in range(20) if wanted.watchdog(float(now_s))]
    assert sent == [0, 5, 10, 15]
    assert listener.recv(4096) == b"WATCHDOG=1"
    for unwanted in ({"NOTIFY_SOCKET": address}, {**told, "WATCHDOG_PID": "1"}):
        with Notifier(unwanted) as unasked:
            assert not unasked.watchdog(0.0)


def test_nothing_happens_where_no_manager_listens() -> None:
    """Without an address every method does nothing, and says so."""
    notifier = Notifier({})

    assert not notifier.listened
    assert [notifier.ready(), notifier.status("x"), notifier.stopping()] == [False] * 3
    assert not notifier.watchdog(1.0)
    notifier.close()


def test_a_manager_that_is_gone_or_does_not_read_stops_nothing(
    manager: tuple[socket.socket, str],
) -> None:
    """A full queue is not waited for, and a closed socket is no error."""
    listener, address = manager
    with Notifier({"NOTIFY_SOCKET": address}) as notifier:
        sent = [notifier.status(f"{n}") for n in range(2000)]
        assert sent[0]
        assert not sent[-1], "there was room for everything: nothing was shown"
        listener.close()
        assert not notifier.stopping()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"NOTIFY_SOCKET": "relative"}, "NOTIFY_SOCKET"),
        ({"NOTIFY_SOCKET": "@"}, "NOTIFY_SOCKET"),
        ({"NOTIFY_SOCKET": "/no/such/socket"}, "cannot be told"),
        ({"NOTIFY_SOCKET": "/" + "x" * 200}, "cannot be told"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC"),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC"),
    ],
)
def test_an_address_that_is_none_is_refused(told: dict[str, str], said: str) -> None:
    """At the start, by name: later nobody would notice that nothing is heard."""
    with pytest.raises(KcapError, match=said):
        Notifier(told)


def test_a_recording_says_that_it_has_begun_and_how_it_does(
    manager: tuple[socket.socket, str],
) -> None:
    """With the first batch; later a line each 5 s, and a sign of life when one is due."""
    listener, address = manager
    told = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000"}

    with Notifier(told) as notifier:
        events = iter(range(100))
        signs = Signs(notifier, lambda: f"{next(events)} events")
        for now_s in range(16):
            signs.check(float(now_s))
        notifier.send("END=1")
    heard: list[bytes] = []
    while heard[-1:] != [b"END=1"]:
        heard.append(listener.recv(4096))

    assert heard[0] == b"READY=1\nSTATUS=0 events"
    assert [line for line in heard if line.startswith(b"STATUS=")] == [
        f"STATUS={n} events".encode() for n in (1, 2, 3)
    ]
    assert heard.count(b"WATCHDOG=1") == 2


def test_a_recording_without_a_manager_is_not_asked_how_it_does() -> None:
    """The line costs something, and nobody would read it."""
    with Notifier({}) as notifier:
        Signs(notifier, lambda: pytest.fail("asked for a line")).check(0.0)


def test_a_worker_has_the_main_process_speak(manager: tuple[socket.socket, str]) -> None:
    """And nothing sent but what a recording says: no other main process, no descriptor kept."""
    listener, address = manager
    here, there = Channel.pair()
    with Notifier({"NOTIFY_SOCKET": address}) as main:
        thread = threading.Thread(target=lambda: [here.serve(main.answers()) for _ in range(4)])
        thread.start()
        with Notifier({"NOTIFY_SOCKET": address}) as worker:
            worker.through(there)
            assert worker.ready("recording")
            for refused in ("MAINPID=1", "FDSTORE=1", "STATUS=" + "x" * 5000):
                assert not worker.send(refused)
        thread.join()
        main.send("END=1")
    here.close()
    there.close()

    assert [listener.recv(8192) for _ in range(2)] == [b"READY=1\nSTATUS=recording", b"END=1"]
    assert list(main.answers()) == [QUESTION]
