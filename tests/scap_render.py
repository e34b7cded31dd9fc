"""sysdig's ``evt.args`` made again from kcap's columns: what shape says, in sysdig's formats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, Protocol

from kcap.model import catalogue, decode, naming, shape

Row = Mapping[str, Any]

SHOWN_BYTES: Final = 80
"""sysdig shows so much of a buffer."""

_ALIASES: Final = {"AF_UNIX": "AF_LOCAL", "AF_NETLINK": "AF_ROUTE"}
"""Of two names of one number sysdig takes the other."""

_PREFIXES: Final = re.compile(r"(MS|MNT|UMOUNT)_(.+)")
"""sysdig leaves them out."""

_HEX: Final = {
    *((event, "addr") for event in ("brk", "futex", "mmap", "mmap2", "mprotect", "munmap")),
    *((event, "res") for event in ("brk", "mmap", "mmap2")),
    *((event, "dev") for event in ("creat", "open", "openat", "openat2")),
    *(("ioctl", name) for name in ("request", "argument")),
    *(("socketpair", name) for name in ("peer", "source")),
    *((event, "mode") for event in ("mkdir", "mkdirat")),
    ("accept", "flags"),
    ("accept4", "flags"),
}
_OCTAL: Final = {(event, "mode") for event in ("creat", "open", "openat", "openat2")}

_NAMES: Final = {("execve", "vpgid"): "pgid"}
"""Parameters renamed since."""

_KINDS: Final = {
    ("execve", "loginuid"): "INT32",
    **{(event, "res"): "UINT64" for event in ("mmap", "mmap2")},
}
"""Parameters of another kind since."""

_SILENT: Final = {"ACTIVE", "PIPE_SRC", "PIPE_DST", "CHILD_IN_PIDNS", "IS_MAIN_THREAD"}
"""Flags that sysdig has no words for."""

FLAGS: Final = re.compile(r"(ENUM)?FLAGS(8|16|32)|MODE|SIGTYPE")
"""Kinds of parameters whose numbers have words."""

_NUMBER: Final = re.compile(r"-?\d+|0x[0-9a-f]+")
_UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f]")
_SEVERAL: Final = re.compile(r"\(([A-Z0-9_]+(?:\|[A-Z0-9_]+)+)\)")

AT_FDCWD: Final = -100

_LETTERS: Final = {
    "file": "f",
    "directory": "d",
    "ipv4": "4",
    "ipv6": "6",
    "unix": "u",
    "pipe": "p",
    "event": "e",
    "signalfd": "s",
    "eventpoll": "l",
    "inotify": "i",
    "timerfd": "t",
    "netlink": "n",
    "bpf": "b",
    "userfaultfd": "u",
    "io_uring": "r",
}
"""What stands for a type of descriptor, where it is known: sysdig's fd.typechar."""


class Known(Protocol):
    """What sysdig looks up for a parameter, as of the event."""

    def thread(self, tid: int) -> str | None:
        """The name of a thread, None for one that is not known."""

    def descriptor(self, tid: int, fd: int) -> tuple[str, str, str] | None:
        """Type, ``t`` or ``u`` for a transport, and name of what a number of a thread means."""

    def path(self, tid: int, directory: int | None, path: str) -> str:
        """A path made absolute, by a directory's descriptor or the working directory."""

    def user(self, uid: int) -> str | None:
        """The name of a user."""

    def group(self, gid: int) -> str | None:
        """The name of a group."""


def normal(text: str) -> str:
    """Flags in one order: sysdig's is that of its tables."""
    return _SEVERAL.sub(lambda m: f"({'|'.join(sorted(m[1].split('|')))})", text)


def items_of(row: Row) -> Sequence[shape.Item]:
    """The parameters that a record had."""
    return shape.decode(row.get("shape", "")).arguments


