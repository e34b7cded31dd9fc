"""The proc connector without a kernel: its datagrams, their numbers, /proc, the subscription."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import KcapError, PrivilegeError
from kcap.model.batch import Batch
from kcap.model.side import Loss, SourceInfo
from kcap.readers.live import cn_proc, host, netlink
from kcap.readers.live.cn_proc import Columns, Gaps, decode
from kcap.readers.live.proc import ProcConnector
from kcap.readers.live.procfs import ProcFS, container_id
from kcap.state import State

CLOCKS = host.Clocks(realtime_ns=10**18, boottime_ns=500)
WRAP = 1 << 32


def datagram(
    what: int, *words: int, cpu: int = 0, seq: int = 0, at_ns: int = 7, tail: bytes = b""
) -> bytes:
    """A datagram as the kernel packs it."""
    size = 76 + len(tail)
    header = struct.pack("=IHHII", size, 3, 0, 0, 0)
    message = struct.pack("=IIIIHH", 1, 1, seq % WRAP, 0, 40 + len(tail), 0)
    event = struct.pack("=IIQ", what, cpu, at_ns)
    padded = [w % WRAP for w in (*words, *[0] * 6)][:6]
    return header + message + event + struct.pack("=6I", *padded) + tail


def comm(pid: int, name: bytes) -> bytes:
    words = struct.unpack("=4I", name.ljust(16, b"\0"))
    return datagram(cn_proc.COMM, pid, pid, *words)


def events(*datagrams: bytes) -> list[dict[str, object]]:
    made = Columns(decode(datagrams), CLOCKS)
    made.build()
    return Batch(made.count, made.columns).to_pylist()


# Datagrams


def test_the_layout_is_the_kernels() -> None:
    """The offsets that are read directly are those of the structure."""
    fields = cn_proc.MESSAGE.fields
    assert fields is not None

    assert cn_proc.MESSAGE.itemsize == 76
    assert [fields[n][1] for n in ("seq", "what", "timestamp_ns", "data")] == [24, 36, 44, 52]


def test_every_event_is_decoded() -> None:
    """Processes and threads, ids as user space has them, wait statuses in parts."""
    fork, thread, execute, uid, gid, sid, traced, core, left, killed, ended = events(
        datagram(cn_proc.FORK, 11, 10, 20, 20, at_ns=100),
        datagram(cn_proc.FORK, 1, 1, 21, 20),
        datagram(cn_proc.EXEC, 20, 20, cpu=3, seq=9),
        datagram(cn_proc.UID, 20, 20, 33, -1),
        datagram(cn_proc.GID, 20, 20, 34, 35),
        datagram(cn_proc.SID, 20, 20),
        datagram(cn_proc.PTRACE, 20, 20, 31, 30),
        datagram(cn_proc.COREDUMP, 20, 20, 11, 10),
        datagram(cn_proc.EXIT, 20, 20, 7 << 8, 17, 11, 10),
        datagram(cn_proc.EXIT, 22, 22, 9, 17, 0, 0),
        datagram(cn_proc.EXIT, 21, 20, 0, -1, 11, 10),
    )

    assert fork["ts"] == 10**18 + 100
    assert (fork["event"], fork["action"], fork["category"]) == ("fork", "process_fork", "process")
    assert (fork["pid"], fork["tid"], fork["arg_child_pid"]) == (10, 11, 20)
    assert fork["arg_start_time"] == 600, "time since boot, sleep included"
    assert (thread["action"], thread["pid"], thread["ppid"]) == ("thread_start", 20, 1)
    assert "tid" not in thread, "the kernel does not say which thread started it"
    assert (execute["cpu"], execute["seq"], execute["action"]) == (3, 9, "process_start")
    assert (uid["arg_ruid"], uid["arg_euid"]) == (33, WRAP - 1)
    assert (gid["arg_rgid"], gid["arg_egid"]) == (34, 35)
    assert sid["event"] == "sid"
    assert (traced["arg_tracer_tid"], traced["arg_tracer_pid"]) == (31, 30)
    assert core["ppid"] == 10
    assert (left["arg_exit_code"], left["arg_signal_code"], left["ppid"]) == (7, 0, 10)
    assert (killed["arg_exit_code"], killed["arg_signal_code"]) == (0, 9)
    assert "ppid" not in killed, "0 stands for unknown"
    assert (ended["action"], ended["arg_exit_signal"]) == ("thread_stop", -1)


def test_names_end_at_a_nul_and_keep_their_bytes() -> None:
    named, odd, full = events(comm(5, b"a b\0zz"), comm(5, b"\xff("), comm(5, b"x" * 16))

    assert named["arg_comm"] == "a b"
    assert (odd["arg_comm"], odd["arg_comm__raw"]) == ("\\xff(", b"\xff(")
    assert full["arg_comm"] == "x" * 16
    assert named["action"] == "process_rename"


def test_unknown_events_are_carried_with_their_bytes() -> None:
    """So is what a newer kernel appends to a known one; ids of unknown events are not made up."""
    unknown, longer = events(datagram(0x400, 1, 2, 3), datagram(cn_proc.EXEC, 5, 5, tail=b"more"))

    assert unknown["event"] == "what_0x00000400"
    assert unknown["arg_event_data"] == struct.pack("=6I", 1, 2, 3, 0, 0, 0)
    assert {"pid", "tid", "action"}.isdisjoint(unknown)
    assert (longer["event"], longer["arg_event_data"]) == ("exec", b"more")


def test_acknowledgements_are_no_events() -> None:
    """New kernels number them, old ones give our number back and no processor."""
    new = datagram(cn_proc.NONE, 0, cpu=1, seq=5)
    old = datagram(cn_proc.NONE, 13, cpu=-1 % WRAP, seq=77)
    decoded = decode([new, old])

    assert (len(decoded.messages), len(decoded.numbered), decoded.skipped) == (0, 1, 0)
    assert cn_proc.acknowledgement(new, 77) == 0
    assert cn_proc.acknowledgement(old, 77) == 13
    assert cn_proc.acknowledgement(old, 78) is None
    assert cn_proc.acknowledgement(datagram(cn_proc.EXEC), 77) is None
    assert cn_proc.acknowledgement(new[:75], 77) is None


GOOD = st.builds(
    datagram,
    st.sampled_from([*cn_proc.EVENTS, 0x400]),
    *[st.integers(0, WRAP - 1)] * 6,
    cpu=st.integers(0, 3),
    at_ns=st.integers(0, 1 << 62),
    tail=st.binary(max_size=8),
)
TRUNCATED = st.builds(lambda d, size: d[:size], GOOD, st.integers(0, 75))
FOREIGN = st.builds(
    lambda d, at, byte: d[:at] + byte + d[at + 1 :], GOOD, st.just(16), st.just(b"\7")
)


@given(st.lists(GOOD | TRUNCATED | FOREIGN | st.binary(max_size=90), max_size=12))
def test_no_datagram_breaks_the_decoder(datagrams: list[bytes]) -> None:
    """Each is an event or counted as skipped, and the events are those of the good ones alone."""
    decoded = decode(datagrams)
    good = [datagrams[i] for i in decoded.kept.tolist()]

    assert len(good) + decoded.skipped == len(datagrams)
    assert events(*datagrams) == events(*good)
    assert [m.tobytes() for m in decoded.messages] == [d[:76] for d in good]


@given(st.lists(GOOD, min_size=1, max_size=6), st.data())
def test_cut_and_foreign_datagrams_are_skipped(datagrams: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(datagrams) - 1))
    size = data.draw(st.integers(0, len(datagrams[at]) - 1))
    datagrams[at] = datagrams[at][:size]

    assert decode(datagrams).skipped == 1


# Gaps


@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60),
    st.lists(st.integers(0, 60), max_size=3),
    st.integers(WRAP - 30, WRAP - 1),
)
def test_lost_events_are_counted_exactly(
    sent: list[tuple[int, bool]], cuts: list[int], first: int
) -> None:
    """What is missing between two seen events of a processor, across wraps and batches."""
    numbers: dict[int, int] = defaultdict(lambda: first)
    seen, missing, waiting = [], Counter[int](), Counter[int]()
    for at, (cpu, lost) in enumerate(sent):
        if not lost:
            seen.append(datagram(cn_proc.EXEC, 1, 1, cpu=cpu, seq=numbers[cpu], at_ns=at))
            missing[cpu] += waiting.pop(cpu, 0)
        elif any(d[40] == cpu for d in seen):
            waiting[cpu] += 1
        numbers[cpu] += 1
    gaps = Gaps()
    losses: list[Loss] = []
    for a, b in pairwise(sorted({0, len(seen), *(min(c, len(seen)) for c in cuts)})):
        losses += gaps.look(decode(seen[a:b]).numbered, 0, "source")

    found = Counter[int]()
    for loss in losses:
        assert loss.cpu is not None
        assert loss.count is not None
        assert loss.kind == "lost"
        found[loss.cpu] += loss.count
    assert +found == +missing
    assert gaps.lost == missing.total()


def test_a_gap_has_its_interval_and_a_late_event_makes_none() -> None:
    gaps = Gaps()
    late = [datagram(cn_proc.EXEC, 1, 1, seq=s, at_ns=s * 10) for s in (1, 5, 3, 6)]
    losses = gaps.look(decode(late).numbered, 1000, "s")

    reason = cn_proc.REASON
    assert losses == [Loss("lost", 3, reason, "s", cpu=0, start_ns=1010, end_ns=1050)]


# /proc


def make_proc(folder: Path, pid: int, **files: bytes) -> None:
    place = folder / str(pid)
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_bytes(content)


def stat(pid: int, name: bytes, ppid: int, ticks: int, threads: int = 1) -> bytes:
    head = b"%d (%s) S %d 3 4 0 " % (pid, name, ppid)
    return head + b"0 " * 12 + b"%d 0 %d 0 0\n" % (threads, ticks)


def test_an_image_is_read_byte_for_byte(tmp_path: Path) -> None:
    """Names with parentheses, empty arguments and bytes that are no UTF-8 come through."""
    container = b"a" * 64
    make_proc(
        tmp_path / "proc",
        42,
        stat=stat(42, b"a) b (c\xfe", 7, 123),
        cmdline=b"prog\0\0x\xff\0",
        status=b"Name:\tx\nUid:\t33\t0\t0\t0\nGid:\t34\t0\t0\t0\n",
        cgroup=b"0::/system.slice/docker-" + container + b".scope\n",
    )
    (tmp_path / "proc/42/exe").symlink_to("/bin/prog (deleted)")
    users = tmp_path / "passwd"
    users.write_text("root:x:0:0::/:\nweb:x:33:33::/:\nother:x:33:1::/:\nbroken\n")
    procfs = ProcFS(str(tmp_path / "proc"), str(users))
    image = procfs.image(42)

    assert image is not None
    assert image.name == b"a) b (c\xfe"
    assert (image.ppid, image.session, image.start_ns) == (7, 4, 1_230_000_000)
    assert image.argv == ["prog", "", "x\udcff"]
    assert image.cmdline == b"prog  x\xff"
    assert image.exe == "/bin/prog (deleted)"
    assert (image.uid, image.gid, image.user) == (33, 34, "web")
    assert image.container_id == container.decode()
    assert procfs.image(42, started_by_ns=1_230_000_000) is not None
    assert procfs.image(42, started_by_ns=1_229_999_999) is None, "a later process of that pid"
    assert procfs.user(1) is None
    assert [i.pid for i in procfs.images()] == [42]


def test_a_process_that_is_gone_or_half_gone_is_no_error(tmp_path: Path) -> None:
    make_proc(tmp_path, 1, stat=stat(1, b"init", 0, 0), cmdline=b"")
    make_proc(tmp_path, 2, stat=b"2 (cut")
    make_proc(tmp_path, 3)
    # Once it is reaped, the kernel has no parent to tell, and says 0.
    make_proc(tmp_path, 4, stat=stat(4, b"reaped", 0, 5, threads=0), cmdline=b"")
    procfs = ProcFS(str(tmp_path), str(tmp_path / "none"))
    image = procfs.image(1)

    assert image is not None
    assert (image.name, image.cmdline, image.argv, image.exe) == ("init", None, None, None)
    assert (image.uid, image.user, image.container_id) == (None, None, None)
    assert [procfs.image(pid) for pid in (2, 3, 4, 5)] == [None] * 4


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("0::/", False),
        ("0::/user.slice/session-1.scope", False),
        ("5:memory:/docker/{}", True),
        ("0::/kubepods/pod1/cri-containerd-{}.scope", True),
        ("0::/docker/{}/init.scope", True),
        ("0::/docker/{}0", False),
        ("0::/machine.slice/libpod-conmon-{}.scope", False),
    ],
)
def test_container_ids(path: str, found: bool) -> None:
    """64 hex digits in a component of their own, behind a runtime's prefix at most."""
    wanted = "0123456789abcdef" * 4

    assert container_id(path.format(wanted).encode()) == (wanted if found else None)


