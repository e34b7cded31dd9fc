"""What the footer of a capture says: counted while it is written, and again by verify."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.format import payloads, record, schema
from kcap.format.chunk import Bounds
from kcap.format.chunk_index import ChunkIndex
from kcap.model.side import Loss, SourceInfo

_LOSS_ENTRIES: Final = 1000
"""Different losses that a footer lists one by one."""

_REASON_CHARS: Final = 800
"""So that a footer has room for all of them, even where JSON spells every character with six."""

_TYPE_ENTRIES: Final = 10_000
"""Event names that a footer lists one by one."""

_TYPE_BYTES: Final = 4 << 20
"""JSON text of those names: one of them may be 64 KiB long."""


class Totals:
    """What the footer says; also what a CHECKPOINT says of the records since the last one."""

    def __init__(self) -> None:
        self._table = bytearray()
        self.sources: dict[str, dict[str, Any]] = {}
        self.states: list[list[int]] = []
        self.records: Counter[str] = Counter()
        self.ts = Bounds()
        self._seq = Bounds()
        self._events = 0
        self._state_rows = 0
        self._backward = 0
        self._timeless = 0
        self._types: Counter[str] = Counter()
        self._losses: dict[Loss, Loss] = {}

    def count(self, index: ChunkIndex) -> None:
        """Count the rows of a chunk.

        Args:
            index: What it holds.
        """
        self._state_rows += index.state_rows
        self._events += index.rows - index.state_rows
        self._backward += index.backward
        self._timeless += index.timeless
        self._types.update(index.types)
        self.ts = self.ts.union(index.ts)
        self._seq = self._seq.union(index.seq)

    def add_part(self, part: Mapping[str, Any]) -> None:
        """Add what a CHECKPOINT says, of whatever came before it.

        Args:
            part: Its body, as `to_json` made it; its lists and numbers are of the right types.
        """
        self._state_rows += part["state_rows"]
        self._events += part["events"]
        self._backward += part["backward_steps"]
        self._timeless += part["timeless"]
        self._types.update(part["types"])
        self.records.update(part["records"])
        self.ts = self.ts.union(Bounds(*part["ts"]) if part["ts"] else Bounds())
        self._seq = self._seq.union(Bounds(*part["seq"]) if part["seq"] else Bounds())
        self.lose(Loss.from_json(e) for e in part["loss"])
        self.sources.update((SourceInfo.from_json(s).id, s) for s in part["sources"])
        self.states += part["states"]

    def place(self, offset: int, length: int, index_offset: int, index: ChunkIndex) -> None:
        """Add a chunk, or a TAIL that no chunk supersedes, to the table.

        Args:
            offset: Of its record.
            length: Of its record.
            index_offset: Of its CHUNK_INDEX, 0 for none.
            index: What it holds.
        """
        entry = (offset, length, index_offset, index.number, index.rows, *index.ts, *index.ord)
        self._table += np.array([entry], payloads.TABLE).tobytes()

    def add_table(self, entries: npt.NDArray[np.void]) -> None:
        """Add entries that were read.

        Args:
            entries: Of type `payloads.TABLE`.
        """
        self._table += entries.tobytes()

    @property
    def chunks(self) -> int:
        """Entries in the table."""
        return len(self._table) // payloads.TABLE.itemsize

    def lose(self, losses: Iterable[Loss]) -> None:
        """Add up losses; those that differ only in count and interval are one.

        Args:
            losses: The losses.
        """
        for loss in losses:
            key = loss.like
            if key not in self._losses and len(self._losses) >= _LOSS_ENTRIES:
                key = Loss(loss.kind, None, "and others")
            known = self._losses.get(key)
            first = replace(key, count=loss.count, start_ns=loss.start_ns, end_ns=loss.end_ns)
            self._losses[key] = first if known is None else known.plus(loss)

    def record(self, kind: str) -> None:
        """Count a record.

        Args:
            kind: Name of what it holds.
        """
        self.records[kind] += 1

    def source(self, entry: Mapping[str, Any]) -> None:
        """Note what a SOURCE record says; the last one of an id counts.

        Args:
            entry: Its body.
        """
        self.sources[SourceInfo.from_json(entry).id] = dict(entry)

    def state(self, offset: int, length: int) -> None:
        """Note where a STATE record stands.

        Args:
            offset: Of the record.
            length: Of the record.
        """
        self.states.append([offset, length])

    def table(self) -> npt.NDArray[np.void]:
        """The chunk table."""
        return np.frombuffer(bytes(self._table), payloads.TABLE)

    def counted(self) -> dict[str, Any]:
        """The numbers, as plain JSON values."""
        return {
            "backward_steps": self._backward,
            "events": self._events,
            "loss": [loss.to_json() for loss in self._losses.values()],
            "seq": self._seq.pair(),
            "sources": [self.sources[i] for i in sorted(self.sources)],
            "state_rows": self._state_rows,
            "timeless": self._timeless,
            "ts": self.ts.pair(),
            "types": self._listed_types(),
        }

    def to_json(self, columns: Iterable[schema.ColumnSpec]) -> dict[str, Any]:
        """The body of a FOOTER or CHECKPOINT.

        Args:
            columns: Those described by now, or since the last CHECKPOINT.

        Returns:
            Plain JSON values.
        """
        return self.counted() | {
            "records": dict(self.records),
            "schema": [spec.to_json() for spec in columns],
            "states": self.states,
        }

    def _listed_types(self) -> dict[str, int]:
        """Event names and their counts, the rarest as one where there is no room for all."""
        ranked = sorted(self._types.items(), key=lambda item: (-item[1], item[0]))
        listed: dict[str, int] = {}
        room = _TYPE_BYTES
        for name, count in ranked[:_TYPE_ENTRIES]:
            room -= len(json.dumps(name))
            if room < 0:
                break
            listed[name] = count
        others = sum(count for _, count in ranked[len(listed) :])
        return listed | {"(others)": others} if others else listed


class Running(Totals):
    """Totals of a file that grows, and beside them those since its last CHECKPOINT."""

    def __init__(self) -> None:
        super().__init__()
        self.since = Totals()

    def count(self, index: ChunkIndex) -> None:
        """See `Totals.count`."""
        super().count(index)
        self.since.count(index)

    def place(self, offset: int, length: int, index_offset: int, index: ChunkIndex) -> None:
        """See `Totals.place`."""
        super().place(offset, length, index_offset, index)
        self.since.place(offset, length, index_offset, index)

    def lose(self, losses: Iterable[Loss]) -> None:
        """See `Totals.lose`."""
        found = list(losses)
        super().lose(found)
        self.since.lose(found)

    def record(self, kind: str) -> None:
        """See `Totals.record`; a CHECKPOINT counts neither itself nor the one before it."""
        super().record(kind)
        if kind != record.Kind.CHECKPOINT.name:
            self.since.record(kind)

    def source(self, entry: Mapping[str, Any]) -> None:
        """See `Totals.source`."""
        super().source(entry)
        self.since.source(entry)

    def state(self, offset: int, length: int) -> None:
        """See `Totals.state`."""
        super().state(offset, length)
        self.since.state(offset, length)

    def checkpoint(self) -> None:
        """Begin anew with what the next CHECKPOINT says."""
        self.since = Totals()


def brief(loss: Loss) -> Loss:
    """A loss whose texts fit a LOSS record, and a footer.

    Args:
        loss: The loss.

    Returns:
        The same with shorter texts where they are too long.
    """
    event = loss.event and loss.event[:_REASON_CHARS]
    return replace(loss, reason=loss.reason[:_REASON_CHARS], event=event)


def differing(says: Mapping[str, Any], counted: Mapping[str, Any]) -> list[str]:
    """What a FOOTER or CHECKPOINT says otherwise than the records do.

    Keys, and kinds of records, that only a later minor version knows are passed over.

    Args:
        says: Its body.
        counted: As `Totals.to_json` made it.

    Returns:
        Names of keys, in order.
    """
    return [n for n in sorted(counted) if not _agrees(_known(n, says), _known(n, counted))]


def _known(name: str, totals: Mapping[str, Any]) -> Any:  # noqa: ANN401  (plain JSON values)
    value = totals.get(name)
    if name == "records" and isinstance(value, dict):
        return {n: count for n, count in value.items() if n in record.Kind.__members__}
    return value


def _agrees(says: Any, counted: Any) -> bool:  # noqa: ANN401
    if not isinstance(counted, list) or not isinstance(says, list):
        return bool(says == counted)
    same = len(says) == len(counted)
    return same and all(_holds(a, b) for a, b in zip(says, counted, strict=True))


def _holds(says: Any, counted: Any) -> bool:  # noqa: ANN401
    """Whether an entry of a list says at least what was counted."""
    if isinstance(says, dict) and isinstance(counted, dict):
        return all(n in says and says[n] == value for n, value in counted.items())
    return bool(says == counted)
