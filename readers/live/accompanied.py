"""A live source with others that listen beside it: to packets, to what becomes artifacts."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from kcap.errors import KcapError
from kcap.readers.live.guard.channel import GoneError

if TYPE_CHECKING:
    from kcap.model.batch import Batch
    from kcap.model.stream import LiveSource, StreamInfo
    from kcap.readers.live.bpf.asked import Ask


class Companion(Protocol):
    """Listens beside a live source, and adds to what it tells.

    What needs rights happens when it is made, in `prepare`, `serve` and `close`; the rest is called
    in the process that works on the events (see `kcap.model.stream.LiveSource`).
    """

    @property
    def name(self) -> str:
        """What its questions begin with."""

    @property
    def rights(self) -> Collection[str]:
        """The capabilities that `serve` and `close` take."""

    @property
    def pids(self) -> Collection[int]:
        """Processes of its own: what they do is left out; those that do least last."""

    @property
    def wakes(self) -> Sequence[int]:
        """Descriptors that can be read where so much has come that the next interval is late."""

    def prepare(self) -> None:
        """Do what must be done with rights before the first batch."""

    def part(self, ask: Ask) -> None:
        """Go on in a process without rights, which was forked.

        Args:
            ask: Calls `serve` in the one that has them.
        """

    def serve(self, name: str, argument: bytes) -> bytes:
        """Answer what is asked of whoever has the rights; see `LiveSource.serve`."""

    def own(self, pids: Sequence[int]) -> None:
        """Say which processes are the recorder's."""

    def begin(self) -> None:
        """Begin to listen: the source is about to give its first batch."""

    def follow(self, batch: Batch) -> Iterator[Batch]:
        """Take a batch of the source, an empty one too: at least one comes in each interval.

        Args:
            batch: Events, with their place in the recording.

        Yields:
            The batch with what is known beside it, and batches of its own before or behind it.
        """

    def end(self) -> Iterator[Batch]:
        """The source has ended.

        Yields:
            What is left.
        """

    def close(self) -> None:
        """Let go of everything; may be called twice."""


_OURS: Final = "companions"
"""What our own question begins with: that processes of companions are others now."""


class Accompanied:
    """A `kcap.model.stream.LiveSource` that is one with companions.

    Args:
        source: The source.
        companions: Those who listen beside it; each gets what the one before it gives.
    """

    def __init__(self, source: LiveSource, companions: Sequence[Companion]) -> None:
        self._source = source
        self._companions = tuple(companions)
        self._ask: Ask = self.serve
        self._own: tuple[int, ...] = ()
        self._known: tuple[int, ...] = ()
        """Processes of companions that are left out."""
        self.rights: Collection[str] = {*source.rights, *(r for c in companions for r in c.rights)}

    @property
    def info(self) -> StreamInfo:
        """See `LiveSource`."""
        return self._source.info

    def part(self, ask: Ask) -> None:
        """See `LiveSource`."""
        self._ask = ask
        self._source.part(ask)
        for companion in self._companions:
            companion.part(_asking(ask, companion.name))

    def prepare(self) -> None:
        """See `LiveSource`."""
        # What companions hear from the beginning is more than the source tells, never less.
        for companion in self._companions:
            companion.prepare()
        self._source.prepare()

    def serve(self, name: str, argument: bytes) -> bytes:
        """See `LiveSource`."""
        whose, slash, rest = name.partition("/")
        if not slash:
            return self._source.serve(name, argument)
        if whose == _OURS:
            self.own(self._own)
            return b""
        for companion in self._companions:
            if companion.name == whose:
                return companion.serve(rest, argument)
        raise KcapError(f"there is no answer to {name!r}")

    def own(self, pids: Sequence[int]) -> None:
        """See `LiveSource`."""
        self._own = tuple(pids)
        everybody = list(dict.fromkeys([*pids, *self._pids()]))
        self._source.own(everybody)
        for companion in self._companions:
            companion.own(everybody)

    def _pids(self) -> tuple[int, ...]:
        return tuple(pid for companion in self._companions for pid in companion.pids)

    def _tell(self) -> None:
        """Have processes left out that companions have started since."""
        now = self._pids()
        if now != self._known:
            self._known = now
            with contextlib.suppress(GoneError):  # what has come is still taken
                self._ask(f"{_OURS}/own", b"")

    def stop(self) -> None:
        """See `LiveSource`."""
        self._source.stop()

    def again(self) -> None:
        """What was given before is to be given again, where it comes again: files go on anew."""
        for companion in self._companions:
            forget = getattr(companion, "forget", None)
            if forget is not None:
                forget()

    def batches(self) -> Iterator[Batch]:
        """See `LiveSource`."""
        for companion in self._companions:
            companion.begin()
        listen = getattr(self._source, "listen", None)
        if listen is not None:
            listen([descriptor for c in self._companions for descriptor in c.wakes])
        for batch in self._source.batches():
            self._tell()
            yield from self._followed(batch, 0)
        for place, companion in enumerate(self._companions):
            for batch in companion.end():
                yield from self._followed(batch, place + 1)

    def _followed(self, batch: Batch, place: int) -> Iterator[Batch]:
        if place == len(self._companions):
            yield batch
            return
        for made in self._companions[place].follow(batch):
            yield from self._followed(made, place + 1)

    def close(self) -> None:
        """See `LiveSource`."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._source.close)
            for companion in self._companions:
                stack.callback(companion.close)


def _asking(ask: Ask, whose: str) -> Ask:
    return lambda name, argument: ask(f"{whose}/{name}", argument)
