"""What a recorder asks, and how long it waits for the answer."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from kcap.readers.live.guard import apart
from kcap.readers.live.probe import wire
from kcap.readers.live.probe.supervisor import (
    ASK,
    PAGE_BYTES,
    PID,
    STUCK_MAX,
    Places,
    Shared,
    run,
)
from kcap.readers.live.probe.wire import NOBODY, WHOLE, Item, Request

DEADLINE_S: Final = 0.2
"""How long a read of a process may hang."""

FILE_DEADLINE_S: Final = 5.0
"""How long one of a disk may; and a reader that does not hang but gets no processor."""

BACK_OFF_S: Final = 60.0
"""So long nobody reads the memory of a process where that hung."""

BACK_OFFS_MAX: Final = 4096
"""Processes that are left alone; beyond, the first one is tried again."""

BRAKE: Final = 10
BRAKE_S: Final = 10.0
"""After so many late reads in so long a time nobody reads memory: each one costs `DEADLINE_S`."""

WINDOW: Final = 8
"""Requests that are under way at one time."""

WAITING_MAX: Final = 64
"""Requests that wait in a connection at most; they fit its buffer whatever the reader does."""

LATE: Final = -100
"""In place of an error: the read hung, and was given up."""
GONE: Final = -101
"""In place of an error: there is nobody who reads any more."""

_RECEIVE_BYTES: Final = 1 << 18
_DOOR_S: Final = 5.0
_END_S: Final = 1.0
_CRASHES_MAX: Final = 3


class Answer:
    """What a request found; filled while it is waited for.

    Args:
        request: The request.
    """

    def __init__(self, request: Request) -> None:
        self.pid = request.pid
        self.error = 0
        """Why there is nothing at all: an error's number, `GONE`."""
        self.found: dict[str, bytes | int] = {}
        """By name what was read, or the error's number, or `LATE`."""
        self.elements: dict[str, dict[int, bytes]] = {}
        """By a name with ``*`` what was read of each number."""
        self.done = False
        self.left: Sequence[Item] = request.items
        """What is asked of the reader now."""
        self.at = 0
        """The first of them that is not answered."""
        self.careful = False
        self.crashes = 0

    @property
    def slow(self) -> bool:
        """Whether a disk is asked."""
        return any(item.slow for item in self.left)


