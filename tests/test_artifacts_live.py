"""What is executed, written and read on this host becomes artifacts, each with its event."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from artifact_live_support import Kept, Recorded, python, record

from kcap.readers.live.artifacts import supervisor
from kcap.readers.live.artifacts.companion import ArtifactsCompanion
from kcap.readers.live.artifacts.wanted import ELF, PIPE, Caps, FileFilter, Wanted

pytestmark = pytest.mark.root

DROP = """
import os, sys
folder, count = sys.argv[1], int(sys.argv[2])
base = open("/bin/true", "rb").read()
for number in range(count):
    path = f"{folder}/drop{number}"
    with open(path, "wb") as file:
        file.write(base + b"%d" % number)
    os.chmod(path, 0o755)
    pid = os.posix_spawn(path, [path], {})
    os.unlink(path)
    os.waitpid(pid, 0)
"""
WRITE = """
import os, sys
for number in range(int(sys.argv[2])):
    path = f"{sys.argv[1]}/file{number}"
    with open(path, "wb") as file:
        file.write(b"written %d" % number)
    os.unlink(path)
"""


def unlike(found: list[Kept]) -> list[Kept]:
    """Those whose hash is not that of their bytes."""
    return [kept for kept in found if kept.detail["sha256"] != kept.sha256]


def droppers(found: Recorded, folder: Path, count: int) -> None:
    """All droppers are there, byte for byte, each with its execution, whose hash it has."""
    base = Path("/bin/true").read_bytes()
    programs = found.of("exec", under=folder)
    assert {kept.content for kept in programs} == {base + b"%d" % n for n in range(count)}
    assert len(programs) == count, "each once"
    assert not unlike(found.of("exec"))
    for kept in programs:
        event = found.event(kept)
        assert event["event"] == "sched_process_exec"
        assert event["arg_exe_sha256"] == kept.sha256
        assert event["arg_pathname"] == kept.side.path
        assert ",exe_sha256:" in event["shape"], "so that an export as Tracee's JSON has it"
        assert kept.detail["role"] == "executable"


def test_self_deleting_programs_and_files(tmp_path: Path) -> None:
    """500 droppers that unlink themselves, 2,000 files that are gone at once: all are there."""
    prefix = str(tmp_path)

    def work() -> None:
        python(DROP, tmp_path, 500)
        python(WRITE, tmp_path, 2000)

    found = record(Wanted(exec=True, write=FileFilter(prefixes=(prefix,))), work)

    droppers(found, tmp_path, 500)
    written = [k for k in found.of("write", under=tmp_path) if "/file" in (k.side.path or "")]
    assert {kept.content for kept in written} == {b"written %d" % n for n in range(2000)}
    assert not unlike(written)
    for kept in written:
        event = found.event(kept)
        assert event["event"] == "openat"
        assert event["arg_pathname"] == kept.side.path
        assert event["arg_flags"] & 3
        assert event["pid"] == kept.detail["pid"]
    assert found.reasons == []


def test_a_program_is_kept_once_and_each_of_its_contents(tmp_path: Path) -> None:
    """Executed ten times: once. Changed between, in place and by a name's change: each content."""
    program = tmp_path / "program"
    script = """
import os, sys, time
path = sys.argv[1]
for content in (b"one", b"two", b"one"):
    with open("/bin/true", "rb") as file: base = file.read()
    with open(path, "wb") as file: file.write(base + content)
    os.chmod(path, 0o755)
    for _ in range(10): os.waitpid(os.posix_spawn(path, [path], {}), 0)
    time.sleep(0.3)
"""
    found = record(Wanted(exec=True), lambda: python(script, program))

    base = Path("/bin/true").read_bytes()
    # Of a host that is busy a file may be read when the next content is written: that is marked.
    whole = [k for k in found.of("exec", under=tmp_path) if not k.detail.get("changed")]
    contents = Counter(kept.content for kept in whole)
    # What comes again is the same content: of one blob, whether it is told once or twice.
    assert contents.keys() == {base + b"one", base + b"two"}
    assert contents[base + b"two"] == 1
    hashes = [e["arg_exe_sha256"] for e in found.events.values() if e.get("exe") == str(program)
              and e["event"] == "sched_process_exec"]  # fmt: skip
    assert len(hashes) == 30
    changes = [a for a, b in zip(hashes, [*hashes[1:], ""], strict=True) if a != b]
    assert len(changes) == 3


def test_scripts_interpreters_and_loaders(tmp_path: Path) -> None:
    """Each file that takes part in an execution is an artifact; the event has the hash of one."""
    shell = tmp_path / "shell"
    shutil.copy("/bin/sh", shell)
    script = tmp_path / "script"
    script.write_text(f"#!{shell}\nexit 0\n")
    script.chmod(0o755)

    found = record(Wanted(exec=True), lambda: subprocess.run([script], check=True))

    roles = {k.side.path: k.detail["role"] for k in found.of("exec", under=tmp_path)}
    assert roles == {str(script): "script", str(shell): "executable"}
    kept = {k.side.path: k for k in found.of("exec", under=tmp_path)}
    assert found.event(kept[str(script)]) is found.event(kept[str(shell)])
    assert found.event(kept[str(script)])["arg_exe_sha256"] == kept[str(shell)].sha256


