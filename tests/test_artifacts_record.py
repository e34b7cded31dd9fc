"""``kcap record --artifacts``, live, from the command line to the files taken out again.

The examples of Tracee's introduction to artifacts stand here with their options as they are
printed there, apart from the folder, and from who is followed: a shell of the test's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from badinput_support import ROOT
from cli_support import run

from kcap.format.reader import CaptureReader

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/btf/vmlinux").exists(),
    reason="needs root and the types of the kernel",
)

ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
SHELL = "kcapshell"
FOLLOWED = ("--scope", f"comm={SHELL}", "--scope", "follow")
Row = dict[str, Any]


class Recorder:
    """A recording that runs."""

    def __init__(self, folder: Path, *words: str | Path) -> None:
        self.said = folder / "said"
        command = [sys.executable, "-m", "kcap.tools", "record", "--duration", "5m"]
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [*command, *map(str, words)], cwd=folder, env=ENV, stderr=said
            )
        end = time.monotonic() + 60
        while "recording with" not in self.said.read_text():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)

    def stop(self, *codes: int) -> str:
        """End it with one of these exit codes, 0 where none is named; what it said."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        said = self.said.read_text()
        assert self.process.returncode in (codes or (0,)), said
        assert self.process.returncode or " 0 lost," in said, said
        return said


@contextmanager
def recording(folder: Path, *words: str | Path) -> Iterator[Recorder]:
    """A recording that is ended, whatever happens."""
    made = Recorder(folder, *words)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A shell that nobody else runs, so that a scope by name means the test's own."""
    path = tmp_path / SHELL
    shutil.copy2(Path("/bin/bash").resolve(), path)
    return path


