"""Audit records as text: whatever a process chose comes out as it was, and nothing else gets in."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest
from audit_support import execution, execve, line, untrusted
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kcap.model.side import Loss, SourceInfo
from kcap.readers import audit_execution, audit_records
from kcap.readers.audit_batches import Batches
from kcap.readers.audit_events import row_of
from kcap.readers.audit_groups import EVENT_BYTES, OPEN_MAX, PROCTITLE, WAIT_MS, Event, Groups
from kcap.readers.audit_records import BadRecordError, Record, parse_line

WORDS = st.binary(max_size=60).map(lambda raw: raw.replace(b"\0", b""))
ARGV = st.lists(WORDS, min_size=1, max_size=12)
SOURCE = SourceInfo("audit", "host", origin="0" * 32)


def grouped(lines: list[bytes], end: str = PROCTITLE) -> list[Event]:
    """The events of some lines."""
    groups = Groups(end)
    found = [event for each in lines for event in groups.add(parse_line(each), 0)]
    return [*found, *groups.rest()]


def rows(lines: list[bytes]) -> list[dict[str, Any]]:
    """The rows of some lines."""
    made = Batches(SOURCE)
    for event in grouped(lines):
        made.add(event)
    return made.finish().to_pylist()


def only_row(*lines: bytes) -> dict[str, Any]:
    """The row of the lines of one event."""
    [row] = rows(list(lines))
    return row


def call(number: int, words: str = "a0=0 a1=0 a2=0 a3=0", *, retval: int = 0) -> bytes:
    """The line of a system call."""
    text = (
        f"arch=c000003e syscall={number} success={'yes' if retval >= 0 else 'no'} exit={retval} "
        f"{words} items=0 ppid=1 pid=2 auid=1000 uid=0 gid=0 euid=0 suid=0 fsuid=0 egid=0 sgid=0 "
        'fsgid=0 tty=pts0 ses=3 comm="sh" exe="/bin/sh" key=(null)'
    )
    return line("SYSCALL", text.encode())


@given(WORDS)
@example(b"?")
@example(b"(null)")
@example(b"<too_long>")
@example(b"ABCD")
def test_what_a_process_chose_comes_out_as_it_was(raw: bytes) -> None:
    """Any bytes survive being spelled by the kernel, and their spelling is one word."""
    spelled = untrusted(raw)

    assert b" " not in spelled
    assert audit_records.untrusted(spelled) == raw


def test_a_naive_spelling_would_be_fooled() -> None:
    """Negative control: without the kernel's care, an argument becomes another field."""
    said = b"x uid=0"
    fooled = Record("SYSCALL", 0, 0, b"comm=" + said).fields()
    safe = Record("SYSCALL", 0, 0, b"comm=" + untrusted(said)).fields()

    assert fooled[b"uid"] == b"0"
    assert b"uid" not in safe


@given(ARGV, st.integers(100, 400))
def test_arguments_survive_pieces_and_records(argv: list[bytes], room: int) -> None:
    """Any arguments come out whole, whatever pieces and records the kernel makes of them."""
    records = [parse_line(line("EXECVE", text)) for text in execve(argv, room)]
    found = audit_execution.arguments(records)

    assert found.items == argv
    assert found.complete
    assert found.total_bytes == sum(map(len, argv)) + len(argv)


@given(ARGV, st.integers(100, 400), st.data())
def test_missing_arguments_are_noticed(argv: list[bytes], room: int, data: st.DataObject) -> None:
    """Negative control: without one of the words, the arguments do not count as complete."""
    words = b" ".join(execve(argv, room)).split(b" ")
    at = data.draw(st.sampled_from([i for i, word in enumerate(words) if b"_len" not in word]))
    value = words[at].partition(b"=")[2]
    left = b" ".join(words[:at] + words[at + 1 :])
    found = audit_execution.arguments([parse_line(line("EXECVE", left))])

    assert not found.complete or value in (b"", b'""')


@pytest.mark.parametrize("size", [audit_execution.ARGUMENTS_BYTES - 2, 200_000])
def test_long_arguments_are_kept_as_far_as_they_fit(size: int) -> None:
    """What is over the limit is left out, and the place says how much it was."""
    row = only_row(*execution([b"x", b"y" * size]))

    assert row["arg_argv_bytes"] == size + 3
    assert sum(map(len, row["arg_argv"])) < audit_execution.ARGUMENTS_BYTES + 100
    kept, _, dropped = row["arg_argv"][1].partition("…[")
    cut = int(dropped.partition(" ")[0] or 0)
    assert len(kept) + cut + (1 if not cut else 0) == size + 1


