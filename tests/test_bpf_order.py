"""Records of several rings come out in order of time, each once, and none too early."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kcap.readers.live.bpf.order import Ordering, Records

BYTES = 24


def records(times_ns: list[int]) -> Records:
    """Records of one ring: a time, a number that tells them apart, and what stands between."""
    data = np.zeros(len(times_ns) * BYTES, np.uint8)
    offsets = np.arange(len(times_ns), dtype=np.int64) * BYTES + 8
    words = data.view("<u8")
    words[offsets // 8] = times_ns
    words[offsets // 8 + 1] = np.arange(len(times_ns))
    return Records(data, offsets)


rings = st.lists(st.integers(0, 50), max_size=12)
rounds = st.lists(st.tuples(rings, rings, st.integers(0, 60)), max_size=5)


@given(rounds)
def test_all_come_once_and_in_order(script: list[tuple[list[int], list[int], int]]) -> None:
    """Whatever the rings hold and however the horizon moves, nothing is lost or given twice."""
    ordering = Ordering()
    came: list[int] = []
    for first, second, horizon in script:
        ordering.add(records(first))
        ordering.add(records(second))
        out = ordering.until(horizon).times_ns().tolist()
        assert all(time <= horizon for time in out)
        assert all(a <= b for a, b in pairwise(out))
        came += out
    came += ordering.until(None).times_ns().tolist()
    assert sorted(came) == sorted(t for first, second, _ in script for t in first + second)


@given(rings, rings)
def test_a_horizon_that_trails_keeps_the_whole_in_order(
    first: list[int], second: list[int]
) -> None:
    """Two rings read one after the other give one order where the horizon waits for both."""
    ordering = Ordering()
    ordering.add(records(sorted(first)))
    early = ordering.until(-1).times_ns().tolist()
    ordering.add(records(sorted(second)))
    whole = early + ordering.until(None).times_ns().tolist()
    assert whole == sorted(first + second)


def test_without_a_horizon_that_trails_it_is_not() -> None:
    """The control: a ring that is given at once comes before older records of the other one."""
    ordering = Ordering()
    ordering.add(records([5, 6]))
    early = ordering.until(None).times_ns().tolist()
    ordering.add(records([1]))
    assert early + ordering.until(None).times_ns().tolist() == [5, 6, 1]


def test_of_one_time_the_first_to_come_is_first() -> None:
    """Records of one time keep the order of their ring."""
    ordering = Ordering()
    ordering.add(records([7, 7, 7]))
    out = ordering.until(None)
    assert out.data.view("<u8")[out.offsets // 8 + 1].tolist() == [0, 1, 2]


@given(rounds)
def test_what_is_held_back_keeps_its_bytes(script: list[tuple[list[int], list[int], int]]) -> None:
    """Records are the same however often they were moved."""
    ordering = Ordering()
    added: list[tuple[int, int]] = []
    came: list[tuple[int, int]] = []

    def note(out: Records, into: list[tuple[int, int]]) -> None:
        words = out.data.view("<u8")
        pairs = zip(out.times_ns(), words[out.offsets // 8 + 1], strict=True)
        into += [(int(time), int(number)) for time, number in pairs]

    for first, second, horizon in script:
        for ring in (records(first), records(second)):
            note(ring, added)
            ordering.add(ring)
            ring.data[:] = 0xFF  # the ring is the kernel's again
        note(ordering.until(horizon), came)
    note(ordering.until(None), came)
    assert sorted(came) == sorted(added)


def test_memory_is_used_again() -> None:
    """A young record that stands first does not keep what came behind it."""
    ordering = Ordering()
    for round_ in range(100):
        ordering.add(records([round_ + 1]))
        ordering.add(records([round_] * 1000))
        out = ordering.until(round_)
        assert len(out.data) <= 3 * BYTES + 1000 * BYTES
    assert len(ordering.until(None).offsets) == 1
