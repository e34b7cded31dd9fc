"""What a Fibratus capture stores of handles, processes and executables (PE)."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from kcap.model import text as texts
from kcap.readers.fibratus_values import BadRecordError, Order
from kcap.state.handles import Handle

HANDLES: Final = 2
"""Section type of handles."""

PE: Final = 4
"""Section type of an executable's description."""

_ALPC, _MUTANT, _FILE, _UNKNOWN, _NONE = range(1, 6)
_WITH_START, _WITH_USER, _WITH_FLAGS = 2, 3, 4
_MAY_LACK: Final = ("object", "name", "details")
_PROCESS_VERSIONS: Final = range(1, 5)

PIECE_BYTES: Final = 48 << 10
"""Longest piece of a list, as JSON: a value has room for 64 KiB."""

PIECE_ITEMS: Final = 4096
"""Most items of a piece."""

Fields = list[tuple[str, Any]]
"""Names and values in source order; a long list comes in pieces, each under the same name."""


class State(NamedTuple):
    """The process state of an event."""

    pid: int
    fields: Fields


class StateReader:
    """Reads handles and process states.

    Args:
        order: The byte order of the capture.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._handle = Struct(f"{order.sign}QQI")
        self._alpc = Struct(f"{order.sign}IIQ")
        self._mutant = Struct(f"{order.sign}iB")
        self._section = Struct(f"{order.sign}BBII")
        self._pids = Struct(f"{order.sign}II")
        self._pe_head = Struct(f"{order.sign}HI")
        self._pe_section = Struct(f"{order.sign}Id")

    def handle(self, data: bytes) -> Handle:
        """Read a handle of the system's table.

        Args:
            data: Its record.

        Returns:
            The handle.

        Raises:
            BadRecordError: The record is none, or is not used up.
            struct.error: It is too short.
        """
        handle, details = self._one(data)
        return handle._replace(details=None if details is None else texts.json_text(details))

    def _one(self, data: bytes) -> tuple[Handle, dict[str, Any] | None]:
        """A handle, and its details."""
        number, address, pid = self._handle.unpack_from(data)
        kind, at = self._order.text(data, self._handle.size)
        name, at = self._order.text(data, at)
        tag = data[at] if at < len(data) else 0
        at += 1
        details: dict[str, Any] | None = None
        if tag == _ALPC:
            flags, seqno, context = self._alpc.unpack_from(data, at)
            details = {"flags": flags, "seqno": seqno, "context": context}
            at += self._alpc.size
        elif tag == _MUTANT:
            count, abandoned = self._mutant.unpack_from(data, at)
            details = {"count": count, "abandoned": bool(abandoned)}
            at += self._mutant.size
        elif tag == _FILE:
            details = {"directory": bool(data[at])} if at < len(data) else None
            at += 1
        elif tag not in {_UNKNOWN, _NONE}:
            raise BadRecordError(f"a handle with metadata of unknown kind {tag}")
        _check_end(at, data, "a handle")
        return Handle(pid, number, address, _json(kind), _json(name)), details

    def process(self, data: bytes, version: int) -> State:
        """Read a process state.

        Args:
            data: Its bytes.
            version: The version of its section.

        Returns:
            The state.

        Raises:
            BadRecordError: The bytes are none, or are not used up.
            struct.error: They are too short.
        """
        if version not in _PROCESS_VERSIONS:
            raise BadRecordError(f"a process state of unknown version {version}")
        order = self._order
        pid, ppid = self._pids.unpack_from(data)
        at = self._pids.size
        fields: Fields = [("ps.pid", pid), ("ps.ppid", ppid)]
        for name in ("ps.name", "ps.cmdline", "ps.exe", "ps.cwd", "ps.sid"):
            value, at = order.text(data, at)
            fields.append((name, value))
        arguments, at = order.texts(data, at)
        fields += _pieces("ps.args", arguments)
        if version >= _WITH_USER:
            fields.append(("ps.sessionid", order.u32(data, at)[0]))
            at += 4
        else:
            fields.append(("ps.sessionid", data[at]))
            at += 1
        variables, at = order.pairs(data, at)
        fields += _mappings("ps.envs", variables)
        handles, at = self._handles(data, at, pid)
        fields += _pieces("ps.handles", handles)
        found, at = self._pe(data, at)
        fields += found
        found, at = self._later(data, at, version)
        _check_end(at, data, "a process state")
        return State(pid, fields + found)

    def _later(self, data: bytes, at: int, version: int) -> tuple[Fields, int]:
        """What later versions added."""
        fields: Fields = []
        if version >= _WITH_START:
            start, at = self._order.text(data, at)
            fields += [("ps.start_time", start), ("ps.uuid", self._order.u64(data, at)[0])]
            at += 8
        if version >= _WITH_USER:
            for name in ("ps.username", "ps.domain"):
                value, at = self._order.text(data, at)
                fields.append((name, value))
        if version >= _WITH_FLAGS:
            flags, at = _flags(data, at, ("ps.is_wow64", "ps.is_packaged", "ps.is_protected"))
            fields += flags.items()
        return fields, at

    def _handles(self, data: bytes, at: int, own: int) -> tuple[list[dict[str, Any]], int]:
        """Handles as JSON objects; without the process's own id, a zero address, no name."""
        count, _, at = self._nested(data, at, HANDLES)
        found = []
        for _ in range(count):
            (size,) = self._order.u16(data, at)
            at += 2 + size
            handle, details = self._one(data[at - size : at])
            said = handle._asdict() | {"details": details}
            if handle.pid == own:
                del said["pid"]
            found.append({n: v for n, v in said.items() if v or n not in _MAY_LACK})
        return found, at

    def _nested(self, data: bytes, at: int, kind: int) -> tuple[int, int, int]:
        """The header of a section inside: its count, or size and version, and what follows it."""
        found, version, count, size = self._section.unpack_from(data, at)
        if found != kind:
            raise BadRecordError(f"a section of type {found} where one of type {kind} belongs")
        return (count if kind == HANDLES else size), version, at + self._section.size

    def _pe(self, data: bytes, at: int) -> tuple[Fields, int]:
        size, version, at = self._nested(data, at, PE)
        if not size:
            return [], at
        end = at + size
        return self.executable(data[at:end], version), end

    def executable(self, data: bytes, version: int) -> Fields:
        """Read the description of an executable.

        Args:
            data: Its bytes.
            version: The version of its section.

        Returns:
            What it says, in source order.

        Raises:
            BadRecordError: The bytes are none, or are not used up.
            struct.error: They are too short.
        """
        order = self._order
        sections, symbols = self._pe_head.unpack_from(data)
        at = self._pe_head.size
        fields: Fields = [("pe.nsections", sections), ("pe.nsymbols", symbols)]
        for name in ("pe.address.base", "pe.address.entrypoint", "pe.link_time"):
            value, at = order.text(data, at)
            fields.append((name, value))
        (count,) = order.u16(data, at)
        at += 2
        found = []
        for _ in range(count):
            size, entropy = self._pe_section.unpack_from(data, at)
            name, at = order.text(data, at + self._pe_section.size)
            md5, at = order.text(data, at)
            found.append({"name": _json(name), "size": size, "entropy": entropy, "md5": _json(md5)})
        fields += _pieces("pe.sections", found)
        for name in ("pe.symbols", "pe.imports"):
            names, at = order.texts(data, at)
            fields += _pieces(name, names)
        resources, at = order.pairs(data, at)
        fields += _mappings("pe.resources", resources)
        if version >= 2:  # noqa: PLR2004
            more, at = self._signature(data, at)
            fields += more
        _check_end(at, data, "the description of an executable")
        return fields

    def _signature(self, data: bytes, at: int) -> tuple[Fields, int]:
        """Signature, kind and anomalies, since the second version."""
        order = self._order
        flags, at = _flags(data, at, ("pe.is_signed", "pe.is_trusted"))
        fields: Fields = [*flags.items()]
        (size,) = order.u32(data, at)
        at += 4
        end = at + size
        if size:
            names = ("before", "after", "serial", "subject", "issuer")
            for name in names:
                value, at = order.text(data, at)
                fields.append((f"pe.cert.{name}", value))
            if at != end:
                raise BadRecordError("a certificate is not used up")
        kinds = ("pe.is_driver", "pe.is_dll", "pe.is_exec", "pe.is_dotnet")
        flags, at = _flags(data, at, kinds)
        imphash, at = order.text(data, at)
        anomalies, at = order.texts(data, at)
        return [
            *fields,
            *flags.items(),
            ("pe.imphash", imphash),
            *_pieces("pe.anomalies", anomalies),
        ], at


