"""Mounts that stand nowhere: of file systems of the kernel that the host has not mounted."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from kcap.readers.live.bpf.syscalls import check_machine, failure, syscall

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE: Final = 6
_CLOEXEC: Final = 1
_NEEDS: Final = "CAP_SYS_ADMIN"


def detached(kind: str) -> int:
    """Mount a file system for nobody but us; it goes away with its descriptor (Linux 5.2).

    Args:
        kind: Its type: ``cgroup2``, ``tracefs``.

    Returns:
        The descriptor of its topmost folder.

    Raises:
        PrivilegeError: This user may not.
        KcapError: The kernel has no such file system.
    """
    check_machine()
    what = f"mounting a {kind} file system"
    context = syscall(_FSOPEN, ctypes.c_char_p(kind.encode("ascii")), ctypes.c_uint(_CLOEXEC))
    if context < 0:
        raise failure(ctypes.get_errno(), what, needs=_NEEDS)
    try:
        nothing = ctypes.c_void_p(0)
        command = ctypes.c_uint(_FSCONFIG_CMD_CREATE)
        if syscall(_FSCONFIG, ctypes.c_int(context), command, nothing, nothing, ctypes.c_int(0)):
            raise failure(ctypes.get_errno(), what, needs=_NEEDS)
        mount = syscall(_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
        if mount < 0:
            raise failure(ctypes.get_errno(), what, needs=_NEEDS)
        return mount
    finally:
        os.close(context)
