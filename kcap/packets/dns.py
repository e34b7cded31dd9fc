"""DNS messages as JSON values, in the form in which Tracee prints them (``proto_dns``).

Our own and not dpkt's: that one refuses every message with a record of a type that it does not
know, as most answers of today have one (HTTPS, DNSSEC's), and every name that is not UTF-8.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from kcap.packets import addresses

HEADER_BYTES: Final = 12
NAME_BYTES: Final = 255
"""Longest name, as RFC 1035 has it."""

_RECORDS_MAX: Final = 1024
"""Records that are shown of one message."""

_POINTERS_MAX: Final = 126
"""Pointers of one name: so many labels a name has at most."""

_POINTER: Final = 0xC0
_OPCODES: Final = {0: "query", 1: "inverse query", 2: "status", 4: "notify", 5: "update"}
_CODES: Final = {
    0: "no error",
    1: "format error",
    2: "server failure ",  # Tracee's spelling
    3: "non-existent domain",
    4: "not implemented",
    5: "query refused",
    6: "name exists when it should not",
    7: "rr set exists when it should not",
    8: "rr set that should exist does not",
    9: "server not authoritative for zone",
    10: "name not contained in zone",
}
_CLASSES: Final = {1: "IN", 2: "CS", 3: "CH", 4: "HS", 255: "Any"}
_TYPES: Final = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    10: "NULL",
    12: "PTR",
    13: "HINFO",
    15: "MX",
    16: "TXT",
    28: "AAAA",
    33: "SRV",
    35: "NAPTR",
    39: "DNAME",
    41: "OPT",
    43: "DS",
    46: "RRSIG",
    47: "NSEC",
    48: "DNSKEY",
    50: "NSEC3",
    52: "TLSA",
    64: "SVCB",
    65: "HTTPS",
    251: "IXFR",
    252: "AXFR",
    255: "ANY",
    256: "URI",
    257: "CAA",
}
_NAMED: Final = {"NS": "NS", "CNAME": "CNAME", "PTR": "PTR"}


class BadMessageError(ValueError):
    """This is no DNS message, or not all of one."""


class _EndError(BadMessageError):
    """It goes on behind what is there."""


def message(raw: bytes, *, cut: bool = False) -> dict[str, Any]:
    """Read a message.

    Args:
        raw: Its bytes.
        cut: Whether they are only its beginning: a snap length ended them, or a fragment.

    Returns:
        The message as JSON values; of one that was cut the questions and records that are whole,
        with ``truncated``.

    Raises:
        BadMessageError: It is none, or cut.
    """
    if len(raw) < HEADER_BYTES:
        raise BadMessageError("shorter than a header")
    number, bits, *counts = struct.unpack_from(">6H", raw)
    found: dict[str, Any] = {
        "ID": number,
        "QR": bits >> 15,
        "opCode": _OPCODES.get(bits >> 11 & 0xF, str(bits >> 11 & 0xF)),
        "AA": bits >> 10 & 1,
        "TC": bits >> 9 & 1,
        "RD": bits >> 8 & 1,
        "RA": bits >> 7 & 1,
        "Z": bits >> 4 & 7,
        "responseCode": _CODES.get(bits & 0xF, str(bits & 0xF)),
        **dict(zip(("QDCount", "ANCount", "NSCount", "ARCount"), counts, strict=True)),
    }
    if sum(counts) > _RECORDS_MAX:
        raise BadMessageError("more records than a message has")
    try:
        _sections(raw, counts, found)
    except _EndError:
        if not cut or not found["questions"]:
            raise
        found["truncated"] = True
    return found


def _sections(raw: bytes, counts: list[int], found: dict[str, Any]) -> None:
    """Read what follows the header."""
    kinds = ("questions", "answers", "authorities", "additionals")
    found |= {kind: [] for kind in kinds}
    at = HEADER_BYTES
    for _ in range(counts[0]):
        name, at = _name(raw, at)
        kind, cls = _numbers(">2H", raw, at)
        found["questions"].append({"name": name, "type": _type(kind), "class": _class(cls)})
        at += 4
    for key, count in zip(kinds[1:], counts[1:], strict=True):
        for _ in range(count):
            record, at = _record(raw, at)
            found[key].append(record)


def _numbers(form: str, raw: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, raw, at)
    except struct.error as error:
        raise _EndError("it ends early") from error


def _type(number: int) -> str:
    return _TYPES.get(number, str(number))


def _class(number: int) -> str:
    return _CLASSES.get(number, "Unknown")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _name(raw: bytes, at: int) -> tuple[str, int]:
    """A name, and where what follows it starts; pointers lead back only."""
    labels: list[bytes] = []
    after, size, limit, pointers = -1, 0, at, 0
    while True:
        if at >= len(raw):
            raise _EndError("a name ends early")
        length = raw[at]
        if length >= _POINTER:
            target = _numbers(">H", raw, at)[0] & 0x3FFF
            pointers += 1
            if target >= limit or pointers > _POINTERS_MAX:
                raise BadMessageError("a name points forward, or around")
            after = at + 2 if after < 0 else after
            at = limit = target
            continue
        if length > NAME_BYTES >> 2:
            raise BadMessageError("a label of an unknown kind")
        at += 1
        if not length:
            break
        label = raw[at : at + length]
        size += length + 1
        if size > NAME_BYTES:
            raise BadMessageError("a name is too long")
        if len(label) < length:
            raise _EndError("a name ends early")
        labels.append(label)
        at += length
    return _text(b".".join(labels)), at if after < 0 else after


def _record(raw: bytes, at: int) -> tuple[dict[str, Any], int]:
    name, at = _name(raw, at)
    kind, cls, ttl, size = _numbers(">2HIH", raw, at)
    at += 10
    data = raw[at : at + size]
    if len(data) < size:
        raise _EndError("a record ends early")
    spelled = _type(kind)
    record = {
        "name": name,
        "type": spelled,
        "class": _class(cls),
        "TTL": ttl,
        "IP": "",
        "NS": "",
        "CNAME": "",
        "PTR": "",
        "TXTs": [],
        "SOA": {
            "MName": "",
            "RName": "",
            "serial": 0,
            "refresh": 0,
            "retry": 0,
            "expire": 0,
            "minimum": 0,
        },
        "SRV": {"priority": 0, "weight": 0, "port": 0, "name": ""},
        "MX": {"preference": 0, "name": ""},
        "OPT": [],
        "URI": {"priority": 0, "weight": 0, "target": ""},
        "TXT": "",
    }
    record |= _data(raw, at, spelled, data)
    return record, at + size


def _data(raw: bytes, at: int, kind: str, data: bytes) -> dict[str, Any]:
    """What a record of a type holds; of others the bytes."""
    if kind == "A" and len(data) == 4:  # noqa: PLR2004
        return {"IP": addresses.ipv4(data)}
    if kind == "AAAA" and len(data) == 16:  # noqa: PLR2004
        return {"IP": addresses.ipv6(data)}
    if kind in _NAMED:
        return {_NAMED[kind]: _name(raw, at)[0]}
    if kind == "TXT":
        texts = _strings(data)
        return {"TXTs": texts, "TXT": "".join(texts)}
    if kind == "SOA":
        mname, after = _name(raw, at)
        rname, after = _name(raw, after)
        numbers = _numbers(">5I", raw, after)
        names = ("serial", "refresh", "retry", "expire", "minimum")
        times = dict(zip(names, numbers, strict=True))
        return {"SOA": {"MName": mname, "RName": rname, **times}}
    if kind == "SRV":
        priority, weight, port = _numbers(">3H", data, 0)
        target = _name(raw, at + 6)[0]
        return {"SRV": {"priority": priority, "weight": weight, "port": port, "name": target}}
    if kind == "MX":
        return {"MX": {"preference": _numbers(">H", data, 0)[0], "name": _name(raw, at + 2)[0]}}
    if kind == "URI":
        priority, weight = _numbers(">2H", data, 0)
        return {"URI": {"priority": priority, "weight": weight, "target": _text(data[4:])}}
    if kind == "OPT":
        return {"OPT": _options(data)}
    return {"data": data.hex()}


def _strings(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        found.append(_text(data[at + 1 : at + 1 + data[at]]))
        at += 1 + data[at]
    return found


def _options(data: bytes) -> list[dict[str, Any]]:
    found, at = [], 0
    while at < len(data):
        code, size = _numbers(">2H", data, at)
        found.append({"code": str(code), "data": data[at + 4 : at + 4 + size].hex()})
        at += 4 + size
    return found
