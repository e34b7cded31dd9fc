"""Copies of a .scap file behind itself, each with other times, processes and paths.

A benchmark needs millions of events that are not the same ones again and again. Copy 0 is the
original. In every further one times go on; process and thread ids are moved alike wherever they
stand - event headers, parameters, the lists of processes and descriptors in front - so that both
programs know every copy's processes by name; and 30 % of the distinct paths are others, of the same
length, the same wherever they stand in one copy. All by one seed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.readers.scap_blocks import FDS, PROCESSES, Blocks, Events, Table
from kcap.readers.scap_table import event_types

Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]

SEED: Final = 20260801
VARIED_SHARE: Final = 0.3
PID_STRIDE: Final = 1 << 22
"""How far ids are moved from copy to copy: more than Linux gives any."""

EVENT_BLOCK: Final = 0x216
PROCESS_BLOCK: Final = 0x215
"""The blocks that are understood: those of the sample."""

_TS_AT, _TID_AT, _TYPE_AT, _COUNT_AT, _LENGTHS_AT = 10, 18, 30, 32, 36
"""Where the parts of an event's header stand in its block."""

_PATH_KINDS: Final = frozenset({"FSPATH", "FSRELPATH"})
_PID_KIND: Final = "PID"
_LETTERS: Final = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)


class _Parameters(NamedTuple):
    """Where parameters of some kinds stand."""

    starts: Int64s
    sizes: Int64s


class _Paths(NamedTuple):
    """The paths of the events."""

    texts: Bytes
    """The distinct ones, one behind the other."""
    owner: Int64s
    """Which path each of these bytes belongs to."""
    places: Int64s
    """Bytes of the events that belong to paths."""
    origins: Int64s
    """Which byte of ``texts`` each of them is."""
    count: int
    """Distinct paths."""


