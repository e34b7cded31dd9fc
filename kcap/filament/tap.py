"""Filaments in a run: every event passes them, and what they print, draw and raise comes in order.

The order is that of the events, and for one event that of the filaments: it does not depend on how
the stream was cut into batches. The processes work side by side; what they give is put in order
here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from heapq import merge
from typing import Any, Final, NamedTuple

import numpy as np

from kcap.errors import DamagedError, KcapError
from kcap.filament import chosen, connection, frames, known, table
from kcap.filament.connection import Connection, Failure, Item, Ready
from kcap.filament.event import EventColumns
from kcap.filament.limits import Limits
from kcap.filament.source import Filament
from kcap.filament.ticks import Clock, Due, Int64s, Ticks
from kcap.filament.worker import BEGIN, END
from kcap.filter import Filter, FilterError
from kcap.guard.rights import User
from kcap.model import alert
from kcap.model.batch import EMPTY, Batch
from kcap.model.classes import I64_MIN

_TICK, _EVENT = 0, 1
_SEVERITIES: Final = ("normal", "low", "medium", "high", "critical", "info", "warning")
_GRACE_S: Final = 5.0
_ALL: Final = 1 << 31


class _Placed(NamedTuple):
    """Something that a filament gave, and where it belongs."""

    row: int
    phase: int
    """A tick comes before the event of its row."""
    time_ns: int
    """The tick's."""
    filament: int
    item: Item | Failure


class _Runner:
    """One filament of the run."""

    def __init__(
        self,
        number: int,
        filament: Filament,
        where: Filter | None,
        limits: Limits,
        user: User | None,
    ) -> None:
        self.number = number
        self.filament = filament
        self.fresh = False
        """There were events since the last tick."""
        self._limits = limits
        self.filter = where
        """What decides which events it gets."""
        self._packer = EventColumns()
        self.asks = known.asks(filament)
        """It may ask for processes and handles."""
        self._known = known.Known() if self.asks else None
        self._part: chosen.Part | None = None
        self._parts: Iterator[chosen.Part] = iter(())
        self._failure: Failure | None = None
        self._overrun: tuple[int, int] | None = None
        self._ticks: Ticks | None = None
        self._last: list[bytes] = []
        self.connection = Connection(filament, limits, _SEVERITIES, user)

    def start(self) -> list[Item | Failure]:
        """Let it begin; gives what came of that."""
        given, ready = self.connection.start(lambda *_: None)
        items: list[Item | Failure] = [*given]
        if any(item[0] != BEGIN for item in given):
            raise DamagedError("what a filament gave is of no call", file=str(self.filament.path))
        if isinstance(ready, Failure):
            return [*items, ready]
        self.filter = self._filter(ready)
        self._chosen = chosen.Chosen(self.filter)
        if ready.ticks:
            self._ticks = Ticks(ready.interval_s, self._limits.catchup_ticks)
        return items

    def begin(self, batch: Batch, times: Int64s) -> None:
        """Ask it to look at a batch."""
        self._packer.note(batch.before)
        if self._known is not None:
            self._known.begin(batch)
        events, rows = self._chosen.of(batch)
        due = Due((), ()) if self._ticks is None else self._ticks.due(times)
        self._overrun = due.overrun
        if len(rows):
            self.fresh = not len(due.rows) or bool(rows[-1] >= due.rows[-1])
        elif due.rows:
            self.fresh = False
        self._parts = chosen.parts(self._packer, events, rows, times, due)
        self._send(next(self._parts, None))

    def finish(self, now_ns: int) -> None:
        """Ask it to look at the end."""
        ticks = b""
        if self._ticks is not None and self.fresh and self._limits.last_interval:
            place = np.array([0, now_ns], np.int64).tobytes()
            ticks = frames.frame(frames.EVENTS, frames.BATCH.pack(0, 1, 0) + place)
        stop = frames.said(frames.STOP, None if now_ns == I64_MIN else now_ns)
        self._last = [ticks] * bool(ticks) + [stop]

    def items(self) -> Iterator[_Placed]:
        """What came of the batch, in order."""
        while self._part is not None:
            following = next(self._parts, None)  # packed while the filament is at work
            for item in self._given():
                yield self._placed(item)
                if isinstance(item, Failure):
                    return
            self._send(following)
        if self._overrun is not None:
            row, count = self._overrun
            most = f"at most {self._limits.catchup_ticks:,} (filament.catchup_ticks)"
            what = f"{count:,} ticks are due before one event: expected {most}"
            failure = Failure(what, str(self.filament.path), None, "on_interval", END)
            yield _Placed(row, _TICK, 0, self.number, failure)

    def last_items(self) -> Iterator[_Placed]:
        """What came of the end."""
        for message in self._last:
            failure = self.connection.request(message)
            found = [failure] if failure else self.connection.items(self._answer)
            for item in found:
                if not isinstance(item, Failure) and item[0] not in {-1, END}:
                    raise DamagedError(f"what a filament gave is of no call: {item[0]!r}")
                yield _Placed(0, _EVENT, 0, self.number, item)

    def _filter(self, ready: Ready) -> Filter | None:
        if ready.filter is None:
            return self.filter
        try:
            return Filter.of(ready.filter, self.filament.era)
        except FilterError as e:
            raise KcapError(
                f"its filter can't be understood: {e.what}",
                file=str(self.filament.path),
                line=ready.filter_line,
                expected=e.expected,
                hint=e.hint or f"kcap filter --explain {ready.filter!r}",
            ) from e

    def _send(self, part: chosen.Part | None) -> None:
        self._part = part
        self._failure = None if part is None else self.connection.request(part.message)

    def _given(self) -> Iterable[Item | Failure]:
        return [self._failure] if self._failure else self.connection.items(self._answer)

    def _placed(self, item: Item | Failure) -> _Placed:
        position = item.position if isinstance(item, Failure) else item[0]
        try:
            row, phase, time_ns = self._place(position)
        except DamagedError:
            if not isinstance(item, Failure):
                raise
            row, phase, time_ns = -1, _TICK, 0  # it ended in no call
        return _Placed(row, phase, time_ns, self.number, item)

    def _place(self, position: object) -> tuple[int, int, int]:
        """Row, phase and time of a tick or an event of the part that is looked at."""
        part = self._part
        if part is not None and isinstance(position, int):
            if 0 <= position < len(part.rows):
                return int(part.rows[position]), _EVENT, 0
            if 0 <= -1 - position < len(part.tick_rows):
                at = -1 - position
                return int(part.tick_rows[at]), _TICK, int(part.tick_times[at])
        raise DamagedError(f"what a filament gave is of no event: {position!r}")

    def _answer(self, position: int, what: str, arguments: Sequence[Any]) -> Any:  # noqa: ANN401
        """Answer a question as of the event, or the tick, in whose call it is asked."""
        if self._known is None:
            raise ValueError("asked although its source has no name of a question")
        if self._part is None:
            return self._known.answer(_ALL, what, arguments)
        row, phase, _ = self._place(position)
        return self._known.answer(row + (phase == _EVENT), what, arguments)


