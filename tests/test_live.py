"""Recordings of this host: what happened is in them once, and what is lost is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_support import run
from sink_support import until

from kcap.errors import KcapError
from kcap.model.batch import Batch, concat
from kcap.model.side import Heartbeat, Loss, Snapshot, SourceInfo
from kcap.readers.live import netlink
from kcap.readers.live.proc import ProcConnector
from kcap.readers.live.procfs import ProcFS
from kcap.state import State


def connector(**options: Any) -> ProcConnector:
    """A proc connector; the test skips where this host refuses one."""
    try:
        return ProcConnector(**options)
    except KcapError as error:
        pytest.skip(f"{error}")


class Recording:
    """What a connector gave while a block ran."""

    def __init__(self, source: ProcConnector) -> None:
        self.source = source
        self.batches: list[Batch] = []

    @property
    def rows(self) -> list[dict[str, Any]]:
        return concat(self.batches).to_pylist()

    @property
    def losses(self) -> list[Loss]:
        return [s for b in self.batches for s in b.before if isinstance(s, Loss)]


@contextmanager
def recording(*, resolve: bool = False, **options: Any) -> Iterator[Recording]:
    """Record what happens in the block."""
    made = Recording(connector(**options))
    state = State()
    seeded = threading.Event()

    def run() -> None:
        for batch in made.source.batches():
            made.batches.append(state.update(batch, resolve=resolve))
            seeded.set()

    thread = threading.Thread(target=run)
    thread.start()
    seeded.wait(10)
    try:
        yield made
    finally:
        made.source.stop()
        thread.join(20)
        made.source.close()
        assert not thread.is_alive()


COMMANDS = ["exit 7", "kill -KILL $$", "exit 0", "sleep 0.01"]


def storm(count: int) -> dict[int, int]:
    """Run short-lived shells, eight at a time; pid to wait status."""
    ended = {}
    running: list[int] = []
    for i in range(count):
        words = ["sh", "-c", COMMANDS[i % len(COMMANDS)]]
        running.append(os.posix_spawn("/bin/sh", words, os.environ))
        if len(running) == 8 or i == count - 1:
            ended |= {pid: os.waitpid(pid, 0)[1] for pid in running}
            running.clear()
    return ended


def on_every_processor(count: int = 3) -> None:
    """Make some events on each processor."""
    for cpu in os.sched_getaffinity(0):
        for _ in range(count):
            code = f"import os; os.sched_setaffinity(0, [{cpu}]); os.wait() if os.fork() else 0"
            subprocess.run([sys.executable, "-S", "-c", code], check=True)


@pytest.mark.root
def test_a_storm_is_recorded_whole() -> None:
    """Every fork, exec and exit of 500 children is seen once, with its parent and status."""
    with recording(resolve=True) as made:
        ended = storm(500)

    assert made.losses == []
    mine: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in made.rows:
        child = row["arg_child_pid"] if row["event"] == "fork" else row["pid"]
        if child in ended and row["tid"] in {row["pid"], os.getpid()}:
            mine[child][row["event"]].append(row)
    for pid, status in ended.items():
        (fork,), (execute,), (left,) = (mine[pid][e] for e in ("fork", "exec", "exit"))
        assert (fork["pid"], fork["arg_child_tid"]) == (os.getpid(), pid)
        assert execute["ppid"] == left["ppid"] == os.getpid()
        assert left["arg_wait_status"] == status
        assert left["arg_exit_code"] == (os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0)
        assert left["arg_signal_code"] == (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)
        assert fork["ts"] <= execute["ts"] <= left["ts"]
        assert execute["process_key"] == left["process_key"]
        assert execute.get("exe", os.path.realpath("/bin/sh")) == os.path.realpath("/bin/sh")
    assert {s & 0x7F for s in ended.values()} == {0, signal.SIGKILL}
    assert [row["ord"] for row in made.rows] == list(range(len(made.rows)))


@pytest.mark.root
def test_the_seed_and_its_source_come_first() -> None:
    """The table has this process with its start, and the clocks relate event times to now."""
    with recording() as made:
        subprocess.run(["true"], check=True)
    source, snapshot, beat = made.batches[0].before

    assert isinstance(source, SourceInfo)
    assert made.source.info.sources[0].id == source.id
    assert source.host == os.uname().nodename
    assert source.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert isinstance(snapshot, Snapshot)
    assert isinstance(beat, Heartbeat)
    assert snapshot.tables.keys() >= {"processes", "mounts", "users"}
    assert not snapshot.tables.keys() & {"threads", "fds"}, "its events would not keep them true"
    table = {row["pid"]: row for row in snapshot.tables["processes"].to_pylist()}
    me = table[os.getpid()]
    assert me["ppid"] == os.getppid()
    assert me["cwd"] == str(Path.cwd())
    assert me["parent_key"] == table[os.getppid()]["process_key"]
    assert "user:passwd" in str(me["provenance"])
    assert all(abs(row["ts"] - time.time_ns()) < 60 * 10**9 for row in made.rows)
    state = State()
    state.update(made.batches[0])
    assert state.snapshot().tables["processes"].to_pylist() == list(table.values())


@pytest.mark.root
def test_images_names_and_users_are_recorded(tmp_path: Path) -> None:
    """Arguments that are no UTF-8, a new name and a new user of a living process."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "open('/proc/self/comm', 'w').write('renamed')\n"
        "os.setuid(65534)\n"
        "time.sleep(0.3)\n"
    )
    with recording(resolve=True) as made:
        odd = subprocess.Popen([b"sh", b"-c", b"sleep 0.3; true", b"\xff"])
        other = subprocess.Popen([sys.executable, "-S", str(script)])
        assert (odd.wait(), other.wait()) == (0, 0)

    by_event = {(row["pid"], row["event"]): row for row in made.rows}
    started = by_event[odd.pid, "exec"]
    assert started["cmdline__raw"] == b"sh -c sleep 0.3; true \xff"
    assert started["cmdline"] == "sh -c sleep 0.3; true \\xff"
    assert started["arg_argv__json"] == '["sh","-c","sleep 0.3; true","\\udcff"]'
    changed = by_event[other.pid, "uid"]
    assert (changed["arg_ruid"], changed["uid"]) == (65534, 65534)
    assert changed["user"] == ProcFS().user(65534)
    renamed = by_event[other.pid, "comm"]
    assert (renamed["arg_comm"], renamed["process_name"]) == ("renamed", "renamed")
    assert by_event[other.pid, "exit"]["process_name"] == "renamed"
    executed = by_event[other.pid, "exec"]
    assert executed["exe"] == os.path.realpath(sys.executable)
    assert "exe:procfs" in executed["provenance"]
    assert executed["arg_argv"] == [sys.executable, "-S", str(script)]


