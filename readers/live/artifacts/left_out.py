"""Executed files that were left out: a later execution that is recorded may be of the same file."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from kcap.model.artifact import Artifact, Content, Parts
from kcap.model.naming import argument
from kcap.model.side import EventLoss
from kcap.model.tracee_names import kernel_device

LEFT_OUT_BYTES: Final = 128 << 20
"""Content that is held; beyond, the oldest is let go."""

GONE_MAX: Final = 1 << 16
"""Hashes of what was let go that are remembered."""

UNHELD: Final = (
    "lost",
    "artifacts: programs that were executed outside of what is recorded first, and let go of since",
)
"""Kind of loss, and reason."""

OF_ROW: Final = (
    "tid", "uid", "process_name", "process_key", "exe", "container_id", "cgroup_id",
)  # fmt: skip
"""What an artifact has of its event beside time and process id."""

_OF_FIRST: Final = frozenset({*OF_ROW, "pid", "time_ns", "role"})
_OF_FILE: Final = frozenset(
    {
        "dev", "inode", "mode", "mtime_ns", "ctime_ns", "file_type", "path_raw",
        "changed", "deleted", "presumed", "was_executable",
    }
)  # fmt: skip
_DEV: Final = argument("dev")
_INODE: Final = argument("inode")

_ENTRY_BYTES: Final = 4096
"""What an entry takes beside its content, roughly; so there are 32,768 at most."""

_About = TypeVar("_About")


class LeftOut(Generic[_About]):
    """What readers gave, as they give each content of a file once, and nobody kept.

    Args:
        bytes_max: How much is held.

    Example:
        >>> held = LeftOut[str](bytes_max=8192)
        >>> for name in ("a", "b", "c"):
        ...     held.put(name, name.upper(), Parts(()))
        >>> held.take("c"), held.take("c"), held.is_gone("a")
        (('C', Parts(held=())), None, True)
    """

    def __init__(self, bytes_max: int = LEFT_OUT_BYTES) -> None:
        self._bytes_max = bytes_max
        self._entries: OrderedDict[str, tuple[_About, Parts, int]] = OrderedDict()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._bytes = 0

    def put(self, sha256: str, about: _About, content: Content) -> None:
        """Hold something, as the latest.

        Args:
            sha256: Its hash; what was held under it goes.
            about: What is known of it.
            content: Its bytes, which are copied: whoever gave them has little room.
        """
        self.drop(sha256)
        size = _ENTRY_BYTES + content.nbytes
        if size > self._bytes_max:
            self._let_go(sha256)
            return
        try:
            copied = Parts(tuple(content.parts()))
        except OSError:
            self._let_go(sha256)
            return
        self._entries[sha256] = about, copied, size
        self._bytes += size
        while self._bytes > self._bytes_max:
            oldest, (_, _, freed) = self._entries.popitem(last=False)
            self._bytes -= freed
            self._let_go(oldest)

    def __contains__(self, sha256: object) -> bool:
        """Whether something is held, or was let go."""
        return sha256 in self._entries or sha256 in self._gone

    def take(self, sha256: str) -> tuple[_About, Parts] | None:
        """Have what is held, which is not held from then on.

        Args:
            sha256: Its hash.

        Returns:
            What is known of it, and its content; None where nothing is held.
        """
        found = self._entries.pop(sha256, None)
        if found is None:
            return None
        about, content, size = found
        self._bytes -= size
        return about, content

    def is_gone(self, sha256: str) -> bool:
        """Whether something was let go that is asked for now; that is said once.

        Args:
            sha256: Its hash.

        Returns:
            True where it was.
        """
        gone = sha256 in self._gone
        self._gone.pop(sha256, None)
        return gone

    def drop(self, sha256: str) -> None:
        """Hold something no longer, as it was kept.

        Args:
            sha256: Its hash.
        """
        self.take(sha256)
        self._gone.pop(sha256, None)

    def _let_go(self, sha256: str) -> None:
        self._gone[sha256] = None
        if len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)


def executed_again(artifact: Artifact, row: Mapping[str, Any]) -> Artifact:
    """An executed file, as it would have been given with another execution.

    Args:
        artifact: As it was given.
        row: The event of the other execution, by columns.

    Returns:
        The artifact of that.
    """
    details = {name: value for name, value in artifact.details.items() if name not in _OF_FIRST}
    path = artifact.path
    file = kernel_device(details.get("dev", 0)), details.get("inode")
    if file != (row.get(_DEV), row.get(_INODE)):
        # Another file with that content; what is known of it, its event has.
        details = {name: value for name, value in details.items() if name not in _OF_FILE}
        path = row.get(argument("pathname")) or row.get("exe")
    details |= {"time_ns": row.get("ts"), "pid": row.get("pid"), "role": "executable"}
    details |= {name: row[name] for name in OF_ROW if row.get(name) is not None}
    return replace(
        artifact, path=path, origin=row.get("origin"), ord=row.get("ord"), details=details
    )


def not_held(row: Mapping[str, Any], source: str | None) -> EventLoss:
    """What an execution lacks whose file was let go.

    Args:
        row: Its event, by columns.
        source: Id of the source.

    Returns:
        The loss.
    """
    kind, reason = UNHELD
    ts, place = row.get("ts"), row.get("ord")
    return EventLoss(
        kind, 1, reason, source, start_ns=ts, end_ns=ts,
        origin=row.get("origin"), ords=() if place is None else (place,),
    )  # fmt: skip
