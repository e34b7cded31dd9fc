"""What a hunt finds, as lines, JSON or a summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.format.blobs import Manifest
from kcap.hunt.indicators import HASH_DIGITS, Indicator
from kcap.hunt.search import Finding, Searcher
from kcap.hunt.source import IDENTITY
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import Snapshot
from kcap.model.text import clean, json_text, printable
from kcap.tools import common

_HASHES: Final = ("sha256", "md5", "sha1")
"""Of the content of an artifact; where that was not kept, its details may have them still."""

_SHOWN: Final = 100
"""Characters of a value in a line; around what was found."""


class Hit(NamedTuple):
    """An indicator in a value of an event or artifact."""

    row: int
    number: int
    """The indicator's place."""
    column: str
    value: str
    part: str


@dataclass
class Count:
    """How often an indicator was found in a capture."""

    hits: int = 0
    """Values that hold it."""
    events: int = 0
    """Events with such a value, and artifacts."""
    first_ns: int | None = None
    last_ns: int | None = None

    def add(self, hits: int, events: int, times: list[int]) -> None:
        """Count more.

        Args:
            hits: Values.
            events: Events.
            times: Of those that have a time.
        """
        self.hits += hits
        self.events += events
        known = [t for t in (self.first_ns, self.last_ns) if t is not None]
        self.first_ns = min([*known, *times], default=None)
        self.last_ns = max([*known, *times], default=None)


class Report:
    """A sink that says what is found in the events it is given.

    Args:
        searcher: Looks for the indicators.
        say: Takes a line, without its end.
        as_json: Give JSON.
        summary: Count, and say nothing before `finish`.
        limit: Most hits.
        states: Look at what was known at a place, too.
    """

    def __init__(
        self,
        searcher: Searcher,
        say: Callable[[str], object],
        *,
        as_json: bool = False,
        summary: bool = False,
        limit: int | None = None,
        states: bool = True,
    ) -> None:
        self.capture = ""
        """The capture that is searched now, as the user named it."""
        self.hits = 0
        self.found: set[int] = set()
        """The indicators that were found, by their places."""
        self.captures: set[str] = set()
        """The captures in which something was found."""
        self._searcher = searcher
        self._indicators = searcher.matcher.indicators
        self._say = say
        self._as_json = as_json
        self._summary = summary
        self._limit = limit
        self._states = states
        self._seen: set[tuple[Any, ...]] = set()
        self._counts: dict[tuple[int, str], Count] = {}

    @property
    def hashes(self) -> bool:
        """Whether a hash is looked for."""
        return any(map(_is_hash, self._indicators))

    @property
    def full(self) -> bool:
        """Whether there are as many hits as are wanted."""
        return self._limit is not None and self.hits >= self._limit

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        for side in batch.before:
            if isinstance(side, Snapshot) and self._states:
                self._known(side)
        findings = self._searcher.findings(batch)
        if not findings:
            return
        if self._summary:
            self._count(batch, findings)
            return
        rows = np.unique(np.concatenate([finding.rows for finding in findings]))
        events = batch.select(IDENTITY).take(rows).to_pylist()
        known = dict(zip(rows.tolist(), events, strict=True))
        for hit in sorted(_hits(findings)):
            self._single(hit, known[hit.row])

    def _known(self, snapshot: Snapshot) -> None:
        """Look at what was known at a place; what several snapshots say counts once."""
        processes = snapshot.tables.get("processes", EMPTY)
        for table, batch in sorted(snapshot.tables.items()):
            findings = self._searcher.findings(batch)
            if not findings:
                continue
            rows = batch.select(("pid", "user")).to_pylist()
            names = {row.get("pid"): row.get("name") for row in processes.to_pylist()}
            for hit in sorted(_hits(findings)):
                row = rows[hit.row]
                key = (self.capture, table, row.get("pid"), *hit[1:])
                if key not in self._seen:
                    self._seen.add(key)
                    said = {"event": table, "kind": "snapshot", **row}
                    self._single(hit, {**said, "process_name": names.get(row.get("pid"))})

    def _single(self, hit: Hit, event: Mapping[str, Any]) -> None:
        if self.full:
            return
        self._note(hit.number)
        if self._summary:
            self._counted(hit.number).add(1, 1, [])
        else:
            self._say(self._line(hit, event))

    def close(self) -> None:
        """See `Sink.close`."""

    def artifact(self, manifest: Manifest) -> None:
        """Look at an artifact: at its hash and its path.

        Args:
            manifest: What it is.
        """
        event = {"ord": manifest.ord, "event": "artifact", "kind": "artifact"}
        for hit in self._in_artifact(manifest):
            self._single(hit, event)

    def holds(self, manifest: Manifest) -> bool:
        """Whether something is found in an artifact.

        Args:
            manifest: What it is.

        Returns:
            True where `artifact` would say so.
        """
        return bool(self._in_artifact(manifest))

    def _in_artifact(self, manifest: Manifest) -> list[Hit]:
        said = {name: manifest.details.get(name) for name in _HASHES}
        said |= {"path": manifest.path}
        if manifest.sha256 is not None:
            said["sha256"] = manifest.sha256
        texts = {n: clean(text)[0] for n, text in said.items() if isinstance(text, str) and text}
        held = self._searcher.matcher.find(sorted(set(texts.values())))
        return sorted(
            Hit(0, match.number, column, text, match.part)
            for column, text in texts.items()
            for match in held.get(text, ())
            if _is_hash(self._indicators[match.number]) == (column in _HASHES)
        )

    def finish(self) -> None:
        """Say what was counted: by indicator, then by capture."""
        if not self._summary:
            return
        order = {name: place for place, (_, name) in enumerate(self._counts)}
        found = sorted(self._counts.items(), key=lambda item: (item[0][0], order[item[0][1]]))
        if self._as_json:
            for (number, capture), count in found:
                self._say(json_text({"capture": capture, **self._said(number), **_times(count)}))
        elif found:
            for line in _table(self._cells(found)):
                self._say(line)

    def _note(self, number: int, hits: int = 1) -> None:
        self.hits += hits
        self.found.add(number)
        self.captures.add(self.capture)

    def _counted(self, number: int) -> Count:
        return self._counts.setdefault((number, self.capture), Count())

    def _count(self, batch: Batch, findings: list[Finding]) -> None:
        rows: dict[int, list[Any]] = {}
        for finding in findings:
            for match in finding.matches:
                rows.setdefault(match.number, []).append(finding.rows)
        timed = batch.mask("ts")
        times = batch.numpy("ts", 0)
        for number, parts in rows.items():
            events = np.unique(np.concatenate(parts))
            stamps = times[events[timed[events]]]
            ends = [int(stamps.min()), int(stamps.max())] if len(stamps) else []
            hits = sum(map(len, parts))
            self._note(number, hits)
            self._counted(number).add(hits, len(events), ends)

    def _said(self, number: int) -> dict[str, Any]:
        indicator = self._indicators[number]
        return {
            "indicator": indicator.text,
            "type": str(indicator.kind),
            "label": indicator.label,
            "ioc_file": indicator.file,
            "ioc_line": indicator.line,
        }

    def _line(self, hit: Hit, event: Mapping[str, Any]) -> str:
        stamp = event.get("ts")
        if self._as_json:
            said = {
                "capture": self.capture,
                "ts": None if stamp is None else common.utc(stamp),
                "ts_ns": stamp,
                **{name: event.get(name) for name in IDENTITY[1:]},
                "column": hit.column,
                "value": hit.value,
                "part": hit.part,
                **self._said(hit.number),
            }
            return json_text(said)
        process = event.get("process_name") or "-"
        cells = [
            self.capture,
            "-" if stamp is None else common.utc(stamp),
            str(event.get("event") or "-"),
            f"{process}({event['pid']})" if "pid" in event else process,
            str(event.get("user") or "-"),
            f"{hit.column}={_excerpt(hit)}",
            _title(self._indicators[hit.number]),
        ]
        return "  ".join(map(printable, cells))

    def _cells(self, found: list[tuple[tuple[int, str], Count]]) -> Iterator[list[str]]:
        yield ["events", "first", "last", "capture", "indicator"]
        for (number, capture), count in found:
            ends = (count.first_ns, count.last_ns)
            times = ["-" if t is None else common.utc(t) for t in ends]
            title = _title(self._indicators[number])
            yield [f"{count.events:,}", *times, printable(capture), printable(title)]