def numbers(batches: list[Batch]) -> dict[int, list[int]]:
    """The numbers of the recorded events, by processor."""
    found: dict[int, list[int]] = defaultdict(list)
    whole = concat(batches)
    for cpu, seq in zip(whole.numpy("cpu", -1), whole.numpy("seq", -1), strict=True):
        found[int(cpu)].append(int(seq))
    return found


@pytest.mark.root
def test_an_overrun_is_counted_exactly() -> None:
    """A small buffer loses events: as many as another recording has more, and the kernel says."""
    with recording() as control:
        small = connector(receive_bytes=1)
        storm(200)
        batches: list[Batch] = []
        for batch in small.batches():
            batches.append(batch)
            if len(batches) == 2:  # what the buffer held is read: these events tell the gaps
                on_every_processor()
                small.stop()
        dropped = netlink.dropped(small._socket)
        small.close()

    assert control.losses == [], "negative control: the same events, a buffer that holds them"
    losses = [s for b in batches for s in b.before if isinstance(s, Loss)]
    assert {loss.cpu for loss in losses} - {None}
    assert sum(loss.count or 0 for loss in losses) == dropped
    seen, sent = numbers(batches), numbers(control.batches)
    for cpu, theirs in seen.items():
        missing = {s for s in sent[cpu] if theirs[0] < s < theirs[-1]} - set(theirs)
        assert sum(loss.count or 0 for loss in losses if loss.cpu == cpu) == len(missing)
        for loss in losses:
            if loss.cpu == cpu:
                assert loss.start_ns is not None
                assert loss.end_ns is not None
                assert loss.start_ns <= loss.end_ns


