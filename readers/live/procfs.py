"""What /proc tells of processes: the seed of the process table, and the image after an exec.

A process can end, or execute something else, between an event and the look at /proc. That is
normal: what is gone is None, and values read here carry the provenance ``procfs``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kcap.model import text
from kcap.model.batch import Batch
from kcap.state import Process, containers, process_key
from kcap.state.processes import FACTS, PASSWD, PROCFS, to_batch

_READ_BYTES: Final = 1 << 16

CONTENT_BYTES: Final = 8 << 20
"""What is read of a file: an argument list may take some MiB."""

_UID: Final = re.compile(rb"^Uid:\t(\d+)", re.MULTILINE)
_GID: Final = re.compile(rb"^Gid:\t(\d+)", re.MULTILINE)

# Fields of /proc/PID/stat behind the name, counted from the state (proc_pid_stat(5)).
_STAT_PPID: Final = 1
_STAT_SESSION: Final = 3
_STAT_START: Final = 19


class Image(NamedTuple):
    """A process as /proc shows it at one moment."""

    pid: int
    ppid: int
    session: int
    start_ns: int
    """Since boot, in steps of a clock tick (10 ms)."""
    name: str | bytes
    exe: str | bytes | None
    argv: list[str] | None
    """Bytes that are no UTF-8 stand as lone surrogates (PEP 383), so that nothing is lost."""
    cmdline: str | bytes | None
    cwd: str | bytes | None
    uid: int | None
    gid: int | None
    user: str | None
    container_id: str | None


class ProcFS:
    """Reads processes out of a proc file system.

    Args:
        root: Where it is mounted.
        users: The file that names users.
    """

    def __init__(self, root: str = "/proc", users: str = "/etc/passwd") -> None:
        self.root = root
        """Where it is mounted."""
        self._passwd = Path(users)
        self._tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
        self._users: dict[int, str] = {}
        self._users_mtime_ns = -1

    def image(
        self, pid: int, *, cwd: bool = False, started_by_ns: int | None = None
    ) -> Image | None:
        """Look at one process.

        Args:
            pid: Its id.
            cwd: Read the working directory too.
            started_by_ns: Time since boot that the process must have started at; a younger one
                has the same pid but is another process.

        Returns:
            What could be read, None where the process is gone or another one.
        """
        with self.folder(pid) as folder:
            if folder is None:
                return None
            return self.image_in(folder, pid, cwd=cwd, started_by_ns=started_by_ns)

    @contextlib.contextmanager
    def folder(self, pid: int) -> Iterator[int | None]:
        """The folder of a process, open as long as it is needed.

        Args:
            pid: The process.

        Yields:
            Its descriptor, which belongs to the process and not to its pid: what is read below it
            is never another's. None where the process is gone.
        """
        try:
            folder = os.open(f"{self.root}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield None
            return
        try:
            yield folder
        finally:
            os.close(folder)

    def image_in(
        self, folder: int, pid: int, *, cwd: bool = False, started_by_ns: int | None = None
    ) -> Image | None:
        """Look at the process that a folder belongs to.

        Args:
            folder: Descriptor of its folder.
            pid: Its id.
            cwd: See `image`.
            started_by_ns: See `image`.

        Returns:
            See `image`.
        """
        stat = content(folder, "stat")
        if stat is None:
            return None
        # The name stands in parentheses and may hold any byte, parentheses and spaces too.
        opening, closing = stat.find(b"("), stat.rfind(b")")
        fields = stat[closing + 2 :].split()
        if opening < 0 or len(fields) <= _STAT_START:
            return None
        start_ns = int(fields[_STAT_START]) * self._tick_ns
        if started_by_ns is not None and start_ns > started_by_ns:
            return None
        arguments = content(folder, "cmdline")
        status = content(folder, "status") or b""
        uid, gid = _number(_UID, status), _number(_GID, status)
        return Image(
            pid=pid,
            ppid=int(fields[_STAT_PPID]),
            session=int(fields[_STAT_SESSION]),
            start_ns=start_ns,
            name=plain(stat[opening + 1 : closing]),
            exe=link(folder, "exe"),
            argv=_argv(arguments),
            cmdline=_cmdline(arguments),
            cwd=link(folder, "cwd") if cwd else None,
            uid=uid,
            gid=gid,
            user=None if uid is None else self.user(uid),
            container_id=container_id(content(folder, "cgroup") or b""),
        )

    def images(self) -> Iterator[Image]:
        """Look at all processes, in order of pid.

        Yields:
            Those that were still there.
        """
        for pid in self.pids():
            image = self.image(pid, cwd=True)
            if image is not None:
                yield image

    def pids(self) -> list[int]:
        """The ids of all processes, ascending."""
        return sorted(int(name) for name in os.listdir(self.root) if name.isdigit())  # noqa: PTH208

    def user(self, uid: int) -> str | None:
        """The name of a user.

        Read from the passwd file alone: a name service may ask the network, and a recorder must
        not wait for it.

        Args:
            uid: The user's number.

        Returns:
            The name, None where the file has none.
        """
        if uid not in self._users:
            self._read_users()
        return self._users.get(uid)

    def users(self) -> dict[int, str]:
        """The names of all users that the passwd file has, by number."""
        self._read_users()
        return dict(self._users)

    def _read_users(self) -> None:
        """Read the passwd file, if it is another one than last time."""
        try:
            mtime_ns = self._passwd.stat().st_mtime_ns
            if mtime_ns == self._users_mtime_ns:
                return
            lines = self._passwd.read_bytes().splitlines()
        except OSError:
            return  # a container image without users; numbers are kept anyway
        self._users_mtime_ns = mtime_ns
        for line in reversed(lines):  # the first entry of a number is the one that counts
            name, _, rest = line.partition(b":")
            number = rest.split(b":")[1:2]
            if number and number[0].isdigit():
                self._users[int(number[0])] = text.clean(name)[0]


def table(images: list[Image], machine: str) -> Batch:
    """The processes of a machine as the ``processes`` table of a snapshot.

    Args:
        images: The processes.
        machine: The machine's name in process keys.

    Returns:
        The table; every value has the provenance ``procfs``.
    """
    keys = {i.pid: process_key(machine, i.pid, i.start_ns) for i in images}
    return to_batch([(machine, [_process(i, keys) for i in images])])


def _process(image: Image, keys: dict[int, str | None]) -> Process:
    process = Process(
        pid=image.pid,
        process_key=keys[image.pid],
        parent_key=keys.get(image.ppid),
        ppid=image.ppid,
        name=stored(image.name),
        exe=stored(image.exe),
        cmdline=stored(image.cmdline),
        cwd=stored(image.cwd),
        user=image.user,
        uid=image.uid,
        gid=image.gid,
        session=image.session,
        container_id=image.container_id,
        start_ns=image.start_ns,
    )
    tags = ((PASSWD if fact == "user" else PROCFS) for fact in FACTS)
    known = (getattr(process, fact) is not None for fact in FACTS)
    provenance = tuple(tag if has else None for tag, has in zip(tags, known, strict=True))
    return process._replace(provenance=provenance)


def container_id(cgroups: bytes) -> str | None:
    """The container that a process is in.

    Args:
        cgroups: The content of its cgroup file, of version 1, 2 or both.

    Returns:
        The innermost 64 hex digits that a path component consists of, with or without the
        runtime's prefix and a scope's suffix; None outside a container.
    """
    lines = cgroups.decode("utf-8", "replace").splitlines()
    return containers.container_id(line.split(":", 2)[-1] for line in lines)


def content(folder: int, name: str, most: int = CONTENT_BYTES) -> bytes | None:
    """A file below a process's folder.

    Args:
        folder: Descriptor of the folder.
        name: The file's path in it.
        most: Bytes to read; the rest is left.

    Returns:
        Its bytes, None where the process is gone or the file is not for us.
    """
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    try:
        parts = [os.read(file, _READ_BYTES)]
        left = most - len(parts[0])
        while parts[-1] and left > 0:  # some files of /proc give a page at a time
            parts.append(os.read(file, min(_READ_BYTES, left)))
            left -= len(parts[-1])
    except OSError:
        return None
    finally:
        os.close(file)
    return b"".join(parts)


def link(folder: int, name: str) -> str | bytes | None:
    """Where a link below a process's folder leads.

    Args:
        folder: Descriptor of the folder.
        name: The link's path in it.

    Returns:
        Its target as `plain` gives it, None where there is none for us.
    """
    try:
        target = os.readlink(name.encode(), dir_fd=folder)
    except OSError:
        return None
    return plain(target)


def _argv(arguments: bytes | None) -> list[str] | None:
    """The argument list; None for a kernel thread or a process that has none."""
    if not arguments:
        return None
    parts = arguments.removesuffix(b"\0").split(b"\0")
    return [part.decode("utf-8", "surrogateescape") for part in parts]


def _cmdline(arguments: bytes | None) -> str | bytes | None:
    if not arguments:
        return None
    return plain(arguments.removesuffix(b"\0").replace(b"\0", b" "))


def plain(value: bytes) -> str | bytes:
    """Text where the bytes are valid, which columns take faster; else the bytes.

    Args:
        value: What the kernel gave.

    Returns:
        The same.
    """
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def stored(value: str | bytes | None) -> str | None:
    """Text as a column holds it.

    Args:
        value: What the kernel gave.

    Returns:
        Valid text within the limit of a value.
    """
    return None if value is None else text.cut(text.clean(value)[0])[0]


def _number(pattern: re.Pattern[bytes], status: bytes) -> int | None:
    match = pattern.search(status)
    return None if match is None else int(match[1])
