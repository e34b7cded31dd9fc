"""What import and merge share: inputs become one capture."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict

import click

from kcap.tools import common, logs, output
from kcap.tools.inputs import Announced, Inputs
from kcap.tools.progress import Progress

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Stage, Summary
    from kcap.state import State


class Writing(TypedDict):
    """How a capture is written."""

    chunk_events: int
    level: int
    canonical: bool


def combine(
    ctx: click.Context,
    captures: Sequence[str],
    target: str,
    writing: Writing,
    *,
    force: bool,
    lenient: bool,
    raw_pairs: bool,
    stages: Sequence[Stage] = (),
    events: str | None = None,
) -> None:
    """Write inputs as one capture, say so, and leave with the run's exit code.

    Args:
        ctx: The verb's context.
        captures: The inputs as the user named them.
        target: The capture to write.
        writing: How it is written.
        force: Replace an existing one.
        lenient: Go on past bad input.
        raw_pairs: Keep the enter and the exit of a call as two events.
        stages: What chooses among the events.
        events: The file with the events of an input that is a directory.
    """
    from kcap.model.text import printable

    check_once(captures)
    path = output.capture_path(target)
    with contextlib.ExitStack() as stack:
        inputs = Inputs(captures, stack, lenient=lenient, raw_pairs=raw_pairs, events=events)
        _warn_of_copies(inputs.sources)
        with output.opened(path, force=force) as stream:
            summary, sink = _write(inputs, stream, path, writing, stages)
    size = common.size_text(sink.bytes_written)
    logs.tell(f"kcap: sha256 {sink.file_hash}")
    events = common.counted(summary.events_out, "event")
    logs.tell(f"kcap: {events}, {size}: {printable(path)}")
    common.finish(ctx, summary, captures[0] if len(captures) == 1 else f"{len(captures)} inputs")


def _write(
    inputs: Inputs,
    stream: BinaryIO,
    path: str,
    writing: Writing,
    stages: Sequence[Stage],
) -> tuple[Summary, CaptureWriter]:
    """Write the inputs as one capture.

    Args:
        inputs: The inputs.
        stream: Where the capture goes.
        path: Its name.
        writing: How it is written.
        stages: What chooses among the events.

    Returns:
        What was done, and the closed writer.
    """
    from kcap.format.writer import CaptureWriter
    from kcap.replay.artifacts import Artifacts, Carrying
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.resolved import OWN
    from kcap.state import State

    state = State()
    canonical, rows = writing["canonical"], writing["chunk_events"]
    sources = sources_of(inputs, canonical=canonical)
    alone = len(sources) == 1
    source = as_one(sources, state, rows if canonical else None)
    if inputs.losses:
        source = Announced(source, inputs.losses)
    foreign = source.info.format not in OWN and len(inputs.sources) == 1
    writer = CaptureWriter(
        stream,
        file=path,
        snapshot=state.snapshot if foreign or not alone else None,
        chunk_rows=rows,
        created_ns=0 if canonical else time.time_ns(),
        level=writing["level"],
        canonical=canonical,
    )
    sink = Carrying(writer, Artifacts(inputs.sources, unnamed=True))
    with Progress(read=inputs.position) as progress:
        pipeline = Pipeline(
            source,
            [sink],
            state=state,
            resolve=foreign,
            stages=stages,
            after_batch=progress.update,
        )
        return pipeline.run(), writer


def sources_of(inputs: Inputs, *, canonical: bool) -> list[Source]:
    """The inputs, parts of one origin together.

    Args:
        inputs: The inputs.
        canonical: Nothing may show when and from where the events came.

    Returns:
        A source for each.
    """
    from kcap.replay.origins import joined
    from kcap.replay.rebatch import Reproducible

    def wrapped(source: Source) -> Source:
        source = inputs.guarded(source)
        return Reproducible(source) if canonical else source

    return joined(inputs.sources, inputs.again, wrapped)


def as_one(sources: Sequence[Source], state: State, rows: int | None) -> Source:
    """The inputs as one source.

    Args:
        sources: The inputs.
        state: The state that follows them.
        rows: Where not None, nothing may show how the events came: rows of the batches.

    Returns:
        The source.
    """
    from kcap.replay.merge import Merged
    from kcap.replay.rebatch import Rebatched
    from kcap.replay.resolved import OWN, Resolved

    if len(sources) == 1:
        return sources[0] if rows is None else Rebatched(sources[0], rows)
    own = [s if s.info.format in {*OWN, "merged"} else Resolved(s) for s in sources]
    return Merged(own, state) if rows is None else Merged(own, state, rows=rows)


def check_once(captures: Sequence[str]) -> None:
    """Refuse an input that is named twice: its events would have no identity of their own.

    Args:
        captures: The inputs as the user named them.

    Raises:
        click.UsageError: Two are the same.
    """
    seen: dict[object, str] = {}
    for name in captures:
        with contextlib.suppress(OSError):  # opening it will say what is wrong
            at = None if name == "-" else Path(name).stat()
            key = at and (at.st_dev, at.st_ino)
            if key in seen:
                raise click.UsageError(f"the same input is given twice: {seen[key]} and {name}")
            seen[key] = name


def _warn_of_copies(sources: Sequence[Source]) -> None:
    """Say so where inputs look like copies of one."""
    from kcap.format.reader import CaptureReader
    from kcap.model.text import printable

    found: dict[object, list[str]] = {}
    for source in sources:
        if isinstance(source, CaptureReader):
            footer = source.footer.totals if source.footer else {}
            key: object = (source.header.file_id, footer.get("content_hash"))
        else:
            key = tuple(s.id for s in source.info.sources) or source
        found.setdefault(key, []).append(source.info.file)
    for first, *others in found.values():
        if others:
            what = others[0] if len(others) == 1 else f"{len(others)} other inputs"
            text = f"kcap: warning: {first} and {what} look like copies; each event comes again"
            logs.tell(printable(text))
