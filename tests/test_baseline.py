"""The host as it was when the recording began: every table against what is known to be there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sink_support import until

from kcap.errors import PrivilegeError
from kcap.model.batch import EMPTY
from kcap.model.side import SourceInfo
from kcap.readers.live import baseline, host
from kcap.readers.live.baseline import (
    Baseline,
    host_tables,
    interfaces,
    kernel,
    sockets,
    take,
)
from kcap.readers.live.baseline.sockets import Sockets
from kcap.readers.live.baseline.tasks import Tasks, described
from kcap.readers.live.probe.folders import OpenFolder
from kcap.readers.live.procfs import ProcFS
from kcap.state import State

HERE = SourceInfo("kcap-bpf", host="here", boot_id="boot", origin="00" * 16)


def rows(taken: Baseline, table: str, **like: object) -> list[dict[str, Any]]:
    """The rows of a table that have these values."""
    found = taken.tables.get(table, EMPTY).to_pylist()
    return [row for row in found if all(row.get(name) == value for name, value in like.items())]


@pytest.fixture(scope="module")
def now() -> Baseline:
    """The host as it is."""
    return baseline.take(HERE)


# Processes, threads, descriptors


def test_open_files_have_their_paths(tmp_path: Path) -> None:
    """Files, folders, pipes and memory files of a process, with flags, inodes and paths."""
    strange = os.fsencode(tmp_path) + b"/a b\n\xff"
    with contextlib.ExitStack() as stack:
        fds = [
            os.open(strange, os.O_RDWR | os.O_CREAT | os.O_APPEND),
            os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY),
            *os.pipe(),
            os.memfd_create("payload"),
            os.eventfd(0),
        ]
        for fd in fds:
            stack.callback(os.close, fd)
        taken = take(HERE)
        inodes = [os.fstat(fd).st_ino for fd in fds]
    found = {row["fd"]: row for row in rows(taken, "fds", pid=os.getpid())}

    file, folder, reading, writing, memory, event = (found[fd] for fd in fds)
    assert (file["type"], file["name"]) == ("file", f"{tmp_path}/a b\n\\xff")
    assert file["flags"] & (os.O_APPEND | os.O_ACCMODE) == os.O_APPEND | os.O_RDWR
    assert (folder["type"], folder["name"]) == ("directory", str(tmp_path))
    assert [(end["type"], end.get("name")) for end in (reading, writing)] == [("pipe", None)] * 2
    assert [end["flags"] & os.O_ACCMODE for end in (reading, writing)] == [0, 1]
    assert (memory["type"], memory["name"]) == ("memfd", "memfd:payload")
    assert event["type"] == "event"
    assert [row["inode"] for row in (file, folder, reading, writing, memory)] == inodes[:5]


LINKS = {
    "/usr/bin/x y": ("file", "/usr/bin/x y", None),
    "/tmp/gone (deleted)": ("file", "/tmp/gone (deleted)", None),
    "socket:[71]": ("socket", None, 71),
    "pipe:[72]": ("pipe", None, 72),
    "mnt:[4026531841]": ("file", "mnt:[4026531841]", 4026531841),
    "anon_inode:[eventpoll]": ("eventpoll", None, None),
    "anon_inode:inotify": ("inotify", None, None),
    "anon_inode:bpf-prog": ("bpf", None, None),
    "anon_inode:[perf_event]": ("perf_event", None, None),
    "anon_inode:[io_uring]": ("io_uring", None, None),
    "/memfd: (deleted)": ("memfd", "memfd:", None),
    "/memfd:a (deleted) (deleted)": ("memfd", "memfd:a (deleted)", None),
}


@pytest.mark.parametrize("target", LINKS)
def test_a_link_says_what_a_descriptor_is(target: str) -> None:
    """By the text that /proc/PID/fd has for it."""
    found = described(target)

    assert (found.type, found.name, found.inode) == LINKS[target]


def test_threads_are_there() -> None:
    """A process's threads by their ids, each with its process; only those that run."""
    let = threading.Event()
    other = threading.Thread(target=let.wait)
    other.start()
    try:
        mine = {row["tid"]: row for row in rows(take(HERE), "threads", pid=os.getpid())}
    finally:
        let.set()
        other.join()

    assert {os.getpid(), other.native_id} <= set(mine)
    assert mine[os.getpid()]["ptid"] == os.getppid()
    assert not rows(take(HERE), "threads", tid=other.native_id), "negative control"


