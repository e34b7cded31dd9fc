"""Delivery: each event at least once and in order, whatever happens to server, courier and run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sink_support import (
    NAMES,
    OwnProcess,
    Peer,
    Request,
    Response,
    events,
    free_port,
    ids,
    peer,
    rss_bytes,
    sink,
    until,
)

from kcap.errors import KcapError, OutputError
from kcap.guard.rights import User
from kcap.writers.jsonl import JsonLines
from kcap.writers.sinks import courier, spec
from kcap.writers.sinks.delivery import Delivery
from kcap.writers.sinks.spool import Spool

LINES = "?body=ndjson"
SOON = Response(503, headers={"Retry-After": "0"})


def first_seen(found: list[str]) -> list[str]:
    """Ids in the order in which each came first."""
    return list(dict.fromkeys(found))


def taken(of: Peer) -> list[str]:
    """The ids that a peer took by ``body=ndjson``, in order."""
    lines = [line for request in of.requests for line in request.plain.splitlines()]
    return [f"{e['origin']}:{e['ord']}" for e in map(json.loads, lines)]


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process."""
    text = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_everything_comes_once_and_in_order() -> None:
    """A server that works gets every event once, in order; the digest is that of the lines."""
    lines = []

    class Out:
        def write(self, data: bytes) -> int:
            lines.append(bytes(data))
            return len(data)

        def flush(self) -> None:
            pass

    with peer() as server:
        made = sink(f"http://{server.place}/{LINES}")
        for start in range(0, 3000, 500):
            batch = events(500, start)
            JsonLines(Out()).write(batch)  # type: ignore[arg-type]
            made.write(batch)
        made.close()
        made.close()

        assert taken(server) == ids(3000)
    assert made.confirmed == made.sent == 3000
    assert made.losses == []
    assert made.digest == hashlib.sha256(b"".join(lines)).hexdigest()


def test_no_events_are_no_error() -> None:
    """A run without events ends well, also where no server is."""
    made = sink("http://127.0.0.1:9/")
    made.close()

    assert (made.sent, made.confirmed) == (0, 0)
    assert not Path(made._spool).exists()


def interrupted(folder: Path, count: int, kills: int) -> tuple[Delivery, list[str]]:
    """Send events while the server is killed and started again some times."""
    server = OwnProcess(folder)
    server.start()
    made = sink(f"http://127.0.0.1:{server.port}/{LINES}", batch=100)
    try:
        for part in range(kills + 1):
            size = count // (kills + 1)
            for start in range(part * size, (part + 1) * size, 500):
                made.write(events(min(500, (part + 1) * size - start), start))
            if part < kills:
                before = len(server.ids)
                until(lambda now=before: len(server.ids) > now)  # type: ignore[misc]
                server.kill()
                time.sleep(0.1)
                server.start()
        made.close()
        return made, server.ids
    finally:
        server.kill()


def check_interrupted(folder: Path, count: int, kills: int) -> None:
    made, found = interrupted(folder, count, kills)

    assert first_seen(found) == ids(count)
    assert made.confirmed == count
    # What was taken without an answer came again: known by its id, and no more than on its way.
    assert len(found) - count <= kills * 100


def test_a_server_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    """Killed and restarted in the middle, a server has every event, in order, doubles known."""
    check_interrupted(tmp_path, 5000, 1)


@pytest.mark.long
def test_a_server_that_is_killed_often_loses_nothing(tmp_path: Path) -> None:
    """The same for 100,000 events and ten kills."""
    check_interrupted(tmp_path, 110_000, 10)


def test_the_check_notices_what_is_lost_or_turned_round() -> None:
    """Negative control: ids that lack one, or have two in the wrong order, are not the same."""
    right = ids(10)

    assert first_seen([*right[:5], *right[3:]]) == right
    assert first_seen([*right[:4], *right[5:]]) != right
    assert first_seen([right[1], right[0], *right[2:]]) != right


