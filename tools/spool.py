"""Inputs that are read more than once: a pipe is kept in a temporary file first."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from kcap.errors import KcapError

if TYPE_CHECKING:
    from kcap.model.stream import Source

_STEP: Final = 1 << 20


class Input:
    """An input that can be opened again.

    Args:
        name: As the user named it; ``-`` for standard input.
        stack: Removes what was kept of a pipe.
        keep: Keep it; else a pipe can be opened once.
    """

    def __init__(self, name: str, stack: contextlib.ExitStack, *, keep: bool = True) -> None:
        self.name = name
        kept = keep and not _is_file(name)
        self._kept = stack.enter_context(_kept(name)) if kept else None

    def open(
        self,
        *,
        lenient: bool,
        raw_pairs: bool = False,
        resolve: bool = True,
        opened: Callable[[BinaryIO], object] | None = None,
    ) -> Source:
        """Open it from the start.

        Args:
            lenient: Go on past bad input.
            raw_pairs: Keep the enter and the exit of a call as two events.
            resolve: Find out who caused the events of a foreign format.
            opened: Is given the stream that is read, whose ``tell`` says how far.

        Returns:
            The source. Close it, before it is opened again.
        """
        from kcap.opening import open_source

        stream = None
        if self._kept is not None:
            stream = os.fdopen(os.dup(self._kept.fileno()), "rb")
            stream.seek(0)
        return open_source(
            self.name,
            lenient=lenient,
            raw_pairs=raw_pairs,
            resolve=resolve,
            opened=opened,
            stream=stream,
        )


def _is_file(name: str) -> bool:
    """Whether an input can be read again."""
    if name == "-":
        return False
    try:
        mode = Path(name).stat().st_mode
    except OSError:
        return True  # opening it says what is wrong
    return not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode))


@contextlib.contextmanager
def _kept(name: str) -> Iterator[BinaryIO]:
    """A pipe's bytes in a file that has no name, so that nobody else can open it."""
    from kcap.opening import open_stream

    with tempfile.TemporaryFile() as file:
        source = open_stream(name)
        try:
            while part := source.read(_STEP):
                file.write(part)
            file.flush()
        except OSError as e:
            what = f"can't be kept in a temporary file: {e.strerror}"
            hint = f"make room in {tempfile.gettempdir()}, or save it to a file first"
            raise KcapError(what, file=name, hint=hint) from e
        finally:
            if name != "-":
                source.close()
        yield cast("BinaryIO", file)
