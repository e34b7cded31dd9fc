"""Marks of fanotify on whole file systems, also on those that only other processes see.

A group of marks belongs to one reader, so that a server that does not answer costs only what is
on its own file systems. Nothing is held open: a marked file system can be unmounted.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kcap.errors import KcapError, PrivilegeError

OPEN_EXEC: Final = 0x1000
CLOSE_WRITE: Final = 0x8
CLOSE_NOWRITE: Final = 0x10
OVERFLOW: Final = 0x4000

EVENT: Final = struct.Struct("=IBBHQii")
"""struct fanotify_event_metadata."""

_CLOEXEC, _NONBLOCK, _UNLIMITED_QUEUE, _UNLIMITED_MARKS = 0x1, 0x2, 0x10, 0x20
_ADD, _REMOVE, _FLUSH, _FILESYSTEM = 0x1, 0x2, 0x80, 0x100
_MODIFY: Final = 0x2
_IGNORE_SURVIVING: Final = 0x20 | 0x40
_EVICTABLE: Final = 0x200
_O_NOATIME: Final = 0o1000000
_O_LARGEFILE: Final = 0o100000
_AT_FDCWD: Final = -100
_OPENAT2: Final = 437
_RESOLVE: Final = 0x02 | 0x04
"""No links of /proc, and no symbolic ones: they would lead elsewhere."""
_O_PATH: Final = 0o10000000

SPECIAL: Final = frozenset({
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts",
    "devtmpfs", "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nfsd", "nsfs", "pipefs", "proc",
    "pstore", "rpc_pipefs", "securityfs", "selinuxfs", "smackfs", "sockfs", "sysfs", "tracefs",
})  # fmt: skip
"""Kinds of file systems without files of their own: opening one may do something."""

_REMOTE: Final = frozenset({
    "9p", "afs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
    "nfs4", "ocfs2", "orangefs", "smb3", "smbfs", "virtiofs", "vboxsf",
})  # fmt: skip
_NS_GET_USERNS: Final = 0xB701
_MOUNT_BYTES: Final = 8 << 20
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """A file system, and where a process has it."""

    dev: int
    """As the kernel has it."""
    kind: str
    point: bytes
    """A path below the root of the process."""
    pid: int
    users: bool = False
    """Only in namespaces that somebody without rights may have made: an overlay there may lie on
    a server of his."""

    @property
    def special(self) -> bool:
        """Whether it has no files of its own."""
        return self.kind in SPECIAL

    @property
    def remote(self) -> bool:
        """Whether somebody else answers for it, who may not."""
        fuse = self.kind.partition(".")[0] in {"fuse", "fuseblk"}
        return self.users or fuse or self.kind in _REMOTE


def group() -> int:
    """Make a group without marks.

    Returns:
        Its descriptor; what it tells is opened for reading, without waiting, by whoever reads it.

    Raises:
        PrivilegeError: This process may not.
        KcapError: This kernel has no fanotify.
    """
    # An event about a FIFO or a device would make who reads it wait, or change its last access.
    opening = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | _O_LARGEFILE | _O_NOATIME
    flags = _CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE | _UNLIMITED_MARKS
    made = int(_libc().fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(opening)))
    if made < 0:
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise PrivilegeError("files can't be watched: fanotify takes CAP_SYS_ADMIN")
        raise KcapError(f"files can't be watched (fanotify_init): {os.strerror(number)}")
    return made


def flush(group_: int) -> None:
    """Take all marks of a group away.

    Args:
        group_: Its descriptor.
    """
    for more in (_FILESYSTEM, 0):
        _libc().fanotify_mark(group_, _FLUSH | more, ctypes.c_uint64(0), _AT_FDCWD, None)


def ignore(group_: int, file: int, mask: int) -> None:
    """Hear no more of one file; where the kernel does not know how, it is heard of again.

    Args:
        group_: Descriptor of the group.
        file: Descriptor of the file.
        mask: Of what.
    """
    path = b"/proc/self/fd/%d" % file
    flags = _ADD | _IGNORE_SURVIVING
    for more in (_EVICTABLE, 0):
        if _libc().fanotify_mark(group_, flags | more, ctypes.c_uint64(mask), _AT_FDCWD, path) == 0:
            return


def mark(group_: int, mount: Mount, mask: int) -> bool:
    """Hear of all files of a file system.

    Args:
        group_: Descriptor of the group.
        mount: The file system.
        mask: What is heard.

    Returns:
        Whether nothing was heard of it before.

    Raises:
        OSError: It is gone, or the kernel does not let us.
    """
    root = os.open(f"/proc/{mount.pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = _below(root, mount.point.lstrip(b"/") or b".")
    finally:
        os.close(root)
    try:
        if not mount.remote and mount.kind != "btrfs":
            about = os.fstat(place)
            found = os.major(about.st_dev) << 20 | os.minor(about.st_dev)
            if found != mount.dev:
                raise OSError(errno.ESTALE, "something else is mounted above it")
        path = b"/proc/self/fd/%d" % place
        # Nobody hears of changes: to end that does nothing to a mark, and fails where is none.
        nothing = (_REMOVE | _FILESYSTEM, ctypes.c_uint64(_MODIFY), _AT_FDCWD, path)
        fresh = _libc().fanotify_mark(group_, *nothing) < 0 and ctypes.get_errno() == errno.ENOENT
        flags = _ADD | _FILESYSTEM
        if _libc().fanotify_mark(group_, flags, ctypes.c_uint64(mask), _AT_FDCWD, path) < 0:
            raise OSError(ctypes.get_errno(), "fanotify_mark")
    finally:
        os.close(place)
    return fresh


def _below(root: int, path: bytes) -> int:
    """Open a place, as such, without following a link."""
    how = ctypes.create_string_buffer(struct.pack("=QQQ", _O_PATH | os.O_CLOEXEC, 0, _RESOLVE), 24)
    words = (ctypes.c_long(root), ctypes.c_char_p(path), how, ctypes.c_size_t(24))
    made = int(_libc().syscall(ctypes.c_long(_OPENAT2), *words))
    if made < 0:
        raise OSError(ctypes.get_errno(), "openat2")
    return made


class Namespaces:
    """The mount namespaces of the processes there are."""

    def __init__(self) -> None:
        self._ours = _inode("/proc/self/ns/user")

    def mounts(self) -> Iterator[Mount]:
        """What is mounted, anywhere.

        Yields:
            The mounts of each namespace, by one of its processes; those of users' own namespaces,
            which belong to other user namespaces than ours, come last.
        """
        found: dict[int, int] = {}
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208
        for pid in pids:
            number = _inode(f"/proc/{pid}/ns/mnt")
            if number is not None and number not in found:
                found[number] = pid
        known, others = set[int](), []
        for pid in found.values():
            if self._is_users(pid):
                others.append(pid)
                continue
            for mount in mounts(pid):
                known.add(mount.dev)
                yield mount
        for pid in others:
            for mount in mounts(pid):
                yield mount._replace(users=mount.dev not in known)

    def _is_users(self, pid: int) -> bool:
        """Whether a process sees what somebody else than this host's root has mounted."""
        try:
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False  # it has ended, and nothing is found there
        try:
            owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
        except OSError:
            return False
        finally:
            os.close(namespace)
        try:
            return os.fstat(owner).st_ino != self._ours
        finally:
            os.close(owner)


def _inode(path: str) -> int | None:
    """What numbers a namespace; None where there is none."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116
    except OSError:
        return None


def mounts(pid: int) -> Iterator[Mount]:
    """What is mounted where a process looks.

    Args:
        pid: The process.

    Yields:
        The mounts, in the order of the kernel.
    """
    try:
        with Path(f"/proc/{pid}/mountinfo").open("rb") as file:
            text = file.read(_MOUNT_BYTES)
    except OSError:
        return  # it has ended
    for line in text.splitlines():
        found = parsed(line, pid)
        if found is not None:
            yield found


def parsed(line: bytes, pid: int) -> Mount | None:
    """Read a line of mountinfo.

    Args:
        line: The line.
        pid: Whose it is.

    Returns:
        The mount; None where the line is none.
    """
    fields = line.split(b" ")
    try:
        behind = fields.index(b"-", 6)
        major, minor = (int(part) for part in fields[2].split(b":"))
        kind = fields[behind + 1].decode("ascii", "replace")
    except (ValueError, IndexError):
        return None
    point = _ESCAPED.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), fields[4])
    return Mount(major << 20 | minor, kind, point, pid)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
