"""What the kernel itself has loaded and mounted: modules, BPF programs, mounts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kcap.model import text
from kcap.readers.live.bpf import system

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_MODULE_FIELDS: Final = 6
_MOUNT_FIELDS: Final = 6

_PROGRAM_TYPES: Final = (
    "unspec", "socket_filter", "kprobe", "sched_cls", "sched_act", "tracepoint", "xdp",
    "perf_event", "cgroup_skb", "cgroup_sock", "lwt_in", "lwt_out", "lwt_xmit", "sock_ops",
    "sk_skb", "cgroup_device", "sk_msg", "raw_tracepoint", "cgroup_sock_addr", "lwt_seg6local",
    "lirc_mode2", "sk_reuseport", "flow_dissector", "cgroup_sysctl", "raw_tracepoint_writable",
    "cgroup_sockopt", "tracing", "struct_ops", "ext", "lsm", "sk_lookup", "syscall", "netfilter",
)  # fmt: skip
"""Names of the types of programs by number (<linux/bpf.h>)."""


class Mount(NamedTuple):
    """One mount, as mountinfo has it."""

    mount_ns: int
    mount_id: int
    parent_id: int
    device: str
    """``MAJOR:MINOR``."""
    root: str
    """What of the file system is mounted."""
    path: str
    """Where, as the processes of the namespace see it."""
    options: str
    propagation: str | None
    fs_type: str
    source: str
    super_options: str


class Module(NamedTuple):
    """One loaded kernel module."""

    name: str
    size: int
    references: int
    used_by: list[str]
    state: str
    address: str | None
    taints: str | None


class Program(NamedTuple):
    """One loaded BPF program."""

    id: int
    type: str
    name: str | None
    tag: str
    uid: int
    load_ns: int
    """Since boot."""
    size: int
    maps: list[int]


def mounts(mount_ns: int, content: bytes) -> Iterator[Mount]:
    """Read a mountinfo file.

    Args:
        mount_ns: Inode of the mount namespace that it is of.
        content: The file.

    Yields:
        Its mounts; lines that are none are passed over.
    """
    for line in content.split(b"\n"):
        first, found, rest = line.partition(b" - ")
        fields, more = first.split(b" "), rest.split(b" ", 2)
        if not found or len(fields) < _MOUNT_FIELDS or len(more) < 2:  # noqa: PLR2004
            continue
        if not fields[0].isdigit() or not fields[1].isdigit():
            continue
        yield Mount(
            mount_ns,
            int(fields[0]),
            int(fields[1]),
            _text(fields[2]),
            _text(fields[3]),
            _text(fields[4]),
            _text(fields[5]),
            " ".join(_text(field) for field in fields[6:]) or None,
            _text(more[0]),
            _text(more[1]),
            _text(more[2]) if len(more) > 2 else "",  # noqa: PLR2004
        )


def _text(raw: bytes) -> str:
    """A field: blanks and line feeds stand in it as octal numbers."""
    plain = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), raw)
    return text.cut(text.clean(plain)[0])[0]


def modules(root: str = "/proc") -> list[Module]:
    """The loaded modules.

    Args:
        root: Where proc is mounted.

    Returns:
        The modules, by name; none in a kernel that takes no modules.
    """
    try:
        lines = (Path(root) / "modules").read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        fields = text.clean(line)[0].split()
        if len(fields) < _MODULE_FIELDS or not (fields[1].isdigit() and fields[2].isdigit()):
            continue
        name, size, references, used_by, state, address, *taints = fields
        users = [user for user in used_by.split(",") if user not in {"", "-"}]
        # Who may not know addresses is shown zeros.
        place = address if address.strip("0x") else None
        taint = taints[0].strip("()") if taints else None
        found.append(Module(name, int(size), int(references), users, state.lower(), place, taint))
    return sorted(found)


def programs() -> list[Program]:
    """The loaded BPF programs, this recorder's included.

    Returns:
        The programs, by id.

    Raises:
        KcapError: This user may not ask, or this kernel has no such call.
    """
    found = []
    for number in system.program_ids():
        fd = system.program_fd(number)
        if fd is None:
            continue  # unloaded meanwhile
        try:
            info = system.program_info(fd)
        finally:
            os.close(fd)
        known = info.type < len(_PROGRAM_TYPES)
        found.append(
            Program(
                info.id,
                _PROGRAM_TYPES[info.type] if known else str(info.type),
                info.name or None,
                info.tag,
                info.uid,
                info.load_time_ns,
                info.instructions_bytes,
                list(info.map_ids),
            )
        )
    return sorted(found)
