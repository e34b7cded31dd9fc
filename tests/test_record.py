"""Recording: however it ends, what was seen before is in a capture that can be read."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from badinput_support import ROOT
from cli_support import run
from live_support import kill_all

PROC = ("--source", "proc")
COMMAND = (sys.executable, "-m", "kcap.tools", "record", *PROC)
READY = r"kcap: recording with netlink-proc: [^\n]+\n"
"""What is said first: the recording runs."""

DISK_BYTES = 270 << 10
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def recording(
    folder: Path, *words: str | Path, **options: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A recording that runs, and has written its first records."""
    process: subprocess.Popen[bytes] = subprocess.Popen(
        [*COMMAND, *map(str, words)],
        cwd=folder,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )
    try:
        target = folder / "r.kcap"
        until(lambda: process.poll() is not None or (target.exists() and target.stat().st_size > 0))
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def until(holds: Callable[[], bool], limit_s: float = 20) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def make_processes(count: int = 20) -> None:
    """Let some processes start and end."""
    for _ in range(count):
        subprocess.run(["true"], check=True)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """How a recording ended, and what it said."""
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors.decode()


def info(path: Path, code: int = 0) -> dict[str, object]:
    """What `kcap info` says of a capture."""
    result = run("info", "--json", path)
    assert result.exit_code == code, result.stderr
    found: dict[str, object] = json.loads(result.stdout)
    return found


def check_closed(path: Path) -> dict[str, object]:
    """A closed capture in which everything agrees."""
    assert run("verify", path).exit_code == 0
    found = info(path)
    assert found["state"] == "closed"
    assert path.stat().st_mode & 0o777 == 0o600
    return found


# Ends in order


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_recording_in_order(number: signal.Signals, tmp_path: Path) -> None:
    """Exit code 0, a closed and verified file; the last lines have digest, path and losses."""
    with recording(tmp_path, "-o", "r.kcap") as process:
        time.sleep(0.3)
        make_processes()
        process.send_signal(number)
        code, errors = ended(process)

    assert code == 0, errors
    found = check_closed(tmp_path / "r.kcap")
    assert found["types"]["exec"] >= 20  # type: ignore[index]
    events = f"{found['events']:,}"
    digest = hashlib.sha256((tmp_path / "r.kcap").read_bytes()).hexdigest()
    last = rf"kcap: {events} events, \S+ \S+, 0 lost, exit code 0: r\.kcap\n"
    assert re.fullmatch(rf"{READY}kcap: sha256 {digest}\n{last}", errors), errors


@pytest.mark.root
def test_a_second_signal_changes_nothing(tmp_path: Path) -> None:
    """Impatience does not cost the file."""
    with recording(tmp_path, "-o", "r.kcap") as process:
        make_processes(3)
        for _ in range(3):
            process.send_signal(signal.SIGINT)
        code, errors = ended(process)

    assert code == 0, errors
    check_closed(tmp_path / "r.kcap")


