"""Frames, what their headers say, what they carry, and which sightings are one packet."""

from __future__ import annotations

import json
import socket
import struct
from collections import defaultdict, deque

import dpkt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcap_support import ethernet, ipv4, ipv6, tcp, udp

from kcap.model.batch import Batch
from kcap.packets import addresses, dns, identity, tls, web
from kcap.packets.decode import ARGUMENTS, columns
from kcap.packets.frames import Frames, LinkType
from kcap.packets.headers import parse
from kcap.packets.identity import PacketIds

LINKS = st.sampled_from([*map(int, LinkType), 147])
PORTS = st.integers(0, 65535)


def rows_of(*raws: bytes, link: int = 101, **more: object) -> list[dict[str, object]]:
    frames = Frames.of(raws, list(range(len(raws))), link, **more)
    return Batch(len(raws), columns(frames, PacketIds())).to_pylist()


# headers


@given(st.lists(st.tuples(st.binary(max_size=120), LINKS), max_size=10))
def test_any_bytes_are_told(raws: list[tuple[bytes, int]]) -> None:
    """No bytes are too odd; a frame that is no IP packet keeps all of its own."""
    frames = Frames.of([raw for raw, _ in raws], [0] * len(raws), 0)
    links = np.array([link for _, link in raws], np.uint16)
    frames.link_type[:] = links
    rows = Batch(len(raws), columns(frames, PacketIds())).to_pylist()
    for (raw, link), row in zip(raws, rows, strict=True):
        data = row["arg_data__bin"]
        assert raw.endswith(data)
        assert ("arg_ip_version" in row) == ("arg_src" in row)
        if "arg_ip_version" not in row:
            assert (data, row["arg_link_type"]) == (raw, link)
        assert {k for k in row if k.startswith("arg_")} <= {
            *(f"arg_{name}" for name in ARGUMENTS),
            "arg_data__bin",
        }


@given(
    st.sampled_from(["tcp", "udp"]),
    st.booleans(),
    PORTS,
    PORTS,
    st.binary(max_size=20),
    st.lists(st.integers(0, 4095), max_size=3),
    st.integers(0, 200),
)
def test_ports(
    kind: str, six: bool, source: int, target: int, payload: bytes, tags: list[int], cut: int
) -> None:
    """Those of the packet, as dpkt finds them too, or none where they were not captured."""
    segment = (tcp if kind == "tcp" else udp)(source, target, payload)
    number = 6 if kind == "tcp" else 17
    packet = (ipv6 if six else ipv4)(segment, number)
    frame = ethernet(packet, *tags)
    (whole, part) = rows_of(frame, frame[:cut], link=1, length=np.array([len(frame)] * 2))
    assert (whole["arg_src_port"], whole["arg_dst_port"]) == (source, target)
    assert whole.get("arg_vlan") == (tags[0] if tags else None)
    found = dpkt.ethernet.Ethernet(frame).data if not tags else None
    if found is not None:
        assert (found.data.sport, found.data.dport) == (source, target)
    begins = len(frame) - len(segment)
    assert part.get("arg_src_port") == (source if cut >= begins + 4 else None)
    assert part["arg_captured"] <= cut
    assert whole["arg_length"] == len(packet)


EXTENSIONS = st.lists(st.sampled_from([0, 43, 51, 60, 135]), max_size=4)


@given(EXTENSIONS, st.booleans())
def test_extensions_of_ipv6(kinds: list[int], lies: bool) -> None:
    """Ports are behind all extensions, and nowhere where one of them lies about its length."""
    body, following = udp(7, 8, b"x"), 17
    for number, kind in enumerate(reversed(kinds)):
        size = 255 if lies and number == 0 else 1
        size += kind == 51  # counted in words of 4 bytes, less 2
        body = (
            bytes([following, size]) + bytes(14 - 4 * (kind == 51) + 0) + body
            if kind != 51
            else (bytes([following, 2 if size < 255 else 255]) + bytes(14) + body)
        )
        following = kind
    (row,) = rows_of(ipv6(body, following))
    wrong = lies and bool(kinds)
    assert row.get("arg_dst_port") == (None if wrong else 8)
    assert row.get("arg_protocol") == (None if wrong else 17)


