"""Recording with few rights: what record and run do in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn, TypeVar, cast

import click

from kcap.errors import KcapError, OutputError
from kcap.tools import logs
from kcap.tools.cli import exit_codes

if TYPE_CHECKING:
    from kcap.guard.rights import User
    from kcap.model.stream import LiveSource
    from kcap.readers.live.guard.channel import Answer, Channel, Serve
    from kcap.readers.live.guard.collector import Ended
    from kcap.tools.outputs import Outputs

_F = TypeVar("_F", bound=Callable[..., Any])

_CREATE: Final = "create"
_REMOVE: Final = "remove"
_FAILED: Final = "failed"

_PARTED: Final = "kcap.parted"
"""Set in a context where what has rights waits for what works."""

LOSS: Final = 3
"""Exit code of what finished but has lost something."""


def _known(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Refuse who nobody can become before anything is begun, an output above all."""
    if value is not None:
        from kcap.guard import rights

        rights.chosen(value)
    return value


def user_option(function: _F) -> _F:
    """``--user``."""
    return click.option(
        "--user",
        metavar="NAME",
        callback=_known,
        help="Who works on the events where kcap has rights; default: kcap, else nobody.",
    )(function)


def _settle() -> None:
    """Let the libraries that kcap loads start no threads: those would keep the rights of root.

    They ask the environment when they are loaded, so this comes before that. What they compute
    for a recorder is too little to be shared out.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")


_settle()


def run(
    ctx: click.Context,
    source: LiveSource,
    work: Callable[[Channel | None], int],
    *,
    user: str | None,
    answers: Mapping[str, Serve] | None = None,
    keep: Collection[str] = (),
    helpers: Collection[int] = (),
    packages: Collection[str] = (),
) -> int:
    """Do what is to be done with a source's events in a process without rights.

    Where there are no rights to give up, or where the standard streams are objects of this process
    (a test runner's, a notebook's) and the process is not ours to change, it is done in this one.

    Args:
        ctx: The verb's context.
        source: The source.
        work: Gives the exit code; gets the channel to the process with the rights, None in it.
        user: Who it is done as; None for the default.
        answers: What the channel can be asked for.
        keep: Capabilities that they take.
        helpers: Other processes that work for it: filaments, the couriers of sinks.
        packages: What the worker needs beside what every recording does.

    Returns:
        The exit code, of what has not failed.

    Raises:
        KcapError: It failed, there or here.
        click.exceptions.Exit: It ended with another code than those of what has not failed.
    """
    from kcap.guard import rights
    from kcap.readers.live.guard import collector

    own = sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
    if not own or not rights.privileged():
        return work(None)
    as_user = rights.chosen(user) if rights.may_become() else None
    source.prepare()
    load(packages)
    failure = _Failure()
    ended = collector.part(
        source,
        partial(_worked, ctx, work),
        user=as_user,
        answers={**(answers or {}), _FAILED: failure.note, logs.ASKED: logs.serve},
        keep=keep,
        helpers=helpers,
    )
    ctx.meta[_PARTED] = True
    if failure.error is not None:
        raise failure.error
    code = _code(ended, as_user)
    if code not in (0, LOSS):
        raise click.exceptions.Exit(code)
    return code


def settle(ctx: click.Context, keep: Collection[str]) -> None:
    """Give up what is not needed to read what was recorded, for good: others had a hand in that.

    Where `run` has parted, that is: else this process is not ours to change.

    Args:
        ctx: The verb's context.
        keep: Capabilities that are needed still.

    Raises:
        KcapError: They can't be given up.
    """
    if not ctx.meta.get(_PARTED):
        return
    from kcap.guard import rights, seccomp

    rights.keep(keep)
    seccomp.forbid()


def load(packages: Collection[str] = ()) -> None:
    """Load all of kcap that a recording may need.

    Afterwards that is too late: a user without rights may not be allowed to read Python's folders.

    Args:
        packages: More packages that this one needs.
    """
    import importlib
    import pkgutil

    for package in (*_LOADED, *packages):
        module = importlib.import_module(package)
        for found in pkgutil.iter_modules(module.__path__, f"{package}."):
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError as e:
                # What needs an extra that is not installed says so where it is asked for.
                if (e.name or "").partition(".")[0] == "kcap":
                    raise
    for name in _MODULES:
        importlib.import_module(name)


_LOADED: Final = (
    "kcap",
    "kcap.filament",
    "kcap.filter",
    "kcap.format",
    "kcap.model",
    "kcap.replay",
    "kcap.state",
    "kcap.transform",
    "kcap.readers.live.bpf",
    "kcap.writers",
    "kcap.writers.views",
)
_MODULES: Final = (
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8_sig",
    "kcap.tools.common",
    "kcap.tools.progress",
    "pyarrow.compute",
    "pyarrow.ipc",
)


class _Failure:
    """The error that ended the worker: raised here, where it is known what becomes of outputs."""

    def __init__(self) -> None:
        self.error: KcapError | None = None

    def note(self, argument: bytes) -> Answer:
        """Take note of it."""
        from kcap.readers.live.guard.channel import Answer

        what, _, hint = argument.decode("utf-8", "replace").partition("\0")
        self.error = KcapError(what, hint=hint or None)
        return Answer()


def _worked(ctx: click.Context, work: Callable[[Channel | None], int], channel: Channel) -> int:
    """What the worker does, with the exit codes of a verb."""
    logs.through(channel)
    try:
        with exit_codes(ctx):
            try:
                return work(channel)
            except KcapError as e:
                if ctx.find_root().meta.get("kcap.verbose", 0) > 1:
                    traceback.print_exc()
                channel.ask(_FAILED, f"{e}\0{e.hint or ''}".encode("utf-8", "replace"))
                return e.exit_code
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return e.exit_code


def _code(ended: Ended, user: User | None) -> int:
    """The exit code; says what a worker can't say any more."""
    if ended.code is not None:
        return ended.code
    who = "the process that works on the events"
    if ended.stuck:
        logs.tell(
            f"kcap: the output takes nothing more: {who} was ended; what waited is lost",
            level="warning",
        )
        return LOSS
    if ended.asked and ended.signal in (signal.SIGINT, signal.SIGTERM):
        _die(ended.signal)
    name = signal.Signals(ended.signal or 0).name
    as_whom = "" if user is None else f" (user {user.name})"
    logs.tell(
        f"kcap: {who}{as_whom} was killed by {name}: what it had not committed yet is lost;"
        " 'kcap info' shows what there is",
        level="warning",
    )
    return LOSS


