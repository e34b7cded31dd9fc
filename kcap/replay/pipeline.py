"""The one loop: source, clock, state, taps, stages, sinks.

record, import, cat, replay and whatever comes later are this pipeline with other ends. Batches are
pulled: a sink that takes its time slows the source down, and a live source then counts what the
kernel could not keep.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kcap.errors import KcapError
from kcap.model.batch import EMPTY, Batch
from kcap.model.side import EventLoss, Loss
from kcap.model.stream import Sink, Source
from kcap.replay.clock import LogicalClock
from kcap.replay.pulse import Pulse
from kcap.replay.tap import Tap
from kcap.state import State

EXIT_DONE = 0
EXIT_LOSSY = 3

FULL = "processes, threads and descriptors beyond the limits: what was known of them is forgotten"
"""What a recording says where it watches more than its tables hold."""

FILTERED = "filtered"
"""Kind of loss of what was left out on purpose."""


class Stage(Protocol):
    """Something between source and sinks: a filter, a transformation."""

    def process(self, batch: Batch) -> Batch:
        """Take a batch and give one.

        Args:
            batch: Events; side records in `Batch.before` must be passed on.

        Returns:
            The events that go on, perhaps none.
        """


@dataclass
class Summary:
    """What a run did."""

    events_in: int = 0
    """Events that the source gave."""
    events_out: int = 0
    """Events that went to the sinks."""
    losses: list[Loss] = field(default_factory=list)
    """What was lost, skipped or damaged in this run."""
    recorded_losses: list[Loss] = field(default_factory=list)
    """What the capture says was lost when it was made."""
    alerts: int = 0
    """Alerts that filaments and rules raised."""
    left_out: list[Loss] = field(default_factory=list)
    """What a live source left out because nobody wanted it; no loss."""

    @property
    def exit_code(self) -> int:
        """0, or 3 where something was lost, skipped or damaged in this run."""
        return EXIT_LOSSY if self.losses else EXIT_DONE

    def lost(self) -> dict[str, int]:
        """Numbers by kind of loss; one of unknown size counts as none here."""
        total: Counter[str] = Counter()
        for loss in self.losses:
            total[loss.kind] += loss.count or 0
        return dict(sorted(total.items()))


class Pipeline:
    """Moves events from a source to sinks.

    Example:
        >>> Pipeline(source, [sink]).run().exit_code  # doctest: +SKIP
        0
    """

    def __init__(
        self,
        source: Source,
        sinks: Sequence[Sink],
        *,
        state: State | None = None,
        resolve: bool = False,
        taps: Sequence[Tap] = (),
        stages: Sequence[Stage] = (),
        transforms: Sequence[Stage] = (),
        limit: int | None = None,
        after_batch: Callable[[Summary], bool] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            source: Where events come from; closed by whoever opened it.
            sinks: Where they go, in this order; closed at the end of `run`.
            state: Follows the events; None where nobody needs it.
            resolve: Let the state fill in identity that the events lack (record and import).
            taps: What looks at every event, and raises alerts; closed at the end of `run`.
            stages: Choose among events. Alerts don't pass them.
            transforms: What becomes of events and alerts before the sinks get them.
            limit: Events after which the run ends.
            after_batch: Called after each batch, also empty ones; returns True to end the run.
        """
        assert state is not None or not resolve
        self.clock = LogicalClock()
        self._pulse = Pulse()
        self.summary = Summary()
        self._live = source.info.live
        self._like: dict[Loss, int] = {}
        self._missed = 0
        self._source = source
        self._sinks = sinks
        self._state = state
        self._resolve = resolve
        self._taps = taps
        self._stages = stages
        self._transforms = transforms
        self._limit = limit
        self._after_batch = after_batch

    def run(self) -> Summary:
        """Move everything, close the sinks.

        Returns:
            The summary.

        Raises:
            KcapError: The source or a sink failed; what came before has been written, and the
                sinks were closed.
        """
        try:
            for batch in self._source.batches():
                if self._step(batch):
                    break
            self._end()
        except BaseException as e:
            self._mark_incomplete(e)
            raise
        finally:
            self._close()
        parts: Sequence[Tap | Stage | Sink] = (*self._taps, *self._stages, *self._sinks)
        for part in parts:
            self.summary.losses += getattr(part, "losses", ())
        return self.summary

    def _mark_incomplete(self, error: BaseException) -> None:
        """Let the outputs say that they end where the run stopped."""
        why = f"{error.what}{_at(error)}" if isinstance(error, KcapError) else type(error).__name__
        loss = Loss("torn", None, f"stopped: {why}")
        for sink in self._sinks:
            # The error that ended the run is the one to report; a broken sink has no more to say.
            with contextlib.suppress(KcapError, OSError):
                sink.write(EMPTY.with_before((loss,)))

    def _step(self, batch: Batch) -> bool:
        """One batch through everything; True where the run ends."""
        self.summary.events_in += batch.rows
        self.clock.advance(batch)
        batch = self._pulse.take(batch)
        if self._state is not None:
            batch = self._state.update(batch, resolve=self._resolve)
            batch = self._with_missed(batch, self._state.missed)
        self._note(batch)
        ends = False
        for part, alerts in self._tapped(batch):
            if part is not None:
                ends = self._pass_on(part) or ends
            self._raise(alerts)
        if self._after_batch is not None and self._after_batch(self.summary):
            return True
        return ends

    def _tapped(self, batch: Batch) -> Iterator[tuple[Batch | None, Sequence[Batch]]]:
        """The batch in parts, each with the alerts that come behind it.

        So the order of events and alerts is the same however the events came.
        """
        found: dict[int, list[Batch]] = {}
        for tap in self._taps:
            for row, alert in tap.see(batch):
                found.setdefault(row, []).append(alert)
        start = 0
        for row in sorted(found):
            # Without events before it, an alert comes behind those of the batch before.
            yield (batch.slice(start, row) if row > start else None), found[row]
            start = row
        if start < batch.rows or not start:
            yield batch.slice(start, batch.rows), ()

    def _pass_on(self, batch: Batch) -> bool:
        """Events through the stages to the sinks; True where the run ends."""
        for stage in self._stages:
            batch = stage.process(batch)
        for side in batch.before:
            if isinstance(side, EventLoss):
                self._add(side.plain)
        ends = False
        if self._limit is not None:
            room = self._limit - self.summary.events_out
            ends = batch.rows >= room
            batch = batch.slice(0, room)
        self.summary.events_out += batch.rows
        if batch.rows or batch.before:
            self._write(batch)
        return ends

    def _raise(self, alerts: Sequence[Batch]) -> None:
        for alert in alerts:
            self.summary.alerts += alert.rows
            self._write(alert)

    def _write(self, batch: Batch) -> None:
        for transform in self._transforms:
            batch = transform.process(batch)
        for sink in self._sinks:
            sink.write(batch)

    def _with_missed(self, batch: Batch, missed: int) -> Batch:
        """Say where a recorder's tables were full: what comes next may lack what they knew."""
        fresh, self._missed = missed - self._missed, missed
        if not (self._live and fresh):
            return batch
        return batch.with_before((*batch.before, Loss("cut", fresh, FULL)))

    def _end(self) -> None:
        """Tell the outputs of a recorder that fell silent before its last event."""
        losses = self._pulse.end(self.clock.now_ns)
        self.summary.losses += losses
        if losses:
            self._write(EMPTY.with_before(losses))
        for tap in self._taps:
            self._raise(list(tap.end()))

    def _note(self, batch: Batch) -> None:
        for side in batch.before:
            # What only some events lack counts where these are still there behind the stages.
            if not isinstance(side, Loss) or isinstance(side, EventLoss):
                continue
            if side.recorded:
                self.summary.recorded_losses.append(side)
            elif self._live and side.kind == FILTERED:
                self.summary.left_out.append(side)
            elif self._live:
                self._add(side)
            else:
                self.summary.losses.append(side)

    def _add(self, loss: Loss) -> None:
        """Losses of a kind are one: a recording of weeks may tell of the same one every second."""
        at = self._like.setdefault(loss.like, len(self.summary.losses))
        if at == len(self.summary.losses):
            self.summary.losses.append(loss)
        else:
            self.summary.losses[at] = self.summary.losses[at].plus(loss)

    def _close(self) -> None:
        """Close every tap and sink, the later ones also where an earlier one fails."""
        failed: BaseException | None = None
        ends: Sequence[Tap | Sink] = (*self._taps, *self._sinks)
        for end in ends:
            try:
                end.close()
            except Exception as e:  # noqa: BLE001  (raised again below)
                failed = failed or e
        if failed is not None:
            raise failed


def _at(error: KcapError) -> str:
    return f" at {error.place}" if error.place else ""
