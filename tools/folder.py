"""A folder as output: complete under its name or not there, never outside itself, private."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from kcap.errors import KcapError, OutputError

_PRIVATE: Final = 0o700
_FLAGS: Final = (
    os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
)
_APPEND: Final = (
    os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
)


class Folder:
    """A folder that is being written.

    Args:
        path: The folder, which exists and is ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made: set[str] = set()

    def create(self, name: str) -> BinaryIO:
        """Make a file, and the folders above it.

        Args:
            name: Its path in this folder, with slashes.

        Returns:
            A stream to write it; whoever asked closes it.

        Raises:
            OutputError: It exists, leads out of the folder, or can't be made.
        """
        parts = name.split("/")
        unsafe = {"", ".", ".."}
        if unsafe.intersection(parts) or any(os.sep in p or "\0" in p for p in parts):
            raise OutputError("the name of a file leads out of its folder", file=name)
        target = self._path.joinpath(*parts)
        try:
            for above in reversed(target.relative_to(self._path).parents[:-1]):
                with contextlib.suppress(FileExistsError):
                    (self._path / above).mkdir(_PRIVATE)
            made = os.fdopen(os.open(target, _FLAGS, 0o600), "wb")
        except OSError as e:
            raise OutputError(f"can't be written: {e.strerror}", file=str(target)) from e
        self._made.add(name)
        return made

    def append(self, name: str) -> BinaryIO:
        """Open a file that `create` made, to write on at its end.

        Args:
            name: Its path in this folder, with slashes.

        Returns:
            A stream to write it; whoever asked closes it.

        Raises:
            OutputError: It can't be opened, or is none of ours any more.
        """
        target = self._path.joinpath(*name.split("/"))
        if name not in self._made:
            raise OutputError("a file that was not made here", file=name)
        try:
            return os.fdopen(os.open(target, _APPEND), "ab")
        except OSError as e:
            raise OutputError(f"can't be written: {e.strerror}", file=str(target)) from e


@contextlib.contextmanager
def written(path: str, *, force: bool, mark: str) -> Iterator[Folder]:
    """Write a folder as ``NAME.partial``, which takes the name when everything is in it.

    Args:
        path: The folder.
        force: Replace one of our own.
        mark: The file that tells our own folders: only those are ever replaced.

    Yields:
        The folder.

    Raises:
        OutputError: It exists, is a link, or can't be made.
    """
    target = Path(path)
    partial = target.with_name(f"{target.name}.partial")
    if not target.name:
        raise OutputError("this is no name for a folder", file=path)
    _check(target, force=force, mark=mark)
    if partial.is_symlink() or partial.exists():
        if not _is_left_over(partial, mark):
            _check(partial, force=True, mark=f"{mark}.partial")
        _remove(partial)
    unfinished = partial / f"{mark}.partial"
    try:
        partial.mkdir(_PRIVATE)
        unfinished.touch(0o600)
    except OSError as e:
        raise OutputError(f"can't be made: {e.strerror}", file=str(partial)) from e
    try:
        yield Folder(partial)
    except KcapError as e:
        if e.hint is None:
            e.hint = f"what there is so far is in {partial}"
        raise
    try:
        unfinished.unlink()
        _check(target, force=force, mark=mark)
        _take_place(partial, target)
    except OSError as e:
        raise OutputError(f"can't be replaced: {e.strerror}", file=path) from e


def _is_left_over(partial: Path, mark: str) -> bool:
    """Whether a run that was killed left it: before its first file, or with all of them."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    return not any(partial.iterdir()) or (partial / mark).is_file()


def _check(target: Path, *, force: bool, mark: str) -> None:
    """Refuse to write over anything that is not an export's folder."""
    if target.is_symlink():
        raise OutputError("the output is a link", file=str(target), hint="name the folder itself")
    if not target.exists():
        return
    if not force:
        hint = "give another name, or --force to replace it"
        raise OutputError("the output exists already", file=str(target), hint=hint)
    if not target.is_dir() or not (target / mark).is_file():
        hint = "give another name, or remove it yourself"
        raise OutputError("this is no folder that kcap exported", file=str(target), hint=hint)


def _take_place(partial: Path, target: Path) -> None:
    """Rename, with the old folder out of the way first: a folder can't be renamed over one."""
    old = target.with_name(f"{target.name}.old")
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    if old.exists():
        _remove(old)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as e:
        raise OutputError(f"can't be removed: {e.strerror}", file=str(folder)) from e
