"""The courier: a process with few rights that brings messages to a server.

What comes through its pipe waits in a `Queue`; one thread fills it, another one empties it by a
transport. What the server does not take is tried again, ever more slowly; what it refuses for good
goes to the dead letters. The main thread watches: it tells the parent how things are, and ends the
process where the server was silent for too long, or the parent is gone. What was not delivered
then stays in the spool file.

It is the target of a `kcap.guard.child.Child`; `kcap.writers.sinks.delivery` is the other end.
"""

from __future__ import annotations

import base64
import contextlib
import encodings.idna  # noqa: F401  (names of hosts; no file can be loaded later)
import json
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple

from kcap import plugins
from kcap.errors import KcapError, OutputError
from kcap.writers.sinks import messages
from kcap.writers.sinks.spool import Block, Queue, Spool
from kcap.writers.sinks.transport import InterruptedDeliveryError, Message, Refused, Transport

FIRST_WAIT_S: Final = 0.05
LAST_WAIT_S: Final = 10.0
"""How long it waits before it tries again: the first time, doubled each time, and at most."""

ASKED_WAIT_S: Final = 300.0
"""The longest that a server can ask to wait."""

LINGER_S: Final = 10.0
"""How long a live run's end waits for a server that does not answer."""

GRACE_S: Final = 5.0
"""How long it goes on after SIGTERM; its parent may have been told to end, too."""

