"""The tables of docs/events.md, out of the catalogues: run this file to write them anew.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; what is outside is written by
hand.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Final

from kcap.model import catalogue
from kcap.model.catalogue import Derived
from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.events import Argument, Event
from kcap.readers.live.trace import points
from kcap.replay.derivation import operands
from kcap.replay.derived import FAMILY

FILE: Final = Path(__file__).parent.parent / "docs" / "events.md"

KERNEL: Final = {"fchmodat2": "6.6"}
"""The first release with a call, where it is later than what any recording needs."""

EXACTNESS: Final = {
    "opened": "exact, derived where it failed",
    "rel": "derived",
    "none": "later",
    **dict.fromkeys(("str", "argv", "env", "addr", "bytes"), "said"),
    "remote": "exact, said where there is no peer",
}
"""How true an argument is by its kind; one that is not here is exact."""

MARKS: Final = {
    "exact": "",
    "said": "ˢ",
    "derived": "ᵈ",
    "exact, derived where it failed": "ᵈ",
    "exact, said where there is no peer": "ˢ",
    "later": "⁻",
}

GROUPS: Final = {
    "process": "Processes",
    "clone": "Making of processes and threads, as calls",
    "creds": "Credentials",
    "fs": "Files",
    "io": "Reading and writing",
    "fd": "Descriptors",
    "net": "Sockets",
    "netio": "Sending and receiving",
    "security": "Memory, kernel, injection",
    "memory": "Memory of a thread",
    "uring": "io_uring",
}

SEED: Final = (
    *("close", "dup", "dup2", "dup3", "execve", "hooked_syscalls", "init_module", "magic_write"),
    *("mem_prot_alert", "process_vm_writev", "ptrace", "sched_process_exec", "sched_process_exit"),
    *("security_bprm_check", "security_file_open", "security_kernel_read_file"),
    *("security_sb_mount", "security_socket_connect"),
)
"""The events that the signatures of Tracee v0.8 look at."""


def exactness(event: Event, argument: Argument) -> str:
    """How true an argument of an event is."""
    if not event.is_call and (argument.kind == "str" or event.handler == "check"):
        return "exact"  # the kernel's own copy, or found in its memory
    if argument.kind == "remote" and "+" not in argument.place:
        return "exact"
    return EXACTNESS.get(argument.kind, "exact")


def text(before: str) -> str:
    """The file with its tables as they have to be."""
    tables = {"recorded": recorded, "traced": traced, "derived": derived, "seed": seed}

    def made(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{tables[match[1]]()}<!-- end -->"

    found = re.findall(r"<!-- table (\w+) -->", before)
    assert found == list(tables), found
    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", made, before, flags=re.DOTALL)


def recorded() -> str:
    """The recorded events, by their first set."""
    by_group: dict[str, list[Event]] = defaultdict(list)
    for event in events.events().values():
        by_group[event.sets[0]].append(event)
    assert by_group.keys() == GROUPS.keys(), by_group.keys() ^ GROUPS.keys()
    return "\n".join(f"### {title}\n\n{table(by_group[g])}" for g, title in GROUPS.items())


def table(found: list[Event]) -> str:
    """Recorded events as a table."""
    rows = ["| event | kernel source | sets | arguments |", "|---|---|---|---|"]
    for event in found:
        cells = (f"`{event.name}`", _source(event), " ".join(event.sets), _arguments(event))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _source(event: Event) -> str:
    if not event.is_call:
        return f"`{event.source}`"
    numbers = ", ".join(map(str, event.native)) or "-"
    compat = ", ".join(map(str, event.compat)) or "-"
    since = f"; from {KERNEL[event.name]} on" if event.name in KERNEL else ""
    which = " if it failed" if "failed" in event.kernel else ""
    which = " if it succeeded" if "ok" in event.kernel else which
    return f"call {numbers} / {compat}{which}{since}"


def _arguments(event: Event) -> str:
    shown = [f"`{a.name}`{MARKS[exactness(event, a)]}" for a in event.arguments]
    return " ".join(shown) or "-"


def traced() -> str:
    """The events that tracepoints tell of, and what they know of them."""
    rows = ["| event | tracepoint | by default | arguments |", "|---|---|---|---|"]
    for event in points.known().values():
        if event.name in points.told():
            where = points.tracepoint_of(event)
            usual = "yes" if event.name in points.default() else ""
            names = [f"`{a.name}`" for a in event.arguments if points.knows(event, a)]
            rows.append(f"| `{event.name}` | `{where}` | {usual} | {' '.join(names) or '-'} |")
    return "\n".join(rows) + "\n"


def derived() -> str:
    """Derived events as a table."""
    rows = ["| event | of | if | arguments | differs |", "|---|---|---|---|---|"]
    same: dict[tuple[str, str, tuple[tuple[str, str, str], ...]], list[Derived]] = defaultdict(list)
    for entry in catalogue.derived(FAMILY):
        same[entry.event, entry.when, entry.arguments].append(entry)
    for (name, when, _), entries in same.items():
        bases = " ".join(f"`{entry.base}`" for entry in entries)
        condition = f"`{when.replace('$', '')}`" if when else "always"
        notes = "; ".join(dict.fromkeys(entry.note for entry in entries if entry.note))
        rows.append(f"| `{name}` | {bases} | {condition} | {_viewed(entries[0])} | {notes} |")
    return "\n".join(rows) + "\n"


def _viewed(entry: Derived) -> str:
    base = events.events().get(entry.base)  # none of a packet
    known = {a.name: exactness(base, a) for a in base.arguments} if base else {}
    shown = []
    for name, _, place in entry.arguments:
        if place == "-":
            shown.append(f"`{name}`{MARKS['later']}")
        elif not operands(place):
            shown.append(f"`{name}` = {place}")
        else:
            marks = {MARKS[known.get(operand, "exact")] for operand in operands(place)}
            shown.append(f"`{name}`{''.join(sorted(marks))}")
    return " ".join(shown)


def seed() -> str:
    """How the events that signatures of Tracee v0.8 look at are there."""
    views = {entry.event for entry in catalogue.derived(FAMILY)}
    rows = ["| event | here |", "|---|---|"]
    for name in SEED:
        there = name in events.events()
        how = "recorded" if there else "derived" if name in views else "no"
        if there and name in views:
            how = "recorded where it failed, derived where it succeeded"
        rows.append(f"| `{name}` | {how} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(FILE.read_text("utf-8")), "utf-8")
