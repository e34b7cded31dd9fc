"""The process of a filament, seen from the run."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import select
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kcap.errors import DamagedError, KcapError
from kcap.filament import frames
from kcap.filament.limits import FRAME_BYTES, Limits
from kcap.filament.source import Filament
from kcap.filament.worker import BEGIN, CELL_BYTES, END, IDLE, PENDING_BYTES, size_of
from kcap.guard import rights
from kcap.guard.child import Child
from kcap.model.text import printable

_READ_BYTES: Final = 1 << 18
_POLL_MS: Final = 1000
_STDERR_BYTES: Final = 64 << 10
_LINE: Final = re.compile(
    r'^  File "(?P<path>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE
)
_TOO_LONG: Final = "Timeout ("
_SPARE_LOOKS: Final = 2
_JSON_BYTES: Final = 8
"""Bytes that a counted byte takes in JSON at most: a control character is six."""
_INTERVAL_MAX_S: Final = 1 << 31
_NAME_CHARS: Final = 100
_NONSENSE: Final = (
    *(AttributeError, DamagedError, LookupError, OverflowError, RecursionError),
    *(TypeError, ValueError),
)
"""What comes of messages that the filament has written in place of kcap's worker."""

Answer = Callable[[int, str, Sequence[Any]], Any]
"""Answers a filament's question: the position of its call, what it asks, and of what."""

Item = list[Any]
"""Position, kind, values: what a filament printed, drew or raised."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a filament ended before its run."""

    what: str
    path: str
    line: int | None
    function: str
    position: int


class Ready(NamedTuple):
    """What a filament set before the first event."""

    filter: str | None
    filter_line: int | None
    interval_s: int
    ticks: bool
    """It has a function that is called in intervals."""


