"""Records of the kernel program as columns: each batch is what each record alone would be."""

from __future__ import annotations

import copy
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcap.errors import KcapError
from kcap.model import shape
from kcap.model.batch import Batch
from kcap.model.naming import argument, parts
from kcap.model.side import Loss
from kcap.readers.live.bpf import events, paths
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.decode import Decoded, Decoder, layouts, syscalls
from kcap.readers.live.host import Clocks
from kcap.writers.tracee_json import TraceeJson
from tests import recorder_oracle
from tests.recorder_strategies import records
from tests.recorder_support import LAYOUTS, Made, components, made, record

CLOCKS = Clocks(1_700_000_000_000_000_000, 1_000_000_000)
OFFSET_NS = CLOCKS.realtime_ns - CLOCKS.boottime_ns
ELSEWHERE = 8


def decoded(block: Made, **options: Any) -> list[dict[str, Any]]:
    """The rows of a block."""
    return rows_of(Decoder(LAYOUTS, CLOCKS, **options).batch(block))


def rows_of(result: Decoded) -> list[dict[str, Any]]:
    """The rows of a batch."""
    return Batch(result.rows, result.columns).to_pylist()


def one(event: str, **options: Any) -> dict[str, Any]:
    """The row of a record."""
    (row,) = decoded(made([record(event, **options)]))
    return row


def losses(block: Made) -> list[tuple[str, int | None]]:
    """What a batch says is missing in it."""
    return [(loss.kind, loss.count) for loss in Decoder(LAYOUTS, CLOCKS).batch(block).before]


def a_socket(**fields: Any) -> bytes:
    """A connected socket of IPv4, ``struct kcap_socket``."""
    told: dict[str, Any] = {
        "family": 2,
        "type": 1,
        "protocol": 6,
        "local_port": 4000,
        "remote_port": 80,
    }
    told |= {"local": [10, 0, 0, 1], "remote": [10, 0, 0, 2], "inode": 77, **fields}
    out = np.zeros((), LAYOUTS.socket)
    for name, value in told.items():
        if isinstance(value, list):
            out[name][: len(value)] = value
        else:
            out[name] = value
    return out.tobytes()


@settings(max_examples=250)
@given(st.lists(records(), max_size=8))
def test_batch_is_what_each_record_is(items: list[bytes]) -> None:
    """Columns of a batch hold what decoding one record after the other in plain Python gives."""
    rows = decoded(made(items))

    for row in rows:
        row.pop("shape")
    assert rows == recorder_oracle.decode(items, OFFSET_NS, syscalls())


def test_oracle_notices() -> None:
    """Negative control: a record that differs in one number or one byte of text is another row."""
    usual = record("openat", pieces={0: b"x", 3: components("/a")}, retval=-2, numbers={2: 64})
    (row,) = recorder_oracle.decode([usual], OFFSET_NS, syscalls())
    others = [
        record("openat", pieces={0: b"y", 3: components("/a")}, retval=-2, numbers={2: 64}),
        record("openat", pieces={0: b"x", 3: components("/b")}, retval=-2, numbers={2: 64}),
        record("openat", pieces={0: b"x", 3: components("/a")}, retval=-2, numbers={2: 65}),
        record("openat", pieces={0: b"x", 3: components("/a")}, retval=-3, numbers={2: 64}),
        record("openat", pieces={0: b"x", 3: components("/a")}, retval=-2, numbers={2: 64}, cpu=3),
    ]
    for other in others:
        (found,) = decoded(made([other]))
        found.pop("shape")
        assert found != row


@settings(max_examples=80)
@given(st.lists(records(), min_size=1, max_size=6))
def test_shape_tells_which_arguments_there_are(items: list[bytes]) -> None:
    """The shape names the event's arguments in order, and marks those that no column has."""
    for row in decoded(made(items)):
        told = shape.decode(row["shape"]).arguments
        known = events.events()[row["event"]].arguments
        assert [item.name for item in told] == [item.name for item in known]
        present = {parts(name)[0] for name in row}
        for item in told:
            assert (argument(item.name) in present) is not item.null, (item, row)


