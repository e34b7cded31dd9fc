"""The tap that rules look through: the same alerts live and from files, whatever the batches.

Columns are asked first (`kcap.detect.candidates`); Python runs for the events that some rule wants.
All time is that of the events: the clock of an event is the greatest time so far. A deadline comes
before the first event whose clock is greater, wherever that stands. Heartbeats of a recorder, which
a replay does not have, move nothing.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kcap.binaries import inspector
from kcap.binaries.inspector import Inspector
from kcap.detect.candidates import Candidate, Candidates
from kcap.detect.contents import Found, Scans
from kcap.detect.event import Looked, Row
from kcap.detect.room import Bounds, Room
from kcap.detect.rule import Exempt, Identity, Problem, Rule, Scanner
from kcap.detect.run import Raised, Run
from kcap.errors import KcapError
from kcap.model import alert
from kcap.model.alert import Alert
from kcap.model.batch import Batch, Rows, state_rows
from kcap.model.classes import I64_MIN
from kcap.model.side import Loss
from kcap.model.stream import Source

Int64s = npt.NDArray[np.int64]

DEPTH_MAX: Final = 5
"""An alert of a rule is an event for others; alerts of alerts go no deeper."""

DEADLINES_MAX: Final = 100_000
"""Deadlines of one rule between two events: more are a loop."""

_NUMBERED: Final = 1 << 16
"""Alerts of which it is remembered how many were alike."""


class Choice(Protocol):
    """Tells which events rules look at (`kcap.replay.stages.Matching`)."""

    def rows(self, batch: Batch) -> Rows:
        """Their row numbers."""


class _Deadline(NamedTuple):
    time_ns: int
    rule: int
    number: int
    key: object


class Detections:
    """Runs rules over a stream (`kcap.replay.tap.Tap`).

    Example:
        >>> from kcap.detect.rule import About, Selector
        >>> from kcap.filter import Filter
        >>> one = Rule(About(id="X", name="x"), (Selector("a", Filter.of("pid = 1")),))
        >>> Detections([one]).problems
        []

    Args:
        rules: The rules; of two with one id the first runs.
        exceptions: Alerts that are not wanted; they are counted.
        throttle_ns: After an alert of a rule about a process, no other of the two for so long.
        start_ns: Alerts from before this time are not raised; rules see what happened before it.
        where: What of the events rules look at, however much all of them tell; None for all.
        bounds: How much rules may remember.
        binaries: Answer ``pe.*`` and ``elf.*`` from artifacts, see `bind`.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        *,
        exceptions: Iterable[Exempt] = (),
        throttle_ns: int | None = None,
        start_ns: int | None = None,
        where: Choice | None = None,
        bounds: Bounds | None = None,
        binaries: bool = False,
    ) -> None:
        chosen, self.problems = unique(rules)
        """Why rules do not run, or do not run any more."""
        self.rules = tuple(sorted(chosen, key=lambda rule: rule.about.id))
        """Those that run, in the order of their alerts."""
        self.suppressed: Counter[tuple[str, str]] = Counter()
        """Alerts that were not raised, by rule and reason."""
        self.room = Room(bounds)
        every = [one._replace(rule=rule.about.id) for rule in chosen for one in rule.exceptions]
        self._exceptions = (*every, *exceptions)
        self._throttle_ns = throttle_ns
        self._start_ns = I64_MIN if start_ns is None else start_ns
        self._where = where
        self._deadlines: list[_Deadline] = []
        self._clock_ns = I64_MIN
        self.now_ns = I64_MIN
        """The logical clock."""
        self.event: Row | None = None
        """The event that is looked at."""
        self.raised: list[Raised] = []
        """Alerts of the event that is looked at, in order."""
        self._runs = [Run(self, number, rule) for number, rule in enumerate(self.rules)]
        asked = [*(run.fields for run in self._runs), self._asked()]
        self._candidates = Candidates(self.rules, frozenset[str]().union(*asked))
        self._inspector = self._inspecting(binaries=binaries)
        self._scans = Scans(self.rules, self._inspector.library)
        self._asked_for = 0
        self._count = 0
        """Events so far, those of the batch that is looked at left out."""
        self._fired = Counter[int]()
        """Deadlines of each rule before one event."""
        self._fired_at = -1
        self._numbered: OrderedDict[tuple[str, str, tuple[Identity, ...]], int] = OrderedDict()
        self._quiet: OrderedDict[tuple[str, object], int] = OrderedDict()
        self._too_deep = 0
        self._muted = False

    def _inspecting(self, *, binaries: bool) -> Inspector:
        """What answers rules from artifacts."""
        wanted = self._candidates.columns & inspector.ASKED
        if binaries:
            wanted |= inspector.COLUMNS - inspector.ASKED
        scanners: dict[str, Scanner] = {}
        for text in inspector.texts(self._candidates.fields):
            try:
                scanners[text] = inspector.scanner(text)
            except KcapError as error:
                self.problems.append(Problem(error))
        return Inspector(wanted, scanners)

    def _asked(self) -> frozenset[str]:
        """Fields of exceptions, which the state may have to know."""
        refs = [ref for one in self._exceptions for ref in one.filter.checked.fields]
        return frozenset(ref.name for ref in refs if ref.argument is None and not ref.segment)

    def bind(self, sources: Iterable[Source]) -> None:
        """Take notice of the artifacts of captures, where rules ask for any.

        Args:
            sources: The sources of the run, as they were opened.
        """
        if self._scans.wanted or self._inspector.wanted:
            self._inspector.bind(sources)

    @property
    def needs_state(self) -> bool:
        """Whether rules ask for what only following all events tells."""
        return self._candidates.needs_state

    @property
    def losses(self) -> list[Loss]:
        """What was not looked at, or was forgotten: then the run is not what it should be."""
        found = [Loss("blind", None, str(problem.error)) for problem in self.problems]
        found += [*self._inspector.losses, *self._scans.losses]
        for run in self._runs:
            if run.dropped_count:
                name = run.rule.about.id
                reason = f"the rule {name} had to remember too much: the oldest was forgotten"
                found.append(Loss("evicted", run.dropped_count, reason))
        if self._too_deep:
            reason = f"alerts of alerts go no deeper than {DEPTH_MAX}: not looked at"
            found.append(Loss("blind", self._too_deep, reason))
        return found

    # the tap

    def see(self, batch: Batch) -> list[tuple[int, Batch]]:
        """See `kcap.replay.tap.Tap`."""
        found = self.alerts(batch)
        if not found:
            return []
        # Columns are made once; a batch of a single alert takes as long as one of thousands.
        whole = alert.batch([one for _, one in found])
        counts = Counter(rows for rows, _ in found)
        ends = accumulate(counts.values())
        return [
            (rows, whole.slice(end - count, end))
            for (rows, count), end in zip(counts.items(), ends, strict=True)
        ]

    def end(self) -> list[Batch]:
        """See `kcap.replay.tap.Tap`."""
        found = self.last()
        return [alert.batch(found)] if found else []

    def close(self) -> None:
        """See `kcap.replay.tap.Tap`."""

    def warm(self, batch: Batch) -> None:
        """Let rules see events from before the part that matters; no alerts come of it.

        Args:
            batch: The events.
        """
        suppressed = self.suppressed.copy()
        self._muted = True
        try:
            self.alerts(batch)
        finally:
            self._muted = False
            self.suppressed = suppressed

    def alerts(self, batch: Batch) -> list[tuple[int, Alert]]:
        """Look at the next events.

        Args:
            batch: The events.

        Returns:
            Alerts, each with the number of rows that it comes behind, in order.
        """
        times = self._times(batch)
        batch = self._inspector.update(batch)
        scanned = self._scans.of(batch) if self._scans.wanted else []
        candidates = self._candidates.of(batch)
        if present := [one for one in scanned if one[0] >= 0]:
            more = self._candidates.finding(batch, present)
            candidates = [*heapq.merge(candidates, more, key=lambda one: one[:2])]
        if self._where is not None:
            wanted = set(self._where.rows(batch).tolist())
            candidates = [one for one in candidates if one.row in wanted]
        found = [*self._late(scanned)]
        at = done = 0
        while at < len(candidates):
            row = candidates[at].row
            found += self._due(times, done, row)
            behind = at
            while behind < len(candidates) and candidates[behind].row == row:
                behind += 1
            self.now_ns = int(times[row])
            found += [(row + 1, one) for one in self._looked(candidates[at:behind])]
            at, done = behind, row + 1
        found += self._due(times, done, batch.rows - 1)
        self.now_ns = self._clock_ns
        self._count += batch.rows
        return found

    def last(self) -> list[Alert]:
        """Say that no event follows.

        Returns:
            The last alerts: those of deadlines that are not in the future, then of ends.
        """
        found: list[Alert] = []
        self.now_ns = self._clock_ns
        while self._deadlines and self._deadlines[0].time_ns <= self._clock_ns:
            found += self._passed()
        for run in self._runs:
            run.end()
            found += self._settled()
        for one in self._scans.left() if self._scans.wanted else ():
            self._runs[one.rule].found(one)
            found += self._settled()
        return found

    def _times(self, batch: Batch) -> Int64s:
        """The clock at each event."""
        times = batch.numpy("ts", I64_MIN)
        times[state_rows(batch)] = I64_MIN
        if len(times):
            times[0] = max(int(times[0]), self._clock_ns)
            np.maximum.accumulate(times, out=times)
            self._clock_ns = int(times[-1])
        return times

    def _due(self, times: Int64s, done: int, row: int) -> list[tuple[int, Alert]]:
        """Deadlines before a row."""
        if not self._deadlines:
            return []
        found: list[tuple[int, Alert]] = []
        while self._deadlines and row >= done:
            first = int(np.searchsorted(times, self._deadlines[0].time_ns, "right"))
            if max(first, done) > row:
                break
            place = max(first, done)
            if self._count + place != self._fired_at:
                self._fired_at = self._count + place
                self._fired.clear()
            found += [(place, one) for one in self._passed()]
        return found

    def _passed(self) -> list[Alert]:
        """The next deadline."""
        deadline = heapq.heappop(self._deadlines)
        self.now_ns = deadline.time_ns
        run = self._runs[deadline.rule]
        self._fired[deadline.rule] += 1
        if self._fired[deadline.rule] > DEADLINES_MAX:
            run.fail(f"it asked for more than {DEADLINES_MAX:,} deadlines before one event")
        run.deadline(deadline.key)
        return self._settled()

    def _looked(self, candidates: Sequence[Candidate]) -> list[Alert]:
        """The alerts of one event."""
        for candidate in candidates:
            self.event = candidate.event
            run = self._runs[candidate.rule]
            if candidate.found is not None:
                run.found(candidate.found)
            else:
                run.match(candidate.selector, candidate.event)
        self.event = None
        return self._settled()

    def _late(self, scanned: Sequence[tuple[int, Found]]) -> list[tuple[int, Alert]]:
        """The alerts on artifacts of events that went by before."""
        found: list[tuple[int, Alert]] = []
        for row, one in scanned:
            if row < 0:
                self._runs[one.rule].found(one)
                found += [(0, raised) for raised in self._settled()]
        return found

    def _settled(self) -> list[Alert]:
        """What was raised, and what rules say of that in turn."""
        if not self.raised:
            return []
        found: list[Alert] = []
        for depth in range(1, DEPTH_MAX + 1):
            level, self.raised = self.raised, []
            kept = [one for one in level if self._is_wanted(one)]
            found += [one.alert for one in kept]
            if not kept or not self._candidates.of_alerts:
                break
            causes = [tuple(map(Identity._make, one.alert.causes)) for one in kept]
            batch = alert.batch([one.alert for one in kept])
            candidates = self._candidates.of_raised(batch, causes)
            if depth == DEPTH_MAX:
                self._too_deep += len({candidate.row for candidate in candidates})
                break
            for candidate in candidates:
                self.event = candidate.event
                self._runs[candidate.rule].match(candidate.selector, candidate.event)
            self.event = None
        if self._muted or self.now_ns < self._start_ns:
            return []
        return found

    # alerts that are not wanted

    def _is_wanted(self, raised: Raised) -> bool:
        """Whether an alert passes the exceptions and the throttle; else it is counted."""
        if not self._exceptions and self._throttle_ns is None:
            return True
        reason = self._exempt(raised) or self._throttled(raised.alert)
        if reason is None:
            return True
        if self.now_ns >= self._start_ns:
            self.suppressed[raised.alert.rule, reason] += 1
        return False

    def _exempt(self, raised: Raised) -> str | None:
        at = raised.at
        for one in self._exceptions:
            if one.rule not in (None, raised.alert.rule):
                continue
            if one.until_ns is not None and self.now_ns >= one.until_ns:
                continue
            if at is None:
                at = Row(Looked(alert.batch([raised.alert]), {}, {}), 0)
            if at.holds(one.filter.checked):
                return one.reason
        return None

    def _throttled(self, one: Alert) -> str | None:
        if self._throttle_ns is None:
            return None
        who = one.who.get("process_key") or (one.who.get("source"), one.who.get("pid"))
        since = self._quiet.get((one.rule, who))
        if since is not None and self.now_ns - since < self._throttle_ns:
            return "throttled"
        self._quiet[one.rule, who] = self.now_ns
        self._quiet.move_to_end((one.rule, who))
        while self._quiet:
            oldest, since = next(iter(self._quiet.items()))
            if self.now_ns - since < self._throttle_ns and len(self._quiet) <= _NUMBERED:
                break
            del self._quiet[oldest]
        return None

    # what runs do

    def number(self, rule: Rule, causes: tuple[Identity, ...]) -> int:
        """The how manieth alert of a rule about some events it is.

        Args:
            rule: The rule.
            causes: The events.

        Returns:
            From 0.
        """
        key = rule.about.id, rule.about.version, causes
        number = self._numbered.pop(key, -1) + 1
        self._numbered[key] = number
        if len(self._numbered) > _NUMBERED:
            self._numbered.popitem(last=False)
        return number

    def failed(self, problem: Problem) -> None:
        """Take notice that a rule ended.

        Args:
            problem: Why.
        """
        self.problems.append(problem)

    def ask(self, rule: int, time_ns: int, key: object) -> None:
        """Ask for a deadline of a rule (`kcap.detect.rule.Context.at`).

        Args:
            rule: Its number.
            time_ns: When.
            key: Comes back with the call.
        """
        if len(self._deadlines) >= self.room.bounds.deadlines:
            self._runs[rule].dropped()
            return
        self._asked_for += 1
        heapq.heappush(self._deadlines, _Deadline(time_ns, rule, self._asked_for, key))


def unique(rules: Iterable[Rule]) -> tuple[list[Rule], list[Problem]]:
    """Rules without those whose id another has.

    Args:
        rules: Rules.

    Returns:
        Those that can run together, the first of each id; and what is wrong with the others.
    """
    found: dict[str, Rule] = {}
    problems = []
    for rule in rules:
        about = rule.about
        first = found.setdefault(about.id, rule).about
        if first is about:
            continue
        where = f"{first.file}, line {first.line}" if first.line else first.file or "before it"
        error = KcapError(
            f"a rule has the id {about.id!r} already: {where}",
            file=about.file or None,
            line=about.line,
            expected="an id of its own",
        )
        problems.append(Problem(error, about.id))
    return list(found.values()), problems