@pytest.mark.root
def test_what_is_lost_at_the_end_is_counted_too() -> None:
    """Where no event follows an overrun, the kernel's own count of drops tells how many."""
    small = connector(receive_bytes=1)
    storm(100)
    small.stop()
    batches = list(small.batches())
    dropped = netlink.dropped(small._socket)
    small.close()
    losses = [s for b in batches for s in b.before if isinstance(s, Loss)]

    assert small.overruns
    assert dropped
    assert sum(loss.count or 0 for loss in losses) == dropped
    assert losses[-1].cpu is None


@pytest.mark.root
def test_idle_intervals_give_empty_batches_and_stop_wakes() -> None:
    """The pipeline can tick, a stop is not delayed by the interval, and closing twice is fine."""
    with recording(interval_s=0.05) as made:
        time.sleep(0.4)
    assert len(made.batches) >= 5
    began = time.monotonic()
    with recording(interval_s=30) as slow:
        pass
    assert time.monotonic() - began < 5
    slow.source.close()
    slow.source.stop()


@pytest.mark.root
def test_forkstat_sees_the_same_execs(program: Callable[[str], str], tmp_path: Path) -> None:
    """An independent listener counts as many execs of a marker program."""
    marker = tmp_path / "kcap-marker"
    marker.symlink_to("/bin/sleep")
    with recording() as made:
        words = [program("forkstat"), "-e", "exec", "-l"]
        oracle = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        listeners = Path("/proc/net/netlink")
        until(lambda: f" 11  {oracle.pid} " in listeners.read_text())  # 11: the kernel's connector
        # They stay for as long as a busy machine needs to look at their command lines.
        running = [subprocess.Popen([str(marker), "2"]) for _ in range(25)]
        assert [p.wait() for p in running] == [0] * 25
        oracle.send_signal(signal.SIGINT)
        told = oracle.communicate(timeout=30)[0]

    mine = [r for r in made.rows if r["event"] == "exec" and "kcap-marker" in r.get("cmdline", "")]
    theirs = [line for line in told.splitlines() if "kcap-marker" in line]
    assert len(mine) == len(theirs) == 25
    assert {r["pid"] for r in mine} == {p.pid for p in running}


@pytest.mark.root
@pytest.mark.parametrize("namespace", [["--net"], ["--pid", "--fork"]])
def test_a_namespace_without_events_is_told(
    namespace: list[str], program: Callable[[str], str], root: Path
) -> None:
    """In another namespace the kernel is silent, or not there: an error, not an empty recording."""
    code = (
        "from kcap.errors import KcapError\n"
        "from kcap.readers.live.proc import ProcConnector\n"
        "try: ProcConnector()\n"
        "except KcapError as error: print('refused:', error)\n"
    )
    words = [program("unshare"), *namespace, sys.executable, "-c", code]
    told = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout

    assert told.startswith("refused: the kernel")
    assert "initial" in told


@pytest.mark.parametrize("words", [["--events", "process,openat"], ["--stack"]])
def test_the_connector_is_not_asked_for_what_it_never_tells(
    words: list[str], tmp_path: Path
) -> None:
    """Forks and ends in place of opened files would be an answer to another question."""
    path = tmp_path / "r.kcap"
    refused = run("record", "--source", "proc", *words, "--duration", "10ms", "-o", path)
    assert refused.exit_code == 1
    asked = words[-1].split(",")[-1].removeprefix("--")
    assert f"not tell of {'call stacks' if asked == 'stack' else asked}" in refused.stderr
    assert not path.exists()


@pytest.mark.root
def test_the_connector_is_asked_for_processes(tmp_path: Path) -> None:
    """What it tells may be asked for by name, and by a view."""
    path = tmp_path / "r.kcap"
    words = ("--source", "proc", "--duration", "10ms")
    asked = run("record", *words, "--events", "process,creds", "-o", path)
    assert asked.exit_code == 0, asked.stderr
    seen = run("run", *words, "--view", "forkstat", "-e", "all")
    assert seen.exit_code == 0, seen.stderr
