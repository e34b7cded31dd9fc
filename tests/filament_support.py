"""Events and runs for the tests of filaments."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kcap.filament import source, table
from kcap.filament.limits import Limits
from kcap.filament.source import Filament
from kcap.filament.tap import Filaments
from kcap.filter import Filter
from kcap.model.batch import Batch, Column, coded
from kcap.model.classes import TypeClass
from kcap.model.side import Side, SourceInfo

ORIGIN = "0f" * 16
START_NS = 1_700_000_000 * 10**9
SECOND_NS = 10**9
INFO = SourceInfo("netlink-proc", host="host", boot_id="boot", origin=ORIGIN)


@dataclass
class Played:
    """What came of a run."""

    text: str
    alerts: list[dict[str, Any]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """The number of events of the stream before each alert."""

    @property
    def lines(self) -> list[str]:
        """What was printed."""
        return self.text.splitlines()


def filament(
    folder: Path, body: str, name: str = "tried", arguments: Sequence[str] = ()
) -> Filament:
    """A filament out of its body."""
    path = folder / f"{name}.py"
    path.write_text(f'"""A filament of a test."""\n{body}', "utf-8")
    return source.read(path, arguments)


def events(
    times_s: Sequence[float | None],
    names: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    programs: Sequence[str] | None = None,
    before: Sequence[Side] = (INFO,),
) -> Batch:
    """Events at seconds behind `START_NS`; None for one without a time."""
    count = len(times_s)
    timed = [i for i, t in enumerate(times_s) if t is not None]
    stamps = [START_NS + round(times_s[i] * SECOND_NS) for i in timed]  # type: ignore[operator]
    numbers = np.arange(count)
    columns = {
        "ord": Column(TypeClass.I64, pa.array(numbers)),
        "pid": Column(TypeClass.I64, pa.array(numbers % 3 + 100)),
    }
    if stamps:
        rows = None if len(timed) == count else np.array(timed, np.int32)
        columns["ts"] = Column(TypeClass.I64, pa.array(stamps, pa.int64()), rows)
    texts: dict[str, Sequence[str]] = {
        "origin": [ORIGIN] * count,
        "source": [INFO.id] * count,
        "event": names or ["tick"] * count,
        "kind": kinds or ["event"] * count,
        "process_name": programs or [f"program {i % 3}" for i in range(count)],
    }
    for name, values in texts.items():
        column = coded(values, numbers)
        if column is not None:
            columns[name] = column
    return Batch(count, columns, tuple(before))


def cut(batch: Batch, sizes: Iterable[int]) -> list[Batch]:
    """A batch in parts of these sizes; the last size again and again."""
    parts, start, size = [], 0, 1
    sizes = iter(sizes)
    while start < batch.rows:
        size = next(sizes, size)
        parts.append(batch.slice(start, start + size))
        start += size
    return parts


def play(
    filaments: Filament | Sequence[Filament],
    batches: Batch | Sequence[Batch],
    *,
    where: str | None = None,
    **limits: Any,
) -> Played:
    """Run filaments over batches; what they drew and raised, also before an error of theirs."""
    several = [filaments] if isinstance(filaments, Filament) else filaments
    stream = [batches] if isinstance(batches, Batch) else batches
    out = io.BytesIO()
    played = Played("")
    chosen = None if where is None else Filter.of(where)
    try:
        tap = Filaments(several, table.Plain(out), where=chosen, limits=Limits(**limits))
        try:
            seen = 0
            for batch in stream:
                for rows, alerts in tap.see(batch):
                    played.alerts += alerts.to_pylist()
                    played.places += [seen + rows] * alerts.rows
                seen += batch.rows
            for alerts in tap.end():
                played.alerts += alerts.to_pylist()
                played.places += [seen] * alerts.rows
        finally:
            tap.close()
    except Exception as e:
        e.printed = out.getvalue().decode()  # type: ignore[attr-defined]
        raise
    played.text = out.getvalue().decode()
    return played
