"""``kcap tree``: the process tree of a capture."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from kcap.tools import common, logs
from kcap.tools.cli import Verb
from kcap.tools.play import opened_source

if TYPE_CHECKING:
    from kcap.filter import Filter
    from kcap.tools.lineage import Image, Life, Lineage

DEPTH_MAX: Final = 40
"""Levels that are indented; deeper ones say their number, or lines would grow without end."""

LABEL_CHARS: Final = 100
"""Characters of a command line that are shown."""

_IMAGES_SHOWN: Final = 4
_HOSTS_SHOWN: Final = 3
_LINES: Final = 1000


class Glyphs(NamedTuple):
    """What the branches are drawn with."""

    child: str
    last: str
    below: str
    arrow: str
    least: str
    cut: str


UNICODE: Final = Glyphs("├─ ", "└─ ", "│  ", " → ", "≥ ", "…")
ASCII: Final = Glyphs("|- ", "`- ", "|  ", " -> ", ">= ", "...")


@click.command(
    "tree",
    cls=Verb,
    examples=(
        "kcap tree host.kcap",
        "kcap tree --pid 4711 host.kcap",
        "kcap tree -w \"file.path startswith '/etc/'\" host.kcap",
        "kcap tree --json host.kcap | jq '.processes[] | select(.exit_code > 0)'",
    ),
)
@click.argument("capture")
@click.option("--pid", type=int, help="Only this process, its ancestors and its descendants.")
@common.where_option
@click.option(
    "--start", type=common.EventTime(), help="Only processes there at this time or later."
)
@click.option("--end", type=common.EventTime(), help="Only what came before this time.")
@click.option("--json", "as_json", is_flag=True, help="The processes as JSON, in the tree's order.")
@click.option("--full", is_flag=True, help="Command lines in full.")
@click.option("--ascii", "plain", is_flag=True, help="Branches without Unicode.")
@common.lenient_option
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="auto: on a terminal, unless NO_COLOR is set.",
)
@click.pass_context
def command(
    ctx: click.Context,
    capture: str,
    pid: int | None,
    where: Filter | None,
    start: int | None,
    end: int | None,
    as_json: bool,
    full: bool,
    plain: bool,
    lenient: bool,
    color: str,
) -> None:
    """Show who started whom in CAPTURE: every process that ran, was there, or did something.

    Each line has the process id, what it executed one after the other (a -> b), and in brackets:
    the user, when it started (UTC), how long it ran, and its exit code or the signal that ended
    it; "no exec": it kept the image of its parent. Hosts and boots are apart, and so are processes
    that had one id at different times. With -w: only processes with an event for which the filter
    is true, and their ancestors.
    """
    from kcap.errors import KcapError
    from kcap.replay.pipeline import Pipeline
    from kcap.replay.resolved import OWN
    from kcap.replay.stages import Matching
    from kcap.state import State
    from kcap.tools.lineage import Lineage

    lineage = Lineage(start, end, None if where is None else Matching(where).rows)
    state = State(watch=lineage.watch)
    with opened_source(capture, lenient=lenient, resolve=False) as source:
        if where is not None:
            where.bind([source])
        foreign = source.info.format not in OWN
        summary = Pipeline(source, [lineage], state=state, resolve=foreign).run()
    if where is not None:
        summary.losses += where.losses
    kept = _chosen(lineage, pid)
    if pid is not None and not kept:
        raise KcapError(f"no process has the id {pid}", file=capture)
    if as_json:
        _write(_as_json(capture, lineage, kept))
    else:
        glyphs = UNICODE if not plain and _can_show(UNICODE) else ASCII
        view = _View(lineage, glyphs, full=full, color=common.wants_color(color, sys.stdout.buffer))
        _write(view.lines(kept))
        logs.tell(f"kcap: {common.counted(len(kept), 'process')}")
    common.finish(ctx, summary, capture)


def _chosen(lineage: Lineage, pid: int | None) -> set[Life]:
    """The lives to show: those asked for, with all their ancestors."""
    if pid is None:
        kept = set(lineage.within())
    else:
        todo = [life for life in lineage.within() if life.pid == pid]
        kept = set()
        while todo:
            life = todo.pop()
            if life not in kept:
                kept.add(life)
                todo += life.children
        kept.intersection_update(lineage.within())
    for life in list(kept):
        above = life.parent
        while above is not None and above not in kept:
            kept.add(above)
            above = above.parent
    return kept


def _ordered(kept: set[Life], machines: Iterable[str]) -> Iterator[tuple[str, list[Life]]]:
    """The roots of each machine, in order of appearance."""
    roots: dict[str, list[Life]] = {machine: [] for machine in machines}
    for life in sorted(kept, key=lambda one: one.number):
        if life.parent is None:
            roots.setdefault(life.machine, []).append(life)
    yield from ((machine, found) for machine, found in roots.items() if found)


def _walk(roots: Sequence[Life], kept: set[Life]) -> Iterator[tuple[Life, int, bool]]:
    """Each life with its depth and whether it is its parent's last; without recursion."""
    todo = [(root, 0, False) for root in reversed(roots)]
    while todo:
        life, depth, last = todo.pop()
        yield life, depth, last
        children = [child for child in life.children if child in kept]
        todo += [(child, depth + 1, i == 0) for i, child in enumerate(reversed(children))]


