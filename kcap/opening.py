"""Opening an input by what it holds, never by its name."""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import zstandard

from kcap import plugins
from kcap.errors import BadInputError, KcapError, MissingExtraError, NotACaptureError
from kcap.model.stream import Source

HEAD_BYTES: Final = 1 << 16
"""What readers are shown of an input to tell whether it is theirs."""

GZIP_MAGIC: Final = b"\x1f\x8b"
"""How a gzip member starts."""

ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
"""How a zstd frame starts."""

_LEAST: Final = 64
_STEP_BYTES: Final = 512


def open_source(
    path: str | os.PathLike[str],
    *,
    lenient: bool = False,
    resolve: bool = True,
    raw_pairs: bool = False,
    opened: Callable[[BinaryIO], object] | None = None,
    stream: BinaryIO | None = None,
    events: str | None = None,
) -> Source:
    """Open a capture or a foreign file.

    Args:
        path: Its path; ``-`` for standard input; the directory of one that is several files.
        lenient: Go on past bad input; what was passed over comes as `Loss`.
        resolve: Find out who caused the events of a foreign format; False where the caller's own
            `State` does.
        raw_pairs: Keep the enter and the exit of a call as two events, where the reader joins them.
        opened: Is given the stream that is read, whose ``tell`` says how far.
        stream: Its bytes from the start, where they are at hand; closed with the source.
        events: The file with the events of a directory; None where they are in it.

    Returns:
        The source. Close it.

    Raises:
        NotACaptureError: No reader knows the content.
        BadInputError: The reader does not join enter and exit.
        MissingExtraError: Its reader needs what is not installed.
        KcapError: The input can't be opened.
    """
    name = os.fspath(path)
    # Of a name that is too long pathlib would make an error of the system's.
    if name != "-" and stream is None and os.path.isdir(name):  # noqa: PTH112
        return _folder(name, lenient=lenient, resolve=resolve, events=events)
    if events is not None:
        raise BadInputError("events are named, but this is no directory", file=name)
    stream = open_stream(name) if stream is None else stream
    try:
        head, stream = _peek(stream)
        if not head:
            raise NotACaptureError("the input is empty", file=name, expected="a capture")
        entry, reader = _reader(head, name)
        if opened is not None:
            opened(stream)
        options = {"lenient": lenient}
        if raw_pairs:
            options["raw_pairs"] = _joins(reader, entry, name)
        source = cast("Source", reader(stream, name, **options))
    except BaseException:
        if name != "-":
            stream.close()
        raise
    if not resolve:
        return source
    from kcap.replay.resolved import OWN, Resolved

    return source if entry in OWN else Resolved(source)


def _folder(name: str, *, lenient: bool, resolve: bool, events: str | None) -> Source:
    """Open a directory that is a capture."""
    known = plugins.found(plugins.FOLDERS)
    for entry in known:
        reader = plugins.load(plugins.FOLDERS, entry)
        if reader.sniff(name):
            source = cast("Source", reader(name, lenient=lenient, events=events))
            break
    else:
        raise NotACaptureError(
            "this is a directory", file=name, expected=f"a capture, or one of {', '.join(known)}"
        )
    if not resolve:
        return source
    from kcap.replay.resolved import Resolved

    return Resolved(source)


def _joins(reader: Any, entry: str, name: str) -> bool:  # noqa: ANN401
    """True; refuses an input whose calls are one event anyway."""
    if not getattr(reader, "joins", False):
        raise BadInputError(
            f"this is a {entry} input, which has no pairs of enter and exit",
            file=name,
            hint="leave --raw-pairs out",
        )
    return True