_CLOSE_S: Final = 5.0
_TICK_S: Final = 0.1
_STATUS_S: Final = 0.5
_REASON_CHARS: Final = 200
_REASONS: Final = 10
_OTHERS: Final = "other reasons"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `run` needs that takes rights."""

    transport: Transport
    queue: Queue
    spool: Spool
    dead_letters: BinaryIO | None
    constants: Mapping[str, str]
    batch: int
    give_up_s: float | None


def prepare(settings: Mapping[str, Any]) -> Prepared:
    """Load the transport, open files: what takes the rights of the parent.

    Args:
        settings: ``scheme``, ``options`` of the transport, ``constants`` (those of its templates
            that are none), ``spool``, ``sink``, ``memory_bytes``, ``spool_bytes``,
            ``dead_letters``, ``batch``, ``give_up_s``.

    Returns:
        What `run` takes.

    Raises:
        KcapError: Settings are wrong, or a file can't be opened.
    """
    made = plugins.load(plugins.SINKS, settings["scheme"])
    # JSON has no tuples.
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings["options"].items()
    }
    transport = made(made.options(**options))
    spool = Spool(settings["spool"], sink=settings["sink"])
    queue = Queue(spool, memory_bytes=settings["memory_bytes"], spool_bytes=settings["spool_bytes"])
    path = settings["dead_letters"]
    return Prepared(
        transport,
        queue,
        spool,
        None if path is None else _appending(path),
        settings["constants"],
        settings["batch"] or transport.batch,
        settings["give_up_s"],
    )


def run(prepared: Prepared, requests: BinaryIO, replies: BinaryIO) -> None:
    """Deliver what comes until there is no more, or no use.

    Args:
        prepared: What `prepare` gave.
        requests: Frames of `kcap.writers.sinks.messages`.
        replies: Gets a line of JSON now and then: `Courier.status`.
    """
    courier = Courier(prepared, replies)
    signal.signal(signal.SIGTERM, courier.told_to_end)
    courier.run(requests)


def _appending(path: str) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)
    except OSError as e:
        raise OutputError(f"dead letters can't be written: {e.strerror}", file=path) from e


class _Failed(NamedTuple):
    """Why it ended before everything was delivered."""

    state: str
    """``stopped``, ``gave up``, ``failed``."""
    why: str


class _Open:
    """A block whose messages are on their way."""

    def __init__(self, count: int) -> None:
        self.count = self.left = count


class Courier:
    """Its work, without the process around it.

    Args:
        prepared: What `prepare` gave.
        replies: Where it says how things are.
    """

    def __init__(self, prepared: Prepared, replies: BinaryIO) -> None:
        self._queue = prepared.queue
        self._spool = prepared.spool
        self._transport = prepared.transport
        self._watch: Callable[[], None] | None = getattr(prepared.transport, "watch", None)
        self._dead_letters = prepared.dead_letters
        self._constants = prepared.constants
        self._batch = max(1, prepared.batch)
        self._give_up_s = prepared.give_up_s
        self._replies = replies
        self._news = threading.Event()
        self._halted = threading.Event()
        self._failed: _Failed | None = None
        self._done = False
        self._ended_s: float | None = None
        self._deadline: float | None = None
        self._trying_since: float | None = None
        self._earlier = prepared.spool.left
        self._taken = 0
        self._taken_earlier = 0
        self._refused: Counter[str] = Counter()
        self._connected = False
        self._tries = 0
        self._error: str | None = None
        self._open: deque[_Open] = deque()

    def run(self, requests: BinaryIO) -> None:
        """Deliver, and say how it went.

        Args:
            requests: Frames.
        """
        self._thread(lambda: self._fill(requests))
        sender = self._thread(self._empty)
        told = 0.0
        while not self._done and self._failed is None:
            self._news.wait(_TICK_S)
            self._news.clear()
            now = time.monotonic()
            self._check(now)
            if self._watch is not None:
                self._watch()
            if now - told >= _STATUS_S:
                told = now
                self._tell("running")
        state = "done"
        if self._done:
            sender.join(_CLOSE_S)
        elif self._failed is not None:
            state, self._error = self._failed
            self._halted.set()
            try:
                self._queue.stop()
            except KcapError as e:
                self._error = f"{self._error}; {e}"
        self._tell(state, last=True)
        # A thread may still wait for a server. Nothing it could do is of use now.
        os._exit(0)

    def told_to_end(self, *_: object) -> None:
        """SIGTERM: go on for a moment, for whoever sent it may have sent it to the parent, too."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_S

    def status(self, state: str) -> dict[str, Any]:
        """How things are.

        Args:
            state: ``running``, ``done``, ``stopped``, ``gave up``, ``failed``.

        Returns:
            What the parent gets: messages that the server has, of this run and of an earlier one;
            refused ones by reason; waiting ones; the last error.
        """
        return {
            "state": state,
            "taken": self._taken,
            "taken_earlier": self._taken_earlier,
            "refused": dict(self._refused),
            "waiting": self._queue.waiting,
            "memory_peak": self._queue.peak_bytes,
            "spooled": self._queue.spooled_bytes,
            "cut": self._spool.cut_bytes,
            "tries": self._tries,
            "error": self._error,
        }

    def _check(self, now: float) -> None:
        """Whether it is time to end."""
        if self._deadline is not None and now >= self._deadline:
            self._fail("stopped", "told to end (SIGTERM)")
        since, limit = self._trying_since, self._give_up_s
        if since is not None and limit is None and self._ended_s is not None:
            since, limit = max(since, self._ended_s), LINGER_S
        if since is not None and limit is not None and now - since >= limit:
            why = self._error or "the server does not answer"
            self._fail("gave up", f"no success for {limit:g} s: {why}")

    def _fail(self, state: str, why: str) -> None:
        self._failed = self._failed or _Failed(state, why)
        self._news.set()

    def _thread(self, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(target,), daemon=True)
        thread.start()
        return thread

    def _guarded(self, target: Callable[[], None]) -> None:
        """A thread: whatever ends it ends the courier."""
        try:
            target()
        except KcapError as e:
            self._fail("failed", str(e) if e.hint is None else f"{e} ({e.hint})")
        except Exception as e:  # noqa: BLE001  (libraries of protocols: it is told, with its type)
            self._fail("failed", f"{type(e).__name__}: {e}")

    def _tell(self, state: str, *, last: bool = False) -> None:
        """Write a status; but for the last one only where the parent has read those before."""
        said = self.status(state)
        if not last:
            said["refused"] = {}  # a short line: the last one has the reasons
        line = json.dumps(said).encode() + b"\n"
        out = self._replies.fileno()
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.set_blocking(out, last)
            if last:
                self._replies.write(line)
                self._replies.flush()
            else:
                # Less than a pipe takes at once, so it is all of it or nothing.
                os.write(out, line)

    def _fill(self, requests: BinaryIO) -> None:
        """The thread that puts what comes into the queue."""
        while (found := messages.read_frame(requests)) is not None:
            kind, payload = found
            if kind == messages.END:
                self._ended_s = time.monotonic()
                self._queue.end()
            elif not self._queue.put(Block(messages.count_of(payload), payload)):
                return
        # The parent keeps the pipe until it is told the end.
        self._fail("stopped", "the run was ended before")

    def _empty(self) -> None:
        """The thread that sends what is in the queue."""
        with contextlib.closing(self._transport):
            for batch in self._batches():
                if not self._send(batch):
                    return
            self._done = not self._halted.is_set()
            self._news.set()

    def _batches(self) -> Iterator[list[Message]]:
        """Messages as the transport likes them: no more than that, and no waiting for more."""
        ready: list[Message] = []
        while not self._halted.is_set():
            while len(ready) < self._batch:
                block = self._queue.take(wait=not ready)
                if block is None:
                    break
                self._open.append(_Open(block.count))
                ready += messages.decode(block.payload, self._constants)
            if not ready:
                return
            yield ready[: self._batch]
            del ready[: self._batch]

    def _send(self, batch: Sequence[Message]) -> bool:
        """Send until the server has taken or refused each; False where there is no use any more."""
        wait_s = FIRST_WAIT_S
        while batch and not self._halted.is_set():
            self._trying_since = self._trying_since or time.monotonic()
            asked_s: float | None
            try:
                if not self._connected:
                    self._transport.open()
                    self._connected = True
                refused = self._transport.send(batch)
            except InterruptedDeliveryError as e:
                taken, refused, asked_s = e.taken, e.refused, e.wait_s
                self._error = str(e)[:_REASON_CHARS]
                self._connected = False
                self._tries += 1
                self._transport.close()
            else:
                self._settle(batch, refused)
                self._error = None
                return True
            if taken:
                self._settle(batch[:taken], refused)
                batch, wait_s = batch[taken:], FIRST_WAIT_S
            if asked_s is not None:
                asked_s = min(max(asked_s, FIRST_WAIT_S), ASKED_WAIT_S)
            self._halted.wait(wait_s if asked_s is None else asked_s)
            wait_s = min(2 * wait_s, LAST_WAIT_S)
        return not batch

    def _settle(self, batch: Sequence[Message], refused: Sequence[Refused]) -> None:
        """The server has these, or will never have them: they leave the queue."""
        earlier = min(len(batch), self._earlier)
        self._earlier -= earlier
        for at, reason in refused:
            self._refuse(batch[at], reason)
        refused_earlier = sum(at < earlier for at, _ in refused)
        self._taken_earlier += earlier - refused_earlier
        self._taken += len(batch) - earlier - (len(refused) - refused_earlier)
        self._trying_since = None
        left = len(batch)
        while left:
            first = self._open[0]
            step = min(left, first.left)
            first.left -= step
            left -= step
            if not first.left:
                self._open.popleft()
                self._queue.delivered(first.count)

    def _refuse(self, message: Message, reason: str) -> None:
        reason = reason[:_REASON_CHARS]
        known = reason in self._refused or len(self._refused) < _REASONS
        self._refused[reason if known else _OTHERS] += 1
        if self._dead_letters is None:
            return
        said: dict[str, Any] = {"id": message.id, "reason": reason}
        try:
            said["body"] = message.body.decode()
        except UnicodeDecodeError:
            said["body_base64"] = base64.b64encode(message.body).decode()
        try:
            self._dead_letters.write(json.dumps(said, ensure_ascii=False).encode() + b"\n")
        except OSError as e:
            raise OutputError(f"dead letters can't be written: {e.strerror}") from e
