"""The control socket: who is answered, and that nobody there can hold up a recording."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.errors import KcapError, PrivilegeError
from kcap.tools import control
from kcap.tools.control import (
    ANSWER_BYTES,
    CLIENTS,
    IDLE_S,
    PATIENCE_S,
    REQUEST_BYTES,
    REQUESTS,
    Control,
)

CPU_MS = 10
WALL_MS = 250
"""What serving may take of a processor, and of the time until the next batch comes."""


def status() -> dict[str, Any]:
    return {"events": 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kcap"


@pytest.fixture
def served(folder: Path) -> Iterator[Control]:
    with Control(folder) as made:
        yield made


@contextlib.contextmanager
def serving(made: Control) -> Iterator[None]:
    """Serve as a recording does, only more often."""
    done = threading.Event()

    def serve() -> None:
        while not done.wait(0.005):
            made.serve(status)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def connected(made: Control) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(made.path))
        yield connection


def exchanged(made: Control, sent: bytes) -> bytes:
    """What comes back for some bytes, up to a line or the end."""
    with connected(made) as connection:
        connection.sendall(sent)
        made.serve(status)
        with contextlib.suppress(ConnectionResetError):
            return connection.recv(ANSWER_BYTES)
    return b""


def serve_ms(made: Control) -> tuple[float, float]:
    """How long serving takes, of a processor and by the clock."""
    begun_s, used_s = time.perf_counter(), time.thread_time()
    made.serve(status)
    return (time.thread_time() - used_s) * 1000, (time.perf_counter() - begun_s) * 1000


def test_stats_are_answered(served: Control) -> None:
    """Whoever asks gets what the recording says of itself."""
    with serving(served):
        assert control.ask(served.path, "stats") == {"stats": {"events": 7}}


def test_requests_are_done_once_each(served: Control) -> None:
    """A request that the recording knows is done, and its answer says what came of it."""
    done: list[str] = []

    def rotate() -> dict[str, Any]:
        done.append("rotate")
        return {"part": 2}

    served.on("rotate", rotate)
    with serving(served):
        assert control.ask(served.path, "rotate") == {"done": "rotate", "part": 2}
        assert done == ["rotate"]
        with pytest.raises(KcapError, match="knows no such thing"):
            control.ask(served.path, "trigger")
        assert done == ["rotate"]


def test_an_error_is_an_answer(served: Control) -> None:
    """What can't be done is said to whoever asked, and the recording goes on."""

    def refuse() -> dict[str, Any]:
        raise KcapError("nothing to rotate", hint="record with --split-size")

    def break_() -> dict[str, Any]:
        raise ZeroDivisionError

    served.on("rotate", refuse)
    served.on("trigger", break_)
    with serving(served):
        with pytest.raises(KcapError, match="nothing to rotate"):
            control.ask(served.path, "rotate")
        with pytest.raises(KcapError, match="internal error: ZeroDivisionError"):
            control.ask(served.path, "trigger")
        assert control.ask(served.path, "stats")


def test_only_the_owner_can_enter(served: Control, folder: Path) -> None:
    """Nobody else may even look for the socket."""
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


def test_the_name_goes_with_the_recorder(folder: Path) -> None:
    """The process that made the socket takes its name away; a worker that was forked does not."""
    with Control(folder) as made:
        child = os.fork()
        if child == 0:
            made.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert made.path.exists()
    assert not made.path.exists()


@pytest.mark.parametrize("mode", [0o750, 0o707, 0o777])
def test_a_folder_of_others_is_refused(folder: Path, mode: int) -> None:
    """A folder that others may enter is no place for the socket."""
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(PrivilegeError, match="others may enter"):
        Control(folder)
    folder.chmod(0o700)
    Control(folder).close()


def test_a_link_is_no_folder(folder: Path, tmp_path: Path) -> None:
    """A link to a private folder is refused: somebody else may have put it there."""
    (tmp_path / "real").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(PrivilegeError, match="no place for a control socket"):
        Control(folder)


