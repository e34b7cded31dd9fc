"""Audit logs as an input: what auditd writes and ausearch prints becomes events."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from audit_support import execution, line
from cli_support import run
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import BadInputError, KcapError
from kcap.model.batch import Batch, concat
from kcap.model.side import Loss
from kcap.readers.audit_log import AuditLogReader
from kcap.readers.tracee import TraceeReader

LOG = [
    *execution([b"ls", b"-l", b"two words"], serial=5),
    line("USER_LOGIN", b"pid=9 uid=0 msg='op=login acct=\"ann\" res=failed'", serial=6),
    *execution([b"id"], serial=7),
]


def read(data: bytes, *, lenient: bool = False) -> list[Batch]:
    """The batches of a log."""
    reader = AuditLogReader(io.BytesIO(data), "audit.log", lenient=lenient)
    try:
        return list(reader.batches())
    finally:
        reader.close()


def rows(batches: list[Batch]) -> list[dict[str, Any]]:
    """The events of batches."""
    return concat(batches).to_pylist()


def losses(batches: list[Batch]) -> list[Loss]:
    """What batches say was lost."""
    return [side for batch in batches for side in batch.before if isinstance(side, Loss)]


def text(lines: list[bytes]) -> bytes:
    """A log of some lines."""
    return b"".join(each + b"\n" for each in lines)


def test_a_log_becomes_events() -> None:
    """Each event is there once, in the order in which they end, and nothing is lost."""
    found = read(text(LOG))

    assert losses(found) == []
    assert [(row["event"], row["seq"]) for row in rows(found)] == [
        ("sched_process_exec", 5),
        ("USER_LOGIN", 6),
        ("sched_process_exec", 7),
    ]
    assert rows(found)[0]["arg_argv"] == ["ls", "-l", "two words"]


def test_the_verbs_read_a_log(tmp_path: Path) -> None:
    """A log is known by its content: it is imported, and read as a capture is."""
    log = tmp_path / "anything"
    log.write_bytes(gzip.compress(text(LOG)))
    capture = tmp_path / "log.kcap"

    assert run("import", log, "-o", capture).exit_code == 0
    told = run("cat", capture).output
    assert told == run("cat", log).output
    assert "two words" in told


def test_what_ausearch_prints_is_read() -> None:
    """The lines that ausearch puts between events are none; enriched records say the same."""
    printed = [b"----", b"time->Tue Nov 14 22:13:20 2023", *LOG[:1], *LOG[1:]]
    enriched = [each + b'\x1dARCH=x86_64 SYSCALL=execve AUID="unset" UID="root"' for each in LOG]

    def bare(lines: list[bytes]) -> list[dict[str, Any]]:
        found = rows(read(text(lines)))
        return [{k: v for k, v in row.items() if k not in {"origin", "source"}} for row in found]

    assert bare(printed) == bare(LOG) == bare(enriched)


def test_the_machine_is_told_where_the_log_tells_it() -> None:
    """A log of several machines keeps their events apart, though their numbers are the same."""
    first = [b"node=one " + each for each in execution([b"ls"])]
    second = [b"node=two " + each for each in execution([b"id"])]
    mixed = [each for pair in zip(first, second, strict=True) for each in pair]

    assert [(row["host"], row["arg_argv"]) for row in rows(read(text(mixed)))] == [
        ("one", ["ls"]),
        ("two", ["id"]),
    ]


def test_another_machines_call_has_the_name_that_the_log_gives() -> None:
    """Numbers of an instruction set that is not known here mean nothing; the name does."""
    arm = execution([b"ls"])[0].replace(b"arch=c000003e syscall=59", b"arch=c00000b7 syscall=221")
    known = arm + b"\x1dARCH=aarch64 SYSCALL=execve"

    assert rows(read(text([known])))[0]["event"] == "sched_process_exec"
    assert rows(read(text([arm])))[0]["event"] == "syscall_221"


def test_a_bad_line_ends_it_or_is_counted() -> None:
    """A line that is no record is an error that names it; when lenient, it is skipped."""
    log = [*LOG[:2], b"no record at all", *LOG[2:]]
    with pytest.raises(BadInputError) as caught:
        read(text(log))
    assert caught.value.line == 3
    found = read(text(log), lenient=True)

    assert len(rows(found)) == 3
    assert [(loss.kind, loss.count) for loss in losses(found)] == [("skipped", 1)]
    assert "line 3" in losses(found)[0].reason


def test_a_log_that_begins_or_ends_within_an_event_says_so() -> None:
    """What a rotated log has only in part is told, not left out in silence."""
    begun = read(text(LOG[2:]))
    assert [row["seq"] for row in rows(begun)] == [6, 7]
    assert [(loss.kind, loss.count) for loss in losses(begun)] == [("lost", 1)]

    ended = read(text(LOG[:-4]) + LOG[-4][:20])
    assert [row["seq"] for row in rows(ended)] == [5, 6, 7]
    assert {loss.kind for loss in losses(ended)} == {"lost", "torn"}
    assert rows(ended)[2]["arg_missing_records__list"] == ["CWD", "EXECVE", "PATH"]


def test_only_logs_look_like_logs() -> None:
    """Logs of all kinds are known by their first line, and nothing else is."""
    yes = [text(LOG), b"node=one " + LOG[0], b"----\ntime->Tue\n" + LOG[0], LOG[0]]
    no = [b"", b"\n", b"type=thing msg=other", b'{"eventName":"x"}\n' + LOG[0], b"\x1f\x8b"]

    assert [AuditLogReader.sniff(head) for head in yes] == [True] * len(yes)
    assert [AuditLogReader.sniff(head) for head in no] == [False] * len(no)
    assert not TraceeReader.sniff(text(LOG))


@given(st.data())
def test_bad_bytes_raise_nothing_but_our_errors(data: st.DataObject) -> None:
    """Whatever is changed in a log, reading gives events, losses or an error that says where."""
    raw = bytearray(text(LOG))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=9))
        if not raw:
            return
    assert sum(batch.rows for batch in read(bytes(raw), lenient=True)) >= 0
    try:
        read(bytes(raw))
    except KcapError as error:
        assert error.line is not None  # noqa: PT017
