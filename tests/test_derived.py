"""Derived events: each view of a recorded event, and how they stand beside those."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from derived_support import OPEN, RECORDER, Event, arguments, derived_rows, recording
from hypothesis import given
from hypothesis import strategies as st

from kcap.model import catalogue, naming
from kcap.model.batch import Batch, Column, Rows, concat, constant
from kcap.model.classes import TypeClass
from kcap.model.side import SourceInfo
from kcap.opening import open_source
from kcap.packets import decode as packets
from kcap.replay.derivation import View, operands
from kcap.replay.derived import FAMILY, Derivation, names

# the catalogue


def recorded() -> dict[str, set[str]]:
    """The events that the recorder gives, and the arguments of each."""
    text = resources.files("kcap.readers.data").joinpath("linux_events.tsv").read_text("utf-8")
    heading, *rows = [line.split("\t") for line in text.splitlines()]
    event, listed = heading.index("event"), heading.index("arguments")
    return {row[event]: {a.split(":")[0] for a in row[listed].split()} for row in rows}


def test_the_catalogue_is_understood() -> None:
    """Every view looks at arguments that the recorder gives its base event, and has known ones."""
    known = recorded() | {"net_packet": {*packets.ARGUMENTS}}
    for entry in catalogue.derived(FAMILY):
        places = [place for _, _, place in entry.arguments]
        places += [m["place"] for m in View(entry).terms] + [place for _, place in entry.columns]
        asked = {name for place in places for name in operands(place) if name[0] != "$"}
        assert asked <= known[entry.base], entry
        for name, kind, _ in entry.arguments:
            assert kind, entry
            assert name in catalogue.arguments(), entry


def test_the_events_of_the_seed() -> None:
    """The views and the recorded events are all that signatures of the first era ask for."""
    asked = {
        *("magic_write", "mem_prot_alert", "security_bprm_check", "security_file_open"),
        *("security_kernel_read_file", "security_sb_mount", "security_socket_connect", "execve"),
    }
    assert asked <= names()


def test_arguments_are_those_of_tracee(data: Callable[[str], Path]) -> None:
    """A view has an argument of a name only where Tracee's event of some release has it."""
    known: dict[str, set[str]] = {}
    for table in sorted(data("tracee/events").glob("events_v*.tsv")):
        for line in table.read_text().splitlines()[1:]:
            event, *_, listed = line.split("\t")
            found = {part.split(":")[0] for part in listed.split("; ") if part}
            known.setdefault(event, set()).update(found)
    for entry in catalogue.derived(FAMILY):
        if entry.event == "net_packet_tls":
            continue  # which Tracee does not have
        assert {name for name, _, _ in entry.arguments} <= known[entry.event], entry.event


def all_rows(batch: Batch) -> Rows:
    """All rows of a batch."""
    return np.arange(batch.rows, dtype=np.int32)


# single views


def one(event: str, values: Event, wanted: str) -> Event:
    """The arguments of the only view of that name."""
    (row,) = derived_rows(recording([(event, values)]), wanted)
    assert row["derived_from"] == event
    return arguments(row)


def test_security_file_open() -> None:
    """An open that succeeded is one at the hook, with the flags that the file has."""
    found = one("openat", {**OPEN, "$retval": 3}, "security_file_open")
    assert found == {
        "pathname": "/etc/shadow",
        "flags": 0o100000,
        "dev": 7,
        "inode": 1,
        "syscall_pathname": "shadow",
    }
    compat = one("openat", {**OPEN, "$retval": 3, "$is_compat": True}, "security_file_open")
    assert compat["flags"] == 0


@pytest.mark.parametrize(
    ("event", "values"),
    [
        ("openat", {**OPEN, "$retval": -2}),
        ("openat", {**OPEN, "$retval": 3, "flags": 0o10000000}),
        ("openat", OPEN),
        ("close", {**OPEN, "$retval": 0}),
        ("mprotect", {"prot": 5, "prev_prot": 0, "$retval": 0}),
        ("mprotect", {"prot": 3, "prev_prot": 7, "$retval": 0}),
        ("mmap", {"prot": 5, "$retval": 4096}),
        ("connect", {"sockfd": 3, "addr": {"sa_family": "AF_INET"}, "$retval": -88}),
        ("write", {"$retval": 20, "pathname": "/tmp/x"}),
        ("unlinkat", {"base": "/", "pathname": "d", "flags": 0x200, "$retval": 0}),
        ("dup", {"oldfd": 3, "inode_mode": 0o100644, "$retval": 4}),
        ("finit_module", {"fd": 3, "$retval": -8}),
        ("execve", {"path_arg": "/x", "$retval": -2}),
    ],
)
def test_no_view(event: str, values: Event) -> None:
    """What did not reach the hook, or is not known to have, has no view of it."""
    quiet = {"vfs_write", "security_file_mprotect"}
    assert derived_rows(recording([(event, values)]), *(names() - quiet)) == []


