"""The hashes of executed files, by what an execution's event says of the file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.naming import argument
from kcap.model.side import EventLoss, Loss
from kcap.readers.live.artifacts.companion_rows import CTIME
from kcap.readers.live.artifacts.companion_unwatched import DEV, INODE
from kcap.readers.live.artifacts.protocol import HASHED, TOO_LATE, HashNote
from kcap.readers.live.cache import Cache

COLUMN: Final = argument("exe_sha256")
_TOLD: Final = "exe_sha256:"
_NULL: Final = f"!{_TOLD}"
"""As a record's shape has it (`kcap.model.shape`)."""

_EARLY: Final = ("blind", "executed before files were watched: no hash")
_UNKNOWN: Final = ("lost", "executed files whose hash is not known")
"""Kind of loss, and reason."""

_ENTRIES_MAX: Final = 1 << 16
_EITHER: Final = ""
"""Two contents had one time."""


class _Told(NamedTuple):
    """The hash of a file, and when the file was as it was then."""

    sha256: str | None
    ctime_ns: int
    mtime_ns: int
    used: bool = False
    """An execution was found that has it."""


class Hashes:
    """What readers told."""

    def __init__(self) -> None:
        self._exact: Cache[tuple[int, ...], str | None] = Cache(_ENTRIES_MAX)
        """By process, device, inode and time of the last change."""
        self._process: Cache[tuple[int, ...], _Told] = Cache(_ENTRIES_MAX)
        """By process, device and inode: a dropper that unlinks itself changes its file's time."""
        self._file: Cache[tuple[int, ...], str | None] = Cache(_ENTRIES_MAX)
        """By device, inode and time of the last change."""

    def add(self, notes: Sequence[HashNote], watched: Collection[int]) -> None:
        """Take what was told.

        Args:
            notes: The hashes.
            watched: Devices of which each execution is told by who has the file, as the kernel has
                them: who came too late to ask the process for it does not matter there.
        """
        for note in notes:
            if note.known == TOO_LATE and note.dev in watched:
                continue
            told = note.sha256.hex() if note.known == HASHED else None
            file = (note.dev, note.inode, note.ctime_ns)
            if told is None and (note.pid, note.dev, note.inode) in self._process:
                continue
            _put(self._exact, (note.pid, *file), told)
            process = (note.pid, note.dev, note.inode)
            self._process.put(process, _Told(told, note.ctime_ns, note.mtime_ns))
            if told is not None:
                _put(self._file, file, told)

    def _use(self, process: tuple[int, ...], told: _Told | None) -> None:
        """Remember that an execution has what was told of its process."""
        if told is not None and not told.used:
            self._process.put(process, told._replace(used=True))

    def find(self, pid: int, dev: int, inode: int, ctime_ns: int) -> tuple[bool, str | None]:
        """The hash of a file that was executed.

        Args:
            pid: The process.
            dev: The device, as the kernel has it.
            inode: The inode.
            ctime_ns: When that was changed last.

        Returns:
            Whether it was told of; its hash, None where it can't be had.
        """
        process = (pid, dev, inode)
        told = self._process.get(process)
        exact = (*process, ctime_ns)
        if exact in self._exact:
            self._use(process, told)
            return True, self._exact.get(exact) or None
        # Told of an earlier execution, and changed since: what was executed now is still to come.
        # Of this one, a change is that of its name: a program may be unlinked while it is started,
        # but not written to.
        heard = told is not None and (told.ctime_ns >= ctime_ns or not told.used)
        # Written to since: what was read may not be what was executed.
        if told is not None and heard and told.mtime_ns <= ctime_ns:
            self._use(process, told)
            return True, told.sha256
        # The next file may have its inode in the same tick of the clock: that is either, then.
        other = self._file.get((dev, inode, ctime_ns)) or None
        return heard or other is not None, other


def _put(table: Cache[tuple[int, ...], str | None], key: tuple[int, ...], told: str | None) -> None:
    """Remember a hash; of two contents at one time nobody knows which was executed."""
    known = table.get(key)
    table.put(key, told if known in (None, told) else _EITHER)


class Hashed(NamedTuple):
    """An execution whose hash is known."""

    pid: int
    dev: int
    """As the kernel has it."""
    inode: int
    time_ns: int
    sha256: str


