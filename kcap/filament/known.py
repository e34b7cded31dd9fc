"""What a filament is told that asks for a process or a handle: as of the event it looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from kcap.filament.source import Filament
from kcap.model.batch import EMPTY, Batch
from kcap.state import Process, State

ASKING: Final = frozenset({"find_process", "find_processes", "find_handle", "find_handles"})
"""The functions for which a state is followed."""


def asks(filament: Filament) -> bool:
    """Whether a filament may ask.

    Args:
        filament: The filament.

    Returns:
        True where it has one of `ASKING`, or builds names at run time.
    """
    return bool(filament.names & (ASKING | {"globals", "eval", "exec"}))


class Known:
    """Follows the events up to the one that a filament looks at, and answers its questions."""

    def __init__(self) -> None:
        self._state = State()
        self._batch = EMPTY
        self._done = 0
        self._machine: str | None = None
        self._answers: dict[str, Callable[..., Any]] = {
            "process": self._process,
            "processes": self._processes,
            "handle": self._handle,
            "handles": self._handles,
        }

    def begin(self, batch: Batch) -> None:
        """Take the next batch.

        Args:
            batch: The events.
        """
        self._advance(self._batch.rows)
        self._batch, self._done = batch, 0
        if not batch.rows:
            self._state.update(batch)

    def answer(self, rows: int, what: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401
        """Answer a question.

        Args:
            rows: How many events of the batch have happened.
            what: The question.
            arguments: What it is about.

        Returns:
            Plain JSON values.

        Raises:
            ValueError: It is no question.
        """
        answer = self._answers.get(what)
        if answer is None:
            raise ValueError(f"no question: {what!r}")
        self._advance(rows)
        return answer(*arguments)

    def _advance(self, rows: int) -> None:
        if rows <= self._done:
            return
        part = self._batch.slice(self._done, rows)
        self._done = rows
        self._state.update(part)
        machines, codes = self._state.machines_of(part)
        self._machine = machines[int(codes[-1])]

    def _process(self, pid: int) -> dict[str, Any] | None:
        found = self._state.process(pid, self._machine)
        return None if found is None else _told(found)

    def _processes(self, name: str | None) -> list[dict[str, Any]]:
        wanted = None if name is None else name.casefold()
        return [
            _told(process)
            for process in self._state.running(self._machine)
            if wanted in {None, (process.name or "").casefold()}
        ]

    def _handle(self, pid: int, number: int) -> dict[str, Any] | None:
        table = self._state.handles(self._machine)
        handle = None if table is None else table.get(pid, number)
        if handle is not None:
            return _handle(pid, number, handle.type, handle.name, handle.object)
        target = self._state.descriptor(pid, number, self._machine)
        return None if target is None else _handle(pid, number, target.type, target.name, None)

    def _handles(self, pid: int) -> list[dict[str, Any]]:
        table = self._state.handles(self._machine)
        found = {
            h.handle: _handle(pid, h.handle, h.type, h.name, h.object)
            for h in (() if table is None else table.of_process(pid))
        }
        for d in self._state.descriptors(pid, self._machine):
            found.setdefault(d.fd, _handle(pid, d.fd, d.type, d.name, None))
        return [found[number] for number in sorted(found)]


def _told(process: Process) -> dict[str, Any]:
    """A process in the words of the event dictionary."""
    command = process.cmdline or ""
    return {
        "pid": process.pid,
        "ppid": process.ppid,
        "name": process.name or "",
        "exe": process.exe or "",
        "comm": command,
        "cmdline": command,
        "cwd": process.cwd or "",
        "sid": process.user or "",
        "session": process.session,
        "process_key": process.process_key,
        "exited": process.exited,
    }


def _handle(
    pid: int, number: int, kind: str | None, name: str | None, address: int | None
) -> dict[str, Any]:
    """A handle; the address of its object is text, as in the event dictionary."""
    return {
        "pid": pid,
        "handle": number,
        "type": kind or "",
        "name": name or "",
        "object": "" if address is None else f"{address:x}",
    }
