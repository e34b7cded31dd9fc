"""What the footer of a capture says: counted while it is written, and again by verify."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kcap.format import chunk, payloads, schema
from kcap.format.chunk import Bounds
from kcap.model.batch import Batch
from kcap.model.side import Loss

_LOSS_ENTRIES: Final = 1000
"""Different losses that a footer lists one by one."""

_TYPE_ENTRIES: Final = 10_000
"""Event names that a footer lists one by one."""

_TYPE_BYTES: Final = 4 << 20
"""JSON text of those names: one of them may be 64 KiB long."""


class Totals:
    """What the footer says."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, ...]] = []
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
        self._last_ts: int | None = None

    def add(self, batch: Batch) -> payloads.ChunkIndex:
        """Count the rows of a chunk.

        Args:
            batch: The chunk's rows.

        Returns:
            Its index.
        """
        times = batch.get("ts")
        stamps = np.asarray(times.values) if times is not None else np.zeros(0, np.int64)
        if self._last_ts is not None:
            stamps = np.concatenate([[self._last_ts], stamps])
        backward = int((stamps[1:] < stamps[:-1]).sum())
        if len(stamps):
            self._last_ts = int(stamps[-1])
        index = payloads.ChunkIndex(
            number=len(self.chunks),
            rows=batch.rows,
            ts=chunk.bounds(batch, "ts"),
            seq=chunk.bounds(batch, "seq"),
            ord=chunk.bounds(batch, "ord"),
            backward=backward,
            timeless=batch.rows - (0 if times is None else len(times)),
            types=counts(batch, "event"),
        )
        states = counts(batch, "kind").get("state", 0)
        self._state_rows += states
        self._events += batch.rows - states
        self._backward += backward
        self._timeless += index.timeless
        self._types.update(index.types)
        self.ts = self.ts.union(index.ts)
        self._seq = self._seq.union(index.seq)
        return index

    def place(
        self, offset: int, length: int, index_offset: int, index: payloads.ChunkIndex
    ) -> None:
        """Add a chunk to the table.

        Args:
            offset: Of the CHUNK record.
            length: Of the CHUNK record.
            index_offset: Of its CHUNK_INDEX.
            index: What it holds.
        """
        self.chunks.append(
            (offset, length, index_offset, index.number, index.rows, *index.ts, *index.ord)
        )

    def lose(self, losses: Iterable[Loss]) -> None:
        """Add up losses; those that differ only in count and interval are one.

        Args:
            losses: The losses.
        """
        for loss in losses:
            key = replace(loss, count=None, start_ns=None, end_ns=None)
            if key not in self._losses and len(self._losses) >= _LOSS_ENTRIES:
                key = Loss(loss.kind, None, "and others")
            self._losses[key] = _added(self._losses.get(key), loss, key)

    def table(self) -> npt.NDArray[np.void]:
        """The chunk table."""
        return np.array(self.chunks, payloads.TABLE)

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

    def to_json(self, known: schema.Schema) -> dict[str, Any]:
        """The footer's body.

        Args:
            known: The columns.

        Returns:
            Plain JSON values.
        """
        return self.counted() | {
            "records": dict(self.records),
            "schema": known.to_json(),
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


def _added(known: Loss | None, loss: Loss, key: Loss) -> Loss:
    """A loss added to what is known of its like."""
    if known is None:
        return replace(key, count=loss.count, start_ns=loss.start_ns, end_ns=loss.end_ns)
    unknown = known.count is None or loss.count is None
    starts = [t for t in (known.start_ns, loss.start_ns) if t is not None]
    ends = [t for t in (known.end_ns, loss.end_ns) if t is not None]
    return replace(
        key,
        count=None if unknown else (known.count or 0) + (loss.count or 0),
        start_ns=min(starts, default=None),
        end_ns=max(ends, default=None),
    )


def counts(batch: Batch, name: str) -> dict[str, int]:
    """How often each value of a text column occurs.

    Args:
        batch: The events.
        name: The column.

    Returns:
        Value to count, of the values that occur.
    """
    column = batch.get(name)
    if column is None:
        return {}
    numbers = np.bincount(column.codes(), minlength=len(column.values.dictionary))
    entries = column.values.dictionary.to_pylist()
    found: Counter[str] = Counter()
    for entry, count in zip(entries, numbers.tolist(), strict=True):
        if count:
            found[entry] += count
    return dict(found)
