"""The tables of .scap files: every version of every list gives the same facts."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scap_support as scap
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import DamagedError
from kcap.readers import scap_tables
from kcap.readers.scap_blocks import Blocks, Table
from kcap.readers.scap_entries import Group, Interface, Machine, OpenFile, Task, User
from kcap.readers.scap_tables import Tables
from kcap.state.processes import FACTS, PASSWD, PROCFS

VERSIONS = sorted(scap.PROCESS_LISTS)
CONTAINER = "3f" * 32


def taken(*blocks: bytes) -> Tables:
    """The tables of a file of these blocks."""
    items, error, _ = scap.items(scap.section() + b"".join(blocks))
    assert error is None
    tables = Tables("x.scap")
    for item in items:
        if isinstance(item, Table):
            tables.take(item)
    return tables


def aliased(block: bytes) -> bytes:
    """A block with the number that its type had before the first release, where it had one."""
    kind = struct.unpack_from("<I", block)[0]
    return struct.pack("<I", scap.ALIASES.get(kind, kind)) + block[4:]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("renamed", [False, True])
def test_process_lists_of_all_versions(version: int, renamed: bool) -> None:
    """Each version gives the fields that it has, and those that it lacks are unknown."""
    cgroups = f"cpu=/docker/{CONTAINER}\0".encode()
    entries = [
        scap.process(version, tid=7, pid=7, ptid=1, sid=5, vpgid=6, comm="sh", exe="-sh"),
        scap.process(version, tid=8, pid=7, args=b"-c\0ls -l\0", uid=1000, gid=100),
        scap.process(version, tid=9, pid=9, args=b"x", cgroups=cgroups, cwd="/tmp"),
    ]
    block = scap.process_list(version, *entries)
    tables = taken(aliased(block) if renamed else block)
    first, second, third = tables.tasks.values()

    assert (first.tid, first.pid, first.ptid) == (7, 7, 1)
    assert (first.comm, first.exe, first.args) == ("sh", "-sh", [])
    assert first.sid == (5 if version >= 6 else None)
    assert first.exepath == ("/sbin/init" if version >= 7 else None)
    assert first.details.get("vpgid") == (6 if version >= 8 else None)
    assert first.details.get("root") == ("/" if version >= 5 else None)
    assert first.details.get("vmrss_kb") == (2 if version >= 2 else None)
    assert first.details.get("vtid") == (7 if version >= 4 else None)
    assert (second.args, second.uid, second.gid) == (["-c", "ls -l"], 1000, 100)
    assert (third.args, third.cwd) == (["x"], "/tmp")
    expected = [f"cpu=/docker/{CONTAINER}"] if version >= 4 else None
    assert third.cgroups == expected


APPENDED = [
    ("loginuid", "I", 500),
    ("exe_writable", "B", 1),
    ("cap_inheritable", "Q", 1),
    ("cap_permitted", "Q", 2),
    ("cap_effective", "Q", 3),
    ("exe_upper_layer", "B", 1),
    ("exe_ino", "Q", 77),
    ("exe_ino_ctime_ns", "Q", 78),
    ("exe_ino_mtime_ns", "Q", 79),
    ("exe_from_memfd", "B", 1),
    ("exe_lower_layer", "B", 0),
    ("pgid", "q", -1),
]
IN_FRONT = [("pidns_init_start_ns", "Q", 9), ("tty", "I", 34816)]


def test_appended_fields() -> None:
    """Fields appended to entries are read as far as they go; those beyond are passed over."""
    for count in range(6):
        old = APPENDED[:count]
        assert added(old) == {name: value for name, _, value in old}
    for count in range(6, len(APPENDED) + 1):
        new = IN_FRONT + APPENDED[:count]
        assert added(new) == {name: value for name, _, value in new}
    everything = {name: value for name, _, value in IN_FRONT + APPENDED}
    assert added(IN_FRONT + APPENDED, b"later fields") == everything


def added(fields: list[tuple[str, str, int]], rest: bytes = b"") -> dict[str, Any]:
    """What is read of fields behind the root directory."""
    more = b"".join(struct.pack("<" + form, value) for _, form, value in fields) + rest
    entries = [scap.process(9, more, tid=1), scap.process(9, tid=2)]
    tables = taken(scap.process_list(9, *entries))
    assert list(tables.tasks) == [1, 2]
    without = tables.tasks[2].details
    return {k: v for k, v in tables.tasks[1].details.items() if k not in without}


SOCKET = b"\x7f\0\0\1\x0a\0\0\2" + struct.pack("<HHB", 4000, 80, 1)
SOCKET6 = bytes(15) + b"\1" + b"\x20\1" + bytes(13) + b"\2" + struct.pack("<HHB", 1, 2, 2)
MAPPED = bytes(10) + b"\xff\xff"
KINDS: list[tuple[int, bytes, str | None, str | None]] = [
    (0, b"", None, None),
    (1, scap.text("/a"), "file", "/a"),
    (2, scap.text("/d"), "directory", "/d"),
    (3, SOCKET, "ipv4", "127.0.0.1:4000->10.0.0.2:80"),
    (4, SOCKET6, "ipv6", "::1:1->2001::2:2"),
    (4, (MAPPED + b"\1\2\3\4") * 2 + struct.pack("<HHB", 5, 6, 1), "ipv4", "1.2.3.4:5->1.2.3.4:6"),
    (5, b"\0\0\0\0" + struct.pack("<HB", 80, 1), "ipv4", "0.0.0.0:80"),
    (6, bytes(16) + struct.pack("<HB", 80, 1), "ipv6", ":::80"),
    (6, MAPPED + b"\1\2\3\4" + struct.pack("<HB", 80, 1), "ipv6", "::ffff:1.2.3.4:80"),
    (7, scap.text("pipe:[7]"), "pipe", "pipe:[7]"),
    (8, struct.pack("<QQ", 1, 2) + scap.text("/run/x\n"), "unix", "/run/x"),
    (9, scap.text("[eventfd]"), "event", "[eventfd]"),
    (10, scap.text("x"), None, "x"),
    (11, scap.text("s"), "signalfd", "s"),
    (12, scap.text("e"), "eventpoll", "e"),
    (13, scap.text("i"), "inotify", "i"),
    (14, scap.text("t"), "timerfd", "t"),
    (15, scap.text("n"), "netlink", "n"),
    (16, struct.pack("<I", 4097) + scap.text("/f"), "file", "/f"),
    (17, scap.text("b"), "bpf", "b"),
    (18, scap.text("u"), "userfaultfd", "u"),
    (19, scap.text("r"), "io_uring", "r"),
    (20, scap.text("m"), "memfd", "m"),
    (21, scap.text("p"), "pidfd", "p"),
]


@pytest.mark.parametrize("version", [1, 2])
def test_descriptors_of_all_kinds(version: int) -> None:
    """Each kind of descriptor has sysdig's word for it and its name, in both versions."""
    entries = [
        scap.descriptor(version, fd, kind, body) for fd, (kind, body, _, _) in enumerate(KINDS)
    ]
    block = scap.descriptor_list(version, 42, *entries)
    files = taken(aliased(block)).files

    assert [(f.tid, f.fd, f.inode) for f in files] == [(42, fd, 7) for fd in range(len(KINDS))]
    assert [(f.kind, f.type, f.name) for f in files] == [(k, t, n) for k, _, t, n in KINDS]
    assert files[18].flags == 4097
    assert (files[3].details, files[4].details) == ({"l4_proto": "tcp"}, {"l4_proto": "udp"})


