"""Against sysdig: every field of every event of a .scap file, by the event's number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scap_oracle import FILES, Printed, differences, oracle, sysdig_of
from scap_rows import arguments_of, cli_rows, names_of, rows

Data = Callable[[str], Path]
Program = Callable[[str], str]


class Exempt(NamedTuple):
    """Where we are not as sysdig prints it, and why that is right."""

    file: str
    fields: str
    numbers: set[int]
    reason: str


_PSEUDO = "a record of a container is not of a thread: sysdig invents one of the container's name"
_RECONNECTED = "sysdig keeps the other end of the socket's first connection"
_CLOSED = "255 is not open: the call fails with EBADF; sysdig has missed that it was closed"
_FORGOTTEN = "the socket is known: sysdig takes the descriptor from the enter, which names none"

EXEMPT = [
    Exempt("full_capture", "process_name", {504}, _PSEUDO),
    Exempt("nginx", "process_name", {21166}, _PSEUDO),
    Exempt(
        "full_capture",
        "args",
        {505, 516, 531, 861, 877, 882, 978, 985, 1000},
        "ptid 10301 is in no table and no event: sysdig gives it the name of its child; and 10310"
        " (516) that of the event, before its first own one",
    ),
    Exempt("full_capture", "fd_name", {34564}, "accept failed: sysdig names a socket NULL"),
    Exempt("nginx", "fd_name fd_type", {21911, 21930, 22180, 22199, 22449, 25749}, _FORGOTTEN),
    Exempt("setns", "fd_name", {1991, 1992, 1993, 1996, 1997}, _RECONNECTED),
    Exempt("setns", "args", {1992, 1996}, _RECONNECTED),
    Exempt("setns", "fd_name fd_type", {3369, 3370}, _CLOSED),
    Exempt("setns", "args", {3369}, _CLOSED),
    Exempt("setns", "fd_name", {7868, 8308}, "//lib is /lib also where opening failed"),
    Exempt(
        "single_ipv6_conn",
        "args",
        {1152},
        "a socket that was made for TCP has that transport before it is connected",
    ),
]
"""All there are; one that is not needed any more fails the test as well."""


def exempt(name: str) -> set[tuple[int, str]]:
    """The numbers and fields of a file that differ for a reason."""
    of_file = [e for e in EXEMPT if e.file == name]
    return {(n, field) for e in of_file for n in e.numbers for field in e.fields.split()}


def shown(found: Iterable[tuple[int, str, object, object]], events: dict[int, Printed]) -> str:
    """Differences as text, so many of each kind."""
    lines, seen = [], Counter[tuple[str, str]]()
    for number, field, theirs, ours in found:
        kind = field, events[number].type if number in events else ""
        seen[kind] += 1
        if seen[kind] <= 5:
            lines.append(f"{number} {kind[1]} {field}:\n  sysdig {theirs}\n  kcap   {ours}")
    return "\n".join([*lines, str(dict(seen))])


def differing(
    events: list[dict[str, Any]], path: Path, sysdig: str
) -> list[tuple[int, str, object, object]]:
    """Where events of a file are not as sysdig prints them; which there are tests another file."""
    texts = arguments_of(events, names_of(path), sysdig)
    found = differences(events, texts, oracle(sysdig, path).events)
    return [d for d in found if d[1] != "number"]


@pytest.mark.parametrize("name", FILES)
def test_every_field_is_as_sysdig_prints_it(name: str, data: Data, program: Program) -> None:
    """Time, thread, direction, type, names, processor and arguments of each event are the same."""
    sysdig, path = sysdig_of(program), data(f"scap/{name}.scap")
    found = differing(rows(path), path, sysdig)
    allowed = exempt(name)
    wrong = [d for d in found if d[:2] not in allowed]

    assert not wrong, shown(wrong, oracle(sysdig, path).events)
    assert allowed == {d[:2] for d in found}, "an exemption is no longer needed"


@pytest.mark.parametrize("name", ["curl_google", "files"])
def test_the_command_prints_the_same(name: str, data: Data, program: Program) -> None:
    """What ``kcap cat --raw-pairs`` prints as JSON lines is as sysdig prints it."""
    sysdig, path = sysdig_of(program), data(f"scap/{name}.scap")
    found = differing(cli_rows(path, "--raw-pairs"), path, sysdig)

    assert {d[:2] for d in found} == exempt(name)


@pytest.mark.parametrize("name", ["alpine", "full_capture"])
def test_names_do_not_depend_on_batches(name: str, data: Data) -> None:
    """A stream that is cut behind every event that asks for a name has the same names."""
    path = data(f"scap/{name}.scap")

    assert names_of(path).events == rows(path)


Change = Callable[[dict[str, Any]], None]


def other_name(row: dict[str, Any]) -> None:
    """A thread is taken for another."""
    if row.get("process_name") == "httpd":
        row["process_name"] = "nginx"


def swapped(row: dict[str, Any]) -> None:
    """Two parameters change places."""
    if row["event"] == "switch":
        row["arg_pgft_min"], row["arg_pgft_maj"] = row["arg_pgft_maj"], row["arg_pgft_min"]


def old_name(row: dict[str, Any]) -> None:
    """A descriptor keeps the name of an earlier file."""
    if row.get("fd_name") == "/etc/passwd":
        row["fd_name"] = "/etc/shadow"


def one_late(row: dict[str, Any]) -> None:
    """An event is counted twice, so that all later ones are one late."""
    row["ts"] = row.get("ts", 0) + (row["seq"] > 100)


@pytest.mark.parametrize("change", [other_name, swapped, old_name, one_late])
def test_a_wrong_value_is_noticed(change: Change, data: Data, program: Program) -> None:
    """Negative control: a value decoded wrongly, a wrong name or time is a difference."""
    sysdig, path = sysdig_of(program), data("scap/full_capture.scap")
    events = [dict(row) for row in rows(path)]
    for row in events:
        change(row)
    changed = events != rows(path)

    assert changed
    assert {d[:2] for d in differing(events, path, sysdig)} > exempt("full_capture")
