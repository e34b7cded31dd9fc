"""The folder of a process in /proc, read by this process itself or by a `Prober`."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Final, Protocol

from kcap.readers.live.probe import reader, wire
from kcap.readers.live.probe.client import GONE, LATE, Answer, Prober
from kcap.readers.live.probe.wire import CONTENT_BYTES, Item, Op, Request

_NUMBER: Final = re.compile(r"/(\d+)")
_STAT: Final = Item(Op.CONTENT, "stat")
_START: Final = 19
"""The field of stat that has the start time, counted from the state."""


class Folder(Protocol):
    """What is read of one process, and never of another that takes over its id."""

    late: list[str]
    """What hung, and was given up."""

    def content(self, name: str, most: int = CONTENT_BYTES) -> bytes | None:
        """A file.

        Args:
            name: Its path in the folder.
            most: Bytes to read; the rest is left.

        Returns:
            Its bytes, None where the process is gone, the file is not for us, or reading it hung.
        """

    def link(self, name: str) -> str | bytes | None:
        """Where a link leads.

        Args:
            name: Its path in the folder.

        Returns:
            Its target as `plain` gives it, None where there is none for us.
        """

    def numbers(self, name: str) -> list[int] | None:
        """The numbers that a folder in the folder holds.

        Args:
            name: Its path.

        Returns:
            The numbers, ascending; None where it is not for us.
        """

    def left_out(self, name: str) -> int:
        """How many of many things were beyond the limits.

        Args:
            name: As it was fetched: ``fd/*``.

        Returns:
            Those that were not read though they are there.
        """

    def fresh(self, name: str) -> bytes | None:
        """A file as it is now, though it may have been read before.

        Args:
            name: Its path in the folder.

        Returns:
            See `content`.
        """

    def fetch(self, items: Sequence[Item]) -> None:
        """Read several things at once, that are asked for next.

        Args:
            items: What.
        """


class OpenFolder:
    """A folder that this process reads itself; a `Folder`.

    Args:
        descriptor: The folder; it stays the caller's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.late: list[str] = []

    def content(self, name: str, most: int = CONTENT_BYTES) -> bytes | None:
        """See `Folder.content`."""
        try:
            return reader.content(self._descriptor, name, most)
        except OSError:
            return None

    def link(self, name: str) -> str | bytes | None:
        """See `Folder.link`."""
        try:
            return plain(reader.link(self._descriptor, name))
        except OSError:
            return None

    def numbers(self, name: str) -> list[int] | None:
        """See `Folder.numbers`."""
        try:
            return reader.numbers(self._descriptor, name)
        except PermissionError:
            return None
        except OSError:
            return []

    def left_out(self, name: str) -> int:
        """See `Folder.left_out`."""
        return 0

    def fresh(self, name: str) -> bytes | None:
        """See `Folder.fresh`."""
        return self.content(name)

    def fetch(self, items: Sequence[Item]) -> None:
        """Nothing: each thing is read when it is asked for."""


class ProbedFolder:
    """A folder that a prober reads; a `Folder`.

    Args:
        prober: Who reads.
        answer: What it has read already, ``stat`` among it.
    """

    def __init__(self, prober: Prober, answer: Answer) -> None:
        self._prober = prober
        self._pid = answer.pid
        self.late: list[str] = []
        self._found: dict[str, bytes | int] = {}
        self._elements: dict[str, dict[int, bytes]] = {}
        self._keep(answer)
        self._start = _started(answer.found.get("stat"))

    def content(self, name: str, most: int = CONTENT_BYTES) -> bytes | None:
        """See `Folder.content`."""
        found = self._read(Item(Op.CONTENT, name, most))
        return found if isinstance(found, bytes) else None

    def link(self, name: str) -> str | bytes | None:
        """See `Folder.link`."""
        found = self._read(Item(Op.LINK, name))
        return plain(found) if isinstance(found, bytes) else None

    def numbers(self, name: str) -> list[int] | None:
        """See `Folder.numbers`."""
        found = self._read(Item(Op.NUMBERS, name))
        if isinstance(found, bytes):
            return wire.numbers(found)
        return None if found in {errno.EACCES, errno.EPERM} else []

    def left_out(self, name: str) -> int:
        """See `Folder.left_out`."""
        found = self._found.get(name)
        return int(wire.LEFT_OUT.unpack(found)[0]) if isinstance(found, bytes) else 0

    def fresh(self, name: str) -> bytes | None:
        """See `Folder.fresh`."""
        answer = self._prober.read(Request(self._pid, (_STAT, Item(Op.CONTENT, name))))
        same = _started(answer.found.get("stat")) == self._start
        found = answer.found.get(name)
        return found if same and isinstance(found, bytes) else None

    def fetch(self, items: Sequence[Item]) -> None:
        """See `Folder.fetch`."""
        for at in range(0, len(items), wire.ITEMS_MAX - 1):
            part = items[at : at + wire.ITEMS_MAX - 1]
            answer = self._prober.read(Request(self._pid, (_STAT, *part)))
            if answer.error or _started(answer.found.pop("stat", None)) != self._start:
                missing = answer.error if answer.error in {LATE, GONE} else errno.ESRCH
                self._found.update((item.name, missing) for item in part)
                continue
            self._keep(answer)

    def _keep(self, answer: Answer) -> None:
        self._found.update(answer.found)
        self._elements.update(answer.elements)
        self.late += [name for name, found in answer.found.items() if found == LATE]

    def _read(self, item: Item) -> bytes | int:
        found = self._found.get(item.name)
        if found is not None:
            return found
        every, count = _NUMBER.subn("/*", item.name)
        if count == 1 and every in self._found:
            number = int(item.name.split("/")[1])
            return self._elements.get(every, {}).get(number, errno.ENOENT)
        self.fetch((item,))
        return self._found.get(item.name, errno.ENOENT)


def plain(value: bytes) -> str | bytes:
    """Text where the bytes are valid, which columns take faster; else the bytes.

    Args:
        value: What the kernel gave.

    Returns:
        The same.
    """
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _started(stat: bytes | int | None) -> bytes | None:
    """When a process started, as its stat has it."""
    if not isinstance(stat, bytes):
        return None
    fields = stat[stat.rfind(b")") + 2 :].split()
    return fields[_START] if len(fields) > _START else None
