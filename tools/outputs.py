"""The files that a recording creates and removes while it goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from kcap.errors import FullError, OutputError
from kcap.format.room import is_full
from kcap.tools import durability

_FLAGS = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_PRIVATE = 0o600


class Outputs(Protocol):
    """Who may create and remove files: this process, or another one on its behalf."""

    def create(self, name: str) -> BinaryIO:
        """Create a file that was not there.

        Args:
            name: The file.

        Returns:
            A stream without a buffer, to write and to read again; nobody else may open the file.

        Raises:
            FileExistsError: Something has the name.
            FullError: There is no room for another file.
            OutputError: It can't be created.
        """

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error.

        Args:
            name: The file.

        Raises:
            OutputError: It can't be removed.
        """


class LocalOutputs:
    """Creates and removes files itself.

    Args:
        synced: A file that was created has its name for good, whatever happens to the power.
    """

    def __init__(self, *, synced: bool) -> None:
        self._synced = synced

    def create(self, name: str) -> BinaryIO:
        """See `Outputs.create`."""
        try:
            stream = os.fdopen(os.open(name, _FLAGS, _PRIVATE), "wb", buffering=0)
        except FileExistsError:
            raise
        except OSError as e:
            kind = FullError if is_full(e) else OutputError
            raise kind(f"can't be written: {e.strerror}", file=name) from e
        if self._synced:
            durability.sync_folder(name)
        return cast("BinaryIO", stream)

    def remove(self, name: str) -> None:
        """See `Outputs.remove`."""
        try:
            Path(name).unlink(missing_ok=True)
        except OSError as e:
            raise OutputError(f"can't be removed: {e.strerror}", file=name) from e