@pytest.mark.parametrize(
    ("event", "prot", "prev_prot", "alert"),
    [
        ("mmap", 7, None, 1),
        ("mprotect", 5, 1, 2),
        ("mprotect", 7, 3, 2),
        ("mprotect", 7, 5, 3),
        ("pkey_mprotect", 5, 7, 4),
        ("mprotect", 4, 6, 4),
    ],
)
def test_mem_prot_alert(event: str, prot: int, prev_prot: int | None, alert: int) -> None:
    """Each change of protection that matters has its own number."""
    values = {"prot": prot, "$retval": 0, **({"prev_prot": prev_prot} if prev_prot else {})}
    assert one(event, values, "mem_prot_alert")["alert"] == alert


def test_magic_write() -> None:
    """The first bytes of a file stand there as Tracee spells them."""
    magic = b"\x7fELF\x02\x01" + bytes(14)
    found = one("writev", {"magic": magic, "pathname": "/tmp/x", "$retval": 20}, "magic_write")
    assert base64.b64decode(found["bytes"]) == magic
    assert found["pathname"] == "/tmp/x"


def test_who_executed() -> None:
    """An execution's views happen before it: the process has its old name, and no new image."""
    values = {
        "cmdpath": "./sh",
        "pathname": "/bin/dash",
        "prev_comm": "nginx",
        "argv": ["sh"],
        "$process_name": "sh",
        "$exe": "/bin/dash",
        "$syscall": "execve",
        "$retval": 0,
    }
    rows = derived_rows(recording([("sched_process_exec", values)]))
    assert [row["event"] for row in rows] == ["execve", "security_file_open", "security_bprm_check"]
    assert {row["process_name"] for row in rows} == {"nginx"}
    assert all("exe" not in row for row in rows)
    assert arguments(rows[0]) == {"pathname": "./sh", "argv": ["sh"]}
    again = recording([("sched_process_exec", {**values, "$syscall": "execveat"})])
    assert derived_rows(again)[0]["event"] == "execveat"


def test_text_that_is_none() -> None:
    """The exact bytes of a path that is no text go along with it under its new name."""
    values = {"oldpath": b"/a\xff", "newpath": "/b", "$retval": 0}
    (row,) = derived_rows(recording([("rename", values)]))
    assert arguments({n: v for n, v in row.items() if "raw" not in n}) == {
        "old_path": "/a\\xff",
        "new_path": "/b",
    }
    assert row["arg_old_path__raw"] == b"/a\xff"


def test_numbers_beyond_63_bits() -> None:
    """An argument keeps its class under its new name."""
    top = 2**64 - 1
    values = {**OPEN, "inode": top, "flags": 0, "$retval": 1}
    assert one("openat", values, "security_file_open")["inode"] == top
    mount = {"source": "a", "target": "b", "mountflags": top, "$retval": 0}
    (row,) = derived_rows(recording([("mount", mount)]))
    assert row["arg_flags__u64"] == top


# rows


_EVENTS = st.lists(
    st.sampled_from(
        [
            ("openat", {**OPEN, "$retval": 3}),
            ("openat", {**OPEN, "$retval": -13}),
            ("close", {"fd": 3, "$retval": 0}),
            ("sched_process_exec", {"pathname": "/bin/sh", "prev_comm": "a", "$retval": 0}),
            ("connect", {"sockfd": 1, "addr": {"sa_family": "AF_UNIX"}, "$retval": 0}),
        ]
    ),
    max_size=12,
)


@given(_EVENTS)
def test_base_events_stay(events: list[tuple[str, Event]]) -> None:
    """Recorded events stay as they were, each with its views behind it, under its identity."""
    batch = recording(events)
    found, at = Derivation(names()).matching(batch, all_rows)
    rows = found.to_pylist()
    assert [r for r in rows if "derived_from" not in r] == batch.to_pylist()
    assert [r["ord"] for r in rows] == at.tolist() == sorted(at.tolist())
    base: Event = {}
    for row in rows:
        if "derived_from" not in row:
            base = row
        else:
            assert row["derived_from"] == base["event"]
            assert {n: row[n] for n in ("ord", "ts", "pid", "source")} == {
                n: base[n] for n in ("ord", "ts", "pid", "source")
            }
    keys = [(r["ord"], r["event"]) for r in rows]
    assert len(keys) == len(set(keys))