def sh(shell: Path, script: str) -> str:
    """Let the shell do something, and wait until it is recorded."""
    done = subprocess.run(
        [shell, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    time.sleep(0.5)
    return done.stdout


def listed(path: Path, *codes: int) -> list[Row]:
    """What `kcap artifacts list` tells."""
    done = run("artifacts", "list", "--json", path)
    assert done.exit_code in (codes or (0,)), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def content(path: Path, artifact: Row) -> bytes:
    """The bytes of an artifact."""
    command = (sys.executable, "-m", "kcap.tools", "artifacts", "extract", path, artifact["id"])
    return subprocess.run([*command, "-o", "-"], env=ENV, capture_output=True, check=True).stdout


def events(path: Path, *names: str) -> list[Row]:
    """Events of a capture."""
    where = " or ".join(f"evt.name = '{name}'" for name in names) or "evt.seq >= 0"
    done = run("cat", "--format", "jsonl", "-w", where, path)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_written_files(tmp_path: Path, shell: Path) -> None:
    """--capture write='/tmp/*': the file, its event, Tracee's folder; nothing of others."""
    work, out = tmp_path / "w", tmp_path / "tracee"
    work.mkdir()
    words = ("--output", "json", *FOLLOWED, "--output", "option:parse-arguments")
    words += ("--capture", f"dir:{out}", "--capture", f"write={_prefix(work)}*")
    with recording(tmp_path, *words, "-o", "r.kcap") as made:
        sh(shell, f"echo write testing 123 > {work}/testing.txt")
        Path(work, "foreign.txt").write_text("not of the shell")
        time.sleep(0.5)
        said = made.stop()

    (found,) = listed(tmp_path / "r.kcap")
    assert found["kind"] == "write"
    assert found["path"] == f"{work}/testing.txt"
    assert content(tmp_path / "r.kcap", found) == b"write testing 123\n"
    opened = [e for e in events(tmp_path / "r.kcap", "openat") if e["ord"] == found["ord"]]
    assert len(opened) == 1
    (taken,) = (out / "out/host").iterdir()
    assert taken.name.startswith("write.dev-")
    assert taken.read_bytes() == b"write testing 123\n"
    assert (out / "out/written_files").read_text().endswith(f"/{taken.name} {found['path']}\n")
    assert "kcap export --format tracee" in said


def _prefix(folder: Path) -> str:
    """A beginning of 50 characters at most that is the folder's."""
    return f"{folder}/"[:50]


def test_what_is_read_from_a_pipe(tmp_path: Path, shell: Path) -> None:
    """--capture read:type=pipe --capture read:fd=stdin: what went through, and whose it was."""
    words = ("--output", "json", *FOLLOWED, "--output", "option:parse-arguments")
    words += ("--capture", "read:type=pipe", "--capture", "read:fd=stdin")
    with recording(tmp_path, *words, "-o", "r.kcap") as made:
        assert sh(shell, "echo read testing 123 | cat") == "read testing 123\n"
        made.stop()

    found = [a for a in listed(tmp_path / "r.kcap") if a["kind"] == "read"]
    assert [content(tmp_path / "r.kcap", a) for a in found] == [b"read testing 123\n"]
    assert found[0]["details"]["process_name"] == "cat"


def test_executed_files(tmp_path: Path, shell: Path) -> None:
    """--capture exec: once each, the same bytes, the hash with each event; it runs again."""
    out = tmp_path / "tracee"
    words = (*FOLLOWED, "--capture", f"dir:{out}", "--capture", "exec")
    with recording(tmp_path, *words, "-o", "r.kcap") as made:
        sh(shell, "/bin/ls / >/dev/null; /bin/ls / >/dev/null; exit 0")
        made.stop()

    path = Path("/bin/ls").resolve()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = [a for a in listed(tmp_path / "r.kcap") if a["sha256"] == digest]
    assert [a["kind"] for a in found] == ["exec"]
    hashes = [e["arg_exe_sha256"] for e in _executed(tmp_path, path)]
    assert hashes == [digest, digest]
    (taken,) = (out / "out/host").glob(f"exec.*.{path.name}")
    assert taken.read_bytes() == path.read_bytes()
    assert not taken.stat().st_mode & 0o111
    taken.chmod(0o700)
    assert subprocess.run([taken, "/"], check=True, capture_output=True).stdout


def _executed(folder: Path, path: Path) -> list[Row]:
    """Executions of a file."""
    found = events(folder / "r.kcap", "sched_process_exec")
    return [e for e in found if e["arg_pathname"] == str(path)]


def test_memory_that_becomes_code(tmp_path: Path, shell: Path) -> None:
    """--output none --capture mem: the region as it is when it becomes executable, no events."""
    script = (
        "import ctypes, mmap; m = mmap.mmap(-1, 8192, prot=7); m[:8] = b'unpacked';"
        " a = ctypes.addressof(ctypes.c_char.from_buffer(m));"
        " ctypes.CDLL(None).mprotect(ctypes.c_void_p(a), 8192, 5); import time; time.sleep(1)"
    )
    words = ("--output", "none", *FOLLOWED, "--capture", "mem")
    with recording(tmp_path, *words, "-o", "r.kcap") as made:
        sh(shell, f'{sys.executable} -c "{script}"; exit 0')
        made.stop()

    found = [a for a in listed(tmp_path / "r.kcap") if a["kind"] == "mem"]
    assert content(tmp_path / "r.kcap", found[0])[:8] == b"unpacked"
    assert found[0]["size"] == 8192
    assert found[0]["details"]["process_name"].startswith("python")
    assert events(tmp_path / "r.kcap") == []


def test_packets_of_events(tmp_path: Path, shell: Path) -> None:
    """--events net_packet_udp --capture network, filtered and split: only those packets."""
    out = tmp_path / "tracee"
    words = ("--events", "net_packet_udp", *FOLLOWED, "--capture", "network")
    words += ("--capture", "pcap-options:filtered", "--capture", "pcap:single,command")
    words += ("--capture", "pcap-snaplen:max", "--capture", f"dir:{out}")
    script = (
        "import socket; u = socket.socket(type=socket.SOCK_DGRAM); u.sendto(b'x' * 700,"
        " ('127.0.0.1', 9)); s = socket.create_server(('127.0.0.1', 0));"
        " socket.create_connection(s.getsockname()).close()"
    )
    with recording(tmp_path, *words, "-o", "r.kcap") as made:
        sh(shell, f'{sys.executable} -c "{script}"; exit 0')
        with socket.socket(type=socket.SOCK_DGRAM) as foreign:
            foreign.sendto(b"foreign", ("127.0.0.1", 9))
        time.sleep(0.5)
        made.stop()

    found = events(tmp_path / "r.kcap", "net_packet")
    assert found
    assert {(e["arg_protocol"], e["arg_length"]) for e in found} == {(17, 728)}
    assert {e["arg_captured"] for e in found} == {728}
    single = out / "out/pcap/single.pcap"
    assert b"x" * 700 in single.read_bytes()
    assert b"foreign" not in single.read_bytes()
    assert [p.parent.name for p in (out / "out/pcap/commands").rglob("*.pcap")] == ["host"]


def test_all_packets_whatever_is_in_scope(tmp_path: Path) -> None:
    """--capture network alone keeps packets of everybody, by default 96 bytes of their payload."""
    with recording(tmp_path, *FOLLOWED, "--capture", "network", "-o", "r.kcap") as made:
        with socket.socket(type=socket.SOCK_DGRAM) as foreign:
            foreign.sendto(b"y" * 700, ("127.0.0.1", 9))
        time.sleep(0.5)
        made.stop()

    found = events(tmp_path / "r.kcap", "net_packet")
    assert (728, 28 + 96) in {(each["arg_length"], each["arg_captured"]) for each in found}


def test_limits_are_counted(tmp_path: Path, shell: Path) -> None:
    """max=: an artifact is cut, and that makes the exit code 3; its neighbours are whole."""
    work = tmp_path / "w"
    work.mkdir()
    words = (*FOLLOWED, "--artifacts", f"write={_prefix(work)}*,max=1M")
    with recording(tmp_path, *words, "-o", "r.kcap") as made:
        sh(shell, f"head -c 3000000 /dev/urandom > {work}/large; echo small > {work}/small")
        made.stop(3)

    found = {Path(a["path"]).name: a for a in listed(tmp_path / "r.kcap", 0, 3)}
    assert found["small"]["complete"]
    assert not found["large"]["complete"]
    told = json.loads(run("info", "--json", tmp_path / "r.kcap").stdout)
    assert told["artifacts"]["incomplete"] == 1
    assert any(loss["kind"] == "cut" for loss in told["loss"])


def test_each_part_has_its_artifacts(tmp_path: Path, shell: Path) -> None:
    """What is executed again in the next file is kept there again."""
    words = (*FOLLOWED, "--artifacts", "exec", "--split-time", "3s")
    with recording(tmp_path, *words, "-o", "r-{n}.kcap") as made:
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("r-*.kcap"))) < 4:
            assert time.monotonic() < end
            sh(shell, "/bin/ls / >/dev/null; exit 0")
        made.stop()

    digest = hashlib.sha256(Path("/bin/ls").read_bytes()).hexdigest()
    middle = sorted(tmp_path.glob("r-*.kcap"))[1:3]
    counts = [sum(a["sha256"] == digest for a in listed(path)) for path in middle]
    assert min(counts) >= 1
    assert max(counts) <= 2