def test_a_slow_server_costs_no_memory(tmp_path: Path) -> None:
    """What a slow server has no time for waits in the spool; memory stays as it was."""
    slow = {"s": 0.2}

    def answer(_: Request) -> Response:
        time.sleep(slow["s"])
        return Response()

    with peer(answer) as server:
        made = sink(
            f"http://{server.place}/{LINES}",
            memory_bytes=1 << 20,
            spool=str(tmp_path / "s"),
            batch=2000,
        )
        made.write(events(500))
        until(lambda: bool(made.status))
        before = rss_bytes(made.pids[0]), rss_bytes(os.getpid())
        count = 60_000
        for start in range(500, count, 500):
            made.write(events(500, start, text="x" * 400))
        until(lambda: made.status["spooled"] > 10 << 20)
        after = rss_bytes(made.pids[0]), rss_bytes(os.getpid())
        slow["s"] = 0.0
        made.close()

        assert taken(server) == ids(count)
    assert made.status["memory_peak"] <= 1 << 20
    assert made.status["spooled"] == 0
    assert after[0] - before[0] < 16 << 20
    # The test itself keeps what the server got until then.
    assert after[1] - before[1] < 24 << 20


def test_a_full_spool_makes_the_run_wait() -> None:
    """Where no more may wait, writing does, and nothing is dropped."""
    gate = {"open": False}
    written = []

    def answer(_: Request) -> Response:
        return Response() if gate["open"] else SOON

    with peer(answer) as server:
        made = sink(f"http://{server.place}/{LINES}", memory_bytes=100_000, spool_bytes=200_000)

        def write() -> None:
            for start in range(0, 20_000, 100):
                made.write(events(100, start))
                written.append(start)

        writer = threading.Thread(target=write)
        writer.start()
        until(lambda: bool(made.status) and made.status["tries"] > 2)
        before = len(written)
        time.sleep(0.3)
        held = len(written) - before
        gate["open"] = True
        writer.join()
        made.close()

        assert held <= 1
        assert before < 100
        assert taken(server) == ids(20_000)


def test_a_silent_server_ends_the_run(tmp_path: Path) -> None:
    """Without success for long enough the run ends, says how many are missing, and keeps them."""
    path = tmp_path / "s"
    made = sink("http://127.0.0.1:9/", give_up=0.3, spool=str(path))
    made.write(events(700))

    with pytest.raises(OutputError, match="700 of 700 messages were not delivered") as caught:
        made.close()

    assert "no success for 0.3 s: http://127.0.0.1:9: " in str(caught.value)
    assert str(path) in (caught.value.hint or "")
    made.close()
    with pytest.raises(OutputError, match="not delivered"):
        made.write(events(1))


def test_the_next_run_sends_first_what_is_left(tmp_path: Path) -> None:
    """What one run could not deliver, the next one delivers before its own."""
    port = free_port()
    with peer(lambda _: SOON, port=port) as server:
        url = f"http://{server.place}/{LINES}"
        made = sink(url, give_up=0.2, spool=str(tmp_path))
        made.write(events(300))
        with pytest.raises(OutputError):
            made.close()
    (kept,) = tmp_path.iterdir()

    with peer(port=port) as server:
        again = sink(url, spool=str(tmp_path))
        again.write(events(200, 300))
        again.close()

        assert taken(server) == ids(500)
    assert (again.sent, again.confirmed) == (200, 200)
    assert again.status["taken_earlier"] == 300
    assert kept.stat().st_size == 4096


def test_a_spool_that_nobody_named_is_kept_only_where_it_is_needed() -> None:
    """A private spool goes with the run, unless it holds what was not delivered."""
    with peer() as server:
        made = sink(f"http://{server.place}/")
        assert Path(made._spool).stat().st_mode & 0o777 == 0o600
        made.write(events(3))
        made.close()
    assert not Path(made._spool).exists()

    made = sink("http://127.0.0.1:9/", give_up=0.1)
    made.write(events(3))
    with pytest.raises(OutputError, match="3 of 3") as caught:
        made.close()
    assert f"spool={made._spool}" in (caught.value.hint or "")
    Path(made._spool).unlink()


