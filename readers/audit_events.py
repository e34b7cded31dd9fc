"""What an event of the Linux audit system is in kcap's terms: names, columns, arguments.

Events and arguments have the names that `kcap.readers.live.bpf` gives them, so that a filter
means the same whatever recorded. The numbers of a call are there as far as the kernel tells them,
the first four.
"""

from __future__ import annotations

import json
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from kcap.model import catalogue, naming
from kcap.readers import audit_execution, audit_messages
from kcap.readers.audit_groups import EOE, PROCTITLE, Event
from kcap.readers.audit_paths import Paths
from kcap.readers.audit_records import (
    Record,
    bits,
    number,
    optional,
    untrusted,
    whole_path,
)
from kcap.readers.live.bpf import events, values
from kcap.readers.live.bpf.decode import FAMILY, syscalls

X86_64: Final = 0xC000003E
I386: Final = 0x40000003
"""AUDIT_ARCH of the instruction sets, in a SYSCALL record."""

SYSCALL: Final = "SYSCALL"

_SOCKETCALL: Final = "socketcall"
_SOCKET_CALLS: Final = {
    1: "socket",
    2: "bind",
    3: "connect",
    4: "listen",
    5: "accept",
    13: "shutdown",
    14: "setsockopt",
    18: "accept4",
}
"""Calls of sockets that a 32-bit program makes by one number."""

_PARTS: Final = frozenset(
    {
        "BPRM_FCAPS",
        "CAPSET",
        "CWD",
        "EXECVE",
        "FD_PAIR",
        "KERN_MODULE",
        "MMAP",
        "OBJ_PID",
        "OPENAT2",
        "PATH",
        "SOCKADDR",
        "SOCKETCALL",
        PROCTITLE,
        SYSCALL,
    }
)
"""Types of records that only say more of a call."""

_EXECUTIONS: Final = frozenset({"execve", "execveat"})
_ACCEPTING: Final = frozenset({"accept", "accept4"})
_SAID: Final = Paths.DERIVED | {"remote_addr"}
"""Arguments that are what the process said."""

_CREDENTIALS: Final = {"ruid": b"uid", "euid": b"euid", "rgid": b"gid", "egid": b"egid"}
_EFFECTIVE: Final = {"euid": b"euid", "egid": b"egid"}
_CAPABILITIES: Final = {"effective": b"cap_pe", "permitted": b"cap_pp", "inheritable": b"cap_pi"}
_ADDRESS_FAMILY: Final = struct.Struct("=H")
_U32: Final = (1 << 32) - 1
_MODE: Final = 0xFFFF
_REGISTERS: Final = 4
_FAILURES: Final = range(-4095, 0)
_IN_ENRICHED: Final = re.compile(rb"(?:^| )SYSCALL=([a-z0-9_]{1,64})(?: |$)")


argument: Final = lru_cache(maxsize=1 << 13)(naming.argument)
"""The column base of an argument; there are few, and programs that spell more cost no memory."""


class Row(NamedTuple):
    """An event."""

    values: dict[str, Any]
    """Column base to value; bytes where a process chose them."""
    missing: list[str]
    """Types of records that it should have and has not, one for each."""
    key: bytes
    """The key of the rule that it is recorded for; empty for none."""


class _Call(NamedTuple):
    """A system call, as far as it is understood."""

    name: str
    compat: bool
    words: list[int]
    """Its first arguments."""


def row_of(event: Event) -> Row | None:
    """Make an event's values.

    Args:
        event: Its records.

    Returns:
        The event; None where the record is missing that says what it was.

    Raises:
        BadRecordError: A record is none of the kernel's.
    """
    records: dict[str, list[Record]] = defaultdict(list)
    for record in event.records:
        records[record.type].append(record)
    host = {"host": event.records[0].node} if event.records and event.records[0].node else {}
    if SYSCALL in records:
        made = _of_call(event, records)
        return made._replace(values=made.values | host)
    first = next((r for r in event.records if r.type not in _PARTS), None)
    if first is None:
        return None
    found = {"event": first.type, "ts": event.ms * 1_000_000, "seq": event.serial}
    columns, arguments = audit_messages.read(first)
    rest = [record for record in event.records if record is not first]
    if rest:
        arguments["records"] = [b"type=" + r.type.encode() + b" " + r.text for r in rest]
    named = {argument(name): value for name, value in arguments.items() if value is not None}
    key = arguments.get("key")
    return Row(found | columns | named | host, [], key if isinstance(key, bytes) else b"")