def test_entries_of_descriptors_may_grow() -> None:
    """The device of a file is read where it is there; an unknown kind is kept without a name."""
    body = struct.pack("<I", 1) + scap.text("/f")
    files = taken(
        scap.descriptor_list(
            2,
            1,
            scap.descriptor(2, 0, 16, body + scap.u32(99)),
            scap.descriptor(2, 1, 16, body + scap.u32(99) + b"more"),
            scap.descriptor(2, 2, 77, b"what is this"),
            scap.descriptor(2, 3, 1, scap.text("/a")),
        )
    ).files

    assert [f.details for f in files] == [{"dev": 99}, {"dev": 99}, {"kind": 77}, {}]
    assert [f.name for f in files] == ["/f", "/f", None, "/a"]


def test_users_and_groups() -> None:
    """Both versions of the user list give users and groups by number."""
    for version, kind in ((1, 0x206), (2, 0x220), (1, 0x8012ABCD)):
        entries = [scap.user(version, 0, "root"), scap.group(version, 0, "wheel")]
        entries.append(scap.user(version, 1000, "ann"))
        tables = taken(scap.block(kind, b"".join(entries)))
        assert tables.users == {
            0: User(0, 0, "root", "/home/root", "/bin/sh"),
            1000: User(1000, 1000, "ann", "/home/ann", "/bin/sh"),
        }
        assert tables.groups == {0: Group(0, "wheel")}


