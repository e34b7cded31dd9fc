"""Whose a file system is: what users mount in namespaces of their own is read apart."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from artifact_live_support import python, record

from kcap.readers.live.artifacts import agent_moments, marks, protocol, triggers
from kcap.readers.live.artifacts.agent import Marker
from kcap.readers.live.artifacts.spool import Sender
from kcap.readers.live.artifacts.wanted import FileFilter, Wanted

if TYPE_CHECKING:
    from kcap.readers.live.artifacts.keeping import Keeper as Keeper_

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

_MOUNT = """
set -e
mkdir -p "$1/top"
mount -t tmpfs none "$1/top"
mkdir "$1/top/lower" "$1/top/upper" "$1/top/work" "$1/top/both"
mount -t overlay none -o "lowerdir=$1/top/lower,upperdir=$1/top/upper,workdir=$1/top/work" \
    "$1/top/both"
echo ready
exec cat
"""


@contextmanager
def _mounted(folder: Path, *flags: str) -> Iterator[int]:
    """A process in a mount namespace with a tmpfs and an overlay of its own."""
    folder.chmod(0o777)
    args = ["unshare", *flags, "sh", "-c", _MOUNT, "sh", str(folder)]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                pytest.skip("this kernel mounts no overlay in a user namespace")
            yield process.pid
        finally:
            process.stdin.close()


@pytest.mark.parametrize(
    ("flags", "users"), [(("-U", "-r", "-m"), True), (("-m",), False)], ids=["user", "root"]
)
def test_what_users_mount_is_read_apart(
    tmp_path: Path, flags: tuple[str, ...], *, users: bool
) -> None:
    """An overlay of a user may lie on a server of his; one of a container engine may not.

    What a user's namespace has in common with ours stays with the reader of this host.
    """
    with _mounted(tmp_path, *flags) as pid:
        seen = list(marks.Namespaces().mounts())
        own = {each.point: each for each in seen if each.point.startswith(bytes(tmp_path))}
        assert {each.kind for each in own.values()} == {"tmpfs", "overlay"}
        for mount in own.values():
            assert mount.remote is users
            assert mount.pid == pid
        ours = {each.dev for each in marks.mounts(os.getpid())}
        assert not any(each.users for each in seen if each.dev in ours)
        known = [each.users for each in seen]
        assert known.index(True) > known.index(False) if users else True


def test_the_owner_of_a_namespace_that_is_gone() -> None:
    """A process that has ended is nobody's."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
        assert not marks.Namespaces()._is_users(process.pid)


@pytest.mark.parametrize("careful", [True, False])
def test_a_careful_reader_opens_memory_alone(*, careful: bool) -> None:
    """Where servers hold readers back, what may be on one is not opened; a memfd always is."""
    opened: list[int] = []
    unknown: list[int] = []

    class Keeper:
        def executed(self, _file: int, about: os.stat_result, *_: object) -> None:
            opened.append(about.st_ino)

        def unknown(self, _pid: int, _dev: int, inode: int, _ctime_ns: int) -> None:
            unknown.append(inode)

    reader = object.__new__(agent_moments.MomentReader)
    reader._shared = protocol.Shared()
    reader._keeper = cast("Keeper_", Keeper())
    reader._only = agent_moments._memory_device() if careful else None
    here = Path("/proc/self/exe").stat()
    fields = dict.fromkeys(triggers.Trigger._fields, 0)
    told = {"pid": os.getpid(), "dev": here.st_dev, "inode": here.st_ino, "process_name": "x"}
    reader._executed(triggers.Trigger(**cast("dict[str, Any]", fields | told)))
    assert (opened, unknown) == (([], [here.st_ino]) if careful else ([here.st_ino], []))

    memory = os.memfd_create("test")
    with open("/bin/sleep", "rb") as file:  # noqa: PTH123
        os.write(memory, file.read())
    with subprocess.Popen([f"/proc/self/fd/{memory}", "60"], pass_fds=[memory]) as process:
        about = os.fstat(memory)
        told |= {"pid": process.pid, "dev": about.st_dev, "inode": about.st_ino}
        reader._executed(triggers.Trigger(**cast("dict[str, Any]", fields | told)))
        process.kill()
    os.close(memory)
    assert opened[-1] == about.st_ino


class _HungError(Exception):
    """A reader hangs, and is killed."""