@pytest.mark.parametrize(
    ("packet", "ports"),
    [
        (ipv4(udp(1, 2), 17), True),
        (ipv4(udp(1, 2, bytes(8)), 17, fragment=0x2000), True),  # the first fragment
        (ipv4(udp(1, 2), 17, fragment=1), False),  # a later one
        (ipv4(udp(1, 2), 17, fragment=0x2001), False),
        (ipv4(udp(1, 2), 17, total=0), True),  # left to the hardware
        (ipv4(udp(1, 2), 17, total=24), False),  # too short for UDP
        (ipv4(udp(1, 2), 17, total=10), False),  # shorter than its own header
        (ipv4(udp(1, 2), 17, total=60_000), True),  # cut
        (ipv4(udp(1, 2), 17, more=bytes(8)), True),
        (b"\x4f" + ipv4(udp(1, 2), 17)[1:], False),  # a header longer than the packet
        (b"\x44" + ipv4(udp(1, 2), 17)[1:], False),  # and one that is too short
        (ipv4(udp(1, 2), 47), False),
        (ipv4(tcp(1, 2)[:10], 6, total=40), True),  # cut within TCP
        (ipv6(bytes([17, 0, 0, 1]) + bytes(4) + udp(1, 2), 44), True),
        (ipv6(bytes([17, 0, 0, 8]) + bytes(4) + udp(1, 2), 44), False),
        (ipv6(udp(1, 2), 17, length=0), True),
        (ipv6(udp(1, 2), 17, length=5), False),
    ],
)
def test_never_a_wrong_port(packet: bytes, ports: bool) -> None:
    """Fragments, cut headers and lying lengths: the port, or none."""
    (row,) = rows_of(packet)
    assert row.get("arg_src_port") == (1 if ports else None)
    assert row.get("arg_dst_port") == (2 if ports else None)


@pytest.mark.parametrize("family", [b"\x02\0\0\0", b"\0\0\0\x02"])
def test_null_headers(family: bytes) -> None:
    """An address family in either byte order; of IPv6 that of any system."""
    (row,) = rows_of(family + ipv4(udp(1, 2), 17), link=0)
    assert (row["arg_dst_port"], row["arg_link_type"]) == (2, 101)
    for six in (10, 24, 28, 30):
        for order in ("little", "big"):
            head = six.to_bytes(4, order)  # type: ignore[arg-type]
            assert rows_of(head + ipv6(udp(1, 2), 17), link=0)[0]["arg_ip_version"] == 6
    assert "arg_ip_version" not in rows_of(b"\x07\0\0\0" + ipv4(udp(1, 2), 17), link=0)[0]


def test_cooked_headers() -> None:
    """Both of Linux's; and ICMP, whose numbers are no ports."""
    echo = ipv4(bytes([8, 0]) + bytes(6), 1)
    (row,) = rows_of(bytes(14) + b"\x08\0" + echo, link=113)
    assert (row["arg_icmp_type"], row["arg_icmp_code"]) == (8, 0)
    assert "arg_src_port" not in row
    (row,) = rows_of(b"\x08\0" + bytes(18) + echo, link=276)
    assert (row["arg_icmp_type"], len(row["arg_link_header"])) == (8, 20)  # type: ignore[arg-type]


@given(st.binary(min_size=16, max_size=16), st.integers(0, 0xFFFF))
def test_addresses(raw: bytes, kept: int) -> None:
    """They are spelled as the system spells them, runs of zeros included."""
    raw = bytes(byte if kept >> at & 1 else 0 for at, byte in enumerate(raw))
    for own in (raw, bytes(10) + b"\xff\xff" + raw[12:], bytes(12) + raw[12:]):
        assert addresses.ipv6(own) == socket.inet_ntop(socket.AF_INET6, own)
    assert addresses.ipv4(raw[:4]) == socket.inet_ntoa(raw[:4])


# what they carry


def test_a_question_and_answers_that_dpkt_refuses() -> None:
    """A record of a new type, and a name that is not UTF-8, are told."""
    name = b"\x03www\x04" + b"\xff\xfeab" + b"\0"
    question = struct.pack(">6H", 9, 0x8180, 1, 2, 0, 0) + name + struct.pack(">2H", 65, 1)
    alias = b"\xc0\x0c" + struct.pack(">2HIH", 65, 1, 60, 3) + b"abc"
    address = b"\xc0\x0c" + struct.pack(">2HIH", 1, 1, 60, 4) + bytes([1, 2, 3, 4])
    with pytest.raises((dpkt.UnpackError, UnicodeDecodeError)):
        dpkt.dns.DNS(question + alias + address)
    (row,) = rows_of(ipv4(udp(53, 9, question + alias + address), 17))
    found = json.loads(str(row["arg_proto_dns"]))
    assert found["questions"] == [{"name": "www.\\xff\\xfeab", "type": "HTTPS", "class": "IN"}]
    assert [a["type"] for a in found["answers"]] == ["HTTPS", "A"]
    assert found["answers"][1]["IP"] == "1.2.3.4"
    size = struct.pack(">H", len(question + alias + address))
    (row,) = rows_of(ipv4(tcp(53, 9, size + question + alias + address), 6))
    assert json.loads(str(row["arg_proto_dns"])) == found


