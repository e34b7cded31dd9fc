"""What the kernel's programs for artifacts tell of, live: each call, nothing more, exactly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stream_support import Seen, captured, keep, measured, python, sequence
from workload_support import Workloads

from kcap.readers.live.artifacts import pieces, triggers
from kcap.readers.live.artifacts.kernel import ArtifactKernel
from kcap.readers.live.artifacts.stream import LOST
from kcap.readers.live.artifacts.streams import REASONS, Streams
from kcap.readers.live.artifacts.wanted import Caps, FileFilter, Wanted
from kcap.readers.live.bpf.program import KernelProgram, Setup

pytestmark = pytest.mark.root

MIB = 1 << 20
PIPES = FileFilter(types=frozenset({"pipe"}))
SOCKETS = FileFilter(types=frozenset({"socket"}))
STDIN = FileFilter(fds=frozenset({0}))
SEED = ["sh", "-c", "echo read testing 123 | cat"]
LINE = b"read testing 123\n"
WORKLOADS = Path(__file__).parent / "workloads"


@pytest.mark.parametrize("wanted", [Wanted(read=PIPES), Wanted(read=STDIN)])
def test_the_line_of_the_example(wanted: Wanted) -> None:
    """What cat reads is the line, once, whether by the type of its file or by its descriptor."""
    seen = keep(wanted, SEED)
    assert [captured(one) for one in seen.of("read", "pipe")] == [LINE]
    [one] = seen.of("read", "pipe")
    assert one.artifact.details["process_name"] == "cat"
    assert one.artifact.details["fd"] == 0
    assert one.artifact.path == f"pipe:[{one.artifact.details['inode']}]"
    assert not seen.of("write")


def test_the_control_of_the_example() -> None:
    """Without a pipe at a wanted descriptor there is nothing."""
    assert not keep(Wanted(read=SOCKETS), SEED).artifacts
    assert not keep(Wanted(read=FileFilter(fds=frozenset({2}))), SEED).artifacts


def test_what_is_written_to_descriptor_1() -> None:
    """By the descriptor a pipe, a device and a file are kept, each as a stream with its path."""
    wanted = Wanted(write=FileFilter(fds=frozenset({1})))
    seen = keep(wanted, ["sh", "-c", "echo a | cat; printf b >/dev/null"])
    found = {(one.artifact.details["file_type"], captured(one)) for one in seen.of("write")}
    assert found == {("pipe", b"a\n"), ("char", b"a\n"), ("char", b"b")}
    devices = seen.of("write", "char")
    assert {one.artifact.path for one in devices} == {"/dev/null"}


def test_only_paths_that_are_wanted(tmp_path: Path) -> None:
    """Of descriptors only those whose file's path begins as asked."""
    for name in ("one", "other"):
        (tmp_path / name).write_text(name)
    script = f"cat <{tmp_path}/one; cat <{tmp_path}/other"
    wanted = Wanted(read=FileFilter((f"{tmp_path}/one",), fds=frozenset({0})))
    seen = keep(wanted, ["sh", "-c", script])
    assert [(one.artifact.path, captured(one)) for one in seen.artifacts] == [
        (f"{tmp_path}/one", b"one")
    ]


