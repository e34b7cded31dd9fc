"""A live source that is made of a capture, and recordings of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from badinput_support import ROOT
from support import opened

from kcap.format.reader import CaptureReader
from kcap.model.batch import EMPTY, Batch, concat
from kcap.model.side import Snapshot
from kcap.model.stream import StreamInfo
from kcap.replay.pipeline import Pipeline, Summary
from kcap.state import State
from kcap.tools.durability import Durability
from kcap.tools.outputs import LocalOutputs, Outputs
from kcap.tools.parts import Template
from kcap.tools.recorded import Recorded, Rotated, Rotation
from kcap.tools.series import Series

WHOLE = Rotation()
UNSYNCED = Durability(synced=False)


class MadeSource:
    """A live source of batches that are there.

    Args:
        batches: The batches.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._stopped = False
        self.given = 0
        """Events so far."""

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return StreamInfo("made", "made", live=True)

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for batch in self._batches:
            if self._stopped:
                return
            self.given += batch.rows
            yield batch

    def stop(self) -> None:
        """See `LiveSource.stop`."""
        self._stopped = True

    def close(self) -> None:
        """See `Source.close`."""


def recorded_events() -> Batch:
    """The events of a recording that kcap made, with its sources and the host before them."""
    with (ROOT / "fixtures" / "first.kcap").open("rb") as stream:
        batches = list(CaptureReader(stream, "first.kcap").batches())
    sides = [s for b in batches for s in b.before]
    return concat([b.with_before(()) for b in batches]).with_before(sides)


def cut(batch: Batch, lengths: Sequence[int]) -> list[Batch]:
    """A batch in pieces; the last has what is left."""
    pieces, at = [], 0
    for length in lengths:
        stop = min(batch.rows, at + length)
        piece = batch.slice(at, stop)
        pieces.append(piece if not at else piece.with_before(()))
        at = stop
    pieces.append(batch.slice(at, batch.rows).with_before(() if at else batch.before))
    return [EMPTY.with_before(batch.before), *[p.with_before(()) for p in pieces]]


def record(
    source: MadeSource,
    sink: Recorded,
    state: State,
    after: Callable[[Summary], None] = lambda _: None,
    now_s: Callable[[], float] = lambda: 0.0,
) -> Summary:
    """Send what a source gives to a sink, as a recording does."""

    def check(summary: Summary) -> bool:
        after(summary)
        sink.check(now_s())
        if sink.full:
            source.stop()
        return False

    return Pipeline(source, [sink], state=state, resolve=True, after_batch=check).run()


def rotated(folder: Path, state: State, rotation: Rotation = WHOLE, **options: Any) -> Rotated:
    """A recording into parts in a folder, ``p-1.kcap`` and so on."""
    usual = {"writing": {}, "durable": UNSYNCED}
    found = series(folder, rotation.keep, options.pop("outputs", None))
    return Rotated(found, state, rotation, now_s=0.0, **{**usual, **options})


def series(folder: Path, keep: int | None = None, outputs: Outputs | None = None) -> Series:
    """The files of recordings into a folder."""
    template = Template(str(folder / "p-{n}.kcap"), by=False, timed=True)
    existing = [(number, str(path)) for number, path in template.numbered()]
    return Series(template, existing, outputs or LocalOutputs(synced=False), keep)


def parts(folder: Path) -> list[Path]:
    """The parts in a folder, in order of number."""
    return [path for _, path in Template(str(folder / "p-{n}.kcap"), by=False).numbered()]


def start_of(path: Path) -> Snapshot:
    """The state at the start of a capture."""
    for batch in opened(path.read_bytes()).batches():
        for side in batch.before:
            if isinstance(side, Snapshot):
                return side
        assert not batch.rows, "events before the state"
    raise AssertionError("no state")
