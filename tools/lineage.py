"""The processes of a capture, each with its whole life: what ``kcap tree`` shows.

The state knows a process id's latest process; this keeps all of them. What a process is, and when
it becomes another, is decided by the state alone: `Lineage` listens to it, and adds the processes
that events name but nothing described.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kcap.model.batch import Batch, Rows
from kcap.model.classes import I64_MAX, I64_MIN
from kcap.model.side import Loss, SourceInfo
from kcap.state import Process, State
from kcap.state.follow import values_at

Int64s = npt.NDArray[np.int64]

PROCESSES_MAX: Final = 1_000_000
"""Processes that are kept; more are counted."""

IMAGES_MAX: Final = 64
"""Images of one process that are kept, the first and the latest; and user names."""

HOSTS_MAX: Final = 16
"""Names of one machine that are kept."""

TEXT_MAX: Final = 4096
"""Characters of a command line that are kept."""

_EPOCH_NS: Final = 100_000_000 * 10**9
"""A start time below is one since boot: three years without one, or 1973."""


class Image(NamedTuple):
    """What a process executed."""

    ts: int | None
    name: str | None
    exe: str | None
    cmdline: str | None


_NOTHING: Final = Image(None, None, None, None)


@dataclass(slots=True, eq=False)
class Life:
    """One process, from its start to its end as far as the capture tells."""

    machine: str
    pid: int
    number: int
    """Order in which processes become known."""
    key: str | None = None
    parent_key: str | None = None
    ppid: int | None = None
    parent: Life | None = None
    children: list[Life] = field(default_factory=list)
    base: Image = _NOTHING
    """What it was before it executed anything."""
    images: list[Image] = field(default_factory=list)
    image_count: int = 0
    users: list[str] = field(default_factory=list)
    """Who it was, in order."""
    uid: int | None = None
    container_id: str | None = None
    described: bool = False
    """Described by a STATE or a state record: it was there already."""
    forked: bool = False
    """Its start was seen."""
    first_ns: int | None = None
    """When it was first heard of."""
    start_ns: int | None = None
    exited: bool = False
    end_ns: int | None = None
    exit_code: int | None = None
    signal_code: int | None = None
    events: int = 0

    @property
    def followed(self) -> bool:
        """Something told of its life, not just of what it did."""
        return self.described or self.forked or bool(self.images)

    @property
    def image(self) -> Image:
        """What it is, or was at last."""
        return self.images[-1] if self.images else self.base


_Group = tuple[int, str, int, str | None, Int64s]
"""Rows of a process: the first of them, machine, process id, key, and all of them."""


class _Machine:
    """What is known of a machine beside its processes."""

    def __init__(self) -> None:
        self.sources: dict[str, SourceInfo] = {}
        self.hosts: set[str] = set()
        self.stops = False
        """Ends of processes are seen at all."""
        self.boot_ns: int | None = None
        """When it booted, ns since 1970."""
        self.wait_status = False
        """What a source without signals calls an exit code is a wait status (Tracee to v0.15)."""

    def add(self, source: SourceInfo) -> None:
        self.sources[source.id] = source
        if source.host:
            self.hosts.add(source.host)
        self.wait_status |= source.collector == "tracee"
        if source.clocks:
            real, boot = source.clocks[-1]
            self.boot_ns = real - boot


class Lineage:
    """A sink that follows the processes of a stream.

    Args:
        start_ns: Only events at or after it count.
        end_ns: What comes at or after it did not happen.
        wanted: The rows of a batch that count; all where None.

    Example:
        >>> lineage = Lineage()
        >>> state = State(watch=lineage.watch)
        >>> Pipeline(source, [lineage], state=state).run()  # doctest: +SKIP
    """

    def __init__(
        self,
        start_ns: int | None = None,
        end_ns: int | None = None,
        wanted: Callable[[Batch], Rows] | None = None,
    ) -> None:
        self._wanted = wanted
        self.machines: dict[str, _Machine] = defaultdict(_Machine)
        self.lives: list[Life] = []
        self.losses: list[Loss] = []
        self._start_ns = I64_MIN if start_ns is None else start_ns
        self._end_ns = end_ns
        self._restricted = start_ns is not None or end_ns is not None
        self._changes: list[tuple[str, int, Process]] = []
        self._of_key: dict[str, Life] = {}
        self._of_pid: dict[tuple[str, int], list[tuple[int, Life]]] = {}
        """The lives of a process id in this batch and before, by the row they begin at."""
        self._machine_of: dict[str, str] = {}
        self._omitted = 0

    def watch(self, machine: str, row: int, process: Process) -> None:
        """See `kcap.state.state.Watch`."""
        self._changes.append((machine, row, process))

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        for side in batch.before:
            if isinstance(side, SourceInfo):
                machine = State.machine(side)
                self._machine_of[side.id] = machine
                self.machines[machine].add(side)
        changes, self._changes = self._changes, []
        self._follow(batch, changes)
        # Asked of every batch: a filter may follow what stands beside the rows.
        wanted = None if self._wanted is None else self._wanted(batch)
        if batch.rows:
            self._see(batch, wanted)
        for machine, _, process in changes:
            lives = self._of_pid.get((machine, process.pid), [])
            if lives:
                lives[:] = [(-1, lives[-1][1])]

    def close(self) -> None:
        """See `Sink.close`; links children to parents."""
        if self._omitted and not self.losses:
            reason = f"processes beyond {PROCESSES_MAX:,} are not shown"
            self.losses.append(Loss("skipped", self._omitted, reason))
        by_pid: dict[tuple[str, int], list[Life]] = defaultdict(list)
        for life in self.lives:
            by_pid[life.machine, life.pid].append(life)
        for life in self.lives:
            life.parent = self._parent(life, by_pid)
        _cut_cycles(self.lives)
        for life in self.lives:
            if life.parent is not None:
                life.parent.children.append(life)

    def within(self) -> list[Life]:
        """The lives that the time range touches.

        Returns:
            They, in order of number; all where there is no range.
        """
        if self._wanted is not None:
            return [life for life in self.lives if life.events]
        if not self._restricted:
            return self.lives
        return [
            life
            for life in self.lives
            if life.events
            or (life.exited and (life.end_ns is None or life.end_ns >= self._start_ns))
            or (not life.exited and life.followed)
        ]

    def _follow(self, batch: Batch, changes: Sequence[tuple[str, int, Process]]) -> None:
        """Take over what the state says of processes."""
        rows = np.unique(np.array([row for _, row, _ in changes if row >= 0], np.int32))
        at = {row: i for i, row in enumerate(rows.tolist())}
        told = {name: values_at(batch, name, rows) for name in ("ts", "action", "pid")}
        for machine, row, process in changes:
            if row < 0:
                self._take(machine, row, process, None, "process_rundown", None)
                continue
            ts, action, pid = (told[name][at[row]] for name in ("ts", "action", "pid"))
            if self._end_ns is None or ts is None or ts < self._end_ns:
                self._take(machine, row, process, ts, action, pid)

    def _take(
        self,
        machine: str,
        row: int,
        process: Process,
        ts: int | None,
        action: str,
        actor: int | None,
    ) -> None:
        """One version of a process."""
        lives = self._of_pid.get((machine, process.pid), [])
        life = lives[-1][1] if lives else None
        born = action == "process_fork" and process.pid != actor
        other = life is not None and None not in {life.key, process.process_key}
        if life is None or born or (other and life.key != process.process_key):
            life = self._new(machine, process.pid, row, process.process_key)
            if life is None:
                return
            life.first_ns = ts
            life.described = action == "process_rundown"
            life.parent_key, life.ppid = process.parent_key, process.ppid
            if action != "process_start":
                life.base = _image(ts, process)
        self._name(life, process.process_key)
        if born:
            life.forked, life.start_ns = True, ts
        elif action == "process_start":
            life.image_count += 1
            if len(life.images) == IMAGES_MAX:
                del life.images[1]
            life.images.append(_image(ts, process))
        elif action == "process_rename" or (action == "process_rundown" and not life.images):
            self._redescribe(life, process)
        self._update(life, process)

    def _redescribe(self, life: Life, process: Process) -> None:
        """Another name, or a better description, of what runs already."""
        image = life.image._replace(name=process.name)
        if life.images:
            life.images[-1] = image
        else:
            life.base = _image(image.ts, process)

    def _update(self, life: Life, process: Process) -> None:
        """What may change at any time."""
        self._be(life, process.user, process.uid)
        life.container_id = process.container_id or life.container_id
        life.parent_key = life.parent_key or process.parent_key
        life.ppid = process.ppid if life.ppid is None else life.ppid
        life.exited, life.end_ns = process.exited, process.end_ns
        life.exit_code, life.signal_code = process.exit_code, process.signal_code
        known = self.machines[life.machine]
        known.stops |= life.exited
        status = life.exit_code
        if status is not None and life.signal_code is None and known.wait_status:
            life.exit_code, life.signal_code = status >> 8 & 0xFF, status & 0x7F
        if not life.forked and process.start_ns is not None:
            if process.start_ns >= _EPOCH_NS:
                life.start_ns = process.start_ns
            elif known.boot_ns is not None:
                life.start_ns = process.start_ns + known.boot_ns

    def _be(self, life: Life, user: str | None, uid: int | None) -> None:
        """Who a process is now; an id whose name becomes known later is no other user."""
        same = life.users and uid == life.uid
        text = user or (None if uid is None or same else f"uid {uid}")
        life.uid = uid
        if text is None or (life.users and life.users[-1] == text):
            return
        if same or len(life.users) >= IMAGES_MAX:
            life.users.pop()
        life.users.append(text)

    def _new(self, machine: str, pid: int, row: int, key: str | None) -> Life | None:
        if len(self.lives) >= PROCESSES_MAX:
            self._omitted += 1
            return None
        life = Life(machine, pid, len(self.lives))
        self.lives.append(life)
        self._of_pid.setdefault((machine, pid), []).append((row, life))
        self._name(life, key)
        return life

    def _name(self, life: Life, key: str | None) -> None:
        if life.key is None and key is not None:
            life.key = key
            self._of_key.setdefault(key, life)

    def _see(self, batch: Batch, wanted: Rows | None) -> None:
        """Count the events of each process; enter those that nothing described."""
        rows = self._counted(batch)
        if wanted is not None:
            rows = np.intersect1d(rows, wanted, assume_unique=True)
        if not len(rows):
            return
        source, sources = _codes(batch, "source", rows)
        key, keys = _codes(batch, "process_key", rows)
        self._see_hosts(batch, rows, source, sources)
        pids, pid = np.unique(batch.numpy("pid", 0)[rows], return_inverse=True)
        sizes = (len(sources) + 1, len(keys) + 1, len(pids))
        which = np.ravel_multi_index((source + 1, key + 1, pid), sizes)
        found, group_of = np.unique(which, return_inverse=True)
        times, timed = batch.numpy("ts", 0), batch.mask("ts")
        grouped = np.split(
            rows[np.argsort(group_of, kind="stable")], np.cumsum(np.bincount(group_of))[:-1]
        )
        unknown: list[_Group] = []
        for group, (source_code, key_code, pid_code) in enumerate(
            zip(*np.unravel_index(found, sizes), strict=True)
        ):
            text = sources[source_code - 1] if source_code else ""
            machine = self._machine_of.get(text, text)
            known_key = keys[key_code - 1] if key_code else None
            number = int(pids[pid_code])
            begin = int(grouped[group][0])
            ts = int(times[begin]) if timed[begin] else None
            if not self._count(machine, number, known_key, grouped[group], ts):
                unknown.append((begin, machine, number, known_key, grouped[group]))
        self._enter(batch, sorted(unknown, key=lambda u: u[0]))

    def _see_hosts(self, batch: Batch, rows: Int64s, source: Int64s, sources: list[str]) -> None:
        """Names of hosts that only events tell."""
        host, hosts = _codes(batch, "host", rows)
        for code in np.unique(source).tolist():
            text = sources[code] if code >= 0 else ""
            known = self.machines[self._machine_of.get(text, text)].hosts
            if len(known) < HOSTS_MAX:
                found = np.unique(host[(source == code) & (host >= 0)]).tolist()
                known.update(hosts[i] for i in found[:HOSTS_MAX])

    def _counted(self, batch: Batch) -> Int64s:
        """The rows that are events of a process, and within the time range."""
        counted = batch.mask("pid")
        kind = batch.get("kind")
        if kind is not None:
            state = np.array([e == "state" for e in kind.values.dictionary.to_pylist()], np.bool_)
            at = slice(None) if kind.rows is None else kind.rows
            counted[at] &= ~state[kind.codes()]
        if self._restricted:
            end = I64_MAX if self._end_ns is None else self._end_ns
            times = batch.numpy("ts", I64_MIN)
            counted &= batch.mask("ts") & (times >= self._start_ns) & (times < end)
        return np.flatnonzero(counted)

    def _count(self, machine: str, pid: int, key: str | None, rows: Int64s, ts: int | None) -> bool:
        """Add events to the process they belong to; False where it is not known."""
        lives = self._of_pid.get((machine, pid), [])
        life = None if key is None else self._of_key.get(key)
        if life is None and key is not None and lives and lives[-1][1].key is None:
            life = lives[-1][1]
            self._name(life, key)
        if life is not None:
            life.events += len(rows)
            if ts is not None:
                life.first_ns = ts if life.first_ns is None else min(ts, life.first_ns)
            return True
        if key is not None or not lives:
            return False
        begins = [row for row, _ in lives]
        holder = np.maximum(np.searchsorted(begins, rows, "right") - 1, 0)
        for number, events in enumerate(np.bincount(holder, minlength=len(lives)).tolist()):
            lives[number][1].events += events
        return True

    def _enter(self, batch: Batch, unknown: Sequence[_Group]) -> None:
        """Enter processes that only events name, as their first event describes them."""
        rows = np.array([row for row, *_ in unknown], np.int32)
        names = ("ts", "ppid", "process_name", "exe", "cmdline", "user", "uid", "container_id")
        told = {name: values_at(batch, name, rows) for name in names}
        for i, (row, machine, pid, key, found) in enumerate(unknown):
            if self._count(machine, pid, key, found, told["ts"][i]):
                continue  # rows that say less, or more, of a process that was entered just now
            life = self._new(machine, pid, row, key)
            if life is None:
                continue
            facts = {name: values[i] for name, values in told.items()}
            life.events, life.first_ns, life.ppid = len(found), facts["ts"], facts["ppid"]
            life.container_id = facts["container_id"] or None
            texts = (facts["process_name"], facts["exe"], facts["cmdline"])
            life.base = Image(facts["ts"], *map(_short, texts))
            self._be(life, facts["user"], facts["uid"])

    def _parent(self, life: Life, by_pid: dict[tuple[str, int], list[Life]]) -> Life | None:
        """The process that started another, as it was then."""
        if life.parent_key is not None and life.parent_key in self._of_key:
            return self._of_key[life.parent_key]
        if life.ppid is None:
            return None
        known = by_pid.get((life.machine, life.ppid), [])
        before = [one for one in known if one.number < life.number]
        after = [one for one in known if one.number > life.number and not one.forked]
        found = before[-1] if before else after[0] if after else None
        return None if found is life else found


def _image(ts: int | None, process: Process) -> Image:
    return Image(ts, process.name, _short(process.exe), _short(process.cmdline))


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}…"


def _codes(batch: Batch, name: str, rows: Int64s) -> tuple[Int64s, list[Any]]:
    """A text column's codes at some rows, -1 for none, and its texts."""
    full = np.full(batch.rows, -1, np.int64)
    column = batch.get(name)
    if column is None:
        return full[rows], []
    full[slice(None) if column.rows is None else column.rows] = column.codes()
    return full[rows], column.values.dictionary.to_pylist()


def _cut_cycles(lives: Iterable[Life]) -> None:
    """Make a root of the first process of each cycle: a capture may claim anything."""
    done: set[Life] = set()
    for life in lives:
        path: dict[Life, None] = {}
        at: Life | None = life
        while at is not None and at not in done and at not in path:
            path[at] = None
            at = at.parent
        if at is not None and at in path:
            members = list(path)
            first = min(members[members.index(at) :], key=lambda m: m.number)
            first.parent = None
        done.update(path)
