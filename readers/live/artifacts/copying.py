"""Copies of files: bounded, with holes left out, and hashed on the way."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, NamedTuple

from kcap.readers.live.artifacts.protocol import DATA, HOLE, MISSING, RANGES_MAX

STEP_BYTES: Final = 1 << 20
HASH_BYTES: Final = 1 << 30
"""Of a larger file nobody waits for the hash."""

_HOLE_BYTES: Final = 1 << 16
"""A shorter hole is kept as zeros."""

_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8
_ZEROS: Final = bytes(STEP_BYTES)
_NO_HOLES: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY}

SHRANK: Final = "shrank while it was read"


class Range(NamedTuple):
    """A part of an artifact."""

    length: int
    form: int
    """`DATA`, `HOLE` or `MISSING`."""
    reason: str | None = None


class Copied(NamedTuple):
    """What was read of a file."""

    memory: int | None
    """Descriptor of a sealed memory file with the data, without holes; None where none is kept."""
    kept_bytes: int
    ranges: tuple[Range, ...]
    hashes: dict[str, str]
    """By name in hex; none where not all of the file was read."""
    truncated: str | None
    changed: bool
    """Somebody wrote to it meanwhile."""


class Spool:
    """A memory file that data and what is missing is put into.

    Args:
        most_bytes: Data that it takes; what is beyond is missing.
        reason: Why.
    """

    def __init__(self, most_bytes: int, reason: str) -> None:
        self._left = most_bytes
        self.reason = reason
        self._memory: int | None = None
        self._ranges: list[Range] = []
        self.kept_bytes = 0

    def data(self, part: memoryview | bytes) -> None:
        """Bytes that come next."""
        room = min(len(part), self._left)
        if room:
            if self._memory is None:
                flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
                self._memory = os.memfd_create("kcap", flags)
            left = memoryview(part)[:room]
            while len(left):
                left = left[os.write(self._memory, left) :]
            self.kept_bytes += room
            self._left -= room
            self._add(Range(room, DATA))
        if room < len(part):
            self.missing(len(part) - room, self.reason)

    def hole(self, length: int) -> None:
        """Zeros that the artifact does not store."""
        self._add(Range(length, HOLE))

    def missing(self, length: int, reason: str) -> None:
        """Bytes that can't be had."""
        self._add(Range(length, MISSING, reason))

    @property
    def crowded(self) -> bool:
        """Whether it has as many ranges as it can."""
        return len(self._ranges) >= RANGES_MAX - 4

    @property
    def full(self) -> bool:
        """Whether it takes no more data."""
        return not self._left

    def _add(self, added: Range) -> None:
        if not added.length:
            return
        last = self._ranges[-1] if self._ranges else None
        if last and (last.form, last.reason) == (added.form, added.reason):
            self._ranges[-1] = last._replace(length=last.length + added.length)
        else:
            self._ranges.append(added)

    def finish(self) -> tuple[int | None, tuple[Range, ...]]:
        """Seal it.

        Returns:
            Its descriptor, which is the caller's; and the ranges.
        """
        memory, self._memory = self._memory, None
        if memory is not None:
            fcntl.fcntl(memory, _ADD_SEALS, _SEALS)
        return memory, tuple(self._ranges)

    def drop(self) -> None:
        """Let go of it."""
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None


def copy(
    file: int,
    *,
    most_bytes: int,
    hashes: Collection[str] = (),
    step: Callable[[], None] = lambda: None,
    reason: str | None = None,
) -> Copied:
    """Copy a file and hash it, up to the size that it has now.

    Args:
        file: A descriptor of a regular file.
        most_bytes: Data to keep; beyond, it is only hashed.
        hashes: Beside SHA-256: ``md5``, ``sha1``.
        step: Called each time something was read.
        reason: Why no more than that is kept.

    Returns:
        The copy.

    Raises:
        OSError: It can't be looked at.
    """
    about = os.fstat(file)
    size, whole = about.st_size, about.st_size <= HASH_BYTES
    spool = Spool(most_bytes, reason or f"over {most_bytes} bytes")
    hashers: list[Any] = [hashlib.sha256()]
    hashers += [hashlib.new(each, usedforsecurity=False) for each in sorted(hashes)]
    at, read_whole = 0, True
    try:
        for form, end in _parts(file, size, spool):
            if form == HOLE:
                spool.hole(end - at)
                _zeros(hashers if whole else (), end - at, step)
                at = end
                continue
            if form == MISSING:
                spool.missing(end - at, SHRANK)
                at, read_whole = end, False
                continue
            at, read = _data(file, (at, end), spool, hashers if whole else (), step)
            read_whole = read_whole and read
    except BaseException:
        spool.drop()
        raise
    memory, ranges = spool.finish()
    after = os.fstat(file)
    changed = _moving(about) != _moving(after)
    told = {each.name: each.hexdigest() for each in hashers} if whole and read_whole else {}
    return Copied(memory, spool.kept_bytes, ranges, told, None, changed)


def _moving(about: os.stat_result) -> tuple[int, int]:
    return about.st_size, about.st_mtime_ns


def _parts(file: int, size: int, spool: Spool) -> Iterator[tuple[int, int]]:
    """The form of each part of a file, and where it ends."""
    at = 0
    while at < size:
        if spool.crowded:
            yield DATA, size
            return
        try:
            start = min(os.lseek(file, at, os.SEEK_DATA), size)
        except OSError as e:
            if e.errno == errno.ENXIO:
                yield (HOLE if os.fstat(file).st_size >= size else MISSING), size
            elif e.errno in _NO_HOLES:
                yield DATA, size
            else:
                raise
            return
        if start - at >= _HOLE_BYTES:
            yield HOLE, start
            at = start
            continue
        end = size
        if start < size:
            end = min(os.lseek(file, start, os.SEEK_HOLE), size)
        yield DATA, end
        at = end


def _zeros(hashers: Collection[Any], length: int, step: Callable[[], None]) -> None:
    while length and hashers:
        part = _ZEROS[: min(length, STEP_BYTES)]
        for each in hashers:
            each.update(part)
        length -= len(part)
        step()


def _data(
    file: int,
    within: tuple[int, int],
    spool: Spool,
    hashers: Collection[Any],
    step: Callable[[], None],
) -> tuple[int, bool]:
    """Read a part; where it ends, and whether all of it could be read."""
    at, end = within
    while at < end:
        if spool.full and not hashers:
            spool.missing(end - at, spool.reason)
            return end, False
        try:
            part = os.pread(file, min(STEP_BYTES, end - at), at)
        except OSError as e:
            spool.missing(end - at, f"unreadable: {os.strerror(e.errno or 0)}")
            return end, False
        if not part:
            spool.missing(end - at, SHRANK)
            return end, False
        spool.data(part)
        for each in hashers:
            each.update(part)
        at += len(part)
        step()
    return at, True
