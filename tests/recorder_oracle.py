"""Decodes records of the kernel program one at a time, in plain Python: what columns must equal."""

from __future__ import annotations

import ipaddress
import json
import os
import posixpath
import struct
from typing import Any

from kcap.model import catalogue
from kcap.model.classes import TypeClass
from kcap.model.naming import argument, column_name
from kcap.readers.live.bpf import events
from tests.recorder_support import LAYOUTS

FILES = {"open", "file", "close", "memory", "exec"}
TYPES = {1: "pipe", 2: "device", 4: "directory", 6: "device", 8: "file", 10: "link", 12: "socket"}


class Row:
    """One record, taken apart."""

    def __init__(self, raw: bytes) -> None:
        fields = LAYOUTS.record.fields
        assert fields is not None
        self.f: dict[str, Any] = {}
        for name, (kind, at, *_) in fields.items():
            size = kind.itemsize // max(1, *kind.shape) if kind.shape else kind.itemsize
            signed = kind.base.kind == "i"
            items = [
                int.from_bytes(raw[at + i * size : at + (i + 1) * size], "little", signed=signed)
                for i in range(kind.shape[0] if kind.shape else 1)
            ]
            self.f[name] = items if kind.shape else items[0]
        at = LAYOUTS.record.itemsize
        self.pieces = []
        for size in self.f["piece"]:
            self.pieces.append(raw[at : at + size])
            at += size
        self.event = events.by_number()[self.f["event"]]
        self.numbers = self.f["number"]
        self.has_file = self.event.handler in FILES and self.numbers[9] & 0xFFFF != 0
        self.out: dict[str, Any] = {}


def put(row: Row, base: str, value: Any, cls: TypeClass) -> None:
    """Enter a value in its column."""
    name = column_name(base, cls, catalogue.home(base))
    if isinstance(value, bytes) and cls is not TypeClass.BIN:
        try:
            row.out[name] = value.decode()
        except UnicodeDecodeError:
            row.out[name] = value.decode("utf-8", "backslashreplace")
            row.out[f"{name}__raw"] = value
    else:
        row.out[name] = value


def integer(row: Row, base: str, value: int) -> None:
    """Enter an integer."""
    put(row, base, value, TypeClass.I64 if value < 1 << 63 else TypeClass.U64)


def kernel_path(row: Row, piece: int) -> bytes | None:
    """A path of the kernel."""
    raw = row.pieces[piece]
    kind, inode = row.numbers[9] >> 12 & 15, row.numbers[8]
    names = raw.split(b"\0")
    rooted = raw == b"\0" or raw.endswith(b"\0\0")
    if raw and rooted:
        return b"/" + b"/".join(n for n in reversed(names[: max(len(names) - 2, 0)]))
    names = names[:-1] if raw.endswith(b"\0") else names
    if raw and len(names) > 1:
        return b".../" + b"/".join(reversed(names[:-1] if names[-1] == b"/" else names))
    if row.has_file and kind in (1, 12):
        return f"{'pipe' if kind == 1 else 'socket'}:[{inode}]".encode()
    if not raw:
        return None
    if names[0] == b"/":
        if not row.has_file:
            return b"ns:"
        return b".../" if kind == 4 else f"ns:[{inode}]".encode()
    anonymous = names[0].startswith(b"[") or names[0] in ANONYMOUS
    return b"anon_inode:" + names[0] if anonymous else names[0]


ANONYMOUS = {
    *(b"aio", b"bpf-map", b"bpf-prog", b"bpf_link", b"eventfd", b"eventpoll", b"fanotify"),
    *(b"fscontext", b"inotify", b"io_uring", b"perf_event", b"pidfd", b"seccomp notify"),
    *(b"signalfd", b"timerfd", b"userfaultfd"),
}


def resolved(word: bytes, base: bytes | None) -> bytes | None:
    """A path as the process gave it."""
    if not word:
        return None
    if not word.startswith(b"/"):
        if base is None:
            return word
        if base == b"ns:":
            base = b".../"
        if base.startswith(b".../"):
            inside = resolved(word, b"/" + base[4:])
            assert inside is not None
            return b"..." + inside
        if not base.startswith(b"/"):
            return word
        word = base + b"/" + word
    whole = posixpath.normpath(word)
    return b"/" + whole.lstrip(b"/")