def _passing(tmp_path: Path, *words: str) -> Seen:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    program = tmp_path / "passing"
    command = ["gcc", "-O1", *words, "-o", str(program), str(WORKLOADS / "passing.c")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("gcc can't build this; on Debian: apt-get install gcc-multilib")
    both = FileFilter(types=frozenset({"pipe", "socket"}))
    seen = keep(Wanted(read=both, write=both), [str(program)])
    assert seen.status == 0
    return seen


@pytest.mark.parametrize("words", [(), ("-m32",)], ids=["64", "32"])
def test_every_call(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Whatever call passes bytes on, of programs of 64 and of 32 bits, they come in order."""
    seen = _passing(tmp_path, *words)
    for kind in ("read", "write"):
        [pipe] = seen.of(kind, "pipe")
        assert captured(pipe) == sequence(69_100)
        [socket] = seen.of(kind, "socket")
        told = sequence(31_430) + sequence(500, 31_430)[: 200 if kind == "read" else 500]
        assert captured(socket) == told


@pytest.mark.parametrize("sizes", [(65_536, 65_536), (4_096, 1_000_000), (3 * MIB, 100_000)])
def test_ten_mebibytes(sizes: tuple[int, int]) -> None:
    """Captured and missing are together what passed; of what is in memory nothing is missing."""
    script = f"""
import os, threading
whole = sequence(1 << 16) * 160
r, w = os.pipe()
def write():
    at = 0
    while at < len(whole):
        at += os.write(w, whole[at:at + {sizes[0]}])
    os.close(w)
threading.Thread(target=write).start()
while os.read(r, {sizes[1]}):
    pass
"""
    seen = keep(Wanted(read=PIPES, write=PIPES), python(script), content_bytes=64 * MIB)
    whole = sequence(1 << 16) * 160
    for kind in ("read", "write"):
        [one] = seen.of(kind, "pipe")
        assert measured(one, whole) == (10 * MIB, {})


def test_ten_mebibytes_with_one_call() -> None:
    """Eight of them are copied, and the rest is missing."""
    script = """
import os, threading
r, w = os.pipe()
whole = sequence(1 << 16) * 160
def read():
    while os.read(r, 65536):
        pass
reader = threading.Thread(target=read)
reader.start()
assert os.write(w, whole) == len(whole)
os.close(w)
reader.join()
"""
    seen = keep(Wanted(write=PIPES), python(script), content_bytes=64 * MIB)
    [one] = seen.of("write", "pipe")
    found = measured(one, sequence(1 << 16) * 160)
    assert found == (8 * MIB, {REASONS[pieces.BEYOND]: 2 * MIB})


def test_memory_that_is_gone_when_the_call_returns() -> None:
    """Of what can't be read page for page is missing, and no more."""
    script = """
import mmap, os, threading, time
r, w = os.pipe()
held = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.write(sequence(1 << 16) * 16)
writer = threading.Thread(target=lambda: os.write(w, held))
writer.start()
time.sleep(0.3)
held.madvise(mmap.MADV_DONTNEED, 0, 8 * mmap.PAGESIZE)
left = 1 << 20
while left:
    left -= len(os.read(r, 65536))
writer.join()
"""
    [one] = keep(Wanted(write=PIPES), python(script)).of("write", "pipe")
    found, missing = measured(one, sequence(1 << 16) * 16)
    assert (found, missing) == (MIB - 32_768, {REASONS[pieces.UNREADABLE]: 32_768})


def test_what_no_process_had_in_memory() -> None:
    """What is spliced on is missing, with the reason, where it would stand."""
    script = """
import os
r, w = os.pipe()
null = os.open("/dev/null", os.O_WRONLY)
for n in range(160):
    os.write(w, sequence(65536, n * 65536))
    if n % 2:
        left = 65536
        while left:
            left -= os.splice(r, null, left)
    else:
        os.read(r, 65536)
"""
    seen = keep(Wanted(read=PIPES, write=PIPES), python(script))
    whole = sequence(10 * MIB)
    [read], [written] = seen.of("read"), seen.of("write")
    assert measured(read, whole) == (5 * MIB, {REASONS[pieces.UNSEEN]: 5 * MIB})
    assert measured(written, whole) == (10 * MIB, {})


def test_what_passes_through_io_uring(workloads: Workloads) -> None:
    """It is missing, with its length and the reason, before what follows by a call."""
    seen = keep(Wanted(read=PIPES, write=PIPES), [workloads.path("ringing")])
    if seen.status == 3:
        pytest.skip("io_uring is off here")
    assert seen.status == 0
    for kind in ("read", "write"):
        [one] = seen.of(kind, "pipe")
        found, missing = measured(one, bytes(5000) + b"seen")
        assert (found, missing) == (4, {REASONS[pieces.UNSEEN]: 5000})


def test_a_flood_with_a_small_ring() -> None:
    """Whatever is lost, all of it is accounted for."""
    script = """
import os
r, w = os.pipe()
for n in range(256):
    os.write(w, sequence(4096, n * 4096))
    os.read(r, 4096)
"""
    wanted = Wanted(read=PIPES, write=PIPES)
    seen = keep(wanted, python(script), content_bytes=1 << 17, drain=False)
    whole, lost = sequence(MIB), 0
    for kind in ("read", "write"):
        [one] = seen.of(kind, "pipe")
        found, missing = measured(one, whole)
        assert missing.keys() == {LOST}
        assert found + missing[LOST] == MIB
        lost += missing[LOST]
    assert seen.sums.bytes_lost == lost > 0


def test_a_call_that_passes_too_much() -> None:
    """Of one call so much is copied as is allowed, the rest is missing with the reason."""
    script = """
import socket
a, b = socket.socketpair()
a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
b.recv(1 << 20) if a.send(sequence(150000)) != 150000 else None
"""
    seen = keep(Wanted(write=SOCKETS), python(script), call_bytes=100_000)
    [one] = seen.of("write", "socket")
    found, missing = measured(one, sequence(150_000))
    assert (found, missing) == (100_000, {REASONS[pieces.BEYOND]: 50_000})


def test_an_artifact_has_a_cap() -> None:
    """What is over the cap is missing, and the end still known."""
    script = "import os\nr, w = os.pipe()\nos.write(w, sequence(60000)); os.read(r, 60000)"
    wanted = Wanted(read=PIPES, caps=Caps(artifact_bytes=1000))
    [one] = keep(wanted, python(script)).artifacts
    found, missing = measured(one, sequence(60_000))
    assert found == 1000
    assert sum(missing.values()) == 59_000


def test_an_empty_message_is_no_end() -> None:
    """A datagram without content ends no stream; the end of a connection does."""
    script = """
import socket
for kind, end in ((socket.SOCK_DGRAM, b""), (socket.SOCK_STREAM, None)):
    a, b = socket.socketpair(type=kind)
    a.send(b"one"); b.recv(9)
    if end is None:
        a.close()
    else:
        a.send(end)
    b.recv(9)
    if end is not None:
        a.send(b"two"); b.recv(9)
"""
    seen = keep(Wanted(read=SOCKETS), python(script))
    assert sorted(captured(one) for one in seen.artifacts) == [b"one", b"onetwo"]
    assert seen.ended == 1


def test_two_pipes_are_two() -> None:
    """Pipes one behind the other are different streams, whatever their numbers."""
    script = """
import os
for n in range(50):
    r, w = os.pipe()
    os.write(w, b"%d" % n)
    os.read(r, 10)
    os.close(r); os.close(w)
"""
    seen = keep(Wanted(read=PIPES), python(script))
    assert sorted(int(captured(one)) for one in seen.of("read")) == list(range(50))


def test_the_recorder_itself_is_left_out() -> None:
    """The processes that are named as the recorder's have no streams; the control has."""
    wanted = Wanted(read=PIPES)

    def ours(kernel: ArtifactKernel) -> None:
        kernel.own([os.getpid(), *kernel._members()])

    script = "import os\nr, w = os.pipe()\nos.write(w, b'x'); os.read(r, 1)"
    assert keep(wanted, python(script)).artifacts
    assert not keep(wanted, python(script), prepare=ours).artifacts


# moments


def test_memory_that_becomes_code() -> None:
    """Each time that it is made code, with what it was before; not what is data then."""
    script = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def turned(before):
    at = libc.mmap(None, 8192, before, 0x22, -1, 0)
    libc.mprotect(at, 8192, 5)
    libc.mprotect(at, 8192, 5)
    libc.mprotect(at, 8192, 1)
turned(7)
turned(3)
turned(1)
fd = os.memfd_create("m")
os.ftruncate(fd, 4096)
libc.mmap(None, 4096, 5, 1, fd, 0)
"""
    seen = keep(Wanted(mem=True), python(script))
    found = [each for each in seen.triggers if each.process_name.startswith("python")]
    known = [(each.flags, each.length) for each in found if not each.flags & triggers.MAPPED]
    both = triggers.WAS_CODE | triggers.WAS_WRITABLE
    again = (triggers.FORMER_UNKNOWN, 8192)
    assert known == [(both, 8192), again, (triggers.WAS_WRITABLE, 8192), again, again, again]
    [mapped] = [each for each in found if each.flags & triggers.MAPPED]
    assert mapped.path == b"memfd:m"
    assert mapped.flags & triggers.UNLINKED


def executed(seen: Seen) -> list[triggers.Trigger]:
    """The executions by those that the first process started."""
    return [each for each in seen.triggers if each.kind == triggers.EXEC and each.pid != seen.pid]


@pytest.mark.parametrize("marked", [False, True])
def test_executions(tmp_path: Path, *, marked: bool) -> None:
    """Each tells of its file; not where its device is marked, unless it has no name."""
    copied = tmp_path / "copy"
    shutil.copy("/bin/true", copied)
    script = f"""
import os
def run(path):
    pid = os.fork()
    if not pid:
        os.execv(path, ["x"])
    os.waitpid(pid, 0)
run({str(copied)!r})
fd = os.memfd_create("hidden")
os.write(fd, open("/bin/true", "rb").read())
run(f"/proc/self/fd/{{fd}}")
"""
    there = copied.stat()
    devices = {there.st_dev} if marked else set[int]()
    seen = keep(Wanted(exec=True), python(script), prepare=lambda kernel: kernel.mark(devices))
    *named, hidden = executed(seen)
    assert len(named) == (not marked)
    for each in named:
        assert (each.dev, each.inode, each.size) == (there.st_dev, there.st_ino, there.st_size)
        assert each.changed_ns == there.st_ctime_ns
        assert each.path == os.fsencode(copied)
        assert each.unwatched
        assert not each.flags & triggers.UNLINKED
    assert hidden.path == b"memfd:hidden"
    assert hidden.unwatched
    assert hidden.flags & triggers.UNLINKED


def test_more_devices_than_there_is_room_for(tmp_path: Path) -> None:
    """Who mounts without end ends no recording; what has no room is told of as before."""
    copied = tmp_path / "copy"
    shutil.copy("/bin/true", copied)
    devices = [os.makedev(0xFFF, minor) for minor in range(5000)]

    def mark(kernel: ArtifactKernel) -> None:
        kernel.mark([*devices, copied.stat().st_dev])
        kernel.unmark(devices[:1])
        kernel.mark(devices[:1])

    run = f"import subprocess\nsubprocess.run([{str(copied)!r}], check=True)"
    seen = executed(keep(Wanted(exec=True), python(run), prepare=mark))
    assert [each.path for each in seen if each.dev == copied.stat().st_dev][-1:] == [
        os.fsencode(copied)
    ]


def test_new_mounts() -> None:
    """A mount namespace of its own is told; one of another kind is not."""
    script = "import ctypes\nctypes.CDLL(None).unshare({})"
    told = {
        flag: [each.kind for each in keep(Wanted(exec=True), python(script.format(flag))).triggers]
        for flag in (0x20000, 0x04000000)
    }
    assert told[0x20000].count(triggers.MOUNT) == 1
    assert triggers.MOUNT not in told[0x04000000]


CODE = bytes.fromhex("b700000001000000" * 700 + "9500000000000000")


def test_a_bpf_program_is_what_was_given(tmp_path: Path) -> None:
    """Its instructions, byte for byte, joined to who loaded it; objdump reads them."""
    script = f"""
from kcap.readers.live.bpf import system
system.load_program("counted", 17, bytes.fromhex({CODE.hex()!r}), "GPL")
"""
    seen = keep(Wanted(bpf=True), [sys.executable, "-c", script])
    assert seen.status == 0
    [one], [trigger] = seen.of("bpf"), seen.triggers
    assert captured(one) == CODE
    assert (one.ts_ns, one.tid) == (trigger.ts_ns, trigger.tid)
    assert (trigger.kind, trigger.name, trigger.protection) == (triggers.PROGRAM, "counted", 17)
    assert trigger.length == len(CODE)
    assert trigger.former > 0
    objdump = shutil.which("bpf-objdump")
    if objdump is None:
        pytest.skip("no bpf-objdump; on Debian: apt-get install binutils-bpf")
    (tmp_path / "bytes").write_bytes(captured(one))
    command = [objdump, "-D", "-b", "binary", "-m", "bpf", str(tmp_path / "bytes")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.count("mov") == 700
    assert said.count("exit") == 1


def test_a_module_from_memory() -> None:
    """Its image is kept whatever the kernel says of it."""
    script = """
import ctypes
image = sequence(100_000)
ctypes.CDLL(None).syscall(175, image, len(image), b"")
"""
    seen = keep(Wanted(module=True), python(script))
    [one], [trigger] = seen.of("module"), seen.triggers
    assert captured(one) == sequence(100_000)
    assert trigger.kind == triggers.MODULE_IMAGE
    assert trigger.retval < 0


def test_a_module_from_a_file(tmp_path: Path) -> None:
    """The file is told, with its descriptor."""
    path = tmp_path / "some.ko"
    path.write_bytes(b"no module")
    script = f"""
import ctypes, os
fd = os.open({str(path)!r}, os.O_RDONLY)
ctypes.CDLL(None).syscall(313, fd, b"", 0)
"""
    [trigger] = keep(Wanted(module=True), python(script)).triggers
    assert trigger.kind == triggers.MODULE_FILE
    assert trigger.path == os.fsencode(path)
    assert trigger.inode == path.stat().st_ino
    assert trigger.fd is not None


def test_beside_the_recorder(tmp_path: Path) -> None:
    """The scope is the recorder's own tables: who it follows has streams, nobody else has."""
    gate = tmp_path / "gate"
    script = f"""
import os, time
while not os.path.exists({str(gate)!r}):
    time.sleep(0.01)
r, w = os.pipe()
os.write(w, sequence(99))
os.read(r, 99)
"""
    ours, other = (subprocess.Popen(python(script)) for _ in range(2))
    wanted = Wanted(read=PIPES)
    setup = Setup(("process_execution",), {"scoped": 1, "want_tracked": 1}, {}, lambda: [ours.pid])
    program = KernelProgram(setup, rare_bytes=1 << 16, hot_bytes=1 << 16)
    kernel = None
    try:
        kernel = ArtifactKernel(wanted, setup=setup, shared=program.maps)
        streams = Streams(kernel.types, wanted)
        program.attach_processes()
        kernel.attach()
        gate.touch()
        assert (ours.wait(30), other.wait(30)) == (0, 0)
        streams.take(kernel.content.take())
        kernel.content.release()
        found = list(streams.rest())
        assert [one.pid for one in found if captured(one) == sequence(99)] == [ours.pid]
        assert {one.pid for one in found} == {ours.pid}
    finally:
        if kernel is not None:
            kernel.close()
        program.close()
        for process in (ours, other):
            process.kill()
            process.wait()
