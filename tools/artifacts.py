"""``kcap artifacts``: the files, memory and programs that a capture holds beside its events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack, cast

import click

from kcap.errors import KcapError
from kcap.tools import artifact_content, common, logs, output
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
_COLUMNS: Final = (
    ("ID", 12),
    ("KIND", 6),
    ("SIZE", 10),
    ("STATE", 10),
    ("TIME", 23),
    ("PROCESS", 15),
    ("PID", 7),
    ("CONTAINER", 12),
    ("EVENT", 17),
)
_MOST_SHOWN: Final = 20


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
    begins with m. The last column is the path. Exit code 3: a part of one is missing or damaged.
    """
    from kcap.writers.artifacts import described

    with opened_artifacts(capture, options) as asked:
        count, size, lacking = 0, 0, 0
        for manifest in asked.manifests():
            if as_json:
                click.echo(_json(described(manifest)))
            else:
                if not count:
                    click.echo("  ".join(f"{n:<{w}}" for n, w in _COLUMNS) + "  PATH")
                click.echo(_row(manifest))
            count += 1
            size += manifest.size
            lacking += not manifest.complete
        losses = asked.losses + asked.reader.blobs.losses
    missing = f", {lacking:,} not complete" if lacking else ""
    logs.tell(f"kcap: {common.counted(count, 'artifact')}{missing}, {common.size_text(size)}")
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
                lines = [*_shown(manifest), *artifact_content.lines(content)]
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


def _row(manifest: Manifest) -> str:
    """An artifact in a line."""
    from kcap.model.text import printable
    from kcap.writers.artifacts_names import artifact_id, kind_of

    details = manifest.details
    time_ns, pid = details.get("time_ns"), details.get("pid")
    when = common.utc(cast("int", time_ns)) if _is_time(time_ns) else "-"
    event = "-" if manifest.ord is None else f"{(manifest.origin or '-')[:8]}:{manifest.ord}"
    cells = (
        artifact_id(manifest),
        kind_of(manifest),
        common.size_text(manifest.size),
        "complete" if manifest.complete else "incomplete",
        when,
        str(details.get("process_name") or "-"),
        str(pid) if type(pid) is int else "-",
        str(details.get("container_id") or "-"),
        event,
    )
    told = [
        f"{printable(cell)[:width]:<{width}}"
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
    ]
    return "  ".join([*told, printable(manifest.path or str(details.get("name") or "-"))])


def _is_time(value: object) -> bool:
    """Whether a detail is a time that can be told."""
    return type(value) is int and 0 <= value < 1 << 63


def _shown(manifest: Manifest) -> Iterator[str]:
    """All that is known of an artifact, for people; not yet safe to print."""
    from kcap.writers.artifacts import described

    told = described(manifest)
    details = cast("dict[str, Any]", told.pop("details"))
    missing = told.pop("missing")
    for name, value in told.items():
        if value is not None and name not in details:
            yield f"{name:<14} {_spelled(name, value)}"
    for name in sorted(details):
        yield f"{name:<14} {_spelled(name, details[name])}"
    for gap in missing[:_MOST_SHOWN]:
        end = gap["offset"] + gap["length"] - 1
        yield f"{'missing':<14} bytes {gap['offset']} to {end}: {gap['reason']}"
    if len(missing) > _MOST_SHOWN:
        yield f"{'missing':<14} and more ranges; --json lists a hundred"


def _spelled(name: str, value: object) -> str:
    """A value for people."""
    if name.endswith("_ns") and _is_time(value):
        return common.utc(cast("int", value))
    if name == "mode" and type(value) is int:
        return f"{value:#o}"
    if name in {"size", "missing_bytes", "hole_bytes"}:
        return f"{value:,} bytes"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