def test_sockets_of_the_dead_go_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody listens behind is removed; one of a recorder that runs stays."""
    with Control(folder) as lives:
        stale = folder / "99999999.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(stale))
        monkeypatch.setattr(control, "folders", lambda: [folder])
        assert control.sockets() == [lives.path]
        child = os.fork()
        if child == 0:
            Control(folder).close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not stale.exists()
        assert lives.path.exists()


@given(sent=st.binary(max_size=2 * REQUEST_BYTES))
@settings(max_examples=60, deadline=None)
def test_garbage_gets_an_error_or_nothing(
    sent: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes come, no error gets out, and the next one who asks is answered."""
    with Control(tmp_path_factory.mktemp("c") / "kcap") as made:
        answer = exchanged(made, sent + b"\n")
        for line in answer.splitlines():
            assert set(json.loads(line)) & {"error", "stats"}
        assert json.loads(exchanged(made, b'{"ask":"stats"}\n')) == {"stats": {"events": 7}}


@pytest.mark.parametrize(
    "line", [b"[]", b"7", b'{"ask": 1}', b'{"ask": ["stats"]}', b"[" * 3000, b'"stats"', b"\xff"]
)
def test_what_is_no_request_is_said_so(served: Control, line: bytes) -> None:
    """JSON that is no request gets an error which says what one looks like."""
    assert b'"expected"' in exchanged(served, line + b"\n")


def test_a_long_request_ends_the_connection(served: Control) -> None:
    """A request has 4 KiB at most; one byte less is read."""
    fits = b'{"ask":"stats"}'.ljust(REQUEST_BYTES - 1)
    with connected(served) as connection:
        connection.sendall(fits + b"\n")
        served.serve(status)
        served.serve(status)
        assert b"stats" in connection.recv(ANSWER_BYTES)
    served.serve(status)
    with connected(served) as connection:
        connection.sendall(fits + b" \n")
        served.serve(status)
        served.serve(status)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(ANSWER_BYTES) == b""
    assert served.refused == 1


def test_many_requests_at_once_end_the_connection(served: Control) -> None:
    """Sixteen requests in one piece are answered, one more is not waited for."""
    assert exchanged(served, b"7\n" * REQUESTS).count(b"\n") == REQUESTS
    assert exchanged(served, b"7\n" * (REQUESTS + 1)) == b""


def test_more_clients_than_there_is_room_for(served: Control) -> None:
    """The ninth is turned away, the eight are served, and a place is free when one leaves."""
    with contextlib.ExitStack() as held:
        several = [held.enter_context(connected(served)) for _ in range(CLIENTS)]
        served.serve(status)
        with connected(served) as late:
            served.serve(status)
            assert late.recv(1) == b""
        assert served.refused == 1
        for each in several:
            each.sendall(b'{"ask":"stats"}\n')
        served.serve(status)
        assert all(b"events" in each.recv(ANSWER_BYTES) for each in several)
        several[0].close()
        served.serve(status)
        assert b"events" in exchanged(served, b'{"ask":"stats"}\n')