@settings(max_examples=60)
@given(st.lists(records(), min_size=1, max_size=5))
def test_rows_can_be_written_for_tracee(items: list[bytes]) -> None:
    """Whatever the kernel program hands over, Tracee's JSON can be written of it."""
    result = Decoder(LAYOUTS, CLOCKS).batch(made(items))
    with tempfile.TemporaryFile() as stream:
        sink = TraceeJson(stream)
        sink.write(Batch(result.rows, result.columns))
        sink.close()
        stream.seek(0)
        assert len(stream.readlines()) == len(items)


@settings(max_examples=150)
@given(st.lists(records(), max_size=4), st.data())
def test_damage_is_counted(items: list[bytes], data: st.DataObject) -> None:
    """Bytes that are no records never stop the others: each record is a row or is counted."""
    block = made(items)
    memory = bytearray(block.data.tobytes())
    for _ in range(data.draw(st.integers(0, 12))):
        if memory:
            at = data.draw(st.integers(0, len(memory) - 1))
            memory[at] = data.draw(st.integers(0, 255))
    more = data.draw(st.lists(st.integers(-(1 << 40), 1 << 40) | st.integers(0, len(memory))))
    offsets = np.array([*block.offsets, *more], np.int64)
    torn = memory[: data.draw(st.integers(0, len(memory)))]
    result = Decoder(LAYOUTS, CLOCKS).batch(Made(np.frombuffer(bytes(torn), np.uint8), offsets))
    rows = rows_of(result)
    damaged = sum(loss.count or 0 for loss in result.before if loss.kind == "damaged")
    assert len(rows) + damaged == len(offsets)
    assert all(row["event"] in events.events() for row in rows)


@given(st.binary(max_size=600), st.lists(st.integers(0, 80).map(lambda n: n * 8), max_size=6))
def test_no_bytes_are_too_strange(memory: bytes, offsets: list[int]) -> None:
    """Memory of any content decodes to rows and a count of what is none."""
    block = Made(np.frombuffer(memory, np.uint8), np.array(offsets, np.int64))
    result = Decoder(LAYOUTS, CLOCKS).batch(block)
    assert result.rows + sum(loss.count or 0 for loss in result.before) >= len(offsets)


def test_damage_examples() -> None:
    """An unknown event, pieces beyond the record and a record beyond the memory are damage."""
    good = record("close", numbers={0: 3})
    at = LAYOUTS.record.fields
    assert at is not None
    unknown = bytearray(good)
    unknown[at["event"][1]] = 255
    longer = bytearray(good)
    longer[at["piece"][1]] = 1
    beyond = bytearray(good)
    beyond[at["bytes"][1] + 2] = 255
    assert losses(made([good, good])) == []
    assert losses(made([good, bytes(unknown), bytes(longer), bytes(beyond), good])) == [
        ("damaged", 3)
    ]


def test_order_is_that_of_time() -> None:
    """Records of several rings come in order of time; those of one time as they lie."""
    items = [record("close", ts_ns=t, numbers={0: fd}) for fd, t in enumerate([5, 3, 5, 1, 3])]
    assert [row["arg_fd"] for row in decoded(made(items))] == [3, 1, 4, 0, 2]


# ---- who ----


def test_identity() -> None:
    """Who, when and where stand in the columns as the kernel gives them."""
    row = one("close", numbers={0: 7})
    told: dict[str, Any] = {
        "pid": 100,
        "tid": 101,
        "ppid": 99,
        "ns_pid": 10,
        "ns_tid": 11,
        "ns_ppid": 9,
    }
    told |= {"uid": 1000, "gid": 1001, "cgroup_id": 4242, "process_start_ns": 3_000_000_000}
    told |= {"thread_start_ns": 3_000_000_001, "mount_ns": 4026531840, "pid_ns": 4026531836}
    told |= {"cpu": 1, "process_name": "bash", "ts": 5_000_000_000 + OFFSET_NS}
    told |= {"syscall": "close", "retval": 0, "status": "SUCCESS", "is_compat": False}
    assert {name: row[name] for name in told} == told


def test_events_of_nobody_have_no_identity() -> None:
    """A state that changes for a packet is not the doing of the process that was interrupted."""
    mine = one("inet_sock_set_state", pieces={3: a_socket()}, numbers={0: 7, 1: 2})
    packet = one("inet_sock_set_state", pieces={3: a_socket()}, flags=ELSEWHERE)
    assert (mine["pid"], mine["process_name"], mine["cpu"]) == (100, "bash", 1)
    assert not {"uid", "ppid", "mount_ns", "thread_start_ns"} & set(mine)
    assert not {"pid", "tid", "process_name", "cgroup_id", "process_start_ns"} & set(packet)
    assert packet["fd_name"] == "10.0.0.1:4000->10.0.0.2:80"


