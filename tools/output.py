"""Where verbs write: never over something by accident, never through a link, private."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from kcap.errors import KcapError, OutputError

_PRIVATE = 0o600
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def capture_path(name: str) -> str:
    """The name of a capture to write: ``events`` means ``events.kcap``.

    Args:
        name: As the user gave it.

    Returns:
        The path; ``-`` stays, and so does a name with a suffix or of something that exists.
    """
    path = Path(name)
    if name == "-" or path.suffix or path.exists():
        return name
    return f"{name}.kcap"


def existing_path(name: str) -> str:
    """The name of a capture to read: ``events`` means ``events.kcap`` where only that exists.

    Args:
        name: As the user gave it.

    Returns:
        The path.
    """
    with_suffix = f"{name}.kcap"
    return with_suffix if not Path(name).exists() and Path(with_suffix).exists() else name


@contextlib.contextmanager
def opened(
    path: str,
    *,
    force: bool = False,
    binary: bool = True,
    whole: bool = False,
    buffered: bool = True,
) -> Iterator[BinaryIO]:
    """Open an output.

    With ``force`` or ``whole`` the bytes go to ``NAME.partial``, which takes the name when
    everything is written. An output that got nothing before an error is not left behind.

    Args:
        path: The file; ``-`` for standard output.
        force: Replace an existing file.
        binary: The content is no text, so it may not go to a terminal.
        whole: What is not complete must not look as if it were: a part of a capture can be told,
            a part of a table can't.
        buffered: Of a file, collect what is written; else each call goes to the system.

    Yields:
        A binary stream.

    Raises:
        OutputError: It exists, is a link, or can't be written.
    """
    if path == "-":
        stdout = _stdout(binary=binary)
        yield stdout if buffered else getattr(stdout, "raw", stdout)
        return
    target = Path(path)
    if target.is_symlink():
        raise OutputError("the output is a link", file=path, hint="name the file itself")
    if _is_device(target):
        fd = _descriptor(target, 0)
        _check_owner(fd, path)
        with _closing(os.fdopen(fd, "wb", -1 if buffered else 0), path) as stream:
            yield stream
    elif force or whole:
        with _replacing(target, force=force, buffered=buffered) as stream:
            yield stream
    else:
        with _created(target, buffered=buffered) as stream:
            yield stream


@contextlib.contextmanager
def _replacing(target: Path, *, force: bool, buffered: bool) -> Iterator[BinaryIO]:
    """A new file beside the place that it takes when it is complete, that of an old one by force.

    What an error or a kill leaves keeps the name ``NAME.partial``, so that it can be found, and
    the old file stays.
    """
    if target.is_dir():
        raise OutputError("this is a directory", file=str(target), expected="a file to replace")
    if not force and target.exists():
        raise _exists(target)
    partial = target.with_name(f"{target.name}.partial")
    if partial.is_file() and not partial.is_symlink():
        partial.unlink()
    try:
        with _created(partial, buffered=buffered) as stream:
            yield stream
    except KcapError as e:
        if partial.exists() and e.hint is None:
            stays = f"; {target} stays as it was" if target.exists() else ""
            e.hint = f"what there is so far is in {partial}{stays}"
        raise
    _rename(partial, target, force=force)


def _rename(temporary: Path, target: Path, *, force: bool) -> None:
    try:
        if not force and target.exists():
            raise _exists(target)
        temporary.replace(target)
    except OSError as e:
        raise OutputError(f"can't be replaced: {e.strerror}", file=str(target)) from e


def _exists(target: Path) -> OutputError:
    hint = "give another name, or --force to replace it"
    return OutputError("the output exists already", file=str(target), hint=hint)


@contextlib.contextmanager
def _created(target: Path, *, buffered: bool) -> Iterator[BinaryIO]:
    """A file that was not there before."""
    fd = _descriptor(target, os.O_CREAT | os.O_EXCL)
    made: BinaryIO = os.fdopen(fd, "wb", buffering=-1 if buffered else 0)
    try:
        with _closing(made, str(target)) as stream:
            yield stream
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            if not target.stat().st_size:
                target.unlink()
        raise


@contextlib.contextmanager
def _closing(stream: BinaryIO, path: str) -> Iterator[BinaryIO]:
    """Close a stream at the end; what it can't write then is the output's error too."""
    try:
        yield stream
    except BaseException:
        with contextlib.suppress(OSError):  # the error on its way says what went wrong
            stream.close()
        raise
    try:
        stream.close()
    except BrokenPipeError:
        raise
    except OSError as e:
        raise OutputError(f"writing failed: {e.strerror}", file=path) from e


def _descriptor(target: Path, create: int) -> int:
    # What a verb creates it may read again, to check it.
    flags = (os.O_RDWR if create else os.O_WRONLY) | create | _NOFOLLOW | _BINARY
    try:
        return os.open(target, flags, _PRIVATE)
    except FileExistsError:
        raise _exists(target) from None
    except OSError as e:
        raise OutputError(f"can't be written: {e.strerror}", file=str(target)) from e


def _is_device(target: Path) -> bool:
    """Whether the name is that of a device or pipe, which can only be written in place."""
    try:
        mode = target.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _check_owner(fd: int, path: str) -> None:
    """Refuse a pipe or device that another user put where a file was to be."""
    if hasattr(os, "geteuid") and os.fstat(fd).st_uid not in (0, os.geteuid()):
        os.close(fd)
        raise OutputError("the output is another user's pipe or device", file=path)


def _stdout(*, binary: bool) -> BinaryIO:
    if sys.stdout is None:
        raise OutputError("standard output is closed", file="-")
    if binary and sys.stdout.isatty():
        raise OutputError(
            "a capture is not written to a terminal", file="-", hint="give -o FILE, or pipe it"
        )
    return cast("BinaryIO", sys.stdout.buffer)
