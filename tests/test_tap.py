"""Taps: they see all events, and where their alerts come does not depend on batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import batch_of

from kcap.errors import KcapError
from kcap.filter.filter import Filter
from kcap.model import alert
from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.model.stream import StreamInfo
from kcap.replay.pipeline import Pipeline
from kcap.replay.stages import Columns, Matching

COUNT = 40
_EVENTS = batch_of([(1000 + i, {}) for i in range(COUNT)])
WHOLE = _EVENTS.adding({"pid": _EVENTS.columns["ord"]})


class Given:
    """A source of events cut at these rows."""

    info = StreamInfo("given", "given")

    def __init__(self, cuts: Sequence[int], before: Sequence[Loss] = ()) -> None:
        self._cuts = sorted({0, *cuts, COUNT})
        self._before = before

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        for start, stop in zip(self._cuts, self._cuts[1:], strict=False):
            yield WHOLE.slice(start, stop).with_before(self._before)

    def close(self) -> None:
        """Nothing to let go of."""


class Every:
    """Raises an alert behind every so manieth event, and one at the end."""

    def __init__(self, step: int, *, whole_batches: bool = False) -> None:
        self.seen = 0
        self.closed = 0
        self._step = step
        self._whole = whole_batches

    def see(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
        """See `Tap.see`."""
        for row in range(batch.rows):
            self.seen += 1
            if self.seen % self._step == 0:
                yield batch.rows if self._whole else row + 1, _alert(self.seen)

    def end(self) -> Iterable[Batch]:
        """See `Tap.end`."""
        yield _alert(0)

    def close(self) -> None:
        """See `Tap.close`."""
        self.closed += 1


def _alert(number: int) -> Batch:
    return alert.batch([alert.Alert("r", "1", f"at {number}", causes=(("00" * 16, number),))])


class Kept:
    """A sink that keeps what it gets, a word a row."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.columns: set[str] = set()

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        self.columns |= set(batch.columns)
        for row in batch.to_pylist():
            self.words.append(row.get("arg_title") or f"event {row.get('ord')}")

    def close(self) -> None:
        """Nothing to do."""


def words(cuts: Sequence[int], *taps: Any, **options: Any) -> list[str]:
    kept = Kept()
    Pipeline(Given(cuts), [kept], taps=taps, **options).run()
    return kept.words


CUTS = st.lists(st.integers(0, COUNT), max_size=8)


@settings(max_examples=25)  # one takes 100 ms: a pipeline over 40 single events, twice
@given(CUTS, st.integers(1, 7), st.integers(1, 7))
def test_the_order_of_events_and_alerts_does_not_depend_on_batches(
    cuts: list[int], one: int, other: int
) -> None:
    whole = words([], Every(one), Every(other))

    assert words(cuts, Every(one), Every(other)) == whole
    assert whole.index("at 7" if one == 7 else f"at {one}") == whole.index(f"event {one - 1}") + 1
    assert whole[-2:] == ["at 0", "at 0"]


def test_a_tap_that_waits_for_the_end_of_a_batch_would_show() -> None:
    """What the property above would find."""
    assert words([10], Every(3, whole_batches=True)) != words([20], Every(3, whole_batches=True))


def test_taps_see_what_a_filter_drops_and_alerts_pass_it() -> None:
    tap = Every(10)
    kept = words([], tap, stages=[Matching(Filter.of("evt.pid = 39"))])

    assert tap.seen == COUNT
    assert kept == ["at 10", "at 20", "at 30", "event 39", "at 40", "at 0"]


def test_alerts_are_transformed_like_events() -> None:
    kept = Kept()
    Pipeline(Given([]), [kept], taps=[Every(10)], transforms=[Columns(["ord"])]).run()

    assert kept.columns == {"ord"}


def test_side_records_pass_once_however_a_batch_is_cut() -> None:
    class Sides(Kept):
        def write(self, batch: Batch) -> None:
            self.words += [side.reason for side in batch.before if isinstance(side, Loss)]

    sink = Sides()
    Pipeline(Given([], [Loss("lost", 1, "why")]), [sink], taps=[Every(1)]).run()

    assert sink.words == ["why"]


def test_taps_are_closed_once_also_when_one_fails() -> None:
    class Failing(Every):
        def see(self, batch: Batch) -> Iterable[tuple[int, Batch]]:
            raise KcapError("no")

    taps = [Every(1), Failing(1)]
    with pytest.raises(KcapError, match="no"):
        Pipeline(Given([]), [Kept()], taps=taps).run()

    assert [tap.closed for tap in taps] == [1, 1]


def test_an_alert_has_the_same_id_in_every_run_and_another_for_other_events() -> None:
    first = alert.Alert("r", "1", "t", causes=(("00" * 16, 1),))

    assert alert.Alert("r", "1", "other words", causes=(("00" * 16, 1),)).id == first.id
    others = [
        alert.Alert("q", "1", "t", causes=(("00" * 16, 1),)),
        alert.Alert("r", "2", "t", causes=(("00" * 16, 1),)),
        alert.Alert("r", "1", "t", causes=(("00" * 16, 2),)),
        alert.Alert("r", "1", "t", causes=(("00" * 16, 1),), number=1),
    ]
    assert len({first.id, *(other.id for other in others)}) == 5


def test_an_alert_says_who_caused_it_and_severities_have_one_spelling() -> None:
    known = alert.who(WHOLE, 3)
    row = alert.batch([alert.Alert("r", "1", "t", severity=alert.severity("Normal"), who=known)])

    assert row.to_pylist()[0]["arg_severity"] == "low"
    assert alert.alerts_in(row)
    assert not alert.alerts_in(WHOLE)
    assert row.to_pylist()[0]["pid"] == 3
    with pytest.raises(KcapError, match="'dire' is no severity"):
        alert.severity("dire")
