"""A log file: private, never through a link, and another one when it is full."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kcap.errors import KcapError, OutputError
from kcap.model.text import printable

if TYPE_CHECKING:
    from kcap.readers.live.guard.channel import Channel
    from kcap.tools.settings.model import LoggingSettings
    from kcap.tools.settings.secrets import Known

LINE_CHARS: Final = 16 << 10
"""What a record says at most."""

_FLAGS: Final = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
_PRIVATE: Final = 0o600


def opened(settings: LoggingSettings, known: Known, *, verb: str) -> LogFile:
    """Open a log.

    Args:
        settings: Where it is, how it looks, and when it is full.
        known: The secrets to keep out of it.
        verb: The verb that runs.

    Returns:
        What writes it.

    Raises:
        OutputError: It can't be written, or is another user's or a link.
    """
    assert settings.file is not None
    handler = LogFile(settings.file, settings.max_bytes, settings.keep)
    handler.setFormatter(_Json(verb) if settings.format == "json" else _Text(verb))
    handler.addFilter(_Masks(known))
    return handler


def attach(name: str, handler: logging.Handler, level: str) -> None:
    """Let a logger write by one handler alone.

    Args:
        name: The logger.
        handler: What writes.
        level: What is worth it.
    """
    logger = logging.getLogger(name)
    logger.setLevel(level.upper())
    logger.propagate = False
    logger.addHandler(handler)


def handed_on(name: str, former: logging.Handler, channel: Channel, question: str) -> HandedOn:
    """Let a logger hand on its records to another process.

    Args:
        name: The logger.
        former: What wrote so far, in that process; this one lets go of it.
        channel: Leads there.
        question: What asks for it.

    Returns:
        What hands them on.
    """
    logger = logging.getLogger(name)
    logger.removeHandler(former)
    former.close()
    handler = HandedOn(channel, question)
    logger.addHandler(handler)
    return handler


class LogFile(logging.Handler):
    """Writes records into a file, each with one call to the system.

    Several processes may write the same one; the first that finds it full renames it, the others
    follow. What can't be written is told once: no run ends for its log.

    Args:
        path: The file.
        max_bytes: When it is full.
        keep: How many full ones are kept, as ``PATH.1``, the latest, and so on.

    Raises:
        OutputError: It can't be written.
    """

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        super().__init__()
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._failed = False
        self._fd: int | None = None
        self._fd = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record.

        Args:
            record: The record.
        """
        line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        try:
            self._follow()
            assert self._fd is not None
            if (size := os.fstat(self._fd).st_size) and size + len(line) > self._max_bytes:
                self._turn()
            os.write(self._fd, line)
        except (OSError, KcapError) as error:
            self._tell(error)
        else:
            self._failed = False

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        super().close()

    def _open(self) -> int:
        try:
            fd = os.open(self._path, _FLAGS, _PRIVATE)
        except OSError as error:
            raise OutputError(
                f"the log can't be written: {error.strerror}", file=self._path
            ) from error
        status = os.fstat(fd)
        if what := _unfit(status):
            os.close(fd)
            raise OutputError(f"the log is {what}", file=self._path, expected="a file of your own")
        return fd

    def _follow(self) -> None:
        """Go on in the file that has the name now, where somebody has renamed ours."""
        if self._fd is None:
            self._fd = self._open()
            return
        try:
            there = os.lstat(self._path)
        except FileNotFoundError:
            there = None
        ours = os.fstat(self._fd)
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            os.close(self._fd)
            self._fd = None
            self._fd = self._open()

    def _turn(self) -> None:
        """Begin another file."""
        assert self._fd is not None
        full = os.fstat(self._fd).st_ino
        with _Alone(self._fd) as alone:
            self._follow()
            if not alone or os.fstat(self._fd).st_ino != full:
                return  # somebody else does it, or has done it meanwhile
            for number in range(self._keep, 1, -1):
                older = Path(f"{self._path}.{number - 1}")
                if older.exists():
                    older.replace(f"{self._path}.{number}")
            if self._keep:
                Path(self._path).replace(f"{self._path}.1")
            else:
                Path(self._path).unlink()
            self._follow()

    def _tell(self, error: Exception) -> None:
        if not self._failed and sys.stderr is not None:
            sys.stderr.write(f"kcap: warning: {printable(self._path)}: no more log: {error}\n")
        self._failed = True


class HandedOn(logging.Handler):
    """Has records written by another process.

    Args:
        channel: Leads there.
        question: What asks for it.
    """

    def __init__(self, channel: Channel, question: str) -> None:
        super().__init__()
        self._channel = channel
        self._question = question

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on.

        Args:
            record: The record.
        """
        text = record.getMessage()[:LINE_CHARS]
        argument = f"{record.levelname.lower()}\0{text}".encode("utf-8", "backslashreplace")
        try:
            self._channel.ask(self._question, argument)
        except KcapError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (as logging calls it)
        """Nobody is there to write it: that the other process has ended shows by itself."""


class _Alone:
    """While this lasts, no other process turns to another file: unless one does so already.

    Nobody waits for another one, which may have been stopped.

    Args:
        fd: The log.
    """

    def __init__(self, fd: int) -> None:
        self._fd = os.dup(fd)  # the log itself may be closed meanwhile

    def __enter__(self) -> bool:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class _Masks(logging.Filter):
    """Takes secrets out of records before they are written.

    Args:
        known: The secrets.
    """

    def __init__(self, known: Known) -> None:
        super().__init__()
        self._known = known

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask a record; all are written."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}: {logging.Formatter().formatException(record.exc_info)}"
            record.exc_info = record.exc_text = None
        record.msg, record.args = self._known.masked(text)[:LINE_CHARS], None
        more = getattr(record, "more", {})
        record.more = {
            name: self._known.masked(value) if isinstance(value, str) else value
            for name, value in more.items()
        }
        return True


class _Text(logging.Formatter):
    """Lines for people: time, level, process, verb, text.

    Args:
        verb: The verb that runs.
    """

    def __init__(self, verb: str) -> None:
        super().__init__()
        self._verb = verb

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        level, who = record.levelname.lower(), f"{self._verb}[{record.process}]"
        return f"{_utc(record.created)} {level:<7} {who}: {printable(record.getMessage())}"


class _Json(logging.Formatter):
    """A JSON object a line.

    Args:
        verb: The verb that runs.
    """

    def __init__(self, verb: str) -> None:
        super().__init__()
        self._verb = verb

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        made: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "verb": self._verb,
            "pid": record.process,
            "message": record.getMessage(),
            **getattr(record, "more", {}),
        }
        return json.dumps(made, ensure_ascii=False)


def _unfit(status: os.stat_result) -> str | None:
    """Why a file is none to write a log into."""
    if not stat.S_ISREG(status.st_mode):
        return "no file"
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return "another user's"
    if status.st_nlink > 1:
        return "a file that has other names"
    return None


def _utc(created_s: float) -> str:
    """A time in UTC with milliseconds."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created_s))
    return f"{whole}.{int(created_s % 1 * 1000):03}Z"
