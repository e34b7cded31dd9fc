"""Landlock: processes of the same user that a process can't look into, nor send signals to.

Two processes of one user may read and write each other's memory (``/proc/PID/mem``), unless the
kernel's Yama says otherwise. Where kcap is started by an ordinary user, those that work for it are
of the same user. Landlock keeps them apart; kernels have it since Linux 5.13, if it is switched on.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from kcap.errors import KcapError

_CREATE: Final = 444
_RESTRICT: Final = 446
_VERSION: Final = 1
_EXECUTE: Final = 1
"""The one thing about files that it forbids: a set that forbids nothing is none."""

_SCOPE_SIGNAL: Final = 2
_SCOPED_SINCE: Final = 6
_NETWORK_SINCE: Final = 4


def version() -> int:
    """What the kernel knows of it.

    Returns:
        The version of its interface; 0 where there is none.
    """
    return max(_call(_CREATE, None, 0, _VERSION), 0)


def keep_apart() -> bool:
    """Keep this thread and all that it starts from other processes, and from programs, for good.

    A thread needs ``no_new_privs`` for that (`kcap.guard.rights.keep`).

    Returns:
        Whether the kernel can do it.

    Raises:
        KcapError: It can, and did not.
    """
    known = version()
    if not known:
        return False
    words = [_EXECUTE]
    if known >= _NETWORK_SINCE:
        words.append(0)
    if known >= _SCOPED_SINCE:
        words.append(_SCOPE_SIGNAL)
    rules = ctypes.create_string_buffer(struct.pack(f"<{len(words)}Q", *words))
    number = _call(_CREATE, rules, 8 * len(words), 0)
    try:
        if number < 0 or _call(_RESTRICT, number, 0) < 0:
            said = os.strerror(ctypes.get_errno())
            raise KcapError(f"this process can't be kept apart (Landlock): {said}")
    finally:
        if number >= 0:
            os.close(number)
    return True


def _call(number: int, *words: object) -> int:
    """A system call that the C library has no function for; its numbers are all machines'."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    given = (ctypes.c_long(word) if isinstance(word, int) else word for word in words)
    return int(library.syscall(ctypes.c_long(number), *given))
