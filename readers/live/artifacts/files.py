"""Which files are kept, and what they are called."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from typing import Final

from kcap.readers.live.artifacts.wanted import ELF, REGULAR, FileFilter

_DELETED: Final = b" (deleted)"
_MAGIC: Final = b"\x7fELF"
_TYPES: Final = {
    stat.S_IFREG: "regular",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
}


def path_of(file: int, about: os.stat_result) -> bytes:
    """The path by which a file was opened, as the kernel has it.

    Args:
        file: Its descriptor.
        about: What is known of it.

    Returns:
        The path; of a deleted file the one that it had.

    Raises:
        OSError: The kernel does not tell.
    """
    path = os.readlink(b"/proc/self/fd/%d" % file)  # noqa: PTH115
    if not path.endswith(_DELETED):
        return path
    if about.st_nlink:
        # It has another name, or this one ends so.
        try:
            named = os.lstat(path)
        except OSError:
            return path.removesuffix(_DELETED)
        if (named.st_dev, named.st_ino) == (about.st_dev, about.st_ino):
            return path
    return path.removesuffix(_DELETED)


def within_root(path: bytes, pid: int) -> bytes:
    """A path as a process has it, whose root may be a folder.

    Args:
        path: As the kernel has it.
        pid: The process.

    Returns:
        The path below its root; the same where it is not, or the process has ended.
    """
    try:
        root = os.readlink(b"/proc/%d/root" % pid)  # noqa: PTH115
    except OSError:
        return path
    return path[len(root) :] if root != b"/" and path.startswith(root + b"/") else path


def file_type(mode: int) -> str:
    """A word for the type of a file.

    Args:
        mode: As stat(2) tells it.

    Returns:
        The word.
    """
    return _TYPES.get(stat.S_IFMT(mode), "other")


def is_elf(file: int) -> bool:
    """Whether a file begins as ELF files do.

    Args:
        file: Its descriptor.

    Returns:
        The same; False where it can't be read.
    """
    return begins(file, _MAGIC)


def begins(file: int, magic: bytes) -> bool:
    """Whether a file begins so.

    Args:
        file: Its descriptor.
        magic: How.

    Returns:
        The same; False where it can't be read.
    """
    try:
        return os.pread(file, len(magic), 0) == magic
    except OSError:
        return False


class Chosen:
    """Files that a filter takes, and that are not the recorder's.

    Args:
        filter_: The filter.
        left_out: Paths of files and folders of the recorder's.
    """

    def __init__(self, filter_: FileFilter, left_out: Collection[str] = ()) -> None:
        self._prefixes = tuple(os.fsencode(prefix) for prefix in filter_.prefixes)
        self._elf = ELF in filter_.types and REGULAR not in filter_.types
        self._left_out = tuple(os.fsencode(path).rstrip(b"/") for path in left_out)

    def takes(self, file: int, path: bytes, seen: bytes) -> bool:
        """Whether a regular file is kept.

        Args:
            file: Its descriptor.
            path: As the kernel has it.
            seen: As the process has it.

        Returns:
            The same.
        """
        if self._prefixes and not (
            path.startswith(self._prefixes) or seen.startswith(self._prefixes)
        ):
            return False
        if is_within(path, self._left_out):
            return False
        return not self._elf or is_elf(file)


def is_within(path: bytes, places: Sequence[bytes]) -> bool:
    """Whether a path is one of some, or below one.

    Args:
        path: The path.
        places: Files, or folders.

    Returns:
        The same.
    """
    return any(path == place or path.startswith(place + b"/") for place in places)
