"""Reads of /proc by processes that may be killed: what they give, and what stalls nobody."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_support import Host, reader_of
from workload_support import Workloads

from kcap.readers.live.probe import LATE, Item, Op, Prober, Request, client, wire
from kcap.readers.live.probe.troubles import TOLD_MAX
from kcap.readers.live.procfs import ProcFS, provenance
from kcap.readers.live.runtimes import Runtimes

DEADLINE_S = client.DEADLINE_S
ID = "0123456789abcdef" * 4


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """An empty host."""
    folder = tmp_path / "proc"
    folder.mkdir()
    return Host(folder)


@pytest.fixture
def probed(host: Host) -> Iterator[ProcFS]:
    """Its processes, read by a prober."""
    proc = ProcFS(str(host.folder), prober=Prober(str(host.folder)))
    yield proc
    proc.close()


# What is said


NAMES = st.sampled_from(
    ["stat", "cmdline", "fd/3", "fd/*", "task/*/comm", "ns/net", "net/tcp", "../1/mem", "mem", ""]
)
ITEMS = st.builds(Item, st.sampled_from(Op), NAMES, st.integers(0, wire.FILE_BYTES))


@given(st.lists(ITEMS, max_size=wire.ITEMS_MAX), st.integers(0, 1 << 22), st.booleans())
def test_a_request_says_what_was_asked(asked: list[Item], pid: int, careful: bool) -> None:
    """Every request that may be asked arrives as it was, and no other one arrives at all."""
    raw = wire.packed(Request(pid, asked), careful=careful)
    length, same, count, flags = wire.REQUEST.unpack_from(raw)
    assert (length, same, flags) == (len(raw) - wire.REQUEST.size, pid, int(careful))
    if all(map(wire.allowed, asked)):
        assert wire.items(raw[wire.REQUEST.size :], count) == tuple(asked)
    else:
        with pytest.raises(ValueError, match="may not be asked"):
            wire.items(raw[wire.REQUEST.size :], count)


@given(st.binary(max_size=64), st.integers(0, 65535))
def test_a_damaged_request_is_refused(body: bytes, count: int) -> None:
    """Bytes that are no request are an error, or items that may be asked for."""
    try:
        found = wire.items(body, count)
    except ValueError:
        return
    assert all(map(wire.allowed, found))


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (Op.CONTENT, "mem"),
        (Op.CONTENT, "environ"),
        (Op.CONTENT, "root/etc/shadow"),
        (Op.CONTENT, "cwd/x"),
        (Op.CONTENT, "net/../mem"),
        (Op.CONTENT, "fd/3"),
        (Op.LINK, "root"),
        (Op.NUMBERS, "."),
        (Op.FILE, "/etc/shadow"),
        (Op.FILE, f"/var/lib/docker/containers/{ID}/../../x"),
        (Op.FILE, f"/run/containerd/io.containerd.runtime.v2.task/../{ID}/config.json"),
        (Op.NAMES, "/"),
    ],
)
def test_what_may_not_be_read(op: Op, name: str) -> None:
    """A reader has rights that who asks has not: it reads what a recording needs, no more."""
    assert not wire.allowed(Item(op, name))


def test_a_reader_that_is_asked_for_more_ends(host: Host, probed: ProcFS) -> None:
    """It is the reader that looks, not who asks; what may be asked for is answered still."""
    host.add(1)
    (host.folder / "1" / "mem").write_bytes(b"secret")
    assert probed.prober is not None
    answer = probed.prober.read(Request(1, [Item(Op.CONTENT, "mem")]))
    assert answer.error == client.GONE
    assert not answer.found
    assert probed.prober.read(Request(1, [Item(Op.CONTENT, "comm")])).found["comm"] == b"name 1\n"


# What is read


def test_a_prober_reads_what_we_read() -> None:
    """Of this very process and a child, both ways give the same; of what is no process, nothing."""
    command: list[str | bytes] = [sys.executable, "-c", "input()", b"\xff"]
    direct, probed = ProcFS(), ProcFS.probed()
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        for pid in (os.getpid(), child.pid):
            assert probed.image(pid, cwd=True) == direct.image(pid, cwd=True)
            assert probed.name(pid) == direct.name(pid)
            with direct.folder(pid) as one, probed.folder(pid) as other:
                assert one is not None
                assert other is not None
                for name in ("comm", f"task/{pid}/comm", "mountinfo", "net/unix"):
                    assert one.content(name) == other.content(name) != b""
                assert one.link("ns/net") == other.link("ns/net")
                assert one.numbers("task") == other.numbers("task")
                assert set(other.numbers("fd") or ()) >= {0, 1, 2}
                assert other.content("nothing") is None
        child.kill()
    for pid in (child.pid, 0, -1, 1 << 40):
        assert probed.image(pid) is direct.image(pid) is None
    probed.close()


def test_arguments_that_are_held_back_are_told(workloads: Workloads) -> None:
    """What can be read is there, the rest is a loss; of an ordinary process nothing is."""
    long = "x" * 16384
    for proc in (ProcFS(), ProcFS.probed()):
        command = [workloads.path("stuck"), "memory", long]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as stuck:
            assert stuck.stdout is not None
            if b'"ret": 0' not in stuck.stdout.readline():
                pytest.skip("no userfaultfd for us on this host")
            image, ours = proc.image(stuck.pid), proc.image(os.getpid())
            stuck.kill()
        proc.close()
        assert image is not None
        assert ours is not None
        whole = " ".join(command)
        assert isinstance(image.cmdline, str)
        assert whole.startswith(image.cmdline)
        (loss,) = proc.losses("source")
        hidden = len(whole) + 1 - len(image.cmdline)
        assert loss.kind == "cut"
        assert loss.reason.startswith(f"stuck, pid {stuck.pid}, holds back memory: {hidden} bytes")


def test_long_values_come_whole(host: Host, probed: ProcFS) -> None:
    """Arguments of some MiB, thousands of descriptors; requests under way do not block."""
    long = b"y" * (5 << 20) + b"\0"
    host.add(1, cmdline=long)
    for fd in range(600):
        (host.folder / "1" / "fd" / str(fd)).symlink_to(f"/to/{fd}")
    for pid in range(2, 100):
        host.add(pid, cmdline=b"z" * 10_000)
    wanted = (Item(Op.LINK, "fd/*"), Item(Op.NUMBERS, "fd"), Item(Op.CONTENT, "cmdline"))
    found = dict(probed.folders(range(100), wanted))
    assert list(found) == list(range(1, 100))
    assert found[1].content("cmdline") == long
    assert found[1].numbers("fd") == list(range(600))
    assert [found[1].link(f"fd/{fd}") for fd in range(601)] == [
        *(f"/to/{fd}" for fd in range(600)),
        None,
    ]
    asked = [probed.image_soon(pid) for pid in range(1, 100)]
    images = [wait() for wait in asked]
    assert [len((image and image.cmdline) or "") for image in images] == [
        len(long) - 1,
        *[10_000] * 98,
    ]


def test_more_than_the_limits_is_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process with too many descriptors the first ones are read, and the rest is counted."""
    host.add(1)
    for fd in range(50):
        (host.folder / "1" / "fd" / str(fd)).symlink_to(f"/{fd}" + "x" * 100)
    wanted = Item(Op.LINK, "fd/*")
    for name, limit, read in (("ELEMENTS_MAX", 20, 20), ("ELEMENTS_BYTES", 1000, 10)):
        with monkeypatch.context() as patch:
            patch.setattr(wire, name, limit)
            proc = ProcFS(str(host.folder), prober=Prober(str(host.folder)))
        with proc.folder(1, [wanted]) as folder:
            assert folder is not None
            assert folder.left_out("fd/*") == 50 - read
            assert len([fd for fd in range(50) if folder.link(f"fd/{fd}")]) == read
            assert folder.numbers("fd") == list(range(50))
        proc.close()


