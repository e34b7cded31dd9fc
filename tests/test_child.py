"""Child processes: fresh, with few rights, and never mistaken for alive or dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kcap import trust
from kcap.errors import KcapError
from kcap.guard import landlock, rights
from kcap.guard.child import Child

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

HERE = str(Path(__file__).parent)


@contextmanager
def child(
    settings: Mapping[str, Any] | None = None, *, network: bool = False, **options: Any
) -> Iterator[Child]:
    """One that finds its target beside this file."""
    sys.path.insert(0, HERE)
    try:
        made = Child("child_targets", settings or {}, network=network, **options)
    finally:
        sys.path.remove(HERE)
    with made:
        yield made


def ask(made: Child, question: str) -> Any:
    made.requests.write(json.dumps(question).encode() + b"\n")
    made.requests.flush()
    return json.loads(made.replies.readline())


def test_a_child_has_no_rights() -> None:
    user = rights.chosen("nobody") if rights.may_become() else None
    with child({"a": [1]}, user=user) as made:
        status = dict(
            line.split(":\t", 1) for line in ask(made, "status").splitlines() if ":\t" in line
        )
        answers = [ask(made, q) for q in ("fork", "exec", "socket", "settings")]

    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh")} == {0}
    assert answers == ["PermissionError"] * 3 + [{"a": [1]}]
    uids = set(status["Uid"].split())
    assert uids == {str(user.uid if user else os.getuid())}
    if user:
        assert status["Groups"].strip() == ""


def test_what_it_may_is_what_was_asked_for() -> None:
    with child(network=True) as free, child(memory_bytes=256 << 20) as limited:
        assert [ask(free, q) for q in ("socket", "memory", "fork")] == [
            "done",
            "done",
            "PermissionError",
        ]
        assert ask(limited, "memory") == "MemoryError"


def test_it_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with child() as one, child() as other:
        known, random, hashed, path = ask(one, "environment")
        assert ask(other, "environment")[2] == hashed

    assert not random
    assert "SECRET" not in known
    assert (known["TZ"], known["LC_ALL"]) == ("UTC", "C.UTF-8")
    assert "" not in path


def test_a_refusal_is_the_parents_error() -> None:
    with (
        pytest.raises(KcapError, match="f: not so at line 3: expected x") as e,
        child({"refuse": 1}),
    ):
        pass
    assert e.value.hint == "do y"
    with pytest.raises(KcapError, match=r"ended .* \(exit code 7\)"), child({"die": 1}):
        pass


def test_how_it_ended_is_told() -> None:
    with child() as made:
        assert made.ended() is None
        assert made.close() == 0
    with child() as made:
        os.kill(made.pid, signal.SIGKILL)
        while made.ended() is None:
            time.sleep(0.01)
        assert made.ended() == -signal.SIGKILL
    with child() as made:
        made.kill()
        made.kill()
        assert made.ended() == -signal.SIGKILL


def test_a_fork_of_its_parent_does_not_take_it_for_dead() -> None:
    """A recorder's worker is such a fork: it can't wait for what is not its child."""
    with child() as made:
        told, tell = os.pipe()
        if not (pid := os.fork()):
            before = made.ended()
            made.requests.write(b'"settings"\n')
            made.requests.flush()
            answer = made.replies.readline()
            os.write(tell, f"{before} {answer!r}".encode())
            os._exit(0)
        os.close(tell)
        with os.fdopen(told, "rb") as stream:
            assert stream.read() == b"None b'{}\\n'"
        os.waitpid(pid, 0)


def test_it_ends_with_its_parent() -> None:
    told, tell = os.pipe()
    if not (pid := os.fork()):
        with child() as made:
            os.write(tell, str(made.pid).encode())
            os._exit(0)
    os.waitpid(pid, 0)
    number = int(os.read(told, 20))
    for _ in range(200):
        if not Path(f"/proc/{number}").exists():
            return
        time.sleep(0.02)
    pytest.fail(f"{number} goes on")


@pytest.mark.skipif(not landlock.version(), reason="the kernel has no Landlock")
@pytest.mark.parametrize("apart", [True, False])
def test_processes_of_one_user_are_kept_apart(apart: bool) -> None:
    """Who is kept apart can't open another process's memory, though it is of the same user."""
    code = f"""
import os, sys
sys.path.insert(0, {str(trust.HOME)!r})
from kcap.guard import landlock, rights
rights._prctl("PR_SET_NO_NEW_PRIVS", 38, 1)
assert not {apart} or landlock.keep_apart()
open("/proc/self/status").close()
os.open(f"/proc/{{os.getppid()}}/mem", os.O_RDWR)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # noqa: PLW1510
    assert (ended.returncode, "PermissionError" in ended.stderr) == (int(apart), apart)