def test_compat_calls() -> None:
    """A 32-bit call has its own name; numbers in two registers are put together."""
    numbers = {0: 3, 3: 0xFFFFFFFF, 4: 1}
    row = one("pread64", flags=1, nr=180, numbers=numbers)
    assert (row["syscall"], row["is_compat"]) == ("pread64", True)
    assert row["arg_offset"] == 0x1FFFFFFFF
    assert one("pread64", nr=180, numbers=numbers)["arg_offset"] == 0xFFFFFFFF
    assert one("mmap", flags=1, nr=192, numbers={5: 2})["arg_off"] == 8192
    assert one("connect", flags=1, nr=102)["syscall"] == "socketcall"
    assert one("close", nr=999)["syscall"] == "syscall_999"


# ---- files ----


def test_opened_files_have_the_path_of_the_kernel() -> None:
    """What was opened has the kernel's path, whatever the process called it."""
    row = one(
        "openat",
        pieces={0: b"../tmp/link", 2: components("/etc/shadow")},
        numbers={0: -100, 6: 1_700_000_000_000_000_001, 7: 0x800001, 8: 12, 9: 0o100640},
        retval=3,
    )
    assert row["arg_pathname"] == row["fd_name"] == "/etc/shadow"
    assert (row["arg_path_arg"], row["fd_type"]) == ("../tmp/link", "file")
    assert row["provenance"] == "arg_path_arg:user"
    assert (row["arg_dev"], row["arg_inode"], row["arg_dirfd"]) == (0x800001, 12, -100)


def test_files_that_were_not_opened_have_the_path_that_was_meant() -> None:
    """Of a call that failed the path is put together from what the process said, and marked."""
    pieces = {0: b"../x//y", 3: components("/home/u")}
    row = one("openat", pieces=pieces, numbers={0: -100}, retval=-2)
    assert (row["arg_pathname"], row["status"]) == ("/home/x/y", "ENOENT")
    assert row["provenance"] == "arg_path_arg:user,arg_pathname:user"
    assert not {"fd_name", "fd_type", "arg_inode", "arg_ctime"} & set(row)


def test_working_directory_after_it_changed() -> None:
    """The directory that a call returns from is the one it led to, not that below the old one."""
    pieces = {0: b"sub", 3: components("/home/u/sub")}
    row = one("chdir", pieces=pieces)
    assert (row["arg_path"], row["provenance"]) == ("/home/u/sub", "arg_path_arg:user")
    assert one("chdir", pieces=pieces, retval=-2)["arg_path"] == "/home/u/sub/sub"


@pytest.mark.parametrize(
    ("raw", "mode", "name", "type_"),
    [
        (b"", 0o10600, "pipe:[55]", "pipe"),
        (b"TCP\0", 0o140777, "socket:[55]", "socket"),
        (b"memfd:\xffx\0", 0o100777, "memfd:\\xffx", "memfd"),
        (b"[eventpoll]\0", 0o600, "anon_inode:[eventpoll]", "eventpoll"),
        (b"inotify\0", 0o600, "anon_inode:inotify", "inotify"),
        (b"[new thing]\0", 0o600, "anon_inode:[new thing]", "anonymous"),
        (b"/\0", 0o100444, "ns:[55]", "namespace"),
        (b"\0", 0o40755, "/", "directory"),
        (b"pts\0dev\0\0", 0o20620, "/dev/pts", "device"),
        (b"fifo\0tmp\0\0", 0o10600, "/tmp/fifo", "pipe"),
        (b"b\0a\0", 0o100644, ".../a/b", "file"),
        (b"b\0/\0", 0o100644, ".../b", "file"),
    ],
)
def test_names_of_files(raw: bytes, mode: int, name: str, type_: str) -> None:
    """A file is called what /proc calls it; one whose beginning is not known says so."""
    row = one("read", pieces={2: raw}, numbers={0: 3, 8: 55, 9: mode})
    assert (row["fd_name"], row["arg_pathname"], row["fd_type"]) == (name, name, type_)


