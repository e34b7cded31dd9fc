"""What ``kcap export`` does for packets: one capture, or a folder of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from kcap.model.text import printable
from kcap.tools import common, logs, output
from kcap.tools.play import naming, narrowed

if TYPE_CHECKING:
    from kcap.model.stream import Source
    from kcap.replay.pipeline import Summary
    from kcap.tools.export import Options
    from kcap.writers.pcap_sink import PacketSink


def export(source: Source, form: str, options: Options) -> Summary:
    """Write the packets among a source's events.

    Args:
        source: Where events come from; not closed.
        form: ``pcapng`` or ``pcap``.
        options: The verb's options.

    Returns:
        What the run did.

    Raises:
        OutputError: The output exists, or can't be written.
    """
    from kcap.replay.pipeline import Pipeline
    from kcap.tools.progress import Progress

    with naming(options["output"]), _sink(form, options) as sink:
        read, stages = narrowed(source, form, options, tracked=False)
        with Progress() as progress:
            pipeline = Pipeline(
                read, [sink], stages=stages, limit=options["limit"], after_batch=progress.update
            )
            summary = pipeline.run()
    others = summary.events_out - sink.packets
    summary.events_out = sink.packets
    if others:
        logs.tell(f"kcap: {common.counted(others, 'event')} of other kinds than packets")
    return summary


def modes(text: str) -> list[str]:
    """What packets are to be split by.

    Args:
        text: The option, names with commas between.

    Returns:
        The names.

    Raises:
        click.UsageError: One is unknown, or there is none.
    """
    from kcap.writers.pcap_split import MODES

    asked = [name.strip() for name in text.split(",")]
    if unknown := [name for name in asked if name not in MODES]:
        known = ", ".join(MODES)
        raise click.UsageError(f"--split knows {known}, not {unknown[0]!r}")
    return asked


@contextlib.contextmanager
def _sink(form: str, options: Options) -> Iterator[PacketSink]:
    from kcap import plugins

    if options["split"] is not None:
        from kcap.tools import folder
        from kcap.writers.pcap_split import MANIFEST, PacketFolder

        asked = modes(options["split"])
        with folder.written(options["output"], force=options["force"], mark=MANIFEST) as opened:
            yield PacketFolder(opened.create, opened.append, asked, form)
        return
    writer = plugins.load(plugins.WRITERS, form)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(
            output.opened(options["output"], force=options["force"], whole=True)
        )
        yield writer(stream, _beside(stack, options))
        stream.flush()


def _beside(stack: contextlib.ExitStack, options: Options) -> Callable[[int], BinaryIO] | None:
    """What opens a file beside the output for frames of another link type; None for a pipe."""
    path = Path(options["output"])
    if options["output"] == "-" or (path.exists() and not path.is_file()):
        return None

    def opened(link_type: int) -> BinaryIO:
        # A link type that a capture made up is a number of 16 bits all the same.
        name = str(path.with_name(f"{path.stem}.link-{link_type}{path.suffix}"))
        stream = stack.enter_context(output.opened(name, force=options["force"], whole=True))
        logs.tell(f"kcap: frames that are no IP packets go to {printable(name)}")
        return stream

    return opened
