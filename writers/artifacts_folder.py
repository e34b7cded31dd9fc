"""A folder that artifacts are written into: nothing in it is trusted, and nothing is left of it.

Every step is taken from the folder that was opened before it, no step follows a link, and files
are made anew: whoever may write into the folder meanwhile can stop a file, but not move it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from kcap.errors import FullError, KcapError, OutputError

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
EXECUTABLE_MODE: Final = 0o700

_BY_FOLDER: Final = os.open in os.supports_dir_fd
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_BINARY", 0)
_UNFINISHED: Final = ".partial"
_FULL: Final = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class RefusedError(OutputError):
    """One file can't be made where it should be; others may."""


class SafeFolder:
    """A folder to write into.

    Args:
        path: The folder; made where it is not there, but not the folders above it.
        force: Replace files in it: by a new one that takes the name when it is complete.

    Raises:
        OutputError: It is a link or no folder, or can't be opened.
    """

    def __init__(self, path: str, *, force: bool = False) -> None:
        self.path = path
        self._force = force
        if not _BY_FOLDER:
            raise OutputError(
                "this system can't open files relative to a folder, so links can't be kept out",
                file=path,
                hint="extract on Linux or macOS; 'kcap artifacts extract ID -o -' works here, too",
            )
        with _naming(path), contextlib.suppress(FileExistsError):
            Path(path).mkdir(FOLDER_MODE)
        with _naming(path):
            self._fd = os.open(path, os.O_RDONLY | _DIRECTORY | _NOFOLLOW)

    def close(self) -> None:
        """Forget the folder."""
        os.close(self._fd)

    @contextlib.contextmanager
    def created(
        self, parts: Sequence[str], *, executable: bool = False, keep: bool = False
    ) -> Iterator[BinaryIO]:
        """Make a file, and the folders above it; it goes again where writing it fails.

        Args:
            parts: The names of the folders, then that of the file.
            executable: Let its owner execute it.
            keep: Let it stay where writing it fails.

        Yields:
            The file, empty and not buffered.

        Raises:
            RefusedError: It exists, a link stands in the way, or the name can't be.
            FullError: There is no room for it.
        """
        for part in parts:
            assert part not in {"", ".", ".."}, part
            assert not {"/", "\0"} & set(part), part
        shown = "/".join((self.path, *parts))
        with self._above(parts[:-1], shown) as folder:
            name = parts[-1]
            written = name + _UNFINISHED if self._force else name
            if self._force:
                # What a run that was killed left; a link goes, not what it leads to.
                with contextlib.suppress(OSError):
                    os.unlink(written, dir_fd=folder)
            with _naming(shown):
                mode = EXECUTABLE_MODE if executable else FILE_MODE
                fd = os.open(written, _NEW, mode, dir_fd=folder)
            made = os.fstat(fd)
            try:
                with os.fdopen(fd, "wb", buffering=0) as stream, _naming(shown):
                    yield stream
                if self._force:
                    self._replace(folder, written, name, shown)
            except BaseException:
                if not keep:
                    self._remove(folder, written, made)
                raise

    @contextlib.contextmanager
    def _above(self, parts: Sequence[str], shown: str) -> Iterator[int]:
        """The folder that a file goes into."""
        folder = os.dup(self._fd)
        try:
            for part in parts:
                with _naming(shown), contextlib.suppress(FileExistsError):
                    os.mkdir(part, FOLDER_MODE, dir_fd=folder)
                with _naming(shown):
                    below = os.open(part, os.O_RDONLY | _DIRECTORY | _NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = below
            yield folder
        finally:
            os.close(folder)

    @staticmethod
    def _replace(folder: int, written: str, name: str, shown: str) -> None:
        """Take the name that a file has; never that of something else."""
        with _naming(shown), contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise RefusedError("what stands there is no file", file=shown)
        with _naming(shown):
            os.rename(written, name, src_dir_fd=folder, dst_dir_fd=folder)

    @staticmethod
    def _remove(folder: int, name: str, made: os.stat_result) -> None:
        """Take back a file that is not what it should be, unless another has its name now."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), made):
                os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _naming(shown: str) -> Iterator[None]:
    """Make kcap's errors of those of the system."""
    try:
        yield
    except KcapError:
        raise
    except FileExistsError as e:
        hint = "give another folder, or --force to replace files"
        raise RefusedError("it exists already", file=shown, hint=hint) from e
    except OSError as e:
        if e.errno in _FULL:
            raise FullError(f"can't be written: {e.strerror}", file=shown) from e
        raise RefusedError(f"can't be written: {e.strerror}", file=shown) from e
