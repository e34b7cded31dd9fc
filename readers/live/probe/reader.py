"""The process that reads, and may hang: answers one client, one request after the other.

It knows nothing of what it reads: who asked takes it apart.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import stat
import struct
import time
from typing import Final

from kcap.readers.live.probe import wire
from kcap.readers.live.probe.hierarchies import hierarchies
from kcap.readers.live.probe.wire import Item, Op

_READ_BYTES: Final = 1 << 16
_AT_ONCE: Final = re.compile(r"(?:task/\d+/)?(?:stat|status|comm|cgroup)|fdinfo/\d+")
"""Files that the kernel gives whole to one read that has room."""

_FLUSH_BYTES: Final = 1 << 16
_FLUSH_S: Final = 0.02
"""So often something is told, where reading takes long: who waits knows that nothing hangs."""

_KERNFS: Final = 0xFE
"""FILEID_KERNFS: a handle that consists of a group's id."""
_HANDLE: Final = struct.Struct("=IiQ")
_ID_BYTES: Final = 8


def content(folder: int, name: str, most: int = wire.CONTENT_BYTES) -> bytes:
    """Read a file below a folder.

    Args:
        folder: Descriptor of the folder.
        name: The file's path in it.
        most: Bytes to read; the rest is left.

    Returns:
        Its bytes.

    Raises:
        OSError: It is gone, or not for us.
    """
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        first = os.read(file, min(_READ_BYTES, most))
        if len(first) < _READ_BYTES and _AT_ONCE.fullmatch(name):
            return first
        parts, left = [first], most - len(first)
        while parts[-1] and left > 0:  # some files of /proc give a page at a time
            parts.append(os.read(file, min(_READ_BYTES, left)))
            left -= len(parts[-1])
    finally:
        os.close(file)
    return b"".join(parts)


def link(folder: int, name: str) -> bytes:
    """Read a link below a folder.

    Args:
        folder: Descriptor of the folder.
        name: The link's path in it.

    Returns:
        Where it leads.

    Raises:
        OSError: It is gone, or not for us.
    """
    return os.readlink(name.encode(), dir_fd=folder)


def numbers(folder: int, name: str) -> list[int]:
    """The numbers that a folder below a folder holds.

    Args:
        folder: Descriptor of the outer one.
        name: The inner one's path in it.

    Returns:
        The numbers, ascending.

    Raises:
        OSError: It is gone, or not for us.
    """
    within = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return sorted(int(entry) for entry in os.listdir(within))  # noqa: PTH208
    finally:
        os.close(within)


def group_path(mount: int, mounted: str, number: int) -> bytes:
    """The path of a control group.

    Args:
        mount: Descriptor of where its hierarchy is mounted.
        mounted: That path.
        number: The group's id.

    Returns:
        The path within the hierarchy.

    Raises:
        OSError: The group is gone, or this process may not ask.
    """
    handle = ctypes.create_string_buffer(_HANDLE.pack(_ID_BYTES, _KERNFS, number))
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "open_by_handle_at"):
        raise OSError(errno.ENOSYS, "open_by_handle_at")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    folder = libc.open_by_handle_at(mount, handle, flags)
    if folder < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    try:
        target = os.readlink(f"/proc/self/fd/{folder}".encode())  # noqa: PTH115
    finally:
        os.close(folder)
    return target.removeprefix(os.fsencode(mounted.rstrip("/"))) or b"/"


def state(root: str, item: Item) -> bytes:
    """Read a file or folder that a container runtime writes.

    Args:
        root: The root of the host's file system, without the last slash.
        item: `Op.FILE` or `Op.NAMES`.

    Returns:
        The file's bytes; the names in the folder, sorted, with zeros between them.

    Raises:
        OSError: It is gone, no regular file, or too large.
    """
    path = os.fsencode(root + item.name)
    if item.op is Op.NAMES:
        return b"\0".join(sorted(os.listdir(path))[: wire.ELEMENTS_MAX])  # noqa: PTH208
    # A FIFO in its place must not make anyone wait.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_size > item.most:
            raise OSError(errno.EFBIG, "no regular file, or too large", item.name)
        with os.fdopen(file, "rb", closefd=False) as stream:
            return stream.read(item.most)
    finally:
        os.close(file)


def serve(connection: socket.socket, *, proc: str, root: str) -> None:
    """Answer requests until the client is gone.

    Args:
        connection: The client.
        proc: Where the proc file system is mounted.
        root: The root of the host's file system, without the last slash.

    Raises:
        ValueError: The client asked for what may not be asked for.
        OSError: The client is gone.
    """
    _Reader(connection, proc, root).run()


