"""Recordings by the audit system: what happened is in them, and the host is as it was before."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from audit_support import Recording, recording, settings
from hypothesis import given
from hypothesis import strategies as st
from workload_support import Workloads

import kcap
from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live.audit import link, rules
from kcap.readers.live.audit.link import Control, Status
from kcap.readers.live.audit.recorder import STATUS, AuditRecorder, cannot_see
from kcap.readers.live.audit.rules import Key
from kcap.readers.live.audit.serials import Serials
from kcap.readers.live.audit.settings import BACKLOG, Settings

EXECUTION = "sched_process_exec"


def executions(made: Recording, pids: set[int]) -> dict[int, dict[str, object]]:
    """The programs that processes ran, by process; each once."""
    found = [r for r in made.rows if r.get("event") == EXECUTION and r["pid"] in pids]
    assert len({row["pid"] for row in found}) == len(found)
    return {row["pid"]: row for row in found}


def backlog() -> int:
    """Records that wait in the kernel."""
    control = Control()
    try:
        return control.status().backlog
    finally:
        control.close()


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for something, not for ever."""
    limit_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < limit_s
        time.sleep(0.01)


@contextlib.contextmanager
def rule_of_somebody(key: bytes) -> Iterator[bytes]:
    """A rule that is not ours, while the block runs."""
    control = Control()
    rule = rules.encode([83], rules.X86_64, [], key)
    try:
        control.add(rule)
        [added] = [each for each in control.rules() if rules.key_of(each) == key]
        yield added
    finally:
        control.delete(rule)
        control.close()


@pytest.mark.root
def test_a_thousand_programs_are_recorded_with_their_arguments(workloads: Workloads) -> None:
    """Of 1,000 short-lived processes each is there once, with arguments, path and parent."""
    child = workloads.child
    for _ in range(5):  # others may fill the kernel's queue, which is one for all
        with recording(events={EXECUTION}) as made:
            said = workloads.run("burst", child, 1000)
        if not made.losses:
            break

    assert made.losses == []
    found = executions(made, {fact["child"] for fact in said})
    for fact in said:
        row = found[fact["child"]]
        assert row["arg_argv"] == fact["argv"]
        assert (row["exe"], row["arg_pathname"], row["ppid"]) == (child, child, fact["pid"])
        assert row["arg_inode"] == Path(child).stat().st_ino
        assert row["arg_pwd"] == str(Path.cwd())
    assert [row["ord"] for row in made.rows] == list(range(len(made.rows)))


@pytest.mark.root
def test_long_and_odd_arguments_come_out_as_they_were() -> None:
    """What the kernel spreads over many records, in quotes or not, is put together again."""
    argv = [b"true", b"x" * 20_000, b"two words " * 1500, b"", b"\xff\"'=", b"plain" + b"\n" * 9000]
    with recording(events={EXECUTION}) as made:
        pid = os.posix_spawn("/bin/true", argv, {})
        os.waitpid(pid, 0)
    row = executions(made, {pid})[pid]

    assert row["arg_argv__raw"] == b"\0".join(argv)
    assert row["arg_argv_bytes"] == sum(map(len, argv)) + len(argv)
    assert "arg_missing_records__list" not in row


@pytest.mark.root
def test_what_is_done_to_files_and_sockets_is_recorded(tmp_path: Path) -> None:
    """Files that are written, renamed and removed, connections and failures are told."""
    script = (
        "import ctypes, os, socket\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "call = ctypes.CDLL(None).syscall\n"  # Python's own opens are openat, as everybody's
        "call(2, b'a', os.O_WRONLY | os.O_CREAT, 0o600); call(2, b'a', os.O_RDONLY)\n"
        "os.rename('a', 'b'); os.unlink('b')\n"
        "s = socket.socket(); s.connect_ex(('127.0.0.1', 1)); s.close()\n"
        "os.kill(os.getpid(), 0)\n"
        "try: os.execv('/no/such', ['x'])\n"
        "except OSError: pass\n"
    )
    wanted = {"open", "rename", "unlink", "connect", "kill", EXECUTION}
    for _ in range(5):
        with recording(events=wanted) as made:
            process = subprocess.Popen([sys.executable, "-S", "-c", script])
            process.wait(30)
        if not made.losses:
            break
    mine = [row for row in made.rows if row.get("pid") == process.pid]
    told = {row["event"]: row for row in mine}

    opened = [row for row in mine if row.get("arg_pathname") == f"{tmp_path}/a"]
    flags = [row["arg_flags"] & os.O_ACCMODE for row in opened]
    assert flags == [os.O_WRONLY, os.O_RDONLY]  # all opens, where somebody asks for opens
    assert told["rename"]["arg_oldpath"] == f"{tmp_path}/a"
    assert told["rename"]["arg_newpath"] == f"{tmp_path}/b"
    assert told["unlink"]["arg_pathname"] == f"{tmp_path}/b"
    assert told["connect"]["status"] == "ECONNREFUSED"
    assert json.loads(told["connect"]["arg_remote_addr"])["sin_addr"] == "127.0.0.1"
    assert told["kill"]["arg_pid"] == process.pid
    assert (told["execve"]["arg_pathname"], told["execve"]["retval"]) == ("/no/such", -2)
    assert {row["process_name"] for row in opened} == {Path(sys.executable).name[:15]}