def test_clocks_keep_their_offset_until_they_drift() -> None:
    now = host.Clocks.measure()

    assert not now.drifted(now._replace(realtime_ns=now.realtime_ns + host.DRIFT_NS))
    assert now.drifted(now._replace(realtime_ns=now.realtime_ns + host.DRIFT_NS + 1))
    assert now.drifted(now._replace(boottime_ns=now.boottime_ns - host.DRIFT_NS - 1))
    assert abs(now.pair()[0] - time.time_ns()) < 10**9


# The subscription


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a socket, to answer a subscription as the kernel would."""
    monkeypatch.setattr(netlink, "_ACKNOWLEDGE_S", 0.1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("number", "error", "says"),
    [
        (errno.EPERM, PrivilegeError, "refuses to send process events"),
        (errno.ENOMEM, KcapError, "Cannot allocate memory"),
        (None, KcapError, "did not answer the subscription within 0.1 s"),
    ],
)
def test_a_refused_subscription_says_why(
    kernel: tuple[socket.socket, socket.socket],
    number: int | None,
    error: type[KcapError],
    says: str,
) -> None:
    """A refusal and silence are different errors, both with what would be right or what to do."""
    ours, theirs = kernel
    theirs.send(datagram(cn_proc.EXEC, 1, 1))
    if number is not None:
        theirs.send(datagram(cn_proc.NONE, number))

    with pytest.raises(error, match=says) as caught:
        netlink.subscribe(ours)
    assert (number == errno.EPERM) == isinstance(caught.value, PrivilegeError)


def test_events_before_the_answer_are_kept(kernel: tuple[socket.socket, socket.socket]) -> None:
    """The subscription is as the kernel wants it, and nothing that came with its answer is lost."""
    ours, theirs = kernel
    early, answer = datagram(cn_proc.EXEC, 1, 1), datagram(cn_proc.NONE, 0, cpu=1, seq=5)
    theirs.send(early)
    theirs.send(answer)

    assert netlink.subscribe(ours) == [early, answer]
    asked = struct.unpack("=IHHIIIIIIHHI", theirs.recv(100))
    assert (asked[0], asked[1], asked[5:7], asked[9], asked[11]) == (40, 3, (1, 1), 4, 1)
    assert not ours.getblocking()
    assert netlink.dropped(ours) == 0


def test_a_refused_group_is_a_privilege_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 6.6 refuse unprivileged listeners when they bind."""

    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(PrivilegeError) as caught:
        netlink.connect(1 << 16)
    assert caught.value.hint


