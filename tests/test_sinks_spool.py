"""What waits in a courier: nothing is lost, the order stays, memory and file are bounded."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcap.errors import DamagedError, KcapError, OutputError
from kcap.writers.sinks import spool
from kcap.writers.sinks.spool import EMPTY_BYTES, Block, Queue, Spool

PUT, TAKE, DELIVERED, AGAIN, CRASH = range(5)
STEPS = st.lists(
    st.sampled_from([PUT, PUT, TAKE, DELIVERED, AGAIN, CRASH]), min_size=1, max_size=60
)
SIZES = st.integers(1, 40)


def block(number: int, size: int = 8) -> Block:
    return Block(1, number.to_bytes(8, "little") + bytes(size))


def number(of: Block) -> int:
    return int.from_bytes(of.payload[:8], "little")


def opened(path: Path, sink: str = "a sink") -> Spool:
    return Spool(str(path), sink=sink)


def in_file(made: Spool) -> list[int]:
    """The blocks of a file that nobody has taken."""
    found = []
    while made.next < made.tail:
        found.append(number(made.take()))
    return found


def followed(
    path: Path, steps: Sequence[int], size: int, make: Callable[..., Queue] = Queue
) -> None:
    """Take steps with a queue and with a plain list; they must agree after each."""
    file = opened(path)
    queue = make(file, memory_bytes=64, spool_bytes=1 << 20)
    waiting: deque[int] = deque()
    taken = put = 0
    for step in [*steps, AGAIN]:
        if step == PUT:
            assert queue.put(block(put, size))
            waiting.append(put)
            put += 1
        elif step == TAKE:
            found = queue.take(wait=False)
            expected = waiting[taken] if taken < len(waiting) else None
            assert (None if found is None else number(found)) == expected
            taken += found is not None
        elif step == DELIVERED and taken:
            queue.delivered(1)
            waiting.popleft()
            taken -= 1
        elif step in (AGAIN, CRASH):
            if step == AGAIN:
                queue.stop()
            in_memory = len(queue._memory)
            file.close()
            file = opened(path)
            queue = make(file, memory_bytes=64, spool_bytes=1 << 20)
            for _ in range(in_memory):
                waiting.pop()  # a process that is killed takes these with it, and only these
            taken = 0
        assert queue.waiting == len(waiting)
    rest = [number(b) for b in iter(lambda: queue.take(wait=False), None)]
    assert rest == list(waiting)
    file.close()


@given(STEPS, SIZES)
def test_a_queue_is_a_list(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], size: int
) -> None:
    """Blocks come out as they went in, through memory, file, ends and kills."""
    followed(tmp_path_factory.mktemp("spool") / "s", steps, size)


class Dropping(Queue):
    """Negative control: drops what memory has no room for."""

    def put(self, block: Block) -> bool:
        if self._memory_bytes + len(block.payload) > self._memory_max:
            return True
        return super().put(block)


class Newest(Queue):
    """Negative control: what comes when memory is full goes to the file before what waits."""

    def put(self, block: Block) -> bool:
        if self._memory_bytes + len(block.payload) > self._memory_max:
            self.waiting += 1
            return self._spool.append(block)
        return super().put(block)


@pytest.mark.parametrize("make", [Dropping, Newest])
def test_a_queue_that_drops_or_reorders_is_noticed(tmp_path: Path, make: type[Queue]) -> None:
    """Negative control: the same steps tell such a queue from a right one."""
    steps = [*[PUT] * 6, *[TAKE] * 6]

    followed(tmp_path / "right", steps, 30)
    with pytest.raises(AssertionError):
        followed(tmp_path / "wrong", steps, 30, make)


def test_memory_and_file_are_bounded(tmp_path: Path) -> None:
    """Where both are full, who puts waits until something was delivered."""
    file = opened(tmp_path / "s")
    queue = Queue(file, memory_bytes=100, spool_bytes=200)
    put: list[int] = []

    def fill() -> None:
        for n in range(40):
            queue.put(block(n, 12))
            put.append(n)

    thread = threading.Thread(target=fill)
    thread.start()
    out = []
    while len(out) < 40:
        found = queue.take(wait=True)
        assert found is not None
        assert queue._memory_bytes <= 100
        assert file.nbytes <= 200 + 100 + 12 * 32
        out.append(number(found))
        assert len(put) <= len(out) + 30
        queue.delivered(1)
    thread.join()

    assert out == list(range(40))
    assert queue.peak_bytes <= 100
    assert queue.spooled_bytes == 0
    file.close()


def test_a_drained_file_is_empty(tmp_path: Path) -> None:
    """When all of it was delivered, the file has its first page alone."""
    path = tmp_path / "s"
    file = opened(path)
    for n in range(5):
        assert file.append(block(n, 5000))
    assert path.stat().st_size > 5 * 5000
    for _ in range(5):
        file.take()
        file.delivered()

    assert path.stat().st_size == EMPTY_BYTES
    file.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives back the front of a file")
def test_the_front_of_a_file_goes_back_to_the_disk(tmp_path: Path) -> None:
    """A file that is never drained takes no more room than what waits in it."""
    path = tmp_path / "s"
    file = opened(path)
    size = 1 << 20
    file.append(block(0, size))
    for n in range(1, 40):
        file.append(block(n, size))
        assert number(file.take()) == n - 1
        file.delivered()

    assert path.stat().st_size > 39 * size
    assert path.stat().st_blocks * 512 < 10 * size
    file.close()
    again = opened(path)
    assert in_file(again) == [39]
    again.close()


def test_a_torn_end_is_cut(tmp_path: Path) -> None:
    """Wherever a file is cut off, what was complete is there, and more can be appended."""
    path = tmp_path / "s"
    file = opened(path)
    ends = [file.tail]
    for n in range(3):
        file.append(block(n))
        ends.append(file.tail)
    file.close()
    whole = path.read_bytes()

    for length in range(EMPTY_BYTES, len(whole) + 1):
        path.write_bytes(whole[:length])
        file = opened(path)
        complete = sum(end <= length for end in ends[1:])
        assert file.left == complete
        assert file.cut_bytes == length - ends[complete]
        file.append(block(9))
        assert in_file(file) == [*range(complete), 9]
        file.close()


def test_a_changed_record_is_cut(tmp_path: Path) -> None:
    """Whatever byte of a record changes, it and what follows are not delivered."""
    path = tmp_path / "s"
    file = opened(path)
    for n in range(2):
        file.append(block(n))
    file.close()
    whole = path.read_bytes()
    second = EMPTY_BYTES + (len(whole) - EMPTY_BYTES) // 2

    for at in range(second, len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        file = opened(path)
        assert in_file(file) == [0]
        file.close()


def test_a_damaged_head_is_an_error(tmp_path: Path) -> None:
    """A head that does not hold, and a file that is none, are said to be so."""
    path = tmp_path / "s"
    file = opened(path)
    file.append(block(0))
    file.close()
    whole = path.read_bytes()

    for at in range(20):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            opened(path)
    path.write_bytes(b"something else")
    with pytest.raises(DamagedError, match="no spool"):
        opened(path)
    assert path.read_bytes() == b"something else"


def test_a_file_is_for_one_sink(tmp_path: Path) -> None:
    """What waits for one server is not sent to another; an empty file may serve any."""
    path = tmp_path / "s"
    opened(path, "one").close()
    file = opened(path, "two")
    file.append(block(0))
    file.close()

    with pytest.raises(KcapError, match="another sink, two"):
        opened(path, "one")
    again = opened(path, "two")
    assert again.left == 1
    again.close()


def test_a_long_name_does_no_harm(tmp_path: Path) -> None:
    """However long a sink's name is, records stand behind the first page."""
    file = opened(tmp_path / "s", "é" * 9000)
    file.append(block(7))
    file.close()

    again = opened(tmp_path / "s", "é" * 9000)
    assert in_file(again) == [7]
    again.close()