def open_stream(name: str) -> BinaryIO:
    """Open an input as it is.

    Args:
        name: Its path; ``-`` for standard input.

    Returns:
        Its bytes.

    Raises:
        KcapError: It can't be opened.
    """
    if name == "-":
        if sys.stdin is None:
            raise KcapError("standard input is closed", file=name)
        return cast("BinaryIO", sys.stdin.buffer)
    try:
        return Path(name).open("rb")
    except IsADirectoryError:
        raise NotACaptureError("this is a directory", file=name, expected="a capture") from None
    except OSError as e:
        hint = "run as a user that may read it" if isinstance(e, PermissionError) else None
        raise KcapError(f"can't be opened: {e.strerror}", file=name, hint=hint) from e


def _peek(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """The first bytes of a stream, and a stream that still has them."""
    try:
        if stream.seekable() and stream.tell() == 0:
            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            return head, stream
        # What a pipe gives at once is enough; waiting for more would stall a live stream.
        source = cast("io.BufferedReader", stream)
        head = source.read1(HEAD_BYTES)
        while len(head) < _LEAST and (more := source.read1(HEAD_BYTES)):
            head += more
        return head, cast("BinaryIO", io.BufferedReader(_Replayed(head, source)))
    except OSError as e:
        raise KcapError(f"can't be read: {e.strerror}", file=getattr(stream, "name", None)) from e


class _Replayed(io.RawIOBase):
    """A stream with its first bytes put back."""

    def __init__(self, head: bytes, rest: io.BufferedReader) -> None:
        super().__init__()
        self._head = head
        self._rest = rest
        self._given = 0

    def close(self) -> None:
        if not self.closed and self._rest is not getattr(sys.stdin, "buffer", None):
            self._rest.close()
        super().close()

    def tell(self) -> int:
        # What was given so far; there is no going back.
        return self._given

    def fileno(self) -> int:
        # Lets a reader ask whether more is there; the head is in no file any more.
        return self._rest.fileno()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        part = self._head[: len(buffer)] if self._head else self._rest.read1(len(buffer))
        self._head = self._head[len(part) :]
        buffer[: len(part)] = part
        self._given += len(part)
        return len(part)


def _reader(head: bytes, name: str) -> tuple[str, Any]:
    """The reader that knows the content, and the name of its entry point."""
    plain = decompressed(head)
    known = sorted(plugins.found(plugins.READERS), key=lambda n: (n != "kcap", n))
    for entry in known:
        try:
            reader = plugins.load(plugins.READERS, entry)
        except ImportError:
            continue  # of another distribution that is broken: no reason to refuse all inputs
        if reader.sniff(head if entry == "kcap" else plain):
            if extras := plugins.missing(reader):
                raise MissingExtraError(
                    f"this is a {entry} input, and what reads it is not installed",
                    file=name,
                    hint=f"pip install 'kcap[{','.join(extras)}]'",
                )
            return entry, reader
    others = [plugins.whence(entry) for entry in plugins.hidden(plugins.READERS).values()]
    unread = f"; as another user than root also: {'; '.join(others)}" if others else ""
    raise NotACaptureError(
        "no capture that kcap can read",
        file=name,
        offset=0,
        expected=f"one of {', '.join(known)}",
        hint=f"kcap import --list says what each reader reads{unread}",
    )


def decompressed(head: bytes) -> bytes:
    """The start of what gzip or zstd hold.

    Args:
        head: First bytes of an input.

    Returns:
        Up to 64 KiB of content; ``head`` itself where it is not compressed.
    """
    if head.startswith(GZIP_MAGIC):
        feed: Callable[[bytes], bytes] = partial(
            zlib.decompressobj(31).decompress, max_length=HEAD_BYTES
        )
    elif head.startswith(ZSTD_MAGIC):
        feed = zstandard.ZstdDecompressor().decompressobj().decompress
    else:
        return head
    found = b""
    # In small steps, so that what comes before damage tells whose the input is.
    for at in range(0, len(head), _STEP_BYTES):
        try:
            found += feed(head[at : at + _STEP_BYTES])
        except (zlib.error, zstandard.ZstdError):
            break
        if len(found) >= HEAD_BYTES:
            break
    return found[:HEAD_BYTES]
