"""The process that starts readers, and kills the late ones.

It reads nothing itself, so it never hangs. Through its door, a socket that all clients inherit,
they ask for connections; behind each one a reader is forked. A client to whom a reader is late
closes the connection: that ends the reader, or leaves it behind where the kernel doesn't let it
end (a FUSE server has its request and doesn't answer). When the door is closed everywhere, also
by ``kill -9``, all of this ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import struct
from typing import Final, NamedTuple, NoReturn

from kcap.errors import KcapError
from kcap.guard import rights, seccomp
from kcap.readers.live.guard import apart
from kcap.readers.live.probe.reader import serve

READERS_MAX: Final = 16
"""Readers that serve at one time."""

STUCK_MAX: Final = 8
"""Readers that can't be killed, from which on nobody reads a process's memory any more."""

ASK: Final = b"c"
"""What a client sends through the door, for a connection."""

PID: Final = struct.Struct("=I")
"""What it gets with the connection: the reader; 0 and no connection where there are too many."""

PAGE_BYTES: Final = 4096
_HEAD: Final = struct.Struct("=III")
_DOOR_BYTES: Final = 16
_REAP_MS: Final = 500
_LOOK_MS: Final = 5000


class Shared:
    """What all clients see of the readers: a page of memory that they share.

    Args:
        page: The page.
    """

    def __init__(self, page: mmap.mmap) -> None:
        self._page = page

    @property
    def changes(self) -> int:
        """How often the readers have changed."""
        return int(_HEAD.unpack_from(self._page)[0])

    @property
    def stuck(self) -> int:
        """Readers that were killed and have not ended."""
        return int(_HEAD.unpack_from(self._page)[1])

    @property
    def pids(self) -> frozenset[int]:
        """The readers that there are, stuck ones included."""
        count = min(_HEAD.unpack_from(self._page)[2], READERS_MAX + 2 * STUCK_MAX)
        return frozenset(struct.unpack_from(f"={count}I", self._page, _HEAD.size))

    def tell(self, pids: list[int], stuck: int) -> None:
        """Say what there is now.

        Args:
            pids: The readers.
            stuck: How many of them don't end.
        """
        struct.pack_into(f"={len(pids)}I", self._page, _HEAD.size, *pids)
        # A client may have written anything there.
        _HEAD.pack_into(self._page, 0, self.changes + 1 & 0xFFFFFFFF, stuck, len(pids))


class Places(NamedTuple):
    """What readers may look into."""

    proc: str
    root: str


def run(door: socket.socket, shared: Shared, places: Places) -> NoReturn:
    """Be the supervisor; of a process that was just forked.

    Args:
        door: Where clients ask.
        shared: Where they see what there is.
        places: What readers may look into.
    """
    status = 1
    try:
        apart.let_go({door.fileno()})
        _without_rights()
        _Supervisor(door, shared, places).work()
        status = 0
    except (OSError, KcapError):
        # Whoever asks sees the door closed, and says so in the recording.
        status = 2
    finally:
        os._exit(status)


def _without_rights() -> None:
    rights.keep(rights.PROBER)
    if os.uname().machine == "x86_64":
        seccomp.forbid(network=True, forks=True, but={"open_by_handle_at", "kill"})


class _Supervisor:
    """Starts readers, and ends them."""

    def __init__(self, door: socket.socket, shared: Shared, places: Places) -> None:
        self._door = door
        self._shared = shared
        self._places = places
        self._serving: dict[int, tuple[socket.socket, int]] = {}
        """Connections and readers, by the connection's descriptor."""
        self._stuck: set[int] = set()
        self._poll = select.poll()
        self._parent = apart.Parent()

    def work(self) -> None:
        """Until the door is closed."""
        woken, wake = socket.socketpair()
        wake.setblocking(False)
        woken.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._poll.register(self._door, select.POLLIN)
        self._poll.register(woken, select.POLLIN)
        try:
            while True:
                # One that ended in the middle of being killed has given its signal already.
                happened = dict(self._poll.poll(_REAP_MS if self._stuck else _LOOK_MS))
                if self._parent.long_gone:
                    return
                if woken.fileno() in happened:
                    with contextlib.suppress(BlockingIOError):
                        woken.recv(4096)
                for fd in happened.keys() & self._serving.keys():
                    self._end(fd)
                self._reap()
                if self._door.fileno() in happened and not self._open():
                    return
        finally:
            for fd in list(self._serving):
                self._end(fd)

    def _open(self) -> bool:
        """Start a reader for who asks; False where nobody is left to ask."""
        try:
            asked = self._door.recv(_DOOR_BYTES)
        except ConnectionResetError:
            return False
        if not asked:
            return False
        if len(self._serving) >= READERS_MAX or len(self._stuck) >= 2 * STUCK_MAX:
            self._answer(PID.pack(0), ())
            return True
        client, served = socket.socketpair()
        try:
            pid = self._fork(served, client)
        except BlockingIOError:  # too many processes now; later there may be room for one
            client.close()
            served.close()
            self._answer(PID.pack(0), ())
            return True
        self._poll.register(served, 0)  # that the other end is closed is always told
        self._serving[served.fileno()] = (served, pid)
        self._say()
        self._answer(PID.pack(pid), (client.fileno(),))
        client.close()
        return True

    def _answer(self, told: bytes, descriptors: tuple[int, ...]) -> None:
        # Who does not take its connections gets no more, and does not make the others wait.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._door, [told], descriptors, socket.MSG_DONTWAIT)

    def _fork(self, served: socket.socket, client: socket.socket) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            client.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            apart.close_all_but({0, 1, 2, served.fileno()})
            rights.end_with_parent(signal.SIGKILL)
            if os.uname().machine == "x86_64":
                seccomp.forbid(but={"open_by_handle_at"})
            if os.getppid() == parent:
                serve(served, proc=self._places.proc, root=self._places.root)
            status = 0
        except (OSError, ValueError, KcapError):
            status = 2  # the client sees its connection closed
        finally:
            os._exit(status)

    def _end(self, fd: int) -> None:
        """Kill the reader of a connection that is closed."""
        served, pid = self._serving.pop(fd)
        self._poll.unregister(fd)
        served.close()
        os.kill(pid, signal.SIGKILL)
        self._stuck.add(pid)
        self._say()

    def _reap(self) -> None:
        """Take note of readers that have ended."""
        changed = False
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if not pid:
                break
            changed = True
            self._stuck.discard(pid)
            for fd, (served, reader) in list(self._serving.items()):
                if reader == pid:  # it ended by itself; closing tells its client
                    del self._serving[fd]
                    self._poll.unregister(fd)
                    served.close()
        if changed:
            self._say()

    def _say(self) -> None:
        serving = [pid for _, pid in self._serving.values()]
        self._shared.tell(sorted([*serving, *self._stuck]), len(self._stuck))
