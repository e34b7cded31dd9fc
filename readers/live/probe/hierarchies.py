"""Where control groups are mounted."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

_MOUNT_OPTIONS: Final = frozenset(
    {"rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "xattr", "clone_children"}
)


class Mounted(NamedTuple):
    """A hierarchy of control groups that is mounted."""

    path: str
    controllers: str
    """Of version 1, as they are mounted: ``cpu,cpuacct``; empty for version 2."""


def hierarchies(root: str = "/proc") -> list[Mounted]:
    """The hierarchies of control groups that are mounted.

    Args:
        root: Where proc is mounted.

    Returns:
        Each one once, that of version 2 first.
    """
    try:
        lines = Path(root, "mounts").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    found: dict[str, Mounted] = {}
    for line in lines:
        _, path, kind, options, *_ = [*line.split(" "), "", "", "", ""]
        if kind == "cgroup2":
            found.setdefault("", Mounted(path, ""))
        elif kind == "cgroup":
            names = [o for o in options.split(",") if o not in _MOUNT_OPTIONS]
            found.setdefault(",".join(names), Mounted(path, ",".join(names)))
    return [found[name] for name in sorted(found)]
