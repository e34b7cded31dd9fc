"""The events that the Linux recorder makes, as data: ``readers/data/linux_events.tsv``.

An event's number is what a record carries, and never changes its meaning. A system call is found
by its number in an array of the kernel program, the 32-bit calls behind the others; what `calls`
gives is that array.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

import numpy as np

from kcap.errors import KcapError

CALLS: Final = 512
"""System call numbers of one instruction set are below; the 32-bit ones stand behind so many."""

EVENTS: Final = 256
"""Event numbers are below."""

EXECUTION: Final = "sched_process_exec"
"""The event of a program that begins."""

SYSCALL: Final = "sys_exit"
"""Source of an event that is a system call."""

RESULT: Final = 255
"""Place of the result of a call, among the places of its arguments."""

WORKING_DIRECTORY: Final = 255
"""Place of the directory of a path that begins in the working directory."""

HANDLERS: Final = {
    "plain": 0,
    "path": 1,
    "open": 2,
    "file": 3,
    "socket": 4,
    "exec_failed": 5,
    "memory": 6,
    "bpf": 7,
    "remote": 8,
    "close": 9,
}
"""``enum kcap_handler``, by the words of the table."""

RINGS: Final = {"rare": 0, "hot": 1}

FLAGS: Final = {
    "ok": 1,
    "failed": 2,
    "length_pointer": 4,
    "message": 8,
    "vector": 16,
    "position": 32,
    "writes": 64,
    "credentials": 128,
}
"""``enum kcap_call_flag``."""

_PLACES: Final = {"none": 0, "cwd": WORKING_DIRECTORY, "result": RESULT}


class Call(NamedTuple):
    """How a system call is recorded: ``struct kcap_call``, without the padding."""

    event: int
    handler: int
    ring: int
    string: tuple[int, int, int]
    at: tuple[int, int]
    fd: int
    address: int
    length: int
    flags: int

    def encode(self, layout: np.dtype[np.void]) -> bytes:
        """The entry of the array.

        Args:
            layout: ``struct kcap_call`` as the kernel program has it.

        Returns:
            Its bytes.
        """
        entry = np.zeros((), layout)
        for name, value in self._asdict().items():
            entry[name] = value
        return entry.tobytes()


class Argument(NamedTuple):
    """One argument of an event."""

    name: str
    kind: str
    """What it holds: ``int``, ``path``, ``addr`` … (`kcap.readers.live.bpf.values`)."""
    place: str
    """Where it stands: ``n0`` to ``n11`` a number, ``p0`` to ``p7`` a piece, else a field."""


class Event(NamedTuple):
    """One kind of event."""

    number: int
    name: str
    source: str
    """``sys_exit`` for a system call, else the tracepoint that it comes from."""
    native: tuple[int, ...]
    """Numbers of the call."""
    compat: tuple[int, ...]
    """Numbers of the call for 32-bit programs."""
    handler: str
    kernel: tuple[str, ...]
    ring: str
    sets: tuple[str, ...]
    arguments: tuple[Argument, ...]

    @property
    def is_call(self) -> bool:
        """Whether it is a system call, with a result."""
        return self.source == SYSCALL

    @property
    def call(self) -> Call:
        """How the kernel program records it, where it is a system call."""
        places = {"string": (0, 0, 0), "at": (0, 0), "fd": (0,), "address": (0,), "length": (0,)}
        flags = 0
        for token in self.kernel:
            key, _, value = token.partition("=")
            if not value:
                flags |= FLAGS[key]
                continue
            found = tuple(_PLACES[p] if p in _PLACES else int(p) for p in value.split(","))
            places[key] = (found + places[key])[: len(places[key])]
        return Call(
            self.number,
            HANDLERS[self.handler],
            RINGS[self.ring],
            (places["string"][0], places["string"][1], places["string"][2]),
            (places["at"][0], places["at"][1]),
            places["fd"][0],
            places["address"][0],
            places["length"][0],
            flags,
        )


@cache
def events() -> dict[str, Event]:
    """The events that there are, by name, in the order of their numbers."""
    text = resources.files("kcap.readers.data").joinpath("linux_events.tsv").read_text("utf-8")
    heading, *lines = text.splitlines()
    columns = heading.split("\t")
    found = {}
    for line in lines:
        row = dict(zip(columns, line.split("\t"), strict=True))
        event = Event(
            int(row["number"]),
            row["event"],
            row["source"],
            _numbers(row["x86_64"]),
            _numbers(row["i386"]),
            row["handler"],
            tuple(row["kernel"].split()),
            row["ring"],
            tuple(row["sets"].split(",")),
            tuple(_argument(text) for text in row["arguments"].split()),
        )
        found[event.name] = event
    return found


@cache
def by_number() -> dict[int, Event]:
    """The events that there are, by number."""
    return {event.number: event for event in events().values()}


@cache
def sets() -> dict[str, tuple[str, ...]]:
    """The names for several events: the set's name to its events, in order of their numbers."""
    found: dict[str, list[str]] = {}
    for event in events().values():
        for name in event.sets:
            found.setdefault(name, []).append(event.name)
    return {name: tuple(found[name]) for name in sorted(found)}


def calls(wanted: Collection[str]) -> dict[int, Call]:
    """The array by which the kernel program finds out how to record a call.

    Args:
        wanted: Names of the events to record; those that are no system calls have no entry.

    Returns:
        Index to entry: the number of a call, or 512 and the number of a 32-bit one.

    Raises:
        KcapError: There is no such event.
    """
    found = {}
    for name in sorted(wanted):
        event = events().get(name)
        if event is None:
            raise KcapError(
                f"no event {name!r}", hint="kcap record --list-events prints those there are"
            )
        if event.is_call:
            for number in event.native:
                found[number] = event.call
            for number in event.compat:
                found[CALLS + number] = event.call
    return dict(sorted(found.items()))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _argument(text: str) -> Argument:
    name, _, rest = text.partition(":")
    kind, _, place = rest.partition("=")
    return Argument(name, kind, place)
