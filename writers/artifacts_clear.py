"""Removing the artifacts of an earlier recording, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kcap.errors import OutputError
from kcap.model import tracee_names
from kcap.model.text import printable

_FOLDER: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


def clear_output(folder: str) -> bool:
    """Remove the artifacts of an earlier recording: ``out`` in a folder, and nothing else.

    Args:
        folder: The output directory of kcap or Tracee.

    Returns:
        Whether something was there.

    Raises:
        OutputError: It is a link, a folder that must not be cleared, or holds in ``out`` what is
            no artifact.
    """
    try:
        found = Path(folder).lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise OutputError("it is no folder, or a link to one", file=folder)
        _refuse_kept(folder, found)
        fd = os.open(folder, _FOLDER)
    except FileNotFoundError:
        return False
    except OSError as e:
        raise OutputError(f"can't be read: {e.strerror}", file=folder) from e
    try:
        return _clear(fd, f"{folder}/{tracee_names.OUT}")
    except OSError as e:
        raise OutputError(f"can't be cleared: {e.strerror}", file=folder) from e
    finally:
        os.close(fd)


def _refuse_kept(folder: str, found: os.stat_result) -> None:
    """Refuse folders in which nobody means what is called ``out``."""
    for kept in (Path("/"), Path.home()):
        with contextlib.suppress(OSError):
            if os.path.samestat(found, kept.stat()):
                raise OutputError("this folder is not cleared", file=folder)


def _clear(folder: int, shown: str) -> bool:
    """Remove ``out`` in an open folder."""
    try:
        found = os.stat(tracee_names.OUT, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        raise OutputError("it is no folder, or a link to one", file=shown)
    inner = os.open(tracee_names.OUT, _FOLDER, dir_fd=folder)
    try:
        strange = next(_strange(inner), None)
    finally:
        os.close(inner)
    if strange is not None:
        raise OutputError(
            f"{printable(strange)} in it is no artifact, so it is not cleared",
            file=shown,
            hint="give another folder, or remove it yourself",
        )
    shutil.rmtree(tracee_names.OUT, dir_fd=folder)
    return True


def _strange(fd: int) -> Iterator[str]:
    """What an output directory would not hold."""
    known = {*tracee_names.INDEXES, tracee_names.PROFILE}
    for entry in sorted(os.scandir(fd), key=lambda e: e.name):
        if not entry.is_dir(follow_symlinks=False):
            if entry.name not in known:
                yield entry.name
            continue
        if entry.name == tracee_names.PCAP:
            continue
        inner = os.open(entry.name, _FOLDER, dir_fd=fd)
        try:
            for name in sorted(e.name for e in os.scandir(inner)):
                if not _is_ours(name):
                    yield f"{entry.name}/{name}"
        finally:
            os.close(inner)


def _is_ours(name: str) -> bool:
    """Whether a file is called as artifacts are."""
    kinds = ("exec.", "write.", "read.", "bin.", "module.", "bpf.name-", "module")
    return tracee_names.named(name) is not None or name.startswith(kinds)