class Prober:
    """Reads through a process that may hang.

    To be made before any thread, as it forks. May be used from all threads, and from processes
    that are forked later: each one gets a reader of its own.

    Args:
        proc: Where the proc file system is mounted.
        root: The root of the host's file system.
        deadline_s: How long a read of a process may hang.

    Example:
        >>> prober = Prober()
        >>> answer = prober.read(Request(os.getpid(), [Item(Op.CONTENT, "comm")]))
        >>> prober.close()
    """

    def __init__(
        self,
        proc: str = "/proc",
        *,
        root: str = "/",
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.root = root.rstrip("/")
        self._proc = proc
        self._deadline_s = deadline_s
        page = mmap.mmap(-1, PAGE_BYTES)
        self._shared = Shared(page)
        self._door, door = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._owner = os.getpid()
        places = Places(proc, self.root)
        self._supervisor = os.fork()
        if not self._supervisor:
            run(door, self._shared, places)
        door.close()
        self._connections: dict[tuple[int, int], _Connection] = {}
        self._left_alone: dict[int, float] = {}
        self._late_s: deque[float] = deque(maxlen=BRAKE)
        self.waited = 0
        """Reads that hung, until they were given up."""
        self.evicted = 0
        """Processes that are tried again as too many are left alone."""

    @property
    def pids(self) -> frozenset[int]:
        """The processes that read: they are the recorder's own. See `changes`."""
        return self._shared.pids | {self._supervisor}

    @property
    def changes(self) -> int:
        """How often `pids` has changed; the same in all processes."""
        return self._shared.changes

    @property
    def stuck(self) -> int:
        """Readers that were killed and have not ended."""
        return self._shared.stuck

    @property
    def ended(self) -> bool:
        """Whether nobody starts readers any more, as somebody has ended who does."""
        if self._door.fileno() < 0:
            return False  # we did
        poll = select.poll()
        poll.register(self._door, 0)  # that the other end is closed is always told
        return bool(poll.poll(0))

    def read(self, request: Request) -> Answer:
        """Ask, and wait.

        Args:
            request: What to read.

        Returns:
            What was found.
        """
        return next(self.reads((request,)))

    def reads(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Ask for many things, each while those before it are worked on.

        Args:
            requests: What to read.

        Yields:
            What was found, in order.
        """
        source, sent = iter(requests), deque[Answer]()
        connection = self._connection()
        while True:
            while len(sent) < WINDOW and (request := next(source, None)) is not None:
                sent.append(connection.send(self._checked(request)))
            if not sent:
                return
            answer = sent.popleft()
            connection.wait(answer)
            yield answer

    def send(self, request: Request) -> Answer:
        """Ask without waiting.

        Args:
            request: What to read.

        Returns:
            What `wait` fills.
        """
        return self._connection().send(self._checked(request))

    def wait(self, answer: Answer) -> Answer:
        """Wait for what was asked for with `send`, in the same thread.

        Args:
            answer: What that returned.

        Returns:
            The same, filled.
        """
        self._connection().wait(answer)
        return answer

    def rest(self) -> None:
        """End the reader of this thread; it gets another one where it asks for something."""
        connection = self._connections.pop((os.getpid(), threading.get_ident()), None)
        if connection is not None:
            connection.close(shared=False)

    def close(self) -> None:
        """End the readers, where this process made them; else let go of them."""
        for (pid, _), connection in list(self._connections.items()):
            connection.close(shared=pid != os.getpid())
        self._connections.clear()
        self._door.close()
        if self._supervisor and self._owner == os.getpid():
            apart.await_end(self._supervisor, _END_S)
            self._supervisor = 0

    def _connection(self) -> _Connection:
        key = (os.getpid(), threading.get_ident())
        found = self._connections.get(key)
        if found is None:
            found = self._connections[key] = _Connection(self)
        return found

    def _checked(self, request: Request) -> Answer:
        answer = Answer(request)
        self.spare(answer)
        return answer

    def spare(self, answer: Answer) -> None:
        """Do not ask for memory that is not to be read now.

        Args:
            answer: What is about to be asked for.
        """
        if any(item.memory for item in answer.left) and self._braking(answer.pid):
            answer.found.update((item.name, LATE) for item in answer.left if item.memory)
            answer.left = [item for item in answer.left if not item.memory]

    def _braking(self, pid: int) -> bool:
        """Whether the memory of a process is not to be read now."""
        now_s = time.monotonic()
        until_s = self._left_alone.get(pid)
        if until_s is not None and now_s < until_s:
            return True
        if until_s is not None:
            del self._left_alone[pid]
        if self._shared.stuck >= STUCK_MAX:
            return True
        return len(self._late_s) == BRAKE and now_s - self._late_s[0] < BRAKE_S

    def hung(self, pid: int) -> None:
        """Take note of a read that hung.

        Args:
            pid: The process, or `NOBODY`.
        """
        now_s = time.monotonic()
        self.waited += 1
        if pid != NOBODY:
            self._late_s.append(now_s)
            if len(self._left_alone) >= BACK_OFFS_MAX:
                del self._left_alone[next(iter(self._left_alone))]
                self.evicted += 1
            self._left_alone[pid] = now_s + BACK_OFF_S

    def connect(self) -> tuple[socket.socket, int] | None:
        """Get a reader.

        Returns:
            The connection to it and its process id; None where nobody starts one any more.
        """
        try:
            self._door.settimeout(_DOOR_S)
            self._door.send(ASK)
            told, descriptors, *_ = socket.recv_fds(
                self._door, PID.size, 1, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return None
        if len(told) != PID.size or not descriptors:
            return None
        return socket.socket(fileno=descriptors[0]), PID.unpack(told)[0]

    def patience_s(self, answer: Answer) -> float:
        """How long the next part of an answer may take.

        Args:
            answer: The answer.

        Returns:
            Seconds.
        """
        return FILE_DEADLINE_S if answer.slow else self._deadline_s


class _Connection:
    """One reader, and what it was asked."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self._socket: socket.socket | None = None
        self._reader = 0
        self._pending: deque[Answer] = deque()
        self._held = bytearray()

    def send(self, answer: Answer) -> Answer:
        """Ask for what is left of an answer."""
        if not answer.left:
            answer.done = True
            return answer
        while len(self._pending) >= WAITING_MAX:
            self.wait(self._pending[0])
        self._pending.append(answer)
        if self._socket is None:
            self._again()
        else:
            self._ask(answer)
        return answer

    def wait(self, answer: Answer) -> None:
        """Until an answer is done; those before it are done then, too."""
        while not answer.done:
            first = self._pending[0]
            patience_s = self._prober.patience_s(first)
            began_s = time.monotonic()
            while not self._receive(patience_s):
                waited_s = time.monotonic() - began_s
                if not (waited_s < FILE_DEADLINE_S and apart.runs(self._reader)):
                    self._give_up(first)
                    break

    def close(self, *, shared: bool) -> None:
        """Let go of the reader; it ends, unless another process has asked for it."""
        if self._socket is not None:
            if not shared:
                with contextlib.suppress(OSError):  # it has ended before
                    self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._socket = None

    def _ask(self, answer: Answer) -> None:
        assert self._socket is not None
        request = wire.packed(Request(answer.pid, answer.left), careful=answer.careful)
        try:
            self._socket.settimeout(DEADLINE_S)
            self._socket.sendall(request)
        except OSError:
            # Gone, or it does not even take what is asked: who waits for its answer finds out.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _receive(self, patience_s: float) -> bool:
        """Take what the reader has sent; False where nothing came in time."""
        assert self._socket is not None
        try:
            self._socket.settimeout(patience_s)
            part = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return False
        except OSError:
            part = b""
        if part:
            self._held += part
            self._take()
        else:
            self._crashed()
        return True

    def _take(self) -> None:
        """Put whole answers where they belong."""
        at, held = 0, self._held
        size, unpack = wire.ANSWER.size, wire.ANSWER.unpack_from
        while at + size <= len(held):
            item, error, element, length = unpack(held, at)
            if at + size + length > len(held):
                break
            data = bytes(held[at + size : at + size + length])
            at += size + length
            answer = self._pending[0]
            if item == wire.END:
                answer.error, answer.done = error, True
                self._pending.popleft()
                continue
            name = answer.left[item].name
            if element != WHOLE:
                answer.elements.setdefault(name, {})[element] = data
                continue
            answer.at = item + 1
            answer.found[name] = error or data
        del held[:at]

    def _crashed(self) -> None:
        """The reader has ended by itself, or somebody ended it."""
        first = self._pending[0]
        first.crashes += 1
        if first.crashes > _CRASHES_MAX:
            first.error, first.done = GONE, True
            self._pending.popleft()
        else:
            first.left, first.at = first.left[first.at :], 0
        self._again()

    def _give_up(self, answer: Answer) -> None:
        """Have the reader killed, and go on without what hangs."""
        # Of what comes before a process's memory all has been told but the very first item.
        at = answer.at
        if at == 0 and not answer.careful and len(answer.left) > 1 and answer.left[1].memory:
            at = 1
        item = answer.left[at]
        answer.left = answer.left[answer.at :]
        # Others may have been read, and not told; then they are asked for once more.
        if answer.careful or item.memory or item.slow:
            answer.found[item.name] = LATE
            self._prober.hung(answer.pid)
            answer.left = [other for other in answer.left if other is not item]
        answer.careful, answer.at = True, 0
        if not answer.left:
            answer.done = True
            self._pending.popleft()
        self._again()

    def _again(self) -> None:
        """Get another reader, and ask it for what is not answered."""
        self.close(shared=False)
        self._held = bytearray()
        connected = self._prober.connect() if self._pending else None
        if connected is None:
            for answer in self._pending:
                answer.error, answer.done = GONE, True
            self._pending.clear()
            return
        self._socket, self._reader = connected
        pending, self._pending = self._pending, deque()
        for answer in pending:
            # Of one that was begun, only the rest is asked for.
            answer.left, answer.at = answer.left[answer.at :], 0
            self._prober.spare(answer)
            answer.done = not answer.left
            if not answer.done:
                self._pending.append(answer)
                self._ask(answer)
