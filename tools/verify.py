"""``kcap verify``: check every byte of a capture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from kcap.tools import common
from kcap.tools.cli import Verb
from kcap.tools.play import opened_source

if TYPE_CHECKING:
    from kcap.format.verify import Report


@click.command(
    "verify",
    cls=Verb,
    examples=(
        "kcap verify host.kcap",
        "kcap verify --deep --json host.kcap",
        "kcap verify - <host.kcap",
    ),
)
@click.argument("capture")
@click.option("--deep", is_flag=True, help="Also the index's sets, and tails against chunks.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.pass_context
def command(ctx: click.Context, capture: str, deep: bool, as_json: bool) -> None:
    """Check CAPTURE: checksums, padding, hash chain, content hash, index against events.

    Findings are numbered and say record and byte. Exit code 0: nothing found; 3: something was.
    With --deep everything that was derived from the events is derived again. What is found
    consistent may still have been replaced as a whole: compare the file's SHA-256, which is
    printed, with one that was kept elsewhere.
    """
    from kcap.errors import NotACaptureError
    from kcap.format.reader import CaptureReader
    from kcap.format.verify import verify

    common.save_memory()
    with opened_source(capture, lenient=False) as source:
        if not isinstance(source, CaptureReader):
            raise NotACaptureError(
                f"this is a {source.info.format} file, which has no checksums to verify",
                file=capture,
                expected="a .kcap capture",
                hint=f"kcap import {capture} -o NEW.kcap",
            )
        report = verify(source, deep=deep)
    click.echo(_as_json(capture, report) if as_json else _as_text(capture, report))
    ctx.exit(0 if report.good else 3)


def _as_json(capture: str, report: Report) -> str:
    value = {
        "bytes": report.bytes,
        "chunks": report.chunks,
        "file": capture,
        "file_hash": report.file_hash,
        "findings": [f.to_json() for f in report.findings],
        "good": report.good,
        "recoveries": [
            {"lost": dict(r.lost), "missing": r.missing, "reason": r.reason}
            for r in report.recoveries
        ],
        "records": report.records,
        "rows": report.rows,
        "state": report.state,
    }
    return json.dumps(value, indent=2, sort_keys=True)


def _as_text(capture: str, report: Report) -> str:
    from kcap.model.text import printable

    lines = [
        f"{f.number:>4}  byte {f.offset:<10} record {f.record:<6} {f.kind or '?':<12} {f.what}"
        for f in report.findings
    ]
    size = common.size_text(report.bytes)
    lines.append(
        f"{capture}: {report.state}, {common.counted(report.records, 'intact record')}, "
        f"{common.counted(report.chunks, 'chunk')}, {common.counted(report.rows, 'event')}, {size}"
    )
    if report.file_hash:
        lines.append(f"sha256 {report.file_hash}")
    losses = [loss for loss in (r.loss() for r in report.recoveries) if loss is not None]
    lines += [f"recorded loss: {common.describe(loss)}" for loss in losses]
    if report.good:
        lines.append("internally consistent; not proof against replacement of the whole file")
    else:
        lines.append(common.counted(len(report.findings), "finding"))
    return "\n".join(map(printable, lines))