def test_interfaces() -> None:
    """Both versions of the interface list give every address, with and without a speed."""
    v4, v6 = ("10.0.0.1", "255.0.0.0", "10.255.255.255"), ("fe80::1", "ffff::", "::")
    for version, kind in ((1, 0x205), (2, 0x219), (1, 0x8011ABCD)):
        entries = [
            scap.interface(version, 1, "eth0", *v4, speed=1000),
            scap.interface(version, 2, "eth0", *v6),
            scap.interface(version, 3, "lo", *v4),
            scap.interface(version, 4, "wlan0", *v6),
        ]
        if version == 2:
            entries.insert(1, struct.pack("<IHH", 9, 99, 0) + b"other")
        assert taken(scap.block(kind, b"".join(entries))).interfaces == [
            Interface("eth0", *v4, 1000),
            Interface("eth0", *v6, None),
            Interface("lo", *v4, None),
            Interface("wlan0", *v6, None),
        ]


def test_the_machine() -> None:
    """The machine says its name, size and, in newer files, when it was started and what it is."""
    new = taken(scap.machine("web-1", 8, boot_ns=5, flags=2 << 56 | 1 << 48)).machine
    old = taken(scap.machine("web-1", 8)).machine

    assert new == Machine("web-1", 8, 1 << 30, 32768, 5, "x86_64", "linux")
    assert old == Machine("web-1", 8, 1 << 30, 32768)


def test_processes() -> None:
    """A process is its main thread; its parent, user and container are looked up."""
    cgroups = f"cpu=/\0memory=/kubepods/cri-containerd-{CONTAINER}.scope\0".encode()
    first = taken(
        scap.block(0x220, scap.user(2, 1000, "ann")),
        scap.process_list(
            9,
            scap.process(9, tid=1, pid=1),
            scap.process(9, tid=21, pid=20, ptid=1, comm="worker", uid=1000),
            scap.process(9, tid=20, pid=20, ptid=1, comm="main", uid=1000, args=b"-a\0b c\0"),
            scap.process(9, tid=30, pid=30, ptid=21, sid=-1, exe="", cgroups=cgroups, uid=7),
            scap.process(9, tid=41, pid=40, ptid=99, comm="left", exepath=""),
        ),
    ).processes()
    init, main, child, orphan = first

    assert [p.pid for p in first] == [1, 20, 30, 40]
    assert (init.exe, init.cmdline, init.ppid, init.session) == ("/sbin/init", "init", 0, 1)
    assert (main.name, main.cmdline, main.user) == ("main", "init -a b c", "ann")
    assert (child.ppid, child.session, child.user, child.cmdline) == (20, None, None, None)
    assert (child.container_id, main.container_id) == (CONTAINER, None)
    assert (orphan.name, orphan.ppid, orphan.exe) == (None, 99, "init")
    tags = dict(zip(FACTS, main.provenance, strict=True))
    assert (tags["user"], tags["exe"], tags["container_id"]) == (PASSWD, PROCFS, None)


