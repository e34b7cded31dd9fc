"""The arguments of events that tracepoints tell of, and what /proc adds to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kcap.model import distinct, naming, shape
from kcap.model.classes import TypeClass
from kcap.readers.live.bpf import values
from kcap.readers.live.bpf.columns import Columns, Lists, Texts
from kcap.readers.live.bpf.events import EVENTS, events
from kcap.readers.live.procfs import Image, provenance
from kcap.readers.live.trace import points as known
from kcap.readers.live.trace.calls import Returned
from kcap.readers.live.trace.lives import Lives
from kcap.readers.live.trace.points import Points, Role
from kcap.readers.live.trace.samples import Int64s, Samples
from kcap.state.processes import PROCFS

FAMILY: Final = "kcap-bpf"
"""Whose events these are, by their names."""

USER: Final = "user"
"""Provenance of what the process said."""

_IMAGE: Final = {
    "cmdline": "cmdline",
    "container_id": "container_id",
    "exe": "exe",
    "gid": "gid",
    "ppid": "ppid",
    "session": "session",
    "uid": "uid",
    "user": "user",
}
"""The columns that /proc fills, and where an `Image` has their values."""

_NUMBERS: Final = frozenset({"gid", "ppid", "session", "uid"})
_DESCRIPTOR: Final = (b"/dev/fd/", b"/proc/self/fd/")
"""How the kernel names a file that was executed by its descriptor."""

_INET_BYTES: Final = {values.INET: ("saddr", "daddr"), values.INET6: ("saddr_v6", "daddr_v6")}
_NOWHERE: Final = {values.INET: bytes(4), values.INET6: bytes(16)}
_ANY_BYTES: Final = 16
_PORTS: Final = ("sport", "dport")
argument: Final = cache(naming.argument)


class Rows:
    """Makes the columns of the arguments of a batch.

    Args:
        made: Takes them.
        samples: All records.
        rows: Those that are events.
        event: The number of each.
        role: What each is for.
        tasks: Its thread and its process, below zero where that is not known.
        lives: What was found out of tasks.
        points: The tracepoints.
    """

    def __init__(
        self,
        made: Columns,
        samples: Samples,
        rows: Int64s,
        event: Int64s,
        role: npt.NDArray[np.int8],
        tasks: tuple[Int64s, Int64s],
        lives: Lives,
        points: Points,
    ) -> None:
        self._made = made
        self._samples = samples
        self._rows = rows
        self._event = event
        self._role = role
        self._tids, self._pids = tasks
        self._lives = lives
        self._points = points
        self._present = np.zeros(len(rows), np.int64)
        """Bits of the arguments with a value."""
        self._tags: dict[int, dict[str, str]] = defaultdict(dict)

    def build(
        self,
        images: Mapping[tuple[int, int], Image],
        calls: Returned,
        call: Int64s,
    ) -> None:
        """Make all of them, and the shapes.

        Args:
            images: What /proc said, by thread and time of what it was read upon.
            calls: The calls that ended.
            call: Which of them each event is, below zero for none.
        """
        self._forks()
        self._executions(images)
        self._exits()
        self._renames()
        self._states()
        self._modules()
        self._calls(calls, call)
        self._credentials(images)
        self._provenance()
        self._shape()

    def _of(self, role: Role) -> Int64s:
        return np.flatnonzero(self._role == role)

    def _field(self, role: Role, name: str, mine: Int64s) -> npt.NDArray[Any]:
        (found,) = self._points.formats(role)
        return self._samples.field(found.layout, name, self._rows[mine])

    def _has(self, role: Role, name: str) -> bool:
        return all(found.has(name) for found in self._points.formats(role))

    def _note(self, name: str, mine: Int64s) -> None:
        self._present[mine] |= 1 << _positions(name)[self._event[mine]]

    def _number(self, name: str, numbers: npt.NDArray[Any], mine: Int64s) -> None:
        if len(mine):
            self._made.numbers(argument(name), numbers, mine)
            self._note(name, mine)

    def _texts(
        self, base: str, texts: Texts, cls: TypeClass = TypeClass.STR, *, is_argument: bool = True
    ) -> None:
        self._made.texts(argument(base) if is_argument else base, texts, cls)
        if is_argument:
            self._note(base, texts.rows[texts.present()])

    def _name(self, role: Role, field: str, mine: Int64s) -> Texts:
        """A name out of records: an array of bytes, or a string behind the fields."""
        (found,) = self._points.formats(role)
        if field in found.located:
            return self._located(role, field, mine)
        fixed = np.ascontiguousarray(self._field(role, field, mine))
        width = fixed.shape[1]
        coded = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(mine), [None, pa.py_buffer(fixed)]
        ).dictionary_encode()
        names = [name.split(b"\0", 1)[0] or None for name in coded.dictionary.to_pylist()]
        codes = np.asarray(coded.indices).astype(np.int64)
        return Texts(mine, codes, pa.array(names, pa.binary()))

    def _located(self, role: Role, field: str, mine: Int64s) -> Texts:
        """A string behind the fields; one that would lie outside of its record is none."""
        places = self._field(role, field, mine).astype(np.int64)
        starts, sizes = places & 0xFFFF, places >> 16
        inside = starts + sizes <= self._samples.sizes[self._rows[mine]]
        mine, starts, sizes = mine[inside], starts[inside], sizes[inside]
        # Without the NUL that ends it.
        begin = self._samples.starts[self._rows[mine]] + starts
        codes, entries = self._samples.encode(begin, np.maximum(sizes - 1, 0))
        return Texts(mine, codes, entries)

    # ---- processes ----

    def _forks(self) -> None:
        mine = self._of(Role.FORK)
        if not len(mine):
            return
        births = [self._lives.births[row] for row in self._rows[mine].tolist()]
        groups = np.array([birth.pid for birth in births], np.int64)
        parents = self._pids[mine]
        self._number("parent_tid", self._tids[mine], mine)
        self._number("parent_pid", parents[parents >= 0], mine[parents >= 0])
        self._number("child_tid", self._field(Role.FORK, "child_pid", mine), mine)
        self._number("child_pid", groups[groups >= 0], mine[groups >= 0])
        self._number("start_time", np.array([birth.start_ns for birth in births]), mine)
        self._texts("process_name", self._name(Role.FORK, "parent_comm", mine), is_argument=False)

    def _executions(self, images: Mapping[tuple[int, int], Image]) -> None:
        mine = self._of(Role.EXEC)
        if not len(mine):
            return
        path = self._name(Role.EXEC, "filename", mine)
        self._texts("cmdpath", path)
        self._number("old_tid", self._field(Role.EXEC, "old_pid", mine), mine)
        names = [self._lives.executed.get(row) for row in self._rows[mine].tolist()]
        for base, at, is_argument in (("prev_comm", 0, True), ("process_name", 1, False)):
            words = [None if pair is None else pair[at] or None for pair in names]
            self._texts(base, _coded(words, mine), is_argument=is_argument)
        found = self._found(images, mine)
        self._images(found)
        self._paths(path, found)

    def _found(self, images: Mapping[tuple[int, int], Image], mine: Int64s) -> dict[int, Image]:
        """The images of some rows."""
        times = self._samples.times_ns[self._rows[mine]].tolist()
        keys = zip(mine.tolist(), self._tids[mine].tolist(), times, strict=True)
        return {row: images[tid, ns] for row, tid, ns in keys if (tid, ns) in images}

    def _credentials(self, images: Mapping[tuple[int, int], Image]) -> None:
        """Whose a process is after a call that does not say it."""
        for name, (item, field) in known.RESOLVED.items():
            mine = np.flatnonzero(self._event == events()[name].number)
            told = {row: getattr(i, field) for row, i in self._found(images, mine).items()}
            told = {row: number for row, number in told.items() if number is not None}
            self._number(
                item, np.array(list(told.values()), np.int64), np.array(list(told), np.int64)
            )
            for row in told:
                self._tags[row][argument(item)] = PROCFS

    def _images(self, found: Mapping[int, Image]) -> None:
        """What /proc says of executed programs."""
        for name, field in _IMAGE.items():
            told = {row: getattr(image, field) for row, image in found.items()}
            for row, image in found.items():
                tag = provenance(image, field, known=told[row] is not None)
                if tag is not None:
                    self._tags[row][name] = tag
            told = {row: value for row, value in told.items() if value is not None}
            mine = np.array(list(told), np.int64)
            if name in _NUMBERS:
                if told:
                    self._made.numbers(name, np.array(list(told.values())), mine)
            else:
                self._texts(
                    name, _coded([_bytes(v) for v in told.values()], mine), is_argument=False
                )
        lists = {row: image.argv for row, image in found.items() if image.argv is not None}
        items = [[word.encode("utf-8", "surrogateescape") for word in v] for v in lists.values()]
        mine = np.array(list(lists), np.int64)
        self._made.lists(argument("argv"), Lists(mine, np.arange(len(items)), items))
        self._note("argv", mine)
        whole = {row: image.exe for row, image in found.items() if image.exe is not None}
        mine = np.array(list(whole), np.int64)
        self._texts("pathname", _coded([_bytes(v) for v in whole.values()], mine))
        for row in lists:
            self._tags[row][argument("argv")] = PROCFS
        for row in whole:
            self._tags[row][argument("pathname")] = PROCFS

    def _paths(self, path: Texts, found: Mapping[int, Image]) -> None:
        """Of a program that /proc did not tell of, the path that was asked for, if it is whole."""
        whole = np.array(
            [
                entry is not None and entry.startswith(b"/") and not entry.startswith(_DESCRIPTOR)
                for entry in path.entries.to_pylist()
            ],
            np.bool_,
        )
        told = [row for row, image in found.items() if image.exe is not None]
        asked = whole[path.codes] & ~np.isin(path.rows, told)
        rows = path.rows[asked]
        self._texts("exe", Texts(rows, path.codes[asked], path.entries), is_argument=False)
        for row in rows.tolist():
            self._tags[row]["exe"] = USER

    def _exits(self) -> None:
        mine = self._of(Role.EXIT)
        if not len(mine):
            return
        self._texts("process_name", self._name(Role.EXIT, "comm", mine), is_argument=False)
        if self._has(Role.EXIT, "group_dead"):
            self._number(
                "process_group_exit", self._field(Role.EXIT, "group_dead", mine) != 0, mine
            )
        known = [self._lives.statuses.get(row, -1) for row in self._rows[mine].tolist()]
        status = np.array(known, np.int64)
        mine, status = mine[status >= 0], status[status >= 0]
        self._number("exit_code", status >> 8 & 0xFF, mine)
        self._number("signal_code", status & 0x7F, mine)
        ended = status & 0x7F == 0  # a signal may leave a core, of which nothing is told
        self._number("wait_status", status[ended], mine[ended])
        self._number("core_dumped", np.zeros(int(ended.sum()), np.bool_), mine[ended])

    def _renames(self) -> None:
        mine = self._of(Role.RENAME)
        if not len(mine):
            return
        old = self._name(Role.RENAME, "oldcomm", mine)
        self._texts("process_name", old, is_argument=False)
        self._texts("old_name", old)
        self._texts("new_name", self._name(Role.RENAME, "newcomm", mine))
        self._number("task_tid", self._tids[mine], mine)
        pids = self._pids[mine]
        self._number("task_pid", pids[pids >= 0], mine[pids >= 0])

    # ---- the others ----

    def _states(self) -> None:
        """Connections: their ends, each different pair of them once."""
        mine = self._of(Role.STATE)
        if not len(mine):
            return
        for name, field in (("old_state", "oldstate"), ("new_state", "newstate")):
            self._number(name, self._field(Role.STATE, field, mine), mine)
        family = self._field(Role.STATE, "family", mine).astype(np.uint32)
        ports = [self._field(Role.STATE, name, mine).astype(np.uint32) for name in _PORTS]
        raw = np.zeros((len(mine), 2, _ANY_BYTES), np.uint8)
        for number, fields in _INET_BYTES.items():
            of = np.flatnonzero(family == number)
            for side, field in enumerate(fields):
                told = self._field(Role.STATE, field, mine[of])
                raw[of, side, : told.shape[1]] = told
        words = raw.reshape(len(mine), 2 * _ANY_BYTES).view(np.uint32)
        table = np.concatenate([np.stack([family, *ports], axis=1), words], axis=1)
        pairs, codes = np.unique(table, axis=0, return_inverse=True)
        codes = codes.reshape(-1)
        ends = [_ends(pair) for pair in pairs]
        for at, name in enumerate(("local_addr", "remote_addr")):
            sides = [pair[at] for pair in ends]
            told_ends = [None if end is None else end.json.encode() for end in sides]
            entries = pa.array(told_ends, pa.binary())
            self._texts(name, Texts(mine, codes, entries), TypeClass.JSON)
        named = [_named(int(pair[0]), *both) for pair, both in zip(pairs, ends, strict=True)]
        self._texts("fd_name", Texts(mine, codes, pa.array(named, pa.binary())), is_argument=False)
        types = [values.type_of(int(pair[0])) for pair in pairs]
        kinds = pa.array([None if t is None else t.encode() for t in types], pa.binary())
        self._texts("fd_type", Texts(mine, codes, kinds), is_argument=False)

    def _modules(self) -> None:
        mine = self._of(Role.MODULE)
        if len(mine):
            self._texts("name", self._name(Role.MODULE, "name", mine))

    def _calls(self, calls: Returned, call: Int64s) -> None:
        """The arguments of calls, as the numbers that they were given."""
        mine = np.flatnonzero(call >= 0)
        which = call[mine]
        for number in np.unique(self._event[mine]).tolist():
            event = known.known()[number]
            of = self._event[mine] == number
            rows, at = mine[of], which[of]
            for each in event.arguments:
                place = known.place_of(event, each)
                if place is None:
                    continue
                has = calls.counts[at] > place
                raw = calls.arguments[at[has], place]
                self._number(each.name, values.NUMBERS[each.kind](raw), rows[has])

    def _provenance(self) -> None:
        texts = {
            row: ",".join(f"{name}:{tag}" for name, tag in sorted(tags.items()))
            for row, tags in sorted(self._tags.items())
        }
        words: list[str | None] = [None, *dict.fromkeys(texts.values())]
        codes = np.zeros(len(self._rows), np.int64)
        codes[list(texts)] = [words.index(text) for text in texts.values()]
        self._made.words("provenance", words, codes)

    def _shape(self) -> None:
        """Which arguments each event has, and which of them without a value."""
        masks, mask = distinct.integers(self._present)
        both, which = distinct.integers(self._event * len(masks) + mask)
        texts = [_shape_text(b // len(masks), masks[b % len(masks)]) for b in both]
        self._made.words("shape", texts, which)


def _coded(words: Sequence[bytes | None], mine: Int64s) -> Texts:
    """Texts, one each."""
    coded = pa.array(words, pa.binary()).dictionary_encode()
    codes = np.asarray(coded.indices.fill_null(-1)).astype(np.int64)
    return Texts(mine, codes, coded.dictionary)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")


def _ends(pair: npt.NDArray[np.uint32]) -> tuple[values.End | None, values.End | None]:
    """Both ends of a socket, None for one without an address."""
    family, *ports = (int(word) for word in pair[:3])
    if family not in _INET_BYTES:
        return None, None
    size = len(_NOWHERE[family])
    raw = pair[3:].tobytes()
    sides = (raw[:size], raw[_ANY_BYTES : _ANY_BYTES + size])
    found = [
        values.internet(family, side, port) if port else None
        for side, port in zip(sides, ports, strict=True)
    ]
    return found[0], found[1]


def _named(family: int, local: values.End | None, remote: values.End | None) -> bytes | None:
    """What a socket is called: both ends where it has another one, else its own."""
    if remote is None:
        return None if local is None else local.name
    mine = local or values.internet(family, _NOWHERE[family], 0)
    return mine.name + b"->" + remote.name


@cache
def _positions(name: str) -> Int64s:
    """By event number, which of its arguments one is."""
    found = np.zeros(EVENTS, np.int64)
    for number, event in known.known().items():
        for at, item in enumerate(event.arguments):
            if item.name == name:
                found[number] = at
    return found


@lru_cache(maxsize=4096)
def _shape_text(number: int, present: int) -> str:
    """The shape of an event with some of its arguments."""
    return shape.encode(
        [
            shape.Item(item.name, values.SPELLINGS[item.kind], not present >> at & 1)
            for at, item in enumerate(known.known()[number].arguments)
        ]
    )
