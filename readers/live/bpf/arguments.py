"""Arguments of events, out of the numbers and pieces of their records.

An argument that several kinds of events have, wherever it stands in their records, is one job: so
a batch of many kinds costs little more than one of a single kind.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache, lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kcap.model import distinct, naming, shape
from kcap.model.classes import TypeClass
from kcap.readers.live.bpf import events, paths, values
from kcap.readers.live.bpf.columns import Columns, Lists, Texts
from kcap.readers.live.bpf.records import Int64s, Mask, Records
from kcap.readers.live.bpf.sockets import Found

PATH: Final = 2
"""Piece with the path of the file that an event is about."""

_FILE_HANDLERS: Final = frozenset({"close", "exec", "file", "memory", "open"})
"""Kinds of events with a file: numbers 6 to 9 are of its inode."""

_DESCRIPTOR_HANDLERS: Final = _FILE_HANDLERS - {"exec"}
"""Kinds of events that are about a descriptor of a file."""

_FILE_NUMBERS: Final = (6, 7, 8, 9)
_INODE: Final = 8
_MODE: Final = 9
_TYPE_SHIFT: Final = 12
_MODE_MASK: Final = 0xFFFF
_TYPES: Final = range((_MODE_MASK >> _TYPE_SHIFT) + 1)
_TOTAL: Final = 11
_FAILED_TOTAL: Final = 7
"""Number with the bytes of all arguments of a program, and of one that could not be executed."""

_COMPAT: Final = 1
_HALVES: Final = {180: 3, 181: 3, 193: 1, 194: 1, 333: 3, 334: 3, 378: 3, 379: 3}
"""32-bit calls with a 64-bit number in two registers: the place of its lower half."""

_MMAP2: Final = 192
"""The 32-bit mmap, whose offset counts pages."""

_PAGE_SHIFT: Final = 12
_WHOLE: Final = 1 << 16
"""Bytes of a piece are below."""

_CLASSES: Final = {
    "addr": TypeClass.JSON,
    "bytes": TypeClass.BIN,
    "local": TypeClass.JSON,
    "remote": TypeClass.JSON,
}

_USER: Final = "user"
"""Provenance of what the process said."""

_TYPE_WORDS: Final = (None, *paths.TYPE_WORDS)

argument: Final = cache(naming.argument)
"""The column base of one of the arguments, which are few."""


class _Job(NamedTuple):
    """One argument, of all kinds of events in which it stands for the same."""

    name: str
    kind: str
    more: tuple[int, ...]
    """Further places, for kinds that are made of several pieces."""
    field: str
    """The field of the record that it is; empty for a number or a piece."""
    place: npt.NDArray[np.int8]
    """By event number, where it stands; below zero for an event without it."""
    position: Int64s
    """By event number, which of the arguments it is."""


@cache
def _jobs() -> list[_Job]:
    """What there is to do, whatever the events."""
    found: dict[tuple[str, str, tuple[int, ...], str], _Job] = {}
    for number, event in events.by_number().items():
        for position, (name, kind, where) in enumerate(event.arguments):
            first, *more = where.split("+")
            in_record = first[1:].isdigit()
            key = (name, kind, tuple(int(p[1:]) for p in more), "" if in_record else first)
            if key not in found:
                none = np.full(events.EVENTS, -1)
                found[key] = _Job(*key, none.astype(np.int8), none)
            found[key].place[number] = int(first[1:]) if in_record else 0
            found[key].position[number] = position
    return list(found.values())


@lru_cache(maxsize=64)
def _jobs_of(present: bytes) -> list[tuple[_Job, Mask | None, int | None]]:
    """What there is to do for some events, a fraction of what there is for all.

    Args:
        present: By event number, whether there are any: an array of truth values.

    Returns:
        Each job; by event number, whether it is one of that event, None where it is of all that
        are present; and where its argument stands, None where that is not the same in all.
    """
    some = np.frombuffer(present, np.bool_)
    found: list[tuple[_Job, Mask | None, int | None]] = []
    for job in _jobs():
        has = (job.place >= 0) & some
        places = set(job.place[has].tolist())
        if places:
            whole = np.count_nonzero(has) == np.count_nonzero(some)
            # Hardly ever does it stand in several places.
            place = places.pop() if len(places) == 1 else None
            found.append((job, None if whole else has, place))
    return found


@cache
def _of_files(name: str, kind: str) -> Mask:
    """By event number, whether some argument is a number of a file's inode."""
    found = np.zeros(events.EVENTS, np.bool_)
    for job in _jobs():
        if (job.name, job.kind, job.field) == (name, kind, ""):
            found |= np.isin(job.place, _FILE_NUMBERS)
    return found