def test_a_file_is_for_one_run(tmp_path: Path) -> None:
    """A second run does not get what a first one has."""
    file = opened(tmp_path / "s")

    with pytest.raises(OutputError, match="another run"):
        opened(tmp_path / "s")
    file.close()
    opened(tmp_path / "s").close()


def test_links_and_folders_are_refused(tmp_path: Path) -> None:
    """A spool is never written through a link, nor anything but a file."""
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "target")

    with pytest.raises(OutputError, match="is a link"):
        opened(tmp_path / "link")
    with pytest.raises(OutputError, match="can't be opened"):
        opened(tmp_path)
    assert (tmp_path / "target").read_bytes() == b""


def test_it_is_private(tmp_path: Path) -> None:
    """Nobody else may read what waits."""
    opened(tmp_path / "s").close()

    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_makes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room on the disk nothing is lost: who puts waits, as behind a full file."""
    file = opened(tmp_path / "s")
    queue = Queue(file, memory_bytes=64, spool_bytes=1 << 20)
    write = os.pwrite

    def full(fd: int, data: bytes, at: int) -> int:
        if at >= EMPTY_BYTES:
            write(fd, bytes(data)[:3], at)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, at)

    monkeypatch.setattr(spool.os, "pwrite", full)
    thread = threading.Thread(target=lambda: [queue.put(block(n, 20)) for n in range(6)])
    thread.start()
    out = []
    while len(out) < 6:
        found = queue.take(wait=True)
        assert found is not None
        out.append(number(found))
        queue.delivered(1)
    thread.join()

    assert out == list(range(6))
    assert (tmp_path / "s").stat().st_size == EMPTY_BYTES
    queue.put(block(7))
    with pytest.raises(OutputError, match="no room"):
        queue.stop()
    file.close()


def test_another_error_of_the_disk_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that room would not cure is told, with the file."""
    file = opened(tmp_path / "s")

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(spool.os, "pwrite", broken)
    with pytest.raises(OutputError, match="Input/output error") as caught:
        file.append(block(0))
    assert caught.value.file == str(tmp_path / "s")
    file.close()