def test_a_ring_writes_the_artifacts_of_its_time(tmp_path: Path, shell: Path) -> None:
    """What was executed within the time that is held is in the file, also what came before it."""
    work = tmp_path / "w"
    work.mkdir()
    words = (*FOLLOWED, "--artifacts", f"exec,write={_prefix(work)}*")
    words += ("--ring", "6s", "--on-signal", "--after", "1s")
    with recording(tmp_path, *words, "-o", "r-{n}.kcap") as made:
        sh(shell, f"echo old > {work}/old")
        end = time.monotonic() + 14
        while time.monotonic() < end:
            sh(shell, "/bin/ls / >/dev/null; exit 0")
        sh(shell, f"echo new > {work}/new")
        made.process.send_signal(signal.SIGUSR1)
        while not list(tmp_path.glob("r-*.kcap")):
            assert time.monotonic() < end + 20
            time.sleep(0.1)
        time.sleep(3)
        made.stop()

    (path,) = tmp_path.glob("r-*.kcap")
    found = listed(path)
    digest = hashlib.sha256(Path("/bin/ls").read_bytes()).hexdigest()
    assert digest in {a["sha256"] for a in found}
    assert {Path(a["path"]).name for a in found if a["kind"] == "write"} == {"new"}


def test_a_kill_leaves_what_was_kept(tmp_path: Path, shell: Path) -> None:
    """Artifacts that were kept can be read of a recording that was killed."""
    with recording(tmp_path, *FOLLOWED, "--artifacts", "exec", "-o", "r.kcap") as made:
        sh(shell, "/bin/ls / >/dev/null; exit 0")
        time.sleep(2)
        made.process.kill()
        made.process.wait()
    time.sleep(1)

    digest = hashlib.sha256(Path("/bin/ls").read_bytes()).hexdigest()
    with Path(tmp_path, "r.kcap").open("rb") as stream:
        reader = CaptureReader(stream, "r.kcap")
        kept = [m for m in reader.manifests() if m.sha256 == digest]
        assert len(kept) == 1
        data = b"".join(reader.blob(kept[0]))
    assert hashlib.sha256(data).hexdigest() == digest


