"""What the kernel counts as lost is told in full, with the names of those whose events it was."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.losses import FULL, NAMED, Losses, Victims, filtered

COUNT = np.dtype([("kept", "<u8"), ("lost", "<u8"), ("filtered", "<u8")])
NUMBERS = sorted(events.by_number())[:6]


def counted(victims: Victims, untold: dict[int, int]) -> np.ndarray:
    """Counters that say what the victims lost, and more that the table of them had no room for."""
    counts = np.zeros(events.EVENTS, COUNT)
    for (_, _, number), count in victims.items():
        counts[number]["lost"] += count
    for number, count in untold.items():
        counts[number]["lost"] += count
    return counts


victims = st.dictionaries(
    st.tuples(st.integers(1, 3), st.integers(1, 40), st.sampled_from(NUMBERS)),
    st.integers(1, 1000),
    max_size=40,
)
untold = st.dictionaries(st.sampled_from(NUMBERS), st.integers(1, 1000))


@given(st.lists(st.tuples(victims, untold), min_size=1, max_size=4))
def test_told_is_what_was_counted(looks: list[tuple[Victims, dict[int, int]]]) -> None:
    """Look by look, the losses of an event add up to what the counters went on by."""
    losses = Losses("s", lambda pid: f"p{pid}")
    so_far: Victims = {}
    lost_alone: dict[int, int] = {}
    told: dict[str | None, int] = {}
    for more, alone in looks:
        so_far = {k: so_far.get(k, 0) + more.get(k, 0) for k in so_far.keys() | more.keys()}
        for number, count in alone.items():
            lost_alone[number] = lost_alone.get(number, 0) + count
        counts = counted(so_far, lost_alone)
        for loss in losses.look(counts, lambda now=so_far: dict(now), {}, (1, 2)):
            assert loss.count is not None
            assert loss.count > 0
            told[loss.event] = told.get(loss.event, 0) + loss.count
    lost = {events.by_number()[n].name: int(counts[n]["lost"]) for n in NUMBERS}
    assert told == {name: count for name, count in lost.items() if count}


def test_the_one_who_loses_most_is_named_first() -> None:
    """A flooder stands at the head, with name, pid and cgroup; what is small is summed up."""
    number = NUMBERS[0]
    lost = {(9, pid, number): pid for pid in range(1, NAMED + 4)} | {(9, 500, number): 10_000}
    found = Losses("s", lambda pid: "flood" if pid == 500 else None).look(
        counted(lost, {}), lambda: dict(lost), {}, (1, 2)
    )
    assert found[0].reason == f"{FULL}: flood, pid 500, cgroup 9"
    assert found[0].count == 10_000
    assert found[-1].reason == f"{FULL}: other processes"
    assert sum(loss.count or 0 for loss in found) == sum(lost.values())


def test_nothing_lost_nothing_asked() -> None:
    """Without a loss the table of victims is not read at all."""

    def never() -> Victims:
        raise AssertionError

    assert Losses("s", str).look(np.zeros(events.EVENTS, COUNT), never, {}, (1, 2)) == []


def test_a_part_that_was_interrupted_is_told_once() -> None:
    """How often a part was passed over is a running number, its growth the loss."""
    losses, counts = Losses("s", str), np.zeros(events.EVENTS, COUNT)
    grown = [losses.look(counts, dict, {"on_state": n}, (1, 2)) for n in (3, 3, 5)]
    assert [[loss.count for loss in found] for found in grown] == [[3], [], [2]]


def test_what_is_out_of_scope_is_no_loss() -> None:
    """Events left out on purpose are told as that, by type."""
    counts = np.zeros(events.EVENTS, COUNT)
    counts[NUMBERS[0]]["filtered"] = 7
    (loss,) = filtered(counts, "s")
    assert (loss.kind, loss.count) == ("filtered", 7)