def _flags(data: bytes, at: int, names: Sequence[str]) -> tuple[dict[str, bool], int]:
    end = at + len(names)
    return dict(zip(names, map(bool, data[at:end]), strict=False)), end


def _check_end(at: int, data: bytes, what: str) -> None:
    if at > len(data):
        raise BadRecordError(f"{what} ends early")
    if at < len(data):
        raise BadRecordError(f"{len(data) - at} bytes of {what} are left over")


def _json(text: str | bytes) -> str:
    """Text inside a JSON value, which has no place for other bytes."""
    return texts.clean(text)[0]


def _mappings(name: str, pairs: Sequence[tuple[str, str]]) -> Fields:
    """Pairs of a hash table, in order of their names, as JSON objects that each fit.

    A name that comes again begins another object.
    """
    found: Fields = []
    room = 0
    for key, value in sorted((_json(key), _json(value)) for key, value in pairs):
        size = len(texts.json_text([key, value]).encode())
        if size > room or key in found[-1][1]:
            found.append((name, {}))
            room = PIECE_BYTES
        found[-1][1][key] = value
        room -= size
    return found


def _pieces(name: str, items: Sequence[Any]) -> Fields:
    """A list as values that each fit; an empty one says nothing."""
    found: Fields = []
    room = 0
    for item in items:
        plain = _json(item) if isinstance(item, (str, bytes)) else item
        size = len(texts.json_text(plain).encode()) + 1
        if size > room or len(found[-1][1]) >= PIECE_ITEMS:
            found.append((name, []))
            room = PIECE_BYTES
        found[-1][1].append(plain)
        room -= size
    return found
