"""What a filament may not: it ends the run, which names its file, the line and the event."""

from __future__ import annotations

import io
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filament_support import ORIGIN, START_NS, events, filament, play

from kcap.errors import DamagedError, KcapError
from kcap.filament import connection, frames, worker
from kcap.filament.connection import Connection
from kcap.filament.limits import Limits
from kcap.filament.table import Plain
from kcap.filament.tap import Filaments
from kcap.guard import rights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the rights of Linux")

TOLD = {"what": "w", "path": "p", "line": 1, "function": "f", "position": 0}
SET = {"filter": None, "filter_line": None, "interval_s": 1, "ticks": True}

HANDLER = "def on_next_event(event):\n    if event['seq'] == 2:\n        "

DEEDS: dict[str, tuple[str, str, int | None]] = {
    "loop": ("while True: pass", r"took longer than 0\.3 s", 4),
    "regular expression": (
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')", r"took longer than 0\.3 s", 4,
    ),
    "questions": ("while True: find_process(1)", "gave more than 1,048,576 bytes in one call", 4),
    "memory": (
        "kept = [bytes(1 << 20) for _ in range(1000)]", "asked for more memory than the 512 MiB", 4,
    ),
    "one big value": ("bytearray(1 << 40)", "asked for more memory than", 4),
    "exit": ("import sys; sys.exit(0)", r"called sys\.exit", 4),
    "end": ("import os; os._exit(0)", r"its process ended by itself \(exit code 0\)", None),
    "crash": ("import ctypes; ctypes.string_at(0)", "its process was ended by SIGSEGV", 4),
    "prints": ("while True: print('x' * 100)", "gave more than 1,048,576 bytes in one call", 4),
    "fork": ("import os; os.fork()", "starts a process, which a filament may not", 4),
    "program": ("import subprocess; subprocess.run(['id'])", "starts a process", 4),
    "shell": ("import os; os.system('id')", "starts a process", 4),
    "exec": ("import os; os.execv('/bin/true', ['true'])", "starts a process", 4),
    "socket": ("import socket; socket.socket()", "uses the network", 4),
    "socket in try": (
        "import socket\n        try: socket.socket()\n        except BaseException: pass",
        "uses the network",
        5,
    ),
    "resolver": ("import socket; socket.getaddrinfo('localhost', 1)", "uses the network", 4),
    "thread": ("import threading; threading.Thread(target=print).start()", "starts a thread", 4),
    "exception": ("{}['missing']", "KeyError: 'missing'", 4),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt", 4),
    "unspeakable": (
        "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})()", "Mute", 4,
    ),
    "recursion": ("f = lambda: f(); f()", "RecursionError", 4),
    "row": ("add_row([1])", r"ValueError: add_row\(\) before columns\(\)", 4),
    "late filter": ("kfilter('evt.pid = 1')", r"RuntimeError: the filter is set in on_init", 4),
    "late interval": ("interval(3)", r"RuntimeError: the interval is set in on_init", 4),
    "severity": (
        "emit_alert('a', 'b', severity='grave')",
        "ValueError: severity 'grave': expected normal", 4,
    ),
}  # fmt: skip
"""What a filament does at its third event; what is said of it, and the line."""

HARD = {"regular expression", "end", "crash"}
"""Ends in which it has no time to hand on what it printed last."""


@pytest.mark.parametrize("deed", DEEDS)
def test_it_is_contained(deed: str, tmp_path: Path) -> None:
    """The run ends with exit code 1, naming filament, line and event; what was before is kept."""
    code, said, line = DEEDS[deed]
    body = f"{HANDLER}{code}\n    print(event['seq'])\n"
    begin = time.monotonic()
    with pytest.raises(KcapError, match=said) as caught:
        play(filament(tmp_path, body), events([0.0, 0.1, 0.2, 0.3]), call_s=0.3)

    error = caught.value
    assert time.monotonic() - begin < 20
    assert error.exit_code == 1
    assert error.file == str(tmp_path / "tried.py")
    assert error.line == line
    assert f"the filament tried failed in on_next_event, event {ORIGIN}:2 (tick): " in str(error)
    if deed not in HARD:
        assert error.printed.startswith("0\n1\n")  # type: ignore[attr-defined]
    assert "3" not in error.printed  # type: ignore[attr-defined]