def test_a_size_ends_it(tmp_path: Path, shell: Path) -> None:
    """--max-size counts artifacts, too."""
    work = tmp_path / "w"
    work.mkdir()
    words = (*FOLLOWED, "--artifacts", f"write={_prefix(work)}*", "--max-size", "2M")
    with recording(tmp_path, *words, "-o", "r.kcap") as made:
        for number in range(8):
            sh(shell, f"head -c 1000000 /dev/urandom > {work}/{number}")
            if made.process.poll() is not None:
                break
        made.process.wait(30)

    assert 2 << 20 <= (tmp_path / "r.kcap").stat().st_size < 6 << 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--source", "proc", "--artifacts", "exec"), "can't say whose"),
        (("--artifacts", "exce"), "'exec'"),
        (("--output", "none"), "add --artifacts"),
        (("-o", "a", "-o", "b"), "give one file"),
        (("--events", "net_packet_udp", "--artifacts", "exec"), "--artifacts network"),
        (("--artifacts", "exec,dir:/tmp/x", "-o", "-"), "needs a file"),
    ],
)
def test_what_can_not_be_kept_is_refused(words: tuple[str, ...], told: str) -> None:
    """With the reason, before anything is recorded."""
    done = run("record", *words)

    assert done.exit_code in (1, 2)
    assert told in done.stderr


def test_bpf_programs(tmp_path: Path, shell: Path) -> None:
    """--capture bpf: the instructions as they were given to the kernel."""
    insns = bytes.fromhex("b700000002000000") + bytes.fromhex("9500000000000000")
    script = tmp_path / "load.py"
    script.write_text(_LOADER.format(insns=insns.hex(), libc="None"))
    out = tmp_path / "tracee"
    words = ("--output", "none", *FOLLOWED, "--capture", f"dir:{out}", "--capture", "bpf")
    with recording(tmp_path, *words, "-o", "r.kcap") as made:
        sh(shell, f"{sys.executable} {script}; exit 0")
        made.stop()

    found = [a for a in listed(tmp_path / "r.kcap") if a["kind"] == "bpf"]
    assert [content(tmp_path / "r.kcap", a) for a in found] == [insns]
    digest = hashlib.sha256(insns).hexdigest()
    assert [p.name.split(".")[-1] for p in (out / "out/host").iterdir()] == [digest]


_LOADER = """\
import ctypes, struct
libc = ctypes.CDLL({libc}, use_errno=True)
insns = ctypes.create_string_buffer(bytes.fromhex("{insns}"))
licence = ctypes.create_string_buffer(b"GPL")
attr = struct.pack("=IIQQIIQII16s", 1, 2, ctypes.addressof(insns), ctypes.addressof(licence),
                   0, 0, 0, 0, 0, b"test_prog")
held = ctypes.create_string_buffer(attr.ljust(128, bytes(1)))
fd = libc.syscall(321, 5, held, len(attr))
assert fd >= 0, ctypes.get_errno()
"""