def test_a_courier_that_is_killed_is_told(tmp_path: Path) -> None:
    """A killed courier is an error that counts what is missing; its spool goes on in the next."""
    hold = {"s": 30.0}
    asked = threading.Event()

    def answer(_: Request) -> Response:
        asked.set()
        end = time.monotonic() + hold["s"]
        while hold["s"] and time.monotonic() < end:
            time.sleep(0.01)
        return Response()

    path = tmp_path / "s"
    with peer(answer) as server:
        url = f"http://{server.place}/{LINES}"
        made = sink(url, spool=str(path), memory_bytes=50_000, batch=50)
        for start in range(0, 4000, 100):
            made.write(events(100, start))
        assert asked.wait(20)
        until(lambda: path.stat().st_size > 500_000)
        os.kill(made.pids[0], signal.SIGKILL)
        with pytest.raises(OutputError, match=r"4,000 of 4,000 .*ended \(signal 9\)") as caught:
            made.close()
        hold["s"] = 0.0
        assert str(path) in (caught.value.hint or "")
        until(lambda: len(server.requests) == 1)
        server.requests.clear()

        again = sink(url, spool=str(path))
        again.write(events(10, 5000))
        again.close()

        found = taken(server)
    left = found[:-10]
    assert found[-10:] == ids(10, 5000)
    # What was in its memory went with it, at the end; the rest is whole.
    assert left == ids(len(left))
    assert len(left) > 3000
    assert again.status["taken_earlier"] == len(left)


KILLED = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from sink_support import events, sink
made = sink({url!r}, live=True, spool={spool!r})
made.write(events(1000))
print(made.pids[0], flush=True)
sys.stdin.readline()
"""


def test_a_run_that_is_killed_leaves_its_events(tmp_path: Path, root: Path) -> None:
    """When the run is killed its courier puts what waits in the spool and ends."""
    path, url = tmp_path / "s", f"http://127.0.0.1:9/{LINES}"
    code = KILLED.format(tests=str(root / "tests"), root=str(root), url=url, spool=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    until(lambda: not Path(f"/proc/{pid}").exists() or " Z" in status_of(pid)["State"])

    spool = Spool(str(path), sink=spec.parse("http://127.0.0.1:9/").key)
    assert spool.left == 1000
    spool.close()


def test_a_live_run_does_not_give_up() -> None:
    """A recorder's sink goes on trying for as long as the recorder runs, and a while at its end."""
    with peer(lambda _: SOON) as server:
        made = sink(f"http://{server.place}/", live=True, give_up=0.1)
        made.write(events(5))
        until(lambda: bool(made.status) and made.status["tries"] > 2)
        made.write(events(5, 5))
        server.answer = lambda _: Response()
        made.close()

        assert len(server.requests) == 10


@pytest.mark.long
def test_a_live_run_ends_in_time() -> None:
    """At its end a recorder's sink waits for a silent server, but not for good."""
    made = sink("http://127.0.0.1:9/", live=True)
    made.write(events(5))
    start = time.monotonic()
    with pytest.raises(OutputError, match="5 of 5"):
        made.close()

    assert courier.LINGER_S <= time.monotonic() - start < courier.LINGER_S + 5
    Path(made._spool).unlink()


@pytest.mark.long
def test_a_courier_that_is_told_to_end_keeps_what_waits(tmp_path: Path) -> None:
    """After SIGTERM a courier goes on for a moment, then what waits is in the spool."""
    made = sink("http://127.0.0.1:9/", live=True, spool=str(tmp_path / "s"))
    made.write(events(5))
    os.kill(made.pids[0], signal.SIGTERM)
    until(lambda: made._child.ended() is not None)

    with pytest.raises(OutputError, match="told to end"):
        made.close()
    assert (tmp_path / "s").stat().st_size > 4096


