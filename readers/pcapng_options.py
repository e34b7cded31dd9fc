"""The options of packets in a pcapng file, for all packets of a run at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.model.batch import dictionary
from kcap.packets import comments as lines
from kcap.packets.decode import pieces
from kcap.packets.frames import I32, I64, NONE, Bytes, Owner
from kcap.packets.headers import View
from kcap.readers.pcapng_blocks import Process, text

_OPTIONS_MAX: Final = 64
"""Options of a packet that are looked at."""

_COMMENT: Final = 1
_FLAGS: Final = 2
_DROPPED: Final = 4
_PACKET_ID: Final = 5
_THREAD: Final = 8
_DARWIN: Final = 32769
_PROCESSES: Final = 1 << 16
"""Processes of a section that are kept."""
_LIVES: Final = 64
"""Descriptions of one process id that are kept, the last ones."""
_TEXT_CHARS: Final = 64 << 20
"""What all that is said of processes may make."""
LOST_MAX: Final = 1 << 40
"""A number of lost packets from which on it is none."""

_SIZES: Final = {_FLAGS: 4, _DROPPED: 8, _PACKET_ID: 8, _THREAD: 8, _DARWIN: 4}


@dataclass(slots=True)
class Processes:
    """The processes that a section describes."""

    listed: list[Process] = field(default_factory=list)
    """In the order of Darwin's blocks, by which packets refer to them."""
    by_pid: dict[int, list[Process]] = field(default_factory=dict)
    unkept: int = 0
    """Descriptions that are too many, or too long, to be kept."""
    chars: int = 0
    """What they make."""

    def add(self, process: Process, *, numbered: bool) -> None:
        """Take down a process.

        Args:
            process: What is said of it.
            numbered: Whether packets refer to it by its place among the others.
        """
        size = process.size
        # Were a later one kept, packets would refer to it by an earlier one's place.
        full = numbered and (self.unkept > 0 or len(self.listed) >= _PROCESSES)
        if full or self.chars + size > _TEXT_CHARS:
            self.unkept += 1
            return
        self.chars += size
        if numbered:
            self.listed.append(process)
        if len(self.by_pid) < _PROCESSES or process.pid in self.by_pid:
            known = self.by_pid.setdefault(process.pid, [])
            known.append(process)
            if not numbered:
                self.chars -= sum(one.size for one in known[:-_LIVES])
            del known[:-_LIVES]
        elif not numbered:
            self.chars -= size
            self.unkept += 1

    def find(self, pid: int, ts_ns: int) -> Process | None:
        """The process that had an id at a time.

        Args:
            pid: The id.
            ts_ns: The time.

        Returns:
            The last that had started; where none had, the first to start; where nothing says
            when they did, the one described last.
        """
        found = self.by_pid.get(pid)
        if not found:
            return None
        started = [p for p in found if "start_ns" in p.numbers]
        if not started:
            return found[-1]
        past = [p for p in started if p.numbers["start_ns"] <= ts_ns]
        key = lambda p: p.numbers["start_ns"]  # noqa: E731
        return max(past, key=key) if past else min(started, key=key)


class Said(NamedTuple):
    """What the options of some packets say; a column is None where no packet has the option."""

    direction: Bytes | None
    packet_id: I64 | None
    thread: I64 | None
    """Process and thread id, a row each; -1 for none."""
    darwin: I64 | None
    remark: I32 | None
    """Index into `remarks`."""
    remarks: list[tuple[str, ...]]
    """The comments of a packet, each different set once."""
    dropped: int
    """Packets that were lost before these."""


def read(raw: Bytes, view: View, starts: I64, stops: I64, order: str) -> Said:
    """Read the options of packets.

    Args:
        raw: The bytes.
        view: The same, to read numbers from.
        starts: Where the options of each begin.
        stops: Where they end; a packet may have none.
        order: ``<`` or ``>``.

    Returns:
        What they say.
    """
    found: dict[int, tuple[list[I64], list[I64]]] = {}
    rows = np.flatnonzero(starts + 4 <= stops)
    at = starts[rows]
    for _ in range(_OPTIONS_MAX):
        if not len(rows):
            break
        code, size = view.read(f"{order}u2", at), view.read(f"{order}u2", at + 2)
        after = at + 4 + (size + 3 & ~3)
        sound = (code > 0) & (after <= stops[rows])
        rows, at, code, size, after = (c[sound] for c in (rows, at, code, size, after))
        for kind in np.unique(code).tolist():
            wanted = code == kind
            if kind in _SIZES:
                wanted &= size == _SIZES[kind]
            elif kind != _COMMENT:
                continue
            of, places = found.setdefault(kind, ([], []))
            of.append(rows[wanted])
            places.append(np.stack([at[wanted] + 4, size[wanted]]))
        more = after + 4 <= stops[rows]
        rows, at = rows[more], after[more]
    return _said(view, raw, found, len(starts), order)


def _said(
    view: View, raw: Bytes, found: dict[int, tuple[list[I64], list[I64]]], count: int, order: str
) -> Said:
    def numbers(kind: int, at: int = 0, width: int = 4) -> I64 | None:
        """The first value that each packet has of an option."""
        if kind not in found:
            return None
        values = np.full(count, NONE, np.int64)
        for rows, places in zip(*(reversed(part) for part in found[kind]), strict=True):
            values[rows] = view.read(f"{order}u{width}", places[0] + at)
        return values

    direction, identity = numbers(_FLAGS), numbers(_PACKET_ID, width=8)
    pid, tid, dropped = numbers(_THREAD), numbers(_THREAD, 4), numbers(_DROPPED, width=8)
    remark, remarks = _remarks(raw, found.get(_COMMENT), count)
    if direction is not None:
        direction = np.where(direction >= 0, direction & 3, 0)
    lost = 0
    if dropped is not None:
        lost = int(dropped[(dropped > 0) & (dropped < LOST_MAX)].sum())
    return Said(
        None if direction is None else np.where(direction == 3, 0, direction).astype(np.uint8),  # noqa: PLR2004
        identity,
        None if pid is None or tid is None else np.stack([pid, tid], axis=1),
        numbers(_DARWIN),
        remark,
        remarks,
        lost,
    )