@pytest.mark.root
def test_a_signal_at_any_moment_leaves_a_closed_file_or_none(tmp_path: Path) -> None:
    """From the very start: no half file, never a traceback."""
    for delay in (0.0, 0.1, 0.2, 0.3, 0.4, 0.6):
        path = tmp_path / f"{delay}.kcap"
        process = subprocess.Popen(
            [*COMMAND, "-o", path], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(delay)
        process.terminate()
        code, errors = ended(process)
        assert "Traceback" not in errors
        if path.exists():
            assert code == 0, (delay, errors)
            check_closed(path)
        else:
            assert code in (0, -signal.SIGTERM), (delay, errors)


@pytest.mark.root
def test_limits_end_a_recording(tmp_path: Path) -> None:
    """--duration, --count and --max-size each end it with exit code 0 and a closed file."""
    begun = time.monotonic()
    with recording(tmp_path, "-o", "r.kcap", "--duration", "1.5s") as process:
        assert ended(process)[0] == 0
    assert 1.4 < time.monotonic() - begun < 12
    check_closed(tmp_path / "r.kcap")

    (tmp_path / "r.kcap").unlink()
    with recording(tmp_path, "-o", "r.kcap", "--count", "7") as process:
        make_processes()
        assert ended(process)[0] == 0
    assert check_closed(tmp_path / "r.kcap")["events"] == 7

    (tmp_path / "r.kcap").unlink()
    with recording(tmp_path, "-o", "r.kcap", "--max-size", "20K") as process:
        for _ in range(200):
            if process.poll() is not None:
                break
            make_processes(20)
        assert ended(process)[0] == 0
    check_closed(tmp_path / "r.kcap")
    assert (tmp_path / "r.kcap").stat().st_size < 200 << 10


@pytest.mark.root
@pytest.mark.parametrize("words", [("-w", "evt.name = 'exit'"), ("evt.name", "=", "'exit'")])
def test_a_filter_keeps_its_events_and_counts_the_others(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    """Behind -w or as words; what was left out is said, with the filter, and is no failure."""
    with recording(tmp_path, *words, "-o", "r.kcap") as process:
        make_processes(20)
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 0
    found = check_closed(tmp_path / "r.kcap")
    assert set(found["types"]) == {"exit"}  # type: ignore[call-overload]
    losses = found["loss"]
    assert isinstance(losses, list)
    (loss,) = losses
    assert loss["kind"] == "filtered"
    assert loss["count"] > 20
    assert "evt.name = 'exit'" in loss["reason"]


# Ends out of order


@pytest.mark.root
def test_a_kill_leaves_an_open_capture_with_what_was_flushed(tmp_path: Path) -> None:
    """kill -9: everything up to the last commit is readable, exit code 3, and info says open."""
    path = tmp_path / "r.kcap"
    process = subprocess.Popen(
        [*COMMAND, "-o", path, "--durability", "400ms"], env=ENV, stderr=subprocess.DEVNULL
    )
    until(lambda: path.exists() and path.stat().st_size > 0)
    time.sleep(0.3)
    subprocess.run(["/bin/sh", "-c", "exit 41"], check=False)
    size = path.stat().st_size
    until(lambda: path.stat().st_size > size)
    until(lambda: '"arg_exit_code":41' in run("cat", "--format", "jsonl", path).stdout)
    kill_all(process.pid)
    process.wait()

    found = info(path, code=3)
    assert found["state"] in ("open", "torn")
    result = run("cat", "--format", "jsonl", path)
    assert result.exit_code == 3
    assert result.stdout.count("\n") == found["events"]
    assert "torn" in result.stderr
    assert run("verify", path).exit_code == 3


@pytest.mark.root
@pytest.mark.parametrize("force", [pytest.param((), marks=pytest.mark.long), ("--force",)])
def test_a_full_disk_leaves_a_closed_capture(force: tuple[str, ...], tmp_path: Path) -> None:
    """The recording ends by itself, exit code 3; what it has is closed, and says why it ends."""
    path = tmp_path / "r.kcap"
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({DISK_BYTES}, {DISK_BYTES}));"
        "from kcap.tools.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "record", *PROC, "-o", path, "--durability", "50ms", *force],
        env=ENV,
        stderr=subprocess.PIPE,
    )
    for _ in range(300):
        if process.poll() is not None:
            break
        make_processes(20)
    exit_code, errors = ended(process)

    assert exit_code == 3, errors
    assert f"kcap: warning: there is no room left: the recording ends: {path}\n" in errors, errors
    assert path.stat().st_size <= DISK_BYTES
    assert run("verify", path).exit_code == 0
    found = json.loads(run("info", "--json", path).stdout)
    assert found["state"] == "closed"
    (lost,) = [one for one in found["loss"] if one["kind"] == "lost"]
    assert lost["reason"] == "the disk was full"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.root
