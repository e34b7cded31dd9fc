"""Sinks of this machine: a file, the console, nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast
from urllib.parse import unquote

from kcap import plugins
from kcap.errors import KcapError, OutputError
from kcap.model.batch import Batch, without_state
from kcap.writers.sinks import render

if TYPE_CHECKING:
    from kcap.model.stream import Sink

FORMATS: Final = ("jsonl", "line", "csv", "table", "table-verbose", "template", "tracee-json")
"""What they can be written in."""

_VERBOSE: Final = "table-verbose"
_FORMS: Final = {"console": "line", "file": "jsonl", "null": "jsonl"}
_FLAGS: Final = (
    os.O_WRONLY
    | os.O_CREAT
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_PRIVATE: Final = 0o600


def form(scheme: str) -> str:
    """The format of such a sink where none is named.

    Args:
        scheme: ``console``, ``file``, ``null``.

    Returns:
        One of ``kcap.writers``.
    """
    return _FORMS[scheme]


def opened(
    scheme: str,
    place: str,
    *,
    form: str,
    template: str | None,
    fields: Sequence[str],
    what: str,
    force: bool,
) -> Sink:
    """Open such a sink.

    Args:
        scheme: ``console``, ``file``, ``null``.
        place: The path of a file.
        form: One of ``kcap.writers`` that needs nothing but a stream.
        template: The form of a line.
        fields: CSV: its columns; none for those of all events, and the arguments as JSON.
        what: One of `render.WHAT`.
        force: Replace an existing file.

    Returns:
        The sink.

    Raises:
        KcapError: The file can't be made, or the format is not for this.
    """
    if scheme == "null":
        return _writer("null", None, {})
    if form not in FORMATS:
        raise KcapError(
            f"format: {form!r} is not known here",
            file=f"{scheme}:{place}",
            expected=f"one of {', '.join(FORMATS)}",
        )
    form, options = _given(form, template, fields)
    if scheme == "console":
        return _Console(form, options, what)
    return _File(_path(place), form, options, what, force=force)


def writer(form: str, stream: BinaryIO, template: str | None, fields: Sequence[str] = ()) -> Sink:
    """What writes a format to a stream.

    Args:
        form: One of `FORMATS`.
        stream: The stream; stays open.
        template: The form of a line, None where none is given.
        fields: See `opened`.

    Returns:
        The writer.
    """
    form, options = _given(form, template, fields)
    return _writer(form, stream, options)


def _given(form: str, template: str | None, fields: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The writer's name and its options."""
    options: dict[str, Any] = {} if template is None else {"template": template}
    if form == "csv":
        from kcap.writers import layout

        options["layout"] = layout.streamed(fields)
    if form == _VERBOSE:
        form, options["verbose"] = "table", True
    return form, options


def _path(place: str) -> str:
    path = unquote(place.removeprefix("//"))
    if not path:
        raise KcapError("file: without a path", expected="file:PATH")
    return path


def _writer(form: str, stream: BinaryIO | None, options: dict[str, Any]) -> Sink:
    made: Sink = plugins.load(plugins.WRITERS, form)(stream, **options)
    return made


class _Console:
    """Standard output, which others write to as well: it stays open."""

    def __init__(self, form: str, options: dict[str, Any], what: str) -> None:
        if sys.stdout is None:
            raise OutputError("standard output is closed", file="console:")
        self._writer = _writer(form, cast("BinaryIO", sys.stdout.buffer), options)
        self._what = what

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        self._writer.write(render.chosen(without_state(batch), self._what))

    def close(self) -> None:
        """See `Sink.close`."""
        self._writer.close()


class _File:
    """A file of its own, private, that was not there before."""

    def __init__(
        self, path: str, form: str, options: dict[str, Any], what: str, *, force: bool
    ) -> None:
        self._path = path
        self._what = what
        # Replaced as a whole at the end, so that an error leaves the old one.
        self._partial = f"{path}.partial" if force else path
        if force:
            _remove_partial(Path(self._partial))
        self._stream = _created(self._partial)
        try:
            self._writer = _writer(form, self._stream, options)
        except BaseException:
            self._stream.close()
            Path(self._partial).unlink()
            raise

    def write(self, batch: Batch) -> None:
        """See `Sink.write`."""
        with self._naming():
            self._writer.write(render.chosen(without_state(batch), self._what))

    def close(self) -> None:
        """See `Sink.close`."""
        if self._stream.closed:
            return
        with self._naming():
            self._writer.close()
            self._stream.close()
            if self._partial != self._path:
                os.replace(self._partial, self._path)  # noqa: PTH105  (names, as they were given)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OutputError as e:
            e.file = e.file or self._path
            raise
        except OSError as e:
            raise OutputError(f"writing failed: {e.strerror}", file=self._path) from e


def _remove_partial(partial: Path) -> None:
    """Take away what a run that was ended left; never what is no file."""
    if partial.is_file() and not partial.is_symlink():
        partial.unlink()


def _created(path: str) -> BinaryIO:
    try:
        return cast("BinaryIO", os.fdopen(os.open(path, _FLAGS | os.O_EXCL, _PRIVATE), "wb"))
    except FileExistsError as e:
        raise OutputError(
            "the output exists already",
            file=path,
            hint="give another name, or force=yes to replace it",
        ) from e
    except OSError as e:
        raise OutputError(f"can't be written: {e.strerror}", file=path) from e