def end(family: int, address: bytes, port: int, **more: str) -> tuple[bytes, dict[str, str]]:
    """An internet address: its name, and as Tracee has it."""
    ip = ipaddress.ip_address(address)
    text = os.fspath(_ntop(address))
    key = "sin" if family == 2 else "sin6"
    name = text
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        name = str(ip.ipv4_mapped)
    json_ = {"sa_family": "AF_INET" if family == 2 else "AF_INET6"}
    return f"{name}:{port}".encode(), {
        **json_,
        f"{key}_addr": text,
        f"{key}_port": str(port),
        **more,
    }


def _ntop(address: bytes) -> str:
    import socket

    return socket.inet_ntop(2 if len(address) == 4 else 10, address)


def unix(path: bytes) -> tuple[bytes, dict[str, str]] | None:
    """A Unix socket's address."""
    if path[:1] == b"\0":
        name = b"@" + path[1:] if len(path) > 1 else b""
    else:
        name = path.partition(b"\0")[0]
    if not name:
        return None
    return name, {"sa_family": "AF_UNIX", "sun_path": name.decode("utf-8", "backslashreplace")}


def family_name(family: int) -> str:
    """``AF_INET``."""
    return catalogue.decoder("socket_family").get(family, str(family))


def user_address(raw: bytes) -> tuple[bytes, dict[str, str]] | None:
    """``struct sockaddr``."""
    if len(raw) < 2:
        return None
    family = struct.unpack_from("<H", raw)[0]
    if family == 2 and len(raw) >= 8:
        return end(2, raw[4:8], struct.unpack_from(">H", raw, 2)[0])
    if family == 10 and len(raw) >= 24:
        scope = struct.unpack_from("<I", raw, 24)[0] if len(raw) >= 28 else 0
        flow = struct.unpack_from(">I", raw, 4)[0]
        port = struct.unpack_from(">H", raw, 2)[0]
        more = {"sin6_flowinfo": str(flow), "sin6_scopeid": str(scope)}
        return end(10, raw[8:24], port, **more)
    named = unix(raw[2:]) if family == 1 else None
    return named or (b"", {"sa_family": family_name(family)})


def text_of(address: dict[str, str]) -> str:
    """An address as it stands in a column."""
    return json.dumps(address, separators=(",", ":"), ensure_ascii=False)


ROLES = {"accept": "accept", "accept4": "accept", "connect": "give"} | {
    name: role
    for role, names in {
        "give": ("sendto", "sendmsg", "sendmmsg"),
        "receive": ("recvfrom", "recvmsg", "recvmmsg"),
    }.items()
    for name in names
}


def socket_of(row: Row) -> dict[str, Any] | None:
    """The kernel's socket, where the record has one."""
    raw = row.pieces[3]
    able = row.event.handler in {"socket", "state", "file", "close"}
    if not able or len(raw) != LAYOUTS.socket.itemsize:
        return None
    names = ("family", "type", "protocol", "state", "local_port", "remote_port")
    found: dict[str, Any] = dict(zip(names, struct.unpack_from("<6H", raw), strict=True))
    fields = LAYOUTS.socket.fields
    assert fields is not None
    for name in ("local", "remote"):
        at = fields[name][1]
        found[name] = raw[at : at + 16]
    found["inode"] = struct.unpack_from("<Q", raw, fields["inode"][1])[0]
    return found


def put_socket(row: Row, accepted: set[int]) -> None:
    """Both ends of a socket, and what the descriptor stands for."""
    kernel = socket_of(row)
    role = ROLES.get(row.event.name)
    if kernel is None:
        return
    family, width = kernel["family"], {2: 4, 10: 16}.get(kernel["family"])
    ends: list[tuple[bytes, dict[str, str]] | None] = [None, None]
    if family == 1:
        ends = [unix(row.pieces[6]), unix(row.pieces[7])]
    elif width is not None:
        for i, side in enumerate(("local", "remote")):
            address, port = kernel[side][:width], kernel[f"{side}_port"]
            if port or (any(address) and kernel["type"] % 16 != 1):
                ends[i] = end(family, address, port)
    local, remote = ends
    said = user_address(row.pieces[5]) if role in ("give", "receive") else None
    users = remote is None and said is not None and bool(said[0])
    if users:
        remote = said
    server = kernel["inode"] in accepted or (role == "receive" and users)
    name = b"socket:[%d]" % kernel["inode"]
    if width is not None and remote is not None:
        here = local or end(family, bytes(width), 0)
        pair = (remote[0], here[0]) if server else (here[0], remote[0])
        name = b"->".join(pair)
    elif width is not None and local is not None:
        name = local[0]
    elif remote is not None or local is not None:
        first = (local or remote) if server else (remote or local)
        assert first is not None
        name = first[0]
    put(row, "fd_name", name, TypeClass.STR)
    words = {1: "unix", 2: "ipv4", 10: "ipv6"}
    known = family_name(family)
    if known.startswith("AF_"):
        row.out["fd_type"] = words.get(family, known[3:].lower())
    for argument_ in row.event.arguments:
        if argument_.kind in ("local", "remote"):
            found = local if argument_.kind == "local" else remote
            if found is not None:
                put(row, argument(argument_.name), text_of(found[1]), TypeClass.JSON)
    if users:
        row.f["users"] = True


