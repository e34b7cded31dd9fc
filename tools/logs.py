"""What kcap says: on standard error, and in a log file where the settings name one.

Where a recorder works in a process without rights, that one hands on what it says to the process
that has kept its rights, which alone writes the log, and turns to another file when it is full.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    import logging

    from kcap.readers.live.guard.channel import Answer, Channel
    from kcap.tools.settings.secrets import Known

NAME: Final = "kcap"
"""The logger."""

ASKED: Final = "log"
"""The question by which a worker has a line written."""

_EARLY_MAX: Final = 50
_COUNTS: Final = "kcap.counts"
_PREFIX: Final = "kcap: "


class _Log:
    """The log of this process.

    Before it is known where it is, or that there is none, what was said waits.
    """

    def __init__(self) -> None:
        self.handler: logging.Handler | None = None
        self.known: Known | None = None
        self.early: list[tuple[str, str, dict[str, Any]]] = []

    def add(self, level: str, text: str, **more: Any) -> None:  # noqa: ANN401
        """Write a record, or keep it for later."""
        if self.handler is None:
            if len(self.early) < _EARLY_MAX:
                self.early.append((level, text, more))
            return
        import logging

        number = logging.getLevelNamesMapping()[level.upper()]
        logging.getLogger(NAME).log(number, "%s", text, extra={"more": more})

    def close(self) -> None:
        """Let go of the file."""
        if self.handler is not None:
            import logging

            logging.getLogger(NAME).removeHandler(self.handler)
            self.handler.close()
        self.__init__()  # type: ignore[misc]


_log = _Log()


def tell(text: str, *, level: str = "info") -> None:
    """Say something on standard error, and in the log.

    Args:
        text: What is to be said, as users see it.
        level: One of `kcap.tools.settings.model.LEVELS`.
    """
    if _log.known is not None:
        text = _log.known.masked(text)
    click.echo(text, err=True)
    _log.add(level, text.removeprefix(_PREFIX))


def note(text: str, *, level: str = "info", **more: Any) -> None:  # noqa: ANN401
    """Write something into the log alone.

    Args:
        text: What is to be written.
        level: One of `kcap.tools.settings.model.LEVELS`.
        more: Numbers and words to find it by.
    """
    _log.add(level, text, **more)


def count(ctx: click.Context, **counts: int) -> None:
    """Take note of what a run did, for the end of its log.

    Args:
        ctx: The verb's context.
        counts: How many, by name.
    """
    ctx.find_root().meta.setdefault(_COUNTS, {}).update(counts)


def begin(ctx: click.Context) -> None:
    """Open the log that the settings name, before anything is done.

    Args:
        ctx: The context of the verb that begins.

    Raises:
        KcapError: The settings are wrong, or the log that somebody named can't be written.
    """
    from kcap.errors import KcapError
    from kcap.tools import settings

    found = settings.found(ctx)
    chosen = found.logging
    _log.known = found.known
    if chosen.file is None:
        return
    import kcap
    from kcap.tools import logfile

    try:
        handler = logfile.opened(chosen, found.known, verb=ctx.command_path.removeprefix("kcap "))
    except KcapError as error:
        if not chosen.found:
            raise
        # The host's settings are everybody's, but its log is the administrator's.
        tell(f"{_PREFIX}warning: no log: {error}", level="warning")
        return
    logfile.attach(NAME, handler, chosen.level)
    _log.handler = handler
    early, _log.early = _log.early, []
    words = " ".join(_quoted(word) for word in ("kcap", *sys.argv[1:]))
    note(f"begins: {words}", version=kcap.__version__)
    for level, text, more in early:
        _log.add(level, text, **more)


@contextlib.contextmanager
def ending(ctx: click.Context) -> Iterator[None]:
    """Write into the log how a run ended, and close it.

    Args:
        ctx: The group's context.

    Yields:
        Nothing: within it the verb runs.
    """
    code = 1
    try:
        yield
        code = 0
    except click.exceptions.Exit as error:
        code = error.exit_code
        raise
    except click.ClickException as error:
        code = error.exit_code
        note(error.format_message(), level="error")
        raise
    finally:
        counts: dict[str, int] = ctx.find_root().meta.get(_COUNTS, {})
        told = "".join(f", {number:,} {name.replace('_', ' ')}" for name, number in counts.items())
        _log.add("info", f"ended with exit code {code}{told}", exit_code=code, **counts)
        _log.close()


def through(channel: Channel) -> None:
    """In a process without rights: have what is said written by the one that has them.

    Args:
        channel: Leads there, where `serve` answers.
    """
    if _log.handler is None:
        return
    from kcap.tools import logfile

    _log.handler = logfile.handed_on(NAME, _log.handler, channel, ASKED)


def serve(argument: bytes) -> Answer:
    """Write what a worker says.

    Args:
        argument: A level, a NUL, and text.

    Returns:
        That it was done.
    """
    from kcap.readers.live.guard.channel import Answer
    from kcap.tools.settings.model import LEVELS

    level, _, text = argument.decode("utf-8", "replace").partition("\0")
    _log.add(level if level in LEVELS else "info", text)
    return Answer()


def _quoted(word: str) -> str:
    """A word of a command line as a shell would take it."""
    import shlex

    return shlex.quote(word)
