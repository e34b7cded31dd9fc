"""A recorder's numbers as Prometheus reads them: the text exposition format, version 0.0.4."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from kcap.tools import status

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""What a server says of the text."""

PREFIX: Final = "kcap_"
"""How every name begins."""

_COUNTER: Final = "counter"
_GAUGE: Final = "gauge"
_UNTYPED: Final = "untyped"


class Metric(NamedTuple):
    """What a number of a report becomes."""

    name: str
    """Its name without `PREFIX`; that of a counter ends in ``_total``."""
    kind: str
    help: str = ""
    """What it is; else what `kcap.tools.status.FIELDS` says."""
    divisor: int = 1
    """What the number is divided by: Prometheus counts in seconds."""


METRICS: Final[Mapping[str, Metric]] = {
    "artifact_bytes": Metric("artifact_bytes_total", _COUNTER),
    "artifacts": Metric("artifacts_total", _COUNTER),
    "blind": Metric("blind_findings_total", _COUNTER),
    "bytes_written": Metric("written_bytes_total", _COUNTER),
    "cpu_s": Metric("cpu_seconds_total", _COUNTER),
    "cut": Metric("values_cut_total", _COUNTER),
    "damaged": Metric("damaged_findings_total", _COUNTER),
    "disk_free_bytes": Metric("disk_free_bytes", _GAUGE),
    "events": Metric("events_total", _COUNTER),
    "events_seen": Metric("events_seen_total", _COUNTER),
    "filtered": Metric("events_filtered_total", _COUNTER),
    "lost": Metric("events_lost_total", _COUNTER),
    "part": Metric("part", _GAUGE, "number of the part that is being written"),
    "ring_waiting_bytes": Metric("ring_waiting_bytes", _GAUGE),
    "rss_bytes": Metric("resident_memory_bytes", _GAUGE),
    "since_ns": Metric("start_time_seconds", _GAUGE, "begin of the recording, since 1970", 10**9),
    "skipped": Metric("records_skipped_total", _COUNTER),
    "torn": Metric("torn_findings_total", _COUNTER),
    "waiting_events": Metric("waiting_events", _GAUGE),
}
"""Numbers of a report by name."""

BY_NAME: Final[Mapping[str, tuple[Metric, str]]] = {
    "events_by_name": (Metric("events_by_name_total", _COUNTER), "event"),
}
"""Numbers by some name, and the label that gets it."""

EACH: Final[Mapping[str, tuple[str, str]]] = {"sinks": ("sink", "sink")}
"""Lists of reports: their label, and which of their texts it shows."""

INSIDE: Final[Mapping[str, Mapping[str, Metric]]] = {
    "sink": {
        "confirmed": Metric("confirmed_total", _COUNTER, "messages that the server has"),
        "cut": Metric("spool_cut_bytes_total", _COUNTER, "bytes of the spool that made no sense"),
        "memory_peak": Metric("memory_peak_bytes", _GAUGE, "most that waited in memory"),
        "refused": Metric("refused_total", _COUNTER, "messages that the server will never take"),
        "sent": Metric("sent_total", _COUNTER, "messages handed to the courier"),
        "spooled": Metric("spooled_bytes", _GAUGE, "what waits in the spool file"),
        "taken": Metric("delivered_total", _COUNTER, "messages of this run that the server has"),
        "taken_earlier": Metric(
            "delivered_earlier_total", _COUNTER, "messages of an earlier run that the server has"
        ),
        "tries": Metric("tries_total", _COUNTER, "attempts that failed"),
        "waiting": Metric("waiting", _GAUGE, "messages that wait"),
    }
}
"""Numbers of the reports in a list, by the list's label."""

_ABOUT: Final = ("kcap", "output", "pid", "source")
"""Texts that are labels of ``kcap_recorder_info``."""

_ELSEWHERE: Final = frozenset(
    {"bytes_per_s", "cpu_percent", "events_per_s", "now_ns", "worker_pid"}
)
"""Rates and the time, which Prometheus has itself, and numbers that count nothing."""