def _hits(findings: list[Finding]) -> Iterator[Hit]:
    for finding in findings:
        for match in finding.matches:
            for row in finding.rows.tolist():
                yield Hit(row, match.number, finding.column, finding.value, match.part)


def _is_hash(indicator: Indicator) -> bool:
    return indicator.kind in HASH_DIGITS.values()


def _title(indicator: Indicator) -> str:
    """An indicator for people, with what its file says of it."""
    label = f"  # {indicator.label}" if indicator.label else ""
    return f"{indicator.kind} {indicator.text}{label}"


def _excerpt(hit: Hit) -> str:
    """A value, of a long one what is around the part that was found."""
    if len(hit.value) <= _SHOWN:
        return hit.value
    at = hit.value.find(hit.part)
    start = max(0, min(at - (_SHOWN - len(hit.part)) // 2, len(hit.value) - _SHOWN))
    end = start + _SHOWN
    before, behind = "…" * (start > 0), "…" * (end < len(hit.value))
    return f"{before}{hit.value[start:end]}{behind}"


def _times(count: Count) -> dict[str, Any]:
    ends = {"first": count.first_ns, "last": count.last_ns}
    texts = {name: None if t is None else common.utc(t) for name, t in ends.items()}
    numbers = {f"{name}_ns": t for name, t in ends.items()}
    return {"hits": count.hits, "events": count.events, **texts, **numbers}


def _table(rows: Iterator[list[str]]) -> Iterator[str]:
    """Aligned columns, the first one to the right."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [row[0].rjust(widths[0])]
        cells += [cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()
