"""Artifacts and packets among the events that a recording chooses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kcap.model.artifact import Artifact
from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import I64_MIN
from kcap.model.naming import argument
from kcap.model.side import EventLoss, Loss
from kcap.readers.live.artifacts.left_out import (
    LEFT_OUT_BYTES,
    LeftOut,
    executed_again,
    not_held,
)
from kcap.replay.needed import ROW, numbered
from kcap.replay.pipeline import FILTERED

if TYPE_CHECKING:
    from kcap.model.side import Side
    from kcap.replay.pipeline import Stage

PACKET: Final = "net_packet"
_EXECUTED: Final = argument("exe_sha256")
_PROCESSES: Final = 65_536
"""Processes of which it is remembered that they had an event that is kept."""

_OF_FILES: Final = frozenset({"exec", "write", "read"})
_LEAST_BYTES: Final = 4096


class WithArtifacts:
    """A stage around those that choose events: for what they don't know.

    An artifact belongs to an event, and stays where that does; one of a file whose event is not
    known stays where its process had an event that does. What the kernel took by the scope itself,
    as streams, stays. Packets are all kept, or chosen as events are.

    Args:
        stages: Choose events; none for all.
        packets: What packets must pass, too; None where none are left out.
        alone: Keep no events, but artifacts and packets.
        tracked: Who descends from whom decides: a packet, which may come behind the end of its
            process, is that of a process that had an event which is kept.
        held_bytes: Of executed files that are left out, for the first execution that is kept.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        packets: Sequence[Stage] | None,
        *,
        alone: bool,
        tracked: bool = False,
        held_bytes: int = LEFT_OUT_BYTES,
    ) -> None:
        self._tracked = tracked
        self._stages = stages
        self._packet_stages = packets
        self._alone = alone
        self._belonging = Belonging() if stages else None
        self._again = Again(held_bytes) if stages else None
        self.artifacts = 0
        """Artifacts that were kept so far."""
        self.artifact_bytes = 0
        """Their bytes, holes and what is missing not counted."""
        self._dropped = self._rows = 0
        self._waiting: list[Side] = []

    def process(self, batch: Batch) -> Batch:
        """See `kcap.replay.pipeline.Stage`."""
        if batch.before:
            for stage in self._packet_stages or ():
                stage.process(EMPTY.with_before(batch.before))  # which sources there are
        packets = packets_in(batch)
        if not packets.any():
            chosen = self._events(batch)
        elif packets.all():
            chosen = self._packets(batch)
        else:
            marked = numbered(batch)
            parts = (
                self._events(marked.take(_rows(~packets))),
                self._packets(marked.take(_rows(packets)).with_before(())),
            )
            kept = np.sort(np.concatenate([part.numpy(ROW, 0) for part in parts]))
            chosen = batch.take(kept.astype(np.int32)) if len(kept) else batch.slice(0, 0)
        told = [each for each in map(self._side, self._due(batch)) if each]
        if self._again is not None:
            found = self._again.found(more=bool(self._waiting))
            told += [self._counted(s) if isinstance(s, Artifact) else s for s in found]
        return chosen.with_before(told)

    def left_out(self) -> list[Loss]:
        """What was left out since this was asked last, beside what the stages left out."""
        found = []
        if self._rows:
            found.append(Loss(FILTERED, self._rows, "events: only artifacts are recorded"))
        if self._dropped:
            those = "1 artifact" if self._dropped == 1 else f"{self._dropped:,} artifacts"
            found.append(Loss(FILTERED, None, f"left out: {those} of what is not recorded"))
        self._dropped = self._rows = 0
        return found

    def _due(self, batch: Batch) -> Sequence[Side]:
        """What stands beside events that came by now; alerts cut a batch, and that is before it."""
        if self._belonging is None:
            return batch.before
        self._belonging.see(batch)
        sides, self._waiting = [*self._waiting, *batch.before], []
        due: list[Side] = []
        for side in sides:
            (self._waiting if self._belonging.awaits(side) else due).append(side)
        return due

    def _events(self, batch: Batch) -> Batch:
        chosen = batch
        for stage in self._stages:
            chosen = stage.process(chosen)
        if self._belonging is not None:
            self._belonging.note(chosen)
        if self._again is not None:
            self._again.ask(chosen)
        if self._alone:
            self._rows += chosen.rows
            return chosen.slice(0, 0)
        return chosen

    def _packets(self, batch: Batch) -> Batch:
        if self._packet_stages is None:
            return batch
        ours = np.zeros(batch.rows, np.bool_)
        if self._tracked and self._belonging is not None:
            ours = self._belonging.processes_in(batch)
        marked = numbered(batch)
        others = marked.take(_rows(~ours)) if ours.any() else marked
        for stage in self._stages:
            others = stage.process(others)
        kept = np.sort(np.concatenate([np.flatnonzero(ours), others.numpy(ROW, 0)]))
        chosen = batch.take(kept.astype(np.int32)) if len(kept) else batch.slice(0, 0)
        for stage in self._packet_stages:
            chosen = stage.process(chosen)
        return chosen

    def _side(self, side: Side) -> Side | None:
        if isinstance(side, EventLoss):
            if self._belonging is None:
                return side
            kept = self._belonging.kept(side.origin, side.ords)
            return replace(side, count=len(kept), ords=kept) if kept else None
        if not isinstance(side, Artifact):
            return side
        if self._belonging is not None and not self._belonging.has(side):
            self._dropped += 1
            if self._again is not None:
                self._again.leave_out(side)
            return None
        if self._again is not None:
            self._again.keep(side)
        return self._counted(side)

    def _counted(self, side: Artifact) -> Artifact:
        self.artifacts += 1
        self.artifact_bytes += side.content.nbytes
        # No event of the capture is its event then; what is known of it stays.
        return replace(side, origin=None, ord=None) if self._alone else side


