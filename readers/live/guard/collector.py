"""A recorder in two processes: one that has rights and does little, one that has none.

The *collector* is the process that the user started. It has made the source: the program is in the
kernel, the rings are mapped, the sockets open. It keeps a few capabilities (`rights.COLLECTOR`)
and those that its source takes, forks the *worker*, and from then on only answers the few questions
that take rights. Events never pass through it: the worker has the mappings and descriptors. It
decodes, filters, compresses and writes, as an ordinary user, without capabilities, under a filter
of system calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple

from kcap.errors import KcapError
from kcap.guard import rights, seccomp
from kcap.readers.live.guard.channel import Answer, Channel, Serve

if TYPE_CHECKING:
    from kcap.model.stream import LiveSource

STUCK_S: Final = 10.0
AGAIN_S: Final = 1.0
"""A worker that was asked to end, and for so long only waits for its output, is ended; the second
is for one that was asked twice. One that is asked a third time is ended whatever it does."""

_LOOK_MS: Final = 500
_INSISTING: Final = 3
_GONE_S: Final = 5.0
"""What a worker that says nothing more has to end in."""

_QUESTION_S: Final = 5.0
"""What a question may take to come, once it has begun."""

_FORWARDED: Final = tuple(
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if (number := getattr(signal, name, None)) is not None
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BLOCK_BYTES: Final = 32 << 20
_KEPT_BYTES: Final = 512 << 20
_OF_SOURCE: Final = "source/"
_BEGIN: Final = "begin"


class Ended(NamedTuple):
    """How a worker ended."""

    code: int | None
    """Its exit code; None where a signal ended it."""
    signal: int | None = None
    """That signal."""
    stuck: bool = False
    """It was asked to end, and its output took nothing more."""
    asked: bool = False
    """Somebody asked for the end."""


def part(
    source: LiveSource,
    work: Callable[[Channel], int],
    *,
    user: rights.User | None,
    answers: Mapping[str, Serve] | None = None,
    keep: Collection[str] = (),
    helpers: Collection[int] = (),
) -> Ended:
    """Work on the events of a source in a process without rights, and give up most of this one's.

    Args:
        source: Made and prepared; `LiveSource.part` is called in the worker.
        work: What the worker does; gets the channel by which ``answers`` can be asked for.
        user: Who the worker becomes; None to stay who this is.
        answers: What the worker may ask for, beside what its source does.
        keep: Capabilities that ``answers`` take.
        helpers: Other processes of this recorder: what they do is left out, too.

    Returns:
        How the worker ended; it has then.

    Raises:
        KcapError: The rights can't be given up.
    """
    ours, theirs = Channel.pair()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else both processes would
    _freeze()
    # A signal must find the handlers of the process that it is for.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    pid = os.fork()
    if not pid:
        ours.close()
        os._exit(_worker(source, work, theirs, user))
    theirs.close()
    collector = _Collector(ours, pid)
    handlers = {number: signal.signal(number, collector.forward) for number in _FORWARDED}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    try:
        more = rights.keep({*rights.COLLECTOR, *keep, *source.rights})
        if more:
            sys.stderr.write(f"kcap: {more} threads of a library keep rights of root\n")
        source.own((os.getpid(), pid, *helpers))
        return collector.run(_answers(source, answers or {}))
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        ours.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _freeze() -> None:
    """Let nobody look for garbage in what is there by now, nor write into pages that are shared."""
    gc.collect()
    gc.freeze()


def _answers(source: LiveSource, answers: Mapping[str, Serve]) -> dict[str, Serve]:
    """What can be asked for. The source's own questions come with their name as the argument."""

    def serve(argument: bytes) -> Answer:
        name, _, rest = argument.partition(b"\0")
        return Answer(source.serve(name.decode("utf-8", "replace"), rest))

    return {**answers, _BEGIN: lambda _: Answer(), _OF_SOURCE: serve}


