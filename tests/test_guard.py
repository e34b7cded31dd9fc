"""A recorder gives up its rights: who it is then, what it can't do, what its parts say."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_support import COMMAND, ROOT, Recording, children, info, recording

import kcap
from kcap.errors import KcapError, OutputError, PrivilegeError
from kcap.guard import rights, seccomp
from kcap.readers.live.guard import channel as channels
from kcap.readers.live.guard import collector
from kcap.readers.live.guard.channel import Answer, Channel, GoneError
from kcap.readers.live.probe.supervisor import PAGE_BYTES, Shared
from kcap.tools.apart import PartedOutputs
from kcap.tools.outputs import LocalOutputs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's rights")

PID = 4711
"""The process that a filter is made for."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives up the rights of root")


def child(act: Callable[[], object]) -> str:
    """What an act in a process of its own gives or fails with, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            said = repr(act())
        except BaseException as e:  # noqa: BLE001
            said = f"{type(e).__name__}: {e}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as stream:
        return stream.read()


def processes(recorder: Recording) -> dict[str, int]:
    """The collector and the worker of a recorder."""
    found = {"collector": recorder.process.pid}
    for pid in children(recorder.process.pid):
        if rights.held(str(pid)).seccomp and uid_of(pid) != 0:
            found["worker"] = pid
    return found


def uid_of(pid: int) -> int:
    """The user of a process."""
    return int(status(pid, "Uid"))


def status(pid: int, name: str) -> str:
    """The first value of a line of a process's status."""
    text = Path(f"/proc/{pid}/status").read_text()
    values = re.search(rf"^{name}:[ \t]*(\S*)", text, re.MULTILINE)
    return values[1] if values else ""


@as_root
@pytest.mark.parametrize("source", ["bpf", "proc"])
def test_who_a_recorder_is(source: str, tmp_path: Path) -> None:
    """The collector has the documented capabilities and no more, the worker none and no root."""
    with recording_of(source, tmp_path / "r.kcap") as recorder:
        found = processes(recorder)
        collector, worker = (rights.held(str(found[name])) for name in ("collector", "worker"))
        of_source = {name for name, why in rights.SOURCES.items() if why.startswith(f"{source}: ")}
        assert {*rights.names(collector.effective)} == of_source | rights.COLLECTOR.keys()
        assert collector.permitted == collector.bounding == collector.effective
        assert collector.no_new_privs
        assert (worker.effective, worker.permitted, worker.bounding) == (0, 0, 0)
        assert worker.no_new_privs
        assert worker.seccomp == 2
        user = rights.chosen(None)
        assert uid_of(found["worker"]) == user.uid != 0
        assert status(found["worker"], "Gid") == str(user.gid)
        assert status(found["worker"], "Groups") == ""
        for pid, permitted in (
            (found["collector"], collector.permitted),
            (found["worker"], 0),
        ):  # rights are a thread's: one that was started before would have kept them
            tasks = [each.name for each in Path(f"/proc/{pid}/task").iterdir()]
            assert {rights.held(f"{pid}/task/{tid}").permitted for tid in tasks} == {permitted}


@contextmanager
def recording_of(source: str, path: Path, *words: object) -> Iterator[Recording]:
    """Record with a source."""
    if source == "bpf":
        with recording(path, "--source", "bpf", *words) as recorder:
            yield recorder
        return
    command = [*COMMAND, "record", "-o", path, "--source", source, "--duration", "5m", *words]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    recorder = Recording.__new__(Recording)
    recorder.process = process
    try:
        assert process.stderr is not None
        while "recording with" not in process.stderr.readline():
            assert process.poll() is None
        yield recorder
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


