"""A recording with artifacts in this process, while known programs run beside it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kcap.model.artifact import Artifact, Gap
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.readers.live.accompanied import Accompanied
from kcap.readers.live.artifacts.companion import ArtifactsCompanion
from kcap.readers.live.artifacts.wanted import Wanted
from kcap.readers.live.bpf.recorder import BpfRecorder

_FIELDS = (
    "event", "pid", "exe", "origin", "ord", "shape",
    "arg_pathname", "arg_exe_sha256", "arg_flags",
)  # fmt: skip
_BEGUN = 4
"""Batches after which a recorder surely sees system calls."""


class Kept(NamedTuple):
    """An artifact, and its bytes: zeros where it has none."""

    side: Artifact
    content: bytes

    @property
    def sha256(self) -> str:
        """Of the bytes."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def gaps(self) -> list[Gap]:
        """What is missing, or a hole."""
        return [part for part in self.side.content.parts() if isinstance(part, Gap)]

    @property
    def detail(self) -> dict[str, Any]:
        """Its details."""
        return dict(self.side.details)


class Recorded(NamedTuple):
    """What a recording gave."""

    artifacts: list[Kept]
    events: dict[tuple[str, int], dict[str, Any]]
    """By origin and place."""
    losses: list[Loss]

    def of(self, kind: str, *, under: Path | None = None) -> list[Kept]:
        """Artifacts of a kind, and of files below a folder."""
        return [
            kept
            for kept in self.artifacts
            if kept.side.kind == kind
            and (under is None or (kept.side.path or "").startswith(f"{under}/"))
        ]

    def event(self, kept: Kept) -> dict[str, Any]:
        """The event that an artifact belongs to."""
        assert kept.side.origin is not None
        assert kept.side.ord is not None
        return self.events[kept.side.origin, kept.side.ord]

    @property
    def reasons(self) -> list[str]:
        """Why something is missing, but for what began before the recording."""
        return [loss.reason for loss in self.losses if loss.kind != "blind"]


def _content(artifact: Artifact, most: int) -> bytes:
    out = bytearray()
    for part in artifact.content.parts():
        if len(out) > most:
            break
        out += bytes(min(part.length, most)) if isinstance(part, Gap) else part
    return bytes(out)


def record(
    wanted: Wanted,
    work: Callable[[], object],
    *,
    left_out: Sequence[str] = (),
    most: int = 1 << 27,
    see: Callable[[Batch], object] | None = None,
) -> Recorded:
    """Record while something happens.

    Args:
        wanted: The artifacts.
        work: Called in a thread when the recording has begun; other processes must do what counts.
        left_out: Paths of the recorder's.
        most: Content that is read of an artifact here.
        see: Is shown each batch.

    Returns:
        What came of it.
    """
    recorder = BpfRecorder()
    companion = ArtifactsCompanion(
        wanted, setup=recorder.setup, shared=recorder.program.maps, left_out=left_out
    )
    source = Accompanied(recorder, [companion])
    source.prepare()
    source.own((os.getpid(),))
    begun = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            assert begun.wait(60)
            work()
        except BaseException as error:  # noqa: BLE001  (told by the thread that waits)
            failed.append(error)
        finally:
            source.stop()

    thread = threading.Thread(target=run)
    thread.start()
    artifacts: list[Kept] = []
    losses: list[Loss] = []
    events: dict[tuple[str, int], dict[str, Any]] = {}
    try:
        for count, batch in enumerate(source.batches()):
            if count == _BEGUN:
                begun.set()
            if see is not None:
                see(batch)
            rows: list[dict[str, Any]] = batch.select(_FIELDS).to_pylist()
            events.update({(row["origin"], row["ord"]): row for row in rows})
            for side in batch.before:
                if isinstance(side, Artifact):
                    assert side.origin is None or (side.origin, side.ord) in events, "not earlier"
                    artifacts.append(Kept(side, _content(side, most)))
                elif isinstance(side, Loss):
                    losses.append(side)
    finally:
        begun.set()
        thread.join()
        source.close()
    if failed:
        raise failed[0]
    return Recorded(artifacts, events, losses)


def python(script: str, *arguments: object) -> str:
    """Run Python in a process of its own.

    Args:
        script: The program.
        arguments: What it gets.

    Returns:
        What it printed.
    """
    command = [sys.executable, "-S", "-E", "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
