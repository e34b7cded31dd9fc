"""What the kernel says of its tracepoints is read as it is meant, and refused where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_records import NUMBERS, POINTS, MadeUp, text

from kcap.errors import KcapError, LimitError
from kcap.readers.live.bpf import events
from kcap.readers.live.trace import formats
from kcap.readers.live.trace.formats import parse
from kcap.readers.live.trace.points import Points, Role, arguments_of, default, known, told
from kcap.readers.live.trace.tracefs import Tracefs

EXIT = "sched/sched_process_exit"
FORK = "sched/sched_process_fork"

SIZES = st.tuples(st.sampled_from([1, 2, 4, 8]), st.booleans())
FIELDS = st.dictionaries(st.from_regex(r"[a-z]{3,8}", fullmatch=True), SIZES, max_size=20)


@given(FIELDS, st.binary(min_size=256, max_size=256), st.integers(0, 65535))
def test_numbers(fields: dict[str, tuple[int, bool]], record: bytes, number: int) -> None:
    """Every number is read from where the kernel says it lies, with its sign."""
    described = {name: ("long", size, signed) for name, (size, signed) in fields.items()}
    said = text("a/b", described, number)
    found = parse(said, "a/b", "f")
    value = np.frombuffer(record, np.uint8)[: found.layout.itemsize].view(found.layout)[0]

    assert found.number == number
    for line in said.splitlines():
        if "\toffset:" in line:
            parts = dict(part.strip().split(":") for part in line.split(";") if ":" in part)
            name = parts["field"].rpartition(" ")[2]
            at, size = int(parts["offset"]), int(parts["size"])
            signed = parts["signed"] == "1"
            raw = record[at : at + size]
            assert int(value[name]) == int.from_bytes(raw, "little", signed=signed), name


def test_texts() -> None:
    """Text of fixed length is bytes; a string behind the fields is where it lies, and marked."""
    fixed = parse(text(EXIT, POINTS[EXIT], 7), EXIT, "f")
    assert (fixed.layout["comm"].shape, fixed.located) == ((16,), frozenset())
    behind = parse(text(FORK, POINTS[FORK], 7), FORK, "f")
    assert behind.located == {"parent_comm", "child_comm"}
    assert behind.layout["child_comm"] == np.dtype("<u4")
    assert fixed.has("comm", "pid")
    assert not fixed.has("comm", "exit_code")


GOOD = text(EXIT, POINTS[EXIT], 7)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("", "no description"),
        ("name: other\nID: 7\nformat:\n", "no description"),
        (GOOD.replace("ID: 7", "ID: x"), "no description"),
        (GOOD.replace("common_pid", "common_tgid"), "have no common_pid"),
        (GOOD.replace("offset:8;", "offset:8192;"), "beyond any record"),
        (GOOD + "x" * formats.FILE_BYTES, "a format of"),
    ],
)
def test_what_is_no_description_is_refused(said: str, error: str) -> None:
    """With the file's name; nothing else than an error of ours."""
    parse(GOOD, EXIT, "f")
    with pytest.raises(KcapError, match=error) as raised:
        parse(said, EXIT, "/a/format")
    assert raised.value.file == "/a/format"


@given(st.text(max_size=200))
def test_any_text(said: str) -> None:
    """Whatever stands behind the head is no field, or one within a record."""
    try:
        found = parse(GOOD + said, EXIT, "f")
    except LimitError:
        return
    assert found.layout.itemsize <= formats.RECORD_BYTES


def test_what_a_kernel_lacks_is_said() -> None:
    """A tracepoint that is missing or has other fields is left out; half a call is no call."""
    lacking = {"task/task_rename", "syscalls/sys_exit_kill"}
    odd = {"module/module_load": text("module_load", {"id": ("int", 4, True)}, 1)}
    points = Points(["kill", "module_load", "umount2"], MadeUp(lacking, odd))

    assert points.unavailable == [
        "module/module_load",
        "task/task_rename",
        "syscalls/sys_enter_kill",
    ]
    names = [point.format.name for point in points.every]
    assert "syscalls/sys_enter_umount" in names, "as the kernel calls it"
    assert not {name for name in names if "kill" in name}
    whole = Points(["kill", "module_load", "umount2"], MadeUp())
    assert whole.unavailable == []
    assert len(whole.every) == len(points.every) + 4


@pytest.mark.parametrize("name", [n for n in POINTS if n.startswith("sched/")])
def test_there_is_no_recording_without_processes(name: str) -> None:
    """Executions, forks and ends must be there: the state of the host is made of them."""
    with pytest.raises(KcapError, match=f"no tracepoint {name}"):
        Points([], MadeUp([name]))


def test_events_that_are_not_told() -> None:
    """Files are not told of, and what there is not is refused by name."""
    for name in ("openat", "unlink", "write", "no_such_event"):
        assert name not in told()
        with pytest.raises(KcapError, match=f"do not tell of {name}"):
            Points([name], MadeUp())
    assert default() < told()
    assert {"ptrace", "setuid", "mount", "bpf", "connect", "mprotect"} < default()
    assert {event.name for event in known().values()} > told()


def test_types_of_records() -> None:
    """The tables by type agree with the tracepoints, and know no other type."""
    points = Points(default(), MadeUp())
    assert np.count_nonzero(points.roles) == len(points.every)
    for point in points.every:
        number = NUMBERS[point.format.name]
        assert points.roles[number] == point.role
        assert points.events[number] == point.event
        assert points.sizes[number] == point.format.layout.itemsize
    assert points.filtered[events.events()["mprotect"].number]
    assert not points.filtered[events.events()["kill"].number]
    assert {point.role for point in points.needed} == {Role.EXEC, Role.FORK, Role.EXIT}


@pytest.mark.root
def test_this_kernel() -> None:
    """Every tracepoint of this kernel is understood, and calls have as many arguments as ours."""
    try:
        tracefs = Tracefs()
    except KcapError as error:
        pytest.skip(f"no tracefs: {error}")
    with tracefs:
        points = Points(told(), tracefs)
        numbers = {event.number: event for event in known().values()}
        for point in points.every:
            if point.role is Role.ENTER:
                used = [a.place for a in numbers[point.event].arguments if a.place[:1] == "n"]
                direct = [int(place[1:]) for place in used if int(place[1:]) < 6]
                assert max(direct, default=-1) < arguments_of(point.format), point.format.name
        assert len(points.every) > 100
        assert tracefs.format("sched/no_such_tracepoint") is None
