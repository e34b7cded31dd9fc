"""The kernel's tracing files (tracefs), where they are mounted, or mounted for this process alone.

On many hosts nobody has mounted them. A mount that is attached nowhere (fsopen, fsmount) shows
them to whoever has its descriptor, and to nobody else: no table of mounts changes, and nothing is
left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kcap.errors import KcapError, PrivilegeError
from kcap.readers.live.bpf import syscalls
from kcap.readers.live.bpf.loader import TRACEFS
from kcap.readers.live.trace import formats
from kcap.readers.live.trace.formats import Format

_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_CREATE: Final = 6
_CLOEXEC: Final = 1
_NEEDS: Final = "root, or CAP_SYS_ADMIN and CAP_DAC_OVERRIDE"


class Tracefs:
    """The tracing files, as long as it is open.

    Raises:
        PrivilegeError: This user may neither read nor mount them.
        KcapError: This kernel has none.
    """

    def __init__(self) -> None:
        self._mount: int | None = None
        mounted = next((path for path in TRACEFS if Path(path, "events").is_dir()), None)
        if mounted is None:
            self._mount = _mounted()
            mounted = f"/proc/self/fd/{self._mount}"
        self.path = mounted
        """The folder."""

    @property
    def attached(self) -> bool:
        """Whether others see them too, as they are mounted somewhere."""
        return self._mount is None

    def format(self, name: str) -> Format | None:
        """How the records of a tracepoint lie in memory.

        Args:
            name: Group and name, as ``sched/sched_process_exec``.

        Returns:
            The layout; None where this kernel has no such tracepoint.

        Raises:
            PrivilegeError: This user may not read it.
            KcapError: It can't be read, or is not understood.
        """
        path = Path(self.path, "events", name, "format")
        try:
            with path.open("r", encoding="ascii", errors="replace") as file:
                text = file.read(formats.FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refused(error, f"the description of {name} cannot be read", path) from error
        return formats.parse(text, name, str(path))

    def close(self) -> None:
        """Let go of them; may be called twice."""
        if self._mount is not None:
            with contextlib.suppress(OSError):
                os.close(self._mount)
        self._mount = None

    def __enter__(self) -> Self:
        """The files."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of them."""
        self.close()


def refused(error: OSError, what: str, path: Path) -> KcapError:
    """An error of tracefs as one that a user can act on.

    Args:
        error: What the kernel said.
        what: What was wanted.
        path: Of which file.

    Returns:
        A `PrivilegeError` where rights are missing, else a `KcapError`.
    """
    if error.errno in (errno.EACCES, errno.EPERM):
        return PrivilegeError(
            f"{what}: {error.strerror}",
            file=str(path),
            expected=_NEEDS,
            hint="run as root on the host; see `kcap doctor`",
        )
    return KcapError(f"{what}: {error.strerror}", file=str(path))


def _mounted() -> int:
    """Mount tracefs where only this process sees it; the descriptor of its root."""
    context = _asked(_FSOPEN, ctypes.c_char_p(b"tracefs"), ctypes.c_uint(_CLOEXEC))
    try:
        nothing = ctypes.c_void_p(None)
        _asked(_FSCONFIG, ctypes.c_int(context), ctypes.c_uint(_CREATE), nothing, nothing, 0)
        return _asked(_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
    finally:
        os.close(context)


def _asked(number: int, *arguments: object) -> int:
    done = syscalls.syscall(number, *arguments)
    if done >= 0:
        return done
    failed = ctypes.get_errno()
    if failed in (errno.ENODEV, errno.ENOSYS):
        raise KcapError(
            "tracefs is not mounted, and cannot be",
            expected="a kernel with CONFIG_TRACING, of 5.2 or later or with tracefs mounted",
            hint=f"mount -t tracefs tracefs {TRACEFS[0]}",
        )
    raise syscalls.failure(failed, "mounting tracefs", needs="CAP_SYS_ADMIN")
