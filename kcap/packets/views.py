"""Headers of packets as JSON values in the form in which Tracee prints them.

These are the arguments of derived events (``net_packet_tcp``: ``proto_tcp``); they are made for
the events that somebody asked for, out of the packet's bytes, and never stored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from kcap.model import catalogue, naming
from kcap.model.batch import Batch, Column
from kcap.model.builder import Field, columns_of
from kcap.model.classes import TypeClass
from kcap.packets import addresses, encode
from kcap.packets.headers import Headers, parse

_DIRECTIONS: Final = {"in": 1, "out": 2}
_FLAGS: Final = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "NS")
_TYPES4: Final = {
    0: "EchoReply",
    3: "DestinationUnreachable",
    4: "SourceQuench",
    5: "Redirect",
    8: "EchoRequest",
    9: "RouterAdvertisement",
    10: "RouterSolicitation",
    11: "TimeExceeded",
    12: "ParameterProblem",
    13: "TimestampRequest",
    14: "TimestampReply",
}
_CODES4: Final = {
    3: {
        0: "Net",
        1: "Host",
        2: "Protocol",
        3: "Port",
        4: "FragmentationNeeded",
        5: "SourceRoutingFailed",
        9: "NetAdminProhibited",
        10: "HostAdminProhibited",
        13: "CommAdminProhibited",
    },
    11: {0: "TTLExceeded", 1: "FragmentReassemblyTimeExceeded"},
}
_TYPES6: Final = {
    1: "DestinationUnreachable",
    2: "PacketTooBig",
    3: "TimeExceeded",
    4: "ParameterProblem",
    128: "EchoRequest",
    129: "EchoReply",
    133: "RouterSolicitation",
    134: "RouterAdvertisement",
    135: "NeighborSolicitation",
    136: "NeighborAdvertisement",
    137: "Redirect",
}
_CODES6: Final = {
    1: {0: "NoRouteToDst", 1: "AdminProhibited", 3: "AddressUnreachable", 4: "PortUnreachable"},
    3: {0: "HopLimitExceeded", 1: "FragmentReassemblyTimeExceeded"},
}

Found = dict[tuple[TypeClass, str], Column]
"""What `kcap.replay.derivation` calls so."""


def _spelled(types: Mapping[int, str], codes: Mapping[int, Mapping[int, str]], raw: bytes) -> str:
    kind, code = raw[0], raw[1]
    name = types.get(kind, str(kind))
    known = codes.get(kind)
    if known is None:
        return name if not code else f"{name}(Code: {code})"
    return f"{name}({known.get(code, f'Code: {code}')})"


def _protocol(number: int) -> str:
    return catalogue.decoder("ip_protocol").get(number, str(number))


def _ipv4(raw: bytes, *_: object) -> dict[str, Any]:
    first, tos, length, number, part, ttl, protocol, checksum = struct.unpack_from(">BBHHHBBH", raw)
    return {
        "version": first >> 4,
        "IHL": first & 0xF,
        "TOS": tos,
        "length": length,
        "id": number,
        "flags": part >> 13,
        "fragOffset": part & 0x1FFF,
        "TTL": ttl,
        "protocol": _protocol(protocol),
        "checksum": checksum,
        "srcIP": addresses.ipv4(raw[12:16]),
        "dstIP": addresses.ipv4(raw[16:20]),
    }


def _ipv6(raw: bytes, *_: object) -> dict[str, Any]:
    word, length, following, limit = struct.unpack_from(">IHBB", raw)
    return {
        "version": word >> 28,
        "trafficClass": word >> 20 & 0xFF,
        "flowLabel": word & 0xFFFFF,
        "length": length,
        "nextHeader": _protocol(following),
        "hopLimit": limit,
        "srcIP": addresses.ipv6(raw[8:24]),
        "dstIP": addresses.ipv6(raw[24:40]),
    }


def _tcp(raw: bytes, headers: Headers, row: int) -> dict[str, Any]:
    at = int(headers.layer4[row] - headers.start[row])
    if not headers.tcp[row]:
        # What was captured ends within the header.
        source, target = struct.unpack_from(">HH", raw, at)
        return {"srcPort": source, "dstPort": target}
    source, target, seq, ack, bits, window, checksum, urgent = struct.unpack_from(
        ">HHIIHHHH", raw, at
    )
    return {
        "srcPort": source,
        "dstPort": target,
        "seq": seq,
        "ack": ack,
        "dataOffset": bits >> 12,
        **{name: bits >> place & 1 for place, name in enumerate(_FLAGS)},
        "window": window,
        "checksum": checksum,
        "urgent": urgent,
    }


def _udp(raw: bytes, headers: Headers, row: int) -> dict[str, Any]:
    at = int(headers.layer4[row] - headers.start[row])
    names = ("srcPort", "dstPort", "length", "checksum")
    there = min(len(names), (len(raw) - at) // 2)
    return dict(zip(names, struct.unpack_from(f">{there}H", raw, at), strict=False))


def _icmp(raw: bytes, headers: Headers, row: int) -> dict[str, Any]:
    at = int(headers.layer4[row] - headers.start[row])
    names = ("checksum", "id", "seq")
    there = min(len(names), max(len(raw) - at - 2, 0) // 2)
    numbers = struct.unpack_from(f">{there}H", raw, at + 2)
    kind = _spelled(_TYPES4, _CODES4, raw[at:])
    return {"typeCode": kind, **dict(zip(names, numbers, strict=False))}


def _icmpv6(raw: bytes, headers: Headers, row: int) -> dict[str, Any]:
    at = int(headers.layer4[row] - headers.start[row])
    found: dict[str, Any] = {"typeCode": _spelled(_TYPES6, _CODES6, raw[at:])}
    if len(raw) >= at + 4:
        found["checksum"] = int.from_bytes(raw[at + 2 : at + 4], "big")
    return found


Maker = Callable[[bytes, Headers, int], dict[str, Any]]


def _made(make: Maker, batch: Batch) -> Found:
    frames, rows = encode.frames(batch)
    headers = parse(frames)
    values = [make(frames.frame(row), headers, row) for row in range(len(frames))]
    return _json(values, rows, batch.rows)


def _json(values: list[dict[str, Any]], rows: Any, count: int) -> Found:  # noqa: ANN401
    base = naming.argument("metadata")
    columns, _ = columns_of(Field(base, TypeClass.JSON), rows, values, count)
    return {(TypeClass.JSON, ""): columns[base]} if base in columns else {}


def _header(make: Maker) -> Callable[[Batch, Sequence[str]], Found]:
    return lambda batch, _: _made(make, batch)


def _metadata(batch: Batch, operands: Sequence[str]) -> Found:
    column = batch.get(naming.argument(operands[0]))
    if column is None:
        return {}
    rows = np.arange(batch.rows, dtype=np.int32) if column.rows is None else column.rows
    ways = [_DIRECTIONS.get(way, 0) for way in column.values.to_pylist()]
    return _json([{"direction": way} for way in ways], rows, batch.rows)


FUNCTIONS: Final[Mapping[str, Callable[[Batch, Sequence[str]], Found]]] = {
    "packet_metadata": _metadata,
    "packet_ipv4": _header(_ipv4),
    "packet_ipv6": _header(_ipv6),
    "packet_tcp": _header(_tcp),
    "packet_udp": _header(_udp),
    "packet_icmp": _header(_icmp),
    "packet_icmpv6": _header(_icmpv6),
}
"""Functions of places in ``derived.tsv``; all give ``json``."""
