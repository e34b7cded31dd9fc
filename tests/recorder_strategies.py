"""Records of the kernel program, as hypothesis makes them."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import strategies as st

from kcap.readers.live.bpf import events
from kcap.readers.live.bpf.events import Event
from tests.recorder_support import LAYOUTS, record

NAMES = st.one_of(
    st.sampled_from([b"a", b"b.txt", b"..", b".", "dü".encode(), b"\xff\xfe"]),
    st.sampled_from([b"memfd:x", b"[eventfd]"]),
    st.binary(min_size=1, max_size=6).map(lambda raw: raw.replace(b"\0", b"_")),
)
_MANY = st.lists(NAMES, max_size=4)

WORDS = st.one_of(
    st.just(b""),
    st.builds(lambda names, rooted: b"/" * rooted + b"/".join(names), _MANY, st.booleans()),
)
"""Paths as processes give them."""

PATHS = st.one_of(
    st.sampled_from([b"", b"\0", b"/\0", b"TCP\0", b"inotify\0"]),
    st.builds(
        lambda names, rooted: b"".join(n + b"\0" for n in names) + b"\0" * rooted,
        _MANY,
        st.booleans(),
    ),
)
"""Paths as the kernel program gives them."""

BLOCKS = st.one_of(
    st.binary(max_size=12),
    st.lists(st.binary(max_size=5).map(lambda raw: raw.replace(b"\0", b"")), max_size=5).map(
        lambda items: b"".join(item + b"\0" for item in items)
    ),
)

NUMBERS = st.one_of(
    st.integers(0, 5),
    st.sampled_from([0o100644, 0o10600, 0o140777, 0o40755, 0o600, 0o20666]),
    st.sampled_from([(1 << 64) - 1, (1 << 64) - 100, 1 << 63, (1 << 32) - 1, 1 << 31]),
    st.integers(0, (1 << 64) - 1),
)

_PORTS = st.integers(0, 65535)
_INET6 = [bytes(16), bytes(10) + b"\xff\xff\1\2\3\4", b"\xfe\x80" + bytes(13) + b"\1"]

ADDRESSES = st.one_of(
    st.binary(max_size=30),
    st.builds(
        lambda port, ip: b"\2\0" + struct.pack(">H", port) + ip + bytes(8),
        _PORTS,
        st.binary(min_size=4, max_size=4),
    ),
    st.builds(
        lambda port, ip, rest: b"\12\0" + struct.pack(">HI", port, 7) + ip + rest,
        _PORTS,
        st.sampled_from(_INET6),
        st.sampled_from([b"", b"\5\0\0\0"]),
    ),
    st.sampled_from([b"", b"/run/x\0", b"\0abs", b"\0", b"\xff\0"]).map(lambda p: b"\1\0" + p),
)
"""``struct sockaddr``."""


@st.composite
def sockets(draw: st.DrawFn) -> bytes:
    """``struct kcap_socket``."""
    out = np.zeros((), LAYOUTS.socket)
    out["family"] = draw(st.sampled_from([1, 2, 10, 16, 999]))
    addresses = [bytes(16), b"\x7f\0\0\1" + bytes(12), bytes(10) + b"\xff\xff\x0a\0\0\1"]
    for name in ("local", "remote"):
        out[f"{name}_port"] = draw(st.sampled_from([0, 80, 65535]))
        out[name] = np.frombuffer(draw(st.sampled_from(addresses)), np.uint8)
    out["inode"] = draw(st.sampled_from([1, 2, 77]))
    return out.tobytes()


def _pieces(event: Event) -> dict[int, st.SearchStrategy[bytes]]:
    """What may stand in the pieces of an event."""
    of_kind = {
        "addr": ADDRESSES,
        "argv": BLOCKS,
        "bytes": st.binary(max_size=20),
        "comm": st.binary(max_size=16),
        "env": BLOCKS,
        "local": sockets(),
        "path": PATHS,
        "remote": sockets(),
        "str": WORDS,
    }
    found: dict[int, st.SearchStrategy[bytes]] = {}
    for _, kind, where in event.arguments:
        for place in where.split("+"):
            if place[:1] != "p" or not place[1:].isdigit():
                continue
            number = int(place[1:])
            if kind in ("cwd", "opened", "rel"):
                chosen = WORDS if number < 2 else PATHS
            else:
                chosen = ADDRESSES if number == 5 and kind == "remote" else of_kind[kind]
            found.setdefault(number, chosen)
    if event.handler in ("close", "file", "socket"):
        found[3] = st.one_of(st.just(b""), sockets())
    if event.handler == "socket":
        found[6] = st.sampled_from([b"", b"/a\0", b"\0n"])
        found[7] = st.sampled_from([b"", b"/b\0"])
    found[8] = st.sampled_from([b"", b"", bytes(range(16)), bytes(16) + b"x", b"short"])
    return found


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """A record of any event, with pieces that its arguments may have."""
    event = events.by_number()[draw(st.sampled_from(sorted(events.by_number())))]
    return record(
        event.name,
        pieces={at: draw(piece) for at, piece in _pieces(event).items()},
        numbers=draw(st.dictionaries(st.integers(0, 11), NUMBERS, max_size=12)),
        ts_ns=draw(st.integers(1, 50)),
        flags=draw(st.sampled_from([0, 0, 1, 2, 4, 8, 16])),
        nr=draw(st.sampled_from([0, 1, 59, 180, 192, 193, 333, 9999, 0xFFFFFFFF])),
        retval=draw(st.sampled_from([0, 3, -1, -2, -4095, -4096, -9999, 1 << 40])),
        uid=draw(st.sampled_from([0, 1000, 0xFFFFFFFF])),
        mount_ns=draw(st.sampled_from([0, 4026531840])),
        start_ns=draw(st.sampled_from([0, 1 << 63, 3])),
        cgroup_id=draw(st.sampled_from([0, 1, (1 << 64) - 1])),
        comm=draw(st.sampled_from([b"bash", b"", b"\xffx", b"0123456789abcdef"])),
    )
