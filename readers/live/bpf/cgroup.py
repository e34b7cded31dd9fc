"""Programs on control groups: what their sections are called, and how they are attached.

They run for every socket of a process in the group, or in one below it; at the root of version 2
for all sockets of the host, whichever hierarchy manages its containers.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

from kcap.errors import KcapError
from kcap.readers.live.bpf import mounts
from kcap.readers.live.bpf.syscalls import bpf, check_machine, failure
from kcap.readers.live.probe.hierarchies import hierarchies


class Kind(NamedTuple):
    """What the kernel wants to know of a program before it loads it."""

    program: int
    """Its type, ``BPF_PROG_TYPE_…``."""
    attach: int
    """Where it will be attached, ``BPF_CGROUP_…``."""


_SKB, _SOCK, _ADDRESS = 8, 9, 18

KINDS: Final = {
    "cgroup_skb/ingress": Kind(_SKB, 0),
    "cgroup_skb/egress": Kind(_SKB, 1),
    "cgroup/sock_create": Kind(_SOCK, 2),
    "cgroup/connect4": Kind(_ADDRESS, 10),
    "cgroup/connect6": Kind(_ADDRESS, 11),
    "cgroup/sendmsg4": Kind(_ADDRESS, 14),
    "cgroup/sendmsg6": Kind(_ADDRESS, 15),
}
"""By section."""

ROOT_INODE: Final = 1
"""Of the root of the hierarchy; of another group where what is mounted is a part of it."""

_LINK_CREATE: Final = 28
_NEEDS: Final = "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"


def link(program: int, group: int, attach: int, what: str) -> int:
    """Run a program for a control group and all below it, beside those of others (Linux 5.7).

    Args:
        program: Its descriptor.
        group: Descriptor of the group's folder.
        attach: Where, as `Kind` says.
        what: What it is, for errors.

    Returns:
        The descriptor of the attachment; closing it ends it.

    Raises:
        PrivilegeError: This user may not.
        KcapError: The kernel refused.
    """
    attributes = bytearray(64)
    struct.pack_into("<IIII", attributes, 0, program, group, attach, 0)
    done = bpf(_LINK_CREATE, attributes)
    if done < 0:
        raise failure(-done, f"attaching to {what}", needs=_NEEDS)
    return done


def open_root() -> int:
    """Open the root of the hierarchy of version 2; mounted for nobody but us where it is not.

    Returns:
        The descriptor of the folder.

    Raises:
        PrivilegeError: This user may not mount it.
        KcapError: The kernel has no such hierarchy.
    """
    check_machine()
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    for mounted in hierarchies():
        if not mounted.controllers:
            try:
                return os.open(Path(mounted.path), flags)
            except OSError:
                break
    return mounts.detached("cgroup2")


def whole(group: int) -> bool:
    """Whether a group is the root of the hierarchy, and not that of a cgroup namespace.

    Args:
        group: Descriptor of its folder.

    Raises:
        KcapError: It cannot be looked at.
    """
    try:
        return os.fstat(group).st_ino == ROOT_INODE
    except OSError as error:
        raise KcapError(f"a control group cannot be looked at: {error}") from error