def test_bytes_that_are_no_text_are_kept() -> None:
    """A path that is not UTF-8 reads escaped, with its exact bytes beside it."""
    row = one("unlink", pieces={0: b"/tmp/\xff"})
    assert (row["arg_pathname"], row["arg_pathname__raw"]) == ("/tmp/\\xff", b"/tmp/\xff")


@given(st.text("ab./", max_size=12), st.sampled_from(["/", "/x", "/x/y", ".../z"]))
def test_resolved_paths_are_normal(word: str, base: str) -> None:
    """A resolved path has no dots and doubled slashes, and is resolved already."""
    path = paths.resolve(word.encode(), base.encode())
    inside = path.removeprefix(paths.UNKNOWN_START)
    assert not {b".", b".."} & set(inside.split(b"/"))
    assert b"//" not in path
    assert path.startswith((b"/", paths.UNKNOWN_START))
    assert paths.resolve(path, b"/elsewhere") == path or path.startswith(paths.UNKNOWN_START)


# ---- programs ----


def execution(argv: bytes, tail: bytes = b"", total: int | None = None) -> dict[str, Any]:
    """The row of a program that begins."""
    total = len(argv) + len(tail) if total is None else total
    return one("sched_process_exec", pieces={4: argv, 5: tail}, numbers={11: total})


def test_executions() -> None:
    """A program that begins has its file, arguments, directory and what it was before."""
    row = one(
        "sched_process_exec",
        pieces={
            0: b"./run",
            1: b"/bin/sh",
            2: components("/usr/bin/dash"),
            3: components("/home/u"),
            4: b"./run\0a b\0",
            6: b"LD_PRELOAD=/x.so\0",
            7: b"bash".ljust(16, b"\0"),
        },
        numbers={11: 10, 2: 999, 3: 42, 5: 1000 | 5 << 32, 9: 0o100755},
    )
    told: dict[str, Any] = {
        "exe": "/usr/bin/dash",
        "arg_pathname": "/usr/bin/dash",
        "arg_cmdpath": "./run",
    }
    told |= {"arg_interp": "/bin/sh", "arg_pwd": "/home/u", "arg_prev_comm": "bash"}
    told |= {"cmdline": "./run a b", "arg_argv": ["./run", "a b"], "session": 42}
    told |= {"arg_env": ["LD_PRELOAD=/x.so"], "arg_euid": 1000, "arg_egid": 5}
    assert {name: row[name] for name in told} == told
    assert not {"retval", "status", "fd_name"} & set(row)


def test_long_arguments() -> None:
    """Up to the room there is arguments are exact; beyond, it says how much is left out, where."""
    assert execution(b"a\0bc", b"d\0")["arg_argv"] == ["a", "bcd"]
    row = execution(b"sh\0-c\0aaa", b"zzz\0end\0", 1000)
    assert row["arg_argv"] == ["sh", "-c", f"aaa…[{1000 - 9 - 8} bytes]…zzz", "end"]
    assert row["cmdline"].endswith("zzz end")
    assert row["arg_argv_bytes"] == 1000


def test_environment_by_name() -> None:
    """Of the environment only the variables asked for are kept."""
    block = made([record("sched_process_exec", pieces={6: b"A=1\0HOME=/x\0HOMER=2\0"})])
    assert decoded(block)[0]["arg_env"] == ["A=1", "HOME=/x", "HOMER=2"]
    assert decoded(block, variables={"HOME", "B"})[0]["arg_env"] == ["HOME=/x"]


@pytest.mark.parametrize(
    ("status", "code", "signal", "core"),
    [(0, 0, 0, False), (256, 1, 0, False), (0x8B, 0, 11, True), (9, 0, 9, False)],
)
def test_exits(status: int, code: int, signal: int, core: bool) -> None:
    """A wait status says how a process ended."""
    row = one("sched_process_exit", numbers={0: status, 1: 1})
    assert row["arg_exit_code"] == code
    assert row["arg_signal_code"] == signal
    assert row["arg_core_dumped"] is core
    assert row["arg_process_group_exit"] is True


# ---- sockets ----

SOCKADDR = struct.pack("<H", 2) + struct.pack(">H", 53) + bytes([8, 8, 8, 8]) + bytes(8)


