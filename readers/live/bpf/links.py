"""Whether the parts of the recorder's program are still where they were attached."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from typing import Final

from kcap.readers.live.bpf.syscalls import address, bpf

_INFO: Final = 15
_INFO_BYTES: Final = 80

Identity = tuple[int, int, int]
"""Type and number of a link, and number of its program."""


def identity(fd: int) -> Identity | None:
    """What the kernel says a descriptor is.

    Args:
        fd: Any number.

    Returns:
        The link's identity; None where there is no such descriptor, or it is no link.
    """
    info = ctypes.create_string_buffer(_INFO_BYTES)
    attributes = bytearray(16)
    struct.pack_into("<IIQ", attributes, 0, fd, len(info), address(info))
    if bpf(_INFO, attributes) < 0:
        return None
    kind, number, program = struct.unpack_from("<III", info)
    return kind, number, program


class Links:
    """Follows attachments: a descriptor that was closed, or is another one by now, is told.

    Args:
        fds: Descriptors by program, of those that are attached at the time.
    """

    def __init__(self, fds: Mapping[str, int]) -> None:
        self._fds = fds
        self._known: dict[str, Identity | None] = {}

    def broken(self) -> list[str]:
        """Programs that are not attached any more, though nobody here detached them."""
        now = {name: identity(fd) for name, fd in self._fds.items()}
        for name, found in now.items():
            self._known.setdefault(name, found)
        return sorted(name for name, found in now.items() if found != self._known[name])