def test_threads_have_readers_of_their_own(host: Host, probed: ProcFS) -> None:
    """Many threads at once each get their own answers."""
    for pid in range(1, 9):
        host.add(pid)
    wrong: list[object] = []

    def work(pid: int) -> None:
        for _ in range(50):
            image = probed.image(pid)
            if image is None or image.name != f"name {pid}":
                wrong.append((pid, image))

    threads = [threading.Thread(target=work, args=(pid,)) for pid in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What hangs


@pytest.mark.parametrize("name", ["cmdline", "status", "stat"])
def test_what_hangs_is_given_up(host: Host, probed: ProcFS, name: str) -> None:
    """One process hangs, ninety-nine are read whole, and it costs some deadlines and no more."""
    for pid in range(1, 101):
        host.add(pid, hangs=name if pid == 50 else None)
    begun_s = time.monotonic()
    images = {image.pid: image for image in probed.images()}
    assert time.monotonic() - begun_s < 4 * DEADLINE_S + 3
    expected = set(range(1, 101)) - ({50} if name == "stat" else set())
    assert set(images) == expected
    assert all(image.cmdline == "x" for pid, image in images.items() if pid != 50)
    losses = probed.losses("source")
    assert any(loss.reason.startswith(f"timeout: reading {name} of ") for loss in losses)
    assert all(", pid 50," in loss.reason for loss in losses)
    assert {(loss.kind, loss.count) for loss in losses} == {("blind", 1)}
    if name == "cmdline":
        assert images[50].cmdline is None
        assert images[50].uid == 0
        assert provenance(images[50], "cmdline", known=False) == "timeout"
    assert probed.losses("source") == []


def test_without_a_prober_it_hangs(host: Host) -> None:
    """The same baseline, read by the recorder itself, does not end: the negative control."""
    host.add(1, hangs="cmdline")
    code = (
        "from kcap.readers.live.procfs import ProcFS; import sys;"
        "print('begun', flush=True); list(ProcFS(sys.argv[1]).images())"
    )
    command = [sys.executable, "-c", code, str(host.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"begun\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(5 * DEADLINE_S)
        finally:
            child.kill()


def test_a_process_that_hung_is_left_alone(host: Host, probed: ProcFS) -> None:
    """The second look at it costs nothing, tells the same, and the third, later, tries again."""
    host.add(1, hangs="cmdline")
    assert probed.image(1) is not None
    begun_s = time.monotonic()
    for _ in range(20):
        image = probed.image(1)
        assert image is not None
        assert image.late == {"cmdline"}
    assert time.monotonic() - begun_s < 10 * DEADLINE_S
    assert probed.late == 21
    (host.folder / "1" / "cmdline").unlink()
    (host.folder / "1" / "cmdline").write_bytes(b"now\0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: begun_s + client.BACK_OFF_S + 1)
        image = probed.image(1)
    assert image is not None
    assert image.cmdline == "now"


def test_many_that_hang_cost_no_more(host: Host) -> None:
    """A host full of such processes does not make the recorder wait for each of them."""
    for pid in range(1, 200):
        host.add(pid, hangs="cmdline" if pid % 2 else None)
    probed = ProcFS(str(host.folder), prober=Prober(str(host.folder), deadline_s=0.05))
    images = list(probed.images())
    probed.close()
    assert len(images) == 199
    assert probed.late >= 100
    assert probed.prober is not None
    assert probed.prober.waited == client.BRAKE, "those under way are not waited for, either"
    losses = probed.losses("source")
    assert len(losses) <= TOLD_MAX + 1
    assert sum(loss.count or 0 for loss in losses) == probed.late


def test_those_under_way_are_not_lost(host: Host, probed: ProcFS) -> None:
    """What was asked for behind the one that hangs is answered, by the next reader."""
    for pid in range(1, 200):
        host.add(pid, hangs="cmdline" if pid == 3 else None)
    asked = [probed.image_soon(pid) for pid in range(1, 200)]
    images = [wait() for wait in asked]
    assert [image and image.pid for image in images] == list(range(1, 200))
    assert [image.pid for image in images if image and image.late] == [3]


def test_state_files_that_hang(tmp_path: Path) -> None:
    """A folder of container runtimes whose disk does not answer costs its own deadline only."""
    for part in ("run", "var"):
        (tmp_path / part).mkdir()
    prober = Prober(root=str(tmp_path))
    asked = Request(wire.NOBODY, [Item(Op.FILE, f"/var/lib/docker/containers/{ID}/config.v2.json")])
    assert prober.read(asked).found == {asked.items[0].name: errno.ENOENT}
    path = tmp_path / asked.items[0].name[1:]
    path.parent.mkdir(parents=True)
    path.write_text('{"Name": "/mine", "Config": {"Image": "of:mine"}}')
    named = Runtimes(str(tmp_path), prober=prober)
    found = named.read(ID)
    assert found is not None
    assert (found.container_name, found.container_image) == ("mine", "of:mine")
    reader = reader_of(prober)
    os.kill(reader, signal.SIGSTOP)  # as a disk that does not answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "FILE_DEADLINE_S", 0.3)
        begun_s = time.monotonic()
        assert prober.read(asked).found[asked.items[0].name] == LATE
        assert 0.25 < time.monotonic() - begun_s < 2
    assert named.read(ID) == found
    prober.close()
