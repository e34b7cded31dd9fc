"""The inputs of an import: opened, watched, and passed over where they are bad."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.model.batch import Batch
    from kcap.model.side import Loss
    from kcap.model.stream import Source, StreamInfo


class Inputs:
    """Sources to be read together.

    Args:
        names: The inputs as the user named them.
        stack: Closes them.
        lenient: Pass over an input that can't be read, if there are others.
        raw_pairs: Keep the enter and the exit of a call as two events.
        events: The file with the events of an input that is a directory.

    Raises:
        KcapError: An input can't be read, and is not to be passed over; or none can.
    """

    def __init__(
        self,
        names: Sequence[str],
        stack: contextlib.ExitStack,
        *,
        lenient: bool,
        raw_pairs: bool,
        events: str | None = None,
    ) -> None:
        self.sources: list[Source] = []
        self.losses: list[Loss] = []
        """One for each input that was passed over."""
        self._events = events
        self._streams: list[BinaryIO] = []
        failure: KcapError | None = None
        many = len(names) > 1
        self._passes_over = lenient and many
        self._open = functools.partial(
            self._opened, stack=stack, lenient=lenient, raw_pairs=raw_pairs
        )
        for name in names:
            try:
                source = self._open(name)
            except KcapError as error:
                if not lenient or not many:
                    raise
                failure = failure or error
                self.losses.append(passed_over(name, error))
            else:
                self.sources.append(source)
        if failure is not None and not self.sources:
            raise failure

    def guarded(self, source: Source) -> Source:
        """An input whose failure does not end the reading of the others, where that was asked for.

        Args:
            source: One of the inputs.

        Returns:
            It, or a source around it.
        """
        return _Guarded(source) if self._passes_over else source

    def again(self, source: Source) -> Source:
        """Open an input once more.

        Args:
            source: One of the inputs, which is a file.

        Returns:
            The source from its start; closed with the others.
        """
        return self._open(source.info.file)

    def _opened(
        self, name: str, stack: contextlib.ExitStack, *, lenient: bool, raw_pairs: bool
    ) -> Source:
        from kcap.opening import open_source

        source = open_source(
            name,
            lenient=lenient,
            resolve=False,
            raw_pairs=raw_pairs,
            opened=self._streams.append,
            events=self._events,
        )
        stack.callback(source.close)
        _ = source.info  # what makes an input none shows here
        return source

    def position(self) -> tuple[int, int | None]:
        """How far the inputs have been read; see `position`."""
        return position(self._streams)


def position(streams: Sequence[BinaryIO]) -> tuple[int, int | None]:
    """How far some streams have been read.

    Args:
        streams: The streams.

    Returns:
        Bytes so far, and how many there are; None where a pipe is among them.
    """
    done, total = 0, 0
    known = True
    for stream in streams:
        size = _size(stream)
        try:
            at = stream.tell()
        except (OSError, ValueError):
            at = size or 0  # it is closed, so it was read
        done += at
        total += size or 0
        known = known and size is not None
    return done, total if known else None


class _Guarded:
    """A source whose failure is a loss.

    Args:
        source: The source.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        from kcap.model.batch import EMPTY

        try:
            yield from self._source.batches()
        except KcapError as error:
            yield EMPTY.with_before((passed_over(self.info.file, error, what="the rest of "),))

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()


class Announced:
    """A source, and before it what was lost already.

    Args:
        source: The source.
        losses: The losses.
    """

    def __init__(self, source: Source, losses: Sequence[Loss]) -> None:
        self._source = source
        self._losses = losses

    @property
    def info(self) -> StreamInfo:
        """See `Source.info`."""
        return self._source.info

    def batches(self) -> Iterator[Batch]:
        """See `Source.batches`."""
        from kcap.model.batch import EMPTY

        yield EMPTY.with_before(self._losses)
        yield from self._source.batches()

    def close(self) -> None:
        """See `Source.close`."""
        self._source.close()


def passed_over(name: str, error: KcapError, what: str = "") -> Loss:
    """The loss that an input is which can't be read.

    Args:
        name: The input as the user named it.
        error: Why it can't.
        what: How much of it, where not all.

    Returns:
        The loss.
    """
    from kcap.model.side import Loss

    place = f" at {error.place}" if error.place else ""
    return Loss("skipped", None, f"{what}{name} was passed over: {error.what}{place}")


def _size(stream: BinaryIO) -> int | None:
    """Bytes of a file, None for a pipe."""
    import stat

    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return 0  # closed
    return found.st_size if stat.S_ISREG(found.st_mode) else None
