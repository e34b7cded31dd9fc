"""What passed through pipes, sockets and descriptors, put in order: artifacts of streams.

The kernel's program gives each byte that passes a place in its stream, before it tries to hand it
over. So whatever is lost on the way leaves a gap of the right length: what was captured of a stream
and what is missing are together what passed. Nothing here needs rights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.model.artifact import Artifact, Parts
from kcap.model.tracee_names import user_device
from kcap.readers.live.artifacts import pieces, programs
from kcap.readers.live.artifacts.pieces import Layouts, Pieces
from kcap.readers.live.artifacts.stream import SCATTERED, Stream
from kcap.readers.live.artifacts.triggers import text
from kcap.readers.live.artifacts.wanted import ELF, REGULAR, Caps, FileFilter, Wanted
from kcap.readers.live.bpf import paths
from kcap.readers.live.bpf.btf import Btf
from kcap.readers.live.bpf.offsets import NOWHERE
from kcap.readers.live.bpf.records import Block

KINDS: Final = MappingProxyType(
    {pieces.READ: "read", pieces.WRITTEN: "write", pieces.PROGRAM: "bpf", pieces.IMAGE: "module"}
)
"""Kinds of artifacts by ``enum kcap_direction``."""

MEMORY_BYTES: Final = 256 << 20
"""Content that is held at most, all streams together."""

IDLE_NS: Final = 60_000_000_000
"""A stream through which nothing passed for so long is given out."""

GRACE_NS: Final = 2_000_000_000
"""So long a stream waits whose processes are gone, or whose last pieces are still under way."""

ENDED_MAX: Final = 1 << 16
"""Streams whose end is remembered, should they go on."""

NO_ROOM: Final = "no room in memory"
REASONS: Final = {
    pieces.UNREADABLE: "the memory of the process could not be read",
    pieces.BEYOND: "more than is copied of one call",
    pieces.UNSEEN: "passed outside of the memory of processes",
}
"""Why bytes are missing, by ``enum kcap_what``."""
_MAGIC: Final = b"\x7fELF"
_SMALL: Final = 128
"""What a piece takes beside its bytes, about."""


class Finished(NamedTuple):
    """An artifact, and what it can be joined to its event by."""

    artifact: Artifact
    ts_ns: int
    """CLOCK_BOOTTIME of the first call; for ``bpf`` and ``module`` that of their trigger."""
    pid: int
    tid: int
    nr: int
    """The system call."""


class Streams:
    """Puts content together.

    Args:
        types: The structures of the programs' object.
        wanted: What is to be kept.
        offset_ns: What to add to CLOCK_BOOTTIME to get CLOCK_REALTIME.
        memory_bytes: Content that is held at most.
        idle_ns: A stream through which nothing passed for so long ends.
        grace_ns: What is still under way is waited for so long.

    Raises:
        KcapError: The structures are not what this version of kcap reads.
    """

    def __init__(
        self,
        types: Btf,
        wanted: Wanted,
        *,
        offset_ns: int = 0,
        memory_bytes: int = MEMORY_BYTES,
        idle_ns: int = IDLE_NS,
        grace_ns: int = GRACE_NS,
    ) -> None:
        self._layouts: Layouts = pieces.layouts(types)
        self._filters: Mapping[int, FileFilter | None] = {
            pieces.READ: wanted.read,
            pieces.WRITTEN: wanted.write,
        }
        self._caps: Caps = wanted.caps
        self.offset_ns = offset_ns
        self._memory_bytes, self._idle_ns, self._grace_ns = memory_bytes, idle_ns, grace_ns
        self._open: dict[tuple[bytes, int], Stream] = {}
        self._latest: dict[bytes, tuple[bytes, int]] = {}
        self._of_pid: dict[int, set[tuple[bytes, int]]] = {}
        self._ended: OrderedDict[tuple[bytes, int], int] = OrderedDict()
        self._to_forget: dict[bytes, None] = {}
        self.held_bytes = 0
        """What all streams hold now."""
        self.damaged = 0
        """Records that were none, so far."""
        self.late_bytes = 0
        """Content that came when its place had been given out as a gap, so far."""
        self.left_out = 0
        """Streams that were not of the wanted files, so far."""

    def take(self, block: Block) -> None:
        """Take records from the ring. They may be released then.

        Args:
            block: What the ring gave.
        """
        found = Pieces(self._layouts, block)
        self.damaged += found.damaged
        for key, rows in found.streams():
            self._add(key, found, rows)
        for pid in found.gone():
            for name in self._of_pid.pop(pid, ()):
                if name in self._open:
                    self._open[name].pids.discard(pid)

    def finished(self, now_ns: int) -> Iterator[Finished]:
        """Give out what has ended.

        Args:
            now_ns: CLOCK_BOOTTIME.

        Yields:
            Each artifact once.
        """
        for name, stream in list(self._open.items()):
            quiet_ns = now_ns - stream.last_ns
            if stream.ended and (stream.complete or quiet_ns > self._grace_ns):
                pass
            elif quiet_ns <= (self._idle_ns if stream.pids else self._grace_ns):
                continue
            yield from self._give(name, stream)

    def rest(self) -> Iterator[Finished]:
        """Give out everything, ended or not.

        Yields:
            Each artifact once.
        """
        for name, stream in list(self._open.items()):
            yield from self._give(name, stream)

    def forgettable(self) -> bytes:
        """Streams that have ended: for `ArtifactKernel.forget`.

        Returns:
            Their keys, one behind the other; each stream once.
        """
        found = b"".join(self._to_forget)
        self._to_forget.clear()
        return found

    def settle(self, totals: bytes) -> None:
        """Learn how much passed: what was lost at the end of a stream shows by nothing else.

        Args:
            totals: What `ArtifactKernel.totals` or `ArtifactKernel.forget` gave.
        """
        key, value = self._layouts.key, self._layouts.stream
        size = key.itemsize + value.itemsize
        for at in range(0, len(totals) - size + 1, size):
            middle = at + key.itemsize
            names = totals[at:middle]
            told = np.frombuffer(totals[middle : at + size], value)[0]
            name = (names, int(told["born_ns"]))
            total = int(told["next"])
            stream = self._open.get(name)
            if stream is None:
                base = self._ended.get(name, 0)
                if total <= base:
                    continue
                stream = self._begin(name, base)
                stream.identify(np.frombuffer(names, key)[0], int(told["born_ns"]))
            stream.total = max(stream.total, total)

    # one stream

    def _begin(self, name: tuple[bytes, int], base: int) -> Stream:
        self._to_forget.pop(name[0], None)
        self._latest[name[0]] = name
        stream = self._open[name] = Stream(base, self._caps.artifact_bytes)
        return stream

    def _add(self, key: bytes, found: Pieces, rows: npt.NDArray[np.int64]) -> None:
        heads = found.heads[rows]
        name = (key, int(heads["born_ns"][0]))
        stream = self._open.get(name)
        if stream is None:
            base = self._ended.get(name, 0)
            if not (heads["offset"] + heads["length"] > base).any():
                late = heads["length"][heads["what"] == pieces.DATA]
                self.late_bytes += int(late.sum())
                return
            stream = self._begin(name, base)
        for pid in stream.see(heads):
            self._of_pid.setdefault(pid, set()).add(name)
        for first, last in [] if self._skipped(stream, heads) else _spans(heads):
            self._put(stream, found, rows[first:last], heads[first:last])
        opened = heads["what"] == pieces.OPENED
        if opened.any():
            which = int(np.flatnonzero(opened)[-1])
            stream.path = paths.from_components(found.bytes_of(rows[which : which + 1]))
            self._judge(stream)
        if (heads["what"] == pieces.ENDED).any():
            stream.ended = True
            twin = self._latest.get(_written(key, self._layouts.key))
            if twin is not None:
                self._open[twin].ended = True

    def _skipped(self, stream: Stream, heads: npt.NDArray[np.void]) -> bool:
        """Pass pieces over, all at once, where a stream has too many."""
        if not stream.crowded:
            return False
        counted = np.isin(heads["what"], (pieces.DATA, *REASONS))
        stream.skip(int(heads["length"][counted].sum(dtype=np.int64)), SCATTERED)
        stream.ended |= bool((heads["what"] == pieces.DONE).any())
        return True

    def _put(
        self,
        stream: Stream,
        found: Pieces,
        rows: npt.NDArray[np.int64],
        heads: npt.NDArray[np.void],
    ) -> None:
        """Add pieces that follow each other and are alike."""
        what, offset = int(heads["what"][0]), int(heads["offset"][0])
        length = int(heads["length"].sum(dtype=np.int64))
        if stream.crowded and (what in REASONS or what == pieces.DATA):
            stream.skip(length, SCATTERED)
        elif what in REASONS:
            if self.held_bytes + _SMALL > self._memory_bytes:
                stream.skip(length, NO_ROOM)
                return
            cost = _SMALL * stream.miss(offset, length, REASONS[what])
            stream.cost += cost
            self.held_bytes += cost
        elif what == pieces.DATA:
            cost = length + _SMALL
            if stream.ignored:
                return
            if self.held_bytes + cost > self._memory_bytes:
                stream.skip(length, NO_ROOM)
                return
            taken, late = stream.put(offset, found.bytes_of(rows))
            self.late_bytes += late
            if taken:
                stream.cost += taken + _SMALL
                self.held_bytes += taken + _SMALL
        elif what == pieces.DONE:
            stream.ended = True

    def _judge(self, stream: Stream) -> None:
        """Let go of what a stream holds whose path is not one of those wanted."""
        chosen = self._filters.get(stream.direction)
        if chosen is None or not chosen.prefixes or stream.path is None:
            return
        if not stream.path.startswith(tuple(each.encode() for each in chosen.prefixes)):
            self.held_bytes -= stream.ignore()

    def _give(self, name: tuple[bytes, int], stream: Stream) -> Iterator[Finished]:
        del self._open[name]
        if self._latest.get(name[0]) == name:
            del self._latest[name[0]]
        self.held_bytes -= stream.cost
        for pid in stream.pids:
            self._of_pid.get(pid, set()).discard(name)
        if stream.direction in (pieces.READ, pieces.WRITTEN):
            self._ended[name] = stream.total
            self._ended.move_to_end(name)
            if len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)
            self._to_forget[name[0]] = None
        if self._is_wanted(stream):
            yield self._made(stream)
        else:
            self.left_out += 1

    def _is_wanted(self, stream: Stream) -> bool:
        if stream.ignored:
            return False
        chosen = self._filters.get(stream.direction)
        if chosen is None:
            return True
        if chosen.prefixes and stream.path is None:
            return False
        if stream.file_type == "regular" and ELF in chosen.types and REGULAR not in chosen.types:
            return stream.starts_with(_MAGIC)
        return True

    def _made(self, stream: Stream) -> Finished:
        content = Parts(tuple(stream.parts()))
        details: dict[str, Any] = {
            "time_ns": stream.first_ns + self.offset_ns,
            "end_ns": stream.last_ns + self.offset_ns,
        }
        first = stream.first
        if first is not None:
            number = int(first["nr"])
            details |= {
                "pid": int(first["pid"]),
                "tid": int(first["tid"]),
                "process_name": text(first["comm"].tobytes()),
                "cgroup_id": int(first["cgroup_id"]),
                "mount_ns": int(first["mount_ns"]),
            }
            if int(first["fd"]) != NOWHERE:
                details["fd"] = int(first["fd"])
            call = programs.NAMES.get(number)
            if call is not None:
                details["syscall"] = call
        if stream.direction in (pieces.READ, pieces.WRITTEN):
            details |= {"dev": user_device(stream.dev), "inode": stream.inode}
            if stream.file_type is not None:
                details["file_type"] = stream.file_type
            if len(stream.processes) > 1:
                details["processes"] = [
                    {"pid": pid, "process_name": name} for pid, name in stream.processes.items()
                ]
        return Finished(
            Artifact(KINDS[stream.direction], content, path=_path(stream), details=details),
            stream.first_ns,
            0 if first is None else int(first["pid"]),
            0 if first is None else int(first["tid"]),
            0 if first is None else int(first["nr"]),
        )


def _path(stream: Stream) -> str | None:
    if stream.direction not in (pieces.READ, pieces.WRITTEN):
        return None
    path = stream.path
    if path is None or not paths.is_path(path):
        if stream.mode >> 12 not in paths.NUMBERED:
            return None if path is None else path.decode("utf-8", "backslashreplace")
        path = paths.numbered(stream.mode >> 12, stream.inode)
    return path.decode("utf-8", "backslashreplace")


def _written(key: bytes, layout: np.dtype[np.void]) -> bytes:
    """The key of what is written to what is read."""
    found = np.frombuffer(bytearray(key), layout)
    found["direction"] = pieces.WRITTEN
    return found.tobytes()


def _spans(heads: npt.NDArray[np.void]) -> list[tuple[int, int]]:
    """Pieces that follow each other without a gap and are alike."""
    offset, length, what = heads["offset"], heads["length"], heads["what"]
    follows = (offset[1:] == offset[:-1] + length[:-1]) & (what[1:] == what[:-1])
    cuts = [0, *(np.flatnonzero(~follows) + 1).tolist(), len(heads)]
    return list(pairwise(cuts))
