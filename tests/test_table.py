"""Tracee's table: its widths, headings and ends, from its own events and from others."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SOURCE, batch_of, make_events
from test_line import BATCHES
from test_templates import event

from kcap.model import text
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.opening import open_source
from kcap.writers.table import Table

SAMPLE = "tracee/tracee_docs_events_plain.jsonl"
END = "\nEnd of events stream\nStats: "


def table(*batches: Batch, **options: Any) -> str:
    stream = io.BytesIO()
    sink = Table(stream, **options)
    for batch in batches:
        sink.write(batch)
    sink.close()
    sink.close()
    return stream.getvalue().decode()


def rows_of(printed: str) -> list[str]:
    """The rows between the headings and the end."""
    body, _, end = printed.rpartition(END)
    assert re.fullmatch(r"\{EventCount:\d+ LostEvCount:\d+\}\n", end)
    return body.split("\n")[1:-1]


def go_value(value: Any) -> str:
    """A value as Go's %v prints it."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + " ".join(go_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{go_value(value[k])}" for k in sorted(value)) + "]"
    return str(value)


def by_hand(item: dict[str, Any], *, verbose: bool, containers: bool) -> str:
    """A row, told from Tracee's JSON."""
    at = datetime.fromtimestamp(item["timestamp"] // 10**9, UTC)
    time = f"{at:%H:%M:%S}:{item['timestamp'] % 10**9 // 1000:06d}"
    name = item["eventName"]
    name = name if len(name) <= 25 else f"{name[:22]}..."

    def pid(key: str) -> str:
        inside, outside = item[key], item[f"host{key[0].upper()}{key[1:]}"]
        return f"{inside:<7}/{outside:<7}" if containers else f"{inside:<7}"

    uid, comm = f"{item['userId']:<6}", f"{item['processName']:<16}"
    pids = [pid("processId"), pid("threadId")]
    if verbose:
        cells = [f"{item['hostName']:<17}", f"{item['containerId'][:12]:<13}"]
        cells += [f"{item[key]:<12}" for key in ("mountNamespace", "pidNamespace")]
        cells += [uid, comm, *pids, pid("parentProcessId")]
    else:
        cells = [f"{item['containerId'][:12]:<13}"] if containers else []
        cells += [uid, comm, *pids]
    cells += [f"{item['returnValue']:<16}", f"{name:<25}"]
    arguments = ", ".join(f"{a['name']}: {go_value(a['value'])}" for a in item["args"])
    return text.printable(" ".join([f"{time:<16}", *cells, arguments]))


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("containers", [False, True])
def test_rows_are_tracees(data: Callable[[str], Path], verbose: bool, containers: bool) -> None:
    """Each of Tracee's own events gives the row that its values, formatted as it does, make."""
    wanted = [json.loads(line) for line in data(SAMPLE).read_text().splitlines()]

    with contextlib.closing(open_source(str(data(SAMPLE)), resolve=False)) as source:
        printed = table(*source.batches(), verbose=verbose, containers=containers)

    found = rows_of(printed)
    plain = [item for item in wanted if "containerId" in item]
    assert len(found) == len(wanted)
    assert len(plain) > 100
    for item, row in zip(wanted, found, strict=True):
        if item in plain:
            assert row == by_hand(item, verbose=verbose, containers=containers)


def test_headings() -> None:
    """The headings are Tracee's, to the blank."""
    first = {False: table().split("\n")[0], True: table(containers=True).split("\n")[0]}

    assert first[False] == (
        "TIME             UID    COMM             PID     TID     RET              EVENT"
        "                     ARGS"
    )
    assert first[True] == (
        "TIME             CONTAINER_ID  UID    COMM             PID/host        TID/host        "
        "RET              EVENT                     ARGS"
    )
    assert table(verbose=True).split()[:13] == [
        *("TIME", "UTS_NAME", "CONTAINER_ID", "MNT_NS", "PID_NS", "UID", "COMM", "PID", "TID"),
        *("PPID", "RET", "EVENT", "ARGS"),
    ]


@settings(max_examples=40)
@given(BATCHES)
def test_a_row_an_event_and_no_control_character(batch: Batch) -> None:
    """Whatever events hold, there is a row an event, its columns in their places."""
    printed = table(batch, verbose=True)

    rows = rows_of(printed)
    assert len(rows) == batch.rows
    assert not re.search(text.UNSAFE, printed.replace("\n", ""))
    assert f"EventCount:{batch.rows} " in printed


@settings(max_examples=40)
@given(BATCHES, st.integers(1, 4))
def test_rows_do_not_depend_on_batches(batch: Batch, step: int) -> None:
    """The same events give the same table, however they are cut."""
    parts = [batch.slice(i, i + step) for i in range(0, batch.rows, step)]

    assert table(*parts) == table(batch)


def test_arguments_stand_in_the_order_of_their_source() -> None:
    """Each event's arguments are its own, in the order of its shape, lists as Go prints them."""
    batch = make_events(60)

    found = rows_of(table(batch))

    for values, row in zip(batch.to_pylist(), found, strict=True):
        shape = str(values["shape"])
        names = [part.partition(":")[0] for part in shape.split(",")]
        starts = [row.index(f"{name}: ") for name in names]
        assert starts == sorted(starts)
        assert f"fd: {values['arg_fd__i64']}" in row
        if "argv" in names:
            assert f"argv: [sh -c {values['arg_argv__list'][2]}]" in row  # type: ignore[index]
        if "nested" in names:
            number = json.loads(str(values["arg_nested__json"]))["k"][0]
            assert f"nested: map[k:[{number} <nil>]]" in row


def test_without_a_shape_arguments_stand_by_name() -> None:
    """Events that tell no order have their arguments by name, flags as text."""
    batch = event(event="openat", a_pathname="/x", a_flags=0, source=SOURCE.id)

    (row,) = rows_of(table(batch))

    assert row.endswith("openat                    flags: 0, pathname: /x")
    (narrowed,) = rows_of(table(make_events(1).select(["ts", "shape", "arg_fd__i64"])))
    assert narrowed.endswith(f" fd: {make_events(1).to_pylist()[0]['arg_fd__i64']}")


def test_long_names_are_cut() -> None:
    """A name of more than 25 characters ends in three dots, one of 25 is whole."""
    for name, wanted in (("a" * 25, "a" * 25), ("a" * 26, "a" * 22 + "...")):
        (row,) = rows_of(table(event(event=name, ts=86_399_999_999_999)))
        assert row.startswith("23:59:59:999999  ")
        assert row.split()[-1] == wanted


def test_what_was_lost_and_state() -> None:
    """The end tells how many events there were and were lost; state is no event."""
    lost = batch_of([]).with_before([Loss("lost", 5, "why"), Loss("cut", 7, "why")])
    state = event(kind="state", pid=1)

    assert "Stats: {EventCount:1 LostEvCount:5}\n" in table(lost, event(pid=2), state)
    assert "Stats: {EventCount:2 LostEvCount:0}\n" in table(event(pid=2), state, state=True)