def test_slow_and_silent_clients_are_dropped(
    served: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks and does not read loses its place after a while, and so does who says nothing."""
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with connected(served) as slow, connected(served) as silent:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        big = {"text": "x" * 50_000}
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                slow.send(b'{"ask":"stats"}\n', socket.MSG_DONTWAIT)
            served.serve(lambda: big)
        assert len(served._clients) == 2
        now_s += PATIENCE_S + 0.1
        served.serve(status)
        assert [client.connection.fileno() != -1 for client in served._clients] == [True]
        silent.send(b" ")
        served.serve(status)
        now_s += IDLE_S + 0.1
        served.serve(status)
        assert served._clients == []
    assert served.refused == 2


def test_nobody_delays_a_batch(served: Control) -> None:
    """Many clients who send garbage, ask much, read nothing and hang up cost milliseconds."""
    took: list[tuple[float, float]] = []
    sends = [b"\0" * 9000, b'{"ask":"stats"}\n' * 16, b"{" * 10, b"\n" * 4000]
    with contextlib.ExitStack() as held:
        for round_ in range(50):
            for kind in range(4):
                made = socket.socket(socket.AF_UNIX)
                made.setblocking(False)
                held.callback(made.close)
                with contextlib.suppress(BlockingIOError):
                    made.connect(str(served.path))
                    made.send(sends[kind])
                if (round_ + kind) % 3 == 0:
                    made.close()
            took.append(serve_ms(served))
    cpu_ms, wall_ms = map(max, zip(*took, strict=True))
    print(f"longest time to serve: {cpu_ms:.2f} ms of a processor, {wall_ms:.2f} ms by the clock")
    assert cpu_ms < CPU_MS
    assert wall_ms < WALL_MS


def test_an_answer_has_its_limit(served: Control) -> None:
    """A report that would be too long becomes an error, not a long wait."""
    with connected(served) as connection:
        connection.sendall(b'{"ask":"stats"}\n')
        served.serve(lambda: {"text": "x" * ANSWER_BYTES})
        assert b"more than" in connection.recv(ANSWER_BYTES)


@pytest.mark.root
def test_another_user_is_not_answered(folder: Path) -> None:
    """Who is neither root nor the recorder's user gets nothing, even where it can connect."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with Control(folder) as made:
        # The folder's mode alone keeps others out; what is checked here is what comes behind it.
        for above in folder.parents:
            if above.is_relative_to("/tmp/") and above != Path("/tmp"):
                above.chmod(0o711)  # for others to pass, and no more: tests that follow look there
        made.path.chmod(0o777)
        folder.chmod(0o777)
        assert _asked_as(made, 0) == b'{"stats":{"events":7}}\n'
        assert _asked_as(made, 65534) == b""
        assert made.refused == 1


def _asked_as(made: Control, uid: int) -> bytes:
    """What a process of a user gets."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(made.path))
                with contextlib.suppress(OSError):
                    connection.sendall(b'{"ask":"stats"}\n')
                    os.write(write, connection.recv(4096))
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    ended = 0
    while not ended:
        made.serve(status)
        ended, code = os.waitpid(child, os.WNOHANG)
        time.sleep(0.005)
    assert code == 0
    with os.fdopen(read, "rb") as stream:
        return stream.read()


def test_a_recording_goes_on_without_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where there is no folder for it, or one that others may enter, that is said and all."""
    for found, why in (([], "no folder"), ([tmp_path], "others may enter")):
        tmp_path.chmod(0o755)
        monkeypatch.setattr(control, "folders", lambda found=found: found)
        with control.opened() as made:
            assert made is None
        said = capsys.readouterr().err
        assert "will not see this recording" in said
        assert why in said


def test_nobody_answers(tmp_path: Path) -> None:
    """Who asks where no recorder is, or one that is stopped, is told so."""
    with pytest.raises(KcapError, match="no recorder answers: No such file"):
        control.ask(tmp_path / "1.sock", "stats")
    with (
        Control(tmp_path / "kcap") as made,
        pytest.raises(KcapError, match="did not answer within"),
    ):
        control.ask(made.path, "stats", timeout_s=0.1)


def test_an_answer_that_is_none_is_an_error(tmp_path: Path) -> None:
    """Whoever has taken over a recorder ends nobody who asks it by what it answers."""
    for said in (b"[" * 100_000 + b"\n", b"\xff\n", b"[]\n", b"{"):
        path = tmp_path / "1.sock"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()

            def answer(listening: socket.socket = listening, said: bytes = said) -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(100)
                    connection.sendall(said)

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(KcapError, match=r"no answer of a recorder|closed the connection"):
                control.ask(path, "stats")
            thread.join()
        path.unlink()