def test_an_execution_is_what_other_sources_call_it() -> None:
    """Event, columns and arguments have the names that the recorder in the kernel gives them."""
    row = only_row(*execution([b"x", b"two words", b"\xff"]))
    del row["host"], row["ord"], row["origin"], row["source"], row["kind"]

    assert row == {
        "action": "process_start",
        "arg_argv": ["x", "two words", "\\xff"],
        "arg_argv__raw": b"x\0two words\0\xff",
        "arg_argv_bytes": 14,
        "arg_cmdpath": "/bin/x",
        "arg_dev": 0xFE << 20 | 1,
        "arg_egid": 0,
        "arg_euid": 0,
        "arg_inode": 5,
        "arg_inode_mode": 0o100755,
        "arg_loginuid": 4294967295,
        "arg_pathname": "/bin/x",
        "arg_pwd": "/",
        "arg_sessionid__i64": 4294967295,
        "category": "process",
        "cmdline": "x two words \\xff",
        "cmdline__raw": b"x two words \xff",
        "event": "sched_process_exec",
        "exe": "/bin/x",
        "gid": 0,
        "is_compat": False,
        "pid": 1,
        "ppid": 7,
        "process_name": "x",
        "seq": 1,
        "syscall": "execve",
        "ts": 1700000000123000000,
        "uid": 0,
    }