def _of_call(event: Event, records: Mapping[str, Sequence[Record]]) -> Row:
    """An event that is a system call."""
    fields = records[SYSCALL][0].fields()
    call = _call(fields, records)
    retval = optional(fields, b"exit")
    executed = call.name in _EXECUTIONS and fields.get(b"success") == b"yes"
    name = events.EXECUTION if executed else call.name
    found: dict[str, Any] = {"event": name, "syscall": call.name}
    found |= _classified(name)
    found |= _envelope(event, fields)
    found["is_compat"] = call.compat
    if retval is not None and not executed:
        found["retval"] = retval
        found["status"] = _status(retval)
    paths = Paths(records)
    arguments = _numbers(name, call)
    arguments |= _who(fields, name)
    if executed:
        execution = audit_execution.read(records, paths, whole_path(fields.get(b"exe")))
        arguments |= execution.arguments
        if execution.command_line is not None:
            found["cmdline"] = execution.command_line
        missing = execution.missing
    else:
        arguments |= paths.arguments(name, arguments) | _more(name, records)
        if records.get(PROCTITLE):
            title = untrusted(records[PROCTITLE][0].fields().get(b"proctitle"))
            arguments["proctitle"] = (title or b"").rstrip(b"\0").replace(b"\0", b" ")
        missing = []
    found["fd_type"] = _socket_type(records)
    items = optional(fields, b"items") or 0
    missing += ["PATH"] * max(0, items - len(paths.items))
    missing += _untold(event, records)
    return _row(found, arguments, missing, records, untrusted(fields.get(b"key")) or b"")


def _row(
    found: dict[str, Any],
    arguments: dict[str, Any],
    missing: list[str],
    records: Mapping[str, Sequence[Record]],
    key: bytes,
) -> Row:
    others = [r for kind, group in records.items() if kind not in _PARTS for r in group]
    if others:
        arguments["records"] = [b"type=" + r.type.encode() + b" " + r.text for r in others]
    if missing:
        arguments["missing_records"] = [kind.encode() for kind in missing]
    if found["event"] not in _ACCEPTING and found["event"] != events.EXECUTION:
        said = [name for name in arguments if name in _SAID or name.endswith("_arg")]
        users = sorted(argument(name) for name in said if arguments[name] is not None)
        found["provenance"] = ",".join(f"{name}:user" for name in users) or None
    for name, value in arguments.items():
        if value is not None:
            found[argument(name)] = value
    return Row({name: v for name, v in found.items() if v is not None}, missing, key)


def _untold(event: Event, records: Mapping[str, Sequence[Record]]) -> list[str]:
    """What should stand at the end, where something that stands there is missing."""
    if event.cut_bytes or event.ended:
        return []
    return [] if records.get(PROCTITLE) else [EOE]


def _call(fields: Mapping[bytes, bytes], records: Mapping[str, Sequence[Record]]) -> _Call:
    """Which call it was, and with which arguments."""
    arch, nr = bits(fields, b"arch"), number(fields, b"syscall")
    words = [bits(fields, b"a%d" % place) for place in range(_REGISTERS)]
    known = [word for word in words if word is not None]
    native, compat = syscalls()
    if arch == X86_64:
        name = native.get(nr, f"syscall_{nr}")
    elif arch == I386:
        name = compat.get(nr, f"syscall_{nr}")
        if name == _SOCKETCALL and known[0] in _SOCKET_CALLS and "SOCKETCALL" in records:
            name = _SOCKET_CALLS[known[0]]
            told = records["SOCKETCALL"][0].fields()
            words = [bits(told, b"a%d" % place) for place in range(6)]
            known = [word for word in words if word is not None]
    else:  # of another machine: the numbers mean nothing here
        said = _IN_ENRICHED.search(records[SYSCALL][0].names)
        name = said[1].decode("ascii") if said else f"syscall_{nr}"
    return _Call(name, arch == I386, known)


def _classified(name: str) -> dict[str, str | None]:
    info = catalogue.events(FAMILY).get(name)
    return {"action": info.action, "category": info.category} if info else {}