class _View:
    """Lives as lines."""

    def __init__(self, lineage: Lineage, glyphs: Glyphs, *, full: bool, color: bool) -> None:
        self._lineage = lineage
        self._glyphs = glyphs
        self._full = full
        self._color = color
        self._day = ""

    def lines(self, kept: set[Life]) -> Iterator[str]:
        """Each machine's tree under its name."""
        for number, (machine, roots) in enumerate(_ordered(kept, self._lineage.machines)):
            if number:
                yield ""
            times = [life.first_ns for life in kept if life.machine == machine and life.first_ns]
            self._day = common.utc(min(times))[:10] if times else ""
            yield self._styled(self._title(machine), bold=True)
            bars: list[str] = []
            for life, depth, last in _walk(roots, kept):
                del bars[max(depth - 1, 0) :]
                yield f"{self._branch(bars, depth, last=last)}{self._line(life)}"
                if depth:
                    bars.append("   " if last else self._glyphs.below)

    def _branch(self, bars: Sequence[str], depth: int, *, last: bool) -> str:
        if not depth:
            return ""
        own = self._glyphs.last if last else self._glyphs.child
        if depth <= DEPTH_MAX:
            return "".join(bars) + own
        return f"{''.join(bars[:DEPTH_MAX])}{self._glyphs.cut}({depth}) "

    def _title(self, machine: str) -> str:
        from kcap.model.text import printable

        known = self._lineage.machines[machine]
        hosts = sorted(known.hosts)
        more = f" and {len(hosts) - _HOSTS_SHOWN} more" if len(hosts) > _HOSTS_SHOWN else ""
        parts = [", ".join(hosts[:_HOSTS_SHOWN]) + more if hosts else "unknown host"]
        boots = {source.boot_id for source in known.sources.values() if source.boot_id}
        parts += [f"boot {boot}" for boot in sorted(boots)]
        parts += [f"{self._day} UTC"] if self._day else []
        return printable(", ".join(parts))

    def _line(self, life: Life) -> str:
        from kcap.model.text import printable

        notes = ", ".join(note for note in self._notes(life) if note)
        text = f"{life.pid} {printable(self._label(life))}"
        return f"{text}  {self._styled(f'[{printable(notes)}]', **_style(life))}"

    def _label(self, life: Life) -> str:
        """What a process was, one image after the other."""
        images = list(life.images)
        if not images or (not life.forked and any(life.base)):
            images.insert(0, life.base)
        hidden = max(len(images), life.image_count) - _IMAGES_SHOWN
        texts = [self._short(_image_text(image)) for image in images]
        if hidden > 0:
            texts[1 : len(texts) - _IMAGES_SHOWN + 2] = [f"({hidden + 1} more)"]
        return self._glyphs.arrow.join(texts)

    def _short(self, text: str) -> str:
        if self._full or len(text) <= LABEL_CHARS:
            return text
        return f"{text[:LABEL_CHARS]}{self._glyphs.cut}"

    def _notes(self, life: Life) -> Iterator[str | None]:
        """What is said in brackets."""
        stops = self._lineage.machines[life.machine].stops
        yield self._glyphs.arrow.join(life.users)
        yield f"container {life.container_id[:12]}" if life.container_id else None
        if life.parent is None and life.ppid:
            yield f"parent {life.ppid} not seen"
        if life.described:
            yield "already running" if life.exited or not stops else "running throughout"
        if life.start_ns is not None:
            yield self._time(life.start_ns)
        elif life.first_ns is not None and not life.described:
            yield f"first seen {self._time(life.first_ns)}"
        if life.exited:
            yield self._duration(life)
            yield _result(life)
        elif stops and life.followed and not life.described:
            yield "still running"
        if life.forked and not life.images:
            yield "no exec"

    def _time(self, ns: int) -> str:
        text = common.utc(ns)
        day = "" if text[:10] == self._day else f"{text[:10]} "
        return f"{day}{text[11:23]}"

    def _duration(self, life: Life) -> str | None:
        since = life.first_ns if life.start_ns is None else life.start_ns
        if since is None or life.end_ns is None:
            return None
        least = self._glyphs.least if life.start_ns is None else ""
        return f"{least}{common.duration_text(life.end_ns - since)}"

    def _styled(self, text: str, **style: Any) -> str:  # noqa: ANN401
        return click.style(text, **style) if self._color else text