def test_threads_and_descriptors() -> None:
    """Threads have their own names; descriptors belong to processes, the main thread's first."""
    file, other = (scap.descriptor(2, 3, 1, scap.text(name)) for name in ("/main", "/thread"))
    more = scap.descriptor(2, 4, 3, SOCKET)
    tables = taken(
        scap.process_list(
            9,
            scap.process(9, tid=21, pid=20, ptid=20, comm="worker"),
            scap.process(9, tid=20, pid=20, comm="main", vtid=2, vpid=1),
        ),
        scap.descriptor_list(2, 20, file),
        scap.descriptor_list(2, 21, other, more),
        scap.descriptor_list(2, 99, scap.descriptor(2, 0, 8, bytes(16) + scap.text(""))),
    )

    assert [(t.tid, t.pid, t.name, t.ptid, t.provenance) for t in tables.threads()] == [
        (20, 20, "main", 0, PROCFS),
        (21, 20, "worker", 20, PROCFS),
    ]
    assert [t.details for t in tables.threads()] == ['{"ns_tid":2,"ns_pid":1}', None]
    assert [(d.pid, d.fd, d.type, d.name, d.details) for d in tables.descriptors()] == [
        (20, 3, "file", "/main", None),
        (20, 4, "ipv4", "127.0.0.1:4000->10.0.0.2:80", '{"l4_proto":"tcp"}'),
        (99, 0, "unix", "", None),
    ]
    assert {d.inode for d in tables.descriptors()} == {7}


def test_texts_that_are_none() -> None:
    """Names that are no UTF-8 are escaped, and end at a NUL."""
    tables = taken(scap.process_list(9, scap.process(9, comm=b"a\xff\0b", args=b"\xfe\0")))

    assert tables.tasks[1].comm == "a\\xff"
    assert tables.tasks[1].args == ["\\xfe"]


def test_unknown_blocks_are_counted() -> None:
    """Blocks of other types are passed over and counted."""
    tables = taken(scap.block(0x301, b"x"), scap.block(0x301, b""), scap.block(9, b""))

    assert tables.unknown == {0x301: 2, 9: 1}


WHOLE = {
    "machine": scap.machine(),
    "interfaces": scap.block(0x219, scap.interface(2, 1, "lo", *["1.1.1.1"] * 3)),
    "old interfaces": scap.block(0x205, scap.interface(1, 1, "lo", *["1.1.1.1"] * 3)),
    "users": scap.block(0x220, scap.user(2, 1, "ann") + scap.group(2, 1, "ann")),
    "old users": scap.block(0x206, scap.user(1, 1, "ann") + scap.group(1, 1, "ann")),
    "descriptors": scap.descriptor_list(2, 1, scap.descriptor(2, 0, 1, scap.text("/abcdefgh"))),
    "old descriptors": scap.descriptor_list(1, 1, scap.descriptor(1, 0, 1, scap.text("/abcdefg"))),
    **{
        f"processes v{version}": scap.process_list(
            version, scap.process(version), scap.process(version)
        )
        for version in VERSIONS
    },
}


def body(block: bytes) -> Table:
    """A block's type and body."""
    return Table(struct.unpack_from("<I", block)[0], block[8:-4], 28)


@pytest.mark.parametrize("block", WHOLE.values(), ids=WHOLE.keys())
def test_cut_tables_are_refused(block: bytes) -> None:
    """A table cut inside an entry is damaged, with its place; a whole one is not."""
    whole = body(block)
    Tables("x").take(whole)
    errors = [e for n in range(len(whole.body)) if (e := refusal(whole, n)) is not None]
    assert {(error.file, error.offset) for error in errors} == {("x", 28)}
    assert len(errors) > len(whole.body) * 3 // 4 - 12