def test_what_is_allowed_is_not_stopped(tmp_path: Path) -> None:
    """Negative control: a call just below the limits, with much to do and to say, goes on."""
    body = """
import re, time
kept = []
def on_next_event(event):
    kept.append(bytearray(50 << 20))
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    print("x" * 500_000)
    for _ in range(1000):
        find_process(event["pid"])
"""
    found = play(filament(tmp_path, body), events([0.0, 0.1, 0.2]), call_s=0.5)

    assert len(found.text) == 3 * 500_001


@pytest.mark.long
def test_a_filament_that_stops_its_own_watch_is_ended(tmp_path: Path) -> None:
    """The run itself ends a filament that took the timer away, and still names the event."""
    body = f"""{HANDLER}
        import faulthandler, signal
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        while True: pass
"""
    with pytest.raises(KcapError, match=rf"event {ORIGIN}:2 \(tick\): took longer than 0\.1 s"):
        play(filament(tmp_path, body), events([0.0, 0.1, 0.2]), call_s=0.1)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ("1 / 0", r"failed in its module: ZeroDivisionError: division by zero at line 2"),
        ("def on_init():\n    1 / 0", r"failed in on_init: ZeroDivisionError.* at line 3"),
        (
            "def on_interval():\n    1 / 0",
            r"failed in on_interval, tick of 2023-11-14 22:13:21\.000000000: Zero.* at line 3",
        ),
        ("def on_stop():\n    1 / 0", r"failed in on_stop: ZeroDivisionError.* at line 3"),
        ("sort_by('a')", r"failed in on_init: ValueError: sort_by\('a'\)"),
        ("interval(0)", r"interval\(0\): expected whole seconds, at least 1 at line 2"),
        ("while True: pass", r"failed in its module: took longer than 0\.3 s at line 2"),
        ("del on_next_event", "on_next_event is no function"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere' at line 2"),
        ("import os; os._exit(3)", r"its process ended by itself \(exit code 3\)"),
    ],
)
def test_functions_other_than_the_handler(body: str, where: str, tmp_path: Path) -> None:
    """What fails before, between and behind the events says where it was."""
    text = f"{body}\ndef on_next_event(event):\n    pass\n"
    if body.startswith("del"):
        text = f"def on_next_event(event):\n    pass\n{body}\n"
    with pytest.raises(KcapError, match=where):
        play(filament(tmp_path, text), events([0.0, 1.5]), call_s=0.3)


def test_what_was_printed_before_the_first_event_is_shown(tmp_path: Path) -> None:
    """A filament that fails in `on_init` has its say first."""
    body = "print(1)\ndef on_next_event(e):\n    pass\ndef on_init():\n    print(2)\n    1 / 0\n"
    with pytest.raises(KcapError, match="failed in on_init: ZeroDivisionError") as caught:
        play(filament(tmp_path, body), [])
    assert caught.value.printed == "1\n2\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["call_s", "memory_bytes", "rows"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    """A limit that leaves room for nothing is a mistake, not a way to turn it off."""
    with pytest.raises(KcapError, match=f"{name} of a filament is 0: expected more than 0"):
        Limits(**{name: 0})  # type: ignore[arg-type]


def test_an_error_in_a_module_beside_it_names_that(tmp_path: Path) -> None:
    """File and line are those of the module in which it happened."""
    (tmp_path / "beside.py").write_text("def fail():\n    return 1 / 0\n")
    with pytest.raises(KcapError) as caught:
        play(
            filament(tmp_path, "import beside\ndef on_next_event(e):\n    beside.fail()\n"),
            events([0.0]),
        )

    assert (caught.value.file, caught.value.line) == (str(tmp_path / "beside.py"), 2)


def test_limits_of_rows_and_alerts(tmp_path: Path) -> None:
    """Too many rows of a table and too many alerts of a run are errors."""
    body = "columns(['a'])\ndef on_next_event(event):\n    add_row([1])\n    emit_alert('a', 'b')\n"
    one, whole = filament(tmp_path, body), events([0.0] * 4)
    assert len(play(one, whole, rows=4, alerts=4).alerts) == 4
    with pytest.raises(KcapError, match=r"ValueError: more than 3 rows.* at line 4"):
        play(one, whole, rows=3)
    with pytest.raises(KcapError, match="raised more than 3 alerts"):
        play(one, whole, alerts=3)


def test_its_process_has_no_rights(tmp_path: Path) -> None:
    """It has no capabilities, can't gain any, is under a filter of calls, and is not root."""
    one = filament(tmp_path, "def on_next_event(event):\n    pass\n")
    tap = Filaments([one], Plain(io.BytesIO()))
    try:
        (pid,) = tap.pids
        held = rights.held(str(pid))
        status = Path(f"/proc/{pid}/status").read_text("ascii")
        limits = Path(f"/proc/{pid}/limits").read_text("ascii")
        files = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
    finally:
        tap.close()

    assert (held.effective, held.permitted) == (0, 0)
    assert held.no_new_privs
    assert held.seccomp == 2
    assert re.search(rf"Max address space +{512 << 20} ", limits)
    uid = rights.chosen(None).uid if os.geteuid() == 0 else os.geteuid()
    assert re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", status, re.MULTILINE)
    assert len(files) <= 6  # the three of every process, its pipes, the memory that it shares