def arguments(row: Row, known: Known, limit: int | None = None) -> str:
    """The text that sysdig prints for an event.

    Args:
        row: The event, as a dict of its columns.
        known: Names as of the event.
        limit: How many parameters sysdig knows of; the later ones it does not show.

    Returns:
        The text, each parameter with a blank behind it.
    """
    if row["event"] == "syscall":
        return ""
    items = items_of(row)[:limit]
    names = (_NAMES.get((row["event"], i.name), i.name) for i in items)
    return "".join(f"{n}={_parameter(row, i, known)} " for n, i in zip(names, items, strict=True))


def value_of(row: Row, item: shape.Item) -> Any:
    """The value of a parameter, of whatever class."""
    base = naming.argument(item.name)
    for column in _columns(base):
        if column in row:
            return row[column]
    return row.get("retval")


@cache
def _columns(base: str) -> tuple[str, ...]:
    """Where a value of a name may be; exact bytes come before the text made of them."""
    classes = ("str", "i64", "u64", "bin", "list", "json", "bool", "f64")
    names = [base, *(f"{base}__{c}" for c in classes)]
    return tuple(f"{name}__raw" for name in names) + tuple(names)


def _parameter(row: Row, item: shape.Item, known: Known) -> str:
    """A parameter's text, with what it means in parentheses behind it."""
    event, tid = row["event"], row["tid"]
    kind = _KINDS.get((event, item.name), item.type)
    if item.null:
        return _ABSENT.get(kind, "NULL")
    value = value_of(row, item)
    if kind in ("FD", "FD32"):
        return _with(str(value), _descriptor(row, item, value, known))
    if kind in ("PID", "PID32"):
        return _with(str(value), known.thread(value) if looked_up(row, item) else None)
    if kind == "ERRNO":
        return _with(str(value), errno_name(value) if value < 0 else "")
    if kind in ("UID", "GID"):
        return _identity(value, known.user if kind == "UID" else known.group)
    if kind in ("FSPATH", "FSRELPATH"):
        return _path(row, item, value, known)
    if kind == "FDLIST":
        return _list(tid, value, known)
    if kind == "RELTIME":
        return "none" if value in (-1, (1 << 64) - 1) else f"{value}({value / 1e9:g}s)"
    if FLAGS.fullmatch(kind):
        number = f"{value:#o}".replace("0o", "0").replace("00", "0") if kind == "MODE" else value
        return _with(str(number), words(event, item.name, value))
    if kind == "SIGSET":
        return " ".join(words(event, item.name, value).split("|"))
    if isinstance(value, int):
        return _number(event, item.name, _signed(kind, value))
    return _text(kind, value)


_ABSENT: Final = {"CHARBUF": "", "BYTEBUF": "", "FDLIST": ""}
"""What stands for a parameter without a value."""


def _with(text: str, meaning: str | None) -> str:
    return f"{text}({meaning})" if meaning else text


def _signed(kind: str, value: int) -> int:
    """A number as sysdig takes it: all of 64 bits as signed."""
    bits = 32 if kind == "INT32" else 64
    return value - (1 << bits) if value >> bits - 1 == 1 else value


def _number(event: str, name: str, value: int) -> str:
    """A number in the base that sysdig gives it in."""
    if (event, name) in _HEX:
        return f"{value & 0xFFFF_FFFF_FFFF_FFFF:X}"
    if (event, name) in _OCTAL:
        return f"0{value:o}" if value else "0"
    return str(value)


def _text(kind: str, value: Any) -> str:
    """Text as it is, up to its end in C; of bytes what can be printed, and no more than so much."""
    if isinstance(value, list):
        value = b"".join(v.encode("utf-8", "surrogateescape") + b"\0" for v in value)
    if kind in ("BYTEBUF", "DYN"):
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        shown = "".join(chr(c) if 32 <= c < 127 else "." for c in data[: SHOWN_BYTES + 1])
        return shown if len(data) <= SHOWN_BYTES else shown[: SHOWN_BYTES - 3] + "..."
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape").split("\0")[0]
    return str(value)