class _Reader:
    """Answers one client."""

    def __init__(self, connection: socket.socket, proc: str, root: str) -> None:
        self._connection = connection
        self._proc = proc
        self._root = root
        self._mounts: dict[str, tuple[int, str]] | None = None
        self._listed: dict[str, list[int]] = {}
        self._out = bytearray()
        self._told_s = 0.0
        self._careful = False

    def run(self) -> None:
        head = self._exactly(wire.REQUEST.size)
        while head:
            length, pid, count, flags = wire.REQUEST.unpack(head)
            if length > wire.REQUEST_BYTES:
                raise ValueError(f"a request of {length} bytes")
            wanted = wire.items(self._exactly(length), count)
            self._careful = bool(flags & wire.CAREFUL)
            self._told_s = time.monotonic()
            self._answer(pid, wanted)
            self._flush()
            head = self._exactly(wire.REQUEST.size)

    def _exactly(self, count: int) -> bytes:
        """So many bytes, none where the client has gone."""
        parts = []
        while count:
            part = self._connection.recv(count)
            if not part:
                return b""
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _answer(self, pid: int, wanted: tuple[Item, ...]) -> None:
        folder = -1
        self._listed = {}
        if pid != wire.NOBODY:
            try:
                path = f"{self._proc}/{pid}"
                # It belongs to the process and not to its id: what is read below is never another's
                folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                self._tell(wire.END, error.errno or -1, wire.WHOLE, b"")
                return
        try:
            for at, item in enumerate(wanted):
                if item.memory and at > 1:
                    self._flush()
                self._one(at, item, folder, pid)
        finally:
            if folder >= 0:
                os.close(folder)
        self._tell(wire.END, 0, wire.WHOLE, b"")

    def _one(self, at: int, item: Item, folder: int, pid: int) -> None:
        try:
            every = "*" in item.name and item.op in {Op.CONTENT, Op.LINK}
            read = self._every(at, item, folder, pid) if every else self._read(folder, item)
        except OSError as error:
            self._tell(at, error.errno or -1, wire.WHOLE, b"")
        else:
            self._tell(at, 0, wire.WHOLE, read)

    def _numbers(self, folder: int, name: str) -> list[int]:
        """What a folder of the process holds; looked at once for all items that need it."""
        # What fdinfo/ lists is what fd/ lists.
        name = name.partition("/")[0].replace("fdinfo", "fd")
        if name not in self._listed:
            self._listed[name] = numbers(folder, name)
        return self._listed[name]

    def _every(self, at: int, item: Item, folder: int, pid: int) -> bytes:
        """Read an item of each number; what stands at its end."""
        every, done, told = self._numbers(folder, item.name), 0, 0
        for number in every[: wire.ELEMENTS_MAX]:
            if told > wire.ELEMENTS_BYTES:
                break
            done += 1
            if number == pid and item.name.startswith("task/"):
                continue  # what its first thread has is what the process has
            name = item.name.replace("*", str(number))
            try:
                read = self._read(folder, Item(item.op, name, item.most))
            except OSError:
                continue  # closed, or ended, meanwhile
            told += len(read)
            self._tell(at, 0, number, read)
        return wire.LEFT_OUT.pack(len(every) - done)

    def _read(self, folder: int, item: Item) -> bytes:
        match item.op:
            case Op.CONTENT:
                return content(folder, item.name, item.most)
            case Op.LINK:
                return link(folder, item.name)
            case Op.NUMBERS:
                return wire.pack_numbers(self._numbers(folder, item.name))
            case Op.CGROUP:
                return self._group(item.name)
            case Op.FILE | Op.NAMES:
                return state(self._root, item)

    def _group(self, name: str) -> bytes:
        number, _, controllers = name.partition(":")
        if self._mounts is None:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._mounts = {
                each.controllers: (os.open(each.path, flags), each.path)
                for each in hierarchies(self._proc)
            }
        if controllers not in self._mounts:
            raise FileNotFoundError(errno.ENOENT, "no such hierarchy", controllers)
        return group_path(*self._mounts[controllers], int(number))

    def _tell(self, at: int, error: int, element: int, data: bytes) -> None:
        self._out += wire.ANSWER.pack(at, error, element, len(data))
        self._out += data
        long = time.monotonic() - self._told_s > _FLUSH_S
        if self._careful or long or len(self._out) > _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            self._connection.sendall(self._out)
            self._out = bytearray()
            self._told_s = time.monotonic()
