"""What a recorder remembers is bounded, and what it forgets is counted; so are its tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.model.batch import Batch
from kcap.model.side import Loss
from kcap.model.stream import StreamInfo
from kcap.readers.live.cache import Cache
from kcap.replay.pipeline import FULL, Pipeline
from kcap.state import Process, State
from kcap.state.processes import ProcessTable
from kcap.state.threads import Thread, ThreadTable

STEPS = st.lists(st.tuples(st.integers(0, 9), st.none() | st.text(max_size=300)), max_size=60)


@given(STEPS, st.integers(1, 8), st.integers(1, 4000))
def test_a_cache_keeps_the_latest(
    steps: list[tuple[int, str | None]], entries: int, room: int
) -> None:
    """Whatever is entered and dropped: never more than allowed, the latest stay, no entry is lost
    without being counted, and nothing is kept of those that are gone."""
    cache, latest, entered = Cache[int, str](entries, room), dict[int, str](), 0
    for key, value in steps:
        latest.pop(key, None)
        entered -= key in cache
        if value is None:
            cache.drop(key)
        else:
            cache.put(key, value)
            latest[key] = value
            entered += 1
        assert len(cache) <= entries
        assert cache.bytes <= room
        assert entered == len(cache) + cache.evicted
    kept = {key: cache.get(key) for key in range(10) if key in cache}
    assert list(kept.items()) == sorted(list(latest.items())[len(latest) - len(kept) :])
    for key in range(10):
        cache.drop(key)
    assert (len(cache), cache.bytes) == (0, 0)


def test_living_ones_that_are_forgotten_count() -> None:
    """A table full of ended processes forgets them and misses none; living ones are missed."""
    processes, threads = ProcessTable("m", 8, 1 << 20), ThreadTable(8)
    for pid in range(100):
        processes.put(Process(pid, exited=True, end_ns=pid), 0)
        threads.put(Thread(pid, pid, exited=True), 0)
    assert processes.evicted > 80
    assert threads.evicted > 80
    assert (processes.missed, threads.missed) == (0, 0)
    for pid in range(100, 120):
        processes.put(Process(pid), 0)
        threads.put(Thread(pid, pid), 0)
    assert processes.missed == 20 - len([p for p in processes.rows() if not p.exited]) > 0
    assert threads.missed == 20 - len([t for t in threads.rows() if not t.exited]) > 0


class Full(State):
    """A state whose tables forget something in each batch that has been followed."""

    missed = 0

    def update(self, batch: Batch, **_: object) -> Batch:
        """Forget three."""
        self.missed += 3
        return batch


class Some:
    """A source of three empty batches.

    Args:
        live: It records.
    """

    def __init__(self, *, live: bool) -> None:
        self.info = StreamInfo("some", "some", (), live=live)

    def batches(self) -> Iterator[Batch]:
        """Give them."""
        yield from [Batch(0, {})] * 3

    def close(self) -> None:
        """Nothing."""


class Kept:
    """A sink that keeps losses."""

    def __init__(self) -> None:
        self.told: list[Loss] = []

    def write(self, batch: Batch) -> None:
        """Take what stands before it."""
        self.told += [side for side in batch.before if isinstance(side, Loss)]

    def close(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("live", [True, False])
def test_a_recording_says_what_its_tables_forgot(live: bool) -> None:
    """Each time in the capture, once in the summary; what imports forget is not lost by them."""
    kept = Kept()
    summary = Pipeline(Some(live=live), [kept], state=Full()).run()
    assert kept.told == [Loss("cut", 3, FULL)] * 3 * live
    assert summary.losses == [Loss("cut", 9, FULL)] * live
    assert summary.exit_code == 3 * live