@given(st.binary(max_size=200))
def test_other_bytes_are_no_message(raw: bytes) -> None:
    """What is no DNS, HTTP or TLS is refused, and nothing else happens."""
    for read, refusal in (
        (dns.message, dns.BadMessageError),
        (web.head, web.BadHeadError),
        (tls.hello, tls.BadHelloError),
    ):
        for prefix in (
            b"",
            b"\x16\x03\x01\0\xff\x01\0\0\xf0\x03\x03",
            b"GET / HTTP/1.1\r\n",
            bytes(5) + b"\1",
        ):
            try:
                assert isinstance(read(prefix + raw), dict)
            except refusal:
                continue


def hello(name: bytes) -> bytes:
    """A client's hello."""
    server = struct.pack(">HBH", len(name) + 3, 0, len(name)) + name
    extensions = [(0, server), (16, b"\0\x03\x02h2"), (43, b"\x04\x03\x04\x0a\x0a")]
    packed = b"".join(struct.pack(">HH", k, len(v)) + v for k, v in extensions)
    body = b"\x03\x03" + bytes(32) + b"\0" + struct.pack(">HHH", 4, 0x1301, 0x0A0A) + b"\x01\0"
    body += struct.pack(">H", len(packed)) + packed
    message = b"\x01\0" + struct.pack(">H", len(body)) + body
    return b"\x16\x03\x01" + struct.pack(">H", len(message)) + message


def test_a_hello() -> None:
    """Who is asked for, what is offered; a hello that goes on elsewhere says so."""
    raw = hello(b"example.org")
    whole, part = rows_of(ipv4(tcp(1, 443, raw), 6), ipv4(tcp(1, 443, raw[:60]), 6))
    assert json.loads(str(whole["arg_proto_tls"])) == {
        "type": "client_hello",
        "record_version": "TLS 1.0",
        "version": "TLS 1.2",
        "session_id": "",
        "ciphers": ["TLS_AES_128_GCM_SHA256"],
        "server_name": "example.org",
        "alpn": ["h2"],
        "versions": ["TLS 1.3"],
    }
    assert json.loads(str(part["arg_proto_tls"]))["truncated"]


# sightings


SIGHTINGS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), max_size=60
)


def sightings(seen: list[tuple[int, int, int]]) -> Frames:
    """Frames of few contents, directions and times."""
    return Frames.of(
        [ipv4(udp(1, content), 17) for content, _, _ in seen],
        [ts for *_, ts in seen],
        101,
        direction=np.array([way for _, way, _ in seen], np.uint8),
    )


def given_ids(frames: Frames, *cuts: int) -> list[int]:
    ids, found = PacketIds(), []
    for part in np.split(np.arange(len(frames)), sorted(c for c in cuts if c <= len(frames))):
        batch = frames.take(part)
        found += ids.give(batch, parse(batch)).tolist()
    return found


@given(SIGHTINGS, st.lists(st.integers(0, 60), max_size=4))
def test_sightings_pair(seen: list[tuple[int, int, int]], cuts: list[int]) -> None:
    """The n-th that goes out with the n-th that comes in, however the stream is cut."""
    frames = sightings(seen)
    found = given_ids(frames)
    assert given_ids(frames, *cuts) == found
    waiting: dict[tuple[int, int], deque[int]] = defaultdict(deque)
    expected = list(range(len(seen)))
    for at, (content, way, _) in enumerate(seen):
        twins = waiting[content, 3 - way]
        if way and twins:
            expected[at] = twins.popleft()
        elif way:
            waiting[content, way].append(at)
    alike = [found.index(i) for i in found]
    assert alike == expected
    assert all(i >= 0 for i in found)


@given(SIGHTINGS, st.lists(st.integers(0, 60), max_size=3))
def test_waiting_is_bounded(seen: list[tuple[int, int, int]], cuts: list[int]) -> None:
    """A sighting waits so long and no longer, and the cut of the stream does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "SEGMENT", 4)
        patch.setattr(identity, "WAITING", 2)
        frames = sightings(seen)
        found = given_ids(frames)
        assert given_ids(frames, *cuts) == found
        for at, own in enumerate(found):
            assert at - found.index(own) < 8


def test_padding_is_not_of_the_packet() -> None:
    """What a driver adds to short frames changes no packet; one other byte does."""
    packet = ipv4(udp(1, 2, b"a"), 17)
    first, padded, other = (
        rows_of(raw, link=1)[0]["arg_packet_id"]
        for raw in (ethernet(packet), ethernet(packet) + bytes(9), ethernet(packet[:-1] + b"b"))
    )
    assert first == padded
    assert first != other
