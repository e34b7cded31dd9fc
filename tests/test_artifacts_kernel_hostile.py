"""Processes that mislead the kernel's programs for artifacts, or speak another instruction set."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from stream_support import captured, keep, measured, python

from kcap.readers.live.artifacts import pieces, programs, triggers
from kcap.readers.live.artifacts.streams import REASONS
from kcap.readers.live.artifacts.wanted import FileFilter, Wanted

pytestmark = pytest.mark.root

PIPES = FileFilter(types=frozenset({"pipe"}))
SOCKETS = FileFilter(types=frozenset({"socket"}))


def test_the_end_of_code_is_written_anew() -> None:
    """Memory that was code where it begins is looked at again: its other pages may be new."""
    script = """
import ctypes
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
at = libc.mmap(None, 12288, 3, 0x22, -1, 0)
libc.mprotect(at, 12288, 5)
libc.mprotect(at + 4096, 4096, 3)
libc.mprotect(at, 12288, 5)
"""
    seen = keep(Wanted(mem=True), python(script))
    found = [each for each in seen.triggers if each.length == 12288]
    assert [each.flags for each in found] == [triggers.WAS_WRITABLE, triggers.FORMER_UNKNOWN]


NARROW_CALLS = r"""
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void)
{
    int ends[2];
    char *at = mmap(0, 12288, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(at, 12288, 5);
    if (pipe(ends) || write(ends[1], "narrow", 6) != 6 || read(ends[0], ends, 6) != 6)
        return 1;
    /* No number of any call: must not be taken for one of 64 bits (finit_module). */
    return syscall(0xfffffe00 + 313, 0, 0, 0) != -1;
}
"""


@pytest.mark.parametrize("option", ["-m64", "-m32"])
def test_calls_of_32_bits_have_their_names(tmp_path: Path, option: str) -> None:
    """What tells of a call names it as the recorder's event is named, whatever its number is."""
    source, path = tmp_path / "calls.c", tmp_path / "calls"
    source.write_text(NARROW_CALLS)
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    command = ["gcc", "-O1", option, "-o", str(path), str(source)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("gcc can't build this; on Debian: apt-get install gcc-multilib")
    seen = keep(Wanted(mem=True, module=True, read=PIPES, write=PIPES), [str(path)])
    assert seen.status == 0
    [memory] = [each for each in seen.triggers if each.length == 12288]
    assert programs.NAMES[memory.nr or 0] == "mprotect"
    assert {each.kind for each in seen.triggers} == {triggers.MEMORY}
    for kind in ("read", "write"):
        [one] = seen.of(kind, "pipe")
        assert (captured(one), one.artifact.details["syscall"]) == (b"narrow", kind)


def test_what_is_thrown_away_is_missing() -> None:
    """MSG_TRUNC of TCP puts nothing where it is told to: what stands there did not pass."""
    script = """
import ctypes, socket
libc = ctypes.CDLL(None)
with socket.create_server(("127.0.0.1", 0)) as server:
    a = socket.create_connection(server.getsockname())
    b, _ = server.accept()
held = ctypes.create_string_buffer(b"forged", 6)
a.send(b"one")
assert libc.recv(b.fileno(), held, 6, 0x20) == 3
a.send(b"two"); a.close()
assert libc.recv(b.fileno(), held, 6, 0) == 3
b.recv(1)
"""
    [one] = keep(Wanted(read=SOCKETS), python(script)).of("read", "socket")
    assert measured(one, b"\0\0\0two") == (3, {REASONS[pieces.UNSEEN]: 3})


def test_messages_of_streams_that_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for more streams, bytes of calls for several messages count too."""
    monkeypatch.setattr("kcap.readers.live.artifacts.kernel.STREAMS", 1)
    script = """
import ctypes, os, socket
r, w = os.pipe()
os.write(w, b"first")
class Block(ctypes.Structure):
    _fields_ = [("at", ctypes.c_char_p), ("bytes", ctypes.c_size_t)]
class Message(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("name_bytes", ctypes.c_uint),
                ("blocks", ctypes.POINTER(Block)), ("count", ctypes.c_size_t),
                ("control", ctypes.c_void_p), ("control_bytes", ctypes.c_size_t),
                ("flags", ctypes.c_int), ("pad", ctypes.c_uint),
                ("sent", ctypes.c_uint), ("last", ctypes.c_uint)]
a, b = socket.socketpair(type=socket.SOCK_DGRAM)
blocks = (Block * 2)(Block(b"abc", 3), Block(b"defgh", 5))
both = (Message * 2)(*(Message(blocks=ctypes.pointer(each), count=1) for each in blocks))
assert ctypes.CDLL(None).sendmmsg(a.fileno(), both, 2, 0) == 2
"""
    both_kinds = FileFilter(types=frozenset({"pipe", "socket"}))
    seen = keep(Wanted(write=both_kinds), python(script))
    assert seen.sums.streams_lost_bytes == 8
