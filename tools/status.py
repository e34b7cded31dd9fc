"""How a recording is doing, in numbers: what its control socket tells."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import kcap
from kcap.tools import common

if TYPE_CHECKING:
    from kcap.model.batch import Batch
    from kcap.model.side import Heartbeat, SourceInfo
    from kcap.model.stream import StreamInfo
    from kcap.replay.pipeline import Summary

FIELDS: Final = {
    "artifact_bytes": "what artifacts have that were kept, holes and what is missing left out",
    "artifacts": "artifacts that were kept so far: files, streams, memory, programs",
    "blind": "findings that something could not be seen, or was done to the recorder",
    "bytes_per_s": "bytes written a second, of late",
    "bytes_written": "bytes of all parts so far",
    "cpu_percent": "processor time of late, 100 for one processor",
    "cpu_s": "processor time of all processes of the recorder",
    "cut": "values that were over their limit",
    "damaged": "findings that the output was damaged",
    "details": "what the source says of the recording: its events, what it does not have here",
    "disk_free_bytes": "what is left on the output's file system; null for a pipe",
    "events": "events recorded so far",
    "events_by_name": "the most frequent events, and how many of each",
    "events_per_s": "events recorded a second, of late",
    "events_seen": "events that the source gave, those that a filter left out included",
    "filtered": "events left out on purpose, in the kernel or here",
    "kcap": "version of the recorder",
    "losses": "what was lost or could not be seen, in words",
    "lost": "events that the source could not hand over",
    "now_ns": "when this was said, ns since 1970",
    "output": "the file that is being written",
    "part": "its number",
    "pid": "the recorder's process",
    "pids": "all its processes",
    "ring_waiting_bytes": "what waits in the kernel; null where the source can't tell",
    "rss_bytes": "memory of all processes of the recorder; pages they share count in each",
    "sinks": "of each sink: what the server has, what waits and was refused, its last error",
    "since_ns": "begin of the recording, ns since 1970",
    "skipped": "records of the source that made no sense",
    "source": "what tells the events",
    "torn": "findings that the output ends early",
    "waiting_events": "events that are not in a chunk yet",
    "worker_pid": "the process that works on the events and writes them; may be the recorder's",
}
"""Names of a report, their units last, and what they are. Only new ones are ever added."""

TOP: Final = 20
"""Event names, and losses, that are told one by one."""

_TEXT_CHARS: Final = 300
"""Longest text of a report, which then fits into an answer even where JSON has six for each."""

_TOLD: Final = (
    "cannot_see", "case", "filter", "note", "operator", "refused", "selection", "unavailable"
)  # fmt: skip
"""What of a source's details is about the recording, not about the host."""

_SINKS: Final = 8
_REASONS: Final = 3
_SINK_CHARS: Final = 100
"""Sinks that are told of, reasons of refusals of each, and the longest text."""

_LIVELY: Final = ("attached",)
"""What of a heartbeat's details changes."""

_ITEM_CHARS: Final = 150
_ITEMS_CHARS: Final = 1500
"""Longest item of such a detail, and all of them together."""

_RATE_S: Final = 1.0
"""A rate is over this time at least."""

_NAMES: Final = 10_000
"""Different events that are counted one by one."""

_COUNTED: Final = ("lost", "cut", "skipped")
_FINDINGS: Final = ("blind", "damaged", "torn")


class Output(NamedTuple):
    """Where a recording goes."""

    path: str
    bytes_written: int
    """Of all parts."""
    fd: int | None = None
    """The file that is being written, None for what is none."""
    part: int = 1
    waiting_events: int = 0
    artifacts: int = 0
    artifact_bytes: int = 0


class _Sample(NamedTuple):
    """Counters at one time."""

    at_s: float
    events: int
    bytes_written: int
    cpu_s: float