class Again:
    """Executed files that were left out, for the first execution of them that is kept.

    Readers give each file once: it may have been somebody's who is not recorded.

    Args:
        bytes_max: Content that is held.
    """

    def __init__(self, bytes_max: int) -> None:
        self._held = LeftOut[Artifact](bytes_max)
        self._asked: dict[str, tuple[Batch, int]] = {}

    def ask(self, batch: Batch) -> None:
        """Take note of executions that are kept.

        Args:
            batch: Events that are kept.
        """
        column = batch.get(_EXECUTED)
        if column is None or not batch.rows:
            return
        entries = column.values.dictionary.to_pylist()
        codes, firsts = np.unique(column.codes(), return_index=True)
        rows = firsts if column.rows is None else column.rows[firsts]
        for code, row in zip(codes.tolist(), rows.tolist(), strict=True):
            if entries[code]:
                self._asked.setdefault(entries[code], (batch, row))

    def leave_out(self, artifact: Artifact) -> None:
        """Hold an artifact that is left out, where it is an executed file.

        Args:
            artifact: The artifact.
        """
        sha256 = artifact.details.get("sha256")
        if artifact.kind == "exec" and sha256:
            self._held.put(sha256, artifact, artifact.content)

    def keep(self, artifact: Artifact) -> None:
        """Take note that an artifact is kept: of its content nothing more is needed.

        Args:
            artifact: The artifact.
        """
        sha256 = artifact.details.get("sha256")
        if artifact.kind == "exec" and sha256:
            self._held.drop(sha256)
            self._asked.pop(sha256, None)

    def found(self, *, more: bool) -> Iterator[Artifact | EventLoss]:
        """What executions need that were noted.

        Args:
            more: Artifacts of these events may come later: alerts cut batches.

        Yields:
            The files, as of these executions; a loss for each that is held no more.
        """
        for sha256, (batch, row) in list(self._asked.items()):
            if sha256 not in self._held:
                continue
            del self._asked[sha256]
            (event,) = batch.take(np.array([row], np.int32)).to_pylist()
            held = self._held.take(sha256)
            if held is not None:
                artifact, content = held
                yield executed_again(replace(artifact, content=content), event)
            elif self._held.is_gone(sha256):
                source = event.get("source")
                yield not_held(event, source if isinstance(source, str) else None)
        if not more:
            self._asked.clear()