def test_other_systems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")

    with pytest.raises(KcapError, match="on Linux only"):
        netlink.connect(1 << 16)


# From datagrams to batches


@pytest.fixture
def source() -> Iterator[ProcConnector]:
    """A connector that takes its datagrams from the test."""
    try:
        made = ProcConnector()
    except KcapError as error:
        pytest.skip(f"{error}")
    made._datagrams.clear()
    yield made
    made.close()


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


@pytest.mark.root
def test_a_process_never_seen_before_is_looked_up_once(source: ProcConnector) -> None:
    """At a fork of it, not of its thread; the table learns it, and its child inherits."""
    me, child = os.getpid(), 1 << 30
    source._datagrams += [
        datagram(cn_proc.FORK, 1, 1, me + 1, me, at_ns=now_ns()),
        datagram(cn_proc.FORK, me, me, child, child, at_ns=now_ns()),
        datagram(cn_proc.FORK, me, me, child + 1, child + 1, at_ns=now_ns()),
        datagram(cn_proc.COMM, child, child, 0x61, at_ns=now_ns()),
    ]
    batch = source._batch()
    thread, first, second, _ = batch.to_pylist()
    state = State()
    state.update(batch)

    assert "exe" not in thread
    assert first["exe"] == os.path.realpath(sys.executable)
    assert "process_start_ns:procfs" in str(first["provenance"])
    assert "exe" not in second
    learnt = state.process(child)
    assert learnt is not None
    assert (learnt.name, learnt.exe, learnt.ppid) == ("a", first["exe"], me)
    source._datagrams.append(datagram(cn_proc.FORK, me, me, 5, 5, at_ns=now_ns()))
    assert "exe" not in source._batch().to_pylist()[0]


