"""Our rows of a .scap file, and the names that the state has as of each."""

from __future__ import annotations

import base64
import json
import posixpath
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from cli_support import run
from scap_oracle import render
from scap_render import Row, arguments, items_of, looked_up

from kcap.model import catalogue
from kcap.model.batch import Batch
from kcap.model.classes import TypeClass
from kcap.model.side import Loss
from kcap.readers.scap import ScapReader
from kcap.readers.scap_blocks import Blocks, Table
from kcap.readers.scap_tables import Tables
from kcap.state.state import State


def batches(path: Path, *, raw_pairs: bool = True) -> Iterator[Batch]:
    """The batches of a file, as its reader gives them."""
    with path.open("rb") as stream:
        yield from ScapReader(stream, str(path), raw_pairs=raw_pairs).batches()


@cache
def rows(path: Path, *, raw_pairs: bool = True) -> list[dict[str, Any]]:
    """The events of a file with the state's names, as dicts of their columns."""
    state = State()
    resolved = (state.update(b, resolve=True) for b in batches(path, raw_pairs=raw_pairs))
    return [row for batch in resolved for row in batch.to_pylist()]


def cut_rows(path: Path) -> tuple[list[dict[str, Any]], list[Loss]]:
    """The events of a file that ends early, and what its reader says of that."""
    found = list(batches(path))
    losses = [side for batch in found for side in batch.before if isinstance(side, Loss)]
    return [row for batch in found for row in batch.to_pylist()], losses


def cli_rows(path: Path, *words: str) -> list[dict[str, Any]]:
    """The events that ``kcap cat`` prints as JSON lines."""
    result = run("cat", *words, "--format", "jsonl", path)
    assert result.exit_code == 0, result.output
    return [_typed(json.loads(text)) for text in result.stdout.splitlines()]


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """A row with bytes where JSON has base64."""
    return {
        name: base64.b64decode(value) if catalogue.class_of(name) is TypeClass.BIN else value
        for name, value in row.items()
    }


def tables_of(path: Path) -> Tables:
    """What a file says of its machine."""
    tables = Tables(str(path))
    with path.open("rb") as stream:
        for item in Blocks(stream, str(path)).read():
            if isinstance(item, Table):
                tables.take(item)
    return tables


class Names:
    """What a state knows, for parameters that name a thread, a descriptor, a path or a user."""

    def __init__(self, state: State, tables: Tables) -> None:
        self._state = state
        self._tables = tables

    def thread(self, tid: int) -> str | None:
        """The name of a thread, None for one that is not known."""
        thread = self._state.thread(tid)
        return thread.name if thread and not thread.exited else None

    def descriptor(self, tid: int, fd: int) -> tuple[str, str, str] | None:
        """Type, ``t`` or ``u`` for a transport, and name of what a number of a thread means."""
        found = self._state.descriptor(self._process(tid), fd)
        if found is None or found.type is None:
            return None
        details = json.loads(found.details or "{}")
        transport = {"tcp": "t", "udp": "u", "icmp": "i", "raw": "r"}
        return found.type, transport.get(details.get("l4_proto"), ""), found.name or ""

    def path(self, tid: int, directory: int | None, path: str) -> str:
        """A path made absolute, by a directory's descriptor or the working directory."""
        process = self._state.process(self._process(tid))
        base = process.cwd if process else None
        if directory is not None:
            found = self._state.descriptor(self._process(tid), directory)
            base = found.name if found else None
        return posixpath.normpath(posixpath.join(base or "", path))

    def _process(self, tid: int) -> int:
        thread = self._state.thread(tid)
        return thread.pid if thread else tid

    def user(self, uid: int) -> str | None:
        """The name of a user."""
        known = self._tables.users.get(uid)
        return known.name if known else None

    def group(self, gid: int) -> str | None:
        """The name of a group."""
        known = self._tables.groups.get(gid)
        return known.name if known else None


class Recalled:
    """Names as they were when an event was followed, to be asked for again."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._answers: dict[tuple[Any, ...], Any] = {}
        self.row = 0
        """Which event asks."""
        self.events: list[dict[str, Any]] = []
        """The events as they were followed."""

    def _ask(self, question: str, *of: Any) -> Any:
        key = (self.row, question, *of)
        if key not in self._answers:
            self._answers[key] = getattr(self._names, question)(*of)
        return self._answers[key]

    def thread(self, tid: int) -> str | None:
        """The name of a thread."""
        found: str | None = self._ask("thread", tid)
        return found

    def descriptor(self, tid: int, fd: int) -> tuple[str, str, str] | None:
        """What a number of a thread means."""
        found: tuple[str, str, str] | None = self._ask("descriptor", tid, fd)
        return found

    def path(self, tid: int, directory: int | None, path: str) -> str:
        """A path made absolute."""
        return str(self._ask("path", tid, directory, path))

    def user(self, uid: int) -> str | None:
        """The name of a user."""
        return self._names.user(uid)

    def group(self, gid: int) -> str | None:
        """The name of a group."""
        return self._names.group(gid)


@cache
def names_of(path: Path) -> Recalled:
    """The names that events of a file need but have in no column, as of each event.

    The stream is cut behind each of those events, and the state asked there.

    Args:
        path: The file.

    Returns:
        What answers for the event of row `Recalled.row`.
    """
    state = State()
    recalled = Recalled(Names(state, tables_of(path)))
    seen = iter(rows(path))
    for batch in batches(path):
        asking = [any(looked_up(r, i) for i in items_of(r)) for r in islice(seen, batch.rows)]
        cuts = [i + 1 for i, asks in enumerate(asking) if asks]
        for start, stop in pairwise([0, *cuts, batch.rows]):
            for row in state.update(batch.slice(start, stop), resolve=True).to_pylist():
                arguments(row, recalled)
                recalled.events.append(row)
                recalled.row += 1
    return recalled


def arguments_of(events: Sequence[Row], names: Recalled, program: str) -> list[str]:
    """The arguments of all events of a file as sysdig prints them.

    Args:
        events: The events, or changed ones.
        names: The names as of each.
        program: The path of sysdig.

    Returns:
        One text an event.
    """
    found = []
    for names.row, row in enumerate(events):
        found.append(render(row, names, program))
    return found
