"""``kcap recover``: save what is intact of a damaged capture."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import TYPE_CHECKING, BinaryIO

import click

from kcap.tools import common, output
from kcap.tools.cli import Verb

if TYPE_CHECKING:
    from kcap.format.chunk import Bounds
    from kcap.format.regions import Facts, Region, Report

_SHOWN = 20


@click.command(
    "recover",
    cls=Verb,
    examples=(
        "kcap recover damaged.kcap -o saved.kcap",
        "kcap recover --json damaged.kcap -o saved.kcap",
        "ssh host cat live.kcap | kcap recover - -o saved.kcap",
    ),
)
@click.argument("capture")
@click.option(
    "-o", "--output", "target", required=True, help="The capture to write; - is standard output."
)
@click.option("--force", is_flag=True, help="Replace an existing output file.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.pass_context
def command(ctx: click.Context, capture: str, target: str, force: bool, as_json: bool) -> None:
    """Save what is intact of CAPTURE, a damaged, cut or unfinished .kcap file.

    Every intact record is copied bit for bit, whatever is damaged around it; index and footer are
    made anew. What was lost is told by place, kind, time and position, and stays in the new
    capture for 'kcap info'. The output is read again and verified; on standard output it can't be.

    Exit code 0: the capture was undamaged, or only without its end; nothing is lost. 3: it was
    damaged; the report says whether something was lost.
    """
    from kcap.format.recover import recover
    from kcap.opening import open_stream

    common.save_memory()
    path = output.capture_path(target)
    with (
        contextlib.closing(open_stream(capture)) as stream,
        output.opened(path, force=force, whole=True) as written,
    ):
        report = recover(stream, written, file=capture, target=path)
        verified = _verified(written, path, report)
    as_text = _as_json if as_json else _as_text
    click.echo(as_text(capture, path, report, verified), err=path == "-")
    ctx.exit(0 if report.clean else 3)


def _verified(stream: BinaryIO, path: str, report: Report) -> bool:
    """Verify what was written; False where it can't be read again."""
    from kcap.errors import DamagedError
    from kcap.format.reader import CaptureReader
    from kcap.format.verify import verify

    if path == "-" or not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return False
    with os.fdopen(os.dup(stream.fileno()), "rb") as again:
        found = verify(CaptureReader(again, path))
    if not found.good or found.rows != report.rows:
        what = "; ".join(f"{f.what} at byte {f.offset}" for f in found.findings[:3])
        raise DamagedError(
            f"the recovered capture does not verify: {what or found.state}",
            file=path,
            hint="this is a defect of kcap: please report it, with the damaged capture",
        )
    return True


def _as_json(capture: str, path: str, report: Report, verified: bool) -> str:
    value = {**report.to_json(), "file": capture, "output": path, "verified": verified}
    return json.dumps(value, indent=2, sort_keys=True)


def _as_text(capture: str, path: str, report: Report, verified: bool) -> str:
    from kcap.model.text import printable

    lines = []
    if not report.clean:
        places = "place" if report.damaged == 1 else "places"
        lines.append(f"{capture}: {report.damaged:,} damaged {places}")
        for number, region in enumerate(report.regions[:_SHOWN], 1):
            lines += _region(number, region)
        if report.damaged > _SHOWN:
            lines.append(f"      and {report.damaged - _SHOWN:,} more; --json has them")
    if report.header == "rebuilt":
        lines.append("both copies of the FILE_HEADER were lost: it is made anew, without its time")
    lines += [
        f"left out by an earlier recover: {loss.reason}"
        for loss in (known.loss() for known in report.known)
        if loss is not None
    ]
    for title in report.lacking_blobs[:_SHOWN]:
        lines.append(f"blocks are missing of {title}")
    if len(report.lacking_blobs) > _SHOWN:
        lines.append(f"and {len(report.lacking_blobs) - _SHOWN:,} more blobs")
    if report.unnamed_blocks:
        lines.append(f"blob blocks that no manifest names: {report.unnamed_blocks:,}")
    lines.append(f"{path}: {_verdict(report)}")
    size = common.size_text(report.bytes_written)
    checked = "verified" if verified else "not verified: what was written can't be read again"
    lines += [f"{report.rows:,} events, {size}, {checked}", f"sha256 {report.file_hash}"]
    return "\n".join(map(printable, lines))


def _verdict(report: Report) -> str:
    """Whether something is lost, in a line."""
    if report.identical:
        return "lossless: the capture is undamaged, and this is its copy, byte for byte"
    if report.clean:
        return "lossless: the capture had no FOOTER, and has one now"
    if report.restored:
        return "nothing is lost: by its hash chain this is the capture as it was written"
    records, rows = report.lost()
    if not records:
        return "no record is lost"
    events = "unknown" if rows is None else f"{rows:,}"
    return f"lost {_counted(records)}; events lost: {events}"


def _region(number: int, region: Region) -> list[str]:
    """A place of damage: where and why, then what is lost."""
    lost = region.lost()
    records = f"record {region.first:,}"
    if region.last > region.first or len(region.missing) > 0:
        last = max([region.last, *(b for _, b in region.missing)])
        records = f"records {region.first:,} to {last:,}" if last > region.first else records
    ranges = [f"{a:,} to {b:,}" for a, b in lost["bytes"][:3]]
    place = f"bytes {', '.join(ranges)}" if ranges else "no bytes"
    lines = [f"{number:>4}  {place}, {records}: {'; '.join(region.reasons)}"]
    if region.rebuilt:
        from kcap.format.record import kind_name

        names = ", ".join(sorted({kind_name(k) for k in region.rebuilt}))
        lines.append(f"      made anew: {names}")
    if lost["records"]:
        lines.append(f"      lost: {_counted(lost['records'])}; {_rows(region)}")
    elif region.rows == 0:
        lines.append("      nothing lost")
    return lines


def _rows(region: Region) -> str:
    """The events lost in a place."""
    if region.rows == 0:
        kept = f": {region.rescued:,} are in TAIL records" if region.rescued else ""
        return f"no events{kept}"
    parts = []
    if region.rows is not None:
        parts.append(f"{region.rows:,} events")
    elif region.rows_at_most is not None:
        parts.append(f"at most {region.rows_at_most:,} events")
    else:
        parts.append("an unknown number of events")
    ords, times = region.bounds("ord"), region.bounds("ts")
    parts.append(f"ord {ords.low:,} to {ords.high:,}" if ords else _between(region, "ord"))
    parts.append(_span(times) if times else _between(region, "ts"))
    if region.rescued:
        parts.append(f"{region.rescued:,} more are in TAIL records")
    return ", ".join(p for p in parts if p)


def _span(bounds: Bounds) -> str:
    return f"{common.utc(bounds.low)} to {common.utc(bounds.high)}"


def _between(region: Region, name: str) -> str:
    """What the neighbours of lost events tell of them."""

    def edge(facts: Facts | None, *, high: bool) -> str | None:
        pair = None if facts is None else getattr(facts, name).pair()
        if pair is None:
            return None
        return common.utc(pair[high]) if name == "ts" else f"ord {pair[high]:,}"

    after, before = edge(region.after, high=True), edge(region.before, high=False)
    if after and before:
        return f"between {after} and {before}"
    return f"after {after}" if after else f"before {before}" if before else ""


def _counted(records: dict[str, int]) -> str:
    """Records by kind: ``1 CHUNK, 2 of unknown kind``."""
    names = {"unknown": "of unknown kind"}
    return ", ".join(f"{count:,} {names.get(name, name)}" for name, count in records.items())
