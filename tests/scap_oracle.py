"""sysdig as the oracle for .scap files: what it prints of each event, what we have of it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from scap_render import Known, Row, arguments, normal

FILES: Final = (
    "alpine",
    "curl_google",
    "files",
    "full_capture",
    "nginx",
    "rename",
    "sample",
    "setns",
    "setuid",
    "single_ipv6_conn",
    "tcp-client-server",
)
"""The samples, all of data/scap."""

VERSION: Final = "0.29."
"""The sysdig whose output is known; others know other events and print some otherwise."""

UNKNOWN_IDS: Final = frozenset({354, 358})
"""Event types that this sysdig does not know: it does not count them."""

FIELDS: Final = (
    "evt.num",
    "evt.rawtime",
    "thread.tid",
    "evt.dir",
    "evt.type",
    "proc.name",
    "fd.name",
    "fd.type",
    "evt.cpu",
    "evt.latency",
    "evt.args",
)
_START, _BETWEEN = "\x1e", "\x1f"
"""Values may hold blanks, ``|`` and line ends: these they don't."""

_NAMES: Final = {"rt_sigreturn": "sigreturn", "scapevent": "sysdigevent"}
"""Events and calls renamed since."""


class Printed(NamedTuple):
    """What sysdig prints of an event."""

    time_ns: int
    tid: int
    direction: str
    type: str
    process_name: str
    fd_name: str
    fd_type: str
    cpu: int
    args: str


class Oracle(NamedTuple):
    """What sysdig prints of a file."""

    events: dict[int, Printed]
    """By ``evt.num``."""
    latencies: dict[int, int]
    """How long the call took, by the ``evt.num`` of its exit."""


def sysdig_of(program: Callable[[str], str]) -> str:
    """The path of sysdig; the test skips where it is not installed, or is another version.

    Args:
        program: Finds a program.

    Returns:
        The path.
    """
    path = program("sysdig")
    found = _version(path)
    if not found.startswith(VERSION):
        pytest.skip(f"{path} is version {found}; its output is known of {VERSION}x")
    return path


@cache
def _version(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, check=True, timeout=60)
    return done.stdout.decode().split()[-1]


@cache
def oracle(program: str, path: Path) -> Oracle:
    """Let sysdig print all events of a file, its own and those that come from no call included.

    Args:
        program: The path of sysdig.
        path: The file.

    Returns:
        What it says.
    """
    wanted = "*" + _START + _BETWEEN.join(f"%{name}" for name in FIELDS)
    command = [program, "-D", "-r", str(path), "-p", wanted]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    events, latencies = {}, {}
    for record in done.stdout.decode("utf-8", "surrogateescape").split(_START)[1:]:
        number, ns, tid, way, kind, process, fd, fd_type, cpu, latency, args = record.removesuffix(
            "\n"
        ).split(_BETWEEN)
        # Of a descriptor that is not known an enter has no name, and an exit an empty one.
        fd = "<NA>" if (fd, fd_type) == ("", "<NA>") else fd
        events[int(number)] = Printed(
            int(ns), int(tid), way, kind, process, fd, fd_type, int(cpu), normal(args)
        )
        if way == "<":
            latencies[int(number)] = int(latency)
    return Oracle(events, latencies)


@cache
def parameter_counts(program: str) -> dict[tuple[str, str], int]:
    """How many parameters sysdig knows of an event: recordings by newer ones have more.

    Args:
        program: The path of sysdig.

    Returns:
        The direction, as ``<``, and the event to the number.
    """
    done = subprocess.run([program, "-L"], capture_output=True, check=True, timeout=60)
    found = {}
    for text in done.stdout.decode().splitlines():
        match = re.fullmatch(r"([<>]) (\w+)\((.*)\)", text)
        assert match, text
        found[match[1], match[2]] = len(match[3].split(",")) if match[3] else 0
    return found


def numbers(rows: Iterable[Row]) -> list[int]:
    """sysdig's number of each event: it does not count what it does not know; 0 for those."""
    found, count = [], 0
    for row in rows:
        known = row["event_id"] not in UNKNOWN_IDS
        count += known
        found.append(count if known else 0)
    return found


def printed(row: Row, args: str) -> Printed:
    """An event of ours as sysdig would print it.

    Args:
        row: The event, as a dict of its columns.
        args: Its arguments, as text.

    Returns:
        The fields to compare.
    """
    way = "<" if row["direction"] == "exit" else ">"
    time_ns = row["ts"] if "ts" in row else int(row["ts_raw"])
    nameless = "" if "fd_type" in row else "<NA>"
    return Printed(
        time_ns,
        row["tid"],
        way,
        _type(row),
        row.get("process_name", "<NA>"),
        row.get("fd_name", nameless),
        row.get("fd_type", "<NA>"),
        row["cpu"],
        normal(args),
    )


def _type(row: Row) -> str:
    """The event's type; that of a call without a type of its own is the call."""
    name = str(row["syscall"] if row["event"] == "syscall" else row["event"])
    return _NAMES.get(name, name)


def differences(
    rows: Sequence[Row], args: Sequence[str], expected: dict[int, Printed]
) -> list[tuple[int, str, object, object]]:
    """Where our events are not as sysdig prints them.

    Args:
        rows: All events of a file, in order.
        args: Their arguments, as text.
        expected: What sysdig prints.

    Returns:
        For every field that differs the number of the event, the field, sysdig's value, ours; an
        event that only one of the two has differs in its ``number``.
    """
    found: list[tuple[int, str, object, object]] = []
    ours: dict[int, Printed] = {}
    for number, row, text in zip(numbers(rows), rows, args, strict=True):
        if number:
            ours[number] = printed(row, text)
    found += [(n, "number", None, ours[n]) for n in ours.keys() - expected.keys()]
    found += [(n, "number", expected[n], None) for n in expected.keys() - ours.keys()]
    for number in ours.keys() & expected.keys():
        if ours[number] != expected[number]:
            both = zip(Printed._fields, expected[number], ours[number], strict=True)
            found += [(number, field, a, b) for field, a, b in both if a != b]
    return sorted(found, key=lambda d: (d[0], d[1]))


def render(row: Row, known: Known, program: str) -> str:
    """The arguments of an event, so many as sysdig knows of."""
    way = "<" if row["direction"] == "exit" else ">"
    limit = parameter_counts(program).get((way, _type(row)))
    return arguments(row, known, limit)