def _worker(
    source: LiveSource,
    work: Callable[[Channel], int],
    channel: Channel,
    user: rights.User | None,
) -> int:
    """All of the worker's life.

    Returns:
        Its exit code.
    """
    try:
        # Keys of the terminal are for the collector, which passes on what they mean.
        os.setsid()
        let_go_of_inherited()
        if user is not None:
            rights.become(user)
        if rights.keep(()):
            raise KcapError("a thread of a library kept its rights", hint="report it")
        seccomp.forbid()
        rights.end_with_parent(signal.SIGTERM)
        _keep_blocks()
        source.part(
            lambda name, argument: channel.ask(_OF_SOURCE, name.encode() + b"\0" + argument)
        )
        channel.ask(_BEGIN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        return work(channel)
    except KcapError as error:
        sys.stderr.write(f"kcap: {error}\n")
        return error.exit_code
    except BaseException:  # noqa: BLE001  (nothing may get into the code of the other process)
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _keep_blocks() -> None:
    """Have the C library keep freed blocks for the next batch, until `give_back`.

    A batch takes and frees megabytes: a page that goes back to the system and comes again costs
    0.25 us, of which there were 0.7 an event.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """Give memory that is free back to the system: from time to time, as it costs to get it again.

    Else holes remain between what is kept: 12 MiB a minute at 20,000 events a second, for as long
    as was looked.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def let_go_of_inherited() -> None:
    """Keep of what the user's shell left open only the outputs, and those for writing alone.

    Else whoever takes over a worker could read what is typed at the terminal, or a file that root
    had open. What we open ourselves is closed on exec, and so can be told from that.
    """
    inherited = [
        int(name)
        for name in os.listdir("/proc/self/fd")  # noqa: PTH208
        if _is_inherited(int(name))
    ]
    for fd in inherited:
        if fd not in (1, 2):
            _replace(fd, os.devnull, os.O_RDONLY) if not fd else os.close(fd)
        elif os.isatty(fd):
            # A terminal that can't be opened again, as one of another container, stays.
            with contextlib.suppress(OSError):
                _replace(fd, f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NOCTTY)


def _is_inherited(fd: int) -> bool:
    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False  # that of the list itself


def _replace(fd: int, path: str, flags: int) -> None:
    opened = os.open(path, flags | os.O_CLOEXEC)
    os.dup2(opened, fd)
    os.close(opened)


class _Collector:
    """Serves a worker until it ends.

    Args:
        channel: Where it asks.
        pid: Its process.
    """

    def __init__(self, channel: Channel, pid: int) -> None:
        self._channel = channel
        self._pid = pid
        self._asked_s: float | None = None
        self._asked = 0
        self._patience_s = STUCK_S
        self._stuck = False
        self._moved: tuple[str, ...] = ()
        self._moved_s = 0.0

    def forward(self, number: int, _: FrameType | None) -> None:
        """Pass on a signal."""
        if number in (signal.SIGINT, signal.SIGTERM):
            self._asked += 1
            if self._asked_s is None:
                self._asked_s = self._moved_s = time.monotonic()
            else:
                self._patience_s = AGAIN_S
            if self._asked >= _INSISTING:
                number = signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)

    def run(self, answers: Mapping[str, Serve]) -> Ended:
        """Answer until the worker has ended.

        Args:
            answers: What it may ask for.

        Returns:
            How it did.
        """
        self._channel.wait_at_most(_QUESTION_S)
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        while not poll.poll(_LOOK_MS) or self._channel.serve(answers):
            self._look()
        return self._ended()

    def _look(self) -> None:
        """End a worker that was asked to end and waits for what never comes."""
        if self._asked_s is None:
            return
        moved, now_s = _moves(self._pid), time.monotonic()
        if moved != self._moved:
            self._moved, self._moved_s = moved, now_s
        elif now_s - self._moved_s > self._patience_s and moved[:1] == ("S",):
            self._stuck = True
            os.kill(self._pid, signal.SIGKILL)

    def _ended(self) -> Ended:
        """Wait for a worker that has closed its end of the channel."""
        last_s = time.monotonic() + _GONE_S
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > last_s:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.01)
        asked = self._asked_s is not None
        if os.WIFSIGNALED(status):
            return Ended(None, os.WTERMSIG(status), self._stuck, asked)
        return Ended(os.WEXITSTATUS(status), None, self._stuck, asked)


def _moves(pid: int) -> tuple[str, ...]:
    """A process's state, and what changes as long as it does anything."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ()
    fields = stat.rpartition(")")[2].split()
    return (fields[0], *fields[11:13])