class Filaments:
    """The tap that filaments look through (`kcap.replay.tap.Tap`).

    Args:
        filaments: The filaments, in the order in which what they give for one event comes.
        display: Where they print and draw.
        where: The filter of those that set none of their own.
        limits: What each may take.
        user: Who its processes become where this is root; None for the default.

    Raises:
        KcapError: One of them can't be started.
    """

    def __init__(
        self,
        filaments: Sequence[Filament],
        display: table.Display,
        *,
        where: Filter | None = None,
        limits: Limits | None = None,
        user: User | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._display = display
        self._clock = Clock()
        self._count = 0
        self._alerts = Counter[int]()
        self._numbered: dict[tuple[int, bool], tuple[int, int]] = {}
        self._waiting: list[alert.Alert] = []
        self._failed = True
        self._runners: list[_Runner] = []
        try:
            for number, filament in enumerate(filaments):
                self._runners.append(_Runner(number, filament, where, self._limits, user))
            for runner in self._runners:
                for item in runner.start():
                    placed = _Placed(0, _TICK, I64_MIN, runner.number, item)
                    self._waiting += self._taken(placed, EMPTY, None)
        except BaseException:
            self.close()
            raise
        # What was printed so far is not to be written twice where this process is forked.
        display.flush()
        self._failed = False

    @property
    def pids(self) -> list[int]:
        """The processes of the filaments."""
        return [runner.connection.pid for runner in self._runners]

    @property
    def filters(self) -> list[Filter | None]:
        """What each filament looks at; None for all events, as where it asks for processes."""
        return [None if runner.asks else runner.filter for runner in self._runners]

    def see(self, batch: Batch) -> list[tuple[int, Batch]]:
        """See `kcap.replay.tap.Tap`.

        Args:
            batch: The next events.

        Returns:
            Alerts, each with the number of rows that it comes behind.

        Raises:
            KcapError: A filament failed, or it took more than it may.
        """
        times = self._clock.times(batch)
        self._failed = True  # unless all of it is taken, nothing can be asked of the filaments
        for runner in self._runners:
            runner.begin(batch, times)
        found: dict[int, list[alert.Alert]] = {}
        if self._waiting:
            found[0], self._waiting = self._waiting, []
        for placed in merge(*(runner.items() for runner in self._runners), key=_order):
            for one in self._taken(placed, batch, times):
                found.setdefault(placed.row + placed.phase, []).append(one)
        self._count += batch.rows
        self._failed = False
        self._display.flush()
        return [(rows, alert.batch(alerts)) for rows, alerts in found.items()]

    def end(self) -> list[Batch]:
        """See `kcap.replay.tap.Tap`.

        Returns:
            The last alerts.

        Raises:
            KcapError: A filament failed.
        """
        self._failed = True
        found, self._waiting = self._waiting, []
        for runner in self._runners:
            runner.finish(self._clock.now_ns)
            for placed in runner.last_items():
                found += self._taken(placed, EMPTY, None)
        self._failed = False
        self._display.flush()
        return [alert.batch(found)] if found else []

    def close(self) -> None:
        """See `kcap.replay.tap.Tap`."""
        for runner in self._runners:
            if self._failed:
                runner.connection.kill()
            else:
                runner.connection.close(_GRACE_S)
        self._runners = []

    def _taken(self, placed: _Placed, batch: Batch, times: Int64s | None) -> list[alert.Alert]:
        """Print, draw or raise what a filament gave."""
        filament = self._runners[placed.filament].filament
        if isinstance(placed.item, Failure):
            raise connection.error(placed.item, filament, self._named(placed, batch))
        try:
            _, kind, *values = placed.item
            if kind == "out":
                self._display.text(_text(*values))
            elif kind == "err":
                self._display.error(_text(*values))
            elif kind == "table":
                self._display.draw(placed.filament, table.table(values))
            elif kind == "alert":
                return [self._alert(placed, batch, times, *values)]
            else:
                raise ValueError(f"kind {kind!r}")
        except (TypeError, ValueError) as e:
            raise DamagedError(
                f"what the filament {filament.name} gave makes no sense: {e}",
                file=str(filament.path),
            ) from e
        return []

    def _alert(
        self,
        placed: _Placed,
        batch: Batch,
        times: Int64s | None,
        title: str,
        text: str,
        severity: str,
        tags: Sequence[str],
    ) -> alert.Alert:
        filament = self._runners[placed.filament].filament
        self._alerts[placed.filament] += 1
        if self._alerts[placed.filament] > self._limits.alerts:
            raise KcapError(
                f"the filament {filament.name} raised more than {self._limits.alerts:,} alerts",
                file=str(filament.path),
                hint="filament.alerts, or fewer alerts",
            )
        caused = placed.phase == _EVENT and batch.rows > 0
        row = placed.row
        return alert.Alert(
            rule=f"filament:{filament.name}",
            version=filament.version,
            title=_text(title),
            text=_text(text),
            severity=alert.severity(_text(severity)),
            tags=tuple(map(_text, tags)),
            ts_ns=self._now(placed, times),
            causes=(self._identity(batch, row),) if caused else (),
            number=self._number(placed.filament, self._count + row if caused else -1),
            who=alert.who(batch, row) if caused else {},
        )

    def _now(self, placed: _Placed, times: Int64s | None) -> int | None:
        """The logical clock when a filament gave something."""
        if placed.phase == _TICK and times is not None:
            return placed.time_ns
        now_ns = self._clock.now_ns if times is None else int(times[1 + placed.row])
        return None if now_ns == I64_MIN else now_ns

    def _named(self, placed: _Placed, batch: Batch) -> str | None:
        """The event that a filament was called for, as a user can find it."""
        if placed.phase == _TICK and placed.time_ns > 0:
            seconds, rest = divmod(placed.time_ns, 10**9)
            text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
            return f"tick of {text}.{rest:09d}"
        if not batch.rows or placed.row < 0:
            return None
        one = batch.slice(placed.row, placed.row + 1)
        origin, number = self._identity(batch, placed.row)
        name = one.array("event")[0].as_py() if "event" in one.columns else None
        return f"event {origin}:{number}" + (f" ({name})" if name else "")

    def _identity(self, batch: Batch, row: int) -> tuple[str, int]:
        """``origin`` and ``ord`` of an event; its place in the stream where it has none."""
        one = batch.slice(row, row + 1)
        origin = one.array("origin")[0].as_py() if "origin" in one.columns else None
        number = one.array("ord")[0].as_py() if "ord" in one.columns else None
        return origin or "", self._count + row if number is None else number

    def _number(self, filament: int, about: int) -> int:
        """The how manieth alert of an event; those that no event caused are counted in the run."""
        last, number = self._numbered.get((filament, about < 0), (about, -1))
        number = number + 1 if last == about else 0
        self._numbered[filament, about < 0] = about, number
        return number


def _order(placed: _Placed) -> tuple[int, int, int, int]:
    return placed[:4]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    return value
