"""Who did it, for every row at once: identity columns out of the process table.

Every change of the table in a batch makes a version of a process. A row's process is the last
version of its pid at or before the row; one binary search over the keys (pid, row) finds it for
all rows together, and no Python runs per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model.batch import Batch, Column
from kcap.model.classes import TypeClass
from kcap.model.distinct import integers
from kcap.state.processes import (
    CENTISECOND_NS,
    EVENT,
    FACTS,
    SAME_START_NS,
    Process,
    ProcessTable,
    Provenance,
    pairs,
    process_key,
)

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_T = TypeVar("_T")

_TEXTS: Final = {
    "cmdline": "cmdline",
    "container_id": "container_id",
    "exe": "exe",
    "process_name": "name",
    "user": "user",
}
_NUMBERS: Final = {"gid": "gid", "ppid": "ppid", "session": "session", "uid": "uid"}

_NONE: Final = -(1 << 63)
"""Stands for a missing integer; a real one of this value counts as missing, which is harmless."""


class Machine(NamedTuple):
    """The rows of a batch that belong to one machine, and its table after the batch."""

    table: ProcessTable
    rows: Int64s


class _Table(Protocol[_T]):
    """A table that keeps what a batch changes in it (`ProcessTable`)."""

    changes: list[tuple[int, int, _T | None]] | None
    before: dict[int, _T | None]

    def get(self, key: int, /) -> _T | None: ...


class Versions(Generic[_T]):
    """The versions of all entries of a table that rows of a batch refer to.

    Args:
        machines: The table of each machine and its rows in the batch.
        count: Rows of the batch.
    """

    def __init__(self, machines: Sequence[tuple[_Table[_T], Int64s]], count: int) -> None:
        self.found: list[_T] = []
        """The versions, each once."""
        self._count = count
        self._histories = [_History(table, count, self.found) for table, _ in machines]
        self._history_of = np.zeros(count, np.int64)
        for number, (_, rows) in enumerate(machines):
            self._history_of[rows] = number

    def find(self, ids: Int64s, rows: Int64s | None = None) -> Int64s:
        """Find the version that each row means.

        Args:
            ids: The id that is wanted for each row, the least integer for none.
            rows: The rows; all of the batch, each once, where None.

        Returns:
            Its number in `found`, -1 where there is none.
        """
        rows = np.arange(self._count) if rows is None else rows
        found = np.full(len(rows), -1, np.int64)
        history_of = self._history_of[rows]
        for number, history in enumerate(self._histories):
            at = np.flatnonzero((history_of == number) & (ids != _NONE))
            if len(at):
                found[at] = history.find(ids[at], rows[at])
        return found


class _History(Generic[_T]):
    """The versions of one table's entries in a batch, laid out for the ids that are asked for.

    An id gets a code when it is first asked for, and behind its code's keys no others come: so
    the keys stay sorted however they are added to.
    """

    def __init__(self, table: _Table[_T], count: int, found: list[_T]) -> None:
        self._table = table
        self._width = count + 1
        self._found = found
        self._changes: dict[int, list[tuple[int, _T | None]]] = {}
        for key, row, version in table.changes or ():
            self._changes.setdefault(key, []).append((row, version))
        self._codes: dict[int, int] = {}
        self._keys: list[int] = []
        self._numbers: list[int] = []

    def find(self, ids: Int64s, rows: Int64s) -> Int64s:
        """The number of the version of each id just after each row, -1 for none."""
        keys, which = integers(ids)
        codes = np.array([self._code(key) for key in keys], np.int64)[which]
        numbers = np.array(self._numbers, np.int64)
        if not self._changes:  # each code has one key
            unchanged: Int64s = numbers[codes]
            return unchanged
        wanted = codes * self._width + rows + 1
        at = np.searchsorted(np.array(self._keys, np.int64), wanted, "right") - 1
        found: Int64s = numbers[at]
        return found

    def _code(self, key: int) -> int:
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = len(self._codes)
            before = self._table.before
            first = before[key] if key in before else self._table.get(key)
            self._add(code * self._width, first)
            for row, version in self._changes.get(key, ()):
                self._add(code * self._width + row + 1, version)
        return code

    def _add(self, key: int, version: _T | None) -> None:
        self._keys.append(key)
        self._numbers.append(-1 if version is None else len(self._found))
        if version is not None:
            self._found.append(version)


def resolve(batch: Batch, machines: Sequence[Machine]) -> Batch:
    """Fill identity columns where the source left them empty.

    Args:
        batch: The batch, already followed by the tables.
        machines: Its rows by machine; the tables hold the changes that the batch made.

    Returns:
        The batch with more values, and their provenance; what the source gave stays.
    """
    versions = Versions[Process](machines, batch.rows)
    own = own_versions(batch, versions)
    filled: dict[str, Mask] = {}
    columns: dict[str, Column] = {}

    def put(name: str, column: Column | None, where: Mask) -> None:
        if column is not None:
            columns[name] = column
            filled[name] = where

    for name, field in _NUMBERS.items():
        values = [getattr(p, field) for p in versions.found]
        put(name, *_fill_numbers(batch, name, own, values))
    with_ids = batch.adding(columns)
    own_user = _matching(with_ids.numpy("uid", _NONE), own, [p.uid for p in versions.found])
    for name, field in _TEXTS.items():
        values = [getattr(p, field) for p in versions.found]
        put(name, *_fill_texts(batch, name, own_user if name == "user" else own, values))

    ppids = with_ids.numpy("ppid", _NONE)
    parent = versions.find(ppids)
    processes = versions.found
    own_parent = _matching(ppids, own, [p.ppid for p in processes])
    parent = np.where(own_parent < 0, -1, Ties(processes).parents(own_parent, parent))
    names = [p.name for p in processes]
    put("parent_name", *_fill_texts(batch, "parent_name", parent, names))
    columns |= _keys(batch, machines, own, processes, filled)
    if not columns:
        return batch
    columns |= _provenance(batch, own, parent, processes, filled)
    return batch.adding(columns)


def own_versions(batch: Batch, versions: Versions[Process]) -> Int64s:
    """The process that each row is of.

    Args:
        batch: The batch.
        versions: The versions of its tables.

    Returns:
        Its number; -1 where it is not known, or where its start time is not the row's: the pid
        was used again unseen.
    """
    own = versions.find(batch.numpy("pid", _NONE))
    processes = versions.found
    if batch.get("process_start_ns") is None or not processes:
        return own
    starts = batch.numpy("process_start_ns", _NONE)
    known = np.array([_NONE if p.start_ns is None else p.start_ns for p in processes])
    theirs = known[own]
    both = (own >= 0) & (starts != _NONE) & (theirs != _NONE)
    # Halves, so that times at the two ends of int64 do not wrap.
    apart = np.abs(starts // 2 - theirs // 2) >= SAME_START_NS // 2
    return np.where(both & apart, -1, own)


def _matching(values: Int64s, own: Int64s, known: Sequence[int | None]) -> Int64s:
    """Keep the versions that say the same as the row does."""
    if not known:
        return own
    theirs = np.array([_NONE if k is None else k for k in known], np.int64)
    return np.where((own >= 0) & (theirs[own] == values), own, -1)


class Ties:
    """What of some processes tells whether one is the parent of another.

    Args:
        processes: The processes; there may be more of them at every call.
    """

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes
        self._codes: dict[str | None, int] = {None: -1}
        self._known: list[tuple[int, int, int, int]] = []
        self._array = np.zeros((0, 4), np.int64)

    def ppids(self, own: Int64s) -> Int64s:
        """The parents' ids.

        Args:
            own: Numbers of processes, -1 for none.

        Returns:
            One each, the least integer where it is not known.
        """
        return np.where(own >= 0, self._table()[own, 0], _NONE)

    def parents(self, own: Int64s, parent: Int64s, start_ns: Int64s | None = None) -> Int64s:
        """Keep the parents that nothing speaks against: no later users of the id.

        Where the child knows its parent's key, that decides; else a parent that started after
        its child is none. Nobody is his own parent.

        Args:
            own: Numbers of the children, -1 for unknown ones.
            parent: Numbers of the processes that have the ids of their parents, -1 for none.
            start_ns: When the children started, the least integer where it is not known.

        Returns:
            The parents, -1 in place of those that are not.
        """
        _, keys, parent_keys, starts = self._table().T
        known = own >= 0
        started_by = np.where(known, parent_keys[own], -1)
        # Halves, so that times at the two ends of int64 do not wrap.
        ours = np.where(known, starts[own], _NONE)
        if start_ns is not None:
            ours = np.where(ours == _NONE, start_ns, ours)
        theirs = starts[parent]
        late = (ours != _NONE) & (theirs != _NONE) & (theirs // 2 - ours // 2 >= SAME_START_NS // 2)
        right = np.where(started_by >= 0, keys[parent] == started_by, ~late)
        return np.where((parent >= 0) & (parent != own) & right, parent, -1)

    def _table(self) -> Int64s:
        """A row a process: its parent's id, its key, its parent's key, its start."""
        more = self._processes[len(self._known) :]
        if more or not self._known:
            code = self._codes
            self._known += [
                (
                    _NONE if p.ppid is None else p.ppid,
                    code.setdefault(p.process_key, len(code)),
                    code.setdefault(p.parent_key, len(code)),
                    _NONE if p.start_ns is None else p.start_ns,
                )
                for p in more
            ]
            # The last row is that of the number -1, so that there is one even without processes.
            self._array = np.array([*self._known, (_NONE, -1, -1, _NONE)], np.int64)
        return self._array


def _fill_numbers(
    batch: Batch, name: str, own: Int64s, known: Sequence[int | None]
) -> tuple[Column | None, Mask]:
    has = np.array([k is not None for k in known] or [False])
    missing = ~batch.mask(name)
    where = missing & (own >= 0) & has[own]
    if not where.any():
        return None, where
    values = batch.numpy(name, 0)
    values[where] = np.array([k or 0 for k in known], np.int64)[own[where]]
    return _column(TypeClass.I64, pa.array(values), ~missing | where), where


def _column(cls: TypeClass, full: pa.Array, has: Mask) -> Column:
    """A column out of full-length values and which of them count."""
    if has.all():
        return Column(cls, full)
    rows = np.flatnonzero(has).astype(np.int32)
    return Column(cls, full.take(pa.array(rows)), rows)


def _fill_texts(
    batch: Batch, name: str, own: Int64s, known: Sequence[str | None]
) -> tuple[Column | None, Mask]:
    has = np.array([k is not None for k in known] or [False])
    missing = ~batch.mask(name)
    where = missing & (own >= 0) & has[own]
    if not where.any():
        return None, where
    used = np.flatnonzero(np.bincount(own[where]))
    entries: dict[str | None, int] = {}
    code_of = np.zeros(len(known), np.int32)
    code_of[used] = [entries.setdefault(known[i], len(entries)) for i in used.tolist()]
    return _merge(batch, name, where, code_of[own[where]], list(entries)), where


def _merge(
    batch: Batch,
    name: str,
    where: Mask,
    codes: npt.NDArray[np.int32],
    entries: Sequence[str | None],
) -> Column:
    """A text column with other values in some rows."""
    full = np.zeros(batch.rows, np.int32)
    has = where.copy()
    texts = pa.array(entries, pa.utf8())
    column = batch.get(name)
    if column is not None:
        old = column.values.dictionary
        full[slice(None) if column.rows is None else column.rows] = column.codes()
        has |= batch.mask(name)
        full[where] = codes + np.int32(len(old))
        texts = pa.concat_arrays([old.cast(pa.utf8()), texts])
    else:
        full[where] = codes
    values = pa.DictionaryArray.from_arrays(pa.array(full), texts)
    return _column(TypeClass.STR, values, has)


def _keys(
    batch: Batch,
    machines: Sequence[Machine],
    own: Int64s,
    processes: Sequence[Process],
    filled: dict[str, Mask],
) -> dict[str, Column]:
    """The ``process_key`` column: the table's, else made of the start time in the row."""
    name = "process_key"
    keys: list[str | None] = [p.process_key for p in processes]
    column, where = _fill_texts(batch, name, own, keys)
    columns = {} if column is None else {name: column}
    filled[name] = where
    after = batch.adding(columns)
    starts = batch.numpy("process_start_ns", _NONE)
    pids = batch.numpy("pid", _NONE)
    todo = ~after.mask(name) & (starts != _NONE) & (pids != _NONE)
    if not todo.any():
        return columns
    codes = np.zeros(batch.rows, np.int32)
    entries: list[str | None] = []
    for table, rows in machines:
        mine = rows[todo[rows]]
        pid_values, pid_codes = np.unique(pids[mine], return_inverse=True)
        ticks, tick_codes = np.unique(starts[mine] // CENTISECOND_NS, return_inverse=True)
        both, which = np.unique(pid_codes * len(ticks) + tick_codes, return_inverse=True)
        codes[mine] = which + len(entries)
        for code in both.tolist():
            pid, tick = divmod(code, len(ticks))
            start_ns = int(ticks[tick]) * CENTISECOND_NS
            entries.append(process_key(table.machine, int(pid_values[pid]), start_ns))
    return {name: _merge(after, name, todo, codes[todo], entries)}


def _provenance(
    batch: Batch,
    own: Int64s,
    parent: Int64s,
    processes: Sequence[Process],
    filled: dict[str, Mask],
) -> dict[str, Column]:
    """The ``provenance`` column: one text for each distinct way in which a row was filled."""
    names = sorted(name for name, where in filled.items() if where.any())
    bits = np.zeros(batch.rows, np.int64)
    for bit, name in enumerate(names):
        bits |= filled[name].astype(np.int64) << bit
    where = bits != 0
    if not where.any():
        return {}
    of_process, provenances = _distinct(processes, lambda p: p.provenance)
    of_parent, tags = _distinct(processes, lambda p: p.provenance[_NAME])
    old = batch.get("provenance")
    old_texts = [] if old is None else old.values.dictionary.to_pylist()
    code = np.zeros(batch.rows, np.int64)
    if old is not None:
        code[slice(None) if old.rows is None else old.rows] = old.codes() + 1
    sizes = (len(tags) + 1, len(provenances) + 1, len(old_texts) + 1, 1 << len(names))
    parts = (of_parent[parent] * (parent >= 0), of_process[own] * (own >= 0), code, bits)
    combined = np.ravel_multi_index([p[where] for p in parts], sizes)
    unique, which = integers(combined)
    texts: list[str | None] = []
    for tag, provenance, text, mask in zip(*np.unravel_index(unique, sizes), strict=True):
        said = dict(pairs(old_texts[text - 1])) if text else {}
        for bit, name in enumerate(names):
            if mask >> bit & 1:
                said[name] = _tag(name, provenances, int(provenance), tags, int(tag))
        texts.append(",".join(f"{n}:{t}" for n, t in sorted(said.items())))
    entries = sorted({t for t in texts if t is not None})
    at = {text: i for i, text in enumerate(entries)}
    codes = np.array([at[t or ""] for t in texts], np.int32)[which]
    column = _merge(batch, "provenance", where, codes, entries)
    return {"provenance": column.compact()}


_NAME: Final = FACTS.index("name")
_FACT_OF: Final = {**_TEXTS, **_NUMBERS, "process_key": "start_ns"}


def _distinct(
    processes: Sequence[Process], part: Callable[[Process], _T]
) -> tuple[Int64s, list[_T]]:
    """Number the distinct values of a part of the processes from 1."""
    numbers: dict[_T, int] = {}
    codes = [numbers.setdefault(part(p), len(numbers) + 1) for p in processes]
    return np.array(codes or [0], np.int64), list(numbers)


def _tag(
    name: str,
    provenances: Sequence[Provenance],
    provenance: int,
    tags: Sequence[str | None],
    tag: int,
) -> str:
    """The provenance of one value that was filled in."""
    if name == "parent_name":
        return tags[tag - 1] or EVENT
    return provenances[provenance - 1][FACTS.index(_FACT_OF[name])] or EVENT