@as_root
def test_what_a_worker_needs_is_loaded_before(tmp_path: Path) -> None:
    """Nothing is imported once the rights are gone: Python's folders may not be for everybody."""
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "record", "-o"]
    done = subprocess.run(
        [*command, tmp_path / "r.kcap", "--events", "all", "--duration", "1.5"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    before, _, after = done.stderr.partition("kcap: recording with")
    assert "import time:" in before
    assert "import time:" not in after.partition("\n")[2]


@as_root
def test_calls_that_are_given_up_fail() -> None:
    """No program, process, socket or other door of the kernel; without the filter, there is."""
    attempts: dict[str, Callable[[], object]] = {
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "fork": os.fork,
        "socket": socket.socket,
        "unshare": lambda: libc_call("unshare", 0x20000),
        "ptrace": lambda: libc_call("ptrace", 0, 0, 0, 0),
        "mount": lambda: libc_call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "chroot": lambda: os.chroot("/"),
        "kill": lambda: os.kill(os.getppid(), 0),
        "subprocess": lambda: subprocess.run(["/bin/true"], check=True),
        "a pipe's signal": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()),
        "prlimit": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
    }

    def all_fail() -> list[str]:
        rights.keep(rights.BITS)
        seccomp.forbid()
        allowed = []
        for name, attempt in attempts.items():
            try:
                attempt()
                allowed.append(name)
            except PermissionError:
                pass
        thread = threading.Thread(target=lambda: allowed.append("thread"))
        thread.start()
        thread.join()
        return allowed

    assert child(all_fail) == "['thread']"
    assert child(attempts["unshare"]) == "0"
    assert child(attempts["chroot"]) == "None"


def libc_call(name: str, *words: object) -> int:
    """A function of the C library, with its error as Python has it."""
    library = ctypes.CDLL(None, use_errno=True)
    if library[name](*words) < 0:
        raise OSError(ctypes.get_errno(), name)
    return 0


def test_every_refused_call_is_in_the_filter() -> None:
    """The filter refuses each named call, and calls of the machine's other numbers; no other."""
    code = seccomp._program(PID, network=False, forks=False, but=())
    words = [
        (int.from_bytes(code[at : at + 2], "little"), code[at + 2], code[at + 3],
         int.from_bytes(code[at + 4 : at + 8], "little"))
        for at in range(0, len(code), 8)
    ]  # fmt: skip

    def verdict(number: int, argument: int = 0, second: int = 0, arch: int = 0xC000003E) -> int:
        at, value = 0, 0
        while True:
            what, yes, no, operand = words[at]
            at += 1
            if what == 0x20:
                value = {0: number, 4: arch, 16: argument, 24: second}[operand]
            elif what == 0x06:
                return operand
            else:
                holds = {0x15: value == operand, 0x35: value >= operand, 0x45: value & operand}
                at += yes if holds[what] else no

    refused = {**seccomp.REFUSED, **seccomp.NETWORK}
    assert {n for n in range(600) if verdict(n) == 0x50001} == {*refused.values(), 56, 234}
    assert verdict(435) == 0x50026  # clone3: the C library takes clone then
    assert verdict(56, 0x10000) == verdict(0) == verdict(1) == 0x7FFF0000
    assert verdict(0x40000000 | 1) == 0x50001
    assert verdict(234, PID) == verdict(16, 0, 0x5401) == verdict(16, 0, 0x541B) == 0x7FFF0000
    assert verdict(16, 2, 0x5412) == verdict(16, 2, 0x541C) == verdict(234, PID + 1) == 0x50001
    assert {c for c in range(2000) if verdict(72, 3, c) == 0x50001} == {8, 10, 15}
    assert [verdict(302, pid) == 0x50001 for pid in (0, PID, PID + 1)] == [False, False, True]
    assert verdict(1, arch=0x40000003) == 0x80000000


@given(st.text(max_size=16), st.binary(max_size=4096), st.binary(max_size=1 << 18))
def test_questions_and_answers_come_as_they_were(name: str, argument: bytes, said: bytes) -> None:
    """What is asked arrives, and what is answered."""
    name = name.encode("utf-8", "replace").decode()
    with channel_pair() as (asking, serving):
        got = []

        def answer(content: bytes) -> Answer:
            got.append(content)
            return Answer(said)

        thread = threading.Thread(target=serving.serve, args=({name: answer},))
        thread.start()
        assert asking.ask(name, argument) == said
        thread.join()
        assert got == [argument]


@contextmanager
def channel_pair() -> Iterator[tuple[Channel, Channel]]:
    """Both ends, closed afterwards."""
    one, other = Channel.pair()
    try:
        yield one, other
    finally:
        one.close()
        other.close()


def test_errors_and_descriptors_go_over(tmp_path: Path) -> None:
    """An error arrives with hint and kind, a descriptor open; what nobody serves is an error."""
    (tmp_path / "f").write_text("content")

    def fail(_: bytes) -> Answer:
        raise OutputError("there is no room", file="F", hint="make some")

    answers = {
        "fail": fail,
        "open": lambda name: Answer(descriptor=os.open(name, os.O_RDONLY)),
    }
    with channel_pair() as (asking, serving):
        thread = threading.Thread(target=lambda: [serving.serve(answers) for _ in range(3)])
        thread.start()
        with pytest.raises(OutputError, match="F: there is no room") as caught:
            asking.ask("fail")
        assert caught.value.hint == "make some"
        with os.fdopen(asking.descriptor("open", bytes(tmp_path / "f"))) as stream:
            assert stream.read() == "content"
        with pytest.raises(KcapError, match="no answer to 'exec'"):
            asking.ask("exec")
        thread.join()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00",
        b"\x07" + bytes(8),
        bytes([0]) + (1 << 30).to_bytes(4, "little") + bytes(4),
        bytes([0]) + bytes(4) + (channels.QUESTION_BYTES + 1).to_bytes(4, "little"),
        b"\xff" * 100,
    ],
)
def test_nonsense_ends_the_conversation(said: bytes) -> None:
    """Whoever has taken over the worker gets nothing for questions that are none."""
    ours, theirs = socket.socketpair()
    serving = Channel(ours)
    serving.wait_at_most(0.2)
    theirs.sendall(said)
    assert not serving.serve({"": lambda _: Answer(b"secret")}) or not said
    theirs.close()
    assert not serving.serve({})
    serving.close()


