"""How Tracee names the artifacts in its output directory, in all its versions.

Below ``out`` stands a folder for each container, called by its id or ``host``, up to 0.6 by the
number of its mount namespace, and in it a file for each artifact.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

OUT: Final = "out"
"""The folder of Tracee's that holds everything else."""

INDEXES: Final = {"written_files": "write", "read_files": "read"}
"""Files with lines ``FOLDER/NAME PATH``, and the kind of the artifacts they tell of."""

PROFILE: Final = "tracee.profile"
"""What was executed, up to 0.10."""

PCAP: Final = "pcap"
"""The folder of packets."""

UNOWNED: Final = "unowned"
"""Packets there that no process owns: kcap's own, Tracee leaves them out."""

PACKETS: Final = "packets.json"
"""What kcap says of the files that it split packets into."""

_MINOR_BITS: Final = 20
_FOLDER: Final = re.compile(r"host|[0-9a-f]{12,64}|[0-9]{1,10}")
_FILE: Final = r"(?:\.dev-(?P<dev>[0-9]{1,20}))?(?:\.inode-(?P<inode>[0-9]{1,20}))?"
_PID: Final = r"(?:\.pid-(?P<pid>[0-9]{1,10}))?"
_NAMES: Final = {
    "write": re.compile(rf"write{_FILE}{_PID}"),
    "read": re.compile(rf"read{_FILE}{_PID}"),
    "exec": re.compile(r"exec\.(?P<time>[0-9]{1,20})\.(?P<name>.+)", re.DOTALL),
    "mem": re.compile(rf"bin{_PID}\.(?:ts-)?(?P<time>[0-9]{{1,20}})"),
    "module": re.compile(rf"module{_FILE}{_PID}(?:\.(?P<sha256>[0-9a-f]{{64}}))?"),
    "bpf": re.compile(
        rf"bpf\.name-(?P<name>.*?){_PID}(?:\.(?:(?P<sha256>[0-9a-f]{{64}})|[0-9]+))?", re.DOTALL
    ),
}


class Named(NamedTuple):
    """What the name of an artifact tells of it."""

    kind: str
    """``exec``, ``write``, ``read``, ``mem``, ``module`` or ``bpf``."""
    dev: int | None = None
    """As the kernel numbers devices inside; see `user_device`."""
    inode: int | None = None
    pid: int | None = None
    time: int | None = None
    """Of the event, as Tracee has it: ns since 1970, or since the host or Tracee started."""
    name: str | None = None
    """Of the program or the file that was executed."""
    sha256: str | None = None
    """Of the content."""


def named(name: str) -> Named | None:
    """Read the name of an artifact.

    Args:
        name: The name of a file.

    Returns:
        What it tells; None where it is no artifact's.
    """
    for kind, pattern in _NAMES.items():
        if found := pattern.fullmatch(name):
            said = found.groupdict()
            numbers = {
                key: int(value)
                for key in ("dev", "inode", "pid", "time")
                if (value := said.get(key)) is not None
            }
            return Named(kind, **numbers, name=said.get("name"), sha256=said.get("sha256"))
    return None


def is_container(name: str) -> bool:
    """Whether a folder is called as Tracee calls those of containers.

    Args:
        name: The name of a folder.

    Returns:
        True for ``host``, ids of containers and numbers of mount namespaces.
    """
    return _FOLDER.fullmatch(name) is not None


def kernel_device(dev: int) -> int:
    """A device as the kernel numbers it inside, and Tracee in names.

    Args:
        dev: ``st_dev`` of stat(2).

    Returns:
        The major number times 2^20, and the minor.
    """
    major = (dev >> 8 & 0xFFF) | (dev >> 32 & ~0xFFF)
    minor = (dev & 0xFF) | (dev >> 12 & 0xFFFFFF00)
    return major << _MINOR_BITS | minor & ((1 << _MINOR_BITS) - 1)


def user_device(dev: int) -> int:
    """``st_dev`` of stat(2) for a device as the kernel numbers it inside.

    Args:
        dev: The major number times 2^20, and the minor.

    Returns:
        What `kernel_device` turns into it.
    """
    major, minor = dev >> _MINOR_BITS, dev & ((1 << _MINOR_BITS) - 1)
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32
