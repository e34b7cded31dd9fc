"""Copies of files on their way to the worker: each content of each file once."""

from __future__ import annotations

import functools
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kcap.model.tracee_names import kernel_device
from kcap.readers.live.artifacts import copying, files, protocol
from kcap.readers.live.artifacts.protocol import WORKING, HashNote, Shared
from kcap.readers.live.artifacts.spool import Sender
from kcap.readers.live.artifacts.wanted import Wanted

if TYPE_CHECKING:
    from kcap.readers.live.artifacts.agent import Task

_RACY_NS: Final = 100_000_000
"""A file that changed so shortly ago may change again without its times telling."""

_KNOWN_MAX: Final = 1 << 16
_kernel_device = functools.lru_cache(maxsize=256)(kernel_device)


class Known(NamedTuple):
    """What was read of a file before."""

    sha256: str | None
    settled: bool
    """A change since would show in its times."""


class Keeper:
    """Copies files, each content of each of them once.

    Args:
        task: See there.
        role: Which reader.
        sender: Where artifacts go.
    """

    def __init__(self, task: Task, role: int, sender: Sender) -> None:
        self._wanted = task.wanted
        self._shared = task.shared
        self._role = role
        self._sender = sender
        self._known: OrderedDict[tuple[object, ...], Known] = OrderedDict()
        self._was_known = False
        self._era = task.shared.era

    def executed(
        self, file: int, about: os.stat_result, pid: int, more: Mapping[str, Any] | None = None
    ) -> None:
        """A file was executed, or helped with that: a script's interpreter, a loader.

        Args:
            file: Its descriptor.
            about: What is known of it.
            pid: The process.
            more: What else is known.
        """
        found = self._once(file, about, "exec", pid, None, more)
        self._note(about, pid, found)
        if not self._was_known:
            self._sender.flush()  # somebody waits for it

    def unknown(self, pid: int, dev: int, inode: int, ctime_ns: int) -> None:
        """A file was executed that can't be read any more."""
        self._sender.note(HashNote(pid, protocol.TOO_LATE, dev, inode, ctime_ns, 0, bytes(32)))

    def closed(
        self,
        file: int,
        about: os.stat_result,
        kind: str,
        pid: int,
        path: bytes,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """A file was closed, or loaded as a module.

        Args:
            file: Its descriptor.
            about: What is known of it.
            kind: ``write``, ``read`` or ``module``.
            pid: The process.
            path: As that has it.
            more: What else is known.
        """
        self._once(file, about, kind, pid, path, more)

    def _note(self, about: os.stat_result, pid: int, sha256: str | None) -> None:
        told = b"" if sha256 is None else bytes.fromhex(sha256)
        dev = _kernel_device(about.st_dev)
        known = protocol.NO_HASH if sha256 is None else protocol.HASHED
        times = (about.st_ctime_ns, about.st_mtime_ns)
        note = HashNote(pid, known, dev, about.st_ino, *times, told.ljust(32, b"\0"))
        self._sender.note(note)

    def _once(
        self,
        file: int,
        about: os.stat_result,
        kind: str,
        pid: int,
        path: bytes | None,
        more: Mapping[str, Any] | None,
    ) -> str | None:
        """Copy a file, unless it is as it was; its hash, if it was one content all the time."""
        times = (about.st_ctime_ns, about.st_mtime_ns)
        key = (kind, about.st_dev, about.st_ino, *times, about.st_size)
        if self._era != self._shared.era:
            self._era = self._shared.era
            self._known.clear()
        known = self._known.get(key)
        self._was_known = known is not None and known.settled
        if known is not None and known.settled:
            self._known.move_to_end(key)
            return known.sha256
        settled = time.time_ns() - max(times) > _RACY_NS
        told = described(file, about, kind, pid, path)
        told |= more or {}
        self._shared.at(self._role, WORKING, told)
        copied = self._copy(file, kind)
        sha256 = copied.hashes.get("sha256")
        self._known[key] = Known(sha256, settled and not copied.changed)
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
        if known is not None and sha256 is not None and known.sha256 == sha256:
            if copied.memory is not None:
                os.close(copied.memory)
            return sha256
        self._sender.artifact(told, copied)
        return None if copied.changed else sha256

    def _copy(self, file: int, kind: str) -> copying.Copied:
        wanted = self._wanted
        most, reason = limit(wanted, self._shared, self._sender)
        if kind == "exec" and wanted.hash_only:
            most, reason = 0, "only its hash was asked for"
        return copying.copy(
            file,
            most_bytes=most,
            hashes=wanted.hashes,
            step=lambda: self._shared.step(self._role),
            reason=reason,
        )


def limit(wanted: Wanted, shared: Shared, sender: Sender) -> tuple[int, str | None]:
    """How much of an artifact is kept, and why no more, where that is not its own limit.

    Args:
        wanted: The artifacts of the recording.
        shared: Where the worker says what it takes.
        sender: Where content waits.

    Returns:
        Bytes, and the reason.
    """
    most = wanted.caps.artifact_bytes
    if shared.hash_only:
        return 0, "the artifacts of the capture are as large as they may be"
    if sender.room_bytes < most:
        return sender.room_bytes, "the recorder had no time to take it"
    return most, None


def described(
    file: int, about: os.stat_result, kind: str, pid: int, path: bytes | None = None
) -> dict[str, Any]:
    """What is known of a file beside its content.

    Args:
        file: Its descriptor.
        about: What stat(2) says.
        kind: Of the artifact.
        pid: The process.
        path: As that has it, where that is known.

    Returns:
        Plain JSON values.
    """
    if path is None:
        path = files.within_root(files.path_of(file, about), pid)
    return {
        "kind": kind,
        "time_ns": time.time_ns(),
        "pid": pid,
        "path": path[: protocol.PATH_BYTES].decode("latin-1"),
        "dev": about.st_dev,
        "inode": about.st_ino,
        "mode": about.st_mode,
        "size": about.st_size,
        "mtime_ns": about.st_mtime_ns,
        "ctime_ns": about.st_ctime_ns,
        "deleted": not about.st_nlink,
        "script": kind == "exec" and files.begins(file, b"#!"),
        "process_name": name_of(pid),
    }


def name_of(pid: int) -> str | None:
    """What a process is called.

    Args:
        pid: The process.

    Returns:
        Its name; None where it has ended.
    """
    try:
        return Path(f"/proc/{pid}/comm").read_bytes()[:-1].decode("utf-8", "backslashreplace")
    except OSError:
        return None