def test_this_process_has_them() -> None:
    """Negative control: who looks has no such filter, so the test before can fail."""
    assert rights.held().seccomp != 2 or not rights.held().no_new_privs


def test_calls_that_python_does_not_tell_of_are_refused(tmp_path: Path) -> None:
    """What goes around Python's own functions meets the kernel's refusal."""
    body = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def on_next_event(event):
    for call in (libc.fork, libc.vfork, lambda: libc.socket(2, 1, 0), lambda: libc.setuid(0),
                 lambda: libc.ptrace(0, 1, 0, 0), lambda: libc.unshare(0x10000000)):
        print(call(), ctypes.get_errno())
"""
    found = play(filament(tmp_path, body), events([0.0])).text

    assert found == "-1 1\n" * 6


def test_what_a_worker_says_is_not_trusted(tmp_path: Path) -> None:
    """Messages that are none, that are too long or of no event end the run, and do no more."""
    bad: list[bytes] = [
        frames.frame(frames.ITEMS, b"no JSON"),
        frames.HEADER.pack(frames.ITEMS, (1 << 32) - 1),
        frames.said(frames.ASK, [0]),
        frames.said(frames.ASK, [0, "secrets"]),
        frames.said(frames.ITEMS, [[99, "out", "text"]]),
        frames.said(frames.ITEMS, [[0, "out", 7]]),
        frames.said(frames.ITEMS, [[0, "table", "t", ["a"], [True], [["1", "2"]]]]),
        frames.said(frames.ITEMS, [[0, "other"]]),
        frames.said(frames.ITEMS, [[0, "alert", "a"]]),
        frames.said(frames.FAILED, {"what": "w"}),
        frames.said(frames.FAILED, TOLD | {"what": 5}),
        frames.said(frames.FAILED, TOLD | {"path": "/elsewhere", "line": []}),
        frames.said(frames.READY, {}),
        frames.said(frames.ITEMS, 5),
        frames.said(frames.ITEMS, []),
        frames.said(frames.ITEMS, [5]),
        frames.said(frames.ITEMS, [[]]),
        frames.said(frames.ITEMS, [["0", "out", "text"]]),
        frames.said(frames.ITEMS, [[0, "alert", "a", "b", 5, []]]),
        frames.said(frames.ASK, [0, [], {}]),
        frames.said(b"?", {}),
    ]
    for message in bad:
        body = f"""
import gc, os
def on_next_event(event):
    find_process
    pipe = next(o._replies for o in gc.get_objects() if type(o).__name__ == "Worker")
    pipe.write({message!r})
    pipe.flush()
    os.read(pipe.fileno(), 1)
"""
        with pytest.raises(KcapError):
            play(filament(tmp_path, body), events([0.0]), call_s=0.2)


@pytest.mark.parametrize(
    "said",
    [
        frames.said(frames.READY, {}),
        frames.said(frames.READY, SET | {"interval_s": 0}),
        frames.said(frames.READY, SET | {"filter": 5}),
        frames.said(frames.READY, [1]),
        frames.said(frames.ITEMS, 5),
        frames.said(frames.ITEMS, [[0, "out", "of no call"]]),
        frames.frame(frames.DONE),
    ],
)
def test_what_a_worker_says_of_its_beginning_is_not_trusted(said: bytes, tmp_path: Path) -> None:
    """Before the first event too, nonsense ends the run with an error of kcap's."""
    body = f"""
import gc, os
pipe = next(o._replies for o in gc.get_objects() if type(o).__name__ == "Worker")
pipe.write({said!r})
pipe.flush()
os._exit(0)
def on_next_event(event):
    pass
"""
    with pytest.raises(KcapError):
        play(filament(tmp_path, body), events([0.0]))