def _remarks(
    raw: Bytes, found: tuple[list[I64], list[I64]] | None, count: int
) -> tuple[I32 | None, list[tuple[str, ...]]]:
    """The comments of each packet; equal ones are made into text once."""
    if found is None:
        return None, []
    codes = np.full(count, NONE, np.int64)
    sets: dict[tuple[str, ...], int] = {}
    listed: list[tuple[str, ...]] = []
    for rows, places in zip(*found, strict=True):
        held = dictionary(pieces(raw, places[0], places[1]))
        texts = [text(entry) for entry in held.dictionary.to_pylist()]
        width = len(texts) + 1
        pairs, which = np.unique(
            codes[rows] * width + np.asarray(held.indices), return_inverse=True
        )
        numbers = []
        for pair in pairs.tolist():
            before, own = divmod(pair, width)
            whole = (*(listed[before] if before >= 0 else ()), texts[own])
            if whole not in sets:
                sets[whole] = len(listed)
                listed.append(whole)
            numbers.append(sets[whole])
        codes[rows] = np.array(numbers, np.int64)[which.reshape(-1)]
    return codes.astype(np.int32), listed


class Owned(NamedTuple):
    """Whose packets they are, and what else is said of them: columns of `Frames`."""

    owner: I32 | None
    owners: list[Owner]
    comment: I32 | None
    comments: list[str]
    seen_at: I32 | None = None
    """Index into `places` where a comment says it, `NONE` elsewhere."""
    places: Sequence[str] = ()
    """Names of interfaces; one that is empty stands for none."""


def owned(said: Said, ts_ns: I64, processes: Processes, *, escaped: bool) -> Owned:
    """Find out whose packets they are.

    Args:
        said: What their options say.
        ts_ns: When they were seen.
        processes: Those that the section describes.
        escaped: Whether values in comments are as `kcap.packets.comments` writes them.

    Returns:
        The columns.
    """
    count = len(ts_ns)
    parts: list[Any] = []
    if said.remark is not None:
        parts.append(said.remark)
    none = np.full(count, NONE, np.int64)
    pid = none if said.thread is None else said.thread[:, 0]
    tid = none if said.thread is None else said.thread[:, 1]
    darwin = none if said.darwin is None else said.darwin
    if said.remark is None and said.thread is None and said.darwin is None:
        return Owned(None, [], None, [])
    places: dict[str, int] = {}
    remark = none if said.remark is None else said.remark
    known, described = _described(pid, ts_ns, processes)
    table = np.stack([remark, pid, tid, darwin, known], axis=1)
    different, which = np.unique(table, axis=0, return_inverse=True)
    owners: dict[Owner, int] = {}
    comments: dict[str, int] = {}
    of, words, where = np.full((3, len(different)), NONE, np.int32)
    for number, (about, process, thread, index, place) in enumerate(different.tolist()):
        entry, rest = None, ""
        if about >= 0:
            entry, seen_at, rest = lines.read(said.remarks[about], escaped=escaped)
            if seen_at is not None:
                where[number] = places.setdefault(seen_at, len(places))
        process_info = described[place] if place >= 0 else None
        if 0 <= index < len(processes.listed):
            process_info = processes.listed[index]
            process = process if process >= 0 else process_info.pid  # noqa: PLW2901
        entry = _merged(entry, process, thread, process_info)
        if entry is not None:
            of[number] = owners.setdefault(entry, len(owners))
        if rest:
            words[number] = comments.setdefault(rest, len(comments))
    which = which.reshape(-1)
    at = where[which] if places else None
    return Owned(of[which], list(owners), words[which], list(comments), at, list(places))


def _described(pid: I64, ts_ns: I64, processes: Processes) -> tuple[I64, list[Process]]:
    """Which described process each packet's id meant at its time."""
    found = np.full(len(pid), NONE, np.int64)
    listed: list[Process] = []
    for number in np.unique(pid).tolist() if processes.by_pid else []:
        rows = np.flatnonzero(pid == number)
        place = len(listed)
        listed += processes.by_pid.get(number, ())
        starts = sorted(
            {
                p.numbers["start_ns"]
                for p in processes.by_pid.get(number, ())
                if "start_ns" in p.numbers
            }
        )
        spans = np.searchsorted(np.array(starts, np.int64), ts_ns[rows], "right")
        for span in np.unique(spans).tolist():
            here = rows[spans == span]
            entry_at = processes.find(number, int(ts_ns[here[0]]))
            if entry_at is not None:
                found[here] = place + processes.by_pid[number].index(entry_at)
    return found, listed


def _merged(entry: Owner | None, pid: int, tid: int, process: Process | None) -> Owner | None:
    """One owner out of a comment, an option and a description; the comment says most."""
    if entry is None and pid < 0 and process is None:
        return None
    facts: dict[str, Any] = {}
    if process is not None:
        facts |= {**process.texts, **process.numbers}
    if pid >= 0:
        facts["pid"] = pid
    if tid > 0:
        facts["tid"] = tid
    if entry is not None:
        facts |= {name: value for name, value in entry._asdict().items() if value is not None}
    return Owner(**facts)