class Executions:
    """The executions of a batch, and what is known of their files.

    Args:
        batch: Events.
        rows: Which are executions.
    """

    def __init__(self, batch: Batch, rows: npt.NDArray[np.intp]) -> None:
        fields = ("pid", DEV, INODE, CTIME)
        columns = [batch.numpy(name, -1)[rows].tolist() for name in fields]
        self._keys = list(zip(*columns, strict=True))
        self.files = frozenset(key[:3] for key in self._keys)
        """Process, device and inode of each."""
        self._rows = rows
        self._times: list[int] = batch.numpy("ts", 0)[rows].tolist()
        self._found: list[tuple[bool, str | None]] = [(False, None)] * len(self._keys)

    def look(self, hashes: Hashes, since_ns: int) -> int:
        """Look for what is not known yet.

        Args:
            hashes: What readers told.
            since_ns: What was executed before is not waited for.

        Returns:
            How many are still open, of those that are waited for.
        """
        for at, (known, _) in enumerate(self._found):
            if not known:
                self._found[at] = hashes.find(*self._keys[at])
        return sum(
            not known and time_ns >= since_ns
            for time_ns, (known, _) in zip(self._times, self._found, strict=True)
        )

    @property
    def devices(self) -> set[int]:
        """Devices of files that are not known yet, as the kernel has them."""
        return {
            key[1] for key, (known, _) in zip(self._keys, self._found, strict=True) if not known
        }

    @property
    def contents(self) -> dict[tuple[int, int, str], int]:
        """By device, inode and hash of what was executed a process that did."""
        found = zip(self._keys, self._found, strict=True)
        return {(*key[1:3], told): key[0] for key, (_, told) in found if told is not None}

    @property
    def hashed(self) -> Iterator[Hashed]:
        """Those whose hash is known, in their order."""
        found = zip(self._keys, self._times, self._found, strict=True)
        for (pid, dev, inode, _), time_ns, (_, told) in found:
            if told is not None:
                yield Hashed(pid, dev, inode, time_ns, told)

    def lost(self, batch: Batch, source: str | None, since_ns: int) -> list[Loss]:
        """What has no hash.

        Args:
            batch: The events.
            source: Id of the source.
            since_ns: When files began to be watched.

        Returns:
            A loss for what was executed before, and one for the rest; of executions that nobody
            keeps nothing is lost.
        """
        rows = [row for row, (_, told) in zip(self._rows, self._found, strict=True) if told is None]
        if not rows:
            return []
        places = batch.select(("origin", "ord", "ts")).take(np.array(rows, np.int32))
        taken: list[dict[str, Any]] = places.to_pylist()
        found: dict[tuple[str, str, str | None], list[tuple[int, int]]] = {}
        for each in taken:
            told = _EARLY if each["ts"] < since_ns else _UNKNOWN
            found.setdefault((*told, each.get("origin")), []).append((each["ord"], each["ts"]))
        return [_loss(source, *told, which) for told, which in found.items()]

    def told(self, batch: Batch) -> Batch:
        """The batch with its hashes.

        Args:
            batch: The events.

        Returns:
            They, where there is a hash; a record's shape tells then that it has one.
        """
        found = [(int(row), told) for row, (_, told) in zip(self._rows, self._found, strict=True)]
        rows = np.array([row for row, told in found if told is not None], np.int32)
        if not len(rows):
            return batch
        texts = pa.array([told for _, told in found if told is not None], pa.utf8())
        columns = {COLUMN: Column(TypeClass.STR, texts.dictionary_encode(), rows)}
        shapes = batch.get("shape")
        if shapes is not None:
            columns["shape"] = _shaped(shapes, rows)
        return batch.adding(columns)


def _loss(
    source: str | None, kind: str, reason: str, origin: str | None, which: list[tuple[int, int]]
) -> EventLoss:
    """What executions lack; each by its place and time."""
    times = [ts for _, ts in which]
    return EventLoss(
        kind, len(which), reason, source, start_ns=min(times), end_ns=max(times),
        origin=origin, ords=tuple(ord_ for ord_, _ in which),
    )  # fmt: skip


def _shaped(shapes: Column, rows: npt.NDArray[np.int32]) -> Column:
    """Shapes of which those of some rows have a hash that is not null."""
    entries: list[str] = shapes.values.dictionary.to_pylist()
    with_hash = [text.replace(_NULL, _TOLD) for text in entries]
    codes = shapes.codes().copy()
    codes[rows if shapes.rows is None else np.isin(shapes.rows, rows)] += len(entries)
    texts = pa.array([*entries, *with_hash], pa.utf8())
    values = pc.dictionary_encode(texts.take(pa.array(codes)))
    return Column(shapes.cls, values, shapes.rows)