def put_argument(row: Row, name: str, kind: str, where: str) -> None:
    """One argument."""
    base = argument(name)
    places = [int(p[1:]) for p in where.split("+") if p[1:].isdigit()]
    place = places[0] if places else 0
    if kind in ("local", "remote", "none"):
        return
    if kind in ("str", "bytes", "comm", "addr"):
        piece = row.pieces[place]
        if kind == "comm":
            piece = piece.partition(b"\0")[0]
        if kind == "addr":
            found = user_address(piece)
            if found is not None:
                put(row, base, text_of(found[1]), TypeClass.JSON)
        elif piece:
            put(row, base, piece, TypeClass.BIN if kind == "bytes" else TypeClass.STR)
        return
    if kind in ("path", "rel", "opened", "cwd"):
        found_path = None
        if kind != "rel" and (kind == "path" or not -4095 <= row.f["retval"] < 0):
            found_path = kernel_path(row, place)
        if found_path is None and kind != "path":
            word, start = places if kind == "rel" else places[1:]
            found_path = resolved(row.pieces[word], kernel_path(row, start))
            row.f["resolved"] = kind != "rel" and found_path is not None
        if found_path is not None:
            put(row, base, found_path, TypeClass.STR)
            if row.event.name == "sched_process_exec" and name == "pathname":
                put(row, "exe", found_path, TypeClass.STR)
        return
    if kind in ("argv", "env"):
        put_list(row, base, kind, places)
        return
    value = row.f[where] if not where[1:].isdigit() else row.numbers[place]
    of_file = row.event.handler in FILES and where in ("n6", "n7", "n8", "n9")
    if of_file and not row.has_file:
        return
    if kind == "some" and not value:
        return
    if kind in ("bool", "core"):
        put(row, base, bool(value & 0x80 if kind == "core" else value), TypeClass.BOOL)
        return
    low = value & 0xFFFFFFFF
    integer(
        row,
        base,
        {
            "int": low - (1 << 32) if low >> 31 else low,
            "some": low - (1 << 32) if low >> 31 else low,
            "long": value - (1 << 64) if value >> 63 else value,
            "mode": value & 0xFFFF,
            "high": value >> 32,
            "exit": value >> 8 & 0xFF,
            "signal": value & 0x7F,
            "ulong": value,
            "ptr": value,
        }.get(kind, low),
    )


def put_list(row: Row, base: str, kind: str, places: list[int]) -> None:
    """Arguments of a program, or its environment."""
    block = row.pieces[places[0]]
    if not block:
        return
    executed = row.event.name == "sched_process_exec"
    if kind == "argv":
        tail = row.pieces[places[1]]
        missing = row.numbers[11 if executed else 7] - len(block) - len(tail)
        if missing > 0:
            block += f"…[{missing} bytes]…".encode()
        block += tail
    items = block.removesuffix(b"\0").split(b"\0")
    row.out[base] = [item.decode("utf-8", "backslashreplace") for item in items]
    try:
        block.decode()
    except UnicodeDecodeError:
        row.out[f"{base}__raw"] = b"\0".join(items)
    if kind == "argv" and executed:
        put(row, "cmdline", b" ".join(items), TypeClass.STR)


def adjust(row: Row) -> None:
    """The numbers of a 32-bit call as those of a native one."""
    if not row.f["flags"] & 1:
        return
    numbers, nr = row.numbers, row.f["nr"]
    place = {180: 3, 181: 3, 193: 1, 194: 1, 333: 3, 334: 3, 378: 3, 379: 3}.get(nr)
    if place is not None:
        numbers[place] |= (numbers[place + 1] << 32) & 0xFFFFFFFFFFFFFFFF
    if nr == 192:
        numbers[5] = (numbers[5] << 12) & 0xFFFFFFFFFFFFFFFF


