"""System calls by their numbers, and what a user can do about it when one is refused."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache
from typing import Any, Final

from kcap.errors import KcapError, PrivilegeError

MACHINE: Final = "x86_64"
"""The one whose numbers these are."""

BPF: Final = 321
"""bpf(2)."""

PERF_EVENT_OPEN: Final = 298
"""perf_event_open(2)."""

_RETRIES: Final = 5


def check_machine() -> None:
    """See that this is a machine whose kernel kcap can talk to.

    Raises:
        KcapError: It is not.
    """
    machine = os.uname().machine if hasattr(os, "uname") else sys.platform
    if not sys.platform.startswith("linux") or machine != MACHINE or sys.maxsize < 1 << 32:
        raise KcapError(
            f"no recording with BPF on {sys.platform} {machine}",
            expected="Linux on x86-64, with a Python of 64 bits",
            hint="record with --source proc",
        )


@cache
def libc() -> ctypes.CDLL:
    """The C library of this Python.

    Raises:
        KcapError: It is not one whose kernel kcap can talk to.
    """
    check_machine()
    return ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: Any) -> int:  # noqa: ANN401
    """Make a system call.

    Args:
        number: Which one.
        arguments: Values of ctypes.

    Returns:
        What the kernel gave; below zero, ``ctypes.get_errno`` says what failed.
    """
    library = libc()
    library.syscall.restype = ctypes.c_long
    return int(library.syscall(ctypes.c_long(number), *arguments))


def bpf(command: int, attributes: bytearray) -> int:
    """Ask something of the kernel's BPF, again where it was interrupted.

    Args:
        command: What is asked of it.
        attributes: ``union bpf_attr``, which the kernel may change.

    Returns:
        What the kernel gave, or minus the number of the error.
    """
    block = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    for _ in range(_RETRIES):
        done = syscall(BPF, ctypes.c_int(command), block, ctypes.c_uint(len(attributes)))
        if done >= 0:
            return done
        failed = ctypes.get_errno()
        if failed not in (errno.EAGAIN, errno.EINTR):
            break
    return -failed


def address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Where a buffer stands; whoever hands that on keeps the buffer."""
    return ctypes.addressof(buffer)


def failure(
    number: int,
    what: str,
    *,
    log: str = "",
    needs: str = "CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN",
) -> KcapError:
    """An error of the kernel as one that a user can act on.

    Args:
        number: The error's number.
        what: What was asked of the kernel.
        log: What its verifier said.
        needs: Who may ask that.

    Returns:
        A `PrivilegeError` where rights are missing, else a `KcapError`.
    """
    said = os.strerror(number)
    if number in (errno.EPERM, errno.EACCES) and not log:
        return PrivilegeError(
            f"{what}: {said} (it takes {needs})",
            hint="run as root on the host; see `kcap doctor`: lockdown of the kernel or a"
            " container's rules may be what refuses",
        )
    if number == errno.ENOSYS:
        said = "this kernel has no such call"
    return KcapError(f"{what}: {said}{log}")