_NO_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")

Labels = tuple[tuple[str, str], ...]


class _Family:
    """A metric and its samples."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.samples: dict[Labels, float] = {}


def exposition(stats: Mapping[str, Any]) -> str:
    """Write a report of a recorder.

    Args:
        stats: What its control socket tells. Names that are not known here, of a later recorder,
            become metrics without a type.

    Returns:
        Prometheus's text, metrics by name.
    """
    families: dict[str, _Family] = {}
    for metric, labels, value in _samples(stats):
        found = families.setdefault(metric.name, _Family(metric))
        found.samples.setdefault(labels, value)
    return "".join(line for name in sorted(families) for line in _lines(families[name]))


def _samples(stats: Mapping[str, Any]) -> Iterator[tuple[Metric, Labels, float]]:
    about = tuple((name, str(stats[name])) for name in _ABOUT if stats.get(name) is not None)
    yield Metric("recorder_info", _GAUGE, "the recorder; its value is always 1"), about, 1
    if isinstance(stats.get("pids"), list):
        yield Metric("processes", _GAUGE, "processes of the recorder"), (), len(stats["pids"])
    for name, value in stats.items():
        if name in _ABOUT or name in _ELSEWHERE:
            continue
        if name in EACH:
            yield from _each(name, value)
        elif name in BY_NAME or name not in status.FIELDS or name in METRICS:
            metric, label = BY_NAME.get(name, (_metric(METRICS, name), "name"))
            yield from _numbers(metric, label, (), value)


def _each(name: str, reports: Any) -> Iterator[tuple[Metric, Labels, float]]:  # noqa: ANN401
    """The numbers of each report of a list, or of a mapping from name to report."""
    label, said = EACH[name]
    if isinstance(reports, Mapping):
        pairs: Iterable[tuple[str, Any]] = reports.items()
    elif isinstance(reports, list):
        pairs = ((str(i), report) for i, report in enumerate(reports))
    else:
        return
    for key, report in pairs:
        if not isinstance(report, Mapping):
            continue
        labels: Labels = ((label, str(report.get(said, key))),)
        if isinstance(report.get("state"), str):
            state = Metric(f"{label}_state", _GAUGE, "how it is doing; its value is always 1")
            yield state, (*labels, ("state", report["state"])), 1
        for inner, value in report.items():
            metric = _metric(INSIDE[label], inner)
            metric = metric._replace(name=f"{label}_{metric.name}")
            yield from _numbers(metric, "reason" if inner == "refused" else "name", labels, value)


def _metric(known: Mapping[str, Metric], name: str) -> Metric:
    found = known.get(name, Metric(_NO_NAME.sub("_", name), _UNTYPED, name))
    return found if found.help else found._replace(help=status.FIELDS.get(name, name))


def _numbers(
    metric: Metric,
    label: str,
    labels: Labels,
    value: Any,  # noqa: ANN401
) -> Iterator[tuple[Metric, Labels, float]]:
    """The samples in a value: one of a number, several of a mapping to numbers."""
    if isinstance(value, Mapping):
        for name, number in value.items():
            if isinstance(number, (int, float)):
                yield metric, (*labels, (label, str(name))), number
    elif isinstance(value, (int, float)):
        yield metric, labels, value


def _lines(family: _Family) -> Iterator[str]:
    metric = family.metric
    name = f"{PREFIX}{metric.name}"
    help_ = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {name} {help_}\n"
    yield f"# TYPE {name} {metric.kind}\n"
    for labels, value in sorted(family.samples.items()):
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
        yield f"{name}{f'{{{inside}}}' if inside else ''} {_number(value, metric.divisor)}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float, divisor: int) -> str:
    """A value as Go reads it."""
    if divisor != 1:
        value /= divisor
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    # A whole number of a counter stays exact beyond 2^53; True is 1.
    return str(int(value)) if int(value) == value else repr(value)