def _envelope(event: Event, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Who did it, and when."""
    found: dict[str, Any] = {"ts": event.ms * 1_000_000, "seq": event.serial}
    for name, column in audit_messages.NUMBERS.items():
        found[column] = optional(fields, name)
    for name, column in audit_messages.TEXTS.items():
        found[column] = (
            whole_path(fields.get(name)) if column == "exe" else untrusted(fields.get(name))
        )
    return found


def _who(fields: Mapping[bytes, bytes], name: str) -> dict[str, Any]:
    """On whose behalf, where an event of other sources has no column for it."""
    found: dict[str, Any] = {
        new: optional(fields, old) for old, new in audit_messages.RENAMED.items()
    }
    known = events.events().get(name)
    if known is not None:
        # Arguments that have the name of a field but stand among those of the call are its own.
        free = [a.name for a in known.arguments if not known.is_call or a.place not in _PLACES]
        found |= {new: optional(fields, _CREDENTIALS[new]) for new in free if new in _CREDENTIALS}
    for new, old in _EFFECTIVE.items():
        if fields.get(old) != fields.get(old[1:]) and new not in _named(name):
            found[new] = optional(fields, old)
    found["tty"] = untrusted(fields.get(b"tty"))
    subject = untrusted(fields.get(b"subj"))
    found["subj"] = None if subject in {b"unconfined", b"kernel"} else subject
    key = untrusted(fields.get(b"key"))
    found["key"] = None if key is None or OWN_KEY.fullmatch(key) else key
    return found


OWN_KEY: Final = re.compile(rb"kcap-(\d{1,10})-(\d{1,20})-e([012])-b(\d{1,10})-w(-1|\d{1,10})")
"""The keys of recorders' own rules (`kcap.readers.live.audit.rules.Key`)."""

_PLACES: Final = {f"n{place}": place for place in range(6)}
"""Where the arguments of a call stand, of what a recorder in the kernel has."""


@lru_cache(maxsize=4096)
def _named(name: str) -> frozenset[str]:
    known = events.events().get(name)
    return frozenset(a.name for a in known.arguments) if known else frozenset()


def _numbers(name: str, call: _Call) -> dict[str, Any]:
    """The arguments that are numbers."""
    known = events.events().get(name)
    if known is None:
        return {f"a{place}": word for place, word in enumerate(call.words)}
    if not known.is_call:
        return {}
    found: dict[str, Any] = {}
    for item in known.arguments:
        place = _PLACES.get(item.place)
        if place is not None and place < len(call.words) and item.kind in _KINDS:
            found[item.name] = _KINDS[item.kind](call.words[place])
    return found


def _signed(word: int, width: int) -> int:
    word &= (1 << width) - 1
    return word - (1 << width) if word >> (width - 1) else word


_KINDS: Final[Mapping[str, Callable[[int], int]]] = {
    "dev": lambda word: word & _U32,
    "int": lambda word: _signed(word, 32),
    "long": lambda word: _signed(word, 64),
    "mode": lambda word: word & _MODE,
    "ptr": lambda word: word,
    "u32": lambda word: word & _U32,
    "ulong": lambda word: word,
}
"""Kinds of numbers, and what makes values of a word of 64 bits."""


def _status(retval: int) -> str:
    if retval not in _FAILURES:
        return "SUCCESS"
    return catalogue.decoder("errno").get(-retval, str(-retval))


def _address(records: Mapping[str, Sequence[Record]]) -> bytes | None:
    """A socket's address: what the process gave to connect to, of an accepted one the other end."""
    told = records.get("SOCKADDR", ())[:1]
    return untrusted(told[0].fields().get(b"saddr")) if told else None


def _socket_type(records: Mapping[str, Sequence[Record]]) -> str | None:
    raw = _address(records)
    return (
        values.type_of(_ADDRESS_FAMILY.unpack_from(raw)[0])
        if raw and len(raw) >= _ADDRESS_FAMILY.size
        else None
    )


def _more(name: str, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """What other records say of a call."""
    found: dict[str, Any] = {}
    raw = _address(records)
    end = values.user_address(raw) if raw else None
    if end is not None:
        told = json.loads(end.json)
        found |= {"addr": told} if name == "bind" else {"addr": told, "remote_addr": told}
    for record in records.get("CAPSET", ())[:1]:
        told = record.fields()
        found |= {new: bits(told, old) for new, old in _CAPABILITIES.items()}
    for record in records.get("OPENAT2", ())[:1]:
        told = record.fields()
        found |= {"flags": bits(told, b"oflag", 8), "mode": bits(told, b"mode", 8)}
        found["resolve"] = bits(told, b"resolve")
    for record in records.get("MMAP", ())[:1]:
        told = record.fields()
        found["fd"] = optional(told, b"fd")
        found.setdefault("flags", bits(told, b"flags"))
    for record in records.get("KERN_MODULE", ())[:1]:
        found["name"] = untrusted(record.fields().get(b"name"))
    for record in records.get("OBJ_PID", ())[:1]:
        told = record.fields()
        found |= {"opid": optional(told, b"opid"), "ouid": optional(told, b"ouid")}
        found["ocomm"] = untrusted(told.get(b"ocomm"))
    return {key: value for key, value in found.items() if value is not None}