@pytest.mark.parametrize("keeps", [True, False])
def test_only_what_may_go_is_removed(keeps: bool, tmp_path: Path) -> None:
    """A worker gets its own files removed, and former ones only where some are to go."""
    former, own, other = (str(tmp_path / f"{n}.kcap") for n in range(3))
    for name in (former, other):
        Path(name).touch()
    inside = [former] if keeps else []
    outputs = PartedOutputs(LocalOutputs(synced=False), lambda name: name != other, inside)
    answers = outputs.answers()
    created = answers["create"](os.fsencode(own))
    assert created.descriptor is not None
    os.close(created.descriptor)
    answers["remove"](os.fsencode(own))
    with contextlib.nullcontext() if keeps else pytest.raises(OutputError, match="not for this"):
        answers["remove"](os.fsencode(former))
    with pytest.raises(OutputError, match="none of the recording's files"):
        answers["remove"](os.fsencode(other))
    assert {path.name for path in tmp_path.iterdir()} == (
        {"2.kcap"} if keeps else {"0.kcap", "2.kcap"}
    )


def test_what_a_client_writes_into_the_shared_page_stops_no_prober() -> None:
    """Who starts readers goes on, and says what there is over whatever stands there."""
    page = mmap.mmap(-1, PAGE_BYTES)
    page[:] = b"\xff" * PAGE_BYTES
    shared = Shared(page)
    assert len(shared.pids) == 1  # the same number, but not as often as it says
    shared.tell([3, 4], 1)
    assert (shared.pids, shared.stuck, shared.changes) == ({3, 4}, 1, 0)


def test_who_asks_nobody_is_told() -> None:
    """Where the other end is gone, that is an error of its own."""
    asking, serving = Channel.pair()
    serving.close()
    with pytest.raises(GoneError):
        asking.ask("counts")
    asking.close()


def test_the_user_is_one_who_can_do_little(tmp_path: Path) -> None:
    """kcap before nobody, a name, a number; never root, nor somebody who is not there."""
    users = tmp_path / "passwd"
    users.write_text("root:x:0:0::/:\nnobody:x:65534:65534::/:\nann:x:1000:100::/:\nbad:x:y:z\n")
    path = str(users)
    assert rights.chosen(None, path) == ("nobody", 65534, 65534)
    assert rights.chosen("ann", path) == rights.chosen("1000", path) == ("ann", 1000, 100)
    assert rights.chosen("4000", path) == ("4000", 4000, 4000)
    for name in ("root", "0"):
        with pytest.raises(PrivilegeError):
            rights.chosen(name, path)
    for name in ("bad", "eve", "-1", "99999999999"):
        with pytest.raises(KcapError, match="there is no user"):
            rights.chosen(name, path)
    users.write_text(users.read_text() + "kcap:x:900:900::/:\n")
    assert rights.chosen(None, path).name == "kcap"
    assert rights.chosen(None, str(tmp_path / "none")) == ("nobody", 65534, 65534)


