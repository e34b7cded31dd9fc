"""What the kernel's programs for artifacts are told: which calls they look at, and of which files.

A call is looked at as it returns. Numbers are those of x86-64 and of its 32-bit programs.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from kcap.readers.live.artifacts.wanted import ELF, PIPE, REGULAR, SOCKET, FileFilter, Wanted

STREAMS, REGIONS, MODULES, PROGRAMS, MOUNTS, OPENING, COPYING = range(1, 8)
"""``enum kcap_class``."""

STEPS: Final = {
    "call_stream": STREAMS,
    "call_region": REGIONS,
    "call_module": MODULES,
    "call_program": PROGRAMS,
    "call_mount": MOUNTS,
    "call_opening": OPENING,
    "call_copy": COPYING,
}
"""The place of each program in the map of those that are jumped to."""

NARROW: Final = 512
"""``KCAP_CALLS``: from here on the numbers of 32-bit programs stand."""

_BLOCK, _BLOCKS, _ONE, _SEVERAL, _NO_BLOCK = range(1, 6)
_EITHER, _READ, _WRITTEN = range(3)
_DOING: Final = struct.Struct("=8B")

_TYPES: Final = {
    PIPE: stat.S_IFIFO,
    SOCKET: stat.S_IFSOCK,
    REGULAR: stat.S_IFREG,
    ELF: stat.S_IFREG,
}


class Call(NamedTuple):
    """How a system call is looked at: ``struct kcap_doing``."""

    name: str
    native: int
    narrow: tuple[int, ...]
    """Its numbers for 32-bit programs."""
    kind: int
    shape: int = 0
    direction: int = 0
    fd: int = 0
    out: int = 0
    peek: int = 0

    def encode(self) -> bytes:
        """It as the kernel's programs have it."""
        return _DOING.pack(
            self.kind, self.shape, self.direction, self.fd, self.out, self.peek, 0, 0
        )


_CALLS: Final = (
    Call("read", 0, (3,), STREAMS, _BLOCK, _READ, 1),
    Call("write", 1, (4,), STREAMS, _BLOCK, _WRITTEN, 1),
    Call("pread64", 17, (180,), STREAMS, _BLOCK, _READ, 1),
    Call("pwrite64", 18, (181,), STREAMS, _BLOCK, _WRITTEN, 1),
    Call("readv", 19, (145,), STREAMS, _BLOCKS, _READ, 1),
    Call("writev", 20, (146,), STREAMS, _BLOCKS, _WRITTEN, 1),
    Call("preadv", 295, (333,), STREAMS, _BLOCKS, _READ, 1),
    Call("pwritev", 296, (334,), STREAMS, _BLOCKS, _WRITTEN, 1),
    Call("preadv2", 327, (378,), STREAMS, _BLOCKS, _READ, 1),
    Call("pwritev2", 328, (379,), STREAMS, _BLOCKS, _WRITTEN, 1),
    Call("vmsplice", 278, (316,), STREAMS, _BLOCKS, _EITHER, 1),
    Call("sendto", 44, (369,), STREAMS, _BLOCK, _WRITTEN, 1),
    Call("recvfrom", 45, (371,), STREAMS, _BLOCK, _READ, 1, peek=4),
    Call("sendmsg", 46, (370,), STREAMS, _ONE, _WRITTEN, 1),
    Call("recvmsg", 47, (372,), STREAMS, _ONE, _READ, 1, peek=3),
    Call("recvmmsg", 299, (337, 417), STREAMS, _SEVERAL, _READ, 1, peek=4),
    Call("sendmmsg", 307, (345,), STREAMS, _SEVERAL, _WRITTEN, 1),
    Call("sendfile", 40, (187, 239), STREAMS, _NO_BLOCK, 0, fd=2, out=1),
    Call("splice", 275, (313,), STREAMS, _NO_BLOCK, 0, fd=1, out=3),
    Call("tee", 276, (315,), STREAMS, _NO_BLOCK, 0, out=2),
    Call("copy_file_range", 326, (377,), STREAMS, _NO_BLOCK, 0, fd=1, out=3),
    Call("mmap", 9, (192,), REGIONS, _NO_BLOCK),
    Call("mprotect", 10, (125,), REGIONS),
    Call("pkey_mprotect", 329, (380,), REGIONS),
    Call("finit_module", 313, (350,), MODULES, _NO_BLOCK),
    Call("init_module", 175, (128,), MODULES),
    Call("bpf", 321, (357,), PROGRAMS),
    Call("mount", 165, (21,), MOUNTS),
    Call("fsmount", 432, (432,), MOUNTS),
    Call("move_mount", 429, (429,), MOUNTS),
    Call("open_tree", 428, (428,), MOUNTS),
    Call("pivot_root", 155, (217,), MOUNTS),
    Call("setns", 308, (346,), MOUNTS),
    Call("unshare", 272, (310,), MOUNTS, _NO_BLOCK),
)

NAMES: Final = {call.native: call.name for call in _CALLS} | {
    number + NARROW: call.name for call in _CALLS for number in call.narrow
}
"""Names of the calls by their number, those of 32-bit programs from `NARROW` on."""


def has_streams(wanted: Wanted) -> bool:
    """Whether anything is kept of what passes through calls.

    Args:
        wanted: What is to be kept.

    Returns:
        Whether it is.
    """
    return any(each is not None and each.streams for each in (wanted.read, wanted.write))


def calls(wanted: Wanted) -> Iterator[tuple[int, bytes]]:
    """The table of calls.

    Args:
        wanted: What is to be kept.

    Yields:
        The number of a call, and how it is looked at.
    """
    kinds = {
        STREAMS: has_streams(wanted),
        REGIONS: wanted.mem,
        MODULES: wanted.module,
        PROGRAMS: wanted.bpf,
        MOUNTS: wanted.files,
    }
    for call in _CALLS:
        if kinds[call.kind]:
            for number in (call.native, *(NARROW + each for each in call.narrow)):
                yield number, call.encode()


def _modes(chosen: FileFilter) -> int:
    """The types of files whose streams are kept: a bit for each that a mode may say."""
    if chosen.types:
        types = {_TYPES[each] for each in chosen.types}
        if not chosen.fds:
            types.discard(stat.S_IFREG)  # those are kept whole
        return sum(1 << (each >> 12) for each in types)
    every = 0xFFFF
    return (
        every
        if chosen.fds
        else every & ~(1 << (stat.S_IFREG >> 12) | 1 << (stat.S_IFDIR >> 12) | 1)
    )


def constants(wanted: Wanted) -> dict[str, int]:
    """The constants of the programs.

    Args:
        wanted: What is to be kept.

    Returns:
        Their values, by name.
    """
    found = {"tell_exec": int(wanted.exec)}
    for name, chosen in (("read", wanted.read), ("write", wanted.write)):
        if chosen is not None and chosen.streams:
            found[f"{name}_modes"] = _modes(chosen)
            found[f"{name}_fds"] = sum(1 << fd for fd in chosen.fds)
    return found