class Belonging:
    """Which events were kept: a bit for each, so that what comes later finds its event."""

    def __init__(self) -> None:
        self._bits: dict[str, npt.NDArray[np.uint8]] = {}
        self._seen: dict[str, int] = {}
        self._processes: OrderedDict[int, int] = OrderedDict()

    def see(self, batch: Batch) -> None:
        """Take note of events that came, whether they are kept or not.

        Args:
            batch: The events.
        """
        for origin, ords in _places(batch):
            self._seen[origin] = max(self._seen.get(origin, -1), int(ords.max()))

    def awaits(self, side: Side) -> bool:
        """Whether the event that something belongs to is still to come.

        Args:
            side: The thing.

        Returns:
            True where it is.
        """
        if isinstance(side, EventLoss):
            last = max(side.ords, default=-1)
        elif isinstance(side, Artifact) and side.ord is not None:
            last = side.ord
        else:
            return False
        return side.origin is not None and last > self._seen.get(side.origin, -1)

    def note(self, batch: Batch) -> None:
        """Take note of events that are kept.

        Args:
            batch: The events.
        """
        for origin, ords in _places(batch):
            self._set(origin, ords)
        for pid, start_ns in np.unique(_processes(batch), axis=0).tolist():
            self._processes[pid] = start_ns
            self._processes.move_to_end(pid)
        while len(self._processes) > _PROCESSES:
            self._processes.popitem(last=False)

    def processes_in(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Which rows are of a process that had an event which is kept.

        Args:
            batch: Events that say who did them.

        Returns:
            One a row.
        """
        each, of = np.unique(_processes(batch), axis=0, return_inverse=True)
        known = [self._processes.get(pid) == start_ns for pid, start_ns in each.tolist()]
        found: npt.NDArray[np.bool_] = np.array(known, np.bool_)[of.reshape(-1)]
        return found

    def has(self, artifact: Artifact) -> bool:
        """Whether an artifact belongs to what is kept.

        Args:
            artifact: The artifact; its event, if it has one, was noted before.

        Returns:
            True where it does.
        """
        if artifact.origin is not None and artifact.ord is not None:
            return bool(self.kept(artifact.origin, (artifact.ord,)))
        if artifact.kind in _OF_FILES and artifact.details.get("fd") is None:
            return artifact.details.get("pid") in self._processes
        return True

    def kept(self, origin: str | None, ords: Sequence[int]) -> tuple[int, ...]:
        """Which of some events are kept.

        Args:
            origin: The recording they are of.
            ords: Their places in it.

        Returns:
            The places of these.
        """
        bits = None if origin is None else self._bits.get(origin)
        if bits is None:
            return ()
        return tuple(at for at in ords if at >> 3 < len(bits) and _bit(bits, at))

    def _set(self, origin: str, ords: npt.NDArray[np.int64]) -> None:
        bits = self._bits.get(origin, np.zeros(0, np.uint8))
        needed = (int(ords.max()) >> 3) + 1
        if needed > len(bits):
            grown = np.zeros(max(needed, 2 * len(bits), _LEAST_BYTES), np.uint8)
            grown[: len(bits)] = bits
            bits = self._bits[origin] = grown
        np.bitwise_or.at(bits, ords >> 3, (1 << (ords & 7)).astype(np.uint8))


def packets_in(batch: Batch) -> npt.NDArray[np.bool_]:
    """Which rows are packets.

    Args:
        batch: Events.

    Returns:
        One a row.
    """
    found = np.zeros(batch.rows, np.bool_)
    column = batch.get("event")
    if column is None or not batch.rows:
        return found
    names = column.values.dictionary.to_pylist()
    if PACKET in names:
        mine = column.codes() == names.index(PACKET)
        found[slice(None) if column.rows is None else column.rows] = mine
    return found


def _places(batch: Batch) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Each recording that events are of, with their places in it."""
    column = batch.get("origin")
    if column is None:
        return
    ords = batch.numpy("ord", I64_MIN)
    codes = np.full(batch.rows, -1, np.int64)
    codes[slice(None) if column.rows is None else column.rows] = column.codes()
    for code, origin in enumerate(column.values.dictionary.to_pylist()):
        mine = ords[(codes == code) & (ords >= 0)]
        if len(mine):
            yield origin, mine


def _processes(batch: Batch) -> npt.NDArray[np.int64]:
    """Process id, and its start, of each row."""
    return np.stack([batch.numpy("pid", -1), batch.numpy("process_start_ns", -1)], axis=1)


def _rows(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    return np.flatnonzero(mask).astype(np.int32)


def _bit(bits: npt.NDArray[np.uint8], place: int) -> int:
    return int(bits[place >> 3]) >> (place & 7) & 1
