"""Where the settings are: one file, which root reads only where root alone can change it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kcap import trust
from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.documents import Node

VARIABLE: Final = "KCAP_CONFIG"
"""Names the file, where ``--config`` does not."""

SYSTEM: Final = Path("/etc/kcap")
"""The host's settings."""

PREFIX: Final = "KCAP_"
OF_TESTS: Final = ("KCAP_TEST_", "KCAP_BENCH_")
"""What the names of variables begin with; those of kcap's own tests are no settings."""

_STEM: Final = "kcap"
_SUFFIXES: Final = (".yaml", ".toml")


def chosen(named: str | None, environ: Mapping[str, str]) -> str | None:
    """The file of settings.

    Args:
        named: What ``--config`` names; empty for no file.
        environ: The environment.

    Returns:
        ``named``, else what the variable names, else the user's own file, else the host's; None
        where there is none. As root, no file of a user's.

    Raises:
        KcapError: A folder has two.
    """
    if named is None:
        named = environ.get(VARIABLE)
    if named is not None:
        return named or None
    for folder in folders(environ):
        there = _in(folder)
        if len(there) > 1:
            raise KcapError(
                f"there are two files of settings here: {there[0].name} and {there[1].name}",
                file=str(folder),
                hint="take one of them away, or name one: kcap --config FILE",
            )
        if there:
            return str(there[0])
    return None


def folders(environ: Mapping[str, str]) -> Iterator[Path]:
    """The folders in which settings are looked for, the first first.

    Args:
        environ: The environment.

    Yields:
        The user's own, but for root, and the host's.
    """
    if sys.platform == "win32":
        if program_data := environ.get("PROGRAMDATA"):
            system = Path(program_data) / _STEM
        else:
            system = None
        if own := environ.get("APPDATA"):
            yield Path(own) / _STEM
        if system is not None:
            yield system
        return
    if not trust.is_root():
        own = environ.get("XDG_CONFIG_HOME", "")
        home = environ.get("HOME", "")
        if own.startswith("/"):  # the standard has other values ignored
            yield Path(own) / _STEM
        elif home.startswith("/"):
            yield Path(home) / ".config" / _STEM
    yield SYSTEM


def silent(environ: Mapping[str, str]) -> bool:
    """Whether neither a file nor the environment says anything.

    Args:
        environ: The environment.

    Returns:
        True where there is nothing to read.
    """
    if any(name.startswith(PREFIX) and not name.startswith(OF_TESTS) for name in environ):
        return False
    return not any(map(_in, folders(environ)))


def read(file: str) -> Node:
    """Read a file of settings.

    Args:
        file: Its name.

    Returns:
        Its mapping.

    Raises:
        KcapError: It can't be read, others than root can change it, or it is not well-formed.
    """
    from kcap.tools.settings import document

    return document.parse(content(file, document.FILE_BYTES + 1, "settings"), file)


def content(file: str, most: int, what: str) -> bytes:
    """The beginning of a small file that settings name, or are.

    Args:
        file: Its name.
        most: Bytes to read at most.
        what: What is read, for errors.

    Returns:
        Its bytes.

    Raises:
        KcapError: It can't be read; or this is root, and others can change it.
    """
    if os.path.exists(file):  # noqa: PTH110  (else the error below says so, not that of trust)
        trust.check(file)
    try:
        # A pipe would be waited for; what is read is small, so that no file is too slow for it.
        fd = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(fd, "rb") as stream:
            return stream.read(most)
    except OSError as error:
        raise KcapError(f"{what} can't be read: {error.strerror}", file=file) from error


def _in(folder: Path) -> list[Path]:
    """The files of settings in a folder: one that can't be looked at is an error when read."""
    names = [folder / f"{_STEM}{suffix}" for suffix in _SUFFIXES]
    return [path for path in names if os.path.lexists(path)]