@pytest.mark.root
def test_what_an_event_changed_wins_over_proc(source: ProcConnector) -> None:
    """The kernel says the new user id; /proc may be one step ahead or behind."""
    me = os.getpid()
    source._datagrams.append(datagram(cn_proc.UID, me, me, 65534, 65534, at_ns=now_ns()))
    (row,) = source._batch().to_pylist()

    assert (row["uid"], row.get("user")) == (65534, ProcFS().user(65534))
    tags = str(row["provenance"]).split(",")
    assert "gid:procfs" in tags
    assert not any(tag.startswith("uid:") for tag in tags)


@pytest.mark.root
def test_clocks_that_jump_are_told_and_bad_datagrams_counted(
    source: ProcConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Event times follow the clock, and the source says from which pair on."""
    before_ns = source._clocks.realtime_ns
    jumped = source._clocks._replace(realtime_ns=before_ns + 10**9)
    monkeypatch.setattr(host.Clocks, "measure", lambda: jumped)
    source._datagrams += [datagram(cn_proc.SID, 9, 9, at_ns=5), b"junk", b""]
    batch = source._batch()

    told, skipped = batch.before
    assert isinstance(told, SourceInfo)
    assert len(told.clocks) == 2
    assert told.id == source.info.sources[0].id == batch.to_pylist()[0]["source"]
    assert batch.to_pylist()[0]["ts"] == before_ns + 10**9 + 5
    assert isinstance(skipped, Loss)
    assert (skipped.kind, skipped.count) == ("skipped", 2)
    assert source._batch().before == ()
