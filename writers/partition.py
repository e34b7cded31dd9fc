"""A folder of Parquet files, one branch for each value of some columns (Hive's convention)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap import limits
from kcap.errors import OutputError
from kcap.model import catalogue
from kcap.model.batch import EMPTY, Batch, concat
from kcap.model.classes import TypeClass
from kcap.model.side import Loss, SourceInfo
from kcap.writers import groups
from kcap.writers.about import About
from kcap.writers.layout import Layout
from kcap.writers.parquet import Parquet

DATE: Final = "date"
"""The partition key that is no column: the UTC date of ``ts``."""

MISSING: Final = "__HIVE_DEFAULT_PARTITION__"
"""The value of a row that has none."""

MANIFEST: Final = "_kcap_export.json"
"""The file that says what a folder holds; readers of Parquet pass over its name."""

OPEN_MAX: Final = 64
"""Files that are written at the same time; the one unused longest is closed for another."""

PARTITIONS_MAX: Final = 10_000
"""Branches of one folder."""

SEGMENT_BYTES: Final = 200
"""Longest value in a folder's name, as it is spelled there."""

_PIECES: Final = 16
_COLUMN_BYTES: Final = 1024
"""What a column of a piece takes beside its values."""

_DAY_NS: Final = 86_400 * 10**9
_KEYS: Final = frozenset({TypeClass.STR, TypeClass.I64, TypeClass.BOOL})
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9_.-]")
_ESCAPE: Final = re.compile("(%[0-9A-F]?)?$")


def keys(names: Sequence[str]) -> list[str]:
    """Check what to partition by.

    Args:
        names: ``date``, and columns of the envelope.

    Returns:
        The same names.

    Raises:
        OutputError: One of them can't be a partition key.
    """
    known = catalogue.envelope()
    for name in names:
        if name != DATE and (name not in known or known[name].cls not in _KEYS or name == "ts"):
            raise OutputError(
                f"events can't be partitioned by {name!r}",
                expected="date, or a column of text or numbers that every event may have",
                hint="kcap docs columns lists them",
            )
    if len(set(names)) < len(names):
        raise OutputError("a partition key is there twice")
    return list(names)


def segment(key: str, value: str | None) -> str:
    """The name of a folder for a value: never one that leads elsewhere.

    Args:
        key: The partition key.
        value: The value, None where there is none.

    Returns:
        ``key=value`` with everything but letters, digits and ``_.-`` as ``%HH``; a value that is
        too long is cut and ends with ``~`` and a part of its SHA-256.
    """
    if value is None:
        return f"{key}={MISSING}"
    spelled = _UNSAFE.sub(lambda m: b"%%%02X" % m[0][0], value.encode()).decode("ascii")
    if spelled == MISSING or spelled.endswith("."):
        # Neither the name for no value, nor one that Windows would cut.
        odd = 0 if spelled == MISSING else -1
        spelled = f"{spelled[:-1]}%2E" if odd else f"%{ord(spelled[0]):02X}{spelled[1:]}"
    if len(spelled) > SEGMENT_BYTES:
        start = _ESCAPE.sub("", spelled[: SEGMENT_BYTES - 17], count=1)
        spelled = f"{start}~{hashlib.sha256(value.encode()).hexdigest()[:16]}"
    return f"{key}={spelled}"


class _Part(NamedTuple):
    """A file that is being written."""

    stream: BinaryIO
    sink: Parquet


class _Waiting:
    """The rows of a branch that are not written yet."""

    def __init__(self) -> None:
        self.pieces: list[Batch] = []
        self.rows = 0
        self.nbytes = 0

    def add(self, piece: Batch) -> None:
        """Keep some rows; few of them take more as columns than as values."""
        self.pieces.append(piece)
        self.rows += piece.rows
        if len(self.pieces) >= _PIECES:
            self.pieces = [concat(self.pieces)]
        self.nbytes = sum(p.nbytes + _COLUMN_BYTES * len(p.columns) for p in self.pieces)


