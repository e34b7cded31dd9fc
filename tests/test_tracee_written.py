"""Tracee's JSON of a recording: what the reader of Tracee's events makes of it is the recording."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from derived_support import OPEN, Event, recording
from hypothesis import given
from hypothesis import strategies as st

from kcap.model import catalogue, naming
from kcap.model.batch import Batch, concat
from kcap.model.classes import I64_MAX, I64_MIN, U64_MAX, TypeClass
from kcap.readers.tracee import TraceeReader
from kcap.replay.derived import Derivation, names
from kcap.writers.tracee_json import TraceeJson, objects

_OWN = {"action", "args_count", "category", "kind", "ord", "origin", "shape", "source"}
"""Columns that each source has values of its own for."""

_TRACEE = {*catalogue.aliases("tracee").values(), "ts"} - _OWN
"""Columns that Tracee has a key for."""

_NUMBER = st.one_of(
    st.integers(I64_MIN, I64_MAX), st.integers(1 << 63, U64_MAX), st.sampled_from([0, -1, -2])
)
_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.sampled_from(["/etc/passwd", "", "a\\0b", "\\\\", "é"]),
    st.binary(max_size=5),
)
_ADDRESS = st.fixed_dictionaries({"sa_family": st.just("AF_INET"), "sin_port": st.just("80")})
_VALUES = {
    "pathname": _TEXT,
    "path_arg": _TEXT,
    "flags": _NUMBER,
    "dev": _NUMBER,
    "inode": _NUMBER,
    "argv": st.lists(st.text("abé\\0", max_size=3), max_size=3),
    "magic": st.binary(max_size=20),
    "remote_addr": _ADDRESS,
    "process_group_exit": st.booleans(),
}
_COLUMNS = {
    "tid": st.integers(1, 1 << 22),
    "ns_pid": st.integers(1, 1 << 22),
    "ns_tid": st.integers(1, 1 << 22),
    "ppid": st.integers(0, 1 << 22),
    "ns_ppid": st.integers(0, 1 << 22),
    "uid": st.integers(0, (1 << 32) - 1),
    "cgroup_id": st.integers(1, I64_MAX),
    "mount_ns": st.integers(1, (1 << 32) - 1),
    "pid_ns": st.integers(1, (1 << 32) - 1),
    "thread_start_ns": st.integers(1, 1 << 60),
    "process_name": st.sampled_from(["sh", "kworker/0:1", "a b", "(x)"]),
    "cpu": st.integers(0, 255),
    "syscall": st.sampled_from(["openat", "write"]),
    "retval": st.integers(-4095, I64_MAX),
    "is_compat": st.booleans(),
    "exe": st.sampled_from(["/bin/sh", "memfd:x"]),
    "container_id": st.sampled_from(["", "ab" * 32]),
    "stack_addresses": st.lists(st.integers(1, I64_MAX), min_size=1, max_size=3),
}
_ROW = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.none() | values for name, values in _VALUES.items()},
        **{f"${name}": values for name, values in _COLUMNS.items()},
    },
)


def written(batch: Batch) -> bytes:
    """A batch as Tracee's JSON lines."""
    out = io.BytesIO()
    sink = TraceeJson(out)
    sink.write(batch)
    sink.close()
    return out.getvalue()


def reread(lines: bytes) -> Batch:
    """What our reader makes of them."""
    reader = TraceeReader(io.BytesIO(lines), "made.jsonl")
    return concat([batch for batch in reader.batches() if batch.rows])


def told(batch: Batch) -> list[Event]:
    """What Tracee's JSON can tell of the events, in one way of saying it."""
    found = []
    for row in batch.to_pylist():
        event = {"event": row["event"]}
        for column, value in row.items():
            base, suffixes = naming.parts(column)
            if base in _TRACEE and value not in ("", False):
                event[column] = value
            elif base.startswith("arg_") and naming.RAW not in suffixes:
                if isinstance(value, bytes):
                    value = base64.b64encode(value).decode()  # noqa: PLW2901
                    column = naming.column_name(base, TypeClass.STR, catalogue.home(base))  # noqa: PLW2901
                event[column] = value
        found.append(event)
    return found


def shapes(batch: Batch) -> list[list[tuple[str, str, bool]]]:
    """Name, type and null of the arguments of each event, in their order."""
    from kcap.model import shape

    texts = batch.array("shape").to_pylist()
    return [[tuple(item) for item in shape.decode(text).arguments] for text in texts]


@given(st.lists(st.tuples(st.sampled_from(["openat", "write", "setuid"]), _ROW), min_size=1))
def test_a_recording_comes_back(events: list[tuple[str, Event]]) -> None:
    """Names, arguments, their order and types, values and identity are those of the recording."""
    batch = recording(events)
    back = reread(written(batch))
    assert told(back) == told(batch)
    assert shapes(back) == shapes(batch)


@given(st.lists(st.tuples(st.just("openat"), _ROW), min_size=1, max_size=5))
def test_derived_events_come_back(events: list[tuple[str, Event]]) -> None:
    """Derived events go along, and are then Tracee's own."""
    opened = [(name, {**OPEN, **row, "$retval": 3}) for name, row in events]
    batch = Derivation(names()).process(recording(opened))
    back = reread(written(batch))
    assert told(back) == told(batch)
    known = [(r.get("action"), r.get("category")) for r in back.to_pylist()]
    derived = [(r.get("action"), r.get("category"), "derived_from" in r) for r in batch.to_pylist()]
    assert all(k == d[:2] for k, d in zip(known, derived, strict=True) if d[2])


@pytest.mark.parametrize("column", ["uid", "pid", "retval", "event_id"])
def test_what_is_not_known_is_not_said(column: str) -> None:
    """A number that an event lacks is no 0, which would be root, or a success."""
    values: Event = {"$uid": 0, "$retval": 0, "$event_id": 0}
    values.pop(f"${column}", None)
    batch = recording([("openat", values)])
    batch = batch.select([name for name in batch.names if name != column])
    keys = {"uid": "userId", "pid": "hostProcessId", "retval": "returnValue", "event_id": "eventId"}
    (made,) = objects(batch)
    assert [key for name, key in keys.items() if made[key] is None] == [keys[column]]
    assert column not in reread(written(batch)).columns


def test_the_keys_of_tracee() -> None:
    """An event of ours has the keys of Tracee v0.8, three of later releases, and no others."""
    (made,) = objects(recording([("openat", {**OPEN, "$exe": "/bin/sh", "$syscall": "openat"})]))
    v08 = """timestamp threadStartTime processorId processId cgroupId threadId parentProcessId
    hostProcessId hostThreadId hostParentProcessId userId mountNamespace pidNamespace processName
    hostName containerId containerImage containerName podName podNamespace podUID eventId eventName
    argsNum returnValue syscall stackAddresses contextFlags executable args"""
    assert list(made) == v08.split()
    assert made["contextFlags"] == {"containerStarted": False, "isCompat": False}
    assert made["argsNum"] == len(made["args"]) == len(OPEN)


def test_a_path_that_is_no_text() -> None:
    """JSON holds text alone, so such a path comes back as it is shown, without its exact bytes."""
    batch = recording([("openat", {**OPEN, "pathname": b"/\xff"})])
    (made,) = (json.loads(line) for line in written(batch).splitlines())
    value: Any = next(a["value"] for a in made["args"] if a["name"] == "pathname")
    assert value == "/\\xff"
    assert "arg_pathname__raw" in batch.columns
    assert "arg_pathname__raw" not in reread(written(batch)).columns