def test_processes_that_vanish_are_left_out() -> None:
    """While processes come and go, the tables agree with each other and nothing fails."""
    storm = subprocess.Popen(
        ["sh", "-c", "while :; do (exit 0) & (exit 0) & wait; done"], stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(5):
            taken = take(HERE)
            known = {row["pid"] for row in rows(taken, "processes")}
            assert storm.pid in known
            assert all(row["process_key"] for row in rows(taken, "processes"))
            for table in ("threads", "fds"):
                assert {row["pid"] for row in rows(taken, table)} <= known
    finally:
        storm.kill()
        storm.wait()


@pytest.mark.parametrize("probed", [False, True])
def test_a_folder_belongs_to_its_process(probed: bool) -> None:
    """What is read below the folder of an ended process is never that of another one."""
    child = subprocess.Popen(["sleep", "60"])
    proc = ProcFS.probed() if probed else ProcFS()
    try:
        with proc.folder(child.pid) as folder:
            assert folder is not None
            until(lambda: folder.content("cmdline") == b"sleep\x0060\0")  # just after Popen
            child.kill()
            child.wait()
            assert folder.content("status") is folder.link("exe") is None
        with proc.folder(child.pid) as folder:
            assert folder is None
    finally:
        proc.close()
        child.kill()
        child.wait()


# Sockets


def test_sockets_have_their_ends_and_owners(tmp_path: Path) -> None:
    """Listening and connected ones of TCP, bound and connected ones of UDP, both IPs, unix."""
    with contextlib.ExitStack() as stack:

        def made(family: int, kind: int, bound: Any = None) -> socket.socket:
            one = stack.enter_context(socket.socket(family, kind))
            if bound is not None:
                one.bind(bound)
            return one

        server = made(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
        server.listen()
        client = made(socket.AF_INET, socket.SOCK_STREAM)
        client.connect(server.getsockname())
        udp = made(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.2", 0))
        six = made(socket.AF_INET6, socket.SOCK_DGRAM)
        six.connect(("::1", 5353))
        mapped = made(socket.AF_INET6, socket.SOCK_STREAM)
        mapped.connect(("::ffff:127.0.0.1", server.getsockname()[1]))
        path = f"{tmp_path}/a b.sock"
        unix = made(socket.AF_UNIX, socket.SOCK_STREAM, path)
        unix.listen()
        abstract = made(socket.AF_UNIX, socket.SOCK_DGRAM, "\0kcap test")
        fresh = made(socket.AF_INET, socket.SOCK_STREAM)
        at, to = client.getsockname(), server.getsockname()
        by = mapped.getsockname()
        expected = {
            server: ("ipv4", f"127.0.0.1:{to[1]}", "tcp", "listen"),
            client: ("ipv4", f"127.0.0.1:{at[1]}->127.0.0.1:{to[1]}", "tcp", "established"),
            udp: ("ipv4", f"127.0.0.2:{udp.getsockname()[1]}", "udp", None),
            six: ("ipv6", f"::1:{six.getsockname()[1]}->::1:5353", "udp", None),
            mapped: ("ipv4", f"127.0.0.1:{by[1]}->127.0.0.1:{to[1]}", "tcp", "established"),
            unix: ("unix", path, "stream", "listen"),
            abstract: ("unix", "@kcap test", "dgram", None),
        }
        taken = take(HERE)
        inodes = {one: os.fstat(one.fileno()).st_ino for one in expected}
        numbers = {one: one.fileno() for one in (*expected, fresh)}

    for one, (kind, name, protocol, state) in expected.items():
        (row,) = rows(taken, "fds", pid=os.getpid(), fd=numbers[one])
        told = json.loads(row["details"])
        assert (row["type"], row["name"]) == (kind, name)
        assert (told["l4_proto"], told.get("state")) == (protocol, state)
        (row,) = rows(taken, "sockets", inode=inodes[one])
        assert (row["pid"], row["protocol"], row.get("state")) == (os.getpid(), protocol, state)
    # A socket that is neither bound nor connected stands in none of the kernel's lists.
    (row,) = rows(taken, "fds", pid=os.getpid(), fd=numbers[fresh])
    assert (row["type"], row.get("name")) == ("socket", None)


@pytest.mark.root
def test_sockets_of_other_network_namespaces_are_found() -> None:
    """Each namespace has lists of its own, which show nothing of the others."""
    program = (
        "import socket,sys; s=socket.socket(); s.bind(('0.0.0.0', 4711)); s.listen();"
        " print(s.fileno(), flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        fd = int(child.stdout.readline())
        inode = Path(f"/proc/{child.pid}/ns/net").stat().st_ino
        taken = take(HERE)
    finally:
        child.communicate()

    (row,) = rows(taken, "fds", pid=child.pid, fd=fd)
    assert row["name"] == "0.0.0.0:4711"
    (row,) = rows(taken, "sockets", net_ns=inode, state="listen")
    assert (row["local_port"], row["pid"]) == (4711, child.pid)
    (row,) = rows(taken, "namespaces", type="net", inode=inode)
    assert (row["pid"], row["processes"]) == (child.pid, 1)
    assert inode != Path("/proc/self/ns/net").stat().st_ino, "negative control"


@given(st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 65535))
def test_addresses_are_read_as_the_kernel_prints_them(four: Any, six: Any, port: int) -> None:
    """Words in the machine's order, each as a number of eight digits."""

    def printed(packed: bytes) -> bytes:
        words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
        digits = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
        return f"{digits}:{port:04X}".encode()

    for address in (four, six):
        end = printed(address.packed)
        line = b" 0: %b %b 07 00000000:00000000 00:00000000 00000000 1000 0 99 2 0 0" % (end, end)
        found = sockets._internet(line, 1, "udp")
        plain = getattr(address, "ipv4_mapped", None) or address
        assert (found.family == "ipv4") == (plain.version == 4)
        form = socket.AF_INET if plain.version == 4 else socket.AF_INET6
        assert socket.inet_pton(form, found.local_addr or "") == plain.packed
        assert (found.local_port, found.uid, found.inode) == (port, 1000, 99)


@given(st.lists(st.binary(max_size=120), max_size=5))
def test_lines_that_are_none_are_counted(lines: list[bytes]) -> None:
    """A list of sockets may hold anything: what is no socket is counted, and nothing fails."""
    found = Sockets()
    content = b"heading\n" + b"\n".join(line.replace(b"\n", b"") or b"x" for line in lines)

    class OneFile(OpenFolder):
        def content(self, name: str, most: int = 0) -> bytes | None:
            return content if name == "net/tcp" else None

    found.look(1, OneFile(-1))

    assert found.left_out + len(found.rows()) == len(lines)


# The kernel and the host


@given(st.text(min_size=1, max_size=8), st.text(max_size=8))
def test_mounts_with_any_name(path: str, source: str) -> None:
    """Blanks, line feeds and backslashes stand in mountinfo as octal numbers."""
    with_slash = "/" + path.replace("\0", "")

    def escaped(text: str) -> bytes:
        raw = text.replace("\0", "").encode("utf-8", "surrogatepass")
        return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in raw)

    line = b"36 35 98:0 /mnt1 %b rw,noatime master:1 - ext3 %b rw,errors=continue" % (
        escaped(with_slash),
        escaped(source) or b"none",
    )
    (found,) = kernel.mounts(7, line + b"\n\nnonsense\n")

    assert found[:6] == (7, 36, 35, "98:0", "/mnt1", with_slash)
    assert found[6:] == (
        "rw,noatime",
        "master:1",
        "ext3",
        source.replace("\0", "") or "none",
        "rw,errors=continue",
    )


def test_mounts_are_those_of_this_process(now: Baseline) -> None:
    """Of this process's namespace: as many as its own list has, the root among them."""
    mine = Path("/proc/self/ns/mnt").stat().st_ino
    found = rows(now, "mounts", mount_ns=mine)

    assert len(found) == len(Path("/proc/self/mountinfo").read_bytes().splitlines())
    assert [row["fs_type"] for row in found if row["path"] == "/proc"][:1] == ["proc"]
    assert any(row["path"] == "/" for row in found)


def test_modules_are_read(tmp_path: Path) -> None:
    """Sizes, users, taints; zeros in place of an address are none; a kernel may have no list."""
    (tmp_path / "modules").write_text(
        "nf_nat 61440 2 nft_chain_nat,xt_MASQUERADE, Live 0xffffffffc0a00000\n"
        "diamorphine 16384 0 - Live 0x0000000000000000 (OE)\nhalf a line\n"
    )

    assert kernel.modules(str(tmp_path)) == [
        kernel.Module("diamorphine", 16384, 0, [], "live", None, "OE"),
        kernel.Module(
            "nf_nat",
            61440,
            2,
            ["nft_chain_nat", "xt_MASQUERADE"],
            "live",
            "0xffffffffc0a00000",
            None,
        ),
    ]
    assert kernel.modules(str(tmp_path / "none")) == []


def test_interfaces_are_those_of_the_host(now: Baseline) -> None:
    """As the socket module lists them; the loopback has its address."""
    found = {row["name"]: row for row in rows(now, "interfaces")}

    assert {(row["ifindex"], name) for name, row in found.items()} == set(socket.if_nameindex())
    assert "127.0.0.1/8" in found["lo"]["addresses"]
    assert found["lo"]["type"] == "loopback"


def test_users_and_groups_come_from_files(tmp_path: Path) -> None:
    """With home and shell; of two users of one number the first counts; nonsense is no user."""
    (tmp_path / "passwd").write_bytes(
        b"root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\nann:x:7:8:A:/home/a:\n"
        b"bad:x:-1:0::/:\nworse:x\nn\xffx:x:9::::\n+nis\nhuge:x:99999999999:0::/:\n"
    )
    (tmp_path / "group").write_text("sudo:x:27:ann,root\nempty:x:28:\n")
    taken = take(HERE, etc=str(tmp_path))

    assert [(row["uid"], row["name"]) for row in rows(taken, "users")] == [
        (0, "root"),
        (0, "toor"),
        (7, "ann"),
        (9, "n\\xffx"),
    ]
    (ann,) = rows(taken, "users", name="ann")
    assert (ann["gid"], ann["home"]) == (8, "/home/a")
    assert [row.get("members", []) for row in rows(taken, "groups")] == [["ann", "root"], []]
    state = State()
    state.update(EMPTY.with_before(taken.sides()))
    told = [row for row in state.snapshot().tables["users"].to_pylist() if row["uid"] == 0]
    assert [row["name"] for row in told] == ["root"]


def test_the_host_says_what_it_is(tmp_path: Path) -> None:
    """Distribution, time zone, machine id, preloaded libraries: from the files that have them."""
    (tmp_path / "os-release").write_text("# x\nPRETTY_NAME=\"Some 'OS' 1\"\nID=some\nBAD='\n")
    (tmp_path / "localtime").symlink_to("../usr/share/zoneinfo/America/New_York")
    (tmp_path / "machine-id").write_text("0123\n")
    (tmp_path / "ld.so.preload").write_text("/lib/evil.so\n")
    found = host.facts(etc=str(tmp_path))

    assert found["distribution"] == "Some 'OS' 1"
    assert found["time_zone"] == "America/New_York"
    assert found["machine_id"] == "0123"
    assert found["ld_so_preload"] == "/lib/evil.so\n"
    assert found["cpus"] == os.cpu_count()
    empty = host.facts(etc=str(tmp_path / "none"))
    assert not {"distribution", "machine_id", "ld_so_preload", "time_zone"} & set(empty)
    assert json.loads(json.dumps(found)) == found, "it goes into a JSON body"


@pytest.mark.root
def test_bpf_programs_are_listed(now: Baseline) -> None:
    """Those that the kernel holds; where it refuses, the recording says so and goes on."""
    for row in rows(now, "bpf_programs"):
        assert row["id"] > 0
        assert len(row["tag"]) == 16


def test_what_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rights a table is missing, and the source's details say which and why."""

    def refused() -> list[object]:
        raise PrivilegeError("listing the BPF programs: not permitted")

    def silent() -> list[object]:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(kernel, "programs", refused)
    monkeypatch.setattr(interfaces, "interfaces", silent)
    taken = take(HERE)

    assert taken.source.details["baseline_unavailable"] == {
        "bpf_programs": "listing the BPF programs: not permitted",
        "interfaces": "not permitted",
    }
    assert not {"bpf_programs", "interfaces"} & set(taken.tables)
    assert taken.losses == ()


@pytest.mark.root
def test_an_ordinary_user_gets_what_it_may_see() -> None:
    """Other users' descriptors are for root alone: their number is told, all else is there."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        taken = take(HERE)
        told = [taken.source.details.get("baseline_unavailable", {}), len(taken.losses)]
        known = [row["pid"] for row in rows(taken, "processes")]
        os.write(write, json.dumps([*told, os.getppid() in known]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        unavailable, losses, seen = json.loads(answer.read())
    assert os.waitpid(pid, 0)[1] == 0

    assert "permission denied" in unavailable["fds"]
    assert "bpf_programs" in unavailable
    assert (losses, seen) == (0, True)


# Limits


def test_a_full_table_is_cut_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no room is a loss, and the rest is there."""
    monkeypatch.setattr(host_tables, "ENTRIES_MAX", 2)
    taken = take(HERE)

    assert len(rows(taken, "users")) == 2
    assert {loss.kind for loss in taken.losses} == {"skipped"}
    assert any(loss.reason.startswith("users of the host") for loss in taken.losses)


def test_descriptors_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes and threads go on where the descriptors have taken their share."""
    monkeypatch.setattr("kcap.state.fds.ENTRIES_MAX", 3)
    tasks = Tasks(ProcFS(), Sockets())
    tasks.collect()

    assert len(tasks.descriptors()) == 3
    assert tasks.left_out > 0
    assert os.getpid() in {image.pid for image in tasks.images}


@pytest.mark.long
@pytest.mark.root
def test_many_processes_take_seconds() -> None:
    """2,000 processes of 20 descriptors each: a few seconds, half a millisecond a process."""
    proc = ProcFS.probed()
    fds = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(17)]
    children = []
    try:
        for _ in range(2000):
            pid = os.fork()
            if pid == 0:  # pragma: no cover
                signal.pause()
                os._exit(0)
            children.append(pid)
        begun = time.perf_counter()
        taken = take(HERE, proc)
        took_s = time.perf_counter() - begun
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        proc.close()
        for fd in fds:
            os.close(fd)

    assert set(children) <= {row["pid"] for row in rows(taken, "processes")}
    assert taken.tables["fds"].rows > 2000 * 17
    assert took_s < 8, "about 2 s where nothing else runs"