def _path(row: Row, item: shape.Item, value: Any, known: Known) -> str:
    """A path, and what it means where that is not absolute."""
    text = _UNSEEN.sub("", _text("CHARBUF", value))
    if text == "<NA>":
        return text
    if not looked_up(row, item):
        return text
    return _with(text, known.path(row["tid"], directory_of(row, item), text))


def directory_of(row: Row, item: shape.Item) -> int | None:
    """The descriptor that a path is relative to, None for the working directory."""
    if item.type != "FSRELPATH":
        return None
    items = list(items_of(row))
    before = items[: items.index(item)]
    found = [i for i in before if i.type in ("FD", "FD32") and "dir" in i.name]
    value = value_of(row, found[-1]) if found else None
    return None if value == AT_FDCWD else value


def _descriptor(row: Row, item: shape.Item, fd: int, known: Known) -> str:
    """What a descriptor's number means."""
    if fd == AT_FDCWD:
        return "AT_FDCWD"
    if fd < 0:
        return errno_name(fd)
    if looked_up(row, item):
        found = known.descriptor(row["tid"], fd)
    elif "fd_type" in row and _own(row, item):
        found = row["fd_type"], "", row.get("fd_name", "")
    else:
        found = None
    if found is None:
        return ""
    kind, transport, text = found
    transport = transport if text else ""  # what sysdig knows of a socket comes with its name
    return f"<{_LETTERS.get(kind, '?')}{transport}>{_UNSEEN.sub('', text)}"


def _own(row: Row, item: shape.Item) -> bool:
    """Whether a parameter is the descriptor that ``fd_name`` names."""
    if row["event"] in ("mmap", "mmap2"):
        return False
    return item.name == "fd" or (item.name == "res" and row["event"] != "fcntl")


def looked_up(row: Row, item: shape.Item) -> bool:
    """Whether what a parameter means is known as of the event, but in no column of it.

    Args:
        row: The event, with the names that the state has.
        item: The parameter.

    Returns:
        Whether `Known` is asked.
    """
    value = value_of(row, item)
    if item.null or item.type not in _ASKED:
        return False
    if item.type in ("FD", "FD32"):
        own = _own(row, item)
        return row.get("fd_type") in ("ipv4", "ipv6") if own else 0 <= value < 1 << 31
    if item.type in ("FSPATH", "FSRELPATH"):
        return not _text("CHARBUF", value).startswith(("/", "<NA>"))
    return bool(value != "" if item.type == "FDLIST" else value > 0)


_ASKED: Final = frozenset({"FD", "FD32", "FDLIST", "FSPATH", "FSRELPATH", "PID", "PID32"})


def _list(tid: int, value: str, known: Known) -> str:
    """Polled descriptors: number, what they are, and events in hex."""
    parts = []
    for part in value.split():
        fd, events = part.split(":")
        found = known.descriptor(tid, int(fd))
        letter = _LETTERS.get(found[0], "?") if found else "?"
        parts.append(f"{fd}:{letter}{events}")
    return " ".join(parts)


def _identity(number: int, name: Any) -> str:
    if number in (-1, 0xFFFF_FFFF):
        return "-1(<NONE>)"
    return f"{number}({name(number) or '<NA>'})"


def words(event: str, name: str, number: int) -> str:
    """Flags or an enum's value as kcap decodes it, in sysdig's words."""
    table = catalogue.decoder_of("scap", event, name)
    text = decode.text_of(table, number) if table else ""  # what people see is what is compared
    found = [word for word in text.split("|") if word and not _NUMBER.fullmatch(word)]
    found = [word for word in found if word not in _SILENT]
    return "|".join(_PREFIXES.sub(r"\2", _ALIASES.get(word, word)) for word in found)


def errno_name(number: int) -> str:
    """The name of an error."""
    return catalogue.decoder("errno").get(-number, "")
