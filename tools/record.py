"""``kcap record``: record what happens on this host."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from kcap.tools import common, output
from kcap.tools.cli import Verb
from kcap.tools.progress import Progress

if TYPE_CHECKING:
    from kcap.format.writer import CaptureWriter
    from kcap.model.stream import LiveSource
    from kcap.replay.pipeline import Summary

CHUNK_S: Final = 5.0
"""Longest time that events wait for their chunk: what a kill -9 can cost (docs/decisions.md)."""


@dataclass
class _Limits:
    """When a recording ends by itself, and how often it closes a chunk."""

    source: LiveSource
    writer: CaptureWriter
    duration_s: float | None
    max_size: int | None

    def __post_init__(self) -> None:
        self._begun = self._flushed = time.monotonic()

    def check(self) -> None:
        """After each batch: close a chunk that waits too long, stop at a limit."""
        now = time.monotonic()
        if now - self._flushed >= CHUNK_S:
            self.writer.flush()
            self._flushed = now
        if self.duration_s is not None and now - self._begun >= self.duration_s:
            self.source.stop()
        if self.max_size is not None and self.writer.expected_bytes >= self.max_size:
            self.source.stop()


@click.command(
    "record",
    cls=Verb,
    examples=(
        "kcap record -o host.kcap",
        "kcap record -o host --duration 60 --max-size 100M",
        "ssh host kcap record -o - | tee host.kcap | kcap cat -",
    ),
)
@click.option("-o", "--output", "target", help="The capture; default HOST-TIME.kcap; - is stdout.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--duration", type=common.Duration(), help="Stop after this time: 30, 5m, 2h.")
@click.option("--count", type=click.IntRange(0), help="Stop after N events.")
@click.option("--max-size", type=common.Size(), help="Stop when the file is about this large.")
@click.pass_context
def command(
    ctx: click.Context,
    target: str | None,
    force: bool,
    duration: float | None,
    count: int | None,
    max_size: int | None,
) -> None:
    """Record the processes of this host until Ctrl-C, a signal or a limit.

    Needs root; newer kernels let any user. Events come from the kernel's process connector: fork,
    exec, exit, and changes of ids, names and sessions. What the kernel had to drop is counted,
    written into the capture, and makes the exit code 3.
    """
    from kcap import plugins
    from kcap.format.writer import CaptureWriter
    from kcap.model.text import printable
    from kcap.replay.pipeline import Pipeline
    from kcap.state import State

    source: LiveSource = plugins.load(plugins.LIVE, "proc")()
    path = output.capture_path(target) if target else _default_name()
    state = State()
    with (
        contextlib.closing(source),
        _stopping(source),
        output.opened(path, force=force) as stream,
    ):
        writer = CaptureWriter(
            stream, file=path, snapshot=state.snapshot, created_ns=time.time_ns()
        )
        limits = _Limits(source, writer, duration, max_size)
        with Progress(lambda: writer.bytes_written) as progress:

            def after_batch(summary: Summary) -> bool:
                limits.check()
                return progress.update(summary)

            summary = Pipeline(
                source, [writer], state=state, resolve=True, limit=count, after_batch=after_batch
            ).run()
    lost = sum(summary.lost().values())
    size = common.size_text(writer.bytes_written)
    click.echo(
        f"kcap: {summary.events_out:,} events, {size}, {lost:,} lost, "
        f"exit code {summary.exit_code}: {printable(path)}",
        err=True,
    )
    common.finish(ctx, summary, source.info.file)


@contextlib.contextmanager
def _stopping(source: LiveSource) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal end it in order: drain, last chunk, footer."""
    wanted = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
    before = {number: signal.signal(number, lambda *_: source.stop()) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _default_name() -> str:
    host = re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname()) or "host"
    return f"{host}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.kcap"
