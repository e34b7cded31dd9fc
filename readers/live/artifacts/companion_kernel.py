"""What comes through the kernel's programs, in the process that has no rights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kcap.errors import KcapError
from kcap.readers.live.artifacts import pieces
from kcap.readers.live.artifacts.streams import Finished, Streams
from kcap.readers.live.guard.channel import QUESTION_BYTES
from kcap.readers.live.host import Clocks

if TYPE_CHECKING:
    from kcap.readers.live.artifacts.kernel import ArtifactKernel
    from kcap.readers.live.artifacts.wanted import Wanted
    from kcap.readers.live.bpf.asked import Ask

FORGET, TOTALS, SUMS, MARK, UNMARK = "forget", "totals", "sums", "mark", "unmark"
_TAKE_BYTES: Final = 8 << 20
_TAKES_MAX: Final = 16
_SUMS_S: Final = 5.0


def answer(kernel: ArtifactKernel, name: str, argument: bytes) -> bytes:
    """Answer what `Flow` asks, where the rights are.

    Args:
        kernel: The programs.
        name: The question.
        argument: What stands with it.

    Returns:
        The answer.

    Raises:
        KcapError: There is no such question, or the kernel refused.
    """
    match name:
        case "mark":
            kernel.mark(np.frombuffer(argument[: len(argument) // 8 * 8], np.int64).tolist())
            return b""
        case "unmark":
            kernel.unmark(np.frombuffer(argument[: len(argument) // 8 * 8], np.int64).tolist())
            return b""
        case "forget":
            return kernel.forget(argument)
        case "totals":
            return kernel.totals()
        case "sums":
            return json.dumps(kernel.sums()._asdict()).encode()
        case _:
            raise KcapError(f"there is no answer to {name!r} about artifacts")


class Flow:
    """Content that the kernel's program copied.

    Args:
        kernel: The programs; only their rings are used here.
        wanted: What is to be kept.
        ask: Asks whoever has rights.
    """

    def __init__(self, kernel: ArtifactKernel, wanted: Wanted, ask: Ask) -> None:
        clocks = Clocks.measure()
        offset_ns = clocks.realtime_ns - clocks.boottime_ns
        self._streams = Streams(kernel.types, wanted, offset_ns=offset_ns)
        self._ring = kernel.content
        key = pieces.layouts(kernel.types).key.itemsize
        self._step = QUESTION_BYTES // 2 // key * key
        self._ask = ask
        self._looked_s = 0.0
        self._lost: dict[str, int] = {}

    def mark(self, devices: npt.NDArray[np.int64]) -> None:
        """Say which file systems are watched now."""
        self._ask(MARK, devices.tobytes())

    def unmark(self, devices: npt.NDArray[np.int64]) -> None:
        """Say which file systems are gone."""
        self._ask(UNMARK, devices.tobytes())

    def finished(self) -> Iterator[Finished]:
        """What has ended by now.

        Yields:
            Each artifact once.
        """
        self._take()
        yield from self._streams.finished(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        keys = self._streams.forgettable()
        for start in range(0, len(keys), self._step):
            part = keys[start : start + self._step]
            self._streams.settle(self._ask(FORGET, part))

    def rest(self) -> Iterator[Finished]:
        """What is there at the end.

        Yields:
            Each artifact once.
        """
        self._take()
        self._streams.settle(self._ask(TOTALS, b""))
        self._take()  # what passed between the two is in the ring, and is no loss
        yield from self._streams.rest()

    def lost(self, *, last: bool = False) -> Iterator[tuple[str, int]]:
        """What was lost since the last look, now and then.

        Yields:
            Why, and how much.
        """
        if not last and time.monotonic() - self._looked_s < _SUMS_S:
            return
        self._looked_s = time.monotonic()
        sums = json.loads(self._ask(SUMS, b""))
        told = {
            "moments at which something was to be read: the ring was full": sums["triggers_lost"],
            "bytes of streams that were not followed": sums["streams_lost_bytes"],
            "records of content that were none": self._streams.damaged,
            "bytes of streams that came too late": self._streams.late_bytes,
        }
        for reason, count in told.items():
            more = count - self._lost.get(reason, 0)
            self._lost[reason] = count
            if more > 0:
                yield reason, more

    def _take(self) -> None:
        for _ in range(_TAKES_MAX):
            block = self._ring.take(_TAKE_BYTES)
            if not len(block.offsets):
                self._ring.release()
                return
            self._streams.take(block)
            block.data.release()
            self._ring.release()
