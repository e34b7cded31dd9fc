"""The event types of .scap files: what an event's number means, and which parameters it has.

A file holds numbers only. Numbers are never given twice and parameters only appended, so one
table, the newest, reads the files of all releases.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

UNKNOWN: Final = "unknown_"
"""Before the number of an event type that the table lacks: its name."""

SYSCALL: Final = "syscall"
"""Name of an event that stands for any call without a type of its own."""

CREATES_FD: Final = "creates_fd"
DESTROYS_FD: Final = "destroys_fd"
MODIFIES_STATE: Final = "modifies_state"
USES_FD: Final = "uses_fd"
WAITS: Final = "waits"
"""Flags of an event type that kcap asks for."""

_UNUSED: Final = "unused"
_UNNAMED: Final = "NA"
_PROGRAM_CALLS: Final = frozenset({"clone", "clone3", "execve", "execveat", "fork", "vfork"})
_TEXTS_OF_PROGRAM: Final = frozenset({"args", "cgroups", "env"})

LIST_KIND: Final = "CHARBUFARRAY"
"""Kind of a parameter that holds texts, a NUL behind each."""


class Parameter(NamedTuple):
    """One parameter of an event type."""

    name: str
    kind: str
    """The table's word for its type: ``FD``, ``FSPATH``."""
    is_list: bool
    """Whether it holds texts, a NUL behind each; the table calls some of these ``BYTEBUF``."""


class EventType(NamedTuple):
    """One event type: the enter (even number) or the exit (odd) of a call, or an event alone."""

    number: int
    name: str
    flags: frozenset[str]
    """What it does: ``uses_fd``, ``creates_fd``, ``modifies_state``; lower case."""
    categories: frozenset[str]
    """What it is about: ``file``, ``io_read``; ``syscall`` or ``tracepoint`` or ``metaevent``."""
    parameters: tuple[Parameter, ...]

    @property
    def is_exit(self) -> bool:
        """Whether it is the second half of a call."""
        return bool(self.number & 1)

    @property
    def result(self) -> int | None:
        """Index of the parameter that says how a call ended, None for an event without one."""
        if not self.is_exit or not self.parameters:
            return None
        first = self.parameters[0]
        is_result = first.name == "res" or first.kind in ("FD", "PID", "ERRNO")
        return 0 if is_result else None


@cache
def event_types() -> dict[int, EventType]:
    """The event types that are in use, by number."""
    text = resources.files("kcap.readers.data").joinpath("scap_events.tsv").read_text("utf-8")
    found: dict[int, EventType] = {}
    for line in text.splitlines()[1:]:
        number, name, flags, categories, parameters = line.split("\t")
        if name == _UNNAMED:
            if not parameters:
                continue
            # The end of a span, which is not written any more; older files have it.
            name = found[int(number) - 1].name
        pairs = [p.split(":") for p in parameters.split()]
        found[int(number)] = EventType(
            int(number),
            name,
            frozenset(flags.split(",")) - {"", _UNUSED},
            frozenset(categories.split(",")) - {""},
            tuple(Parameter(n, kind, _is_list(name, n, kind)) for n, kind in pairs),
        )
    return found


def _is_list(event: str, name: str, kind: str) -> bool:
    if kind == "BYTEBUF":
        return event in _PROGRAM_CALLS and name in _TEXTS_OF_PROGRAM
    return kind in (LIST_KIND, "CHARBUF_PAIR_ARRAY")


def name_of(number: int) -> str:
    """The name of an event type.

    Args:
        number: Its number.

    Returns:
        The name, ``unknown_NUMBER`` for one that is not known.
    """
    known = event_types().get(number)
    return known.name if known else f"{UNKNOWN}{number}"


class Traits(NamedTuple):
    """What event types are, as arrays over their numbers; the last entry is for unknown ones."""

    known: npt.NDArray[np.bool_]
    is_exit: npt.NDArray[np.bool_]
    """By number alone: an unknown odd one is taken for an exit, too."""
    has_both: npt.NDArray[np.bool_]
    """Whether both halves of the call are in the table: an enter that an exit follows."""
    uses_fd: npt.NDArray[np.bool_]
    creates_fd: npt.NDArray[np.bool_]
    modifies_state: npt.NDArray[np.bool_]

    @property
    def size(self) -> int:
        """Numbers that the table covers; every greater one is unknown."""
        return len(self.known) - 1


@cache
def traits() -> Traits:
    """What event types are, for looking up many at once."""
    types = event_types()
    size = max(types) + 1

    def array(wanted: set[int]) -> npt.NDArray[np.bool_]:
        out = np.zeros(size + 1, np.bool_)
        out[sorted(wanted)] = True
        return out

    def flagged(flag: str) -> npt.NDArray[np.bool_]:
        return array({n for n, t in types.items() if flag in t.flags})

    return Traits(
        array(set(types)),
        array({n for n in range(size) if n & 1}),
        array({n for n in types if n ^ 1 in types}),
        flagged(USES_FD),
        flagged(CREATES_FD),
        flagged(MODIFIES_STATE),
    )
