"""Files and memory that hold back whoever reads them: the recorder goes on, and says so."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from artifact_live_support import python, record
from fuse_support import mounted
from test_artifacts_live import DROP, droppers

from kcap.readers.live.artifacts import marks, memory
from kcap.readers.live.artifacts.wanted import FileFilter, Wanted

pytestmark = pytest.mark.root

HELD_BACK = """
import ctypes, fcntl, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
fd = libc.syscall(323, os.O_CLOEXEC)
if fd < 0: print("none", flush=True); sys.exit()
fcntl.ioctl(fd, 0xc018aa3f, bytearray(struct.pack("QQQ", 0xaa, 0, 0)))
other = libc.mmap(None, 4096, 7, 0x22, -1, 0)
ctypes.memmove(other, b"code", 4)
at = libc.mmap(None, 8192, 7, 0x22, -1, 0)
ctypes.memmove(at, b"seen", 4)
fcntl.ioctl(fd, 0xc020aa00, bytearray(struct.pack("QQQQ", at + 4096, 4096, 1, 0)))
assert libc.mprotect(at, 8192, 5) == 0
time.sleep(0.3)
assert libc.mprotect(other, 4096, 5) == 0
print(at, other, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def held_back() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes with a page of userfaultfd's; ended at the end."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_memory_that_is_held_back(tmp_path: Path, held_back: list[subprocess.Popen[str]]) -> None:
    """Its read is given up with the reason; other memory and all programs are there."""
    places: list[int] = []

    def work() -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", HELD_BACK]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        held_back.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if line == "none\n":
            return
        places.extend(int(word) for word in line.split())
        python(DROP, tmp_path, 50)
        time.sleep(3)

    found = record(Wanted(exec=True, mem=True), work)

    if not places:
        pytest.skip("no userfaultfd for us on this host")
    regions = {kept.detail["address"]: kept for kept in found.of("mem")}
    stalled, other = regions[places[0]], regions[places[1]]
    assert stalled.content == b"seen".ljust(8192, b"\0")
    assert stalled.gaps == [(4096, memory.HELD_BACK)]
    assert found.event(stalled)["event"] == "mprotect"
    assert other.content.rstrip(b"\0") == b"code"
    droppers(found, tmp_path, 50)
    assert f"artifacts: {memory.HELD_BACK}" in found.reasons


def test_a_direct_read_hangs(held_back: list[subprocess.Popen[str]]) -> None:
    """The negative control: whoever reads that memory itself waits."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HELD_BACK]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    held_back.append(process)
    assert process.stdout is not None
    line = process.stdout.readline()
    if line == "none\n":
        pytest.skip("no userfaultfd for us on this host")
    reader = os.fork()
    if not reader:
        held = ctypes.create_string_buffer(8192)
        ours = (ctypes.c_size_t * 2)(ctypes.addressof(held), 8192)
        theirs = (ctypes.c_size_t * 2)(int(line.split()[0]), 8192)
        libc = ctypes.CDLL(None)
        libc.process_vm_readv(process.pid, ours, ctypes.c_ulong(1), theirs, ctypes.c_ulong(1), 0)
        os._exit(0)
    time.sleep(1)
    assert os.waitpid(reader, os.WNOHANG) == (0, 0)
    os.kill(reader, 9)
    os.waitpid(reader, 0)


MAPPED = """
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
for _ in range(2):
    file = os.open(sys.argv[1], os.O_RDONLY)
    os.close(file)
writing = os.open(sys.argv[1], os.O_WRONLY)
file = os.open(sys.argv[1], os.O_RDONLY)
at = libc.mmap(None, 8192, 7, 2, file, 0)
other = libc.mmap(None, 4096, 7, 0x22, -1, 0)
ctypes.memmove(other, b"code", 4)
print(at, other, flush=True)
sys.stdin.readline()
os.close(writing)
libc.mprotect(other, 4096, 5)
time.sleep(0.5)
print("done", flush=True)
libc.mprotect(at, 8192, 5)  # and from then on who reads that holds the lock of our memory
sys.stdin.readline()
"""
CODE = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
at = libc.mmap(None, 4096, 7, 0x22, -1, 0)
ctypes.memmove(at, b"after", 5)
libc.mprotect(at, 4096, 5)
time.sleep(3)
print(at)
"""


def test_a_server_that_does_not_answer(
    tmp_path: Path, held_back: list[subprocess.Popen[str]]
) -> None:
    """A file that was written there, memory that is a file there: `timeout`; the rest is kept."""
    places: list[int] = []
    later: list[int] = []
    folder = tmp_path / "drop"
    folder.mkdir()
    with mounted(tmp_path / "fuse") as fuse:
        program = str(fuse.program)

        def work() -> None:
            subprocess.run([program], check=True)
            time.sleep(1)
            pipe = subprocess.PIPE
            command = [sys.executable, "-c", MAPPED, program]
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            held_back.append(process)
            assert process.stdout is not None
            assert process.stdin is not None
            places.extend(int(word) for word in process.stdout.readline().split())
            fuse.stop_answering()
            time.sleep(0.2)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            python(DROP, folder, 100)
            time.sleep(3)
            later.append(int(python(CODE)))

        write = FileFilter(prefixes=(str(fuse.folder),))
        found = record(Wanted(exec=True, write=write, mem=True), work)
        fuse.kill()

    droppers(found, folder, 100)
    (kept,) = [k for k in found.of("exec") if k.side.path == program]
    assert kept.content == Path("/bin/true").read_bytes()
    regions = {kept.detail["address"]: kept for kept in found.of("mem")}
    assert regions[places[0]].gaps == [(8192, "timeout")]
    assert found.event(regions[places[0]])["event"] == "mprotect"
    assert regions[places[1]].content.rstrip(b"\0") == b"code"
    assert regions[later[0]].content.rstrip(b"\0") == b"after", "the next reader reads"
    (held,) = [k for k in found.of("write") if k.side.path == program]
    assert held.side.truncated == "timeout"
    assert held.content == b""
    assert held.detail["presumed"]
    assert found.event(held)["event"] == "openat"
    assert found.event(held)["arg_flags"] & 3 == os.O_WRONLY
    assert found.event(held)["pid"] == held_back[0].pid
    assert "timeout: a file of a server held back who opened it" in found.reasons
    assert any(reason.startswith("timeout: reading mem") for reason in found.reasons)


def test_a_server_is_not_asked_in_the_group_of_this_host(tmp_path: Path) -> None:
    """FUSE and network file systems have a group of their own."""
    with mounted(tmp_path / "fuse") as fuse:
        kinds = {each.point: each.remote for each in marks.mounts(os.getpid())}
        assert kinds[os.fsencode(fuse.folder)] is True
        assert kinds[b"/"] is False


def test_lines_of_mountinfo() -> None:
    """Names are escaped there; what is no line is none."""
    line = rb"36 35 0:44 / /a\040b\134 rw shared:1 - fuse.sshfs host rw"
    assert marks.parsed(line, 7) == marks.Mount(44, "fuse.sshfs", b"/a b\\", 7)
    with mock.patch.object(marks, "SPECIAL", frozenset()):
        for cut in range(len(line)):
            marks.parsed(line[:cut], 7)
    assert marks.parsed(b"", 7) is None
