"""Events of .scap files read one by one: slow and simple, what the decoder is compared with."""

from __future__ import annotations

import struct
from typing import Any

from kcap.model import catalogue, naming, shape
from kcap.readers import scap_table, scap_values
from kcap.readers.scap_blocks import Events

TYPES = scap_table.event_types()

INTEGERS = {
    "<b": ("INT8",),
    "<h": ("INT16",),
    "<i": ("INT32", "FD32", "PID32"),
    "<q": ("INT64", "ERRNO", "FD", "PID", "RELTIME", "ABSTIME"),
    "<B": ("UINT8", "FLAGS8", "ENUMFLAGS8", "SIGTYPE"),
    "<H": ("UINT16", "FLAGS16", "ENUMFLAGS16", "SYSCALLID", "PORT"),
    "<I": ("UINT32", "FLAGS32", "ENUMFLAGS32", "UID", "GID", "MODE", "SIGSET"),
    "<Q": ("UINT64",),
}
FORMATS = {kind: form for form, kinds in INTEGERS.items() for kind in kinds}

Parsed = tuple[int, int, int, int, list[bytes]]
"""Time, thread, type, processor and parameters of an event."""


def column(base: str, value: Any) -> str:
    """The column of a value."""
    great = isinstance(value, int) and value >= 1 << 63
    cls = "u64" if great else {int: "i64", bytes: "bin", list: "list", str: "str"}[type(value)]
    home = catalogue.home(base)
    return base if home == cls else f"{base}__{cls}"


def simple(event: Parsed) -> dict[str, Any]:
    """What a row should be, worked out parameter by parameter."""
    ts, tid, number, cpu, parameters = event
    row: dict[str, Any] = {"tid": tid, "event_id": number, "cpu": cpu}
    row |= {"ts_raw": "0"} if ts == 0 else {"ts": ts}
    row["event"] = TYPES[number].name if number in TYPES else f"unknown_{number}"
    row["direction"] = "exit" if number % 2 else "enter"
    known = TYPES[number].parameters if number in TYPES else ()
    items = []
    for index, raw in enumerate(parameters):
        name, kind, is_list = known[index] if index < len(known) else (str(index), "BYTEBUF", False)
        items.append(shape.Item(name, kind, not raw))
        if not raw:
            continue
        value = value_of(kind, is_list, TYPES[number].name if known else "", raw)
        is_result = index == 0 and number % 2 and (name == "res" or kind in ("FD", "PID", "ERRNO"))
        if is_result and isinstance(value, int):
            row[column("retval", value)] = value
            row["status"] = status(value)
            if name == "res":
                continue
        base = naming.argument(name)
        if isinstance(value, list):
            row[column(base, value)] = [item.decode("utf-8", "backslashreplace") for item in value]
            if any(not valid(item) for item in value):
                row[f"{column(base, value)}__raw"] = raw.removesuffix(b"\0")
        elif isinstance(value, Text):
            row[column(base, "")] = value.decode("utf-8", "backslashreplace")
            if not valid(value):
                row[f"{column(base, '')}__raw"] = bytes(value)
        else:
            row[column(base, value)] = value
    if number <= 1 and isinstance(row.get("arg_ID"), int):
        call = catalogue.decoder("scap_syscall").get(row["arg_ID"])
        row |= {"syscall": call} if call else {}
    row["shape"] = shape.encode(items)
    return row


class Text(bytes):
    """Bytes that are text."""


def valid(raw: bytes) -> bool:
    """Whether it is UTF-8."""
    return raw.decode("utf-8", "replace").encode() == raw


def status(value: int) -> str:
    """The word for a result."""
    errors = catalogue.decoder("errno")
    return errors.get(-value, str(value)) if -4095 <= value < 0 else "SUCCESS"


def value_of(kind: str, is_list: bool, event: str, raw: bytes) -> Any:
    """The value of one parameter."""
    if is_list:
        return raw.removesuffix(b"\0").split(b"\0")
    if kind in FORMATS:
        form = FORMATS[kind]
        return struct.unpack(form, raw)[0] if len(raw) == struct.calcsize(form) else raw
    if kind in ("CHARBUF", "FSPATH", "FSRELPATH"):
        return Text(raw.removesuffix(b"\0"))
    if kind in scap_values.KINDS:
        found = scap_values.read(kind, event, raw)
        return raw if found is None else found
    return raw


def parsed(events: Events) -> list[Parsed]:
    """The events of a run, read one by one."""
    found = []
    for start, end, kind in zip(events.starts, events.ends, events.types, strict=True):
        cpu = struct.unpack_from("<H", events.data, start + 8)[0]
        at = start + 10 + 4 * (kind in (0x208, 0x217, 0x222))
        ts, tid, size, number = struct.unpack_from("<QqIH", events.data, at)
        stop, at = at + size, at + 22
        assert 0 <= end - stop < 4
        width, form = (4, "<%dI") if kind in (0x221, 0x222) else (2, "<%dH")
        if kind in (0x204, 0x208):
            for count in range(len(TYPES[number].parameters), -1, -1):
                if at + 2 * count > stop:
                    continue
                sizes = struct.unpack_from(form % count, events.data, at)
                if at + 2 * count + sum(sizes) == stop:
                    break
        else:
            count = struct.unpack_from("<I", events.data, at)[0]
            at += 4
            sizes = struct.unpack_from(form % count, events.data, at)
        at += width * count
        parameters = []
        for length in sizes:
            parameters.append(events.data[at : at + length])
            at += length
        assert at == stop
        found.append((ts, tid, number, cpu, parameters))
    return found