def _die(number: int) -> NoReturn:
    """End by the signal that ended the worker, as whoever started us expects."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    raise AssertionError(number)


class PartedOutputs:
    """Creates and removes a recording's files, once that takes rights in the process that has them.

    Args:
        outputs: Does it.
        allowed: Whether a name is one of the recording's files.
        former: Files of former recordings that may be removed; beside them, only those that were
            created here may.
    """

    def __init__(
        self, outputs: Outputs, allowed: Callable[[str], bool], former: Collection[str] = ()
    ) -> None:
        self._outputs = outputs
        self._allowed = allowed
        self._removable = {*former}
        self._made: list[str] = []
        self._channel: Channel | None = None

    @property
    def made(self) -> list[str]:
        """The files that were created, in order, and not removed again; not in the worker."""
        return [name for name in self._made if name in self._removable]

    def through(self, channel: Channel) -> None:
        """Ask for it from now on: in the worker.

        Args:
            channel: Leads to the other process, which answers as `answers` says.
        """
        self._channel = channel

    def create(self, name: str) -> BinaryIO:
        """See `kcap.tools.outputs.Outputs.create`."""
        if self._channel is None:
            stream = self._outputs.create(name)
            self._note(name)
            return stream
        fd = self._channel.descriptor(_CREATE, os.fsencode(name))
        return cast("BinaryIO", os.fdopen(fd, "r+b", buffering=0))

    def remove(self, name: str) -> None:
        """See `kcap.tools.outputs.Outputs.remove`."""
        if self._channel is None:
            self._outputs.remove(name)
            self._removable.discard(name)
        else:
            self._channel.ask(_REMOVE, os.fsencode(name))

    def answers(self) -> dict[str, Serve]:
        """What the process with the rights answers."""
        return {_CREATE: self._create, _REMOVE: self._remove}

    def _create(self, argument: bytes) -> Answer:
        from kcap.readers.live.guard.channel import Answer

        name = self._checked(argument)
        with contextlib.closing(self._outputs.create(name)) as stream:
            self._note(name)
            return Answer(descriptor=os.dup(stream.fileno()))

    def _remove(self, argument: bytes) -> Answer:
        from kcap.readers.live.guard.channel import Answer

        name = self._checked(argument)
        if name not in self._removable:
            raise OutputError("this is not for this recording to remove", file=name)
        self._outputs.remove(name)
        self._removable.discard(name)
        return Answer()

    def _note(self, name: str) -> None:
        self._removable.add(name)
        self._made.append(name)

    def _checked(self, argument: bytes) -> str:
        """A name that the worker may have something done to."""
        name = os.fsdecode(argument)
        if not self._allowed(name):
            raise OutputError("this is none of the recording's files", file=name)
        return name