def test_a_filament_that_writes_to_the_pipe_itself_is_limited_too(tmp_path: Path) -> None:
    """What a call may give is counted by the run, whatever the filament's process counts."""
    body = f"""
import gc, os
def on_next_event(event):
    pipe = next(o._replies for o in gc.get_objects() if type(o).__name__ == "Worker")
    message = {frames.said(frames.ITEMS, [[0, "out", "x" * 600]])!r}
    for _ in range(%d):
        pipe.write(message)
    pipe.flush()
"""
    few = play(filament(tmp_path, body % 10), events([0.0]), output_bytes=10_000)
    assert len(few.text) == 6000
    with pytest.raises(KcapError, match="gave more than 10,000 bytes in one call"):
        play(filament(tmp_path, body % 100), events([0.0]), output_bytes=10_000)


def test_a_question_takes_nothing_from_the_event_before(tmp_path: Path) -> None:
    """What an event printed stays before what another filament gave for the next one."""
    one = "def on_next_event(event):\n    find_process(1)\n    print('one', event['seq'])\n"
    two = "def on_next_event(event):\n    print('two', event['seq'])\n"
    both = [filament(tmp_path, one, "one"), filament(tmp_path, two, "two")]
    expected = [f"{name} {number}" for number in range(3) for name in ("one", "two")]
    assert play(both, events([0.0, 0.1, 0.2])).lines == expected


def test_shared_memory_can_not_be_made_shorter(tmp_path: Path) -> None:
    """A filament can't take away the memory that the run reads: that would end it by SIGBUS."""
    body = """
import os
def on_next_event(event):
    for number in range(3, 64):
        try:
            if "memfd" in os.readlink(f"/proc/self/fd/{number}"):
                found = number
        except OSError:
            pass
    try:
        os.ftruncate(found, 0)
    except PermissionError:
        print("refused")
"""
    assert play(filament(tmp_path, body), events([0.0])).text == "refused\n"


def test_a_message_has_limits() -> None:
    """The head of a message that is longer than any is refused before memory is taken for it."""
    pipe = io.BytesIO(frames.HEADER.pack(frames.EVENTS, (1 << 32) - 1))
    with pytest.raises(DamagedError, match="a message of"):
        frames.read(pipe)
    assert frames.read(io.BytesIO(frames.frame(frames.STOP, b"x"))) == (frames.STOP, b"x")
    assert frames.read(io.BytesIO(b"\0")) is None


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    """Where somebody else ends it, between two batches, the run says so."""
    one = filament(tmp_path, "def on_next_event(event):\n    pass\n")
    tap = Filaments([one], Plain(io.BytesIO()))
    try:
        tap.see(events([0.0]))
        os.kill(tap.pids[0], 9)
        with pytest.raises(KcapError, match="its process was ended by SIGKILL"):
            tap.see(events([1.0]))
    finally:
        tap.close()


def test_imports_are_loaded_while_files_can_be_read(tmp_path: Path) -> None:
    """A third-party package that starts threads of its own when it is loaded can be used."""
    body = """
import numpy
def on_next_event(event):
    print(numpy.arange(3).sum())
"""
    assert play(filament(tmp_path, body), events([0.0])).text == "3\n"


def test_the_settings_are_plain(tmp_path: Path) -> None:
    """All that a worker is told fits into JSON, the text of the filament included."""
    import json

    one = filament(tmp_path, "print('é')\ndef on_next_event(event):\n    pass\n")
    given: dict[str, Any] = connection.settings(one, Limits(), ["low"], "/cell")

    assert json.loads(json.dumps(given)) == given
    assert given["text"] == one.text
    assert worker.BEGIN < 0 < worker.END
    assert START_NS > 0
    assert Connection.__doc__