class PartitionedParquet:
    """A sink that writes a folder of Parquet files.

    The partition keys are in the folders' names, not in the files. Few files are open at a time;
    a branch that had to be closed goes on in ``part-1.parquet`` and so on.

    Args:
        create: Makes a new file in the folder, by its path there, and gives a stream to write it.
        by: The partition keys, from the top: ``date`` and columns.
        layout: Columns of the files, without the keys.
        about: Collects the metadata of the whole folder.
        part: Makes the collector for the metadata of one file.

    Example:
        >>> sink = PartitionedParquet(folder.create, ["date", "host"], layout, about, part)
        >>> sink.write(batch)
        >>> sink.close()
    """

    def __init__(
        self,
        create: Callable[[str], BinaryIO],
        by: Sequence[str],
        layout: Layout,
        about: About,
        part: Callable[[], About],
    ) -> None:
        self._create = create
        self._by = keys(by)
        self._layout = layout
        self._about = about
        self._part = part
        self._open: OrderedDict[str, _Part] = OrderedDict()
        self._waiting: dict[str, _Waiting] = {}
        self._parts: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._sources: dict[str, SourceInfo] = {}
        self._cut: set[str] = set()
        self._held = 0
        self._closed = False
        self.losses: list[Loss] = []
        """Values too long for a folder's name."""

    def write(self, batch: Batch) -> None:
        """Take events and side records; these go into the metadata.

        Args:
            batch: The events.

        Raises:
            OutputError: A file takes no more, or there are too many partitions.
        """
        self._about.take(batch)
        new = {s.id: s for s in batch.before if isinstance(s, SourceInfo)}
        self._sources |= new
        for path, piece in self._pieces(batch):
            self._put(path, piece)

    def close(self) -> None:
        """Close every file, and say what the folder holds.

        Raises:
            OutputError: A file takes no more.
        """
        if self._closed:
            return
        self._closed = True
        try:
            for path in list(self._waiting):
                self._flush(path)
        finally:
            with contextlib.ExitStack() as files:
                for path in list(self._open):
                    files.callback(self._close, path)
        for loss in self.losses:
            self._about.take(EMPTY.with_before((loss,)))
        with self._create(MANIFEST) as stream:
            stream.write(self._manifest())

    def _manifest(self) -> bytes:
        found = self._about.opening(self._layout.columns) | self._about.closing()
        version = found.pop("kcap.version")
        said = {key.removeprefix("kcap."): json.loads(text) for key, text in found.items()}
        said["version"] = version
        said["partition_by"] = self._by
        said["files"] = [{"path": p, "rows": n} for p, n in sorted(self._events.items())]
        return json.dumps(said, indent=1, sort_keys=True).encode("ascii") + b"\n"

    def _pieces(self, batch: Batch) -> Iterator[tuple[str, Batch]]:
        """The rows of each branch, in the order of their first row."""
        if not batch.rows:
            return
        codes, names = [], []
        for key in self._by:
            found, values = values_of(batch, key)
            codes.append(found)
            names.append([self._segment(key, v, found, i) for i, v in enumerate(values)])
        branches, first, which = np.unique(
            np.stack(codes), axis=1, return_index=True, return_inverse=True
        )
        for branch in np.argsort(first).tolist():
            at = branches[:, branch].tolist()
            path = "/".join(found[code] for found, code in zip(names, at, strict=True))
            rows = np.flatnonzero(which.reshape(-1) == branch).astype(np.int32)
            piece = batch if len(branches[0]) == 1 else batch.take(rows).compact()
            yield path, piece.with_before(())

    def _segment(self, key: str, value: str | None, codes: npt.NDArray[np.int64], code: int) -> str:
        found = segment(key, value)
        if value is not None and "~" in found and found not in self._cut:
            self._cut.add(found)
            reason = f"{key} of {len(value)} characters is too long for a folder's name"
            self.losses.append(Loss("cut", int((codes == code).sum()), reason))
        return found

    def _put(self, path: str, piece: Batch) -> None:
        waiting = self._waiting.setdefault(path, _Waiting())
        self._held -= waiting.nbytes
        waiting.add(piece)
        self._held += waiting.nbytes
        if waiting.rows >= limits.CHUNK_ROWS:
            self._flush(path)
        if self._held > groups.GROUP_BYTES:
            # The largest first, down to half: not each row that comes may cost a row group.
            for largest in sorted(self._waiting, key=lambda p: -self._waiting[p].nbytes):
                if self._held <= groups.GROUP_BYTES // 2:
                    break
                self._flush(largest)

    def _flush(self, path: str) -> None:
        """Write what waits for a branch."""
        waiting = self._waiting.pop(path)
        self._held -= waiting.nbytes
        part = self._open.get(path) or self._begin(path)
        self._open.move_to_end(path)
        self._events[self._file(path)] += waiting.rows
        part.sink.write(concat(waiting.pieces).with_before(tuple(self._sources.values())))
        part.sink.flush()

    def _begin(self, path: str) -> _Part:
        if len(self._open) >= OPEN_MAX:
            self._close(next(iter(self._open)))
        if path not in self._parts and len(self._parts) >= PARTITIONS_MAX:
            raise OutputError(
                f"more than {PARTITIONS_MAX:,} partitions",
                hint="partition by fewer columns, or by ones with fewer values",
            )
        self._parts[path] += 1
        stream = self._create(self._file(path))
        part = self._open[path] = _Part(stream, Parquet(stream, self._layout, self._part()))
        return part

    def _file(self, path: str) -> str:
        return f"{path}/part-{self._parts[path] - 1}.parquet"

    def _close(self, path: str) -> None:
        part = self._open.pop(path)
        try:
            part.sink.close()
        finally:
            part.stream.close()


def values_of(batch: Batch, key: str) -> tuple[npt.NDArray[np.int64], list[str | None]]:
    """What the rows of a batch are divided by.

    Args:
        batch: The batch.
        key: A partition key.

    Returns:
        The code of each row, and the value of each code as text; None for no value.
    """
    column = batch.get("ts" if key == DATE else key)
    codes = np.zeros(batch.rows, np.int64)
    if column is None or not len(column):
        return codes, [None]
    if column.cls is TypeClass.STR:
        compact = column.compact()
        found, values = compact.codes().astype(np.int64), compact.values.dictionary.to_pylist()
    else:
        numbers = column.values.to_numpy(zero_copy_only=False)
        numbers = numbers // _DAY_NS if key == DATE else numbers
        distinct, found = np.unique(numbers, return_inverse=True)
        spelled = distinct.astype("datetime64[D]") if key == DATE else distinct
        values = [str(v).lower() if v.dtype == np.bool_ else str(v) for v in spelled]
    codes[slice(None) if column.rows is None else column.rows] = found.reshape(-1) + 1
    return codes, [None, *values]