def test_what_a_hanging_file_takes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and mounts that were told of with it are passed on before it is opened."""
    kinds = [triggers.MODULE_FILE, triggers.EXEC, triggers.MOUNT, triggers.MEMORY, triggers.EXEC]
    fields = dict.fromkeys(triggers.Trigger._fields, 0)
    told = [triggers.Trigger(**cast("dict[str, Any]", fields | {"kind": kind})) for kind in kinds]
    seen: list[int] = []

    def one(_: object, trigger: triggers.Trigger) -> None:
        seen.append(trigger.kind)
        if trigger.kind == triggers.EXEC:
            raise _HungError

    reader = object.__new__(agent_moments.MomentReader)
    block = SimpleNamespace(data=SimpleNamespace(release=lambda: None))
    ring = SimpleNamespace(take=lambda _: block, release=lambda: None)
    decoder = SimpleNamespace(decode=lambda _: iter(told))
    parts = {"_ring": ring, "_decoder": decoder, "_shared": protocol.Shared()}
    for name, part in parts.items():
        setattr(reader, name, part)
    monkeypatch.setattr(agent_moments.MomentReader, "_one", one)
    with pytest.raises(_HungError):
        reader._drained()
    assert seen == [triggers.MOUNT, triggers.MEMORY, triggers.EXEC]


_STORM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 1 << 14 | 1 << 18, None) == 0
for number in range(int(sys.argv[2])):
    path = f"{sys.argv[1]}/{number}"
    os.mkdir(path)
    assert libc.mount(b"none", path.encode(), b"tmpfs", 0, b"size=64k") == 0
    with open(path + "/file", "w") as file:
        file.write(str(number))
"""


@pytest.mark.root
def test_files_on_what_was_just_mounted_are_kept_or_counted(tmp_path: Path) -> None:
    """None of them is missing without a word, and looking for mounts leaves time for the rest."""
    wanted = Wanted(write=FileFilter(prefixes=(str(tmp_path),)))
    found = record(wanted, lambda: python(_STORM, tmp_path, 300))

    kept = {each.side.path for each in found.of("write")}
    reason = "files that were written or read before their file system was watched"
    missed = sum(loss.count or 0 for loss in found.losses if loss.reason == reason)
    assert missed + len(kept) == 300
    assert missed > 0


_ONE_BY_ONE = """
set -e
for number in $(seq 1 "$2"); do
    unshare -m sh -c 'mount -t tmpfs none "$0"; echo "$1" > "$0/file-$1"' "$1" "$number"
done
"""


@pytest.mark.root
def test_a_file_system_with_the_number_of_one_that_is_gone(tmp_path: Path) -> None:
    """It was not watched because the one before was: its files are kept or counted, too."""
    wanted = Wanted(write=FileFilter(prefixes=(str(tmp_path),)))
    command = ["sh", "-c", _ONE_BY_ONE, "sh", str(tmp_path), "60"]
    found = record(wanted, lambda: subprocess.run(command, check=True))

    kept = {each.side.path for each in found.of("write")}
    reason = "files that were written or read before their file system was watched"
    missed = sum(loss.count or 0 for loss in found.losses if loss.reason == reason)
    assert missed + len(kept) == 60
    assert missed > 0


@pytest.mark.root
def test_a_mark_says_whether_it_is_the_first(tmp_path: Path) -> None:
    """Also of a file system that has the number of one before it."""
    group, path = marks.group(), str(tmp_path)
    try:
        for _ in range(2):
            subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
            mount = next(each for each in marks.mounts(os.getpid()) if each.point == path.encode())
            marked = [marks.mark(group, mount, marks.CLOSE_WRITE) for _ in range(2)]
            subprocess.run(["umount", path], check=True)
            assert marked == [True, False]
    finally:
        os.close(group)


def test_looking_for_mounts_is_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often something is mounted, most of the time belongs to files."""
    looked: list[float] = []

    class Namespaces:
        def mounts(self) -> Iterator[marks.Mount]:
            looked.append(time.monotonic())
            time.sleep(0.02)
            return iter(())

    monkeypatch.setattr(marks, "Namespaces", Namespaces)
    reading, writing = protocol.pair()
    task = cast("Any", SimpleNamespace(groups=(0, 0), shared=protocol.Shared(), wanted=Wanted()))
    marker = Marker(task, protocol.LOCAL, Sender(writing, task.shared, 0), ())
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < 0.5:
        marker.look(now=True)
        time.sleep(0.001)
    os.close(marker.mounted)
    reading.close()
    writing.close()

    assert 2 <= len(looked) <= 0.5 / (4 * 0.02) + 2
    assert looked[0] - begun_s < 0.02, "the first at once"