class _FailedError(Exception):
    """The filament ended; carried to where its items are taken."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.what)
        self.failure = failure


class Connection:
    """Starts a filament, and asks it to look at events.

    Args:
        filament: The filament.
        limits: What it may take.
        severities: The words that alerts may have.
        user: Who its process becomes where this is root; None for the default.

    Raises:
        KcapError: It can't be started.
    """

    def __init__(
        self,
        filament: Filament,
        limits: Limits,
        severities: Sequence[str],
        user: rights.User | None = None,
    ) -> None:
        self._filament = filament
        self._limits = limits
        self._buffer = bytearray()
        self._stderr = b""
        self._sizes = Counter[int]()
        """What each call of this request has given, in bytes."""
        self._message_bytes = min(
            FRAME_BYTES, _JSON_BYTES * (limits.output_bytes + 2 * PENDING_BYTES)
        )
        if not hasattr(os, "memfd_create"):
            raise KcapError("filaments run on Linux alone", file=str(filament.path))
        number = os.memfd_create(f"kcap-{filament.name}"[:32], os.MFD_ALLOW_SEALING)
        try:
            os.truncate(number, CELL_BYTES)
            # Memory that the filament could make shorter would be a signal here, and the end.
            fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self._memory = mmap.mmap(number, CELL_BYTES)
            self._child = Child(
                "kcap.filament.worker",
                settings(filament, limits, severities, f"/proc/{os.getpid()}/fd/{number}"),
                network=False,
                memory_bytes=limits.memory_bytes,
                user=(user or rights.chosen(None)) if rights.may_become() else None,
                stderr_pipe=True,
            )
        finally:
            os.close(number)
        self._cell = memoryview(self._memory).cast("q")
        self._poll = select.poll()
        for pipe in (self._child.replies, self._child.errors):
            self._poll.register(pipe, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid

    def start(self, answer: Answer) -> tuple[list[Item], Ready | Failure]:
        """Let the filament run its module and ``on_init``.

        Args:
            answer: Answers its questions.

        Returns:
            What it gave, and what it set.
        """
        items: list[Item] = []
        try:
            self._send(frames.frame(frames.START))
            while (message := self._message(answer, frames.READY))[0] != frames.READY:
                items += message[1]
            return items, message[1]
        except _FailedError as e:
            return items, e.failure

    def request(self, message: bytes) -> Failure | None:
        """Ask the filament for something; `items` then has what came of it.

        Args:
            message: The request.

        Returns:
            Why it could not be asked, if so.
        """
        self._sizes.clear()
        try:
            self._send(message)
        except _FailedError as e:
            return e.failure
        return None

    def items(self, answer: Answer) -> Iterator[Item | Failure]:
        """What came of the last request.

        Args:
            answer: Answers its questions.

        Yields:
            What it gave, in its order; a failure is the last.
        """
        try:
            while (message := self._message(answer, frames.DONE))[0] != frames.DONE:
                yield from message[1]
        except _FailedError as e:
            yield e.failure

    def close(self, grace_s: float) -> None:
        """Let the filament end; may be called twice.

        Args:
            grace_s: Seconds that it has for that.
        """
        self._child.close(grace_s)

    def kill(self) -> None:
        """End the filament; may be called twice."""
        self._child.kill()

    def _send(self, message: bytes) -> None:
        try:
            self._child.requests.write(message)
            self._child.requests.flush()
        except (OSError, ValueError) as e:
            raise self._ended() from e

    def _message(self, answer: Answer, last: bytes) -> tuple[bytes, Any]:
        """The next message that is no question: items, or the last; what it says is checked."""
        while True:
            kind, body = self._read()
            try:
                if kind == last == frames.DONE:
                    return kind, ()
                said = frames.loads(body)
                if kind == frames.FAILED:
                    raise _FailedError(self._told(**said))
                if kind == last == frames.READY:
                    return kind, _ready(**said)
                if kind == frames.ITEMS:
                    self._count([(item[0], size_of(item[2:])) for item in said])
                    return kind, said
                if kind != frames.ASK:
                    raise ValueError(f"kind {kind!r}")
                position, what, *arguments = said
                self._count([(position, size_of(arguments))])
                found = answer(position, what, arguments)
            except _NONSENSE as e:
                self.kill()
                raise _FailedError(self._failure(f"said what is no message: {e}")) from e
            self._send(frames.said(frames.ANSWER, found))

    def _count(self, given: Sequence[tuple[int, int]]) -> None:
        """Count what its calls give: its own process does, unless the filament keeps it from it."""
        if not given:
            raise ValueError("nothing at all")
        for position, size in given:
            if type(position) is not int:
                raise TypeError(f"a call {position!r}")
            self._sizes[position] += size
            if self._sizes[position] > self._limits.output_bytes:
                self.kill()
                most = f"{self._limits.output_bytes:,} bytes in one call"
                raise _FailedError(self._failure(f"gave more than {most}"))

    def _told(self, *, what: Any, path: Any, line: Any, function: Any, position: Any) -> Failure:  # noqa: ANN401  (whatever it says)
        """What a filament's process says of its own end."""
        texts = type(what) is type(function) is str
        if not texts or type(position) is not int or type(line) not in {int, type(None)}:
            raise TypeError("a failure of other types")
        if path not in self._files:
            raise ValueError("a failure elsewhere")
        return Failure(what, path, line, printable(function[:_NAME_CHARS]), position)

    @property
    def _files(self) -> set[str]:
        """The files that the filament is made of."""
        return {str(self._filament.path), *(module.path for module in self._filament.modules)}

    def _read(self) -> tuple[bytes, bytes]:
        """The next message, as bytes."""
        looks, position = 0, self._cell[0]
        head = frames.HEADER.size
        while True:
            if len(self._buffer) >= head:
                kind, size = frames.HEADER.unpack_from(self._buffer)
                if size > self._message_bytes:
                    self.kill()
                    raise _FailedError(self._failure(f"said {size:,} bytes at once"))
                if len(self._buffer) >= head + size:
                    body = bytes(self._buffer[head : head + size])
                    del self._buffer[: head + size]
                    return kind, body
            ready = self._poll.poll(_POLL_MS)
            for number, _ in ready:
                self._take(number)
            # Its own process ends a call that takes too long, and knows the line. This is for one
            # that keeps it from doing so.
            looks = 0 if ready or position != self._cell[0] else looks + 1
            position = self._cell[0]
            if looks > 2 * self._limits.call_s + _SPARE_LOOKS:
                self.kill()
                raise _FailedError(self._failure(self._too_long))

    def _take(self, number: int) -> None:
        """Read what there is in a pipe."""
        data = os.read(number, _READ_BYTES)
        if number == self._child.replies.fileno():
            if not data:
                raise self._ended()
            self._buffer += data
            return
        self._stderr = (self._stderr + data)[-_STDERR_BYTES:]
        if not data:
            self._poll.unregister(number)

    @property
    def _too_long(self) -> str:
        return f"took longer than {self._limits.call_s:g} s"

    def _ended(self) -> _FailedError:
        """How a process ended that had said nothing of it."""
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self._child.errors.fileno(), _READ_BYTES):
                self._stderr = (self._stderr + data)[-_STDERR_BYTES:]
        status = self._child.close(1)
        text = self._stderr.decode("utf-8", "replace")
        if _TOO_LONG in text:
            what = self._too_long
        elif status < 0:
            what = f"its process was ended by {_signal_name(-status)}"
        else:
            what = f"its process ended by itself (exit code {status})"
        return _FailedError(self._failure(what, text))

    def _failure(self, what: str, stderr: str = "") -> Failure:
        """A failure in the call that the shared memory tells of."""
        files = self._files
        for found in _LINE.finditer(stderr):
            if found["path"] in files:
                line = int(found["line"])
                return Failure(what, found["path"], line, found["function"], self._cell[0])
        return Failure(what, str(self._filament.path), None, self._function(), self._cell[0])

    def _function(self) -> str:
        """The function of the call that the shared memory tells of."""
        position = self._cell[0]
        if position >= 0:
            return "on_stop" if position == END else self._filament.handler
        if position == IDLE:
            return "none of its functions"
        return "its module or on_init" if position == BEGIN else "on_interval"