def test_connections() -> None:
    """A socket has both its ends; those of a connection that failed are what was asked for."""
    row = one("connect", pieces={3: a_socket(), 5: SOCKADDR})
    assert (row["fd_type"], row["fd_name"]) == ("ipv4", "10.0.0.1:4000->10.0.0.2:80")
    assert row["arg_remote_addr"] == '{"sa_family":"AF_INET","sin_addr":"10.0.0.2","sin_port":"80"}'
    assert "provenance" not in row
    unbound = a_socket(local=[0] * 4, remote=[0] * 4, local_port=0, remote_port=0)
    row = one("connect", pieces={3: unbound, 5: SOCKADDR}, retval=-111)
    assert row["fd_name"] == "0.0.0.0:0->8.8.8.8:53"
    assert row["arg_remote_addr"] == row["arg_addr__json"]
    assert row["provenance"] == "arg_remote_addr:user"
    assert "arg_local_addr" not in row


def test_accepted_sockets_are_the_servers() -> None:
    """From its accept on, a socket's name leads from the client to the server."""
    decoder = Decoder(LAYOUTS, CLOCKS)
    accept = made([record("accept4", pieces={3: a_socket()}, retval=5)])
    read = made(
        [record("recvfrom", pieces={3: a_socket()}), record("sendto", pieces={3: a_socket()})]
    )
    other = made([record("sendto", pieces={3: a_socket(inode=78)})])
    theirs, mine = "10.0.0.2:80->10.0.0.1:4000", "10.0.0.1:4000->10.0.0.2:80"
    assert [r["fd_name"] for r in rows_of(decoder.batch(read))] == [mine, mine]
    assert [r["fd_name"] for r in rows_of(decoder.batch(accept))] == [theirs]
    assert [r["fd_name"] for r in rows_of(decoder.batch(read))] == [theirs, theirs]
    assert [r["fd_name"] for r in rows_of(decoder.batch(other))] == [mine]


def test_unix_sockets() -> None:
    """A Unix socket is named by a path, or by its abstract name behind an @."""
    unix = a_socket(family=1)
    row = one("connect", pieces={3: unix, 5: b"\1\0\0name", 6: b"", 7: b"\0name"})
    assert (row["fd_type"], row["fd_name"]) == ("unix", "@name")
    assert row["arg_addr__json"] == '{"sa_family":"AF_UNIX","sun_path":"@name"}'
    assert one("socket", pieces={3: unix})["fd_name"] == "socket:[77]"


def test_reads_of_sockets() -> None:
    """A read of a descriptor that is a socket has its ends, not only its number."""
    numbers = {0: 3, 8: 77, 9: 0o140777}
    row = one("read", pieces={2: b"TCP\0", 3: a_socket()}, numbers=numbers)
    assert (row["fd_type"], row["fd_name"]) == ("ipv4", "10.0.0.1:4000->10.0.0.2:80")
    assert row["arg_pathname"] == "socket:[77]"


# ---- what is missing ----


def test_cuts_and_faults_are_counted() -> None:
    """A string that was cut is a loss, and one that could not be read where the call succeeded."""
    assert losses(made([record("unlink", flags=4)])) == [("cut", 1)]
    assert losses(made([record("unlink", flags=2, retval=0)])) == [("cut", 1)]
    assert losses(made([record("unlink", flags=2, retval=-14)])) == []
    (loss,) = Decoder(LAYOUTS, CLOCKS, source="s").batch(made([record("unlink", flags=4)])).before
    assert loss == Loss("cut", 1, loss.reason, "s")


def test_layout_is_checked() -> None:
    """Types of another program are refused, as are structures of other members."""
    kernel = Path("/sys/kernel/btf/vmlinux")
    if not kernel.exists():
        pytest.skip(f"no {kernel}")
    with pytest.raises(KcapError, match="no structure kcap_record"):
        layouts(Btf(kernel.read_bytes()))


def test_copy_of_block_is_left_alone() -> None:
    """Decoding changes nothing in the memory of the records."""
    block = made([record("pread64", flags=1, nr=180, numbers={3: 5, 4: 1})])
    before = copy.deepcopy(block)
    decoded(block)
    assert (block.data == before.data).all()
