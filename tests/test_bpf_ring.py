"""The ring buffer: every finished record is read once, in order, wherever the ring wraps."""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kcap.errors import KcapError
from kcap.readers.live.bpf import scan
from kcap.readers.live.bpf.ring import Ring
from kcap.readers.live.bpf.scan import BUSY, DISCARD, PAGE_BYTES, follow, search

PAGES_BEFORE = 5
"""Pages of the kernel's own before the data; they count in a header's page number."""


class Kernel:
    """The writing end, as the kernel does it, over memory that is mapped as the kernel maps it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.positions = mmap.mmap(-1, 2 * PAGE_BYTES)
        self.both = bytearray(2 * size)
        self.ring = Ring.__new__(Ring)
        self.ring.fd, self.ring.size = -1, size
        view = memoryview(self.positions)
        self.ring._begin(view[:PAGE_BYTES], view[PAGE_BYTES:], memoryview(self.both))
        self.producer = 0

    @property
    def consumer(self) -> int:
        return int(struct.unpack_from("<Q", self.positions, 0)[0])

    def put(self, at: int, data: bytes) -> None:
        for n, byte in enumerate(data):
            place = (at + n) % self.size
            self.both[place] = self.both[place + self.size] = byte

    def header(self, at: int, length: int) -> None:
        page = PAGES_BEFORE + at % self.size // PAGE_BYTES
        self.put(at, struct.pack("<II", length, page))

    def reserve(self, length: int) -> int | None:
        """Room for a record; None where the ring is full."""
        at, end = self.producer, self.producer + (length + 15 & ~7)
        if end - self.consumer > self.size - 1:
            return None
        self.header(at, length | BUSY)
        self.producer = end
        struct.pack_into("<Q", self.positions, PAGE_BYTES, end)
        return at

    def commit(self, at: int, content: bytes, *, discard: bool = False) -> None:
        self.put(at + 8, content)
        self.header(at, len(content) | (DISCARD if discard else 0))


class Machine(RuleBasedStateMachine):
    """Records are reserved, committed and given up in any order, and read in between."""

    @initialize(pages=st.sampled_from((1, 2, 4)), begin=st.integers(0, 1 << 40))
    def start(self, pages: int, begin: int) -> None:
        self.kernel = Kernel(pages * PAGE_BYTES)
        self.begin(begin & ~7)
        self.open: list[tuple[int, bytes]] = []
        self.written: list[tuple[int, bytes | None]] = []
        self.read: list[bytes] = []
        self.number = 0

    def begin(self, position: int) -> None:
        self.kernel.producer = position
        for at in (0, PAGE_BYTES):
            struct.pack_into("<Q", self.kernel.positions, at, position)

    @rule(length=st.integers(0, 900), later=st.booleans(), discard=st.booleans())
    def write(self, length: int, later: bool, discard: bool) -> None:
        at = self.kernel.reserve(length)
        if at is None:
            return
        self.number += 1
        content = random.Random(self.number).randbytes(length)
        self.written.append((at, content))
        if later:
            self.open.append((at, content))
        else:
            self.finish(at, content, discard)

    def finish(self, at: int, content: bytes, discard: bool) -> None:
        self.kernel.commit(at, content, discard=discard)
        if discard:
            self.written = [(a, None if a == at else c) for a, c in self.written]

    @rule(which=st.integers(0, 100), discard=st.booleans())
    def commit(self, which: int, discard: bool) -> None:
        if self.open:
            self.finish(*self.open.pop(which % len(self.open)), discard)

    @rule(limit=st.none() | st.integers(1, 20_000), release=st.booleans())
    def take(self, limit: int | None, release: bool) -> None:
        block = self.kernel.ring.take(limit)
        found = []
        for at in block.offsets:
            (length,) = struct.unpack_from("<I", block.data, at - 8)
            found.append(bytes(block.data[at : at + length]))
        busy = {at for at, _ in self.open}
        expected: list[bytes] = []
        end = self.kernel.consumer
        for at, content in self.written:
            if at in busy or (limit is not None and at - self.kernel.consumer >= limit):
                break
            end = at
            if content is not None:
                expected.append(content)
        assert found == expected
        if release:
            before = self.kernel.consumer
            self.kernel.ring.release()
            done = self.kernel.consumer
            assert done - before == len(block.data)
            assert done >= end
            self.written = [(at, content) for at, content in self.written if at >= done]

    @invariant()
    def waiting(self) -> None:
        assert self.kernel.ring.waiting_bytes == self.kernel.producer - self.kernel.consumer


TestRing = Machine.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("flag", ["BUSY", "DISCARD"])
def test_without_a_flag_wrong_records_are_read(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a reader that passes over a flag is caught by the machine above."""
    monkeypatch.setattr(scan, flag, 0)
    short = settings(max_examples=60, deadline=None, database=None, print_blob=False)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=short)