def test_tmpfs_that_is_mounted_later_also_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    """What is executed on it is there; nothing keeps it from being unmounted."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    shell = """
set -e
mount -t tmpfs kcap-test "$1"
cp /bin/true "$1/program"; echo "$2" >> "$1/program"
sleep "$3"
"$1/program"
umount "$1"
"""

    def work() -> None:
        subprocess.run(["sh", "-c", shell, "-", one, "here", "0.5"], check=True)
        private = ["unshare", "-m", "--propagation", "private"]
        subprocess.run([*private, "sh", "-c", shell, "-", other, "there", "1.5"], check=True)

    found = record(Wanted(exec=True), work)

    base = Path("/bin/true").read_bytes()
    programs = [k for k in found.of("exec") if k.content[len(base) :] in (b"here\n", b"there\n")]
    assert {kept.content for kept in programs} == {base + b"here\n", base + b"there\n"}
    for kept in programs:
        assert found.event(kept)["arg_exe_sha256"] == kept.sha256


def test_a_program_without_a_file() -> None:
    """A memfd is read from the process that runs it."""
    script = """
import os, sys
memory = os.memfd_create("hidden")
os.write(memory, open("/bin/sleep", "rb").read() + b"hidden")
pid = os.posix_spawn(f"/proc/self/fd/{memory}", ["sleep", "0.5"], {})
os.waitpid(pid, 0)
"""
    found = record(Wanted(exec=True), lambda: python(script))

    content = Path("/bin/sleep").read_bytes() + b"hidden"
    (kept,) = [k for k in found.of("exec") if k.content == content]
    assert found.event(kept)["arg_exe_sha256"] == kept.sha256
    assert kept.detail["deleted"]


def test_files_that_want_to_be_trouble(tmp_path: Path) -> None:
    """Sparse, growing, odd names, FIFOs, a link that changes: bounded, marked, nothing hangs."""
    odd = b"new\nline \xff \x1b[31m (deleted)"
    script = """
import os, sys, threading, time
folder, odd = sys.argv[1], bytes.fromhex(sys.argv[2])
with open(f"{folder}/sparse", "wb") as file:
    file.write(b"begin")
    file.truncate(4 << 30)
    file.seek((4 << 30) - 3)
    file.write(b"end")
os.mkfifo(f"{folder}/fifo")
reader = os.open(f"{folder}/fifo", os.O_RDONLY | os.O_NONBLOCK)
writer = os.open(f"{folder}/fifo", os.O_WRONLY)
os.write(writer, b"through"); os.close(writer)
assert os.read(reader, 10) == b"through"; os.close(reader)
with open(os.path.join(folder.encode(), odd), "wb") as file: file.write(b"odd")
os.symlink("/etc/shadow", f"{folder}/link")
os.rename(f"{folder}/link", f"{folder}/race")
with open(f"{folder}/large", "wb") as file: file.write(b"x" * 300000)
first = os.open(f"{folder}/growing", os.O_WRONLY | os.O_CREAT)
second = os.open(f"{folder}/growing", os.O_WRONLY | os.O_APPEND)
os.write(first, b"a" * 100000); os.close(first)
until = time.monotonic() + 0.5
while time.monotonic() < until: os.write(second, b"b" * 10000)
"""
    caps = Caps(artifact_bytes=200_000)
    wanted = Wanted(write=FileFilter(prefixes=(str(tmp_path),)), caps=caps)
    began_s = time.monotonic()
    found = record(wanted, lambda: python(script, tmp_path, odd.hex()), most=1 << 20)
    assert time.monotonic() - began_s < 30

    files = {kept.side.path: kept for kept in found.of("write")}
    sparse = files[f"{tmp_path}/sparse"]
    assert sum(gap.length for gap in sparse.gaps if gap.reason is None) > (4 << 30) - (1 << 17)
    assert sparse.side.content.nbytes <= 1 << 17
    name = odd.decode("utf-8", "backslashreplace")
    assert files[f"{tmp_path}/{name}"].content == b"odd"
    raw = bytes.fromhex(files[f"{tmp_path}/{name}"].detail["path_raw"])
    assert raw == os.fsencode(tmp_path) + b"/" + odd
    assert not {f"{tmp_path}/fifo", f"{tmp_path}/link", f"{tmp_path}/race"} & files.keys()
    large = files[f"{tmp_path}/large"]
    assert large.gaps == [(100_000, "over 200000 bytes")]
    assert large.detail["sha256"] == hashlib.sha256(b"x" * 300000).hexdigest()
    growing = files[f"{tmp_path}/growing"]
    assert growing.content[:100000] == b"a" * 100000
    assert "artifacts: over 200000 bytes" in found.reasons


def test_filters(tmp_path: Path) -> None:
    """Only what begins so, only ELF; what was read; nothing of the recorder's output."""
    script = """
import sys
folder = sys.argv[1]
for name, content in (("a.elf", b"\\x7fELF..."), ("a.txt", b"text"), ("out", b"\\x7fELF out")):
    with open(f"{folder}/{name}", "wb") as file: file.write(content)
for name in ("a.elf", "a.txt"):
    with open(f"{folder}/{name}", "rb") as file: file.read()
"""
    wanted = Wanted(
        write=FileFilter(prefixes=(str(tmp_path),), types=frozenset({ELF})),
        read=FileFilter(prefixes=(f"{tmp_path}/a",)),
    )
    found = record(wanted, lambda: python(script, tmp_path), left_out=[str(tmp_path / "out")])

    assert {(k.side.kind, k.side.path) for k in found.artifacts} == {
        ("write", f"{tmp_path}/a.elf"),
        ("read", f"{tmp_path}/a.elf"),
        ("read", f"{tmp_path}/a.txt"),
    }
    assert found.event(found.of("read")[0])["event"] == "openat"