def _style(life: Life) -> dict[str, Any]:
    """Red where a process was killed or failed, else dim."""
    return {"fg": "red"} if life.signal_code or life.exit_code else {"dim": True}


def _image_text(image: Image) -> str:
    return image.cmdline or image.exe or image.name or "?"


def _result(life: Life) -> str:
    """How a process ended."""
    from kcap.model import catalogue

    if life.signal_code:
        name = catalogue.decoder("signal").get(life.signal_code)
        return f"killed by {name or 'signal'}{'' if name else f' {life.signal_code}'}"
    return "ended" if life.exit_code is None else f"exit {life.exit_code}"


def _can_show(glyphs: Glyphs) -> bool:
    """Whether standard output has the characters."""
    try:
        "".join(glyphs).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _as_json(capture: str, lineage: Lineage, kept: set[Life]) -> Iterator[str]:
    """One object, a process a line."""
    known = lineage.machines
    used = {life.machine for life in kept}
    machines = [
        {
            "machine": machine,
            "hosts": sorted(one.hosts),
            "boot_id": next((s.boot_id for s in one.sources.values() if s.boot_id), None),
            "sources": sorted(one.sources),
        }
        for machine, one in known.items()
        if machine in used
    ]
    yield f'{{"file": {json.dumps(capture)},\n"machines": {json.dumps(machines)},\n"processes": ['
    index: dict[Life, int] = {}
    for _, roots in _ordered(kept, known):
        for life, depth, _ in _walk(roots, kept):
            index[life] = len(index)
            value = _as_object(life, depth, None if life.parent is None else index[life.parent])
            told = life.exited or (life.followed and known[life.machine].stops)
            value["running"] = not life.exited if told else None
            yield f"{',' if index[life] else ' '}{json.dumps(value)}"
    yield "]}"


def _as_object(life: Life, depth: int, parent: int | None) -> dict[str, Any]:
    image = life.image
    timed = life.start_ns is not None and life.end_ns is not None
    return {
        "pid": life.pid,
        "process_key": life.key,
        "machine": life.machine,
        "parent": parent,
        "ppid": life.ppid,
        "depth": depth,
        "name": image.name,
        "exe": image.exe,
        "cmdline": image.cmdline,
        "execs": [
            {"ts": one.ts, "name": one.name, "exe": one.exe, "cmdline": one.cmdline}
            for one in life.images
        ],
        "exec_count": life.image_count,
        "users": life.users,
        "uid": life.uid,
        "container_id": life.container_id,
        "already_running": life.described,
        "forked": life.forked,
        "first_ns": life.first_ns,
        "start_ns": life.start_ns,
        "start": None if life.start_ns is None else common.utc(life.start_ns),
        "end_ns": life.end_ns,
        "duration_ns": (life.end_ns or 0) - (life.start_ns or 0) if timed else None,
        "exited": life.exited,
        "exit_code": life.exit_code,
        "signal": life.signal_code or None,
        "events": life.events,
    }


def _write(lines: Iterable[str]) -> None:
    """Print lines, many at a time."""
    held: list[str] = []
    for line in lines:
        held.append(line)
        if len(held) >= _LINES:
            click.echo("\n".join(held), color=True)
            held = []
    if held:
        click.echo("\n".join(held), color=True)
