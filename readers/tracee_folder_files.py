"""The files of a Tracee output directory: none is trusted to be one."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from kcap import limits
from kcap.errors import KcapError, LimitError
from kcap.model import tracee_names
from kcap.model.artifact import Gap
from kcap.model.text import clean, printable
from kcap.model.tracee_names import Named

FILES_MAX: Final = limits.BLOBS
"""Files of a directory."""

DATA_MAX: Final = 64 << 30
"""Bytes that are read of one file, holes not counted."""

INDEX_BYTES: Final = 256 << 20
"""Bytes that are read of an index file."""

PATH_BYTES: Final = 64 << 10
"""Longest path in an index file; Linux has none of more than 4 KiB."""

PATHS_MAX: Final = 16
"""Paths of one file that are kept: of one inode that was several files."""

_NAMED: Final = 5
_KEY_BYTES: Final = 1024
_STEP: Final = limits.BLOB_BLOCK_BYTES
_ZEROS: Final = bytes(_STEP)
_BY_FOLDER: Final = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
_FOLDER: Final = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
# Whoever puts a pipe where a file was does not make the reader wait.
_FILE: Final = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
_SEEK_DATA: Final = getattr(os, "SEEK_DATA", None)


class Found(NamedTuple):
    """An artifact's file."""

    parts: tuple[str, ...]
    """Its path below the directory."""
    container: str
    """The name of its folder."""
    named: Named

    @property
    def shown(self) -> str:
        """Its path as text."""
        return clean(os.fsencode("/".join(self.parts)))[0]


@dataclass
class Listing:
    """What a directory holds."""

    artifacts: list[Found]
    others: list[tuple[str, ...]]
    """Other files, which may hold events."""
    packets: list[tuple[str, ...]]
    """Files below ``pcap``."""
    refused: list[str]
    """Links, devices, pipes, and what has a name of no file of Tracee's."""


def below(root: str) -> tuple[str, ...] | None:
    """Where in a directory Tracee's ``out`` is.

    Args:
        root: A directory.

    Returns:
        The way to it; None where the directory does not look like Tracee's.
    """
    for parts in ((tracee_names.OUT,), ()):
        with contextlib.suppress(OSError, KcapError):
            for name, kind in _entries(root, parts):
                if kind == stat.S_IFDIR and tracee_names.is_container(name):
                    inner: list[tuple[str, int]] = []
                    with contextlib.suppress(OSError):  # that of another may be readable
                        inner = _entries(root, (*parts, name))
                    if any(tracee_names.named(n) and k == stat.S_IFREG for n, k in inner):
                        return parts
                if kind == stat.S_IFREG and name in tracee_names.INDEXES:
                    return parts
                if kind == stat.S_IFDIR and name == tracee_names.PCAP:
                    return parts
    return None


def listing(root: str, out: tuple[str, ...]) -> Listing:
    """List a directory.

    Args:
        root: The directory.
        out: What `below` says of it.

    Returns:
        What it holds, in order of the names.

    Raises:
        LimitError: It holds more files than a capture may.
        KcapError: It can't be read.
    """
    made = Listing([], [], [], [])
    with reading(root):
        for name, kind in _entries(root, ()) if out else ():
            if kind == stat.S_IFREG:
                made.others.append((name,))
            elif (name, kind) != (tracee_names.OUT, stat.S_IFDIR):
                made.refused.append(name)
        for name, kind in _entries(root, out):
            parts = (*out, name)
            if kind == stat.S_IFDIR and name == tracee_names.PCAP:
                packets = _tree(root, parts, made.refused)
                made.packets += (p for p in packets if p != (*parts, tracee_names.PACKETS))
            elif kind == stat.S_IFDIR and tracee_names.is_container(name):
                _add_container(root, parts, made)
            elif kind == stat.S_IFREG:
                made.others.append(parts)
            else:
                made.refused.append("/".join(parts))
            if len(made.artifacts) + len(made.packets) > FILES_MAX:
                raise LimitError(f"more than {FILES_MAX:,} files", file=root)
    return made


def _add_container(root: str, parts: tuple[str, ...], made: Listing) -> None:
    try:
        entries = _entries(root, parts)
    except OSError:  # it may not be read, or is not there any more
        made.refused.append("/".join(parts))
        return
    for name, kind in entries:
        found = tracee_names.named(name)
        if kind == stat.S_IFREG and found is not None:
            made.artifacts.append(Found((*parts, name), parts[-1], found))
        else:
            made.refused.append("/".join((*parts, name)))


def _tree(root: str, parts: tuple[str, ...], refused: list[str]) -> Iterator[tuple[str, ...]]:
    """The files below a folder: Tracee makes two levels of folders."""
    try:
        entries = _entries(root, parts)
    except OSError:  # it may not be read, or is not there any more
        refused.append("/".join(parts))
        return
    for name, kind in entries:
        inner = (*parts, name)
        if kind == stat.S_IFREG:
            yield inner
        elif kind == stat.S_IFDIR and len(parts) < 5:  # noqa: PLR2004
            yield from _tree(root, inner, refused)
        else:
            refused.append("/".join(inner))


def _entries(root: str, parts: Sequence[str]) -> list[tuple[str, int]]:
    """Names and kinds of what a folder holds, in order of the names; no link is followed."""
    if not _BY_FOLDER:
        with os.scandir(_checked(root, parts)) as found:
            return _listed(found, root)
    fd = _folder(root, parts)
    try:
        with os.scandir(fd) as found:
            return _listed(found, root)
    finally:
        os.close(fd)


def _listed(found: Iterable[os.DirEntry[str]], root: str) -> list[tuple[str, int]]:
    names = []
    for entry in found:
        # Who writes the folder may remove a file while it is listed.
        with contextlib.suppress(FileNotFoundError):
            names.append((entry.name, stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)))
        if len(names) > FILES_MAX:
            raise LimitError(f"more than {FILES_MAX:,} files", file=root)
    return sorted(names)


