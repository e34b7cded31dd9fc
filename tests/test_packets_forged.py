"""Packets that are made so that one passes for a sighting of another."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcap_support import ipv4, udp

from kcap.packets import identity
from kcap.packets.frames import Frames
from kcap.packets.headers import parse
from kcap.packets.identity import PacketIds, contents

_ALL = (1 << 64) - 1
WORDS = 8
ANY = np.array([9], np.uint64)


def mixed(value: int) -> int:
    for shift, factor in identity._MIX:
        value = (value ^ value >> shift) * factor & _ALL
    return value


def unmixed(value: int) -> int:
    """What was mixed so."""
    for shift, factor in reversed(identity._MIX):
        product = value * pow(factor, -1, 1 << 64) & _ALL
        value = product
        for _ in range(64 // shift + 1):
            value = product ^ value >> shift
    return value


def forged() -> tuple[bytes, bytes]:
    """Two different packets of which the content is one number."""
    places = [int(place) for place in identity._places(WORDS)]
    one = ipv4(udp(1, 2, bytes(36)), 17)
    other = ipv4(udp(1, 2, b"something else".ljust(36)), 17)
    words = list(struct.unpack(f"<{WORDS}Q", other))

    def sums(values: tuple[int, ...] | list[int]) -> int:
        each = zip(values, places, strict=False)
        return sum(mixed(value + place & _ALL) * place for value, place in each)

    rest = sums(struct.unpack(f"<{WORDS}Q", one)) - sums(words[:-1])
    last = places[-1]
    words[-1] = unmixed(rest * pow(last, -1, 1 << 64) & _ALL) - last & _ALL
    return one, struct.pack(f"<{WORDS}Q", *words)


def sightings(*packets: bytes) -> Frames:
    """Packets that go out and come in by turns."""
    ways = np.resize(np.array([2, 1], np.uint8), len(packets))
    return Frames.of(list(packets), range(1, len(packets) + 1), 101, direction=ways)


def test_a_forged_twin_is_a_packet_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be left out of `single` otherwise; the control: without a second number it is."""
    seen = sightings(*forged())
    headers = parse(seen)
    numbers, checks = contents(seen, headers, ANY)
    assert seen.frame(0) != seen.frame(1)
    assert numbers[0] == numbers[1]
    assert checks[0] != checks[1]
    assert len(set(PacketIds(b"x").give(seen, headers).tolist())) == 2

    monkeypatch.setattr(identity, "contents", lambda *_: (numbers, np.zeros_like(checks)))
    assert len(set(PacketIds(b"x").give(seen, headers).tolist())) == 1


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=20), st.binary(), st.binary())
def test_ids_do_not_depend_on_the_key(bodies: list[bytes], one: bytes, other: bytes) -> None:
    """True pairs are the same with any, also where packets of many lengths stand together."""
    seen = sightings(*(ipv4(udp(1, 2, body), 17) for body in bodies for _ in range(2)))
    headers = parse(seen)
    ids = PacketIds(one).give(seen, headers)
    assert ids.tolist() == PacketIds(other).give(seen, headers).tolist()
    assert (ids[::2] == ids[1::2]).all()
    alone = [
        contents(part, parse(part), ANY)[1][0]
        for part in map(seen.take, np.arange(len(ids))[:, None])
    ]
    assert contents(seen, headers, ANY)[1].tolist() == alone
