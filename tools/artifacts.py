"""``kcap artifacts``: the files, memory and programs that a capture holds beside its events."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack

import click

from kcap.errors import KcapError
from kcap.tools import artifact_content, artifact_lines, common, logs, output
from kcap.tools.artifact_choice import (
    Options,
    by_content,
    choice_options,
    no_such,
    opened_artifacts,
    the_one,
)
from kcap.tools.cli import Verb, VerbGroup

if TYPE_CHECKING:
    from kcap.format.blobs import Manifest
    from kcap.format.reader import CaptureReader
    from kcap.model.side import Loss
    from kcap.writers.artifacts import Layout, Report

_LOSSY: Final = 3


@click.group(
    "artifacts",
    cls=VerbGroup,
    examples=(
        "kcap artifacts list host.kcap",
        "kcap artifacts list host.kcap --kind exec --process 'nginx*'",
        "kcap artifacts show host.kcap 3c5fe2ab9d01",
        "kcap artifacts extract host.kcap -o files",
        "kcap artifacts extract host.kcap 3c5fe2ab9d01 -o - | file -",
    ),
)
def command() -> None:
    """Look at the artifacts of a capture, and take them out of it.

    Artifacts are what was recorded beside the events: executed and written files, what went
    through pipes and sockets, memory, kernel modules, BPF programs. Each belongs to the event for
    which it was taken. An output directory of Tracee is a capture, too.
    """


@command.command(
    "list",
    cls=Verb,
    examples=(
        "kcap artifacts list host.kcap",
        "kcap artifacts list host.kcap --path '/tmp/*' --json",
        "kcap artifacts list host.kcap -w \"ps.name = 'bash'\"",
    ),
)
@click.argument("capture")
@choice_options
@click.option("--json", "as_json", is_flag=True, help="All that is known of each, a line each.")
@click.pass_context
def list_(ctx: click.Context, capture: str, as_json: bool, **options: Unpack[Options]) -> None:
    """List the artifacts of CAPTURE: name, kind, size, whose it is, where it was.

    The name is the start of its content's SHA-256; where a part of the content is missing, it
    begins with m. The last column is the path. A terminal shows the columns that fit. Exit code 3:
    a part of one is missing or damaged.
    """
    from kcap.writers.artifacts import described

    terminal = sys.stdout.isatty()
    table = artifact_lines.Table(shutil.get_terminal_size().columns if terminal else None)
    with opened_artifacts(capture, options) as asked:
        count, size, lacking = 0, 0, 0
        for manifest in asked.manifests():
            if as_json:
                click.echo(_json(described(manifest)))
            else:
                if not count:
                    click.echo(table.head)
                click.echo(table.row(manifest))
            count += 1
            size += manifest.size
            lacking += not manifest.complete
        losses = asked.losses + asked.reader.blobs.losses
    if not count:
        _doubt(options["kind"])
    missing = f", {lacking:,} not complete" if lacking else ""
    more = "; a wider terminal, or --json, tells more" if table.narrow and count else ""
    size_text = common.size_text(size)
    logs.tell(f"kcap: {common.counted(count, 'artifact')}{missing}, {size_text}{more}")
    _leave(ctx, losses, capture, lacking=bool(lacking))


@command.command(
    "show",
    cls=Verb,
    examples=(
        "kcap artifacts show host.kcap 3c5fe2ab9d01",
        "kcap artifacts show host.kcap --path '*/sshd' --json",
    ),
)
@click.argument("capture")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@choice_options
@click.option("--json", "as_json", is_flag=True, help="The same as JSON, a line each.")
@click.pass_context
def show(
    ctx: click.Context,
    capture: str,
    ids: tuple[str, ...],
    as_json: bool,
    **options: Unpack[Options],
) -> None:
    """Print all that CAPTURE says of artifacts: hashes, ranges that are missing, process, event.

    Of a program there is also what its content says: sections, imports, version, and how even its
    bytes are (entropy, 0 to 8). ID is a name that 'list' prints, or the start of one.
    """
    from kcap.model.text import printable
    from kcap.writers.artifacts import described

    with opened_artifacts(capture, options, ids) as asked:
        found = by_content(asked.manifests())
        if not found:
            raise no_such(capture)
        first = True
        for same in found.values():
            content = artifact_content.described(asked.reader, same[0])
            for manifest in same:
                if as_json:
                    click.echo(_json({**described(manifest), "content": content}))
                    continue
                if not first:
                    click.echo()
                first = False
                lines = [*artifact_lines.lines(manifest), *artifact_content.lines(content)]
                click.echo("\n".join(map(printable, lines)))
        losses = asked.losses + asked.reader.blobs.losses
    lacking = any(not same[0].complete for same in found.values())
    _leave(ctx, losses, capture, lacking=lacking)


@command.command(
    "extract",
    cls=Verb,
    examples=(
        "kcap artifacts extract host.kcap -o files",
        "kcap artifacts extract host.kcap --kind exec --process bash -o files",
        "kcap artifacts extract host.kcap --layout tracee -o tracee-output",
        "kcap artifacts extract host.kcap 3c5fe2ab9d01 -o - | sha256sum",
    ),
)
@click.argument("capture")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@choice_options
@click.option(
    "-o", "--output", "target", required=True, help="The folder; - prints one artifact's bytes."
)
@click.option(
    "--layout",
    type=click.Choice(["flat", "tracee"]),
    default="flat",
    show_default=True,
    help="flat: KIND.ID.NAME; tracee: as Tracee lays out its output directory.",
)
@click.option("--incomplete", is_flag=True, help="Those too that lack a part: zeros stand there.")
@click.option("--executable", is_flag=True, help="Let the owner execute what was executable.")
@click.option("--force", is_flag=True, help="Replace files of the same name.")
@click.option(
    "--max-size",
    type=common.Size(),
    help="Write at most so much, holes not counted; default: 1 TiB.",
)
@click.pass_context
def extract(
    ctx: click.Context,
    capture: str,
    ids: tuple[str, ...],
    target: str,
    layout: Layout,
    incomplete: bool,
    executable: bool,
    force: bool,
    max_size: int | None,
    **options: Unpack[Options],
) -> None:
    """Write artifacts of CAPTURE into a folder, byte for byte.

    Each file is compared with its SHA-256 while it is written, and holes stay holes. Nothing is
    written outside the folder, no link in it is followed, no file in it is overwritten; files are
    private, and not executable. MANIFEST.jsonl says of each artifact what it is and which file
    holds it: names in a capture are whatever was recorded, names of files are safe ones. Exit
    code 3: something is not there, or damaged.
    """
    from kcap.writers import artifacts

    with opened_artifacts(capture, options, ids) as asked:
        if target == "-":
            lacking = _print(asked.reader, the_one(asked, capture), incomplete=incomplete)
            losses = asked.losses + asked.reader.blobs.losses
            _leave(ctx, losses, capture, lacking=lacking)
        if ids and next(asked.manifests(), None) is None:
            raise no_such(capture)
        report = artifacts.extract(
            asked.reader,
            target,
            layout=layout,
            chosen=asked.choice,
            incomplete=incomplete,
            executable=executable,
            force=force,
            bytes_max=artifacts.BYTES_MAX if max_size is None else max_size,
        )
    _tell(report, target)
    _leave(ctx, asked.losses + report.losses, capture, lacking=bool(report.left))


def _doubt(kinds: tuple[str, ...]) -> None:
    """Say where a kind may be a slip: captures may have others than those that kcap knows."""
    from kcap.model.artifact_details import KINDS

    for kind in kinds:
        if kind not in KINDS:
            logs.tell(f"kcap: no artifact is of the kind {kind!r}; kcap keeps {', '.join(KINDS)}")


def _print(reader: CaptureReader, manifest: Manifest, *, incomplete: bool) -> bool:
    """Print the bytes of an artifact; True where some of them are missing."""
    if not (manifest.complete or incomplete):
        raise KcapError(
            f"{manifest.title} is not complete",
            file=reader.file,
            hint="--incomplete prints it with zeros for what is missing",
        )
    digest = hashlib.sha256()
    with output.opened("-") as stream:
        for part in reader.blob(manifest, lenient=incomplete):
            if manifest.sha256 is not None:
                digest.update(part)
            stream.write(part)
    if manifest.sha256 not in {None, digest.hexdigest()} and not reader.blobs.losses:
        from kcap.model.side import Loss

        what = f"the SHA-256 of {manifest.title} is not that of its content"
        reader.blobs.losses.append(Loss("damaged", 0, what))
    return not manifest.complete


def _tell(report: Report, target: str) -> None:
    from kcap.model.text import printable

    left = f"; {report.left:,} not complete, --incomplete takes them too" if report.left else ""
    logs.tell(
        f"kcap: {common.counted(report.artifacts, 'artifact')} in "
        f"{common.counted(report.files, 'file')}, {common.size_text(report.bytes)}: "
        f"{printable(target)}{left}"
    )


def _leave(ctx: click.Context, losses: list[Loss], capture: str, *, lacking: bool) -> None:
    """Say what was lost, and leave with the exit code for it."""
    common.report_losses(losses, capture)
    ctx.exit(_LOSSY if losses or lacking else 0)


def _json(value: Mapping[str, Any]) -> str:
    from kcap.model.text import json_safe

    return json_safe(json.dumps(value, ensure_ascii=False))
