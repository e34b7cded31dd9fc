"""``kcap info``: what a capture holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kcap.errors import KcapError
from kcap.tools import common, host
from kcap.tools.cli import Verb
from kcap.tools.play import opened_source

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.format.index import Index
    from kcap.format.reader import CaptureReader
    from kcap.model.side import Loss
    from kcap.model.stream import Source

_TYPES_SHOWN = 20
_NAMES_SHOWN = 3

FILTERED = "filtered"
"""Kind of loss of what was left out on purpose."""

BLIND = "blind"
"""Kind of loss: what happened was not looked at, or could not be."""


@click.command(
    "info",
    cls=Verb,
    examples=(
        "kcap info host.kcap",
        "kcap info --json --hash host.kcap",
        "kcap info --host host.kcap",
        "kcap info -w \"ps.name = 'bash'\" host.kcap",
        "ssh host kcap record -o - --duration 10 | kcap info -",
    ),
)
@click.argument("capture")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("--host", "hosts", is_flag=True, help="What the recorded host was like instead.")
@click.option("--hash", "hashed", is_flag=True, help="Also the file's SHA-256: reads all of it.")
@common.where_option
@common.lenient_option
@click.pass_context
def command(
    ctx: click.Context,
    capture: str,
    as_json: bool,
    hosts: bool,
    hashed: bool,
    where: Filter | None,
    lenient: bool,
) -> None:
    """Say what CAPTURE holds: hosts, times, events by name, losses, columns.

    Of a closed .kcap file this reads the FOOTER alone, and what artifacts are called where there
    are any, however large the file is; of one that is
    still written, or was left unfinished, what it noted on its way and what came since: state open
    or torn, exit code 3. 'kcap verify' checks the rest. Any other input is read once from start to
    end. With -w it is about the events for which the filter is true, and those are read.

    Times in which the recorder gave no sign of life, and ways around it that were seen, stand as
    'blind' among the losses, and make the exit code 3.

    With --host it shows what a recording says of its host when it began: kernel, distribution,
    clocks, users, interfaces, mounts, modules, BPF programs, listening sockets; with --json all
    processes, threads and descriptors, too.
    """
    from kcap.format.reader import CaptureReader

    if hosts and (hashed or where is not None):
        raise click.UsageError("--host goes with neither --hash nor -w")
    if hashed and not Path(capture).is_file():
        raise click.UsageError("--hash needs a file")
    losses: list[Loss] = []
    if hosts:
        with opened_source(capture, lenient=lenient) as source:
            told = host.read(source)
        of = told.to_json()
        click.echo(_dumped({"file": capture, "hosts": of}) if as_json else host.as_text(of))
        common.report_losses(told.losses, capture)
        ctx.exit(3 if told.losses else 0)
    with opened_source(capture, lenient=lenient) as source:
        index = source.index() if isinstance(source, CaptureReader) else None
        if index is None or where is not None:
            found, losses = _from_scan(source, where)
        else:
            found, losses = _from_index(source, index), list(index.losses)
        if hashed:
            found["sha256"] = _sha256(source.info.file)
    found["blind"] = [entry for entry in found["loss"] if entry["kind"] == BLIND]
    click.echo(_dumped(found) if as_json else _as_text(found))
    common.report_losses(losses, capture)
    ctx.exit(3 if losses or found["blind"] else 0)


def _dumped(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=2, sort_keys=True)


def _from_index(source: CaptureReader, index: Index) -> dict[str, Any]:
    from kcap.format.payloads import NO_CHUNK

    totals = dict(index.totals)
    schema = totals.pop("schema", [])
    totals.pop("states", None)
    in_tail = index.table["number"] == NO_CHUNK
    return {
        **totals,
        **_header(source),
        "artifacts": _artifacts(source, totals),
        "chunks": int((~in_tail).sum()),
        "columns": {c["name"]: c["class"] for c in schema if c["table"] == "events"},
        "loss": totals["loss"] + [loss.to_json() for loss in index.losses],
        "state": source.state,
        "tail_rows": int(index.table["rows"][in_tail].sum()),
    }


def _artifacts(source: CaptureReader, totals: dict[str, Any]) -> dict[str, Any]:
    """How many artifacts there are beside the events, and how much of them; manifests are read."""
    kinds: Counter[str] = Counter()
    size = missing = incomplete = 0
    if totals.get("records", {}).get("BLOB_MANIFEST") or source.state != "closed":
        for manifest in source.manifests():
            kinds[str(manifest.details.get("kind", "unnamed"))] += 1
            size += manifest.size
            missing += sum(extent.length for extent in manifest.missing)
            incomplete += not manifest.complete
    return {
        "bytes": size,
        "count": kinds.total(),
        "incomplete": incomplete,
        "kinds": dict(sorted(kinds.items())),
        "missing_bytes": missing,
    }


def _sha256(path: str) -> str:
    import hashlib

    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as e:
        raise KcapError(f"can't be read: {e.strerror}", file=path) from e


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


def _from_scan(source: Source, where: Filter | None) -> tuple[dict[str, Any], list[Loss]]:
    """Count what a foreign file or a stream holds, or what a filter leaves of any input."""
    from kcap.format.reader import CaptureReader
    from kcap.replay.chosen import chosen
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.stages import EventsOnly
    from kcap.tools.tally import Tally

    tally = Tally()
    read, stages = chosen(source, where=where)
    if where is not None:
        stages.append(EventsOnly())
    summary = Pipeline(read, [tally], stages=stages).run()
    found = {**tally.to_json(), "file": source.info.file, "format": source.info.format}
    if where is not None:
        found["where"] = where.text
    if isinstance(source, CaptureReader):
        found |= {**_header(source), "state": source.state}
    return found, summary.losses


def _as_text(found: dict[str, Any]) -> str:
    from kcap.model.text import printable

    lost = [entry for entry in found["loss"] if entry["kind"] != FILTERED]
    rows = [
        ("file", found["file"]),
        ("format", f"{found['format']} {found.get('format_version', '')}".strip()),
        ("filter", found.get("where")),
        ("state", found.get("state")),
        ("written by", found.get("written_by")),
        ("created", found.get("created")),
        ("size", common.size_text(found["bytes"]) if found.get("bytes") else None),
        ("events", f"{found['events']:,}"),
        ("state rows", f"{found['state_rows']:,}" if found["state_rows"] else None),
        *_times(found),
        ("chunks", f"{found['chunks']:,}" if "chunks" in found else None),
        ("in no chunk", f"{found['tail_rows']:,} events" if found.get("tail_rows") else None),
        ("columns", f"{len(found['columns']):,}"),
        ("heartbeats", _heartbeats(found)),
        ("artifacts", _of_artifacts(found.get("artifacts"))),
        ("content", found.get("content_hash")),
        ("sha256", found.get("sha256")),
        *(("source", _source(s)) for s in found["sources"]),
        *(("cannot see", what) for s in found["sources"] for what in _unseen(s)),
        *(("left out", line) for line in _left_out(found["loss"])),
        *(("loss", _loss(entry)) for entry in lost),
    ]
    lines = [f"{name:<12} {printable(str(value))}" for name, value in rows if value]
    if not lost:
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


def _of_artifacts(found: dict[str, Any] | None) -> str | None:
    """Artifacts in a line; 'kcap artifacts' lists them."""
    if not found or not found["count"]:
        return None
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found["kinds"].items())
    lacking = f"; {found['incomplete']:,} not complete" if found["incomplete"] else ""
    missing = found["missing_bytes"]
    lacking += f", {common.size_text(missing)} missing" if missing else ""
    return f"{kinds}: {common.size_text(found['bytes'])}{lacking}"


def _heartbeats(found: dict[str, Any]) -> str | None:
    """How often the recorder said that it was alive."""
    count = found.get("records", {}).get("HEARTBEAT")
    return f"{count:,}" if count else None


def _source(entry: dict[str, Any]) -> str:
    host = entry.get("host") or "unknown host"
    boot = f", boot {entry['boot_id']}" if entry.get("boot_id") else ""
    return f"{entry.get('collector')} on {host}{boot} ({entry.get('id')})"


def _unseen(entry: dict[str, Any]) -> list[str]:
    """What a source of events says that it can't know."""
    said = entry.get("details", {}).get("cannot_see")
    return [what for what in said if isinstance(what, str)] if isinstance(said, list) else []


def _left_out(losses: list[dict[str, Any]]) -> Iterator[str]:
    """What was left out on purpose, a line for each reason: a scope counts each name of events."""
    from kcap.model.side import Loss

    by_reason: dict[Loss, list[Loss]] = {}
    for entry in losses:
        if entry["kind"] == FILTERED:
            loss = Loss.from_json(entry)
            by_reason.setdefault(replace(loss.like, event=None, cpu=None), []).append(loss)
    for alike in by_reason.values():
        whole = reduce(Loss.plus, (replace(each, event=None, cpu=None) for each in alike))
        counts = Counter({e.event: e.count for e in alike if e.event and e.count})
        names = [f"{count:,} {name}" for name, count in counts.most_common(_NAMES_SHOWN)]
        if len(counts) > _NAMES_SHOWN:
            names.append("…")
        yield common.describe(whole) + (f" ({', '.join(names)})" if len(counts) > 1 else "")


def _loss(entry: dict[str, Any]) -> str:
    from kcap.model.side import Loss

    return common.describe(Loss.from_json(entry))