def test_opens_for_reading_are_left_out_unless_asked_for() -> None:
    """By default the kernel records opens that may write; asked for, opens are all recorded."""
    opens = {257 % 32: 257 // 32}

    def asked(rule: bytes) -> bool:
        words = memoryview(rule[12:268]).cast("I")
        return all(words[word] >> bit & 1 for bit, word in opens.items())

    few = [rule for rule in rules.rules(rules.default(), b"k") if asked(rule)]
    every = [rule for rule in rules.rules(rules.default(), b"k", all_opens=True) if asked(rule)]
    assert len(few) == 1
    assert few[0][8] == 3  # instruction set, flags, key
    assert every[0][8] == 2


@pytest.mark.root
def test_the_host_is_as_before(workloads: Workloads) -> None:
    """Rules, switch and limit are changed while we record, and afterwards as they were."""
    before = settings()
    with recording(events={EXECUTION}):
        workloads.run("burst", workloads.child, 1)
        status, found = settings()
        assert len(found) > len(before[1])  # negative control: something was changed
        assert status.enabled == 1
        assert status.backlog_limit == max(BACKLOG, before[0].backlog_limit)
        assert status.pid == before[0].pid

    assert settings() == before


@pytest.mark.root
def test_a_rule_of_somebody_else_stays(tmp_path: Path) -> None:
    """Rules of others are there before, while and after we record; their events say the key."""
    settings()
    code = f"import os; os.mkdir({str(tmp_path / 'made')!r})"
    with rule_of_somebody(b"mine") as rule:
        with recording(events={EXECUTION}) as made:
            assert rule in settings()[1]
            subprocess.run([sys.executable, "-S", "-c", code], check=True)
        after = settings()[1]
        assert after.count(rule) == 1
        assert not [key for each in after if (key := rules.owner(each)) and key.pid == os.getpid()]
    told = [row for row in made.rows if row.get("arg_path_arg") == str(tmp_path / "made")]

    assert [(row["event"], row["arg_key__str"]) for row in told] == [("mkdir", "mine")]
    assert made.source.info.sources[0].details["audit"]["foreign_rules"] >= 1


@pytest.mark.root
def test_what_a_killed_recorder_left_is_cleared_up() -> None:
    """The rules of a recorder that was killed go, and the settings it found come back."""
    before = settings()
    code = (
        "import time; from kcap.readers.live.audit.recorder import AuditRecorder;"
        "made = AuditRecorder(events={'sched_process_exec'});"
        "print('on', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
    finally:
        process.kill()
        process.communicate()
    left = [key for rule in settings()[1] if (key := rules.owner(rule))]
    assert {key.pid for key in left} == {process.pid}  # negative control: it left something
    assert not any(key.alive for key in left)

    with recording(events={EXECUTION}):
        pids = {key.pid for rule in settings()[1] if (key := rules.owner(rule))}
        assert pids == {os.getpid()}
    assert settings() == before


@pytest.mark.root
def test_the_last_of_two_recorders_restores() -> None:
    """While another recorder runs the settings stay; behind the last one they are as before."""
    before = settings()
    first = AuditRecorder(events={EXECUTION})
    code = (
        "import signal; from kcap.readers.live.audit.recorder import AuditRecorder;"
        "made = AuditRecorder(events={'sched_process_exec'});"
        "signal.signal(15, lambda *_: made.stop());"
        "print('on', flush=True); sum(b.rows for b in made.batches()); made.close()"
    )
    second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert second.stdout is not None
        assert second.stdout.readline() == b"on\n"
        first.close()
        status, found = settings()
        assert status.enabled == 1
        assert {key.pid for rule in found if (key := rules.owner(rule))} == {second.pid}
    finally:
        first.close()
        second.terminate()
        second.communicate(timeout=30)

    assert second.returncode == 0
    assert settings() == before


@pytest.mark.root
def test_what_others_change_meanwhile_stays() -> None:
    """A limit that somebody else has set while we recorded is not overwritten."""
    before, _ = settings()
    control = Control()
    try:
        with recording(events={EXECUTION}):
            control.set(backlog_limit=1234)
        assert control.status().backlog_limit == 1234
    finally:
        control.set(backlog_limit=before.backlog_limit)
        control.close()

    assert settings()[0] == before


@pytest.mark.root
def test_what_found_no_room_is_counted_exactly(workloads: Workloads) -> None:
    """With a receive buffer that is too small, seen and lost events add up to what there was."""
    settings()
    source = AuditRecorder(receive_bytes=100_000, events={EXECUTION})
    made = Recording(source)
    try:
        source.prepare()
        said = workloads.run("burst", workloads.child, 300)
        wait_until(lambda: backlog() == 0)
        source.stop()  # nothing was read so far
        made.batches = list(source.batches())
    finally:
        source.close()
    pids = {fact["child"] for fact in said}
    missing = len(pids) - len(executions(made, pids))
    lost = sum(loss.count or 0 for loss in made.losses if "receive buffer" in loss.reason)
    numbers = {row["seq"] for row in made.rows}

    assert missing > 0  # negative control: something was lost
    assert lost >= missing
    assert lost <= source._serials.highest - min(numbers) + 1 - len(numbers)
    assert made.beats[-1].details["dropped_records"] > lost


class Asked(Control):
    """A kernel that is asked, and not changed."""

    def __init__(self, status: Status, found: list[bytes]) -> None:
        self._status = status
        self._rules = found
        self.orders: list[str] = []

    def status(self) -> Status:
        """How it is."""
        return self._status

    def rules(self) -> list[bytes]:
        """The rules."""
        return self._rules

    def set(self, **changes: int) -> None:
        """An order."""
        self.orders.append(f"set {changes}")

    def add(self, rule: bytes) -> None:
        """An order."""
        self.orders.append("add")

    def delete(self, rule: bytes) -> None:
        """An order."""
        self.orders.append("delete")


OFF = Status(0, 0, 1, 0, 0, 64, 0, 0, 0, 15000)


@pytest.mark.parametrize(
    ("status", "why"),
    [(OFF._replace(enabled=2), "locked"), (OFF._replace(enabled=1, failure=2), "panic")],
)
def test_nothing_is_changed_where_that_is_refused_or_dangerous(status: Status, why: str) -> None:
    """Locked rules, and a host that panics when a record is lost, are left alone, and told."""
    kernel = Asked(status, [])
    changes = Settings(kernel)
    changes.change(rules.default())
    changes.restore()

    assert kernel.orders == []
    assert any(why in sentence for sentence in cannot_see(changes))

    kernel = Asked(OFF, [])  # negative control
    changes = Settings(kernel)
    changes.change(rules.default())
    assert {"add", "set {'enabled': 1, 'backlog_limit': 65536, 'backlog_wait_time': 0}"} <= set(
        kernel.orders
    )
    assert not any(why in sentence for sentence in cannot_see(changes))


def test_a_daemon_that_came_keeps_the_audit_on() -> None:
    """Where auditd was started meanwhile, we do not turn off what it needs."""
    kernel = Asked(OFF, [])
    changes = Settings(kernel)
    changes.change(rules.default())
    kernel._status = OFF._replace(enabled=1, pid=4, backlog_limit=8192)
    kernel.orders.clear()
    changes.restore()
    assert kernel.orders == []

    changes.change(rules.default())
    kernel._status = OFF._replace(enabled=1, backlog_limit=BACKLOG, backlog_wait_time=0)
    kernel.orders.clear()
    changes.restore()
    assert kernel.orders == ["set {'enabled': 0, 'backlog_limit': 64, 'backlog_wait_time': 15000}"]


def test_where_a_daemon_runs_processes_wait_as_it_wants() -> None:
    """We let nobody wait for the audit, unless a daemon is there that may want just that."""
    kernel = Asked(OFF._replace(enabled=1, pid=4), [])
    Settings(kernel).change(rules.default())

    assert "set {'backlog_limit': 65536}" in kernel.orders


def test_a_rule_that_hides_everything_is_told() -> None:
    """The rule against all auditing of tasks, which some distributions have, is noticed."""
    never = bytearray(rules.encode([], rules.X86_64, [], b""))
    never[0:12] = (1).to_bytes(4, sys.byteorder) + bytes(8)
    changes = Settings(Asked(OFF, [bytes(never)]))
    changes.change(rules.default())

    assert any("-a task,never" in sentence for sentence in cannot_see(changes))
    assert not any("never" in sentence for sentence in cannot_see(Settings(Asked(OFF, []))))


@given(
    st.sets(st.integers(0, 511), max_size=40),
    st.sampled_from([rules.X86_64, rules.I386]),
    st.lists(st.builds(rules.Condition, st.integers(0, 3), st.just(1), st.integers(0, 9))),
    st.binary(max_size=200),
)
def test_a_key_is_found_in_any_rule(
    numbers: set[int], arch: int, conditions: list[rules.Condition], key: bytes
) -> None:
    """A rule's key is read back, whatever else the rule has; only our own are ours."""
    rule = rules.encode(numbers, arch, conditions[:60], key)

    assert rules.key_of(rule) == key
    assert rules.owner(rule) is None
    own = Key(1, 2, 0, 64, -1)
    assert rules.owner(rules.encode(numbers, arch, conditions[:60], own.text)) == own


def test_a_recorder_is_alive_only_as_itself() -> None:
    """Another process under the pid of a recorder does not count as it."""
    mine = rules.started(os.getpid())
    assert mine is not None

    assert Key(os.getpid(), mine, 0, 64, 15000).alive
    assert not Key(os.getpid(), mine + 1, 0, 64, 15000).alive
    assert not Key(1 << 30, mine, 0, 64, 15000).alive


@given(st.integers(1, 200), st.sets(st.integers(0, 199), max_size=50), st.integers(0, 99))
def test_numbers_that_never_came_are_counted(count: int, gone: set[int], seed: int) -> None:
    """However events overtake each other, just the numbers within that are missing count."""
    left = [number for number in range(1000, 1000 + count) if number - 1000 not in gone]
    serials, missing = Serials(), 0
    chance = random.Random(seed)
    order = sorted(left[1:], key=lambda number: number + chance.random() * 20)
    for at, number in enumerate([*left[:1], *order]):
        serials.add(number)
        if at % 50 == 49:
            missing += serials.missing()
    missing += serials.missing(last=True)

    inside = {g for g in gone if left and left[0] <= 1000 + g <= left[-1]}
    assert missing == len(inside)


def test_errors_say_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel refuses names the rights; a kernel without audit is named as such."""
    with pytest.raises(PrivilegeError, match="CAP_AUDIT_CONTROL"):
        link._fail(1, "adding an audit rule")
    monkeypatch.setattr(link, "_NETLINK_AUDIT", 30)
    with pytest.raises(KcapError, match="no audit system"):
        Control()


@pytest.mark.root
def test_the_status_is_asked_of_whoever_has_the_rights() -> None:
    """In a process of its own, the source asks another one, and knows of no other question."""
    settings()
    asked: list[str] = []
    made = AuditRecorder(interval_s=0.05, events={EXECUTION})

    def ask(name: str, argument: bytes) -> bytes:
        asked.append(name)
        return made.serve(name, argument)

    try:
        made.part(ask)
        made.prepare()
        made.stop()
        assert sum(batch.rows for batch in made.batches()) >= 0
        with pytest.raises(KcapError, match="no answer"):
            made.serve("other", b"")
    finally:
        made.close()
    assert set(asked) == {STATUS}


@pytest.mark.root
def test_the_verb_records_and_restores(tmp_path: Path) -> None:
    """The recorder in its several processes tells what it cannot see, and puts all back."""
    before = settings()
    path = tmp_path / "audit.kcap"
    command = [sys.executable, "-m", "kcap.tools", "record", "--source", "audit", "-o", str(path)]
    command += ["--events", EXECUTION]
    process = subprocess.Popen([*command, "--duration", "5m"], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        assert len(settings()[1]) > len(before[1])  # negative control
        marked = subprocess.Popen(["true", "marked-argument"])
        marked.wait(30)
    finally:
        process.terminate()
        said += process.communicate(timeout=120)[1].decode()

    assert process.returncode in (0, 3), said
    assert "recording with kcap-audit" in said
    assert settings() == before
    with kcap.open(path) as capture:
        found = capture.to_arrow(["pid", "arg_argv"], where="evt.name = 'sched_process_exec'")
        [source] = capture.info.sources
    told = {row["pid"]: row["arg_argv"] for row in found.to_pylist()}
    assert told[marked.pid] == ["true", "marked-argument"]
    assert "forks and ends of processes" in source.details["cannot_see"]


@pytest.mark.root
@pytest.mark.long
def test_a_burst_of_five_thousand_is_recorded(workloads: Workloads) -> None:
    """Of 5,000 short-lived processes all are there with their arguments, or counted as lost."""
    with recording() as made:
        said = workloads.run("burst", workloads.child, 5000, timeout_s=300)
    found = executions(made, {fact["child"] for fact in said})
    lost = sum(loss.count or 0 for loss in made.losses)
    whole = [fact for fact in said if found.get(fact["child"], {}).get("arg_argv") == fact["argv"]]

    assert len(whole) + lost >= len(said)
    assert lost or len(whole) == len(said)
