"""Tracee's events in all spellings: whatever goes in comes out again exactly."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracee_support import DUMP, GRPC, OPENED, V1BETA1, lines, read, rebuilt, same, schema, unpacked

from kcap.model import catalogue, jsonshape
from kcap.model.batch import Batch
from kcap.writers.tracee_json import TraceeJson, objects

# Any events

TEXTS = st.one_of(
    st.text(max_size=6),
    st.text(st.characters(codec=None), max_size=4),
    st.sampled_from(
        ["", "\ud800", "\udcff|,:!\\", "a.b", "0", "-7", "007", "18446744073709551616"]
    ),
)
INTEGERS = st.one_of(
    st.integers(-10, 10),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30]),
)
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
TIMES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(0, 2e9).map(lambda t: round(t, 6)),
    st.sampled_from(
        [
            "2024-01-01T00:00:00Z",
            "2024-01-01T00:00:00.120Z",
            "2024-01-01T00:00:00.12Z",
            "2024-01-01T00:00:00.123456789Z",
            "2024-01-01T01:00:00+01:00",
            "0001-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
            "2016-12-31T23:59:60Z",
            0,
            0.0,
        ]
    ),
    VALUES,
)
NAMES = st.one_of(st.sampled_from(["pathname", "fd", "argv", "x", "x.y", ""]), TEXTS)
KINDS = st.one_of(st.sampled_from(["int", "const char*", "void *", "a,b:c|!"]), TEXTS)


@st.composite
def orders(draw: st.DrawFn, items: dict[str, Any]) -> dict[str, Any]:
    """The same items in any order."""
    return {key: items[key] for key in draw(st.permutations(list(items)))}


ENTRIES = st.one_of(
    st.builds(lambda n, t, v: {"name": n, "type": t, "value": v}, NAMES, KINDS, VALUES),
    st.builds(lambda n, t, v: {"name": n, "type": t, "value": v}, NAMES, KINDS, VALUES),
    st.builds(lambda n, v: {"name": n, "value": v}, NAMES, VALUES),
    st.builds(lambda n, t, v: {"value": v, "name": n, "type": t}, NAMES, VALUES, VALUES),
    VALUES,
)
KNOWN = sorted(path for path in catalogue.aliases("tracee") if "." not in path)
EVENTS = st.builds(
    lambda known, unknown, time, name, args, inside: {
        **known,
        **unknown,
        "timestamp": time,
        "eventName": name,
        **inside,
        **args,
    },
    st.dictionaries(st.sampled_from(KNOWN), VALUES, max_size=6),
    st.dictionaries(TEXTS, VALUES, max_size=3),
    TIMES,
    TEXTS,
    st.one_of(
        st.just({}),
        st.just({"args": None}),
        st.lists(ENTRIES, max_size=5).map(lambda a: {"args": a}),
        st.lists(ENTRIES, max_size=5).map(lambda a: {"parsedArgs": a}),
        st.lists(ENTRIES, max_size=2).map(lambda a: {"args": a, "parsedArgs": a}),
    ),
    st.dictionaries(
        st.sampled_from(["container", "contextFlags", "metadata", "kubernetes"]),
        st.one_of(
            VALUES,
            st.dictionaries(
                st.one_of(st.sampled_from(["id", "isCompat", "podName", "Version"]), TEXTS), VALUES
            ),
        ),
        max_size=2,
    ),
).flatmap(orders)


@given(st.lists(EVENTS, min_size=1, max_size=4))
def test_any_event_is_rebuilt_exactly(events: list[dict[str, Any]]) -> None:
    """Unknown keys, huge integers, lone surrogates, NaN, duplicates: all comes back."""
    source = lines(events)
    expected = [json.loads(line) for line in source.splitlines()]
    got = rebuilt(source)

    assert len(got) == len(expected)
    assert all(map(same, got, expected)), (got, expected)
    for column, cls in schema(source):
        assert catalogue.class_of(column) == cls


def test_arguments_by_the_thousand_and_of_one_name() -> None:
    """1,000 names, and 50 arguments of one name, are told apart and come back."""
    many = [{"name": f"n{i}", "type": "int", "value": i} for i in range(1000)]
    equal = [{"name": "fd", "type": "int", "value": i} for i in range(50)]
    mixed = [{"name": "fd", "type": "int", "value": v} for v in (1, "3=/etc/passwd", None, 4)]
    events = [OPENED | {"args": args} for args in (many, equal, mixed)]

    assert all(map(same, rebuilt(lines(events)), events))
    columns = {name for name, _ in schema(lines([events[2]])) if name.startswith("arg_")}
    assert columns == {"arg_fd", "arg_fd__str__2", "arg_fd__3"}


def test_two_paths_to_one_column_are_told_apart() -> None:
    """containerId beside container.id: the later one is the second occurrence."""
    event = OPENED | {"containerId": "aa", "container": {"id": "bb", "image": ""}}
    (batch,) = read(lines([event]))
    row = batch.to_pylist()[0]

    assert (row["container_id"], row["container_id__2"]) == ("aa", "bb")
    assert same(next(objects(batch)), event)
    (only,) = read(lines([OPENED | {"containerId": None, "container": {"id": "bb"}}]))
    assert only.to_pylist()[0]["container_id"] == "bb"


def test_deep_values_stay_exact_and_do_not_become_json_columns() -> None:
    """33 levels are text, 32 are json; both come back, as do deep fields outside the arguments."""

    def nested(levels: int) -> Any:
        value: Any = 1
        for i in range(levels):
            value = [value] if i % 2 else {"k": value}
        return value

    deep = [{"name": "data", "type": "struct", "value": nested(n)} for n in (32, 33, 120)]
    event = OPENED | {"args": deep, "extra": nested(100), "timestamp": nested(40)}
    (batch,) = read(lines([event]))

    assert same(next(objects(batch)), event)
    kinds = {n for n in batch.columns if n.startswith(("arg_data", "ext_extra"))}
    assert kinds == {"arg_data__json", "arg_data__str__2", "arg_data__str__3", "ext_extra__str"}


def test_times_are_exact_or_kept_as_they_were() -> None:
    """Float seconds and RFC 3339 become ns; what ns cannot spell stays in ts_raw (spec 5.7)."""
    times = [
        1, 0, 2**63, -5, 1608123456.123456, 124.439221123456789, math.inf, True,
        "2024-01-01T00:00:00.5Z", "2024-01-01T00:00:00.50Z", "2024-01-01T01:00:00+01:00", "noon",
    ]  # fmt: skip
    events = [OPENED | {"timestamp": time} for time in times]
    (batch,) = read(lines(events))
    new_year = 1704067200 * 10**9

    assert batch.array("ts").to_pylist() == [
        1, None, None, -5, 1608123456123456000, 124439221123, None, None,
        new_year + 5 * 10**8, new_year + 5 * 10**8, new_year, None,
    ]  # fmt: skip
    assert batch.array("ts_raw").to_pylist() == [
        None, "0", str(2**63), None, None, "124.43922112345679", "inf", "true",
        None, "2024-01-01T00:00:00.50Z", "2024-01-01T01:00:00+01:00", "noon",
    ]  # fmt: skip
    assert all(map(same, objects(batch), events))


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from([jsonshape.TIME, jsonshape.TIME3]))
def test_every_int64_time_has_a_text(ns: int, word: str) -> None:
    assert jsonshape.time_ns(jsonshape.time_text(ns, word)) == ns


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_paths_can_be_taken_apart(keys: list[str]) -> None:
    path = None
    for key in keys:
        path = jsonshape.join(path, key)

    assert path is not None
    assert jsonshape.split(path) == keys


# Other spellings


@pytest.mark.parametrize("event", [V1BETA1, GRPC], ids=["v1beta1", "grpc"])
def test_the_new_message_fills_the_same_columns(event: dict[str, Any]) -> None:
    """Both spellings of v1beta1.Event come back exactly, and their fields are where ours are."""
    (batch,) = read(lines([event]))
    row = batch.to_pylist()[0]

    assert same(next(objects(batch)), event)
    start = 1767607199500000000
    expected = {
        "event": "execve", "ts": 1767607200123456789, "pid": 1200, "ns_pid": 12, "tid": 1200,
        "ns_tid": 12, "ppid": 1100, "ns_ppid": 11, "parent_entity": 5, "parent_name": "sh",
        "uid": 1000, "exe": "/usr/bin/bash", "process_name": "bash", "process_entity": 4205942431,
        "thread_entity": 1588574885, "thread_start_ns": start, "process_start_ns": start,
        "syscall": "execve", "is_compat": True, "container_id": "c0ffee", "container_name": "box",
        "container_image": "busybox", "container_started": True, "pod_name": "p", "pod_uid": "u",
        "pod_namespace": "n", "policies": ["p1"], "retval": -2, "category": "process",
        "arg_pathname": "/bin/ls", "arg_argv": ["ls", "-l"], "arg_envp": [], "arg_size": -7,
        "arg_inode__u64": 2**64 - 1, "arg_pos__str": "007", "arg_addr": 140737353719808,
        "arg_helpers__list_u64": [1, 2**63], "arg_sv": [3, 4], "arg_flags": 2, "arg_load": False,
        "arg_returnValue": -2,
    }  # fmt: skip
    assert {name: row.get(name) for name in expected} == expected
    assert row["event_id" if event is V1BETA1 else "event_id__str"] in {60, "execve"}


def test_the_message_of_older_grpc_clients() -> None:
    """Before the workload there was a context; its pid is the host's."""
    event = {
        "timestamp": "2024-05-01T00:00:00.120Z",
        "id": "257",
        "name": "openat",
        "context": {
            "process": {
                "pid": 1200,
                "namespacedPid": 12,
                "thread": {"start": "2024-05-01T00:00:00Z", "tid": 1200, "namespacedTid": 12},
                "parent": {"pid": 1, "namespacedPid": 1},
            }
        },
        "data": [{"uInt64": "5", "name": "inode"}],
    }
    (batch,) = read(lines([event]))
    row = batch.to_pylist()[0]

    assert same(next(objects(batch)), event)
    assert (row["pid"], row["ns_pid"], row["ppid"], row["event_id"]) == (1200, 12, 1, 257)
    assert row["process_start_ns"] == 1714521600 * 10**9
    assert row["arg_inode"] == 5
    assert "ts_raw" not in row