class Copies:
    """What is known of a .scap file that is to be copied.

    Args:
        source: The file: event blocks of the second version, processes of the ninth.

    Raises:
        ValueError: It has other blocks.
    """

    def __init__(self, source: Path) -> None:
        with source.open("rb") as stream:
            items = list(Blocks(stream, str(source)).read())
        runs = [item for item in items if isinstance(item, Events)]
        raw = source.read_bytes()
        self._head = raw[: runs[0].offset]
        self._tables = [item for item in items if isinstance(item, Table)]
        self._body = np.frombuffer(raw[runs[0].offset :], np.uint8)
        self._starts = np.concatenate([run.starts + run.offset - runs[0].offset for run in runs])
        kinds = {int(kind) for run in runs for kind in np.unique(run.types)}
        lists = {table.type for table in self._tables if table.type in PROCESSES}
        if (
            kinds != {EVENT_BLOCK}
            or lists - {PROCESS_BLOCK}
            or self._tables[-1].offset > len(self._head)
        ):
            raise ValueError(f"{source}: blocks that can't be copied: {kinds | lists}")
        self._times = self._words(self._starts + _TS_AT).view(np.uint64)
        rows, starts, sizes, index = self._parameters()
        pids = self._chosen(rows, starts, sizes, index, frozenset({_PID_KIND}))
        if (pids.sizes[pids.sizes > 0] != 8).any():
            raise ValueError(f"{source}: process ids that are not of 64 bits")
        self._id_places = np.concatenate([self._starts + _TID_AT, pids.starts[pids.sizes > 0]])
        self._paths = self._distinct(self._chosen(rows, starts, sizes, index, _PATH_KINDS))

    @property
    def events(self) -> int:
        """Events of one copy."""
        return len(self._starts)

    def write(self, target: Path, copies: int, hosts: int | None = None) -> int:
        """Write copies, each later than the one before.

        Args:
            target: The file.
            copies: How many.
            hosts: After how many copies the same ids come again, so that files of different
                lengths have equally long lists of processes in front; None for never.

        Returns:
            The events written.
        """
        hosts = min(hosts or copies, copies)
        timed = self._times > 0
        span = int(self._times.max() - self._times[timed].min()) + 1
        ids = self._words(self._id_places)
        body = self._body.copy()
        with target.open("wb") as out:
            out.write(self._head)
            for host in range(1, hosts):
                out.writelines(self._lists(host * PID_STRIDE))
            for turn in range(copies):
                times = np.where(timed, self._times + np.uint64(turn * span), self._times)
                _put(body, self._starts + _TS_AT, times.view(np.int64))
                _put(body, self._id_places, _moved(ids, turn % hosts * PID_STRIDE))
                body[self._paths.places] = self._varied(turn)[self._paths.origins]
                out.write(body.tobytes())
        return self.events * copies

    def _words(self, places: Int64s) -> Int64s:
        """The 64-bit integers at some places."""
        return self._body[places[:, None] + np.arange(8)].view("<i8")[:, 0]

    def _halves(self, places: Int64s) -> Int64s:
        """The 16-bit integers at some places."""
        return self._body[places[:, None] + np.arange(2)].view("<u2")[:, 0].astype(np.int64)

    def _parameters(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """Of all parameters: the event's type, where the value starts, its size, its index."""
        counts = self._halves(self._starts + _COUNT_AT)
        rows = np.repeat(np.arange(len(counts)), counts)
        before = np.cumsum(counts) - counts
        index = np.arange(len(rows)) - before[rows]
        sizes = self._halves((self._starts + _LENGTHS_AT)[rows] + 2 * index)
        total = np.cumsum(sizes) - sizes
        first = np.concatenate([total, [sizes.sum()]])[before]
        starts = (self._starts + _LENGTHS_AT + 2 * counts - first)[rows] + total
        return self._halves(self._starts + _TYPE_AT)[rows], starts, sizes, index

    @staticmethod
    def _chosen(
        types: Int64s, starts: Int64s, sizes: Int64s, index: Int64s, kinds: frozenset[str]
    ) -> _Parameters:
        """Where the parameters of some kinds stand."""
        known = event_types()
        wanted = np.zeros((int(types.max()) + 1, int(index.max()) + 1), np.bool_)
        for number in np.unique(types).tolist():
            for i, parameter in enumerate(known[number].parameters[: wanted.shape[1]]):
                wanted[number, i] = parameter.kind in kinds
        chosen = wanted[types, index]
        return _Parameters(starts[chosen], sizes[chosen])

    def _distinct(self, paths: _Parameters) -> _Paths:
        """The distinct paths, and where they stand."""
        raw = self._body.tobytes()
        # Some end with a NUL, others do not.
        texts = [
            raw[start : start + size].rstrip(b"\0")
            for start, size in zip(paths.starts.tolist(), paths.sizes.tolist(), strict=True)
        ]
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        lengths = np.array([len(text) for text in number], np.int64)
        begins = np.cumsum(lengths) - lengths
        codes = np.array([number[text] for text in texts], np.int64)
        sizes = lengths[codes]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return _Paths(
            np.frombuffer(b"".join(number), np.uint8),
            np.repeat(np.arange(len(lengths)), lengths),
            np.repeat(paths.starts, sizes) + within,
            np.repeat(begins[codes], sizes) + within,
            len(number),
        )

    def _varied(self, turn: int) -> Bytes:
        """The distinct paths of a copy: the letters of some of them are others."""
        texts = self._paths.texts.copy()
        if not turn:
            return texts
        rng = np.random.default_rng((SEED, turn))
        chosen = rng.random(self._paths.count) < VARIED_SHARE
        letters = chosen[self._paths.owner] & np.isin(texts, _LETTERS)
        texts[letters] = _LETTERS[rng.integers(0, len(_LETTERS), int(letters.sum()))]
        return texts

    def _lists(self, by: int) -> Iterator[bytes]:
        """The blocks of processes and descriptors, for processes with moved ids."""
        for table in self._tables:
            body = np.frombuffer(table.body, np.uint8).copy()
            if table.type in PROCESSES:
                places = np.array(list(_ids_of_tasks(table.body)), np.int64)
            elif table.type in FDS:
                places = np.zeros(1, np.int64)
            else:
                continue
            _put(body, places, _moved(body[places[:, None] + np.arange(8)].view("<i8")[:, 0], by))
            size = struct.pack("<I", len(body) + 12)
            yield struct.pack("<I", table.type) + size + body.tobytes() + size


def _put(body: Bytes, places: Int64s, values: Int64s) -> None:
    """Write 64-bit integers to some places."""
    body[places[:, None] + np.arange(8)] = values.astype("<i8")[:, None].view(np.uint8)


def _moved(ids: Int64s, by: int) -> Int64s:
    """Other process ids; 0 is none or the idle one, and below stand errors."""
    return np.where(ids > 0, ids + by, ids)


def _ids_of_tasks(body: bytes) -> Iterator[int]:
    """Where ids stand in a list of processes of the ninth version."""
    at = 0
    while len(body) - at >= 4:
        (size,) = struct.unpack_from("<I", body, at)
        place = at + 4
        yield from range(place, place + 40, 8)  # tid pid ptid sid vpgid
        place += 40
        for fixed in (0, 0, 0, 0, 0, 48):  # comm exe exepath args cwd; numbers; env
            place += fixed
            place += 2 + struct.unpack_from("<H", body, place)[0]
        yield from (place, place + 8)  # vtid vpid
        at += size
