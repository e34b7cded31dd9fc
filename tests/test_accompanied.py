"""Companions of a source: whose processes are left out, also when they are others later."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import pytest

from kcap.errors import KcapError
from kcap.model.batch import Batch
from kcap.model.stream import StreamInfo
from kcap.readers.live.accompanied import Accompanied
from kcap.readers.live.artifacts.companion import ArtifactsCompanion
from kcap.readers.live.artifacts.protocol import Shared
from kcap.readers.live.bpf.asked import Ask
from kcap.readers.live.bpf.running import OWN
from kcap.readers.live.guard.channel import GoneError


class Beside:
    """A companion that does nothing, and has processes."""

    name = "beside"
    rights: Collection[str] = ()
    wakes: Sequence[int] = ()

    def __init__(self, *pids: int) -> None:
        self.pids: Collection[int] = pids
        self.told: list[Sequence[int]] = []

    def prepare(self) -> None:
        """Nothing to do."""

    def part(self, ask: Ask) -> None:
        """Nothing to do."""

    def serve(self, name: str, argument: bytes) -> bytes:
        """Give back what is asked."""
        return name.encode() + argument

    def own(self, pids: Sequence[int]) -> None:
        """Remember."""
        self.told.append(pids)

    def begin(self) -> None:
        """Nothing to do."""

    def follow(self, batch: Batch) -> Iterator[Batch]:
        """Pass it on."""
        yield batch

    def end(self) -> Iterator[Batch]:
        """Nothing is left."""
        yield from ()

    def close(self) -> None:
        """Nothing to do."""


class Telling:
    """A source of three empty batches."""

    rights: Collection[str] = ()
    info = StreamInfo("telling", "telling")

    def __init__(self) -> None:
        self.told: list[Sequence[int]] = []

    def part(self, ask: Ask) -> None:
        """Nothing to do."""

    def prepare(self) -> None:
        """Nothing to do."""

    def serve(self, name: str, argument: bytes) -> bytes:
        """Nobody asks."""
        raise AssertionError(name, argument)

    def own(self, pids: Sequence[int]) -> None:
        """Remember."""
        self.told.append(pids)

    def stop(self) -> None:
        """Nothing to do."""

    def batches(self) -> Iterator[Batch]:
        """Three of them."""
        for _ in range(3):
            yield Batch(0, {})

    def close(self) -> None:
        """Nothing to do."""


def test_processes_that_are_started_anew_are_left_out() -> None:
    """Who has the rights tells everybody as soon as they are others; and only then."""
    source, one, other = Telling(), Beside(7, 5), Beside(5, 9)
    both = Accompanied(source, [one, other])
    both.own((1, 2))
    expected: list[Sequence[int]] = [[1, 2, 7, 5, 9]]
    assert source.told == one.told == other.told == expected
    asked: list[str] = []

    def ask(name: str, argument: bytes) -> bytes:
        asked.append(name)
        return both.serve(name, argument)

    both.part(ask)
    batches = both.batches()
    next(batches)
    next(batches)
    assert asked == ["companions/own"]
    one.pids = (8,)
    next(batches)
    assert asked == ["companions/own"] * 2
    expected += [[1, 2, 7, 5, 9], [1, 2, 8, 5, 9]]
    assert source.told == one.told == other.told == expected


def test_of_too_many_processes_stuck_ones_are_not_left_out() -> None:
    """A kernel has room for 16: the recorder's come first, whatever numbers all of them have."""
    kernel, companion = Beside(), object.__new__(ArtifactsCompanion)
    companion._shared, companion._supervisor = Shared(), 500
    companion._kernel = kernel  # type: ignore[assignment]
    alive, stuck = (900, 901, 902, 903), tuple(range(100, 132))
    companion._shared.tell([*alive, *stuck], len(stuck))

    companion.own((1000, 999))

    (told,) = kernel.told
    assert tuple(told) == (1000, 999, 500, *alive, *stuck)
    assert {1000, 999, 500, *alive} <= set(told[:OWN])
    assert not {1000, 999} & set(sorted(told)[:OWN]), "negative control: by number they are cut"
    assert set(told) <= companion._shared.own


def test_what_has_come_is_taken_where_nobody_has_rights_any_more() -> None:
    """Without anybody to tell, batches still come."""

    def gone(name: str, argument: bytes) -> bytes:
        raise GoneError(f"{name} {argument!r}")

    both = Accompanied(Telling(), [Beside(7)])
    both.part(gone)
    assert len(list(both.batches())) == 3


def test_questions_find_whom_they_are_for() -> None:
    """By the name before the stroke; of nobody it is an error."""
    both = Accompanied(Telling(), [Beside()])
    assert both.serve("beside/what", b"!") == b"what!"
    with pytest.raises(KcapError, match="no answer to 'behind/what'"):
        both.serve("behind/what", b"")