def test_the_first_releases_had_bare_arguments() -> None:
    """v0.0.2: seconds as a float, arguments without names; v0.0.3: without types."""
    first = {"timestamp": 1576.5, "eventName": "open", "args": ["/etc", 3, None, ["a"], {"b": 1}]}
    second = {"timestamp": 1576.5, "eventName": "open", "args": [{"name": "fd", "value": 3}]}
    events = [first, second]
    (batch,) = read(lines(events))
    rows = batch.to_pylist()

    assert all(map(same, objects(batch), events))
    assert (rows[0]["ts"], rows[0]["arg_0__str"], rows[1]["arg_fd"]) == (1576500000000, "/etc", 3)


def test_spellings_may_mix_line_by_line() -> None:
    events = [OPENED, V1BETA1, GRPC, OPENED]

    assert all(map(same, rebuilt(lines(events)), events))


MUTANTS = st.one_of(st.just(V1BETA1), st.just(GRPC)).flatmap(
    lambda event: st.builds(
        lambda key, value, extra, data: event | {key: value} | extra | {"data": data},
        st.sampled_from(["timestamp", "id", "policies", "workload", "threat", "other"]),
        st.one_of(TIMES, VALUES),
        st.dictionaries(TEXTS, VALUES, max_size=2),
        st.lists(
            st.one_of(
                VALUES,
                st.dictionaries(
                    st.sampled_from(["name", "str", "int64", "uInt64Array", "str_array", "value"]),
                    st.one_of(TEXTS, VALUES, st.builds(lambda v: {"value": v}, VALUES)),
                    max_size=3,
                ),
            ),
            max_size=5,
        ),
    )
)