def put_envelope(row: Row, offset_ns: int, syscalls: tuple[dict[int, str], dict[int, str]]) -> None:
    """Who, when and where."""
    f, out = row.f, row.out
    own = not f["flags"] & 8
    whole = own and row.event.handler != "state"
    out |= {"ts": f["ts_ns"] + offset_ns, "cpu": f["cpu"], "is_compat": bool(f["flags"] & 1)}
    if own:
        out |= {"pid": f["pid"], "tid": f["tid"]}
    for name, field, of, always in (
        ("cgroup_id", "cgroup_id", own, False),
        ("process_start_ns", "start_ns", own, False),
        ("gid", "gid", whole, True),
        ("ns_ppid", "ns_ppid", whole, True),
        ("ppid", "ppid", whole, True),
        ("uid", "uid", whole, True),
        ("mount_ns", "mount_ns", whole, False),
        ("ns_pid", "ns_pid", whole, False),
        ("ns_tid", "ns_tid", whole, False),
        ("pid_ns", "pid_ns", whole, False),
        ("thread_start_ns", "thread_start_ns", whole, False),
    ):
        if of and (always or f[name if name in f else field]):
            integer(row, name, f[field])
    comm = bytes(c & 0xFF for c in f["comm"]).partition(b"\0")[0]
    if own and comm:
        put(row, "process_name", comm, TypeClass.STR)
    out["event"] = row.event.name
    known = catalogue.events("kcap-bpf")[row.event.name]
    out |= {k: v for k, v in (("action", known.action), ("category", known.category)) if v}
    if own and f["nr"] != 0xFFFFFFFF:
        table = syscalls[f["flags"] & 1]
        out["syscall"] = table.get(f["nr"], f"syscall_{f['nr']}")
    if row.event.is_call:
        value = f["retval"]
        out["retval"] = value
        failed = -4095 <= value < 0
        errors = catalogue.decoder("errno")
        out["status"] = errors.get(-value, str(value)) if failed else "SUCCESS"
    stack = row.pieces[8][: len(row.pieces[8]) // 8 * 8]
    if stack:
        out["stack_addresses"] = [at for (at,) in struct.iter_unpack("<q", stack)]
    if row.event.name == "sched_process_exec":
        out["session"] = row.numbers[3] & 0xFFFFFFFF


def put_file(row: Row) -> None:
    """What the descriptor of a file stands for."""
    if socket_of(row) is not None or row.event.handler == "exec" or not row.has_file:
        return
    name = kernel_path(row, 2)
    kind = TYPES.get(row.numbers[9] >> 12 & 15)
    if name is not None:
        put(row, "fd_name", name, TypeClass.STR)
        if name.startswith(b"memfd:"):
            kind = "memfd"
        elif name.startswith(b"ns:"):
            kind = "namespace"
        elif name.startswith(b"anon_inode:"):
            plain = name.removeprefix(b"anon_inode:").strip(b"[]")
            words = {b"eventfd": "event", b"seccomp notify": "seccomp"}
            words |= dict.fromkeys((b"bpf-map", b"bpf-prog", b"bpf_link"), "bpf")
            kind = words.get(plain, plain.decode() if plain in ANONYMOUS else "anonymous")
    if kind is not None:
        row.out["fd_type"] = kind


def put_provenance(row: Row) -> None:
    """Which columns hold what the process said."""
    said = []
    for name, kind, _ in row.event.arguments:
        users = kind == "rel" or (kind == "str" and name.endswith("_arg"))
        users |= kind in ("opened", "cwd") and bool(row.f.get("resolved"))
        if users or (kind == "remote" and row.f.get("users")):
            said.append(f"{argument(name)}:user")
    if said:
        row.out["provenance"] = ",".join(sorted(said))


def decode(
    records: list[bytes], offset_ns: int, syscalls: tuple[dict[int, str], dict[int, str]]
) -> list[dict[str, Any]]:
    """Decode records one at a time.

    Args:
        records: Good records.
        offset_ns: From the time since boot to that since 1970.
        syscalls: Names of calls, native and 32-bit.

    Returns:
        A dict of columns each, in order of time; without the shape.
    """
    rows = sorted(map(Row, records), key=lambda row: row.f["ts_ns"])
    accepted = set()
    for row in rows:
        kernel = socket_of(row)
        if kernel is not None and ROLES.get(row.event.name) == "accept":
            accepted.add(kernel["inode"])
    for row in rows:
        adjust(row)
        put_envelope(row, offset_ns, syscalls)
        for item in row.event.arguments:
            put_argument(row, *item)
        put_socket(row, accepted)
        put_file(row)
        put_provenance(row)
    return [row.out for row in rows]
