"""What root does not load: code and settings that somebody else may have put there.

As root, kcap takes no code from the folder it is started in, from PYTHONPATH or another variable,
nor from a user's own packages; and no file of rules or code that anybody but root can change. This
module is imported before anything that is not part of Python: it imports nothing of that kind.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kcap.errors import KcapError

HOME: Final = Path(__file__).resolve().parent.parent
"""The folder that has kcap's packages: site-packages, or a checkout."""

_PATH: Final = "PYTHONPATH"
VARIABLES: Final = (_PATH, "PYTHONHOME", "PYTHONPYCACHEPREFIX", "PYTHONUSERBASE")
"""Variables by which Python takes code from elsewhere in a program that is not interactive."""

_ROOT: Final = 0
_LINKS_MAX: Final = 40
"""Symbolic links on one way: as many as the kernel follows."""


def is_root() -> bool:
    """Whether this process has root's rights over files.

    Returns:
        False where there is no such user (Windows).
    """
    return hasattr(os, "geteuid") and os.geteuid() == _ROOT


def isolate() -> None:
    """Let the rest of this program be loaded from kcap's own place and Python's alone.

    Does nothing for other users than root, whose environment is their own business. For root the
    folder that ``python -m`` puts before all others is taken away again.

    Raises:
        KcapError: A variable, or a user's own packages, brought code from elsewhere.
    """
    if not is_root():
        return
    _forget_working_folder()
    if not sys.flags.ignore_environment:
        for name in VARIABLES:
            _check_variable(name)
    _check_user_packages()


def check(path: str | os.PathLike[str]) -> None:
    """As root, refuse a file that another user can change.

    That is one which another user owns or may write to, or which lies in a folder where another
    user can put something else in its place; in a folder like /tmp, where everybody may write but
    nobody may take away what is not theirs, only what root does not own. Does nothing for other
    users. What passes can't be changed between this and its loading, either.

    Args:
        path: A file or folder that is to be loaded; links are followed, and looked at themselves.

    Raises:
        KcapError: Somebody else can change it, which names the file or folder at fault; or it
            cannot be looked at.
    """
    if not is_root():
        return
    try:
        for way, status in _ways(Path(path)):
            if why := _changeable_by(status):
                raise KcapError(
                    f"root does not load what others can change: {why}",
                    file=_named(path, way),
                    expected="a file that root alone can change, in folders that root alone can",
                    hint=f"chown root {shlex.quote(str(way))}; chmod go-w {shlex.quote(str(way))}",
                )
    except OSError as error:
        raise KcapError(
            f"root loads no file that cannot be looked at: {error.strerror}", file=os.fspath(path)
        ) from error


def _named(path: str | os.PathLike[str], way: Path) -> str:
    """A file, and the folder or link on the way to it that is at fault."""
    return str(way) if way == Path(path).absolute() else f"{os.fspath(path)}: {way}"


def _ways(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every folder, link and file that is passed on the way to one, from the top down."""
    todo = [*reversed(path.absolute().parts)]
    way = Path(todo.pop())
    yield way, way.lstat()
    links = 0
    while todo:
        name = todo.pop()
        if name == "..":
            way = way.parent
            continue
        here = way / name
        status = here.lstat()
        yield here, status
        if not stat.S_ISLNK(status.st_mode):
            way = here
            continue
        links += 1
        if links > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = here.readlink()
        parts = [*target.parts]
        if target.is_absolute():
            way = Path(parts.pop(0))
        todo += reversed(parts)


def _changeable_by(status: os.stat_result) -> str | None:
    """Who besides root can change a file, or exchange what is in a folder."""
    if status.st_uid != _ROOT:
        return f"user {status.st_uid} owns it"
    if stat.S_ISLNK(status.st_mode):
        return None  # its permissions mean nothing
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return None  # only owners take away what lies there, and the next on the way is root's
    if status.st_mode & stat.S_IWOTH:
        return "everybody may write to it"
    if status.st_mode & stat.S_IWGRP:
        return f"group {status.st_gid} may write to it"
    return None


def _forget_working_folder() -> None:
    """Undo what ``python -m`` does: to look for every module in the working folder first."""
    if sys.path and sys.path[0] in {"", _working_folder()} and not _is_home(sys.path[0]):
        del sys.path[0]


def _check_variable(name: str) -> None:
    value = os.environ.get(name)
    if not value:
        return
    strange = [part for part in value.split(os.pathsep) if name != _PATH or not _is_home(part)]
    if strange:
        raise KcapError(
            f"root takes no code from where {name} says: {strange[0] or _working_folder()}",
            hint=f"env -u {name} kcap ...",
        )


def _check_user_packages() -> None:
    """Refuse the packages of the user who became root and kept the own home folder."""
    folder = getattr(sys.modules.get("site"), "USER_SITE", None)
    if folder is None or folder not in sys.path:
        return
    try:
        check(folder)
    except KcapError as error:
        error.hint = "sudo -H kcap ..., so that HOME is root's"
        raise


def _is_home(folder: str) -> bool:
    """Whether kcap itself lies there: as in a checkout, where that is what finds it."""
    return Path(folder or _working_folder()).resolve() == HOME


def _working_folder() -> str:
    """Its path; empty where it was removed meanwhile, and nothing can be loaded from it."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""
