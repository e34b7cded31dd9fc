"""Threads and descriptors of every row at once: pid, process_name, fd_type and fd_name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model.batch import Batch, Column, coded
from kcap.model.classes import TypeClass
from kcap.state.calls import NONE, CallRows, descriptors
from kcap.state.fds import Target
from kcap.state.identity import Versions
from kcap.state.processes import EVENT, pairs
from kcap.state.tables import Tables
from kcap.state.threads import Thread

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_FD_BITS: Final = 31
"""Process ids and descriptors below 2**31 are looked up; the kernel gives no greater ones."""


class Machine(NamedTuple):
    """The tables of a machine, and its rows in a batch."""

    tables: Tables
    rows: Int64s


def resolve(batch: Batch, machines: Sequence[Machine], found: Sequence[CallRows]) -> Batch:
    """Fill what threads and descriptors say, where the source left it empty.

    Args:
        batch: The batch, already followed by the tables.
        machines: Its rows by machine; the tables hold the changes that the batch made.
        found: The rows of it that concern descriptors.

    Returns:
        The batch with more values; what the source gave stays.
    """
    versions = Versions[Thread]([(m.tables.threads, m.rows) for m in machines], batch.rows)
    own = versions.find(batch.numpy("tid", NONE))
    batch = _with_threads(batch, own, versions.found)
    fds, before = descriptors(batch, found)
    if not (fds != NONE).any() and not any(m.tables.named for m in machines):
        return batch
    owners = batch.numpy("pid", NONE)
    owners = np.where(owners == NONE, batch.numpy("tid", NONE), owners)
    return _with_descriptors(batch, machines, owners, fds, before)


def _with_threads(batch: Batch, own: Int64s, threads: Sequence[Thread]) -> Batch:
    """The columns ``pid`` and ``process_name``, and where they come from."""
    if not threads:
        return batch
    known = own >= 0
    columns: dict[str, Column] = {}
    has_pid = batch.mask("pid")
    fills_pid = known & ~has_pid
    if fills_pid.any():
        pids = batch.numpy("pid", 0)
        pids[fills_pid] = np.array([t.pid for t in threads], np.int64)[own[fills_pid]]
        columns["pid"] = _numbers(pids, has_pid | fills_pid)
    has_name = batch.mask("process_name")
    named = np.array([t.name is not None for t in threads])
    fills_name = known & ~has_name & named[own]
    if fills_name.any():
        texts = [t.name for t in threads]
        columns["process_name"] = _texts(batch, "process_name", fills_name, own, texts)
    if not columns:
        return batch
    columns["provenance"] = _provenance(batch, own, threads, fills_pid, fills_name)
    return batch.adding(columns)


def _numbers(values: Int64s, has: Mask) -> Column:
    if has.all():
        return Column(TypeClass.I64, pa.array(values))
    rows = np.flatnonzero(has).astype(np.int32)
    return Column(TypeClass.I64, pa.array(values[rows]), rows)


def _texts(
    batch: Batch, name: str, where: Mask, code: Int64s, texts: Sequence[str | None]
) -> Column:
    """A text column with other values in some rows."""
    every: list[str | None] = [*texts, None]
    codes = np.where(where, code, len(texts))
    column = batch.get(name)
    if column is not None:
        old = column.codes() + len(every)
        every += column.values.dictionary.to_pylist()
        at = slice(None) if column.rows is None else column.rows
        codes[at] = np.where(where[at], codes[at], old)
    return coded(every, codes) or Column(TypeClass.STR, pa.array([]).dictionary_encode())


def _provenance(
    batch: Batch, own: Int64s, threads: Sequence[Thread], pid: Mask, name: Mask
) -> Column:
    """The ``provenance`` column: one text for each distinct way in which a row was filled."""
    tags: dict[str, int] = {}
    tag = np.array([tags.setdefault(t.provenance or EVENT, len(tags)) for t in threads])
    old = batch.get("provenance")
    olds: list[str | None] = [None]
    code = np.zeros(batch.rows, np.int64)
    if old is not None:
        olds += old.values.dictionary.to_pylist()
        code[slice(None) if old.rows is None else old.rows] = old.codes() + 1
    ways = (code * len(tags) + tag[own] * (pid | name)) * 4 + pid * 2 + name
    unique, codes = np.unique(ways, return_inverse=True)
    words = list(tags)
    texts: list[str | None] = []
    for way in unique.tolist():
        rest, filled = divmod(way, 4)
        said = dict(pairs(olds[rest // len(tags)]))
        new = (filled & 2 and "pid", filled & 1 and "process_name")
        said |= {column: words[rest % len(tags)] for column in new if column}
        texts.append(",".join(f"{n}:{t}" for n, t in sorted(said.items())) or None)
    return coded(texts, codes) or Column(TypeClass.STR, pa.array([]).dictionary_encode())


def _with_descriptors(
    batch: Batch, machines: Sequence[Machine], owners: Int64s, fds: Int64s, before: Mask
) -> Batch:
    """The columns ``fd_type`` and ``fd_name``."""
    width = batch.rows + 1
    limit = 1 << _FD_BITS
    usable = (fds >= 0) & (fds < limit) & (owners >= 0) & (owners < limit)
    which = np.full(batch.rows, -1, np.int64)
    targets: list[Target] = []
    failed: dict[int, str] = {}
    for tables, rows in machines:
        failed |= tables.named
        mine = rows[usable[rows]]
        ids, codes = np.unique(owners[mine] << _FD_BITS | fds[mine], return_inverse=True)
        keys: list[int] = []
        numbers: list[int] = []
        for code, both in enumerate(ids.tolist()):
            for row, target in tables.fds.history(both >> _FD_BITS, both & (limit - 1)):
                keys.append(code * width + row + 1)
                numbers.append(-1 if target is None else len(targets))
                if target is not None:
                    targets.append(target)
        if not keys:
            continue
        # A key is as of the row's end; what a row shows as it was before is as of the last one's.
        wanted = codes * width + mine + ~before[mine]
        at = np.searchsorted(np.array(keys, np.int64), wanted, "right") - 1
        which[mine] = np.array(numbers, np.int64)[at]
    names: list[str | None] = [t.name for t in targets]
    types: list[str | None] = [t.type for t in targets]
    name_codes = np.where(which < 0, len(names), which)
    types_codes = np.where(which < 0, len(types), which)
    names.append(None)
    types.append(None)
    for row, name in failed.items():
        name_codes[row] = len(names)
        names.append(name)
    made = {"fd_name": coded(names, name_codes), "fd_type": coded(types, types_codes)}
    return batch.adding({n: c for n, c in made.items() if c is not None and batch.get(n) is None})