@as_root
def test_a_killed_collector_leaves_a_closed_capture(tmp_path: Path) -> None:
    """The worker ends the recording, and says what nobody can know any more."""
    path = tmp_path / "r.kcap"
    recorder = Recording(path, "--source", "bpf")
    worker = processes(recorder)["worker"]
    recorder.process.kill()
    recorder.process.wait()
    limit_s = time.monotonic() + 20
    with contextlib.suppress(FileNotFoundError):  # it has ended, and whoever took it over knows
        while status(worker, "State") != "Z":
            assert time.monotonic() < limit_s
            time.sleep(0.05)
    assert recorder.process.stderr is not None
    recorder.process.stderr.close()
    assert info(path)["state"] == "closed"
    with kcap.open(path) as capture:
        assert any("is gone" in loss.reason for loss in capture.info.losses)


@as_root
def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    """What was committed can be read, and the exit code says that something is missing."""
    path = tmp_path / "r.kcap"
    recorder = Recording(path, "--source", "bpf")
    os.kill(processes(recorder)["worker"], signal.SIGKILL)
    said = recorder._ended()
    assert recorder.process.returncode == 3
    assert "killed by SIGKILL" in said
    assert info(path)["state"] == "open"


def test_of_what_the_shell_had_open_the_outputs_stay() -> None:
    """A worker can't read what is typed at the terminal, nor what else was open; its own it can."""
    terminal, line = os.openpty()
    own, _ = os.pipe()

    def typed() -> list[object]:
        strange = os.dup(own)
        for fd, inheritable in ((0, line), (1, line), (2, line), (strange, own)):
            os.dup2(inheritable, fd)
        before = os.read(2, 100)
        collector.let_go_of_inherited()
        os.write(2, b"said")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.read(2, 100)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(strange)
        return [before, os.read(0, 100), os.fstat(own).st_nlink]

    os.write(terminal, b"password\nsecond\n")
    assert child(typed) == repr([b"password\n", b"", 1])
    for fd in (terminal, line, own):
        os.close(fd)


def test_a_question_that_never_ends_is_the_last() -> None:
    """Bytes that come one by one do not keep the collector from everything else."""
    asking, serving = socket.socketpair()
    channel = Channel(serving)
    channel.wait_at_most(0.4)
    ended = threading.Event()

    def trickle() -> None:
        asking.sendall(bytes([0]) + bytes(4) + channels.QUESTION_BYTES.to_bytes(4, "little"))
        while not ended.wait(0.05):
            asking.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    began_s = time.monotonic()
    assert not channel.serve({"": lambda _: Answer()})
    assert 0.3 < time.monotonic() - began_s < 5
    ended.set()
    thread.join()
    channel.close()
    asking.close()


@as_root
def test_who_asks_three_times_is_obeyed(tmp_path: Path) -> None:
    """A worker that neither ends nor waits for its output, as a stopped one, is killed then."""
    recorder = Recording(tmp_path / "r.kcap", "--source", "bpf")
    worker = processes(recorder)["worker"]
    try:
        os.kill(worker, signal.SIGSTOP)
        for _ in range(2):
            recorder.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                recorder.process.wait(1.5)
        recorder.process.send_signal(signal.SIGINT)
        said = recorder._ended()
    finally:
        recorder.process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    assert recorder.process.returncode == 3
    assert "killed by SIGKILL" in said


_BEGUN = """
import contextlib, os, signal
from kcap.tools import live
with {guard}:
    try:
        os.kill(os.getpid(), signal.{name})
        print("went on", flush=True)
    finally:
        print("undone", flush=True)
"""


@pytest.mark.parametrize(
    ("guard", "name", "said"),
    [
        ("live.undoing()", "SIGTERM", "undone\n"),
        ("live.undoing()", "SIGHUP", "undone\n"),
        ("contextlib.nullcontext()", "SIGTERM", ""),
    ],
)
def test_an_early_end_undoes_what_was_begun(guard: str, name: str, said: str) -> None:
    """A signal before a recording has begun undoes, and ends as that signal does."""
    code = _BEGUN.format(guard=guard, name=name)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == (said, -getattr(signal, name))


def test_nohup_holds() -> None:
    """A closed terminal ends nothing where whoever started us said so."""
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)" + _BEGUN.format(
        guard="live.undoing()", name="SIGHUP"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "went on\nundone\n")