@cache
def _flags(handlers: frozenset[str]) -> Mask:
    """By event number, whether it is of one of some kinds."""
    flags = np.zeros(events.EVENTS, np.bool_)
    for number, event in events.by_number().items():
        flags[number] = event.handler in handlers
    return flags


class Arguments:
    """Makes the columns of the arguments of a batch.

    What is not a number is made once for each kind of records that are alike.

    Args:
        records: The records.
        few: The first of each kind of them.
        columns: Takes them.
        sockets: The sockets of the batch.
        variables: The variables of the environment to keep; None for all that there are.
    """

    def __init__(
        self,
        records: Records,
        few: Records,
        columns: Columns,
        sockets: Found,
        variables: Collection[str] | None,
    ) -> None:
        self._every = records
        self._every_number = _adjusted(records)
        self._records = few
        self._columns = columns
        self._sockets = sockets
        self._variables = variables
        self._numbers = self._every_number if few is records else _adjusted(few)
        self._missing = np.zeros(len(few), np.int64)
        """Bits of the arguments without a value."""
        self._lacking: Int64s | None = None
        """The same of each record, for what its kind does not tell."""
        self._resolved = np.zeros(len(few), np.bool_)
        """Those whose path the kernel did not tell."""
        self._is_of_file = _flags(_FILE_HANDLERS)[few.event]
        modes = (self._numbers[:, _MODE] & np.uint64(_MODE_MASK)).astype(np.int64)
        self._has_file = self._is_of_file & (modes != 0)
        self._fileless_kinds = self._is_of_file & ~self._has_file
        self._file_type = modes >> _TYPE_SHIFT
        self._files: Texts | None = None
        self._file_codes = np.zeros(0, np.int64)

    def build(self) -> None:
        """Make all of them, what the descriptors stand for, and the shapes."""
        present = np.bincount(self._records.event, minlength=events.EVENTS) > 0
        for job, has, place in _jobs_of(present.tobytes()):
            is_number = job.kind in values.NUMBERS
            event = (self._every if is_number else self._records).event
            rows = np.arange(len(event)) if has is None else np.flatnonzero(has[event])
            places = job.place[event[rows]].astype(np.int64) if place is None else place
            if is_number:
                self._number(job, rows, places)
            else:
                self._build(job, rows, places)
        self._descriptors()
        self._provenance()
        self._shape()

    def _build(self, job: _Job, rows: Int64s, places: Int64s | int) -> None:
        if job.kind == "none":
            self._lacks(job, rows)
        elif job.kind in ("argv", "env"):
            self._list(job, rows, places)
        else:
            texts = self._read(job, rows, places)
            cls = _CLASSES.get(job.kind, TypeClass.STR)
            self._columns.texts(argument(job.name), texts, cls)
            self._lacks(job, rows[~texts.present()])
            if job.name == "pathname":
                mine = np.flatnonzero(self._records.event[rows] == _execution())
                self._columns.texts("exe", Texts(rows[mine], texts.codes[mine], texts.entries))

    def _lacks(self, job: _Job, rows: Int64s) -> None:
        """Note kinds that have no value of an argument."""
        if len(rows):
            self._missing[rows] |= 1 << job.position[self._records.event[rows]]

    def _number(self, job: _Job, rows: Int64s, places: Int64s | int) -> None:
        """A number of each record; of a file that there is not, there is none."""
        count = len(self._every)
        lacking = self._fileless(job)
        if lacking.any():
            self._lacks(job, np.flatnonzero(lacking))
            told = ~self._columns.by_row(lacking)[rows]
            rows = rows[told]
            places = places if isinstance(places, int) else places[told]
        whole = len(rows) == count
        if job.field:
            raw = self._every[job.field].astype(np.uint64)
            raw = raw if whole else raw[rows]
        elif whole and isinstance(places, int):
            raw = np.ascontiguousarray(self._every_number[:, places])
        else:
            raw = self._every_number[rows, places]
        if job.kind == "some":
            absent = raw == 0
            self._lacks_one(job, rows[absent])
            rows, raw = rows[~absent], raw[~absent]
            whole = len(rows) == count
        found = values.NUMBERS[job.kind](raw)
        self._columns.numbers(argument(job.name), found, None if whole else rows)

    def _fileless(self, job: _Job) -> Mask:
        """Kinds that are about no file after all, though the argument is one of a file."""
        if job.field or not self._fileless_kinds.any():
            return np.zeros(len(self._records), np.bool_)
        found: Mask = self._fileless_kinds & _of_files(job.name, job.kind)[self._records.event]
        return found

    def _lacks_one(self, job: _Job, rows: Int64s) -> None:
        """Note records that have no value of an argument, whatever others of their kind have."""
        if len(rows):
            if self._lacking is None:
                self._lacking = np.zeros(len(self._every), np.int64)
            self._lacking[rows] |= 1 << job.position[self._every.event[rows]]

    def _read(self, job: _Job, rows: Int64s, places: Int64s | int) -> Texts:
        """The texts of an argument."""
        kind = job.kind
        if kind == "path":
            return self._kernel_paths(rows, places)
        if kind == "rel":
            return self._resolve(rows, places, job.more[0])
        if kind in ("cwd", "opened"):
            return self._told(rows, places, *job.more)
        if kind == "local":
            return self._sockets.texts(rows, [s.local for s in self._sockets.sockets])
        if kind == "remote":
            return self._sockets.texts(rows, [s.remote for s in self._sockets.sockets])
        texts = self._pieces(rows, places)
        if kind == "comm":
            names = [name.split(b"\0", 1)[0] or None for name in texts.entries.to_pylist()]
            return texts._replace(entries=pa.array(names, pa.binary()))
        if kind == "addr":
            ends = map(values.user_address, texts.entries.to_pylist())
            found = [None if end is None else end.json.encode() for end in ends]
            return texts._replace(entries=pa.array(found, pa.binary()))
        return texts

    def _pieces(self, rows: Int64s, places: Int64s | int) -> Texts:
        """Pieces as they are; an empty one is no value."""
        starts, sizes = self._records.pieces(rows, places)
        some = sizes > 0
        codes = np.full(len(rows), -1, np.int64)
        codes[some], entries = self._records.encode(starts[some], sizes[some])
        return Texts(rows, codes, entries)

    # ---- paths ----

    def _kernel_paths(self, rows: Int64s, places: Int64s | int) -> Texts:
        """Paths of the kernel; names of files that have none."""
        if not (np.all(places == PATH) and self._is_of_file[rows].all()):
            return self._named(rows, places)
        if self._files is None:
            self._files = self._named(np.flatnonzero(self._is_of_file), PATH)
            self._file_codes = np.zeros(len(self._records), np.int64)
            self._file_codes[self._files.rows] = self._files.codes
        return Texts(rows, self._file_codes[rows], self._files.entries)

    def _named(self, rows: Int64s, places: Int64s | int) -> Texts:
        texts = self._pieces(rows, places)
        names = [paths.from_components(raw) for raw in texts.entries.to_pylist()]
        codes = np.where(texts.codes < 0, len(names), texts.codes)
        names.append(None)
        entries = pa.array(names, pa.binary())
        hanging = _hanging(entries)
        if not (hanging[codes] & self._has_file[rows]).any():
            return Texts(rows, codes, entries)
        is_namespace = np.array([name == paths.NAMESPACE for name in names], np.bool_)
        kind = self._file_type[rows]
        odd = hanging[codes] & (np.isin(kind, paths.NUMBERED) | is_namespace[codes])
        odd &= self._has_file[rows]
        inodes = self._numbers[rows[odd], _INODE]
        pairs = np.stack([kind[odd].astype(np.uint64), inodes])
        files, which = np.unique(pairs, axis=1, return_inverse=True)
        codes[odd] = which.reshape(-1) + len(names)
        names += [paths.numbered(*file) for file in files.T.tolist()]
        return Texts(rows, codes, pa.array(names, pa.binary()))

    def _resolve(self, rows: Int64s, places: Int64s | int, base: int) -> Texts:
        """Paths as the process gave them, from the directory where they begin."""
        given = self._pieces(rows, places)
        base_of = self._kernel_paths(rows, base)
        words, bases = given.entries.to_pylist(), base_of.entries.to_pylist()
        groups = distinct.grouped(
            [np.where(given.codes < 0, len(words), given.codes), base_of.codes],
            [len(words) + 1, len(bases)],
        )
        words.append(None)
        pairs = zip(*(codes.tolist() for codes in groups.codes), strict=True)
        whole = [
            None if words[word] is None else paths.resolve(words[word], bases[start])
            for word, start in pairs
        ]
        return Texts(rows, groups.rows, pa.array(whole, pa.binary()))

    def _told(self, rows: Int64s, places: Int64s | int, word: int, base: int) -> Texts:
        """Paths of what calls led to; of those that failed, what the process said.

        The working directory is already the new one when a call that changes it returns.
        """
        texts = self._kernel_paths(rows, places)
        failed = np.flatnonzero(~texts.present() | (self._records["error"][rows] > 0))
        if not len(failed):
            return texts
        said = self._resolve(rows[failed], word, base)
        self._resolved[rows[failed]] = said.present()
        codes = texts.codes.copy()
        codes[failed] = said.codes + len(texts.entries)
        return Texts(rows, codes, pa.concat_arrays([texts.entries, said.entries]))

    # ---- lists ----

    def _list(self, job: _Job, rows: Int64s, places: Int64s | int) -> None:
        """Arguments of programs, and their environment."""
        starts, sizes = self._records.pieces(rows, places)
        some = sizes > 0
        self._lacks(job, rows[~some])
        rows, starts, sizes = rows[some], starts[some], sizes[some]
        if not len(rows):
            return
        if job.kind == "env":
            codes, blocks = self._records.encode(starts, sizes)
            found = [values.variables(block, self._variables) for block in blocks.to_pylist()]
            self._columns.lists(argument(job.name), Lists(rows, codes, found))
            return
        # The end of a long block lies right behind its beginning.
        ends = self._records.sizes(job.more[0])[rows].astype(np.int64)
        codes, blocks = self._records.encode(starts, sizes + ends)
        executed = self._records.event[rows] == _execution()
        totals = self._numbers[rows, np.where(executed, _TOTAL, _FAILED_TOTAL)]
        every_total, total = np.unique(totals, return_inverse=True)
        parts = [codes, sizes, total.reshape(-1)]
        groups = distinct.grouped(parts, [len(blocks), _WHOLE, len(every_total)])
        known, told = blocks.to_pylist(), every_total.tolist()
        argv = [
            values.arguments(known[block][:size], known[block][size:], told[which])
            for block, size, which in zip(*(part.tolist() for part in groups.codes), strict=True)
        ]
        self._columns.lists(argument(job.name), Lists(rows, groups.rows, argv))
        lines = pa.array([b" ".join(items) for items in argv], pa.binary())
        mine = np.flatnonzero(executed)
        self._columns.texts("cmdline", Texts(rows[mine], groups.rows[mine], lines))

    # ---- what goes with the arguments ----

    def _descriptors(self) -> None:
        """What the descriptors stand for that the events are about."""
        of_file = _flags(_DESCRIPTOR_HANDLERS)[self._records.event] & self._has_file
        of_file[self._sockets.rows] = False
        rows = np.flatnonzero(of_file)
        words = np.zeros(len(self._records), np.int64)
        if len(rows):
            texts = self._kernel_paths(rows, PATH)
            self._columns.texts("fd_name", texts)
            by_name = np.zeros(len(texts.entries), np.int64)
            for at in np.flatnonzero(_hanging(texts.entries)).tolist():
                by_name[at] = _TYPE_WORDS.index(paths.type_by_name(texts.entries[at].as_py()))
            by_mode = np.array([_TYPE_WORDS.index(paths.type_of(t)) for t in _TYPES])
            named = by_name[texts.codes]
            words[rows] = np.where(named > 0, named, by_mode[self._file_type[rows]])
        found = self._sockets
        every = [*_TYPE_WORDS, *(socket.type for socket in found.sockets)]
        words[found.rows] = found.codes + len(_TYPE_WORDS)
        self._columns.words("fd_type", every, words)
        self._columns.texts("fd_name", found.texts(found.rows, [s.name for s in found.sockets]))

    def _provenance(self) -> None:
        """Which columns hold what the process said, where the kernel did not say it."""
        is_users = np.zeros(len(self._records), np.bool_)
        told = np.array([socket.is_users for socket in self._sockets.sockets], np.bool_)
        is_users[self._sockets.rows] = told[self._sockets.codes]
        codes = (self._records.event << 2) + (self._resolved << 1) + is_users
        found, which = distinct.integers(codes)
        words = [_user_columns(code >> 2, bool(code & 2), bool(code & 1)) for code in found]
        self._columns.words("provenance", words, which)

    def _shape(self) -> None:
        """Which arguments each event has, and which of them without a value."""
        missing, event = self._missing, self._records.event
        if self._lacking is not None:
            missing, event = self._columns.by_row(missing) | self._lacking, self._every.event
        masks, mask = distinct.integers(missing)
        both, which = distinct.integers(event * len(masks) + mask)
        texts = [_shape_text(b // len(masks), masks[b % len(masks)]) for b in both]
        self._columns.words("shape", texts, which)


def _hanging(names: pa.BinaryArray) -> Mask:
    """Which names are no paths: `paths.is_path` of all of them, null included."""
    starts = [pc.starts_with(names, start) for start in (b"/", paths.UNKNOWN_START)]
    return ~np.asarray(pc.or_(*starts).fill_null(False))


@cache
def _execution() -> int:
    return events.events()[events.EXECUTION].number


@cache
def _user_columns(number: int, resolved: bool, is_users: bool) -> str | None:
    """The provenance of an event's columns."""
    names = []
    for name, kind, _ in events.by_number()[number].arguments:
        if (
            kind == "rel"
            or (kind == "str" and name.endswith("_arg"))
            or (kind in ("cwd", "opened") and resolved)
            or (kind == "remote" and is_users)
        ):
            names.append(argument(name))
    return ",".join(f"{name}:{_USER}" for name in sorted(names)) or None


@lru_cache(maxsize=4096)
def _shape_text(number: int, missing: int) -> str:
    """The shape of an event without some of its arguments."""
    return shape.encode(
        [
            shape.Item(item.name, values.SPELLINGS[item.kind], bool(missing >> at & 1))
            for at, item in enumerate(events.by_number()[number].arguments)
        ]
    )


def _adjusted(records: Records) -> npt.NDArray[np.uint64]:
    """The numbers of records, those of 32-bit calls as if they were native ones."""
    numbers: npt.NDArray[np.uint64] = records["number"]
    compat = np.flatnonzero(records["flags"] & _COMPAT)
    if not len(compat):
        return numbers
    numbers = numbers.copy()
    nr = records["nr"][compat]
    for call, place in _HALVES.items():
        rows = compat[nr == call]
        numbers[rows, place] |= numbers[rows, place + 1] << np.uint64(32)
    rows = compat[nr == _MMAP2]
    numbers[rows, 5] <<= np.uint64(_PAGE_SHIFT)
    return numbers