@settings(max_examples=30)
@given(st.lists(ARGV, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_interleaved_events_come_apart(argvs: list[list[bytes]], chance: random.Random) -> None:
    """Whatever order the records of several events come in, each event is there once, whole."""
    parts = [execution(argv, serial, room=200) for serial, argv in enumerate(argvs, 1)]
    order = [serial for serial, lines in enumerate(parts) for _ in lines]
    chance.shuffle(order)
    left = [iter(lines) for lines in parts]
    found = rows([next(left[serial]) for serial in order])

    assert sorted(row["seq"] for row in found) == list(range(1, len(parts) + 1))
    for row in found:
        alone = only_row(*parts[row["seq"] - 1])
        assert {**row, "ord": 0} == alone
        assert "arg_missing_records" not in row


@pytest.mark.parametrize("kind", ["EXECVE", "CWD", "PATH"])
def test_a_missing_record_is_told(kind: str) -> None:
    """An execution without one of its records says which, and it counts as lost."""
    lines = [each for each in execution([b"x"]) if not each.startswith(b"type=" + kind.encode())]
    made = Batches(SOURCE)
    for event in grouped(lines):
        made.add(event)
    batch = made.finish()

    assert batch.to_pylist()[0]["arg_missing_records__list"] == [kind]
    [loss] = batch.before
    assert isinstance(loss, Loss)
    assert (loss.kind, loss.count) == ("lost", 1)
    assert kind in loss.reason


def test_an_event_without_its_call_is_none() -> None:
    """What lost the record that says what it was makes no event, and is counted."""
    made = Batches(SOURCE)
    for event in grouped(execution([b"x"], serial=9)[1:]):
        made.add(event)

    assert made.finish().rows == 0
    assert made.headless == {9}


def test_an_old_event_is_not_waited_for() -> None:
    """An event whose end does not come is given up after some time, not before."""
    groups = Groups()
    groups.add(parse_line(execution([b"x"])[0]), 1000)

    assert groups.older(1000 + WAIT_MS - 1) == []
    [event] = groups.older(1000 + WAIT_MS)
    assert not event.ended
    assert len(groups) == 0
    row = row_of(event)
    assert row is not None
    assert row.missing.count("EOE") == 1


def test_open_events_and_their_bytes_are_bounded() -> None:
    """Neither events that never end nor one that never ends to come take memory for ever."""
    groups = Groups()
    found = []
    for serial in range(OPEN_MAX + 10):
        found += groups.add(parse_line(line("CWD", b"cwd=2F", serial)), 0)
    assert len(groups) == OPEN_MAX
    assert [event.serial for event in found] == list(range(10))

    groups = Groups()
    text = b"argc=1 a0=" + b"61" * 3000
    for _ in range(300):
        groups.add(parse_line(line("EXECVE", text)), 0)
    [event] = groups.rest()
    assert sum(len(record.text) for record in event.records) <= EVENT_BYTES
    assert event.cut_bytes == 300 * len(text) - sum(len(r.text) for r in event.records)


CALLS = {
    "connect": (
        [call(42, "a0=3 a1=7f00 a2=10 a3=0", retval=-115)],
        [line("SOCKADDR", b"saddr=020001BB0A0000010000000000000000")],
        {
            "arg_sockfd": 3,
            "arg_addrlen": 16,
            "arg_remote_addr": '{"sa_family":"AF_INET","sin_addr":"10.0.0.1","sin_port":"443"}',
            "fd_type": "ipv4",
            "retval": -115,
            "status": "EINPROGRESS",
            "provenance": "arg_remote_addr:user",
        },
    ),
    "openat": (
        [call(257, "a0=ffffff9c a1=0 a2=241 a3=1b6", retval=3)],
        [
            line("CWD", b'cwd="/tmp"'),
            line("PATH", b'item=0 name="/tmp" inode=2 dev=fe:00 mode=041777 nametype=PARENT'),
            line("PATH", b'item=1 name="a/../b" inode=9 dev=fe:00 mode=0100644 nametype=CREATE'),
        ],
        {
            "arg_dirfd": -100,
            "arg_flags": 0o1101,
            "arg_mode": 0o666,
            "arg_path_arg": "a/../b",
            "arg_pathname": "/tmp/b",
            "arg_inode": 9,
        },
    ),
    "unlinkat": (
        [call(263, "a0=5 a1=0 a2=0 a3=0")],
        [
            line("CWD", b'cwd="/tmp"'),
            line("PATH", b'item=0 name="b" inode=9 dev=fe:00 mode=0100644 nametype=DELETE'),
        ],
        {"arg_dirfd": 5, "arg_path_arg": "b", "arg_pathname": None},
    ),
    "rename": (
        [call(82)],
        [
            line("CWD", b'cwd="/"'),
            line("PATH", b'item=0 name="/t/" inode=2 dev=fe:00 mode=041777 nametype=PARENT'),
            line("PATH", b'item=1 name="/t/" inode=2 dev=fe:00 mode=041777 nametype=PARENT'),
            line("PATH", b'item=2 name="/t/a" inode=3 dev=fe:00 mode=0100644 nametype=DELETE'),
            line("PATH", b'item=3 name="/t/b" inode=4 dev=fe:00 mode=0100644 nametype=DELETE'),
            line("PATH", b'item=4 name="/t/b" inode=3 dev=fe:00 mode=0100644 nametype=CREATE'),
        ],
        {"arg_oldpath": "/t/a", "arg_newpath": "/t/b"},
    ),
    "setresuid": (
        [call(117, "a0=ffffffff a1=3e8 a2=ffffffff a3=0")],
        [],
        {"arg_ruid": 0xFFFFFFFF, "arg_euid": 1000, "arg_suid": 0xFFFFFFFF},
    ),
    "ptrace": ([call(101, "a0=10 a1=4d2 a2=0 a3=0")], [], {"arg_request": 16, "arg_pid": 1234}),
    "capset": (
        [call(126)],
        [line("CAPSET", b"pid=0 cap_pi=0 cap_pp=21 cap_pe=1 cap_pa=0")],
        {"arg_effective": 1, "arg_permitted": 0x21, "arg_inheritable": 0},
    ),
    "finit_module": (
        [call(313, "a0=3 a1=0 a2=0 a3=0")],
        [line("KERN_MODULE", b'name="dummy"')],
        {"arg_fd": 3, "arg_name": "dummy"},
    ),
    "mmap": (
        [call(9, "a0=0 a1=1000 a2=7 a3=22")],
        [line("MMAP", b"fd=-1 flags=0x22")],
        {"arg_prot": 7, "arg_flags": 0x22, "arg_fd": -1},
    ),
    "kill": (
        [call(62, "a0=4d2 a1=9 a2=0 a3=0")],
        [line("OBJ_PID", b'opid=1234 oauid=0 ouid=0 oses=1 ocomm="sleep"')],
        {"arg_pid": 1234, "arg_sig": 9, "arg_ocomm__str": "sleep"},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_are_what_other_sources_call_them(name: str) -> None:
    """A call's event, result and arguments are those of the recorder in the kernel."""
    first, more, expected = CALLS[name]
    row = only_row(*first, *more, line("PROCTITLE", b'proctitle="sh"'))

    assert (row["event"], row["syscall"], row["uid"]) == (name, name, 0)
    assert {key: row.get(key) for key in expected} == expected


def test_a_path_that_the_kernel_could_not_tell_is_none() -> None:
    """The kernel's words for a path that is too long are not taken for one; an argument is."""
    lines = [
        each.replace(b'exe="/bin/x"', b'exe="<too_long>"') for each in execution([b"<too_long>"])
    ]
    row = only_row(*lines)

    assert "exe" not in row
    assert "arg_pathname" not in row
    assert row["arg_argv"] == ["<too_long>"]


def test_a_32_bit_call_has_its_own_number() -> None:
    """The instruction set says what a number means; sockets are told by the call within."""
    native = b"arch=c000003e syscall=11 success=yes exit=0"
    compat = native.replace(b"c000003e", b"40000003").replace(b"=11", b"=102")
    head = b" a0=3 a1=0 a2=0 a3=0 items=0 ppid=1 pid=2 uid=0 gid=0 euid=0 egid=0"
    row = only_row(
        line("SYSCALL", compat + head), line("SOCKETCALL", b"nargs=3 a0=5 a1=ff00 a2=10")
    )

    assert only_row(line("SYSCALL", native + head))["event"] == "munmap"
    assert (row["event"], row["is_compat"], row["arg_sockfd"], row["arg_addrlen"]) == (
        "connect",
        True,
        5,
        16,
    )


def test_a_program_that_fails_to_start_is_its_call() -> None:
    """A failed execution is the call, with its result, not a program that begins."""
    row = only_row(
        call(59, retval=-2),
        line("CWD", b'cwd="/tmp"'),
        line("PATH", b'item=0 name="no/such" nametype=UNKNOWN'),
    )

    assert (row["event"], row["retval"], row["status"]) == ("execve", -2, "ENOENT")
    assert row["arg_pathname"] == "/tmp/no/such"


def test_what_a_program_says_is_an_event_of_its_own() -> None:
    """A login that PAM told has its words as arguments, the quoted ones among them."""
    text = (
        b"pid=3 uid=0 auid=1000 ses=1 subj=x msg='op=PAM:authentication grantors=? "
        b'acct="root" exe="/bin/su" hostname=? addr=? terminal=pts/0 res=failed\''
    )
    row = only_row(line("USER_AUTH", text))

    assert (row["event"], row["pid"], row["exe"]) == ("USER_AUTH", 3, "/bin/su")
    assert row["arg_op__str"] == "PAM:authentication"
    assert (row["arg_acct__str"], row["arg_res__str"]) == ("root", "failed")
    assert row["arg_loginuid"] == 1000
    assert "arg_addr" not in row


def test_records_beside_a_call_are_kept() -> None:
    """What comes with a call and has no meaning here stands with it word by word."""
    row = only_row(call(50), line("BPF", b"prog-id=7 op=LOAD"))
    [records] = [value for name, value in row.items() if name.startswith("arg_records")]

    assert records == ["type=BPF prog-id=7 op=LOAD"]


def test_a_time_that_no_column_holds_is_none() -> None:
    """A time beyond what nanoseconds in 64 bits reach is refused; the last before it is not."""
    last = (1 << 63) // 10**9 - 1

    assert parse_line(b"type=CWD msg=audit(%d.999:1): cwd=2F" % last).ms == last * 1000 + 999
    with pytest.raises(BadRecordError, match="2262"):
        parse_line(b"type=CWD msg=audit(%d.000:1): cwd=2F" % (last + 1))


MUTATED = [b"\n".join([*execution([b"x", b"y z"]), call(42), line("SOCKADDR", b"saddr=0200")])]


@given(st.data())
def test_nothing_but_a_bad_record_comes_of_bad_bytes(data: st.DataObject) -> None:
    """Whatever bytes are changed, cut or repeated: events, or what is no record."""
    raw = bytearray(data.draw(st.sampled_from(MUTATED)))
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        if not raw:
            return
    groups, made = Groups(PROCTITLE), Batches(SOURCE)
    for each in bytes(raw).split(b"\n"):
        try:
            events = groups.add(parse_line(each), 0)
        except BadRecordError as error:
            made.refuse(str(error))
            continue
        for event in events:
            made.add(event)
    for event in groups.rest():
        made.add(event)
    made.finish().to_arrow()


def test_types_have_the_names_that_the_tools_give_them() -> None:
    """Every type that this host's audit library knows has its name here."""
    try:
        library = ctypes.CDLL("libaudit.so.1")
    except OSError:
        pytest.skip("no libaudit here")
    name_of = library.audit_msg_type_to_name
    name_of.restype = ctypes.c_char_p
    known = {number: name_of(number) for number in [1006, *range(1100, 3000)]}
    wrong = [
        (number, name)
        for number, name in known.items()
        if name and audit_records.type_name(number) != name.decode()
    ]

    assert wrong == []
    assert audit_records.type_name(1300) == "SYSCALL"
    assert audit_records.type_number("UNKNOWN[1999]") == 1999


def test_events_of_a_recording_that_is_over_are_left_out() -> None:
    """What the kernel still held of another recorder's rules is not of this recording."""
    old, own, others = (
        call(50).replace(b"key=(null)", b'key="' + key + b'"')
        for key in (b"kcap-1-2-e0-b64-w0", b"kcap-2-2-e0-b64-w0", b"kcap-x")
    )
    made = Batches(SOURCE)
    made.keys = frozenset({b"kcap-2-2-e0-b64-w0"})
    for event in [each for first in (old, own, others) for each in grouped([first])]:
        made.add(event)

    assert [row.get("arg_key__str") for row in made.finish().to_pylist()] == [None, "kcap-x"]