def refusal(table: Table, length: int) -> DamagedError | None:
    """Why the first bytes of a table are refused, None where they are not."""
    try:
        Tables("x").take(table._replace(body=table.body[:length]))
    except DamagedError as error:
        return error
    return None


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_any_tables_are_read_or_refused(name: str, data: st.DataObject) -> None:
    """Whatever stands in a table, it is read or refused as damaged."""
    table = body(WHOLE[name])
    raw = bytearray(table.body)
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=6)):
        raw[at] = data.draw(st.integers(0, 255))
    tables = Tables("x")
    try:
        tables.take(table._replace(body=bytes(raw) + data.draw(st.binary(max_size=12))))
    except DamagedError:
        assert tables.unknown == {}
    tables.processes()


def test_a_flip_is_noticed_where_lengths_are_hit() -> None:
    """Negative control: an entry that says it is longer than its list is refused, not read."""
    table = body(scap.process_list(9, scap.process(9)))
    longer = struct.pack("<I", len(table.body) + 5) + table.body[4:]

    with pytest.raises(DamagedError, match="process list"):
        Tables("x").take(table._replace(body=longer))


COUNTS = {
    "alpine": (503, 719, 19),
    "curl_google": (54, 316, 31),
    "full_capture": (206, 1081, 34),
    "rename": (356, 969, 0),
    "sample": (94, 515, 34),
}
"""Threads, descriptors and users of samples; the number of threads is what sysdig -c ps lists."""


@pytest.mark.parametrize("name", COUNTS)
def test_tables_of_real_files(name: str, data: Callable[[str], Path]) -> None:
    """Recordings have their threads, descriptors and users, and every process a name."""
    tables = Tables(name)
    with data(f"scap/{name}.scap").open("rb") as stream:
        for item in Blocks(stream, name).read():
            if isinstance(item, Table):
                tables.take(item)

    assert (len(tables.tasks), len(tables.files), len(tables.users)) == COUNTS[name]
    assert tables.unknown == {}
    processes = tables.processes()
    assert all(process.name for process in processes)
    assert {process.pid for process in processes} >= {file.tid for file in tables.files}
    assert isinstance(next(iter(tables.tasks.values())), Task)
    assert all(isinstance(file, OpenFile) for file in tables.files)


def test_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries beyond what is kept are left out and counted, whatever the list."""
    for limit in ("TASKS_MAX", "FILES_MAX", "USERS_MAX", "INTERFACES_MAX", "UNKNOWN_MAX"):
        monkeypatch.setattr(scap_tables, limit, 3)
    lists = [
        scap.process_list(9, *[scap.process(9, tid=i) for i in range(5)], scap.process(9, tid=1)),
        scap.descriptor_list(1, 1, *[scap.descriptor(1, i, 0, b"") for i in range(5)]),
        scap.block(0x219, scap.interface(2, 1, "lo", *["1.1.1.1"] * 3) * 5),
        scap.block(0x220, b"".join(scap.user(2, i, "x") for i in range(5))),
        *[scap.block(0x300 + i, b"") for i in range(5)],
    ]
    tables = taken(*lists)

    lists_of = (tables.tasks, tables.files, tables.interfaces, tables.users)
    assert [len(found) for found in lists_of] == [3, 3, 3, 3]
    assert tables.left_out == 8
    assert tables.unknown == {0x300: 1, 0x301: 1, 0x302: 1, 0: 2}

    one = [scap.process_list(9, scap.process(9, tid=i)) for i in range(3)]
    monkeypatch.setattr(scap_tables, "BYTES_MAX", 2 * len(one[0]))
    tables = taken(*one)
    assert (list(tables.tasks), tables.left_out) == ([0, 1], 1)
