"""Records are found in rings and pages as the kernel puts them there, and come out in order."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import KcapError
from kcap.readers.live.trace import instance, perf
from kcap.readers.live.trace.samples import UNKNOWN, Ordering, Samples, spared

PAGE = 4096
HEAD = struct.Struct("<QQ")


class Put(NamedTuple):
    """A record that is put somewhere."""

    after_ns: int
    data: bytes


def bodies(least: int = 4) -> st.SearchStrategy[bytes]:
    """Records of a multiple of four bytes."""
    return st.integers(least // 4, 60).flatmap(
        lambda words: st.binary(min_size=4 * words, max_size=4 * words)
    )


PUTS = st.lists(
    st.builds(Put, st.one_of(st.integers(0, 1000), st.integers(0, 1 << 40)), bodies()), max_size=40
)


def page(puts: list[Put], first_ns: int, *, long: bool, stamped: bool) -> bytes:
    """A page as the kernel's ring buffer has it.

    Args:
        puts: The records, each so much later than the one before.
        first_ns: The time that the page says.
        long: The length of a record stands in a word of its own.
        stamped: Great steps are absolute times.
    """
    out, now_ns = b"", first_ns
    for after_ns, data in puts:
        now_ns += after_ns
        delta = after_ns
        if after_ns >> 27 and stamped:
            low = now_ns & ((1 << 59) - 1)
            out += struct.pack("<II", 31 | (low & (1 << 27) - 1) << 5, low >> 27)
            delta = 0
        elif after_ns >> 27:
            out += struct.pack("<II", 30 | (after_ns & (1 << 27) - 1) << 5, after_ns >> 27)
            delta = 0
        if long or len(data) > 28 * 4:
            out += struct.pack("<II", delta << 5, len(data) + 4) + data
        else:
            out += struct.pack("<I", len(data) // 4 | delta << 5) + data
    return (HEAD.pack(first_ns, len(out)) + out).ljust(max(PAGE, len(out) + 16), b"\xee")


def told(samples: Samples) -> list[tuple[int, bytes]]:
    """Time and bytes of records."""
    every = zip(
        samples.times_ns.tolist(), samples.starts.tolist(), samples.sizes.tolist(), strict=True
    )
    return [(time_ns, samples.data[at : at + size].tobytes()) for time_ns, at, size in every]


@given(st.lists(PUTS, max_size=3), st.booleans(), st.booleans())
def test_pages(pages: list[list[Put]], long: bool, stamped: bool) -> None:
    """Every record of every page is found, with the sum of all steps before it as its time."""
    first_ns = 1 << 60 | 57 << 40  # an absolute time has but 59 bits
    made = [page(puts, first_ns, long=long, stamped=stamped) for puts in pages]
    found = instance.parsed(made, cpu=3)
    expected = []
    for puts in pages:
        now_ns = first_ns
        for after_ns, data in puts:
            now_ns += after_ns
            expected.append((now_ns, data))
    assert told(found) == expected
    assert set(found.cpus.tolist()) <= {3}
    assert set(found.pids.tolist()) <= {UNKNOWN}


def test_padding() -> None:
    """What was given up is passed over with its time; padding without one ends the page."""
    good = struct.pack("<I", 1 | 5 << 5) + b"good"
    given_up = struct.pack("<II", 29 | 2 << 5, 8) + b"gone"
    end = struct.pack("<II", 29, 0) + b"old."
    used = good + given_up + good + end
    made = (HEAD.pack(100, len(used) | 1 << 31) + used).ljust(PAGE, b"\0")
    assert told(instance.parsed([made], 0)) == [(105, b"good"), (112, b"good")]


@pytest.mark.parametrize(
    "made",
    [
        HEAD.pack(1, PAGE).ljust(PAGE, b"\0"),
        HEAD.pack(1, PAGE - 16) + (struct.pack("<I", 28) + bytes(112)) * 34 + bytes(134),
        b"short",
    ],
)
def test_a_page_that_is_none(made: bytes) -> None:
    """It is an error of ours, whatever is wrong with it."""
    with pytest.raises(KcapError, match="a page of the trace buffer"):
        instance.parsed([made], 0)


def sample(time_ns: int, raw: bytes, *, pid: int = 7, cpu: int = 1) -> bytes:
    """A sample as perf has it."""
    size = 36 + len(raw)
    size += -size % 8
    head = struct.pack("<IHHiiQIII", 9, 2, size, pid, pid, time_ns, cpu, 0, size - 36)
    return (head + raw).ljust(size, b"\0")


def lost(count: int) -> bytes:
    """What perf says of records that had no room."""
    return struct.pack("<IHHQQ", 2, 0, 24, 0, count)


@given(st.lists(st.one_of(st.builds(Put, st.integers(0, 1 << 60), bodies(8)), st.integers(1, 99))))
def test_records_of_perf(puts: list[Put | int]) -> None:
    """Samples are found among records that say how many were lost; others are passed over."""
    other = struct.pack("<IHHQ", 5, 0, 16, 0)
    raw = b"".join(
        lost(put) + other if isinstance(put, int) else sample(put.after_ns, put.data)
        for put in puts
    )
    found, missing = perf._parsed(np.frombuffer(raw, np.uint8))
    expected = [put for put in puts if isinstance(put, Put)]
    assert [time_ns for time_ns, _ in told(found)] == [put.after_ns for put in expected]
    assert all(
        data.startswith(put.data) for (_, data), put in zip(told(found), expected, strict=True)
    )
    assert missing == sum(put for put in puts if isinstance(put, int))
    assert set(found.pids.tolist()) <= {7}
    assert set(found.cpus.tolist()) <= {1}


def test_a_record_of_no_length() -> None:
    """Following the chain ends with an error, not never."""
    with pytest.raises(KcapError, match="no length"):
        perf._parsed(np.zeros(64, np.uint8))


class FakeRing(perf._Ring):
    """A ring in plain memory."""

    def __init__(self, size: int) -> None:
        self._map = bytearray(PAGE + size)
        self._size = size
        self._positions = memoryview(bytearray(16)).cast("Q")

    def put(self, data: bytes) -> bool:
        """Write as the kernel does: around the end, and nothing that has no room."""
        head, tail = self._positions
        if head - tail + len(data) > self._size:
            return False
        for i, byte in enumerate(data):
            self._map[PAGE + (head + i) % self._size] = byte
        self._positions[0] = head + len(data)
        return True


@given(st.lists(st.lists(bodies(8), max_size=6), max_size=12))
def test_a_ring_that_wraps(rounds: list[list[bytes]]) -> None:
    """What was written is read once, also where it goes around the end of the memory."""
    ring = FakeRing(512)
    for bodies_ in rounds:
        put = [body for body in bodies_ if ring.put(sample(1, body))]
        found, _ = perf._parsed(ring.take())
        assert [data[: len(body)] for (_, data), body in zip(told(found), put, strict=True)] == put
    assert len(ring.take()) == 0


def of(times_ns: list[int], cpu: int) -> Samples:
    """Records whose bytes say time and processor."""
    raw = b"".join(struct.pack("<QI", time_ns, cpu) for time_ns in times_ns)
    numbers = np.array(times_ns, np.int64)
    whole = np.ones(len(numbers), np.int64)
    starts = np.arange(len(numbers)) * 12
    return Samples(spared(np.frombuffer(raw, np.uint8)), starts, whole * 12, numbers, whole, whole)


ROUNDS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 2), st.lists(st.integers(0, 100), max_size=6).map(sorted)),
        st.integers(0, 100),
    ),
    max_size=6,
)


@given(ROUNDS)
def test_order(rounds: list[tuple[dict[int, list[int]], int]]) -> None:
    """Everything comes out once, up to the horizon and in order, with its own bytes."""
    ordering = Ordering()
    put: list[bytes] = []
    out: list[bytes] = []
    for parts, horizon_ns in rounds:
        for cpu, times_ns in parts.items():
            ordering.add(of(times_ns, cpu))
            put += [struct.pack("<QI", time_ns, cpu) for time_ns in times_ns]
        ready = told(ordering.until(horizon_ns))
        assert [time_ns for time_ns, _ in ready] == sorted(time_ns for time_ns, _ in ready)
        assert all(time_ns <= horizon_ns for time_ns, _ in ready)
        assert all(data[:8] == struct.pack("<Q", time_ns) for time_ns, data in ready)
        out += [data for _, data in ready]
    rest = told(ordering.until(None))
    assert [time_ns for time_ns, _ in rest] == sorted(time_ns for time_ns, _ in rest)
    assert sorted(out + [data for _, data in rest]) == sorted(put)
    assert told(ordering.until(None)) == []


def test_memory_of_what_is_held_back() -> None:
    """A record that waits keeps its own bytes, not those of all that came with it."""
    ordering = Ordering()
    ordering.add(of([1] * 1000 + [500], 0))
    assert len(ordering.until(100).starts) == 1000
    (held,) = ordering._held
    assert len(held.data) < 1000


def test_rings_fit_the_host() -> None:
    """Powers of two, within what all processors may have together."""
    for cpus in (1, 2, 3, 16, 64, 256):
        each = perf._fitting(cpus)
        assert each & each - 1 == 0
        assert perf.LEAST_BYTES <= each <= perf.MOST_BYTES
        assert each * cpus <= max(perf.BUFFERS_BYTES, cpus * perf.LEAST_BYTES)