def test_memory_that_becomes_code() -> None:
    """The region, with a hole where a page can't be read; with all maps beside it if asked for."""
    script = """
import ctypes, mmap, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
at = libc.mmap(None, 12288, 7, 0x22, -1, 0)
ctypes.memmove(at, b"unpacked code " * 800, 11200)
assert libc.mprotect(at, 12288, 5) == 0
time.sleep(1)
print(at)
"""
    at: list[int] = []
    found = record(Wanted(mem=True), lambda: at.append(int(python(script))))

    (kept,) = [k for k in found.of("mem") if k.detail["address"] == at[0]]
    assert kept.content == (b"unpacked code " * 800).ljust(12288, b"\0")
    assert kept.detail["protection"] == "r-x"
    assert kept.detail["was_executable"]
    assert found.event(kept)["event"] == "mprotect"


def test_caps_of_the_capture(tmp_path: Path) -> None:
    """Beyond them only hashes are kept, and it is counted."""
    script = """
import sys
for number in range(20):
    with open(f"{sys.argv[1]}/{number}", "wb") as file: file.write(b"%d" % number * 10000)
"""
    caps = Caps(capture_bytes=100_000)
    wanted = Wanted(write=FileFilter(prefixes=(str(tmp_path),)), caps=caps)
    found = record(wanted, lambda: python(script, tmp_path))

    assert len(found.of("write")) == 20
    assert sum(kept.side.content.nbytes for kept in found.of("write")) <= 100_000
    assert all(len(kept.detail["sha256"]) == 64 for kept in found.of("write"))
    assert any("of the capture" in reason for reason in found.reasons)


def test_nothing_stays_behind(tmp_path: Path) -> None:
    """No process, no mark: a file system that was watched can be unmounted at once."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "kcap-test", folder], check=True)
    try:
        companion = ArtifactsCompanion(Wanted(exec=True))
        companion.prepare()
        pids = set(companion.pids)
        assert len(pids) >= 4
        companion.close()
        deadline_s = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_reader_that_is_killed_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it had not in hand is read by that."""
    monkeypatch.setattr(supervisor, "_LOOK_MS", 10)
    companion: list[ArtifactsCompanion] = []
    made = ArtifactsCompanion.prepare

    def prepare(self: ArtifactsCompanion) -> None:
        made(self)
        companion.append(self)

    monkeypatch.setattr(ArtifactsCompanion, "prepare", prepare)

    def work() -> None:
        python(WRITE, tmp_path, 100)
        for pid in sorted(companion[0].pids)[1:]:
            os.kill(pid, 9)
        python(WRITE, tmp_path, 200)

    found = record(Wanted(write=FileFilter(prefixes=(str(tmp_path),))), work)

    contents = {kept.content for kept in found.of("write")}
    lost = {b"written %d" % n for n in range(200)} - contents
    assert len(lost) <= 2, "what a reader had in hand"
    assert any("ended" in reason for reason in found.reasons)


def test_readers_that_are_all_killed_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording goes on, ends as it should, and says that nobody read artifacts."""
    companion: list[ArtifactsCompanion] = []
    made = ArtifactsCompanion.prepare

    def prepare(self: ArtifactsCompanion) -> None:
        made(self)
        companion.append(self)

    monkeypatch.setattr(ArtifactsCompanion, "prepare", prepare)

    def work() -> None:
        os.kill(companion[0]._supervisor, 9)
        time.sleep(1)
        python(WRITE, tmp_path, 10)

    found = record(Wanted(exec=True), work)

    gone = "artifacts: the processes that read them are gone"
    assert [loss.count for loss in found.losses if loss.reason == gone] == [1]
    assert any(event["event"] == "sched_process_exec" for event in found.events.values())


def test_what_passes_through_a_pipe() -> None:
    """The seed's line, exactly; the stream goes with a process that had it."""
    wanted = Wanted(read=FileFilter(types=frozenset({PIPE})))
    command = ["sh", "-c", "echo read testing 123 | cat"]
    found = record(wanted, lambda: subprocess.run(command, check=True))

    (kept,) = [k for k in found.of("read") if k.content.startswith(b"read testing")]
    assert kept.content == b"read testing 123\n"
    assert kept.detail["file_type"] == "pipe"
    assert kept.detail["process_name"] == "cat"
