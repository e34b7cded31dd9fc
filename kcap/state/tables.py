"""What is known of a machine for calls to change, and what a call's handler gets."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kcap.state.fds import FdTable
from kcap.state.processes import ProcessTable
from kcap.state.threads import ThreadTable

AT_CWD: Final = -100
"""Stands for the working directory where a descriptor of a directory is asked for."""


@dataclass(slots=True)
class Tables:
    """What is known of one machine."""

    threads: ThreadTable
    fds: FdTable
    processes: ProcessTable
    users: dict[int, str]
    """User names by id."""
    named: list[tuple[int, str]] = field(default_factory=list)
    """Rows of failed calls, and what they would have opened or connected to."""

    def tried(self, row: int, name: str) -> None:
        """Keep what a failed call was about, while a batch's changes are kept.

        Args:
            row: Its row.
            name: What it would have opened or connected to.
        """
        if self.threads.changes is not None:
            self.named.append((row, name))

    def collect(self) -> None:
        """Begin to keep what a batch changes."""
        self.processes.changes = []
        self.threads.changes = []
        self.fds.collect()
        self.named = []

    def forget(self) -> None:
        """End what `collect` began."""
        self.processes.changes = self.threads.changes = None
        self.processes.before, self.threads.before = {}, {}
        self.fds.forget()
        self.named = []

    def clear(self) -> None:
        """Forget all."""
        self.threads.clear()
        self.fds.clear()
        self.processes.clear()
        self.users.clear()


@dataclass(frozen=True, slots=True)
class Traits:
    """What the handlers must know of an event beyond its values."""

    type: str | None
    """What it makes."""
    types: dict[int, str]
    """What it makes, by the number of its argument for that."""
    cloexec: int
    """The flag with which a descriptor ends with the next program."""
    directory: int
    """The flag of a directory."""
    thread: int
    """The flag with which a clone is a thread of its caller's process."""


class Step(NamedTuple):
    """What a handler gets: a row that changes something."""

    row: int
    tid: int
    """The thread that called."""
    owner: int
    """Its process (`ThreadTable.owner`)."""
    retval: int | None
    of: Traits
    values: Sequence[Any]
    """One for each of the handler's arguments (`EFFECTS`), None where the row has none."""


Handler = Callable[[Tables, Step], None]
"""Applies one step."""


def path_of(tables: Tables, owner: int, name: str, at: int | None = None) -> str:
    """The path that a process means.

    Args:
        tables: The machine's tables.
        owner: The process.
        name: The path as it was given.
        at: Descriptor of the directory in which it begins.

    Returns:
        The absolute path without ``.``, ``..`` and doubled slashes; a relative one where the
        directory is not known.
    """
    if not name.startswith("/"):
        base: str | None = None
        if at is None or at == AT_CWD:
            process = tables.processes.get(owner)
            base = None if process is None else process.cwd
        elif (target := tables.fds.get(owner, at)) is not None:
            base = target.name
        if base is None or not base.startswith("/"):
            return posixpath.normpath(name) if "./" in name or "//" in name else name
        name = f"{base}/{name}"
    elif "//" not in name and "/." not in name:
        return name if name == "/" else name.removesuffix("/")
    path = posixpath.normpath(name)
    return path[1:] if path.startswith("//") else path