def test_a_disk_that_is_full_is_said_at_once(tmp_path: Path) -> None:
    """Where there is no room for a capture nothing is begun, exit code 1."""
    path = tmp_path / "r.kcap"
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from kcap.tools.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "record", *PROC, "-o", path, "--duration", "5"],
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no room for a capture" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_a_reader_that_leaves_is_a_failure() -> None:
    """`kcap record -o - | head` ends by itself; a recording that nobody keeps has failed."""
    with subprocess.Popen(
        [*COMMAND, "-o", "-", "--duration", "20"],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(100)
        process.stdout.close()
        errors = process.stderr.read()

    assert process.returncode == 1
    assert errors.startswith(b"kcap: -: writing failed: Broken pipe"), errors


# Refusals


@pytest.mark.root
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_where_the_kernel_refuses_nothing_is_left_behind(
    force: tuple[str, ...], tmp_path: Path, program: Callable[[str], str]
) -> None:
    """Exit code 1, one line that says what is missing, and an untouched folder."""
    path = tmp_path / "r.kcap"
    if force:
        path.write_text("precious")
    done = subprocess.run(
        [program("unshare"), "--net", *COMMAND, "-o", path, *force],
        env=ENV,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, b""), done.stderr
    assert re.match(r"kcap: the kernel[^\n]* expected [^\n]*initial", done.stderr.decode())
    assert [p.name for p in tmp_path.iterdir()] == (["r.kcap"] if force else [])
    if force:
        assert path.read_text() == "precious"


def test_an_ordinary_user_records_or_is_told_why_not(
    tmp_path: Path, program: Callable[[str], str]
) -> None:
    """Kernels since 6.6 may let everybody listen; all others refuse, and no file stays."""
    path = tmp_path / "r.kcap"
    drop: list[str] = []
    if os.geteuid() == 0:  # root without capabilities is as anyone else
        drop = [program("setpriv"), "--bounding-set=-all", "--inh-caps=-all"]
    words = [*drop, *COMMAND, "-o", path, "--duration", "0.5"]
    done = subprocess.run(words, env=ENV, capture_output=True, timeout=60, check=False)

    if done.returncode == 1:
        assert re.match(r"kcap: [^\n]*expected root or CAP_NET_ADMIN", done.stderr.decode())
        assert b"\nhint: run as root" in done.stderr
        assert not path.exists()
    else:
        assert done.returncode == 0, done.stderr
        check_closed(path)


def test_a_refusal_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on any host: a kernel that says no is exit code 1, and leaves no file."""

    def refused(_: int) -> None:
        raise PermissionError

    monkeypatch.setattr("socket.socket.bind", lambda *_: refused(0))
    result = run("record", *PROC, "-o", tmp_path / "r.kcap")

    assert result.exit_code == 1
    assert "expected root or CAP_NET_ADMIN" in result.stderr
    assert "hint: run as root" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.root
def test_an_existing_recording_is_not_overwritten(tmp_path: Path) -> None:
    """Without --force the old file stays; with it the new one takes its place at the end."""
    path = tmp_path / "r.kcap"
    path.write_text("precious")
    refused = run("record", "-o", path, "--duration", "0.3")
    assert (refused.exit_code, path.read_text()) == (1, "precious")
    assert "--force" in refused.stderr

    assert run("record", "-o", path, "--duration", "0.3", "--force").exit_code == 0
    check_closed(path)


@pytest.mark.root
def test_a_default_name_says_host_and_time(tmp_path: Path) -> None:
    """Without -o the capture is HOST-TIME.kcap in the current folder, and the last line says so."""
    done = subprocess.run(
        [*COMMAND, "--duration", "0.3"], cwd=tmp_path, env=ENV, capture_output=True, check=True
    )

    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"[\w.-]+-\d{8}T\d{6}Z\.kcap", path.name)
    assert done.stderr.decode().endswith(f": {path.name}\n")
    check_closed(path)


@pytest.mark.parametrize(
    "words", [("--duration", "soon"), ("--max-size", "big"), ("--count", "-1"), ("--nope",)]
)
def test_wrong_usage_leaves_no_file(words: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 2 before anything is opened."""
    assert run("record", "-o", tmp_path / "r.kcap", *words).exit_code == 2
    assert not list(tmp_path.iterdir())


# The status line


@pytest.mark.root
def test_the_status_line_is_for_terminals(tmp_path: Path) -> None:
    """On a terminal one line is written over; into a pipe or file goes the last line alone."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "-o", "r.kcap", "--duration", "1.2"],
        cwd=tmp_path,
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=follower,
    )
    os.close(follower)
    printed = b""
    try:
        while data := os.read(leader, 4096):
            printed += data
    except OSError:
        pass  # how Linux says that the last process closed the terminal
    os.close(leader)
    assert process.wait(30) == 0

    ready, *updates, digest, last = re.split("\r\x1b\\[K|\r\n(?=.)", printed.decode())
    assert re.match(READY, f"{ready}\n")
    assert len(updates) > 2
    status = r"00:00:0\d  [\d,]+ events  [\d.]+ \w+  0 lost"
    assert all(re.fullmatch(status, u) for u in updates if u), updates
    assert re.fullmatch(r"kcap: sha256 \w{64}", digest)
    assert re.fullmatch(r"kcap: .* exit code 0: r\.kcap\r\n", last)

    with recording(tmp_path, "-o", "r2.kcap", "--duration", "0.6") as piped:
        assert "\x1b" not in ended(piped)[1]
