"""The paths of an audit event: what the process said, and which file that was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from kcap.readers.audit_records import (
    BadRecordError,
    Record,
    bits,
    number,
    optional,
    untrusted,
    whole_path,
)
from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.paths import resolve

_AT_FDCWD: Final = -100
_PARENT: Final = b"PARENT"
_DELETE: Final = b"DELETE"
_CREATE: Final = b"CREATE"
_MINOR_BITS: Final = 20
_MODE: Final = 0xFFFF

_PATHS: Final = frozenset({"rel", "opened", "cwd"})
"""Kinds of arguments that are a path seen from where it begins."""

_TWO: Final = {
    "rename": ("oldpath", "newpath"),
    "renameat": ("oldpath", "newpath"),
    "renameat2": ("oldpath", "newpath"),
    "link": ("oldpath", "newpath"),
    "linkat": ("oldpath", "newpath"),
    "symlink": ("target", "linkpath"),
    "symlinkat": ("target", "linkpath"),
    "pivot_root": ("new_root", "put_old"),
    "move_mount": ("from_path", "to_path"),
}
"""Calls with two paths, and the arguments that these are."""


class Item(NamedTuple):
    """A file that a call named, or came by."""

    name: bytes | None
    """As the process spelled it, of a directory on the way only that part."""
    kind: bytes
    """``NORMAL``, ``PARENT``, ``CREATE``, ``DELETE``; ``UNKNOWN`` where it was not found."""
    dev: int | None
    """Major number in the bits from 20 on, minor below: as the kernel has it."""
    inode: int | None
    mode: int | None


class Paths:
    """The files of an event.

    Args:
        records: Its records by type.

    Raises:
        BadRecordError: A record is none of the kernel's.
    """

    DERIVED: Final = frozenset({"pathname", "path", "oldpath", "newpath", "linkpath", "target"})
    """Arguments that are what the process said, seen from its working directory."""

    def __init__(self, records: Mapping[str, Sequence[Record]]) -> None:
        told = [record.fields() for record in records.get("PATH", ())]
        self.items = [_item(fields) for fields in sorted(told, key=_position)]
        """In the order in which the kernel came by them."""
        where = records.get("CWD", ())[:1]
        self.directory = whole_path(where[0].fields().get(b"cwd")) if where else None
        """The working directory."""

    @property
    def named(self) -> list[Item]:
        """Those that the call is about, not the directories that they are in."""
        return [item for item in self.items if item.kind != _PARENT]

    def resolve(self, name: bytes | None, at: int | None = _AT_FDCWD) -> bytes | None:
        """A path as the process means it; links are not followed.

        Args:
            name: The path as it was given.
            at: Descriptor of the directory in which it begins.

        Returns:
            The whole path, None where it is not known.
        """
        if name is None:
            return None
        if name.startswith(b"/"):
            return resolve(name, None)
        if at != _AT_FDCWD or self.directory is None:
            return None
        return resolve(name, self.directory)

    def arguments(self, event: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that are paths, and what files they lead to.

        Args:
            event: The event's name.
            numbers: Its other arguments: descriptors of directories are among them.

        Returns:
            Arguments by name.
        """
        named = self.named
        if not named:
            return {}
        known = events.events().get(event)
        kinds = {item.name: item.kind for item in known.arguments} if known else {}
        bases = _bases(known, numbers)
        if event in _TWO:
            return self._both_paths(event, bases, kinds)
        wanted = [name for name, kind in kinds.items() if kind in _PATHS]
        found = _file(named[0])
        plain = wanted[0] if wanted else "pathname"
        if event == "mount":  # the source comes after, where it is a file at all
            return {**found, "target": self.resolve(named[0].name) or named[0].name}
        spelled = next((name for name in kinds if name.endswith("_arg")), "path_arg")
        return {**found, plain: self.resolve(named[0].name, bases[0]), spelled: named[0].name}

    def _both_paths(
        self, event: str, bases: Sequence[int | None], kinds: Mapping[str, str]
    ) -> dict[str, Any]:
        first, second = _TWO[event]
        named = self.named
        old = next((item for item in named if item.kind == _DELETE), named[0])
        new = next((item for item in named if item.kind == _CREATE), named[-1])
        found: dict[str, Any] = {}
        if old is not new:
            found |= self._one(first, old, bases[0], kinds)
        return found | self._one(second, new, bases[1], kinds)

    def _one(
        self, name: str, item: Item, base: int | None, kinds: Mapping[str, str]
    ) -> dict[str, Any]:
        if kinds.get(name) not in _PATHS:
            return {name: item.name}
        return {name: self.resolve(item.name, base), f"{name}_arg": item.name}


def file_of(paths: Paths, path: bytes | None) -> dict[str, Any]:
    """Which file it is that was executed.

    Args:
        paths: The files of the event: programs and scripts in their order, the dynamic linker last.
        path: The path of the file that runs now, links followed.

    Returns:
        The arguments that say so; none where that is not sure.
    """
    named = [item for item in paths.named if item.inode is not None]
    for item in named:
        if path is not None and paths.resolve(item.name) == path:
            return _file(item)
    if len(named) > 1 and _is_linker(named[-1].name):
        del named[-1]
        return _file(named[-1])
    return _file(named[0]) if len(named) == 1 else {}


def _is_linker(name: bytes | None) -> bool:
    return (name or b"").rpartition(b"/")[2].startswith(b"ld-")


def _bases(event: events.Event | None, numbers: Mapping[str, Any]) -> list[int | None]:
    """Descriptors of the directories in which the first and the second path begin."""
    if event is None or not event.is_call:
        return [_AT_FDCWD, _AT_FDCWD]
    names = {item.place: item.name for item in event.arguments}
    return [
        numbers.get(names.get(f"n{place - 1}", ""))
        if 0 < place < events.WORKING_DIRECTORY
        else _AT_FDCWD
        for place in event.call.at
    ]


def _file(item: Item) -> dict[str, Any]:
    told = {"dev": item.dev, "inode": item.inode, "inode_mode": item.mode}
    return {name: value for name, value in told.items() if value is not None}


def _position(fields: Mapping[bytes, bytes]) -> int:
    return number(fields, b"item")


def _item(fields: Mapping[bytes, bytes]) -> Item:
    mode = bits(fields, b"mode", 8)
    return Item(
        untrusted(fields.get(b"name")),
        fields.get(b"nametype", fields.get(b"objtype", b"UNKNOWN")),
        _device(fields.get(b"dev")),
        optional(fields, b"inode"),
        None if mode is None else mode & _MODE,
    )


def _device(value: bytes | None) -> int | None:
    if value is None:
        return None
    try:
        major, minor = (int(part, 16) for part in value.split(b":"))
    except ValueError as error:
        raise BadRecordError(f"dev is no device: {value[:40]!r}") from error
    return major << _MINOR_BITS | minor
