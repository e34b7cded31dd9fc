"""The catalogue of events of the Linux recorder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kcap.errors import KcapError
from kcap.readers.live.bpf import events

HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")
RECORD = Path(__file__).parent.parent / "readers/live/bpf/record.h"
PLACE = re.compile(r"n([0-9]|1[01])|p[0-7](\+p[0-7])*|tid|pid|ns_pid|ns_tid|thread_start_ns|")


def numbers(header: str) -> dict[str, int]:
    """The system calls of an instruction set, from the header of this machine."""
    path = HEADERS / header
    if not path.exists():
        pytest.skip(f"no {path}")
    found = re.findall(r"#define __NR_(\w+) ([0-9]+)\b", path.read_text("ascii"))
    return {name: int(number) for name, number in found}


def constants(enum: str) -> dict[str, int]:
    """The constants of an enum of record.h."""
    body = re.search(rf"enum {enum} {{(.*?)}};", RECORD.read_text("utf-8"), re.DOTALL)
    assert body is not None
    text = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    found = {}
    value = 0
    for item in filter(None, map(str.strip, text.split(","))):
        name, _, given = item.partition("=")
        value = int(given) if given else value
        found[name.strip().removeprefix("KCAP_").lower()] = value
        value += 1
    return found


def test_numbers_of_calls() -> None:
    """Each call has the number that the kernel's header gives it."""
    known = numbers("unistd_64.h")
    newest = max(known.values())
    for event in events.events().values():
        if not event.native or event.native[0] <= newest:
            assert event.native == ((known[event.name],) if event.is_call else ()), event.name


def test_numbers_of_32_bit_calls() -> None:
    """Each 32-bit call is one of those that do the same, and the plain name is among them."""
    known = {number: name for name, number in numbers("unistd_32.h").items()}
    variants = re.compile(r"(.*?)(?:32|64|_time64)?")
    for event in events.events().values():
        if event.compat and min(event.compat) > max(known):
            continue  # newer than the header
        names = {known[number] for number in event.compat}
        plain = event.name.removesuffix("64")
        plain = {"mmap": "mmap2"}.get(plain, plain)
        for name in names:
            match = variants.fullmatch(name)
            assert match is not None
            assert plain in (match[1], name), (event.name, name)
        has_compat = {event.name, plain} & set(known.values())
        assert bool(names) == bool(has_compat) or event.name == "accept", event.name


def test_numbers_of_tracee(data: Callable[[str], Path]) -> None:
    """Tracee's table has the same numbers for calls of the same names."""
    lines = data("tracee/events/events_v0.24.1.tsv").read_text("utf-8").splitlines()[1:]
    known = {row[0]: row[1] for row in (line.split("\t") for line in lines) if row[2] == "syscall"}
    calls = [e for e in events.events().values() if e.is_call and e.name in known]
    assert len(calls) > 100
    for event in calls:
        assert event.native == (int(known[event.name]),), event.name


def test_constants_of_the_kernel_program() -> None:
    """The words of the table stand for the constants of the kernel program."""
    handlers = constants("kcap_handler")
    handlers["exec_failed"] = handlers.pop("exec")
    assert handlers.pop("handlers") == len(handlers)
    assert {name: handlers[name] for name in events.HANDLERS} == events.HANDLERS
    flags = constants("kcap_call_flag")
    renamed = {"only_ok": "ok", "only_failed": "failed"}
    assert {renamed.get(name, name): value for name, value in flags.items()} == events.FLAGS
    text = RECORD.read_text("utf-8")
    assert f"KCAP_CALLS {events.CALLS} " in text
    assert f"KCAP_EVENTS {events.EVENTS} " in text


def test_table() -> None:
    """Numbers and names are given once, and every argument has a place in the record."""
    found = list(events.events().values())
    assert [event.number for event in found] == list(range(1, len(found) + 1))
    assert len(found) < events.EVENTS
    for event in found:
        names = [argument.name for argument in event.arguments]
        assert len(names) == len(set(names)), event.name
        for argument in event.arguments:
            assert PLACE.fullmatch(argument.place), argument
        assert event.ring in events.RINGS
        assert not event.is_call or event.handler in events.HANDLERS


def test_rings_are_fair() -> None:
    """What tells of an attack never shares a ring with reads, writes, opens and closes."""
    rare = {"execve", "sched_process_exec", "sched_process_exit", "connect", "ptrace", "setuid"}
    rare |= {"init_module", "finit_module", "bpf", "mount", "sched_process_fork"}
    hot = {"read", "write", "openat", "close", "sendto", "recvfrom"}
    assert {events.events()[name].ring for name in rare} == {"rare"}
    assert {events.events()[name].ring for name in hot} == {"hot"}


def test_calls() -> None:
    """The array has an entry for each number of a call, and says where its arguments stand."""
    wanted = ["renameat2", "recvfrom", "accept4", "setuid", "sched_process_exec"]
    found = events.calls(wanted)
    assert sorted(found) == [
        45,
        105,
        288,
        316,
        512 + 23,
        512 + 213,
        512 + 353,
        512 + 364,
        512 + 371,
    ]
    assert found[316] == found[512 + 353] == events.Call(48, 1, 0, (2, 4, 0), (1, 3), 0, 0, 0, 0)
    assert found[45] == events.Call(89, 4, 1, (0, 0, 0), (0, 0), 1, 5, 6, 4)
    assert found[288].fd == events.RESULT
    with pytest.raises(KcapError, match="no event 'opneat'"):
        events.calls(["opneat"])


def test_entry_bytes() -> None:
    """An entry's bytes are those of the structure, field by field."""
    fields = [("event", "<u2"), ("handler", "u1"), ("ring", "u1"), ("string", "u1", 3)]
    fields += [("at", "u1", 2), ("fd", "u1"), ("address", "u1"), ("length", "u1"), ("flags", "u1")]
    layout = np.dtype([*fields, ("pad", "u1", 3)])
    call = events.Call(0x102, 3, 1, (4, 5, 6), (7, 8), 9, 10, 11, 12)
    assert call.encode(layout) == bytes([2, 1, 3, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0])