def filled(rng: random.Random, size: int, begin: int) -> tuple[memoryview, int, list[int]]:
    """A ring as memory, filled from a position; its end and where its records begin.

    Records contain words that look like headers of their page, and some are given up.
    """
    flat = bytearray(size)
    places, at = [], begin
    lengths = rng.choice(((64, 64), (0, 40), (90, 220), (500, 9000)))
    lookalikes = rng.choice((0, 0, 0.01, 0.5))
    discards = rng.choice((0, 0, 0.05))
    while True:
        length = rng.randint(*lengths)
        end = at + (length + 15 & ~7)
        if end - begin >= size:
            break
        given_up = rng.random() < discards
        content = bytearray(rng.randbytes(end - at))
        for word in range(0, len(content), 8):
            if word and rng.random() < lookalikes:
                page = PAGES_BEFORE + (at + word) % size // PAGE_BYTES
                struct.pack_into("<II", content, word, rng.randint(0, 400), page)
        page = PAGES_BEFORE + at % size // PAGE_BYTES
        struct.pack_into("<II", content, 0, length | given_up * DISCARD, page)
        head = min(len(content), size - at % size)
        flat[at % size : at % size + head] = content[:head]
        flat[: len(content) - head] = content[head:]
        if not given_up:
            places.append(at + 8 - begin)
        at = end
    return memoryview(bytes(flat) * 2), at - begin, places


@given(st.integers(0, 1 << 32), st.sampled_from((1, 4, 64, 512)))
def test_the_search_finds_what_the_chain_finds(seed: int, pages: int) -> None:
    """Whatever stands in the records, numpy and Python name the same ones; a busy one ends both."""
    rng = random.Random(seed)
    size = pages * PAGE_BYTES
    begin = rng.randrange(0, size, 8)
    data, taken, places = filled(rng, size, begin)

    assert follow(data[begin : begin + taken]) == (places, taken)
    found, end = search(data, begin, begin + taken)
    assert (found.tolist(), end) == (places, taken)

    if places:
        busy = rng.choice(places)
        written = bytearray(data)
        for at in {begin + busy - 8, (begin + busy - 8) % size, (begin + busy - 8) % size + size}:
            written[at + 3] |= 0x80
        changed = memoryview(written)
        expected = [at for at in places if at < busy]
        assert follow(changed[begin : begin + taken]) == (expected, busy - 8)
        found, end = search(changed, begin, begin + taken)
        assert (found.tolist(), end) == (expected, busy - 8)


def test_words_that_look_like_headers_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the proof by the chain, look-alikes pass for records."""
    found = differ = 0
    for seed in range(40):
        rng = random.Random(seed)
        data, taken, places = filled(rng, 64 * PAGE_BYTES, 0)
        found += search(data, 0, taken)[0].tolist() == places
        with monkeypatch.context() as patch:
            patch.setattr(scan, "_chain", lambda at, heads, _, end=taken: (heads + 8, end - at))
            differ += search(data, 0, taken)[0].tolist() != places

    assert found == 40
    assert differ > 5


def test_numpy_is_used_for_many_small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is asked once the records are known to be small and many, else the chain."""
    asked: list[str] = []
    for name in ("follow", "search"):
        real = getattr(scan, name)

        def noted(*given: Any, real: Any = real, name: str = name) -> Any:
            asked.append(name)
            return real(*given)

        monkeypatch.setattr(scan, name, noted)
    kernel = Kernel(64 * PAGE_BYTES)
    for length, expected in ((100, "follow"), (100, "search"), (3000, "search"), (3000, "follow")):
        records = 400 if length == 100 else 60
        for n in range(records):
            at = kernel.reserve(length)
            assert at is not None
            kernel.commit(at, bytes([n % 251]) * length)
        block = kernel.ring.take()
        first = [block.data[at] for at in np.asarray(block.offsets)]
        kernel.ring.release()

        assert asked.pop() == expected
        assert first == [n % 251 for n in range(records)]


def test_an_empty_ring_gives_nothing() -> None:
    """Nothing waits: nothing is read, and releasing changes nothing."""
    kernel = Kernel(PAGE_BYTES)

    block = kernel.ring.take()
    kernel.ring.release()

    assert (len(block.data), list(block.offsets), kernel.ring.waiting_bytes) == (0, [], 0)


def test_memory_is_let_go_while_a_block_is_in_use() -> None:
    """Closing never fails, and what was taken can be read to its end."""
    kernel = Kernel(PAGE_BYTES)
    at = kernel.reserve(5)
    assert at is not None
    kernel.commit(at, b"hello")
    with kernel.ring as reader:
        block = reader.take()

    assert bytes(block.data[8:13]) == b"hello"


@pytest.fixture
def file_descriptor() -> Iterator[int]:
    """A descriptor of what is no ring."""
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


def test_what_is_no_ring_is_refused(file_descriptor: int) -> None:
    """A map of another kind, or none, is an error of ours."""
    with pytest.raises(KcapError, match="a ring buffer of 4096 bytes cannot be mapped"):
        Ring(file_descriptor, 4096)