@given(st.lists(MUTANTS, min_size=1, max_size=3))
def test_any_new_message_is_rebuilt_exactly(events: list[dict[str, Any]]) -> None:
    """Values of any type at any place of the message come back."""
    events = [event | {"name": "execve"} for event in events]
    for event in events:
        event.pop("eventName", None)
    source = lines(events)
    expected = [json.loads(line) for line in source.splitlines()]

    assert all(map(same, rebuilt(source), expected))


# Giving it back


def test_the_sink_writes_the_lines_that_were_read(data: Callable[[str], Path]) -> None:
    """Compact JSON lines in, the same bytes out."""
    source = unpacked(data(DUMP))
    out = io.BytesIO()
    sink = TraceeJson(out)
    for batch in read(source):
        sink.write(batch)
    sink.close()
    sink.close()

    assert out.getvalue() == source


def test_events_from_elsewhere_get_the_keys_of_a_release() -> None:
    """Without a shape: every key of v0.8, null for numbers not known, arguments by name."""
    (batch,) = read(
        lines([OPENED | {"args": [*OPENED["args"], {"name": "fd", "type": "", "value": 3}]}])
    )
    kept = batch.select([n for n in batch.columns if n != "shape"])
    (made,) = objects(kept)

    assert list(made)[:3] == ["timestamp", "threadStartTime", "processorId"]
    assert made["hostProcessId"] == 77
    assert (made["processorId"], made["hostName"], made["stackAddresses"]) == (None, "", None)
    assert made["eventId"] == "257"
    assert made["argsNum"] == 2
    assert made["args"] == [
        {"name": "fd", "type": "long", "value": 3},
        {"name": "pathname", "type": "const char*", "value": "/etc/passwd"},
    ]
    assert same(rebuilt(lines([made]))[0], made)
    assert list(objects(Batch(0, {}))) == []
    assert next(objects(Batch(1, {})))["eventName"] == ""