def _ready(*, filter: Any, filter_line: Any, interval_s: Any, ticks: Any) -> Ready:  # noqa: A002, ANN401  (whatever it says)
    """What a filament's process says that was set."""
    if type(filter) not in {str, type(None)} or type(filter_line) not in {int, type(None)}:
        raise TypeError("a filter that is no text")
    if type(interval_s) is not int or interval_s < 1:
        raise ValueError(f"an interval of {interval_s!r}")
    return Ready(filter, filter_line, min(interval_s, _INTERVAL_MAX_S), bool(ticks))


def settings(
    filament: Filament, limits: Limits, severities: Sequence[str], cell: str
) -> dict[str, Any]:
    """What the process of a filament has to know.

    Args:
        filament: The filament.
        limits: What it may take.
        severities: The words that alerts may have.
        cell: Path of the memory that it shares with the run.

    Returns:
        Plain JSON values.
    """
    return {
        "path": str(filament.path),
        "text": filament.text,
        "name": filament.name,
        "arguments": list(filament.arguments),
        "handler": filament.handler,
        "imports": list(filament.imports),
        "modules": [[m.name, m.path, m.text, m.package] for m in filament.modules],
        "severities": list(severities),
        "cell": cell,
        "call_s": limits.call_s,
        "memory_bytes": limits.memory_bytes,
        "output_bytes": limits.output_bytes,
        "rows": limits.rows,
    }


def error(failure: Failure, filament: Filament, event: str | None = None) -> KcapError:
    """The error that a run ends with.

    Args:
        failure: Why the filament ended.
        filament: The filament.
        event: The event that it was called for, as a user knows it.

    Returns:
        The error: file, line, function and event.
    """
    where = f"in {failure.function}"
    if event is not None:
        where = f"{where}, {event}"
    return KcapError(
        f"the filament {filament.name} failed {where}: {printable(failure.what)}",
        file=failure.path,
        line=failure.line,
        hint=None if failure.position != BEGIN else "kcap docs filaments",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
