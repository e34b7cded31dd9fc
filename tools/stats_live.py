"""``kcap stats --live``: how a recorder that runs is doing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar

import click

from kcap.errors import KcapError
from kcap.tools import common, control, logs, metrics, prometheus

_F = TypeVar("_F", bound=Callable[..., Any])

INTERVAL_S: Final = 1.0
"""Seconds between readings where none are asked for."""

TOP: Final = 10
"""Event names on the screen; JSON has all that the recorder tells."""

_LEAST_S: Final = 0.1
_CLEAR: Final = "\x1b[H\x1b[J"
_LOSSES: Final = 5
_UNSEEN: Final = {
    "cannot_see": "cannot see",
    "unavailable": "not in this kernel",
    "refused": "refused by this kernel",
}
"""Details that are shown, and what stands before them."""

Stats = Mapping[str, Any]


class LiveOptions(TypedDict):
    """The options that `live_options` declares."""

    live: bool
    interval: float | None
    form: str | None
    listen: metrics.Address | None


def live_options(function: _F) -> _F:
    """``--live``, ``--interval``, ``--format``, ``--listen``."""
    for option in (
        click.option(
            "--listen",
            type=metrics.ListenAddress(),
            metavar="[HOST:]PORT",
            help="With --live: answer Prometheus at /metrics, of this host alone unless HOST is"
            " another address.",
        ),
        click.option(
            "--format",
            "form",
            type=click.Choice(["text", "json", "prometheus"]),
            help="prometheus: with --live, its text format, once.  [default: text]",
        ),
        click.option(
            "--interval", type=common.Duration(), help="Time between two of them.  [default: 1s]"
        ),
        click.option(
            "--live", is_flag=True, help="The numbers of a recorder that runs, as they change."
        ),
    ):
        function = option(function)
    return function


def show(words: tuple[str, ...], count: int | None, options: LiveOptions, *, as_json: bool) -> None:
    """Show the numbers of a recorder in the form that the options ask for.

    Args:
        words: What the user gave: a process id, a socket, or nothing.
        count: Readings after which it is enough.
        options: The options of the verb.
        as_json: The verb's own option for ``--format json``.

    Raises:
        KcapError: There is no such recorder, or it does not answer.
    """
    form, listen, interval_s = options["form"], options["listen"], options["interval"]
    if listen is not None:
        if as_json or form in {"text", "json"} or interval_s is not None or count is not None:
            raise click.UsageError("--listen answers in Prometheus's format, when it is asked")
        # A recorder may end and another begin: each answer is of the one there is.
        metrics.serve(listen, lambda: dict(_reading(_chosen(words))))
    elif form == "prometheus":
        if as_json or interval_s is not None or count is not None:
            raise click.UsageError("--format prometheus is one reading")
        click.echo(prometheus.exposition(_reading(_chosen(words))), nl=False)
    else:
        as_json = as_json or form == "json"
        watch(words, count=count, interval_s=interval_s, as_json=as_json)


def without(options: LiveOptions) -> bool:
    """Refuse what goes with ``--live`` alone.

    Args:
        options: The options of the verb.

    Returns:
        Whether JSON is asked for.

    Raises:
        click.UsageError: Prometheus is to get the numbers of a capture.
    """
    if options["listen"] or options["form"] == "prometheus":
        raise click.UsageError("Prometheus gets the numbers of a recorder that runs: --live")
    return options["form"] == "json"


def _reading(path: Path) -> Stats:
    stats: Stats = control.ask(path, control.STATS).get(control.STATS, {})
    return stats


def watch(
    words: tuple[str, ...], *, count: int | None, interval_s: float | None, as_json: bool
) -> None:
    """Show the numbers of a recorder until it ends, or Ctrl-C.

    Args:
        words: What the user gave: a process id, a socket, or nothing.
        count: Readings after which it is enough.
        interval_s: Seconds between them.
        as_json: One JSON object a reading.

    Raises:
        KcapError: There is no such recorder, or it does not answer.
    """
    path = _chosen(words)
    interval_s = INTERVAL_S if interval_s is None else max(_LEAST_S, interval_s)
    begun_s, readings = time.monotonic(), 0
    screen = not as_json and sys.stdout.isatty()
    while count is None or readings < count:
        try:
            stats = _reading(path)
        except KcapError:
            if readings and path not in control.sockets():
                logs.tell("kcap: the recorder has ended")
                return
            raise
        if as_json:
            click.echo(json.dumps(stats, sort_keys=True))
        elif screen:
            click.echo(_CLEAR + "\n".join(_table(stats)))
        else:
            click.echo(_line(stats))
        sys.stdout.flush()
        readings += 1
        if count is None or readings < count:
            time.sleep(max(0.0, begun_s + readings * interval_s - time.monotonic()))


def _chosen(words: tuple[str, ...]) -> Path:
    """The socket that is meant."""
    if len(words) > 1:
        raise click.UsageError("--live shows one recorder: give its process id or its socket")
    if words and not words[0].isdecimal():
        return Path(words[0])
    found = control.sockets()
    if words:
        found = [path for path in found if path.stem == words[0]]
    if not found:
        which = f"with process id {words[0]} " if words else ""
        raise KcapError(
            f"no recorder {which}answers this user",
            hint="start one with 'kcap record'; those that root has started answer root alone",
        )
    if len(found) > 1:
        known = "".join(f"\n  {line}" for line in map(_brief, found))
        raise click.UsageError(f"{len(found)} recorders run; give the process id of one:{known}")
    return found[0]


def _brief(path: Path) -> str:
    """A recorder in a list of them."""
    from kcap.model.text import printable

    try:
        stats = control.ask(path, control.STATS)[control.STATS]
    except KcapError as e:
        return f"{path.stem}  ({printable(e.what)})"
    since = common.utc(_number(stats, "since_ns"))[:19]
    return printable(f"{path.stem}  since {since}Z  {stats.get('output')}")


def _line(stats: Stats) -> str:
    """A reading in a line, for a pipe or a log."""
    return "  ".join(
        [
            f"{common.utc(_number(stats, 'now_ns'))[:19]}Z",
            common.counted(_number(stats, "events"), "event"),
            f"{stats.get('events_per_s', 0):,.1f}/s",
            common.size_text(_number(stats, "bytes_written")),
            f"{common.size_text(_number(stats, 'bytes_per_s'))}/s",
            f"{_number(stats, 'lost'):,} lost",
            f"{_number(stats, 'blind'):,} blind",
            f"{common.size_text(_number(stats, 'rss_bytes'))} rss",
            f"{stats.get('cpu_percent', 0):.1f} % cpu",
        ]
    )


def _table(stats: Stats) -> Iterator[str]:
    """A reading on a screen."""
    from kcap.model.text import printable

    yield from _heading(stats)
    yield ""
    yield from _numbers(stats)
    names = stats.get("events_by_name") or {}
    if names:
        yield ""
        shown = sorted(names.items(), key=lambda item: (-item[1], item[0]))[:TOP]
        width = max(len(f"{number:,}") for _, number in shown)
        for name, number in shown:
            yield f"  {number:>{width},}  {printable(str(name))}"
    sinks = stats.get("sinks") or []
    if sinks:
        yield ""
        yield from map(printable, map(_sink, sinks))
    losses = stats.get("losses") or []
    if losses:
        yield ""
        for text in losses[-_LOSSES:]:
            yield printable(str(text))
    details = stats.get("details") or {}
    unseen = [f"{what}: {text}" for name, what in _UNSEEN.items() for text in details.get(name, ())]
    if unseen:
        yield ""
        yield from map(printable, unseen)


def _heading(stats: Stats) -> Iterator[str]:
    from kcap.model.text import printable

    since_ns, now_ns = _number(stats, "since_ns"), _number(stats, "now_ns")
    yield printable(
        f"recorder {stats.get('pid')}, kcap {stats.get('kcap')} with {stats.get('source')}, "
        f"since {common.utc(since_ns)[:19]}Z: {common.duration_text(now_ns - since_ns)}"
    )
    part = f"part {stats.get('part')} " if _number(stats, "part") > 1 else ""
    free = stats.get("disk_free_bytes")
    room = "" if free is None else f", {common.size_text(_number(stats, 'disk_free_bytes'))} free"
    yield printable(f"writes {part}{stats.get('output')}{room}")


def _numbers(stats: Stats) -> Iterator[str]:
    """The counters, under each other: what, how many, how quickly."""
    ring = stats.get("ring_waiting_bytes")
    waiting = "unknown" if ring is None else common.size_text(_number(stats, "ring_waiting_bytes"))
    processes = common.counted(len(stats.get("pids") or ()), "process")
    memory = common.size_text(_number(stats, "rss_bytes"))
    rows = [
        ("events", f"{_number(stats, 'events'):,}", f"{stats.get('events_per_s', 0):,.1f}/s"),
        ("left out", f"{_number(stats, 'filtered'):,}", ""),
        ("lost", f"{_number(stats, 'lost'):,}", ""),
        ("blind", f"{_number(stats, 'blind'):,}", ""),
        ("damaged", f"{_number(stats, 'damaged') + _number(stats, 'torn'):,}", ""),
        (
            "written",
            common.size_text(_number(stats, "bytes_written")),
            f"{common.size_text(_number(stats, 'bytes_per_s'))}/s",
        ),
        ("waiting", f"{_number(stats, 'waiting_events'):,}", "events, for their chunk"),
        ("in the ring", waiting, ""),
        ("memory", memory, f"{processes}, shared pages in each"),
        ("processor", f"{stats.get('cpu_s', 0):,.1f} s", f"{stats.get('cpu_percent', 0):.1f} %"),
    ]
    width = max(len(value) for _, value, _ in rows)
    for name, value, more in rows:
        yield f"{name:<12} {value:>{width}}  {more}".rstrip()


def _sink(said: Stats) -> str:
    """How a sink does."""
    refused = sum((said.get("refused") or {}).values())
    parts = [
        f"{_number(said, 'taken'):,} delivered",
        f"{_number(said, 'waiting'):,} waiting",
        *([f"{common.size_text(_number(said, 'spooled'))} spooled"] if said.get("spooled") else []),
        *([f"{refused:,} refused"] if refused else []),
        *([f"{said['state']}"] if said.get("state") not in {None, "running"} else []),
        *([str(said["error"])] if said.get("error") else []),
    ]
    return f"{said.get('sink')}: {', '.join(parts)}"


def _number(stats: Stats, name: str) -> int:
    """A counter; 0 where another version does not tell it."""
    value = stats.get(name)
    return int(value) if isinstance(value, int | float) else 0
