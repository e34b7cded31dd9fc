"""``kcap info``: what a capture holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kcap.tools import common
from kcap.tools.cli import Verb
from kcap.tools.play import opened_source

if TYPE_CHECKING:
    from kcap.format.reader import CaptureReader
    from kcap.model.side import Loss
    from kcap.model.stream import Source

_TYPES_SHOWN = 20


@click.command("info", cls=Verb, examples=("kcap info host.kcap", "kcap info --json host.kcap"))
@click.argument("capture")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@common.lenient_option
@click.pass_context
def command(ctx: click.Context, capture: str, as_json: bool, lenient: bool) -> None:
    """Say what CAPTURE holds: hosts, times, events by name, losses, columns.

    Of a closed .kcap file this reads the FOOTER alone, however large the file is; 'kcap verify'
    checks the rest. Any other input is read once from start to end.
    """
    from kcap.format.reader import CaptureReader

    losses: list[Loss] = []
    with opened_source(capture, lenient=lenient) as source:
        if isinstance(source, CaptureReader) and source.footer is not None:
            found = _from_footer(source)
        else:
            found, losses = _from_scan(source)
    click.echo(json.dumps(found, indent=2, sort_keys=True) if as_json else _as_text(found))
    common.report_losses(losses, capture)
    ctx.exit(3 if losses else 0)


def _from_footer(source: CaptureReader) -> dict[str, Any]:
    assert source.footer is not None
    totals = dict(source.footer.totals)
    schema = totals.pop("schema", [])
    totals.pop("states", None)
    return {
        **totals,
        **_header(source),
        "chunks": len(source.footer.chunks),
        "columns": {c["name"]: c["class"] for c in schema if c["table"] == "events"},
        "state": source.state,
    }


def _header(source: CaptureReader) -> dict[str, Any]:
    path = Path(source.file)
    return {
        "bytes": path.stat().st_size if path.is_file() else None,
        "created": common.utc(source.header.created_ns) if source.header.created_ns else None,
        "file": source.file,
        "file_id": source.header.file_id.hex(),
        "format": "kcap",
        "format_version": f"{source.header.major}.{source.header.minor}",
        "written_by": f"kcap {source.header.meta.get('kcap', '?')}",
    }


def _from_scan(source: Source) -> tuple[dict[str, Any], list[Loss]]:
    """Count what a foreign file, a stream or an unfinished capture holds."""
    from kcap.format.reader import CaptureReader
    from kcap.replay.pipeline import Pipeline
    from kcap.tools.tally import Tally

    tally = Tally()
    summary = Pipeline(source, [tally]).run()
    found = {**tally.to_json(), "file": source.info.file, "format": source.info.format}
    if isinstance(source, CaptureReader):
        found |= {**_header(source), "state": source.state}
    return found, summary.losses


def _as_text(found: dict[str, Any]) -> str:
    from kcap.model.text import printable

    rows = [
        ("file", found["file"]),
        ("format", f"{found['format']} {found.get('format_version', '')}".strip()),
        ("state", found.get("state")),
        ("written by", found.get("written_by")),
        ("created", found.get("created")),
        ("size", common.size_text(found["bytes"]) if found.get("bytes") else None),
        ("events", f"{found['events']:,}"),
        ("state rows", f"{found['state_rows']:,}" if found["state_rows"] else None),
        *_times(found),
        ("chunks", f"{found['chunks']:,}" if "chunks" in found else None),
        ("columns", f"{len(found['columns']):,}"),
        *(("source", _source(s)) for s in found["sources"]),
        *(("loss", _loss(entry)) for entry in found["loss"]),
    ]
    lines = [f"{name:<12} {printable(str(value))}" for name, value in rows if value]
    if not found["loss"]:
        lines.append(f"{'loss':<12} none recorded")
    types = sorted(found["types"].items(), key=lambda item: (-item[1], item[0]))
    if types:
        lines += ["", f"{'events':>12} name"]
    lines += [f"{count:>12,} {printable(name)}" for name, count in types[:_TYPES_SHOWN]]
    if len(types) > _TYPES_SHOWN:
        rest = sum(count for _, count in types[_TYPES_SHOWN:])
        lines.append(f"{rest:>12,} of {len(types) - _TYPES_SHOWN} other names")
    return "\n".join(lines)


def _times(found: dict[str, Any]) -> list[tuple[str, str | None]]:
    times = found["ts"]
    if times is None:
        return [("time", "no event has one")]
    first, last = times
    backward, timeless = found["backward_steps"], found["timeless"]
    return [
        ("first", common.utc(first)),
        ("last", common.utc(last)),
        ("duration", f"{(last - first) / 1e9:,.3f} s"),
        ("backward", f"{backward:,} events earlier than the one before" if backward else None),
        ("timeless", f"{timeless:,} events without a time" if timeless else None),
    ]


def _source(entry: dict[str, Any]) -> str:
    host = entry.get("host") or "unknown host"
    boot = f", boot {entry['boot_id']}" if entry.get("boot_id") else ""
    return f"{entry.get('collector')} on {host}{boot} ({entry.get('id')})"


def _loss(entry: dict[str, Any]) -> str:
    from kcap.model.side import Loss

    return common.describe(Loss.from_json(entry))