class Status:
    """A sink beside the writer that only counts, and says how it stands.

    Args:
        info: The source.
        pid: The process that stands for the recorder.
        pids: Gives all processes of the recorder.
        since_ns: Begin of the recording, ns since 1970.
        sinks: Gives how each sink does.
    """

    def __init__(
        self,
        info: StreamInfo,
        *,
        pid: int,
        pids: Callable[[], Iterable[int]],
        since_ns: int,
        sinks: Callable[[], Sequence[Mapping[str, Any]]] = list,
    ) -> None:
        self._sinks = sinks
        self._pid = pid
        self._pids = pids
        self._since_ns = since_ns
        self._format = info.format
        self._sources: dict[str, SourceInfo] = {source.id: source for source in info.sources}
        self._by_name: Counter[str] = Counter()
        self._beats: dict[str | None, Heartbeat] = {}
        self._summary: Summary | None = None
        self._output = Output("-", 0)
        self._samples: list[_Sample] = []

    def write(self, batch: Batch) -> None:
        """See `Sink.write`: count events by name, keep the last heartbeat."""
        from kcap.model.side import Heartbeat, SourceInfo

        for side in batch.before:
            if isinstance(side, Heartbeat):
                self._beats[side.source] = side
            elif isinstance(side, SourceInfo):
                self._sources[side.id] = side
        column = batch.get("event")
        if column is not None:
            self._count(batch)

    def close(self) -> None:
        """See `Sink.close`."""

    def tick(self, summary: Summary, output: Output) -> None:
        """After each batch: note where the recording stands.

        Args:
            summary: Of the pipeline.
            output: Where it goes now.
        """
        self._summary, self._output = summary, output
        now_s = time.monotonic()
        if not self._samples or now_s - self._samples[-1].at_s >= _RATE_S:
            self._samples = [*self._samples[-1:], self._sample(now_s)]

    def report(self) -> dict[str, Any]:
        """All of `FIELDS`, with plain JSON values."""
        found = self._counts()
        cpu_s, rss_bytes, pids = _used(self._pids())
        first = self._samples[0] if self._samples else None
        now = self._sample(time.monotonic())
        passed_s = 0.0 if first is None else now.at_s - first.at_s

        def rate(name: str) -> float:
            if first is None or passed_s < _RATE_S / 2:
                return 0.0  # too early: a tick of the kernel's clock would make a whole processor
            return round(float(getattr(now, name) - getattr(first, name)) / passed_s, 2)

        return {
            **found,
            "artifact_bytes": self._output.artifact_bytes,
            "artifacts": self._output.artifacts,
            "bytes_per_s": rate("bytes_written"),
            "bytes_written": self._output.bytes_written,
            "cpu_percent": round(100 * rate("cpu_s"), 1),
            "cpu_s": round(cpu_s, 2),
            "details": self._details(),
            "disk_free_bytes": _free_bytes(self._output.fd),
            "events_by_name": dict(self._by_name.most_common(TOP)),
            "events_per_s": rate("events"),
            "kcap": kcap.__version__,
            "now_ns": time.time_ns(),
            "output": self._output.path[:_TEXT_CHARS],
            "part": self._output.part,
            "pid": self._pid,
            "pids": pids,
            "ring_waiting_bytes": self._from_beats("waiting_bytes"),
            "rss_bytes": rss_bytes,
            "sinks": [_sink(said) for said in self._sinks()[:_SINKS]],
            "since_ns": self._since_ns,
            "source": self._format,
            "waiting_events": self._output.waiting_events,
            "worker_pid": os.getpid(),
        }

    def _count(self, batch: Batch) -> None:
        import numpy as np

        column = batch.columns["event"]
        entries = column.values.dictionary
        counts = np.bincount(column.codes(), minlength=len(entries))
        for code in np.flatnonzero(counts).tolist():
            name = entries[code].as_py()[:_TEXT_CHARS]
            if name in self._by_name or len(self._by_name) < _NAMES:
                self._by_name[name] += int(counts[code])

    def _counts(self) -> dict[str, Any]:
        """Events, and what is missing of them."""
        summary = self._summary
        if summary is None:
            zeros = dict.fromkeys(("events", "events_seen", "filtered", *_COUNTED, *_FINDINGS), 0)
            return {**zeros, "losses": []}
        losses = list(summary.losses)
        kinds = Counter(loss.kind for loss in losses)
        counted = summary.lost()
        inside = self._from_beats("filtered") or 0  # the kernel's own count, told at the end only
        told = sum(loss.count or 0 for loss in summary.left_out)
        return {
            "events": summary.events_out,
            "events_seen": summary.events_in,
            "filtered": max(inside, told) + summary.events_in - summary.events_out,
            **{kind: counted.get(kind, 0) for kind in _COUNTED},
            **{kind: kinds[kind] for kind in _FINDINGS},
            "losses": [common.describe(loss)[:_TEXT_CHARS] for loss in losses[-TOP:]],
        }

    def _sample(self, now_s: float) -> _Sample:
        events = 0 if self._summary is None else self._summary.events_out
        return _Sample(now_s, events, self._output.bytes_written, _used(self._pids())[0])

    def _from_beats(self, name: str) -> int | None:
        """A counter of the last heartbeats, all sources together."""
        found = [beat.details[name] for beat in self._beats.values() if name in beat.details]
        return sum(found) if found else None

    def _details(self) -> dict[str, Any]:
        """What a user should know of the source: text and lists of text, none too long."""
        said: dict[str, Any] = {}
        for source in self._sources.values():
            said |= {name: source.details[name] for name in _TOLD if name in source.details}
        for beat in self._beats.values():
            said |= {name: beat.details[name] for name in _LIVELY if name in beat.details}
        return {name: _short(value) for name, value in sorted(said.items())}


def _short(value: Any) -> Any:  # noqa: ANN401  (plain JSON values)
    """A value of which no more is kept than a report has room for."""
    if isinstance(value, dict):
        value = [f"{name}: {text}" for name, text in value.items()]
    if isinstance(value, list | tuple):
        items = [str(item)[:_ITEM_CHARS] for item in value]
        ends = accumulate(len(item) for item in items)
        kept = [item for item, end in zip(items, ends, strict=True) if end <= _ITEMS_CHARS]
        more = len(items) - len(kept)
        return [*kept, f"and {more} more"] if more else kept
    return value if isinstance(value, int | float | None) else str(value)[:_TEXT_CHARS]


def _sink(said: Mapping[str, Any]) -> dict[str, Any]:
    """How a sink does, in no more words than a report has room for."""
    short: dict[str, Any] = {}
    for name, value in said.items():
        if isinstance(value, Mapping):
            most = sorted(value.items(), key=lambda item: (-item[1], item[0]))[:_REASONS]
            short[name] = {str(reason)[:_SINK_CHARS]: count for reason, count in most}
        elif value is None or isinstance(value, int | float):
            short[name] = value
        else:
            short[name] = str(value)[:_SINK_CHARS]
    return short


def _used(pids: Iterable[int]) -> tuple[float, int, list[int]]:
    """Processor seconds and resident bytes of processes, and which of them there are."""
    cpu_s, rss_bytes, found = 0.0, 0, []
    for pid in sorted(set(pids)):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it is gone
            # Behind the name, which may hold anything, the state is the first. The twelfth to the
            # fifteenth are its own time and that of children that have ended.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
            cpu_s += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            rss_bytes += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            found.append(pid)
    return cpu_s, rss_bytes, found


def _free_bytes(fd: int | None) -> int | None:
    """What whoever has no privileges may still write to a file system."""
    if fd is None:
        return None
    try:
        found = os.fstatvfs(fd)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
