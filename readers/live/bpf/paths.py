"""Paths as the kernel program gives them, and what the files behind them are called and are.

The kernel program follows a path upwards, so its components come last one first, each with a NUL
behind it; an empty one stands for the root. Where that is missing the path hangs on nothing (a
memfd, a pipe), or its beginning is not known: it is too deep, or no mount leads there.
"""

from __future__ import annotations

import posixpath
from typing import Final

UNKNOWN_START: Final = b".../"
"""Before what is known of a path whose beginning is not."""

MEMFD: Final = b"memfd:"
"""Before the name of memory that is a file."""

ANONYMOUS: Final = b"anon_inode:"
"""Before the name of what is a file without being one."""

NAMESPACE: Final = b"ns:"
"""The name of a namespace's file, as far as the kernel program sees it; `numbered` names it."""

_NO_NAME: Final = b"/\0"

_ROOT: Final = b"\0"

_TYPES: Final = {
    0o01: "pipe",
    0o02: "device",
    0o04: "directory",
    0o06: "device",
    0o10: "file",
    0o12: "link",
    0o14: "socket",
}
"""What a file is, by the type in its mode."""

_ANONYMOUS_TYPES: Final = {
    "aio": "aio",
    "bpf-map": "bpf",
    "bpf-prog": "bpf",
    "bpf_link": "bpf",
    "eventfd": "event",
    "eventpoll": "eventpoll",
    "fanotify": "fanotify",
    "fscontext": "fscontext",
    "inotify": "inotify",
    "io_uring": "io_uring",
    "perf_event": "perf_event",
    "pidfd": "pidfd",
    "seccomp notify": "seccomp",
    "signalfd": "signalfd",
    "timerfd": "timerfd",
    "userfaultfd": "userfaultfd",
}
"""What an anonymous file is, by its name without brackets."""

_UNKNOWN_TYPE: Final = "anonymous"
_DIRECTORY: Final = 0o04

_NAMES: Final = {0o01: "pipe", 0o14: "socket"}

NUMBERED: Final = tuple(_NAMES)
"""Types of files that have a number instead of a name, where they have no path."""

TYPE_WORDS: Final = tuple(
    sorted({*_TYPES.values(), *_ANONYMOUS_TYPES.values(), "memfd", "namespace", _UNKNOWN_TYPE})
)
"""All that `type_of` and `type_by_name` may give."""


def from_components(raw: bytes) -> bytes | None:
    """Put a path together.

    Args:
        raw: Its components, the last one first, a NUL behind each.

    Returns:
        The path; that of a file that hangs on nothing is its name, as ``memfd:NAME``,
        ``anon_inode:[eventfd]`` or `NAMESPACE`. None for no components.
    """
    if not raw:
        return None
    if raw in (_ROOT, _NO_NAME):
        return b"/" if raw == _ROOT else NAMESPACE
    if raw.endswith(b"\0\0"):
        return b"/" + b"/".join(raw[:-2].split(b"\0")[::-1])
    names = raw.removesuffix(b"\0").split(b"\0")
    if len(names) == 1:
        return ANONYMOUS + names[0] if _is_anonymous(names[0]) else names[0]
    if names[-1] == b"/":  # the root of a file system that is mounted nowhere
        names.pop()
    return UNKNOWN_START + b"/".join(names[::-1])


def _is_anonymous(name: bytes) -> bool:
    return name.startswith(b"[") or name.decode("latin-1") in _ANONYMOUS_TYPES


def is_path(name: bytes | None) -> bool:
    """Whether what `from_components` gave is where a file is, not what it is called.

    Args:
        name: The path or name.

    Returns:
        True for a path.
    """
    return name is not None and name.startswith((b"/", UNKNOWN_START))


def numbered(file_type: int, inode: int) -> bytes:
    """The name of a file without a path, as /proc has it.

    Args:
        file_type: The type in its mode, 1 for a pipe.
        inode: Its number.

    Returns:
        ``pipe:[4026]``, ``socket:[77]``; ``ns:[4026531840]`` for any other file. For a directory
        without a name, the root of what is mounted nowhere, `UNKNOWN_START`.
    """
    if file_type == _DIRECTORY:
        return UNKNOWN_START
    return f"{_NAMES.get(file_type, 'ns')}:[{inode}]".encode()


def resolve(path: bytes, base: bytes | None) -> bytes:
    """The path that a process means, from its own words alone.

    Links are not followed: by the time anybody could, they may lead elsewhere.

    Args:
        path: The path as it was given.
        base: The directory in which a relative one begins.

    Returns:
        The path without ``.``, ``..`` and doubled slashes; a relative one as it is where the
        directory is not known.
    """
    if not path.startswith(b"/"):
        if base is None:
            return path
        if base == NAMESPACE:
            base = UNKNOWN_START
        if base.startswith(UNKNOWN_START):
            return UNKNOWN_START + resolve(path, base[len(UNKNOWN_START) - 1 :])[1:]
        if not base.startswith(b"/"):  # no directory at all
            return path
        path = base + b"/" + path
    elif b"//" not in path and b"/." not in path:
        return path if path == b"/" else path.removesuffix(b"/")
    whole = posixpath.normpath(path)
    return whole[1:] if whole.startswith(b"//") else whole


def type_of(file_type: int) -> str | None:
    """What a file is.

    Args:
        file_type: The type in its mode.

    Returns:
        ``file``, ``directory``, ``pipe`` …; None for no type.
    """
    return _TYPES.get(file_type)


def type_by_name(name: bytes | None) -> str | None:
    """What a file is whose mode does not say it.

    Args:
        name: Its name, as `from_components` gave it.

    Returns:
        ``memfd``, ``event``, ``eventpoll`` …; None where the mode says it.
    """
    if name is None or is_path(name):
        return None
    if name.startswith(MEMFD):
        return "memfd"
    if name.startswith(ANONYMOUS):
        text = name[len(ANONYMOUS) :].decode("latin-1").strip("[]")
        return _ANONYMOUS_TYPES.get(text, _UNKNOWN_TYPE)
    return "namespace" if name.startswith(NAMESPACE) else None
