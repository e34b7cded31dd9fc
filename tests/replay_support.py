"""Captures with many STATE records, and what a replay of a part of them knows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from support import opened

from kcap import limits
from kcap.format.reader import CaptureReader
from kcap.format.writer import CaptureWriter
from kcap.model.batch import Batch
from kcap.model.side import Side, Snapshot
from kcap.model.stream import Source, StreamInfo
from kcap.opening import open_source
from kcap.replay.pipeline import Pipeline, Stage, Summary
from kcap.replay.seek import Seeking
from kcap.replay.span import Span
from kcap.state import State
from kcap.state.kin import Kin
from kcap.writers.jsonl import JsonLines

KNOWN = (
    "state:process.name",
    "state:process.cmdline",
    "state:process.start_ns",
    "state:parent.name",
    "state:ancestors.name",
    "state:ancestors.pid",
)
"""What the state says of each event's process."""


class Told:
    """A stage that adds to each event what the state knows of its process and its ancestors."""

    def __init__(self) -> None:
        self._kin = Kin(KNOWN)

    def process(self, batch: Batch) -> Batch:
        return self._kin.update(batch)


class Cut:
    """A source whose batches are cut anew: after these many rows, again and again."""

    def __init__(self, source: Source, sizes: Sequence[int]) -> None:
        self.source = source
        self._sizes = sizes

    @property
    def info(self) -> StreamInfo:
        return self.source.info

    def batches(self) -> Iterator[Batch]:
        count = 0
        for batch in self.source.batches():
            at = 0
            while at < batch.rows or not batch.rows:
                size = self._sizes[count % len(self._sizes)]
                count += 1
                yield batch.slice(at, at + size)
                at += size
                if not batch.rows:
                    break

    def close(self) -> None:
        self.source.close()


class Fewer(Cut):
    """A source whose snapshots have few handles: thousands of them are slow to put back."""

    def batches(self) -> Iterator[Batch]:
        for batch in super().batches():
            yield batch.with_before([self._fewer(side) for side in batch.before])

    @staticmethod
    def _fewer(side: Side) -> Side:
        if not isinstance(side, Snapshot) or "handles" not in side.tables:
            return side
        return Snapshot({**side.tables, "handles": side.tables["handles"].slice(0, 500)})


class Run:
    """A replay: the lines it gives, and all that is known in the end."""

    def __init__(
        self,
        source: Source,
        span: Span | None = None,
        *,
        state: State | None = None,
        seeking: type[Seeking] = Seeking,
        stages: Sequence[Stage] = (),
    ) -> None:
        self.state = State() if state is None else state
        self.source = seeking(source, Span() if span is None else span, self.state)
        out = io.BytesIO()
        self.summary: Summary = Pipeline(
            self.source,
            [JsonLines(out, state=True)],
            state=self.state,
            resolve=source.info.format not in {"arrow", "kcap"},
            stages=[Told(), *stages],
        ).run()
        source.close()
        self.lines = out.getvalue().splitlines(keepends=True)

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """What is known: processes, threads, descriptors, users, handles."""
        return {n: t.to_pylist() for n, t in self.state.snapshot().tables.items()}


def with_states(
    path: Path, chunk_rows: int, every: int = 2, *, closed: bool = True, span: Span | None = None
) -> bytes:
    """A capture of a file's events in small chunks, and a STATE record behind every few."""
    out = io.BytesIO()
    state = State()
    source = open_source(path, resolve=False)
    with mock.patch.multiple(limits, STATE_SHARE=1000.0, STATE_CHUNKS=every):
        writer = CaptureWriter(out, chunk_rows=chunk_rows, snapshot=state.snapshot)
        Pipeline(
            Fewer(Seeking(source, Span() if span is None else span, state), [chunk_rows]),
            [writer if closed else _Open(writer)],
            state=state,
            resolve=source.info.format != "kcap",
        ).run()
    source.close()
    return out.getvalue()


class _Open:
    """A writer that is never closed, as of a recorder that was killed."""

    def __init__(self, writer: CaptureWriter) -> None:
        self._writer = writer

    def write(self, batch: Batch) -> None:
        self._writer.write(batch)

    def close(self) -> None:
        self._writer.flush()


def reader(data: bytes) -> CaptureReader:
    """A capture in memory."""
    return opened(data)


def places(data: bytes) -> list[int]:
    """How many rows stand before each STATE record of a capture."""
    found, count = [], 0
    for batch in reader(data).batches():
        found += [count] * sum(isinstance(side, Snapshot) for side in batch.before)
        count += batch.rows
    return found