def test_an_interrupted_end_keeps_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not want to wait for a silent server is told at once what is missing, and where."""
    made = sink("http://127.0.0.1:9/", spool=str(tmp_path / "s"))
    made.write(events(5))
    assert made._reports is not None

    def interrupted() -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(made._reports, "join", interrupted)
    start = time.monotonic()
    with pytest.raises(OutputError, match=r"5 of 5 .* the run was ended before") as caught:
        made.close()

    assert time.monotonic() - start < 10
    assert str(tmp_path / "s") in (caught.value.hint or "")
    assert (tmp_path / "s").stat().st_size > 4096


def test_what_a_server_refuses_is_a_loss(tmp_path: Path) -> None:
    """A message that is refused for good is left out, counted with the reason, and kept apart."""

    def answer(request: Request) -> Response:
        return Response(422, b"bad pid") if b"execve" in request.body else Response()

    dead = tmp_path / "dead.jsonl"
    with peer(answer) as server:
        made = sink(f"http://{server.place}/", dead_letters=str(dead))
        made.write(events(30))
        made.close()

        names = [event["event"] for event in server.taken]
    assert names == [NAMES[n % 3] for n in range(30) if n % 3 != 1]
    (loss,) = made.losses
    assert (loss.kind, loss.count) == ("skipped", 10)
    assert "422" in loss.reason
    assert "bad pid" in loss.reason
    letters = [json.loads(line) for line in dead.read_text().splitlines()]
    assert [letter["id"] for letter in letters] == ids(30)[1::3]
    assert json.loads(letters[0]["body"])["event"] == "execve"
    assert dead.stat().st_mode & 0o777 == 0o600
    assert (made.sent, made.confirmed) == (30, 20)


def test_reasons_are_bounded() -> None:
    """However many reasons a server finds, a few are told, and the number of all."""
    with peer(lambda r: Response(400, r.body[-40:])) as server:
        made = sink(f"http://{server.place}/")
        made.write(events(50))
        made.close()

    assert len(made.losses) == 11
    assert sum(loss.count or 0 for loss in made.losses) == 50
    assert made.losses[-1].count == 40 or any(loss.count == 40 for loss in made.losses)


@pytest.mark.parametrize("what", ["spool", "dead_letters"])
def test_a_file_that_cannot_be_made_is_told_at_once(tmp_path: Path, what: str) -> None:
    """A spool or dead letters in a folder that is not there end the run before it begins."""
    with pytest.raises(KcapError, match="No such file") as caught:
        sink("http://127.0.0.1:9/", **{what: str(tmp_path / "none" / "s")})

    assert caught.value.file == str(tmp_path / "none" / "s")


def test_a_courier_has_few_rights() -> None:
    """It can't start programs nor gain rights, and keeps nothing of root's."""
    made = sink("http://127.0.0.1:9/")
    found = status_of(made.pids[0])
    made.close()

    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0


@pytest.mark.root
def test_a_courier_that_ran_as_root_is_somebody_else() -> None:
    """Where a user is named the courier becomes that user, and still delivers."""
    with peer() as server:
        made = spec.opened(
            spec.parse(f"http://localhost:{server.port}/"),
            live=True,
            user=User("nobody", 65534, 65534),
        )
        assert isinstance(made, Delivery)
        assert status_of(made.pids[0])["Uid"].split() == ["65534"] * 4
        made.write(events(20))
        made.close()

        assert len(server.requests) == 20


def test_an_interrupted_write_does_not_confuse(tmp_path: Path) -> None:
    """A pipe that ends within a frame ends the courier; what came whole is in the spool."""
    path = tmp_path / "s"
    made = sink("http://127.0.0.1:9/", live=True, spool=str(path))
    made.write(events(10))
    made._child.requests.write(b"B\xff\x00\x00\x00only a part")
    made._child.requests.close()
    assert made._reports is not None
    made._reports.join()
    made.abandon()

    assert made.status["state"] == "stopped"
    spool = Spool(str(path), sink=spec.parse("http://127.0.0.1:9/").key)
    assert spool.left == 10
    spool.close()