def _folder(root: str, parts: Sequence[str]) -> int:
    """Open a folder, one step after the other."""
    fd = os.open(root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    for part in parts:
        try:
            inner = os.open(part, _FOLDER, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _checked(root: str, parts: Sequence[str]) -> str:
    """The path of what no link leads to, where files can't be opened relative to a folder."""
    path = Path(root)
    for part in parts:
        path /= part
        if path.is_symlink():
            raise OSError(0, "it is a link")
    return str(path)


def opened(root: str, parts: Sequence[str]) -> BinaryIO:
    """Open a file of the directory.

    Args:
        root: The directory.
        parts: The way to the file.

    Returns:
        It.

    Raises:
        OSError: It can't be opened, is a link or no file.
    """
    if _BY_FOLDER:
        folder = _folder(root, parts[:-1])
        try:
            fd = os.open(parts[-1], _FILE, dir_fd=folder)
        finally:
            os.close(folder)
    else:
        fd = os.open(_checked(root, parts), _FILE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is no file")
    return os.fdopen(fd, "rb", buffering=0)


@dataclass(frozen=True, slots=True)
class FileContent:
    """The content of a file that is read when it is wanted; see `kcap.model.artifact.Content`.

    What it gives is a function of the bytes alone, however the file is kept: a block of zeros is
    a hole.
    """

    root: str
    names: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0

    def parts(self) -> Iterator[bytes | Gap]:
        """See `kcap.model.artifact.Content`."""
        with opened(self.root, self.names) as stream:
            size = os.fstat(stream.fileno()).st_size
            end = min(size, limits.BLOB_BYTES)
            at, read = 0, 0
            while at < end:
                data_at = min(_data_from(stream, at, end) // _STEP * _STEP, end)
                if data_at > at:
                    yield Gap(data_at - at)
                    at = data_at
                    continue
                if read >= DATA_MAX:
                    yield Gap(end - at, f"of a file {DATA_MAX:,} bytes are read")
                    break
                stream.seek(at)
                data = _exactly(stream, min(_STEP, end - at))
                if not data:
                    yield Gap(end - at, "the file became shorter while it was read")
                    break
                yield Gap(len(data)) if data == _ZEROS[: len(data)] else data
                at += len(data)
                read += len(data)


def _data_from(stream: BinaryIO, at: int, end: int) -> int:
    """Where the next bytes are that a file stores."""
    if _SEEK_DATA is None:
        return at
    try:
        return os.lseek(stream.fileno(), at, _SEEK_DATA)
    except OSError as e:
        return end if e.errno == 6 else at  # noqa: PLR2004  (ENXIO: only a hole follows)


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """So many bytes, less at the end."""
    made = bytearray()
    while len(made) < count and (part := stream.read(count - len(made))):
        made += part
    return bytes(made)


class Index(NamedTuple):
    """What an index file says."""

    paths: dict[str, list[str]]
    """Folder and name of each artifact that is there to its paths, the last one last."""
    gone: list[str]
    """The first of those that are not there."""
    gone_count: int
    """Lines that name such."""
    cut: bool
    """Whether the file is longer than what is read of it."""


def indexed(root: str, out: tuple[str, ...], name: str, here: AbstractSet[str]) -> Index:
    """Read an index file: which paths an artifact's file had.

    Args:
        root: The directory.
        out: The way to ``out``.
        name: The index file.
        here: Folder and name of each artifact that is there.

    Returns:
        What it says. The lines are not quoted: what is no line of its own belongs to the path
        before, which had a line feed.

    Raises:
        OSError: There is none, or it can't be read.
    """
    paths: dict[str, list[str]] = {}
    gone: dict[str, None] = {}
    gone_count = kept = 0
    known: list[str] | None = None
    path: list[bytes] = []
    with opened(root, (*out, name)) as stream:
        cut = os.fstat(stream.fileno()).st_size > INDEX_BYTES
        for line in _lines(stream):
            key, space, rest = line.partition(b" ")
            where = os.fsdecode(key[:_KEY_BYTES])
            folder, _, file = where.partition("/")
            if not (space and tracee_names.is_container(folder) and tracee_names.named(file)):
                if known is not None and kept < PATH_BYTES:
                    path.append(line)
                    kept += 1 + len(line)
                continue
            _take(known, path)
            known = paths.setdefault(where, []) if where in here else None
            path, kept = [rest], len(rest)
            if known is None:
                gone_count += 1
                if len(gone) < _NAMED:
                    gone[where] = None
        _take(known, path)
    return Index(paths, list(gone), gone_count, cut)


def _take(known: list[str] | None, path: list[bytes]) -> None:
    """Add a path to those of a file."""
    if known is None:
        return
    text = clean(b"\n".join(path)[:PATH_BYTES])[0]
    if text in known:
        known.remove(text)
    known.append(text)
    del known[:-PATHS_MAX]


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of a file without their ends; what ends the file is no line feed of a path."""
    parts: list[bytes] = []
    left = INDEX_BYTES
    while left > 0 and (read := stream.read(min(_STEP, left))):
        left -= len(read)
        first, *lines = read.split(b"\n")
        parts.append(first)
        if lines:
            yield b"".join(parts)
            *whole, rest = lines
            parts = [rest]
            yield from whole
    if any(parts):
        yield b"".join(parts)


@contextlib.contextmanager
def reading(root: str) -> Iterator[None]:
    """Make kcap's errors of those of the system."""
    try:
        yield
    except OSError as e:
        why = e.strerror or str(e)
        raise KcapError(f"can't be read: {printable(why)}", file=root) from e