@given(_EVENTS, st.integers(1, 5))
def test_batches_do_not_matter(events: list[tuple[str, Event]], size: int) -> None:
    """Events have the same views however they come."""
    batch = recording(events)
    stage = Derivation(names())
    parts = [stage.process(batch.slice(i, i + size)) for i in range(0, batch.rows, size)]
    rows = [row for part in parts for row in part.to_pylist()]
    assert rows == Derivation(names()).process(batch).to_pylist()


def test_other_sources_have_no_views() -> None:
    """Events of another program keep to themselves, also beside a recording of ours."""
    tracee = SourceInfo("tracee", host="host", origin="22" * 16)
    events = [("openat", {**OPEN, "$retval": 3})]
    assert derived_rows(recording(events, tracee)) == []
    both = concat([recording(events), recording(events, tracee)])
    assert [row["source"] for row in derived_rows(both)] == [RECORDER.id]


def test_a_source_that_recorded_the_event_itself() -> None:
    """A view is switched off by name; that of an event recorded only where it fails is not."""
    details = {"events": ["openat", "security_file_open", "execve", "sched_process_exec"]}
    source = SourceInfo(FAMILY, host="host", origin="33" * 16, details=details)
    events = [
        ("openat", {**OPEN, "$retval": 3}),
        ("sched_process_exec", {"pathname": "/bin/sh", "$retval": 0}),
    ]
    found = [row["event"] for row in derived_rows(recording(events, source))]
    assert found == ["execve", "security_bprm_check"]


def test_state_records_have_no_views() -> None:
    """A record that only describes what was there is no event."""
    batch = recording([("openat", {**OPEN, "$retval": 3, "$kind": "state"})])
    assert derived_rows(batch) == []


# Tracee as oracle


def dump(data: Callable[[str], Path]) -> Batch:
    """Events that Tracee recorded, with those of its hooks beside the calls that reached them."""
    path = data("tracee/tracee_event_dump_2022-10.jsonl.gz")
    source = open_source(str(path))
    batch = concat(list(source.batches()))
    source.close()
    info = SourceInfo(FAMILY, host="dump")
    # What Tracee calls the path of a call is the caller's own text.
    event = batch.array("event").to_pylist()
    ours = np.array([e == "openat" for e in event])
    path_column = batch.columns["arg_pathname"]
    assert path_column.rows is not None
    rows = path_column.rows
    caller = Column(TypeClass.STR, path_column.values.take(pa.array(np.flatnonzero(ours[rows]))))
    caller = Column(caller.cls, caller.values, rows[ours[rows]])
    base = naming.argument("path_arg")
    name = naming.column_name(base, TypeClass.STR, catalogue.home(base))
    added = {"source": constant(TypeClass.STR, info.id, batch.rows), name: caller}
    return batch.adding(added).with_before([info])


def tally(rows: Sequence[Event], event: str, *columns: str) -> tuple[Counter[Any], Counter[Any]]:
    """What the views and what Tracee say of an event."""
    found = [r for r in rows if r["event"] == event]
    counts = [
        Counter(
            tuple(str(r.get(c)) for c in columns) for r in found if ("derived_from" in r) == own
        )
        for own in (True, False)
    ]
    return counts[0], counts[1]


def test_tracee_says_the_same(data: Callable[[str], Path]) -> None:
    """Tracee's events at its hooks are the views of its calls, but for what no call tells."""
    rows = Derivation(names()).process(dump(data)).to_pylist()
    opens = [r for r in rows if r.get("derived_from") != "sched_process_exec"]
    ours, theirs = tally(
        [r for r in opens if "arg_syscall_pathname" in r],
        "security_file_open",
        "tid",
        "arg_syscall_pathname",
        "arg_flags",
    )
    assert sum(ours.values()) == 2869
    # What an execution opens is opened by the kernel; /dev/tty has no terminal behind it, which
    # shows only after the hook.
    rest = {key: n for key, n in (theirs - ours).items() if key[2] != "32800"}
    assert {key[1] for key in rest} == {"/dev/tty"}
    assert sum(rest.values()) == 6
    assert ours - theirs == Counter()
    ours, theirs = tally(rows, "security_bprm_check", "tid", "arg_pathname", "arg_dev", "arg_inode")
    assert sum(ours.values()) == 39
    assert ours - theirs == Counter()
    assert sum((theirs - ours).values()) == 4  # scripts, whose interpreters are ours
    ours, theirs = tally(rows, "security_socket_connect", "tid", "arg_sockfd")
    assert ours == theirs
    assert sum(ours.values()) == 2
    ours, theirs = tally(
        rows, "security_socket_create", "tid", "arg_family", "arg_type", "arg_kern"
    )
    assert ours <= theirs
    ours, theirs = tally(rows, "execve", "tid", "arg_pathname")
    assert ours <= theirs
    assert sum(ours.values()) == 39
